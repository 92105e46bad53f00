"""Where jobs run, and the command line that starts them."""
