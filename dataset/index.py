"""The index: all per-clip columns of a dataset, and where each clip lies, in two small files for each folder of parts.

`index/<folder>.parquet` answers questions about all clips by column; counting or selecting among 213k clips would
otherwise read the footers of thousands of parts. `index/<folder>.arrow` holds the same clips in the same order in small
batches, each of which is read on its own, for one clip by id: its per-clip values, and the footer that its row group
needs (see `footers`), so that of the part itself only the series of frames are read.

The two files of a folder are a *piece*. Both are derived: they can be deleted at any time, say nothing that the parts
do not say, and are ignored as soon as the parts are not those that they were made from, each with the size and the time
of change that it had then. A piece that is made anew takes over what the old one says of parts that did not change: the
index is kept while parts are written, at a cost that does not grow with the dataset.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from .clip_rows import FOOTER, PLACE_COLUMNS, ROWS_PER_BATCH, ClipRows, open_clip_rows, write_clip_rows
from .clip_set import DIGEST_BYTES, ClipSet, Digests, digests_of
from .conform import check_types, conform, file_version
from .footers import series_footers
from .inputs import InputError, reading
from .limits import MIB
from .outcomes import OUTCOME_COLUMNS, Tally, tally_of
from .parquet import SCAN_OPTIONS, WHAT, open_parquet, read_table, sealed
from .processes import map_processes
from .schema import SCHEMA_VERSION, SERIES_COLUMNS
from .storage.arrow import arrow_place
from .storage.paths import as_path
from .store import (
    INDEX_FOLDER,
    Stamp,
    data_folder,
    dataset_folders,
    has_parts,
    part_stamps,
    stamped_folders,
    stamps_of_folder,
    write_atomically,
)

log = logging.getLogger(__name__)

_LEFT_OUT = ("error", "stage_wall_s")
"""Per-clip columns that the Parquet file lacks: nothing is selected by them."""
_FOREIGN = "files"
"""Name of the piece of files that another tool has put there."""
_DIGEST = "index_digest"
"""Column of the Parquet file: what a `ClipSet` holds of an id."""
_TALLY = "theodolite.tally"
_BATCHES = "theodolite.batches"
_CHECKED_WHOLE = 64 * MIB
"""Larger indexes are checked page by page, as they are read."""
_PART, _ROW_GROUP, _ROW = PLACE_COLUMNS


def piece_path(out: str | Path, folder: str) -> Path:
    """The Parquet file of a folder's piece; the Arrow file lies beside it."""
    return as_path(out) / INDEX_FOLDER / f"{folder or _FOREIGN}.parquet"


def refresh_index(out: str | Path, *, processes: int = 1) -> Path | None:
    """Bring the index up to date and return its folder; None if there are no parts yet.

    Args:
        processes: that share the work, if it is more than a few hundred parts.
    Raises:
        ValueError: a part that cannot be read.
    """
    out = as_path(out)
    folders = stamped_folders(out) if data_folder(out).is_dir() else []
    if not folders:
        return None
    stale = [(name, _paths(out, stamps)) for name, stamps in folders if not _is_whole(out, name, stamps)]
    if sum(len(parts) for _name, parts in stale) < _WORTH_PROCESSES:
        processes = 1
    for _ in map_processes(partial(_write_named_piece, out), stale, processes=processes):
        pass
    _remove_old(out, {name or _FOREIGN for name, _parts in folders})
    return out / INDEX_FOLDER


_WORTH_PROCESSES = 400
"""Parts to be read anew above which processes are started for it: each takes a second to begin."""


def refresh_piece(out: str | Path, folder: str) -> None:
    """Bring the piece of one folder of parts up to date (see `store.part_folders`)."""
    out = as_path(out)
    if (stamps := stamps_of_folder(out, folder)) and not _is_whole(out, folder, stamps):
        write_piece(out, folder, _paths(out, stamps))


def write_index(out: str | Path) -> Path:
    """Make the whole index anew from the parts that are there; returns its folder.

    Raises:
        ValueError: no parts, or a part that cannot be read.
    """
    out = as_path(out)
    folders = dataset_folders(out) if data_folder(out).is_dir() else []
    if not folders:
        raise ValueError(f"{out}: no Parquet files below data/; is this the --out folder of a run?")
    for name, parts in folders:
        write_piece(out, name, parts, anew=True)
    _remove_old(out, {name or _FOREIGN for name, _parts in folders})
    return out / INDEX_FOLDER


