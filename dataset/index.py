"""The index: all per-clip columns of a dataset, and where each clip lies, beside the parts in two small files.

`index.parquet` answers questions about all clips by column; counting or selecting among 213k clips would otherwise
read the footers of hundreds of parts. `index.arrow` holds the same clips in the same order in small batches, each of
which is read on its own, for one clip by id: its per-clip values, and the footer that its row group needs (see
`footers`), so that of the part itself only the series of frames are read.

Both are derived: they can be deleted at any time, say nothing that the parts do not say, and are ignored as soon as
the parts are not those that they were made from, each with the size and the time of change that it had then.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from .conform import check_types, conform, file_version
from .footers import SERIES_COLUMNS, read_with_footer, series_footers
from .inputs import InputError, reading
from .limits import MIB
from .parquet import SCAN_OPTIONS, WHAT, open_parquet, sealed
from .schema import COLUMN_BY_NAME, SCHEMA_VERSION
from .store import data_folder, dataset_files, write_atomically

log = logging.getLogger(__name__)

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
_BATCHES = "theodolite.batches"
_CHECKED_WHOLE = 64 * MIB
"""Larger indexes are checked page by page, as they are read."""
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
    rows = None if index is None else open_clip_rows(out, index)
    current = rows is not None and rows.whole()
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
    table = pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(None)
    metadata = {
        "theodolite.schema_version": str(SCHEMA_VERSION),
        "theodolite.parts": json.dumps(stamps),
        _BATCHES: json.dumps(_write_clip_rows(out / _ROWS_NAME, table, footers)),
    }
    table = table.drop_columns([name for name in _LEFT_OUT if name in table.schema.names])
    table = table.replace_schema_metadata(metadata)
    content = sealed(table, compression="zstd", row_group_size=1 << 20)
    write_atomically(out / _NAME, memoryview(content))
    return out / _NAME


def _index_part(part: Path, number: int) -> tuple[pa.Table, list[bytes] | None]:
    """Per-clip columns and places of a part, and the footers of its row groups."""
    with open_parquet(part) as file, reading(part, WHAT):
        return _index_open_part(part, file, number)


def _index_open_part(part: Path, file: pq.ParquetFile, number: int) -> tuple[pa.Table, list[bytes] | None]:
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


def _write_clip_rows(path: Path, table: pa.Table, footers: list[bytes | None]) -> dict[str, Any]:
    """Write `index.arrow`; returns its schema, and where each batch lies in it with the checksum of its bytes."""
    # By name alone: units and meanings, which the parts hold, would only be parsed at every opening.
    columns = {name: table[name] for name in table.schema.names if not _is_void(name, table[name])}
    table = pa.table(columns | {_FOOTER: pa.array(footers, pa.binary())}).combine_chunks()
    sink = pa.BufferOutputStream()
    ends: list[int] = []
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=table.schema))
        ends.append(sink.tell())  # what stands before the first batch is written with it: an empty one
        for start in range(0, table.num_rows, _ROWS_PER_BATCH):
            rows = table.slice(start, _ROWS_PER_BATCH)
            batches = rows.to_batches()
            if len(batches) > 1:  # a chunk ends in them, for none holds more than 2 GiB of text
                batches = rows.combine_chunks().to_batches()
            writer.write_batch(batches[0])
            ends.append(sink.tell())
    content = memoryview(sink.getvalue())
    write_atomically(path, content)
    return {
        "schema": base64.b64encode(table.schema.serialize()).decode(),
        "rows": _ROWS_PER_BATCH,
        "batches": [[a, b - a, zlib.crc32(content[a:b])] for a, b in itertools.pairwise(ends)],
    }


def _is_void(name: str, values: pa.ChunkedArray) -> bool:
    """Whether no clip has a value in a column that may be absent: it then costs time and room in every batch."""
    return name in COLUMN_BY_NAME and COLUMN_BY_NAME[name].nullable and values.null_count == len(values)


@dataclass(frozen=True)
class ClipRows:
    """An opened `index.arrow`. Its clips have the order of `index.parquet`, which holds the checksums of its batches:
    what is read is what was written, or nothing.

    Attributes:
        batches: offset, length and checksum of every batch in the file.
    """

    path: Path
    file: pa.NativeFile
    schema: pa.Schema
    rows_per_batch: int
    batches: Sequence[tuple[int, int, int]]

    def whole(self, *, first: bool = False) -> bool:
        """Whether all batches, or the first alone, are as they were written."""
        return all(
            self._content(i) is not None
            for i in range(min(1, len(self.batches)) if first else len(self.batches))
        )

    def _content(self, number: int) -> bytes | None:
        start, length, checksum = self.batches[number]
        content = self.file.read_at(length, start)
        return content if zlib.crc32(content) == checksum else None

    def _batch(self, number: int) -> pa.RecordBatch | None:
        content = self._content(number)
        return (
            None if content is None else pa.ipc.read_record_batch(pa.ipc.read_message(content), self.schema)
        )

    def read(self, number: int, open_part: Callable[[int], pa.NativeFile]) -> dict[str, pa.Array] | None:
        """One clip with all columns of the dataset.

        Args:
            number: of the clip in the index.
            open_part: opens a part, given its number, and refuses one that is not that of the index.
        Returns:
            Its value in every column, each an array of one; None if the index has no footer for its row group, or its
            batch is damaged.
        """
        number_of_batch, here = divmod(number, self.rows_per_batch)
        batch = self._batch(number_of_batch)
        if batch is None:
            return None
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
    stated = index.schema.metadata.get(_BATCHES.encode())
    if stated is None or not path.is_file():
        return None
    known = json.loads(stated)
    file = pa.OSFile(str(path))
    # Of another length: somebody else's copy, or cut.
    if known["batches"] and file.size() < sum(known["batches"][-1][:2]):
        return None
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(known["schema"])))
    rows = ClipRows(path, file, schema, known["rows"], known["batches"])
    return rows if rows.whole(first=True) else None


def open_index(out: Path, files: list[str]) -> pads.FileSystemDataset | None:
    """The index of a dataset folder, or None if there is none or the parts are no longer those it was made
    from."""
    path = out / _NAME
    if not path.is_file():
        return None
    try:
        with open_parquet(path, whole=path.stat().st_size < _CHECKED_WHOLE) as file, reading(path, "index"):
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"theodolite.schema_version") != str(SCHEMA_VERSION).encode():
                return None
            if _BATCHES.encode() not in metadata:  # of an earlier version
                return None
            stamps = json.loads(metadata[b"theodolite.parts"])
    except InputError as error:
        return _made_anew(out, files, error)
    if stamps != _named_stamps(out, files):
        return None
    return pads.dataset(str(path), format=pads.ParquetFileFormat(default_fragment_scan_options=SCAN_OPTIONS))


def _made_anew(out: Path, files: list[str], error: InputError) -> pads.FileSystemDataset | None:
    """The index of a folder whose own is damaged; None where none can be made."""
    log.warning("%s; it is derived from the parts, and is made anew", error)
    try:
        (out / _NAME).unlink()
        write_index(out)
    except (OSError, ValueError):  # a folder of others, or damaged parts: who reads them says so
        return None
    return open_index(out, files)


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
