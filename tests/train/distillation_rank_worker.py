"""One rank of a self-forcing training: `python -m theodolite.tests.train.distillation_rank_worker RANK SIZE FOLDER`.

Two steps with the clip's frames spread over all ranks, sharded and held by each; leaves what the first rank saw.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from theodolite.dataset.encoded import open_encoded
from theodolite.train.distillation import make_training
from theodolite.train.parallel import make_ranks
from theodolite.train.recipe import TrainRecipe
from theodolite.train.start import start_model
from theodolite.train.training import Training

from .distillation_runs import Given, recipe

SHARDINGS = ("fsdp", "replicate")


def given_in(folder: Path) -> Given:
    weights = "weights/step-00000000.safetensors"
    return Given(
        folder / "data", folder / "bidirectional" / weights, folder / "causal" / weights, folder / "paths"
    )


def recipe_of(folder: Path, **parallel: Any) -> TrainRecipe:
    return recipe(
        given_in(folder),
        "self_forcing",
        optimiser=dict(lr=1e-3, eps=1e-6),
        parallel=dict(recompute="blocks", **parallel),
    )


def two_steps(training: Training) -> list[tuple[float, ...]]:
    """Losses and norms of both networks, then the held-out loss."""
    found: list[tuple[float, ...]] = []
    for micro in training.feed():
        report = training.take_step(micro)
        found.append((report.loss, report.norm, *report.more.values()))
        if training.step == 2:
            break
    return [*found, (training.validate()["loss"],)]


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    for sharding in SHARDINGS:
        made = recipe_of(folder, context=size, sharding=sharding)
        training = make_training(made, start_model(made), open_encoded(folder / "data"), folder / "run")
        training.place(torch.device("cpu"), make_ranks(size))
        found = two_steps(training)
        if rank == 0:
            torch.save(found, folder / f"{sharding}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
