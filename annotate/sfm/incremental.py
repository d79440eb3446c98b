"""Incremental placement: camera after camera, from the window that tells the focal length best."""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ..sources.clip import ClipRejection
from ..tracks.records import (
    ImageMeasurements,
    indices_by_group,
)
from .bundle.priors import FocalPrior, focal_prior
from .bundle.problem import Problem, State, state_at_origin
from .bundle.solve import solve_bundle
from .config import BundleConfig
from .depth_noise import DepthNoise
from .records import KNOWN_LENS_SIGMA, MIN_INLIERS
from .resection import absolute_pose, inlier_mask, refine_single
from .triangulation import keep_known

log = logging.getLogger(__name__)
_LEAST_RAY_EIGENVALUE = 3e-4  # rays at an angle t have 1 - cos t: 1.4 degrees
MIN_SHARED = 40  # agreeing points between neighbouring keyframes, below which the link is strengthened
_FOCAL_HYPOTHESES = (0.55, 0.8, 1.15, 1.8)  # times the longer image side: 85 to 31 degrees


def place_incrementally(
    problem: Problem,
    config: BundleConfig,
    *,
    start: int,
    log_focal: float | FloatArray,
    focal_step_sigma: float,
    gain_sigma: float | None = None,
) -> tuple[State, NDArray[np.bool_]]:
    """Camera after camera outwards from frame `start`: PnP, then pose and focal refined against lifted points.

    Points that have proved themselves in other frames place a frame if they can; only otherwise all points do. So
    something that moves on its own cannot take over, even where it owns most of the tracks.

    Args:
        start: frame to begin with.
        log_focal: of that frame, from which the focal is followed; or (F,) of every frame where the lens is known.
        focal_step_sigma: how far the log focal may move from one frame to the next, or from the known one.
        gain_sigma: by how much the depth of whole frames is wrong; then each frame's depth is brought to that of the
            frames before. None: it is taken as it is.
    Returns:
        State with points, and which frames were placed. Frames that fail keep their neighbour's camera.
    """
    frames = problem.num_frames
    known_lens = np.ndim(log_focal) == 1
    state = state_at_origin(problem, torch.as_tensor(np.array(np.broadcast_to(log_focal, frames))))
    frame = problem.frame.cpu().numpy()
    point = problem.point.cpu().numpy()
    uv = problem.uv_px.cpu().numpy()
    z = np.where(
        np.isfinite(problem.sigma_log_depth.cpu().numpy()), np.exp(problem.log_depth.cpu().numpy()), np.nan
    )
    centre = problem.centre_px.cpu().numpy()
    threshold = 4.0 * float(problem.sigma_px.median())
    by_frame = indices_by_group(frame, frames)
    rotation = np.tile(np.eye(3), (frames, 1, 1))
    translation = np.zeros((frames, 3))
    focal = np.exp(np.array(np.broadcast_to(log_focal, frames)))
    placed = np.zeros(frames, bool)
    total = np.zeros((problem.num_points, 3))
    count = np.zeros(problem.num_points)
    # How often a point lay where the cameras expected it, and how often not. Things that move on their own gather
    # misses, however many tracks they carry, so only points that have proved themselves place the next frame.
    hits = np.zeros(problem.num_points)
    misses = np.zeros(problem.num_points)
    gain = np.zeros(frames)
    # Of points without any depth: sums over the viewing rays of placed frames, to triangulate them by where needed.
    ray_matrix, ray_vector = np.zeros((problem.num_points, 3, 3)), np.zeros((problem.num_points, 3))
    triangulated = np.zeros(problem.num_points, bool)

    def judge_points(i: int) -> None:
        of = by_frame[i]
        of = of[count[point[of]] > 0]
        mean = total[point[of]] / count[point[of]][:, None]
        good = inlier_mask(mean, uv[of], (rotation[i], translation[i], of), focal[i], centre, 2 * threshold)
        np.add.at(hits, point[of[good]], 1)
        np.add.at(misses, point[of[~good]], 1)

    def lift(i: int) -> None:
        of = by_frame[i]
        of = of[np.isfinite(z[of])]
        depth = z[of] * np.exp(-gain[i])
        # The first depth of a point takes the place of what rays made of it.
        fresh = point[of][triangulated[point[of]]]
        total[fresh], count[fresh], triangulated[fresh] = 0, 0, False
        p = np.concatenate([(uv[of] - centre) / focal[i] * depth[:, None], depth[:, None]], 1)
        world = (p - translation[i]) @ rotation[i]
        # Points far off their first position are mismatches or moving: the first lift stands.
        old = count[point[of]] > 0
        mean = total[point[of]] / np.maximum(count[point[of]], 1)[:, None]
        near = ~old | (np.linalg.norm(world - mean, axis=1) < 0.1 * depth)
        np.add.at(total, point[of[near]], world[near])
        np.add.at(count, point[of[near]], 1)

    def add_rays(i: int) -> None:
        of = by_frame[i]
        of = of[(count[point[of]] == 0) | triangulated[point[of]]]
        ray = np.concatenate([(uv[of] - centre) / focal[i], np.ones((len(of), 1))], 1)
        ray = (ray / np.linalg.norm(ray, axis=1, keepdims=True)) @ rotation[i]
        across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
        ray_matrix[point[of]] += across
        ray_vector[point[of]] += across @ -(rotation[i].T @ translation[i])

    def triangulate_of(i: int) -> None:
        """Points for frame `i` where depth gave too few: from the rays of the frames before."""
        of = by_frame[i]
        p = point[of][(count[point[of]] == 0) | triangulated[point[of]]]
        p = p[np.linalg.eigvalsh(ray_matrix[p])[:, 0] > _LEAST_RAY_EIGENVALUE]
        total[p] = np.linalg.solve(ray_matrix[p], ray_vector[p][:, :, None])[:, :, 0]
        count[p], triangulated[p] = 1, True

    def judge_gain(i: int, agree: IntArray) -> float:
        """Factor of frame i's depth against the points that agree with its camera."""
        assert gain_sigma is not None
        of = agree[np.isfinite(z[agree]) & (count[point[agree]] > 0)]
        if len(of) < 8:
            return 0.0
        mean = total[point[of]] / count[point[of]][:, None]
        seen = (mean @ rotation[i].T + translation[i])[:, 2]
        of, seen = of[seen > 0], seen[seen > 0]
        off = np.log(z[of]) - np.log(seen)
        doubt = 1.25 * 1.4826 * np.median(np.abs(off - np.median(off))) / len(of) ** 0.5
        return float(np.median(off)) * gain_sigma**2 / (gain_sigma**2 + doubt**2)

    placed[start] = True
    lift(start)
    add_rays(start)
    for direction in (1, -1):
        last = start
        i = start + direction
        while 0 <= i < frames:
            of = by_frame[i]
            if (count[point[of]] > 0).sum() < MIN_SHARED:
                triangulate_of(i)
            known = of[(count[point[of]] > 0) & (misses[point[of]] <= hits[point[of]] + 1)]
            xyz = total[point[known]] / np.maximum(count[point[known]], 1)[:, None]
            rotation[i], translation[i] = rotation[last], translation[last]
            if not known_lens:
                focal[i] = focal[last]
            guess = focal[i]
            proved = hits[point[known]] > misses[point[known]]
            for chosen in (proved, np.ones(len(known), bool)):
                pose = absolute_pose(xyz[chosen], uv[known[chosen]], guess, centre, threshold)
                if chosen is proved and (pose is None or len(pose[2]) < max(MIN_INLIERS, 0.5 * proved.sum())):
                    continue
                if pose is None:
                    continue
                agree = inlier_mask(xyz, uv[known], pose, guess, centre, 2 * threshold)
                r, t, f, inliers = refine_single(
                    xyz[agree],
                    uv[known[agree]],
                    z[known[agree]],
                    pose[0],
                    pose[1],
                    guess,
                    centre,
                    problem,
                    config,
                    focal_step_sigma,
                    gain_sigma,
                )
                if inliers >= MIN_INLIERS:
                    rotation[i], translation[i], focal[i] = r, t, f
                    placed[i] = True
                    last = i
                    if gain_sigma is not None:
                        gain[i] = judge_gain(i, known[agree])
                    judge_points(i)
                    lift(i)
                    add_rays(i)
                    break
            i += direction
    count[misses > hits + 1] = 0
    if gain_sigma is not None:
        # The frame to begin with need not be the one whose depth is right.
        usual = float(np.median(gain[placed]))
        gain[placed] -= usual
        translation, total = translation * np.exp(usual), total * np.exp(usual)
    state = replace(
        state,
        rotation=torch.as_tensor(rotation),
        translation=torch.as_tensor(translation),
        log_focal=torch.as_tensor(np.log(focal)),
        log_gain=None if gain_sigma is None else torch.as_tensor(gain),
    )
    points = torch.as_tensor(total / np.where(count > 0, count, np.nan)[:, None])
    return replace(state, points=points), placed


