"""The doors: commands, flags, tables, progress. Nothing here does what a person could not do from Python."""
