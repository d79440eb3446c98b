"""Figures by protocol are those that evo gives as the sets' users call it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from theodolite.dataset.benchmarks.protocols import PROTOCOLS, SetName
from theodolite.dataset.benchmarks.score import score_poses
from theodolite.dataset.benchmarks.truth import Sequence, as_camera_0, kitti_projection, true_cameras
from theodolite.dataset.camera_files.record import ClipCameras
from theodolite.dataset.cameras.transforms import se3_exp, se3_inverse
from theodolite.dataset.formats.trajectories import read_tum, write_kitti, write_tum

from ...recipes.benchmarks.trees import KITTI_CALIB, START_S, cam_bytes

FRAMES = 80


def path_of(times: np.ndarray) -> np.ndarray:
    """(F, 4, 4) smooth poses at any times."""
    t = times[:, None]
    return se3_exp(
        np.concatenate([np.sin(t), 0.4 * t, np.cos(0.7 * t), 0.3 * np.sin(2 * t), 0.2 * t, 0.1 * t], axis=1)
    )


def estimate_of(truth: np.ndarray, *, scale: float, seed: int = 0) -> np.ndarray:
    """The truth in other axes and another unit, with noise."""
    rng = np.random.default_rng(seed)
    moved = se3_exp(rng.normal(size=6)) @ truth @ se3_exp(0.01 * rng.normal(size=(len(truth), 6)))
    moved[:, :3, 3] *= scale
    return moved


def as_row(poses: np.ndarray, fps: float) -> ClipCameras:
    """Cameras as a dataset's row has them: by source frame, with nominal times."""
    index = np.arange(len(poses))
    return ClipCameras(
        frame_index=index, camera_to_world=poses, time_s=index / fps, source_step=1.0, whole_source=True
    )


def evo_trajectory(poses: np.ndarray, times: np.ndarray):
    from evo.core.trajectory import PoseTrajectory3D

    return PoseTrajectory3D(poses_se3=list(poses), timestamps=times)


def evo_figures(estimated, truth, *, scale: bool) -> dict[str, float]:
    """ATE and RPE as MonST3R's and CUT3R's evaluation call evo."""
    from evo import main_ape, main_rpe
    from evo.core.metrics import PoseRelation, Unit

    common: dict[str, Any] = {"align": True, "correct_scale": scale}
    ate = main_ape.ape(truth, estimated, pose_relation=PoseRelation.translation_part, **common)
    pairs: dict[str, Any] = {"delta": 1, "delta_unit": Unit.frames, "rel_delta_tol": 0.01, "all_pairs": True}
    rpe = main_rpe.rpe(truth, estimated, pose_relation=PoseRelation.translation_part, **pairs, **common)
    turn = main_rpe.rpe(truth, estimated, pose_relation=PoseRelation.rotation_angle_deg, **pairs, **common)
    return {"ate": ate.stats["rmse"], "rpe": rpe.stats["rmse"], "rpe_deg": turn.stats["rmse"]}


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_tum_is_associated_and_scored_as_by_evo(tmp_path: Path, scale: float) -> None:
    from evo.core import sync
    from evo.tools import file_interface

    folder = tmp_path / "rgbd_dataset_freiburg2_desk"
    folder.mkdir()
    rng = np.random.default_rng(1)
    images = START_S + np.sort(np.arange(FRAMES) / 30 + rng.uniform(-0.002, 0.002, FRAMES))
    poses_at = START_S + np.arange(-0.2, images[-1] - START_S + 0.2, 0.01)
    write_tum(folder / "groundtruth.txt", path_of(poses_at - START_S), poses_at)
    (folder / "rgb.txt").write_text("".join(f"{t:.6f} rgb/{t:.6f}.png\n" for t in images))
    images = np.array([float(f"{t:.6f}") for t in images])
    estimated = estimate_of(path_of(images - START_S), scale=scale)
    truth = true_cameras(
        "tum", Sequence(name="no_lens", media=folder / "rgb", poses=folder / "groundtruth.txt")
    )
    values = score_poses("x", as_row(estimated, 30.0), truth, PROTOCOLS["tum"]).values
    theirs = file_interface.read_tum_trajectory_file(str(folder / "groundtruth.txt"))
    pair = sync.associate_trajectories(theirs, evo_trajectory(estimated, images), max_diff=0.02)
    rigid, similar = (evo_figures(pair[1], pair[0], scale=s) for s in (False, True))
    assert values["ate_se3_m"] == pytest.approx(rigid["ate"], rel=1e-6)
    assert values["ate_sim3_m"] == pytest.approx(similar["ate"], rel=1e-6)
    assert values["rpe_m"] == pytest.approx(rigid["rpe"], rel=1e-6)
    assert values["rpe_sim3_m"] == pytest.approx(similar["rpe"], rel=1e-6)
    assert values["rpe_deg"] == pytest.approx(rigid["rpe_deg"], rel=1e-6)
    assert values["scale"] == pytest.approx(1 / scale, rel=0.02)


