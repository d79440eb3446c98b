"""Camera paths that a video is to follow, from whatever a user has: one reader, told apart by content.

Paths are camera-to-world, OpenCV axes, metres. What a file does not say (how many poses a second, how many metres a
unit, the lens) is asked for, and what was taken as given is noted: nothing falls back silently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .camera_paths import (
    FPS,
    PathName,
    action_path,
    check_path,
    check_rigid,
    interpolate_path,
    is_action,
    named_path,
)
from .cameras import (
    crop_intrinsics,
    focal_from_fov,
    fov_from_focal,
    intrinsics_matrix,
    orthonormalise,
    relative_to_first,
    resize_intrinsics,
    rotation_angle,
    se3_inverse,
    split_intrinsics,
    to_4x4,
)
from .clip_cameras import layout_of, read_clip
from .formats.colmap import has_colmap_model, read_colmap
from .formats.nerfstudio import read_nerfstudio
from .formats.sana import FOV_RANGE_DEG, SPLITS
from .inputs import Archive, parse_json, read_npy, read_text
from .reading import open_dataset
from .rows import Row

FloatArray = NDArray[np.floating]
Form = Literal["named path", "actions", "numpy", "json", "dataset row", "COLMAP", "nerfstudio", "text"]

LONGEST_FRAMES = 8 * 1023 + 1
"""Frames of the released table of time positions (1024 latent frames)."""
_MOST_GAP_S = 2.0
"""Holes between two poses that are not bridged."""
_NOTED_GAP_S = 0.5
_LONGEST_S = 1e6
"""Of a path whose times are believed to be seconds."""
_POSES = ("camera_to_world", "c2w", "camera_to_worlds", "poses")
_INVERSE_POSES = ("world_to_camera", "w2c", "viewmats", "viewmatrix")
_LENSES = ("intrinsics_px", "intrinsics", "K", "Ks")


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPath:
    """A path that cameras are to follow.

    Attributes:
        camera_to_world: (F, 4, 4), OpenCV axes, metres.
        time_s: (F,) seconds, strictly increasing, the first 0.
        intrinsics_px: (F, 3, 3) in pixels, centres at +0.5; None: unknown.
        height, width: picture that they are of; 0: the picture that is animated.
        form: kind of what was read.
        origin: the text that named it.
        stand_in: made with stand-in weights.
        notes: what reading had to decide, one sentence each.
    """

    camera_to_world: FloatArray
    time_s: FloatArray
    form: Form
    origin: str
    intrinsics_px: FloatArray | None = None
    height: int = 0
    width: int = 0
    stand_in: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.camera_to_world)

    @property
    def duration_s(self) -> float:
        """From the first pose to the last."""
        return float(self.time_s[-1])


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a user adds to a path that is read.

    Attributes:
        fps: poses a second, for files that do not say; for others it takes the place of what they say.
        clip_id: which clip, where a file holds several.
        metres_per_unit: of the file.
        seconds: how long a named path lasts.
    """

    fps: float | None = None
    clip_id: str | None = None
    metres_per_unit: float = 1.0
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("fps", "metres_per_unit", "seconds"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name.replace('_', ' ')} {value}: give a positive number")


