"""Sekai's walks and game as their tables and files are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.sources.releases import LAYOUTS, release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.formats.shipped import read_shipped

from ...typed import known
from .trees import listed, poses, touch, video


def write_walking_table(root: Path, *names: str, caption: str = "a walk") -> Path:
    path = root / "train/sekai-real-walking-hq.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f'{name},{name[:-4]}.npz,"{caption}",x,y,z,w,t\n' for name in names)
    path.write_text(
        "videoFile,cameraFile,caption,location,scene,crowdDensity,weather,timeOfDay\n" + rows,
        encoding="utf-8-sig",  # with a byte order mark
    )
    return path


def test_sekai_walks_are_those_of_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = "--Rwt95Vkw0_0003750_0005550.mp4", "a_b_c_d-e_f_0000000_0001800.mp4"
    write_walking_table(
        tmp_path, first, second, first, "broken.mp4", "gone0000000_0000000_0001800.mp4", caption="x" * 200_000
    )
    touch(tmp_path / f"sekai-real-walking/{first}")
    touch(tmp_path / f"sekai-real-walking/{second}")
    touch(tmp_path / "sekai-real-walking/elsewhere00_0000000_0001800.mp4")  # the mirror holds the full set
    clips = listed("sekai-walking", tmp_path)
    assert list(clips) == [first[:-4], second[:-4]]
    assert "1 names of videos make no sense, the first is 'broken.mp4'; they are left out" in caplog.text
    each = release_clips("sekai-walking", Release(root=tmp_path, source="test"))
    assert len(list(each)) == 2  # a row that is there twice is one clip
    assert clips[first[:-4]].original_id == first
    assert clips[first[:-4]].start_s is None  # cut already
    addresses = {
        x.original_id: x.url
        for x in known(LAYOUTS["sekai-walking"].listed)(Release(root=tmp_path, source="t"))
    }
    assert addresses[first] == "https://www.youtube.com/watch?v=--Rwt95Vkw0"
    assert addresses[second] == "https://www.youtube.com/watch?v=a_b_c_d-e_f"


def test_sekai_walks_inside_their_whole_video_count_at_30_fps(tmp_path: Path) -> None:
    """Whatever the video's rate: 60 fps here, numbers count 30 a second and the end is excluded."""
    write_walking_table(tmp_path, "abcdefghijk_0000030_0000090.mp4")
    video(tmp_path / "raw_video/abcdefghijk.mp4", frames=300, fps=60.0)
    (clip,) = listed("sekai-walking", tmp_path).values()
    assert (clip.start_s, clip.end_s) == (1.0, 3.0)
    timing = open_clip(clip, DecodeConfig()).timing
    assert timing.frame_index[0] == 60
    assert len(timing.frame_index) == 32
    assert timing.frame_index[-1] < 180


def test_sekai_walking_without_its_table(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"sekai-real-walking-hq.csv is not there.*source.metadata"):
        listed("sekai-walking", tmp_path)


def test_sekai_game_is_camera_to_world_whatever_its_first_rotation_looks_like(tmp_path: Path) -> None:
    c2w = np.array(poses(3))
    c2w[0] = np.diag([1.0, -1, -1, 1])
    path = tmp_path / "00100100001_0008250_0010050.npz"
    np.savez(
        path, extrinsic=c2w.astype(np.float32), intrinsic=np.array([[0.6, 0, 0.5], [0, 1.07, 0.5], [0, 0, 1]])
    )
    found = read_shipped(path, "sekai-game")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-5)
    assert found.image_size == (1, 1)
