"""Reading as users do: lazily, with filters, by id, with pandas, DuckDB and polars."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from theodolite.dataset import store
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.index import refresh_index, write_index
from theodolite.dataset.rows import Row
from theodolite.recipes.command import call
from theodolite.recipes.commands.evaluate import evaluate


@pytest.fixture
def out(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    return make_dataset(
        tmp_path / "out",
        {
            "a": [make_row(0), make_row(1, frames=5), make_rejected(2)],
            "b": [make_row(3)],
            "c": [make_row(4, source="other"), make_rejected(5, source="other")],
        },
    )


def test_lazy_filters_and_pandas(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    assert len(clips) == 6
    accepted = clips.where(pc.field("verdict") == "accepted")
    assert len(accepted) == 4
    assert len(accepted.where(pc.field("source") == "other")) == 1
    assert clips.counts("source", "verdict") == {
        ("demo", "accepted"): 3,
        ("demo", "rejected"): 1,
        ("other", "accepted"): 1,
        ("other", "rejected"): 1,
    }
    frame = accepted.to_pandas(["clip_id", "camera_to_world", "num_frames"])
    assert frame["camera_to_world"][1].reshape(-1, 3, 4).shape == (5, 3, 4)
    assert frame.columns.tolist() == ["clip_id", "camera_to_world", "num_frames"]
    with pytest.raises(ValueError, match="no column focal;"):
        clips.to_table(["focal"])


def test_one_clip_by_id(out: Path, make_row: Callable[..., Row]) -> None:
    clips = theodolite.dataset.open(str(out))
    row = clips.row("clip_0003")
    np.testing.assert_array_equal(row.camera_to_world, make_row(3).camera_to_world)
    assert clips.row("clip_0005").source == "other"
    with pytest.raises(KeyError, match="no clip 'nope' among 6"):
        clips.row("nope")
    assert [r.clip_id for r in clips.rows()] == [f"clip_{i:04d}" for i in range(6)]


def test_columns_of_a_later_writer_are_kept(out: Path) -> None:
    path = store.part_path(out, source="demo", shard_id="b")
    table = pq.ParquetFile(path).read()
    store.write_table(table.append_column("sharpness", [[0.5]]), str(path), row_group_size=1)
    clips = theodolite.dataset.open(out)
    assert clips.row("clip_0003").extra == {"sharpness": 0.5}
    assert clips.row("clip_0000").extra == {"sharpness": None}
    assert clips.to_table(["sharpness"])["sharpness"].to_pylist() == [None, None, None, 0.5, None, None]
    metadata = {**table.schema.metadata, b"theodolite.schema_version": b"3"}
    store.write_table(table.replace_schema_metadata(metadata), str(path), row_group_size=1)
    with pytest.raises(ValueError, match=r"part-b\.parquet: schema version 3"):
        theodolite.dataset.open(out)


def test_duckdb_reads_the_files_as_they_are(out: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    files = f"{out}/data/*/*.parquet"
    table = f"read_parquet('{files}', hive_partitioning=true)"
    assert duckdb.sql(
        f"select source, verdict, count(*) from {table} group by all order by all"
    ).fetchall() == [
        ("demo", "accepted", 3),
        ("demo", "rejected", 1),
        ("other", "accepted", 1),
        ("other", "rejected", 1),
    ]
    poses, gate, text = duckdb.sql(
        f"select camera_to_world, gates[1].name, captions[1].value from {table} where clip_id = 'clip_0003'"
    ).fetchall()[0]
    row = theodolite.dataset.open(out).row("clip_0003")
    np.testing.assert_array_equal(np.float32(poses).reshape(-1, 3, 4), row.camera_to_world[:, :3])
    assert gate == "fov_x"
    assert text == "A room."


def test_polars_reads_the_files_as_they_are(out: Path) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.read_parquet(f"{out}/data/*/*.parquet")
    assert frame.height == 6
    poses = frame.filter(pl.col("clip_id") == "clip_0003")["camera_to_world"][0].to_numpy()
    row = theodolite.dataset.open(out).row("clip_0003")
    np.testing.assert_array_equal(poses.reshape(-1, 3, 4), row.camera_to_world[:, :3])


def test_what_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        theodolite.dataset.open(tmp_path / "absent" / "deep")
    with pytest.raises(ValueError, match="holds no Parquet files"):
        theodolite.dataset.open(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part-x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        theodolite.dataset.open(tmp_path)


def test_hub_ids_are_read_through_the_hub_file_system(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's file system is replaced by a local one of the same interface: no network in tests."""

    class Local(DirFileSystem):
        def __init__(self) -> None:
            super().__init__(path=str(out.parent / "hub"), fs=LocalFileSystem())

    (out.parent / "hub" / "datasets" / "owner").mkdir(parents=True)
    out.rename(out.parent / "hub" / "datasets" / "owner" / "name")
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Local)
    clips = theodolite.dataset.open("owner/name")
    assert len(clips) == 6
    assert clips.row("clip_0004").source == "other"
    assert set(load_cameras("owner/name").clips) == set(load_cameras(Path("owner/name")).clips)
    text, code = call(
        evaluate, predicted=Path("owner/name"), truth=Path("owner/name")
    )  # as `theodolite evaluate` calls it
    assert code == 0
    assert "clip_0004" in text
    with pytest.raises(ValueError, match="holds no Parquet files"):
        theodolite.dataset.open("owner/absent")


