"""The one vocabulary of cameras: rigid and similarity transforms, intrinsics, rays, projection,
interpolation.

Conventions, everywhere in this package:

* `camera_to_world` maps camera coordinates to world coordinates; camera axes are OpenCV's (x right, y down,
  z forward); metres unless a name says otherwise.
* Pixel centres sit at +0.5: the centre of the top left pixel is (0.5, 0.5). Resizing therefore only
  multiplies intrinsics and cropping only subtracts.
* Quaternions are scalar first (`wxyz`) with w >= 0; a rotation by exactly pi takes the representative whose
  first non-zero component is positive.
* Tangent vectors are ordered translation, rotation, log scale: (rho, phi) for SE(3), (rho, phi, sigma) for
  Sim(3); a transform is exp(tangent), perturbations are the caller's choice of side.

Functions take numpy arrays (anything that is not a tensor is computed in float64) or torch tensors (dtype and
device are kept, gradients flow) with any number of leading batch dimensions, and return what they were given.
Functions that are numpy only say so.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import F64

Array = Any
"""`numpy.ndarray` in and out, or `torch.Tensor` in and out."""

_GL_NODES, _GL_WEIGHTS = np.polynomial.legendre.leggauss(24)
_UNIT_NODES = tuple(float(v) for v in 0.5 * (_GL_NODES + 1.0))
_UNIT_WEIGHTS = tuple(float(v) for v in 0.5 * _GL_WEIGHTS)


def _as_array(value: Any, name: str, tail: tuple[int | None, ...]) -> tuple[Any, Any]:
    """The array and its namespace (numpy or torch), after a check of the trailing dimensions."""
    torch = sys.modules.get(
        "torch"
    )  # a tensor cannot exist before torch is imported; never import it for numpy users
    if torch is not None and isinstance(value, torch.Tensor):
        array, namespace = value, torch
    else:
        array, namespace = np.asarray(value, dtype=np.float64), np
    shape = tuple(array.shape)
    ok = len(shape) >= len(tail) and all(
        want is None or got == want for got, want in zip(shape[len(shape) - len(tail) :], tail, strict=True)
    )
    if not ok:
        wanted = ", ".join("n" if n is None else str(n) for n in tail)
        raise ValueError(f"{name}: expected shape (..., {wanted}), found {shape}")
    return array, namespace


def _eye(xp: Any, n: int, like: Any) -> Any:
    return np.eye(n) if xp is np else xp.eye(n, dtype=like.dtype, device=like.device)


def _stack_matrix(xp: Any, rows: list[list[Any]]) -> Any:
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def _angle(xp: Any, rotvec: Any) -> Any:
    """(...,) length of (..., 3), with a zero instead of an undefined gradient at the origin."""
    squared = (rotvec * rotvec).sum(-1)
    positive = squared > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, squared, xp.ones_like(squared))), 0.0 * squared)


def _transpose(matrix: Any) -> Any:
    return matrix.swapaxes(-1, -2)


def _apply(matrix: Any, vector: Any) -> Any:
    return (matrix @ vector[..., None])[..., 0]


# --------------------------------------------------------------------------------------------- rotations


def hat(vector: Array) -> Array:
    """(..., 3, 3) cross-product matrix of (..., 3): `hat(a) @ b == cross(a, b)`."""
    v, xp = _as_array(vector, "vector", (3,))
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    o = 0.0 * x
    return _stack_matrix(xp, [[o, -z, y], [z, o, -x], [-y, x, o]])


def so3_exp(rotvec: Array) -> Array:
    """(..., 3, 3) rotation of a rotation vector (..., 3) in radians (Rodrigues)."""
    v, xp = _as_array(rotvec, "rotvec", (3,))
    theta = _angle(xp, v)
    k = hat(v)
    a = xp.sinc(theta / np.pi)[..., None, None]
    half = xp.sinc(theta / (2.0 * np.pi))
    b = (0.5 * half * half)[..., None, None]
    return _eye(xp, 3, v) + a * k + b * (k @ k)


def so3_log(rotation: Array) -> Array:
    """(..., 3) rotation vector in radians, length in [0, pi], of (..., 3, 3) rotations. Accurate near 0 and
    near pi."""
    q = quaternion_wxyz_from_rotation(rotation)
    q, xp = _as_array(q, "quaternion", (4,))
    w, v = q[..., 0], q[..., 1:]
    sine = _angle(xp, v)
    angle = 2.0 * xp.arctan2(sine, w)
    small = sine < 1e-8  # there angle / sine -> 2 / w to below float64 resolution
    factor = xp.where(
        small, 2.0 / xp.where(small, w, xp.ones_like(w)), angle / xp.where(small, xp.ones_like(w), sine)
    )
    return factor[..., None] * v


def rotation_angle(rotation: Array) -> Array:
    """(...,) angle in radians, [0, pi], of (..., 3, 3) rotations."""
    log, xp = _as_array(so3_log(rotation), "rotvec", (3,))
    return _angle(xp, log)


def quaternion_wxyz_from_rotation(rotation: Array) -> Array:
    """(..., 4) unit quaternion, scalar first, w >= 0, of (..., 3, 3) rotations.

    Source: Shepperd's method (J. Guidance and Control 1, 1978): divide by the largest of the four components.
    """
    r, xp = _as_array(rotation, "rotation", (3, 3))
    m00, m01, m02 = r[..., 0, 0], r[..., 0, 1], r[..., 0, 2]
    m10, m11, m12 = r[..., 1, 0], r[..., 1, 1], r[..., 1, 2]
    m20, m21, m22 = r[..., 2, 0], r[..., 2, 1], r[..., 2, 2]
    # Row i is 4 q_i q: the outer product of the quaternion, whose row of largest diagonal is safe to
    # normalise.
    outer = _stack_matrix(
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
    q, xp = _as_array(quaternion_wxyz, "quaternion_wxyz", (4,))
    sign = 0.0 * q[..., 0]
    for i in range(4):
        sign = xp.where(sign == 0, xp.sign(q[..., i]), sign)
    return q * xp.where(sign == 0, xp.ones_like(sign), sign)[..., None]


def rotation_from_quaternion_wxyz(quaternion_wxyz: Array) -> Array:
    """(..., 3, 3) rotation of quaternions (..., 4), scalar first, normalised here.

    Raises:
        ValueError: a quaternion of length zero or with a non-finite component.
    """
    q, xp = _as_array(quaternion_wxyz, "quaternion_wxyz", (4,))
    squared = (q * q).sum(-1)
    if not bool((xp.isfinite(squared) & (squared > 1e-24)).all()):
        raise ValueError("quaternion_wxyz: length zero or not finite; a rotation needs a unit quaternion")
    q = q / xp.sqrt(squared)[..., None]
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    return _stack_matrix(
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
    m, xp = _as_array(matrix, "matrix", (3, 3))
    u, s, vt = xp.linalg.svd(m)
    if not bool((s[..., 1] > 1e-9 * s[..., 0]).all()):
        raise ValueError("orthonormalise: a matrix of rank below 2 (or with NaN) has no nearest rotation")
    sign = xp.sign(xp.linalg.det(u @ vt))
    fix = xp.stack([xp.ones_like(sign), xp.ones_like(sign), sign], axis=-1)
    return (u * fix[..., None, :]) @ vt


def slerp(rotation_a: Array, rotation_b: Array, fraction: Array) -> Array:
    """Rotation at `fraction` of the shortest way from (..., 3, 3) `rotation_a` to `rotation_b`; fraction
    (...,)."""
    a, _ = _as_array(rotation_a, "rotation_a", (3, 3))
    b, _ = _as_array(rotation_b, "rotation_b", (3, 3))
    f, _ = _as_array(fraction, "fraction", ())
    return a @ so3_exp(f[..., None] * so3_log(_transpose(a) @ b))


# ---------------------------------------------------------------------- SE(3) and Sim(3), 4x4 matrices


def transform(rotation: Array, translation: Array) -> Array:
    """(..., 4, 4) transform of a 3x3 block (..., 3, 3) (a rotation, or scale times rotation) and (..., 3)."""
    r, xp = _as_array(rotation, "rotation", (3, 3))
    t, _ = _as_array(translation, "translation", (3,))
    top = xp.concatenate([r + 0.0 * t[..., None, :], (t + 0.0 * r[..., 0])[..., None]], axis=-1)
    last = xp.zeros_like(top[..., :1, :])
    last[..., 3] = 1.0
    return xp.concatenate([top, last], axis=-2)


def to_4x4(matrix: Array) -> Array:
    """(..., 4, 4) of row-major (..., 3, 4) transforms."""
    m, _ = _as_array(matrix, "matrix", (3, 4))
    return transform(m[..., :3], m[..., 3])


def compose(*transforms: Array) -> Array:
    """Product of (..., 4, 4) transforms, the leftmost applied last: `compose(a, b)` maps x to a(b(x))."""
    if not transforms:
        raise ValueError("compose: give at least one transform")
    result, _ = _as_array(transforms[0], "transforms[0]", (4, 4))
    for i, other in enumerate(transforms[1:], start=1):
        result = result @ _as_array(other, f"transforms[{i}]", (4, 4))[0]
    return result


def apply_transform(matrix: Array, points: Array) -> Array:
    """Points (..., n, 3) moved by (..., 4, 4) transforms (rigid or similarity)."""
    m, _ = _as_array(matrix, "matrix", (4, 4))
    p, _ = _as_array(points, "points", (None, 3))
    return p @ _transpose(m[..., :3, :3]) + m[..., None, :3, 3]


def se3_inverse(matrix: Array) -> Array:
    """Inverse of rigid (..., 4, 4) transforms: `camera_to_world` to `world_to_camera` and back."""
    m, _ = _as_array(matrix, "matrix", (4, 4))
    rt = _transpose(m[..., :3, :3])
    return transform(rt, -_apply(rt, m[..., :3, 3]))


def world_to_camera(camera_to_world: Array) -> Array:
    """(..., 4, 4) world-to-camera matrices (what COLMAP stores) of camera-to-world ones."""
    return se3_inverse(camera_to_world)


def se3_exp(tangent: Array) -> Array:
    """(..., 4, 4) rigid transform of (..., 6): translation part rho, rotation vector phi (radians)."""
    x, xp = _as_array(tangent, "tangent", (6,))
    return transform(so3_exp(x[..., 3:]), _apply(_left_jacobian(xp, x[..., 3:]), x[..., :3]))


def se3_log(matrix: Array) -> Array:
    """(..., 6) tangent (rho, phi) of rigid (..., 4, 4) transforms; inverse of `se3_exp` for angles up to
    pi."""
    m, xp = _as_array(matrix, "matrix", (4, 4))
    phi = so3_log(m[..., :3, :3])
    rho = xp.linalg.solve(_left_jacobian(xp, phi), m[..., :3, 3:])[..., 0]
    return xp.concatenate([rho, phi], axis=-1)


def _left_jacobian(xp: Any, phi: Any) -> Any:
    """(..., 3, 3) left Jacobian of SO(3): I + (1-cos)/t^2 K + (t-sin)/t^3 K^2 (Barfoot, State Estimation,
    7.85)."""
    theta = _angle(xp, phi)
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
    return _eye(xp, 3, phi) + (0.5 * half * half)[..., None, None] * k + b[..., None, None] * (k @ k)


def sim3_scale(matrix: Array) -> Array:
    """(...,) scale factor of (..., 4, 4) similarity transforms: cube root of the block's determinant.

    Raises:
        ValueError: a determinant that is not positive (a reflection or a collapsed transform).
    """
    m, xp = _as_array(matrix, "matrix", (4, 4))
    det = xp.linalg.det(m[..., :3, :3])
    if not bool((det > 0).all()):
        raise ValueError(
            "sim3_scale: determinant of the 3x3 block is not positive; not a similarity transform"
        )
    return det ** (1.0 / 3.0)


def sim3_inverse(matrix: Array) -> Array:
    """Inverse of (..., 4, 4) similarity transforms (scale times rotation in the 3x3 block)."""
    m, _ = _as_array(matrix, "matrix", (4, 4))
    scale = sim3_scale(m)[..., None, None]
    block = _transpose(m[..., :3, :3]) / (scale * scale)
    return transform(block, -_apply(block, m[..., :3, 3]))


def sim3_exp(tangent: Array) -> Array:
    """(..., 4, 4) similarity of (..., 7): rho, phi (radians), log scale; |log scale| up to about 5."""
    x, xp = _as_array(tangent, "tangent", (7,))
    rotation, log_scale = so3_exp(x[..., 3:6]), x[..., 6]
    translation = _apply(_sim3_v(xp, x[..., 3:6], log_scale), x[..., :3])
    return transform(xp.exp(log_scale)[..., None, None] * rotation, translation)


def sim3_log(matrix: Array) -> Array:
    """(..., 7) tangent (rho, phi, log scale) of (..., 4, 4) similarities; inverse of `sim3_exp`."""
    m, xp = _as_array(matrix, "matrix", (4, 4))
    scale = sim3_scale(m)
    phi = so3_log(m[..., :3, :3] / scale[..., None, None])
    sigma = xp.log(scale)
    rho = xp.linalg.solve(_sim3_v(xp, phi, sigma), m[..., :3, 3:])[..., 0]
    return xp.concatenate([rho, phi, sigma[..., None]], axis=-1)


def _sim3_v(xp: Any, phi: Any, sigma: Any) -> Any:
    """(..., 3, 3) integral of exp(u sigma) exp(u hat(phi)) over u in [0, 1].

    By Gauss-Legendre quadrature with 24 nodes: one smooth formula where the closed form has four limit cases;
    its error is below 1e-14 for angles up to pi and scales of e^-5 to e^5.
    """
    theta = _angle(xp, phi)
    c0 = c1 = c2 = 0.0 * theta
    for u, weight in zip(_UNIT_NODES, _UNIT_WEIGHTS, strict=True):
        e = weight * xp.exp(u * sigma)
        half = xp.sinc(u * theta / (2.0 * np.pi))
        c0 = c0 + e
        c1 = c1 + e * u * xp.sinc(u * theta / np.pi)
        c2 = c2 + e * u * u * 0.5 * half * half
    k = hat(phi)
    return c0[..., None, None] * _eye(xp, 3, phi) + c1[..., None, None] * k + c2[..., None, None] * (k @ k)


def rigid_error(matrix: Array) -> Array:
    """(...,) largest of |R^T R - I|, |det R - 1| and |last row - (0, 0, 0, 1)|; NaN for non-finite
    transforms."""
    m, xp = _as_array(matrix, "matrix", (4, 4))
    r = m[..., :3, :3]
    gram = abs(_transpose(r) @ r - _eye(xp, 3, m)).reshape(*m.shape[:-2], 9)
    det = abs(xp.linalg.det(r) - 1.0)[..., None]
    last = abs(m[..., 3, :] - _eye(xp, 4, m)[3])
    # A translation has no error of its own, but NaN or infinity in it must show.
    shift = xp.where(xp.isfinite(m[..., :3, 3]), 0.0, float("nan")).sum(-1)[..., None]
    both = xp.concatenate([gram, det, last, shift], axis=-1)
    return both.max(-1) if xp is np else both.amax(-1)


def relative_to_first(camera_to_world: Array) -> Array:
    """(F, 4, 4) poses in the frame of the first camera; the first becomes the identity."""
    m, _ = _as_array(camera_to_world, "camera_to_world", (None, 4, 4))
    return se3_inverse(m[..., :1, :, :]) @ m


def opengl_to_opencv(camera_to_world: Array) -> Array:
    """Camera-to-world poses (..., 4, 4) with OpenGL camera axes (x right, y up, z back) to OpenCV axes.

    Flips the camera's y and z axes (right multiplication); the world is untouched. Its own inverse. Only for
    camera-to-world matrices: a world-to-camera one must be inverted first.
    """
    m, xp = _as_array(camera_to_world, "camera_to_world", (4, 4))
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
    poses, _ = _as_array(camera_to_world, "camera_to_world", (None, 4, 4))
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


# --------------------------------------------------------------------------------------------- alignment


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Transform that maps source points onto target points: `target ~ scale * rotation @ source +
    translation`.

    Attributes:
        scale: target units per source unit; 1 when scale was not estimated.
        rotation: (3, 3). translation: (3,).
        inlier: (n,) bool, points that carry weight in the solution.
        residual: (n,) distance of each aligned source point to its target, in target units.
    """

    scale: float
    rotation: F64
    translation: F64
    inlier: NDArray[np.bool_]
    residual: F64

    @property
    def matrix(self) -> F64:
        """(4, 4) with the scale in the 3x3 block."""
        return transform(self.scale * self.rotation, self.translation)

    def apply_to_poses(self, camera_to_world: ArrayLike) -> F64:
        """(F, 4, 4) rigid poses with centres scaled and moved, and orientations turned (never scaled)."""
        m, _ = _as_array(camera_to_world, "camera_to_world", (4, 4))
        centres = self.scale * (m[..., :3, 3] @ self.rotation.T) + self.translation
        return transform(self.rotation @ m[..., :3, :3], centres)


