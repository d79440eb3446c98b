"""The picture that a video starts from: resized to cover the model's size and cut in the middle, its cameras along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from ..cameras.intrinsics import crop_intrinsics, resize_intrinsics
from .read import fit

LEAST_PX = 64
"""Shorter side below which an image says too little."""
LEAST_KEPT = 0.5
"""Share of an image that must be left after cutting it to the model's shape."""


@dataclass(frozen=True, kw_only=True)
class Cover:
    """How a picture is resized and cut.

    Attributes:
        source, resized, target: (height, width) of the picture, of the resized one, of what is cut from it.
        top, left: first row and column of the cut, in the resized picture.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    target: tuple[int, int]
    top: int
    left: int

    @property
    def kept(self) -> float:
        """Share of the picture that is left."""
        return self.target[0] * self.target[1] / (self.resized[0] * self.resized[1])

    @property
    def enlarged(self) -> float:
        """How many pixels of the target one of the source covers, along a side."""
        return self.resized[0] / self.source[0]

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(target height, target width, 3) of an image (H, W, 3) of the source's size."""
        if image.shape[:2] != self.source:
            raise ValueError(f"image is {image.shape[:2]}, expected {self.source}")
        whole = fit(image, *self.resized)
        height, width = self.target
        return np.ascontiguousarray(whole[self.top : self.top + height, self.left : self.left + width])

    def apply_to_intrinsics(self, intrinsics_px: FloatArray) -> FloatArray:
        """Intrinsics (..., 3, 3) of the cut picture."""
        resized = resize_intrinsics(intrinsics_px, from_size=self.source, to_size=self.resized)
        return np.asarray(crop_intrinsics(resized, top_px=self.top, left_px=self.left))


def cover(source: tuple[int, int], target: tuple[int, int]) -> Cover:
    """Resize so that the target, both (height, width), is just covered, then cut its middle.

    Raises:
        ValueError: the source is tiny, or less than half of it would be left.
    Source: NVlabs/Sana and diffusers prepare the first frame so.
    """
    (h, w), (height, width) = source, target
    if min(h, w) < LEAST_PX:
        raise ValueError(f"the image is {w}x{h}; its shorter side must have {LEAST_PX} pixels or more")
    scale = max(height / h, width / w)
    resized = (max(height, round(h * scale)), max(width, round(w * scale)))
    found = Cover(
        source=source,
        resized=resized,
        target=target,
        top=(resized[0] - height) // 2,
        left=(resized[1] - width) // 2,
    )
    if found.kept < LEAST_KEPT:
        raise ValueError(
            f"the image is {w}x{h}: cut to the model's {width}x{height}, {100 * found.kept:.0f} % of it would be left; "
            f"crop it yourself to about {width / height:.2f} to 1"
        )
    return found
