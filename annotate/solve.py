"""From image measurements and depth to a camera for every frame: initialisation, loops, focal model, infill.

The order is coarse to fine. Keyframes first: several focal hypotheses compete on short windows; the best window
seeds a sequential reconstruction in both directions; a bundle over keyframes follows; loop closures are proposed by
view overlap, verified by descriptors, and the bundle runs again. Then every frame between is resected with its own
focal and a bundle over all frames finishes. Everything works in the unit of the given depth.
"""

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset.arrays import FloatArray, IntArray
from ..dataset.cameras.rotations import rotation_angle
from ..dataset.cameras.transforms import interpolate_poses, se3_inverse
from . import bundle as ba
from .bundle import BundleConfig, FocalModel, Problem, Solution, State
from .dense import View, align_rgbd, link_points
from .depth_noise import TRACK_DRIFT, DepthNoise, count_patches, first_noise, measured_noise, sample_depth
from .geometry.base import DepthMaps
from .sources.clip import ClipRejection
from .tracks.descriptors import descriptor_tracks, match_features
from .tracks.records import (
    DENSE,
    DESCRIPTOR,
    ImageMeasurements,
    Tracks,
    TracksConfig,
    join_tracks,
    make_tracks,
    members,
)

log = logging.getLogger(__name__)

SOLVED, INFILLED, GIVEN = "solved", "infilled", "given"
RMS_OF_MEDIAN = 1.2011
"""Root mean square over median of the length of a 2-D Gaussian error."""
_MIN_INLIERS = 12
_FOCAL_DOUBT_LOG = 0.05  # a window's focal that is further than this from the given one is looked into
_KNOWN_LENS_SIGMA = 1e-4  # freedom of a known log focal in the steps before the bundle
_LEAST_RAY_EIGENVALUE = 3e-4  # rays at an angle t have 1 - cos t: 1.4 degrees
_MIN_SHARED = 40  # agreeing points between neighbouring keyframes, below which the link is strengthened
_MIN_DENSE_AGREEMENT = 0.85
_MIN_LOOP_MATCHES = 25  # between images that are not neighbours in time
# Below this decrease of the cost in one step only single outliers change sides; the cameras stand still.
_TOLERANCE = 5e-4
_FOCAL_HYPOTHESES = (0.55, 0.8, 1.15, 1.8)  # times the longer image side: 85 to 31 degrees


@dataclass(frozen=True, kw_only=True)
class CameraSolution:
    """Cameras of every frame, in the unit of the depth.

    Attributes:
        camera_to_world: (F, 4, 4), OpenCV axes, first frame at the origin.
        focal_px: (F, 2) fx, fy; principal_point_px: (F, 2); stored size.
        pose_source: (F,) "solved", "infilled", or "given" where `keep_given_poses` put a given one.
        focal_model: constant, smooth, piecewise or given.
        position_sigma: (F,) standard deviation of the camera centre along its worst axis, in depth units.
        rotation_sigma_rad: (F,) same for rotation.
        log_focal_sigma: (F,).
        reprojection_px: (F,) robust root mean square over a frame's inliers, stored pixels; of cameras that were not
            solved from them (given or bridged) over all observations, by their median.
        num_observations, num_inliers: (F,) observations, and those of them that agree.
        inlier_share: (F,) of all observations of the frame.
        num_joining: (F,) points that agree both before a frame and from it on; None where it was not counted.
        depth_log_residual: median absolute log difference between solved and given depth.
        parallax_rad: median over tracks of the largest angle between viewing rays.
        num_tracks, num_loops: totals.
        focal_cost: cost of each focal model that was tried (lower fits better); of one that was given up as hopeless,
            what it had come to.
        scale_sweep: (S, 2) factor on depth, mean cost; least at 1 when depth and poses agree. (0, 2) without depth.
        radial_k1: radial term of the lens that the bundle fitted, x' = x (1 + k1 r^2) in normalised coordinates; the
            pinhole cameras are those of the undistorted image.
        median_depth: median depth of all observations.
        focal_asked_log: where the lens is known, log of the focal length that images and depth ask for by themselves
            over the given one; NaN where the lens is unknown or the start came from elsewhere.
        focal_asked_sigma, focal_asked_gain: spread of that along the clip, and the cost of the keyframes with the given
            lens over that with the one asked for; NaN where a part of the clip confirmed the given one.
        evidence: what the cameras were solved from; None unless it was asked for.
        depth_noise: how the given depth errs, as measured; None where that is not asked (networks).
        depth_gain_log: (F,) log of measured over true depth of each frame; None where all have one unit.
        sigma_factor: by how much errors that neighbours have in common widen the standard deviations.
        focal_doubt_log, scale_doubt_log: standard deviations of what is wrong with all focal lengths alike, and with
            the unit of the depth.
        focal_common_log: part of `focal_doubt_log`: what the focal length is wrong by where all measurements err alike
            by a share of what they err one by one. A short path hardly resists that; NaN where it is not asked.
    """

    camera_to_world: FloatArray
    focal_px: FloatArray
    principal_point_px: FloatArray
    pose_source: NDArray
    focal_model: FocalModel
    position_sigma: FloatArray
    rotation_sigma_rad: FloatArray
    log_focal_sigma: FloatArray
    reprojection_px: FloatArray
    num_observations: IntArray
    num_inliers: IntArray
    inlier_share: FloatArray
    depth_log_residual: float
    parallax_rad: float
    num_tracks: int
    num_loops: int
    focal_cost: dict[str, float]
    scale_sweep: FloatArray
    radial_k1: float
    median_depth: float
    focal_asked_log: float = float("nan")
    depth_noise: DepthNoise | None = None
    depth_gain_log: FloatArray | None = None
    sigma_factor: float = 1.0
    focal_doubt_log: float = 0.0
    scale_doubt_log: float = 0.0
    focal_common_log: float = float("nan")
    focal_asked_sigma: float = float("nan")
    focal_asked_gain: float = float("nan")
    evidence: Evidence | None = None
    num_joining: IntArray | None = None

    def stated_sigmas(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Standard deviations that the row states, each (F,): position (depth units), rotation (rad), log focal.

        `position_sigma` and its like know independent errors of single observations only. Errors of neighbours are
        alike, and what is wrong with the lens or the unit of depth is wrong in all frames: a focal length that is too
        long by a share turns and moves the camera too little by that share, all along from the first frame on.
        """
        poses = self.camera_to_world
        turned = rotation_angle(poses[:1, :3, :3].swapaxes(1, 2) @ poses[:, :3, :3])
        gone = np.linalg.norm(poses[:, :3, 3] - poses[:1, :3, 3], axis=1)
        position = np.hypot(
            self.sigma_factor * self.position_sigma,
            np.hypot(self.focal_doubt_log, self.scale_doubt_log) * gone,
        )
        rotation = np.hypot(
            self.sigma_factor * self.rotation_sigma_rad, self.focal_doubt_log * np.asarray(turned)
        )
        return position, rotation, np.hypot(self.sigma_factor * self.log_focal_sigma, self.focal_doubt_log)


@dataclass(frozen=True)
class Evidence:
    """Observations behind a solution, so that other cameras can be measured on them.

    Attributes:
        problem: observations of all frames, in the pixels in which they were solved (square ones, and the principal
            point of a known lens at the centre).
        state: cameras and points at the optimum, in the world of `problem`.
        config: of the bundle.
    """

    problem: Problem
    state: State
    config: BundleConfig


def build_problem(
    tracks: Tracks, depth: FloatArray, config: BundleConfig, *, depth_sigma_log: float
) -> Problem:
    """Bundle problem of a set of tracks, observations in the same order.

    Args:
        depth: (N,) z-depth of each observation, NaN where none; its unit becomes that of the solution.
        depth_sigma_log: relative error of a depth.
    """
    working = max(tracks.height, tracks.width) / 640.0
    sigma = (
        np.where(tracks.kind == DESCRIPTOR, config.descriptor_sigma_px, config.reprojection_sigma_px)
        * working
    )
    sigma = np.where(tracks.kind == DENSE, tracks.sigma_px, sigma)
    has = np.isfinite(depth) & (depth > 0)
    relative = config.depth_sigma_log or depth_sigma_log

    def tensor(x: NDArray, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x), dtype=dtype)

    return Problem(
        frame=tensor(tracks.frame, torch.long),
        point=tensor(tracks.track, torch.long),
        uv_px=tensor(tracks.xy_px),
        sigma_px=tensor(sigma),
        log_depth=tensor(np.log(np.where(has, depth, 1.0))),
        sigma_log_depth=tensor(np.where(has, relative, np.inf)),
        num_frames=tracks.num_frames,
        num_points=tracks.num_tracks,
        centre_px=tensor(np.array([tracks.width / 2, tracks.height / 2])),
        focal_scale_px=float(np.hypot(tracks.width, tracks.height)),
    )


def subset_frames(tracks: Tracks, depth: FloatArray, frames: IntArray) -> tuple[Tracks, FloatArray]:
    """Tracks restricted to `frames` (increasing), which are renumbered 0..len-1; single observations dropped."""
    number = np.full(tracks.num_frames, -1)
    number[frames] = np.arange(len(frames))
    keep = number[tracks.frame] >= 0
    count = np.bincount(tracks.track[keep], minlength=tracks.num_tracks)
    keep &= count[tracks.track] >= 2
    sub = make_tracks(
        number[tracks.frame[keep]],
        tracks.track[keep],
        tracks.xy_px[keep],
        tracks.kind[keep],
        len(frames),
        tracks.height,
        tracks.width,
        tracks.sigma_px[keep],
    )
    return sub, depth[keep]


def thin_observations(
    tracks: Tracks, depth: FloatArray, keyframes: IntArray, config: BundleConfig
) -> tuple[Tracks, FloatArray]:
    """Fewer observations where more would not help: cost grows with pairs of them.

    Between keyframes only some of the flow tracks are kept (whole tracks, so that they stay long; numbers are dealt
    out round robin over the image, so that any share of them is spread). Of descriptor tracks the longest stay.
    """
    flow = tracks.kind != DESCRIPTOR  # dense links lie on keyframes, where nothing but descriptors is thinned
    is_key = np.zeros(tracks.num_frames, bool)
    is_key[keyframes] = True
    between = np.bincount(tracks.frame[flow], minlength=tracks.num_frames)[~is_key]
    usual = float(np.median(between)) if len(between) else 0.0
    keep = np.ones(len(tracks.frame), bool)
    if usual > config.max_observations:
        share = config.max_observations / usual
        # Golden-ratio sequence: an even share of any run of consecutive track numbers.
        chosen = (np.arange(tracks.num_tracks) * 0.6180339887498949) % 1.0 < share
        keep &= ~flow | is_key[tracks.frame] | chosen[tracks.track]
    length = np.bincount(tracks.track, minlength=tracks.num_tracks)
    described = np.nonzero(~flow)[0]
    order = described[
        np.lexsort((tracks.track[described], -length[tracks.track[described]], tracks.frame[described]))
    ]
    frame = tracks.frame[order]
    start = (
        np.maximum.accumulate(np.where(np.r_[True, frame[1:] != frame[:-1]], np.arange(len(order)), 0))
        if len(order)
        else order
    )
    keep[order[np.arange(len(order)) - start >= config.max_descriptor_observations]] = False
    return drop_observations(tracks, depth, keep)


def drop_observations(
    tracks: Tracks, depth: FloatArray, keep: NDArray[np.bool_]
) -> tuple[Tracks, FloatArray]:
    """Tracks without the observations where `keep` is False; single observations dropped."""
    count = np.bincount(tracks.track[keep], minlength=tracks.num_tracks)
    keep = keep & (count[tracks.track] >= 2)
    sub = make_tracks(
        tracks.frame[keep],
        tracks.track[keep],
        tracks.xy_px[keep],
        tracks.kind[keep],
        tracks.num_frames,
        tracks.height,
        tracks.width,
        tracks.sigma_px[keep],
    )
    return sub, depth[keep]


def count_depth(problem: Problem, per_frame: float | None) -> Problem:
    """The problem with depth weighted as if no frame had more than `per_frame` independent ones; None changes nothing.

    A network errs alike over large parts of an image. Believed one by one, hundreds of its depths move a camera and
    bend its focal length to please an error that they share.
    """
    if per_frame is None:
        return problem
    has = torch.isfinite(problem.sigma_log_depth)
    count = ba.sum_by(problem.frame, has.double(), problem.num_frames)
    factor = (count / per_frame).clamp_min(1.0).sqrt()[problem.frame]
    return replace(problem, sigma_log_depth=problem.sigma_log_depth * factor)


def true_log_depth(problem: Problem, state: State) -> Tensor:
    """(N,) log depth of the observations without the factor by which their frame's depth is wrong."""
    return problem.log_depth if state.log_gain is None else problem.log_depth - state.log_gain[problem.frame]


def lift_points(problem: Problem, state: State, *, known: Tensor | None = None) -> Tensor:
    """World points (P, 3) from depth: the median camera-frame lift over the observations that have depth.

    Args:
        known: (F,) bool frames whose cameras may be used; None = all. Points without usable depth get NaN.
    """
    has = torch.isfinite(problem.sigma_log_depth)
    if known is not None:
        has &= known[problem.frame]
    f = problem.frame
    z = true_log_depth(problem, state).exp()
    focal = state.log_focal[f].exp()
    xy = problem.uv_px - problem.centre_px
    p = torch.stack([xy[:, 0] / focal * z, xy[:, 1] / focal * z, z], 1)
    world = (state.rotation[f].transpose(1, 2) @ (p - state.translation[f])[:, :, None])[:, :, 0]
    total = ba.sum_by(problem.point[has], world[has], problem.num_points)
    count = ba.sum_by(problem.point[has], torch.ones_like(z)[has], problem.num_points)
    return total / torch.where(count > 0, count, torch.nan)[:, None]


def triangulate(problem: Problem, state: State, wanted: Tensor) -> Tensor:
    """Points (P, 3) by linear least squares on viewing rays, for `wanted` (P,) tracks; NaN where rays are parallel."""
    f = problem.frame
    use = wanted[problem.point]
    focal = state.log_focal[f].exp()
    xy = (problem.uv_px - problem.centre_px - state.lens[:2]) / focal[:, None]
    ray = torch.cat([xy, torch.ones_like(xy[:, :1])], 1)
    ray = (state.rotation[f].transpose(1, 2) @ ray[:, :, None])[:, :, 0]
    ray = ray / ray.norm(dim=1, keepdim=True)
    centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    project = torch.eye(3, dtype=ray.dtype) - ray[:, :, None] * ray[:, None, :]
    a = ba.sum_by(problem.point[use], project[use], problem.num_points)
    b = ba.sum_by(problem.point[use], (project @ centre[f][:, :, None])[use][:, :, 0], problem.num_points)
    eigen = torch.linalg.eigvalsh(a)
    # Two rays at angle t have least eigenvalue 1 - cos t; 1 degree over the track at least.
    ok = wanted & (eigen[:, 0] > 1.5e-4)
    solved = torch.full((problem.num_points, 3), torch.nan, dtype=ray.dtype)
    solved[ok] = torch.linalg.solve(a[ok], b[ok])
    return solved


def _empty_state(problem: Problem, log_focal: Tensor) -> State:
    frames = problem.num_frames
    return State(
        rotation=torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1),
        translation=torch.zeros(frames, 3, dtype=torch.float64),
        log_focal=log_focal,
        lens=torch.zeros(ba.LENS_DOF, dtype=torch.float64),
        points=torch.zeros(problem.num_points, 3, dtype=torch.float64),
    )


