"""Commands of the road: `theodolite WORDS` in processes of their own or in this one, with their output and times."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

COMMAND = (sys.executable, "-c", "from theodolite.recipes.cli import main; main()")


def visible_gpus() -> list[str]:
    """GPUs as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


class Commands:
    """What was run, and what runs.

    Args:
        logs: folder of what they write: NAME.log as it comes, NAME.out what they answer.
        here: run them in this process, which spares its imports: most of the time of a tiny one.
        devices: GPUs, one for each command, the one with the fewest that run; of none or one no command is told.
    Attributes:
        times: (name, seconds) of those that ended.
    """

    def __init__(self, logs: Path, *, here: bool, devices: Sequence[str] = ()) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs, self.here = logs, here
        self._on = dict.fromkeys(devices, 0)
        self.times: list[tuple[str, float]] = []
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, name: str, words: tuple[object, ...], seconds: float | None = None) -> str:
        """What `theodolite WORDS` answers.

        Args:
            seconds: it is asked to end after so many, as a batch system does, and what it has done by then stays; null:
                it may take as long as it takes.
        Raises:
            RuntimeError: it ended with another code than 0; with the last lines that it wrote.
        """
        start, typed = time.perf_counter(), [str(word) for word in words]
        log = self.logs / f"{name}.log"
        code, answer = (
            self._within(typed, log)
            if self.here
            else self._beside(typed, log, self.logs / f"{name}.out", seconds)
        )
        self.times.append((name, time.perf_counter() - start))
        if code:
            told = [*log.read_text("utf-8").splitlines(), *answer.splitlines()]
            raise RuntimeError(f"{name}: exit {code}\n" + "\n".join(told[-25:]))
        return answer

    def _within(self, typed: list[str], log: Path) -> tuple[int, str]:
        from theodolite.recipes.cli import app
        from typer.testing import CliRunner

        done = CliRunner().invoke(app, typed)
        log.write_text(
            "\n".join(["theodolite " + " ".join(typed), done.stderr, done.stdout]), encoding="utf-8"
        )
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout

    def _beside(self, typed: list[str], log: Path, answer: Path, seconds: float | None) -> tuple[int, str]:
        with log.open("w", encoding="utf-8") as told, answer.open("w", encoding="utf-8") as said:
            told.write("theodolite " + " ".join(typed) + "\n")
            told.flush()
            with (
                self._device() as environment,
                subprocess.Popen(
                    [*COMMAND, *typed], stdout=said, stderr=told, text=True, env=environment
                ) as process,
            ):
                with self._lock:
                    self._running.add(process)
                try:
                    code = process.wait(timeout=seconds)
                except subprocess.TimeoutExpired:
                    process.terminate()
                    process.wait()
                    code = 0
                finally:
                    with self._lock:
                        self._running.discard(process)
        return code, answer.read_text("utf-8")

    @contextmanager
    def _device(self) -> Iterator[dict[str, str] | None]:
        """The environment of a command, with its GPU where there are several."""
        if len(self._on) < 2:
            yield None
            return
        with self._lock:
            device = min(self._on, key=self._on.__getitem__)
            self._on[device] += 1
        try:
            yield os.environ | {"CUDA_VISIBLE_DEVICES": device}
        finally:
            with self._lock:
                self._on[device] -= 1

    def end(self) -> None:
        """Ask all that run to end."""
        with self._lock:
            for process in self._running:
                process.terminate()
