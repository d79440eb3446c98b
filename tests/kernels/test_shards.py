"""Prefix composition over shards equals the single scan, forward and backward."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
from theodolite.kernels import Composite, Shard, compose, exclusive_prefix
from theodolite.kernels.frame_gdn.arguments import ScanOptions
from theodolite.kernels.frame_gdn.reference import scan, scan_composite
from theodolite.kernels.frame_gdn.shards import frame_gdn_shards

from .cases import Case, in_float64, make_case, relative, run

NAMES = ("q", "k", "v", "beta", "decay", "q_weight", "k_weight")


def cut(case: Case, count: int) -> list[Shard]:
    """Frames in `count` contiguous parts, as even as they go."""
    frames = case.k.shape[1]
    edges = [i * frames // count for i in range(count + 1)]
    shards = []
    for a, b in itertools.pairwise(edges):
        starts = case.options["chunk_starts"]
        shards.append(
            Shard(
                *(getattr(case, n)[:, a:b] for n in NAMES[:5]),
                rope=None if case.rope is None else case.rope[:, a:b],
                rays=None if case.rays is None else case.rays[:, a:b],
                chunk_starts=None if starts is None else tuple(s - a for s in starts if a <= s < b),
            )
        )
    return shards


def options(case: Case) -> dict:
    kept = ("bidirectional", "normalise", "key_scale")
    numbers = ScanOptions(**{n: case.options[n] for n in kept})
    return {"q_weight": case.q_weight, "k_weight": case.k_weight, "options": numbers}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kw",
    [
        {"branch": "main"},
        {"branch": "camera", "chunk_starts": (0, 1, 4, 6)},
        {"branch": "main", "bidirectional": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("count", "backend"),
    [
        pytest.param(2, "reference", marks=pytest.mark.thorough),
        pytest.param(4, "reference", marks=pytest.mark.thorough),
        (8, "reference"),
        pytest.param(2, "triton", marks=pytest.mark.triton),
        pytest.param(4, "triton", marks=[pytest.mark.gpu, pytest.mark.triton]),
        pytest.param(8, "triton", marks=[pytest.mark.gpu, pytest.mark.triton]),
    ],
)
def test_shards_equal_the_single_scan(count: int, kw: dict, backend, device: torch.device) -> None:
    case = make_case(frames=8, height=1, width=3, head_size=16, heads=1, device=device, **kw)
    exact_case = in_float64(case)
    if backend == "reference":
        case = exact_case
    outs = frame_gdn_shards(cut(case, count), backend=backend, **options(case))
    exact = run(exact_case, "reference").out
    assert relative(torch.cat(outs, dim=1), exact) < 1e-5
    seed = torch.randn(exact.shape, dtype=torch.float64, device=exact.device)
    names = [n for n in NAMES if getattr(case, n) is not None]
    grads = torch.autograd.grad(
        torch.cat(outs, dim=1), [getattr(case, n) for n in names], seed.to(outs[0].dtype)
    )
    truth = torch.autograd.grad(exact, [getattr(exact_case, n) for n in names], seed)
    for name, grad, expected in zip(names, grads, truth, strict=True):
        assert relative(grad, expected) < 1e-5, name


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("count", [2, 4])
def test_shards_in_bfloat16_at_the_real_head_size(count: int, device: torch.device) -> None:
    case = make_case(frames=8, height=5, width=9, head_size=112, heads=8, dtype=torch.bfloat16, device=device)
    exact_case = in_float64(case)
    outs = torch.cat(frame_gdn_shards(cut(case, count), backend="triton", **options(case)), dim=1)
    exact = run(exact_case, "reference").out
    assert relative(outs, exact) < 1e-2
    seed = torch.randn(exact.shape, dtype=torch.float64, device=exact.device).to(torch.bfloat16)
    names = [n for n in NAMES if getattr(case, n) is not None]
    grads = torch.autograd.grad(outs, [getattr(case, n) for n in names], seed)
    truth = torch.autograd.grad(exact, [getattr(exact_case, n) for n in names], seed.double())
    for name, grad, expected in zip(names, grads, truth, strict=True):
        assert relative(grad, expected) < 1e-2, name


def test_composition_is_associative_and_gives_the_prefix() -> None:
    torch.manual_seed(0)
    p = 0.1 * torch.randn(1, 6, 2, 5, 5, dtype=torch.float64)
    u = torch.randn(1, 6, 2, 3, 5, dtype=torch.float64)
    g = torch.rand(1, 6, 2, dtype=torch.float64)
    parts = [scan_composite(p[:, i : i + 2], u[:, i : i + 2], g[:, i : i + 2]) for i in (0, 2, 4)]
    left = reduce(compose, parts)
    right = compose(parts[0], compose(parts[1], parts[2]))
    start = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    assert relative(left.h, right.h) < 1e-12
    assert relative(start @ left.c + left.h, scan(p, u, g, start)[1]) < 1e-12
    incoming = exclusive_prefix(parts, start)
    assert relative(incoming[2], scan(p[:, :4], u[:, :4], g[:, :4], start)[1]) < 1e-12
    assert isinstance(left, Composite)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    script = str(Path(__file__).with_name("gloo_worker.py"))
    subprocess.run([sys.executable, script, "2", str(port), str(tmp_path)], timeout=120, check=True)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    case = in_float64(make_case(frames=6, height=2, width=2, head_size=16))
    exact = run(case, "reference").out
    exact.square().sum().backward()
    assert relative(torch.cat([p["out"] for p in parts], dim=1), exact) < 1e-10
    for name in NAMES:
        assert relative(torch.stack([p[name] for p in parts]).sum(0), getattr(case, name).grad) < 1e-10, name
