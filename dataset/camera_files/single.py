"""Cameras of one clip from a file or folder of any layout, told apart by content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from ..cameras.transforms import se3_inverse
from ..formats.base import CameraClip
from ..formats.colmap import has_colmap_model, read_colmap
from ..formats.nerfstudio import read_nerfstudio
from ..formats.sintel import is_cam_folder, read_cam_folder
from ..formats.time_lists import read_time_list
from ..formats.trajectories import (
    Trajectory,
    is_pose_folder,
    read_pose_files,
    read_table,
    read_trajectory,
)
from ..inputs import parse_yaml, read_json, read_text, reading
from .record import ClipCameras

SUFFIXES = (".txt", ".tum", ".kitti", ".csv", ".json")
"""Of files with the cameras of one clip."""
GENERATION_FORMAT = "theodolite generation 1"
"""What the record of a generated video says of itself."""


def is_times_file(path: Path, names: set[str]) -> bool:
    """Whether a file holds the times of another beside it."""
    stem = path.stem.removesuffix("_times")
    return stem != path.stem and any(f"{stem}{suffix}" in names for suffix in SUFFIXES)


def layout_of(folder: Path) -> Callable[[Path], ClipCameras] | None:
    """Reader of a folder that holds the cameras of one clip, or None if it does not."""
    if has_colmap_model(folder):
        return _from_colmap
    if is_cam_folder(folder):
        return _from_sintel
    if (folder / "transforms.json").is_file():
        return lambda folder: _from_nerfstudio(folder / "transforms.json")
    if _euroc_table(folder) is not None:
        return _from_euroc
    if (folder / "groundtruth.txt").is_file():
        return _from_tum_sequence
    for inner in (folder, folder / "pose"):
        if inner.is_dir() and is_pose_folder(inner):
            return lambda _folder, inner=inner: _from_trajectory(read_pose_files(inner, lenient=True))
    return None


_EUROC_SENSORS = ("state_groundtruth_estimate0", "mocap0", "vicon0")
"""Folders of a sequence in EuRoC's layout that hold its true poses, the surest first (TUM VI has a `mocap0`)."""
_GENERIC_NAMES = frozenset({"0", "sparse", "colmap", "pose", "mav0", *_EUROC_SENSORS})
_GENERIC_FILES = frozenset({"transforms.json", "groundtruth.txt", "data.csv"})


def clip_name(path: Path) -> str:
    """Clip id of a single file or folder: its own name, or that of the first folder above that tells clips apart."""
    path = path.resolve()
    if path.is_file() and path.name not in _GENERIC_FILES:
        return path.stem
    folder = path.parent if path.is_file() else path
    while folder.name in _GENERIC_NAMES:
        folder = folder.parent
    return folder.name or path.stem


