"""Triton kernels of the output gate; `reference.py` defines what they compute."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate_forward(
    main_ptr, camera_ptr, gate_ptr, out_ptr, size, HAS_CAMERA: tl.constexpr, BLOCK: tl.constexpr
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    total = tl.load(main_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_CAMERA:
        total += tl.load(camera_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offs, (total * gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_backward(
    main_ptr, camera_ptr, gate_ptr, dout_ptr, dtotal_ptr, dgate_ptr, size,
    HAS_CAMERA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    total = tl.load(main_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_CAMERA:
        total += tl.load(camera_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    dout = tl.load(dout_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(dtotal_ptr + offs, (dout * gate * sigmoid).to(dtotal_ptr.dtype.element_ty), mask=mask)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(dgate_ptr + offs, (dout * total * slope).to(dgate_ptr.dtype.element_ty), mask=mask)
