"""Cameras, and videos that follow them, measured against the truth, with confidence intervals."""
