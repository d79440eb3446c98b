"""Focal length and depth shift of affine-invariant point maps, batched and on the map's device.

Model: f * (x, y) / (z + s) = (u, v) with (u, v) the view-plane position of the pixel. For given s the best f has a
closed form, so one unknown remains. MoGe-2's own code solves it image by image on the CPU and stops early (relative
change 1e-3); here all images are solved together to convergence, and the least-squares value is the same problem's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .conv import view_plane


def nearest_grid(size: int, samples: int, device: torch.device) -> Tensor:
    """Indices floor(i * size / samples), i = 0..samples - 1."""
    return torch.div(torch.arange(samples, device=device) * size, samples, rounding_mode="floor")


def focal_and_shift(
    points: Tensor,
    valid: Tensor,
    *,
    focal: Tensor | None = None,
    samples: int = 64,
    iterations: int = 30,
    pooled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Focal in half image diagonals and shift along z of full maps; see `solve_samples`.

    Args:
        points: (B, H, W, 3) float32 points up to an unknown shift in z.
        valid: (B, H, W) bool; pixels used.
        samples: the map is read on a grid of samples x samples pixels.
        focal, iterations, pooled: as for `solve_samples`.
    """
    return solve_samples(
        *sample_points(points, valid, samples=samples), focal=focal, iterations=iterations, pooled=pooled
    )


def sample_points(points: Tensor, valid: Tensor, *, samples: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """What `solve_samples` needs of full maps: points (B, S, 3), used (B, S) bool, view-plane positions (S, 2)."""
    B, H, W, _ = points.shape
    rows, columns = nearest_grid(H, samples, points.device), nearest_grid(W, samples, points.device)
    grid = points[:, rows][:, :, columns].float().reshape(B, -1, 3)
    use = valid[:, rows][:, :, columns].reshape(B, -1)
    plane = view_plane(W, H, W / H, grid)[0][:, rows][:, :, columns].reshape(2, -1).T
    return grid, use, plane


def solve_samples(
    grid: Tensor,
    use: Tensor,
    plane: Tensor,
    *,
    focal: Tensor | None = None,
    iterations: int = 30,
    pooled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Focal in half image diagonals and shift along z.

    Args:
        grid: (B, S, 3) points up to an unknown shift in z.
        use: (B, S) bool.
        plane: (S, 2) view-plane position of each sample.
        focal: (B,) known focal; only the shift is solved.
        iterations: Levenberg-Marquardt steps; each costs one pass over the samples.
        pooled: one focal for all maps (frames of one clip), a shift for each. The focal of a single map is biased
            low on long lenses with noise (20 degrees, 5 %: 3.2 instead of 4.9).
    Returns:
        (B,) focal and (B,) shift; focal 1 and shift 0 where fewer than 2 pixels are valid.
    """
    B = len(grid)
    weight = (use & grid.isfinite().all(-1)).double()
    xy = torch.where(weight[..., None] > 0, grid[..., :2], 0.0).double()
    z = torch.where(weight > 0, grid[..., 2], 1.0).double()
    uv = plane.double()[None] * weight[..., None]
    fixed = focal.double() if focal is not None else None

    def terms(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projected = xy / (z + s[:, None])[..., None]
        projected = torch.where(projected.isfinite(), projected, 0.0)
        cross = (projected * uv).sum((1, 2))
        square = (projected * projected).sum((1, 2))
        return projected, cross, square

    def best_focal(cross: Tensor, square: Tensor) -> Tensor:
        if fixed is not None:
            return fixed
        if pooled:
            return (cross.sum() / square.sum().clamp_min(1e-30)).expand(B)
        return cross / square.clamp_min(1e-30)

    def cost(s: Tensor) -> Tensor:
        projected, cross, square = terms(s)
        residual = best_focal(cross, square)[:, None, None] * projected - uv
        return (residual * residual).sum((1, 2))

    shift = torch.zeros(B, dtype=torch.float64, device=grid.device)
    damping = torch.full_like(shift, 1e-3)
    current = cost(shift)
    # A plane of depth must stay in front of the camera: the nearest valid point bounds the step.
    nearest = torch.where(weight > 0, z, torch.inf).amin(1)
    for _ in range(iterations):
        projected, cross, square = terms(shift)
        f = best_focal(cross, square)
        residual = f[:, None, None] * projected - uv
        slope = -projected / (z + shift[:, None])[..., None]
        if fixed is None and not pooled:
            # Derivative of the eliminated focal.
            d_cross = (slope * uv).sum((1, 2))
            d_square = 2 * (slope * projected).sum((1, 2))
            d_focal = (d_cross - f * d_square) / square.clamp_min(1e-30)
        else:
            d_focal = torch.zeros_like(f)
        jacobian = f[:, None, None] * slope + d_focal[:, None, None] * projected
        gradient = (jacobian * residual).sum((1, 2))
        curvature = (jacobian * jacobian).sum((1, 2)).clamp_min(1e-30)
        proposed = shift - gradient / (curvature * (1 + damping))
        proposed = torch.maximum(proposed, -nearest + 0.05 * (nearest + shift))
        after = cost(proposed)
        better = after.sum() <= current.sum() if pooled else after <= current
        shift = torch.where(better, proposed, shift)
        current = torch.where(better, after, current)
        damping = torch.where(better, damping * 0.3, damping * 10).clamp(1e-9, 1e9)
    shift = shift.float().double()
    _, cross, square = terms(shift)
    f = best_focal(cross, square)
    enough = weight.sum(1) >= 2
    shift = torch.where(enough, shift, 0.0)
    if focal is None:
        f = torch.where(enough, f, 1.0)
    return f.float(), shift.float()
