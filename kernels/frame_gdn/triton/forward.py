"""Triton kernels of the frame-wise gated DeltaNet; `reference.py` defines what they compute.

Three stages forward: products (per frame and head, over its tokens), scan (over frames, rows of the state in
parallel), readout (per frame and head, over its tokens). Backward runs them in reverse order and recomputes
products and states. Scalars per token and head (beta, ...) lie as (B, T, H, S), dense along a tile. Shapes in
comments: BS tokens of a tile, BD head size rounded up to a power of two.
"""

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
    relu_tile,
    store_square,
    turn_tile,
)


@triton.jit
def inverse_rms(
    x_ptr, out_ptr, sb, st, ss, sh, T, S, H, num_tokens, norm_eps,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """1 / RMS over all heads, per token."""
    token = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    mask = token < num_tokens
    base = (token // (T * S)) * sb + ((token // S) % T) * st + (token % S) * ss
    d = tl.arange(0, BD)
    total = tl.zeros([BR, BD], dtype=tl.float32)
    for h in range(0, H):
        x = tl.load(
            x_ptr + base[:, None] + h * sh + d[None, :], mask=mask[:, None] & (d[None, :] < D), other=0.0
        ).to(tl.float32)
        total += x * x
    tl.store(out_ptr + token, tl.rsqrt(tl.sum(total, 1) / (H * D) + norm_eps), mask=mask)


@triton.jit
def _products_kv(
    k_base, v_base, beta_ptr, inv_ptr, w, rope_ptr, rays_ptr,
    p_ptr, u_ptr, pz_ptr, uz_ptr, stretch_ptr, kss, vss, t, h, bth, first, T, S, H, key_scale,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
    WITH_P: tl.constexpr, WITH_U: tl.constexpr, WITH_Z: tl.constexpr, HALF: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Those of P, U and the normaliser's products that are asked for."""
    d = tl.arange(0, BD)
    mask_d = d < D
    p = tl.zeros([BD, BD], dtype=tl.float32)
    u = tl.zeros([BD, BD], dtype=tl.float32)
    pz = tl.zeros([BD, BD], dtype=tl.float32)
    # Column sums wait until the end: inside the loop each would be a reduction across threads.
    uz = tl.zeros([BS, BD], dtype=tl.float32)
    stretch = tl.zeros([BS], dtype=tl.float32)
    for s0 in range(0, S, BS):
        s = s0 + tl.arange(0, BS)
        mask_s = s < S
        mask = mask_s[:, None] & mask_d[None, :]
        k = tl.load(k_base + s[:, None] * kss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        if WITH_U:
            v = tl.load(v_base + s[:, None] * vss + d[None, :], mask=mask, other=0.0)
        beta = tl.load(beta_ptr + bth * S + s, mask=mask_s, other=0.0).to(tl.float32)
        key = relu_tile(k, w, NORM)
        # The factor 1/RMS of both keys (P, Pz) or of the one (U, uz) joins beta.
        once = beta
        twice = beta
        if NORM:
            inv = tl.load(inv_ptr + first + s, mask=mask_s, other=0.0)
            once = beta * inv
            twice = once * inv
        if WITH_P or WITH_U:
            tables = load_tables(rope_ptr, rays_ptr, t * S + s, T * S, first + s, mask_s, D, BD, ROPE)
            turned = turn_tile(key, tables, 1, D, BS, BD, ROPE)
            if ROPE == 2:
                squared = inv * inv if NORM else 1.0
                after = tl.maximum(tl.sum(turned * turned, 1) * squared, 1e-12)
                ratio = after / tl.maximum(tl.sum(key * key, 1) * squared, 1e-12)
                stretch += tl.where(mask_s, ratio, 0.0)
            if WITH_P:
                p = dot_add(tl.trans(turned), turned * twice[:, None], p, HALF)
            if WITH_U:
                if ROPE == 2:
                    v = turn_tile(v.to(tl.float32), tables, 1, D, BS, BD, ROPE)
                u = dot_add(tl.trans(v), turned * once[:, None], u, HALF)
        if WITH_Z:
            pz = dot_add(tl.trans(key), key * twice[:, None], pz, HALF)
            uz += key * once[:, None]
    if ROPE == 2:
        mean = tl.sum(stretch, 0) / S
        if WITH_P:
            tl.store(stretch_ptr + bth, mean)
        p = p * (1.0 / tl.maximum(mean, 1.0))
        u = u * (1.0 / tl.maximum(mean, 1.0))
    if WITH_P:
        store_square(p_ptr + bth * D * D, p, D, BD)
    if WITH_U:
        store_square(u_ptr + bth * D * D, u, D, BD)
    if WITH_Z:
        store_square(pz_ptr + bth * D * D, pz, D, BD)
        tl.store(uz_ptr + bth * D + d, tl.sum(uz, 0), mask=mask_d)


@triton.jit
def products(
    k_ptr, v_ptr, beta_ptr, inv_ptr, w_ptr, rope_ptr, rays_ptr,
    p_ptr, u_ptr, pz_ptr, uz_ptr, stretch_ptr,
    ksb, kst, kss, ksh, vsb, vst, vss, vsh, T, S, H, key_scale,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
    DEN: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """P, U (and the normaliser's, when DEN) of one frame and head.

    An accumulator takes a quarter of a multiprocessor's registers. SPLIT 0: all in one program; 1: P and U
    together, the normaliser's beside them; 2: three programs. Those of a frame and head are neighbours, so
    that the second reads the keys from cache.
    """
    pid = tl.program_id(0)
    # a sum of constants is one, which the stubs do not know
    parts: tl.constexpr = SPLIT + DEN  # pyright: ignore[reportAssignmentType]
    part = 0
    if SPLIT > 0:
        part = pid % parts
        pid = pid // parts
    h = pid % H
    t = (pid // H) % T
    b = pid // (H * T)
    bth = pid.to(tl.int64)
    first = (b * T + t).to(tl.int64) * S
    k_base = k_ptr + b.to(tl.int64) * ksb + t.to(tl.int64) * kst + h * ksh
    v_base = v_ptr + b.to(tl.int64) * vsb + t.to(tl.int64) * vst + h * vsh
    w = load_weight(w_ptr, h, key_scale, D, BD, NORM)
    if SPLIT == 0:
        _products_kv(
            k_base, v_base, beta_ptr, inv_ptr, w, rope_ptr, rays_ptr,
            p_ptr, u_ptr, pz_ptr, uz_ptr, stretch_ptr, kss, vss, t, h, bth, first, T, S, H, key_scale,
            D, NORM, ROPE, True, True, DEN, HALF, BS, BD,
        )  # fmt: skip
    elif part == 0:
        _products_kv(
            k_base, v_base, beta_ptr, inv_ptr, w, rope_ptr, rays_ptr,
            p_ptr, u_ptr, pz_ptr, uz_ptr, stretch_ptr, kss, vss, t, h, bth, first, T, S, H, key_scale,
            D, NORM, ROPE, True, SPLIT == 1, False, HALF, BS, BD,
        )  # fmt: skip
    elif part < SPLIT:
        _products_kv(
            k_base, v_base, beta_ptr, inv_ptr, w, rope_ptr, rays_ptr,
            p_ptr, u_ptr, pz_ptr, uz_ptr, stretch_ptr, kss, vss, t, h, bth, first, T, S, H, key_scale,
            D, NORM, ROPE, False, True, False, HALF, BS, BD,
        )  # fmt: skip
    elif DEN:
        _products_kv(
            k_base, v_base, beta_ptr, inv_ptr, w, rope_ptr, rays_ptr,
            p_ptr, u_ptr, pz_ptr, uz_ptr, stretch_ptr, kss, vss, t, h, bth, first, T, S, H, key_scale,
            D, NORM, ROPE, False, False, True, HALF, BS, BD,
        )  # fmt: skip


@triton.jit
def _chain(
    p_ptr, in_ptr, out_ptr, init_ptr, final_ptr, decay_ptr, keep_ptr, b, h, T, H, row0,
    R: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr, HAS_IN: tl.constexpr, HAS_INIT: tl.constexpr, STORE: tl.constexpr,
    HALF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One run over the frames for BR of the R rows of a state; rows never mix.

    x <- g (x - x P) is the step in all four uses. Forward adds U after it; the scan stores x after the step,
    the reverse scan before it (exclusive of the frame). The gradient of a scan walks the other way: that of
    the forward scan adds the readout's gradient, stores, steps; that of the reverse scan stores, steps, adds.
    """
    rows = row0 + tl.arange(0, BR)
    d = tl.arange(0, BD)
    inside = (rows[:, None] < R) & (d[None, :] < D)
    offs = rows[:, None] * D + d[None, :]
    bh = (b * H + h).to(tl.int64)
    if HAS_INIT:
        x = tl.load(init_ptr + bh * R * D + offs, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.zeros([BR, BD], dtype=tl.float32)
    for i in tl.range(0, T, num_stages=STAGES):
        t = i if REVERSE == BACKWARD else T - 1 - i
        bth = ((b * T + t) * H + h).to(tl.int64)
        p = load_operand(p_ptr + bth * D * D, D, BD)
        g = tl.load(decay_ptr + (b * T + t) * H + h)
        if HAS_IN:
            u = tl.load(in_ptr + bth * R * D + offs, mask=inside, other=0.0).to(tl.float32)
        else:
            u = tl.zeros([BR, BD], dtype=tl.float32)
        if BACKWARD:
            if REVERSE:
                x *= tl.load(keep_ptr + t)
            else:
                x += u
        if STORE and (REVERSE or BACKWARD):
            tl.store(out_ptr + bth * R * D + offs, x.to(out_ptr.dtype.element_ty), mask=inside)
        x = g * (x - dot(x, p, HALF))
        if BACKWARD:
            if REVERSE:
                x += u
        else:
            x += u
            if REVERSE:
                x *= tl.load(keep_ptr + t)
        if STORE and not (REVERSE or BACKWARD):
            tl.store(out_ptr + bth * R * D + offs, x.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(final_ptr + bh * R * D + offs, x, mask=inside)


@triton.jit
def scan(
    p_ptr, u_ptr, pz_ptr, uz_ptr, decay_ptr, keep_ptr,
    forward_ptr, reverse_ptr, z_forward_ptr, z_reverse_ptr,
    init_ptr, init_reverse_ptr, init_z_ptr, init_z_reverse_ptr,
    final_ptr, final_reverse_ptr, final_z_ptr, final_z_reverse_ptr, T, H,
    D: tl.constexpr, NUM_ROW_BLOCKS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    BACKWARD: tl.constexpr, HAS_IN: tl.constexpr, HAS_INIT: tl.constexpr, HAS_INIT_REVERSE: tl.constexpr,
    STORE: tl.constexpr, DEN: tl.constexpr, BOTH: tl.constexpr, HALF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (head, block of rows, direction); the block after the last is the normaliser's single row."""
    bh = tl.program_id(0)
    block = tl.program_id(1)
    b = bh // H
    h = bh % H
    # Constant conditions come first: a branch that is not taken has no pointers to compile with.
    if tl.program_id(2) == 0:
        if block < NUM_ROW_BLOCKS:
            _chain(
                p_ptr, u_ptr, forward_ptr, init_ptr, final_ptr, decay_ptr, keep_ptr, b, h, T, H, block * BR,
                D, D, BR, BD, False, BACKWARD, HAS_IN, HAS_INIT, STORE, HALF, STAGES,
            )  # fmt: skip
        elif DEN:
            _chain(
                pz_ptr, uz_ptr, z_forward_ptr, init_z_ptr, final_z_ptr, decay_ptr, keep_ptr, b, h, T, H, 0,
                1, D, BR, BD, False, BACKWARD, HAS_IN, HAS_INIT, STORE, HALF, STAGES,
            )  # fmt: skip
    elif BOTH:
        if block < NUM_ROW_BLOCKS:
            _chain(
                p_ptr, u_ptr, reverse_ptr, init_reverse_ptr, final_reverse_ptr, decay_ptr, keep_ptr,
                b, h, T, H, block * BR, D, D, BR, BD, True, BACKWARD, HAS_IN, HAS_INIT_REVERSE, STORE, HALF,
                STAGES,
            )  # fmt: skip
        elif DEN:
            _chain(
                pz_ptr, uz_ptr, z_reverse_ptr, init_z_reverse_ptr, final_z_reverse_ptr, decay_ptr, keep_ptr,
                b, h, T, H, 0, 1, D, BR, BD, True, BACKWARD, HAS_IN, HAS_INIT_REVERSE, STORE, HALF, STAGES,
            )  # fmt: skip


@triton.jit
def readout(
    q_ptr, inv_ptr, w_ptr, rope_ptr, rays_ptr, s_ptr, r_ptr, z_ptr, zr_ptr, out_ptr,
    qsb, qst, qss, qsh, T, S, H, eps,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
    DEN: tl.constexpr, BOTH: tl.constexpr, HALF: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out = (S + R) Q, divided by (z + zr) Q when DEN, for every num_programs(1)-th tile of a frame and head."""
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
    for s0 in range(tl.program_id(1) * BS, S, tl.num_programs(1) * BS):
        s = s0 + tl.arange(0, BS)
        mask_s = s < S
        mask = mask_s[:, None] & mask_d[None, :]
        q = tl.load(q_base + s[:, None] * qss + d[None, :], mask=mask, other=0.0).to(tl.float32)
        tables = load_tables(rope_ptr, rays_ptr, t * S + s, T * S, first + s, mask_s, D, BD, ROPE)
        query = relu_tile(q, w, NORM)
        out = dot(turn_tile(query, tables, 0, D, BS, BD, ROPE), tl.trans(state), HALF)
        # 1/RMS multiplies numerator and denominator alike: with the normaliser only eps needs it.
        rms = 1.0
        if NORM:
            inv = tl.load(inv_ptr + first + s, mask=mask_s, other=1.0)
            if DEN:
                rms = 1.0 / inv
            else:
                out = out * inv[:, None]
        if DEN:
            out = out * (1.0 / (tl.sum(query * z[None, :], 1) + eps * rms))[:, None]
        if ROPE == 2:
            out = turn_tile(out, tables, 2, D, BS, BD, ROPE)
        offs = ((first + s) * H + h)[:, None] * D + d[None, :]
        tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=mask)
