"""An evaluation as figures: every score over clips, and each clip's path and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import svg
from ..arrays import FloatArray
from ..camera_files.match import Match
from ..camera_files.record import ClipCameras
from ..cameras.transforms import se3_inverse
from ..metrics.trajectory import (
    align_trajectory,
    rotation_error,
)
from .record import Evaluation
from .score import METRICS

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
