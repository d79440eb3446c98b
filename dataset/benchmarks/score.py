"""Figures of one sequence by its set's protocol."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import F64
from ..camera_files.match import Match, match
from ..camera_files.record import ClipCameras
from ..evaluation.score import ClipScore, score_match
from ..metrics.lens import LENS, end_point_errors_px
from ..metrics.trajectory import AlignmentKind, focal_mape_percent, segment_error, trajectory_error
from ..rows import Row
from .protocols import AUC_LIMIT_M, EPE_LIMIT_PX, Protocol
from .truth import Lenses

_WELL_COVERED = 0.8
"""Share of the true poses below which it is told: motion capture runs a little longer than cameras do."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Counts, figures and a table of frames of a sequence; see `SequenceScore`."""

    counts: Mapping[str, int]
    values: Mapping[str, float]
    frames: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...] = ()


def score_poses(name: str, predicted: ClipCameras, truth: ClipCameras, protocol: Protocol) -> Scored:
    """Scores of the frames that both have.

    Raises:
        ValueError: nothing in common.
    """
    found = match(name, predicted, truth, protocol.matching)
    score = score_match(name, predicted, truth, found)
    wanted = [m.name for m in protocol.metrics]
    values = {metric: v for metric in wanted if (v := getattr(score, metric, None)) is not None}
    counts = {"num_frames": score.num_frames, "num_truth": score.num_truth}
    e, t = predicted.camera_to_world[found.predicted], found.truth_camera_to_world
    if "t_rel_percent" in wanted:
        whole = segment_error(e, t)
        counts["num_segments"] = whole.num_segments
        values["t_rel_percent"] = whole.translation_percent
        values["r_rel_deg_per_100m"] = whole.rotation_deg_per_100m
        if score.scale is not None:
            values["t_rel_sim3_percent"] = segment_error(e, t, scale=score.scale).translation_percent
    for metric, ate in (("auc_se3_cm", score.ate_se3_m), ("auc_sim3_cm", score.ate_sim3_m)):
        if metric in wanted and ate is not None:
            values[metric] = 100 * max(0.0, AUC_LIMIT_M - ate)
    notes = [*predicted.notes, *truth.notes]
    if score.covered_span < _WELL_COVERED:
        notes.append(f"cameras cover {100 * score.covered_span:.0f} % of the true poses")
    return Scored(
        counts=counts,
        values={metric: float(v) for metric, v in values.items() if np.isfinite(v)},
        frames=_pose_frames(predicted, found, score),
        notes=tuple(notes),
    )


def _pose_frames(predicted: ClipCameras, found: Match, score: ClipScore) -> dict[str, NDArray[Any]]:
    e, t = predicted.camera_to_world[found.predicted], found.truth_camera_to_world
    nothing = np.full(len(e), np.nan)
    kinds: tuple[AlignmentKind, ...] = ("se3", "sim3")
    errors = {k: trajectory_error(e, t, alignment=k) for k in kinds} if score.scale is not None else {}
    return {
        "frame": predicted.frame_index[found.predicted],
        **{f"position_error_{k}_m": errors[k].position_error_m if k in errors else nothing for k in kinds},
        "rotation_error_se3_deg": np.rad2deg(errors["se3"].rotation_error_rad) if errors else nothing,
    }


def lenses_of_row(row: Row, size: tuple[int, int]) -> Lenses:
    """Lenses of a row's frames in pixels of the source (`size` is height, width), the first pixel's centre at 0;
    empty if the row has none, or of a fisheye, which such a lens is not."""
    height, width = size
    if not len(row.focal_px) or not row.width or not row.height or row.lens_model == "fisheye":
        return Lenses(
            frame=np.zeros(0, np.int64), values=np.zeros((0, len(LENS))), height=height, width=width
        )
    scale = np.array([width / row.width, height / row.height])
    values = np.zeros((len(row.focal_px), len(LENS)))
    values[:, 0:2] = row.focal_px * scale
    values[:, 2:4] = row.principal_point_px * scale - 0.5  # rows have it at +0.5
    values[:, 4], values[:, 5] = row.radial_k1 or 0.0, row.radial_k2 or 0.0
    good = np.isfinite(values).all(axis=1) & (values[:, :2] > 0).all(axis=1)
    return Lenses(
        frame=row.frame_index[good].astype(np.int64), values=values[good], height=height, width=width
    )


def score_lenses(predicted: Lenses, truth: Lenses) -> Scored:
    """Errors of the frames that have a true lens, in pixels of the prediction's size.

    Raises:
        ValueError: no frame has a true lens, or none of those has a prediction.
    """
    if not len(truth.frame):
        raise ValueError("no frame has a true lens (all lie outside of what was calibrated)")
    _, i, j = np.intersect1d(predicted.frame, truth.frame, return_indices=True)
    if not len(i):
        raise ValueError(f"none of the {len(truth.frame)} frames with a true lens has a predicted one")
    e, t = predicted.values[i], truth.values[j]
    distortion_alone = np.concatenate([t[:, :4], e[:, 4:]], axis=1)
    apart, bent = end_point_errors_px(
        [e, distortion_alone], t, height=predicted.height, width=predicted.width
    )
    below = np.where(np.isfinite(apart), apart < EPE_LIMIT_PX, False)
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = 100 * np.abs(e[:, :4] - t[:, :4]) / np.abs(t[:, :4])
    counts = {"num_frames": len(i), "num_truth": len(truth.frame)}
    values = {
        "epe_below_300px_percent": 100 * float(below.sum()) / (len(truth.frame) * below.shape[1]),
        **{f"{name}_error_percent": float(percent[:, k].mean()) for k, name in enumerate(LENS[:4])},
        "epe_median_px": float(_median(apart)),
        "distortion_median_px": float(_median(bent)),
        "focal_mape_percent": focal_mape_percent(e[:, :2], t[:, :2]),
    }
    frames: dict[str, NDArray[Any]] = {"frame": predicted.frame[i]}
    frames |= {f"{name}_predicted": e[:, k] for k, name in enumerate(LENS)}
    frames |= {f"{name}_true": t[:, k] for k, name in enumerate(LENS)}
    frames["epe_median_px"] = _median(apart, axis=1)
    known = {name: value for name, value in values.items() if np.isfinite(value)}
    return Scored(counts=counts, values=known, frames=frames)


def _median(values: F64, axis: int | None = None) -> F64:
    """Of the numbers among the values, NaN where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmedian(values, axis=axis))
