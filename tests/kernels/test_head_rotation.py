"""RMSNorm and rotation of halves: the kernel against its twin, the twin against diffusers."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from theodolite.kernels import rotate_heads
from torch import Tensor

from .cases import relative

with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="pip install theodolite[kernels]"
)


def inputs(batch: int, tokens: int, heads: int, half: int, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, tokens, 2 * heads * half, generator=generator)
    weight = 1 + 0.3 * torch.randn(2 * heads * half, generator=generator)
    angle = 3 * torch.randn(1, heads, tokens, half, generator=generator)
    return tuple(t.to(device) for t in (x, weight, angle.cos(), angle.sin()))


@pytest.mark.triton
@with_triton
@pytest.mark.parametrize("sizes", [(1, 5, 4, 8), (2, 3, 3, 6), (1, 1, 1, 1)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
def test_kernel(
    sizes: tuple[int, int, int, int], norm: bool, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, cos, sin = inputs(*sizes, device)
    x = x.to(dtype)
    w = weight.to(dtype) if norm else None
    made = rotate_heads(x, w, cos, sin, backend="triton")
    exact = rotate_heads(
        x.double(), None if w is None else w.double(), cos.double(), sin.double(), backend="reference"
    )
    assert made.dtype == dtype
    assert relative(made.double(), exact) < (1e-5 if dtype == torch.float32 else 1e-2)
    # Rows of a wider tensor, as a split of one product gives them.
    wide = torch.cat([x, x + 1], dim=2)[:, :, : x.shape[2]]
    assert torch.equal(rotate_heads(wide, w, cos, sin, backend="triton"), made)


@pytest.mark.slow  # diffusers' import
def test_twin_is_what_diffusers_does() -> None:
    module = pytest.importorskip("diffusers.models.transformers.transformer_ltx2")
    x, weight, cos, sin = inputs(1, 5, 4, 8, torch.device("cpu"))
    normed = torch.nn.functional.rms_norm(x, (64,), weight, 1e-6)
    expected = module.apply_split_rotary_emb(normed, (cos, sin))
    assert relative(rotate_heads(x, weight, cos, sin), expected) < 1e-6
    assert relative(rotate_heads(x, None, cos, sin), module.apply_split_rotary_emb(x, (cos, sin))) < 1e-6


def test_gradients_flow_through_the_twin() -> None:
    x, weight, cos, sin = (t.double() for t in inputs(1, 2, 2, 3, torch.device("cpu")))
    x.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rotate_heads(a, b, cos, sin), (x, weight))


def test_bad_input() -> None:
    x, weight, cos, sin = inputs(1, 5, 4, 8, torch.device("cpu"))
    for arguments, message in (
        ((x[0], weight, cos, sin), "give \\(B, N, C\\)"),
        ((x, weight, cos, sin[:, :, :4]), "give \\(B, N, C\\)"),
        ((x[:, :4], weight, cos, sin), "with x \\(1, 4, 64\\)"),
        ((x, weight, cos[:, :2], sin[:, :2]), "make 64 channels"),
        ((x, weight[:8], cos, sin), "weight is \\(8,\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            rotate_heads(*arguments)
