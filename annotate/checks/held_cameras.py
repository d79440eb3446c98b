"""Cameras that are held, not solved for: what tracks and depth say of them.

A row's numbers of quality must be those of the cameras in the row. Where given poses replace solved ones, points are
placed anew under them and everything is measured again (`measure_held`). And where intrinsics are given beside poses,
the lens is solved for with the poses held (`check_lens`): rotations that are known tell a focal length by themselves,
so wrong intrinsics do not pass for wrong poses.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...dataset.arrays import FloatArray
from ...dataset.cameras.transforms import se3_inverse
from ...dataset.robust import MAD_TO_SIGMA
from ..sfm.bundle.lens import LENS_DOF
from ..sfm.bundle.priors import FocalPrior, focal_prior
from ..sfm.bundle.problem import Problem, Solution, State, cauchy, residuals, sum_by
from ..sfm.bundle.single import intersect
from ..sfm.bundle.solve import Effort, solve_bundle
from ..sfm.config import BundleConfig
from ..sfm.records import RMS_OF_MEDIAN, CameraSolution, Evidence
from ..sfm.summary import scale_sweep, sweep_minimum
from ..sfm.triangulation import parallax, triangulate
from ..sources.clip import ClipRejection

_FREE_LENS = {"principal_point_sigma": 0.1, "aspect_sigma": 0.1}
"""Priors while given intrinsics are in doubt: those of another image size are off by a tenth. No bending is asked."""
_NOMINAL = 1.5
"""Median reprojection error, in standard deviations of a measurement, up to which cameras explain the tracks."""
MEDIAN_OF_SIGMA = 1.18
"""Median length of a 2-D Gaussian error over its standard deviation along an axis."""
_LENS_TRACKS = 1000
"""Tracks that a lens is asked of; more would only agree with them."""
_MIN_OBSERVATIONS = 60
_SCALE_PARTS = 6
_MIN_LENS_FRAMES, _MAX_LENS_FRAMES = 12, 48
"""With fewer cameras their own errors pass for those of a lens; with more the answer is no better."""
_SAME_ERROR = 3.0
"""Independent observations of a frame whose camera errs: all of its tracks err with it."""


def measure_held(cameras: CameraSolution, camera_to_world: FloatArray) -> CameraSolution:
    """The solution with other poses, everything that is measured of cameras measured on these.

    Args:
        cameras: with the evidence that it was solved from.
        camera_to_world: (F, 4, 4) of every frame, first at the origin, in the unit of the depth.
    Returns:
        With reprojection errors, counts, inlier shares, depth residual, parallax and sweep of the new poses.
        Reprojection errors are of all observations: with wrong cameras those that agree are few, and agree by chance.
    """
    evidence = cameras.evidence
    assert evidence is not None
    problem, config = evidence.problem, evidence.config
    frames = problem.num_frames
    moved = camera_to_world @ se3_inverse(cameras.camera_to_world)
    state = _with_poses(evidence, camera_to_world, cameras)
    first = torch.full((problem.num_points,), frames, dtype=torch.long)
    first = first.scatter_reduce(0, problem.point, problem.frame, "amin").clamp_max(frames - 1)
    # Where the frame that saw a point first took it along.
    origin = (
        evidence.state.rotation[0] @ evidence.state.points[:, :, None]
        + evidence.state.translation[0][:, None]
    )
    carry = torch.as_tensor(moved)[first]
    carried = (carry[:, :3, :3] @ origin)[:, :, 0] + carry[:, :3, 3]
    state = place_points(problem, replace(state, points=carried), config)
    px, log_depth, weight = residuals(problem, state, config)
    px = px.clamp_max(
        problem.focal_scale_px
    )  # beyond the picture, or behind the camera, no number means more
    inlier = weight > 0.3
    total = sum_by(problem.frame, torch.ones_like(px), frames)
    agree = sum_by(problem.frame, inlier.double(), frames)
    has = torch.isfinite(problem.sigma_log_depth)
    everything = torch.ones_like(inlier)
    return replace(
        cameras,
        camera_to_world=camera_to_world,
        reprojection_px=RMS_OF_MEDIAN * _median_by(problem.frame, px, frames),
        num_inliers=agree.numpy().astype(np.int64),
        num_observations=total.numpy().astype(np.int64),
        inlier_share=(agree / total.clamp_min(1)).numpy(),
        depth_log_residual=float(log_depth[has].abs().median()) if bool(has.any()) else float("nan"),
        parallax_rad=parallax(problem, state, everything),
        scale_sweep=scale_sweep(problem, state, config) if bool(has.any()) else np.zeros((0, 2)),
    )


def held_scale(
    cameras: CameraSolution, camera_to_world: FloatArray, *, focal_log: float = 0.0
) -> tuple[float, float]:
    """Ratio of the length that depth gives the path to the length that it has, and the standard error of its log.

    Depth is swept (`scale_sweep`) with the poses held, part of the clip by part: how much the parts differ is how sure
    the ratio is. NaN where fewer than three parts have an answer.

    Args:
        camera_to_world: (F, 4, 4), first at the origin, in the unit of the depth.
        focal_log: what to add to the log focal of `cameras`, where the poses know better.
    """
    evidence = cameras.evidence
    assert evidence is not None
    problem, config = evidence.problem, evidence.config
    state = _with_poses(evidence, camera_to_world, cameras)
    state = replace(state, log_focal=state.log_focal + focal_log)
    edges = np.linspace(0, problem.num_frames, _SCALE_PARTS + 1).round().astype(int)
    found = []
    for a, b in itertools.pairwise(edges):
        part = torch.zeros(problem.num_frames, dtype=torch.bool)
        part[a:b] = True
        found.append(sweep_minimum(scale_sweep(problem, state, config, back_projected=part)))
    logs = np.log([f for f in found if np.isfinite(f)])
    if len(logs) < 3 or problem.num_frames < 4 * _SCALE_PARTS:
        return float("nan"), float("nan")
    middle = float(np.median(logs))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(logs - middle)))
    return float(np.exp(-middle)), spread / np.sqrt(len(logs))


def place_points(problem: Problem, state: State, config: BundleConfig) -> State:
    """Points where the cameras of `state` see them: from the better of two starts (where `state` has them, and
    triangulated), under a loss as wide as the errors that are found."""
    everything = torch.ones(problem.num_points, dtype=torch.bool)
    solved = triangulate(problem, state, everything)
    solved = torch.where(torch.isfinite(solved), solved, state.points)
    wide = config
    for _ in range(2):
        wide = config.model_copy(update={"robust_scale": _spread(problem, state, config)})
        tried = [
            intersect(problem, replace(state, points=points), wide, iterations=5)
            for points in (state.points, solved)
        ]
        cost = [_cost_by_point(problem, t, wide) for t in tried]
        better = (cost[1] < cost[0])[:, None]
        state = replace(state, points=torch.where(better, tried[1].points, tried[0].points))
    return intersect(problem, state, wide, iterations=3)


def _spread(problem: Problem, state: State, config: BundleConfig) -> float:
    """Robust scale in standard deviations that is as wide as the reprojection errors of `state`."""
    px, _, _ = residuals(problem, state, config)
    usual = float((px / problem.sigma_px).median()) / np.sqrt(2 * np.log(2))
    return config.robust_scale * max(1.0, usual)


def _cost_by_point(problem: Problem, state: State, config: BundleConfig) -> Tensor:
    px, log_depth, weight = residuals(problem, state, config)
    behind = weight == 0
    squared = torch.where(behind, torch.full_like(px, 1e6), (px / problem.sigma_px) ** 2)
    rho, _ = cauchy(squared, config.robust_scale)
    rho_depth, _ = cauchy((log_depth / problem.sigma_log_depth) ** 2, config.robust_scale)
    return sum_by(problem.point, rho + rho_depth, problem.num_points)


def _median_by(group: Tensor, value: Tensor, size: int) -> FloatArray:
    """(size,) median of each group; 0 where it is empty."""
    order = np.lexsort((value.numpy(), group.numpy()))
    counts = np.bincount(group.numpy(), minlength=size)
    start = np.cumsum(counts) - counts
    ordered = value.numpy()[order]
    middle = np.minimum(start + counts // 2, len(ordered) - 1)
    return np.where(counts > 0, ordered[middle], 0.0)


def _with_poses(evidence: Evidence, camera_to_world: FloatArray, cameras: CameraSolution) -> State:
    """The state with the poses of `camera_to_world` and the focal lengths of the row."""
    world_to_camera = torch.as_tensor(np.ascontiguousarray(se3_inverse(camera_to_world)))
    lens = evidence.state.lens
    # Pixels of the problem are as high as those of the row, if not as wide.
    log_focal = torch.as_tensor(np.log(cameras.focal_px[:, 1])) - lens[2]
    return State(
        rotation=world_to_camera[:, :3, :3].contiguous(),
        translation=world_to_camera[:, :3, 3].contiguous(),
        log_focal=log_focal,
        lens=lens,
        points=evidence.state.points,
        log_gain=evidence.state.log_gain,
    )


# --- the lens under given poses -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LensCheck:
    """Given intrinsics against those that images ask for under given poses.

    Attributes:
        focal_log: log of the focal length that the images ask for over the given one, median over frames; focal_sigma:
            its standard deviation.
        told_px: root mean square motion of a frame's picture by which it tells the focal length.
        order_log: largest deviation of a frame from that median, robustly: per-frame intrinsics out of order.
        aspect_log: log of fy / fx asked for over given.
        centre_share: offset of the principal point asked for, as a share of the diagonal.
        sigma_px: standard deviation of a measurement.
        given_px, free_px: median reprojection error under the given poses with the given lens, and with the one that
            is asked for; solved_px: with the given lens and the poses that it asks for.
    """

    focal_log: float
    focal_sigma: float
    told_px: float
    order_log: float
    aspect_log: float
    centre_share: float
    sigma_px: float
    given_px: float
    free_px: float
    solved_px: float


def check_lens(evidence: Evidence, camera_to_world: FloatArray, cameras: CameraSolution) -> LensCheck | None:
    """Solve for the lens with poses held and depth left out; None if too few frames or tracks are there.

    Args:
        camera_to_world: (F, 4, 4) given poses of every frame in any unit.
        cameras: with the given intrinsics.
    """
    question = _lens_question(evidence, camera_to_world, cameras)
    if question is None:
        return None
    problem, config, state = question.problem, question.config, question.state
    given = state.log_focal
    begin = place_points(problem, state, config)
    best = question.freed(begin, 8).state
    if question.median_px(best) > _NOMINAL * float(problem.sigma_px.median()):
        # Wrong by a fifth, a focal length lies too far off for the loss to see the way.
        others = [replace(state, log_focal=given + step) for step in (-0.25, 0.25)]
        tried = [question.freed(place_points(problem, other, config), 8).state for other in others]
        best = min([best, *tried], key=question.median_px)
    found = question.freed(best, 10, want_covariance=True)
    assert found.covariance is not None
    off = (found.state.log_focal - given).numpy()
    middle = float(np.median(off))
    lens = found.state.lens.numpy()
    alike = max(1.0, len(problem.frame) / problem.num_frames / _SAME_ERROR)
    sigma = float(found.covariance[:, 6, 6].clamp_min(0).sqrt().median()) * np.sqrt(alike)
    solved_px = float(residuals(evidence.problem, evidence.state, config)[0].median())
    free_px, limit = question.median_px(found.state), problem.focal_scale_px
    independent = _SAME_ERROR * problem.num_frames
    return LensCheck(
        focal_log=middle,
        focal_sigma=sigma,
        told_px=free_px / MEDIAN_OF_SIGMA / max(sigma * np.sqrt(independent), 1e-12),
        order_log=float(np.percentile(np.abs(off - middle), 90)),
        aspect_log=float(lens[2]),
        centre_share=float(np.hypot(lens[0], lens[1])) / problem.focal_scale_px,
        sigma_px=float(problem.sigma_px.median()),
        given_px=min(question.median_px(begin), limit),
        free_px=min(free_px, limit),
        solved_px=solved_px,
    )


@dataclass(frozen=True, kw_only=True)
class _LensQuestion:
    """What a lens is asked of.

    Attributes:
        problem: some tracks of some frames, without depth.
        state: with the given poses and focal lengths, points triangulated under them.
        prior: of the focal length.
        config: with a lens that is free.
    """

    problem: Problem
    state: State
    prior: FocalPrior
    config: BundleConfig

    def freed(self, start: State, steps: int, *, want_covariance: bool = False) -> Solution:
        """The bundle of lens and points from `start`, poses held, under a loss as wide as its errors.

        Raises:
            ClipRejection: `no_reconstruction`.
        """
        wide = self.config.model_copy(update={"robust_scale": _spread(self.problem, start, self.config)})
        try:
            return solve_bundle(
                self.problem,
                start,
                self.prior,
                wide,
                effort=Effort(max_iterations=steps, tolerance=0.001),
                hold="poses",
                want_covariance=want_covariance,
            )
        except FloatingPointError as error:
            raise ClipRejection(
                "no_reconstruction", f"no bundle of the lens under the given poses: {error}"
            ) from error

    def median_px(self, state: State) -> float:
        """Median reprojection error."""
        return float(residuals(self.problem, state, self.config)[0].median())


def _lens_question(
    evidence: Evidence, camera_to_world: FloatArray, cameras: CameraSolution
) -> _LensQuestion | None:
    """See `check_lens`; None if too few frames or tracks are there."""
    count = evidence.problem.num_frames
    if count < _MIN_LENS_FRAMES:
        return None
    frames = np.linspace(0, count - 1, min(count, _MAX_LENS_FRAMES)).round().astype(np.int64)
    config = evidence.config.with_held_lens().model_copy(update=_FREE_LENS)
    full = _with_poses(evidence, camera_to_world, cameras)
    frame_index = torch.as_tensor(np.ascontiguousarray(frames))
    state = State(
        rotation=full.rotation[frame_index],
        translation=full.translation[frame_index],
        log_focal=full.log_focal[frame_index],
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=torch.zeros(0, 3, dtype=torch.float64),
    )
    problem = _of_frames(evidence.problem, frame_index)
    seen = triangulate(problem, state, torch.ones(problem.num_points, dtype=torch.bool))
    problem, points = _of_points(problem, seen)
    if len(problem.frame) < _MIN_OBSERVATIONS:
        return None
    frame_gap = torch.as_tensor(np.diff(frames), dtype=torch.float64)
    return _LensQuestion(
        problem=problem,
        state=replace(state, points=points),
        prior=focal_prior("smooth", len(frames), config, frame_gap=frame_gap),
        config=config,
    )


def _of_frames(problem: Problem, frames: Tensor) -> Problem:
    """Observations of some frames, which are renumbered, of an even share of the tracks."""
    number = torch.full((problem.num_frames,), -1, dtype=torch.long)
    number[frames] = torch.arange(len(frames))
    keep = number[problem.frame] >= 0
    length = sum_by(problem.point, keep.double(), problem.num_points)
    enough = length >= 3
    share = _LENS_TRACKS / max(1, int(enough.sum()))
    # Golden-ratio sequence: an even share of any run of consecutive numbers.
    enough &= (torch.arange(problem.num_points) * 0.6180339887498949) % 1.0 < share
    keep &= enough[problem.point]
    return _kept(replace(problem, frame=number[problem.frame], num_frames=len(frames)), keep)


def _of_points(problem: Problem, points: Tensor) -> tuple[Problem, Tensor]:
    """Observations of the points that have a position, which are renumbered, and the positions."""
    used, number = torch.unique(
        problem.point[torch.isfinite(points).all(1)[problem.point]], return_inverse=True
    )
    kept = _kept(problem, torch.isfinite(points).all(1)[problem.point])
    return replace(kept, point=number, num_points=len(used)), points[used]


def _kept(problem: Problem, keep: Tensor) -> Problem:
    """Some of the observations, without their depth."""
    return replace(
        problem,
        frame=problem.frame[keep],
        point=problem.point[keep],
        uv_px=problem.uv_px[keep],
        sigma_px=problem.sigma_px[keep],
        log_depth=problem.log_depth[keep],
        sigma_log_depth=torch.full_like(problem.sigma_px[keep], torch.inf),
    )
