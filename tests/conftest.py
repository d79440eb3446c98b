"""What all tests share.

- Tests marked `gpu` need a CUDA device: skipped without one, failed instead where REQUIRE_GPU=1 promised one.
- Randomised tests and long lists of cases run a part of their repeats. `--thorough` runs the tests that have more of
  them, and only those: with all cases (fixture `thorough`), and the parameters marked `thorough`.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import signal
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import typer.testing

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    # Started in the background of a script, where Ctrl-C is ignored: processes of tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread a process: tests are small and share the cores; read when numpy, torch and OpenCV are first imported.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ.setdefault(variable, "1")

# What is compiled is kept, whatever the shell says: dozens of processes start here, and each would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# What is imported and collected stays to the end. Garbage is not looked for while it grows, nor in it later: that was
# more than a third of what a process paid before its first test.
gc.disable()


# Processes die here, no machines: nothing has to have reached the disk, and tests need not wait for it.
os.fsync = lambda descriptor: None


# Command lines are run here hundreds of times, and typer would make all commands from their functions each time.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="run the tests that repeat, with all of their repeats"
    )


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _repeats(item: pytest.Item) -> bool:
    return bool(item.get_closest_marker("thorough")) or "thorough" in getattr(item, "fixturenames", ())


def _about_s(item: pytest.Item) -> float:
    """About how long a test takes, waiting included: dear ones say so in their mark."""
    mark = item.get_closest_marker("slow")
    return 0.02 if mark is None else mark.kwargs.get("about_s", 0.7)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores, for tests that wait for others; those that are not slow do not, and a process takes
    seconds to import what it tests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if config.getoption("markexpr") == "not slow" else cores + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        left_out = {item for item in items if not _repeats(item)}
    else:
        left_out = {item for item in items if item.get_closest_marker("thorough")}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    # Files with much to do first: what is handed out last is short, and no process waits long for another.
    about_s: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        about_s[item.path] += _about_s(item)
    items.sort(key=lambda item: -about_s[item.path])
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting or _has_gpu():
        return
    promised = os.environ.get("REQUIRE_GPU") == "1"
    for item in wanting:
        if promised:
            item.add_marker(pytest.mark.usefixtures("fail_without_gpu"))
        else:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether all repeats are wanted."""
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture
def fail_without_gpu() -> None:
    pytest.fail("REQUIRE_GPU=1 but torch sees no CUDA device")
