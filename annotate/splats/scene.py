"""Scenes of 3D Gaussian splats as their trainers write them: `point_cloud.ply` and `cameras.json`.

Source of both layouts: graphdeco-inria/gaussian-splatting. The PLY holds logits of opacity, logarithms of scales,
quaternions with the real part first, and spherical harmonics, the higher ones channel by channel; the JSON holds
camera-to-world positions and rotations with OpenCV axes, and no principal point (it is the middle).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import F64
from ...dataset.cameras.transforms import rigid_error
from ...dataset.inputs import InputError, parse_json, read_text

_LONGEST_HEADER = 1 << 16
_MOST_SPLATS = 50_000_000
_TYPES = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1", "uint8": "u1"}
_TYPES |= {"char": "i1", "int8": "i1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4"}
_NEEDED = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


@dataclass(frozen=True, eq=False)
class Splats:
    """Gaussians of a scene, float32.

    Attributes:
        means: (N, 3) world, in the scene's unit.
        quaternions_wxyz: (N, 4) of unit length: from the Gaussian's axes to the world.
        scales: (N, 3) standard deviations along its axes.
        opacities: (N,) 0 to 1.
        harmonics: (N, K, 3) coefficients of colour, K = 1, 4, 9 or 16.
    """

    means: Tensor
    quaternions_wxyz: Tensor
    scales: Tensor
    opacities: Tensor
    harmonics: Tensor

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Of the harmonics."""
        return round(self.harmonics.shape[1] ** 0.5) - 1

    def to(self, device: torch.device) -> Splats:
        """On a device."""
        return Splats(*(x.to(device) for x in vars(self).values()))

    def rotations(self) -> Tensor:
        """(N, 3, 3) from the Gaussians' axes to the world."""
        w, x, y, z = self.quaternions_wxyz.unbind(-1)
        rows = [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ]
        return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


@dataclass(frozen=True, eq=False)
class TrainedCameras:
    """Cameras that a scene was made from.

    Attributes:
        camera_to_world: (C, 4, 4), in the scene's unit.
        focal_px: (C, 2). size_px: (C, 2) width and height.
    """

    camera_to_world: F64
    focal_px: F64
    size_px: F64


def read_splats(path: Path) -> Splats:
    """A scene's Gaussians; those with values that are not finite are left out.

    Raises:
        InputError: no binary PLY of splats; says what is missing.
    """
    try:
        with path.open("rb") as stream:
            fields, count = _header(stream.read(_LONGEST_HEADER), path)
            start, layout = fields
            stream.seek(start)
            content = stream.read(count * layout.itemsize)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) < count * layout.itemsize:
        raise InputError(f"{path}: is cut off: {len(content)} of {count * layout.itemsize} bytes of splats")
    table = np.frombuffer(content, layout, count)
    rest = sorted((n for n in layout.names or () if n.startswith("f_rest_")), key=lambda n: int(n[7:]))
    if len(rest) not in (0, 9, 24, 45):
        raise InputError(f"{path}: has {len(rest)} columns f_rest; splats have 0, 9, 24 or 45")
    found = _splats(table, rest)
    if not len(found):
        raise InputError(f"{path}: holds no splat whose values are finite")
    return found


