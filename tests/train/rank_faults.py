"""Two ranks of a training one of which meets damage that the other does not: `python -m
theodolite.tests.train.rank_faults FOLDER`.

Every rank leaves `told-CASE-RANK`: what it raised, or what it measured without the window.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from theodolite.train.parallel import make_ranks
from theodolite.train.state import checkpoints
from theodolite.train.training import Training

from .rank_worker import make, recipe, steps

WINDOWS = 3
"""That are held out: the second rank's last turn repeats the third, so both ranks read it."""


def begun(folder: Path, on_bad_clip: str) -> Training:
    made = recipe("bidirectional", sharding="fsdp")
    data = made.data.model_copy(update={"on_bad_clip": on_bad_clip, "held_out": WINDOWS})
    training = make(made.model_copy(update={"data": data}), folder / "data", folder / on_bad_clip)
    training.place(torch.device("cpu"), make_ranks(1))
    return training


def measure(training: Training) -> str:
    """Validation where the second rank cannot read its first window: for one rank a file on its machine's own disk."""
    lost, read = training.held_out[1], training.held_out_batch

    def reading(index: int) -> object:
        if training.ranks.rank == 1 and index == lost:
            raise ValueError(f"window {training.data.windows[lost].id}: its shard cannot be read")
        return read(index)

    vars(training)["held_out_batch"] = reading
    try:
        return f"measured {training.validate()['loss']:.6f} without {sorted(training.feed_faults)}"
    except RuntimeError as error:
        return str(error)


def resume(training: Training) -> str:
    """A checkpoint of which a bit flipped in the second rank's file, at which the second rank alone looks."""
    steps(training, 1)
    path = training.save()
    if training.ranks.rank == 0:
        file = sorted(path.glob("*.distcp"))[1]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    dist.barrier()
    try:
        training.restore(checkpoints(training.out / "checkpoints")[-1])
    except ValueError as error:
        return str(error)
    return "resumed"


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for case, act in (("stop", measure), ("skip", measure), ("flip", resume)):
        told = act(begun(folder, "skip" if case == "flip" else case))
        (folder / f"told-{case}-{rank}").write_text(told)
    dist.destroy_process_group()


if __name__ == "__main__":
    for module in ("fsspec.core", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp"):
        importlib.import_module(module)  # else each rank, as it goes
    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]),), nprocs=2, start_method="fork")
