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
    """What `solve_samples` needs of full maps: points (B, S, 3), used (B, S) bool, view-plane positions (S, 2).

    Raises:
        ValueError: shapes or types that do not fit, no samples.
    """
    if points.ndim != 4 or points.shape[-1] != 3 or 0 in points.shape:
        raise ValueError(f"points are {tuple(points.shape)}; give (B, H, W, 3)")
    if valid.shape != points.shape[:-1] or valid.dtype != torch.bool:
        raise ValueError(
            f"valid holds {valid.dtype} of {tuple(valid.shape)}; give bool of {tuple(points.shape[:-1])}"
        )
    if samples < 1:
        raise ValueError(f"samples is {samples}; give at least 1")
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
    Raises:
        ValueError: shapes that do not fit.
    """
    B = len(grid)
    if grid.ndim != 3 or use.shape != grid.shape[:2] or plane.shape != (grid.shape[1], 2):
        raise ValueError(
            f"grid is {tuple(grid.shape)}, use {tuple(use.shape)}, plane {tuple(plane.shape)}; give (B, S, 3),"
            " (B, S) and (S, 2)"
        )
    if focal is not None and focal.shape != (B,):
        raise ValueError(f"focal is {tuple(focal.shape)}; give ({B},)")
    weight = (use & grid.isfinite().all(-1)).double()
    fit = _Fit(grid, weight, plane, focal=focal, pooled=pooled)
    shift = torch.zeros(B, dtype=torch.float64, device=grid.device)
    damping = torch.full_like(shift, 1e-3)
    sums = fit.sums(shift)
    cost = fit.cost(sums)
    # A plane of depth must stay in front of the camera: the nearest valid point bounds the step.
    nearest = torch.where(weight > 0, fit.z, torch.inf).amin(1)
    for _ in range(iterations):
        gradient, curvature = fit.slope(sums)
        proposed = shift - gradient / (curvature * (1 + damping))
        proposed = torch.maximum(proposed, -nearest + 0.05 * (nearest + shift))
        new_sums = fit.sums(proposed)
        new_cost = fit.cost(new_sums)
        better = (new_cost.sum() <= cost.sum()).expand(B) if pooled else new_cost <= cost
        shift = torch.where(better, proposed, shift)
        sums = torch.where(better[:, None, None], new_sums, sums)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping * 0.3, damping * 10).clamp(1e-9, 1e9)
    shift = shift.float().double()
    best = fit.focal(fit.sums(shift))
    enough = weight.sum(1) >= 2
    shift = torch.where(enough, shift, 0.0)
    if focal is None:
        best = torch.where(enough, best, 1.0)
    return best.float(), shift.float()


class _Fit:
    """The least-squares problem of `solve_samples` as a function of the shift, with the best focal for each.

    With w = 1 / (z + s) the projection is p = xy w and dp/ds = -xy w^2, so that all that is ever needed of the samples
    are sums of a w^k and b w^k, k = 1..4, a = xy . uv, b = xy . xy: one small product for a shift.

    Attributes:
        z: (B, S) depth of the samples before the shift; 1 where they do not count.
    """

    def __init__(
        self, grid: Tensor, weight: Tensor, plane: Tensor, *, focal: Tensor | None, pooled: bool
    ) -> None:
        inside = weight[..., None] > 0
        xy = torch.where(inside, grid[..., :2], 0.0).double()
        self.z = torch.where(inside[..., 0], grid[..., 2], 1.0).double()
        uv = plane.double()[None] * weight[..., None]
        self._factors = torch.stack([(xy * uv).sum(-1), (xy * xy).sum(-1)], dim=1)
        self._target = (uv * uv).sum((1, 2))
        self._fixed = focal.double() if focal is not None else None
        self._pooled = pooled

    def sums(self, shift: Tensor) -> Tensor:
        """(B, 2, 4): sums over the samples of a w^k and b w^k for a shift (B,)."""
        w = torch.nan_to_num(1 / (self.z + shift[:, None]), nan=0.0, posinf=0.0, neginf=0.0)
        square = w * w
        return self._factors @ torch.stack([w, square, square * w, square * square], dim=-1)

    def focal(self, sums: Tensor) -> Tensor:
        """(B,) focal of least cost, or the known one."""
        if self._fixed is not None:
            return self._fixed
        cross, square = sums[:, 0, 0], sums[:, 1, 1]
        if self._pooled:
            return (cross.sum() / square.sum().clamp_min(1e-30)).expand(len(sums))
        return cross / square.clamp_min(1e-30)

    def cost(self, sums: Tensor) -> Tensor:
        """(B,) squared error on the view plane."""
        f = self.focal(sums)
        return f * f * sums[:, 1, 1] - 2 * f * sums[:, 0, 0] + self._target

    def slope(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) half the derivative of the cost by the shift, and its Gauss-Newton curvature."""
        (a1, a2, _, _), (_, b2, b3, b4) = (row.unbind(-1) for row in sums.unbind(1))
        f = self.focal(sums)
        if self._fixed is None and not self._pooled:
            d_focal = (2 * f * b3 - a2) / b2.clamp_min(1e-30)  # of the eliminated focal
        else:
            d_focal = torch.zeros_like(f)
        gradient = f * (a2 - f * b3) + d_focal * (f * b2 - a1)
        return gradient, (f * f * b4 - 2 * f * d_focal * b3 + d_focal * d_focal * b2).clamp_min(1e-30)
