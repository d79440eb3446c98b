"""Triton kernels behind `fused.py`. Imported on CUDA only; the twins there say what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

# pyright: reportUnreachable=false, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false


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
    qkv_ptr, table_ptr, qw_ptr, qb_ptr, kw_ptr, kb_ptr, out_ptr, num_tokens, n, num_heads, eps,
    ROWS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    # One program: ROWS tokens, one of q and k, head after head. A row of 64 is normalised and each
    # value needs its partner 16 dims away; the partner is read a second time (from cache) instead of shuffled.
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    which = tl.program_id(1)
    e = tl.arange(0, 64)
    partner = e ^ 16
    alive = token < num_tokens
    place = token % n
    cosine = tl.load(table_ptr + place[:, None] * 128 + e[None, :], mask=alive[:, None], other=0.0)
    sine = tl.load(table_ptr + place[:, None] * 128 + 64 + e[None, :], mask=alive[:, None], other=0.0)
    if HAS_NORM:
        w_ptr = qw_ptr if which == 0 else kw_ptr
        b_ptr = qb_ptr if which == 0 else kb_ptr
        w, wp = tl.load(w_ptr + e).to(tl.float32), tl.load(w_ptr + partner).to(tl.float32)
        b, bp = tl.load(b_ptr + e).to(tl.float32), tl.load(b_ptr + partner).to(tl.float32)
    for head in range(0, num_heads):
        source = qkv_ptr + ((token * 3 + which) * num_heads + head)[:, None] * 64
        x = tl.load(source + e[None, :], mask=alive[:, None], other=0.0).to(tl.float32)
        y = tl.load(source + partner[None, :], mask=alive[:, None], other=0.0).to(tl.float32)
        if HAS_NORM:
            mean = tl.sum(x, 1) / 64
            centred = x - mean[:, None]
            scale = tl.rsqrt(tl.sum(centred * centred, 1) / 64 + eps)
            # Rounded to the storage type between norm and rotation, as the plain version is.
            x = (
                (centred * scale[:, None] * w[None, :] + b[None, :])
                .to(out_ptr.dtype.element_ty)
                .to(tl.float32)
            )
            y = ((y - mean[:, None]) * scale[:, None] * wp[None, :] + bp[None, :]).to(
                out_ptr.dtype.element_ty
            )
            y = y.to(tl.float32)
        rotated = x * cosine + y * sine
        target = out_ptr + ((token * 2 + which) * num_heads + head)[:, None] * 64
        tl.store(target + e[None, :], rotated.to(out_ptr.dtype.element_ty), mask=alive[:, None])


def rotate_qk(
    qkv: Tensor, table: Tensor, q_norm: nn.LayerNorm | None, k_norm: nn.LayerNorm | None
) -> tuple[Tensor, Tensor]:
    """See `fused.rotate_qk`."""
    qkv = qkv.contiguous()
    B, L, _, H, E = qkv.shape
    out = qkv.new_empty(B, L, 2, H, E)
    tensors = (table,) * 4
    if q_norm is not None and k_norm is not None:
        tensors = (q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias)
    rows = 16
    _rotate_qk[(triton.cdiv(B * L, rows), 2)](
        qkv, table, *tensors, out, B * L, table.shape[0], H, q_norm.eps if q_norm is not None else 0.0,
        ROWS=rows, HAS_NORM=q_norm is not None, num_warps=4,
    )  # fmt: skip
    return out[:, :, 0], out[:, :, 1]


@triton.jit
def _channel_sums(x_ptr, sums_ptr, num_pixels, C: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    total = tl.zeros([C], tl.float32)
    squares = tl.zeros([C], tl.float32)
    for step in range(STEPS):
        pixel = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        offset = (image * num_pixels + pixel)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + offset, mask=(pixel < num_pixels)[:, None], other=0.0).to(tl.float32)
        total += tl.sum(x, 0)
        squares += tl.sum(x * x, 0)
    tl.atomic_add(sums_ptr + image * 2 * C + c, total)
    tl.atomic_add(sums_ptr + image * 2 * C + C + c, squares)


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
        from .fused import norm_relu_pad_reference

        return norm_relu_pad_reference(x, num_groups, weight, bias, relu=relu, pad=pad, before=before)
    x = x.contiguous(memory_format=torch.channels_last)
    rows = max(1, 4096 // C)
    factors = x
    if num_groups:
        assert weight is not None
        assert bias is not None
        raw = torch.zeros(B, 2, C, device=x.device, dtype=torch.float32)
        steps = 8
        _channel_sums[(triton.cdiv(H * W, rows * steps), B)](x, raw, H * W, C=C, ROWS=rows, STEPS=steps)
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


@triton.jit
def _bounded_attention(
    q_desc, k_desc, v_desc, o_desc, L, num_heads, scale, bound,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Base-2 exponents: scale and bound carry log2(e). One program: BM queries of one head against all keys.
    m0 = tl.program_id(0) * BM
    batch = tl.program_id(1) // num_heads
    head = tl.program_id(1) % num_heads
    row = batch * L
    q = q_desc.load([row + m0, head * 64])
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, 64], tl.float32)
    num_full = L // BN
    for i in tl.range(0, num_full, num_stages=STAGES):
        k = k_desc.load([row + i * BN, head * 64])
        p = tl.exp2(tl.dot(q, k.T) * scale - bound)
        total += tl.sum(p, 1)
        v = v_desc.load([row + i * BN, head * 64])
        acc = tl.dot(p.to(v.dtype), v, acc)
    if num_full * BN < L:
        n0 = num_full * BN
        k = k_desc.load([row + n0, head * 64])
        p = tl.exp2(tl.dot(q, k.T) * scale - bound)
        p = tl.where((n0 + tl.arange(0, BN) < L)[None, :], p, 0.0)
        total += tl.sum(p, 1)
        v = v_desc.load([row + n0, head * 64])
        acc = tl.dot(p.to(v.dtype), v, acc)
    o_desc.store([row + m0, head * 64], (acc / total[:, None]).to(q.dtype))


def bounded_attention(
    q: Tensor, k: Tensor, v: Tensor, bound: float, *, block: tuple[int, int, int, int] = (128, 64, 3, 4)
) -> Tensor:
    """See `fused.bounded_attention`; `block` is queries, keys, pipeline stages, warps."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    B, L, H, E = q.shape
    block_m, block_n, stages, warps = block
    if B > 1 and L % block_m:
        # A tile that crosses the end of a sequence would write into the next one.
        parts = [
            bounded_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], bound, block=block) for b in range(B)
        ]
        return torch.cat(parts)
    out = torch.empty(B, L, H * E, device=q.device, dtype=q.dtype)

    def rows(t: Tensor, size: int) -> TensorDescriptor:
        # (B, L, H, 64) with tokens `stride(1)` apart is a matrix of B * L rows; every view we pass is of this kind.
        assert t.stride(-1) == 1
        assert t.stride(2) == E
        assert B == 1 or t.stride(0) == L * t.stride(1)
        return TensorDescriptor(t, [B * L, H * E], [t.stride(1), 1], [size, E])

    log2e = 1.4426950408889634
    _bounded_attention[(triton.cdiv(L, block_m), B * H)](
        rows(q, block_m), rows(k, block_n), rows(v, block_n), rows(out.view(B, L, H, E), block_m),
        L, H, E**-0.5 * log2e, bound * log2e,
        BM=block_m, BN=block_n, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return out
