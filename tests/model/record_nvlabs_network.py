"""Record what the public NVlabs/Sana code makes of the tiny world model, as `nvlabs_sana_network.npz`.

    python -m theodolite.tests.model.record_nvlabs_network SANA OUT.npz

SANA: a checkout of the authors' fork with the plain-torch classes of the network (recorded from its branch
`feat/streaming-causal-vae`, 26 May 2026; einops beside torch and diffusers), float32, CPU. Three things are set
as NVlabs/Sana has them since July 2026: no cap behind the ray transform, softmax attention of a whole clip masked by
chunks, and a cache for the camera branch's short convolution. Softmax attention is not rounded to bfloat16.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from theodolite.model.config import chunk_ranges
from torch import Tensor, nn

from .cases import FRAMES, HEIGHT, TINY, WIDTH, filled, tiny_inputs
from .nvlabs_network import CAUSAL, STREAM_FRAMES, STREAM_STARTS, STREAMS

SCALE = 128**-0.5
SLOTS, KIND_SLOT = 10, 6
"""Things that a block remembers of a chunk; one of them says which kind of block it is."""


# --- making it importable -------------------------------------------------------------------------


class Registry:
    """mmcv's, as far as classes are looked up by name."""

    def __init__(self, name: str) -> None:
        self.known: dict[str, Any] = {}

    def register_module(self, *found: Any, name: Any = None, **_: Any) -> Any:
        def add(kind: Any) -> Any:
            for word in [name] if isinstance(name, str) else name or [kind.__name__]:
                self.known[word] = kind
            return kind

        return add(found[0]) if found else add

    def get(self, name: str) -> Any:
        return self.known.get(name)


class ShortConvolution(nn.Conv1d):
    """fla's depthwise causal convolution along time; gives (output, no state)."""

    def __init__(self, hidden_size: int, kernel_size: int, activation: None = None) -> None:
        super().__init__(hidden_size, hidden_size, kernel_size, groups=hidden_size, bias=False)

    def forward(self, input: Tensor) -> Any:
        before = self.kernel_size[0] - 1
        return F.conv1d(F.pad(input.mT, (before, 0)), self.weight, groups=self.groups).mT, None


class Attention(nn.Module):
    """timm's, as far as its layers are used."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, **_: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.attn_drop = self.proj_drop = nn.Identity()


class Mlp(nn.Module):
    """timm's two layers."""

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, act_layer: Any, drop: float
    ) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def stand_for(name: str, **content: Any) -> None:
    """A module in the place of one that is not here, or that would import what is not needed."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__.update(content)
    sys.modules[name] = module


def import_network(sana: Path) -> Any:
    """The module of their network, without trainers, loggers and other libraries."""

    def log(*_: Any, **__: Any) -> logging.Logger:
        return logging.getLogger("sana")

    sys.path.insert(0, str(sana))
    for name in ("fla", "timm", "timm.models", "mmcv.utils"):
        stand_for(name)
    stand_for("fla.modules", ShortConvolution=ShortConvolution)
    stand_for("timm.models.layers", DropPath=nn.Identity)
    stand_for("timm.models.vision_transformer", Attention=Attention, Mlp=Mlp)
    stand_for("mmcv", Registry=Registry)
    stand_for("mmcv.runner", get_dist_info=lambda: (0, 1))
    stand_for("diffusion.model.builder", MODELS=Registry("models"))
    stand_for("diffusion.utils.logger", get_root_logger=log, get_logger=log)
    stand_for("ftfy")
    stand_for("tools.download", find_model=None)
    for name in ("diffusion", "diffusion.model", "diffusion.model.nets"):
        stand_for(name)
        sys.modules[name].__path__ = [str(sana.joinpath(*name.split(".")))]
    return import_module("diffusion.model.nets.sana_multi_scale_video_camctrl")


# --- as it is since July 2026 ---------------------------------------------------------------------


def keep_camera_conv(cached: Any, kind: Any) -> None:
    """Slot 3 of DeltaNet blocks: the last inputs of the camera branch's short convolution."""
    whole, convolve = kind.forward, kind._apply_temporal_short_conv

    def forward(self: Any, x: Tensor, *words: Any, **options: Any) -> Any:
        self.slots, self.saves = options["kv_cache"], options["save_kv_cache"]
        return whole(self, x, *words, **options)

    def convolved(self: Any, x: Tensor, conv: Any, grid: Any, **options: Any) -> Tensor:
        if conv is not self.conv_k_cam:
            return convolve(self, x, conv, grid, **options)
        out, last = cached._cached_temporal_short_conv(x, conv, grid, self.slots[3], self.saves)
        if self.saves:
            self.slots[3] = last
        return out

    kind.forward, kind._apply_temporal_short_conv = forward, convolved


