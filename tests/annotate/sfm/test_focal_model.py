"""How wrong a focal length may be where measurements err alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.sfm.bundle.priors import EXPECTED_FOCAL_SIGMA, ExpectedFocal
from theodolite.annotate.sfm.focal_model import widest_focal_error

from ..verdict.test_gates import FRAMES, solution

RAYS = ExpectedFocal(torch.zeros(FRAMES, dtype=torch.float64))


@pytest.mark.parametrize("expected", [None, RAYS])
def test_a_focal_length_of_few_views_is_as_wrong_as_its_views_are_with_rays_of_networks_too(expected) -> None:
    seen = np.full(FRAMES, 200)
    # Frames with no new points are one view: 200 measurements a frame say what the 200 of one say.
    one_view = replace(
        solution(),
        focal_model="constant",
        num_tracks=200,
        num_inliers=seen,
        log_focal_sigma=np.full(FRAMES, 1e-3),
    )
    many_views = replace(one_view, num_tracks=200 * FRAMES)
    alike = 0.6e-3 * (200 * FRAMES) ** 0.5
    if expected is not None:
        alike = (alike**-2 + EXPECTED_FOCAL_SIGMA**-2) ** -0.5
    widest, beside = widest_focal_error(one_view, 0.0, expected)
    assert widest == beside == pytest.approx(alike, rel=1e-9)
    assert widest_focal_error(many_views, 0.0, expected)[0] < widest
    # Causes that are known are not counted twice.
    widest, beside = widest_focal_error(one_view, 0.8 * alike, expected)
    assert widest == pytest.approx(alike, rel=1e-9)
    assert beside == pytest.approx(0.6 * alike, rel=1e-9)
    assert widest_focal_error(one_view, 2 * alike, expected) == (2 * alike, 0.0)
