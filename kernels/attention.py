"""Softmax attention of the world model by the fastest library path; no kernel of our own.

Every mask of the model is a union of whole chunks: a chunk of queries reads some contiguous runs of frames.
So each chunk is one unmasked attention over the keys that it may read, which cuDNN and flash run at full
speed, and no mask is ever stored. FlexAttention with a block mask is the alternative that was measured.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import check_chunk_starts, check_counts, check_tensors
from .flash4 import TILED_HEADS, flash4_attention, flash4_refusal, flash4_version
from .fp8.attention import fp8_attention

AttentionBackend = Literal["auto", "flash4", "cudnn", "flash", "reference"]
AttentionPrecision = Literal["input", "fp8"]
"""Numbers of the two products: those of the inputs, or e4m3 (`fp8.attention`)."""

SDPA_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Which of torch's softmax attentions goes first on a GPU, by measurement (`sdpa_kernel(..., set_priority=True)`)."""


def visible_frames(
    frames: int,
    chunk_starts: tuple[int, ...] | None,
    *,
    window_chunks: int | None = None,
    sink_chunks: int = 0,
) -> list[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Which runs of frames each chunk of queries reads.

    Args:
        chunk_starts: first frames of chunks, increasing; None: one chunk, everything sees everything.
        window_chunks: chunks before its own that a chunk reads; None: all.
        sink_chunks: first chunks that every chunk reads in any case.
    Returns:
        [(query frames [first, end), [key frames [first, end), ...]), ...]
    Raises:
        ValueError: chunks that do not increase or lie outside the clip; negative numbers.
    """
    check_counts(frames=frames, window_chunks=window_chunks, sink_chunks=sink_chunks)
    edges = sorted({0, *(check_chunk_starts(chunk_starts, frames) or ()), frames})
    plan = []
    for i, (first, end) in enumerate(itertools.pairwise(edges)):
        start = 0 if window_chunks is None else max(0, i - window_chunks)
        sink = min(sink_chunks, start)
        runs = [(0, edges[sink])] if sink else []
        plan.append(((first, end), [*runs, (edges[start], end)]))
    return plan


def frame_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_starts: tuple[int, ...] | None = None,
    window_chunks: int | None = None,
    sink_chunks: int = 0,
    before: Sequence[tuple[Tensor, Tensor]] = (),
    first_frame: int | None = None,
    scale: float | None = None,
    backend: AttentionBackend = "auto",
    precision: AttentionPrecision = "input",
) -> Tensor:
    """Softmax attention over frames: bidirectional, chunk-causal, or windowed with sink chunks.

    Args:
        q, k, v: (B, H, T, S, D); a token reads all tokens of its own chunk and of the earlier ones that
            `visible_frames` lists.
        first_frame: q holds only the frames from this one on, (B, H, t, S, D), k and v the whole clip (context
            parallelism); None: q holds the whole clip.
        before: keys and values (B, H, tokens, D) of earlier chunks that every query reads (streaming).
        scale: of the logits; None: D^-1/2.
        backend: "auto" lets cuDNN go first on a GPU, which at the real size is 1.7 times as fast as flash; on Hopper
            flash-attn-4 where it is installed (`chosen_backend`), 1.2 to 1.3 times as fast as cuDNN.
        precision: "fp8" rounds everything to e4m3, through cuDNN on Hopper GPUs and newer and through a plain twin on a
            CPU; then there is no choice of a backend, and no gradient.
    Returns:
        (B, H, T, S, D) in the dtype of v.
    Raises:
        ValueError: on shapes, types, devices, chunks or a backend that do not fit.
    """
    if backend not in get_args(AttentionBackend):
        raise ValueError(f"backend {backend!r}: use one of {', '.join(get_args(AttentionBackend))}")
    if precision not in get_args(AttentionPrecision) or (precision == "fp8" and backend != "auto"):
        raise ValueError(
            f"precision {precision!r} with backend {backend!r}: use one of {', '.join(get_args(AttentionPrecision))}, "
            "and leave the backend at auto for fp8"
        )
    part = _queried_frames(q, k, v, first_frame)
    check_tensors(q, "q", k=k, v=v)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q holds {q.dtype}, k {k.dtype}, v {v.dtype}; give one type")
    plan = visible_frames(k.shape[2], chunk_starts, window_chunks=window_chunks, sink_chunks=sink_chunks)
    plan = _plan_of_part(plan, part)
    _check_before(before, q)
    if precision == "fp8" and part != (0, k.shape[2]):
        raise ValueError(
            "precision 'fp8' is for inference, first_frame for training over several ranks: not both"
        )
    if precision == "fp8":
        return _in_fp8(q, k, v, plan, before, scale)
    if backend == "reference":
        return frame_attention_reference(
            q,
            k,
            v,
            chunk_starts=chunk_starts,
            window_chunks=window_chunks,
            sink_chunks=sink_chunks,
            before=before,
            first_frame=first_frame or 0,
            scale=scale,
        )
    most = max((end - first for (first, end), _ in plan), default=0) * q.shape[3]
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    backend = chosen_backend(backend, q.device, q.dtype, q.shape[-1], most, trains=trains)
    if backend == "flash4":
        return _by_chunks(q, k, v, plan, before, lambda q, k, v: flash4_attention(q, k, v, scale=scale))
    if not trains and _pads(q, before):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        wide_q, wide_k, wide_v = (_resized(x, 128) for x in (q, k, v))
        return _resized(_in_torch(wide_q, wide_k, wide_v, plan, before, scale, backend), q.shape[-1])
    return _in_torch(q, k, v, plan, before, scale, backend)


def chosen_backend(
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    queries: int,
    *,
    trains: bool = False,
) -> AttentionBackend:
    """What attends: `backend`, but "flash4" for "auto" where flash-attn-4 is installed and is the fastest by far.

    Args:
        queries: of the longest chunk.
        trains: whether gradients are wanted.
    """
    if (
        backend != "auto"
        or trains
        or queries < FLASH4_QUERIES
        or head_size not in TILED_HEADS
        or device.type != "cuda"
    ):
        return backend
    if torch.compiler.is_compiling() or flash4_version() is None:
        return backend
    if refusal := flash4_refusal(device, dtype, head_size):
        if torch.cuda.get_device_capability(device)[0] == 9 and dtype in (torch.bfloat16, torch.float16):
            warnings.warn(f"{refusal}; cuDNN or flash attends instead", stacklevel=2)  # installed, but broken
        return backend
    return "flash4"


def _by_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: list[tuple[tuple[int, int], list[tuple[int, int]]]],
    before: Sequence[tuple[Tensor, Tensor]],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """One unmasked attention for each chunk of queries over the keys that it reads; (B, H, T, S, D)."""
    outputs = []
    for (first, end), runs in plan:

        def read(x: Tensor, which: int, runs: list[tuple[int, int]] = runs) -> Tensor:
            parts = [pair[which] for pair in before] + [x[:, :, a:b].flatten(2, 3) for a, b in runs]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

        out = attend(q[:, :, first:end].flatten(2, 3), read(k, 0), read(v, 1))
        outputs.append(out.unflatten(2, (end - first, q.shape[3])))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _in_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: list[tuple[tuple[int, int], list[tuple[int, int]]]],
    before: Sequence[tuple[Tensor, Tensor]],
    scale: float | None,
    backend: AttentionBackend,
) -> Tensor:
    """By torch's own attention: "cudnn", "flash", or in the order that was measured."""
    if backend == "auto":
        order = SDPA_ORDER if q.is_cuda else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    else:
        order = [SDPBackend.CUDNN_ATTENTION if backend == "cudnn" else SDPBackend.FLASH_ATTENTION]
    with sdpa_kernel(order, set_priority=True):
        return _by_chunks(
            q, k, v, plan, before, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale)
        )


