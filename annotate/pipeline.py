"""One clip from media to row: the order of the stages, and how every failure becomes a row.

`annotate_clip` is the only way through; the command line, the demo and the tests all take it.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..dataset.cameras.intrinsics import fov_from_focal
from ..dataset.metrics.trajectory import path_length
from ..dataset.reasons import ReasonCode
from ..dataset.rows import Gate, Row, why_no_confidence
from .checks.depth import DepthCheck, check_depth
from .checks.given_poses import longest_gap_s
from .checks.posed import Posed, solve_posed
from .frames.base import ClipFrames
from .frames.open import open_clip
from .frames.quality import QualityMeter
from .geometry.base import (
    AnchorFrame,
    AnchorStreamOf,
    DepthMaps,
    MetricAnchor,
    NoDepth,
    SequenceGeometry,
    SequenceGeometryResult,
    SequenceStream,
    StreamedAnchor,
    StreamedGeometry,
)
from .geometry.choose import MetricDepth, metric_anchor, sequence_geometry
from .geometry.config import GeometryConfig
from .given.cameras import GivenCameras, read_given_cameras, read_given_lens
from .networks.checkpoint import STAND_IN
from .pool import in_solver, shares, streamed
from .reporting import counted, say
from .scale.estimate import estimate_scale
from .scale.records import ScaleEstimate
from .sfm.records import GIVEN, CameraSolution, KnownLens, StartCameras
from .sfm.solve import solve_cameras
from .sfm.start import WithoutFrames, verify_keyframes
from .sfm.summary import sweep_minimum
from .sources.clip import ClipRef, ClipRejection
from .tracks.measure import measure_images
from .tracks.records import ImageMeasurements
from .verdict.agreement import Agreement, compare, confidence_of
from .verdict.gates import REASONS, describe_failure, image_motion, judge, judge_depth, judge_given

if TYPE_CHECKING:
    from .config import AnnotateConfig

log = logging.getLogger(__name__)

_MIN_PLACED = 0.5
"""Share of the keyframes that anchors must place; with fewer the bundle finds its own start, from the tracks alone."""

_DEPTHS_PER_FRAME = 30.0
"""Independent errors in a frame of a network's depth; as many as `align` counts in an edge between windows."""

_DECLARED_SCALE_SIGMA, _NETWORK_SCALE_SIGMA = 0.01, 0.07
"""Error that all depth of a clip has in common, which no scatter shows: of a sensor, and of a network's metres."""

Mode = Literal["estimate", "given_depth", "given_pose"]


@dataclass(frozen=True, kw_only=True)
class Estimators:
    """What judges structure and metric scale."""

    sequence: SequenceGeometry | StreamedGeometry
    anchor: MetricAnchor | StreamedAnchor | None

    @staticmethod
    def of(config: GeometryConfig) -> Estimators:
        """Those that a recipe names; networks are loaded once a process."""
        return Estimators(sequence=sequence_geometry(config), anchor=metric_anchor(config))


@dataclass
class _Progress:
    """What is known of a clip so far; a row can be made from it at any point."""

    clip: ClipRef
    mode: Mode
    recipe_hash: str
    frames: ClipFrames | None = None
    given: GivenCameras | None = None
    geometry: SequenceGeometryResult | None = None
    anchors: list[AnchorFrame] = field(default_factory=list)
    networks: list[SequenceStream | AnchorStreamOf] = field(default_factory=list)
    scale: ScaleEstimate | None = None
    measured: ImageMeasurements | None = None
    depth_check: DepthCheck | None = None
    cameras: CameraSolution | None = None
    posed: Posed | None = None
    agreement: Agreement | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    reasons: list[tuple[ReasonCode, str]] = field(default_factory=list)
    wall_s: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        say(self.clip.clip_id, name)
        try:
            yield
        finally:
            self.wall_s[name] = self.wall_s.get(name, 0.0) + time.perf_counter() - start


