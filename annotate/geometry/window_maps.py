"""One window of a sequence network: what it says, which of its depth can be used, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import F64, I64
from ...dataset.cameras.rotations import orthonormalise
from ..sources.clip import ClipRejection
from .base import Provenance
from .config import KeyframesConfig


@dataclass(frozen=True, kw_only=True)
class RawWindow:
    """What a sequence network says about N frames, on its own device.

    Attributes:
        camera_to_world: (N, 4, 4) OpenCV axes, any world frame; unit about metres by the network's own judgement.
        points: (N, h, w, 3) camera-frame points in the same unit; z is the depth. They cover exactly the image.
        confidence: (N, h, w) in [0, 1].
    """

    camera_to_world: Tensor
    points: Tensor
    confidence: Tensor


class WindowNetwork(Protocol):
    """A sequence network: any number of frames at once, in any order.

    Attributes:
        name: for messages.
        device: where images are wanted.
        provenance: what goes into the row.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def provenance(self) -> Provenance: ...

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the images that it takes for frames of (height, width)."""
        ...

    def predict(self, images: Tensor, frame: I64) -> RawWindow:
        """Geometry of (N, 3, h, w) uint8 RGB images of clip frames `frame` (N,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class KeptWindow:
    """What stays of a window.

    Attributes:
        frame: (N,) clip frames.
        camera_to_world: (N, 4, 4) float64, rigid.
        depth: (N, h, w) float16 z-depth, NaN invalid, +inf sky.
        confidence: (N, h, w) uint8, 255 = 1.
        focal_px: (N, 2) fx, fy in pixels of the stored frames; NaN if a frame has too few usable pixels.
        points: (N, P, 3), weight: (N, P): the sample that alignment uses, the same pixels in every window.
    """

    frame: I64
    camera_to_world: F64
    depth: NDArray[np.float16]
    confidence: NDArray[np.uint8]
    focal_px: F64
    points: F64
    weight: F64


_GRID = (24, 40)  # rows and columns of the sample for alignment


def depth_edges(points: Tensor, valid: Tensor, config: KeyframesConfig) -> Tensor:
    """(N, h, w) bool: pixels at which a surface ends, where depth is a mixture of both sides.

    Both must hold: depth varies by more than `edge_depth_ratio` in the 3x3 neighbourhood, and normals within two
    pixels differ by more than `edge_angle_deg`; a slanted wall passes the second test only.

    Args:
        points: (N, h, w, 3). valid: (N, h, w) bool.
    """
    z = points[..., 2]
    high = F.max_pool2d(torch.where(valid, z, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    low = -F.max_pool2d(torch.where(valid, -z, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    jump = valid & ((high - low) > config.edge_depth_ratio * z)
    if not bool(jump.any()):
        return jump
    inner = points[:, 1:-1, 1:-1]
    normal = torch.linalg.cross(
        points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1], dim=-1
    )
    normal = F.normalize(torch.nan_to_num(normal), dim=-1)
    bent = torch.zeros(inner.shape[:3], dtype=torch.bool, device=z.device)
    limit = float(np.cos(np.radians(config.edge_angle_deg)))
    across = (normal[:, :, 1:] * normal[:, :, :-1]).sum(-1) < limit
    down = (normal[:, 1:] * normal[:, :-1]).sum(-1) < limit
    bent[:, :, 1:] |= across
    bent[:, :, :-1] |= across
    bent[:, 1:] |= down
    bent[:, :-1] |= down
    bent_all = F.pad(bent[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return jump & (F.max_pool2d(bent_all, 3, 1, 1)[:, 0] > 0)


def fit_focal(points: Tensor, weight: Tensor, *, height: float, width: float) -> Tensor:
    """fx and fy of each frame, (N, 2), from camera-frame points whose pixels are known.

    Robust least squares of u - cx = fx x / z with the principal point in the middle, weights by confidence; the
    pixel centres are those of frames of (height, width), whatever the size of the maps.

    Args:
        points: (N, h, w, 3). weight: (N, h, w), 0 where not usable.
    Returns:
        NaN where less than 2 % of the pixels are usable.
    """
    _, h, w, _ = points.shape
    z = points[..., 2]
    usable = (weight > 0) & torch.isfinite(points).all(-1) & (z > 0)
    out = []
    for axis, (count, size) in enumerate(((w, width), (h, height))):
        pixel = ((torch.arange(count, device=z.device) + 0.5) / count - 0.5) * size
        pixel = pixel.expand(h, w) if axis == 0 else pixel[:, None].expand(h, w)
        x = torch.where(usable, points[..., axis] / torch.where(usable, z, 1.0), 0.0).double()
        base = torch.where(usable, weight, 0.0).double()
        # The middle of the image says nothing about scale; the median of the rest stands up to a third of nonsense.
        telling = usable & (pixel.abs() > 0.15 * size) & (x * pixel > 0)
        ratio = torch.where(telling, pixel / torch.where(telling, x, 1.0), torch.nan)
        focal = ratio.flatten(1).nanmedian(1).values
        for _ in range(3):
            residual = (pixel - focal[:, None, None] * x).abs()
            middle = torch.where(usable, residual, torch.nan).flatten(1).nanmedian(1).values
            sigma = (1.5 * middle).clamp_min(1e-4 * size)[:, None, None]
            robust = base / (1 + (residual / (2 * sigma)) ** 2)
            focal = (robust * x * pixel).sum((1, 2)) / (robust * x * x).sum((1, 2)).clamp_min(1e-12)
        enough = (usable.float().mean((1, 2)) >= 0.02) & (focal > 0)
        out.append(torch.where(enough, focal, torch.nan))
    return torch.stack(out, 1)


def keep_window(
    raw: RawWindow, frame: I64, config: KeyframesConfig, *, height: int, width: int
) -> KeptWindow:
    """Masks, focal lengths and reduction of one window, on its device.

    Raises:
        ClipRejection: `geometry_not_finite` if a pose is not finite.
    """
    poses = raw.camera_to_world.detach().double().cpu().numpy()
    if not np.isfinite(poses).all():
        raise ClipRejection(
            "geometry_not_finite", f"the sequence network gave no finite pose for frames {frame}"
        )
    poses = poses.copy()
    poses[:, :3, :3] = orthonormalise(poses[:, :3, :3])
    depth, confidence, focal, points, weight = [], [], [], [], []
    _, h, w, _ = raw.points.shape
    shrink = min(1.0, config.kept_side_px / max(h, w))
    rows = _nearest(h, max(1, round(h * shrink)), raw.points.device)
    columns = _nearest(w, max(1, round(w * shrink)), raw.points.device)
    grid_rows = _nearest(h, min(h, _GRID[0]), raw.points.device)
    grid_columns = _nearest(w, min(w, _GRID[1]), raw.points.device)
    # A few frames at a time: the masks need several maps of the full size.
    for part, trust in zip(raw.points.split(16), raw.confidence.split(16), strict=True):
        part, trust = part.float(), trust.float()
        z = part[..., 2]
        valid = torch.isfinite(part).all(-1) & (z > 0)
        middle = torch.where(valid, z, torch.nan).flatten(1).nanmedian(1).values[:, None, None]
        sky = valid & (z > config.far_ratio * middle)
        good = valid & ~sky & (trust >= config.min_confidence)
        good &= ~depth_edges(part, valid, config)
        kept = torch.where(good, z, torch.nan)
        kept = torch.where(sky, torch.inf, kept)
        used = torch.where(good, trust, 0.0)
        depth.append(kept[:, rows][:, :, columns].half())
        confidence.append((255 * used[:, rows][:, :, columns]).round().to(torch.uint8))
        focal.append(
            fit_focal(part[:, rows][:, :, columns], used[:, rows][:, :, columns], height=height, width=width)
        )
        points.append(part[:, grid_rows][:, :, grid_columns].flatten(1, 2))
        weight.append(used[:, grid_rows][:, :, grid_columns].flatten(1, 2))
    return KeptWindow(
        frame=frame,
        camera_to_world=poses,
        depth=torch.cat(depth).cpu().numpy(),
        confidence=torch.cat(confidence).cpu().numpy(),
        focal_px=torch.cat(focal).cpu().numpy(),
        points=torch.cat(points).double().cpu().numpy(),
        weight=torch.cat(weight).double().cpu().numpy(),
    )


def _nearest(size: int, samples: int, device: torch.device) -> Tensor:
    """Pixels nearest to the centres of `samples` equal parts."""
    return ((torch.arange(samples, device=device) + 0.5) * size / samples).long()
