"""Short temporal convolution in plain torch: the specification."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def short_conv_reference(
    x: Tensor,
    weight: Tensor,
    *,
    bidirectional: bool = True,
    chunk_starts: tuple[int, ...] | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """`short_conv` written down plainly; see there. Computes in float32, or float64 if given."""
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
        edges = sorted({0, *(s for s in chunk_starts or () if s < frames), frames})
        ahead = torch.zeros_like(y)
        for first, end in itertools.pairwise(edges):
            for lag in range(1, min(taps, end - first)):
                ahead[:, first : end - lag] += w[:, taps - 1 - lag] * x[:, first + lag : end].to(dtype)
        y = y + ahead
    return y.to(x.dtype)
