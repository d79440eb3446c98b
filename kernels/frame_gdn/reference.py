"""Frame-wise gated DeltaNet in plain torch: the specification that the kernels are held against.

Letters: B batch, T frames, S tokens a frame, H heads, D head size. One head, one frame, tokens as columns:

    P_t = K_t diag(beta_t) K_t^T        U_t = V_t diag(beta_t) K_t^T
    S_t = g_t S_{t-1} (I - P_t) + U_t   (D_v x D_k; "the forward state", inclusive of frame t)
    R_t = g_{t+1} R_{t+1} (I - P_{t+1}) + U_{t+1},  R_{T-1} = 0   (the reverse state, exclusive of frame t)
    out_t = (S_t + R_t) Q_t

The normaliser runs the same recurrence on a row vector with the keys before rotation,
z_t = g_t z_{t-1} (I - K diag(beta) K^T) + (K beta)^T, and divides: out = num / (z Q + eps).
Source: SANA-WM (arXiv 2605.15178) and the public NVlabs/Sana code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_chunk_starts, check_counts, check_tensors
from .arguments import ScanOptions, Tokens, check_arguments

Degenerate = Literal["auto", "refuse", "nan", "identity"]
_RIGID = 0.05
"""Largest entry of R R^T - I of what is taken for a rotation: bfloat16 leaves 0.01."""


@dataclass(frozen=True)
class State:
    """What a scan hands on: everything that frames on one side say to those on the other.

    Args:
        kv: (B, H, D, D) float32, value by key.
        z: (B, H, D) float32, the normaliser's state; None for the camera branch.
    """

    kv: Tensor
    z: Tensor | None = None


@dataclass(frozen=True)
class Result:
    """Output of `frame_gdn` with the states at both ends.

    Args:
        out: (B, T, S, H, D) in the dtype of v.
        final: forward state after the last frame, for the frames that follow (streaming, next shard).
        final_reverse: reverse state before the first frame, for the frames that precede (previous shard);
            None for a causal scan.
    """

    out: Tensor
    final: State
    final_reverse: State | None = None


def rope_tables(
    frames: Tensor | int, height: int, width: int, head_size: int, *, half: bool = False, theta: float = 1e4
) -> Tensor:
    """Table of the three-axis rotary embedding of the world model.

    Args:
        frames: number of frames, or an int tensor (T,) of absolute latent frame numbers (streaming).
        height, width: token grid of a frame.
        head_size: D. D/2 pairs of neighbours (2i, 2i+1), of which D//6 rotate by the row, D//6 by the column
            and the rest, the first, by time.
        half: tables for the second half of the head only (camera branch): the first, highest frequencies
            of each axis.
    Returns:
        (2, T, S, pairs) float64: cosines, then sines; tokens are row-major. For the whole head cosine and sine
        of a pair are neighbours in memory, which saves the kernels a copy.
    Raises:
        ValueError: sizes that are no positive whole numbers, a head size that cannot be paired.
    Source: NVlabs/Sana `wan_rope`; angles are position * theta^(-2i/d) with d the axis's full size.
    """
    check_counts(height=height, width=width, head_size=head_size)
    if isinstance(frames, Tensor):
        if frames.ndim != 1 or len(frames) == 0:
            raise ValueError(f"frames is {tuple(frames.shape)}; give a number, or (T,) frame numbers")
    else:
        check_counts(frames=frames)
    if min(height, width, len(frames) if isinstance(frames, Tensor) else frames) < 1:
        raise ValueError(f"{frames} frames of {height} x {width} tokens: none may be 0")
    if head_size < 2 or head_size % (4 if half else 2):
        raise ValueError(f"head size {head_size}: give a multiple of {4 if half else 2}")
    spatial_pairs = head_size // 6
    pairs = (head_size // 2 - 2 * spatial_pairs, spatial_pairs, spatial_pairs)
    used = pairs
    if half:
        part = head_size // 2
        used = (part // 2 - 2 * (part // 6), part // 6, part // 6)
    time = torch.arange(frames, dtype=torch.float64) if isinstance(frames, int) else frames.double()
    grid = torch.meshgrid(
        time,
        torch.arange(height, dtype=torch.float64, device=time.device),
        torch.arange(width, dtype=torch.float64, device=time.device),
        indexing="ij",
    )
    angles = []
    for axis, position in enumerate(grid):
        index = torch.arange(used[axis], dtype=torch.float64, device=time.device)
        angles.append(position.flatten(1)[..., None] * theta ** (-index / pairs[axis]))
    angle = torch.cat(angles, dim=-1)
    if half:
        return torch.stack([angle.cos(), angle.sin()])
    return torch.stack([angle.cos(), angle.sin()], dim=-1).permute(3, 0, 1, 2)


def world_to_ray(
    camera_to_world: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    *,
    degenerate: Degenerate = "auto",
) -> Tensor:
    """Rigid transform from the world to the frame of each token's ray.

    A camera is degenerate where it gives a ray no frame: a focal length that is not above zero, values that are no
    numbers, a matrix that is no rotation (scaled and mirrored ones).

    Args:
        camera_to_world: (B, T, 3 or 4, 4), OpenCV axes, metres.
        intrinsics: (B, T, 4) fx, fy, cx, cy in units of tokens (pixels / 32 at full size).
        height, width: token grid.
        degenerate: what a degenerate camera does. "refuse": an error that names it; on a GPU the host waits for that.
            "nan": rays of NaN, which `frame_gdn` carries to its output. "identity": the identity, as NVlabs/Sana does,
            so that such a clip trains on as if its camera stood at the origin. "auto": refuse on the CPU, NaN on a GPU
            and in compiled code.
    Returns:
        (B, T, height * width, 3, 4) rows x, y, z of the ray frame and the translation.
    Raises:
        ValueError: shapes, types or devices that do not fit; a degenerate camera, if it is to be refused.
    Source: UCPE of SANA-WM; token (u, v) looks along ((u - cx)/fx, (v - cy)/fy, 1) without a half token.
    """
    if degenerate not in get_args(Degenerate):
        raise ValueError(f"degenerate {degenerate!r}: use one of {', '.join(get_args(Degenerate))}")
    check_counts(height=height, width=width)
    if min(height, width) < 1:
        raise ValueError(f"{height} x {width} tokens: none may be 0")
    check_tensors(camera_to_world, "camera_to_world", intrinsics=intrinsics)
    b_t = camera_to_world.shape[:-2]
    if len(b_t) != 2 or camera_to_world.shape[-2:] not in ((3, 4), (4, 4)) or intrinsics.shape != (*b_t, 4):
        raise ValueError(
            f"camera_to_world is {tuple(camera_to_world.shape)}, intrinsics {tuple(intrinsics.shape)}; give"
            " (B, T, 3 or 4, 4) and (B, T, 4)"
        )
    fx, fy, cx, cy = (intrinsics[..., i, None, None] for i in range(4))
    u = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device)
    v = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device)
    x, y = torch.broadcast_tensors((u - cx) / fx, (v[:, None] - cy) / fy)
    direction = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(-3, -2)
    rotation, centre = camera_to_world[..., :3, :3], camera_to_world[..., :3, 3]
    z_axis = torch.nn.functional.normalize(direction @ rotation.transpose(-1, -2), dim=-1)
    down = rotation[..., None, :, 1].expand_as(z_axis)
    x_axis = torch.nn.functional.normalize(torch.linalg.cross(down, z_axis), dim=-1)
    y_axis = torch.nn.functional.normalize(torch.linalg.cross(z_axis, x_axis), dim=-1)
    rows = torch.stack([x_axis, y_axis, z_axis], dim=-2)
    translation = -(rows @ centre[..., None, :, None])
    result = torch.cat([rows, translation], dim=-1)
    # `normalize` leaves a zero vector zero, so a matrix that is no rotation may give finite rows without length.
    usable = result.isfinite().all(-1).all(-1) & (rows.square().sum(-1) > 0.5).all(-1)
    usable = usable & _is_camera(rotation, intrinsics)[..., None]
    if degenerate == "auto":
        degenerate = "nan" if result.is_cuda or torch.compiler.is_compiling() else "refuse"
    if degenerate == "refuse":
        if not bool(usable.all()):
            b, t, s = (~usable).nonzero()[0].tolist()
            raise ValueError(
                f"the camera of batch {b}, frame {t} gives token {s} no ray: intrinsics {intrinsics[b, t].tolist()},"
                f" camera_to_world {camera_to_world[b, t, :3].tolist()}"
            )
        return result
    if degenerate == "identity":
        other = torch.eye(3, 4, dtype=result.dtype, device=result.device)
    else:
        other = torch.full((), torch.nan, dtype=result.dtype, device=result.device)
    return torch.where(usable[..., None, None], result, other)


def _is_camera(rotation: Tensor, intrinsics: Tensor) -> Tensor:
    """(B, T) bool: rotations (B, T, 3, 3) that are some, in whatever type they are stored, and lenses (B, T, 4) with
    focal lengths above zero."""
    r = rotation.float()
    off = r @ r.transpose(-1, -2) - torch.eye(3, device=r.device)
    # The rows' triple product: a determinant whose kernel does not wait for the host.
    volume = (torch.linalg.cross(r[..., 0, :], r[..., 1, :]) * r[..., 2, :]).sum(-1)
    return (off.abs() < _RIGID).all(-1).all(-1) & (volume > 0) & (intrinsics[..., :2] > 0).all(-1)


def rotate(x: Tensor, rope: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate neighbouring pairs of the last axis of x (B, T, S, H, 2 P) by `rope` (2, T, S, P); in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = rope.to(dtype)[:, None, :, :, None]
    if inverse:
        sin = -sin
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def ray_matrices(rays: Tensor) -> tuple[Tensor, Tensor]:
    """4x4 world-to-ray transform P (B, T, S, 4, 4) and its inverse."""
    bottom = torch.zeros_like(rays[..., :1, :])
    bottom[..., 3] = (
        1.0  # filled in place: nothing is copied from the host, so that CUDA graphs can record it
    )
    rotation, translation = rays[..., :3], rays[..., 3:]
    inverse = torch.cat([rotation.transpose(-1, -2), -rotation.transpose(-1, -2) @ translation], dim=-1)
    return torch.cat([rays, bottom], dim=-2), torch.cat([inverse, bottom], dim=-2)


def ray_transform(x: Tensor, matrix: Tensor, rope: Tensor, *, inverse_rope: bool = False) -> Tensor:
    """First half of each head in groups of four by a matrix, second half rotated (UCPE).

    Args:
        x: (B, T, S, H, D).
        matrix: (B, T, S, 4, 4); the product is computed in its type.
        rope: (2, T, S, D / 4).
        inverse_rope: rotate back.
    Returns:
        (B, T, S, H, D) in the dtype of x.
    """
    half = x.shape[-1] // 2
    groups = x[..., :half].unflatten(-1, (-1, 4)).to(matrix.dtype)
    first = torch.einsum("btsij,btshgj->btshgi", matrix, groups).flatten(-2).to(x.dtype)
    return torch.cat([first, rotate(x[..., half:], rope, inverse=inverse_rope)], dim=-1)


def _norm_relu(x: Tensor, weight: Tensor, norm_eps: float) -> Tensor:
    """RMSNorm over all heads and channels together, then ReLU."""
    inverse_rms = torch.rsqrt(x.square().mean(dim=(-1, -2), keepdim=True) + norm_eps)
    return torch.relu(x * inverse_rms * weight.view(x.shape[-2:]))


@dataclass(frozen=True)
class Prepared:
    """Queries, keys and values as the recurrence takes them, all (B, T, S, H, D); beta (B, T, S, H)."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    plain_query: Tensor
    """Before rotation, for the normaliser."""
    plain_key: Tensor


