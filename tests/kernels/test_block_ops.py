"""Operators between a block's matrix products: kernels against their twins, and twins against torch's own layers."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from theodolite.kernels import (
    add_modulated_norm,
    gated_add,
    gated_shift_add,
    glu_conv,
    modulated_norm,
    norm_rotate,
    rope_tables,
    world_to_ray,
)
from theodolite.kernels.frame_gdn.reference import ray_matrices
from torch import nn

from ..typed import known, wrong
from .cases import relative

with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="pip install theodolite[kernels]"
)
kinds = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-2


def both(operator, *inputs, device: torch.device, dtype: torch.dtype, **options) -> float:
    """Largest distance of the kernel's output and gradients from the float64 twin's on the same rounded inputs."""
    given = [None if x is None else x.to(device, dtype).requires_grad_() for x in inputs]
    exact = [None if x is None else x.detach().double().requires_grad_() for x in given]
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    fast = operator(*given, backend="triton", **options)
    truth = operator(*exact, backend="reference", **wide)
    with torch.no_grad():
        assert torch.equal(operator(*given, backend="triton", **options), fast)
    seed = torch.randn(truth.shape).to(device, dtype)
    grads = torch.autograd.grad(fast, [x for x in given if x is not None], seed)
    right = torch.autograd.grad(truth, [x for x in exact if x is not None], seed.double())
    assert all(g.dtype == dtype for g in grads)
    errors = [relative(fast, truth), *(relative(a, b) for a, b in zip(grads, right, strict=True))]
    return float(torch.tensor(errors).max())  # NaN where one is NaN, which Python's maximum may pass over


@pytest.mark.slow
@with_triton
@kinds
@pytest.mark.parametrize("frames", [1, 3])
def test_modulated_norm(frames: int, dtype: torch.dtype, device: torch.device) -> None:
    x = 3 + 2 * torch.randn(2, 3, 5, 48)
    table = torch.randn(2, frames, 2, 48)
    found = both(modulated_norm, x, table[:, :, 0], table[:, :, 1], device=device, dtype=dtype)
    assert found < tolerance(dtype)


@pytest.mark.slow
@with_triton
@kinds
@pytest.mark.parametrize("extra", [False, True])
def test_gated_add(extra: bool, dtype: torch.dtype, device: torch.device) -> None:
    x, y, z = torch.randn(3, 2, 3, 5, 48)
    found = both(gated_add, x, y, torch.randn(2, 3, 48), z if extra else None, device=device, dtype=dtype)
    assert found < tolerance(dtype)


@with_triton
@kinds
def test_sum_and_norm_in_one_pass(dtype: torch.dtype, device: torch.device) -> None:
    x, y = (torch.randn(2, 3, 5, 48).to(device, dtype) for _ in range(2))
    shift, scale = torch.randn(2, 2, 1, 48).to(device, dtype)
    total, normed = add_modulated_norm(x, y, shift, scale, backend="triton")
    assert torch.equal(total, x + y)
    exact = modulated_norm(total.double(), shift.double(), scale.double(), backend="reference")
    assert relative(normed, exact) < tolerance(dtype)
    twin = add_modulated_norm(x, y.requires_grad_(), shift, scale, backend="triton")
    assert relative(twin[1], exact) < tolerance(dtype)
    assert twin[1].requires_grad
    with pytest.raises(ValueError, match="y is"):
        add_modulated_norm(x, y[:1], shift, scale)


@with_triton
@kinds
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("given", [False, True])
def test_gated_shift_add(frames: int, given: bool, dtype: torch.dtype, device: torch.device) -> None:
    """Against the convolution over time itself; with a frame before the clip and a chunk that begins inside."""
    x, y = torch.randn(2, 2, frames, 5, 16)
    weight, before = torch.randn(16, 16, 3, 1), torch.randn(2, 1, 5, 16)
    gate, inner = torch.randn(2, frames, 16), torch.ones(frames, 1, 1)
    inner[-1] = 0 if given else 1
    taps = weight.squeeze(-1).permute(2, 0, 1).flatten(0, 1)
    first = before @ taps[:16].T if given else None
    tensors = (x, y, y @ taps.T, gate, first, inner if given else None)
    x_, y_, z_, gate_, first_, inner_ = (wrong(t if t is None else t.to(device, dtype)) for t in tensors)
    found = gated_shift_add(x_, y_, z_, gate_, first=first_, inner=inner_, backend="triton")
    padded = torch.cat([before if given else torch.zeros_like(before), y, torch.zeros_like(before)], 1)
    moved = padded[:, :-2] @ taps[:16].T + y @ taps[16:32].T
    moved[:, :-1] += (y * inner)[:, 1:] @ taps[32:].T
    assert relative(found, x + gate[:, :, None] * (y + moved)) < tolerance(dtype)
    twin = gated_shift_add(*tensors[:4], first=first, inner=tensors[5], backend="reference")
    assert relative(twin, x + gate[:, :, None] * (y + moved)) < 1e-5


@pytest.mark.slow
@with_triton
@kinds
@pytest.mark.parametrize(("height", "width", "hidden"), [(5, 3, 6), (1, 1, 70)])
def test_glu_conv(height: int, width: int, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
    """Programs take four rows and 128 channels: a second one of each is not full."""
    x = torch.randn(1, 2, height * width, 2 * hidden)
    weight, bias = torch.randn(2 * hidden, 1, 3, 3), torch.randn(2 * hidden)
    found = both(glu_conv, x, weight, bias, device=device, dtype=dtype, height=height, width=width)
    assert found < tolerance(dtype)


@pytest.mark.slow
@with_triton
@kinds
@pytest.mark.parametrize("rays", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_norm_rotate(rays: bool, norm: bool, dtype: torch.dtype, device: torch.device) -> None:
    b, t, height, width, heads, size = 2, 2, 1, 3, 3, 24  # backward a second program, half full
    x = torch.randn(b, t, height * width, 3 * heads * size)[..., heads * size : 2 * heads * size]
    rope = rope_tables(t, height, width, size, half=rays).float().to(device)
    matrix = None
    if rays:
        poses = torch.eye(4).repeat(b, t, 1, 1)
        poses[..., :3, 3] = torch.randn(b, t, 3)
        intrinsics = torch.tensor([2.0, 2.0, 1.0, 1.0]).repeat(b, t, 1)
        matrix = ray_matrices(world_to_ray(poses, intrinsics, height, width))[1].to(device)
    weight = 1 + torch.randn(heads * size) if norm else None
    found = both(
        norm_rotate,
        x,
        weight,
        device=device,
        dtype=dtype,
        rope=rope,
        heads=heads,
        matrix=matrix,
        inverse_rope=rays,
    )
    assert found < tolerance(dtype)


def test_twin_of_the_convolution_is_torchs_own() -> None:
    conv = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    x = torch.randn(2, 1, 12, 12)
    picture = nn.functional.silu(x[:, 0].transpose(1, 2).unflatten(-1, (3, 4)))
    value, gate = conv(picture).chunk(2, dim=1)
    expected = (value * nn.functional.silu(gate)).flatten(2).transpose(1, 2)[:, None]
    assert relative(glu_conv(x, conv.weight, known(conv.bias), height=3, width=4), expected) < 1e-6


@pytest.mark.slow
@with_triton
def test_gradients_come_in_the_type_of_each_input(device: torch.device) -> None:
    """Modulation in float32 beside tokens in another type, one row for all frames, and tokens that are a view."""
    x = torch.randn(2, 3, 5, 96, device=device)[..., 48:].requires_grad_()
    table = torch.randn(2, 1, 2, 48, device=device, requires_grad=True)
    modulated_norm(x, table[:, :, 0], table[:, :, 1], backend="triton").square().sum().backward()
    twin = x.detach().double().requires_grad_(), table.detach().double().requires_grad_()
    out = modulated_norm(twin[0], twin[1][:, :, 0], twin[1][:, :, 1], backend="reference")
    out.square().sum().backward()
    assert relative(known(table.grad), known(twin[1].grad)) < 1e-5


@pytest.mark.slow
@with_triton
def test_only_what_is_asked_for_gets_a_gradient(device: torch.device) -> None:
    x, y = torch.randn(2, 1, 2, 3, 8, device=device)
    gate = torch.randn(1, 2, 8, device=device, requires_grad=True)
    gated_add(x, y, gate, backend="triton").sum().backward()
    assert torch.allclose(known(gate.grad), y.sum(dim=2), atol=1e-5)
    weight = torch.randn(6, 1, 3, 3, device=device, requires_grad=True)
    hidden = torch.randn(1, 1, 4, 6, device=device)
    glu_conv(
        hidden, weight, torch.zeros(6, device=device), height=2, width=2, backend="triton"
    ).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: modulated_norm(torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)), "shift"),
        (lambda: modulated_norm(torch.zeros(2, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)), "tokens"),
        (lambda: gated_add(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(1, 1, 4)), "y is"),
        (lambda: glu_conv(torch.zeros(1, 1, 6, 4), torch.zeros(4, 1, 3, 3), torch.zeros(4), height=2, width=2), "x is"),
        (lambda: glu_conv(torch.zeros(1, 1, 6, 4), torch.zeros(4, 3, 3), torch.zeros(4), height=2, width=3), "weight"),
        (lambda: norm_rotate(torch.zeros(1, 1, 6, 16), None, torch.zeros(2, 1, 6, 4), heads=3), "heads"),
        (lambda: norm_rotate(torch.zeros(1, 1, 6, 16), None, torch.zeros(2, 1, 5, 4), heads=2), "rope"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()
