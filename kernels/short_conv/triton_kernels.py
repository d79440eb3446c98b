"""Triton kernels of the short temporal convolution; `reference.py` defines what they compute."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _frame(
    x_ptr, before_ptr, b, f, T, S, s, c, C, mask, sb, st, ss, TAPS: tl.constexpr, HAS_BEFORE: tl.constexpr
):
    """Frame f of clip b at token s; frames before the first come from `before`, others outside are zero."""
    inside = (f >= 0) & (f < T)
    x = tl.load(
        x_ptr + b.to(tl.int64) * sb + f.to(tl.int64) * st + s * ss + c, mask=mask & inside, other=0.0
    ).to(tl.float32)
    if HAS_BEFORE:
        row = ((b * (TAPS - 1) + f + TAPS - 1).to(tl.int64) * S + s) * C
        x += tl.load(before_ptr + row + c, mask=mask & (f < 0), other=0.0).to(tl.float32)
    return x


@triton.jit
def convolve(
    x_ptr, before_ptr, weight_ptr, end_ptr, first_ptr, y_ptr, T, S, C, sb, st, ss, frames,
    BOTH: tl.constexpr, BACKWARD: tl.constexpr, HAS_BEFORE: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A run of `frames` frames, BS tokens and BC channels; four taps. BACKWARD transposes the convolution.

    Forward: y_t = sum_l w_l x_{t-l} + sum_{l>0} w_l x_{t+l} while t + l stays in the chunk of t. Transposed:
    x_{t+l} feeds back everywhere, x_{t-l} only while t - l is in the chunk of t. The seven frames around t
    move through registers, so that each is read once a run.
    weight_ptr: (4, C) by lag; end_ptr, first_ptr: (T,) end and first frame of each frame's chunk.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    c = (pid % blocks) * BC + tl.arange(0, BC)
    tiles = tl.cdiv(S, BS)
    s = ((pid // blocks) % tiles) * BS + tl.arange(0, BS)
    b = pid // (blocks * tiles)
    mask = (s[:, None] < S) & (c[None, :] < C)
    s = s[:, None]
    w0 = tl.load(weight_ptr + c, mask=c < C, other=0.0)[None, :]
    w1 = tl.load(weight_ptr + C + c, mask=c < C, other=0.0)[None, :]
    w2 = tl.load(weight_ptr + 2 * C + c, mask=c < C, other=0.0)[None, :]
    w3 = tl.load(weight_ptr + 3 * C + c, mask=c < C, other=0.0)[None, :]
    c = c[None, :]
    t0 = tl.program_id(1) * frames
    m3 = _frame(x_ptr, before_ptr, b, t0 - 3, T, S, s, c, C, mask, sb, st, ss, 4, HAS_BEFORE)
    m2 = _frame(x_ptr, before_ptr, b, t0 - 2, T, S, s, c, C, mask, sb, st, ss, 4, HAS_BEFORE)
    m1 = _frame(x_ptr, before_ptr, b, t0 - 1, T, S, s, c, C, mask, sb, st, ss, 4, HAS_BEFORE)
    here = _frame(x_ptr, before_ptr, b, t0, T, S, s, c, C, mask, sb, st, ss, 4, False)
    p1 = _frame(x_ptr, before_ptr, b, t0 + 1, T, S, s, c, C, mask, sb, st, ss, 4, False)
    p2 = _frame(x_ptr, before_ptr, b, t0 + 2, T, S, s, c, C, mask, sb, st, ss, 4, False)
    for i in range(0, frames):
        t = t0 + i
        p3 = _frame(x_ptr, before_ptr, b, t + 3, T, S, s, c, C, mask, sb, st, ss, 4, False)
        y = w0 * here
        if BACKWARD:
            # Outside the clip the frames are zero, so nothing more bounds the look ahead.
            y += w1 * p1 + w2 * p2 + w3 * p3
            if BOTH:
                first = tl.load(first_ptr + t, mask=t < T, other=0)
                y += tl.where(t - 1 >= first, w1, 0.0) * m1 + tl.where(t - 2 >= first, w2, 0.0) * m2
                y += tl.where(t - 3 >= first, w3, 0.0) * m3
        else:
            y += w1 * m1 + w2 * m2 + w3 * m3
            if BOTH:
                end = tl.load(end_ptr + t, mask=t < T, other=0)
                y += tl.where(t + 1 < end, w1, 0.0) * p1 + tl.where(t + 2 < end, w2, 0.0) * p2
                y += tl.where(t + 3 < end, w3, 0.0) * p3
        offs = ((b * T + t).to(tl.int64) * S + s) * C + c
        tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask & (t < T))
        m3 = m2
        m2 = m1
        m1 = here
        here = p1
        p1 = p2
        p2 = p3


@triton.jit
def weight_gradient(
    x_ptr, before_ptr, dy_ptr, end_ptr, dweight_ptr, T, S, C, sb, st, ss, frames,
    BOTH: tl.constexpr, HAS_BEFORE: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums of dy x for the four lags over a run of frames and a tile of tokens: dweight (programs, 4, C)."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    c = (pid % blocks) * BC + tl.arange(0, BC)
    tiles = tl.cdiv(S, BS)
    s = ((pid // blocks) % tiles) * BS + tl.arange(0, BS)
    b = pid // (blocks * tiles)
    mask = (s[:, None] < S) & (c[None, :] < C)
    s = s[:, None]
    channel = c
    c = c[None, :]
    t0 = tl.program_id(1) * frames
    m3 = _frame(x_ptr, before_ptr, b, t0 - 3, T, S, s, c, C, mask, sb, st, ss, 4, HAS_BEFORE)
    m2 = _frame(x_ptr, before_ptr, b, t0 - 2, T, S, s, c, C, mask, sb, st, ss, 4, HAS_BEFORE)
    m1 = _frame(x_ptr, before_ptr, b, t0 - 1, T, S, s, c, C, mask, sb, st, ss, 4, HAS_BEFORE)
    here = _frame(x_ptr, before_ptr, b, t0, T, S, s, c, C, mask, sb, st, ss, 4, False)
    p1 = _frame(x_ptr, before_ptr, b, t0 + 1, T, S, s, c, C, mask, sb, st, ss, 4, False)
    p2 = _frame(x_ptr, before_ptr, b, t0 + 2, T, S, s, c, C, mask, sb, st, ss, 4, False)
    d0 = tl.zeros([BS, BC], dtype=tl.float32)
    d1 = tl.zeros([BS, BC], dtype=tl.float32)
    d2 = tl.zeros([BS, BC], dtype=tl.float32)
    d3 = tl.zeros([BS, BC], dtype=tl.float32)
    for i in range(0, frames):
        t = t0 + i
        p3 = _frame(x_ptr, before_ptr, b, t + 3, T, S, s, c, C, mask, sb, st, ss, 4, False)
        offs = ((b * T + t).to(tl.int64) * S + s) * C + c
        dy = tl.load(dy_ptr + offs, mask=mask & (t < T), other=0.0).to(tl.float32)
        d0 += dy * here
        d1 += dy * m1
        d2 += dy * m2
        d3 += dy * m3
        if BOTH:
            end = tl.load(end_ptr + t, mask=t < T, other=0)
            d1 += tl.where(t + 1 < end, dy, 0.0) * p1
            d2 += tl.where(t + 2 < end, dy, 0.0) * p2
            d3 += tl.where(t + 3 < end, dy, 0.0) * p3
        m3 = m2
        m2 = m1
        m1 = here
        here = p1
        p1 = p2
        p2 = p3
    program = (b * tiles + (pid // blocks) % tiles) * tl.num_programs(1) + tl.program_id(1)
    row = dweight_ptr + program.to(tl.int64) * 4 * C + channel
    tl.store(row, tl.sum(d0, 0), mask=channel < C)
    tl.store(row + C, tl.sum(d1, 0), mask=channel < C)
    tl.store(row + 2 * C, tl.sum(d2, 0), mask=channel < C)
    tl.store(row + 3 * C, tl.sum(d3, 0), mask=channel < C)
