"""SpatialVID-HQ as its tree is read: windows, table, poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.sources.releases import LAYOUTS
from theodolite.annotate.sources.tree import Release
from theodolite.annotate.sources.windows import Windows
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation
from theodolite.dataset.cameras.transforms import se3_inverse
from theodolite.dataset.formats.shipped import read_shipped

from ...typed import known
from .trees import listed, poses, video


def test_spatialvid_has_one_window_a_video_without_any_table(tmp_path: Path) -> None:
    video(tmp_path / "videos/group_0001/long.mp4", frames=330)
    video(tmp_path / "videos/group_0001/short.mp4", frames=90)
    clips = listed("spatialvid-hq", tmp_path, windows=Windows(frames=161, most=1))
    assert list(clips) == ["long", "short"]
    assert len(open_clip(clips["long"], DecodeConfig())) == 161
    with pytest.raises(ClipRejection, match="too_short"):
        open_clip(clips["short"], DecodeConfig())


def test_spatialvid_lists_its_table_whose_columns_have_blanks(tmp_path: Path) -> None:
    table = tmp_path / "data/train/SpatialVID_HQ_metadata.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "id,group id,video path,num frames,fps,resolution\na,1,v,450,30.0,1280x720\nb,1,v,90,30.0,1280x720\n"
    )
    found = list(known(LAYOUTS["spatialvid-hq"].listed)(Release(root=tmp_path, source="t")))
    assert [(x.original_id, x.duration_s, x.fps) for x in found] == [("a", 15.0, 30.0), ("b", 3.0, 30.0)]


def test_spatialvid_poses_are_world_to_camera_with_the_scalar_last(tmp_path: Path) -> None:
    c2w = poses(3)
    w2c = se3_inverse(c2w)
    q = quaternion_wxyz_from_rotation(w2c[:, :3, :3])
    np.save(tmp_path / "poses.npy", np.concatenate([w2c[:, :3, 3], q[:, 1:], q[:, :1]], 1).astype(np.float32))
    np.save(tmp_path / "intrinsics.npy", np.tile([0.6, 1.07, 0.5, 0.5], (3, 1)))
    (tmp_path / "indexes.txt").write_text("# total 3 indexes\n0 0\n1 6\n2 13\n")
    found = read_shipped(tmp_path, "spatialvid")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-5)
    assert found.frame_number.tolist() == [0, 6, 13]  # as the file says, not every sixth
