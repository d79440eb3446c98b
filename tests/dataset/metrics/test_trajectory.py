"""Trajectory metrics equal evo's on real and random trajectories; focal errors and gauges on hand-made
cases."""

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.alignment import Alignment, umeyama
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.formats.trajectories import associate, read_kitti, read_tum
from theodolite.dataset.metrics import trajectory as metrics

from ...support import SHARED

TRAJECTORIES = SHARED / "trajectories"


def _random_pair(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.cumsum(rng.normal(size=(n, 6)) * 0.1, axis=0)
    noisy = truth + rng.normal(size=truth.shape) * 0.02
    world = cam.se3_exp(rng.normal(size=6))
    fit = Alignment(
        scale=1.35,
        rotation=world[:3, :3],
        translation=world[:3, 3],
        inlier=np.ones(1, bool),
        residual=np.zeros(1),
    )
    return fit.apply_to_poses(cam.se3_exp(noisy)), cam.se3_exp(truth)


def _real_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    if not TRAJECTORIES.is_dir():
        pytest.skip("real trajectories (../shared/data) are not here")
    if name == "kitti":
        estimate, truth = (
            read_kitti(TRAJECTORIES / "kitti/KITTI_00_ORB.txt"),
            read_kitti(TRAJECTORIES / "kitti/KITTI_00_gt.txt"),
        )
        return estimate.camera_to_world[:800], truth.camera_to_world[
            :800
        ]  # 0.6 of 3.7 km: time, not accuracy
    files = {
        "fr2": ("fr2_desk_ORB.txt", "fr2_desk_groundtruth.txt"),
        "fr2_mono": ("fr2_desk_ORB_kf_mono.txt", "fr2_desk_groundtruth.txt"),
        "fr1": ("freiburg1_xyz-rgbdslam_drift.txt", "freiburg1_xyz-groundtruth.txt"),
        "fr1_mono": ("freiburg1_xyz-ORB_kf_mono.txt", "freiburg1_xyz-groundtruth.txt"),
    }
    estimate, truth = (read_tum(TRAJECTORIES / "tum" / f) for f in files[name])
    assert estimate.time_s is not None
    assert truth.time_s is not None
    i, j = associate(estimate.time_s, truth.time_s)
    return estimate.camera_to_world[i], truth.camera_to_world[j]


def _evo(poses: np.ndarray):
    return pytest.importorskip("evo.core.trajectory").PosePath3D(poses_se3=list(poses))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "alignment"),
    [
        pytest.param(pair, alignment, marks=pytest.mark.thorough if alignment not in always else ())
        for pair, always in {
            **dict.fromkeys(("random0", "random1", "fr1_mono"), ("none", "se3", "sim3")),
            **dict.fromkeys(("fr2", "fr2_mono", "fr1", "kitti"), ("sim3",)),
        }.items()
        for alignment in ("none", "se3", "sim3")
    ],
)
def test_equal_to_evo(pair: str, alignment: metrics.AlignmentKind) -> None:
    evo_metrics = pytest.importorskip("evo.core.metrics")
    estimate, truth = _random_pair(int(pair[-1])) if pair.startswith("random") else _real_pair(pair)
    ours = metrics.trajectory_error(estimate, truth, alignment=alignment)
    theirs, reference = _evo(estimate), _evo(truth)
    if alignment != "none":
        _, _, scale = theirs.align(reference, correct_scale=alignment == "sim3")
        assert abs(scale - ours.scale) < 1e-9
    for relation, values, prefix in [
        (evo_metrics.PoseRelation.translation_part, ours.position_error_m, "ate"),
        (evo_metrics.PoseRelation.rotation_angle_rad, ours.rotation_error_rad, "rotation"),
    ]:
        ape = evo_metrics.APE(relation)
        ape.process_data((reference, theirs))
        stats = ape.get_all_statistics()
        unit = "m" if prefix == "ate" else "rad"
        # evo takes the angle through a log whose noise near zero is about 1e-8 rad; positions are exact.
        tolerance = 1e-9 if prefix == "ate" else 5e-8
        np.testing.assert_allclose(values, ape.error, atol=tolerance)
        for name in ("rmse", "mean", "max"):
            assert abs(getattr(ours, f"{prefix}_{name}_{unit}") - stats[name]) < 1e-9
    assert abs(ours.path_length_m - reference.path_length) < 1e-9 * reference.path_length
    for delta in (1, 5):
        for all_pairs in (False, True):
            rpe = metrics.relative_pose_error(
                estimate, truth, delta_frames=delta, all_pairs=all_pairs, scale=ours.scale
            )
            for relation, values in [
                (evo_metrics.PoseRelation.translation_part, rpe.translation_m),
                (evo_metrics.PoseRelation.rotation_angle_deg, rpe.rotation_deg),
            ]:
                other = evo_metrics.RPE(relation, delta, evo_metrics.Unit.frames, all_pairs=all_pairs)
                other.process_data((reference, theirs))
                np.testing.assert_allclose(
                    values, other.error, atol=1e-9 if "translation" in relation.name else 3e-6
                )


