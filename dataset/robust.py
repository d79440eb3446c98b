"""Numbers of robust statistics."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of normal errors over their median absolute deviation: 1 / 0.6745."""
