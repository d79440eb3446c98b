"""A run: what is left of a source, over many workers, into a dataset."""
