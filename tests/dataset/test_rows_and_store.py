"""Rows to Parquet and back, atomic parts, resume and refusals."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from theodolite.dataset import schema, store
from theodolite.dataset.rows import Row, rows_from_table, rows_to_table
from theodolite.dataset.schema import COLUMNS, SCHEMA_VERSION, arrow_schema, check_version
from theodolite.dataset.schema_page import reference_page, schema_markdown

from ..typed import wrong

MakeRow = Callable[..., Row]


def assert_rows_equal(a: Row, b: Row) -> None:
    for f in fields(Row):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=f.name)
        else:
            assert x == y, f.name


def test_every_column_has_a_field_and_a_unit() -> None:
    names = [c.name for c in COLUMNS]
    assert len(names) == len(set(names))
    assert {f.name for f in fields(Row)} - {"extra"} == set(names) - {"num_frames"}
    schema = arrow_schema()
    text = schema_markdown()
    for column in COLUMNS:
        assert column.unit
        assert column.meaning.endswith(".")
        assert schema.field(column.name).metadata[b"unit"] == column.unit.encode()
        assert f"| `{column.name}` |" in text
        for suffix, unit in (("_m", "m"), ("_px", "px"), ("_s", "s"), ("_rad", "rad")):
            if column.name.endswith(suffix):
                assert column.unit == unit, column.name


def test_row_survives_parquet_exactly(tmp_path: Path, make_row: MakeRow, make_rejected: MakeRow) -> None:
    rows = [
        make_row(0),
        make_rejected(1),
        make_row(2, frames=7, captions=None, confidence=None, radial_k1=-0.1),
    ]
    path = store.write_part(tmp_path, rows, shard_id="s0", recipe_hash="recipe1")
    assert path == tmp_path / "data/demo/part-s0.parquet"
    for a, b in zip(rows, rows_from_table(pq.read_table(path, partitioning=wrong(None))), strict=True):
        assert_rows_equal(a, b)
    assert store.part_metadata(path) == (SCHEMA_VERSION, "recipe1")
    table = pq.read_table(path, partitioning=wrong(None))
    assert table["num_frames"].to_pylist() == [33, 0, 7]
    assert [len(v) for v in table["camera_to_world"].to_pylist()] == [33 * 12, 0, 7 * 12]
    assert rows[0].intrinsics.shape == (33, 3, 3)


def test_unknown_columns_survive_and_missing_ones_are_named(make_row: MakeRow) -> None:
    table = rows_to_table([make_row(0)]).append_column("future_score", pa.array([0.5]))
    (row,) = rows_from_table(table)
    assert row.extra == {"future_score": 0.5}
    assert rows_to_table([row])["future_score"].to_pylist() == [0.5]
    with pytest.raises(ValueError, match="lacks the columns clip_id"):
        rows_from_table(table.drop_columns(["clip_id"]))
    with pytest.raises(ValueError, match="given for some rows only"):
        rows_to_table([row, make_row(1)])


def test_files_written_before_a_nullable_column_existed_are_read(make_row: MakeRow) -> None:
    later = [c.name for c in COLUMNS if c.nullable]
    (row,) = rows_from_table(rows_to_table([make_row(0)]).drop_columns(later))
    np.testing.assert_array_equal(row.camera_to_world, make_row(0).camera_to_world)
    assert row.decode_notes == ()
    assert rows_from_table(rows_to_table([row]))[0].decode_notes == ()


@pytest.mark.parametrize("name", ["gates", "camera_to_world", "stand_in", "num_frames"])
def test_nulls_where_none_may_be(make_row: MakeRow, name: str) -> None:
    table = rows_to_table([make_row(0), make_row(1)])
    i = table.schema.get_field_index(name)
    values = pa.array([table[name][0].as_py(), None], table.schema.field(i).type)
    holed = table.set_column(i, pa.field(name, values.type), values)
    with pytest.raises(ValueError, match=f"column {name} holds nulls"):
        rows_from_table(holed)
    assert rows_from_table(holed.slice(0, 0)) == []


def test_newer_schema_is_refused() -> None:
    assert check_version({b"theodolite.schema_version": b"1"}, where="f") == 1
    assert check_version({b"theodolite.schema_version": b"2"}, where="f") == 2
    with pytest.raises(ValueError, match="version 3, this reader knows 2"):
        check_version({b"theodolite.schema_version": b"3"}, where="f")
    with pytest.raises(ValueError, match="not a theodolite dataset"):
        check_version({}, where="f")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_id": "a.b"}, "letters, digits"),
        ({"source": "a/b"}, "source 'a/b'"),
        ({"verdict": "maybe"}, "verdict is 'maybe', expected one of accepted, rejected"),
        ({"scale_model": "linear"}, "scale_model is 'linear'"),
        ({"time_s": np.arange(3.0)}, "33 frame_index but 3 time_s"),
        ({"focal_px": np.ones((5, 2))}, "5 focal_px but 33 camera_to_world"),
        ({"focal_px": np.ones(33)}, r"focal_px has shape \(33,\), expected \(F, 2\)"),
        ({"camera_to_world": np.zeros((2, 4, 4))}, "2 camera_to_world but 33 frames"),
        ({"reprojection_px": np.ones(2)}, "2 reprojection_px but 33 frames"),
        ({"pose_source": ["guessed"] * 33}, "pose_source has"),
        ({"weights": ("a", "b")}, "2 weights but 1 weight_licences"),
        ({"reasons": "too_short"}, "must be a sequence"),
        ({"verdict": "rejected"}, "rejected without a reason"),
        ({"reasons": ("x",), "reason_details": ("y",)}, "accepted, but has rejection reasons"),
        ({"scale_frame": [1]}, "1 scale_frame but 9 scale_value"),
    ],
)
def test_row_refuses(make_row: MakeRow, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_row(0, **changes)


def test_rows_are_frozen_copies(make_row: MakeRow) -> None:
    poses = np.tile(np.eye(4), (33, 1, 1))
    row = make_row(0, camera_to_world=poses)
    poses[:] = 7
    assert row.camera_to_world[0, 0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        row.camera_to_world[0, 0, 0] = 2
    assert make_row(0, camera_to_world=np.tile(np.eye(4)[:3], (33, 1, 1))).camera_to_world.shape == (33, 4, 4)


def test_same_rows_give_same_bytes(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [make_row(i) for i in range(5)]
    first = store.write_part(tmp_path / "a", rows, shard_id="s", recipe_hash="recipe1").read_bytes()
    assert store.write_part(tmp_path / "b", rows, shard_id="s", recipe_hash="recipe1").read_bytes() == first


def test_prepare_output_resumes_cleans_and_refuses(tmp_path: Path, make_row: MakeRow) -> None:
    out = tmp_path / "out"
    store.prepare_output(out, recipe_hash="recipe1")
    store.write_part(out, [make_row(0)], shard_id="00", recipe_hash="recipe1")
    stale = out / "data/demo/.tmp-part-01.parquet-1-abc"
    stale.write_bytes(b"half")
    store.prepare_output(out, recipe_hash="recipe1")
    assert not stale.exists()
    with pytest.raises(ValueError, match="was written with recipe hash recipe1, this run has recipe2"):
        store.prepare_output(out, recipe_hash="recipe2")
    with pytest.raises(ValueError, match="is a file"):
        store.prepare_output(out / "dataset.json", recipe_hash="recipe1")
    (out / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        store.prepare_output(out, recipe_hash="recipe1")


def test_write_part_refuses_what_does_not_belong_together(tmp_path: Path, make_row: MakeRow) -> None:
    for rows, message in [
        ([], "no rows"),
        ([make_row(0), make_row(1, source="other")], "several sources"),
        ([make_row(0), make_row(0)], "occurs more than once"),
        ([make_row(0, recipe_hash="x")], "made by recipe x"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.write_part(tmp_path, rows, shard_id="s", recipe_hash="recipe1")
    with pytest.raises(ValueError, match="shard id"):
        store.write_part(tmp_path, [make_row(0)], shard_id="a/b", recipe_hash="recipe1")
    assert not (tmp_path / "data").exists()


def test_full_disk_is_clear_and_leaves_nothing(
    tmp_path: Path, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left to write"):
        store.write_part(tmp_path, [make_row(0)], shard_id="s", recipe_hash="recipe1")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.slow
def test_killed_writer_leaves_whole_parts_only(tmp_path: Path, make_row: MakeRow) -> None:
    """kill -9 at arbitrary moments while parts are rewritten in a loop: every visible part stays readable."""
    script = textwrap.dedent(
        """
        import sys, pickle
        from pathlib import Path
        from theodolite.dataset.store import write_part
        rows = pickle.loads(Path(sys.argv[2]).read_bytes())
        print("go", flush=True)
        while True:
            for i in range(3):
                write_part(sys.argv[1], rows, shard_id=f"s{i}", recipe_hash="recipe1")
        """
    )
    rows = [replace(make_row(0), clip_id=f"c{i}") for i in range(20)]
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(rows))
    out = tmp_path / "out"
    reference = store.write_part(tmp_path / "ref", rows, shard_id="s", recipe_hash="recipe1").read_bytes()
    for delay in (0.01, 0.037):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(out), str(tmp_path / "rows.pkl")],
            stdout=subprocess.PIPE,
            cwd=tmp_path,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for part in store.list_parts(out):
            assert part.read_bytes() == reference
    store.clean_temporaries(out)
    assert not list(out.rglob(".tmp-*"))
    assert {part.stem for part in store.list_parts(out)} <= {"part-s0", "part-s1", "part-s2"}


def test_reference_page_is_up_to_date() -> None:
    page = Path(schema.__file__).with_name("SCHEMA.md").read_text(encoding="utf-8")
    assert page == reference_page(), (
        "write it anew: python -m theodolite.dataset.schema_page > dataset/SCHEMA.md"
    )
