"""The commit log of a dataset in an object store: which objects are its parts, and whose turn it is to say so.

Entries are objects `log/<number>.json`, each put only if none of its number is there: of all who want to write the
next one, one succeeds. An entry adds parts, takes parts away, or both, in that one act. Whoever begins to write first
puts an entry that says so; a command that knew the log before that finds its next number taken, by this very entry, and
writes no more. So it needs no clock and no lock to be sure that two commands never add the same clip.

Now and then the sum of all entries is put beside them (`log/<number>.state.json.gz`), and entries before it are
removed, but for those that begin a turn: a number that somebody may still believe to be free never becomes free.
"""

from __future__ import annotations

import errno
import gzip
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .paths import StoreError, StorePath, as_path

LOG = "log"
_ENTRY = re.compile(r"(\d{8})\.json")
_STATE = re.compile(r"(\d{8})\.state\.json\.gz")
_SUMMED_EVERY = 64
"""Entries: about as many are read to know a dataset."""
_TRIES = 8
"""Of reading a log that is being written."""

Parts = dict[str, tuple[int, int]]
"""Size and time of commit in nanoseconds of parts, by their names relative to the dataset."""


class LostTurn(RuntimeError):
    """Another command has begun to write to the dataset."""


@dataclass(frozen=True, kw_only=True)
class LogState:
    """What the entries of a log sum up to.

    Attributes:
        number: of the last entry; 0: none.
        summed: number of the last entry that a stored sum contains.
        parts: the parts.
        turn: who began to write last; None: nobody has.
        ended: whether that command said that it had come to its end.
        begins: numbers of the entries that began a turn.
    """

    number: int = 0
    summed: int = 0
    parts: Parts = field(default_factory=dict, repr=False)
    turn: str | None = None
    ended: bool = True
    begins: tuple[int, ...] = ()

    def after(self, number: int, entry: Mapping[str, Any]) -> LogState:
        """The state after an entry; the parts are changed in place."""
        for name in entry.get("remove", ()):
            self.parts.pop(name, None)
        for name, size in entry.get("add", {}).items():
            self.parts[name] = (int(size), int(entry["at_ns"]))
        kind = entry.get("kind")
        begun = kind == "begin"
        return replace(
            self,
            number=number,
            turn=str(entry["turn"]) if begun else self.turn,
            ended=False if begun else kind == "end" or self.ended,
            begins=(*self.begins, number) if begun else self.begins,
        )


_KNOWN: dict[str, LogState] = {}
"""What this process has read of each dataset's log."""
_TURNS: dict[str, Turn] = {}
"""Turns of this process, by dataset: while it has one, nobody else adds to the log without ending it."""


def read_log(out: Path, *, anew: bool = False) -> LogState | None:
    """State of the log of a dataset in an object store; None if it has none.

    Args:
        anew: ask the store, even if it is this process that writes the log.
    Raises:
        StoreError: the store does not answer, or the log has a gap.
    """
    held = _TURNS.get(str(out))
    if held is not None and not anew:
        return held.state
    for _ in range(_TRIES):
        names = [name for name in _names(out)]
        entries = {int(found[1]) for name in names if (found := _ENTRY.fullmatch(name))}
        sums = {int(found[1]) for name in names if (found := _STATE.fullmatch(name))}
        if not entries and not sums:
            return None
        try:
            state = _read(out, entries, max(sums, default=0))
        except FileNotFoundError:  # summed up and removed meanwhile
            continue
        _KNOWN[str(out)] = state
        return state
    raise StoreError(
        errno.EIO, "the log of the dataset has a gap, or changes faster than it can be read", str(out)
    )


