"""Parquet as the Hugging Face `datasets` library writes it: `data/<split>-00000-of-0000N.parquet` with its
feature types.

Values by name become JSON text; poses stay flat lists, as in our own files (which the library reads as well).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..reading import ClipDataset
from ..schema import NAMED_COLUMNS


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Feature description of an Arrow type as `datasets` stores it in the schema metadata."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    name = {pa.float32(): "float32", pa.float64(): "float64"}.get(kind, str(kind))
    return {"dtype": name, "_type": "Value"}


def _plain(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if field.name in NAMED_COLUMNS:
            texts = [
                None if v is None else json.dumps({x["name"]: x["value"] for x in v}, sort_keys=True)
                for v in table.column(i).to_pylist()
            ]
            table = table.set_column(i, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
    return table


def write_huggingface(
    clips: ClipDataset, folder: str | Path, *, split: str = "train", clips_per_file: int = 2000
) -> list[Path]:
    """Write the accepted clips of a dataset as one split; returns the files.

    Raises:
        ValueError: stand-in rows among them, or none at all.
    """
    import pyarrow.compute as pc

    accepted = clips.where(pc.field("verdict") == "accepted")
    total = len(accepted)
    if not total:
        raise ValueError(f"{clips.path}: no accepted clips to write")
    stand_ins = len(accepted.where(pc.field("stand_in")))
    if stand_ins:
        raise ValueError(
            f"{clips.path}: {stand_ins} rows were made with stand-in weights; such rows are never exported"
        )
    data = Path(folder) / "data"
    data.mkdir(parents=True, exist_ok=True)
    num_files = -(-total // clips_per_file)
    written: list[Path] = []
    for i, table in enumerate(_tables(accepted, clips_per_file)):
        table = _plain(table)
        features = {field.name: _feature(field.type) for field in table.schema}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        target = data / f"{split}-{i:05d}-of-{num_files:05d}.parquet"
        pq.write_table(table, target, row_group_size=100, compression="zstd")
        written.append(target)
    return written


def _tables(clips: ClipDataset, size: int) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    count = 0
    for batch in clips.batches():
        while batch.num_rows:
            take = min(size - count, batch.num_rows)
            pending.append(batch.slice(0, take))
            batch, count = batch.slice(take), count + take
            if count == size:
                yield pa.Table.from_batches(pending)
                pending, count = [], 0
    if pending:
        yield pa.Table.from_batches(pending)