def umeyama(
    source: ArrayLike,
    target: ArrayLike,
    *,
    with_scale: bool,
    weights: ArrayLike | None = None,
    allow_collinear: bool = False,
) -> Alignment:
    """Least-squares similarity (or rigid) transform from `source` to `target`. Numpy only.

    Args:
        source, target: (n, 3) corresponding points.
        with_scale: Sim(3) if True, SE(3) if False.
        weights: (n,) non-negative; uniform if None.
        allow_collinear: True returns *one of* the solutions for points on a line (camera centres of a
            straight path): scale and residuals are right, rotation about the line is arbitrary.
    Raises:
        ValueError: fewer than 3 points, non-finite values, points that coincide (no scale, no rotation), or
        collinear
            points unless allowed (rotation about the line cannot be seen).
    Source: Umeyama, IEEE PAMI 13(4), 1991, equations 34 to 43; weights as in its weighted form.
    """
    x, _ = _as_array(source, "source", (None, 3))
    y, _ = _as_array(target, "target", (None, 3))
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"umeyama: source {x.shape} and target {y.shape} must both be (n, 3)")
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(x),) or not np.all(np.isfinite(w)) or np.any(w < 0):
        raise ValueError("umeyama: weights must be (n,) finite and non-negative")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("umeyama: points must be finite; drop invalid rows first")
    used = int(np.count_nonzero(w))
    if used < 3:
        raise ValueError(f"umeyama: {used} points carry weight, at least 3 are needed")
    w = w / w.sum()
    mean_x, mean_y = w @ x, w @ y
    dx, dy = x - mean_x, y - mean_y
    _check_spread(dx, w, "source", mean_x, allow_collinear=allow_collinear)
    _check_spread(dy, w, "target", mean_y, allow_collinear=allow_collinear)
    covariance = (dy * w[:, None]).T @ dx  # eq. 38
    u, d, vt = np.linalg.svd(covariance)
    s = np.ones(3)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:  # eq. 39 and 43
        s[2] = -1.0
    rotation = (u * s) @ vt  # eq. 40
    variance_x = float(w @ (dx * dx).sum(1))
    scale = float((d * s).sum() / variance_x) if with_scale else 1.0  # eq. 42
    translation = mean_y - scale * (rotation @ mean_x)  # eq. 41
    residual = np.linalg.norm(scale * (x @ rotation.T) + translation - y, axis=1)
    return Alignment(scale=scale, rotation=rotation, translation=translation, inlier=w > 0, residual=residual)


