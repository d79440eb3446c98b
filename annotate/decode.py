"""Video and image-sequence decoding at 16 fps with exact source frame indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ClipTiming:
    """Which source frames make the clip.

    Attributes:
        frame_index: (F,) int64, strictly increasing 0-based indices of decoded source frames.
        time_s: (F,) float64, presentation times of those frames, first decoded source frame of the file = its own
            time stamp (not forced to 0).
        source_fps: average rate of the source.
        fps: rate of the grid (16.0), or the source's own when the recipe keeps every frame.
    """

    frame_index: NDArray[np.int64]
    time_s: NDArray[np.float64]
    source_fps: float
    fps: float


class ClipFrames(Protocol):
    """Frames of a clip, decoded anew on every iteration; memory never grows with clip length.

    Attributes:
        height, width: of the frames that are yielded (the stored size).
        source_height, source_width: of the source after rotation flags, before any resizing.
        num_source_frames: frames that the whole source holds, or None where they were not counted.
    """

    timing: ClipTiming
    height: int
    width: int
    source_height: int
    source_width: int
    num_source_frames: int | None

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (height, width, 3) uint8 RGB, one per clip frame, in order."""
        ...
