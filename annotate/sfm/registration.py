"""From cameras of keyframes to cameras of all frames."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from .at_rest import CLEAR_PARALLAX_RAD, rest_error_ratio
from .bundle.optimum import Optimum
from .bundle.priors import FocalPrior, GainPrior, focal_prior
from .bundle.problem import Problem, Solution, State
from .bundle.single import resect
from .bundle.solve import Effort, Question, solve_bundle
from .centre_jitter import centre_jitter_px
from .config import BundleConfig
from .depth_noise import TRACK_DRIFT, DepthNoise, count_patches
from .focal_model import choose_focal_model, common_focal_error
from .keyframes import KeyframeProblem
from .lean import leant_on_rays
from .moving import Shares, shares_by_frame
from .moving_masks import moving_masks
from .observations import count_depth
from .records import KNOWN_LENS_SIGMA, TOLERANCE, CameraSolution
from .shared_errors import OF_NETWORKS, OF_SENSORS, KnownErrors, shared_errors
from .summary import summarise
from .triangulation import (
    back_project,
    forget,
    keep_shared,
    known_points,
    of_frames,
    triangulate,
    without_moving,
)

_REACH = 8
"""Frames on either side of one that are asked whether they agree: what moves has left its place by then."""

log = logging.getLogger(__name__)


def _spread_to_all(
    key_state: State, keyframes: IntArray, placed: NDArray[np.bool_], frames: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Start values for every frame: keyframe cameras interpolated on the group. World-to-camera R, t and log focal."""

    good = np.nonzero(placed)[0]
    matrices = np.tile(np.eye(4), (len(good), 1, 1))
    matrices[:, :3, :3] = key_state.rotation.cpu().numpy()[good]
    matrices[:, :3, 3] = key_state.translation.cpu().numpy()[good]
    times = keyframes[good].astype(float)
    inside = np.clip(np.arange(frames), times[0], times[-1])
    camera_to_world = interpolate_poses(times, se3_inverse(matrices), inside)
    world_to_camera = se3_inverse(camera_to_world)
    log_focal = np.interp(inside, times, key_state.log_focal.cpu().numpy()[good])
    return world_to_camera[:, :3, :3], world_to_camera[:, :3, 3], log_focal


def _spread_gain(key_state: State, keyframes: IntArray, placed: NDArray[np.bool_], frames: int) -> Tensor:
    """Start values (F,) of the gain of every frame's depth: the keyframes' own, and between them their slow part."""
    if key_state.log_gain is None:
        return torch.zeros(frames, dtype=torch.float64)
    good = np.nonzero(placed)[0]
    own = key_state.log_gain.numpy()[good]
    slow = [np.median(own[max(0, i - 2) : i + 3]) for i in range(len(own))]
    gain = np.interp(np.arange(frames), keyframes[good], slow)
    gain[keyframes[good]] = own
    return torch.as_tensor(gain)


def register_all_frames(
    keys: KeyframeProblem, key_state: State, placed: NDArray[np.bool_], *, num_loops: int
) -> CameraSolution:
    """Resect the frames between keyframes, then bundle everything and choose the focal model.

    Args:
        keys: tracks of all frames, and what is known of depth and lens.
        key_state, placed: cameras of the keyframes, and which of them have one.
        num_loops: places that were seen again.
    """
    frames, config, noise = keys.tracks.num_frames, keys.given.config, keys.noise
    problem = keys.whole_problem()
    state, moves = _resected(problem, keys, key_state, placed)
    everywhere = np.ones(frames, bool)
    still = forget(without_moving(problem, state, everywhere), moves)
    used, used_state = keep_shared(problem, still, everywhere)
    used = count_patches(count_depth(used, keys.depths_per_frame), noise)
    gain = None if noise is None else noise.gain_prior(frames)
    solution, prior, costs, wiggle = _bundle_all(used, used_state, keys, gain)
    solution, optimum = _with_optimum(used, solution, prior, config, gain)
    cameras = summarise(used, solution, prior.model, costs, config, num_loops=num_loops)
    # What measurements of a view share is asked before rays, which are not of the view, take their part.
    alike, by_images = common_focal_error(cameras, keys.expected), solution.state.log_focal
    if noise is None and keys.log_focal is None:
        leant, prior = leant_on_rays(used, solution, prior, cameras, config)
        if leant is not solution:
            solution, optimum = _with_optimum(used, leant, prior, config, gain)
            cameras = summarise(used, solution, prior.model, costs, config, num_loops=num_loops)
    known = known_points(problem, still, everywhere)
    shares = shares_by_frame(problem, state, solution.state, known, reach=_REACH)
    rest = float("nan")
    if cameras.parallax_rad < CLEAR_PARALLAX_RAD:
        rest = rest_error_ratio(used, solution.state, _free_focal(keys), config)
    log_gain = solution.state.log_gain
    shared = shared_errors(optimum, _known_errors(noise))
    of_views, beside = 0.0, 0.0
    if keys.log_focal is None:
        by_cause = float(np.median(shared.log_focal)) ** 0.5
        of_views = max(by_cause, alike)
        beside = (of_views**2 - by_cause**2) ** 0.5
    return replace(
        cameras,
        rest_error_ratio=rest,
        kept_share=shares.kept,
        moving_share=shares.moving,
        moving_masks=_masks(problem, shares, keys) if config.moving_masks else None,
        depth_noise=noise,
        depth_gain_log=None if log_gain is None else log_gain.numpy(),
        shared=shared,
        focal_doubt_log=float(np.hypot(wiggle, beside)),
        # How short a path may be is asked of those that lean on given depth alone. A lens that is held constant and
        # would rather change is no surer than it would change: a zoom that was not taken for one.
        focal_common_log=float(np.hypot(of_views, wiggle))
        if keys.log_focal is None and (noise is not None or prior.model == "constant")
        else float("nan"),
        focal_leant_log=float((solution.state.log_focal - by_images).median()),
        centre_jitter_px=centre_jitter_px(used, solution),
        scale_doubt_log=0.0 if noise is None else noise.scale_sigma_log(frames),
    )


