"""The world model: a diffusion transformer over video latents whose attention follows the camera.

Tokens are kept as (B, T, S, C): batch, latent frames, tokens of a frame (row-major), channels. Three of four blocks
attend by frame-wise Gated DeltaNet, every fourth by softmax. Every block has a second attention branch in which
queries and keys meet through the rays they lie on (UCPE), and adds a Plücker map of the rays.

Modules bear the names of the released files, so that their state dicts are this network's. Nothing here knows of
sharding, compiling or checkpointing: they are applied from outside, block by block.

Source: SANA-WM (arXiv 2605.15178) and the public NVlabs/Sana code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import (
    Result,
    Shard,
    State,
    add_modulated_norm,
    frame_attention,
    frame_gdn,
    frame_gdn_context_parallel,
    gated_add,
    gated_shift_add,
    glu_conv,
    key_scale,
    modulated_norm,
    norm_rotate,
    output_gate,
    rope_tables,
    short_conv,
    world_to_ray,
)
from ..kernels.attention import AttentionBackend, AttentionPrecision
from ..kernels.fp8.product import gated_add_rows, modulated_norm_rows, output_gate_rows
from ..kernels.frame_gdn.op import Backend
from ..kernels.frame_gdn.reference import ray_matrices, ray_transform
from .config import WorldModelConfig, chunk_ranges
from .frame_parallel import FrameShare
from .scaled_layers import ScaledLinear, SharedInput

_NORM_EPS = 1e-5
"""RMSNorm of queries, keys and text; cross attention has 1e-6."""
_LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Operators:
    """Which implementation of each operator runs; "auto" is the fastest that the device has."""

    kernels: Backend = "auto"
    """Gated DeltaNet, short convolutions and output gates."""
    attention: AttentionBackend = "auto"
    attention_precision: AttentionPrecision = "input"
    """Of softmax attention over video tokens; "fp8" is for inference on Hopper GPUs and newer."""


@dataclass(frozen=True)
class Cameras:
    """Camera of each latent frame (the one of video frame 8 i).

    Attributes:
        camera_to_world: (B, T, 4, 4) OpenCV axes, metres, relative to the clip's first frame.
        intrinsics: (B, T, 4) fx, fy, cx, cy in units of tokens (pixels / 32).
        plucker: (B, 48, T, H, W) rays of eight video frames (`conditioning.plucker_map`); None: no map is added.
    """

    camera_to_world: Tensor
    intrinsics: Tensor
    plucker: Tensor | None = None

    def of_frames(self, frames: slice) -> Cameras:
        """Those of some latent frames."""
        rays = None if self.plucker is None else self.plucker[:, :, frames]
        return Cameras(self.camera_to_world[:, frames], self.intrinsics[:, frames], rays)


@dataclass(frozen=True)
class RayMap:
    """A ray map and the linear map that embeds it, kept apart.

    A block projects what was embedded, one linear map after another: it multiplies the two sets of weights instead of
    the tokens, for 48 channels in place of all.

    Attributes:
        tokens: (B, T, S, P) channels of each token, a one, zeros.
        embedding: (C, P) weights, the bias, zeros.
    """

    tokens: Tensor
    embedding: Tensor

    def through(self, layer: nn.Module) -> Tensor:
        """layer(embedded tokens), (B, T, S, C)."""
        if type(layer) is not nn.Linear:  # adapters and layers in fewer bits have no plain weight
            return layer(F.linear(self.tokens, self.embedding))
        return F.linear(self.tokens, layer.weight @ self.embedding, layer.bias)


@dataclass(frozen=True)
class Geometry:
    """What the network derives from a clip's cameras and shape alone (`WorldModel.geometry`).

    Attributes:
        rope: (2, T, S, D/2) rotation of whole heads, (2, T, S, D/4) of half heads in `camera_rope`.
        rays: (B, T, S, 3, 4) world-to-ray transforms; None: the camera branch does not run.
        plucker: ray map before it is embedded; None: nothing is added.
    """

    rope: Tensor
    camera_rope: Tensor
    rays: Tensor | None
    plucker: RayMap | None


@dataclass
class BlockCache:
    """What a block remembers of the chunks before the current one; sizes do not grow with the clip but where softmax
    keeps its whole history.

    Attributes:
        gdn, camera_gdn: forward states of the two branches.
        conv, camera_conv: (B, taps - 1, S, C) last inputs of the keys' short convolutions.
        ffn: (B, 1, S, C) last frame before the temporal convolution.
        chunks: keys and values of softmax blocks by chunk, after rotation and ray transform.
    """

    gdn: State | None = None
    camera_gdn: State | None = None
    conv: Tensor | None = None
    camera_conv: Tensor | None = None
    ffn: Tensor | None = None
    chunks: list[ChunkKeys] = field(default_factory=list)


@dataclass(frozen=True)
class ChunkKeys:
    """Keys and values of one chunk, (B, heads, tokens, D) each; `camera_*` of the camera branch, if it ran."""

    key: Tensor
    value: Tensor
    camera_key: Tensor | None = None
    camera_value: Tensor | None = None


@dataclass
class StreamCache:
    """The state of a clip that is generated chunk by chunk.

    Attributes:
        window_chunks: chunks before the current one that softmax blocks read; None: all of them.
        sink_chunks: first chunks that they read in any case.
        next_frame: absolute latent frame with which the next chunk starts.
        blocks: one entry a block.
    """

    window_chunks: int | None
    sink_chunks: int
    blocks: list[BlockCache]
    next_frame: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held by all caches."""
        return sum(t.numel() * t.element_size() for block in self.blocks for t in _tensors(block))


