"""Sets of clip ids that stay small: sixteen bytes an id, for runs over more clips than a Python set has room for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_LENGTH = 16
"""Bytes of a digest. Two of a hundred million ids share one with a probability of 1e-23."""
_LOOSE = 1 << 13
"""Ids that are kept in a Python set before they are sorted in."""

Digests = NDArray[np.bytes_]
"""(N,) of `S16`."""


def digests_of(clip_ids: Iterable[str]) -> Digests:
    """(N,) digests of ids, in their order."""
    return np.array([_digest(clip_id) for clip_id in clip_ids], dtype=f"S{_LENGTH}")


def _digest(clip_id: str) -> bytes:
    # numpy takes zero bytes at the end for padding, and gives them back: equal digests stay equal, others different.
    return hashlib.blake2b(clip_id.encode(), digest_size=_LENGTH).digest()


class ClipSet:
    """A growing set of clip ids; holds digests, so ids come out no more.

    Sorted runs whose lengths at least halve from one to the next: adding costs a few sorts, asking a search in each.
    """

    def __init__(self, clip_ids: Iterable[str] = ()) -> None:
        self._loose: set[bytes] = set()
        self._runs: list[Digests] = []
        self.update(clip_ids)

    def update(self, clip_ids: Iterable[str]) -> None:
        """Add ids; those that are there already cost nothing but time."""
        for clip_id in clip_ids:
            self._loose.add(_digest(clip_id))
            if len(self._loose) >= _LOOSE:
                self._sort_in()

    def _sort_in(self) -> None:
        run = np.sort(np.array(list(self._loose), dtype=f"S{_LENGTH}"))
        self._loose.clear()
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        self._runs.append(run)

    def has(self, clip_ids: Sequence[str]) -> list[bool]:
        """Which of some ids are in the set."""
        digests = [_digest(clip_id) for clip_id in clip_ids]
        found = np.array([digest in self._loose for digest in digests], dtype=bool)
        wanted = np.array(digests, dtype=f"S{_LENGTH}")
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, wanted), len(run) - 1)
            found |= run[place] == wanted
        return found.tolist()

    def __contains__(self, clip_id: str) -> bool:
        return self.has([clip_id])[0]