def _masks(problem: Problem, shares: Shares, keys: KeyframeProblem) -> NDArray[np.bool_]:
    """(F, 36, 64) bool, where something moves on its own."""
    log_depth = np.where(torch.isfinite(problem.sigma_log_depth).numpy(), problem.log_depth.numpy(), np.nan)
    place = keys.stored_px(problem) / keys.size_px
    point = problem.point.numpy()
    return moving_masks(problem.frame.numpy(), place, log_depth, shares.tracks[point], keys.depth)


def _known_errors(noise: DepthNoise | None) -> KnownErrors:
    if noise is None:
        return OF_NETWORKS
    # A unit that drifts by less than this is not told from tracks that do.
    return replace(OF_SENSORS, slow_log=min(noise.wander, TRACK_DRIFT))


def _with_optimum(
    problem: Problem, solution: Solution, prior: FocalPrior, config: BundleConfig, gain: GainPrior | None
) -> tuple[Solution, Optimum]:
    """The solution with the covariance of its cameras, and the equations that this and more is read from."""
    question = Question(problem=problem, state=solution.state, prior=prior, config=config, gain=gain)
    optimum = Optimum.of(question, solution)
    return replace(solution, covariance=optimum.covariance()), optimum


def _resected(
    problem: Problem, keys: KeyframeProblem, key_state: State, placed: NDArray[np.bool_]
) -> tuple[State, NDArray[np.bool_]]:
    """Cameras of all frames: those between keyframes from the points that the keyframes know; and all points, with
    those (P,) of them that move."""
    frames, keyframes = problem.num_frames, keys.keyframes
    rotation, translation, log_focal = _spread_to_all(key_state, keyframes, placed, frames)
    state = State(
        rotation=torch.as_tensor(rotation),
        translation=torch.as_tensor(translation),
        log_focal=torch.as_tensor(log_focal if keys.log_focal is None else keys.log_focal),
        lens=key_state.lens,
        points=torch.zeros(problem.num_points, 3, dtype=torch.float64),
        log_gain=None
        if keys.noise is None or keys.noise.gain_prior(frames) is None
        else _spread_gain(key_state, keyframes, placed, frames),
    )
    known = torch.zeros(frames, dtype=torch.bool)
    known[torch.as_tensor(keyframes[placed])] = True
    points = back_project(problem, state, known=known)
    points = torch.where(
        torch.isfinite(points), points, triangulate(problem, state, ~torch.isfinite(points).all(1))
    )
    state = replace(state, points=points)
    moving = keys.moving(problem, state, known.numpy())
    used, used_state = keep_shared(problem, forget(state, moving), np.ones(frames, bool))
    # Points stay: what the keyframes see of them does not move the frames between.
    moved, _ = resect(
        of_frames(used, ~known),
        used_state,
        keys.given.config,
        free_frames=~known,
        focal_guess=used_state.log_focal.clone(),
        focal_sigma=0.05 if keys.log_focal is None else KNOWN_LENS_SIGMA,
        effort=Effort(max_iterations=15, tolerance=TOLERANCE),
        gain_sigma=None if state.log_gain is None else keys.gain_sigma,
    )
    state = replace(moved, points=state.points)
    from_depth = back_project(problem, state)
    solved = triangulate(problem, state, ~torch.isfinite(from_depth).all(1))
    usable, depth = int(torch.isfinite(points).all(1).sum()), 100 * np.isfinite(keys.z).mean()
    log.debug("points: %d of %d usable, depth on %.0f%%", usable, problem.num_points, depth)
    state = replace(state, points=torch.where(torch.isfinite(from_depth), from_depth, solved))
    # Tracks that live between two keyframes are told by now.
    return state, moving | keys.moving(problem, state, np.ones(frames, bool))


def _bundle_all(
    problem: Problem, state: State, keys: KeyframeProblem, gain: GainPrior | None
) -> tuple[Solution, FocalPrior, dict[str, float], float]:
    """As `choose_focal_model`, from a start; a held lens is the only model."""
    config, prior = keys.given.config, _free_focal(keys)
    if keys.log_focal is not None:
        solution = solve_bundle(problem, state, prior, config, effort=Effort(tolerance=TOLERANCE), gain=gain)
        return solution, prior, {"given": solution.data_cost}, 0.0
    smooth = replace(prior, expected=keys.expected)
    solution = solve_bundle(problem, state, smooth, config, effort=Effort(tolerance=TOLERANCE), gain=gain)
    return choose_focal_model(problem, solution, config, keys.expected, gain)


def _free_focal(keys: KeyframeProblem) -> FocalPrior:
    """The focal lengths of all frames, as free as they are before one of the models is chosen; a held lens stays."""
    frames, config = keys.tracks.num_frames, keys.given.config
    if keys.log_focal is not None:
        return focal_prior("given", frames, config, given=torch.as_tensor(keys.log_focal))
    return focal_prior("smooth", frames, config)
