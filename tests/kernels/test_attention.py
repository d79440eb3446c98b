"""Softmax attention by chunks against one softmax with the mask written out."""

from __future__ import annotations

import pytest
import torch
from theodolite.kernels import frame_attention, visible_frames
from theodolite.kernels.attention import AttentionBackend, _resized

from .cases import relative

VARIANTS = [
    {},
    {"chunk_starts": (0, 2, 3)},
    {"chunk_starts": (0, 1, 2, 4), "window_chunks": 1},
    {"chunk_starts": (0, 1, 2, 4), "window_chunks": 1, "sink_chunks": 1},
    {"chunk_starts": (0, 1, 2, 4), "window_chunks": 0, "sink_chunks": 2, "scale": 0.3},
]


@pytest.mark.parametrize("kw", VARIANTS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
def test_chunks_equal_the_written_out_mask(kw: dict, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 5, 16).to(device, dtype).requires_grad_() for _ in range(3))
    fast = frame_attention(q, k, v, **kw)
    double = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = frame_attention(*double, backend="reference", **kw)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-2
    assert relative(fast, exact) < tolerance
    seed = torch.randn(exact.shape).to(device, dtype)
    grads = torch.autograd.grad(fast, (q, k, v), seed)
    truth = torch.autograd.grad(exact, double, seed.double())
    for grad, expected in zip(grads, truth, strict=True):
        assert relative(grad, expected) < tolerance


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_queries_of_some_frames_read_what_they_read_in_the_whole_clip(backend: AttentionBackend) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 6, 5, 16, dtype=torch.float64)
    whole = frame_attention(q, k, v, chunk_starts=(0, 2, 4))
    part = frame_attention(q[:, :, 3:5], k, v, chunk_starts=(0, 2, 4), first_frame=3, backend=backend)
    assert relative(part, whole[:, :, 3:5]) < 1e-12
    with pytest.raises(ValueError, match="from frame 5 on"):
        frame_attention(q[:, :, 3:5], k, v, first_frame=5)


def test_sink_does_not_count_twice() -> None:
    plan = visible_frames(10, (0, 4, 7), window_chunks=1, sink_chunks=1)
    assert plan == [((0, 4), [(0, 4)]), ((4, 7), [(0, 7)]), ((7, 10), [(0, 4), (4, 10)])]


def test_wrong_shapes_are_named() -> None:
    x = torch.zeros(1, 1, 2, 3, 4)
    with pytest.raises(ValueError, match="three equal"):
        frame_attention(x, x[:, :, :1], x)


@pytest.mark.parametrize("kw", VARIANTS, ids=str)
def test_heads_that_are_filled_up_give_the_same(kw: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU for long clips: the scale stays that of the true head size, and the output has it again."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 6, 5, 72, dtype=torch.float64)
    expected = frame_attention(q, k, v, **kw)
    monkeypatch.setattr("theodolite.kernels.attention._pads", lambda *args: True)
    found = frame_attention(q, k, v, **kw)
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("size", [72, 70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_heads_are_filled_up_and_cut_whatever_their_place_in_memory(size: int, dtype: torch.dtype) -> None:
    """A third of a wider tensor, as queries, keys and values are; sizes that eight bytes divide, and one that not."""
    packed = torch.randn(1, 2, 5, 3 * 2 * size).to(dtype)
    for part in packed.chunk(3, dim=-1):
        x = part.unflatten(-1, (2, size)).permute(0, 3, 1, 2, 4)
        filled = _resized(x, 128)
        assert torch.equal(filled[..., :size], x)
        assert not filled[..., size:].any()
        cut = _resized(filled, size)
        assert torch.equal(cut, x)
        assert cut.permute(0, 2, 3, 1, 4).is_contiguous()
