"""What follows points through a clip: one contract, and who fulfils it.

A tracker is shown the grey working images of a clip in order and tells at the end what it saw. `OpenCVTracker` does
all of a frame at once on the processor; `batched.tracker.BatchedTracker` takes many frames together, for a GPU.
Which frames are keyframes is decided here for both.
"""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import U8, BoolArray, FloatArray, IntArray
from .records import Features, TracksConfig

THUMBNAIL_WIDTH = 192


@dataclass(frozen=True)
class WorkingSize:
    """How large a clip's frames are for trackers, and how large they are stored."""

    wh: tuple[int, int]
    stored_wh: tuple[int, int]

    @staticmethod
    def of(height: int, width: int, config: TracksConfig) -> WorkingSize:
        """The working size of frames of this stored size."""
        shrink = min(1.0, config.max_side_px / max(height, width))
        wh = (max(16, round(width * shrink)), max(16, round(height * shrink)))
        return WorkingSize(wh, (width, height))

    @property
    def to_stored(self) -> FloatArray:
        """(2,) stored pixels a working pixel."""
        return np.array([self.stored_wh[0] / self.wh[0], self.stored_wh[1] / self.wh[1]])

    def features(
        self, frame: int, xy: FloatArray, descriptors: U8 | NDArray[np.float32], image: U8
    ) -> Features:
        """Of a keyframe, from places (n, 2) in its working image."""
        width, height = self.stored_wh
        small = (THUMBNAIL_WIDTH, max(8, round(THUMBNAIL_WIDTH * height / width)))
        return Features(
            frame=frame,
            xy_px=(xy + 0.5) * self.to_stored,
            descriptors=descriptors,
            thumbnail=cv2.resize(image, small, interpolation=cv2.INTER_AREA),
        )


@dataclass(frozen=True)
class Seen:
    """What a tracker tells of a clip, frame by frame; places are in pixels of the working image, whose centres are at
    whole numbers.

    Attributes:
        observed: numbers (n,) of the tracks that are seen, and where (n, 2).
        tried: of the tracks that lived before the frame: where they were (n, 2), how far they went (n,), whether they
            were found (n,).
        sharpness: variance of the Laplacian.
        keyframes, features: frames with features, first and last included, and what is kept of each.
        nearest: as in `ImageMeasurements`.
    """

    observed: list[tuple[IntArray, FloatArray]] = field(default_factory=list)
    tried: list[tuple[FloatArray, FloatArray, BoolArray]] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    nearest: dict[tuple[int, int], IntArray] = field(default_factory=dict)


class Tracker(Protocol):
    """Follows points through one clip.

    Attributes:
        name: for the row: which one, and where it works.
    """

    @property
    def name(self) -> str: ...

    def add(self, gray: U8) -> None:
        """The next frame, (h, w) of the working size, brightness normalised (`flow.normalised_gray`)."""
        ...

    def finish(self) -> Seen:
        """All of it, once, after the last frame; at least one must have been added."""
        ...


MakeTracker = Callable[[WorkingSize, TracksConfig, frozenset[int]], Tracker]
"""Begins with a clip: its size, the configuration, and frames that are keyframes whatever moves."""


class Keyframes:
    """Decides which frames are keyframes, from what became of the tracks.

    Attributes:
        frames: those so far.
    """

    def __init__(self, size: WorkingSize, config: TracksConfig, chosen: frozenset[int]) -> None:
        self._config, self._chosen = config, chosen
        self._far_px = config.keyframe_flow * float(np.hypot(*size.wh))
        self._before = (np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
        self._frame = -1
        self.frames: list[int] = []

    def add(self, survival: float, track: IntArray, xy: FloatArray) -> list[int]:
        """The next frame: which keyframes there are now, of it and the one before it.

        Args:
            survival: share of the tracks that were found in it.
            track, xy: numbers (n,) and places (n, 2) of the tracks that are seen in it.
        """
        self._frame += 1
        number = len(self.frames)
        if not self.frames:
            self._take(track, xy)
            return self.frames[number:]
        wanted = self._moved_on(track, xy) or self._frame in self._chosen
        if survival < 0.5 and self.frames[-1] < self._frame - 1:
            # A large step: bridge it with descriptors on both of its sides.
            self.frames.append(self._frame - 1)
        if wanted or self._frame - self.frames[-1] >= self._config.max_keyframe_gap:
            self._take(track, xy)
        return self.frames[number:]

    def last(self) -> list[int]:
        """The keyframe that the last frame still has to become, if any."""
        if self.frames[-1] == self._frame:
            return []
        self.frames.append(self._frame)
        return self.frames[-1:]

    def _take(self, track: IntArray, xy: FloatArray) -> None:
        self.frames.append(self._frame)
        self._before = (track, xy)

    def _moved_on(self, track: IntArray, xy: FloatArray) -> bool:
        """Whether tracks have ended or moved far since the last keyframe."""
        before, then_xy = self._before
        common, now, then = np.intersect1d(track, before, assume_unique=True, return_indices=True)
        steps = np.linalg.norm(xy[now] - then_xy[then], axis=1)
        moved = float(np.median(steps)) if len(common) else np.inf
        gone = len(common) < 0.6 * max(1, len(before))
        return gone or moved > self._far_px
