"""The bundle on the processor, a clip at a time: sparse products by scipy, everything in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .normal import Layout, Normal, layout_of, linearise
from .pace import LENGTHS, Found, Pace, Task
from .priors import total_cost
from .problem import State, moved_by, with_true_rotations

Step = tuple[Tensor, Tensor, Tensor]


class SparseSolver:
    """See `Solver`."""

    def descend(self, tasks: list[Task]) -> list[Found | FloatingPointError]:
        """One after the other."""
        found: list[Found | FloatingPointError] = []
        for task in tasks:
            try:
                found.append(_Descent(task).run())
            except FloatingPointError as error:
                found.append(error)
        return found

    def covariance(self, task: Task) -> Tensor:
        """See `Solver`."""
        return factorised(task).covariance()


def factorised(task: Task) -> Normal:
    """The equations at a task's state with their band factorised, hardly damped, for `covariance` and `answer` alone.

    Raises:
        FloatingPointError: no damping makes them positive definite.
    """
    normal = equations(task, layout_of(task.problem, task.band_frames), task.state)
    damping = 1e-10
    while True:
        try:
            normal.damp(damping)
        except FloatingPointError:
            # Directions that nothing determines: the least damping that factorises bounds their variance.
            damping *= 10
            if damping > 1e-2:
                raise
        else:
            normal.keep_band()
            return normal


def equations(task: Task, layout: Layout, state: State) -> Normal:
    """Of a task at a state; the derivatives that they are made from are not kept."""
    linear, _ = linearise(task.problem, state, task.priors.robust_scale, task.priors.free)
    return Normal(task.problem, layout, linear, state, task.priors, task.priors.free, hold=task.hold)


class _Descent:
    """Levenberg-Marquardt from one state."""

    def __init__(self, task: Task) -> None:
        self.task, self.state = task, task.state
        self.layout = layout_of(task.problem, task.band_frames)
        cost, data = self._cost(task.state)
        if not bool(torch.isfinite(cost)):
            raise FloatingPointError("bundle: the cost is not finite at the start")
        self.pace = Pace(task.effort, task.limit, float(cost), float(data))

    def _cost(self, state: State) -> tuple[Tensor, Tensor]:
        return total_cost(self.task.problem, state, self.task.priors, self.task.priors.robust_scale)

    def run(self) -> Found:
        """Step until nothing improves, the limit is reached, or there is no hope."""
        pace = self.pace
        while pace.goes_on:
            self._advance()
        return Found(
            state=self.state,
            cost=pace.cost,
            data_cost=pace.data,
            iterations=pace.iteration,
            converged=pace.converged,
        )

    def _advance(self) -> None:
        """Steps from one state until one is accepted. Its equations are gone before those of the next are made: they
        are the most of what a bundle holds."""
        pace, accepted = self.pace, False
        normal = equations(self.task, self.layout, self.state)
        while not accepted and not pace.converged and pace.iteration < pace.limit:
            pace.iteration += 1
            accepted = self._try(normal)
        self.state = with_true_rotations(self.state)

    def _try(self, normal: Normal) -> bool:
        """One step; whether it was accepted."""
        pace = self.pace
        try:
            normal.damp(pace.damping)
            camera, lens, points, _ = normal.step(0.1, 80)
        except FloatingPointError:
            if not pace.fail():
                raise
            return False
        trial = moved_by(self.state, camera, lens, points, self.task.priors.free)
        cost, data = self._cost(trial)
        if not float(cost) < pace.cost:
            pace.refuse(float(camera.abs().max()))
            return False
        self.state, cost, data = self._lengthened((camera, lens, points), (trial, cost, data))
        pace.accept(float(cost), float(data))
        return True

    def _lengthened(self, step: Step, found: tuple[State, Tensor, Tensor]) -> tuple[State, Tensor, Tensor]:
        for factor in LENGTHS:
            camera, lens, points = (factor * part for part in step)
            further = moved_by(self.state, camera, lens, points, self.task.priors.free)
            cost, data = self._cost(further)
            if not bool(cost < found[1]):
                break
            found = further, cost, data
        return found
