"""A clip whose source gives poses: solved without them, compared, and measured anew on the cameras that it keeps.

Where there is depth, the clip is solved as if no pose were given. Where there is none, the given poses and intrinsics
start a bundle of tracks alone, which goes where the images want it; what it cannot find is a unit of length. Either
way the solution is only the judge: the row keeps the given poses, and its numbers are those of the given poses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ...dataset.arrays import FloatArray
from ...dataset.cameras.alignment import umeyama
from ...dataset.cameras.rotations import orthonormalise, so3_log
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ..geometry.base import DepthMaps
from ..given.cameras import GivenCameras
from ..sfm.bundle.priors import focal_prior
from ..sfm.bundle.problem import LENS_DOF, Problem, State, project
from ..sfm.bundle.solve import Effort, solve_bundle
from ..sfm.config import BundleConfig
from ..sfm.observations import build_problem, stretched, thin_observations
from ..sfm.records import GIVEN, CameraSolution, KnownLens, StartCameras, in_stored_pixels, with_lens
from ..sfm.solve import solve_cameras
from ..sfm.summary import summarise
from ..sfm.triangulation import triangulate
from ..sources.clip import ClipRejection
from ..tracks.descriptors import descriptor_tracks, match_features
from ..tracks.records import ImageMeasurements, TracksConfig, join_tracks
from .given_poses import (
    LEAST_MOTION,
    GivenPoseCheck,
    GivenPoseErrors,
    keep_given_poses,
    path_scale,
    pose_noise,
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
    """

    cameras: CameraSolution
    check: GivenPoseCheck
    errors: GivenPoseErrors
    lens: LensCheck | None


def solve_posed(
    measured: ImageMeasurements,
    depth: DepthMaps | None,
    *,
    given: GivenCameras,
    time_s: FloatArray,
    scale_sigma_log: float,
    depth_sigma_log: float,
    tracks_config: TracksConfig,
    config: BundleConfig,
    pixel_aspect: float = 1.0,
    start: StartCameras | None = None,
    lens: KnownLens | None = None,
    depths_per_frame: float | None = None,
) -> Posed:
    """Cameras of a clip with given poses, judged by what images and depth say.

    Args:
        depth: None: there is none; then `lens` and the unit of the poses must be known.
        given: with poses.
        time_s: (F,) of the clip's frames.
        scale_sigma_log: error that the scale of all depth may have in common.
    Others as in `solve_cameras`.
    Raises:
        ClipRejection: as `solve_cameras` and `keep_given_poses`.
    """
    if depth is None:
        assert lens is not None
        assert lens.held
        solved = solve_from_poses(measured, given, lens=lens, tracks_config=tracks_config, config=config)
    else:
        solved = solve_cameras(
            measured,
            depth,
            depth_sigma_log=depth_sigma_log,
            tracks_config=tracks_config,
            config=config,
            pixel_aspect=pixel_aspect,
            start=start,
            lens=lens,
            depths_per_frame=depths_per_frame,
            with_evidence=True,
        )
    held = lens is not None and lens.held
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
    assert given.camera_to_world is not None
    assert solved.evidence is not None
    kept, check = keep_given_poses(
        solved, given.camera_to_world, given.position, unit_to_metres=given.metres_per_unit
    )
    has_depth = bool(torch.isfinite(solved.evidence.problem.sigma_log_depth).any())
    if given.metres_per_unit is None:
        # Paths agree on the unit as far as the solved one does; depth under the given poses knows better.
        ratio, sigma = held_scale(solved, kept.camera_to_world)
        if np.isfinite(sigma):
            unit = ratio * _unit_of(kept, given)
            kept, check = keep_given_poses(solved, given.camera_to_world, given.position, unit_to_metres=unit)
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
    ratio, ratio_sigma = float("nan"), float("nan")
    if has_depth:
        ratio, ratio_sigma = held_scale(
            solved, path, focal_log=0.0 if lens is None or lens_given else lens.focal_log
        )
        if not np.isfinite(ratio_sigma):
            ratio, ratio_sigma = path_scale(
                reference, on_path, sigma, least_motion=LEAST_MOTION * solved.median_depth
            )
        ratio_sigma = float(np.hypot(ratio_sigma, max(scale_sigma_log, solved.scale_doubt_log)))
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
    )
    measured = _with_sigma(
        measure_held(replace(kept, camera_to_world=solved.camera_to_world), path), solved, lens
    )
    return Posed(
        cameras=replace(measured, evidence=None),
        check=check,
        errors=errors,
        lens=lens if lens_given else None,
    )


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
        sigma_factor=1.0,
        focal_doubt_log=0.0,
        scale_doubt_log=0.0,
    )