def prepare(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    rope: Tensor | None,
    rays: Tensor | None,
    key_scale: float,
    norm_eps: float,
) -> Prepared:
    """RMSNorm, ReLU and key scale; then rotation, or the camera branch's ray transform and discount."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    k, v, beta = k.to(dtype), v.to(dtype), beta.to(dtype)
    q = k if q is None else q.to(dtype)
    if q_weight is not None:
        q = _norm_relu(q, q_weight.to(dtype), norm_eps)
    if k_weight is not None:
        k = _norm_relu(k, k_weight.to(dtype), norm_eps)
    k = k * key_scale
    if rays is None:
        query, key = (q, k) if rope is None else (rotate(q, rope), rotate(k, rope))
        return Prepared(query, key, v, beta, q, k)
    assert rope is not None
    matrix, inverse = ray_matrices(rays.to(dtype))
    query = ray_transform(q, matrix.transpose(-1, -2), rope)
    key = ray_transform(k, inverse, rope)
    value = ray_transform(v, inverse, rope)
    stretch = key.square().sum(-1).clamp_min(1e-12) / k.square().sum(-1).clamp_min(1e-12)
    beta = beta / stretch.mean(dim=2, keepdim=True).clamp_min(1.0)
    return Prepared(query, key, value, beta, q, k)


def frame_products(key: Tensor, value: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """P_t and U_t of every frame: two (B, T, H, D, D); U is value by key."""
    weighted = key * beta[..., None]
    return (
        torch.einsum("btshi,btshj->bthij", key, weighted),
        torch.einsum("btshi,btshj->bthij", value, weighted),
    )


def scan(
    p: Tensor, u: Tensor, decay: Tensor, initial: Tensor | None, *, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over frames; with `keep` run it backwards in time, exclusive of each frame.

    Args:
        p: (B, T, H, D, D).
        u: (B, T, H, R, D); rows are independent (R = D for the state, 1 for the normaliser).
        decay: (B, T, H).
        initial: (B, H, R, D) or None for zero.
        keep: None for the forward scan. For the reverse scan (T,): 0 where the frame starts a chunk, so that
            nothing passes from it to earlier frames, else 1.
    Returns:
        states (B, T, H, R, D) that each frame reads, and the state after the last step (B, H, R, D).
    """
    state = torch.zeros_like(u[:, 0]) if initial is None else initial.to(u)
    states: list[Tensor] = []
    frames = range(p.shape[1])
    for t in frames if keep is None else reversed(frames):
        if keep is not None:
            states.append(state)
        state = decay[:, t, :, None, None] * (state - state @ p[:, t]) + u[:, t]
        if keep is None:
            states.append(state)
        else:
            state = state * keep[t]
    return torch.stack(states if keep is None else states[::-1], dim=1), state


