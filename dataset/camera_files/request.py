"""Camera paths made ready for the model: at its rate, in its number of frames, checked, with its picture's lens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..arrays import FloatArray
from ..cameras.intrinsics import (
    focal_from_fov,
    fov_from_focal,
    intrinsics_matrix,
    resize_intrinsics,
    split_intrinsics,
)
from ..cameras.paths import FPS, check_path, check_rigid, interpolate_path
from ..cameras.rotations import orthonormalise, rotation_angle
from ..cameras.transforms import relative_to_first
from ..formats.sana import FOV_RANGE_DEG
from .requested import LONGEST_FRAMES, CameraPath, lenses_of, load_array, path_exists

_MOST_GAP_S = 2.0
"""Holes between two poses that are not bridged."""
_NOTED_GAP_S = 0.5
_LONGEST_S = 1e6
"""Of a path whose times are believed to be seconds."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is still believed of a path; see `check_path`."""

    max_speed_m_s: float = 10.0
    max_turn_deg_s: float = 240.0


def prepare_path(
    path: CameraPath, *, seconds: float | None = None, multiple: int = 8, limits: Limits | None = None
) -> CameraPath:
    """The path as the model follows it: 16 poses a second, k * multiple + 1 of them, the first the identity.

    Args:
        seconds: how much of it; None: as much as there is.
        multiple: 8 frames a latent frame; 24 a chunk of the distilled model.
    Returns:
        checked; `notes` say what was cut or bridged.
    Raises:
        ValueError: too short, too long, not finite, not rigid, with a jump, a hole or faster than `limits`.
    """
    where, limits = path.origin, limits or Limits()
    try:
        check_rigid(path.camera_to_world)
        poses = np.asarray(path.camera_to_world, np.float64).copy()
        poses[:, :3, :3] = orthonormalise(poses[:, :3, :3])  # of files in float32
        num_frames, notes = _count(path, seconds, multiple)
        notes += _gaps(path.time_s[: int((path.time_s < (num_frames - 1) / FPS).sum()) + 1])
        wanted = np.minimum(np.arange(num_frames) / FPS, path.duration_s)
        found = interpolate_path(path.time_s, poses, wanted)
        check_path(found, max_speed_m_s=limits.max_speed_m_s, max_turn_deg_s=limits.max_turn_deg_s)
        lens = None if path.intrinsics_px is None else _lens_between(path.time_s, path.intrinsics_px, wanted)
    except ValueError as error:
        raise ValueError(f"camera {where}: {error}") from None
    return replace(
        path,
        camera_to_world=np.asarray(relative_to_first(found)),
        time_s=np.arange(num_frames) / FPS,
        intrinsics_px=lens,
        notes=(*path.notes, *notes),
    )


def _count(path: CameraPath, seconds: float | None, multiple: int) -> tuple[int, tuple[str, ...]]:
    if not path.duration_s < _LONGEST_S:
        raise ValueError(
            f"{len(path)} poses last {path.duration_s:.4g} s; are its times in another unit, or --fps wrong?"
        )
    have = int(path.duration_s * FPS + 1e-6) + 1
    least = multiple + 1
    if have < least:
        raise ValueError(
            f"{len(path)} poses last {path.duration_s:.2f} s; the model needs at least {least} frames at "
            f"{FPS:g} a second ({multiple / FPS:g} s): give more poses, or --fps if they are further apart"
        )
    if seconds is None:
        num_frames = (have - 1) // multiple * multiple + 1
    else:
        num_frames = max(1, round(seconds * FPS / multiple)) * multiple + 1
        if num_frames > have:
            longest = (have - 1) // multiple * multiple / FPS
            raise ValueError(
                f"{seconds:g} s are asked for ({num_frames} frames), the path lasts {path.duration_s:.2f} s; "
                f"ask for --seconds {longest:g} at most"
            )
    if num_frames > LONGEST_FRAMES:
        raise ValueError(
            f"{num_frames} frames ({(num_frames - 1) / FPS:g} s) are more than the model can number "
            f"({LONGEST_FRAMES}): ask for --seconds {(LONGEST_FRAMES - 1) // multiple * multiple / FPS:g} at most"
        )
    cut = path.duration_s - (num_frames - 1) / FPS
    if seconds is None and cut > 1e-6:
        return num_frames, (
            f"the last {cut:.2f} s are left out: {num_frames} frames are a multiple of {multiple} and one",
        )
    return num_frames, ()


def _gaps(time_s: FloatArray) -> tuple[str, ...]:
    gap = np.diff(time_s)
    if not len(gap) or gap.max() <= _NOTED_GAP_S:
        return ()
    i = int(gap.argmax())
    if gap[i] > _MOST_GAP_S:
        raise ValueError(
            f"no pose for {gap[i]:.2f} s between pose {i} and {i + 1}; holes above {_MOST_GAP_S:g} s are not bridged"
        )
    return (f"poses are up to {gap[i]:.2f} s apart and bridged by the motion between them",)


def _lens_between(time_s: FloatArray, intrinsics: FloatArray, wanted: FloatArray) -> FloatArray:
    focal, centre = split_intrinsics(intrinsics)
    _check_lens(intrinsics)
    values = np.concatenate([np.log(focal), centre], axis=1)
    between = np.stack([np.interp(wanted, time_s, column) for column in values.T], axis=1)
    return np.asarray(intrinsics_matrix(np.exp(between[:, :2]), between[:, 2:]))


