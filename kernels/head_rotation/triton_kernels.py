"""One program a token: all of its channels are read once and written once."""

import triton
import triton.language as tl


@triton.jit
def rotate_heads(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, tokens, row_step, eps,
    HEADS: tl.constexpr, HALF: tl.constexpr, HAS_WEIGHT: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, BH)[:, None], tl.arange(0, BP)[None, :]
    ok = (head < HEADS) & (pair < HALF)
    place = head * (2 * HALF) + pair
    low = tl.load(x_ptr + row * row_step + place, mask=ok, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + row * row_step + place + HALF, mask=ok, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        total = tl.sum(tl.sum(low * low + high * high, 1), 0)
        inverse = 1.0 / tl.sqrt(total / (2 * HEADS * HALF) + eps)
        low *= inverse * tl.load(weight_ptr + place, mask=ok, other=0.0).to(tl.float32)
        high *= inverse * tl.load(weight_ptr + place + HALF, mask=ok, other=0.0).to(tl.float32)
    angle = (head.to(tl.int64) * tokens + row % tokens) * HALF + pair
    cos = tl.load(cos_ptr + angle, mask=ok, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=ok, other=0.0).to(tl.float32)
    target = out_ptr + row * (2 * HEADS * HALF) + place
    kind = out_ptr.dtype.element_ty
    tl.store(target, (low * cos - high * sin).to(kind), mask=ok)
    tl.store(target + HALF, (high * cos + low * sin).to(kind), mask=ok)
