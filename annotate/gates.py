"""Gates: what a clip must satisfy to be accepted. Every gate is judged and its number kept, pass or fail.

The first three are the paper's (arXiv 2605.15178, appendix B.3), judged on raw values and on the worst frame. The
others catch what those cannot see: a static camera, a jump, tracks that died, depth and path of different scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..dataset.cameras import fov_from_focal, rigid_error
from ..dataset.reasons import ReasonCode
from ..dataset.rows import Gate
from ..dataset.strict import Strict
from .given_poses import GivenPoseCheck
from .scale import ScaleEstimate
from .solve import INFILLED, CameraSolution, members
from .tracks import ImageMeasurements

FloatArray = NDArray[np.floating]

_MIN_SURVIVAL, _MIN_JOINING = 0.05, 20


class GatesConfig(Strict):
    """Bounds of the gates."""

    fov_min_deg: Annotated[float, Field(gt=0, lt=180)] = 25.0
    fov_max_deg: Annotated[float, Field(gt=0, lt=180)] = 120.0
    """Horizontal and vertical field of view of every frame (paper: 25 to 120 degrees)."""
    max_focal_axis_gap: Annotated[float, Field(ge=0)] = 0.20
    """|fx - fy| / mean of every frame (paper: 0.20)."""
    max_scale_cov: Annotated[float, Field(gt=0)] = 2.0
    """Standard deviation over mean of the raw scale series (paper: 2.0)."""
    max_rigid_error: Annotated[float, Field(gt=0)] = 1e-4
    """Deviation of any rotation from orthonormal."""
    max_jump: Annotated[float, Field(gt=0)] = 6.0
    """Largest step of the camera centre over the 90th percentile of all steps."""
    max_infilled_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of frames whose camera had to be bridged for want of tracks."""
    min_inlier_share: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of observations that agree with the cameras, over the clip."""
    max_lost_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of frames into which fewer than 5 % of the tracks survive, and that no 20 points of the solution join to
    the frames before either: where the camera moves fast, descriptors follow what flow loses."""
    max_lone_frame: Annotated[float, Field(gt=0)] = 1.5
    """Largest distance of a camera centre from the middle between its neighbours, over the 90th percentile of all steps
    (at least a hundredth of the scene's depth). True paths at 16 fps and sub-sampled: up to 0.5, hand-held at 30 fps
    with noise 0.7."""
    min_parallax_deg: Annotated[float, Field(ge=0)] = 0.25
    """Median angle under which tracks are seen along their life: without parallax no translation is checked."""
    scale_sweep_tolerance: Annotated[float, Field(ge=0)] = 0.15
    """How far from 1 the factor on depth may lie at which depth and camera path agree best."""
    max_position_sigma: Annotated[float, Field(gt=0)] = 0.2
    """Largest standard deviation of a camera centre, as a share of the median scene depth."""
    max_given_rotation_deg: Annotated[float, Field(gt=0)] = 3.0
    max_given_direction_deg: Annotated[float, Field(gt=0)] = 15.0
    """Median angle between given and solved relative rotations, and between directions of travel."""
    max_given_turn_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The angle between rotations as a share of what the camera turned. Recordings with true poses: 0.01, and 0.11
    where colour and depth camera differ; poses that are a third of a second late: 0.20; wrong axes, order of numbers
    or rate: from 0.30."""
    given_focal_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """How far from 1 the focal length that images and depth (or the network) ask for may lie, over the given one. Wide,
    since a short path leaves 10 % open; intrinsics for another size are off by more."""
    given_scale_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far from 1 the ratio of solved to given path may lie where both are in metres."""
    max_given_gap_s: Annotated[float, Field(gt=0)] = 1.0
    """Longest time in a clip without a given pose; sources ship one four or five times a second, or on every frame."""
    max_depth_scale_sigma: Annotated[float, Field(gt=0)] = 0.08
    """Standard deviation of the log of the unit that a clip takes from given depth. Sensors: 0.002 to 0.025; depth that
    drifts or steps by 20 % along the clip 0.05 to 0.07; what is worse has no unit that a clip could state."""
    static_motion: Annotated[float, Field(ge=0)] = 0.004
    """Image motion over the clip, as a share of the diagonal, below which the camera stands still."""