def annotate_clip(
    clip: ClipRef,
    config: AnnotateConfig,
    *,
    mode: Mode,
    recipe_hash: str,
    estimators: Estimators | None = None,
) -> Row:
    """Annotate one clip; never raises for a bad clip.

    Args:
        clip: what to annotate.
        config: the `annotate` section of the recipe.
        mode: which geometry is given.
        recipe_hash: of the resolved recipe, kept in the row.
        estimators: used instead of those that `config.geometry` names (simulators of networks).
    Returns:
        The row: accepted, or rejected with reasons. An unexpected exception becomes the reason `internal_error`
        with its traceback in `error`.
    """
    progress = _Progress(clip=clip, mode=mode, recipe_hash=recipe_hash)
    start = time.perf_counter()
    try:
        _run(progress, config, estimators or Estimators.of(config.geometry))
    except ClipRejection as rejection:
        progress.reasons.append((rejection.reason, rejection.detail))
    except MemoryError:
        raise
    except Exception as error:
        log.exception("clip %s: unexpected error", clip.clip_id)
        progress.reasons.append(("internal_error", f"{type(error).__name__}: {error}"))
        progress.error = traceback.format_exc()
    progress.wall_s["total"] = time.perf_counter() - start
    _refuse_stand_ins(progress)
    row = _row(progress)
    confidence = confidence_of(row)
    return replace(
        row,
        confidence=confidence,
        confidence_absent=why_no_confidence(row) if confidence is None else None,
    )


def _refuse_stand_ins(progress: _Progress) -> None:
    """Networks of random numbers prove nothing, however well the images agree with their smooth depth."""
    labels = [w for n in _taking_part(progress) for w in n.weights if w.startswith(STAND_IN)]
    if labels:
        progress.reasons.append(("stand_in_weights", f"random numbers in place of {', '.join(labels)}"))


def _taking_part(progress: _Progress) -> Sequence[SequenceStream | AnchorStreamOf | SequenceGeometryResult]:
    """What gave geometry; also of a clip that was rejected before its networks answered."""
    return progress.networks or [n for n in (progress.geometry,) if n is not None]


def _run(progress: _Progress, config: AnnotateConfig, estimators: Estimators) -> None:
    clip = progress.clip
    with progress.stage("open"):
        frames = progress.frames = open_clip(clip, config.decode)
        progress.given = _given_cameras(clip, frames, progress.mode)
    if hasattr(estimators.sequence, "start"):
        with ExitStack() as place:
            with progress.stage("waiting"):
                place.enter_context(streamed(config))
            missing = _stream(progress, frames, config, estimators)
    else:
        missing = _given(progress, frames, config, estimators)
    measured = progress.measured
    if measured is None:
        return
    if missing is not None:
        # Without depth there is no unit of length; say also when there was nothing to see anyway.
        _look_for_rest(progress, measured, config)
        progress.reasons.append(("no_metric_scale", missing.detail))
        return
    assert progress.geometry is not None
    if progress.scale is None or progress.scale.metres_per_unit is None:
        return
    if isinstance(progress.geometry.depth, NoDepth) and _look_for_rest(progress, measured, config):
        return
    depth = MetricDepth(progress.geometry.depth, progress.scale.metres_per_unit)
    start: StartCameras | None = None
    if progress.networks:
        with progress.stage("start"):
            start, depth = _prove(progress, depth, config)
    elif not isinstance(progress.geometry.depth, NoDepth) and not _depth_fits(progress, depth, config):
        return
    given, lens = progress.given, _known_lens(progress.given)
    said = _lens_of(given)
    arguments: dict[str, Any] = {
        "measured": measured,
        "depth": None if isinstance(progress.geometry.depth, NoDepth) else depth,
        "depth_sigma_log": progress.geometry.depth_sigma_log,
        "tracks_config": config.tracks,
        "config": config.bundle,
        "pixel_aspect": frames.pixel_aspect,
        "start": start,
        "depths_per_frame": _DEPTHS_PER_FRAME if progress.networks else None,
        "lens": said,
    }
    with progress.stage("bundle"):
        if given is not None and given.camera_to_world is not None:
            arguments |= {
                "given": given,
                "time_s": frames.timing.time_s,
                "scale_sigma_log": _common_scale_sigma(progress.scale),
            }
            progress.posed = in_solver(shares(config)[1], solve_posed, **arguments)
            cameras = progress.posed.cameras
        else:
            cameras = in_solver(shares(config)[1], solve_cameras, **arguments)
    progress.cameras = cameras
    if lens is not None and start is not None and progress.geometry.focal_px is not None:
        # The bundle began from a network, which has an opinion of the lens.
        rays = np.log(np.asarray(progress.geometry.focal_px, np.float64) / lens.focal_px)
        cameras = progress.cameras = replace(cameras, focal_asked_log=float(np.nanmedian(rays)))
    given_gates: tuple[Gate, ...] = ()
    if progress.posed is not None and given is not None:
        given_gates = judge_given(
            progress.posed.check,
            config.gates,
            longest_gap_s=longest_gap_s(given.position, frames.timing.time_s),
            errors=progress.posed.errors,
            lens=progress.posed.lens,
            cameras=cameras,
            long_side_px=max(frames.height, frames.width),
            frame_s=float(np.median(np.diff(frames.timing.time_s))),
        )
    progress.agreement = compare(
        progress.geometry, progress.scale, progress.anchors, cameras, fps=frames.timing.fps
    )
    progress.gates += judge(
        cameras, progress.scale, measured, height=frames.height, width=frames.width, config=config.gates
    )
    progress.gates += given_gates
    progress.reasons.extend((REASONS[g.name], describe_failure(g)) for g in progress.gates if not g.passed)


