"""Triton kernels around products in e4m3: statistics of a head's channels, rounding with padding, the way back, and
rounding of rows. `reference.py` defines what they compute."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ..block_ops.triton_kernels import added


@triton.jit
def to_e4m3(x, ROUND: tl.constexpr):
    """x as e4m3, its greatest number where |x| is beyond; NaN stays. So does the chip convert, to nearest; Triton's
    interpreter cuts bits off, so there (ROUND) all that are beyond are rounded away before."""
    if ROUND:
        x = tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        small = (x + 24576.0) - 24576.0  # multiples of 2^-9
        x = tl.where((x == x) & (tl.abs(x) >= 0.015625), nearest.to(tl.float32, bitcast=True), small)
    return x.to(tl.float8e4nv)


@triton.jit
def store_row(x, row, c, out_ptr, scale_ptr, C, mask, there, ROUND: tl.constexpr):
    """A row, zero beyond its channels, in e4m3 at the scale that its greatest number asks for, and what it is
    multiplied by on the way back."""
    most = tl.max(tl.abs(x), 0) + tl.sum(x * 0.0, 0)  # a maximum drops NaN, a sum keeps it
    scale = tl.where(most == 0.0, 1.0, most / 448.0)
    tl.store(out_ptr + row * C + c, to_e4m3(x * (1.0 / scale), ROUND), mask=mask)
    tl.store(scale_ptr + row, scale, mask=there)


@triton.jit
def statistics(
    x_ptr, part_ptr, N, step_head, step_token,
    SIZE: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Sum, least and greatest of every channel over a run of tokens; part (tiles, H, 3, PADDED)."""
    head, tile = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, PADDED)
    total = tl.zeros([PADDED], tl.float32)
    least = tl.full([PADDED], float("inf"), tl.float32)
    most = tl.full([PADDED], float("-inf"), tl.float32)
    for r in range(ROUNDS):
        token = (tile * ROUNDS + r) * TOKENS + tl.arange(0, TOKENS)
        there = (token < N)[:, None] & (d < SIZE)[None, :]
        place = token.to(tl.int64)[:, None] * step_token + d[None, :]
        x = tl.load(x_ptr + head.to(tl.int64) * step_head + place, mask=there, other=0.0).to(tl.float32)
        total += tl.sum(x, 0)
        least = tl.minimum(least, tl.min(tl.where(there, x, float("inf")), 0))
        most = tl.maximum(most, tl.max(tl.where(there, x, float("-inf")), 0))
    out = part_ptr + (tile * tl.num_programs(0) + head) * 3 * PADDED + d
    tl.store(out, total)
    tl.store(out + PADDED, least)
    tl.store(out + 2 * PADDED, most)


