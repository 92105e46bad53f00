"""What every part agrees on: paths, settings, metric lines, the wire format, the errors. Standard library only."""
