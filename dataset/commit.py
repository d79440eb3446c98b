"""Who may put parts into a dataset: the one command that holds its folder, and nobody who once worked for another.

Workers write parts into a folder of their run, `.tmp-run-<token>`, beside the data. Only the command that made it moves
them to where they count, one rename a part, and it refuses a clip that has a row. So nothing depends on who is still
alive: a worker that outlives its command (behind a scheduler it does) writes into a folder that is no longer looked at,
and finds it gone as soon as another command has begun.

That command first takes in what dead runs left: their folders are renamed, which fences their workers off, and then
whole parts of clips without rows are adopted, all else is dropped.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from .clip_set import ClipSet
from .index import rows_by_folder
from .inputs import InputError
from .parquet import read_table
from .store import (
    TEMPORARY,
    list_parts,
    part_folders,
    part_metadata,
    part_path,
    shard_digest,
    source_folder,
    sync_folder,
    write_part_table,
)

log = logging.getLogger(__name__)

_RUNS = f"{TEMPORARY}run-"
_CLOSED = "-closed"


class Fenced(RuntimeError):
    """The run that a worker works for is over: another command writes to the dataset now."""


class ClipHasRow(RuntimeError):
    """A part may not be committed, because a clip of it has a row."""


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Make a folder and hold it for this process; ends with the process, however that ends.

    Raises:
        ValueError: another run holds the folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"{out}: cannot be made or opened ({error.strerror}); choose another --out"
        ) from None
    try:
        try:
            # On the folder itself: no lock file that somebody has to clean up.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another run is writing here; wait for it, or end it") from None
        except OSError as error:
            log.warning("%s: cannot be locked (%s); do not start two runs on it", out, error.strerror)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def own_run(out: str | Path) -> Iterator[Path]:
    """Folder into which this run's workers write; call while the dataset's folder is held. Gone afterwards."""
    folder = Path(out) / f"{_RUNS}{uuid.uuid4().hex[:16]}"
    folder.mkdir()
    ended = False
    try:
        yield folder
        ended = True
    finally:
        closed = _close(folder)
        # What an interrupted run has not committed is taken in by the next one.
        if closed is not None and (ended or not list_parts(closed)):
            shutil.rmtree(closed, ignore_errors=True)


def check_run(folder: Path) -> None:
    """Raise `Fenced` unless a run's folder is still there."""
    if not folder.is_dir():
        raise Fenced(f"{folder.parent}: this run is over, another command writes here")


def _close(folder: Path) -> Path | None:
    """Rename a run's folder, so that none of its workers finds it; None if it is gone."""
    if folder.name.endswith(_CLOSED):
        return folder
    closed = folder.with_name(folder.name + _CLOSED)
    try:
        folder.rename(closed)
    except FileNotFoundError:
        return None
    return closed


class Commits:
    """Moves parts to where they count; refuses clips that have rows.

    Args:
        out: dataset folder, held by this process.
        have: the clips that have rows; grows.
    """

    def __init__(self, out: str | Path, have: ClipSet | None = None) -> None:
        self._out, self._have = Path(out), ClipSet() if have is None else have
        self._touched: set[Path] = set()

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
        """Move a whole part from a run's folder into the data.

        The rename itself reaches the disk with `flush`: where power fails before, the part is in one of the two places,
        and the next command takes it in from either.

        Raises:
            ClipHasRow: nothing was moved.
            OSError: the part is not there, or cannot be moved.
        """
        ids = self.check(clip_ids)
        target = part_path(self._out, source=source_folder(part), shard_id=part.stem.removeprefix("part-"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ClipHasRow(f"{target}: is there already")
        part.rename(target)
        self._touched.add(target.parent)
        self._have.update(ids)
        return target

    def flush(self) -> None:
        """Flush the folders into which parts were moved; once for many, for it takes as long as writing one."""
        for folder in self._touched:
            sync_folder(folder)
        self._touched.clear()


def take_in_dead_runs(out: str | Path, *, recipe_hash: str) -> int:
    """Adopt what runs left that ended without committing it; call while the dataset's folder is held, before planning.

    Returns:
        How many clips were taken in.
    """
    out = Path(out)
    closed = [found for folder in sorted(out.glob(f"{_RUNS}*")) if (found := _close(folder)) is not None]
    parts = [part for folder in closed for part in list_parts(folder)]
    taken = 0
    if parts:
        commits = Commits(out, ClipSet(clips_with_rows(out)))
        refused: list[str] = []
        for part in parts:
            try:
                if part_metadata(part)[1] != recipe_hash:
                    continue
                ids = read_table(part, ["clip_id"])["clip_id"].to_pylist()
                commits.take(part, ids)
                taken += len(ids)
            except (InputError, ValueError, ClipHasRow) as error:  # cut, of another recipe, or done meanwhile
                refused.append(f"{part.name}: {error}")
        commits.flush()
        if refused:
            log.warning(
                "%s: %d parts left by runs that ended are not taken in, e.g. %s",
                out,
                len(refused),
                refused[0],
            )
    for folder in closed:
        shutil.rmtree(folder, ignore_errors=True)
    return taken


def clips_with_rows(out: str | Path) -> Iterator[str]:
    """Ids of all clips that have a row: from the index, where it is of the parts that are there."""
    for table in rows_by_folder(out, ["clip_id"]):
        yield from table["clip_id"].to_pylist()


def drop_rows(out: str | Path, unwanted: Callable[[pa.Table], Sequence[bool]]) -> list[str]:
    """Take rows out of a dataset, so that their clips count as not done; call while its folder is held.

    A part is replaced by one of its other rows. Those are written first, into the folder of a run of their own: killed
    at any moment, either the old part is there or the next command takes in the new one.

    Args:
        unwanted: of a table with `clip_id`, `verdict` and `reasons`, which rows go.
    Returns:
        Ids of the clips.
    """
    dropped: list[str] = []
    columns = ["clip_id", "verdict", "reasons"]
    with own_run(out) as incoming:
        for (_name, parts), table in zip(part_folders(out), rows_by_folder(out, columns), strict=True):
            if not any(unwanted(table)):
                continue
            for part in parts:
                goes = list(unwanted(read_table(part, columns)))
                if any(goes):
                    dropped += _drop_from(out, part, goes, incoming)
    return dropped


def _drop_from(out: str | Path, part: Path, goes: list[bool], incoming: Path) -> list[str]:
    """Replace a part by one without some of its rows; returns the ids of their clips."""
    table = read_table(part)
    dropped = table.filter(pa.array(goes))["clip_id"].to_pylist()
    rest = table.filter(pa.array([not x for x in goes]))
    if rest.num_rows:
        ids = rest["clip_id"].to_pylist()
        new = new_part(incoming, part, shard_number(part), ids)
        write_part_table(new, rest)
        part.unlink()
        sync_folder(part.parent)
        commits = Commits(out)
        commits.take(new, ids)
        commits.flush()
    else:
        part.unlink()
    return dropped


def shard_number(part: Path) -> str:
    """The number in a part's name."""
    return part.stem.removeprefix("part-").split("-")[0]


def new_part(incoming: Path, old: Path, number: str, clip_ids: Sequence[str]) -> Path:
    """Where a part lies in a run's folder that is made of others', beside `old` of the same source."""
    path = part_path(incoming, source=source_folder(old), shard_id=f"{number}-{shard_digest(clip_ids)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
