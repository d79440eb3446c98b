"""Headers of Parquet's pages, which say what a page unfolds into before it is unfolded.

The footer says so as well, for a whole column, and is what sizes are judged by; but it may lie while the pages are
honest, and decoders follow the pages. Formats: Apache Parquet (`PageHeader` of parquet.thrift), Thrift's compact
protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .inputs import InputError
from .limits import FREE_BYTES, MIB

_UNFOLDED, _STORED = 2, 3
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
"""Fields of a page header: sizes after and before decompression, and what else holds for pages of a kind."""
_FIRST_READ = 512
"""Bytes read for a header; more where its statistics need them."""


class PageCheck:
    """Refuses a file whose pages unfold into more than its footer says; looks at columns of lists and of texts, of
    which one row may hold any number.

    Args:
        source: the file; left wherever it is.
        metadata: its footer.
        columns: that will be read; None: all.
    """

    def __init__(
        self,
        source: pa.NativeFile,
        metadata: pq.FileMetaData,
        *,
        where: str | Path,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._source, self._size, self._where = source, source.size(), where
        self._loose: list[tuple[int, bool]] = []
        for number in range(metadata.num_columns):
            column = metadata.schema.column(number)
            if columns is not None and column.path.split(".")[0] not in columns:
                continue
            is_text = column.physical_type == "BYTE_ARRAY"
            if is_text or column.max_repetition_level:
                self._loose.append((number, is_text))
        self._bound = 0
        self._folded: list[tuple[int, str]] = []

    def add(self, group: int, columns: Sequence[pq.ColumnChunkMetaData]) -> None:
        """Look at the pages of a row group, given its columns.

        Raises:
            InputError: naming file, row group and column.
        """
        _ask_together(self._source, [columns[number] for number, _ in self._loose])
        for number, is_text in self._loose:
            column = columns[number]
            try:
                values, unfolded, dictionary = _add_up(self._source, column, self._size)
            except ValueError as error:
                raise InputError(f"{_place(self._where, group, column)}: {error}") from None
            stated = column.total_uncompressed_size
            if values > column.num_values or unfolded > max(2 * stated, stated + MIB):
                raise InputError(
                    f"{_place(self._where, group, column)}: its pages hold {values} values in {unfolded} bytes, the"
                    f" footer says {column.num_values} in {stated}"
                )
            if dictionary and is_text:
                self._bound += values * dictionary
                self._folded.append((group, column.path_in_schema))

    def folded(self) -> list[tuple[int, str]]:
        """Row group and path of columns of texts whose dictionaries could unfold into more than is taken unasked: a
        page of one long text and a million times its number is small, folded and unfolded."""
        return self._folded if self._bound > FREE_BYTES else []


def _ask_together(source: pa.NativeFile, columns: Sequence[pq.ColumnChunkMetaData]) -> None:
    """Have a store give a row group at once, where that is no more than a few megabytes: readers of objects keep what
    they read last, so that headers, and the columns afterwards, are no requests of their own."""
    if not isinstance(source, pa.PythonFile) or not columns:
        return
    starts = [_start(column) for column in columns]
    first, last = min(starts), max(s + c.total_compressed_size for s, c in zip(starts, columns, strict=True))
    if 0 <= first < last <= min(source.size(), first + _ASKED_TOGETHER):
        source.read_at(last - first, first)


_ASKED_TOGETHER = 16 * MIB


def _start(column: pq.ColumnChunkMetaData) -> int:
    offset = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        offset = min(offset, column.dictionary_page_offset)
    return offset


def _place(where: str | Path, group: int, column: pq.ColumnChunkMetaData) -> str:
    return f"{where}: row group {group}, column {column.path_in_schema}"


def _add_up(source: pa.NativeFile, column: pq.ColumnChunkMetaData, size: int) -> tuple[int, int, int]:
    """Values and unfolded bytes of a column of a row group, and those of its dictionary, by headers of pages.

    Raises:
        ValueError: it lies outside of the file, or one of its pages has no header.
    """
    offset = _start(column)
    end = offset + column.total_compressed_size
    if not 0 <= offset <= end <= size:
        raise ValueError("lies outside of the file")
    values = unfolded = dictionary = 0
    while offset < end:
        page, length = _read_header(source, offset, end)
        if min(page.unfolded, page.stored, page.values) < 0:
            raise ValueError("a page with a negative size")
        values += page.values
        unfolded += page.unfolded
        if page.is_dictionary:
            dictionary += page.unfolded
        offset += length + page.stored
    return values, unfolded, dictionary


class _Page(NamedTuple):
    """What a header says of its page: bytes after and before decompression, values if it holds any."""

    unfolded: int
    stored: int
    values: int
    is_dictionary: bool


def _read_header(source: pa.NativeFile, offset: int, end: int) -> tuple[_Page, int]:
    """The page header at an offset, and its length. Raises ValueError for none."""
    wanted = _FIRST_READ
    while True:
        content = source.read_at(min(wanted, end - offset), offset)
        try:
            return _page(content)
        except IndexError:  # longer than what was read, or than the column
            if wanted >= end - offset or wanted > MIB:
                raise ValueError("a page header that does not end") from None
            wanted *= 16


# Thousands of headers are read when a dataset of a hundred parts is opened: what follows makes no records of fields
# that nobody asks for, and takes numbers of one byte, which most are, on the spot.


def _page(data: bytes) -> tuple[_Page, int]:
    number = offset = values = 0
    unfolded = stored = -1
    is_dictionary = False
    while head := data[offset]:
        offset += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, offset = _number(data, offset)
        if kind in (4, 5, 6):
            value, offset = _number(data, offset)
            if number == _UNFOLDED:
                unfolded = value
            elif number == _STORED:
                stored = value
        elif kind == 12:
            first, offset = _struct(data, offset, 1)
            if number in (_DATA, _DATA_V2):
                values = first
            is_dictionary |= number == _DICTIONARY
        else:
            offset = _behind(data, offset, kind)
    return _Page(unfolded, stored, values, is_dictionary), offset + 1


def _struct(data: bytes, offset: int, depth: int) -> tuple[int, int]:
    """The number in the first field of a record (0 if it holds none), and where the record ends."""
    if depth > 8:
        raise ValueError("a page header that is nested too deep")
    number = first = 0
    while head := data[offset]:
        offset += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, offset = _number(data, offset)
        if number == 1 and kind in (4, 5, 6):
            first, offset = _number(data, offset)
        elif kind == 12:
            offset = _struct(data, offset, depth + 1)[1]
        else:
            offset = _behind(data, offset, kind)
    return first, offset + 1


def _behind(data: bytes, offset: int, kind: int) -> int:
    """Where a value of one of Thrift's kinds that is no record ends."""
    if kind in (4, 5, 6):
        while data[offset] > 127:
            offset += 1
        return offset + 1
    if kind in (1, 2):  # truth, in the kind itself
        return offset
    if kind == 3:
        return offset + 1
    if kind == 7:
        return offset + 8
    if kind == 8:
        length, offset = _varint(data, offset)
        return offset + length
    raise ValueError("a page header with fields of another kind")


def _number(data: bytes, offset: int) -> tuple[int, int]:
    value = data[offset]
    if value > 127:
        value, offset = _varint(data, offset)
        return (value >> 1) ^ -(value & 1), offset
    return (value >> 1) ^ -(value & 1), offset + 1


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
        if shift > 63:
            raise ValueError("a page header with a number that does not end")
