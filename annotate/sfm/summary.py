"""A bundle's solution as the cameras, uncertainties and measures of quality that a row states."""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ..tracks.records import (
    Tracks,
)
from .bundle.problem import Problem, Solution, State, cauchy, project, residuals, sum_by
from .config import BundleConfig, FocalModel
from .observations import median_depth_by_frame
from .records import INFILLED, MIN_INLIERS, RMS_OF_MEDIAN, SOLVED, CameraSolution, Evidence
from .triangulation import parallax, true_log_depth


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
    num = sum_by(frame, torch.ones_like(solution.weight), frames)
    num_in = sum_by(frame, inlier.double(), frames)
    # Links by alignment are no measurements of points: they speak only where a frame has nothing else.
    points_only = inlier & (problem.sigma_px < 2 * problem.sigma_px.median())
    few = (sum_by(frame, points_only.double(), frames) == 0)[frame]
    counted = torch.where(few, inlier, points_only).double()
    square = sum_by(frame, counted * solution.residual_px**2, frames)
    reprojection = (square / sum_by(frame, counted, frames).clamp_min(1)).sqrt()
    rotation = state.rotation.cpu().numpy()
    translation = state.translation.cpu().numpy()
    world_to_camera = np.tile(np.eye(4), (frames, 1, 1))
    world_to_camera[:, :3, :3], world_to_camera[:, :3, 3] = rotation, translation

    pose = se3_inverse(world_to_camera)
    pose = se3_inverse(pose[:1]) @ pose
    log_focal = state.log_focal.cpu().numpy().copy()
    weak = (num_in < MIN_INLIERS).cpu().numpy()
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
        median_depth=float(np.median(median_depth_by_frame(problem))),
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
    px, _, weight = residuals(problem, bridged, config)
    of = torch.zeros(problem.num_frames, dtype=px.dtype)
    for frame in torch.nonzero(weak)[:, 0].tolist():
        seen = problem.frame == frame
        of[frame] = RMS_OF_MEDIAN * float(px[seen].median()) if bool(seen.any()) else 0.0
    agree = sum_by(problem.frame, (weight > 0.3).double(), problem.num_frames)
    return torch.where(weak, of, reprojection), torch.where(weak, agree, num_in)


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
        uv, q = project(pair, replace(state, points=world))
        squared = (((uv - pair.uv_px) / pair.sigma_px[:, None]) ** 2).sum(1)
        rho, _ = cauchy(
            torch.where(q[:, 2] > 1e-6, squared, torch.full_like(squared, 1e6)), config.robust_scale
        )
        rows.append([factor, float(rho.mean())])
    return np.array(rows)
