"""Attention without mask at head width 64 for Hopper, written in Gluon. Imported on CUDA only, by `fused/op.py`.

One program: BM queries of one head against all keys, four warps, two or more programs on a multiprocessor. Keys and
values come in blocks through rings of shared memory that the copy engine fills; what a program leaves idle its
neighbours on the multiprocessor use.

- `_attention`: the next block's scores and this block's product with the values are begun together; the
  exponentials of the next block are taken while the second one runs.
- `_attention_ahead`, for long sequences: scores are always begun one half block ahead, so that both kinds of product
  run behind the exponentials, and one barrier serves 128 keys. It fills all 255 registers of a thread.

Two kinds of softmax:

- online: the running maximum is subtracted, as usual;
- direct: queries arrive multiplied by log2(e) / 8, every score is known to lie within +-MAX_SCORE_BOUND
  (`Attention.score_bound`), and 2^score is taken as it is: no maximum, no rescaling. float32 and bfloat16 hold
  2^(+-58) and the sum of as many terms as there are tokens.

Tried on an H200 and not kept: a share of the exponentials as polynomials (slower: the chip stands at its power
limit), queries in registers, 256 queries a program. benchmarks/networks_speed.py measures beside cuDNN's and
the flash kernel.
"""

# pyright: reportUnreachable=false, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false
from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# The name changed after Triton 3.6.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
LOG2E = 1.4426950408889634


@gluon.jit
def _fetch(
    desc, row, col, last, ring, ready, j, wanted, STAGES: gl.constexpr, BN: gl.constexpr
):  # fmt: skip
    # The last block, which may be partial, is taken first: only what stands before the loop needs a mask.
    slot = j % STAGES
    first = row + gl.where(j == 0, last, j - 1) * BN
    mbarrier.expect(ready.index(slot), BN * 64 * 2, pred=wanted)
    tma.async_copy_global_to_shared(desc, [first, col], ready.index(slot), ring.index(slot), pred=wanted)