def read_camera_path(source: str | Path, reading: Reading | None = None) -> CameraPath:
    """The path that a text names.

    Args:
        source: a named path ("orbit", "orbit:size=3,turns=0.5"), actions ("w-40,wd-20"), or a file or folder: `.npy` or
            `.npz`, JSON, a Parquet dataset (or a file of it), COLMAP, `transforms.json`, TUM, KITTI, 4x4 rows, EuRoC, a
            matrix a file, a scene of SANA-WM-Bench. A dataset's clip may be named behind `#`.
        reading: what the file does not say.
    Raises:
        ValueError: naming the source, what is wrong with it, and what to do.
    """
    reading = reading or Reading()
    text = str(source).strip()
    if not text:
        raise ValueError(
            "the camera path is empty: give a file, actions such as 'w-40,wd-20', or a name such as orbit"
        )
    path = Path(text)
    if not _exists(path):
        before, mark, clip_id = text.rpartition("#")
        if mark and _exists(Path(before)):
            path, reading = Path(before), replace(reading, clip_id=clip_id)
        else:
            return _without_file(text, reading)
    try:
        found = _read_file(path, reading)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(str(error) if path.name in str(error) else f"{path}: {error}") from error
    return replace(found, origin=text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # actions longer than any file name, or with a null byte
        return False


def _without_file(text: str, reading: Reading) -> CameraPath:
    name, colon, options = text.lower().partition(":")
    if name in get_args(PathName):
        return _named(name, options if colon else "", reading, text)
    if is_action(text):
        frames = sum(int(number) for number in re.findall(r"-\s*(\d{1,9})", text))
        if frames > 2 * LONGEST_FRAMES:
            raise ValueError(
                f"camera {text[:40]!r}...: {frames} frames of actions are more than the model can number "
                f"({LONGEST_FRAMES})"
            )
        return _evenly(action_path(text), FPS, form="actions", origin=text)
    raise ValueError(
        f"camera {text!r}: no such file, no named path ({', '.join(get_args(PathName))}; for example "
        "orbit:size=3,turns=0.5) and no actions (for example 'w-40,wd-20,none-10')"
    )


def _named(name: str, options: str, reading: Reading, text: str) -> CameraPath:
    values = {"size": 2.0, "turns": 1.0}
    for part in filter(None, options.split(",")):
        key, equals, value = part.partition("=")
        try:
            if not equals or key.strip() not in values:
                raise ValueError
            values[key.strip()] = float(value)
        except ValueError:
            raise ValueError(
                f"camera {text!r}: {part!r} is neither size=METRES nor turns=NUMBER, as in orbit:size=3,turns=0.5"
            ) from None
    poses = named_path(name, round(reading.seconds * FPS) + 1, size_m=values["size"], turns=values["turns"])
    return _evenly(poses, FPS, form="named path", origin=text)


def _evenly(poses: FloatArray, fps: float, *, form: Form, origin: str, **more: Any) -> CameraPath:
    return CameraPath(
        camera_to_world=np.asarray(poses, np.float64),
        time_s=np.arange(len(poses)) / fps,
        form=form,
        origin=origin,
        **more,
    )


def _read_file(path: Path, reading: Reading) -> CameraPath:
    """By what the file holds; its name only helps to say what is wrong."""
    if path.is_dir():
        return _read_folder(path, reading)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path}: is empty")
    if head.startswith(b"\x93NUMPY"):
        return _read_npy(path, reading)
    if head.startswith(b"PK\x03\x04"):
        return _read_npz(path, reading)
    if head.startswith(b"PAR1"):
        return _read_row(path, reading)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _read_json(path, reading)
    if path.name in ("cameras.bin", "images.bin", "cameras.txt", "images.txt"):
        return _read_colmap(path.parent, reading)
    if b"\0" in head:
        raise ValueError(
            f"{path}: a binary file that is none of .npy, .npz, Parquet; cameras may also be JSON, TUM, KITTI, 4x4 "
            "rows, EuRoC, or a folder of COLMAP"
        )
    return _read_text(path, reading)


def _read_folder(path: Path, reading: Reading) -> CameraPath:
    if has_colmap_model(path):
        return _read_colmap(path, reading)
    if (path / "transforms.json").is_file():
        return _read_nerfstudio(path / "transforms.json", reading)
    if path.resolve().name in SPLITS.values() or (path / "sanawm_export_v2").is_dir():
        return _read_bench(path, reading)
    if layout_of(path) is not None:
        return _read_text(path, reading)
    if (path / "data").is_dir() or next(path.glob("*.parquet"), None) is not None:
        return _read_row(path, reading)
    raise ValueError(
        f"{path}: a folder without cameras: neither COLMAP, transforms.json, a Parquet dataset, a split of "
        "SANA-WM-Bench, EuRoC, TUM RGB-D, nor a 4x4 matrix a file"
    )


