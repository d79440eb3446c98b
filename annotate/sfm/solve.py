"""From image measurements and depth to a camera for every frame: the order of the stages.

The order is coarse to fine. Keyframes first: several focal hypotheses compete on short windows; the best window
seeds an incremental reconstruction in both directions; a bundle over keyframes follows; loop closures are proposed by
view overlap, verified by descriptors, and the bundle runs again. Then every frame between is resected with its own
focal and a bundle over all frames finishes. Everything works in the unit of the given depth.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..sources.clip import ClipRejection
from .bundle.problem import State
from .keyframes import AskedFocal, KeyframeProblem, SolverInput
from .lens_model import KeyframeFit, choose_lens
from .loops import propose_loops, weak_links
from .observations import median_depth_by_frame
from .records import CameraSolution, in_stored_pixels, with_lens
from .registration import register_all_frames
from .triangulation import back_project, parallax

log = logging.getLogger(__name__)

_DEPTH_MATTERS_RAD = 0.0175
"""Angle under which tracks are seen, by the cameras that the bundle starts from, below which every depth counts: with
so little parallax nothing else tells a zoom from a camera that comes closer."""


def solve_cameras(inputs: SolverInput, *, with_evidence: bool = False) -> CameraSolution:
    """Cameras of every frame from image measurements and depth; the lens is unknown unless `inputs.lens` says it.

    Args:
        inputs: with depth.
        with_evidence: keep the observations in the solution.
    Raises:
        ClipRejection: `no_depth_on_tracks`, `no_reconstruction`, `intrinsics_aspect_varies`.
        ValueError: there is no depth.
    """
    square, aspect = inputs.in_square_pixels()
    try:
        cameras = _solve(square)
    except FloatingPointError as error:
        raise ClipRejection("no_reconstruction", f"no bundle of the clip: {error}") from error
    if not with_evidence:
        cameras = replace(cameras, evidence=None)
    return cameras if aspect == 1.0 else with_lens(in_stored_pixels(cameras, aspect), inputs.held_lens)


def _solve(given: SolverInput) -> CameraSolution:
    """`solve_cameras` in square pixels."""
    keys = KeyframeProblem(given)
    near, asked = None, AskedFocal()
    try:
        near, asked = _near_pinhole(keys)
        fit = choose_lens(keys, near) or near
    except (ClipRejection, FloatingPointError):
        # Where no window fits a lens near a pinhole, another may.
        fit = None if near is not None else choose_lens(keys, None)
        if fit is None:
            raise
    gain = fit.solution.data_cost / len(fit.solution.weight) / asked.cost
    keys.judge_depth(fit.problem, fit.solution)
    # 6. Loops
    state, loops = _close_loops(keys, fit.state, fit.placed)
    # 7. All frames
    cameras = with_lens(register_all_frames(keys, state, fit.placed, num_loops=loops), given.held_lens)
    return replace(cameras, focal_asked_log=asked.log, focal_asked_sigma=asked.sigma, focal_asked_gain=gain)


def _near_pinhole(keys: KeyframeProblem) -> tuple[KeyframeFit, AskedFocal]:
    """Keyframes with a lens near a pinhole, and what they ask of a known one."""
    given = keys.given
    with_depth = float(np.isfinite(keys.z).mean())
    # 1. Focal hypotheses on windows
    if given.start is None:
        keys.choose_seed()
    # 2. First cameras of the keyframes
    state, placed = keys.place()
    # 3. Across weak links
    weak = weak_links(keys.problem, state, placed)
    if len(weak) and keys.cross_weak_links(weak, state, placed):
        state, placed = keys.place()
    log.debug("%d of %d keyframes placed, %.0f%% depth", placed.sum(), len(placed), 100 * with_depth)
    _count_depth_by_parallax(keys, state)
    # 4. Does the lens agree?
    asked = keys.ask_focal()
    # 5. Bundle of the keyframes
    state, problem, solution = keys.bundle(state, placed, 20, tolerance=keys.rough)
    return KeyframeFit(state=state, placed=placed, problem=problem, solution=solution), asked


def _count_depth_by_parallax(keys: KeyframeProblem, state: State) -> None:
    if keys.given.start is None or keys.depths_per_frame is None:
        return
    seen = torch.isfinite(state.points).all(1)[keys.problem.point]
    if parallax(keys.problem, state, seen) < _DEPTH_MATTERS_RAD:
        keys.depths_per_frame = None


def _close_loops(keys: KeyframeProblem, state: State, placed: NDArray[np.bool_]) -> tuple[State, int]:
    """Bundle once more with the places that are seen again; the state, and how many there are."""
    keys.rebuild_problem()
    limit = keys.given.tracks_config.max_loops_per_keyframe
    loops = 0
    if limit:
        depth = median_depth_by_frame(keys.problem)
        loops = keys.add_matches(propose_loops(state, placed, depth, keys.size_px, set(keys.matches), limit))
    log.debug("loops: %d", loops)
    if not loops:
        return state, 0
    keys.rebuild()
    state = replace(state, points=back_project(keys.problem, state))
    state, solved, solution = keys.bundle(state, placed, 15, tolerance=keys.rough)
    if keys.noise is not None:
        keys.judge_depth(solved, solution)
    return state, loops
