"""Triton kernels of a block's operators; `reference.py` defines what they compute. One program a token, but for the
convolution, whose programs walk down the rows of a frame."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def modulated_norm(
    x_ptr, shift_ptr, scale_ptr, out_ptr, T, S, C, shift_b, shift_t, scale_b, scale_t, eps, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // (T * S), (row // S) % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    x = tl.load(x_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / C
    centred = tl.where(mask, x - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
    shift = tl.load(shift_ptr + b * shift_b + t * shift_t + c, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + b * scale_b + t * scale_t + c, mask=mask, other=0.0).to(tl.float32)
    out = centred * inverse * (1.0 + scale) + shift
    tl.store(out_ptr + row * C + c, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_add(
    x_ptr, y_ptr, gate_ptr, extra_ptr, out_ptr, T, S, C, gate_b, gate_t,
    HAS_EXTRA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // (T * S), (row // S) % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    x = tl.load(x_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + b * gate_b + t * gate_t + c, mask=mask, other=0.0).to(tl.float32)
    out = x + gate * y
    if HAS_EXTRA:
        out += tl.load(extra_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * C + c, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _silu(x, FAST: tl.constexpr):
    # x sigmoid(x) = x/2 (1 + tanh(x/2)); the chip's own tanh is good to 2^-11, below bfloat16's rounding.
    if FAST:
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return half + half * tanh
    else:
        return x * tl.sigmoid(x)


@triton.jit
def _row(x_ptr, base, h, w, c, H, W, F2, inside, FAST: tl.constexpr):
    """SiLU of one row of the picture at columns w; zeros outside of it."""
    mask = inside & (h < H) & ((w >= 0) & (w < W))[:, None]
    offset = base + (h * W + w).to(tl.int64)[:, None] * F2 + c[None, :]
    return _silu(tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32), FAST)


@triton.jit
def _tap(taps_ptr, k, c, F2, mask):
    return tl.load(taps_ptr + k * F2 + c, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def glu_conv(
    x_ptr, taps_ptr, bias_ptr, out_ptr, H, W, F,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    # Each row is read at three shifts and added to the outputs of the row above, its own and the row below, which
    # stay in registers until their last row has come.
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    w = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    frame = tl.program_id(2).to(tl.int64)
    here = c < F
    inside = here[None, :]
    F2 = 2 * F
    base = frame * H * W * F2
    value_bias = tl.load(bias_ptr + c, mask=here, other=0.0).to(tl.float32)[None, :]
    gate_bias = tl.load(bias_ptr + F + c, mask=here, other=0.0).to(tl.float32)[None, :]
    value_above = tl.zeros([COLUMNS, CHANNELS], tl.float32) + value_bias
    gate_above = tl.zeros([COLUMNS, CHANNELS], tl.float32) + gate_bias
    value_now = tl.zeros([COLUMNS, CHANNELS], tl.float32) + value_bias
    gate_now = tl.zeros([COLUMNS, CHANNELS], tl.float32) + gate_bias
    for h in range(H + 1):
        value_next = tl.zeros([COLUMNS, CHANNELS], tl.float32) + value_bias
        gate_next = tl.zeros([COLUMNS, CHANNELS], tl.float32) + gate_bias
        for dx in tl.static_range(3):
            value = _row(x_ptr, base, h, w + dx - 1, c, H, W, F2, inside, FAST)
            gate = _row(x_ptr, base + F, h, w + dx - 1, c, H, W, F2, inside, FAST)
            value_above += value * _tap(taps_ptr, 6 + dx, c, F2, here)
            value_now += value * _tap(taps_ptr, 3 + dx, c, F2, here)
            value_next += value * _tap(taps_ptr, dx, c, F2, here)
            gate_above += gate * _tap(taps_ptr, 6 + dx, F + c, F2, here)
            gate_now += gate * _tap(taps_ptr, 3 + dx, F + c, F2, here)
            gate_next += gate * _tap(taps_ptr, dx, F + c, F2, here)
        # Row h was the last that row h - 1 sees.
        offset = (frame * H * W + (h - 1) * W + w)[:, None] * F + c[None, :]
        mask = inside & (w < W)[:, None] & (h > 0)
        tl.store(
            out_ptr + offset, (value_above * _silu(gate_above, FAST)).to(out_ptr.dtype.element_ty), mask=mask
        )
        value_above, value_now = value_now, value_next
        gate_above, gate_now = gate_now, gate_next


@triton.jit
def _pairs(
    ptr, head, first, SIZE: tl.constexpr, HEADS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """Channels first..first + 2 COUNT of every head, read in one piece, as even and odd ones."""
    channel = tl.arange(0, 2 * BLOCK)[None, :]
    mask = (head < HEADS) & (channel < 2 * COUNT)
    x = tl.load(ptr + head * SIZE + first + channel, mask=mask, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(x, [x.shape[0], BLOCK, 2]))


@triton.jit
def _store_pairs(
    ptr, even, odd, head, first, SIZE: tl.constexpr, HEADS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    channel = tl.arange(0, 2 * BLOCK)[None, :]
    mask = (head < HEADS) & (channel < 2 * COUNT)
    x = tl.reshape(tl.join(even, odd), [even.shape[0], 2 * BLOCK])
    tl.store(ptr + head * SIZE + first + channel, x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_rotate(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, matrix_ptr, out_ptr, rows_per_clip, row_step, eps, direction,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_MATRIX: tl.constexpr,
    BH: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source, target = x_ptr + row * row_step, out_ptr + row * (HEADS * SIZE)
    head = tl.arange(0, BH)[:, None]
    # With a matrix the first half of a head, SIZE / 8 groups of four, and the second, SIZE / 4 pairs, part.
    FIRST: tl.constexpr = SIZE // 2 if HAS_MATRIX else 0
    PAIRS: tl.constexpr = (SIZE - FIRST) // 2
    even, odd = _pairs(source, head, FIRST, SIZE, HEADS, PAIRS, BP)
    if HAS_MATRIX:
        low, high = _pairs(source, head, 0, SIZE, HEADS, PAIRS, BP)
    if HAS_WEIGHT:
        total = tl.sum(tl.sum(even * even + odd * odd, 1), 0)
        if HAS_MATRIX:
            total += tl.sum(tl.sum(low * low + high * high, 1), 0)
        inverse = 1.0 / tl.sqrt(total / (HEADS * SIZE) + eps)
        weight_even, weight_odd = _pairs(weight_ptr, head, FIRST, SIZE, HEADS, PAIRS, BP)
        even, odd = even * inverse * weight_even, odd * inverse * weight_odd
        if HAS_MATRIX:
            weight_low, weight_high = _pairs(weight_ptr, head, 0, SIZE, HEADS, PAIRS, BP)
            low, high = low * inverse * weight_low, high * inverse * weight_high
    pair = tl.arange(0, BP)[None, :]
    angle = (row % rows_per_clip) * PAIRS + pair
    cos = tl.load(cos_ptr + angle, mask=pair < PAIRS, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=pair < PAIRS, other=0.0).to(tl.float32) * direction
    _store_pairs(target, even * cos - odd * sin, even * sin + odd * cos, head, FIRST, SIZE, HEADS, PAIRS, BP)
    if HAS_MATRIX:
        # Channels 0, 2 and 1, 3 of each group of four.
        x0, x2 = tl.split(tl.reshape(low, [BH, BP // 2, 2]))
        x1, x3 = tl.split(tl.reshape(high, [BH, BP // 2, 2]))
        m = matrix_ptr + row * 16
        y0 = x0 * tl.load(m) + x1 * tl.load(m + 1) + x2 * tl.load(m + 2) + x3 * tl.load(m + 3)
        y1 = x0 * tl.load(m + 4) + x1 * tl.load(m + 5) + x2 * tl.load(m + 6) + x3 * tl.load(m + 7)
        y2 = x0 * tl.load(m + 8) + x1 * tl.load(m + 9) + x2 * tl.load(m + 10) + x3 * tl.load(m + 11)
        y3 = x0 * tl.load(m + 12) + x1 * tl.load(m + 13) + x2 * tl.load(m + 14) + x3 * tl.load(m + 15)
        low = tl.reshape(tl.join(y0, y2), [BH, BP])
        high = tl.reshape(tl.join(y1, y3), [BH, BP])
        _store_pairs(target, low, high, head, 0, SIZE, HEADS, PAIRS, BP)
