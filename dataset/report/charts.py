"""Charts of one clip: its path, focal lengths, scale and residuals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import svg
from ..cameras.intrinsics import fov_from_focal
from ..rows import Row
from .compare import Comparison
from .truth import Truth


def field_of_view_deg(row: Row, position: int) -> tuple[float, float] | None:
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


def clip_charts(row: Row, compared: Comparison | None, shown: Sequence[int]) -> list[str]:
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
        fov = field_of_view_deg(row, position)
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
