"""What tests of several folders share: where recordings lie, and the command as a user starts it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
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


def run_command(*arguments: object, cwd: Path | None = None, **environment: str) -> Done:
    """The command in a process of its own, which costs seconds: for signals, workers, and what is read at its start."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment_with(**environment),
        cwd=cwd,
        timeout=300,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


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
