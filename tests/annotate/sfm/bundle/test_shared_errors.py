"""Standard deviations where measurements err alike, against the scatter of solutions with such errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.sfm.bundle.optimum import Optimum
from theodolite.annotate.sfm.bundle.pace import Effort
from theodolite.annotate.sfm.bundle.priors import focal_prior
from theodolite.annotate.sfm.bundle.problem import Problem, Solution, State
from theodolite.annotate.sfm.bundle.solve import Question, solve_bundle
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.depth_noise import PATCHES, patch_numbers
from theodolite.annotate.sfm.shared_errors import KnownErrors, SharedErrors, shared_errors
from theodolite.dataset.metrics.trajectory import trajectory_error

from .test_bundle import scene

CONFIG = BundleConfig(principal_point_sigma=0.0, radial_sigma=0.0, robust_scale=50.0, focal_prior_sigma=10.0)
FRAMES = 6


def of_tracks(problem: Problem, rng: np.random.Generator) -> Problem:
    """Every track is off by one shift in all frames but its first: a corner that is not what it was."""
    new = torch.ones(len(problem.point), dtype=torch.bool)
    new[1:] = problem.point[1:] != problem.point[:-1]
    shift = torch.as_tensor(rng.normal(0, 0.5, (problem.num_points, 2)))[problem.point]
    own = torch.as_tensor(rng.normal(0, 0.05, tuple(shift.shape)))
    return replace(problem, uv_px=problem.uv_px + torch.where(new[:, None], own, shift + own))


def still_field(problem: Problem, rng: np.random.Generator) -> Problem:
    """Depth is off by 1 % in patches of the image, the same in all frames, and the pixels err hardly."""
    place = torch.as_tensor(patch_numbers(problem)) % (PATCHES[0] * PATCHES[1])
    field = torch.as_tensor(rng.normal(0, 0.01, PATCHES[0] * PATCHES[1]))[place]
    own = torch.as_tensor(rng.normal(0, 0.05, tuple(problem.uv_px.shape)))
    return replace(problem, uv_px=problem.uv_px + own, log_depth=problem.log_depth + field)


def solved(
    problem: Problem, state, still_log: float, *, want_covariance: bool
) -> tuple[Solution, SharedErrors | None]:
    prior = focal_prior("constant", FRAMES, CONFIG)
    solution = solve_bundle(
        problem, state, prior, CONFIG, effort=Effort(tolerance=1e-9), want_covariance=want_covariance
    )
    if not want_covariance:
        return solution, None
    question = Question(problem=problem, state=solution.state, prior=prior, config=CONFIG)
    return solution, shared_errors(
        Optimum.of(question, solution), KnownErrors(still_log=still_log, slow_log=0.0)
    )


def poses(state: State) -> np.ndarray:
    """(F, 4, 4) camera to world."""
    world_to_camera = np.tile(np.eye(4), (len(state.rotation), 1, 1))
    world_to_camera[:, :3, :3], world_to_camera[:, :3, 3] = state.rotation.numpy(), state.translation.numpy()
    return np.linalg.inv(world_to_camera)


@pytest.mark.slow
@pytest.mark.parametrize(("errors", "still_log"), [(of_tracks, 0.0), (still_field, 0.01)])
def test_errors_that_measurements_share_are_in_the_deviations(errors, still_log: float) -> None:
    clean, truth = scene(frames=FRAMES, points=40)
    found, independent, shared, off, stated_off = [], [], [], [], []
    for seed in range(20):
        problem = errors(clean, np.random.default_rng([7, seed]))
        solution, stated = solved(problem, truth, still_log, want_covariance=seed % 5 == 0)
        state = solution.state
        centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[-1, :, 0]
        off.append(trajectory_error(poses(state), poses(truth), alignment="se3").ate_rmse_m)
        found.append(torch.cat([centre, state.log_focal[-1:]]).numpy())
        if stated is not None:
            assert solution.covariance is not None
            one = solution.covariance[-1]
            independent.append(
                torch.cat([torch.linalg.eigvalsh(one[3:6, 3:6])[-1:], one[6:, 6]]).sqrt().numpy()
            )
            worst = np.linalg.eigvalsh(stated.position[-1])[-1]
            stated_off.append(stated.path)
            shared.append(np.sqrt([worst, stated.log_focal[-1]]))
    scatter = np.cov(np.array(found).T)
    actual = np.sqrt([np.linalg.eigvalsh(scatter[:3, :3])[-1], scatter[3, 3]])
    # 20 runs know a standard deviation to 16 %, 48 draws to 10 %.
    ratio = np.mean(shared, 0) / actual
    assert ratio.min() > 0.65, ratio
    assert ratio.max() < 1.7, ratio
    # So is what the path is off by after the best shift and turn.
    assert 0.65 < np.mean(stated_off) / np.mean(np.square(off)) ** 0.5 < 1.7
    # What independent errors would do is no answer.
    assert (np.mean(independent, 0) / actual).min() < 0.6
