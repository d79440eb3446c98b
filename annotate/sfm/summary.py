"""A bundle's solution as the cameras, uncertainties and measures of quality that a row states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ...dataset.words import FocalModel
from .bundle.problem import Problem, Solution, State, cauchy, project, residuals, seen_rays, sum_by
from .config import BundleConfig
from .observations import median_depth_by_frame
from .records import INFILLED, MIN_INLIERS, RMS_OF_MEDIAN, SOLVED, CameraSolution, Evidence
from .triangulation import parallax, true_log_depth


def summarise(
    problem: Problem,
    solution: Solution,
    model: FocalModel,
    costs: dict[str, float],
    config: BundleConfig,
    *,
    num_loops: int,
) -> CameraSolution:
    """The solution as cameras of the clip; frames with too few inliers are bridged.

    Args:
        model, costs: focal model that was chosen, and the cost of each that was tried.
        num_loops: places that were seen again.
    """
    assert solution.covariance is not None
    state, covariance = solution.state, solution.covariance
    inlier = solution.weight > 0.3
    # Links by alignment are no measurements of points: they speak only where a frame has nothing else.
    points_only = inlier & (problem.sigma_px < 2 * problem.sigma_px.median())
    frames = _frames(problem, solution, config, inlier, points_only)
    focal, lens = np.exp(frames.log_focal), state.lens.cpu().numpy()
    residual = solution.residual_log_depth[torch.isfinite(problem.sigma_log_depth) & inlier].abs()
    number = sum_by(problem.frame, torch.ones_like(solution.weight), problem.num_frames)
    return CameraSolution(
        camera_to_world=frames.pose,
        focal_px=np.stack([focal, focal * np.exp(lens[2])], 1),
        principal_point_px=np.tile(problem.centre_px.cpu().numpy() + lens[:2], (problem.num_frames, 1)),
        pose_source=frames.source,
        focal_model=model,
        # Perturbed from the left, R' = E R and t' = E t + v: the camera centre -R^T t moves by -R^T v, whatever the
        # turn.
        position_sigma=_worst_axis(covariance[:, 3:6, 3:6]),
        rotation_sigma_rad=_worst_axis(covariance[:, :3, :3]),
        log_focal_sigma=covariance[:, 6, 6].clamp_min(0).sqrt().cpu().numpy(),
        reprojection_px=frames.reprojection.cpu().numpy(),
        num_observations=number.cpu().numpy().astype(np.int64),
        num_inliers=frames.num_inliers.cpu().numpy().astype(np.int64),
        inlier_share=(frames.num_inliers / number.clamp_min(1)).cpu().numpy(),
        depth_log_residual=float(residual.median()) if len(residual) else float("nan"),
        parallax_rad=parallax(problem, state, inlier),
        num_tracks=problem.num_points,
        num_loops=num_loops,
        focal_cost=costs,
        scale_sweep=scale_sweep(problem, state, config),
        radial_k1=float(lens[3]),
        radial_k2=float(lens[4]) if lens[4] or problem.lens.model != "near_pinhole" else None,
        lens_model=problem.lens.model,
        median_depth=float(np.median(median_depth_by_frame(problem))),
        evidence=Evidence(problem, state, config),
        num_joining=_num_joining(problem.frame[points_only], problem.point[points_only], problem.num_frames),
        num_linked=_num_joining(problem.frame[inlier], problem.point[inlier], problem.num_frames),
    )


def _worst_axis(covariance: Tensor) -> FloatArray:
    """(F,) standard deviation along the worst axis, of (F, 3, 3)."""
    return torch.linalg.eigvalsh(covariance)[:, 2].clamp_min(0).sqrt().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Of every frame: camera to world from the first one, log focal, where it comes from, error in pixels, inliers."""

    pose: FloatArray
    log_focal: FloatArray
    source: NDArray
    reprojection: Tensor
    num_inliers: Tensor


