"""`round_rows` and `scaled_product`: linear maps on e4m3, one kernel to round and one library call to multiply."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import Backend, resolve_backend
from ..block_ops.op import (
    add_modulated_norm,
    check_gated,
    check_modulation,
    dense,
    frame_steps,
    gated_add,
    modulated_norm,
)
from ..output_gate.op import output_gate
from ..output_gate.reference import check_arguments
from .reference import E4M3, Rows, round_rows_reference, scaled_product_reference


def check_fp8_products(device: torch.device | str) -> None:
    """Raise ValueError where products in e4m3 cannot run; a CPU runs the plain twin."""
    device = torch.device(device)
    if device.type == "cpu":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        raise ValueError(
            f"matrix products in fp8 need compute capability 8.9 or newer (Ada, Hopper, Blackwell), not {name}: "
            "use bf16, or weights alone in eight bits (int8-weights, fp8-weights)"
        )


def round_rows(x: Tensor, *, backend: Backend = "auto") -> Rows:
    """x (..., C), float32 or bfloat16, in e4m3 with a scale for every row; read once and written once.

    A row of zeros gets scale one; a row with a number that is not finite becomes NaN.
    """
    if not resolve_backend(backend, x):
        return round_rows_reference(x)
    from . import triton_kernels as kernels

    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = _empty_rows(x)
    kernels.round_rows[(rows.shape[0],)](
        rows, out.values, out.scale, rows.shape[1], rows.stride(0), **_launch(x)
    )
    return out


def _empty_rows(x: Tensor) -> Rows:
    return Rows(
        torch.empty(x.shape, dtype=E4M3, device=x.device),
        torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device),
    )


def _launch(x: Tensor) -> dict[str, int]:
    """Options of a kernel whose programs hold whole rows."""
    import triton

    block = int(triton.next_power_of_2(x.shape[-1]))
    return {"BLOCK": block, "ROUND": not x.is_cuda, "num_warps": 4 if block <= 4096 else 8}


def output_gate_rows(main: Tensor, camera: Tensor | None, gate: Tensor, *, backend: Backend = "auto") -> Rows:
    """`round_rows(output_gate(...))` in one pass, without gradients.

    Args:
        main, camera, gate: (..., C) as in `output_gate`.
    """
    if not resolve_backend(backend, main):
        return round_rows(output_gate(main, camera, gate, backend=backend), backend=backend)
    check_arguments(main, camera, gate)
    from . import triton_kernels as kernels

    main, gate = main.contiguous(), gate.contiguous()
    camera = None if camera is None else camera.contiguous()
    out = _empty_rows(main)
    kernels.gate_rows[(out.scale.numel(),)](
        main, camera, gate, out.values, out.scale, main.shape[-1],
        HAS_CAMERA=camera is not None, **_launch(main),
    )  # fmt: skip
    return out


def modulated_norm_rows(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    keep: bool,
    added: Tensor | None = None,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None, Rows]:
    """`modulated_norm` with its rows in e4m3, in one pass, without gradients.

    Args:
        x, shift, scale: as in `modulated_norm`.
        keep: also return the norm as it is, for what reads it in more bits.
        added: (B, T, S, C) that is added to x first; None: nothing.
    Returns:
        x, or its sum with `added`; the norm or None; its rows; (B, T, S, C) all.
    """
    if not resolve_backend(backend, x):
        if added is None:
            normed = modulated_norm(x, shift, scale, eps=eps, backend=backend)
        else:
            x, normed = add_modulated_norm(x, added, shift, scale, eps=eps, backend=backend)
        return x, normed if keep else None, round_rows(normed, backend=backend)
    check_modulation(x, shift, scale)

    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x, shift, scale = x.contiguous(), dense(shift), dense(scale)
    added = None if added is None else added.contiguous()
    total = x if added is None else torch.empty_like(x)
    kept, out = torch.empty_like(x) if keep else None, _empty_rows(x)
    kernels.modulated_norm_rows[(s, b * t)](
        x, added, shift, scale, total, kept, out.values, out.scale, t, s, c,
        *frame_steps(shift), *frame_steps(scale), eps,
        ROWS=1, HAS_ADDED=added is not None, KEEP=keep, **_launch(x),
    )  # fmt: skip
    return total, kept, out


def gated_add_rows(
    x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Rows]:
    """`gated_add` and its rows in e4m3, in one pass, without gradients.

    Args:
        x, y, gate, extra: as in `gated_add`.
    Returns:
        (B, T, S, C) and its rows.
    """
    if not resolve_backend(backend, x):
        out = gated_add(x, y, gate, extra, backend=backend)
        return out, round_rows(out, backend=backend)
    check_gated(x, y, gate, extra)
    from . import triton_kernels as kernels

    b, t, s, c = x.shape
    x, y, gate = x.contiguous(), y.contiguous(), dense(gate)
    extra = None if extra is None else extra.contiguous()
    kept, out = torch.empty_like(x), _empty_rows(x)
    kernels.gated_add_rows[(s, b * t)](
        x, y, gate, extra, kept, out.values, out.scale, t, s, c, *frame_steps(gate),
        HAS_EXTRA=extra is not None, **_launch(x),
    )  # fmt: skip
    return kept, out


def scaled_product(x: Rows, weight: Rows, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias with sums in float32: bfloat16 on a GPU, float32 by the twin on a CPU.

    Args:
        x: (..., K) from `round_rows`.
        weight: (N, K) from `round_rows`; on a GPU N and K are multiples of 16.
        bias: (N,).
        out: (..., N) dense, bfloat16 on a GPU: where to write.
    Returns:
        (..., N).
    """
    if x.values.shape[-1] != weight.values.shape[-1]:
        raise ValueError(
            f"x is {tuple(x.values.shape)}, weight {tuple(weight.values.shape)}: their last sizes must agree"
        )
    if not x.values.is_cuda:
        found = scaled_product_reference(x, weight, bias)
        return found if out is None else out.copy_(found)
    lead = x.values.shape[:-1]
    found = torch._scaled_mm(
        x.values.flatten(0, -2),
        weight.values.t(),
        scale_a=x.scale.reshape(-1, 1),
        scale_b=weight.scale.reshape(1, -1),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
        **({} if out is None else {"out": out.flatten(0, -2)}),
    )
    return found.view(*lead, -1)
