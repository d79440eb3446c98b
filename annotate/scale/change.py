"""Does the scale of a clip change? Drift and step against a constant, with thresholds from simulated series."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F64
from ...dataset.words import ScaleModel
from .records import ScaleConfig
from .shape import Shape, autocorrelation, densest_half, inliers_of, least_squares_residual, mad

_NUM_SIMULATIONS = 4000
_MIN_SEGMENT = 4  # anchors on either side of a step
_MIN_SERIES_FOR_TEST = 8


def _statistics(t: F64, x: F64) -> tuple[F64, NDArray[np.int64]]:
    """How much better than a constant each alternative fits, for many series at once.

    Args:
        t: (n,) times in [-1, 1]. x: (m, n) series.
    Returns:
        (m, 3) drop of squared error over what remains, for a line, a cubic, and the best step; (m,) index of the
        last anchor before that step.
    """
    centred = x - x.mean(-1, keepdims=True)
    total = np.sum(centred**2, -1)
    n = x.shape[-1]
    basis = np.linalg.qr(np.stack([t**k for k in range(4)], -1))[0][:, 1:]
    energy = (centred @ basis) ** 2
    line, cubic = energy[:, 0], energy.sum(-1)
    count = np.arange(1, n)
    partial = np.cumsum(centred, -1)[:, :-1]
    gain = partial**2 * (1.0 / count + 1.0 / (n - count))
    gain[:, (count < _MIN_SEGMENT) | (n - count < _MIN_SEGMENT)] = 0.0
    change = gain.argmax(-1)
    step = np.take_along_axis(gain, change[:, None], -1)[:, 0]
    drops = np.stack([line, cubic, step], -1)
    return drops / np.maximum(total[:, None] - drops, 1e-12), change


def choose_model(t: F64, x: F64, config: ScaleConfig) -> tuple[ScaleModel, tuple[float, float, float], Shape]:
    """Constant unless the series refutes it.

    Frames far from their neighbours are set aside first. Then the drop of squared error that a line, a cubic and
    the best single step bring is compared with what they bring on simulated series of a constant scale with the
    autocorrelation of this one (neighbouring frames err alike, and a test for independent errors would call that a
    drift). The three tests share `significance` equally.
    """
    constant = "constant", (1.0, 1.0, 1.0), Shape()
    n = len(x)
    if n < max(_MIN_SERIES_FOR_TEST, 2 * _MIN_SEGMENT):
        return constant
    all_t, all_x = t, x
    near = _near_neighbours(x, config.outlier_mads)
    t, x = _pooled(t[near], x[near], config.test_spacing)
    n = len(x)
    if n < max(_MIN_SERIES_FOR_TEST, 2 * _MIN_SEGMENT):
        return constant
    unit_t = 2 * (t - t[0]) / (t[-1] - t[0]) - 1
    (observed,), (change,) = _statistics(unit_t, x[None])
    step_at = float((t[change] + t[change + 1]) / 2)
    candidates = Shape(degree=1), Shape(degree=3), Shape(change=step_at)
    residuals = [least_squares_residual(fit, t, x) for fit in candidates]
    # A change that is left in looks like correlation, and correlation that is fitted away looks like a change:
    # the middle of both estimates keeps false alarms near the stated rate and finds 10 % changes (see tests).
    least = min(residuals, key=lambda r: float(r @ r))
    correlation = 0.5 * (autocorrelation(least) + autocorrelation(x - x.mean()))
    rng = np.random.default_rng(20260515)  # the test must not depend on when it runs
    noise = rng.standard_normal((_NUM_SIMULATIONS, n))
    for i in range(1, n):
        noise[:, i] = correlation * noise[:, i - 1] + np.sqrt(1 - correlation**2) * noise[:, i]
    simulated, _ = _statistics(unit_t, noise)
    p = (1 + (simulated >= observed).sum(0)) / (1 + _NUM_SIMULATIONS)
    p_value = float(p[0]), float(p[1]), float(p[2])
    accepted = []
    for k, fit in enumerate(candidates):
        if p[k] * 3 > config.significance:
            continue
        kept = inliers_of(t, x, fit, config.outlier_mads)
        shape = fit.predict(t[kept], x[kept], t)
        if np.ptp(shape) < config.min_change:
            continue
        if not _carried_everywhere(all_t, all_x - fit.predict(t[kept], x[kept], all_t), fit):
            continue
        # Bayesian information criterion: levels or coefficients, and the place of a step.
        parameters = (2, 4, 3)[k]
        score = n * np.log(max(float(residuals[k] @ residuals[k]), 1e-12) / n) + parameters * np.log(n)
        accepted.append((score, k))
    if not accepted:
        return constant[0], p_value, constant[2]
    best = min(accepted)[1]
    return ("step" if best == 2 else "slow_drift"), p_value, candidates[best]


def _pooled(t: F64, x: F64, spacing: int) -> tuple[F64, F64]:
    """Mean times and median values of about one block every `spacing` frames; a sparser series as it is."""
    blocks = round((t[-1] - t[0]) / spacing) + 1
    if len(t) <= blocks:
        return t, x
    block = np.round((t - t[0]) / (t[-1] - t[0]) * (blocks - 1)) if blocks > 1 else np.zeros(len(t))
    members = [block == b for b in np.unique(block)]
    return np.array([t[m].mean() for m in members]), np.array([np.median(x[m]) for m in members])


def _carried_everywhere(t: F64, residual: F64, fit: Shape) -> bool:
    """Whether most frames of every part of the clip lie near the model: a few outliers in a row make no step.

    Parts are the two sides of a step, or thirds; near is 2.5 robust standard deviations of the densest half.
    """
    if fit.change is None:
        part = np.minimum((3 * np.arange(len(t))) // len(t), 2)
    else:
        part = (t > fit.change).astype(int)
    near = np.abs(residual) <= 2.5 * max(densest_half(residual)[1], 1e-3)
    return all(near[part == k].mean() >= 0.55 for k in np.unique(part))


def _near_neighbours(x: F64, outlier_mads: float) -> NDArray[np.bool_]:
    """Frames within the spread about the median of their neighbours, which follows drifts and steps."""
    half = max(5, len(x) // 5)  # wide enough that a third of outliers is no majority in any window
    near = np.ones(len(x), bool)
    for _ in range(3):
        local = x.copy()
        for i in range(len(x)):
            window = slice(max(0, i - half), i + half + 1)
            if near[window].any():
                local[i] = np.median(x[window][near[window]])
        residual = x - local
        now = np.abs(residual) <= outlier_mads * max(mad(residual[near]), 1e-3)
        if np.array_equal(now, near):
            break
        near = now
    return near
