"""Each Triton kernel against its plain twin; needs CUDA."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from theodolite.annotate.networks.fused import op as fused
from theodolite.annotate.networks.fused.reference import (
    add_norm_reference,
    norm_relu_pad_reference,
    relu_product_reference,
    resize_pad_reference,
    rope_table,
    rotate_qk_reference,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("width", [384, 1024])
def test_add_norm(branch: bool, width: int):
    norm = torch.nn.LayerNorm(width, eps=1e-6, device="cuda")
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(2, 37, width, device="cuda")
    pending = (
        (torch.randn(2, 37, width, device="cuda").bfloat16(), torch.randn(width, device="cuda"))
        if branch
        else None
    )
    with torch.no_grad():
        expected = add_norm_reference(x, pending, norm, torch.float32)
        found = fused.add_norm(x.clone(), pending, norm, torch.float32)
    assert error(found[0], expected[0]) < 1e-6
    assert error(found[1], expected[1]) < 1e-6


@pytest.mark.parametrize("norm", [False, True])
def test_rotate_qk(norm: bool):
    q_norm, k_norm = (torch.nn.LayerNorm(64, device="cuda") for _ in range(2))
    for layer in (q_norm, k_norm):
        layer.weight.data.uniform_(0.5, 2)
        layer.bias.data.normal_()
    table = rope_table(3, 5, 5, torch.bfloat16, torch.device("cuda"))
    qkv = torch.randn(2, 60, 3, 4, 64, device="cuda").bfloat16()
    norms = (q_norm, k_norm) if norm else (None, None)
    with torch.no_grad():
        found = fused.rotate_qk(qkv, table, *norms, q_factor=0.3)
        expected = rotate_qk_reference(qkv, table, *norms, q_factor=0.3)
    assert error(found[0], expected[0]) < 2e-3  # one bfloat16 rounding may fall the other way
    assert error(found[1], expected[1]) < 2e-3


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("pad", [False, True])
def test_norm_relu_pad(groups: int, pad: bool):
    x = torch.randn(3, 64, 11, 17, device="cuda") * 3 + 1
    weight, bias, before = (torch.randn(64, device="cuda") for _ in range(3))
    keywords = {"relu": True, "pad": pad, "before": before}
    found = fused.norm_relu_pad(x, groups, weight, bias, **keywords)
    assert error(found, norm_relu_pad_reference(x, groups, weight, bias, **keywords)) < 1e-5


def test_resize_pad():
    x = torch.randn(3, 32, 16, 24, device="cuda")
    assert error(fused.resize_pad(x, 28, 42), resize_pad_reference(x, 28, 42)) < 1e-6
    assert error(fused.resize_pad(x.half(), 28, 42), resize_pad_reference(x, 28, 42)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_relu_product(dtype: torch.dtype):
    x, other = (torch.randn(n, 64, 11, 17, device="cuda", dtype=dtype) for n in (3, 1))
    bias, weight, out_bias = (torch.randn(*shape, device="cuda") for shape in ((64,), (3, 64), (3,)))
    with torch.no_grad():
        expected = relu_product_reference(x, other, bias, weight, out_bias)
    assert error(fused.relu_product(x, other, bias, weight, out_bias), expected) < 1e-6


@pytest.mark.parametrize("images", [0, 1, 3])
def test_add(images: int):
    x = torch.randn(3, 32, 9, 13, device="cuda")
    other = torch.randn(images, 32, 9, 13, device="cuda") if images else None
    bias = torch.randn(32, device="cuda")
    expected = x + bias[:, None, None] + (0 if other is None else other)
    assert error(fused.add(x.clone(), other, bias), expected) < 1e-6


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(B, L, H * 64) in float32 of (B, L, H, 64)."""
    q, k, v = (t.float().transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 8192), (1, 9001), (2, 8333), (3, 1301), (2, 65), (2, 40)])
@pytest.mark.parametrize(("dtype", "direct"), [("bfloat16", True), ("bfloat16", False), ("float16", False)])
def test_own_attention(batch: int, tokens: int, dtype: str, direct: bool):
    half = getattr(torch, dtype)
    qkv = torch.randn(batch, tokens, 3, 2, 64, device="cuda")
    if not fused.has_attention_kernel(qkv.to(half)):
        pytest.skip("the kernel is for Hopper with Triton 3.6 or later")
    q, k = (F.layer_norm(qkv[:, :, i], (64,)) for i in (0, 1))
    expected = exact_attention(*(t.to(half) for t in (q, k, qkv[:, :, 2])))
    factor = fused.DIRECT_FACTOR if direct else 1.0
    found = fused.own_attention((q * factor).to(half), k.to(half), qkv.to(half)[:, :, 2], direct=direct)
    bound = 6e-3 if half == torch.bfloat16 else 1e-3  # weights, values and the scaled q are rounded to half
    assert error(found, expected) < bound


def test_online_attention_takes_any_score():
    qkv = torch.randn(2, 700, 3, 2, 64, device="cuda").half()
    if not fused.has_attention_kernel(qkv):
        pytest.skip("the kernel is for Hopper with Triton 3.6 or later")
    q, k, v = (qkv * torch.tensor([30.0, 30.0, 1.0], device="cuda").half()[:, None, None]).unbind(2)
    expected = exact_attention(q, k, v)
    found = fused.own_attention(q, k, v, direct=False)
    assert error(found, expected) < 1e-3


def test_direct_attention_needs_a_bound_and_bfloat16():
    x = torch.empty(1, 1, 1, 64, device="cuda")
    assert not fused.takes_direct(x.bfloat16(), None)
    assert not fused.takes_direct(x.bfloat16(), 41.0)
    assert not fused.takes_direct(x.half(), 8.0)
    assert not fused.takes_direct(x, 8.0)
