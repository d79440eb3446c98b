"""Compare cameras with the truth, clip by clip, and say how sure the averages are."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import svg
from .formats.sana import SPLITS, read_sana_bench
from .image_metrics import (
    ImagePairScorer,
    ImageScorer,
    RevisitPair,
    load_scorer,
    revisit_pairs,
    score_video,
)
from .metrics import (
    camera_control_error,
    focal_mape_percent,
    path_length,
    relative_pose_error,
    rotation_error,
    trajectory_error,
)
from .reading import open_dataset
from .trajectories import associate, read_trajectory

FloatArray = NDArray[np.floating]
TableFormat = Literal["text", "markdown", "csv"]
_SUFFIXES = (".txt", ".tum", ".kitti")
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")


@dataclass(frozen=True, kw_only=True)
class ClipCameras:
    """Cameras of one clip from whatever file.

    Attributes:
        frame_index: (F,) source frame of each pose.
        camera_to_world: (F, 4, 4).
        focal_px: (F, 2) for `width` x `height`, or None.
        width, height: stored size, 0 if unknown.
        time_s: (F,) seconds, of trajectory files that carry times.
        returns: pairs of poses at which the camera sees the same again, where a benchmark names them.
    """

    frame_index: NDArray[np.int64]
    camera_to_world: FloatArray
    focal_px: FloatArray | None = None
    width: int = 0
    height: int = 0
    time_s: FloatArray | None = None
    returns: tuple[RevisitPair, ...] | None = None


def load_cameras(path: str | Path) -> dict[str, ClipCameras]:
    """Cameras by clip id: of a dataset folder, of one split of SANA-WM-Bench, of a folder of trajectory files, or of
    one such file.

    Trajectory files (TUM, KITTI or 4x4 rows; `<clip_id>.txt`, `.tum`, `.kitti`) hold one pose per source
    frame from 0; two TUM files may have any times.

    Raises:
        ValueError: nothing readable there.
    """
    path = Path(path)
    if path.is_file():
        return {path.stem: _from_file(path)}
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "data").is_dir():
        result: dict[str, ClipCameras] = {}
        for row in open_dataset(path).rows():
            posed = row.pose_source != 0
            if not len(row.camera_to_world) or not posed.any():
                continue
            result[row.clip_id] = ClipCameras(
                frame_index=row.frame_index[posed].astype(np.int64),
                camera_to_world=row.camera_to_world[posed].astype(np.float64),
                focal_px=row.focal_px[posed].astype(np.float64),
                width=row.width,
                height=row.height,
            )
        return result
    split = next((split for split, folder in SPLITS.items() if folder == path.resolve().name), None)
    if split is not None:
        return {
            scene.clip.name: ClipCameras(
                frame_index=np.arange(len(scene.clip)),
                camera_to_world=scene.clip.camera_to_world,
                focal_px=scene.clip.focal_px,
                width=scene.clip.width,
                height=scene.clip.height,
                returns=scene.pairs,
            )
            for scene in read_sana_bench(path.resolve().parent, split=split)
        }
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    if not files:
        raise ValueError(
            f"{path}: neither a dataset (data/source=*/), nor a split of SANA-WM-Bench, nor trajectory files "
            f"({', '.join(_SUFFIXES)})"
        )
    return {p.stem: _from_file(p) for p in files}


def _from_file(path: Path) -> ClipCameras:
    read = read_trajectory(path)
    return ClipCameras(
        frame_index=np.arange(len(read)), camera_to_world=read.camera_to_world, time_s=read.time_s
    )


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """Scores of one clip; None where the data do not determine it (a straight path has no SE(3) alignment).

    Positions in metres, after the alignment named; `scale` is what Sim(3) alignment applies (1 is right);
    `rpe_*` over one clip frame, which no rigid alignment changes (`rpe_sim3_m`: after scaling);
    `rotation_rmse_deg` with the world rotation that fits all orientations best, `rotation_ape_deg` with the one that
    fits positions best (evo's, which a nearly straight path leaves free); RotErr, TransErr and CamMC with the paper's
    Sim(3) alignment and as NVIDIA's benchmark code computes them (`_bench`). Of videos that were made to follow the
    true cameras: likeness of the pictures where the camera returns to a place, and how much image quality declines
    from the first to the last ten seconds.
    """

    clip_id: str
    num_frames: int
    coverage: float
    path_length_m: float
    ate_none_m: float
    ate_se3_m: float | None
    ate_sim3_m: float | None
    scale: float | None
    rotation_rmse_deg: float
    rotation_ape_deg: float | None
    rpe_m: float | None
    rpe_sim3_m: float | None
    rpe_deg: float | None
    focal_mape_percent: float | None
    rot_err_deg: float | None
    trans_err_m: float | None
    cam_mc: float | None
    rot_err_bench_deg: float | None
    trans_err_bench: float | None
    cam_mc_bench: float | None
    revisit_psnr_db: float | None = None
    revisit_ssim: float | None = None
    revisit_lpips: float | None = None
    quality_drop: float | None = None


SCORES = tuple(f.name for f in fields(ClipScore) if f.name not in ("clip_id", "num_frames"))


def score_clip(clip_id: str, predicted: ClipCameras, truth: ClipCameras) -> ClipScore:
    """Scores of the frames that both have.

    Two trajectory files with times are matched by time (at most 10 ms apart), everything else by source
    frame.

    Raises:
        ValueError: no common frame.
    """
    if predicted.time_s is not None and truth.time_s is not None:
        i, j = associate(predicted.time_s, truth.time_s)
    else:
        _common, i, j = np.intersect1d(predicted.frame_index, truth.frame_index, return_indices=True)
    if not len(i):
        raise ValueError(
            f"clip {clip_id}: no common frame; prediction has source frames {predicted.frame_index.min()} to "
            f"{predicted.frame_index.max()}, truth {truth.frame_index.min()} to {truth.frame_index.max()}"
        )
    e, t = predicted.camera_to_world[i], truth.camera_to_world[j]
    none = trajectory_error(e, t, alignment="none")
    try:
        se3 = trajectory_error(e, t, alignment="se3")
        sim3 = trajectory_error(e, t, alignment="sim3")
        control = camera_control_error(e, t, variant="paper")
    except ValueError:  # fewer than 3 poses, or centres on a line: these scores do not exist
        se3 = sim3 = control = None
    several = len(i) > 1
    rpe = relative_pose_error(e, t) if several else None
    bench = camera_control_error(e, t, variant="bench") if several else None
    focal = None
    if predicted.focal_px is not None and truth.focal_px is not None:
        # Sizes may differ between the two: compare focal lengths in units of the image.
        size_e, size_t = (np.array([c.width, c.height], dtype=np.float64) for c in (predicted, truth))
        if (size_e > 0).all() and (size_t > 0).all():
            focal = focal_mape_percent(predicted.focal_px[i] / size_e, truth.focal_px[j] / size_t)
    return ClipScore(
        clip_id=clip_id,
        num_frames=len(i),
        coverage=len(i) / len(predicted.frame_index),
        path_length_m=path_length(t),
        ate_none_m=none.ate_rmse_m,
        ate_se3_m=se3.ate_rmse_m if se3 else None,
        ate_sim3_m=sim3.ate_rmse_m if sim3 else None,
        scale=sim3.scale if sim3 else None,
        rotation_rmse_deg=float(np.rad2deg(np.sqrt(np.mean(rotation_error(e, t) ** 2)))),
        rotation_ape_deg=float(np.rad2deg(se3.rotation_rmse_rad)) if se3 else None,
        rpe_m=rpe.translation_rmse_m if rpe else None,
        rpe_sim3_m=relative_pose_error(e, t, scale=sim3.scale).translation_rmse_m if sim3 else None,
        rpe_deg=rpe.rotation_rmse_deg if rpe else None,
        focal_mape_percent=focal,
        rot_err_deg=control.rot_err_deg if control else None,
        trans_err_m=control.trans_err if control else None,
        cam_mc=control.cam_mc if control else None,
        rot_err_bench_deg=bench.rot_err_deg if bench else None,
        trans_err_bench=bench.trans_err if bench else None,
        cam_mc_bench=bench.cam_mc if bench else None,
    )


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
    """Scores of all clips that prediction and truth share, and the ids that only one of them has."""

    clips: tuple[ClipScore, ...]
    only_predicted: tuple[str, ...]
    only_truth: tuple[str, ...]

    def values(self, score: str) -> dict[str, float]:
        """Score by clip id, where it exists."""
        pairs = ((c.clip_id, getattr(c, score)) for c in self.clips)
        return {clip_id: float(v) for clip_id, v in pairs if v is not None}

    def summary(self) -> dict[str, MeanWithInterval]:
        """Mean and 95 % bootstrap interval of each score that any clip has."""
        return {s: bootstrap_mean(list(v.values())) for s in SCORES if (v := self.values(s))}


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Generated videos to score beside their cameras.

    Attributes:
        folder: holds `<clip_id>.mp4` (or another video suffix), one frame for each true camera; clips without a file
            are left unscored.
        quality: scorer of one image, for the decline over a minute; None: not measured.
        perceptual: distance of two images, for returns (the benchmark's is `lpips_alex`); None: not measured.
    """

    folder: Path
    quality: ImageScorer | None = None
    perceptual: ImagePairScorer | None = None

    def find(self, clip_id: str) -> Path | None:
        """The clip's video, or None."""
        return next((p for s in _VIDEO_SUFFIXES if (p := self.folder / f"{clip_id}{s}").is_file()), None)


def _with_video(score: ClipScore, truth: ClipCameras, videos: Videos) -> ClipScore:
    path = videos.find(score.clip_id)
    if path is None:
        return score
    pairs = truth.returns if truth.returns is not None else revisit_pairs(truth.camera_to_world)
    seen = score_video(score.clip_id, path, pairs, quality=videos.quality, perceptual=videos.perceptual)
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
) -> Evaluation:
    """Scores of every clip that both have, with those of its video if `videos` has one.

    Raises:
        ValueError: no clip in common (except that a single clip on either side is compared whatever its
        name).
    """
    if len(predicted) == 1 and len(truth) == 1:
        ((clip_id, p),), (t,) = predicted.items(), truth.values()
        score = score_clip(clip_id, p, t)
        score = score if videos is None else _with_video(score, t, videos)
        return Evaluation(clips=(score,), only_predicted=(), only_truth=())
    common = sorted(predicted.keys() & truth.keys())
    if not common:
        raise ValueError(
            f"no clip id in common: prediction has {_some(predicted)}, truth has {_some(truth)}; name files by clip id"
        )
    scores = (score_clip(c, predicted[c], truth[c]) for c in common)
    if videos is not None:
        scores = (_with_video(score, truth[score.clip_id], videos) for score in scores)
        if not any(videos.find(c) for c in common):
            raise ValueError(
                f"{videos.folder}: holds no video of a clip that both have, e.g. {common[0]}.mp4"
            )
    return Evaluation(
        clips=tuple(scores),
        only_predicted=tuple(sorted(predicted.keys() - truth.keys())),
        only_truth=tuple(sorted(truth.keys() - predicted.keys())),
    )


