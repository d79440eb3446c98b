"""Attention of the world model: frame-wise Gated DeltaNet and softmax, each with a branch through the rays; to text."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import (
    Result,
    ScanOptions,
    Shard,
    State,
    Tokens,
    frame_attention,
    frame_gdn,
    frame_gdn_context_parallel,
    key_scale,
    norm_rotate,
    output_gate,
    short_conv,
)
from ..kernels.fp8.product import output_gate_rows
from ..kernels.frame_gdn.reference import ray_matrices, ray_transform
from .config import WorldModelConfig
from .context import BlockCache, ChunkKeys, Context, Operators, RayMap, StreamCache
from .scaled_layers import ScaledLinear, SharedInput

_NORM_EPS = 1e-5
"""RMSNorm of queries, keys and text; cross attention has 1e-6."""


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
        numbers = ScanOptions(key_scale=key_scale(self.head_size, q.shape[2]), norm_eps=_NORM_EPS)
        tokens = (self.split(q), self.split(key), self.split(v), *gates)
        if context.share is not None:
            shard = Shard(*tokens, rope=context.rope, chunk_starts=starts)
            return frame_gdn_context_parallel(
                shard, numbers, group=context.share.group, **weights, backend=backend
            ).flatten(-2)
        result = frame_gdn(
            Tokens(*tokens, **weights, rope=context.rope),
            replace(numbers, chunk_starts=starts),
            initial=None if cache is None else cache.gdn,
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
            tokens = Tokens(
                self.split(q),
                self.split(k),
                self.split(v),
                *gates,
                q_weight=self.q_norm_cam.weight,
                k_weight=self.k_norm_cam.weight,
                rope=context.camera_rope,
                rays=context.rays,
            )
            options = ScanOptions(normalise=False, chunk_starts=starts, key_scale=scale, norm_eps=_NORM_EPS)
            result = frame_gdn(tokens, options, initial=initial, backend=backend)
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
            ScanOptions(normalise=False, key_scale=scale, norm_eps=_NORM_EPS),
            group=context.share.group,
            q_weight=self.q_norm_cam.weight,
            k_weight=self.k_norm_cam.weight,
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
            Tokens(query, key, value, beta, decay),
            ScanOptions(normalise=False, chunk_starts=starts),
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
