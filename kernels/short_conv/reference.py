"""Short temporal convolution in plain torch: the specification."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..checks import check_chunk_starts, check_tensors


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bidirectional: bool,
    chunk_starts: tuple[int, ...] | None,
    before: Tensor | None,
) -> tuple[int, ...] | None:
    """`chunk_starts`, checked. Raises ValueError where something does not fit, as `short_conv` says."""
    if x.ndim != 4 or weight.ndim != 3 or weight.shape[:2] != (x.shape[-1], 1):
        raise ValueError(
            f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}; give (B, T, S, C) and (C, 1, taps)"
        )
    check_tensors(x, "x", weight=weight)
    expected = (x.shape[0], weight.shape[-1] - 1, *x.shape[2:])
    if before is not None and tuple(before.shape) != expected:
        raise ValueError(f"before is {tuple(before.shape)}; it must be {expected}")
    if before is not None and before.numel():  # a weight of one tap has no frames before
        check_tensors(x, "x", before=before)
    if not bidirectional and chunk_starts is not None:
        raise ValueError("chunk_starts bound the look ahead: set bidirectional=True")
    return check_chunk_starts(chunk_starts, x.shape[1])


def short_conv_reference(
    x: Tensor,
    weight: Tensor,
    *,
    bidirectional: bool = True,
    chunk_starts: tuple[int, ...] | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """`short_conv` written down plainly; see there. Computes in float32, or float64 if given."""
    chunk_starts = check_arguments(x, weight, bidirectional, chunk_starts, before)
    dtype = torch.promote_types(x.dtype, torch.float32)
    frames, taps = x.shape[1], weight.shape[-1]
    w = weight.to(dtype).view(-1, taps)
    # weight[:, taps - 1 - lag] belongs to the frame `lag` steps away.
    past = torch.zeros_like(x[:, :1]).expand(-1, taps - 1, -1, -1) if before is None else before
    padded = torch.cat([past.to(dtype), x.to(dtype)], dim=1)
    y = torch.zeros_like(x, dtype=dtype)
    for lag in range(taps):
        start = taps - 1 - lag
        y = y + w[:, taps - 1 - lag] * padded[:, start : start + frames]
    if bidirectional:
        edges = sorted({0, *(chunk_starts or ()), frames})
        ahead = torch.zeros_like(y)
        for first, end in itertools.pairwise(edges):
            for lag in range(1, min(taps, end - first)):
                ahead[:, first : end - lag] += w[:, taps - 1 - lag] * x[:, first + lag : end].to(dtype)
        y = y + ahead
    return y.to(x.dtype)
