"""Shapes that a scale may have in time, fitted robustly: a constant, a line, a cubic, a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F64
from ...dataset.robust import MAD_TO_SIGMA


@dataclass(frozen=True)
class Shape:
    """A shape in time: a polynomial, or two levels that meet after anchor time `change`."""

    degree: int = 0
    change: float | None = None

    def design(self, t: F64) -> F64:
        if self.change is not None:
            after = (t > self.change).astype(np.float64)
            return np.stack([1 - after, after], -1)
        return np.stack([t**k for k in range(self.degree + 1)], -1)

    def predict(self, t: F64, x: F64, t_wanted: F64) -> F64:
        """Values at times `t_wanted` of a Huber fit to (t, x); beyond the anchors a drift is held, not extrapolated."""
        middle, half = (t[0] + t[-1]) / 2, max((t[-1] - t[0]) / 2, 1e-9)
        change = None if self.change is None else (self.change - middle) / half
        shape = Shape(self.degree, change)
        design = shape.design((t - middle) / half)
        weight = np.ones(len(x))
        coefficients = np.zeros(design.shape[1])
        for _ in range(20):
            root = np.sqrt(weight)[:, None]
            coefficients = np.linalg.lstsq(design * root, x * root[:, 0], rcond=None)[0]
            residual = x - design @ coefficients
            limit = 1.345 * max(mad(residual), 1e-6)
            weight = np.minimum(1.0, limit / np.maximum(np.abs(residual), 1e-12))
        return shape.design(np.clip((t_wanted - middle) / half, -1, 1)) @ coefficients


def mad(residual: F64) -> float:
    """Robust standard deviation about zero."""
    return float(MAD_TO_SIGMA * np.median(np.abs(residual)))


def _median_fit(t: F64, x: F64, fit: Shape) -> F64:
    """Fitted values whose residuals have least absolute sum (re-weighted least squares)."""
    if fit.change is None and fit.degree == 0:
        return np.full(len(x), np.median(x))
    if fit.change is not None:
        after = t > fit.change
        return np.where(after, np.median(x[after]), np.median(x[~after]))
    span = max(float(np.ptp(t)), 1e-9)
    design = fit.design((t - t.mean()) / span)
    fitted = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    for _ in range(50):
        weight = 1.0 / np.maximum(np.abs(x - fitted), 1e-4)
        root = np.sqrt(weight)
        fitted = design @ np.linalg.lstsq(design * root[:, None], x * root, rcond=None)[0]
    return fitted


def densest_half(residual: F64) -> tuple[float, float]:
    """Middle and robust standard deviation of the shortest interval that holds half of the values.

    One-sided outliers drag a median along; this middle stays with the majority.
    Source: Rousseeuw 1984, least median of squares.
    """
    ordered = np.sort(residual)
    half = len(ordered) // 2 + 1
    lengths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    shortest = int(lengths.argmin())
    return float((ordered[shortest] + ordered[shortest + half - 1]) / 2), float(
        lengths[shortest] / 2 / 0.6745
    )


def inliers_of(t: F64, x: F64, fit: Shape, outlier_mads: float) -> NDArray[np.bool_]:
    """Frames near the model, from the densest half of the residuals outwards until nothing changes."""
    residual = x - _median_fit(t, x, fit)
    middle, sigma = densest_half(residual)
    # The densest half of few values is too short by chance; it only has to be large enough to start from.
    kept = np.abs(residual - middle) <= outlier_mads * max(sigma, 1e-3)
    for _ in range(10):
        if kept.sum() < max(2, len(x) // 3):
            return np.ones(len(x), bool)
        if fit.change is not None and (np.ptp((t[kept] > fit.change).astype(int)) == 0):
            return np.ones(len(x), bool)
        residual = x - fit.predict(t[kept], x[kept], t)
        limit = outlier_mads * max(mad(residual[kept]), 1e-3)
        now = np.abs(residual) <= limit
        if np.array_equal(now, kept):
            break
        kept = now
    return kept


def autocorrelation(residual: F64) -> float:
    """First autocorrelation of a series, corrected for its bias in short series, within [0, 0.95]."""
    n = len(residual)
    energy = float(residual @ residual)
    if n < 3 or energy <= 0:
        return 0.0
    raw = float(residual[1:] @ residual[:-1]) / energy
    return float(np.clip(raw + (1 + 4 * raw) / n, 0.0, 0.95))


def least_squares_residual(fit: Shape, t: F64, x: F64) -> F64:
    design = fit.design(2 * (t - t[0]) / (t[-1] - t[0]) - 1) if fit.change is None else fit.design(t)
    return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
