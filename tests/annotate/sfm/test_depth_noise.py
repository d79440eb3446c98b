"""Depth that errs as depth does: its noise is measured, and cameras and focal lengths do not follow it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.sfm.bundle.lens import LENS_DOF
from theodolite.annotate.sfm.bundle.priors import focal_prior
from theodolite.annotate.sfm.bundle.problem import Problem, Solution, State
from theodolite.annotate.sfm.bundle.single import resect
from theodolite.annotate.sfm.bundle.solve import Effort, solve_bundle
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.depth_noise import (
    DepthNoise,
    count_patches,
    cut_off,
    first_noise,
    map_noise,
    measured_noise,
    patch_numbers,
    sample_depth,
)
from theodolite.annotate.sfm.keyframes import SolverInput
from theodolite.annotate.sfm.records import CameraSolution
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import FLOW, ImageMeasurements, TracksConfig, make_tracks
from theodolite.dataset.metrics.trajectory import focal_mape_percent, path_length, trajectory_error

from ..maps import Maps
from .bundle.test_bundle import CONFIG, disturbed, scene

TRACKS = TracksConfig(num_flow_tracks=150, num_descriptors=250)
HEIGHT, WIDTH, FRAMES = 180, 320, 40


def slanted(noise: float, seed: int = 0) -> np.ndarray:
    """A floor from 1 to 4 m with a box on it, every pixel with noise of its own."""
    z = np.linspace(4, 1, 120)[:, None] * np.ones((1, 160))
    z[40:80, 60:100] = 1.2
    return z * np.exp(noise * np.random.default_rng(seed).standard_normal(z.shape))


def tracks_at(xy: np.ndarray):
    """Every point of `xy` (n, 2) seen in two frames, in an image of 160 by 120."""
    n = len(xy)
    return make_tracks(
        np.tile([0, 1], n), np.repeat(np.arange(n), 2), np.repeat(xy, 2, 0), np.full(2 * n, FLOW, np.uint8), 2, 120, 160
    )  # fmt: skip


# --- maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05, 0.2])
def test_noise_of_a_map_is_measured(noise: float) -> None:
    assert map_noise(slanted(noise)) == pytest.approx(noise, rel=0.06, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "share", "error"), [(0.0, 0.9, 0.006), (0.05, 0.8, 0.02), (0.2, 0.7, 0.05)]
)
def test_noisy_maps_are_read_and_their_edges_are_not(noise: float, share: float, error: float) -> None:
    rng = np.random.default_rng(1)
    xy = np.stack([rng.uniform(8, 152, 400), rng.uniform(8, 112, 400)], 1)
    from_box = np.maximum(np.abs(xy[:, 0] - 80), np.abs(xy[:, 1] - 60)) - 20
    z = slanted(noise)
    found = sample_depth(tracks_at(xy), Maps([z, z])).reshape(-1, 2)[:, 0]
    true = slanted(0.0)[xy[:, 1].astype(int), xy[:, 0].astype(int)]
    flat = np.abs(from_box) > 5
    assert np.isfinite(found[flat]).mean() > share
    # Taken at the pixel's own middle the truth is up to half a row off.
    assert np.nanstd(np.log(found[flat] / true[flat])) < error
    # On the upper half of the box's outline depth steps by a factor of two and more.
    edge = (np.abs(from_box) < 1) & (xy[:, 1] < 60)
    assert edge.sum() > 5
    assert np.isfinite(found[edge]).sum() <= 1  # a corner of it


def test_a_range_that_ends_is_told_from_a_wall() -> None:
    z = slanted(0.003)
    assert cut_off(z) == (0.0, np.inf)
    assert cut_off(np.clip(z, 1.3, 3.0)) == (1.3, 3.0)
    # Stored in steps: a wall fills the last ones, none of them alone.
    wall = np.round(np.where(z > 3, 3.0 + 0.01 * np.random.default_rng(0).standard_normal(z.shape), z), 3)
    assert cut_off(wall) == (0.0, np.inf)
    xy = np.stack([np.full(50, 20.0), np.linspace(10, 110, 50)], 1)
    found = sample_depth(tracks_at(xy), Maps([np.clip(z, 1.3, 3.0)] * 2))[::2]
    true = slanted(0.0)[xy[:, 1].astype(int), 20]
    assert np.isnan(found[(true > 3.05) | (true < 1.25)]).all()
    assert np.isfinite(found[(true < 2.9) & (true > 1.4)]).all()


@pytest.mark.parametrize(("frame", "pixel"), [(0.0, 0.02), (0.05, 0.01), (0.2, 0.05)])
def test_noise_along_tracks_is_split_into_that_of_frames_and_of_pixels(frame: float, pixel: float) -> None:
    rng = np.random.default_rng(2)
    frames, points = 60, 80
    time = np.tile(np.arange(frames), points)
    z = 2.0 + 0.01 * time + rng.uniform(0, 1, points).repeat(frames)
    z = z * np.exp(frame * rng.standard_normal(frames)[time] + pixel * rng.standard_normal(len(z)))
    tracks = make_tracks(
        time, np.arange(points).repeat(frames), np.zeros((len(z), 2)), np.full(len(z), FLOW, np.uint8), frames, 10, 10
    )  # fmt: skip
    found = first_noise(tracks, z, 0.01)
    assert found.observation == pytest.approx(pixel, rel=0.1)
    if frame:
        assert found.frame == pytest.approx(frame, rel=0.35)
        assert not found.calm
    else:
        assert found.calm


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_errors_that_a_patch_has_in_common_are_found_and_counted_once(share: float) -> None:
    """Maps err in blotches: of the variance of an observation, `share` is that of its patch."""
    rng = np.random.default_rng(3)
    frames, of_frame = 20, 300
    count = frames * of_frame
    problem = Problem(
        frame=torch.arange(frames).repeat_interleave(of_frame),
        point=torch.arange(count),
        uv_px=torch.as_tensor(rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)),
        sigma_px=torch.ones(count, dtype=torch.float64),
        log_depth=torch.zeros(count, dtype=torch.float64),
        sigma_log_depth=torch.full((count,), 0.05, dtype=torch.float64),
        num_frames=frames,
        num_points=count,
        centre_px=torch.tensor([WIDTH / 2, HEIGHT / 2], dtype=torch.float64),
        focal_scale_px=400.0,
    )
    patch = patch_numbers(problem)
    assert len(np.unique(patch)) == 40 * frames
    error = 0.05 * (
        share**0.5 * rng.standard_normal(patch.max() + 1)[patch]
        + (1 - share) ** 0.5 * rng.standard_normal(count)
    )
    free = torch.zeros(frames, dtype=torch.float64)
    state = State(
        torch.eye(3).repeat(frames, 1, 1),
        torch.zeros(frames, 3),
        free,
        torch.zeros(LENS_DOF),
        torch.zeros(count, 3),
        free,
    )
    solution = Solution(
        state,
        0.0,
        0.0,
        1,
        True,
        torch.zeros(count),
        torch.as_tensor(error),
        torch.ones(count, dtype=torch.float64),
    )
    found = measured_noise(problem, solution, DepthNoise(observation=0.01, frame=0.01, slow=0.0))
    assert found.observation == pytest.approx(0.05, rel=0.1)
    assert found.patch == pytest.approx(share, abs=0.08)
    weighted = count_patches(problem, found)
    if share:
        # Seven or eight observations of a patch weigh together as one error of it and the rest of each.
        ratio = float((weighted.sigma_log_depth / problem.sigma_log_depth).median())
        assert ratio == pytest.approx((1 + 6.5 * share) ** 0.5, rel=0.1)
    # A sensor errs by half a per cent: there every depth counts.
    quiet = replace(found, observation=0.005)
    assert count_patches(problem, quiet) is problem
    assert count_patches(problem, None) is problem


# --- the bundle's gains ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slow", "band"),
    [
        (0.0, 64),
        (0.2, 4),
        pytest.param(0.0, 4, marks=pytest.mark.thorough),
        pytest.param(0.2, 64, marks=pytest.mark.thorough),
    ],
)
def test_gains_of_frames_are_found_and_the_cameras_with_them(slow: float, band: int) -> None:
    problem, truth = scene(frames=14, zoom=1.3, points=70)
    rng = np.random.default_rng(0)
    gain = 0.1 * rng.standard_normal(14) if slow == 0 else np.linspace(-0.1, 0.1, 14)
    gain = torch.as_tensor(gain - gain.mean())
    problem = replace(problem, log_depth=problem.log_depth + gain[problem.frame])
    prior = focal_prior("smooth", 14, CONFIG)
    expected = DepthNoise(observation=0.01, frame=0.1 if slow == 0 else 0.01, slow=slow).gain_prior(14)
    solution = solve_bundle(
        problem,
        disturbed(truth),
        prior,
        CONFIG,
        effort=Effort(max_iterations=80, tolerance=1e-13, band_frames=band),
        gain=expected,
        want_covariance=True,
    )
    found = solution.state
    assert found.log_gain is not None
    assert solution.covariance is not None
    assert solution.covariance.shape == (14, 8, 8)
    # The level is known as well as the mean of the gains; what remains is the same everywhere.
    off = found.log_gain - gain
    assert float(off.std()) < 2e-3
    assert float((found.log_focal - truth.log_focal).abs().max()) < 1e-3
    scale = torch.exp(-off.mean())
    assert torch.allclose(found.translation, scale * truth.translation, atol=2e-3)
    without = solve_bundle(
        problem, disturbed(truth), prior, CONFIG, effort=Effort(max_iterations=80, tolerance=1e-13)
    ).state
    assert float((without.log_focal - truth.log_focal).abs().max()) > 5e-3


def test_gains_need_a_prior() -> None:
    problem, truth = scene(frames=6)
    state = replace(truth, log_gain=torch.zeros(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="no prior"):
        solve_bundle(problem, state, focal_prior("smooth", 6, CONFIG), CONFIG)


def test_resection_frees_the_gain_of_single_frames() -> None:
    problem, truth = scene(frames=9, points=60, zoom=1.3)
    gain = torch.as_tensor(0.1 * np.random.default_rng(4).standard_normal(9))
    problem = replace(problem, log_depth=problem.log_depth + gain[problem.frame])
    start = replace(disturbed(truth), points=truth.points)
    found, _ = resect(
        problem, start, CONFIG, free_frames=torch.ones(9, dtype=torch.bool), focal_guess=truth.log_focal,
        focal_sigma=0.05, gain_sigma=0.2, effort=Effort(max_iterations=30, tolerance=0.0),
    )  # fmt: skip
    assert found.log_gain is not None
    assert torch.allclose(found.log_gain, gain, atol=1e-3)
    assert torch.allclose(found.log_focal, truth.log_focal, atol=1e-3)


# --- whole clips -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> tuple[RenderedClip, ImageMeasurements, list[np.ndarray]]:
    made = render_clip(RenderConfig(width=WIDTH, height=HEIGHT, num_frames=FRAMES, seed=5, speed=1.5))
    frames = list(made)
    measured = measure_images((f.rgb for f in frames), height=HEIGHT, width=WIDTH, config=TRACKS)
    return made, measured, [f.depth_m for f in frames]


def noisy(maps: list[np.ndarray]) -> list[np.ndarray | None]:
    """8 % for every frame, 5 % for every pixel."""
    rng = np.random.default_rng(0)
    return [z * np.exp(0.08 * rng.standard_normal() + 0.05 * rng.standard_normal(z.shape)) for z in maps]


def drifting(maps: list[np.ndarray]) -> list[np.ndarray | None]:
    return [z * np.exp(0.1 * (2 * i / (FRAMES - 1) - 1)) for i, z in enumerate(maps)]


def absent(maps: list[np.ndarray]) -> list[np.ndarray | None]:
    """Eight frames in the middle carry none; elsewhere what is far reads the end of the range."""
    far = float(np.nanquantile(np.stack(maps)[np.isfinite(np.stack(maps))], 0.7))
    return [None if 16 <= i < 24 else np.minimum(z, far) for i, z in enumerate(maps)]


@pytest.mark.slow(about_s=7)
@pytest.mark.parametrize(
    "change", [noisy, *(pytest.param(change, marks=pytest.mark.thorough) for change in (drifting, absent))]
)
def test_cameras_do_not_follow_what_is_wrong_with_the_depth(clip, change) -> None:
    made, measured, maps = clip
    inputs = SolverInput(
        measured=measured,
        depth=Maps(change(maps)),
        depth_sigma_log=0.02,
        tracks_config=TRACKS,
        config=BundleConfig(),
    )
    solution: CameraSolution = solve_cameras(inputs)
    truth = made.camera_to_world
    error = trajectory_error(solution.camera_to_world, truth, alignment="se3")
    assert error.ate_rmse_m < 0.01 * path_length(truth)
    assert solution.focal_model == "constant"
    assert focal_mape_percent(solution.focal_px[:, 0], made.intrinsics[:, 0, 0]) < 1.0
    assert (solution.pose_source == "solved").all()
