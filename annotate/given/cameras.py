"""Cameras that the source ships: read in whatever layout they come, and laid onto the frames of a clip.

Numbers of frames are taken from the source's own files, and where it has none (stills drawn from a video) from the
pictures. A source frame is no clip frame: a clip takes 16 frames a second, and a source may ship a pose for every sixth
frame of 30. So each pose keeps its place between the clip's frames; nothing is rounded to the nearest one, and nothing
is filled in here. What happens between two given poses is decided where the images are known (`checks/given_poses.py`).
Intrinsics change slowly: between two given ones the focal length is interpolated (in its logarithm), beyond the first
and the last it is held.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray
from ...dataset.cameras.intrinsics import LEAST_FOCAL_SHARE, resize_intrinsics, split_intrinsics
from ...dataset.formats.shipped import ShippedCameras, read_shipped
from ...dataset.formats.trajectories import read_trajectory, words_of
from ...dataset.inputs import InputError, read_csv, read_text
from ...dataset.media.images import image_orientation, images_in
from ...dataset.media.orientation import UPRIGHT, Orientation
from ...dataset.names import fill_pattern
from ...dataset.reasons import ReasonCode
from ..frames.base import ClipFrames
from ..frames.images import source_numbers
from ..sources.clip import ClipRef, ClipRejection
from .depth_files import read_depth_file
from .pixels import centre_belongs_to, shape_belongs_to, turn_of_given
from .stills import locate_stills

MAX_CENTRE_OFFSET = 0.2
"""Largest distance of a given principal point from the image centre, as a share of width or height: more means that the
intrinsics are for images of another size, or normalised."""


@dataclass(frozen=True, kw_only=True)
class GivenCameras:
    """Cameras of a clip as its source gives them; at least one of poses and intrinsics.

    Attributes:
        camera_to_world: (N, 4, 4) OpenCV axes, in the source's unit; or None.
        position: (N,) where they lie in the clip, in clip frames from 0, strictly increasing; between two whole
            numbers where a pose belongs to a source frame that the clip does not take. Empty without poses.
        metres_per_unit: worth of a unit of the poses; None: unknown.
        focal_px, principal_point_px: (F, 2) of every clip frame in pixels of the stored size; or None.
        lens_is_prior: the focal length is only expected to lie near the given one.
    """

    camera_to_world: FloatArray | None
    position: NDArray[np.float64]
    metres_per_unit: float | None
    focal_px: FloatArray | None
    principal_point_px: FloatArray | None
    lens_is_prior: bool = False

    @property
    def stand_alone(self) -> bool:
        """Whether these are whole cameras in metres, which need no depth."""
        return (
            self.camera_to_world is not None
            and self.metres_per_unit is not None
            and self.focal_px is not None
            and not self.lens_is_prior
        )


def read_given_lens(clip: ClipRef, frames: ClipFrames) -> GivenCameras | None:
    """What a clip's source says of its lens alone (`intrinsics_path`), or None if it says nothing.

    Raises:
        ClipRejection: as `read_given_cameras`.
    """
    intrinsics = None if clip.given.cameras_path is not None else given_intrinsics(clip, frames)
    if intrinsics is None:
        return None
    focal_px, principal_point_px = split_intrinsics(intrinsics)
    return GivenCameras(
        camera_to_world=None,
        position=np.zeros(0),
        metres_per_unit=None,
        focal_px=focal_px,
        principal_point_px=principal_point_px,
        lens_is_prior=clip.given.focal == "prior",
    )


def read_given_cameras(clip: ClipRef, frames: ClipFrames) -> GivenCameras | None:
    """What the clip's source says of its cameras, or None if it says nothing.

    Raises:
        ClipRejection: `poses_unreadable`, `intrinsics_unreadable`, `cameras_unreadable`, `pose_count_mismatch`,
            `intrinsics_count_mismatch`, `camera_count_mismatch`, `cameras_not_on_frames`,
            `intrinsics_of_another_size`, `given_orientation_unknown`.
    """
    given = clip.given
    metres = 1.0 if given.poses_metric else given.metres_per_unit
    if given.cameras_path is not None:
        return _shipped(clip, frames, metres)
    if given.camera_to_world_path is None and given.intrinsics_path is None:
        return None
    poses = None
    position = np.zeros(0)
    if given.camera_to_world_path is not None:
        poses = _read_poses(clip, given.camera_to_world_path, frames)
        if turn := _turn_of_poses(clip, given.camera_to_world_path, frames):
            poses = turn.show_poses(poses)
        position = np.arange(len(frames), dtype=np.float64)
    intrinsics = given_intrinsics(clip, frames)
    focal_px, principal_point_px = (None, None) if intrinsics is None else split_intrinsics(intrinsics)
    return GivenCameras(
        camera_to_world=poses,
        position=position,
        metres_per_unit=metres,
        focal_px=focal_px,
        principal_point_px=principal_point_px,
        lens_is_prior=given.focal == "prior",
    )


def given_intrinsics(clip: ClipRef, frames: ClipFrames) -> FloatArray | None:
    """(F, 3, 3) given intrinsics of the clip's frames in pixels of the stored size, or None.

    Raises:
        ClipRejection: as `read_given_cameras`.
    """
    if clip.given.cameras_path is not None:
        metres = clip.given.metres_per_unit
        cameras = _shipped(clip, frames, metres)
        assert cameras.focal_px is not None
        assert cameras.principal_point_px is not None
        intrinsics = np.zeros((len(frames), 3, 3))
        intrinsics[:, [0, 1], [0, 1]] = cameras.focal_px
        intrinsics[:, :2, 2] = cameras.principal_point_px
        intrinsics[:, 2, 2] = 1
        return intrinsics
    path = clip.given.intrinsics_path
    if path is None:
        return None
    source = _intrinsics_file(clip, path)
    if source.ndim == 2:
        source = np.broadcast_to(source, (len(frames), 3, 3))
    else:
        check_count(clip, "intrinsics_count_mismatch", f"rows in {path}", len(source), frames)
        source = source[frames.timing.frame_index]
    size = frames.source_height, frames.source_width
    if turn := turn_of_given(clip, frames, str(path), centre_belongs_to(source, frames)):
        source = turn.show_intrinsics(source, turn.shown_size(size))
    return _to_stored(clip, path, source, size, frames)


def _intrinsics_file(clip: ClipRef, path: Path) -> FloatArray:
    try:
        return read_intrinsics(path)
    except ValueError as error:
        raise ClipRejection("intrinsics_unreadable", f"clip {clip.clip_id}: {error}") from error


def check_count(clip: ClipRef, reason: ReasonCode, described: str, count: int, frames: ClipFrames) -> None:
    """Raise `ClipRejection` unless `count` things are one for every source frame."""
    wanted = frames.num_source_frames
    if wanted is not None and count != wanted:
        raise ClipRejection(
            reason, f"clip {clip.clip_id}: {count} {described}, but {clip.media_path} has {wanted} frames"
        )
    last = int(frames.timing.frame_index[-1])
    if count <= last:
        raise ClipRejection(
            reason, f"clip {clip.clip_id}: {count} {described}, but the clip uses source frame {last}"
        )


# --- layouts of their own -------------------------------------------------------------------------


def _shipped(clip: ClipRef, frames: ClipFrames, metres_per_unit: float | None) -> GivenCameras:
    path, layout = clip.given.cameras_path, clip.given.cameras_format
    assert path is not None
    if layout is None:
        raise ClipRejection(
            "cameras_unreadable", f"clip {clip.clip_id}: {path}: cameras_path needs cameras_format"
        )
    try:
        shipped = read_shipped(path, layout, key=clip.given.cameras_key)
    except ValueError as error:
        raise ClipRejection("cameras_unreadable", f"clip {clip.clip_id}: {error}") from error
    if shipped.complete:
        check_count(clip, "camera_count_mismatch", f"cameras in {path}", len(shipped), frames)
    source_frame, present = _source_frames(clip, path, shipped, frames)
    used = frames.timing.frame_index
    inside = present & (source_frame >= used[0]) & (source_frame <= used[-1])
    if not inside.any():
        raise ClipRejection(
            "cameras_not_on_frames",
            f"clip {clip.clip_id}: none of the {len(shipped)} cameras in {path} (frames"
            f" {shipped.frame_number[0]} to {shipped.frame_number[-1]}) lies among the clip's source frames"
            f" {used[0]} to {used[-1]}",
        )
    position = np.interp(source_frame[inside], used, np.arange(len(used)))
    poses, given_intrinsics = shipped.camera_to_world[inside], shipped.intrinsics[inside]
    size = shipped.image_size or (frames.source_height, frames.source_width)
    if turn := _turn_of_shipped(clip, path, shipped, frames):
        of_file = size if shipped.image_size else turn.shown_size(size)
        poses, given_intrinsics = turn.show_poses(poses), turn.show_intrinsics(given_intrinsics, of_file)
        size = turn.shown_size(of_file)
    intrinsics = _to_stored(clip, path, given_intrinsics, size, frames)
    focal, centre = split_intrinsics(intrinsics)
    frame_numbers = np.arange(len(used), dtype=np.float64)
    return GivenCameras(
        camera_to_world=poses,
        position=position,
        metres_per_unit=metres_per_unit,
        focal_px=np.stack(
            [np.exp(np.interp(frame_numbers, position, np.log(focal[:, i]))) for i in range(2)], 1
        ),
        principal_point_px=np.stack([np.interp(frame_numbers, position, centre[:, i]) for i in range(2)], 1),
        lens_is_prior=clip.given.focal == "prior",
    )


def _turn_of_shipped(clip: ClipRef, path: Path, shipped: ShippedCameras, frames: ClipFrames) -> Orientation:
    """How the cameras' pixels are to be turned to be those that are shown."""
    if shipped.numbering == "stills" and not frames.image_names:
        # They belong to the stills, which were found in the video by what they show; its own flag says nothing of them.
        folder = clip.given.stills_path
        if folder is None or not any(image_orientation(still) for still in images_in(folder)):
            return UPRIGHT
        raise ClipRejection(
            "given_orientation_unknown",
            f"clip {clip.clip_id}: {folder}: the stills ask to be shown turned, and nothing says which of their pixels"
            f" the cameras in {path} are for; store them upright",
        )
    if shipped.image_size is not None:
        found = shape_belongs_to(shipped.image_size, frames)
    else:
        found = centre_belongs_to(shipped.intrinsics, frames)
    return turn_of_given(clip, frames, str(path), found)


