"""One gauge for many windows: a graph of SE(3) and log scale between windows that share frames.

Every window of a sequence network has a world frame and a unit of its own. Where two windows hold the same frame,
the same pixels carry two estimates of the same points, and the camera two estimates of its pose; together they fix
the similarity between the windows. One edge per pair of windows with common frames: neighbours that overlap, and
loops, among them windows made of frames from all over the clip.

State per window: rotation, translation and log scale to the common gauge. The log scale of every edge has a prior
at zero, because the network's own metric factor is steadier from window to window than a chain of freely fitted
scales (KITTI, as Pi3X-Long publishes it: 16.3 m against 54.4 m). Robust throughout: Cauchy weights on points inside
an edge and on edges inside the graph.

Method: iteratively reweighted Umeyama (1991) per edge; Gauss-Newton on the manifold for the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F64
from ...dataset.cameras.rotations import hat, orthonormalise, so3_exp, so3_log
from .config import AlignConfig

DEPTHS_PER_FRAME = 30.0
"""Independent errors in the depth of a frame by a network, which errs alike over parts of the image."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Geometry of some frames in a world and unit of their own.

    Attributes:
        frame: (N,) clip frame indices, in any order, each once.
        camera_to_world: (N, 4, 4) OpenCV.
        points: (N, P, 3) points in each frame's *camera*, the same P pixels in every window.
        weight: (N, P) confidence in [0, 1] with masks applied; 0 or a non-finite point is not used.
    """

    frame: NDArray[np.int64]
    camera_to_world: F64
    points: F64
    weight: F64


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Similarity that takes window `b` into the world of window `a`: x_a = scale * rotation @ x_b + translation.

    Attributes:
        a, b: window indices.
        rotation, translation, log_scale: the fit.
        residual: median over points of distance over depth; what the edge does not explain.
        num_points: points with weight.
        information: (7, 7) of (rotation, translation, log scale), in sigmas.
    """

    a: int
    b: int
    rotation: F64
    translation: F64
    log_scale: float
    residual: float
    num_points: int
    information: F64


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """Windows in one gauge: that of window 0.

    Attributes:
        rotation: (W, 3, 3), translation: (W, 3), log_scale: (W,) of each window.
        frame: (F,) sorted frames that any window holds; camera_to_world: (F, 4, 4) rigid, in the common unit.
        units: (F, W) scale that brings a window's depth of a frame to the common unit; NaN where it lacks the frame.
        edges: all edges; edge_weight: (E,) robust weight in the graph, small where an edge disagrees;
            edge_residual: (E,) disagreement with the solved graph in sigmas.
        pose_spread: (F,) relative disagreement in position between the windows of a frame, NaN with one window.
    """

    rotation: F64
    translation: F64
    log_scale: F64
    frame: NDArray[np.int64]
    camera_to_world: F64
    units: F64
    edges: tuple[Edge, ...]
    edge_weight: F64
    edge_residual: F64
    pose_spread: F64


