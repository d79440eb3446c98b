"""Scores of one clip, each with its unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from ..camera_files.match import Match, Matching, match
from ..camera_files.record import ClipCameras
from ..metrics.trajectory import (
    camera_control_error,
    focal_mape_percent,
    path_length,
    relative_pose_error,
    rotation_error,
    trajectory_error,
)

Better = Literal["less", "more", "1", ""]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a column holds: unit, which way is better (`1`: nearest to 1), and one sentence."""

    name: str
    unit: str
    better: Better
    meaning: str


def _score(unit: str, better: Better, meaning: str, *, optional: bool = False) -> Any:
    metadata = {"unit": unit, "better": better, "meaning": meaning}
    return field(metadata=metadata, default=None) if optional else field(metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """Scores of one clip; None where the data do not determine it (a straight path has no SE(3) alignment).

    Units and meanings are in the metadata of the fields; see `METRICS`.
    """

    clip_id: str
    num_frames: int
    num_truth: int
    matched_by: str
    rejection: tuple[str, ...] = ()
    coverage: float = _score("1", "more", "Share of the truth's poses that have a predicted one.")
    covered_span: float = _score(
        "1",
        "more",
        "Share of the truth's poses that are matched or lie between matched ones that are close: 1 too where the truth "
        "is merely sampled more often than the prediction.",
    )
    path_length_m: float = _score("m", "", "Length of the true path through the matched poses.")
    ate_none_m: float = _score(
        "m", "less", "ATE: root mean square distance of camera centres, without any alignment."
    )
    ate_se3_m: float | None = _score(
        "m", "less", "ATE after the rigid motion that fits best (evo_ape --align); no scale is applied."
    )
    ate_se3_percent: float | None = _score("%", "less", "ate_se3_m over path_length_m.")
    ate_sim3_m: float | None = _score(
        "m",
        "less",
        "ATE after the best similarity (evo_ape --align --correct_scale); scale errors do not count.",
    )
    scale: float | None = _score(
        "1", "1", "Factor that the similarity applies to the prediction; 1 is right."
    )
    rotation_rmse_deg: float = _score(
        "deg",
        "less",
        "Root mean square angle between orientations, after the rotation of the world that fits all of them best.",
    )
    rotation_ape_deg: float | None = _score(
        "deg",
        "less",
        "The same after the alignment that fits the positions best (evo_ape -r angle_deg --align), which a nearly "
        "straight path leaves free.",
    )
    rpe_m: float | None = _score(
        "m", "less", "RPE: root mean square error of the motion from one matched frame to the next (evo_rpe)."
    )
    rpe_sim3_m: float | None = _score("m", "less", "rpe_m after scaling the prediction by `scale`.")
    rpe_deg: float | None = _score("deg", "less", "The same for the turn from frame to frame.")
    focal_mape_percent: float | None = _score(
        "%", "less", "Mean absolute error of the focal lengths, as a share of the true ones."
    )
    rot_err_deg: float | None = _score(
        "deg", "less", "RotErr of world models: mean angle, after a similarity alignment."
    )
    trans_err_m: float | None = _score(
        "m", "less", "TransErr: mean distance of centres, after the same alignment."
    )
    cam_mc: float | None = _score(
        "1", "less", "CamMC: mean Frobenius distance of the 3x4 matrices, after the same alignment."
    )
    rot_err_bench_deg: float | None = _score("deg", "less", "RotErr as NVIDIA's SANA-WM-Bench code aligns.")
    trans_err_bench: float | None = _score("1", "less", "TransErr_rel of that code.")
    cam_mc_bench: float | None = _score("1", "less", "CamMC_rel of that code.")
    revisit_psnr_db: float | None = _score(
        "dB",
        "more",
        "PSNR of a generated video's frames where the true camera returns to a place.",
        optional=True,
    )
    revisit_ssim: float | None = _score("1", "more", "SSIM at the same returns.", optional=True)
    revisit_lpips: float | None = _score(
        "1", "less", "Perceptual distance at the same returns.", optional=True
    )
    truth_psnr_db: float | None = _score(
        "dB",
        "more",
        "PSNR of a generated video's frames beside those of the true video at the same times, the given first frame "
        "left out. Only where a true video follows the same path from the same image.",
        optional=True,
    )
    truth_ssim: float | None = _score("1", "more", "SSIM of the same frames.", optional=True)
    truth_lpips: float | None = _score("1", "less", "Perceptual distance of the same frames.", optional=True)
    quality_drop: float | None = _score(
        "-", "less", "Mean image quality of the first 10 s minus that of the last 10 s.", optional=True
    )


METRICS = tuple(Metric(name=f.name, **f.metadata) for f in fields(ClipScore) if f.metadata)
SCORES = tuple(metric.name for metric in METRICS)
"""Columns that are averaged over clips."""


def score_clip(
    clip_id: str, predicted: ClipCameras, truth: ClipCameras, *, matching: Matching | None = None
) -> ClipScore:
    """Scores of the frames that both have; see `clip_cameras.match` for which those are.

    Raises:
        ValueError: no common frame, or nothing that tells which belong together.
    """
    return score_match(clip_id, predicted, truth, match(clip_id, predicted, truth, matching))


def score_match(clip_id: str, predicted: ClipCameras, truth: ClipCameras, found: Match) -> ClipScore:
    e, t = predicted.camera_to_world[found.predicted], found.truth_camera_to_world
    none = trajectory_error(e, t, alignment="none")
    try:
        se3 = trajectory_error(e, t, alignment="se3")
        sim3 = trajectory_error(e, t, alignment="sim3")
        control = camera_control_error(e, t, variant="paper")
    except ValueError:  # fewer than 3 poses, or centres on a line: these scores do not exist
        se3 = sim3 = control = None
    several = len(e) > 1
    rpe = relative_pose_error(e, t) if several else None
    bench = camera_control_error(e, t, variant="bench") if several else None
    return ClipScore(
        clip_id=clip_id,
        num_frames=len(e),
        num_truth=int(truth.posed.sum()),
        matched_by=found.how,
        rejection=predicted.rejection,
        coverage=found.coverage,
        covered_span=found.covered_span,
        path_length_m=path_length(t),
        ate_none_m=none.ate_rmse_m,
        ate_se3_m=se3.ate_rmse_m if se3 else None,
        ate_se3_percent=se3.ate_percent_of_path if se3 else None,
        ate_sim3_m=sim3.ate_rmse_m if sim3 else None,
        scale=sim3.scale if sim3 else None,
        rotation_rmse_deg=float(np.rad2deg(np.sqrt(np.mean(rotation_error(e, t) ** 2)))),
        rotation_ape_deg=float(np.rad2deg(se3.rotation_rmse_rad)) if se3 else None,
        rpe_m=rpe.translation_rmse_m if rpe else None,
        rpe_sim3_m=relative_pose_error(e, t, scale=sim3.scale).translation_rmse_m if sim3 else None,
        rpe_deg=rpe.rotation_rmse_deg if rpe else None,
        focal_mape_percent=_focal_error(predicted, truth, found),
        rot_err_deg=control.rot_err_deg if control else None,
        trans_err_m=control.trans_err if control else None,
        cam_mc=control.cam_mc if control else None,
        rot_err_bench_deg=bench.rot_err_deg if bench else None,
        trans_err_bench=bench.trans_err if bench else None,
        cam_mc_bench=bench.cam_mc if bench else None,
    )


def _focal_error(predicted: ClipCameras, truth: ClipCameras, found: Match) -> float | None:
    """In units of the image: sizes may differ between the two."""
    if predicted.focal_px is None or truth.focal_px is None:
        return None
    size_e, size_t = (np.array([c.width, c.height], dtype=np.float64) for c in (predicted, truth))
    if not ((size_e > 0).all() and (size_t > 0).all()):
        return None
    e, t = predicted.focal_px[found.predicted] / size_e, truth.focal_px[found.truth] / size_t
    known = (np.isfinite(e) & (e > 0) & np.isfinite(t) & (t > 0)).all(axis=1)
    return focal_mape_percent(e[known], t[known]) if known.any() else None