def _frames(
    problem: Problem, solution: Solution, config: BundleConfig, inlier: Tensor, points_only: Tensor
) -> _Frames:
    frame, number, state = problem.frame, problem.num_frames, solution.state
    num_inliers = sum_by(frame, inlier.double(), number)
    few = (sum_by(frame, points_only.double(), number) == 0)[frame]
    counted = torch.where(few, inlier, points_only).double()
    square = sum_by(frame, counted * solution.residual_px**2, number)
    reprojection = (square / sum_by(frame, counted, number).clamp_min(1)).sqrt()
    world_to_camera = np.tile(np.eye(4), (number, 1, 1))
    world_to_camera[:, :3, :3] = state.rotation.cpu().numpy()
    world_to_camera[:, :3, 3] = state.translation.cpu().numpy()
    pose = se3_inverse(world_to_camera)
    pose = se3_inverse(pose[:1]) @ pose
    log_focal = state.log_focal.cpu().numpy().copy()
    weak = (num_inliers < MIN_INLIERS).cpu().numpy()
    if weak.any() and (~weak).any():
        good = np.nonzero(~weak)[0]
        inside = np.clip(np.arange(number), good[0], good[-1]).astype(float)
        pose[weak] = interpolate_poses(good.astype(float), pose[good], inside[weak])
        log_focal[weak] = np.interp(inside[weak], good, log_focal[good])
        px, agree = _measured_under(problem, state, config, pose, log_focal)
        bridged = torch.as_tensor(weak)
        of_bridged = torch.zeros(number, dtype=px.dtype)
        for i in np.nonzero(weak)[0].tolist():
            seen = frame == i
            of_bridged[i] = RMS_OF_MEDIAN * float(px[seen].median()) if bool(seen.any()) else 0.0
        reprojection = torch.where(bridged, of_bridged, reprojection)
        num_inliers = torch.where(bridged, agree, num_inliers)
    return _Frames(
        pose=pose,
        log_focal=log_focal,
        source=np.where(weak, INFILLED, SOLVED),
        reprojection=reprojection,
        num_inliers=num_inliers,
    )


def _num_joining(frame: Tensor, point: Tensor, num_frames: int) -> IntArray:
    """(F,) points seen both before a frame and in it or later, from the (N,) frame and point of observations."""
    order = np.lexsort((frame.cpu().numpy(), point.cpu().numpy()))
    points, frames = point.cpu().numpy()[order], frame.cpu().numpy()[order]
    first = np.r_[True, points[1:] != points[:-1]][: len(points)]
    last = np.r_[points[1:] != points[:-1], True][: len(points)]
    change = np.zeros(num_frames + 1, np.int64)
    np.add.at(change, frames[first] + 1, 1)
    np.add.at(change, frames[last] + 1, -1)
    return np.cumsum(change)[:num_frames]


def _measured_under(
    problem: Problem, state: State, config: BundleConfig, pose: FloatArray, log_focal: FloatArray
) -> tuple[Tensor, Tensor]:
    """Reprojection error of each observation (N,) and inliers of each frame (F,) under cameras that were not solved."""
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
    return px, sum_by(problem.frame, (weight > 0.3).double(), problem.num_frames)


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
    back_projected: Tensor | None = None,
) -> FloatArray:
    """Reprojection cost when every frame's depth is multiplied while the camera path stays: least at 1.0 if they agree.

    Each observation with depth is back-projected by its own frame and projected into the other frames of its track
    (first and last); where `back_projected` (F,) bool is given, only by such frames. Returns (S, 2): factor, mean
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
    if back_projected is not None:
        i, j = i[back_projected[problem.frame[i]]], j[back_projected[problem.frame[i]]]
    if len(i) == 0:
        return np.array([[f, np.nan] for f in factors])
    rows = []
    log_depth = true_log_depth(problem, state)
    fi = problem.frame[i]
    n = seen_rays(problem, state)[i]
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