def _tensors(block: BlockCache) -> list[Tensor]:
    states = [s for s in (block.gdn, block.camera_gdn) if s is not None]
    found = [t for s in states for t in (s.kv, s.z)]
    found += [block.conv, block.camera_conv, block.ffn]
    found += [t for c in block.chunks for t in (c.key, c.value, c.camera_key, c.camera_value)]
    return [t for t in found if t is not None]


@dataclass(frozen=True)
class Context:
    """What all blocks of one call share.

    Attributes:
        height, width: token grid of a frame.
        rope: (2, T, S, D/2) rotation of whole heads, (2, T, S, D/4) of half heads in `camera_rope`.
        rays: (B, T, S, 3, 4) world-to-ray transforms; None: the camera branch does not run.
        plucker: ray map, which all blocks read; None: nothing is added.
        text: (B, L, C), with `text_mask` (B, L) True where a token is real, or None.
        starts: first frames of chunks for chunk-causal runs; None: bidirectional.
        inner: (T, 1, 1) zero on the first frames of all chunks but the first, one elsewhere; None: a single chunk.
        stream: True where a cache is read: everything before the chunk comes from it.
        save: whether the cache is written.
        share: where the clip's frames are spread over ranks; `starts` and `inner` then are this rank's, `clip_starts`
            the clip's.
    """

    height: int
    width: int
    rope: Tensor
    camera_rope: Tensor
    rays: Tensor | None
    plucker: RayMap | None
    text: Tensor
    text_mask: Tensor | None
    starts: tuple[int, ...] | None
    inner: Tensor | None
    stream: StreamCache | None
    save: bool
    share: FrameShare | None = None
    clip_starts: tuple[int, ...] | None = None


