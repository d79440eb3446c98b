"""Output that is there whole or not at all: written into a hidden folder beside its place, then renamed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .storage.paths import StorePath, as_path
from .store import TEMPORARY


@contextmanager
def staged(out: str | Path, *, merge: bool = False) -> Iterator[Path]:
    """Folder to write into, which becomes `out` when the block ends; an exception in it leaves `out` as it was.

    A folder that exists stays the one that it is (somebody may stand in it): what was written is moved in entry by
    entry. A process that is killed leaves a hidden folder `.tmp-<name>-...` beside `out`; the next call on that
    machine for the same `out` removes it once its process is gone.

    Args:
        out: absent, or an empty folder.
        merge: `out` may hold other things. What was written takes the place of its namesakes.
    Raises:
        ValueError: `out` is a file, or (without `merge`) holds something.
    """
    if isinstance(as_path(out), StorePath):
        raise ValueError(
            f"{as_path(out)}: what is written here is a folder; copy it to an object store afterwards"
        )
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; give a folder")
    occupied = out.is_dir() and any(not p.name.startswith(TEMPORARY) for p in out.iterdir())
    if occupied and not merge:
        raise ValueError(f"{out}: is not empty; write into a new folder, or remove what is there")
    made = [p for p in out.parents if not p.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, on the same file system; within it where that is a mount or only it may be written to.
    inside = out.is_dir() and (os.path.ismount(out) or not os.access(out.parent, os.W_OK))
    place = out if inside else out.parent
    prefix = f"{TEMPORARY}{out.name}-{_machine()}-"
    _clean(place, prefix)
    temporary = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=place))
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's are for their owner alone
        yield temporary
        if out.is_dir():
            _move_in(temporary, out)
        else:
            temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _machine() -> str:
    """Name of this machine, as part of a file name: process numbers are its own."""
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())


def _move_in(temporary: Path, out: Path) -> None:
    for new in sorted(temporary.iterdir()):
        target = out / new.name
        if target.is_dir() and not target.is_symlink():
            old = temporary / f"{TEMPORARY}old-{new.name}"
            target.rename(old)
        new.replace(target)


def _clean(place: Path, prefix: str) -> None:
    """Remove what killed processes of this machine left behind."""
    for stale in place.glob(f"{prefix}*"):
        number = stale.name.removeprefix(prefix).split("-")[0]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OSError):
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