def _rate(path: Path, reading: Reading, found: float | None) -> tuple[float, tuple[str, ...]]:
    """Poses a second, and what to note about them."""
    if reading.fps is not None:
        changed = found is not None and abs(reading.fps / found - 1) > 1e-6
        return reading.fps, (
            f"{path.name} says {found:g} poses a second, {reading.fps:g} were asked for",
        ) if changed else ()
    if found is None:
        raise ValueError(f"{path}: does not say how many poses a second it holds; give --fps")
    if not (0 < found < math.inf):
        raise ValueError(f"{path}: says {found} poses a second; give --fps")
    return found, ()


def _read_npy(path: Path, reading: Reading) -> CameraPath:
    poses = _poses(_load(path), path)
    fps, notes = _rate(path, reading, FPS)
    if reading.fps is None:
        notes = (
            f"{path.name}: taken as {FPS:g} poses a second, as in the released form; --fps says otherwise",
        )
    lens = None
    partner = path.with_name(path.name.removesuffix(".npy").removesuffix("_pose") + "_intrinsics.npy")
    if path.name.endswith("_pose.npy") and partner.is_file():
        lens = _lenses(_load(partner), len(poses), partner)
        notes += (f"intrinsics from {partner.name} beside it",)
    return _evenly(
        _scaled(poses, reading), fps, form="numpy", origin=str(path), intrinsics_px=lens, notes=notes
    )


def _load(path: Path) -> np.ndarray:
    return read_npy(path)


def _read_npz(path: Path, reading: Reading) -> CameraPath:
    with Archive(path, ".npz file") as archive:
        content = {name: archive.array(name) for name in archive.arrays}
    return _of_mapping(content, path, reading, form="numpy")


def _read_json(path: Path, reading: Reading) -> CameraPath:
    content = parse_json(read_text(path), path)
    if isinstance(content, dict) and any(
        isinstance(f, dict) and "transform_matrix" in f for f in _sequence(content.get("frames"))
    ):
        return _read_nerfstudio(path, reading)
    if isinstance(content, dict) and isinstance(content.get("camera"), dict):
        content = _of_record(content, path)
    if isinstance(content, dict) and isinstance(content.get("trajectory"), dict | list):
        content = content["trajectory"]
    if isinstance(content, dict) and isinstance(action := content.get("action"), str):
        return _evenly(action_path(action), FPS, form="actions", origin=action)
    if isinstance(content, dict):
        frames = _sequence(content.get("frames"))
        if frames and all(isinstance(f, dict) for f in frames):
            content = {**content, **_columns(frames)}
        return _of_mapping(content, path, reading, form="json")
    if _sequence(content) and all(isinstance(f, dict) for f in content):
        return _of_mapping(_columns(content), path, reading, form="json")
    return _of_mapping({"camera_to_world": content}, path, reading, form="json")


