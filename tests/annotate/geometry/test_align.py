"""Laws of the window graph, and the simulator of sequence-network errors it has to beat chains under."""

from __future__ import annotations

import numpy as np
import pytest
from theodolite.annotate.geometry.align import Window, align_windows, fit_edge
from theodolite.annotate.geometry.config import AlignConfig
from theodolite.dataset.cameras.alignment import umeyama
from theodolite.dataset.cameras.rotations import rotation_angle, so3_exp


def walk(num_frames: int, seed: int) -> np.ndarray:
    """(F, 4, 4) camera-to-world along a curved path of about 0.25 m a frame."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    for i in range(1, num_frames):
        turn = so3_exp(np.array([0.01 * rng.normal(), 0.03 * np.sin(i / 9) + 0.02, 0.0]))
        poses[i, :3, :3] = poses[i - 1, :3, :3] @ turn
        poses[i, :3, 3] = poses[i - 1, :3, 3] + poses[i - 1, :3, :3] @ np.array(
            [0.03 * rng.normal(), 0, 0.25]
        )
    return poses


def simulate(
    truth: np.ndarray,
    groups: list[np.ndarray],
    rng: np.random.Generator,
    *,
    noise: float = 0.05,
    drift: float = 0.02,
    outlier_points: float = 0.3,
    outlier_frames: float = 0.1,
    scale_sigma: float = 0.03,
) -> list[Window]:
    """Windows as a sequence network gives them: stand-ins for its known errors, with the truth behind.

    Each window gets a random rigid gauge, a log scale of `scale_sigma` (the network's own metric factor), a scale
    that drifts by `drift` from its first frame to its last, depth noise that is common to a frame's neighbourhood,
    wrong points (edges, moving things) that keep a high confidence, and frames that are wrong altogether.
    """
    count = 160
    rays = np.concatenate(
        [rng.uniform(-0.8, 0.8, (len(truth), count, 2)), np.ones((len(truth), count, 1))], axis=2
    )
    z = np.exp(rng.normal(1.3, 0.5, (len(truth), count)))
    windows = []
    for frames in groups:
        n = len(frames)
        unit = np.exp(scale_sigma * rng.normal())
        along = np.exp(drift * np.linspace(-0.5, 0.5, n))
        depth = z[frames] * np.exp(noise * rng.normal(size=(n, count)) + 0.01 * rng.normal(size=(n, 1)))
        wrong = rng.random((n, count)) < outlier_points * rng.random((n, 1))
        depth = np.where(wrong, depth * np.exp(rng.normal(0.3, 0.6, (n, count))), depth)
        local = rays[frames] * depth[..., None] / unit
        relative = np.linalg.inv(truth[frames[0]]) @ truth[frames]
        pose = relative.copy()
        steps = np.diff(relative[:, :3, 3], axis=0) * along[1:, None] / unit
        pose[1:, :3, 3] = np.cumsum(steps, axis=0)
        pose[:, :3, 3] += 0.005 * rng.normal(size=(n, 3))
        for i in np.flatnonzero(rng.random(n) < outlier_frames):
            pose[i, :3, :3] = pose[i, :3, :3] @ so3_exp(0.2 * rng.normal(size=3))
            pose[i, :3, 3] += 0.5 * rng.normal(size=3)
        gauge = np.eye(4)
        gauge[:3, :3], gauge[:3, 3] = so3_exp(rng.normal(size=3)), 3 * rng.normal(size=3)
        weight = rng.uniform(0.5, 1.0, (n, count))
        windows.append(Window(frame=frames, camera_to_world=gauge @ pose, points=local, weight=weight))
    return windows


def overlapping(num_frames: int, size: int, step: int) -> list[np.ndarray]:
    starts = range(0, max(1, num_frames - size + step), step)
    return [np.arange(s, min(s + size, num_frames)) for s in starts]


def ate(estimated: np.ndarray, truth: np.ndarray) -> float:
    """Position RMSE after the best similarity, metres."""
    fit = umeyama(estimated[:, :3, 3], truth[:, :3, 3], with_scale=True)
    moved = fit.scale * estimated[:, :3, 3] @ fit.rotation.T + fit.translation
    return float(np.sqrt(((moved - truth[:, :3, 3]) ** 2).sum(1).mean()))


def chained(windows: list[Window]) -> np.ndarray:
    """The usual way: unweighted similarity of overlap points, window after window, scales multiplied."""
    total = np.eye(4)
    last = int(max(w.frame.max() for w in windows))
    poses = np.tile(np.eye(4), (last + 1, 1, 1))
    for i, window in enumerate(windows):
        if i:
            before = windows[i - 1]
            _, ia, ib = np.intersect1d(before.frame, window.frame, return_indices=True)
            ours, theirs = (
                (w.points[k] @ w.camera_to_world[k, :3, :3].mT + w.camera_to_world[k, None, :3, 3]).reshape(
                    -1, 3
                )
                for w, k in ((window, ib), (before, ia))
            )
            fit = umeyama(ours, theirs, with_scale=True)
            step = np.eye(4)
            step[:3, :3], step[:3, 3] = fit.scale * fit.rotation, fit.translation
            total = total @ step
        moved = total @ window.camera_to_world
        moved[:, :3, :3] /= np.cbrt(np.linalg.det(moved[:, :3, :3]))[:, None, None]
        poses[window.frame] = moved
    return poses


def test_exact_windows_are_recovered_exactly():
    truth = walk(60, 0)
    rng = np.random.default_rng(1)
    groups = [*overlapping(60, 24, 12), np.arange(0, 60, 4)]
    windows = simulate(
        truth, groups, rng, noise=0, drift=0, outlier_points=0, outlier_frames=0, scale_sigma=0.2
    )
    # Without the tiny jitter that simulate adds to positions and depths nothing else remains.
    exact = []
    for w in windows:
        z = np.exp(np.random.default_rng(7).normal(1.3, 0.5, (60, 160)))
        rays = np.random.default_rng(8).uniform(-0.8, 0.8, (60, 160, 2))
        points = np.concatenate([rays, np.ones((60, 160, 1))], 2) * z[..., None]
        unit = np.exp(rng.normal() * 0.2)
        gauge = np.eye(4)
        gauge[:3, :3], gauge[:3, 3] = so3_exp(rng.normal(size=3)), rng.normal(size=3)
        pose = truth[w.frame].copy()
        pose[:, :3, 3] *= unit
        exact.append(
            Window(
                frame=w.frame,
                camera_to_world=gauge @ pose,
                points=points[w.frame] * unit,
                weight=np.ones((len(w.frame), 160)),
            )
        )
    found = align_windows(exact, AlignConfig(scale_prior_sigma=10.0))
    assert np.array_equal(found.frame, np.arange(60))
    assert ate(found.camera_to_world, truth) < 1e-4
    np.testing.assert_allclose(np.linalg.det(found.camera_to_world[:, :3, :3]), 1, atol=1e-12)
    assert np.nanmax(found.pose_spread) < 1e-4
    assert found.edge_residual.max() < 0.05


def test_scale_prior_pulls_to_zero():
    truth = walk(30, 2)
    windows = simulate(truth, overlapping(30, 20, 10), np.random.default_rng(3), scale_sigma=0.2)
    free = fit_edge(0, 1, windows, AlignConfig(scale_prior_sigma=10.0))
    held = fit_edge(0, 1, windows, AlignConfig(scale_prior_sigma=0.001))
    assert free is not None
    assert held is not None
    assert abs(held.log_scale) < 0.2 * abs(free.log_scale)
    fixed = align_windows(windows, AlignConfig(scale_prior_sigma=0.001))
    assert np.abs(fixed.log_scale).max() < 0.02


def test_edge_survives_a_third_of_wrong_points():
    truth = walk(20, 4)
    groups = [np.arange(0, 14), np.arange(6, 20)]
    clean = simulate(
        truth, groups, np.random.default_rng(5), noise=0.02, outlier_points=0, outlier_frames=0, drift=0
    )
    rng = np.random.default_rng(6)
    wrong = rng.random(clean[1].points.shape[:2]) < 0.3
    points = np.where(
        wrong[..., None], clean[1].points * np.exp(rng.normal(0.5, 0.5, (14, 160, 1))), clean[1].points
    )
    dirty = Window(
        frame=groups[1], camera_to_world=clean[1].camera_to_world, points=points, weight=clean[1].weight
    )
    a = fit_edge(0, 1, clean, AlignConfig())
    b = fit_edge(0, 1, [clean[0], dirty], AlignConfig())
    assert a is not None
    assert b is not None
    assert float(rotation_angle(a.rotation.T @ b.rotation)) < 0.01
    assert abs(a.log_scale - b.log_scale) < 0.02


def test_masked_points_are_not_read():
    truth = walk(20, 4)
    windows = simulate(truth, [np.arange(0, 14), np.arange(6, 20)], np.random.default_rng(5))
    before = fit_edge(0, 1, windows, AlignConfig())
    points, weight = windows[1].points.copy(), windows[1].weight.copy()
    points[:, :20], weight[:, 20:30] = np.inf, 0.0
    points[:, 20:30] = np.nan
    sky = Window(
        frame=windows[1].frame, camera_to_world=windows[1].camera_to_world, points=points, weight=weight
    )
    after = fit_edge(0, 1, [windows[0], sky], AlignConfig())
    assert before is not None
    assert after is not None
    assert after.num_points < before.num_points
    assert np.isfinite(after.translation).all()
    aligned = align_windows([windows[0], sky])
    assert np.isfinite(aligned.camera_to_world).all()


def test_disconnected_windows_are_named():
    truth = walk(40, 4)
    windows = simulate(truth, [np.arange(0, 14), np.arange(20, 34)], np.random.default_rng(5))
    with pytest.raises(ValueError, match=r"windows \[1\]"):
        align_windows(windows)


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [40, 240, pytest.param(480, marks=pytest.mark.thorough)])
def test_graph_beats_chained_windows_twofold(num_frames: int):
    """4 fps clips of 10, 60 and 120 s; median of several draws. Rows made from this simulator would be stand-ins."""
    graph, chain, scale_graph, scale_chain = [], [], [], []
    for seed in range(3):
        truth = walk(num_frames, seed)
        rng = np.random.default_rng(100 + seed)
        size, step = 64, 32
        spread = np.unique(np.linspace(0, num_frames - 1, min(num_frames, 64)).round().astype(np.int64))
        windows = simulate(truth, [*overlapping(num_frames, size, step), spread], rng)
        small = simulate(truth, overlapping(num_frames, 16, 8), rng)
        aligned, linked = align_windows(windows), chained(small)
        graph.append(ate(aligned.camera_to_world, truth))
        chain.append(ate(linked, truth))
        for poses, into in ((aligned.camera_to_world, scale_graph), (linked, scale_chain)):
            steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
            true = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
            parts = np.array_split(np.arange(len(true)), 4)
            logs = np.array([np.log(np.median(steps[p]) / np.median(true[p])) for p in parts])
            into.append(float(np.abs(logs - np.median(logs)).max()))
    assert np.median(graph) < 0.5 * np.median(chain), (graph, chain)
    if num_frames > 100:
        assert np.median(scale_graph) < 0.5 * np.median(scale_chain), (scale_graph, scale_chain)
