"""Who is on the device when: parts work the same under every policy, and leave no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from theodolite.model import residence
from theodolite.model.residence import BlockStream, Offload, Residence
from torch import Tensor, nn

from ..typed import wrong

POLICIES = ("none", "idle", "blocks")


class Part(nn.Module):
    """Blocks of different sizes, a shared weight and a buffer."""

    def __init__(self, blocks: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("offset", torch.randn(4))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 3 + i), nn.Linear(3 + i, 4)) for i in range(blocks)
        )

    def streamed_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.first(x)) + self.offset
        for block in self.blocks:
            x = x + block(x)
        return x


def identities(module: nn.Module) -> dict[str, int]:
    return {n: id(v) for n, v in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("resident_bytes", [0, 2000, 10**6])
@pytest.mark.parametrize("blocks", [1, 2, 5, 6])
def test_same_result_and_no_trace(policy: Any, resident_bytes: int, blocks: int) -> None:
    part, x = Part(blocks), torch.randn(2, 4)
    expected, before = part(x), identities(part)
    lent = Residence(policy, "cpu", resident_bytes=resident_bytes)
    for _ in range(2):
        with lent.on(part), lent.on(part):
            assert all(torch.equal(part(x), expected) for _ in range(3))
    lent.release()
    assert identities(part) == before
    assert torch.equal(part(x), expected)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in part.modules())


def test_several_parts_together() -> None:
    one, other, x = Part(), Part(2), torch.randn(2, 4)
    expected = other(one(x))
    lent = Residence("blocks", "cpu")
    with lent.on(one, other):
        for _ in range(3):
            assert torch.equal(other(one(x)), expected)


def test_a_call_that_ends_in_the_middle_does_no_harm() -> None:
    part, x = Part(5), torch.randn(2, 4)
    expected = part(x)
    lent = Residence("blocks", "cpu")
    with lent.on(part):
        for stop in range(5):
            hook = part.blocks[stop].register_forward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                part(x)
            hook.remove()
            assert torch.equal(part(x), expected)
    assert torch.equal(part(x), expected)


def test_blocks_hold_two_and_those_that_stay() -> None:
    blocks = [nn.Linear(64, 64) for _ in range(8)]
    size = 64 * 64 * 4 + 256
    assert BlockStream(blocks, "cpu").device_bytes == 2 * size
    assert BlockStream(blocks, "cpu", resident_bytes=3 * size).device_bytes == 5 * size
    assert BlockStream(blocks, "cpu", resident_bytes=100 * size).device_bytes == 8 * size


def test_the_device_is_free_after_the_work() -> None:
    part = Part()
    lent = Residence("blocks", "cpu")
    with lent.on(part):
        part(torch.randn(2, 4))
        packed = lent._streams[part]._packed
        assert any(p._ready for p in packed)
    assert not any(p._ready for p in packed)
    assert not lent._streams[part]._slots


def test_weights_that_come_often_are_pinned_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(residence, "_has_room", lambda num_bytes: True)
    part, x = Part(4), torch.randn(2, 4)
    expected = part(x)
    stream = BlockStream(part.streamed_blocks(), "cpu")
    stream._pin = True  # as on a GPU
    stream.attach()
    for _ in range(residence._PIN_AFTER + 3):
        assert torch.equal(part(x), expected)
    assert all(p.is_pinned for p in stream._packed)
    stream.detach()
    assert torch.equal(part(x), expected)
    stream.close()
    assert not any(p.is_pinned for p in stream._packed)
    assert torch.equal(part(x), expected)


def test_what_stays_may_change_between_videos() -> None:
    part, x = Part(5), torch.randn(2, 4)
    expected, before = part(x), identities(part)
    lent = Residence("blocks", "cpu")
    for num_bytes in (0, 2000, 2000, 10**6, 0):
        lent.resident_bytes = num_bytes
        with lent.on(part):
            assert torch.equal(part(x), expected)
        assert lent.resident_bytes == num_bytes
    assert identities(part) == before


def test_a_part_that_cannot_come_is_at_home_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device may be full: then nothing is half there, and the part can be asked for again."""
    part, x = Part(4), torch.randn(2, 4)
    expected, before = part(x), identities(part)
    cases: list[tuple[Offload, str]] = [("blocks", "attach"), ("idle", "__init__")]
    for policy, broken in cases:
        lent = Residence(policy, "cpu")
        with monkeypatch.context() as full:
            kind = BlockStream if policy == "blocks" else residence._Lent
            full.setattr(kind, broken, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError), lent.on(part):
                pytest.fail("it came")
        assert identities(part) == before
        with lent.on(part):
            assert torch.equal(part(x), expected)
        assert identities(part) == before


def test_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only caches files counts as free, and a container's limit holds."""
    monkeypatch.setattr(residence, "_free_memory", lambda: 1000)
    assert residence._has_room(799)
    assert not residence._has_room(801)
    monkeypatch.setattr(residence, "_free_memory", lambda: None)
    assert not residence._has_room(1)
    monkeypatch.undo()
    found = residence._free_memory()
    assert found is None or found > 10**6


def test_bad_policies() -> None:
    with pytest.raises(ValueError, match="use none, idle, blocks"):
        Residence(wrong("all"))
    with pytest.raises(ValueError, match="no blocks"):
        BlockStream([], "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pin", [True, False])
def test_on_a_gpu(policy: Any, pin: bool) -> None:
    part, x = Part(6), torch.randn(2, 4)
    expected, before = part(x), identities(part)
    lent = Residence(policy, "cuda", pin=pin)
    for _ in range(3):
        with lent.on(part):
            for _ in range(20):
                torch.testing.assert_close(part(x.cuda()).cpu(), expected)
        # What was fetched last must not reach memory that others have taken meanwhile.
        taken = [torch.zeros(1024, device="cuda") for _ in range(64)]
        torch.cuda.synchronize()
        assert not any(bool(t.any()) for t in taken)
    lent.release()
    assert torch.equal(part(x), expected)
    if not pin or policy != "blocks":
        assert identities(part) == before
