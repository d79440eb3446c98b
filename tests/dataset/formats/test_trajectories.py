"""Trajectory files: round trips, agreement with evo's readers, and errors that name file and line."""

from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.formats import trajectories as tj

from ...support import SHARED


@pytest.fixture
def poses() -> np.ndarray:
    return cam.se3_exp(np.random.default_rng(0).normal(size=(20, 6)))


def test_round_trips(tmp_path: Path, poses: np.ndarray) -> None:
    t = np.cumsum(np.full(20, 1 / 16)) + 1311868164.363181
    tj.write_tum(tmp_path / "t.txt", poses, t)
    back = tj.read_trajectory(tmp_path / "t.txt")
    np.testing.assert_allclose(back.camera_to_world, poses, atol=1e-14)
    np.testing.assert_array_equal(back.time_s, t)
    assert all(float(line.split()[-1]) >= 0 for line in (tmp_path / "t.txt").read_text().splitlines()[1:])
    tj.write_kitti(tmp_path / "k.txt", poses, time_s=t, times_path=tmp_path / "times.txt")
    back = tj.read_kitti(tmp_path / "k.txt", times_path=tmp_path / "times.txt")
    np.testing.assert_allclose(back.camera_to_world, poses, atol=1e-14)
    np.testing.assert_array_equal(back.time_s, t)
    tj.write_matrices(tmp_path / "m.txt", poses)
    np.testing.assert_allclose(tj.read_trajectory(tmp_path / "m.txt").camera_to_world, poses, atol=1e-14)
    assert tj.read_trajectory(tmp_path / "k.txt").time_s is None


def test_evo_reads_what_we_write_and_we_read_the_same(tmp_path: Path, poses: np.ndarray) -> None:
    file_interface = pytest.importorskip("evo.tools.file_interface")
    t = np.arange(20) / 16
    tj.write_tum(tmp_path / "t.txt", poses, t)
    theirs = file_interface.read_tum_trajectory_file(str(tmp_path / "t.txt"))
    np.testing.assert_allclose(np.stack(theirs.poses_se3), poses, atol=1e-12)
    tj.write_kitti(tmp_path / "k.txt", poses)
    np.testing.assert_allclose(file_interface.read_kitti_poses_file(str(tmp_path / "k.txt")).poses_se3, poses)


@pytest.mark.parametrize(
    ("line", "separator", "point"),
    [("%", " ", "."), ("#", ";", "."), ("#", "; ", ","), ("%", "\t", ","), ("", ",", "."), ("", ", ", ".")],
)
def test_separators_and_decimal_commas(
    tmp_path: Path, poses: np.ndarray, line: str, separator: str, point: str
) -> None:
    """As spreadsheets and MATLAB write them, a whole number among them."""
    tj.write_tum(tmp_path / "t.txt", poses, np.arange(20) / 16)
    header, *rows = (tmp_path / "t.txt").read_text().splitlines()
    header = line + separator.join(header.lstrip("# ").split())
    rows = [separator.join(w.removesuffix(".0") for w in row.split()).replace(".", point) for row in rows]
    lost = separator.join([f"1{point}5", *7 * ["NaN"]])
    (tmp_path / "t.txt").write_text("\n".join([header, *rows]))
    back = tj.read_trajectory(tmp_path / "t.txt")
    np.testing.assert_allclose(back.camera_to_world, poses, atol=1e-14)
    np.testing.assert_array_equal(back.time_s, np.arange(20) / 16)
    (tmp_path / "t.txt").write_text("\n".join([header, *rows, lost]))
    back = tj.read_trajectory(tmp_path / "t.txt", lenient=True)
    assert (len(back), back.notes) == (21, ("t.txt: 1 of 21 rows hold no pose",))


@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
@pytest.mark.parametrize(
    "name", ["rgbd-office-a", "rgbd-redkitchen", "rgbd-tum-mini", "static-euroc", "kitti-straight"]
)
def test_two_files_of_one_recording_agree(name: str) -> None:
    tum = tj.read_trajectory(SHARED / name / "poses.tum")
    rows = tj.read_trajectory(SHARED / name / "poses_c2w.txt")
    np.testing.assert_allclose(
        tum.camera_to_world, rows.camera_to_world, atol=2e-6
    )  # files hold 6 to 9 digits
    assert cam.rigid_error(rows.camera_to_world).max() < 1e-13


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 1\n", r"bad.txt:2: 7 entries, expected 8 \(timestamp tx"),
        ("0 0 0 0 0 0 0 x\n", "bad.txt:1: not numbers"),
        ("0 0 0 nan 0 0 0 1\n", "bad.txt:1: NaN"),
        ("0 0 0 0 0 0 0 2\n", "pose 0 has a quaternion of length 2"),
        ("1 0 0 0 0 0 0 1\n0.5 0 0 0 0 0 0 1\n", "time runs backwards from pose 0"),
        ("# only a comment\n", "0 entries in the first row"),
        ("1 2 3\n", "3 entries in the first row; expected 8"),
        ("2 0 0 0 0 2 0 0 0 0 2 0\n", "rotation of pose 0 is 3 away from orthonormal"),
        ("1 0 0 0 0 1 0 0 0 0 -1 0\n", "a reflection"),
        ("1 0 0 0 0 1 0 0 0 0 1 0 5 0 0 1\n", "column-major"),
    ],
)
def test_errors_say_where_and_what(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        tj.read_trajectory(tmp_path / "bad.txt")


def test_other_errors(tmp_path: Path, poses: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no such file"):
        tj.read_trajectory(tmp_path / "absent.txt")
    (tmp_path / "video.mp4").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match="not a text file"):
        tj.read_trajectory(tmp_path / "video.mp4")
    tj.write_kitti(tmp_path / "k.txt", poses, time_s=np.arange(20), times_path=tmp_path / "times.txt")
    (tmp_path / "times.txt").write_text("0\n1\n")
    with pytest.raises(ValueError, match="2 times but 20 poses"):
        tj.read_kitti(tmp_path / "k.txt", times_path=tmp_path / "times.txt")
    with pytest.raises(ValueError, match="expected \\(20,\\)"):
        tj.write_tum(tmp_path / "t.txt", poses, np.arange(3))


def test_associate_uses_every_time_once() -> None:
    a, b = tj.associate([0.0, 0.1, 0.101, 0.5], [0.002, 0.1005, 0.3], max_difference_s=0.01)
    assert (a.tolist(), b.tolist()) == ([0, 1], [0, 1])
    with pytest.raises(ValueError, match="no times within"):
        tj.associate([0.0], [1.0])
