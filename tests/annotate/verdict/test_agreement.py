"""Agreement between estimates: what each column measures, on paths and focal lengths that differ by known amounts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from theodolite.annotate.geometry.base import AnchorFrame, SequenceGeometryResult
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.sfm.records import CameraSolution
from theodolite.annotate.verdict.agreement import Agreement, compare, confidence_of
from theodolite.dataset.cameras.rotations import so3_exp

FRAMES, FPS = 97, 16.0


class NoMaps:
    def __len__(self) -> int:
        return FRAMES

    def read(self, frame: int) -> None:
        return None


def path() -> np.ndarray:
    time = np.arange(FRAMES) / FPS
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, :3, 3] = np.stack([np.sin(time), 0.2 * time, 0.5 * time], 1)
    poses[:, :3, :3] = so3_exp(np.stack([0.05 * time, 0.1 * np.sin(time), 0 * time], 1))
    return poses


def solved(poses: np.ndarray, focal: np.ndarray) -> CameraSolution:
    ones = np.ones(FRAMES)
    return CameraSolution(
        camera_to_world=poses, focal_px=np.stack([focal, focal], 1), principal_point_px=np.zeros((FRAMES, 2)),
        pose_source=np.full(FRAMES, "solved"), focal_model="smooth", position_sigma=ones, rotation_sigma_rad=ones,
        log_focal_sigma=ones, reprojection_px=ones, num_observations=ones.astype(int), num_inliers=ones.astype(int),
        inlier_share=ones,
        depth_log_residual=0.0, parallax_rad=0.1, num_tracks=1, num_loops=0, focal_cost={},
        scale_sweep=np.zeros((1, 2)), radial_k1=0.0, median_depth=3.0,
    )  # fmt: skip


def sequence(poses: np.ndarray, focal: np.ndarray, keyframes: np.ndarray, **fields) -> SequenceGeometryResult:
    some = np.full((FRAMES, 4, 4), np.nan)
    some[keyframes] = poses[keyframes]
    rays = np.full((FRAMES, 2), np.nan)
    rays[keyframes] = focal[keyframes, None]
    return SequenceGeometryResult(
        depth=NoMaps(), depth_sigma_log=0.05, metres_per_unit=None, camera_to_world=some, focal_px=rays, **fields
    )  # fmt: skip


KEYFRAMES = np.arange(0, FRAMES, 4)


def scale_of(value: float):
    frame = np.arange(0, FRAMES, 16)
    return fit_scale(frame, np.full(len(frame), np.log(value)), num_frames=FRAMES)


def test_equal_estimates_agree_whatever_their_gauge():
    poses, focal = path(), np.geomspace(400, 800, FRAMES)
    gauge = np.eye(4)
    gauge[:3, :3], gauge[:3, 3] = so3_exp(np.array([1.0, -0.4, 0.3])), [3, 1, -2]
    theirs = gauge @ poses
    theirs[:, :3, 3] /= 2.5  # units of 2.5 m
    found = compare(
        sequence(theirs, focal, KEYFRAMES, own_metres_per_unit=2.0),
        scale_of(2.5),
        [
            AnchorFrame(frame=int(f), depth_m=np.ones((1, 1)), focal_px=float(focal[f]) * 1.1)
            for f in KEYFRAMES[::4]
        ],
        solved(poses, focal),
        fps=FPS,
    )
    assert found.rotation_rad == pytest.approx(0, abs=1e-7)
    assert found.direction_rad == pytest.approx(0, abs=1e-6)
    assert found.scale_log == pytest.approx(0, abs=1e-9)
    assert found.metric_log == pytest.approx(np.log(1.25))
    assert found.focal_rays_log == pytest.approx(0, abs=1e-12)
    assert found.focal_anchor_log == pytest.approx(np.log(1.1))


def test_a_focal_length_that_leant_on_rays_is_no_second_word_for_them():
    poses, focal = path(), np.full(FRAMES, 500.0)
    leant = replace(solved(poses, focal), focal_leant_log=0.04)
    anchor = [AnchorFrame(frame=0, depth_m=np.ones((1, 1)), focal_px=500.0)]
    found = compare(sequence(poses, focal, KEYFRAMES), scale_of(1.0), anchor, leant, fps=FPS)
    assert found.focal_rays_log == pytest.approx(0.04)
    assert found.focal_anchor_log == pytest.approx(0.04)


def test_each_difference_shows_in_its_column():
    poses, focal = path(), np.full(FRAMES, 500.0)
    theirs = poses.copy()
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(FRAMES, 3))
    turn = 0.02 * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    theirs[:, :3, :3] = theirs[:, :3, :3] @ so3_exp(turn)
    theirs[:, :3, 3] *= 1.2
    # One keyframe in ten is wrong altogether: medians must not care.
    wrong = rng.choice(KEYFRAMES, len(KEYFRAMES) // 10, replace=False)
    theirs[wrong, :3, :3] = theirs[wrong, :3, :3] @ so3_exp(rng.normal(0, 0.5, (len(wrong), 3)))
    found = compare(
        sequence(theirs, 1.05 * focal, KEYFRAMES), scale_of(1.0), [], solved(poses, focal), fps=FPS
    )
    assert found.rotation_rad == pytest.approx(0.02, rel=0.15)
    assert 0.01 < found.direction_rad < 0.04
    assert found.scale_log == pytest.approx(np.log(1.2), rel=0.05)
    assert found.focal_rays_log == pytest.approx(np.log(1.05))
    columns = found.columns()
    assert columns["agreement_metric_log"] is None
    assert columns["agreement_focal_anchor_log"] is None


def test_depth_alone_is_no_second_opinion():
    """As depth shipped with a recording: no cameras of an estimator, nothing to compare."""
    poses, focal = path(), np.full(FRAMES, 500.0)
    shipped = SequenceGeometryResult(depth=NoMaps(), depth_sigma_log=0.02, metres_per_unit=1.0)
    columns = compare(shipped, scale_of(1.0), [], solved(poses, focal), fps=FPS).columns()
    assert set(columns.values()) == {None}


def test_a_camera_at_rest_has_no_direction():
    poses, focal = path(), np.full(FRAMES, 500.0)
    poses[:, :3, 3] *= 1e-4
    found = compare(sequence(poses, focal, KEYFRAMES), scale_of(1.0), [], solved(poses, focal), fps=FPS)
    assert np.isnan(found.direction_rad)
    assert found.rotation_rad < 1e-6


def agreement_with(**changed) -> Agreement:
    values = {"rotation_rad": np.radians(0.15), "focal_rays_log": 0.005, "focal_anchor_log": 0.005}
    return Agreement(**(values | changed))


def test_confidence_falls_with_every_disagreement():
    calm = confidence_of(agreement_with())
    assert calm is not None
    assert 0.8 < calm <= 1
    all_wrong = confidence_of(
        agreement_with(
            rotation_rad=np.radians(5),
            focal_rays_log=0.1,
            focal_anchor_log=-0.1,
        )
    )
    assert all_wrong is not None
    assert all_wrong < 0.1
    for name, value in (
        ("rotation_rad", np.radians(3)),
        ("focal_rays_log", -0.1),
        ("focal_anchor_log", 0.1),
    ):
        worse = confidence_of(agreement_with(**{name: value}))
        assert worse is not None
        assert worse < calm


def test_without_a_second_opinion_there_is_no_confidence():
    assert confidence_of(agreement_with(rotation_rad=math.nan)) is None
    assert confidence_of(agreement_with(focal_anchor_log=math.nan)) is None
