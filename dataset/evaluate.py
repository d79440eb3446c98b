"""Compare cameras with the truth, clip by clip, and say how sure the averages are."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import svg
from .arrays import FloatArray
from .cameras.transforms import se3_inverse
from .clip_cameras import CameraSet, ClipCameras, Match, Matching, match
from .escape import for_markdown
from .metrics.image import ImagePairScorer, ImageScorer, compare_videos, revisit_pairs, score_video
from .metrics.trajectory import (
    align_trajectory,
    camera_control_error,
    focal_mape_percent,
    path_length,
    relative_pose_error,
    rotation_error,
    trajectory_error,
)
from .reasons import status_of

TableFormat = Literal["text", "markdown", "csv", "json"]
Better = Literal["less", "more", "1", ""]
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
_CSV_DIGITS = 9
_MAX_NAMED = 5
"""Clips named in a cell of a table; JSON names all."""
_MAX_LISTED = 20
"""Failed clips described below the tables."""


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
_CLIP_COLUMNS = {
    "clip_id": "Clip.",
    "num_frames": "Pairs of poses compared.",
    "num_truth": "Poses of the truth.",
    "matched_by": "What told which poses belong together: `name` of the image, source `frame`, `image number`, "
    "`time`, `source frame` or `clip frame` of each row, `row`.",
    "status": "`scored`; `rejected`: judged by the prediction itself, scored where it has cameras, never in the means; "
    "`failed`: damaged, or not to be compared; `no prediction`: only the truth has it.",
    "detail": "Why a clip is not scored.",
}
_MEAN_COLUMNS = {
    "mean over clips": "Score that is averaged, each clip counting once.",
    "mean": "Mean over the clips that have a finite score.",
    "95% low, 95% high": "Bootstrap interval of the mean over clips.",
    "clips": "Clips that the mean stands on.",
    "of": "Clips that it should stand on: all that the truth has, less those that were rejected.",
    "missing": "Clips without this score.",
}
_MAIN_SCORES = (
    "coverage",
    "path_length_m",
    "ate_se3_m",
    "ate_se3_percent",
    "ate_sim3_m",
    "scale",
    "rotation_rmse_deg",
    "rpe_m",
    "rpe_deg",
    "focal_mape_percent",
)
"""Columns of clips in a terminal; the means below, CSV and JSON show all."""


def explain_metrics(style: TableFormat = "text") -> str:
    """Every column of every table with its unit and meaning."""
    rows = [
        *([name, "", "", meaning] for name, meaning in _CLIP_COLUMNS.items()),
        *([m.name, m.unit, m.better, m.meaning] for m in METRICS),
        *([name, "", "", meaning] for name, meaning in _MEAN_COLUMNS.items()),
    ]
    header = ["column", "unit", "better", "meaning"]
    if style == "json":
        return json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
    return format_table(header, rows, style=style)


def score_clip(
    clip_id: str, predicted: ClipCameras, truth: ClipCameras, *, matching: Matching | None = None
) -> ClipScore:
    """Scores of the frames that both have; see `clip_cameras.match` for which those are.

    Raises:
        ValueError: no common frame, or nothing that tells which belong together.
    """
    return _score_match(clip_id, predicted, truth, match(clip_id, predicted, truth, matching))


def _score_match(clip_id: str, predicted: ClipCameras, truth: ClipCameras, found: Match) -> ClipScore:
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


@dataclass(frozen=True, kw_only=True)
class MeanWithInterval:
    """Mean of a score over clips with its bootstrap confidence interval, and how many clips have the
    score."""

    mean: float
    low: float
    high: float
    num_clips: int


def bootstrap_mean(
    values: Sequence[float] | FloatArray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> MeanWithInterval:
    """Mean and percentile bootstrap interval over clips (Efron 1979); one clip gives an interval of zero
    width.

    Raises:
        ValueError: no values, or a non-finite one.
    """
    x = np.asarray(values, dtype=np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError("bootstrap_mean: values must be finite, and at least one")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            x[rng.integers(0, len(x), size=(chunk, len(x)))].mean(axis=1)
            for chunk in _chunks(num_resamples, len(x))
        ]
    )
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return MeanWithInterval(mean=float(x.mean()), low=float(low), high=float(high), num_clips=len(x))


def _chunks(total: int, width: int) -> list[int]:
    """Sizes of batches of resamples that keep the index array below some 80 MB."""
    size = max(1, min(total, 10_000_000 // max(width, 1)))
    return [size] * (total // size) + ([total % size] if total % size else [])


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Difference of a score between two runs over the clips that both have (first minus second).

    Attributes:
        p_value: two-sided Wilcoxon signed-rank test; 1 if all differences are zero.
    """

    difference: MeanWithInterval
    p_value: float


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Bootstrap interval of the mean difference and Wilcoxon's signed-rank test, clip by clip.

    Raises:
        ValueError: lengths differ, or fewer than two clips.
    """
    from scipy.stats import wilcoxon

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"paired_difference: need two equally long lists of at least two clips, found {a.shape}, {b.shape}"
        )
    d = a - b
    p = 1.0 if not np.any(d) else float(wilcoxon(d).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return PairedDifference(difference=bootstrap_mean(d, seed=seed), p_value=p)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all clips that prediction and truth share, and what became of the others.

    Attributes:
        clips: scored clips in order of their id, rejected ones among them.
        only_predicted, only_truth: ids that only one of both has.
        rejected: reasons of clips that were rejected, by id; they are in no mean.
        failed: why a clip of both could not be compared, by id.
        notes: what reading had to decide, one sentence each.
        matches: pairs of poses behind the scores, by id.
    """

    clips: tuple[ClipScore, ...]
    only_predicted: tuple[str, ...] = ()
    only_truth: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    matches: Mapping[str, Match] = field(default_factory=dict, repr=False)

    def values(self, score: str, *, rejected: bool = False) -> dict[str, float]:
        """Score by clip id where it exists and is finite: of clips that were not rejected, or of those that were."""
        pairs = (
            (c.clip_id, getattr(c, score)) for c in self.clips if (c.clip_id in self.rejected) == rejected
        )
        return {clip_id: float(v) for clip_id, v in pairs if v is not None and np.isfinite(v)}

    def expected(self, *, rejected: bool = False) -> list[str]:
        """Clips that a mean should stand on: those of the truth that were not rejected, or those that were."""
        if rejected:
            return sorted(self.rejected)
        scored = {c.clip_id for c in self.clips} - self.rejected.keys()
        return sorted(scored | self.failed.keys() | set(self.only_truth))

    def missing(self, score: str, *, rejected: bool = False) -> list[str]:
        """Clips without a finite score that a mean should stand on."""
        have = self.values(score, rejected=rejected)
        return [c for c in self.expected(rejected=rejected) if c not in have]

    def summary(self, *, rejected: bool = False) -> dict[str, MeanWithInterval]:
        """Mean and 95 % bootstrap interval of each score that any clip has: of clips that were not rejected, or of
        those that were."""
        return {
            s: bootstrap_mean(list(v.values())) for s in SCORES if (v := self.values(s, rejected=rejected))
        }


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Generated videos to score beside their cameras.

    Attributes:
        folder: holds `<clip_id>.mp4` (or another video suffix), one frame for each true camera; clips without a file
            are left unscored.
        quality: scorer of one image, for the decline over a minute; None: not measured.
        perceptual: distance of two images, for returns (the benchmark's is `lpips_alex`); None: not measured.
        truth: folder of true videos by the same names, of the clips that have one; None: there are none.
    """

    folder: Path
    quality: ImageScorer | None = None
    perceptual: ImagePairScorer | None = None
    truth: Path | None = None

    def find(self, clip_id: str) -> Path | None:
        """The clip's video, or None."""
        return _find_video(self.folder, clip_id)


def _find_video(folder: Path, clip_id: str) -> Path | None:
    return next((p for s in _VIDEO_SUFFIXES if (p := folder / f"{clip_id}{s}").is_file()), None)


def _with_video(score: ClipScore, truth: ClipCameras, videos: Videos) -> ClipScore:
    path = videos.find(score.clip_id)
    if path is None:
        return score
    pairs = truth.returns if truth.returns is not None else revisit_pairs(truth.camera_to_world)
    seen = score_video(score.clip_id, path, pairs, quality=videos.quality, perceptual=videos.perceptual)
    true_video = None if videos.truth is None else _find_video(videos.truth, score.clip_id)
    if true_video is not None:
        beside = compare_videos(score.clip_id, path, true_video, perceptual=videos.perceptual)
        score = replace(score, truth_psnr_db=beside.psnr_db, truth_ssim=beside.ssim, truth_lpips=beside.lpips)
    return replace(
        score,
        revisit_psnr_db=seen.revisit.psnr_db if seen.revisit else None,
        revisit_ssim=seen.revisit.ssim if seen.revisit else None,
        revisit_lpips=seen.revisit.lpips if seen.revisit else None,
        quality_drop=seen.quality_drop,
    )


def evaluate(
    predicted: Mapping[str, ClipCameras],
    truth: Mapping[str, ClipCameras],
    *,
    videos: Videos | None = None,
    matching: Matching | None = None,
) -> Evaluation:
    """Scores of every clip that both have, with those of its video if `videos` has one.

    A clip that cannot be compared costs itself alone: it is in `failed`, with the reason.

    Raises:
        ValueError: no clip in common (except that a single clip on either side is compared whatever its
            name), or none that can be compared.
    """
    ours, theirs = _as_set(predicted), _as_set(truth)
    known = ours.clips.keys() | ours.unreadable.keys() | ours.without_cameras.keys()
    # Cameras that were rejected are no truth, but to say how far off rejected ones are they do.
    untrue = {c for c, t in theirs.items() if t.rejection and not (c in ours and ours[c].rejection)}
    true = (theirs.clips.keys() - untrue) | theirs.unreadable.keys()
    if len(ours) == len(true) == 1 and not known & true:
        (clip_id,) = ours
        theirs, true = replace(theirs, clips={clip_id: theirs[next(iter(true))]}), {clip_id}
    common = sorted(known & true)
    if not common:
        raise ValueError(
            f"no clip id in common; predictions are e.g. {sorted(known)[:3]}, the truth {sorted(true)[:3]}"
        )
    if videos is not None and not any(videos.find(c) for c in common):
        raise ValueError(
            f"{videos.folder}: holds no video of a clip that both have, e.g. {common[0]}{_VIDEO_SUFFIXES[0]}"
        )
    clips: list[ClipScore] = []
    failed: dict[str, str] = {}
    rejected: dict[str, tuple[str, ...]] = {}
    lone = {c: ours.unreadable[c] for c in ours.unreadable.keys() - true}
    lone |= {c: theirs.unreadable[c] for c in theirs.unreadable.keys() - known}
    notes = [f"not read: {text}" for _, text in sorted(lone.items())]
    if untrue:
        notes.append(
            f"{len(untrue)} clips of the truth were rejected themselves and are left out: {_named(sorted(untrue))}"
        )
    matches: dict[str, Match] = {}
    for clip_id in common:
        reasons = ours.without_cameras.get(clip_id, ())
        if reasons and status_of("rejected", reasons) == "rejected":
            rejected[clip_id] = reasons
            continue
        wrong = ours.unreadable.get(clip_id) or theirs.unreadable.get(clip_id) or " ".join(reasons) or None
        if wrong is not None:
            failed[clip_id] = wrong
            continue
        p, t = ours[clip_id], theirs[clip_id]
        try:
            matches[clip_id] = match(clip_id, p, t, matching)
            score = _score_match(clip_id, p, t, matches[clip_id])
        except ValueError as error:
            failed[clip_id] = str(error)
            continue
        if p.rejection:
            rejected[clip_id] = p.rejection
        notes.extend(f"clip {clip_id}: {note}" for note in (*p.notes, *t.notes))
        if videos is not None:
            try:
                score = _with_video(score, t, videos)
            except ValueError as error:
                notes.append(f"video not scored: {error}")
        clips.append(score)
    if not clips and not rejected:
        many = f"none of {len(common)} clips can be compared; " if len(common) > 1 else ""
        raise ValueError(many + next(iter(failed.values())))
    return Evaluation(
        clips=tuple(clips),
        only_predicted=tuple(sorted((ours.clips.keys() | ours.without_cameras.keys()) - true)),
        only_truth=tuple(sorted((theirs.clips.keys() - untrue) - known)),
        rejected=rejected,
        failed=failed,
        notes=tuple(notes),
        matches=matches,
    )


def _as_set(cameras: Mapping[str, ClipCameras]) -> CameraSet:
    return cameras if isinstance(cameras, CameraSet) else CameraSet(cameras)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: name, header and rows of text."""

    name: str
    header: list[str]
    rows: list[list[str]]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, style: TableFormat) -> str:
    """Table as aligned text, Markdown or CSV."""
    if style == "csv":
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([header, *rows])
        return stream.getvalue().rstrip("\n")
    if style == "markdown":
        escaped = [[for_markdown(cell) for cell in row] for row in rows]
        lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *escaped)]
        return "\n".join(lines)
    if style != "text":
        raise ValueError(f"table format {style!r}: expected text, markdown or csv (json is no table)")
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    words = [i == 0 or any(re.match("[a-z]", row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if left else cell.rjust(w)
            for cell, w, left in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in (header, *rows)
    )


def _named(clips: Sequence[str]) -> str:
    more = len(clips) - _MAX_NAMED
    return " ".join(clips[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _number(value: float | None, digits: int = 5) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}g}"


def clip_table(
    evaluation: Evaluation, *, scores: Sequence[str] | None = None, digits: int = 5, with_detail: bool = True
) -> Table:
    """A row a clip: scored, rejected, failed or without prediction.

    Args:
        scores: columns; None: all that any clip has.
        digits: of numbers.
        with_detail: a column that says why a clip is not scored.
    """
    have = [s for s in SCORES if any(getattr(c, s) is not None for c in evaluation.clips)]
    shown = [s for s in have if scores is None or s in scores]
    by_id = {c.clip_id: c for c in evaluation.clips}
    others = {
        **{c: ("rejected", " ".join(r)) for c, r in evaluation.rejected.items()},
        **{c: ("failed", text) for c, text in evaluation.failed.items()},
        **{c: ("no prediction", "") for c in evaluation.only_truth},
    }
    rows: list[list[str]] = []
    for clip_id in sorted(by_id.keys() | others.keys()):
        c, (status, detail) = by_id.get(clip_id), others.get(clip_id, ("scored", ""))
        if c is None:
            cells = ["-"] * (len(shown) + 3)
        else:
            values = [_number(getattr(c, s), digits) for s in shown]
            cells = [str(c.num_frames), *values, str(c.num_truth), c.matched_by]
        rows.append([clip_id, *cells, status, detail])
    header = ["clip_id", "num_frames", *shown, "num_truth", "matched_by", "status", "detail"]
    if not with_detail or not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(name="clips", header=header, rows=rows)


def mean_table(evaluation: Evaluation) -> Table:
    """A row a score, first of clips that were not rejected, then of those that were."""
    header = ["mean over clips", "mean", "95% low", "95% high", "clips", "of", "missing", "which"]
    rows: list[list[str]] = []
    for rejected in (False, True):
        expected = len(evaluation.expected(rejected=rejected))
        for s, m in evaluation.summary(rejected=rejected).items():
            missing = evaluation.missing(s, rejected=rejected)
            numbers = [f"{v:.5g}" for v in (m.mean, m.low, m.high)]
            which = "rejected" if rejected else "accepted"
            rows.append([s, *numbers, str(m.num_clips), str(expected), _named(missing), which])
    if not any(row[-1] == "rejected" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(name="means", header=header, rows=rows)


def baseline_table(evaluation: Evaluation, baseline: Evaluation) -> Table:
    """Paired differences of every score that both have on two clips or more."""
    rows: list[list[str]] = []
    for s in SCORES:
        ours, theirs = evaluation.values(s), baseline.values(s)
        common = sorted(ours.keys() & theirs.keys())
        if len(common) < 2:
            continue
        test = paired_difference([ours[c] for c in common], [theirs[c] for c in common])
        d = test.difference
        missing = sorted(set(evaluation.expected()) - set(common))
        numbers = [f"{v:+.5g}" for v in (d.mean, d.low, d.high)]
        rows.append(
            [
                s,
                *numbers,
                f"{test.p_value:.3g}",
                str(d.num_clips),
                str(d.num_clips + len(missing)),
                _named(missing),
            ]
        )
    header = ["minus baseline", "difference", "95% low", "95% high", "p (Wilcoxon)", "clips", "of", "missing"]
    return Table(name="baseline", header=header, rows=rows)


def evaluation_tables(
    evaluation: Evaluation, *, baseline: Evaluation | None = None, style: TableFormat = "text"
) -> str:
    """Clip table, means with intervals, the paired comparison with a baseline if given, and what is missing.

    CSV is the clip table alone: one table a file (`write_evaluation` writes them all). JSON is one object with
    everything.
    """
    if style == "json":
        return json.dumps(evaluation_json(evaluation, baseline=baseline), indent=1, allow_nan=False)
    if style == "csv":
        table = clip_table(evaluation, digits=_CSV_DIGITS)
        return format_table(table.header, table.rows, style=style)
    tables = [
        clip_table(evaluation, scores=_MAIN_SCORES if style == "text" else None, with_detail=style != "text"),
        mean_table(evaluation),
        *([] if baseline is None else [baseline_table(evaluation, baseline)]),
    ]
    blocks = [format_table(t.header, t.rows, style=style) for t in tables]
    return "\n\n".join([*blocks, "\n".join(_remarks(evaluation))]).rstrip()


def _remarks(evaluation: Evaluation) -> list[str]:
    """What a reader of the means must know, a line each."""
    scored = len(evaluation.clips) - sum(c.clip_id in evaluation.rejected for c in evaluation.clips)
    lines = [f"note: {note}" for note in dict.fromkeys(evaluation.notes)]
    if evaluation.only_predicted:
        few = _named(evaluation.only_predicted)
        lines.append(f"{len(evaluation.only_predicted)} clips of the prediction have no truth: {few}")
    if evaluation.rejected:
        few = _named(sorted(evaluation.rejected))
        lines.append(
            f"{len(evaluation.rejected)} clips were rejected and are in no mean of the others: {few}"
        )
    for clip_id, text in list(evaluation.failed.items())[:_MAX_LISTED]:
        lines.append(f"failed: {text}" if clip_id in text else f"failed: clip {clip_id}: {text}")
    if len(evaluation.failed) > _MAX_LISTED:
        lines.append(f"and {len(evaluation.failed) - _MAX_LISTED} more failed; --out DIR lists all")
    if evaluation.only_truth:
        missing = ", ".join(evaluation.only_truth)
        lines.append(f"{len(evaluation.only_truth)} clips of the truth have no prediction: {missing}")
    if len(evaluation.expected()) > scored:
        lines.insert(0, f"means stand on {scored} of {len(evaluation.expected())} clips; see `missing`")
    return lines


def evaluation_json(evaluation: Evaluation, *, baseline: Evaluation | None = None) -> dict[str, Any]:
    """Everything that the tables show, and more: numbers in full, all names; null for a score that does not exist."""

    def finite(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else float(value)

    def means(rejected: bool) -> dict[str, Any]:
        return {
            s: {
                "mean": m.mean,
                "low_95": m.low,
                "high_95": m.high,
                "num_clips": m.num_clips,
                "missing": evaluation.missing(s, rejected=rejected),
            }
            for s, m in evaluation.summary(rejected=rejected).items()
        }

    result: dict[str, Any] = {
        "clips": [
            {
                "clip_id": c.clip_id,
                "status": "rejected" if c.clip_id in evaluation.rejected else "scored",
                "num_frames": c.num_frames,
                "num_truth": c.num_truth,
                "matched_by": c.matched_by,
                **{s: finite(getattr(c, s)) for s in SCORES},
            }
            for c in evaluation.clips
        ],
        "means": means(False),
        "means_of_rejected": means(True),
        "num_clips_expected": len(evaluation.expected()),
        "rejected": {c: list(r) for c, r in evaluation.rejected.items()},
        "failed": dict(evaluation.failed),
        "no_prediction": list(evaluation.only_truth),
        "no_truth": list(evaluation.only_predicted),
        "notes": list(evaluation.notes),
        "metrics": {m.name: {"unit": m.unit, "better": m.better, "meaning": m.meaning} for m in METRICS},
    }
    if baseline is not None:
        table = baseline_table(evaluation, baseline)
        result["minus_baseline"] = {
            row[0]: {
                key: float(text) if index < 4 else int(text)
                for index, (key, text) in enumerate(
                    zip(("difference", "low_95", "high_95", "p_wilcoxon", "num_clips"), row[1:6], strict=True)
                )
            }
            for row in table.rows
        }
    return result


def write_evaluation(
    evaluation: Evaluation, folder: str | Path, *, baseline: Evaluation | None = None
) -> list[Path]:
    """Write `clips.csv`, `means.csv`, `baseline.csv` (one table a file), `columns.csv` (what they hold) and
    `evaluation.json`; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = [clip_table(evaluation, digits=_CSV_DIGITS), mean_table(evaluation)]
    tables += [] if baseline is None else [baseline_table(evaluation, baseline)]
    texts = {f"{t.name}.csv": format_table(t.header, t.rows, style="csv") for t in tables}
    texts["columns.csv"] = explain_metrics("csv")
    texts["evaluation.json"] = evaluation_tables(evaluation, baseline=baseline, style="json")
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in texts]


