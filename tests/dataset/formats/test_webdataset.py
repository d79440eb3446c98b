"""WebDataset shards: round trip, damage, sizes, and the picture of every camera."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import theodolite.dataset
from av.container import InputContainer
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.formats.webdataset import read_webdataset, write_webdataset
from theodolite.dataset.rows import Row

from ...typed import known
from .compared import LEVEL_STEP, assert_same_cameras


def test_webdataset_round_trip(tmp_path: Path, clip: CameraClip, make_row: Callable[..., Row]) -> None:
    clips = [clip, *(camera_clip(make_row(i, frames=5, radial_k2=0.01)) for i in range(10, 14))]
    shards = write_webdataset(clips, tmp_path, clips_per_shard=2)
    assert [s.name for s in shards] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    back = [c for s in shards for c in read_webdataset(s)]
    for a, b in zip(back, clips, strict=True):
        assert a.name == b.name
        assert_same_cameras(a, b)
        assert (a.radial_k1, a.radial_k2) == (b.radial_k1, b.radial_k2)
        np.testing.assert_allclose(known(a.time_s), known(b.time_s))
    with tarfile.open(shards[0]) as tar:
        assert [m.name.split(".")[0] for m in tar] == [clip.name] * 3 + ["clip_0010"] * 3
    wds = pytest.importorskip("webdataset")
    samples = list(wds.WebDataset([str(s) for s in shards], shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [c.name for c in clips]
    np.testing.assert_allclose(samples[0]["pose.npy"], clip.camera_to_world, atol=1e-6)
    shards[0].write_bytes(shards[0].read_bytes()[:700])
    with pytest.raises(ValueError, match=r"lacks|not a readable tar"):
        list(read_webdataset(shards[0]))


def test_a_tar_cut_anywhere_is_no_shorter_dataset(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    """Cut between two members a tar reads without complaint, and the clips behind the cut are simply not there."""
    (shard,) = write_webdataset([camera_clip(make_row(i, frames=5)) for i in range(3)], tmp_path)
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        end = max(m.offset_data + m.size for m in tar)
    assert len(list(read_webdataset(shard))) == 3
    for length in range(0, end + 512, 256):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(shard))):
            list(read_webdataset(shard))


def test_webdataset_shards_are_flat_and_of_a_stated_size(
    tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    clips = [camera_clip(make_row(i, frames=200)) for i in range(7)]
    shards = write_webdataset(clips, tmp_path / "s", bytes_per_shard=60_000)
    assert [p.name for p in sorted((tmp_path / "s").iterdir())] == [s.name for s in shards]
    assert len(shards) > 2
    sizes = [s.stat().st_size for s in shards]
    assert max(sizes) <= 60_000 + 10_240  # a tar ends on a whole record of 10,240 bytes
    assert min(sizes[:-1]) > 30_000
    assert [c.name for s in shards for c in read_webdataset(s)] == [c.name for c in clips]
    alone = write_webdataset(clips[:2], tmp_path / "t", bytes_per_shard=1)  # one clip is never cut
    assert [[c.name for c in read_webdataset(s)] for s in alone] == [["clip_0000"], ["clip_0001"]]


def _levels(container: InputContainer) -> list[float]:
    frames = container.decode(container.streams.video[0])
    return [float(frame.to_ndarray(format="rgb24").mean()) for frame in frames]


def test_webdataset_carries_one_picture_per_camera(filmed: Path, tmp_path: Path) -> None:
    assert export_dataset(filmed, tmp_path / "cameras", format="webdataset").num_clips == 3
    assert (
        export_dataset(filmed, tmp_path / "wds", format="webdataset", media_root=filmed.parent).num_clips == 3
    )
    (shard,) = (tmp_path / "wds").rglob("*.tar")
    clips = {clip.name: clip for clip in read_webdataset(shard)}
    rows = {row.clip_id: row for row in theodolite.dataset.open(filmed).rows()}
    with tarfile.open(shard) as tar:
        for name, row in rows.items():
            content = tar.extractfile(f"{name}.mp4")
            assert content is not None
            with av.open(content, "r") as video:
                stream = video.streams.video[0]
                assert (stream.height, stream.width, float(stream.average_rate or 0)) == (48, 64, 16)
                np.testing.assert_allclose(_levels(video), LEVEL_STEP * row.frame_index, atol=2)
            clip = clips[name]
            assert clip.media == "videos/source.mkv"
            np.testing.assert_array_equal(clip.frame_index, row.frame_index)
            assert (clip.height, clip.width) == (48, 64)
            np.testing.assert_allclose(clip.focal_px, row.focal_px * [64 / 65, 48 / 49], rtol=1e-6)
    with tarfile.open(next((tmp_path / "cameras").rglob("*.tar"))) as tar:
        assert not [m.name for m in tar if m.name.endswith(".mp4")]
