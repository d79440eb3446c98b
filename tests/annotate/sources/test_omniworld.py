"""OmniWorld-Game as its tree is read: splits, runs, frames by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.given import GivenDepth, GivenGeometrySource
from theodolite.annotate.rendered.files import write_png
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.sources.omniworld import runs
from theodolite.annotate.sources.releases import LAYOUTS
from theodolite.annotate.sources.tree import Release
from theodolite.annotate.sources.windows import Windows

from ...typed import known
from .trees import listed


def write_scene(root: Path, splits: list[list[int]], *, images: range, fps: float = 24.0) -> Path:
    uid = "b04f88d1f85a"
    scene = root / f"annotations/OmniWorld-Game/{uid}"
    (scene / "depth").mkdir(parents=True)
    colour = root / f"videos/OmniWorld-Game/{uid}/color"
    colour.mkdir(parents=True)
    (scene / "split_info.json").write_text(json.dumps({"split_num": len(splits), "split": splits}))
    (scene / "fps.txt").write_text(f"FPS: {fps} \nProcessing time: 3.1 s\n")
    for i in images:
        write_png(colour / f"{i:06d}.png", np.full((8, 16, 3), i % 251, np.uint8))
        write_png(scene / f"depth/{i:06d}.png", np.full((8, 16), 200 + i, np.uint16))
    return scene


def test_runs_go_across_adjacent_splits_only() -> None:
    assert runs([[0, 1, 2], [3, 4], [6, 7], [8, 9, 11], [20, 21], [22]]) == [(0, 4), (6, 7), (20, 22)]
    assert runs([[0, 1], "x", [], None, [2, 3], [True]]) == [(0, 3)]


def test_omniworld_windows_cross_splits_and_carry_depth_without_poses(tmp_path: Path) -> None:
    splits = [list(range(300)), list(range(300, 560)), list(range(600, 700))]
    scene = write_scene(tmp_path, splits, images=range(0))
    metadata = tmp_path / "metadata/omniworld_game_metadata.csv"
    metadata.parent.mkdir()
    metadata.write_text(
        "UID,Video Path,Annotation Path,Img Num,Split Num,FPS,Resolution,Test Split Index,Metric Scale\n"
        'b04f88d1f85a,v,a,700,3,24.0,1280×720,"0,1",2.5\n',
        encoding="utf-8",
    )
    clips = listed("omniworld-game-windows", tmp_path, windows=Windows(frames=161, stride=160))
    whole = [f"b04f88d1f85a_f000000_s{start:06d}" for start in (0, 160)]
    assert list(clips) == [*whole, "b04f88d1f85a_f000600_s000000"]  # the other run is too short, and says so
    clip = clips["b04f88d1f85a_f000000_s000160"]
    assert (clip.start_s, clip.given.cameras_path) == (10.0, None)
    assert clip.given.depth_pattern == str(scene / "depth/{frame:06d}.png")
    assert (clip.given.metres_per_unit, clip.given.depth_kind) == (2.5, "omniworld")
    (listing,) = known(LAYOUTS["omniworld-game-windows"].listed)(Release(root=tmp_path, source="t"))
    assert (listing.original_id, listing.fps) == ("b04f88d1f85a", 24.0)


def test_omniworld_frames_are_numbered_by_their_names(tmp_path: Path) -> None:
    """With a scene's first archive missing, image 30 is the first in the folder: time and depth are still its own."""
    splits = [list(range(80))]
    write_scene(tmp_path, splits, images=range(30, 80))
    (clip,) = listed("omniworld-game-windows", tmp_path).values()
    frames = open_clip(clip, DecodeConfig(max_side_px=None))
    np.testing.assert_allclose(frames.timing.time_s[0], 30 / 24)
    shown = next(iter(frames))
    assert shown[0, 0, 0] == 30
    depth = GivenGeometrySource().read(clip, frames).depth
    assert isinstance(depth, GivenDepth)
    assert depth.path(0).name == "000030.png"
    inside = listed("omniworld-game-windows", tmp_path, windows=Windows(frames=17, stride=16))
    second = open_clip(inside["b04f88d1f85a_f000000_s000032"], DecodeConfig(max_side_px=None))
    assert next(iter(second))[0, 0, 0] == 48  # 2 s
    with pytest.raises(ClipRejection, match="too_short"):  # 0 to 1 s is not there
        open_clip(inside["b04f88d1f85a_f000000_s000000"], DecodeConfig())


def test_an_omniworld_frame_that_is_missing_is_a_gap(tmp_path: Path) -> None:
    write_scene(tmp_path, [list(range(60))], images=range(60))
    for i in range(20, 26):
        (tmp_path / f"videos/OmniWorld-Game/b04f88d1f85a/color/{i:06d}.png").unlink()
    (clip,) = listed("omniworld-game-windows", tmp_path).values()
    with pytest.raises(ClipRejection, match="frame_gap"):
        open_clip(clip, DecodeConfig())


def test_omniworld_scenes_that_cannot_be_cut_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no frames that a row could be of; without a word a download with one file missing would be smaller."""
    whole = write_scene(tmp_path, [list(range(60))], images=range(0))
    for name, info, fps in (
        ("aaaaaaaaaaaa", {"split": [list(range(60))]}, None),
        ("cccccccccccc", {"split": {"0": list(range(60))}}, 24),
    ):
        scene = whole.parent / name
        scene.mkdir()
        (scene / "split_info.json").write_text(json.dumps(info))
        if fps:
            (scene / "fps.txt").write_text(f"FPS: {fps}\n")
    clips = listed("omniworld-game-windows", tmp_path, windows=Windows(frames=33))
    assert list(clips) == ["b04f88d1f85a_f000000_s000000"]
    assert "2 scenes make no sense, the first is aaaaaaaaaaaa: no table and no fps.txt" in caplog.text
