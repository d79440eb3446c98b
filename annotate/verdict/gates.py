"""Gates: what a clip must satisfy to be accepted. Every gate is judged and its number kept, pass or fail.

The first three are the paper's (arXiv 2605.15178, appendix B.3), judged on raw values and on the worst frame. The
others catch what those cannot see: a static camera, a jump, tracks that died, depth and path of different scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.intrinsics import fov_from_focal
from ...dataset.cameras.transforms import rigid_error
from ...dataset.metrics.trajectory import path_length
from ...dataset.reasons import ReasonCode
from ...dataset.rows import Gate
from ..checks.depth import DepthCheck
from ..checks.given_poses import GivenPoseCheck, GivenPoseErrors
from ..checks.held_cameras import MEDIAN_OF_SIGMA, LensCheck
from ..scale.bridge import Bridge
from ..scale.records import ScaleEstimate
from ..sfm.moving import least_kept
from ..sfm.records import GIVEN, INFILLED, CameraSolution
from ..sfm.summary import sweep_minimum
from ..tracks.records import ImageMeasurements
from .config import GatesConfig
from .motion import image_motion
from .reasons import REASONS

_MIN_SURVIVAL, _MIN_JOINING = 0.05, 20
_MOST_DARK = 4
"""Frames at an end of a clip, a quarter of a second, that may show nothing."""
_LEAST_STEP = 0.02
"""Step of a slow camera, as a share of the scene's depth, that a lone frame is measured by: depth of networks leaves
jitter of this size."""


def _lost_share(solved: _Solved) -> float:
    """Share of frames that neither flow nor any other points of the solution join to the frames before them."""
    measured, cameras = solved.measured, solved.cameras
    if len(measured.survival) < 2:
        return 0.0
    lost = measured.survival[1:] < _MIN_SURVIVAL
    if cameras.num_joining is not None:
        held = np.minimum(cameras.num_inliers[1:], cameras.num_inliers[:-1])
        lost &= np.minimum(cameras.num_joining[1:], held) < _MIN_JOINING
    return float(lost.mean())


def _linked(cameras: CameraSolution) -> IntArray:
    """Points that hold the two parts of a clip together, at each of its frames but the first; none if unknown.

    A film that comes out of black shows nothing in its first frames, whose cameras are bridged: they are no part. Where
    they are many, they may be a part that no point joins to the rest.
    """
    if cameras.num_linked is None:
        return np.zeros(0, np.int64)
    count = len(cameras.num_linked)
    own = np.flatnonzero(cameras.pose_source != INFILLED)
    first = own[0] if len(own) and own[0] <= _MOST_DARK else 0
    last = own[-1] if len(own) and count - 1 - own[-1] <= _MOST_DARK else count - 1
    return cameras.num_linked[first + 1 : last + 1]


def _lone_frame(centre: FloatArray, usual: float) -> float:
    """Largest distance of a centre (F, 3) from the middle between its neighbours, over `usual`."""
    if len(centre) < 3 or usual <= 0:
        return 0.0
    off = np.linalg.norm(centre[1:-1] - (centre[:-2] + centre[2:]) / 2, axis=1)
    return float(off.max() / usual)


def _worst_sigma(cameras: CameraSolution) -> float:
    """Largest standard deviation of a centre that was solved for; bridged ones have a gate of their own, and what a
    handful of points said of them is not what the row holds."""
    own = cameras.pose_source != INFILLED
    return float(cameras.position_sigma[own].max()) if own.any() else float("inf")


def bounded(
    name: str, value: float, *, lower: float | None = None, upper: float | None = None, unit: str = "1"
) -> Gate:
    """A gate; a value that is not finite has failed."""
    ok = bool(np.isfinite(value))
    passed = ok and (lower is None or value >= lower) and (upper is None or value <= upper)
    return Gate(
        name=name, value=float(value) if ok else None, lower=lower, upper=upper, unit=unit, passed=passed
    )


@dataclass(frozen=True)
class _Solved:
    """What the gates of a solved clip look at."""

    cameras: CameraSolution
    scale: ScaleEstimate
    measured: ImageMeasurements
    height: int
    width: int
    config: GatesConfig

    @cached_property
    def posed(self) -> bool:
        """Whether poses are given: what depends on how the path was found is then judged by `judge_given`."""
        return bool((self.cameras.pose_source == GIVEN).any())

    @property
    def diagonal_px(self) -> float:
        """Of the picture in square pixels as high as the stored ones, in which it is measured."""
        fx, fy = np.median(self.cameras.focal_px, axis=0)
        return float(np.hypot(self.height, self.width * fy / fx))

    @cached_property
    def fov_deg(self) -> FloatArray:
        """(2, F) horizontal and vertical field of view."""
        focal_px = self.cameras.focal_px
        return np.degrees(
            np.stack(
                [fov_from_focal(focal_px[:, 0], self.width), fov_from_focal(focal_px[:, 1], self.height)]
            )
        )

    @cached_property
    def steps(self) -> FloatArray:
        """(F - 1,) lengths of the camera's steps."""
        return np.linalg.norm(np.diff(self.cameras.camera_to_world[:, :3, 3], axis=0), axis=1)

    @cached_property
    def usual_step(self) -> float:
        """Step of the camera that nine of ten do not exceed."""
        return float(np.percentile(self.steps, 90)) if len(self.steps) else 0.0