@contextmanager
def seen_by_chunks(starts: tuple[int, ...] | None) -> Iterator[None]:
    """Softmax attention over all tokens of a clip sees earlier chunks and its own."""
    tokens = FRAMES * HEIGHT * WIDTH
    chunk = torch.zeros(FRAMES, dtype=torch.long)
    for start in (starts or (0,))[1:]:
        chunk[start:] += 1
    chunk = chunk.repeat_interleave(HEIGHT * WIDTH)
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        if attn_mask is None and q.shape[-2] == k.shape[-2] == tokens:
            attn_mask = chunk[:, None] >= chunk
        return attend(q, k, v, attn_mask=attn_mask)

    with mock.patch.object(F, "scaled_dot_product_attention", masked):
        yield


# --- what is recorded -----------------------------------------------------------------------------


def build(network: Any, camera: str, ffn: Any, positions: str) -> Any:
    """Their tiny network with the weights of ours."""
    sizes: dict[str, Any] = dict(
        in_channels=TINY.latent_channels,
        hidden_size=TINY.width,
        depth=TINY.depth,
        num_heads=TINY.heads,
        linear_head_dim=TINY.head_size,
        caption_channels=TINY.text_width,
        model_max_length=TINY.text_tokens,
        mlp_ratio=TINY.ffn_ratio,
        softmax_every_n=TINY.softmax_every,
        conv_kernel_size=TINY.conv_taps,
        chunk_plucker_channels=TINY.plucker_channels,
    )
    model = network.SanaMSVideoCamCtrl(
        **sizes,
        **dict(patch_size=(1, 1, 1), learn_sigma=False, pred_sigma=False, class_dropout_prob=0.0),
        **dict(qk_norm=True, cross_norm=True, y_norm=True, mlp_acts=("silu", "silu", None)),
        **dict(attn_type="BidirectionalGDNTriton", ffn_type="GLUMBConvTemp", pos_embed_type=positions),
        **dict(camctrl_type=camera, cam_attn_compress=1, use_chunk_plucker_post_attn=True),
        **dict(chunk_size=3, chunk_split_strategy="first_chunk_plus_one"),
    ).eval()
    for block in model.blocks:
        block.mlp.__class__ = ffn
    state = model.state_dict()
    own = filled({name: tuple(value.shape) for name, value in state.items() if name != "pos_embed"})
    model.load_state_dict({**state, **own})
    return model


def their_arguments(given: dict[str, Any], frames: slice = slice(None)) -> dict[str, Any]:
    cameras = given["cameras"].of_frames(frames)
    return dict(
        x=given["latents"][:, :, frames],
        timestep=given["times"][:, None, frames],
        y=given["text"][:, None],
        mask=given["text_mask"],
        camera_conditions=torch.cat([cameras.camera_to_world.flatten(2), cameras.intrinsics], dim=-1),
        chunk_plucker=cameras.plucker,
    )


