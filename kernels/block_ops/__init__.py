"""What a block of the world model does between its matrix products, one pass over memory each."""
