"""Points from known cameras: by depth, by viewing rays, and which of them move on their own."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..sources.clip import ClipRejection
from .bundle.problem import Problem, State, project, seen_rays, sum_by

log = logging.getLogger(__name__)


def true_log_depth(problem: Problem, state: State) -> Tensor:
    """(N,) log depth of the observations without the factor by which their frame's depth is wrong."""
    return problem.log_depth if state.log_gain is None else problem.log_depth - state.log_gain[problem.frame]


def back_project(problem: Problem, state: State, *, known: Tensor | None = None) -> Tensor:
    """World points (P, 3) from depth: the median back-projection in the camera over the observations that have depth.

    Args:
        known: (F,) bool frames whose cameras may be used; None = all. Points without usable depth get NaN.
    """
    has = torch.isfinite(problem.sigma_log_depth)
    if known is not None:
        has &= known[problem.frame]
    f = problem.frame
    z = true_log_depth(problem, state).exp()
    if problem.lens.is_pinhole:
        # Depth is back-projected through the middle of the picture; the bundle moves what its small lens terms move.
        n = (problem.uv_px - problem.centre_px) / state.log_focal[f].exp()[:, None]
    else:
        n = seen_rays(problem, state)
    p = torch.cat([n * z[:, None], z[:, None]], 1)
    world = (state.rotation[f].transpose(1, 2) @ (p - state.translation[f])[:, :, None])[:, :, 0]
    total = sum_by(problem.point[has], world[has], problem.num_points)
    count = sum_by(problem.point[has], torch.ones_like(z)[has], problem.num_points)
    return total / torch.where(count > 0, count, torch.nan)[:, None]


def triangulate(problem: Problem, state: State, wanted: Tensor) -> Tensor:
    """Points (P, 3) by linear least squares on viewing rays, for `wanted` (P,) tracks; NaN where rays are parallel."""
    f = problem.frame
    use = wanted[problem.point]
    xy = seen_rays(problem, state)
    ray = torch.cat([xy, torch.ones_like(xy[:, :1])], 1)
    ray = (state.rotation[f].transpose(1, 2) @ ray[:, :, None])[:, :, 0]
    ray = ray / ray.norm(dim=1, keepdim=True)
    centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    across = torch.eye(3, dtype=ray.dtype) - ray[:, :, None] * ray[:, None, :]
    a = sum_by(problem.point[use], across[use], problem.num_points)
    b = sum_by(problem.point[use], (across @ centre[f][:, :, None])[use][:, :, 0], problem.num_points)
    eigen = torch.linalg.eigvalsh(a)
    # Two rays at angle t have least eigenvalue 1 - cos t; 1 degree over the track at least.
    ok = wanted & (eigen[:, 0] > 1.5e-4)
    solved = torch.full((problem.num_points, 3), torch.nan, dtype=ray.dtype)
    solved[ok] = torch.linalg.solve(a[ok], b[ok])
    return solved


def of_frames(problem: Problem, chosen: Tensor) -> Problem:
    """The problem with observations of the chosen (F,) frames alone; frames and points keep their numbers."""
    keep = chosen[problem.frame]
    return replace(
        problem,
        frame=problem.frame[keep],
        point=problem.point[keep],
        uv_px=problem.uv_px[keep],
        sigma_px=problem.sigma_px[keep],
        log_depth=problem.log_depth[keep],
        sigma_log_depth=problem.sigma_log_depth[keep],
    )


def triangulate_known(problem: Problem, state: State, placed: NDArray[np.bool_], wanted: Tensor) -> Tensor:
    """`triangulate` from the observations of placed frames only."""
    return triangulate(of_frames(problem, torch.as_tensor(placed)), state, wanted)


