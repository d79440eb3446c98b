"""What a dataset looks like: `inspect` as text, and a report as one HTML file that needs no network and no
script."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from . import svg
from .metrics import (
    align_trajectory,
    focal_mape_percent,
    relative_pose_error,
    rotation_error,
    trajectory_error,
)
from .reading import ClipDataset, open_dataset
from .reasons import Status, find_reason, status_of
from .rows import Row
from .schema import COLUMNS

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of a clip, one entry per clip frame; NaN where a frame has none.

    Attributes:
        camera_to_world: (F, 4, 4) metres, any world frame; or None.
        focal_px: (F, 2) for the stored size; or None.
    """

    camera_to_world: FloatArray | None = None
    focal_px: FloatArray | None = None


Thumbnail = Callable[[Row], bytes | None]
"""JPEG bytes of a clip, or None if its media cannot be shown."""


# ---------------------------------------------------------------------------------------------------- text


def inspect_text(path: str | Path, *, clip_id: str | None = None, limit: int = 200) -> str:
    """Text for the terminal: one line per clip (the first `limit`) and the counts, or everything about one
    clip.

    Raises:
        ValueError: nothing to read there, or no such clip.
    """
    clips = open_dataset(path)
    return _table_text(clips, limit) if clip_id is None else _clip_text(_row(clips, clip_id))


def _row(clips: ClipDataset, clip_id: str) -> Row:
    try:
        return clips.row(clip_id)
    except KeyError as error:
        raise ValueError(str(error.args[0])) from None


def run_inspect(path: str | Path, *, clip_id: str | None = None) -> tuple[str, int]:
    """`inspect_text` and exit code 0."""
    return inspect_text(path, clip_id=clip_id), 0


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
                c["clip_id"],
                c["source"],
                status_of(c["verdict"], c["reasons"]),
                str(c["num_frames"]),
                f"{c['width']}x{c['height']}",
                c["focal_model"],
                fov,
                _maybe(c["path_length_m"], ".2f"),
                _maybe(c["metres_per_unit"], ".4g"),
                _maybe(c["scale_mad_log"], ".3f"),
                _maybe(c["reprojection_rms_px"], ".2f"),
                ",".join(c["reasons"]),
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
        ):
            continue
        value = getattr(row, column.name)
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
    if row.error:
        lines.append(row.error.rstrip())
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- HTML

_PAGE_STYLE = """
:root{--ink:#1c2126;--paper:#fff;--faint:#9aa4ad;--panel:#f5f7f8;--a:#1668b8;--b:#c2410c;--c:#0f7b4f;--bad:#b42318}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8eb;--paper:#14181b;--faint:#6d7780;--panel:#1d2327;--a:#6cb2f5;
--b:#f2935b;--c:#5fc99a;--bad:#ff8a7d}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:24px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 8px}
h3{font-size:16px;margin:0 0 6px;overflow-wrap:anywhere}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums}
th,td{padding:3px 12px 3px 0;text-align:left;border-bottom:1px solid var(--faint);vertical-align:top}
.scroll{overflow-x:auto}
td.n,th.n{text-align:right}.clip{background:var(--panel);border-radius:8px;padding:14px 16px;margin:14px 0}
.charts{clear:right;display:flex;flex-wrap:wrap;gap:10px 16px}.rejected,.fail{color:var(--bad);font-weight:600}
.accepted{color:var(--c);font-weight:600}
pre{overflow:auto;font-size:12px}img{max-width:220px;border-radius:6px;float:right;margin:0 0 8px 12px}
.empty{color:var(--faint)}.note{color:var(--faint);font-size:13px}
"""


