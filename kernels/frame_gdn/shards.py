"""Context parallelism: a clip's frames spread over shards, each with its own part of the scan.

A shard reduces to a composite (C, H) per head: any incoming state X leaves as X C + H. The exclusive prefix of
the composites gives every shard its incoming state, forwards and (in the other order) backwards in time; then
each shard is an ordinary call with an initial state. Backward the same holds for gradients: a shard passes
the gradient G of its outgoing state on as G C^T plus what its own frames add. What travels is D x D numbers
per head and shard, never tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..backend import Backend, resolve_backend
from .arguments import ScanOptions, Tokens, check_arguments
from .op import cached_keep
from .reference import (
    Composite,
    State,
    chunk_keep,
    exclusive_prefix,
    frame_gdn_reference,
    frame_products,
    prepare,
    scan_composite,
)
from .tensors import Ends, Readout, make_inputs


@dataclass(frozen=True)
class Shard:
    """One shard's share of `frame_gdn`'s arguments, in the order of frames."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor
    rope: Tensor | None = None
    rays: Tensor | None = None
    chunk_starts: tuple[int, ...] | None = None
    """Counted from this shard's first frame; 0 where a chunk starts with it."""


Exchange = Callable[[list[Tensor]], list[Tensor]]
"""Takes one tensor of each local shard, returns those of all shards, in order of shards."""


def frame_gdn_shards(
    shards: list[Shard],
    options: ScanOptions | None = None,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    backend: Backend = "auto",
) -> list[Tensor]:
    """`frame_gdn` over a clip in several shards, all in this process.

    Args:
        options: of all shards; chunks are each shard's own.
    Returns:
        the output of every shard; equal to the output of one call on the whole clip.
    Raises:
        ValueError: on shapes that do not fit.
    """
    options = ScanOptions() if options is None else options
    return _run(shards, q_weight, k_weight, options, backend, lambda tensors: tensors, range(len(shards)))


