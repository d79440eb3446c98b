"""Operators of a block: Triton where no gradient is asked for, else the plain twin, which autograd differentiates."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import torch
from torch import Tensor

from ..frame_gdn.op import Backend, resolve_backend
from .reference import (
    gated_add_reference,
    glu_conv_reference,
    modulated_norm_reference,
    norm_rotate_reference,
)


def _fused(backend: Backend, x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels run: they have no backward pass."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *others))
    if wanted and backend == "triton":
        raise ValueError(
            "these Triton kernels have no backward pass: use backend 'auto' where gradients are asked for"
        )
    return not wanted and resolve_backend(backend, x)


_ROWS = 8
"""Tokens of a program of `modulated_norm`, which share the rows of their frame's modulation."""


def _frames(name: str, x: Tensor, like: Tensor) -> None:
    allowed = [(like.shape[0], t, like.shape[3]) for t in (like.shape[1], 1)]
    if tuple(x.shape) not in allowed:
        raise ValueError(
            f"{name} is {tuple(x.shape)}; with {tuple(like.shape)} give {allowed[0]} or {allowed[1]}"
        )


def _tokens(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"tokens are {tuple(x.shape)}; give (B, T, S, C)")


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, backend: Backend = "auto"
) -> Tensor:
    """LayerNorm without weights, times 1 + scale, plus shift; read once and written once.

    Args:
        x: (B, T, S, C) float32 or bfloat16.
        shift, scale: (B, T or 1, C) of each frame.
    Returns:
        (B, T, S, C) in the dtype of x.
    Raises:
        ValueError: on shapes that do not fit.
    """
    _tokens(x)
    _frames("shift", shift, x)
    _frames("scale", scale, x)
    if not _fused(backend, x, shift, scale):
        return modulated_norm_reference(x, shift, scale, eps=eps)
    import triton

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x, shift, scale = x.contiguous(), _dense(shift), _dense(scale)
    out = torch.empty_like(x)
    kernels.modulated_norm[(triton.cdiv(s, _ROWS), b * t)](
        x, shift, scale, out, t, s, c, *_steps(shift), *_steps(scale), eps,
        ROWS=_ROWS, BLOCK=triton.next_power_of_2(c), num_warps=4,
    )  # fmt: skip
    return out


