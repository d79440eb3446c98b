"""Blurred pictures of many keyframes and the places that stand out in them (Lowe 2004, sections 3 and 4)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .filters import both_ways, gaussian_taps

LAYERS = 3
"""Scales an octave at which features are found."""
SIGMA = 1.6
_FIRST_BLUR = 1.0
"""What a camera's picture is taken to have, once doubled."""
_MIN_CONTRAST, _MAX_EDGE = 0.02, 12.0
_BORDER_PX = 5
_TILE_PX = 8
"""At most one feature a tile (of the octave's pixels) and octave."""
_SMALLEST_PX = 24
_REFINEMENTS = 2


@dataclass(frozen=True)
class Points:
    """Places that stand out, K to a picture; K is one number for all pictures, and some are not valid.

    Attributes:
        xy: (B, K, 2) float32 pixels of the octave, centres at whole numbers. layer: (B, K) float32, between layers.
        octave: (B, K) int64. strength: (B, K) float32 contrast, 0 where not valid.
    """

    xy: Tensor
    layer: Tensor
    octave: Tensor
    strength: Tensor

    def take(self, index: Tensor) -> Points:
        """Those of (B, k) numbers."""
        return Points(
            torch.take_along_dim(self.xy, index[..., None], 1),
            *(torch.take_along_dim(x, index, 1) for x in (self.layer, self.octave, self.strength)),
        )


