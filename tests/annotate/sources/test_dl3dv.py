"""DL3DV as its tree is read: COLMAP caches, declared sizes, stills."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.sources.releases import LAYOUTS
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.cameras.transforms import opencv_to_opengl
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.colmap import write_colmap
from theodolite.dataset.formats.shipped import read_shipped

from ...typed import known
from .trees import HEIGHT, SCENE, TEN, WIDTH, listed, poses, touch


def write_colmap_scene(folder: Path, c2w: np.ndarray, *, names=None, size=(HEIGHT, WIDTH)) -> CameraClip:
    clip = CameraClip(
        name="scene",
        camera_to_world=c2w,
        focal_px=np.full((len(c2w), 2), 50.0) * size[1] / WIDTH,
        principal_point_px=np.tile([size[1] / 2, size[0] / 2], (len(c2w), 1)),
        height=size[0],
        width=size[1],
        image_names=tuple(names or (f"frame_{i + 1:05d}.png" for i in range(len(c2w)))),
    )
    write_colmap(clip, folder, binary=True)
    return clip


@pytest.mark.parametrize("nesting", ["", "colmap", f"{SCENE}"])
def test_colmap_cache_and_videos_lie_in_different_batches(tmp_path: Path, nesting: str) -> None:
    c2w = poses(12)
    write_colmap_scene(tmp_path / "1K" / SCENE / nesting, c2w)
    touch(tmp_path / f"3K/{SCENE}/video.mp4")
    touch(tmp_path / f"problem/{SCENE}/images_4/frame_00001.png")
    touch(tmp_path / f"2K/{'0' * 63}b/video.mp4")  # a scene that COLMAP has nothing of
    (clip,) = listed("dl3dv-colmap", tmp_path).values()
    assert clip.media == f"3K/{SCENE}/video.mp4"
    assert clip.given.stills_path == tmp_path / f"problem/{SCENE}/images_4"
    found = read_shipped(known(clip.given.cameras_path), "colmap")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)  # world-to-camera, turned round
    assert found.numbering == "stills"
    assert found.frame_number.tolist() == list(range(1, 13))


def test_colmap_stills_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Names sort as text in a model: frame_10 comes before frame_9."""
    c2w = poses(4)
    write_colmap_scene(tmp_path, c2w, names=["frame_8.png", "frame_9.png", "frame_10.png", "frame_11.png"])
    found = read_shipped(tmp_path, "colmap")
    assert found.frame_number.tolist() == [8, 9, 10, 11]
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)


def test_dl3dv_intrinsics_are_for_the_declared_size_and_axes_are_opengl(tmp_path: Path) -> None:
    c2w = poses(5)
    content = {
        "w": 3840,
        "h": 2160,
        "fl_x": 1700.0,
        "fl_y": 1702.0,
        "cx": 1920,
        "cy": 1080,
        "camera_model": "OPENCV",
        "frames": [
            {"file_path": f"images/frame_{i + 1:05d}.png", "transform_matrix": opencv_to_opengl(m).tolist()}
            for i, m in reversed(list(enumerate(c2w)))  # the order in the file means nothing
        ],
        "applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    }
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(content))
    found = read_shipped(path, "dl3dv")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)
    assert found.image_size == (2160, 3840)  # not the 960x540 of the images beside it


def test_dl3dv_windows_of_ten_seconds_need_no_still(tmp_path: Path) -> None:
    touch(tmp_path / f"1K/{SCENE}/transforms.json")
    touch(tmp_path / f"1K/{SCENE}/video.mp4")
    index = tmp_path / "DL3DV-valid.csv"
    index.write_text(
        f"hash,sensibility label,batch,duration\n{SCENE},0,problem,35.5\n{'0' * 63}b,0,1K,\n{'0' * 63}c,0,1K,0.12\n"
    )
    clips = listed("dl3dv", tmp_path, windows=TEN)
    assert list(clips) == [f"{SCENE}_s{start:06d}" for start in (0, 161, 322)]
    assert {clip.media for clip in clips.values()} == {f"1K/{SCENE}/video.mp4"}
    found = list(known(LAYOUTS["dl3dv"].listed)(Release(root=tmp_path, source="t")))
    assert [x.duration_s for x in found] == [35.5, 0.0, 0.12]  # an empty duration holds no window
