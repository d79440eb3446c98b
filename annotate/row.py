"""What is known of a clip so far, and the row that can be made of it at any point."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dataset.cameras.intrinsics import fov_from_focal
from ..dataset.metrics.trajectory import path_length
from ..dataset.moving_masks import packed_masks
from ..dataset.reasons import ReasonCode
from ..dataset.rows import Gate, Row, why_no_confidence
from ..dataset.words import Mode
from .checks.depth import DepthCheck
from .checks.given_poses import longest_gap_s
from .checks.posed import Posed
from .frames.base import ClipFrames
from .frames.integrity import time_columns
from .geometry.base import Provenance, SequenceGeometryResult
from .given.cameras import GivenCameras
from .reporting import say
from .scale.bridge import Bridge, path_spread
from .scale.records import ScaleEstimate
from .sfm.records import GIVEN, CameraSolution
from .sfm.summary import sweep_minimum
from .sources.clip import ClipRef, identity
from .tracks.records import ImageMeasurements
from .verdict.agreement import Agreement, confidence_of


@dataclass
class Findings:
    """What the stages have found of a clip; each puts down its own, for the row alone. Stages hand on what they find
    themselves.

    Attributes:
        provenance: of the estimators that take part, from before they have answered.
        pictures: columns by those that watched the frames go by (`watchers.py`).
        metrics: entries of the column `metrics` that stages have found.
        reasons: why the clip is rejected, each with a sentence.
    """

    clip: ClipRef
    mode: Mode
    recipe_hash: str
    frames: ClipFrames | None = None
    provenance: Provenance = field(default_factory=Provenance)
    pictures: list[Mapping[str, Any]] = field(default_factory=list)
    measured: ImageMeasurements | None = None
    geometry: SequenceGeometryResult | None = None
    scale: ScaleEstimate | None = None
    depth_check: DepthCheck | None = None
    cameras: CameraSolution | None = None
    posed: Posed | None = None
    agreement: Agreement = field(default_factory=Agreement)
    given: GivenCameras | None = None
    bridge: Bridge | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    reasons: list[tuple[ReasonCode, str]] = field(default_factory=list)
    wall_s: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside is the stage `name`: its time is taken, and it is told to whoever watches the run."""
        start = time.perf_counter()
        say(self.clip.clip_id, name)
        try:
            yield
        finally:
            self.wall_s[name] = self.wall_s.get(name, 0.0) + time.perf_counter() - start

    def row(self) -> Row:
        """The clip's row: accepted if there is no reason against it."""
        parts = self._columns()
        columns: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        for part in parts:
            columns |= part
            metrics |= part.get("metrics", {})
        columns["metrics"] = metrics or None
        return Row(
            **columns,
            verdict="rejected" if self.reasons else "accepted",
            reasons=tuple(reason for reason, _ in self.reasons),
            reason_details=tuple(detail for _, detail in self.reasons),
            gates=self.gates,
            error=self.error,
            annotate_wall_s=self.wall_s["total"],
            stage_wall_s=self.wall_s,
        )

    def _columns(self) -> list[Mapping[str, Any]]:
        """Columns by stage, of the stages that were reached; several may have entries in `metrics`."""
        found = [identity(self.clip, mode=self.mode, recipe_hash=self.recipe_hash), *self.pictures]
        if self.frames is not None:
            found.append(_frame_columns(self.frames))
            replaced = any("time stamps replaced" in note for note in self.frames.notes)
            assumed = replaced or self.clip.media_kind != "video"
            found.append(time_columns(self.frames.timing, assumed=assumed))
        if self.scale is not None:
            found.append(_scale_columns(self.scale))
        if self.measured is not None:
            found.append(_track_columns(self.measured))
        if self.depth_check is not None:
            found.append(_depth_check_columns(self.depth_check))
        if self.cameras is not None and self.frames is not None:
            # The scale of given poses is another one (`_metric_columns`).
            scale = self.scale if self.posed is None else None
            sigma = 0.0 if scale is None else scale.total_sigma_log
            found.append(_camera_columns(self.cameras, self.frames, sigma))
        if self.posed is not None:
            found.append(_given_columns(self.posed))
        if self.geometry is not None:
            found.append({"metrics": self.geometry.diagnostics})
        found.append({"metrics": self.metrics, **self.agreement.columns()})
        if self.given is not None and self.given.camera_to_world is not None and self.frames is not None:
            found.append(_pose_columns(self.given, self.cameras, self.frames))
        if self.bridge is not None:
            found.append(_bridge_columns(self.bridge))
        found += [self._metric_columns(), self._provenance_columns()]
        return found

    def _metric_columns(self) -> dict[str, Any]:
        """What says how long a metre is, and whether it can be believed."""
        source, sigma, unit = "none", float("nan"), float("nan")
        if self.cameras is not None and self.scale is not None:
            # What the depth's scale is seen to wander by along the clip is error of a metre, whoever says its unit.
            sigma = float(np.hypot(self.scale.total_sigma_log, self.cameras.scale_doubt_log))
            source = "metric_anchor"
            if self.scale.model == "declared":
                source = "declared_depth"
            if self.posed is not None and self.given is not None:
                unit = self.posed.metres_per_unit
                bridge = self.bridge
                if self.given.metres_per_unit is not None:
                    source, sigma = "declared_poses", float("nan")
                elif bridge is not None and bridge.metres_per_unit is not None:
                    source, sigma = "bridge", float(np.hypot(bridge.sigma_log, self.scale.common_sigma_log))
                else:
                    source, sigma = "depth_under_poses", self.posed.errors.scale_sigma
        doubt = any(reason in _AGAINST_METRES for reason, _ in self.reasons)
        stand_in = self.provenance.stand_in
        return {
            "scale_source": source,
            "scale_sigma_log": _optional(sigma),
            "is_metric": source != "none" and not doubt and not stand_in,
            "given_metres_per_unit": _optional(unit),
        }

    def _provenance_columns(self) -> dict[str, Any]:
        confidence, absent = confidence_of(self.agreement), None
        if confidence is None:
            absent = why_no_confidence(
                networks=bool(self.provenance.weights), cameras=self.cameras is not None
            )
        return {
            **vars(self.provenance),
            "confidence": confidence,
            "confidence_absent": absent,
        }


