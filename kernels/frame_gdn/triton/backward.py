"""Gradients of the stages."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    dot,
    dot_add,
    load_operand,
    load_square,
    load_tables,
    load_weight,
    over_columns,
    relu_tile,
    rows_of_z,
    store_square,
    turn_tile,
)


@triton.jit
def settle_queries(
    den_ptr, square_ptr, inv_ptr, out_ptr, S, H, norm_eps, eps,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """1 / RMS of the queries from their heads' squares, and eps into outputs that were divided without it.

    For BR tokens of a frame. With bfloat16 outputs a change below 1e-4 is a sixteenth of their rounding and
    left out; that is nearly always so, and then nothing but numbers per token and head is read.
    """
    frame = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * BR + tl.arange(0, BR)
    mask_s = s < S
    heads = tl.arange(0, BH)
    mask = (heads[:, None] < H) & mask_s[None, :]
    offs = (frame * H + heads[:, None]) * S + s[None, :]
    inv = tl.rsqrt(tl.sum(tl.load(square_ptr + offs, mask=mask, other=0.0), 0) / (H * D) + norm_eps)
    tl.store(inv_ptr + frame * S + s, inv, mask=mask_s)
    den = tl.load(den_ptr + offs, mask=mask, other=1.0)
    base = tl.where(tl.abs(den) < 1e-30, 1.0, den)
    change = tl.where(
        mask, tl.abs(base - den - eps / inv[None, :]) > 1e-4 * tl.abs(den + eps / inv[None, :]), 0
    )
    if tl.max(tl.max(change.to(tl.int32), 1), 0) > 0:
        d = tl.arange(0, BD)
        for h in range(0, H):
            den_h = tl.load(den_ptr + (frame * H + h) * S + s, mask=mask_s, other=1.0)
            factor = tl.where(tl.abs(den_h) < 1e-30, 1.0, den_h) / (den_h + eps / inv)
            rows = out_ptr + ((frame * S + s) * H + h)[:, None] * D + d[None, :]
            inside = mask_s[:, None] & (d[None, :] < D)
            out = tl.load(rows, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
            tl.store(rows, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def row_dot(a_ptr, b_ptr, out_ptr, num_rows, C, scale, BR: tl.constexpr, BC: tl.constexpr):
    """scale * sum over the C channels of a * b, per row; both contiguous."""
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    mask_r = rows < num_rows
    total = tl.zeros([BR, BC], dtype=tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        mask = mask_r[:, None] & (c[None, :] < C)
        offs = rows[:, None] * C + c[None, :]
        a = tl.load(a_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        total += a * tl.load(b_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, tl.sum(total, 1) * scale, mask=mask_r)


@triton.jit
def readout_backward_query(
    q_ptr, dout_ptr, inv_ptr, w_ptr, rope_ptr, rays_ptr, s_ptr, r_ptr, z_ptr, zr_ptr, radial_ptr,
    dq_ptr, dz_ptr, dw_ptr, part_ptr, factor_ptr,
    qsb, qst, qss, qsh, T, S, H, eps,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
    DEN: tl.constexpr, BOTH: tl.constexpr, HALF: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient of `readout` to the queries and the normaliser's state, for one frame and head.

    factor_ptr keeps what the output's gradient is multiplied by (1 / denominator, and 1/RMS for the query it
    will meet), for `readout_backward_state`. The gradient of RMSNorm needs, per token, the component of the
    gradient along the token over all heads. The output is linear in the query, so without the normaliser
    that component is <dout, out> (radial_ptr, known before); with it the output hardly depends on the query's
    length, and what is left, <dq, q> = <dqr, qr> eps / (den + eps), goes to part_ptr for `remove_radial`.
    """
    pid = tl.program_id(0)
    h = pid % H
    t = (pid // H) % T
    b = pid // (H * T)
    bth = pid.to(tl.int64)
    first = (b * T + t).to(tl.int64) * S
    q_base = q_ptr + b.to(tl.int64) * qsb + t.to(tl.int64) * qst + h * qsh
    d = tl.arange(0, BD)
    mask_d = d < D
    w = load_weight(w_ptr, h, 1.0, D, BD, NORM)
    state = load_square(s_ptr + bth * D * D, D, BD)
    if BOTH:
        state += load_square(r_ptr + bth * D * D, D, BD)
    if HALF:
        state = state.to(tl.bfloat16)
    if DEN:
        z = tl.load(z_ptr + bth * D + d, mask=mask_d, other=0.0)
        if BOTH:
            z += tl.load(zr_ptr + bth * D + d, mask=mask_d, other=0.0)
        dz = tl.zeros([BS, BD], dtype=tl.float32)
    dw = tl.zeros([BS, BD], dtype=tl.float32)
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)
        mask_s = s < S
        mask = mask_s[:, None] & mask_d[None, :]
        offs = ((first + s) * H + h)[:, None] * D + d[None, :]
        q = tl.load(q_base + s[:, None] * qss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        tables = load_tables(rope_ptr, rays_ptr, t * S + s, T * S, first + s, mask_s, D, BD, ROPE)
        query = relu_tile(q, w, NORM)
        if ROPE == 2:
            dout = turn_tile(dout, tables, 0, D, BS, BD, ROPE)
        # The query is query * inv; inv goes to dout, and with it to everything that follows.
        if NORM:
            inv = tl.load(inv_ptr + first + s, mask=mask_s, other=0.0)
        else:
            inv = tl.where(mask_s, 1.0, 0.0)
        factor = inv
        if DEN:
            # A padded token has no gradient; its denominator eps must not turn 0 into NaN.
            den = tl.where(mask_s, tl.sum(query * z[None, :], 1) * inv + eps, 1.0)
            factor = inv / den
        tl.store(factor_ptr + bth * S + s, factor, mask=mask_s)
        dquery = turn_tile(dot(dout * factor[:, None], state, HALF), tables, 2, D, BS, BD, ROPE)
        if DEN:
            along = tl.sum(dquery * query, 1)
            dden = -along * factor
            dquery += dden[:, None] * z[None, :]
            dz += dden[:, None] * query
            if NORM:
                # Below 1e-7 of the gradient it is rounding; a zero lets `remove_radial` skip the token.
                matters = mask_s & (eps > 1e-7 * tl.abs(den))
                tl.store(part_ptr + bth * S + s, tl.where(matters, along * eps / den, 0.0), mask=mask_s)
        if NORM:
            dquery = tl.where(query > 0, dquery, 0.0)
            dw += dquery * query
            dquery = dquery * w[None, :]
            if not DEN:
                radial = tl.load(radial_ptr + first + s, mask=mask_s, other=0.0)
                dquery -= q * (radial * inv * inv)[:, None]
        tl.store(dq_ptr + offs, dquery.to(dq_ptr.dtype.element_ty), mask=mask)
    if DEN:
        tl.store(dz_ptr + bth * D + d, tl.sum(dz, 0), mask=mask_d)
    if NORM:
        tl.store(dw_ptr + bth * D + d, over_columns(tl.sum(dw, 0), w), mask=mask_d)


@triton.jit
def readout_backward_state(
    q_ptr, dout_ptr, factor_ptr, w_ptr, rope_ptr, rays_ptr, ds_ptr, qsb, qst, qss, qsh, T, S, H,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, HALF: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient of `readout` to the state of one frame and head: sum over tokens of dnum q^T."""
    pid = tl.program_id(0)
    h = pid % H
    t = (pid // H) % T
    b = pid // (H * T)
    bth = pid.to(tl.int64)
    first = (b * T + t).to(tl.int64) * S
    q_base = q_ptr + b.to(tl.int64) * qsb + t.to(tl.int64) * qst + h * qsh
    d = tl.arange(0, BD)
    mask_d = d < D
    w = load_weight(w_ptr, h, 1.0, D, BD, NORM)
    ds = tl.zeros([BD, BD], dtype=tl.float32)
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)
        mask_s = s < S
        mask = mask_s[:, None] & mask_d[None, :]
        offs = ((first + s) * H + h)[:, None] * D + d[None, :]
        q = tl.load(q_base + s[:, None] * qss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + offs, mask=mask, other=0.0)
        factor = tl.load(factor_ptr + bth * S + s, mask=mask_s, other=0.0)
        tables = load_tables(rope_ptr, rays_ptr, t * S + s, T * S, first + s, mask_s, D, BD, ROPE)
        turned = turn_tile(relu_tile(q, w, NORM), tables, 0, D, BS, BD, ROPE) * factor[:, None]
        if ROPE == 2:
            dout = turn_tile(dout.to(tl.float32), tables, 0, D, BS, BD, ROPE)
        ds = dot_add(tl.trans(dout), turned, ds, HALF)
    store_square(ds_ptr + bth * D * D, ds, D, BD)


@triton.jit
def combine(
    p_ptr, u_ptr, pz_ptr, s_ptr, init_ptr, g_ptr, r_ptr, e_ptr,
    z_ptr, init_z_ptr, gz_ptr, zr_ptr, ez_ptr, decay_ptr, stretch_ptr,
    dp_ptr, du_ptr, ddecay_ptr, dstretch_ptr, dpz_ptr, duz_ptr, T, H,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, DEN: tl.constexpr, BOTH: tl.constexpr,
    HAS_INIT: tl.constexpr, RAY: tl.constexpr, WHOLE_Z: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Gradients of one frame's step from its incoming states and outgoing gradients.

    With X = S_{t-1}^T G + R^T E: dP = -g X (stored as dP + dP^T, P being symmetric in the keys), dU = G + E,
    dg = <S_{t-1}, G> + <R, E> - <P, X>, and the normaliser's share of dg. WHOLE_Z: also the normaliser's dPz
    (symmetrised) and duz.
    """
    pid = tl.program_id(0)
    h = pid % H
    t = (pid // H) % T
    b = pid // (H * T)
    bth = pid.to(tl.int64)
    size: tl.constexpr = D * D
    d = tl.arange(0, BD)
    mask_d = d < D
    decay = tl.load(decay_ptr + bth)
    x = tl.zeros([BD, BD], dtype=tl.float32)
    ddecay_rows = tl.zeros([BR, BD], dtype=tl.float32)
    du_rows = tl.zeros([BR, BD], dtype=tl.float32)
    for r0 in range(0, D, BR):
        # Whole matrices of float32 would not fit beside each other in shared memory.
        rows = r0 + tl.arange(0, BR)
        inside = (rows[:, None] < D) & mask_d[None, :]
        offs = rows[:, None] * D + d[None, :]
        if t > 0:
            before = tl.load(s_ptr + (bth - H) * size + offs, mask=inside, other=0.0).to(tl.float32)
        elif HAS_INIT:
            start = (b * H + h).to(tl.int64) * size
            before = tl.load(init_ptr + start + offs, mask=inside, other=0.0).to(tl.float32)
        else:
            before = tl.zeros([BR, BD], dtype=tl.float32)
        grad = tl.load(g_ptr + bth * size + offs, mask=inside, other=0.0).to(tl.float32)
        x = dot_add(tl.trans(before), grad, x, HALF)
        ddecay_rows += before * grad
        if BOTH:
            state = tl.load(r_ptr + bth * size + offs, mask=inside, other=0.0).to(tl.float32)
            grad_reverse = tl.load(e_ptr + bth * size + offs, mask=inside, other=0.0).to(tl.float32)
            x = dot_add(tl.trans(state), grad_reverse, x, HALF)
            ddecay_rows += state * grad_reverse
            grad += grad_reverse
        tl.store(du_ptr + bth * size + offs, grad.to(du_ptr.dtype.element_ty), mask=inside)
        if RAY:
            du_rows += grad * tl.load(u_ptr + bth * size + offs, mask=inside, other=0.0).to(tl.float32)
    p = load_square(p_ptr + bth * size, D, BD)
    along = tl.sum(tl.sum(p * x, 1), 0)
    ddecay = tl.sum(tl.sum(ddecay_rows, 1), 0) - along
    store_square(dp_ptr + bth * size, -decay * (x + tl.trans(x)), D, BD)
    if RAY:
        # P and U were divided by max(1, stretch).
        stretch = tl.load(stretch_ptr + bth)
        dstretch = -(tl.sum(tl.sum(du_rows, 1), 0) - decay * along) / tl.maximum(stretch, 1.0)
        tl.store(dstretch_ptr + bth, tl.where(stretch > 1.0, dstretch, 0.0))
    if DEN:
        pz = load_square(pz_ptr + bth * size, D, BD)
        if t > 0:
            z = tl.load(z_ptr + (bth - H) * D + d, mask=mask_d, other=0.0)
        elif HAS_INIT:
            z = tl.load(init_z_ptr + (b * H + h) * D + d, mask=mask_d, other=0.0)
        else:
            z = tl.zeros([BD], dtype=tl.float32)
        gz = tl.load(gz_ptr + bth * D + d, mask=mask_d, other=0.0)
        outer = z[:, None] * gz[None, :]
        ddecay += tl.sum(z * gz, 0)
        if BOTH:
            zr = tl.load(zr_ptr + bth * D + d, mask=mask_d, other=0.0)
            ez = tl.load(ez_ptr + bth * D + d, mask=mask_d, other=0.0)
            outer += zr[:, None] * ez[None, :]
            ddecay += tl.sum(zr * ez, 0)
        ddecay -= tl.sum(tl.sum(pz * outer, 1), 0)
        if WHOLE_Z:
            store_square(dpz_ptr + bth * size, -decay * (outer + tl.trans(outer)), D, BD)
            if BOTH:
                gz += ez
            tl.store(duz_ptr + bth * D + d, gz, mask=mask_d)
    tl.store(ddecay_ptr + bth, ddecay)


@triton.jit
def products_backward_value(
    k_ptr, v_ptr, beta_ptr, inv_ptr, w_ptr, rope_ptr, rays_ptr, du_ptr, stretch_ptr,
    z_ptr, init_z_ptr, gz_ptr, zr_ptr, ez_ptr, decay_ptr,
    turned_ptr, dv_ptr, through_ptr, part_ptr, coefficient_ptr,
    ksb, kst, kss, ksh, vsb, vst, vss, vsh, T, S, H, num_tokens, key_scale,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, DEN: tl.constexpr, BOTH: tl.constexpr,
    HAS_INIT: tl.constexpr, HALF: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dV = beta dU K for one frame and head, and what the next two kernels need of the keys.

    turned_ptr: the turned keys, in the buffer that will become dk. through_ptr: v^T dU k, beta's gradient by
    way of U. With DEN also the normaliser's share: its dP is of rank four (z gz^T + gz z^T, zr ez^T + ez zr^T),
    so dk is a sum of z, gz, zr, ez with one coefficient each a token (coefficient_ptr, four times (B, T, H, S)); its
    part of dbeta joins `through`, that of <key, dkey> is part_ptr.
    """
    pid = tl.program_id(0)
    h = pid % H
    t = (pid // H) % T
    b = pid // (H * T)
    bth = pid.to(tl.int64)
    first = (b * T + t).to(tl.int64) * S
    k_base = k_ptr + b.to(tl.int64) * ksb + t.to(tl.int64) * kst + h * ksh
    v_base = v_ptr + b.to(tl.int64) * vsb + t.to(tl.int64) * vst + h * vsh
    d = tl.arange(0, BD)
    mask_d = d < D
    w = load_weight(w_ptr, h, key_scale, D, BD, NORM)
    du = load_operand(du_ptr + bth * D * D, D, BD)
    discount = 1.0
    if ROPE == 2:
        discount = 1.0 / tl.maximum(tl.load(stretch_ptr + bth), 1.0)
    if DEN:
        decay = tl.load(decay_ptr + bth)
        z, gz = rows_of_z(z_ptr, init_z_ptr, gz_ptr, b, t, h, bth, H, D, BD, HAS_INIT)
        if BOTH:
            zr = tl.load(zr_ptr + bth * D + d, mask=mask_d, other=0.0)
            ez = tl.load(ez_ptr + bth * D + d, mask=mask_d, other=0.0)
        else:
            zr = z
            ez = z
        column = tl.arange(0, 16)[None, :]
        z_columns = tl.where(column == 0, z[:, None], tl.where(column == 1, gz[:, None], 0.0))
        z_columns += tl.where(column == 2, zr[:, None], tl.where(column == 3, ez[:, None], 0.0))
        if HALF:
            z_columns = z_columns.to(tl.bfloat16)
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)
        mask_s = s < S
        mask = mask_s[:, None] & mask_d[None, :]
        offs = ((first + s) * H + h)[:, None] * D + d[None, :]
        k = tl.load(k_base + s[:, None] * kss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_base + s[:, None] * vss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        beta = tl.load(beta_ptr + bth * S + s, mask=mask_s, other=0.0).to(tl.float32) * discount
        tables = load_tables(rope_ptr, rays_ptr, t * S + s, T * S, first + s, mask_s, D, BD, ROPE)
        key = relu_tile(k, w, NORM)
        if NORM:
            key = key * tl.load(inv_ptr + first + s, mask=mask_s, other=0.0)[:, None]
        turned = turn_tile(key, tables, 1, D, BS, BD, ROPE).to(turned_ptr.dtype.element_ty)
        tl.store(turned_ptr + offs, turned, mask=mask)
        dv = dot(turned, tl.trans(du), HALF)
        if ROPE == 2:
            # <v turned, dv> = <v, dv turned back>.
            dv = turn_tile(dv, tables, 3, D, BS, BD, ROPE)
        through = tl.sum(dv * v, 1)
        tl.store(dv_ptr + offs, (dv * beta[:, None]).to(dv_ptr.dtype.element_ty), mask=mask)
        if DEN:
            # The four products with the key, as columns of one product.
            columns = dot(key, z_columns, HALF)
            kz = tl.sum(tl.where(column == 0, columns, 0.0), 1)
            kg = tl.sum(tl.where(column == 1, columns, 0.0), 1)
            through += 2.0 * (kg - decay * kz * kg)
            part = beta * (kg - 2.0 * decay * kz * kg)
            size = num_tokens.to(tl.int64) * H
            tl.store(coefficient_ptr + bth * S + s, -beta * decay * kg, mask=mask_s)
            tl.store(coefficient_ptr + size + bth * S + s, beta * (1.0 - decay * kz), mask=mask_s)
            if BOTH:
                kr = tl.sum(tl.where(column == 2, columns, 0.0), 1)
                ke = tl.sum(tl.where(column == 3, columns, 0.0), 1)
                through += 2.0 * (ke - decay * kr * ke)
                part += beta * (ke - 2.0 * decay * kr * ke)
                tl.store(coefficient_ptr + 2 * size + bth * S + s, -beta * decay * ke, mask=mask_s)
                tl.store(coefficient_ptr + 3 * size + bth * S + s, beta * (1.0 - decay * kr), mask=mask_s)
            tl.store(part_ptr + bth * S + s, part, mask=mask_s)
        tl.store(through_ptr + bth * S + s, through, mask=mask_s)


@triton.jit
def products_backward_key(
    k_ptr, v_ptr, beta_ptr, inv_ptr, w_ptr, rope_ptr, rays_ptr, dp_ptr, du_ptr,
    stretch_ptr, dstretch_ptr, through_ptr, dk_ptr, dbeta_ptr, part_ptr,
    ksb, kst, kss, ksh, vsb, vst, vss, vsh, T, S, H, key_scale,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, DEN: tl.constexpr, HALF: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients by way of P and U to the keys (normalised, scaled, not turned) and beta of a frame and head.

    dK (turned) = beta (dP K + dU^T V), dbeta = k^T dP k / 2 + v^T dU k with dP symmetrised.
    """
    pid = tl.program_id(0)
    h = pid % H
    t = (pid // H) % T
    b = pid // (H * T)
    bth = pid.to(tl.int64)
    first = (b * T + t).to(tl.int64) * S
    k_base = k_ptr + b.to(tl.int64) * ksb + t.to(tl.int64) * kst + h * ksh
    v_base = v_ptr + b.to(tl.int64) * vsb + t.to(tl.int64) * vst + h * vsh
    d = tl.arange(0, BD)
    mask_d = d < D
    w = load_weight(w_ptr, h, key_scale, D, BD, NORM)
    dp = load_operand(dp_ptr + bth * D * D, D, BD)
    du = load_operand(du_ptr + bth * D * D, D, BD)
    discount = 1.0
    if ROPE == 2:
        discount = 1.0 / tl.maximum(tl.load(stretch_ptr + bth), 1.0)
        dratio = tl.load(dstretch_ptr + bth) / S
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)
        mask_s = s < S
        mask = mask_s[:, None] & mask_d[None, :]
        row = (first + s) * H + h
        offs = row[:, None] * D + d[None, :]
        turned = tl.load(dk_ptr + offs, mask=mask, other=0.0)
        v = tl.load(v_base + s[:, None] * vss + d[None, :], mask=mask, other=0.0)
        k = tl.load(k_base + s[:, None] * kss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        beta = tl.load(beta_ptr + bth * S + s, mask=mask_s, other=0.0).to(tl.float32) * discount
        tables = load_tables(rope_ptr, rays_ptr, t * S + s, T * S, first + s, mask_s, D, BD, ROPE)
        if ROPE == 2:
            v = turn_tile(v.to(tl.float32), tables, 1, D, BS, BD, ROPE)
        if not HALF:
            # Split into tf32 parts, both matrices at once would not fit in shared memory: fetch them in turn.
            dp = load_operand(dp_ptr + bth * D * D, D, BD)
        dturned = dot(turned, dp, HALF)
        if not HALF:
            du = load_operand(du_ptr + bth * D * D, D, BD)
        dkey = turn_tile(dot_add(v, du, dturned, HALF), tables, 3, D, BS, BD, ROPE)
        key = relu_tile(k, w, NORM)
        if NORM:
            key = key * tl.load(inv_ptr + first + s, mask=mask_s, other=0.0)[:, None]
        # Turning back is the adjoint of turning, so this is k^T dP k + v^T dU k.
        both = tl.sum(dkey * key, 1)
        dkey = dkey * beta[:, None]
        part = beta * both
        if ROPE == 2:
            turned = turned.to(tl.float32)
            before = tl.sum(key * key, 1)
            after = tl.sum(turned * turned, 1)
            ratio = tl.maximum(after, 1e-12) / tl.maximum(before, 1e-12)
            share = 2.0 * dratio / tl.maximum(before, 1e-12)
            grow = tl.where(after > 1e-12, share, 0.0)
            shrink = tl.where(before > 1e-12, share * ratio, 0.0)
            dkey += turn_tile(grow[:, None] * turned, tables, 3, D, BS, BD, ROPE) - shrink[:, None] * key
            part += grow * after - shrink * before
        through = tl.load(through_ptr + bth * S + s, mask=mask_s, other=0.0)
        dbeta = 0.5 * (both + through) * discount
        tl.store(dbeta_ptr + bth * S + s, dbeta.to(dbeta_ptr.dtype.element_ty), mask=mask_s)
        if NORM:
            if DEN:
                part += tl.load(part_ptr + bth * S + s, mask=mask_s, other=0.0)
            tl.store(part_ptr + bth * S + s, part, mask=mask_s)
        tl.store(dk_ptr + offs, dkey.to(dk_ptr.dtype.element_ty), mask=mask)


@triton.jit
def finish_keys(
    dk_ptr, k_ptr, inv_ptr, w_ptr, part_ptr, coefficient_ptr,
    z_ptr, init_z_ptr, gz_ptr, zr_ptr, ez_ptr, dw_ptr,
    ksb, kst, kss, ksh, T, S, H, num_tokens, key_scale,
    D: tl.constexpr, NORM: tl.constexpr, DEN: tl.constexpr, BOTH: tl.constexpr, HAS_INIT: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Turn, in place, the gradient of the prepared keys into that of the given ones, for BR tokens of a frame.

    Adds the normaliser's share (DEN), then goes back through key scale, ReLU and RMSNorm, whose gradient lacks
    the component along the token, summed over all heads from part_ptr. dw_ptr: (programs, H, D).
    """
    frame = tl.program_id(0)
    t = frame % T
    b = frame // T
    s = tl.program_id(1) * BR + tl.arange(0, BR)
    mask_s = s < S
    token = frame.to(tl.int64) * S + s
    d = tl.arange(0, BD)
    mask = mask_s[:, None] & (d[None, :] < D)
    k_base = k_ptr + b.to(tl.int64) * ksb + t.to(tl.int64) * kst
    if NORM:
        inv = tl.load(inv_ptr + token, mask=mask_s, other=0.0)
        heads = tl.arange(0, BH)
        parts = tl.load(
            part_ptr + (frame.to(tl.int64) * H + heads[None, :]) * S + s[:, None],
            mask=mask_s[:, None] & (heads[None, :] < H),
            other=0.0,
        )
        radial = tl.sum(parts, 1) / (H * D) * inv * inv
    for h in range(0, H):
        row = token * H + h
        bth = frame.to(tl.int64) * H + h
        offs = row[:, None] * D + d[None, :]
        dkey = tl.load(dk_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if DEN:
            z, gz = rows_of_z(z_ptr, init_z_ptr, gz_ptr, b, t, h, bth, H, D, BD, HAS_INIT)
            size = num_tokens.to(tl.int64) * H
            dkey += tl.load(coefficient_ptr + bth * S + s, mask=mask_s, other=0.0)[:, None] * z[None, :]
            dkey += (
                tl.load(coefficient_ptr + size + bth * S + s, mask=mask_s, other=0.0)[:, None] * gz[None, :]
            )
            if BOTH:
                zr = tl.load(zr_ptr + bth * D + d, mask=d < D, other=0.0)
                ez = tl.load(ez_ptr + bth * D + d, mask=d < D, other=0.0)
                dkey += (
                    tl.load(coefficient_ptr + 2 * size + bth * S + s, mask=mask_s, other=0.0)[:, None]
                    * zr[None, :]
                )
                dkey += (
                    tl.load(coefficient_ptr + 3 * size + bth * S + s, mask=mask_s, other=0.0)[:, None]
                    * ez[None, :]
                )
        w = load_weight(w_ptr, h, key_scale, D, BD, NORM)
        if NORM:
            k = tl.load(k_base + s[:, None] * kss + h * ksh + d[None, :], mask=mask, other=0.0).to(tl.float32)
            dhat = tl.where(k * w[None, :] > 0, dkey, 0.0) * inv[:, None]
            dw = tl.sum(dhat * k, 0) * key_scale
            tile = frame.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
            tl.store(dw_ptr + (tile * H + h) * D + d, dw, mask=d < D)
            dkey = dhat * w[None, :] - k * radial[:, None]
        else:
            dkey = dkey * w
        tl.store(dk_ptr + offs, dkey.to(dk_ptr.dtype.element_ty), mask=mask)


@triton.jit
def remove_radial(
    dx_ptr, x_ptr, inv_ptr, part_ptr, sb, st, ss, sh, T, S, H, num_tokens,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Take the component along the token out of a gradient of RMSNorm: dx -= x inv^2 c, c the mean of the
    heads' parts. A program all of whose parts are zero has nothing to do."""
    token = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    mask = token < num_tokens
    heads = tl.arange(0, BH)
    parts = tl.load(
        part_ptr + ((token // S)[:, None] * H + heads[None, :]) * S + (token % S)[:, None],
        mask=mask[:, None] & (heads[None, :] < H),
        other=0.0,
    )
    if tl.max(tl.max(tl.abs(parts), 1), 0) == 0.0:
        return
    inv = tl.load(inv_ptr + token, mask=mask, other=0.0)
    radial = tl.sum(parts, 1) / (H * D) * inv * inv
    base = (token // (T * S)) * sb + ((token // S) % T) * st + (token % S) * ss
    d = tl.arange(0, BD)
    for h in range(0, H):
        inside = mask[:, None] & (d[None, :] < D)
        x = tl.load(x_ptr + base[:, None] + h * sh + d[None, :], mask=inside, other=0.0).to(tl.float32)
        offs = (token * H + h)[:, None] * D + d[None, :]
        dx = tl.load(dx_ptr + offs, mask=inside, other=0.0).to(tl.float32) - x * radial[:, None]
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=inside)
