"""What tests of several folders share: where recordings lie, and the command as a user starts it."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Recordings and clips that are not part of the repository; what needs them skips where they are not."""

COMMAND = (sys.executable, "-c", "from theodolite.recipes.cli import main; main()")
"""The command of the package under test, whatever else is installed."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def needs_packages(*names: str, extra: str) -> pytest.MarkDecorator:
    """Mark of a file that is skipped where packages are missing. It does not import them, which takes seconds: every
    process collects every file, and one runs it."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs theodolite[{extra}]: {', '.join(missing)}")


def environment_with(**changes: str) -> dict[str, str]:
    """This process's environment with one thread a process, so that the machine's size enters no row."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | changes


class ForkedCommand:
    """The command in a fork of this process: for signals to a single process, without the seconds in which another one
    imports what this one has imported. Not for what starts processes itself or keeps connections."""

    def __init__(self, *arguments: object, folder: Path) -> None:
        """Its output lies in files of the folder."""
        self.stdout, self.stderr = folder / "stdout.txt", folder / "stderr.txt"
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._run([str(a) for a in arguments])

    def _run(self, arguments: list[str]) -> None:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, path in ((1, self.stdout), (2, self.stderr)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            sys.argv = ["theodolite", *arguments]
            from theodolite.recipes.cli import main

            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 - nothing may return into the tests above
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """How it ended, as `subprocess.Popen.poll`."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def end(self, number: int, timeout_s: float = 120) -> Done:
        """Send a signal, and wait."""
        os.kill(self.pid, number)
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                pytest.fail(f"does not end after signal {number}: {self.stderr.read_text()}")
            time.sleep(0.01)
        return Done(code, self.stdout.read_text(), self.stderr.read_text())


def run_here(
    *arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Done:
    """The same command in this process; an exception that would be a traceback is raised."""
    from theodolite.recipes.cli import app
    from typer.testing import CliRunner

    logger = logging.getLogger("theodolite")
    handlers = list(logger.handlers)
    try:
        with chdir(cwd or Path.cwd()):
            done = CliRunner().invoke(app, [*map(str, arguments)], env=environment)
    finally:
        logger.handlers[:] = handlers  # the command's own writes to a stream that is closed by now
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)
