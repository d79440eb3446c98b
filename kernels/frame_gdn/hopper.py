"""Hopper kernels of the main branch in bfloat16, written in Gluon; `reference.py` defines what they compute.

The same stages as in `triton_kernels.py`, with what Triton leaves to its compiler spelled out: tiles come
through the tensor memory accelerator into shared memory ahead of their use, the tensor cores read them from
there while the next tile is prepared, and every tile of a kernel is held in one register layout, so that
nothing is moved between layouts. Head sizes up to 120; tiles are 128 channels wide, and whatever lies beyond
the head or the frame arrives as zero.

The table of the rotary embedding is (T, S, D) float16, cosine and sine of a pair side by side, so that a
register with the two channels of a pair meets a register with its cosine and sine. A register holds two
bfloat16 numbers; the inline assembly below works on such pairs in float32.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false, reportAssignmentType=false

from __future__ import annotations

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

_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
"""All threads of a program meet (Triton 3.7 renamed it)."""
WIDTH = gl.constexpr(128)
"""Channels of a tile."""


@gluon.jit
def _prepare_key(x, inv, w, e, root, tab):
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
def _prepare(x, inv, w, tab):
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
def _prepare_query(x, w, tab):
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
def _turn_back(y, f, tab):
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
def _times(x, y):
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
def _scaled(x, f):
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
def _squared(x):
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
def _fold(x):
    """Sum over the two rows of a 64-row tile that each thread of a tensor core's layout holds: (4, 8, C)."""
    return gl.sum(gl.reshape(x, [4, 2, 8, x.shape[1]]), 1)


@gluon.jit
def _fetch(a_desc, b_desc, tab_desc, a, b, tab, bar, frame, t, h, s0, on, BS: gl.constexpr):
    """Start the copies of one tile of two token tensors and of the rotary table; `bar` fires when all are in."""
    mbarrier.expect(bar, 3 * BS * WIDTH * 2, pred=on)
    tma.async_copy_global_to_shared(a_desc, [frame, s0, h, 0], bar, a, pred=on)
    tma.async_copy_global_to_shared(b_desc, [frame, s0, h, 0], bar, b, pred=on)
    tma.async_copy_global_to_shared(tab_desc, [t, s0, 0], bar, tab, pred=on)