def _check_before(before: Sequence[tuple[Tensor, Tensor]], q: Tensor) -> None:
    for keys, values in before:
        if (
            keys.shape != values.shape
            or keys.ndim != 4
            or keys.shape[:2] != q.shape[:2]
            or keys.shape[-1] != q.shape[-1]
        ):
            raise ValueError(
                f"before holds keys {tuple(keys.shape)} and values {tuple(values.shape)}; with q {tuple(q.shape)} give "
                f"({q.shape[0]}, {q.shape[1]}, tokens, {q.shape[-1]})"
            )


def _queried_frames(q: Tensor, k: Tensor, v: Tensor, first_frame: int | None) -> tuple[int, int]:
    """[first, end) of the clip's frames that q holds."""
    check_counts(first_frame=first_frame)
    same = q.ndim == 5 and k.shape == v.shape and (*q.shape[:2], *q.shape[3:]) == (*k.shape[:2], *k.shape[3:])
    if not same or (first_frame is None and q.shape != k.shape):
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: give three equal (B, H, T, S, D)"
        )
    first = first_frame or 0
    if first + q.shape[2] > k.shape[2]:
        raise ValueError(
            f"q holds {q.shape[2]} frames from frame {first} on, k only {k.shape[2]} frames in all"
        )
    return first, first + q.shape[2]


