"""What was asked of the public code for `nvlabs_sana_network.npz`."""

from __future__ import annotations

CAUSAL = {
    "causal_pairs": (0, 4),
    "causal_single_frames": (0, 1, 2, 3, 4, 5, 6),
    "causal_uneven": (0, 1, 3, 6),
}
"""First frames of the chunks of a clip of seven frames."""
STREAM_STARTS, STREAM_FRAMES = (0, 4, 7, 10), 13
STREAMS: dict[str, tuple[int | None, int]] = {
    "stream_whole": (None, 0),
    "stream_window": (2, 0),
    "stream_sink": (1, 1),
}
"""Chunks that softmax blocks look back on, and first chunks that stay in view."""
