"""How far a bundle goes, and the rule by which its steps are taken: the same for every solver."""

from __future__ import annotations

from dataclasses import dataclass

from .normal import Held
from .priors import Priors
from .problem import Problem, State

LENGTHS = (1.5, 2.0, 3.0, 4.0)
"""Multiples of a step that are tried after it. Reweighted least squares steps too short along every direction in which
outliers lose weight as the state improves. Looking further along the step costs a hundredth of the next linearisation.
"""
_GROWTH = 2.0  # of the damping after a step that did not help, doubled at each further one


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far the bundle goes.

    Attributes:
        max_iterations: steps at most; None takes the configured number.
        tolerance: it stops when a step lowers the cost by less than this fraction.
        band_frames: width of the factorised band; None takes the configured one.
        hopeless_above: give up, not converged, once the data cost is so far above this that five more steps as large
            as the last one would not bring it down there.
    """

    max_iterations: int | None = None
    tolerance: float = 1e-5
    band_frames: int | None = None
    hopeless_above: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a solver is given: a problem, where to begin, what is known beforehand, and how far to go.

    Attributes:
        band_frames, limit: width of the factorised band, and steps at most.
        hold: what stays, beside the first frame's pose.
    """

    problem: Problem
    state: State
    priors: Priors
    band_frames: int
    limit: int
    effort: Effort
    hold: Held


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a solver gives back; see `Solution`."""

    state: State
    cost: float
    data_cost: float
    iterations: int
    converged: bool


class Pace:
    """Levenberg-Marquardt's damping of one descent, and whether it goes on.

    Attributes:
        cost, data: of the best state so far, and the part of reprojection and depth.
        damping: of the next step.
        iteration: steps begun, accepted and rejected.
        converged: the last relative decrease fell below tolerance.
    """

    def __init__(self, effort: Effort, limit: int, cost: float, data: float) -> None:
        self.effort, self.limit = effort, limit
        self.cost, self.data = cost, data
        self.damping, self.growth = 1e-4, _GROWTH
        self.iteration, self.converged, self.lost = 0, False, False

    @property
    def goes_on(self) -> bool:
        """Neither at an optimum nor at the limit, and there is hope."""
        return self.iteration < self.limit and not self.converged and not self.lost

    def fail(self) -> bool:
        """The damped system was not positive definite; whether more damping may help."""
        self.damping *= self.growth * 10
        return self.damping <= 1e8

    def refuse(self, largest: float) -> None:
        """The step, of `largest` change of a camera, did not lower the cost."""
        if largest < 1e-9 or self.damping > 1e6:
            self.converged = True
            return
        self.damping *= self.growth
        self.growth *= 2

    def accept(self, cost: float, data: float) -> None:
        """The step led to this cost."""
        self.converged = self.cost - cost < self.effort.tolerance * self.cost
        hope = self.effort.hopeless_above
        self.lost = hope is not None and data - 5 * (self.data - data) > hope
        self.cost, self.data = cost, data
        # A damping that was only just found to be enough is not given up at once.
        self.damping = max(self.damping / 5, 1e-9) if self.growth == _GROWTH else self.damping
        self.growth = _GROWTH
