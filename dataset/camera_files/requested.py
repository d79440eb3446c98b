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

from ..arrays import FloatArray
from ..cameras.intrinsics import crop_intrinsics, intrinsics_matrix, resize_intrinsics, split_intrinsics
from ..cameras.paths import FPS, PathName, action_path, check_rigid, is_action, named_path
from ..cameras.transforms import se3_inverse, to_4x4
from ..formats.colmap import colmap_distortions, has_colmap_model, read_colmap
from ..formats.nerfstudio import read_nerfstudio
from ..formats.sana import SPLITS
from ..inputs import Archive, parse_json, read_npy, read_text
from ..reading import open_dataset
from ..rows import Row
from .single import layout_of, read_clip

Form = Literal["named path", "actions", "numpy", "json", "dataset row", "COLMAP", "nerfstudio", "text"]

LONGEST_FRAMES = 8 * 1023 + 1
"""Frames of the released table of time positions (1024 latent frames)."""
_POSES = ("camera_to_world", "c2w", "camera_to_worlds", "poses")
_INVERSE_POSES = ("world_to_camera", "w2c", "viewmats", "viewmatrix")
_LENSES = ("intrinsics_px", "intrinsics", "K", "Ks")
_DISTORTED = "lens distortion is left out, the model's camera is a pinhole"


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
    if not path_exists(path):
        before, mark, clip_id = text.rpartition("#")
        if mark and before and path_exists(Path(before)):
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


def path_exists(path: Path) -> bool:
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
    if reading.seconds * FPS > LONGEST_FRAMES - 1:
        raise ValueError(
            f"camera {text!r}: {reading.seconds:g} s are more than the model can number ({LONGEST_FRAMES} frames): ask "
            f"for --seconds {(LONGEST_FRAMES - 1) / FPS:g} at most"
        )
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
        changed = found is not None and abs(reading.fps - found) > 1e-6 * reading.fps
        return reading.fps, (
            f"{path.name} says {found:g} poses a second, {reading.fps:g} were asked for",
        ) if changed else ()
    if found is None:
        raise ValueError(f"{path}: does not say how many poses a second it holds; give --fps")
    if not (0 < found < math.inf):
        raise ValueError(f"{path}: says {found} poses a second; give --fps")
    return found, ()


def _read_npy(path: Path, reading: Reading) -> CameraPath:
    poses = _poses(load_array(path), path)
    fps, notes = reading.fps or FPS, ()
    if reading.fps is None:
        notes = (
            f"{path.name}: taken as {FPS:g} poses a second, as in the released form; --fps says otherwise",
        )
    lens = None
    partner = path.with_name(path.name.removesuffix(".npy").removesuffix("_pose") + "_intrinsics.npy")
    if path.name.endswith("_pose.npy") and partner.is_file():
        lens = lenses_of(load_array(partner), len(poses), partner)
        notes += (f"intrinsics from {partner.name} beside it",)
    return _evenly(
        _scaled(poses, reading), fps, form="numpy", origin=str(path), intrinsics_px=lens, notes=notes
    )


def load_array(path: Path) -> np.ndarray:
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
        k = lenses_of(camera["intrinsics_px"], len(camera["camera_to_world"]), path)
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
    keys = [k for k in (*_POSES, *_INVERSE_POSES) if k in content]
    if not keys:
        known = ", ".join((*_POSES, *_INVERSE_POSES))
        listed = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        hint = (
            "; extrinsics may be either way: name them camera_to_world or world_to_camera"
            if "extrinsics" in content
            else ""
        )
        raise ValueError(f"{path}: holds no poses ({known}), only {listed}{hint}")
    poses = _poses_of(content, keys[0], path)
    for other in (k for k in keys[1:] if k in _INVERSE_POSES and keys[0] in _POSES):
        others = _poses_of(content, other, path)
        if others.shape != poses.shape or not np.allclose(others, poses, atol=1e-3):
            raise ValueError(f"{path}: {keys[0]} and {other} are different paths; keep the one that is meant")
    lens = next(
        (lenses_of(content[k], len(poses), path) for k in _LENSES if content.get(k) is not None), None
    )
    size = [_whole(content.get(k, 0), k, path) for k in ("height", "width")]
    common: dict[str, Any] = dict(
        form=form, origin=str(path), intrinsics_px=lens, height=size[0], width=size[1]
    )
    times = content.get("time_s")
    if times is not None and reading.fps is None:
        return _timed(_scaled(poses, reading), _numbers(times, "time_s", path), path, **common)
    rate = content.get("fps")
    found = None if rate is None else _one(rate, "fps", path)
    fps, notes = _rate(path, reading, found)
    notes += _without_times(path, reading, times)
    return _evenly(_scaled(poses, reading), fps, notes=notes, **common)