def _check_lens(intrinsics: FloatArray) -> None:
    focal, _ = split_intrinsics(intrinsics)
    bad = ~(np.isfinite(intrinsics).all(axis=(1, 2)) & (np.asarray(focal) > 0).all(axis=1))
    if bad.any():
        raise ValueError(f"the intrinsics of pose {int(bad.argmax())} are not finite, or not positive")


def read_lens(text: str, *, height: int, width: int, num_frames: int) -> FloatArray:
    """Intrinsics (num_frames, 3, 3) for a height x width picture from an option.

    Args:
        text: `fov=70` (horizontal degrees, centred), `fx,fy,cx,cy` in pixels of the picture, or a `.npy` file of
            `(4,)`, `(3, 3)`, `(F, 4)` or `(F, 3, 3)`.
    Raises:
        ValueError: none of these.
    """
    found = _read_lens(text.strip(), height=height, width=width, num_frames=num_frames)
    try:
        _check_lens(found)
    except ValueError as error:
        raise ValueError(f"intrinsics {text!r}: {error}") from None
    return found


def _read_lens(text: str, *, height: int, width: int, num_frames: int) -> FloatArray:
    if match := re.fullmatch(r"fov[=:](.+)", text, re.IGNORECASE):
        try:
            degrees = float(match[1])
        except ValueError:
            degrees = math.nan
        if not 0 < degrees < 180:
            raise ValueError(f"intrinsics {text!r}: give degrees between 0 and 180, as in fov=70")
        focal = float(focal_from_fov(np.array(math.radians(degrees)), width))
        return lenses_of([focal, focal, width / 2, height / 2], num_frames, Path(text))
    words = text.split(",")
    if len(words) == 4:
        try:
            return lenses_of([float(w) for w in words], num_frames, Path(text))
        except ValueError:
            raise ValueError(f"intrinsics {text!r}: expected four numbers fx,fy,cx,cy") from None
    if not text or not path_exists(Path(text)):
        raise ValueError(f"intrinsics {text!r}: neither fov=DEGREES, nor fx,fy,cx,cy, nor a .npy file")
    return lenses_of(load_array(Path(text)), num_frames, Path(text))


def lens_of_picture(path: CameraPath, *, height: int, width: int) -> FloatArray | None:
    """Intrinsics (F, 3, 3) of a path for a height x width picture, or None if it has none.

    Raises:
        ValueError: they are of a picture of another shape, or cannot be of this one.
    """
    k = path.intrinsics_px
    if k is None:
        return None
    if path.height and path.width:
        if abs(path.width / path.height / (width / height) - 1) > 0.02:
            raise ValueError(
                f"camera {path.origin}: its intrinsics are of pictures of {path.width}x{path.height}, the image is "
                f"{width}x{height}: another shape. Crop the image, or give --intrinsics"
            )
        k = np.asarray(resize_intrinsics(k, from_size=(path.height, path.width), to_size=(height, width)))
    _check_centre(k, height, width, path.origin)
    return k


def _check_centre(k: FloatArray, height: int, width: int, origin: str) -> None:
    centre = k[:, :2, 2] / np.array([width, height])
    bad = ((centre < 0.05) | (centre > 0.95)).any(axis=1)
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(
            f"camera {origin}: the principal point of frame {i} is {k[i, 0, 2]:.5g}, {k[i, 1, 2]:.5g} px in "
            f"an image of {width}x{height}: intrinsics must be in pixels of this image"
        )


def check_fov(intrinsics_px: FloatArray, *, height: int, width: int) -> tuple[float, float]:
    """Least and largest horizontal field of view in degrees of (F, 3, 3) for the model's picture.

    Raises:
        ValueError: either axis leaves 25 to 120 degrees on some frame.
    """
    focal, _ = split_intrinsics(intrinsics_px)
    if not (np.isfinite(np.asarray(focal)).all() and (np.asarray(focal) > 0).all()):
        raise ValueError("focal lengths must be finite and positive")
    for axis, (size, label) in enumerate(((width, "horizontal"), (height, "vertical"))):
        fov = np.degrees(np.asarray(fov_from_focal(np.asarray(focal)[:, axis], size)))
        bad = (fov < FOV_RANGE_DEG[0]) | (fov > FOV_RANGE_DEG[1])
        if bad.any():
            i = int(bad.argmax())
            raise ValueError(
                f"the {label} field of view of frame {i} is {fov[i]:.1f} degrees in the model's "
                f"{width}x{height} picture; the model takes {FOV_RANGE_DEG[0]:g} to {FOV_RANGE_DEG[1]:g}: "
                "give --intrinsics, for example fov=60"
            )
    wide = np.degrees(np.asarray(fov_from_focal(np.asarray(focal)[:, 0], width)))
    return float(wide.min()), float(wide.max())


@dataclass(frozen=True, kw_only=True)
class PathFigures:
    """Numbers of a prepared path: metres, seconds, degrees."""

    num_frames: int
    duration_s: float
    length_m: float
    max_speed_m_s: float
    max_turn_deg_s: float
    turned_deg: float
    farthest_m: float


def path_figures(path: CameraPath) -> PathFigures:
    """What to say of a prepared path."""
    poses = path.camera_to_world
    step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    turn = np.degrees(np.asarray(rotation_angle(np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3])))
    dt = np.diff(path.time_s)
    return PathFigures(
        num_frames=len(path),
        duration_s=path.duration_s,
        length_m=float(step.sum()),
        max_speed_m_s=float((step / dt).max(initial=0.0)),
        max_turn_deg_s=float((turn / dt).max(initial=0.0)),
        turned_deg=float(turn.sum()),
        farthest_m=float(np.linalg.norm(poses[:, :3, 3] - poses[0, :3, 3], axis=1).max()),
    )
