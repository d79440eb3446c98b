"""What `frame_gdn` asks of its arguments, on every path."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import check_chunk_starts, check_tensors

if TYPE_CHECKING:
    from .reference import State


@dataclass(frozen=True)
class Tokens:
    """The tensors of a call.

    Attributes:
        q, k, v: (B, T, S, H, D) float32 or bfloat16, the last axis dense, other strides free.
        beta: (B, T, S, H) step size of each token, in [0, 1].
        decay: (B, T, H) float32, how much of the state each frame keeps, in [0, 1].
        q_weight, k_weight: (H * D) RMSNorm weights; the norm runs over all heads together, ReLU follows.
        rope: (2, T, S, pairs) cosines and sines, see `rope_tables`; float16 serves bfloat16 tokens and saves a
            conversion.
        rays: (B, T, S, 3, 4) rigid world-to-ray transforms (`world_to_ray`); no gradient flows to them. A ray of NaN
            makes NaN of every frame that reads its frame, whatever the backend.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    rope: Tensor | None = None
    rays: Tensor | None = None


_BESIDE_K = tuple(f.name for f in fields(Tokens) if f.name != "k")
"""Fixed here: torch.compile of torch 2.11 reads neither `vars` nor `fields` of a record that compiled code made."""


_TYPES = (torch.float32, torch.bfloat16, torch.float64)  # the last for the twin


@dataclass(frozen=True)
class ScanOptions:
    """How the scan runs.

    Attributes:
        bidirectional: False for a causal scan (each frame sees itself and earlier ones).
        chunk_starts: first frames of chunks, increasing; the reverse scan does not cross into an earlier chunk.
            None: one chunk.
        normalise: divide by the unrotated recurrence + eps.
        key_scale: (D S)^-1/2 keeps a head's transitions from expanding (`key_scale` says under which condition).
        norm_eps: of the RMSNorm. eps: of the normaliser.
    """

    bidirectional: bool = True
    chunk_starts: tuple[int, ...] | None = None
    normalise: bool = True
    key_scale: float = 1.0
    norm_eps: float = 1e-5
    eps: float = 1e-8


def check_arguments(
    tokens: Tokens,
    options: ScanOptions,
    *,
    initial: State | None = None,
    initial_reverse: State | None = None,
) -> tuple[int, ...] | None:
    """`chunk_starts`, checked. Raises ValueError where shapes, types, devices or chunks do not fit each other."""
    k, rays, rope, normalise = tokens.k, tokens.rays, tokens.rope, options.normalise
    if k.ndim != 5:
        raise ValueError(f"k is {tuple(k.shape)}; give (batch, frames, tokens, heads, head size)")
    b, t, s, h, d = k.shape
    check_tensors(k, "k", **{name: getattr(tokens, name) for name in _BESIDE_K})
    for name, x in (("q", tokens.q), ("k", k), ("v", tokens.v)):
        if x.dtype not in _TYPES:
            raise ValueError(f"{name} holds {x.dtype}; give float32 or bfloat16")

    def shape(name: str, x: Tensor, *expected: int) -> None:
        if tuple(x.shape) != expected:
            raise ValueError(f"{name} is {tuple(x.shape)}; with k {tuple(k.shape)} it must be {expected}")

    shape("q", tokens.q, b, t, s, h, d)
    shape("v", tokens.v, b, t, s, h, d)
    shape("beta", tokens.beta, b, t, s, h)
    shape("decay", tokens.decay, b, t, h)
    for name, weight in (("q_weight", tokens.q_weight), ("k_weight", tokens.k_weight)):
        if weight is not None and weight.numel() != h * d:
            raise ValueError(f"{name} is {tuple(weight.shape)}; {h} heads of {d} need {h * d} values")
    if rays is not None:
        shape("rays", rays, b, t, s, 3, 4)
        if rope is None:
            raise ValueError("the camera branch rotates half of the head: give rope beside rays")
        if normalise:
            raise ValueError("the camera branch has no normaliser: pass normalise=False with rays")
        if d % 8:
            raise ValueError(f"head size {d}: the camera branch needs a multiple of 8")
    if rope is not None:
        if d % 2:
            raise ValueError(f"head size {d}: rotation turns pairs of channels, it must be even")
        pairs = d // 2 if rays is None else d // 4
        shape("rope", rope, 2, t, s, pairs)
    for name, state in (("initial", initial), ("initial_reverse", initial_reverse)):
        if state is None:
            continue
        shape(f"{name}.kv", state.kv, b, h, d, d)
        if (state.z is None) == normalise:
            raise ValueError(f"{name}.z must be given exactly when normalise is set (normalise={normalise})")
        if state.z is not None:
            shape(f"{name}.z", state.z, b, h, d)
        check_tensors(k, "k", **{f"{name}.kv": state.kv, f"{name}.z": state.z})
    if not options.bidirectional and (options.chunk_starts is not None or initial_reverse is not None):
        raise ValueError(
            "chunk_starts and initial_reverse belong to the reverse scan: set bidirectional=True"
        )
    return check_chunk_starts(options.chunk_starts, t)
