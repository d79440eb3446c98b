"""Blocks of the world model, what embeds time and text before them, and the layer behind them."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import (
    add_modulated_norm,
    gated_add,
    gated_shift_add,
    glu_conv,
    modulated_norm,
)
from ..kernels.backend import Backend
from ..kernels.fp8.product import gated_add_rows, modulated_norm_rows
from .attention import CrossAttention, DeltaNetAttention, SoftmaxAttention
from .config import WorldModelConfig
from .context import BlockCache, Context, Operators
from .scaled_layers import ScaledLinear, SharedInput

_LAYER_NORM_EPS = 1e-6


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
TRAINED_HIDDEN_TOKENS = 8192
"""The same in training, where a part's hidden layer lies there 21 token widths wide with its gradients: 0.8 GB."""


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


def inner_starts(starts: tuple[int, ...] | None, like: Tensor) -> Tensor | None:
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
        self.recompute_parts = False
        """In training: part by part, each computed again in the backward pass; no whole hidden layer is ever there."""
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
                wide, None, inner_starts(context.share.starts(context.clip_starts, left, right), wide)
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
        training = torch.is_grad_enabled()
        whole = training and not self.recompute_parts
        most = TRAINED_HIDDEN_TOKENS if training else _HIDDEN_TOKENS
        parts = 1 if whole else min(b * t, -(-b * t * s // most))
        if parts == 1:
            return _apply(self.point_conv.conv, self._hidden(shared, height, width))
        if training:

            def through(x: Tensor) -> Tensor:
                return self.point_conv.conv(self._hidden(SharedInput(x), height, width))

            found = [checkpoint(through, part.x, use_reentrant=False) for part in shared.split(parts)]
            return torch.cat(cast(list[Tensor], found), dim=1).view(like.shape)
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