def _look_for_rest(progress: _Progress, measured: ImageMeasurements, config: AnnotateConfig) -> bool:
    """Whether the camera stands still, which is then a reason: without depth nothing can be solved."""
    motion = image_motion(measured)
    if motion < config.gates.static_motion:
        progress.reasons.append(
            ("static_camera", f"tracks move {100 * motion:.2g} % of the image diagonal over the clip")
        )
        return True
    return False


def _depth_fits(progress: _Progress, depth: DepthMaps, config: AnnotateConfig) -> bool:
    """Compare given depth with the images; False, with reasons, where it belongs to something else."""
    assert progress.measured is not None
    assert progress.frames is not None
    with progress.stage("depth_check"):
        check = progress.depth_check = check_depth(
            progress.measured,
            depth,
            tracks_config=config.tracks,
            kind=progress.clip.given.depth_kind,
            lens=_known_lens(progress.given),
            pixel_aspect=progress.frames.pixel_aspect,
        )
    progress.gates = judge_depth(check, config.gates)
    failed = [gate for gate in progress.gates if not gate.passed]
    progress.reasons.extend(
        (REASONS[g.name], f"{describe_failure(g)}: {check.explain(g.name)}") for g in failed
    )
    return not failed


def _given_cameras(clip: ClipRef, frames: ClipFrames, mode: Mode) -> GivenCameras | None:
    """Cameras that the source ships; mode `estimate` takes its lens alone."""
    given = read_given_lens(clip, frames) if mode == "estimate" else read_given_cameras(clip, frames)
    if given is None and mode == "given_pose":
        raise ClipRejection(
            "given_cameras_missing",
            f"clip {clip.clip_id}: the recipe's mode is given_pose, but the source names neither poses nor intrinsics",
        )
    return given


def _common_scale_sigma(scale: ScaleEstimate) -> float:
    """Standard deviation of the logarithm of the scale that a clip's depth has in common."""
    if scale.model == "declared":
        return _DECLARED_SCALE_SIGMA
    return float(np.hypot(_NETWORK_SCALE_SIGMA, np.nan_to_num(scale.sigma_log)))


def _lens_of(given: GivenCameras | None) -> KnownLens | None:
    """What the source says of its lens, to hold or to expect."""
    if given is None or given.focal_px is None or given.principal_point_px is None:
        return None
    return KnownLens(
        focal_px=np.asarray(given.focal_px, np.float64),
        principal_point_px=np.asarray(given.principal_point_px, np.float64),
        held=not given.lens_is_prior,
    )


def _known_lens(given: GivenCameras | None) -> KnownLens | None:
    """The lens of a source that asks for it to be held."""
    lens = _lens_of(given)
    return lens if lens is not None and lens.held else None


def _prove(
    progress: _Progress, depth: MetricDepth, config: AnnotateConfig
) -> tuple[StartCameras | None, DepthMaps]:
    """Cameras for the bundle to start from, and depth without the frames that the others contradict."""
    geometry, scale, measured = progress.geometry, progress.scale, progress.measured
    assert geometry is not None
    assert scale is not None
    assert scale.metres_per_unit is not None
    assert measured is not None
    if geometry.camera_to_world is None or geometry.focal_px is None:
        return None, depth
    poses = np.array(geometry.camera_to_world, np.float64)
    poses[:, :3, 3] *= scale.metres_per_unit[:, None]
    given = progress.given
    expected = geometry.focal_px if given is None or given.focal_px is None else given.focal_px
    focal_px = np.asarray(expected, np.float64)
    proved = in_solver(
        shares(config)[1],
        verify_keyframes,
        measured=measured,
        depth=depth,
        anchors=StartCameras(camera_to_world=poses, focal_px=focal_px),
        config=config.bundle,
        depth_sigma_log=geometry.depth_sigma_log,
    )
    known = np.isfinite(poses[:, 0, 0])
    progress.metrics["anchors_placed_share"] = proved.placed_share
    progress.metrics["anchors_wrong_depth_share"] = float(proved.wrong_depth[known].mean())
    return proved.cameras if proved.placed_share >= _MIN_PLACED else None, WithoutFrames(
        depth, proved.wrong_depth
    )