def test_perfect_metric_trajectory_needs_no_scale() -> None:
    _, truth = _random_pair(2)
    moved = cam.se3_exp(np.arange(6.0)) @ truth
    alignments: list[metrics.AlignmentKind] = ["first", "se3", "sim3"]
    for alignment in alignments:
        error = metrics.trajectory_error(moved, truth, alignment=alignment)
        assert error.ate_max_m < 1e-12
        assert error.rotation_max_rad < 1e-7  # angle near zero: square root of rounding
        assert abs(error.scale - 1) < 1e-12
    assert metrics.trajectory_error(moved, truth, alignment="none").ate_rmse_m > 1
    doubled = truth.copy()
    doubled[:, :3, 3] *= 2
    error = metrics.trajectory_error(doubled, truth, alignment="sim3")
    assert abs(error.scale - 0.5) < 1e-12
    assert metrics.trajectory_error(doubled, truth, alignment="se3").ate_percent_of_path > 5


@pytest.mark.parametrize(("alignment", "scale"), [("se3", 1.0), ("sim3", 1.7)])
def test_a_camera_beside_the_true_one_is_brought_to_its_place(
    alignment: Literal["se3", "sim3"], scale: float
) -> None:
    _, truth = _random_pair(3)
    beside = cam.se3_exp(np.array([0.05, -0.03, 0.04, 0.1, -0.02, 0.05]))
    world = cam.se3_exp(np.array([0.4, -0.8, 0.3, 2.0, -1.0, 0.5]))
    estimated = world @ truth @ cam.se3_inverse(beside)
    estimated[:, :3, 3] /= scale
    assert metrics.trajectory_error(estimated, truth, alignment=alignment).ate_rmse_m > 0.02
    moved, offset = metrics.as_truth_camera(estimated, truth, alignment=alignment)
    np.testing.assert_allclose(offset, beside, atol=1e-9)
    error = metrics.trajectory_error(moved, truth, alignment="se3")
    assert error.ate_rmse_m < 1e-9
    assert error.rotation_max_rad < 1e-6


def test_errors_that_no_offset_makes_stay() -> None:
    estimated, truth = _random_pair(4)
    # scipy's least squares over the same ten numbers as an outside oracle.
    moved, offset = metrics.as_truth_camera(estimated, truth, alignment="sim3")
    found = metrics.trajectory_error(moved, truth, alignment="se3")

    def left(x: np.ndarray) -> np.ndarray:
        place = np.exp(x[9]) * estimated[:, :3, 3] + estimated[:, :3, :3] @ x[6:9]
        return (place @ Rotation.from_rotvec(x[:3]).as_matrix().T + x[3:6] - truth[:, :3, 3]).ravel()

    start = umeyama(estimated[:, :3, 3], truth[:, :3, 3], with_scale=True)
    turn = Rotation.from_matrix(start.rotation).as_rotvec()
    best = least_squares(left, np.r_[turn, start.translation, 0, 0, 0, np.log(start.scale)], xtol=1e-12)
    np.testing.assert_allclose(offset[:3, 3], best.x[6:9], atol=1e-5)
    assert found.ate_rmse_m == pytest.approx(np.sqrt(2 * best.cost / len(truth)), rel=1e-6)
    assert 0 < found.ate_rmse_m < metrics.trajectory_error(estimated, truth, alignment="sim3").ate_rmse_m


