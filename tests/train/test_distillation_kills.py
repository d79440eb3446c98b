"""Runs of the student that are ended by force or by a batch system go on to the same weights, bit for bit."""

from __future__ import annotations

import csv
import itertools
import json
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


KILLS = (("ode_init", "between"), ("self_forcing", "inside"), ("consistency_init", "between"))
MORE = "consistency_init"
"""Killed where all repeats are made."""


@pytest.fixture(scope="module")
def killed_runs(
    given: Given, tmp_path_factory: pytest.TempPathFactory, thorough: bool
) -> tuple[Path, dict[str, int]]:
    """Where the runs that killed themselves lie, and how each ended."""
    out = tmp_path_factory.mktemp("killed")
    worker = [sys.executable, "-m", "theodolite.tests.train.killed_run", str(given.data.parent), str(out)]
    kills = [kill for kill in KILLS if thorough or kill[0] != MORE]
    done = subprocess.run([*worker, *itertools.chain(*kills)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out, json.loads(done.stdout.splitlines()[-1])


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


@pytest.mark.slow(about_s=8)
@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=pytest.mark.thorough) if name == MORE else name for name, _ in KILLS],
)
def test_a_killed_run_goes_on_bit_for_bit(
    given: Given, killed_runs: tuple[Path, dict[str, int]], tmp_path: Path, objective: str
) -> None:
    """SIGKILL after a step and within the writing of a checkpoint, SIGUSR1 as a batch system sends it."""
    asked = recipe(given, objective, **every_step())
    whole, ended, killed = tmp_path / "whole", tmp_path / "ended", killed_runs[0] / objective
    assert run_train(asked, [given.data], whole, accelerator="cpu")[1] == 0
    assert killed_runs[1][objective] == -signal.SIGKILL
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
