"""One metric scale per clip from noisy single-frame judgements.

Sequence depth `a` is consistent over a clip but of unknown unit; anchor depth `b` is metric but wrong by a factor
that changes from frame to frame. Each anchor frame gives one raw log ratio, a weighted median over its pixels; the
clip's scale is a robust centre of those, and it is allowed to vary in time only if a test on the series says that
a constant cannot explain it.

Why not the paper's estimator (kept as `method="paper"`): least squares lets far pixels decide, where anchors are
worst, and one infinite pixel ruins it; an exponential mean with momentum 0.99 remembers its first frames for a
hundred frames and turns frame noise into a wandering scale. `benchmarks/scale_estimators.py` compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..dataset.arrays import F64, FloatArray
from ..dataset.reasons import ReasonCode
from ..dataset.strict import Strict
from .geometry.base import AnchorFrame, SequenceGeometryResult

ScaleModel = Literal["constant", "slow_drift", "step", "declared", "none"]

_MAD_TO_SIGMA = 1.4826
_NUM_SIMULATIONS = 4000
_MIN_SEGMENT = 4  # anchors on either side of a step
_MIN_SERIES_FOR_TEST = 8


class ScaleConfig(Strict):
    """How raw ratios become a scale."""

    method: Literal["robust", "paper"] = "robust"
    """`robust`: weighted medians and a tested model. `paper`: weighted least squares and an exponential mean
    (arXiv 2605.15178, appendix B.1)."""
    paper_weight: Literal["anchor", "sequence"] = "anchor"
    """Which depth the paper's inverse-depth weight inverts; its text leaves that open."""
    ema_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Paper method: weight of the previous frame's scale, per clip frame (over a gap of g frames: its g-th power)."""
    min_valid_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """A frame counts only if at least this share of its pixels is valid in both maps."""
    min_frames: Annotated[int, Field(ge=1)] = 3
    """Usable anchor frames below which there is no scale."""
    min_usable_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the anchor frames that must be usable."""
    outlier_mads: Annotated[float, Field(gt=1)] = 4.0
    """Frames further than this many robust standard deviations from the model are dropped."""
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Probability of taking a constant scale for a varying one (all alternatives together)."""
    test_spacing: Annotated[int, Field(ge=1)] = 16
    """Clip frames. For that test, ratios closer together than this are pooled: frames of less than a second err so much
    alike that no short series tells their likeness from a drift."""
    min_change: Annotated[float, Field(ge=0)] = 0.03
    """Smallest change of log scale over a clip that is worth modelling."""
    max_samples: Annotated[int, Field(ge=100)] = 20_000
    """Pixels compared in a frame, on a regular grid."""


@dataclass(frozen=True, kw_only=True)
class ScaleEstimate:
    """Scale of a clip, with everything needed to judge it.

    Attributes:
        metres_per_unit: (F,) scale of every clip frame, or None if there is none (`reasons` says why); never 1.0
            for want of something better.
        model: `constant`, `slow_drift`, `step`, `declared` by the source, or `none`.
        frame: (n,) clip frames of the anchors.
        raw: (n,) metres per unit of each anchor frame on its own; NaN where a frame gave none.
        mad_log: 1.4826 x median absolute deviation of log raw scale about the model; NaN without a series.
        sigma_log: standard error of the log scale (autocorrelation of the series included); NaN without a series.
        p10, p90: percentiles of `raw`.
        cov: standard deviation over mean of `raw`, outliers included (the paper's gate).
        num_frames_used: anchor frames that were neither unusable nor outliers.
        p_value: (linear drift, smooth drift, step) under a constant scale; 1.0 where not tested.
        reasons: stable codes of what prevented a scale (`no_metric_scale` first, then why).
    """

    metres_per_unit: F64 | None
    model: ScaleModel
    frame: NDArray[np.int64]
    raw: F64
    mad_log: float
    sigma_log: float
    p10: float
    p90: float
    cov: float
    num_frames_used: int
    p_value: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reasons: tuple[ReasonCode, ...] = ()

    @property
    def value(self) -> float | None:
        """Metres per unit of the clip: the median over its frames."""
        return None if self.metres_per_unit is None else float(np.median(self.metres_per_unit))


