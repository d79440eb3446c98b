"""Which pixels given geometry belongs to, where the media is shown another way up than it is stored.

A phone's depth and intrinsics are mostly of the sensor's pixels, while its video is shown turned; other tools write
them for the picture as shown. A row holds cameras of the pixels as shown, so the former are turned along. Which of the
two it is can be seen where height and width change places: from the shape of a depth map, the image size that the
cameras name, or where the principal point lies. Otherwise the source has to say it (`given_pixels` of an index).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...dataset.media.orientation import UPRIGHT, Orientation
from ..frames.base import ClipFrames
from ..sources.clip import ClipRef, ClipRejection

Pixels = Literal["shown", "stored"]

_SAME_SHAPE = 0.03
"""Relative: aspect ratios this close are the same one."""
_CLEARLY_NEARER = 0.04
"""Shares of width or height by which a principal point must be nearer to one centre than to the other."""


def shape_belongs_to(size: tuple[int, ...], frames: ClipFrames) -> Pixels | None:
    """Whether `size` (height, width) is of the shape of the pixels as shown or as stored; None: it cannot tell."""
    if not frames.orientation.swaps_sides:
        return None
    shape = np.log(size[1] / size[0])
    shown = np.log(frames.source_width / frames.source_height)
    if abs(shown) < _SAME_SHAPE:
        return None
    if abs(shape - shown) < _SAME_SHAPE:
        return "shown"
    return "stored" if abs(shape + shown) < _SAME_SHAPE else None


def centre_belongs_to(intrinsics: NDArray[np.floating], frames: ClipFrames) -> Pixels | None:
    """The same by the principal points of (N, 3, 3) intrinsics in pixels of the source's size."""
    if not frames.orientation.swaps_sides:
        return None
    centre = np.median(intrinsics[:, :2, 2], axis=0)
    size = np.array([frames.source_width, frames.source_height], np.float64)
    shown, stored = (float(np.abs(centre / s - 0.5).max()) for s in (size, size[::-1]))
    if abs(shown - stored) < _CLEARLY_NEARER:
        return None
    return "shown" if shown < stored else "stored"


def turn_of_given(clip: ClipRef, frames: ClipFrames, what: str, found: Pixels | None) -> Orientation:
    """How given geometry is to be turned to belong to the pixels as shown.

    Args:
        what: it is, for the message.
        found: what the two functions above see.
    Raises:
        ClipRejection: `given_orientation_unknown` if neither they nor the source can tell.
    """
    if not frames.orientation:
        return UPRIGHT
    pixels = clip.given.pixels or found
    if pixels is None:
        raise ClipRejection(
            "given_orientation_unknown",
            f"clip {clip.clip_id}: {clip.media_path} is shown {frames.orientation}, and nothing says whether {what} is"
            " for the pixels as shown or as stored; say it in the index (given_pixels: shown, or stored)",
        )
    return frames.orientation if pixels == "stored" else UPRIGHT
