"""Pictures of splats: by gsplat on a GPU, and plainly in torch, which says what the former should show.

Both draw alike: Gaussians are projected by the affine approximation (EWA), widened by 0.3 px squared, sorted by the
depth of their centres and laid over each other from near to far; pixel centres lie at +0.5.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .scene import Splats

_BLUR = 0.3
_NEAREST = 0.01
_LEAST_ALPHA, _MOST_ALPHA = 1 / 255, 0.999
_TILE = 16


@dataclass(frozen=True)
class Picture:
    """One rendered frame.

    Attributes:
        rgb: (H, W, 3) float, 0 to 1. depth: (H, W) mean depth along z of what is seen, in the scene's unit.
        alpha: (H, W) how much of the pixel is covered.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor


class Renderer(Protocol):
    """Draws splats."""

    @property
    def name(self) -> str:
        """For the record."""
        ...

    def draw(
        self, splats: Splats, camera_to_world: Tensor, intrinsics: Tensor, size: tuple[int, int]
    ) -> Picture:
        """A picture.

        Args:
            camera_to_world: (4, 4), OpenCV axes. intrinsics: (3, 3) in pixels.
            size: (height, width).
        """
        ...


class GsplatRenderer:
    """gsplat (Apache-2.0), on a CUDA device.

    Raises:
        ImportError: it is missing, with what brings it.
    """

    name = "gsplat"

    def __init__(self) -> None:
        try:
            gsplat = importlib.import_module("gsplat")
        except ImportError as error:
            raise ImportError(
                f"rendering splats needs gsplat ({error}): pip install theodolite[gs]; it compiles its kernels at first"
                " use, which needs the CUDA toolkit"
            ) from None
        self._rasterization: Any = gsplat.rasterization

    def draw(
        self, splats: Splats, camera_to_world: Tensor, intrinsics: Tensor, size: tuple[int, int]
    ) -> Picture:
        """As `Renderer`."""
        with torch.inference_mode():
            drawn, alpha, _ = self._rasterization(
                splats.means,
                splats.quaternions_wxyz,
                splats.scales,
                splats.opacities,
                splats.harmonics,
                torch.linalg.inv(camera_to_world)[None],
                intrinsics[None],
                size[1],
                size[0],
                sh_degree=splats.degree,
                near_plane=_NEAREST,
                render_mode="RGB+ED",
            )
        return Picture(drawn[0, ..., :3].clamp(0, 1), drawn[0, ..., 3], alpha[0, ..., 0])


class PlainRenderer:
    """Tile by tile in torch, on any device: slow, and short enough to be believed."""

    name = "plain"

    def draw(
        self, splats: Splats, camera_to_world: Tensor, intrinsics: Tensor, size: tuple[int, int]
    ) -> Picture:
        """As `Renderer`."""
        with torch.inference_mode():
            seen = _project(splats, camera_to_world, intrinsics, size)
            height, width = size
            out = torch.zeros(height, width, 5, device=splats.means.device)
            for top in range(0, height, _TILE):
                rows = (seen.centre[:, 1] + seen.reach > top) & (seen.centre[:, 1] - seen.reach < top + _TILE)
                strip = seen.take(rows)
                for left in range(0, width, _TILE):
                    columns = (strip.centre[:, 0] + strip.reach > left) & (
                        strip.centre[:, 0] - strip.reach < left + _TILE
                    )
                    tile = out[top : top + _TILE, left : left + _TILE]
                    tile[:] = _lay_over(strip.take(columns), top, left, (tile.shape[0], tile.shape[1]))
        alpha = out[..., 4]
        return Picture(out[..., :3], out[..., 3] / alpha.clamp_min(1e-10), alpha)


@dataclass(frozen=True, eq=False)
class _Projected:
    """Gaussians in the picture, from near to far: centre (M, 2), inverse covariance (M, 2, 2), reach in pixels (M,),
    depth (M,), opacity (M,), colour (M, 3)."""

    centre: Tensor
    inverse: Tensor
    reach: Tensor
    depth: Tensor
    opacity: Tensor
    colour: Tensor

    def take(self, which: Tensor) -> _Projected:
        return _Projected(*(x[which] for x in vars(self).values()))


