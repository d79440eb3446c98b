"""`output_gate`: the public operator, its registration with torch and its gradient."""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import Backend, op_name, resolve_backend
from .reference import check_arguments, output_gate_reference

_BLOCK = 1024


def output_gate(main: Tensor, camera: Tensor | None, gate: Tensor, *, backend: Backend = "auto") -> Tensor:
    """(main + camera) * SiLU(gate) in float32, read once and written once.

    Args:
        main, gate: same shape, float32 or bfloat16.
        camera: output of the camera branch, same shape, or None.
    Returns:
        the same shape in the dtype of main; gradients flow to all three.
    Raises:
        ValueError: if shapes or devices differ, or on a type or backend that does not fit.
    """
    check_arguments(main, camera, gate)
    if not resolve_backend(backend, main):
        return output_gate_reference(main, camera, gate)
    return _forward_op(main, camera, gate)


@torch.library.custom_op(op_name("output_gate"), mutates_args=())
def _forward_op(main: Tensor, camera: Tensor | None, gate: Tensor) -> Tensor:
    import triton

    from . import triton_kernels as kernels

    main, gate = main.contiguous(), gate.contiguous()
    camera = None if camera is None else camera.contiguous()
    out = torch.empty_like(main)
    kernels.gate_forward[(triton.cdiv(main.numel(), _BLOCK),)](
        main, camera, gate, out, main.numel(), HAS_CAMERA=camera is not None, BLOCK=_BLOCK
    )
    return out


@_forward_op.register_fake
def _(main: Tensor, camera: Tensor | None, gate: Tensor) -> Tensor:
    return torch.empty(main.shape, dtype=main.dtype, device=main.device)


@torch.library.custom_op(op_name("output_gate_backward"), mutates_args=())
def _backward_op(main: Tensor, camera: Tensor | None, gate: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    import triton

    from . import triton_kernels as kernels

    main, gate, dout = main.contiguous(), gate.contiguous(), dout.contiguous()
    camera = None if camera is None else camera.contiguous()
    dtotal, dgate = torch.empty_like(main), torch.empty_like(gate)
    kernels.gate_backward[(triton.cdiv(main.numel(), _BLOCK),)](
        main, camera, gate, dout, dtotal, dgate, main.numel(), HAS_CAMERA=camera is not None, BLOCK=_BLOCK
    )
    return dtotal, dgate


@_backward_op.register_fake
def _(main: Tensor, camera: Tensor | None, gate: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(main.shape, dtype=main.dtype, device=main.device),
        torch.empty(gate.shape, dtype=gate.dtype, device=gate.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    main, camera, gate = ctx.saved_tensors
    dtotal, dgate = _backward_op(main, camera, gate, dout)
    return dtotal, None if camera is None else dtotal.to(camera.dtype), dgate


_forward_op.register_autograd(_backward, setup_context=_setup_context)
