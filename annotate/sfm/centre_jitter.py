"""Does the picture shift on its own, from frame to frame? Stabilisers crop a moving window out of what the lens shows.

A window that shifts moves the principal point, frame by frame. The cameras take nearly all of that for turns: a turn by
a small angle shifts the picture by f times the angle in its middle, but by f (1 + x^2) times it at x = tan of the angle
from the axis. What is left after the best turn, step and focal length grows with x^2 and xy, and is measured here.
"""

from __future__ import annotations

import numpy as np

from ...dataset.arrays import FloatArray
from ...dataset.robust import MAD_TO_SIGMA
from .bundle.problem import Problem, Solution, project

_LEAST = 40
"""Observations of a frame from which on it is asked."""


def centre_jitter_px(problem: Problem, solution: Solution) -> float:
    """Standard deviation over frames of the principal point, in pixels along one axis, beyond what errors of single
    measurements make of it; NaN where fewer than eight frames tell.

    A lower bound: points, depth and the bundle's other unknowns have taken up a part.
    """
    uv_px, point = (seen.numpy() for seen in project(problem, solution.state))
    residual_px = problem.uv_px.numpy() - uv_px
    # Links by alignment are no measurements of points.
    used = ((solution.weight > 0.3) & (problem.sigma_px < 2 * problem.sigma_px.median())).numpy()
    used &= (point[:, 2] > 1e-6) & np.isfinite(residual_px).all(1)
    focal_px = solution.state.log_focal.exp().numpy()
    frame = problem.frame.numpy()[used]
    order = np.argsort(frame, kind="stable")
    of_frame = np.split(order, np.searchsorted(frame[order], np.arange(1, problem.num_frames)))
    point, residual_px = point[used], residual_px[used]
    found = [
        _centre(point[rows], residual_px[rows], focal_px[k])
        for k, rows in enumerate(of_frame)
        if len(rows) >= _LEAST
    ]
    if len(found) < 8:
        return float("nan")
    centre, variance = (np.stack(x) for x in zip(*found, strict=True))
    spread = MAD_TO_SIGMA * np.median(np.abs(centre - np.median(centre, axis=0)), axis=0)
    beyond = np.maximum(spread**2 - np.median(variance, axis=0), 0)
    return float(np.sqrt(beyond.mean()))


def _centre(point: FloatArray, residual_px: FloatArray, focal_px: float) -> tuple[FloatArray, FloatArray]:
    """Principal point (2,) that residuals (N, 2) ask for beside turn, step and focal length, and its variances."""
    x, y, near = point[:, 0] / point[:, 2], point[:, 1] / point[:, 2], 1 / point[:, 2]
    no, one = np.zeros_like(x), np.ones_like(x)
    across = np.stack([-x * y, 1 + x * x, -y, near, no, -x * near, x], 1)
    down = np.stack([-1 - y * y, x * y, x, no, near, -y * near, y], 1)
    taken = focal_px * np.concatenate([across, down])
    basis, _ = np.linalg.qr(taken / np.maximum(np.linalg.norm(taken, axis=0), 1e-12))
    centre = np.concatenate([np.stack([one, no], 1), np.stack([no, one], 1)])
    centre = centre - basis @ (basis.T @ centre)
    error = residual_px.T.reshape(-1)
    error = error - basis @ (basis.T @ error)
    covariance = np.linalg.pinv(centre.T @ centre)
    found = covariance @ (centre.T @ error)
    noise = np.square(error - centre @ found).sum() / max(1, len(error) - 9)
    return found, np.diag(covariance) * noise
