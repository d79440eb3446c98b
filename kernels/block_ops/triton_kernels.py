"""Triton kernels of a block's operators; `reference.py` defines what they compute. A program takes one or some tokens
of a frame; the convolution's walk along its rows."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def modulated_norm(
    x_ptr, shift_ptr, scale_ptr, out_ptr, T, S, C, shift_b, shift_t, scale_b, scale_t, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1).to(tl.int64)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    shift = tl.load(shift_ptr + b * shift_b + t * shift_t + c, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + b * scale_b + t * scale_t + c, mask=mask, other=0.0).to(tl.float32)
    for r in range(ROWS):
        token = tl.program_id(0) * ROWS + r
        there = mask & (token < S)
        start = (frame * S + token) * C
        x = tl.load(x_ptr + start + c, mask=there, other=0.0).to(tl.float32)
        mean = tl.sum(x, 0) / C
        centred = tl.where(mask, x - mean, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
        out = centred * inverse * (1.0 + scale) + shift
        tl.store(out_ptr + start + c, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def gated_add(
    x_ptr, y_ptr, gate_ptr, extra_ptr, out_ptr, T, S, C, gate_b, gate_t,
    HAS_EXTRA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1).to(tl.int64)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    place = (frame * S + tl.program_id(0)) * C + c
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + b * gate_b + t * gate_t + c, mask=mask, other=0.0).to(tl.float32)
    out = x + gate * y
    if HAS_EXTRA:
        out += tl.load(extra_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


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
def _row(x_ptr, base, h, w, c, H, W, F2, mask, FAST: tl.constexpr):
    """SiLU of one token's channels c; zeros outside of the picture."""
    there = mask & (h >= 0) & (h < H) & (w < W)
    offset = base + (h * W + w).to(tl.int64) * F2 + c
    return _silu(tl.load(x_ptr + offset, mask=there, other=0.0).to(tl.float32), FAST)