def test_sintel_is_scored_as_monst3r_s_evaluation_does(tmp_path: Path) -> None:
    import cv2

    truth = path_of(np.arange(50) / 24)
    cameras, pictures = tmp_path / "camdata_left/alley_2", tmp_path / "final/alley_2"
    cameras.mkdir(parents=True)
    pictures.mkdir(parents=True)
    k = np.array([[300.0, 0, 160], [0, 310, 96], [0, 0, 1]])
    for i, pose in enumerate(truth):
        (cameras / f"frame_{i + 1:04d}.cam").write_bytes(cam_bytes(k, se3_inverse(pose)))
        cv2.imwrite(str(pictures / f"frame_{i + 1:04d}.png"), np.zeros((192, 320, 3), np.uint8))
    true = true_cameras("sintel", Sequence(name="alley_2", media=pictures, poses=cameras))
    assert true.focal_px is not None
    assert np.allclose(true.focal_px, [300, 310])
    estimated = estimate_of(truth, scale=0.3)
    times = np.arange(50.0)
    theirs = evo_figures(evo_trajectory(estimated, times), evo_trajectory(truth, times), scale=True)
    values = score_poses("alley_2", as_row(estimated, 24.0), true, PROTOCOLS["sintel"]).values
    assert values["ate_sim3_m"] == pytest.approx(theirs["ate"], rel=1e-6)
    assert values["rpe_sim3_m"] == pytest.approx(theirs["rpe"], rel=1e-6)
    assert values["rpe_deg"] == pytest.approx(theirs["rpe_deg"], rel=1e-6)
    (pictures / "frame_0050.png").unlink()
    with pytest.raises(ValueError, match=r"49 images, but .*alley_2 50 cameras"):
        true_cameras("sintel", Sequence(name="alley_2", media=pictures, poses=cameras))


def test_tum_dynamics_is_scored_row_by_row(tmp_path: Path) -> None:
    """As MonST3R's preparation of TUM leaves it: times of the poses are not quite those of the images, and unused."""
    import cv2

    folder = tmp_path / "rgbd_dataset_freiburg3_walking_xyz"
    (folder / "rgb_90").mkdir(parents=True)
    images = START_S + np.arange(30) / 10
    for time in images:
        cv2.imwrite(str(folder / f"rgb_90/{time:.6f}.png"), np.zeros((12, 16, 3), np.uint8))
    truth = path_of(images - START_S)
    write_tum(folder / "groundtruth_90.txt", truth, images + 0.004)
    sequence = Sequence(name=folder.name, media=folder / "rgb_90", poses=folder / "groundtruth_90.txt")
    estimated = estimate_of(truth, scale=0.7)
    values = score_poses("x", as_row(estimated, 10.0), true_cameras("tum", sequence), PROTOCOLS["tum"]).values
    theirs = evo_figures(evo_trajectory(estimated, images), evo_trajectory(truth, images), scale=True)
    assert values["ate_sim3_m"] == pytest.approx(theirs["ate"], rel=1e-6)
    assert values["rpe_sim3_m"] == pytest.approx(theirs["rpe"], rel=1e-6)
    assert values["rpe_deg"] == pytest.approx(theirs["rpe_deg"], rel=1e-6)
    (folder / f"rgb_90/{images[3]:.6f}.png").unlink()
    with pytest.raises(ValueError, match=r"rgb_90 holds 29 images, but .*groundtruth_90\.txt 30 poses"):
        true_cameras("tum", sequence)


def test_eth3d_is_compared_with_the_truth_between_its_poses(tmp_path: Path) -> None:
    """Its program interpolates the truth at the images' times: poses that are right have no error, however far from the
    nearest true one; by the nearest one they had up to half a step of the path."""
    import cv2

    folder = tmp_path / "cables_1"
    (folder / "rgb").mkdir(parents=True)
    images = 38577.0031 + np.arange(FRAMES) / 27.1
    poses_at = np.arange(38576.9, images[-1] + 0.1, 0.01)
    write_tum(folder / "groundtruth.txt", path_of(poses_at - 38577), poses_at)
    (folder / "rgb.txt").write_text("".join(f"{t:.6f} rgb/{t:.6f}.png\n" for t in images))
    (folder / "calibration.txt").write_text(
        "726.21081542969 726.21081542969 359.2048034668 202.47247314453\n"
    )
    cv2.imwrite(str(folder / f"rgb/{images[0]:.6f}.png"), np.zeros((458, 739, 3), np.uint8))
    truth = true_cameras(
        "eth3d-slam", Sequence(name="cables_1", media=folder / "rgb", poses=folder / "groundtruth.txt")
    )
    assert truth.focal_px is not None
    assert np.allclose(truth.focal_px[0], 726.21081542969)
    right = as_row(path_of(images - 38577), 27.1)
    values = score_poses("x", right, truth, PROTOCOLS["eth3d-slam"]).values
    assert values["ate_se3_m"] < 1e-4  # a hundredth of a second of a curve against its chord
    assert values["auc_se3_cm"] == pytest.approx(8.0, abs=0.01)
    nearest = score_poses("x", right, truth, PROTOCOLS["tum"]).values
    assert nearest["ate_se3_m"] > 20 * values["ate_se3_m"]
    off = as_row(estimate_of(path_of(images - 38577), scale=1.3), 27.1)
    values = score_poses("x", off, truth, PROTOCOLS["eth3d-slam"]).values
    assert values["auc_se3_cm"] == 0  # off by more than 8 cm without the scale
    assert values["auc_sim3_cm"] == pytest.approx(8 - 100 * values["ate_sim3_m"])


