"""The index is kept while parts are written: what is known of parts that did not change is not read again."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset import index, store
from theodolite.dataset.commit import clips_with_rows
from theodolite.dataset.index import refresh_index, refresh_piece, refreshed_tally, set_of_clips, write_index
from theodolite.dataset.parquet import sealed
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.rows import Row
from theodolite.dataset.storage.listing import CLOCK_TICK_NS
from theodolite.dataset.store import list_parts, part_folders, part_path, prepare_output, write_part
from theodolite.dataset.validate import validate_dataset


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that are read to index them."""
    names: list[str] = []
    whole = index._index_part

    def counted(part: Path):
        names.append(part.stem)
        return whole(part)

    monkeypatch.setattr(index, "_index_part", counted)
    return names


@pytest.fixture
def out(tmp_path: Path, make_row: Callable[..., Row]) -> Path:
    """Two sources; of the first one, shards before and after the thousandth."""
    prepare_output(tmp_path, recipe_hash="recipe1")
    for number, shard in enumerate(("000000-a", "000999-b", "001000-c", "002500-d")):
        write_part(tmp_path, [make_row(number, frames=4)], shard_id=shard, recipe_hash="recipe1")
    write_part(tmp_path, [make_row(9, source="other", frames=4)], shard_id="000000-e", recipe_hash="recipe1")
    return tmp_path


def content(out: Path) -> list[tuple]:
    clips = theodolite.dataset.open(out)
    assert clips.index is not None
    ids = clips.to_table(["clip_id"])["clip_id"].to_pylist()
    return [(i, clips.row(i).media, clips.row(i).camera_to_world.tobytes()) for i in ids]


def test_parts_lie_in_folders_of_a_thousand(out: Path) -> None:
    assert {name: [p.stem for p in parts] for name, parts in part_folders(out)} == {
        "demo": ["part-000000-a", "part-000999-b"],
        "demo.000001": ["part-001000-c"],
        "demo.000002": ["part-002500-d"],
        "other": ["part-000000-e"],
    }
    assert part_path(out, source="demo", shard_id="001000-c").parent == out / "data" / "demo" / "000001"
    assert validate_dataset(out) == (5, [])
    plain = [
        (row.clip_id, row.media, row.camera_to_world.tobytes()) for row in theodolite.dataset.open(out).rows()
    ]
    write_index(out)
    assert content(out) == plain
    clips = theodolite.dataset.open(out).where("verdict = 'accepted'")
    assert [row.clip_id for row in clips.rows()] == [clip_id for clip_id, *_ in plain]


@pytest.mark.slow
def test_a_new_part_is_read_alone(out: Path, read: list[str], make_row: Callable[..., Row]) -> None:
    refresh_index(out)
    assert len(read) == 5
    write_part(out, [make_row(20), make_row(21)], shard_id="001001-f", recipe_hash="recipe1")
    list_parts(out)[0].unlink()
    write_part(out, [make_row(1, media="elsewhere.mp4")], shard_id="000999-b", recipe_hash="recipe1")
    read.clear()
    assert sorted(clips_with_rows(out)) == [f"clip_{i:04d}" for i in (1, 2, 3, 9, 20, 21)]
    refresh_index(out)
    assert sorted(read) == ["part-000999-b", "part-001001-f"]
    kept = content(out)
    write_index(out)
    assert content(out) == kept
    for file in ("demo.000001.arrow", "demo.000001.parquet"):
        assert (out / "index" / file).is_file()
    read.clear()
    refresh_index(out)
    assert read == []
    list_parts(out)[-1].unlink()
    refresh_index(out)
    assert sorted(p.stem for p in (out / "index").glob("*.arrow")) == ["demo", "demo.000001", "demo.000002"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["demo.000001.arrow", "demo.000001.parquet"])