def _some(ids: Mapping[str, ClipCameras]) -> str:
    names = sorted(ids)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, style: TableFormat) -> str:
    """Table as aligned text, Markdown or CSV."""
    if style == "csv":
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([header, *rows])
        return stream.getvalue().rstrip("\n")
    if style == "markdown":
        lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
        return "\n".join(lines)
    if style != "text":
        raise ValueError(f"table format {style!r}: expected text, markdown or csv")
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *rows)
    )


def evaluation_tables(
    evaluation: Evaluation, *, baseline: Evaluation | None = None, style: TableFormat = "text"
) -> str:
    """Clip table, means with intervals, and the paired comparison with a baseline if given."""
    shown = [s for s in SCORES if any(getattr(c, s) is not None for c in evaluation.clips)]
    clip_rows = [
        [c.clip_id, str(c.num_frames), *("-" if (v := getattr(c, s)) is None else f"{v:.5g}" for s in shown)]
        for c in evaluation.clips
    ]
    blocks = [format_table(["clip_id", "num_frames", *shown], clip_rows, style=style)]
    means = [
        [s, f"{m.mean:.5g}", f"{m.low:.5g}", f"{m.high:.5g}", str(m.num_clips)]
        for s, m in evaluation.summary().items()
    ]
    blocks.append(
        format_table(["mean over clips", "mean", "95% low", "95% high", "clips"], means, style=style)
    )
    if baseline is not None:
        rows: list[list[str]] = []
        for s in shown:
            ours, theirs = evaluation.values(s), baseline.values(s)
            common = sorted(ours.keys() & theirs.keys())
            if len(common) < 2:
                continue
            test = paired_difference([ours[c] for c in common], [theirs[c] for c in common])
            d = test.difference
            rows.append(
                [
                    s,
                    f"{d.mean:+.5g}",
                    f"{d.low:+.5g}",
                    f"{d.high:+.5g}",
                    f"{test.p_value:.3g}",
                    str(d.num_clips),
                ]
            )
        blocks.append(
            format_table(
                ["minus baseline", "difference", "95% low", "95% high", "p (Wilcoxon)", "clips"],
                rows,
                style=style,
            )
        )
    return "\n\n".join(blocks)


