"""A film within the film: a box of the picture that shows something else, with no border of its own.

Nothing in it stands still but its edges: there, and only there, the picture changes abruptly at one place all along,
while the scene moves on. So for every pixel is counted in how many samples the brightness changes most along its row
(column) just there; a box is four straight lines, two upright and two level, of pixels where it usually does. Sides of
the picture can be sides of the box.
"""

# OpenCV types every image as MatLike.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from ...dataset.arrays import U8, BoolArray, FloatArray

_LEAST_STEP = 6.0
"""Grey levels a pixel that count as a change."""
_APART = 3
"""Pixels on either side with which a change is compared."""
_LINE = 0.6
"""Share of the samples, averaged along a stretch, from which on a line stays. Boxes in rendered walks: 0.8 to 0.97;
scenes that move: 0.3, at most 0.45."""
_HERE = 0.4
"""The same of a few pixels of it: here and there both sides are equally bright."""
_COVERED = 0.85
"""Share of a side along which it has to be so."""
_STRETCH, _FEW = 25, 9
_MOST_LINES = 8
_AREA = (0.01, 0.4)
_EDGE = 2
"""Rows and columns at the picture's own sides where codecs leave lines."""


def insets(samples: Sequence[U8], known: BoolArray) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom), pixels, right and bottom excluded, of which none overlaps another.

    Args:
        samples: (h, w) grey images between which the scene moved on.
        known: (h, w), True where the scene is known to have moved.
    """
    upright, level = (_stays(samples, axis) for axis in (1, 0))
    height, width = known.shape
    across = sorted({0, *_lines(upright), width})
    down = sorted({0, *_lines(level.T), height})
    found: list[tuple[float, tuple[int, int, int, int]]] = []
    for left, right in itertools.combinations(across, 2):
        for top, bottom in itertools.combinations(down, 2):
            share = (right - left) * (bottom - top) / (width * height)
            sides = [
                *(_covered(upright[top:bottom], x, width) for x in (left, right)),
                *(_covered(level.T[left:right], y, height) for y in (top, bottom)),
            ]
            own = [side for side in sides if side is not None]
            both = any(s is not None for s in sides[:2]) and any(s is not None for s in sides[2:])
            if not both or not _AREA[0] <= share <= _AREA[1] or min(own) < _COVERED:
                continue
            if known[top:bottom, left:right].mean() > 0.5:
                found.append((len(own) + float(np.mean(own)), (left, top, right, bottom)))
    boxes: list[tuple[int, int, int, int]] = []
    for _, box in sorted(found, reverse=True):
        if not any(_overlap(box, other) for other in boxes):
            boxes.append(box)
    return boxes


def _stays(samples: Sequence[U8], axis: int) -> FloatArray:
    """(h, w) share of the samples in which the brightness changes most just here, along the rows (1) or columns (0)."""
    shape = (1, 2 * _APART + 1) if axis == 1 else (2 * _APART + 1, 1)
    count = np.zeros(samples[0].shape, np.float32)
    for gray in samples:
        step = np.abs(cv2.Sobel(gray, cv2.CV_32F, int(axis == 1), int(axis == 0), ksize=3, scale=0.25))
        count += (step >= cv2.dilate(step, np.ones(shape, np.uint8))) & (step > _LEAST_STEP)
    # An edge between two pixels is now on one of them, now on the other.
    count = cv2.boxFilter(count, -1, (3, 1) if axis == 1 else (1, 3), normalize=False) / len(samples)
    count[:, :_EDGE] = count[:, -_EDGE:] = count[:_EDGE] = count[-_EDGE:] = 0
    return count


def _lines(stays: FloatArray) -> list[int]:
    """Columns of (h, w) that somewhere stay for a stretch, the strongest of neighbours."""
    long = cv2.blur(stays, (1, min(_STRETCH, len(stays)))).max(0)
    found: list[int] = []
    for x in np.argsort(long)[::-1]:
        if long[x] < _LINE or len(found) == _MOST_LINES:
            break
        if all(abs(x - other) > _APART for other in found):
            found.append(int(x))
    return found


def _covered(stays: FloatArray, x: int, width: int) -> float | None:
    """Share of rows in which column `x` of (h, width) stays; None for a side of the picture."""
    if x in (0, width):
        return None
    return float((cv2.blur(np.ascontiguousarray(stays[:, x : x + 1]), (1, _FEW)) > _HERE).mean())


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