def image_motion(measured: ImageMeasurements) -> float:
    """Largest median displacement of the tracks from where each was first seen, as a share of the image diagonal.

    The median over tracks is blind to objects that move before a resting camera, as long as they cover less than
    half of the tracks.
    """
    flow = measured.flow
    if len(flow.frame) == 0:
        return float("nan")
    first = np.r_[True, flow.track[1:] != flow.track[:-1]]
    origin = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    moved = np.linalg.norm(flow.xy_px - flow.xy_px[origin], axis=1)[~first]
    frame = flow.frame[~first]
    per_frame = [np.median(moved[of]) for of in members(frame, flow.num_frames) if len(of)]
    return float(max(per_frame) / np.hypot(flow.height, flow.width))


def _lost_share(measured: ImageMeasurements, cameras: CameraSolution) -> float:
    """Share of frames that neither flow nor any other points of the solution join to the frames before them."""
    if len(measured.survival) < 2:
        return 0.0
    lost = measured.survival[1:] < _MIN_SURVIVAL
    if cameras.num_joining is not None:
        held = np.minimum(cameras.num_inliers[1:], cameras.num_inliers[:-1])
        lost &= np.minimum(cameras.num_joining[1:], held) < _MIN_JOINING
    return float(lost.mean())


def _lone_frame(centre: FloatArray, usual: float) -> float:
    """Largest distance of a centre (F, 3) from the middle between its neighbours, over `usual`."""
    if len(centre) < 3 or usual <= 0:
        return 0.0
    off = np.linalg.norm(centre[1:-1] - (centre[:-2] + centre[2:]) / 2, axis=1)
    return float(off.max() / usual)


def sweep_minimum(sweep: FloatArray) -> float:
    """Factor at which the swept cost is least, refined by a parabola through its neighbours in log factor."""
    if not np.isfinite(sweep[:, 1]).all():
        return float("nan")
    i = int(sweep[:, 1].argmin())
    if i in (0, len(sweep) - 1):
        return float(sweep[i, 0])
    x, y = np.log(sweep[i - 1 : i + 2, 0]), sweep[i - 1 : i + 2, 1]
    a, b, _ = np.polyfit(x, y, 2)
    return float(np.exp(-b / (2 * a))) if a > 0 else float(sweep[i, 0])


def _bounded(
    name: str, value: float, *, lower: float | None = None, upper: float | None = None, unit: str = "1"
) -> Gate:
    """A gate; a value that is not finite has failed."""
    ok = bool(np.isfinite(value))
    passed = ok and (lower is None or value >= lower) and (upper is None or value <= upper)
    return Gate(
        name=name, value=float(value) if ok else None, lower=lower, upper=upper, unit=unit, passed=passed
    )


