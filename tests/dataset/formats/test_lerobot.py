"""LeRobot: round trip, its own reader, streams, and the picture of every camera."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats import lerobot as lerobot_format
from theodolite.dataset.formats.base import camera_clip
from theodolite.dataset.formats.lerobot import read_lerobot, write_lerobot
from theodolite.dataset.rows import Row

from ...typed import known
from .compared import LEVEL_STEP, assert_same_cameras


def test_lerobot_round_trip(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    rows = [make_row(i, frames=10 + i, time_s=np.arange(10 + i) / 16) for i in range(3)]
    clips = [camera_clip(r) for r in rows]
    folder = write_lerobot(clips, tmp_path)
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["fps"]) == ("v3.0", 33, 16)
    assert (folder / "data/chunk-000/file-000.parquet").is_file()
    assert (folder / "meta/episodes/chunk-000/file-000.parquet").is_file()
    for a, b in zip(read_lerobot(folder), clips, strict=True):
        assert (a.name, a.caption) == (b.name, b.caption)
        assert_same_cameras(a, b)
        np.testing.assert_allclose(known(a.time_s), known(b.time_s), atol=1e-9)
    other = replace(clips[0], time_s=np.arange(10) / 30)
    with pytest.raises(ValueError, match=r"10 frames in 0\.300 s, LeRobot needs one rate of 16"):
        write_lerobot([*clips, other], tmp_path / "x")
    write_lerobot([other], tmp_path / "native")
    assert json.loads((tmp_path / "native/meta/info.json").read_text())["fps"] == 30
    # Four frames nearest to a 16 fps grid in a 29.97 fps video: half a step at each end is no other rate.
    write_lerobot([clips[2], camera_clip(make_row(5, frames=4))], tmp_path / "short")


def test_lerobot_itself_reads_the_export(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    lerobot = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset",
        reason="lerobot is not installed (it needs torchvision)",
        exc_type=ImportError,
    )
    clips = [camera_clip(make_row(i, frames=10 + i)) for i in range(3)]
    theirs = lerobot.LeRobotDataset("theodolite/test", root=write_lerobot(clips, tmp_path / "out"))
    assert (theirs.num_episodes, theirs.num_frames, theirs.fps) == (3, 33, 16)
    sample = theirs[10 + 4]
    assert (int(sample["episode_index"]), int(sample["frame_index"])) == (1, 4)
    np.testing.assert_array_equal(
        np.asarray(sample["observation.camera_pose"]).reshape(3, 4),
        clips[1].camera_to_world[4, :3].astype(np.float32),
    )
    np.testing.assert_array_equal(
        np.asarray(sample["observation.intrinsics"])[:2], clips[1].focal_px[4].astype(np.float32)
    )


def test_lerobot_is_written_as_a_stream(
    tmp_path: Path, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files end at their size, what was written is not kept, statistics are those of all frames at once."""
    monkeypatch.setattr(lerobot_format, "_DATA_FILE_MB", 0.05)
    monkeypatch.setattr(lerobot_format, "_ROW_GROUP_BYTES", 10_000)
    clips = [camera_clip(make_row(i, frames=40, time_s=np.arange(40) / 16)) for i in range(40)]
    writer = lerobot_format.LerobotWriter(tmp_path, fps=16)
    held = []
    for clip in clips:
        writer.add(clip)
        held.append(sum(t.nbytes for t in writer._data._pending))
    writer.close()
    assert max(held) <= 10_000
    files = sorted((tmp_path / "data" / "chunk-000").iterdir())
    assert [f.name for f in files] == [f"file-{i:03d}.parquet" for i in range(len(files))]
    assert len(files) > 3
    for a, b in zip(read_lerobot(tmp_path), clips, strict=True):
        assert a.name == b.name
        assert_same_cameras(a, b)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())[lerobot_format.POSE_KEY]
    poses = np.concatenate([c.camera_to_world[:, :3].reshape(-1, 12).astype(np.float32) for c in clips])
    for name, expected in (
        ("min", poses.min(0)),
        ("max", poses.max(0)),
        ("mean", poses.mean(0)),
        ("std", poses.std(0)),
    ):
        np.testing.assert_allclose(stats[name], expected, atol=1e-5, err_msg=name)
    assert stats["count"] == [1600]
    tasks = pq.read_table(tmp_path / "meta" / "tasks.parquet").to_pylist()
    assert tasks == [{"task_index": 0, "task": "A room."}]


@pytest.mark.slow
def test_lerobot_finds_the_picture_of_every_camera(filmed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lerobot"
    assert export_dataset(filmed, folder, format="lerobot", media_root=filmed.parent).num_clips == 3
    info = json.loads((folder / "meta/info.json").read_text())
    key = "observation.images.video"
    assert (info["features"][key]["dtype"], info["features"][key]["shape"]) == ("video", [48, 64, 3])
    stats = json.loads((folder / "meta/stats.json").read_text())[key]
    rows = {row.clip_id: row for row in theodolite.dataset.open(filmed).rows()}
    levels = np.concatenate([LEVEL_STEP * row.frame_index for row in rows.values()]) / 255
    np.testing.assert_allclose(np.ravel(stats["mean"]), [levels.mean()] * 3, atol=0.01)
    np.testing.assert_allclose(np.ravel(stats["std"]), [levels.std()] * 3, atol=0.01)
    for episode in pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist():
        row = rows[episode["clip_id"]]
        place = {n: episode[f"videos/{key}/{n}"] for n in ("chunk_index", "file_index")}
        first_s = episode[f"videos/{key}/from_timestamp"]
        assert episode[f"videos/{key}/to_timestamp"] - first_s == pytest.approx(row.num_frames / 16)
        with av.open(str(folder / info["video_path"].format(video_key=key, **place)), "r") as video:
            stream = video.streams.video[0]
            assert stream.time_base is not None
            for i in (
                row.num_frames - 1,
                0,
                4,
            ):  # as its loader does: jump to the key frame before, decode to the time
                wanted_s = first_s + i / info["fps"]
                video.seek(round(wanted_s / stream.time_base), stream=stream)
                frame = next(f for f in video.decode(stream) if abs((f.time or 0.0) - wanted_s) < 1e-4)
                level = float(frame.to_ndarray(format="rgb24").mean())
                assert level == pytest.approx(LEVEL_STEP * row.frame_index[i], abs=2)
    back = read_lerobot(folder)
    assert [(c.name, len(c), c.height) for c in back] == [(n, r.num_frames, 48) for n, r in rows.items()]


def test_lerobot_begins_another_video_file_when_one_is_full(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot_format, "_VIDEO_FILE_MB", 0)
    export_dataset(filmed, tmp_path / "lerobot", format="lerobot", media_root=filmed.parent)
    files = sorted(p.name for p in (tmp_path / "lerobot").rglob("*.mp4"))
    assert files == ["file-000.mp4", "file-001.mp4", "file-002.mp4"]
    episodes = pq.read_table(tmp_path / "lerobot/meta/episodes/chunk-000/file-000.parquet")
    key = "videos/observation.images.video"
    assert episodes[f"{key}/file_index"].to_pylist() == [0, 1, 2]
    assert episodes[f"{key}/from_timestamp"].to_pylist() == [0, 0, 0]
