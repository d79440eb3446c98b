"""An evaluation as tables: text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..text_table import markdown_table, text_table
from .bootstrap import paired_difference
from .record import Evaluation, names_text
from .score import METRICS, SCORES

TableFormat = Literal["text", "markdown", "csv", "json"]
_CSV_DIGITS = 9
_MAX_LISTED = 20
"""Failed clips described below the tables."""
_CLIP_COLUMNS = {
    "clip_id": "Clip.",
    "num_frames": "Pairs of poses compared.",
    "num_truth": "Poses of the truth.",
    "matched_by": "What told which poses belong together: `name` of the image, source `frame`, `image number`, "
    "`time`, `source frame` or `clip frame` of each row, `row`; with what was assumed.",
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
        return markdown_table(header, rows)
    if style != "text":
        raise ValueError(f"table format {style!r}: expected text, markdown or csv (json is no table)")
    words = [i == 0 or any(re.match("[a-z]", row[i]) for row in rows) for i in range(len(header))]
    return text_table(header, rows, left=words)


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
            rows.append([s, *numbers, str(m.num_clips), str(expected), names_text(missing), which])
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
                names_text(missing),
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
        few = names_text(evaluation.only_predicted)
        lines.append(f"{len(evaluation.only_predicted)} clips of the prediction have no truth: {few}")
    if evaluation.rejected:
        few = names_text(sorted(evaluation.rejected))
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
