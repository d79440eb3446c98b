"""What holds a clip together: cameras that go over to something that moves give themselves away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.geometry.base import MetricDepth
from theodolite.annotate.sfm import incremental, start
from theodolite.annotate.sfm.bundle.problem import Problem, state_at_origin
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.incremental import place_incrementally
from theodolite.annotate.sfm.moving import (
    held_share,
    inliers,
    kept_share,
    moving_share,
    picture_noise,
    votes,
)
from theodolite.annotate.sfm.observations import build_problem, subset_frames
from theodolite.annotate.sfm.records import StartCameras
from theodolite.annotate.sfm.triangulation import (
    back_project,
    forget,
    keep_shared,
    moving_together,
    track_errors,
)
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.tracks.records import FLOW, ImageMeasurements, Tracks, make_tracks
from theodolite.dataset.arrays import IntArray
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.cameras.transforms import se3_inverse
from theodolite.dataset.metrics.trajectory import trajectory_error

FRAMES, ROOM, THING = 40, 30, 120


def seen(follow: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frame, point, agreement and weight of 30 points of a room and 120 of a thing that is there from frame 10 to 30,
    under cameras that agree with the room, and with the thing in the frames `follow`; the thing fills a quarter."""
    frame, point = (x.ravel() for x in np.meshgrid(np.arange(FRAMES), np.arange(ROOM + THING), indexing="ij"))
    there = (point < ROOM) | ((frame >= 10) & (frame < 30))
    frame, point = frame[there], point[there]
    following = (frame >= follow[0]) & (frame < follow[1])
    weight = np.where(point < ROOM, 3 / ROOM, 1 / THING)
    return frame, point, (point < ROOM) != following, weight


def test_a_room_that_few_corners_see_holds_by_its_area() -> None:
    held = held_share(*seen((0, 0)), num_frames=FRAMES, reach=8)
    assert np.isnan(held[0])
    np.testing.assert_allclose(held[18:22], 0.75, atol=1e-9)
    np.testing.assert_allclose(held[[1, 39]], 1.0)


@pytest.mark.parametrize("follow", [(14, 26), (10, 30)])
def test_cameras_that_follow_a_thing_lose_hold_where_they_begin_to_and_where_they_end(follow) -> None:
    held = held_share(*seen(follow), num_frames=FRAMES, reach=8)
    assert held[list(follow)].max() == 0.0
    assert held[[2, 38]].min() == 1.0


def test_what_contradicts_right_cameras_on_either_side_is_not_held_against_them() -> None:
    kept = kept_share(*seen((0, 0)), num_frames=FRAMES, reach=8)
    assert np.isnan(kept[0])
    np.testing.assert_allclose(kept[1:], 1.0)


@pytest.mark.parametrize("follow", [(14, 26), (10, 30)])
def test_cameras_that_go_over_to_a_thing_keep_nothing_of_what_they_agreed_with(follow) -> None:
    kept = kept_share(*seen(follow), num_frames=FRAMES, reach=8)
    assert kept[list(follow)].max() == 0.0
    assert kept[[2, 38]].min() == 1.0


def test_pictures_are_noisy_where_all_of_them_slides_and_not_where_a_thing_moves() -> None:
    frame, point, agrees, _ = seen((14, 26))
    frame, agrees = frame[point < 2 * ROOM], agrees[point < 2 * ROOM]  # the thing carries half of the corners
    rng = np.random.default_rng(0)
    # What is followed errs by half of what measurements are said to, as in walks that are not blurred.
    error = np.where(agrees, rng.rayleigh(0.5, len(frame)), 30.0)
    np.testing.assert_array_equal(picture_noise(frame, error, num_frames=FRAMES), 1.0)
    # From frame 12 on the texture slides: most of what stands still lies beyond 8 deviations, some of it within one.
    blurred = (frame >= 12) & (frame < 22)
    sliding = rng.rayleigh(np.where(blurred, 6.0, 0.5))
    noise = picture_noise(frame, sliding, num_frames=FRAMES)
    np.testing.assert_array_equal(noise[12:22], 2.0)
    np.testing.assert_array_equal(noise[[0, 5, 30, 39]], 1.0)
    assert picture_noise(frame, np.full(len(frame), np.inf), num_frames=FRAMES).tolist() == [1.0] * FRAMES


