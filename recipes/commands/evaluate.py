"""`theodolite evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from ..command import Outcome
from .options import Sets, Times, Workers, help_metrics, one_of

if TYPE_CHECKING:
    from ...dataset.camera_files.match import Matching
    from ...dataset.evaluation.evaluate import Videos


def _explained() -> str:
    from ...dataset.evaluation.tables import explain_metrics

    return explain_metrics()


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What is compared."""

    predicted: Annotated[
        Path | None,
        typer.Argument(
            help="Dataset folder or owner/name on the hub, LeRobot export, split of SANA-WM-Bench, one clip's cameras "
            "(TUM, KITTI, 4x4 rows, EuRoC, COLMAP, transforms.json) or a folder of them. Left out beside --videos: "
            "cameras are recovered from the videos by the recipe `estimate`.",
            metavar="PRED",
        ),
    ] = None
    truth: Annotated[
        Path | None,
        typer.Argument(
            help="The same for the ground truth. Left out beside --videos: the paths that `theodolite generate` was "
            "asked to follow, from the records beside the videos.",
            metavar="TRUTH",
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="A second prediction; differences are tested clip by clip."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What is written, and where."""

    style: Annotated[
        str, typer.Option("--format", help="text, markdown, csv (the clips alone) or json (everything).")
    ] = "text"
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for clips.csv, means.csv and evaluation.json.")
    ] = None
    plots: Annotated[
        Path | None,
        typer.Option("--plots", help="Folder for figures: every score, and each clip's path and errors."),
    ] = None


Rows = Literal["auto", "source", "clip"]


@dataclass(frozen=True, kw_only=True)
class Poses(Times):
    """Which poses belong together."""

    offset: Annotated[
        str,
        typer.Option(
            "--t-offset", help="Seconds added to the predicted times; `start`: both begin at the same moment."
        ),
    ] = "0"
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate", help="Compare with the truth between its neighbours in time, not the nearest."
        ),
    ] = False
    rows: Annotated[
        Rows,
        typer.Option(
            "--rows",
            help="What row i of a file without times is, beside a dataset: source or clip frame i; auto: by count.",
        ),
    ] = "auto"
    first_frame: Annotated[
        int | None,
        typer.Option(
            "--first-frame", min=0, help="Number of a source's first frame in image names and numbered rows."
        ),
    ] = None

    def matching(self) -> Matching:
        """Checked.

        Raises:
            ValueError: an offset that is no number of seconds, or no such meaning of rows.
        """
        from ...dataset.camera_files.match import Matching, parse_offset

        return Matching(
            max_difference_s=self.max_difference,
            offset_s=parse_offset(self.offset),
            interpolate=self.interpolate,
            rows=one_of("--rows", self.rows, get_args(Rows)),
            first_frame=self.first_frame,
        )


@dataclass(frozen=True, kw_only=True)
class VideoFolders:
    """Generated videos and what they are held against."""

    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            help="Folder of generated videos, <clip_id>.mp4: scored where the camera returns to a place.",
        ),
    ] = None
    baseline_videos: Annotated[
        Path | None, typer.Option("--baseline-videos", help="The same for --baseline.")
    ] = None
    truth_videos: Annotated[
        Path | None,
        typer.Option(
            "--truth-videos",
            help="Folder of true videos, <clip_id>.mp4, where there are any: PSNR, SSIM and --perceptual beside them.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How cameras are recovered from videos."""

    recovered: Annotated[
        Path | None,
        typer.Option(
            "--recovered",
            help="Where cameras recovered from --videos go; default VIDEOS/recovered. Continued.",
        ),
    ] = None
    overrides: Sets = None
    workers: Workers = None

    def asked(self) -> bool:
        """Whether any of it was given."""
        return bool(self.recovered or self.overrides or self.workers is not None)


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """Scores of pictures."""

    quality: Annotated[
        str | None,
        typer.Option(
            "--quality",
            help="Scorer of image quality, for its decline from the first to the last 10 s: sharpness, or "
            "package.module:function of one RGB image.",
        ),
    ] = None
    perceptual: Annotated[
        str | None,
        typer.Option(
            "--perceptual",
            help="Distance of two images at returns: lpips, or package.module:function of two RGB images.",
        ),
    ] = None


def evaluate(
    sides: Sides,
    tables: Tables,
    poses: Poses,
    folders: VideoFolders,
    recovery: Recovery,
    scorers: Scorers,
    help_metrics: Annotated[bool, help_metrics("column", _explained)] = False,
) -> Outcome:
    """Measure predicted cameras, and videos that follow them, against ground truth, with confidence intervals.

    Example: theodolite evaluate runs/a truth/ --baseline runs/b --format markdown
    """
    from ...dataset.camera_files.load import load_cameras
    from ...dataset.evaluation.evaluate import evaluate
    from ...dataset.evaluation.plots import evaluation_plots
    from ...dataset.evaluation.tables import TableFormat, evaluation_tables, write_evaluation

    style: TableFormat = one_of("--format", tables.style, get_args(TableFormat))
    matching = poses.matching()
    predicted, true = _sides(sides, folders, recovery)
    ours, theirs = _videos(folders, scorers)
    true_cameras, cameras = load_cameras(true), load_cameras(predicted)
    evaluation = evaluate(cameras, true_cameras, videos=ours, matching=matching)
    other = None
    if sides.baseline is not None:
        other = evaluate(load_cameras(sides.baseline), true_cameras, videos=theirs, matching=matching)
    if tables.plots is not None:
        evaluation_plots(evaluation, tables.plots, predicted=cameras, truth=true_cameras)
    if tables.out is not None:
        write_evaluation(evaluation, tables.out, baseline=other)
    incomplete = bool(evaluation.only_truth or evaluation.failed)
    return evaluation_tables(evaluation, baseline=other, style=style), 1 if incomplete else 0


def _sides(sides: Sides, folders: VideoFolders, recovery: Recovery) -> tuple[Path, Path]:
    """Prediction and truth; what is left out is taken from the videos."""
    if sides.predicted is not None and sides.truth is not None:
        if recovery.asked():
            raise ValueError(
                "--recovered, --set and --workers are of cameras that are recovered: leave PRED out"
            )
        return sides.predicted, sides.truth
    from ..recover import sides_of_videos

    return sides_of_videos(
        sides.predicted,
        folders.videos,
        recovered=recovery.recovered,
        overrides=recovery.overrides or (),
        workers=recovery.workers,
    )


def _videos(folders: VideoFolders, scorers: Scorers) -> Sequence[Videos | None]:
    """The generated videos and the baseline's, with what scores them."""
    from ...dataset.evaluation.evaluate import Videos
    from ...dataset.metrics.image import load_scorer

    further = (scorers.quality, scorers.perceptual, folders.baseline_videos, folders.truth_videos)
    if folders.videos is None and any(further):
        raise ValueError("scorers and baseline videos need --videos, the folder of the generated videos")
    quality = load_scorer(scorers.quality) if scorers.quality else None
    perceptual = load_scorer(scorers.perceptual) if scorers.perceptual else None
    return [
        None
        if folder is None
        else Videos(folder=folder, truth=folders.truth_videos, quality=quality, perceptual=perceptual)
        for folder in (folders.videos, folders.baseline_videos)
    ]