def estimate_scale(
    sequence: SequenceGeometryResult,
    anchors: Iterable[AnchorFrame],
    *,
    num_frames: int,
    config: ScaleConfig | None = None,
) -> ScaleEstimate:
    """Metres per unit of a clip.

    One sequence map and one anchor map are in memory at a time, provided that `anchors` is lazy.

    Args:
        sequence: depth, its unit if declared, and optionally confidence.
        anchors: metric depth of some frames; any number, in any order.
        num_frames: F, frames of the clip.
        config: method and thresholds.
    Raises:
        ValueError: an anchor lies outside the clip, or a frame has two.
    """
    config = config or ScaleConfig()
    found: dict[int, float] = {}
    for anchor in anchors:
        if not 0 <= anchor.frame < num_frames:
            raise ValueError(f"anchor frame {anchor.frame} lies outside the clip's {num_frames} frames")
        if anchor.frame in found:
            raise ValueError(f"anchor frame {anchor.frame} occurs twice")
        depth = sequence.depth.read(anchor.frame)
        confidence = None if sequence.confidence is None else sequence.confidence.read(anchor.frame)
        if depth is None:
            found[anchor.frame] = float("nan")
        else:
            found[anchor.frame] = frame_log_scale(depth, anchor.depth_m, confidence=confidence, config=config)
    frame = np.array(sorted(found), np.int64)
    log_raw = np.array([found[int(f)] for f in frame], np.float64)
    declared = sequence.metres_per_unit
    return fit_scale(frame, log_raw, num_frames=num_frames, config=config, declared_metres_per_unit=declared)


def frame_log_scale(
    depth: FloatArray,
    anchor_depth_m: FloatArray,
    *,
    confidence: FloatArray | None = None,
    config: ScaleConfig | None = None,
) -> float:
    """Log of metres per unit of one frame; NaN if too few pixels are valid in both maps.

    The maps may have different sizes; they cover the same image. NaN, infinity (sky) and values <= 0 are not used.

    Robust: median of log(b / a) with weights confidence / a, since translation, which the scale is for, is seen
    through parallax, and that falls with distance. Paper: the s that minimises sum w (s a - b)^2 with w = 1/d;
    d = a (`sequence`) gives sum b / sum a, d = b (`anchor`) gives sum a / sum(a^2 / b). Both let far pixels weigh
    most; the second bounds what a far over-estimate can do. Confidence multiplies w.

    Args:
        depth: (h, w) sequence z-depth a, own unit.
        anchor_depth_m: (h', w') anchor z-depth b, metres.
        confidence: (h'', w'') in [0, 1], or None.
    Source: SANA-WM (arXiv 2605.15178), appendix B.1, for the paper method.
    """
    config = config or ScaleConfig()
    maps = [m for m in (depth, anchor_depth_m, confidence) if m is not None]
    height, width = min(m.shape[0] for m in maps), min(m.shape[1] for m in maps)
    shrink = max(1.0, (height * width / config.max_samples) ** 0.5)
    height, width = max(1, int(height / shrink)), max(1, int(width / shrink))
    a, b = (_on_grid(m, height, width) for m in (depth, anchor_depth_m))
    trust = np.ones_like(a) if confidence is None else _on_grid(confidence, height, width)
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0) & np.isfinite(trust) & (trust > 0)
    if valid.mean() < config.min_valid_share:
        return float("nan")
    a, b, trust = a[valid], b[valid], trust[valid]
    if config.method == "paper":
        weight = trust / (b if config.paper_weight == "anchor" else a)
        return float(np.log(np.sum(weight * a * b) / np.sum(weight * a * a)))
    return weighted_median(np.log(b) - np.log(a), trust / a)


def _on_grid(values: FloatArray, height: int, width: int) -> F64:
    """Nearest samples of a map on a coarser grid over the same image: nothing is mixed across edges or masks."""
    rows = ((np.arange(height) + 0.5) / height * values.shape[0]).astype(np.int64)
    columns = ((np.arange(width) + 0.5) / width * values.shape[1]).astype(np.int64)
    return values[rows[:, None], columns].astype(np.float64)


