"""What is a cut and what is not; error rates over many clips: benchmarks/cuts.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from theodolite.annotate.frames.cuts import CutDetector

from ...support import SHARED
from ..cut_clips import Shot, joined, labelled, lit, recording, rendered, small, smeared, zoomed
from ..tracks.test_measure import texture

shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")


def cuts(frames: Shot) -> list[int]:
    detector = CutDetector(fps=16.0)
    for frame in frames:
        detector.update(frame)
    return detector.finish()


def place(seed: int) -> np.ndarray:
    """A coloured picture of 900 by 900 pixels with corners everywhere."""
    return np.asarray(cv2.merge([texture(seed), texture(seed), np.flipud(texture(seed))]), np.uint8)


def shot(of: np.ndarray, num_frames: int, *, step: int = 4, start: int = 0) -> Shot:
    """A pan, 320 by 240, by `step` pixels a frame."""
    return [of[100:340, start + step * i : start + step * i + 320] for i in range(num_frames)]


@pytest.fixture(scope="module")
def places() -> list[np.ndarray]:
    return [place(seed) for seed in (11, 12)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "length",
    [
        (16, 16),
        (1, 20),
        pytest.param((3, 20), marks=pytest.mark.thorough),
        (20, 1),
        pytest.param((20, 3), marks=pytest.mark.thorough),
    ],
)
def test_hard_cuts_also_at_the_ends(places: list[np.ndarray], length: tuple[int, int]) -> None:
    frames, at = joined(shot(places[0], length[0]), shot(places[1], length[1]))
    assert cuts(frames) == [at]


@pytest.mark.slow
def test_cuts_of_tiny_and_dark_pictures(places: list[np.ndarray]) -> None:
    frames, at = joined(shot(places[0], 16), shot(places[1], 16))
    assert cuts(small(frames, 120)) == [at]
    rng = np.random.default_rng(0)
    dark = [np.clip(x * 0.25 + rng.normal(4, 2.0, x.shape), 0, 255).astype(np.uint8) for x in frames]
    assert cuts(dark) == [at]


@pytest.mark.slow
def test_a_cut_under_a_logo_that_stays(places: list[np.ndarray]) -> None:
    frames, at = joined(shot(places[0], 16), shot(places[1], 16))
    assert cuts(labelled(frames)) == [at]
    assert cuts(labelled(shot(places[0], 30, step=18))) == []
    still = joined([frames[0]] * 16, [frames[-1]] * 16)[0]
    assert cuts(labelled(still)) == [16]


@pytest.mark.slow
def test_a_leap_within_one_place_is_a_cut_but_fast_motion_over_the_same_distance_is_none(
    places: list[np.ndarray],
) -> None:
    """Both times frames are found whose views share a third; only the leap has slow motion around it."""
    leap, at = joined(shot(places[0], 16, step=2), shot(places[0], 16, step=2, start=240))
    assert cuts(leap) == [at]
    whip = np.cumsum(np.r_[np.full(8, 4), 15, 50, 90, 90, 50, 15, np.full(8, 4)])
    assert cuts([places[0][100:340, x : x + 320] for x in whip]) == []


@pytest.mark.slow
def test_jumps_of_the_zoom_are_none(places: list[np.ndarray]) -> None:
    frames = shot(places[0], 32)
    time = np.arange(32)
    assert cuts(zoomed(frames, np.where(time < 16, 1.0, 2.0))) == []
    assert cuts(zoomed(frames, 1 + 0.25 * (time // 6 % 4))) == []
    assert cuts(zoomed(shot(places[0], 32, step=15), 1.4 - 0.4 * np.cos(time / 2))) == []


@pytest.mark.slow
def test_fades_to_another_place_are_cuts_and_black_frames_within_one_are_none(
    places: list[np.ndarray], thorough: bool
) -> None:
    for black in (3, 8) if thorough else (8,):
        frames, at = joined(shot(places[0], 20), shot(places[1], 20), black=black)
        (found,) = cuts(frames)
        assert abs(found - at) <= 3
    gain = np.ones(30)
    gain[14:17] = 0.0
    assert cuts(lit(shot(places[0], 30), gain)) == []
    gain[14:17] = [3.0, 9.0, 3.0]
    assert cuts(lit(shot(places[0], 30), gain, 40.0)) == []
    # Fading in at the start and out at the end: nothing lies before and behind.
    assert (
        cuts(lit(shot(places[0], 30), np.clip(np.minimum(np.arange(30), 29 - np.arange(30)) / 6, 0, 1))) == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.thorough), 4])
def test_dissolves_between_shots_that_move(places: list[np.ndarray], step: int) -> None:
    frames, at = joined(shot(places[0], 26, step=step), shot(places[1], 26, step=step), blend=10)
    (found,) = cuts(frames)
    assert abs(found - at) <= 4


@pytest.mark.slow
def test_a_dissolve_between_walks_is_found_by_features_of_both() -> None:
    """No weighted sum tells it, for the flow within the mixture follows neither walk."""
    frames, at = joined(list(rendered(1, 3.0, 20)), list(rendered(2, 3.0, 20)), blend=4)
    (found,) = cuts(frames)
    assert abs(found - at) <= 3
    assert cuts(list(rendered(1, 3.0, 20))) == []


@pytest.mark.slow
def test_dissolves_that_a_clip_begins_or_ends_in(thorough: bool) -> None:
    """Hardly a frame of the other room is left: nothing lies behind it that a run of frames could end at."""
    walk, other = list(rendered(1, 3.0, 20)), list(rendered(2, 3.0, 20))
    for blend in (3, 8) if thorough else (3,):
        frames, at = joined(walk[:15], other[: blend + 1], blend=blend)
        for clip, there in ((frames, at), (frames[::-1], len(frames) - at)):
            (found,) = cuts(clip)
            assert abs(found - there) <= 3
    assert cuts(walk[:15]) == []


@pytest.mark.slow
def test_features_are_looked_for_only_where_flow_loses_the_view(places: list[np.ndarray]) -> None:
    """They take ten times as long as all the rest, and most shots need none."""
    detector = CutDetector(fps=16.0)
    for frame in shot(places[0], 40, step=2):
        detector.update(frame)
    assert detector.finish() == []
    assert not any("features" in vars(look) for look in detector._looks)
    for frame in shot(places[1], 6):
        detector.update(frame)
    assert detector.finish() == [40]
    assert any("features" in vars(look) for look in detector._looks)


@shared
@pytest.mark.slow
def test_fast_parts_of_a_walk_are_no_cuts(thorough: bool) -> None:
    """Hardly half of the view is shared from frame to frame; a share of all features took these for cuts."""
    frames = list(recording(SHARED / "rgbd-office-a" / "rgb.mp4"))
    height, width = frames[0].shape[:2]
    assert cuts(frames[:64:4]) == []
    crop = [x[: int(0.55 * height), int(0.4 * width) :] for x in frames[12:52:2]]
    assert cuts(crop) == []
    if not thorough:
        return
    zoom = zoomed(frames[:90:3], 1.4 - 0.4 * np.cos(np.arange(30) / 4))
    assert cuts(zoom) == []
    rng = np.random.default_rng(0)
    assert cuts(smeared(frames[60:100:2], rng.integers(1, 17, 20), rng)) == []


@shared
@pytest.mark.slow
@pytest.mark.parametrize(
    "corner", [(15, 150), pytest.param((0, 135), marks=pytest.mark.thorough)], ids=["middle", "top"]
)
def test_what_leaves_a_narrow_picture_within_a_second_is_no_dissolve(corner: tuple[int, int]) -> None:
    """A weighted sum of the ends fits the middle by chance, and they share no features; from stage to stage tracks
    lead from one to the other."""
    top, left = corner
    frames = recording(SHARED / "rgbd-office-a" / "rgb.mp4")[56:80]
    assert cuts([x[top : top + 210, left : left + 240] for x in frames]) == []


@shared
@pytest.mark.slow
def test_cuts_between_rooms_and_between_visits_of_one_room(thorough: bool) -> None:
    office, kitchen = (
        recording(SHARED / f"rgbd-{name}" / "rgb.mp4", most)
        for name, most in (("office-a", 45), ("redkitchen", 630 if thorough else 230))
    )
    frames, at = joined(list(office[:45:3]), list(kitchen[100:190:6]))
    assert cuts(frames) == [at]
    if thorough:
        frames, at = joined(list(kitchen[0:30:2]), list(kitchen[600:630:2]))
        assert cuts(frames) == [at]
    frames, at = joined(list(office[:16]), list(kitchen[196:228:2]), blend=8)
    (found,) = cuts(frames)
    assert abs(found - at) <= 6
