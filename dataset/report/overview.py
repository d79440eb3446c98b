"""Head of a report: verdicts and reasons counted, the list of clips, distributions."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import svg
from ..arrays import FloatArray
from ..reading import ClipDataset
from ..reasons import Status, find_reason, status_of
from .page import SortKey, data_attributes

_MAX_LISTED = 5000
"""Clips in the table of all clips: a page of hundreds of thousands would not open."""
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
SORT_KEYS = (
    SortKey(key="clip", label="clip"),
    SortKey(key="px", label="reprojection error, largest first", up=False),
    SortKey(key="mad", label="scale spread, largest first", up=False),
    SortKey(key="path", label="path length, longest first", up=False),
    SortKey(key="ate", label="error against the truth, largest first", up=False),
    SortKey(key="margin", label="margin of the gates, least first"),
    SortKey(key="confidence", label="confidence, least first"),
)


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Per-clip columns of the whole dataset, for the head of the page."""

    where: str
    table: pa.Table
    status: list[Status]

    @classmethod
    def of(cls, clips: ClipDataset) -> Overview:
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
        counts = Counter(r for reasons in self.table["reasons"].to_pylist() for r in dict.fromkeys(reasons))
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
        clip_id, reasons = c["clip_id"], " ".join(dict.fromkeys(c["reasons"]))
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
        size=(268, 150) if small else (356, 210),
        y_from_zero=True,
    )
