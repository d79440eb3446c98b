"""nerfstudio `transforms.json`: camera-to-world with OpenGL camera axes, intrinsics per frame."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arrays import FloatArray
from ..cameras.rotations import orthonormalise
from ..cameras.transforms import opencv_to_opengl, opengl_to_opencv, rigid_error, to_4x4, transform
from ..inputs import read_json, reader
from ..names import as_name
from .base import CameraClip
from .colmap import ColmapPoints

RIGID_TOLERANCE = 2e-3
"""Largest entry of |R^T R - I| and of |det R - 1| that float32 storage and rounding in text explain; what lies above is
another kind of matrix."""
OnDistortion = Literal["error", "drop", "keep_focal"]
_ANGLES = {"fl_x": ("camera_angle_x", "w"), "fl_y": ("camera_angle_y", "h")}
"""Where a file gives the field of view (radians) instead of a focal length, and the side it spans."""


def write_nerfstudio(clip: CameraClip, folder: str | Path, *, points: ColmapPoints | None = None) -> Path:
    """Write `<folder>/transforms.json`, and `sparse_pc.ply` if there are points; frames refer to `images/<name>`.
    Returns the former.

    The world is the clip's own (no `applied_transform`). nerfstudio's loader re-centres and rescales poses
    unless told otherwise (`--orientation-method none --center-method none --auto-scale-poses False`). Radial
    distortion is `k1` and `k2` of the clip's cameras: none beside pictures that were undistorted.
    """
    names = clip.image_names or tuple(f"frame_{i + 1:05d}.png" for i in range(len(clip)))
    gl = opencv_to_opengl(clip.camera_to_world)
    frames: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        frame: dict[str, Any] = {
            "file_path": f"images/{name}",
            "transform_matrix": gl[i].tolist(),
            "w": clip.width,
            "h": clip.height,
            "fl_x": float(clip.focal_px[i, 0]),
            "fl_y": float(clip.focal_px[i, 1]),
            "cx": float(clip.principal_point_px[i, 0]),
            "cy": float(clip.principal_point_px[i, 1]),
        }
        if clip.time_s is not None:
            frame["time"] = float(clip.time_s[i])
        frames.append(frame)
    content: dict[str, Any] = {
        "camera_model": "OPENCV",
        "w": clip.width,
        "h": clip.height,
        "k1": float(clip.radial_k1 or 0.0),
        "k2": float(clip.radial_k2 or 0.0),
        "p1": 0.0,
        "p2": 0.0,
        "frames": frames,
    }
    target = Path(folder) / "transforms.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    if points is not None and len(points.points_world):
        content["ply_file_path"] = "sparse_pc.ply"
        _write_ply(points, target.parent / "sparse_pc.ply")
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return target


def _write_ply(points: ColmapPoints, path: Path) -> None:
    """Binary PLY of the points in the world of the poses."""
    layout = [(axis, "<f4") for axis in "xyz"] + [(colour, "u1") for colour in ("red", "green", "blue")]
    vertices = np.zeros(len(points.points_world), dtype=layout)
    grey = np.full((len(vertices), 3), 128, np.uint8)
    colours = grey if points.colour is None else points.colour
    for i in range(3):
        vertices["xyz"[i]] = points.points_world[:, i]
        vertices[layout[3 + i][0]] = colours[:, i]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {name}" for name, _ in layout[3:]]
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + vertices.tobytes())


@reader("transforms.json")
def read_nerfstudio(
    path: str | Path,
    *,
    name: str | None = None,
    image_size: tuple[int, int] | None = None,
    undo_applied_transform: bool = False,
    on_distortion: OnDistortion = "error",
) -> CameraClip:
    """Cameras of a `transforms.json`, frames sorted by the numbers in their names.

    Args:
        image_size: (height, width) of the images that will be used, when they are smaller than the size in
            the file (DL3DV states 4K beside images_4): intrinsics are rescaled.
        on_distortion: `drop` keeps k1 and k2 and forgets k3, p1, p2 (phone lenses: some pixels at the corners);
            `keep_focal` takes focal length and principal point of any lens model and forgets how it bends (for poses,
            whatever the lens); `error` refuses.
        undo_applied_transform: return to the world before nerfstudio's change of world axes and unit (to match COLMAP
            points).
    Raises:
        ValueError: missing fields, unsupported lens models, or distortion beyond k1 and k2 that is not negligible.
    """
    path = Path(path)
    content = read_json(path)
    model = content.get("camera_model", "OPENCV")
    if on_distortion != "keep_focal" and model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"{path}: camera_model {model} is not supported; undistort to a pinhole first")
    listed = content.get("frames")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: holds no frames")
    if not all(isinstance(f, dict) and isinstance(f.get("file_path"), str) for f in listed):
        raise ValueError(f"{path}: every frame must be an object with a file_path")
    frames: list[dict[str, Any]] = sorted(listed, key=lambda f: _natural(f["file_path"]))

    def value(frame: dict[str, Any], key: str) -> float:
        if key in frame or key in content:
            return _number(frame[key] if key in frame else content[key], key, path)
        axis = _ANGLES.get(key)
        if axis is not None and (axis[0] in frame or axis[0] in content):
            angle = _number(frame[axis[0]] if axis[0] in frame else content[axis[0]], axis[0], path)
            return 0.5 * value(frame, axis[1]) / float(np.tan(0.5 * angle))
        if key == "fl_y":  # one focal length for both axes
            return value(frame, "fl_x")
        raise ValueError(
            f"{path}: {key} is given neither for frame {frame.get('file_path')!r} nor for the whole file"
        )

    width, height = round(value(frames[0], "w")), round(value(frames[0], "h"))
    focal = np.array([[value(f, "fl_x"), value(f, "fl_y")] for f in frames])
    centre = np.array([[value(f, "cx"), value(f, "cy")] for f in frames])
    matrix = _matrices(frames, path)
    if undo_applied_transform and "applied_scale" in content:  # was applied after the change of axes
        scale = _number(content["applied_scale"], "applied_scale", path)
        if scale <= 0:
            raise ValueError(f"{path}: applied_scale {scale:g} is no scale")
        matrix[:, :3, 3] /= scale
    if undo_applied_transform and "applied_transform" in content:
        matrix = np.linalg.inv(_applied_transform(content["applied_transform"], path)) @ matrix
    _require_rigid(matrix, "transform_matrix", path)
    k1, k2 = _radial_terms(content, path, on_distortion)
    clip = CameraClip(
        name=name or as_name(path.resolve().parent.name),
        camera_to_world=opengl_to_opencv(transform(orthonormalise(matrix[:, :3, :3]), matrix[:, :3, 3])),
        focal_px=focal,
        principal_point_px=centre,
        height=height,
        width=width,
        radial_k1=k1 if k1 or k2 else None,
        radial_k2=k2 or None,
        time_s=_times(frames, path),
        image_names=tuple(Path(f["file_path"]).name for f in frames),
    )
    return clip if image_size is None else clip.resized(height=image_size[0], width=image_size[1])


def _times(frames: list[dict[str, Any]], path: Path) -> FloatArray | None:
    """(F,) seconds, if every frame has a time."""
    if not all("time" in f for f in frames):
        return None
    return np.array([_number(f["time"], "time", path) for f in frames])


def _matrices(frames: list[dict[str, Any]], path: Path) -> FloatArray:
    """(F, 4, 4) as they stand in the file."""
    rows = []
    for frame in frames:
        try:
            matrix = np.asarray(frame["transform_matrix"], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            matrix = np.zeros(0)
        if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
            raise ValueError(
                f"{path}: frame {frame.get('file_path')!r} has no transform_matrix of 4x4 or 3x4 finite numbers"
            )
        rows.append(matrix[:3])
    return to_4x4(np.array(rows))


def _applied_transform(value: Any, path: Path) -> FloatArray:
    """(4, 4) change of world axes; nerfstudio writes its upper three rows."""
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise ValueError(f"{path}: applied_transform must hold 3x4 numbers, found {value!r}")
    applied = to_4x4(matrix[:3])
    _require_rigid(applied[None], "applied_transform", path)
    return applied


def _require_rigid(matrix: FloatArray, what: str, path: Path) -> None:
    error = np.asarray(rigid_error(matrix))
    bad = np.flatnonzero(~(error <= RIGID_TOLERANCE))
    if len(bad):
        i = int(bad[0])
        det = float(np.linalg.det(matrix[i, :3, :3]))
        found = f"a scale of {det ** (1 / 3):.4g}" if det > 0 else f"a reflection (determinant {det:.4g})"
        if abs(det - 1) < RIGID_TOLERANCE:
            found = f"no rotation (off by {error[i]:.2g})"
        raise ValueError(f"{path}: {what} carries {found} in entry {i}; expected rigid poses")


def _radial_terms(content: dict[str, Any], path: Path, on_distortion: OnDistortion) -> tuple[float, float]:
    """k1 and k2."""
    if on_distortion == "keep_focal":
        return 0.0, 0.0
    further = {k: _number(content.get(k) or 0.0, k, path) for k in ("k3", "p1", "p2")}
    if on_distortion == "error" and any(abs(v) > 1e-9 for v in further.values()):
        terms = ", ".join(f"{k}={v:g}" for k, v in further.items() if v)
        raise ValueError(
            f"{path}: lens distortion beyond k1 and k2 ({terms}); undistort the images to a pinhole first"
        )
    return _number(content.get("k1") or 0.0, "k1", path), _number(content.get("k2") or 0.0, "k2", path)


def _number(value: Any, what: str, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{path}: {what} is {value!r}, expected a number")
    return number


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
