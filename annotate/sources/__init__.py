"""Source readers: where clips come from, always the same clips in the same order."""