def track_errors(problem: Problem, state: State, placed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(P,) median reprojection error of each track's point in the placed frames, in standard deviations of a
    measurement; NaN where the track has no point or no such frame."""
    points = torch.where(torch.isfinite(state.points), state.points, back_project(problem, state))
    uv, p = project(problem, replace(state, points=torch.nan_to_num(points)))
    error = ((uv - problem.uv_px) / problem.sigma_px[:, None]).norm(dim=1)
    error = torch.where(p[:, 2] > 1e-6, error, torch.full_like(error, 1e3))
    use = torch.as_tensor(placed)[problem.frame] & torch.isfinite(points).all(1)[problem.point]
    e = error[use].cpu().numpy()
    point = problem.point[use].cpu().numpy()
    out = np.full(problem.num_points, np.nan)
    if len(e):
        order = np.lexsort((e, point))
        starts = np.nonzero(np.r_[True, point[order][1:] != point[order][:-1]])[0]
        counts = np.diff(np.r_[starts, len(order)])
        out[point[order][starts]] = e[order][starts + counts // 2]
    return out


def moving_tracks(problem: Problem, state: State, placed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P,) True for tracks that no fixed point explains under the present cameras.

    A robust loss alone is not enough where something that moves carries most of the tracks of a few frames. Judged
    is the median reprojection error of the track's best single back-projection, against eight standard deviations of a
    measurement and four times the median over all tracks (cameras may still drift, but not one track at a time).
    """
    error = track_errors(problem, state, placed)
    known = np.isfinite(error)
    bound = max(8.0, 4.0 * float(np.median(error[known]))) if known.any() else 8.0
    return np.nan_to_num(error) > bound


_MOVES, _MOVES_MORE = 8.0, 2.5
"""A track moves on its own if it is off under good cameras by more than so many standard deviations of a measurement,
and so many times what is usual in the clip. Rendered, with cameras of a network: what stands still 1.5 times at most
for nine tracks of ten, things that walk 3 to 50 times."""
_MUCH_MOVES = 0.25
"""Share of the tracks of a frame from which on it matters."""
_LEAST_VOUCHING = 8
"""Tracks seen twice that must agree beside what moves, for cameras to be vouched for at all."""


def moving_together(problem: Problem, state: State, placed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P,) tracks that contradict cameras which others vouch for, where they own much of a picture; elsewhere none.

    There they would place it by themselves: what moves as one is as rigid as the scene, and a focal length that is free
    in every frame bends to please both.
    """
    error = track_errors(problem, state, placed)
    moving = np.nan_to_num(error) > max(_MOVES, _MOVES_MORE * float(np.nanmedian(error)))
    seen = placed[problem.frame.numpy()]
    frame, point = problem.frame.numpy()[seen], problem.point.numpy()[seen]
    count = np.bincount(frame, minlength=problem.num_frames)
    share = np.bincount(frame, moving[point], minlength=problem.num_frames) / np.maximum(count, 1)
    # What is seen once agrees with any camera. Where nearly all that is seen twice contradicts, cameras are wrong;
    # where hardly anything is, as in a blurred frame, nothing is said of either.
    twice = np.bincount(point, minlength=problem.num_points) > 1
    much = (share > _MUCH_MOVES) & (
        np.bincount(frame, twice[point], minlength=problem.num_frames) >= 2 * _LEAST_VOUCHING
    )
    vouching = np.bincount(frame, (twice & ~moving)[point], minlength=problem.num_frames)
    if not much.any() or vouching[much].min() < _LEAST_VOUCHING:
        return np.zeros_like(moving)
    return moving


_DEPTH_TOLERANCE = 4.0
"""Standard deviations by which a triangulated point may lie off its measured depth."""


def without_moving(problem: Problem, state: State, placed: NDArray[np.bool_]) -> State:
    """State in which the points of tracks that move are NaN, so that `keep_known` leaves their observations out.

    A track that its back-projection does not explain need not move: depth of a network is a few percent off, which
    parallax shows. Where triangulation explains the track and lies as far from the measured depth as depth errs, the
    point is kept, at that place. Else clips with much parallax would lose all their depth, and with it their scale.
    """
    moving = torch.as_tensor(moving_tracks(problem, state, placed))
    solved = triangulate_known(problem, state, placed, moving)
    found = torch.isfinite(solved).all(1)
    trial = replace(state, points=torch.where(found[:, None], solved, state.points))
    still = found & ~torch.as_tensor(moving_tracks(problem, trial, placed))
    # The worst of its depths decides: a thing that moves along its own line of sight has a depth that changes.
    has = torch.isfinite(problem.sigma_log_depth) & still[problem.point]
    point, frame = problem.point[has], problem.frame[has]
    z = (state.rotation[frame] @ solved[point][:, :, None])[:, 2, 0] + state.translation[frame, 2]
    off = (z.clamp_min(1e-6).log() - true_log_depth(problem, state)[has]).abs() / problem.sigma_log_depth[has]
    still[point[off > _DEPTH_TOLERANCE]] = False
    dropped = moving & ~still
    log.debug("moving: %d of %d tracks, %d kept by triangulation", dropped.sum(), len(moving), still.sum())
    points = torch.where(still[:, None], solved, state.points)
    return replace(state, points=torch.where(dropped[:, None], torch.nan, points))


def forget(state: State, points: NDArray[np.bool_]) -> State:
    """State in which some of the points (P,) have no place."""
    return replace(state, points=torch.where(torch.as_tensor(points)[:, None], torch.nan, state.points))


def known_points(problem: Problem, state: State, placed: NDArray[np.bool_]) -> Tensor:
    """(P',) numbers of the points that `keep_known` keeps, in its order."""
    return torch.unique(problem.point[_shared(problem, state, placed)])


def _shared(problem: Problem, state: State, placed: NDArray[np.bool_]) -> Tensor:
    """(N,) bool, observations of placed frames and of points with a position that two of them share."""
    ok_frame = torch.as_tensor(placed)
    ok_point = torch.isfinite(state.points).all(1)
    keep = ok_frame[problem.frame] & ok_point[problem.point]
    count = torch.zeros(problem.num_points).index_add_(0, problem.point[keep], torch.ones(int(keep.sum())))
    return keep & (count[problem.point] >= 2)


def keep_shared(problem: Problem, state: State, placed: NDArray[np.bool_]) -> tuple[Problem, State]:
    """`keep_known` for a bundle, which needs something to bundle.

    Raises:
        ClipRejection: `no_reconstruction`, there is no such observation.
    """
    used, used_state = keep_known(problem, state, placed)
    if not len(used.frame):
        raise ClipRejection(
            "no_reconstruction", "no point with a position is seen by two frames that have a camera"
        )
    return used, used_state


def keep_known(problem: Problem, state: State, placed: NDArray[np.bool_]) -> tuple[Problem, State]:
    """Observations of placed frames and of points with a position that two of them share; points renumbered."""
    keep = _shared(problem, state, placed)
    used, renumbered = torch.unique(problem.point[keep], return_inverse=True)
    sub = replace(
        problem,
        frame=problem.frame[keep],
        point=renumbered,
        uv_px=problem.uv_px[keep],
        sigma_px=problem.sigma_px[keep],
        log_depth=problem.log_depth[keep],
        sigma_log_depth=problem.sigma_log_depth[keep],
        num_points=len(used),
    )
    return sub, replace(state, points=state.points[used])


def parallax(problem: Problem, state: State, inlier: Tensor) -> float:
    """Median over tracks of the largest angle (radians) between the rays of any two of their inlier observations."""
    centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    ray = state.points[problem.point[inlier]] - centre[problem.frame[inlier]]
    ray = ray / ray.norm(dim=1, keepdim=True).clamp_min(1e-12)
    _, length = torch.unique_consecutive(problem.point[inlier], return_counts=True)
    if not len(length):
        return 0.0
    start = torch.cumsum(length, 0) - length
    cosine = torch.ones(len(length), dtype=ray.dtype)
    for size in torch.unique(length).tolist():
        # Tracks of one length at a time, a few thousand pairs of rays at once.
        for some in torch.nonzero(length == size)[:, 0].split(max(1, 1_000_000 // size**2)):
            rays = ray[start[some][:, None] + torch.arange(size)]
            cosine[some] = (rays @ rays.transpose(1, 2)).amin((1, 2))
    return float(torch.acos(cosine.clamp(-1, 1)).median())