def _project(
    splats: Splats, camera_to_world: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> _Projected:
    rotation, centre = camera_to_world[:3, :3], camera_to_world[:3, 3]
    in_camera = (splats.means - centre) @ rotation  # camera axes
    z = in_camera[:, 2]
    ahead = z > _NEAREST
    in_camera, z = in_camera[ahead], z[ahead]
    axes = splats.rotations()[ahead] * splats.scales[ahead][:, None, :]
    axes = rotation.T @ axes
    covariance = axes @ axes.transpose(1, 2)
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    # Far outside of the picture the approximation would blow up.
    limits = 0.15 * size[1] / fx, 0.15 * size[0] / fy
    x = (in_camera[:, 0] / z).clamp(-cx / fx - limits[0], (size[1] - cx) / fx + limits[0]) * z
    y = (in_camera[:, 1] / z).clamp(-cy / fy - limits[1], (size[0] - cy) / fy + limits[1]) * z
    jacobian = torch.zeros(len(z), 2, 3, device=z.device)
    jacobian[:, 0, 0], jacobian[:, 0, 2] = fx / z, -fx * x / z**2
    jacobian[:, 1, 1], jacobian[:, 1, 2] = fy / z, -fy * y / z**2
    flat = jacobian @ covariance @ jacobian.transpose(1, 2) + _BLUR * torch.eye(2, device=z.device)
    pixels = torch.stack([fx * in_camera[:, 0] / z + cx, fy * in_camera[:, 1] / z + cy], dim=1)
    half = 0.5 * (flat[:, 0, 0] + flat[:, 1, 1])
    determinant = flat[:, 0, 0] * flat[:, 1, 1] - flat[:, 0, 1] ** 2
    reach = 3.33 * (half + (half**2 - determinant).clamp_min(0.01).sqrt()).sqrt()
    order = z.argsort()
    directions = torch.nn.functional.normalize(splats.means[ahead] - centre, dim=1)
    colour = (harmonics(splats.harmonics[ahead], directions) + 0.5).clamp_min(0)
    found = _Projected(pixels, torch.linalg.inv(flat), reach, z, splats.opacities[ahead], colour)
    return found.take(order)


def _lay_over(seen: _Projected, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """(h, w, 5) colour, depth and cover of a tile."""
    device = seen.depth.device
    y, x = torch.meshgrid(
        torch.arange(size[0], device=device) + top + 0.5,
        torch.arange(size[1], device=device) + left + 0.5,
        indexing="ij",
    )
    away = torch.stack([x, y], dim=-1).reshape(-1, 1, 2) - seen.centre  # (P, M, 2)
    dx, dy, inverse = away[..., 0], away[..., 1], seen.inverse
    power = inverse[:, 0, 0] * dx * dx + 2 * inverse[:, 0, 1] * dx * dy + inverse[:, 1, 1] * dy * dy
    alpha = (seen.opacity * torch.exp(-0.5 * power)).clamp_max(_MOST_ALPHA)
    alpha = torch.where(alpha < _LEAST_ALPHA, torch.zeros_like(alpha), alpha)
    through = torch.cumprod(1 - alpha, dim=1)
    weight = alpha * torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], dim=1)
    values = torch.cat([seen.colour, seen.depth[:, None], torch.ones_like(seen.depth)[:, None]], dim=1)
    return (weight @ values).clamp_max(1e9).reshape(*size, 5)


_C0 = 0.5 / math.sqrt(math.pi)


def harmonics(coefficients: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) value of real spherical harmonics (N, K, 3) in directions (N, 3) of unit length, without the added half.

    Source: the real basis in the order and signs of graphdeco-inria/gaussian-splatting.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    root = math.sqrt
    c1, c2 = root(3 / (4 * math.pi)), root(15 / math.pi)
    basis = [torch.full_like(x, _C0), -c1 * y, c1 * z, -c1 * x]
    basis += [
        *(0.5 * c2 * xy, -0.5 * c2 * yz, 0.25 * root(5 / math.pi) * (2 * zz - xx - yy)),
        *(-0.5 * c2 * xz, 0.25 * c2 * (xx - yy)),
    ]
    a, b, c = root(35 / (2 * math.pi)) / 4, root(105 / math.pi), root(21 / (2 * math.pi)) / 4
    basis += [
        *(-a * y * (3 * xx - yy), 0.5 * b * xy * z, -c * y * (4 * zz - xx - yy)),
        root(7 / math.pi) / 4 * z * (2 * zz - 3 * xx - 3 * yy),
        *(-c * x * (4 * zz - xx - yy), 0.25 * b * z * (xx - yy), -a * x * (xx - 3 * yy)),
    ]
    used = torch.stack(basis[: coefficients.shape[1]], dim=-1)
    return torch.einsum("nk,nkc->nc", used, coefficients)
