"""What every part agrees on: paths, configuration, metric lines, the wire format and the errors. Standard library only."""
