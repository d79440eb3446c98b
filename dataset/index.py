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

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .clip_rows import FOOTER, PLACE_COLUMNS, ROWS_PER_BATCH, open_clip_rows, write_clip_rows
from .clip_set import DIGEST_BYTES, ClipSet, digests_of
from .conform import check_types, conform, file_version
from .footers import series_footers
from .inputs import InputError, reading
from .outcomes import OUTCOME_COLUMNS, Tally, tally_of
from .parquet import WHAT, open_parquet, read_table, sealed
from .pieces import (
    BATCHES,
    DIGEST,
    FOREIGN,
    MADE_OF,
    PARTS,
    TALLY,
    VERSION,
    Index,
    Piece,
    digest_of,
    open_piece,
    piece_path,
)
from .processes import WORTH_PROCESSES, map_processes
from .schema import SCHEMA_VERSION, SERIES_COLUMNS
from .storage.listing import CLOCK_TICK_NS, may_change_unseen
from .storage.paths import StorePath, as_path
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

_MOST_WAITS = 50
_LEFT_OUT = ("error", "stage_wall_s")
"""Per-clip columns that the Parquet file lacks: nothing is selected by them."""
_PART, _ROW_GROUP, _ROW = PLACE_COLUMNS


def refresh_index(out: str | Path, *, processes: int = 1) -> Path | None:
    """Bring the index up to date and return its folder; None if there are no parts yet.

    Args:
        processes: that share the work, if it is more than a few hundred parts.
    Raises:
        ValueError: a part that cannot be read.
    """
    out = as_path(out)
    return out / INDEX_FOLDER if _refreshed(out, processes) else None


def refreshed_tally(out: str | Path, *, processes: int = 1) -> Tally:
    """Bring the index up to date, and count how clips ended, with one look at the parts for both.

    Raises:
        ValueError: a part that cannot be read.
    """
    out = as_path(out)
    whole = Tally()
    for name, stamps in _refreshed(out, processes):
        whole.take(_tally_of_folder(out, stamps, _current_piece(out, name, stamps)))
    return whole


def _refreshed(out: Path, processes: int) -> list[tuple[str, list[Stamp]]]:
    """Bring the index up to date; returns the folders of parts that it is of."""
    folders = stamped_folders(out) if data_folder(out).is_dir() else []
    if not folders:
        return []
    stale = [(name, _paths(out, stamps)) for name, stamps in folders if not _is_whole(out, name, stamps)]
    if sum(len(parts) for _name, parts in stale) < WORTH_PROCESSES:
        processes = 1
    for _ in map_processes(partial(_write_named_piece, out), stale, processes=processes):
        pass
    _remove_old(out, {name or FOREIGN for name, _parts in folders})
    return folders


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
    _remove_old(out, {name or FOREIGN for name, _parts in folders})
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
    stamps = _settled_stamps(out, parts)
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
    notes = {
        VERSION: str(SCHEMA_VERSION),
        TALLY: json.dumps(tally_of(table).to_json()),
        PARTS: json.dumps(stamps),
        MADE_OF: digest_of(stamps),
        BATCHES: json.dumps(write_clip_rows(path.with_suffix(".arrow"), table, footers)),
    }
    table = table.drop_columns([name for name in _LEFT_OUT if name in table.schema.names])
    table = table.append_column(DIGEST, digests)
    content = sealed(table, notes, compression="zstd", row_group_size=1 << 20)
    write_atomically(path, memoryview(content))


def _settled_stamps(out: Path, parts: Sequence[Path]) -> list[Stamp]:
    """Stamps of parts, once each further change gives another one: parts that were written a moment ago are waited for
    until the clock of the file system has gone on."""
    stamps = part_stamps(out, parts)
    for _ in range(0 if isinstance(out, StorePath) else _MOST_WAITS):
        if not may_change_unseen(max((changed for _name, _size, changed in stamps), default=0)):
            break
        time.sleep(CLOCK_TICK_NS / 1e9)
        before, stamps = stamps, part_stamps(out, parts)
        if stamps == before:  # also where another machine's clock is ahead
            break
    return stamps


_Indexed = tuple[pa.Table, list[bytes] | None]
"""Per-clip columns and places of a part, and the footers of its row groups."""


def _known_parts(out: Path, folder: str) -> dict[tuple[str, int, int], _Indexed]:
    """What an older piece says, by the stamps of its parts; nothing if a byte of it is damaged."""
    try:
        piece = open_piece(out, folder)
        rows = None if piece is None else open_clip_rows(piece.path, piece.batches)
        if piece is None or rows is None or not rows.whole():
            return {}
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
    with _told_what_to_do(), open_parquet(part) as file, reading(part, WHAT):
        return _index_open_part(part, file)


def _read_part(part: Path, columns: Sequence[str]) -> pa.Table:
    with _told_what_to_do():
        return read_table(part, columns)


@contextmanager
def _told_what_to_do() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; where it is gone, the run's command makes its clips anew") from error


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
            tables = (_read_part(part, columns) for part in _paths(out, stamps))
            yield pa.concat_tables(tables).replace_schema_metadata(None)


def _pieces_by_folder(out: Path) -> Iterator[tuple[list[Stamp], Piece | None]]:
    for name, stamps in stamped_folders(out) if has_parts(out) else ():
        yield stamps, _current_piece(out, name, stamps)


def _paths(out: Path, stamps: Sequence[Stamp]) -> list[Path]:
    return [out / name for name, _size, _changed in stamps]


def _tally_of_folder(out: Path, stamps: Sequence[Stamp], piece: Piece | None) -> Tally:
    if piece is not None:
        with reading(piece.path, "index"):
            return piece.tally()
    tally = Tally()
    for part in _paths(out, stamps):
        tally.take(tally_of(_read_part(part, OUTCOME_COLUMNS)))
    return tally


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
                digests.append(digests_of(_read_part(part, ["clip_id"])["clip_id"].to_pylist()))
    found = ClipSet()
    found.add(np.concatenate(digests))
    return found


def _current_piece(out: Path, folder: str, stamps: Sequence[Stamp]) -> Piece | None:
    """The piece of a folder, if it is of these parts; one that is damaged is made anew, where that may be written."""
    try:
        return open_piece(out, folder, stamps)
    except InputError as error:
        damaged = error
    try:
        piece_path(out, folder).unlink()
        write_piece(out, folder, _paths(out, stamps))
    except (OSError, ValueError):  # a folder of others, or damaged parts: who reads them says so
        log.warning("%s; it is derived from the parts, which are read instead", damaged)
        return None
    log.warning("%s; it is derived from the parts, and was made anew", damaged)
    return open_piece(out, folder, stamps)


def _is_whole(out: Path, folder: str, stamps: Sequence[Stamp]) -> bool:
    """Whether both files of a piece are of these parts, to the last byte."""
    piece = _current_piece(out, folder, stamps)
    rows = None if piece is None else open_clip_rows(piece.path, piece.batches)
    return rows is not None and rows.whole()
