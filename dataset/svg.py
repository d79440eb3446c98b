"""Small line charts as inline SVG text: no library, no script, readable in print and in both colour
schemes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 40.0, 36.0
_MAX_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Line:
    """Polyline through (n,) x and y; NaN interrupts it. `style` is a CSS class of the page: a, b, c, or
    truth."""

    x: ArrayLike
    y: ArrayLike
    style: str = "a"
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Points at (n,) x and y; NaN is left out."""

    x: ArrayLike
    y: ArrayLike
    style: str = "a"
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Band:
    """Area between two curves."""

    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    style: str = "a"
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars of height `count` between consecutive `edges` (n + 1,)."""

    edges: ArrayLike
    count: ArrayLike
    style: str = "a"
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wedge:
    """Field of view on a map: two sides of `length_px` from (x, y), at angles counted from the x axis towards y, and a
    text at the tip."""

    x: float
    y: float
    left_rad: float
    right_rad: float
    text: str = ""
    style: str = "c"
    length_px: float = 26.0
    label: str | None = None


Mark = Line | Dots | Band | Bars | Wedge

STYLE = """
svg{max-width:100%;height:auto;font:11px system-ui,sans-serif}svg text{fill:var(--ink)}
svg .axis{stroke:var(--faint);fill:none}svg .grid{stroke:var(--faint);stroke-opacity:.35}
svg .title{font-size:12px;font-weight:600}
svg .line{fill:none;stroke-width:1.6;stroke-linejoin:round}svg .line.a{stroke:var(--a)}svg .line.b{stroke:var(--b)}
svg .line.c{stroke:var(--c)}svg .line.truth{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:5 4}
svg .fill.a{fill:var(--a)}svg .fill.b{fill:var(--b)}svg .fill.c{fill:var(--c)}svg .fill.truth{fill:var(--ink)}
svg .band{fill-opacity:.18}svg .wedge{fill-opacity:.3}
"""


def chart(
    marks: Sequence[Mark],
    *,
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (356, 240),
    equal_aspect: bool = False,
    y_down: bool = False,
    y_from_zero: bool = False,
) -> str:
    """SVG of marks with axes, ticks, legend and a text alternative.

    Args:
        size: (width, height) in pixels.
        equal_aspect: one unit is equally long on both axes (maps, trajectories).
        y_down: larger y is drawn lower.
        y_from_zero: the y axis includes zero.
    """
    xs, ys = _extent(marks)
    if y_from_zero:
        ys = np.append(ys, 0.0)
    if not xs.size or not ys.size:
        return f'<p class="empty">{html.escape(title)}: no data</p>'
    axes = _Axes.around(xs, ys, size, equal_aspect=equal_aspect, y_down=y_down)
    width, height = size
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">',
        f'<text class="title" x="{_LEFT:.0f}" y="14">{html.escape(title)}</text>',
        *axes.grid(),
        f'<rect class="axis" x="{_LEFT:.1f}" y="{_TOP:.1f}" width="{axes.width:.1f}" height="{axes.height:.1f}"/>'
        f'<text x="{_LEFT + axes.width:.1f}" y="{height - 6}" text-anchor="end">{html.escape(x_label)}</text>'
        f'<text x="4" y="{_TOP - 6:.1f}">{html.escape(y_label)}</text>',
    ]
    base = float(axes.py(max(0.0, axes.y[0])))
    parts += [_draw(mark, axes.px, axes.py, base=base) for mark in marks]
    return "".join([*parts, *_legend(marks, _LEFT + axes.width), "</svg>"])


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """What is shown, x and y from and to, in a plot of a width and height."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float
    y_down: bool

    @classmethod
    def around(cls, xs: F64, ys: F64, size: tuple[int, int], *, equal_aspect: bool, y_down: bool) -> _Axes:
        (x0, x1), (y0, y1) = _padded(xs), _padded(ys)
        width, height = size[0] - _LEFT - _RIGHT, size[1] - _TOP - _BOTTOM
        if equal_aspect:
            per_px = max((x1 - x0) / width, (y1 - y0) / height)
            x_mid, y_mid = (x0 + x1) / 2, (y0 + y1) / 2
            x0, x1 = x_mid - per_px * width / 2, x_mid + per_px * width / 2
            y0, y1 = y_mid - per_px * height / 2, y_mid + per_px * height / 2
        return cls(x=(x0, x1), y=(y0, y1), width=width, height=height, y_down=y_down)

    def px(self, x: ArrayLike) -> F64:
        low, high = self.x
        return _LEFT + (np.asarray(x, dtype=np.float64) - low) / (high - low) * self.width

    def py(self, y: ArrayLike) -> F64:
        low, high = self.y
        fraction = (np.asarray(y, dtype=np.float64) - low) / (high - low)
        return _TOP + (fraction if self.y_down else 1.0 - fraction) * self.height

    def grid(self) -> Iterator[str]:
        """Lines and numbers of the ticks."""
        x_ticks, y_ticks = _ticks(*self.x), _ticks(*self.y)
        bottom, right = _TOP + self.height, _LEFT + self.width
        for value in x_ticks:
            x = float(self.px(value))
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:.1f}" y2="{bottom:.1f}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{_number(value, x_ticks)}</text>'
        for value in y_ticks:
            y = float(self.py(value))
            yield f'<line class="grid" x1="{_LEFT:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{_LEFT - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{_number(value, y_ticks)}</text>'


