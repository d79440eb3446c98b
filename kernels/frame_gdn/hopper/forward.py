"""Hopper kernels of the main branch in bfloat16, written in Gluon; `reference.py` defines what they compute.

The same stages as in `triton/`, with what Triton leaves to its compiler spelled out: tiles come
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

from .tiles import (
    WIDTH,
    block_barrier,
    fetch_tile,
    load_key_gates,
    prepare_key_tile,
    prepare_query_tile,
    squared_tile,
    store_state,
    times_tile,
)


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
        fetch_tile(k_desc, v_desc, tab_desc, k_buf.index(i), v_buf.index(i), tab_buf.index(i), ready.index(i),
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
    beta_next, inv_next, w = load_key_gates(
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
            plain, turned, weighted = prepare_key_tile(
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
            block_barrier()
            v_op = v_buf.index(slot).reshape([BS, WIDTH])
            z_acc = warpgroup_mma(plain_op.permute((1, 0)), plain_op, z, is_async=True)
            p_acc = warpgroup_mma(turned_op.permute((1, 0)), turned_op, p, is_async=True)
            u_acc = warpgroup_mma(v_op.permute((1, 0)), weighted_op, u, is_async=True)
            # All are done with the tile before this one: its place takes the next.
            old = gl.where(slot == 0, STAGES - 1, slot - 1)
            fetch_tile(k_desc, v_desc, tab_desc, k_buf.index(old), v_buf.index(old), tab_buf.index(old),
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
        beta_next, inv_next, w = load_key_gates(
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
        block_barrier()
        z, p, u = warpgroup_mma_wait(0, deps=[z_acc, p_acc, u_acc])
        row = gl.arange(0, WIDTH, layout=gl.SliceLayout(1, acc_layout))
        col = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, acc_layout))
        uz = gl.sum(gl.where((row == D)[:, None], z, 0.0), 0)
        gl.store(uz_ptr + item.to(gl.int64) * D + col, uz, mask=col < D)
        out.index(0).reshape([WIDTH, WIDTH]).store(p.to(gl.bfloat16))
        out.index(1).reshape([WIDTH, WIDTH]).store(u.to(gl.bfloat16))
        out.index(2).reshape([WIDTH, WIDTH]).store(z.to(gl.bfloat16))
        fence_async_shared()
        block_barrier()
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
    """`_chain` of `triton/forward.py` for 64 rows of a state: same steps, the next frames' matrices on their way."""
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
        block_barrier()
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
        product = gl.sum(times_tile(p_buf.index(slot).reshape([WIDTH, WIDTH]).load(square), x[None, :]), 1)
        x = g * (x - gl.convert_layout(product, along))
        if not BACKWARD:
            x = x + u
            if REVERSE:
                x = x * keep
        elif REVERSE:
            x = x + u
        if not (REVERSE or BACKWARD):
            gl.store(out_ptr + bth.to(gl.int64) * D + d, x, mask=inside)
        block_barrier()
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
    store_state(state_buf, s_ptr, r_ptr, bth, D, BOTH)
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
    block_barrier()
    for n in range((S - s0 + step - 1) // step):
        s = s0 + gl.arange(0, BS, layout=rows)
        mbarrier.wait(ready, n & 1)
        q = q_buf.reshape([BS, WIDTH]).load(a_layout)
        tab = tab_buf.reshape([BS, WIDTH]).load(a_layout)
        tma.store_wait(0)
        block_barrier()
        following = s0 + step
        on = following < S
        mbarrier.expect(ready, 2 * BS * WIDTH * 2, pred=on)
        tma.async_copy_global_to_shared(q_desc, [frame, following, h, 0], ready, q_buf, pred=on)
        tma.async_copy_global_to_shared(tab_desc, [t, following, 0], ready, tab_buf, pred=on)
        plain, turned = prepare_query_tile(q, w[None, :], tab)
        den = warpgroup_mma(
            gl.convert_layout(plain, gl.DotOperandLayout(0, den_layout, 2)), z_buf,
            gl.zeros([BS, 16], gl.float32, den_layout), is_async=True, use_acc=False,
        )  # fmt: skip
        out = warpgroup_mma(
            turned, state_buf.permute((1, 0)), gl.zeros([BS, WIDTH], gl.float32, acc_layout),
            is_async=True, use_acc=False,
        )  # fmt: skip
        square = gl.convert_layout(gl.sum(squared_tile(q), 1), rows)
        gl.store(square_ptr + bth * S + s, square, mask=s < S)
        den, out = warpgroup_mma_wait(0, deps=[den, out])
        total = gl.convert_layout(gl.sum(den, 1), rows)
        gl.store(den_ptr + bth * S + s, total, mask=s < S)
        # A denominator of nothing leaves the numerator as it is; `settle_queries` knows.
        out = out * (1.0 / gl.where(gl.abs(total) < 1e-30, 1.0, total))[:, None]
        out_buf.reshape([BS, WIDTH]).store(out.to(gl.bfloat16))
        fence_async_shared()
        block_barrier()
        tma.async_copy_shared_to_global(out_desc, [frame, s0, h, 0], out_buf)
        s0 = following
    tma.store_wait(0)