def _check_spread(centred: F64, weights: F64, name: str, mean: F64, *, allow_collinear: bool) -> None:
    singular = np.linalg.svd(centred * np.sqrt(weights)[:, None], compute_uv=False)
    floor = 1e-12 * max(1.0, float(np.abs(mean).max()))  # rounding noise of the coordinates themselves
    if singular[0] <= floor:
        raise ValueError(f"umeyama: all {name} points coincide; neither rotation nor scale can be found")
    if not allow_collinear and singular[1] <= max(1e-6 * singular[0], floor):
        raise ValueError(
            f"umeyama: {name} points lie on a line (second spread {singular[1]:.3g} of {singular[0]:.3g}); "
            "rotation about it cannot be seen: add points off the line, or compare scale only"
        )


def robust_umeyama(
    source: ArrayLike,
    target: ArrayLike,
    *,
    with_scale: bool,
    weights: ArrayLike | None = None,
    num_samples: int = 256,
    seed: int = 0,
) -> Alignment:
    """`umeyama` that withstands up to about 40 % of wrong correspondences. Numpy only, deterministic.

    Least median of squares over random triplets gives a start and a noise level (1.4826 MAD of the residual,
    Rousseeuw 1984); then iteratively reweighted least squares with Tukey's biweight (c = 4.685) until the
    weights settle.

    Args:
        source, target: (n, 3) corresponding points; weights: (n,) prior weights.
        num_samples: triplets tried.
    Raises:
        ValueError: as `umeyama`; also when no triplet is free of degeneracy.
    """
    x, _ = _as_array(source, "source", (None, 3))
    y, _ = _as_array(target, "target", (None, 3))
    prior = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    umeyama(x, y, with_scale=with_scale, weights=prior)  # raises on degenerate input
    candidates = np.flatnonzero(prior > 0)
    rng = np.random.default_rng(seed)
    best: Alignment | None = None
    best_median = np.inf
    for _i in range(num_samples):
        pick = rng.choice(candidates, size=3, replace=False)
        try:
            trial = umeyama(x[pick], y[pick], with_scale=with_scale)
        except ValueError:  # a degenerate triplet says nothing about the whole set
            continue
        residual = np.linalg.norm(trial.scale * (x @ trial.rotation.T) + trial.translation - y, axis=1)[
            candidates
        ]
        median = float(np.median(residual))
        if median < best_median:
            best, best_median = trial, median
    if best is None:
        raise ValueError("robust_umeyama: every sampled triplet is degenerate; points lie close to a line")
    rounding = 1e-12 * (1.0 + float(np.abs(y).max()))
    residual = np.linalg.norm(best.scale * (x @ best.rotation.T) + best.translation - y, axis=1)
    result = best
    for _i in range(50):
        # Residuals are 3D lengths: for isotropic noise the median length is 1.538 sigma (chi with 3 dof).
        sigma = max(float(np.median(residual[candidates])) / 1.538, rounding)
        ratio = residual / (4.685 * sigma)
        w = prior * np.where(ratio < 1.0, (1.0 - ratio**2) ** 2, 0.0)
        if np.count_nonzero(w) < 3:
            break
        try:
            refined = umeyama(x, y, with_scale=with_scale, weights=w)
        except ValueError:  # the surviving points became degenerate: keep the last good solution
            break
        change = float(np.abs(refined.residual - residual).max())
        result, residual = refined, refined.residual
        if change <= 1e-9 * (1.0 + sigma):
            break
    sigma = max(float(np.median(residual[candidates])) / 1.538, rounding)
    return Alignment(
        scale=result.scale,
        rotation=result.rotation,
        translation=result.translation,
        inlier=(residual < 4.685 * sigma) & (prior > 0),
        residual=residual,
    )


