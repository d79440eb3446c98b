"""How lenses bend what a pinhole camera of the same focal length would show, as `radial_k1` and `lens_model` say."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import F64


def bent(rays: ArrayLike, k1: float, k2: float, *, fisheye: bool = False) -> F64:
    """Where a lens shows rays (..., 2) = (X/Z, Y/Z): (..., 2) in focal lengths from the principal point.

    At n (1 + k1 |n|^2 + k2 |n|^4), or of a fisheye at t (1 + k1 t^2 + k2 t^4) n / |n| with t = atan |n|. NaN from the
    first fold on: what lies further out is not in the picture, or on top of what is.
    """
    n = np.asarray(rays, np.float64)
    radius = np.linalg.norm(n, axis=-1, keepdims=True)
    t = np.arctan(radius) if fisheye else radius
    square = t * t
    share = np.divide(t, radius, out=np.ones_like(radius), where=radius > 0)
    out = n * share * (1 + square * (k1 + k2 * square))
    return np.where(square < _fold(k1, k2), out, np.nan)


def _fold(k1: float, k2: float) -> float:
    """Least square s of t at which t (1 + k1 s + k2 s^2) stops growing; infinite if it never does."""
    roots = np.roots([5 * k2, 3 * k1, 1]) if k1 or k2 else np.zeros(0)
    real = [float(root.real) for root in roots if abs(root.imag) < 1e-12 and root.real > 0]
    return min(real, default=float("inf"))