def _finite(solved: _Solved) -> float:
    cameras = solved.cameras
    numbers = (cameras.camera_to_world, cameras.focal_px, cameras.principal_point_px)
    return float(all(np.isfinite(x).all() for x in numbers))


def _axis_gap(solved: _Solved) -> float:
    fx, fy = solved.cameras.focal_px.T
    return float((np.abs(fx - fy) / ((fx + fy) / 2)).max())


def _jump(solved: _Solved) -> float:
    return float(solved.steps.max() / solved.usual_step) if solved.usual_step > 0 else 0.0


def _lone(solved: _Solved) -> float:
    cameras = solved.cameras
    usual = max(solved.usual_step, _LEAST_STEP * cameras.median_depth)
    return _lone_frame(cameras.camera_to_world[:, :3, 3], usual)


def _inlier_share(solved: _Solved) -> float:
    cameras = solved.cameras
    return float(cameras.num_inliers.sum() / max(1, cameras.num_observations.sum()))


def _kept(solved: _Solved) -> float:
    return least_kept(solved.cameras.kept_share)


def _depth_scale(solved: _Solved) -> float:
    noise = solved.cameras.depth_noise
    return float("nan") if noise is None else noise.scale_sigma_log(len(solved.cameras.camera_to_world))


Value = Callable[[_Solved], float]


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """One gate of a solved clip: its number, its bounds, and the clips that it applies to."""

    name: str
    value: Value
    lower: Value | None = None
    upper: Value | None = None
    unit: str = "1"
    applies: Callable[[_Solved], bool] = lambda s: True


