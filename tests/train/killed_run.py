"""Runs of the student that kill themselves: `python -m theodolite.tests.train.killed_run ROOT OUT OBJECTIVE WHEN ...`,
each in OUT/OBJECTIVE, after its third step (`between`) or within the checkpoint of its fourth (`inside`).

One process imports everything, which takes longer than the runs, and forks them; it prints how each ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from theodolite.recipes.training import run_train
from theodolite.train import state

from .distillation_runs import given_in, recipe


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(root: Path, objective: str, out: Path, when: str) -> None:
    given = given_in(root)
    write = state.write_atomically

    def kill_inside(path: Path, content: Any) -> None:
        if path.name == "progress.json" and "step-00000004" in str(path):
            kill()
        write(path, content)

    def say(text: str) -> None:
        if when == "between" and text.startswith("step 3/"):
            kill()

    if when == "inside":
        state.write_atomically = kill_inside
    run_train(recipe(given, objective, **every_step()), [given.data], out, say=say, accelerator="cpu")


def every_step() -> dict[str, Any]:
    """Checkpoints after the second and the fourth of five steps."""
    return dict(
        steps=5,
        ema=0.5,
        checkpoint=dict(every=2, keep=2),
        log=dict(every=1),
        validation=dict(every=0),
        parallel=dict(devices=1, recompute="nothing"),
    )


def main(root: Path, out: Path, runs: list[str]) -> None:
    for module in ("lightning", "torch._dynamo"):
        importlib.import_module(module)  # else every run
    ended = {}
    for objective, when in zip(runs[::2], runs[1::2], strict=True):
        child = os.fork()
        if child == 0:
            run(root, objective, out / objective, when)
            os._exit(0)
        ended[objective] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
