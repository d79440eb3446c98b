"""Which window is a run's sample number g: one order over all windows, or sources mixed by weight.

The answer follows from the seed and g alone. Mixed, sources take turns in a pattern that repeats, spread as evenly as
their weights allow, and each goes through its own windows epoch by epoch: after any number of samples every source has
had its share to within about one sample, and a small source is seen more often than a large one only if its weight says
so.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..dataset.encoded import Window
from ..dataset.loading import epoch_order

_STEP = 7919
"""Places further on in the epoch, to another shard: where a window stands in for one that cannot be read."""
_PATTERN = 4096
"""Samples after which the pattern of sources repeats: weights are kept to one in so many."""


def seed_of(seed: int, number: int) -> int:
    """Seed of a sample's draws."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


class SampleOrder(Protocol):
    """Position of every sample among the windows that are trained on."""

    @property
    def alternatives(self) -> int:
        """Windows that may stand in for one another, at the most."""
        ...

    def position(self, number: int, attempt: int = 0) -> int:
        """Of sample `number`; with `attempt` of another window of the same epoch and source."""
        ...


@dataclass(frozen=True)
class OneOrder:
    """All windows alike: an epoch is a permutation of them."""

    count: int
    seed: int

    @property
    def alternatives(self) -> int:
        """All."""
        return self.count

    def position(self, number: int, attempt: int = 0) -> int:
        """As `SampleOrder`."""
        order = _order(self.count, self.seed, number // self.count)
        return int(order[(number + attempt * _STEP) % self.count])


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """Sources that take turns by weight.

    Attributes:
        members: positions of each source's windows.
        seeds: of each source's epochs.
        pattern: (P,) number of the source of each sample of a cycle.
        before: (P, S) samples of each source in the cycle before this one.
        counts: (S,) of each source in a cycle.
    """

    members: tuple[NDArray[np.int64], ...]
    seeds: tuple[int, ...]
    pattern: NDArray[np.int64]
    before: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def alternatives(self) -> int:
        """Of the largest source."""
        return max(len(m) for m in self.members)

    def position(self, number: int, attempt: int = 0) -> int:
        """As `SampleOrder`."""
        cycle, slot = divmod(number, len(self.pattern))
        source = int(self.pattern[slot])
        own = cycle * int(self.counts[source]) + int(self.before[slot, source])
        members = self.members[source]
        order = _order(len(members), self.seeds[source], own // len(members))
        return int(members[order[(own + attempt * _STEP) % len(members)]])


@lru_cache(maxsize=32)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(count, seed=seed, epoch=epoch)


def sample_order(windows: Sequence[Window], *, seed: int, weights: Mapping[str, float] | None) -> SampleOrder:
    """The order of a run.

    Args:
        windows: that are trained on.
        weights: by source, in any unit; a source of weight 0 is left out. None: all windows alike.
    Raises:
        ValueError: weights and windows do not name the same sources; says which.
    """
    if weights is None:
        return OneOrder(len(windows), seed)
    sources = {w.source for w in windows}
    unknown = sorted(s or "(encoded without source: encode again)" for s in sources - weights.keys())
    absent = sorted(weights.keys() - sources)
    if unknown or absent:
        problems = [f"no weight for {', '.join(unknown)}"] * bool(unknown)
        problems += [f"no windows of {', '.join(absent)}"] * bool(absent)
        raise ValueError(f"data.sources: {'; '.join(problems)}")
    used = sorted(s for s in sources if weights[s] > 0)
    pattern = _spread([weights[s] for s in used])
    onehot = pattern[:, None] == np.arange(len(used))
    return MixedOrder(
        members=tuple(np.array([i for i, w in enumerate(windows) if w.source == s]) for s in used),
        seeds=tuple(zlib.crc32(f"{seed} {s}".encode()) for s in used),
        pattern=pattern,
        before=np.cumsum(onehot, axis=0) - onehot,
        counts=onehot.sum(axis=0),
    )


def _spread(weights: Sequence[float]) -> NDArray[np.int64]:
    """(P,) numbers of sources, each as often as its weight says (at least once) and as evenly spread as may be."""
    share = np.asarray(weights, np.float64) / np.sum(weights) * _PATTERN
    counts = np.maximum(1, np.floor(share)).astype(np.int64)
    while (missing := _PATTERN - int(counts.sum())) != 0:
        # Largest remainder first; a source with one turn keeps it.
        best = (
            np.argmax(share - counts)
            if missing > 0
            else np.argmax(np.where(counts > 1, counts - share, -np.inf))
        )
        counts[best] += 1 if missing > 0 else -1
    turns = np.concatenate([(np.arange(c) + 0.5) / c for c in counts])
    who = np.repeat(np.arange(len(counts)), counts)
    return who[np.lexsort((who, turns))]