def write_report(
    path: str | Path,
    html_path: str | Path | None = None,
    *,
    truth: Mapping[str, Truth] | None = None,
    thumbnail: Thumbnail | None = None,
    max_clips: int = 60,
    clip_ids: Sequence[str] | None = None,
) -> Path:
    """Write the report of a dataset folder, or of single clips, and return its path (`<path>/report.html` by
    default).

    The head counts verdicts and reasons and shows distributions; below, clips in detail: all of them, or,
    beyond `max_clips`, those with truth, the worst and the best by reprojection error and scale spread, and
    rejected ones.

    Args:
        clip_ids: only these clips, without the head.
        truth: ground truth by clip id, overlaid where given.
        thumbnail: gives a JPEG for a clip; see `thumbnail_from_media`.
    Raises:
        ValueError: nothing to read there, or no such clip.
    """
    clips = open_dataset(path)
    target = Path(html_path) if html_path is not None else Path(path) / "report.html"
    truth = truth or {}
    body: list[str] = []
    if clip_ids is None:
        body.append(_head(clips))
        chosen, total = _choose_clips(clips, truth, max_clips), len(clips)
        num_chosen = sum(map(len, chosen.values()))
        if num_chosen < total:
            body.append(f'<p class="note">{num_chosen} of {total} clips in detail.</p>')
    else:
        chosen = {"": list(clip_ids)}
    title = Path(path).name if clip_ids is None else ", ".join(clip_ids)
    for heading, ids in chosen.items():
        if heading and ids:
            body.append(f"<h2>{heading}</h2>")
        body.extend(_clip_section(_row(clips, c), truth.get(c), thumbnail) for c in ids)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Camera annotations: {html.escape(title)}</title>"
        f"<style>{_PAGE_STYLE}{svg.STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def run_report(
    path: str | Path,
    html_path: str | Path | None = None,
    *,
    truth: Mapping[str, Truth] | None = None,
    thumbnail: Thumbnail | None = None,
    max_clips: int = 60,
    clip_ids: Sequence[str] | None = None,
) -> tuple[str, int]:
    """Write the report; text with its place, and exit code 0."""
    target = write_report(
        path, html_path, truth=truth, thumbnail=thumbnail, max_clips=max_clips, clip_ids=clip_ids
    )
    return f"report: {target}", 0