def _given(
    progress: _Progress, frames: ClipFrames, config: AnnotateConfig, estimators: Estimators
) -> ClipRejection | None:
    """Geometry that is there before any frame is looked at, its scale, then tracks.

    Returns:
        The rejection of a clip that has no depth at all, so that its tracks can still be judged.
    """
    clip = progress.clip
    sequence: SequenceGeometry = estimators.sequence  # type: ignore[assignment]
    missing: ClipRejection | None = None
    with progress.stage("geometry"):
        try:
            progress.geometry = sequence.run(clip, frames)
        except ClipRejection as rejection:
            if rejection.reason != "depth_missing":
                raise
            if progress.given is not None and progress.given.stand_alone:
                # Poses and intrinsics can be checked by the images alone; their unit is the source's word.
                progress.geometry = SequenceGeometryResult(
                    depth=NoDepth(len(frames)), depth_sigma_log=1.0, metres_per_unit=1.0
                )
            else:
                missing = rejection
    geometry = progress.geometry
    if geometry is not None:
        with progress.stage("scale"):
            anchor: MetricAnchor | None = estimators.anchor  # type: ignore[assignment]
            found: Iterable[AnchorFrame] = []
            if anchor is not None and geometry.metres_per_unit is None:
                found = anchor.run(clip, frames, _metric_frames(frames, config), geometry.focal_px)
            _set_scale(progress, found, frames, config)
        if progress.reasons:
            return None
    with progress.stage("tracks"):
        progress.measured = measure_images(
            _watched(progress, frames, config), height=frames.height, width=frames.width, config=config.tracks
        )
    _reject_cuts(frames)
    return missing


def _told(clip: ClipRef, frames: ClipFrames) -> Iterator[NDArray[np.uint8]]:
    return counted(clip.clip_id, "tracks", frames, len(frames), "frames")


def _watched(progress: _Progress, frames: ClipFrames, config: AnnotateConfig) -> Iterator[NDArray[np.uint8]]:
    """Frames as `_told`; the quality of the pictures is measured on the way, of clips with cuts as well."""
    shown = _told(progress.clip, frames)
    if config.quality is None:
        yield from shown
        return
    meter = QualityMeter(config.quality, frames.timing.fps)
    yield from meter.watch(shown)
    progress.metrics |= meter.metrics()
    if config.decode.detect_cuts:
        progress.metrics["num_cuts"] = float(len(frames.cuts))


