"""Clips rendered from Gaussian splats of DL3DV, with their exact poses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.dataset.formats.shipped import read_shipped

from ...typed import known
from .trees import SCENE, cameras_of, listed, poses, video


@pytest.mark.parametrize("lens", ["four", "rows", "matrix", "matrices"])
def test_rendered_clips_keep_their_exact_poses(tmp_path: Path, lens: str) -> None:
    folder = tmp_path / f"{SCENE[:8]}/spline_03"
    video(folder / "video.mp4", frames=33, fps=16.0)
    c2w = poses(33)
    k = np.array([[50.0, 0, 32], [0, 51.0, 18], [0, 0, 1]])
    four = np.array([50.0, 51.0, 32, 18])
    stored = {"four": four, "rows": np.tile(four, (33, 1)), "matrix": k, "matrices": np.tile(k, (33, 1, 1))}[
        lens
    ]
    np.save(folder / "poses.npy", c2w)
    np.save(folder / "intrinsics.npy", stored)
    (folder / "meta.json").write_text(json.dumps({"metres_per_unit": 2.5}))
    (clip,) = listed("dl3dv-gs", tmp_path).values()
    assert clip.clip_id == f"{SCENE[:8]}_spline_03"
    assert clip.given.metres_per_unit == 2.5
    given = cameras_of(clip)
    np.testing.assert_allclose(known(given.camera_to_world), c2w, atol=1e-9)
    np.testing.assert_allclose(known(given.focal_px), [[50.0, 51.0]] * 33)
    np.testing.assert_array_equal(given.position, np.arange(33))
    np.save(folder / "poses.npy", c2w[:-1])
    np.save(folder / "intrinsics.npy", four)
    with pytest.raises(ClipRejection, match="camera_count_mismatch"):
        cameras_of(clip)


def test_rendered_clips_of_another_scale_or_unit(tmp_path: Path) -> None:
    np.save(tmp_path / "poses.npy", poses(3) @ np.diag([2.0, 2, 2, 1]))
    np.save(tmp_path / "intrinsics.npy", np.array([50.0, 50, 32, 18]))
    with pytest.raises(ValueError, match="no rigid transforms"):
        read_shipped(tmp_path, "rendered")
    np.save(tmp_path / "poses.npy", poses(3))
    np.save(tmp_path / "intrinsics.npy", np.array([0.8, 1.4, 0.5, 0.5]))
    with pytest.raises(ValueError, match="no number of pixels"):
        read_shipped(tmp_path, "rendered")


def test_cameras_of_gaussian_splats_are_camera_to_world(tmp_path: Path) -> None:
    c2w = poses(4)
    entries = [
        {
            "id": i,
            "img_name": f"frame_{i + 1:05d}",
            "width": 960,
            "height": 540,
            "position": m[:3, 3].tolist(),
            "rotation": m[:3, :3].tolist(),
            "fy": 500.0,
            "fx": 490.0,
        }
        for i, m in enumerate(c2w)
    ]
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(entries[::-1]))
    found = read_shipped(path, "gaussian-splats")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)
    np.testing.assert_allclose(found.intrinsics[0], [[490, 0, 480], [0, 500, 270], [0, 0, 1]])
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected a list"):
        read_shipped(path, "gaussian-splats")
