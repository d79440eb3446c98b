"""One clip in a report: what was judged, pictures along it, figures, and how far it is from the truth."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import numpy as np

from ..gates import GATE_MEANINGS, gate_margin
from ..metrics.trajectory import (
    focal_mape_percent,
    relative_pose_error,
)
from ..reasons import status_of
from ..rows import Row
from .charts import clip_charts, field_of_view_deg
from .compare import Comparison, compare
from .page import data_attributes
from .pictures import Pictures, Thumbnail
from .truth import Truth

_NUM_PICTURES = 5


def clip_section(
    row: Row, truth: Truth | None, thumbnail: Thumbnail | None, pictures: Pictures | None
) -> str:
    status = status_of(row.verdict, row.reasons)
    compared = compare(row, truth)
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
    parts.extend(clip_charts(row, compared, shown))
    parts.append("</div>")
    if row.gates:
        parts.append(_gate_table(row))
    if row.error:
        parts.append(f"<details><summary>traceback</summary><pre>{html.escape(row.error)}</pre></details>")
    parts.append("</section>")
    return "".join(parts)


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
        fov = field_of_view_deg(row, position)
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


def _truth_table(row: Row, compared: Comparison) -> str:
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
        "two, in logs where both are above 0 (angles apart).</p></details>"
    )


def _margin_bar(margin: float | None) -> str:
    if margin is None:
        return ""
    kind = "out" if margin < 0 else "low" if margin < 0.2 else "in"
    width = 100.0 if margin < 0 else 100.0 * min(margin, 1.0)
    return f'{100 * margin:.0f} %<span class="bar"><i class="{kind}" style="width:{width:.0f}%"></i></span>'
