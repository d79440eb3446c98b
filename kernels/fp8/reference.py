"""Attention and matrix products in e4m3 in plain torch: the specification, rounding included.

Keys are rounded after their mean over all tokens is taken out, which softmax does not notice (every logit of a query
moves alike). Values likewise, and their mean is added to the output, which is exact because weights sum to one: what
is rounded is only how tokens differ. A head's values are scaled to the range of e4m3, so that its output, a convex
combination of them, fits without a scale of its own.

Products scale every row of both factors by its greatest number: a token's numbers do not depend on its neighbours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Greatest number of e4m3."""
VALUE_RANGE = 416.0
"""What the greatest value of a head becomes: rounded weights can sum to a little more than one."""
WEIGHT_SCALE = 256.0
"""Softmax weights, at most one, are rounded after this scale: the finest steps that e4m3 has for small ones."""


class Rounded(NamedTuple):
    """Queries, keys or values of one clip in e4m3.

    Attributes:
        values: (H, N, D) of (x - mean) * scale.
        mean: (H, D) float32 that was taken out; zero for queries.
        scale: (H,) float32, one number for queries and for keys, one a head for values.
    """

    values: Tensor
    mean: Tensor
    scale: Tensor


def round_to_e4m3(x: Tensor) -> Tensor:
    """Nearest numbers of e4m3, its greatest where |x| is beyond; NaN stays."""
    return x.clamp(-LARGEST, LARGEST).to(E4M3)


def headroom(most: Tensor, limit: float) -> Tensor:
    """limit / most, one where nothing is there to scale."""
    return torch.where(most == 0, 1.0, limit / most)


def round_heads_reference(x: Tensor, *, centre: bool, per_head: bool) -> Rounded:
    """x (H, N, D) in e4m3."""
    x = x.float()
    mean = x.mean(dim=1) if centre else torch.zeros_like(x[:, 0])
    centred = x - mean[:, None]
    most = centred.abs().amax(dim=(1, 2))
    if not per_head:
        most = most.amax().expand_as(most)
    scale = headroom(most, VALUE_RANGE if per_head else LARGEST)
    return Rounded(round_to_e4m3(centred * scale[:, None, None]), mean, scale)


def attend_reference(q: Rounded, k: Rounded, v: Rounded, scale: float) -> Tensor:
    """(H, N, D) in e4m3, still scaled as the values are: one softmax, weights rounded before the second product."""
    logits = q.values.float() @ k.values.float().transpose(-1, -2)
    logits = logits * (scale / (q.scale * k.scale))[:, None, None]
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    rounded = round_to_e4m3(weights * WEIGHT_SCALE).float() / WEIGHT_SCALE
    return round_to_e4m3(rounded @ v.values.float() / weights.sum(-1, keepdim=True))


def fp8_attention_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """`fp8_attention` of one clip, (H, N, D) each, with every rounding written down; see there."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    queries = round_heads_reference(q, centre=False, per_head=False)
    keys = round_heads_reference(k, centre=True, per_head=False)
    values = round_heads_reference(v, centre=True, per_head=True)
    out = attend_reference(queries, keys, values, scale).float()
    return (out / values.scale[:, None, None] + values.mean[:, None]).to(v.dtype)


class Rows(NamedTuple):
    """A matrix in e4m3 with a scale for every row.

    Attributes:
        values: (..., C) e4m3.
        scale: (..., 1) float32; values * scale is what they stand for.
    """

    values: Tensor
    scale: Tensor


def round_rows_reference(x: Tensor) -> Rows:
    """`round_rows` written down plainly; see there."""
    x = x.float()
    most = x.abs().amax(-1, keepdim=True)
    scale = torch.where(most == 0, 1.0, most / LARGEST)
    return Rows(round_to_e4m3(x * (1 / scale)), scale)


def scaled_product_reference(
    x: Rows, weight: Rows, bias: Tensor | None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`scaled_product` written down plainly; see there."""
    wide = x.values.float() @ weight.values.float().T
    out = wide * x.scale * weight.scale.T
    return (out if bias is None else out + bias.float()).to(dtype)