def test_the_index_answers_like_the_parts_and_is_ignored_when_stale(
    out: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    plain = theodolite.dataset.open(out)
    write_index(out)
    fast = theodolite.dataset.open(out)
    assert fast.index is not None
    accepted = pc.field("verdict") == "accepted"
    assert fast.counts("source", "verdict") == plain.counts("source", "verdict")
    assert fast.where(accepted).to_table(["clip_id", "gates"]) == plain.where(accepted).to_table(
        ["clip_id", "gates"]
    )
    assert len(fast.where(pc.field("reprojection_rms_px") < 1)) == 4
    assert "arrow" not in fast.__dict__  # no footer was read for any of this
    for clip_id in ("clip_0000", "clip_0003", "clip_0005"):
        a, b = fast.row(clip_id), plain.row(clip_id)
        np.testing.assert_array_equal(a.camera_to_world, b.camera_to_world)
        assert (a.reasons, a.stage_wall_s, a.source) == (b.reasons, b.stage_wall_s, b.source)
    assert "arrow" not in fast.__dict__
    assert (
        fast.where(pc.field("error").is_null()).to_table(["clip_id"]).num_rows == 6
    )  # the index lacks this column
    assert fast.to_table(["clip_id", "camera_to_world"]).num_rows == 6
    with pytest.raises(ValueError, match="no column focal;"):
        fast.to_table(["focal"])
    make_dataset(out, {"z": [make_row(9)]})
    grown = theodolite.dataset.open(out)
    assert grown.index is None
    assert len(grown) == 7
    write_index(out)
    part = store.part_path(out, source="demo", shard_id="z")
    store.write_part(out, [make_row(9, media="elsewhere.mp4")], shard_id="z", recipe_hash="recipe1")
    assert part.is_file()
    assert theodolite.dataset.open(out).row("clip_0009").media == "elsewhere.mp4"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["added", "removed", "replaced", "replaced by one as old and as long"])
def test_a_stale_index_is_noticed(
    out: Path, make_row: Callable[..., Row], make_dataset: Callable, change: str
) -> None:
    victim = store.part_path(out, source="demo", shard_id="b")
    write_index(out)
    assert refresh_index(out) == out / "index"
    stamp, ids = victim.stat(), {f"clip_{i:04d}" for i in range(6)}
    if change == "added":
        make_dataset(out, {"z": [make_row(9)]})
        ids |= {"clip_0009"}
    elif change == "removed":
        victim.unlink()
        ids -= {"clip_0003"}
    else:
        store.write_part(out, [make_row(3, clip_id="clip_0008")], shard_id="b", recipe_hash="recipe1")
        ids = ids - {"clip_0003"} | {"clip_0008"}
        if "long" in change:
            assert victim.stat().st_size == stamp.st_size
            os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns - 10**9))
    stale = theodolite.dataset.open(out)
    assert stale.index is None
    refresh_index(out)
    fresh = theodolite.dataset.open(out)
    assert fresh.index is not None
    for clips in (stale, fresh):
        assert set(clips.to_table(["clip_id"])["clip_id"].to_pylist()) == ids
        assert {clips.row(i).clip_id for i in ids} == ids
        assert {r.clip_id for r in clips.where(pc.field("num_frames") > 0).rows()} == {
            r.clip_id for r in clips.rows() if r.num_frames
        }


