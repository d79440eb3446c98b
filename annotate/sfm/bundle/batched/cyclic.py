"""Factorisation of many symmetric block tridiagonal matrices at once, by cyclic reduction.

Every other block is eliminated at a time, all of them together, so that a matrix of n blocks takes log2 n steps and
not n. It is Cholesky's factorisation in another order of the blocks, and as stable.

Source: Hockney 1965; Heller 1976 (block matrices).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Level:
    """Blocks that were eliminated together: the odd ones of a level."""

    inverse: Tensor  # (B, odd, S, S) of their Cholesky factors
    before: Tensor  # (B, odd, S, S) inverse factor times the coupling with the even block before
    after: Tensor  # (B, even - 1, S, S) ... and after, where there is one


class CyclicFactor:
    """Factor of B matrices; solves with it.

    Attributes:
        failed: (B,) bool, True for matrices that are not positive definite; what is solved with those means nothing.
    """

    def __init__(self, diagonal: Tensor, upper: Tensor) -> None:
        """`diagonal` (B, n, S, S), `upper` (B, n - 1, S, S): block k of `upper` couples rows k, columns k + 1."""
        self._levels: list[_Level] = []
        self._eye = torch.eye(diagonal.shape[-1], dtype=diagonal.dtype, device=diagonal.device)
        self.failed = torch.zeros(len(diagonal), dtype=torch.bool, device=diagonal.device)
        while diagonal.shape[1] > 1:
            inverse = self._inverse_factor(diagonal[:, 1::2])
            odd = inverse.shape[1]
            before = inverse @ upper[:, 0::2].transpose(-1, -2)
            after = inverse[:, : upper.shape[1] - odd] @ upper[:, 1::2]
            self._levels.append(_Level(inverse, before, after))
            joined = before[:, : after.shape[1]].transpose(-1, -2)
            diagonal = diagonal[:, 0::2].clone()
            diagonal[:, :odd] -= before.transpose(-1, -2) @ before
            diagonal[:, 1:] -= after.transpose(-1, -2) @ after
            upper = -(joined @ after)
        self._last = self._inverse_factor(diagonal)

    def _inverse_factor(self, blocks: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(blocks)
        self.failed = self.failed | (info != 0).any(1)
        # Multiplying by it is one batched product; substitution goes row by row.
        return torch.linalg.solve_triangular(factor, self._eye.expand_as(factor), upper=False)

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve for (B, n, S, columns)."""
        odds = []
        for level in self._levels:
            y = level.inverse @ rhs[:, 1::2]
            odds.append(y)
            rhs = rhs[:, 0::2].clone()
            rhs[:, : y.shape[1]] -= level.before.transpose(-1, -2) @ y
            rhs[:, 1:] -= level.after.transpose(-1, -2) @ y[:, : level.after.shape[1]]
        x = self._last.transpose(-1, -2) @ (self._last @ rhs)
        for level, y in zip(reversed(self._levels), reversed(odds), strict=True):
            number = y.shape[1]
            y = y - level.before @ x[:, :number]
            y[:, : level.after.shape[1]] -= level.after @ x[:, 1:]
            whole = x.new_empty(x.shape[0], x.shape[1] + number, *x.shape[2:])
            whole[:, 0::2], whole[:, 1::2] = x, level.inverse.transpose(-1, -2) @ y
            x = whole
        return x
