"""Calls of the frame-wise Gated DeltaNet at full size, and how they are timed; `tests/kernels` must be on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from cases import (
    Case,
    make_case,
    random_poses,
)
from theodolite.kernels.frame_gdn.reference import rope_tables, world_to_ray

HEADS, HEAD_SIZE, HEIGHT, WIDTH, FRAMES = 20, 112, 22, 40, 121


def milliseconds(function: Callable[[], object], repeats: int = 10, *, idle_cycles: int = 2_000_000) -> float:
    """Median time of a call on a GPU that is kept busy, as a network's other kernels keep it.

    While the GPU idles (2e6 cycles are a millisecond) the host runs ahead, so that its own time stays out.
    """
    for _ in range(2):
        function()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(idle_cycles)
        start.record()
        function()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def full_size(branch: str, *, frames: int = FRAMES, **more) -> Case:
    """A case of real size in bfloat16; drawn on the GPU, since a minute of float64 noise is slow on a CPU."""
    case = make_case(
        frames=frames, height=2, width=2, heads=HEADS, head_size=HEAD_SIZE, branch=branch, dtype=torch.bfloat16,
        device="cuda", **more,
    )  # fmt: skip
    tokens = HEIGHT * WIDTH
    shape = (1, frames, tokens, HEADS, HEAD_SIZE)
    for name in "qkv":
        scale = (HEAD_SIZE * tokens) ** -0.5 if name == "k" and branch == "plain" else 1.0
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale
        setattr(case, name, x.requires_grad_())
    case.beta = torch.rand(shape[:-1], device="cuda").to(torch.bfloat16).requires_grad_()
    if case.rope is not None:
        half = branch == "camera"
        case.rope = rope_tables(frames, HEIGHT, WIDTH, HEAD_SIZE, half=half).to("cuda", torch.float16)
    if case.rays is not None:
        generator = torch.Generator().manual_seed(0)
        intrinsics = torch.tensor([WIDTH * 0.8, WIDTH * 0.8, WIDTH / 2, HEIGHT / 2]).expand(1, frames, 4)
        case.rays = world_to_ray(
            random_poses(1, frames, generator).float().cuda(), intrinsics.cuda(), HEIGHT, WIDTH
        )
    if branch != "plain":
        case.options["key_scale"] = (HEAD_SIZE * tokens) ** -0.5
    return case


def token_bytes(case: Case) -> int:
    """Size of one of q, k, v, out."""
    return case.v.numel() * case.v.element_size()


def ceilings() -> tuple[float, float]:
    """Copy bandwidth in bytes/s (read + written) and bfloat16 matmul rate in FLOP/s."""
    x = torch.randn(2**31, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    copy = 2 * x.numel() * 2 / milliseconds(lambda: y.copy_(x)) * 1e3
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return copy, 2 * 8192**3 / milliseconds(lambda: a @ b) * 1e3


def both_ways(function: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Callable[[], object]:
    """Forward and backward of a function, with a fixed gradient of its output."""
    seed = torch.randn_like(function())
    return lambda: torch.autograd.grad(function(), inputs, seed)


class Table:
    """Prints a row at once, so that a run that is cut short has shown what it measured."""

    def __init__(self) -> None:
        self.copy, self.matmul = ceilings()
        print(f"copy {self.copy / 1e12:.2f} TB/s, bf16 matmul {self.matmul / 1e12:.0f} TFLOP/s")
        print(f"{'what':58} {'ms':>9} {'floor GB':>9} {'floor ms':>9} {'of copy':>8} {'of matmul':>9}")

    def row(
        self, what: str, function: Callable[[], object], gigabytes: float, flop: float, repeats: int = 10
    ) -> None:
        try:
            ms = milliseconds(function, repeats)
        except Exception as error:  # noqa: BLE001  a rival that does not run is part of the table
            print(f"{what:58} {type(error).__name__}: {str(error).splitlines()[0][:60]}")
            return
        floor = gigabytes * 1e9 / self.copy * 1e3
        share = flop / (ms * 1e-3) / self.matmul
        print(f"{what:58} {ms:9.3f} {gigabytes:9.2f} {floor:9.3f} {floor / ms:8.0%} {share:9.1%}")
        sys.stdout.flush()
