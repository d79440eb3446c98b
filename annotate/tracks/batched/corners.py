"""Corners of many frames at once: where the smaller eigenvalue of the gradients' matrix peaks (Shi and Tomasi 1994)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .cells import by_cell

LEAST_RESPONSE = 2e-4
BORDER_PX = 8
_CHUNK = 8
"""Frames at a time: what lies between is a dozen images of float32 each."""


@dataclass(frozen=True)
class Corners:
    """Corners of C frames, K to a frame, those of one cell of a grid together, the strongest of each first.

    Attributes:
        xy: (C, K, 2) float32 whole pixels. valid: (C, K) int32, 1 or 0.
        start: (C, K) int32, the first of each one's cell. order: (C, K) int32, 0 for the frame's strongest.
    """

    xy: Tensor
    valid: Tensor
    start: Tensor
    order: Tensor


def min_eigenvalue(gray: Tensor) -> Tensor:
    """`cv2.cornerMinEigenVal(gray, 5, ksize=3)` of (C, h, w) grey levels, float32."""
    image = F.pad(gray.float()[:, None], (1, 1, 1, 1), mode="reflect") / (4 * 5 * 255)
    across, down = image[..., 2:] - image[..., :-2], image[:, :, 2:] - image[:, :, :-2]
    gx = across[:, :, :-2] + 2 * across[:, :, 1:-1] + across[:, :, 2:]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    products = torch.cat([gx * gx, gx * gy, gy * gy], 1)
    summed = 25 * F.avg_pool2d(F.pad(products, (2, 2, 2, 2), mode="reflect"), 5, 1)
    a, b, c = summed[:, 0] / 2, summed[:, 1], summed[:, 2] / 2
    return a + c - torch.sqrt((a - c) ** 2 + b * b)


def find_corners(gray: Tensor, *, tile_px: int, cells: list[int]) -> Corners:
    """Corners of frames, at most one a tile.

    Args:
        gray: (C, h, w) uint8. tile_px: width of a tile. cells: of each frame's grid.
    """
    height, width = gray.shape[1:]
    xy, strength = [], []
    for part in gray.split(_CHUNK):
        response = min_eigenvalue(part)
        peak = F.max_pool2d(response[:, None], 5, 1, 2)[:, 0]
        response = torch.where((response == peak) & (response > LEAST_RESPONSE), response, 0.0)
        inside = torch.zeros_like(response)
        inside[:, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = 1
        best, place = F.max_pool2d((response * inside)[:, None], tile_px, ceil_mode=True, return_indices=True)
        place = place.flatten(1)
        xy.append(torch.stack([place % width, place // width], -1).float())
        strength.append(best.flatten(1))
    places, strengths = torch.cat(xy), torch.cat(strength)
    sides = torch.tensor([max(1.0, (width * height / each) ** 0.5) for each in cells])
    index, order, start = by_cell(
        places, strengths, sides.to(places.device, non_blocking=True)[:, None, None]
    )
    return Corners(
        xy=torch.take_along_dim(places, index[..., None], 1),
        valid=(torch.take_along_dim(strengths, index, 1) > 0).int(),
        start=start.int(),
        order=order.int(),
    )
