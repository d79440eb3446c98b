"""The ranks of the two-process test: `python gloo_worker.py SIZE PORT FOLDER`; one process imports everything and forks
them."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.fx.experimental.symbolic_shapes  # else every rank, at its first backward pass
import torch.multiprocessing
from cases import in_float64, make_case
from theodolite.kernels import Shard, frame_gdn_context_parallel
from theodolite.kernels.frame_gdn.arguments import ScanOptions


def main(rank: int, size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    case = in_float64(make_case(frames=6, height=2, width=2, head_size=16))
    assert case.rope is not None
    part = slice(rank * 6 // size, (rank + 1) * 6 // size)
    shard = Shard(
        *(x[:, part] for x in (case.q, case.k, case.v, case.beta, case.decay)), rope=case.rope[:, part]
    )
    out = frame_gdn_context_parallel(
        shard,
        ScanOptions(key_scale=case.options["key_scale"]),
        q_weight=case.q_weight,
        k_weight=case.k_weight,
    )
    out.square().sum().backward()
    names = ("q", "k", "v", "beta", "decay", "q_weight", "k_weight")
    torch.save({"out": out.detach()} | {n: getattr(case, n).grad for n in names}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.multiprocessing.start_processes(main, (size, port, folder), nprocs=size, start_method="fork")
