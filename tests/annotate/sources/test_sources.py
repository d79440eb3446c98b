"""Source readers: the same clips in the same order, and errors that name every wrong entry."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import av
import pytest
import yaml
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.sources import dl3dv, spatialvid, tree, videos
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.sources.entries import IndexSource, VideosSource
from theodolite.annotate.sources.read import read_clips
from theodolite.annotate.sources.videos import clip_id_of
from theodolite.dataset.rows import rows_to_table

from ...typed import known

ENTRY = {
    "clip_id": "office",
    "media_path": "office/rgb.mp4",
    "original_id": "scene/0 a",
    "source_fps": 16.0,
    "depth_pattern": "office/depth/{frame:06d}.png",
    "depth_units_per_metre": 1000.0,
    "truth_camera_to_world_path": "office/poses.txt",
    "data_licence": "MIT",
    "data_redistributable": True,
}


def index(path):
    return IndexSource(kind="index", name="rgbd", index=path)


def test_yaml_json_and_csv_say_the_same(tmp_path):
    (tmp_path / "frames").mkdir()
    second = {"clip_id": "desk", "media_path": "frames", "source_fps": 30.0}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"clips": [ENTRY, second]}))
    (tmp_path / "a.json").write_text(json.dumps({"clips": [ENTRY, second]}))
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(ENTRY))
        writer.writeheader()
        writer.writerows([ENTRY, second])
    clips = list(read_clips(index(tmp_path / "a.yaml")))
    assert clips == list(read_clips(index(tmp_path / "a.json")))
    assert clips == list(read_clips(index(tmp_path / "a.csv")))
    office, desk = clips
    assert office.media_path == tmp_path / "office/rgb.mp4"
    assert office.media_kind == "video"
    assert office.media == "office/rgb.mp4"
    assert office.source == "rgbd"
    assert office.original_id == "scene/0 a"
    assert office.given.depth_pattern == str(tmp_path / "office/depth/{frame:06d}.png")
    assert office.given.depth_units_per_metre == 1000
    assert office.given.camera_to_world_path is None
    assert office.truth_camera_to_world_path == tmp_path / "office/poses.txt"
    assert office.data_redistributable is True
    assert (desk.media_kind, desk.original_id, desk.data_licence) == ("images", "desk", "unknown")


def test_a_caption_of_the_index_is_the_rows(tmp_path):
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            {
                "defaults": {"caption": "A room."},
                "clips": [
                    {"clip_id": "a", "media_path": "a.mp4"},
                    {"clip_id": "b", "media_path": "b.mp4", "caption": "A garden."},
                ],
            }
        )
    )
    clips = list(read_clips(index(tmp_path / "c.yaml")))
    rows = [annotate_clip(clip, AnnotateConfig(), mode="given_depth", recipe_hash="x") for clip in clips]
    assert [dict(known(row.captions)) for row in rows] == [{"given": "A room."}, {"given": "A garden."}]


def test_defaults_and_another_root(tmp_path):
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump(
            {
                "defaults": {"data_licence": "MIT", "depth_units_per_metre": 1000},
                "clips": [
                    {"clip_id": "a", "media_path": "a.mp4"},
                    {"clip_id": "b", "media_path": "/elsewhere/b.mp4", "depth_units_per_metre": 5000},
                ],
            }
        )
    )
    source = IndexSource(kind="index", name="rgbd", index=tmp_path / "a.yaml", root=tmp_path / "data")
    a, b = read_clips(source)
    assert a.media_path == tmp_path / "data/a.mp4"
    assert str(b.media_path) == "/elsewhere/b.mp4"
    assert (a.media, b.media) == ("a.mp4", "/elsewhere/b.mp4")
    assert (a.given.depth_units_per_metre, b.given.depth_units_per_metre) == (1000, 5000)
    assert (a.data_licence, b.data_licence) == ("MIT", "MIT")


def test_every_wrong_entry_is_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "clips": [
                    {"clip_id": "a", "media_path": "a.mp4"},
                    {"clip_id": "b c", "media_path": "b.mp4"},
                    {"clip_id": "d", "depth_unit": 1000},
                    {"clip_id": "a", "media_path": "e.mp4"},
                    "text",
                    {"clip_id": "f", "media_path": "f.mp4", "start_s": 3, "end_s": 1.5},
                    {"clip_id": "g", "media_path": "g.mp4", "start_s": -1},
                    {"clip_id": "h", "media_path": "h.mp4", "end_s": float("nan")},
                    {"clip_id": "i", "media_path": "i.mp4", "start_s": 0, "end_s": 0.5},
                ]
            }
        )
    )
    with pytest.raises(ValueError, match="not a valid index") as caught:
        read_clips(index(path))
    text = str(caught.value)
    assert str(path) in text
    assert "entry 2 (clip b c): clip_id:" in text
    assert "entry 3 (clip d): media_path: is required" in text
    assert "entry 3 (clip d): depth_unit: unknown key (got 1000)" in text
    assert "entry 4 (clip a): the same clip_id as entry 1" in text
    assert "entry 5 (clip ?)" in text
    assert "entry 6 (clip f): start_s (3) and end_s (1.5) are no window" in text
    assert "entry 7 (clip g): start_s (-1) and end_s (None) are no window" in text
    assert "entry 8 (clip h): start_s (0) and end_s (nan) are no window" in text
    assert "entry 9" not in text


def test_cameras_in_a_layout_of_their_own(tmp_path):
    path = tmp_path / "a.yaml"
    entry = {
        "clip_id": "a",
        "media_path": "color",
        "depth_pattern": "depth/{frame:06d}.png",
        "depth_kind": "omniworld",
        "cameras_path": "camera/split_3.json",
        "cameras_format": "omniworld",
        "metres_per_unit": 2.5,
    }
    path.write_text(yaml.safe_dump({"clips": [entry]}))
    (clip,) = read_clips(index(path))
    assert clip.given.cameras_path == tmp_path / "camera/split_3.json"
    assert (clip.given.cameras_format, clip.given.metres_per_unit) == ("omniworld", 2.5)
    for changes, message in (
        ({"cameras_format": None}, "cameras_path and cameras_format go together"),
        ({"intrinsics_path": "k.csv"}, "replaces camera_to_world_path and intrinsics_path"),
        ({"poses_metric": True}, "it replaces poses_metric"),
        ({"cameras_format": "opengl"}, "cameras_format: should be 'omniworld', 'dl3dv'"),
        ({"metres_per_unit": 0}, "metres_per_unit: should be greater than 0"),
    ):
        path.write_text(yaml.safe_dump({"clips": [entry | changes]}))
        with pytest.raises(ValueError, match="entry 1 \\(clip a\\)") as caught:
            read_clips(index(path))
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "clips: [", "a.yaml: while parsing"),
        ("a.yaml", "- clip_id: a", "must hold `clips`"),
        ("a.yaml", "clips: []", "lists no clip"),
        ("a.json", "{", "Expecting property name"),
        ("a.csv", "clip_id,media_path\na\n", "another number of columns"),
        ("a.csv", "clip_id,media_path\na,b.mp4,3\n", "another number of columns"),
    ],
)
def test_broken_index_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_clips(index(tmp_path / name))


def test_a_missing_index(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read .*source\.index"):
        read_clips(index(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match=r"cannot be read \(it is a folder\).*source\.index"):
        read_clips(index(tmp_path))


def test_videos_below_a_folder(tmp_path):
    for name in ("b.mp4", "a/1.mp4", "a/1.mov", "Z.MP4", "é clip.mkv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clips = list(read_clips(VideosSource(kind="videos", name="plain", root=tmp_path, data_licence="CC0")))
    assert [c.original_id for c in clips] == ["Z.MP4", "a/1.mov", "a/1.mp4", "b.mp4", "é clip.mkv"]
    assert clips[3].clip_id == "b"
    assert len({c.clip_id for c in clips}) == 5
    assert {c.data_licence for c in clips} == {"CC0"}


def test_clip_ids_are_clean_and_unequal():
    names = ["a.mp4", "a.mov", "a.b.mp4", "a/b.mp4", "a_b.mp4", "a b.mp4", "x/" + "y" * 300 + ".mp4"]
    made = [clip_id_of(n) for n in names]
    assert len(set(made)) == len(names)
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and len(i) <= 101 for i in made)
    assert made[0] == "a"
    assert made[4] == "a_b"


def test_folders_without_videos(tmp_path):
    with pytest.raises(ValueError, match="holds no video"):
        read_clips(VideosSource(kind="videos", name="x", root=tmp_path))
    with pytest.raises(ValueError, match="no such folder"):
        read_clips(VideosSource(kind="videos", name="x", root=tmp_path / "none"))


def test_linked_folders_and_hidden_files(tmp_path, caplog):
    """Links are followed, each folder once; those that lead back end nothing, a video that is not there is a clip that
    fails, and so is a pipe."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "a.mp4", elsewhere / "inner" / "b.MTS", root / "._a.mp4", root / ".cache" / "c.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "again").symlink_to(elsewhere)
    (root / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    (root / "gone.clip").symlink_to(tmp_path / "nothing.clip")
    os.mkfifo(root / "pipe.mp4")
    os.mkfifo(root / "pipe.clip")
    clips = list(read_clips(VideosSource(kind="videos", name="x", root=root)))
    assert [c.original_id for c in clips] == ["a.mp4", "again/inner/b.MTS", "gone.mp4", "pipe.mp4"]
    assert clips[1].media == "again/inner/b.MTS"
    assert "links lead to 1 videos elsewhere (e.g. again/inner/b.MTS)" in caplog.text
    assert clips[1].media_path.is_file()
    for clip in clips[2:]:
        with pytest.raises(ClipRejection, match=clip.original_id) as caught:
            open_clip(clip, DecodeConfig())
        assert caught.value.reason in ("media_missing", "unreadable_video")


def test_media_behind_links_out_of_the_root_are_told_of(tmp_path, caplog):
    """Of an index as of a folder of videos; links within the root, to nothing and windows of the same
    file count for nothing."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "a.mp4", elsewhere / "b.mp4", elsewhere / "frames" / "0.png", root / "own" / "0.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "within.mp4").symlink_to(root / "a.mp4")
    (root / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    inside = ["a.mp4", "own", "within.mp4", "gone.mp4", "absent/c.mp4", "."]
    for name, target in (("out.mp4", "b.mp4"), ("folder", "."), ("frames", "frames")):
        (root / name).symlink_to(elsewhere / target)
    (root / "linked").mkdir()
    (root / "linked" / "0.png").symlink_to(elsewhere / "frames" / "0.png")
    outside = ["out.mp4", "out.mp4", "folder/b.mp4", "frames", "linked"]

    def listed(media):
        path = root / "clips.json"
        path.write_text(
            json.dumps({"clips": [{"clip_id": f"c{i}", "media_path": m} for i, m in enumerate(media)]})
        )
        caplog.clear()
        for _ in range(2):  # a run reads its source several times
            assert len(list(read_clips(IndexSource(kind="index", name="x", index=path)))) == len(media)
        return [record.getMessage() for record in caplog.records]

    assert listed(inside) == []
    (said,) = listed(inside + outside)
    assert said.startswith(f"{root}: links lead to 4 media elsewhere (e.g. out.mp4): they are annotated, but")
    assert said.endswith("name a folder above links and files as source.root")


@pytest.mark.parametrize(
    "look", [videos._files_below, tree.walk, dl3dv._scene_folders, spatialvid._annotation_groups]
)
def test_a_folder_that_cannot_be_listed_is_said(look, tmp_path, monkeypatch, caplog):
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def refused(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    list(look(tmp_path))
    assert f"{tmp_path / 'closed'}: cannot be listed (Permission denied)" in caplog.text


def test_suffixes_that_are_not_listed_are_counted_and_said(tmp_path, caplog):
    suffixes = "mts m2ts wmv flv 3gp ogv"
    for suffix in suffixes.split():
        (tmp_path / f"v.{suffix}").touch()
    assert len(list(read_clips(VideosSource(kind="videos", name="x", root=tmp_path)))) == 6
    assert not caplog.records
    with av.open(str(tmp_path / "x.clip"), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    for name in ("y.clip", "bare"):
        (tmp_path / name).write_bytes((tmp_path / "x.clip").read_bytes())
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "z.data").write_text("no video either")
    for _ in range(3):  # a run reads its source several times
        assert len(list(read_clips(VideosSource(kind="videos", name="x", root=tmp_path)))) == 6
    (record,) = caplog.records
    assert "1 without suffix (e.g. bare), 2 .clip (e.g. x.clip)" in record.getMessage()
    for suffix in suffixes.split():
        (tmp_path / f"v.{suffix}").unlink()
    with pytest.raises(ValueError, match=r"holds no video .*2 \.clip \(e\.g\. x\.clip\)"):
        read_clips(VideosSource(kind="videos", name="x", root=tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_a_name_that_is_no_utf8_fails_its_clip_alone(tmp_path):
    (tmp_path / "good.mp4").touch()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb"):
        pass
    bad, good = read_clips(VideosSource(kind="videos", name="x", root=tmp_path))
    assert (good.clip_id, bad.original_id, bad.media) == ("good", "caf\\xe9.mp4", "caf\\xe9.mp4")
    with pytest.raises(ClipRejection, match="no UTF-8") as caught:
        open_clip(bad, DecodeConfig())
    assert caught.value.reason == "file_name_not_utf8"
    str(caught.value).encode()
    row = annotate_clip(bad, AnnotateConfig(), mode="estimate", recipe_hash="x")
    assert row.reasons == ("file_name_not_utf8",)
    rows_to_table([row])  # can be stored


def test_an_index_that_is_no_utf8(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"clips: [{clip_id: a, media_path: caf\xe9.mp4}]")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read_clips(index(tmp_path / "a.yaml"))


def test_what_says_which_images_and_which_way_up(tmp_path):
    entry = {"clip_id": "a", "media_path": "rgb", "media_pattern": "*.color.png", "given_pixels": "stored"}
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump({"clips": [entry | {"intrinsics_path": "K.txt", "focal": "prior"}]})
    )
    (clip,) = read_clips(index(tmp_path / "a.yaml"))
    assert clip.media_pattern == "*.color.png"
    assert (clip.given.pixels, clip.given.focal) == ("stored", "prior")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"clips": [entry | {"focal": "prior"}]}))
    with pytest.raises(ValueError, match="focal: prior says what intrinsics_path is for, and there is none"):
        read_clips(index(tmp_path / "b.yaml"))
