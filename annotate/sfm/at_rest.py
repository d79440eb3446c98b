"""Would a camera that stays where it is explain the tracks as well?

A lens that zooms looks like a camera that comes closer, and depth that errs by a few per cent cannot contradict: the
bundle then finds a path for a camera on a tripod, and the parallax under that path looks like parallax. What the
images alone say is asked here: all cameras in one place, each with a turn and a focal length of its own, points at any
distance. If the tracks fit nearly as well, nothing but the depth speaks for the path.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .bundle.priors import FocalPrior
from .bundle.problem import Problem, State, whitened_residuals
from .bundle.solve import Effort, solve_bundle
from .config import BundleConfig

CLEAR_PARALLAX_RAD = 0.026
"""Parallax from which on a path is not asked whether it is one: paths of cameras at rest showed up to 0.012 rad."""
_LEAST_ERROR = 0.05
"""Standard deviations that an error counts as at least: of pictures that do not change nothing is left at all."""
_EFFORT = Effort(max_iterations=20, tolerance=1e-3)


def rest_error_ratio(problem: Problem, state: State, prior: FocalPrior, config: BundleConfig) -> float:
    """Usual reprojection error under the best camera that stays in one place, over that under the solved cameras.

    About one where the camera rests, or the tracks cannot tell.

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
        points=state.points - centre.median(0).values,
        log_gain=None,
    )
    resting = solve_bundle(images, start, prior, config, effort=_EFFORT, hold="centres")

    def usual_error(found: State) -> float:
        return max(float(whitened_residuals(images, found)[0].norm(dim=1).median()), _LEAST_ERROR)

    return usual_error(resting.state) / usual_error(replace(state, log_gain=None))