def _metric_frames(frames: ClipFrames, config: AnnotateConfig) -> list[int]:
    sparse = round(frames.timing.fps / config.geometry.anchor_fps)
    step = max(1, min(sparse, len(frames) // config.geometry.min_anchor_frames))
    return list(range(step // 2, len(frames), step))


def _stream(
    progress: _Progress, frames: ClipFrames, config: AnnotateConfig, estimators: Estimators
) -> ClipRejection | None:
    """One pass over the frames feeds tracks and networks alike; then geometry and scale.

    Networks run in a thread of their own: while they work on one window, the next is decoded and tracked.
    """
    clip = progress.clip
    sequence: StreamedGeometry = estimators.sequence  # type: ignore[assignment]
    anchor = estimators.anchor
    wanted = sequence.wanted(frames)
    stream = sequence.start(clip, frames)
    # Only frames that carry sequence depth can be compared with it: the anchors nearest to an even spread.
    even = np.asarray(_metric_frames(frames, config))
    chosen = np.unique(wanted[np.abs(wanted[None] - even[:, None]).argmin(1)]).tolist()
    metric: AnchorStreamOf | None = None
    if anchor is not None and not isinstance(anchor, MetricAnchor):
        metric = anchor.start(clip, frames, chosen)
    streams = progress.networks = [stream, *([metric] if metric is not None else [])]

    def shown() -> Iterator[NDArray[np.uint8]]:
        for number, rgb in enumerate(_watched(progress, frames, config)):
            for each in streams:
                each.add(number, rgb)
            yield rgb

    try:
        with progress.stage("tracks"):
            progress.measured = measure_images(
                shown(),
                height=frames.height,
                width=frames.width,
                config=config.tracks,
                keyframes=frozenset(wanted.tolist()),
            )
        _reject_cuts(frames)
        with progress.stage("geometry"):
            progress.geometry = stream.finish()
            lens = _known_lens(progress.given)
            focal_px = progress.geometry.focal_px if lens is None else lens.focal_px
            if metric is not None:
                progress.anchors = metric.finish(focal_px)
            elif isinstance(anchor, MetricAnchor):
                progress.anchors = anchor.run(clip, frames, chosen, focal_px)
    finally:
        for each in streams:
            each.close()
        progress.wall_s["networks_busy"] = sum(each.busy_s for each in streams)
    with progress.stage("scale"):
        _set_scale(progress, progress.anchors, frames, config)
    return None


def _set_scale(
    progress: _Progress, found: Iterable[AnchorFrame], frames: ClipFrames, config: AnnotateConfig
) -> None:
    assert progress.geometry is not None
    scale = progress.scale = estimate_scale(
        progress.geometry, found, num_frames=len(frames), config=config.scale
    )
    if scale.metres_per_unit is None:
        detail = f"{scale.num_frames_used} usable anchor frames of {len(scale.frame)}"
        if config.geometry.anchor == "none":
            detail = (
                f"clip {progress.clip.clip_id}: nothing says what a unit of the depth is worth: give"
                " depth_units_per_metre in the index (1000 for millimetres), or metric depth by"
                " annotate.geometry.anchor"
            )
        progress.reasons.extend((reason, detail) for reason in scale.reasons)


def _reject_cuts(frames: ClipFrames) -> None:
    """Raise `ClipRejection` if the pass over the frames found a shot change."""
    cuts = frames.cuts
    if cuts:
        times = ", ".join(f"{frames.timing.time_s[c]:.2f} s" for c in cuts[:5])
        raise ClipRejection("shot_cut", f"{len(cuts)} cut(s) inside the clip, at {times}")


def _optional(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _row(progress: _Progress) -> Row:
    clip, frames, cameras, scale = progress.clip, progress.frames, progress.cameras, progress.scale
    values: dict[str, Any] = {}
    if frames is not None:
        values.update(
            height=frames.height,
            width=frames.width,
            source_fps=frames.timing.source_fps,
            fps=frames.timing.fps,
            frame_index=frames.timing.frame_index,
            time_s=frames.timing.time_s,
            decode_notes=frames.notes,
        )
    if scale is not None:
        usable = np.isfinite(scale.raw)
        values.update(
            metres_per_unit=scale.value,
            metres_per_unit_frame=scale.metres_per_unit if scale.model in ("slow_drift", "step") else None,
            scale_model=scale.model,
            scale_frame=scale.frame[usable],
            scale_value=scale.raw[usable],
            scale_mad_log=_optional(scale.mad_log),
            scale_p10=_optional(scale.p10),
            scale_p90=_optional(scale.p90),
            scale_cov=_optional(scale.cov),
        )
    if progress.measured is not None:
        progress.metrics["overlay_share"] = progress.measured.overlay_share
        survival = progress.measured.survival
        values["track_survival_min"] = _optional(float(survival[1:].min()) if len(survival) > 1 else None)
    if progress.depth_check is not None:
        check = progress.depth_check
        values.update(
            depth_misfit_px=_optional(check.misfit_px),
            depth_reading_margin_log=_optional(check.margin_log),
            depth_unexplained=_optional(check.unexplained),
            depth_inconsistency_log=_optional(check.inconsistency_log),
            depth_unit_step_log=_optional(check.unit_step_log),
        )
    if cameras is not None and frames is not None:
        values.update(_camera_columns(cameras, frames))
    if progress.posed is not None:
        values.update(_given_columns(progress.posed))
    if progress.agreement is not None:
        values.update(progress.agreement.columns())
    diagnostics = {} if progress.geometry is None else progress.geometry.diagnostics
    values["metrics"] = values.get("metrics", {}) | diagnostics | progress.metrics or None
    used = _taking_part(progress)
    values.update(
        weights=tuple(w for n in used for w in n.weights),
        weight_licences=tuple(w for n in used for w in n.weight_licences),
        stand_in=any(n.stand_in for n in used),
    )
    return Row(
        clip_id=clip.clip_id,
        source=clip.source,
        original_id=clip.original_id,
        media_kind=clip.media_kind,
        media=clip.media,
        media_pattern=clip.media_pattern,
        window_start_s=clip.start_s,
        window_end_s=clip.end_s,
        mode=progress.mode,
        data_licence=clip.data_licence,
        data_redistributable=clip.data_redistributable,
        recipe_hash=progress.recipe_hash,
        package_version=__version__,
        verdict="rejected" if progress.reasons else "accepted",
        reasons=tuple(reason for reason, _ in progress.reasons),
        reason_details=tuple(detail for _, detail in progress.reasons),
        gates=progress.gates,
        error=progress.error,
        annotate_wall_s=progress.wall_s["total"],
        stage_wall_s=progress.wall_s,
        **values,
    )


def _camera_columns(cameras: CameraSolution, frames: ClipFrames) -> dict[str, Any]:
    fx, fy = cameras.focal_px.T
    position_sigma, rotation_sigma, log_focal_sigma = cameras.stated_sigmas()
    fov_x, fov_y = fov_from_focal(fx, frames.width), fov_from_focal(fy, frames.height)
    # Of solved cameras the observations that agree count, of given ones all of them.
    counted = np.where(cameras.pose_source == GIVEN, cameras.num_observations, cameras.num_inliers)
    mean_square = np.average(cameras.reprojection_px**2, weights=counted) if counted.any() else None

    def float32(x: NDArray) -> NDArray:
        return np.asarray(x, np.float32)

    return {
        "camera_to_world": float32(cameras.camera_to_world),
        "focal_px": float32(cameras.focal_px),
        "principal_point_px": float32(cameras.principal_point_px),
        "radial_k1": cameras.radial_k1,
        "pose_source": cameras.pose_source,
        "focal_model": cameras.focal_model,
        "position_sigma_m": float32(position_sigma),
        "rotation_sigma_rad": float32(rotation_sigma),
        "log_focal_sigma": float32(log_focal_sigma),
        "reprojection_px": float32(cameras.reprojection_px),
        "reprojection_rms_px": None if mean_square is None else float(np.sqrt(mean_square)),
        "reprojection_median_px": float(np.median(cameras.reprojection_px)),
        "num_tracks": cameras.num_tracks,
        "num_loops": cameras.num_loops,
        "inlier_share_min": float(cameras.inlier_share.min()),
        "parallax_rad": _optional(cameras.parallax_rad),
        "depth_residual_log_median": _optional(cameras.depth_log_residual),
        "path_length_m": float(path_length(cameras.camera_to_world)),
        "scale_sweep_best": _optional(sweep_minimum(cameras.scale_sweep)),
        "fov_x_min_rad": float(fov_x.min()),
        "fov_x_max_rad": float(fov_x.max()),
        "fov_y_min_rad": float(fov_y.min()),
        "fov_y_max_rad": float(fov_y.max()),
        "focal_axis_gap_max": float((np.abs(fx - fy) / ((fx + fy) / 2)).max()),
        "focal_spread": float(fx.std() / fx.mean()),
        "metrics": {
            "median_depth_m": float(cameras.median_depth),
            **{f"focal_cost_{name}": float(cost) for name, cost in cameras.focal_cost.items()},
            **({} if cameras.depth_noise is None else cameras.depth_noise.metrics(len(fx))),
        },
    }


def _given_columns(posed: Posed) -> dict[str, float | None]:
    errors, lens = posed.errors, posed.lens
    return {
        "given_scale_ratio": _optional(errors.scale_ratio),
        "given_scale_sigma": _optional(errors.scale_sigma),
        "given_time_offset_s": _optional(errors.time_offset_s),
        "given_time_offset_sigma_s": _optional(errors.time_offset_sigma_s),
        "given_position_rms_m": _optional(errors.noise_m),
        "given_position_rms_px": _optional(errors.noise_px),
        "given_focal_ratio": None if lens is None else _optional(float(np.exp(lens.focal_log))),
        "given_focal_sigma": None if lens is None else _optional(lens.focal_sigma),
    }
