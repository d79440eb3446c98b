"""Cameras in the layouts in which public video sets ship them, read into one convention.

A wrong guess at any of their conventions still looks like a camera path: OmniWorld and SpatialVID store world-to-camera
(one with scalar-first, one with scalar-last quaternions), DL3DV camera-to-world with OpenGL axes and, in its
ColmapCache, world-to-camera with OpenCV axes, Sekai-Game camera-to-world with OpenCV axes in a file that calls them
extrinsics. Some cover every frame, some every sixth. The readers turn each into `ShippedCameras` and refuse files that
cannot be what they claim to be.

Source of the conventions: the sets' own repositories and data cards (OmniWorld scripts/utils.py, SpatialVID
utils/quat_to_mat.py and utils/normalize_intrinsics.py, DL3DV-10K issues 4, 18 and 32, sekai-codebase).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import FloatArray
from ..cameras.intrinsics import intrinsics_matrix
from ..cameras.rotations import orthonormalise, rotation_from_quaternion_wxyz
from ..cameras.transforms import rigid_error, se3_inverse, transform
from ..inputs import parse_json, read_json, read_npy, read_npz, read_text, reader
from .base import CameraClip
from .colmap import colmap_distortions, read_colmap
from .nerfstudio import RIGID_TOLERANCE, read_nerfstudio
from .sana import focal_and_centre

CamerasFormat = Literal[
    "omniworld", "dl3dv", "colmap", "sekai-game", "spatialvid", "rendered", "gaussian-splats", "sana-wm"
]
FORMATS: tuple[CamerasFormat, ...] = get_args(CamerasFormat)

_DROPPED_DISTORTION = 0.01
"""Largest displacement, as a share of the diagonal, by distortion that is dropped (a phone's: 0.6 % in a corner)."""
NORMALISED = (1, 1)
"""`image_size` of intrinsics that are fractions of width and height."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShippedCameras:
    """Cameras of one clip as its source ships them.

    Attributes:
        camera_to_world: (N, 4, 4) float64 rigid, OpenCV axes, in the source's own unit of length.
        intrinsics: (N, 3, 3) for images of `image_size`.
        image_size: (height, width) that the intrinsics are for; `NORMALISED` for fractions of the image; None: that of
            the images they were shipped with.
        frame_number: (N,) int64, strictly increasing: the frame that each camera belongs to.
        numbering: what that number counts. `frames`: decoded frames of the video from 0, or images by the number in
            their name. `stills`: images by the number in their name and nothing else (stills drawn from a video whose
            frames are counted differently).
        complete: the source promises a camera for every frame of its video.
    """

    camera_to_world: FloatArray
    intrinsics: FloatArray
    image_size: tuple[int, int] | None
    frame_number: NDArray[np.int64]
    numbering: Literal["frames", "stills"]
    complete: bool = False

    def __len__(self) -> int:
        return len(self.frame_number)


def read_shipped(path: str | Path, format: CamerasFormat, *, key: str | None = None) -> ShippedCameras:
    """Cameras of `path` in a named layout.

    Args:
        path: `omniworld`: `<scene>/camera/split_N.json`, with `<scene>/split_info.json` where the release puts it;
            `dl3dv`: `transforms.json`; `sekai-game`: the clip's `.npz`; `spatialvid`: the folder with `poses.npy`,
            `intrinsics.npy` and `indexes.txt`; `colmap`: the folder of a model; `rendered`: the folder with `poses.npy`
            and `intrinsics.npy`; `gaussian-splats`: `cameras.json`; `sana-wm`: `<stem>_camera.npz`.
        key: which clip, where a file holds several (`sana-wm`).
    Raises:
        ValueError: naming the file, what was found in it, and what to do.
    """
    readers: dict[str, Callable[[str | Path], ShippedCameras]] = {
        "omniworld": read_omniworld,
        "dl3dv": read_dl3dv,
        "colmap": read_colmap_stills,
        "sekai-game": read_sekai_game,
        "spatialvid": read_spatialvid,
        "rendered": read_rendered,
        "gaussian-splats": read_gaussian_splats,
        "sana-wm": partial(read_sana_wm, key=key),
    }
    if format not in readers:
        raise ValueError(f"{path}: unknown format of cameras {format!r}; known: {', '.join(FORMATS)}")
    return reader(f"file of cameras in the layout {format}")(readers[format])(path)


def read_omniworld(path: str | Path) -> ShippedCameras:
    """One split of an OmniWorld-Game scene: `camera/split_N.json`.

    Every split has a world of its own, so two are never joined. Its rows belong to the frames that
    `split_info.json` lists: numbers of the scene's `color/` images.

    Raises:
        ValueError: files missing or damaged, lengths that differ, quaternions off unit length.
    """
    path = Path(path)
    match = re.fullmatch(r"split_(\d+)\.json", path.name)
    if match is None:
        raise ValueError(f"{path}: expected the cameras of one split, camera/split_N.json")
    number = int(match[1])
    info_path = path.parent.parent / "split_info.json"
    splits = _member(read_json(info_path), "split", info_path)
    if not isinstance(splits, list) or number >= len(splits):
        found = f"{len(splits)} splits" if isinstance(splits, list) else type(splits).__name__
        raise ValueError(f"{info_path}: {found}, but {path.name} is asked for")
    content = read_json(path)
    quaternion = _numbers(_member(content, "quats", path), path, "quats", (None, 4))
    shift = _numbers(_member(content, "trans", path), path, "trans", (None, 3))
    focal = _numbers(_member(content, "focals", path), path, "focals", (None,))
    centre = _numbers([_member(content, "cx", path), _member(content, "cy", path)], path, "cx, cy", (2,))
    frames = _frame_numbers(splits[number], info_path, f"split {number}")
    _same_length(path, quats=len(quaternion), trans=len(shift), focals=len(focal), frames=len(frames))
    _unit_length(quaternion, path, "quats (scalar first)")
    world_to_camera = transform(rotation_from_quaternion_wxyz(quaternion), shift)
    return ShippedCameras(
        camera_to_world=se3_inverse(world_to_camera),
        intrinsics=_intrinsics(np.stack([focal, focal], 1), np.tile(centre, (len(focal), 1)), path),
        image_size=None,
        frame_number=frames,
        numbering="frames",
    )


def read_dl3dv(path: str | Path) -> ShippedCameras:
    """A DL3DV scene's `transforms.json` (nerfstudio, COLMAP scale).

    The world is COLMAP's again (`applied_transform` undone). Intrinsics are for the size in the file, whatever the size
    of the images beside it. Cameras belong to stills by the number in their name; stills are some 4 to 5 a second of a
    video that they do not number. Distortion is left to who solves the clip with one radial term; a lens that this
    term misses by more than 1 % of the diagonal anywhere is refused.

    Raises:
        ValueError: as `read_nerfstudio`; names without a number or with the same one; distortion that is more than
            one radial term.
    """
    path = Path(path)
    clip = read_nerfstudio(path, undo_applied_transform=True, on_distortion="drop")
    assert clip.image_names is not None, "read_nerfstudio always names the images"
    content = read_json(path)
    terms = tuple(float(content.get(name) or 0.0) for name in ("k1", "k2", "p1", "p2", "k3"))
    _require_one_radial_term(terms, clip, path)
    return _stills(clip, path)


def read_colmap_stills(folder: str | Path) -> ShippedCameras:
    """A COLMAP model of stills that were drawn from a video (DL3DV's ColmapCache), in COLMAP's own world and scale.

    World-to-camera with scalar-first quaternions, as COLMAP stores it. Cameras belong to stills by the number in their
    name, whatever the order in the file; distortion as in `read_dl3dv`.

    Raises:
        ValueError: as `read_colmap`; names without a number or with the same one; distortion that is more than one
            radial term.
    """
    folder = Path(folder)
    clip = read_colmap(folder, on_lens="keep_focal")
    for terms in colmap_distortions(folder):
        _require_one_radial_term(terms, clip, folder)
    return _stills(clip, folder)


def _stills(clip: CameraClip, path: Path) -> ShippedCameras:
    """Cameras of stills, in the order of the numbers in their names."""
    assert clip.image_names is not None, "both readers name the images"
    numbers = []
    for name in clip.image_names:
        digits = re.search(r"(\d+)$", Path(name).stem)
        if digits is None:
            raise ValueError(f"{path}: image {name!r} has no number at the end of its name")
        numbers.append(int(digits[1]))
    order = np.argsort(numbers, kind="stable")
    return ShippedCameras(
        camera_to_world=clip.camera_to_world[order],
        intrinsics=clip.intrinsics[order],
        image_size=(clip.height, clip.width),
        frame_number=_frame_numbers(np.asarray(numbers)[order], path, "frames"),
        numbering="stills",
    )


def read_sekai_game(path: str | Path) -> ShippedCameras:
    """The `.npz` beside a Sekai-Game video: `extrinsic` (N, 4, 4), `intrinsic` (3, 3) normalised.

    Despite its name `extrinsic` is camera-to-world with OpenCV axes, one a frame. The first rotation is about
    diag(1, -1, -1): that is how the world lies, not a hint at OpenGL axes. Positions are normalised per clip.

    Raises:
        ValueError: not such a file, or matrices that are no rigid transforms.
    """
    path = Path(path)
    arrays = read_npz(path, ("extrinsic", "intrinsic"))
    poses = _numbers(arrays["extrinsic"], path, "extrinsic", (None, 4, 4))
    normalised = _numbers(arrays["intrinsic"], path, "intrinsic", (3, 3))
    if np.abs(normalised[2] - [0.0, 0.0, 1.0]).max() > 1e-6 or np.abs(normalised[:2]).max() > 20:
        raise ValueError(
            f"{path}: intrinsic {normalised.tolist()} is not a matrix in fractions of width and height; this layout"
            " holds normalised intrinsics"
        )
    focal, centre = normalised[[0, 1], [0, 1]], normalised[:2, 2]
    return ShippedCameras(
        camera_to_world=_rigid(poses, path, "extrinsic"),
        intrinsics=_intrinsics(np.tile(focal, (len(poses), 1)), np.tile(centre, (len(poses), 1)), path),
        image_size=NORMALISED,
        frame_number=np.arange(len(poses)),
        numbering="frames",
        complete=True,
    )


def read_spatialvid(folder: str | Path) -> ShippedCameras:
    """A SpatialVID annotation folder: `poses.npy`, `intrinsics.npy`, `indexes.txt`.

    Poses are world-to-camera `tx ty tz qx qy qz qw` (scalar last) for every few frames; which ones is in
    `indexes.txt` and nowhere else: counting on from a frame rate is off by one for some clips. Relative scale.

    Raises:
        ValueError: a file missing (the first release had no `indexes.txt`) or damaged, lengths that differ.
    """
    folder = Path(folder)
    poses_path, intrinsics_path, index_path = (
        folder / name for name in ("poses.npy", "intrinsics.npy", "indexes.txt")
    )
    rows = _numbers(read_npy(poses_path), poses_path, "poses", (None, 7))
    lens = _numbers(read_npy(intrinsics_path), intrinsics_path, "intrinsics", (None, 4))
    if not index_path.is_file():
        raise ValueError(
            f"{index_path}: no such file; it says which frames the {len(rows)} poses belong to, and they belong to"
            " some frames only: fetch the annotations of a release that has it"
        )
    pairs = []
    for number, line in enumerate(read_text(index_path).splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isdigit() for word in words):
            raise ValueError(
                f"{index_path}:{number}: expected `ordinal frame`, two whole numbers, found {line!r}"
            )
        pairs.append((int(words[0]), int(words[1])))
    if [ordinal for ordinal, _ in pairs] != list(range(len(pairs))):
        raise ValueError(f"{index_path}: ordinals must count 0, 1, 2, ... without a gap")
    frames = _frame_numbers([frame for _, frame in pairs], index_path, "frames")
    _same_length(folder, poses=len(rows), intrinsics=len(lens), indexes=len(frames))
    _unit_length(rows[:, 3:], poses_path, "quaternions (tx ty tz qx qy qz qw, scalar last)")
    if np.abs(lens).max() > 20:
        raise ValueError(
            f"{intrinsics_path}: {lens[0].tolist()} are no fractions of width and height; this layout holds fx/W,"
            " fy/H, cx/W, cy/H"
        )
    world_to_camera = transform(rotation_from_quaternion_wxyz(rows[:, [6, 3, 4, 5]]), rows[:, :3])
    return ShippedCameras(
        camera_to_world=se3_inverse(world_to_camera),
        intrinsics=_intrinsics(lens[:, :2], lens[:, 2:], intrinsics_path),
        image_size=NORMALISED,
        frame_number=frames,
        numbering="frames",
    )


def read_rendered(folder: str | Path) -> ShippedCameras:
    """Cameras that rendered a clip: `poses.npy` (F, 4, 4) camera-to-world with OpenCV axes, `intrinsics.npy` of shape
    (4,), (F, 4), (3, 3) or (F, 3, 3) in pixels of the video beside them. One a frame, exact.

    Raises:
        ValueError: a file missing or damaged, or matrices that are no rigid transforms.
    """
    folder = Path(folder)
    poses_path, lens_path = folder / "poses.npy", folder / "intrinsics.npy"
    poses = _numbers(read_npy(poses_path), poses_path, "poses", (None, 4, 4))
    focal, centre = focal_and_centre(read_npy(lens_path), len(poses), str(lens_path))
    if np.abs(focal).max() <= 20:
        raise ValueError(
            f"{lens_path}: focal length {focal[0].tolist()} is no number of pixels; this layout holds pixels of the"
            " video"
        )
    return ShippedCameras(
        camera_to_world=_rigid(poses, poses_path, "poses"),
        intrinsics=_intrinsics(focal, centre, lens_path),
        image_size=None,
        frame_number=np.arange(len(poses)),
        numbering="frames",
        complete=True,
    )


def read_gaussian_splats(path: str | Path) -> ShippedCameras:
    """`cameras.json` beside a scene of 3D Gaussian splats (Inria's layout; DL3DV-GS-960P).

    `position` and `rotation` are camera-to-world, although the COLMAP models that they come from hold world-to-camera;
    axes are OpenCV's; the principal point is the image's centre and not written. Cameras belong to stills by the number
    in `img_name`.

    Raises:
        ValueError: missing, damaged, no rigid rotations, sizes that differ.
    """
    path = Path(path)
    entries = parse_json(read_text(path), path)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: expected a list of cameras")

    def column(name: str) -> list[Any]:
        return [_member(entry, name, path) for entry in entries]

    rotation = _numbers(column("rotation"), path, "rotation", (None, 3, 3))
    position = _numbers(column("position"), path, "position", (None, 3))
    width, height = (_numbers(column(name), path, name, (None,)) for name in ("width", "height"))
    if (width != width[0]).any() or (height != height[0]).any():
        raise ValueError(f"{path}: images of different sizes; one is needed")
    focal = _numbers([column("fx"), column("fy")], path, "fx, fy", (2, None)).T
    clip = CameraClip(
        name="scene",
        camera_to_world=_rigid(transform(rotation, position), path, "rotation"),
        focal_px=focal,
        principal_point_px=np.tile([width[0] / 2, height[0] / 2], (len(entries), 1)),
        height=int(height[0]),
        width=int(width[0]),
        image_names=tuple(str(name) for name in column("img_name")),
    )
    return _stills(clip, path)


def read_sana_wm(path: str | Path, *, key: str | None) -> ShippedCameras:
    """One clip of NVIDIA's `<stem>_camera.npz`: camera-to-world with OpenCV axes for every frame of the clip's video.

    Intrinsics are pixels of the capture, whose size is in `<stem>/<key>.json`, not of the video beside it. The unit is
    that of the capture: `<stem>_metric_scale_stats.json` says what it is worth.

    Raises:
        ValueError: files missing or damaged, or no camera for this clip (their loader takes the identity).
    """
    path = Path(path)
    arrays = read_npz(path, ("ids", "ranges", "pose", "intrinsics"))
    names = arrays["ids"].reshape(-1)
    ids = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
    if key is None or key not in ids:
        raise ValueError(f"{path}: holds no camera of clip {key!r}; it has {len(ids)}, such as {ids[:2]}")
    ranges = _numbers(arrays["ranges"], path, "ranges", (None, 2)).astype(np.int64)
    _same_length(path, ids=len(ids), ranges=len(ranges))
    start, count = ranges[ids.index(key)].tolist()
    poses = _numbers(arrays["pose"], path, "pose", (None, 4, 4))
    lens = _numbers(arrays["intrinsics"], path, "intrinsics", (None, 4))
    _same_length(path, pose=len(poses), intrinsics=len(lens))
    if start < 0 or count < 1 or start + count > len(poses):
        raise ValueError(
            f"{path}: clip {key}: frames {start} to {start + count}, but the file holds {len(poses)}"
        )
    stem = path.name.removesuffix("_camera.npz")
    info_path = path.with_name(stem) / f"{key}.json"
    info = read_json(info_path)
    size = _numbers([_member(info, name, info_path) for name in ("height", "width")], info_path, "size", (2,))
    poses, lens = poses[start : start + count], lens[start : start + count]
    return ShippedCameras(
        camera_to_world=_rigid(poses, path, "pose"),
        intrinsics=_intrinsics(lens[:, :2], lens[:, 2:], path),
        image_size=(int(size[0]), int(size[1])),
        frame_number=np.arange(count),
        numbering="frames",
        complete=True,
    )


def _require_one_radial_term(terms: Sequence[float], clip: CameraClip, path: Path) -> None:
    """Refuse distortion (OpenCV's k1, k2, p1, p2, k3) that no single radial term follows to 1 % of the diagonal."""
    k1, k2, p1, p2, k3 = (*terms, 0.0)[:5]
    grid = np.stack(np.meshgrid(np.linspace(0, clip.width, 21), np.linspace(0, clip.height, 21)), -1)
    n = (grid.reshape(-1, 2) - clip.principal_point_px[0]) / clip.focal_px[0]
    x, y, r2 = n[:, 0], n[:, 1], (n * n).sum(1)
    moved = n * (k1 * r2 + k2 * r2**2 + k3 * r2**3)[:, None]
    moved += np.stack([2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], 1)
    term = n * r2[:, None]
    rest_px = (moved - term * ((moved * term).sum() / (term * term).sum())) * clip.focal_px[0]
    share = float(np.linalg.norm(rest_px, axis=1).max() / np.hypot(clip.width, clip.height))
    if share > _DROPPED_DISTORTION:
        raise ValueError(
            f"{path}: k1 {k1:g}, k2 {k2:g}, k3 {k3:g}, p1 {p1:g}, p2 {p2:g} leave {100 * share:.1f} % of the diagonal"
            " after the best single radial term; undistort the images to a pinhole first"
        )


# --- checks ---------------------------------------------------------------------------------------


def _member(content: dict[str, Any], key: str, path: Path) -> Any:
    if key not in content:
        raise ValueError(f"{path}: {key!r} is missing; found {sorted(content)[:12]}")
    return content[key]


def _numbers(value: ArrayLike, path: Path, what: str, shape: tuple[int | None, ...]) -> FloatArray:
    """Finite float64 array of the given shape (None: at least one)."""
    wanted = (
        "(" + ", ".join("N" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    )
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {what}: expected numbers of shape {wanted}") from None
    fits = array.ndim == len(shape) and all(
        n > 0 if want is None else n == want for n, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{path}: {what} has shape {array.shape}, expected {wanted}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{path}: {what}: {len(bad)} values are not finite, the first at {bad[0].tolist()}")
    return array


def _frame_numbers(value: ArrayLike, path: Path, what: str) -> NDArray[np.int64]:
    numbers = _numbers(value, path, what, (None,))
    whole = numbers.astype(np.int64)
    if (whole != numbers).any() or whole[0] < 0:
        raise ValueError(f"{path}: {what} must be whole numbers from 0")
    back = np.flatnonzero(np.diff(whole) <= 0)
    if len(back):
        i = int(back[0])
        raise ValueError(
            f"{path}: {what} must increase, but entry {i} is {whole[i]} and the next {whole[i + 1]}"
        )
    return whole


def _same_length(path: Path, **lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: different lengths: " + ", ".join(f"{n} {k}" for k, n in lengths.items()))


def _unit_length(quaternion: FloatArray, path: Path, what: str) -> None:
    length = np.linalg.norm(quaternion, axis=1)
    bad = np.flatnonzero(np.abs(length - 1) > 0.01)
    if len(bad):
        raise ValueError(
            f"{path}: {what}: {len(bad)} of {len(length)} are not of length 1, the first is entry {bad[0]}"
            f" ({length[bad[0]]:.4g})"
        )


def _rigid(poses: FloatArray, path: Path, what: str) -> FloatArray:
    error = np.asarray(rigid_error(poses))
    bad = np.flatnonzero(error > RIGID_TOLERANCE)
    if len(bad):
        raise ValueError(
            f"{path}: {what}: {len(bad)} of {len(poses)} matrices are no rigid transforms, the first is entry {bad[0]}"
            f" (off by {error[bad[0]]:.2g}); transposed, scaled or mirrored?"
        )
    return transform(orthonormalise(poses[:, :3, :3]), poses[:, :3, 3])


def _intrinsics(focal: FloatArray, centre: FloatArray, path: Path) -> FloatArray:
    if (focal <= 0).any():
        raise ValueError(f"{path}: focal lengths must be positive, found {focal.min():g}")
    return intrinsics_matrix(focal, centre)
