"""What a stated standard deviation of a camera promises: intervals that hold their errors."""

from __future__ import annotations

import math
from typing import Any

from .numerics import as_array

DEGREES_OF_FREEDOM = 5
"""Of Student's t distribution, which errors over the deviations that rows state follow: most clips err little, a few
much. Chosen on 109 held-out rendered clips and confirmed on 76 others (docs/results.md, stated uncertainty)."""


def interval_half_width(sigma: Any, level: float) -> Any:
    """Half of the width of the interval about what a row says that holds the truth with probability `level`.

    A deviation of a row (`position_sigma_m`, `rotation_sigma_rad`, `log_focal_sigma`, `scale_sigma_log`) is the root of
    the mean squared error that is to be expected. Errors are not Gaussian: 68 % of them lie within 0.86 and 95 % within
    1.99 deviations.

    Args:
        sigma: (...) deviations in any unit, array or tensor; NaN stays NaN.
        level: between 0 and 1, of one number: of the axis that the row's deviation is about, at one time.
    Returns:
        (...) in the unit of `sigma`.
    Raises:
        ValueError: a level that is none, or a deviation below zero.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: a share between 0 and 1, as 0.95")
    deviations, _ = as_array(sigma, "sigma", ())
    if bool((deviations < 0).any()):
        raise ValueError("sigma: a standard deviation below zero")
    return deviations * _factor(level)


def _factor(level: float) -> float:
    """Deviations to either side that hold such a share of errors."""
    from scipy.special import stdtrit  # late: reading cameras must not load scipy

    nu = DEGREES_OF_FREEDOM
    return float(stdtrit(nu, (1 + level) / 2)) * math.sqrt((nu - 2) / nu)