def _header(head: bytes, path: Path) -> tuple[tuple[int, np.dtype], int]:
    """Where the splats begin, their layout, and how many there are."""
    end = head.find(b"end_header\n")
    lines = head[: max(0, end)].decode("ascii", "replace").split("\n")
    if lines[0].strip() != "ply" or end < 0:
        raise InputError(f"{path}: is no PLY file")
    if not any(line.split()[:2] == ["format", "binary_little_endian"] for line in lines):
        raise InputError(f"{path}: is no binary little-endian PLY, as splats are")
    count, columns, inside = -1, [], False
    for line in lines:
        words = line.split()
        if words[:1] == ["element"] and len(words) == 3:
            inside = words[1] == "vertex" and count < 0
            if inside:
                count = int(words[2]) if words[2].isdecimal() else -1
            elif count < 0:
                raise InputError(f"{path}: its first element is {words[1]}, not vertex")
        elif words[:1] == ["property"] and inside:
            if len(words) != 3 or words[1] not in _TYPES:
                raise InputError(f"{path}: property {line[:80]!r} is none of a splat")
            columns.append((words[2], _TYPES[words[1]]))
    names = [name for name, _ in columns]
    missing = [name for name in _NEEDED if name not in names]
    if missing or len(set(names)) != len(names) or not 0 < count <= _MOST_SPLATS:
        raise InputError(
            f"{path}: holds no splats ({count} vertices, without {', '.join(missing) or 'order'})"
        )
    return (end + len(b"end_header\n"), np.dtype(columns)), count


def _splats(table: NDArray, rest: list[str]) -> Splats:
    def columns(*names: str) -> NDArray[np.float32]:
        return np.stack([table[n] for n in names], axis=1).astype(np.float32)

    means = columns("x", "y", "z")
    rotation = columns("rot_0", "rot_1", "rot_2", "rot_3")
    scales = np.exp(np.clip(columns("scale_0", "scale_1", "scale_2"), -30, 30))
    opacity = 1 / (1 + np.exp(-np.clip(columns("opacity")[:, 0], -30, 30)))
    flat = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None, :]
    if rest:
        more = columns(*rest).reshape(len(table), 3, -1).transpose(0, 2, 1)
        flat = np.concatenate([flat, more], axis=1)
    length = np.linalg.norm(rotation, axis=1)
    whole = np.isfinite(means).all(1) & np.isfinite(scales).all(1) & np.isfinite(flat).all((1, 2))
    whole &= np.isfinite(length) & (length > 1e-8) & np.isfinite(opacity)
    unit = rotation[whole] / length[whole, None]
    arrays = (means[whole], unit, scales[whole], opacity[whole], flat[whole])
    return Splats(*(torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays))


def write_splats(path: Path, splats: Splats) -> None:
    """Write a scene as its trainers would."""
    k = splats.harmonics.shape[1] - 1
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(3 * k)), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    opacity = splats.opacities.clamp(1e-6, 1 - 1e-6)
    values = torch.cat(
        [
            splats.means,
            splats.harmonics[:, 0],
            splats.harmonics[:, 1:].transpose(1, 2).reshape(len(splats), -1),
            torch.log(opacity / (1 - opacity))[:, None],
            torch.log(splats.scales),
            splats.quaternions_wxyz,
        ],
        dim=1,
    )
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(splats)}"]
    head += [*(f"property float {n}" for n in names), "end_header", ""]
    path.write_bytes("\n".join(head).encode() + values.numpy().astype("<f4").tobytes())


def read_trained_cameras(path: Path) -> TrainedCameras:
    """Cameras of `cameras.json`.

    Raises:
        InputError: no list of cameras, or one that is none; names it.
    """
    content = parse_json(read_text(path), path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: is no list of cameras")
    poses, focal, size = [], [], []
    for number, camera in enumerate(content):
        try:
            pose = np.eye(4)
            pose[:3, :3] = np.asarray(camera["rotation"], np.float64).reshape(3, 3)
            pose[:3, 3] = np.asarray(camera["position"], np.float64).reshape(3)
            lens = [float(camera["fx"]), float(camera["fy"])]
            picture = [float(camera["width"]), float(camera["height"])]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: camera {number} is none ({type(error).__name__}: {error})") from None
        if not np.isfinite(pose).all() or float(rigid_error(pose)) > 1e-3 or min(*lens, *picture) <= 0:
            raise InputError(f"{path}: camera {number} is no pose with a lens")
        poses.append(pose)
        focal.append(lens)
        size.append(picture)
    return TrainedCameras(np.stack(poses), np.array(focal), np.array(size))
