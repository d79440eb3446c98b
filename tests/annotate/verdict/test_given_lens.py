"""Given intrinsics under given poses: how far the tracks tell a lens by themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from theodolite.annotate.checks.given_poses import GivenPoseCheck
from theodolite.annotate.checks.held_cameras import LensCheck
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import REASONS, judge_given
from theodolite.dataset.rows import Gate

from .test_gates import ERRORS, LENS, solution


def focal_gate(lens: LensCheck, noise_px: float, long_side_px: int) -> Gate:
    """What the gate of given intrinsics says of a lens under poses with such noise, else right."""
    gates = judge_given(
        GivenPoseCheck(0.01, 0.05, 0.05, 1.02, 30),
        GatesConfig(),
        longest_gap_s=0.2,
        errors=replace(ERRORS, noise_px=noise_px),
        lens=lens,
        cameras=replace(solution(), focal_model="given"),
        long_side_px=long_side_px,
    )
    return next(gate for gate in gates if gate.name == "given_focal")


@pytest.mark.parametrize(
    ("asked", "sigma", "noise_px", "passed"),
    [
        (0.965, 0.038, 0.4, True),  # a drive with true intrinsics, with them times 1.07, 0.85 and 1.2
        (0.896, 0.038, 0.4, True),
        (1.141, 0.037, 0.3, False),
        (0.7975, 0.039, 0.4, False),
        (0.834, 0.055, 0.9, True),  # turns that err by a twentieth of a degree look like a shorter lens
        (1.199, 0.055, 0.9, False),  # and never like a longer one
        (0.779, 0.081, 1.7, True),
        (0.945, 0.002, 0.1, True),  # what a model of the lens leaves open, however sure the tracks are
        (0.93, 0.002, 0.1, False),
    ],
)
def test_the_focal_length_under_given_poses_is_held_to_what_the_tracks_tell(
    asked: float, sigma: float, noise_px: float, passed: bool
) -> None:
    """Tracks of a drive fit with any lens within a fifth, and still tell one better than that."""
    lens = replace(LENS, focal_log=float(np.log(asked)), focal_sigma=sigma, sigma_px=1.15, given_px=0.87)
    focal = focal_gate(lens, noise_px, long_side_px=1226)
    assert focal.passed == passed
    assert REASONS[focal.name] == "given_intrinsics_disagree"


@pytest.mark.parametrize(
    ("asked_log", "sigma", "order_log", "noise_px", "px", "passed"),
    [
        (-0.008, 0.0056, 0.016, 0.80, (0.65, 0.56, 0.40), True),
        (0.153, 0.0055, 0.017, 0.82, (1.18, 0.54, 0.42), False),
        (-0.041, 0.0132, 0.020, 0.99, (1.10, 0.96, 0.40), True),
        (0.119, 0.0130, 0.023, 0.97, (1.62, 0.95, 0.44), False),
    ],
)
def test_poses_that_err_by_a_little_more_than_the_tracks_still_tell_a_lens(
    asked_log: float,
    sigma: float,
    order_log: float,
    noise_px: float,
    px: tuple[float, float, float],
    passed: bool,
) -> None:
    """Two parts of rgbd-redkitchen without depth, with intrinsics as measured and times 0.85."""
    given_px, free_px, solved_px = px
    lens = replace(
        LENS, focal_log=asked_log, focal_sigma=sigma, order_log=order_log, told_px=6.0,
        given_px=given_px, free_px=free_px, solved_px=solved_px,
    )  # fmt: skip
    assert focal_gate(lens, noise_px, long_side_px=640).passed == passed
