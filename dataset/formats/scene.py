"""What a radiance field is trained from beside the cameras: the clip's pictures as files, and points seen in them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..media.images import decode_image
from ..media.undistort import ClipPictures
from ..rows import Row
from .base import CameraClip
from .colmap import ColmapPoints

FindPoints = Callable[[Row, Iterator[NDArray[np.uint8]]], ColmapPoints]
"""Gives points of the scene and where they are seen, by a clip and its frames; takes all of the frames."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Cameras of a clip with the names of its pictures, and points in them if there are any."""

    clip: CameraClip
    points: ColmapPoints | None


def write_scene_images(
    pictures: ClipPictures,
    clip: CameraClip,
    folder: Path,
    *,
    names: Sequence[str],
    points: FindPoints | None,
) -> Scene:
    """Write a picture for every camera into `folder`, and find points in them on the way.

    Frames of a video become PNG files. Images of a folder keep their names, and their files where those hold the very
    pixels that the cameras belong to (neither resized nor turned by EXIF); the others become PNG files of that name.

    Args:
        pictures: as they are, or undistorted. clip: the cameras that belong to them.
        names: one a frame, for those that have none of their own; they end in `.png`.
    Raises:
        ValueError: the media is missing or unreadable, or there are two pictures of one name.
    """
    folder.mkdir(parents=True)
    written: list[str] = []

    def passing() -> Iterator[NDArray[np.uint8]]:
        for name, file, rgb in zip(names, pictures.files(), pictures.frames(), strict=True):
            written.append(_write_image(folder, name, file, rgb))
            yield rgb

    frames = passing()
    found = None if points is None else points(pictures.row, frames)
    for _rgb in frames:  # what nobody has taken yet
        pass
    if len(set(written)) < len(written):
        twice = next(name for name in written if written.count(name) > 1)
        raise ValueError(f"clip {clip.name}: two pictures are called {twice}")
    return Scene(clip=replace(clip, image_names=tuple(written)), points=found)


def _write_image(folder: Path, name: str, file: Path | None, rgb: NDArray[np.uint8]) -> str:
    """Write one picture and return its name."""
    if file is not None and file.suffix.lower() in (".png", ".jpg", ".jpeg"):
        content = file.read_bytes()
        if np.array_equal(decode_image(content, file)[..., ::-1], rgb):
            (folder / file.name).write_bytes(content)
            return file.name
    name = name if file is None else f"{file.stem}.png"
    done, content = cv2.imencode(".png", rgb[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise OSError(errno.EIO, "OpenCV cannot write the picture", str(folder / name))
    (folder / name).write_bytes(content.tobytes())
    return name
