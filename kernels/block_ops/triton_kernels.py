"""Triton kernels of a block's operators, forward and backward; `reference.py` defines what they compute. A program
takes one or some tokens of a frame; the convolution's walk along its rows. What a gradient sums over tokens leaves a
program as one partial sum, so that nothing is added atomically and results are the same every time."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def added(x_ptr, y_ptr, sum_ptr, place, there, HAS_ADDED: tl.constexpr):
    """A row of x; of x + y, which is also stored, if HAS_ADDED."""
    x = tl.load(x_ptr + place, mask=there, other=0.0).to(tl.float32)
    if HAS_ADDED:
        total = (x + tl.load(y_ptr + place, mask=there, other=0.0).to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, total, mask=there)
        x = total.to(tl.float32)
    return x


@triton.jit
def modulated_norm(
    x_ptr, y_ptr, shift_ptr, scale_ptr, sum_ptr, out_ptr, T, S, C, shift_b, shift_t, scale_b, scale_t, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_ADDED: tl.constexpr,
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
        x = added(x_ptr, y_ptr, sum_ptr, start + c, there, HAS_ADDED)
        mean = tl.sum(x, 0) / C
        centred = tl.where(mask, x - mean, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
        out = centred * inverse * (1.0 + scale) + shift
        tl.store(out_ptr + start + c, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def modulated_norm_backward(
    x_ptr, scale_ptr, dout_ptr, dx_ptr, part_ptr, T, S, C, scale_b, scale_t, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the tokens; part (B T, tiles, 2, C) sums of those of shift and scale."""
    frame, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    scale = 1.0 + tl.load(scale_ptr + b * scale_b + t * scale_t + c, mask=mask, other=0.0).to(tl.float32)
    dshift = tl.zeros([BLOCK], tl.float32)
    dscale = tl.zeros([BLOCK], tl.float32)
    for r in range(ROWS):
        token = tile * ROWS + r
        there = mask & (token < S)
        start = (frame * S + token) * C
        x = tl.load(x_ptr + start + c, mask=there, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + start + c, mask=there, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - tl.sum(x, 0) / C, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
        normed = centred * inverse
        dshift += dout
        dscale += dout * normed
        dnormed = dout * scale
        along = tl.sum(dnormed * normed, 0) / C
        dx = inverse * (dnormed - tl.sum(dnormed, 0) / C - normed * along)
        tl.store(dx_ptr + start + c, dx.to(dx_ptr.dtype.element_ty), mask=there)
    part = part_ptr + (frame * tl.num_programs(0) + tile) * 2 * C + c
    tl.store(part, dshift, mask=mask)
    tl.store(part + C, dscale, mask=mask)


@triton.jit
def gated_add_backward(
    y_ptr, gate_ptr, dout_ptr, dy_ptr, part_ptr, T, S, C, gate_b, gate_t,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of y; part (B T, tiles, C) sums of the gate's."""
    frame, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    gate = tl.load(gate_ptr + b * gate_b + t * gate_t + c, mask=mask, other=0.0).to(tl.float32)
    dgate = tl.zeros([BLOCK], tl.float32)
    for r in range(ROWS):
        token = tile * ROWS + r
        there = mask & (token < S)
        place = (frame * S + token) * C + c
        dout = tl.load(dout_ptr + place, mask=there, other=0.0).to(tl.float32)
        dgate += dout * tl.load(y_ptr + place, mask=there, other=0.0).to(tl.float32)
        tl.store(dy_ptr + place, (dout * gate).to(dy_ptr.dtype.element_ty), mask=there)
    tl.store(part_ptr + (frame * tl.num_programs(0) + tile) * C + c, dgate, mask=mask)


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
def gated_shift_add(
    x_ptr, y_ptr, z_ptr, gate_ptr, first_ptr, inner_ptr, out_ptr, T, S, C, gate_b, gate_t,
    HAS_FIRST: tl.constexpr, HAS_INNER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame, s = tl.program_id(1).to(tl.int64), tl.program_id(0)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    row = frame * S + s
    total = tl.load(y_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(z_ptr + row * 3 * C + C + c, mask=mask, other=0.0).to(tl.float32)
    earlier = z_ptr + (row - S) * 3 * C + c
    total += tl.load(earlier, mask=mask & (t > 0), other=0.0).to(tl.float32)
    if HAS_FIRST:
        total += tl.load(first_ptr + (b * S + s) * C + c, mask=mask & (t == 0), other=0.0).to(tl.float32)
    later = tl.load(z_ptr + (row + S) * 3 * C + 2 * C + c, mask=mask & (t + 1 < T), other=0.0).to(tl.float32)
    if HAS_INNER:
        later *= tl.load(inner_ptr + t + 1, mask=t + 1 < T, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + b * gate_b + t * gate_t + c, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * C + c, (x + gate * (total + later)).to(out_ptr.dtype.element_ty), mask=mask)


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
def _write(out_ptr, dout_ptr, row, c, F, value, gate, mask, FAST: tl.constexpr, BACKWARD: tl.constexpr):
    """value * SiLU(gate) of one token; backward the gradients of both, one after the other in a row of 2 F."""
    place = row * F + c
    if BACKWARD:
        dout = tl.load(dout_ptr + place, mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
        wide = out_ptr + row * 2 * F + c
        tl.store(wide, (dout * gate * sigmoid).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(wide + F, (dout * value * slope).to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(out_ptr + place, (value * _silu(gate, FAST)).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def glu_conv(
    x_ptr, taps_ptr, bias_ptr, dout_ptr, out_ptr, H, W, F,
    CHANNELS: tl.constexpr, FAST: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
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
        row = (frame * H + h) * W + w - 1
        there = mask & (w > 0)
        _write(out_ptr, dout_ptr, row, c, F, vp0, gp0, there, FAST, BACKWARD)
        _write(out_ptr, dout_ptr, row + W, c, F, vp1, gp1, there & (h + 1 < H), FAST, BACKWARD)
        _write(out_ptr, dout_ptr, row + 2 * W, c, F, vp2, gp2, there & (h + 2 < H), FAST, BACKWARD)
        _write(out_ptr, dout_ptr, row + 3 * W, c, F, vp3, gp3, there & (h + 3 < H), FAST, BACKWARD)
        vp0, vn0 = vn0, vx0
        vp1, vn1 = vn1, vx1
        vp2, vn2 = vn2, vx2
        vp3, vn3 = vn3, vx3
        gp0, gn0 = gn0, gx0
        gp1, gn1 = gn1, gx1
        gp2, gn2 = gn2, gx2
        gp3, gn3 = gn3, gx3


@triton.jit
def _plain(x_ptr, base, h, w, c, H, W, F2, mask):
    """One token's channels c as they are; zeros outside of the picture."""
    there = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    return tl.load(x_ptr + base + (h * W + w).to(tl.int64) * F2 + c, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _six(x_ptr, base, h, w, c, H, W, F2, mask):
    return (
        _plain(x_ptr, base, h - 1, w, c, H, W, F2, mask),
        _plain(x_ptr, base, h, w, c, H, W, F2, mask),
        _plain(x_ptr, base, h + 1, w, c, H, W, F2, mask),
        _plain(x_ptr, base, h + 2, w, c, H, W, F2, mask),
        _plain(x_ptr, base, h + 3, w, c, H, W, F2, mask),
        _plain(x_ptr, base, h + 4, w, c, H, W, F2, mask),
    )


@triton.jit
def _back_through_silu(x_ptr, dx_ptr, base, h, w, c, H, W, F2, gradient, mask):
    there = mask & (h < H) & (w >= 0)
    place = base + (h * W + w).to(tl.int64) * F2 + c
    x = tl.load(x_ptr + place, mask=there, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(x)
    out = gradient * sigmoid * (1.0 + x * (1.0 - sigmoid))
    tl.store(dx_ptr + place, out.to(dx_ptr.dtype.element_ty), mask=there)


@triton.jit
def glu_conv_dx(x_ptr, taps_ptr, d_ptr, dx_ptr, H, W, F2, CHANNELS: tl.constexpr):
    """Gradient before the SiLU from that of the convolution's output: the same walk with the taps turned around."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    h = tl.program_id(1) * 4
    frame = tl.program_id(2).to(tl.int64)
    mask = c < F2
    base = frame * H * W * F2
    t00 = _tap(taps_ptr, 8, c, F2, mask)
    t01 = _tap(taps_ptr, 7, c, F2, mask)
    t02 = _tap(taps_ptr, 6, c, F2, mask)
    t10 = _tap(taps_ptr, 5, c, F2, mask)
    t11 = _tap(taps_ptr, 4, c, F2, mask)
    t12 = _tap(taps_ptr, 3, c, F2, mask)
    t20 = _tap(taps_ptr, 2, c, F2, mask)
    t21 = _tap(taps_ptr, 1, c, F2, mask)
    t22 = _tap(taps_ptr, 0, c, F2, mask)
    none = tl.zeros([CHANNELS], tl.float32)
    p0, p1, p2, p3 = none, none, none, none
    n0, n1, n2, n3 = none, none, none, none
    for w in range(W + 1):
        a0, a1, a2, a3, a4, a5 = _six(d_ptr, base, h, w, c, H, W, F2, mask)
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, t02, t12, t22)
        p0, p1, p2, p3 = p0 + m0, p1 + m1, p2 + m2, p3 + m3
        _back_through_silu(x_ptr, dx_ptr, base, h, w - 1, c, H, W, F2, p0, mask)
        _back_through_silu(x_ptr, dx_ptr, base, h + 1, w - 1, c, H, W, F2, p1, mask)
        _back_through_silu(x_ptr, dx_ptr, base, h + 2, w - 1, c, H, W, F2, p2, mask)
        _back_through_silu(x_ptr, dx_ptr, base, h + 3, w - 1, c, H, W, F2, p3, mask)
        m0, m1, m2, m3 = _mix(a0, a1, a2, a3, a4, a5, t01, t11, t21)
        p0, p1, p2, p3 = n0 + m0, n1 + m1, n2 + m2, n3 + m3
        n0, n1, n2, n3 = _mix(a0, a1, a2, a3, a4, a5, t00, t10, t20)


@triton.jit
def _meet(d0, d1, d2, d3, s0, s1, s2, s3, s4, s5):
    """What four tokens of a column and six of another add to the gradients of a column of taps."""
    return (
        d0 * s0 + d1 * s1 + d2 * s2 + d3 * s3,
        d0 * s1 + d1 * s2 + d2 * s3 + d3 * s4,
        d0 * s2 + d1 * s3 + d2 * s4 + d3 * s5,
    )


@triton.jit
def glu_conv_dtaps(x_ptr, d_ptr, part_ptr, H, W, F2, frames, CHANNELS: tl.constexpr, FRAMES: tl.constexpr):
    """part (groups of frames, tiles of rows, 10, F2): gradients of the nine taps and the bias.

    Four tokens of the columns before, at and after w are held; tap (i, j) sums d[h, w] s[h + i - 1, w + j - 1].
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    h = tl.program_id(1) * 4
    mask = c < F2
    none = tl.zeros([CHANNELS], tl.float32)
    g00, g01, g02 = none, none, none
    g10, g11, g12 = none, none, none
    g20, g21, g22 = none, none, none
    bias = none
    for f in range(FRAMES):
        frame = tl.program_id(2).to(tl.int64) * FRAMES + f
        there = mask & (frame < frames)
        base = frame * H * W * F2
        # d of column w + 1 (a), w (b) and w - 1 (e), met by s of column w.
        b0, b1, b2, b3 = none, none, none, none
        e0, e1, e2, e3 = none, none, none, none
        a0 = _plain(d_ptr, base, h, 0, c, H, W, F2, there)
        a1 = _plain(d_ptr, base, h + 1, 0, c, H, W, F2, there)
        a2 = _plain(d_ptr, base, h + 2, 0, c, H, W, F2, there)
        a3 = _plain(d_ptr, base, h + 3, 0, c, H, W, F2, there)
        for w in range(W):
            e0, e1, e2, e3 = b0, b1, b2, b3
            b0, b1, b2, b3 = a0, a1, a2, a3
            a0 = _plain(d_ptr, base, h, w + 1, c, H, W, F2, there)
            a1 = _plain(d_ptr, base, h + 1, w + 1, c, H, W, F2, there)
            a2 = _plain(d_ptr, base, h + 2, w + 1, c, H, W, F2, there)
            a3 = _plain(d_ptr, base, h + 3, w + 1, c, H, W, F2, there)
            bias += b0 + b1 + b2 + b3
            s0, s1, s2, s3, s4, s5 = _column(x_ptr, base, h, w, c, H, W, F2, there, False)
            m0, m1, m2 = _meet(a0, a1, a2, a3, s0, s1, s2, s3, s4, s5)
            g00, g10, g20 = g00 + m0, g10 + m1, g20 + m2
            m0, m1, m2 = _meet(b0, b1, b2, b3, s0, s1, s2, s3, s4, s5)
            g01, g11, g21 = g01 + m0, g11 + m1, g21 + m2
            m0, m1, m2 = _meet(e0, e1, e2, e3, s0, s1, s2, s3, s4, s5)
            g02, g12, g22 = g02 + m0, g12 + m1, g22 + m2
    out = part_ptr + (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * 10 * F2 + c
    tl.store(out, g00, mask=mask)
    tl.store(out + F2, g01, mask=mask)
    tl.store(out + 2 * F2, g02, mask=mask)
    tl.store(out + 3 * F2, g10, mask=mask)
    tl.store(out + 4 * F2, g11, mask=mask)
    tl.store(out + 5 * F2, g12, mask=mask)
    tl.store(out + 6 * F2, g20, mask=mask)
    tl.store(out + 7 * F2, g21, mask=mask)
    tl.store(out + 8 * F2, g22, mask=mask)
    tl.store(out + 9 * F2, bias, mask=mask)


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


@triton.jit
def _back_through_matrix(low, high, m, BH: tl.constexpr, BP: tl.constexpr):
    """Channels (0, 2) and (1, 3) of each group of four, times the transpose of the matrix at m."""
    y0, y2 = tl.split(tl.reshape(low, [BH, BP // 2, 2]))
    y1, y3 = tl.split(tl.reshape(high, [BH, BP // 2, 2]))
    x0 = y0 * tl.load(m) + y1 * tl.load(m + 4) + y2 * tl.load(m + 8) + y3 * tl.load(m + 12)
    x1 = y0 * tl.load(m + 1) + y1 * tl.load(m + 5) + y2 * tl.load(m + 9) + y3 * tl.load(m + 13)
    x2 = y0 * tl.load(m + 2) + y1 * tl.load(m + 6) + y2 * tl.load(m + 10) + y3 * tl.load(m + 14)
    x3 = y0 * tl.load(m + 3) + y1 * tl.load(m + 7) + y2 * tl.load(m + 11) + y3 * tl.load(m + 15)
    return tl.reshape(tl.join(x0, x2), [BH, BP]), tl.reshape(tl.join(x1, x3), [BH, BP])


@triton.jit
def norm_rotate_backward(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, matrix_ptr, dout_ptr, dx_ptr, part_ptr,
    rows, rows_per_clip, row_step, eps, direction,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_MATRIX: tl.constexpr,
    BH: tl.constexpr, BP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the tokens, dense; part (programs, HEADS * SIZE) sums of that of the weight."""
    head = tl.arange(0, BH)[:, None]
    pair = tl.arange(0, BP)[None, :]
    FIRST: tl.constexpr = SIZE // 2 if HAS_MATRIX else 0
    PAIRS: tl.constexpr = (SIZE - FIRST) // 2
    WIDTH: tl.constexpr = HEADS * SIZE
    if HAS_WEIGHT:
        weight_even, weight_odd = _pairs(weight_ptr, head, FIRST, SIZE, HEADS, PAIRS, BP)
        sum_even = tl.zeros([BH, BP], tl.float32)
        sum_odd = tl.zeros([BH, BP], tl.float32)
        if HAS_MATRIX:
            weight_low, weight_high = _pairs(weight_ptr, head, 0, SIZE, HEADS, PAIRS, BP)
            sum_low = tl.zeros([BH, BP], tl.float32)
            sum_high = tl.zeros([BH, BP], tl.float32)
    for r in range(ROWS):
        row = tl.program_id(0).to(tl.int64) * ROWS + r
        if row < rows:
            source, target = dout_ptr + row * WIDTH, dx_ptr + row * WIDTH
            angle = (row % rows_per_clip) * PAIRS + pair
            cos = tl.load(cos_ptr + angle, mask=pair < PAIRS, other=0.0).to(tl.float32)
            sin = tl.load(sin_ptr + angle, mask=pair < PAIRS, other=0.0).to(tl.float32) * direction
            up, down = _pairs(source, head, FIRST, SIZE, HEADS, PAIRS, BP)
            even, odd = up * cos + down * sin, down * cos - up * sin
            if HAS_MATRIX:
                low, high = _pairs(source, head, 0, SIZE, HEADS, PAIRS, BP)
                low, high = _back_through_matrix(low, high, matrix_ptr + row * 16, BH, BP)
            if HAS_WEIGHT:
                place = x_ptr + row * row_step
                x_even, x_odd = _pairs(place, head, FIRST, SIZE, HEADS, PAIRS, BP)
                total = tl.sum(tl.sum(x_even * x_even + x_odd * x_odd, 1), 0)
                if HAS_MATRIX:
                    x_low, x_high = _pairs(place, head, 0, SIZE, HEADS, PAIRS, BP)
                    total += tl.sum(tl.sum(x_low * x_low + x_high * x_high, 1), 0)
                inverse = 1.0 / tl.sqrt(total / WIDTH + eps)
                x_even, x_odd = x_even * inverse, x_odd * inverse
                sum_even += even * x_even
                sum_odd += odd * x_odd
                even, odd = even * weight_even, odd * weight_odd
                along = tl.sum(tl.sum(even * x_even + odd * x_odd, 1), 0)
                if HAS_MATRIX:
                    x_low, x_high = x_low * inverse, x_high * inverse
                    sum_low += low * x_low
                    sum_high += high * x_high
                    low, high = low * weight_low, high * weight_high
                    along += tl.sum(tl.sum(low * x_low + high * x_high, 1), 0)
                along = along / WIDTH
                even, odd = (even - x_even * along) * inverse, (odd - x_odd * along) * inverse
                if HAS_MATRIX:
                    low, high = (low - x_low * along) * inverse, (high - x_high * along) * inverse
            _store_pairs(target, even, odd, head, FIRST, SIZE, HEADS, PAIRS, BP)
            if HAS_MATRIX:
                _store_pairs(target, low, high, head, 0, SIZE, HEADS, PAIRS, BP)
    if HAS_WEIGHT:
        part = part_ptr + tl.program_id(0).to(tl.int64) * WIDTH
        _store_pairs(part, sum_even, sum_odd, head, FIRST, SIZE, HEADS, PAIRS, BP)
        if HAS_MATRIX:
            _store_pairs(part, sum_low, sum_high, head, 0, SIZE, HEADS, PAIRS, BP)
