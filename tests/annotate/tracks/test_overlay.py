"""What lies on the picture is left out; what merely stands still is not."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.annotate.tracks.measure import measure_images, measurements
from theodolite.annotate.tracks.overlay import Overlay
from theodolite.annotate.tracks.records import ImageMeasurements, TracksConfig
from theodolite.annotate.tracks.tracker import Seen, WorkingSize
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.metrics.trajectory import trajectory_error

from ...support import SHARED
from .test_measure import HEIGHT, WIDTH, texture, warp, zooming_view

shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
CONFIG = TracksConfig(num_flow_tracks=150, num_descriptors=200)
U8 = NDArray[np.uint8]


def measured(frames: list[U8], **config) -> ImageMeasurements:
    height, width = frames[0].shape[:2]
    return measure_images(frames, height=height, width=width, config=CONFIG.model_copy(update=config))


def test_matches_that_a_tracker_knows_are_those_of_the_features_that_are_kept() -> None:
    """The overlay covers the left half: of four features in two keyframes the second of each and a third go."""
    size = WorkingSize((40, 20), (40, 20))
    mask = np.zeros((20, 40), bool)
    mask[:, :20] = True
    places = [[[30.5, 5], [5, 5], [25, 9], [28, 2]], [[31, 5], [2, 5], [26, 9], [4, 2]]]
    seen = Seen(
        observed=[(np.zeros(0, np.int64), np.zeros((0, 2)))] * 2,
        tried=[(np.zeros((0, 2)), np.zeros(0), np.zeros(0, bool))] * 2,
        keyframes=[0, 1],
        features=[
            size.features(
                f, np.array(xy, float), np.full((4, 128), f, np.float32), np.zeros((20, 40), np.uint8)
            )
            for f, xy in enumerate(places)
        ],
        nearest={(0, 1): np.array([[0, 2], [1, 0], [2, 1], [3, 0]])},
    )
    found = measurements(seen, Overlay(((0, 1, mask),), 2), size)
    assert [len(f.xy_px) for f in found.features] == [3, 2]
    assert found.nearest[0, 1].tolist() == [[0, 1], [2, 0]]
    plain = measurements(seen, Overlay((), 2), size)
    assert np.array_equal(plain.nearest[0, 1], seen.nearest[0, 1])


def scene(num_frames: int = 30, *, step: float = 4.0, zoom: float = 0.0, seed: int = 0) -> list[U8]:
    image = texture(seed)
    return [warp(image, zooming_view(i, step=step, zoom=zoom)) for i in range(num_frames)]


def interface(image: U8, alpha: float = 1.0) -> U8:
    """A panel over the lower 35 % of the picture, with things on it."""
    height, width = image.shape[:2]
    out, top = image.copy(), int(0.65 * height)
    out[top:] = (40, 44, 52)
    rng = np.random.default_rng(3)
    for _ in range(max(12, width // 25)):
        x, y = int(rng.integers(2, width - 40)), int(rng.integers(top + 14, height - 4))
        cv2.rectangle(
            out, (x, y - 10), (x + int(rng.integers(10, 40)), y), rng.integers(60, 255, 3).tolist(), -1
        )
        cv2.putText(
            out, str(rng.integers(10, 999)), (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (250, 250, 240), 1
        )
    return np.asarray(cv2.addWeighted(out, alpha, image, 1 - alpha, 0), np.uint8)


def logo(image: U8, alpha: float = 1.0) -> U8:
    out, (_, width) = image.copy(), image.shape[:2]
    cv2.putText(out, "LOGO", (width - 90, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2, cv2.LINE_AA)
    return np.asarray(cv2.addWeighted(out, alpha, image, 1 - alpha, 0), np.uint8)


def subtitle(image: U8, frame: int) -> U8:
    """White text with a black edge, another one every 20 frames."""
    out, (height, width) = image.copy(), image.shape[:2]
    text = ("Who is there?", "It is only me", "Then come in", "Thank you")[frame // 20 % 4]
    at = (int(0.25 * width), int(0.92 * height))
    for colour, thick in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.putText(out, text, at, cv2.FONT_HERSHEY_DUPLEX, width / 500, colour, thick, cv2.LINE_AA)
    return out


def seen_in(m: ImageMeasurements, x: slice, y: slice) -> int:
    """Observations, of flow and of descriptors, in a part of the picture."""
    xy = np.concatenate([m.flow.xy_px, *(f.xy_px for f in m.features)])
    inside = (xy[:, 0] >= x.start) & (xy[:, 0] < x.stop) & (xy[:, 1] >= y.start) & (xy[:, 1] < y.stop)
    return int(inside.sum())


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [pytest.param(1.0, marks=pytest.mark.thorough), 0.75])
def test_a_logo_is_left_out_and_nothing_else(alpha: float) -> None:
    plain, marked = scene(), [logo(image, alpha) for image in scene()]
    corner = slice(WIDTH - 90, WIDTH - 10), slice(10, 30)
    assert seen_in(measured(marked, leave_out_overlays=False), *corner) > 100
    m = measured(marked)
    assert seen_in(m, *corner) == 0
    assert 0.01 < m.overlay_share < 0.12
    rest = slice(0, 220), slice(0, HEIGHT)
    assert seen_in(m, *rest) > 0.85 * seen_in(measured(plain), *rest)


@pytest.mark.slow
def test_an_interface_over_a_third_of_the_picture_is_left_out() -> None:
    m = measured([interface(image) for image in scene()])
    top = int(0.65 * HEIGHT)
    assert seen_in(m, slice(0, WIDTH), slice(top, HEIGHT)) == 0
    assert 0.33 < m.overlay_share < 0.45
    # What is said of the clip is said of the scene: it moves by four pixels a frame.
    assert m.median_flow_px[1:] == pytest.approx(4.0, abs=0.6)
    features = m.features[len(m.features) // 2]
    assert features.overlay is not None
    assert 0.3 < features.overlay.mean() < 0.5


@pytest.mark.slow
def test_subtitles_are_left_out_while_they_stand() -> None:
    frames = scene(45)
    m = measured([subtitle(image, i) for i, image in enumerate(frames)])
    text = slice(90, 190), slice(208, 222)
    assert seen_in(m, *text) < 0.1 * seen_in(measured(frames), *text)
    assert m.overlay_share < 0.15


def inset(frames: list[U8], others: list[U8], at: tuple[int, int], size: tuple[int, int]) -> list[U8]:
    """The other film in a box (width, height) of each picture, with no border, its corner at (x, y)."""
    out = [image.copy() for image in frames]
    for image, other in zip(out, others, strict=True):
        small = cv2.resize(other, size, interpolation=cv2.INTER_AREA)
        image[at[1] : at[1] + size[1], at[0] : at[0] + size[0]] = small
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", [(200, 9), pytest.param((WIDTH - 106, HEIGHT - 80), marks=pytest.mark.thorough)]
)
def test_a_film_within_the_film_is_left_out_and_nothing_else(at: tuple[int, int]) -> None:
    frames = scene(40)
    within = slice(at[0], at[0] + 106), slice(at[1], at[1] + 80)
    framed = inset(frames, scene(40, step=-7.0, seed=8), at, (106, 80))
    assert seen_in(measured(framed, leave_out_overlays=False), *within) > 100
    m = measured(framed)
    assert seen_in(m, *within) == 0
    share = 106 * 80 / (WIDTH * HEIGHT)
    assert share < m.overlay_share < 2 * share
    rest = slice(0, 180), slice(0, 140)
    assert seen_in(m, *rest) > 0.85 * seen_in(measured(frames), *rest)


@pytest.mark.slow
def test_a_film_that_fills_most_of_what_is_followed_stays() -> None:
    """A small film before a blurred ground: the ground is the decoration."""
    ground = [np.asarray(cv2.GaussianBlur(image, (0, 0), 12), np.uint8) for image in scene(40)]
    framed = inset(ground, scene(40, step=-7.0, seed=8), (60, 40), (200, 140))
    assert seen_in(measured(framed), slice(60, 260), slice(40, 180)) > 1000


@pytest.mark.slow
def test_nothing_is_left_out_where_the_camera_rests() -> None:
    """A resting camera sees a background that stands still, before which something large moves."""
    still, passing = scene(1)[0], scene(40, step=5.0, seed=8)
    frames = []
    for i in range(40):
        image = still.copy()
        x = 6 * i
        image[60:200, x : x + 130] = passing[i][60:200, x : x + 130]
        frames.append(image)
    for clip in ([still] * 20, frames, [*([still] * 20), *scene(6)]):
        m = measured(clip)
        assert m.overlay_share == 0.0


@pytest.mark.slow
def test_a_presenter_before_a_still_background_does_not_turn_it_into_an_overlay() -> None:
    still, moving = scene(1)[0], scene(40, step=5.0, seed=8)
    frames = [still.copy() for _ in range(40)]
    for image, own in zip(frames, moving, strict=True):
        image[40:, 80:240] = own[40:, 80:240]
    assert measured(frames).overlay_share == 0.0


@pytest.mark.slow
def test_a_camera_that_rests_now_and_then_loses_the_logo_alone() -> None:
    image = texture(2)
    places = np.r_[np.zeros(15), np.arange(15), np.full(15, 15), np.arange(15, 30)]
    frames = [logo(warp(image, zooming_view(int(k), step=5.0, zoom=0.0))) for k in places]
    m = measured(frames)
    assert 0.01 < m.overlay_share < 0.12
    assert seen_in(m, slice(WIDTH - 90, WIDTH - 10), slice(10, 30)) == 0


@pytest.mark.slow
@shared
@pytest.mark.parametrize(
    "media",
    [
        "kitti-straight/gray.mp4",
        *(
            pytest.param(media, marks=pytest.mark.thorough)
            for media in ("static-euroc/gray.mp4", "clips/dog.mp4")
        ),
    ],
)
def test_far_scenery_and_resting_cameras_of_recordings_stay(media: str) -> None:
    """Driving ahead, the horizon hardly moves; a drone at rest; a dog that fills the view."""
    with av.open(str(SHARED / media)) as container:
        decoded = itertools.islice(container.decode(video=0), 31)
        frames = [np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in decoded]
    assert measured(frames).overlay_share == 0.0


@shared
@pytest.mark.slow
def test_cameras_under_an_interface_a_logo_and_subtitles(tmp_path: Path) -> None:
    """All three at once on a walk: as without them, accepted, in metres, with the focal length.

    Two seconds of it are too few: the focal length errs by 2.6 % there, and is said to be unsure by 3.05.
    """
    folder = SHARED / "rgbd-office-a"
    with av.open(str(folder / "rgb.mp4")) as container:
        frames = [
            np.asarray(f.to_ndarray(format="rgb24"), np.uint8)
            for f, _ in zip(container.decode(video=0), range(48), strict=False)
        ]
    (tmp_path / "images").mkdir()
    for i, image in enumerate(frames):
        cv2.imwrite(str(tmp_path / "images" / f"{i:06d}.png"), subtitle(logo(interface(image)), i)[..., ::-1])
        (tmp_path / f"{i:06d}.png").symlink_to(folder / "depth" / f"{i:06d}.png")
    clip = ClipRef(
        clip_id="office",
        source="recordings",
        original_id="office",
        media_kind="images",
        media_path=tmp_path / "images",
        source_fps=16.0,
        given=GivenGeometry(depth_pattern=str(tmp_path / "{frame:06d}.png"), depth_units_per_metre=1000.0),
    )
    config = AnnotateConfig.model_validate(
        {
            "geometry": {"sequence": "given"},
            "decode": {"min_frames": 10},
            "tracks": {"num_flow_tracks": 200, "num_descriptors": 700},
        }
    )
    row = annotate_clip(clip, config, mode="given_depth", recipe_hash="0" * 16)
    assert row.verdict == "accepted", row.reason_details
    assert row.metrics is not None
    assert 0.3 < row.metrics["overlay_share"] < 0.6
    truth = read_trajectory(folder / "poses_c2w.txt").camera_to_world[row.frame_index]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    assert error.ate_rmse_m < 0.03
    focal = np.loadtxt(folder / "K.txt")[0, 0]
    assert np.abs(row.focal_px[:, 0] / focal - 1).mean() < 0.03
