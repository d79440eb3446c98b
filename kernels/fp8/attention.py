"""`fp8_attention`: e4m3 through flash-attn-3 or cuDNN's front end on the GPU, through the plain twin on a CPU."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import installed_version
from .flash3 import flash3_attend, flash3_version, has_flash3, load_flash3
from .reference import (
    E4M3,
    LARGEST,
    VALUE_RANGE,
    WEIGHT_SCALE,
    Rounded,
    attend_reference,
    headroom,
    round_heads_reference,
)

_TOKENS = 64
_SUMMED, _ROUNDS = 16, 16
"""Tokens whose statistics one warp takes at once, and how often: sums across warps cost more than they save."""
_PADDED = 128
"""Head size that cuDNN's kernels have; smaller heads are filled with zeros, which takes 3 % less time than 112."""


def check_fp8_attention(device: torch.device | str, head_size: int) -> None:
    """Raise ValueError, with what to do, where attention in e4m3 cannot run; costs no memory on the device.

    Args:
        device: a CPU runs the plain twin, which is slow and meant for tests.
        head_size: channels of a head.
    """
    device = torch.device(device)
    if head_size > _PADDED:
        raise ValueError(f"attention in fp8 takes heads of at most {_PADDED} channels, not {head_size}")
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise ValueError(f"attention in fp8 needs an NVIDIA GPU, not {device}; leave it in bf16")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 9:
        raise ValueError(
            "attention in fp8 needs a Hopper GPU or newer (compute capability 9.0); "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}: leave attention in bf16"
        )
    wanted = [("triton", "Triton", "kernels")]
    if has_flash3(device, head_size):
        load_flash3()
    else:
        wanted.insert(0, ("cudnn", "nvidia-cudnn-frontend", "fp8"))
    for module, name, hint in wanted:
        if find_spec(module) is None:
            raise ValueError(f"attention in fp8 needs {name}: pip install theodolite[{hint}]")


def fp8_attention_library(device: torch.device | str, head_size: int) -> str:
    """What attends in e4m3 there, with its version."""
    if has_flash3(device, head_size):
        return f"flash_attn_3 {flash3_version()}"
    if torch.device(device).type == "cpu":
        return "plain twin of e4m3"
    version = installed_version("nvidia-cudnn-frontend")
    return "without nvidia-cudnn-frontend" if version is None else f"nvidia-cudnn-frontend {version}"


