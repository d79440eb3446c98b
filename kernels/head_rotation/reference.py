"""RMSNorm over all channels and a rotation of each head's halves in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_tensors


def check_arguments(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor) -> None:
    """Raise ValueError where something does not fit, as `rotate_heads` says."""
    if x.ndim != 3 or cos.ndim != 4 or cos.shape != sin.shape:
        raise ValueError(
            f"x is {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}; give (B, N, C) and two "
            "(1, H, N, C / H / 2)"
        )
    heads, tokens, half = cos.shape[1:]
    if cos.shape[0] != 1 or tokens != x.shape[1] or 2 * heads * half != x.shape[2]:
        raise ValueError(
            f"tables are {tuple(cos.shape)}; with x {tuple(x.shape)} they are (1, H, {x.shape[1]}, size / 2) where H "
            f"heads of that size make {x.shape[2]} channels"
        )
    if weight is not None and weight.shape != (x.shape[2],):
        raise ValueError(f"weight is {tuple(weight.shape)}; give ({x.shape[2]},)")
    check_tensors(x, "x", weight=weight, cos=cos, sin=sin)


def rotate_heads_reference(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, *, eps: float = 1e-6
) -> Tensor:
    """As `rotate_heads`, in float32 (float64 if given)."""
    check_arguments(x, weight, cos, sin)
    heads, _, half = cos.shape[1:]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if weight is not None:
        wide = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(wide.dtype)
    low, high = wide.unflatten(2, (heads, 2, half)).transpose(1, 2).unbind(3)
    out = torch.stack([low * cos - high * sin, high * cos + low * sin], dim=3)
    return out.transpose(1, 2).flatten(2).to(x.dtype)
