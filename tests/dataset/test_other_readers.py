"""What others read and write: a run's folder in `datasets`, pandas, polars and DuckDB; their filtered copies here; and
folders of schema version 1."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset import store
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.compact import compact
from theodolite.dataset.export import export_dataset, write_subset
from theodolite.dataset.formats.trajectories import read_tum
from theodolite.dataset.index import refresh_index, write_index
from theodolite.dataset.publish import stage_publication
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.report.write import write_report
from theodolite.dataset.rows import Row
from theodolite.dataset.schema import COLUMNS, NAMED_COLUMNS
from theodolite.dataset.validate import validate_dataset

BARE = {
    name: None
    for name in (
        "radial_k1",
        "stage_wall_s",
        "metrics",
        "captions",
        "confidence",
        "num_tracks",
        "position_sigma_m",
    )
}
"""Columns that may be null, null."""


@pytest.fixture(scope="module")
def shards(make_row: Callable[..., Row], make_rejected: Callable[..., Row]) -> dict[str, list[Row]]:
    return {
        "a": [make_row(0), make_row(1, frames=20, **BARE), make_rejected(2, error="Traceback: Bäume / 木")],
        "b": [make_row(3, log_focal_sigma=np.r_[np.nan, np.full(32, 0.004)])],
        "c": [
            make_row(4, source="test", captions={"scene": "Ein Zimmer. 部屋"}),
            make_rejected(5, source="test"),
        ],
    }


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory, shards: dict[str, list[Row]], make_dataset: Callable
) -> Path:
    """With index, as a run leaves it; one of the sources has the name of a split."""
    folder = make_dataset(tmp_path_factory.mktemp("two") / "run", shards)
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def old(
    tmp_path_factory: pytest.TempPathFactory, shards: dict[str, list[Row]], make_version_1: Callable
) -> Path:
    return make_version_1(tmp_path_factory.mktemp("one") / "run", shards)


def assert_same_row(a: Row, b: Row) -> None:
    for name in Row.__dataclass_fields__:
        if name == "schema_version":
            continue
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            assert x == y, name


def named(values: Any) -> dict[str, Any]:
    return {x["name"]: x["value"] for x in values}


# ------------------------------------------------------------------ their readers, our files


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folder", "data_files", "data_dir", "streaming", "data folder"])
def test_load_dataset(out: Path, tmp_path: Path, shards: dict[str, list[Row]], way: str) -> None:
    datasets = pytest.importorskip("datasets")
    options: dict[str, Any] = {
        "folder": {"path": str(out)},
        "data_files": {"path": "parquet", "data_files": f"{out}/data/*/*.parquet"},
        "data_dir": {"path": str(out), "data_dir": "data/demo"},
        "streaming": {"path": str(out), "streaming": True},
        "data folder": {"path": "parquet", "data_dir": f"{out}/data/demo"},
    }[way]
    loaded = datasets.load_dataset(**options, split="train", cache_dir=str(tmp_path))
    rows = {row["clip_id"]: row for row in loaded}
    expected = {r.clip_id: r for part in shards.values() for r in part}
    everything = way in ("folder", "data_files", "streaming")
    assert set(rows) == {i for i, r in expected.items() if everything or r.source == "demo"}
    row = rows["clip_0000"]
    assert len(row) == len(store.read_schema(store.part_path(out, source="demo", shard_id="a")).names)
    np.testing.assert_array_equal(
        np.float32(row["camera_to_world"]).reshape(-1, 3, 4), expected["clip_0000"].camera_to_world[:, :3]
    )
    assert named(row["metrics"]) == {"vmaf_motion": 7.5}
    assert named(row["captions"]) == {"scene": "A room."}
    assert row["gates"][0]["name"] == "fov_x"
    assert rows["clip_0001"]["metrics"] is None
    if way != "streaming":
        assert loaded.features["camera_to_world"].feature.dtype == "float32"
        assert loaded.to_pandas()["time_s"][0].tolist() == expected["clip_0000"].time_s.tolist()


def test_pandas_and_pyarrow_read_the_data_folder(out: Path, shards: dict[str, list[Row]]) -> None:
    expected = [r for part in shards.values() for r in part]
    frame = pd.read_parquet(out / "data")
    table = pq.read_table(out / "data")
    hive = pads.dataset(out / "data", partitioning="hive").to_table()
    assert frame["source"].tolist() == table["source"].to_pylist() == hive["source"].to_pylist()
    assert frame["source"].tolist() == [r.source for r in expected]
    assert frame["clip_id"].tolist() == [r.clip_id for r in expected]
    np.testing.assert_array_equal(
        frame["camera_to_world"][3].reshape(-1, 3, 4), expected[3].camera_to_world[:, :3]
    )
    assert named(frame["stage_wall_s"][0]) == {"decode": 0.25, "bundle": 0.75}
    assert frame["metrics"][1] is None


@pytest.mark.slow
def test_a_staged_publication_loads_by_its_card(out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    stage_publication(out, tmp_path / "pub")
    cache = str(tmp_path / "cache")
    everything = datasets.load_dataset(str(tmp_path / "pub"), split="train", cache_dir=cache)
    assert sorted(everything["clip_id"]) == [f"clip_{i:04d}" for i in range(6)]
    one = datasets.load_dataset(str(tmp_path / "pub"), "test", split="train", cache_dir=cache)
    assert sorted(one["clip_id"]) == ["clip_0004", "clip_0005"]
    assert validate_dataset(tmp_path / "pub") == (6, [])


# ------------------------------------------------------------------ their copies, our reader


def _by_polars(out: Path, file: Path) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.read_parquet(f"{out}/data/*/*.parquet").filter(pl.col("verdict") == "accepted")
    frame.select(sorted(frame.columns, reverse=True)).write_parquet(file)


def _by_duckdb(out: Path, file: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    duckdb.sql(
        f"copy (select verdict, * exclude (verdict, focal_px), focal_px::double[] as focal_px "
        f"from '{out}/data/*/*.parquet' where verdict = 'accepted') to '{file}'"
    )


def _by_pandas(out: Path, file: Path) -> None:
    parts = [pq.ParquetFile(part).read().to_pandas() for part in store.list_parts(out)]
    frame = pd.concat(parts, ignore_index=True)
    for name in NAMED_COLUMNS:  # pandas shows a map as pairs, which it does not write again
        frame[name] = [
            v
            if v is None or not len(v) or isinstance(v[0], dict)
            else [{"name": k, "value": x} for k, x in v]
            for v in frame[name]
        ]
    frame[frame["verdict"] == "accepted"].to_parquet(file)


def _by_pyarrow(out: Path, file: Path) -> None:
    table = pads.dataset([str(p) for p in store.list_parts(out)]).to_table(
        filter=pc.field("verdict") == "accepted"
    )
    pq.write_table(table, file)


def _by_datasets(out: Path, file: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(p) for p in store.list_parts(out)]
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(file.parent / "cache")
    )
    loaded.filter(lambda row: row["verdict"] == "accepted").to_parquet(file)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("write", [_by_polars, _by_duckdb, _by_pandas, _by_pyarrow, _by_datasets])
def test_a_filtered_copy_opens_validates_and_exports(
    out: Path, old: Path, tmp_path: Path, shards: dict[str, list[Row]], write: Callable, version: int
) -> None:
    if version == 1 and write is _by_datasets:
        pytest.skip("datasets does not read maps")
    file = tmp_path / "subset" / "good.parquet"
    file.parent.mkdir()
    write(old if version == 1 else out, file)
    shutil.rmtree(tmp_path / "subset" / "cache", ignore_errors=True)
    expected = {r.clip_id: r for part in shards.values() for r in part if r.verdict == "accepted"}
    for path in (file, file.parent):
        clips = theodolite.dataset.open(path)
        assert len(clips) == 4
        assert clips.counts("source") == {("demo",): 3, ("test",): 1}
        assert len(clips.where(pc.field("source") == "test")) == 1
        rows = {r.clip_id: r for r in clips.rows()}
        assert set(rows) == set(expected)
        for clip_id, row in expected.items():
            assert_same_row(rows[clip_id], row)
            assert_same_row(clips.row(clip_id), row)
        assert validate_dataset(path) == (4, [])
        assert export_dataset(path, tmp_path / f"tum-{path.name}", format="tum").num_clips == 4
        assert set(load_cameras(path)) == set(expected)
    back = read_tum(tmp_path / "tum-subset" / "clip_0003.tum")
    np.testing.assert_allclose(back.camera_to_world, expected["clip_0003"].camera_to_world, atol=1e-6)
    if write is _by_polars:
        assert write_report(file).is_file()
        assert file.with_suffix(".html").is_file()
        assert inspect_text(file).endswith("4 clips: 4 accepted")
    stage_publication(file, tmp_path / "pub")
    assert validate_dataset(tmp_path / "pub") == (4, [])


def test_what_a_copy_must_keep(out: Path, tmp_path: Path) -> None:
    table = pq.ParquetFile(store.list_parts(out)[0]).read().replace_schema_metadata(None)
    pq.write_table(table.drop_columns(["focal_px", "pose_source"]), tmp_path / "few.parquet")
    with pytest.raises(
        ValueError, match=r"few\.parquet: not a theodolite .* lacks the columns focal_px, pose_source"
    ):
        theodolite.dataset.open(tmp_path / "few.parquet")
    (tmp_path / "parted" / "data" / "source=demo").mkdir(parents=True)
    pq.write_table(table.drop_columns(["source"]), tmp_path / "parted" / "data" / "source=demo" / "0.parquet")
    with pytest.raises(ValueError, match="lacks the columns source; a copy that is partitioned by source"):
        theodolite.dataset.open(tmp_path / "parted")
    # pyarrow keeps our metadata where it leaves a column out.
    whole = pq.ParquetFile(store.list_parts(out)[0]).read()
    pq.write_to_dataset(whole, tmp_path / "hive", partition_cols=["source"])
    with pytest.raises(ValueError, match="it lacks the columns source; a copy that is partitioned"):
        theodolite.dataset.open(tmp_path / "hive")
    assert [v.rule for v in validate_dataset(tmp_path / "hive")[1]]
    text = table["height"].cast("string")
    odd = table.set_column(table.schema.get_field_index("gates"), "gates", text)
    pq.write_table(odd, tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match=r"odd\.parquet: column gates has type string"):
        theodolite.dataset.open(tmp_path / "odd.parquet")
    assert [v.rule for v in validate_dataset(tmp_path / "odd.parquet")[1]] == ["declared_columns"]
    later = pa.chunked_array([[7] * table.num_rows], table["schema_version"].type)
    pq.write_table(table.set_column(0, "schema_version", later), tmp_path / "later.parquet")
    with pytest.raises(ValueError, match="rows of schema version 7, this reader knows 2"):
        next(theodolite.dataset.open(tmp_path / "later.parquet").rows())
    assert {v.rule for v in validate_dataset(tmp_path / "later.parquet")[1]} == {"schema_version"}


def test_columns_that_may_be_null_may_be_missing(out: Path, tmp_path: Path) -> None:
    """In copies, and in what earlier versions wrote: they are read as nulls, also where clips are chosen."""
    table = pads.dataset(out / "data", format="parquet").to_table()
    kept = [c.name for c in COLUMNS if not c.nullable]
    pq.write_table(table.select(kept), tmp_path / "few.parquet")
    clips = theodolite.dataset.open(tmp_path / "few.parquet")
    one = clips.where(pc.field("clip_id") == clips.to_table(["clip_id"])["clip_id"][0])
    for chosen in (clips, one):
        found = chosen.to_table(["radial_k1", "clip_id"])
        assert found.column_names == ["radial_k1", "clip_id"]
        assert found["radial_k1"].null_count == len(found) == len(chosen)
        assert sum(batch.num_rows for batch in chosen.batches(["radial_k1", "clip_id"])) == len(chosen)
    assert f"{len(clips)} clips" in inspect_text(tmp_path / "few.parquet")
    write_report(tmp_path / "few.parquet", tmp_path / "report")


# ------------------------------------------------------------------ version 1


@pytest.mark.slow
@pytest.mark.parametrize("indexed", [False, True])
def test_version_1_is_read_as_before(
    old: Path, tmp_path: Path, shards: dict[str, list[Row]], indexed: bool
) -> None:
    folder = Path(shutil.copytree(old, tmp_path / "run"))
    expected = {r.clip_id: r for part in shards.values() for r in part}
    if indexed:
        refresh_index(folder)
    clips = theodolite.dataset.open(folder)
    assert (clips.index is not None) is indexed
    assert clips.counts("source", "verdict")[("test", "rejected")] == 1
    for row in (*clips.rows(), *map(clips.row, expected)):
        assert row.schema_version == 1
        assert_same_row(row, expected[row.clip_id])
    assert len(clips.where(pc.field("source") == "test").to_table()) == 2
    assert named(clips.to_table(["metrics"])["metrics"].to_pylist()[0]) == {"vmaf_motion": 7.5}
    assert validate_dataset(folder) == (6, [])
    assert set(load_cameras(folder)) == {"clip_0000", "clip_0001", "clip_0003", "clip_0004"}
    assert export_dataset(folder, tmp_path / "nerf", format="nerfstudio").num_clips == 4
    stage_publication(folder, tmp_path / "pub")
    assert validate_dataset(tmp_path / "pub") == (6, [])
    assert theodolite.dataset.open(tmp_path / "pub").row("clip_0000").schema_version == 2
    assert write_subset(folder, tmp_path / "new", where="num_frames >= 0") == (6, 6)
    assert validate_dataset(tmp_path / "new") == (6, [])
    for row in theodolite.dataset.open(tmp_path / "new").rows():
        assert row.schema_version == 2
        assert_same_row(row, expected[row.clip_id])


def test_a_folder_of_both_versions(
    old: Path, tmp_path: Path, make_row: Callable[..., Row], shards: dict[str, list[Row]]
) -> None:
    folder = Path(shutil.copytree(old, tmp_path / "run"))
    store.write_part(folder, [make_row(7)], shard_id="a", recipe_hash="recipe1")
    for _ in range(2):
        clips = theodolite.dataset.open(folder)
        assert len(clips) == 7
        assert {r.clip_id: r.metrics for r in clips.rows()}["clip_0007"] == {"vmaf_motion": 7.5}
        assert_same_row(clips.row("clip_0000"), shards["a"][0])
        assert clips.to_table(["captions"]).num_rows == 7
        assert validate_dataset(folder) == (7, [])
        write_index(folder)


def test_parts_of_version_1_are_gathered_as_those_of_any_other(
    tmp_path: Path, make_version_1: Callable, make_row: Callable[..., Row]
) -> None:
    shards = {f"00000{n}-x": [make_row(2 * n), make_row(2 * n + 1)] for n in range(3)}
    folder = make_version_1(tmp_path / "run", shards)
    done = compact(folder)
    assert (done.num_before, done.num_after, done.num_clips) == (3, 1, 6)
    for part in store.list_parts(folder):
        assert part.parent == folder / "data" / "source=demo"
    assert validate_dataset(folder) == (6, [])
    assert [row.schema_version for row in theodolite.dataset.open(folder).rows()] == [1] * 6


def test_a_run_does_not_go_on_in_a_folder_of_version_1(old: Path) -> None:
    with pytest.raises(
        ValueError, match="holds schema version 1, this version of theodolite writes 2; choose another"
    ):
        store.prepare_output(old, recipe_hash="recipe1")


# ------------------------------------------------------------------ where it lies


def test_relative_paths_links_and_folders_without_permission(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: dict[str, list[Row]]
) -> None:
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "parts" / "data").mkdir(parents=True)
    (tmp_path / "parts" / "data" / "demo").symlink_to(out / "data" / "demo")
    (tmp_path / "parts" / "data" / "again").symlink_to(tmp_path / "parts")
    assert len(theodolite.dataset.open(tmp_path / "link")) == 6
    assert len(theodolite.dataset.open(tmp_path / "parts")) == 4
    monkeypatch.chdir(out.parent)
    clips = theodolite.dataset.open("run")
    monkeypatch.chdir(tmp_path)
    assert_same_row(clips.row("clip_0003"), shards["b"][0])
    assert len(list(clips.rows())) == 6