class RMSNorm(nn.Module):
    """x / RMS(x) * weight over the last axis, in float32."""

    def __init__(self, channels: int, eps: float = _NORM_EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Projection(nn.Module):
    """A 1 x 1 x 1 convolution, applied to channels-last tokens as the linear map that it is."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T, H W, width)."""
        tokens = x.flatten(3).permute(0, 2, 3, 1)
        return F.linear(tokens, self.proj.weight.flatten(1), self.proj.bias)

    def apart(self, x: Tensor) -> RayMap:
        """Tokens and map apart; their number of channels is filled up with zeros to a multiple of eight."""
        assert self.proj.bias is not None
        b, channels, t, h, w = x.shape
        size = -(-(channels + 1) // 8) * 8
        tokens = x.new_zeros(b, t, h * w, size)
        tokens[..., :channels] = x.flatten(3).permute(0, 2, 3, 1)
        tokens[..., channels] = 1
        embedding = torch.cat([self.proj.weight.flatten(1), self.proj.bias[:, None]], dim=1)
        return RayMap(tokens, F.pad(embedding, (0, size - channels - 1)))


class TimeEmbedder(nn.Module):
    """Sines of the diffusion time, then two layers."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        """times (...) in 0..1000, cut to whole numbers as in training; -> (..., width)."""
        half = self.frequencies // 2
        index = torch.arange(half, dtype=torch.float32, device=times.device)
        angle = times.long().float()[..., None] * torch.exp(-math.log(10000.0) * index / half)
        table = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.mlp(table.to(next(self.mlp.parameters()).dtype))


class TextMlp(nn.Module):
    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(text_width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TextEmbedder(nn.Module):
    """Text states to tokens; `y_embedding` is the caption that stands for a dropped one in training."""

    y_embedding: Tensor

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.y_proj = TextMlp(config.text_width, config.width)
        self.register_buffer("y_embedding", torch.zeros(config.text_tokens, config.text_width))

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class ShortConv(nn.Module):
    """Weights of a depthwise convolution along time; oldest tap first."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, taps))


class CameraAttention(nn.Module):
    """What both kinds of attention share: projections of two branches, gates, and their sum.

    Softmax blocks carry the DeltaNet's gates without using them, since released files do.
    """

    recall_gate: Tensor

    def __init__(self, config: WorldModelConfig, operators: Operators) -> None:
        super().__init__()
        width = config.width
        self.config, self.operators = config, operators
        self.heads, self.head_size = config.heads, config.head_size
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.proj = nn.Linear(width, width)
        self.output_gate = nn.Linear(width, width)
        self.beta_proj = nn.Linear(width, config.heads)
        self.gate_proj = nn.Linear(width, config.heads)
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.dt_bias = nn.Parameter(torch.zeros(config.heads))
        self.register_buffer("recall_gate", torch.zeros(1))
        self.q_proj_cam, self.k_proj_cam, self.v_proj_cam, self.out_proj_cam = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.q_norm_cam, self.k_norm_cam = RMSNorm(width), RMSNorm(width)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, S, C) -> (B, T, S, heads, D)."""
        return x.unflatten(-1, (self.heads, self.head_size))

    def gated(self, shared: SharedInput, main: Tensor, camera: Tensor | None) -> Tensor:
        """Sum of the branches, gated by the block's input, projected."""
        added = None if camera is None else self.out_proj_cam(camera)
        gate = shared.through(self.output_gate)
        backend = self.operators.kernels
        if isinstance(self.proj, ScaledLinear):
            return self.proj.product(output_gate_rows(main, added, gate, backend=backend), gate.dtype)
        return self.proj(output_gate(main, added, gate, backend=backend).to(gate.dtype))

    def capped(self, transformed: Tensor, before: Tensor) -> Tensor:
        """Scale tokens down whose RMS the ray transform raised (`camera_rms_cap`)."""
        rms_before, rms_after = (
            (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (before, transformed)
        )
        return transformed * (rms_before / rms_after).clamp(max=1.0).to(transformed.dtype)


class DeltaNetAttention(CameraAttention):
    """Frame-wise Gated DeltaNet in both branches."""

    def __init__(self, config: WorldModelConfig, operators: Operators) -> None:
        super().__init__(config, operators)
        self.conv_k = ShortConv(config.width, config.conv_taps)
        self.conv_k_cam = ShortConv(config.width, config.conv_taps)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes beta (B, T, S, heads) and decay (B, T, heads) in float32."""
        beta = torch.sigmoid(self.beta_proj(x))
        rate = F.softplus(self.gate_proj(x.mean(dim=2)).float() + self.dt_bias.float())
        return beta, torch.exp(-torch.exp(self.A_log.float()) * rate)

    def forward(self, shared: SharedInput, context: Context, cache: BlockCache | None) -> Tensor:
        """shared (B, T, S, C), the block's modulated input."""
        gates = self.gates(shared.x)
        main = self._main(shared, gates, context, cache)
        camera = None if context.rays is None else self._camera(shared, gates, context, cache)
        return self.gated(shared, main, camera)

    def _main(
        self,
        shared: SharedInput,
        gates: tuple[Tensor, Tensor],
        context: Context,
        cache: BlockCache | None,
    ) -> Tensor:
        q, k, v = shared.through(self.qkv).chunk(3, dim=-1)
        backend = self.operators.kernels
        starts = None if context.stream is not None else context.starts
        conv = None if cache is None else cache.conv
        key = self._convolved(k, self.conv_k, context, starts, conv)
        weights = dict(q_weight=self.q_norm.weight, k_weight=self.k_norm.weight)
        numbers = dict(key_scale=key_scale(self.head_size, q.shape[2]), norm_eps=_NORM_EPS)
        tokens = (self.split(q), self.split(key), self.split(v), *gates)
        if context.share is not None:
            shard = Shard(*tokens, rope=context.rope, chunk_starts=starts)
            return frame_gdn_context_parallel(
                shard, group=context.share.group, **weights, **numbers, backend=backend
            ).flatten(-2)
        result = frame_gdn(
            *tokens,
            **weights,
            rope=context.rope,
            chunk_starts=starts,
            initial=None if cache is None else cache.gdn,
            **numbers,
            backend=backend,
        )
        if cache is not None and context.save:
            cache.gdn, cache.conv = result.final, _last_frames(conv, k, self.config.conv_taps - 1)
        return result.out.flatten(-2)

    def _convolved(
        self,
        k: Tensor,
        conv: ShortConv,
        context: Context,
        starts: tuple[int, ...] | None,
        before: Tensor | None,
    ) -> Tensor:
        """Keys through their short convolution; over several ranks, with what they read of their neighbours."""
        backend = self.operators.kernels
        if context.share is None:
            return short_conv(k, conv.weight, chunk_starts=starts, before=before, backend=backend)
        wide, left, right = context.share.halo(k, self.config.conv_taps - 1)
        starts = context.share.starts(context.clip_starts, left, right)
        out = short_conv(wide, conv.weight, chunk_starts=starts, backend=backend)
        return out[:, left : out.shape[1] - right]

    def _camera(
        self,
        shared: SharedInput,
        gates: tuple[Tensor, Tensor],
        context: Context,
        cache: BlockCache | None,
    ) -> Tensor:
        q, k, v = (shared.through(layer) for layer in (self.q_proj_cam, self.k_proj_cam, self.v_proj_cam))
        dtype, scale = q.dtype, key_scale(self.head_size, q.shape[2])
        backend = self.operators.kernels
        starts = None if context.stream is not None else context.starts
        conv = None if cache is None else cache.camera_conv
        initial = None if cache is None else cache.camera_gdn
        inputs = k if cache is not None and context.save else None
        k = self._convolved(k, self.conv_k_cam, context, starts, conv)
        if context.share is not None:
            return self._camera_over_ranks(q, k, v, gates, scale, context).flatten(-2).to(dtype)
        if self.config.camera_rms_cap == "all":
            result = self._capped_camera(q, k, v, *gates, scale, context, starts, initial)
            out = ray_transform(
                result.out, ray_matrices(_rays(context))[0], context.camera_rope, inverse_rope=True
            )
        else:
            result = frame_gdn(
                self.split(q),
                self.split(k),
                self.split(v),
                *gates,
                q_weight=self.q_norm_cam.weight,
                k_weight=self.k_norm_cam.weight,
                rope=context.camera_rope,
                rays=context.rays,
                normalise=False,
                chunk_starts=starts,
                initial=initial,
                key_scale=scale,
                norm_eps=_NORM_EPS,
                backend=backend,
            )
            out = result.out
        if cache is not None and inputs is not None:
            cache.camera_gdn = result.final
            cache.camera_conv = _last_frames(conv, inputs, self.config.conv_taps - 1)
        return out.flatten(-2).to(dtype)

    def _camera_over_ranks(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: tuple[Tensor, Tensor],
        scale: float,
        context: Context,
    ) -> Tensor:
        assert context.share is not None
        if self.config.camera_rms_cap == "all":
            raise ValueError(
                "camera_rms_cap 'all' is not made for clips that are spread over ranks; use 'none'"
            )
        shard = Shard(
            self.split(q),
            self.split(k),
            self.split(v),
            *gates,
            rope=context.camera_rope,
            rays=context.rays,
            chunk_starts=context.starts,
        )
        return frame_gdn_context_parallel(
            shard,
            group=context.share.group,
            q_weight=self.q_norm_cam.weight,
            k_weight=self.k_norm_cam.weight,
            normalise=False,
            key_scale=scale,
            norm_eps=_NORM_EPS,
            backend=self.operators.kernels,
        )

    def _capped_camera(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        decay: Tensor,
        scale: float,
        context: Context,
        starts: tuple[int, ...] | None,
        initial: State | None,
    ) -> Result:
        """The camera branch with `camera_rms_cap`, in plain torch up to the recurrence."""
        matrix, inverse = ray_matrices(_rays(context))
        q = self.split(F.relu(self.q_norm_cam(q)))
        k = self.split(F.relu(self.k_norm_cam(k))) * scale
        v = self.split(v)
        query = self.capped(ray_transform(q, matrix.transpose(-1, -2), context.camera_rope), q)
        key = self.capped(ray_transform(k, inverse, context.camera_rope), k)
        value = self.capped(ray_transform(v, inverse, context.camera_rope), v)
        stretch = key.float().square().sum(-1).clamp_min(1e-12) / k.float().square().sum(-1).clamp_min(1e-12)
        beta = beta / stretch.mean(dim=2, keepdim=True).clamp_min(1.0).to(beta.dtype)
        return frame_gdn(
            query,
            key,
            value,
            beta,
            decay,
            normalise=False,
            chunk_starts=starts,
            initial=initial,
            backend=self.operators.kernels,
        )


class SoftmaxAttention(CameraAttention):
    """Softmax attention in both branches."""

    def __init__(self, config: WorldModelConfig, operators: Operators) -> None:
        super().__init__(config, operators)
        for unused in (self.beta_proj, self.gate_proj):
            unused.requires_grad_(False)
        self.A_log.requires_grad_(False)
        self.dt_bias.requires_grad_(False)

    def forward(self, shared: SharedInput, context: Context, cache: BlockCache | None) -> Tensor:
        """shared (B, T, S, C), the block's modulated input."""
        main, own = self._main(shared, context, cache)
        camera, camera_own = None, ()
        if context.rays is not None:
            camera, camera_own = self._camera(shared, context, cache)
        if cache is not None and context.save:
            assert context.stream is not None
            cache.chunks.append(ChunkKeys(*own, *camera_own))
            _forget(cache.chunks, context.stream)
        return self.gated(shared, main, camera)

    def _main(
        self, shared: SharedInput, context: Context, cache: BlockCache | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        q, k, v = shared.through(self.qkv).chunk(3, dim=-1)
        query = self._turned(q, self.q_norm, context.rope)
        key = self._turned(k, self.k_norm, context.rope)
        out, own = self._attend(query, key, self.split(v), context, cache, self.config.softmax_scale)
        return out.flatten(-2), own

    def _camera(
        self, shared: SharedInput, context: Context, cache: BlockCache | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        matrix, inverse = ray_matrices(_rays(context))
        rope = context.camera_rope
        # One after the other, so that projections go as soon as they are turned.
        query, key, value = (
            self._seen_by_camera(shared.through(layer), norm, rope, turn)
            for layer, norm, turn in (
                (self.q_proj_cam, self.q_norm_cam, matrix.transpose(-1, -2)),
                (self.k_proj_cam, self.k_norm_cam, inverse),
                (self.v_proj_cam, None, inverse),
            )
        )
        out, own = self._attend(
            query, key, value, context, cache, self.config.camera_softmax_scale, camera=True
        )
        del query, key, value
        return self._turned(out.flatten(-2), None, rope, matrix, inverse_rope=True).flatten(-2), own

    def _seen_by_camera(self, x: Tensor, norm: RMSNorm | None, rope: Tensor, matrix: Tensor) -> Tensor:
        turned = self._turned(x, norm, rope, matrix)
        if self.config.camera_rms_cap == "none":
            return turned
        return self.capped(turned, self.split(x if norm is None else norm(x)))

    def _turned(
        self,
        x: Tensor,
        norm: RMSNorm | None,
        rope: Tensor,
        matrix: Tensor | None = None,
        *,
        inverse_rope: bool = False,
    ) -> Tensor:
        """(B, T, S, C) -> (B, T, S, heads, D), normed, then rotated or transformed by rays."""
        return norm_rotate(
            x,
            None if norm is None else norm.weight,
            rope,
            heads=self.heads,
            matrix=matrix,
            inverse_rope=inverse_rope,
            eps=_NORM_EPS,
            backend=self.operators.kernels,
        )

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        context: Context,
        cache: BlockCache | None,
        scale: float | None,
        *,
        camera: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """q, k, v (B, T, S, heads, D) -> the same; beside it keys and values as they are cached, if they are."""
        dtype = q.dtype
        if dtype == torch.float32 and self.config.softmax_bfloat16:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        share, starts = context.share, context.starts
        if share is not None:
            k, v, starts = share.gather(k), share.gather(v), context.clip_starts
        q, k, v = (x.permute(0, 3, 1, 2, 4) for x in (q, k, v))
        streams = cache is not None
        out = frame_attention(
            q,
            k,
            v,
            chunk_starts=None if streams else starts,
            before=_history(cache.chunks, camera) if streams else (),
            first_frame=None if share is None else share.first,
            scale=scale,
            backend=self.operators.attention,
            precision=self.operators.attention_precision,
        )
        own = (k.flatten(2, 3), v.flatten(2, 3)) if streams and context.save else ()
        return out.permute(0, 2, 3, 1, 4).to(dtype), own


def _rays(context: Context) -> Tensor:
    assert context.rays is not None
    return context.rays


def _last_frames(before: Tensor | None, x: Tensor, frames: int) -> Tensor:
    """(B, frames, S, C): the last inputs, those of earlier chunks (or zeros) included where this one is short."""
    if x.shape[1] < frames:
        missing = frames - x.shape[1]
        past = x.new_zeros(x.shape[0], missing, *x.shape[2:]) if before is None else before[:, -missing:]
        x = torch.cat([past, x], dim=1)
    return x[:, x.shape[1] - frames :].detach().clone()


def _history(chunks: list[ChunkKeys], camera: bool) -> list[tuple[Tensor, Tensor]]:
    pairs = [(c.camera_key, c.camera_value) if camera else (c.key, c.value) for c in chunks]
    found = [(k, v) for k, v in pairs if k is not None and v is not None]
    if len(found) != len(chunks):
        raise ValueError("cameras must be given for all chunks of a stream or for none")
    return found


def _forget(chunks: list[ChunkKeys], stream: StreamCache) -> None:
    """Drop what no later chunk reads: all but the sink and the window."""
    if stream.window_chunks is None:
        return
    while len(chunks) > stream.sink_chunks + stream.window_chunks:
        del chunks[stream.sink_chunks]


class CrossAttention(nn.Module):
    """Video tokens read the text."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_size = config.heads, config.head_size
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = RMSNorm(width, 1e-6), RMSNorm(width, 1e-6)

    def forward(self, shared: SharedInput, text: Tensor, mask: Tensor | None) -> Tensor:
        """shared (B, T, S, C), text (B, L, C), mask (B, L) True where a token is real."""
        x = shared.x
        k, v = self.kv_linear(text).chunk(2, dim=-1)
        q = self.q_norm(shared.through(self.q_linear)).flatten(1, 2)
        q, k, v = (
            y.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2) for y in (q, self.k_norm(k), v)
        )
        visible = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.proj(out.transpose(1, 2).flatten(-2).unflatten(1, x.shape[1:3]))


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, applied to channels-last tokens as the linear map that it is."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class ConvWeights(nn.Module):
    """A convolution one level down, as released names have it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv


_HIDDEN_TOKENS = 32768
"""Tokens of a part of the feed-forward network: its hidden layer is six times as wide as a token, 0.9 GB then."""


def _apply(layer: nn.Module, x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """layer(x), written to `out` if one is given."""
    if out is None:
        return layer(x)
    if type(layer) is Pointwise and layer.bias is None:
        torch.mm(x.flatten(0, -2), layer.weight.flatten(1).T, out=out.flatten(0, -2))
    elif isinstance(layer, ScaledLinear):
        layer.write(x, out)
    else:
        out.copy_(layer(x))
    return out


def _inner(starts: tuple[int, ...] | None, like: Tensor) -> Tensor | None:
    """`Context.inner` for the frames of a tensor (B, T, ...)."""
    if starts is None:
        return None
    inner = torch.ones(like.shape[1], 1, 1, dtype=like.dtype)
    inner[[start for start in starts if start > 0]] = 0
    return inner.to(like.device, non_blocking=True)


class FeedForward(nn.Module):
    """Gated feed-forward network with a 3 x 3 convolution over the frame and a 3-tap one over time."""

    def __init__(self, config: WorldModelConfig, operators: Operators) -> None:
        super().__init__()
        width, hidden = config.width, config.ffn_width
        self.backend: Backend = operators.kernels
        self.inverted_conv = ConvWeights(Pointwise(width, 2 * hidden, 1))
        self.depth_conv = ConvWeights(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = ConvWeights(Pointwise(hidden, width, 1, bias=False))
        self.t_conv = nn.Conv2d(width, width, (3, 1), padding=(1, 0), bias=False)

    def forward(
        self, shared: SharedInput, x: Tensor, gate: Tensor, context: Context, cache: BlockCache | None
    ) -> Tensor:
        """x + gate * (the network's output); shared (B, T, S, C) the block's modulated x, gate (B, T or 1, C)."""
        y = self._spatial(shared, x, context.height, context.width)
        before = None if cache is None else cache.ffn
        if cache is not None and context.save:
            cache.ffn = y[:, -1:].detach().clone()
        inner = None if context.stream is not None else context.inner
        if context.share is not None:
            wide, left, right = context.share.halo(y, 1)
            out = self._temporal(
                wide, None, _inner(context.share.starts(context.clip_starts, left, right), wide)
            )
            return gated_add(x, out[:, left : out.shape[1] - right], gate, backend=self.backend)
        if torch.is_grad_enabled() and isinstance(self.t_conv, nn.Conv2d):
            return gated_add(x, self._temporal(y, before, inner), gate, backend=self.backend)
        first = None if before is None else self._past(before)
        return gated_shift_add(x, y, self._taps(y), gate, first=first, inner=inner, backend=self.backend)

    def _taps(self, y: Tensor) -> Tensor:
        """(B, T, S, 3 C): what a frame gives to the next one, to itself and to the one before, as one linear map."""
        if not isinstance(self.t_conv, nn.Conv2d):
            return self.t_conv(y)
        return F.linear(y, self.t_conv.weight.squeeze(-1).permute(2, 0, 1).flatten(0, 1))

    def _past(self, before: Tensor) -> Tensor:
        """(B, 1, S, C): what the frame before a chunk gives to its first."""
        if not isinstance(self.t_conv, nn.Conv2d):
            return self.t_conv(before)[..., : before.shape[-1]]
        return F.linear(before, self.t_conv.weight[:, :, 0, 0])

    def _spatial(self, shared: SharedInput, like: Tensor, height: int, width: int) -> Tensor:
        """Frames do not see each other here, so that a long clip goes through in parts; `like` is of its shape."""
        b, t, s, _ = like.shape
        parts = 1 if torch.is_grad_enabled() else min(b * t, -(-b * t * s // _HIDDEN_TOKENS))
        if parts == 1:
            return _apply(self.point_conv.conv, self._hidden(shared, height, width))
        out = torch.empty_like(like, memory_format=torch.contiguous_format)
        targets = out.flatten(0, 1)[None].tensor_split(parts, dim=1)
        for part, target in zip(shared.split(parts), targets, strict=True):
            _apply(self.point_conv.conv, self._hidden(part, height, width), out=target)
        return out

    def _hidden(self, shared: SharedInput, height: int, width: int) -> Tensor:
        depth = self.depth_conv.conv
        assert depth.bias is not None
        hidden = shared.through(self.inverted_conv.conv)
        return glu_conv(hidden, depth.weight, depth.bias, height=height, width=width, backend=self.backend)

    def _temporal(self, y: Tensor, before: Tensor | None, inner: Tensor | None) -> Tensor:
        """y + conv(y) along time; a chunk's last frame does not see the next chunk's first."""
        past, centre, ahead = self.t_conv.weight.squeeze(-1).unbind(-1)
        b, t, s, c = y.shape
        following = y if inner is None else y * inner
        rows = y.flatten(1, 2)
        out = torch.baddbmm(rows, rows, centre.T.expand(b, c, c))
        if before is not None:
            out[:, :s].baddbmm_(before.flatten(1, 2), past.T.expand(b, c, c))
        if t > 1:
            out[:, s:].baddbmm_(rows[:, :-s], past.T.expand(b, c, c))
            out[:, :-s].baddbmm_(following.flatten(1, 2)[:, s:], ahead.T.expand(b, c, c))
        return out.unflatten(1, (t, s))


class Block(nn.Module):
    """Attention, ray map, text, feed-forward network."""

    def __init__(self, config: WorldModelConfig, number: int, operators: Operators) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)
        self.backend: Backend = operators.kernels
        kind = SoftmaxAttention if config.is_softmax(number) else DeltaNetAttention
        self.attn = kind(config, operators)
        self.plucker_proj = nn.Linear(config.width, config.width)
        self.cross_attn = CrossAttention(config)
        self.mlp = FeedForward(config, operators)

    def forward(
        self, x: Tensor, modulation: Tensor, context: Context, cache: BlockCache | None = None
    ) -> Tensor:
        """x (B, T, S, C); modulation (B, T or 1, 6 C) of each frame's diffusion time."""
        table = self.scale_shift_table + modulation.unflatten(-1, (6, -1))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = table.unbind(-2)
        _, shared = self._modulated(x, None, shift_a, scale_a, self.attn.qkv, keep=True)
        attended = self.attn(shared, context, cache)
        del shared
        rays = None if context.plucker is None else context.plucker.through(self.plucker_proj)
        x, shared = self._gated(x, attended, gate_a, rays)
        del attended, rays
        answer = self.cross_attn(shared, context.text, context.text_mask)
        del shared
        x, shared = self._modulated(x, answer, shift_f, scale_f, self.mlp.inverted_conv.conv, keep=False)
        del answer
        return self.mlp(shared, x, gate_f, context, cache)

    def _gated(self, x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None) -> tuple[Tensor, SharedInput]:
        """x + gate * y + extra, and the same as cross attention reads it."""
        if isinstance(self.cross_attn.q_linear, ScaledLinear) and not torch.is_grad_enabled():
            x, rows = gated_add_rows(x, y, gate, extra, backend=self.backend)
            return x, SharedInput(x, rows)
        x = gated_add(x, y, gate, extra, backend=self.backend)
        return x, SharedInput(x)

    def _modulated(
        self,
        x: Tensor,
        added: Tensor | None,
        shift: Tensor,
        scale: Tensor,
        reader: nn.Module,
        *,
        keep: bool,
    ) -> tuple[Tensor, SharedInput]:
        """x + added, and its LayerNorm with modulation: rounded at once where its reader is in e4m3 (`keep`: others
        read it too)."""
        options = {"eps": _LAYER_NORM_EPS, "backend": self.backend}
        if isinstance(reader, ScaledLinear) and not torch.is_grad_enabled():
            total, normed, rows = modulated_norm_rows(x, shift, scale, keep=keep, added=added, **options)
            return total, SharedInput(normed, rows, x.dtype)
        if added is None:
            return x, SharedInput(modulated_norm(x, shift, scale, **options))
        total, normed = add_modulated_norm(x, added, shift, scale, **options)
        return total, SharedInput(normed)


class FinalLayer(nn.Module):
    def __init__(self, config: WorldModelConfig, operators: Operators) -> None:
        super().__init__()
        self.backend: Backend = operators.kernels
        self.scale_shift_table = nn.Parameter(torch.randn(2, config.width) / config.width**0.5)
        self.linear = nn.Linear(config.width, config.latent_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, T, S, C), time (B, T or 1, C)."""
        shift, scale = (self.scale_shift_table + time[:, :, None]).unbind(-2)
        return self.linear(modulated_norm(x, shift, scale, eps=_LAYER_NORM_EPS, backend=self.backend))


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
            inner = _inner(own, latents.new_empty(1, latents.shape[2], dtype=weight.dtype))
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


@torch.no_grad()
def initialise(model: WorldModel, generator: torch.Generator | None = None) -> None:
    """Initial values from which SANA-WM is trained: gates and convolutions that pass, camera branches that are silent.

    Source: NVlabs/Sana; all linear maps Xavier uniform with zero bias, then the exceptions below.
    """

    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.flatten(1), generator=generator)
    for part in (model.t_embedder.mlp, model.t_block, model.y_embedder.y_proj):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
    nn.init.normal_(model.y_embedder.y_embedding, std=model.config.text_width**-0.5, generator=generator)
    for embedder in (model.plucker_embedder, model.raymap_embedder):
        nn.init.zeros_(embedder.proj.weight)
        if embedder.proj.bias is not None:
            nn.init.zeros_(embedder.proj.bias)
    std = model.config.width**-0.5
    nn.init.normal_(model.final_layer.scale_shift_table, std=std, generator=generator)
    for block in model.blocks:
        assert isinstance(block, Block)
        nn.init.normal_(block.scale_shift_table, std=std, generator=generator)
        nn.init.zeros_(block.mlp.t_conv.weight)
        attn = block.attn
        nn.init.zeros_(attn.out_proj_cam.weight)
        nn.init.zeros_(attn.beta_proj.weight)
        nn.init.constant_(attn.beta_proj.bias, 5.0)
        nn.init.zeros_(attn.gate_proj.weight)
        nn.init.zeros_(attn.A_log)
        nn.init.constant_(attn.dt_bias, -5.0)
        nn.init.zeros_(attn.output_gate.weight)
        nn.init.constant_(attn.output_gate.bias, _SILU_IS_ONE)
        if isinstance(attn, DeltaNetAttention):
            for conv in (attn.conv_k, attn.conv_k_cam):
                nn.init.zeros_(conv.weight)
                conv.weight[:, 0, -1] = 1.0


_SILU_IS_ONE = 1.278464542761074
"""SiLU of it is 1."""


@torch.no_grad()
def start_camera_from_main(model: WorldModel) -> None:
    """Copy queries, keys, values, norms and convolutions of the main branch into the camera branch of every block.

    Where a stage of training adds cameras to weights that were trained without them (`init_cam_from_base`).
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        attn = block.attn
        for target, source in zip(
            (attn.q_proj_cam, attn.k_proj_cam, attn.v_proj_cam), attn.qkv.weight.chunk(3), strict=True
        ):
            target.weight.copy_(source)
            nn.init.zeros_(target.bias)
        attn.q_norm_cam.weight.copy_(attn.q_norm.weight)
        attn.k_norm_cam.weight.copy_(attn.k_norm.weight)
        if isinstance(attn, DeltaNetAttention):
            attn.conv_k_cam.weight.copy_(attn.conv_k.weight)
