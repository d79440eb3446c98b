"""`round_rows` and `scaled_product`: linear maps on e4m3, one kernel to round and one library call to multiply."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import torch
from torch import Tensor

from ..frame_gdn.op import Backend, resolve_backend
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
    import triton

    from . import triton_kernels as kernels

    channels = x.shape[-1]
    rows = x.reshape(-1, channels)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    values = torch.empty(rows.shape, dtype=E4M3, device=x.device)
    scale = torch.empty(rows.shape[0], 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(channels)
    kernels.round_rows[(rows.shape[0],)](
        rows, values, scale, channels, rows.stride(0),
        BLOCK=block, ROUND=not x.is_cuda, num_warps=4 if block <= 4096 else 8,
    )  # fmt: skip
    return Rows(values.view(x.shape), scale.view(*x.shape[:-1], 1))


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