# --------------------------------------------------------------------------------------------- intrinsics


def intrinsics_matrix(focal_px: Array, principal_point_px: Array) -> Array:
    """(..., 3, 3) pinhole matrices of (..., 2) fx fy and (..., 2) cx cy, all in pixels (or all
    normalised)."""
    f, xp = _as_array(focal_px, "focal_px", (2,))
    c, _ = _as_array(principal_point_px, "principal_point_px", (2,))
    o = 0.0 * (f[..., 0] + c[..., 0])
    return _stack_matrix(
        xp, [[f[..., 0] + o, o, c[..., 0] + o], [o, f[..., 1] + o, c[..., 1] + o], [o, o, o + 1.0]]
    )


def split_intrinsics(intrinsics: Array) -> tuple[Array, Array]:
    """(..., 2) fx fy and (..., 2) cx cy of (..., 3, 3) matrices. Raises ValueError on skew."""
    k, xp = _as_array(intrinsics, "intrinsics", (3, 3))
    if bool((abs(k[..., 0, 1]) > 1e-6 * abs(k[..., 0, 0])).any()):
        raise ValueError("intrinsics: skew is not zero; only pinhole cameras without skew are stored")
    return (
        xp.stack([k[..., 0, 0], k[..., 1, 1]], axis=-1),
        xp.stack([k[..., 0, 2], k[..., 1, 2]], axis=-1),
    )


