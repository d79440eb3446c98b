"""What holds for every public set. Cameras of layouts that go through the whole pipeline are in
tests/annotate/given/test_cameras.py and tests/recipes/test_corpus_layouts.py, archives in test_archives.py.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.sources.releases import release_clips
from theodolite.annotate.sources.tree import Release

from .trees import V1, listed, mira, touch


def test_a_record_of_unpacking_that_is_none_is_passed_over(tmp_path: Path, caplog) -> None:
    touch(tmp_path / "videos/group_0001/a.mp4")
    (tmp_path / ".unpacked").mkdir()
    good = {"place": "videos/group_0001/b.mp4", "reason": "archive_damaged", "detail": "d"}
    lines = [
        [],
        3,
        {"place": 3, "reason": "archive_damaged"},
        {"place": "../x.mp4", "reason": "archive_damaged"},
        good,
    ]
    (tmp_path / ".unpacked/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / ".unpacked/b.jsonl").write_text('{"place": ')
    assert list(listed("spatialvid-hq", tmp_path)) == ["a", "b"]
    assert "unpack the archive again" in caplog.text


def test_a_clip_that_could_not_be_unpacked_is_a_row_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / ".unpacked").mkdir()
    entry = {
        "place": "videos/group_0001/x.mp4",
        "reason": "archive_damaged",
        "detail": "ends after 3 of 9 bytes",
    }
    (tmp_path / ".unpacked/a.jsonl").write_text(
        json.dumps({"archive": "a"}) + "\n" + json.dumps(entry) + "\n"
    )
    (clip,) = listed("spatialvid-hq", tmp_path).values()
    row = annotate_clip(clip, AnnotateConfig(), mode="estimate", recipe_hash="0" * 16)
    assert row.reasons == ("archive_damaged",)
    assert "3 of 9 bytes" in row.reason_details[0]


@pytest.mark.slow
def test_a_long_list_starts_at_once_and_is_never_held(tmp_path: Path) -> None:
    """Three thousand rows: the first clip comes before the table has been read, and reading keeps none."""
    import tracemalloc

    table = tmp_path / "miradata_v1_330k.csv"
    with table.open("w") as out:
        out.write(V1)
        for i in range(3_000):
            out.write(mira(f"{i}.0", ("00:00:00.000", "00:01:02.000"), video_id="here0000000") + "\n")
    touch(tmp_path / "raw_video/here0000000.mp4")
    start = time.monotonic()
    clips = release_clips("miradata", Release(root=tmp_path, source="t"))
    next(clips)
    assert time.monotonic() - start < 0.5
    tracemalloc.start()
    count = sum(1 for _ in itertools.islice(clips, 2_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2_000
    assert peak < 3_000_000, f"{peak} bytes"  # all of them take 4 MB


def test_trees_as_they_unpack(tmp_path: Path) -> None:
    sekai = tmp_path / "sekai"
    video = touch(sekai / "sekai-game-walking/00100100001_0008250_0010050.mp4")
    (clip,) = listed("sekai-game", sekai).values()
    assert clip.clip_id == "00100100001_0008250_0010050"
    assert clip.given.cameras_path == video.with_suffix(".npz")
    assert clip.media == "sekai-game-walking/00100100001_0008250_0010050.mp4"

    spatial = tmp_path / "spatial"
    # The prefix before group and name differs between the two archives.
    touch(spatial / "SpatialVid/HQ/videos/group_0001/0a00f99d-11.mp4")
    touch(spatial / "SpatialVid/HQ/videos/group_0001/no-annotation.mp4")
    found = touch(spatial / "SpatialVID/annotations/group_0001/0a00f99d-11/poses.npy")
    clips = listed("spatialvid-hq", spatial)
    assert clips["0a00f99d-11"].given.cameras_path == found.parent
    missing = clips["no-annotation"].given.cameras_path  # its row will say that nothing lies there
    assert missing == spatial / "SpatialVid/HQ/annotations/group_0001/no-annotation"

    dl3dv = tmp_path / "dl3dv"
    scene = "0" * 63 + "a"
    touch(dl3dv / f"1K/{scene}/{scene}/transforms.json")  # some archives nest one folder deeper
    for number in (1, 2, 300):
        touch(dl3dv / f"1K/{scene}/{scene}/images_4/frame_{number:05d}.png")
    (clip,) = listed("dl3dv-stills", dl3dv).values()
    assert clip.clip_id == scene
    assert clip.source_fps is None
    index = dl3dv / "valid.csv"
    index.write_text(f"hash,sensibility label,batch,duration\n{scene},0,1K,60.0\n")
    assert listed("dl3dv-stills", dl3dv, metadata=index)[scene].source_fps == 5.0
    touch(dl3dv / f"3K/{scene}/video.mp4")  # the video lies in another batch than the stills
    (clip,) = listed("dl3dv", dl3dv).values()
    assert clip.media == f"3K/{scene}/video.mp4"
    assert clip.given.stills_path == dl3dv / f"1K/{scene}/{scene}/images_4"

    world = tmp_path / "world"
    uid = "b04f88d1f85a"
    touch(world / f"videos/OmniWorld-Game/{uid}/color/000000.png")
    notes = world / f"annotations/OmniWorld-Game/{uid}"
    touch(notes / "camera/split_1.json")
    (notes / "split_info.json").write_text(json.dumps({"split": [[0, 1], [2, 3, 4, 5]]}))
    (notes / "fps.txt").write_text("FPS: 24.0 \nProcessing time: 9\n")
    (clip,) = listed("omniworld-game", world).values()
    assert clip.clip_id == f"{uid}_split0001"
    assert clip.media == f"videos/OmniWorld-Game/{uid}/color"
    assert (clip.start_s, clip.end_s, clip.source_fps) == (2 / 24, 6 / 24, 24.0)
    assert clip.given.metres_per_unit is None

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clip in the layout dl3dv"):
        listed("dl3dv", tmp_path / "empty")
    with pytest.raises(ValueError, match="expected a CSV with the column 'UID'"):
        listed("omniworld-game", world, metadata=index)
