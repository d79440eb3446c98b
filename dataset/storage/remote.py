"""A dataset in an object store: one command has the turn to add to its log, and parts lie at once where they stay.

Nothing can be renamed there. Workers put their parts below `data/`, under names that hold the run's token and that
nothing else ever has; they count once an entry of the log says so (see `log`). What lies there and is in no entry is
part of nothing, and is taken in or removed by the next command.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..store import RUNS, TEMPORARY
from .log import LogState, LostTurn, Turn, committed_parts, read_log
from .paths import StoreError, StorePath

log = logging.getLogger(__name__)

_ALIVE = f"{TEMPORARY}alive-"
_PROBE = f"{TEMPORARY}probe-"
_OPEN = "open"
_BEAT_EVERY_S = 4.0
_DEAD_AFTER_S = 30.0
"""Without a sign of life, a command on another machine is taken for dead. If it is not, it loses its turn: nothing is
lost or doubled by that."""
_TOGETHER, _LATEST_S = 64, 1.0
"""Parts that share an entry of the log if they come fast, and seconds that they are kept for others."""


class LogBackend:
    """A place in an object store whose clients put objects on the condition that there is none."""

    def __init__(self, out: StorePath) -> None:
        self._out = out
        self._pending: dict[str, int] = {}
        self._flushed = 0.0

    # ------------------------------------------------------------------ whose turn it is

    @contextmanager
    def hold(self) -> Iterator[None]:
        """By a turn of the log, and signs of life beside it."""
        out = self._out
        try:
            _check_conditions(out)
            turn = _claim(out)
        except FileNotFoundError as error:
            raise ValueError(
                f"{out}: there is no such bucket ({error}); make it, or name another one"
            ) from None
        except StoreError as error:
            raise ValueError(f"{out}: cannot be written to: {error.strerror}") from None
        stop = threading.Event()
        alive = threading.Thread(target=_live, args=(out, turn.name, stop), daemon=True)
        alive.start()
        try:
            yield
        finally:
            stop.set()
            alive.join()
            turn.forget()
            with suppress(StoreError, LostTurn):
                turn.end()
                (out / f"{_ALIVE}{turn.name}").unlink(missing_ok=True)

    # ------------------------------------------------------------------ runs

    def begin_run(self) -> Path:
        folder = self._out / f"{RUNS}{uuid.uuid4().hex[:16]}"
        (folder / _OPEN).write_bytes(b"")
        return folder

    def end_run(self, folder: Path, *, ended: bool) -> None:
        """Parts of an interrupted run stay where they are."""
        if ended:
            self.flush()
        with suppress(StoreError):
            self._drop_folder(folder)

    def run_is_open(self, folder: Path) -> bool:
        return (folder / _OPEN).is_file()

    def _drop_folder(self, folder: Path) -> None:
        assert isinstance(folder, StorePath)
        for name in sorted(folder.objects(), reverse=True):  # `open` goes before notes of late clips do
            (folder / name).unlink(missing_ok=True)

    def dead_parts(self) -> list[Path]:
        Turn.of(self._out)  # what others write may not be taken from them
        for folder in list(self._out.glob(f"{RUNS}*")):
            self._drop_folder(folder)
        counted = committed_parts(self._out)
        found = (f"data/{name}" for name in (self._out / "data").objects())
        return [self._out / name for name in found if name not in counted]

    def drop_dead(self, left: Sequence[Path]) -> None:
        for part in left:
            part.unlink(missing_ok=True)
        ours = f"{_ALIVE}{Turn.of(self._out).name}"
        for path in list(self._out.iterdir()):
            if path.name.startswith((_ALIVE, _PROBE)) and path.name != ours:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ commits

    def commit(self, part: Path) -> Path:
        """One entry of the log. Parts that come faster than the log takes them share one."""
        self._pending[part.relative_to(self._out).as_posix()] = part.stat().st_size
        if len(self._pending) >= _TOGETHER or time.monotonic() - self._flushed > _LATEST_S:
            self.flush()
        return part

    def replace(self, replacements: Sequence[tuple[Path, Sequence[Path]]]) -> None:
        """One entry of the log."""
        self.flush()
        add = {new.relative_to(self._out).as_posix(): new.stat().st_size for new, _old in replacements}
        self._commit(add, [part for _new, old in replacements for part in old])

    def remove(self, part: Path) -> None:
        self.flush()
        self._commit({}, [part])

    def flush(self) -> None:
        if self._pending:
            self._commit(self._pending, ())
            self._pending = {}
        self._flushed = time.monotonic()

    def _commit(self, add: dict[str, int], remove: Sequence[Path]) -> None:
        try:
            Turn.of(self._out).commit(add, [part.relative_to(self._out).as_posix() for part in remove])
        except LostTurn as error:
            raise StoreError(errno.ESTALE, str(error), str(self._out)) from None
        for part in remove:  # if it is killed here, the next command finds them in no entry
            part.unlink(missing_ok=True)


# ---------------------------------------------------------------------- beginning a turn


def _check_conditions(out: StorePath) -> None:
    """Make sure that the store refuses to put an object where one is.

    Raises:
        ValueError: it does not.
        StoreError: it cannot be written to.
    """
    probe = out / f"{_PROBE}{uuid.uuid4().hex[:16]}"
    try:
        if not probe.create(b"1") or probe.create(b"2"):
            raise ValueError(
                f"{out}: this store, or its client, puts an object although one is there (If-None-Match: * has no"
                " effect): two runs could not be kept from doubling clips. Write to a folder, and copy that"
            )
    finally:
        with suppress(StoreError, FileNotFoundError):
            probe.unlink(missing_ok=True)


def _claim(out: StorePath) -> Turn:
    """Begin a turn, once whoever has it shows no sign of life.

    Raises:
        ValueError: somebody is alive.
    """
    state = read_log(out, anew=True)
    parts = committed_parts(out) if state is None else {}
    while True:
        if state is not None and state.turn is not None and not state.ended:
            _wait_for_silence(out, state.turn)
        turn = Turn(out, state or LogState())
        # Before the turn itself, for those who look who has it.
        _say_alive(out, turn.name, 0)
        try:
            turn.begin(parts)
            return turn
        except LostTurn:
            (out / f"{_ALIVE}{turn.name}").unlink(missing_ok=True)
            state = read_log(out, anew=True)
            parts = {}


def _wait_for_silence(out: StorePath, turn: str) -> None:
    """Return once a turn's command is known, or must be thought, to have died.

    Raises:
        ValueError: it is alive.
    """
    path = out / f"{_ALIVE}{turn}"
    first = _sign_of_life(path)
    if first is None:
        return
    where = f"process {first.get('process')} on {first.get('host')}"
    refused = ValueError(f"{out}: another run is writing here ({where}); wait for it, or end it")
    if first.get("machine") == _machine():
        if _process_began(int(first["process"])) == first.get("began"):
            raise refused
        return
    log.warning(
        "%s: a run (%s) has not said that it ended; waiting up to %d s for a sign of life",
        out,
        where,
        _DEAD_AFTER_S,
    )
    until = time.monotonic() + _DEAD_AFTER_S
    while time.monotonic() < until:
        time.sleep(1.0)
        if _sign_of_life(path) != first:
            if (state := read_log(out, anew=True)) is not None and (state.turn != turn or not state.ended):
                raise refused
            return


def _sign_of_life(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _live(out: StorePath, turn: str, stop: threading.Event) -> None:
    """Give signs of life until told to stop; a store that does not take one has no influence on the run."""
    beat = 0
    while not stop.wait(_BEAT_EVERY_S):
        beat += 1
        with suppress(OSError):
            _say_alive(out, turn, beat)


def _say_alive(out: StorePath, turn: str, beat: int) -> None:
    process = os.getpid()
    sign = {
        "host": platform.node(),
        "machine": _machine(),
        "process": process,
        "began": _process_began(process),
        "beat": beat,
    }
    (out / f"{_ALIVE}{turn}").write_bytes(json.dumps(sign).encode())


def _machine() -> str:
    """What processes that see each other's numbers have in common."""
    marks = [platform.node()]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        marks.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return " ".join(marks)


def _process_began(process: int) -> str | None:
    """When a process of this machine began, as a text to compare; None if it is no more. Where the system does not say
    when, it is `there`."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[-1].split()
    except OSError:
        return "there"
    return None if fields[0] in "ZX" else fields[19]