def test_a_part_of_the_picture_that_cameras_leave_is_counted_by_its_area() -> None:
    frame, point, agrees, weight = seen((0, 0))
    agrees = agrees & ~((point < 10) & (frame >= 20))  # a third of the room is lost
    kept = kept_share(frame, point, agrees, weight, num_frames=FRAMES, reach=8)
    np.testing.assert_allclose(kept[20], 2 / 3)
    np.testing.assert_allclose(kept[[11, 29]], 1.0)


def test_what_moves_has_its_share_of_each_picture_by_area() -> None:
    moving = moving_share(*seen((0, 0)), num_frames=FRAMES)
    np.testing.assert_allclose(moving[[5, 35]], 0.0)
    np.testing.assert_allclose(moving[12:28], 0.25)


def test_too_few_tracks_say_nothing() -> None:
    frame, point, agrees, weight = seen((0, 0))
    few = point < 10
    held = held_share(frame[few], point[few], agrees[few], weight[few], num_frames=FRAMES, reach=8)
    assert np.isnan(held).all()


def test_every_cell_of_a_picture_has_one_vote_and_points_that_are_off_do_not_agree() -> None:
    uv = np.array([[10.0, 10.0], [12.0, 11.0], [14.0, 12.0], [600.0, 300.0]])
    problem = Problem(
        frame=torch.zeros(4, dtype=torch.long),
        point=torch.arange(4),
        uv_px=torch.as_tensor(uv),
        sigma_px=torch.full((4,), 0.5, dtype=torch.float64),
        log_depth=torch.zeros(4, dtype=torch.float64),
        sigma_log_depth=torch.full((4,), 0.01, dtype=torch.float64),
        num_frames=1,
        num_points=4,
        centre_px=torch.tensor([320.0, 180.0], dtype=torch.float64),
        focal_scale_px=734.0,
    )
    np.testing.assert_allclose(votes(problem), [1 / 3, 1 / 3, 1 / 3, 1.0])
    focal = 500.0
    points = np.concatenate([(uv - [320.0, 180.0]) / focal, np.ones((4, 1))], 1)
    points[1, 0] += 5.0 / focal  # ten standard deviations
    points[2] = np.nan
    state = state_at_origin(problem, torch.full((1,), np.log(focal), dtype=torch.float64))
    state = replace(state, points=torch.as_tensor(points))
    assert inliers(problem, state).tolist() == [True, False, False, True]


# --- cameras that are placed beside something that moves ------------------------------------------

WIDTH, HEIGHT, FOCAL = 640, 360, 500.0
CLIP, LIFE = 72, 20
SEEN = (24, 56)
"""Frames in which the thing is there."""


def clip(*, room: int, thing: int) -> tuple[Tracks, np.ndarray, np.ndarray]:
    """Tracks of a walk through a room, their depth, and the camera-to-world poses of all frames.

    Args:
        room: tracks of the room that are alive at a time where the thing is there; elsewhere 120.
        thing: those of a rigid thing that walks beside the camera, 1.5 m away.
    """
    rng = np.random.default_rng(3)
    time = np.arange(CLIP) / 16.0
    poses = np.tile(np.eye(4), (CLIP, 1, 1))
    poses[:, 0, 3], poses[:, 1, 3] = 0.5 * time, 0.1 * np.sin(time)
    poses[:, :3, :3] = np.stack([so3_exp(np.array([0.0, 0.1 * np.sin(t), 0.0])) for t in time])
    walked = np.stack([0.9 * time - 0.4, 0.1 * np.sin(2 * time), np.full(CLIP, 0.9)], 1)
    columns: list[np.ndarray] = []
    number = 0
    for first in range(-LIFE, CLIP - 4, 2):
        there = SEEN[0] <= first < SEEN[1]
        for own, alive in ((False, room if there else 120), (True, thing if there else 0)):
            count = round(2 * alive / LIFE)
            low, high = ((-0.5, 1.2), (0.6, 2.0)) if own else ((-2.0, 2.5), (2.0, 5.0))
            place = np.stack(
                [rng.uniform(*low, count), rng.uniform(-0.8, 0.8, count), rng.uniform(*high, count)], 1
            )
            place[:, 0] += 0.25 if own else poses[max(0, first), 0, 3]
            for frame in range(max(0, first), min(CLIP, first + LIFE, SEEN[1] if own else CLIP)):
                now = place + walked[frame] if own else place
                local = (now - poses[frame, :3, 3]) @ poses[frame, :3, :3]
                uv = (
                    local[:, :2] / local[:, 2:] * FOCAL
                    + (WIDTH / 2, HEIGHT / 2)
                    + rng.normal(0, 0.3, (count, 2))
                )
                in_view = (local[:, 2] > 0.2) & (uv > 0).all(1) & (uv < (WIDTH, HEIGHT)).all(1)
                ids = number + np.flatnonzero(in_view)
                columns.append(np.c_[np.full(len(ids), frame), ids, uv[in_view], local[in_view, 2]])
            number += count
    rows = np.concatenate(columns)
    rows = rows[np.lexsort((rows[:, 0], rows[:, 1]))]
    _, inverse, seen_times = np.unique(rows[:, 1], return_inverse=True, return_counts=True)
    rows = rows[seen_times[inverse] >= 2]
    frame, track = rows[:, 0].astype(int), rows[:, 1].astype(int)
    tracks = make_tracks(frame, track, rows[:, 2:4], np.full(len(rows), FLOW, np.uint8), CLIP, HEIGHT, WIDTH)
    return tracks, rows[:, 4], poses


