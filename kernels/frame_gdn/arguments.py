"""What `frame_gdn` asks of its arguments, on every path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..checks import check_chunk_starts, check_tensors

if TYPE_CHECKING:
    from .reference import State


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: Tensor | None = None,
    rays: Tensor | None = None,
    normalise: bool = True,
    bidirectional: bool = True,
    chunk_starts: tuple[int, ...] | None = None,
    initial: State | None = None,
    initial_reverse: State | None = None,
) -> tuple[int, ...] | None:
    """`chunk_starts`, checked. Raises ValueError where shapes, types, devices or chunks do not fit each other."""
    if k.ndim != 5:
        raise ValueError(f"k is {tuple(k.shape)}; give (batch, frames, tokens, heads, head size)")
    b, t, s, h, d = k.shape
    check_tensors(
        k, "k", q=q, v=v, beta=beta, decay=decay, q_weight=q_weight, k_weight=k_weight, rope=rope, rays=rays
    )

    def shape(name: str, x: Tensor, *expected: int) -> None:
        if tuple(x.shape) != expected:
            raise ValueError(f"{name} is {tuple(x.shape)}; with k {tuple(k.shape)} it must be {expected}")

    shape("q", q, b, t, s, h, d)
    shape("v", v, b, t, s, h, d)
    shape("beta", beta, b, t, s, h)
    shape("decay", decay, b, t, h)
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
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
    if not bidirectional and (chunk_starts is not None or initial_reverse is not None):
        raise ValueError(
            "chunk_starts and initial_reverse belong to the reverse scan: set bidirectional=True"
        )
    return check_chunk_starts(chunk_starts, t)