def gated_add(
    x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """x + gate * y, plus `extra` if given, in one pass.

    Args:
        x, y, extra: (B, T, S, C) float32 or bfloat16.
        gate: (B, T or 1, C) of each frame.
    Returns:
        (B, T, S, C) in the dtype of x.
    Raises:
        ValueError: on shapes that do not fit.
    """
    _tokens(x)
    _frames("gate", gate, x)
    for name, other in (("y", y), ("extra", extra)):
        if other is not None and other.shape != x.shape:
            raise ValueError(f"{name} is {tuple(other.shape)}; x is {tuple(x.shape)}")
    if not _fused(backend, x, y, gate, extra):
        return gated_add_reference(x, y, gate, extra)
    import triton

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x, y, gate = x.contiguous(), y.contiguous(), _dense(gate)
    extra = None if extra is None else extra.contiguous()
    out = torch.empty_like(x)
    kernels.gated_add[(s, b * t)](
        x, y, gate, extra, out, t, s, c, *_steps(gate),
        HAS_EXTRA=extra is not None, BLOCK=triton.next_power_of_2(c), num_warps=4,
    )  # fmt: skip
    return out


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _steps(x: Tensor) -> tuple[int, int]:
    """Strides of batch and frame; 0 along frames where one row serves all."""
    return x.stride(0), x.stride(1) if x.shape[1] > 1 else 0


_CHANNELS = 128
"""Channels of a program of `glu_conv`, which walks along four rows of a frame."""


def glu_conv(
    x: Tensor, weight: Tensor, bias: Tensor, *, height: int, width: int, backend: Backend = "auto"
) -> Tensor:
    """SiLU, 3 x 3 depthwise convolution over each frame with zeros around it, then value * SiLU(gate).

    Args:
        x: (B, T, height * width, 2 F) float32 or bfloat16, before the SiLU.
        weight: (2 F, 1, 3, 3); bias: (2 F). The first F channels are values, the rest gates.
        height, width: token grid.
    Returns:
        (B, T, height * width, F) in the dtype of x.
    Raises:
        ValueError: on shapes that do not fit.
    """
    _tokens(x)
    channels = x.shape[-1]
    if x.shape[2] != height * width or channels % 2 or height < 1 or width < 1:
        raise ValueError(f"x is {tuple(x.shape)}; give (B, T, {height} * {width}, an even number)")
    if tuple(weight.shape) != (channels, 1, 3, 3) or tuple(bias.shape) != (channels,):
        raise ValueError(
            f"weight is {tuple(weight.shape)}, bias {tuple(bias.shape)}; with {channels} channels give "
            f"({channels}, 1, 3, 3) and ({channels},)"
        )
    if not _fused(backend, x, weight, bias):
        return glu_conv_reference(x, weight, bias, height=height, width=width)
    import triton

    from . import triton_kernels as kernels

    b, t, s, _ = x.shape
    half = channels // 2
    x = x.contiguous()
    out = torch.empty(b, t, s, half, dtype=x.dtype, device=x.device)
    taps = weight.flatten(1).T.contiguous()  # (9, 2 F)
    kernels.glu_conv[(triton.cdiv(half, _CHANNELS), triton.cdiv(height, 4), b * t)](
        x, taps, bias.contiguous(), out, height, width, half,
        CHANNELS=_CHANNELS, FAST=x.is_cuda and x.dtype == torch.bfloat16, num_warps=2,
    )  # fmt: skip
    return out


def norm_rotate(
    x: Tensor,
    weight: Tensor | None,
    rope: Tensor,
    *,
    heads: int,
    matrix: Tensor | None = None,
    inverse_rope: bool = False,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Queries, keys or values of softmax attention: RMSNorm over all heads, then rotation or ray transform.

    Args:
        x: (B, T, S, heads * D) float32 or bfloat16.
        weight: (heads * D) of the RMSNorm; None: no norm.
        rope: (2, T, S, D / 2) for whole heads, (2, T, S, D / 4) beside a matrix.
        heads: H.
        matrix: (B, T, S, 4, 4) that transforms the first half of each head in groups of four, while the second half
            is rotated (UCPE); None: the whole head is rotated.
        inverse_rope: rotate back.
    Returns:
        (B, T, S, H, D) in the dtype of x.
    Raises:
        ValueError: on shapes that do not fit.
    """
    _tokens(x)
    b, t, s, c = x.shape
    if c % heads or (c // heads) % (8 if matrix is not None else 2):
        raise ValueError(f"{c} channels do not make {heads} heads of a size that can be rotated")
    size = c // heads
    pairs = size // 4 if matrix is not None else size // 2
    for name, tensor, expected in (
        ("weight", weight, (c,)),
        ("rope", rope, (2, t, s, pairs)),
        ("matrix", matrix, (b, t, s, 4, 4)),
    ):
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; with {tuple(x.shape)} it must be {expected}")
    if not _fused(backend, x, weight):
        return norm_rotate_reference(
            x, weight, rope, heads=heads, matrix=matrix, inverse_rope=inverse_rope, eps=eps
        )
    import triton

    from . import triton_kernels as kernels

    x = _dense(x)
    x = x if x.stride(1) == s * x.stride(2) and x.stride(0) == t * x.stride(1) else x.contiguous()
    out = torch.empty(b, t, s, heads, size, dtype=x.dtype, device=x.device)
    cos, sin = rope[0].contiguous(), rope[1].contiguous()
    matrix = None if matrix is None else matrix.float().contiguous()
    kernels.norm_rotate[(b * t * s,)](
        x, weight, cos, sin, matrix, out, t * s, x.stride(2), eps, -1.0 if inverse_rope else 1.0,
        HEADS=heads, SIZE=size, HAS_WEIGHT=weight is not None, HAS_MATRIX=matrix is not None,
        BH=triton.next_power_of_2(heads), BP=triton.next_power_of_2(pairs), num_warps=4,
    )  # fmt: skip
    return out