class ScaleSpace:
    """Pictures of B keyframes at all scales, doubled first: octaves of LAYERS + 3 blurs.

    Attributes:
        blurred: of each octave, (B, LAYERS + 3, h, w) float32 grey levels in 0 .. 1.
        flat: all of them in a row.
        start, height, width: (octaves,) int64, where each octave begins in `flat`, and its size.
        pixel: (octaves,) float32, size of an octave's pixel in those of the picture.
    """

    def __init__(self, gray: Tensor) -> None:
        self.blurred = _octaves(gray)
        self.flat = torch.cat([each.flatten() for each in self.blurred])
        shapes = tuple(tuple(each.shape) for each in self.blurred)
        (self.start, self.height, self.width), self.pixel = _tables(shapes, gray.device)

    def place(self, octave: Tensor, layer: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(B, K) places in `flat` of whole pixels of whole layers."""
        height, width = self.height[octave], self.width[octave]
        image = torch.arange(len(octave), device=octave.device)[:, None] * (LAYERS + 3) + layer
        return self.start[octave] + (image * height + y) * width + x


@cache
def _tables(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    start = [0, *itertools.accumulate(math.prod(shape) for shape in shapes)]
    table = torch.tensor([start[:-1], *([shape[axis] for shape in shapes] for axis in (2, 3))])
    pixel = torch.tensor([0.5 * 2**octave for octave in range(len(shapes))])
    return table.to(device), pixel.to(device)


def _octaves(gray: Tensor) -> list[Tensor]:
    image = gray.float()[:, None] / 255
    image = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    image = _blur(image, math.sqrt(SIGMA**2 - _FIRST_BLUR**2))
    found = []
    while min(image.shape[1:]) >= _SMALLEST_PX:
        images, total = [image], SIGMA
        for number in range(1, LAYERS + 3):
            wanted = SIGMA * 2 ** (number / LAYERS)
            images.append(_blur(images[-1], math.sqrt(wanted**2 - total**2)))
            total = wanted
        found.append(torch.stack(images, 1))
        image = images[LAYERS][:, ::2, ::2].contiguous()
    return found


def _blur(images: Tensor, sigma: float) -> Tensor:
    return both_ways(images, gaussian_taps(sigma))


def stand_out(space: ScaleSpace) -> Points:
    """Places and scales at which the difference of neighbouring blurs peaks, to a fraction of a pixel."""
    found = [_peaks(each) for each in space.blurred]
    x, y, layer = (torch.cat([each[i] for each in found], 1) for i in range(3))
    valid = torch.cat([each[3] for each in found], 1)
    octave = torch.cat([torch.full_like(each[0], i) for i, each in enumerate(found)], 1)
    return _refined(space, octave, x, y, layer, valid)


def _peaks(blurred: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Column, row and layer (B, K) of the strongest peak of each tile of an octave, and whether there is one."""
    difference = blurred[:, 1:] - blurred[:, :-1]
    width = difference.shape[3]
    least = 0.5 * _MIN_CONTRAST / LAYERS
    size = torch.zeros_like(difference[:, 1:-1])
    for signed in (difference, -difference):
        around = F.max_pool2d(signed, 3, 1, 1)
        around = torch.maximum(torch.maximum(around[:, :-2], around[:, 2:]), around[:, 1:-1])
        middle = signed[:, 1:-1]
        size = torch.where((middle == around) & (middle > least), middle, size)
    b = _BORDER_PX
    best, layer = F.pad(size[:, :, b:-b, b:-b], (b, b, b, b)).max(1, keepdim=True)
    best, place = F.max_pool2d(best, _TILE_PX, ceil_mode=True, return_indices=True)
    best, place = best.flatten(1), place.flatten(1)
    layer = torch.take_along_dim(layer.flatten(1), place, 1) + 1
    return place % width, place // width, layer, best > 0


_NEIGHBOURS = [
    (0, 0, 0),
    *((s * (i == 0), s * (i == 1), s * (i == 2)) for i in range(3) for s in (1, -1)),
    *((s, t, 0) for s in (1, -1) for t in (1, -1)),
    *((s, 0, t) for s in (1, -1) for t in (1, -1)),
    *((0, s, t) for s in (1, -1) for t in (1, -1)),
]
"""Steps in x, y and scale to what a quadratic is fitted to."""


@cache
def _stencil(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 19) steps, and (19, 10) weights: value, gradient, second derivatives xx, yy, ss, xy, xs, ys."""
    weights = torch.zeros(len(_NEIGHBOURS), 10)
    weights[0, 0] = 1
    for row, step in enumerate(_NEIGHBOURS):
        axes = [i for i in range(3) if step[i]]
        if len(axes) == 1:
            weights[row, 1 + axes[0]] = step[axes[0]] / 2
            weights[row, 4 + axes[0]] = 1
        elif axes:
            weights[row, 6 + sum(axes)] = step[axes[0]] * step[axes[1]] / 4
    weights[0, 4:7] = -2
    return torch.tensor(_NEIGHBOURS).T.to(device), weights.to(device)


def _refined(space: ScaleSpace, octave: Tensor, x: Tensor, y: Tensor, layer: Tensor, valid: Tensor) -> Points:
    """The peak of a quadratic through the 19 neighbours, moved on to another pixel where it lies nearer to that."""
    height, width = space.height[octave], space.width[octave]
    (dx, dy, ds), weights = _stencil(x.device)
    area = (height * width)[..., None]
    steps = dx + dy * width[..., None] + ds * area
    offset, fitted = torch.zeros(*x.shape, 3, device=x.device), torch.zeros(*x.shape, 10, device=x.device)
    for _ in range(_REFINEMENTS):
        # Also where there is no peak, and the place says nothing: its neighbours must lie in the pictures.
        move = torch.round(offset.clamp(-1, 1)).long()
        x = (x + move[..., 0]).clamp(min=_BORDER_PX).minimum(width - 1 - _BORDER_PX)
        y = (y + move[..., 1]).clamp(min=_BORDER_PX).minimum(height - 1 - _BORDER_PX)
        layer = (layer + move[..., 2]).clamp(1, LAYERS)
        places = space.place(octave, layer, x, y)[..., None] + steps
        fitted = (space.flat[places + area] - space.flat[places]) @ weights
        offset = _peak_of(fitted)
    value, gradient = fitted[..., 0], fitted[..., 1:4]
    xx, yy, xy = fitted[..., 4], fitted[..., 5], fitted[..., 7]
    contrast = (value + 0.5 * (gradient * offset).sum(-1)).abs()
    trace, determinant = xx + yy, xx * yy - xy * xy
    valid = valid & (offset.abs() < 0.6).all(-1) & (contrast * LAYERS >= _MIN_CONTRAST)
    valid &= (determinant > 0) & (trace**2 * _MAX_EDGE < (_MAX_EDGE + 1) ** 2 * determinant)
    return Points(
        xy=torch.stack([x, y], -1) + offset[..., :2],
        layer=layer + offset[..., 2],
        octave=octave,
        strength=torch.where(valid, contrast, 0.0),
    )


def _peak_of(fitted: Tensor) -> Tensor:
    """(..., 3) where quadratics peak. By their adjugates: a solver of a library would ask the device whether any was
    singular."""
    _, gx, gy, gs, xx, yy, ss, xy, xs, ys = fitted.unbind(-1)
    a, b, c = yy * ss - ys * ys, xs * ys - xy * ss, xy * ys - xs * yy
    d, e, f = xx * ss - xs * xs, xy * xs - xx * ys, xx * yy - xy * xy
    determinant = xx * a + xy * b + xs * c
    determinant = torch.where(determinant.abs() < 1e-20, 1e-20, determinant)
    peak = [a * gx + b * gy + c * gs, b * gx + d * gy + e * gs, c * gx + e * gy + f * gs]
    return -torch.stack(peak, -1) / determinant[..., None]