def fit_edge(a: int, b: int, windows: Sequence[Window], config: AlignConfig) -> Edge | None:
    """Robust similarity between two windows from the points of their common frames, or None with too few.

    Points are compared in the world of each window, so both shape and poses of the common frames speak.
    """
    first, second = windows[a], windows[b]
    _, ia, ib = np.intersect1d(first.frame, second.frame, return_indices=True)
    if len(ia) == 0:
        return None
    xa = _world(first, ia)
    xb = _world(second, ib)
    depth = first.points[ia][..., 2].reshape(-1)
    weight = np.sqrt(first.weight[ia] * second.weight[ib]).reshape(-1)
    good = (weight > 0) & np.isfinite(xa).all(1) & np.isfinite(xb).all(1) & (depth > 0)
    if good.sum() < config.min_points:
        return None
    xa, xb, depth, weight = xa[good], xb[good], depth[good], weight[good]
    # Points further away are worse in proportion: the residual is relative to depth.
    prior = 1.0 / (config.point_sigma * depth) ** 2 * weight
    # Start from the cameras' relative rotation and medians, which a third of wrong points cannot move far.
    rotation = orthonormalise(
        np.mean(first.camera_to_world[ia, :3, :3] @ second.camera_to_world[ib, :3, :3].swapaxes(1, 2), axis=0)
    )
    ratio = first.points[ia][..., 2].reshape(-1)[good] / second.points[ib][..., 2].reshape(-1)[good]
    scale = float(np.exp(np.median(np.log(ratio[ratio > 0]))))
    translation = np.median(xa - scale * xb @ rotation.T, axis=0)
    robust = np.ones_like(prior)
    for _ in range(config.iterations):
        error = np.linalg.norm(xa - scale * xb @ rotation.T - translation, axis=1) * np.sqrt(prior / weight)
        # The noise of this edge is measured, so that a soft edge is not taken for outliers.
        sigma = max(1.0, float(np.median(error)) / 1.54)
        robust = 1.0 / (1.0 + (error / (config.cauchy * sigma)) ** 2)
        rotation, translation, scale = _similarity(xa, xb, prior * robust, config.scale_prior_sigma)
    difference = np.linalg.norm(xa - scale * xb @ rotation.T - translation, axis=1) / depth
    return Edge(
        a=a,
        b=b,
        rotation=rotation,
        translation=translation,
        log_scale=float(np.log(scale)),
        residual=float(np.median(difference)),
        num_points=int(good.sum()),
        information=_information(scale * xb @ rotation.T, prior * robust, len(ia)),
    )


def align_windows(windows: Sequence[Window], config: AlignConfig | None = None) -> Aligned:
    """Bring all windows into the world and unit of the first.

    Raises:
        ValueError: no windows, a window without frames, or windows that no chain of edges connects (named).
    """
    config = config or AlignConfig()
    return _solve_graph(windows, _all_edges(windows, config), config)


def align_connected(
    windows: Sequence[Window], config: AlignConfig | None = None
) -> tuple[list[int], Aligned]:
    """Bring those windows together that hang together: the connected part that holds most frames.

    Returns:
        Numbers of the windows used, and their alignment (in which they count from 0).
    Raises:
        ValueError: no windows, or a window without frames.
    """
    config = config or AlignConfig()
    edges = _all_edges(windows, config)
    part = list(range(len(windows)))
    for edge in edges:
        keep, drop = sorted((part[edge.a], part[edge.b]))
        part = [keep if p == drop else p for p in part]
    parts = [[i for i, p in enumerate(part) if p == label] for label in sorted(set(part))]
    used = max(parts, key=lambda ws: len(np.unique(np.concatenate([windows[i].frame for i in ws]))))
    number = {w: i for i, w in enumerate(used)}
    inside = tuple(replace(e, a=number[e.a], b=number[e.b]) for e in edges if e.a in number)
    return used, _solve_graph([windows[i] for i in used], inside, config)


def _all_edges(windows: Sequence[Window], config: AlignConfig) -> tuple[Edge, ...]:
    if not windows:
        raise ValueError("no windows to align")
    for i, window in enumerate(windows):
        if len(window.frame) == 0 or len(np.unique(window.frame)) != len(window.frame):
            raise ValueError(
                f"window {i} must hold at least one frame and each only once, got {window.frame}"
            )
    return tuple(
        edge
        for a, b in combinations(range(len(windows)), 2)
        if (edge := fit_edge(a, b, windows, config)) is not None
    )