def fp8_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    reads: Sequence[tuple[slice, Sequence[slice]]] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention with queries, keys, values, weights and output rounded to e4m3, sums in float32.

    Each clip of a batch has scales of its own, found on the device, so that neither the host waits nor neighbours in
    the batch matter. See `reference.py` for what is taken out before rounding.

    Args:
        q: (B, H, N, D); k, v: (B, H, M, D). float32 or bfloat16, at most 128 channels a head.
        reads: (queries, [keys, ...]) runs of tokens; together they hold every query once. None: all read all.
        scale: of the logits; None: D^-1/2.
    Returns:
        (B, H, N, D) in the dtype of v, tokens before heads in memory.
    Raises:
        ValueError: where it cannot run (`check_fp8_attention`), or gradients are asked for.
    """
    check_fp8_attention(q.device, q.shape[-1])
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("attention in fp8 has no backward pass: train with precision 'input'")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    reads = [(slice(0, q.shape[2]), [slice(0, k.shape[2])])] if reads is None else reads
    out = torch.empty(
        q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=v.dtype, device=v.device
    ).transpose(1, 2)
    for clip in range(q.shape[0]):
        queries = round_heads(q[clip], centre=False, per_head=False)
        keys = round_heads(k[clip], centre=True, per_head=False)
        values = round_heads(v[clip], centre=True, per_head=True)
        if has_flash3(q.device, q.shape[-1]):
            for rows, columns in reads:
                read = [x._replace(values=_columns(x.values, columns)) for x in (keys, values)]
                part = queries._replace(values=queries.values[:, rows])
                flash3_attend(part, *read, scale, q.shape[-1], out=out[clip][:, rows])
            continue
        rounded = torch.empty_like(queries.values[..., : values.values.shape[-1]])
        for rows, columns in reads:
            part = [_columns(x.values, columns) for x in (keys, values)]
            attend(
                queries._replace(values=queries.values[:, rows]),
                keys._replace(values=part[0]),
                values._replace(values=part[1]),
                scale,
                out=rounded[:, rows],
            )
        scale_back(rounded, values, queries, keys, out=out[clip])
    return out


def _columns(x: Tensor, columns: Sequence[slice]) -> Tensor:
    """Some runs of the tokens of (H, N, D)."""
    parts = [x[:, run] for run in columns]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1).view(E4M3)


def _triton(x: Tensor) -> bool:
    return x.is_cuda


def round_heads(x: Tensor, *, centre: bool, per_head: bool, triton: bool | None = None) -> Rounded:
    """x (H, N, D) in e4m3, in two passes over it; padded to 128 channels where the kernels run.

    Args:
        centre: take out each channel's mean over the tokens.
        per_head: one scale a head, else one for all.
        triton: run the kernels; None: on a GPU.
    """
    if not (_triton(x) if triton is None else triton):
        return round_heads_reference(x, centre=centre, per_head=per_head)
    from triton import cdiv

    from . import triton_kernels as kernels

    x = x if x.stride(-1) == 1 else x.contiguous()
    heads, tokens, size = x.shape
    tiles = cdiv(tokens, _SUMMED * _ROUNDS)
    part = torch.empty(tiles, heads, 3, _PADDED, dtype=torch.float32, device=x.device)
    mean = torch.empty(heads, _PADDED, dtype=torch.float32, device=x.device)
    most = torch.empty(heads, dtype=torch.float32, device=x.device)
    steps = (x.stride(0), x.stride(1))
    # Heads go first in all grids: they lie beside each other in a token's memory.
    kernels.statistics[(heads, tiles)](
        x, part, tokens, *steps, SIZE=size, PADDED=_PADDED, TOKENS=_SUMMED, ROUNDS=_ROUNDS, num_warps=1
    )
    kernels.finish[(heads,)](
        part, mean, most, tiles, tokens, SIZE=size, PADDED=_PADDED, CENTRE=centre, TILES=32, num_warps=4
    )
    if not per_head:
        most = most.amax().expand(heads)
    scale = headroom(most, VALUE_RANGE if per_head else LARGEST)
    values = torch.empty(heads, tokens, _PADDED, dtype=E4M3, device=x.device)
    kernels.round_and_pad[(heads, cdiv(tokens, _TOKENS))](
        x, mean, scale, values, tokens, *steps, scale.stride(0),
        SIZE=size, PADDED=_PADDED, TOKENS=_TOKENS, ROUND=not x.is_cuda, num_warps=4,
    )  # fmt: skip
    return Rounded(values, mean, scale)


def scale_back(
    rounded: Tensor,
    values: Rounded,
    queries: Rounded,
    keys: Rounded,
    *,
    out: Tensor,
    triton: bool | None = None,
) -> None:
    """Write what attention in e4m3 (H, N, D) stands for into out (H, N, D), tokens before heads in memory.

    Queries and keys are there so that a NaN in any input reaches the output, whatever a library makes of it.
    """
    scale = 1 / values.scale + 0 * (queries.scale + keys.scale)
    size = out.shape[-1]
    if not (_triton(rounded) if triton is None else triton):
        out.copy_(rounded.float() * scale[:, None, None] + values.mean[:, None])
        return
    from triton import cdiv

    from . import triton_kernels as kernels

    heads, tokens, padded = rounded.shape
    kernels.crop_and_scale[(heads, cdiv(tokens, _TOKENS))](
        rounded, values.mean, scale.contiguous(), out, tokens, heads,
        SIZE=size, PADDED=padded, TOKENS=_TOKENS, num_warps=4,
    )  # fmt: skip


def attend(q: Rounded, k: Rounded, v: Rounded, scale: float, *, out: Tensor) -> None:
    """Attention of rounded numbers; writes e4m3 (H, N, D), scaled as the values are."""
    if not q.values.is_cuda:
        out.copy_(attend_reference(q, k, v, scale))
        return
    device = q.values.device
    with torch.cuda.device(device):
        plan, tensors = _ready(q, k, v, scale, out)
        handle = _handle(device.index, torch.cuda.current_stream(device).cuda_stream)
        plan.graph.execute(tensors, plan.workspace, handle=handle)


def _ready(q: Rounded, k: Rounded, v: Rounded, scale: float, out: Tensor) -> tuple[_Plan, dict[int, Tensor]]:
    """The plan of a call and its tensors by number."""
    key = tuple((tuple(x.shape), tuple(x.stride())) for x in (q.values, k.values, v.values, out))
    plan = _plan(q.values.device.index, key, scale)
    names = plan.names
    return plan, {
        names["q"]: q.values,
        names["k"]: k.values,
        names["v"]: v.values,
        names["o"]: out,
        # One number each: the values' own scales are applied after the call.
        names["descale_q"]: (1 / q.scale[:1]).reshape(1, 1, 1, 1),
        names["descale_k"]: (1 / k.scale[:1]).reshape(1, 1, 1, 1),
        **plan.constants,
    }


class _Plan(NamedTuple):
    graph: Any
    names: dict[str, int]
    constants: dict[int, Tensor]
    workspace: Tensor


_handles: dict[int, Any] = {}


def _handle(device: int, stream: int | None) -> Any:
    """cuDNN's handle of a device, set to a stream if one is given."""
    import cudnn

    if device not in _handles:
        _handles[device] = cudnn.create_handle()
    if stream is not None:
        cudnn.set_stream(handle=_handles[device], stream=stream)
    return _handles[device]


