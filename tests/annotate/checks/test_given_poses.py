"""Given poses and intrinsics: kept where the images agree, refused where they do not, in metres either way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.checks.given_poses import compare_poses, keep_given_poses, longest_gap_s
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import RenderedFiles, write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, ClipRejection, GivenGeometry
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import judge_given
from theodolite.dataset.cameras.rotations import so3_exp, so3_log
from theodolite.dataset.cameras.transforms import interpolate_poses, se3_exp, se3_inverse
from theodolite.dataset.rows import Row
from theodolite.dataset.words import POSE_SOURCES

from ..verdict.test_gates import FRAMES, solution

OPENGL = np.diag([1.0, -1, -1, 1])
LIGHT = {
    "tracks": {"num_flow_tracks": 90, "num_descriptors": 120, "max_loops_per_keyframe": 0},
    "bundle": {"focal_model": "constant", "max_iterations": 8},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[RenderedFiles, np.ndarray, np.ndarray]:
    clip = render_clip(
        RenderConfig(width=320, height=192, num_frames=24, seed=3, speed=1.5, zoom="ramp", zoom_factor=1.3)
    )
    return write_clip(clip, tmp_path_factory.mktemp("given")), clip.camera_to_world, clip.intrinsics


def annotate(
    files: RenderedFiles, folder: Path, poses: np.ndarray | None, config: dict | None = None, **given
) -> Row:
    if poses is not None:
        np.savetxt(folder / "poses.txt", poses.reshape(-1, 16))
        given["camera_to_world_path"] = folder / "poses.txt"
    clip = ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="video",
        media_path=files.media_path,
        source_fps=16.0,
        data_licence="Apache-2.0",
        given=GivenGeometry(depth_pattern=files.depth_pattern, depth_units_per_metre=1000.0, **given),
    )
    return annotate_clip(
        clip, AnnotateConfig.model_validate(config or {}), mode="given_pose", recipe_hash="0" * 16
    )


@pytest.mark.slow
def test_poses_in_a_unit_of_their_own_and_intrinsics_are_kept(files, tmp_path) -> None:
    written, truth, intrinsics = files
    poses = truth.copy()
    poses[:, :3, 3] /= 2.7
    row = annotate(written, tmp_path, poses, LIGHT, intrinsics_path=written.intrinsics_path)
    assert row.verdict == "accepted", row.reason_details
    relative = se3_inverse(truth[:1]) @ truth
    assert row.camera_to_world is not None
    np.testing.assert_allclose(row.camera_to_world[:, :3, :3], relative[:, :3, :3], atol=1e-6)
    length = np.linalg.norm(relative[-1, :3, 3])
    ratio = np.linalg.norm(row.camera_to_world[-1, :3, 3]) / length
    assert ratio == pytest.approx(1, abs=0.01)  # found from the images and the depth
    assert {POSE_SOURCES[code] for code in row.pose_source} == {"given"}
    assert row.focal_model == "given"
    assert row.decode_notes == ("time stamps replaced by 16 fps",)
    np.testing.assert_allclose(row.focal_px[:, 0], intrinsics[:, 0, 0], rtol=1e-6)
    assert {g.name for g in row.gates} >= {"given_rotation", "given_direction", "given_scale", "speed"}


@pytest.mark.slow
@pytest.mark.thorough
def test_axes_of_another_convention_are_refused(files, tmp_path) -> None:
    """The same file with OpenGL axes: a plausible path, and every view of it is wrong."""
    written, truth, _ = files
    row = annotate(
        written, tmp_path, truth @ OPENGL, LIGHT, poses_metric=True, intrinsics_path=written.intrinsics_path
    )
    assert row.verdict == "rejected"
    assert "given_poses_disagree" in row.reasons
    assert row.camera_to_world is not None


def _scaled(intrinsics: np.ndarray, x: float, y: float) -> np.ndarray:
    return intrinsics * np.array([[x], [y], [1.0]])


def _focal_only(intrinsics: np.ndarray, factor: float) -> np.ndarray:
    out = intrinsics.copy()
    out[:, [0, 1], [0, 1]] *= factor
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "poses", "intrinsics", "reasons"),
    [
        pytest.param("intact", lambda t: t, lambda k: k, set(), marks=pytest.mark.thorough),
        (
            "world to camera",
            se3_inverse,
            lambda k: k,
            {"given_poses_disagree", "given_poses_inverted"},
        ),
        pytest.param(
            "y and z flipped on both sides",
            lambda t: OPENGL @ t @ OPENGL,
            lambda k: k,
            {"given_poses_disagree", "given_poses_opengl"},
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "rotation by columns",
            lambda t: np.concatenate([np.swapaxes(t[:, :3], 1, 2)[:, :3, :3], t[:, :3, 3:]], 2),
            lambda k: k,
            {"given_poses_disagree", "given_poses_rotation_misread"},
            marks=pytest.mark.thorough,
        ),
        ("matrix by columns", lambda t: np.swapaxes(t, 1, 2), lambda k: k, {"poses_unreadable"}),
        ("mirrored", lambda t: t @ np.diag([1.0, 1, -1, 1]), lambda k: k, {"poses_unreadable"}),
        pytest.param(
            "centimetres",
            lambda t: t * np.array([[1, 1, 1, 100.0]] * 3 + [[1] * 4]),
            lambda k: k,
            {"given_poses_disagree", "given_poses_wrong_unit"},
            marks=pytest.mark.thorough,
        ),
        (
            "normalised intrinsics",
            lambda t: t,
            lambda k: _scaled(k, 1 / 320, 1 / 192),
            {"intrinsics_of_another_size"},
        ),
        (
            "focal normalised, centre in pixels",
            lambda t: t,
            lambda k: _focal_only(k, 1 / 320),
            {"intrinsics_of_another_size"},
        ),
        ("of twice the size", lambda t: t, lambda k: _scaled(k, 2, 2), {"intrinsics_of_another_size"}),
        ("of half the size", lambda t: t, lambda k: _scaled(k, 0.5, 0.5), {"intrinsics_of_another_size"}),
        (
            "focal of another size, no poses",
            None,
            lambda k: _focal_only(k, 0.5),
            {"given_intrinsics_disagree"},
        ),
        pytest.param(
            "longer focal, no poses",
            None,
            lambda k: _focal_only(k, 1.5),
            {"given_intrinsics_disagree"},
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_wrong_files_through_the_whole_path(files, tmp_path, name, poses, intrinsics, reasons) -> None:
    written, truth, true_intrinsics = files
    k = intrinsics(true_intrinsics)[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    np.savetxt(tmp_path / "k.csv", k, delimiter=",", header="fx,fy,cx,cy", comments="")
    given: dict = {"intrinsics_path": tmp_path / "k.csv"}
    if poses is not None:
        # KITTI rows carry no last row that would give a transposed rotation away.
        rows = poses(truth)
        np.savetxt(tmp_path / "poses.txt", rows.reshape(len(truth), -1))
        given |= {"camera_to_world_path": tmp_path / "poses.txt", "poses_metric": True}
    row = annotate(written, tmp_path, None, config=LIGHT, **given)
    assert row.error is None, row.error
    assert row.verdict == ("rejected" if reasons else "accepted"), row.reason_details
    assert reasons <= set(row.reasons), row.reason_details
    assert row.is_metric == (not reasons and poses is not None)


def path_with_turns() -> np.ndarray:
    rng = np.random.default_rng(4)
    steps = se3_exp(np.c_[rng.normal([0.02, 0, 0.03], 0.01, (FRAMES, 3)), rng.normal(0, 0.02, (FRAMES, 3))])
    poses = [np.eye(4)]
    for step in steps[1:]:
        poses.append(poses[-1] @ step)
    return np.array(poses)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("intact", lambda t: se3_exp(np.array([1, 2, 3, 0.3, 0.2, 0.1])) @ t),  # another world frame is none
        ("opengl", lambda t: t @ OPENGL),
        ("both sides flipped", lambda t: OPENGL @ t @ OPENGL),
        ("world to camera", se3_inverse),
        ("rotation transposed", lambda t: np.concatenate([np.swapaxes(t[:, :3, :3], 1, 2), t[:, :3, 3:]], 2)),
        ("rows swapped", lambda t: t[:, [1, 0, 2, 3]]),
        ("centimetres", lambda t: np.concatenate([t[:, :3, :3], 100 * t[:, :3, 3:]], 2)),
        ("another clip", lambda t: path_with_turns()[::-1]),
        ("shifted by a quarter of the clip", lambda t: np.roll(t, FRAMES // 4, axis=0)),
        ("every frame is the next but one", lambda t: np.concatenate([t[::2], t[::2]])),
    ],
)
def test_each_wrong_convention_shows(name: str, wrong) -> None:
    truth = path_with_turns()
    given = wrong(truth)
    if given.shape[1] == 3:
        given = np.concatenate([given, np.tile([[[0, 0, 0, 1.0]]], (FRAMES, 1, 1))], 1)
    if name == "rows swapped":
        given[:, 2, :3] *= -1  # still a rotation
    check = compare_poses(truth, given, np.full(FRAMES, 0.001))
    fine = all(gate.passed for gate in judge_given(check, GatesConfig(), longest_gap_s=0.0))
    assert fine == (name == "intact"), check


def test_frames_without_a_given_pose_take_the_solved_motion() -> None:
    truth = path_with_turns()
    cameras = replace(solution(), camera_to_world=truth)
    known = np.delete(np.arange(FRAMES), np.s_[10:15])
    given = truth[known]
    given[:, :3, 3] *= 0.5
    kept, check = keep_given_poses(cameras, given, known.astype(float), unit_to_metres=None)
    np.testing.assert_allclose(kept.camera_to_world, truth, atol=1e-9)
    assert (kept.pose_source[10:15] == "solved").all()
    assert (np.delete(kept.pose_source, np.s_[10:15]) == "given").all()
    assert check.scale == pytest.approx(1)


def test_a_slow_clip_hides_no_wrong_axes() -> None:
    """Turns of two degrees: swapped axes stay below three degrees of difference, and still show."""
    truth = path_with_turns()
    angle = so3_log(truth[:, :3, :3]) * 0.15
    truth[:, :3, :3] = so3_exp(angle)
    wrong = truth.copy()
    wrong[:, :3, :3] = so3_exp(angle[:, [1, 0, 2]])
    check = compare_poses(truth, wrong, np.full(FRAMES, 0.001))
    assert check.rotation_rad < np.radians(3)
    gates = {g.name: g.passed for g in judge_given(check, GatesConfig(), longest_gap_s=0.0)}
    assert gates["given_rotation"]
    assert not gates["given_turn"]


def test_poses_between_the_frames_of_the_clip() -> None:
    """A pose for every third of 30 frames a second, a clip of 16: given poses hold where they are, motion between."""
    fine = np.arange(0, FRAMES - 1, 0.125)
    truth = interpolate_poses(np.arange(FRAMES, dtype=float), path_with_turns(), fine)
    position = fine[4::13]
    rng = np.random.default_rng(5)
    # The solved path drifts; the given one does not, and is in another world and unit.
    drift = se3_exp(np.cumsum(0.002 * rng.standard_normal((len(fine), 6)), 0) / 8)
    solved = (drift @ truth)[::8]
    given = se3_exp(np.array([1, 2, 3, 0.3, 0.2, 0.1])) @ truth[4::13]
    given[:, :3, 3] *= 0.5
    frames = len(solved)
    cameras = replace(
        solution(),
        camera_to_world=solved,
        pose_source=np.full(frames, "solved"),
        position_sigma=np.full(frames, 0.001),
    )
    kept, check = keep_given_poses(cameras, given, position, unit_to_metres=2.0)
    assert check.scale == pytest.approx(1, abs=0.02)
    on = np.isin(np.arange(frames), position)
    np.testing.assert_array_equal(kept.pose_source == "given", on)
    assert 0 < on.sum() < frames / 4
    error = np.linalg.norm(
        (se3_inverse(kept.camera_to_world) @ (se3_inverse(truth[:1]) @ truth[::8]))[:, :3, 3], axis=1
    )
    raw = np.linalg.norm((se3_inverse(solved) @ drift[:1] @ truth[::8])[:, :3, 3], axis=1)
    assert error.max() < 0.4 * raw.max()
    assert np.abs(np.linalg.det(kept.camera_to_world[:, :3, :3]) - 1).max() < 1e-12
    time_s = np.arange(frames) / 16
    assert longest_gap_s(position, time_s) == pytest.approx(1.625 / 16)
    assert longest_gap_s(position[4:], time_s) == pytest.approx((0.5 + 4 * 1.625) / 16)


def test_too_few_and_motionless_given_poses() -> None:
    cameras = replace(solution(), camera_to_world=path_with_turns())
    still = np.tile(np.eye(4), (FRAMES, 1, 1))
    with pytest.raises(ClipRejection, match="given_poses_too_few"):
        keep_given_poses(cameras, still[:2], np.array([0.0, 1.0]), unit_to_metres=1.0)
    with pytest.raises(
        ClipRejection, match=r"given_poses_degenerate: .*centres lie within 0 of their units.*nothing says"
    ):
        keep_given_poses(cameras, still, np.arange(FRAMES, dtype=float), unit_to_metres=None)
