"""About where everything moves between two frames: coarse motion fields of many pairs of frames at once.

Patches of a grid are followed from the coarsest level on, each from its own and its neighbours' motion of the level
before; the one that fits best is kept, and the median over neighbours smooths them. One more start is the shift of the
whole picture, by phase correlation, which a fast pan needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .images import Images
from .op import follow

_SPACING_PX = 8
"""Of the grid, on its level."""
_RADIUS = 4
_FINEST_SIDE_PX = 160
"""Long side of the finest level that is used."""


@dataclass(frozen=True)
class Field:
    """Motion on a grid. `motion`: (C, 2, rows, columns) in pixels of the working image."""

    motion: Tensor
    height: int
    width: int

    def at(self, row: int, xy: Tensor) -> Tensor:
        """(n, 2) motion at places of pair `row`, bilinear; beyond the grid that of its border."""
        rows, columns = self.motion.shape[2:]
        x = ((xy[:, 0] + 0.5) * (columns / self.width) - 0.5).clamp(0, columns - 1)
        y = ((xy[:, 1] + 0.5) * (rows / self.height) - 0.5).clamp(0, rows - 1)
        normal = torch.stack([2 * x / max(columns - 1, 1) - 1, 2 * y / max(rows - 1, 1) - 1], -1)
        found = F.grid_sample(self.motion[row : row + 1], normal[None, None], align_corners=True)
        return found[0, :, 0].T


def predict(images: Images, first: int, count: int) -> Field:
    """Motion from frame `first` + i - 1 into frame `first` + i, for i of `count`; all must lie in the ring."""
    top = len(images.levels) - 1
    sides = (max(level.height, level.width) for level in images.levels)
    finest = next((n for n, side in enumerate(sides) if side <= _FINEST_SIDE_PX), top)  # none in a strip
    target = (first + torch.arange(count, device=images.device)) % images.slots
    source = (first - 1 + torch.arange(count, device=images.device)) % images.slots
    shift = _whole_shift(images.level(finest)[source].float(), images.level(finest)[target].float())
    motion = torch.zeros(count, 2, 1, 1, device=images.device)
    for number in range(top, finest - 1, -1):
        level = images.levels[number]
        rows, columns = max(2, round(level.height / _SPACING_PX)), max(2, round(level.width / _SPACING_PX))
        motion = F.interpolate(motion, size=(rows, columns), mode="bilinear")
        starts = [motion, *_neighbours(motion)]
        if number == top:
            starts = [motion, (shift * 2.0**finest)[:, :, None, None].expand_as(motion)]
        motion = _best(images, number, (source, target), torch.stack(starts, 1))
        motion = _median(motion)
    height, width = images.levels[0].height, images.levels[0].width
    return Field(motion, height, width)


def _neighbours(motion: Tensor) -> list[Tensor]:
    """Motion of the cells to the left, to the right, above and below."""
    padded = F.pad(motion, (1, 1, 1, 1), mode="replicate")
    return [padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:], padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1]]


def _best(images: Images, number: int, slots: tuple[Tensor, Tensor], starts: Tensor) -> Tensor:
    """Follow the grid of one level from several starts, (C, S, 2, rows, columns) working pixels; what fits best."""
    level, (count, tries, _, rows, columns) = images.levels[number], starts.shape
    y = ((torch.arange(rows, device=starts.device) + 0.5) * (level.height / rows) - 0.5) * 2.0**number
    x = ((torch.arange(columns, device=starts.device) + 0.5) * (level.width / columns) - 0.5) * 2.0**number
    grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), -1).reshape(1, 1, -1, 2)
    start = starts.flatten(3).transpose(2, 3)
    xy = grid.expand_as(start).reshape(-1, 2)
    each = tries * rows * columns
    pair = (
        slots[0].repeat_interleave(each, output_size=count * each),
        slots[1].repeat_interleave(each, output_size=count * each),
    )
    found = follow(images, pair, xy, xy + start.reshape(-1, 2), levels=(number, number), radius=_RADIUS)
    moved = (found.xy - xy).view(count, tries, -1, 2)
    # A patch that runs away, or has nothing to follow, stays with what it began with.
    near = (moved - start).abs().amax(-1) < 2 * _SPACING_PX * 2.0**number
    held = found.ok.view(count, tries, -1) & near
    moved = torch.where(held[..., None], moved, start)
    residual = torch.where(held, found.residual.view(count, tries, -1), 255.0)
    best = residual.argmin(1, keepdim=True)[..., None].expand(-1, -1, -1, 2)
    return torch.take_along_dim(moved, best, 1)[:, 0].transpose(1, 2).reshape(count, 2, rows, columns)


def _median(motion: Tensor) -> Tensor:
    """Median of 3 x 3 cells, each component for itself."""
    count, _, rows, columns = motion.shape
    cells = F.unfold(F.pad(motion, (1, 1, 1, 1), mode="replicate"), 3)
    return cells.view(count, 2, 9, rows, columns).median(2).values


def _whole_shift(a: Tensor, b: Tensor) -> Tensor:
    """(C, 2) shift of the whole picture, (C, h, w) each, in whole pixels (Kuglin and Hines 1975)."""
    height, width = a.shape[1:]
    window = torch.hann_window(height, device=a.device)[:, None] * torch.hann_window(width, device=a.device)
    f, g = (torch.fft.rfft2((x - x.mean((1, 2), keepdim=True)) * window) for x in (a, b))
    cross = g * f.conj()
    peak = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-6), s=(height, width)).flatten(1).argmax(1)
    y, x = peak // width, peak % width
    x = torch.where(x > width // 2, x - width, x)
    y = torch.where(y > height // 2, y - height, y)
    return torch.stack([x, y], -1).float()