_RULES = (
    _Rule(name="finite", value=_finite, lower=lambda s: 1.0),
    _Rule(
        name="fov_min",
        value=lambda s: float(s.fov_deg.min()),
        lower=lambda s: s.config.fov_min_deg,
        unit="deg",
    ),
    _Rule(
        name="fov_max",
        value=lambda s: float(s.fov_deg.max()),
        upper=lambda s: s.config.fov_max_deg,
        unit="deg",
    ),
    _Rule(
        # Readers take rows for pinholes.
        name="fisheye",
        value=lambda s: 1.0,
        upper=lambda s: 0.0,
        applies=lambda s: s.cameras.lens_model == "fisheye" and not s.config.allow_fisheye,
    ),
    _Rule(name="focal_axis_gap", value=_axis_gap, upper=lambda s: s.config.max_focal_axis_gap),
    _Rule(
        name="scale_cov",
        value=lambda s: s.scale.cov,
        upper=lambda s: s.config.max_scale_cov,
        # A declared unit has no series; its consistency is what the sweep checks.
        applies=lambda s: s.scale.model != "declared",
    ),
    _Rule(
        name="rigid",
        value=lambda s: float(np.max(rigid_error(s.cameras.camera_to_world))),
        upper=lambda s: s.config.max_rigid_error,
    ),
    _Rule(name="jump", value=_jump, upper=lambda s: s.config.max_jump),
    _Rule(name="lone_frame", value=_lone, upper=lambda s: s.config.max_lone_frame),
    _Rule(
        name="infilled",
        value=lambda s: float((s.cameras.pose_source == INFILLED).mean()),
        upper=lambda s: s.config.max_infilled_share,
    ),
    _Rule(
        name="inliers",
        value=_inlier_share,
        lower=lambda s: s.config.min_given_inlier_share if s.posed else s.config.min_inlier_share,
    ),
    _Rule(name="tracks_lost", value=_lost_share, upper=lambda s: s.config.max_lost_share),
    _Rule(
        # Two places that one dissolves into the other: each has cameras, and chance matches place one to the other.
        name="joined",
        value=lambda s: float(_linked(s.cameras).min()),
        lower=lambda s: s.config.min_joined,
        unit="points",
        # Given poses hold a clip together by themselves.
        applies=lambda s: not s.posed and len(_linked(s.cameras)) > 0,
    ),
    _Rule(
        # Cameras that take what moves for the world contradict the world where they begin to, and where they end.
        name="held",
        value=_kept,
        lower=lambda s: s.config.min_kept_share,
        applies=lambda s: not s.posed and bool(np.isfinite(_kept(s))),
    ),
    _Rule(name="motion", value=lambda s: image_motion(s.measured), lower=lambda s: s.config.static_motion),
    _Rule(
        name="parallax",
        value=lambda s: float(np.degrees(s.cameras.parallax_rad)),
        lower=lambda s: s.config.min_parallax_deg,
        unit="deg",
    ),
    _Rule(
        name="rest_error",
        value=lambda s: s.cameras.rest_error_ratio,
        lower=lambda s: s.config.min_rest_error_ratio,
        # Given poses need no parallax; where there is much of it, nobody asks.
        applies=lambda s: not s.posed and bool(np.isfinite(s.cameras.rest_error_ratio)),
    ),
    _Rule(
        name="scale_sweep",
        value=lambda s: sweep_minimum(s.cameras.scale_sweep),
        lower=lambda s: 1 - s.config.scale_sweep_tolerance,
        upper=lambda s: 1 + s.config.scale_sweep_tolerance,
        # Of given poses the same is asked with a standard error (`given_scale`).
        applies=lambda s: not s.posed,
    ),
    _Rule(
        name="position_sigma",
        value=lambda s: _worst_sigma(s.cameras) / max(s.cameras.median_depth, 1e-9),
        upper=lambda s: s.config.max_position_sigma,
    ),
    _Rule(
        name="path_sigma",
        value=lambda s: s.cameras.expected_path_error(),
        upper=lambda s: s.config.max_path_sigma,
        # A lens that stays as it is makes no path of its own.
        applies=lambda s: not s.posed and s.cameras.focal_model in ("smooth", "piecewise"),
    ),
    _Rule(
        name="shifted_path",
        value=lambda s: s.cameras.shifted_path_error(),
        upper=lambda s: s.config.max_shifted_path,
        applies=lambda s: not s.posed and s.cameras.centre_jitter_px > s.config.shifts_from * s.diagonal_px,
    ),
    _Rule(
        name="given_focal",
        value=lambda s: float(np.exp(s.cameras.focal_asked_log)),
        lower=lambda s: _within(_focal_bound_log(s.cameras, s.config))[0],
        upper=lambda s: _within(_focal_bound_log(s.cameras, s.config))[1],
        applies=lambda s: not s.posed and s.cameras.focal_model == "given",
    ),
    _Rule(
        name="focal_sigma",
        value=lambda s: s.cameras.focal_common_log,
        upper=lambda s: s.config.max_focal_sigma,
        applies=lambda s: bool(np.isfinite(s.cameras.focal_common_log)),
    ),
    _Rule(
        name="depth_scale",
        value=_depth_scale,
        upper=lambda s: s.config.max_depth_scale_sigma,
        applies=lambda s: s.cameras.depth_noise is not None,
    ),
    _Rule(
        name="depth_residual",
        value=lambda s: s.cameras.depth_log_residual,
        upper=lambda s: s.config.max_depth_residual_log,
        applies=lambda s: bool(np.isfinite(s.cameras.depth_log_residual)),
    ),
)
"""All gates of a solved clip, in the order in which they are reported."""