def chunk_keep(frames: int, chunk_starts: tuple[int, ...] | None, like: Tensor) -> Tensor:
    """(T,) factor of the reverse scan: 0 at the first frame of a chunk, else 1."""
    starts = set(check_chunk_starts(chunk_starts, frames) or ())
    keep = torch.tensor([0.0 if t in starts else 1.0 for t in range(frames)], dtype=like.dtype)
    return keep.to(like.device)


def frame_gdn_reference(
    tokens: Tokens,
    options: ScanOptions | None = None,
    *,
    initial: State | None = None,
    initial_reverse: State | None = None,
) -> Result:
    """`frame_gdn` written down plainly; see there for the arguments. Computes in float32, or float64 if given."""
    options = ScanOptions() if options is None else options
    check_arguments(tokens, options, initial=initial, initial_reverse=initial_reverse)
    bidirectional, rope, rays = options.bidirectional, tokens.rope, tokens.rays
    ready = prepare(
        tokens.q,
        tokens.k,
        tokens.v,
        tokens.beta,
        q_weight=tokens.q_weight,
        k_weight=tokens.k_weight,
        rope=rope,
        rays=rays,
        key_scale=options.key_scale,
        norm_eps=options.norm_eps,
    )
    g = tokens.decay.to(ready.key.dtype)
    keep = chunk_keep(tokens.k.shape[1], options.chunk_starts, g)
    p, u = frame_products(ready.key, ready.value, ready.beta)
    states, final_kv = scan(p, u, g, initial.kv if initial else None)
    final_z = final_reverse = final_reverse_kv = None
    if bidirectional:
        reverse, final_reverse_kv = scan(p, u, g, initial_reverse.kv if initial_reverse else None, keep=keep)
        states = states + reverse
        final_reverse = State(final_reverse_kv)
    out = torch.einsum("bthij,btshj->btshi", states, ready.query)
    if options.normalise:
        ones = torch.ones_like(ready.plain_key[..., :1])
        pz, uz = frame_products(ready.plain_key, ones, ready.beta)
        zs, final_z = scan(pz, uz, g, _row(initial))
        if final_reverse_kv is not None:
            reverse_z, last = scan(pz, uz, g, _row(initial_reverse), keep=keep)
            zs = zs + reverse_z
            final_reverse = State(final_reverse_kv, last[:, :, 0])
        out = out / (torch.einsum("bthij,btshj->btshi", zs, ready.plain_query) + options.eps)
    if rays is not None:
        assert rope is not None
        out = ray_transform(out, ray_matrices(rays.to(out.dtype))[0], rope, inverse_rope=True)
    return Result(
        out.to(tokens.v.dtype), State(final_kv, None if final_z is None else final_z[:, :, 0]), final_reverse
    )


