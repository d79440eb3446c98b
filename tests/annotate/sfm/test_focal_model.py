"""Which focal lengths are tried, and how long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from theodolite.annotate.sfm import focal_model
from theodolite.annotate.sfm.bundle.priors import focal_prior
from theodolite.annotate.sfm.bundle.problem import Solution
from theodolite.annotate.sfm.bundle.solve import solve_bundle

from .bundle.test_bundle import CONFIG, disturbed, scene


def test_a_constant_focal_length_is_given_up_only_far_above_the_smooth_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, truth = scene(frames=20, points=60, noise_px=0.5)
    smooth = solve_bundle(problem, disturbed(truth), focal_prior("smooth", 20, CONFIG), CONFIG)
    bounds: list[float] = []

    def spied(*args: Any, effort: Any, **others: Any) -> Solution:
        bounds.extend([] if effort.hopeless_above is None else [effort.hopeless_above])
        return solve_bundle(*args, effort=effort, **others)

    monkeypatch.setattr(focal_model, "solve_bundle", spied)
    best, prior, costs, _ = focal_model.choose_focal_model(problem, smooth, CONFIG)
    assert prior.model == "constant"
    assert best.converged
    assert costs["constant"] < costs["smooth"]
    # With blotches in the depth it was on its way 0.14 above, and ended at 0.
    assert bounds
    assert min(bounds) >= 1.5 * smooth.data_cost


def test_a_zoom_that_steps_is_no_lens_that_wiggles() -> None:
    """Within three frames, as a lens with steps does: over a second its mean is off by a third of the step, and a focal
    length that was right to 0.1 % was stated to 4 %."""
    step = 4.0 + np.log(1.4) * np.clip((np.arange(64) - 30) / 3, 0, 1)
    noise = 0.002 * np.random.default_rng(3).standard_normal(64)

    def beside(log_focal: np.ndarray) -> float:
        breaks = focal_model._find_breaks(torch.as_tensor(log_focal)).tolist()
        return float(focal_model._beside_zoom(log_focal, breaks).std())

    assert beside(step + noise) == pytest.approx(0.002, rel=0.3)
    assert beside(step[::-1] + noise) == pytest.approx(0.002, rel=0.3)
    # What bends for a second and comes back, or wanders about a step, is an error as before.
    bump = 0.15 * np.exp(-(((np.arange(64) - 30) / 4) ** 2))
    wander = 0.04 * np.sin(np.arange(64) / 2)
    for wrong in (bump, wander, step + wander):
        assert beside(4.0 + wrong) > 0.02
