"""Bundle adjustment with a focal length per frame: what is asked, and who solves it.

Unknowns are, for every frame, a world-to-camera pose and one log focal length; for every track a 3-D point; for the
clip a few shared lens numbers (principal point, pixel aspect, radial term) under priors. Residuals are robust
reprojection errors, robust log-depth errors against the sequence geometry, and a prior on how the focal may change.

Points are eliminated (Schur complement). What remains couples frames that share points: mostly neighbours, so the
camera system is block tridiagonal and its factorisation costs a constant amount per frame. Loop closures and long
tracks fall outside that band; they stay exact, because the system is solved by conjugate gradients with the
factorised band (of the tracks cut to its width, which keeps it positive definite) as preconditioner.

`SparseSolver` does this on the processor, `batched.descent.BatchedSolver` on a GPU and for several clips at once; both
take the same steps, to rounding. Frames: OpenCV axes; units: pixels, radians, and the length unit of the depth that is
given.

Sources: Triggs et al. 2000 (Schur complement, gauge), Agarwal et al. 2010 (preconditioned conjugate gradients),
Meurant 1992 (blocks of the inverse of a block tridiagonal matrix), SANA-WM (arXiv 2605.15178) appendix B.1 for
intrinsics per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ...networks.device import choose_device, waits_asleep
from ..config import BundleConfig
from .normal import Held
from .pace import Effort, Found, Task
from .priors import FocalPrior, GainPrior, Priors
from .problem import Problem, Solution, State, residuals, whitened_residuals
from .sparse import SparseSolver

_TAN_30 = 0.57735  # half of the 60 degrees that are expected across the longer side


class Solver(Protocol):
    """Who solves bundles."""

    def descend(self, tasks: list[Task]) -> list[Found | FloatingPointError]:
        """Minimise the robust cost of every task by Levenberg-Marquardt, each by itself; the tensors of what was found
        lie on the processor. An error where the cost is not finite at the start, or no damping makes the equations
        positive definite."""
        ...

    def covariance(self, task: Task) -> Tensor:
        """(F, D, D) marginal covariance of the cameras at the task's state, in units of the residuals' variance.

        Raises:
            FloatingPointError: no damping makes the equations positive definite.
        """
        ...


def solver_of(config: BundleConfig) -> Solver:
    """The solver that a recipe asks for.

    Raises:
        ValueError: its device is not there.
    """
    if config.device == "cpu":
        return SparseSolver()
    if choose_device(config.device, "annotate.bundle.device").type == "cpu":
        return SparseSolver()
    from .batched.descent import BatchedSolver

    # A worker says so when it begins; in a solver process of its own only this does.
    waits_asleep()
    return BatchedSolver(
        choose_device("auto"), torch.float32 if config.derivatives == "float32" else torch.float64
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `solve_bundles` is asked of one clip; see `solve_bundle`."""

    problem: Problem
    state: State
    prior: FocalPrior
    config: BundleConfig
    effort: Effort = field(default_factory=Effort)
    gain: GainPrior | None = None
    hold: Held = "first"
    want_covariance: bool = False

    def task(self) -> Task:
        """For a solver.

        Raises:
            ValueError: as `solve_bundle`.
        """
        problem, state, config = self.problem, self.state, self.config
        _check(problem, state, self.gain)
        if self.gain is not None and state.log_gain is None:
            state = replace(state, log_gain=torch.zeros_like(state.log_focal))
        return Task(
            problem=problem,
            state=state,
            priors=_priors(problem, self.prior, config, self.gain),
            band_frames=self.effort.band_frames or config.band_frames,
            limit=self.effort.max_iterations or config.max_iterations,
            effort=self.effort,
            hold=self.hold,
        )


