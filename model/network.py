"""The world model: a diffusion transformer over video latents whose attention follows the camera.

Tokens are kept as (B, T, S, C): batch, latent frames, tokens of a frame (row-major), channels. Three of four blocks
attend by frame-wise Gated DeltaNet, every fourth by softmax. Every block has a second attention branch in which
queries and keys meet through the rays they lie on (UCPE), and adds a Plücker map of the rays.

Modules bear the names of the released files, so that their state dicts are this network's. Nothing here knows of
sharding, compiling or checkpointing: they are applied from outside, block by block.

Source: SANA-WM (arXiv 2605.15178) and the public NVlabs/Sana code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels import (
    rope_tables,
    world_to_ray,
)
from .attention import Projection, RMSNorm
from .blocks import Block, FinalLayer, TextEmbedder, TimeEmbedder, inner_starts
from .config import WorldModelConfig, chunk_ranges
from .context import BlockCache, Cameras, Context, Geometry, Operators, StreamCache
from .frame_parallel import FrameShare


class WorldModel(nn.Module):
    """Latents and their diffusion times, text and cameras in; velocity (noise - data) out.

    Args:
        config: sizes and options.
        operators: implementations of the operators.
    """

    def __init__(self, config: WorldModelConfig, operators: Operators | None = None) -> None:
        super().__init__()
        self.config = config
        self.operators = operators or Operators()
        self.converted: str | None = None
        """Precision of the weights where `set_precision` changed them: then they are no released weights any more."""
        width = config.width
        self.x_embedder = Projection(config.latent_channels, width)
        self.t_embedder = TimeEmbedder(config.time_frequencies, width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = TextEmbedder(config)
        self.attention_y_norm = RMSNorm(width)
        self.plucker_embedder = Projection(config.plucker_channels, width)
        self.raymap_embedder = Projection(3, width).requires_grad_(False)
        """In every released file, used by none of the released models."""
        self.blocks = nn.ModuleList(Block(config, i, self.operators) for i in range(config.depth))
        self.final_layer = FinalLayer(config, self.operators)

    def forward(
        self,
        latents: Tensor,
        times: Tensor,
        text: Tensor,
        *,
        text_mask: Tensor | None = None,
        cameras: Cameras | Geometry | None = None,
        chunk_starts: tuple[int, ...] | None = None,
        share: FrameShare | None = None,
    ) -> Tensor:
        """Velocity of all frames of a clip, or of this rank's share of them.

        Args:
            latents: (B, 128, T, H, W) noisy latents.
            times: (B,) or (B, T) diffusion times in 0..1000, cut to whole numbers.
            text: (B, L, 2304) hidden states of the text encoder.
            text_mask: (B, L) True where a token is real; None: all are.
            cameras: of each latent frame, or what `geometry` made of them; None: neither camera branch nor ray map.
            chunk_starts: first frames of chunks (`config.chunk_starts`): every frame sees all earlier chunks and its
                own; None: every frame sees every frame.
            share: the clip's frames are spread over ranks: latents, times and cameras are of this rank's frames, and
                `chunk_starts` of the whole clip.
        Returns:
            (B, 128, T, H, W) in the dtype of the weights.
        Raises:
            ValueError: where shapes do not fit each other, or cameras are not finite.
        """
        self._check(latents, times, text, text_mask, cameras)
        frames = latents.shape[2]
        if share is not None and share.counts[share.rank] != frames:
            raise ValueError(
                f"latents hold {frames} frames, rank {share.rank}'s share of {share.counts} is another"
            )
        if chunk_starts is not None:
            chunk_ranges(frames if share is None else sum(share.counts), chunk_starts)
        first = 0 if share is None else share.first
        index = torch.arange(first, first + frames, device=latents.device)
        context = self._context(latents, text, text_mask, cameras, index, starts=chunk_starts, share=share)
        return self._run(latents, times, context, None)

    def start_stream(self, *, window_chunks: int | None = None, sink_chunks: int = 0) -> StreamCache:
        """Empty caches for a clip that is generated chunk by chunk with `forward_chunk`.

        Args:
            window_chunks: earlier chunks that softmax blocks read; None: all of them, so that the cache grows.
            sink_chunks: first chunks that they read in any case.
        """
        return StreamCache(
            window_chunks=window_chunks,
            sink_chunks=sink_chunks,
            blocks=[BlockCache() for _ in self.blocks],
        )

    def forward_chunk(
        self,
        latents: Tensor,
        times: Tensor,
        text: Tensor,
        cache: StreamCache,
        *,
        text_mask: Tensor | None = None,
        cameras: Cameras | None = None,
        save: bool = False,
    ) -> Tensor:
        """Velocity of one chunk, everything before it read from the cache.

        Equal to the chunk's part of `forward` on the clip up to here with `chunk_starts`, where earlier chunks are
        clean and the window holds them all.

        Args:
            latents: (B, 128, t, H, W) of the chunk; others as in `forward`, of the chunk's frames.
            cache: from `start_stream`; read, and written only with `save`.
            save: remember this chunk (call it once, with the finished latents at time 0) and go on to the next.
        """
        self._check(latents, times, text, text_mask, cameras)
        index = torch.arange(cache.next_frame, cache.next_frame + latents.shape[2], device=latents.device)
        out = self.run_chunk(
            latents, times, text, cache, index, text_mask=text_mask, cameras=cameras, save=save
        )
        if save:
            cache.next_frame += latents.shape[2]
        return out

    def run_chunk(
        self,
        latents: Tensor,
        times: Tensor,
        text: Tensor,
        cache: StreamCache,
        index: Tensor,
        *,
        text_mask: Tensor | None = None,
        cameras: Cameras | None = None,
        save: bool = False,
    ) -> Tensor:
        """`forward_chunk` with the chunk's frame numbers (t,) as a tensor, without checks and without counting on: what
        a CUDA graph records."""
        context = self._context(latents, text, text_mask, cameras, index, stream=cache, save=save)
        return self._run(latents, times, context, cache.blocks)

    def _run(
        self, latents: Tensor, times: Tensor, context: Context, caches: Sequence[BlockCache] | None
    ) -> Tensor:
        dtype = self.final_layer.linear.weight.dtype
        x = self.x_embedder(latents.to(dtype))
        time = self.t_embedder(times if times.ndim == 2 else times[:, None])
        modulation = self.t_block(time)
        for i, block in enumerate(self.blocks):
            x = block(x, modulation, context, None if caches is None else caches[i])
        x = self.final_layer(x, time)
        return x.permute(0, 3, 1, 2).unflatten(-1, (context.height, context.width))

    def _context(
        self,
        latents: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        cameras: Cameras | Geometry | None,
        index: Tensor,
        *,
        starts: tuple[int, ...] | None = None,
        stream: StreamCache | None = None,
        save: bool = False,
        share: FrameShare | None = None,
    ) -> Context:
        if isinstance(cameras, Geometry):
            known = cameras
        else:
            known = self._geometry(cameras, index, latents.shape[3], latents.shape[4])
        weight = self.final_layer.linear.weight
        own = starts if share is None else share.starts(starts)
        inner = None
        if own is not None and len(own) > 1:
            inner = inner_starts(own, latents.new_empty(1, latents.shape[2], dtype=weight.dtype))
        return Context(
            height=latents.shape[3],
            width=latents.shape[4],
            rope=known.rope,
            camera_rope=known.camera_rope,
            rays=known.rays,
            plucker=known.plucker,
            text=self.attention_y_norm(self.y_embedder(text.to(weight.dtype))),
            text_mask=None if text_mask is None else text_mask.bool(),
            starts=own,
            inner=inner,
            stream=stream,
            save=save,
            share=share,
            clip_starts=starts,
        )

    def geometry(self, latents: Tensor, cameras: Cameras | None) -> Geometry:
        """What `forward` derives from a clip's cameras and shape, to be given to it in their place at every step.

        Args:
            latents: (B, 128, T, H, W) of the clip, for their shape.
            cameras: of each latent frame; None: neither camera branch nor ray map.
        """
        self._check_latents(latents)
        self._check_cameras(latents, cameras)
        index = torch.arange(latents.shape[2], device=latents.device)
        return self._geometry(cameras, index, latents.shape[3], latents.shape[4])

    def _geometry(self, cameras: Cameras | None, index: Tensor, height: int, width: int) -> Geometry:
        weight = self.final_layer.linear.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        table = torch.float16 if weight.dtype == torch.bfloat16 else exact
        rope, camera_rope = (
            rope_tables(index, height, width, self.config.head_size, half=half).to(table)
            for half in (False, True)
        )
        rays = plucker = None
        if cameras is not None:
            rays = world_to_ray(
                cameras.camera_to_world.to(exact), cameras.intrinsics.to(exact), height, width
            )
            if cameras.plucker is not None:
                plucker = self.plucker_embedder.apart(cameras.plucker.to(weight.dtype))
        return Geometry(rope=rope, camera_rope=camera_rope, rays=rays, plucker=plucker)

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
            raise ValueError(f"latents are {tuple(latents.shape)}; give (B, {channels}, T, H, W)")

    def _check_cameras(self, latents: Tensor, cameras: Cameras | None) -> None:
        if cameras is None:
            return
        b, _, t, h, w = latents.shape
        _check_shape("camera_to_world", cameras.camera_to_world, latents, (b, t, 4, 4), (b, t, 3, 4))
        _check_shape("intrinsics", cameras.intrinsics, latents, (b, t, 4))
        if cameras.plucker is not None:
            _check_shape("plucker", cameras.plucker, latents, (b, self.config.plucker_channels, t, h, w))

    def _check(
        self,
        latents: Tensor,
        times: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        cameras: Cameras | Geometry | None,
    ) -> None:
        self._check_latents(latents)
        b, _, t, h, w = latents.shape
        _check_shape("times", times, latents, (b,), (b, t))
        if (
            text.ndim != 3
            or text.shape[0] != b
            or text.shape[2] != self.config.text_width
            or text.shape[1] == 0
        ):
            raise ValueError(f"text is {tuple(text.shape)}; give ({b}, tokens, {self.config.text_width})")
        if text_mask is not None:
            _check_shape("text_mask", text_mask, latents, (b, text.shape[1]))
        if isinstance(cameras, Geometry):
            _check_shape("geometry's rope", cameras.rope[0, ..., 0], latents, (t, h * w))
            if cameras.rays is not None:
                _check_shape("geometry's rays", cameras.rays, latents, (b, t, h * w, 3, 4))
        else:
            self._check_cameras(latents, cameras)


def _check_shape(name: str, x: Tensor, latents: Tensor, *allowed: tuple[int, ...]) -> None:
    if tuple(x.shape) not in allowed:
        raise ValueError(
            f"{name} {tuple(x.shape)} does not fit latents {tuple(latents.shape)}: "
            + " or ".join(map(str, allowed))
        )