@gluon.jit
def _sums(p, DIRECT: gl.constexpr):
    # Without rescaling, the partial sums of the eight columns that a row of threads holds can stay apart.
    if DIRECT:
        return gl.sum(gl.reshape(p, [p.shape[0], p.shape[1] // 8, 8]), 1)
    else:
        return gl.sum(p, 1)


@gluon.jit
def _attention(
    q_desc, k_desc, v_desc, out_ptr, L, num_heads, out_step, scale,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, DIRECT: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, o_layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [BM, 64], q_desc.layout)
    k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES, BN, 64], k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES, BN, 64], v_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
    fence_async_shared()
    barrier()

    m0 = gl.program_id(0) * BM
    row = (gl.program_id(1) // num_heads) * L
    col = (gl.program_id(1) % num_heads) * 64
    n = gl.cdiv(L, BN)
    mbarrier.expect(q_ready, BM * 64 * 2)
    tma.async_copy_global_to_shared(q_desc, [row + m0, col], q_ready, q_s)
    for i in gl.static_range(STAGES):
        _fetch(k_desc, row, col, n - 1, k_s, k_ready, i, i < n, STAGES, BN)
        _fetch(v_desc, row, col, n - 1, v_s, v_ready, i, i < n, STAGES, BN)

    zero = gl.zeros([BM, BN], gl.float32, s_layout)
    acc = gl.zeros([BM, 64], gl.float32, o_layout)
    mbarrier.wait(q_ready, 0)
    mbarrier.wait(k_ready.index(0), 0)
    s = warpgroup_mma(q_s, k_s.index(0).permute([1, 0]), zero, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    barrier()
    _fetch(k_desc, row, col, n - 1, k_s, k_ready, STAGES, n > STAGES, STAGES, BN)
    inside = ((n - 1) * BN + gl.arange(0, BN, gl.SliceLayout(0, s_layout)) < L)[None, :]
    if DIRECT:
        p = gl.where(inside, gl.exp2(s), 0.0)
    else:
        s = gl.where(inside, s, float("-inf"))
        top = gl.max(s, 1) * scale
        p = gl.exp2(s * scale - top[:, None])
    total = _sums(p, DIRECT)
    p16 = gl.convert_layout(p.to(v_s.dtype), p_layout)

    for i in range(n - 1):
        following = (i + 1) % STAGES
        mbarrier.wait(k_ready.index(following), ((i + 1) // STAGES) & 1)
        scores = warpgroup_mma(q_s, k_s.index(following).permute([1, 0]), zero, use_acc=False, is_async=True)
        mbarrier.wait(v_ready.index(i % STAGES), (i // STAGES) & 1)
        growing = warpgroup_mma(p16, v_s.index(i % STAGES), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[scores])
        if DIRECT:
            p = gl.exp2(s)
            total += _sums(p, DIRECT)
        else:
            higher = gl.maximum(top, gl.max(s, 1) * scale)
            p = gl.exp2(s * scale - higher[:, None])
            shrink = gl.exp2(top - higher)
            top = higher
            total = total * shrink + _sums(p, DIRECT)
        acc = warpgroup_mma_wait(0, deps=[growing])
        # All warps have read both slots.
        barrier()
        _fetch(k_desc, row, col, n - 1, k_s, k_ready, i + 1 + STAGES, i + 1 + STAGES < n, STAGES, BN)
        _fetch(v_desc, row, col, n - 1, v_s, v_ready, i + STAGES, i + STAGES < n, STAGES, BN)
        if not DIRECT:
            acc = acc * gl.convert_layout(shrink, row_layout)[:, None]
        p16 = gl.convert_layout(p.to(v_s.dtype), p_layout)

    mbarrier.wait(v_ready.index((n - 1) % STAGES), ((n - 1) // STAGES) & 1)
    acc = warpgroup_mma(p16, v_s.index((n - 1) % STAGES), acc)
    if DIRECT:
        total = gl.sum(total, 1)
    acc = acc / gl.convert_layout(total, row_layout)[:, None]
    query = m0 + gl.arange(0, BM, row_layout)
    target = (row + query).to(gl.int64) * out_step + col
    e = gl.arange(0, 64, gl.SliceLayout(0, o_layout))
    gl.store(out_ptr + target[:, None] + e[None, :], acc.to(v_s.dtype), mask=(query < L)[:, None])


@gluon.jit
def _fetch_both(
    k_desc, v_desc, row, col, last, k_s, v_s, ready, j, wanted, STAGES: gl.constexpr, BLOCK: gl.constexpr
):  # fmt: skip
    slot = j % STAGES
    first = row + gl.where(j == 0, last, j - 1) * BLOCK
    mbarrier.expect(ready.index(slot), 2 * BLOCK * 64 * 2, pred=wanted)
    tma.async_copy_global_to_shared(k_desc, [first, col], ready.index(slot), k_s.index(slot), pred=wanted)
    tma.async_copy_global_to_shared(v_desc, [first, col], ready.index(slot), v_s.index(slot), pred=wanted)


@gluon.jit
def _two_steps(
    j, s, growing, total, q_s, k_s, v_s, ready, k_desc, v_desc, row, col, n, L, zero,
    o_layout: gl.constexpr, s_layout: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr,
):  # fmt: skip
    # Scores of the first half of block j are there. Always begun before the exponentials: the next half's scores.
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    place = (n - 1) * 2 * BN + gl.arange(0, BN, gl.SliceLayout(0, s_layout))
    k, v = k_s.index(j % STAGES), v_s.index(j % STAGES)
    scores = warpgroup_mma(q_s, k.slice(BN, BN).permute([1, 0]), zero, use_acc=False, is_async=True)
    p = gl.exp2(s)
    if MASK:
        p = gl.where((place < L)[None, :], p, 0.0)
    total += _sums(p, True)
    # All but the product just begun are over: the registers of the old weights are free, and block j - 1.
    acc = warpgroup_mma_wait(1, deps=[growing])
    p16 = gl.convert_layout(p.to(v_s.dtype), p_layout)
    growing = warpgroup_mma(p16, v.slice(0, BN), acc, is_async=True)
    if not MASK:
        barrier()
        behind = j - 1 + STAGES
        _fetch_both(
            k_desc, v_desc, row, col, n - 1, k_s, v_s, ready, behind, behind < n, STAGES, 2 * BN
        )  # fmt: skip
    other = warpgroup_mma_wait(1, deps=[scores])
    # After the last block this multiplies whatever the ring holds; nobody reads the result.
    following = (j + 1) % STAGES
    mbarrier.wait(ready.index(following), ((j + 1) // STAGES) & 1, pred=j + 1 < n)
    k = k_s.index(following)
    scores = warpgroup_mma(q_s, k.slice(0, BN).permute([1, 0]), zero, use_acc=False, is_async=True)
    p = gl.exp2(other)
    if MASK:
        p = gl.where((place + BN < L)[None, :], p, 0.0)
    total += _sums(p, True)
    acc = warpgroup_mma_wait(1, deps=[growing])
    p16 = gl.convert_layout(p.to(v_s.dtype), p_layout)
    growing = warpgroup_mma(p16, v.slice(BN, BN), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[scores])
    return s, growing, total


@gluon.jit
def _attention_ahead(
    q_desc, k_desc, v_desc, out_ptr, L, num_heads, out_step,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, o_layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [BM, 64], q_desc.layout)
    k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 2 * BN, 64], k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 2 * BN, 64], v_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    barrier()

    m0 = gl.program_id(0) * BM
    row = (gl.program_id(1) // num_heads) * L
    col = (gl.program_id(1) % num_heads) * 64
    n = gl.cdiv(L, 2 * BN)
    mbarrier.expect(q_ready, BM * 64 * 2)
    tma.async_copy_global_to_shared(q_desc, [row + m0, col], q_ready, q_s)
    for i in gl.static_range(STAGES):
        _fetch_both(k_desc, v_desc, row, col, n - 1, k_s, v_s, ready, i, i < n, STAGES, 2 * BN)

    zero = gl.zeros([BM, BN], gl.float32, s_layout)
    growing = warpgroup_mma_init(gl.zeros([BM, 64], gl.float32, o_layout))
    total = _sums(zero, True)
    mbarrier.wait(q_ready, 0)
    mbarrier.wait(ready.index(0), 0)
    k = k_s.index(0)
    s = warpgroup_mma(q_s, k.slice(0, BN).permute([1, 0]), zero, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    s, growing, total = _two_steps(
        0, s, growing, total, q_s, k_s, v_s, ready, k_desc, v_desc, row, col, n, L, zero,
        o_layout, s_layout, BN, STAGES, True,
    )  # fmt: skip
    for j in range(1, n):
        s, growing, total = _two_steps(
            j, s, growing, total, q_s, k_s, v_s, ready, k_desc, v_desc, row, col, n, L, zero,
            o_layout, s_layout, BN, STAGES, False,
        )  # fmt: skip
    acc = warpgroup_mma_wait(0, deps=[growing])
    acc = acc / gl.convert_layout(gl.sum(total, 1), row_layout)[:, None]
    query = m0 + gl.arange(0, BM, row_layout)
    target = (row + query).to(gl.int64) * out_step + col
    e = gl.arange(0, 64, gl.SliceLayout(0, o_layout))
    gl.store(out_ptr + target[:, None] + e[None, :], acc.to(v_s.dtype), mask=(query < L)[:, None])


LONG = 8192
"""Tokens from which `_attention_ahead` was measured to pay; shorter sequences want more, smaller programs."""
_GLUON_TYPE = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


def attention(q: Tensor, k: Tensor, v: Tensor, *, direct: bool) -> Tensor:
    """See `fused.own_attention`."""
    B, L, H, E = q.shape
    out = torch.empty(B, L, H * E, device=q.device, dtype=q.dtype)

    def rows(t: Tensor, size: int) -> TensorDescriptor:
        # (B, L, H, 64) with tokens `stride(1)` apart is a matrix of B * L rows; every view we pass is of this kind.
        assert t.stride(3) == 1
        assert t.stride(2) == E
        assert B == 1 or t.stride(0) == L * t.stride(1)
        layout = gl.NVMMASharedLayout.get_default_for([size, E], _GLUON_TYPE[t.dtype])
        return TensorDescriptor(t, [B * L, H * E], [t.stride(1), 1], [size, E], layout)

    if direct and L >= LONG:
        _attention_ahead[(triton.cdiv(L, 128), B * H)](
            rows(q, 128), rows(k, 128), rows(v, 128), out, L, H, H * E, BM=128, BN=64, STAGES=3, num_warps=4
        )
        return out
    block_n, stages = (64, 3) if direct else (128, 2)
    _attention[(triton.cdiv(L, 64), B * H)](
        rows(q, 64), rows(k, block_n), rows(v, block_n), out, L, H, H * E, E**-0.5 * LOG2E,
        BM=64, BN=block_n, STAGES=stages, DIRECT=direct, num_warps=4,
    )  # fmt: skip
    return out