_INPUTS = ("q", "k", "v")
_NUMBERS = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")


@functools.lru_cache(maxsize=256)
def _plan(device: int, key: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], scale: float) -> _Plan:
    """cuDNN's plan for one set of shapes and strides, with the memory that it needs."""
    failed = []
    # Newer front ends decline a graph that asks for the greatest weight, some engines insist on it.
    for with_most in (False, True):
        try:
            return _build(device, key, scale, with_most)
        except Exception as error:  # noqa: BLE001  (cuDNN's own classes, which differ between versions)
            failed.append(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
    raise ValueError(
        f"cuDNN has no fp8 attention for queries {key[0][0]} and keys {key[1][0]} here ({'; '.join(failed)}): "
        "leave attention in bf16"
    )


def _build(device: int, key: tuple[Any, ...], scale: float, with_most: bool) -> _Plan:
    import cudnn

    graph = cudnn.pygraph(
        io_data_type=cudnn.data_type.FP8_E4M3,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle(device, None),
    )
    names = {name: i + 1 for i, name in enumerate((*_INPUTS, *_NUMBERS, "o", "most_s", "most_o"))}
    tensors = {}
    for name, (shape, stride) in zip(_INPUTS, key[:3], strict=True):
        tensors[name] = graph.tensor(
            uid=names[name],
            dim=(1, *shape),
            stride=(shape[0] * stride[0], *stride),
            data_type=cudnn.data_type.FP8_E4M3,
        )
    for name in _NUMBERS:
        tensors[name] = graph.tensor(
            uid=names[name], dim=(1, 1, 1, 1), stride=(1, 1, 1, 1), data_type=cudnn.data_type.FLOAT
        )
    out, _, most_s, most_o = graph.sdpa_fp8(
        **tensors, generate_stats=False, attn_scale=scale, use_causal_mask=False
    )
    shape, stride = key[3]
    out.set_uid(names["o"]).set_output(True).set_dim((1, *shape)).set_stride((shape[0] * stride[0], *stride))
    out.set_data_type(cudnn.data_type.FP8_E4M3)

    def number(value: float) -> Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float32, device=torch.device("cuda", device))

    constants = {
        names[name]: number(value)
        for name, value in (
            ("descale_v", 1.0),
            ("scale_o", 1.0),
            ("scale_s", WEIGHT_SCALE),
            ("descale_s", 1 / WEIGHT_SCALE),
        )
    }
    for name, most in (("most_s", most_s if with_most else None), ("most_o", most_o)):
        if most is not None:
            most.set_uid(names[name]).set_output(True).set_dim((1, 1, 1, 1)).set_stride((1, 1, 1, 1))
            most.set_data_type(cudnn.data_type.FLOAT)
            constants[names[name]] = number(0.0)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    size = max(1, graph.get_workspace_size())
    return _Plan(
        graph,
        names,
        constants,
        torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", device)),
    )
