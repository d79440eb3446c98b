"""`theodolite generate`: from what a user typed to a video, its record, and many of them."""