KEYFRAMES = np.arange(0, CLIP, 4)


def path_error(world_to_camera: np.ndarray, poses: np.ndarray) -> float:
    """Percent of the path by which cameras of the keyframes are off."""
    return trajectory_error(
        se3_inverse(world_to_camera), poses[KEYFRAMES], alignment="sim3"
    ).ate_percent_of_path


@pytest.mark.slow
def test_few_points_that_were_right_place_a_camera_before_many_that_are_new() -> None:
    tracks, depth, poses = clip(room=23, thing=200)
    problem = build_problem(*subset_frames(tracks, depth, KEYFRAMES), BundleConfig(), depth_sigma_log=0.01)
    state, placed = place_incrementally(
        problem, BundleConfig(), start=2, log_focal=float(np.log(FOCAL)), focal_step_sigma=0.05
    )
    assert placed.all()
    found = np.tile(np.eye(4), (len(KEYFRAMES), 1, 1))
    found[:, :3, :3], found[:, :3, 3] = state.rotation, state.translation
    assert path_error(found, poses) < 0.5


@pytest.mark.parametrize(("held", "sigma", "number"), [(0.6, 0.003, 7), (0.85, 0.003, 2), (0.6, 0.01, 2)])
def test_a_clip_is_begun_where_nothing_moves(held, sigma, number, monkeypatch) -> None:
    """The first window pins the focal length more tightly, by what moves in it or by the room; where the second says
    next to nothing of it, the camera rests there."""
    tracks, depth, _ = clip(room=40, thing=150)
    problem = build_problem(*subset_frames(tracks, depth, KEYFRAMES), BundleConfig(), depth_sigma_log=0.01)
    answers = iter([incremental._Window(1.0, 0.001, 6.3, held), incremental._Window(1.0, sigma, 6.2, 0.9)])
    monkeypatch.setattr(incremental, "_compete", lambda *_: next(answers))
    windows: list[IntArray] = [np.arange(0, 5), np.arange(5, 10)]
    chosen = incremental.choose_start(lambda _: problem, windows, WIDTH, BundleConfig())
    assert chosen == (number, 6.2 if number == 7 else 6.3)