@gluon.jit
def _store_state(buffer, s_ptr, r_ptr, bth, D: gl.constexpr, BOTH: gl.constexpr):
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
def _key_gates(
    beta_ptr, inv_ptr, w_ptr, item, s, count, S, H, key_scale, D: gl.constexpr, layout: gl.constexpr
):
    """beta and 1/RMS of an item's tokens s, and its head's norm weight times the key scale."""
    on = (s < S) & (item < count)
    beta = gl.load(beta_ptr + item.to(gl.int64) * S + s, mask=on, other=0.0)
    inv = gl.load(inv_ptr + (item // H).to(gl.int64) * S + s, mask=on, other=0.0)
    d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    w = gl.load(w_ptr + (item % H) * D + d, mask=d < D, other=0.0) * key_scale
    return beta, inv, w


@gluon.jit(do_not_specialize=["T", "S", "H", "count"])
def products(
    k_desc, v_desc, tab_desc, p_desc, u_desc, pz_desc, beta_ptr, inv_ptr, w_ptr, uz_ptr,
    T, S, H, count, key_scale, D: gl.constexpr, BS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """P, U and the normaliser's products of every num_programs-th of `count` frames and heads.

    With a = sqrt(beta) k, P = a^T a needs one operand for both sides. The column beyond the head holds
    sqrt(beta), so that the normaliser's product has sum of beta k, its U, as a row. While the tensor cores
    work on one tile, the next is prepared and those after it are on their way, across frames and heads.
    """
    rows_layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, 128, 16])
    operand: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    k_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BS, 1, WIDTH], k_desc.layout)
    v_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BS, 1, WIDTH], v_desc.layout)
    tab_buf = gl.allocate_shared_memory(gl.float16, [STAGES, 1, BS, WIDTH], tab_desc.layout)
    plain_buf = gl.allocate_shared_memory(gl.bfloat16, [2, BS, WIDTH], operand)
    turned_buf = gl.allocate_shared_memory(gl.bfloat16, [2, BS, WIDTH], operand)
    weighted_buf = gl.allocate_shared_memory(gl.bfloat16, [2, BS, WIDTH], operand)
    out = gl.allocate_shared_memory(gl.bfloat16, [3, 1, WIDTH, WIDTH], p_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    # The tile that is fetched next: its item (frame, head) and first token.
    ahead = gl.program_id(0)
    ahead_s = gl.to_tensor(0)
    frame = ahead // H
    t = frame % T
    h = ahead % H
    for i in gl.static_range(STAGES - 1):
        _fetch(k_desc, v_desc, tab_desc, k_buf.index(i), v_buf.index(i), tab_buf.index(i), ready.index(i),
               frame, t, h, ahead_s, ahead < count, BS)  # fmt: skip
        ahead_s += BS
        if ahead_s >= S:
            ahead += gl.num_programs(0)
            ahead_s = gl.to_tensor(0)
            frame = ahead // H
            t = frame % T
            h = ahead % H
    beyond = gl.where(gl.arange(0, WIDTH, layout=gl.SliceLayout(0, rows_layout)) == D, 1.0, 0.0)
    first_s = gl.arange(0, BS, layout=gl.SliceLayout(1, rows_layout))
    beta_next, inv_next, w = _key_gates(
        beta_ptr, inv_ptr, w_ptr, gl.program_id(0), first_s, count, S, H, key_scale, D, rows_layout
    )
    tiles = (S + BS - 1) // BS
    slot = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    half = gl.to_tensor(0)
    for item in range(gl.program_id(0), count, gl.num_programs(0)):
        z_acc = warpgroup_mma_init(gl.zeros([WIDTH, WIDTH], gl.float32, acc_layout))
        p_acc = warpgroup_mma_init(gl.zeros([WIDTH, WIDTH], gl.float32, acc_layout))
        u_acc = warpgroup_mma_init(gl.zeros([WIDTH, WIDTH], gl.float32, acc_layout))
        beta_at = beta_ptr + item.to(gl.int64) * S
        inv_at = inv_ptr + (item // H).to(gl.int64) * S
        s = first_s
        for _n in range(tiles):
            root = gl.sqrt(beta_next.to(gl.float32))
            inv = inv_next
            s += BS
            beta_next = gl.load(beta_at + s, mask=s < S, other=0.0)
            inv_next = gl.load(inv_at + s, mask=s < S, other=0.0)
            mbarrier.wait(ready.index(slot), phase)
            k = k_buf.index(slot).reshape([BS, WIDTH]).load(rows_layout)
            tab = tab_buf.index(slot).reshape([BS, WIDTH]).load(rows_layout)
            plain, turned, weighted = _prepare_key(
                k, inv[:, None], w[None, :], beyond[None, :], root[:, None], tab
            )
            plain_op = plain_buf.index(half)
            turned_op = turned_buf.index(half)
            weighted_op = weighted_buf.index(half)
            half = 1 - half
            plain_op.store(plain)
            turned_op.store(turned)
            weighted_op.store(weighted)
            z, p, u = warpgroup_mma_wait(0, deps=[z_acc, p_acc, u_acc])
            fence_async_shared()
            _barrier()
            v_op = v_buf.index(slot).reshape([BS, WIDTH])
            z_acc = warpgroup_mma(plain_op.permute((1, 0)), plain_op, z, is_async=True)
            p_acc = warpgroup_mma(turned_op.permute((1, 0)), turned_op, p, is_async=True)
            u_acc = warpgroup_mma(v_op.permute((1, 0)), weighted_op, u, is_async=True)
            # All are done with the tile before this one: its place takes the next.
            old = gl.where(slot == 0, STAGES - 1, slot - 1)
            _fetch(k_desc, v_desc, tab_desc, k_buf.index(old), v_buf.index(old), tab_buf.index(old),
                   ready.index(old), frame, t, h, ahead_s, ahead < count, BS)  # fmt: skip
            ahead_s += BS
            if ahead_s >= S:
                ahead += gl.num_programs(0)
                ahead_s = gl.to_tensor(0)
                frame = ahead // H
                t = frame % T
                h = ahead % H
            phase = gl.where(slot == STAGES - 1, 1 - phase, phase)
            slot = gl.where(slot == STAGES - 1, 0, slot + 1)
        beta_next, inv_next, w = _key_gates(
            beta_ptr,
            inv_ptr,
            w_ptr,
            item + gl.num_programs(0),
            first_s,
            count,
            S,
            H,
            key_scale,
            D,
            rows_layout,
        )
        tma.store_wait(0)
        _barrier()
        z, p, u = warpgroup_mma_wait(0, deps=[z_acc, p_acc, u_acc])
        row = gl.arange(0, WIDTH, layout=gl.SliceLayout(1, acc_layout))
        col = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, acc_layout))
        uz = gl.sum(gl.where((row == D)[:, None], z, 0.0), 0)
        gl.store(uz_ptr + item.to(gl.int64) * D + col, uz, mask=col < D)
        out.index(0).reshape([WIDTH, WIDTH]).store(p.to(gl.bfloat16))
        out.index(1).reshape([WIDTH, WIDTH]).store(u.to(gl.bfloat16))
        out.index(2).reshape([WIDTH, WIDTH]).store(z.to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        tma.async_copy_shared_to_global(p_desc, [item, 0, 0], out.index(0))
        tma.async_copy_shared_to_global(u_desc, [item, 0, 0], out.index(1))
        tma.async_copy_shared_to_global(pz_desc, [item, 0, 0], out.index(2))
    tma.store_wait(0)


@gluon.jit
def _chain(
    p_desc, u_desc, out_desc, init_ptr, final_ptr, decay_ptr, keep_ptr, b, h, T, H, row0,
    D: gl.constexpr, REVERSE: gl.constexpr, BACKWARD: gl.constexpr, HAS_INIT: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """`triton_kernels._chain` for 64 rows of a state: same steps, the next frames' matrices on their way."""
    BR: gl.constexpr = 64
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, 128, 16])
    p_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, WIDTH, WIDTH], p_desc.layout)
    u_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BR, WIDTH], u_desc.layout)
    out_buf = gl.allocate_shared_memory(gl.bfloat16, [2, 1, BR, WIDTH], out_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for j in gl.static_range(STAGES):
        mbarrier.init(ready.index(j), count=1)
    fence_async_shared()
    # Frames are walked in the direction of time or against it.
    first = (b * T + (0 if REVERSE == BACKWARD else T - 1)) * H + h
    step = H if REVERSE == BACKWARD else -H
    for j in gl.static_range(STAGES):
        mbarrier.expect(ready.index(j), (WIDTH + BR) * WIDTH * 2, pred=j < T)
        tma.async_copy_global_to_shared(
            p_desc, [first + j * step, 0, 0], ready.index(j), p_buf.index(j), pred=j < T
        )
        tma.async_copy_global_to_shared(
            u_desc, [first + j * step, row0, 0], ready.index(j), u_buf.index(j), pred=j < T
        )
    rows = row0 + gl.arange(0, BR, layout=gl.SliceLayout(1, acc_layout))
    d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, acc_layout))
    inside = (rows[:, None] < D) & (d[None, :] < D)
    ends = (b * H + h).to(gl.int64) * D * D + rows[:, None] * D + d[None, :]
    if HAS_INIT:
        x = gl.load(init_ptr + ends, mask=inside, other=0.0)
    else:
        x = gl.zeros([BR, WIDTH], gl.float32, acc_layout)
    slot = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    bth = first
    g_next = gl.load(decay_ptr + bth)
    keep_next = gl.load(keep_ptr + bth // H % T) if REVERSE else g_next
    for n in range(T):
        g = g_next
        keep = keep_next
        following = bth + step
        on = n + 1 < T
        g_next = gl.load(decay_ptr + following, mask=on, other=0.0)
        if REVERSE:
            keep_next = gl.load(keep_ptr + following // H % T, mask=on, other=0.0)
        mbarrier.wait(ready.index(slot), phase)
        u = u_buf.index(slot).reshape([BR, WIDTH]).load(acc_layout).to(gl.float32)
        if BACKWARD:
            if REVERSE:
                x = x * keep
            else:
                x = x + u
        product = warpgroup_mma(
            gl.convert_layout(x.to(gl.bfloat16), gl.DotOperandLayout(0, acc_layout, 2)),
            p_buf.index(slot).reshape([WIDTH, WIDTH]), gl.zeros([BR, WIDTH], gl.float32, acc_layout),
            is_async=True, use_acc=False,
        )  # fmt: skip
        if REVERSE or BACKWARD:
            out_buf.index(n % 2).reshape([BR, WIDTH]).store(x.to(gl.bfloat16))
        product = warpgroup_mma_wait(0, deps=[product])
        x = g * (x - product)
        if not BACKWARD:
            x = x + u
            if REVERSE:
                x = x * keep
        elif REVERSE:
            x = x + u
        if not (REVERSE or BACKWARD):
            out_buf.index(n % 2).reshape([BR, WIDTH]).store(x.to(gl.bfloat16))
        tma.store_wait(0)
        fence_async_shared()
        _barrier()
        tma.async_copy_shared_to_global(out_desc, [bth, row0, 0], out_buf.index(n % 2))
        ahead = bth + STAGES * step
        on = n + STAGES < T
        mbarrier.expect(ready.index(slot), (WIDTH + BR) * WIDTH * 2, pred=on)
        tma.async_copy_global_to_shared(p_desc, [ahead, 0, 0], ready.index(slot), p_buf.index(slot), pred=on)
        tma.async_copy_global_to_shared(
            u_desc, [ahead, row0, 0], ready.index(slot), u_buf.index(slot), pred=on
        )
        bth = following
        phase = gl.where(slot == STAGES - 1, 1 - phase, phase)
        slot = gl.where(slot == STAGES - 1, 0, slot + 1)
    gl.store(final_ptr + ends, x, mask=inside)
    tma.store_wait(0)


@gluon.jit
def _chain_row(
    p_desc, u_ptr, out_ptr, init_ptr, final_ptr, decay_ptr, keep_ptr, b, h, T, H,
    D: gl.constexpr, REVERSE: gl.constexpr, BACKWARD: gl.constexpr, HAS_INIT: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """The same for the normaliser's single row, whose product needs no tensor core."""
    square: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    along: gl.constexpr = gl.SliceLayout(0, square)
    p_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, WIDTH, WIDTH], p_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for j in gl.static_range(STAGES):
        mbarrier.init(ready.index(j), count=1)
    fence_async_shared()
    first = (b * T + (0 if REVERSE == BACKWARD else T - 1)) * H + h
    step = H if REVERSE == BACKWARD else -H
    for j in gl.static_range(STAGES):
        mbarrier.expect(ready.index(j), WIDTH * WIDTH * 2, pred=j < T)
        tma.async_copy_global_to_shared(
            p_desc, [first + j * step, 0, 0], ready.index(j), p_buf.index(j), pred=j < T
        )
    d = gl.arange(0, WIDTH, layout=along)
    inside = d < D
    ends = (b * H + h) * D + d
    if HAS_INIT:
        x = gl.load(init_ptr + ends, mask=inside, other=0.0)
    else:
        x = gl.zeros([WIDTH], gl.float32, along)
    slot = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    bth = first
    g_next = gl.load(decay_ptr + bth)
    keep_next = gl.load(keep_ptr + bth // H % T) if REVERSE else g_next
    u_next = gl.load(u_ptr + bth.to(gl.int64) * D + d, mask=inside, other=0.0)
    for n in range(T):
        g = g_next
        keep = keep_next
        u = u_next
        following = bth + step
        on = n + 1 < T
        g_next = gl.load(decay_ptr + following, mask=on, other=0.0)
        if REVERSE:
            keep_next = gl.load(keep_ptr + following // H % T, mask=on, other=0.0)
        u_next = gl.load(u_ptr + following.to(gl.int64) * D + d, mask=inside & on, other=0.0)
        mbarrier.wait(ready.index(slot), phase)
        if BACKWARD:
            if REVERSE:
                x = x * keep
            else:
                x = x + u
        if REVERSE or BACKWARD:
            gl.store(out_ptr + bth.to(gl.int64) * D + d, x, mask=inside)
        # P is symmetric: the sum runs along a thread's own channels.
        product = gl.sum(_times(p_buf.index(slot).reshape([WIDTH, WIDTH]).load(square), x[None, :]), 1)
        x = g * (x - gl.convert_layout(product, along))
        if not BACKWARD:
            x = x + u
            if REVERSE:
                x = x * keep
        elif REVERSE:
            x = x + u
        if not (REVERSE or BACKWARD):
            gl.store(out_ptr + bth.to(gl.int64) * D + d, x, mask=inside)
        _barrier()
        on = n + STAGES < T
        mbarrier.expect(ready.index(slot), WIDTH * WIDTH * 2, pred=on)
        tma.async_copy_global_to_shared(
            p_desc, [bth + STAGES * step, 0, 0], ready.index(slot), p_buf.index(slot), pred=on
        )
        bth = following
        phase = gl.where(slot == STAGES - 1, 1 - phase, phase)
        slot = gl.where(slot == STAGES - 1, 0, slot + 1)
    gl.store(final_ptr + ends, x, mask=inside)


@gluon.jit(do_not_specialize=["T", "H"])
def scan(
    p_desc, u_desc, pz_desc, uz_ptr, decay_ptr, keep_ptr, forward_desc, reverse_desc, z_forward_ptr, z_reverse_ptr,
    init_ptr, init_reverse_ptr, init_z_ptr, init_z_reverse_ptr,
    final_ptr, final_reverse_ptr, final_z_ptr, final_z_reverse_ptr, T, H,
    D: gl.constexpr, BACKWARD: gl.constexpr, HAS_INIT: gl.constexpr, HAS_INIT_REVERSE: gl.constexpr,
    BOTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Program (head, block, direction): the state's first 64 rows, its other rows, the normaliser's row."""
    bh = gl.program_id(0)
    block = gl.program_id(1)
    b = bh // H
    h = bh % H
    if gl.program_id(2) == 0:
        if block < 2:
            _chain(p_desc, u_desc, forward_desc, init_ptr, final_ptr, decay_ptr, keep_ptr, b, h, T, H, block * 64,
                   D, False, BACKWARD, HAS_INIT, STAGES)  # fmt: skip
        else:
            _chain_row(pz_desc, uz_ptr, z_forward_ptr, init_z_ptr, final_z_ptr, decay_ptr, keep_ptr, b, h, T, H,
                       D, False, BACKWARD, HAS_INIT, STAGES)  # fmt: skip
    elif BOTH:
        if block < 2:
            _chain(p_desc, u_desc, reverse_desc, init_reverse_ptr, final_reverse_ptr, decay_ptr, keep_ptr,
                   b, h, T, H, block * 64, D, True, BACKWARD, HAS_INIT_REVERSE, STAGES)  # fmt: skip
        else:
            _chain_row(pz_desc, uz_ptr, z_reverse_ptr, init_z_reverse_ptr, final_z_reverse_ptr, decay_ptr, keep_ptr,
                       b, h, T, H, D, True, BACKWARD, HAS_INIT_REVERSE, STAGES)  # fmt: skip


@gluon.jit(do_not_specialize=["T", "S", "H"])
def readout(
    q_desc, tab_desc, out_desc, s_ptr, r_ptr, z_ptr, zr_ptr, w_ptr, den_ptr, square_ptr, T, S, H,
    D: gl.constexpr, BOTH: gl.constexpr, BS: gl.constexpr,
):  # fmt: skip
    """out = (S + R) Q / (z + zr) Q for every num_programs(1)-th tile of a frame and head.

    1/RMS of the queries multiplies numerator and denominator alike; only eps would need it. So it is not
    read: the squares of the queries are summed here, and `settle_queries` puts in eps where it matters.

    Args:
        den_ptr, square_ptr: (B, T, H, S) denominators without 1/RMS and eps; sum of squared channels.
    """
    pid = gl.program_id(0)
    h = pid % H
    frame = pid // H
    t = frame % T
    bth = pid.to(gl.int64)
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, 128, 16])
    den_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, 16, 16])
    a_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    rows: gl.constexpr = gl.SliceLayout(1, acc_layout)
    q_buf = gl.allocate_shared_memory(gl.bfloat16, [1, BS, 1, WIDTH], q_desc.layout)
    tab_buf = gl.allocate_shared_memory(gl.float16, [1, BS, WIDTH], tab_desc.layout)
    out_buf = gl.allocate_shared_memory(gl.bfloat16, [1, BS, 1, WIDTH], out_desc.layout)
    state_buf = gl.allocate_shared_memory(gl.bfloat16, [WIDTH, WIDTH], gl.NVMMASharedLayout(128, 16, 2))
    z_buf = gl.allocate_shared_memory(gl.bfloat16, [WIDTH, 16], gl.NVMMASharedLayout(32, 16, 2))
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    fence_async_shared()
    s0 = gl.program_id(1) * BS
    step = gl.num_programs(1) * BS
    mbarrier.expect(ready, 2 * BS * WIDTH * 2)
    tma.async_copy_global_to_shared(q_desc, [frame, s0, h, 0], ready, q_buf)
    tma.async_copy_global_to_shared(tab_desc, [t, s0, 0], ready, tab_buf)
    _store_state(state_buf, s_ptr, r_ptr, bth, D, BOTH)
    z_layout: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [gl.num_warps(), 1], [1, 0])
    i = gl.arange(0, WIDTH, layout=gl.SliceLayout(1, z_layout))
    j = gl.arange(0, 16, layout=gl.SliceLayout(0, z_layout))
    z = gl.load(z_ptr + bth * D + i, mask=i < D, other=0.0)
    if BOTH:
        z += gl.load(zr_ptr + bth * D + i, mask=i < D, other=0.0)
    # The normaliser's state in two columns, leading and following digits, so that the product loses none.
    lead = z.to(gl.bfloat16)
    follow = (z - lead.to(gl.float32)).to(gl.bfloat16)
    zero = gl.zeros([WIDTH, 16], gl.bfloat16, z_layout)
    z_buf.store(gl.where(j[None, :] == 0, lead[:, None], gl.where(j[None, :] == 1, follow[:, None], zero)))
    d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, a_layout))
    w = gl.load(w_ptr + h * D + d, mask=d < D, other=0.0)
    fence_async_shared()
    _barrier()
    for n in range((S - s0 + step - 1) // step):
        s = s0 + gl.arange(0, BS, layout=rows)
        mbarrier.wait(ready, n & 1)
        q = q_buf.reshape([BS, WIDTH]).load(a_layout)
        tab = tab_buf.reshape([BS, WIDTH]).load(a_layout)
        tma.store_wait(0)
        _barrier()
        following = s0 + step
        on = following < S
        mbarrier.expect(ready, 2 * BS * WIDTH * 2, pred=on)
        tma.async_copy_global_to_shared(q_desc, [frame, following, h, 0], ready, q_buf, pred=on)
        tma.async_copy_global_to_shared(tab_desc, [t, following, 0], ready, tab_buf, pred=on)
        plain, turned = _prepare_query(q, w[None, :], tab)
        den = warpgroup_mma(
            gl.convert_layout(plain, gl.DotOperandLayout(0, den_layout, 2)), z_buf,
            gl.zeros([BS, 16], gl.float32, den_layout), is_async=True, use_acc=False,
        )  # fmt: skip
        out = warpgroup_mma(
            turned, state_buf.permute((1, 0)), gl.zeros([BS, WIDTH], gl.float32, acc_layout),
            is_async=True, use_acc=False,
        )  # fmt: skip
        square = gl.convert_layout(gl.sum(_squared(q), 1), rows)
        gl.store(square_ptr + bth * S + s, square, mask=s < S)
        den, out = warpgroup_mma_wait(0, deps=[den, out])
        total = gl.convert_layout(gl.sum(den, 1), rows)
        gl.store(den_ptr + bth * S + s, total, mask=s < S)
        # A denominator of nothing leaves the numerator as it is; `settle_queries` knows.
        out = out * (1.0 / gl.where(gl.abs(total) < 1e-30, 1.0, total))[:, None]
        out_buf.reshape([BS, WIDTH]).store(out.to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        tma.async_copy_shared_to_global(out_desc, [frame, s0, h, 0], out_buf)
        s0 = following
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["T", "S", "H"])
def readout_backward(
    q_desc, dout_desc, tab_desc, dq_desc, ds_desc, s_ptr, r_ptr, z_ptr, zr_ptr, inv_ptr, w_ptr,
    dz_ptr, dw_ptr, part_ptr, T, S, H, eps, D: gl.constexpr, BOTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Gradients of `readout` to queries, states and the normaliser's state, in one pass over a frame and head.

    dout meets the state as it is and is scaled afterwards; turned queries take the factor 1/(den RMS) on their
    way into the state's gradient. part_ptr: as in `triton_kernels.readout_backward_query`.
    """
    BS: gl.constexpr = 64
    pid = gl.program_id(0)
    h = pid % H
    frame = pid // H
    t = frame % T
    bth = pid.to(gl.int64)
    tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 64, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 128, 16])
    rows: gl.constexpr = gl.SliceLayout(1, tile)
    cols: gl.constexpr = gl.SliceLayout(0, tile)
    operand: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BS, 1, WIDTH], q_desc.layout)
    dout_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BS, 1, WIDTH], q_desc.layout)
    tab_buf = gl.allocate_shared_memory(gl.float16, [STAGES, 1, BS, WIDTH], tab_desc.layout)
    state_buf = gl.allocate_shared_memory(gl.bfloat16, [WIDTH, WIDTH], operand)
    turned_buf = gl.allocate_shared_memory(gl.bfloat16, [2, BS, WIDTH], operand)
    dq_buf = gl.allocate_shared_memory(gl.bfloat16, [1, BS, 1, WIDTH], dq_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    tiles = (S + BS - 1) // BS
    for i in gl.static_range(STAGES):
        _fetch(q_desc, dout_desc, tab_desc, q_buf.index(i), dout_buf.index(i), tab_buf.index(i), ready.index(i),
               frame, t, h, i * BS, i < tiles, BS)  # fmt: skip
    _store_state(state_buf, s_ptr, r_ptr, bth, D, BOTH)
    # Vectors over channels wait in shared memory: registers are short.
    vector: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    w_buf = gl.allocate_shared_memory(gl.float32, [WIDTH], flat)
    z_buf = gl.allocate_shared_memory(gl.float32, [WIDTH], flat)
    c = gl.arange(0, WIDTH, layout=vector)
    weight = gl.load(w_ptr + h * D + c, mask=c < D, other=0.0)
    z = gl.load(z_ptr + bth * D + c, mask=c < D, other=0.0)
    if BOTH:
        z += gl.load(zr_ptr + bth * D + c, mask=c < D, other=0.0)
    w_buf.store(weight)
    z_buf.store(z)
    fence_async_shared()
    _barrier()
    dz = _fold(gl.zeros([BS, WIDTH], gl.float32, tile))
    dw = _fold(gl.zeros([BS, WIDTH], gl.float32, tile))
    ds_acc = warpgroup_mma_init(gl.zeros([WIDTH, WIDTH], gl.float32, acc_layout))
    s = gl.arange(0, BS, layout=rows)
    inv_next = gl.load(inv_ptr + frame.to(gl.int64) * S + s, mask=s < S, other=0.0)
    for n in range(tiles):
        slot = n % STAGES
        inv = inv_next
        mask_s = s < S
        at = part_ptr + bth * S + s
        s += BS
        inv_next = gl.load(inv_ptr + frame.to(gl.int64) * S + s, mask=s < S, other=0.0)
        mbarrier.wait(ready.index(slot), (n // STAGES) & 1)
        dout_op = dout_buf.index(slot).reshape([BS, WIDTH])
        dqr = warpgroup_mma(
            dout_op, state_buf, gl.zeros([BS, WIDTH], gl.float32, tile), is_async=True, use_acc=False
        )
        q = q_buf.index(slot).reshape([BS, WIDTH]).load(tile)
        tab = tab_buf.index(slot).reshape([BS, WIDTH]).load(tile)
        plain, turned = _prepare_query(q, w_buf.load(cols)[None, :], tab)
        den = gl.where(mask_s, gl.sum(_times(plain, z_buf.load(cols)[None, :]), 1) * inv + eps, 1.0)
        factor = inv / den
        turned_op = turned_buf.index(n % 2)
        turned_op.store(_scaled(turned, factor[:, None]))
        dqr, ds = warpgroup_mma_wait(0, deps=[dqr, ds_acc])
        tma.store_wait(0)
        fence_async_shared()
        _barrier()
        ds_acc = warpgroup_mma(dout_op.permute((1, 0)), turned_op, ds, is_async=True)
        old = (n + STAGES - 1) % STAGES
        s0 = (n + STAGES - 1) * BS
        _fetch(q_desc, dout_desc, tab_desc, q_buf.index(old), dout_buf.index(old), tab_buf.index(old),
               ready.index(old), frame, t, h, s0, (n > 0) & (s0 < S), BS)  # fmt: skip
        dquery = _turn_back(dqr, factor[:, None], tab)
        along = gl.sum(_times(plain, dquery), 1)
        dden = -along * factor
        dquery += dden[:, None] * z_buf.load(cols)[None, :]
        dz += _fold(_times(plain, dden[:, None]))
        # Below 1e-7 of the gradient it is rounding; a zero lets `remove_radial` skip the token.
        matters = eps > 1e-7 * gl.abs(den)
        gl.store(at, gl.where(matters, along * eps / den, 0.0), mask=mask_s)
        dw += _fold(_times(plain, dquery))
        dquery = gl.where(plain > 0, dquery * w_buf.load(cols)[None, :], 0.0)
        dq_buf.reshape([BS, WIDTH]).store(dquery.to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        tma.async_copy_shared_to_global(dq_desc, [frame, n * BS, h, 0], dq_buf)
    ds = warpgroup_mma_wait(0, deps=[ds_acc])
    dz_sum = gl.convert_layout(gl.sum(gl.sum(dz, 0), 0), vector)
    dw_sum = gl.convert_layout(gl.sum(gl.sum(dw, 0), 0), vector)
    dw_sum = gl.where(weight == 0, 0.0, dw_sum / gl.where(weight == 0, 1.0, weight))
    gl.store(dz_ptr + bth * D + c, dz_sum, mask=c < D)
    gl.store(dw_ptr + bth * D + c, dw_sum, mask=c < D)
    stage = gl.allocate_shared_memory(gl.bfloat16, [1, WIDTH, WIDTH], ds_desc.layout)
    stage.reshape([WIDTH, WIDTH]).store(ds.to(gl.bfloat16))
    fence_async_shared()
    _barrier()
    tma.async_copy_shared_to_global(ds_desc, [pid, 0, 0], stage)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["T", "S", "H"])
def products_backward(
    k_desc, v_desc, tab_desc, dp_desc, du_desc, dpz_desc, dk_desc, dv_desc, duz_ptr,
    beta_ptr, inv_ptr, w_ptr, dbeta_ptr, part_ptr, dw_ptr, T, S, H, key_scale,
    D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Gradients of values, keys and beta by way of P, U and the normaliser's products of one frame and head.

    dV = beta dU K and dK = beta (dP K + dU^T V), turned back, + beta (dPz k + duz), dP and dPz symmetrised.
    dk_ptr gets the gradient of the given keys but for RMSNorm's component along the token (part_ptr, its share
    of this head), which `remove_radial` takes out.
    """
    BS: gl.constexpr = 64
    pid = gl.program_id(0)
    h = pid % H
    frame = pid // H
    t = frame % T
    bth = pid.to(gl.int64)
    tile: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 64, 16])
    rows: gl.constexpr = gl.SliceLayout(1, tile)
    cols: gl.constexpr = gl.SliceLayout(0, tile)
    k_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BS, 1, WIDTH], k_desc.layout)
    v_buf = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 1, BS, 1, WIDTH], k_desc.layout)
    tab_buf = gl.allocate_shared_memory(gl.float16, [STAGES, 1, BS, WIDTH], tab_desc.layout)
    dp_buf = gl.allocate_shared_memory(gl.bfloat16, [1, WIDTH, WIDTH], dp_desc.layout)
    du_buf = gl.allocate_shared_memory(gl.bfloat16, [1, WIDTH, WIDTH], dp_desc.layout)
    dpz_buf = gl.allocate_shared_memory(gl.bfloat16, [1, WIDTH, WIDTH], dp_desc.layout)
    turned_buf = gl.allocate_shared_memory(gl.bfloat16, [1, BS, 1, WIDTH], k_desc.layout)
    plain_buf = gl.allocate_shared_memory(gl.bfloat16, [1, BS, 1, WIDTH], k_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES + 1):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    tiles = (S + BS - 1) // BS
    bar = ready.index(STAGES)
    mbarrier.expect(bar, 3 * WIDTH * WIDTH * 2)
    tma.async_copy_global_to_shared(dp_desc, [pid, 0, 0], bar, dp_buf)
    tma.async_copy_global_to_shared(du_desc, [pid, 0, 0], bar, du_buf)
    tma.async_copy_global_to_shared(dpz_desc, [pid, 0, 0], bar, dpz_buf)
    for i in gl.static_range(STAGES):
        _fetch(k_desc, v_desc, tab_desc, k_buf.index(i), v_buf.index(i), tab_buf.index(i), ready.index(i),
               frame, t, h, i * BS, i < tiles, BS)  # fmt: skip
    # Vectors over channels wait in shared memory: registers are short.
    vector: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    w_buf = gl.allocate_shared_memory(gl.float32, [WIDTH], flat)
    duz_buf = gl.allocate_shared_memory(gl.float32, [WIDTH], flat)
    c = gl.arange(0, WIDTH, layout=vector)
    weight = gl.load(w_ptr + h * D + c, mask=c < D, other=0.0)
    w_buf.store(weight * key_scale)
    duz_buf.store(gl.load(duz_ptr + bth * D + c, mask=c < D, other=0.0))
    _barrier()
    dw = _fold(gl.zeros([BS, WIDTH], gl.float32, tile))
    dp = dp_buf.reshape([WIDTH, WIDTH])
    du = du_buf.reshape([WIDTH, WIDTH])
    dpz = dpz_buf.reshape([WIDTH, WIDTH])
    turned_op = turned_buf.reshape([BS, WIDTH])
    plain_op = plain_buf.reshape([BS, WIDTH])
    mbarrier.wait(ready.index(STAGES), 0)
    s = gl.arange(0, BS, layout=rows)
    beta_next = gl.load(beta_ptr + bth * S + s, mask=s < S, other=0.0)
    inv_next = gl.load(inv_ptr + frame.to(gl.int64) * S + s, mask=s < S, other=0.0)
    for n in range(tiles):
        slot = n % STAGES
        mask_s = s < S
        at = bth * S + s
        beta = beta_next.to(gl.float32)
        inv = inv_next
        s += BS
        beta_next = gl.load(beta_ptr + bth * S + s, mask=s < S, other=0.0)
        inv_next = gl.load(inv_ptr + frame.to(gl.int64) * S + s, mask=s < S, other=0.0)
        mbarrier.wait(ready.index(slot), (n // STAGES) & 1)
        k = k_buf.index(slot).reshape([BS, WIDTH]).load(tile)
        tab = tab_buf.index(slot).reshape([BS, WIDTH]).load(tile)
        plain, turned = _prepare(k, inv[:, None], w_buf.load(cols)[None, :], tab)
        tma.store_wait(0)
        _barrier()
        turned_op.store(turned)
        plain_op.store(plain)
        fence_async_shared()
        _barrier()
        zero = gl.zeros([BS, WIDTH], gl.float32, tile)
        v_op = v_buf.index(slot).reshape([BS, WIDTH])
        dv = warpgroup_mma(turned_op, du.permute((1, 0)), zero, is_async=True, use_acc=False)
        both = warpgroup_mma(turned_op, dp, zero, is_async=True, use_acc=False)
        both = warpgroup_mma(v_op, du, both, is_async=True)
        plain_part = warpgroup_mma(plain_op, dpz, zero, is_async=True, use_acc=False)
        v = v_op.load(tile)
        dv, both, plain_part = warpgroup_mma_wait(0, deps=[dv, both, plain_part])
        _barrier()
        s0 = (n + STAGES) * BS
        _fetch(k_desc, v_desc, tab_desc, k_buf.index(slot), v_buf.index(slot), tab_buf.index(slot),
               ready.index(slot), frame, t, h, s0, s0 < S, BS)  # fmt: skip
        duz = duz_buf.load(cols)[None, :]
        plain_part += duz
        # <key, dkey> / beta, and v^T dU k + <key, duz>: half their sum is the gradient of beta.
        along = gl.sum(_times(turned, both) + _times(plain, plain_part), 1)
        linear = gl.sum(_times(v, dv) + _times(plain, duz), 1)
        turned_op.store((dv * beta[:, None]).to(gl.bfloat16))
        gl.store(dbeta_ptr + at, (0.5 * (along + linear)).to(dbeta_ptr.dtype.element_ty), mask=mask_s)
        gl.store(part_ptr + at, beta * along, mask=mask_s)
        dkey = _turn_back(both, beta[:, None], tab) + plain_part * beta[:, None]
        dw += _fold(_times(plain, dkey))
        dkey = gl.where(plain > 0, dkey * (w_buf.load(cols)[None, :] * inv[:, None]), 0.0)
        plain_op.store(dkey.to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        tma.async_copy_shared_to_global(dv_desc, [frame, n * BS, h, 0], turned_buf)
        tma.async_copy_shared_to_global(dk_desc, [frame, n * BS, h, 0], plain_buf)
    dw_sum = gl.convert_layout(gl.sum(gl.sum(dw, 0), 0), vector)
    dw_sum = gl.where(weight == 0, 0.0, dw_sum / gl.where(weight == 0, 1.0, weight))
    gl.store(dw_ptr + bth * D + c, dw_sum, mask=c < D)
    tma.store_wait(0)