def _write_named_piece(out: Path, named: tuple[str, list[Path]]) -> None:
    write_piece(out, *named)


def _remove_old(out: Path, names: set[str]) -> None:
    """Remove pieces of folders that are no more, and the index of an earlier version."""
    for path in (out / INDEX_FOLDER).iterdir():
        if path.suffix in (".parquet", ".arrow") and path.stem not in names:
            path.unlink(missing_ok=True)
    for name in ("index.parquet", "index.arrow"):
        (out / name).unlink(missing_ok=True)


def write_piece(out: Path, folder: str, parts: Sequence[Path], *, anew: bool = False) -> None:
    """Write the piece of a folder of parts.

    Args:
        anew: read every part, whatever an older piece says of it.
    Raises:
        ValueError: a part that cannot be read.
    """
    path = piece_path(out, folder)
    path.parent.mkdir(exist_ok=True)
    # Before reading: a part that changes meanwhile makes the index stale.
    stamps = part_stamps(out, parts)
    known = {} if anew else _known_parts(out, folder)
    tables: list[pa.Table] = []
    footers: list[bytes | None] = []
    for number, (part, stamp) in enumerate(zip(parts, stamps, strict=True)):
        table, of_groups = known.get(stamp) or _index_part(part)
        start = len(footers)
        # A batch names the footer of a row group once, with the first of its clips.
        for offset, (group, row) in enumerate(
            zip(*(table[c].to_pylist() for c in PLACE_COLUMNS[1:]), strict=True)
        ):
            first = row == 0 or (start + offset) % ROWS_PER_BATCH == 0
            footers.append(of_groups[group] if of_groups is not None and first else None)
        numbers = pa.array([number] * table.num_rows, pa.int32())
        tables.append(table.append_column(pa.field(_PART, pa.int32(), nullable=False), numbers))
    # In one chunk: Parquet is written chunk by chunk, at a cost that grows with the square of their number.
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    table = table.replace_schema_metadata(None)
    digests = pa.Array.from_buffers(
        pa.binary(DIGEST_BYTES),
        table.num_rows,
        [None, pa.py_buffer(digests_of(table["clip_id"].to_pylist()))],
    )
    metadata = {
        "theodolite.schema_version": str(SCHEMA_VERSION),
        _TALLY: json.dumps(tally_of(table).to_json()),
        "theodolite.parts": json.dumps(stamps),
        _BATCHES: json.dumps(write_clip_rows(path.with_suffix(".arrow"), table, footers)),
    }
    table = table.drop_columns([name for name in _LEFT_OUT if name in table.schema.names])
    table = table.append_column(_DIGEST, digests).replace_schema_metadata(metadata)
    content = sealed(table, compression="zstd", row_group_size=1 << 20)
    write_atomically(path, memoryview(content))


_Indexed = tuple[pa.Table, list[bytes] | None]
"""Per-clip columns and places of a part, and the footers of its row groups."""


def _known_parts(out: Path, folder: str) -> dict[tuple[str, int, int], _Indexed]:
    """What an older piece says, by the stamps of its parts; nothing if a byte of it is damaged."""
    piece = _open_piece(out, folder)
    rows = None if piece is None else open_clip_rows(piece.path, piece.batches)
    if piece is None or rows is None or not rows.whole():
        return {}
    try:
        table = rows.to_table()
    except ValueError:
        return {}
    numbers = table[_PART].to_numpy()
    if (np.diff(numbers) < 0).any():
        return {}
    found: dict[tuple[str, int, int], _Indexed] = {}
    ends = np.searchsorted(numbers, np.arange(len(piece.stamps)), side="right").tolist()
    for stamp, start, end in zip(piece.stamps, [0, *ends], ends, strict=False):
        of_part = table.slice(start, end - start)
        footers = dict(zip(of_part[_ROW_GROUP].to_pylist(), of_part[FOOTER].to_pylist(), strict=True))
        for group, footer in zip(
            of_part[_ROW_GROUP].to_pylist(), of_part[FOOTER].to_pylist(), strict=True
        ):  # the first of a group has it
            footers[group] = footer or footers[group]
        whole = [footer for _group, footer in sorted(footers.items()) if footer is not None]
        found[stamp] = (
            of_part.drop_columns([_PART, FOOTER]),
            whole if len(whole) == len(footers) else None,
        )
    return found