_AGAINST_METRES: frozenset[ReasonCode] = frozenset(
    {
        "depth_and_path_disagree",
        "depth_does_not_fit_images",
        "depth_scale_wanders",
        "depth_unit_changes",
        "given_intrinsics_disagree",
        "given_poses_disagree",
        "given_scale_disagrees",
        "metres_implausible",
        "scale_inconsistent",
    }
)
"""Reasons after which nobody should take a row's path for metres."""


def _optional(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _float32(x: NDArray) -> NDArray[np.float32]:
    return np.asarray(x, np.float32)


def _frame_columns(frames: ClipFrames) -> dict[str, Any]:
    return {
        "height": frames.height,
        "width": frames.width,
        "source_fps": frames.timing.source_fps,
        "source_num_frames": frames.num_source_frames,
        "fps": frames.timing.fps,
        "frame_index": frames.timing.frame_index,
        "time_s": frames.timing.time_s,
        "decode_notes": frames.notes,
    }


def _scale_columns(scale: ScaleEstimate) -> dict[str, Any]:
    usable = np.isfinite(scale.raw)
    return {
        "metres_per_unit": scale.value,
        "metres_per_unit_frame": scale.metres_per_unit if scale.model in ("slow_drift", "step") else None,
        "scale_model": scale.model,
        "scale_frame": scale.frame[usable],
        "scale_value": scale.raw[usable],
        "scale_mad_log": _optional(scale.mad_log),
        "scale_p10": _optional(scale.p10),
        "scale_p90": _optional(scale.p90),
        "scale_cov": _optional(scale.cov),
    }


def _track_columns(measured: ImageMeasurements) -> dict[str, Any]:
    survival = measured.survival
    return {
        "track_survival_min": _optional(float(survival[1:].min()) if len(survival) > 1 else None),
        "tracker": measured.tracker,
        "metrics": {"overlay_share": measured.overlay_share},
    }


def _pose_columns(given: GivenCameras, cameras: CameraSolution | None, frames: ClipFrames) -> dict[str, Any]:
    """How dense given poses are, and how they lie; what was filled in between them is `pose_source`."""
    poses, time_s = given.camera_to_world, frames.timing.time_s
    assert poses is not None
    at_s = np.interp(given.position, np.arange(len(time_s)), time_s)
    found = {"given_gap_max_s": longest_gap_s(given.position, time_s)}
    if len(at_s) > 1:
        found["pose_hz"] = float((len(at_s) - 1) / (at_s[-1] - at_s[0]))
        found["given_path_spread"] = path_spread(poses)
    if cameras is not None:
        found["given_pose_share"] = float((cameras.pose_source == GIVEN).mean())
    return {name: _optional(value) for name, value in found.items()}


def _bridge_columns(bridge: Bridge) -> dict[str, Any]:
    used = bridge.used
    return {
        "bridge_frame": bridge.frame[used],
        "bridge_value": bridge.value,
        "bridge_spread_log": _optional(bridge.spread_log),
        "metrics": {
            "bridge_windows": float(len(used)),
            "bridge_windows_used": float(used.sum()),
            **({"bridge_inlier_share": float(bridge.inlier_share[used].mean())} if used.any() else {}),
        },
    }


def _depth_check_columns(check: DepthCheck) -> dict[str, Any]:
    return {
        "depth_misfit_px": _optional(check.misfit_px),
        "depth_reading_margin_log": _optional(check.margin_log),
        "depth_unexplained": _optional(check.unexplained),
        "depth_inconsistency_log": _optional(check.inconsistency_log),
        "depth_unit_step_log": _optional(check.unit_step_log),
    }


def _camera_columns(cameras: CameraSolution, frames: ClipFrames, scale_sigma_log: float) -> dict[str, Any]:
    fx, fy = cameras.focal_px.T
    position_sigma, rotation_sigma, log_focal_sigma = cameras.stated_sigmas(scale_sigma_log)
    # Hopeless cameras know as little as the columns can say.
    position_sigma, rotation_sigma = np.minimum(position_sigma, 1e4), np.minimum(rotation_sigma, 3.1415)
    log_focal_sigma = np.minimum(log_focal_sigma, 10.0)
    fov_x, fov_y = fov_from_focal(fx, frames.width), fov_from_focal(fy, frames.height)
    # Of solved cameras the observations that agree count, of given ones all of them.
    counted = np.where(cameras.pose_source == GIVEN, cameras.num_observations, cameras.num_inliers)
    mean_square = np.average(cameras.reprojection_px**2, weights=counted) if counted.any() else None

    return {
        "camera_to_world": _float32(cameras.camera_to_world),
        "focal_px": _float32(cameras.focal_px),
        "principal_point_px": _float32(cameras.principal_point_px),
        "radial_k1": cameras.radial_k1,
        "radial_k2": cameras.radial_k2,
        "lens_model": "fisheye" if cameras.lens_model == "fisheye" else "radial",
        "pose_source": cameras.pose_source,
        "focal_model": cameras.focal_model,
        "position_sigma_m": _float32(position_sigma),
        "rotation_sigma_rad": _float32(rotation_sigma),
        "log_focal_sigma": _float32(log_focal_sigma),
        "reprojection_px": _float32(cameras.reprojection_px),
        "reprojection_rms_px": None if mean_square is None else float(np.sqrt(mean_square)),
        "reprojection_median_px": float(np.median(cameras.reprojection_px)),
        "num_tracks": cameras.num_tracks,
        "num_loops": cameras.num_loops,
        "inlier_share_min": float(cameras.inlier_share.min()),
        "parallax_rad": _optional(cameras.parallax_rad),
        "moving_share": None
        if cameras.moving_share is None
        else _optional(float(cameras.moving_share.mean())),
        "moving_mask": None if cameras.moving_masks is None else packed_masks(cameras.moving_masks),
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
            **_picture_metrics(cameras),
            **({} if cameras.depth_noise is None else cameras.depth_noise.metrics(len(fx))),
        },
    }


def _picture_metrics(cameras: CameraSolution) -> dict[str, float]:
    """What the pictures have beside a lens: a shutter that rolls, as a share of the time between frames, and a window
    that shifts."""
    found = {
        "rolling_shutter_share": float("nan") if cameras.shared is None else cameras.shared.shutter,
        "principal_point_jitter_px": cameras.centre_jitter_px,
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


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