def _scale_rows(intrinsics: Array, sx: float, sy: float) -> Array:
    k, xp = _as_array(intrinsics, "intrinsics", (3, 3))
    factor = xp.ones_like(k[..., 0])
    factor[..., 0] = sx
    factor[..., 1] = sy
    return k * factor[..., None]


def resize_intrinsics(intrinsics: Array, *, from_size: tuple[int, int], to_size: tuple[int, int]) -> Array:
    """Intrinsics (..., 3, 3) after resizing the whole image; sizes are (height, width) in pixels.

    Exact because pixel centres sit at +0.5: every entry of a row is multiplied, nothing is shifted.
    """
    (h0, w0), (h1, w1) = from_size, to_size
    if min(h0, w0, h1, w1) <= 0:
        raise ValueError(f"resize_intrinsics: sizes must be positive, found {from_size} and {to_size}")
    return _scale_rows(intrinsics, w1 / w0, h1 / h0)


def crop_intrinsics(intrinsics: Array, *, top_px: float, left_px: float) -> Array:
    """Intrinsics (..., 3, 3) after removing `top_px` rows and `left_px` columns (negative values pad)."""
    k, xp = _as_array(intrinsics, "intrinsics", (3, 3))
    shift = xp.zeros_like(k)
    shift[..., 0, 2] = left_px
    shift[..., 1, 2] = top_px
    return k - shift