def _names(out: Path) -> list[str]:
    try:
        return [path.name for path in (out / LOG).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(out: Path, entries: set[int], summed: int) -> LogState:
    """Sum up, from what this process knows or from the last stored sum."""
    known = _KNOWN.get(str(out))
    last = max(entries | {summed})
    if known is not None and summed <= known.number <= last:
        state = replace(known, parts=dict(known.parts), summed=summed)
    elif summed:
        state = _parse_sum((out / LOG / f"{summed:08d}.state.json.gz").read_bytes())
    else:
        state = LogState()
    numbers = {f"{number:08d}.json": number for number in range(state.number + 1, last + 1)}
    folder = as_path(out / LOG)
    assert isinstance(folder, StorePath)
    contents = folder.read_many(list(numbers))
    for name, number in numbers.items():
        state = state.after(number, json.loads(contents[name]))
    return state


def entry_path(out: Path, number: int) -> Path:
    """Where an entry of the log lies."""
    return out / LOG / f"{number:08d}.json"


def _parse_sum(content: bytes) -> LogState:
    found = json.loads(gzip.decompress(content))
    parts = {name: (int(size), int(moment)) for name, (size, moment) in found["parts"].items()}
    return LogState(
        number=found["number"],
        summed=found["number"],
        parts=parts,
        turn=found["turn"],
        ended=found["ended"],
        begins=tuple(found["begins"]),
    )


class Turn:
    """The right to add to a log; lost as soon as another one is begun.

    Args:
        out: dataset in an object store.
        state: the log as it was read for this.
    """

    def __init__(self, out: StorePath, state: LogState) -> None:
        self.out, self.state = out, replace(state, parts=dict(state.parts))
        self.name = uuid.uuid4().hex[:16]

    def begin(self, parts: Parts) -> None:
        """Begin it, and count from now on.

        Args:
            parts: those of a dataset that has no log yet.
        Raises:
            LostTurn: somebody else began meanwhile.
        """
        self._append("begin", {name: size for name, (size, _at) in parts.items()}, ())
        _TURNS[str(self.out)] = self

    def commit(self, add: Mapping[str, int], remove: Iterable[str] = ()) -> None:
        """Add parts, given with their sizes, and take others away, in one act.

        Raises:
            LostTurn: another command has begun; nothing was changed.
            StoreError: the store does not take it; what it does with an attempt that it did not answer is nevertheless
                done once or never.
        """
        self._append("parts", add, list(remove))
        if self.state.number - self.state.summed >= _SUMMED_EVERY:
            with suppress(StoreError):  # the commit stands, and the next one sums up
                self._sum_up()

    def end(self) -> None:
        """Say that this command has come to its end."""
        self._append("end", {}, ())

    @staticmethod
    def of(out: Path) -> Turn:
        """The turn that this process has at a dataset.

        Raises:
            RuntimeError: it has none.
        """
        try:
            return _TURNS[str(out)]
        except KeyError:
            raise RuntimeError(f"{out}: is not held by this process") from None

    def forget(self) -> None:
        """Let readers of this process ask the store again."""
        if _TURNS.get(str(self.out)) is self:
            del _TURNS[str(self.out)]
        _KNOWN.pop(str(self.out), None)

    def _append(self, kind: str, add: Mapping[str, int], remove: Iterable[str]) -> None:
        entry = {
            "kind": kind,
            "turn": self.name,
            "at_ns": time.time_ns(),
            "add": dict(add),
            "remove": list(remove),
        }
        number = self.state.number + 1
        path = as_path(entry_path(self.out, number))
        assert isinstance(path, StorePath)
        if not path.create(json.dumps(entry).encode()):
            raise LostTurn("another command writes here now; this one ends")
        self.state = self.state.after(number, entry)

    def _sum_up(self) -> None:
        """Put the sum of all entries, and remove those that nobody needs any more."""
        state = self.state
        found = {
            "number": state.number,
            "turn": state.turn,
            "ended": state.ended,
            "begins": state.begins,
            "parts": state.parts,
        }
        folder = self.out / LOG
        content = gzip.compress(json.dumps(found).encode(), compresslevel=1, mtime=0)
        (folder / f"{state.number:08d}.state.json.gz").write_bytes(content)
        for number in range(max(state.summed, 1), state.number):
            if number not in state.begins:
                entry_path(self.out, number).unlink(missing_ok=True)
        if state.summed:
            (folder / f"{state.summed:08d}.state.json.gz").unlink(missing_ok=True)
        self.state = replace(state, summed=state.number)


def committed_parts(out: StorePath) -> Parts:
    """The parts of a dataset in an object store, sorted by name: those of its log, or, of one that was copied there
    without, what lies below `data/`."""
    state = read_log(out)
    if state is None:
        found = (out / "data").objects()
        return {f"data/{name}": stamp for name, stamp in found.items() if _is_part(name)}
    return dict(sorted(state.parts.items()))


def _is_part(name: str) -> bool:
    return re.fullmatch(r"[^/]+/(\d{6,}/)?part-[^/]*\.parquet", name) is not None
