"""Runs of the student that are ended by force or by a batch system go on to the same weights, bit for bit."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from theodolite.recipes.training import run_train
from theodolite.train.state import checkpoints

from ..support import needs_packages
from .distillation_runs import Given, recipe, write_given
from .killed_run import every_step

pytestmark = needs_packages("lightning", extra="train")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return write_given(tmp_path_factory.mktemp("student"))


def left_by(out: Path) -> tuple[list[tuple[str, ...]], dict[str, torch.Tensor]]:
    """Figures of every step but its times, and all weights that were exported."""
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figures = [tuple(row[k] for k in ("step", "loss", "norm", "rate", "generator_loss")) for row in rows]
    weights = {
        f"{path.name} {name}": tensor
        for path in sorted((out / "weights").iterdir())
        for name, tensor in load_file(path).items()
    }
    return figures, weights


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "when"), [("ode_init", "between"), ("self_forcing", "inside")])
def test_a_killed_run_goes_on_bit_for_bit(given: Given, tmp_path: Path, objective: str, when: str) -> None:
    """SIGKILL after a step and within the writing of a checkpoint, SIGUSR1 as a batch system sends it."""
    asked = recipe(given, objective, **every_step())
    whole, killed, ended = (tmp_path / name for name in ("whole", "killed", "ended"))
    assert run_train(asked, [given.data], whole, accelerator="cpu")[1] == 0
    worker = [sys.executable, "-m", "theodolite.tests.train.killed_run"]
    done = subprocess.run(
        [*worker, str(given.data.parent), objective, str(killed), when],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [p.name for p in checkpoints(killed / "checkpoints")] == ["step-00000002"]

    def say(text: str) -> None:
        if text.startswith("step 2/"):
            signal.raise_signal(signal.SIGUSR1)

    text, code = run_train(asked, [given.data], ended, say=say, accelerator="cpu")
    assert (code, text[:34]) == (130, "stopped by SIGUSR1 after step 2; -")
    for out in (killed, ended):
        assert run_train(asked, [given.data], out, resume=True, accelerator="cpu")[1] == 0
        figures, weights = left_by(out)
        expected, true = left_by(whole)
        assert figures == expected
        assert weights.keys() == true.keys()
        assert len({name.split()[0] for name in weights}) == (3 if objective == "self_forcing" else 2)
        assert all(torch.equal(weights[name], tensor) for name, tensor in true.items())
