"""The Arrow file of a piece of the index: its clips in small batches, each of which is read on its own."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .footers import read_with_footer
from .inputs import InputError, reading
from .limits import unfolds_too_far
from .schema import COLUMN_BY_NAME
from .storage.arrow import open_source
from .store import write_atomically

log = logging.getLogger(__name__)

PLACE_COLUMNS = _PART, _ROW_GROUP, _ROW = ("index_part", "index_row_group", "index_row")
"""Columns of the index beyond the dataset's own: number of the part in the dataset's order (in a piece: in its folder),
row group in it, row in that."""
FOOTER = "index_footer"
ROWS_PER_BATCH = 256
"""Clips of an Arrow file that are read to get one: 128 take a fifth more space and 10 microseconds less."""
_WHAT = "index"
_OWN_COLUMNS = (*PLACE_COLUMNS, FOOTER)


def write_clip_rows(path: Path, table: pa.Table, footers: list[bytes | None]) -> dict[str, Any]:
    """Write the Arrow file; returns its schema, and where each batch lies in it with the checksum of its bytes."""
    # By name alone: units and meanings, which the parts hold, would only be parsed at every opening.
    columns = {name: table[name] for name in table.schema.names if not _is_void(name, table[name])}
    table = pa.table(columns | {FOOTER: pa.array(footers, pa.binary())}).combine_chunks()
    sink = pa.BufferOutputStream()
    ends: list[int] = []
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=table.schema))
        ends.append(sink.tell())  # what stands before the first batch is written with it: an empty one
        for start in range(0, table.num_rows, ROWS_PER_BATCH):
            rows = table.slice(start, ROWS_PER_BATCH)
            batches = rows.to_batches()
            if len(batches) > 1:  # a chunk ends in them, for none holds more than 2 GiB of text
                batches = rows.combine_chunks().to_batches()
            writer.write_batch(batches[0])
            ends.append(sink.tell())
    content = memoryview(sink.getvalue())
    write_atomically(path, content)
    return {
        "schema": base64.b64encode(table.schema.serialize()).decode(),
        "rows": ROWS_PER_BATCH,
        "batches": [[a, b - a, zlib.crc32(content[a:b])] for a, b in itertools.pairwise(ends)],
    }


def _is_void(name: str, values: pa.ChunkedArray) -> bool:
    """Whether no clip has a value in a column that may be absent: it then costs time and room in every batch."""
    return name in COLUMN_BY_NAME and COLUMN_BY_NAME[name].nullable and values.null_count == len(values)


@dataclass(frozen=True)
class ClipRows:
    """An opened Arrow file of a piece. Its clips have the order of the Parquet file, which holds the checksums of its
    batches: what is read is what was written, or nothing.

    Attributes:
        batches: offset, length and checksum of every batch in the file.
        looked_at: numbers of parts, and footers within, whose pages were looked at.
    """

    path: Path
    file: pa.NativeFile
    schema: pa.Schema
    rows_per_batch: int
    batches: Sequence[tuple[int, int, int]]
    looked_at: set[tuple[int, int]] = field(default_factory=set, repr=False, compare=False)
    _last: dict[int, pa.RecordBatch] = field(default_factory=dict, repr=False, compare=False)
    """The batch that was read last, by its number: clips are often asked for in their order."""

    def whole(self, *, first: bool = False) -> bool:
        """Whether all batches, or the first alone, are as they were written."""
        return all(
            self._content(i) is not None
            for i in range(min(1, len(self.batches)) if first else len(self.batches))
        )

    def to_table(self) -> pa.Table:
        """All of it. Raises ValueError for a damaged batch, or where all together become too much in memory."""
        batches, total = list[pa.RecordBatch](), 0
        for i in range(len(self.batches)):
            batch = self._batch(i)
            if batch is None:
                raise ValueError(f"{self.path}: damaged")
            batches.append(batch)
            total += batch.nbytes
            if why := unfolds_too_far(total, self.file.size()):
                raise InputError(f"{self.path}: {why}")
        return pa.Table.from_batches(batches, self.schema)

    def _content(self, number: int) -> bytes | None:
        start, length, checksum = self.batches[number]
        content = self.file.read_at(length, start)
        return content if zlib.crc32(content) == checksum else None

    def _batch(self, number: int) -> pa.RecordBatch | None:
        content = self._content(number)
        try:
            return None if content is None else _unfolded(content, self.schema, where=self.path)
        except InputError:
            return None

    def read(self, number: int, open_part: Callable[[int], pa.NativeFile]) -> dict[str, pa.Array] | None:
        """One clip with all columns of the dataset.

        Args:
            number: of the clip in the piece.
            open_part: opens a part, given its number, and refuses one that is not that of the index.
        Returns:
            Its value in every column, each an array of one; None if the index has no footer for its row group, or its
            batch is damaged, or one that nobody writes.
        """
        number_of_batch, row_of_batch = divmod(number, self.rows_per_batch)
        if number_of_batch >= len(self.batches):
            return None
        batch = self._last.get(number_of_batch) or self._batch(number_of_batch)
        if batch is None:
            return None
        self._last.clear()
        self._last[number_of_batch] = batch
        try:
            with reading(self.path, _WHAT):
                part, row = (int(batch.column(name)[row_of_batch].as_py()) for name in (_PART, _ROW))
                footer = batch.column(FOOTER)[max(row_of_batch - row, 0)].as_py()
        except InputError:
            return None
        if footer is None:
            return None
        with open_part(part) as source:
            group = part, hash(footer)
            where = None if group in self.looked_at else f"{self.path}: part {part}"
            series = read_with_footer(source, footer, where=where)
            self.looked_at.add(group)
        values = dict(zip(batch.schema.names, batch.slice(row_of_batch, 1).columns, strict=True))
        for name, column in zip(series.schema.names, series.columns, strict=True):
            values[name] = column.chunk(0).slice(row, 1)
        for name in _OWN_COLUMNS:
            del values[name]
        return values


def open_clip_rows(piece: Path, batches: str) -> ClipRows | None:
    """The Arrow file that was written with a piece; None if there is none, it may not be read, or what is said of it is
    none of ours.

    Args:
        piece: its Parquet file.
        batches: what that says of it (JSON).
    """
    path = piece.with_suffix(".arrow")
    try:
        file = open_source(path) if path.is_file() else None
    except PermissionError as error:
        log.warning("%s: %s; it is derived from the parts, which are read instead", path, error)
        return None
    if file is None:
        return None
    try:
        with reading(piece, _WHAT):
            known = json.loads(batches)
            rows = int(known["rows"])
            places = [
                (int(start), int(length), int(checksum)) for start, length, checksum in known["batches"]
            ]
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(known["schema"])))
    except InputError:
        return None
    size = file.size()
    # Of another length: somebody else's copy, or cut.
    if rows < 1 or not all(0 <= start <= start + length <= size for start, length, _ in places):
        return None
    clip_rows = ClipRows(path, file, schema, rows, places)
    return clip_rows if clip_rows.whole(first=True) else None


def _unfolded(content: bytes, schema: pa.Schema, *, where: Path) -> pa.RecordBatch:
    """A batch of an Arrow file of others.

    Raises:
        InputError: it would become too much in memory, or is none: what its values say of their places is followed
            without a look, into whatever lies there.
    """
    with reading(where, _WHAT):
        message = pa.ipc.read_message(content)
        if why := unfolds_too_far(_bytes_unfolded(message), len(content)):
            raise InputError(why)
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
    return batch


def _bytes_unfolded(message: pa.ipc.Message) -> int:
    """What the buffers of a compressed batch become: each begins with that number, -1 if it is not folded.

    Source: Arrow's Message.fbs (tables `Message` and `RecordBatch`), and the FlatBuffers binary format.
    """
    data = memoryview(message.metadata)

    def field_of(table: int, number: int) -> int:
        entries = table - struct.unpack_from("<i", data, table)[0]
        held = struct.unpack_from("<H", data, entries)[0]
        offset = struct.unpack_from("<H", data, entries + 4 + 2 * number)[0] if 4 + 2 * number < held else 0
        return table + offset if offset else 0

    def behind(place: int) -> int:
        return place + struct.unpack_from("<I", data, place)[0]

    batch = behind(field_of(behind(0), 2))
    if not field_of(batch, 3):  # not compressed
        return 0
    buffers = behind(field_of(batch, 2))
    count = struct.unpack_from("<I", data, buffers)[0]
    start, length = np.frombuffer(data, "<i8", 2 * count, buffers + 4).reshape(-1, 2).T
    body = np.frombuffer(message.body, np.uint8)
    offsets = start[length >= 8]
    sizes = body[offsets[:, None] + np.arange(8)].view("<i8")[:, 0]
    return int(np.maximum(sizes, 0).sum(dtype=np.float64)) + int(length.sum())
