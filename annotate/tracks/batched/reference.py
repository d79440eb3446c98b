"""Lucas-Kanade in plain torch, all points at once: what the kernel in `triton_kernels.py` computes, and tests.

The template's own gradient and one 2x2 matrix a level serve all steps (Bouguet, "Pyramidal implementation of the
affine Lucas Kanade feature tracker", without the affine part); conditions of a step and of its end are those of
`cv2.calcOpticalFlowPyrLK`. Coordinates are of pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .images import Images, Level

MIN_EIGENVALUE = 0.1024
"""Least curvature a pixel of a template, in grey levels squared per pixel squared: OpenCV's 1e-4 in its units."""
STEP_PX = 0.01
"""A point has arrived when its step is shorter."""
MAX_STEPS = 30


@dataclass(frozen=True)
class Found:
    """Where points came out.

    Attributes:
        xy: (n, 2). ok: (n,) bool, False where there is nothing to follow or the point left the picture.
        residual: (n,) mean grey difference of the window at the last look.
    """

    xy: Tensor
    ok: Tensor
    residual: Tensor


def follow(
    images: Images,
    pair: tuple[Tensor, Tensor],
    xy: Tensor,
    guess: Tensor,
    *,
    levels: tuple[int, int],
    radius: int,
) -> Found:
    """Find points of one frame in another.

    Args:
        pair: (n,) slots of the frame in which each point is known, and of the one in which it is sought.
        xy: (n, 2) float32 in the first. guess: (n, 2), about where in the second.
        levels: coarsest and finest that are used; sizes of `xy` are those of level 0.
        radius: half of the window, which is 2 * radius + 1 wide.
    """
    top, bottom = levels
    target = guess * 0.5**top
    ok = torch.ones(len(xy), dtype=torch.bool, device=xy.device)
    residual = torch.zeros(len(xy), device=xy.device)
    for number in range(top, bottom - 1, -1):
        if number < top:
            target = target * 2
        target, ok, residual = _on_level(images, number, pair, xy * 0.5**number, target, radius)
    return Found(target * 2.0**bottom, ok, residual)


def _on_level(
    images: Images, number: int, pair: tuple[Tensor, Tensor], xy: Tensor, target: Tensor, radius: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One level from `target` on: places, whether they hold, residuals."""
    level, size = images.levels[number], 2 * radius + 1
    patch, gx, gy = _template(images, level, pair[0], xy, radius)
    a, b, c = (gx * gx).sum(1), (gx * gy).sum(1), (gy * gy).sum(1)
    smallest = (a + c - torch.sqrt((a - c) ** 2 + 4 * b * b)) / (2 * size * size)
    ok = _reaches(xy, level, radius) & (smallest > MIN_EIGENVALUE)
    scale = 1 / torch.clamp(a * c - b * b, min=1e-6)
    going, before = ok.clone(), torch.zeros_like(target)
    residual = torch.full_like(a, 255.0)
    for step in range(MAX_STEPS):
        inside = _reaches(target, level, radius)
        ok &= inside | ~going
        going &= inside
        i = torch.nonzero(going)[:, 0]
        if len(i) == 0:
            break
        difference = _patch(images, level, pair[1][i], target[i], radius) - patch[i]
        residual[i] = difference.abs().mean(1)
        u, v = (difference * gx[i]).sum(1), (difference * gy[i]).sum(1)
        delta = torch.stack([b[i] * v - c[i] * u, b[i] * u - a[i] * v], 1) * scale[i, None]
        arrived = (delta**2).sum(1) <= STEP_PX**2
        back = ((delta + before[i]).abs() < STEP_PX).all(1) & ~arrived
        if step == 0:
            back &= False
        target[i] = target[i] + torch.where(back[:, None], 0.5 * delta, delta)
        before[i] = delta
        going[i] = ~(arrived | back)
    return target, ok, residual


def _reaches(target: Tensor, level: Level, radius: int) -> Tensor:
    """Whether the window touches the picture at all."""
    corner = torch.floor(target - radius)
    size = 2 * radius + 1
    return (
        (corner[:, 0] >= -size)
        & (corner[:, 1] >= -size)
        & (corner[:, 0] < level.width)
        & (corner[:, 1] < level.height)
    )


def _mirrored(i: Tensor, count: int) -> Tensor:
    """Pixel numbers beyond the border, mirrored at its pixels."""
    i = (count - 1) - ((count - 1) - i.abs()).abs()
    return i.clamp(0, count - 1)


def _pixels(
    images: Images, level: Level, slot: Tensor, target: Tensor, radius: int, margin: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole pixels (n, size + margin, size + margin) from around places on, and how far beyond them (n, 1, 1) each
    place is, in x and y. The window's first pixel is at (margin - 1) / 2 of them, rounded down."""
    far = max(level.height, level.width) + 4.0 * radius + 4
    target = target.clamp(-4.0 * radius - 4, far) - radius
    corner = torch.floor(target)
    fraction = (target - corner)[:, :, None, None]
    line = torch.arange(2 * radius + 1 + margin, device=target.device) - (margin - 1) // 2
    column = _mirrored(corner[:, :1].long() + line, level.width)
    row = _mirrored(corner[:, 1:].long() + line, level.height) * level.width
    row = row + (slot.long() * images.stride + level.offset)[:, None]
    return images.data[row[:, :, None] + column[:, None]].float(), fraction[:, 0], fraction[:, 1]


def _patch(images: Images, level: Level, slot: Tensor, target: Tensor, radius: int) -> Tensor:
    """(n, size * size) grey values around places between pixels."""
    block, fx, fy = _pixels(images, level, slot, target, radius, 1)
    rows = (1 - fy) * block[:, :-1] + fy * block[:, 1:]
    return ((1 - fx) * rows[:, :, :-1] + fx * rows[:, :, 1:]).flatten(1)


def _template(
    images: Images, level: Level, slot: Tensor, target: Tensor, radius: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Grey values and their derivatives, Scharr's kernel moved to places between pixels: four taps each way."""
    block, fx, fy = _pixels(images, level, slot, target, radius, 3)
    value_y, smooth_y, slope_y = (
        sum(tap * block[:, i : block.shape[1] - 3 + i] for i, tap in enumerate(taps)) for taps in _taps(fy)
    )
    value_x, smooth_x, slope_x = _taps(fx)

    def across(rows: Tensor | int, taps: list[Tensor]) -> Tensor:
        assert isinstance(rows, Tensor)
        width = rows.shape[2] - 3
        return torch.stack([tap * rows[:, :, i : width + i] for i, tap in enumerate(taps)]).sum(0).flatten(1)

    return across(value_y, value_x), across(smooth_y, slope_x), across(slope_y, smooth_x)


def _taps(f: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights of the pixels -1, 0, 1, 2 for a place `f` beyond pixel 0: value, smoothed value, derivative."""
    value = [0 * f, 1 - f, f, 0 * f]
    smooth = [3 / 16 * (1 - f), (10 - 7 * f) / 16, (3 + 7 * f) / 16, 3 / 16 * f]
    derivative = [-0.5 * (1 - f), -0.5 * f, 0.5 * (1 - f), 0.5 * f]
    return value, smooth, derivative
