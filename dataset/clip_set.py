"""Sets of clip ids that stay small: sixteen bytes an id, for runs over more clips than a Python set has room for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
"""Of a digest. Two of a hundred million ids share one with a probability of 1e-23."""
_LOOSE = 1 << 11
"""Ids that are kept in a Python set before they are sorted in."""

Digests = NDArray[np.bytes_]
"""(N,) of `S16`."""


def digests_of(clip_ids: Iterable[str]) -> Digests:
    """(N,) digests of ids, in their order."""
    return np.array([_digest(clip_id) for clip_id in clip_ids], dtype=f"S{DIGEST_BYTES}")


def _digest(clip_id: str) -> bytes:
    # numpy takes zero bytes at the end for padding, and cuts them off: equal digests stay equal, others different.
    return hashlib.blake2b(clip_id.encode(), digest_size=DIGEST_BYTES).digest()


_Run = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Digests sorted by their first halves, almost without doubles, in two halves: numbers are compared ten times as fast
as texts."""


def _halves(digests: Digests) -> _Run:
    pairs = np.ascontiguousarray(digests).view(">u8").astype(np.uint64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _sorted(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> _Run:
    """A run of digests that are several runs one behind the other, or none."""
    # By the first half alone, which hardly any two share, and by a method to which sorted pieces are no work: sorting
    # by both takes thirty times as long. Doubles that a third digest of that half stands between stay, and do no harm.
    order = np.argsort(high, kind="stable")
    high, low = high[order], low[order]
    new = np.ones(len(high), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return high[new], low[new]


class ClipSet:
    """A growing set of clip ids; holds digests, so ids come out no more.

    Sorted runs whose lengths at least halve from one to the next: adding costs a few sorts, asking a search in each.
    """

    def __init__(self, clip_ids: Iterable[str] = ()) -> None:
        self._loose: set[bytes] = set()
        self._runs: list[_Run] = []
        self.update(clip_ids)

    def update(self, clip_ids: Iterable[str]) -> None:
        """Add ids; those that are there already cost nothing but time."""
        clip_ids = iter(clip_ids)
        while some := list(islice(clip_ids, _LOOSE)):
            self.add(digests_of(some))

    def add(self, digests: Digests) -> None:
        """Add ids by their digests."""
        if len(digests) >= _LOOSE:
            self._merge(digests)
            return
        self._loose.update(digests.tolist())
        if len(self._loose) >= _LOOSE:
            self._merge(np.array(list(self._loose), dtype=f"S{DIGEST_BYTES}"))
            self._loose.clear()

    def _merge(self, digests: Digests) -> None:
        run = _sorted(*_halves(digests))
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            high, low = self._runs.pop()
            run = _sorted(np.concatenate([high, run[0]]), np.concatenate([low, run[1]]))
        self._runs.append(run)

    def has(self, clip_ids: Sequence[str]) -> list[bool]:
        """Which of some ids are in the set."""
        return self.has_digests(digests_of(clip_ids)).tolist()

    def has_digests(self, wanted: Digests) -> NDArray[np.bool_]:
        """(N,) as `has`, of digests."""
        found = np.zeros(len(wanted), bool)
        if self._loose:
            found |= np.array([digest in self._loose for digest in wanted.tolist()], bool)
        if self._runs:
            high, low = _halves(wanted)
            order = np.argsort(high)  # neighbours are found in the same places of memory
            found[order] |= self._in_runs(high[order], low[order])
        return found

    def _in_runs(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.zeros(len(high), bool)
        for run_high, run_low in self._runs:
            place = np.minimum(np.searchsorted(run_high, high), len(run_high) - 1)
            same = run_high[place] == high
            found |= same & (run_low[place] == low)
            # Several digests with one first half: one pair among six billion ids.
            for i in np.flatnonzero(same & ~found).tolist():
                end = np.searchsorted(run_high, high[i], side="right")
                found[i] = bool((run_low[place[i] : end] == low[i]).any())
        return found

    def __contains__(self, clip_id: str) -> bool:
        return self.has([clip_id])[0]