def weighted_median(values: F64, weights: F64) -> float:
    """Smallest value that at least half of the weight does not exceed."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


def fit_scale(
    frame: NDArray[np.int64],
    log_raw: F64,
    *,
    num_frames: int,
    config: ScaleConfig | None = None,
    declared_metres_per_unit: float | None = None,
) -> ScaleEstimate:
    """Scale of every frame from the raw series.

    Args:
        frame: (n,) increasing clip frames of the anchors.
        log_raw: (n,) log metres per unit, NaN where a frame gave none.
        num_frames: F.
        config: method and thresholds.
        declared_metres_per_unit: what the source declares; then the series is only recorded.
    """
    config = config or ScaleConfig()
    usable = np.isfinite(log_raw)
    t, x = frame[usable].astype(np.float64), log_raw[usable]
    raw = np.exp(np.where(usable, log_raw, np.nan))
    spread: dict[str, Any] = {
        "p10": float(np.percentile(raw[usable], 10)) if usable.any() else float("nan"),
        "p90": float(np.percentile(raw[usable], 90)) if usable.any() else float("nan"),
        "cov": float(raw[usable].std() / raw[usable].mean()) if usable.any() else float("nan"),
    }
    nan = float("nan")
    if declared_metres_per_unit is not None:
        residual = x - np.log(declared_metres_per_unit)
        return ScaleEstimate(
            metres_per_unit=np.full(num_frames, float(declared_metres_per_unit)),
            model="declared",
            frame=frame,
            raw=raw,
            mad_log=_mad(residual) if len(x) else nan,
            sigma_log=nan,
            num_frames_used=len(x),
            **spread,
        )
    reasons: list[ReasonCode] = []
    if len(frame) == 0:
        reasons = ["no_metric_scale", "no_anchor_frames"]
    elif len(x) < config.min_frames or len(x) < config.min_usable_share * len(frame):
        reasons = ["no_metric_scale", "too_few_usable_anchor_frames"]
    if reasons:
        return ScaleEstimate(
            metres_per_unit=None,
            model="none",
            frame=frame,
            raw=raw,
            mad_log=nan,
            sigma_log=nan,
            num_frames_used=0,
            reasons=tuple(reasons),
            **spread,
        )
    at = np.arange(num_frames, dtype=np.float64)
    model: ScaleModel = "constant"
    p_value = (1.0, 1.0, 1.0)
    if config.method == "paper":
        log_scale = _exponential_mean(t, x, at, config.ema_momentum)
        residual = x - log_scale[t.astype(np.int64)]
        kept = np.ones(len(x), bool)
        # A mean that forgets varies from frame to frame by construction, whatever the clip does.
        model = "slow_drift" if np.ptp(log_scale) > 0 else "constant"
    else:
        model, p_value, fit = _choose_model(t, x, config)
        kept = _inliers(t, x, fit, config.outlier_mads)
        log_scale = fit.predict(t[kept], x[kept], at)
        residual = x - fit.predict(t[kept], x[kept], t)
    deviation = residual[kept]
    correlation = _autocorrelation(deviation)
    effective = max(1.0, kept.sum() * (1 - correlation) / (1 + correlation))
    return ScaleEstimate(
        metres_per_unit=np.exp(log_scale),
        model=model,
        frame=frame,
        raw=raw,
        mad_log=_mad(residual),
        sigma_log=float(1.2533 * _mad(deviation) / np.sqrt(effective)),
        num_frames_used=int(kept.sum()),
        p_value=p_value,
        **spread,
    )


def _exponential_mean(t: F64, x: F64, at: F64, momentum: float) -> F64:
    """Paper: causal exponential mean of the scale (not its log), started on the first frame that has one.

    Between anchors the last value holds; frames before the first anchor take its value.
    """
    smooth = np.empty(len(x))
    state = float(np.exp(x[0]))
    for i in range(len(x)):
        keep = momentum ** (t[i] - t[i - 1]) if i else 0.0
        state = keep * state + (1 - keep) * float(np.exp(x[i]))
        smooth[i] = np.log(state)
    return smooth[np.maximum(np.searchsorted(t, at, side="right") - 1, 0)]


# --- which model --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """A shape in time: a polynomial, or two levels that meet after anchor time `change`."""

    degree: int = 0
    change: float | None = None

    def design(self, t: F64) -> F64:
        if self.change is not None:
            after = (t > self.change).astype(np.float64)
            return np.stack([1 - after, after], -1)
        return np.stack([t**k for k in range(self.degree + 1)], -1)

    def predict(self, t: F64, x: F64, at: F64) -> F64:
        """Values at times `at` of a Huber fit to (t, x); beyond the anchors a drift is held, not extrapolated."""
        middle, half = (t[0] + t[-1]) / 2, max((t[-1] - t[0]) / 2, 1e-9)
        change = None if self.change is None else (self.change - middle) / half
        shape = _Fit(self.degree, change)
        design = shape.design((t - middle) / half)
        weight = np.ones(len(x))
        coefficients = np.zeros(design.shape[1])
        for _ in range(20):
            root = np.sqrt(weight)[:, None]
            coefficients = np.linalg.lstsq(design * root, x * root[:, 0], rcond=None)[0]
            residual = x - design @ coefficients
            limit = 1.345 * max(_mad(residual), 1e-6)
            weight = np.minimum(1.0, limit / np.maximum(np.abs(residual), 1e-12))
        return shape.design(np.clip((at - middle) / half, -1, 1)) @ coefficients


def _mad(residual: F64) -> float:
    """Robust standard deviation about zero."""
    return float(_MAD_TO_SIGMA * np.median(np.abs(residual)))


def _median_fit(t: F64, x: F64, fit: _Fit) -> F64:
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


def _densest_half(residual: F64) -> tuple[float, float]:
    """Middle and robust standard deviation of the shortest interval that holds half of the values.

    One-sided outliers drag a median along; this middle stays with the majority.
    Source: Rousseeuw 1984, least median of squares.
    """
    ordered = np.sort(residual)
    half = len(ordered) // 2 + 1
    lengths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    at = int(lengths.argmin())
    return float((ordered[at] + ordered[at + half - 1]) / 2), float(lengths[at] / 2 / 0.6745)


def _inliers(t: F64, x: F64, fit: _Fit, outlier_mads: float) -> NDArray[np.bool_]:
    """Frames near the model, from the densest half of the residuals outwards until nothing changes."""
    residual = x - _median_fit(t, x, fit)
    middle, sigma = _densest_half(residual)
    # The densest half of few values is too short by chance; it only has to be large enough to start from.
    kept = np.abs(residual - middle) <= outlier_mads * max(sigma, 1e-3)
    for _ in range(10):
        if kept.sum() < max(2, len(x) // 3):
            return np.ones(len(x), bool)
        if fit.change is not None and (np.ptp((t[kept] > fit.change).astype(int)) == 0):
            return np.ones(len(x), bool)
        residual = x - fit.predict(t[kept], x[kept], t)
        limit = outlier_mads * max(_mad(residual[kept]), 1e-3)
        now = np.abs(residual) <= limit
        if np.array_equal(now, kept):
            break
        kept = now
    return kept


def _autocorrelation(residual: F64) -> float:
    """First autocorrelation of a series, corrected for its bias in short series, within [0, 0.95]."""
    n = len(residual)
    energy = float(residual @ residual)
    if n < 3 or energy <= 0:
        return 0.0
    raw = float(residual[1:] @ residual[:-1]) / energy
    return float(np.clip(raw + (1 + 4 * raw) / n, 0.0, 0.95))


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


def _choose_model(t: F64, x: F64, config: ScaleConfig) -> tuple[ScaleModel, tuple[float, float, float], _Fit]:
    """Constant unless the series refutes it.

    Frames far from their neighbours are set aside first. Then the drop of squared error that a line, a cubic and
    the best single step bring is compared with what they bring on simulated series of a constant scale with the
    autocorrelation of this one (neighbouring frames err alike, and a test for independent errors would call that a
    drift). The three tests share `significance` equally.
    """
    constant = "constant", (1.0, 1.0, 1.0), _Fit()
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
    candidates = _Fit(degree=1), _Fit(degree=3), _Fit(change=step_at)
    residuals = [_least_squares_residual(fit, t, x) for fit in candidates]
    # A change that is left in looks like correlation, and correlation that is fitted away looks like a change:
    # the middle of both estimates keeps false alarms near the stated rate and finds 10 % changes (see tests).
    least = min(residuals, key=lambda r: float(r @ r))
    correlation = 0.5 * (_autocorrelation(least) + _autocorrelation(x - x.mean()))
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
        kept = _inliers(t, x, fit, config.outlier_mads)
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


def _carried_everywhere(t: F64, residual: F64, fit: _Fit) -> bool:
    """Whether most frames of every part of the clip lie near the model: a few outliers in a row make no step.

    Parts are the two sides of a step, or thirds; near is 2.5 robust standard deviations of the densest half.
    """
    if fit.change is None:
        part = np.minimum((3 * np.arange(len(t))) // len(t), 2)
    else:
        part = (t > fit.change).astype(int)
    near = np.abs(residual) <= 2.5 * max(_densest_half(residual)[1], 1e-3)
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
        now = np.abs(residual) <= outlier_mads * max(_mad(residual[near]), 1e-3)
        if np.array_equal(now, near):
            break
        near = now
    return near


def _least_squares_residual(fit: _Fit, t: F64, x: F64) -> F64:
    design = fit.design(2 * (t - t[0]) / (t[-1] - t[0]) - 1) if fit.change is None else fit.design(t)
    return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
