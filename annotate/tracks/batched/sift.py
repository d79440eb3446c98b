"""RootSIFT of many keyframes at once (Lowe 2004; Arandjelovic and Zisserman 2012).

Samples lie on a grid that turns and grows with the feature, so that what is summed into which cell of the descriptor is
the same for all of them: one matrix product. Everything has a fixed size; what is not valid is left out at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import by_cell
from .scale_space import LAYERS, SIGMA, Points, ScaleSpace, stand_out

_BATCH = 8
"""Keyframes at a time, for memory."""
_HARMONICS = 16
"""Of the histogram of directions."""
_SMOOTH_RAD = math.radians(10.4)
"""Standard deviation by which that histogram is smoothed: ten degrees' bins and binomial weights of five."""
_BINS = 36
_SECOND_PEAK = 0.8
_CELL_SAMPLES = 4
"""Samples a cell's width."""


@dataclass(frozen=True)
class Described:
    """Features of B keyframes, K to each. `xy`: (B, K, 2) pixels of the picture, centres at whole numbers;
    `descriptor`: (B, K, 128); `valid`: (B, K) bool."""

    xy: Tensor
    descriptor: Tensor
    valid: Tensor


def root_sift(gray: Tensor, number: int) -> Described:
    """Features of (B, h, w) uint8 keyframes, `number` at most of each, spread over it."""
    parts = [_describe(part, number) for part in gray.split(_BATCH)]
    return Described(
        torch.cat([p.xy for p in parts]),
        torch.cat([p.descriptor for p in parts]),
        torch.cat([p.valid for p in parts]),
    )