def of_thing(tracks: Tracks, depth: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(P,) bool, tracks whose places in the world are not one."""
    ray = np.concatenate([(tracks.xy_px - (WIDTH / 2, HEIGHT / 2)) / FOCAL, np.ones((len(depth), 1))], 1)
    world = (
        np.einsum("nij,nj->ni", poses[tracks.frame, :3, :3], ray * depth[:, None])
        + poses[tracks.frame, :3, 3]
    )
    place = np.zeros((tracks.num_tracks, 2, 3))
    place[tracks.track[::-1], 0], place[tracks.track, 1] = (
        world[::-1],
        world,
    )  # the first and the last of each
    return np.linalg.norm(place[:, 1] - place[:, 0], axis=1) > 0.05


@pytest.mark.parametrize(("thing", "matters"), [(150, True), (12, False)])
def test_tracks_that_move_are_left_out_where_they_own_much_of_a_picture(thing, matters) -> None:
    tracks, depth, poses = clip(room=40 if matters else 120, thing=thing)
    own = of_thing(tracks, depth, poses)
    depth = depth * np.exp(0.03 * np.random.default_rng(5).standard_normal(len(depth)))
    problem = build_problem(tracks, depth, BundleConfig(), depth_sigma_log=0.03)
    state = state_at_origin(problem, torch.full((CLIP,), np.log(FOCAL), dtype=torch.float64))
    world_to_camera = torch.as_tensor(se3_inverse(poses))
    state = replace(state, rotation=world_to_camera[:, :3, :3], translation=world_to_camera[:, :3, 3])
    state = replace(state, points=back_project(problem, state))
    moves = moving_together(problem, state, np.ones(CLIP, bool))
    if not matters:
        assert own.any()
        assert not moves.any()
        return
    assert moves[own].mean() > 0.9
    assert moves[~own].mean() < 0.05
    assert torch.isfinite(forget(state, moves).points).all(1).tolist() == (~moves).tolist()
    # A blurred frame of which ten tracks are left says neither that they move nor that the cameras are wrong.
    frame = problem.frame.numpy()
    middle = np.flatnonzero(frame == sum(SEEN) // 2)
    left = torch.as_tensor(
        np.setdiff1d(np.arange(len(frame)), np.setdiff1d(middle, middle[:: len(middle) // 10]))
    )
    names = ("frame", "point", "uv_px", "sigma_px", "log_depth", "sigma_log_depth")
    blurred = replace(problem, **{name: getattr(problem, name)[left] for name in names})
    assert moving_together(blurred, state, np.ones(CLIP, bool))[own].mean() > 0.9


def test_cameras_that_nearly_all_tracks_contradict_vouch_for_nothing() -> None:
    """Two frames, one of which lies wrong: what is seen twice contradicts it, what is seen once agrees with any."""
    tracks, depth, _ = clip(room=40, thing=0)
    problem = build_problem(tracks, depth, BundleConfig(), depth_sigma_log=0.03)
    two = np.isin(np.arange(CLIP), (0, 8))
    state = state_at_origin(problem, torch.full((CLIP,), np.log(FOCAL), dtype=torch.float64))
    translation = state.translation.clone()
    translation[8, 0] += 0.5
    state = replace(state, translation=translation)
    state = replace(state, points=back_project(problem, state, known=torch.as_tensor(two)))
    error = track_errors(problem, state, two)
    assert (error > 8).sum() > 0.25 * np.isfinite(error).sum()
    assert np.nanmedian(error) < 1e-9
    assert not moving_together(problem, state, two).any()
    used, _ = keep_shared(problem, state, two)
    assert len(used.frame)
    with pytest.raises(ClipRejection, match="seen by two frames") as caught:
        keep_shared(problem, forget(state, np.ones(problem.num_points, bool)), two)
    assert caught.value.reason == "no_reconstruction"


class NoMaps:
    """Depth whose values at the tracks are given elsewhere."""

    def __len__(self) -> int:
        return CLIP

    def read(self, frame: int) -> None:
        return None


def test_a_networks_path_tells_what_moves_though_it_carries_most_tracks(monkeypatch) -> None:
    tracks, depth, poses = clip(room=40, thing=150)
    rng = np.random.default_rng(1)
    network = np.full((CLIP, 4, 4), np.nan)
    network[KEYFRAMES] = poses[KEYFRAMES]
    for frame in KEYFRAMES:
        network[frame, :3, :3] = network[frame, :3, :3] @ so3_exp(0.002 * rng.standard_normal(3))
        network[frame, :3, 3] += 0.01 * rng.standard_normal(3)
    measured = ImageMeasurements(
        flow=tracks, keyframes=KEYFRAMES, features=[], survival=np.ones(CLIP), median_flow_px=np.ones(CLIP),
        sharpness=np.ones(CLIP),
    )  # fmt: skip
    monkeypatch.setattr(start, "sample_depth", lambda flow, maps: depth)
    cameras = StartCameras(camera_to_world=network, focal_px=np.full((CLIP, 2), FOCAL))
    maps = MetricDepth(NoMaps(), np.ones(CLIP))
    verified = start.verify_keyframes(measured, maps, cameras, BundleConfig(), depth_sigma_log=0.05)
    assert verified.placed_share == 1.0
    assert path_error(se3_inverse(verified.cameras.camera_to_world[KEYFRAMES]), poses) < 0.5
