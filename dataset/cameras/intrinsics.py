"""Pinhole lenses: matrices, resizing, fields of view, rays and projection."""

from __future__ import annotations

import numpy as np

from ..arrays import F64
from .numerics import Array, as_array, stack_matrix
from .transforms import apply_transform, se3_inverse

# --------------------------------------------------------------------------------------------- intrinsics

LEAST_FOCAL_SHARE = 0.05
"""Least focal length of a lens, over the picture's side along the same axis (a view of 169 degrees): less is
normalised, or in millimetres."""


def intrinsics_matrix(focal_px: Array, principal_point_px: Array) -> Array:
    """(..., 3, 3) pinhole matrices of (..., 2) fx fy and (..., 2) cx cy, all in pixels (or all
    normalised)."""
    f, xp = as_array(focal_px, "focal_px", (2,))
    c, _ = as_array(principal_point_px, "principal_point_px", (2,))
    o = 0.0 * (f[..., 0] + c[..., 0])
    return stack_matrix(
        xp, [[f[..., 0] + o, o, c[..., 0] + o], [o, f[..., 1] + o, c[..., 1] + o], [o, o, o + 1.0]]
    )


def split_intrinsics(intrinsics: Array) -> tuple[Array, Array]:
    """(..., 2) fx fy and (..., 2) cx cy of (..., 3, 3) matrices. Raises ValueError on skew."""
    k, xp = as_array(intrinsics, "intrinsics", (3, 3))
    if bool((abs(k[..., 0, 1]) > 1e-6 * abs(k[..., 0, 0])).any()):
        raise ValueError("intrinsics: skew is not zero; only pinhole cameras without skew are stored")
    return (
        xp.stack([k[..., 0, 0], k[..., 1, 1]], axis=-1),
        xp.stack([k[..., 0, 2], k[..., 1, 2]], axis=-1),
    )


def _scale_rows(intrinsics: Array, sx: float, sy: float) -> Array:
    k, xp = as_array(intrinsics, "intrinsics", (3, 3))
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
    k, xp = as_array(intrinsics, "intrinsics", (3, 3))
    shift = xp.zeros_like(k)
    shift[..., 0, 2] = left_px
    shift[..., 1, 2] = top_px
    return k - shift


def fov_from_focal(focal_px: Array, size_px: float) -> Array:
    """Field of view in radians of a focal length (any shape) over `size_px` pixels, principal point
    centred."""
    f, xp = as_array(focal_px, "focal_px", ())
    return 2.0 * xp.arctan(0.5 * size_px / f)


def focal_from_fov(fov_rad: Array, size_px: float) -> Array:
    """Focal length in pixels of a field of view in radians (any shape) over `size_px` pixels."""
    f, xp = as_array(fov_rad, "fov_rad", ())
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
    k, xp = as_array(intrinsics, "intrinsics", (3, 3))
    p, _ = as_array(pixels, "pixels", (None, 2))
    x = (p[..., 0] - k[..., None, 0, 2]) / k[..., None, 0, 0]
    y = (p[..., 1] - k[..., None, 1, 2]) / k[..., None, 1, 1]
    rays = xp.stack([x, y, xp.ones_like(x)], axis=-1)
    if unit_length:
        rays = rays / xp.sqrt((rays * rays).sum(-1))[..., None]
    return rays


def z_depth_from_ray_distance(ray_distance_m: Array, intrinsics: Array, pixels: Array) -> Array:
    """z-depth (..., n) of distances along the rays through `pixels` (..., n, 2)."""
    d, _ = as_array(ray_distance_m, "ray_distance_m", (None,))
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
    p, xp = as_array(p, "points", (None, 3))
    k, _ = as_array(intrinsics, "intrinsics", (3, 3))
    z = p[..., 2]
    front = z > 0
    safe = xp.where(front, z, xp.ones_like(z))
    u = k[..., None, 0, 0] * p[..., 0] / safe + k[..., None, 0, 2]
    v = k[..., None, 1, 1] * p[..., 1] / safe + k[..., None, 1, 2]
    pixels = xp.stack([u, v], axis=-1)
    return xp.where(front[..., None], pixels, xp.full_like(pixels, float("nan"))), z
