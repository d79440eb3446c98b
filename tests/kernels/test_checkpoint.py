"""Every operator with a gradient of its own under activation checkpointing, as training applies it to whole blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from theodolite.kernels import (
    Tokens,
    frame_gdn,
    frame_gdn_shards,
    gated_add,
    glu_conv,
    modulated_norm,
    norm_rotate,
    output_gate,
    rope_tables,
    short_conv,
)
from theodolite.kernels.frame_gdn.shards import Shard
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SHAPE = (1, 2, 4, 32)


def run_gdn(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    return frame_gdn(Tokens(q, k, v, beta, decay), backend="triton").out


def run_shards(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    parts = [slice(0, 1), slice(1, 2)]
    shards = [Shard(q[:, p], k[:, p], v[:, p], beta[:, p], decay[:, p]) for p in parts]
    return torch.cat(frame_gdn_shards(shards, backend="triton"), dim=1)


def gdn_inputs() -> list[Tensor]:
    q, k, v = (0.3 * torch.randn(1, 2, 4, 1, 16) for _ in range(3))
    return [q, k, v, torch.rand(1, 2, 4, 1), torch.rand(1, 2, 1)]


def tokens(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


OPERATORS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "frame_gdn": (run_gdn, gdn_inputs()),
    "frame_gdn_shards": (run_shards, gdn_inputs()),
    "short_conv": (lambda x, w: short_conv(x, w, backend="triton"), tokens(SHAPE, (32, 1, 4))),
    "output_gate": (
        lambda x, y, z: output_gate(x, y, z, backend="triton"),
        tokens(SHAPE, SHAPE, SHAPE),
    ),
    "modulated_norm": (
        lambda x, y, z: modulated_norm(x, y, z, backend="triton"),
        tokens(SHAPE, (1, 2, 32), (1, 2, 32)),
    ),
    "gated_add": (
        lambda x, y, g, e: gated_add(x, y, g, e, backend="triton"),
        tokens(SHAPE, SHAPE, (1, 1, 32), SHAPE),
    ),
    "glu_conv": (
        lambda x, w, b: glu_conv(x, w, b, height=2, width=2, backend="triton"),
        tokens(SHAPE, (32, 1, 3, 3), (32,)),
    ),
    "norm_rotate": (
        lambda x, w: norm_rotate(
            x, w, rope_tables(2, 2, 2, 16).float().to(x.device), heads=2, backend="triton"
        ),
        tokens(SHAPE, (32,)),
    ),
}


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_the_same_when_recomputed(name: str, device: torch.device) -> None:
    operator, given = OPERATORS[name]
    inputs = [x.to(device).requires_grad_() for x in given]
    plain = operator(*inputs)
    seed = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, inputs, seed)
    again = checkpoint(operator, *inputs, use_reentrant=False)
    found = torch.autograd.grad(again, inputs, seed)
    assert torch.equal(again, plain)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