def _source_frames(
    clip: ClipRef, path: Path, shipped: ShippedCameras, frames: ClipFrames
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) index of the decoded source frame of each camera, and whether that frame is there."""
    numbers = shipped.frame_number
    if not frames.image_names:
        if shipped.numbering == "stills":
            return _stills_in_video(clip, path, shipped, frames)
        count = frames.num_source_frames
        if count is not None and numbers[-1] >= count:
            raise ClipRejection(
                "camera_count_mismatch",
                f"clip {clip.clip_id}: {path} has a camera for frame {numbers[-1]}, but {clip.media_path} has {count}"
                " frames",
            )
        return numbers, np.ones(len(numbers), bool)
    found = _by_number(clip, path, frames.image_names, clip.media_path)
    source = np.array([found.get(int(n), -1) for n in numbers], np.int64)
    return source, source >= 0


def _stills_in_video(
    clip: ClipRef, path: Path, shipped: ShippedCameras, frames: ClipFrames
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """As `_source_frames`, by looking the stills up in the video."""
    folder = clip.given.stills_path
    if folder is None or not folder.is_dir():
        found = "stills_path names no folder" if folder is None else f"{folder} is no folder"
        raise ClipRejection(
            "cameras_not_on_frames",
            f"clip {clip.clip_id}: {path} gives cameras of stills by their names, and {clip.media_path} is a video:"
            f" which of its frames they are is found by looking at them, but {found}. Name the folder of the stills as"
            " stills_path, or as media_path",
        )
    names = [entry.name for entry in images_in(folder)]
    number_of_name = _by_number(clip, path, names, folder)
    known = np.array([int(n) in number_of_name for n in shipped.frame_number])
    source = np.full(len(shipped), -1, np.int64)
    if known.any():
        stills = [folder / names[number_of_name[int(n)]] for n in shipped.frame_number[known]]
        source[known] = locate_stills(clip, frames, stills)
    return source, source >= 0


def _by_number(clip: ClipRef, path: Path, names: Sequence[str], folder: Path) -> dict[int, int]:
    """Number at the end of each image's name -> its place in `names`."""
    found: dict[int, int] = {}
    for index, name in enumerate(names):
        digits = re.search(r"(\d+)$", Path(name).stem)
        if digits is None or int(digits[1]) in found:
            why = "has no number" if digits is None else "has the number of another image"
            raise ClipRejection(
                "cameras_not_on_frames",
                f"clip {clip.clip_id}: {path} gives cameras by number of the image, but {name!r} in {folder} {why} at"
                " the end of its name",
            )
        found[int(digits[1])] = index
    return found