# --- plots ----------------------------------------------------------------------------------------

PLOT_STYLE = (
    "<style>svg{--ink:#1c2126;--faint:#9aa4ad;--a:#1668b8;--b:#c2410c;--c:#0f7b4f;background:#fff}"
    + svg.STYLE
    + "</style>"
)


def evaluation_plots(
    evaluation: Evaluation,
    folder: str | Path,
    *,
    predicted: Mapping[str, ClipCameras] | None = None,
    truth: Mapping[str, ClipCameras] | None = None,
) -> list[Path]:
    """One SVG per score: share of clips at or below each value; with the cameras of both sides also one per clip in
    `clips/`: both paths in three views, and the errors of position, rotation and focal length over time. Returns the
    files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for metric in METRICS:
        values = np.sort(list(evaluation.values(metric.name).values()))
        if not values.size:
            continue
        share = 100.0 * np.arange(1, len(values) + 1) / len(values)
        drawing = svg.chart(
            [svg.Line(x=values, y=share), svg.Dots(x=values, y=share)],
            title=f"{metric.name}: share of clips at or below",
            x_label=metric.name if metric.unit in ("1", "-") else f"{metric.name} ({metric.unit})",
            y_label="% of clips",
            y_from_zero=True,
        )
        target = folder / f"{metric.name}.svg"
        target.write_text(svg.standalone(drawing, style=PLOT_STYLE), encoding="utf-8")
        written.append(target)
    if predicted is None or truth is None:
        return written
    (folder / "clips").mkdir(exist_ok=True)
    theirs = dict(truth)
    if len(predicted) == len(truth) == 1:
        theirs = dict(zip(predicted, truth.values(), strict=True))
    for clip_id, found in evaluation.matches.items():
        name = re.sub(r"[^\w.-]", "_", clip_id)
        target = folder / "clips" / f"{name}.svg"
        charts = clip_charts(predicted[clip_id], theirs[clip_id], found)
        target.write_text(svg.standalone(svg.grid(charts, title=clip_id), style=PLOT_STYLE), encoding="utf-8")
        written.append(target)
    return written


def clip_charts(predicted: ClipCameras, truth: ClipCameras, found: Match) -> list[str]:
    """Charts of one clip: both paths in three views, then errors over time."""
    e, t = predicted.camera_to_world[found.predicted], found.truth_camera_to_world
    try:
        (aligned, _), words = align_trajectory(e, t, alignment="se3"), "rigid alignment, no scale"
    except ValueError:  # a straight or resting camera leaves the rotation free
        (aligned, _), words = align_trajectory(e, t, alignment="first"), "first poses made equal"
    time = predicted.time_s
    x = np.asarray(found.predicted if time is None else time[found.predicted], dtype=np.float64)
    axis = "frame" if time is None else "time (s)"
    # Seen in the axes of the true first camera, whatever way the truth's world lies.
    home = se3_inverse(t[0])
    paths = ((home @ poses)[:, :3, 3] for poses in (aligned, truth.camera_to_world))
    distance = np.linalg.norm(aligned[:, :3, 3] - t[:, :3, 3], axis=1)
    turned = np.rad2deg(rotation_error(e, t))
    charts = [
        *svg.trajectory_views(next(paths), truth=next(paths)),
        _error_chart(x, distance, axis, f"Position error ({words})", "metres"),
        _error_chart(x, turned, axis, "Rotation error", "degrees"),
    ]
    if predicted.focal_px is not None and truth.focal_px is not None and predicted.width and truth.width:
        ours = predicted.focal_px[found.predicted, 0] / predicted.width
        theirs = truth.focal_px[found.truth, 0] / truth.width
        with np.errstate(divide="ignore", invalid="ignore"):
            percent = 100.0 * (ours / theirs - 1.0)
        charts.append(_error_chart(x, percent, axis, "Focal error", "%", from_zero=False))
    return charts


def _error_chart(
    x: FloatArray, y: FloatArray, axis: str, title: str, unit: str, *, from_zero: bool = True
) -> str:
    return svg.chart(
        [svg.Line(x=x, y=y, style="b")], title=title, x_label=axis, y_label=unit, y_from_zero=from_zero
    )


# --- command --------------------------------------------------------------------------------------