def _row(state: State | None) -> Tensor | None:
    return None if state is None or state.z is None else state.z[:, :, None]


@dataclass(frozen=True)
class Composite:
    """What a run of frames does to any incoming state X: X -> X C + H (per batch and head).

    Args:
        c: (B, H, D, D) product of the frames' transitions.
        h: (B, H, R, D) state from zero.
    """

    c: Tensor
    h: Tensor


def compose(first: Composite, second: Composite) -> Composite:
    """The effect of `first` and then `second`; associative."""
    return Composite(first.c @ second.c, first.h @ second.c + second.h)


def scan_composite(p: Tensor, u: Tensor, decay: Tensor, *, keep: Tensor | None = None) -> Composite:
    """Composite of all frames of p (B, T, H, D, D), u (B, T, H, R, D); `keep` as in `scan`."""
    eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device).expand_as(p[:, 0])
    c = scan(p, torch.zeros_like(p), decay, eye, keep=keep)[1]
    return Composite(c, scan(p, u, decay, None, keep=keep)[1])


def exclusive_prefix(composites: list[Composite], initial: Tensor | None = None) -> list[Tensor]:
    """Incoming state of every shard, given the shards' composites in scan order.

    Args:
        composites: one a shard.
        initial: (B, H, R, D) state before the first shard; zero if None.
    """
    if not composites:
        raise ValueError("there must be at least one composite")
    state = torch.zeros_like(composites[0].h) if initial is None else initial
    incoming = []
    for composite in composites:
        incoming.append(state)
        state = state @ composite.c + composite.h
    return incoming
