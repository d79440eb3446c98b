"""`rotate_heads`: the public operator; a kernel for inference, the twin where gradients are wanted."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import Backend, resolve_backend
from .reference import check_arguments, rotate_heads_reference


def rotate_heads(
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> Tensor:
    """RMSNorm over all channels, then each head's first half and second half turned by its own angles.

    Args:
        x: (B, N, C) float32 or bfloat16; the last dimension dense.
        weight: (C,) of the norm; None: no norm.
        cos, sin: (1, H, N, C / H / 2), of every head and token.
    Returns:
        (B, N, C) in the dtype of x, computed in float32: of a head's halves a and b, a cos - b sin and b cos + a sin.
    Raises:
        ValueError: on shapes, types, devices or a backend that do not fit.
    """
    check_arguments(x, weight, cos, sin)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, cos, sin))
    if not resolve_backend(backend, x) or wanted:
        return rotate_heads_reference(x, weight, cos, sin, eps=eps)
    import triton

    from . import triton_kernels as kernels

    heads, tokens, half = cos.shape[1:]
    rows = x.flatten(0, 1)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        kernels.rotate_heads[(rows.shape[0],)](
            rows, weight, cos.contiguous(), sin.contiguous(), out, tokens, rows.stride(0), eps,
            HEADS=heads, HALF=half, HAS_WEIGHT=weight is not None,
            BH=triton.next_power_of_2(heads), BP=triton.next_power_of_2(half), num_warps=8,
        )  # fmt: skip
    return out
