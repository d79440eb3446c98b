"""What a Parquet file may unfold into: rows that repeat each other are read, bombs are refused by every way in."""

from __future__ import annotations

import resource
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset import compact as compacting
from theodolite.dataset import encoding, index, limits, parquet
from theodolite.dataset.commit import clips_with_rows
from theodolite.dataset.index import refresh_index
from theodolite.dataset.inputs import InputError
from theodolite.dataset.limits import MIB, may_unfold_into, unfolds_too_far
from theodolite.dataset.parquet import _is_copied, open_parquet, read_table
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.rows import Row, rows_to_table
from theodolite.dataset.storage.paths import ObjectReader, StorePath, as_path
from theodolite.dataset.store import list_parts, prepare_output, write_part, write_part_table
from theodolite.dataset.validate import validate_dataset


@pytest.fixture
def frugal() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19


def test_what_files_may_unfold_into() -> None:
    """Never a gigabyte from less than a megabyte; a gigabyte from little more, where rows repeat each other; beyond
    that, a hundred times their size."""
    assert [may_unfold_into(stored) // MIB for stored in (0, 1000, 300_000)] == [256] * 3
    assert may_unfold_into(10**6 - 1) < 10**9
    assert [may_unfold_into(n * MIB) // MIB for n in (1, 2, 10, 11, 64)] == [700, 1024, 1024, 1100, 6400]
    assert unfolds_too_far(256 * MIB, 1) == ""
    assert "256 MiB, which are taken" in unfolds_too_far(256 * MIB + 1, 1)


def identical(row: Row, count: int) -> pa.Table:
    """Rows that differ in their id alone."""
    table = rows_to_table([row])
    place = table.schema.get_field_index("clip_id")
    ids = pa.array([f"clip_{i:05d}" for i in range(count)])
    return pa.concat_tables([table] * count).set_column(place, table.schema.field(place), ids)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limits a thousandth of what they are, so that their sides are cheap to reach."""
    free = MIB // 4
    for module in (limits, encoding, compacting):
        monkeypatch.setattr(module, "FREE_BYTES", free)
    monkeypatch.setattr(parquet, "FREE_BYTES", free)
    monkeypatch.setattr(limits, "MAX_EXPANSION", 10)
    monkeypatch.setattr(limits, "REPEATING_EXPANSION", 10)
    return free


def test_rows_that_repeat_each_other_are_written_so_that_they_are_read(
    tmp_path: Path, small_limits: int, make_row: Callable[..., Row]
) -> None:
    table = identical(make_row(0, frames=40), 200)
    copy = tmp_path / "copy.parquet"
    pq.write_table(table, copy, compression="zstd")
    with pytest.raises(InputError, match="write it as several, or uncompressed"):
        read_table(copy)
    part = tmp_path / "part-000000-a.parquet"
    write_part_table(part, table)
    assert read_table(part).num_rows == 200
    assert table.nbytes > 2 * small_limits


@pytest.mark.slow
@pytest.mark.parametrize("frames", [300, 1000])
def test_parts_that_repeat_each_other_are_gathered_into_several(
    tmp_path: Path, small_limits: int, make_row: Callable[..., Row], frames: int
) -> None:
    """A gathered part unfolds into no more than is taken of any file, whatever its size, and the order stays."""
    prepare_output(tmp_path, recipe_hash="recipe1")
    for number in range(24):
        row = make_row(number, frames=frames if number != 12 else 2000, moving_mask=None)
        write_part(tmp_path, [row], shard_id=f"{number:06d}-{23 - number}", recipe_hash="recipe1")
    ids = list(clips_with_rows(tmp_path))
    large = list_parts(tmp_path)[12].stat().st_size
    done = compacting.compact(tmp_path, part_bytes=2 * large - 1)
    assert 2 < done.num_after < 24
    assert done.num_clips == 24
    assert len(list_parts(tmp_path)) == done.num_after
    assert list(clips_with_rows(tmp_path)) == ids, "the order within a source"
    assert all(read_table(part).nbytes <= small_limits + 200_000 for part in list_parts(tmp_path))
    assert validate_dataset(tmp_path) == (24, [])
    again = compacting.compact(tmp_path, part_bytes=2 * large - 1)
    assert again.num_before == done.num_after >= again.num_after > 2
    assert list(clips_with_rows(tmp_path)) == ids
    gathered = [(part, part.stat().st_mtime_ns) for part in list_parts(tmp_path)]
    compacting.compact(tmp_path, part_bytes=2 * large - 1)
    assert [(part, part.stat().st_mtime_ns) for part in list_parts(tmp_path)] == gathered, "nothing to gather"


# --- bombs, by every way in -----------------------------------------------------------------------

_FOLDED: dict[str, Any] = {
    "compression": "zstd",
    "dictionary_pagesize_limit": 1 << 30,
    "write_statistics": False,
}


def long_text(rows: int = 20_000) -> pa.Array:
    """Two gigabytes in a kilobyte: one text, and its number again and again."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 100_000]))


@pytest.fixture
def text_bomb(make_row: Callable[..., Row]) -> bytes:
    """A whole copy of a dataset, as another tool could have written it, in one column of which lies a bomb."""
    table = identical(make_row(0, frames=2), 20_000)
    place = table.schema.get_field_index("reasons")
    reasons = pa.ListArray.from_arrays(pa.array(range(20_001), pa.int32()), long_text())
    table = table.set_column(place, "reasons", reasons).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False, **_FOLDED)
    return sink.getvalue().to_pybytes()


@pytest.mark.slow
def test_a_text_that_unfolds_is_refused_by_every_reader(
    tmp_path: Path, frugal: None, text_bomb: bytes, store: StorePath
) -> None:
    local = tmp_path / "d" / "data" / "demo" / "part-a.parquet"
    local.parent.mkdir(parents=True)
    local.write_bytes(text_bomb)
    remote = store / "data" / "demo" / "part-a.parquet"
    remote.write_bytes(text_bomb)
    reasoned = pc.field("reasons").is_valid()
    refused = r"part-a\.parquet: row group 0, column reasons.*would become 19\d\d MiB"
    for folder, part in ((tmp_path / "d", local), (store, remote)):
        for read in (
            lambda part=part: read_table(part, ["reasons"]),
            lambda part=part: open_parquet(part),
            lambda folder=folder: theodolite.dataset.open(folder).to_table(["reasons"]),
            lambda folder=folder: theodolite.dataset.open(folder).where(reasoned).to_table(["clip_id"]),
            lambda folder=folder: len(theodolite.dataset.open(folder).where(reasoned)),
            lambda folder=folder: theodolite.dataset.open(folder).row("clip_00007"),
            lambda folder=folder: next(theodolite.dataset.open(folder).rows()),
            lambda folder=folder: inspect_text(folder),
        ):
            with pytest.raises(InputError, match=refused):
                read()
        assert [v.rule for v in validate_dataset(folder)[1]] == ["part_readable"]
    # What is honest beside it is read.
    assert read_table(remote, ["clip_id"]).num_rows == 20_000


@pytest.fixture
def store() -> Iterator[StorePath]:
    place = as_path(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(place, StorePath)
    yield place
    for name in place.objects():
        (place / name).unlink(missing_ok=True)


@pytest.mark.slow
def test_an_index_that_vouches_for_a_bomb_is_not_believed(
    tmp_path: Path, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files of a piece are as its maker wrote them, with all their checksums; the pages of the part are not what
    is taken unasked."""
    table = rows_to_table([make_row(0, frames=2)])
    place = table.schema.get_field_index("time_s")
    count = may_unfold_into(0) // 8 + 1
    many = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.array(np.zeros(count)))
    table = table.set_column(
        place, table.schema.field("time_s"), many.cast(table.schema.field("time_s").type)
    )
    prepare_output(tmp_path, recipe_hash="recipe1")
    part = tmp_path / "data" / "demo" / "part-000000-a.parquet"
    part.parent.mkdir(parents=True)
    pq.write_table(table, part, **_FOLDED)
    assert part.stat().st_size < 400_000
    with monkeypatch.context() as patch:
        for module in (parquet, index):
            patch.setattr(module, "open_parquet", lambda path, **_: pq.ParquetFile(path))
        refresh_index(tmp_path)
    clips = theodolite.dataset.open(tmp_path)
    assert clips.index is not None
    with pytest.raises(InputError, match=r"column time_s.*would become"):
        clips.row("clip_0000")


def test_looking_at_pages_costs_a_store_few_requests(
    store: StorePath, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row group of 600 kB is asked for once; its pages are looked at, and its columns read, from that."""
    part = store / "data" / "demo" / "part-000000-a.parquet"
    write_part_table(part, rows_to_table([make_row(i, frames=6000) for i in range(2)]))
    asked: list[tuple[int, int]] = []
    client = part.client
    whole = type(client).cat_file

    def counted(
        self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        asked.append((start or 0, end or 0))
        return whole(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(client), "cat_file", counted)
    assert part.stat().st_size > 600_000
    assert read_table(part).num_rows == 2
    assert len(asked) <= 6
    assert isinstance(ObjectReader(part).read(10), bytes)


def test_a_length_without_end_in_a_footer_takes_no_time() -> None:
    """A megabyte of it took two minutes, before anything of the file was judged."""
    footer = bytearray(b"ARROW:schema\x18" + b"\xff" * (1 << 24))
    start = time.process_time()
    assert not _is_copied(footer)
    assert time.process_time() - start < 1
