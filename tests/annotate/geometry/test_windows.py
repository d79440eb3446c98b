"""Keyframes: which ones and windows, masks and focal lengths of a window, merging, the stream around a network."""

from __future__ import annotations

import itertools
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from theodolite.annotate.geometry import moge2, windows
from theodolite.annotate.geometry.config import KeyframesConfig
from theodolite.annotate.geometry.join import merge_maps
from theodolite.annotate.geometry.window_maps import RawWindow, depth_edges, fit_focal, keep_window
from theodolite.annotate.geometry.windows import KeyframeStream, choose_keyframes, plan_windows
from theodolite.annotate.networks.images import resize_lanczos, upload
from theodolite.annotate.networks.lane import lane, next_turn
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.scale.estimate import estimate_scale
from theodolite.annotate.sources.clip import ClipRef, ClipRejection
from theodolite.dataset.metrics.trajectory import trajectory_error

from ...typed import known
from ..simulator import SIZE, Errors, SimulatedPi3X, Truth, rendered_truth, simulated
from ..unseen import UnseenFrames

CLIP = ClipRef(clip_id="c", source="s", original_id="c", media_kind="video", media_path=Path("c.mp4"))
NO_ERRORS = Errors(
    own_scale=0.0,
    window_scale=0.0,
    drift=0.0,
    rotation_deg=0.0,
    position=0.0,
    depth=0.0,
    outlier_frames=0.0,
    focal=0.0,
    metric_frame=0.0,
    metric_outliers=0.0,
)


@pytest.fixture(scope="module")
def truth() -> Truth:
    clip = render_clip(
        RenderConfig(width=320, height=180, num_frames=200, seed=3, zoom="in_out", zoom_factor=1.5)
    )
    return rendered_truth(clip)


@pytest.fixture(scope="module")
def faultless(truth: Truth):
    """What a network without errors gives: geometry, metric frames, keyframes."""
    return run(truth, NO_ERRORS)


def run(truth: Truth, errors: Errors):
    config = KeyframesConfig(window=32, step=16, max_one_pass=32)  # 51 keyframes in three, and one spread
    frames = UnseenFrames.of(len(truth.camera_to_world), truth.height, truth.width)
    estimators = simulated(truth, errors, config)
    stream = estimators.sequence.start(CLIP, frames)
    wanted = stream.depth_frames
    metric = known(estimators.anchor).start(CLIP, frames, wanted[2::2].tolist())
    image = np.zeros((truth.height, truth.width, 3), np.uint8)
    for number in range(len(frames)):
        stream.add(number, image)
        metric.add(number, image)
    geometry = stream.finish()
    return geometry, metric.finish(geometry.focal_px), wanted


# --- which frames ------------------------------------------------------------------------------------


def test_keyframes_are_even_and_hold_both_ends() -> None:
    chosen = choose_keyframes(961, 16.0, 4.0)
    assert len(chosen) == 241
    assert (np.diff(chosen) == 4).all()
    assert (chosen[0], chosen[-1]) == (0, 960)
    assert choose_keyframes(17, 16.0, 60.0).tolist() == list(range(17))
    odd = choose_keyframes(100, 29.97, 4.0)
    assert (odd[0], odd[-1]) == (0, 99)
    assert np.diff(odd).min() >= 7


@pytest.mark.parametrize("count", [2, 64, 96, 97, 128, 160, 161, 241, 1000])
def test_windows_cover_and_overlap(count: int) -> None:
    config = KeyframesConfig()
    windows = plan_windows(count, config)
    assert np.array_equal(np.unique(np.concatenate(windows)), np.arange(count))
    if count <= config.max_one_pass:
        assert len(windows) == 1
        return
    *along, spread = windows
    assert all(len(w) == config.window for w in windows)
    assert all(len(np.intersect1d(a, b)) >= config.window // 2 for a, b in itertools.pairwise(along))
    # The spread window meets every other one.
    assert all(len(np.intersect1d(spread, w)) >= 2 for w in along)


def test_windows_that_hardly_overlap_are_refused() -> None:
    with pytest.raises(ValidationError, match="overlap by at least 4 keyframes"):
        KeyframesConfig(window=64, step=61)
    with pytest.raises(ValidationError, match="greater than 4"):  # whatever its step
        KeyframesConfig(window=4, step=1)


# --- one window --------------------------------------------------------------------------------------


def test_resize_is_pils_lanczos() -> None:
    pil = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    for height, width in ((42, 84), (112, 154), (90, 70)):
        ours = resize_lanczos(torch.from_numpy(image).permute(2, 0, 1), height, width)
        theirs = np.asarray(pil.fromarray(image).resize((width, height), pil.Resampling.LANCZOS))
        difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs.astype(int))
        assert difference.max() <= 1  # fixed-point weights there, float32 here
        assert (difference > 0).mean() < 0.02