def _window_prior(config: BundleConfig, frames: int, given: FloatArray | None) -> FocalPrior:
    if given is None:
        return focal_prior("constant", frames, config)
    return focal_prior("given", frames, config, given=torch.as_tensor(given, dtype=torch.float64))


def choose_start(
    problem_of,
    windows: list[IntArray],
    long_side: float,
    config: BundleConfig,
    given: FloatArray | None = None,
    noise: DepthNoise | None = None,
    expected: FloatArray | None = None,
) -> tuple[int, float]:
    """Frame and log focal to start from: the window whose best hypothesis pins the focal most tightly.

    Args:
        problem_of: frames -> Problem of that window.
        windows: keyframe numbers of each window.
        given: (K,) log focal of every keyframe where the lens is known: then the only hypothesis.
        noise: of the depth; None: its frames all have one unit.
        expected: (K,) log focal that is expected of every keyframe: one hypothesis more.
    Returns:
        (start keyframe number, log focal there).
    """
    best: tuple[float, int, float] | None = None
    for window in windows:
        problem = problem_of(window)
        if len(problem.frame) < 60:
            continue
        candidates = []
        middle = len(window) // 2
        hypotheses: list[float | FloatArray] = (
            [float(np.log(factor * long_side)) for factor in _FOCAL_HYPOTHESES]
            if given is None
            else [given[window]]
        )
        if expected is not None and given is None:
            hypotheses.append(float(expected[window[middle]]))
        prior = _window_prior(config, len(window), None if given is None else given[window])
        gain = None if noise is None else noise.gain_prior(len(window))
        for log_focal in hypotheses:
            state, placed = place_incrementally(
                problem,
                config,
                start=middle,
                log_focal=log_focal,
                focal_step_sigma=0.02 if given is None else KNOWN_LENS_SIGMA,
                gain_sigma=None if noise is None else noise.gain_sigma,
            )
            if placed.sum() < max(3, 0.6 * len(window)):
                continue
            used, used_state = keep_known(problem, state, placed)
            if len(used.frame) < 60:
                continue
            try:
                solution = solve_bundle(
                    used, used_state, prior, config, max_iterations=8, tolerance=1e-3, gain=gain
                )
            except FloatingPointError:
                continue
            candidates.append((solution.cost / len(used.frame), used, solution.state))
        if not candidates:
            continue
        cost, used, state = min(candidates, key=lambda c: c[0])
        solution = solve_bundle(
            used, state, prior, config, max_iterations=6, tolerance=1e-4, want_covariance=True, gain=gain
        )
        assert solution.covariance is not None
        sigma = float(solution.covariance[middle, 6, 6].clamp_min(0).sqrt())
        found = float(solution.state.log_focal[middle])
        log.debug("focal window %s: cost %.3f sigma %.4f focal %.1f", window[:1], cost, sigma, np.exp(found))
        # A window that fits badly holds motion of its own, however tightly it seems to pin the focal.
        score = sigma * cost**2
        if best is None or score < best[0]:
            best = (score, int(window[middle]), found)
    if best is None:
        raise ClipRejection("no_reconstruction", "no window of the clip gave a consistent set of cameras")
    return best[1], best[2]


def keyframe_windows(measured: ImageMeasurements, length: int = 12, count: int = 4) -> list[IntArray]:
    """Runs of neighbouring keyframes, spread over the clip, to try focal hypotheses on."""
    total = len(measured.keyframes)
    length = min(length, total)
    starts = np.unique(np.linspace(0, total - length, count).round().astype(int))
    return [np.arange(s, s + length) for s in starts]
