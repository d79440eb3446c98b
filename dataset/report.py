"""What a dataset looks like: `inspect` as text, and a report as one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import svg
from .arrays import FloatArray
from .cameras.intrinsics import fov_from_focal
from .clip_cameras import ClipCameras, Matching, frames_of_row, match, read_clip
from .escape import for_line, for_terminal
from .gates import GATE_MEANINGS, gate_margin
from .media.read import iterate_frames, media_path
from .metrics.trajectory import (
    TrajectoryError,
    align_trajectory,
    focal_mape_percent,
    relative_pose_error,
    rotation_error,
    trajectory_error,
)
from .page import SortKey, data_attributes, page, toolbar
from .reading import ClipDataset, open_dataset
from .reasons import Status, find_reason, status_of
from .rows import ABSENT_CONFIDENCE, Row, why_no_confidence
from .schema import COLUMNS


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of a clip, one entry per clip frame; NaN where a frame has none.

    Attributes:
        camera_to_world: (F, 4, 4) metres, any world frame; or None.
        focal_px: (F, 2) for the stored size; or None.
        problem: why truth that should be there is not.
    """

    camera_to_world: FloatArray | None = None
    focal_px: FloatArray | None = None
    problem: str | None = None


Thumbnail = Callable[[Row], bytes | None]
"""JPEG bytes of a clip, or None if its media cannot be shown."""
Pictures = Callable[[Row, Sequence[int]], dict[int, bytes]]
"""JPEG bytes by clip frame of those wanted that can be shown."""


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
        row = _row(clips, clip_id)
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


def _row(clips: ClipDataset, clip_id: str) -> Row:
    try:
        return clips.row(clip_id)
    except KeyError as error:
        raise ValueError(str(error.args[0])) from None


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
    header = [
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
    ]
    lines: list[list[str]] = [header]
    table = clips.to_table(_OVERVIEW)
    for c in table.slice(0, limit).to_pylist():
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
                for_line(",".join(c["reasons"])),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    if table.num_rows > limit:
        text += f"\n... and {table.num_rows - limit} more"
    counts = Counter(map(status_of, table["verdict"].to_pylist(), table["reasons"].to_pylist()))
    return f"{text}\n{table.num_rows} clips: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))


