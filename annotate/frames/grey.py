"""Grey levels of a frame, made once for all who look at it."""

from __future__ import annotations

import threading
import weakref

import cv2
import numpy as np

from ...dataset.arrays import U8


class _Last(threading.local):
    """The last frame that was asked for in a thread, and its grey levels: a clip's frames go by in one."""

    frame: weakref.ref[U8] | None = None
    grey: U8 | None = None


_last = _Last()


def grey_of(rgb: U8) -> U8:
    """(H, W) grey levels of (H, W, 3) RGB, not to be changed: of a frame that is asked for again they are the same
    array."""
    if _last.frame is None or _last.frame() is not rgb or _last.grey is None:
        _last.grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        _last.frame = weakref.ref(rgb)
    return _last.grey
