"""Lucas-Kanade as a Triton kernel, one program a point, and filters along an axis. Imported on CUDA only; the twins in
`reference.py`, `moving.py` and `filters.py` say what they compute.

A point's whole way, from the coarsest level to the last step of the finest, is one program: its template stays in
registers, and the pictures, a byte a pixel, come from the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import MAX_STEPS, MIN_EIGENVALUE, STEP_PX, Found
from .state import LEVELS, RADIUS, REFERENCE_BACK_PX, REFERENCE_MOVED_PX, Log, State

if TYPE_CHECKING:
    from ..records import TracksConfig
    from .corners import Corners
    from .images import Images

# pyright: reportUnreachable=false, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

_STEP_SQUARED = tl.constexpr(STEP_PX**2)
_STEP = tl.constexpr(STEP_PX)
_LEAST = tl.constexpr(MIN_EIGENVALUE)
_STEPS = tl.constexpr(MAX_STEPS)


@triton.jit
def _mirrored(i, count):
    i = (count - 1) - tl.abs((count - 1) - tl.abs(i))
    return tl.minimum(tl.maximum(i, 0), count - 1)


@triton.jit
def _reaches(x, y, height, width, RADIUS: tl.constexpr):
    left, up = tl.floor(x - RADIUS), tl.floor(y - RADIUS)
    least = -1.0 * (2 * RADIUS + 1)
    return (left >= least) & (up >= least) & (left < width) & (up < height)


@triton.jit
def _patch(data, height, width, x, y, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """Grey values around (x, y), which reaches the picture."""
    size: tl.constexpr = 2 * RADIUS + 1
    lane = tl.arange(0, BLOCK)
    keep = lane < size * size
    left, up = tl.floor(x - RADIUS), tl.floor(y - RADIUS)
    fx, fy = x - RADIUS - left, y - RADIUS - up
    column, row = left.to(tl.int32) + lane % size, up.to(tl.int32) + lane // size
    c0, c1 = _mirrored(column, width), _mirrored(column + 1, width)
    r0, r1 = _mirrored(row, height) * width, _mirrored(row + 1, height) * width
    v00 = tl.load(data + (r0 + c0), mask=keep, other=0).to(tl.float32)
    v01 = tl.load(data + (r0 + c1), mask=keep, other=0).to(tl.float32)
    v10 = tl.load(data + (r1 + c0), mask=keep, other=0).to(tl.float32)
    v11 = tl.load(data + (r1 + c1), mask=keep, other=0).to(tl.float32)
    return (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)


@triton.jit
def _weights(i: tl.constexpr, f):
    """Of pixel -1, 0, 1 or 2 for a place `f` beyond pixel 0: value, smoothed value, derivative."""
    if i == 0:
        value, smooth, slope = f * 0, 3 / 16 * (1 - f), -0.5 * (1 - f)
    elif i == 1:
        value, smooth, slope = 1 - f, (10 - 7 * f) / 16, -0.5 * f
    elif i == 2:
        value, smooth, slope = f, (3 + 7 * f) / 16, 0.5 * (1 - f)
    else:
        value, smooth, slope = f * 0, 3 / 16 * f, 0.5 * f
    return value, smooth, slope


@triton.jit
def _template(data, height, width, x, y, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """Grey values around (x, y) and their derivatives: four taps each way."""
    size: tl.constexpr = 2 * RADIUS + 1
    lane = tl.arange(0, BLOCK)
    keep = lane < size * size
    left, up = tl.floor(x - RADIUS), tl.floor(y - RADIUS)
    fx, fy = x - RADIUS - left, y - RADIUS - up
    column, row = left.to(tl.int32) + lane % size, up.to(tl.int32) + lane // size
    patch = tl.zeros((BLOCK,), tl.float32)
    gx = tl.zeros((BLOCK,), tl.float32)
    gy = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(4):
        y_value, y_smooth, y_slope = _weights(i, fy)
        line = data + _mirrored(row + (i - 1), height) * width
        for j in tl.static_range(4):
            x_value, x_smooth, x_slope = _weights(j, fx)
            value = tl.load(line + _mirrored(column + (j - 1), width), mask=keep, other=0).to(tl.float32)
            patch += (y_value * x_value) * value
            gx += (y_smooth * x_slope) * value
            gy += (y_slope * x_smooth) * value
    return patch, gx, gy


@triton.jit
def _on_level(source, target, height, width, px, py, x, y, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """One level from (x, y) on: the place, whether it holds, the residual."""
    size: tl.constexpr = 2 * RADIUS + 1
    ok = _reaches(px, py, height, width, RADIUS)
    far = 1.0 * tl.maximum(height, width) + 4.0 * RADIUS + 4
    near = -4.0 * RADIUS - 4
    sx, sy = tl.minimum(tl.maximum(px, near), far), tl.minimum(tl.maximum(py, near), far)
    patch, gx, gy = _template(source, height, width, sx, sy, RADIUS, BLOCK)
    a, b, c = tl.sum(gx * gx, 0), tl.sum(gx * gy, 0), tl.sum(gy * gy, 0)
    smallest = (a + c - tl.sqrt((a - c) * (a - c) + 4 * b * b)) / (2 * size * size)
    ok = ok & (smallest > _LEAST)
    scale = 1 / tl.maximum(a * c - b * b, 1e-6)
    residual = tl.full((), 255.0, tl.float32)
    u_before = tl.full((), 0.0, tl.float32)
    v_before = tl.full((), 0.0, tl.float32)
    step = tl.full((), 0, tl.int32)
    going = ok
    while going:
        if _reaches(x, y, height, width, RADIUS):
            difference = _patch(target, height, width, x, y, RADIUS, BLOCK) - patch
            residual = tl.sum(tl.abs(difference), 0) / (size * size)
            u, v = tl.sum(difference * gx, 0), tl.sum(difference * gy, 0)
            dx, dy = (b * v - c * u) * scale, (b * u - a * v) * scale
            arrived = dx * dx + dy * dy <= _STEP_SQUARED
            back = (tl.abs(dx + u_before) < _STEP) & (tl.abs(dy + v_before) < _STEP)
            back = back & (step > 0) & (arrived == 0)
            share = tl.where(back, 0.5, 1.0)
            x, y = x + share * dx, y + share * dy
            u_before, v_before = dx, dy
            step += 1
            going = (arrived == 0) & (back == 0) & (step < _STEPS)
        else:
            ok = ok & False
            going = going & False
    return x, y, ok, residual


@triton.jit
def _sought(
    data, table, stride, source, target, px, py, x, y, top, bottom, RADIUS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A point from level `top` down to `bottom`; all coordinates are of level 0."""
    scale = 1.0
    for _ in range(top):
        scale = scale * 0.5
    x, y = x * scale, y * scale
    ok = tl.full((), 1, tl.int1)
    residual = tl.full((), 255.0, tl.float32)
    for down in range(top - bottom + 1):
        level = top - down
        if down > 0:
            x, y, scale = x * 2, y * 2, scale * 2
        offset = tl.load(table + 3 * level)
        height, width = tl.load(table + 3 * level + 1), tl.load(table + 3 * level + 2)
        x, y, ok, residual = _on_level(
            data + source.to(tl.int64) * stride + offset, data + target.to(tl.int64) * stride + offset,
            height, width, px * scale, py * scale, x, y, RADIUS, BLOCK,
        )  # fmt: skip
    return x / scale, y / scale, ok, residual


