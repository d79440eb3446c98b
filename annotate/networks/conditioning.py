"""What is known of a window beforehand, checked and brought into the form in which Pi3X takes it.

Depth is divided by its mean over the window, poses by the same and, without depth, by their mean distance from the
first; rays are what remains of a lens. A mistake in a frame that is used is an error, other frames may hold anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...dataset.cameras.intrinsics import LEAST_FOCAL_SHARE
from .vit import PATCH

_MAX_RIGID_ERROR = 1e-2
"""Largest entry of R R^T - I of a pose that may condition the network."""


@dataclass(frozen=True)
class WindowShape:
    """Size of what passes the network at once.

    Attributes:
        num_windows, num_frames: B and N.
        rows, columns: patches of an image.
    """

    num_windows: int
    num_frames: int
    rows: int
    columns: int

    @property
    def frames(self) -> tuple[int, int]:
        """(B, N)."""
        return self.num_windows, self.num_frames

    @property
    def pixels(self) -> tuple[int, int]:
        """(H, W)."""
        return PATCH * self.rows, PATCH * self.columns


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is known beforehand; every part is optional.

    Attributes:
        depth: (B, N, H, W) z-depth in one unit per window, non-positive or NaN where unknown.
        intrinsics: (B, N, 3, 3) in pixels of the H x W input, first pixel centre at 0.5.
        rays: (B, N, H, W, 3) instead of intrinsics; any length.
        camera_to_world: (B, N, 4, 4) OpenCV, in the unit of `depth`.
        depth_frames, ray_frames, pose_frames: (B, N) bool, frames whose condition is used; default all frames.

    Frames that are not used may hold anything. The scale of the conditions is not carried to the output: align the
    result to them afterwards.
    """

    depth: Tensor | None = None
    intrinsics: Tensor | None = None
    rays: Tensor | None = None
    camera_to_world: Tensor | None = None
    depth_frames: Tensor | None = None
    ray_frames: Tensor | None = None
    pose_frames: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedConditions:
    """Conditions as the network takes them.

    Attributes:
        depth: (B, N, H, W) over its mean in the window, 0 where unknown; has_depth: (B, N, H, W) bool.
        rays: (B, N, H, W, 2) x and y of rays with z = 1; None where no frame uses them.
        camera_to_world: (B, N, 4, 4), first frame at the origin, in the unit of `depth`; None without poses.
        depth_frames, ray_frames, pose_frames: (B, N) bool, frames whose condition is used.
    """

    depth: Tensor
    has_depth: Tensor
    rays: Tensor | None
    camera_to_world: Tensor | None
    depth_frames: Tensor
    ray_frames: Tensor
    pose_frames: Tensor


def prepare_conditions(given: Conditions, window: WindowShape, device: torch.device) -> PreparedConditions:
    """Check and normalise what is known.

    Raises:
        ValueError: for shapes, types, masks or numbers that do not fit.
    """
    _check_tensors(given, window, device)
    has_rays = given.rays is not None or given.intrinsics is not None
    use_depth = _used_frames(given.depth_frames, given.depth is not None, window, device)
    use_ray = _used_frames(given.ray_frames, has_rays, window, device)
    use_pose = _used_frames(given.pose_frames, given.camera_to_world is not None, window, device)
    use_pose[use_pose.sum(dim=1) == 1] = False  # a single pose says nothing about others
    depth, positive, mean = _depth_over_mean(given.depth, window, device)
    poses = None
    if given.camera_to_world is not None:
        poses = _relative_poses(given.camera_to_world.float(), use_pose, use_depth, mean)
    return PreparedConditions(
        depth=depth,
        has_depth=positive,
        rays=_flat_rays(given, use_ray, window) if bool(use_ray.any()) else None,
        camera_to_world=poses,
        depth_frames=use_depth,
        ray_frames=use_ray,
        pose_frames=use_pose,
    )


def _check_tensors(given: Conditions, window: WindowShape, device: torch.device) -> None:
    if given.rays is not None and given.intrinsics is not None:
        raise ValueError("rays were given beside intrinsics; give one of them")
    for name, x, tail in (
        ("depth", given.depth, window.pixels),
        ("intrinsics", given.intrinsics, (3, 3)),
        ("rays", given.rays, (*window.pixels, 3)),
        ("camera_to_world", given.camera_to_world, (4, 4)),
    ):
        if x is None:
            continue
        shape = (*window.frames, *tail)
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} is {tuple(x.shape)}; for these images it must be {shape}")
        if not x.is_floating_point() or x.device != device:
            raise ValueError(
                f"{name} holds {x.dtype} on {x.device}; give floating numbers on {device}, as the images"
            )


