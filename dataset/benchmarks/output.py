"""A benchmark's findings as files and tables: Parquet, JSON, text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..evaluation.tables import format_table
from .protocols import PROTOCOLS, SetName
from .record import STATUSES, Figure, SequenceScore, figure

TableStyle = Literal["text", "markdown", "json"]
_MAX_DETAIL = 100
_MAX_WITHOUT_TRUTH = 10
"""Sequences without a published truth that a table lists; the files list all."""
SEQUENCES, FRAMES, RECORD = "sequences.parquet", "frames.parquet", "benchmark.json"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a run of a benchmark found.

    Attributes:
        name, layout: of the set, and which of its forms was read (`sintel-final`, `sintel-clean`).
        scores: of every sequence, in order of their ids.
        input: what the run was given: `pixels`, `pixels and depth`, or whose predictions were scored.
        command: as it can be typed again.
        surroundings: versions, machine, date.
        submission: counts of the file for the set's server, if one was written.
        notes: what had to be decided.
    """

    name: SetName
    layout: str
    scores: tuple[SequenceScore, ...]
    input: str
    command: str
    surroundings: Mapping[str, Any]
    submission: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    def figures(self, *, with_rejected: bool = False) -> dict[str, Figure]:
        """Figures of the set by metric."""
        return {
            m.name: figure(m, self.scores, with_rejected=with_rejected) for m in PROTOCOLS[self.name].metrics
        }


def _plain(text: str) -> str:
    """A text with names of files that are no UTF-8, as it can be stored."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_findings(found: Findings, out: Path) -> None:
    """Write `sequences.parquet` (a row a sequence), `frames.parquet` (a row a frame) and `benchmark.json` into a
    folder."""
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"command": _plain(found.command), "benchmark": found.name, "input": _plain(found.input)}
    pq.write_table(_sequences(found).replace_schema_metadata(metadata), out / SEQUENCES, compression="zstd")
    frames = [
        pa.table({"sequence": [s.sequence] * len(next(iter(s.frames.values()))), **s.frames})
        for s in found.scores
        if s.frames
    ]
    if frames:
        table = pa.concat_tables(frames).replace_schema_metadata(metadata)
        pq.write_table(table, out / FRAMES, compression="zstd")
    else:
        (out / FRAMES).unlink(missing_ok=True)  # of a run before
    (out / RECORD).write_text(json.dumps(record(found), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _sequences(found: Findings) -> pa.Table:
    metrics = PROTOCOLS[found.name].metrics
    counts = sorted({name for score in found.scores for name in score.counts})
    columns: dict[str, pa.Array] = {
        "sequence": pa.array([s.sequence for s in found.scores], pa.string()),
        "status": pa.array([s.status for s in found.scores], pa.string()),
        "reasons": pa.array([list(s.reasons) for s in found.scores], pa.list_(pa.string())),
        "detail": pa.array([_plain(s.detail) for s in found.scores], pa.string()),
        **{c: pa.array([s.counts.get(c) for s in found.scores], pa.int64()) for c in counts},
        **{m.name: pa.array([s.values.get(m.name) for s in found.scores], pa.float64()) for m in metrics},
    }
    return pa.table(columns)


def record(found: Findings) -> dict[str, Any]:
    """What `benchmark.json` holds."""
    protocol = PROTOCOLS[found.name]

    def plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
        return {name: asdict(value) for name, value in figures.items()}

    return {
        "benchmark": found.name,
        "title": protocol.title,
        "layout": found.layout,
        "protocol": protocol.source,
        "input": _plain(found.input),
        "command": _plain(found.command),
        **found.surroundings,
        "status": dict(Counter(s.status for s in found.scores)),
        "figures": plain(found.figures()),
        "figures_with_rejected": plain(found.figures(with_rejected=True)),
        "metrics": {
            m.name: {"unit": m.unit, "better": m.better, "meaning": m.meaning} for m in protocol.metrics
        },
        "submission": found.submission,
        "notes": list(found.notes),
        "sequences": [
            {
                "sequence": s.sequence,
                "status": s.status,
                "reasons": list(s.reasons),
                "detail": _plain(s.detail),
                "counts": dict(s.counts),
                "values": {k: v for k, v in s.values.items() if math.isfinite(v)},
            }
            for s in found.scores
        ],
    }


def tables(found: Findings, *, style: TableStyle = "text") -> str:
    """Sequences, figures of the set, and what became of those that are not scored.

    Raises:
        ValueError: another style.
    """
    if style == "json":
        return json.dumps(record(found), indent=1, allow_nan=False)
    if style not in ("text", "markdown"):
        raise ValueError(f"--format {style}: use text, markdown or json")
    protocol = PROTOCOLS[found.name]
    shown = [m for m in protocol.metrics if m.name in protocol.main]
    hidden = [s for s in found.scores if s.status == "no_truth"]
    hidden = hidden if len(hidden) > _MAX_WITHOUT_TRUTH else []
    listed = [s for s in found.scores if not hidden or s.status != "no_truth"]
    rows = [
        [s.sequence, s.status, _count(s), *(_number(s.values.get(m.name)) for m in shown)] for s in listed
    ]
    parts = [
        f"{protocol.title} ({found.layout}) from {_plain(found.input)}; {protocol.source}",
        format_table(["sequence", "status", "frames", *(m.name for m in shown)], rows, style=style),
        format_table(*_figures(found), style=style),
    ]
    others = [f"  {_why(s)}" for s in listed if s.status != "scored"]
    others += [f"  {len(hidden)} sequences without a published truth"] if hidden else []
    parts += ["\n".join(["not in the first figures:", *others])] if others else []
    if found.submission:
        words = ", ".join(f"{key} {value}" for key, value in found.submission.items())
        parts.append(f"submission: {words}")
    parts += [f"note: {note}" for note in found.notes]
    return "\n\n".join(parts)


def _figures(found: Findings) -> tuple[list[str], list[list[str]]]:
    accepted, every = found.figures(), found.figures(with_rejected=True)
    rows = []
    for metric in PROTOCOLS[found.name].metrics:
        a, b = accepted[metric.name], every[metric.name]
        rows.append([metric.name, metric.unit, *_cells(a), *_cells(b)])
    header = ["figure", "unit", "value", "median", "sequences", "with rejected", "median", "sequences"]
    return header, rows


def _cells(value: Figure) -> list[str]:
    absent = f" ({value.num_absent} absent)" if value.num_absent else ""
    return [_number(value.value), _number(value.median), f"{value.num} of {value.of}{absent}"]


def _count(score: SequenceScore) -> str:
    return str(score.counts["num_frames"]) if "num_frames" in score.counts else "-"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _why(score: SequenceScore) -> str:
    words = ", ".join(score.reasons)
    whole = _plain(score.detail)
    detail = whole if len(whole) <= _MAX_DETAIL or not words else f"{whole[:_MAX_DETAIL]}..."
    return f"{score.sequence}: {score.status}: " + ": ".join(part for part in (words, detail) if part)


def explain(names: Sequence[SetName]) -> str:
    """Every status and figure with its meaning."""
    rows = [["status", name, "", meaning] for name, meaning in STATUSES.items()]
    rows += [[name, m.name, m.unit, m.meaning] for name in names for m in PROTOCOLS[name].metrics]
    return format_table(["benchmark", "name", "unit", "meaning"], rows, style="text")
