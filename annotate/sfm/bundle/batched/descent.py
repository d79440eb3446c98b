"""The bundle in batches of torch operations, on a GPU or wherever torch runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from ..normal import Linear, linearise
from ..pace import LENGTHS, Found, Pace, Task
from ..priors import total_cost
from ..problem import State, moved_by
from .normal import BatchedNormal, Layout
from .stack import Stack, kind_of

_MOST_OBSERVATIONS = 1_000_000
"""Of one stack: an observation takes some kilobytes while its step is found."""
Step = tuple[Tensor, Tensor, Tensor]


class BatchedSolver:
    """See `Solver`. Tasks of one kind are solved together: each takes its own steps, in operations on all of them."""

    def __init__(self, device: torch.device, derivatives: torch.dtype = torch.float64) -> None:
        """`derivatives`: precision of derivatives and of products of pairs of them; all else is float64."""
        self.device, self.derivatives = device, derivatives

    def descend(self, tasks: list[Task]) -> list[Found | FloatingPointError]:
        """See `Solver`."""
        found: dict[int, Found | FloatingPointError] = {}
        for numbers in _stacks(tasks):
            found.update(zip(numbers, self._descend([tasks[k] for k in numbers]), strict=True))
        return [found[k] for k in range(len(tasks))]

    def _descend(self, tasks: list[Task]) -> list[Found | FloatingPointError]:
        """Of one stack."""
        descent = _Descent(Stack(tasks, self.device), tasks, self.derivatives)
        if all(math.isfinite(pace.cost) for pace in descent.paces):
            return descent.run()
        if len(tasks) == 1:
            return [FloatingPointError("bundle: the cost is not finite at the start")]
        # Numbers that are none spread to neighbours.
        return [self._descend([task])[0] for task in tasks]

    def covariance(self, task: Task) -> Tensor:
        """See `Solver`."""
        stack = Stack([task], self.device)
        normal = BatchedNormal(
            stack, Layout(stack), _linearise(stack, stack.state, torch.float64), stack.state
        )
        damping = 1e-10
        while True:
            normal.damp(torch.full((1,), damping, dtype=torch.float64, device=self.device))
            # Directions that nothing determines: the least damping that factorises bounds their variance. What one
            # order of the blocks factorises, another may not.
            if not bool(normal.factor.failed):
                with suppress(FloatingPointError):
                    return normal.covariance()[: task.problem.num_frames].cpu()
            damping *= 10
            if damping > 1e-2:
                raise FloatingPointError("the damped camera system is not positive definite")


def _stacks(tasks: list[Task]) -> Iterator[list[int]]:
    """Numbers of tasks that are solved together."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for k, task in enumerate(tasks):
        kinds.setdefault(kind_of(task), []).append(k)
    for alike in kinds.values():
        stack, size = [], 0
        for k in alike:
            observations = len(tasks[k].problem.frame)
            if stack and size + observations > _MOST_OBSERVATIONS:
                yield stack
                stack, size = [], 0
            stack.append(k)
            size += observations
        yield stack


def _linearise(stack: Stack, state: State, derivatives: torch.dtype) -> Linear:
    linear, _ = linearise(stack.problem, state, stack.priors.robust_scale, stack.priors.free)
    return Linear(*(part.to(derivatives) for part in (linear.jc, linear.jp, linear.jg, linear.r)))


def _orthonormal(rotation: Tensor) -> Tensor:
    """The rotations (F, 3, 3) next to ones that rounding turned away by a little: a step of Newton's towards the polar
    factor, in place of many small decompositions."""
    eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    return rotation @ (1.5 * eye - 0.5 * rotation.transpose(1, 2) @ rotation)


