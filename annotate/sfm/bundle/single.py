"""Cameras one by one against fixed points, and points one by one against fixed cameras."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import BundleConfig
from .lens import LENS_DOF
from .normal import Frames, invert3, linearise
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
        products = self.frames.products(linear.jc, linear.r[:, :, None])
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


def intersect(problem: Problem, state: State, config: BundleConfig, *, iterations: int = 8) -> State:
    """Points against fixed cameras, each on its own: the counterpart of `resect`."""
    num = problem.num_points

    def point_cost(s: State) -> Tensor:
        r_uv, r_d, behind, _ = whitened_residuals(problem, s)
        rho, _ = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
        rho = torch.where(behind, cauchy(torch.full_like(rho, 1e6), config.robust_scale)[0], rho)
        rho_d, _ = cauchy(r_d * r_d, config.robust_scale)
        return sum_by(problem.point, rho + rho_d, num)

    lens_free = torch.zeros(LENS_DOF, dtype=torch.bool)
    cost = point_cost(state)
    damping = torch.full((num,), 1e-3, dtype=torch.float64)
    for _ in range(iterations):
        linear, _ = linearise(problem, state, config.robust_scale, lens_free)
        jpt = linear.jp.transpose(1, 2)
        of_point = sum_by(problem.point, jpt @ torch.cat([linear.jp, linear.r[:, :, None]], 2), num)
        h, g = of_point[:, :, :3], of_point[:, :, 3:]
        diag = torch.diagonal(h, dim1=1, dim2=2)
        h = h + torch.diag_embed(damping[:, None] * diag + 1e-9 * diag.amax(1, keepdim=True) + 1e-12)
        trial = replace(state, points=state.points - (invert3(h) @ g)[:, :, 0])
        new_cost = point_cost(trial)
        better = new_cost < cost
        state = replace(state, points=torch.where(better[:, None], trial.points, state.points))
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping / 4, damping * 4).clamp(1e-9, 1e6)
    return state