@triton.jit(do_not_specialize=["top", "bottom"])
def _follow(
    data, table, stride, source_ptr, target_ptr, xy_ptr, guess_ptr, out_ptr, ok_ptr, residual_ptr, top, bottom,
    RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    x, y, ok, residual = _sought(
        data, table, stride, tl.load(source_ptr + i), tl.load(target_ptr + i),
        tl.load(xy_ptr + 2 * i), tl.load(xy_ptr + 2 * i + 1),
        tl.load(guess_ptr + 2 * i), tl.load(guess_ptr + 2 * i + 1), top, bottom, RADIUS, BLOCK,
    )  # fmt: skip
    tl.store(out_ptr + 2 * i, x)
    tl.store(out_ptr + 2 * i + 1, y)
    tl.store(ok_ptr + i, ok.to(tl.int8))
    tl.store(residual_ptr + i, residual)


def follow(
    images: Images,
    pair: tuple[Tensor, Tensor],
    xy: Tensor,
    guess: Tensor,
    *,
    levels: tuple[int, int],
    radius: int,
) -> Found:
    """See `reference.follow`."""
    out = torch.empty_like(xy, memory_format=torch.contiguous_format)
    ok = torch.empty(len(xy), dtype=torch.int8, device=xy.device)
    residual = torch.empty(len(xy), dtype=torch.float32, device=xy.device)
    block = triton.next_power_of_2((2 * radius + 1) ** 2)
    _follow[(len(xy),)](
        images.data, images.table, images.stride, *pair, xy.contiguous(), guess.contiguous(), out, ok, residual,
        *levels, RADIUS=radius, BLOCK=block, num_warps=max(1, block // 128),
    )  # fmt: skip
    return Found(out, ok.bool(), residual)


_BACK = tl.constexpr(REFERENCE_BACK_PX)
_MOVED = tl.constexpr(REFERENCE_MOVED_PX)


@triton.jit
def _of_field(field, x, y, rows, columns, width, height):
    """Motion at a place, bilinear; beyond the grid that of its border."""
    gx = tl.minimum(tl.maximum((x + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
    gy = tl.minimum(tl.maximum((y + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
    left, up = tl.minimum(gx.to(tl.int32), columns - 2), tl.minimum(gy.to(tl.int32), rows - 2)
    fx, fy = gx - left, gy - up
    at = field + up * columns + left
    size = rows * columns
    upper_x, lower_x = tl.load(at) * (1 - fx) + tl.load(at + 1) * fx, tl.load(at + columns) * (1 - fx)
    lower_x += tl.load(at + columns + 1) * fx
    upper_y, lower_y = tl.load(at + size) * (1 - fx) + tl.load(at + size + 1) * fx, 0.0
    lower_y += tl.load(at + size + columns) * (1 - fx) + tl.load(at + size + columns + 1) * fx
    return upper_x * (1 - fy) + lower_x * fy, upper_y * (1 - fy) + lower_y * fy


@triton.jit(do_not_specialize=["slots", "rows", "columns", "row", "frame", "max_frames", "top", "back_top"])
def _move(
    data, table, stride, slots, motion, rows, columns, xy_ptr, reference_ptr, taken_ptr, track_ptr, age_ptr,
    start_ptr, after_ptr, before_ptr, found_ptr, row, frame, max_frames, top, back_top,
    forward_backward_px, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    track = tl.load(track_ptr + i)
    told = row * tl.num_programs(0) + i
    tl.store(before_ptr + told, track)
    tl.store(found_ptr + told, 0)
    if track < 0:
        return
    x, y = tl.load(xy_ptr + 2 * i), tl.load(xy_ptr + 2 * i + 1)
    tl.store(start_ptr + 2 * told, x)
    tl.store(start_ptr + 2 * told + 1, y)
    height, width = tl.load(table + 1), tl.load(table + 2)
    here, there = (frame - 1) % slots, frame % slots
    u, v = _of_field(motion + row * 2 * rows * columns, x, y, rows, columns, width, height)
    taken = tl.load(taken_ptr + i)
    first = taken % slots
    rx, ry = tl.load(reference_ptr + 2 * i), tl.load(reference_ptr + 2 * i + 1)
    # One search in a loop: there, back, from the first frame, back to it. Four in a row take minutes to compile.
    ax, ay, fx, fy = x, y, x, y
    found = track < 0
    good = track < 0
    stage = tl.full((), 0, tl.int32)
    while stage < 4:
        from_first, forth = stage >= 2, stage % 2 == 0
        near = tl.where(from_first, first, here)
        ox, oy = tl.where(from_first, rx, x), tl.where(from_first, ry, y)
        zx, zy = tl.where(from_first, fx, ax), tl.where(from_first, fy, ay)
        gx, gy = tl.where(from_first, ax, x + u), tl.where(from_first, ay, y + v)
        sx, sy, ok, _ = _sought(
            data, table, stride, tl.where(forth, near, there), tl.where(forth, there, near),
            tl.where(forth, ox, zx), tl.where(forth, oy, zy), tl.where(forth, gx, ox), tl.where(forth, gy, oy),
            tl.where(from_first, 0, tl.where(forth, top, back_top)), 0, RADIUS, BLOCK,
        )  # fmt: skip
        apart = tl.sqrt((sx - ox) * (sx - ox) + (sy - oy) * (sy - oy))
        if stage == 0:
            ax, ay, found = sx, sy, ok
        elif stage == 1:
            found = found & ok & (apart < forward_backward_px)
            found = found & (ax > 3) & (ay > 3) & (ax < width - 4) & (ay < height - 4)
            stage = tl.where(found & (taken < frame - 1), stage, 4)
        elif stage == 2:
            fx, fy, good = sx, sy, ok
        else:
            good = good & ok & (apart < _BACK)
            good = good & (tl.sqrt((fx - ax) * (fx - ax) + (fy - ay) * (fy - ay)) < _MOVED)
        stage += 1
    if found & (taken < frame - 1):
        if good:
            ax, ay = fx, fy
        else:
            tl.store(taken_ptr + i, frame)
            tl.store(reference_ptr + 2 * i, ax)
            tl.store(reference_ptr + 2 * i + 1, ay)
    age = tl.load(age_ptr + i) + 1
    tl.store(age_ptr + i, age)
    tl.store(track_ptr + i, tl.where(found & (age < max_frames), track, -1))
    tl.store(xy_ptr + 2 * i, ax)
    tl.store(xy_ptr + 2 * i + 1, ay)
    tl.store(after_ptr + 2 * told, ax)
    tl.store(after_ptr + 2 * told + 1, ay)
    tl.store(found_ptr + told, found.to(tl.int32))


def move(
    state: State, images: Images, motion: Tensor, log: Log, row: int, *, frame: int, config: TracksConfig
) -> None:
    """See `moving.move`; the state is changed in place."""
    rows, columns = motion.shape[2:]
    block = triton.next_power_of_2((2 * RADIUS + 1) ** 2)
    _move[(len(state.track),)](
        images.data, images.table, images.stride, images.slots, motion, rows, columns,
        state.xy, state.reference_xy, state.reference_frame, state.track, state.age,
        log.start, log.after, log.before, log.found, row,
        frame, config.max_track_frames, images.coarsest(LEVELS), images.coarsest(1), config.forward_backward_px,
        RADIUS=RADIUS, BLOCK=block, num_warps=4,
    )  # fmt: skip


MOST_CORNERS = 8192
"""Of a frame: one program looks at all of them."""


@triton.jit
def _counted(a_first, a, b_first, b):
    return a_first | b_first, tl.where(b_first > 0, b, a + b)


@triton.jit(do_not_specialize=["corners", "number", "row", "frame"])
def _refill(
    corner_ptr, valid_ptr, start_ptr, order_ptr, fresh_ptr, corners, xy_ptr, reference_ptr, taken_ptr, track_ptr,
    age_ptr, count_ptr, told_xy_ptr, told_track_ptr, number, row, frame, least, spacing_squared,
    CORNERS: tl.constexpr, TRACKS: tl.constexpr,
):  # fmt: skip
    slot = tl.arange(0, TRACKS)
    there = slot < number
    track = tl.load(track_ptr + slot, mask=there, other=0)
    x = tl.load(xy_ptr + 2 * slot, mask=there, other=0.0)
    y = tl.load(xy_ptr + 2 * slot + 1, mask=there, other=0.0)
    dead = there & (track < 0)
    missing = tl.sum(dead.to(tl.int32), 0)
    if (missing > 0) & (missing > least):
        i = tl.arange(0, CORNERS)
        inside = i < corners
        at = row * corners + i
        cx = tl.load(corner_ptr + 2 * at, mask=inside, other=0.0)
        cy = tl.load(corner_ptr + 2 * at + 1, mask=inside, other=0.0)
        free = inside & (tl.load(valid_ptr + at, mask=inside, other=0) > 0)
        for other in range(number):
            # Rounded to even, as halves are in the twin: what is added leaves no digits behind the point.
            dx = cx - ((tl.load(xy_ptr + 2 * other) + 12582912.0) - 12582912.0)
            dy = cy - ((tl.load(xy_ptr + 2 * other + 1) + 12582912.0) - 12582912.0)
            far = (dx * dx + dy * dy > spacing_squared) | (tl.load(track_ptr + other) < 0)
            free = free & far
        first = (tl.load(start_ptr + at, mask=inside, other=-1) == i).to(tl.int32)
        _, rank = tl.associative_scan((first, free.to(tl.int32)), 0, _counted)
        key = tl.where(free, rank * corners + tl.load(order_ptr + at, mask=inside, other=0), 1 << 30)
        # The least bound with as many keys as tracks are missing, or all of them, at or below it.
        low, high = tl.full((), -1, tl.int32), tl.full((), (1 << 30) - 1, tl.int32)
        while low + 1 < high:
            middle = low + (high - low) // 2
            enough = tl.sum((key <= middle).to(tl.int32), 0) >= missing
            low, high = tl.where(enough, low, middle), tl.where(enough, middle, high)
        chosen = free & (key <= high)
        place = tl.cumsum(chosen.to(tl.int32), 0) - 1
        found = tl.sum(chosen.to(tl.int32), 0)
        tl.store(fresh_ptr + 2 * place, cx, mask=chosen)
        tl.store(fresh_ptr + 2 * place + 1, cy, mask=chosen)
        tl.debug_barrier()
        nth = tl.cumsum(dead.to(tl.int32), 0) - 1
        use = dead & (nth < found)
        x = tl.where(use, tl.load(fresh_ptr + 2 * nth, mask=use, other=0.0), x)
        y = tl.where(use, tl.load(fresh_ptr + 2 * nth + 1, mask=use, other=0.0), y)
        count = tl.load(count_ptr)
        track = tl.where(use, count + nth, track)
        tl.store(xy_ptr + 2 * slot, x, mask=use)
        tl.store(xy_ptr + 2 * slot + 1, y, mask=use)
        tl.store(reference_ptr + 2 * slot, x, mask=use)
        tl.store(reference_ptr + 2 * slot + 1, y, mask=use)
        tl.store(taken_ptr + slot, frame, mask=use)
        tl.store(age_ptr + slot, 0, mask=use)
        tl.store(track_ptr + slot, track, mask=use)
        tl.debug_barrier()
        tl.store(count_ptr, count + tl.sum(use.to(tl.int32), 0))
    told = row * number + slot
    tl.store(told_xy_ptr + 2 * told, x, mask=there)
    tl.store(told_xy_ptr + 2 * told + 1, y, mask=there)
    tl.store(told_track_ptr + told, track, mask=there)


def refill(
    state: State, corners: Corners, log: Log, row: int, *, frame: int, least: float, spacing_px: float
) -> None:
    """See `moving.refill`; the state is changed in place."""
    number, most = len(state.track), corners.xy.shape[1]
    fresh = torch.empty(most, 2, dtype=torch.float32, device=state.xy.device)
    _refill[(1,)](
        corners.xy, corners.valid, corners.start, corners.order, fresh, most, state.xy, state.reference_xy,
        state.reference_frame, state.track, state.age, state.count, log.xy, log.track, number, row, frame,
        float(least), float(spacing_px**2), CORNERS=max(16, triton.next_power_of_2(most)),
        TRACKS=max(16, triton.next_power_of_2(number)), num_warps=16,
    )  # fmt: skip


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "stride"])
def _along(
    in_ptr, out_ptr, taps_ptr, height, width, out_height, out_width, stride,
    DOWN: tl.constexpr, RADIUS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (row < out_height)[:, None] & (column < out_width)[None]
    source = in_ptr + image * height * width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(2 * RADIUS + 1):
        tap = tl.load(taps_ptr + i)
        if DOWN:
            place = _mirrored(row * stride + (i - RADIUS), height)[:, None] * width + column[None]
        else:
            place = row[:, None] * width + _mirrored(column * stride + (i - RADIUS), width)[None]
        total += tap * tl.load(source + place, mask=keep, other=0.0)
    target = out_ptr + image * out_height * out_width
    tl.store(target + row[:, None] * out_width + column[None], total, mask=keep)


@cache
def _taps_on(device: torch.device, taps: tuple[float, ...]) -> Tensor:
    return torch.tensor(taps, dtype=torch.float32).to(device)


def along(images: Tensor, taps: Sequence[float], axis: int, *, stride: int) -> Tensor:
    """See `filters.along`."""
    images = images.contiguous()
    number, height, width = images.shape
    out_height, out_width = (-(-n // stride) if axis == i else n for i, n in ((1, height), (2, width)))
    out = torch.empty(number, out_height, out_width, dtype=torch.float32, device=images.device)
    rows, columns = (32, 32) if axis == 1 else (8, 128)
    _along[(triton.cdiv(out_width, columns), triton.cdiv(out_height, rows), number)](
        images, out, _taps_on(images.device, tuple(taps)), height, width, out_height, out_width, stride,
        DOWN=axis == 1, RADIUS=len(taps) // 2, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return out