def evaluation_plots(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """One SVG per score: share of clips at or below each value. Returns the files written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    style = "<style>svg{--ink:#1c2126;--faint:#9aa4ad;--a:#1668b8;background:#fff}" + svg.STYLE + "</style>"
    for score in SCORES:
        values = np.sort(list(evaluation.values(score).values()))
        if not values.size:
            continue
        share = 100.0 * np.arange(1, len(values) + 1) / len(values)
        drawing = svg.chart(
            [svg.Line(x=values, y=share), svg.Dots(x=values, y=share)],
            title=f"{score}: share of clips at or below",
            x_label=score,
            y_label="% of clips",
            y_from_zero=True,
        )
        head, rest = drawing.split(">", 1)
        target = folder / f"{score}.svg"
        target.write_text(f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n', encoding="utf-8")
        written.append(target)
    return written


def run_evaluate(
    predicted: str | Path,
    truth: str | Path,
    *,
    baseline: str | Path | None = None,
    style: TableFormat = "text",
    plots: str | Path | None = None,
    videos: str | Path | None = None,
    baseline_videos: str | Path | None = None,
    quality: str | None = None,
    perceptual: str | None = None,
) -> tuple[str, int]:
    """Tables for the terminal and exit code: 0, or 1 if some truth clips have no prediction (they are
    listed).

    Args:
        videos, baseline_videos: folders of generated videos; see `Videos`.
        quality, perceptual: names of scorers; see `image_metrics.load_scorer`.
    """
    if videos is None and (quality or perceptual or baseline_videos):
        raise ValueError("scorers and baseline videos need --videos, the folder of the generated videos")
    scorers = {
        "quality": load_scorer(quality) if quality else None,
        "perceptual": load_scorer(perceptual) if perceptual else None,
    }
    ours, theirs = (
        None if folder is None else Videos(folder=Path(folder), **scorers)
        for folder in (videos, baseline_videos)
    )
    true_cameras = load_cameras(truth)
    evaluation = evaluate(load_cameras(predicted), true_cameras, videos=ours)
    other = evaluate(load_cameras(baseline), true_cameras, videos=theirs) if baseline is not None else None
    text = evaluation_tables(evaluation, baseline=other, style=style)
    if plots is not None:
        evaluation_plots(evaluation, plots)
    if evaluation.only_truth:
        missing = ", ".join(evaluation.only_truth)
        text += f"\n\n{len(evaluation.only_truth)} clips of the truth have no prediction: {missing}"
    return text, 1 if evaluation.only_truth else 0
