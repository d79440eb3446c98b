"""Tracks into the next frame, and new ones where many are missing: the twin of the kernel, and what has none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..records import TracksConfig
from .corners import Corners
from .images import Images
from .kernels import kernels_for
from .op import follow
from .prediction import Field
from .state import LEVELS, RADIUS, REFERENCE_BACK_PX, REFERENCE_MOVED_PX, Log, State

REFILL = 0.15
"""Share of the tracks that must be missing before new ones begin."""


def move(
    state: State, images: Images, field: Field, log: Log, row: int, *, frame: int, config: TracksConfig
) -> None:
    """Move the tracks from frame `frame` - 1 into it: there and back, then against the frame of their patch.

    Args:
        state: changed. field, log: of several frames, `row` those of this one.
    """
    kernels = kernels_for(state.xy)
    if kernels is not None:
        kernels.move(state, images, field.motion, log, row, frame=frame, config=config)
        return
    log.start[row], log.before[row] = state.xy, state.track
    after, found = _moved(state, images, state.xy + field.at(row, state.xy), frame, config)
    log.after[row], log.found[row] = after, found


def _moved(
    state: State, images: Images, guess: Tensor, frame: int, config: TracksConfig
) -> tuple[Tensor, Tensor]:
    slots, level = images.slots, images.levels[0]
    before, alive = state.xy, state.track >= 0
    slot_before, slot_now = (torch.full_like(state.track, f % slots) for f in (frame - 1, frame))
    forth = follow(
        images, (slot_before, slot_now), before, guess, levels=(images.coarsest(LEVELS), 0), radius=RADIUS
    )
    back = follow(
        images, (slot_now, slot_before), forth.xy, before, levels=(images.coarsest(1), 0), radius=RADIUS
    )
    found = alive & forth.ok & back.ok
    found &= (back.xy - before).norm(dim=1) < config.forward_backward_px
    x, y = forth.xy[:, 0], forth.xy[:, 1]
    found &= (x > 3) & (y > 3) & (x < level.width - 4) & (y < level.height - 4)
    # Against the track's first frame, so that errors do not add up from step to step.
    old = found & (state.reference_frame < frame - 1)
    first = (state.reference_frame % slots).to(torch.int32)
    refined = follow(images, (first, slot_now), state.reference_xy, forth.xy, levels=(0, 0), radius=RADIUS)
    again = follow(images, (slot_now, first), refined.xy, state.reference_xy, levels=(0, 0), radius=RADIUS)
    good = refined.ok & again.ok
    good &= (again.xy - state.reference_xy).norm(dim=1) < REFERENCE_BACK_PX
    good &= (refined.xy - forth.xy).norm(dim=1) < REFERENCE_MOVED_PX
    after = torch.where((old & good)[:, None], refined.xy, forth.xy)
    # The view has changed too much for the old patch: go on from the present one.
    stale = old & ~good
    state.reference_frame = torch.where(stale, frame, state.reference_frame).to(torch.int32)
    state.reference_xy = torch.where(stale[:, None], after, state.reference_xy)
    state.age = state.age + 1
    state.track = torch.where(found & (state.age < config.max_track_frames), state.track, -1).to(torch.int32)
    state.xy = after
    return after, found


def refill(
    state: State, corners: Corners, log: Log, row: int, *, frame: int, number: int, spacing_px: float
) -> None:
    """Begin tracks at free corners where many are missing, spread over the cells of the corners' grid; then put down
    all tracks that are seen in the frame.

    Args:
        state: changed. corners, log: of several frames, `row` those of this one.
        number: tracks that there may be; `state` has as many places.
        spacing_px: least distance of a new corner from a track that lives.
    """
    least = REFILL * number if frame else 0.0
    kernels = kernels_for(state.xy)
    if kernels is not None and corners.xy.shape[1] <= kernels.MOST_CORNERS:
        kernels.refill(state, corners, log, row, frame=frame, least=least, spacing_px=spacing_px)
        return
    dead = state.track < 0
    far = torch.where(dead[:, None], 1e6, torch.round(state.xy))
    xy, start = corners.xy[row], corners.start[row].long()
    nearest = torch.cdist(xy, far, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    free = (corners.valid[row] > 0) & (nearest > spacing_px)
    # Round robin over the cells: every cell's best, then every cell's second ... until none is missing.
    counted = torch.cumsum(free, 0, dtype=torch.int32)
    rank = counted - counted[start] + free[start]
    key = torch.where(free, rank * len(xy) + corners.order[row], 2**30)
    wanted = dead.sum() * (dead.sum() > least)
    last = F.pad(key.sort().values, (1, 0), value=-1)[wanted.clamp(max=len(xy))]
    chosen = free & (key <= last)
    place = torch.argsort((~chosen).int(), stable=True)
    nth = torch.cumsum(dead, 0, dtype=torch.int32) - 1
    use = dead & (nth < chosen.sum())
    fresh = xy[place[nth.clamp(0, len(xy) - 1)]]
    state.xy = torch.where(use[:, None], fresh, state.xy)
    state.reference_xy = torch.where(use[:, None], fresh, state.reference_xy)
    state.reference_frame = torch.where(use, frame, state.reference_frame).to(torch.int32)
    state.age = torch.where(use, 0, state.age).to(torch.int32)
    state.track = torch.where(use, state.count + nth, state.track).to(torch.int32)
    state.count = state.count + use.sum(dtype=torch.int32)
    log.xy[row], log.track[row] = state.xy, state.track