class _Descent:
    """Levenberg-Marquardt of every clip of a stack from its own state, each at its own pace."""

    def __init__(self, stack: Stack, tasks: list[Task], derivatives: torch.dtype) -> None:
        self.stack, self.tasks, self.derivatives = stack, tasks, derivatives
        self.state, self.layout = stack.state, Layout(stack)
        self._sane = torch.ones(stack.size, dtype=torch.bool, device=stack.device)
        costs = zip(tasks, *torch.stack(self._cost(self.state)).tolist(), strict=True)
        self.paces = [Pace(task.effort, task.limit, cost, data) for task, cost, data in costs]
        self.errors: dict[int, FloatingPointError] = {}

    def _cost(self, state: State) -> tuple[Tensor, Tensor]:
        """Of each clip (B,)."""
        stack = self.stack
        return total_cost(
            stack.problem,
            state,
            stack.priors,
            stack.priors.robust_scale,
            of_observations=stack.total_of_observations,
            of_frames=stack.total_of_frames,
        )

    def _active(self) -> list[int]:
        return [k for k, pace in enumerate(self.paces) if k not in self.errors and pace.goes_on]

    def run(self) -> list[Found | FloatingPointError]:
        """Step until no clip goes on."""
        normal: BatchedNormal | None = None
        while active := self._active():
            if normal is None:
                linear = _linearise(self.stack, self.state, self.derivatives)
                normal = BatchedNormal(self.stack, self.layout, linear, self.state)
            if self._try(normal, active):
                normal = None
                self.state = replace(self.state, rotation=_orthonormal(self.state.rotation))
        return [
            self.errors.get(k)
            or Found(
                state=state,
                cost=pace.cost,
                data_cost=pace.data,
                iterations=pace.iteration,
                converged=pace.converged,
            )
            for k, (pace, state) in enumerate(zip(self.paces, self.stack.states(self.state), strict=True))
        ]

    def _try(self, normal: BatchedNormal, active: list[int]) -> bool:
        """One step of the clips that go on; whether any was accepted."""
        damping = [pace.damping for pace in self.paces]
        normal.damp(torch.tensor(damping, dtype=torch.float64, device=self.stack.device))
        step = normal.step(0.1, 80)
        # No clip that goes wrong may do so to its neighbours.
        largest = step[0].abs().amax((1, 2))
        size = largest + step[1].abs().sum(1) + self.stack.total_of_points(step[2].abs().sum(1))
        self._sane = torch.isfinite(size) & ~normal.factor.failed
        cost, data = self._cost(self._moved(step, [1.0] * self.stack.size))
        cost = torch.where(self._sane, cost, torch.nan)
        told = torch.stack([cost, data, largest, normal.factor.failed.double()]).tolist()
        found = list(zip(*told, strict=True))
        better: dict[int, tuple[float, float]] = {}
        for k in active:
            pace = self.paces[k]
            pace.iteration += 1
            of_cost, of_data, of_step, failed = found[k]
            if failed:
                if not pace.fail():
                    self.errors[k] = FloatingPointError("the damped camera system is not positive definite")
            elif not of_cost < pace.cost:
                pace.refuse(of_step)
            else:
                better[k] = of_cost, of_data
        if not better:
            return False
        lengths = self._lengthen(step, better)
        self.state = self._moved(step, [lengths.get(k, 0.0) for k in range(self.stack.size)])
        for k, (of_cost, of_data) in better.items():
            self.paces[k].accept(of_cost, of_data)
        return True

    def _lengthen(self, step: Step, better: dict[int, tuple[float, float]]) -> dict[int, float]:
        """Multiples of the step of the clips that it made `better`, where a longer one is better still."""
        lengths, trying = dict.fromkeys(better, 1.0), set(better)
        for factor in LENGTHS:
            cost, data = self._cost(self._moved(step, [factor] * self.stack.size))
            told = torch.stack([cost, data]).tolist()
            trying = {k for k in trying if told[0][k] < better[k][0]}
            for k in trying:
                better[k], lengths[k] = (told[0][k], told[1][k]), factor
            if not trying:
                break
        return lengths

    def _moved(self, step: Step, lengths: list[float]) -> State:
        """The state after multiples of the step, one of each clip; a clip with 0 stays, whatever its step."""
        stack = self.stack
        factor = torch.tensor(lengths, dtype=torch.float64, device=stack.device)
        factor = torch.where(self._sane, factor, 0.0)
        of_point = factor[stack.clip_of_point][:, None]
        camera, lens, points = (
            torch.where(f != 0, f * part, torch.zeros_like(part))
            for f, part in zip((factor[:, None, None], factor[:, None], of_point), step, strict=True)
        )
        return moved_by(self.state, camera.flatten(0, 1), lens, points, stack.priors.free)
