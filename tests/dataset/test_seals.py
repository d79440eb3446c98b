"""Checksums of files of a dataset: what is not as it was written is found, copies by other tools are read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from theodolite.dataset.index import write_index
from theodolite.dataset.parquet import check_seal, sealed
from theodolite.dataset.store import list_parts
from theodolite.dataset.validate import validate_dataset


@pytest.mark.slow
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, make_row, make_dataset, thorough) -> None:
    """`validate` names the part; a reader gives what was written or an error; derived files never change an answer."""
    out = make_dataset(tmp_path / "d", {"a": [make_row(0, frames=9), make_row(1, frames=9)]})
    (part,) = list_parts(out)
    data = part.read_bytes()
    rng = np.random.default_rng(0)
    wanted = [row.clip_id for row in theodolite.dataset.open(out).rows()]
    missed = 0
    for at in rng.integers(8 * len(data), size=300 if thorough else 60):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << (at % 8)
        part.write_bytes(damaged)
        found = [v.part for v in validate_dataset(out)[1]]
        assert found in ([], [f"data/demo/{part.name}"])
        missed += not found
    assert missed <= 1, "a bit in the seal's own name is not found"
    part.write_bytes(data)
    write_index(out)
    for name in ("index/demo.parquet", "index/demo.arrow"):
        content = (out / name).read_bytes()
        for at in rng.integers(8 * len(content), size=100 if thorough else 20):
            damaged = bytearray(content)
            damaged[at // 8] ^= 1 << (at % 8)
            (out / name).write_bytes(damaged)
            clips = theodolite.dataset.open(out)
            assert clips.to_table(["clip_id"])["clip_id"].to_pylist() == wanted
            assert clips.row("clip_0001").num_frames == 9
        (out / name).write_bytes(content)


def test_copies_of_sealed_files_are_read(tmp_path, make_row, make_dataset) -> None:
    """A seal that another tool repeats with the metadata says nothing of its file."""
    out = make_dataset(tmp_path / "d", {"a": [make_row(0), make_row(1)]})
    (part,) = list_parts(out)
    for table in (pq.ParquetFile(part).read(), pq.read_table(part)):
        choices: list[dict[str, Any]] = [
            {},
            {"store_schema": False},
            {"compression": "lz4", "use_dictionary": False},
        ]
        for options in choices:
            pq.write_table(table.slice(0, 1), tmp_path / "copy.parquet", **options)
            assert len(list(theodolite.dataset.open(tmp_path / "copy.parquet").rows())) == 1


def test_copies_of_sealed_files_of_any_width_are_told_from_damaged_ones() -> None:
    """The length of Arrow's schema, which stands before it, may end in a byte that looks like one of its letters."""
    for width in range(40, 120, 15):
        table = pa.table({f"column_{i}": [1.0] for i in range(width)})
        sealed_file = pq.ParquetFile(pa.BufferReader(sealed(table, row_group_size=1)))
        metadata = {k: v for k, v in sealed_file.metadata.metadata.items() if k != b"ARROW:schema"}
        copy = io.BytesIO()
        pq.write_table(sealed_file.read().replace_schema_metadata(metadata), copy)
        check_seal(pa.BufferReader(copy.getvalue()), where="copy.parquet", whole=True)
