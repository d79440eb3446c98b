"""A training that is killed and resumed beside ones that are not: do their loss curves differ more than two equal runs?

    python benchmarks/resume_gpu.py [--seed 0] [--steps 40]     # one GPU, about a minute
    python benchmarks/resume_gpu.py --smoke                     # the same on a CPU, smaller, where they must be equal

Four runs of `theodolite train` of a network of 19 M parameters, random clips, bfloat16 through FSDP2, an average of the
weights, a checkpoint every eighth step: `one` and `two` from beginning to end, `killed` ended by SIGKILL at a random
moment of a random step, and the same again with `--resume`. The first three run at once. One and two differ by what the
machine's sums in another order make; the resumed one may differ from either by three times that, and is told to have
failed where it does not (exit code 1). Differences are told of the steps after the kill as well, and of the weights.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from model_sizes import FULL, SMOKE, Size
from safetensors.torch import load_file
from theodolite.model.config import WorldModelConfig
from theodolite.train.cost import num_parameters
from theodolite.train.state import checkpoints
from train_speed import write_clips

SMALL = replace(
    FULL,
    config=WorldModelConfig(depth=6, width=336, heads=3, latent_channels=16, text_width=64, text_tokens=20),
    frames=9,
    height=11,
    width=20,
)
EVERY = 8
"""Steps from one checkpoint to the next."""
MORE = 3.0
"""How many times the noise of the machine the resumed run may be away: the largest of some ten steps' differences of
two pairs of equal runs is seldom three times that of another pair."""


class Run:
    """A run of the command, in its folder."""

    def __init__(self, folder: Path, name: str, accelerator: str) -> None:
        self.out, self.said = folder / name, folder / f"{name}.txt"
        self._words = [sys.executable, "-m", "theodolite", "train", str(folder / "recipe.yaml")]
        self._words += ["--data", str(folder / "clips"), "--out", str(self.out), "--resume"]
        self._words += ["--accelerator", accelerator]

    def begin(self) -> subprocess.Popen[bytes]:
        with self.said.open("ab") as said:
            return subprocess.Popen(self._words, stdout=said, stderr=said)

    def wait_for(self, process: subprocess.Popen[bytes]) -> None:
        """Its end, which must be a good one."""
        if process.wait() != 0:
            raise RuntimeError(
                f"{self.out.name} ended with {process.returncode}: {self.said.read_text()[-2000:]}"
            )

    def losses(self) -> dict[int, float]:
        """By step, as far as it has come."""
        if not (self.out / "metrics.csv").is_file():
            return {}
        with (self.out / "metrics.csv").open(newline="") as file:
            return {int(r["step"]): float(r["loss"]) for r in csv.DictReader(file) if r["loss"]}

    def weights(self) -> torch.Tensor:
        """All that it exported, the average too, as one row."""
        files = sorted((self.out / "weights").glob("*.safetensors"))
        return torch.cat([t.double().flatten() for f in files for _, t in sorted(load_file(f).items())])


def write_recipe(path: Path, size: Size, steps: int) -> None:
    content = dict(
        schema_version=1,
        name="resume",
        model=size.config.model_dump(),
        data=dict(held_out=0, workers=1, allow_stand_in=True),
        optimiser=dict(lr=1e-3, warmup_steps=4),
        ema=0.9,
        steps=steps,
        parallel=dict(devices=1),
        checkpoint=dict(every=EVERY),
        validation=dict(every=0, sample_clips=0),
        log=dict(every=1, loggers=["csv"]),
    )
    path.write_text(yaml.safe_dump(content))


def kill(run: Run, process: subprocess.Popen[bytes], step: int, moment: float) -> None:
    """End a run by force in the step after `step`, a share `moment` of a step's time into it."""
    seen: list[float] = []
    while len(run.losses()) < step:
        if process.poll() is not None:
            raise RuntimeError(f"{run.out.name} ended by itself: {run.said.read_text()[-2000:]}")
        if len(run.losses()) > len(seen):
            seen += [time.monotonic()] * (len(run.losses()) - len(seen))
        time.sleep(0.002)
    step_s = (seen[-1] - seen[len(seen) // 2]) / max(1, len(seen) - 1 - len(seen) // 2) if seen else 0.0
    time.sleep(moment * step_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    last = [path.name for path in checkpoints(run.out / "checkpoints")][-1:]
    print(
        f"killed after step {max(run.losses())}; last checkpoint: {last[0] if last else 'none'}", flush=True
    )


def differences(one: Run, other: Run, since: int) -> float:
    """The largest difference of two curves, relative, from a step on."""
    a, b = one.losses(), other.losses()
    assert a.keys() == b.keys()
    return max(abs(a[k] - b[k]) / abs(a[k]) for k in a if k >= since)


def compare(one: Run, two: Run, resumed: Run, since: int) -> bool:
    """Print how far the curves and weights are apart; whether the resumed run is within the noise."""
    curves = [run.losses() for run in (one, two, resumed)]
    print("step      one      two  resumed   two-one  resumed-one")
    for k in sorted(curves[0]):
        a, b, c = (curve[k] for curve in curves)
        print(f"{k:4d} {a:8.5f} {b:8.5f} {c:8.5f}  {b - a:+.1e}     {c - a:+.1e}")
    ok = True
    for what, first in (("all steps", 1), ("steps after the kill", since)):
        noise = differences(one, two, first)
        found = max(differences(one, resumed, first), differences(two, resumed, first))
        print(f"{what}: one and two differ by {noise:.2e} at most, the resumed one by {found:.2e}")
        ok = ok and found <= MORE * noise
    w = [run.weights() for run in (one, two, resumed)]
    noise = float((w[0] - w[1]).norm() / w[0].norm())
    found = max(float((w[2] - x).norm() / w[0].norm()) for x in w[:2])
    print(f"weights: one and two differ by {noise:.2e} (norms), the resumed one by {found:.2e}")
    return ok and found <= MORE * noise


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moment of the kill")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    began = time.perf_counter()
    size = SMOKE if asked.smoke else SMALL
    steps = min(asked.steps, 20) if asked.smoke else asked.steps
    accelerator = "cpu" if asked.smoke else "gpu"
    where = "CPU" if asked.smoke else torch.cuda.get_device_name()
    print(
        f"{where}, torch {torch.__version__}, {num_parameters(size.config) / 1e6:.1f} M parameters",
        flush=True,
    )
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(size, folder / "clips", count=6)
        write_recipe(folder / "recipe.yaml", size, steps)
        runs = [Run(folder, name, accelerator) for name in ("one", "two", "killed")]
        processes = [run.begin() for run in runs]
        step = draw.randint(EVERY, steps - 2)
        try:
            kill(runs[2], processes[2], step, draw.random())
            runs[2].wait_for(runs[2].begin())
            for run, process in zip(runs[:2], processes[:2], strict=True):
                run.wait_for(process)
        finally:
            for process in processes:
                process.kill()
        fine = compare(*runs, since=step + 1)
    print(
        f"{'within the noise' if fine else 'NOT within the noise'}; {time.perf_counter() - began:.0f} s in all"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
