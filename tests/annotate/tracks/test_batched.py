"""The batched tracker's parts against OpenCV's, its kernels against their twins, and who is chosen when."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.place import tracker_of
from theodolite.annotate.tracks.batched import op, reference, tracker
from theodolite.annotate.tracks.batched.corners import min_eigenvalue
from theodolite.annotate.tracks.batched.images import Images
from theodolite.annotate.tracks.batched.matching import nearest
from theodolite.annotate.tracks.batched.prediction import predict
from theodolite.annotate.tracks.batched.sift import root_sift
from theodolite.annotate.tracks.batched.tracker import BatchedTracker
from theodolite.annotate.tracks.descriptors import match_keyframes, nearest_features, sift
from theodolite.annotate.tracks.flow import _lucas_kanade
from theodolite.annotate.tracks.opencv import OpenCVTracker
from theodolite.annotate.tracks.records import MATCHED_GAPS, Features, TracksConfig

from ...support import needs_packages
from .test_measure import CONFIG, HEIGHT, WIDTH, measured_by, texture, warp, zooming_view

CPU = torch.device("cpu")


def grays(num_frames: int, *, step: float = 4.0) -> list[np.ndarray]:
    image = texture()
    return [warp(image, zooming_view(i, step=step))[..., 0] for i in range(num_frames)]


def images_of(gray: list[np.ndarray], device: torch.device = CPU) -> Images:
    images = Images((WIDTH, HEIGHT), len(gray) + 1, device)
    images.put(0, torch.from_numpy(np.stack(gray)).to(device))
    return images


def points(number: int, outside_px: float = 0.0) -> torch.Tensor:
    low, high = -outside_px, np.array([WIDTH, HEIGHT]) - 1 + outside_px
    return torch.from_numpy(np.random.default_rng(0).uniform(low, high, (number, 2))).float()


def pair_of(number: int, device: torch.device = CPU) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(number, dtype=torch.int32).to(device), torch.ones(number, dtype=torch.int32).to(device)


def test_pyramids_are_those_of_opencv() -> None:
    gray = grays(3)
    images = images_of(gray)
    for slot, image in enumerate(gray):
        for level in range(len(images.levels)):
            assert np.array_equal(images.level(level)[slot], image)
            image = cv2.pyrDown(image)
    assert min(images.levels[-1].height, images.levels[-1].width) >= 10


def test_a_later_frame_takes_the_place_of_the_oldest() -> None:
    gray = grays(5)
    images = Images((WIDTH, HEIGHT), 3, CPU)
    images.put(0, torch.from_numpy(np.stack(gray[:2])))
    images.put(2, torch.from_numpy(np.stack(gray[2:])))
    for frame in (2, 3, 4):
        assert np.array_equal(images.level(0)[frame % 3], gray[frame])


@pytest.mark.parametrize("levels", [3, 0])
def test_points_are_followed_as_opencv_does(levels: int) -> None:
    a, b = grays(2, step=4.0 if levels else 1.0)
    xy = points(200, outside_px=-20.0)
    expected, found = _lucas_kanade(a, b, xy.numpy(), xy.numpy(), levels)
    ours = reference.follow(images_of([a, b]), pair_of(200), xy, xy, levels=(levels, 0), radius=9)
    assert (ours.ok.numpy() == found).mean() > 0.99
    apart = np.linalg.norm(ours.xy.numpy() - expected, axis=1)[found]
    # OpenCV rounds patches and derivatives to 1/32 of a grey level.
    assert np.median(apart) < 1e-3
    assert np.percentile(apart, 90) < 0.05


def test_nothing_is_found_without_texture_or_far_outside() -> None:
    flat = [np.full((HEIGHT, WIDTH), 90, np.uint8)] * 2
    xy = points(5)
    assert not reference.follow(images_of(flat), pair_of(5), xy, xy, levels=(2, 0), radius=9).ok.any()
    far = torch.tensor([[-60.0, 20.0], [20.0, 500.0], [1e9, -1e9]])
    assert not reference.follow(images_of(grays(2)), pair_of(3), far, far, levels=(2, 0), radius=9).ok.any()


def test_corner_response_is_that_of_opencv() -> None:
    gray = grays(2)
    ours = min_eigenvalue(torch.from_numpy(np.stack(gray))).numpy()
    for image, found in zip(gray, ours, strict=True):
        expected = cv2.cornerMinEigenVal(image, 5, ksize=3)
        assert np.abs(found - expected).max() < 1e-4 * expected.max()


@pytest.mark.slow
@pytest.mark.parametrize("step", [4.0, 28.0, 60.0])
def test_motion_is_predicted_also_where_the_picture_leaps(step: float) -> None:
    views = [zooming_view(i, step=step) for i in range(3)]
    field = predict(images_of(grays(3, step=step)), 1, 2)
    xy = points(300, outside_px=-20.0)
    point = np.c_[xy.numpy() + 0.5, np.ones(300)] @ views[1].T
    there = np.linalg.solve(views[2][:, :2], (point - views[2][:, 2]).T).T - 0.5
    error = np.linalg.norm(xy.numpy() + field.at(1, xy).numpy() - there, axis=1)
    # Lucas-Kanade has to find the rest, with windows of 19 px on four levels.
    assert np.median(error) < 0.5
    assert np.percentile(error, 90) < 4.0


@pytest.mark.slow
def test_features_are_those_of_opencv() -> None:
    gray = grays(2, step=9.0)
    ours = root_sift(torch.from_numpy(np.stack(gray)), 4000)
    for i, image in enumerate(gray):
        xy, descriptors = sift(image, TracksConfig(num_descriptors=4000))
        theirs = Features(frame=i, xy_px=xy, descriptors=descriptors, thumbnail=image)
        ours_xy = ours.xy[i][ours.valid[i]].numpy()
        similar = theirs.unit_descriptors @ ours.descriptor[i][ours.valid[i]].numpy().T
        best = similar.argmax(1)
        # OpenCV doubles the picture about its corner and halves places without that quarter of a pixel.
        near = np.linalg.norm(ours_xy[best] + 0.25 - xy, axis=1) < 0.3
        # Of several within four pixels of one octave only the strongest is taken.
        assert near.mean() > 0.8
        assert np.median(similar.max(1)[near]) > 0.99
        assert 0.8 < len(ours_xy) / len(xy) < 1.1


def test_nearest_features_are_found_for_many_pairs_at_once() -> None:
    rng = np.random.default_rng(0)
    sets = []
    for number in (40, 55, 3):
        descriptors = np.sqrt(rng.dirichlet(np.full(128, 0.1), number)).astype(np.float32)
        sets.append(
            Features(
                frame=0,
                xy_px=np.zeros((number, 2)),
                descriptors=descriptors,
                thumbnail=np.zeros((1, 1), np.uint8),
            )
        )
    # What is seen in both, a little changed; one of them twice, so that neither passes the ratio test.
    sets[1].descriptors[:30] = sets[0].descriptors[:30] + rng.normal(0, 0.02, (30, 128)).astype(np.float32)
    sets[1].descriptors[30] = sets[1].descriptors[0]
    padded = torch.full((3, 60, 128), 0.5)
    valid = torch.zeros(3, 60, dtype=torch.bool)
    for i, each in enumerate(sets):
        padded[i, : len(each.xy_px)], valid[i, : len(each.xy_px)] = torch.from_numpy(each.descriptors), True
    pairs = [(0, 1), (1, 0), (0, 2), (2, 1)]
    sides = [[x[[pair[side] for pair in pairs]] for x in (padded, valid)] for side in (0, 1)]
    for (a, b), match in zip(pairs, nearest(*sides, ratio=0.85), strict=True):
        expected = nearest_features(sets[a], sets[b], CONFIG)
        known = torch.nonzero(match >= 0)[:, 0]
        assert np.array_equal(torch.stack([known, match[known]], 1).numpy(), expected)
    assert len(nearest_features(sets[0], sets[1], CONFIG)) == 29


@pytest.mark.slow
def test_nothing_depends_on_how_many_frames_are_taken_at_once(monkeypatch) -> None:
    """Keyframes of one chunk are chosen when the next is under way, and tracks look back over several."""
    make = partial(BatchedTracker, device=CPU)
    image = texture(3)
    views = [zooming_view(i, step=1.0, zoom=0.0) for i in range(4)]
    views += [zooming_view(i, step=1.0, zoom=0.0) + np.array([[0, 0, 190], [0, 0, 120]]) for i in range(4, 7)]
    frames = [warp(image, view) for view in views]
    found = []
    for chunk in (2, 16):
        monkeypatch.setattr(tracker, "CHUNK", chunk)
        found.append(measured_by(make, frames))
    for name in ("frame", "track", "xy_px"):
        assert np.array_equal(*(getattr(each.flow, name) for each in found)), name
    assert np.array_equal(*(each.keyframes for each in found))
    assert {0, 3, 4, 6} <= set(found[0].keyframes.tolist())
    for one, other in zip(found[0].features, found[1].features, strict=True):
        assert np.array_equal(one.xy_px, other.xy_px)
        assert np.array_equal(one.thumbnail, other.thumbnail)
    assert found[0].tracker == "batched-cpu"
    number = len(found[0].keyframes)
    pairs = {(a, a + gap) for gap in MATCHED_GAPS for a in range(number - gap)}
    assert found[0].nearest.keys() == found[1].nearest.keys() == pairs
    for pair in pairs:
        alone = nearest_features(found[0].features[pair[0]], found[0].features[pair[1]], CONFIG)
        for each in found:
            # Equal to the last bit neither sums nor, once in a while, what is nearest.
            assert len({tuple(m) for m in each.nearest[pair]} ^ {tuple(m) for m in alone}) <= 2
    without = replace(found[0], nearest={})
    assert (
        match_keyframes(found[0], [(0, 1)], CONFIG).keys()
        == match_keyframes(without, [(0, 1)], CONFIG).keys()
    )


def test_small_and_narrow_pictures_are_followed() -> None:
    config = TracksConfig(num_flow_tracks=50, num_descriptors=100)
    from theodolite.annotate.tracks.measure import measure_images

    for height, width in ((20, 60), (48, 33)):
        picture = texture(size=200)
        frames = [np.repeat(picture[i : i + height, i : i + width, None], 3, 2) for i in range(3)]
        found = measure_images(
            frames, height=height, width=width, config=config, tracker=partial(BatchedTracker, device=CPU)
        )
        assert found.flow.num_frames == 3


# --- kernels ------------------------------------------------------------------------------------

_INTERPRETED = """
import torch
from theodolite.annotate.tracks.batched import filters, moving, reference, triton_kernels
from theodolite.annotate.tracks.batched.corners import find_corners
from theodolite.annotate.tracks.batched.images import Images
from theodolite.annotate.tracks.batched.prediction import Field
from theodolite.annotate.tracks.batched.state import Log, State
from theodolite.annotate.tracks.records import TracksConfig

