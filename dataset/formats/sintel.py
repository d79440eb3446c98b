"""MPI Sintel's cameras (`.cam`) and depth (`.dpt`).

Both begin with the number 202021.25 as a little-endian float32. A camera goes on with 21 float64: the 3x3 intrinsics
and the 3x4 world-to-camera matrix, row by row (x = M N X). A map goes on with width and height as int32 and the float32
depth along z, row by row. Source: the README of MPI-Sintel-depth-training.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import F32, F64, I64
from ..cameras.transforms import se3_inverse
from ..inputs import InputError, read_bytes, reader
from ..limits import too_many_pixels

_TAG = struct.pack("<f", 202021.25)
_CAMERA_BYTES = len(_TAG) + 21 * 8
_NOT_RIGID = 1e-3
"""Largest entry of |R^T R - I| of a rotation."""
_FRAME = re.compile(r"frame_([0-9]{1,9})\.cam")


@dataclass(frozen=True, kw_only=True)
class SintelCameras:
    """Cameras of a sequence.

    Attributes:
        number: (F,) of each frame in its file's name; Sintel counts from 1.
        camera_to_world: (F, 4, 4), OpenCV axes.
        intrinsics: (F, 3, 3) pixels.
    """

    number: I64
    camera_to_world: F64
    intrinsics: F64


def _checked(path: Path, what: str) -> bytes:
    data = read_bytes(path)
    if data[:4] != _TAG:
        raise InputError(
            f"{path}: no {what} of MPI Sintel: it begins with {data[:4].hex() or 'nothing'}, expected {_TAG.hex()}"
        )
    return data


@reader("camera of MPI Sintel")
def read_cam(path: str | Path) -> tuple[F64, F64]:
    """(3, 3) intrinsics in pixels and (4, 4) world-to-camera of one frame.

    Raises:
        InputError: no such file, another length, or matrices that are no camera.
    """
    path = Path(path)
    data = _checked(path, "camera")
    if len(data) != _CAMERA_BYTES:
        raise InputError(f"{path}: {len(data)} bytes, a camera of MPI Sintel has {_CAMERA_BYTES}")
    numbers = np.frombuffer(data, "<f8", offset=4).astype(np.float64)
    intrinsics, pose = numbers[:9].reshape(3, 3), np.vstack([numbers[9:].reshape(3, 4), [0, 0, 0, 1]])
    rotation = pose[:3, :3]
    with np.errstate(all="ignore"):  # of damage
        off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if not np.isfinite(numbers).all() or not off <= _NOT_RIGID or np.linalg.det(rotation) < 0:
        raise InputError(f"{path}: the world-to-camera matrix is no rotation and shift")
    if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
        raise InputError(
            f"{path}: focal lengths {intrinsics[0, 0]:g} and {intrinsics[1, 1]:g} must be positive"
        )
    return intrinsics, pose


def is_cam_folder(folder: Path) -> bool:
    """Whether a folder holds cameras of a Sintel sequence."""
    return any(_FRAME.fullmatch(path.name) for path in folder.glob("frame_*.cam"))


def read_cam_folder(folder: Path) -> SintelCameras:
    """Cameras of a sequence, `frame_0001.cam` and so on, in order of their numbers.

    Raises:
        InputError: there is none, or one that `read_cam` refuses.
    """
    found = sorted((int(m[1]), p) for p in folder.glob("*.cam") if (m := _FRAME.fullmatch(p.name)))
    if not found:
        raise InputError(f"{folder}: holds no camera of MPI Sintel (frame_0001.cam ...)")
    read = [read_cam(path) for _, path in found]
    return SintelCameras(
        number=np.array([number for number, _ in found], np.int64),
        camera_to_world=se3_inverse(np.stack([pose for _, pose in read])),
        intrinsics=np.stack([intrinsics for intrinsics, _ in read]),
    )


@reader("depth map of MPI Sintel")
def read_dpt(path: str | Path) -> F32:
    """(h, w) float32 depth along z.

    Raises:
        InputError: no such file, or not as long as its size says.
    """
    path = Path(path)
    data = _checked(path, "depth map")
    if len(data) < 12:
        raise InputError(f"{path}: ends within its header")
    width, height = struct.unpack_from("<2i", data, 4)
    if why := too_many_pixels(height, width):
        raise InputError(f"{path}: {why}")
    if len(data) != 12 + 4 * width * height:
        raise InputError(
            f"{path}: {len(data)} bytes, a map of {width}x{height} has {12 + 4 * width * height}"
        )
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width).astype(np.float32)