def test_a_damaged_piece_is_made_anew_alone(
    out: Path, read: list[str], make_row: Callable[..., Row], file: str
) -> None:
    refresh_index(out)
    whole = content(out)
    damaged = bytearray((out / "index" / file).read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (out / "index" / file).write_bytes(damaged)
    read.clear()
    refresh_index(out)
    assert read == ["part-001000-c"]
    assert content(out) == whole
    (out / "index" / file).write_bytes(damaged)
    read.clear()
    write_part(out, [make_row(30)], shard_id="001002-g", recipe_hash="recipe1")
    refresh_piece(out, "demo.000001")
    assert {"part-001000-c", "part-001002-g"} <= set(read), "nothing is taken over from what is damaged"
    assert [clip_id for clip_id, *_ in content(out)][2:4] == ["clip_0002", "clip_0030"]


def test_sums_are_kept_with_each_folder_of_parts(
    out: Path, make_rejected: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How clips ended, and which there are, without reading columns of them; and the same without an index."""
    write_part(
        out,
        [replace(make_rejected(40), reasons=("unreadable_video",))],
        shard_id="001003-h",
        recipe_hash="recipe1",
    )
    ids = [f"clip_{i:04d}" for i in (0, 1, 2, 3, 9, 40)]
    plain = theodolite.dataset.open(out).tally()
    assert (plain.accepted, plain.done, dict(plain.failed_for)) == (5, 6, {"unreadable_video": 1})
    assert [outcome.clip_id for outcome in plain.failed] == ["clip_0040"]
    refresh_index(out)
    shown = inspect_text(out)
    assert shown.splitlines()[-1] == "6 clips: 5 accepted, 1 failed"
    read: list[tuple[str, ...]] = []
    whole = index.Piece.to_table

    def counted(piece: index.Piece, schema, columns, where):
        read.append(tuple(columns))
        return whole(piece, schema, columns, where)

    monkeypatch.setattr(index.Piece, "to_table", counted)
    assert refreshed_tally(out) == plain
    assert read == []
    assert set_of_clips(out).has([*ids, "clip_0005"]) == [True] * 6 + [False]
    assert read == [("index_digest",)] * 4, "a piece for each folder"
    read.clear()
    assert inspect_text(out, limit=2).endswith("... and 4 more\n6 clips: 5 accepted, 1 failed")
    assert len(read) == 1
    assert len(theodolite.dataset.open(out)) == 6
    assert len(read) == 1


@pytest.mark.parametrize(
    "counted", ["", "[]", '{"accepted": 9}', '{"accepted": -1, "rejected": {"a": 2}}', "{"]
)
def test_a_sum_that_is_none_or_of_other_clips_is_made_from_the_columns(out: Path, counted: str) -> None:
    refresh_index(out)
    (piece, *_) = open_pieces(out)
    assert piece.tally().done == piece.num_rows == 2
    for wrong in (counted, '{"accepted": 3, "rejected": {}, "failed_for": {}, "failed": []}'):
        assert replace(piece, counted=wrong).tally() == piece.tally()


def open_pieces(out: Path) -> tuple[index.Piece, ...]:
    opened = index.open_index(out, store.stamped_folders(out))
    assert opened is not None
    return opened.pieces


def _later(part: Path, by_ns: int = 1) -> None:
    status = part.stat()
    os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns + by_ns))


def _rewritten_in_place(part: Path) -> None:
    with part.open("r+b") as file:
        file.write(part.read_bytes())
    _later(part)


def _of_another_size(part: Path) -> None:
    status = part.stat()
    part.write_bytes(part.read_bytes() + b"x")
    os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replaced_at_one_moment(part: Path) -> None:
    """Two parts change places: sizes and times of the folder stay the same, taken together."""
    other = part.with_name("part-000999-b.parquet")
    aside = part.with_name("aside")
    for source, target in ((part, aside), (other, part), (aside, other)):
        source.rename(target)


@pytest.mark.parametrize(
    "change",
    [
        _later,
        _rewritten_in_place,
        _of_another_size,
        _replaced_at_one_moment,
        lambda part: _later(part, 10**19),
        lambda part: part.rename(part.with_name("part-000000-z.parquet")),
        lambda part: shutil.copy2(part, part.with_name("part-000001-a.parquet")),
        Path.unlink,
    ],
)
def test_no_index_is_believed_that_is_of_other_parts(out: Path, change: Callable[[Path], object]) -> None:
    refresh_index(out)
    assert index.open_index(out, store.stamped_folders(out)) is not None
    _later(list_parts(out)[1], 100)  # else the two that change places may have one size and time
    refresh_index(out)
    change(list_parts(out)[0])
    assert index.open_index(out, store.stamped_folders(out)) is None


@pytest.mark.parametrize("what", ["may not be looked at", "is damaged and stays"])
def test_an_index_that_cannot_be_mended_is_gone_without(
    out: Path, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a dataset of somebody else: who reads it says what is done, and shows the parts."""
    refresh_index(out)

    def refused(path: Path, *_: object, **__: object) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    if what == "may not be looked at":
        whole = Path.is_file
        monkeypatch.setattr(Path, "is_file", lambda p: refused(p) if p.parent.name == "index" else whole(p))
    else:
        (out / "index" / "demo.parquet").write_bytes(b"PAR1 and nothing PAR1")
    monkeypatch.setattr(Path, "unlink", refused)
    clips = theodolite.dataset.open(out)
    assert len(list(clips.rows())) == 5
    assert clips.index is None
    assert "it is derived from the parts, which are read instead" in caplog.text
    assert "anew" not in caplog.text


def test_clips_whose_index_may_not_be_read_are_read_from_their_parts(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refresh_index(out)

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("theodolite.dataset.clip_rows.open_source", refused)
    assert theodolite.dataset.open(out).row("clip_0002").clip_id == "clip_0002"  # the shard 1000
    assert "demo.000001.arrow" in caplog.text
    assert "it is derived from the parts, which are read instead" in caplog.text


def test_parts_of_this_moment_are_read_once_a_change_would_show(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks of file systems go on in steps: within one a part may change twice and bear one time."""
    ages: list[int] = []
    whole = index._index_part

    def watched(part: Path):
        ages.append(time.time_ns() - part.stat().st_mtime_ns)
        return whole(part)

    monkeypatch.setattr(index, "_index_part", watched)
    for part in list_parts(out):
        os.utime(part)
    refresh_index(out)
    assert len(ages) == 5
    assert min(ages) >= CLOCK_TICK_NS


def test_a_part_of_a_far_year_is_indexed(out: Path, read: list[str]) -> None:
    """More nanoseconds since 1970 than fit into 64 bits."""
    _later(list_parts(out)[0], 10**19)
    refresh_index(out)
    assert index.open_index(out, store.stamped_folders(out)) is not None
    read.clear()
    refresh_index(out)
    assert read == []


def test_a_piece_of_an_earlier_version_is_read_and_taken_over(out: Path, read: list[str]) -> None:
    """What it says of its parts stood in the schema, and there was no digest of it."""
    refresh_index(out)
    whole = content(out)
    for piece in (out / "index").glob("*.parquet"):
        file = pq.ParquetFile(piece)
        names = (b"schema_version", b"tally", b"parts", b"batches")
        notes = {b"theodolite." + name: file.metadata.metadata[b"theodolite." + name] for name in names}
        table = file.read().replace_schema_metadata(notes)
        piece.write_bytes(sealed(table, compression="zstd", row_group_size=1 << 20))
    assert content(out) == whole
    read.clear()
    _later(list_parts(out)[0])
    refresh_index(out)
    assert read == ["part-000000-a"]
    assert content(out) == whole


def test_the_index_of_an_earlier_version_is_removed(out: Path) -> None:
    (out / "index.parquet").write_bytes(b"old")
    (out / "index.arrow").write_bytes(b"old")
    refresh_index(out)
    assert not list(out.glob("index.*"))
    assert store.dataset_files(out) == list_parts(out)
