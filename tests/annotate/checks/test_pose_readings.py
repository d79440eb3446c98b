"""Given poses that the images contradict: the usual misreadings are named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from theodolite.annotate.checks.given_poses import GivenPoseErrors, compare_poses, size_ratio
from theodolite.annotate.checks.pose_readings import PoseFault, find_fault, length_alone_is_wrong, unit_fault
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation, rotation_from_quaternion_wxyz
from theodolite.dataset.cameras.transforms import se3_exp, se3_inverse

FRAMES, FPS = 40, 16.0
WORLD = se3_exp(np.array([3.0, -1.0, 2.0, 0.4, -0.3, 1.1]))
CONFIG = RenderConfig(num_frames=FRAMES, seed=4, speed=1.3)


def path_at(frame: np.ndarray) -> np.ndarray:
    return WORLD @ camera_path(CONFIG, frame / FPS)


FRAME = np.arange(FRAMES, dtype=float)
TRUTH = path_at(FRAME)
RNG = np.random.default_rng(3)
NOISE = se3_exp(RNG.standard_normal((FRAMES, 6)) * np.r_[np.full(3, 0.004), np.full(3, 0.0005)])
SOLVED = se3_inverse(TRUTH[:1]) @ TRUTH @ NOISE


def fault_of(given: np.ndarray, position: np.ndarray = FRAME, late_s: float = 0.0) -> PoseFault | None:
    return find_fault(
        SOLVED, given, position, fps=FPS, focal_px=200.0, depth=3.0, long_side_px=240.0, late_s=late_s
    )


def rotations(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    out = TRUTH.copy()
    out[:, :3, :3] = change(TRUTH[:, :3, :3])
    return out


MIRROR = np.diag([1.0, -1, 1, 1])
TURNED = np.diag([-1.0, -1, 1, 1])
OPENGL = np.diag([1.0, -1, -1, 1])
CYCLE = np.eye(4)[[1, 2, 0, 3]]


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("inverted", se3_inverse(TRUTH)),
        ("opengl", TRUTH @ OPENGL),
        ("opengl", OPENGL @ TRUTH @ OPENGL),
        ("flipped", TRUTH @ TURNED),
        ("flipped", MIRROR @ TRUTH @ MIRROR),
        ("axes_swapped", TRUTH @ CYCLE),
        ("rotation_misread", rotations(lambda r: np.swapaxes(r, 1, 2))),
        (
            "rotation_misread",
            rotations(
                lambda r: rotation_from_quaternion_wxyz(np.roll(quaternion_wxyz_from_rotation(r), 1, axis=-1))
            ),
        ),
        ("wrong_rate", path_at(FRAME * 30 / 16)),
        ("wrong_rate", path_at(FRAME / 2)),
        ("wrong_rate", TRUTH[::-1].copy()),
    ],
)
def test_each_misreading_is_named(code: str, given: np.ndarray) -> None:
    fault = fault_of(given)
    assert fault is not None
    assert fault.reading.code == f"given_poses_{code}"
    assert fault.reading.words in fault.detail
    assert fault.misfit_px < 2.5
    assert fault.given_px > 2 * fault.misfit_px


@pytest.mark.parametrize("frames", [-3.0, 5.0])
def test_poses_of_other_frames_are_named(frames: float) -> None:
    fault = fault_of(path_at(FRAME - frames), late_s=frames / FPS)
    assert fault is not None
    assert fault.reading.code == "given_poses_shifted"
    assert ("late" if frames > 0 else "early") in fault.detail


def test_sparse_poses_are_read_too() -> None:
    some = FRAME[1::4] + 0.3
    fault = fault_of(path_at(some) @ OPENGL, some)
    assert fault is not None
    assert fault.reading.code == "given_poses_opengl"


def test_true_poses_and_those_of_another_clip_have_no_name() -> None:
    assert fault_of(TRUTH) is None
    longer = TRUTH.copy()
    longer[:, :3, 3] *= 100
    assert fault_of(longer) is None  # scale is another question
    other = camera_path(RenderConfig(num_frames=FRAMES, seed=9, speed=2.0), FRAME / FPS)
    assert fault_of(other) is None
    assert fault_of(TRUTH[:5], FRAME[:5]) is None
    assert fault_of(np.tile(TRUTH[:1], (FRAMES, 1, 1))) is None


def test_a_wrong_unit_is_guessed_by_its_size() -> None:
    assert "centimetres" in unit_fault(0.0102, 0.5)
    assert "feet" in unit_fault(0.31, 0.5)
    assert unit_fault(0.8, 0.83).startswith("the path of the given poses is 1.2 times as long")
    assert "taken for metres" not in unit_fault(0.8, 0.83)


def errors(ratio: float = 1.0, size: float = 1.0, sigma: float = 0.001) -> GivenPoseErrors:
    known = {"scale_ratio": ratio, "size_ratio": size, "size_sigma": sigma}
    return GivenPoseErrors(**dict.fromkeys((f.name for f in fields(GivenPoseErrors)), np.nan) | known)


def test_lengths_that_depth_is_blind_to_are_told_by_the_paths() -> None:
    """Under a path a hundred times too long depth finds nothing wrong with any length."""
    alike = {"given_rotation": True, "given_turn": True, "given_direction": True, "given_scale": True}
    short, long = {"errors": errors(size=0.01)}, {"errors": errors(size=100.0)}
    assert length_alone_is_wrong(0.00996, alike, **short)
    assert length_alone_is_wrong(100.0, {k: v for k, v in alike.items() if k != "given_scale"}, **long)
    assert length_alone_is_wrong(1.0, alike | {"given_scale": False}, errors=errors(0.83, 0.84))
    assert not length_alone_is_wrong(1.2, alike, errors=errors(size=1.2))
    assert not length_alone_is_wrong(float("nan"), alike, errors=errors())
    another_path = alike | {"given_direction": False}
    assert not length_alone_is_wrong(0.01, another_path, **short)
    assert not length_alone_is_wrong(0.01, {"given_scale": True}, **short)  # nothing was compared


@pytest.mark.parametrize("metres", [0.05, 0.12])
@pytest.mark.parametrize("factor", [1.0, 1.25, 0.8])
def test_noise_makes_a_path_longer_in_its_right_unit(factor: float, metres: float) -> None:
    """Between two noisy poses it is further than between true ones; the whole path is no larger."""
    given = TRUTH.copy()
    given[:, :3, 3] += metres * np.random.default_rng(6).standard_normal((FRAMES, 3))
    given[:, :3, 3] *= factor
    check = compare_poses(SOLVED, given, np.full(FRAMES, 0.004))
    assert check.scale * factor < 0.96
    size, sigma = size_ratio(SOLVED, given)
    assert abs(np.log(size * factor)) < 3 * sigma < 0.2
    found = errors(check.scale, size, sigma)
    assert length_alone_is_wrong(check.scale, {"given_scale": False}, errors=found) == (factor != 1.0)
