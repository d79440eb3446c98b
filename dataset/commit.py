"""Who may put parts into a dataset: the one command that holds it, and nobody who once worked for another.

Workers write the parts of their run where only that run writes. Only the command that began it makes them count, one
act a part, and it refuses a clip that has a row. So nothing depends on who is still alive: a worker that outlives its
command (behind a scheduler it does) writes what is no longer looked at, and finds its run gone as soon as another
command has begun.

That command first takes in what dead runs left: they are closed, which fences their workers off, and then whole parts
of clips without rows are adopted, all else is dropped.

How a dataset is held and what that one act is, differs between a folder (`storage.local`: a lock, and a rename) and an
object store (`storage.remote`: a turn, and an entry of a log).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from .clip_set import ClipSet
from .index import rows_by_folder, set_of_clips
from .inputs import InputError
from .parquet import read_table
from .storage.backend import Backend, Fenced
from .storage.local import FolderBackend
from .storage.paths import StorePath, as_path
from .storage.remote import LogBackend
from .store import part_folders, part_metadata, part_path, shard_digest, source_folder, write_part_table

log = logging.getLogger(__name__)

__all__ = ["ClipHasRow", "Commits", "Fenced"]


class ClipHasRow(RuntimeError):
    """A part may not be committed, because a clip of it has a row."""


def _backend(out: str | Path) -> Backend:
    out = as_path(out)
    return LogBackend(out) if isinstance(out, StorePath) else FolderBackend(out)


@contextmanager
def hold_dataset(out: str | Path) -> Iterator[None]:
    """Make a dataset's place and hold it for this process; ends with the process, however that ends.

    Raises:
        ValueError: another run holds it, or it cannot be written to.
    """
    with _backend(out).hold():
        yield


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """As `hold_dataset`, of a folder for anything else.

    Raises:
        ValueError: another command holds it, it cannot be made, or it is none of this file system.
    """
    if isinstance(as_path(out), StorePath):
        raise ValueError(
            f"{as_path(out)}: what is written here is a folder; copy it to an object store afterwards"
        )
    with FolderBackend(out).hold():
        yield


@contextmanager
def own_run(out: str | Path) -> Iterator[Path]:
    """Folder into which this run's workers write; call while the dataset is held. Gone afterwards."""
    backend = _backend(out)
    folder = backend.begin_run()
    ended = False
    try:
        yield folder
        ended = True
    finally:
        # What an interrupted run has not committed is taken in by the next one.
        backend.end_run(folder, ended=ended)


def check_run(folder: Path) -> None:
    """Raise `Fenced` unless a run's folder is still there."""
    if not _backend(folder.parent).run_is_open(folder):
        raise Fenced(f"{folder.parent}: this run is over, another command writes here")


class Commits:
    """Makes parts count; refuses clips that have rows.

    Args:
        out: dataset, held by this process.
        have: the clips that have rows; grows.
    """

    def __init__(self, out: str | Path, have: ClipSet | None = None) -> None:
        self._out, self._have = as_path(out), ClipSet() if have is None else have
        self._backend = _backend(out)

    def check(self, clip_ids: Iterable[str]) -> list[str]:
        """The ids.

        Raises:
            ClipHasRow: one of them has a row.
        """
        ids = list(clip_ids)
        for clip_id, twice in zip(ids, self._have.has(ids), strict=True):
            if twice:
                raise ClipHasRow(f"{self._out}: clip {clip_id} has a row already")
        return ids

    def take(self, part: Path, clip_ids: Iterable[str]) -> Path:
        """Make a whole part of a run count; returns where it lies then. Sure with `flush`.

        Raises:
            ClipHasRow: nothing was done.
            OSError: the part is not there, or the disk or store does not take it.
        """
        ids = self.check(clip_ids)
        try:
            target = self._backend.commit(part)
        except FileExistsError as error:
            raise ClipHasRow(str(error)) from None
        self._have.update(ids)
        return target

    def replace(self, replacements: Sequence[tuple[Path, Sequence[Path]]]) -> None:
        """Make whole parts of a run count, each instead of others that hold its rows and count no more. Readers see
        either, and nothing between, at any moment.

        Raises:
            OSError: the disk or store does not take it.
        """
        if replacements:
            self._backend.replace(replacements)

    def remove(self, part: Path) -> None:
        """Make a part count no more."""
        self._backend.remove(part)

    def flush(self) -> None:
        """Make sure of what was taken: it survives the machine, and readers see it. Once for many parts."""
        self._backend.flush()


