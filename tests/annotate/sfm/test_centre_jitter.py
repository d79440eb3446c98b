"""What a stabiliser's shifting window leaves in the residuals, after the bundle took what it could for turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.sfm.bundle.pace import Effort
from theodolite.annotate.sfm.bundle.priors import focal_prior
from theodolite.annotate.sfm.bundle.solve import solve_bundle
from theodolite.annotate.sfm.centre_jitter import centre_jitter_px
from theodolite.annotate.sfm.config import BundleConfig

from .bundle.test_bundle import scene


@pytest.mark.parametrize("shift_px", [0.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_a_window_that_shifts_is_told_from_a_camera_that_turns(shift_px: float) -> None:
    frames = 12
    problem, truth = scene(frames=frames, points=60, noise_px=0.2)
    shift = torch.as_tensor(np.random.default_rng(5).normal(0, shift_px, (frames, 2)))
    shifted = replace(problem, uv_px=problem.uv_px + shift[problem.frame])
    prior = focal_prior("constant", frames, BundleConfig())
    solution = solve_bundle(shifted, truth, prior, BundleConfig(), effort=Effort(tolerance=1e-4))
    found = centre_jitter_px(shifted, solution)
    if shift_px:
        # Standard deviations of twelve draws; points and depth take a part of it.
        assert 0.3 * shift_px < found < 1.5 * shift_px
    else:
        assert found < 0.5


def test_a_clip_of_few_frames_or_points_tells_nothing() -> None:
    for frames, points in ((6, 60), (12, 30)):
        problem, truth = scene(frames=frames, points=points)
        prior = focal_prior("constant", frames, BundleConfig())
        solution = solve_bundle(problem, truth, prior, BundleConfig(), effort=Effort(max_iterations=1))
        assert np.isnan(centre_jitter_px(problem, solution))
