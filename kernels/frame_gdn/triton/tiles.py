"""Steps on single tiles: products, rotation, weights, loads and stores.

Sizes in comments: BS tokens of a tile, BD head size rounded up to a power of two.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, HALF: tl.constexpr):
    if HALF:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")


@triton.jit
def dot_add(a, b, acc, HALF: tl.constexpr):
    if HALF:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32x3")


@triton.jit
def load_tables(
    rope_ptr, rays_ptr, place, num_places, token, mask_s,
    D: tl.constexpr, BD: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """What turning a tile needs: cosines and sines; in the camera branch also the rigid transforms.

    place: row of the table, that is of (frame, token); the sines follow the num_places rows of cosines.
    """
    if ROPE == 1:
        pair = tl.arange(0, BD // 2)
        mask = mask_s[:, None] & (pair[None, :] < D // 2)
        offs = place[:, None] * (D // 2) + pair[None, :]
        cos = tl.load(rope_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        sin = tl.load(rope_ptr + num_places * (D // 2) + offs, mask=mask, other=0.0).to(tl.float32)
        return cos, sin
    elif ROPE == 2:
        # Pairs of the whole head; the table has those of the second half.
        pair = tl.arange(0, BD // 2) - D // 4
        mask = mask_s[:, None] & (pair[None, :] >= 0) & (pair[None, :] < D // 4)
        offs = place[:, None] * (D // 4) + pair[None, :]
        cos = tl.load(rope_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        sin = tl.load(rope_ptr + num_places * (D // 4) + offs, mask=mask, other=0.0).to(tl.float32)
        cos0, cos1 = tl.split(tl.reshape(cos, (cos.shape[0], BD // 4, 2)))
        sin0, sin1 = tl.split(tl.reshape(sin, (cos.shape[0], BD // 4, 2)))
        ray = rays_ptr + token * 12
        r00 = tl.load(ray + 0, mask=mask_s, other=0.0)[:, None]
        r01 = tl.load(ray + 1, mask=mask_s, other=0.0)[:, None]
        r02 = tl.load(ray + 2, mask=mask_s, other=0.0)[:, None]
        t0 = tl.load(ray + 3, mask=mask_s, other=0.0)[:, None]
        r10 = tl.load(ray + 4, mask=mask_s, other=0.0)[:, None]
        r11 = tl.load(ray + 5, mask=mask_s, other=0.0)[:, None]
        r12 = tl.load(ray + 6, mask=mask_s, other=0.0)[:, None]
        t1 = tl.load(ray + 7, mask=mask_s, other=0.0)[:, None]
        r20 = tl.load(ray + 8, mask=mask_s, other=0.0)[:, None]
        r21 = tl.load(ray + 9, mask=mask_s, other=0.0)[:, None]
        r22 = tl.load(ray + 10, mask=mask_s, other=0.0)[:, None]
        t2 = tl.load(ray + 11, mask=mask_s, other=0.0)[:, None]
        return (
            cos0, sin0, cos1, sin1, r00, r01, r02, t0, r10, r11, r12, t1, r20, r21, r22, t2,
        )  # fmt: skip
    else:
        return 0, 0


@triton.jit
def turn_tile(x, tables, KIND: tl.constexpr, D: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
          ROPE: tl.constexpr):  # fmt: skip
    """Rotate a tile [BS, BD]. KIND 0, 1 rotate forwards, 2, 3 back; with rays (P = [R t; 0 1]) the first half
    of the head is multiplied by P^T (0), P^-1 (1), P (2) or P^-T (3), so that 2 undoes the gradient of 0 and
    3 that of 1."""
    if ROPE == 1:
        cos, sin = tables
        if KIND >= 2:
            sin = -sin
        even, odd = tl.split(tl.reshape(x, (BS, BD // 2, 2)))
        return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BS, BD))
    elif ROPE == 2:
        cos0, sin0, cos1, sin1, r00, r01, r02, t0, r10, r11, r12, t1, r20, r21, r22, t2 = tables
        if KIND >= 2:
            sin0 = -sin0
            sin1 = -sin1
        even, odd = tl.split(tl.reshape(x, (BS, BD // 4, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        if KIND == 0:
            y0 = r00 * x0 + r10 * x1 + r20 * x2
            y1 = r01 * x0 + r11 * x1 + r21 * x2
            y2 = r02 * x0 + r12 * x1 + r22 * x2
            y3 = t0 * x0 + t1 * x1 + t2 * x2 + x3
        elif KIND == 1:
            c0 = x0 - t0 * x3
            c1 = x1 - t1 * x3
            c2 = x2 - t2 * x3
            y0 = r00 * c0 + r10 * c1 + r20 * c2
            y1 = r01 * c0 + r11 * c1 + r21 * c2
            y2 = r02 * c0 + r12 * c1 + r22 * c2
            y3 = x3
        elif KIND == 2:
            y0 = r00 * x0 + r01 * x1 + r02 * x2 + t0 * x3
            y1 = r10 * x0 + r11 * x1 + r12 * x2 + t1 * x3
            y2 = r20 * x0 + r21 * x1 + r22 * x2 + t2 * x3
            y3 = x3
        else:
            y0 = r00 * x0 + r01 * x1 + r02 * x2
            y1 = r10 * x0 + r11 * x1 + r12 * x2
            y2 = r20 * x0 + r21 * x1 + r22 * x2
            y3 = x3 - t0 * y0 - t1 * y1 - t2 * y2
        in_ray = (tl.arange(0, BD // 4) < D // 8)[None, :]
        y0 = tl.where(in_ray, y0, x0 * cos0 - x1 * sin0)
        y1 = tl.where(in_ray, y1, x0 * sin0 + x1 * cos0)
        y2 = tl.where(in_ray, y2, x2 * cos1 - x3 * sin1)
        y3 = tl.where(in_ray, y3, x2 * sin1 + x3 * cos1)
        return tl.reshape(tl.join(tl.join(y0, y2), tl.join(y1, y3)), (BS, BD))
    else:
        return x


@triton.jit
def load_square(ptr, D: tl.constexpr, BD: tl.constexpr):
    """D x D matrix as [BD, BD] float32, zero padded."""
    i = tl.arange(0, BD)
    inside = (i[:, None] < D) & (i[None, :] < D)
    return tl.load(ptr + i[:, None] * D + i[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_operand(ptr, D: tl.constexpr, BD: tl.constexpr):
    """D x D matrix as [BD, BD] in its own type, for use as it is in a product."""
    i = tl.arange(0, BD)
    inside = (i[:, None] < D) & (i[None, :] < D)
    return tl.load(ptr + i[:, None] * D + i[None, :], mask=inside, other=0.0)


@triton.jit
def store_square(ptr, x, D: tl.constexpr, BD: tl.constexpr):
    i = tl.arange(0, BD)
    inside = (i[:, None] < D) & (i[None, :] < D)
    tl.store(ptr + i[:, None] * D + i[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def relu_tile(x, w, NORM: tl.constexpr):
    """Token after RMSNorm's weight and ReLU, still without 1/RMS, which as a positive factor can wait."""
    if NORM:
        return tl.maximum(x * w[None, :], 0.0)
    else:
        return x * w