def normalise_intrinsics(intrinsics: Array, *, height: int, width: int) -> Array:
    """Pixel intrinsics (..., 3, 3) to fractions of the image: fx/W, fy/H, cx/W, cy/H."""
    return resize_intrinsics(intrinsics, from_size=(height, width), to_size=(1, 1))


def denormalise_intrinsics(intrinsics: Array, *, height: int, width: int) -> Array:
    """Normalised intrinsics (..., 3, 3) to pixels of a height x width image."""
    return resize_intrinsics(intrinsics, from_size=(1, 1), to_size=(height, width))


def fov_from_focal(focal_px: Array, size_px: float) -> Array:
    """Field of view in radians of a focal length (any shape) over `size_px` pixels, principal point
    centred."""
    f, xp = _as_array(focal_px, "focal_px", ())
    return 2.0 * xp.arctan(0.5 * size_px / f)


def focal_from_fov(fov_rad: Array, size_px: float) -> Array:
    """Focal length in pixels of a field of view in radians (any shape) over `size_px` pixels."""
    f, xp = _as_array(fov_rad, "fov_rad", ())
    return 0.5 * size_px / xp.tan(0.5 * f)


# ---------------------------------------------------------------------- rays and projection


def pixel_centres(height: int, width: int) -> F64:
    """(H, W, 2) x, y of pixel centres (+0.5). Numpy only."""
    centres = np.empty((height, width, 2), dtype=np.float64)
    centres[..., 0] = np.arange(width) + 0.5
    centres[..., 1] = np.arange(height)[:, None] + 0.5
    return centres


