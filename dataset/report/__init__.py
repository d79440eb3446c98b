"""What a dataset looks like: as text, and as one HTML file that needs no network."""
