"""Parquet files as they come in: opened, judged by their footers, their pages held against checksums.

Everything that reads rows of a dataset, whoever wrote it, opens its files here. What is wrong with one is an
`InputError` that names it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .inputs import InputError, reading
from .limits import FREE_BYTES, unfolds_too_far
from .page_headers import PageCheck
from .storage.arrow import open_source
from .storage.paths import StorePath, as_path

if TYPE_CHECKING:
    import pyarrow.dataset as pads

WHAT = "Parquet file"
_WIDTH = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


@lru_cache(maxsize=1)
def scan_format() -> pads.ParquetFileFormat:
    """How scans of a dataset read files: as `open_parquet` does."""
    from pyarrow.dataset import ParquetFileFormat, ParquetFragmentScanOptions

    options = ParquetFragmentScanOptions(page_checksum_verification=True)
    return ParquetFileFormat(default_fragment_scan_options=options)


def open_parquet(
    path: str | Path,
    *,
    source: pa.NativeFile | None = None,
    whole: bool = False,
    columns: Sequence[str] | None = None,
) -> pq.ParquetFile:
    """An open file whose row groups are small enough to be read; its footer is checked against its seal, and pages
    against their checksums as they are read.

    Args:
        source: the file's content, if it is not a local path.
        whole: check every byte now.
        columns: which will be read; None: all. The pages of others are not looked at.
    Raises:
        InputError: no such file, no Parquet, or one that unfolds into far more than it holds.
    """
    with reading(path, WHAT):
        if source is None and not isinstance(as_path(path), StorePath) and not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        content: Any = open_source(path) if source is None else source
        check_seal(content, where=path, whole=whole)
        file = pq.ParquetFile(content, page_checksum_verification=True)
        check_sizes(content, file.metadata, where=path, columns=columns)
    return file


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a file, each group judged before it is read.

    Raises:
        InputError: as `open_parquet`; damaged pages.
    """
    with open_parquet(path, columns=columns) as file:
        return read_columns(file, path, columns)


def read_columns(file: pq.ParquetFile, path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of an open file.

    Raises:
        InputError: damaged pages.
    """
    with reading(path, WHAT):
        return file.read(columns=columns, use_threads=False)


def read_schema(path: str | Path) -> pa.Schema:
    """Arrow schema of a file.

    Raises:
        InputError: it is no Parquet.
    """
    with reading(path, WHAT), open_parquet(path, columns=()) as file:
        return file.schema_arrow


def check_sizes(
    source: pa.NativeFile,
    metadata: pq.FileMetaData,
    *,
    where: str | Path,
    pages: bool = True,
    columns: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
) -> None:
    """Refuse a file that unfolds too far (see `limits`), by the counts of values in its footer, the headers of its
    pages and what its dictionaries hold.

    Encodings of repeated values take no room: forty kilobytes may hold half a billion floats.

    Args:
        source: the file, left wherever it is.
        pages: not by its footer alone.
        columns: whose pages and dictionaries, if not those of all.
        groups: numbers of the row groups that are read, if not all.
    Raises:
        InputError: naming file, row group and column.
    """
    widths, stored, total = _widths(metadata), source.size(), 0
    if columns is not None and not columns:
        pages = False
    check = PageCheck(source, metadata, where=where, columns=columns) if pages else None
    for number in range(metadata.num_row_groups) if groups is None else groups:
        group = metadata.row_group(number)
        if group.num_rows < 0:
            raise InputError(f"{where}: row group {number} has {group.num_rows} rows")
        chunks = [group.column(index) for index in range(len(widths))]
        for column, width in zip(chunks, widths, strict=True):
            total += max(column.num_values * width, column.total_uncompressed_size)
            if total > FREE_BYTES and (why := unfolds_too_far(total, stored)):
                raise InputError(f"{where}: row group {number}, column {column.path_in_schema}: {why}")
        if check is not None:
            check.add(number, chunks)
    if check is not None and (folded := check.folded()):
        _check_dictionaries(source, folded, where=where)


def _widths(metadata: pq.FileMetaData) -> list[int]:
    """Bytes that a value of each column takes at least: a text those of its length, a bit counts as a byte."""
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    return [
        column.length
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY"
        else _WIDTH.get(column.physical_type, 4)
        for column in columns
    ]


def _check_dictionaries(
    content: pa.NativeFile, folded: Sequence[tuple[int, str]], *, where: str | Path
) -> None:
    """Refuse a file whose texts unfold too far from their dictionaries; reads them, but does not unfold them.

    Args:
        folded: row groups and paths of columns.
    Raises:
        InputError: naming file, row group and column.
    """
    file = pq.ParquetFile(
        content, read_dictionary=sorted({path for _, path in folded}), page_checksum_verification=True
    )
    total = 0
    for number, path in folded:
        for column in file.read_row_group(number, columns=[path], use_threads=False).columns:
            for chunk in column.chunks:
                total += _unfolded_bytes(chunk)
        if why := unfolds_too_far(total, content.size()):
            raise InputError(f"{where}: row group {number}, column {path}: {why}")


def _unfolded_bytes(values: pa.Array) -> int:
    """Bytes of texts, within lists and structs or not, that are coded by a dictionary."""
    while not isinstance(values, pa.DictionaryArray):
        if pa.types.is_struct(values.type):
            return sum(_unfolded_bytes(field) for field in values.flatten())
        if not isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray | pa.MapArray):
            return values.nbytes
        values = values.flatten()
    # By Arrow alone: to give numbers to numpy it loads pandas, which takes half a second.
    lengths = pc.call_function("binary_length", [values.dictionary])
    return pc.call_function("sum", [lengths.take(values.indices)]).as_py() or 0


# --- seals ----------------------------------------------------------------------------------------

_SEAL = b"theodolite.seal"
_OPEN = b"00000000-00000000-0000000000000000"
_MARK = _SEAL + bytes([0x18, len(_OPEN)])
"""Key and value of the seal as they stand in a footer, one behind the other (Thrift's compact protocol)."""


def sealed(table: pa.Table, notes: Mapping[str, str] | None = None, **options: Any) -> bytearray:
    """A Parquet file whose footer holds checksums of itself and of everything before it.

    Parquet has checksums of pages alone. A bit that flips in a page's header or in the footer, which says where
    columns lie and how they are coded, gives other values or none at all, and nobody would know. Other readers see two
    numbers among the file's metadata.

    Args:
        notes: what else stands in the footer. Metadata of the table's schema stand there twice, for Arrow keeps the
            schema once more.
        options: of `pyarrow.parquet.ParquetWriter`, and `row_group_size`.
    """
    size = options.pop("row_group_size")
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _SEAL}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True, **options) as writer:
        writer.write_table(table, row_group_size=size)
        if notes:
            writer.add_key_value_metadata(dict(notes))
        writer.add_key_value_metadata({_SEAL.decode(): _OPEN.decode()})
    content = bytearray(memoryview(sink.getvalue()))
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    offset = content.rindex(_MARK, start) + len(_MARK)
    content[offset : offset + len(_OPEN)] = _checksums(
        memoryview(content)[:start], memoryview(content)[start:]
    )
    return content