def _index_part(part: Path) -> _Indexed:
    with open_parquet(part) as file, reading(part, WHAT):
        return _index_open_part(part, file)


def _index_open_part(part: Path, file: pq.ParquetFile) -> _Indexed:
    schema = file.schema_arrow
    file_version(schema, where=str(part))
    check_types(schema, where=str(part))
    wanted = [name for name in schema.names if name not in SERIES_COLUMNS]
    table = conform(
        file.read(columns=wanted, use_threads=False)
    )  # threads cost more than such small columns give
    groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    columns = (
        [g for g, n in enumerate(groups) for _ in range(n)],
        [row for n in groups for row in range(n)],
    )
    for name, values in zip(PLACE_COLUMNS[1:], columns, strict=True):
        table = table.append_column(pa.field(name, pa.int32(), nullable=False), pa.array(values, pa.int32()))
    return table, series_footers(file, schema)


class IndexReplaced(InputError):
    """Another command has changed the dataset since it was opened."""


def _digest(parts: bytes) -> bytes:
    return hashlib.blake2b(parts, digest_size=16).digest()


@dataclass(frozen=True)
class Piece:
    """An opened piece.

    Attributes:
        stamps: of its parts: path below the dataset, size, time of change in nanoseconds.
        batches: where the batches of its Arrow file lie (JSON).
        made_of: digest of what it says of its parts.
        counted: how its clips ended (JSON of a `Tally`); empty in those of earlier versions.
    """

    path: Path
    num_rows: int
    schema: pa.Schema
    stamps: tuple[tuple[str, int, int], ...]
    batches: str = field(repr=False)
    made_of: bytes = field(repr=False)
    counted: str = field(repr=False, default="")

    def tally(self) -> Tally:
        """How its clips ended: what is written of that, if it is of as many clips, else from its columns."""
        try:
            tally = Tally.from_json(json.loads(self.counted or "{}"))
            if tally.done == self.num_rows:
                return tally
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            pass
        return tally_of(self.to_table(self.schema, list(OUTCOME_COLUMNS), None))

    def digests(self) -> Digests:
        """(N,) of its clips' ids."""
        if _DIGEST in self.schema.names and self.schema.field(_DIGEST).type == pa.binary(DIGEST_BYTES):
            column = self.to_table(self.schema, [_DIGEST], None)[_DIGEST].combine_chunks()
            if column.null_count == 0 and len(column) == self.num_rows:
                content = column.buffers()[1]
                return np.frombuffer(content, f"S{DIGEST_BYTES}", len(column), DIGEST_BYTES * column.offset)
        return digests_of(self.to_table(self.schema, ["clip_id"], None)["clip_id"].to_pylist())

    def to_table(self, schema: pa.Schema, columns: list[str], where: pads.Expression | None) -> pa.Table:
        """Filtered columns; those of `schema` that this piece lacks are null.

        Raises:
            IndexReplaced: it is no longer the one that was opened.
        """
        return self._arrow(schema, columns, where).to_table(columns=columns, filter=where)

    def slices(self, schema: pa.Schema, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The same without a filter, some thousand clips at a time."""
        return self._arrow(schema, columns, None).to_batches(
            columns=columns, batch_size=_BATCH, batch_readahead=2, fragment_readahead=1
        )

    def _arrow(
        self, schema: pa.Schema, columns: list[str], where: pads.Expression | None
    ) -> pads.FileSystemDataset:
        replaced = f"{self.path.parent.parent}: was changed since it was opened; open it again"
        if not self.path.is_file():
            raise IndexReplaced(replaced)
        with open_parquet(self.path, columns=[*columns, *named_in(where, self.schema)]) as file:
            if _digest((file.metadata.metadata or {}).get(b"theodolite.parts", b"")) != self.made_of:
                raise IndexReplaced(replaced)
        filesystem, name = arrow_place(self.path)
        fragment = _PARQUET.make_fragment(name, filesystem)
        return pads.FileSystemDataset([fragment], schema, _PARQUET, filesystem)


def named_in(condition: pads.Expression | None, schema: pa.Schema) -> list[str]:
    """Columns that a condition may read: those whose names stand in it."""
    return [] if condition is None else [name for name in schema.names if name in str(condition)]


_PARQUET = pads.ParquetFileFormat(default_fragment_scan_options=SCAN_OPTIONS)
_BATCH = 1 << 15
_MAX_OPEN = 64
"""Arrow files that are kept open."""


@dataclass(frozen=True)
class Index:
    """The opened index of a dataset: pieces in the order of its folders of parts.

    What is read of it is of the parts that it was opened for, or it is an `IndexReplaced`.
    """

    pieces: tuple[Piece, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of all pieces, without metadata."""
        schemas = list({piece.schema.to_string(): piece.schema for piece in self.pieces}.values())
        return pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()

    @property
    def num_rows(self) -> int:
        """Clips of the dataset."""
        return sum(piece.num_rows for piece in self.pieces)

    def tally(self) -> Tally:
        """How all clips ended; from a few numbers a piece."""
        whole = Tally()
        for piece in self.pieces:
            whole.take(piece.tally())
        return whole

    def to_table(
        self, columns: Sequence[str], filter: pads.Expression | None = None, *, most: int | None = None
    ) -> pa.Table:
        """Filtered columns of all clips, in the dataset's order; or of at least the first `most`, for which no more is
        read than they need."""
        tables: list[pa.Table] = []
        first = num_rows = 0  # number of a piece's first part in the dataset
        for piece in self.pieces:
            if most is not None and num_rows >= most:
                break
            table = piece.to_table(self.schema, list(columns), filter)
            num_rows += table.num_rows
            if _PART in table.schema.names and first:
                place = table.schema.get_field_index(_PART)
                numbers = pa.array(table[_PART].to_numpy() + first, pa.int32())
                table = table.set_column(place, table.schema.field(place), numbers)
            tables.append(table)
            first += len(piece.stamps)
        return pa.concat_tables(tables)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of all clips in the dataset's order, some thousand at a time; no places of clips, which are numbered
        by the piece."""
        assert _PART not in columns
        for piece in self.pieces:
            yield from piece.slices(self.schema, list(columns))

    def stamps(self) -> list[tuple[int, int]]:
        """Size and time of change in nanoseconds of all parts, in the dataset's order."""
        return [(size, changed) for piece in self.pieces for _name, size, changed in piece.stamps]

    def read(self, number: int, open_part: Callable[[int], pa.NativeFile]) -> dict[str, pa.Array] | None:
        """A clip by its number in the index, as `ClipRows.read`; `open_part` takes the dataset's number of a part."""
        place = bisect.bisect_right(self._first_rows, number) - 1
        rows = self._rows_of(place)
        first_part = self._first_parts[place]
        if rows is None:
            return None

        def opened(part: int) -> pa.NativeFile:
            if not 0 <= part < len(self.pieces[place].stamps):
                raise InputError(f"{rows.path}: damaged: a clip of part {part}, which it does not have")
            return open_part(first_part + part)

        return rows.read(number - self._first_rows[place], opened)

    @cached_property
    def _first_rows(self) -> list[int]:
        return [0, *itertools.accumulate(piece.num_rows for piece in self.pieces[:-1])]

    @cached_property
    def _first_parts(self) -> list[int]:
        return [0, *itertools.accumulate(len(piece.stamps) for piece in self.pieces[:-1])]

    @cached_property
    def _open_rows(self) -> dict[int, ClipRows | None]:
        """Arrow files that are open, by number of the piece; the one opened last comes last."""
        return {}

    def _rows_of(self, number: int) -> ClipRows | None:
        if number not in self._open_rows:
            while len(self._open_rows) >= _MAX_OPEN:
                del self._open_rows[next(iter(self._open_rows))]
            self._open_rows[number] = open_clip_rows(self.pieces[number].path, self.pieces[number].batches)
        return self._open_rows[number]

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {"pieces": self.pieces}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def open_index(out: Path, folders: Sequence[tuple[str, Sequence[Stamp]]]) -> Index | None:
    """The index of a dataset folder, or None if it lacks a piece or the parts are no longer those it was made from.

    Args:
        folders: from `store.stamped_folders`.
    """
    pieces: list[Piece] = []
    for name, stamps in folders:
        piece = _current_piece(out, name, stamps)
        if piece is None:
            return None
        pieces.append(piece)
    return Index(tuple(pieces))


def rows_by_folder(out: str | Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Per-clip columns of all clips, one table for each folder of parts: from the index where it is of the parts that
    are there, else from these.

    Raises:
        InputError: a part that cannot be read.
    """
    out = as_path(out)
    for stamps, piece in _pieces_by_folder(out):
        if piece is not None and set(columns) <= set(piece.schema.names):
            with reading(piece.path, "index"):
                yield piece.to_table(piece.schema, list(columns), None)
        else:
            tables = (read_table(part, columns) for part in _paths(out, stamps))
            yield pa.concat_tables(tables).replace_schema_metadata(None)


def _pieces_by_folder(out: Path) -> Iterator[tuple[list[Stamp], Piece | None]]:
    for name, stamps in stamped_folders(out) if has_parts(out) else ():
        yield stamps, _current_piece(out, name, stamps)


def _paths(out: Path, stamps: Sequence[Stamp]) -> list[Path]:
    return [out / name for name, _size, _changed in stamps]


def tallies_by_folder(out: str | Path) -> Iterator[Tally]:
    """How clips ended, a tally for each folder of parts, as `rows_by_folder`: what the index keeps of a folder is a few
    numbers, however many clips lie there.

    Raises:
        InputError: a part that cannot be read.
    """
    out = as_path(out)
    for stamps, piece in _pieces_by_folder(out):
        if piece is not None:
            with reading(piece.path, "index"):
                yield piece.tally()
        else:
            tally = Tally()
            for part in _paths(out, stamps):
                tally.take(tally_of(read_table(part, OUTCOME_COLUMNS)))
            yield tally


def set_of_clips(out: str | Path) -> ClipSet:
    """All clips that have a row, as `rows_by_folder`.

    Raises:
        InputError: a part that cannot be read.
    """
    out = as_path(out)
    digests = [digests_of([])]
    for stamps, piece in _pieces_by_folder(out):
        if piece is not None:
            with reading(piece.path, "index"):
                digests.append(piece.digests())
        else:
            for part in _paths(out, stamps):
                digests.append(digests_of(read_table(part, ["clip_id"])["clip_id"].to_pylist()))
    found = ClipSet()
    found.add(np.concatenate(digests))
    return found


def _current_piece(out: Path, folder: str, stamps: Sequence[Stamp]) -> Piece | None:
    """The piece of a folder, if it is of these parts; one that is damaged is made anew."""
    try:
        piece = _open_piece(out, folder)
    except InputError as error:
        log.warning("%s; it is derived from the parts, and is made anew", error)
        try:
            piece_path(out, folder).unlink()
            write_piece(out, folder, _paths(out, stamps))
        except (OSError, ValueError):  # a folder of others, or damaged parts: who reads them says so
            return None
        piece = _open_piece(out, folder)
    return None if piece is None or list(piece.stamps) != list(stamps) else piece


def _is_whole(out: Path, folder: str, stamps: Sequence[Stamp]) -> bool:
    """Whether both files of a piece are of these parts, to the last byte."""
    piece = _current_piece(out, folder, stamps)
    rows = None if piece is None else open_clip_rows(piece.path, piece.batches)
    return rows is not None and rows.whole()


def _open_piece(out: Path, folder: str) -> Piece | None:
    """The piece of a folder; None if there is none that this version reads.

    Raises:
        InputError: it is damaged.
    """
    path = piece_path(out, folder)
    if not path.is_file():
        return None
    whole = path.stat().st_size < _CHECKED_WHOLE
    with open_parquet(path, whole=whole, columns=()) as file, reading(path, "index"):
        schema = file.schema_arrow
        metadata = schema.metadata or {}
        if metadata.get(b"theodolite.schema_version") != str(SCHEMA_VERSION).encode():
            return None
        if _BATCHES.encode() not in metadata:  # of an earlier version
            return None
        stamps = tuple((str(n), int(s), int(c)) for n, s, c in json.loads(metadata[b"theodolite.parts"]))
        batches = metadata[_BATCHES.encode()].decode()
        counted = metadata.get(_TALLY.encode(), b"").decode()
        made_of = _digest(metadata[b"theodolite.parts"])
        return Piece(
            path, file.metadata.num_rows, schema.remove_metadata(), stamps, batches, made_of, counted
        )
