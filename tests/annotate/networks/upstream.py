"""Upstream networks as oracles, truncated in depth and filled with the weights of ours.

The environment variable THEODOLITE_UPSTREAM names a folder with the packages `pi3` (yyfz/Pi3), `moge`
(microsoft/MoGe) and `utils3d`; without it the tests that need them are skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from theodolite.annotate.networks.moge2 import MoGe2
from theodolite.annotate.networks.pi3x import Pi3X
from torch import nn


def require() -> None:
    """Skip unless upstream's code is at hand."""
    folder = os.environ.get("THEODOLITE_UPSTREAM")
    if not folder:
        pytest.skip("parity with upstream needs THEODOLITE_UPSTREAM=<folder with pi3, moge, utils3d>")
    if folder not in sys.path:
        sys.path.insert(0, folder)


@contextmanager
def on_meta() -> Iterator[None]:
    """Build without memory; upstream reads values of one `linspace` while it builds, so that stays on the CPU."""
    linspace = torch.linspace
    torch.linspace = lambda *args, **kwargs: linspace(*args, **(kwargs | {"device": "cpu"}))
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.linspace = linspace


def pi3x(ours: Pi3X | None) -> Any:
    """Upstream's Pi3X: on the meta device at full size, or cut to the depth of `ours` with its weights."""
    require()
    # brought by whoever wants it
    from pi3.models.pi3x import Pi3X as Upstream  # pyright: ignore[reportMissingImports]

    with on_meta():
        network = Upstream()
    if ours is None:
        return network
    size = ours.size
    for encoder in (network.encoder, network.depth_encoder):
        encoder.blocks = encoder.blocks[: size.encoder_depth]
    network.decoder = network.decoder[: size.decoder_depth]
    network.pose_inject_blk = network.pose_inject_blk[: len(ours.pose_inject_blk)]
    for name in ("point", "camera", "conf", "metric"):
        decoder = getattr(network, f"{name}_decoder")
        decoder.blocks = decoder.blocks[: size.head_depth]
    network.to_empty(device="cpu")
    network.load_state_dict(ours.state_dict(), strict=True)
    return network.eval()


def moge2(ours: MoGe2) -> Any:
    """Upstream's MoGe-2 with the sizes and weights of `ours`, depth cut."""
    require()
    # brought by whoever wants it
    from moge.model.v2 import MoGeModel  # pyright: ignore[reportMissingImports]

    size = ours.size
    names = {1024: "dinov2_vitl14", 768: "dinov2_vitb14", 384: "dinov2_vits14"}

    def stack(s: Any) -> dict[str, Any]:
        return {
            "dim_in": list(s.dim_in),
            "dim_res_blocks": list(s.dim_res_blocks),
            "dim_out": list(s.dim_out),
            "num_res_blocks": list(s.num_res_blocks),
            "resamplers": ["conv_transpose"] * 3 + ["bilinear"],
            "res_block_in_norm": "none",
            "res_block_hidden_norm": "none",
        }

    with on_meta():
        network = MoGeModel(
            encoder={
                "backbone": names[size.width],
                "intermediate_layers": list(size.layers),
                "dim_out": size.width,
            },
            neck=stack(size.neck),
            **{name: stack(s) for name, s in size.heads},
            scale_head={"dims": list(size.scale_dims)},
            remap_output="exp",
            num_tokens_range=list(size.num_tokens_range),
        )
    backbone = network.encoder.backbone
    if len(backbone.blocks) != size.depth:
        backbone.blocks = backbone.blocks[: size.depth]
    if ours.neck.input_blocks[0].weight.is_meta:
        return network
    network.to_empty(device="cpu")
    network.load_state_dict(ours.state_dict(), strict=True)
    return network.eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected|| in float64; both must be finite."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert bool(found.isfinite().all())
    assert bool(expected.isfinite().all())
    a, b = found.double(), expected.double()
    return float((a - b).norm() / b.norm())


def layout(network: nn.Module) -> SimpleNamespace:
    """Names with shapes, number of values and of tensors of a state dict."""
    state = network.state_dict()
    return SimpleNamespace(
        shapes={k: tuple(v.shape) for k, v in state.items()},
        num_values=sum(p.numel() for p in network.parameters()),
        num_tensors=len(state),
    )
