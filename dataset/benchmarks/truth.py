"""The truth of a sequence, as its set publishes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..arrays import F64, I64, FloatArray
from ..camera_files.record import ClipCameras
from ..camera_files.single import read_clip
from ..formats.sintel import read_cam_folder
from ..inputs import InputError, read_bytes, read_text
from ..media.images import image_size, images_in
from .influx import Partition, lenses_of_video, read_true_lenses
from .protocols import SetName


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A sequence of a set and its files.

    Attributes:
        name: its id.
        media: folder of images, or a video.
        poses: file or folder of its true poses; None: there are none.
    """

    name: str
    media: Path
    poses: Path | None


@dataclass(frozen=True, kw_only=True)
class Lenses:
    """Lenses of frames, true or predicted, in pixels of `height` x `width` with the first pixel's centre at 0.

    Attributes:
        frame: (F,) source frames, increasing. values: (F, 8) as `metrics/lens.py` has them.
        height, width: 0 where they are not known.
    """

    frame: I64
    values: F64
    height: int = 0
    width: int = 0


TUM_LENSES = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
"""fx, fy, cx, cy of the colour cameras, whose images are not undistorted (freiburg3's are). Source: the page of the
file formats of TUM RGB-D."""


TUM_SIZE = (480, 640)
"""Height and width of their images."""


def size_of_images(folder: Path) -> tuple[int, int]:
    """(height, width) of the first image of a folder.

    Raises:
        InputError: there is none that can be read.
    """
    first = next(iter(images_in(folder)), None) if folder.is_dir() else None
    if first is None:
        raise InputError(f"{folder}: holds no image")
    size = image_size(read_bytes(first))
    if size is None:
        raise InputError(f"{first}: no readable image")
    return size


def _with_focal(cameras: ClipCameras, focal_px: F64, media: Path) -> ClipCameras:
    """Cameras with one focal length, or one a pose, in pixels of the images."""
    height, width = size_of_images(media)
    focal = np.broadcast_to(focal_px, (len(cameras.frame_index), 2)).copy()
    return replace(cameras, focal_px=focal, height=height, width=width)


def _numbers(path: Path, text: str, *, count: int) -> F64:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        values = np.zeros(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError(f"{path}: expected {count} numbers, found {text[:80]!r}")
    return values


def _of_tum(sequence: Sequence) -> ClipCameras:
    assert sequence.poses is not None, "asked for where there are some"
    cameras = read_clip(sequence.poses)
    if sequence.poses.name != "groundtruth.txt":  # MonST3R's choice of frames: a row an image
        _same_count(sequence.media, sequence.poses, len(cameras.frame_index), "poses")
        cameras = replace(cameras, time_s=None)
    lens = next((lens for name, lens in TUM_LENSES.items() if name in sequence.name), None)
    if lens is None or size_of_images(sequence.media) != TUM_SIZE:
        return cameras
    return _with_focal(cameras, np.array(lens[:2]), sequence.media)


def _of_eth3d(sequence: Sequence) -> ClipCameras:
    assert sequence.poses is not None, "asked for where there are some"
    path = sequence.poses.with_name("calibration.txt")
    lens = _numbers(path, read_text(path), count=4)
    if lens[:2].min() <= 0:
        raise InputError(f"{path}: focal lengths {lens[0]:g} and {lens[1]:g} must be positive")
    return _with_focal(read_clip(sequence.poses), lens[:2], sequence.media)


def _of_sintel(sequence: Sequence) -> ClipCameras:
    assert sequence.poses is not None, "asked for where there are some"
    intrinsics = read_cam_folder(sequence.poses).intrinsics
    _same_count(sequence.media, sequence.poses, len(intrinsics), "cameras")
    return _with_focal(read_clip(sequence.poses), intrinsics[:, [0, 1], [0, 1]], sequence.media)


def _of_kitti(sequence: Sequence) -> ClipCameras:
    """Poses of camera 0, as they are published, with the focal length of the camera whose images are read."""
    assert sequence.poses is not None, "asked for where there are some"
    cameras = read_clip(sequence.poses)
    _same_count(sequence.media, sequence.poses, len(cameras.frame_index), "poses")
    projection = kitti_projection(sequence.media)
    if projection is None:
        note = f"{_calibration(sequence.media)}: no such file (data_odometry_calib.zip): no focal length is compared"
        return replace(cameras, notes=(*cameras.notes, note))
    return _with_focal(cameras, projection[[0, 1], [0, 1]], sequence.media)


def _calibration(media: Path) -> Path:
    return media.parent / "calib.txt"


def kitti_projection(media: Path) -> F64 | None:
    """(3, 4) projection matrix of the camera whose images lie in `media` (`image_2` and so on), from coordinates of
    camera 0, by `calib.txt` beside it; None without that file.

    Raises:
        InputError: the file has no such camera, or no projection matrix.
    """
    path = _calibration(media)
    if not path.is_file():
        return None
    camera = media.name.removeprefix("image_")
    lines = dict(line.split(":", 1) for line in read_text(path).splitlines() if ":" in line)
    if f"P{camera}" not in lines:
        raise InputError(f"{path}: has no line `P{camera}:`, found {', '.join(sorted(lines))[:80] or 'none'}")
    projection = _numbers(path, lines[f"P{camera}"], count=12).reshape(3, 4)
    if projection[0, 0] <= 0 or projection[1, 1] <= 0 or abs(np.linalg.det(projection[:, :3])) < 1e-9:
        raise InputError(f"{path}: P{camera} is no projection matrix: {lines[f'P{camera}'][:80]!r}")
    return projection


def as_camera_0(camera_to_world: FloatArray, media: Path) -> FloatArray:
    """Metric poses (F, 4, 4) of the camera whose images lie in `media`, moved to KITTI's camera 0, whose poses its
    truth and its server are about: 6 cm, for the colour camera."""
    projection = kitti_projection(media)
    if projection is None:
        return camera_to_world
    to_camera_0 = np.eye(4)  # axes are parallel: all images are rectified
    to_camera_0[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return camera_to_world @ to_camera_0


def _same_count(media: Path, truth: Path, num_true: int, what: str) -> None:
    """Frames are matched by number: images that are missing would shift them."""
    images = len(images_in(media)) if media.is_dir() else 0
    if images != num_true:
        raise InputError(
            f"{media} holds {images} images, but {truth} {num_true} {what}: one of the two is not whole; fetch"
            " or unpack it again"
        )


_READERS: Mapping[SetName, Callable[[Sequence], ClipCameras]] = {
    "tum": _of_tum,
    "eth3d-slam": _of_eth3d,
    "sintel": _of_sintel,
    "kitti": _of_kitti,
}


def true_cameras(name: SetName, sequence: Sequence) -> ClipCameras:
    """True cameras of a sequence that has some.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    return _READERS[name](sequence)


def true_lenses(partitions: tuple[Partition, ...]) -> tuple[dict[str, Lenses], dict[str, str]]:
    """True lenses of the validation videos by clip id, and what is wrong with those that have none."""
    found: dict[str, Lenses] = {}
    problems: dict[str, str] = {}
    for partition in partitions:
        videos = [v for v in partition.videos if v.split == "val"]
        try:
            content = read_true_lenses(partition) if videos else {}
        except InputError as error:
            problems |= dict.fromkeys((partition.clip_id(v) for v in videos), str(error))
            continue
        for video in videos:
            try:
                frame, values = lenses_of_video(content, video, path=partition.truth)
            except InputError as error:
                problems[partition.clip_id(video)] = str(error)
                continue
            found[partition.clip_id(video)] = Lenses(frame=frame, values=values)
    return found, problems
