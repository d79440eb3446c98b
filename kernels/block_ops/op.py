"""Operators of a block: Triton on a GPU, forward and backward, the plain twin elsewhere.

Backward keeps the inputs alone and computes the rest again: statistics of the norms, and of the convolution what its
two halves were.
"""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import Backend, resolve_backend
from .reference import (
    gated_add_reference,
    gated_shift_add_reference,
    glu_conv_reference,
    modulated_norm_reference,
    norm_rotate_reference,
)

_F = TypeVar("_F", bound=Callable[..., Any])


def _once(backward: _F) -> _F:
    """`once_differentiable`, which forgets the names of arguments, for the type checker."""
    return cast(_F, once_differentiable(backward))


def _wanted(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


_ROWS = 8
"""Tokens of a program of `modulated_norm`, which share the rows of their frame's modulation."""
_SUMMED = 16
"""Tokens whose gradients a program of a backward kernel sums before it writes them."""


def _frames(name: str, x: Tensor, like: Tensor) -> None:
    allowed = [(like.shape[0], t, like.shape[3]) for t in (like.shape[1], 1)]
    if tuple(x.shape) not in allowed:
        raise ValueError(
            f"{name} is {tuple(x.shape)}; with {tuple(like.shape)} give {allowed[0]} or {allowed[1]}"
        )


def _tokens(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"tokens are {tuple(x.shape)}; give (B, T, S, C)")


def check_modulation(x: Tensor, shift: Tensor, scale: Tensor) -> None:
    """Raise ValueError unless tokens are (B, T, S, C) and both others (B, T or 1, C)."""
    _tokens(x)
    _frames("shift", shift, x)
    _frames("scale", scale, x)


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, backend: Backend = "auto"
) -> Tensor:
    """LayerNorm without weights, times 1 + scale, plus shift; read once and written once.

    Args:
        x: (B, T, S, C) float32 or bfloat16.
        shift, scale: (B, T or 1, C) of each frame.
    Returns:
        (B, T, S, C) in the dtype of x; gradients flow to all three.
    Raises:
        ValueError: on shapes that do not fit.
    """
    check_modulation(x, shift, scale)
    if not resolve_backend(backend, x):
        return modulated_norm_reference(x, shift, scale, eps=eps)
    if _wanted(x, shift, scale):
        return _ModulatedNorm.apply(x, shift, scale, eps)
    return _modulated_norm(x, None, shift, scale, eps)[1]


