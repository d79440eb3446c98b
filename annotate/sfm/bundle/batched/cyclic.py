"""Factorisation of many symmetric block tridiagonal matrices at once, by cyclic reduction.

Every other block is eliminated at a time, all of them together, so that a matrix of n blocks takes log2 n steps and
not n. It is Cholesky's factorisation in another order of the blocks, and as stable.

Source: Hockney 1965; Heller 1976 (block matrices).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class _Level:
    """Blocks that were eliminated together: the odd ones of a level, D, with the couplings of each with the even blocks
    before and after it, U (nothing after the last where their number is even)."""

    inverse: Tensor  # (B, odd, S, S) of D
    beside: Tensor  # (B, odd, S, 2 S) inverse of D times U


class CyclicFactor:
    """Factor of B matrices; solves with it.

    Attributes:
        failed: (B,) bool, True for matrices that are not positive definite; what is solved with those means nothing.
    """

    def __init__(self, diagonal: Tensor, upper: Tensor) -> None:
        """`diagonal` (B, n, S, S), `upper` (B, n - 1, S, S): block k of `upper` couples rows k, columns k + 1."""
        self._levels: list[_Level] = []
        size = diagonal.shape[-1]
        self._eye = torch.eye(size, dtype=diagonal.dtype, device=diagonal.device)
        self.failed = torch.zeros(len(diagonal), dtype=torch.bool, device=diagonal.device)
        while diagonal.shape[1] > 1:
            root = self._inverse_factor(diagonal[:, 1::2])
            odd, after = root.shape[1], upper.shape[1] - root.shape[1]
            following = pad(upper[:, 1::2], (0, 0, 0, 0, 0, odd - after))
            sides = root @ torch.cat([upper[:, 0::2].transpose(-1, -2), following], -1)
            turned = root.transpose(-1, -2)
            self._levels.append(_Level(turned @ root, turned @ sides))
            removed = sides.transpose(-1, -2) @ sides
            diagonal = diagonal[:, 0::2].clone()
            diagonal[:, :odd] -= removed[..., :size, :size]
            diagonal[:, 1:] -= removed[:, :after, size:, size:]
            upper = -removed[:, :after, :size, size:]
        root = self._inverse_factor(diagonal)
        self._last = root.transpose(-1, -2) @ root

    def _inverse_factor(self, blocks: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(blocks)
        # Not every library says so of a matrix that holds no numbers.
        numbers = torch.isfinite(torch.diagonal(factor, dim1=-2, dim2=-1)).all(-1)
        self.failed = self.failed | ((info != 0) | ~numbers).any(1)
        # Multiplying by inverses is one batched product; substitution goes row by row.
        return torch.linalg.solve_triangular(factor, self._eye.expand_as(factor), upper=False)

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve for (B, n, S, columns)."""
        odds, size = [], rhs.shape[2]
        for level in self._levels:
            odd = rhs[:, 1::2].contiguous()
            odds.append(odd)
            removed = level.beside.transpose(-1, -2) @ odd
            rhs = rhs[:, 0::2].clone()
            rhs[:, : odd.shape[1]] -= removed[:, :, :size]
            rhs[:, 1:] -= removed[:, : rhs.shape[1] - 1, size:]
        x = self._last @ rhs
        for level, odd in zip(reversed(self._levels), reversed(odds), strict=True):
            number = odd.shape[1]
            whole = x.new_zeros(x.shape[0], 2 * number + 1, *x.shape[2:])
            whole[:, 0 : 2 * x.shape[1] : 2] = x
            around = torch.cat([whole[:, 0:-1:2], whole[:, 2::2]], 2)
            whole[:, 1::2] = level.inverse @ odd - level.beside @ around
            x = whole[:, : x.shape[1] + number]
        return x
