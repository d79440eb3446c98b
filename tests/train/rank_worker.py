"""The ranks of trainings: `python -m theodolite.tests.train.rank_worker FOLDER JOB...`, jobs as `JOBS` names them.

One process imports everything, which takes longer than the trainings, and forks the ranks of one job after the other.
They leave the figures of two steps in the job's folder, and a checkpoint. Where a folder `begun` holds one of another
number of ranks, those that share weights by FSDP2 go on from it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from theodolite.dataset.encoded import open_encoded
from theodolite.train.distillation import make_training
from theodolite.train.parallel import make_ranks
from theodolite.train.recipe import TrainRecipe
from theodolite.train.start import start_model
from theodolite.train.state import checkpoints
from theodolite.train.training import Training, _whole

from . import distillation_runs
from .encoded_clips import MODEL

SHARDINGS = ("fsdp", "replicate")


def recipe(
    mode: str, *, context: int = 1, accumulate: int = 1, sharding: str = "auto", **more: Any
) -> TrainRecipe:
    """Small, float32 throughout; `mode` bidirectional or causal."""
    content: dict[str, Any] = dict(
        schema_version=1,
        name="ranks",
        model=MODEL.model_copy(update={"softmax_bfloat16": False, "depth": 2, "softmax_every": 2}),
        flow_matching=dict(chunks=dict(size=3) if mode == "causal" else None),
        data=dict(held_out=2, workers=0, accumulate=accumulate),
        validation=dict(levels=[0.5], sample_clips=0 if context > 1 else 2, sample_steps=2),
        optimiser=dict(lr=1e-3, eps=1e-6),
        steps=2,
        parallel=dict(context=context, sharding=sharding, recompute="blocks"),
    )
    return TrainRecipe(**{**content, **more})


def student_recipe(objective: str, folder: Path, *, accumulate: int = 1, **parallel: Any) -> TrainRecipe:
    return distillation_runs.recipe(
        distillation_runs.given_in(folder),
        objective,
        optimiser=dict(lr=1e-3, eps=1e-6),
        parallel=dict(recompute="blocks", **parallel),
        data=dict(held_out=1, workers=0, accumulate=accumulate),
    )


def steps(training: Training, last: int) -> list[tuple[float, ...]]:
    """Losses and norms of all networks, step by step up to the last one."""
    reports: list[tuple[float, ...]] = []
    for micro in training.feed():
        report = training.take_step(micro)
        reports.append((report.loss, report.norm, *report.more.values()))
        if training.step == last:
            break
    return reports


def two_steps(training: Training) -> dict[str, Any]:
    """What a rank sees until the second step is done, tensors whole: losses and norms of all networks, the first
    gradients, the last weights."""
    found: dict[str, Any] = {}
    step = training.optimiser.step

    def noting() -> None:
        if "gradients" not in found:
            named = training.model.named_parameters()
            found["gradients"] = {n: _whole(p.grad) for n, p in named if p.grad is not None}
        step()

    vars(training.optimiser)["step"] = noting
    found["reports"] = steps(training, 2)
    found["weights"] = {n: _whole(p) for n, p in training.model.named_parameters()}
    found["validation"] = training.validate()
    return found


def make(recipe: TrainRecipe, data: Path, out: Path) -> Training:
    return make_training(recipe, start_model(recipe), open_encoded(data), out)


@dataclass(frozen=True)
class Job:
    """`size` ranks, `context` of which share a clip; the recipe is made of the folder, `context` and `sharding`."""

    size: int
    context: int
    recipe: Callable[..., TrainRecipe]
    shardings: tuple[str, ...]
    saves: bool = False


def _plain(mode: str, _: Path, **parallel: Any) -> TrainRecipe:
    return recipe(mode, **parallel)


JOBS = {
    "causal": Job(4, 2, partial(_plain, "causal"), ("fsdp",), saves=True),
    "causal of all": Job(4, 2, partial(_plain, "causal"), SHARDINGS, saves=True),
    "bidirectional of all": Job(2, 1, partial(_plain, "bidirectional"), SHARDINGS, saves=True),
    "self-forcing": Job(2, 2, partial(student_recipe, "self_forcing"), SHARDINGS, saves=True),
    "consistency of all": Job(2, 1, partial(student_recipe, "consistency_init"), ("fsdp",), saves=True),
    "regression of all": Job(2, 1, partial(student_recipe, "ode_init"), ("fsdp",), saves=True),
}
"""Each in a folder of its name, with the clips in `data`."""


def work(rank: int, job: Job, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=job.size)
    for sharding in job.shardings:
        made = job.recipe(folder, context=job.context, sharding=sharding)
        training = make(made, folder / "data", folder)
        training.place(torch.device("cpu"), make_ranks(job.context))
        if sharding == "fsdp" and (begun := checkpoints(folder / "begun" / "checkpoints")):
            training.restore(begun[-1])
        found = two_steps(training)
        if rank == 0:
            torch.save(found, folder / f"{sharding}.pt")
        if job.saves and sharding == "fsdp":
            training.save()
            training.out = folder / "data" / "encoded.json"  # a file: nothing can be written below it
            try:
                training.save()
            except OSError as error:
                (folder / f"told-{rank}").write_text(str(error))
    dist.destroy_process_group()


def main(folder: Path, names: list[str]) -> None:
    for module in ("fsspec.core", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp"):
        importlib.import_module(module)  # else each rank, as it goes
    for name in names:
        job = JOBS[name]
        torch.multiprocessing.start_processes(
            work, (job, folder / name), nprocs=job.size, start_method="fork"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