def _plan_of_part(
    plan: list[tuple[tuple[int, int], list[tuple[int, int]]]], part: tuple[int, int]
) -> list[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """The reads of some of the clip's frames; queries are counted from the first of them."""
    first, end = part
    cut = [((max(a, first) - first, min(b, end) - first), runs) for (a, b), runs in plan]
    return [((a, b), runs) for (a, b), runs in cut if a < b]


_LONG = 16384
"""Tokens from which filling heads up pays."""
FLASH4_QUERIES = 880
"""Queries of a chunk, at least, that flash-attn-4 is asked for: one frame of the real size, the fewest measured."""


def _pads(q: Tensor, before: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether heads are filled up to 128 channels: cuDNN's kernels compute as many anyway, and faster if given them."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[2] * q.shape[3] >= _LONG
        and 64 < q.shape[-1] < 128
        and not before
    )


def _resized(x: Tensor, size: int) -> Tensor:
    """(B, H, T, S, D) cut or filled up with zeros to `size` channels, tokens before heads in memory."""
    b, h, t, s, d = x.shape
    out = x.new_empty(b, t, s, h, size).permute(0, 3, 1, 2, 4)
    kept = min(d, size)
    # Eight bytes at a time where memory allows: torch copies such views one number after the other.
    numbers = 8 // x.element_size()
    places = (d, size, x.storage_offset(), *x.stride()[:-1])
    if x.stride(-1) == 1 and not any(place % numbers for place in places):
        wide, source = out.view(torch.int64), x.view(torch.int64)
        wide[..., : kept // numbers].copy_(source[..., : kept // numbers])
    else:
        out[..., :kept].copy_(x[..., :kept])
    if size > d:
        out[..., d:].zero_()
    return out


def _in_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: list[tuple[tuple[int, int], list[tuple[int, int]]]],
    before: Sequence[tuple[Tensor, Tensor]],
    scale: float | None,
) -> Tensor:
    """The same reads in e4m3, every token rounded once however many chunks read it."""
    tokens = q.shape[3]
    keys, values = (
        torch.cat([*(pair[i].to(x.dtype) for pair in before), x.flatten(2, 3)], dim=2)
        if before
        else x.flatten(2, 3)
        for i, x in enumerate((k, v))
    )
    past = keys.shape[2] - tokens * q.shape[2]
    reads = []
    for (first, end), runs in plan:
        columns = [slice(past + a * tokens, past + b * tokens) for a, b in runs]
        if past and columns[0].start == past:
            columns[0] = slice(0, columns[0].stop)
        elif past:
            columns.insert(0, slice(0, past))
        reads.append((slice(first * tokens, end * tokens), columns))
    out = fp8_attention(q.flatten(2, 3), keys, values, reads=reads, scale=scale)
    return out.unflatten(2, q.shape[2:4])


def frame_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_starts: tuple[int, ...] | None = None,
    window_chunks: int | None = None,
    sink_chunks: int = 0,
    before: Sequence[tuple[Tensor, Tensor]] = (),
    first_frame: int = 0,
    scale: float | None = None,
) -> Tensor:
    """`frame_attention` with its mask written out, one softmax over all tokens."""
    frames, tokens = k.shape[2:4]
    chunk = torch.zeros(frames, dtype=torch.long, device=q.device)
    for start in check_chunk_starts(chunk_starts, frames) or ():
        if start > 0:
            chunk[start:] += 1
    query, key = chunk[:, None], chunk[None, :]
    visible = key <= query
    if window_chunks is not None:
        visible &= (query - key <= window_chunks) | (key < sink_chunks)
    visible = visible[first_frame : first_frame + q.shape[2]]
    mask = visible.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_all = q.flatten(2, 3).to(dtype)
    k_all, v_all = (
        torch.cat([*(pair[i] for pair in before), x.flatten(2, 3)], dim=2).to(dtype)
        for i, x in enumerate((k, v))
    )
    mask = F.pad(mask, (k_all.shape[2] - mask.shape[1], 0), value=True)
    logits = q_all @ k_all.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    out = torch.softmax(logits.masked_fill(~mask, float("-inf")), dim=-1) @ v_all
    return out.unflatten(2, (q.shape[2], tokens)).to(v.dtype)
