"""Where a dataset lies: in a folder, or in an object store; how it is told which of its parts count."""
