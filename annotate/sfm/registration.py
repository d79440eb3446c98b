"""From cameras of keyframes to cameras of all frames."""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ..tracks.records import (
    Tracks,
)
from .bundle.priors import ExpectedFocal, focal_prior
from .bundle.problem import State
from .bundle.single import resect
from .bundle.solve import solve_bundle
from .config import BundleConfig, FocalModel
from .depth_noise import TRACK_DRIFT, DepthNoise, count_patches
from .focal_model import choose_focal_model, common_focal_error, likeness
from .observations import build_problem, count_depth
from .records import KNOWN_LENS_SIGMA, TOLERANCE, CameraSolution
from .summary import summarise
from .triangulation import back_project, keep_known, triangulate, without_moving

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
    tracks: Tracks,
    z: FloatArray,
    keyframes: IntArray,
    key_state: State,
    placed: NDArray[np.bool_],
    depth_sigma_log: float,
    config: BundleConfig,
    loops: int,
    given: FloatArray | None,
    expected: ExpectedFocal | None = None,
    depths_per_frame: float | None = None,
    noise: DepthNoise | None = None,
) -> CameraSolution:
    """Resect the frames between keyframes, then bundle everything and choose the focal model."""
    frames = tracks.num_frames
    problem = build_problem(tracks, z, config, depth_sigma_log=depth_sigma_log)
    rotation, translation, log_focal = _spread_to_all(key_state, keyframes, placed, frames)
    gain = None if noise is None else noise.gain_prior(frames)
    if given is not None:
        log_focal = given
    state = State(
        rotation=torch.as_tensor(rotation),
        translation=torch.as_tensor(translation),
        log_focal=torch.as_tensor(log_focal),
        lens=key_state.lens,
        points=torch.zeros(problem.num_points, 3, dtype=torch.float64),
        log_gain=None if gain is None else _spread_gain(key_state, keyframes, placed, frames),
    )
    known = torch.zeros(frames, dtype=torch.bool)
    known[torch.as_tensor(keyframes[placed])] = True
    points = back_project(problem, state, known=known)
    points = torch.where(
        torch.isfinite(points), points, triangulate(problem, state, ~torch.isfinite(points).all(1))
    )
    usable = torch.isfinite(points).all(1)
    state = replace(state, points=points)
    sub, sub_state = keep_known(problem, state, np.ones(frames, bool))
    free = torch.ones(frames, dtype=torch.bool) & ~known
    moved, _ = resect(
        sub,
        sub_state,
        config,
        free_frames=free,
        focal_guess=sub_state.log_focal.clone(),
        focal_sigma=0.05 if given is None else KNOWN_LENS_SIGMA,
        gain_sigma=None if noise is None or gain is None else noise.gain_sigma,
        iterations=15,
    )
    state = replace(moved, points=state.points)
    lifted = back_project(problem, state)
    tri = triangulate(problem, state, ~torch.isfinite(lifted).all(1))
    state = replace(state, points=torch.where(torch.isfinite(lifted), lifted, tri))
    log.debug(
        "points: %d of %d usable, depth on %.0f%%",
        int(usable.sum()),
        problem.num_points,
        100 * np.isfinite(z).mean(),
    )
    everywhere = np.ones(frames, bool)
    used, used_state = keep_known(problem, without_moving(problem, state, everywhere), everywhere)
    used = count_patches(count_depth(used, depths_per_frame), noise)
    model: FocalModel
    if given is not None:
        prior = focal_prior("given", frames, config, given=torch.as_tensor(given))
        solution = solve_bundle(
            used, used_state, prior, config, tolerance=TOLERANCE, want_covariance=True, gain=gain
        )
        model, costs, wiggle = "given", {"given": solution.data_cost}, 0.0
    else:
        smooth = replace(focal_prior("smooth", frames, config), expected=expected)
        solution = solve_bundle(used, used_state, smooth, config, tolerance=TOLERANCE, gain=gain)
        solution, model, costs, wiggle = choose_focal_model(used, solution, config, expected, gain)
    found = summarise(used, solution, model, costs, tracks, loops, config)
    log_gain = solution.state.log_gain
    drift = 0.0 if noise is None or given is not None else min(noise.wander, TRACK_DRIFT)
    common = float("nan") if noise is None or given is not None else common_focal_error(found, expected)
    return replace(
        found,
        depth_noise=noise,
        depth_gain_log=None if log_gain is None else log_gain.numpy(),
        sigma_factor=likeness(used, solution) ** 0.5,
        focal_doubt_log=float(np.sqrt(wiggle**2 + drift**2 + np.nan_to_num(common) ** 2)),
        focal_common_log=common,
        scale_doubt_log=0.0 if noise is None else noise.scale_sigma_log(frames),
    )
