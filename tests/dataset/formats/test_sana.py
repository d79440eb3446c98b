"""SANA-WM's camera files and the layout of its benchmark."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.formats.sana import (
    BenchScene,
    read_sana_bench,
    read_sana_npy,
    read_sana_zip,
    write_sana_npy,
    write_sana_zip,
)
from theodolite.dataset.metrics.image import RevisitPair
from theodolite.dataset.rows import Row

from ...sana_bench import write_sana_bench
from .compared import assert_same_cameras


def test_sana_npy_pair(tmp_path: Path, clip: CameraClip) -> None:
    pose, intrinsics = write_sana_npy(clip, tmp_path)
    assert_same_cameras(read_sana_npy(pose, intrinsics, height=720, width=1280), clip)
    np.save(intrinsics, np.array([800.0, 810, 640, 360]))
    one = read_sana_npy(pose, intrinsics, height=720, width=1280)
    np.testing.assert_array_equal(one.focal_px, np.tile([800.0, 810], (33, 1)))
    np.save(intrinsics, np.zeros((5, 3, 3)))
    with pytest.raises(ValueError, match="expected"):
        read_sana_npy(pose, intrinsics, height=720, width=1280)
    wide = clip.focal_px.copy()
    wide[7] = 200
    with pytest.raises(ValueError, match=r"horizontal field of view is .* at frame 7"):
        write_sana_npy(replace(clip, focal_px=wide), tmp_path)


def test_sana_zip_shard(tmp_path: Path, clip: CameraClip, make_row: Callable[..., Row]) -> None:
    other = camera_clip(make_row(5, frames=7, captions=None))
    (tmp_path / "v.mp4").write_bytes(b"not really a video")
    written = write_sana_zip([clip, other], tmp_path / "s" / "x.zip", videos={clip.name: tmp_path / "v.mp4"})
    assert {p.name for p in written} >= {
        "x.zip",
        "x_camera.npz",
        "x_metric_scale_stats.json",
        "x_vmaf_motion.json",
    }
    with zipfile.ZipFile(tmp_path / "s" / "x.zip") as archive:
        assert sorted(archive.namelist()) == ["clip_0003.json", "clip_0003.mp4", "clip_0005.json"]
        assert json.loads(archive.read("clip_0003.json")) == {
            "prompt": "A room.",
            "width": 1280,
            "height": 720,
        }
    with np.load(tmp_path / "s" / "x_camera.npz") as camera:
        assert camera["ids"].tolist() == ["clip_0003", "clip_0005"]
        assert camera["ranges"].tolist() == [[0, 33], [33, 7]]
        assert camera["pose"].dtype == np.float32
        assert camera["pose"].shape == (40, 4, 4)
        assert camera["intrinsics"].shape == (40, 4)
    back = read_sana_zip(tmp_path / "s" / "x.zip")
    for a, b in zip(back, (clip, other), strict=True):
        assert_same_cameras(a, b)
    assert [b.caption for b in back] == ["A room.", None]
    scale = tmp_path / "s" / "x_metric_scale_stats.json"
    scale.write_text(json.dumps({"clip_0003": {"median": 2.0}}))
    np.testing.assert_allclose(
        read_sana_zip(tmp_path / "s" / "x.zip")[0].camera_to_world[:, :3, 3],
        2 * clip.camera_to_world[:, :3, 3],
        atol=1e-5,
    )
    first = (tmp_path / "s" / "x.zip").read_bytes()
    write_sana_zip([clip, other], tmp_path / "s" / "x.zip", videos={clip.name: tmp_path / "v.mp4"})
    assert (tmp_path / "s" / "x.zip").read_bytes() == first


def _scene(row: Row, name: str) -> BenchScene:
    import cv2

    png = cv2.imencode(".png", np.zeros((720, 1280, 3), np.uint8))[1].tobytes()
    pairs = (RevisitPair(frame_a=0, frame_b=900, quality_score=0.5),)
    return BenchScene(
        clip=replace(camera_clip(row), name=name), image_png=png, prompt=f"prompt of {name}", pairs=pairs
    )


def test_sana_bench_layout(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    names = [f"{c}_{i:03d}" for c in ("game_style", "indoor") for i in (1, 2)]
    scenes = {
        split: [_scene(make_row(i + 10 * s, frames=961), n) for i, n in enumerate(names)]
        for s, split in enumerate(("simple_60s", "hard_60s"))
    }
    root = write_sana_bench(tmp_path / "bench", scenes)
    assert (root / "scene_set/kept_scenes.txt").read_text().split() == names
    with np.load(root / "benchmark_v2_hard_60s/sanawm_export_v2/indoor_002.npz") as data:
        assert data["c2w"].shape == (961, 4, 4)
        assert data["intrinsics"].shape == (961, 3, 3)
        assert (int(data["fps"]), int(data["num_frames"])) == (16, 961)
    manifest = (root / "benchmark_v2_smooth_60s/sanawm_export_v2/run_manifest.jsonl").read_text().splitlines()
    assert json.loads(manifest[0]) == {
        "id": "game_style_001",
        "prompt": "prompt of game_style_001",
        "image_path": "images/game_style_001.png",
        "camera_path": "benchmark_v2_smooth_60s/sanawm_export_v2/game_style_001.npz",
    }
    for split, members in scenes.items():
        for a, b in zip(read_sana_bench(root, split=split), members, strict=True):
            assert_same_cameras(a.clip, b.clip)
            assert (a.prompt, a.pairs) == (b.prompt, b.pairs)
    trajectories = json.loads((root / "benchmark_v2_hard_60s/scene_trajectories_v2.json").read_text())
    pair = trajectories["scenes"][0]["evaluation_pairs"][0]
    assert set(pair) == {"frame_a", "frame_b", "distance_m", "angle_diff_deg", "quality_score"}
    with pytest.raises(ValueError, match="33 frames, expected 961"):
        write_sana_bench(tmp_path / "x", {"hard_60s": [_scene(make_row(0), "indoor_001")]})
    with pytest.raises(ValueError, match="other scene ids"):
        write_sana_bench(
            tmp_path / "x", {"simple_60s": scenes["simple_60s"], "hard_60s": scenes["hard_60s"][:1]}
        )
