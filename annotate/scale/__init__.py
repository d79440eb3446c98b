"""How many metres one unit of the geometry is: the ratio of each frame, and what they say of the clip."""
