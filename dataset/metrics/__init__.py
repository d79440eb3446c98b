"""How far cameras and pictures are from what they should be."""