def _maybe(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _clip_text(row: Row) -> str:
    lines = [f"{row.clip_id}  {status_of(row.verdict, row.reasons)}"]
    for reason, detail in zip(row.reasons, row.reason_details, strict=True):
        lines.append(f"  {reason}: {detail}")
        if (entry := find_reason(reason)) is not None:
            lines += [f"    {entry.meaning}", f"    {entry.remedy}"]
    width = max(len(c.name) for c in COLUMNS)
    for column in COLUMNS:
        if column.per_frame or column.name in (
            "gates",
            "reasons",
            "reason_details",
            "error",
            "scale_frame",
            "scale_value",
            "confidence_absent",
        ):
            continue
        value = getattr(row, column.name)
        if column.name == "confidence" and value is None:
            code = row.confidence_absent or why_no_confidence(row)
            why = ABSENT_CONFIDENCE.get(code, code)
            lines.append(f"  {column.name.ljust(width)}  none: {why}")
        if value in (None, (), ""):
            continue
        shown = (
            f"{value:.6g}"
            if isinstance(value, float)
            else dict(value)
            if isinstance(value, Mapping)
            else value
        )
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


# ---------------------------------------------------------------------------------------------------- HTML

FEW_CLIPS = 8
"""Up to here clips come first and distributions, small, last."""
_MAX_LISTED = 5000
"""Clips in the table of all clips: a page of hundreds of thousands would not open."""
_NUM_PICTURES = 5
_NO_PICTURES = (
    "No pictures: no clip's media were found. Their paths are relative to the source in the recipe beside the dataset, "
    "or to the current folder where there is none."
)


def write_report(
    path: str | Path,
    html_path: str | Path | None = None,
    *,
    truth: Mapping[str, Truth] | None = None,
    thumbnail: Thumbnail | None = None,
    pictures: Pictures | None = None,
    max_clips: int = 60,
    clip_ids: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of a dataset folder, or of single clips, and return its path (`<path>/report.html` by
    default, for a Parquet file the one beside it).

    The head counts verdicts and reasons, lists the clips and shows distributions; below, clips in detail: all of them,
    or, beyond `max_clips`, those with truth, the worst and the best by reprojection error and scale spread, and
    rejected ones. Of few clips the details come first.

    Args:
        clip_ids: only these clips, without the head.
        truth: ground truth by clip id, overlaid where given; only that of clips in detail is asked for.
        thumbnail: gives a JPEG for a clip; see `thumbnail_from_media`.
        pictures: gives several along a clip; see `pictures_from_media`.
        notes: sentences for the head of the page.
    Raises:
        ValueError: nothing to read there, or no such clip.
    """
    clips = open_dataset(path)
    beside = Path(path).with_suffix(".html") if Path(path).is_file() else Path(path) / "report.html"
    target = beside if html_path is None else Path(html_path)
    truth = truth or {}
    body: list[str] = []
    after: list[str] = []
    if clip_ids is None:
        chosen, total = _choose_clips(clips, truth, max_clips), len(clips)
        num_chosen = sum(map(len, chosen.values()))
        few = total <= FEW_CLIPS
        overview = _Overview.of(clips)
        body.extend([overview.head(), *_notes(notes), overview.reasons()])
        if num_chosen > 1:
            body.append(toolbar(overview.statuses(), _SORT_KEYS))
        if not few:
            body.extend(
                [overview.listing({c for ids in chosen.values() for c in ids}), overview.distributions()]
            )
        else:
            after.append(overview.distributions(small=True))
        if num_chosen < total:
            body.append(f'<p class="note">{num_chosen} of {total} clips in detail.</p>')
    else:
        chosen = {"": list(clip_ids)}
        body.extend(_notes(notes))
    title = Path(path).name if clip_ids is None else ", ".join(clip_ids)
    for heading, ids in chosen.items():
        if not ids:
            continue
        body.append(f'<div class="group">{f"<h2>{heading}</h2>" if heading else ""}')
        body.extend(_clip_section(_row(clips, c), truth.get(c), thumbnail, pictures) for c in ids)
        body.append("</div>")
    if pictures is not None and any(chosen.values()) and not any("<img " in part for part in body):
        body.insert(0 if clip_ids is not None else 1, "".join(_notes([_NO_PICTURES])))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(f"Camera annotations: {title}", [*body, *after]), encoding="utf-8")
    return target


def _notes(notes: Sequence[str]) -> list[str]:
    return [f'<p class="note">{html.escape(note)}</p>' for note in notes]


def pictures_from_media(root: str | Path = ".", *, width: int = 220) -> Pictures:
    """Pictures of local media at clip frames, as the row counts them; relative media lie below `root`."""

    def read(row: Row, positions: Sequence[int]) -> dict[int, bytes]:
        import cv2

        found: dict[int, bytes] = {}
        size = (max(1, round(row.height * width / row.width)), width)
        try:
            for position, rgb in zip(
                positions, iterate_frames(row, root, positions=positions, size=size), strict=True
            ):
                bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
                ok, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])
                if ok:
                    found[position] = jpeg.tobytes()
        except (ValueError, OSError):  # media gone, or shorter than it was: what was read so far is shown
            pass
        return found

    def pictures(row: Row, positions: Sequence[int]) -> dict[int, bytes]:
        if row.width <= 0 or row.media_kind == "rendered" or not _media_there(row, root):
            return {}
        found = read(row, positions)
        for position in positions if len(found) < len(positions) else ():
            if position not in found:  # one missing frame costs itself
                found |= read(row, [position])
        return found

    return pictures


def _media_there(row: Row, root: str | Path) -> bool:
    try:
        return media_path(row, root).exists()
    except ValueError:  # it leads elsewhere: not to be looked at
        return False


def thumbnail_from_media(root: str | Path = ".", *, width: int = 220) -> Thumbnail:
    """Thumbnails of a clip's first frame from local media, upright; relative media lie below `root`."""
    pictures = pictures_from_media(root, width=width)
    return lambda row: pictures(row, [0]).get(0) if row.num_frames else None


def _choose_clips(clips: ClipDataset, truth: Mapping[str, Truth], max_clips: int) -> dict[str, list[str]]:
    """Clips to show in detail by heading, each once."""
    table = clips.to_table(["clip_id", "verdict", "reprojection_rms_px", "scale_mad_log"]).to_pylist()
    if len(table) <= max_clips:
        return {"Clips": [c["clip_id"] for c in table]}
    accepted = [c for c in table if c["verdict"] == "accepted"]

    def badness(c: dict) -> float:
        return (c["reprojection_rms_px"] or 0.0) * (1.0 + 10.0 * (c["scale_mad_log"] or 0.0))

    by_badness = [c["clip_id"] for c in sorted(accepted, key=badness, reverse=True)]
    share = max(1, max_clips // 3)
    groups = {
        "Clips with ground truth": [c["clip_id"] for c in table if c["clip_id"] in truth],
        "Worst accepted clips": by_badness[:share],
        "Best accepted clips": by_badness[: -share - 1 : -1],
        "Rejected and failed clips": [c["clip_id"] for c in table if c["verdict"] != "accepted"],
    }
    chosen: dict[str, list[str]] = {}
    picked: set[str] = set()
    for heading, ids in groups.items():
        new = [c for c in ids if c not in picked][: max_clips - len(picked)]
        chosen[heading] = new
        picked.update(new)
    return chosen


_OVERVIEW_COLUMNS = (
    "clip_id",
    "source",
    "verdict",
    "reasons",
    "num_frames",
    "fps",
    "fov_x_min_rad",
    "fov_x_max_rad",
    "path_length_m",
    "scale_mad_log",
    "reprojection_rms_px",
    "confidence",
    "stand_in",
)
_SORT_KEYS = (
    SortKey(key="clip", label="clip"),
    SortKey(key="px", label="reprojection error, largest first", up=False),
    SortKey(key="mad", label="scale spread, largest first", up=False),
    SortKey(key="path", label="path length, longest first", up=False),
    SortKey(key="ate", label="error against the truth, largest first", up=False),
    SortKey(key="margin", label="margin of the gates, least first"),
    SortKey(key="confidence", label="confidence, least first"),
)


@dataclass(frozen=True, kw_only=True)
class _Overview:
    """Per-clip columns of the whole dataset, for the head of the page."""

    where: str
    table: pa.Table
    status: list[Status]

    @classmethod
    def of(cls, clips: ClipDataset) -> _Overview:
        table = clips.to_table(_OVERVIEW_COLUMNS)
        status: list[Status] = [
            status_of(v, r)
            for v, r in zip(table["verdict"].to_pylist(), table["reasons"].to_pylist(), strict=True)
        ]
        return cls(where=clips.path, table=table, status=status)

    def statuses(self) -> list[Status]:
        return [s for s in get_args(Status) if s in self.status]

    def head(self) -> str:
        """Title, and the counts at a glance."""
        frames = self.table["num_frames"].to_numpy()
        fps = self.table["fps"].to_numpy(zero_copy_only=False).astype(np.float64)
        seconds = float(np.nansum(frames / np.where(fps > 0, fps, np.nan)))
        metres = float(np.nansum(self._numbers("path_length_m")))
        duration = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
        cards = [(f"{len(self.status):,}", "clips" if len(self.status) != 1 else "clip")]
        cards += [(f"{self.status.count(s):,}", f'<span class="{s}">{s}</span>') for s in self.statuses()]
        cards += [
            (f"{int(frames.sum()):,}", "frames"),
            (duration, "of video"),
            (f"{metres:,.1f} m", "travelled"),
        ]
        shown = "".join(f'<div class="card"><b>{n}</b><span>{what}</span></div>' for n, what in cards)
        parts = [
            f"<h1>Camera annotations</h1><p class='note'>{html.escape(self.where)}</p>",
            f'<div class="cards">{shown}</div>',
        ]
        stand_ins = sum(self.table["stand_in"].to_pylist())
        if stand_ins:
            parts.append(f"<p class='fail'>{stand_ins} clips were made with stand-in weights: not data.</p>")
        sources = self.table["source"].to_pylist()
        if len(set(sources)) > 1:
            counts = Counter(zip(sources, self.status, strict=True))
            rows = "".join(
                f"<tr><td>{html.escape(s)}</td>"
                + "".join(f"<td class=n>{counts[s, status]}</td>" for status in get_args(Status))
                + "</tr>"
                for s in sorted(set(sources))
            )
            heads = "".join(f"<th class=n>{status}</th>" for status in get_args(Status))
            parts.append(f"<table><tr><th>source</th>{heads}</tr>{rows}</table>")
        return "".join(parts)

    def reasons(self) -> str:
        """Why clips were not accepted, most frequent first, with what each reason means."""
        counts = Counter(r for reasons in self.table["reasons"].to_pylist() for r in reasons)
        if not counts:
            return ""
        listed = "".join(
            f"<tr><td>{html.escape(r)}</td><td class=n>{n}</td>"
            f"<td>{html.escape(' '.join((find_reason(r) or ('',))[1:]))}</td></tr>"
            for r, n in counts.most_common()
        )
        return (
            "<h2>Rejected and failed</h2><table><tr><th>reason</th><th class=n>clips</th>"
            f"<th>what it means, what to try</th></tr>{listed}</table>"
        )

    def listing(self, in_detail: set[str]) -> str:
        """Table of the clips; those in detail below are links."""
        columns = (
            ("clip", "clip", ""),
            ("source", "source", ""),
            ("status", "status", ""),
            ("frames", "frames", "n"),
            ("fov", "field of view", "n"),
            ("path", "path", "n"),
            ("px", "reprojection", "n"),
            ("mad", "scale spread", "n"),
            ("confidence", "confidence", "n"),
            ("reasons", "reasons", ""),
        )
        head = "".join(f'<th data-sort="{key}" class="{kind}">{label}</th>' for key, label, kind in columns)
        rows = [
            self._listed(c, status, in_detail)
            for c, status in zip(self.table.slice(0, _MAX_LISTED).to_pylist(), self.status, strict=False)
        ]
        more = len(self.status) - len(rows)
        note = f'<p class="note">{more} more are not listed.</p>' if more > 0 else ""
        return (
            f'<h2>All clips</h2><div class="scroll listing"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
        )

    def _listed(self, c: dict[str, Any], status: Status, in_detail: set[str]) -> str:
        clip_id, reasons = c["clip_id"], " ".join(c["reasons"])
        wide = None if c["fov_x_max_rad"] is None else float(np.rad2deg(c["fov_x_max_rad"]))
        attributes = data_attributes(
            text=f"{clip_id} {c['source']} {reasons}".lower(),
            clip=clip_id,
            source=c["source"],
            status=status,
            frames=c["num_frames"],
            fov=wide,
            path=c["path_length_m"],
            px=c["reprojection_rms_px"],
            mad=c["scale_mad_log"],
            confidence=c["confidence"],
            reasons=reasons,
        )
        name = html.escape(clip_id)
        name = f'<a href="#{name}">{name}</a>' if clip_id in in_detail else name
        numbers = (
            str(c["num_frames"]),
            "" if wide is None else f"{wide:.1f}\N{DEGREE SIGN}",
            "" if c["path_length_m"] is None else f"{c['path_length_m']:.2f} m",
            "" if c["reprojection_rms_px"] is None else f"{c['reprojection_rms_px']:.2f} px",
            "" if c["scale_mad_log"] is None else f"{100 * c['scale_mad_log']:.1f} %",
            "" if c["confidence"] is None else f"{c['confidence']:.2f}",
        )
        return (
            f"<tr{attributes}><td>{name}</td><td>{html.escape(c['source'])}</td>"
            f'<td class="{status}">{status}</td>'
            + "".join(f'<td class="n">{n}</td>' for n in numbers)
            + f"<td>{html.escape(reasons)}</td></tr>"
        )

    def _numbers(self, column: str) -> NDArray[np.float64]:
        """Values of a column, NaN where a clip has none."""
        return self.table[column].to_numpy(zero_copy_only=False).astype(np.float64)

    def distributions(self, *, small: bool = False) -> str:
        """Histograms over clips; none where fewer than three have a value."""
        low, high = self._numbers("fov_x_min_rad"), self._numbers("fov_x_max_rad")
        # The film format makes focal lengths of different picture sizes comparable.
        wide, tele = (18.0 / np.tan(0.5 * fov) for fov in (high, low))
        series = (
            ("Widest horizontal field of view", "degrees", np.rad2deg(high)),
            ("Path length", "metres", self._numbers("path_length_m")),
            ("Spread of log scale within a clip", "1.4826 MAD", self._numbers("scale_mad_log")),
            ("Reprojection error", "pixels", self._numbers("reprojection_rms_px")),
            (
                "Zoom range within a clip",
                "longest / shortest focal length",
                np.tan(0.5 * high) / np.tan(0.5 * low),
            ),
            ("Shortest focal length of a clip", "mm on 36 mm wide film", wide),
            ("Longest focal length of a clip", "mm on 36 mm wide film", tele),
        )
        charts = [
            _histogram(known, title=title, label=label, small=small)
            for title, label, values in series
            if (known := values[np.isfinite(values)]).size >= 3
        ]
        return f"<h2>Distributions</h2><div class='charts'>{''.join(charts)}</div>" if charts else ""


def _histogram(values: FloatArray, *, title: str, label: str, small: bool) -> str:
    if float(values.max() - values.min()) <= 1e-3 * abs(values[0]):
        return f'<p class="empty">{html.escape(title)}: {values[0]:.4g} {html.escape(label)} in all clips</p>'
    edges = np.histogram_bin_edges(values, bins=min(30, max(5, int(np.sqrt(values.size)))))
    count, _ = np.histogram(values, bins=edges)
    return svg.chart(
        [svg.Bars(edges=edges, count=count)],
        title=title,
        x_label=label,
        y_label="clips",
        width=268 if small else 356,
        height=150 if small else 210,
        y_from_zero=True,
    )


def _clip_section(
    row: Row, truth: Truth | None, thumbnail: Thumbnail | None, pictures: Pictures | None
) -> str:
    status = status_of(row.verdict, row.reasons)
    compared = _compare(row, truth)
    margins = [m for gate in row.gates if (m := gate_margin(gate)) is not None]
    attributes = data_attributes(
        text=f"{row.clip_id} {row.source} {' '.join(row.reasons)}".lower(),
        clip=row.clip_id,
        status=status,
        px=row.reprojection_rms_px,
        mad=row.scale_mad_log,
        path=row.path_length_m,
        ate=None if compared is None or compared.rigid is None else compared.rigid.ate_rmse_m,
        margin=min(margins, default=None),
        confidence=row.confidence,
    )
    parts = [f'<section class="clip" id="{row.clip_id}"{attributes}>']
    parts.append(f'<h3>{row.clip_id} <span class="pill {status}">{status}</span></h3>')
    facts = [row.source, f"{row.num_frames} frames"]
    if row.width:
        facts.append(f"{row.width}x{row.height}")
    if row.fps:
        facts.append(f"{row.fps:g} fps")
    for label, value, spec in (
        ("path {} m", row.path_length_m, ".2f"),
        ("reprojection {} px", row.reprojection_rms_px, ".2f"),
        ("parallax {} deg", None if row.parallax_rad is None else np.rad2deg(row.parallax_rad), ".1f"),
        ("{} metres per unit", row.metres_per_unit, ".4g"),
        ("confidence {}", row.confidence, ".2f"),
    ):
        if value is not None:
            facts.append(label.format(format(value, spec)))
    parts.append(f'<p class="note">{html.escape(", ".join(facts))}</p>')
    for reason, detail in zip(row.reasons, row.reason_details, strict=True):
        parts.append(f"<p><span class=fail>{html.escape(reason)}</span> {html.escape(detail)}</p>")
    shown = np.unique(np.linspace(0, row.num_frames - 1, _NUM_PICTURES).round().astype(int)).tolist()
    shown = shown if row.num_frames else []
    parts.append(_strip(row, shown, thumbnail, pictures))
    if truth is not None and truth.problem:
        parts.append(f"<p><span class=fail>no truth shown</span> {html.escape(truth.problem)}</p>")
    if compared is not None:
        parts.append(_truth_table(row, compared))
    parts.append('<div class="charts">')
    parts.extend(_clip_charts(row, compared, shown))
    parts.append("</div>")
    if row.gates:
        parts.append(_gate_table(row))
    if row.error:
        parts.append(f"<details><summary>traceback</summary><pre>{html.escape(row.error)}</pre></details>")
    parts.append("</section>")
    return "".join(parts)


def _field_of_view_deg(row: Row, position: int) -> tuple[float, float] | None:
    """Horizontal and vertical, of a frame that has a camera."""
    if position >= len(row.focal_px) or row.pose_source[position] == 0:
        return None
    fx, fy = (float(v) for v in row.focal_px[position])
    if not (fx > 0 and fy > 0 and np.isfinite([fx, fy]).all()):
        return None
    return (
        float(np.rad2deg(fov_from_focal(np.float64(fx), row.width))),
        float(np.rad2deg(fov_from_focal(np.float64(fy), row.height))),
    )


def _strip(row: Row, positions: Sequence[int], thumbnail: Thumbnail | None, pictures: Pictures | None) -> str:
    """Pictures along the clip with time and field of view; the numbers are those on the map."""
    found = pictures(row, positions) if pictures is not None and positions else {}
    if not found and thumbnail is not None and (jpeg := thumbnail(row)):
        found = {positions[0] if positions else 0: jpeg}
    figures = []
    for number, position in enumerate(positions or found, start=1):
        words = [str(number)] if len(row.camera_to_world) else []
        if position < row.num_frames:
            words.append(f"{row.time_s[position] - row.time_s[0]:.1f} s")
        fov = _field_of_view_deg(row, position)
        if fov is not None:
            words.append(f"{fov[0]:.1f}\N{DEGREE SIGN} x {fov[1]:.1f}\N{DEGREE SIGN}")
        image = ""
        if position in found:
            data = base64.b64encode(found[position]).decode()
            image = f'<img alt="frame {position}" src="data:image/jpeg;base64,{data}">'
        elif fov is None:
            continue
        caption = " \N{MIDDLE DOT} ".join(words)
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="strip">{"".join(figures)}</div>' if figures else ""


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A clip beside its truth, on the frames that both have.

    Attributes:
        truth: as given, and whole (one entry a clip frame).
        both: (F,) frames with a camera on both sides.
        rigid, scaled: errors after SE(3) and Sim(3) alignment; None where the path does not determine them.
        undetermined: why.
        aligned: (F, 4, 4) truth moved rigidly onto the estimate, NaN elsewhere: the world is free, metres are not.
        rotation_deg: (F,) angle between orientations, NaN elsewhere.
    """

    truth: Truth
    both: NDArray[np.bool_]
    rigid: TrajectoryError | None = None
    scaled: TrajectoryError | None = None
    undetermined: str | None = None
    aligned: FloatArray | None = None
    rotation_deg: FloatArray | None = None


def _compare(row: Row, truth: Truth | None) -> _Comparison | None:
    if truth is None or not len(row.camera_to_world):
        return None
    _check_truth(row, truth)
    none = np.zeros(row.num_frames, bool)
    if truth.camera_to_world is None:
        return None if truth.focal_px is None else _Comparison(truth=truth, both=none)
    both = _both_known(row, truth)
    if not both.any():
        return _Comparison(truth=truth, both=both)
    estimated = row.camera_to_world[both].astype(np.float64)
    true = np.asarray(truth.camera_to_world)[both]
    rigid = scaled = undetermined = None
    try:
        rigid = trajectory_error(estimated, true, alignment="se3")
        scaled = trajectory_error(estimated, true, alignment="sim3")
        moved, _ = align_trajectory(true, estimated, alignment="se3")
    except ValueError as error:  # straight or resting cameras: say so instead of a number
        undetermined = str(error)
        # The rotation is free: start both at the same pose.
        moved, _ = align_trajectory(true, estimated, alignment="first")
    aligned = np.full((row.num_frames, 4, 4), np.nan)
    aligned[both] = moved
    rotation = np.full(row.num_frames, np.nan)
    rotation[both] = np.rad2deg(rotation_error(estimated, true))
    return _Comparison(
        truth=truth,
        both=both,
        rigid=rigid,
        scaled=scaled,
        undetermined=undetermined,
        aligned=aligned,
        rotation_deg=rotation,
    )


def _both_known(row: Row, truth: Truth) -> NDArray[np.bool_]:
    assert truth.camera_to_world is not None
    known = np.isfinite(truth.camera_to_world).all(axis=(1, 2))
    return known & np.isfinite(row.camera_to_world).all(axis=(1, 2)) & (row.pose_source != 0)


def _check_truth(row: Row, truth: Truth) -> None:
    for name in ("camera_to_world", "focal_px"):
        value = getattr(truth, name)
        if value is not None and len(value) != row.num_frames:
            raise ValueError(
                f"clip {row.clip_id}: truth has {len(value)} {name}, the clip {row.num_frames} frames"
            )


def _truth_table(row: Row, compared: _Comparison) -> str:
    truth, both = compared.truth, compared.both
    cells: list[tuple[str, str]] = []
    if truth.camera_to_world is not None and not both.any():
        cells.append(("truth", "no frame has both a camera and a true pose"))
    elif truth.camera_to_world is not None and compared.rotation_deg is not None:
        estimated, true = row.camera_to_world[both], np.asarray(truth.camera_to_world)[both]
        if compared.rigid is None or compared.scaled is None:
            cells.append(("ATE", compared.undetermined or ""))
        else:
            error = f"{compared.rigid.ate_rmse_m:.4f} m = {compared.rigid.ate_percent_of_path:.2f} % of path"
            cells.append(("ATE RMSE (SE(3), metric)", error))
            cells.append(("scale that would fit best", f"{compared.scaled.scale:.4f} (1 is right)"))
        turned = np.sqrt(np.nanmean(compared.rotation_deg**2))
        cells.append(("rotation RMSE", f"{turned:.3f} deg"))
        if both.sum() > 1:
            rpe = relative_pose_error(estimated, true)
            cells.append(("RPE, 1 frame", f"{rpe.translation_rmse_m:.4f} m, {rpe.rotation_rmse_deg:.3f} deg"))
        if not both.all():
            cells.append(("frames compared", f"{int(both.sum())} of {row.num_frames}"))
    if truth.focal_px is not None:
        focal = np.asarray(truth.focal_px)
        known = (np.isfinite(focal) & np.isfinite(row.focal_px)).all(axis=1) & (row.pose_source != 0)
        if known.any():
            cells.append(("focal MAPE", f"{focal_mape_percent(row.focal_px[known], focal[known]):.2f} %"))
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in cells)
    return f"<table>{rows}</table>"


def _clip_charts(row: Row, compared: _Comparison | None, shown: Sequence[int]) -> list[str]:
    charts: list[str] = []
    frame = np.arange(row.num_frames)
    if len(row.camera_to_world):
        poses = row.camera_to_world.astype(np.float64)
        poses[row.pose_source == 0] = np.nan
        centres = poses[:, :3, 3]
        aligned = None if compared is None else compared.aligned
        overlay = None if aligned is None else aligned[:, :3, 3]
        charts.extend(svg.trajectory_views(centres, truth=overlay, wedges=_wedges(row, shown)))
        charts.append(_focal_chart(row, None if compared is None else compared.truth, frame))
        if compared is not None and overlay is not None and compared.rotation_deg is not None:
            distance = np.linalg.norm(overlay - centres, axis=1)
            charts.append(_series(frame, distance, "Position error against the truth", "m", style="c"))
            charts.append(
                _series(
                    frame, compared.rotation_deg, "Rotation error against the truth", "degrees", style="c"
                )
            )
    if len(row.scale_value):
        charts.append(_scale_chart(row))
    if row.reprojection_px is not None and row.num_frames:
        charts.append(_series(frame, row.reprojection_px, "Reprojection error", "pixels"))
    if row.position_sigma_m is not None and row.num_frames:
        millimetres = 1000 * row.position_sigma_m.astype(np.float64)
        charts.append(_series(frame, millimetres, "Position uncertainty (1 sigma)", "mm", style="b"))
    return charts


def _series(frame: NDArray, values: NDArray, title: str, unit: str, *, style: str = "a") -> str:
    line = svg.Line(x=frame, y=values, style=style)
    return svg.chart([line], title=title, x_label="frame", y_label=unit, y_from_zero=True)


def _wedges(row: Row, positions: Sequence[int]) -> list[svg.Wedge]:
    """Horizontal field of view at some frames, for the map from above (x right, z up)."""
    wedges = []
    for number, position in enumerate(positions, start=1):
        fov = _field_of_view_deg(row, position)
        if fov is None or not np.isfinite(row.camera_to_world[position]).all():
            continue
        forward = row.camera_to_world[position, :3, 2].astype(np.float64)
        heading, half = float(np.arctan2(forward[2], forward[0])), float(np.deg2rad(0.5 * fov[0]))
        wedges.append(
            svg.Wedge(
                x=float(row.camera_to_world[position, 0, 3]),
                y=float(row.camera_to_world[position, 2, 3]),
                left_rad=heading - half,
                right_rad=heading + half,
                text=str(number),
            )
        )
    return wedges


def _focal_chart(row: Row, truth: Truth | None, frame: NDArray) -> str:
    fx = row.focal_px[:, 0].astype(np.float64)
    marks: list[svg.Mark] = []
    if row.log_focal_sigma is not None:
        spread = 2 * row.log_focal_sigma.astype(np.float64)
        marks.append(svg.Band(x=frame, low=fx * np.exp(-spread), high=fx * np.exp(spread), label="2 sigma"))
    if truth is not None and truth.focal_px is not None:
        marks.append(svg.Line(x=frame, y=np.asarray(truth.focal_px)[:, 0], style="truth", label="truth"))
    marks.append(svg.Line(x=frame, y=fx, label="fx"))
    if row.focal_axis_gap_max is None or row.focal_axis_gap_max > 1e-3:
        marks.append(svg.Line(x=frame, y=row.focal_px[:, 1], style="b", label="fy"))
    return svg.chart(marks, title=f"Focal length ({row.focal_model})", x_label="frame", y_label="pixels")


def _scale_chart(row: Row) -> str:
    marks: list[svg.Mark] = []
    ends = np.array([0.0, max(row.num_frames - 1, 1)])
    if row.scale_p10 is not None and row.scale_p90 is not None:
        marks.append(
            svg.Band(x=ends, low=[row.scale_p10] * 2, high=[row.scale_p90] * 2, style="c", label="p10 to p90")
        )
    marks.append(svg.Dots(x=row.scale_frame, y=row.scale_value, style="b", label="raw"))
    if row.metres_per_unit_frame is not None:
        marks.append(svg.Line(x=np.arange(row.num_frames), y=row.metres_per_unit_frame, label="used"))
    elif row.metres_per_unit is not None:
        marks.append(svg.Line(x=ends, y=[row.metres_per_unit] * 2, label="used"))
    spread = "" if row.scale_mad_log is None else f", spread {100 * row.scale_mad_log:.1f} %"
    return svg.chart(
        marks, title=f"Scale ({row.scale_model}{spread})", x_label="frame", y_label="metres per unit"
    )


def _gate_table(row: Row) -> str:
    """Every gate with its meaning and margin, the closest call first; open where one failed."""
    judged = [(gate, gate_margin(gate)) for gate in row.gates]
    judged.sort(key=lambda pair: (pair[0].passed, np.inf if pair[1] is None else pair[1]))
    rows = []
    for gate, margin in judged:
        bounds = [("" if v is None else f"{v:g}") for v in (gate.lower, gate.upper)]
        value = "missing" if gate.value is None else f"{gate.value:.4g}"
        verdict = "<td>pass</td>" if gate.passed else "<td class=fail>FAIL</td>"
        rows.append(
            f"<tr><td>{html.escape(gate.name)}</td><td class=n>{value}</td><td class=n>{bounds[0]}</td>"
            f"<td class=n>{bounds[1]}</td><td>{html.escape(gate.unit)}</td><td class=n>{_margin_bar(margin)}</td>"
            f"{verdict}<td>{html.escape(GATE_MEANINGS.get(gate.name, ''))}</td></tr>"
        )
    head = "<tr><th>gate</th><th class=n>value</th><th class=n>least</th><th class=n>most</th>"
    head += "<th>unit</th><th class=n>margin</th><th>verdict</th><th>what it measures</th></tr>"
    failed = sum(not gate.passed for gate, _ in judged)
    first, margin = judged[0]
    closest = "" if margin is None else f"; closest: {html.escape(first.name)}, margin {100 * margin:.0f} %"
    words = (
        f"{failed} of {len(judged)} gates failed" if failed else f"all {len(judged)} gates passed{closest}"
    )
    return (
        f"<details{' open' if failed else ''}><summary>{words}</summary>"
        f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
        '<p class="note">margin: distance to the bound as a share of the bound; of half the range where there are '
        "two.</p></details>"
    )


def _margin_bar(margin: float | None) -> str:
    if margin is None:
        return ""
    kind = "out" if margin < 0 else "low" if margin < 0.2 else "in"
    width = 100.0 if margin < 0 else 100.0 * min(margin, 1.0)
    return f'{100 * margin:.0f} %<span class="bar"><i class="{kind}" style="width:{width:.0f}%"></i></span>'


def truth_of_row(
    row: Row, cameras: ClipCameras, *, matching: Matching | None = None, path: str | Path = ""
) -> Truth:
    """True cameras on the frames of a row, brought together as `evaluate` does it; with a problem where none are."""
    try:
        found = match(row.clip_id, frames_of_row(row), cameras, matching)
    except ValueError as error:
        where = f" ({path})" if str(path) and str(path) not in str(error) else ""
        return Truth(problem=f"{error}{where}")
    poses = np.full((row.num_frames, 4, 4), np.nan)
    poses[found.predicted] = found.truth_camera_to_world
    focal = None
    if cameras.focal_px is not None and cameras.width and cameras.height and row.width:
        focal = np.full((row.num_frames, 2), np.nan)
        size = np.array([row.width / cameras.width, row.height / cameras.height])
        focal[found.predicted] = cameras.focal_px[found.truth] * size
    return Truth(camera_to_world=poses, focal_px=focal)


class TruthByClip(Mapping[str, Truth]):
    """Ground truth by clip id, read when it is asked for: a report shows a few of many clips.

    Args:
        clip_ids: clips that have truth.
        read: gives that of one; a ValueError or OSError costs this clip's truth alone and becomes its `problem`.
    """

    def __init__(self, clip_ids: Iterable[str], read: Callable[[str], Truth]) -> None:
        self._ids, self._read = dict.fromkeys(clip_ids), read

    def __getitem__(self, clip_id: str) -> Truth:
        if clip_id not in self._ids:
            raise KeyError(clip_id)
        try:
            return self._read(clip_id)
        except (ValueError, OSError) as error:
            return Truth(problem=str(error))

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def truths_from_files(
    rows: Sequence[Row],
    camera_paths: Mapping[str, Path],
    *,
    by_source_frame: bool = True,
    matching: Matching | None = None,
) -> TruthByClip:
    """Truth for `write_report` from files or folders of any layout of `clip_cameras.read_clip`, by clip id.

    Args:
        by_source_frame: line `i` of a file without times belongs to source frame `i`; False: to clip frame `i`.
        matching: how poses are brought together otherwise.
    """
    options = replace(matching or Matching(), rows="source" if by_source_frame else "clip")
    by_id = {row.clip_id: row for row in rows if row.clip_id in camera_paths}

    def read(clip_id: str) -> Truth:
        path = camera_paths[clip_id]
        return truth_of_row(by_id[clip_id], read_clip(path), matching=options, path=path)

    return TruthByClip(by_id, read)