torch.manual_seed(0)
x = torch.rand(2, 21, 26)
for axis, stride in ((1, 1), (1, 2), (2, 1), (2, 2)):
    taps = filters.gaussian_taps(1.2)
    two = [module.along(x, taps, axis, stride=stride) for module in (filters, triton_kernels)]
    assert (two[0] - two[1]).abs().max() < 1e-6
smooth = torch.nn.functional.interpolate(torch.rand(1, 1, 20, 30) * 255, size=(84, 124), mode="bicubic")[0, 0]
frames = torch.stack([smooth[i : i + 60, 2 * i : 2 * i + 80] for i in range(6)]).clamp(0, 255).to(torch.uint8)
images = Images((80, 60), 8, torch.device("cpu"))
images.put(0, frames)
xy = torch.tensor([[20.3, 20.7], [60.0, 3.2], [-30.0, 5.0], [40.2, 58.9]])
pair = torch.zeros(4, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
for levels, radius in (((1, 0), 9), ((1, 1), 4)):
    a = reference.follow(images, pair, xy, xy.clone(), levels=levels, radius=radius)
    b = triton_kernels.follow(images, pair, xy, xy.clone(), levels=levels, radius=radius)
    assert torch.equal(a.ok, b.ok) and a.ok.any() and not a.ok.all()
    assert (a.xy - b.xy).abs().max() < 1e-3 and (a.residual - b.residual)[a.ok].abs().max() < 1e-3

config = TracksConfig(max_track_frames=5)
object.__setattr__(config, "max_track_frames", 3)

def moved(kernels):
    state, log = State.empty(3, images.device), Log.empty(4, 3, images.device)
    state.xy = torch.tensor([[20.0, 20.0], [40.0, 4.2], [50.0, 50.0]])
    state.reference_xy, state.track = state.xy.clone(), torch.tensor([0, 1, -1], dtype=torch.int32)
    field = Field(torch.full((4, 2, 3, 4), -1.0) * torch.tensor([2.0, 1.0])[:, None, None], 60, 80)
    moving.kernels_for = lambda x: kernels
    for frame in range(1, 4):
        moving.move(state, images, field, log, frame, frame=frame, config=config)
    return state, log

(a, one), (b, other) = moved(None), moved(triton_kernels)
assert torch.equal(one.found, other.found) and one.found[1, 0] and not one.found[:, 2].any()
assert torch.equal(one.before, other.before) and torch.equal(a.track, b.track) and (a.track == -1).all()
held = one.found > 0
assert (one.after - other.after)[held].abs().max() < 1e-3 and (one.start - other.start)[held].abs().max() < 1e-3
assert torch.equal(a.reference_frame, b.reference_frame)

corners = find_corners(frames, tile_px=9, cells=[12] * 6)
assert (corners.valid.sum(1) > 10).all()

def filled(kernels, missing, number=12, least=2.0, frame=3):
    state, log = State.empty(number, images.device), Log.empty(6, number, images.device)
    moving.kernels_for = lambda x: kernels
    state.xy = torch.tensor([[20.5, 20.0], [40.0, 33.2]]).repeat(number // 2, 1) + torch.arange(number)[:, None]
    state.track = torch.arange(number, dtype=torch.int32)
    state.track[number - missing :] = -1
    state.count.fill_(100)
    moving.refill(state, corners, log, 3, frame=frame, number=number, spacing_px=6.0)
    return [*vars(state).values(), log.xy[3], log.track[3]]

for missing in (0, 1, 5, 12):
    one, other = filled(None, missing), filled(triton_kernels, missing)
    for x, y in zip(one, other, strict=True):
        assert torch.equal(x, y), (missing, x, y)
    begun = int(one[5]) - 100
    assert (begun == 0) == (missing < 2) and begun <= missing, (missing, begun)
print("same")
"""


@pytest.mark.slow(about_s=8)
@needs_packages("triton", extra="kernels")
def test_kernels_and_twins_agree_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("same")


@pytest.mark.gpu
@pytest.mark.parametrize(("levels", "radius"), [((3, 0), 9), ((0, 0), 9), ((4, 4), 4)])
def test_kernel_and_twin_agree(levels: tuple[int, int], radius: int) -> None:
    gray, xy, device = grays(2), points(500, outside_px=15.0), torch.device("cuda")
    expected = reference.follow(images_of(gray), pair_of(500), xy, xy, levels=levels, radius=radius)
    found = op.follow(
        images_of(gray, device),
        pair_of(500, device),
        xy.to(device),
        xy.to(device),
        levels=levels,
        radius=radius,
    )
    assert (expected.ok == found.ok.cpu()).float().mean() > 0.99
    apart = (expected.xy - found.xy.cpu()).norm(dim=1)[expected.ok & found.ok.cpu()]
    # A step more or less at the limit of 0.01 px, from sums in another order.
    assert (apart < 0.01).float().mean() > 0.98


@pytest.mark.gpu
def test_the_gpu_sees_what_the_processor_sees() -> None:
    image = texture()
    frames = [warp(image, zooming_view(i, step=4.0)) for i in range(20)]
    cpu, cuda = (
        measured_by(partial(BatchedTracker, device=torch.device(d)), frames) for d in ("cpu", "cuda")
    )
    again = measured_by(partial(BatchedTracker, device=torch.device("cuda")), frames)
    assert np.array_equal(again.flow.xy_px, cuda.flow.xy_px)
    assert cuda.flow.num_tracks == pytest.approx(cpu.flow.num_tracks, rel=0.03)
    assert len(cuda.flow.frame) == pytest.approx(len(cpu.flow.frame), rel=0.03)
    assert np.abs(cuda.survival - cpu.survival).max() < 0.03
    assert cuda.keyframes.tolist() == cpu.keyframes.tolist()
    for one, other in zip(cpu.features, cuda.features, strict=True):
        assert len(one.xy_px) == pytest.approx(len(other.xy_px), rel=0.02)
        assert ((one.unit_descriptors @ other.unit_descriptors.T).max(1) > 0.999).mean() > 0.95


# --- who is chosen --------------------------------------------------------------------------------


def made_by(**sections) -> str:
    made = tracker_of(AnnotateConfig.model_validate(sections))
    if isinstance(made, partial):
        assert made.func is BatchedTracker
        return str(made.keywords["device"])
    assert made is OpenCVTracker
    return "opencv"


def test_a_gpu_follows_points_where_it_is_asked_for_and_by_auto_where_networks_have_one(monkeypatch) -> None:
    networks, auto = {"sequence": "pi3x", "anchor": "moge2"}, {"tracker": "auto"}
    assert made_by() == "opencv"
    assert made_by(geometry=networks, tracks=auto) == "opencv"
    assert made_by(tracks={"tracker": "batched"}) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert made_by(tracks=auto) == "opencv"
    assert made_by(tracks={"tracker": "batched"}) == "cuda:0"
    assert made_by(geometry=networks, tracks=auto) == "cuda:0"
    assert made_by(geometry=networks | {"device": "cpu"}, tracks=auto) == "opencv"
    assert made_by(geometry=networks) == "opencv"


def test_a_gpu_that_is_not_there_is_said_before_any_clip(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device 'cuda' \(--device, or annotate\.geometry\.device"):
        made_by(tracks={"tracker": "batched"}, geometry={"device": "cuda"})
