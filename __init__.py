"""theodolite: metric per-frame cameras for video, and the world models trained on them."""

__version__ = "0.1.0"
