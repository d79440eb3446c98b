"""Cameras from whatever files somebody has: of clips, matched with each other, and paths that a video is to follow."""