def _of_record(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The camera of the record beside a generated video, with the lens of the whole image again."""
    camera, image = content["camera"], content.get("image")
    if not isinstance(image, dict) or "intrinsics_px" not in camera:
        return camera
    try:
        (height, width), resized, (top, left, *_) = image["size"], image["resized"], image["cut"]
        k = _lenses(camera["intrinsics_px"], len(camera["camera_to_world"]), path)
        whole = crop_intrinsics(k, top_px=-top, left_px=-left)
        k = resize_intrinsics(whole, from_size=tuple(resized), to_size=(height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: a damaged record of a generated video ({error})") from None
    return {**camera, "intrinsics_px": np.asarray(k).tolist(), "height": height, "width": width}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _columns(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lists by key of a list of frames, for keys that every frame has."""
    return {key: [f[key] for f in frames] for key in frames[0] if all(key in f for f in frames)}


def _of_mapping(content: Mapping[str, Any], path: Path, reading: Reading, *, form: Form) -> CameraPath:
    key = next((k for k in (*_POSES, *_INVERSE_POSES) if k in content), None)
    if key is None:
        known = ", ".join((*_POSES, *_INVERSE_POSES))
        listed = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        hint = (
            "; extrinsics may be either way: name them camera_to_world or world_to_camera"
            if "extrinsics" in content
            else ""
        )
        raise ValueError(f"{path}: holds no poses ({known}), only {listed}{hint}")
    poses = _poses(content[key], path)
    if key in _INVERSE_POSES:
        check_rigid(poses)
        poses = np.asarray(se3_inverse(poses))
    lens = next((_lenses(content[k], len(poses), path) for k in _LENSES if content.get(k) is not None), None)
    size = [_whole(content.get(k, 0), k, path) for k in ("height", "width")]
    common: dict[str, Any] = dict(
        form=form, origin=str(path), intrinsics_px=lens, height=size[0], width=size[1]
    )
    times = content.get("time_s")
    if times is not None and reading.fps is None:
        return _timed(_scaled(poses, reading), _numbers(times, "time_s", path), path, **common)
    rate = content.get("fps")
    found = None if rate is None else float(_numbers(rate, "fps", path).reshape(-1)[0])
    fps, notes = _rate(path, reading, found)
    return _evenly(_scaled(poses, reading), fps, notes=notes, **common)


def _numbers(value: Any, name: str, path: Path) -> FloatArray:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {name} is no array of numbers") from None
    if found.size == 0:
        raise ValueError(f"{path}: {name} is empty")
    return found


def _whole(value: Any, name: str, path: Path) -> int:
    number = float(_numbers(value, name, path).reshape(-1)[0])
    if not (0 <= number < 1e6 and number == round(number)):
        raise ValueError(f"{path}: {name} {number:g} is no size in pixels")
    return int(number)


def _poses(value: Any, path: Path) -> FloatArray:
    """(F, 4, 4) of (F, 4, 4), (F, 3, 4), (F, 16) or (F, 12) numbers."""
    poses = _numbers(value, "camera_to_world", path)
    if poses.ndim == 2 and poses.shape[1] in (12, 16):
        poses = poses.reshape(len(poses), -1, 4)
    if poses.ndim == 4 and poses.shape[0] == 1:
        poses = poses[0]
    if poses.ndim != 3 or poses.shape[1:] not in ((4, 4), (3, 4)):
        raise ValueError(f"{path}: poses are {poses.shape}; expected (F, 4, 4) or (F, 3, 4) camera-to-world")
    poses = np.asarray(to_4x4(poses)) if poses.shape[1] == 3 else poses
    off = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-4
    if off.any():
        i = int(off.argmax())
        raise ValueError(f"{path}: pose {i} ends in {poses[i, 3].tolist()}, expected 0 0 0 1; transposed?")
    return poses


def _lenses(value: Any, frames: int, path: Path) -> FloatArray:
    """(F, 3, 3) of (4,), (3, 3), (F, 4) or (F, 3, 3)."""
    k = _numbers(value, "intrinsics", path)
    if k.shape in ((4,), (frames, 4)) or (k.shape == (1, 4)):
        k = np.broadcast_to(k, (frames, 4))
        return np.asarray(intrinsics_matrix(k[:, :2], k[:, 2:]))
    if k.shape in ((3, 3), (1, 3, 3), (frames, 3, 3)):
        focal, centre = split_intrinsics(np.broadcast_to(k, (frames, 3, 3)))
        return np.asarray(intrinsics_matrix(focal, centre))
    raise ValueError(
        f"{path}: intrinsics are {k.shape}; expected (4,) fx fy cx cy, (3, 3), ({frames}, 4) or ({frames}, 3, 3)"
    )


def _some(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


def _scaled(poses: FloatArray, reading: Reading) -> FloatArray:
    poses = poses.copy()
    poses[:, :3, 3] *= reading.metres_per_unit
    return poses


def _timed(poses: FloatArray, time_s: FloatArray, path: Path, **common: Any) -> CameraPath:
    if time_s.shape != (len(poses),):
        raise ValueError(f"{path}: {time_s.shape} times for {len(poses)} poses")
    if not np.isfinite(time_s).all() or (np.diff(time_s) <= 0).any():
        raise ValueError(f"{path}: times must be finite and rise from pose to pose; or give --fps")
    return CameraPath(camera_to_world=poses, time_s=time_s - time_s[0], **common)


def _read_row(path: Path, reading: Reading) -> CameraPath:
    dataset = open_dataset(path)
    clip_id = reading.clip_id
    if clip_id is None:
        ids = dataset.to_table(["clip_id"])["clip_id"].to_pylist()
        if len(ids) != 1:
            example = f"{path}#{ids[0] if ids else 'clip'}"
            raise ValueError(f"{path}: holds {_some(ids, 'clips')}; name one as {example}")
        clip_id = ids[0]
    try:
        row = dataset.row(clip_id)
    except KeyError:
        raise ValueError(f"{path}: holds no clip {clip_id}") from None
    return _of_row(row, path, reading)


def _of_row(row: Row, path: Path, reading: Reading) -> CameraPath:
    without = int((row.pose_source == 0).sum())
    if not row.num_frames or len(row.camera_to_world) != row.num_frames or without:
        missing = (
            f"{without} of {row.num_frames} frames have none"
            if without
            else f"{', '.join(row.reasons) or 'none'}"
        )
        raise ValueError(f"{path}: clip {row.clip_id} has no cameras for every frame ({missing})")
    notes = (
        () if row.verdict == "accepted" else (f"clip {row.clip_id} was rejected: {', '.join(row.reasons)}",)
    )
    common: dict[str, Any] = dict(
        form="dataset row",
        origin=f"{path}#{row.clip_id}",
        intrinsics_px=np.asarray(row.intrinsics, np.float64),
        height=row.height,
        width=row.width,
        stand_in=row.stand_in,
        notes=notes,
    )
    # Stored as float32, whose rotations are off by 1e-7.
    poses = _scaled(np.asarray(row.camera_to_world, np.float64), reading)
    if reading.fps is not None:
        return _evenly(poses, reading.fps, **common)
    return _timed(poses, np.asarray(row.time_s, np.float64), path, **common)


def _read_colmap(path: Path, reading: Reading) -> CameraPath:
    return _of_images(read_colmap(path, on_lens="keep_focal"), path, reading, "COLMAP")


def _read_nerfstudio(path: Path, reading: Reading) -> CameraPath:
    return _of_images(
        read_nerfstudio(path, undo_applied_transform=True, on_distortion="drop"), path, reading, "nerfstudio"
    )


def _of_images(clip: Any, path: Path, reading: Reading, form: Form) -> CameraPath:
    notes: tuple[str, ...] = ()
    if reading.metres_per_unit == 1.0:
        notes += (
            f"{path.name}: its unit is taken as a metre, which {form} does not promise; see --metres-per-unit",
        )
    if clip.radial_k1:
        notes += (f"{path.name}: lens distortion is left out, the model's camera is a pinhole",)
    common: dict[str, Any] = dict(
        form=form,
        origin=str(path),
        intrinsics_px=np.asarray(clip.intrinsics, np.float64),
        height=clip.height,
        width=clip.width,
    )
    poses = _scaled(clip.camera_to_world, reading)
    if clip.time_s is not None and reading.fps is None:
        return _timed(poses, np.asarray(clip.time_s, np.float64), path, notes=notes, **common)
    fps, more = _rate(path, reading, None)
    number = _image_numbers(clip.image_names)
    if number is None:
        return _evenly(poses, fps, notes=(*notes, *more), **common)
    order = np.argsort(number)
    common["intrinsics_px"] = common["intrinsics_px"][order]
    return _timed(poses[order], number[order] / fps, path, notes=(*notes, *more), **common)


def _image_numbers(names: Sequence[str] | None) -> FloatArray | None:
    """Numbers in which the names end, if every one ends in another: images that were left out leave holes."""
    digits = [re.search(r"(\d+)$", Path(name).stem) for name in names or ()]
    numbers = [int(d[1]) for d in digits if d is not None]
    if not numbers or len(numbers) != len(digits) or len(set(numbers)) != len(numbers) or max(numbers) > 1e9:
        return None
    return np.array(numbers, np.float64)


def _read_bench(path: Path, reading: Reading) -> CameraPath:
    export = path / "sanawm_export_v2"
    scenes = sorted(p.stem for p in export.glob("*.npz"))
    if reading.clip_id not in scenes:
        example = f"{path}#{scenes[0] if scenes else 'scene'}"
        raise ValueError(
            f"{path}: a split of SANA-WM-Bench with {_some(scenes, 'scenes')}; name one as {example}"
        )
    return _read_npz(export / f"{reading.clip_id}.npz", reading)


def _read_text(path: Path, reading: Reading) -> CameraPath:
    clip = read_clip(path)
    if not clip.posed.all():
        raise ValueError(
            f"{path}: pose {int((~clip.posed).argmax())} is none (NaN or zeros); drop it from the file"
        )
    common: dict[str, Any] = dict(form="text", origin=str(path), notes=clip.notes)
    poses = _scaled(clip.camera_to_world, reading)
    if clip.time_s is not None and reading.fps is None:
        return _timed(poses, np.asarray(clip.time_s, np.float64), path, **common)
    fps, more = _rate(path, reading, None)
    common["notes"] = (*clip.notes, *more)
    if clip.counted:
        return _timed(poses, clip.frame_index / fps, path, **common)
    return _evenly(poses, fps, **common)


# --- for the model --------------------------------------------------------------------------------


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
    except ValueError as error:
        raise ValueError(f"camera {where}: {error}") from None
    lens = None if path.intrinsics_px is None else _lens_between(path.time_s, path.intrinsics_px, wanted)
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
    if not np.isfinite(intrinsics).all() or not (np.asarray(focal) > 0).all():
        bad = ~(np.isfinite(intrinsics).all(axis=(1, 2)) & (np.asarray(focal) > 0).all(axis=1))
        raise ValueError(f"the intrinsics of pose {int(bad.argmax())} are not finite, or not positive")
    values = np.concatenate([np.log(focal), centre], axis=1)
    between = np.stack([np.interp(wanted, time_s, column) for column in values.T], axis=1)
    return np.asarray(intrinsics_matrix(np.exp(between[:, :2]), between[:, 2:]))


def read_lens(text: str, *, height: int, width: int, num_frames: int) -> FloatArray:
    """Intrinsics (num_frames, 3, 3) for a height x width picture from an option.

    Args:
        text: `fov=70` (horizontal degrees, centred), `fx,fy,cx,cy` in pixels of the picture, or a `.npy` file of
            `(4,)`, `(3, 3)`, `(F, 4)` or `(F, 3, 3)`.
    Raises:
        ValueError: none of these.
    """
    if match := re.fullmatch(r"fov[=:](.+)", text.strip(), re.IGNORECASE):
        try:
            degrees = float(match[1])
        except ValueError:
            degrees = math.nan
        if not 0 < degrees < 180:
            raise ValueError(f"intrinsics {text!r}: give degrees between 0 and 180, as in fov=70")
        focal = float(focal_from_fov(np.array(math.radians(degrees)), width))
        return _lenses([focal, focal, width / 2, height / 2], num_frames, Path(text))
    words = text.split(",")
    if len(words) == 4:
        try:
            return _lenses([float(w) for w in words], num_frames, Path(text))
        except ValueError:
            raise ValueError(f"intrinsics {text!r}: expected four numbers fx,fy,cx,cy") from None
    if not _exists(Path(text)):
        raise ValueError(f"intrinsics {text!r}: neither fov=DEGREES, nor fx,fy,cx,cy, nor a .npy file")
    return _lenses(_load(Path(text)), num_frames, Path(text))


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
