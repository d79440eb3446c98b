"""Intervals from stated deviations: the shares that they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t
from theodolite.dataset.cameras.intervals import DEGREES_OF_FREEDOM, interval_half_width


def test_the_documented_factors() -> None:
    assert interval_half_width(1.0, 0.6827) == pytest.approx(0.860, abs=5e-4)
    assert interval_half_width(1.0, 0.95) == pytest.approx(1.991, abs=5e-4)


def test_intervals_hold_the_share_that_they_promise() -> None:
    """Errors of a t distribution whose root mean square is the deviation, drawn by another way than the formula."""
    nu = DEGREES_OF_FREEDOM
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.01, 3.0, 200_000)
    drawn = rng.standard_normal((nu + 1, len(sigma)))
    errors = sigma * drawn[0] / np.sqrt(np.square(drawn[1:]).sum(0) / nu) * np.sqrt((nu - 2) / nu)
    assert np.sqrt(np.mean(np.square(errors / sigma))) == pytest.approx(1.0, abs=0.02)
    for level in (0.5, 0.68, 0.95, 0.997):
        held = np.mean(np.abs(errors) < interval_half_width(sigma, level))
        assert held == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / len(sigma)))


def test_it_is_the_distribution_of_scipy() -> None:
    nu = DEGREES_OF_FREEDOM
    spread = np.sqrt((nu - 2) / nu)
    for level in (0.1, 0.9, 0.999):
        low, high = t(nu, scale=spread).interval(level)
        assert (-low, high) == pytest.approx([interval_half_width(1.0, level)] * 2)


def test_arrays_tensors_units_and_gaps() -> None:
    sigma = np.array([[0.0, 0.1], [np.nan, 2.0]])
    found = interval_half_width(sigma, 0.95)
    np.testing.assert_allclose(found / interval_half_width(1.0, 0.95), sigma)
    tensor = interval_half_width(torch.tensor(sigma), 0.95)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), found)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, float("nan")])
def test_levels_that_are_none(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        interval_half_width(0.1, level)


def test_a_deviation_below_zero() -> None:
    with pytest.raises(ValueError, match="sigma"):
        interval_half_width([0.1, -0.1], 0.95)
