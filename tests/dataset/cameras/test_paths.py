"""Camera paths from keys and by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from theodolite.dataset.cameras.paths import (
    PathName,
    action_path,
    check_path,
    is_action,
    named_path,
    resample_path,
)
from theodolite.dataset.cameras.rotations import rotation_angle, so3_exp
from theodolite.dataset.cameras.transforms import rigid_error

RECORDED = Path(__file__).with_name("nvlabs_sana_actions.npz")
"""Paths that NVlabs/Sana's public code rolls out for the same actions."""

ACTIONS = {
    "forward": "w-16",
    "curve": "wd-10,w-6,none-8",
    "all": "wjai-5,sdlk-7,none-3,i-120",
    "press": "a-3,aw-4,d-2,D-2, W-3",
}


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("smooth", [True, False])
def test_actions_roll_out_as_in_the_released_code(name: str, smooth: bool) -> None:
    with np.load(RECORDED) as recorded:
        expected = recorded[f"{name}_{smooth}"]
    assert np.abs(action_path(ACTIONS[name], smooth=smooth) - expected).max() < 1e-6


def test_keys_by_hand() -> None:
    ahead = action_path("w-4", smooth=False, speed_m=0.5)
    assert np.allclose(ahead[:, :3, 3], [[0, 0, 0.5 * k] for k in range(5)], atol=1e-5)
    turned = action_path("d-10", smooth=False, turn_deg=9)[-1]
    assert np.allclose(turned[:3, 2], [1, 0, 0], atol=1e-6)  # looks right
    up = action_path("i-10", smooth=False, turn_deg=3)[-1]
    assert up[1, 2] == pytest.approx(-0.5)  # looks up: -y
    assert np.allclose(action_path("l-2", smooth=False, speed_m=1)[-1][:3, 3], [2, 0, 0], atol=1e-5)
    wide = "w-8\uff0cd-4"
    assert is_action(wide)
    assert np.array_equal(action_path(wide), action_path("w-8,d-4"))


@pytest.mark.parametrize(
    "action",
    ["", " ", "w", "w-", "w-0", "w--1", "x-3", "w-3,,w-2", "-3", "w-1.5", "w-²", "w-9999999999", "w-3;d-2"],
)
def test_bad_actions_name_the_segment(action: str) -> None:
    with pytest.raises(ValueError, match="action"):
        action_path(action)


@pytest.mark.parametrize("name", get_args(PathName))
def test_named_paths_are_paths(name: str) -> None:
    path = named_path(name, 161, size_m=2.0)
    assert path.shape == (161, 4, 4)
    assert np.abs(path[0] - np.eye(4)).max() < 1e-9
    assert np.asarray(rigid_error(path)).max() < 1e-9
    check_path(path)
    assert np.isfinite(named_path(name, 2, size_m=0.1, turns=-2.0)).all()


def test_an_orbit_comes_back_and_looks_at_its_middle() -> None:
    path = named_path("orbit", 101, size_m=3.0)
    assert np.abs(path[-1] - path[0]).max() < 1e-9
    middle = np.array([0, 0, 3.0])
    toward = middle - path[:, :3, 3]
    assert np.allclose(np.linalg.norm(toward, axis=1), 3.0)
    assert np.allclose(toward / 3, path[:, :3, 2], atol=1e-9)
    half = named_path("orbit", 101, size_m=3.0, turns=0.5)[-1]
    assert np.allclose(half[:3, 3], [0, 0, 6], atol=1e-9)


def test_crane_dolly_and_whip() -> None:
    crane = named_path("crane", 50, size_m=2.0)[-1]
    start = named_path("crane", 50, size_m=2.0)[0]
    assert np.dot(crane[:3, 3], start[:3, 1]) == pytest.approx(-2.0, abs=0.05)  # up is -y
    dolly = named_path("dolly", 50, size_m=2.0)
    assert np.allclose(dolly[-1][:3, 3], [0, 0, 2])
    whip = named_path("whip-pan", 160)
    turns = np.degrees(np.asarray(rotation_angle(np.swapaxes(whip[:-1, :3, :3], 1, 2) @ whip[1:, :3, :3])))
    assert turns[:60].max() < 1e-6
    assert turns.sum() == pytest.approx(90, abs=0.1)


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [("loop", 10, 1.0), ("orbit", 1, 1.0), ("orbit", 10, 0.0), ("orbit", 10, float("nan"))],
)
def test_bad_names_and_sizes(name: str, frames: int, size: float) -> None:
    with pytest.raises(ValueError, match="path"):
        named_path(name, frames, size_m=size)


def test_resampling_stays_on_the_group() -> None:
    turn = np.tile(np.eye(4), (31, 1, 1))
    turn[:, :3, :3] = np.stack([so3_exp(np.array([0, 0.1 * k, 0])) for k in range(31)])
    turn[:, 2, 3] = np.arange(31)
    found = resample_path(turn, fps=30, num_frames=17)
    assert found.shape == (17, 4, 4)
    assert np.asarray(rigid_error(found)).max() < 1e-12
    assert np.allclose(found[8, :3, :3], so3_exp(np.array([0, 1.5, 0])))
    with pytest.raises(ValueError, match=r"lasts 1\.00 s; 18 frames"):
        resample_path(turn, fps=30, num_frames=18)


def broken(kind: str) -> np.ndarray:
    path = named_path("dolly", 40, size_m=1.0)
    if kind == "nan":
        path[7, 0, 0] = np.nan
    elif kind == "scaled":
        path[:, :3, :3] *= 1.01
    elif kind == "mirrored":
        path[:, :3, 0] *= -1
    elif kind == "jump":
        path[20:, 0, 3] += 3
    elif kind == "millimetres":
        path[:, :3, 3] *= 1000
    elif kind == "flip":
        path[20:, :3, :3] = np.diag([-1.0, 1, -1])
    elif kind == "shape":
        path = path[:, :3]
    return path


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("nan", "frame 7 is not finite"),
        ("scaled", "frame 0 is no rigid"),
        ("mirrored", "no rigid"),
        ("jump", "jumps .*frame 19 to 20"),
        ("millimetres", "in metres"),
        ("flip", "turns"),
        ("shape", r"\(40, 3, 4\)"),
    ],
)
def test_paths_that_no_camera_follows(kind: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_path(broken(kind))