def _used_frames(mask: Tensor | None, present: bool, window: WindowShape, device: torch.device) -> Tensor:
    """(B, N) bool of the frames that use a condition, of which `present` says whether it is there."""
    if mask is None:
        return torch.full(window.frames, present, device=device)
    if mask.shape != window.frames or mask.dtype != torch.bool or mask.device != device:
        raise ValueError(
            f"frame masks must be bool of shape {window.frames} on {device}, got {mask.dtype}"
            f" {tuple(mask.shape)} on {mask.device}"
        )
    if bool(mask.any()) and not present:
        raise ValueError("a frame mask was given for a condition that is absent")
    return mask.clone()


def _only_good(x: Tensor, good: Tensor, other: Tensor, use: Tensor, what: str) -> Tensor:
    """`x` (B, N, ...), with `other` in frames that are not good; an error naming `what` where such a frame is used."""
    if bool((use & ~good).any()):
        b, n = (use & ~good).nonzero()[0].tolist()
        raise ValueError(f"window {b}, frame {n}: {what}")
    return torch.where(good.view(*good.shape, *[1] * (x.ndim - 2)), x, other)


def _depth_over_mean(
    given: Tensor | None, window: WindowShape, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth over its mean in the window, where it is known, and that mean: (B, N, H, W), the same bool, (B,)."""
    shape = (*window.frames, *window.pixels)
    depth = given.float() if given is not None else torch.zeros(shape, device=device)
    depth = torch.where(depth.isfinite(), depth, 0.0)
    positive = depth > 0
    count = positive.flatten(1).sum(1)
    mean = torch.where(positive, depth, 0.0).flatten(1).sum(1) / count.clamp_min(1)
    mean = torch.where(count > 0, mean, 1.0)
    return depth / (mean.view(-1, 1, 1, 1) + 1e-8), positive, mean


def _relative_poses(pose: Tensor, use_pose: Tensor, use_depth: Tensor, mean: Tensor) -> Tensor:
    """(B, N, 4, 4) poses from the first frame, in mean depths, or in mean distances where a window has no depth."""
    rotation = pose[..., :3, :3]
    eye = torch.eye(4, device=pose.device)
    off = (rotation @ rotation.transpose(-1, -2) - eye[:3, :3]).abs().amax((-1, -2))
    rigid = (off < _MAX_RIGID_ERROR) & (torch.linalg.det(rotation) > 0) & pose.isfinite().all(-1).all(-1)
    rigid &= ((pose[..., 3, :] - eye[3]).abs() < _MAX_RIGID_ERROR).all(-1)
    pose = _only_good(pose, rigid, eye, use_pose, "camera_to_world is no rotation and translation")
    poses = invert_rigid(pose[:, :1]) @ pose
    poses[..., :3, 3] /= mean.view(-1, 1, 1)
    if pose.shape[1] > 1:
        distance = poses[:, 1:, :3, 3].norm(dim=-1)
        moving = ~use_depth.any(dim=1) & (distance.amax(dim=1) >= 2e-2)
        scale = torch.where(moving, distance.mean(dim=1) + 1e-8, 1.0)
        poses[..., :3, 3] /= scale.view(-1, 1, 1)
    return poses


def _flat_rays(given: Conditions, use_ray: Tensor, window: WindowShape) -> Tensor:
    """(B, N, H, W, 2) x and y of the rays where z is 1, from rays or intrinsics, one of which is there."""
    device = use_ray.device
    if given.rays is not None:
        ray = given.rays.float()
        good = (ray.isfinite().all(-1) & (ray[..., 2] > 0)).flatten(2).all(-1)
        ray = _only_good(ray, good, ray.new_ones(()), use_ray, "rays are no numbers, or look backwards")
        return ray[..., :2] / (ray[..., 2:] + 1e-6)
    assert given.intrinsics is not None
    height, width = window.pixels
    v, u = torch.meshgrid(
        torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
    )
    pixel = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    matrix = given.intrinsics.float()
    good = matrix.isfinite().all(-1).all(-1) & (matrix[..., [0, 1, 2], [0, 1, 2]] > 0).all(-1)
    what = "intrinsics must be finite with positive focal lengths"
    eye = torch.eye(3, device=device)
    matrix = _only_good(matrix, good, eye, use_ray, what)
    focal = matrix[..., [0, 1], [0, 1]]
    lens = (focal >= LEAST_FOCAL_SHARE * focal.new_tensor([width, height])).all(-1)
    what = (
        f"intrinsics with a focal length of {float(focal[use_ray].min()):.3g} px in an image of {width}x{height} are of"
        " no lens: they must be in pixels, not normalised"
    )
    matrix = _only_good(matrix, lens, eye, use_ray, what)
    return torch.einsum("bnij,hwj->bnhwi", torch.linalg.inv(matrix), pixel)[..., :2]


def invert_rigid(pose: Tensor) -> Tensor:
    """Inverse of (..., 4, 4) rigid transforms."""
    out = torch.zeros_like(pose)
    rotation = pose[..., :3, :3].transpose(-1, -2)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -(rotation @ pose[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1
    return out
