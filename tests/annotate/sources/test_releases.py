"""What holds for every public set. Cameras of layouts that go through the whole pipeline are in
tests/annotate/given/test_cameras.py, archives in test_archives.py.
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
