"""How far an estimated lens is from the true one: parameters, and where it puts the points of an image.

A lens is (fx, fy, cx, cy, k1, k2, p1, p2) in pixels with the first pixel's centre at 0 (OpenCV, Kalibr), distorted as
Brown-Conrady: with n = (X/Z, Y/Z), r2 = |n|^2,
x = n (1 + k1 r2 + k2 r2^2) + (2 p1 nx ny + p2 (r2 + 2 nx^2), p1 (r2 + 2 ny^2) + 2 p2 nx ny),
pixel = (fx x0 + cx, fy x1 + cy).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import F64

LENS = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")
_STEPS = 30
_CONVERGED = 1e-9
"""Largest residual, in units of the focal length, of a ray that was found: 1e-6 px at most."""


def _distorted(n: F64, lens: F64) -> F64:
    """(..., 2) ideal positions at focal length 1 to distorted ones; `lens` (..., 8) broadcasts against them."""
    k1, k2, p1, p2 = (lens[..., i] for i in (4, 5, 6, 7))
    x, y = n[..., 0], n[..., 1]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=-1,
    )


def project(rays: ArrayLike, lens: ArrayLike) -> F64:
    """Pixels (..., 2) of rays (X/Z, Y/Z) through lenses (..., 8)."""
    n, lens = np.asarray(rays, np.float64), np.asarray(lens, np.float64)
    return _distorted(n, lens) * lens[..., :2] + lens[..., 2:4]


def unproject(pixels: ArrayLike, lens: ArrayLike) -> F64:
    """Rays (..., 2) = (X/Z, Y/Z) of pixels, the inverse of `project`; NaN where the lens folds the image, so that
    there is none."""
    pixels, lens = np.asarray(pixels, np.float64), np.asarray(lens, np.float64)
    wanted = (pixels - lens[..., 2:4]) / lens[..., :2]
    n = wanted.copy()
    small = 1e-7
    with np.errstate(all="ignore"):  # places without a ray run away
        for _ in range(_STEPS):  # Newton's method; derivatives by differences serve, as the residual decides
            residual = _distorted(n, lens) - wanted
            if not (np.abs(residual) > _CONVERGED / 100).any():
                break  # all are found, or not a number
            dx = (_distorted(n + [small, 0], lens) - _distorted(n - [small, 0], lens)) / (2 * small)
            dy = (_distorted(n + [0, small], lens) - _distorted(n - [0, small], lens)) / (2 * small)
            det = dx[..., 0] * dy[..., 1] - dy[..., 0] * dx[..., 1]
            step = np.stack(
                [
                    residual[..., 0] * dy[..., 1] - residual[..., 1] * dy[..., 0],
                    dx[..., 0] * residual[..., 1] - dx[..., 1] * residual[..., 0],
                ],
                axis=-1,
            )
            n = n - step / det[..., None]
        found = np.abs(_distorted(n, lens) - wanted).max(axis=-1) < _CONVERGED
        found &= _before_fold((n * n).sum(axis=-1), lens)
    return np.where(found[..., None], n, np.nan)


def _before_fold(r2: F64, lens: F64) -> NDArray[np.bool_]:
    """Whether radii (squared) grow with those of their images from the middle on: behind the first fold, rays meet the
    pixels of others, and no such ray comes into the picture."""
    k1, k2 = lens[..., 4], lens[..., 5]

    def slope(s: F64) -> F64:
        return 1 + 3 * k1 * s + 5 * k2 * s * s

    least = np.where(k2 > 0, np.clip(-0.3 * k1 / np.where(k2 > 0, k2, 1), 0, r2), r2)
    return (slope(r2) > 0) & (slope(least) > 0)


def image_grid(height: int, width: int, *, rows: int = 15, columns: int = 20) -> F64:
    """(rows * columns, 2) points of an image, the centres of equal cells."""
    x = (np.arange(columns) + 0.5) * width / columns - 0.5
    y = (np.arange(rows) + 0.5) * height / rows - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def end_point_errors_px(
    estimated: Sequence[ArrayLike], truth: ArrayLike, *, height: int, width: int
) -> list[F64]:
    """(F, P) distances between where the true lens and an estimated one put the same ray, over the points of
    `image_grid`; NaN where a lens is not finite, or a point has no ray.

    Args:
        estimated: (F, 8) lenses, of each of which the distances are wanted.
        truth: (F, 8) lenses of images of `height` x `width`.
    Raises:
        ValueError: the shapes differ.
    """
    t = np.asarray(truth, np.float64)
    points = image_grid(height, width)
    rays = None
    found = []
    for one in estimated:
        e = np.asarray(one, np.float64)
        if e.shape != t.shape or e.ndim != 2 or e.shape[1] != len(LENS):
            raise ValueError(f"lenses: estimated {e.shape} and true {t.shape} must both be (F, {len(LENS)})")
        rays = unproject(points[None], t[:, None]) if rays is None else rays
        found.append(np.linalg.norm(project(rays, e[:, None]) - points, axis=-1))
    return found
