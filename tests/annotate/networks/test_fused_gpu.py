"""Each Triton kernel against its plain twin; needs CUDA."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from theodolite.annotate.networks import fused

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
        expected = fused.add_norm_reference(x, pending, norm, torch.float32)
        found = fused.add_norm(x.clone(), pending, norm, torch.float32)
    assert error(found[0], expected[0]) < 1e-6
    assert error(found[1], expected[1]) < 1e-6


@pytest.mark.parametrize("norm", [False, True])
def test_rotate_qk(norm: bool):
    q_norm, k_norm = (torch.nn.LayerNorm(64, device="cuda") for _ in range(2))
    for layer in (q_norm, k_norm):
        layer.weight.data.uniform_(0.5, 2)
        layer.bias.data.normal_()
    table = fused.rope_table(3, 5, 5, torch.bfloat16, torch.device("cuda"))
    qkv = torch.randn(2, 60, 3, 4, 64, device="cuda").bfloat16()
    norms = (q_norm, k_norm) if norm else (None, None)
    with torch.no_grad():
        found, expected = fused.rotate_qk(qkv, table, *norms), fused.rotate_qk_reference(qkv, table, *norms)
    assert error(found[0], expected[0]) < 2e-3  # one bfloat16 rounding may fall the other way
    assert error(found[1], expected[1]) < 2e-3


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("pad", [False, True])
def test_norm_relu_pad(groups: int, pad: bool):
    x = torch.randn(3, 64, 11, 17, device="cuda") * 3 + 1
    weight, bias, before = (torch.randn(64, device="cuda") for _ in range(3))
    keywords = {"relu": True, "pad": pad, "before": before}
    found = fused.norm_relu_pad(x, groups, weight, bias, **keywords)
    assert error(found, fused.norm_relu_pad_reference(x, groups, weight, bias, **keywords)) < 1e-5


@pytest.mark.parametrize("images", [0, 1, 3])
def test_add(images: int):
    x = torch.randn(3, 32, 9, 13, device="cuda")
    other = torch.randn(images, 32, 9, 13, device="cuda") if images else None
    bias = torch.randn(32, device="cuda")
    expected = x + bias[:, None, None] + (0 if other is None else other)
    assert error(fused.add(x.clone(), other, bias), expected) < 1e-6


@pytest.mark.parametrize(("batch", "tokens"), [(1, 8192), (1, 9001), (2, 8333)])
def test_bounded_attention(batch: int, tokens: int):
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the kernel is used on Hopper only")
    qkv = torch.randn(batch, tokens, 3, 2, 64, device="cuda")
    q, k = (F.layer_norm(qkv[:, :, i], (64,)).bfloat16() for i in (0, 1))
    v = qkv.bfloat16()[:, :, 2]
    found = fused.bounded_attention(q, k, v, 8.0)
    assert found is not None
    expected = F.scaled_dot_product_attention(*(t.float().transpose(1, 2) for t in (q, k, v)))
    assert error(found, expected.transpose(1, 2).flatten(2)) < 6e-3  # bfloat16 weights and values
    assert fused.bounded_attention(q, k, v, 41.0) is None
    assert fused.bounded_attention(q, k, v, None) is None
