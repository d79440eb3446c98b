"""The scale of one frame: a weighted median of the ratio of metric over sequence depth."""

from __future__ import annotations

import numpy as np

from ...dataset.arrays import F64, FloatArray
from .records import ScaleConfig


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
