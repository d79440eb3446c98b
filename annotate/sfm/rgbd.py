"""Direct RGB-D alignment of two frames, for the links where corners and descriptors see nothing.

Blur and bare walls leave too few points for tracks, yet every pixel still says a little. The pose that lines up
brightness and depth of one frame with the next needs no correspondence (Kerl et al. 2013, "Dense visual SLAM for
RGB-D cameras"; brightness there, log depth here). It is only as good as a few pixels, so it enters the bundle
as a handful of weak observations (`link_points`), never as a pose.

Frames: OpenCV axes; depth and translation in one unit, the sequence's own; radians.
"""

# OpenCV types every image as MatLike.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray
from ...dataset.cameras.transforms import se3_exp

_LEVELS = (48, 96, 192)  # image width in pixels, coarse to fine
_BRIGHTNESS_SIGMA = 0.35  # of the locally normalised image, whose contrast is about 1
_LOG_DEPTH_SIGMA = 0.02
_LOG_FOCAL_SIGMA = 0.01  # per link: a fast zoom
_MIN_OVERLAP = 0.35
_MAX_SHIFT_SIGMA = 0.05  # image widths
# Neighbouring pixels share their errors: blur, flying depth, a texture's edge. About one in so many is news.
_PIXELS_PER_NEWS = 30.0


@dataclass(frozen=True)
class View:
    """One frame as the alignment sees it.

    Attributes:
        grey: (h, w) uint8 or float, any size with the stored image's shape ratio.
        depth: (h', w') z-depth covering the same image; NaN or infinite where unknown.
        focal: focal length in image widths (fx / width).
        overlay: (h, w) bool of `grey`'s size, True where it does not show the scene; None if it does everywhere.
    """

    grey: NDArray
    depth: FloatArray
    focal: float
    overlay: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Alignment:
    """Pose of the second frame against the first.

    Attributes:
        second_from_first: (4, 4) rigid transform of camera coordinates.
        log_focal_change: log of the second focal over the first, beside the change that the views declare.
        shift_sigma: standard deviation of the predicted image positions along the least certain direction of motion,
            in image widths.
        overlap: share of the first frame's pixels with depth that were compared at the end.
        agreement: share of the pixels with depth in both frames whose brightness and depth lie within 2.5 standard
            deviations.
    """

    second_from_first: FloatArray
    log_focal_change: float
    shift_sigma: float
    overlap: float
    agreement: float


@dataclass(frozen=True)
class _Level:
    image: FloatArray
    log_depth: FloatArray
    gradient: tuple[FloatArray, FloatArray]
    depth_gradient: tuple[FloatArray, FloatArray]
    focal: float


@dataclass(frozen=True)
class _Move:
    pose: FloatArray
    log_focal: float


def _normalised(grey: FloatArray) -> FloatArray:
    """Brightness relative to its neighbourhood: exposure and vignetting drop out, edges stay."""
    size = (0, 0)
    sigma = grey.shape[1] / 16
    mean = cv2.GaussianBlur(grey, size, sigma)
    spread = np.sqrt(cv2.GaussianBlur((grey - mean) ** 2, size, sigma))
    return (grey - mean) / (spread + 4.0)


