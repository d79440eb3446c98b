"""Keyframes verified by tracks: wrong ones are found, the others place every keyframe, and the bundle begins there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.geometry.base import MetricDepth
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm.bundle.lens import LENS_DOF
from theodolite.annotate.sfm.bundle.problem import State
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.keyframes import SolverInput
from theodolite.annotate.sfm.observations import build_problem, count_depth
from theodolite.annotate.sfm.records import StartCameras
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.sfm.start import verify_keyframes
from theodolite.annotate.sfm.triangulation import back_project, moving_tracks, triangulate, without_moving
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import TracksConfig, make_tracks
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.metrics.trajectory import focal_mape_percent, rotation_error, trajectory_error

FRAMES = 49
TRACKS = TracksConfig(num_flow_tracks=120, num_descriptors=300)
KEYFRAMES = np.arange(0, FRAMES, 4)
WRONG_POSE, WRONG_DEPTH = (8, 32), (20, 44)


class Maps:
    """True depth at the keyframes; at some of them 35 % too far as a whole."""

    def __init__(self, clip) -> None:
        self.clip = clip

    def __len__(self) -> int:
        return FRAMES

    def read(self, frame: int):
        if frame not in KEYFRAMES:
            return None
        return self.clip.depth_m(frame, size=(90, 160)) * (1.35 if frame in WRONG_DEPTH else 1.0)


@pytest.fixture(scope="module")
def scene():
    clip = render_clip(
        RenderConfig(width=320, height=180, num_frames=FRAMES, seed=4, zoom="ramp", zoom_factor=1.3)
    )
    measured = measure_images(
        (f.rgb for f in clip),
        height=180,
        width=320,
        config=TRACKS,
        keyframes=frozenset(KEYFRAMES.tolist()),
    )
    rng = np.random.default_rng(0)
    poses, focal = np.full((FRAMES, 4, 4), np.nan), np.full((FRAMES, 2), np.nan)
    poses[KEYFRAMES] = clip.camera_to_world[KEYFRAMES]
    for frame in KEYFRAMES:
        big = 20 if frame in WRONG_POSE else 1
        poses[frame, :3, :3] = poses[frame, :3, :3] @ so3_exp(0.005 * big * rng.standard_normal(3))
        poses[frame, :3, 3] += 0.01 * big * rng.standard_normal(3)
        focal[frame] = clip.intrinsics[frame, 0, 0] * np.exp(0.01 * rng.standard_normal())
    return clip, measured, StartCameras(camera_to_world=poses, focal_px=focal)


@pytest.mark.slow
def test_keyframes_that_were_asked_for_are_keyframes(scene):
    _, measured, _ = scene
    assert set(KEYFRAMES.tolist()) <= set(measured.keyframes.tolist())
    assert (np.diff(measured.keyframes) > 0).all()
    assert [f.frame for f in measured.features] == measured.keyframes.tolist()


@pytest.mark.slow
def test_wrong_keyframes_are_found_and_replaced(scene):
    clip, measured, start = scene
    verified = verify_keyframes(measured, Maps(clip), start, BundleConfig(), depth_sigma_log=0.05)
    assert np.flatnonzero(verified.wrong_depth).tolist() == list(WRONG_DEPTH)
    assert verified.placed_share == 1.0
    at = measured.keyframes
    error = trajectory_error(verified.cameras.camera_to_world[at], clip.camera_to_world[at])
    assert error.ate_max_m < 0.1  # the wrong keyframes were 0.35 m off
    assert (
        np.degrees(rotation_error(verified.cameras.camera_to_world[at], clip.camera_to_world[at]).max()) < 1.5
    )


@pytest.mark.slow
def test_the_bundle_begins_there(scene, monkeypatch):
    clip, measured, start = scene
    depth = Maps(clip)
    verified = verify_keyframes(measured, depth, start, BundleConfig(), depth_sigma_log=0.05)
    monkeypatch.setattr("theodolite.annotate.sfm.keyframes.choose_start", None)  # not to be called
    inputs = SolverInput(
        measured=measured,
        depth=MetricDepth(depth, np.ones(len(depth)), ~verified.wrong_depth),
        depth_sigma_log=0.05,
        tracks_config=TRACKS,
        config=BundleConfig(),
        start=verified.cameras,
    )
    found = solve_cameras(inputs)
    error = trajectory_error(found.camera_to_world, clip.camera_to_world)
    assert error.ate_rmse_m < 0.02
    assert focal_mape_percent(found.focal_px[:, 0], clip.intrinsics[:, 0, 0]) < 1.0


@pytest.mark.slow
def test_start_cameras_between_and_beyond(scene):
    _, _, start = scene
    world_to_camera, focal = start.at(np.array([0, 2, 48]))
    assert np.isfinite(world_to_camera).all()
    assert np.isfinite(focal).all()
    wide = start.stretched(2.0)
    np.testing.assert_allclose(wide.focal_px[KEYFRAMES, 0], 2 * start.focal_px[KEYFRAMES, 0])
    np.testing.assert_allclose(wide.focal_px[KEYFRAMES, 1], start.focal_px[KEYFRAMES, 1])
    nothing = StartCameras(camera_to_world=np.full((9, 4, 4), np.nan), focal_px=np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match="at least 2 and 1"):
        nothing.at(np.arange(3))


def _sideways(rng: np.random.Generator, *, tracks: int, speed_m: float, depth_factor: float):
    """Tracks of a camera that moves 20 cm a frame to the right, and its state: points at 2 to 4 m, most of them without
    depth, the others with one that is off by `depth_factor`; they all move by `speed_m` a frame."""
    frames, focal, size = 12, 500.0, (480, 640)
    start = np.c_[rng.uniform(-0.6, 2.6, tracks), rng.uniform(-0.8, 0.8, tracks), rng.uniform(2, 4, tracks)]
    frame = np.tile(np.arange(frames), tracks)
    track = np.repeat(np.arange(tracks), frames)
    local = start[track] + frame[:, None] * np.array([speed_m - 0.2, 0, 0])
    uv = (
        focal * local[:, :2] / local[:, 2:]
        + np.array(size[::-1]) / 2
        + 0.3 * rng.standard_normal((len(frame), 2))
    )
    depth = np.where((frame == 0) & (track % 4 == 0), local[:, 2] * depth_factor, np.nan)
    problem = build_problem(
        make_tracks(frame, track, uv, np.zeros(len(frame), np.uint8), frames, *size),
        depth,
        BundleConfig(),
        depth_sigma_log=0.05,
    )
    translation = torch.zeros(frames, 3, dtype=torch.float64)
    translation[:, 0] = -0.2 * torch.arange(frames)
    state = State(
        rotation=torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1),
        translation=translation,
        log_focal=torch.full((frames,), float(np.log(focal)), dtype=torch.float64),
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=torch.zeros(tracks, 3, dtype=torch.float64),
    )
    lifted = back_project(problem, state)
    found = torch.where(
        torch.isfinite(lifted), lifted, triangulate(problem, state, ~torch.isfinite(lifted).all(1))
    )
    return problem, replace(state, points=found)


def test_depth_that_parallax_corrects_is_no_motion():
    rng = np.random.default_rng(0)
    placed = np.ones(12, bool)
    problem, state = _sideways(rng, tracks=200, speed_m=0.0, depth_factor=1.15)
    # By its back-projection alone every track with depth moves.
    assert moving_tracks(problem, state, placed)[::4].mean() > 0.9
    kept = without_moving(problem, state, placed).points
    assert torch.isfinite(kept).all(1).double().mean() > 0.98
    # ... and those that move beside the camera triangulate too, but not where their depth says they are.
    problem, state = _sideways(rng, tracks=200, speed_m=0.1, depth_factor=1.0)
    kept = without_moving(problem, state, placed).points[::4]
    assert not torch.isfinite(kept).any()


def test_depths_of_a_frame_count_as_thirty():
    problem, _ = _sideways(np.random.default_rng(0), tracks=480, speed_m=0.0, depth_factor=1.0)
    counted = count_depth(problem, 30.0)
    has = torch.isfinite(problem.sigma_log_depth)
    assert float((counted.sigma_log_depth[has] ** -2).sum() * 0.05**2) == pytest.approx(30.0)
    assert torch.isinf(counted.sigma_log_depth[~has]).all()
    assert count_depth(problem, None) is problem
    assert float(count_depth(problem, 500.0).sigma_log_depth[has].max()) == pytest.approx(0.05)
