"""The tracker on the processor: OpenCV's optical flow and SIFT, a frame at a time."""

from __future__ import annotations

import cv2
import numpy as np

from ...dataset.arrays import U8
from .descriptors import sift
from .flow import FlowTracker
from .records import Features, TracksConfig
from .tracker import Keyframes, Seen, WorkingSize


class OpenCVTracker:
    """See `tracker.Tracker`."""

    name = "opencv"

    def __init__(self, size: WorkingSize, config: TracksConfig, chosen: frozenset[int] = frozenset()) -> None:
        self._size, self._config = size, config
        self._flow = FlowTracker(size.wh, config)
        self._keyframes = Keyframes(size, config, chosen)
        self._features: list[Features] = []
        self._sharpness: list[float] = []
        self._previous = self._gray = np.zeros((0, 0), np.uint8)
        self._frame = -1

    def add(self, gray: U8) -> None:
        """See `tracker.Tracker`."""
        self._frame += 1
        self._previous, self._gray = self._gray, gray
        self._sharpness.append(float(cv2.Laplacian(gray, cv2.CV_32F).var()))
        survival = self._flow.add(self._frame, gray)
        self._describe(self._keyframes.add(survival, self._flow.track, self._flow.xy))

    def _describe(self, frames: list[int]) -> None:
        for frame in frames:
            image = self._gray if frame == self._frame else self._previous
            xy, descriptors = sift(image, self._config)
            self._features.append(self._size.features(frame, xy, descriptors, image))

    def finish(self) -> Seen:
        """See `tracker.Tracker`."""
        self._describe(self._keyframes.last())
        return Seen(
            observed=self._flow.observed,
            tried=self._flow.tried,
            sharpness=self._sharpness,
            keyframes=self._keyframes.frames,
            features=self._features,
        )
