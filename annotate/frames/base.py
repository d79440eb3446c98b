"""What later stages may know of a clip's frames: images, when each was taken, and how they were stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...dataset.media.orientation import Orientation
from ...dataset.strict import Strict
from ..sources.clip import LEAST_FPS, MOST_FPS


class DecodeConfig(Strict):
    """Which frames of a clip are read, and how large."""

    fps: Literal[16, "native"] = 16
    """16: resample by `choose_frames`. `native`: keep every source frame, for recordings at an unknown rate."""
    source_fps: Annotated[float, Field(ge=LEAST_FPS, le=MOST_FPS)] | None = None
    """Replaces the time stamps of every clip: frame i is at i / source_fps. Null: a clip's own, else the media's."""
    min_frames: Annotated[int, Field(ge=2)] = 16
    """Clips with fewer frames are rejected (`too_short`)."""
    max_frames: Annotated[int, Field(ge=2)] | None = None
    """Only so many frames from the start of the window; null: all."""
    max_side_px: Annotated[int, Field(ge=64)] | None = 1280
    """Larger frames are reduced to this long side, aspect kept; null: never."""
    detect_cuts: bool = True
    """Look for shot changes while the frames go by; a clip with cuts is rejected by the pipeline (`shot_cut`)."""
    backend: Literal["pyav", "decord"] = "pyav"
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Decoder threads; one is fastest in total where every core has its own clip."""


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
        source_height, source_width: of the source as shown, before any resizing.
        orientation: what made them of the pixels as stored.
        num_source_frames: frames that the whole source holds, or None where they were not counted.
        image_names: file name of every source frame where the media is a folder of images, else empty.
    """

    @property
    def timing(self) -> ClipTiming: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def source_height(self) -> int: ...
    @property
    def source_width(self) -> int: ...
    @property
    def orientation(self) -> Orientation: ...
    @property
    def num_source_frames(self) -> int | None: ...
    @property
    def image_names(self) -> tuple[str, ...]: ...

    @property
    def pixel_aspect(self) -> float:
        """Width of a stored pixel over its height; fx / fy of an undistorted lens is its inverse."""
        ...

    @property
    def cuts(self) -> tuple[int, ...]:
        """Clip frames at which a new shot begins; known after a complete iteration."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What decoding had to decide about the media."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (height, width, 3) uint8 RGB, one per clip frame, in order."""
        ...

    def every_frame(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (source_height, source_width, 3) uint8 RGB of all source frames from the clip's first to its last."""
        ...


def stored_size(height: int, width: int, max_side_px: int | None) -> tuple[int, int]:
    longest = max(height, width)
    if max_side_px is None or longest <= max_side_px:
        return height, width
    return max(1, round(height * max_side_px / longest)), max(1, round(width * max_side_px / longest))
