"""Gradients of readout and products."""

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
    fold_tile,
    prepare_query_tile,
    prepare_tile,
    scaled_tile,
    store_state,
    times_tile,
    turn_back_tile,
)


@gluon.jit(do_not_specialize=["T", "S", "H"])
def readout_backward(
    q_desc, dout_desc, tab_desc, dq_desc, ds_desc, s_ptr, r_ptr, z_ptr, zr_ptr, inv_ptr, w_ptr,
    dz_ptr, dw_ptr, part_ptr, T, S, H, eps, D: gl.constexpr, BOTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Gradients of `readout` to queries, states and the normaliser's state, in one pass over a frame and head.

    dout meets the state as it is and is scaled afterwards; turned queries take the factor 1/(den RMS) on their
    way into the state's gradient. part_ptr: as in `triton/backward.py`'s `readout_backward_query`.
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
        fetch_tile(q_desc, dout_desc, tab_desc, q_buf.index(i), dout_buf.index(i), tab_buf.index(i), ready.index(i),
               frame, t, h, i * BS, i < tiles, BS)  # fmt: skip
    store_state(state_buf, s_ptr, r_ptr, bth, D, BOTH)
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
    block_barrier()
    dz = fold_tile(gl.zeros([BS, WIDTH], gl.float32, tile))
    dw = fold_tile(gl.zeros([BS, WIDTH], gl.float32, tile))
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
        plain, turned = prepare_query_tile(q, w_buf.load(cols)[None, :], tab)
        den = gl.where(mask_s, gl.sum(times_tile(plain, z_buf.load(cols)[None, :]), 1) * inv + eps, 1.0)
        factor = inv / den
        turned_op = turned_buf.index(n % 2)
        turned_op.store(scaled_tile(turned, factor[:, None]))
        dqr, ds = warpgroup_mma_wait(0, deps=[dqr, ds_acc])
        tma.store_wait(0)
        fence_async_shared()
        block_barrier()
        ds_acc = warpgroup_mma(dout_op.permute((1, 0)), turned_op, ds, is_async=True)
        old = (n + STAGES - 1) % STAGES
        s0 = (n + STAGES - 1) * BS
        fetch_tile(q_desc, dout_desc, tab_desc, q_buf.index(old), dout_buf.index(old), tab_buf.index(old),
               ready.index(old), frame, t, h, s0, (n > 0) & (s0 < S), BS)  # fmt: skip
        dquery = turn_back_tile(dqr, factor[:, None], tab)
        along = gl.sum(times_tile(plain, dquery), 1)
        dden = -along * factor
        dquery += dden[:, None] * z_buf.load(cols)[None, :]
        dz += fold_tile(times_tile(plain, dden[:, None]))
        # Below 1e-7 of the gradient it is rounding; a zero lets `remove_radial` skip the token.
        matters = eps > 1e-7 * gl.abs(den)
        gl.store(at, gl.where(matters, along * eps / den, 0.0), mask=mask_s)
        dw += fold_tile(times_tile(plain, dquery))
        dquery = gl.where(plain > 0, dquery * w_buf.load(cols)[None, :], 0.0)
        dq_buf.reshape([BS, WIDTH]).store(dquery.to(gl.bfloat16))
        fence_async_shared()
        block_barrier()
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
    block_barrier()
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
        fetch_tile(k_desc, v_desc, tab_desc, k_buf.index(i), v_buf.index(i), tab_buf.index(i), ready.index(i),
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
    block_barrier()
    dw = fold_tile(gl.zeros([BS, WIDTH], gl.float32, tile))
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
        plain, turned = prepare_tile(k, inv[:, None], w_buf.load(cols)[None, :], tab)
        tma.store_wait(0)
        block_barrier()
        turned_op.store(turned)
        plain_op.store(plain)
        fence_async_shared()
        block_barrier()
        zero = gl.zeros([BS, WIDTH], gl.float32, tile)
        v_op = v_buf.index(slot).reshape([BS, WIDTH])
        dv = warpgroup_mma(turned_op, du.permute((1, 0)), zero, is_async=True, use_acc=False)
        both = warpgroup_mma(turned_op, dp, zero, is_async=True, use_acc=False)
        both = warpgroup_mma(v_op, du, both, is_async=True)
        plain_part = warpgroup_mma(plain_op, dpz, zero, is_async=True, use_acc=False)
        v = v_op.load(tile)
        dv, both, plain_part = warpgroup_mma_wait(0, deps=[dv, both, plain_part])
        block_barrier()
        s0 = (n + STAGES) * BS
        fetch_tile(k_desc, v_desc, tab_desc, k_buf.index(slot), v_buf.index(slot), tab_buf.index(slot),
               ready.index(slot), frame, t, h, s0, s0 < S, BS)  # fmt: skip
        duz = duz_buf.load(cols)[None, :]
        plain_part += duz
        # <key, dkey> / beta, and v^T dU k + <key, duz>: half their sum is the gradient of beta.
        along = gl.sum(times_tile(turned, both) + times_tile(plain, plain_part), 1)
        linear = gl.sum(times_tile(v, dv) + times_tile(plain, duz), 1)
        turned_op.store((dv * beta[:, None]).to(gl.bfloat16))
        gl.store(dbeta_ptr + at, (0.5 * (along + linear)).to(dbeta_ptr.dtype.element_ty), mask=mask_s)
        gl.store(part_ptr + at, beta * along, mask=mask_s)
        dkey = turn_back_tile(both, beta[:, None], tab) + plain_part * beta[:, None]
        dw += fold_tile(times_tile(plain, dkey))
        dkey = gl.where(plain > 0, dkey * (w_buf.load(cols)[None, :] * inv[:, None]), 0.0)
        plain_op.store(dkey.to(gl.bfloat16))
        fence_async_shared()
        block_barrier()
        tma.async_copy_shared_to_global(dv_desc, [frame, n * BS, h, 0], turned_buf)
        tma.async_copy_shared_to_global(dk_desc, [frame, n * BS, h, 0], plain_buf)
    dw_sum = gl.convert_layout(gl.sum(gl.sum(dw, 0), 0), vector)
    dw_sum = gl.where(weight == 0, 0.0, dw_sum / gl.where(weight == 0, 1.0, weight))
    gl.store(dw_ptr + bth * D + c, dw_sum, mask=c < D)
    tma.store_wait(0)
