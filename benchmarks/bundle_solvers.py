"""The bundle on the processor beside the bundle in batches, on the same stored problems in one run.

    python benchmarks/bundle_solvers.py store --data ../shared/data --frames 161 961 --out build/bundles.pt
    python benchmarks/bundle_solvers.py time build/bundles.pt --device cuda

`store` keeps the problem of all frames of rgbd-redkitchen as it stands before its first bundle. `time` solves each
problem with every solver: seconds (in batches those of the second call, in which nothing is loaded), steps, relative
difference of the cost, and the largest difference of a camera in its standard deviations; then `--together` copies of
the shortest problem, begun at different places, at once. Threads of the processor: one, as a run's bundles have.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle_scaling import kitchen_inputs
from theodolite.annotate.sfm.bundle.batched.descent import BatchedSolver
from theodolite.annotate.sfm.bundle.pace import Effort, Found, Task
from theodolite.annotate.sfm.bundle.priors import FocalPrior, GainPrior
from theodolite.annotate.sfm.bundle.problem import Problem, State
from theodolite.annotate.sfm.bundle.solve import Question, Solver, solve_bundle
from theodolite.annotate.sfm.bundle.sparse import SparseSolver
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.records import TOLERANCE
from theodolite.dataset.cameras.rotations import so3_exp, so3_log


class _Reached(Exception):
    """The bundle that is stored was about to begin."""

    def __init__(self, question: Question) -> None:
        self.question = question


def _question(data: Path, frames: int) -> Question:
    """The first bundle of all frames of the recording's beginning."""
    from theodolite.annotate.sfm import registration
    from theodolite.annotate.sfm.solve import solve_cameras

    inputs, _seconds = kitchen_inputs(data, frames)

    def reached(
        problem: Problem, state: State, prior: FocalPrior, config: BundleConfig, **others: Any
    ) -> None:
        raise _Reached(Question(problem=problem, state=state, prior=prior, config=config, **others))

    registration.solve_bundle = reached
    try:
        solve_cameras(inputs)
    except _Reached as stop:
        return stop.question
    finally:
        registration.solve_bundle = solve_bundle
    raise AssertionError("no bundle of all frames")


def _plain(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def store(data: Path, frames: list[int], out: Path) -> None:
    """Write the problems."""
    stored = []
    for number in frames:
        question = _question(data, number)
        prior = question.prior
        stored.append(
            {
                "problem": _plain(question.problem),
                "state": _plain(question.state),
                "prior": _plain(replace(prior, expected=None)),
                "gain": None if question.gain is None else _plain(question.gain),
                "config": question.config.model_dump_json(),
            }
        )
        print(f"{number} frames: {len(question.problem.frame)} observations", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(stored, out)


def load(path: Path) -> list[Task]:
    """The problems, as solvers take them."""
    return [
        Question(
            problem=Problem(**one["problem"]),
            state=State(**one["state"]),
            prior=FocalPrior(**one["prior"]),
            config=BundleConfig.model_validate_json(one["config"]),
            effort=Effort(tolerance=TOLERANCE),
            gain=None if one["gain"] is None else GainPrior(**one["gain"]),
        ).task()
        for one in torch.load(path, weights_only=True)
    ]


@dataclass(frozen=True)
class Timed:
    """What a solver found, and how long it took."""

    found: Found
    seconds: float


def timed(solver: Solver, tasks: list[Task], device: torch.device, *, calls: int = 1) -> list[Timed]:
    """Solutions of the tasks, and the seconds of the last call a task."""
    found, seconds = [], 0.0
    for _ in range(calls):
        start = time.perf_counter()
        found = solver.descend(tasks)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    right = [one for one in found if isinstance(one, Found)]
    assert len(right) == len(tasks), found
    return [Timed(one, seconds / len(tasks)) for one in right]


def in_sigmas(found: State, other: State, covariance: torch.Tensor) -> float:
    """Largest difference of a number of a camera but the first in its standard deviations; `covariance` (F, D, D)."""
    turn = found.rotation @ other.rotation.transpose(1, 2)
    move = found.translation - (turn @ other.translation[:, :, None])[:, :, 0]
    off = [torch.as_tensor(so3_log(turn)), move, (found.log_focal - other.log_focal)[:, None]]
    if found.log_gain is not None and other.log_gain is not None:
        off.append((found.log_gain - other.log_gain)[:, None])
    sigma = torch.diagonal(covariance, dim1=1, dim2=2).clamp_min(1e-24).sqrt()
    return float((torch.cat(off, 1).abs() / sigma)[1:].max())


def begun_elsewhere(task: Task, seed: int) -> Task:
    """The task from cameras that are moved by about a pixel."""
    rng, state = np.random.default_rng(seed), task.state
    turn = torch.as_tensor(so3_exp(rng.normal(0, 1e-3, (len(state.rotation), 3))))
    turn[0] = torch.eye(3, dtype=torch.float64)
    return replace(task, state=replace(state, rotation=turn @ state.rotation))


def measure(path: Path, device: torch.device, together: int) -> None:
    """Print both tables."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    tasks = sorted(load(path), key=lambda task: task.problem.num_frames)
    batched = {
        f"batched, {name}": BatchedSolver(device, getattr(torch, name)) for name in ("float64", "float32")
    }
    print(f"batched on: {card}")
    print("| frames | observations | solver | s | steps | cost | difference of cost | of cameras, sigmas |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for task in tasks:
        size = f"| {task.problem.num_frames} | {len(task.problem.frame)} "
        plain = timed(SparseSolver(), [task], torch.device("cpu"))[0]
        found = plain.found
        print(
            f"{size}| sparse | {plain.seconds:.2f} | {found.iterations} | {found.cost:.3f} | | |", flush=True
        )
        wide = replace(task, state=found.state, band_frames=31)
        covariance = batched["batched, float64"].covariance(wide)
        for name, solver in batched.items():
            other = timed(solver, [task], device, calls=2)[0]
            off = in_sigmas(other.found.state, found.state, covariance)
            print(
                f"{size}| {name} | {other.seconds:.3f} | {other.found.iterations} | {other.found.cost:.3f} "
                f"| {other.found.cost / found.cost - 1:.1e} | {off:.1e} |",
                flush=True,
            )
    if device.type == "cuda":
        print(f"peak memory of the card: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")
    several = [begun_elsewhere(tasks[0], seed) for seed in range(together)]
    alone = [timed(batched["batched, float64"], [one], device)[0] for one in several]
    joint = timed(batched["batched, float64"], several, device, calls=2)
    worst = max(abs(a.found.cost / b.found.cost - 1) for a, b in zip(alone, joint, strict=True))
    each = np.mean([one.seconds for one in alone])
    print(
        f"{together} of {tasks[0].problem.num_frames} frames: {each:.3f} s a clip one after the other, "
        f"{joint[0].seconds:.3f} s together; difference of cost {worst:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("store")
    keep.add_argument("--data", type=Path, default=Path("../shared/data"))
    keep.add_argument("--frames", type=int, nargs="+", default=[161, 961])
    keep.add_argument("--out", type=Path, required=True)
    show = commands.add_parser("time")
    show.add_argument("problems", type=Path)
    show.add_argument("--device", default="cuda")
    show.add_argument("--together", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "store":
        store(options.data, options.frames, options.out)
    else:
        measure(options.problems, torch.device(options.device), options.together)


if __name__ == "__main__":
    main()
