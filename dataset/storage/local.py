"""A dataset in a folder: held by a lock on it, committed to by renaming parts."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..names import below
from ..store import (
    RUNS,
    clean_temporaries,
    list_parts,
    part_path,
    source_folder,
    sync_folder,
    write_atomically,
)
from .listing import NOTE, Replacing, read_note

log = logging.getLogger(__name__)

_CLOSED = "-closed"


class FolderBackend:
    """A folder of a file system that all workers see.

    Workers write into `.tmp-run-<token>` beside the data. Renaming that folder fences off whoever still works there.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._touched: set[Path] = set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """By a lock that the system takes back with the process."""
        out = self._out
        try:
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(out, os.O_RDONLY)
        except OSError as error:
            raise ValueError(
                f"{out}: cannot be made or opened ({error.strerror}); free it, or name another folder"
            ) from None
        try:
            try:
                # On the folder itself: no lock file that somebody has to clean up.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{out}: another run is writing here; wait for it, or end it") from None
            except OSError as error:
                log.warning("%s: cannot be locked (%s); do not start two runs on it", out, error.strerror)
            self._end_replacing()
            yield
        finally:
            os.close(descriptor)

    def begin_run(self) -> Path:
        folder = self._out / f"{RUNS}{uuid.uuid4().hex[:16]}"
        try:
            folder.mkdir()
        except OSError as error:
            raise ValueError(
                f"{self._out}: cannot be written to ({error.strerror}); free it, or name another folder"
            ) from None
        return folder

    def end_run(self, folder: Path, *, ended: bool) -> None:
        closed = _close(folder)
        if closed is not None and (ended or not list_parts(closed)):
            shutil.rmtree(closed, ignore_errors=True)

    def run_is_open(self, folder: Path) -> bool:
        return folder.is_dir()

    def _dead_folders(self) -> list[Path]:
        return sorted(self._out.glob(f"{RUNS}*"))

    def dead_parts(self) -> list[Path]:
        closed = [found for folder in self._dead_folders() if (found := _close(folder)) is not None]
        return [part for folder in closed for part in list_parts(folder)]

    def drop_dead(self, left: Sequence[Path]) -> None:
        for folder in self._dead_folders():
            shutil.rmtree(folder, ignore_errors=True)
        clean_temporaries(self._out)

    def commit(self, part: Path) -> Path:
        """One rename. It reaches the disk with `flush`: where power fails before, the part is in one of the two places,
        and the next command takes it in from either."""
        target = self._target(part)
        part.rename(target)
        self._touched.add(target.parent)
        return target

    def _target(self, part: Path) -> Path:
        """Where a part of a run comes to lie."""
        target = part_path(self._out, source=source_folder(part), shard_id=part.stem.removeprefix("part-"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise FileExistsError(f"{target}: is there already")
        return target

    def replace(self, replacements: Sequence[tuple[Path, Sequence[Path]]]) -> None:
        """With a note that says so (see `listing`), which reaches the disk before anything is moved, as all that is
        moved does before the old parts go."""
        targets = [self._target(new) for new, _old in replacements]
        old = {
            self._name(target): [self._name(part) for part in parts]
            for target, (_new, parts) in zip(targets, replacements, strict=True)
        }
        self._write_note(old, done=False)
        for (new, _old), target in zip(replacements, targets, strict=True):
            new.rename(target)
            self._touched.add(target.parent)
        self.flush()
        self._write_note(old, done=True)
        self._remove_replaced(Replacing(old, done=True))

    def _name(self, part: Path) -> str:
        return part.relative_to(self._out).as_posix()

    def _write_note(self, old: Mapping[str, Sequence[str]], *, done: bool) -> None:
        content = json.dumps({"done": done, "replaced": old}, indent=1) + "\n"
        write_atomically(self._out / NOTE, content.encode())

    def _remove_replaced(self, note: Replacing) -> None:
        """Remove the old parts that new ones stand for, and then the note."""
        there = {name for name in note.old if below(self._out, name).is_file()}
        parts = [below(self._out, name) for name in sorted(note.hidden(there))]
        for part in parts:
            part.unlink(missing_ok=True)
        for folder in {part.parent for part in parts}:
            sync_folder(folder)
        (self._out / NOTE).unlink()
        sync_folder(self._out)

    def _end_replacing(self) -> None:
        """End what a command was killed in."""
        if not (self._out / NOTE).is_file():
            return
        note = read_note(self._out)
        try:
            self._remove_replaced(note)
        except OSError as error:
            raise ValueError(f"{self._out}: cannot be written to ({error.strerror})") from None

    def remove(self, part: Path) -> None:
        part.unlink()

    def flush(self) -> None:
        """Once for many parts, for it takes as long as writing one."""
        for folder in self._touched:
            sync_folder(folder)
        self._touched.clear()


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
