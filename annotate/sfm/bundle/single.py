"""Cameras one by one against fixed points, and points one by one against fixed cameras."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from ..config import BundleConfig
from .lens import LENS_DOF
from .linear import Residuals, linearise, see
from .normal import Frames, invert3
from .pace import Effort
from .problem import (
    FOCAL_COLUMN,
    GAIN_COLUMN,
    Problem,
    State,
    cauchy,
    moved_by,
    sum_by,
    whitened_residuals,
    with_true_rotations,
)


def resect(
    problem: Problem,
    state: State,
    config: BundleConfig,
    *,
    free_frames: Tensor,
    focal_guess: Tensor,
    focal_sigma: float,
    effort: Effort,
    gain_sigma: float | None = None,
) -> tuple[State, Tensor]:
    """Pose and focal of single frames against fixed points, all frames at once.

    Args:
        free_frames: (F,) bool, which frames move; observations of the others say nothing here.
        focal_guess: (F,) log focal that each frame is drawn to with `focal_sigma`.
        gain_sigma: how far the log gain of a frame's depth may lie from that of `state`; None: not at all.
        effort: steps at most, and the fraction: it stops when a step lowers the cost of every frame by less.
    Returns:
        New state, and the number of inliers (robust weight above 0.3) per frame (F,).
    """
    # (column, log value that it is drawn to, standard deviation)
    drawn = [(FOCAL_COLUMN, focal_guess, focal_sigma)]
    held = state.log_gain if gain_sigma is None else None
    if gain_sigma is not None:
        guess = torch.zeros_like(focal_guess) if state.log_gain is None else state.log_gain
        drawn.append((GAIN_COLUMN, guess, gain_sigma))
        state = replace(state, log_gain=guess)
    elif held is not None:
        problem = replace(problem, log_depth=problem.log_depth - held[problem.frame])
        state = replace(state, log_gain=None)
    resection = _Resection(problem, state, config, free_frames, drawn)
    for _ in range(effort.max_iterations or config.max_iterations):
        if resection.step() < effort.tolerance:
            break
    state = resection.state
    r_uv, _, behind, _ = whitened_residuals(problem, state)
    _, weight = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
    inlier = (weight > 0.3) & ~behind
    if held is not None:
        state = replace(state, log_gain=held)
    return with_true_rotations(state), sum_by(problem.frame, inlier.double(), problem.num_frames)


class _Resection:
    """Levenberg-Marquardt for every frame by itself: each has its own cost and damping, and takes its own steps."""

    def __init__(
        self,
        problem: Problem,
        state: State,
        config: BundleConfig,
        free_frames: Tensor,
        drawn: list[tuple[int, Tensor, float]],
    ) -> None:
        self.problem, self.state, self.config = problem, state, config
        self.free_frames, self.drawn = free_frames, drawn
        self.cost = self._cost(state)
        self.damping = torch.full((problem.num_frames,), 1e-3, dtype=torch.float64)
        self.frames = Frames(problem)

    @staticmethod
    def _value(state: State, column: int) -> Tensor:
        found = state.log_focal if column == FOCAL_COLUMN else state.log_gain
        assert found is not None
        return found

    def _cost(self, state: State) -> Tensor:
        scale = self.config.robust_scale
        r_uv, r_d, behind, _ = whitened_residuals(self.problem, state)
        rho, _ = cauchy((r_uv * r_uv).sum(1), scale)
        rho = torch.where(behind, cauchy(torch.full_like(rho, 1e6), scale)[0], rho)
        rho_d, _ = cauchy(r_d * r_d, scale)
        terms = [
            0.5 * ((self._value(state, column) - centre) / sigma) ** 2 for column, centre, sigma in self.drawn
        ]
        return sum_by(self.problem.frame, rho + rho_d, self.problem.num_frames) + sum(terms)

    def step(self) -> float:
        """One step of every frame, kept where it lowers the frame's cost; the largest fraction by which a free frame's
        cost fell, infinite while there is one that did not fall: more damping may help it."""
        state, lens_free = self.state, torch.zeros(LENS_DOF, dtype=torch.bool)
        linear, _ = linearise(self.problem, state, self.config.robust_scale, lens_free)
        products = self.frames.products(linear.columns)
        h, g = products[:, :-1, :-1], products[:, :-1, -1]
        for column, centre, sigma in self.drawn:
            h[:, column, column] += 1 / sigma**2
            g[:, column] += (self._value(state, column) - centre) / sigma**2
        diag = torch.diagonal(h, dim1=1, dim2=2)
        h = h + torch.diag_embed(self.damping[:, None] * diag + 1e-9 * diag.amax(1, keepdim=True) + 1e-12)
        step, info = torch.linalg.solve_ex(h, -g)
        step = torch.where((self.free_frames & (info == 0))[:, None], step, torch.zeros_like(step))
        trial = moved_by(state, step, state.lens.new_zeros(0), torch.zeros_like(state.points), lens_free)
        cost = self._cost(trial)
        better = cost < self.cost
        gain = state.log_gain
        if gain is not None and trial.log_gain is not None:
            gain = torch.where(better, trial.log_gain, gain)
        self.state = replace(
            state,
            rotation=torch.where(better[:, None, None], trial.rotation, state.rotation),
            translation=torch.where(better[:, None], trial.translation, state.translation),
            log_focal=torch.where(better, trial.log_focal, state.log_focal),
            log_gain=gain,
        )
        fell = torch.where(better, 1 - cost / self.cost, torch.inf)[self.free_frames & (self.cost > 0)]
        self.cost = torch.where(better, cost, self.cost)
        self.damping = torch.where(better, self.damping / 4, self.damping * 4).clamp(1e-9, 1e6)
        return float(fell.max()) if len(fell) else 0.0


def intersect(
    problem: Problem,
    state: State,
    robust_scale: float,
    *,
    iterations: int = 8,
    least_gain: float = 0.0,
    sums: Callable[[Tensor], Tensor] | None = None,
) -> State:
    """Points against fixed cameras, each on its own: the counterpart of `resect`.

    Args:
        robust_scale: of the Cauchy loss, in standard deviations.
        least_gain: share of its cost that a point's step must save for the point to take another.
        sums: (P, ...) sums over each point's observations (N, ...), where it may not be asked how many points still
            move; None: only those are gone on with.
    """
    points, going = state.points, torch.ones_like(state.points[:, 0], dtype=torch.bool)
    part = _Points(problem, state, robust_scale, sums)
    numbers: Tensor | None = None
    for number in range(iterations):
        gain = part.step(going)
        if number + 1 == iterations:
            break
        if least_gain > 0:
            going = going & (gain > least_gain * part.cost)
            if sums is None:
                points, numbers = _put(points, numbers, part.state.points), _chosen(numbers, going)
                part, going = part.of(going), going[going]
                if not len(going):
                    return replace(state, points=points)
    return replace(state, points=_put(points, numbers, part.state.points))


def _put(points: Tensor, numbers: Tensor | None, found: Tensor) -> Tensor:
    """The points, with what was found in the place of some of them; None: of all."""
    return found if numbers is None else points.index_copy(0, numbers, found)


def _chosen(numbers: Tensor | None, which: Tensor) -> Tensor:
    return torch.nonzero(which)[:, 0] if numbers is None else numbers[which]


class _Points:
    """Levenberg-Marquardt for every point by itself: each has its own cost and damping, and takes its own steps.

    Attributes:
        state: cameras, and the points so far; cost: (P,) of each.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        robust_scale: float,
        sums: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.problem, self.state, self.robust_scale = problem, state, robust_scale
        self._sums = sums or (lambda value: sum_by(problem.point, value, problem.num_points))
        self._found = whitened_residuals(problem, state)
        self.cost = self._cost(self._found)
        self._damping = torch.full_like(self.cost, 1e-3)

    def _cost(self, found: Residuals) -> Tensor:
        r_uv, r_d, behind, _ = found
        rho, _ = cauchy((r_uv * r_uv).sum(1), self.robust_scale)
        rho = torch.where(behind, cauchy(torch.full_like(rho, 1e6), self.robust_scale)[0], rho)
        return self._sums(rho + cauchy(r_d * r_d, self.robust_scale)[0])

    def step(self, free: Tensor) -> Tensor:
        """One step of the free points (P,), kept where it lowers a point's cost; by how much it does (P,)."""
        problem, state = self.problem, self.state
        seen = see(problem, state, self.robust_scale, self._found)
        jp = seen.by_point @ state.rotation[problem.frame]
        of_point = self._sums(jp.transpose(1, 2) @ torch.cat([jp, seen.r[:, :, None]], 2))
        h, g = of_point[:, :, :3], of_point[:, :, 3:]
        diag = torch.diagonal(h, dim1=1, dim2=2)
        h = h + torch.diag_embed(self._damping[:, None] * diag + 1e-9 * diag.amax(1, keepdim=True) + 1e-12)
        trial = replace(state, points=state.points - (invert3(h) @ g)[:, :, 0])
        found = whitened_residuals(problem, trial)
        cost = self._cost(found)
        better = (cost < self.cost) & free
        gain = torch.where(better, self.cost - cost, torch.zeros_like(cost))
        kept = better[problem.point]
        r_uv, r_d, behind, p = (
            torch.where(kept.reshape(-1, *[1] * (ours.ndim - 1)), theirs, ours)
            for ours, theirs in zip(self._found, found, strict=True)
        )
        self._found = r_uv, r_d, behind, p
        self.state = replace(state, points=torch.where(better[:, None], trial.points, state.points))
        self.cost = torch.where(better, cost, self.cost)
        self._damping = torch.where(better, self._damping / 4, self._damping * 4).clamp(1e-9, 1e6)
        return gain

    def of(self, chosen: Tensor) -> _Points:
        """Some of the points (P,) alone, as they stand."""
        kept = chosen[self.problem.point]
        names = ("frame", "uv_px", "sigma_px", "log_depth", "sigma_log_depth")
        some = {name: getattr(self.problem, name)[kept] for name in names}
        point = (torch.cumsum(chosen.long(), 0) - 1)[self.problem.point[kept]]
        part = copy(self)
        part.problem = replace(self.problem, **some, point=point, num_points=int(chosen.sum()))
        part.state = replace(self.state, points=self.state.points[chosen])
        part._sums = lambda value: sum_by(point, value, part.problem.num_points)
        r_uv, r_d, behind, p = (value[kept] for value in self._found)
        part._found = r_uv, r_d, behind, p
        part.cost, part._damping = self.cost[chosen], self._damping[chosen]
        return part
