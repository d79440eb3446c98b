"""Footers of single row groups: what Parquet's reader has to know to decode a few columns of one row group.

A part's own footer describes every column of every row group, and all of it must be parsed before anything can be
read: half a millisecond for 7 groups of 83 columns. A footer that names one group and the series alone is parsed in a
twentieth of that. Formats: Apache Parquet (`FileMetaData` of parquet.thrift), Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .parquet import check_sizes
from .schema import COLUMN_BY_NAME, SERIES_COLUMNS

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
"""Type codes of the compact protocol."""
_REQUIRED, _OPTIONAL, _REPEATED = 0, 1, 2
_CONVERTED_LIST, _CONVERTED_INT8 = 3, 15
_PHYSICAL_TYPES = {"INT32": 1, "FLOAT": 4, "DOUBLE": 5}
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}
"""7 is LZ4_RAW, the only one that Arrow writes; pyarrow gives Hadoop's LZ4 framing, 5, the same name."""
_ENCODINGS = {
    "PLAIN": 0,
    "PLAIN_DICTIONARY": 2,
    "RLE": 3,
    "BIT_PACKED": 4,
    "DELTA_BINARY_PACKED": 5,
    "RLE_DICTIONARY": 8,
    "BYTE_STREAM_SPLIT": 9,
}


def series_footers(file: pq.ParquetFile, schema: pa.Schema) -> list[bytes] | None:
    """A whole Parquet footer for each row group, which describes its `SERIES_COLUMNS` alone.

    Args:
        schema: `file.schema_arrow`, which takes time to compute.
    Returns:
        One footer a row group, to be read with `read_with_footer`; None for a file whose series have other types than
        the schema declares, or that was not written by Arrow (how it compresses LZ4 cannot be told).
    """
    metadata = file.metadata
    if not (metadata.created_by or "").startswith("parquet-cpp-arrow"):
        return None
    names = [name for name in schema.names if name in SERIES_COLUMNS]
    fields = {name: schema.field(name) for name in names}
    if any(f.type != COLUMN_BY_NAME[name].type for name, f in fields.items()):
        return None
    parquet = file.schema
    paths = {parquet.column(i).path: i for i in range(len(parquet))}
    leaves = [paths.get(f"{name}.list.element") for name in names]
    if None in leaves:
        return None
    root = _element("schema", num_children=len(names))
    header = _list(_STRUCT, [root, *(e for f in fields.values() for e in _list_elements(f))])
    footers: list[bytes] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in leaves]
        if any(c.compression not in _CODECS or not set(c.encodings) <= _ENCODINGS.keys() for c in columns):
            return None
        row_group = _struct(
            (1, _LIST, _list(_STRUCT, [_column_chunk(c) for c in columns])),
            (2, _I64, _int(group.total_byte_size)),
            (3, _I64, _int(group.num_rows)),
        )
        body = _struct(
            (1, _I32, _int(2)),
            (2, _LIST, header),
            (3, _I64, _int(group.num_rows)),
            (4, _LIST, _list(_STRUCT, [row_group])),
        )
        footers.append(b"PAR1" + body + len(body).to_bytes(4, "little") + b"PAR1")
    return footers


def read_with_footer(source: pa.NativeFile, footer: bytes, *, where: str | Path | None) -> pa.Table:
    """The columns that a footer of `series_footers` describes, all rows of its row group.

    Args:
        source: the part that the footer was made from.
        where: the part's name in errors; None: its pages were looked at before.
    Raises:
        InputError: a footer or pages of somebody who wants memory.
    """
    metadata = pq.read_metadata(pa.BufferReader(footer))
    if where is not None:
        check_sizes(source, metadata, where=where)
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=False).read_row_group(0, use_threads=False)


def _column_chunk(chunk: pq.ColumnChunkMetaData) -> bytes:
    kind = _column_kind(chunk.physical_type, chunk.encodings, chunk.path_in_schema, chunk.compression)
    fields = [
        (5, _I64, _int(chunk.num_values)),
        (6, _I64, _int(chunk.total_uncompressed_size)),
        (7, _I64, _int(chunk.total_compressed_size)),
        (9, _I64, _int(chunk.data_page_offset)),
    ]
    if chunk.has_dictionary_page:
        fields.append((11, _I64, _int(chunk.dictionary_page_offset)))
    return _struct((2, _I64, _int(0)), (3, _STRUCT, kind + _struct(*fields, after=4)))


@lru_cache(maxsize=256)
def _column_kind(physical: str, encodings: tuple[str, ...], path: str, codec: str) -> bytes:
    """What most chunks of a column share: the first four fields of its metadata."""
    fields = (
        (1, _I32, _int(_PHYSICAL_TYPES[physical])),
        (2, _LIST, _list(_I32, [_int(_ENCODINGS[e]) for e in encodings])),
        (3, _LIST, _list(_BINARY, [_text(part) for part in path.split(".")])),
        (4, _I32, _int(_CODECS[codec])),
    )
    return _struct(*fields).removesuffix(b"\0")


def _list_elements(field: pa.Field) -> tuple[bytes, bytes, bytes]:
    """The three levels of a list column: list, repeated group, required element."""
    value = field.type.value_type
    physical = "INT32" if pa.types.is_integer(value) else "FLOAT" if value == pa.float32() else "DOUBLE"
    repetition = _OPTIONAL if field.nullable else _REQUIRED
    converted = _CONVERTED_INT8 if value == pa.int8() else None
    return (
        _element(field.name, repetition=repetition, num_children=1, converted=_CONVERTED_LIST),
        _element("list", repetition=_REPEATED, num_children=1),
        _element("element", physical=_PHYSICAL_TYPES[physical], repetition=_REQUIRED, converted=converted),
    )


def _element(
    name: str,
    *,
    physical: int | None = None,
    repetition: int | None = None,
    num_children: int | None = None,
    converted: int | None = None,
) -> bytes:
    numbers = {1: physical, 3: repetition, 5: num_children, 6: converted}
    fields = [(number, _I32, _int(value)) for number, value in numbers.items() if value is not None]
    return _struct(*sorted([*fields, (4, _BINARY, _text(name))]))


# ------------------------------------------------------------------ Thrift's compact protocol


def _struct(*fields: tuple[int, int, bytes], after: int = 0) -> bytes:
    """Fields as (id, type code, encoded value), ids rising by at most 15 from `after`, then the end of the struct."""
    parts: list[bytes] = []
    for number, kind, value in fields:
        parts += (bytes([(number - after) << 4 | kind]), value)
        after = number
    return b"".join((*parts, b"\0"))


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    short = len(items) < 15
    size = bytes([len(items) << 4 | kind]) if short else bytes([0xF0 | kind]) + _varint(len(items))
    return size + b"".join(items)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _varint(len(encoded)) + encoded


def _int(value: int) -> bytes:
    """Zigzag code of a number that is not negative."""
    return _varint(value << 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