# --- plain text -----------------------------------------------------------------------------------


def _turn_of_poses(clip: ClipRef, path: Path, frames: ClipFrames) -> Orientation:
    """Poses say nothing of their pixels: they go with the intrinsics beside them, else with the depth."""
    given, found = clip.given, None
    if frames.orientation and given.intrinsics_path is not None:
        found = centre_belongs_to(_intrinsics_file(clip, given.intrinsics_path).reshape(-1, 3, 3), frames)
    elif frames.orientation and given.depth_pattern is not None:
        pattern = Path(given.depth_pattern)
        numbers = source_numbers(clip, frames)
        maps = (pattern.with_name(fill_pattern(pattern.name, frame=int(i))) for i in numbers)
        if (first := next((path for path in maps if path.is_file()), None)) is not None:
            found = shape_belongs_to(read_depth_file(first, clip_id=clip.clip_id).shape, frames)
    return turn_of_given(clip, frames, str(path), found)


def _read_poses(clip: ClipRef, path: Path, frames: ClipFrames) -> FloatArray:
    """(F, 4, 4) camera-to-world of the clip's frames."""
    try:
        poses = read_trajectory(path).camera_to_world
    except ValueError as error:
        raise ClipRejection("poses_unreadable", f"clip {clip.clip_id}: {error}") from error
    check_count(clip, "pose_count_mismatch", f"poses in {path}", len(poses), frames)
    return poses[frames.timing.frame_index]


