"""Quality of the pictures: numbers for filters, taken from the frames as they go by to the trackers.

Nothing is decided here: rows keep the numbers, and thresholds are applied when a dataset is read (dataset/filters.py).
They are those of SANA-WM's filters (arXiv 2605.15178, Table 6) that need no network; scores of networks (DOVER, a
vision-language model) come as tables of their own.
"""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...dataset.arrays import U8
from ...dataset.strict import Strict
from ..sources.clip import GRID_FPS
from .dense_flow import DenseFlow
from .grey import grey_of

_TAPS = np.array([3571, 16004, 26386, 16004, 3571], np.float64) / 65536
"""libvmaf's blur (integer_motion.c), which is a Gaussian of about 1.08 pixels."""
_STUDIO_RANGE = 219 / 255
"""Luma of video goes from 16 to 235, and motion is stated in its steps; grey levels go from 0 to 255."""


class QualityConfig(Strict):
    """What is measured of a clip's pictures."""

    flow_width_px: Annotated[int, Field(ge=64, le=4096)] = 512
    """Width to which frames are reduced for the flow, and in whose pixels it is given; the paper does not state its
    own. Smaller frames are taken as they are and the flow is scaled."""
    flow_gap_s: Annotated[float, Field(gt=0)] = 0.5
    """Time between the two frames of a pair."""
    until_s: Annotated[float, Field(gt=0)] = 60.0
    """Flow and saturation look at so much of the clip."""


class VmafMotion:
    """Motion as libvmaf defines it: mean absolute difference of blurred luma from frame to frame."""

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self.scores: list[float] = []
        """Of every frame against the one before (libvmaf's `motion`), in steps of luma; 0 for the first."""

    def add(self, luma: U8) -> None:
        """Take the next frame: (H, W), video range (16 to 235)."""
        blurred = cv2.sepFilter2D(luma, cv2.CV_32F, _TAPS, _TAPS, borderType=cv2.BORDER_REFLECT_101)
        score = 0.0
        if self._before is not None:
            score = float(cv2.norm(blurred, self._before, cv2.NORM_L1)) / blurred.size
        self.scores.append(score)
        self._before = np.asarray(blurred, np.float32)

    def mean(self) -> float:
        """Mean over all frames of `motion2`: the smaller of a frame's score and the next one's, which a single cut or
        flash does not raise. The last frame has its own."""
        scores = np.asarray(self.scores)
        return float(np.append(np.minimum(scores[:-1], scores[1:]), scores[-1:]).mean())


def luma_of(rgb: U8) -> U8:
    """(H, W) luma in video range of (H, W, 3) RGB."""
    return cv2.convertScaleAbs(grey_of(rgb), alpha=_STUDIO_RANGE, beta=16).astype(np.uint8, copy=False)


class FlowLength:
    """Mean length of dense optical flow between frames some time apart (OpenCV's DIS), in pixels of a working width."""

    def __init__(self, width_px: int) -> None:
        self.width_px = width_px
        self._flow = DenseFlow("medium")
        self._before: U8 | None = None
        self.lengths_px: list[float] = []

    def add(self, rgb: U8) -> None:
        """Take the next frame, (H, W, 3)."""
        height, width = rgb.shape[:2]
        grey = grey_of(rgb)
        if width > self.width_px:
            size = self.width_px, max(1, round(height * self.width_px / width))
            grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
        if self._before is not None:
            flow = self._flow.between(self._before, grey)
            scale = self.width_px / grey.shape[1]
            self.lengths_px.append(float(np.linalg.norm(flow, axis=2).mean()) * scale)
        self._before = grey


class QualityMeter:
    """Watches a clip's frames go by.

    Args:
        fps: of the clip. Motion grows as the rate falls, so it is only measured at 16 a second.
    """

    def __init__(self, config: QualityConfig, fps: float) -> None:
        self._config = config
        self._step = max(1, round(config.flow_gap_s * fps))
        self._last = round(config.until_s * fps)
        self._motion = VmafMotion() if abs(fps - GRID_FPS) < 0.1 else None
        self._flow = FlowLength(config.flow_width_px)
        self._saturation: list[float] = []

    def add(self, frame: int, rgb: U8) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB."""
        if self._motion is not None:
            self._motion.add(luma_of(rgb))
        if frame % self._step == 0 and frame <= self._last:
            self._flow.add(rgb)
            hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
            self._saturation.append(float(cv2.mean(hsv)[1]))

    def columns(self) -> dict[str, Any]:
        """Values of the row."""
        return {"metrics": self.metrics()}

    def metrics(self) -> dict[str, float]:
        """What was measured, by the names of `dataset/filters.py`; what could not be is left out."""
        found: dict[str, float] = {}
        if self._motion is not None and len(self._motion.scores) > 1:
            found["vmaf_motion"] = self._motion.mean()
        if self._flow.lengths_px:
            length_px = float(np.mean(self._flow.lengths_px))
            found["flow_px"] = length_px
            found["flow_share_of_width"] = length_px / self._flow.width_px
        if self._saturation:
            found["saturation"] = float(np.mean(self._saturation))
        return found
