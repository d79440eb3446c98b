"""What numpy and torch call differently, so that one formula serves both."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

Array = Any
"""`numpy.ndarray` in and out, or `torch.Tensor` in and out."""


def as_array(value: Any, name: str, tail: tuple[int | None, ...]) -> tuple[Any, Any]:
    """The array and its namespace (numpy or torch), after a check of the trailing dimensions."""
    torch = sys.modules.get(
        "torch"
    )  # a tensor cannot exist before torch is imported; never import it for numpy users
    if torch is not None and isinstance(value, torch.Tensor):
        array, namespace = value, torch
    else:
        array, namespace = np.asarray(value, dtype=np.float64), np
    shape = tuple(array.shape)
    ok = len(shape) >= len(tail) and all(
        want is None or got == want for got, want in zip(shape[len(shape) - len(tail) :], tail, strict=True)
    )
    if not ok:
        wanted = ", ".join("n" if n is None else str(n) for n in tail)
        raise ValueError(f"{name}: expected shape (..., {wanted}), found {shape}")
    return array, namespace


def eye(xp: Any, n: int, like: Any) -> Any:
    return np.eye(n) if xp is np else xp.eye(n, dtype=like.dtype, device=like.device)


def stack_matrix(xp: Any, rows: list[list[Any]]) -> Any:
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def safe_norm(xp: Any, rotvec: Any) -> Any:
    """(...,) length of (..., 3), with a zero instead of an undefined gradient at the origin."""
    squared = (rotvec * rotvec).sum(-1)
    positive = squared > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, squared, xp.ones_like(squared))), 0.0 * squared)


def transpose(matrix: Any) -> Any:
    return matrix.swapaxes(-1, -2)


def apply(matrix: Any, vector: Any) -> Any:
    return (matrix @ vector[..., None])[..., 0]