def _to_stored(
    clip: ClipRef, path: Path, intrinsics: FloatArray, size: tuple[int, int], frames: ClipFrames
) -> FloatArray:
    """(N, 3, 3) intrinsics for images of `size` (height, width), in pixels of the stored size."""
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.abs(intrinsics[:, [0, 1], 2] / np.array([size[1], size[0]]) - 0.5)
    offset = np.nan_to_num(offset, nan=np.inf)
    if offset.max() > MAX_CENTRE_OFFSET:
        i = int(offset.max(1).argmax())
        raise ClipRejection(
            "intrinsics_of_another_size",
            f"clip {clip.clip_id}: {path}: principal point ({intrinsics[i, 0, 2]:g}, {intrinsics[i, 1, 2]:g}) in images"
            f" of {size[1]}x{size[0]} is {100 * offset[i].max():.0f} % off the centre; are the intrinsics normalised,"
            " or for another size?",
        )
    focal = intrinsics[:, [0, 1], [0, 1]]
    if (focal < LEAST_FOCAL_SHARE * np.array([size[1], size[0]])).any():
        raise ClipRejection(
            "intrinsics_of_another_size",
            f"clip {clip.clip_id}: {path}: a focal length of {focal.min():g} in images of {size[1]}x{size[0]} is of no"
            " lens; is it normalised, or in millimetres?",
        )
    return resize_intrinsics(intrinsics, from_size=size, to_size=(frames.height, frames.width))


def read_intrinsics(path: Path) -> FloatArray:
    """Intrinsics of a file, in pixels of the source image.

    Returns:
        (3, 3) of a text file with three rows of three numbers, or (N, 3, 3) of a CSV with the columns fx, fy, cx
        and cy (others are ignored), a row per source frame.
    Raises:
        ValueError: the file is neither, or holds impossible numbers.
    """
    expected = "expected 3 rows of 3 numbers, or CSV with columns fx, fy, cx, cy"
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    except InputError as error:
        raise InputError(f"{error}; the file of intrinsics cannot be read, {expected}") from None
    try:
        if lines and "fx" in lines[0]:
            rows = read_csv(path)
            values = np.array([[float(row[name]) for name in ("fx", "fy", "cx", "cy")] for row in rows])
            values = values.reshape(-1, 4)
            intrinsics = np.zeros((len(values), 3, 3))
            intrinsics[:, 0, 0], intrinsics[:, 1, 1] = values[:, 0], values[:, 1]
            intrinsics[:, 0, 2], intrinsics[:, 1, 2] = values[:, 2], values[:, 3]
            intrinsics[:, 2, 2] = 1.0
        else:
            intrinsics = np.array(
                [[float(word) for word in words] for line in lines if (words := words_of(line))]
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {expected} ({error})") from error
    if intrinsics.size == 0 or intrinsics.shape[-2:] != (3, 3):
        raise ValueError(f"{path}: found shape {intrinsics.shape}; {expected}")
    focal = np.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]])
    if not (np.isfinite(intrinsics).all() and (focal > 0).all()):
        raise ValueError(f"{path}: intrinsics must be finite with positive focal lengths")
    return intrinsics