# --- without depth --------------------------------------------------------------------------------


def solve_from_poses(
    measured: ImageMeasurements,
    given: GivenCameras,
    *,
    lens: KnownLens,
    tracks_config: TracksConfig,
    config: BundleConfig,
) -> CameraSolution:
    """Cameras of every frame from tracks alone, begun at the given cameras; their unit of length is the given one.

    Raises:
        ClipRejection: `given_poses_too_few`, `no_reconstruction`: the tracks cannot be placed at all.
    """
    assert given.camera_to_world is not None
    aspect = lens.pixel_aspect if abs(lens.pixel_aspect - 1) > 1e-4 else 1.0
    config = config.model_copy(update={"principal_point_sigma": 0.0, "aspect_sigma": 0.0})
    square, square_lens = stretched(measured, aspect), lens.stretched(aspect)
    flow, keyframes = square.flow, square.keyframes
    size = np.array([flow.width, flow.height])
    matches = {
        (a, a + gap): match_features(
            square.features[a], square.features[a + gap], tracks_config, diagonal_px=float(np.hypot(*size))
        )
        for gap in (1, 2, 4)
        for a in range(len(keyframes) - gap)
    }
    described = descriptor_tracks(
        square.features, matches, num_frames=flow.num_frames, height=flow.height, width=flow.width
    )
    tracks = join_tracks(flow, described)
    off_centre = square_lens.principal_point_px - size / 2
    tracks = replace(tracks, xy_px=tracks.xy_px - off_centre[tracks.frame])
    tracks, none = thin_observations(tracks, np.full(len(tracks.frame), np.nan), keyframes, config)
    problem = build_problem(tracks, none, config, depth_sigma_log=_GAUGE_SIGMA_LOG)

    poses = np.array(given.camera_to_world, np.float64)
    poses[:, :3, 3] *= given.metres_per_unit or 1.0
    if len(poses) < 3:
        raise ClipRejection("given_poses_too_few", f"{len(poses)} given poses within the clip, need 3")
    frame_numbers = np.clip(
        np.arange(flow.num_frames, dtype=np.float64), given.position[0], given.position[-1]
    )
    world_to_camera = torch.as_tensor(se3_inverse(interpolate_poses(given.position, poses, frame_numbers)))
    log_focal = torch.as_tensor(np.log(square_lens.focal_px[:, 1]))
    state = State(
        rotation=world_to_camera[:, :3, :3].contiguous(),
        translation=world_to_camera[:, :3, 3].contiguous(),
        log_focal=log_focal,
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=torch.zeros(problem.num_points, 3, dtype=torch.float64),
    )
    points = triangulate(problem, state, torch.ones(problem.num_points, dtype=torch.bool))
    near = torch.isfinite(points).all(1)
    if int(near[problem.point].sum()) < 50:
        raise ClipRejection(
            "no_reconstruction",
            f"{int(near.sum())} of {len(near)} tracks have parallax under the given cameras",
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
    prior = focal_prior("given", flow.num_frames, config, given=log_focal)
    coarse = config.model_copy(update={"robust_scale": 4 * config.robust_scale})
    try:
        state = solve_bundle(
            gauged, state, prior, coarse, effort=Effort(max_iterations=15, tolerance=0.001)
        ).state
        solution = solve_bundle(
            gauged, state, prior, config, effort=Effort(tolerance=0.0005), want_covariance=True
        )
    except FloatingPointError as error:
        raise ClipRejection("no_reconstruction", f"no bundle from the given cameras: {error}") from error
    found = summarise(gauged, solution, "given", {"given": solution.data_cost}, config, num_loops=0)
    assert found.evidence is not None
    found = replace(
        found,
        depth_log_residual=float("nan"),
        scale_sweep=np.zeros((0, 2)),
        evidence=replace(found.evidence, problem=problem),
    )
    return with_lens(in_stored_pixels(found, aspect), lens)


def _along_first_ray(problem: Problem, state: State, distance: torch.Tensor) -> torch.Tensor:
    """(P, 3) points at a distance along the ray of each one's first observation."""
    first = torch.full((problem.num_points,), len(problem.point), dtype=torch.long)
    first = first.scatter_reduce(0, problem.point, torch.arange(len(problem.point)), "amin")
    first = first.clamp_max(len(problem.point) - 1)
    frame = problem.frame[first]
    xy = (problem.uv_px[first] - problem.centre_px) / state.log_focal[frame].exp()[:, None]
    local = torch.cat([xy, torch.ones_like(xy[:, :1])], 1) * distance - state.translation[frame]
    return (state.rotation[frame].transpose(1, 2) @ local[:, :, None])[:, :, 0]
