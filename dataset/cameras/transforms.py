"""Rigid transforms: composing, inverting, exponential and logarithm, interpolation, and other axes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import F64
from .numerics import Array, apply, as_array, eye, safe_norm, transpose
from .rotations import hat, slerp, so3_exp, so3_log

# ---------------------------------------------------------------------- SE(3) and Sim(3), 4x4 matrices


def transform(rotation: Array, translation: Array) -> Array:
    """(..., 4, 4) transform of a 3x3 block (..., 3, 3) (a rotation, or scale times rotation) and (..., 3)."""
    r, xp = as_array(rotation, "rotation", (3, 3))
    t, _ = as_array(translation, "translation", (3,))
    top = xp.concatenate([r + 0.0 * t[..., None, :], (t + 0.0 * r[..., 0])[..., None]], axis=-1)
    last = xp.zeros_like(top[..., :1, :])
    last[..., 3] = 1.0
    return xp.concatenate([top, last], axis=-2)


def to_4x4(matrix: Array) -> Array:
    """(..., 4, 4) of row-major (..., 3, 4) transforms."""
    m, _ = as_array(matrix, "matrix", (3, 4))
    return transform(m[..., :3], m[..., 3])


def compose(*transforms: Array) -> Array:
    """Product of (..., 4, 4) transforms, the leftmost applied last: `compose(a, b)` maps x to a(b(x))."""
    if not transforms:
        raise ValueError("compose: give at least one transform")
    result, _ = as_array(transforms[0], "transforms[0]", (4, 4))
    for i, other in enumerate(transforms[1:], start=1):
        result = result @ as_array(other, f"transforms[{i}]", (4, 4))[0]
    return result


def apply_transform(matrix: Array, points: Array) -> Array:
    """Points (..., n, 3) moved by (..., 4, 4) transforms (rigid or similarity)."""
    m, _ = as_array(matrix, "matrix", (4, 4))
    p, _ = as_array(points, "points", (None, 3))
    return p @ transpose(m[..., :3, :3]) + m[..., None, :3, 3]


def se3_inverse(matrix: Array) -> Array:
    """Inverse of rigid (..., 4, 4) transforms: `camera_to_world` to `world_to_camera` and back."""
    m, _ = as_array(matrix, "matrix", (4, 4))
    rt = transpose(m[..., :3, :3])
    return transform(rt, -apply(rt, m[..., :3, 3]))


def world_to_camera(camera_to_world: Array) -> Array:
    """(..., 4, 4) world-to-camera matrices (what COLMAP stores) of camera-to-world ones."""
    return se3_inverse(camera_to_world)


def se3_exp(tangent: Array) -> Array:
    """(..., 4, 4) rigid transform of (..., 6): translation part rho, rotation vector phi (radians)."""
    x, xp = as_array(tangent, "tangent", (6,))
    return transform(so3_exp(x[..., 3:]), apply(_left_jacobian(xp, x[..., 3:]), x[..., :3]))


def se3_log(matrix: Array) -> Array:
    """(..., 6) tangent (rho, phi) of rigid (..., 4, 4) transforms; inverse of `se3_exp` for angles up to
    pi."""
    m, xp = as_array(matrix, "matrix", (4, 4))
    phi = so3_log(m[..., :3, :3])
    rho = xp.linalg.solve(_left_jacobian(xp, phi), m[..., :3, 3:])[..., 0]
    return xp.concatenate([rho, phi], axis=-1)


def _left_jacobian(xp: Any, phi: Any) -> Any:
    """(..., 3, 3) left Jacobian of SO(3): I + (1-cos)/t^2 K + (t-sin)/t^3 K^2 (Barfoot, State Estimation,
    7.85)."""
    theta = safe_norm(xp, phi)
    k = hat(phi)
    half = xp.sinc(theta / (2.0 * np.pi))
    t2 = theta * theta
    small = (
        theta < 0.3
    )  # below, the closed form loses digits and the series (next term t^10) is exact to 1e-15
    series = 1 / 6 - t2 / 120 + t2**2 / 5040 - t2**3 / 362880 + t2**4 / 39916800
    safe = xp.where(small, xp.ones_like(theta), theta)
    closed = (safe - xp.sin(safe)) / safe**3
    b = xp.where(small, series, closed)
    return eye(xp, 3, phi) + (0.5 * half * half)[..., None, None] * k + b[..., None, None] * (k @ k)


def rigid_error(matrix: Array) -> Array:
    """(...,) largest of |R^T R - I|, |det R - 1| and |last row - (0, 0, 0, 1)|; NaN for non-finite
    transforms."""
    m, xp = as_array(matrix, "matrix", (4, 4))
    r = m[..., :3, :3]
    gram = abs(transpose(r) @ r - eye(xp, 3, m)).reshape(*m.shape[:-2], 9)
    det = abs(xp.linalg.det(r) - 1.0)[..., None]
    last = abs(m[..., 3, :] - eye(xp, 4, m)[3])
    # A translation has no error of its own, but NaN or infinity in it must show.
    shift = xp.where(xp.isfinite(m[..., :3, 3]), 0.0, float("nan")).sum(-1)[..., None]
    both = xp.concatenate([gram, det, last, shift], axis=-1)
    return both.max(-1) if xp is np else both.amax(-1)


def relative_to_first(camera_to_world: Array) -> Array:
    """(F, 4, 4) poses in the frame of the first camera; the first becomes the identity."""
    m, _ = as_array(camera_to_world, "camera_to_world", (None, 4, 4))
    return se3_inverse(m[..., :1, :, :]) @ m


def opengl_to_opencv(camera_to_world: Array) -> Array:
    """Camera-to-world poses (..., 4, 4) with OpenGL camera axes (x right, y up, z back) to OpenCV axes.

    Flips the camera's y and z axes (right multiplication); the world is untouched. Its own inverse. Only for
    camera-to-world matrices: a world-to-camera one must be inverted first.
    """
    m, xp = as_array(camera_to_world, "camera_to_world", (4, 4))
    flip = xp.ones_like(m[..., 0, :])
    flip[..., 1:3] = -1.0
    return m * flip[..., None, :]


def opencv_to_opengl(camera_to_world: Array) -> Array:
    """Camera-to-world poses (..., 4, 4) with OpenCV camera axes to OpenGL axes; see `opengl_to_opencv`."""
    return opengl_to_opencv(camera_to_world)


def interpolate_poses(
    time_s: ArrayLike,
    camera_to_world: ArrayLike,
    query_time_s: ArrayLike,
    *,
    method: Literal["slerp", "geodesic"] = "slerp",
) -> F64:
    """Poses at other times, always rigid. Numpy only.

    Args:
        time_s: (F,) strictly increasing seconds.
        camera_to_world: (F, 4, 4) rigid transforms.
        query_time_s: (Q,) seconds inside [time_s[0], time_s[-1]].
        method: `slerp` moves the camera centre on a straight line and turns at constant rate; `geodesic`
            follows the screw motion of SE(3) between neighbours.
    Returns:
        (Q, 4, 4).
    Raises:
        ValueError: times not increasing, a query outside the range (no extrapolation), or fewer than two
        poses.
    """
    t = np.asarray(time_s, dtype=np.float64)
    q = np.asarray(query_time_s, dtype=np.float64)
    poses, _ = as_array(camera_to_world, "camera_to_world", (None, 4, 4))
    if t.ndim != 1 or poses.ndim != 3 or len(t) != len(poses) or len(t) < 2:
        raise ValueError(
            f"interpolate_poses: {t.shape} times and {poses.shape} poses; need (F,) and (F, 4, 4), F >= 2"
        )
    if not np.all(np.diff(t) > 0):
        raise ValueError("interpolate_poses: time_s must increase strictly")
    if q.size and not (q.min() >= t[0] and q.max() <= t[-1]):
        raise ValueError(
            f"interpolate_poses: query times {q.min():.6f} to {q.max():.6f} s leave the poses' range "
            f"{t[0]:.6f} to {t[-1]:.6f} s; poses are not extrapolated"
        )
    left = np.clip(np.searchsorted(t, q, side="right") - 1, 0, len(t) - 2)
    fraction = (q - t[left]) / (t[left + 1] - t[left])
    a, b = poses[left], poses[left + 1]
    if method == "geodesic":
        result = a @ se3_exp(fraction[..., None] * se3_log(se3_inverse(a) @ b))
    else:
        rotation = slerp(a[..., :3, :3], b[..., :3, :3], fraction)
        shift = (1.0 - fraction)[..., None] * a[..., :3, 3] + fraction[..., None] * b[..., :3, 3]
        result = transform(rotation, shift)
    exact_left, exact_right = fraction == 0.0, fraction == 1.0
    result[exact_left], result[exact_right] = a[exact_left], b[exact_right]
    return result
