"""Given poses brought to metres window by window: what windows agree on, and that they say so where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.annotate.scale.bridge import STRAIGHT, Bridge, bridge_to_metres, path_spread
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import REASONS, judge_bridge
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.cameras.transforms import se3_exp

from ...typed import known

FRAMES, STEP, UNIT, NETWORK_UNIT = 161, 4, 2.7, 0.4
"""Metres of a given unit, and of a network unit."""


def truth(*, straight: bool = False) -> np.ndarray:
    path = camera_path(RenderConfig(num_frames=FRAMES, seed=4), np.arange(FRAMES) / 16)
    if straight:
        path[:, :3, 3] = np.linspace(0, 4, FRAMES)[:, None] * np.array([1.0, 0.2, 0])
    return path


def network_of(path: np.ndarray, *, wrong: float = 0.0) -> np.ndarray:
    """Every fourth frame, in a gauge and unit of its own, with small errors and some poses wrong altogether."""
    rng = np.random.default_rng(1)
    frame = np.arange(0, len(path), STEP)
    some = se3_exp(np.array([3.0, 1, 2, 0.5, -0.7, 0.2])) @ path[frame]
    some[:, :3, 3] = some[:, :3, 3] / NETWORK_UNIT + 0.01 * rng.standard_normal((len(frame), 3))
    some[:, :3, :3] = some[:, :3, :3] @ so3_exp(0.002 * rng.standard_normal((len(frame), 3)))
    off = rng.random(len(frame)) < wrong
    some[off, :3, 3] += rng.standard_normal((off.sum(), 3))
    out = np.full_like(path, np.nan)
    out[frame] = some
    return out


def given_of(path: np.ndarray, every: int = 1) -> tuple[np.ndarray, np.ndarray]:
    given = se3_exp(np.array([1.0, 2, 3, 0.3, 0.2, 0.1])) @ path[::every]
    given[:, :3, 3] /= UNIT
    return given, np.arange(0, len(path), every).astype(float)


def bridged(network: np.ndarray, given: np.ndarray, position: np.ndarray, scatter: float = 0.0) -> Bridge:
    frame = np.arange(0, FRAMES, 8)
    logs = np.log(NETWORK_UNIT) + 0.05 * np.random.default_rng(2).standard_normal(len(frame))
    logs += scatter * (frame // 33 % 3)
    scale = fit_scale(frame, logs, num_frames=FRAMES)
    bridge = bridge_to_metres(network, given, position, scale, fps=16.0)
    assert bridge is not None
    return bridge


def failed(bridge: Bridge) -> set[str]:
    return {g.name for g in judge_bridge(bridge, GatesConfig()) if not g.passed}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("straight", [False, True], ids=["walk", "line"])
def test_windows_agree_on_the_unit(every: int, straight: bool) -> None:
    """On a line, too, where centres tell no turn about it; dense, and five poses a second."""
    path = truth(straight=straight)
    given, position = given_of(path, every)
    bridge = bridged(network_of(path, wrong=0.1), given, position)
    assert bridge.metres_per_unit == pytest.approx(UNIT, rel=0.05)
    assert abs(np.log(known(bridge.metres_per_unit) / UNIT)) < 3 * bridge.sigma_log
    assert bridge.used.all()
    assert len(bridge.value) == 5
    assert bridge.inlier_share.min() < 1  # the wrong poses
    assert bridge.network_spread_log < 0.03
    assert not failed(bridge)
    assert (path_spread(given) < STRAIGHT) == straight


def test_a_unit_that_changes_along_the_clip_is_none() -> None:
    """The second half of the given path in a unit of its own, as where two reconstructions were joined."""
    path = truth()
    given, position = given_of(path)
    half = FRAMES // 2
    given[half:, :3, 3] = given[half, :3, 3] + 1.4 * (given[half:, :3, 3] - given[half, :3, 3])
    bridge = bridged(network_of(path), given, position)
    assert "bridge_change" in failed(bridge)
    assert {REASONS[name] for name in failed(bridge)} == {"given_scale_disagrees"}


def test_windows_whose_metres_scatter_have_no_consensus() -> None:
    path = truth()
    bridge = bridged(network_of(path), *given_of(path), scatter=0.8)
    assert "bridge_spread" in failed(bridge)
    assert bridge.network_spread_log < 0.03  # the paths themselves agree


def test_flipped_axes_and_a_camera_at_rest_say_nothing() -> None:
    path = truth()
    given, position = given_of(path)
    flipped = bridged(network_of(path), given @ np.diag([1.0, -1, -1, 1]), position)
    assert flipped.metres_per_unit is None or failed(flipped)
    still = np.tile(path[:1], (FRAMES, 1, 1))
    rest = bridged(network_of(still), still, position)
    assert rest.metres_per_unit is None
    assert judge_bridge(rest, GatesConfig()) == ()
    assert np.isnan(path_spread(still))


def test_too_few_poses_make_no_windows() -> None:
    path = truth()
    given, position = given_of(path)
    scale = fit_scale(np.arange(0, FRAMES, 8), np.zeros(21), num_frames=FRAMES)
    network = network_of(path)
    assert bridge_to_metres(network, given[:20], position[:20], scale, fps=16.0) is None
    assert bridge_to_metres(np.full_like(network, np.nan), given, position, scale, fps=16.0) is None
