"""Dense optical flow between two pictures (Kroeger et al. 2016), by OpenCV's DIS."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from ...dataset.arrays import F32, U8

_SMALLEST_PX = 32
"""Of a side. The method chooses its scales by the longer one: where the shorter one has fewer patches than they need,
OpenCV reads and writes outside of its memory (found by trying; of its presets none needs more)."""


class DenseFlow:
    """Flow of one preset: `medium` looks closest, `ultrafast` least close."""

    def __init__(self, preset: Literal["ultrafast", "fast", "medium"]) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))

    def between(self, a: U8, b: U8) -> F32:
        """(h, w, 2) where the pixels of grey picture `a` (h, w) are in `b`, less where they were."""
        height, width = a.shape
        down, across = max(0, _SMALLEST_PX - height), max(0, _SMALLEST_PX - width)
        if down or across:
            # Rows and columns that repeat the border move as it does.
            a, b = (np.pad(x, ((0, down), (0, across)), mode="edge") for x in (a, b))
        return np.asarray(self._flow.calc(a, b, None), np.float32)[:height, :width]
