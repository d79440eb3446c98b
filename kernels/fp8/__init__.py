"""Attention and matrix products on eight-bit floating numbers (e4m3): `reference` is the definition."""
