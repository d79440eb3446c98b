"""Attention and products in e4m3: kernels against twins, twins against what they round, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from theodolite.kernels import frame_attention, modulated_norm
from theodolite.kernels.fp8 import flash3
from theodolite.kernels.fp8.attention import check_fp8_attention, fp8_attention, round_heads, scale_back
from theodolite.kernels.fp8.flash3 import has_flash3
from theodolite.kernels.fp8.product import (
    check_fp8_products,
    gated_add_rows,
    modulated_norm_rows,
    output_gate_rows,
    round_rows,
    scaled_product,
)
from theodolite.kernels.fp8.reference import (
    E4M3,
    fp8_attention_reference,
    round_heads_reference,
    round_rows_reference,
    round_to_e4m3,
)

from ..typed import known, wrong
from .cases import relative

ALL_NUMBERS = torch.arange(256, dtype=torch.uint8).view(E4M3).float()


def nearest(x: torch.Tensor) -> torch.Tensor:
    """Distance of each number from the nearest that e4m3 has."""
    numbers = ALL_NUMBERS[ALL_NUMBERS.isfinite()]
    return (x[..., None] - numbers).abs().amin(-1)


def test_rounding_takes_the_nearest_number_and_stays_within_range() -> None:
    x = torch.cat([torch.randn(500) * 10.0**p for p in (-4, -2, 0, 2)]).clamp(-448, 448)
    assert torch.equal((round_to_e4m3(x).float() - x).abs(), nearest(x))
    assert round_to_e4m3(torch.tensor([1e9, -1e9])).tolist() == [448.0, -448.0]


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_kernels_round_heads_as_the_twin(centre: bool, per_head: bool, device: torch.device) -> None:
    """Tokens before heads in memory, fewer channels than a tile, more tokens than a program takes."""
    torch.manual_seed(0)
    x = (torch.randn(270, 2, 24, device=device) * torch.tensor([[1.0], [30.0]], device=device) + 1).transpose(
        0, 1
    )
    found = round_heads(x, centre=centre, per_head=per_head, triton=True)
    twin = round_heads_reference(x, centre=centre, per_head=per_head)
    assert torch.allclose(found.mean[:, :24], twin.mean, atol=1e-5)
    assert torch.allclose(found.scale, twin.scale, rtol=1e-5)
    assert (
        relative(found.values[..., :24].float(), twin.values.float()) < 2e-3
    )  # sums in another order, a step apart
    assert not found.values[..., 24:].float().any()
    back = torch.empty(270, 2, 24, device=device).transpose(0, 1)
    scale_back(found.values, found, found, found, out=back, triton=True)
    plain = torch.empty_like(back)
    scale_back(
        found.values[..., :24],
        found._replace(mean=found.mean[:, :24]),
        found,
        found,
        out=plain,
        triton=False,
    )
    assert relative(back, plain) < 1e-6
    assert relative(back, x) < 0.04


@pytest.mark.triton
def test_kernel_rounds_rows_as_the_twin(device: torch.device) -> None:
    x = torch.randn(2, 7, 100, device=device) * torch.logspace(-6, 4, 100, device=device)
    x[0, 0] = 0
    x[1, 2, 5] = float("nan")
    x[1, 3, 5] = float("inf")
    found, twin = round_rows(x, backend="triton"), round_rows_reference(x)
    good = torch.ones(2, 7, dtype=torch.bool)
    good[1, 2] = good[1, 3] = False
    assert torch.equal(found.values[good].float(), twin.values[good].float())
    assert torch.allclose(found.scale[good], twin.scale[good], rtol=1e-6)
    assert found.scale[0, 0] == 1
    assert found.scale[1, 2].isnan()
    assert not (found.values[1, 3].float() * found.scale[1, 3]).isfinite().any()


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("keep", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_norm_and_gate_round_their_rows_as_if_afterwards(keep: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    x, other, gate = torch.randn(3, 2, 3, 11, 48, device=device)
    table = torch.randn(2, 1, 2, 48, device=device)
    shift, scale = table.unbind(2)
    added = other if keep else None
    total, kept, found = modulated_norm_rows(x, shift, scale, keep=keep, added=added, backend="triton")
    exact = modulated_norm(x + other if keep else x, shift, scale, backend="reference")
    assert torch.equal(total, x + other if keep else x)
    assert relative(found.values.float() * found.scale, exact) < 0.04
    twin = round_rows(exact, backend="reference")
    assert relative(found.values.float() * found.scale, twin.values.float() * twin.scale) < 5e-3
    assert kept is None if not keep else relative(known(kept), exact) < 1e-5
    for extra in (None, other):
        kept, found = gated_add_rows(x, gate, shift, extra, backend="triton")
        exact, twin = gated_add_rows(x, gate, shift, extra, backend="reference")
        assert relative(kept, exact) < 1e-6
        assert relative(found.values.float() * found.scale, twin.values.float() * twin.scale) < 5e-3
    for camera in (None, other):
        found = output_gate_rows(x, camera, gate, backend="triton")
        twin = output_gate_rows(x, camera, gate, backend="reference")
        assert torch.allclose(found.scale, twin.scale, rtol=1e-5)
        assert relative(found.values.float() * found.scale, twin.values.float() * twin.scale) < 5e-3


def test_products_are_as_near_as_three_bits_allow_whatever_the_scale_of_a_row() -> None:
    torch.manual_seed(0)
    of_x, of_weight = torch.logspace(-5, 5, 50)[:, None], torch.logspace(-3, 3, 64)
    x, weight = torch.randn(2, 50, 256) * of_x, torch.randn(64, 256) * of_weight[:, None]
    bias = torch.randn(64)
    found = scaled_product(round_rows(x), round_rows(weight)) / of_x / of_weight
    assert 0.01 < relative(found, F.linear(x.double(), weight.double()) / of_x / of_weight) < 0.05
    assert torch.equal(
        scaled_product(round_rows(x), round_rows(weight), bias),
        scaled_product(round_rows(x), round_rows(weight)) + bias,
    )
    with pytest.raises(ValueError, match="agree"):
        scaled_product(round_rows(x), round_rows(weight[:, :32]))


def attention_inputs(shift: float = 0.0) -> list[torch.Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 160, 32)
    return [q, k + shift, v + shift]


def test_attention_is_near_exact_attention() -> None:
    q, k, v = attention_inputs()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert 0.01 < relative(fp8_attention(q, k, v), exact) < 0.08


def test_what_all_keys_or_all_values_share_is_not_rounded() -> None:
    """Without the means taken out, an offset of 20 drowns the differences between tokens in steps of e4m3."""
    q, k, v = attention_inputs()
    plain = fp8_attention(q, k, v)
    q, k, v = attention_inputs(20.0)
    assert relative(fp8_attention(q, k, v) - 20.0, plain) < 0.02


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    q, k, v = attention_inputs()
    loud = [torch.cat([x[:1], 100 * x[1:]]) for x in (q, k, v)]
    assert torch.equal(fp8_attention(*loud)[:1], fp8_attention(q, k, v)[:1])


def test_nan_reaches_the_output() -> None:
    for which in range(3):
        inputs = attention_inputs()
        inputs[which][0, 1, 5, 3] = float("nan")
        assert fp8_attention(*inputs)[0, 1].isnan().all()


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_starts": (0, 2, 3)},
        {"chunk_starts": (0, 1, 2, 4), "window_chunks": 1, "sink_chunks": 1},
        {"chunk_starts": (0, 1, 2, 4), "window_chunks": 0, "sink_chunks": 2, "scale": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("past", [0, 1, 2])
def test_chunks_read_what_they_read_in_other_precisions(options: dict[str, Any], past: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 6, 5, 16)
    before = [(k, v) for k, v in (torch.randn(2, 2, 3, 4 + i, 16) for i in range(past))]
    found = frame_attention(q, k, v, before=before, precision="fp8", **options)
    exact = frame_attention(q, k, v, before=before, backend="reference", **options)
    assert relative(found, exact) < 0.08


@pytest.fixture(params=["flash_attn_3", "cudnn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the libraries that attend in e4m3 on Hopper, where it is installed."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a Hopper GPU")
    if request.param == "cudnn":
        pytest.importorskip("cudnn", reason="pip install theodolite[fp8]")
        monkeypatch.setattr("theodolite.kernels.fp8.attention.has_flash3", lambda *_: False)
    elif not has_flash3("cuda", 112):
        pytest.skip("flash-attn-3 is not built here")
    return request.param


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [640, 1001])
def test_library_equals_the_twin(library: str, tokens: int, device: torch.device) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, tokens, 112, device=device).bfloat16() for _ in range(3))
    found = fp8_attention(q[None], k[None], v[None])[0]
    # Weights are rounded to three bits of mantissa, 2.5 % each, here and there under other running maxima: 3.1 % on an
    # H100 where each was rounded on its own.
    assert relative(found, fp8_attention_reference(q, k, v)) < 0.04


@pytest.mark.gpu
@pytest.mark.parametrize("size", [104, 112, 128])
def test_library_reads_chunks_and_earlier_tokens(library: str, size: int) -> None:
    """Against exact attention, as the twin above; keys and values with a mean, a loud head, NaN."""
    torch.manual_seed(0)
    loud = torch.tensor([1.0, 30.0, 1e-3], device="cuda")[:, None, None, None]
    q, k, v = torch.randn(3, 2, 3, 6, 70, size, device="cuda").bfloat16()
    k, v = k + 3, ((v + 1) * loud).bfloat16()
    before = [(k[:, :, 0], v[:, :, 0])]
    options: dict[str, Any] = {"chunk_starts": (0, 1, 2, 4), "window_chunks": 1, "sink_chunks": 1}
    found = frame_attention(q, k, v, before=before, precision="fp8", **options)
    exact = frame_attention(
        q.float(),
        k.float(),
        v.float(),
        before=[(a.float(), b.float()) for a, b in before],
        backend="reference",
        **options,
    )
    assert found.dtype == torch.bfloat16
    for head in range(3):
        assert relative(found[:, head], exact[:, head]) < 0.08
    v[1, 2, 3, 4, 5] = float("nan")
    found = frame_attention(q, k, v, precision="fp8")
    assert found[1, 2].isnan().all()
    assert found[0].isfinite().all()


def test_what_cannot_run_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1, 4, 136)
    with pytest.raises(ValueError, match="at most 128"):
        fp8_attention(x, x, x)
    x = torch.zeros(1, 1, 4, 16, requires_grad=True)
    with pytest.raises(ValueError, match="no backward"):
        fp8_attention(x, x, x)
    five = torch.zeros(1, 1, 2, 4, 16)
    with pytest.raises(ValueError, match="backend at auto"):
        frame_attention(five, five, five, precision="fp8", backend="flash")
    with pytest.raises(ValueError, match="precision 'fp4'"):
        frame_attention(five, five, five, precision=wrong("fp4"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some A100")
    with pytest.raises(ValueError, match=r"Some A100 has 8\.0: leave attention in bf16"):
        check_fp8_attention("cuda", 112)
    with pytest.raises(ValueError, match=r"Some A100: use bf16"):
        check_fp8_products("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("theodolite.kernels.fp8.attention.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install theodolite\[fp8\]"):
        check_fp8_attention("cuda", 112)


def test_flash_attn_3_that_does_not_load_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash3, "flash3_version", lambda: "3.0.0")
    monkeypatch.setattr(flash3.importlib, "import_module", broken)
    with pytest.raises(
        ValueError, match=r"flash_attn_3 3\.0\.0 does not load \(ImportError: undefined symbol\)"
    ):
        check_fp8_attention("cuda", 112)


def test_products_refuse_before_they_round(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not mps"):
        check_fp8_products("mps")
    with pytest.raises(ValueError, match="NVIDIA GPU, not mps"):
        check_fp8_attention("mps", 112)