def _legend(marks: Sequence[Mark], right: float) -> Iterator[str]:
    """Labels of the marks, from the right."""
    x = right
    for label, style in reversed([(m.label, m.style) for m in marks if m.label]):
        yield (
            f'<rect class="fill {style}" x="{x - 9:.1f}" y="{_TOP - 14:.1f}" width="9" height="9"/>'
            f'<text x="{x - 12:.1f}" y="{_TOP - 6:.1f}" text-anchor="end">{html.escape(label)}</text>'
        )
        x -= 24 + 5.8 * len(label)  # about the width of 11 px letters


def _draw(mark: Mark, px, py, *, base: float) -> str:
    if isinstance(mark, Line):
        x, y = _thin(np.asarray(mark.x, dtype=np.float64), np.asarray(mark.y, dtype=np.float64))
        u, v = px(x), py(y)
        path, pen_up = [], True
        for a, b in zip(u, v, strict=True):
            if not (np.isfinite(a) and np.isfinite(b)):
                pen_up = True
                continue
            path.append(f"{'M' if pen_up else 'L'}{a:.1f} {b:.1f}")
            pen_up = False
        return f'<path class="line {mark.style}" d="{"".join(path)}"/>'
    if isinstance(mark, Dots):
        x, y = _thin(np.asarray(mark.x, dtype=np.float64), np.asarray(mark.y, dtype=np.float64))
        ok = np.isfinite(x) & np.isfinite(y)
        return "".join(
            f'<circle class="fill {mark.style}" cx="{a:.1f}" cy="{b:.1f}" r="2"/>'
            for a, b in zip(px(x[ok]), py(y[ok]), strict=True)
        )
    if isinstance(mark, Band):
        x, low, high = (np.asarray(v, dtype=np.float64) for v in (mark.x, mark.low, mark.high))
        ok = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
        x, low, high = _thin(x[ok], low[ok], high[ok])
        if not x.size:
            return ""
        corners = [*zip(px(x), py(high), strict=True), *zip(px(x[::-1]), py(low[::-1]), strict=True)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        return f'<polygon class="fill band {mark.style}" points="{points}"/>'
    if isinstance(mark, Wedge):
        u, v = float(px(mark.x)), float(py(mark.y))
        down = 1.0 if float(py(mark.y + 1.0)) > v else -1.0
        # As many steps as make the outer edge round.
        angle = np.linspace(mark.left_rad, mark.right_rad, 7)
        rim = [(u + mark.length_px * np.cos(a), v + down * mark.length_px * np.sin(a)) for a in angle]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in [(u, v), *rim])
        middle = 0.5 * (mark.left_rad + mark.right_rad)
        tip = mark.length_px + 8
        return (
            f'<polygon class="fill wedge {mark.style}" points="{points}"/>'
            f'<circle class="fill {mark.style}" cx="{u:.1f}" cy="{v:.1f}" r="2.5"/>'
            f'<text x="{u + tip * np.cos(middle):.1f}" y="{v + down * tip * np.sin(middle) + 4:.1f}" '
            f'text-anchor="middle">{html.escape(mark.text)}</text>'
        )
    edges, count = px(mark.edges), np.asarray(mark.count, dtype=np.float64)
    tops = py(count)
    return "".join(
        f'<rect class="fill {mark.style}" x="{a + 0.5:.1f}" y="{t:.1f}" width="{max(b - a - 1, 0.5):.1f}" '
        f'height="{max(base - t, 0):.1f}"><title>{c:g}</title></rect>'
        for a, b, t, c in zip(edges[:-1], edges[1:], tops, count, strict=True)
    )


def _thin(*arrays: F64) -> tuple[F64, ...]:
    """At most about a thousand of the points, ends kept: a page of hundreds of clips must stay small."""
    n = len(arrays[0])
    if n <= _MAX_POINTS:
        return arrays
    keep = np.unique(np.linspace(0, n - 1, _MAX_POINTS).round().astype(int))
    return tuple(a[keep] for a in arrays)


