"""The recipes of the corpus, one a source, and what a run of them will cost."""
