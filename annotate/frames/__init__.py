"""Frames of a clip: opened once, at a steady rate, alike from a video, a folder of images or the renderer."""
