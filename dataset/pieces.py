"""Pieces of the index, opened to be read: see `index`, which makes them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .clip_rows import PLACE_COLUMNS, ClipRows, open_clip_rows
from .clip_set import DIGEST_BYTES, Digests, digests_of
from .inputs import InputError, reading
from .limits import MIB
from .outcomes import OUTCOME_COLUMNS, Tally, tally_of
from .parquet import open_parquet, scan_format
from .schema import SCHEMA_VERSION
from .storage.arrow import arrow_place
from .storage.paths import as_path
from .store import INDEX_FOLDER, Stamp

if TYPE_CHECKING:
    import pyarrow.dataset as pads

FOREIGN = "files"
"""Name of the piece of files that another tool has put there."""
DIGEST = "index_digest"
"""Column of the Parquet file: what a `ClipSet` holds of an id."""
VERSION, TALLY, PARTS, MADE_OF, BATCHES = (
    f"theodolite.{name}" for name in ("schema_version", "tally", "parts", "made_of", "batches")
)
"""What the Parquet file says of itself, beside its schema."""
_CHECKED_WHOLE = 64 * MIB
"""Larger indexes are checked page by page, as they are read."""
_PART, _ROW_GROUP, _ROW = PLACE_COLUMNS


def piece_path(out: str | Path, folder: str) -> Path:
    """The Parquet file of a folder's piece; the Arrow file lies beside it."""
    return as_path(out) / INDEX_FOLDER / f"{folder or FOREIGN}.parquet"


OPEN_AGAIN = "open it again, or run the same command again"
"""What to do about a dataset of which something was replaced meanwhile."""


class IndexReplaced(InputError):
    """Another command has changed the dataset since it was opened."""


def digest_of(stamps: Sequence[Stamp]) -> str:
    """What tells parts from others, or from themselves after a change, at a tenth of what reading their list costs."""
    names, sizes, changes = zip(*stamps, strict=True) if stamps else ((), (), ())
    text = "\0".join((str(len(names)), *names))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    for numbers in (sizes, changes):
        try:
            digest.update(array("q", numbers))
        except OverflowError:  # a time of change after 2262
            digest.update(repr(numbers).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Piece:
    """An opened piece.

    Attributes:
        stamps: of its parts: path below the dataset, size, time of change in nanoseconds.
        batches: where the batches of its Arrow file lie (JSON).
        made_of: digest of the stamps.
        counted: how its clips ended (JSON of a `Tally`); empty in those of earlier versions.
    """

    path: Path
    num_rows: int
    schema: pa.Schema
    stamps: tuple[tuple[str, int, int], ...]
    batches: str = field(repr=False)
    made_of: str = field(repr=False)
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
        if DIGEST in self.schema.names and self.schema.field(DIGEST).type == pa.binary(DIGEST_BYTES):
            column = self.to_table(self.schema, [DIGEST], None)[DIGEST].combine_chunks()
            if column.null_count == 0 and len(column) == self.num_rows:
                content = column.buffers()[1]
                return np.frombuffer(content, f"S{DIGEST_BYTES}", len(column), DIGEST_BYTES * column.offset)
        return digests_of(self.to_table(self.schema, ["clip_id"], None)["clip_id"].to_pylist())

    def to_table(self, schema: pa.Schema, columns: list[str], where: pads.Expression | None) -> pa.Table:
        """Filtered columns; those of `schema` that this piece lacks are null.

        Raises:
            IndexReplaced: it is no longer the one that was opened.
        """
        if where is None and all(
            name in self.schema.names and schema.field(name) == self.schema.field(name) for name in columns
        ):
            with self._opened(columns) as file:
                table = file.read(columns=columns, use_threads=False)
            return table.select(columns).replace_schema_metadata(None)
        return self._arrow(schema, columns, where).to_table(columns=columns, filter=where)

    def slices(self, schema: pa.Schema, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The same without a filter, some thousand clips at a time."""
        return self._arrow(schema, columns, None).to_batches(
            columns=columns, batch_size=_BATCH, batch_readahead=2, fragment_readahead=1
        )

    @contextmanager
    def _opened(self, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
        """Its file, of which these columns are going to be read.

        Raises:
            IndexReplaced: it is no longer the one that was opened.
        """
        replaced = f"{self.path.parent.parent}: another command changed it since it was opened; {OPEN_AGAIN}"
        if not self.path.is_file():
            raise IndexReplaced(replaced)
        with open_parquet(self.path, columns=columns) as file:
            with reading(self.path, "index"):
                made_of = _made_of(file.metadata.metadata or {})
            if made_of != self.made_of:
                raise IndexReplaced(replaced)
            yield file

    def _arrow(
        self, schema: pa.Schema, columns: list[str], where: pads.Expression | None
    ) -> pads.FileSystemDataset:
        with self._opened([*columns, *named_in(where, self.schema)]):
            pass
        from pyarrow.dataset import FileSystemDataset  # which brings pandas, and takes half a second

        filesystem, name = arrow_place(self.path)
        fragment = scan_format().make_fragment(name, filesystem)
        return FileSystemDataset([fragment], schema, scan_format(), filesystem)


def named_in(condition: pads.Expression | None, schema: pa.Schema) -> list[str]:
    """Columns that a condition may read: those whose names stand in it."""
    return [] if condition is None else [name for name in schema.names if name in str(condition)]


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
        schemas: list[pa.Schema] = []
        for piece in self.pieces:
            if not any(piece.schema.equals(known, check_metadata=True) for known in schemas):
                schemas.append(piece.schema)
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


def open_piece(out: Path, folder: str, stamps: Sequence[Stamp] | None = None) -> Piece | None:
    """The piece of a folder; None if there is none that this version reads.

    Args:
        stamps: of the parts that it must be of; None: of any.
    Raises:
        InputError: it is damaged.
    """
    path = piece_path(out, folder)
    try:
        if not path.is_file():
            return None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    whole = path.stat().st_size < _CHECKED_WHOLE
    with open_parquet(path, whole=whole, columns=()) as file, reading(path, "index"):
        notes = file.metadata.metadata or {}
        if notes.get(VERSION.encode()) != str(SCHEMA_VERSION).encode():
            return None
        if BATCHES.encode() not in notes:  # of an earlier version
            return None
        made_of = _made_of(notes)
        if stamps is None:
            stamps = _stamps_in(notes)
        elif made_of != digest_of(stamps):
            return None
        batches = notes[BATCHES.encode()].decode()
        counted = notes.get(TALLY.encode(), b"").decode()
        schema = file.schema_arrow.remove_metadata()
        return Piece(path, file.metadata.num_rows, schema, tuple(stamps), batches, made_of, counted)


def _made_of(notes: Mapping[bytes, bytes]) -> str:
    """The digest in a piece's notes; those of earlier versions have none."""
    found = notes.get(MADE_OF.encode())
    return digest_of(_stamps_in(notes)) if found is None else found.decode()


def _stamps_in(notes: Mapping[bytes, bytes]) -> list[Stamp]:
    return [(str(name), int(size), int(changed)) for name, size, changed in json.loads(notes[PARTS.encode()])]
