"""`frame_gdn`: the public operator, its registration with torch and its gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backend import Backend, op_name, resolve_backend
from .arguments import ScanOptions, Tokens, check_arguments
from .reference import Result, State, chunk_keep, frame_gdn_reference
from .tensors import Chain, Ends, Products, Readout, make_inputs


def frame_gdn(
    tokens: Tokens,
    options: ScanOptions | None = None,
    *,
    initial: State | None = None,
    initial_reverse: State | None = None,
    backend: Backend = "auto",
) -> Result:
    """Frame-wise gated DeltaNet with what stands before it (norm, ReLU, scale, rotation) and behind it.

    Main branch: `rope` for the whole head, `normalise=True`. Camera branch: `rays` and `rope` for half the
    head, `normalise=False`; there beta is divided by how much the rays stretch the keys of a frame, where
    that is more than 1. Without weights and rope, q, k and v are taken as prepared.

    Args:
        tokens: see `Tokens`. options: see `ScanOptions`.
        initial: forward state before the first frame (streaming, previous shard).
        initial_reverse: reverse state after the last frame (next shard).
        backend: "auto" takes Triton on a GPU and the plain twin elsewhere.
    Returns:
        Result; gradients flow through all its tensors, to all tensors but rope and rays.
    Raises:
        ValueError: on shapes, types, devices, chunks or a backend that do not fit.
    """
    options = ScanOptions() if options is None else options
    starts = check_arguments(tokens, options, initial=initial, initial_reverse=initial_reverse)
    if not resolve_backend(backend, tokens.k):
        return frame_gdn_reference(tokens, options, initial=initial, initial_reverse=initial_reverse)
    k = tokens.k
    keep = cached_keep(k.shape[1], starts, k.device) if options.bidirectional else None
    out, kv, z, kv_reverse, z_reverse, *_ = _forward_op(
        *_flat(tokens, options, keep, initial, initial_reverse)
    )
    normalise = options.normalise
    return Result(
        out,
        State(kv, z if normalise else None),
        State(kv_reverse, z_reverse if normalise else None) if options.bidirectional else None,
    )


def _flat(
    tokens: Tokens,
    options: ScanOptions,
    keep: Tensor | None,
    initial: State | None,
    initial_reverse: State | None,
) -> tuple[Any, ...]:
    """What the operators that are registered with torch take, one by one: its schemas know no records."""
    x, states = tokens, (initial, initial_reverse)
    return (
        *(x.q, x.k, x.v, x.beta, x.decay, x.q_weight, x.k_weight, x.rope, x.rays, keep),
        *(end for state in states for end in ((None, None) if state is None else (state.kv, state.z))),
        *(options.normalise, options.key_scale, options.norm_eps, options.eps),
    )


@lru_cache(maxsize=64)
def cached_keep(frames: int, chunk_starts: tuple[int, ...] | None, device: torch.device) -> Tensor:
    """`chunk_keep` in float32, kept: copying it to a GPU makes the host wait."""
    with torch.inference_mode(False):
        return chunk_keep(frames, chunk_starts, torch.empty(0, device=device))


@torch.library.custom_op(op_name("frame_gdn"), mutates_args=())
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    rope: Tensor | None,
    rays: Tensor | None,
    keep: Tensor | None,
    initial_kv: Tensor | None,
    initial_z: Tensor | None,
    initial_kv_reverse: Tensor | None,
    initial_z_reverse: Tensor | None,
    normalise: bool,
    key_scale: float,
    norm_eps: float,
    eps: float,
) -> list[Tensor]:
    """out, final states (kv, z, kv_reverse, z_reverse), then what `_backward_op` takes as `kept`, after out."""
    from . import launch

    tokens = Tokens(q, k, v, beta, decay, q_weight, k_weight, rope, rays)
    options = ScanOptions(normalise=normalise, key_scale=key_scale, norm_eps=norm_eps, eps=eps)
    x = make_inputs(tokens, options, keep)
    initial = _ends(initial_kv, initial_z, initial_kv_reverse, initial_z_reverse)
    products = launch.compute_products(x)
    states = launch.compute_states(x, products, initial)
    readout = launch.compute_readout(x, states)
    # A matrix per frame and head is an eighth of a token tensor at real size: kept, not computed again.
    ends = states.ends
    results = (
        readout.out, ends.kv, ends.z, ends.kv_reverse, ends.z_reverse,
        readout.q_inv, products.k_inv, products.p, products.u if x.turning == 2 else None, products.pz,
        products.stretch, states.kv, states.kv_reverse, states.z, states.z_reverse,
    )  # fmt: skip
    return [torch.empty(0, device=k.device) if r is None else r for r in results]


def _ends(kv: Tensor | None, z: Tensor | None, kv_reverse: Tensor | None, z_reverse: Tensor | None) -> Any:
    from .tensors import Ends

    return Ends(*(None if e is None else e.float().contiguous() for e in (kv, z, kv_reverse, z_reverse)))


@_forward_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    rope: Tensor | None,
    rays: Tensor | None,
    keep: Tensor | None,
    initial_kv: Tensor | None,
    initial_z: Tensor | None,
    initial_kv_reverse: Tensor | None,
    initial_z_reverse: Tensor | None,
    normalise: bool,
    key_scale: float,
    norm_eps: float,
    eps: float,
) -> list[Tensor]:
    b, t, s, h, d = k.shape
    reverse, rays_given = keep is not None, rays is not None
    matrix = torch.float32 if k.dtype == torch.float32 else torch.bfloat16

    def like(wanted: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return k.new_empty(shape if wanted else 0, dtype=dtype if wanted else torch.float32)

    return [
        torch.empty(k.shape, dtype=v.dtype, device=v.device),
        like(True, b, h, d, d),
        like(normalise, b, h, d),
        like(reverse, b, h, d, d),
        like(reverse and normalise, b, h, d),
        like(q_weight is not None, b, t, s),
        like(k_weight is not None, b, t, s),
        like(True, b, t, h, d, d, dtype=matrix),
        like(rays_given, b, t, h, d, d, dtype=matrix),
        like(normalise, b, t, h, d, d, dtype=matrix),
        like(rays_given, b, t, h),
        like(True, b, t, h, d, d, dtype=matrix),
        like(reverse, b, t, h, d, d, dtype=matrix),
        like(normalise, b, t, h, d),
        like(reverse and normalise, b, t, h, d),
    ]


@torch.library.custom_op(op_name("frame_gdn_backward"), mutates_args=())
def _backward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    rope: Tensor | None,
    rays: Tensor | None,
    keep: Tensor | None,
    initial_kv: Tensor | None,
    initial_z: Tensor | None,
    initial_kv_reverse: Tensor | None,
    initial_z_reverse: Tensor | None,
    normalise: bool,
    key_scale: float,
    norm_eps: float,
    eps: float,
    kept: list[Tensor],
    dout: Tensor,
    dkv: Tensor | None,
    dz: Tensor | None,
    dkv_reverse: Tensor | None,
    dz_reverse: Tensor | None,
) -> list[Tensor]:
    from . import launch

    tokens = Tokens(q, k, v, beta, decay, q_weight, k_weight, rope, rays)
    options = ScanOptions(normalise=normalise, key_scale=key_scale, norm_eps=norm_eps, eps=eps)
    x = make_inputs(tokens, options, keep)
    initial = _ends(initial_kv, initial_z, initial_kv_reverse, initial_z_reverse)
    out, q_inv, k_inv, p, u, pz, stretch, *states = (None if y.numel() == 0 else y for y in kept)
    assert out is not None
    assert p is not None
    products = Products(p, u, pz, None, stretch, k_inv)
    chain = Chain(*states, ends=Ends())
    read = launch.readout_backward(x, chain, Readout(out, q_inv), dout)
    grads = launch.states_backward(x, products, read.dkv, read.dz, _ends(dkv, dz, dkv_reverse, dz_reverse))
    steps = launch.combine(x, products, chain, initial, grads)
    made = launch.products_backward(x, products, chain, initial, grads, steps)
    none = beta.new_empty(0)
    results = [
        read.dq,
        made.dk,
        made.dv,
        made.dbeta,
        made.ddecay.to(decay.dtype),
        *(
            None if weight is None or found is None else found.to(weight.dtype).view_as(weight)
            for weight, found in ((q_weight, read.dweight), (k_weight, made.dweight))
        ),
    ]
    starts = (initial_kv, initial_z, initial_kv_reverse, initial_z_reverse)
    dstarts = (grads.ends.kv, grads.ends.z, grads.ends.kv_reverse, grads.ends.z_reverse)
    results += [
        None if s is None or d is None else d.to(s.dtype) for s, d in zip(starts, dstarts, strict=True)
    ]
    return [none.clone() if r is None else r for r in results]


@_backward_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    rope: Tensor | None,
    rays: Tensor | None,
    keep: Tensor | None,
    initial_kv: Tensor | None,
    initial_z: Tensor | None,
    initial_kv_reverse: Tensor | None,
    initial_z_reverse: Tensor | None,
    normalise: bool,
    key_scale: float,
    norm_eps: float,
    eps: float,
    kept: list[Tensor],
    dout: Tensor,
    dkv: Tensor | None,
    dz: Tensor | None,
    dkv_reverse: Tensor | None,
    dz_reverse: Tensor | None,
) -> list[Tensor]:
    wanted = (q, k, v, beta, decay, q_weight, k_weight, initial_kv, initial_z, initial_kv_reverse)
    return [
        beta.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (*wanted, initial_z_reverse)
    ]


_NUM_TENSORS = 14


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], output[0], *output[5:])
    ctx.switches = inputs[_NUM_TENSORS:]


def _backward(ctx: Any, dresults: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    dout, *dends = dresults
    saved = ctx.saved_tensors  # once: under checkpointing a second look is an error
    tensors, kept = saved[:_NUM_TENSORS], list(saved[_NUM_TENSORS:])
    out = kept[0]
    normalise, reverse = ctx.switches[0], tensors[9] is not None
    b, _, _, h, d = out.shape
    given: list[Tensor | None] = list(dends[:4])
    # States whose gradients nobody asked for: none at all, or zeros beside those that somebody did.
    for pair, wanted in (((0, 1), True), ((2, 3), reverse)):
        if wanted and any(given[i] is not None for i in pair):
            for i, shape in zip(pair, ((b, h, d, d), (b, h, d)), strict=True):
                if given[i] is None and (normalise or i % 2 == 0):
                    given[i] = torch.zeros(shape, dtype=torch.float32, device=out.device)
        else:
            given[pair[0]] = given[pair[1]] = None
    if not normalise:
        given[1] = given[3] = None
    dout = torch.zeros_like(out) if dout is None else dout
    grads = _backward_op(*tensors, *ctx.switches, kept, dout, *given)
    positions = (0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13)
    result: list[Tensor | None] = [None] * (_NUM_TENSORS + len(ctx.switches))
    for position, grad in zip(positions, grads, strict=True):
        if tensors[position] is not None and ctx.needs_input_grad[position]:
            result[position] = grad
    return tuple(result)


_forward_op.register_autograd(_backward, setup_context=_setup_context)


def key_scale(head_size: int, tokens: int) -> float:
    """Scale of the keys, (D S)^-1/2, that holds a frame's transition M = g (I - P) together.

    P = K diag(beta) K^T is positive semidefinite, so |M| <= g exactly as long as its largest eigenvalue is at
    most 2. With this scale its trace is the mean over a frame's S tokens of beta |k|^2 / D, k unscaled: a head
    whose mean squared key is at most 2 D can not expand, whatever its keys. RMSNorm runs over all heads
    together: their mean squares are D on average (less behind ReLU, times the squared norm weight), but one
    head may take up to H D, and beyond twice its even share it can expand. That is NVlabs/Sana's definition,
    on which released weights rest; nothing here clips it.
    """
    return (head_size * tokens) ** -0.5
