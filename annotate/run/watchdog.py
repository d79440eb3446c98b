"""A process beside a run without workers, that ends it where nothing within can.

What holds Python's lock and does not give it back (a loop in a library of somebody else, a regular expression) stops
every thread of its process, those that would end it as well. The watchdog shares nothing with it but a pipe, by which
it is told of each clip: how long to wait, and the part to leave behind.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_SCRIPT = r"""
import json, os, select, signal, sys, time

parent, told = int(sys.argv[1]), open(0, "rb", buffering=0)


def stopped():
    # By a signal (T), by a debugger (t), or frozen with its group while this process is not.
    try:
        with open(f"/proc/{parent}/stat") as stat:
            if stat.read().rsplit(")", 1)[1].split()[0] in "Tt":
                return True
        with open(f"/proc/{parent}/wchan") as waits_in:
            return waits_in.read() in ("do_freezer_trap", "__refrigerator")
    except OSError:
        return False


def end(clip):
    os.kill(parent, signal.SIGKILL)
    sys.stderr.write(clip["say"])
    if not clip["path"]:
        return
    try:
        os.makedirs(os.path.dirname(clip["path"]), exist_ok=True)
        with open(clip["path"] + ".tmp", "xb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.rename(clip["path"] + ".tmp", clip["path"])
    except OSError as error:
        sys.stderr.write(f"{clip['path']}: {error.strerror}; the clip is not recorded\n")


clip, content, left, last = None, b"", 0.0, time.monotonic()
while os.getppid() == parent:
    ready = select.select([told], [], [], 5.0 if clip is None else min(left, 1.0))[0]
    now = time.monotonic()
    left -= 0.0 if stopped() else min(now - last, 2.0)
    last = now
    if ready:
        header = told.readline()
        if not header:
            break
        clip = json.loads(header)
        content = b""
        while clip is not None and len(content) < clip["bytes"] and (more := told.read(clip["bytes"] - len(content))):
            content += more
        left = 0.0 if clip is None else clip["after_s"]
    elif clip is not None and left <= 0:
        end(clip)
        break
"""


class Watchdog:
    """Made by `watching`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @contextmanager
    def expecting(
        self, after_s: float, *, part: Path | None, content: memoryview, say: str
    ) -> Iterator[None]:
        """End this process unless what is inside ends before; a process that is stopped has all the time.

        Args:
            part: file that is left behind then, whole; None: none. content: of it.
            say: on stderr.
        """
        path = "" if part is None else os.path.abspath(part)
        self._tell({"after_s": after_s, "path": path, "say": say, "bytes": len(content)}, content)
        try:
            yield
        finally:
            self._tell(None, b"")

    def _tell(self, clip: dict[str, object] | None, content: memoryview | bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # somebody ended it: then there is none
            self._process.stdin.write(json.dumps(clip).encode() + b"\n")
            self._process.stdin.write(content)
            self._process.stdin.flush()


@contextmanager
def watching() -> Iterator[Watchdog | None]:
    """A watchdog of this process; None where none can be started. It takes no signals of the terminal, and ends with
    this process."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        log.warning(
            "no process watches over this one (%s): a clip that stops it is ended by nothing", error.strerror
        )
        yield None
        return
    try:
        yield Watchdog(process)
    finally:
        with suppress(BrokenPipeError):
            process.communicate()
