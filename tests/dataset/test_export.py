"""Exports and subsets of a dataset whatever the format: choice of clips, refusals, kills, leftovers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import theodolite.dataset
from theodolite.dataset import export as export_module
from theodolite.dataset.export import FORMATS, PER_CLIP, export_dataset, write_subset
from theodolite.dataset.formats import huggingface as huggingface_format
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.formats.colmap import read_colmap
from theodolite.dataset.formats.lerobot import write_lerobot
from theodolite.dataset.formats.nerfstudio import read_nerfstudio
from theodolite.dataset.formats.trajectories import read_kitti, read_tum
from theodolite.dataset.formats.webdataset import read_webdataset, write_webdataset
from theodolite.dataset.rows import Row
from theodolite.dataset.validate import validate_dataset

from ..typed import known
from .formats.compared import installed


@pytest.mark.slow
@pytest.mark.parametrize("name", [f for f in FORMATS if installed(f)])
def test_every_format_exports_accepted_clips_and_refuses_stand_ins(
    out: Path, tmp_path: Path, name: str, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    target = tmp_path / "target"
    assert export_dataset(out, target, format=name).num_clips == 3
    assert any(p.is_file() for p in target.rglob("*"))
    assert not any("clip_0002" in p.name for p in target.rglob("*"))
    fake = make_dataset(tmp_path / "fake", {"a": [make_row(0, stand_in=True)]})
    with pytest.raises(ValueError, match="stand-in"):
        export_dataset(fake, tmp_path / "never", format=name)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", [f for f in FORMATS if installed(f)])
def test_a_failed_export_leaves_nothing_and_a_good_one_no_traces(
    out: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "exports" / "target"
    target.parent.mkdir()

    def full(row: Row) -> CameraClip:
        if row.clip_id == "clip_0003":
            raise OSError(28, "No space left on device")
        return camera_clip(row)

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "camera_clip", full)
        patch.setattr(
            huggingface_format.pq,
            "write_table",
            lambda *_a, **_k: full(theodolite.dataset.open(out).row("clip_0003")),
        )
        with pytest.raises(OSError, match="No space left"):
            export_dataset(out, target / "deeper" / "still", format=name)
        assert list(target.parent.iterdir()) == []
        target.mkdir()
        with pytest.raises(OSError, match="No space left"):
            export_dataset(out, target, format=name)
        assert list(target.iterdir()) == []
    monkeypatch.chdir(target)
    assert (
        export_dataset(out, ".", format=name).num_clips == 3
    )  # the folder stays the same one: somebody may stand in it
    assert list(Path().iterdir())
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert not [p for p in target.rglob("*") if p.name.startswith(".")]
    if name in PER_CLIP:
        before = sorted(target.iterdir())
        assert export_dataset(out, target, format=name, clip_ids=["clip_0001"]).num_clips == 1
        assert sorted(target.iterdir()) == before
    else:
        with pytest.raises(ValueError, match="is not empty; write into a new folder"):
            export_dataset(out, target, format=name)


@pytest.mark.slow
def test_a_killed_export_leaves_a_hidden_folder_that_the_next_one_removes(out: Path, tmp_path: Path) -> None:
    script = """
import os, signal, sys
import theodolite.dataset.export as export
whole = export.camera_clip
def killed(row):
    if row.clip_id == "clip_0003":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(row)
