"""Is a clip what it seems? Frames shown twice, bars, black stretches, the range of its colours, and its clock.

All of it is measured and nothing decided: thresholds are applied when a dataset is read (dataset/filters.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from ...dataset.arrays import F64, U8
from ...dataset.words import TimeStamps
from .base import ClipTiming
from .grey import grey_of

_WIDTH_PX = 160
"""Frames are reduced to this width: noise of codecs averages out."""
_SAME, _SAME_OF_USUAL = 0.02, 0.1
"""Mean change of grey levels from the frame before below which nothing changed, and the same as a share of the usual
change where the camera moves: a copy that was encoded anew differs a little."""
_BLACK = 24
"""Grey level below which a bar or a frame is black, studio range and codec noise included."""
_ROUNDING_S = 6e-4
"""Half a millisecond is what stamps in whole milliseconds are off by."""


class IntegrityMeter:
    """Watches a clip's frames go by (`PictureWatcher`)."""

    def __init__(self) -> None:
        self._before: U8 | None = None
        self._change: list[float] = []
        self._black = 0
        self._count = 0
        self._rows: U8 | None = None
        self._columns: U8 | None = None
        self._low, self._high = 255.0, 0.0

    def add(self, frame: int, rgb: U8) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB."""
        height, width = rgb.shape[:2]
        size = min(_WIDTH_PX, width), max(1, round(height * min(_WIDTH_PX, width) / width))
        grey = np.asarray(cv2.resize(grey_of(rgb), size, interpolation=cv2.INTER_AREA), np.uint8)
        if self._before is not None:
            self._change.append(float(cv2.norm(grey, self._before, cv2.NORM_L1)) / grey.size)
        self._before = grey
        below = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
        low, high = np.searchsorted(below, (0.01, 0.99))
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))
        self._black += bool(high < _BLACK)
        self._count += 1
        rows, columns = grey.max(1), grey.max(0)
        self._rows = rows if self._rows is None else np.maximum(self._rows, rows)
        self._columns = columns if self._columns is None else np.maximum(self._columns, columns)

    def columns(self) -> Mapping[str, Any]:
        """Entries of the row's `metrics`."""
        if self._rows is None or self._columns is None:
            return {}
        change = np.asarray(self._change)
        usual = float(np.median(change)) if len(change) else 0.0
        same = change <= max(_SAME, _SAME_OF_USUAL * usual)
        seen = _seen_share(self._rows) * _seen_share(self._columns)
        return {
            "metrics": {
                "duplicate_frames_share": float(same.mean()) if len(change) else 0.0,
                "letterbox_share": 1 - seen if seen > 0 else 0.0,
                "black_frames_share": self._black / self._count,
                "luma_low": self._low,
                "luma_high": self._high,
            }
        }


def _seen_share(brightest: U8) -> float:
    """Share of lines between the black ones at either end; all of them where everything is black."""
    lit = np.flatnonzero(brightest >= _BLACK)
    return float((lit[-1] - lit[0] + 1) / len(brightest)) if len(lit) else 1.0


def time_columns(timing: ClipTiming, *, assumed: bool) -> dict[str, Any]:
    """Columns that say what the time stamps of a clip are worth.

    Args:
        assumed: the source has none of its own, or they were replaced.
    """
    off = _off_the_rate(timing)
    jitter = float(np.sqrt(np.mean(off**2))) if len(off) else 0.0
    kind: TimeStamps = "varying"
    if assumed:
        kind = "assumed"
    elif not len(off) or np.abs(off).max() <= _ROUNDING_S:
        kind = "constant"
    return {"time_stamps": kind, "time_jitter_s": jitter if kind == "varying" else None}


def _off_the_rate(timing: ClipTiming) -> F64:
    """(F,) seconds by which each frame lies off the straight line through the time stamps by number of frame."""
    if len(timing.time_s) < 3:
        return np.zeros(0)
    number = (timing.frame_index - timing.frame_index[0]).astype(np.float64)
    line = np.polyfit(number, timing.time_s - timing.time_s[0], 1)
    return timing.time_s - timing.time_s[0] - np.polyval(line, number)
