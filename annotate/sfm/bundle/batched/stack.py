"""Clips laid behind each other, so that one operation is done on all of them.

Every clip has the same number of places for frames; those behind its last frame are empty: without observations, held,
and drawn to nothing. Points and observations are those of the clips, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..lens import Lens
from ..pace import Task
from ..priors import FocalPrior, GainPrior, Priors
from ..problem import Problem, State


@dataclass(frozen=True, kw_only=True)
class _StackedGain(GainPrior):
    """Gains of stacked clips, which begin anew with each."""

    alone: Tensor
    change: Tensor

    def spreads(self) -> tuple[Tensor, Tensor]:
        """As of one clip."""
        return self.alone, self.change


@dataclass(kw_only=True)
class _StackedPriors(Priors):
    """Priors of stacked clips, frame by frame; `free_numbers` are the numbers of the lens that are free in all."""

    centre: Tensor
    sigma: Tensor
    free_numbers: Tensor

    def absolute(self, num_frames: int) -> tuple[Tensor, Tensor, float]:
        """As of one clip; the share is in the standard deviation."""
        return self.centre, self.sigma, 1.0

    @property
    def free(self) -> Tensor:
        """Numbers of the lens."""
        return self.free_numbers


def block_frames(num_frames: int, band_frames: int) -> int:
    """Frames of a diagonal block. One or two blocks hold every pair of frames; more are cut to the band."""
    num_blocks = -(-num_frames // band_frames)
    return -(-num_frames // num_blocks) if num_blocks <= 2 else band_frames


def kind_of(task: Task) -> tuple[object, ...]:
    """What the tasks of one stack must have in common."""
    return (
        block_frames(task.problem.num_frames, task.band_frames),
        task.state.camera_dof,
        tuple(task.priors.free.tolist()),
        task.priors.robust_scale,
        task.hold,
        task.problem.lens.model,
    )


class Stack:
    """Tasks of one kind on a device.

    Attributes:
        problem, state, priors: of all clips; `problem.num_frames` counts places.
        size, places: clips, and places for frames of each.
        block: frames of a diagonal block.
        clip_of_point: (P,) number of the clip of each point.
        exact: (B,) bool, of clips whose every pair of frames lies in the band.
        fixed: (B, places, D) bool, True for numbers of a camera that do not move.
        device: where it lies.
    """

    def __init__(self, tasks: list[Task], device: torch.device) -> None:
        self.device, self.size = device, len(tasks)
        self._tasks = tasks
        frames = [task.problem.num_frames for task in tasks]
        self.block = block_frames(frames[0], tasks[0].band_frames)
        self.places = self.block * max(-(-number // self.block) for number in frames)
        blocks = [-(-number // self.block) for number in frames]
        self.exact = torch.tensor([number <= 2 for number in blocks], device=device)
        points = [task.problem.num_points for task in tasks]
        observations = [len(task.problem.frame) for task in tasks]
        self.clip_of_point = self._numbers(points)
        self._of_points, self._of_observations = self._table(points), self._table(observations)
        self.problem = self._problem(points, self._numbers(observations))
        self.state = self._state()
        self.priors = self._priors()
        there = torch.arange(self.places)[None] < torch.tensor(frames)[:, None]
        held = ~there.to(device)
        # Gauge: the first frame does not move.
        first = held.clone()
        first[:, 0] = True
        every = torch.ones_like(held)
        turn = every if tasks[0].hold == "poses" else first
        move = first if tasks[0].hold == "first" else every
        dof = tasks[0].state.camera_dof
        parts = [turn[:, :, None].expand(-1, -1, 3), move[:, :, None].expand(-1, -1, 3)]
        self.fixed = torch.cat([*parts, held[:, :, None].expand(-1, -1, dof - 6)], 2)

    def _numbers(self, counts: list[int]) -> Tensor:
        """Number of the clip of each of all rows."""
        return torch.repeat_interleave(torch.arange(self.size), torch.tensor(counts)).to(self.device)

    def _table(self, counts: list[int]) -> Tensor | None:
        """(B, most) rows of each clip; behind them the row after the last, which is zero. None: one clip has all."""
        if self.size == 1:
            return None
        counted = torch.tensor(counts)
        place = torch.arange(max(counts))[None]
        rows = (torch.cumsum(counted, 0) - counted)[:, None] + place
        return torch.where(place < counted[:, None], rows, sum(counts)).to(self.device)

    def _problem(self, points: list[int], clip: Tensor) -> Problem:
        problems = [task.problem for task in self._tasks]
        start = torch.cumsum(torch.tensor([0, *points]), 0).tolist()

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).to(self.device)

        centre = torch.stack([problem.centre_px for problem in problems]).to(self.device)
        return Problem(
            frame=joined([problem.frame + self.places * k for k, problem in enumerate(problems)]),
            point=joined([problem.point + start[k] for k, problem in enumerate(problems)]),
            uv_px=joined([problem.uv_px for problem in problems]),
            sigma_px=joined([problem.sigma_px for problem in problems]),
            log_depth=joined([problem.log_depth for problem in problems]),
            sigma_log_depth=joined([problem.sigma_log_depth for problem in problems]),
            num_frames=self.places * self.size,
            num_points=sum(points),
            centre_px=centre[clip].T,
            focal_scale_px=float("nan"),
            clip=clip,
            lens=Lens(problems[0].lens.model),
        )

    def _placed(self, of_task: Callable[[Task], Tensor], filling: float) -> Tensor:
        """(B * places, ...) of one (up to places, ...) each."""
        parts = []
        for task in self._tasks:
            part = of_task(task)
            missing = part.new_full((self.places - len(part), *part.shape[1:]), filling)
            parts.append(torch.cat([part, missing]))
        return torch.cat(parts).to(self.device)

    def _state(self) -> State:
        states = [task.state for task in self._tasks]
        frames = [task.problem.num_frames for task in self._tasks]
        rotation = self._placed(lambda task: task.state.rotation, 0.0)
        empty = torch.cat([torch.arange(self.places) >= number for number in frames]).to(self.device)
        eye = torch.eye(3, dtype=rotation.dtype, device=self.device)
        gains = [state.log_gain for state in states]

        def gain(task: Task) -> Tensor:
            assert task.state.log_gain is not None
            return task.state.log_gain

        return State(
            rotation=torch.where(empty[:, None, None], eye, rotation),
            translation=self._placed(lambda task: task.state.translation, 0.0),
            log_focal=self._placed(lambda task: task.state.log_focal, 0.0),
            lens=torch.stack([state.lens for state in states]).to(self.device),
            points=torch.cat([state.points for state in states]).to(self.device),
            log_gain=None if gains[0] is None else self._placed(gain, 0.0),
        )

    def _priors(self) -> _StackedPriors:
        def drawn(task: Task) -> tuple[Tensor, Tensor]:
            number = task.problem.num_frames
            centre, sigma, share = task.priors.absolute(number)
            one = torch.ones(number, dtype=torch.float64)
            return one * centre, one * sigma / share**0.5

        def first(task: Task) -> Tensor:
            return task.priors.focal.first_difference_sigma

        def second(task: Task) -> Tensor:
            return task.priors.focal.second_difference_sigma

        one = self._tasks[0].priors
        sigma = torch.stack([task.priors.lens_sigma for task in self._tasks]).to(self.device)
        return _StackedPriors(
            focal=FocalPrior(
                one.focal.model,
                self._placed(first, torch.inf)[:-1],
                self._placed(second, torch.inf)[: max(0, self.places * self.size - 2)],
            ),
            focal_centre=float("nan"),
            focal_sigma=float("nan"),
            lens_sigma=sigma,
            robust_scale=one.robust_scale,
            gain=self._gain(),
            centre=self._placed(lambda task: drawn(task)[0], 0.0),
            sigma=self._placed(lambda task: drawn(task)[1], torch.inf),
            free_numbers=torch.nonzero(one.free)[:, 0].to(self.device),
        )

    def _gain(self) -> _StackedGain | None:
        if self._tasks[0].state.log_gain is None:
            return None

        def prior(task: Task) -> GainPrior:
            assert task.priors.gain is not None
            return task.priors.gain

        return _StackedGain(
            sigma=float("nan"),
            keep=self._placed(lambda task: prior(task).keep, 0.0)[:-1],
            alone=self._placed(lambda task: prior(task).spreads()[0], torch.inf),
            change=self._placed(lambda task: prior(task).spreads()[1], torch.inf)[:-1],
        )

    def total_of_observations(self, values: Tensor) -> Tensor:
        """(B,) sums of (N,)."""
        return self._total(values, self._of_observations)

    def total_of_points(self, values: Tensor) -> Tensor:
        """(B, ...) sums of (P, ...)."""
        return self._total(values, self._of_points)

    def total_of_frames(self, values: Tensor) -> Tensor:
        """(B,) sums of (up to B * places,); value k belongs to place k."""
        return pad(values, (0, self.places * self.size - len(values))).reshape(self.size, -1).sum(1)

    @staticmethod
    def _total(values: Tensor, table: Tensor | None) -> Tensor:
        if table is None:
            return values.sum(0, keepdim=True)
        return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[table].sum(1)

    def states(self, state: State) -> list[State]:
        """The clips' own, on the processor."""
        state = State(
            rotation=state.rotation.cpu(),
            translation=state.translation.cpu(),
            log_focal=state.log_focal.cpu(),
            lens=state.lens.cpu(),
            points=state.points.cpu(),
            log_gain=None if state.log_gain is None else state.log_gain.cpu(),
        )
        found, points = [], 0
        for k, task in enumerate(self._tasks):
            frames = slice(k * self.places, k * self.places + task.problem.num_frames)
            of_clip = slice(points, points + task.problem.num_points)
            points = of_clip.stop
            found.append(
                replace(
                    state,
                    rotation=state.rotation[frames].clone(),
                    translation=state.translation[frames].clone(),
                    log_focal=state.log_focal[frames].clone(),
                    lens=state.lens[k].clone(),
                    points=state.points[of_clip].clone(),
                    log_gain=None if state.log_gain is None else state.log_gain[frames].clone(),
                )
            )
        return found
