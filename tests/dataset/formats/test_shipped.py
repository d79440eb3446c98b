"""Files of cameras as public sets ship them: which rows belong where, and files that are not what they claim to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.formats.shipped import read_shipped

from ...annotate.given.layouts import (
    Shot,
    unrendered_shot,
    write_dl3dv,
    write_sekai,
    write_spatialvid,
)


@pytest.fixture
def shot(tmp_path: Path) -> Shot:
    return unrendered_shot(tmp_path)


def _omniworld_file(folder: Path, **changes) -> Path:
    (folder / "camera").mkdir()
    (folder / "split_info.json").write_text(json.dumps(changes.pop("info", {"split": [[4, 5, 7]]})))
    content = {
        "focals": [900.0, 901, 902], "cx": 640, "cy": 360, "quats": [[1, 0, 0, 0]] * 3, "trans": [[0, 0, 0]] * 3
    }  # fmt: skip
    path = folder / "camera/split_0.json"
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))
    return path


def test_omniworld_rows_belong_to_the_listed_frames(tmp_path: Path) -> None:
    shipped = read_shipped(_omniworld_file(tmp_path, trans=[[0, 0, 0], [1, 0, 0], [0, 0, 2]]), "omniworld")
    np.testing.assert_array_equal(shipped.frame_number, [4, 5, 7])
    np.testing.assert_allclose(shipped.intrinsics[:, 0, 0], [900, 901, 902])
    np.testing.assert_allclose(shipped.camera_to_world[:, :3, 3], [[0, 0, 0], [-1, 0, 0], [0, 0, -2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quats": [[1, 0, 0, 0]] * 2}, "different lengths: 2 quats, 3 trans, 3 focals, 3 frames"),
        ({"quats": [[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0]]}, "not of length 1, the first is entry 1"),
        ({"trans": [[0, 0, 0], [0, 0, float("nan")], [0, 0, 0]]}, "not finite, the first at [1, 2]"),
        ({"focals": [900, -1, 900]}, "focal lengths must be positive, found -1"),
        ({"focals": "many"}, "focals: expected numbers"),
        ({"cx": None}, "'cx' is missing"),
        ({"info": {"split": []}}, "0 splits, but split_0.json is asked for"),
        ({"info": {"split": [[4, 4, 5]]}}, "must increase, but entry 0 is 4 and the next 4"),
        ({"info": [1]}, "expected an object"),
    ],
)
def test_damaged_omniworld_files(tmp_path: Path, changes: dict, message: str) -> None:
    path = _omniworld_file(tmp_path, **changes)
    with pytest.raises(ValueError, match="split") as caught:
        read_shipped(path, "omniworld")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: np.swapaxes(m, 1, 2), "no rigid transforms"),
        (lambda m: m * np.diag([1.0, 1, -1, 1]), "no rigid transforms"),
        (lambda m: m * 1.1, "no rigid transforms"),
        (lambda m: np.where(m == m[3, 0, 0], np.inf, m), "not finite"),
        (lambda m: m[:, :3], "shape (48, 3, 4), expected (N, 4, 4)"),
    ],
)
def test_matrices_that_are_no_poses(tmp_path: Path, shot: Shot, change, message: str) -> None:
    path = tmp_path / "clip.npz"
    arrays = dict(np.load(write_sekai(path, shot)))
    np.savez(path, extrinsic=change(arrays["extrinsic"].astype(np.float64)), intrinsic=arrays["intrinsic"])
    with pytest.raises(ValueError, match=r"clip\.npz") as caught:
        read_shipped(path, "sekai-game")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0\n2 4\n", "ordinals must count"),
        ("0 0\n1 0\n", "must increase"),
        ("0 0\n1 four\n", "indexes.txt:2: expected `ordinal frame`"),
        ("0 0\n1 4\n", "12 poses, 12 intrinsics, 2 indexes"),
        ("", "indexes.txt: frames has shape (0,)"),
    ],
)
def test_damaged_spatialvid_indexes(tmp_path: Path, shot: Shot, text: str, message: str) -> None:
    folder = write_spatialvid(tmp_path / "a", shot)
    (folder / "indexes.txt").write_text(text)
    with pytest.raises(ValueError, match="a") as caught:
        read_shipped(folder, "spatialvid")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k2": 0.4}, "undistort the images"),
        ({"camera_model": "OPENCV_FISHEYE"}, "not supported"),
        ({"applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]}, "a reflection"),
        ({"applied_transform": [1]}, "applied_transform must hold 3x4 numbers"),
        ({"frames": [{"file_path": "images/a.png"}]}, "has no transform_matrix"),
        ({"frames": [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}]}, "has no number"),
        ({"frames": [{"file_path": "1.png", "transform_matrix": (2 * np.eye(4)).tolist()}]}, "a scale of 2"),
    ],
)
def test_damaged_transforms(tmp_path: Path, shot: Shot, fields: dict, message: str) -> None:
    path = write_dl3dv(tmp_path, shot, **fields)
    with pytest.raises(ValueError, match=r"transforms\.json") as caught:
        read_shipped(path, "dl3dv")
    assert message in str(caught.value)
