"""Rotations: matrices, vectors and quaternions (w first)."""

from __future__ import annotations

import numpy as np

from .numerics import Array, as_array, eye, safe_norm, stack_matrix, transpose

# --------------------------------------------------------------------------------------------- rotations


def hat(vector: Array) -> Array:
    """(..., 3, 3) cross-product matrix of (..., 3): `hat(a) @ b == cross(a, b)`."""
    v, xp = as_array(vector, "vector", (3,))
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    o = 0.0 * x
    return stack_matrix(xp, [[o, -z, y], [z, o, -x], [-y, x, o]])


def so3_exp(rotvec: Array) -> Array:
    """(..., 3, 3) rotation of a rotation vector (..., 3) in radians (Rodrigues)."""
    v, xp = as_array(rotvec, "rotvec", (3,))
    theta = safe_norm(xp, v)
    k = hat(v)
    a = xp.sinc(theta / np.pi)[..., None, None]
    half = xp.sinc(theta / (2.0 * np.pi))
    b = (0.5 * half * half)[..., None, None]
    return eye(xp, 3, v) + a * k + b * (k @ k)


def so3_log(rotation: Array) -> Array:
    """(..., 3) rotation vector in radians, length in [0, pi], of (..., 3, 3) rotations. Accurate near 0 and
    near pi."""
    q = quaternion_wxyz_from_rotation(rotation)
    q, xp = as_array(q, "quaternion", (4,))
    w, v = q[..., 0], q[..., 1:]
    sine = safe_norm(xp, v)
    angle = 2.0 * xp.arctan2(sine, w)
    small = sine < 1e-8  # there angle / sine -> 2 / w to below float64 resolution
    factor = xp.where(
        small, 2.0 / xp.where(small, w, xp.ones_like(w)), angle / xp.where(small, xp.ones_like(w), sine)
    )
    return factor[..., None] * v


def rotation_angle(rotation: Array) -> Array:
    """(...,) angle in radians, [0, pi], of (..., 3, 3) rotations."""
    log, xp = as_array(so3_log(rotation), "rotvec", (3,))
    return safe_norm(xp, log)


def quaternion_wxyz_from_rotation(rotation: Array) -> Array:
    """(..., 4) unit quaternion, scalar first, w >= 0, of (..., 3, 3) rotations.

    Source: Shepperd's method (J. Guidance and Control 1, 1978): divide by the largest of the four components.
    """
    r, xp = as_array(rotation, "rotation", (3, 3))
    m00, m01, m02 = r[..., 0, 0], r[..., 0, 1], r[..., 0, 2]
    m10, m11, m12 = r[..., 1, 0], r[..., 1, 1], r[..., 1, 2]
    m20, m21, m22 = r[..., 2, 0], r[..., 2, 1], r[..., 2, 2]
    # Row i is 4 q_i q: the outer product of the quaternion, whose row of largest diagonal is safe to
    # normalise.
    outer = stack_matrix(
        xp,
        [
            [1.0 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01],
            [m21 - m12, 1.0 + m00 - m11 - m22, m10 + m01, m02 + m20],
            [m02 - m20, m10 + m01, 1.0 - m00 + m11 - m22, m21 + m12],
            [m10 - m01, m02 + m20, m21 + m12, 1.0 - m00 - m11 + m22],
        ],
    )
    diagonal = xp.stack([outer[..., i, i] for i in range(4)], axis=-1)
    best = diagonal.argmax(-1)[..., None, None]
    if xp is np:
        row = np.take_along_axis(outer, best, axis=-2)[..., 0, :]
    else:
        row = xp.gather(outer, -2, best.expand(*best.shape[:-1], 4))[..., 0, :]
    quaternion = row / xp.sqrt((row * row).sum(-1))[..., None]
    return canonical_quaternion(quaternion)


def canonical_quaternion(quaternion_wxyz: Array) -> Array:
    """The same rotation with w >= 0; where w is zero the first non-zero component is made positive. (...,
    4)."""
    q, xp = as_array(quaternion_wxyz, "quaternion_wxyz", (4,))
    sign = 0.0 * q[..., 0]
    for i in range(4):
        sign = xp.where(sign == 0, xp.sign(q[..., i]), sign)
    return q * xp.where(sign == 0, xp.ones_like(sign), sign)[..., None]


def rotation_from_quaternion_wxyz(quaternion_wxyz: Array) -> Array:
    """(..., 3, 3) rotation of quaternions (..., 4), scalar first, normalised here.

    Raises:
        ValueError: a quaternion of length zero or with a non-finite component.
    """
    q, xp = as_array(quaternion_wxyz, "quaternion_wxyz", (4,))
    squared = (q * q).sum(-1)
    if not bool((xp.isfinite(squared) & (squared > 1e-24)).all()):
        raise ValueError("quaternion_wxyz: length zero or not finite; a rotation needs a unit quaternion")
    q = q / xp.sqrt(squared)[..., None]
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    return stack_matrix(
        xp,
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
    )


def orthonormalise(matrix: Array) -> Array:
    """Nearest rotation (Frobenius norm) of (..., 3, 3) matrices, by SVD with the determinant forced to +1.

    Raises:
        ValueError: a matrix of rank below 2, for which no nearest rotation is defined.
    """
    m, xp = as_array(matrix, "matrix", (3, 3))
    u, s, vt = xp.linalg.svd(m)
    if not bool((s[..., 1] > 1e-9 * s[..., 0]).all()):
        raise ValueError("orthonormalise: a matrix of rank below 2 (or with NaN) has no nearest rotation")
    sign = xp.sign(xp.linalg.det(u @ vt))
    fix = xp.stack([xp.ones_like(sign), xp.ones_like(sign), sign], axis=-1)
    return (u * fix[..., None, :]) @ vt


def slerp(rotation_a: Array, rotation_b: Array, fraction: Array) -> Array:
    """Rotation at `fraction` of the shortest way from (..., 3, 3) `rotation_a` to `rotation_b`; fraction
    (...,)."""
    a, _ = as_array(rotation_a, "rotation_a", (3, 3))
    b, _ = as_array(rotation_b, "rotation_b", (3, 3))
    f, _ = as_array(fraction, "fraction", ())
    return a @ so3_exp(f[..., None] * so3_log(transpose(a) @ b))
