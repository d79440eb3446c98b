"""A room of splats: six walls and a pillar of small flat Gaussians with coloured noise, and cameras inside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from theodolite.annotate.splats.scene import Splats, write_splats
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation

HALF = np.array([4.0, 1.5, 4.0])
"""Half the room, metres: x right, y down, z forward."""
PILLAR_AT, PILLAR = np.array([1.5, 0.0, 1.5]), 0.4


def room(spacing_m: float = 0.1, *, seed: int = 0) -> Splats:
    """The room; Gaussians of half the spacing, flat, opaque, of a colour each in patches of three sizes."""
    rng = np.random.default_rng(seed)
    points, normals = [], []
    for axis in range(3):
        for side in (-1.0, 1.0):
            points.append(_wall(axis, side, HALF, np.zeros(3), spacing_m))
            normals.append(np.tile(np.eye(3)[axis], (len(points[-1]), 1)))
            if axis != 1:
                half = np.array([PILLAR, HALF[1], PILLAR])
                points.append(_wall(axis, side, half, PILLAR_AT, spacing_m))
                normals.append(np.tile(np.eye(3)[axis], (len(points[-1]), 1)))
    means, normal = np.concatenate(points), np.concatenate(normals)
    rotations = np.stack([np.roll(np.eye(3), 2 - int(n.argmax()), axis=1) for n in normal])
    colour = np.zeros((len(means), 3))
    for size in (spacing_m, 4 * spacing_m, 12 * spacing_m):
        cells = np.floor(means / size + 1e-6).astype(np.int64) @ np.array([73856093, 19349663, 83492791])
        keys, inverse = np.unique(cells, return_inverse=True)
        colour += rng.uniform(-0.9, 0.9, (len(keys), 3))[inverse] / 1.5
    scales = np.tile([0.5 * spacing_m, 0.5 * spacing_m, 0.002], (len(means), 1))
    arrays = (
        means,
        quaternion_wxyz_from_rotation(rotations),
        scales,
        np.full(len(means), 0.99),
        colour[:, None],
    )
    return Splats(*(torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays))


def _wall(axis: int, side: float, half: np.ndarray, centre: np.ndarray, spacing_m: float) -> np.ndarray:
    others = [i for i in range(3) if i != axis]
    steps = [np.arange(-half[i] + spacing_m / 2, half[i], spacing_m) for i in others]
    u, v = np.meshgrid(*steps, indexing="ij")
    found = np.zeros((u.size, 3))
    found[:, axis] = side * half[axis]
    found[:, others[0]], found[:, others[1]] = u.ravel(), v.ravel()
    return found + centre


def write_room(folder: Path, spacing_m: float = 0.1) -> Path:
    """The room with its cameras as a trained scene lies; returns the PLY file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_splats(folder / "point_cloud.ply", room(spacing_m))
    cameras = []
    for n, angle in enumerate(np.linspace(0, 2 * np.pi, 12, endpoint=False)):
        c, s = float(np.cos(angle)), float(np.sin(angle))
        cameras.append(
            {
                **{"id": n, "img_name": f"{n}", "width": 960, "height": 540, "fx": 480.0, "fy": 480.0},
                "position": [-1.0 - 1.0 * s, 0.0, -1.0 - 1.0 * c],
                "rotation": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            }
        )
    (folder / "cameras.json").write_text(json.dumps(cameras))
    return folder / "point_cloud.ply"
