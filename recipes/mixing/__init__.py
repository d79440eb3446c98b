"""Mixtures of sources: recipes, and `theodolite mix`."""
