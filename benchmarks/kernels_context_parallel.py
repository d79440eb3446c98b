"""Context parallelism over the GPUs of one machine: equal to one GPU, and how much time it takes.

    torchrun --nproc-per-node 2 benchmarks/kernels_context_parallel.py

Every rank holds its share of the frames of a 720p minute (bfloat16); rank 0 also runs the whole clip by itself
and compares. Prints relative differences and times, forward and forward + backward.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from theodolite.kernels import Shard, frame_gdn_context_parallel
from theodolite.kernels.frame_gdn.arguments import ScanOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/kernels"))

from cases import relative, run
from kernels_cases import both_ways, full_size, milliseconds

NAMES = ("q", "k", "v", "beta", "decay")
IDLE = 20_000_000
"""Cycles: many small launches, so the host needs ten milliseconds of a lead."""


def gathered(x: torch.Tensor, frames: list[int]) -> torch.Tensor:
    """All ranks' frames of x (B, T, ...), in order of rank."""
    parts = [x.new_empty(x.shape[0], n, *x.shape[2:]) for n in frames]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=1)


def main() -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    # The last shard takes the remainder; composites have the same size whatever the shards' lengths.
    starts = [r * 121 // size for r in range(size)] + [121]
    part = slice(starts[rank], starts[rank + 1])
    frames = [b - a for a, b in itertools.pairwise(starts)]
    for branch in ("main", "camera"):
        torch.manual_seed(0)
        case = full_size(branch)
        tensors = [getattr(case, n) for n in NAMES]
        for x in tensors:
            dist.broadcast(x.data, 0)
        seed = torch.randn_like(case.v)
        dist.broadcast(seed, 0)
        shares = [x.detach()[:, part].contiguous().requires_grad_() for x in tensors]
        assert case.rope is not None
        shard = Shard(
            *shares, rope=case.rope[:, part], rays=None if case.rays is None else case.rays[:, part]
        )

        def parallel(shard: Shard = shard, case=case) -> torch.Tensor:
            return frame_gdn_context_parallel(
                shard,
                ScanOptions(key_scale=case.options["key_scale"], normalise=case.options["normalise"]),
                q_weight=case.q_weight,
                k_weight=case.k_weight,
            )

        out = parallel()
        grads = torch.autograd.grad(out, shares, seed[:, part])
        whole_out = gathered(out.detach(), frames)
        whole_grads = [gathered(g, frames) for g in grads]
        with torch.no_grad():
            forward = milliseconds(parallel, idle_cycles=IDLE)
        step = milliseconds(both_ways(parallel, shares), idle_cycles=IDLE)
        dist.barrier()
        if rank == 0:
            alone = run(case, "triton").out
            truth = torch.autograd.grad(alone, tensors, seed)
            differences = {"out": relative(whole_out, alone)}
            differences |= {
                f"d{n}": relative(g, e) for n, g, e in zip(NAMES, whole_grads, truth, strict=True)
            }
            with torch.no_grad():
                one_forward = milliseconds(lambda c=case: run(c, "triton").out)
            one_step = milliseconds(both_ways(lambda c=case: run(c, "triton").out, tensors))
            print(
                f"{branch}: {size} GPUs {forward:.3f} ms forward, {step:.3f} with backward; one GPU "
                f"{one_forward:.3f}, {one_step:.3f}; differences "
                + ", ".join(f"{n} {e:.1e}" for n, e in differences.items())
            )
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