@triton.jit
def _tap(taps_ptr, k, c, F2, mask):
    return tl.load(taps_ptr + k * F2 + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _column(x_ptr, base, h, w, c, H, W, F2, mask, FAST: tl.constexpr):
    """SiLU of the six rows above, at and below four output rows that start with h."""
    return (
        _row(x_ptr, base, h - 1, w, c, H, W, F2, mask, FAST),
        _row(x_ptr, base, h, w, c, H, W, F2, mask, FAST),
        _row(x_ptr, base, h + 1, w, c, H, W, F2, mask, FAST),
        _row(x_ptr, base, h + 2, w, c, H, W, F2, mask, FAST),
        _row(x_ptr, base, h + 3, w, c, H, W, F2, mask, FAST),
        _row(x_ptr, base, h + 4, w, c, H, W, F2, mask, FAST),
    )


@triton.jit
def _mix(a0, a1, a2, a3, a4, a5, t0, t1, t2):
    """What a column of six rows adds to four output rows through one column of taps."""
    return (
        a0 * t0 + a1 * t1 + a2 * t2,
        a1 * t0 + a2 * t1 + a3 * t2,
        a2 * t0 + a3 * t1 + a4 * t2,
        a3 * t0 + a4 * t1 + a5 * t2,
    )


@triton.jit
def _write(out_ptr, place, value, gate, mask, FAST: tl.constexpr):
    tl.store(out_ptr + place, (value * _silu(gate, FAST)).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def glu_conv(x_ptr, taps_ptr, bias_ptr, out_ptr, H, W, F, CHANNELS: tl.constexpr, FAST: tl.constexpr):
    # Four rows of the picture, walked from left to right: every column is read once (with a row above and one below)
    # and added to the outputs of the column before, its own and the next, which stay in registers until their last
    # column has come: p of the column before, n of its own, x of the next; v values, g gates.
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    h = tl.program_id(1) * 4
    frame = tl.program_id(2).to(tl.int64)
    mask = c < F
    F2 = 2 * F
    base, d = frame * H * W * F2, c + F
    vt00 = _tap(taps_ptr, 0, c, F2, mask)
    vt01 = _tap(taps_ptr, 1, c, F2, mask)
    vt02 = _tap(taps_ptr, 2, c, F2, mask)
    vt10 = _tap(taps_ptr, 3, c, F2, mask)
    vt11 = _tap(taps_ptr, 4, c, F2, mask)
    vt12 = _tap(taps_ptr, 5, c, F2, mask)
    vt20 = _tap(taps_ptr, 6, c, F2, mask)
    vt21 = _tap(taps_ptr, 7, c, F2, mask)
    vt22 = _tap(taps_ptr, 8, c, F2, mask)
    vb = _tap(bias_ptr, 0, c, F2, mask)
    gt00 = _tap(taps_ptr, 0, d, F2, mask)
    gt01 = _tap(taps_ptr, 1, d, F2, mask)
    gt02 = _tap(taps_ptr, 2, d, F2, mask)
    gt10 = _tap(taps_ptr, 3, d, F2, mask)
    gt11 = _tap(taps_ptr, 4, d, F2, mask)
    gt12 = _tap(taps_ptr, 5, d, F2, mask)
    gt20 = _tap(taps_ptr, 6, d, F2, mask)
    gt21 = _tap(taps_ptr, 7, d, F2, mask)
    gt22 = _tap(taps_ptr, 8, d, F2, mask)
    gb = _tap(bias_ptr, 0, d, F2, mask)
    vp0, vn0 = vb, vb
    vp1, vn1 = vb, vb
    vp2, vn2 = vb, vb
    vp3, vn3 = vb, vb
    gp0, gn0 = gb, gb
    gp1, gn1 = gb, gb
    gp2, gn2 = gb, gb
    gp3, gn3 = gb, gb
    for w in range(W + 1):
        a0, a1, a2, a3, a4, a5 = _column(x_ptr, base, h, w, c, H, W, F2, mask, FAST)
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, vt02, vt12, vt22)
        vp0, vp1, vp2, vp3 = vp0 + m0, vp1 + m1, vp2 + m2, vp3 + m3
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, vt01, vt11, vt21)
        vn0, vn1, vn2, vn3 = vn0 + m0, vn1 + m1, vn2 + m2, vn3 + m3
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, vt00, vt10, vt20)
        vx0, vx1, vx2, vx3 = vb + m0, vb + m1, vb + m2, vb + m3
        a0, a1, a2, a3, a4, a5 = _column(x_ptr, base, h, w, d, H, W, F2, mask, FAST)
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, gt02, gt12, gt22)
        gp0, gp1, gp2, gp3 = gp0 + m0, gp1 + m1, gp2 + m2, gp3 + m3
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, gt01, gt11, gt21)
        gn0, gn1, gn2, gn3 = gn0 + m0, gn1 + m1, gn2 + m2, gn3 + m3
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, gt00, gt10, gt20)
        gx0, gx1, gx2, gx3 = gb + m0, gb + m1, gb + m2, gb + m3
        # Column w was the last that column w - 1 sees.
        place = ((frame * H + h) * W + w - 1) * F + c
        there = mask & (w > 0)
        _write(out_ptr, place, vp0, gp0, there, FAST)
        _write(out_ptr, place + W * F, vp1, gp1, there & (h + 1 < H), FAST)
        _write(out_ptr, place + 2 * W * F, vp2, gp2, there & (h + 2 < H), FAST)
        _write(out_ptr, place + 3 * W * F, vp3, gp3, there & (h + 3 < H), FAST)
        vp0, vn0 = vn0, vx0
        vp1, vn1 = vn1, vx1
        vp2, vn2 = vn2, vx2
        vp3, vn3 = vn3, vx3
        gp0, gn0 = gn0, gx0
        gp1, gn1 = gn1, gx1
        gp2, gn2 = gn2, gx2
        gp3, gn3 = gn3, gx3


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