def _checksums(body: memoryview, footer: memoryview) -> bytes:
    return f"{zlib.crc32(body):08x}-{zlib.crc32(footer):08x}-{len(body):016x}".encode()


def check_seal(source: pa.NativeFile, *, where: str | Path, whole: bool = False) -> None:
    """Hold an open file against its seal, if it has one; leaves the file at its beginning.

    Args:
        whole: all of the file, not its footer alone.
    Raises:
        InputError: the file is not as it was written.
    """
    size = source.size()
    source.seek(max(0, size - 8))
    tail = source.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] == b"PAR1" and length <= size - 12:
        start = size - 8 - length
        source.seek(start)
        footer = bytearray(source.read(length + 8))
        offset = footer.rfind(_MARK) + len(_MARK)
        if offset >= len(_MARK) and not _is_copied(footer):
            stated = bytes(footer[offset : offset + len(_OPEN)])
            footer[offset : offset + len(_OPEN)] = _OPEN
            body = 0
            source.seek(0)
            while whole and (left := start - source.tell()):
                body = zlib.crc32(source.read(min(left, 1 << 24)), body)
            found = f"{body:08x}-{zlib.crc32(footer):08x}-{start:016x}".encode()
            if found[9:] != stated[9:] or (whole and found != stated):
                raise InputError(f"{where}: damaged: it is not as it was written (checksum of the file)")
    source.seek(0)


def _is_copied(footer: bytearray) -> bool:
    """Whether a footer repeats a seal that somebody read with a table and wrote with another file: then it also stands
    in the schema that Arrow keeps with a file, where `sealed` puts none."""
    start = footer.find(_ARROW_SCHEMA)
    if start < 0:
        return True  # not by Arrow, which made the seal
    start += len(_ARROW_SCHEMA)
    length = 0
    for shift, byte in enumerate(footer[start : start + _LENGTH_BYTES]):
        length |= (byte & 127) << 7 * shift
        start += 1
        if byte < 128:
            break
    return _holds_seal(bytes(footer[start : start + length]))


_ARROW_SCHEMA = b"ARROW:schema\x18"
"""Key and kind of the value, a text: its length, a number of 7 bits a byte, and then itself, in base64."""
_LENGTH_BYTES = 5
"""Most that a length of 32 bits takes."""


@lru_cache(maxsize=16)
def _holds_seal(encoded: bytes) -> bool:
    try:
        return _SEAL in base64.b64decode(encoded)
    except ValueError:
        return False
