"""Attention by flash-attn-4: when it is chosen, what it is refused for, and its answers on a GPU that has it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from theodolite.kernels import flash4, frame_attention
from theodolite.kernels.attention import FLASH4_QUERIES, chosen_backend

from .cases import relative

GPU = torch.device("cuda")
BF16 = torch.bfloat16


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with a Hopper GPU and the package, as far as questions go: nothing runs there."""
    machine = SimpleNamespace(capability=(9, 0), version="4.0.0", forward=(lambda *_, **__: (), None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: machine.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(flash4, "flash4_version", lambda: machine.version)
    monkeypatch.setattr("theodolite.kernels.attention.flash4_version", lambda: machine.version)
    monkeypatch.setattr(flash4, "_forward", lambda: machine.forward)
    return machine


def test_auto_takes_it_for_long_chunks_on_hopper_where_it_is_installed(hopper):
    assert chosen_backend("auto", GPU, BF16, 112, FLASH4_QUERIES) == "flash4"
    assert chosen_backend("auto", GPU, torch.float16, 104, 2 * FLASH4_QUERIES) == "flash4"
    assert chosen_backend("auto", GPU, BF16, 112, FLASH4_QUERIES - 1) == "auto"
    assert chosen_backend("auto", GPU, BF16, 112, FLASH4_QUERIES, trains=True) == "auto"
    assert chosen_backend("auto", GPU, torch.float32, 112, FLASH4_QUERIES) == "auto"
    assert (
        chosen_backend("auto", GPU, BF16, 64, FLASH4_QUERIES) == "auto"
    )  # not measured: the model has no such heads
    assert chosen_backend("auto", torch.device("cpu"), BF16, 112, FLASH4_QUERIES) == "auto"
    assert chosen_backend("cudnn", GPU, BF16, 112, FLASH4_QUERIES) == "cudnn"
    hopper.capability = (8, 0)
    assert chosen_backend("auto", GPU, BF16, 112, FLASH4_QUERIES) == "auto"
    hopper.capability, hopper.version = (9, 0), None
    assert chosen_backend("auto", GPU, BF16, 112, FLASH4_QUERIES) == "auto"


def test_a_package_that_does_not_load_is_said_and_not_used(hopper):
    hopper.forward = (None, "flash-attn-4 4.0.0 does not load (ImportError: libcuda)")
    with pytest.warns(UserWarning, match=r"does not load \(ImportError: libcuda\); cuDNN or flash attends"):
        assert chosen_backend("auto", GPU, BF16, 112, FLASH4_QUERIES) == "auto"


@pytest.mark.parametrize(
    ("change", "asked", "said"),
    [
        ({}, ("cpu", BF16, 112), "needs an NVIDIA GPU, not cpu"),
        ({"capability": (10, 0)}, (GPU, BF16, 112), "NVIDIA Test is none"),
        ({}, (GPU, torch.float32, 112), "not torch.float32"),
        ({}, (GPU, BF16, 136), "128 channels, not 136"),
        ({}, (GPU, BF16, 100), "128 channels, not 100"),
        ({"forward": (None, "a reason")}, (GPU, BF16, 112), "a reason"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(hopper, change, asked, said):
    vars(hopper).update(change)
    assert said in (flash4.flash4_refusal(*asked) or "")
    assert (
        flash4.flash4_refusal(GPU, BF16) == change.get("forward", (None, None))[1] or "capability" in change
    )


def test_a_missing_or_another_package_names_what_to_install(monkeypatch):
    monkeypatch.setattr(flash4, "flash4_version", lambda: None)
    assert flash4._forward.__wrapped__() == (
        None,
        "attention by flash4 needs flash-attn-4: pip install theodolite[flash4]",
    )
    monkeypatch.setattr(flash4, "flash4_version", lambda: "4.1")
    module = SimpleNamespace(_flash_attn_fwd=lambda q, k, v, softmax_scale=None, tile_mn=None: (q, None))
    monkeypatch.setattr(flash4.importlib, "import_module", lambda name: module)
    forward, reason = flash4._forward.__wrapped__()
    assert forward is None
    assert reason is not None
    assert "4.1 does not know intra_wg_overlap, mma_pv_is_rs" in reason


def test_explicit_choice_without_a_gpu_is_refused():
    x = torch.zeros(1, 1, 2, 3, 16)
    with pytest.raises(ValueError, match="flash4 needs an NVIDIA GPU, not cpu"):
        frame_attention(x, x, x, backend="flash4")


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 104, 112, 128])
@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"chunk_starts": (0, 2, 3), "scale": 0.2},
        {"chunk_starts": (0, 1, 2, 4), "window_chunks": 1, "sink_chunks": 1},
    ],
    ids=str,
)
def test_equals_the_reference(kw: dict, size: int):
    if refusal := flash4.flash4_refusal("cuda", BF16, size):
        pytest.skip(refusal)
    torch.manual_seed(0)
    # As the network has them: heads of one token beside each other, and a slice of a wider tensor.
    q, k, v = (
        torch.randn(2, 6, 77, 3, 3 * size, device="cuda").to(BF16).permute(0, 3, 1, 2, 4).chunk(3, dim=-1)
    )
    exact = frame_attention(*(x.double() for x in (q, k, v)), backend="reference", **kw)
    out = frame_attention(q, k, v, backend="flash4", **kw)
    assert out.dtype == BF16
    assert out.shape == q.shape
    assert relative(out, exact) < 5e-3  # a bfloat16 output alone is 1.7e-3 off
    earlier = [(k[:, :, :2].flatten(2, 3), v[:, :, :2].flatten(2, 3))]
    ahead = frame_attention(q, k, v, backend="flash4", before=earlier, **kw)
    truth = frame_attention(
        *(x.double() for x in (q, k, v)),
        backend="reference",
        before=[(a.double(), b.double()) for a, b in earlier],
        **kw,
    )
    assert relative(ahead, truth) < 5e-3
    with pytest.raises(ValueError, match="is for inference"):
        frame_attention(q.detach().requires_grad_(), k, v, backend="flash4", **kw)


@pytest.mark.gpu
def test_long_clips_take_it_by_themselves_and_agree_with_cudnn():
    if refusal := flash4.flash4_refusal("cuda", BF16, 112):
        pytest.skip(refusal)
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 1, 2, 20, 880, 112, device="cuda").to(BF16)
    assert chosen_backend("auto", q.device, BF16, 112, 20 * 880) == "flash4"
    with torch.no_grad():
        out, other = frame_attention(q, k, v), frame_attention(q, k, v, backend="cudnn")
        assert relative(out, frame_attention(q, k, v, backend="flash4")) == 0
    assert relative(out, other) < 5e-3