def add_modulated_norm(
    x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """x + y and `modulated_norm` of it, in one pass where no gradient is asked for.

    Args:
        x, y: (B, T, S, C), one type; others as in `modulated_norm`.
    Returns:
        the sum and its norm, both (B, T, S, C).
    """
    check_modulation(x, shift, scale)
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(f"y is {tuple(y.shape)} {y.dtype}; x is {tuple(x.shape)} {x.dtype}")
    if _wanted(x, y, shift, scale) or not resolve_backend(backend, x):
        total = x + y
        return total, modulated_norm(total, shift, scale, eps=eps, backend=backend)
    return _modulated_norm(x, y, shift, scale, eps)


def _modulated_norm(
    x: Tensor, y: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The tokens (or their sum with y) and their norm."""
    import triton

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x, shift, scale = x.contiguous(), dense(shift), dense(scale)
    y = None if y is None else y.contiguous()
    total, out = x if y is None else torch.empty_like(x), torch.empty_like(x)
    kernels.modulated_norm[(triton.cdiv(s, _ROWS), b * t)](
        x, y, shift, scale, total, out, t, s, c, *frame_steps(shift), *frame_steps(scale), eps,
        ROWS=_ROWS, BLOCK=triton.next_power_of_2(c), HAS_ADDED=y is not None, num_warps=4,
    )  # fmt: skip
    return total, out


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.eps, ctx.shift = eps, (shift.shape[1], shift.dtype)
        return _modulated_norm(x, None, shift, scale, eps)[1]

    @staticmethod
    @_once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        import triton

        from . import triton_kernels as kernels

        (dout,) = grad_outputs

        x, scale = ctx.saved_tensors
        b, t, s, c = x.shape
        x, scale, dout = x.contiguous(), dense(scale), dout.contiguous()
        tiles = triton.cdiv(s, _SUMMED)
        dx = torch.empty_like(x)
        part = torch.empty(b, t, tiles, 2, c, dtype=torch.float32, device=x.device)
        kernels.modulated_norm_backward[(tiles, b * t)](
            x, scale, dout, dx, part, t, s, c, *frame_steps(scale), ctx.eps,
            ROWS=_SUMMED, BLOCK=triton.next_power_of_2(c), num_warps=4,
        )  # fmt: skip
        total = part.sum(dim=2)
        frames, dtype = ctx.shift
        dshift = _over_frames(total[:, :, 0], frames).to(dtype)
        dscale = _over_frames(total[:, :, 1], scale.shape[1]).to(scale.dtype)
        return dx, dshift, dscale, None


def _over_frames(gradient: Tensor, frames: int) -> Tensor:
    """(B, T, C) summed to (B, 1, C) where one row served all frames."""
    return gradient.sum(dim=1, keepdim=True) if frames == 1 else gradient


def check_gated(x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None) -> None:
    """Raise ValueError unless tokens are (B, T, S, C) alike and the gate (B, T or 1, C)."""
    _tokens(x)
    _frames("gate", gate, x)
    for name, other in (("y", y), ("extra", extra)):
        if other is not None and other.shape != x.shape:
            raise ValueError(f"{name} is {tuple(other.shape)}; x is {tuple(x.shape)}")


def gated_add(
    x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """x + gate * y, plus `extra` if given, in one pass.

    Args:
        x, y, extra: (B, T, S, C) float32 or bfloat16.
        gate: (B, T or 1, C) of each frame.
    Returns:
        (B, T, S, C) in the dtype of x; gradients flow to all four.
    Raises:
        ValueError: on shapes that do not fit.
    """
    check_gated(x, y, gate, extra)
    if not resolve_backend(backend, x):
        return gated_add_reference(x, y, gate, extra)
    if _wanted(x, y, gate, extra):
        return _GatedAdd.apply(x, y, gate, extra)
    return _gated_add(x, y, gate, extra)


def _gated_add(x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None) -> Tensor:
    import triton

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x, y, gate = x.contiguous(), y.contiguous(), dense(gate)
    extra = None if extra is None else extra.contiguous()
    out = torch.empty_like(x)
    kernels.gated_add[(s, b * t)](
        x, y, gate, extra, out, t, s, c, *frame_steps(gate),
        HAS_EXTRA=extra is not None, BLOCK=triton.next_power_of_2(c), num_warps=4,
    )  # fmt: skip
    return out


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, gate)
        ctx.dtypes = x.dtype, None if extra is None else extra.dtype
        return _gated_add(x, y, gate, extra)

    @staticmethod
    @_once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        import triton

        from . import triton_kernels as kernels

        (dout,) = grad_outputs

        y, gate = ctx.saved_tensors
        b, t, s, c = y.shape
        y, gate, dout = y.contiguous(), dense(gate), dout.contiguous()
        tiles = triton.cdiv(s, _SUMMED)
        dy = torch.empty_like(y)
        part = torch.empty(b, t, tiles, c, dtype=torch.float32, device=y.device)
        kernels.gated_add_backward[(tiles, b * t)](
            y, gate, dout, dy, part, t, s, c, *frame_steps(gate),
            ROWS=_SUMMED, BLOCK=triton.next_power_of_2(c), num_warps=4,
        )  # fmt: skip
        dgate = _over_frames(part.sum(dim=2), gate.shape[1]).to(gate.dtype)
        of_x, of_extra = ctx.dtypes
        return dout.to(of_x), dy, dgate, None if of_extra is None else dout.to(of_extra)


def gated_shift_add(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    gate: Tensor,
    *,
    first: Tensor | None = None,
    inner: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """x + gate * (y + convolution of y along time), the convolution's three products given side by side.

    Frame t takes the first third of z of frame t - 1, the second of its own and the last of frame t + 1; one pass.

    Args:
        x, y: (B, T, S, C) float32 or bfloat16; z: (B, T, S, 3 C).
        gate: (B, T or 1, C) of each frame.
        first: (B, 1, S, C) what frame 0 takes from the frame before the clip; None: nothing.
        inner: (T, 1, 1) by which what a frame gives to the one before it is multiplied (zero where a chunk begins).
    Returns:
        (B, T, S, C) in the dtype of x; gradients flow through the plain twin alone.
    Raises:
        ValueError: on shapes that do not fit, or gradients asked of the kernel.
    """
    _tokens(x)
    _frames("gate", gate, x)
    b, t, s, c = x.shape
    for name, tensor, expected in (
        ("y", y, (b, t, s, c)),
        ("z", z, (b, t, s, 3 * c)),
        ("first", first, (b, 1, s, c)),
        ("inner", inner, (t, 1, 1)),
    ):
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; with {tuple(x.shape)} it must be {expected}")
    if not resolve_backend(backend, x):
        return gated_shift_add_reference(x, y, z, gate, first, inner)
    if _wanted(x, y, z, gate, first):
        raise ValueError("gated_shift_add has no backward kernel: use backend 'reference'")
    import triton

    from . import triton_kernels as kernels

    x, y, z, gate = x.contiguous(), y.contiguous(), z.contiguous(), dense(gate)
    first = None if first is None else first.contiguous()
    inner = None if inner is None else inner.contiguous()
    out = torch.empty_like(x)
    kernels.gated_shift_add[(s, b * t)](
        x, y, z, gate, first, inner, out, t, s, c, *frame_steps(gate),
        HAS_FIRST=first is not None, HAS_INNER=inner is not None, BLOCK=triton.next_power_of_2(c), num_warps=4,
    )  # fmt: skip
    return out


def dense(x: Tensor) -> Tensor:
    """x with its last axis dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


def frame_steps(x: Tensor) -> tuple[int, int]:
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
        (B, T, height * width, F) in the dtype of x; gradients flow to all three tensors.
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
    if not resolve_backend(backend, x):
        return glu_conv_reference(x, weight, bias, height=height, width=width)
    if _wanted(x, weight, bias):
        return _GluConv.apply(x, weight, bias, height, width)
    return _glu_conv(x, weight, bias, height, width, None)


def _glu_conv(
    x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, dout: Tensor | None
) -> Tensor:
    """The operator, or given the gradient of its output that of the convolution's (B, T, S, 2 F)."""
    import triton

    from . import triton_kernels as kernels

    b, t, s, channels = x.shape
    half = channels // 2
    x = x.contiguous()
    out = torch.empty(b, t, s, half if dout is None else channels, dtype=x.dtype, device=x.device)
    taps = weight.flatten(1).T.contiguous()  # (9, 2 F)
    kernels.glu_conv[(triton.cdiv(half, _CHANNELS), triton.cdiv(height, 4), b * t)](
        x, taps, bias.contiguous(), dout, out, height, width, half,
        CHANNELS=_CHANNELS, FAST=x.is_cuda and x.dtype == torch.bfloat16, BACKWARD=dout is not None, num_warps=2,
    )  # fmt: skip
    return out


_FRAMES = 4
"""Frames over which a program sums the gradients of the convolution's taps."""


class _GluConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.size = height, width
        return _glu_conv(x, weight, bias, height, width, None)

    @staticmethod
    @_once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        import triton

        from . import triton_kernels as kernels

        (dout,) = grad_outputs

        x, weight, bias = ctx.saved_tensors
        height, width = ctx.size
        x = x.contiguous()
        frames, channels = x.shape[0] * x.shape[1], x.shape[-1]
        inner = _glu_conv(x, weight, bias, height, width, dout.contiguous())
        blocks, tiles = triton.cdiv(channels, _CHANNELS), triton.cdiv(height, 4)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            kernels.glu_conv_dx[(blocks, tiles, frames)](
                x, weight.flatten(1).T.contiguous(), inner, dx, height, width, channels,
                CHANNELS=_CHANNELS, num_warps=2,
            )  # fmt: skip
        dweight = dbias = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            groups = triton.cdiv(frames, _FRAMES)
            part = torch.empty(groups, tiles, 10, channels, dtype=torch.float32, device=x.device)
            kernels.glu_conv_dtaps[(blocks, tiles, groups)](
                x, inner, part, height, width, channels, frames,
                CHANNELS=_CHANNELS, FRAMES=_FRAMES, num_warps=2,
            )  # fmt: skip
            total = part.sum(dim=(0, 1))
            dweight = total[:9].T.reshape(weight.shape).to(weight.dtype)
            dbias = total[9].to(bias.dtype)
        return dx, dweight, dbias, None, None


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
        (B, T, S, H, D) in the dtype of x; gradients flow to x and weight, in the kernels to nothing else.
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
    direction = -1.0 if inverse_rope else 1.0
    if not resolve_backend(backend, x):
        return norm_rotate_reference(
            x, weight, rope, heads=heads, matrix=matrix, inverse_rope=inverse_rope, eps=eps
        )
    if _wanted(x, weight):
        return _NormRotate.apply(x, weight, rope, matrix, heads, direction, eps)
    return _norm_rotate(x, weight, rope, matrix, heads, direction, eps)


def _rows(x: Tensor) -> Tensor:
    """x with tokens at one distance from each other, copied only where they are not."""
    _, t, s, _ = x.shape
    x = dense(x)
    return x if x.stride(1) == s * x.stride(2) and x.stride(0) == t * x.stride(1) else x.contiguous()


def _norm_rotate(
    x: Tensor,
    weight: Tensor | None,
    rope: Tensor,
    matrix: Tensor | None,
    heads: int,
    direction: float,
    eps: float,
) -> Tensor:
    import triton

    from . import triton_kernels as kernels

    x = _rows(x)
    b, t, s, c = x.shape
    size, pairs = c // heads, rope.shape[-1]
    out = torch.empty(b, t, s, heads, size, dtype=x.dtype, device=x.device)
    cos, sin = rope[0].contiguous(), rope[1].contiguous()
    matrix = None if matrix is None else matrix.float().contiguous()
    kernels.norm_rotate[(b * t * s,)](
        x, weight, cos, sin, matrix, out, t * s, x.stride(2), eps, direction,
        HEADS=heads, SIZE=size, HAS_WEIGHT=weight is not None, HAS_MATRIX=matrix is not None,
        BH=triton.next_power_of_2(heads), BP=triton.next_power_of_2(pairs), num_warps=4,
    )  # fmt: skip
    return out


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        rope: Tensor,
        matrix: Tensor | None,
        heads: int,
        direction: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rope, matrix)
        ctx.options = heads, direction, eps
        return _norm_rotate(x, weight, rope, matrix, heads, direction, eps)

    @staticmethod
    @_once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        import triton

        from . import triton_kernels as kernels

        (dout,) = grad_outputs

        x, weight, rope, matrix = ctx.saved_tensors
        heads, direction, eps = ctx.options
        x, dout = _rows(x), dout.contiguous()
        b, t, s, c = x.shape
        rows, pairs = b * t * s, rope.shape[-1]
        programs = triton.cdiv(rows, _SUMMED // 2)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        part = None if weight is None else torch.empty(programs, c, dtype=torch.float32, device=x.device)
        cos, sin = rope[0].contiguous(), rope[1].contiguous()
        matrix = None if matrix is None else matrix.float().contiguous()
        kernels.norm_rotate_backward[(programs,)](
            x, weight, cos, sin, matrix, dout, dx, part, rows, t * s, x.stride(2), eps, direction,
            HEADS=heads, SIZE=c // heads, HAS_WEIGHT=weight is not None, HAS_MATRIX=matrix is not None,
            BH=triton.next_power_of_2(heads), BP=triton.next_power_of_2(pairs), ROWS=_SUMMED // 2, num_warps=4,
        )  # fmt: skip
        dweight = None if weight is None or part is None else part.sum(dim=0).to(weight.dtype)
        return dx, dweight, None, None, None, None, None