def judge(
    cameras: CameraSolution,
    scale: ScaleEstimate,
    measured: ImageMeasurements,
    *,
    height: int,
    width: int,
    config: GatesConfig,
) -> tuple[Gate, ...]:
    """All gates of a solved clip, in the order in which they are reported."""
    poses = cameras.camera_to_world
    numbers = (poses, cameras.focal_px, cameras.principal_point_px)
    finite = float(all(np.isfinite(x).all() for x in numbers))
    fov = np.degrees(
        np.stack(
            [fov_from_focal(cameras.focal_px[:, 0], width), fov_from_focal(cameras.focal_px[:, 1], height)]
        )
    )
    fx, fy = cameras.focal_px.T
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    usual = float(np.percentile(steps, 90)) if len(steps) else 0.0
    observations = cameras.num_inliers.sum() / max(
        1e-9, (cameras.num_inliers / np.maximum(cameras.inlier_share, 1e-9)).sum()
    )
    gates = [
        _bounded("finite", finite, lower=1.0),
        _bounded("fov_min", float(fov.min()), lower=config.fov_min_deg, unit="deg"),
        _bounded("fov_max", float(fov.max()), upper=config.fov_max_deg, unit="deg"),
        _bounded(
            "focal_axis_gap",
            float((np.abs(fx - fy) / ((fx + fy) / 2)).max()),
            upper=config.max_focal_axis_gap,
        ),
        _bounded("rigid", float(np.max(rigid_error(poses))), upper=config.max_rigid_error),
        _bounded("jump", float(steps.max() / usual) if usual > 0 else 0.0, upper=config.max_jump),
        _bounded(
            "lone_frame",
            _lone_frame(poses[:, :3, 3], max(usual, 0.01 * cameras.median_depth)),
            upper=config.max_lone_frame,
        ),
        _bounded(
            "infilled", float((cameras.pose_source == INFILLED).mean()), upper=config.max_infilled_share
        ),
        _bounded("inliers", float(observations), lower=config.min_inlier_share),
        _bounded("tracks_lost", _lost_share(measured, cameras), upper=config.max_lost_share),
        _bounded("motion", image_motion(measured), lower=config.static_motion),
        _bounded(
            "parallax", float(np.degrees(cameras.parallax_rad)), lower=config.min_parallax_deg, unit="deg"
        ),
        _bounded(
            "scale_sweep",
            sweep_minimum(cameras.scale_sweep),
            lower=1 - config.scale_sweep_tolerance,
            upper=1 + config.scale_sweep_tolerance,
        ),
        _bounded(
            "position_sigma",
            float(cameras.position_sigma.max()) / max(cameras.median_depth, 1e-9),
            upper=config.max_position_sigma,
        ),
    ]
    if cameras.focal_model == "given":
        bound = config.given_focal_tolerance
        asked = float(np.exp(cameras.focal_asked_log))
        gates.append(_bounded("given_focal", asked, lower=1 - bound, upper=1 / (1 - bound)))
    if cameras.depth_noise is not None:
        gates.append(
            _bounded(
                "depth_scale",
                cameras.depth_noise.scale_sigma_log(len(poses)),
                upper=config.max_depth_scale_sigma,
            )
        )
    if scale.model != "declared":
        # A declared unit has no series; its consistency is what the sweep checks.
        gates.insert(4, _bounded("scale_cov", scale.cov, upper=config.max_scale_cov))
    return tuple(gates)


def judge_given(check: GivenPoseCheck, config: GatesConfig, *, longest_gap_s: float) -> tuple[Gate, ...]:
    """Gates of poses that the source gives: do the images say the same, and are there enough of them?"""
    tolerance = config.given_scale_tolerance
    return (
        _bounded(
            "given_rotation",
            float(np.degrees(check.rotation_rad)),
            upper=config.max_given_rotation_deg,
            unit="deg",
        ),
        _bounded("given_turn", check.turn_share, upper=config.max_given_turn_share),
        _bounded(
            "given_direction",
            float(np.degrees(check.direction_rad)),
            upper=config.max_given_direction_deg,
            unit="deg",
        ),
        _bounded("given_scale", check.scale, lower=1 - tolerance, upper=1 / (1 - tolerance)),
        _bounded("given_gap", longest_gap_s, upper=config.max_given_gap_s, unit="s"),
    )


REASONS: Mapping[str, ReasonCode] = {
    "finite": "cameras_not_finite",
    "fov_min": "fov_too_narrow",
    "fov_max": "fov_too_wide",
    "focal_axis_gap": "focal_axes_differ",
    "scale_cov": "scale_inconsistent",
    "rigid": "poses_not_rigid",
    "jump": "pose_jump",
    "lone_frame": "pose_jump",
    "infilled": "too_many_infilled",
    "inliers": "too_few_inliers",
    "tracks_lost": "tracks_lost",
    "motion": "static_camera",
    "parallax": "no_parallax",
    "scale_sweep": "depth_and_path_disagree",
    "position_sigma": "position_uncertain",
    "depth_scale": "depth_scale_wanders",
    "given_focal": "given_intrinsics_disagree",
    "given_rotation": "given_poses_disagree",
    "given_turn": "given_poses_disagree",
    "given_direction": "given_poses_disagree",
    "given_scale": "given_poses_disagree",
    "given_gap": "given_poses_sparse",
}
"""Rejection reason of each gate."""


def describe_failure(gate: Gate) -> str:
    """One sentence: what was found and what was allowed."""
    bounds = []
    if gate.lower is not None:
        bounds.append(f"at least {gate.lower:.4g}")
    if gate.upper is not None:
        bounds.append(f"at most {gate.upper:.4g}")
    unit = "" if gate.unit == "1" else f" {gate.unit}"
    found = "no finite value" if gate.value is None else f"{gate.value:.4g}{unit}"
    return f"gate {gate.name}: {found}; required {' and '.join(bounds)}{unit}"
