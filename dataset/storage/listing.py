"""Which files of a folder are the parts of a dataset, also while, and after, a command replaces some of them by others.

A file system renames one file in one act, and no more. A command that puts one part in place of several says so first,
in `replacing.json` beside the data: which new part stands for which old ones. As soon as the new one is there, the old
ones count no more, and are removed. So whoever lists the parts sees each clip once, whatever moment it is, and wherever
the command was killed; the next one that holds the folder ends what it had begun (`storage.local`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..inputs import InputError, parse_json, read_bytes
from ..limits import MIB
from ..names import is_name

NOTE = "replacing.json"
THOUSANDS = re.compile(r"[0-9]{6,}")
"""Names of folders of a thousand parts."""
_MOST = 256 * MIB
_PATIENCE_S = 60.0
"""For how long a listing is tried again while parts are being replaced: a command replaces some dozens of them in a
fraction of a second, and then gathers the next ones."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.01, 0.5

Stamp = tuple[str, int, int]
"""Name of a part below the dataset, its size, and its time of change in nanoseconds (in an object store that of its
commit): what tells it from another one of its name without reading it. Two changes within `CLOCK_TICK_NS` may leave the
same."""
CLOCK_TICK_NS = 20_000_000
"""Twice the longest step by which the clock goes on that file systems take a time of change from."""


def may_change_unseen(changed_ns: int) -> bool:
    """Whether a file with this time of change may be changed again and bear the same one."""
    return time.time_ns() - changed_ns <= CLOCK_TICK_NS


@dataclass(frozen=True)
class Replacing:
    """What a command is replacing.

    Attributes:
        old: names of the old parts below the dataset, by that of the new one.
        done: whether all new parts are there.
    """

    old: Mapping[str, Sequence[str]] = field(default_factory=dict)
    done: bool = False

    def hidden(self, names: set[str]) -> set[str]:
        """Those of the old parts that count no more, where parts of these names are there."""
        return {old for new, replaced in self.old.items() if new in names for old in replaced}


def read_note(out: Path) -> Replacing:
    """What is being replaced in a dataset folder, or was, when a command was killed.

    Raises:
        InputError: the note is damaged.
    """
    return _parse_note(_content(out), out / NOTE)


def _content(out: Path) -> bytes | None:
    path = out / NOTE
    try:
        return read_bytes(path, most=_MOST) if path.is_file() else None
    except InputError:
        if path.exists():
            raise
        return None  # removed at this moment


def _parse_note(content: bytes | None, path: Path) -> Replacing:
    if content is None:
        return Replacing()
    found = parse_json(content, path)
    try:
        old = {str(new): tuple(map(str, names)) for new, names in found["replaced"].items()}
        note = Replacing(old, found["done"] is True)
    except (TypeError, KeyError, AttributeError):
        note = Replacing({"": ()})
    replaced = [name for names in note.old.values() for name in names]
    for name in (*note.old, *replaced):
        if not _is_part(name):
            raise InputError(
                f"{path}: says which parts a command was replacing, and holds {name[:80]!r} where the name of a part"
                " should be; without it, `theodolite validate` tells which clips stand twice"
            )
    if both := note.old.keys() & set(replaced):
        raise InputError(
            f"{path}: says that {min(both)[:200]} takes the place of others and that another takes its place, which "
            "would remove it; without the file, `theodolite validate` tells which clips stand twice"
        )
    return note


def _is_part(name: str) -> bool:
    found = re.fullmatch(rf"data/([^/]+)/({THOUSANDS.pattern}/)?part-[^/]*\.parquet", name)
    return found is not None and is_name(found[1].removeprefix("source="))


def list_folders(out: Path, *, stamped: bool) -> list[tuple[str, list[Stamp]]]:
    """The parts of a dataset folder, by folders of parts in the order of the dataset; empty ones are left out.

    Args:
        stamped: with size and time of change; else these are 0.
    Returns:
        Name of each folder (`source`, or `source.thousands`), and its parts, sorted.
    Raises:
        InputError: a damaged note of parts that are being replaced.
        OSError: a folder cannot be read, or parts are replaced faster than they can be listed.
    """
    pause_s, end = _FIRST_PAUSE_S, time.monotonic() + _PATIENCE_S
    while True:
        before = _state(out)
        with suppress(FileNotFoundError):  # a folder that has been emptied
            found = _list(out, stamped)
            if _state(out) == before:
                return _without_replaced(found, _parse_note(before[0], out / NOTE))
        if time.monotonic() >= end:
            raise OSError(
                f"{out}: for {_PATIENCE_S:g} s parts were replaced there faster than they could be listed; try again"
                " when the command that replaces them (theodolite compact, say) has ended"
            )
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _MOST_PAUSE_S)


