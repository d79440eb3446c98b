"""`theodolite render` as users run it, and its clips through annotation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theodolite.annotate.sources.read import read_clips
from theodolite.dataset.media.read import count_video_frames
from theodolite.recipes.loader import load_recipe

from ..annotate.splats.room import write_room
from ..support import Done, run_here


@pytest.fixture(scope="module", autouse=True)
def _renderer() -> None:
    pytest.importorskip("open3d", exc_type=ImportError)  # there, and its libraries as well


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_room(tmp_path_factory.mktemp("scene"), 0.25)


def render(scene: Path, out: Path, *more: object) -> Done:
    return run_here(
        *("render", scene, "--out", out, "--renderer", "plain", "--device", "cpu", "--size", "64x48"),
        *("--frames", 6, *more),
    )


@pytest.mark.slow
def test_clips_with_exact_cameras(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = render(scene, out, "--path", "dolly", "--path", "orbit", "--depth", "--metres-per-unit", 2)
    assert said.returncode == 0, said
    clips = sorted(p.name for p in out.iterdir() if p.is_dir())
    assert clips == ["point_cloud_dolly_0000", "point_cloud_orbit_0000"]
    folder = out / clips[0]
    assert count_video_frames("x", folder / "video.mp4") == (6, 16.0)
    poses, lens = np.load(folder / "poses.npy"), np.load(folder / "intrinsics.npy")
    assert poses.shape == (6, 4, 4)
    assert lens[0].tolist() == [32, 32, 32, 24]
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["renderer"], meta["metres_per_unit"], meta["fixer"]) == ("plain", 2.0, None)
    before = (folder / "meta.json").stat().st_mtime_ns
    assert "was there" in render(scene, out, "--path", "dolly").stdout
    assert (folder / "meta.json").stat().st_mtime_ns == before
    # The source reads its own layout, and the index that of clips with depth.
    release = load_recipe("corpus/dl3dv-gs", [f"source.root={out}", "source.windows=null"])
    assert [clip.given.metres_per_unit for clip in read_clips(release.source)] == [2.0, 2.0]
    index = load_recipe("rgbd", [f"source.index={out / 'clips.yaml'}"])
    assert len(list(read_clips(index.source))) == 2


def test_what_cannot_be_rendered(scene: Path, tmp_path: Path) -> None:
    assert "odd" in render(scene, tmp_path / "o", "--size", "63x48").stderr.replace("must be even", "odd")
    assert "unknown" in render(scene, tmp_path / "o", "--path", "no-such").stderr.replace(
        "known are", "unknown"
    )
    assert "WIDTHxHEIGHT" in render(scene, tmp_path / "o", "--size", "big").stderr
    (tmp_path / "s.ply").write_bytes(scene.read_bytes())
    assert "--cameras" in render(tmp_path / "s.ply", tmp_path / "o").stderr
    said = run_here("render", scene, "--out", tmp_path / "o", "--device", "cpu")
    assert "--renderer plain" in said.stderr


@pytest.mark.slow
def test_a_fixer_of_ones_own(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module: Any = types.ModuleType("mends")
    module.dark = lambda frames: frames // 16
    monkeypatch.setitem(sys.modules, "mends", module)
    said = render(scene, tmp_path / "o", "--path", "dolly", "--fixer", "mends:dark")
    assert said.returncode == 1
    assert "of its pixels are black" in said.stdout
    assert not (tmp_path / "o/point_cloud_dolly_0000/meta.json").exists()
    module.half = lambda frames: frames[:, ::2]
    said = render(scene, tmp_path / "o", "--path", "dolly", "--fixer", "mends:half")
    assert "the fixer gave" in said.stderr