export.camera_clip = killed
export.export_dataset(sys.argv[1], sys.argv[2], format="lerobot")
"""
    target = tmp_path / "exports" / "target"
    done = subprocess.run([sys.executable, "-c", script, str(out), str(target)], cwd=tmp_path, check=False)
    assert done.returncode < 0
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".tmp-target-")
    assert not list(left.rglob("info.json"))
    assert export_dataset(out, target, format="lerobot").num_clips == 3
    assert list(target.parent.iterdir()) == [target]


def test_clip_ids_that_are_long(tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable) -> None:
    name = 120 * "x"
    data = make_dataset(tmp_path / "d", {"a": [make_row(0, clip_id=name)]})
    for style in FORMATS:
        if installed(style):
            assert export_dataset(data, tmp_path / style, format=style).num_clips == 1
    (clip,) = read_webdataset(tmp_path / "webdataset" / "shard-000000.tar")
    assert clip.name == name
    wds = pytest.importorskip("webdataset")
    (sample,) = wds.WebDataset(
        str(tmp_path / "webdataset" / "shard-{000000..000000}.tar"), shardshuffle=False
    )
    assert sample["__key__"] == name


def test_where_chooses_clips_of_an_export_and_of_a_subset(
    out: Path, tmp_path: Path, make_rejected: Callable[..., Row]
) -> None:
    assert (
        export_dataset(
            out, tmp_path / "t", format="tum", where="num_frames < 30 or clip_id = 'clip_0003'"
        ).num_clips
        == 2
    )
    assert sorted(p.stem for p in (tmp_path / "t").iterdir()) == ["clip_0001", "clip_0003"]
    assert write_subset(out, tmp_path / "sub", where="verdict = 'rejected' or num_frames >= 30") == (3, 4)
    assert validate_dataset(tmp_path / "sub") == (3, [])
    clips = theodolite.dataset.open(tmp_path / "sub")
    assert clips.index is not None
    assert clips.row("clip_0002").reasons == make_rejected(2).reasons
    np.testing.assert_array_equal(
        clips.row("clip_0003").camera_to_world, theodolite.dataset.open(out).row("clip_0003").camera_to_world
    )
    with pytest.raises(ValueError, match="holds for none of 4 clips"):
        write_subset(out, tmp_path / "none", where="num_frames > 1e6")
    with pytest.raises(ValueError, match="is not empty"):
        write_subset(out, tmp_path / "sub", where="num_frames > 0")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("verdict = 'accepted' and num_frames > 20", [0, 3]),
        ('VERDICT == "accepted"', "no column VERDICT"),
        ("not verdict = 'accepted'", [2]),
        ("verdict != 'accepted' OR clip_id IN ('clip_0000', 'clip_0009')", [0, 2]),
        ("clip_id not in ('clip_0000')", [1, 2, 3]),
        ("reprojection_rms_px is null", [2]),
        ("reprojection_rms_px IS NOT NULL and not (num_frames = 33)", [1]),
        ("confidence >= 0.9 and confidence <= .95e0 and num_tracks = 1234", [0, 1, 3]),
        ("data_redistributable and stand_in = false", [0, 1, 2, 3]),
        ("num_frames = 'many'", "condition"),
        ("reprojection_rms > 1", "no column reprojection_rms; did you mean reprojection_rms_px"),
        ("reasons = 'no_depth'", "reasons holds a list for each clip"),
        ("camera_to_world in (1, 2)", "camera_to_world holds a list for each clip"),
        ("num_frames", "expected a comparison"),
        ("num_frames > ", "expected a number"),
        ("num_frames > 3 4", "expected `and`"),
        ("(num_frames > 3", r"expected `\)`"),
        ("num_frames > 3; drop", "cannot read ';"),
        ("", "expected a column"),
    ],
)
def test_conditions(out: Path, text: str, ids: list[int] | str) -> None:
    clips = theodolite.dataset.open(out)
    if isinstance(ids, str):
        with pytest.raises(ValueError, match=ids):
            clips.where(text)
    else:
        found = clips.where(text).to_table(["clip_id"])["clip_id"].to_pylist()
        assert found == [f"clip_{i:04d}" for i in ids]


def test_export_choices(out: Path, tmp_path: Path) -> None:
    assert export_dataset(out, tmp_path / "a", format="tum", clip_ids=["clip_0001"]).num_clips == 1
    back = read_tum(tmp_path / "a" / "clip_0001.tum")
    row = theodolite.dataset.open(out).row("clip_0001")
    np.testing.assert_allclose(back.camera_to_world, row.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(known(back.time_s), row.time_s - row.time_s[0])
    export_dataset(out, tmp_path / "k", format="kitti", clip_ids=["clip_0001"])
    kitti = read_kitti(tmp_path / "k" / "clip_0001.txt", times_path=tmp_path / "k" / "clip_0001_times.txt")
    np.testing.assert_allclose(kitti.camera_to_world, row.camera_to_world, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"no accepted clip clip_0002 \(clip_0002 is failed: unreadable_video\)"
    ):
        export_dataset(out, tmp_path / "b", format="tum", clip_ids=["clip_0001", "clip_0002"])
    with pytest.raises(ValueError, match="no accepted clips"):
        export_dataset(out, tmp_path / "b", format="tum", source="nowhere")
    with pytest.raises(ValueError, match="expected one of colmap"):
        export_dataset(out, tmp_path / "b", format="bvh")


@pytest.mark.parametrize(("style", "first"), [("colmap", "000000.png"), ("nerfstudio", "frame_00001.png")])
def test_pictures_of_a_video_are_called_as_the_cameras_say(
    filmed: Path, tmp_path: Path, style: str, first: str
) -> None:
    export_dataset(filmed, tmp_path / "e", format=style, media_root=filmed.parent, clip_ids=["clip_0000"])
    folder = tmp_path / "e" / "clip_0000"
    read = read_colmap if style == "colmap" else read_nerfstudio
    names = known(read(folder if style == "colmap" else folder / "transforms.json").image_names)
    assert names[0] == first
    assert sorted(path.name for path in (folder / "images").iterdir()) == sorted(names)


def test_what_an_export_lacks_is_said_before_pictures_are_read(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "d", {"a": [make_row(0, media_kind="images", media="stills", frames=2)]})
    data_frames = theodolite.dataset.open(data).row("clip_0000").frame_index
    (tmp_path / "stills").mkdir()
    for i in range(int(data_frames.max()) + 1):
        (tmp_path / "stills" / f"a {i}.png").touch()
    monkeypatch.setattr(export_module, "staged", lambda *_a, **_k: pytest.fail("begun"))
    with pytest.raises(ValueError, match=r"image 'a 0\.png' has a blank in its name"):
        export_dataset(data, tmp_path / "e", format="colmap-text", media_root=tmp_path)
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match="need rerun-sdk"):
        export_dataset(data, tmp_path / "e", format="rerun", media_root=tmp_path)


def test_videos_that_cannot_be_exported(
    filmed: Path, tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    kept = make_dataset(tmp_path / "kept", {"a": [make_row(0), make_row(1, data_redistributable=False)]})
    for name in ("webdataset", "lerobot"):
        with pytest.raises(ValueError, match=r"media of 1 clips may not be passed on, e\.g\. clip_0001"):
            export_dataset(kept, tmp_path / name, format=name, media_root=filmed.parent)
        assert not (tmp_path / name).exists()
        assert export_dataset(kept, tmp_path / name, format=name).num_clips == 2
    with pytest.raises(ValueError, match=r"clip clip_0000: .*0\.mp4: no such file"):
        export_dataset(
            kept, tmp_path / "x", format="webdataset", clip_ids=["clip_0000"], media_root=filmed.parent
        )
    clips = [camera_clip(row) for row in theodolite.dataset.open(filmed).rows()]
    image = np.zeros((48, 64, 3), np.uint8)
    even = [clip.resized(height=48, width=64) for clip in clips]
    with pytest.raises(ValueError, match="clip clip_0000: 3 pictures for 8 cameras"):
        write_webdataset(even, tmp_path / "few", pictures=lambda _clip: iter([image] * 3))
    with pytest.raises(ValueError, match=r"several sizes \(clip_0000 64x48, clip_0001 65x49\)"):
        write_lerobot([even[0], clips[1]], tmp_path / "sizes", pictures=lambda _clip: iter([image]))
