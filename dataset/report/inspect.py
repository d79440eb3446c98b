"""A dataset as text: a table of its clips, or one clip in full."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..escape import for_line, for_terminal
from ..media.read import media_path
from ..reading import ClipDataset, open_dataset
from ..reasons import find_reason, status_of
from ..rows import ABSENT_CONFIDENCE, Row, why_no_confidence
from ..schema import COLUMNS
from ..text_table import text_table

# ---------------------------------------------------------------------------------------------------- text


def inspect_text(
    path: str | Path, *, clip_id: str | None = None, limit: int = 200, media_root: Path | None = None
) -> str:
    """Text for the terminal: one line per clip (the first `limit`) and the counts, or everything about one
    clip.

    Args:
        media_root: folder that media paths are relative to, if it is known: what is looked for where is said.
    Raises:
        ValueError: nothing to read there, or no such clip.
    """
    clips = open_dataset(path)
    if clip_id is not None:
        row = row_of(clips, clip_id)
        text = _clip_text(row)
        if media_root is None or "://" in row.media:
            return text
        try:
            place = media_path(row, media_root)
        except ValueError as error:
            return f"{text}\n  {for_line(str(error))}"
        there = "" if place.exists() else ": not there"
        return f"{text}\n  media are looked for at {for_line(str(place))}{there}"
    text = _table_text(clips, limit)
    if media_root is None:
        return text
    return f"{text}\nmedia are looked for in {media_root}{'' if media_root.is_dir() else ': no such folder'}"


_MOST_COMPARED = 5000
"""Ids that one which is not there is compared with, in half a second; of more there are too many that are close."""


def row_of(clips: ClipDataset, clip_id: str) -> Row:
    try:
        return clips.row(clip_id)
    except KeyError as error:
        ids = clips.to_table(["clip_id"])["clip_id"].to_pylist()
        close = difflib.get_close_matches(clip_id, ids, n=3) if len(ids) <= _MOST_COMPARED else []
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"{error.args[0]}{meant}") from None


_OVERVIEW = (
    "clip_id",
    "source",
    "verdict",
    "num_frames",
    "width",
    "height",
    "focal_model",
    "fov_x_min_rad",
    "fov_x_max_rad",
    "path_length_m",
    "metres_per_unit",
    "scale_mad_log",
    "reprojection_rms_px",
    "reasons",
)


def _table_text(clips: ClipDataset, limit: int) -> str:
    header = (
        "clip",
        "source",
        "status",
        "frames",
        "size",
        "focal",
        "fov x deg",
        "path m",
        "m/unit",
        "mad",
        "px",
        "reasons",
    )
    lines: list[list[str]] = []
    for c in clips.head(_OVERVIEW, limit).to_pylist():
        low, high = c["fov_x_min_rad"], c["fov_x_max_rad"]
        fov = (
            "-"
            if low is None
            else f"{np.rad2deg(low):.1f}" + ("" if high - low < 1e-3 else f"-{np.rad2deg(high):.1f}")
        )
        lines.append(
            [
                for_line(c["clip_id"]),
                for_line(c["source"]),
                status_of(c["verdict"], c["reasons"]),
                str(c["num_frames"]),
                f"{c['width']}x{c['height']}",
                for_line(c["focal_model"]),
                fov,
                _maybe(c["path_length_m"], ".2f"),
                _maybe(c["metres_per_unit"], ".4g"),
                _maybe(c["scale_mad_log"], ".3f"),
                _maybe(c["reprojection_rms_px"], ".2f"),
                for_line(",".join(dict.fromkeys(c["reasons"]))),
            ]
        )
    text = text_table(header, lines)
    tally = clips.tally()
    if tally.done > limit:
        text += f"\n... and {tally.done - limit} more"
    counts = {"accepted": tally.accepted, "failed": tally.num_failed, "rejected": tally.rejected.total()}
    return f"{text}\n{tally.done} clips: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)


def _maybe(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _plain(value: Any) -> str:
    """A value of a column without Python's brackets: numbers in six figures, `name value` of what has names."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, tuple | list) else str(value)


def _clip_text(row: Row) -> str:
    lines = [f"{row.clip_id}  {status_of(row.verdict, row.reasons)}"]
    for reason, detail in zip(row.reasons, row.reason_details, strict=True):
        lines.append(f"  {reason}: {detail}")
        if (entry := find_reason(reason)) is not None:
            lines += [f"    {entry.meaning}", f"    {entry.remedy}"]
    width = max(len(c.name) for c in COLUMNS)
    for column in COLUMNS:
        if column.shape or column.name in (
            "gates",
            "reasons",
            "reason_details",
            "error",
            "confidence_absent",
        ):
            continue
        value = getattr(row, column.name)
        if column.name == "confidence" and value is None:
            code = row.confidence_absent or why_no_confidence(
                networks=bool(row.weights), cameras=len(row.camera_to_world) > 0
            )
            why = ABSENT_CONFIDENCE.get(code, code)
            lines.append(f"  {column.name.ljust(width)}  none: {why}")
        if value in (None, (), ""):
            continue
        shown = _plain(value)
        unit = "" if column.unit in ("1", "-") else f" {column.unit}"
        lines.append(f"  {column.name.ljust(width)}  {shown}{unit}")
    for gate in row.gates:
        low, high = (
            ("-inf" if gate.lower is None else f"{gate.lower:g}"),
            ("inf" if gate.upper is None else f"{gate.upper:g}"),
        )
        value = "missing" if gate.value is None else f"{gate.value:.4g}"
        lines.append(
            f"  gate {gate.name.ljust(width - 5)}  {value} in [{low}, {high}] {gate.unit}: "
            f"{'pass' if gate.passed else 'FAIL'}"
        )
    if len(row.camera_to_world):
        lines.append("  frame  source  time s    x m      y m      z m      fx px    fy px")
        for i in sorted(
            {0, row.num_frames // 4, row.num_frames // 2, 3 * row.num_frames // 4, row.num_frames - 1}
        ):
            x, y, z = row.camera_to_world[i, :3, 3]
            fx, fy = row.focal_px[i]
            lines.append(
                f"  {i:5d}  {row.frame_index[i]:6d}  {row.time_s[i]:7.3f}  {x:7.3f}  {y:7.3f}  {z:7.3f}  "
                f"{fx:7.1f}  {fy:7.1f}"
            )
    text = "\n".join(map(for_line, lines))
    return f"{text}\n{for_terminal(row.error.rstrip())}" if row.error else text
