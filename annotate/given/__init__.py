"""What a source ships beside its media: cameras, lenses, and which pixels they belong to."""