def judge(
    cameras: CameraSolution,
    scale: ScaleEstimate,
    measured: ImageMeasurements,
    *,
    height: int,
    width: int,
    config: GatesConfig,
) -> tuple[Gate, ...]:
    """The gates of a solved clip, by the table above."""
    solved = _Solved(cameras, scale, measured, height, width, config)
    return tuple(
        bounded(
            rule.name,
            rule.value(solved),
            lower=None if rule.lower is None else rule.lower(solved),
            upper=None if rule.upper is None else rule.upper(solved),
            unit=rule.unit,
        )
        for rule in _RULES
        if rule.applies(solved)
    )


def judge_depth(check: DepthCheck, config: GatesConfig) -> tuple[Gate, ...]:
    """Gates of depth that the source gives: does it belong to the images, as it is? None where that cannot be told."""
    gates = (
        bounded("depth_reading", check.margin_log, lower=config.min_depth_margin_log),
        bounded("depth_parallax", check.unexplained, upper=config.max_depth_unexplained),
        bounded("depth_consistency", check.inconsistency_log, upper=config.max_depth_inconsistency_log),
        bounded(
            "depth_unit",
            check.unit_step_log,
            upper=config.max_normalised_unit_step_log if check.same_end else config.max_depth_unit_step_log,
        ),
    )
    return tuple(gate for gate in gates if gate.value is not None)


def judge_bridge(bridge: Bridge, config: GatesConfig) -> tuple[Gate, ...]:
    """Gates of windows that bring given poses to metres: do they agree? None where too few of them say anything."""
    if bridge.metres_per_unit is None:
        return ()
    change = max(config.max_bridge_change_log, 4 * bridge.change_sigma_log)
    return (
        bounded("bridge_spread", bridge.spread_log, upper=config.max_bridge_spread_log),
        bounded(
            "bridge_network",
            bridge.network_spread_log,
            upper=max(config.max_bridge_network_spread_log, 3 * bridge.change_sigma_log),
        ),
        bounded("bridge_change", bridge.change_log, lower=-change, upper=change),
    )


def judge_given(
    check: GivenPoseCheck,
    config: GatesConfig,
    *,
    longest_gap_s: float,
    errors: GivenPoseErrors | None = None,
    lens: LensCheck | None = None,
    cameras: CameraSolution | None = None,
    long_side_px: float = float("nan"),
    frame_s: float = 1 / 16,
) -> tuple[Gate, ...]:
    """Gates of poses that the source gives: do images and depth say the same, and are there enough of them?

    What cannot be told (no depth, no motion, too few poses) has no gate. Where the tracks fit the given poses with
    another lens and not with the given one, the intrinsics are wrong: then the solution, which rests on them, says
    nothing of the poses, and the gates that compare the two are left out.

    Args:
        errors, lens, cameras: of the kept cameras; None: only the two motions are compared.
        long_side_px: of the stored frames.
        frame_s: time between two frames of the clip.
    """
    gap = bounded("given_gap", longest_gap_s, upper=config.max_given_gap_s, unit="s")
    of_lens = _judge_lens(lens, cameras, errors, config)
    if not all(gate.passed for gate in of_lens):
        return (*of_lens, gap)
    gates = [
        *of_lens,
        bounded(
            "given_rotation",
            float(np.degrees(check.rotation_rad)),
            upper=config.max_given_rotation_deg,
            unit="deg",
        ),
        bounded("given_turn", check.turn_share, upper=config.max_given_turn_share),
    ]
    if check.num_pairs:
        gates.append(
            bounded(
                "given_direction",
                float(np.degrees(check.direction_rad)),
                upper=config.max_given_direction_deg,
                unit="deg",
            )
        )
    ratio, sigma = (check.scale, 0.0) if errors is None else (errors.scale_ratio, errors.scale_sigma)
    if np.isfinite(sigma):
        gates.append(_near_one("given_scale", ratio, max(np.log1p(config.given_scale_tolerance), 3 * sigma)))
    if errors is not None and cameras is not None:
        gates += _judge_errors(errors, cameras, config, long_side_px=long_side_px, frame_s=frame_s, lens=lens)
    return (*gates, gap)


