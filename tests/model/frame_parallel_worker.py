"""The ranks of a test of context parallelism: `python frame_parallel_worker.py SIZE FOLDER FRAMES`; one process imports
everything and forks them."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.fx.experimental.symbolic_shapes  # else every rank, at its first backward pass
import torch.multiprocessing
from cases import loss_and_gradients
from theodolite.model.frame_parallel import FrameShare, split_frames


def main(rank: int, size: int, folder: str, frames: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    for causal in (False, True):
        found = loss_and_gradients(frames, causal, FrameShare(split_frames(frames, size), rank))
        torch.save(found, f"{folder}/{rank}-{causal}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    size, folder, frames = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.multiprocessing.start_processes(main, (size, folder, frames), nprocs=size, start_method="fork")
