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

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F64, I64, BoolArray
from ...dataset.words import ScaleModel
from .change import choose_model
from .records import ScaleConfig, ScaleEstimate
from .shape import autocorrelation, inliers_of, mad


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
    nothing = _nothing(frame, log_raw)
    if declared_metres_per_unit is not None:
        return replace(
            nothing,
            metres_per_unit=np.full(num_frames, float(declared_metres_per_unit)),
            model="declared",
            mad_log=mad(x - np.log(declared_metres_per_unit)) if len(x) else float("nan"),
            num_frames_used=len(x),
        )
    if len(frame) == 0:
        return replace(nothing, reasons=("no_metric_scale", "no_anchor_frames"))
    if len(x) < config.min_frames or len(x) < config.min_usable_share * len(frame):
        return replace(nothing, reasons=("no_metric_scale", "too_few_usable_anchor_frames"))
    fit = _fit_paper if config.method == "paper" else _fit_robust
    model, p_value, log_scale, residual, kept = fit(t, x, np.arange(num_frames, dtype=np.float64), config)
    deviation = residual[kept]
    correlation = autocorrelation(deviation)
    effective = max(1.0, kept.sum() * (1 - correlation) / (1 + correlation))
    return replace(
        nothing,
        metres_per_unit=np.exp(log_scale),
        model=model,
        mad_log=mad(residual),
        sigma_log=float(1.2533 * mad(deviation) / np.sqrt(effective)),
        num_frames_used=int(kept.sum()),
        p_value=p_value,
    )


def _nothing(frame: I64, log_raw: F64) -> ScaleEstimate:
    """The series as it is, without a scale."""
    nan, usable = float("nan"), np.isfinite(log_raw)
    raw = np.exp(np.where(usable, log_raw, np.nan))
    known = raw[usable]
    some = len(known) > 0
    return ScaleEstimate(
        metres_per_unit=None,
        model="none",
        frame=frame,
        raw=raw,
        mad_log=nan,
        sigma_log=nan,
        num_frames_used=0,
        p10=float(np.percentile(known, 10)) if some else nan,
        p90=float(np.percentile(known, 90)) if some else nan,
        cov=float(known.std() / known.mean()) if some else nan,
    )


_Fitted = tuple[ScaleModel, tuple[float, float, float], F64, F64, BoolArray]
"""Model, p values, log scale of every frame, residual of every anchor frame, and which of those were used."""


def _fit_robust(t: F64, x: F64, times: F64, config: ScaleConfig) -> _Fitted:
    """The model that the series does not refute, from the frames near it."""
    model, p_value, shape = choose_model(t, x, config)
    kept = inliers_of(t, x, shape, config.outlier_mads)
    residual = x - shape.predict(t[kept], x[kept], t)
    return model, p_value, shape.predict(t[kept], x[kept], times), residual, kept


def _fit_paper(t: F64, x: F64, times: F64, config: ScaleConfig) -> _Fitted:
    """The paper's exponential mean."""
    log_scale = _exponential_mean(t, x, times, config.ema_momentum)
    # A mean that forgets varies from frame to frame by construction, whatever the clip does.
    model: ScaleModel = "slow_drift" if np.ptp(log_scale) > 0 else "constant"
    residual = x - log_scale[t.astype(np.int64)]
    return model, (1.0, 1.0, 1.0), log_scale, residual, np.ones(len(x), bool)


def _exponential_mean(t: F64, x: F64, times: F64, momentum: float) -> F64:
    """Paper: causal exponential mean of the scale (not its log), started on the first frame that has one.

    Between anchors the last value holds; frames before the first anchor take its value.
    """
    smooth = np.empty(len(x))
    state = float(np.exp(x[0]))
    for i in range(len(x)):
        keep = momentum ** (t[i] - t[i - 1]) if i else 0.0
        state = keep * state + (1 - keep) * float(np.exp(x[i]))
        smooth[i] = np.log(state)
    return smooth[np.maximum(np.searchsorted(t, times, side="right") - 1, 0)]
