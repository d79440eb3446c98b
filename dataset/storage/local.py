"""A dataset in a folder: held by a lock on it, committed to by renaming parts."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..store import RUNS, data_folder, list_parts, part_path, source_folder, sync_folder

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

    def begin_run(self) -> Path:
        folder = self._out / f"{RUNS}{uuid.uuid4().hex[:16]}"
        try:
            folder.mkdir()
        except OSError as error:
            raise ValueError(
                f"{self._out}: cannot be written to ({error.strerror}); choose another --out"
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

    def commit(self, part: Path, instead_of: Sequence[Path] = ()) -> Path:
        """One rename. It reaches the disk with `flush`: where power fails before, the part is in one of the two places,
        and the next command takes it in from either.

        Parts that it replaces go first. One alone is removed: its rows are in the new part. Several are moved into the
        run's folder, and removed from there once the new part counts.
        """
        target = part_path(self._out, source=source_folder(part), shard_id=part.stem.removeprefix("part-"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise FileExistsError(f"{target}: is there already")
        retired = self._retire(instead_of, part)
        part.rename(target)
        self._touched.add(target.parent)
        if instead_of:
            self.flush()
        for old in retired:
            old.unlink()
        return target

    def _retire(self, parts: Sequence[Path], new: Path) -> list[Path]:
        """Take parts out of the data; returns where those lie that are kept for the time being."""
        if len(parts) == 1:
            self.remove(parts[0])
            sync_folder(parts[0].parent)
            return []
        incoming = next(folder for folder in new.parents if folder.name.startswith(RUNS))
        retired: list[Path] = []
        for part in parts:
            target = data_folder(incoming) / part.relative_to(data_folder(self._out))
            target.parent.mkdir(parents=True, exist_ok=True)
            retired.append(part.rename(target))
        for folder in {part.parent for part in retired}:
            sync_folder(folder)
        return retired

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