@pytest.mark.parametrize("indexed", [True, False])
def test_a_part_rewritten_under_an_open_dataset_is_noticed(
    out: Path, make_row: Callable[..., Row], indexed: bool
) -> None:
    if indexed:
        refresh_index(out)
    clips = theodolite.dataset.open(out)
    assert clips.row("clip_0000").clip_id == "clip_0000"
    store.write_part(out, [make_row(8)], shard_id="b", recipe_hash="recipe1")
    with pytest.raises(ValueError, match=r"part-b\.parquet: was rewritten since"):
        clips.row("clip_0003")
    if indexed:
        with pytest.raises(ValueError, match=r"part-b\.parquet: was rewritten since"):
            list(clips.where(pc.field("num_frames") > 0).batches(["camera_to_world"]))
    assert clips.row("clip_0000").clip_id == "clip_0000"


def test_sources_of_which_one_name_begins_with_the_other(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    for number, source in enumerate(("demo", "demo-2", "demo_3")):
        make_dataset(tmp_path, {str(number): [make_row(number, source=source)]})
    refresh_index(tmp_path)
    clips = theodolite.dataset.open(tmp_path)
    assert clips.index is not None
    assert [clips.row(f"clip_{i:04d}").source for i in range(3)] == ["demo", "demo-2", "demo_3"]


@pytest.mark.slow
def test_clips_of_more_parts_than_files_may_be_open(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    out = tmp_path / "out"
    store.prepare_output(out, recipe_hash="recipe1")
    for i in range(150):
        store.write_part(out, [make_row(i, frames=3)], shard_id=f"{i:03d}", recipe_hash="recipe1")
    refresh_index(out)
    script = """
import resource, sys, pyarrow.fs, theodolite.dataset
clips = theodolite.dataset.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (110, 110))
print(sum(clips.row(f"clip_{i:04d}").num_frames for _ in range(2) for i in range(150)))
"""
    for parts_alone in (False, True):
        if parts_alone:
            (
                out / "index" / "demo.arrow"
            ).unlink()  # rows then come from the parts alone, of which some are kept open
        done = subprocess.run(
            [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, "900"), done.stderr


@pytest.mark.slow
def test_streams_with_and_without_index_agree(out: Path) -> None:
    path = store.part_path(out, source="demo", shard_id="b")
    table = pq.ParquetFile(path).read()
    store.write_table(table.append_column("sharpness", [[0.5]]), str(path), row_group_size=1)
    plain = theodolite.dataset.open(out)
    write_index(out)
    fast = theodolite.dataset.open(out)
    assert fast.index is not None
    for condition in (
        None,
        pc.field("verdict") == "accepted",
        pc.field("num_frames") == 5,
        pc.field("fps").is_null(),
    ):
        a, b = (c if condition is None else c.where(condition) for c in (plain, fast))
        for columns in (["clip_id", "camera_to_world"], ["sharpness", "clip_id"]):
            x, y = (pa.Table.from_batches(list(c.batches(columns, batch_size=2))) for c in (a, b))
            assert x.schema.names == columns
            assert x.to_pylist() == y.to_pylist()
        assert [r.clip_id for r in a.rows()] == [r.clip_id for r in b.rows()]
    assert list(fast.where(pc.field("clip_id") == "nope").batches()) == []


def test_parts_that_another_command_replaced_meanwhile_are_said(tmp_path, make_row, make_dataset) -> None:
    out = make_dataset(tmp_path / "d", {"a": [make_row(0)], "b": [make_row(1)]})
    for read in (
        lambda clips: clips.to_table(["clip_id", "camera_to_world"]),
        lambda clips: list(clips.where("verdict = 'accepted'").batches()),
        lambda clips: list(clips.batches()),
        lambda clips: clips.row("clip_0001"),
    ):
        clips = theodolite.dataset.open(out)
        part = store.list_parts(out)[1]
        part.rename(tmp_path / "gone")
        with pytest.raises(
            ValueError, match=rf"{part.name}: is gone since the dataset was opened; open it again"
        ):
            read(clips)
        (tmp_path / "gone").rename(part)