def _poses_of(content: Mapping[str, Any], key: str, path: Path) -> FloatArray:
    """(F, 4, 4) camera-to-world under a key."""
    poses = _poses(content[key], path)
    if key not in _INVERSE_POSES:
        return poses
    check_rigid(poses)
    return np.asarray(se3_inverse(poses))


def _without_times(path: Path, reading: Reading, times: object) -> tuple[str, ...]:
    """What to note where `--fps` takes the place of a file's own times."""
    if times is None or reading.fps is None:
        return ()
    return (f"{path.name}: its own times are left out, {reading.fps:g} poses a second were asked for",)


def _numbers(value: Any, name: str, path: Path) -> FloatArray:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {name} is no array of numbers") from None
    if found.size == 0:
        raise ValueError(f"{path}: {name} is empty")
    return found


def _one(value: Any, name: str, path: Path) -> float:
    found = _numbers(value, name, path)
    if found.size != 1:
        raise ValueError(f"{path}: {name} holds {found.size} numbers; expected one")
    return float(found.reshape(()))


def _whole(value: Any, name: str, path: Path) -> int:
    number = _one(value, name, path)
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


def lenses_of(value: Any, frames: int, path: Path) -> FloatArray:
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
    fisheye = row.lens_model == "fisheye"  # whose focal length is no pinhole's
    if fisheye:
        notes += (f"clip {row.clip_id}: its lens is left out, a fisheye's",)
    elif row.radial_k1 or row.radial_k2:
        notes += (f"clip {row.clip_id}: {_DISTORTED}",)
    notes += _without_times(path, reading, row.time_s)
    common: dict[str, Any] = dict(
        form="dataset row",
        origin=f"{path}#{row.clip_id}",
        intrinsics_px=None if fisheye else np.asarray(row.intrinsics, np.float64),
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
    clip = read_colmap(path, on_lens="keep_focal")
    try:
        distorted = any(any(lens) for lens in colmap_distortions(path))
    except ValueError as error:  # a fisheye's focal length is no pinhole's
        found = _of_images(clip, path, reading, "COLMAP")
        return replace(found, intrinsics_px=None, notes=(*found.notes, f"its lens is left out: {error}"))
    return _of_images(clip, path, reading, "COLMAP", distorted=distorted)


def _read_nerfstudio(path: Path, reading: Reading) -> CameraPath:
    clip = read_nerfstudio(path, undo_applied_transform=True, on_distortion="drop")
    content = parse_json(read_text(path), path)
    distorted = bool(clip.radial_k1) or any(content.get(key) for key in ("k2", "k3", "k4", "p1", "p2"))
    return _of_images(clip, path, reading, "nerfstudio", distorted=distorted)


def _of_images(clip: Any, path: Path, reading: Reading, form: Form, *, distorted: bool = False) -> CameraPath:
    notes: tuple[str, ...] = ()
    if reading.metres_per_unit == 1.0:
        notes += (
            f"{path.name}: its unit is taken as a metre, which {form} does not promise; see --metres-per-unit",
        )
    if distorted:
        notes += (f"{path.name}: {_DISTORTED}",)
    notes += _without_times(path, reading, clip.time_s)
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
    common["notes"] = (*clip.notes, *more, *_without_times(path, reading, clip.time_s))
    if clip.counted:
        return _timed(poses, clip.frame_index / fps, path, **common)
    return _evenly(poses, fps, **common)
