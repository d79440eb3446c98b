"""Mutual nearest neighbours among the features of neighbouring keyframes, many pairs at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BATCH = 8
"""Pairs at a time: each has a matrix of all features of one by all of the other."""


def nearest(a: Sequence[Tensor], b: Sequence[Tensor], *, ratio: float) -> Tensor:
    """As `descriptors.nearest_features`, of B pairs.

    Args:
        a, b: (B, K, 128) unit descriptors, and (B, K) bool, which are valid.
        ratio: of the distances to the nearest and to the second.
    Returns:
        (B, K) int32: for each feature in `a` its match in `b`, -1 if there is none.
    """
    parts = zip(*(x.split(_BATCH) for x in (*a, *b)), strict=True)
    return torch.cat([_nearest(x, valid_x, y, valid_y, ratio) for x, valid_x, y, valid_y in parts])


def _nearest(a: Tensor, valid_a: Tensor, b: Tensor, valid_b: Tensor, ratio: float) -> Tensor:
    similar = torch.matmul(a, b.transpose(1, 2))
    similar = torch.where(valid_a[:, :, None] & valid_b[:, None], similar, -1.0)
    # Unit vectors: squared distance = 2 - 2 * similarity.
    top, place = similar.topk(2, 2)
    distance = (2 - 2 * top).clamp(min=0).sqrt()
    best = place[..., 0]
    back = torch.take_along_dim(similar.argmax(1), best, 1)
    mutual = back == torch.arange(a.shape[1], device=a.device)
    good = (
        valid_a & mutual & (top[..., 0] > -1) & (distance[..., 0] < ratio * distance[..., 1].clamp(min=1e-6))
    )
    return torch.where(good, best, -1).int()