def test_an_offset_that_orientations_do_not_tell_is_refused() -> None:
    _, truth = _random_pair(5)
    about_one_axis = truth.copy()
    about_one_axis[:, :3, :3] = so3_exp(np.linspace(0, 1, len(truth))[:, None] * np.array([0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="turns too little"):
        metrics.as_truth_camera(about_one_axis, truth, alignment="se3")


def test_rotation_error_removes_only_the_world_rotation() -> None:
    _, truth = _random_pair(4)
    still = truth.copy()
    still[:, :3, 3] = 0.0  # a tripod: positions determine no alignment
    turned = cam.se3_exp([0, 0, 0, 0.4, -0.2, 1.0]) @ still
    assert metrics.rotation_error(turned, still, gauge="mean").max() < 1e-7
    assert metrics.rotation_error(turned, still, gauge="first").max() < 1e-7
    np.testing.assert_allclose(
        metrics.rotation_error(turned, still, gauge="none"), np.linalg.norm([0.4, 0.2, 1])
    )
    turned[10, :3, :3] = turned[10, :3, :3] @ so3_exp([0.1, 0, 0])
    np.testing.assert_allclose(metrics.rotation_error(turned, still)[10], 0.1, atol=0.003)
    with pytest.raises(ValueError, match="coincide"):
        metrics.trajectory_error(turned, still, alignment="se3")


def test_focal_mape() -> None:
    assert metrics.focal_mape_percent([[101.0, 200]], [[100.0, 200]]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="positive"):
        metrics.focal_mape_percent([np.nan], [100.0])
    with pytest.raises(ValueError, match="same"):
        metrics.focal_mape_percent([1.0, 2.0], [100.0])


def test_refusals() -> None:
    estimate, truth = _random_pair(0)
    with pytest.raises(ValueError, match="frame by frame"):
        metrics.trajectory_error(estimate[:5], truth)
    estimate[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        metrics.trajectory_error(estimate, truth)
    with pytest.raises(ValueError, match="no pair"):
        metrics.relative_pose_error(truth[:3], truth[:3], delta_frames=3)


def _camera_control_by_hand(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """RotErr, TransErr, CamMC straight from their definitions, frame by frame, alignment through Horn's
    quaternion.

    Horn (1987) finds the rotation as an eigenvector: another route to the same least squares as Umeyama's
    SVD.
    """
    x, y = estimate[:, :3, 3], truth[:, :3, 3]
    dx, dy = x - x.mean(0), y - y.mean(0)
    s = dx.T @ dy
    n = np.array(
        [
            [s[0, 0] + s[1, 1] + s[2, 2], s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]],
            [s[1, 2] - s[2, 1], s[0, 0] - s[1, 1] - s[2, 2], s[0, 1] + s[1, 0], s[2, 0] + s[0, 2]],
            [s[2, 0] - s[0, 2], s[0, 1] + s[1, 0], -s[0, 0] + s[1, 1] - s[2, 2], s[1, 2] + s[2, 1]],
            [s[0, 1] - s[1, 0], s[2, 0] + s[0, 2], s[1, 2] + s[2, 1], -s[0, 0] - s[1, 1] + s[2, 2]],
        ]
    )
    w, i, j, k = np.linalg.eigh(n)[1][:, -1]
    rotation = Rotation.from_quat([i, j, k, w]).as_matrix()
    scale = sum(float(b @ rotation @ a) for a, b in zip(dx, dy, strict=True)) / float((dx**2).sum())
    rot = trans = mc = 0.0
    for e, t in zip(estimate, truth, strict=True):
        r = rotation @ e[:3, :3]
        c = scale * rotation @ (e[:3, 3] - x.mean(0)) + y.mean(0)
        cosine = (np.trace(r.T @ t[:3, :3]) - 1) / 2
        rot += np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        trans += np.sqrt(((c - t[:3, 3]) ** 2).sum())
        mc += np.sqrt(((r - t[:3, :3]) ** 2).sum() + ((c - t[:3, 3]) ** 2).sum())
    return rot / len(truth), trans / len(truth), mc / len(truth)


@pytest.mark.parametrize("pair", ["random0", "random1", "fr1", "fr2_mono"])
def test_camera_control_errors_match_their_definitions(pair: str) -> None:
    estimate, truth = _random_pair(int(pair[-1])) if pair.startswith("random") else _real_pair(pair)
    ours = metrics.camera_control_error(estimate, truth)
    np.testing.assert_allclose(
        [ours.rot_err_deg, ours.trans_err, ours.cam_mc],
        _camera_control_by_hand(estimate, truth),
        rtol=1e-6,
        atol=1e-9,
    )


def _bench_by_hand(estimate: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, float]:
    """The benchmark's relative variants written out with loops over frames, in world-to-camera terms."""
    e = [torch.linalg.inv(torch.linalg.inv(estimate[0]) @ m) for m in estimate]
    t = [torch.linalg.inv(torch.linalg.inv(truth[0]) @ m) for m in truth]
    mean = sum(
        (b[:3, :3].T @ a[:3, :3] for a, b in zip(e, t, strict=True)), torch.zeros(3, 3).double()
    ) / len(e)
    u, _, v = torch.svd(mean)
    a = torch.stack([m[:3, :3].T @ m[:3, 3] for m in e])
    b = torch.stack([m[:3, :3].T @ n[:3, 3] for m, n in zip(e, t, strict=True)])
    scale = ((a - a.mean(0)) * (b - b.mean(0))).sum() / ((a - a.mean(0)) ** 2).sum()
    shift = b.mean(0) - scale * a.mean(0)
    rot, trans, mc = [], [], []
    for m, n in zip(e, t, strict=True):
        aligned = torch.eye(4).double()
        aligned[:3, :3] = m[:3, :3] @ (v @ u.T)
        aligned[:3, 3] = m[:3, :3] @ shift + scale * m[:3, 3]
        c2w, want = torch.linalg.inv(aligned), torch.linalg.inv(n)
        rot.append(Rotation.from_matrix((want[:3, :3].T @ c2w[:3, :3]).numpy()).magnitude())
        trans.append((c2w - want)[:3, 3].norm().item())
        mc.append((c2w - want)[:3].norm().item())
    return float(np.rad2deg(np.mean(rot))), float(np.mean(trans)), float(np.mean(mc))


@pytest.mark.parametrize("pair", ["random0", "random1", "fr1_mono"])
def test_bench_variants_match_a_second_computation(pair: str) -> None:
    estimate, truth = _random_pair(int(pair[-1])) if pair.startswith("random") else _real_pair(pair)
    ours = metrics.camera_control_error(estimate, truth, variant="bench")
    reference = _bench_by_hand(torch.tensor(estimate), torch.tensor(truth))
    np.testing.assert_allclose(
        [ours.rot_err_deg, ours.trans_err, ours.cam_mc], reference, rtol=1e-7, atol=1e-7
    )


def test_perfect_camera_control_is_zero_in_both_variants() -> None:
    _, truth = _random_pair(5)
    scaled = truth.copy()
    scaled[:, :3, 3] *= 3
    variants: list[Literal["paper", "bench"]] = ["paper", "bench"]
    for variant in variants:
        error = metrics.camera_control_error(scaled, truth, variant=variant)
        assert max(error.rot_err_deg, error.trans_err, error.cam_mc) < 1e-5
        assert abs(error.scale - 1 / 3) < 1e-9


def _by_the_development_kit(estimated: np.ndarray, truth: np.ndarray) -> tuple[float, float, int]:
    """KITTI's errors one stretch at a time: the formulas of evaluate_odometry.cpp with matrices and inverses."""
    far = [0.0]
    for a, b in itertools.pairwise(truth):
        far.append(far[-1] + float(np.linalg.norm(a[:3, 3] - b[:3, 3])))
    translation, rotation = [], []
    for first in range(0, len(truth), 10):
        for length in (100, 200, 300, 400, 500, 600, 700, 800):
            last = next((i for i in range(first, len(far)) if far[i] > far[first] + length), None)
            if last is None:
                continue
            true_motion = np.linalg.inv(truth[first]) @ truth[last]
            motion = np.linalg.inv(estimated[first]) @ estimated[last]
            error = np.linalg.inv(motion) @ true_motion
            angle = np.arccos(np.clip(0.5 * (np.trace(error[:3, :3]) - 1), -1, 1))
            translation.append(float(np.linalg.norm(error[:3, 3])) / length)
            rotation.append(float(angle) / length)
    kit = np.mean(translation) * 100, np.rad2deg(np.mean(rotation)) * 100
    return float(kit[0]), float(kit[1]), len(translation)


def drive(frames: int, *, seed: int = 0, drift: float = 0.0) -> np.ndarray:
    """(F, 4, 4) poses of a car that goes 1.1 m a frame and turns; `drift`: noise of each step."""
    rng = np.random.default_rng(seed)
    steps = np.zeros((frames - 1, 6))
    steps[:, 2] = 1.1
    steps[:, 4] = 0.02 * np.sin(np.arange(frames - 1) / 40)
    steps += drift * rng.normal(size=steps.shape)
    poses = [np.eye(4)]
    for step in cam.se3_exp(steps):
        poses.append(poses[-1] @ step)
    return np.stack(poses)


@pytest.mark.parametrize("frames", [300, 1000])
def test_stretches_are_measured_as_kitti_s_development_kit_does(frames: int) -> None:
    truth = drive(frames)
    steps = cam.se3_inverse(truth[:-1]) @ truth[1:]
    noise = cam.se3_exp(0.003 * np.random.default_rng(5).normal(size=(frames - 1, 6)))
    estimated = [truth[0]]
    for step in steps @ noise:
        estimated.append(estimated[-1] @ step)
    ours = metrics.segment_error(np.stack(estimated), truth)
    translation, rotation, number = _by_the_development_kit(np.stack(estimated), truth)
    assert ours.num_segments == number > 30
    assert ours.translation_percent == pytest.approx(translation, rel=1e-9)
    # arccos of the trace loses digits near no rotation, where ours does not
    assert ours.rotation_deg_per_100m == pytest.approx(rotation, rel=1e-6)


def test_stretches_of_a_scaled_path_are_off_by_the_scale() -> None:
    truth = drive(400)
    longer = truth.copy()
    longer[:, :3, 3] *= 1.05
    straight = metrics.segment_error(longer, truth)
    assert 3 < straight.translation_percent <= 5.1  # of the chord, which is shorter than the path
    assert straight.rotation_deg_per_100m == pytest.approx(0, abs=1e-9)
    assert metrics.segment_error(longer, truth, scale=1 / 1.05).translation_percent == pytest.approx(
        0, abs=1e-9
    )


def test_a_path_below_100_m_has_no_stretch() -> None:
    found = metrics.segment_error(drive(50), drive(50))
    assert found.num_segments == 0
    assert np.isnan(found.translation_percent)
