"""Nerfstudio's transforms.json, ours and a real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.nerfstudio import read_nerfstudio, write_nerfstudio

from ...support import SHARED
from .compared import assert_same_cameras


def test_both_radial_terms_are_written(tmp_path: Path, clip: CameraClip) -> None:
    path = write_nerfstudio(replace(clip, radial_k1=-0.2, radial_k2=0.06), tmp_path)
    raw = json.loads(path.read_text())
    assert (raw["k1"], raw["k2"]) == (-0.2, 0.06)
    back = read_nerfstudio(path)
    assert (back.radial_k1, back.radial_k2) == (-0.2, 0.06)


def test_nerfstudio_round_trip_and_flip(tmp_path: Path, clip: CameraClip) -> None:
    path = write_nerfstudio(replace(clip, radial_k1=0.02), tmp_path)
    raw = json.loads(path.read_text())
    np.testing.assert_allclose(
        np.array(raw["frames"][4]["transform_matrix"])[:3, 1:3], -clip.camera_to_world[4, :3, 1:3]
    )
    back = read_nerfstudio(path)
    assert_same_cameras(back, clip, atol=1e-12)
    assert back.radial_k1 == 0.02
    small = read_nerfstudio(path, image_size=(180, 320))
    np.testing.assert_allclose(small.focal_px, clip.focal_px / 4)
    raw["applied_transform"] = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    path.write_text(json.dumps(raw))
    undone = read_nerfstudio(path, undo_applied_transform=True)
    swap = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(swap @ undone.camera_to_world, clip.camera_to_world, atol=1e-12)
    path.write_text(json.dumps({**raw, "applied_scale": 0.5}))
    doubled = read_nerfstudio(path, undo_applied_transform=True).camera_to_world[:, :3, 3]
    np.testing.assert_allclose(doubled, 2 * undone.camera_to_world[:, :3, 3], atol=1e-12)
    path.write_text(json.dumps({**raw, "applied_scale": 0}))
    with pytest.raises(ValueError, match="applied_scale 0 is no scale"):
        read_nerfstudio(path, undo_applied_transform=True)
    assert read_nerfstudio(path).image_names == tuple(f"frame_{i + 1:05d}.png" for i in range(33))
    raw["frames"][0]["transform_matrix"] = (2 * np.eye(4)).tolist()
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="carries a scale of 2"):
        read_nerfstudio(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_nerfstudio(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
def test_real_transforms_json() -> None:
    path = SHARED / "fox-transforms" / "transforms.json"
    with pytest.raises(ValueError, match="distortion beyond k1 and k2"):
        read_nerfstudio(path)
    clip = read_nerfstudio(path, on_distortion="drop", image_size=(480, 270))
    assert len(clip) == 67  # as listed; 50 of the images lie beside it
    np.testing.assert_allclose(clip.focal_px[0], [1375.52 / 4, 1374.49 / 4])
    assert cam.rigid_error(clip.camera_to_world).max() < 1e-12
    # All cameras look at the one object: their optical axes nearly meet (GL axes read as CV would look away
    # from it).
    centres, axes = clip.camera_to_world[:, :3, 3], clip.camera_to_world[:, :3, 2]
    projector = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    meeting = np.linalg.solve(projector.sum(0), np.einsum("fij,fj->i", projector, centres))
    assert (np.einsum("fi,fi->f", meeting - centres, axes) > 0).mean() > 0.9