def read_clip(path: Path) -> ClipCameras:
    """Cameras of one clip in a file or folder of any of the layouts of `load_cameras`, read leniently.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    with reading(path, "file of cameras"):
        return _read_clip(path)


def _read_clip(path: Path) -> ClipCameras:
    if path.is_dir():
        reader = layout_of(path)
        if reader is None:
            raise ValueError(f"{path}: a folder without cameras in a known layout")
        return reader(path)
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if content.get("format") == GENERATION_FORMAT:
            return _from_generation(content, path)
        return _from_nerfstudio(path)
    if path.name == "data.csv" and (folder := _euroc_folder(path)) is not None:
        return _from_euroc(folder)
    if path.name == "groundtruth.txt":
        return _from_tum_sequence(path.parent)
    times = path.with_name(f"{path.stem}_times.txt")
    return _from_trajectory(
        read_trajectory(path, times_path=times if times.is_file() else None, lenient=True)
    )


def _from_generation(content: Mapping[str, Any], path: Path) -> ClipCameras:
    """The path that a generated video was asked to follow, from the record beside it."""
    try:
        status, camera = content["run"]["status"], content.get("camera")
        if status != "complete" or camera is None:
            raise ValueError(f"{path}: the video is not whole ({content.get('message') or status})")
        poses = np.asarray(camera["camera_to_world"], dtype=np.float64)
        focal = np.asarray(camera["intrinsics_px"], dtype=np.float64)[:, :2]
        width, height, fps = int(camera["width"]), int(camera["height"]), float(camera["fps"])
        if poses.shape != (len(focal), 4, 4) or not len(poses):
            raise ValueError(f"{path}: {poses.shape} poses and {len(focal)} lenses")
        note = "made with stand-in weights; the scores say nothing" if content["stand_in"] else None
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: a damaged record of a generated video ({error})") from None
    return ClipCameras(
        frame_index=np.arange(len(poses)),
        camera_to_world=poses,
        focal_px=focal,
        width=width,
        height=height,
        time_s=np.arange(len(poses)) / fps,
        source_step=1.0,
        whole_source=True,
        notes=() if note is None else (note,),
    )


def _from_trajectory(read: Trajectory) -> ClipCameras:
    number = read.frame_number
    return ClipCameras(
        frame_index=np.arange(len(read)) if number is None else number,
        numbering="rows" if number is None else "frames",
        counted=number is not None,
        camera_to_world=read.camera_to_world,
        time_s=read.time_s,
        notes=read.notes,
    )


def _from_colmap(folder: Path) -> ClipCameras:
    return _from_images(read_colmap(folder, on_lens="keep_focal"))


def _from_nerfstudio(path: Path) -> ClipCameras:
    return _from_images(read_nerfstudio(path, undo_applied_transform=True, on_distortion="keep_focal"))


def _from_images(clip: CameraClip) -> ClipCameras:
    """Cameras of named images: by number where every name ends in another one, by time where the names are times."""
    names = clip.image_names or ()
    stems = [Path(name).stem for name in names]
    times = _times_in_names(stems)
    digits = [re.search(r"(\d+)$", stem) for stem in stems]
    numbers = [int(d[1]) for d in digits if d is not None]
    numbered = times is None and len(numbers) == len(clip) == len(set(numbers)) and max(numbers) < 2**62
    return ClipCameras(
        frame_index=np.array(numbers if numbered else range(len(clip)), dtype=np.int64),
        numbering="images" if numbered else "rows",
        camera_to_world=clip.camera_to_world,
        focal_px=clip.focal_px,
        width=clip.width,
        height=clip.height,
        time_s=times,
        names=names or None,
    )


def _times_in_names(stems: Sequence[str]) -> FloatArray | None:
    """Seconds since 1970 of images that are named by them, with a fraction (TUM RGB-D) or in nanoseconds (EuRoC)."""
    if stems and all(re.fullmatch(r"\d{9,10}\.\d+", s) for s in stems):
        return np.array([float(s) for s in stems])
    if stems and all(re.fullmatch(r"\d{18,19}", s) for s in stems):
        return np.array([int(s) / 1e9 for s in stems])
    return None


def _from_tum_sequence(folder: Path) -> ClipCameras:
    """A folder of TUM RGB-D: `groundtruth.txt`, and the times of the colour images in `rgb.txt`."""
    cameras = _from_trajectory(read_trajectory(folder / "groundtruth.txt", lenient=True))
    index = folder / "rgb.txt"
    if not index.is_file() or cameras.time_s is None:
        return cameras
    return replace(cameras, frame_time_s=read_time_list(index).time_s)


def _from_sintel(folder: Path) -> ClipCameras:
    """A folder with a `.cam` file a frame, counted from 1."""
    cameras = read_cam_folder(folder)
    return ClipCameras(
        frame_index=cameras.number,
        numbering="images",
        camera_to_world=cameras.camera_to_world,
    )


def _euroc_table(folder: Path) -> Path | None:
    tables = (inner / name / "data.csv" for inner in (folder / "mav0", folder) for name in _EUROC_SENSORS)
    return next((table for table in tables if table.is_file()), None)


def _euroc_folder(table: Path) -> Path | None:
    return table.parent.parent if table.parent.name in _EUROC_SENSORS else None


def _from_euroc(folder: Path) -> ClipCameras:
    """A sequence of EuRoC: poses of the body (of a sensor on it, moved by its own mounting), moved to the first camera
    where its mounting (`cam0/sensor.yaml`) is there; times of the camera's frames from `cam0/data.csv`."""
    table = _euroc_table(folder)
    assert table is not None, "chosen by layout_of"
    cameras = _from_trajectory(read_table(table, lenient=True))
    sensor = _mounting(table.parent / "sensor.yaml")
    if sensor is not None:
        cameras = replace(cameras, camera_to_world=cameras.camera_to_world @ se3_inverse(sensor))
    camera = table.parent.parent / "cam0"
    mounting = _mounting(camera / "sensor.yaml")
    if mounting is None:
        note = f"{table}: poses of the body; no cam0/sensor.yaml says how the camera is mounted"
        return replace(cameras, notes=(*cameras.notes, note))
    times = None
    if (camera / "data.csv").is_file():
        lines = read_text(camera / "data.csv").splitlines()
        stamps = [int(d[0]) / 1e9 for line in lines if (d := re.match(r"\d+", line))]
        times = np.array(stamps) if stamps else None
    return replace(cameras, camera_to_world=cameras.camera_to_world @ mounting, frame_time_s=times)


def _mounting(path: Path) -> NDArray[np.float64] | None:
    """(4, 4) camera to body, `T_BS` of an EuRoC sensor file."""
    if not path.is_file():
        return None
    with reading(path, "mounting T_BS of 4x4 numbers"):
        # OpenCV's dialect: a %YAML:1.0 line, tags such as !!opencv-matrix
        lines = [line for line in read_text(path).splitlines() if not line.startswith("%")]
        content, _twice = parse_yaml(re.sub(r"!!\S+", "", "\n".join(lines)), path)
        return np.array(content["T_BS"]["data"], dtype=np.float64).reshape(4, 4)
