"""A run without workers is ended where nothing within it can do so, and time in which it was stopped does not count."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.tally import read_outcomes
from theodolite.annotate.run.watchdog import watching
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.store import list_parts
from theodolite.dataset.validate import validate_dataset

from ...support import environment_with

SCRIPT = """
import ctypes, sys, time
from pathlib import Path
from theodolite.annotate.config import AnnotateConfig, ExecutorConfig
from theodolite.annotate.run import worker
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.storage.paths import as_path

out, what, limit_s = as_path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
worker._GRACE_S = 0.2

def annotate(clip, config, *, mode, recipe_hash):
    if clip.clip_id == "c1":
        print("begun", flush=True)
        if what == "hold":
            ctypes.PyDLL(None).sleep(600)  # with Python's lock
        end = time.monotonic() + 1.0
        while time.monotonic() < end:  # a second of its own, as often as it is stopped
            time.sleep(0.01)
    return failure_row(clip, Job(out=out, config=config, mode=mode, recipe_hash=recipe_hash), "too_short", "7 frames")

def clips():
    for name in ("c0", "c1", "c2"):
        yield ClipRef(clip_id=name, source="s", original_id=name, media_kind="video", media_path=Path(name))

config = AnnotateConfig(executor=ExecutorConfig(clip_timeout_s=limit_s))
with open_output(out, recipe_hash="h"):
    job = Job(out=out, config=config, mode="given_depth", recipe_hash="h", annotate=annotate)
    print(run_plan(plan_run(clips, out, clips_per_shard=3), job, workers=0, show_progress=False), flush=True)
"""


def begun(out: Path | str, what: str, limit_s: float) -> subprocess.Popen[str]:
    """A run that is in its second clip."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), what, str(limit_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def source():
    for name in ("c0", "c1", "c2"):
        yield ClipRef(clip_id=name, source="s", original_id=name, media_kind="video", media_path=Path(name))


@pytest.mark.slow
def test_a_clip_that_holds_pythons_lock_ends_the_command_and_gets_its_row(tmp_path: Path) -> None:
    process = begun(tmp_path, "hold", 0.3)
    start = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode == -signal.SIGKILL
    assert "clip c1 was not done after 0.3 s and could not be interrupted" in said
    assert "the same command goes on with the others" in said

    def annotate(clip, config, *, mode, recipe_hash):
        assert clip.clip_id == "c2", "the others are done"
        job = Job(out=tmp_path, config=config, mode=mode, recipe_hash=recipe_hash)
        return failure_row(clip, job, "too_short", "7 frames")

    with open_output(tmp_path, recipe_hash="h"):
        job = Job(
            out=tmp_path, config=AnnotateConfig(), mode="given_depth", recipe_hash="h", annotate=annotate
        )
        run_plan(plan_run(source, tmp_path, clips_per_shard=3), job, workers=0, show_progress=False)
    found = {outcome.clip_id: outcome.reasons for outcome in read_outcomes(tmp_path)}
    assert found == {"c0": ("too_short",), "c1": ("timed_out",), "c2": ("too_short",)}
    assert validate_dataset(tmp_path) == (3, [])
    assert len(list_parts(tmp_path)) == 2


@pytest.mark.slow
def test_in_an_object_store_such_a_clip_ends_the_command_too() -> None:
    process = begun("memory://watched/run", "hold", 0.3)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert "clip c1 holds Python's lock and could not be interrupted, so this command ends" in said


@contextmanager
def stopped_by_a_signal(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    yield
    os.kill(process, signal.SIGCONT)


@contextmanager
def stopped_by_a_debugger(process: int) -> Iterator[None]:
    """All threads of it, as gdb and py-spy do."""
    seize, interrupt, detach, any_thread = 0x4206, 0x4207, 17, 0x40000000
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    threads = [int(name) for name in os.listdir(f"/proc/{process}/task")]
    for thread in threads:
        if trace(seize, thread, None, None):
            pytest.skip(f"nothing may be traced here ({os.strerror(ctypes.get_errno())})")
        trace(interrupt, thread, None, None)
        os.waitpid(thread, any_thread)
    yield
    for thread in threads:
        trace(detach, thread, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [stopped_by_a_signal, stopped_by_a_debugger])
def test_time_in_which_a_run_was_stopped_is_not_that_of_its_clip(tmp_path: Path, stopped) -> None:
    """Ctrl-Z over lunch: neither its own clock nor the watchdog ends the clip."""
    process = begun(tmp_path, "wait", 2.5)
    with stopped(process.pid):
        time.sleep(4.0)
    told, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "3 rejected (too_short 3), 0 failed" in told


def test_a_watchdog_lets_be_what_ends_in_time_and_ends_with_its_process(tmp_path: Path) -> None:
    with watching() as watchdog:
        assert watchdog is not None
        for number in range(3):
            content = memoryview(bytes(200_000))  # more than a pipe holds
            with watchdog.expecting(5.0, part=tmp_path / f"{number}", content=content, say="late"):
                pass
        process = watchdog._process
        assert process.poll() is None
    assert process.poll() == 0
    assert not list(tmp_path.iterdir())
