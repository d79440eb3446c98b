"""MPI Sintel's files, written byte by byte as its description says, and damaged ones."""

import struct
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.cameras.transforms import se3_exp, se3_inverse
from theodolite.dataset.formats.sintel import is_cam_folder, read_cam, read_cam_folder, read_dpt

TAG = struct.pack("<f", 202021.25)
K = np.array([[1120.0, 0, 511.5], [0, 1121.0, 217.5], [0, 0, 1]])


def camera(world_to_camera: np.ndarray, intrinsics: np.ndarray = K) -> bytes:
    return TAG + struct.pack("<21d", *intrinsics.reshape(-1), *world_to_camera[:3].reshape(-1))


def test_tag_is_the_word_that_the_description_names() -> None:
    assert TAG == b"PIEH"


def test_cameras_of_a_sequence_are_read_by_number(tmp_path: Path) -> None:
    poses = se3_exp(np.random.default_rng(0).normal(size=(12, 6)))
    folder = tmp_path / "camdata_left/alley_2"
    folder.mkdir(parents=True)
    for i, pose in enumerate(poses):
        (folder / f"frame_{i + 1:04d}.cam").write_bytes(camera(se3_inverse(pose)))
    (folder / "notes.txt").write_text("not a camera")
    cameras = load_cameras(folder.parent)["alley_2"]
    assert cameras.frame_index.tolist() == list(range(1, 13))
    assert np.abs(cameras.camera_to_world - poses).max() < 1e-12
    intrinsics, world_to_camera = read_cam(folder / "frame_0003.cam")
    assert np.array_equal(intrinsics, K)
    assert np.abs(world_to_camera - se3_inverse(poses[2])).max() < 1e-12


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with nothing"),
        (b"\0" * 172, "begins with 00000000"),
        (camera(np.eye(4))[:-8], "164 bytes, a camera of MPI Sintel has 172"),
        (camera(2 * np.eye(4)), "no rotation and shift"),
        (camera(np.diag([-1.0, 1, 1, 1])), "no rotation and shift"),
        (camera(np.full((4, 4), np.nan)), "no rotation and shift"),
        (camera(np.eye(4), -K), "must be positive"),
    ],
)
def test_damaged_cameras_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "frame_0001.cam"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_cam(path)
    assert str(path) in str(caught.value)


def test_numbers_of_frames_that_none_can_have_are_no_cameras(tmp_path: Path) -> None:
    for name in ("frame_99999999999999999999.cam", "frame_٣.cam"):
        (tmp_path / name).write_bytes(camera(np.eye(4)))
    assert not is_cam_folder(tmp_path)
    with pytest.raises(ValueError, match="holds no camera of MPI Sintel"):
        read_cam_folder(tmp_path)


def test_depth_is_read_row_by_row(tmp_path: Path) -> None:
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "frame_0001.dpt"
    path.write_bytes(TAG + struct.pack("<2i", 4, 3) + struct.pack("<12f", *range(12)))
    assert np.array_equal(read_dpt(path), depth)
    for content, words in (
        (TAG + struct.pack("<2i", 4, 3) + b"\0" * 44, "56 bytes, a map of 4x3 has 60"),
        (TAG + struct.pack("<2i", 2**30, 2**30), "million pixels"),
        (TAG + struct.pack("<2i", -4, -3), "million pixels"),
        (TAG + b"\0", "ends within its header"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_dpt(path)
