"""Random inputs for the frame-wise GDN and comparison with the float64 twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from theodolite.kernels.backend import Backend
from theodolite.kernels.frame_gdn.arguments import ScanOptions, Tokens
from theodolite.kernels.frame_gdn.op import frame_gdn
from theodolite.kernels.frame_gdn.reference import Result, State, rope_tables, world_to_ray
from torch import Tensor


@dataclass
class Case:
    """Differentiable tensors first, then switches; see `frame_gdn`."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    initial_kv: Tensor | None
    initial_z: Tensor | None
    initial_kv_reverse: Tensor | None
    initial_z_reverse: Tensor | None
    rope: Tensor | None
    rays: Tensor | None
    options: dict


GRADIENTS = tuple(f.name for f in fields(Case))[:11]


def random_poses(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """(B, T, 4, 4) smooth camera_to_world, first one the identity."""
    step = 0.1 * torch.randn(batch, frames, 6, generator=generator, dtype=torch.float64)
    step[:, 0] = 0
    path = step.cumsum(1)
    skew = torch.zeros(batch, frames, 3, 3, dtype=torch.float64)
    x, y, z = path[..., 0], path[..., 1], path[..., 2]
    skew[..., 0, 1], skew[..., 0, 2], skew[..., 1, 2] = -z, y, -x
    skew = skew - skew.transpose(-1, -2)
    pose = torch.eye(4, dtype=torch.float64).repeat(batch, frames, 1, 1)
    pose[..., :3, :3] = torch.linalg.matrix_exp(skew)
    pose[..., :3, 3] = path[..., 3:]
    return pose


def make_case(
    *,
    batch: int = 1,
    frames: int = 3,
    height: int = 3,
    width: int = 7,
    heads: int = 2,
    head_size: int = 24,
    branch: str = "main",
    bidirectional: bool = True,
    chunk_starts: tuple[int, ...] | None = None,
    initial: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    beta: float | None = None,
    decay: float | None = None,
    strided: bool = False,
    seed: int = 0,
) -> Case:
    """`branch`: main (norm, rope, normaliser), camera (norm, rays), plain (prepared q, k, v, no normaliser).

    Long: all that the operator takes, drawn in one order so that a seed stays a case.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = height * width
    shape = (batch, frames, tokens, heads, head_size)
    scale = (head_size * tokens) ** -0.5
    normalise = branch == "main"

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    q, k, v = randn(*shape), randn(*shape), randn(*shape)
    if branch == "plain":
        k = k * scale
    if beta is None:
        gate = torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
    else:
        gate = torch.full(shape[:-1], beta, dtype=torch.float64)
    keep = torch.rand(batch, frames, heads, generator=generator, dtype=torch.float64)
    weights = [1 + 0.2 * randn(heads * head_size) if branch != "plain" else None for _ in range(2)]
    matrix, vector = (batch, heads, head_size, head_size), (batch, heads, head_size)
    ends: list[Tensor | None] = [None] * 4
    if initial:
        ends = [randn(*matrix), 1 + randn(*vector).abs() if normalise else None]
        ends += [randn(*matrix), 1 + randn(*vector).abs() if normalise else None]
        if not bidirectional:
            ends[2] = ends[3] = None
    rope = (
        None if branch == "plain" else rope_tables(frames, height, width, head_size, half=branch == "camera")
    )
    rays = None
    if branch == "camera":
        intrinsics = torch.tensor([width * 0.8, width * 0.8, width / 2, height / 2], dtype=torch.float64)
        poses = random_poses(batch, frames, generator)
        rays = world_to_ray(poses, intrinsics.expand(batch, frames, 4), height, width)

    def leaf(x: Tensor, kind: torch.dtype) -> Tensor:
        return x.to(device, kind).requires_grad_()

    if strided:
        packed = torch.stack([q, k, v], dim=3).to(device, dtype)
        q, k, v = (x.requires_grad_() for x in packed.unbind(3))
    else:
        q, k, v = (x.to(device, dtype).requires_grad_() for x in (q, k, v))
    decay_tensor = 0.5 + 0.5 * keep if decay is None else torch.full_like(keep, decay)
    single = torch.float32 if dtype == torch.bfloat16 else dtype
    return Case(
        q,
        k,
        v,
        leaf(gate, dtype),
        leaf(decay_tensor, single),
        *(None if x is None else leaf(x, single) for x in (*weights, *ends)),
        rope=None if rope is None else rope.to(device),
        rays=None if rays is None else rays.to(device, single),
        options={
            "bidirectional": bidirectional,
            "chunk_starts": chunk_starts,
            "normalise": normalise,
            "key_scale": scale if branch != "plain" else 1.0,
        },
    )


def in_float64(case: Case) -> Case:
    """The same numbers, as the twin takes them."""
    values = {name: getattr(case, name) for name in GRADIENTS}
    double: dict[str, Any] = {
        n: None if x is None else x.detach().double().requires_grad_() for n, x in values.items()
    }
    rays = None if case.rays is None else case.rays.double()
    rope = None if case.rope is None else case.rope.double()
    return Case(**double, rope=rope, rays=rays, options=case.options)


def tokens_of(case: Case) -> Tokens:
    return Tokens(**{f.name: getattr(case, f.name) for f in fields(Tokens)})


def call(function: Callable[..., Any], tokens: Tokens, **change: Any) -> Any:
    """A call with some arguments changed, whichever record they are in."""
    of = {kind: {f.name for f in fields(kind)} & change.keys() for kind in (Tokens, ScanOptions)}
    rest = {n: x for n, x in change.items() if n not in of[Tokens] | of[ScanOptions]}
    return function(
        replace(tokens, **{n: change[n] for n in of[Tokens]}),
        ScanOptions(**{n: change[n] for n in of[ScanOptions]}),
        **rest,
    )


def run(case: Case, backend: Backend) -> Result:
    def state(kv: Tensor | None, z: Tensor | None) -> State | None:
        return None if kv is None else State(kv, z)

    return frame_gdn(
        tokens_of(case),
        ScanOptions(**case.options),
        initial=state(case.initial_kv, case.initial_z),
        initial_reverse=state(case.initial_kv_reverse, case.initial_z_reverse),
        backend=backend,
    )


def outputs(result: Result) -> dict[str, Tensor]:
    named = {"out": result.out, "final.kv": result.final.kv, "final.z": result.final.z}
    if result.final_reverse is not None:
        named |= {"reverse.kv": result.final_reverse.kv, "reverse.z": result.final_reverse.z}
    return {name: x for name, x in named.items() if x is not None}


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; NaN where a holds one; absolute where b is zero."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    norm = b.norm()
    return float((a - b).norm() / (norm if norm > 0 else 1.0))


def errors_against_twin(
    case: Case, *, backend: Backend = "triton", backward: bool = True, seed: int = 1
) -> dict[str, float]:
    """Relative error of every output and gradient against the float64 twin on the same (rounded) inputs."""
    twin = in_float64(case)
    fast, exact = outputs(run(case, backend)), outputs(run(twin, "reference"))
    assert fast.keys() == exact.keys()
    errors = {name: relative(fast[name], exact[name]) for name in fast}
    if not backward:
        return errors
    generator = torch.Generator().manual_seed(seed)
    seeds = {
        name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(fast[name].dtype)
        for name, x in exact.items()
    }
    names = [name for name in GRADIENTS if getattr(case, name) is not None]
    grads = torch.autograd.grad(
        list(fast.values()),
        [getattr(case, n) for n in names],
        [seeds[n].to(x.device) for n, x in fast.items()],
    )
    truth = torch.autograd.grad(
        list(exact.values()),
        [getattr(twin, n) for n in names],
        [seeds[n].double().to(x.device) for n, x in exact.items()],
    )
    return errors | {f"d{n}": relative(g, e) for n, g, e in zip(names, grads, truth, strict=True)}
