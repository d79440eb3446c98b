"""The zips of SANA-WM's own clips and their cameras."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.sana import write_sana_zip

from ...typed import known
from .trees import WIDTH, cameras_of, listed, poses, video


def write_sana(
    root: Path, key: str = "00100100001_0008250_0010050_s000000", *, frames: int = 33
) -> CameraClip:
    clip = CameraClip(
        name=key,
        camera_to_world=poses(frames),
        focal_px=np.tile([1500.0, 1500.0], (frames, 1)),
        principal_point_px=np.tile([960.0, 540.0], (frames, 1)),
        height=1080,
        width=1920,
    )
    other = CameraClip(**{**clip.__dict__, "name": "other", "camera_to_world": poses(frames)[::-1]})
    write_sana_zip([other, clip], root / "sekai_00000000.zip")
    folder = root / "sekai_00000000"
    folder.mkdir(exist_ok=True)
    (folder / f"{key}.json").write_text(json.dumps({"prompt": "p", "width": 1920, "height": 1080}))
    video(folder / f"{key}.mp4", frames=frames, fps=16.0)  # smaller than the capture
    (root / "sekai_00000000_metric_scale_stats.json").write_text(json.dumps({key: {"median": 3.5}}))
    return clip


def test_sana_zips_have_the_cameras_of_their_key_in_pixels_of_the_capture(tmp_path: Path) -> None:
    truth = write_sana(tmp_path)
    (clip,) = listed("sana-wm", tmp_path).values()
    assert clip.given.metres_per_unit == 3.5
    given = cameras_of(clip)
    np.testing.assert_allclose(known(given.camera_to_world), truth.camera_to_world, atol=1e-5)
    np.testing.assert_allclose(known(given.focal_px), 1500.0 * WIDTH / 1920, rtol=1e-6)


@pytest.mark.parametrize("scale", [{}, {"median": float("nan")}, {"median": 0.0}, {"median": None}])
def test_a_sana_clip_without_a_scale_has_no_metres(tmp_path: Path, scale: dict) -> None:
    truth = write_sana(tmp_path)
    (tmp_path / "sekai_00000000_metric_scale_stats.json").write_text(json.dumps({truth.name: scale}))
    (clip,) = listed("sana-wm", tmp_path).values()
    assert clip.given.metres_per_unit is None


def test_a_sana_clip_without_a_camera_is_no_identity(tmp_path: Path) -> None:
    write_sana(tmp_path)
    video(tmp_path / "sekai_00000000/unknown.mp4", frames=33, fps=16.0)
    clip = listed("sana-wm", tmp_path)["unknown"]
    with pytest.raises(ClipRejection, match=r"cameras_unreadable.*holds no camera of clip 'unknown'"):
        cameras_of(clip)


def test_a_damaged_sidecar_stops_no_listing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = write_sana(tmp_path / "a")
    write_sana(tmp_path / "b", "other_key")
    (tmp_path / "a/sekai_00000000_metric_scale_stats.json").write_text("{")
    clips = listed("sana-wm", tmp_path)
    assert {key: clip.given.metres_per_unit for key, clip in clips.items()} == {
        truth.name: None,
        "other_key": 3.5,
    }
    assert "its clips have no metres by their source" in caplog.text


def test_sana_ids_may_be_bytes(tmp_path: Path) -> None:
    truth = write_sana(tmp_path)
    path = tmp_path / "sekai_00000000_camera.npz"
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **content | {"ids": content["ids"].astype("S")})
    (clip,) = listed("sana-wm", tmp_path).values()
    np.testing.assert_allclose(known(cameras_of(clip).camera_to_world), truth.camera_to_world, atol=1e-5)
