"""How far focal lengths lean on what is expected of them.

A bundle takes every observation for a measurement of its own. A short path, or one straight ahead, then decides a
focal length by errors that all measurements of its few views share, and hardly hears what the rays of a network say.
Both have a size (`common_focal_error`, `EXPECTED_FOCAL_SIGMA`), and what is less sure yields to the other.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from .bundle.priors import EXPECTED_FOCAL_SIGMA, ExpectedFocal, FocalPrior, GainPrior
from .bundle.problem import Problem, Solution
from .bundle.solve import Effort, Question, solve_bundle
from .config import BundleConfig
from .focal_model import common_focal_error
from .records import TOLERANCE, CameraSolution
from .shared_errors import expected_response

log = logging.getLogger(__name__)

_SURE = 0.01
"""Error of log focal by what measurements share below which rays, three times as unsure, would change a tenth of it."""
_APART = 3.0
"""Standard deviations of both beyond which one of them is wrong altogether, and neither says which."""


def leant_on_rays(
    problem: Problem,
    solution: Solution,
    prior: FocalPrior,
    cameras: CameraSolution,
    config: BundleConfig,
    gain: GainPrior | None = None,
) -> tuple[Solution, FocalPrior]:
    """The solution with the level of its focal lengths between that of images and that of a network's rays, each by
    what it errs; how the focal length changes along the clip is left to the images.

    Args:
        solution, prior: of the bundle over all frames, with what rays say (`FocalPrior.expected`).
        cameras: what the solution states.
        gain: as for `solve_bundle`.
    Returns:
        Without covariance; the same solution and prior where the images are sure, or where both contradict each other.
    """
    expected = prior.expected
    of_views = common_focal_error(cameras, None)
    if expected is None or of_views < _SURE:
        return solution, prior
    log_focal = solution.state.log_focal
    apart = float((expected.log_focal - log_focal).median())
    if abs(apart) > _APART * (of_views**2 + EXPECTED_FOCAL_SIGMA**2) ** 0.5:
        return solution, prior
    question = Question(problem=problem, state=solution.state, prior=prior, config=config, gain=gain)
    try:
        response = expected_response(question.task())
    except FloatingPointError:
        return solution, prior
    # In the bundle both have weights of which the response is the rays' share; it should be that of their variances.
    more = (of_views / EXPECTED_FOCAL_SIGMA) ** 2 * (1 / response - 1) if 0 < response < 1 else 0.0
    if more <= 1:
        return solution, prior
    leaning = replace(prior, expected=ExpectedFocal(log_focal + apart, expected.share * more))
    log.debug("focal leans on rays: %.4f away, %.3f unsure, response %.3f", apart, of_views, response)
    found = solve_bundle(
        problem,
        solution.state,
        leaning,
        config,
        effort=Effort(tolerance=TOLERANCE),
        gain=gain,
    )
    return found, leaning