def rays(height: int, width: int, focal: tuple[float, float]) -> torch.Tensor:
    u = ((torch.arange(width) + 0.5) / width - 0.5) / (focal[0] / width)
    v = ((torch.arange(height) + 0.5) / height - 0.5) / (focal[1] / height)
    out = torch.ones(1, height, width, 3)
    out[..., 0], out[..., 1] = u, v[:, None]
    return out


def test_edges_are_steps_and_not_slopes() -> None:
    ray = rays(60, 80, (60.0, 60.0))
    valid = torch.ones(1, 60, 80, dtype=torch.bool)
    step = ray * torch.where(torch.arange(80) < 40, 2.0, 3.0)[None, None, :, None]
    edges = depth_edges(step, valid, KeyframesConfig())
    assert edges[:, :, 39:41].all()
    assert not edges[:, :, :36].any()
    assert not edges[:, :, 45:].any()
    # A wall seen at 80 degrees: depth changes by more than 3 % from pixel to pixel, its normal does not.
    slope = ray / (1 - 0.95 * ray[..., :1] / ray[..., 0].abs().max())
    z = slope[..., 2]
    assert ((z[..., 1:] - z[..., :-1]) / z[..., :-1]).max() > 0.03
    assert not depth_edges(slope, valid, KeyframesConfig())[:, 2:-2, 2:-2].any()


def test_focal_is_per_axis_robust_and_in_stored_pixels() -> None:
    # Stored 640x480; the network's image is 41x31 cells of it, scaled by other factors across and down.
    ray = rays(31, 41, (41 * 500 / 640, 31 * 520 / 480))
    generator = torch.Generator().manual_seed(0)
    points = ray * (1 + torch.rand(31, 41, 1, generator=generator))
    weight = torch.ones(1, 31, 41)
    exact = fit_focal(points, weight, height=480, width=640)
    np.testing.assert_allclose(exact[0], [500, 520], rtol=1e-5)
    wrong = torch.rand(1, 31, 41, generator=generator) < 0.15
    points[wrong] *= torch.tensor([3.0, 0.2, 1.0])
    np.testing.assert_allclose(fit_focal(points, weight, height=480, width=640)[0], [500, 520], rtol=0.02)
    weight[wrong] = 0
    np.testing.assert_allclose(fit_focal(points, weight, height=480, width=640)[0], [500, 520], rtol=1e-5)
    weight[:] = 0
    assert torch.isnan(fit_focal(points, weight, height=480, width=640)).all()


