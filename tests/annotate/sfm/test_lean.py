"""Focal lengths that images hardly tell lean on what a network's rays say, and others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from theodolite.annotate.sfm.bundle.pace import Effort
from theodolite.annotate.sfm.bundle.priors import EXPECTED_FOCAL_SIGMA, ExpectedFocal, FocalPrior, focal_prior
from theodolite.annotate.sfm.bundle.problem import Problem, Solution
from theodolite.annotate.sfm.bundle.solve import Question, solve_bundle
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.focal_model import common_focal_error
from theodolite.annotate.sfm.lean import leant_on_rays
from theodolite.annotate.sfm.shared_errors import expected_response
from theodolite.annotate.sfm.summary import summarise

from .bundle.test_bundle import scene

CONFIG = BundleConfig(principal_point_sigma=0.0, radial_sigma=0.0, robust_scale=50.0, focal_prior_sigma=10.0)
FRAMES = 10


def found(rays_off: float, *, share: float, zoom: float = 1.0) -> tuple[Problem, Solution, FocalPrior]:
    """A clip whose rays are off by a share of the focal length and whose images by about nothing; `share` says how many
    measurements the rays are for the bundle."""
    problem, truth = scene(frames=FRAMES, points=60, noise_px=0.1, zoom=zoom)
    model = "constant" if zoom == 1.0 else "smooth"
    prior = focal_prior(model, FRAMES, CONFIG)
    prior = replace(prior, expected=ExpectedFocal(truth.log_focal + rays_off, share))
    return problem, solve_bundle(problem, truth, prior, CONFIG, want_covariance=True), prior


def leant(unsure: float, rays_off: float = 0.02, zoom: float = 1.0) -> tuple[float, float]:
    """Level of the focal length over the true one, before and after; its images err by `unsure` in common."""
    problem, solution, prior = found(rays_off, share=1 / 16, zoom=zoom)
    cameras = summarise(problem, solution, prior.model, {}, CONFIG, num_loops=0)
    own = common_focal_error(cameras, None)
    cameras = replace(cameras, log_focal_sigma=cameras.log_focal_sigma * unsure / own)
    moved, _ = leant_on_rays(problem, solution, prior, cameras, CONFIG)
    truth = scene(frames=FRAMES, points=60, zoom=zoom)[1].log_focal
    if zoom != 1.0:
        # How it changes along the clip is left to the images.
        change = moved.state.log_focal - solution.state.log_focal
        assert float(change.std()) < 0.2 * float(change.mean().abs())
    before, after = (float((of.state.log_focal - truth).median()) for of in (solution, moved))
    return before, after


@pytest.mark.parametrize("zoom", [1.0, 1.3])
def test_the_level_of_a_focal_length_is_between_images_and_rays_by_what_both_err(zoom: float) -> None:
    for unsure in (EXPECTED_FOCAL_SIGMA, 3 * EXPECTED_FOCAL_SIGMA):
        before, after = leant(unsure, zoom=zoom)
        share = unsure**2 / (unsure**2 + EXPECTED_FOCAL_SIGMA**2)
        assert abs(before) < 0.003
        # From where the bundle stood, which had the rays in it already by a little.
        assert (after - before) / (0.02 - before) == pytest.approx(share, abs=0.08)


def test_images_that_are_sure_and_rays_that_contradict_them_change_nothing() -> None:
    before, after = leant(0.005)
    assert after == before
    before, after = leant(0.03, rays_off=0.2)
    assert after == before


def test_the_response_to_what_is_expected_is_its_share_of_what_is_known() -> None:
    for share in (1e-3, 10.0, 1e6):
        problem, solution, prior = found(0.0, share=share)
        assert prior.expected is not None
        other = replace(prior, expected=replace(prior.expected, log_focal=prior.expected.log_focal + 0.01))
        moved = solve_bundle(problem, solution.state, other, CONFIG, effort=Effort(tolerance=1e-12))
        really = float((moved.state.log_focal - solution.state.log_focal).median()) / 0.01
        question = Question(problem=problem, state=solution.state, prior=prior, config=CONFIG)
        assert expected_response(question.task()) == pytest.approx(really, abs=0.03)
    assert really > 0.9