def frame_gdn_context_parallel(
    shard: Shard,
    options: ScanOptions | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`frame_gdn` over a clip whose frames are spread over the ranks of `group`, in order of rank.

    Each rank gives its shard and gets its output. Gradients of weights are those of the rank's own frames: sum
    them over the group as for any sharded batch.
    """
    options = ScanOptions() if options is None else options
    size, rank = dist.get_world_size(group), dist.get_rank(group)

    def exchange(tensors: list[Tensor]) -> list[Tensor]:
        gathered = [torch.empty_like(tensors[0], memory_format=torch.contiguous_format) for _ in range(size)]
        dist.all_gather(gathered, tensors[0].contiguous(), group=group)
        return gathered

    return _run([shard], q_weight, k_weight, options, backend, exchange, range(rank, rank + 1))[0]


def _run(
    shards: list[Shard],
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    options: ScanOptions,
    backend: Backend,
    exchange: Exchange,
    mine: range,
) -> list[Tensor]:
    if not shards:
        raise ValueError("there must be at least one shard")
    if options.chunk_starts is not None:
        raise ValueError(
            "chunk_starts belong to each shard, counted from its first frame: leave the options' out"
        )
    first, starts = shards[0].k, []
    for number, shard in enumerate(shards):
        fixed = [(x.shape[0], *x.shape[2:], x.dtype, x.device) for x in (first, shard.k)]
        if fixed[0] != fixed[1]:
            raise ValueError(
                f"shard {number}: k is {tuple(shard.k.shape)} {shard.k.dtype} on {shard.k.device}, the first shard's"
                f" {tuple(first.shape)} {first.dtype} on {first.device}; shards may differ in frames only"
            )
        tokens = Tokens(
            *(shard.q, shard.k, shard.v, shard.beta, shard.decay, q_weight, k_weight, shard.rope, shard.rays)
        )
        given = check_arguments(tokens, replace(options, chunk_starts=shard.chunk_starts))
        starts.append(given)
    local = _TritonShards if resolve_backend(backend, shards[0].k) else _ReferenceShards
    tensors: list[Tensor | None] = [q_weight, k_weight]
    for shard in shards:
        tensors += [shard.q, shard.k, shard.v, shard.beta, shard.decay, shard.rope, shard.rays]
    return list(cast(Any, _ShardedScan).apply(local, options, exchange, mine, starts, *tensors))


@dataclass(frozen=True)
class _Ends:
    """States, transitions or gradients at a shard's ends, (B, H, R, D) each, R = 1 for the normaliser's."""

    kv: Tensor
    z: Tensor | None = None
    kv_reverse: Tensor | None = None
    z_reverse: Tensor | None = None

    @property
    def names(self) -> list[str]:
        return [name for name, x in vars(self).items() if x is not None]


class _ReferenceShards:
    """The local shards in plain torch."""

    def __init__(
        self,
        options: ScanOptions,
        starts: list[Any],
        tensors: tuple[Tensor | None, ...],
        kept: list[Any] | None,
    ) -> None:
        self.options, self.starts, self.kept = options, starts, kept
        self.tensors = [
            None if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in tensors
        ]

    def _arguments(self, i: int) -> tuple[Any, ...]:
        return tuple(self.tensors[2 + 7 * i : 9 + 7 * i])

    def composites(self) -> tuple[list[_Ends], list[_Ends]]:
        """Transition and state from zero of every local shard."""
        transitions, ends = [], []
        for i, start in enumerate(self.starts):
            _, k, v, beta, decay, rope, rays = self._arguments(i)
            with torch.no_grad():
                ready = prepare(
                    None, k, v, beta, q_weight=None, k_weight=self.tensors[1], rope=rope, rays=rays,
                    key_scale=self.options.key_scale, norm_eps=self.options.norm_eps,
                )  # fmt: skip
                g = decay.to(ready.key.dtype)
                found: dict[str, Composite] = {}
                pairs = {"kv": frame_products(ready.key, ready.value, ready.beta)}
                if self.options.normalise:
                    ones = torch.ones_like(ready.plain_key[..., :1])
                    pairs["z"] = frame_products(ready.plain_key, ones, ready.beta)
                for name, (p, u) in pairs.items():
                    found[name] = scan_composite(p, u, g)
                    if self.options.bidirectional:
                        keep = chunk_keep(k.shape[1], start, g)
                        found[f"{name}_reverse"] = scan_composite(p, u, g, keep=keep)
            transitions.append(_Ends(**{name: x.c for name, x in found.items()}))
            ends.append(_Ends(**{name: x.h for name, x in found.items()}))
        return transitions, ends

    def outputs(self, initial: list[_Ends]) -> list[Tensor]:
        with torch.no_grad():
            return [self._call(i, start)[0] for i, start in enumerate(initial)]

    def _call(self, i: int, start: _Ends) -> tuple[Tensor, _Ends]:
        q, k, v, beta, decay, rope, rays = self._arguments(i)

        def state(kv: Tensor | None, z: Tensor | None) -> State | None:
            return None if kv is None else State(kv, None if z is None else z[:, :, 0])

        result = frame_gdn_reference(
            Tokens(q, k, v, beta, decay, self.tensors[0], self.tensors[1], rope, rays),
            replace(self.options, chunk_starts=self.starts[i]),
            initial=state(start.kv, start.z),
            initial_reverse=state(start.kv_reverse, start.z_reverse),
        )
        ends = {"kv": result.final.kv, "z": result.final.z}
        if result.final_reverse is not None:
            ends |= {"kv_reverse": result.final_reverse.kv, "z_reverse": result.final_reverse.z}
        rows: dict[str, Any] = {
            n: x[:, :, None] if n.startswith("z") and x is not None else x for n, x in ends.items()
        }
        return result.out, _Ends(**rows)

    def backward(
        self, initial: list[_Ends], outs: tuple[Tensor, ...], douts: tuple[Tensor, ...]
    ) -> list[_Ends]:
        """Gradients of the incoming states by way of the local outputs alone."""
        self.douts, self.graphs = douts, []
        found = []
        for i, (start, dout) in enumerate(zip(initial, douts, strict=True)):
            leaves = {n: getattr(start, n).detach().requires_grad_() for n in start.names}
            with torch.enable_grad():
                out, ends = self._call(i, _Ends(**leaves))
            grads = torch.autograd.grad(out, list(leaves.values()), dout, retain_graph=True)
            self.graphs.append((out, ends))
            found.append(_Ends(**dict(zip(leaves, grads, strict=True))))
        return found

    def finish(self, incoming: list[_Ends]) -> list[Tensor | None]:
        """Gradients of all tensors, given those of the outgoing states."""
        results, seeds = [], []
        for (out, ends), dout, dends in zip(self.graphs, self.douts, incoming, strict=True):
            results += [out] + [getattr(ends, n) for n in dends.names]
            seeds += [dout] + [getattr(dends, n) for n in dends.names]
        wanted = [x for x in self.tensors if x is not None]
        grads = iter(torch.autograd.grad(results, wanted, seeds, allow_unused=True))
        return [None if x is None else next(grads) for x in self.tensors]


class _TritonShards:
    """The local shards by the kernels: products, then scans with what came in.

    kept: per shard, for the backward pass: products, states and the queries' norms, matrices and numbers per
    frame and head or per token, none of them as large as a token tensor.
    """

    def __init__(
        self,
        options: ScanOptions,
        starts: list[Any],
        tensors: tuple[Tensor | None, ...],
        kept: list[Any] | None,
    ) -> None:
        from . import launch

        self.tensors = tensors
        self.inputs = [
            _inputs(options, tensors[0], tensors[1], tensors[2 + 7 * i : 9 + 7 * i], start)
            for i, start in enumerate(starts)
        ]
        self.kept = kept
        if kept is None:
            self.products = [launch.compute_products(x) for x in self.inputs]
        else:
            self.products = [products for products, _, _ in kept]

    @staticmethod
    def _from_launch(ends: Any) -> _Ends:
        rows: dict[str, Any] = {
            n: x[:, :, None] if x is not None and x.ndim == 3 else x for n, x in vars(ends).items()
        }
        return _Ends(**rows)

    @staticmethod
    def _to_launch(ends: _Ends) -> Any:
        from .tensors import Ends

        return Ends(
            **{
                n: (x[:, :, 0] if n.startswith("z") else x).contiguous()
                for n, x in vars(ends).items()
                if x is not None
            }
        )

    def composites(self) -> tuple[list[_Ends], list[_Ends]]:
        from . import launch

        pairs = list(zip(self.inputs, self.products, strict=True))
        transitions = [self._from_launch(launch.compute_transitions(x, p)) for x, p in pairs]
        ends = [launch.compute_states(x, p, Ends(), store=False).ends for x, p in pairs]
        return transitions, [self._from_launch(e) for e in ends]

    def outputs(self, initial: list[_Ends]) -> list[Tensor]:
        from . import launch

        outs, self.kept = [], []
        for x, products, start in zip(self.inputs, self.products, initial, strict=True):
            states = launch.compute_states(x, products, self._to_launch(start))
            readout = launch.compute_readout(x, states)
            outs.append(readout.out)
            self.kept.append((replace(products, u=products.u if x.rays is not None else None, uz=None),
                              replace(states, ends=Ends()), readout.q_inv))  # fmt: skip
        return outs

    def backward(
        self, initial: list[_Ends], outs: tuple[Tensor, ...], douts: tuple[Tensor, ...]
    ) -> list[_Ends]:
        from . import launch

        assert self.kept is not None
        self.initial = initial
        self.states = [states for _, states, _ in self.kept]
        self.reads, found = [], []
        for x, (products, states, q_inv), out, dout in zip(self.inputs, self.kept, outs, douts, strict=True):
            read = launch.readout_backward(x, states, Readout(out, q_inv), dout)
            self.reads.append(read)
            own = launch.states_backward(x, products, read.dkv, read.dz, Ends(), store=False).ends
            found.append(self._from_launch(own))
        return found

    def finish(self, incoming: list[_Ends]) -> list[Tensor | None]:
        from . import launch

        grads: list[Tensor | None] = []
        weights: list[Tensor | None] = [None, None]
        work = zip(self.inputs, self.products, self.states, self.reads, self.initial, incoming, strict=True)
        for x, p, states, read, start, dends in work:
            chain = launch.states_backward(x, p, read.dkv, read.dz, self._to_launch(dends))
            initial = self._to_launch(start)
            steps = launch.combine(x, p, states, initial, chain)
            made = launch.products_backward(x, p, states, initial, chain, steps)
            grads += [read.dq, made.dk, made.dv, made.dbeta, made.ddecay, None, None]
            for i, dweight in enumerate((read.dweight, made.dweight)):
                if dweight is not None:
                    held = weights[i]
                    weights[i] = dweight if held is None else held + dweight
        return weights + grads


class _ShardedScan(torch.autograd.Function):
    """Composites exchanged, then every shard by itself; and back with gradients in place of states."""

    @staticmethod
    def forward(
        ctx: Any, local: Any, options: ScanOptions, exchange: Exchange, mine: range, starts: list[Any],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        shards = local(options, starts, tensors, None)
        transitions, ends = shards.composites()
        everyone = _gather(transitions, exchange)
        initial = _incoming(everyone, _gather(ends, exchange), mine)
        outs = tuple(shards.outputs(initial))
        ctx.save_for_backward(*tensors, *outs)
        ctx.initial, ctx.transitions, ctx.kept = initial, everyone, shards.kept
        ctx.rest = (local, options, exchange, mine, starts, len(tensors))
        return outs

    @staticmethod
    # autograd's own signature takes anything, this one tensors
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        local, options, exchange, mine, starts, count = ctx.rest
        saved = ctx.saved_tensors  # once: under checkpointing a second look is an error
        tensors, outs = saved[:count], saved[count:]
        shards = local(options, starts, tensors, ctx.kept)
        own = _gather(shards.backward(ctx.initial, outs, douts), exchange)
        # Gradients walk the shards the other way, through the same transitions transposed.
        transposed = [_Ends(**{n: getattr(t, n).transpose(-1, -2) for n in t.names}) for t in ctx.transitions]
        grads = shards.finish(_incoming(transposed, own, mine, backward=True))
        given = [
            None if t is None or g is None else g.to(t.dtype).view_as(t)
            for t, g in zip(tensors, grads, strict=True)
        ]
        return (None, None, None, None, None, *given)


def _inputs(
    options: ScanOptions,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    chunk_starts: tuple[int, ...] | None,
) -> Any:

    q, k, v, beta, decay, rope, rays = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    assert beta is not None
    assert decay is not None
    keep = cached_keep(k.shape[1], chunk_starts, k.device) if options.bidirectional else None
    return make_inputs(Tokens(q, k, v, beta, decay, q_weight, k_weight, rope, rays), options, keep)


def _gather(local: list[_Ends], exchange: Exchange) -> list[_Ends]:
    """Those of all shards, in order of shards; what a shard sends goes as one message."""
    names = local[0].names
    shapes = [getattr(local[0], n).shape for n in names]
    packed = exchange([torch.cat([getattr(ends, n).flatten() for n in names]) for ends in local])
    parts = [x.split([shape.numel() for shape in shapes]) for x in packed]
    return [
        _Ends(**{n: x.view(shape) for n, x, shape in zip(names, part, shapes, strict=True)}) for part in parts
    ]


def _incoming(
    transitions: list[_Ends], ends: list[_Ends], mine: range, *, backward: bool = False
) -> list[_Ends]:
    """What comes into each local shard, from what all shards do: states, or backward gradients of the states
    that it hands on.

    The forward scan runs through the shards from the first, the reverse scan from the last; gradients run
    the other way than their states.
    """
    found: dict[str, list[Tensor]] = {}
    for name in ends[0].names:
        everyone = [
            Composite(getattr(t, name), getattr(e, name)) for t, e in zip(transitions, ends, strict=True)
        ]
        if name.endswith("_reverse") != backward:
            found[name] = exclusive_prefix(everyone[::-1])[::-1]
        else:
            found[name] = exclusive_prefix(everyone)
    return [_Ends(**{name: states[i] for name, states in found.items()}) for i in mine]
