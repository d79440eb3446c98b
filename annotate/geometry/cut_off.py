"""Where the range of depth ends: values that are no measurements, left out for all who read the maps.

What lies beyond the range of a sensor, or nearer, reads its limit. Single maps tell where many of their pixels do; one
that few of do, tells nothing by itself, and its limit is that of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray
from .base import DepthMaps

_NUM_MAPS = 32
"""Maps that are asked for the limits of a clip."""
_LEAST = 100
"""Depths below which a map tells nothing."""


def cut_off(z: FloatArray) -> tuple[float, float]:
    """Values at or beyond which a map (h, w) is cut off below and above: 0 and infinity where it is not.

    A range that ends shows as many pixels of exactly the extreme value (2 % at least), and many more than there are
    of the next values inwards; a wall that fills the end of the range is followed by its own neighbours.
    """
    some = _some(z)
    if len(some) < _LEAST or some.min() == some.max():
        return 0.0, np.inf
    value, count = np.unique(some, return_counts=True)
    least = max(0.02 * len(some), 1)

    def spike(first: int, next_ones: NDArray) -> bool:
        return first > least and first > 5 * next_ones.max(initial=0)

    low = float(value[0]) if spike(count[0], count[1:6]) else 0.0
    high = float(value[-1]) if spike(count[-1], count[-6:-1]) else np.inf
    return low, high


def _some(z: FloatArray) -> FloatArray:
    """(n,) depths of a map, up to some 20000 of them."""
    step = max(1, int((z.size / 20_000) ** 0.5))
    some = z[::step, ::step]
    return some[np.isfinite(some) & (some > 0)]


def measured_part(z: FloatArray, low: float, high: float) -> FloatArray:
    """A map with NaN for the values at which it is cut off, as `cut_off` says them; sky stays."""
    if low == 0 and high == np.inf:
        return z
    with np.errstate(invalid="ignore"):
        return np.where(((z > 0) & (z <= low)) | ((z >= high) & (z < np.inf)), np.float32(np.nan), z)


@dataclass(frozen=True)
class MeasuredDepth:
    """`DepthMaps` of which the values are left out at which they are cut off.

    Attributes:
        stored: the maps with them.
    """

    stored: DepthMaps

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, frame: int) -> FloatArray | None:
        """As `DepthMaps.read`. A map is cut off where it says so itself, and where it ends at a limit of others."""
        z = self.stored.read(frame)
        if z is None:
            return None
        low, high = cut_off(z)
        known = z[np.isfinite(z) & (z > 0)]
        if len(known):
            lows, highs = self.limits
            low, high = (
                end if end in limits else own
                for end, limits, own in ((float(known.min()), lows, low), (float(known.max()), highs, high))
            )
        return measured_part(z, low, high)

    @property
    def ends(self) -> bool:
        """Whether maps are cut off above."""
        return bool(self.limits[1])

    @cached_property
    def limits(self) -> tuple[frozenset[float], frozenset[float]]:
        """Values at which maps of the clip are cut off below and above: by themselves, or all together."""
        frames = np.unique(np.linspace(0, len(self) - 1, _NUM_MAPS).round().astype(int)).tolist()
        maps = [z for z in map(self.stored.read, frames) if z is not None]
        if not maps:
            return frozenset(), frozenset()
        found = [cut_off(z) for z in maps]
        together = np.concatenate([_some(z) for z in maps])
        found.append(cut_off(together[:, None]))
        return frozenset(low for low, _ in found if low > 0), frozenset(h for _, h in found if h < np.inf)