def _extent(marks: Sequence[Mark]) -> tuple[F64, F64]:
    xs: list[F64] = []
    ys: list[F64] = []
    for mark in marks:
        if isinstance(mark, Bars):
            xs.append(np.asarray(mark.edges, dtype=np.float64))
            ys.append(np.append(np.asarray(mark.count, dtype=np.float64), 0.0))
        elif isinstance(mark, Band):
            xs.append(np.asarray(mark.x, dtype=np.float64))
            ys.extend(np.asarray(v, dtype=np.float64) for v in (mark.low, mark.high))
        else:
            xs.append(np.atleast_1d(np.asarray(mark.x, dtype=np.float64)))
            ys.append(np.atleast_1d(np.asarray(mark.y, dtype=np.float64)))
    x = np.concatenate(xs) if xs else np.zeros(0)
    y = np.concatenate(ys) if ys else np.zeros(0)
    return x[np.isfinite(x)], y[np.isfinite(y)]


def _padded(values: F64) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    span = high - low
    pad = 0.05 * span if span > 1e-9 * max(abs(low), abs(high), 1e-9) else max(0.05 * abs(high), 1e-3)
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first = np.ceil(low / step) * step
    return [float(first + i * step) for i in range(int((high - first) / step + 1e-9) + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    """Label with as many decimals as tell neighbouring ticks apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else max(abs(value), 1.0)
    largest = max(abs(t) for t in ticks)
    if largest >= 1e6 or (0 < step < 1e-5):
        return f"{value:.4g}"
    decimals = max(0, -int(np.floor(np.log10(step) + 1e-9)))
    return f"{0.0 if abs(value) < step / 1000 else value:.{decimals}f}"


Orientation = Literal["above", "side", "front"]
_VIEWS: dict[Orientation, tuple[int, int, str]] = {
    "above": (0, 2, "Trajectory from above"),
    "side": (2, 1, "Trajectory from the side"),
    "front": (0, 1, "Trajectory from behind"),
}
"""Axis to the right, axis up or down, and title, in OpenCV axes of the first camera."""


def trajectory_chart(
    centres: ArrayLike,
    *,
    view: Orientation,
    truth: ArrayLike | None = None,
    wedges: Sequence[Wedge] = (),
    size: tuple[int, int] = (356, 240),
) -> str:
    """Path of camera centres (F, 3), in metres: from above (x right, z up), from the side (z right, y down) or from
    behind (x right, y down)."""
    c = np.asarray(centres, dtype=np.float64).reshape(-1, 3)
    horizontal, vertical, title = _VIEWS[view]
    marks: list[Mark] = []
    if truth is not None:
        t = np.asarray(truth, dtype=np.float64).reshape(-1, 3)
        marks.append(Line(x=t[:, horizontal], y=t[:, vertical], style="truth", label="truth"))
    marks.append(
        Line(
            x=c[:, horizontal], y=c[:, vertical], style="a", label="estimated" if truth is not None else None
        )
    )
    known = c[np.isfinite(c).all(axis=1)][:1]
    marks.append(Dots(x=known[:, horizontal], y=known[:, vertical], style="b", label="start"))
    names = "xyz"
    return chart(
        [*marks, *wedges],
        title=title,
        x_label=f"{names[horizontal]} (m)",
        y_label=f"{names[vertical]} (m)",
        size=size,
        equal_aspect=True,
        y_down=view != "above",
    )


def trajectory_views(
    centres: ArrayLike, *, truth: ArrayLike | None = None, wedges: Sequence[Wedge] = ()
) -> list[str]:
    """The path from above (with fields of view there), from the side and from behind."""
    return [
        trajectory_chart(centres, view=view, truth=truth, wedges=wedges if view == "above" else ())
        for view in _VIEWS
    ]


def standalone(drawing: str, *, style: str) -> str:
    """A drawing as a file of its own."""
    head, rest = drawing.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def grid(drawings: Sequence[str], *, title: str, columns: int = 3, gap: int = 12) -> str:
    """Drawings of `chart` in rows, as one drawing."""
    parts: list[str] = []
    x, y, row_height, width = 0, 24, 0, 0
    for i, drawing in enumerate(drawings):
        found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', drawing)
        if found is None:  # a chart without data is a sentence, not a drawing
            continue
        w, h = int(found[1]), int(found[2])
        parts.append(drawing.replace("<svg ", f'<svg x="{x}" y="{y}" ', 1))
        x, row_height, width = x + w + gap, max(row_height, h), max(width, x + w)
        if (i + 1) % columns == 0:
            x, y, row_height = 0, y + row_height + gap, 0
    height = y + row_height
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}"><text class="title" x="4" y="16">{html.escape(title)}</text>'
        f"{''.join(parts)}</svg>"
    )
