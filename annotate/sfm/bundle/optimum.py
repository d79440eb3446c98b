"""Equations at a bundle's optimum, factorised once for all that is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .normal import Normal
from .pace import Task
from .problem import Solution
from .solve import Question, residual_variance
from .sparse import factorised


@dataclass(frozen=True)
class Optimum:
    """Where a bundle has come to.

    Attributes:
        task: the problem and its priors at the optimum; its band is as wide as the covariance wants it.
        normal: its equations, factorised, for `covariance` and `answer`.
    """

    task: Task
    normal: Normal

    @staticmethod
    def of(question: Question, solution: Solution) -> Optimum:
        """Of what was asked, and what came of it.

        Raises:
            FloatingPointError: no damping makes the equations positive definite.
        """
        wide = max(question.config.covariance_band_frames, question.config.band_frames)
        task = replace(question, state=solution.state).task()
        task = replace(task, band_frames=wide)
        return Optimum(task, factorised(task))

    def covariance(self) -> Tensor:
        """(F, D, D), see `Solution.covariance`."""
        return self.normal.covariance() * residual_variance(self.task.problem, self.task.state)
