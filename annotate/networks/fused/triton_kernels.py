"""Triton kernels behind `fused/op.py`. Imported on CUDA only; the twins there say what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .reference import norm_relu_pad_reference, relu_product_reference, resize_pad_reference

# pyright: reportUnreachable=false, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false


@triton.jit
def _add_norm(
    x_ptr, branch_ptr, gamma_ptr, weight_ptr, bias_ptr, out_ptr, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_GAMMA: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    keep = d < D
    x = tl.load(x_ptr + row + d, mask=keep, other=0.0)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + row + d, mask=keep, other=0.0).to(tl.float32)
        if HAS_GAMMA:
            branch = branch * tl.load(gamma_ptr + d, mask=keep, other=0.0).to(tl.float32)
        x = x + branch
        tl.store(x_ptr + row + d, x, mask=keep)
    mean = tl.sum(x, 0) / D
    centred = tl.where(keep, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
    weight = tl.load(weight_ptr + d, mask=keep, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d, mask=keep, other=0.0).to(tl.float32)
    y = centred * scale * weight + bias
    tl.store(out_ptr + row + d, y.to(out_ptr.dtype.element_ty), mask=keep)


def add_norm(
    x: Tensor,
    pending: tuple[Tensor, Tensor | None] | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See `fused.add_norm`; `x` is overwritten."""
    x = x.contiguous()
    D = x.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    branch, gamma = pending if pending is not None else (x, None)
    _add_norm[(x.numel() // D,)](
        x, branch.contiguous(), gamma if gamma is not None else weight, weight, bias, out, eps,
        D=D, BLOCK=triton.next_power_of_2(D),
        HAS_BRANCH=pending is not None, HAS_GAMMA=gamma is not None, num_warps=4,
    )  # fmt: skip
    return x, out


@triton.jit
def _rotate_qk(
    qkv_ptr, table_ptr, qw_ptr, qb_ptr, kw_ptr, kb_ptr, out_ptr, num_tokens, n, eps, q_factor,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    # One program: a few tokens, all heads of q, then of k. The two partners of a rotation are 16 dims apart, so a
    # head of 64 is read as two tiles of 32; `e` is the place of the first partner.
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    alive = (token < num_tokens)[:, None, None]
    j = tl.arange(0, 32)
    e = (j // 16) * 32 + j % 16
    place = (token % n)[:, None, None] * 128 + e[None, None, :]
    cosine = tl.load(table_ptr + place, mask=alive, other=0.0)
    sine = tl.load(table_ptr + place + 80, mask=alive, other=0.0)
    head = tl.arange(0, HEADS)[None, :, None]
    for which in tl.static_range(2):
        source = qkv_ptr + ((token[:, None, None] * 3 + which) * HEADS + head) * 64 + e[None, None, :]
        a = tl.load(source, mask=alive, other=0.0).to(tl.float32)
        b = tl.load(source + 16, mask=alive, other=0.0).to(tl.float32)
        if HAS_NORM:
            w_ptr = qw_ptr if which == 0 else kw_ptr
            b_ptr = qb_ptr if which == 0 else kb_ptr
            mean = (tl.sum(a, 2) + tl.sum(b, 2))[:, :, None] / 64
            a, b = a - mean, b - mean
            scale = tl.rsqrt((tl.sum(a * a, 2) + tl.sum(b * b, 2))[:, :, None] / 64 + eps)
            a = a * scale * tl.load(w_ptr + e)[None, None, :] + tl.load(b_ptr + e)[None, None, :]
            b = b * scale * tl.load(w_ptr + e + 16)[None, None, :] + tl.load(b_ptr + e + 16)[None, None, :]
            # Rounded to the storage type between norm and rotation, as the plain version is.
            a = a.to(out_ptr.dtype.element_ty).to(tl.float32)
            b = b.to(out_ptr.dtype.element_ty).to(tl.float32)
        first, second = a * cosine - b * sine, b * cosine + a * sine
        if which == 0:
            first, second = first * q_factor, second * q_factor
        target = out_ptr + ((token[:, None, None] * 2 + which) * HEADS + head) * 64 + e[None, None, :]
        tl.store(target, first.to(out_ptr.dtype.element_ty), mask=alive)
        tl.store(target + 16, second.to(out_ptr.dtype.element_ty), mask=alive)


def rotate_qk(
    qkv: Tensor,
    table: Tensor,
    q_norm: nn.LayerNorm | None,
    k_norm: nn.LayerNorm | None,
    q_factor: float,
) -> tuple[Tensor, Tensor]:
    """See `fused.rotate_qk`."""
    qkv = qkv.contiguous()
    B, L, _, H, E = qkv.shape
    out = qkv.new_empty(B, L, 2, H, E)
    tensors = (table,) * 4
    if q_norm is not None and k_norm is not None:
        tensors = (q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias)
    tokens = 4
    _rotate_qk[(triton.cdiv(B * L, tokens),)](
        qkv, table, *tensors, out, B * L, table.shape[0], q_norm.eps if q_norm is not None else 0.0, q_factor,
        TOKENS=tokens, HEADS=H, HAS_NORM=q_norm is not None, num_warps=4,
    )  # fmt: skip
    return out[:, :, 0], out[:, :, 1]


@triton.jit
def _channel_sums(x_ptr, sums_ptr, num_pixels, steps, C: tl.constexpr, ROWS: tl.constexpr):
    # One program: `steps` tiles of ROWS pixels of one image, added place by place and reduced once at the end.
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    total = tl.zeros([ROWS, C], tl.float32)
    squares = tl.zeros([ROWS, C], tl.float32)
    for step in range(steps):
        pixel = (tl.program_id(0) * steps + step) * ROWS + tl.arange(0, ROWS)
        offset = (image * num_pixels + pixel)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + offset, mask=(pixel < num_pixels)[:, None], other=0.0).to(tl.float32)
        total += x
        squares += x * x
    tl.atomic_add(sums_ptr + image * 2 * C + c, tl.sum(total, 0))
    tl.atomic_add(sums_ptr + image * 2 * C + C + c, tl.sum(squares, 0))


@triton.jit
def _affine_relu_pad(
    x_ptr, factor_ptr, before_ptr, out_ptr, H, W, out_h, out_w,
    C: tl.constexpr, ROWS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BEFORE: tl.constexpr,
    RELU: tl.constexpr, BORDER: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = place < out_h * out_w
    row = tl.minimum(tl.maximum(place // out_w - BORDER, 0), H - 1)
    column = tl.minimum(tl.maximum(place % out_w - BORDER, 0), W - 1)
    x = tl.load(
        x_ptr + ((image * H + row) * W + column)[:, None] * C + c[None, :], mask=alive[:, None], other=0.0
    ).to(tl.float32)
    if HAS_NORM:
        # The factors already hold `before`.
        slope = tl.load(factor_ptr + image * 2 * C + c)
        shift = tl.load(factor_ptr + image * 2 * C + C + c)
        x = x * slope[None, :] + shift[None, :]
    elif HAS_BEFORE:
        x = x + tl.load(before_ptr + c).to(tl.float32)[None, :]
    if RELU:
        x = tl.maximum(x, 0.0)
    target = out_ptr + (image * out_h * out_w + place)[:, None] * C + c[None, :]
    tl.store(target, x.to(out_ptr.dtype.element_ty), mask=alive[:, None])


def norm_relu_pad(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    relu: bool,
    pad: bool,
    before: Tensor | None,
) -> Tensor:
    """See `fused.norm_relu_pad`; channels must be a power of two, else torch does it."""
    B, C, H, W = x.shape
    if C & (C - 1) or C < 8:
        return norm_relu_pad_reference(x, num_groups, weight, bias, relu=relu, pad=pad, before=before)
    x = x.contiguous(memory_format=torch.channels_last)
    rows = max(1, 4096 // C)
    factors = x
    if num_groups:
        assert weight is not None
        assert bias is not None
        raw = torch.zeros(B, 2, C, device=x.device, dtype=torch.float32)
        # About eight programs for each multiprocessor of the largest chips, so that few meet in an atomic add.
        steps = max(1, min(32, B * H * W // (rows * 1056)))
        _channel_sums[(triton.cdiv(H * W, rows * steps), B)](x, raw, H * W, steps, C=C, ROWS=rows)
        total, squares = raw.unbind(1)
        offset = before.float() if before is not None else torch.zeros(C, device=x.device)
        # Sums of x + offset from the sums of x.
        squares = squares + 2 * offset * total + H * W * offset * offset
        total = total + H * W * offset
        count = H * W * (C // num_groups)
        mean = total.view(B, num_groups, -1).sum(-1) / count
        square = squares.view(B, num_groups, -1).sum(-1) / count
        inverse = ((square - mean * mean).clamp_min(0) + 1e-5).rsqrt()
        slope = (weight.float().view(num_groups, -1) * inverse[:, :, None]).flatten(1)
        shift = bias.float() - mean.repeat_interleave(C // num_groups, dim=1) * slope + offset * slope
        factors = torch.stack([slope, shift], dim=1).contiguous()
    border = 1 if pad else 0
    out = torch.empty(
        (B, C, H + 2 * border, W + 2 * border),
        device=x.device,
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    out_h, out_w = out.shape[-2:]
    _affine_relu_pad[(triton.cdiv(out_h * out_w, rows), B)](
        x, factors, before if before is not None else x, out, H, W, out_h, out_w,
        C=C, ROWS=rows, HAS_NORM=bool(num_groups), HAS_BEFORE=before is not None, RELU=relu, BORDER=border,
    )  # fmt: skip
    return out


@triton.jit
def _resize_pad(
    x_ptr, out_ptr, H, W, out_h, out_w, step_y, step_x, C: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = (place < (out_h + 2) * (out_w + 2))[:, None]
    row = tl.minimum(tl.maximum(place // (out_w + 2) - 1, 0), out_h - 1).to(tl.float32)
    column = tl.minimum(tl.maximum(place % (out_w + 2) - 1, 0), out_w - 1).to(tl.float32)
    y = tl.maximum((row + 0.5) * step_y - 0.5, 0.0)
    x = tl.maximum((column + 0.5) * step_x - 0.5, 0.0)
    y0, x0 = y.to(tl.int32), x.to(tl.int32)
    fy, fx = (y - y0.to(tl.float32))[:, None], (x - x0.to(tl.float32))[:, None]
    y1, x1 = tl.minimum(y0 + 1, H - 1), tl.minimum(x0 + 1, W - 1)
    top, bottom = (image * H + y0) * W, (image * H + y1) * W
    a = tl.load(x_ptr + (top + x0)[:, None] * C + c[None, :], mask=alive, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + (top + x1)[:, None] * C + c[None, :], mask=alive, other=0.0).to(tl.float32)
    d = tl.load(x_ptr + (bottom + x0)[:, None] * C + c[None, :], mask=alive, other=0.0).to(tl.float32)
    e = tl.load(x_ptr + (bottom + x1)[:, None] * C + c[None, :], mask=alive, other=0.0).to(tl.float32)
    value = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * d + fx * e)
    target = out_ptr + (image * (out_h + 2) * (out_w + 2) + place)[:, None] * C + c[None, :]
    tl.store(target, value.to(out_ptr.dtype.element_ty), mask=alive)


def resize_pad(x: Tensor, height: int, width: int) -> Tensor:
    """See `fused.resize_pad`; channels must be a power of two, else torch does it."""
    B, C, H, W = x.shape
    if C & (C - 1) or C < 8:
        return resize_pad_reference(x, height, width)
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        (B, C, height + 2, width + 2), device=x.device, dtype=x.dtype, memory_format=torch.channels_last
    )
    rows = max(1, 2048 // C)
    _resize_pad[(triton.cdiv((height + 2) * (width + 2), rows), B)](
        x, out, H, W, height, width, H / height, W / width, C=C, ROWS=rows
    )
    return out


@triton.jit
def _relu_product(
    x_ptr, other_ptr, bias_ptr, weight_ptr, out_bias_ptr, out_ptr, num_pixels,
    C: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    alive = pixel < num_pixels
    x = tl.load(
        x_ptr + (image * num_pixels + pixel)[:, None] * C + c[None, :], mask=alive[:, None], other=0.0
    )
    other = tl.load(other_ptr + pixel[:, None] * C + c[None, :], mask=alive[:, None], other=0.0)
    x = x.to(tl.float32) + other.to(tl.float32) + tl.load(bias_ptr + c).to(tl.float32)[None, :]
    x = tl.maximum(x, 0.0)
    for o in tl.static_range(OUT):
        weight = tl.load(weight_ptr + o * C + c)
        y = tl.sum(x * weight[None, :], 1) + tl.load(out_bias_ptr + o)
        tl.store(out_ptr + (image * num_pixels + pixel) * OUT + o, y, mask=alive)


def relu_product(x: Tensor, other: Tensor, bias: Tensor, weight: Tensor, out_bias: Tensor) -> Tensor:
    """See `fused.relu_product`; channels must be a power of two, else torch does it."""
    B, C, H, W = x.shape
    if C & (C - 1):
        return relu_product_reference(x, other, bias, weight, out_bias)
    x = x.contiguous(memory_format=torch.channels_last)
    other = other.contiguous(memory_format=torch.channels_last)
    out = torch.empty(B, H, W, len(weight), device=x.device, dtype=torch.float32)
    rows = max(1, 4096 // C)
    _relu_product[(triton.cdiv(H * W, rows), B)](
        x, other, bias, weight.contiguous(), out_bias, out, H * W, C=C, OUT=len(weight), ROWS=rows
    )
    return out


@triton.jit
def _add(
    x_ptr, other_ptr, bias_ptr, size, other_step, C,
    BLOCK: tl.constexpr, HAS_OTHER: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    alive = place < size
    target = x_ptr + image * size + place
    x = tl.load(target, mask=alive).to(tl.float32)
    if HAS_OTHER:
        x += tl.load(other_ptr + image * other_step + place, mask=alive).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + place % C, mask=alive).to(tl.float32)
    tl.store(target, x.to(x_ptr.dtype.element_ty), mask=alive)


def add(x: Tensor, other: Tensor | None, bias: Tensor | None) -> Tensor:
    """See `fused.add`."""
    x = x.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    size = C * H * W
    step = 0
    if other is not None:
        other = other.contiguous(memory_format=torch.channels_last)
        assert other.shape[1:] == x.shape[1:]
        step = size if len(other) == B else 0
        assert step or len(other) == 1
    _add[(triton.cdiv(size, 2048), B)](
        x, other if other is not None else x, bias if bias is not None else x, size, step, C,
        BLOCK=2048, HAS_OTHER=other is not None, HAS_BIAS=bias is not None,
    )  # fmt: skip
    return x