def _solve_graph(windows: Sequence[Window], edges: tuple[Edge, ...], config: AlignConfig) -> Aligned:
    rotation, translation, log_scale = _spanning_tree(len(windows), edges)
    weight = np.ones(len(edges))
    for _ in range(config.iterations):
        hessian = np.zeros((7 * len(windows),) * 2)
        gradient = np.zeros(7 * len(windows))
        for index, edge in enumerate(edges):
            error, jacobian_a, jacobian_b = _edge_error(edge, rotation, translation, log_scale)
            squared = float(error @ edge.information @ error)
            weight[index] = 1.0 / (1.0 + squared / (7 * config.cauchy**2))
            information = weight[index] * edge.information
            sa, sb = slice(7 * edge.a, 7 * edge.a + 7), slice(7 * edge.b, 7 * edge.b + 7)
            for s, j in ((sa, jacobian_a), (sb, jacobian_b)):
                gradient[s] += j.T @ information @ error
                for s2, j2 in ((sa, jacobian_a), (sb, jacobian_b)):
                    hessian[s, s2] += j.T @ information @ j2
            difference = log_scale[edge.b] - log_scale[edge.a]
            precision = 1.0 / config.scale_prior_sigma**2
            ga, gb = 7 * edge.a + 6, 7 * edge.b + 6
            gradient[gb] += precision * difference
            gradient[ga] -= precision * difference
            hessian[gb, gb] += precision
            hessian[ga, ga] += precision
            hessian[ga, gb] -= precision
            hessian[gb, ga] -= precision
        # Window 0 is the gauge.
        if len(windows) == 1:
            break
        free = slice(7, None)
        damped = hessian[free, free] + 1e-9 * np.diag(np.diag(hessian[free, free]) + 1e-12)
        step = np.zeros(7 * len(windows))
        step[free] = -np.linalg.solve(damped, gradient[free])
        for i, d in enumerate(step.reshape(-1, 7)):
            rotation[i] = orthonormalise(so3_exp(d[:3]) @ rotation[i])
            translation[i] += d[3:6]
            log_scale[i] += d[6]
        if np.abs(step).max() < 1e-10:
            break
    residual = np.array(
        [
            np.sqrt(e @ edge.information @ e / 7)
            for edge in edges
            for e in (_edge_error(edge, rotation, translation, log_scale)[0],)
        ]
    )
    frames, poses, units, spread = _merge(windows, rotation, translation, log_scale)
    return Aligned(
        rotation=rotation,
        translation=translation,
        log_scale=log_scale,
        frame=frames,
        camera_to_world=poses,
        units=units,
        edges=edges,
        edge_weight=weight,
        edge_residual=residual,
        pose_spread=spread,
    )


def _world(window: Window, index: NDArray[np.int64]) -> F64:
    """(n * P, 3) points of some frames in the window's world."""
    pose = window.camera_to_world[index]
    world = np.einsum("nij,npj->npi", pose[:, :3, :3], window.points[index]) + pose[:, None, :3, 3]
    return world.reshape(-1, 3)


def _similarity(xa: F64, xb: F64, weight: F64, scale_sigma: float) -> tuple[F64, F64, float]:
    """Weighted Umeyama with a prior on log scale: worth one measurement of relative precision 1 / scale_sigma."""
    total = weight.sum()
    ma, mb = (weight[:, None] * xa).sum(0) / total, (weight[:, None] * xb).sum(0) / total
    ca, cb = xa - ma, xb - mb
    u, s, vt = np.linalg.svd((weight[:, None] * ca).T @ cb)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    variance = float((weight * (cb**2).sum(1)).sum())
    measured = float(np.log((s * sign).sum() / variance))
    # Points of one frame share their error, so the curvature of thousands of them says too much: a scale is
    # never believed better than one hundredth.
    precision = min(variance, 1e4)
    log_scale = measured * precision / (precision + 1.0 / scale_sigma**2)
    scale = float(np.exp(log_scale))
    return rotation, ma - scale * rotation @ mb, scale


def _information(x: F64, weight: F64, num_frames: int) -> F64:
    """Normal matrix of (rotation, translation, log scale) from points x, which count as `DEPTHS_PER_FRAME` a frame."""
    jacobian = np.zeros((len(x), 3, 7))
    jacobian[:, :, :3] = -hat(x)
    jacobian[:, :, 3:6] = np.eye(3)
    jacobian[:, :, 6] = x
    full = np.einsum("n,nki,nkj->ij", weight, jacobian, jacobian)
    return full * min(1.0, DEPTHS_PER_FRAME * num_frames / max(1, len(x))) + 1e-9 * np.eye(7)