def _judge_errors(
    errors: GivenPoseErrors,
    cameras: CameraSolution,
    config: GatesConfig,
    *,
    long_side_px: float,
    frame_s: float,
    lens: LensCheck | None,
) -> list[Gate]:
    gates = [
        bounded("given_noise", errors.noise_px, upper=config.max_given_noise * long_side_px, unit="px"),
        bounded("given_worst", errors.worst_px, upper=config.max_given_worst * long_side_px, unit="px"),
        bounded(
            "given_noise_m",
            errors.noise_m,
            upper=max(config.max_given_noise_m, 0.003 * cameras.median_depth),
            unit="m",
        ),
        bounded(
            "given_reprojection",
            float(np.median(cameras.reprojection_px)),
            upper=config.max_given_reprojection * long_side_px,
            unit="px",
        ),
    ]
    if np.isfinite(errors.path_m):
        length = path_length(cameras.camera_to_world)
        bound = max(config.max_given_path * length, 3 * errors.path_sigma_m, 0.005 * cameras.median_depth)
        gates.append(bounded("given_path", errors.path_m, upper=bound, unit="m"))
    if np.isfinite(errors.time_offset_s):
        sigma_s = float(np.nan_to_num(errors.time_offset_sigma_s))
        known = max(config.max_given_offset_frames * frame_s, 0.02, 3 * sigma_s)
        # A shift that hardly improves the agreement is none, wherever the least cost lies; nor is one of poses that fit
        # the tracks no worse than what was found from them: motion that is even looks late anyhow.
        late = errors.time_offset_gain > _OFFSET_GAIN and (lens is None or lens.given_px > lens.solved_px)
        bound = known if late else max(known, abs(errors.time_offset_s))
        gates.append(bounded("given_time_offset", errors.time_offset_s, lower=-bound, upper=bound, unit="s"))
    return gates


def _judge_lens(
    lens: LensCheck | None,
    cameras: CameraSolution | None,
    errors: GivenPoseErrors | None,
    config: GatesConfig,
) -> tuple[Gate, ...]:
    """Gates of intrinsics that are given beside poses.

    The lens that the given poses ask for counts where it explains the tracks and the given lens does not: poses that
    err ask for a lens that errs, but then the tracks fit neither. Where the tracks fit the given cameras as they are,
    the lens is confirmed as far as they tell it. Elsewhere only depth is asked.
    """
    asked_log = float("nan") if cameras is None else cameras.focal_asked_log
    if lens is not None:
        fits = lens.given_px <= _MISFIT * lens.sigma_px
        misfit = not fits and lens.free_px < 0.6 * lens.given_px
        # Another lens must do about as well as other poses do; or depth must ask for the same one by itself.
        by_depth = abs(asked_log - lens.focal_log) < 0.4 * abs(lens.focal_log)
        if misfit and (lens.free_px <= 1.5 * lens.solved_px or by_depth):
            bound = float(np.log1p(config.given_lens_tolerance))
            return (
                _near_one("given_focal", float(np.exp(lens.focal_log)), max(bound, 3 * lens.focal_sigma)),
                _near_one("given_aspect", float(np.exp(lens.aspect_log)), bound),
                bounded("given_centre", lens.centre_share, upper=config.max_given_centre),
                bounded("given_focal_order", lens.order_log, upper=bound + 0.02),
            )
        # Poses that err by a little more than the tracks fit neither lens well, and one of them better for certain.
        better = lens.free_px < _BETTER_LENS * lens.given_px and lens.free_px < _NEAR_SOLVED * lens.solved_px
        if (fits or better) and 3 * lens.focal_sigma < config.given_focal_tolerance:
            # The tracks fit the given cameras, and would not fit with another lens: whatever depth asks for.
            return (_held_to_tracks(lens, errors, config),)
    if cameras is None or cameras.focal_model != "given" or not np.isfinite(asked_log):
        return ()
    return (_given_focal(cameras, config),)


