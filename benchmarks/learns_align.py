"""Where the camera of a generated picture stands, told from the picture alone: direct alignment with the first frame.

The first frame is real and its depth is known exactly, so every pixel of it is a point in space. The pose under which
these points fall on their own colours in another picture is that picture's camera, in metres. Neither the path that was
asked for nor anything learned enters. What the first frame does not show is not compared.

Coarse to fine, Levenberg-Marquardt, Student-t weights (Kerl et al. 2013, "Dense visual SLAM for RGB-D cameras"; colours
instead of brightness, no depth in the second picture), all clips at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from theodolite.dataset.cameras.transforms import se3_exp
from torch import Tensor

_SIGMA = 0.08
"""Spread of colours (0..1) on pixels that fit; generated pictures are blurred."""
_OUTSIDE = 1.0
"""Cost of a point that leaves the picture, that of a misfit of 1.4 spreads: turning far is cheaper than misfit, dearer
than fit."""
_LEAST_SEEN, _UNSEEN = 0.25, 10.0
"""Share of the points that must stay in sight, and the cost of falling below: looking away altogether never pays."""
_START_TURNS_DEG = tuple((yaw, pitch) for yaw in (0, 8, -8, 16, -16, 24, -24) for pitch in (0, 7, -7))
"""Where the search starts, from the camera before."""


@dataclass(frozen=True)
class _Level:
    points: Tensor  # (B, P, 3) of the first frame
    colours: Tensor  # (B, P, 3) there
    image: Tensor  # (B, 9, H, W): the other picture, and its gradients along u and v
    lens: Tensor  # (B, 4) of the other picture at this size


def camera_of_pictures(first: Tensor, depth_m: Tensor, pictures: Tensor, intrinsics_px: Tensor) -> Tensor:
    """Cameras of pictures that follow one whose depth is known.

    Args:
        first: (B, 3, H, W) in 0..1, with depth_m (B, H, W).
        pictures: (B, T, 3, H, W); picture 0 is taken to be the first.
        intrinsics_px: (B, T, 4) fx, fy, cx, cy.
    Returns:
        (B, T, 4, 4) camera-to-world with the first camera as world.
    """
    b, frames = pictures.shape[:2]
    pose = torch.eye(4, device=first.device).repeat(b, 1, 1)  # camera of the picture from the first camera
    step = torch.eye(4, device=first.device).repeat(b, 1, 1)
    found = [pose]
    for t in range(1, frames):
        before = found[-1]
        pose = _align(first, depth_m, pictures[:, t], intrinsics_px[:, [0, t]], before, step)
        step = pose @ torch.linalg.inv(before)
        found.append(pose)
    return torch.linalg.inv(torch.stack(found, dim=1))


def _align(
    first: Tensor, depth_m: Tensor, other: Tensor, lenses: Tensor, before: Tensor, step: Tensor
) -> Tensor:
    """(B, 4, 4): from many starts at a quarter of the size, the best four at a half, the best of these in full."""
    turns = torch.tensor(_START_TURNS_DEG, device=first.device, dtype=torch.float32).deg2rad()
    vector = torch.zeros(len(turns), 6, device=first.device)
    vector[:, 4], vector[:, 3] = turns[:, 0], turns[:, 1]
    tried = [turn @ before for turn in se3_exp(vector)] + [step @ before]
    for factor, kept, iterations in ((4, 4, 12), (2, 1, 8), (1, 1, 8)):
        level = _level(first, depth_m, other, lenses, factor)
        refined = [_refine(level, pose, iterations) for pose in tried]
        poses, costs = torch.stack([r[0] for r in refined]), torch.stack([r[1] for r in refined])
        best = costs.argsort(dim=0)[:kept]
        tried = list(poses.gather(0, best[..., None, None].expand(-1, -1, 4, 4)))
    return tried[0]


def _level(first: Tensor, depth_m: Tensor, other: Tensor, lenses: Tensor, factor: int) -> _Level:
    def small(x: Tensor) -> Tensor:
        # A little blur: gradients of sharp pictures hold for less than a pixel.
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return F.avg_pool2d(x, factor) if factor > 1 else x

    a, b = small(first), small(other)
    height, width = a.shape[-2:]
    z = depth_m[:, factor // 2 :: factor, factor // 2 :: factor]
    fx, fy, cx, cy = (lenses[:, 0, i, None, None] / factor for i in range(4))
    u = torch.arange(width, device=a.device) + 0.5
    v = (torch.arange(height, device=a.device) + 0.5)[:, None]
    x, y = torch.broadcast_tensors((u - cx) / fx * z, (v - cy) / fy * z)
    padded = F.pad(b, (1, 1, 1, 1), mode="replicate")
    du = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    dv = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return _Level(
        points=torch.stack([x, y, z], dim=-1).flatten(1, 2),
        colours=a.flatten(2).transpose(1, 2),
        image=torch.cat([b, du, dv], dim=1),
        lens=lenses[:, 1] / factor,
    )


def _residuals(level: _Level, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals (B, P, 3) in spreads, their Jacobian (B, P, 3, 6) by (translation, rotation), seen (B, P)."""
    p = level.points @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
    z = p[..., 2].clamp_min(0.05)
    fx, fy, cx, cy = (level.lens[:, i, None] for i in range(4))
    u, v = p[..., 0] / z * fx + cx, p[..., 1] / z * fy + cy
    height, width = level.image.shape[-2:]
    seen = (p[..., 2] > 0.05) & (u > 0.5) & (u < width - 0.5) & (v > 0.5) & (v < height - 0.5)
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], dim=-1)[:, None]
    taken = F.grid_sample(level.image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    colour, du, dv = taken[:, :, 0].transpose(1, 2).chunk(3, dim=-1)
    r = (colour - level.colours) / _SIGMA
    zero = torch.zeros_like(z)
    by_u = torch.stack([fx / z, zero, -fx * p[..., 0] / z**2], dim=-1)
    by_v = torch.stack([zero, fy / z, -fy * p[..., 1] / z**2], dim=-1)
    by_point = (du[..., None] * by_u[:, :, None] + dv[..., None] * by_v[:, :, None]) / _SIGMA
    turn = torch.linalg.cross(p[:, :, None].expand_as(by_point), by_point)  # d(w x p) . d = w . (p x d)
    return r, torch.cat([by_point, turn], dim=-1), seen


def _cost(r: Tensor, seen: Tensor) -> Tensor:
    """(B,) mean robust cost of the points in sight and out of it."""
    cost = 3 * torch.log1p(r.square() / 5).mean(dim=-1)
    missing = (_LEAST_SEEN - seen.float().mean(dim=1)).clamp_min(0)
    return torch.where(seen, cost, _OUTSIDE).mean(dim=1) + _UNSEEN * missing


def _refine(level: _Level, pose: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    r, jacobian, seen = _residuals(level, pose)
    cost = _cost(r, seen)
    damping = torch.full_like(cost, 1e-2)
    identity = torch.eye(6, device=pose.device)
    for _ in range(iterations):
        weight = torch.where(seen[..., None], 6 / (5 + r.square()), 0.0)
        weighted = (jacobian * weight[..., None]).flatten(1, 2)
        plain = jacobian.flatten(1, 2)
        h = weighted.transpose(1, 2) @ plain
        g = (weighted.transpose(1, 2) @ r.flatten(1)[..., None])[..., 0]
        diagonal = h.diagonal(dim1=1, dim2=2)
        scale = damping[:, None] * diagonal + 1e-6 * diagonal.amax(dim=1, keepdim=True) + 1e-6
        move = -torch.linalg.solve(h + scale[..., None] * identity, g)
        trial = se3_exp(move) @ pose
        r_new, jacobian_new, seen_new = _residuals(level, trial)
        cost_new = _cost(r_new, seen_new)
        better = cost_new < cost
        pose = torch.where(better[:, None, None], trial, pose)
        r = torch.where(better[:, None, None], r_new, r)
        jacobian = torch.where(better[:, None, None, None], jacobian_new, jacobian)
        seen = torch.where(better[:, None], seen_new, seen)
        cost = torch.where(better, cost_new, cost)
        damping = torch.where(better, damping / 4, damping * 6).clamp(1e-6, 1e4)
    return pose, cost