@triton.jit
def finish(
    part_ptr, mean_ptr, most_ptr, tiles, N,
    SIZE: tl.constexpr, PADDED: tl.constexpr, CENTRE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Mean of every channel (zero unless CENTRE) and the greatest distance from it within a head."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    d = tl.arange(0, PADDED)[None, :]
    total = tl.zeros([PADDED], tl.float32)
    least = tl.full([PADDED], float("inf"), tl.float32)
    most = tl.full([PADDED], float("-inf"), tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None]
        there = tile < tiles
        place = part_ptr + (tile * heads + head) * 3 * PADDED + d
        total += tl.sum(tl.load(place, mask=there, other=0.0), 0)
        least = tl.minimum(least, tl.min(tl.load(place + PADDED, mask=there, other=float("inf")), 0))
        most = tl.maximum(most, tl.max(tl.load(place + 2 * PADDED, mask=there, other=float("-inf")), 0))
    channel = tl.arange(0, PADDED)
    mean = total / N
    centre = mean if CENTRE else tl.zeros([PADDED], tl.float32)
    far = tl.where(channel < SIZE, tl.maximum(most - centre, centre - least), 0.0)
    tl.store(mean_ptr + head * PADDED + channel, tl.where(channel < SIZE, centre, 0.0))
    # Comparisons drop NaN and sums keep it.
    bad = tl.sum(tl.where(channel < SIZE, mean * 0.0, 0.0), 0)
    tl.store(most_ptr + head, tl.max(far, 0) + bad)


@triton.jit
def round_and_pad(
    x_ptr, mean_ptr, scale_ptr, out_ptr, N, step_head, step_token, scale_step,
    SIZE: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """e4m3 of (x - mean) * scale, (H, N, PADDED) with zeros beyond the head."""
    head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, PADDED)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    within = (token < N)[:, None]
    place = token.to(tl.int64)[:, None]
    x = tl.load(
        x_ptr + head * step_head + place * step_token + d[None, :],
        mask=within & (d < SIZE)[None, :],
        other=0.0,
    ).to(tl.float32)
    mean = tl.load(mean_ptr + head * PADDED + d)
    scale = tl.load(scale_ptr + head * scale_step)
    scaled = tl.where((d < SIZE)[None, :], (x - mean[None, :]) * scale, 0.0)
    tl.store(out_ptr + (head * N + place) * PADDED + d[None, :], to_e4m3(scaled, ROUND), mask=within)


@triton.jit
def crop_and_scale(
    x_ptr, mean_ptr, scale_ptr, out_ptr, N, heads,
    SIZE: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """x * scale + mean from e4m3 (H, N, PADDED) to (N, H, SIZE)."""
    head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, PADDED)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    there = (token < N)[:, None] & (d < SIZE)[None, :]
    place = token.to(tl.int64)[:, None]
    x = tl.load(x_ptr + (head * N + place) * PADDED + d[None, :], mask=there, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + head * PADDED + d)
    out = x * tl.load(scale_ptr + head) + mean[None, :]
    tl.store(
        out_ptr + (place * heads + head) * SIZE + d[None, :], out.to(out_ptr.dtype.element_ty), mask=there
    )


@triton.jit
def round_rows(
    x_ptr, out_ptr, scale_ptr, C, step_row, BLOCK: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """A row in e4m3 at the scale that its greatest number asks for; scale holds what to multiply by on the way back."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * step_row + c, mask=c < C, other=0.0).to(tl.float32)
    store_row(x, row, c, out_ptr, scale_ptr, C, c < C, True, ROUND)


@triton.jit
def gate_rows(
    main_ptr, camera_ptr, gate_ptr, out_ptr, scale_ptr, C,
    HAS_CAMERA: tl.constexpr, BLOCK: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """(main + camera) * SiLU(gate) of a row, in e4m3; rounded to the type of main on the way."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    mask = c < C
    place = row * C + c
    total = tl.load(main_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_CAMERA:
        total += tl.load(camera_ptr + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
    gated = (total * gate * tl.sigmoid(gate)).to(main_ptr.dtype.element_ty).to(tl.float32)
    store_row(gated, row, c, out_ptr, scale_ptr, C, mask, True, ROUND)


@triton.jit
def modulated_norm_rows(
    x_ptr, y_ptr, shift_ptr, scale_ptr, sum_ptr, kept_ptr, out_ptr, row_scale_ptr, T, S, C,
    shift_b, shift_t, scale_b, scale_t, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_ADDED: tl.constexpr, KEEP: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """`modulated_norm` with its rows in e4m3, beside them as they are if KEEP."""
    frame = tl.program_id(1).to(tl.int64)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    shift = tl.load(shift_ptr + b * shift_b + t * shift_t + c, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + b * scale_b + t * scale_t + c, mask=mask, other=0.0).to(tl.float32)
    for r in range(ROWS):
        token = tl.program_id(0) * ROWS + r
        there = mask & (token < S)
        row = frame * S + token
        x = added(x_ptr, y_ptr, sum_ptr, row * C + c, there, HAS_ADDED)
        centred = tl.where(mask, x - tl.sum(x, 0) / C, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
        out = (centred * inverse * (1.0 + scale) + shift).to(x_ptr.dtype.element_ty)
        if KEEP:
            tl.store(kept_ptr + row * C + c, out, mask=there)
        wide = tl.where(mask, out.to(tl.float32), 0.0)
        store_row(wide, row, c, out_ptr, row_scale_ptr, C, there, token < S, ROUND)


@triton.jit
def gated_add_rows(
    x_ptr, y_ptr, gate_ptr, extra_ptr, kept_ptr, out_ptr, row_scale_ptr, T, S, C, gate_b, gate_t,
    HAS_EXTRA: tl.constexpr, BLOCK: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """`gated_add`, and its rows in e4m3 beside it."""
    frame = tl.program_id(1).to(tl.int64)
    b, t = frame // T, frame % T
    c = tl.arange(0, BLOCK)
    mask = c < C
    row = frame * S + tl.program_id(0)
    place = row * C + c
    total = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + b * gate_b + t * gate_t + c, mask=mask, other=0.0).to(tl.float32)
    total += gate * tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_EXTRA:
        total += tl.load(extra_ptr + place, mask=mask, other=0.0).to(tl.float32)
    kept = total.to(x_ptr.dtype.element_ty)
    tl.store(kept_ptr + place, kept, mask=mask)
    store_row(kept.to(tl.float32), row, c, out_ptr, row_scale_ptr, C, mask, True, ROUND)
