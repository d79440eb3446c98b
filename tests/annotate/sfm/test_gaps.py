"""First cameras across runs of keyframes without depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.sfm.bundle.problem import Problem, State
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.gaps import find_gaps
from theodolite.annotate.sfm.incremental import place_incrementally
from theodolite.dataset.metrics.trajectory import path_length, trajectory_error

from .bundle.test_bundle import scene

CONFIG = BundleConfig(robust_scale=2.0)
FRAMES = 36


def walk(bare: slice, *, seed: int = 0, span: int = 6) -> tuple[Problem, State]:
    """Points that are each seen in a few frames, half a pixel off; no depth in the frames of `bare`."""
    problem, state = scene(FRAMES, 15000 // span, noise_px=0.5, seed=seed, span=span)
    without = torch.zeros(FRAMES, dtype=torch.bool)
    without[bare] = True
    sigma = torch.where(without[problem.frame], torch.inf, problem.sigma_log_depth)
    return replace(problem, sigma_log_depth=sigma), state


def centres(state: State) -> np.ndarray:
    """(F, 4, 4) camera to world."""
    out = np.tile(np.eye(4), (FRAMES, 1, 1))
    out[:, :3, :3] = state.rotation.transpose(1, 2)
    out[:, :3, 3] = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    return out


def error_of(found: State, truth: State, frames: slice = slice(None)) -> float:
    """ATE as a share of the path."""
    error = trajectory_error(centres(found)[frames], centres(truth)[frames], alignment="se3")
    return error.ate_rmse_m / path_length(centres(truth))


def test_runs_are_found_by_the_depths_that_their_frames_have() -> None:
    depths = np.array([0, 0, 11, 40, 0, 0, 50, 0, 0, 0, 0])
    assert find_gaps(depths) == [range(0, 3), range(7, 11)]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "seed"), [(4, 1), (31, 2)], ids=["forwards", "backwards"])
def test_what_lies_beyond_a_run_without_depth_is_where_it_belongs(start: int, seed: int) -> None:
    problem, truth = walk(slice(10, 26), seed=seed)
    found, placed = place_incrementally(
        problem, CONFIG, start=start, log_focal=float(np.log(500.0)), focal_step_sigma=0.05
    )
    assert placed.all()
    # Each end by itself has its depth; what this is about is how one lies to the other.
    assert error_of(found, truth) < 0.015
    assert np.abs(found.log_focal.numpy() - np.log(500.0)).max() < 0.05


@pytest.mark.slow
def test_a_run_that_tracks_reach_across_is_filled_from_both_sides() -> None:
    problem, truth = walk(slice(14, 21), span=14)
    found, placed = place_incrementally(
        problem, CONFIG, start=4, log_focal=float(np.log(500.0)), focal_step_sigma=0.05
    )
    assert placed.all()
    assert error_of(found, truth) < 0.01


@pytest.mark.slow
def test_runs_at_both_ends_are_carried_by_their_tracks() -> None:
    bare = np.r_[0:7, 29:36]
    problem, truth = walk(slice(0, 0))
    sigma = problem.sigma_log_depth.clone()
    sigma[torch.as_tensor(np.isin(problem.frame.numpy(), bare))] = torch.inf
    problem = replace(problem, sigma_log_depth=sigma)
    # To begin with, a frame that has no depth itself.
    found, placed = place_incrementally(
        problem, CONFIG, start=2, log_focal=float(np.log(500.0)), focal_step_sigma=0.05
    )
    assert placed.all()
    assert error_of(found, truth) < 0.02


@pytest.mark.slow
def test_two_ends_that_no_point_joins_are_not_put_together() -> None:
    problem, truth = walk(slice(10, 26))
    # No track leads through the middle of the run.
    keep = (problem.frame < 16) | (problem.frame > 20)
    split = problem.point + problem.num_points * (problem.frame > 20)
    order = torch.argsort(split[keep] * FRAMES + problem.frame[keep])
    _, point = torch.unique(split[keep][order], return_inverse=True)
    parts = {
        name: getattr(problem, name)[keep][order]
        for name in ("frame", "uv_px", "sigma_px", "log_depth", "sigma_log_depth")
    }
    apart = replace(problem, **parts, point=point, num_points=int(point.max()) + 1)
    found, placed = place_incrementally(
        apart, CONFIG, start=4, log_focal=float(np.log(500.0)), focal_step_sigma=0.05
    )
    assert placed[:16].all()
    assert not placed[21:].any()
    assert error_of(found, truth, slice(0, 16)) < 0.02