def test_kitti_s_poses_are_those_of_camera_0(tmp_path: Path) -> None:
    """Poses of the colour camera that are right have no error once moved; it sits 6 cm to the side."""
    import cv2

    truth = se3_exp(np.stack([[0, 0, 1.1 * i, 0, 0.004 * i, 0] for i in range(200)]).astype(float))
    media = tmp_path / "sequences/00/image_2"
    media.mkdir(parents=True)
    for i in range(len(truth)):
        cv2.imwrite(str(media / f"{i:06d}.png"), np.zeros((4, 12, 3), np.uint8))
    (media.parent / "calib.txt").write_text(KITTI_CALIB)
    write_kitti(tmp_path / "00.txt", truth)
    true = true_cameras("kitti", Sequence(name="00", media=media, poses=tmp_path / "00.txt"))
    assert true.focal_px is not None
    assert np.allclose(true.focal_px, 718.856)
    projection = kitti_projection(media)
    assert projection is not None
    # A point of camera 0 at (0, 0, 10) m is seen by camera 2 further to the right.
    seen = projection @ [0, 0, 10, 1]
    assert seen[0] / seen[2] > projection[0, 2]
    offset = np.eye(4)
    offset[0, 3] = 0.06  # camera 2 is to the left in its own pictures' coordinates: x0 + 0.06 = x2
    colour = truth @ se3_inverse(offset)
    values = score_poses("00", as_row(as_camera_0(colour, media), 10.0), true, PROTOCOLS["kitti"])
    assert values.values["t_rel_percent"] < 0.01
    assert values.counts["num_segments"] > 5
    (media / "000199.png").unlink()
    with pytest.raises(ValueError, match=r"199 images, but .*00.txt 200 poses"):
        true_cameras("kitti", Sequence(name="00", media=media, poses=tmp_path / "00.txt"))


@pytest.mark.parametrize("name", ["tum", "sintel", "kitti", "eth3d-slam"])
def test_the_truth_itself_has_no_error(name: SetName, tmp_path: Path) -> None:
    poses = path_of(np.arange(60) / 30)
    row = as_row(poses, 30.0)
    values = score_poses("x", row, row, PROTOCOLS[name]).values
    assert max(values[m] for m in ("ate_se3_m", "ate_sim3_m", "rpe_m", "rpe_deg")) < 1e-6
    assert set(values) <= {m.name for m in PROTOCOLS[name].metrics}
    written = tmp_path / "x.txt"
    write_tum(written, poses, np.arange(60) / 30)
    assert np.allclose(read_tum(written).camera_to_world, poses)


@pytest.mark.parametrize(
    ("name", "size", "focal"),
    [
        ("rgbd_dataset_freiburg1_xyz", (480, 640), (517.3, 516.5)),
        ("rgbd_dataset_freiburg3_walking_xyz", (480, 640), (535.4, 539.2)),
        ("rgbd_dataset_freiburg1_xyz", (240, 320), None),
        ("desk", (480, 640), None),
    ],
)
def test_tum_s_lenses_are_those_of_its_three_cameras(
    tmp_path: Path, name: str, size: tuple[int, int], focal: tuple[float, float] | None
) -> None:
    import cv2

    (tmp_path / "rgb").mkdir()
    cv2.imwrite(str(tmp_path / "rgb/1.000000.png"), np.zeros((*size, 3), np.uint8))
    write_tum(tmp_path / "groundtruth.txt", path_of(np.arange(3.0)), np.arange(3.0))
    truth = true_cameras(
        "tum", Sequence(name=name, media=tmp_path / "rgb", poses=tmp_path / "groundtruth.txt")
    )
    if focal is None:
        assert truth.focal_px is None
    else:
        assert truth.focal_px is not None
        assert np.allclose(truth.focal_px, focal)


@pytest.mark.parametrize("lens", ["0 1 2 3", "726 -726 359 202", "nan 1 2 3", "1 2 3"])
def test_calibrations_that_are_no_lens_are_named(tmp_path: Path, lens: str) -> None:
    images = tmp_path / "rgb"
    images.mkdir()
    cv2.imwrite(str(images / "1.0.png"), np.zeros((12, 16, 3), np.uint8))
    (tmp_path / "groundtruth.txt").write_text("1.0 0 0 0 0 0 0 1\n")
    (tmp_path / "calibration.txt").write_text(lens)
    sequence = Sequence(name="cables_1", media=images, poses=tmp_path / "groundtruth.txt")
    with pytest.raises(
        ValueError, match=r"calibration\.txt: (focal lengths .* must be positive|expected 4 numbers)"
    ):
        true_cameras("eth3d-slam", sequence)
