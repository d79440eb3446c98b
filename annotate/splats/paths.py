"""Where a camera may go in a scene of splats: not into what is solid, and only where the scene was seen.

What is solid is told by rays (Open3D): every opaque Gaussian stands as three small squares across its axes. A part of a
picture is covered if its ray meets something that some camera of the training saw, from a distance that is not much
smaller or larger.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter1d

from ...dataset.arrays import F64, FloatArray
from ...dataset.cameras.paths import PathName, named_path
from ...dataset.cameras.rotations import orthonormalise
from ...dataset.strict import Strict
from .scene import Splats, TrainedCameras

_GRID = (18, 32)
"""Rays of a frame, rows and columns."""
_MOST_SOLID = 400_000
_SHRINK = 0.7
PathProblem = Literal["in_geometry", "not_covered"]


class PathGates(Strict):
    """When a path is taken. Shares are those of SANA-WM's lineage."""

    clearance: Annotated[float, Field(ge=0)] = 0.05
    """Least distance of the camera to what is solid, in parts of the scene's usual depth."""
    covered_rays: Annotated[float, Field(ge=0, le=1)] = 0.35
    """Least share of a frame's rays that are covered."""
    covered_frames: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Least share of the sampled frames that are covered."""
    distance_ratio: Annotated[float, Field(gt=1)] = 4.0
    """Most by which something is nearer or further than a camera of the training saw it."""
    opacity: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """From which on a Gaussian is solid."""


@dataclass(frozen=True, eq=False)
class ScenePath:
    """A path, and how it was judged.

    Attributes:
        camera_to_world: (F, 4, 4), in the scene's unit.
        size: of the named path, in the scene's unit, as far as it had to shrink.
        clearance: least distance to what is solid.
        covered: share of the sampled frames that are covered.
        problem: why it is not taken; None: it is.
    """

    name: str
    camera_to_world: F64
    size: float
    clearance: float
    covered: float
    problem: PathProblem | None


class SolidScene:
    """What rays meet of a scene.

    Raises:
        ImportError: Open3D is missing, with what brings it.
        ValueError: nothing is solid, or Open3D does not load on this system.
    """

    def __init__(self, splats: Splats, cameras: TrainedCameras, gates: PathGates) -> None:
        try:
            open3d: Any = importlib.import_module("open3d")
        except ModuleNotFoundError as error:
            raise ImportError(
                f"paths through splats are tested by rays with Open3D ({error}): pip install theodolite[gs]"
            ) from None
        except (ImportError, OSError) as error:
            raise ValueError(
                "paths through splats are tested by rays with Open3D, which is installed, but needs a library that this"
                f" system lacks ({error}): install it by the system's packages (Debian, Ubuntu: libusb-1.0-0, libgl1)"
            ) from None
        self._core = open3d.core
        self._scene = open3d.t.geometry.RaycastingScene()
        vertices, triangles = _squares(splats, gates.opacity)
        self._scene.add_triangles(vertices, triangles)
        self.cameras, self.gates = cameras, gates
        depth = self.hits(*self._rays(cameras.camera_to_world[:64], cameras))
        depth = depth[np.isfinite(depth)]
        if not depth.size:
            raise ValueError("no camera of the training sees anything solid in this scene")
        self.usual_depth = float(np.median(depth))

    def hits(self, origins: F64, directions: F64) -> F64:
        """Distance along each ray to what it meets, in lengths of its direction; infinity: nothing."""
        rays = np.concatenate([origins, directions], axis=1).astype(np.float32)
        found = self._scene.cast_rays(self._core.Tensor(rays))
        return found["t_hit"].numpy().astype(np.float64)

    def distance(self, points: F64) -> F64:
        """Of each point to what is solid."""
        return (
            self._scene.compute_distance(self._core.Tensor(points.astype(np.float32))).numpy().astype(float)
        )

    def clearance(self, camera_to_world: F64) -> float:
        """Least distance of a path to what is solid; 0 if it goes through something."""
        centre = camera_to_world[:, :3, 3]
        step = np.diff(centre, axis=0)
        moving = np.linalg.norm(step, axis=1) > 0
        if moving.any() and (self.hits(centre[:-1][moving], step[moving]) <= 1.0).any():
            return 0.0
        return float(self.distance(centre).min())

    def covered(self, camera_to_world: F64, every: int = 16) -> float:
        """Share of every so many frames that are covered."""
        frames = camera_to_world[::every]
        origins, directions = self._rays(frames, self.cameras)
        distance = self.hits(origins, directions)
        met = np.isfinite(distance)
        seen = np.zeros(len(distance), bool)
        points = origins[met] + directions[met] * distance[met, None]
        seen[met] = self._was_seen(points, np.linalg.norm(directions[met] * distance[met, None], axis=1))
        shares = seen.reshape(len(frames), -1).mean(axis=1)
        return float((shares >= self.gates.covered_rays).mean())

    def _was_seen(self, points: F64, distance: F64) -> Any:
        """Whether some camera of the training sees each point, unhidden, from a distance of the same order."""
        seen = np.zeros(len(points), bool)
        every = max(1, len(self.cameras.camera_to_world) // 48)
        for pose, focal, size in zip(
            self.cameras.camera_to_world[::every],
            self.cameras.focal_px[::every],
            self.cameras.size_px[::every],
            strict=True,
        ):
            left = np.flatnonzero(~seen)
            away = points[left] - pose[:3, 3]
            in_camera = away @ pose[:3, :3]
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = (np.abs(in_camera[:, :2] / in_camera[:, 2:] * focal) < size / 2).all(axis=1) & (
                    in_camera[:, 2] > 0
                )
            ratio = np.linalg.norm(away, axis=1) / np.maximum(distance[left], 1e-12)
            inside &= (ratio < self.gates.distance_ratio) & (ratio > 1 / self.gates.distance_ratio)
            left, away = left[inside], away[inside]
            if len(left):
                seen[left] = self.hits(np.broadcast_to(pose[:3, 3], away.shape), away) > 0.97
        return seen

    def _rays(self, camera_to_world: F64, cameras: TrainedCameras) -> tuple[F64, F64]:
        """Rays of a grid over the picture of each camera, with the middle lens of the training; z is 1."""
        focal = np.median(cameras.focal_px, axis=0) / np.median(cameras.size_px, axis=0)
        v, u = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in _GRID), indexing="ij")
        local = np.stack([u / focal[0], v / focal[1], np.ones_like(u)], axis=-1).reshape(-1, 3)
        directions = np.einsum("fij,rj->fri", camera_to_world[:, :3, :3], local)
        origins = np.broadcast_to(camera_to_world[:, None, :3, 3], directions.shape)
        return origins.reshape(-1, 3), directions.reshape(-1, 3)


def _squares(splats: Splats, opacity: float) -> tuple[Any, Any]:
    """Vertices and triangles: three squares of two standard deviations for each solid Gaussian."""
    solid = np.flatnonzero(splats.opacities.numpy() > opacity)
    if not len(solid):
        raise ValueError(f"no Gaussian of this scene has an opacity above {opacity:g}")
    if len(solid) > _MOST_SOLID:  # the largest: small ones lie among them
        area = np.sort(splats.scales.numpy()[solid], axis=1)[:, 1:].prod(axis=1)
        solid = solid[np.argsort(-area)[:_MOST_SOLID]]
    axes = (splats.rotations().numpy() * splats.scales.numpy()[:, None, :])[
        solid
    ]  # columns: axes by their scales
    means = splats.means.numpy()[solid]
    corners = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        for signs in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            corners.append(means + signs[0] * axes[:, :, a] + signs[1] * axes[:, :, b])
    vertices = np.stack(corners, axis=1).reshape(-1, 3).astype(np.float32)
    square = np.array([[0, 1, 2], [0, 2, 3]])
    one = np.concatenate([square + 4 * k for k in range(3)])
    triangles = (one[None] + 12 * np.arange(len(solid))[:, None, None]).reshape(-1, 3).astype(np.uint32)
    return vertices, triangles


def smoothed(camera_to_world: FloatArray, sigma_frames: float) -> F64:
    """The path (F, 4, 4) smoothed by a Gaussian over frames; its ends stay where they are held."""
    poses = np.tile(np.eye(4), (len(camera_to_world), 1, 1))
    poses[:, :3, 3] = gaussian_filter1d(camera_to_world[:, :3, 3], sigma_frames, axis=0, mode="nearest")
    turned = gaussian_filter1d(camera_to_world[:, :3, :3], sigma_frames, axis=0, mode="nearest")
    poses[:, :3, :3] = orthonormalise(turned)
    return poses


def find_path(
    scene: SolidScene, name: PathName | str, start: F64, *, num_frames: int, size: float | None = None
) -> ScenePath:
    """A named path from a camera of the training on, made smaller until it is clear of what is solid.

    Args:
        start: (4, 4) where it begins.
        size: of the path in the scene's unit; None: three fifths of the scene's usual depth.
    """
    gates = scene.gates
    wanted = 0.6 * scene.usual_depth if size is None else size
    found = None
    for shrunk in range(5):
        now = wanted * _SHRINK**shrunk
        poses = start @ smoothed(named_path(name, num_frames, size_m=now), num_frames / 200)
        clearance = scene.clearance(poses)
        if clearance < gates.clearance * scene.usual_depth:
            found = ScenePath(name, poses, now, clearance, 0.0, "in_geometry")
            continue
        covered = scene.covered(poses)
        found = ScenePath(
            name, poses, now, clearance, covered, None if covered >= gates.covered_frames else "not_covered"
        )
        if found.problem is None:
            break
    assert found is not None
    return found
