"""A clip whose source gives poses: solved without them, compared, and measured anew on the cameras that it keeps.

Where there is depth, the clip is solved as if no pose were given. Where there is none, the given poses and intrinsics
start a bundle of tracks alone, which goes where the images want it; what it cannot find is a unit of length. Either
way the solution is only the judge: the row keeps the given poses, and its numbers are those of the given poses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...dataset.arrays import FloatArray
from ...dataset.cameras.alignment import umeyama
from ...dataset.cameras.rotations import orthonormalise, so3_log
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ..given.cameras import GivenCameras
from ..sfm.bundle.lens import LENS_DOF
from ..sfm.bundle.optimum import Optimum
from ..sfm.bundle.priors import focal_prior
from ..sfm.bundle.problem import Problem, State, project
from ..sfm.bundle.solve import Effort, Question, solve_bundle
from ..sfm.config import BundleConfig
from ..sfm.keyframes import SolverInput
from ..sfm.observations import build_problem, thin_observations
from ..sfm.records import GIVEN, CameraSolution, in_stored_pixels, with_lens
from ..sfm.shared_errors import OF_SENSORS, shared_errors
from ..sfm.solve import solve_cameras
from ..sfm.summary import summarise
from ..sfm.triangulation import triangulate
from ..sources.clip import ClipRejection
from ..tracks.descriptors import descriptor_tracks, match_keyframes
from ..tracks.records import MATCHED_GAPS, join_tracks
from .given_poses import (
    LEAST_MOTION,
    GivenPoseCheck,
    GivenPoseErrors,
    keep_given_poses,
    path_distance,
    path_scale,
    pose_noise,
    size_ratio,
    time_offset,
)
from .held_cameras import LensCheck, check_lens, held_scale, measure_held, place_points

_GAUGE_SIGMA_LOG = 0.3
"""Standard deviation of the depth that the given cameras themselves tell: it holds the unit of length, no more."""
_FAR = 50.0
"""Distance of points without parallax, in usual depths: they hold rotations."""


@dataclass(frozen=True, kw_only=True)
class Posed:
    """Cameras that hold the given poses, and what speaks for them.

    Attributes:
        cameras: as in the row.
        check: given and solved motion compared.
        errors: what kind of error the given poses have.
        lens: of intrinsics given beside the poses; None without, or where too little is seen.
        metres_per_unit: of the poses, as they are kept.
        solved: (F, 4, 4) what the images ask for by themselves.
    """

    cameras: CameraSolution
    check: GivenPoseCheck
    errors: GivenPoseErrors
    lens: LensCheck | None
    metres_per_unit: float
    solved: FloatArray


def solve_posed(
    inputs: SolverInput, given: GivenCameras, *, time_s: FloatArray, scale_sigma_log: float
) -> Posed:
    """Cameras of a clip with given poses, judged by what images and depth say.

    Args:
        inputs: as in `solve_cameras`; without depth, a held lens and the unit of the poses must be known.
        given: with poses.
        time_s: (F,) of the clip's frames.
        scale_sigma_log: error that the scale of all depth may have in common.
    Raises:
        ClipRejection: as `solve_cameras` and `keep_given_poses`.
    """
    if inputs.depth is None:
        solved = solve_from_poses(inputs, given)
    else:
        solved = solve_cameras(inputs, with_evidence=True)
    held = inputs.held_lens is not None
    return keep_and_judge(solved, given, time_s=time_s, scale_sigma_log=scale_sigma_log, lens_given=held)


def keep_and_judge(
    solved: CameraSolution,
    given: GivenCameras,
    *,
    time_s: FloatArray,
    scale_sigma_log: float,
    lens_given: bool,
) -> Posed:
    """The given poses in the place of the solved ones, everything measured on them, and both compared.

    Args:
        solved: in metres, with its evidence.
        time_s: (F,) of the clip's frames.
        scale_sigma_log: as in `solve_posed`.
    """
    assert solved.evidence is not None
    kept, check = _kept(solved, given)
    path = kept.camera_to_world
    frame_numbers = np.arange(len(path), dtype=np.float64)
    on_path = interpolate_poses(frame_numbers, path, given.position)
    reference = interpolate_poses(frame_numbers, solved.camera_to_world, given.position)
    sigma = np.interp(given.position, frame_numbers, solved.position_sigma)
    picture = {"focal_px": float(np.median(solved.focal_px)), "depth": solved.median_depth}
    noise_m, noise_px, worst_px, worst = pose_noise(reference, on_path, **picture)
    late_s, late_sigma_s, gain = time_offset(
        solved.camera_to_world, time_s, on_path, np.interp(given.position, frame_numbers, time_s), **picture
    )
    lens = check_lens(solved.evidence, path, solved)
    ratio, ratio_sigma = _length_ratio(
        solved,
        path,
        (reference, on_path, sigma),
        focal_log=0.0 if lens is None or lens_given else lens.focal_log,
        common_sigma_log=max(scale_sigma_log, solved.scale_doubt_log),
    )
    size, size_sigma = size_ratio(reference, on_path)
    errors = GivenPoseErrors(
        noise_m=noise_m,
        noise_px=noise_px,
        worst_px=worst_px,
        worst_frame=float(given.position[worst]),
        time_offset_s=late_s,
        time_offset_sigma_s=late_sigma_s,
        time_offset_gain=gain,
        scale_ratio=ratio,
        scale_sigma=ratio_sigma,
        path_m=path_distance(reference, on_path),
        path_sigma_m=float(np.sqrt(np.mean(solved.stated_sigmas()[0] ** 2))),
        size_ratio=size,
        size_sigma=size_sigma,
    )
    measured = _with_sigma(
        measure_held(replace(kept, camera_to_world=solved.camera_to_world), path), solved, lens
    )
    return Posed(
        cameras=replace(measured, evidence=None),
        check=check,
        errors=errors,
        lens=lens if lens_given else None,
        metres_per_unit=given.metres_per_unit or _unit_of(kept, given),
        solved=solved.camera_to_world,
    )


def _kept(solved: CameraSolution, given: GivenCameras) -> tuple[CameraSolution, GivenPoseCheck]:
    """`keep_given_poses` in metres, whatever the unit of the given ones."""
    assert given.camera_to_world is not None
    kept, check = keep_given_poses(
        solved, given.camera_to_world, given.position, unit_to_metres=given.metres_per_unit
    )
    if given.metres_per_unit is not None:
        return kept, check
    # Paths agree on the unit as far as the solved one does; depth under the given poses knows better.
    ratio, sigma = held_scale(solved, kept.camera_to_world)
    if not np.isfinite(sigma):
        return kept, check
    unit = ratio * _unit_of(kept, given)
    return keep_given_poses(solved, given.camera_to_world, given.position, unit_to_metres=unit)


def _length_ratio(
    solved: CameraSolution,
    path: FloatArray,
    given_frames: tuple[FloatArray, FloatArray, FloatArray],
    *,
    focal_log: float,
    common_sigma_log: float,
) -> tuple[float, float]:
    """Length that depth gives the kept path over the length that it has, and the standard error of its log; NaN
    without depth.

    Args:
        path: (F, 4, 4) kept poses.
        given_frames: solved and kept poses where poses were given, (G, 4, 4), and (G,) sigma of the solved positions.
        focal_log: what to add to the log focal of `solved`.
        common_sigma_log: error that all depth may have in common.
    """
    assert solved.evidence is not None
    if not bool(torch.isfinite(solved.evidence.problem.sigma_log_depth).any()):
        return float("nan"), float("nan")
    ratio, ratio_sigma = held_scale(solved, path, focal_log=focal_log)
    if not np.isfinite(ratio_sigma):
        ratio, ratio_sigma = path_scale(*given_frames, least_motion=LEAST_MOTION * solved.median_depth)
    return ratio, float(np.hypot(ratio_sigma, common_sigma_log))


def _unit_of(kept: CameraSolution, given: GivenCameras) -> float:
    """Metres of a unit of the given poses, as `kept` has them."""
    assert given.camera_to_world is not None
    frame_numbers = np.arange(len(kept.camera_to_world), dtype=np.float64)
    ours = interpolate_poses(frame_numbers, kept.camera_to_world, given.position)[:, :3, 3]
    theirs = given.camera_to_world[:, :3, 3]
    lengths = [np.linalg.norm(p - p.mean(0), axis=1).sum() for p in (ours, theirs)]
    return float(lengths[0] / lengths[1])


def _with_sigma(kept: CameraSolution, solved: CameraSolution, lens: LensCheck | None) -> CameraSolution:
    """Standard deviations of cameras that were not solved for: how far they lie from those that were, at the worst
    axis, once the two paths lie on each other. Frames between given ones have their own on top of it."""
    given = kept.pose_source == GIVEN
    a, b = kept.camera_to_world, solved.camera_to_world
    try:
        fit = umeyama(a[:, :3, 3], b[:, :3, 3], with_scale=False, allow_collinear=True)
        apart = b[:, :3, 3] - (a[:, :3, 3] @ fit.rotation.T + fit.translation)
    except ValueError:
        apart = b[:, :3, 3] - a[:, :3, 3]
    turn = b[:, :3, :3] @ np.swapaxes(a[:, :3, :3], 1, 2)
    turn = so3_log(np.swapaxes(a[:, :3, :3], 1, 2) @ orthonormalise(turn.sum(0)).T @ b[:, :3, :3])
    position, rotation = (float(np.sqrt(np.linalg.eigvalsh(x.T @ x / len(x))[-1])) for x in (apart, turn))
    focal = solved.stated_sigmas()[2]
    if lens is not None and kept.focal_model == "given":
        focal = np.full_like(focal, np.hypot(lens.focal_log, lens.focal_sigma))
    return replace(
        kept,
        position_sigma=np.where(given, position, np.hypot(position, kept.position_sigma)),
        rotation_sigma_rad=np.where(given, rotation, np.hypot(rotation, kept.rotation_sigma_rad)),
        log_focal_sigma=focal,
        shared=None,
        focal_doubt_log=0.0,
        scale_doubt_log=0.0,
    )


# --- without depth --------------------------------------------------------------------------------


def solve_from_poses(inputs: SolverInput, given: GivenCameras) -> CameraSolution:
    """Cameras of every frame from tracks alone, begun at the given cameras; their unit of length is the given one.

    Args:
        inputs: with a held lens; its depth is not looked at.
        given: with poses.
    Raises:
        ClipRejection: `given_poses_too_few`, `no_reconstruction`: the tracks cannot be placed at all.
    """
    assert inputs.held_lens is not None
    square, aspect = inputs.in_square_pixels()
    problem, log_focal = _tracks_and_focal(square)
    state = _at_given_poses(problem, given, log_focal)
    state, gauged = _with_gauge(problem, state, square.config)
    prior = focal_prior("given", problem.num_frames, square.config, given=log_focal)
    coarse = square.config.model_copy(update={"robust_scale": 4 * square.config.robust_scale})
    try:
        state = solve_bundle(
            gauged, state, prior, coarse, effort=Effort(max_iterations=15, tolerance=0.001)
        ).state
        solution = solve_bundle(gauged, state, prior, square.config, effort=Effort(tolerance=0.0005))
        question = Question(problem=gauged, state=solution.state, prior=prior, config=square.config)
        optimum = Optimum.of(question, solution)
    except FloatingPointError as error:
        raise ClipRejection("no_reconstruction", f"no bundle from the given cameras: {error}") from error
    solution = replace(solution, covariance=optimum.covariance())
    found = summarise(gauged, solution, "given", {"given": solution.data_cost}, square.config, num_loops=0)
    assert found.evidence is not None
    found = replace(
        found,
        depth_log_residual=float("nan"),
        scale_sweep=np.zeros((0, 2)),
        # What tracks have wrong in common bends a path without depth many times more than what single ones err by.
        shared=shared_errors(optimum, OF_SENSORS),
        evidence=replace(found.evidence, problem=problem),
    )
    return with_lens(in_stored_pixels(found, aspect), inputs.held_lens)


def _tracks_and_focal(square: SolverInput) -> tuple[Problem, Tensor]:
    """Observations of all frames without depth, principal point at the image centre; (F,) log of the given focal."""
    flow, keyframes, features = square.measured.flow, square.measured.keyframes, square.measured.features
    lens = square.held_lens
    assert lens is not None
    size = np.array([flow.width, flow.height])
    pairs = ((a, a + gap) for gap in MATCHED_GAPS for a in range(len(keyframes) - gap))
    matches = match_keyframes(square.measured, pairs, square.tracks_config)
    described = descriptor_tracks(
        features, matches, num_frames=flow.num_frames, height=flow.height, width=flow.width
    )
    tracks = join_tracks(flow, described)
    off_centre = lens.principal_point_px - size / 2
    tracks = replace(tracks, xy_px=tracks.xy_px - off_centre[tracks.frame])
    tracks, none = thin_observations(tracks, np.full(len(tracks.frame), np.nan), keyframes, square.config)
    problem = build_problem(tracks, none, square.config, depth_sigma_log=_GAUGE_SIGMA_LOG)
    return problem, torch.as_tensor(np.log(lens.focal_px[:, 1]))


def _at_given_poses(problem: Problem, given: GivenCameras, log_focal: Tensor) -> State:
    """The given cameras, in metres, between given poses interpolated and beyond them held; points at the origin."""
    assert given.camera_to_world is not None
    poses = np.array(given.camera_to_world, np.float64)
    poses[:, :3, 3] *= given.metres_per_unit or 1.0
    if len(poses) < 3:
        raise ClipRejection("given_poses_too_few", f"{len(poses)} given poses within the clip, need 3")
    frame_numbers = np.clip(
        np.arange(problem.num_frames, dtype=np.float64), given.position[0], given.position[-1]
    )
    world_to_camera = torch.as_tensor(se3_inverse(interpolate_poses(given.position, poses, frame_numbers)))
    return State(
        rotation=world_to_camera[:, :3, :3].contiguous(),
        translation=world_to_camera[:, :3, 3].contiguous(),
        log_focal=log_focal,
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=torch.zeros(problem.num_points, 3, dtype=torch.float64),
    )


def _with_gauge(problem: Problem, state: State, config: BundleConfig) -> tuple[State, Problem]:
    """Points where the given cameras see them, and the problem with the depth that this gives them, which is taken
    for as good as holds the unit of length. Points without parallax lie far off and have none."""
    points = triangulate(problem, state, torch.ones(problem.num_points, dtype=torch.bool))
    near = torch.isfinite(points).all(1)
    if int(near[problem.point].sum()) < 50:
        raise ClipRejection(
            "no_reconstruction",
            f"{int(near.sum())} of {len(near)} tracks have parallax under the given cameras"
            if len(near)
            else "nothing in the pictures can be tracked",
        )
    _, camera = project(problem, replace(state, points=torch.nan_to_num(points)))
    usual = camera[near[problem.point], 2].abs().median()
    points = torch.where(near[:, None], points, _along_first_ray(problem, state, _FAR * usual))
    state = place_points(problem, replace(state, points=points), config)
    _, camera = project(problem, state)
    z = camera[:, 2]
    seen = near[problem.point] & (z > 0.01 * usual) & (z < _FAR * usual)
    gauged = replace(
        problem,
        log_depth=torch.where(seen, z.clamp_min(1e-9), torch.ones_like(z)).log(),
        sigma_log_depth=torch.where(seen, _GAUGE_SIGMA_LOG, torch.inf).to(z.dtype),
    )
    return state, gauged


def _along_first_ray(problem: Problem, state: State, distance: Tensor) -> Tensor:
    """(P, 3) points at a distance along the ray of each one's first observation."""
    first = torch.full((problem.num_points,), len(problem.point), dtype=torch.long)
    first = first.scatter_reduce(0, problem.point, torch.arange(len(problem.point)), "amin")
    first = first.clamp_max(len(problem.point) - 1)
    frame = problem.frame[first]
    xy = (problem.uv_px[first] - problem.centre_px) / state.log_focal[frame].exp()[:, None]
    local = torch.cat([xy, torch.ones_like(xy[:, :1])], 1) * distance - state.translation[frame]
    return (state.rotation[frame].transpose(1, 2) @ local[:, :, None])[:, :, 0]
