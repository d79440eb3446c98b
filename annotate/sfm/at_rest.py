"""Would a camera that stays where it is explain the tracks as well?

A lens that zooms looks like a camera that comes closer, and depth that errs by a few per cent cannot contradict: the
bundle then finds a path for a camera on a tripod, and the parallax under that path looks like parallax. What the
images alone say is asked here: all cameras in one place, each with a turn and a focal length of its own, points at any
distance. If the tracks fit nearly as well, nothing but the depth speaks for the path.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from .bundle.priors import FocalPrior
from .bundle.problem import Problem, State, whitened_residuals
from .bundle.solve import Effort, solve_bundle
from .config import BundleConfig

log = logging.getLogger(__name__)

CLEAR_PARALLAX_RAD = 0.026
"""Parallax from which on a path is not asked whether it is one: paths of cameras at rest showed up to 0.012 rad."""
_LEAST_ERROR = 0.05
"""Standard deviations that an error counts as at least: of pictures that do not change nothing is left at all."""
_NEAREST = 0.05
"""Share of the usual distance within which no point lies: one that the camera went by would lie where all cameras stand
now, in no direction. Its distance is free."""
_EFFORT = Effort(max_iterations=20, tolerance=1e-3)


def rest_error_ratio(problem: Problem, state: State, prior: FocalPrior, config: BundleConfig) -> float:
    """Usual reprojection error under the best camera that stays in one place, over that under the solved cameras.

    About one where the camera rests, or the tracks cannot tell; one where there is no camera in one place to compare.

    Args:
        problem: observations of all frames.
        state: solved cameras and points.
        prior: of the focal lengths: how they may change, or the given ones.
    """
    images = replace(problem, sigma_log_depth=torch.full_like(problem.sigma_log_depth, torch.inf))
    centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    start = replace(
        state,
        translation=torch.zeros_like(state.translation),
        points=_kept_away(state.points - centre.median(0).values),
        log_gain=None,
    )
    try:
        resting = solve_bundle(images, start, prior, config, effort=_EFFORT, hold="centres")
    except FloatingPointError as error:
        # Then nothing confirms the path, and it is asked only where little does.
        log.debug("no camera in one place: %s", error)
        return 1.0

    def usual_error(found: State) -> float:
        return max(float(whitened_residuals(images, found)[0].norm(dim=1).median()), _LEAST_ERROR)

    return usual_error(resting.state) / usual_error(replace(state, log_gain=None))


def _kept_away(points: Tensor) -> Tensor:
    """Points (P, 3) seen from the origin, none of them much nearer than is usual."""
    distance = points.norm(dim=1, keepdim=True)
    least = _NEAREST * distance.median()
    direction = torch.where(
        distance > 0, points / distance, torch.tensor([0.0, 0.0, 1.0], dtype=points.dtype)
    )
    return torch.where(distance < least, least * direction, points)