def absolute_pose(
    xyz: FloatArray, uv: FloatArray, focal: float, centre: FloatArray, threshold_px: float
) -> tuple[FloatArray, FloatArray, IntArray] | None:
    """Robust perspective-n-point (RANSAC over SQPnP, Terzakis and Lourakis 2020).

    Args:
        xyz: (n, 3) world points; uv: (n, 2) where they were seen, pixels.
        focal: pixels; centre: (2,) principal point.
    Returns:
        Rotation (3, 3) and translation (3,) world to camera, and (m,) inlier numbers; None if it fails.
    """
    if len(xyz) < 6:
        return None
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
    try:
        ok, rvec, tvec, inliers = cv2.solvePnPRansac(
            xyz,
            uv,
            camera,
            None,
            iterationsCount=200,
            reprojectionError=threshold_px,
            confidence=0.999,
            flags=cv2.SOLVEPNP_SQPNP,
        )
    except cv2.error:
        return None
    if not ok or inliers is None or len(inliers) < 6:
        return None
    return cv2.Rodrigues(rvec)[0], tvec[:, 0], inliers[:, 0]


def agreeing(
    xyz: FloatArray,
    uv: FloatArray,
    pose: tuple[FloatArray, FloatArray, IntArray],
    focal: float,
    centre: FloatArray,
    threshold_px: float,
) -> NDArray[np.bool_]:
    """(n,) bool: world points `xyz` (n, 3) that project within `threshold_px` of where they were seen, `uv` (n, 2)."""
    local = xyz @ pose[0].T + pose[1]
    ahead = np.maximum(local[:, 2], 1e-6)
    error = np.linalg.norm(local[:, :2] / ahead[:, None] * focal + centre - uv, axis=1)
    return (local[:, 2] > 0) & (error < threshold_px)


