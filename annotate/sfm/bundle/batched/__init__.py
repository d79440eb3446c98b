"""The bundle as torch operations: all observations of several clips at once."""
