"""Headers of Parquet's pages, which say what a page unfolds into before it is unfolded.

The footer says so as well, for a whole column, and is what sizes are judged by; but it may lie while the pages are
honest, and decoders follow the pages. Formats: Apache Parquet (`PageHeader` of parquet.thrift), Thrift's compact
protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .inputs import InputError
from .limits import FREE_BYTES, MIB

_TYPE, _UNFOLDED, _STORED = 1, 2, 3
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
"""Fields of a page header: kind, sizes after and before decompression, and what else holds for pages of a kind."""
_FIRST_READ = 512
"""Bytes read for a header; more where its statistics need them."""


def check_pages(
    source: pa.NativeFile,
    metadata: pq.FileMetaData,
    *,
    where: str | Path,
    columns: Sequence[str] | None = None,
) -> list[tuple[int, str]]:
    """Refuse a file whose pages unfold into more than its footer says; looks at columns of lists and of texts, of which
    one row may hold any number.

    Args:
        source: the file; left wherever it is.
        columns: that will be read; None: all.
    Returns:
        Row group and path of columns of texts whose dictionaries could unfold into more than is taken unasked: a page
        of one long text and a million times its number is small, folded and unfolded.
    Raises:
        InputError: naming file, row group and column.
    """
    size = source.size()
    schema = metadata.schema
    loose = [
        number
        for number in range(metadata.num_columns)
        if (schema.column(number).max_repetition_level or schema.column(number).physical_type == "BYTE_ARRAY")
        and (columns is None or schema.column(number).path.split(".")[0] in columns)
    ]
    folded: list[tuple[int, str]] = []
    bound = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in loose:
            column = group.column(index)
            place = f"{where}: row group {number}, column {column.path_in_schema}"
            values, unfolded, dictionary = _add_up(source, column, size, place)
            stated = column.total_uncompressed_size
            if values > column.num_values or unfolded > max(2 * stated, stated + MIB):
                raise InputError(
                    f"{place}: its pages hold {values} values in {unfolded} bytes, the footer says"
                    f" {column.num_values} in {stated}"
                )
            if dictionary and column.physical_type == "BYTE_ARRAY":
                bound += values * dictionary
                folded.append((number, column.path_in_schema))
    return folded if bound > FREE_BYTES else []


def _add_up(
    source: pa.NativeFile, column: pq.ColumnChunkMetaData, size: int, place: str
) -> tuple[int, int, int]:
    """Values and unfolded bytes of a column of a row group, and those of its dictionary, by headers of pages."""
    offset = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        offset = min(offset, column.dictionary_page_offset)
    end = offset + column.total_compressed_size
    if not 0 <= offset <= end <= size:
        raise InputError(f"{place}: lies outside of the file")
    values = unfolded = dictionary = 0
    while offset < end:
        header, length = _read_header(source, offset, end, place)
        sizes = header.get(_UNFOLDED, -1), header.get(_STORED, -1)
        data = header.get(_DATA) or header.get(_DATA_V2) or {}
        count = data.get(1, 0)
        if min(*sizes, count) < 0:
            raise InputError(f"{place}: a page with a negative size")
        values += count
        unfolded += sizes[0]
        dictionary += sizes[0] if _DICTIONARY in header else 0
        offset += length + sizes[1]
    return values, unfolded, dictionary


def _read_header(source: pa.NativeFile, offset: int, end: int, place: str) -> tuple[dict[int, Any], int]:
    """Fields of the page header at an offset, and its length."""
    wanted = _FIRST_READ
    while True:
        content = source.read_at(min(wanted, end - offset), offset)
        try:
            return _struct(content, 0)
        except IndexError:  # longer than what was read, or than the column
            if wanted >= end - offset or wanted > MIB:
                raise InputError(f"{place}: a page header that does not end") from None
            wanted *= 16
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None


def _struct(data: bytes, offset: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = data[offset]
        offset += 1
        if not head:
            return fields, offset
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, offset = _number(data, offset)
        fields[number], offset = _value(data, offset, kind, depth)


def _value(data: bytes, offset: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of one of Thrift's kinds, and where it ends."""
    if depth > 8:
        raise ValueError("a page header that is nested too deep")
    if kind in (1, 2):  # truth, in the kind itself
        return kind == 1, offset
    if kind == 3:
        return data[offset], offset + 1
    if kind in (4, 5, 6):
        return _number(data, offset)
    if kind == 7:
        return None, offset + 8
    if kind == 8:
        length, offset = _varint(data, offset)
        return None, offset + length
    if kind == 12:
        return _struct(data, offset, depth + 1)
    raise ValueError("a page header with fields of another kind")


def _number(data: bytes, offset: int) -> tuple[int, int]:
    value, offset = _varint(data, offset)
    return (value >> 1) ^ -(value & 1), offset


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
