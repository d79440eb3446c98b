"""What holds a clip together: the share of the picture that goes on agreeing with the cameras, frame after frame.

Cameras that follow something that moves on its own are consistent with it, however many tracks one asks. They give
themselves away where they take it for the world, and where they leave it again: what they agreed with before, they
contradict from then on, and what they agree with then, they contradicted before. Hardly a track agrees on both sides.
Right cameras lose nothing there: what stands still goes on agreeing, even where it is a small part of the picture, and
what moves contradicts them on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from .bundle.problem import Problem, State, project

AGREES = 8.0
"""Standard deviations of a measurement within which an observation agrees with a camera."""
_CELLS = 10
"""Cells across the picture: what lies in one of them has one vote, however many corners it has."""
_QUARTER_OF_SIGMA = 0.76
"""What a quarter of the lengths of 2-D Gaussian errors do not exceed, over their standard deviation along an axis."""
_MOST_NOISE = 2.0
_MIN_CROSSING = 20
"""Tracks that must go on across a frame for their share to mean anything."""


def inliers(problem: Problem, state: State) -> NDArray[np.bool_]:
    """(N,) bool, observations that lie where cameras and points expect them; False where a point has no place."""
    return _errors(problem, state) < AGREES


def _errors(problem: Problem, state: State) -> FloatArray:
    """(N,) distance of observations from where cameras and points expect them, in standard deviations of a measurement;
    inf where a point has no place or lies behind."""
    known = torch.isfinite(state.points).all(1)[problem.point]
    uv, local = project(problem, replace(state, points=torch.nan_to_num(state.points)))
    error = (uv - problem.uv_px).norm(dim=1) / problem.sigma_px
    return torch.where(known & (local[:, 2] > 1e-6), error, torch.inf).numpy()


def picture_noise(frame: IntArray, error: FloatArray, *, num_frames: int) -> FloatArray:
    """(num_frames,) how many times more each picture's tracks err than measurements are said to, 1 to 2.

    Where pictures are blurred, what stands still slides on its texture, all of it: the quarter that errs least does.
    Where something moves, that quarter is what the cameras follow, and errs as little as ever.

    Args:
        frame, error: (N,) of the observations; errors in standard deviations, inf where there is none.
    """
    noise = np.ones(num_frames)
    known = np.isfinite(error)
    order = np.argsort(frame[known], kind="stable")
    start = np.searchsorted(frame[known][order], np.arange(num_frames + 1))
    for f in range(num_frames):
        errors = error[known][order[start[f] : start[f + 1]]]
        if len(errors) >= _MIN_CROSSING:
            noise[f] = np.quantile(errors, 0.25) / _QUARTER_OF_SIGMA
    # Of five frames, as tracks that slide go on to: a single picture says nothing of those beside it.
    around = sliding_window_view(np.pad(noise, 2, mode="edge"), 5)
    return np.clip(np.median(around, axis=1), 1.0, _MOST_NOISE)


def votes(problem: Problem) -> FloatArray:
    """(N,) weight of each observation: every cell of a frame has one vote, shared among the tracks that lie in it."""
    side = 2 * float(problem.centre_px[0]) / _CELLS
    cell = (problem.uv_px.numpy() // side).astype(np.int64) + 1
    frame = problem.frame.numpy()
    _, group, count = np.unique(
        (frame * 1000 + cell[:, 1]) * 1000 + cell[:, 0], return_inverse=True, return_counts=True
    )
    return 1.0 / count[group]


@dataclass(frozen=True)
class Shares:
    """`held_share`, `kept_share` and `moving_share` of a bundle's solution, each (F,), and which of its tracks (P,)
    contradict the cameras."""

    held: FloatArray
    kept: FloatArray
    moving: FloatArray
    tracks: NDArray[np.bool_]


def shares_by_frame(problem: Problem, first: State, solved: State, numbers: Tensor, *, reach: int) -> Shares:
    """How much of each picture goes on agreeing with the cameras of a bundle, and how much never does.

    Args:
        problem: all observations, also those of tracks that were left out because they move.
        first: cameras that the bundle began with; its points are those of all tracks that could be placed.
        solved, numbers: the solution, and which of the points its points are.
    """
    points = torch.full_like(first.points, torch.nan)
    points[numbers] = solved.points
    counted = torch.isfinite(first.points).all(1)[problem.point].numpy()
    error, number = _errors(problem, replace(solved, points=points)), problem.num_frames
    frame, point, weight = problem.frame.numpy(), problem.point.numpy()[counted], votes(problem)[counted]
    noise = picture_noise(frame, error, num_frames=number)[frame]
    agrees, in_noise = (error < AGREES)[counted], (error < AGREES * noise)[counted]
    seen = frame[counted], point, agrees, weight
    return Shares(
        held=held_share(*seen, num_frames=number, reach=reach),
        kept=kept_share(frame[counted], point, in_noise, weight, num_frames=number, reach=reach),
        moving=moving_share(*seen, num_frames=number),
        tracks=_contradicting(*seen[1:3], problem.num_points),
    )


def moving_share(
    frame: IntArray, point: IntArray, agrees: NDArray[np.bool_], weight: FloatArray, *, num_frames: int
) -> FloatArray:
    """(num_frames,) share of each picture, of what is tracked, that contradicts the cameras most of the time.

    Arguments as of `held_share`; 0 where nothing is tracked.
    """
    moves = _contradicting(point, agrees, int(point.max(initial=0)) + 1)
    total = np.bincount(frame, weight, minlength=num_frames)
    wrong = np.bincount(frame, weight * moves[point], minlength=num_frames)
    return wrong / np.maximum(total, 1e-9)


def _contradicting(point: IntArray, agrees: NDArray[np.bool_], number: int) -> NDArray[np.bool_]:
    """(number,) tracks of which more than half of the observations do not agree."""
    return np.bincount(point, agrees, minlength=number) < 0.5 * np.bincount(point, minlength=number)


def held_share(
    frame: IntArray,
    point: IntArray,
    agrees: NDArray[np.bool_],
    weight: FloatArray,
    *,
    num_frames: int,
    reach: int,
) -> FloatArray:
    """Share of the picture that agrees with the cameras before each frame and from it on, of what both sides see.

    Args:
        frame, point, agrees, weight: (N,) of the observations.
        reach: frames on either side that are looked at; a track agrees on a side if half of its observations do.
    Returns:
        (num_frames,), NaN for the first frame and where fewer than 20 tracks go on.
    """
    out = np.full(num_frames, np.nan)
    for f, vote, good in _crossing(frame, point, agrees, weight, num_frames=num_frames, reach=reach):
        out[f] = vote[good.all(0)].sum() / vote.sum()
    return out


def kept_share(
    frame: IntArray,
    point: IntArray,
    agrees: NDArray[np.bool_],
    weight: FloatArray,
    *,
    num_frames: int,
    reach: int,
) -> FloatArray:
    """Of what agrees with the cameras before each frame or from it on, the share of the picture that agrees with both.

    What contradicts them on both sides only moves, however much of the picture it is. What they leave, and what they
    take up instead, says that they went over to something else. Arguments and result as of `held_share`; 0 where
    nothing agrees.
    """
    out = np.full(num_frames, np.nan)
    for f, vote, good in _crossing(frame, point, agrees, weight, num_frames=num_frames, reach=reach):
        out[f] = vote[good.all(0)].sum() / max(vote[good.any(0)].sum(), 1e-9)
    return out


def least_kept(share: FloatArray | None) -> float:
    """Least median of three neighbours of a `kept_share` (F,), among frames that have one; where fewer than three do,
    the least of them; NaN without any.

    A single frame that is blurred loses what it loses, wherever it lies; cameras that go over to something do so over
    several.
    """
    known = np.zeros(0) if share is None else share[np.isfinite(share)]
    if len(known) < 3:
        return float(known.min()) if len(known) else float("nan")
    return float(np.median(sliding_window_view(known, 3), axis=1).min())


def _crossing(
    frame: IntArray,
    point: IntArray,
    agrees: NDArray[np.bool_],
    weight: FloatArray,
    *,
    num_frames: int,
    reach: int,
) -> Iterator[tuple[int, FloatArray, NDArray[np.bool_]]]:
    """Frame, vote (T,) of each track that goes on across it, and whether it agrees before it and from it on (2, T)."""
    order = np.argsort(frame, kind="stable")
    frame, point, agrees, weight = frame[order], point[order], agrees[order], weight[order]
    start = np.searchsorted(frame, np.arange(num_frames + 1))
    for f in range(1, num_frames):
        first, last = start[max(0, f - reach)], start[min(num_frames, f + reach)]
        if last <= first:
            continue
        _, local = np.unique(point[first:last], return_inverse=True)
        later = np.arange(first, last) >= start[f]
        size = int(local.max()) + 1
        seen = np.stack([np.bincount(local[side], minlength=size) for side in (~later, later)])
        good = np.stack(
            [np.bincount(local[side], agrees[first:last][side], minlength=size) for side in (~later, later)]
        )
        crossing = (seen > 0).all(0)
        if crossing.sum() < _MIN_CROSSING:
            continue
        vote = np.bincount(local, weight[first:last], minlength=size) / seen.sum(0)
        yield f, vote[crossing], (good >= 0.5 * seen)[:, crossing]