def test_masks_of_a_window() -> None:
    points = rays(60, 80, (60.0, 60.0)) * 2
    points[:, :10] *= 100.0  # sky
    points[:, 20, :5] = torch.nan
    points[:, 21, :5] *= -1
    confidence = torch.full((1, 60, 80), 0.9)
    confidence[:, 50:] = 0.05
    pose = torch.eye(4)[None] * torch.tensor([1.01, 1.01, 1.01, 1.0])[:, None]  # no rotation any more
    raw = RawWindow(camera_to_world=pose, points=points, confidence=confidence)
    kept = keep_window(raw, np.array([7]), KeyframesConfig(), height=600, width=800)
    depth = kept.depth[0].astype(np.float32)
    assert np.isposinf(depth[:10]).all()
    assert np.isnan(depth[50:]).all()
    assert np.isnan(depth[20:22, :5]).all()
    np.testing.assert_allclose(depth[25:48, 10:], 2.0, rtol=1e-3)
    assert (kept.confidence[0][np.isnan(depth) | np.isposinf(depth)] == 0).all()
    np.testing.assert_allclose(kept.camera_to_world[0, :3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(kept.focal_px, [[600, 600]], rtol=1e-4)
    raw = RawWindow(camera_to_world=pose * torch.nan, points=points, confidence=confidence)
    with pytest.raises(ClipRejection, match="geometry_not_finite"):
        keep_window(raw, np.array([7]), KeyframesConfig(), height=600, width=800)


def test_merging_windows() -> None:
    depth = np.array([[[2.0, 2.0, np.nan, np.inf, np.inf, 2.0]], [[2.0, 4.0, 3.0, np.inf, 5.0, np.nan]]])
    trust = np.array([[[0.8, 0.5, 0.0, 0.0, 0.0, 0.0]], [[0.4, 0.5, 0.9, 0.0, 0.7, 0.0]]])
    merged, confidence = merge_maps(depth, trust)
    np.testing.assert_allclose(merged[0, :5], [2.0, 8**0.5, 3.0, np.inf, 5.0], rtol=1e-6)
    assert np.isnan(merged[0, 5])
    np.testing.assert_allclose(confidence[0, [0, 2, 3, 4, 5]], [0.6, 0.9, 0, 0.7, 0], rtol=1e-6)
    assert confidence[0, 1] < 0.05  # a factor of two between windows is no agreement


# --- a clip ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_faultless_network_gives_the_truth(truth: Truth, faultless) -> None:
    geometry, found, wanted = faultless
    poses = known(geometry.camera_to_world)
    placed = np.isfinite(poses[:, 0, 0])
    assert np.array_equal(np.flatnonzero(placed), wanted)
    error = trajectory_error(poses[placed], truth.camera_to_world[placed])
    assert error.ate_rmse_m < 1e-3
    assert error.rotation_max_rad < 1e-3
    np.testing.assert_allclose(known(geometry.focal_px)[placed, 0], truth.focal_px[placed], rtol=1e-3)
    for frame in map(int, wanted[::10]):
        depth = known(geometry.depth.read(frame))
        ratio = depth / truth.depth_m(frame, depth.shape)
        assert np.nanmedian(np.abs(np.log(ratio))) < 2e-3
        assert np.isfinite(depth).mean() > 0.6
    assert geometry.depth.read(int(wanted[1]) - 1) is None
    scale = estimate_scale(geometry, found, num_frames=len(placed))
    assert scale.value == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_errors_are_averaged_and_reported(truth: Truth, faultless) -> None:
    geometry, found, wanted = run(truth, Errors(seed=1))
    poses = known(geometry.camera_to_world)
    placed = np.isfinite(poses[:, 0, 0])
    assert np.array_equal(np.flatnonzero(placed), wanted)
    # Frames that the network gets wrong in every window are for the bundle to put right.
    good = wanted[~SimulatedPi3X(truth, Errors(seed=1)).wrong[wanted]]
    error = trajectory_error(poses[good], truth.camera_to_world[good], alignment="sim3")
    assert error.ate_rmse_m < 0.01 * error.path_length_m
    assert np.degrees(error.rotation_mean_rad) < 1.5
    scale = estimate_scale(geometry, found, num_frames=len(placed))
    # 25 frames of 10 % that correlate by 0.6: their median errs by 4 %, and 12 % are three standard deviations.
    assert abs(np.log(known(scale.value) / error.scale)) < 0.12
    calm, _, _ = faultless
    for name in (
        "keyframe_depth_disagreement_log",
        "keyframe_edge_residual_median",
        "keyframe_pose_spread_median",
    ):
        assert geometry.diagnostics[name] > 2 * calm.diagnostics[name]
    assert geometry.diagnostics["keyframe_windows"] == calm.diagnostics["keyframe_windows"] == 4


@pytest.mark.slow
def test_memory_is_that_of_the_windows_in_flight(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network slower than the decoder holds the decoder back, and images go as soon as no window wants them."""
    config = KeyframesConfig(window=8, step=4, max_one_pass=8, fps=16.0)
    network = SimulatedPi3X(truth, NO_ERRORS)
    stream = KeyframeStream(network, config, CLIP, UnseenFrames.of(60, truth.height, truth.width))
    gate, image, most = threading.Semaphore(0), np.zeros((truth.height, truth.width, 3), np.uint8), 0
    predict = network.predict

    def slow(images: torch.Tensor, frame: np.ndarray) -> RawWindow:
        gate.acquire()
        return predict(images, frame)

    monkeypatch.setattr(network, "predict", slow)
    seen = []

    def feed() -> None:
        nonlocal most
        for number in range(60):
            stream.add(number, image)
            seen.append(number)
            most = max(most, len(stream._images))

    feeder = threading.Thread(target=feed)
    feeder.start()
    feeder.join(timeout=1.0)
    assert feeder.is_alive()
    # Two windows are in flight; the frame that completes the third waits.
    assert seen[-1] < 20
    for _ in stream.windows:
        gate.release()
    feeder.join(timeout=60)
    assert not feeder.is_alive()
    spread = len(stream.windows[-1])
    assert most <= 2 * config.window + spread
    assert np.isfinite(known(stream.finish().camera_to_world)[:, 0, 0]).sum() == 60


@pytest.mark.slow
@pytest.mark.slow
def test_what_networks_said_is_let_go_with_the_stream(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip's row is made long after its windows are joined, in the same breath as the stream is known."""
    said: list[weakref.ref] = []
    for module, name in ((windows, "keep_window"), (moge2, "_Kept")):
        made = getattr(module, name)

        def kept(*args, made=made, **keywords):
            found = made(*args, **keywords)
            said.append(weakref.ref(found))
            return found

        monkeypatch.setattr(module, name, kept)
    frames = UnseenFrames.of(33, truth.height, truth.width)
    config = KeyframesConfig(window=6, step=2, max_one_pass=6)
    estimators = simulated(truth, NO_ERRORS, config)
    stream = estimators.sequence.start(CLIP, frames)
    metric = known(estimators.anchor).start(CLIP, frames, [0, 16])
    image = np.zeros((truth.height, truth.width, 3), np.uint8)
    for number in range(len(frames)):
        stream.add(number, image)
        metric.add(number, image)
    metric.finish(stream.finish().focal_px)
    assert len(said) == len(plan_windows(9, config)) + 1
    assert all(x() is not None for x in said)
    stream.close()
    metric.close()
    lane("cpu").submit(next_turn(), int).result()  # it is done with all that came before
    assert [x() is None for x in said] == [True] * len(said)


def test_windows_without_common_points_are_a_rejection(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SimulatedPi3X(truth, NO_ERRORS)
    predict = network.predict

    def blind(images: torch.Tensor, frame: np.ndarray) -> RawWindow:
        raw = predict(images, frame)
        return RawWindow(
            camera_to_world=raw.camera_to_world, points=raw.points, confidence=0 * raw.confidence
        )

    monkeypatch.setattr(network, "predict", blind)
    config = KeyframesConfig(window=16, step=8, max_one_pass=16)
    stream = KeyframeStream(network, config, CLIP, UnseenFrames.of(160, truth.height, truth.width))
    for number in range(160):
        stream.add(number, np.zeros((truth.height, truth.width, 3), np.uint8))
    with pytest.raises(ClipRejection, match="keyframes_disconnected"):
        stream.finish()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_images_that_are_uploaded_beside_a_busy_network_reach_it_whole(
    name: str, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU two streams share the memory: a block that is freed in one must not be written while the other reads."""
    device = torch.device(name)
    network = SimulatedPi3X(truth, NO_ERRORS)
    side = 4096 if device.type == "cuda" else 64
    heavy = torch.randn(side, side, device=device) / side**0.5
    predict, seen = network.predict, []

    def late(images: torch.Tensor, frame: np.ndarray) -> RawWindow:
        work = heavy
        for _ in range(20):
            work = heavy @ work
        found = (images.float() + 0 * work[0, 0]).cpu()  # the images are read when all of the work is done
        seen.append((frame, found))
        return predict(found.to(torch.uint8), frame)

    monkeypatch.setattr(network, "predict", late)
    monkeypatch.setattr(network, "device", device)
    config = KeyframesConfig(window=8, step=4, max_one_pass=8, fps=16.0)
    stream = KeyframeStream(network, config, CLIP, UnseenFrames.of(48, truth.height, truth.width))
    shape = (48, truth.height, truth.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for number, image in enumerate(images):
        stream.add(number, image)
    stream.finish()
    assert sum(len(frame) for frame, _ in seen) == sum(map(len, stream.windows))
    for frame, found in seen:
        expected = torch.stack([upload(images[f], torch.device("cpu"), stream.size) for f in frame])
        # Sums in another order may round a pixel the other way.
        assert float((found - expected.float()).abs().max()) <= (1 if device.type == "cuda" else 0)


def test_a_networks_error_ends_the_clip(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SimulatedPi3X(truth, NO_ERRORS)

    def broken(images: torch.Tensor, frame: np.ndarray) -> RawWindow:
        raise ZeroDivisionError("out of order")

    monkeypatch.setattr(network, "predict", broken)
    stream = KeyframeStream(network, KeyframesConfig(), CLIP, UnseenFrames.of(100, truth.height, truth.width))
    for number in range(100):
        stream.add(number, np.zeros((truth.height, truth.width, 3), np.uint8))
    with pytest.raises(ZeroDivisionError):
        stream.finish()
    # The lane survives its worst clip.
    assert lane("cpu").submit(0, lambda: 1).result() == 1


@pytest.mark.slow
def test_a_clip_that_ends_early_is_a_rejection(truth: Truth) -> None:
    stream = KeyframeStream(
        SimulatedPi3X(truth, NO_ERRORS),
        KeyframesConfig(),
        CLIP,
        UnseenFrames.of(200, truth.height, truth.width),
    )
    for number in range(150):
        stream.add(number, np.zeros((truth.height, truth.width, 3), np.uint8))
    with pytest.raises(ClipRejection, match="too_few_keyframes"):
        stream.finish()
    assert stream.size == SIZE
