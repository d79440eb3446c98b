"""Tracks against exact motion: rendered images, known warps, exposure steps, moving objects."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from theodolite.annotate.tracks.descriptors import descriptor_tracks, match_features, sift
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import (
    DESCRIPTOR,
    FLOW,
    Features,
    ImageMeasurements,
    TracksConfig,
    join_tracks,
)
from theodolite.annotate.tracks.tracker import MakeTracker

CONFIG = TracksConfig(num_flow_tracks=150, num_descriptors=400)
HEIGHT, WIDTH = 240, 320


def texture(seed: int = 0, size: int = 900) -> NDArray[np.uint8]:
    """Noise at several scales: corners everywhere, nothing repeated."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size), np.float32)
    for cells in (20, 60, 180, 450):
        image += cv2.resize(
            rng.random((cells, cells), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
    return np.clip(255 * (image - image.min()) / (image.max() - image.min()), 0, 255).astype(np.uint8)


def warp(image: NDArray[np.uint8], to_texture: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(240, 320, 3) view: pixel p (centres at +0.5) shows the texture at `to_texture` (2, 3) @ (p, 1)."""
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    full = np.vstack([to_texture, [0, 0, 1]])
    matrix = (np.linalg.inv(shift) @ full @ shift)[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    gray = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=flags)
    return np.repeat(gray[:, :, None], 3, 2).astype(np.uint8)


def zooming_view(i: int, *, step: float = 3.0, zoom: float = 0.01) -> NDArray[np.float64]:
    """Texture pans by `step` pixels a frame while the view zooms in by `zoom` a frame."""
    scale = (1 - zoom) ** i
    return np.array([[scale, 0, 250 + step * i], [0, scale, 300 + 0.5 * step * i]])


def errors(tracks, views: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Distance in pixels of every observation from where the first of its track must appear by the warps."""
    out = []
    for track in np.unique(tracks.track):
        of = np.nonzero(tracks.track == track)[0]
        first = np.append(tracks.xy_px[of[0]], 1)
        point = views[tracks.frame[of[0]]] @ first
        for o in of[1:]:
            m = views[tracks.frame[o]]
            out.append(np.linalg.norm(np.linalg.solve(m[:, :2], point - m[:, 2]) - tracks.xy_px[o]))
    return np.array(out)


def measured_by(tracker: MakeTracker, frames: Iterable[NDArray[np.uint8]]) -> ImageMeasurements:
    """What a tracker makes of frames of the size of these tests."""
    return measure_images(frames, height=HEIGHT, width=WIDTH, config=CONFIG, tracker=tracker)


@pytest.mark.parametrize(("height", "width"), [(20, 320), (320, 20), (16, 24)])
def test_strips_are_measured(tracker: MakeTracker, height: int, width: int) -> None:
    image = texture()
    frames = [np.repeat(image[:height, 2 * i : width + 2 * i, None], 3, 2) for i in range(4)]
    config = TracksConfig(num_flow_tracks=50, num_descriptors=100)
    measured = measure_images(frames, height=height, width=width, config=config, tracker=tracker)
    assert len(measured.survival) == 4
    if width > 300:
        assert measured.survival[1:].min() > 0.5
        assert measured.median_flow_px[1:] == pytest.approx([2] * 3, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "zoom"), [(1.5, 0.0), (4.0, 0.01), (28.0, 0.01)])
def test_flow_tracks_follow_pan_and_zoom(tracker: MakeTracker, step: float, zoom: float) -> None:
    image = texture()
    views = [zooming_view(i, step=step, zoom=zoom) for i in range(7)]
    measured = measured_by(tracker, (warp(image, v) for v in views))
    e = errors(measured.flow, views)
    assert len(e) > 500
    assert np.median(e) < 0.12
    assert np.percentile(e, 95) < 0.6
    assert measured.survival[1:].min() > 0.5
    grid = np.stack(
        [*np.meshgrid(np.arange(20, WIDTH, 20.0), np.arange(20, HEIGHT, 20.0)), np.ones((11, 15))], -1
    )
    there = np.linalg.solve(views[3][:, :2], (grid @ views[2].T - views[3][:, 2])[..., None])[..., 0]
    expected = np.median(np.linalg.norm(there - grid[..., :2], axis=-1))
    assert measured.median_flow_px[3] == pytest.approx(expected, rel=0.2)


def test_tracks_spread_over_the_image_and_keep_their_number(tracker: MakeTracker) -> None:
    views = [zooming_view(i) for i in range(6)]
    image = texture(1)
    flow = measured_by(tracker, (warp(image, v) for v in views)).flow
    for f in range(6):
        xy = flow.xy_px[flow.frame == f]
        assert 0.6 * CONFIG.num_flow_tracks < len(xy) <= CONFIG.num_flow_tracks
        occupied = {(int(x // 80), int(y // 80)) for x, y in xy}
        assert len(occupied) == 12


def test_exposure_step_costs_few_tracks(tracker: MakeTracker) -> None:
    image = texture(2)
    views = [zooming_view(i) for i in range(8)]
    frames = [warp(image, v) for v in views]
    for i in range(4, 8):
        frames[i] = np.clip(frames[i].astype(float) * 0.55 + 10, 0, 255).astype(np.uint8)
    measured = measured_by(tracker, frames)
    assert measured.survival[4] > 0.7
    assert np.median(errors(measured.flow, views)) < 0.15


def test_frames_without_texture_have_no_tracks_and_do_not_fail(tracker: MakeTracker) -> None:
    blank = [np.full((HEIGHT, WIDTH, 3), 90, np.uint8)] * 3
    measured = measured_by(tracker, blank)
    assert len(measured.flow.frame) == 0
    assert measured.survival[1] == 0.0
    assert np.isnan(measured.median_flow_px[1])
    with pytest.raises(ValueError, match="no frames"):
        measured_by(tracker, [])


@pytest.mark.slow
def test_keyframes_bridge_a_large_step_from_both_sides(tracker: MakeTracker) -> None:
    image = texture(3)
    views = [zooming_view(i, step=1.0, zoom=0.0) for i in range(5)]
    views += [zooming_view(i, step=1.0, zoom=0.0) + np.array([[0, 0, 190], [0, 0, 120]]) for i in range(5, 9)]
    measured = measured_by(tracker, (warp(image, v) for v in views))
    assert {0, 4, 5, 8} <= set(measured.keyframes.tolist())


def test_descriptor_matches_find_a_place_again_and_agree_with_the_warp(tracker: MakeTracker) -> None:
    image = texture(4)
    views = [zooming_view(i, step=9.0) for i in range(6)] + [zooming_view(1, step=9.0, zoom=0.03)]
    measured = measured_by(tracker, (warp(image, v) for v in views))
    first, last = measured.features[0], measured.features[-1]
    matches = match_features(first, last, CONFIG, diagonal_px=400.0)
    assert len(matches) > 60
    tracks = descriptor_tracks([first, last], {(0, 1): matches}, num_frames=7, height=HEIGHT, width=WIDTH)
    assert np.median(errors(tracks, views)) < 0.6
    assert (tracks.kind == DESCRIPTOR).all()
    joined = join_tracks(measured.flow, tracks)
    assert joined.num_tracks == measured.flow.num_tracks + tracks.num_tracks
    assert {FLOW, DESCRIPTOR} == set(joined.kind.tolist())


@pytest.mark.slow
def test_unrelated_pictures_do_not_match(tracker: MakeTracker) -> None:
    a, b = (measured_by(tracker, [warp(texture(s), zooming_view(0))] * 2).features[0] for s in (5, 6))
    assert len(match_features(a, b, CONFIG, diagonal_px=400.0)) == 0


def test_contradictory_tracks_are_dropped() -> None:
    """Feature 0 of frame 0 matches feature 0 of frame 1; both its matches into frame 2 differ: drop the track."""
    features = [
        Features(
            frame=f,
            xy_px=np.array([[10.0, 10], [50, 50]]),
            descriptors=np.zeros((2, 128), np.float32),
            thumbnail=np.zeros((192, 192), np.uint8),
        )
        for f in range(3)
    ]
    matches = {
        (0, 1): np.array([[0, 0], [1, 1]]),
        (1, 2): np.array([[0, 0], [1, 1]]),
        (0, 2): np.array([[0, 1]]),
    }
    tracks = descriptor_tracks(features, matches, num_frames=3, height=60, width=60)
    assert tracks.num_tracks == 0
    del matches[(0, 2)]
    tracks = descriptor_tracks(features, matches, num_frames=3, height=60, width=60)
    assert tracks.num_tracks == 2
    assert np.bincount(tracks.track).tolist() == [3, 3]


def test_descriptors_are_kept_in_a_quarter_of_what_is_compared() -> None:
    gray = warp(texture(), zooming_view(0))[..., 0]
    xy, descriptors = sift(gray, CONFIG)
    kept = Features(frame=0, xy_px=xy, descriptors=descriptors, thumbnail=gray)
    assert descriptors.dtype == np.uint8
    assert len(xy) > 100
    finder = cv2.SIFT.create(1200, contrastThreshold=0.02, edgeThreshold=12)
    points, raw = finder.detectAndCompute(gray, None)
    # Nothing is lost: OpenCV's are whole numbers.
    known = {(point.pt, row.tobytes()) for point, row in zip(points, raw, strict=True)}
    assert all(
        (tuple(at), row.astype(np.float32).tobytes()) in known
        for at, row in zip(xy.tolist(), descriptors, strict=True)
    )
    np.testing.assert_allclose(np.linalg.norm(kept.unit_descriptors, axis=1), 1, rtol=1e-6)
    assert kept.unit_descriptors.dtype == np.float32