def thumbnail_from_media(root: str | Path = ".", *, width: int = 220) -> Thumbnail:
    """Thumbnails from the first frame of local video files or image folders; relative media lie below
    `root`."""

    def thumbnail(row: Row) -> bytes | None:
        import av
        import cv2
        from av.error import FFmpegError

        media = Path(root) / row.media
        image: NDArray | None = None
        if row.media_kind == "images" and media.is_dir():
            files = sorted(p for p in media.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
            image = cv2.imread(str(files[0])) if files else None
        elif row.media_kind == "video" and media.is_file():
            try:
                with av.open(str(media)) as container:
                    frame = next(container.decode(video=0), None)
                    image = None if frame is None else frame.to_ndarray(format="bgr24")
            except (FFmpegError, IndexError):  # a broken or soundtrack-only file has no picture to show
                image = None
        if image is None:
            return None
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        ok, jpeg = cv2.imencode(".jpg", cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
        return jpeg.tobytes() if ok else None

    return thumbnail


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
        "Rejected clips": [c["clip_id"] for c in table if c["verdict"] != "accepted"],
    }
    chosen: dict[str, list[str]] = {}
    picked: set[str] = set()
    for heading, ids in groups.items():
        new = [c for c in ids if c not in picked][: max_clips - len(picked)]
        chosen[heading] = new
        picked.update(new)
    return chosen


_HEAD = (
    "reasons",
    "fov_x_min_rad",
    "fov_x_max_rad",
    "path_length_m",
    "scale_mad_log",
    "reprojection_rms_px",
    "num_frames",
    "fps",
    "stand_in",
)


def _head(clips: ClipDataset) -> str:
    table = clips.to_table(["source", "verdict", *_HEAD])
    counts = Counter(
        zip(
            table["source"].to_pylist(),
            map(status_of, table["verdict"].to_pylist(), table["reasons"].to_pylist()),
            strict=True,
        )
    )
    sources = sorted({s for s, _ in counts})
    parts = [f"<h1>Camera annotations</h1><p class='note'>{html.escape(clips.path)}: {len(clips)} clips</p>"]
    rows = "".join(
        f"<tr><td>{html.escape(s)}</td>"
        + "".join(f"<td class=n>{counts[s, status]}</td>" for status in get_args(Status))
        + "</tr>"
        for s in sources
    )
    heads = "".join(f"<th class=n>{status}</th>" for status in get_args(Status))
    parts.append(f"<table><tr><th>source</th>{heads}</tr>{rows}</table>")
    reasons = Counter(r for row in table["reasons"].to_pylist() for r in row)
    if reasons:
        listed = "".join(
            f"<tr><td>{html.escape(r)}</td><td class=n>{n}</td>"
            f"<td>{html.escape(' '.join((find_reason(r) or ('',))[1:]))}</td></tr>"
            for r, n in reasons.most_common()
        )
        parts.append(
            "<h2>Rejected and failed</h2><table><tr><th>reason</th><th class=n>clips</th>"
            f"<th>what it means, what to try</th></tr>{listed}</table>"
        )
    stand_ins = sum(table["stand_in"].to_pylist())
    if stand_ins:
        parts.append(f"<p class='fail'>{stand_ins} clips were made with stand-in weights: not data.</p>")
    parts.append("<h2>Distributions</h2><div class='charts'>")
    for column, title, label, factor in (
        ("fov_x_max_rad", "Widest horizontal field of view", "degrees", 180 / np.pi),
        ("path_length_m", "Path length", "metres", 1.0),
        ("scale_mad_log", "Spread of log scale within a clip", "1.4826 MAD", 1.0),
        ("reprojection_rms_px", "Reprojection error", "pixels", 1.0),
    ):
        parts.append(_histogram(table[column].drop_null().to_numpy() * factor, title=title, label=label))
    low, high = (table[f"fov_x_{end}_rad"].to_numpy(zero_copy_only=False) for end in ("min", "max"))
    zoom = np.tan(0.5 * high.astype(float)) / np.tan(0.5 * low.astype(float))
    parts.append(
        _histogram(
            zoom[np.isfinite(zoom)], title="Zoom range within a clip", label="longest / shortest focal length"
        )
    )
    # The film format makes focal lengths of different picture sizes comparable.
    wide, tele = (
        18.0 / np.tan(0.5 * fov[np.isfinite(fov)]) for fov in (high.astype(float), low.astype(float))
    )
    for values, which in ((wide, "Shortest"), (tele, "Longest")):
        parts.append(
            _histogram(values, title=f"{which} focal length of a clip", label="mm on 36 mm wide film")
        )
    parts.append("</div>")
    return "".join(parts)


def _histogram(values: FloatArray, *, title: str, label: str) -> str:
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        return f'<p class="empty">{html.escape(title)}: no data</p>'
    span = float(values.max() - values.min())
    edges = (
        np.histogram_bin_edges(values, bins=min(30, max(5, int(np.sqrt(values.size)))))
        if span > 1e-3 * abs(values[0])
        else (values[0] + max(abs(values[0]) * 0.05, 1e-3) * np.array([-1.0, 1.0]))
    )
    count, _ = np.histogram(values, bins=edges)
    return svg.chart(
        [svg.Bars(edges=edges, count=count)],
        title=title,
        x_label=label,
        y_label="clips",
        height=210,
        y_from_zero=True,
    )


def _clip_section(row: Row, truth: Truth | None, thumbnail: Thumbnail | None) -> str:
    parts = [f'<section class="clip" id="{row.clip_id}">']
    jpeg = thumbnail(row) if thumbnail is not None else None
    if jpeg:
        parts.append(
            f'<img alt="first frame" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        )
    parts.append(
        f"<h3>{row.clip_id} <span class={row.verdict}>{status_of(row.verdict, row.reasons)}</span></h3>"
    )
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
    ):
        if value is not None:
            facts.append(label.format(format(value, spec)))
    parts.append(f"<p>{html.escape(', '.join(facts))}</p>")
    for reason, detail in zip(row.reasons, row.reason_details, strict=True):
        parts.append(f"<p><span class=fail>{html.escape(reason)}</span> {html.escape(detail)}</p>")
    parts.append(_truth_table(row, truth))
    parts.append('<div class="charts">')
    parts.extend(_clip_charts(row, truth))
    parts.append("</div>")
    if row.gates:
        parts.append(_gate_table(row))
    if row.error:
        parts.append(f"<details><summary>traceback</summary><pre>{html.escape(row.error)}</pre></details>")
    parts.append("</section>")
    return "".join(parts)


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


def _truth_table(row: Row, truth: Truth | None) -> str:
    if truth is None or not len(row.camera_to_world):
        return ""
    _check_truth(row, truth)
    cells: list[tuple[str, str]] = []
    if truth.camera_to_world is not None:
        both = _both_known(row, truth)
        estimated, true = row.camera_to_world[both], np.asarray(truth.camera_to_world)[both]
        try:
            rigid = trajectory_error(estimated, true, alignment="se3")
            scaled = trajectory_error(estimated, true, alignment="sim3")
        except ValueError as error:  # straight or resting cameras: say so instead of a number
            cells.append(("ATE", str(error)))
        else:
            cells.append(
                (
                    "ATE RMSE (SE(3), metric)",
                    f"{rigid.ate_rmse_m:.4f} m = {rigid.ate_percent_of_path:.2f} % of path",
                )
            )
            cells.append(("scale that would fit best", f"{scaled.scale:.4f} (1 is right)"))
        turned = np.rad2deg(np.sqrt(np.mean(rotation_error(estimated, true) ** 2)))
        cells.append(("rotation RMSE", f"{turned:.3f} deg"))
        if both.sum() > 1:
            rpe = relative_pose_error(estimated, true)
            cells.append(("RPE, 1 frame", f"{rpe.translation_rmse_m:.4f} m, {rpe.rotation_rmse_deg:.3f} deg"))
    if truth.focal_px is not None:
        known = np.isfinite(truth.focal_px).all(axis=1)
        cells.append(
            ("focal MAPE", f"{focal_mape_percent(row.focal_px[known], truth.focal_px[known]):.2f} %")
        )
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in cells)
    return f"<table>{rows}</table>"