def _edge_error(edge: Edge, rotation: F64, translation: F64, log_scale: F64) -> tuple[F64, F64, F64]:
    """Error of an edge in the frame of window a, and its derivatives by both windows' increments.

    Increments: rotation from the left in the common gauge, translation and log scale added.
    """
    ra, rb = rotation[edge.a], rotation[edge.b]
    shrink = float(np.exp(-log_scale[edge.a]))
    predicted_rotation = ra.T @ rb
    offset = translation[edge.b] - translation[edge.a]
    predicted_translation = shrink * ra.T @ offset
    error = np.concatenate(
        [
            so3_log(predicted_rotation @ edge.rotation.T),
            predicted_translation - edge.translation,
            [log_scale[edge.b] - log_scale[edge.a] - edge.log_scale],
        ]
    )
    ja, jb = np.zeros((7, 7)), np.zeros((7, 7))
    jb[:3, :3], ja[:3, :3] = ra.T, -ra.T
    jb[3:6, 3:6], ja[3:6, 3:6] = shrink * ra.T, -shrink * ra.T
    ja[3:6, :3] = shrink * ra.T @ hat(offset)
    ja[3:6, 6] = -predicted_translation
    jb[6, 6], ja[6, 6] = 1.0, -1.0
    return error, ja, jb


def _spanning_tree(num_windows: int, edges: Sequence[Edge]) -> tuple[F64, F64, F64]:
    """Start values along the edges with the smallest residual first."""
    rotation = np.tile(np.eye(3), (num_windows, 1, 1))
    translation, log_scale = np.zeros((num_windows, 3)), np.zeros(num_windows)
    placed = {0}
    while len(placed) < num_windows:
        ready = [e for e in edges if (e.a in placed) != (e.b in placed)]
        if not ready:
            missing = sorted(set(range(num_windows)) - placed)
            raise ValueError(f"windows {missing} share too few good points with the others; use more overlap")
        edge = min(ready, key=lambda e: e.residual / np.sqrt(e.num_points))
        scale = np.exp(edge.log_scale)
        if edge.a in placed:
            a, b, r, t, s = edge.a, edge.b, edge.rotation, edge.translation, scale
        else:
            a, b, r, s = edge.b, edge.a, edge.rotation.T, 1 / scale
            t = -s * r @ edge.translation
        rotation[b] = rotation[a] @ r
        translation[b] = translation[a] + np.exp(log_scale[a]) * rotation[a] @ t
        log_scale[b] = log_scale[a] + np.log(s)
        placed.add(b)
    return rotation, translation, log_scale


def _merge(
    windows: Sequence[Window], rotation: F64, translation: F64, log_scale: F64
) -> tuple[NDArray[np.int64], F64, F64, F64]:
    """One rigid pose a frame: mean rotation and median centre over the windows that hold it."""
    frames = np.unique(np.concatenate([w.frame for w in windows]))
    centres = np.full((len(frames), len(windows), 3), np.nan)
    rotations = np.zeros((len(frames), 3, 3))
    units = np.full((len(frames), len(windows)), np.nan)
    depth = np.full((len(frames), len(windows)), np.nan)
    for i, window in enumerate(windows):
        rows = np.searchsorted(frames, window.frame)
        scale = np.exp(log_scale[i])
        centres[rows, i] = scale * window.camera_to_world[:, :3, 3] @ rotation[i].T + translation[i]
        rotations[rows] += rotation[i] @ window.camera_to_world[:, :3, :3]
        units[rows, i] = scale
        z = np.where(window.weight > 0, window.points[..., 2], np.nan)
        usable = np.isfinite(z).any(axis=1)
        depth[rows[usable], i] = scale * np.nanmedian(z[usable], axis=1)
    poses = np.tile(np.eye(4), (len(frames), 1, 1))
    poses[:, :3, :3] = orthonormalise(rotations)
    poses[:, :3, 3] = np.nanmedian(centres, axis=1)
    counts = np.isfinite(units).sum(axis=1)
    distance = np.linalg.norm(centres - poses[:, None, :3, 3], axis=-1)
    spread = np.full(len(frames), np.nan)
    several = counts > 1
    known = several & np.isfinite(depth).any(axis=1)
    if known.any():
        spread[known] = np.nanmax(distance[known], axis=1) / np.nanmedian(depth[known], axis=1)
    return frames, poses, units, spread