def camera_rays(intrinsics: Array, pixels: Array, *, unit_length: bool = False) -> Array:
    """Directions in camera axes through pixels.

    Args:
        intrinsics: (..., 3, 3) in pixels.
        pixels: (..., n, 2) x, y.
        unit_length: False gives z = 1, so that multiplying by z-depth gives the point; True gives unit
            vectors, so that multiplying by distance along the ray does.
    Returns:
        (..., n, 3).
    """
    k, xp = _as_array(intrinsics, "intrinsics", (3, 3))
    p, _ = _as_array(pixels, "pixels", (None, 2))
    x = (p[..., 0] - k[..., None, 0, 2]) / k[..., None, 0, 0]
    y = (p[..., 1] - k[..., None, 1, 2]) / k[..., None, 1, 1]
    rays = xp.stack([x, y, xp.ones_like(x)], axis=-1)
    if unit_length:
        rays = rays / xp.sqrt((rays * rays).sum(-1))[..., None]
    return rays


def z_depth_from_ray_distance(ray_distance_m: Array, intrinsics: Array, pixels: Array) -> Array:
    """z-depth (..., n) of distances along the rays through `pixels` (..., n, 2)."""
    d, _ = _as_array(ray_distance_m, "ray_distance_m", (None,))
    return d * camera_rays(intrinsics, pixels, unit_length=True)[..., 2]


def project(points_world: Array, camera_to_world: Array, intrinsics: Array) -> tuple[Array, Array]:
    """Pixels and z-depth of world points.

    Args:
        points_world: (..., n, 3) metres.
        camera_to_world: (..., 4, 4).
        intrinsics: (..., 3, 3) pixels.
    Returns:
        (..., n, 2) pixels, and (..., n) z-depth in metres. Pixels of points with z <= 0 (behind the camera)
        are NaN.
    """
    p = apply_transform(se3_inverse(camera_to_world), points_world)
    p, xp = _as_array(p, "points", (None, 3))
    k, _ = _as_array(intrinsics, "intrinsics", (3, 3))
    z = p[..., 2]
    front = z > 0
    safe = xp.where(front, z, xp.ones_like(z))
    u = k[..., None, 0, 0] * p[..., 0] / safe + k[..., None, 0, 2]
    v = k[..., None, 1, 1] * p[..., 1] / safe + k[..., None, 1, 2]
    pixels = xp.stack([u, v], axis=-1)
    return xp.where(front[..., None], pixels, xp.full_like(pixels, float("nan"))), z


def unproject(pixels: Array, depth_m: Array, camera_to_world: Array, intrinsics: Array) -> Array:
    """World points (..., n, 3) of pixels (..., n, 2) with z-depth (..., n) in metres."""
    d, _ = _as_array(depth_m, "depth_m", (None,))
    return apply_transform(camera_to_world, camera_rays(intrinsics, pixels) * d[..., None])