@triton.jit
def load_weight(w_ptr, h, scale, D: tl.constexpr, BD: tl.constexpr, NORM: tl.constexpr):
    """Norm weight of a head times `scale`, or just the scale."""
    if NORM:
        d = tl.arange(0, BD)
        return tl.load(w_ptr + h * D + d, mask=d < D, other=0.0).to(tl.float32) * scale
    else:
        return scale


@triton.jit
def over_columns(x, w):
    """x / w, and 0 where w is 0: there ReLU is at its corner and passes no gradient."""
    return tl.where(w == 0, 0.0, x / tl.where(w == 0, 1.0, w))


@triton.jit
def rows_of_z(
    z_ptr, init_z_ptr, gz_ptr, b, t, h, bth, H, D: tl.constexpr, BD: tl.constexpr, HAS_INIT: tl.constexpr
):
    """The normaliser's incoming state of a frame (that of the frame before) and its outgoing gradient."""
    d = tl.arange(0, BD)
    mask_d = d < D
    if t > 0:
        z = tl.load(z_ptr + (bth - H) * D + d, mask=mask_d, other=0.0)
    elif HAS_INIT:
        z = tl.load(init_z_ptr + (b * H + h) * D + d, mask=mask_d, other=0.0)
    else:
        z = tl.zeros([BD], dtype=tl.float32)
    return z, tl.load(gz_ptr + bth * D + d, mask=mask_d, other=0.0)
