"""Random weights of full size: made at once, of the released shapes."""

from __future__ import annotations

import pytest
import torch
from theodolite.model import stand_ins
from theodolite.model.network import WorldModel

from .cases import TINY


def test_weights_are_finite_and_of_the_right_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "_STRIP", 1000)
    with torch.device("meta"):
        model = WorldModel(TINY)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    filled = stand_ins.random_weights(model, "cpu", torch.bfloat16)
    assert {k: v.shape for k, v in filled.state_dict().items()} == shapes
    assert all(bool(v.isfinite().all()) for v in filled.state_dict().values())
    weight = filled.state_dict()["blocks.0.attn.qkv.weight"].float()
    assert weight.std() == pytest.approx(TINY.width**-0.5, rel=0.1)
    assert not any(p.requires_grad for p in filled.parameters())