def solve_bundle(
    problem: Problem,
    state: State,
    prior: FocalPrior,
    config: BundleConfig,
    *,
    effort: Effort = Effort(),
    gain: GainPrior | None = None,
    hold: Held = "first",
    want_covariance: bool = False,
) -> Solution:
    """Minimise the robust cost from `state` by Levenberg-Marquardt.

    Args:
        problem: observations; must be sorted by point, then frame.
        state: start.
        prior: how the focal may change.
        config: noise levels, priors, limits, and who solves it.
        effort: how far to go.
        gain: frees the gain of each frame's depth under this prior; None: all depth is in one unit.
        hold: beside the first frame, `poses`: rotations and translations stay, only focal lengths, lens and points are
            free; `centres`: translations alone (zero ones are cameras in one place).
        want_covariance: also return per-frame covariance, scaled by the robust residual variance.
    Raises:
        ValueError: if the problem has no observation or is not sorted, or the state has gains without a prior.
        FloatingPointError: if the cost is not finite at the start.
    """
    question = Question(
        problem=problem,
        state=state,
        prior=prior,
        config=config,
        effort=effort,
        gain=gain,
        hold=hold,
        want_covariance=want_covariance,
    )
    found = solve_bundles([question])[0]
    if isinstance(found, FloatingPointError):
        raise found
    return found


def solve_bundles(questions: Sequence[Question]) -> list[Solution | FloatingPointError]:
    """`solve_bundle` of several that do not wait for each other; what one of them raises as FloatingPointError is given
    back in its place.

    Raises:
        ValueError: as `solve_bundle`, of any of them.
    """
    if not questions:
        return []
    solver = solver_of(questions[0].config)
    tasks = [question.task() for question in questions]
    return [
        found if isinstance(found, FloatingPointError) else _solution(question, task, found, solver)
        for question, task, found in zip(questions, tasks, solver.descend(tasks), strict=True)
    ]


def _solution(question: Question, task: Task, found: Found, solver: Solver) -> Solution | FloatingPointError:
    problem, config = question.problem, question.config
    residual_px, residual_log_depth, weight = residuals(problem, found.state, config)
    covariance = None
    if question.want_covariance:
        wide = max(config.covariance_band_frames, task.band_frames)
        try:
            covariance = solver.covariance(replace(task, state=found.state, band_frames=wide))
        except FloatingPointError as error:
            return error
        covariance = covariance * residual_variance(problem, found.state)
    return Solution(
        state=found.state,
        cost=found.cost,
        data_cost=found.data_cost,
        iterations=found.iterations,
        converged=found.converged,
        residual_px=residual_px,
        residual_log_depth=residual_log_depth,
        weight=weight,
        covariance=covariance,
    )


def residual_variance(problem: Problem, state: State) -> float:
    """Robust variance of a whitened residual, 1e-6 at least."""
    r_uv = whitened_residuals(problem, state)[0]
    # Median of a squared 2-D Gaussian norm is 1.386 times its variance per axis.
    found = float((r_uv * r_uv).sum(1).median()) / 1.386 * soaked_up(problem, state.camera_dof)
    return max(found, 1e-6)


def soaked_up(problem: Problem, camera_dof: int) -> float:
    """Variance of errors over that of the residuals that they leave: unknowns soak up part of them."""
    equations = 2 * len(problem.frame) + int(torch.isfinite(problem.sigma_log_depth).sum())
    unknowns = camera_dof * problem.num_frames + 3 * problem.num_points
    return equations / max(equations - unknowns, 0.1 * equations)


def _check(problem: Problem, state: State, gain: GainPrior | None) -> None:
    if len(problem.frame) == 0:
        raise ValueError("bundle: no observations")
    key = problem.point * problem.num_frames + problem.frame
    if bool((key[1:] <= key[:-1]).any()):
        raise ValueError("bundle: observations must be sorted by point, then frame, each pair once")
    if gain is None and state.log_gain is not None:
        raise ValueError("bundle: the state has gains of the depth, but no prior says what they may be")


def _priors(problem: Problem, focal: FocalPrior, config: BundleConfig, gain: GainPrior | None) -> Priors:
    centre = config.principal_point_sigma * problem.focal_scale_px
    sigma = [centre, centre, config.aspect_sigma, config.radial_sigma, config.second_radial_sigma]
    longer = 2 * float(problem.centre_px.max())
    return Priors(
        focal=focal,
        focal_centre=float(torch.tensor(longer / (2 * _TAN_30)).log()),
        focal_sigma=config.focal_prior_sigma,
        lens_sigma=torch.tensor(sigma, dtype=torch.float64),
        robust_scale=config.robust_scale,
        gain=gain,
    )
