"""Given cameras with a fault in them: found by what images and depth say, named rightly, measured on what the row
holds; true ones are left in peace. The clip is solved once; only the check runs for each fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theodolite.annotate.checks import posed
from theodolite.annotate.checks.given_poses import pose_noise, time_offset
from theodolite.annotate.checks.held_cameras import check_lens
from theodolite.annotate.checks.posed import Posed, keep_and_judge
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.given.cameras import GivenCameras
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import RenderedFiles, write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.keyframes import SolverInput
from theodolite.annotate.sfm.records import CameraSolution, KnownLens
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import TracksConfig
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import REASONS, judge_given
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.cameras.transforms import interpolate_poses, se3_exp, se3_inverse
from theodolite.dataset.rows import Row

from ..maps import Maps

WIDTH, HEIGHT, FRAMES, FPS = 320, 192, 32, 16.0
LIGHT: dict[str, Any] = {"num_flow_tracks": 120, "num_descriptors": 150, "max_loops_per_keyframe": 0}
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Shot:
    files: RenderedFiles
    truth: np.ndarray
    lens: KnownLens
    solved: CameraSolution


@pytest.fixture(scope="module")
def shot(tmp_path_factory) -> Shot:
    clip = render_clip(RenderConfig(width=WIDTH, height=HEIGHT, num_frames=FRAMES, seed=3, speed=1.5))
    frames = list(clip)
    measured = measure_images(
        iter([f.rgb for f in frames]), height=HEIGHT, width=WIDTH, config=TracksConfig(**LIGHT)
    )
    k = clip.intrinsics
    lens = KnownLens(focal_px=k[:, [0, 1], [0, 1]], principal_point_px=k[:, :2, 2])
    inputs = SolverInput(
        measured=measured,
        depth=Maps([f.depth_m for f in frames]),
        depth_sigma_log=0.02,
        tracks_config=TracksConfig(**LIGHT),
        config=BundleConfig(),
        lens=lens,
    )
    solved = solve_cameras(inputs, with_evidence=True)
    return Shot(write_clip(clip, tmp_path_factory.mktemp("posed")), clip.camera_to_world, lens, solved)


_judged: dict[bytes, tuple[Posed, set[str]]] = {}
"""By the given poses and their frames: several tests ask different things of the same path."""


def judged(shot: Shot, poses: np.ndarray, frames: np.ndarray | None = None) -> tuple[Posed, set[str]]:
    """The kept cameras, and the gates that failed."""
    position = np.arange(FRAMES, dtype=float) if frames is None else frames.astype(float)
    key = poses.tobytes() + position.tobytes()
    if key not in _judged:
        _judged[key] = _judge(shot, poses, position)
    return _judged[key]


def _judge(shot: Shot, poses: np.ndarray, position: np.ndarray) -> tuple[Posed, set[str]]:
    given = GivenCameras(
        camera_to_world=poses,
        position=position,
        metres_per_unit=1.0,
        focal_px=shot.lens.focal_px,
        principal_point_px=shot.lens.principal_point_px,
    )
    posed = keep_and_judge(
        shot.solved, given, time_s=np.arange(FRAMES) / FPS, scale_sigma_log=0.01, lens_given=True
    )
    gates = judge_given(
        posed.check,
        GatesConfig(),
        longest_gap_s=0.0,
        errors=posed.errors,
        lens=posed.lens,
        cameras=posed.cameras,
        long_side_px=WIDTH,
        frame_s=1 / FPS,
    )
    return posed, {g.name for g in gates if not g.passed}


def noisy(poses: np.ndarray, metres: float, degrees: float) -> np.ndarray:
    rng = np.random.default_rng(2)
    out = poses.copy()
    out[:, :3, 3] += metres * rng.standard_normal((len(poses), 3))
    out[:, :3, :3] = poses[:, :3, :3] @ so3_exp(np.radians(degrees) * rng.standard_normal((len(poses), 3)))
    return out


def longer(poses: np.ndarray, factor: float) -> np.ndarray:
    out = poses.copy()
    out[:, :3, 3] *= factor
    return out


def late(poses: np.ndarray, frames: float) -> np.ndarray:
    at = np.arange(len(poses), dtype=float)
    return interpolate_poses(at, poses, np.clip(at - frames, 0, len(poses) - 1))


def one_wrong(poses: np.ndarray) -> np.ndarray:
    out = poses.copy()
    out[17] = out[17] @ se3_exp(np.array([0.1, 0.05, 0, 0, np.radians(3), 0]))
    return out


def two_gauges(poses: np.ndarray) -> np.ndarray:
    out = poses.copy()
    turn = se3_exp(np.array([0.1, 0.05, 0, 0, np.radians(3), 0]))
    out[16:] = poses[16] @ turn @ se3_inverse(poses[16]) @ out[16:]
    return out


def wandering(poses: np.ndarray) -> np.ndarray:
    """Up to 15 cm off, so slowly that neighbours agree with each other."""
    out, t = poses.copy(), np.linspace(0, 1, len(poses))
    out[:, :3, 3] += 0.15 * np.stack([np.sin(5 * t), np.cos(4 * t) - 1, t * t], 1)
    return out


def held(poses: np.ndarray) -> np.ndarray:
    return poses[np.arange(len(poses)) // 3 * 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda p: p, set()),
        pytest.param(lambda p: noisy(p, 0.003, 0.1), set(), marks=pytest.mark.thorough),
        pytest.param(lambda p: noisy(p, 0.005, 0.1), set(), marks=pytest.mark.thorough),
        (lambda p: longer(p, 1.2), {"given_scale"}),
        pytest.param(lambda p: longer(p, 0.9), {"given_scale"}, marks=pytest.mark.thorough),
        pytest.param(
            lambda p: noisy(p, 0.12, 0.0),
            {"given_noise", "given_noise_m", "given_reprojection"},
            marks=pytest.mark.thorough,
        ),
        (lambda p: noisy(p, 0.05, 1.0), {"given_noise", "given_reprojection"}),
        (lambda p: late(p, 1), {"given_time_offset"}),
        pytest.param(lambda p: late(p, -2), {"given_time_offset"}, marks=pytest.mark.thorough),
        pytest.param(
            lambda p: late(p, 8), {"given_time_offset", "given_reprojection"}, marks=pytest.mark.thorough
        ),
        (one_wrong, {"given_worst"}),
        pytest.param(two_gauges, {"given_worst"}, marks=pytest.mark.thorough),
        (held, {"given_noise"}),
        (wandering, {"given_path"}),
        (lambda p: p[::-1].copy(), {"given_turn", "given_reprojection"}),
    ],
    ids=(
        *("true", "3mm", "5mm", "longer", "shorter", "12cm", "5cm-1deg"),
        *("late", "early", "half-a-second", "one", "gauges", "held", "wandering", "reversed"),
    ),
)
def test_faults_of_given_poses(shot: Shot, change: Change, failed: set[str]) -> None:
    posed, found = judged(shot, change(shot.truth))
    assert failed <= found, posed.errors
    assert bool(found) == bool(failed), (found, posed.errors, posed.lens)
    # Whatever is wrong with the poses, the intrinsics are not to blame.
    assert not any(REASONS[name] == "given_intrinsics_disagree" for name in found)


@pytest.mark.slow
def test_the_row_says_how_sure_it_is(shot: Shot, thorough: bool) -> None:
    errors = judged(shot, shot.truth)[0].errors
    assert errors.scale_ratio == pytest.approx(1, abs=0.015)
    assert 0 < errors.scale_sigma < 0.03
    assert abs(errors.time_offset_s) < 0.01
    assert errors.time_offset_sigma_s < 0.01
    assert errors.noise_m < 0.003
    assert judged(shot, longer(shot.truth, 1.2))[0].errors.scale_ratio == pytest.approx(1 / 1.2, abs=0.03)
    if thorough:
        found = judged(shot, longer(shot.truth, 0.9))[0].errors
        assert found.scale_ratio == pytest.approx(1 / 0.9, abs=0.04)
    for frames in (1.0, -2.0, 3.5) if thorough else (1.0,):
        found = judged(shot, late(shot.truth, frames))[0].errors
        assert found.time_offset_s == pytest.approx(frames / FPS, abs=0.01)
    # 4 cm along each axis are 6.9 cm in all.
    assert judged(shot, noisy(shot.truth, 0.04, 0))[0].errors.noise_m == pytest.approx(0.069, rel=0.35)


@pytest.mark.slow
def test_poses_that_fit_the_tracks_as_they_are_are_not_late(shot: Shot) -> None:
    """A turn at one rate, solved by tracks alone, agrees with true poses better 0.85 s later."""
    found, _ = judged(shot, shot.truth)
    errors = replace(found.errors, time_offset_s=0.85, time_offset_sigma_s=0.004, time_offset_gain=2.65)
    assert found.lens is not None
    for given_px, passes in ((found.lens.solved_px, True), (1.1 * found.lens.solved_px, False)):
        gates = judge_given(
            found.check,
            GatesConfig(),
            longest_gap_s=0.0,
            errors=errors,
            lens=replace(found.lens, given_px=given_px),
            cameras=found.cameras,
            long_side_px=WIDTH,
        )
        assert {g.name: g.passed for g in gates}["given_time_offset"] == passes


@pytest.mark.slow
def test_quality_is_measured_on_the_cameras_that_are_kept(shot: Shot) -> None:
    true = judged(shot, shot.truth)[0].cameras
    wrong = judged(shot, noisy(shot.truth, 0.05, 1.0))[0].cameras
    np.testing.assert_allclose(true.reprojection_px, shot.solved.reprojection_px, atol=0.6)
    # A degree is 4.6 px here, 5 cm at three metres as much.
    assert np.median(wrong.reprojection_px) > 10 * np.median(true.reprojection_px) > 0
    assert np.median(wrong.reprojection_px) > 3
    assert wrong.num_inliers.sum() < 0.2 * true.num_inliers.sum()
    np.testing.assert_array_equal(wrong.num_observations, true.num_observations)
    assert wrong.depth_log_residual > 5 * true.depth_log_residual
    assert np.median(wrong.position_sigma) > 0.03
    assert np.median(true.position_sigma) < 0.01
    assert np.median(wrong.rotation_sigma_rad) > np.radians(0.5)
    # A path that is a fifth too long: depth asks for a fifth more depth.
    long = judged(shot, longer(shot.truth, 1.2))[0].cameras
    best = long.scale_sweep[long.scale_sweep[:, 1].argmin(), 0]
    assert 1.1 <= best <= 1.3


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, pytest.param(4, marks=pytest.mark.thorough)])
def test_poses_at_a_lower_rate(shot: Shot, every: int) -> None:
    frames = np.arange(0, FRAMES, every)
    assert judged(shot, shot.truth[frames], frames)[1] == set()
    assert "given_noise" in judged(shot, noisy(shot.truth, 0.05, 0.5)[frames], frames)[1]
    assert judged(shot, noisy(shot.truth, 0.003, 0.1)[frames], frames)[1] == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "factor",
    [1.2, pytest.param(0.85, marks=pytest.mark.thorough), pytest.param(1.07, marks=pytest.mark.thorough)],
)
def test_the_lens_under_given_poses(shot: Shot, factor: float) -> None:
    """Whatever the bundle made of a wrong focal length: the given poses ask for the true one."""
    assert shot.solved.evidence is not None
    wrong = replace(shot.solved, focal_px=factor * shot.solved.focal_px)
    path = se3_inverse(shot.truth[:1]) @ shot.truth
    found = check_lens(shot.solved.evidence, path, wrong)
    assert found is not None
    assert np.exp(found.focal_log) == pytest.approx(1 / factor, rel=0.01)
    assert found.focal_sigma < 0.02
    assert found.given_px > 2 * found.sigma_px
    assert found.free_px < 0.3 * found.given_px


def test_noise_and_time_offset_of_even_motion() -> None:
    """A straight drive at one speed says nothing of time, and says so."""
    poses = np.tile(np.eye(4), (60, 1, 1))
    poses[:, 2, 3] = np.arange(60)
    time_s = np.arange(60) / 10
    picture = {"focal_px": 700.0, "depth": 20.0}
    _, sigma_s, gain = time_offset(poses, time_s, poses, time_s, **picture)
    assert not sigma_s < 0.1
    assert not gain > 1.5
    assert pose_noise(poses, longer(poses, 1.0), **picture)[:3] == pytest.approx((0, 0, 0), abs=1e-9)


# --- the whole path -------------------------------------------------------------------------------


def annotate(shot: Shot, folder: Path, poses: np.ndarray, factor: float = 1.0, **given: Any) -> Row:
    np.savetxt(folder / "poses.txt", poses.reshape(-1, 16))
    k = np.c_[factor * shot.lens.focal_px, shot.lens.principal_point_px]
    fields: dict[str, Any] = {"poses_metric": True} | given
    np.savetxt(folder / "k.csv", k, delimiter=",", header="fx,fy,cx,cy", comments="")
    clip = ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="video",
        media_path=shot.files.media_path,
        source_fps=FPS,
        data_licence="Apache-2.0",
        given=GivenGeometry(
            camera_to_world_path=folder / "poses.txt",
            intrinsics_path=folder / "k.csv",
            **fields,
        ),
    )
    config = AnnotateConfig.model_validate(
        {"tracks": LIGHT, "bundle": {"focal_model": "constant", "max_iterations": 8}}
    )
    row = annotate_clip(clip, config, mode="given_pose", recipe_hash="0" * 16)
    assert row.error is None, row.error
    return row


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.2, pytest.param(0.85, marks=pytest.mark.thorough)])
def test_wrong_intrinsics_are_named_as_such(shot: Shot, tmp_path: Path, factor: float) -> None:
    depth = {"depth_pattern": shot.files.depth_pattern, "depth_units_per_metre": 1000.0}
    row = annotate(shot, tmp_path, shot.truth, factor, **depth)
    assert row.verdict == "rejected"
    assert "given_intrinsics_disagree" in row.reasons
    assert "given_poses_disagree" not in row.reasons
    assert row.given_focal_ratio == pytest.approx(1 / factor, rel=0.02)


@pytest.mark.slow
def test_poses_and_intrinsics_without_depth(shot: Shot, tmp_path: Path, monkeypatch) -> None:
    """Checked by the tracks alone; the scale is the source's word, and the row says so."""
    solved: list[CameraSolution] = []

    def noted(found: CameraSolution, given: GivenCameras, **how: Any) -> Posed:
        solved.append(found)
        return keep_and_judge(found, given, **how)

    monkeypatch.setattr(posed, "keep_and_judge", noted)
    row = annotate(shot, tmp_path, shot.truth)
    # Tracks that drift alike bend the path by more than single measurements do: true poses are not to blame for it.
    assert np.median(solved[0].stated_sigmas()[0]) > 1.5 * np.median(solved[0].position_sigma)
    assert row.verdict == "accepted", row.reason_details
    np.testing.assert_allclose(row.camera_to_world, se3_inverse(shot.truth[:1]) @ shot.truth, atol=1e-5)
    assert (row.scale_model, row.metres_per_unit, row.metres_per_unit_frame) == ("declared", 1.0, None)
    assert (row.given_scale_ratio, row.given_scale_sigma, row.depth_residual_log_median) == (None,) * 3
    assert row.given_position_rms_px is not None
    assert row.given_position_rms_px < 0.5
    assert row.reprojection_rms_px is not None
    assert row.reprojection_rms_px < 1

    wrong = annotate(shot, tmp_path, noisy(shot.truth, 0.05, 1.0))
    assert wrong.verdict == "rejected"
    assert "given_poses_disagree" in wrong.reasons
    assert wrong.reprojection_rms_px is not None
    assert wrong.reprojection_rms_px > 3

    no_unit = annotate(shot, tmp_path, shot.truth, poses_metric=False)
    assert no_unit.reasons == ("no_metric_scale",)