def _level(view: View, width: int) -> _Level:
    height = max(8, round(width * view.grey.shape[0] / view.grey.shape[1]))
    grey = cv2.resize(view.grey.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    # Nearest depth: an average over an edge lies on no surface.
    depth = cv2.resize(view.depth.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    log_depth: FloatArray = np.log(np.where(np.isfinite(depth) & (depth > 0), depth, np.nan))
    image = _normalised(grey)
    if view.overlay is not None:
        # After the normalisation: what lies on the picture is neither compared nor does it leave a hole in it.
        hidden = (
            cv2.resize(view.overlay.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        )
        image, log_depth = np.where(hidden, np.nan, image), np.where(hidden, np.nan, log_depth)
    return _Level(
        image,
        log_depth,
        (np.gradient(image, axis=1), np.gradient(image, axis=0)),
        (np.gradient(log_depth, axis=1), np.gradient(log_depth, axis=0)),
        view.focal * width,
    )


_SAMPLED_AT_ONCE = 2**15 - 2
"""OpenCV refuses more rows; a square picture of the finest level has 36,864 points, an upright one more."""


def _sample(image: FloatArray, x: FloatArray, y: FloatArray, *, nearest: bool = False) -> FloatArray:
    """(n,) values at places (n, 1); NaN outside."""
    if len(x) > _SAMPLED_AT_ONCE:
        some = np.split(np.arange(len(x)), range(_SAMPLED_AT_ONCE, len(x), _SAMPLED_AT_ONCE))
        return np.concatenate([_sample(image, x[i], y[i], nearest=nearest) for i in some])
    mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(
        image.astype(np.float32),
        x.astype(np.float32),
        y.astype(np.float32),
        mode,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )[:, 0]


def _residuals(
    b: _Level, points: FloatArray, brightness: FloatArray, move: _Move
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Whitened residuals (n, 2) of brightness and log depth, NaN where not seen; Jacobian (n, 2, 7); seen (n,)."""
    height, width = b.image.shape
    pose, f = move.pose, b.focal * np.exp(move.log_focal)
    p = points @ pose[:3, :3].T + pose[:3, 3]
    z = np.maximum(p[:, 2], 1e-6)
    x = p[:, 0] / z * f + width / 2 - 0.5
    y = p[:, 1] / z * f + height / 2 - 0.5
    x, y = np.clip(x, -1e4, 1e4)[:, None], np.clip(y, -1e4, 1e4)[:, None]
    r_i = (_sample(b.image, x, y) - brightness) / _BRIGHTNESS_SIGMA
    r_d = (np.log(z) - _sample(b.log_depth, x, y, nearest=True)) / _LOG_DEPTH_SIGMA
    seen = np.isfinite(r_i) & (p[:, 2] > 1e-6)
    r = np.stack([np.where(seen, r_i, np.nan), np.where(seen, r_d, np.nan)], 1)
    zero = np.zeros_like(z)
    du = np.stack([f / z, zero, -f * p[:, 0] / z**2], 1)
    dv = np.stack([zero, f / z, -f * p[:, 1] / z**2], 1)
    zoom = np.stack([p[:, 0] / z * f, p[:, 1] / z * f], 1)
    ix, iy = (_sample(g, x, y)[:, None] for g in b.gradient)
    d_i = (ix * du + iy * dv) / _BRIGHTNESS_SIGMA
    gx, gy = (np.nan_to_num(_sample(g, x, y, nearest=True))[:, None] for g in b.depth_gradient)
    d_d = (np.stack([zero, zero, 1 / z], 1) - gx * du - gy * dv) / _LOG_DEPTH_SIGMA
    d = np.stack([d_i, d_d], 1)  # (n, 2, 3) by the point in the second camera
    # Left perturbation by (translation, rotation): d p = v + w x p
    turn = np.cross(p[:, None], d)  # d . (w x p) = w . (p x d)
    d_f = np.stack(
        [
            (ix * zoom[:, :1] + iy * zoom[:, 1:])[:, 0] / _BRIGHTNESS_SIGMA,
            -(gx * zoom[:, :1] + gy * zoom[:, 1:])[:, 0] / _LOG_DEPTH_SIGMA,
        ],
        1,
    )
    return r, np.concatenate([d, turn, d_f[..., None]], 2), seen


def _weights(r: FloatArray) -> FloatArray:
    """Student-t weights (5 degrees of freedom) of whitened residuals; 0 where NaN."""
    return np.where(np.isfinite(r), 6 / (5 + np.nan_to_num(r) ** 2), 0)


def _cost(r: FloatArray, seen: NDArray[np.bool_], move: _Move) -> float:
    """Mean robust cost of seen pixels; pixels that left the image count as outliers of three deviations."""
    cost = np.where(np.isfinite(r), 3 * np.log1p(np.nan_to_num(r) ** 2 / 5), 0).sum(1)
    prior = 0.5 * _PIXELS_PER_NEWS * (move.log_focal / _LOG_FOCAL_SIGMA) ** 2 / max(1, len(r))
    return float(np.where(seen, cost, 3 * np.log1p(9 / 5)).mean() + prior)


def _normal(r: FloatArray, jacobian: FloatArray, move: _Move) -> tuple[FloatArray, FloatArray]:
    """Weighted normal equations: (7, 7) matrix and (7,) gradient."""
    w = np.sqrt(_weights(r))
    j, e = np.nan_to_num(jacobian) * w[..., None], np.nan_to_num(r) * w
    h, g = np.einsum("nki,nkj->ij", j, j), np.einsum("nki,nk->i", j, e)
    h[6, 6] += _PIXELS_PER_NEWS / _LOG_FOCAL_SIGMA**2
    g[6] += _PIXELS_PER_NEWS * move.log_focal / _LOG_FOCAL_SIGMA**2
    return h, g


def _refine(
    b: _Level, points: FloatArray, brightness: FloatArray, move: _Move, iterations: int
) -> tuple[_Move, float]:
    r, jacobian, seen = _residuals(b, points, brightness, move)
    cost, damping = _cost(r, seen, move), 1e-3
    for _ in range(iterations):
        h, g = _normal(r, jacobian, move)
        step = -np.linalg.solve(h + damping * np.diag(np.diag(h)) + 1e-9 * np.eye(7), g)
        trial = _Move(se3_exp(step[:6]) @ move.pose, move.log_focal + float(step[6]))
        r_new, jacobian_new, seen_new = _residuals(b, points, brightness, trial)
        cost_new = _cost(r_new, seen_new, trial)
        if cost_new < cost:
            done = cost - cost_new < 1e-4 * cost
            move, cost, r, jacobian = trial, cost_new, r_new, jacobian_new
            damping = max(damping / 5, 1e-6)
            if done:
                break
        else:
            damping *= 8
            if damping > 1e3:
                break
    return move, cost


def _shift_sigma(r: FloatArray, jacobian: FloatArray, move: _Move, points: FloatArray) -> float:
    """Image motion, in focal lengths, that one standard deviation along the least certain direction makes."""
    h, _ = _normal(r, jacobian, move)
    depth = float(np.median(points[:, 2]))
    size = np.array([depth, depth, depth, 1, 1, 1, 2.0])  # of each unknown for an image motion of about one
    value, _ = np.linalg.eigh(h * size[:, None] * size[None])
    return float(np.sqrt(_PIXELS_PER_NEWS / max(float(value[0]), 1e-12)))


def _points(level: _Level) -> tuple[FloatArray, FloatArray]:
    """Camera points (n, 3) of the pixels with depth, and their normalised brightness (n,)."""
    height, width = level.image.shape
    row, column = np.nonzero(np.isfinite(level.log_depth))
    z = np.exp(level.log_depth[row, column])
    x = (column + 0.5 - width / 2) / level.focal * z
    y = (row + 0.5 - height / 2) / level.focal * z
    return np.stack([x, y, z], 1).astype(np.float64), level.image[row, column]


def align_rgbd(first: View, second: View, starts: list[FloatArray]) -> Alignment | None:
    """Pose of `second` against `first` that lines up brightness and depth.

    Args:
        starts: (4, 4) second-from-first guesses; the identity and a turn by the images' overall shift are tried too.
    Returns:
        The alignment; None where fewer than 200 pixels have depth, where less than a third of the first frame is
        seen in the second or hardly any of its depth can be compared, and where brightness and depth leave a
        direction of motion open by more than a twentieth of the image.
    """
    levels = [(_level(first, width), _level(second, width)) for width in _LEVELS]
    samples = [_points(level) for level, _ in levels]
    if any(len(points) < 200 for points, _ in samples):
        return None
    (a, b), (points, brightness) = levels[0], samples[0]
    (dx, dy), _ = cv2.phaseCorrelate(*(np.nan_to_num(v.image).astype(np.float32) for v in (a, b)))
    shifted = se3_exp(np.array([0, 0, 0, -dy / a.focal, dx / a.focal, 0]))
    tried = [_refine(b, points, brightness, _Move(g, 0.0), 30) for g in (np.eye(4), *starts, shifted)]
    move = min(tried, key=lambda t: t[1])[0]
    for (_, b), (points, brightness) in zip(levels[1:], samples[1:], strict=True):
        move, _ = _refine(b, points, brightness, move, 20)
    r, jacobian, seen = _residuals(b, points, brightness, move)
    overlap = float(seen.mean())
    compared = np.isfinite(r).all(1)
    sigma = _shift_sigma(r, jacobian, move, points) * second.focal
    if overlap < _MIN_OVERLAP or compared.sum() < 200 or sigma > _MAX_SHIFT_SIGMA:
        return None
    near = (np.abs(r[compared]) < 2.5).all(1)
    return Alignment(move.pose, move.log_focal, sigma, overlap, float(near.mean()))


def link_points(
    first: View, second: View, alignment: Alignment, *, columns: int = 9, rows: int = 7
) -> tuple[FloatArray, FloatArray]:
    """Points of a grid over the first frame and where the alignment puts them in the second.

    Returns:
        (n, 2) and (n, 2) positions in shares of width and height; only points with depth that stay inside.
    """
    height, width = first.depth.shape
    aspect = first.grey.shape[0] / first.grey.shape[1]
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    source_xy = np.stack([x.ravel(), y.ravel()], 1)
    z = first.depth[(source_xy[:, 1] * height).astype(int), (source_xy[:, 0] * width).astype(int)]
    good = np.isfinite(z) & (z > 0)
    source_xy, z = source_xy[good], z[good].astype(np.float64)
    p = np.stack(
        [(source_xy[:, 0] - 0.5) / first.focal * z, (source_xy[:, 1] - 0.5) * aspect / first.focal * z, z], 1
    )
    p = p @ alignment.second_from_first[:3, :3].T + alignment.second_from_first[:3, 3]
    focal = second.focal * np.exp(alignment.log_focal_change)
    ahead = np.maximum(p[:, 2], 1e-6)
    target_xy = np.stack([p[:, 0] / ahead * focal + 0.5, p[:, 1] / ahead * focal / aspect + 0.5], 1)
    inside = (p[:, 2] > 1e-6) & (target_xy > 0.01).all(1) & (target_xy < 0.99).all(1)
    return source_xy[inside], target_xy[inside]