def take_in_dead_runs(out: str | Path, *, recipe_hash: str) -> int:
    """Adopt what runs left that ended without committing it; call while the dataset is held, before planning.

    Returns:
        How many clips were taken in.
    """
    backend = _backend(out)
    parts = backend.dead_parts()
    taken = 0
    left: list[Path] = []
    if parts:
        commits = Commits(out, set_of_clips(out))
        refused: list[str] = []
        for part in parts:
            try:
                if part_metadata(part)[1] != recipe_hash:
                    left.append(part)
                    continue
                ids = read_table(part, ["clip_id"])["clip_id"].to_pylist()
                commits.take(part, ids)
                taken += len(ids)
            except (InputError, ValueError, ClipHasRow) as error:  # cut, of another recipe, or done meanwhile
                refused.append(f"{part.name}: {error}")
                left.append(part)
        commits.flush()
        if refused:
            log.warning(
                "%s: %d parts left by runs that ended are not taken in, e.g. %s",
                out,
                len(refused),
                refused[0],
            )
    backend.drop_dead(left)
    return taken


def clips_with_rows(out: str | Path) -> Iterator[str]:
    """Ids of all clips that have a row: from the index, where it is of the parts that are there."""
    for table in rows_by_folder(out, ["clip_id"]):
        yield from table["clip_id"].to_pylist()


def drop_rows(out: str | Path, unwanted: Callable[[pa.Table], Sequence[bool]]) -> list[str]:
    """Take rows out of a dataset, so that their clips count as not done; call while it is held.

    A part is replaced by one of its other rows, of which some are written first, as a run of their own: killed at any
    moment, a clip's row is either in the old part or in the new one, or gone if it was to go.

    Args:
        unwanted: of a table with `clip_id`, `verdict` and `reasons`, which rows go.
    Returns:
        Ids of the clips.
    """
    dropped: list[str] = []
    columns = ["clip_id", "verdict", "reasons"]
    commits = Commits(out)
    with own_run(out) as incoming:
        replacements: list[tuple[Path, Sequence[Path]]] = []
        for (_name, parts), table in zip(part_folders(out), rows_by_folder(out, columns), strict=True):
            if not any(unwanted(table)):
                continue
            for part in parts:
                goes = list(unwanted(read_table(part, columns)))
                if any(goes):
                    ids, new = _without_rows(part, goes, incoming)
                    dropped += ids
                    if new is None:
                        commits.remove(part)
                    else:
                        replacements.append((new, [part]))
                if len(replacements) >= _REPLACED_AT_ONCE:
                    commits.replace(replacements)
                    replacements = []
        commits.replace(replacements)
    return dropped


_REPLACED_AT_ONCE = 64
"""Parts that are replaced together: it takes as long as for one."""


def _without_rows(part: Path, goes: list[bool], incoming: Path) -> tuple[list[str], Path | None]:
    """Write a part's other rows as a new one; returns the ids of the clips that are not in it, and the part, None if
    none is left."""
    table = read_table(part)
    dropped = table.filter(pa.array(goes))["clip_id"].to_pylist()
    rest = table.filter(pa.array([not x for x in goes]))
    if not rest.num_rows:
        return dropped, None
    new = new_part(incoming, part, shard_number(part), rest["clip_id"].to_pylist())
    write_part_table(new, rest)
    return dropped, new


def shard_number(part: Path) -> str:
    """The number in a part's name."""
    return part.stem.removeprefix("part-").split("-")[0]


def new_part(incoming: Path, old: Path, number: str, clip_ids: Sequence[str]) -> Path:
    """Where a part lies in a run's folder that is made of others', beside `old` of the same source."""
    path = part_path(incoming, source=source_folder(old), shard_id=f"{number}-{shard_digest(clip_ids)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