def _held_to_tracks(lens: LensCheck, errors: GivenPoseErrors | None, config: GatesConfig) -> Gate:
    """The focal length that tracks ask for under given poses that they fit, as far as they tell it.

    Turns that err on their own look like a shorter lens, by the square of what they err by over what they turn. Poses
    that err by more than the tracks make the lens as many times less sure, and it is no surer than the frames agree
    on it.
    """
    loose = -float(np.log1p(-config.given_focal_tolerance))
    longer = shorter = loose
    if errors is not None:
        of_poses = max(1.0, errors.noise_px / lens.sigma_px, lens.free_px / (MEDIAN_OF_SIGMA * lens.sigma_px))
        sigma = float(np.hypot(of_poses * lens.focal_sigma, lens.order_log / _NINE_OF_TEN))
        known = max(float(np.log1p(config.given_lens_tolerance)), 3 * sigma)
        longer = min(loose, known)
        shorter = min(loose, known + float(np.log1p((errors.noise_px / lens.told_px) ** 2)))
    return bounded(
        "given_focal",
        float(np.exp(lens.focal_log)),
        lower=float(np.exp(-shorter)),
        upper=float(np.exp(longer)),
    )


def _given_focal(cameras: CameraSolution, config: GatesConfig) -> Gate:
    """The focal length that images and depth ask for by themselves, over the given one."""
    return _near_one("given_focal", float(np.exp(cameras.focal_asked_log)), _focal_bound_log(cameras, config))


def _focal_bound_log(cameras: CameraSolution, config: GatesConfig) -> float:
    """How far that may be from one: little where they fit better with it, and as far as the clip agrees on it."""
    bound = -float(np.log1p(-config.given_focal_tolerance))
    if cameras.focal_asked_gain > _FOCAL_GAIN:  # not where it is unknown (NaN)
        # Without parallax a longer lens looks like a nearer camera, all along the clip.
        shallow = bound * _SHALLOW_RAD / max(cameras.parallax_rad, 1e-9)
        bound = min(bound, max(np.log1p(config.given_lens_tolerance), 3 * cameras.focal_asked_sigma, shallow))
    return bound


def _near_one(name: str, value: float, log_bound: float) -> Gate:
    lower, upper = _within(log_bound)
    return bounded(name, value, lower=lower, upper=upper)


def _within(log_bound: float) -> tuple[float, float]:
    log_bound = min(log_bound, 50.0)
    return float(np.exp(-log_bound)), float(np.exp(log_bound))


_FOCAL_GAIN = 1.1
_SHALLOW_RAD = 0.02
"""Parallax at which the focal length that a clip asks for is off by a fifth (ten frames, 11 cm of rgbd-tum-mini)."""
_OFFSET_GAIN = 1.5
_BETTER_LENS, _NEAR_SOLVED = 0.75, 2.5
"""Median reprojection error with the lens that is asked for, over those with the given one and with other poses, below
which it is the better one. rgbd-redkitchen, whose poses err by 1 to 3 cm, with intrinsics times 0.85: 0.59 and 2.2."""
_NINE_OF_TEN = 1.645
"""What nine of ten Gaussian errors do not exceed, over their standard deviation."""
_MISFIT = 2.0
"""Median reprojection error, in standard deviations of a measurement, above which cameras do not fit the tracks."""


def failures(gates: Iterable[Gate]) -> list[tuple[Gate, ReasonCode, str]]:
    """Gates that were not passed, each with the reason that it is and what was found."""
    return [(gate, REASONS[gate.name], describe_failure(gate)) for gate in gates if not gate.passed]


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
