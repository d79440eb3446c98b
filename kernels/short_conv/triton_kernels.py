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
    x_ptr, before_ptr, weight_ptr, end_ptr, first_ptr, y_ptr, T, S, C, sb, st, ss,
    TAPS: tl.constexpr, BOTH: tl.constexpr, BACKWARD: tl.constexpr, HAS_BEFORE: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """BF frames of one token and BC channels. BACKWARD applies the transposed convolution.

    Forward: y_t = sum_l w_l x_{t-l} + sum_{l>0} w_l x_{t+l} while t + l stays in the chunk of t. Transposed:
    x_{t+l} feeds back everywhere, x_{t-l} only while t - l is in the chunk of t.
    end_ptr, first_ptr: (T,) end and first frame of each frame's chunk.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    c = (pid % blocks) * BC + tl.arange(0, BC)
    s = (pid // blocks) % S
    b = pid // (blocks * S)
    mask = c < C
    t0 = tl.program_id(1) * BF
    for i in range(0, BF):
        t = t0 + i
        if t < T:
            w = tl.load(weight_ptr + c * TAPS + TAPS - 1, mask=mask, other=0.0).to(tl.float32)
            y = w * _frame(x_ptr, before_ptr, b, t, T, S, s, c, C, mask, sb, st, ss, TAPS, False)
            for lag in tl.static_range(1, TAPS):
                w = tl.load(weight_ptr + c * TAPS + TAPS - 1 - lag, mask=mask, other=0.0).to(tl.float32)
                if BACKWARD:
                    ahead = tl.where(t + lag < T, 1.0, 0.0)
                    behind = tl.where(t - lag >= tl.load(first_ptr + t), 1.0, 0.0)
                else:
                    ahead = tl.where(t + lag < tl.load(end_ptr + t), 1.0, 0.0)
                    behind = 1.0
                if BOTH or BACKWARD:
                    y += (
                        w
                        * ahead
                        * _frame(x_ptr, before_ptr, b, t + lag, T, S, s, c, C, mask, sb, st, ss, TAPS, False)
                    )
                if BOTH or not BACKWARD:
                    y += (
                        w
                        * behind
                        * _frame(
                            x_ptr, before_ptr, b, t - lag, T, S, s, c, C, mask, sb, st, ss, TAPS, HAS_BEFORE
                        )
                    )
            offs = ((b * T + t).to(tl.int64) * S + s) * C + c
            tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient(
    x_ptr, before_ptr, dy_ptr, end_ptr, dweight_ptr, T, S, C, sb, st, ss,
    TAPS: tl.constexpr, BOTH: tl.constexpr, HAS_BEFORE: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Per frame of a clip and block of channels, the sum over tokens of dy x for every tap."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    c = (pid % blocks) * BC + tl.arange(0, BC)
    t = (pid // blocks) % T
    b = pid // (blocks * T)
    end = tl.load(end_ptr + t)
    for lag in tl.static_range(0, TAPS):
        total = tl.zeros([BS, BC], dtype=tl.float32)
        for s0 in range(0, S, BS):
            s = s0 + tl.arange(0, BS)
            mask = (s[:, None] < S) & (c[None, :] < C)
            offs = ((b * T + t).to(tl.int64) * S + s[:, None]) * C + c[None, :]
            dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
            x = _frame(
                x_ptr,
                before_ptr,
                b,
                t - lag,
                T,
                S,
                s[:, None],
                c[None, :],
                C,
                mask,
                sb,
                st,
                ss,
                TAPS,
                HAS_BEFORE,
            )
            if BOTH and lag > 0:
                x += _frame(
                    x_ptr, before_ptr, b, t + lag, T, S, s[:, None], c[None, :], C, mask & (t + lag < end),
                    sb, st, ss, TAPS, False,
                )  # fmt: skip
            total += dy * x
        row = ((b * T + t) * TAPS + TAPS - 1 - lag).to(tl.int64) * C
        tl.store(dweight_ptr + row + c, tl.sum(total, 0), mask=c < C)
