"""SIGUSR1 as batch systems send it, to every process of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from theodolite.train.state import checkpoints

from .encoded_clips import write_encoded

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal here")


def started(folder: Path, *keys: str) -> subprocess.Popen[str]:
    """`theodolite train` of many steps, processes that read clips beside it, as a group of its own."""
    data = write_encoded(folder / "data", 6)
    sets = (
        "data.workers=2",
        "steps=100000",
        "log.every=1",
        "validation.every=0",
        "model.depth=2",
        "model.text_tokens=10",
        *keys,
    )
    words = ("--data", data, "--out", folder / "run", "--accelerator", "cpu")
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "theodolite", "train", "stage2_smoke", *map(str, words)),
            *(word for key in sets for word in ("--set", key)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    metrics, end = folder / "run" / "metrics.csv", time.monotonic() + 90
    while not (metrics.is_file() and metrics.read_text().count("\n") > step):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow(about_s=25)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_signal_to_every_process_ends_the_run_with_a_checkpoint_and_without_errors(
    ranks: int, tmp_path: Path
) -> None:
    process = started(tmp_path, f"parallel.devices={ranks}")
    try:
        wait_for_step(tmp_path, process, 2)
        os.killpg(process.pid, signal.SIGUSR1)
        told, errors = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, errors
    assert "stopped by SIGUSR1 after step" in told + errors
    assert not [line for line in errors.splitlines() if "Error" in line or "Traceback" in line]
    assert checkpoints(tmp_path / "run" / "checkpoints")
