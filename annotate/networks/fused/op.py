"""Memory-bound steps between the matrix products, each as one Triton kernel with a plain torch twin.

The twin is the definition; the kernel is used on CUDA when Triton is there. Both compute in float32 and round once.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from .reference import (
    add_norm_reference,
    norm_relu_pad_reference,
    relu_product_reference,
    resize_pad_reference,
    rotate_qk_reference,
)


@cache
def _kernels() -> ModuleType | None:
    """The Triton kernels, or None where Triton is not installed."""
    try:
        from . import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def add_norm(
    x: Tensor, pending: tuple[Tensor, Tensor | None] | None, norm: nn.LayerNorm, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add a branch to the stream and normalise the sum.

    Args:
        x: (..., D) float32, contiguous; overwritten by the kernel.
        pending: branch (..., D) and its factor per channel (D,) or None; None adds nothing.
        norm: LayerNorm over D.
        dtype: type of the normalised output.
    Returns:
        The new stream, float32, and its LayerNorm in `dtype`.
    """
    kernels = _kernels() if x.is_cuda else None
    if kernels is not None:
        return kernels.add_norm(x, pending, norm.weight, norm.bias, norm.eps, dtype)
    return add_norm_reference(x, pending, norm, dtype)


def rotate_qk(
    qkv: Tensor,
    table: Tensor,
    q_norm: nn.LayerNorm | None,
    k_norm: nn.LayerNorm | None,
    *,
    q_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Optional LayerNorm over each head, then rotary embedding, for q and k.

    Args:
        qkv: (B, L, 3, H, 64).
        table: (n, 2, 64), n dividing L.
        q_norm, k_norm: LayerNorms over the 64 dims of a head; both or none.
        q_factor: multiplied onto q before it is rounded.
    Returns:
        q and k, (B, L, H, 64), in the type of `qkv`.
    """
    kernels = _kernels() if qkv.is_cuda else None
    if kernels is not None:
        return kernels.rotate_qk(qkv, table, q_norm, k_norm, q_factor)
    return rotate_qk_reference(qkv, table, q_norm, k_norm, q_factor=q_factor)


def add(x: Tensor, other: Tensor | None, bias: Tensor | None) -> Tensor:
    """x + other + bias in one pass; overwrites `x` on CUDA.

    Args:
        x: (B, C, H, W).
        other: (B, C, H, W), or (1, C, H, W) for the same on every image.
        bias: (C,).
    """
    kernels = _kernels() if x.is_cuda else None
    if kernels is not None:
        return kernels.add(x, other, bias)
    if other is not None:
        x = x + other
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


def norm_relu_pad(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    relu: bool,
    pad: bool,
    before: Tensor | None = None,
) -> Tensor:
    """Add `before`, GroupNorm (none if `num_groups` is 0), ReLU if `relu`, one repeated border pixel if `pad`.

    Args:
        x: (B, C, H, W).
        num_groups: groups of the norm, eps 1e-5; statistics over a group's channels and all pixels.
        weight, bias: (C,) of the norm.
        before: (C,) bias that the convolution before left out.
    Returns:
        (B, C, H + 2, W + 2), or (B, C, H, W) without `pad`; channels last on CUDA.
    """
    kernels = _kernels() if x.is_cuda else None
    if kernels is not None:
        return kernels.norm_relu_pad(x, num_groups, weight, bias, relu=relu, pad=pad, before=before)
    return norm_relu_pad_reference(x, num_groups, weight, bias, relu=relu, pad=pad, before=before)


def resize_pad(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing, then one repeated border pixel.

    Args:
        x: (B, C, H, W).
        height, width: size before the border.
    Returns:
        (B, C, height + 2, width + 2); channels last on CUDA.
    """
    kernels = _kernels() if x.is_cuda else None
    if kernels is not None:
        return kernels.resize_pad(x, height, width)
    return resize_pad_reference(x, height, width)


def relu_product(x: Tensor, other: Tensor, bias: Tensor, weight: Tensor, out_bias: Tensor) -> Tensor:
    """weight @ relu(x + other + bias) + out_bias at every pixel, in float32.

    Args:
        x: (B, C, H, W).
        other: (1, C, H, W), the same for every image.
        bias: (C,).
        weight: (O, C) float32.
        out_bias: (O,) float32.
    Returns:
        (B, H, W, O) float32.
    """
    kernels = _kernels() if x.is_cuda else None
    if kernels is not None:
        return kernels.relu_product(x, other, bias, weight, out_bias)
    return relu_product_reference(x, other, bias, weight, out_bias)


MAX_SCORE_BOUND = 40.0
"""Scores within this bound need no maximum: 2^(40 log2(e)) = 2^58 keeps far from the limits of float32 and bfloat16."""
DIRECT_FACTOR = 1.4426950408889634 / 8
"""log2(e) / sqrt(64): with q multiplied by it, softmax weights are 2^(q . k)."""


@cache
def _attention_kernel() -> ModuleType | None:
    """The Gluon kernel, or None where Triton is absent or older than 3.6, whose Gluon it was written in."""
    try:
        import triton
    except ImportError:
        return None
    major, minor = triton.__version__.split(".")[:2]
    if (int(major), int(minor)) < (3, 6):
        return None
    from . import attention_kernel

    return attention_kernel


def has_attention_kernel(x: Tensor) -> bool:
    """Whether `own_attention` serves tensors such as `x`: half types on Hopper with Triton 3.6 or later."""
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(x.device)[0] == 9
        and _attention_kernel() is not None
    )


def takes_direct(qkv: Tensor, score_bound: float | None) -> bool:
    """Whether attention between these may skip the softmax's maximum.

    Softmax does not change when a constant is subtracted from all scores. Kernels subtract the running maximum so
    that no exponential overflows, and rescale what they have summed whenever it grows; a bound that holds for every
    score (qk-norm gives one) makes both unnecessary. In float16 the weights would leave the type's range.

    Args:
        qkv: gives type and device.
        score_bound: |q . k| / sqrt(64) never exceeds it, see `Attention.score_bound`.
    """
    return (
        score_bound is not None
        and score_bound <= MAX_SCORE_BOUND
        and qkv.dtype == torch.bfloat16
        and has_attention_kernel(qkv)
    )


def own_attention(q: Tensor, k: Tensor, v: Tensor, *, direct: bool) -> Tensor:
    """Softmax attention without mask by our kernel; only where `has_attention_kernel` says so.

    Args:
        q, k, v: (B, L, H, 64) half precision; strided views of one (B, L, ..., 64) array will do.
        direct: q carries `DIRECT_FACTOR` and `takes_direct` held.
    Returns:
        (B, L, H * 64).
    """
    kernel = _attention_kernel()
    assert kernel is not None
    return kernel.attention(q, k, v, direct=direct)
