"""Sums over the observations of each frame, point or pair of frames, in an order that never changes."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_A_TIME = 65536
"""Chunks of pairs whose rows are copied at a time: about 350 MB."""


class Groups:
    """Which rows of an array belong to which group.

    Rows are summed up to `chunk` at a time, then the chunks of a group: without atomic additions, so that the same
    problem gives the same bits again.
    """

    def __init__(self, group: Tensor, size: int, chunk: int) -> None:
        """`group` (N,) in [0, size) of each row, in any order; rows of a group are summed in theirs."""
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group, minlength=size)
        chunks = (counts + chunk - 1) // chunk
        self.offsets = torch.cat([chunks.new_zeros(1), torch.cumsum(chunks, 0)])
        of_chunk = torch.repeat_interleave(torch.arange(size, device=group.device), chunks)
        within = torch.arange(len(of_chunk), device=group.device) - self.offsets[of_chunk]
        first = torch.cumsum(counts, 0) - counts
        place = within[:, None] * chunk + torch.arange(chunk, device=group.device)
        rows = order[(first[of_chunk, None] + place).clamp_max(max(0, len(group) - 1))]
        missing = place >= counts[of_chunk, None]
        # A row of zeros lies behind the last.
        self.table = torch.where(missing, torch.full_like(rows, len(group)), rows)

    def _chunks(self, rows: Tensor) -> Tensor:
        """(chunks, chunk, ...) of rows (N, ...)."""
        return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])[self.table]

    def joined(self, chunks: Tensor) -> Tensor:
        """(size, ...) float64 sums of what was summed over each chunk (chunks, ...)."""
        return torch.segment_reduce(chunks.double(), "sum", offsets=self.offsets, axis=0, unsafe=True)

    def sum(self, rows: Tensor) -> Tensor:
        """(size, ...) float64 sums of rows (N, ...)."""
        return self.joined(self._chunks(rows).sum(1))

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """(size, J, K) float64 sums over rows of a (N, R, J) transposed times b (N, R, K)."""
        left = self._chunks(a).flatten(1, 2).double()
        right = left if b is a else self._chunks(b).flatten(1, 2).double()
        return self.joined(left.transpose(1, 2) @ right)


class PairGroups:
    """Sums over pairs of rows, such as observations of one point, by what the pairs have in common.

    Products of float32 rows are float32, their sums float64 from one chunk to the next.
    """

    def __init__(self, first: Tensor, second: Tensor, group: Tensor, size: int, num_rows: int) -> None:
        """`first`, `second` (M,) rows, `group` (M,) of each pair, `num_rows` N."""
        pairs = Groups(group, size, chunk=16)
        self._pairs = pairs
        none = first.new_full((1,), num_rows)
        self._first, self._second = (
            torch.cat([first, none])[pairs.table],
            torch.cat([second, none])[pairs.table],
        )

    def products(self, rows: Tensor) -> Tensor:
        """(size, K, K) float64 sums of first rows transposed times second rows, of (N, R, K)."""
        padded, parts = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]), []
        for first, second in zip(self._first.split(_AT_A_TIME), self._second.split(_AT_A_TIME), strict=True):
            left, right = padded[first].flatten(1, 2), padded[second].flatten(1, 2)
            parts.append(left.transpose(1, 2) @ right)
        return self._pairs.joined(torch.cat(parts))
