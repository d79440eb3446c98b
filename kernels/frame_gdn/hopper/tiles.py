"""Steps on single tiles: fetching, norms, rotation, products."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false, reportAssignmentType=false

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
)

block_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
"""All threads of a program meet (Triton 3.7 renamed it)."""
WIDTH = gl.constexpr(128)
"""Channels of a tile."""


@gluon.jit
def prepare_key_tile(x, inv, w, e, root, tab):
    """(plain, turned, turned * root) of a tile of keys; plain = relu(x inv w + e) root."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 x0, x1, c, s, y0, y1, t0, t1; .reg .b16 lo, hi;
shl.b32 t0, $3, 16; and.b32 t1, $3, 0xffff0000;
mul.f32 t0, t0, $4; mul.f32 t1, t1, $5;
fma.rn.f32 x0, t0, $6, $8; fma.rn.f32 x1, t1, $7, $9;
max.f32 x0, x0, 0f00000000; max.f32 x1, x1, 0f00000000;
mul.f32 x0, x0, $10; mul.f32 x1, x1, $11;
cvt.rn.bf16x2.f32 $0, x1, x0;
mov.b32 {lo, hi}, $12; cvt.f32.f16 c, lo; cvt.f32.f16 s, hi;
mul.f32 t0, x1, s; mul.f32 t1, x1, c; neg.f32 t0, t0;
fma.rn.f32 y0, x0, c, t0; fma.rn.f32 y1, x0, s, t1;
cvt.rn.bf16x2.f32 $1, y1, y0;
mul.f32 y0, y0, $10; mul.f32 y1, y1, $11;
cvt.rn.bf16x2.f32 $2, y1, y0;
}""",
        "=&r,=&r,=&r,r,f,f,f,f,f,f,f,f,r",
        [x, inv, w, e, root, tab],
        dtype=(gl.bfloat16, gl.bfloat16, gl.bfloat16),
        is_pure=True,
        pack=2,
    )


@gluon.jit
def prepare_tile(x, inv, w, tab):
    """(plain, turned) of a tile; plain = relu(x inv w)."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 x0, x1, c, s, y0, y1, t0, t1; .reg .b16 lo, hi;
shl.b32 t0, $2, 16; and.b32 t1, $2, 0xffff0000;
mul.f32 t0, t0, $3; mul.f32 t1, t1, $4;
mul.f32 x0, t0, $5; mul.f32 x1, t1, $6;
max.f32 x0, x0, 0f00000000; max.f32 x1, x1, 0f00000000;
cvt.rn.bf16x2.f32 $0, x1, x0;
mov.b32 {lo, hi}, $7; cvt.f32.f16 c, lo; cvt.f32.f16 s, hi;
mul.f32 t0, x1, s; mul.f32 t1, x1, c; neg.f32 t0, t0;
fma.rn.f32 y0, x0, c, t0; fma.rn.f32 y1, x0, s, t1;
cvt.rn.bf16x2.f32 $1, y1, y0;
}""",
        "=&r,=&r,r,f,f,f,f,r",
        [x, inv, w, tab],
        dtype=(gl.bfloat16, gl.bfloat16),
        is_pure=True,
        pack=2,
    )


@gluon.jit
def prepare_query_tile(x, w, tab):
    """(plain, turned) of a tile; plain = relu(x w), still without 1/RMS."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 x0, x1, c, s, y0, y1, t0, t1; .reg .b16 lo, hi;
shl.b32 t0, $2, 16; and.b32 t1, $2, 0xffff0000;
mul.f32 x0, t0, $3; mul.f32 x1, t1, $4;
max.f32 x0, x0, 0f00000000; max.f32 x1, x1, 0f00000000;
cvt.rn.bf16x2.f32 $0, x1, x0;
mov.b32 {lo, hi}, $5; cvt.f32.f16 c, lo; cvt.f32.f16 s, hi;
mul.f32 t0, x1, s; mul.f32 t1, x1, c; neg.f32 t0, t0;
fma.rn.f32 y0, x0, c, t0; fma.rn.f32 y1, x0, s, t1;
cvt.rn.bf16x2.f32 $1, y1, y0;
}""",
        "=&r,=&r,r,f,f,r",
        [x, w, tab],
        dtype=(gl.bfloat16, gl.bfloat16),
        is_pure=True,
        pack=2,
    )


@gluon.jit
def turn_back_tile(y, f, tab):
    """float32 pairs times f, rotated back."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 c, s, a, b, t0, t1; .reg .b16 lo, hi;
