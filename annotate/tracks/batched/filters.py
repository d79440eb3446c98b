"""Correlation of images with a few weights along one axis: in float32 whatever the device, each image for itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import kernels_for


def along(images: Tensor, taps: Sequence[float], axis: int, *, stride: int = 1) -> Tensor:
    """Weighted sums of an odd number of neighbours, images mirrored at the pixels of their border.

    Args:
        images: (n, h, w) float32.
        taps: weights, the middle one of the pixel itself.
        axis: 1 or 2. stride: every so many pixels.
    Returns:
        (n, h, w), or ceil(h / stride) or ceil(w / stride) of the axis.
    """
    kernels = kernels_for(images)
    if kernels is not None:
        return kernels.along(images, taps, axis, stride=stride)
    radius = len(taps) // 2
    border = (0, 0, radius, radius) if axis == 1 else (radius, radius, 0, 0)
    padded = F.pad(images[:, None], border, mode="reflect")[:, 0]
    count = -(-images.shape[axis] // stride)
    out: Tensor | None = None
    for i, tap in enumerate(taps):
        part = padded.narrow(axis, i, padded.shape[axis] - i)
        part = part[:, ::stride][:, :count] if axis == 1 else part[:, :, ::stride][:, :, :count]
        out = part * tap if out is None else out.add_(part, alpha=tap)
    assert out is not None
    return out


def both_ways(images: Tensor, taps: Sequence[float], *, stride: int = 1) -> Tensor:
    """`along` both axes."""
    return along(along(images, taps, 1, stride=stride), taps, 2, stride=stride)


@cache
def gaussian_taps(sigma: float) -> tuple[float, ...]:
    """Weights out to four standard deviations, which sum to 1."""
    radius = int(4 * sigma + 0.999)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weight = torch.exp(-(offset**2) / (2 * sigma**2))
    return tuple((weight / weight.sum()).tolist())