def _state(out: Path) -> tuple[bytes | None, int]:
    """What changes whenever a command begins or ends to replace parts: its note, and the time of change of the folder
    that this lies in."""
    try:
        return _content(out), out.stat().st_mtime_ns
    except FileNotFoundError:
        return None, 0


def _without_replaced(found: list[tuple[str, list[Stamp]]], note: Replacing) -> list[tuple[str, list[Stamp]]]:
    if not note.old:
        return found
    hidden = note.hidden({name for _folder, stamps in found for name, _size, _changed in stamps})
    left = [(folder, [stamp for stamp in stamps if stamp[0] not in hidden]) for folder, stamps in found]
    return [(folder, stamps) for folder, stamps in left if stamps]


def _list(out: Path, stamped: bool) -> list[tuple[str, list[Stamp]]]:
    found: list[tuple[str, list[Stamp]]] = []
    for source in sorted_folders(out / "data"):
        stamps, below = _scan(source, f"data/{source.name}", stamped)
        if stamps:
            found.append((source.name, stamps))
        for name in below:
            if THOUSANDS.fullmatch(name):
                stamps, _ = _scan(source / name, f"data/{source.name}/{name}", stamped)
                if stamps:
                    found.append((f"{source.name}.{name}", stamps))
    return found


def _scan(folder: Path, name: str, stamped: bool) -> tuple[list[Stamp], list[str]]:
    """Parts of a folder, and names of the folders in it; both sorted."""
    names = sorted(os.listdir(folder))
    parts = [n for n in names if n.startswith("part-") and n.endswith(".parquet")]
    others = set(names).difference(parts) if len(parts) < len(names) else ()
    below = sorted(n for n in others if os.path.isdir(folder / n))
    if not stamped:
        return [(f"{name}/{part}", 0, 0) for part in parts], below
    stamps: list[Stamp] = []
    with _looking_into(folder) as look:
        for part in parts:  # of which there may be millions: `suppress` would take a fifth of the time
            try:
                status = look(part)
                stamps.append((f"{name}/{part}", status.st_size, status.st_mtime_ns))
            except OSError as error:
                if (stamp := stamp_without_file(f"{name}/{part}", folder / part, error)) is not None:
                    stamps.append(stamp)
    return stamps, below


def stamp_without_file(name: str, part: Path, error: OSError) -> Stamp | None:
    """What stands for a part that cannot be looked at: of a link that leads nowhere a stamp, for who reads it says so;
    None where it was removed at this moment.

    Raises:
        OSError: anything else, which names the part.
    """
    if os.path.islink(part):
        return name, 0, 0
    if isinstance(error, FileNotFoundError):
        return None
    raise OSError(error.errno, error.strerror, str(part)) from None


@contextmanager
def _looking_into(folder: Path) -> Iterator[Callable[[str], os.stat_result]]:
    """Gives what looks at a file of a folder by its name, without walking along the folder's path for each."""
    if os.stat not in os.supports_dir_fd:
        yield lambda name: os.stat(folder / name)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield partial(os.stat, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def any_part(out: Path) -> bool:
    """Whether there is any part; old ones that count no more would say so as well as the new ones."""
    folders: list[Path] = []
    for source in sorted_folders(out / "data"):
        with suppress(FileNotFoundError):
            stamps, below = _scan(source, "", stamped=False)
            if stamps:
                return True
            folders += [source / name for name in below if THOUSANDS.fullmatch(name)]
    for folder in folders:
        with suppress(FileNotFoundError):  # of this one alone
            if _scan(folder, "", stamped=False)[0]:
                return True
    return False


def list_folder(out: Path, name: str) -> list[Stamp]:
    """As `list_folders`, of the folder of parts that has this name there; none if it is no more. For the command that
    holds the dataset, while it replaces nothing."""
    place = f"data/{name.replace('.', '/')}"
    return _scan(out / place, place, stamped=True)[0] if (out / place).is_dir() else []


def sorted_folders(path: Path) -> list[Path]:
    """Folders in a folder, which need not be there."""
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also through a link, which may lead nowhere or in a circle."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
