"""`short_conv`: the public operator, its registration with torch and its gradient."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backend import Backend, op_name, resolve_backend
from .reference import check_arguments, short_conv_reference


def short_conv(
    x: Tensor,
    weight: Tensor,
    *,
    bidirectional: bool = True,
    chunk_starts: tuple[int, ...] | None = None,
    before: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Depthwise convolution along time, for each token of a frame by itself.

    Causal part: y_t = sum over lag of weight[:, 0, taps - 1 - lag] * x_{t - lag}, over the whole clip. With
    `bidirectional` the same weights also look ahead, inside the chunk of t only; the centre counts once.

    Args:
        x: (B, T, S, C) float32 or bfloat16, last axis dense.
        weight: (C, 1, taps), oldest tap first.
        chunk_starts: first frames of chunks, increasing; None: one chunk.
        before: (B, taps - 1, S, C) the frames before the first (streaming); None: zeros.
    Returns:
        (B, T, S, C) in the dtype of x; gradients flow to x, weight and before.
    Raises:
        ValueError: on shapes, types, devices, chunks or a backend that do not fit.
    Source: NVlabs/Sana `conv_k`, forward plus reversed causal convolution minus the centre tap.
    """
    chunk_starts = check_arguments(x, weight, bidirectional, chunk_starts, before)
    if weight.shape[-1] > _TAPS and backend == "triton":
        raise ValueError(f"weight has {weight.shape[-1]} taps; the kernels take up to {_TAPS}")
    triton = resolve_backend(backend, x)
    if weight.shape[-1] > _TAPS or not triton:
        return short_conv_reference(
            x, weight, bidirectional=bidirectional, chunk_starts=chunk_starts, before=before
        )
    return _forward_op(x, weight, before, list(chunk_starts or ()), bidirectional)


@lru_cache(maxsize=64)
def _chunk_bounds(frames: int, chunk_starts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(T,) int32 first and end frame of each frame's chunk; kept, since a copy makes the host wait."""
    edges = sorted({0, *chunk_starts, frames})
    first = [a for a, b in itertools.pairwise(edges) for _ in range(a, b)]
    end = [b for a, b in itertools.pairwise(edges) for _ in range(a, b)]
    both = torch.tensor([first, end], dtype=torch.int32).to(device, non_blocking=True)
    return both[0], both[1]


_TAPS = 4
_FRAMES = 31
"""Frames of a program's run: the longer, the fewer frames are read twice; the shorter, the more programs."""


def _tile(channels: int) -> tuple[int, int]:
    """Tokens and channels of a tile."""
    import triton

    return 4, min(256, triton.next_power_of_2(channels))


def _by_lag(weight: Tensor) -> Tensor:
    """(4, C) float32, newest tap first, with zeros for taps that the weight does not have."""
    taps = weight.flatten(0, 1).float().flip(1).T
    return torch.nn.functional.pad(taps, (0, 0, 0, _TAPS - taps.shape[0])).contiguous()


def _padded(before: Tensor | None) -> Tensor | None:
    """The three frames before the first, the oldest zero where the weight has fewer taps."""
    if before is None:
        return None
    return torch.nn.functional.pad(before, (0, 0, 0, 0, _TAPS - 1 - before.shape[1], 0)).contiguous()


def _convolve(
    x: Tensor, weight: Tensor, before: Tensor | None, starts: list[int], both: bool, *, backward: bool
) -> Tensor:
    import triton

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(b, t, s, c, dtype=x.dtype, device=x.device)
    first, end = _chunk_bounds(t, tuple(starts), x.device)
    tokens, channels = _tile(c)
    kernels.convolve[(b * triton.cdiv(s, tokens) * triton.cdiv(c, channels), triton.cdiv(t, _FRAMES))](
        x, _padded(before), _by_lag(weight), end, first, y,
        t, s, c, x.stride(0), x.stride(1), x.stride(2), _FRAMES,
        BOTH=both, BACKWARD=backward, HAS_BEFORE=before is not None, BS=tokens, BC=channels, num_warps=4,
    )  # fmt: skip
    return y


@torch.library.custom_op(op_name("short_conv"), mutates_args=())
def _forward_op(
    x: Tensor, weight: Tensor, before: Tensor | None, chunk_starts: list[int], bidirectional: bool
) -> Tensor:
    return _convolve(x, weight, before, chunk_starts, bidirectional, backward=False)


@_forward_op.register_fake
def _(
    x: Tensor, weight: Tensor, before: Tensor | None, chunk_starts: list[int], bidirectional: bool
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op(op_name("short_conv_backward"), mutates_args=())
def _backward_op(
    x: Tensor, weight: Tensor, before: Tensor | None, chunk_starts: list[int], bidirectional: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    import triton

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    taps = weight.shape[-1]
    dy = dy.contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    dx = _convolve(dy, weight, None, chunk_starts, bidirectional, backward=True)
    _, end = _chunk_bounds(t, tuple(chunk_starts), x.device)
    tokens, channels = _tile(c)
    tiles, runs = triton.cdiv(s, tokens), triton.cdiv(t, _FRAMES)
    parts = torch.empty(b * tiles * runs, _TAPS, c, dtype=torch.float32, device=x.device)
    kernels.weight_gradient[(b * tiles * triton.cdiv(c, channels), runs)](
        x, _padded(before), dy, end, parts, t, s, c, x.stride(0), x.stride(1), x.stride(2), _FRAMES,
        BOTH=bidirectional, HAS_BEFORE=before is not None, BS=tokens, BC=channels, num_warps=4,
    )  # fmt: skip
    dweight = parts.sum(dim=0)[:taps].flip(0).T.reshape(weight.shape).to(weight.dtype)
    if before is None:
        return dx, dweight, x.new_empty(0)
    # Frame -j reads into y_t with lag t + j; only the first taps - 1 frames see it.
    w = weight.float().view(c, taps)
    dbefore = torch.zeros(before.shape, dtype=torch.float32, device=x.device)
    for j in range(1, taps):
        for lag in range(j, taps):
            if lag - j < t:
                dbefore[:, taps - 1 - j] += w[:, taps - 1 - lag] * dy[:, lag - j].float()
    return dx, dweight, dbefore.to(before.dtype)


@_backward_op.register_fake
def _(
    x: Tensor, weight: Tensor, before: Tensor | None, chunk_starts: list[int], bidirectional: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    def like(y: Tensor) -> Tensor:
        return torch.empty(y.shape, dtype=y.dtype, device=y.device)

    return like(x), like(weight), x.new_empty(0) if before is None else like(before)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.switches = inputs[3:]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, before = ctx.saved_tensors
    dx, dweight, dbefore = _backward_op(x, weight, before, *ctx.switches, dy)
    return dx, dweight, None if before is None else dbefore, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
