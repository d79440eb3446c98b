"""Which frame of a video is each still? Sets like DL3DV ship cameras of stills that were drawn from a video without
saying where: spread evenly, but each the most typical picture of its stretch, so that counting is off by up to half a
stretch (an eighth of a second). The pictures themselves say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.media.errors import MediaError
from ...dataset.media.images import read_image
from ..frames.base import ClipFrames
from ..sources.clip import ClipRef, ClipRejection

_THUMB_WIDTH = 160
_MAX_RMS = 6.0
"""Grey levels between a still and its frame at thumbnail size: the same picture, resized and coded twice, differs by
one to three."""


def locate_stills(clip: ClipRef, frames: ClipFrames, stills: Sequence[Path]) -> NDArray[np.int64]:
    """Source frame that shows each still, by the least difference of small grey pictures.

    Decodes the clip's stretch of the video once, every frame of it. Stills keep their order in time: those that would
    go back are left out, as few as possible.

    Args:
        frames: of a video.
        stills: image files in the order in which they were taken.
    Returns:
        (N,) source frame indices, strictly increasing where not -1; -1 for a still that no frame of the stretch shows.
    Raises:
        ClipRejection: `unreadable_image`, or what decoding finds.
    """
    first = int(frames.timing.frame_index[0])
    height = max(2, round(_THUMB_WIDTH * frames.source_height / frames.source_width))
    shown = np.stack([_thumb(rgb, height) for rgb in frames.every_frame()])
    try:
        still = np.stack([_thumb(read_image(clip.clip_id, path), height) for path in stills])
    except MediaError as error:
        raise ClipRejection(error.reason, error.detail) from error
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, all pairs at once.
    square = (still**2).sum(1)[:, None] + (shown**2).sum(1)[None] - 2 * still @ shown.T
    rms = np.sqrt(np.maximum(square, 0) / shown.shape[1])
    nearest = rms.argmin(1)
    alike = rms[np.arange(len(nearest)), nearest] <= _MAX_RMS
    # At an end of the stretch the frame that really shows the still may lie beyond it.
    count = frames.num_source_frames
    alike &= (nearest > 0) | (first == 0)
    alike &= (nearest < len(shown) - 1) | (count is not None and first + len(shown) == count)
    kept = np.full(len(nearest), -1, np.int64)
    chosen = np.flatnonzero(alike)[_longest_increasing(nearest[alike])]
    kept[chosen] = first + nearest[chosen]
    return kept


def _thumb(rgb: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_THUMB_WIDTH, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel()


def _longest_increasing(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Positions of a longest strictly increasing subsequence."""
    tails: list[int] = []  # position of the smallest last value of each length
    before = np.full(len(values), -1)
    for i, value in enumerate(values):
        length = int(np.searchsorted(values[tails], value)) if tails else 0
        before[i] = tails[length - 1] if length else -1
        tails[length : length + 1] = [i]
    found: list[int] = []
    i = tails[-1] if tails else -1
    while i >= 0:
        found.append(i)
        i = int(before[i])
    return np.array(found[::-1], np.int64)
