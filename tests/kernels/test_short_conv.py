"""Short temporal convolution: the twin against torch's own convolution, the kernels against the twin."""

from __future__ import annotations

import itertools

import pytest
import torch
from theodolite.kernels import short_conv
from torch.nn.functional import conv1d, pad

from .cases import relative


def causal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    sites = x.permute(0, 2, 3, 1).flatten(0, 1)
    taps = weight.shape[-1]
    y = conv1d(pad(sites, (taps - 1, 0)), weight, groups=x.shape[-1])
    return y.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("chunk_starts", [None, (0, 1, 4)])
def test_twin_is_forward_plus_reversed_convolution_minus_centre(chunk_starts: tuple[int, ...] | None) -> None:
    x = torch.randn(2, 7, 3, 5, dtype=torch.float64)
    weight = torch.randn(5, 1, 4, dtype=torch.float64)
    edges = (*(chunk_starts or (0,)), 7)
    reverse = [causal(x[:, a:b].flip(1), weight).flip(1) for a, b in itertools.pairwise(edges)]
    expected = causal(x, weight) + torch.cat(reverse, dim=1) - x * weight[:, 0, -1]
    assert relative(short_conv(x, weight, chunk_starts=chunk_starts), expected) < 1e-12
    assert relative(short_conv(x, weight, bidirectional=False), causal(x, weight)) < 1e-12


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"bidirectional": False, "before": True},
        {"chunk_starts": (0, 1, 4), "before": True},
        {"frames": 2, "before": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
def test_kernels_equal_the_twin(kw: dict, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    frames = kw.get("frames", 6)
    shape = (2, frames, 3, 2 * 20)
    x = torch.randn(2, frames, 3, 2, 40).to(device, dtype)[:, :, :, 0].requires_grad_()  # strided
    weight = torch.randn(40, 1, 4).to(device, dtype).requires_grad_()
    before = torch.randn(2, 3, *shape[2:]).to(device, dtype).requires_grad_() if kw.get("before") else None
    options = {k: v for k, v in kw.items() if k not in ("before", "frames")}
    seed = torch.randn(shape).to(device, dtype)
    inputs = [t for t in (x, weight, before) if t is not None]
    fast = short_conv(x, weight, before=before, backend="triton", **options)
    grads = torch.autograd.grad(fast, inputs, seed)
    double = [t.detach().double().requires_grad_() for t in inputs]
    exact = short_conv(*double[:2], before=double[2] if before is not None else None, **options)
    truth = torch.autograd.grad(exact, double, seed.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative(fast, exact) < tolerance
    for grad, expected in zip(grads, truth, strict=True):
        assert relative(grad, expected) < tolerance


def test_streaming_continues_the_whole() -> None:
    x, weight = torch.randn(1, 6, 2, 4, dtype=torch.float64), torch.randn(4, 1, 4, dtype=torch.float64)
    whole = short_conv(x, weight, chunk_starts=(0, 4))
    later = short_conv(x[:, 4:], weight, before=x[:, 1:4])
    assert relative(later, whole[:, 4:]) < 1e-12


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="before is"):
        short_conv(torch.zeros(1, 2, 3, 4), torch.zeros(4, 1, 4), before=torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match="taps"):
        short_conv(torch.zeros(1, 2, 3, 4), torch.zeros(4, 4))
