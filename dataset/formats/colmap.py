"""COLMAP models, text and binary: world-to-camera, scalar-first quaternions, a camera for every lens that occurs.

Source of the layout: COLMAP documentation, "Output format"; camera models of src/colmap/sensor/models.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from ..cameras.rotations import quaternion_wxyz_from_rotation, rotation_from_quaternion_wxyz
from ..cameras.transforms import se3_inverse, transform
from ..inputs import InputError, read_bytes, read_text, reader
from .base import CameraClip

# name -> (number in binary files, count of parameters)
_MODELS = {
    "SIMPLE_PINHOLE": (0, 3),
    "PINHOLE": (1, 4),
    "SIMPLE_RADIAL": (2, 4),
    "RADIAL": (3, 5),
    "OPENCV": (4, 8),
    "OPENCV_FISHEYE": (5, 8),
    "FULL_OPENCV": (6, 12),
    "FOV": (7, 5),
    "SIMPLE_RADIAL_FISHEYE": (8, 4),
    "RADIAL_FISHEYE": (9, 5),
    "THIN_PRISM_FISHEYE": (10, 12),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, 16),
}
_SAME_LENS_PX = 0.01
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")


@dataclass(frozen=True, kw_only=True, eq=False)
class ColmapPoints:
    """Scene points with their image observations.

    Attributes:
        points_world: (P, 3).
        frame, point: (N,) observation `i` sees point `point[i]` in frame `frame[i]` at `xy_px[i]`.
        xy_px: (N, 2), pixel centres at +0.5.
        colour: (P, 3) uint8, or None for grey.
    """

    points_world: FloatArray
    frame: NDArray[np.integer]
    point: NDArray[np.integer]
    xy_px: FloatArray
    colour: NDArray[np.uint8] | None = None


def write_colmap(
    clip: CameraClip, folder: str | Path, *, binary: bool = False, points: ColmapPoints | None = None
) -> Path:
    """Write `<folder>/sparse/0/{cameras,images,points3D}.{txt,bin}` and return that inner folder.

    Radial distortion becomes COLMAP's OPENCV model with k1 and k2 (images stay as they are), otherwise PINHOLE. Frame
    `i` is image `i + 1`; frames of the same intrinsics share a camera, so a zooming lens has one a frame and one that
    does not (by its row, or to a hundredth of a pixel) a single one.
    """
    target = Path(folder) / "sparse" / "0"
    target.mkdir(parents=True, exist_ok=True)
    w2c = se3_inverse(clip.camera_to_world)
    quaternion, shift = quaternion_wxyz_from_rotation(w2c[:, :3, :3]), w2c[:, :3, 3]
    model = "PINHOLE" if clip.radial_k1 is None else "OPENCV"
    params = np.concatenate([clip.focal_px, clip.principal_point_px], axis=1)
    if clip.radial_k1 is not None:
        terms = [clip.radial_k1, clip.radial_k2 or 0.0, 0.0, 0.0]
        params = np.concatenate([params, np.tile(terms, (len(clip), 1))], axis=1)
    names = clip.image_names or tuple(f"{i:06d}.png" for i in range(len(clip)))
    check_image_names(clip.name, names, binary=binary)
    params = _one_lens(params, clip)
    numbers: dict[bytes, int] = {}
    camera = [numbers.setdefault(p.tobytes(), len(numbers)) for p in params]
    lenses = params[[camera.index(i) for i in range(len(numbers))]]
    # Observations of each frame in order; their place in it is COLMAP's POINT2D_IDX.
    per_frame: list[list[int]] = [[] for _ in names]
    place: dict[int, tuple[int, int]] = {}
    if points is not None:
        for i, f in enumerate(points.frame):
            place[i] = (int(f), len(per_frame[f]))
            per_frame[f].append(i)
    write = _write_binary if binary else _write_text
    errors = None if points is None else _errors_px(clip, points)
    poses = np.concatenate([quaternion, shift], axis=1)
    write(target, clip, _Model(model, lenses, camera, poses, names, points, errors, per_frame, place))
    return target


class _Model(NamedTuple):
    """What the three files of a model hold.

    Attributes:
        name: of COLMAP's camera model. lenses: (L, P) its parameters, one row a camera.
        camera: of each image. poses: (F, 7) quaternion, w first, and shift, world to camera.
        errors: (P,) pixels, of each point.
        per_frame: observations of each image. place: image and index in it of each observation.
    """

    name: str
    lenses: FloatArray
    camera: list[int]
    poses: FloatArray
    names: tuple[str, ...]
    points: ColmapPoints | None
    errors: FloatArray | None
    per_frame: list[list[int]]
    place: dict[int, tuple[int, int]]


def _one_lens(params: FloatArray, clip: CameraClip) -> FloatArray:
    """Intrinsics of all frames, made the same where the lens is known to stay, or no pixel of the image moves by more
    than `_SAME_LENS_PX`."""
    middle = np.median(params, axis=0)
    apart = np.abs(params - middle).max(axis=0)
    reach = np.hypot(clip.width, clip.height) / middle[:2]  # of the image in units of focal length
    moved = np.hypot(*(apart[:2] * reach + apart[2:4]))
    same = clip.constant_lens or moved <= _SAME_LENS_PX
    return np.tile(middle, (len(params), 1)) if same else params


def check_image_names(clip_id: str, names: Sequence[str], *, binary: bool) -> None:
    """COLMAP splits its text files at blanks and lines, its binary ones at zero bytes.

    Raises:
        ValueError: naming the first image that they cannot hold.
    """
    for name in names:
        if not name or "\0" in name or (not binary and re.search(r"\s", name)):
            raise ValueError(
                f"clip {clip_id}: image {name!r} has a blank in its name, which COLMAP's text files cannot hold; "
                "write the binary ones, or rename the images"
            )


def _errors_px(clip: CameraClip, points: ColmapPoints) -> FloatArray:
    """(P,) mean distance of each point's projections from its observations; -1 (COLMAP's unknown) without any."""
    seen, frame = points.points_world[points.point], points.frame
    in_camera = seen - clip.camera_to_world[frame, :3, 3]
    in_camera = np.einsum("nji,nj->ni", clip.camera_to_world[frame, :3, :3], in_camera)
    n = in_camera[:, :2] / in_camera[:, 2:]
    r2 = (n**2).sum(1, keepdims=True)
    n = n * (1 + r2 * ((clip.radial_k1 or 0.0) + r2 * (clip.radial_k2 or 0.0)))
    distance = np.linalg.norm(
        clip.focal_px[frame] * n + clip.principal_point_px[frame] - points.xy_px, axis=1
    )
    count = np.bincount(points.point, minlength=len(points.points_world))
    total = np.bincount(points.point, weights=distance, minlength=len(points.points_world))
    return np.where(count > 0, total / np.maximum(count, 1), -1.0)


def _tracks(points: ColmapPoints, place: dict[int, tuple[int, int]]) -> list[list[tuple[int, int]]]:
    tracks: list[list[tuple[int, int]]] = [[] for _ in points.points_world]
    for i, p in enumerate(points.point):
        frame, index = place[i]
        tracks[int(p)].append((frame + 1, index))
    return tracks


def _colours(points: ColmapPoints) -> NDArray[np.uint8]:
    return np.full((len(points.points_world), 3), 128, np.uint8) if points.colour is None else points.colour


def _write_text(target: Path, clip: CameraClip, model: _Model) -> None:
    points, errors = model.points, model.errors

    def numbers(values) -> str:
        return " ".join(repr(float(v)) for v in values)

    cameras = [
        f"{i + 1} {model.name} {clip.width} {clip.height} {numbers(p)}" for i, p in enumerate(model.lenses)
    ]
    (target / "cameras.txt").write_text(
        "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]\n" + "\n".join(cameras) + "\n"
    )
    images = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", "# POINTS2D[] as X Y POINT3D_ID"]
    for i, name in enumerate(model.names):
        images.append(f"{i + 1} {numbers(model.poses[i])} {model.camera[i] + 1} {name}")
        if points is None:
            images.append("")
            continue
        images.append(
            " ".join(f"{numbers(points.xy_px[o])} {int(points.point[o]) + 1}" for o in model.per_frame[i])
        )
    (target / "images.txt").write_text("\n".join(images) + "\n", encoding="utf-8")
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[] as IMAGE_ID POINT2D_IDX"]
    if points is not None and errors is not None:
        colours = _colours(points)
        for j, track in enumerate(_tracks(points, model.place)):
            seen = " ".join(f"{image} {index}" for image, index in track)
            rgb = " ".join(str(int(c)) for c in colours[j])
            lines.append(f"{j + 1} {numbers(points.points_world[j])} {rgb} {float(errors[j])!r} {seen}")
    (target / "points3D.txt").write_text("\n".join(lines) + "\n")


def _write_binary(target: Path, clip: CameraClip, model: _Model) -> None:
    points, errors = model.points, model.errors
    out = bytearray(struct.pack("<Q", len(model.lenses)))
    for i, p in enumerate(model.lenses):
        out += (
            struct.pack("<iiQQ", i + 1, _MODELS[model.name][0], clip.width, clip.height)
            + np.asarray(p, "<f8").tobytes()
        )
    (target / "cameras.bin").write_bytes(out)
    out = bytearray(struct.pack("<Q", len(model.names)))
    for i, name in enumerate(model.names):
        out += struct.pack("<i7di", i + 1, *model.poses[i], model.camera[i] + 1) + name.encode() + b"\0"
        seen = [] if points is None else model.per_frame[i]
        out += struct.pack("<Q", len(seen))
        for o in seen:
            assert points is not None
            out += struct.pack("<ddq", *points.xy_px[o], int(points.point[o]) + 1)
    (target / "images.bin").write_bytes(out)
    out = bytearray(struct.pack("<Q", 0 if points is None else len(points.points_world)))
    if points is not None and errors is not None:
        colours = _colours(points)
        for j, track in enumerate(_tracks(points, model.place)):
            out += struct.pack(
                "<q3d3Bd", j + 1, *points.points_world[j], *(int(c) for c in colours[j]), errors[j]
            )
            out += struct.pack("<Q", len(track)) + b"".join(struct.pack("<ii", *pair) for pair in track)
    (target / "points3D.bin").write_bytes(out)


def has_colmap_model(folder: Path) -> bool:
    """Whether `read_colmap` finds a model in a folder."""
    return _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    inner = ("", "sparse/0", "colmap/sparse/0", "sparse")
    return next((f for name in inner if _has_model(f := folder / name)), None)


@reader("COLMAP model")
def read_colmap(
    folder: str | Path, *, name: str | None = None, on_lens: Literal["error", "keep_focal"] = "error"
) -> CameraClip:
    """Cameras of a COLMAP model folder (text or binary), images in order of their names.

    Args:
        folder: holds cameras.* and images.* itself, or in sparse/0.
        on_lens: what to do about lenses that k1 and k2 alone do not describe: `error`, or `keep_focal` to take focal
            length and principal point and forget the distortion of all images (for poses, whatever the lens).
    Raises:
        ValueError: missing or damaged files, unsupported lens models, images of different sizes, or different
            distortion from image to image.
    """
    folder = Path(folder)
    model = _model_folder(folder)
    if model is None:
        raise ValueError(f"{folder}: no cameras.bin or cameras.txt here or in sparse/0")
    binary = (model / "cameras.bin").is_file()
    cameras = dict(_cameras_bin(model / "cameras.bin") if binary else _cameras_txt(model / "cameras.txt"))
    images = sorted(
        _images_bin(model / "images.bin") if binary else _images_txt(model / "images.txt"), key=lambda i: i[3]
    )
    if not images:
        raise ValueError(f"{model}: the model holds no images")
    sizes, focal, centre, terms = set(), [], [], set()
    for _q, _t, camera_id, image_name in images:
        if camera_id not in cameras:
            raise ValueError(f"{model}: image {image_name} names camera {camera_id}, which does not exist")
        kind, width, height, p = cameras[camera_id]
        sizes.add((width, height))
        f, c = _focal_and_centre(kind, p)
        k = _radial_terms(kind, p, model) if on_lens == "error" else (0.0, 0.0)
        focal.append(f)
        centre.append(c)
        terms.add(k)
    if len(sizes) > 1 or len(terms) > 1:
        raise ValueError(
            f"{model}: images have sizes {sorted(sizes)} and radial terms {sorted(terms)}; one of each is needed"
        )
    rotation = rotation_from_quaternion_wxyz(np.array([i[0] for i in images]))
    w2c = transform(rotation, np.array([i[1] for i in images]))
    ((width, height),), ((k1, k2),) = sizes, terms
    return CameraClip(
        name=name or "clip",
        camera_to_world=se3_inverse(w2c),
        focal_px=np.array(focal),
        principal_point_px=np.array(centre),
        height=height,
        width=width,
        radial_k1=k1 if k1 or k2 else None,
        radial_k2=k2 or None,
        image_names=tuple(i[3] for i in images),
    )


def colmap_distortions(folder: str | Path) -> list[tuple[float, float, float, float]]:
    """OpenCV's k1, k2, p1, p2 of every lens of a model.

    Raises:
        ValueError: a lens that these four do not describe (a fisheye).
    """
    model = _model_folder(Path(folder))
    if model is None:
        raise ValueError(f"{folder}: no cameras.bin or cameras.txt here or in sparse/0")
    binary = (model / "cameras.bin").is_file()
    cameras = dict(_cameras_bin(model / "cameras.bin") if binary else _cameras_txt(model / "cameras.txt"))
    found = []
    for kind, _, _, p in cameras.values():
        own = {
            "SIMPLE_PINHOLE": (),
            "PINHOLE": (),
            "SIMPLE_RADIAL": p[3:4],
            "RADIAL": p[3:5],
            "OPENCV": p[4:8],
        }
        if kind not in own:
            raise ValueError(f"{model}: lens model {kind}; undistort the images to a pinhole first")
        k1, k2, p1, p2 = (*map(float, own[kind]), 0.0, 0.0, 0.0, 0.0)[:4]
        found.append((k1, k2, p1, p2))
    return found


def _has_model(folder: Path) -> bool:
    return any(
        (folder / f"cameras.{e}").is_file() and (folder / f"images.{e}").is_file() for e in ("bin", "txt")
    )


def _radial_terms(kind: str, p: FloatArray, where: Path) -> tuple[float, float]:
    """k1 and k2."""
    if kind in ("SIMPLE_PINHOLE", "PINHOLE"):
        return 0.0, 0.0
    if kind == "SIMPLE_RADIAL":
        return float(p[3]), 0.0
    if kind == "RADIAL":
        return float(p[3]), float(p[4])
    if kind == "OPENCV" and not np.any(p[6:]):
        return float(p[4]), float(p[5])
    raise ValueError(
        f"{where}: {kind} with parameters {list(map(float, p))}: only k1 and k2 are kept; undistort first"
    )


def _focal_and_centre(kind: str, p: FloatArray) -> tuple[tuple[float, float], tuple[float, float]]:
    if kind in _ONE_FOCAL:
        return (p[0], p[0]), (p[1], p[2])
    return (p[0], p[1]), (p[2], p[3])


_Camera = tuple[str, int, int, FloatArray]
_Image = tuple[tuple[float, ...], tuple[float, ...], int, str]


def _cameras_txt(path: Path) -> Iterator[tuple[int, _Camera]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) < 5 or words[1] not in _MODELS or len(words) != 4 + _MODELS[words[1]][1]:
            raise ValueError(
                f"{path}:{number}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS[] with {sorted(_MODELS)}"
            )
        yield int(words[0]), (words[1], int(words[2]), int(words[3]), np.array(words[4:], dtype=np.float64))


def _images_txt(path: Path) -> Iterator[_Image]:
    lines = [line for line in read_text(path).splitlines() if not line.startswith("#")]
    # Two lines an image; the second may be empty, so blank lines count.
    for i in range(0, len(lines) - 1, 2):
        words = lines[i].split(maxsplit=9)
        if len(words) != 10:
            raise ValueError(
                f"{path}: {lines[i][:60]!r}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
            )
        q, t = tuple(map(float, words[1:5])), tuple(map(float, words[5:8]))
        yield q, t, int(words[8]), words[9]


def _cameras_bin(path: Path) -> Iterator[tuple[int, _Camera]]:
    names = {number: (name, count) for name, (number, count) in _MODELS.items()}
    reader = _Bytes(path)
    for _ in range(reader.take("<Q")[0]):
        camera_id, number, width, height = reader.take("<iiQQ")
        if number not in names:
            raise ValueError(f"{path}: camera {camera_id} has model {number}; supported: {sorted(_MODELS)}")
        kind, count = names[number]
        yield camera_id, (kind, width, height, np.array(reader.take(f"<{count}d")))


def _images_bin(path: Path) -> Iterator[_Image]:
    reader = _Bytes(path)
    for _ in range(reader.take("<Q")[0]):
        values = reader.take("<i7di")
        name = reader.text()
        reader.skip(24 * reader.take("<Q")[0])
        yield values[1:5], values[5:8], values[8], name


class _Bytes:
    """Cursor over a binary file that names it when the file ends too early."""

    def __init__(self, path: Path) -> None:
        self._path, self._data, self._at = path, read_bytes(path), 0

    def take(self, layout: str) -> tuple:
        try:
            values = struct.unpack_from(layout, self._data, self._at)
        except struct.error:
            raise InputError(
                f"{self._path}: ends at byte {len(self._data)} in the middle of a record"
            ) from None
        self._at += struct.calcsize(layout)
        return values

    def text(self) -> str:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise ValueError(f"{self._path}: ends in the middle of an image name")
        value = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end + 1
        return value

    def skip(self, count: int) -> None:
        if self._at + count > len(self._data):
            raise InputError(f"{self._path}: ends at byte {len(self._data)} in the middle of a record")
        self._at += count
