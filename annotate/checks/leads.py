"""How much better depth fits as it is than in another reading, over pairs of frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dataset.arrays import FloatArray

LEAST_PAIRS = 3
FITTED_PX = 4.0
"""Misfit (pixels of a 640 px image) that some reading has to reach for a pair to tell readings apart."""
SURE = 3.5
"""Standard errors that count as certainty."""
MATTERS_LOG = 0.12
"""Lead of another reading below which it makes no difference worth a rejection."""


@dataclass(frozen=True)
class Lead:
    """How much better the depth fits as it is than in another reading: mean of logs and its error over pairs.

    The error of few pairs leans on what is usual, 40 % of the mean from pair to pair.
    """

    mean: float
    sigma: float
    num_pairs: int
    sure: float = SURE

    @property
    def margin(self) -> float:
        """Below zero where the other reading is better, for certain and by an amount that matters."""
        return max(self.mean + self._doubt, self.mean + MATTERS_LOG)

    @property
    def lost(self) -> bool:
        return self.margin < 0

    @property
    def won(self) -> bool:
        """Whether the other reading is worse, for certain."""
        return self.mean > 2 * MATTERS_LOG and self.mean - self._doubt > 0

    @property
    def _doubt(self) -> float:
        return self.sure * self.sigma if self.num_pairs >= LEAST_PAIRS else float("nan")


def lead_of(given: FloatArray, other: FloatArray) -> Lead:
    """Lead of the reading whose costs (P,) are `given`."""
    apart = np.clip(other - given, -2, 2)
    apart = apart[np.isfinite(apart)]
    count, usual = len(apart), 4
    if count < 2:
        return Lead(float("nan"), float("nan"), count)
    mean = float(apart.mean())
    square = float(((apart - mean) ** 2).sum()) + usual * (0.4 * mean) ** 2
    variance = max(square / (count - 1 + usual), 0.05**2)
    # Student's spread of a mean whose variance is estimated.
    return Lead(mean, float(np.sqrt(variance / count * (count - 1 + usual) / (count - 3 + usual))), count)
