"""Which focal lengths are tried, and how long."""

from __future__ import annotations

from typing import Any

import pytest
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
