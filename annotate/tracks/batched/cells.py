"""Places in the order of the cells of a grid, by which they are spread over a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROW = 10_000
"""More cells than a row has."""


def by_cell(xy: Tensor, strength: Tensor, side: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Order of places by their cells, the strongest of each cell first.

    Args:
        xy: (B, K, 2) pixels. strength: (B, K), 0 of what is no place. side: of a cell, or (B, 1, 1) of each picture's.
    Returns:
        (B, K) numbers of the places in that order; how many of the picture are stronger than each; and where in the
        order the cell of each begins.
    """
    strongest = torch.argsort(strength, dim=1, descending=True, stable=True)
    place = torch.floor(torch.take_along_dim(xy, strongest[..., None], 1) / side)
    cell, stronger = torch.sort(place[..., 1] * _ROW + place[..., 0], dim=1, stable=True)
    number = torch.arange(xy.shape[1], device=xy.device)
    first = F.pad(cell[:, 1:] != cell[:, :-1], (1, 0), value=True)
    start = torch.where(first, number, 0).cummax(1).values
    return torch.take_along_dim(strongest, stronger, 1), stronger, start
