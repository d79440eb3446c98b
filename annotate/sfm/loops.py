"""Links beyond neighbours: loops, pieces that lost their neighbours, and alignment of whole images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ..geometry.base import DepthMaps
from ..tracks.records import (
    DENSE,
    ImageMeasurements,
    Tracks,
    make_tracks,
)
from .bundle.problem import Problem, State, project
from .incremental import MIN_SHARED
from .rgbd import View, align_rgbd, link_points

_MIN_DENSE_AGREEMENT = 0.85
MIN_LOOP_MATCHES = 25  # between images that are not neighbours in time


@dataclass(frozen=True)
class _Views:
    """Keyframe cameras as far as overlap asks of them: (K, 3, 3) and (K, 3) world to camera, (K, 2) focal length over
    width and height, (K,) median depth."""

    rotation: FloatArray
    translation: FloatArray
    focal: FloatArray
    depth: FloatArray

    @property
    def axis(self) -> FloatArray:
        """(K, 3) viewing directions."""
        return self.rotation[:, 2]

    @cached_property
    def target(self) -> FloatArray:
        """(K, 3) middles of what they see."""
        centre = -np.einsum("fji,fj->fi", self.rotation, self.translation)
        return centre + self.axis * self.depth[:, None]

    def holds(self, view: int | slice, targets: FloatArray) -> NDArray[np.bool_]:
        """(n,) whether views, or a view, hold targets, or a target, in their pictures grown by a fifth."""
        depth = self.depth[view]
        local = (self.rotation[view] @ targets[..., None])[..., 0] + self.translation[view]
        z = np.where(local[..., 2] > 1e-6, local[..., 2], np.nan)
        with np.errstate(invalid="ignore"):
            across = np.abs(local[..., :2] / z[..., None] * self.focal[view])
            return (across < 0.6).all(-1) & (z > 0.5 * depth) & (z < 2 * depth)

    def overlapping(self, i: int, before: int) -> IntArray:
        """Numbers below `before` of the views that overlap with view `i`, nearest first."""
        earlier, target = slice(0, before), self.target
        towards = self.axis[earlier] @ self.axis[i]
        overlap = self.holds(i, target[earlier]) & self.holds(earlier, target[i])
        found = np.flatnonzero(overlap & (towards > np.cos(np.radians(50))))
        apart = np.linalg.norm(target[found] - target[i], axis=1)
        distance = apart / np.minimum(self.depth[found], self.depth[i]) + (1 - towards[found])
        return found[np.argsort(distance, kind="stable")]


def propose_loops(
    state: State,
    placed: NDArray[np.bool_],
    depth_median: FloatArray,
    size_px: tuple[float, float],
    known: set[tuple[int, int]],
    limit: int,
) -> list[tuple[int, int]]:
    """Keyframe pairs far apart in time that look at the same place, by the present cameras.

    Two views overlap if the centre of each one's view volume (at its median depth) projects into the other's image
    grown by a fifth, with viewing directions within 50 degrees and depth within a factor of 2. One keyframe is compared
    with all before it at a time, so that memory is that of a row of pairs, not of all of them.

    Args:
        depth_median: (K,) median depth of each keyframe's points.
        known: pairs already matched.
        limit: proposals per keyframe at most, nearest view first.
    """
    focal = np.exp(state.log_focal.cpu().numpy())
    views = _Views(
        state.rotation.cpu().numpy(),
        state.translation.cpu().numpy(),
        focal[:, None] / np.array(size_px),
        depth_median,
    )
    pairs: set[tuple[int, int]] = set()
    for i in np.flatnonzero(placed).tolist():
        taken: list[int] = []
        for j in views.overlapping(i, max(0, i - 8)).tolist():
            if not placed[j] or (j, i) in known:
                continue
            # Spread over time: neighbours of a pair add little.
            if all(abs(j - other) > 8 for other in taken) and not any(
                (j + a, i + b) in pairs for a in (-1, 0, 1) for b in (-1, 0)
            ):
                taken.append(j)
            if len(taken) == limit:
                break
        pairs |= {(j, i) for j in taken}
    return sorted(pairs)


def weak_links(problem: Problem, state: State, placed: NDArray[np.bool_]) -> IntArray:
    """Keyframe numbers k whose link to k + 1 rests on fewer than `MIN_SHARED` points that agree with both cameras."""
    uv, p = project(problem, replace(state, points=torch.nan_to_num(state.points)))
    error = ((uv - problem.uv_px) / problem.sigma_px[:, None]).norm(dim=1)
    good = (error < 8) & (p[:, 2] > 1e-6) & torch.isfinite(state.points).all(1)[problem.point]
    good &= torch.as_tensor(placed)[problem.frame]
    frame, point = problem.frame[good], problem.point[good]
    key = set((point * problem.num_frames + frame).tolist())
    shared = np.zeros(problem.num_frames - 1, int)
    for value in key:
        f = value % problem.num_frames
        if f + 1 < problem.num_frames and value + 1 in key:
            shared[f] += 1
    return np.nonzero(shared < MIN_SHARED)[0]


def propose_relocalisations(
    placed: NDArray[np.bool_], weak: IntArray, nearest: int = 8, spread: int = 12
) -> list[tuple[int, int]]:
    """Keyframe pairs (lower number first) that could tie a piece of the clip to the rest of it.

    Tried for each keyframe without a camera and for both ends of each weak link: the nearest placed keyframes in
    time, and some from all over the clip.

    Args:
        placed: (K,) keyframes that have a camera.
        weak: keyframes whose link to the next is weak.
        nearest, spread: placed keyframes tried per keyframe.
    """
    with_camera = np.nonzero(placed)[0]
    pairs: set[tuple[int, int]] = set()
    for k in np.unique(np.r_[np.nonzero(~placed)[0], weak, weak + 1]):
        near = with_camera[np.argsort(np.abs(with_camera - k), kind="stable")[:nearest]]
        far = with_camera[np.unique(np.linspace(0, len(with_camera) - 1, spread).round().astype(int))]
        pairs |= {(int(min(k, j)), int(max(k, j))) for j in np.r_[near, far] if j != k}
    return sorted(pairs)


def dense_links(
    measured: ImageMeasurements, depth: DepthMaps, weak: IntArray, focal_px: FloatArray
) -> Tracks | None:
    """Observations from RGB-D alignment across weak links: of each two and three neighbours that one separates.

    Args:
        weak: keyframe numbers whose link to the next one is weak.
        focal_px: (K,) focal of each keyframe.
    Returns:
        Tracks of two DENSE observations each, with their own standard deviations; None if nothing aligns.
    """
    flow, keyframes = measured.flow, measured.keyframes
    size = np.array([flow.width, flow.height])
    least_px = 1.5 * max(size) / 640.0

    def view(k: int) -> View | None:
        z, shown = depth.read(int(keyframes[k])), measured.features[k]
        focal = float(focal_px[k] / flow.width)
        return None if z is None else View(shown.thumbnail, z, focal, shown.overlay)

    pairs = {(k - a, k + b) for k in weak.tolist() for a, b in ((0, 1), (1, 1), (0, 2))}
    frame, track, xy, sigma = [], [], [], []
    count = 0
    for i, j in sorted(pairs):
        if i < 0 or j >= len(keyframes):
            continue
        first, second = view(i), view(j)
        if first is None or second is None:
            continue
        found = align_rgbd(first, second, [])
        if found is None or found.agreement < _MIN_DENSE_AGREEMENT:
            continue
        source_xy, target_xy = link_points(first, second, found)
        n = len(source_xy)
        numbers = count + np.arange(n)
        count += n
        frame += [np.full(n, keyframes[i]), np.full(n, keyframes[j])]
        track += [numbers, numbers]
        xy += [source_xy * size, target_xy * size]
        # All points of a link repeat one estimate: together they weigh as much as it does.
        sigma += [np.full(2 * n, max(least_px, found.shift_sigma * flow.width) * max(1.0, np.sqrt(n / 4)))]
    if not count:
        return None
    frames = np.concatenate(frame)
    return make_tracks(
        frames,
        np.concatenate(track),
        np.concatenate(xy),
        np.full(len(frames), DENSE, np.uint8),
        flow.num_frames,
        flow.height,
        flow.width,
        np.concatenate(sigma),
    )