def sequential(
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
    state = _empty_state(problem, torch.as_tensor(np.array(np.broadcast_to(log_focal, frames))))
    frame = problem.frame.cpu().numpy()
    point = problem.point.cpu().numpy()
    uv = problem.uv_px.cpu().numpy()
    z = np.where(
        np.isfinite(problem.sigma_log_depth.cpu().numpy()), np.exp(problem.log_depth.cpu().numpy()), np.nan
    )
    centre = problem.centre_px.cpu().numpy()
    threshold = 4.0 * float(problem.sigma_px.median())
    by_frame = members(frame, frames)
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
        good = agreeing(mean, uv[of], (rotation[i], translation[i], of), focal[i], centre, 2 * threshold)
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
            if (count[point[of]] > 0).sum() < _MIN_SHARED:
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
                if chosen is proved and (
                    pose is None or len(pose[2]) < max(_MIN_INLIERS, 0.5 * proved.sum())
                ):
                    continue
                if pose is None:
                    continue
                agree = agreeing(xyz, uv[known], pose, guess, centre, 2 * threshold)
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
                if inliers >= _MIN_INLIERS:
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


def triangulate_known(problem: Problem, state: State, placed: NDArray[np.bool_], wanted: Tensor) -> Tensor:
    """`triangulate` from the observations of placed frames only."""
    keep = torch.as_tensor(placed)[problem.frame]
    sub = replace(
        problem,
        frame=problem.frame[keep],
        point=problem.point[keep],
        uv_px=problem.uv_px[keep],
        sigma_px=problem.sigma_px[keep],
        log_depth=problem.log_depth[keep],
        sigma_log_depth=problem.sigma_log_depth[keep],
    )
    return triangulate(sub, state, wanted)


def refine_single(
    xyz: FloatArray,
    uv: FloatArray,
    z: FloatArray,
    rotation: FloatArray,
    translation: FloatArray,
    focal: float,
    centre: FloatArray,
    problem: Problem,
    config: BundleConfig,
    focal_step_sigma: float,
    gain_sigma: float | None = None,
) -> tuple[FloatArray, FloatArray, float, int]:
    """Pose and focal of one frame against fixed points; the tiny case of `bundle.resect`.

    Args:
        xyz: (n, 3) world points; uv: (n, 2) pixels; z: (n,) depth in the points' unit, NaN where none.
        rotation, translation, focal: where to begin, world to camera and pixels.
        problem: whose standard deviations hold for this frame too.
        focal_step_sigma: how far log focal may move.
        gain_sigma: by how much the depth of a whole frame is wrong; None: not at all.
    Returns:
        Rotation (3, 3), translation (3,), focal in pixels, number of inliers.
    """
    n = len(xyz)
    single = Problem(
        frame=torch.zeros(n, dtype=torch.long),
        point=torch.arange(n),
        uv_px=torch.as_tensor(uv),
        sigma_px=torch.full((n,), float(problem.sigma_px.median()), dtype=torch.float64),
        log_depth=torch.as_tensor(np.log(np.where(np.isfinite(z), z, 1.0))),
        sigma_log_depth=torch.as_tensor(
            np.where(np.isfinite(z), _finite_median(problem.sigma_log_depth), np.inf)
        ),
        num_frames=1,
        num_points=n,
        centre_px=problem.centre_px,
        focal_scale_px=problem.focal_scale_px,
    )
    state = State(
        rotation=torch.as_tensor(rotation)[None],
        translation=torch.as_tensor(translation)[None],
        log_focal=torch.tensor([np.log(focal)], dtype=torch.float64),
        lens=torch.zeros(ba.LENS_DOF, dtype=torch.float64),
        points=torch.as_tensor(xyz),
    )
    state, inliers = ba.resect(
        single,
        state,
        config,
        free_frames=torch.ones(1, dtype=torch.bool),
        focal_guess=state.log_focal.clone(),
        focal_sigma=focal_step_sigma,
        gain_sigma=gain_sigma,
        iterations=8,
    )
    return (
        state.rotation[0].cpu().numpy(),
        state.translation[0].cpu().numpy(),
        float(state.log_focal[0].exp()),
        int(inliers[0]),
    )


def _finite_median(x: Tensor) -> float:
    finite = x[torch.isfinite(x)]
    return float(finite.median()) if len(finite) else float("inf")


def _window_prior(config: BundleConfig, frames: int, given: FloatArray | None) -> ba.FocalPrior:
    if given is None:
        return ba.focal_prior("constant", frames, config)
    return ba.focal_prior("given", frames, config, given=torch.as_tensor(given, dtype=torch.float64))


def _choose_start(
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
            state, placed = sequential(
                problem,
                config,
                start=middle,
                log_focal=log_focal,
                focal_step_sigma=0.02 if given is None else _KNOWN_LENS_SIGMA,
                gain_sigma=None if noise is None else noise.gain_sigma,
            )
            if placed.sum() < max(3, 0.6 * len(window)):
                continue
            used, used_state = _keep_known(problem, state, placed)
            if len(used.frame) < 60:
                continue
            try:
                solution = ba.solve(
                    used, used_state, prior, config, max_iterations=8, tolerance=1e-3, gain=gain
                )
            except FloatingPointError:
                continue
            candidates.append((solution.cost / len(used.frame), used, solution.state))
        if not candidates:
            continue
        cost, used, state = min(candidates, key=lambda c: c[0])
        solution = ba.solve(
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


def moving_tracks(problem: Problem, state: State, placed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P,) True for tracks that no fixed point explains under the present cameras.

    A robust loss alone is not enough where something that moves carries most of the tracks of a few frames. Judged
    is the median reprojection error of the track's best single lift, against eight standard deviations of a
    measurement and four times the median over all tracks (cameras may still drift, but not one track at a time).
    """
    points = torch.where(torch.isfinite(state.points), state.points, lift_points(problem, state))
    uv, p = ba.project(problem, replace(state, points=torch.nan_to_num(points)))
    error = ((uv - problem.uv_px) / problem.sigma_px[:, None]).norm(dim=1)
    error = torch.where(p[:, 2] > 1e-6, error, torch.full_like(error, 1e3))
    use = torch.as_tensor(placed)[problem.frame] & torch.isfinite(points).all(1)[problem.point]
    e = error[use].cpu().numpy()
    point = problem.point[use].cpu().numpy()
    if len(e) == 0:
        return np.zeros(problem.num_points, bool)
    order = np.lexsort((e, point))
    starts = np.nonzero(np.r_[True, point[order][1:] != point[order][:-1]])[0]
    counts = np.diff(np.r_[starts, len(order)])
    median = e[order][starts + counts // 2]
    bound = max(8.0, 4.0 * float(np.median(median)))
    out = np.zeros(problem.num_points, bool)
    out[point[order][starts]] = median > bound
    return out


_DEPTH_MATTERS_RAD = 0.0175
"""Angle under which tracks are seen, by the cameras that the bundle starts from, below which every depth counts: with
so little parallax nothing else tells a zoom from a camera that comes closer."""

_DEPTH_TOLERANCE = 4.0
"""Standard deviations by which a triangulated point may lie off its measured depth."""


def without_moving(problem: Problem, state: State, placed: NDArray[np.bool_]) -> State:
    """State in which the points of tracks that move are NaN, so that `_keep_known` leaves their observations out.

    A track that its lift does not explain need not move: depth of a network is a few percent off, which parallax
    shows. Where triangulation explains the track and lies as far from the measured depth as depth errs, the point is
    kept, at that place. Else clips with much parallax would lose all their depth, and with it their scale.
    """
    moving = torch.as_tensor(moving_tracks(problem, state, placed))
    solved = triangulate_known(problem, state, placed, moving)
    found = torch.isfinite(solved).all(1)
    trial = replace(state, points=torch.where(found[:, None], solved, state.points))
    still = found & ~torch.as_tensor(moving_tracks(problem, trial, placed))
    # The worst of its depths decides: a thing that moves along its own line of sight has a depth that changes.
    has = torch.isfinite(problem.sigma_log_depth) & still[problem.point]
    point, frame = problem.point[has], problem.frame[has]
    z = (state.rotation[frame] @ solved[point][:, :, None])[:, 2, 0] + state.translation[frame, 2]
    off = (z.clamp_min(1e-6).log() - true_log_depth(problem, state)[has]).abs() / problem.sigma_log_depth[has]
    still[point[off > _DEPTH_TOLERANCE]] = False
    dropped = moving & ~still
    log.debug("moving: %d of %d tracks, %d kept by triangulation", dropped.sum(), len(moving), still.sum())
    points = torch.where(still[:, None], solved, state.points)
    return replace(state, points=torch.where(dropped[:, None], torch.nan, points))


def _keep_known(problem: Problem, state: State, placed: NDArray[np.bool_]) -> tuple[Problem, State]:
    """Observations of placed frames and of points with a position that two of them share; points renumbered."""
    ok_frame = torch.as_tensor(placed)
    ok_point = torch.isfinite(state.points).all(1)
    keep = ok_frame[problem.frame] & ok_point[problem.point]
    count = torch.zeros(problem.num_points).index_add_(0, problem.point[keep], torch.ones(int(keep.sum())))
    keep &= count[problem.point] >= 2
    used, renumbered = torch.unique(problem.point[keep], return_inverse=True)
    sub = replace(
        problem,
        frame=problem.frame[keep],
        point=renumbered,
        uv_px=problem.uv_px[keep],
        sigma_px=problem.sigma_px[keep],
        log_depth=problem.log_depth[keep],
        sigma_log_depth=problem.sigma_log_depth[keep],
        num_points=len(used),
    )
    return sub, replace(state, points=state.points[used])


def propose_loops(
    state: State,
    placed: NDArray[np.bool_],
    depth_median: FloatArray,
    size_px: tuple[float, float],
    known: set[tuple[int, int]],
    limit: int,
) -> list[tuple[int, int]]:
    """Keyframe pairs far apart in time that look at the same place, by the present cameras.

    Two views overlap if the centre of each one's view volume (at its median depth) projects into the other's image
    grown by a fifth, with viewing directions within 50 degrees and depth within a factor of 2.

    Args:
        depth_median: (K,) median depth of each keyframe's points.
        known: pairs already matched.
        limit: proposals per keyframe at most, nearest view first.
    """
    rotation = state.rotation.cpu().numpy()
    translation = state.translation.cpu().numpy()
    focal = np.exp(state.log_focal.cpu().numpy())
    frames = len(rotation)
    width, height = size_px
    centre = -np.einsum("fji,fj->fi", rotation, translation)
    axis = rotation[:, 2]
    target = centre + axis * depth_median[:, None]
    local = np.einsum("fij,kj->fki", rotation, target) + translation[:, None]
    z = np.where(local[..., 2] > 1e-6, local[..., 2], np.nan)
    x = local[..., 0] / z * focal[:, None] / width
    y = local[..., 1] / z * focal[:, None] / height
    with np.errstate(invalid="ignore"):
        inside = (
            (np.abs(x) < 0.6)
            & (np.abs(y) < 0.6)
            & (z > 0.5 * depth_median[:, None])
            & (z < 2 * depth_median[:, None])
        )
    overlap = inside & inside.T & (axis @ axis.T > np.cos(np.radians(50)))
    overlap &= placed[:, None] & placed[None, :]
    distance = np.linalg.norm(target[:, None] - target[None], axis=2) / np.minimum(
        depth_median[:, None], depth_median[None]
    )
    distance = distance + (1 - axis @ axis.T)
    pairs: set[tuple[int, int]] = set()
    for i in range(frames):
        candidates = [j for j in np.nonzero(overlap[i, : max(0, i - 8)])[0] if (int(j), i) not in known]
        candidates.sort(key=lambda j: distance[i, j])
        taken: list[int] = []
        for j in candidates:
            # Spread over time: neighbours of a pair add little.
            if all(abs(j - other) > 8 for other in taken) and not any(
                (int(j) + a, i + b) in pairs for a in (-1, 0, 1) for b in (-1, 0)
            ):
                taken.append(int(j))
            if len(taken) == limit:
                break
        pairs |= {(j, i) for j in taken}
    return sorted(pairs)


def weak_links(problem: Problem, state: State, placed: NDArray[np.bool_]) -> IntArray:
    """Keyframe numbers k whose link to k + 1 rests on fewer than `_MIN_SHARED` points that agree with both cameras."""
    uv, p = ba.project(problem, replace(state, points=torch.nan_to_num(state.points)))
    error = ((uv - problem.uv_px) / problem.sigma_px[:, None]).norm(dim=1)
    good = (error < 8) & (p[:, 2] > 1e-6) & torch.isfinite(state.points).all(1)[problem.point]
    good &= torch.as_tensor(placed)[problem.frame]
    frame, point = problem.frame[good], problem.point[good]
    key = set((point * problem.num_frames + frame).tolist())
    shared = np.zeros(problem.num_frames - 1, int)
    for value in key:
        f = value % problem.num_frames
        if f + 1 < problem.num_frames and value + 1 in key:
            shared[f] += 1
    return np.nonzero(shared < _MIN_SHARED)[0]


def propose_relocations(
    placed: NDArray[np.bool_], weak: IntArray, nearest: int = 8, spread: int = 12
) -> list[tuple[int, int]]:
    """Keyframe pairs (lower number first) that could tie a piece of the clip to the rest of it.

    Tried for each keyframe without a camera and for both ends of each weak link: the nearest placed keyframes in
    time, and some from all over the clip.

    Args:
        placed: (K,) keyframes that have a camera.
        weak: keyframes whose link to the next is weak.
        nearest, spread: placed keyframes tried per keyframe.
    """
    there = np.nonzero(placed)[0]
    pairs: set[tuple[int, int]] = set()
    for k in np.unique(np.r_[np.nonzero(~placed)[0], weak, weak + 1]):
        near = there[np.argsort(np.abs(there - k), kind="stable")[:nearest]]
        far = there[np.unique(np.linspace(0, len(there) - 1, spread).round().astype(int))]
        pairs |= {(int(min(k, j)), int(max(k, j))) for j in np.r_[near, far] if j != k}
    return sorted(pairs)


def dense_links(
    measured: ImageMeasurements, depth: DepthMaps, weak: IntArray, focal_px: FloatArray
) -> Tracks | None:
    """Observations from RGB-D alignment across weak links: of each two and three neighbours that one separates.

    Args:
        weak: keyframe numbers whose link to the next one is weak.
        focal_px: (K,) focal of each keyframe.
    Returns:
        Tracks of two DENSE observations each, with their own standard deviations; None if nothing aligns.
    """
    flow, keyframes = measured.flow, measured.keyframes
    size = np.array([flow.width, flow.height])
    least_px = 1.5 * max(size) / 640.0

    def view(k: int) -> View | None:
        z, shown = depth.read(int(keyframes[k])), measured.features[k]
        focal = float(focal_px[k] / flow.width)
        return None if z is None else View(shown.thumbnail, z, focal, shown.overlay)

    pairs = {(k - a, k + b) for k in weak.tolist() for a, b in ((0, 1), (1, 1), (0, 2))}
    frame, track, xy, sigma = [], [], [], []
    count = 0
    for i, j in sorted(pairs):
        if i < 0 or j >= len(keyframes):
            continue
        first, second = view(i), view(j)
        if first is None or second is None:
            continue
        found = align_rgbd(first, second, [])
        if found is None or found.agreement < _MIN_DENSE_AGREEMENT:
            continue
        here, there = link_points(first, second, found)
        n = len(here)
        numbers = count + np.arange(n)
        count += n
        frame += [np.full(n, keyframes[i]), np.full(n, keyframes[j])]
        track += [numbers, numbers]
        xy += [here * size, there * size]
        # All points of a link repeat one estimate: together they weigh as much as it does.
        sigma += [np.full(2 * n, max(least_px, found.shift_sigma * flow.width) * max(1.0, np.sqrt(n / 4)))]
    if not count:
        return None
    at = np.concatenate(frame)
    return make_tracks(
        at,
        np.concatenate(track),
        np.concatenate(xy),
        np.full(len(at), DENSE, np.uint8),
        flow.num_frames,
        flow.height,
        flow.width,
        np.concatenate(sigma),
    )


@dataclass(frozen=True, kw_only=True)
class StartCameras:
    """Approximate cameras of some frames, for the bundle to begin with.

    Attributes:
        camera_to_world: (F, 4, 4) in the unit of the depth that the bundle is given; NaN rows where none.
        focal_px: (F, 2) fx, fy in pixels of the stored size; NaN rows where none.
    """

    camera_to_world: FloatArray
    focal_px: FloatArray

    def at(self, frames: IntArray) -> tuple[FloatArray, FloatArray]:
        """World-to-camera (n, 4, 4) and focal (n,) of `frames`; between known ones interpolated, beyond them held.

        The focal is a running median over five known ones: that of a single image errs.

        Raises:
            ValueError: fewer than two have a pose, or none a focal.
        """
        known = np.flatnonzero(np.isfinite(self.camera_to_world[:, 0, 0]))
        with_focal = np.flatnonzero(np.isfinite(self.focal_px).all(1))
        if len(known) < 2 or len(with_focal) < 1:
            raise ValueError(
                f"{len(known)} frames have a pose and {len(with_focal)} a focal; at least 2 and 1 are needed"
            )
        inside = np.clip(np.asarray(frames, np.float64), known[0], known[-1])
        poses = interpolate_poses(known.astype(np.float64), self.camera_to_world[known], inside)
        logs = np.log(self.focal_px[with_focal]).mean(1)
        smooth = [np.median(logs[max(0, i - 2) : i + 3]) for i in range(len(logs))]
        return se3_inverse(poses), np.exp(np.interp(frames, with_focal, smooth))

    def stretched(self, pixel_aspect: float) -> StartCameras:
        """The same in square pixels as high as the stored ones."""
        return replace(self, focal_px=self.focal_px * np.array([pixel_aspect, 1.0]))

    def state(self, problem: Problem, keyframes: IntArray) -> tuple[State, NDArray[np.bool_]]:
        """State of the keyframe problem with points lifted by the known frames, and which keyframes are known."""
        world_to_camera, focal = self.at(keyframes)
        placed = np.isfinite(self.camera_to_world[keyframes, 0, 0])
        state = replace(
            _empty_state(problem, torch.as_tensor(np.log(focal))),
            rotation=torch.as_tensor(np.ascontiguousarray(world_to_camera[:, :3, :3])),
            translation=torch.as_tensor(np.ascontiguousarray(world_to_camera[:, :3, 3])),
        )
        return replace(state, points=lift_points(problem, state, known=torch.as_tensor(placed))), placed


@dataclass(frozen=True, kw_only=True)
class KnownLens:
    """Intrinsics that a source gives.

    Attributes:
        focal_px: (F, 2) fx, fy in pixels of the stored size.
        principal_point_px: (F, 2) cx, cy likewise.
        held: they are the cameras' intrinsics; False: only the focal length is expected, near the given one.
    """

    focal_px: FloatArray
    principal_point_px: FloatArray
    held: bool = True

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel, fy / fx.

        Raises:
            ClipRejection: `intrinsics_aspect_varies`: the ratio changes by more than 1 % over the clip.
        """
        ratio = self.focal_px[:, 1] / self.focal_px[:, 0]
        middle = float(np.median(ratio))
        if np.abs(ratio / middle - 1).max() > 0.01:
            raise ClipRejection(
                "intrinsics_aspect_varies",
                f"given fy / fx runs from {ratio.min():.4f} to {ratio.max():.4f}; pixels keep their shape in a clip",
            )
        return middle

    def stretched(self, pixel_aspect: float) -> KnownLens:
        """The same in square pixels as high as the stored ones."""
        by = np.array([pixel_aspect, 1.0])
        return replace(self, focal_px=self.focal_px * by, principal_point_px=self.principal_point_px * by)


def solve_cameras(
    measured: ImageMeasurements,
    depth: DepthMaps,
    *,
    depth_sigma_log: float,
    tracks_config: TracksConfig,
    config: BundleConfig,
    pixel_aspect: float = 1.0,
    start: StartCameras | None = None,
    lens: KnownLens | None = None,
    depths_per_frame: float | None = None,
    with_evidence: bool = False,
) -> CameraSolution:
    """Cameras of every frame from image measurements and depth; the lens is unknown unless `lens` says it.

    Args:
        measured: tracks and descriptors.
        depth: z-depth per frame, any unit.
        depth_sigma_log: relative depth error that the source declares.
        pixel_aspect: width over height of a stored pixel; ties fy to fx.
        start: approximate cameras to begin with, instead of trying focal lengths and going from frame to frame.
        lens: intrinsics to hold, which come back unchanged, with the focal model `given`; or to expect.
        depths_per_frame: independent depth errors in a frame, where depth errs alike over parts of the image; None if
            every pixel errs on its own.
        with_evidence: keep the observations in the solution.
    Raises:
        ClipRejection: `no_depth_on_tracks`, `no_reconstruction`, `intrinsics_aspect_varies`.
    """
    if lens is not None and lens.held:
        # What the source says of its lens goes before what the container says of its pixels.
        pixel_aspect = lens.pixel_aspect if abs(lens.pixel_aspect - 1) > 1e-4 else 1.0
        config = config.model_copy(update={"principal_point_sigma": 0.0, "aspect_sigma": 0.0})
    if pixel_aspect != 1.0:
        # Solve in square pixels as high as the stored ones, then give back stored pixels.
        square = solve_cameras(
            stretched(measured, pixel_aspect),
            depth,
            depth_sigma_log=depth_sigma_log,
            tracks_config=tracks_config,
            config=config,
            start=None if start is None else start.stretched(pixel_aspect),
            lens=None if lens is None else lens.stretched(pixel_aspect),
            depths_per_frame=depths_per_frame,
            with_evidence=with_evidence,
        )
        return with_lens(in_stored_pixels(square, pixel_aspect), lens)
    flow = measured.flow
    height, width, frames = flow.height, flow.width, flow.num_frames
    keyframes = measured.keyframes
    expected = _expected_focal(start, lens, frames)
    lens = lens if lens is not None and lens.held else None
    diagonal = float(np.hypot(height, width))
    matches = {
        (a, a + gap): match_features(
            measured.features[a], measured.features[a + gap], tracks_config, diagonal_px=diagonal
        )
        for gap in (1, 2, 4)
        for a in range(len(keyframes) - gap)
    }

    links: Tracks | None = None
    # From here on the principal point of a known lens is the image centre, and the focal that of the rows.
    off_centre = None if lens is None else lens.principal_point_px - np.array([width / 2, height / 2])
    given = None if lens is None else np.log(lens.focal_px[:, 1])
    given_keys = None if given is None else given[keyframes]

    def all_tracks() -> tuple[Tracks, FloatArray]:
        described = descriptor_tracks(
            measured.features, matches, num_frames=frames, height=height, width=width
        )
        joined = join_tracks(flow, described)
        if links is not None:
            joined = join_tracks(joined, links)
        found_z = sample_depth(joined, depth)
        if off_centre is not None:
            joined = replace(joined, xy_px=joined.xy_px - off_centre[joined.frame])
        return thin_observations(joined, found_z, keyframes, config)

    tracks, z = all_tracks()
    with_depth = float(np.isfinite(z).mean()) if len(z) else 0.0
    if np.isfinite(z).sum() < 50:
        raise ClipRejection(
            "no_depth_on_tracks", f"{np.isfinite(z).sum()} of {len(z)} track points have valid depth"
        )

    # What errs alike in a frame of a network is counted (`depths_per_frame`); of given depth it is measured.
    noise = first_noise(tracks, z, depth_sigma_log) if depths_per_frame is None else None
    log.debug("depth: %s", noise)
    if noise is not None:
        depth_sigma_log = noise.observation

    def problem_of(numbers: IntArray) -> Problem:
        sub, sub_z = subset_frames(tracks, z, keyframes[numbers])
        return build_problem(sub, sub_z, config, depth_sigma_log=depth_sigma_log)

    def window_problem(numbers: IntArray) -> Problem:
        # A third of the tracks is plenty to tell focal hypotheses apart.
        sub, sub_z = subset_frames(tracks, z, keyframes[numbers])
        sub, sub_z = drop_observations(sub, sub_z, (sub.track * 0.6180339887498949) % 1.0 < 0.4)
        return build_problem(sub, sub_z, config, depth_sigma_log=depth_sigma_log)

    coarse = config.model_copy(update={"robust_scale": 2 * config.robust_scale})
    key_problem = problem_of(np.arange(len(keyframes)))
    windows = _windows(measured)
    if start is None:
        first_frame, log_focal = _choose_start(
            window_problem,
            windows,
            max(height, width),
            coarse,
            given_keys,
            noise,
            None if expected is None else expected.log_focal[keyframes].numpy(),
        )

    def place() -> tuple[State, NDArray[np.bool_]]:
        if start is None:
            return sequential(
                key_problem,
                coarse,
                start=first_frame,
                log_focal=log_focal if given_keys is None else given_keys,
                focal_step_sigma=0.05 if given_keys is None else _KNOWN_LENS_SIGMA,
                gain_sigma=None if noise is None else noise.gain_sigma,
            )
        state, placed = start.state(key_problem, keyframes)
        if given_keys is not None:
            state = replace(state, log_focal=torch.as_tensor(given_keys))
        return state, placed

    state, placed = place()
    weak = weak_links(key_problem, state, placed)
    if len(weak):
        # Blur or a bare wall breaks the chain of neighbours. Two ways across: the same place seen before or after,
        # and the alignment of whole images.
        pairs = [pair for pair in propose_relocations(placed, weak) if pair not in matches]
        found = {
            (a, b): match_features(
                measured.features[a], measured.features[b], tracks_config, diagonal_px=diagonal
            )
            for a, b in pairs
        }
        found = {pair: match for pair, match in found.items() if len(match) >= _MIN_LOOP_MATCHES}
        links = dense_links(measured, depth, weak, np.exp(state.log_focal.cpu().numpy()))
        log.debug(
            "%d weak links: %d of %d far matches, %d dense points",
            len(weak),
            len(found),
            len(pairs),
            0 if links is None else links.num_tracks,
        )
        if found or links is not None:
            matches |= found
            tracks, z = all_tracks()
            key_problem = problem_of(np.arange(len(keyframes)))
            state, placed = place()
    log.debug(
        "sequential: %d of %d keyframes placed, %.0f%% depth", placed.sum(), len(placed), 100 * with_depth
    )
    if start is not None and depths_per_frame is not None:
        seen = torch.isfinite(state.points).all(1)[key_problem.point]
        if parallax(key_problem, state, seen) < _DEPTH_MATTERS_RAD:
            depths_per_frame = None
    gap = torch.as_tensor(np.diff(keyframes), dtype=torch.float64)

    def key_bundle(
        state: State, placed: NDArray[np.bool_], iterations: int, *, free_lens: bool = given_keys is None
    ) -> tuple[State, Problem, Solution]:
        points = torch.where(torch.isfinite(state.points), state.points, lift_points(key_problem, state))
        # Tracks without depth still tie frames together.
        points = torch.where(
            torch.isfinite(points),
            points,
            triangulate_known(key_problem, state, placed, ~torch.isfinite(points).all(1)),
        )
        state = replace(state, points=points)
        state = without_moving(key_problem, state, placed)
        used, used_state = _keep_known(key_problem, state, placed)
        used = count_patches(count_depth(used, depths_per_frame), noise)
        gain = None if noise is None else noise.gain_prior(used.num_frames)
        if gain is None:
            used_state = replace(used_state, log_gain=None)
        if free_lens or given_keys is None:
            prior = ba.focal_prior("smooth", used.num_frames, coarse, frame_gap=gap)
            if expected is not None:
                prior = replace(prior, expected=expected.at(keyframes))
        else:
            prior = ba.focal_prior("given", used.num_frames, coarse, given=torch.as_tensor(given_keys))
        solution = ba.solve(
            used,
            used_state,
            prior,
            coarse,
            max_iterations=iterations,
            tolerance=3e-4,
            band_frames=256,
            gain=gain,
        )
        new = solution.state
        return replace(new, points=lift_points(key_problem, new)), used, solution

    def asked_focal() -> tuple[float, float, float]:
        """Log of the focal length that is asked for over the given one, its spread, and the cost per observation."""
        nothing = float("nan"), float("nan"), float("nan")
        if given_keys is None or start is not None:
            return nothing
        try:
            window = [numbers for numbers in windows if numbers[len(numbers) // 2] == first_frame]
            at, asked = _choose_start(window_problem, window, max(height, width), coarse, noise=noise)
        except ClipRejection:
            return nothing  # nothing confirms the lens
        if abs(asked - given_keys[at]) <= _FOCAL_DOUBT_LOG:
            return float(asked - given_keys[at]), float("nan"), float("nan")
        # One window is not enough to doubt the source: ask the whole clip, as if nothing were known.
        free, where = sequential(
            key_problem,
            coarse,
            start=at,
            log_focal=asked,
            focal_step_sigma=0.05,
            gain_sigma=None if noise is None else noise.gain_sigma,
        )
        free, _, bundle = key_bundle(free, where, 20, free_lens=True)
        off = (free.log_focal.cpu().numpy() - given_keys)[where]
        middle = float(np.median(off))
        spread = 1.4826 * float(np.median(np.abs(off - middle)))
        return middle, spread, bundle.data_cost / len(bundle.weight)

    focal_asked_log, focal_asked_sigma, asked_cost = asked_focal()

    def judged(problem: Problem, solution: Solution) -> tuple[DepthNoise | None, float]:
        if noise is None:
            return None, _measured_depth_sigma(solution, depth_sigma_log)
        found = measured_noise(problem, solution, noise)
        log.debug("depth: %s", found)
        return found, found.observation

    state, solved_problem, first = key_bundle(state, placed, 20)
    focal_asked_gain = first.data_cost / len(first.weight) / asked_cost
    noise, depth_sigma_log = judged(solved_problem, first)
    key_problem = problem_of(np.arange(len(keyframes)))
    loops = 0
    if tracks_config.max_loops_per_keyframe:
        median_depth = _median_depth(key_problem)
        for pair in propose_loops(
            state, placed, median_depth, (width, height), set(matches), tracks_config.max_loops_per_keyframe
        ):
            found = match_features(
                measured.features[pair[0]], measured.features[pair[1]], tracks_config, diagonal_px=diagonal
            )
            if len(found) >= _MIN_LOOP_MATCHES:
                matches[pair] = found
                loops += 1
        if loops:
            tracks, z = all_tracks()
            key_problem = problem_of(np.arange(len(keyframes)))
            state = replace(state, points=lift_points(key_problem, state))
            state, solved_problem, first = key_bundle(state, placed, 15)
            if noise is not None:
                noise, depth_sigma_log = judged(solved_problem, first)
    log.debug("loops: %d", loops)
    solved = with_lens(
        _all_frames(
            tracks,
            z,
            keyframes,
            state,
            placed,
            depth_sigma_log,
            config,
            loops,
            given,
            expected,
            depths_per_frame,
            noise,
        ),
        lens,
    )
    return replace(
        solved,
        focal_asked_log=focal_asked_log,
        focal_asked_sigma=focal_asked_sigma,
        focal_asked_gain=focal_asked_gain,
        evidence=solved.evidence if with_evidence else None,
    )


def _expected_focal(
    start: StartCameras | None, lens: KnownLens | None, frames: int
) -> ba.ExpectedFocal | None:
    """What is expected of the focal length: by the source's word, wrong in all frames alike, or by a network's rays."""
    if lens is not None and not lens.held:
        return ba.ExpectedFocal(torch.as_tensor(np.log(lens.focal_px[:, 1])), 1 / frames)
    if start is not None:
        return ba.ExpectedFocal(torch.as_tensor(np.log(start.at(np.arange(frames))[1])))
    return None


def in_stored_pixels(square: CameraSolution, pixel_aspect: float) -> CameraSolution:
    """A solution found in square pixels as high as the stored ones, in stored pixels."""
    stored = np.array([1 / pixel_aspect, 1.0])
    return replace(
        square, focal_px=square.focal_px * stored, principal_point_px=square.principal_point_px * stored
    )


def with_lens(cameras: CameraSolution, lens: KnownLens | None) -> CameraSolution:
    """The solution with the known intrinsics exactly as they were given."""
    if lens is None:
        return cameras
    return replace(
        cameras,
        focal_px=np.array(lens.focal_px, np.float64),
        principal_point_px=np.array(lens.principal_point_px, np.float64),
        log_focal_sigma=np.zeros(len(lens.focal_px)),
    )


def _measured_depth_sigma(solution: Solution, declared: float) -> float:
    """Relative depth error that the residuals show: never above the declared one, never below 0.4 %.

    A declared error is a bound for the worst sensor of a kind. Depth that fits the images better than that deserves
    its weight: it is what separates a longer lens from a nearer camera.
    """
    residual = solution.residual_log_depth
    residual = residual[(residual != 0) & (solution.weight > 0.3)].abs()
    if len(residual) < 100:
        return declared
    return float(np.clip(1.4826 * float(residual.median()), min(0.004, declared), declared))


def stretched(measured: ImageMeasurements, factor: float) -> ImageMeasurements:
    """Measurements with x multiplied, as if the frames were `factor` times as wide."""
    by = np.array([factor, 1.0])
    flow = replace(measured.flow, xy_px=measured.flow.xy_px * by, width=measured.flow.width * factor)
    features = []
    for f in measured.features:
        high, wide = f.thumbnail.shape
        size = (wide, max(8, round(high / factor)))
        thumbnail = cv2.resize(f.thumbnail, size, interpolation=cv2.INTER_AREA)
        overlay = f.overlay
        if overlay is not None:
            overlay = cv2.resize(overlay.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        features.append(replace(f, xy_px=f.xy_px * by, thumbnail=thumbnail, overlay=overlay))
    return replace(measured, flow=flow, features=features)


def _windows(measured: ImageMeasurements, length: int = 12, count: int = 4) -> list[IntArray]:
    """Runs of neighbouring keyframes, spread over the clip, to try focal hypotheses on."""
    total = len(measured.keyframes)
    length = min(length, total)
    starts = np.unique(np.linspace(0, total - length, count).round().astype(int))
    return [np.arange(s, s + length) for s in starts]


def _median_depth(problem: Problem) -> FloatArray:
    has = torch.isfinite(problem.sigma_log_depth).cpu().numpy()
    frame = problem.frame.cpu().numpy()[has]
    z = problem.log_depth.cpu().numpy()[has]
    overall = np.median(z)
    out = np.full(problem.num_frames, overall)
    for i, of in enumerate(members(frame, problem.num_frames)):
        if len(of) >= 5:
            out[i] = np.median(z[of])
    return np.exp(out)


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


def _all_frames(
    tracks: Tracks,
    z: FloatArray,
    keyframes: IntArray,
    key_state: State,
    placed: NDArray[np.bool_],
    depth_sigma_log: float,
    config: BundleConfig,
    loops: int,
    given: FloatArray | None,
    expected: ba.ExpectedFocal | None = None,
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
    points = lift_points(problem, state, known=known)
    points = torch.where(
        torch.isfinite(points), points, triangulate(problem, state, ~torch.isfinite(points).all(1))
    )
    usable = torch.isfinite(points).all(1)
    state = replace(state, points=points)
    sub, sub_state = _keep_known(problem, state, np.ones(frames, bool))
    free = torch.ones(frames, dtype=torch.bool) & ~known
    moved, _ = ba.resect(
        sub,
        sub_state,
        config,
        free_frames=free,
        focal_guess=sub_state.log_focal.clone(),
        focal_sigma=0.05 if given is None else _KNOWN_LENS_SIGMA,
        gain_sigma=None if noise is None or gain is None else noise.gain_sigma,
        iterations=15,
    )
    state = replace(moved, points=state.points)
    lifted = lift_points(problem, state)
    tri = triangulate(problem, state, ~torch.isfinite(lifted).all(1))
    state = replace(state, points=torch.where(torch.isfinite(lifted), lifted, tri))
    log.debug(
        "points: %d of %d usable, depth on %.0f%%",
        int(usable.sum()),
        problem.num_points,
        100 * np.isfinite(z).mean(),
    )
    everywhere = np.ones(frames, bool)
    used, used_state = _keep_known(problem, without_moving(problem, state, everywhere), everywhere)
    used = count_patches(count_depth(used, depths_per_frame), noise)
    model: FocalModel
    if given is not None:
        prior = ba.focal_prior("given", frames, config, given=torch.as_tensor(given))
        solution = ba.solve(
            used, used_state, prior, config, tolerance=_TOLERANCE, want_covariance=True, gain=gain
        )
        model, costs, wiggle = "given", {"given": solution.data_cost}, 0.0
    else:
        smooth = replace(ba.focal_prior("smooth", frames, config), expected=expected)
        solution = ba.solve(used, used_state, smooth, config, tolerance=_TOLERANCE, gain=gain)
        solution, model, costs, wiggle = _choose_focal_model(used, solution, config, expected, gain)
    found = summarise(used, solution, model, costs, tracks, loops, config)
    log_gain = solution.state.log_gain
    drift = 0.0 if noise is None or given is not None else min(noise.wander, TRACK_DRIFT)
    common = float("nan") if noise is None or given is not None else _common_focal_error(found, expected)
    return replace(
        found,
        depth_noise=noise,
        depth_gain_log=None if log_gain is None else log_gain.numpy(),
        sigma_factor=likeness(used, solution) ** 0.5,
        focal_doubt_log=float(np.sqrt(wiggle**2 + drift**2 + np.nan_to_num(common) ** 2)),
        focal_common_log=common,
        scale_doubt_log=0.0 if noise is None else noise.scale_sigma_log(frames),
    )


_WIGGLE_SHARE = 0.08
"""Share of the cost of a constant focal length that a varying one saves where the lens does not zoom: rolling shutter,
blur, distortion and blotches of depth all ask for wiggles. Recordings: 0.014 to 0.017, with depth that errs by 10 % in
blotches 0.053. A zoom in and out by 3 % is worth 0.84 on rendered clips."""
_LEAST_LIKENESS = 5.0
"""Observations that count as one at least where focal models are compared."""


_COMMON_SHARE = 0.6
"""Errors that all measurements of one view have in common, along the very change of the focal length, as a share of
what single ones err by: lens distortion, shutter, bias of depth. Seen on clips of 12 to 80 frames: office-a 0.3 (root
mean square, at most 0.5), rendered 0.5 (1.0), rgbd-tum-mini 1.6, whose lens distorts more than the model holds."""


def _common_focal_error(cameras: CameraSolution, expected: ba.ExpectedFocal | None) -> float:
    """Standard deviation of log focal by errors that do not average out over measurements.

    `log_focal_sigma` falls with the root of the number of measurements that a focal length rests on. What they err by
    in common averages out over views alone: as often as other points have come into sight.
    """
    freedom = 1.0 if cameras.focal_model == "constant" else 1.0 + len(cameras.focal_px) / 16.0
    count = cameras.num_inliers.sum() / freedom
    views = max(1.0, cameras.num_tracks / max(1.0, float(cameras.num_inliers.mean())) / freedom)
    found = _COMMON_SHARE * float(np.median(cameras.log_focal_sigma)) * float(count / views) ** 0.5
    if expected is None:
        return found
    return float((found**-2 + ba.EXPECTED_FOCAL_SIGMA**-2) ** -0.5)


def _choose_focal_model(
    problem: Problem,
    smooth: Solution,
    config: BundleConfig,
    expected: ba.ExpectedFocal | None = None,
    gain: ba.GainPrior | None = None,
) -> tuple[Solution, FocalModel, dict[str, float], float]:
    """Constant, smooth or piecewise focal by the Bayesian information criterion.

    The smooth solution stands; a simpler model replaces it when its likelihood is nearly as good. Degrees of freedom:
    1 for constant, one per piece, and for smooth one per second (16 frames), about what its prior leaves free.
    Besides, a focal that varies must be worth more than what it makes of errors that no focal has (`_WIGGLE_SHARE`).

    Returns:
        The solution, its model, the cost of each model, and the standard deviation of what the smooth solution's log
        focal wiggles about the chosen model: what an imperfect lens, shutter and depth make a focal length do.
    """
    frames = problem.num_frames
    # Tracks repeat much of what they say from frame to frame, and neighbours err alike: so many observations count as
    # one independent one, or the criterion would buy any wiggle.
    alike = max(_LEAST_LIKENESS, likeness(problem, smooth))
    unit = float(np.log(max(2, len(problem.frame) / alike)))
    costs: dict[str, float] = {}
    solutions: dict[FocalModel, Solution] = {}
    priors: dict[FocalModel, ba.FocalPrior] = {}

    def finish(model: FocalModel, breaks: Tensor | None, freedom: float) -> None:
        priors[model] = replace(ba.focal_prior(model, frames, config, breaks=breaks), expected=expected)
        if model == "smooth":
            solution = smooth
        else:
            start = replace(smooth.state, log_focal=_flatten(smooth.state.log_focal, breaks))
            best = min(costs.values(), default=np.inf)
            solution = ba.solve(
                problem,
                start,
                priors[model],
                config,
                tolerance=_TOLERANCE,
                hopeless_above=max((best - freedom * unit) * alike, (1 + _WIGGLE_SHARE) * smooth.data_cost)
                if np.isfinite(best)
                else None,
                gain=gain,
            )
        costs[model] = solution.data_cost / alike + freedom * unit
        solutions[model] = solution

    wanted = ("smooth", "constant", "piecewise") if config.focal_model == "auto" else (config.focal_model,)
    breaks = _find_breaks(smooth.state.log_focal)
    if "smooth" in wanted:
        finish("smooth", None, 1.0 + frames / 16.0)
    if "constant" in wanted:
        finish("constant", None, 1.0)
    if "piecewise" in wanted and (len(breaks) or config.focal_model == "piecewise"):
        finish("piecewise", breaks, 1.0 + 2.0 * len(breaks))
    model: FocalModel = min(solutions, key=lambda name: costs[name])
    if model != "constant" and "constant" in costs:
        worth = solutions["constant"].data_cost / solutions[model].data_cost - 1
        spread = float(solutions[model].state.log_focal.std())
        if worth < _WIGGLE_SHARE or spread < config.focal_floor:
            model = "constant"
    log.debug("focal models, %.1f alike: %s -> %s", alike, costs, model)
    # Once more from its own optimum, whose covariance nobody needed before.
    best = ba.solve(
        problem,
        solutions[model].state,
        priors[model],
        config,
        tolerance=_TOLERANCE,
        want_covariance=True,
        gain=gain,
    )
    free = smooth.state.log_focal.numpy()
    if model == "smooth":
        # A zoom is even over a second; what is not is no zoom.
        width = min(17, len(free) - 1 + len(free) % 2)
        padded = np.pad(free, width // 2, mode="reflect", reflect_type="odd")
        about = np.convolve(padded, np.full(width, 1 / width), mode="valid")
    else:
        about = _flatten(smooth.state.log_focal, breaks if model == "piecewise" else None).numpy()
    return best, model, costs, float((free - about).std())


_CELLS = (8, 5)  # across and down the image, within which errors are compared


def likeness(problem: Problem, solution: Solution) -> float:
    """Observations for one independent one: how alike the errors of neighbours are, in the image and along tracks.

    Within cells of the image: the variance of their means over what independent errors leave. Along tracks: the sum
    of the autocorrelation, as far as it is positive.
    """
    uv, _ = ba.project(problem, solution.state)
    inlier = (solution.weight > 0.3).numpy()
    error = ((uv - problem.uv_px) / problem.sigma_px[:, None]).numpy()[inlier]
    if len(error) < 100:
        return 1.0
    frame, point = problem.frame.numpy()[inlier], problem.point.numpy()[inlier]
    variance = float((error**2).mean())
    place = problem.uv_px.numpy()[inlier] / (2 * problem.centre_px.numpy()) * _CELLS
    column, row = np.clip(place.astype(int), 0, np.array(_CELLS) - 1).T
    cell = (frame * _CELLS[0] + column) * _CELLS[1] + row
    count = np.bincount(cell)
    full = count >= 4
    total = np.stack([np.bincount(cell, weights=error[:, k]) for k in (0, 1)], 1)[full]
    beside = float((total**2 / count[full, None]).mean()) / variance if full.any() else 1.0
    along = 1.0
    for lag, share in ((1, 1), (2, 1), (4, 2), (8, 4)):  # each stands for the lags since the one before
        same = point[lag:] == point[:-lag]
        if same.sum() < 100:
            break
        correlation = float((error[lag:] * error[:-lag])[same].mean()) / variance
        along += 2 * share * float(np.clip(correlation, 0, 1))
    return max(1.0, beside) * along


def _flatten(log_focal: Tensor, breaks: Tensor | None) -> Tensor:
    out = log_focal.clone()
    edges = [0, *([] if breaks is None else breaks.tolist()), len(log_focal)]
    for a, b in itertools.pairwise(edges):
        out[a:b] = log_focal[a:b].median()
    return out


def _find_breaks(log_focal: Tensor, threshold: float = 0.04) -> Tensor:
    """Frames at which log focal steps by more than `threshold` between otherwise flat stretches."""
    x = log_focal.cpu().numpy()
    if len(x) < 16:
        return torch.zeros(0, dtype=torch.long)
    before = np.array([np.median(x[max(0, i - 6) : i]) for i in range(1, len(x))])
    after = np.array([np.median(x[i : i + 6]) for i in range(1, len(x))])
    jump = np.abs(after - before)
    breaks = []
    while jump.max() > threshold and len(breaks) < 6:
        i = int(jump.argmax())
        breaks.append(i + 1)
        jump[max(0, i - 8) : i + 9] = 0
    return torch.as_tensor(sorted(breaks), dtype=torch.long)


def summarise(
    problem: Problem,
    solution: Solution,
    model: FocalModel,
    costs: dict[str, float],
    tracks: Tracks,
    loops: int,
    config: BundleConfig,
) -> CameraSolution:
    state = solution.state
    frames = problem.num_frames
    frame = problem.frame
    inlier = solution.weight > 0.3
    num = ba.sum_by(frame, torch.ones_like(solution.weight), frames)
    num_in = ba.sum_by(frame, inlier.double(), frames)
    # Links by alignment are no measurements of points: they speak only where a frame has nothing else.
    points_only = inlier & (problem.sigma_px < 2 * problem.sigma_px.median())
    few = (ba.sum_by(frame, points_only.double(), frames) == 0)[frame]
    counted = torch.where(few, inlier, points_only).double()
    square = ba.sum_by(frame, counted * solution.residual_px**2, frames)
    reprojection = (square / ba.sum_by(frame, counted, frames).clamp_min(1)).sqrt()
    rotation = state.rotation.cpu().numpy()
    translation = state.translation.cpu().numpy()
    world_to_camera = np.tile(np.eye(4), (frames, 1, 1))
    world_to_camera[:, :3, :3], world_to_camera[:, :3, 3] = rotation, translation

    pose = se3_inverse(world_to_camera)
    pose = se3_inverse(pose[:1]) @ pose
    log_focal = state.log_focal.cpu().numpy().copy()
    weak = (num_in < _MIN_INLIERS).cpu().numpy()
    source = np.where(weak, INFILLED, SOLVED)
    if weak.any() and (~weak).any():
        good = np.nonzero(~weak)[0]
        inside = np.clip(np.arange(frames), good[0], good[-1]).astype(float)
        pose[weak] = interpolate_poses(good.astype(float), pose[good], inside[weak])
        log_focal[weak] = np.interp(inside[weak], good, log_focal[good])
        reprojection, num_in = _measure_bridged(
            problem, state, config, torch.as_tensor(weak), pose, log_focal, reprojection, num_in
        )
    focal = np.exp(log_focal)
    assert solution.covariance is not None
    covariance = solution.covariance
    # Perturbed from the left, R' = E R and t' = E t + v: the camera centre -R^T t moves by -R^T v, whatever the turn.
    position = covariance[:, 3:6, 3:6]
    lens = state.lens.cpu().numpy()
    has = torch.isfinite(problem.sigma_log_depth) & inlier
    residual = solution.residual_log_depth[has].abs()
    return CameraSolution(
        camera_to_world=pose,
        focal_px=np.stack([focal, focal * np.exp(lens[2])], 1),
        principal_point_px=np.tile(problem.centre_px.cpu().numpy() + lens[:2], (frames, 1)),
        pose_source=source,
        focal_model=model,
        position_sigma=torch.linalg.eigvalsh(position)[:, 2].clamp_min(0).sqrt().cpu().numpy(),
        rotation_sigma_rad=torch.linalg.eigvalsh(covariance[:, :3, :3])[:, 2]
        .clamp_min(0)
        .sqrt()
        .cpu()
        .numpy(),
        log_focal_sigma=covariance[:, 6, 6].clamp_min(0).sqrt().cpu().numpy(),
        reprojection_px=reprojection.cpu().numpy(),
        num_observations=num.cpu().numpy().astype(np.int64),
        num_inliers=num_in.cpu().numpy().astype(np.int64),
        inlier_share=(num_in / num.clamp_min(1)).cpu().numpy(),
        depth_log_residual=float(residual.median()) if len(residual) else float("nan"),
        parallax_rad=parallax(problem, state, inlier),
        num_tracks=problem.num_points,
        num_loops=loops,
        focal_cost=costs,
        scale_sweep=scale_sweep(problem, state, config),
        radial_k1=float(lens[3]),
        median_depth=float(np.median(_median_depth(problem))),
        evidence=Evidence(problem, state, config),
        num_joining=_num_joining(frame[points_only], problem.point[points_only], frames),
    )


def _num_joining(frame: Tensor, point: Tensor, num_frames: int) -> IntArray:
    """(F,) points seen both before a frame and in it or later, from the (N,) frame and point of observations."""
    order = np.lexsort((frame.cpu().numpy(), point.cpu().numpy()))
    of, at = point.cpu().numpy()[order], frame.cpu().numpy()[order]
    first = np.r_[True, of[1:] != of[:-1]][: len(of)]
    last = np.r_[of[1:] != of[:-1], True][: len(of)]
    change = np.zeros(num_frames + 1, np.int64)
    np.add.at(change, at[first] + 1, 1)
    np.add.at(change, at[last] + 1, -1)
    return np.cumsum(change)[:num_frames]


def _measure_bridged(
    problem: Problem,
    state: State,
    config: BundleConfig,
    weak: Tensor,
    pose: FloatArray,
    log_focal: FloatArray,
    reprojection: Tensor,
    num_in: Tensor,
) -> tuple[Tensor, Tensor]:
    """Reprojection error and inliers of each frame (F,), those of bridged frames under the camera that they got."""
    world = torch.as_tensor(se3_inverse(pose))
    # `pose` counts from the first camera, the points do not.
    first = state.rotation[0], state.translation[0]
    bridged = replace(
        state,
        rotation=world[:, :3, :3].contiguous(),
        translation=world[:, :3, 3].contiguous(),
        log_focal=torch.as_tensor(log_focal),
        points=state.points @ first[0].T + first[1],
    )
    px, _, weight = ba.residuals(problem, bridged, config)
    of = torch.zeros(problem.num_frames, dtype=px.dtype)
    for frame in torch.nonzero(weak)[:, 0].tolist():
        seen = problem.frame == frame
        of[frame] = RMS_OF_MEDIAN * float(px[seen].median()) if bool(seen.any()) else 0.0
    agree = ba.sum_by(problem.frame, (weight > 0.3).double(), problem.num_frames)
    return torch.where(weak, of, reprojection), torch.where(weak, agree, num_in)


def parallax(problem: Problem, state: State, inlier: Tensor) -> float:
    """Median over tracks of the largest angle (radians) between the rays of any two of their inlier observations."""
    centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    ray = state.points[problem.point[inlier]] - centre[problem.frame[inlier]]
    ray = ray / ray.norm(dim=1, keepdim=True).clamp_min(1e-12)
    _, length = torch.unique_consecutive(problem.point[inlier], return_counts=True)
    if not len(length):
        return 0.0
    start = torch.cumsum(length, 0) - length
    cosine = torch.ones(len(length), dtype=ray.dtype)
    for size in torch.unique(length).tolist():
        # Tracks of one length at a time, a few thousand pairs of rays at once.
        for some in torch.nonzero(length == size)[:, 0].split(max(1, 1_000_000 // size**2)):
            of = ray[start[some][:, None] + torch.arange(size)]
            cosine[some] = (of @ of.transpose(1, 2)).amin((1, 2))
    return float(torch.acos(cosine.clamp(-1, 1)).median())


def sweep_minimum(sweep: FloatArray) -> float:
    """Factor at which the swept cost is least, refined by a parabola through its neighbours in log factor."""
    if len(sweep) == 0 or not np.isfinite(sweep[:, 1]).all():
        return float("nan")
    i = int(sweep[:, 1].argmin())
    if i in (0, len(sweep) - 1):
        return float(sweep[i, 0])
    x, y = np.log(sweep[i - 1 : i + 2, 0]), sweep[i - 1 : i + 2, 1]
    a, b, _ = np.polyfit(x, y, 2)
    return float(np.exp(-b / (2 * a))) if a > 0 else float(sweep[i, 0])


def scale_sweep(
    problem: Problem,
    state: State,
    config: BundleConfig,
    factors: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.4, 2.0),
    *,
    lifted: Tensor | None = None,
) -> FloatArray:
    """Reprojection cost when every frame's depth is multiplied while the camera path stays: least at 1.0 if they agree.

    Each observation with depth is lifted by its own frame and projected into the other frames of its track (first
    and last); where `lifted` (F,) bool is given, only those that such a frame lifts. Returns (S, 2): factor, mean
    robust cost per pair; NaN costs if there is no pair.
    """
    has = torch.isfinite(problem.sigma_log_depth)
    index = torch.nonzero(has)[:, 0]
    point = problem.point[index]
    if len(index) < 2:
        return np.array([[f, np.nan] for f in factors])
    starts = torch.ones(len(point), dtype=torch.bool)
    starts[1:] = point[1:] != point[:-1]
    ends = torch.ones_like(starts)
    ends[:-1] = starts[1:]
    i, j = index[starts], index[ends]
    i, j = i[i != j], j[i != j]
    if lifted is not None:
        i, j = i[lifted[problem.frame[i]]], j[lifted[problem.frame[i]]]
    if len(i) == 0:
        return np.array([[f, np.nan] for f in factors])
    rows = []
    log_depth = true_log_depth(problem, state)
    fi = problem.frame[i]
    focal = state.log_focal[fi].exp()
    n = (problem.uv_px[i] - problem.centre_px - state.lens[:2]) / focal[:, None]
    for factor in factors:
        z = log_depth[i].exp() * factor
        p = torch.stack([n[:, 0] * z, n[:, 1] * z, z], 1)
        world = (state.rotation[fi].transpose(1, 2) @ (p - state.translation[fi])[:, :, None])[:, :, 0]
        pair = replace(
            problem,
            frame=problem.frame[j],
            point=torch.arange(len(j)),
            uv_px=problem.uv_px[j],
            sigma_px=problem.sigma_px[j],
            log_depth=problem.log_depth[j],
            sigma_log_depth=problem.sigma_log_depth[j],
            num_points=len(j),
        )
        uv, q = ba.project(pair, replace(state, points=world))
        squared = (((uv - pair.uv_px) / pair.sigma_px[:, None]) ** 2).sum(1)
        rho, _ = ba.cauchy(
            torch.where(q[:, 2] > 1e-6, squared, torch.full_like(squared, 1e6)), config.robust_scale
        )
        rows.append([factor, float(rho.mean())])
    return np.array(rows)
