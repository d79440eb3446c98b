"""The ranks of a training: `python rank_worker.py SIZE FOLDER DATA CONTEXT MODE SHARDING...`.

One process imports everything and forks the ranks. Each takes two steps and leaves the figures of both, the gradients
of the first and the weights after the second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from encoded_clips import MODEL
from theodolite.dataset.encoded import open_encoded
from theodolite.train.parallel import make_ranks
from theodolite.train.recipe import TrainRecipe
from theodolite.train.start import start_model
from theodolite.train.training import Training, _whole


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


def two_steps(training: Training) -> dict[str, Any]:
    """What a rank sees, tensors whole."""
    found: dict[str, Any] = {"reports": []}
    step = training.optimiser.step

    def noting() -> None:
        if "gradients" not in found:
            named = training.model.named_parameters()
            found["gradients"] = {n: _whole(p.grad) for n, p in named if p.grad is not None}
        step()

    vars(training.optimiser)["step"] = noting
    for micro in training.feed():
        report = training.take_step(micro)
        found["reports"].append((report.loss, report.norm))
        if training.step == 2:
            break
    found["weights"] = {n: _whole(p) for n, p in training.model.named_parameters()}
    found["validation"] = training.validate()
    return found


def make(recipe: TrainRecipe, data: Path, out: Path) -> Training:
    return Training(recipe, start_model(recipe), open_encoded(data), out)


def main(
    rank: int, size: int, folder: Path, data: Path, context: int, mode: str, shardings: list[str]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    for sharding in shardings:
        training = make(recipe(mode, context=context, sharding=sharding), data, folder)
        training.place(torch.device("cpu"), make_ranks(context))
        found = two_steps(training)
        if sharding == "fsdp":
            training.save()
        if rank == 0:
            torch.save(found, folder / f"{sharding}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    a = sys.argv
    torch.multiprocessing.start_processes(
        main,
        args=(int(a[1]), Path(a[2]), Path(a[3]), int(a[4]), a[5], a[6:]),
        nprocs=int(a[1]),
        start_method="fork",
    )
