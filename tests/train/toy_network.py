"""A network of a few numbers that stands in for the world model in both code bases: what it reads, it reads linearly.

Three kinds of memory, as the world model has them: all frames of a bidirectional pass or all earlier ones of a causal
one, a window of chunks with a sink, a state that decays from chunk to chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from theodolite.model.context import Cameras
from torch import Tensor, nn

CHANNELS, TEXT = 4, 6
DECAY = 0.7


class Caption(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.full((5, TEXT), 0.25))


@dataclass
class Memory:
    """What the toy remembers of earlier chunks."""

    window_chunks: int | None
    sink_chunks: int
    chunks: list[Tensor] = field(default_factory=list)
    state: Tensor | None = None

    def snapshot(self) -> Memory:
        return replace(self, chunks=list(self.chunks))


class Toy(nn.Module):
    """The world model's calls, and the released network's by `official`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int, scale: float = 0.3) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * scale)

        self.mix, self.before, self.state = (numbers(CHANNELS, CHANNELS) for _ in range(3))
        self.time, self.text, self.pose = (
            numbers(CHANNELS),
            numbers(TEXT, CHANNELS),
            numbers(20, CHANNELS, scale=0.05),
        )
        self.rays = numbers(48, CHANNELS, scale=0.05)
        self.y_embedder = Caption()
        self.blocks = (0, 1)  # how many entries the released code's cache has

    def velocity(
        self,
        x: Tensor,
        times: Tensor,
        text: tuple[Tensor, Tensor | None],
        camera: Tensor,
        rays: Tensor,
        past: Tensor,
    ) -> Tensor:
        """x (B, C, T, H, W), times (B, T), camera (B, T, 20), rays (B, 48, T, H, W), past (B, C) or (B, C, T)."""
        states, mask = text
        weight = torch.ones(states.shape[:2]) if mask is None else mask.float()
        said = (states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True) @ self.text
        out = torch.einsum("bcthw,cd->bdthw", torch.tanh(x), self.mix)
        out = out + torch.einsum("bkthw,kd->bdthw", rays, self.rays)
        told = torch.sin(times.long().float() / 300)[:, None] * self.time[:, None]
        past = past if past.ndim == 3 else past[:, :, None]
        out = out + (told + (camera @ self.pose).mT + said[:, :, None] + past)[..., None, None]
        return out

    def remembered(self, chunks: list[Tensor], state: Tensor | None, like: Tensor) -> Tensor:
        past = like.new_zeros(like.shape[:2])
        if chunks:
            past = past + torch.cat([c.flatten(2) for c in chunks], dim=2).mean(-1) @ self.before
        return past if state is None else past + state @ self.state

    def whole(self, x: Tensor, causal: bool) -> Tensor:
        """Past of every frame in one pass, (B, C, T): of all frames, or of it and those before it."""
        means = x.mean(dim=(3, 4))
        if not causal:
            return (means.mean(-1) @ self.before)[:, :, None].expand_as(means)
        count = torch.arange(1, means.shape[2] + 1)
        return ((means.cumsum(2) / count).mT @ self.before).mT

    # --- as the package calls the world model ---

    def forward(
        self,
        latents: Tensor,
        times: Tensor,
        text: Tensor,
        *,
        text_mask: Tensor | None = None,
        cameras: Cameras | None = None,
        chunk_starts: tuple[int, ...] | None = None,
        share: Any = None,
    ) -> Tensor:
        past = self.whole(latents, chunk_starts is not None)
        return self.velocity(latents, times, (text, text_mask), *_read(cameras), past)

    def start_stream(self, *, window_chunks: int | None = None, sink_chunks: int = 0) -> Memory:
        return Memory(window_chunks, sink_chunks)

    def forward_chunk(
        self,
        latents: Tensor,
        times: Tensor,
        text: Tensor,
        cache: Memory,
        *,
        text_mask: Tensor | None = None,
        cameras: Cameras | None = None,
        save: bool = False,
    ) -> Tensor:
        past = self.remembered(cache.chunks, cache.state, latents)
        out = self.velocity(latents, times, (text, text_mask), *_read(cameras), past)
        if save:
            mean = latents.mean(dim=(2, 3, 4))
            cache.state = mean if cache.state is None else DECAY * cache.state + mean
            cache.chunks.append(latents)
            window = cache.window_chunks
            while window is not None and len(cache.chunks) > cache.sink_chunks + window:
                del cache.chunks[cache.sink_chunks]
        return out

    # --- as the released code calls its network ---

    def official(
        self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None, **named: Any
    ) -> Any:
        times = timestep[:, 0] if timestep.ndim == 3 else timestep[:, None].expand(-1, x.shape[2])
        words = (y[:, 0], None if mask is None else mask[:, 0, 0])
        if "kv_cache" not in named:
            past = self.whole(x, "chunk_index" in named)
            return self.velocity(x, times, words, named["camera_conditions"], named["chunk_plucker"], past)
        window, recurrent = named["kv_cache"]
        chunks = [] if window[0] is None else [window[0][:, 0].mT]
        past = self.remembered(chunks, recurrent[0], x)
        out = self.velocity(x, times, words, named["camera_conditions"], named["chunk_plucker"], past)
        if not named["save_kv_cache"]:
            return out
        mean = x.mean(dim=(2, 3, 4))
        state = mean if recurrent[0] is None else DECAY * recurrent[0] + mean
        # Tokens lie in dimension 2 of what the released code joins: (B, 1, tokens, C).
        own = x.flatten(2).mT[:, None]
        saved = [[own, own, None, None, None, None, 0.0, None, None, None]]
        saved.append([state, None, None, None, None, None, 1.0, None, None, None])
        return out, saved


def _read(cameras: Cameras | None) -> tuple[Tensor, Tensor]:
    assert cameras is not None
    assert cameras.plucker is not None
    flat = cameras.camera_to_world.flatten(2)
    return torch.cat([flat, cameras.intrinsics], dim=2), cameras.plucker
