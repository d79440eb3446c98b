"""The similarity that brings one set of points closest to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import F64
from .numerics import as_array
from .transforms import transform

# --------------------------------------------------------------------------------------------- alignment


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Transform that maps source points onto target points: `target ~ scale * rotation @ source +
    translation`.

    Attributes:
        scale: target units per source unit; 1 when scale was not estimated.
        rotation: (3, 3). translation: (3,).
        inlier: (n,) bool, points that carry weight in the solution.
        residual: (n,) distance of each aligned source point to its target, in target units.
    """

    scale: float
    rotation: F64
    translation: F64
    inlier: NDArray[np.bool_]
    residual: F64

    @property
    def matrix(self) -> F64:
        """(4, 4) with the scale in the 3x3 block."""
        return transform(self.scale * self.rotation, self.translation)

    def apply_to_poses(self, camera_to_world: ArrayLike) -> F64:
        """(F, 4, 4) rigid poses with centres scaled and moved, and orientations turned (never scaled)."""
        m, _ = as_array(camera_to_world, "camera_to_world", (4, 4))
        centres = self.scale * (m[..., :3, 3] @ self.rotation.T) + self.translation
        return transform(self.rotation @ m[..., :3, :3], centres)


def umeyama(
    source: ArrayLike,
    target: ArrayLike,
    *,
    with_scale: bool,
    weights: ArrayLike | None = None,
    allow_collinear: bool = False,
) -> Alignment:
    """Least-squares similarity (or rigid) transform from `source` to `target`. Numpy only.

    Args:
        source, target: (n, 3) corresponding points.
        with_scale: Sim(3) if True, SE(3) if False.
        weights: (n,) non-negative; uniform if None.
        allow_collinear: True returns *one of* the solutions for points on a line (camera centres of a
            straight path): scale and residuals are right, rotation about the line is arbitrary.
    Raises:
        ValueError: fewer than 3 points, non-finite values, points that coincide (no scale, no rotation), or
        collinear
            points unless allowed (rotation about the line cannot be seen).
    Source: Umeyama, IEEE PAMI 13(4), 1991, equations 34 to 43; weights as in its weighted form.
    """
    x, _ = as_array(source, "source", (None, 3))
    y, _ = as_array(target, "target", (None, 3))
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"umeyama: source {x.shape} and target {y.shape} must both be (n, 3)")
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(x),) or not np.all(np.isfinite(w)) or np.any(w < 0):
        raise ValueError("umeyama: weights must be (n,) finite and non-negative")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("umeyama: points must be finite; drop invalid rows first")
    used = int(np.count_nonzero(w))
    if used < 3:
        raise ValueError(f"umeyama: {used} points carry weight, at least 3 are needed")
    w = w / w.sum()
    mean_x, mean_y = w @ x, w @ y
    dx, dy = x - mean_x, y - mean_y
    _check_spread(dx, w, "source", mean_x, allow_collinear=allow_collinear)
    _check_spread(dy, w, "target", mean_y, allow_collinear=allow_collinear)
    covariance = (dy * w[:, None]).T @ dx  # eq. 38
    u, d, vt = np.linalg.svd(covariance)
    s = np.ones(3)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:  # eq. 39 and 43
        s[2] = -1.0
    rotation = (u * s) @ vt  # eq. 40
    variance_x = float(w @ (dx * dx).sum(1))
    scale = float((d * s).sum() / variance_x) if with_scale else 1.0  # eq. 42
    translation = mean_y - scale * (rotation @ mean_x)  # eq. 41
    residual = np.linalg.norm(scale * (x @ rotation.T) + translation - y, axis=1)
    return Alignment(scale=scale, rotation=rotation, translation=translation, inlier=w > 0, residual=residual)


def _check_spread(centred: F64, weights: F64, name: str, mean: F64, *, allow_collinear: bool) -> None:
    singular = np.linalg.svd(centred * np.sqrt(weights)[:, None], compute_uv=False)
    floor = 1e-12 * max(1.0, float(np.abs(mean).max()))  # rounding noise of the coordinates themselves
    if singular[0] <= floor:
        raise ValueError(f"umeyama: all {name} points coincide; neither rotation nor scale can be found")
    if not allow_collinear and singular[1] <= max(1e-6 * singular[0], floor):
        raise ValueError(
            f"umeyama: {name} points lie on a line (second spread {singular[1]:.3g} of {singular[0]:.3g}); "
            "rotation about it cannot be seen: add points off the line, or compare scale only"
        )
