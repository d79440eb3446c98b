"""How sure a mean is: bootstrap over clips, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..arrays import FloatArray


@dataclass(frozen=True, kw_only=True)
class MeanWithInterval:
    """Mean of a score over clips with its bootstrap confidence interval, and how many clips have the
    score."""

    mean: float
    low: float
    high: float
    num_clips: int


def bootstrap_mean(
    values: Sequence[float] | FloatArray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> MeanWithInterval:
    """Mean and percentile bootstrap interval over clips (Efron 1979); one clip gives an interval of zero
    width.

    Raises:
        ValueError: no values, or a non-finite one.
    """
    x = np.asarray(values, dtype=np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError("bootstrap_mean: values must be finite, and at least one")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            x[rng.integers(0, len(x), size=(chunk, len(x)))].mean(axis=1)
            for chunk in _chunks(num_resamples, len(x))
        ]
    )
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return MeanWithInterval(mean=float(x.mean()), low=float(low), high=float(high), num_clips=len(x))


def _chunks(total: int, width: int) -> list[int]:
    """Sizes of batches of resamples that keep the index array below some 80 MB."""
    size = max(1, min(total, 10_000_000 // max(width, 1)))
    return [size] * (total // size) + ([total % size] if total % size else [])


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Difference of a score between two runs over the clips that both have (first minus second).

    Attributes:
        p_value: two-sided Wilcoxon signed-rank test; 1 if all differences are zero.
    """

    difference: MeanWithInterval
    p_value: float


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Bootstrap interval of the mean difference and Wilcoxon's signed-rank test, clip by clip.

    Raises:
        ValueError: lengths differ, or fewer than two clips.
    """
    from scipy.stats import wilcoxon

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"paired_difference: need two equally long lists of at least two clips, found {a.shape}, {b.shape}"
        )
    d = a - b
    p = 1.0 if not np.any(d) else float(cast(Any, wilcoxon(d)).pvalue)
    return PairedDifference(difference=bootstrap_mean(d, seed=seed), p_value=p)
