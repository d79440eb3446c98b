"""Cameras as the world model takes them: relative to the first frame, one a latent frame, and a map of the rays."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dataset.cameras.intrinsics import LEAST_FOCAL_SHARE
from ..dataset.cameras.transforms import relative_to_first, rigid_error
from .context import Cameras

TEMPORAL_STRIDE = 8
"""Video frames a latent frame (but the first, which holds one)."""
SPATIAL_STRIDE = 32
"""Pixels a token."""


def latent_frames(num_frames: int) -> int:
    """Latent frames of a video of 8 k + 1 frames.

    Raises:
        ValueError: for any other number.
    """
    if num_frames < 1 or (num_frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(f"{num_frames} frames: the video autoencoder takes 8 k + 1 (for example 161 or 961)")
    return (num_frames - 1) // TEMPORAL_STRIDE + 1


def condition_cameras(
    camera_to_world: Tensor, intrinsics_px: Tensor, *, height: int, width: int, plucker: bool = True
) -> Cameras:
    """Cameras of every video frame as the network takes them.

    Args:
        camera_to_world: (B, F, 4, 4), OpenCV axes, metres; any world.
        intrinsics_px: (B, F, 4) fx, fy, cx, cy in pixels of the picture that the model makes.
        height, width: of that picture, multiples of 32.
        plucker: also make the ray map.
    Returns:
        cameras relative to frame 0: of video frame 8 i for latent frame i, and the ray map of all frames.
    Raises:
        ValueError: on shapes that do not fit, a size that is no multiple of 32, another number than 8 k + 1 frames,
            values that are not finite, rotations that are not rigid or focal lengths that are not
            positive, or so short that they are not in pixels.
    """
    if camera_to_world.ndim != 4 or camera_to_world.shape[-2:] != (4, 4):
        raise ValueError(f"camera_to_world is {tuple(camera_to_world.shape)}; give (B, F, 4, 4)")
    if intrinsics_px.shape != (*camera_to_world.shape[:2], 4):
        raise ValueError(
            f"intrinsics are {tuple(intrinsics_px.shape)}; with {tuple(camera_to_world.shape)} poses give "
            f"{(*camera_to_world.shape[:2], 4)}"
        )
    if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE or height < 1 or width < 1:
        raise ValueError(f"picture of {width}x{height}: both sides must be multiples of {SPATIAL_STRIDE}")
    latent_frames(camera_to_world.shape[1])
    _check_cameras(camera_to_world, intrinsics_px, height=height, width=width)
    relative = relative_to_first(camera_to_world.double()).to(camera_to_world.dtype)
    tokens = intrinsics_px / SPATIAL_STRIDE
    return Cameras(
        camera_to_world=relative[:, ::TEMPORAL_STRIDE],
        intrinsics=tokens[:, ::TEMPORAL_STRIDE],
        plucker=plucker_map(relative, tokens, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE)
        if plucker
        else None,
    )


def _check_cameras(camera_to_world: Tensor, intrinsics_px: Tensor, *, height: int, width: int) -> None:
    bad = ~camera_to_world.isfinite().flatten(2).all(-1) | ~intrinsics_px.isfinite().all(-1)
    if bool(bad.any()):
        raise ValueError(f"the camera of frame {int(bad.nonzero()[0, 1])} is not finite")
    error = rigid_error(camera_to_world.double())
    if bool((error > 1e-3).any()):
        frame = int((error > 1e-3).nonzero()[0, 1])
        raise ValueError(
            f"the camera of frame {frame} is no rigid transform: off by {float(error.max()):.2g}"
        )
    focal = intrinsics_px[..., :2]
    if not bool((focal > 0).all()):
        raise ValueError("focal lengths must be positive")
    if bool((focal < LEAST_FOCAL_SHARE * focal.new_tensor([width, height])).any()):
        raise ValueError(
            f"a focal length of {float(focal.min()):.3g} px in a picture of {width}x{height} is of no lens: intrinsics "
            "must be in pixels, not normalised"
        )


def plucker_map(camera_to_world: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Rays of every video frame, eight frames stacked a latent frame.

    Args:
        camera_to_world: (B, F, 4, 4) relative to frame 0.
        intrinsics: (B, F, 4) fx, fy, cx, cy in units of tokens.
        height, width: token grid.
    Returns:
        (B, 48, T, height, width): for each of eight frames direction d and moment o x d. Latent frame i takes frames
        s..s+7 with s = max(0, 8 i - 7); a short tail repeats the last frame.
    Source: NVlabs/Sana; token (u, v) looks along ((u - cx)/fx, (v - cy)/fy, 1) without a half token.
    """
    b, frames = camera_to_world.shape[:2]
    latents = (frames - 1) // TEMPORAL_STRIDE + 1
    start = (TEMPORAL_STRIDE * torch.arange(latents) - (TEMPORAL_STRIDE - 1)).clamp_min(0)
    poses = camera_to_world.to(intrinsics.dtype)
    u = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device)
    v = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device)[:, None]
    found = intrinsics.new_empty(b, TEMPORAL_STRIDE, 6, latents, height, width)
    for shift, six in enumerate(
        found.unbind(1)
    ):  # planes that stay in the processor's cache: trainers make many maps
        index = (start + shift).clamp_max(frames - 1).to(intrinsics.device)
        fx, fy, cx, cy = intrinsics[:, index, :, None, None].unbind(2)
        rows = poses[:, index, :, :, None, None]
        x, y = (u - cx) / fx, (v - cy) / fy
        ray = [rows[:, :, i, 0] * x + rows[:, :, i, 1] * y + rows[:, :, i, 2] for i in range(3)]
        length = (ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2]).sqrt().clamp_min(1e-12)
        direction = [r / length for r in ray]
        for i in range(3):
            after, last = (i + 1) % 3, (i + 2) % 3
            six[:, i] = direction[i]
            six[:, 3 + i] = rows[:, :, after, 3] * direction[last] - rows[:, :, last, 3] * direction[after]
    return found.flatten(1, 2)


def without_cameras(batch: int, frames: int, *, height: int, width: int) -> Cameras:
    """What stands for the cameras of a clip that has none: identity poses, focal length one picture, no motion.

    Args:
        batch, frames: B, and latent frames T.
        height, width: token grid.
    Source: NVlabs/Sana's training on clips without cameras.
    """
    poses = torch.eye(4).repeat(batch, frames, 1, 1)
    one = torch.tensor([width, height, width / 2, height / 2], dtype=torch.float32)
    intrinsics = one.repeat(batch, frames, 1)
    video = TEMPORAL_STRIDE * (frames - 1) + 1
    return Cameras(
        camera_to_world=poses,
        intrinsics=intrinsics,
        plucker=plucker_map(
            torch.eye(4).repeat(batch, video, 1, 1), one.repeat(batch, video, 1), height, width
        ),
    )
