"""Priors on focal lengths, lens and the gain of depth, and the cost that they and the residuals make together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import BundleConfig, FocalModel
from .problem import FOCAL_COLUMN, GAIN_COLUMN, Problem, State, cauchy, whitened_residuals

EXPECTED_FOCAL_SIGMA = 0.03  # of the logarithm: what the rays of networks err by ...
_EXPECTED_FOCAL_SHARE = 1 / 16  # ... and neighbouring frames err alike: one measurement a second
_GIVEN_FOCAL_SIGMA = 1e-5  # of the logarithm: held, without making the equations singular
_GAIN_ROBUST_SCALE = 3.0  # of the Cauchy loss on changes of the gain, in standard deviations
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

    def terms(self, log_gain: Tensor, robust_scale: float) -> tuple[list[PriorTerm], Tensor]:
        """As `Priors.focal_terms`, for the column of the gain."""
        index = torch.arange(len(log_gain))
        first = log_gain[:1] / self.sigma
        terms = [(index[:1, None], torch.full_like(first, 1 / self.sigma)[:, None], first)]
        change = self.sigma * (1 - self.keep**2).sqrt()
        r = (log_gain[1:] - self.keep * log_gain[:-1]) / change
        rho, weight = cauchy(r * r, robust_scale)
        root = weight.sqrt()
        c = torch.stack([-root * self.keep / change, root / change], 1)
        terms.append((torch.stack([index[:-1], index[1:]], 1), c, root * r))
        return terms, 0.5 * (first**2).sum() + rho.sum()


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

    def terms(self, state: State) -> list[tuple[int, PriorTerm]]:
        """All terms on the cameras, each with the column of the camera that it is about."""
        terms = [(FOCAL_COLUMN, term) for term in self.focal_terms(state.log_focal)[0]]
        if self.gain is not None and state.log_gain is not None:
            terms += [(GAIN_COLUMN, term) for term in self.gain.terms(state.log_gain, _GAIN_ROBUST_SCALE)[0]]
        return terms

    def focal_terms(self, log_focal: Tensor) -> tuple[list[PriorTerm], Tensor]:
        """Terms on log focal, and their cost."""
        terms: list[PriorTerm] = []
        num = len(log_focal)
        index = torch.arange(num)
        cost = log_focal.new_zeros(())
        given = self.focal.given
        expected = self.focal.expected
        centre, sigma = self.focal_centre, self.focal_sigma
        # One prior per clip, however many frames: a long clip must not be pulled harder.
        share = 1.0 / max(1, num)
        if given is not None:
            centre, sigma, share = given, _GIVEN_FOCAL_SIGMA, 1.0
        elif expected is not None:
            centre, sigma, share = expected.log_focal, EXPECTED_FOCAL_SIGMA, expected.share
        absolute = (log_focal - centre) / sigma
        terms.append((index[:, None], torch.full_like(absolute, 1 / sigma)[:, None], absolute))
        terms[-1] = (terms[-1][0], terms[-1][1] * share**0.5, terms[-1][2] * share**0.5)
        cost = cost + 0.5 * share * (absolute**2).sum()
        if num > 1:
            sigma = self.focal.first_difference_sigma
            r = (log_focal[1:] - log_focal[:-1]) / sigma
            c = torch.stack([-1 / sigma, 1 / sigma], 1)
            terms.append((torch.stack([index[:-1], index[1:]], 1), c, r))
            cost = cost + 0.5 * (r**2).sum()
        if num > 2:
            sigma = self.focal.second_difference_sigma
            r = (log_focal[2:] - 2 * log_focal[1:-1] + log_focal[:-2]) / sigma
            rho, weight = cauchy(r * r, self.robust_scale)
            root = weight.sqrt()
            c = torch.stack([root / sigma, -2 * root / sigma, root / sigma], 1)
            terms.append((torch.stack([index[:-2], index[1:-1], index[2:]], 1), c, root * r))
            cost = cost + rho.sum()
        return terms, cost


def total_cost(problem: Problem, state: State, priors: Priors, robust_scale: float) -> tuple[Tensor, Tensor]:
    """(total, data part)."""
    r_uv, r_d, behind, _ = whitened_residuals(problem, state)
    rho_uv, _ = cauchy((r_uv * r_uv).sum(1), robust_scale)
    # A point behind the camera costs as much as a gross outlier, so that a step cannot hide errors there.
    rho_uv = torch.where(behind, cauchy(torch.full_like(rho_uv, 1e6), robust_scale)[0], rho_uv)
    rho_d, _ = cauchy(r_d * r_d, robust_scale)
    data = rho_uv.sum() + rho_d.sum()
    if priors.gain is not None and state.log_gain is not None:
        # What a model makes the depth's factors do is part of how well it explains the depth.
        data = data + priors.gain.terms(state.log_gain, _GAIN_ROBUST_SCALE)[1]
    _, focal_cost = priors.focal_terms(state.log_focal)
    free = priors.lens_sigma > 0
    lens_cost = 0.5 * ((state.lens[free] / priors.lens_sigma[free]) ** 2).sum()
    return data + focal_cost + lens_cost, data
