"""An index that somebody else made to harm: clips are read all the same, from their parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset import clip_rows, limits
from theodolite.dataset.clip_rows import FOOTER, open_clip_rows, write_clip_rows
from theodolite.dataset.index import refresh_index
from theodolite.dataset.inputs import InputError
from theodolite.dataset.limits import FREE_BYTES
from theodolite.dataset.parquet import sealed


@pytest.fixture
def indexed(out: Path) -> Path:
    """The Parquet file of an index of four clips."""
    refresh_index(out)
    return out / "index" / "demo.parquet"


def say(piece: Path, **words: Any) -> None:
    """Have the Parquet file say something else, under a seal of its own."""
    notes = notes_of(piece) | {f"theodolite.{key}": json.dumps(value) for key, value in words.items()}
    notes |= {"theodolite.tally": words["tally"]} if isinstance(words.get("tally"), str) else {}
    table = pq.read_table(piece).replace_schema_metadata(None)
    piece.write_bytes(sealed(table, notes, compression="zstd", row_group_size=1 << 20))


def notes_of(piece: Path) -> dict[str, str]:
    found = {key.decode(): value.decode() for key, value in pq.read_metadata(piece).metadata.items()}
    return {key: value for key, value in found.items() if key not in ("ARROW:schema", "theodolite.seal")}


def said(piece: Path, name: str) -> Any:
    return json.loads(notes_of(piece)[f"theodolite.{name}"])


def with_column(piece: Path, name: str, values: pa.Array) -> None:
    """Put other values into the Arrow file, as its writer does."""
    table = pa.ipc.open_file(piece.with_suffix(".arrow")).read_all()
    footers = table[FOOTER].to_pylist()
    table = table.drop_columns([FOOTER])
    if name in table.schema.names:
        table = table.drop_columns([name])
    table = table.append_column(name, values)
    say(piece, batches=write_clip_rows(piece.with_suffix(".arrow"), table, footers))


def check(out: Path, make_row: Callable[..., Any]) -> None:
    clips = theodolite.dataset.open(out)
    assert clips.index is not None
    assert np.array_equal(clips.row("clip_0000").camera_to_world, make_row(0).camera_to_world)
    assert (clips.tally().accepted, clips.tally().done) == (3, 4)
    refresh_index(out)
    assert clips.row("clip_0001").clip_id == "clip_0001"


@pytest.mark.parametrize(
    "change",
    [
        {"batches": {}},
        {"batches": []},
        {"rows": 0},
        {"rows": "many"},
        {"rows": -256},
        {"batches_of": []},
        {"batches_of": [[-5, 10, 0]]},
        {"batches_of": [[0, 1 << 40, 0]]},
        {"schema": "AAAA"},
        {"tally": '{"accepted": Infinity, "rejected": {}, "failed_for": {}, "failed": []}'},
        {"tally": '{"accepted": 4, "rejected": {}, "failed_for": {}, "failed": 5}'},
        {"tally": "[" * 100_000},
    ],
)
def test_what_it_says_of_itself_is_checked(indexed: Path, out: Path, make_row, change: dict) -> None:
    if "tally" in change or "batches" in change:
        say(indexed, **change)
    else:
        known = said(indexed, "batches")
        say(indexed, batches=known | {key.removesuffix("_of"): value for key, value in change.items()})
    check(out, make_row)


def test_a_batch_is_judged_before_it_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen kilobytes of zstd took half a gigabyte."""
    monkeypatch.setattr(limits, "FREE_BYTES", 1 << 20)
    batch = pa.record_batch({"text": pa.array([bytes(1 << 24)], pa.large_binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch.slice(0, 0))  # the schema goes with the first one
        start = sink.tell()
        writer.write_batch(batch)
        end = sink.tell()
    content = sink.getvalue().to_pybytes()[start:end]
    with pytest.raises(InputError, match=r"a\.arrow: .*would become 16 MiB in memory, more than 1 MiB"):
        clip_rows._unfolded(content, batch.schema, where=tmp_path / "a.arrow")


def test_clips_of_a_batch_that_unfolds_too_far_come_from_their_part(
    indexed: Path, out: Path, make_row, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(clip_rows, "unfolds_too_far", lambda size, _: "too much" if size > limit else "")
    with_column(indexed, "large", pa.array([bytes(limit), *([b""] * 3)], pa.large_binary()))
    rows = open_clip_rows(indexed, json.dumps(said(indexed, "batches")))
    assert rows is not None
    assert rows._batch(0) is None
    check(out, make_row)


def test_a_batch_of_ours_is_told_its_size(indexed: Path) -> None:
    rows = open_clip_rows(indexed, json.dumps(said(indexed, "batches")))
    assert rows is not None
    content = rows._content(0)
    batch = rows._batch(0)
    assert content is not None
    assert batch is not None
    told = clip_rows._bytes_unfolded(pa.ipc.read_message(content))
    assert batch.nbytes <= told < batch.nbytes + 2 * len(content) < FREE_BYTES


def test_places_of_values_are_not_followed_out_of_a_batch(indexed: Path, out: Path, make_row) -> None:
    """A text that says that it lies a gigabyte further on ended the process."""
    offsets = pa.py_buffer(np.array([0, 2**30, 2**30 + 5, 3, 3], np.int32))
    with_column(indexed, "original_id", pa.StringArray.from_buffers(4, offsets, pa.py_buffer(b"abc")))
    check(out, make_row)


@pytest.mark.parametrize("number", [-1, 2, 1 << 30])
def test_parts_that_are_none_are_said(indexed: Path, out: Path, number: int) -> None:
    with_column(indexed, "index_part", pa.array([number] * 4, pa.int32()))
    with pytest.raises(ValueError, match=r"demo\.arrow: damaged: a clip of part"):
        theodolite.dataset.open(out).row("clip_0000")