def _clip_charts(row: Row, truth: Truth | None) -> list[str]:
    charts: list[str] = []
    frame = np.arange(row.num_frames)
    if len(row.camera_to_world):
        poses = row.camera_to_world.astype(np.float64)
        poses[row.pose_source == 0] = np.nan
        centres = poses[:, :3, 3]
        overlay = _aligned_truth(row, truth)
        charts.extend(svg.trajectory_chart(centres, view=view, truth=overlay) for view in ("above", "side"))
        charts.append(_focal_chart(row, truth, frame))
    if len(row.scale_value):
        charts.append(_scale_chart(row))
    if row.reprojection_px is not None and row.num_frames:
        marks = [svg.Line(x=frame, y=row.reprojection_px)]
        charts.append(
            svg.chart(
                marks,
                title="Reprojection error",
                x_label="frame",
                y_label="pixels",
                y_from_zero=True,
                height=240,
            )
        )
    if row.position_sigma_m is not None and row.num_frames:
        marks = [svg.Line(x=frame, y=1000 * row.position_sigma_m.astype(np.float64), style="b")]
        charts.append(
            svg.chart(
                marks,
                title="Position uncertainty (1 sigma)",
                x_label="frame",
                y_label="mm",
                y_from_zero=True,
            )
        )
    return charts


def _aligned_truth(row: Row, truth: Truth | None) -> FloatArray | None:
    """(F, 3) true centres moved rigidly onto the estimate: the world frame is free, metres are not."""
    if truth is None or truth.camera_to_world is None:
        return None
    both = _both_known(row, truth)
    centres = np.full((row.num_frames, 3), np.nan)
    estimated, true = row.camera_to_world[both], np.asarray(truth.camera_to_world)[both]
    if not len(true):
        return None
    try:
        aligned, _ = align_trajectory(true, estimated, alignment="se3")
    except ValueError:  # a straight or resting camera leaves rotation free: start both at the same pose
        aligned, _ = align_trajectory(true, estimated, alignment="first")
    centres[both] = aligned[:, :3, 3]
    return centres


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
    rows = []
    for gate in row.gates:
        bounds = [("" if v is None else f"{v:g}") for v in (gate.lower, gate.upper)]
        value = "missing" if gate.value is None else f"{gate.value:.4g}"
        verdict = "<td>pass</td>" if gate.passed else "<td class=fail>FAIL</td>"
        rows.append(
            f"<tr><td>{html.escape(gate.name)}</td><td class=n>{value}</td><td class=n>{bounds[0]}</td>"
            f"<td class=n>{bounds[1]}</td><td>{html.escape(gate.unit)}</td>{verdict}</tr>"
        )
    head = "<tr><th>gate</th><th class=n>value</th><th class=n>least</th><th class=n>most</th>"
    head += "<th>unit</th><th>verdict</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def truths_from_files(
    rows: Sequence[Row], camera_paths: Mapping[str, Path], *, by_source_frame: bool = True
) -> dict[str, Truth]:
    """Truth for `write_report` from trajectory files (TUM, KITTI or 4x4 rows) by clip id.

    Args:
        by_source_frame: line `i` of a file belongs to source frame `i` (rows pick theirs by `frame_index`);
            False: to clip frame `i`.
    Raises:
        ValueError: a file shorter than the frames that are asked for.
    """
    from .trajectories import read_trajectory

    result: dict[str, Truth] = {}
    for row in rows:
        if row.clip_id not in camera_paths:
            continue
        poses = read_trajectory(camera_paths[row.clip_id]).camera_to_world
        index = row.frame_index if by_source_frame else np.arange(row.num_frames)
        if len(index) and index.max() >= len(poses):
            raise ValueError(
                f"clip {row.clip_id}: {camera_paths[row.clip_id]} holds {len(poses)} poses, "
                f"frame {index.max()} is asked for"
            )
        result[row.clip_id] = Truth(camera_to_world=poses[index])
    return result
