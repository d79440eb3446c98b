"""One clip by id through the index gives what the parts give, without reading a part's footer."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset import store
from theodolite.dataset.footers import series_footers
from theodolite.dataset.index import refresh_index, write_index
from theodolite.dataset.reading import ClipDataset
from theodolite.dataset.rows import Row
from theodolite.dataset.schema import SERIES_COLUMNS


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    make_row: Callable[..., Row],
    make_rejected: Callable[..., Row],
    make_dataset: Callable,
) -> Path:
    """550 clips, so that row groups cross batches of the index: many in one part, some without frames or cameras."""
    rows: list[Row] = []
    for i in range(540):
        if i % 11 == 3:
            rows.append(make_rejected(i, error="Traceback: …", decode_notes=("rotated by 90 degrees",)))
        elif i % 11 == 5:
            rows.append(make_row(i, frames=2 + i % 7, position_sigma_m=None, captions=None, metrics=None))
        else:
            rows.append(make_row(i, frames=2 + i % 7))
    other = [make_row(i, source="other", frames=9) for i in range(540, 550)]
    return make_dataset(tmp_path_factory.mktemp("made"), {"a": rows[:3], "b": rows[3:], "c": other})


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(made, tmp_path / "out")


def assert_same(a: Row, b: Row) -> None:
    for field in dataclasses.fields(Row):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, field.name
            np.testing.assert_array_equal(x, y, err_msg=field.name)
        else:
            assert x == y, field.name


def rewrite(path: Path, table: pa.Table, *, row_group_size: int = 5, **options: Any) -> None:
    """Replace a part by other columns or another layout."""
    pq.write_table(table, str(path), row_group_size=row_group_size, **options)


def without_parts(clips: ClipDataset, monkeypatch: pytest.MonkeyPatch) -> ClipDataset:
    """The dataset, which from now on fails when it reads the footer of a part."""

    def refuse(_self: ClipDataset, file: str) -> None:
        raise AssertionError(f"the footer of {file} was read")

    monkeypatch.setattr(ClipDataset, "_open_part", refuse)
    return clips


@pytest.mark.slow
def test_every_field_of_every_clip(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.part_path(out, source="demo", shard_id="b")
    store.write_table(
        pq.ParquetFile(path).read(), str(path), row_group_size=50
    )  # several groups of several batches
    plain = theodolite.dataset.open(out)
    assert plain.index is None
    expected = {row.clip_id: row for row in plain.rows()}
    assert len(expected) == 550
    write_index(out)
    fast = without_parts(theodolite.dataset.open(out), monkeypatch)
    for clip_id in np.random.default_rng(0).permutation(sorted(expected)):
        assert_same(fast.row(str(clip_id)), expected[str(clip_id)])
    with pytest.raises(KeyError, match="no clip 'nope' among 550"):
        fast.row("nope")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "none", "data_page_version": "2.0"},
        {"compression": "snappy", "use_dictionary": True, "data_page_size": 64},
        {"compression": "gzip", "column_encoding": None},
    ],
    ids=lambda options: str(options["compression"]),
)
def test_parts_of_other_layouts(out: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    path = store.part_path(out, source="other", shard_id="c")
    expected = theodolite.dataset.open(out).row("clip_0547")
    rewrite(path, pq.ParquetFile(path).read(), **options)
    write_index(out)
    assert_same(without_parts(theodolite.dataset.open(out), monkeypatch).row("clip_0547"), expected)


@pytest.mark.slow
def test_older_parts_and_columns_of_a_later_writer(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.part_path(out, source="other", shard_id="c")
    table = pq.ParquetFile(path).read()
    sharpness = pa.array([[0.5, float(i)] for i in range(table.num_rows)])
    dropped = [
        "metres_per_unit_frame",
        "position_sigma_m",
        "decode_notes",
    ]  # nullable: an older file may lack them
    rewrite(path, table.drop_columns(dropped).append_column("sharpness", sharpness))
    write_index(out)
    row = without_parts(theodolite.dataset.open(out), monkeypatch).row("clip_0543")
    assert (row.position_sigma_m, row.decode_notes) == (None, ())
    assert row.reprojection_px is not None
    assert row.extra == {"sharpness": [0.5, 3.0]}


def test_a_part_that_no_footer_can_be_made_for_is_read_as_without_an_index(out: Path) -> None:
    path = store.part_path(out, source="other", shard_id="c")
    table = pq.ParquetFile(path).read()
    wide = table["focal_px"].cast(pa.list_(pa.field("element", pa.float64(), nullable=False)))
    number = table.schema.get_field_index("focal_px")
    rewrite(path, table.set_column(number, pa.field("focal_px", wide.type, nullable=False), wide))
    file = pq.ParquetFile(path)
    assert series_footers(file, file.schema_arrow) is None
    expected = theodolite.dataset.open(out).row("clip_0544")
    write_index(out)
    clips = theodolite.dataset.open(out)
    assert_same(clips.row("clip_0544"), expected)
    assert [Path(clips.files[i]).name for i in clips._open_parts] == ["part-c.parquet"]


@pytest.mark.parametrize("harm", ["removed", "cut short", "of another generation"])
def test_index_arrow_is_ignored_and_written_anew_when_it_does_not_fit(
    out: Path, make_row: Callable[..., Row], harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(out)
    rows = out / "index" / "other.arrow"
    before = rows.read_bytes()
    if harm == "removed":
        rows.unlink()
    elif harm == "cut short":
        rows.write_bytes(before[: len(before) // 2])
    else:
        store.write_part(
            out,
            [make_row(i, source="other", media="elsewhere.mp4") for i in range(540, 550)],
            shard_id="c",
            recipe_hash="recipe1",
        )
        write_index(out)
        rows.write_bytes(before)
    clips = theodolite.dataset.open(out)
    assert clips.index is not None
    media = {"clip_0001": "videos/1.mp4", "clip_0545": "videos/545.mp4"}
    if harm == "of another generation":
        media["clip_0545"] = "elsewhere.mp4"
    assert {i: clips.row(i).media for i in media} == media
    refresh_index(out)
    fresh = without_parts(theodolite.dataset.open(out), monkeypatch)
    assert {i: fresh.row(i).media for i in media} == media


def test_footers_are_parquet_to_another_reader(out: Path, tmp_path: Path) -> None:
    """The data of a part under one of the footers is a Parquet file with the series of one row group."""
    duckdb = pytest.importorskip("duckdb")
    path = store.part_path(out, source="demo", shard_id="b")
    store.write_table(pq.ParquetFile(path).read(), str(path), row_group_size=80)
    file = pq.ParquetFile(path)
    footers = series_footers(file, file.schema_arrow)
    assert footers is not None
    assert len(footers) == file.num_row_groups == 7
    data = path.read_bytes()[: -8 - file.metadata.serialized_size]
    columns = ", ".join(SERIES_COLUMNS)
    for group in (0, 3, 6):
        cut = tmp_path / "cut.parquet"
        cut.write_bytes(data + footers[group][4:])
        found = duckdb.sql(f"select * from '{cut}'").fetchall()
        start = 80 * group
        everything = duckdb.sql(
            f"select {columns} from read_parquet('{path}') limit 80 offset {start}"
        ).fetchall()
        # Columns of the footer follow the file, those of the query the schema; they have the same order.
        assert len(found) == len(everything) > 0
        assert found == everything


def test_filters_share_what_was_read(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_index(out)
    clips = theodolite.dataset.open(out)
    clips.row("clip_0000")
    accepted = without_parts(clips.where(pc.field("verdict") == "accepted"), monkeypatch)
    assert accepted._numbers is clips._numbers
    assert accepted.row("clip_0003").verdict == "rejected"  # a filter does not hide clips from `row`