mov.b32 {lo, hi}, $6; cvt.f32.f16 c, lo; cvt.f32.f16 s, hi;
mul.f32 a, $2, $4; mul.f32 b, $3, $5;
mul.f32 t0, b, s; mul.f32 t1, a, s; neg.f32 t1, t1;
fma.rn.f32 $0, a, c, t0; fma.rn.f32 $1, b, c, t1;
}""",
        "=&f,=&f,f,f,f,f,r",
        [y, f, tab],
        dtype=gl.float32,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def times_tile(x, y):
    """bfloat16 x times float32 y, in float32; unpacked here so that no float32 copy of x stays in registers."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 a, b;
shl.b32 a, $2, 16; and.b32 b, $2, 0xffff0000;
mul.f32 $0, a, $3; mul.f32 $1, b, $4;
}""",
        "=&f,=&f,r,f,f",
        [x, y],
        dtype=gl.float32,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def scaled_tile(x, f):
    """bfloat16 x times float32 f, in bfloat16."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 a, b;
shl.b32 a, $1, 16; and.b32 b, $1, 0xffff0000;
mul.f32 a, a, $2; mul.f32 b, b, $3;
cvt.rn.bf16x2.f32 $0, b, a;
}""",
        "=r,r,f,f",
        [x, f],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def squared_tile(x):
    """Square of bfloat16 x in float32."""
    return gl.inline_asm_elementwise(
        """{
.reg .f32 a, b;
shl.b32 a, $2, 16; and.b32 b, $2, 0xffff0000;
mul.f32 $0, a, a; mul.f32 $1, b, b;
}""",
        "=&f,=&f,r",
        [x],
        dtype=gl.float32,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def fold_tile(x):
    """Sum over the two rows of a 64-row tile that each thread of a tensor core's layout holds: (4, 8, C)."""
    return gl.sum(gl.reshape(x, [4, 2, 8, x.shape[1]]), 1)


@gluon.jit
def fetch_tile(a_desc, b_desc, tab_desc, a, b, tab, bar, frame, t, h, s0, on, BS: gl.constexpr):
    """Start the copies of one tile of two token tensors and of the rotary table; `bar` fires when all are in."""
    mbarrier.expect(bar, 3 * BS * WIDTH * 2, pred=on)
    tma.async_copy_global_to_shared(a_desc, [frame, s0, h, 0], bar, a, pred=on)
    tma.async_copy_global_to_shared(b_desc, [frame, s0, h, 0], bar, b, pred=on)
    tma.async_copy_global_to_shared(tab_desc, [t, s0, 0], bar, tab, pred=on)


@gluon.jit
def store_state(buffer, s_ptr, r_ptr, bth, D: gl.constexpr, BOTH: gl.constexpr):
    """The state that a frame reads (forward and reverse), zero beyond the head, into shared memory."""
    square: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    i = gl.arange(0, WIDTH, layout=gl.SliceLayout(1, square))
    j = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, square))
    inside = (i[:, None] < D) & (j[None, :] < D)
    offs = bth * D * D + i[:, None] * D + j[None, :]
    state = gl.load(s_ptr + offs, mask=inside, other=0.0)
    if BOTH:
        reverse = gl.load(r_ptr + offs, mask=inside, other=0.0)
        state = (state.to(gl.float32) + reverse.to(gl.float32)).to(gl.bfloat16)
    buffer.store(state)


@gluon.jit
def load_key_gates(
    beta_ptr, inv_ptr, w_ptr, item, s, count, S, H, key_scale, D: gl.constexpr, layout: gl.constexpr
):
    """beta and 1/RMS of an item's tokens s, and its head's norm weight times the key scale."""
    on = (s < S) & (item < count)
    beta = gl.load(beta_ptr + item.to(gl.int64) * S + s, mask=on, other=0.0)
    inv = gl.load(inv_ptr + (item // H).to(gl.int64) * S + s, mask=on, other=0.0)
    d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    w = gl.load(w_ptr + (item % H) * D + d, mask=d < D, other=0.0) * key_scale
    return beta, inv, w