def read_by_chunk(kept: list[list[list[Any]]], window: int | None, sink: int) -> list[list[Any]]:
    """Ten slots a block for the next chunk, from those of the chunks before (their sampler's, in few words)."""
    if not kept:
        return [[None] * SLOTS for _ in range(TINY.depth)]
    count = len(kept)
    first = 0 if window is None else max(count - window, 0)
    read = [*range(min(sink, first)), *range(first, count)]
    found = []
    for block in range(TINY.depth):
        last = list(kept[-1][block])
        if TINY.is_softmax(block):
            last[:4] = [torch.cat([kept[i][block][slot] for i in read], dim=2) for slot in range(4)]
        found.append(last)
    return found


def stream(model: Any, window: int | None, sink: int) -> tuple[Tensor, list[list[Any]]]:
    """Velocities of noisy chunks after clean ones, and the slots of the last chunk."""
    given, kept, outs = tiny_inputs(STREAM_FRAMES), [], []
    for first, end in chunk_ranges(STREAM_FRAMES, STREAM_STARTS):
        slots = read_by_chunk(kept, window, sink)
        words = dict(their_arguments(given, slice(first, end)), start_f=first, end_f=end)
        out, _ = model.forward_long(**words, kv_cache=[list(s) for s in slots], save_kv_cache=False)
        outs.append(out)
        clean = dict(words, timestep=torch.zeros(2))
        _, after = model.forward_long(**clean, kv_cache=slots, save_kv_cache=True)
        kept.append([list(s) for s in after])
    return torch.cat(outs, dim=2), kept[-1]


def main() -> None:
    sana, out = Path(sys.argv[1]), Path(sys.argv[2])
    network = import_network(sana)
    camera, cached, parts = (
        import_module(f"diffusion.model.nets.{name}")
        for name in ("sana_gdn_camctrl_blocks", "cached_chunk_causal_blocks", "basic_modules")
    )
    plain = camera._GDNUCPEBase._stabilize_cam_transforms
    camera.BidirectionalGDNUCPELiteLAPostUCPERenorm._stabilize_cam_transforms = plain
    keep_camera_conv(cached, cached.CachedChunkCausalGDNUCPESinglePathLiteLA)
    network.BidirectionalGDNUCPESinglePathLiteLABothTriton = camera.BidirectionalGDNUCPESinglePathLiteLA

    class ChunkFeedForward(parts.ChunkGLUMBConvTemp):
        def forward(self, x: Tensor, HW: Any, chunk_index: list[int], **_: Any) -> Tensor:
            return super().forward(x, HW=HW, chunk_index=chunk_index)

    found: dict[str, Any] = {}
    both = build(network, "BidirectionalGDNUCPESinglePathLiteLABothTriton", parts.GLUMBConvTemp, "wan_rope")
    causal = build(network, "ChunkCausalGDNUCPESinglePathLiteLA", ChunkFeedForward, "wan_rope")
    streams = build(
        network, "CachedChunkCausalGDNUCPESinglePathLiteLA", parts.CachedGLUMBConvTemp, "casual_wan_rope"
    )
    with mock.patch.object(torch.Tensor, "bfloat16", lambda self: self):
        with torch.no_grad():
            found["bidirectional"] = both(**their_arguments(tiny_inputs()))
        for name, starts in CAUSAL.items():
            with seen_by_chunks(starts):
                made = causal(**their_arguments(tiny_inputs()), chunk_index=list(starts))
                found[name] = made.detach()
                if name == "causal_pairs":
                    made.square().mean().backward()
        norms = {n: float(p.grad.norm()) for n, p in causal.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for name, (window, sink) in STREAMS.items():
                found[name], slots = stream(streams, window, sink)
                found |= {
                    f"{name}/{block}/{slot}": value
                    for block, values in enumerate(slots)
                    for slot, value in enumerate(values)
                    if isinstance(value, Tensor) and slot != KIND_SLOT and block in (0, 3)
                }
    content = {name: value.numpy() for name, value in found.items()}
    content |= {"names": np.array(list(norms)), "gradient_norms": np.array(list(norms.values()))}
    np.savez_compressed(out, **cast(dict[str, Any], content))


if __name__ == "__main__":
    main()