def _describe(gray: Tensor, number: int) -> Described:
    space = ScaleSpace(gray)
    points = stand_out(space)
    xy = _in_picture(points, space.pixel)
    chosen = _spread(xy, points.strength, gray.shape[1:], number)
    points = points.take(chosen)
    look = _Look(space, points)
    angle, second = _directions(look)
    # A second direction is a second feature at the same place; the cap holds for both together.
    valid = points.strength > 0
    both = torch.stack([valid, valid & torch.isfinite(second)], -1).flatten(1)
    first = torch.argsort((~both).int(), dim=1, stable=True)[:, :number]
    valid = torch.take_along_dim(both, first, 1)
    angle = torch.take_along_dim(torch.stack([angle, second.nan_to_num()], -1).flatten(1), first, 1)
    points = points.take(first // 2)
    return Described(_in_picture(points, space.pixel), _descriptors(_Look(space, points), angle), valid)


def _in_picture(points: Points, pixel: Tensor) -> Tensor:
    """(B, K, 2) places in the picture. Octaves are every second pixel of the one before; the first was doubled about
    the corner of the picture, so that its pixel 0 lies a quarter of a pixel before that of the picture."""
    return points.xy * pixel[points.octave][..., None] - 0.25


def _spread(xy: Tensor, strength: Tensor, size_hw: torch.Size, number: int) -> Tensor:
    """(B, number) places: the strongest of each cell first (`records.spread_out`)."""
    height, width = size_hw
    side = max(1.0, math.sqrt(width * height / max(64, number // 4)))
    index, order, start = by_cell(xy, strength, side)
    count = xy.shape[1]
    rank = torch.arange(count, device=xy.device) - start
    rank = torch.where(torch.take_along_dim(strength, index, 1) > 0, rank, count)
    best = torch.argsort(rank * count + order, dim=1)[:, :number]
    return torch.take_along_dim(index, best, 1)


class _Look:
    """The blurred picture around each point, in its scale."""

    def __init__(self, space: ScaleSpace, points: Points) -> None:
        self.points, self.flat = points, space.flat
        layer = points.layer.round().long().clamp(1, LAYERS)
        zero = torch.zeros_like(layer)
        self.start = space.place(points.octave, layer, zero, zero)[..., None]
        self.height, self.width = (
            space.height[points.octave][..., None],
            space.width[points.octave][..., None],
        )
        self.scale = SIGMA * 2 ** (points.layer / LAYERS)

    def gradients(self, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Central differences at (B, K, S, 2) pixels from each point; 0 outside the picture."""
        place = self.points.xy[:, :, None] + offset
        x, y = place[..., 0], place[..., 1]
        inside = (x >= 1) & (y >= 1) & (x <= self.width - 3) & (y <= self.height - 3)
        left, up = x.floor(), y.floor()
        fx, fy = x - left, y - up
        left = left.long().clamp(min=1).minimum(self.width - 3)
        up = up.long().clamp(min=1).minimum(self.height - 3)
        # Rows of four pixels beside the place, of two above and below: what central differences need. Steps to the
        # right are views of the pictures, so that one place serves a row.
        row = self.start + up * self.width + left - self.width - 1
        rows = [row]
        for _ in range(3):
            rows.append(rows[-1] + self.width)
        middle = [[self.flat[dx:][rows[i]] for dx in range(4)] for i in (1, 2)]
        outer = [[self.flat[dx:][rows[i]] for dx in (1, 2)] for i in (0, 3)]
        across = [torch.lerp(row[2] - row[0], row[3] - row[1], fx) for row in middle]
        upper, lower = (torch.lerp(row[1], row[2], fx) for row in middle)
        above, below = (torch.lerp(row[0], row[1], fx) for row in outer)
        gx = torch.lerp(across[0], across[1], fy)
        gy = torch.lerp(lower - above, below - upper, fy)
        return torch.where(inside, gx, 0.0), torch.where(inside, gy, 0.0)


def _directions(look: _Look) -> tuple[Tensor, Tensor]:
    """(B, K) radians: where most of the gradient points around each feature, and second to that, NaN if far less.

    The histogram of directions is held as a Fourier series, which sums in one order whatever the device.
    """
    device = look.scale.device
    line = (torch.arange(16, device=device) - 7.5) * (9 / 16)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    weight = torch.exp(-(grid**2).sum(-1) / (2 * 1.5**2))
    gx, gy = look.gradients(grid * look.scale[..., None, None])
    length = torch.sqrt(gx * gx + gy * gy)
    turned = direction = torch.complex(gx, gy) / length.clamp(min=1e-12)
    length = length * weight
    moments = [length.sum(-1).to(turned.dtype) / 2]
    for _ in range(_HARMONICS):
        moments.append((length * turned).sum(-1))
        turned = turned * direction
    m, bins = torch.arange(_HARMONICS + 1, device=device), torch.arange(_BINS, device=device)
    waves = torch.polar(
        torch.exp(-((m * _SMOOTH_RAD) ** 2) / 2)[:, None].expand(-1, _BINS),
        -m[:, None] * bins * (2 * math.pi / _BINS),
    )
    histogram = (torch.stack(moments, -1) @ waves).real
    before, after = histogram.roll(1, -1), histogram.roll(-1, -1)
    peak = (histogram > before) & (histogram >= after)
    height, bin_number = torch.where(peak, histogram, -1.0).topk(2, -1)
    left, right = (torch.take_along_dim(x, bin_number, -1) for x in (before, after))
    curve = (left + right - 2 * height).clamp(max=-1e-12)
    angle = (bin_number + 0.5 * (left - right) / curve) * (2 * math.pi / _BINS)
    return angle[..., 0], torch.where(
        height[..., 1] >= _SECOND_PEAK * height[..., 0], angle[..., 1], torch.nan
    )


def _descriptors(look: _Look, angle: Tensor) -> Tensor:
    """(B, K, 128): 4 x 4 cells of eight directions, each cell 3 scales wide, turned by `angle`."""
    device = angle.device
    line = (torch.arange(5 * _CELL_SAMPLES, device=device) + 0.5) / _CELL_SAMPLES - 2.5
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    cosine, sine = torch.cos(angle)[..., None], torch.sin(angle)[..., None]
    turned = torch.stack(
        [cosine * grid[:, 0] - sine * grid[:, 1], sine * grid[:, 0] + cosine * grid[:, 1]], -1
    )
    gx, gy = look.gradients(turned * (3 * look.scale[..., None, None]))
    weight = torch.exp(-(grid**2).sum(-1) / 8)
    length = torch.sqrt(gx * gx + gy * gy) * weight
    direction = (angle[..., None] - torch.atan2(gy, gx)) * (8 / (2 * math.pi))
    # Shares of the two nearest of eight directions.
    away = torch.remainder(direction[..., None] - torch.arange(8, device=device) + 4, 8) - 4
    shares = length[..., None] * (1 - away.abs()).clamp(min=0)
    cells = torch.arange(4, device=device) - 1.5
    inside = (1 - (line[:, None] - cells).abs()).clamp(min=0)
    to_cell = torch.einsum("yr,xc->rcyx", inside, inside).reshape(16, -1)
    found = torch.matmul(to_cell, shares).flatten(2)
    found = torch.minimum(found, 0.2 * found.norm(dim=-1, keepdim=True))
    return torch.sqrt(found / found.sum(-1, keepdim=True).clamp(min=1e-9))
