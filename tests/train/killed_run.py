"""A run of the student that kills itself: `python -m theodolite.tests.train.killed_run ROOT OBJECTIVE OUT WHEN`, after
its third step (`between`) or within the checkpoint of its fourth (`inside`)."""

from __future__ import annotations

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


def main() -> None:
    root, objective, out, when = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
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


if __name__ == "__main__":
    main()
