"""One metric scale per clip from noisy single-frame judgements.

Sequence depth `a` is consistent over a clip but of unknown unit; anchor depth `b` is metric but wrong by a factor
that changes from frame to frame. Each anchor frame gives one raw log ratio, a weighted median over its pixels; the
clip's scale is a robust centre of those, and it is allowed to vary in time only if a test on the series says that
a constant cannot explain it.

Why not the paper's estimator (kept as `method="paper"`): least squares lets far pixels decide, where anchors are
worst, and one infinite pixel ruins it; an exponential mean with momentum 0.99 remembers its first frames for a
hundred frames and turns frame noise into a wandering scale. `benchmarks/scale_estimators.py` compares them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F64
from ...dataset.reasons import ReasonCode
from .change import choose_model
from .records import ScaleConfig, ScaleEstimate, ScaleModel
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
            mad_log=mad(residual) if len(x) else nan,
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
        model, p_value, fit = choose_model(t, x, config)
        kept = inliers_of(t, x, fit, config.outlier_mads)
        log_scale = fit.predict(t[kept], x[kept], at)
        residual = x - fit.predict(t[kept], x[kept], t)
    deviation = residual[kept]
    correlation = autocorrelation(deviation)
    effective = max(1.0, kept.sum() * (1 - correlation) / (1 + correlation))
    return ScaleEstimate(
        metres_per_unit=np.exp(log_scale),
        model=model,
        frame=frame,
        raw=raw,
        mad_log=mad(residual),
        sigma_log=float(1.2533 * mad(deviation) / np.sqrt(effective)),
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
