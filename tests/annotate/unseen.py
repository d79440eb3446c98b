"""Frames of a clip whose pictures do not matter, for what only asks for sizes and timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Never

import numpy as np
from theodolite.annotate.frames.base import ClipTiming
from theodolite.dataset.media.orientation import UPRIGHT, Orientation


@dataclass(frozen=True)
class UnseenFrames:
    """`ClipFrames` that nobody may look at."""

    timing: ClipTiming
    height: int = 90
    width: int = 160
    source_height: int = 180
    source_width: int = 320
    num_source_frames: int | None = 6
    orientation: Orientation = UPRIGHT
    image_names: tuple[str, ...] = ()
    pixel_aspect: float = 1.0
    cuts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(num_frames: int, height: int, width: int, *, fps: float = 16.0) -> UnseenFrames:
        """So many frames at a steady rate, stored as they were."""
        index = np.arange(num_frames)
        timing = ClipTiming(frame_index=index, time_s=index / fps, source_fps=fps, fps=fps)
        return UnseenFrames(timing, height, width, height, width, num_frames)

    def __len__(self) -> int:
        return len(self.timing.frame_index)

    def __iter__(self) -> Never:
        raise AssertionError("the pictures are of no concern here")

    def every_frame(self) -> Never:
        raise AssertionError("the pictures are of no concern here")
