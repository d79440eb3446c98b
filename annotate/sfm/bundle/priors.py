"""Priors on focal lengths, lens and the gain of depth, and the cost that they and the residuals make together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....dataset.words import FocalModel
from ..config import BundleConfig
from .problem import FOCAL_COLUMN, GAIN_COLUMN, Problem, State, cauchy, whitened_residuals

EXPECTED_FOCAL_SIGMA = 0.03  # of the logarithm: what the rays of networks err by ...
_EXPECTED_FOCAL_SHARE = 1 / 16  # ... and neighbouring frames err alike: one measurement a second
_GIVEN_FOCAL_SIGMA = 1e-5  # of the logarithm: held, without making the equations singular
_GAIN_ROBUST_SCALE = 3.0  # of the Cauchy loss on changes of the gain, in standard deviations
Total = Callable[[Tensor], Tensor]
"""Sum of the values of single observations, or of frames (value k belongs to frame k): a number; of stacked clips (B,)
numbers."""
PriorTerm = tuple[Tensor, Tensor, Tensor]
"""A prior's residuals (M,), whitened and weighted, with the frames (M, k) that each depends on and its derivatives
(M, k)."""


@dataclass(frozen=True)
class GainPrior:
    """What is known of the factor by which the depth of a whole frame is wrong: an autoregressive series.

    White factors (a network that judges frame by frame) and slow ones (a sensor that warms up, a unit that drifts) are
    its two ends. Changes are judged robustly: a single wrong frame or a step is paid for once.

    Attributes:
        sigma: standard deviation of the log factor.
        keep: (F-1,) correlation between neighbours, in [0, 1).
    """

    sigma: float
    keep: Tensor

    def spreads(self) -> tuple[Tensor, Tensor]:
        """Standard deviations (F,) of a frame by itself, inf for all but the first, and (F-1,) of changes."""
        first = self.keep.new_full((len(self.keep) + 1,), torch.inf)
        first[0] = self.sigma
        return first, self.sigma * (1 - self.keep**2).sqrt()

    def terms(
        self, log_gain: Tensor, robust_scale: float, total: Total = torch.sum
    ) -> tuple[list[PriorTerm], Tensor]:
        """As `Priors.focal_terms`, for the column of the gain."""
        index = torch.arange(len(log_gain), device=log_gain.device)
        alone, change = self.spreads()
        first = log_gain / alone
        terms = [(index[:, None], (1 / alone)[:, None], first)]
        r = (log_gain[1:] - self.keep * log_gain[:-1]) / change
        rho, weight = cauchy(r * r, robust_scale)
        root = weight.sqrt()
        c = torch.stack([-root * self.keep / change, root / change], 1)
        terms.append((torch.stack([index[:-1], index[1:]], 1), c, root * r))
        return terms, 0.5 * total(first**2) + total(rho)


@dataclass(frozen=True)
class ExpectedFocal:
    """What something else says of the focal length, within `EXPECTED_FOCAL_SIGMA`.

    Attributes:
        log_focal: (F,) log focal.
        share: independent measurements per frame: rays of a network err alike for about a second; what a source says
            of its lens is one word for all frames.
    """

    log_focal: Tensor
    share: float = _EXPECTED_FOCAL_SHARE

    def at(self, frames: NDArray[np.integer]) -> ExpectedFocal:
        """Of some frames only, each as much worth as if all were there."""
        return replace(self, log_focal=self.log_focal[torch.as_tensor(frames)])


@dataclass(frozen=True)
class FocalPrior:
    """How log focal may change between frames.

    Attributes:
        model: which of the four.
        first_difference_sigma: (F-1,) allowed step between neighbours; inf = free (`smooth`, breaks).
        second_difference_sigma: (F-2,) allowed change of slope; inf = free.
        given: (F,) log focal of every frame where the lens is known (`given`), else None.
        expected: what something else says of it; None: nothing is expected but about 60 degrees.
    """

    model: FocalModel
    first_difference_sigma: Tensor
    second_difference_sigma: Tensor
    given: Tensor | None = None
    expected: ExpectedFocal | None = None


def focal_prior(
    model: FocalModel,
    num_frames: int,
    config: BundleConfig,
    *,
    frame_gap: Tensor | None = None,
    breaks: Tensor | None = None,
    given: Tensor | None = None,
) -> FocalPrior:
    """Prior for one focal model.

    Args:
        frame_gap: (F-1,) frames between neighbours (keyframes are further apart than 1); the smoothness is scaled.
        breaks: (B,) frame numbers that start a new piece (`piecewise`).
        given: (F,) log focal, required by the model `given` and by no other.
    Raises:
        ValueError: `given` is there without its model, or missing with it.
    """
    if (model == "given") != (given is not None):
        raise ValueError(
            f"focal model {model!r} {'needs' if given is None else 'takes no'} given focal lengths"
        )
    one = torch.ones(max(0, num_frames - 1), dtype=torch.float64)
    gap = one if frame_gap is None else frame_gap.to(torch.float64)
    infinite = torch.full_like(one, torch.inf)
    none = torch.full((max(0, num_frames - 2),), torch.inf, dtype=torch.float64)
    if given is not None:
        return FocalPrior(model, infinite, none, given.to(torch.float64))
    if model == "smooth":
        curvature = config.focal_smoothness * (0.5 * (gap[1:] + gap[:-1])) ** 1.5
        return FocalPrior(model, infinite, curvature)
    stiff = torch.full_like(one, 1e-5)
    if model == "piecewise" and breaks is not None:
        stiff[breaks.long() - 1] = torch.inf
    return FocalPrior(model, stiff, none)


@dataclass
class Priors:
    """Quadratic priors on the cameras and the lens: dense small pieces added to the normal equations."""

    focal: FocalPrior
    focal_centre: float
    focal_sigma: float
    lens_sigma: Tensor
    robust_scale: float
    gain: GainPrior | None = None

    @property
    def free(self) -> Tensor:
        """Which numbers of the lens are free: (5,) bool."""
        return self.lens_sigma > 0

    def terms(self, state: State) -> list[tuple[int, PriorTerm]]:
        """All terms on the cameras, each with the column of the camera that it is about."""
        terms = [(FOCAL_COLUMN, term) for term in self.focal_terms(state.log_focal)[0]]
        if self.gain is not None and state.log_gain is not None:
            terms += [(GAIN_COLUMN, term) for term in self.gain.terms(state.log_gain, _GAIN_ROBUST_SCALE)[0]]
        return terms

    def absolute(self, num_frames: int) -> tuple[Tensor | float, Tensor | float, float]:
        """Log focal that frames are drawn to, standard deviation, and independent measurements per frame."""
        if self.focal.given is not None:
            return self.focal.given, _GIVEN_FOCAL_SIGMA, 1.0
        expected = self.focal.expected
        if expected is not None:
            return expected.log_focal, EXPECTED_FOCAL_SIGMA, expected.share
        # One prior per clip, however many frames: a long clip must not be pulled harder.
        return self.focal_centre, self.focal_sigma, 1.0 / max(1, num_frames)

    def focal_terms(self, log_focal: Tensor, total: Total = torch.sum) -> tuple[list[PriorTerm], Tensor]:
        """Terms on log focal, and their cost."""
        terms: list[PriorTerm] = []
        num = len(log_focal)
        index = torch.arange(num, device=log_focal.device)
        centre, sigma, share = self.absolute(num)
        absolute = (log_focal - centre) / sigma
        slope = torch.ones_like(absolute) * (1 / sigma)
        terms.append((index[:, None], slope[:, None] * share**0.5, absolute * share**0.5))
        cost = 0.5 * share * total(absolute**2)
        if num > 1:
            sigma = self.focal.first_difference_sigma
            r = (log_focal[1:] - log_focal[:-1]) / sigma
            c = torch.stack([-1 / sigma, 1 / sigma], 1)
            terms.append((torch.stack([index[:-1], index[1:]], 1), c, r))
            cost = cost + 0.5 * total(r**2)
        if num > 2:
            sigma = self.focal.second_difference_sigma
            r = (log_focal[2:] - 2 * log_focal[1:-1] + log_focal[:-2]) / sigma
            rho, weight = cauchy(r * r, self.robust_scale)
            root = weight.sqrt()
            c = torch.stack([root / sigma, -2 * root / sigma, root / sigma], 1)
            terms.append((torch.stack([index[:-2], index[1:-1], index[2:]], 1), c, root * r))
            cost = cost + total(rho)
        return terms, cost


def total_cost(
    problem: Problem,
    state: State,
    priors: Priors,
    robust_scale: float,
    *,
    of_observations: Total = torch.sum,
    of_frames: Total = torch.sum,
) -> tuple[Tensor, Tensor]:
    """(total, data part); of each clip (B,) where clips are stacked and the sums are theirs."""
    r_uv, r_d, behind, _ = whitened_residuals(problem, state)
    rho_uv, _ = cauchy((r_uv * r_uv).sum(1), robust_scale)
    # A point behind the camera costs as much as a gross outlier, so that a step cannot hide errors there.
    rho_uv = torch.where(behind, cauchy(torch.full_like(rho_uv, 1e6), robust_scale)[0], rho_uv)
    rho_d, _ = cauchy(r_d * r_d, robust_scale)
    data = of_observations(rho_uv) + of_observations(rho_d)
    if priors.gain is not None and state.log_gain is not None:
        # What a model makes the depth's factors do is part of how well it explains the depth.
        data = data + priors.gain.terms(state.log_gain, _GAIN_ROBUST_SCALE, of_frames)[1]
    _, focal_cost = priors.focal_terms(state.log_focal, of_frames)
    free = priors.free
    lens_cost = 0.5 * ((state.lens[..., free] / priors.lens_sigma[..., free]) ** 2).sum(-1)
    return data + focal_cost + lens_cost, data
