"""The index: all per-clip columns of a dataset, and where each clip lies, beside the parts in two small files.

`index.parquet` answers questions about all clips by column; counting or selecting among 213k clips would otherwise
read the footers of hundreds of parts. `index.arrow` holds the same clips in the same order in small batches, each of
which is read on its own, for one clip by id: its per-clip values, and the footer that its row group needs (see
`footers`), so that of the part itself only the series of frames are read.

Both are derived: they can be deleted at any time, say nothing that the parts do not say, and are ignored as soon as
the parts are not those that they were made from, each with the size and the time of change that it had then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from .conform import check_types, conform, file_version
from .footers import SERIES_COLUMNS, read_with_footer, series_footers
from .schema import COLUMN_BY_NAME, SCHEMA_VERSION
from .store import data_folder, dataset_files, write_atomically

PLACE_COLUMNS = _PART, _ROW_GROUP, _ROW = ("index_part", "index_row_group", "index_row")
"""Columns of the index beyond the dataset's own: number of the part in sorted order, row group in it, row in
that."""
_LEFT_OUT = ("error", "stage_wall_s")
"""Per-clip columns that `index.parquet` lacks: nothing is selected by them."""
_NAME = "index.parquet"
_ROWS_NAME = "index.arrow"
_ROWS_PER_BATCH = 256
"""Clips of `index.arrow` that are read to get one: 128 take a fifth more space and 10 microseconds less."""
_FOOTER = "index_footer"
_OWN_COLUMNS = (*PLACE_COLUMNS, _FOOTER)


def refresh_index(out: str | Path) -> Path | None:
    """Bring `<out>/index.parquet` and `<out>/index.arrow` up to date and return the former; None if there are no
    parts yet.

    Raises:
        ValueError: a part that cannot be read.
    """
    out = Path(out)
    files = [str(part) for part in dataset_files(out)] if data_folder(out).is_dir() else []
    if not files:
        return None
    index = open_index(out, files)
    current = index is not None and open_clip_rows(out, index) is not None
    return out / _NAME if current else write_index(out)


def write_index(out: str | Path) -> Path:
    """Write `<out>/index.arrow` and `<out>/index.parquet` for the parts that are there; returns the latter's path.

    Raises:
        ValueError: no parts, or a part that cannot be read.
    """
    out = Path(out)
    parts = dataset_files(out) if data_folder(out).is_dir() else []
    if not parts:
        raise ValueError(f"{out}: no Parquet files below data/; is this the --out folder of a run?")
    # Before reading: a part that changes meanwhile makes the index stale.
    stamps = _named_stamps(out, parts)
    tables: list[pa.Table] = []
    footers: list[bytes | None] = []
    for number, part in enumerate(parts):
        table, of_groups = _index_part(part, number)
        start = len(footers)
        # A batch names the footer of a row group once, with the first of its clips.
        for offset, (group, row) in enumerate(
            zip(*(table[c].to_pylist() for c in PLACE_COLUMNS[1:]), strict=True)
        ):
            first = row == 0 or (start + offset) % _ROWS_PER_BATCH == 0
            footers.append(of_groups[group] if of_groups is not None and first else None)
        tables.append(table)
    metadata = {
        "theodolite.schema_version": str(SCHEMA_VERSION),
        "theodolite.parts": json.dumps(stamps),
    }
    table = pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(metadata)
    _write_clip_rows(out / _ROWS_NAME, table, footers)
    sink = pa.BufferOutputStream()
    table = table.drop_columns([name for name in _LEFT_OUT if name in table.schema.names])
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 20)
    write_atomically(out / _NAME, memoryview(sink.getvalue()))
    return out / _NAME


def _index_part(part: Path, number: int) -> tuple[pa.Table, list[bytes] | None]:
    """Per-clip columns and places of a part, and the footers of its row groups."""
    try:
        file = pq.ParquetFile(part)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{part}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    schema = file.schema_arrow
    file_version(schema, where=str(part))
    check_types(schema, where=str(part))
    wanted = [name for name in schema.names if name not in SERIES_COLUMNS]
    table = conform(
        file.read(columns=wanted, use_threads=False)
    )  # threads cost more than such small columns give
    groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    columns = (
        [number] * table.num_rows,
        [g for g, n in enumerate(groups) for _ in range(n)],
        [row for n in groups for row in range(n)],
    )
    for name, values in zip(PLACE_COLUMNS, columns, strict=True):
        table = table.append_column(pa.field(name, pa.int32(), nullable=False), pa.array(values, pa.int32()))
    return table, series_footers(file, schema)


def _write_clip_rows(path: Path, table: pa.Table, footers: list[bytes | None]) -> None:
    metadata = table.schema.metadata
    # By name alone: units and meanings, which the parts hold, would only be parsed at every opening.
    columns = {name: table[name] for name in table.schema.names if not _is_void(name, table[name])}
    table = pa.table(columns | {_FOOTER: pa.array(footers, pa.binary())})
    table = table.replace_schema_metadata(metadata).combine_chunks()
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for start in range(0, table.num_rows, _ROWS_PER_BATCH):
            rows = table.slice(start, _ROWS_PER_BATCH)
            batches = rows.to_batches()
            if len(batches) > 1:  # a chunk ends in them, for none holds more than 2 GiB of text
                batches = rows.combine_chunks().to_batches()
            writer.write_batch(batches[0])
    write_atomically(path, memoryview(sink.getvalue()))


def _is_void(name: str, values: pa.ChunkedArray) -> bool:
    """Whether no clip has a value in a column that may be absent: it then costs time and room in every batch."""
    return name in COLUMN_BY_NAME and COLUMN_BY_NAME[name].nullable and values.null_count == len(values)


@dataclass(frozen=True)
class ClipRows:
    """An opened `index.arrow`. Its clips have the order of `index.parquet`."""

    reader: pa.RecordBatchFileReader
    rows_per_batch: int

    def read(self, number: int, open_part: Callable[[int], pa.NativeFile]) -> dict[str, pa.Array] | None:
        """One clip with all columns of the dataset.

        Args:
            number: of the clip in the index.
            open_part: opens a part, given its number, and refuses one that is not that of the index.
        Returns:
            Its value in every column, each an array of one; None if the index has no footer for its row group.
        """
        number_of_batch, here = divmod(number, self.rows_per_batch)
        batch = self.reader.get_batch(number_of_batch)
        part, row = (batch.column(name)[here].as_py() for name in (_PART, _ROW))
        footer = batch.column(_FOOTER)[max(here - row, 0)].as_py()
        if footer is None:
            return None
        with open_part(part) as source:
            series = read_with_footer(source, footer)
        values = dict(zip(batch.schema.names, batch.slice(here, 1).columns, strict=True))
        for name, column in zip(series.schema.names, series.columns, strict=True):
            values[name] = column.chunk(0).slice(row, 1)
        for name in _OWN_COLUMNS:
            del values[name]
        return values


def open_clip_rows(out: Path, index: pads.FileSystemDataset) -> ClipRows | None:
    """The `index.arrow` that was written with an opened index, or None if there is none."""
    path = out / _ROWS_NAME
    if not path.is_file():
        return None
    try:
        reader = pa.ipc.open_file(pa.OSFile(str(path)), options=pa.ipc.IpcReadOptions(use_threads=False))
    except pa.ArrowInvalid:  # not whole: somebody else's copy, for our own are written at once
        return None
    found, wanted = reader.schema.metadata or {}, index.schema.metadata
    same = all(found.get(key) == wanted[key] for key in (b"theodolite.schema_version", b"theodolite.parts"))
    return ClipRows(reader, rows_per_batch=reader.get_batch(0).num_rows) if same else None


def open_index(out: Path, files: list[str]) -> pads.FileSystemDataset | None:
    """The index of a dataset folder, or None if there is none or the parts are no longer those it was made
    from."""
    path = out / _NAME
    if not path.is_file():
        return None
    schema = pq.read_schema(path)
    version = (schema.metadata or {}).get(b"theodolite.schema_version")
    if version != str(SCHEMA_VERSION).encode():
        return None
    if json.loads((schema.metadata or {})[b"theodolite.parts"]) != _named_stamps(out, files):
        return None
    return pads.dataset(str(path), format="parquet")


def indexed_parts(index: pads.FileSystemDataset) -> list[tuple[int, int]]:
    """Size and time of change in nanoseconds of the parts that an opened index speaks of, in its order."""
    return [
        (size, changed) for _name, size, changed in json.loads(index.schema.metadata[b"theodolite.parts"])
    ]


def part_stamp(part: str | Path) -> tuple[int, int]:
    """Size and time of change in nanoseconds: what tells a part from another one of its name without reading it."""
    status = os.stat(part)
    return status.st_size, status.st_mtime_ns


def _named_stamps(out: Path, parts: Sequence[str | Path]) -> list[list[str | int]]:
    return [[os.path.relpath(part, out), *part_stamp(part)] for part in parts]
