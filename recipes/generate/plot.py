"""A camera path at a glance: in the terminal, and as a drawing."""

from __future__ import annotations

import math

import numpy as np

from ...dataset import svg
from ...dataset.arrays import FloatArray
from ...dataset.camera_files.requested import CameraPath
from ...dataset.evaluation.plots import PLOT_STYLE

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Braille dots by row and column of a character's 4 x 2."""


def path_text(path: CameraPath, *, columns: int = 44, rows: int = 12) -> str:
    """The path from above (x to the right, z up) beside the path from the side (z to the right, height up).

    `o` is the start, `x` the end, `^>v<` where the camera looks there; the scale is that of the ticks.
    """
    centre, ahead = path.camera_to_world[:, :3, 3], path.camera_to_world[:, :3, 2]
    views = (
        _view("from above, m", centre[:, [0, 2]], ahead[:, [0, 2]], columns, rows),
        _view("from the side, m", centre[:, [2, 1]] * [1, -1], ahead[:, [2, 1]] * [1, -1], columns, rows),
    )
    return "\n".join(
        "  ".join(line.ljust(columns + 2) for line in pair).rstrip() for pair in zip(*views, strict=True)
    )


def _view(title: str, points: FloatArray, ahead: FloatArray, columns: int, rows: int) -> list[str]:
    low, high = points.min(axis=0), points.max(axis=0)
    # Both axes have one scale, and a path that hardly moves is a dot, not noise.
    scale = max((high - low)[0] / (2 * columns - 1), (high - low)[1] / (4 * rows - 1), 0.02 / (2 * columns))
    middle = (low + high) / 2
    x = np.clip(np.round((points[:, 0] - middle[0]) / scale + columns - 0.5), 0, 2 * columns - 1).astype(int)
    y = np.clip(np.round((middle[1] - points[:, 1]) / scale + 2 * rows - 0.5), 0, 4 * rows - 1).astype(int)
    cells = np.zeros((rows, columns), int)
    for u, v in zip(x, y, strict=True):
        cells[v // 4, u // 2] |= _DOTS[v % 4][u % 2]
    drawn = [[chr(0x2800 + c) if c else " " for c in row] for row in cells]
    for i, mark in ((-1, "x"), (0, "o")):
        drawn[y[i] // 4][x[i] // 2] = mark
    _put_arrow(drawn, x[0] // 2, y[0] // 4, ahead[0])
    span = f"{2 * columns * scale:.3g} m wide, {4 * rows * scale:.3g} m high"
    return [f"{title}: {span}", *("".join(row) for row in drawn)]


def _put_arrow(drawn: list[list[str]], column: int, row: int, ahead: FloatArray) -> None:
    """Where the camera looks, beside the start."""
    if np.linalg.norm(ahead) < 1e-6:
        return
    quarter = round(math.atan2(ahead[1], ahead[0]) / (math.pi / 2)) % 4
    across, down = ((1, 0), (0, -1), (-1, 0), (0, 1))[quarter]
    if 0 <= row + down < len(drawn) and 0 <= column + across < len(drawn[0]):
        drawn[row + down][column + across] = ">^<v"[quarter]


def path_svg(path: CameraPath, *, title: str) -> str:
    """The path in three views, and speed and turn over time, as an SVG file."""
    poses, time_s = path.camera_to_world, path.time_s
    forward = poses[:, :3, 2]
    looks = np.linspace(0, len(poses) - 1, 7).round().astype(int)
    half = math.atan(0.5) if path.intrinsics_px is None or not path.width else _half_fov(path)
    wedges = [
        svg.Wedge(
            x=float(poses[i, 0, 3]),
            y=float(poses[i, 2, 3]),
            left_rad=math.atan2(forward[i, 2], forward[i, 0]) + half,
            right_rad=math.atan2(forward[i, 2], forward[i, 0]) - half,
        )
        for i in dict.fromkeys(looks.tolist())
    ]
    speed = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / np.diff(time_s)
    charts = [
        *svg.trajectory_views(poses[:, :3, 3], wedges=wedges),
        svg.chart(
            [svg.Line(x=time_s[1:], y=speed)],
            title="Speed",
            x_label="time (s)",
            y_label="m/s",
            y_from_zero=True,
        ),
    ]
    return svg.standalone(svg.grid(charts, title=title), style=PLOT_STYLE)


def _half_fov(path: CameraPath) -> float:
    assert path.intrinsics_px is not None
    return math.atan(0.5 * path.width / float(path.intrinsics_px[0, 0, 0]))
