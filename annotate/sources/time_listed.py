"""TUM RGB-D and ETH3D SLAM: sequences whose images are named by their times and listed in `rgb.txt`.

A sequence is a folder with `rgb.txt` and `rgb/`; `depth.txt` lists its depth (16-bit PNG, 5000 a metre, registered to
the colour, zero where there is none), `groundtruth.txt` holds camera-to-world poses at times of their own, where they
are published. ETH3D's also have `calibration.txt` (fx fy cx cy), by which they are told apart. Clips are called as
their folders are. Images and list must agree: frames are numbered by both. Source: the file formats that
cvg.cit.tum.de and eth3d.net describe.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ...dataset.formats.time_lists import TimeList, read_time_list
from ...dataset.inputs import InputError
from ...dataset.media.images import images_in
from ...dataset.reasons import ReasonCode
from .clip import ClipRef, GivenGeometry
from .tree import Layout, Once, Release, folders_with, rate_of

DEPTH_UNITS_PER_METRE = 5000.0
_MOST_NAMED = 3


def _read_tum(release: Release) -> Iterator[ClipRef]:
    return _read(release, folders_with(release.root, "rgb.txt"))


def _read_eth3d(release: Release) -> Iterator[ClipRef]:
    folders = folders_with(release.root, "rgb.txt")
    return _read(release, (f for f in folders if (f / "calibration.txt").is_file()))


def _read(release: Release, folders: Iterator[Path]) -> Iterator[ClipRef]:
    once = Once(release.root)
    for folder in folders:
        once.check(folder.name, folder)
        media, fps, problem = _images(folder)
        yield from _clip(release, folder, media, fps, problem, truth="groundtruth.txt")


def _clip(
    release: Release,
    folder: Path,
    media: Path,
    fps: float | None,
    problem: tuple[ReasonCode, str] | None,
    *,
    truth: str,
) -> Iterator[ClipRef]:
    """The sequence in `folder`, whose images lie in `media`."""
    depth = folder / "depth.txt"
    return release.cut(
        folder.name,
        media_path=media,
        original_id=folder.name,
        media_kind="images",
        source_fps=fps,
        problem=problem,
        given=GivenGeometry(
            depth_list_path=depth if depth.is_file() else None,
            depth_units_per_metre=DEPTH_UNITS_PER_METRE,
            depth_view=1.0,  # both sets ship it registered
        ),
        truth_camera_to_world_path=folder / truth if (folder / truth).is_file() else None,
    )


def _read_tum_dynamics(release: Release) -> Iterator[ClipRef]:
    """Every third of the first 270 frames, as MonST3R's preparation of TUM copies them into `rgb_90/`, with a true pose
    of each in `groundtruth_90.txt`, row by row."""
    once = Once(release.root)
    for folder in folders_with(release.root, "groundtruth_90.txt"):
        once.check(folder.name, folder)
        media = folder / "rgb_90"
        problem: tuple[ReasonCode, str] | None = None
        names = [path.stem for path in images_in(media)] if media.is_dir() else []
        try:
            rate = rate_of([float(name) for name in names])
        except ValueError:
            rate = None
        if rate is None:
            problem = ("unreadable_video", f"{media}: holds no images that are named by their times")
        yield from _clip(release, folder, media, rate, problem, truth="groundtruth_90.txt")


def _images(folder: Path) -> tuple[Path, float | None, tuple[ReasonCode, str] | None]:
    """Folder of a sequence's images, their rate, and what is wrong with them."""
    index = folder / "rgb.txt"
    try:
        listed = read_time_list(index)
        places = {PurePosixPath(name).parent.as_posix() for name in listed.names}
        if len(places) > 1:
            raise InputError(f"{index}: lists images in several folders, {', '.join(sorted(places)[:3])}")
        media = folder / places.pop()
        _check_same(index, listed, media)
    except InputError as error:
        return folder / "rgb", None, ("unreadable_video", str(error))
    return media, rate_of(listed.time_s.tolist()), None


def _check_same(index: Path, listed: TimeList, media: Path) -> None:
    """The folder holds the listed images, no others, in the same order.

    Raises:
        InputError: it does not, naming images.
    """
    if not media.is_dir():
        raise InputError(
            f"{media}: no such folder, but {index.name} lists images in it; was all of it unpacked?"
        )
    wanted = [PurePosixPath(name).name for name in listed.names]
    there = [path.name for path in images_in(media)]
    if there == wanted:
        return
    for names, others, what in (
        (wanted, set(there), f"images that {index} lists are not in {media}; fetch or unpack it again"),
        (there, set(wanted), f"images in {media} are not listed in {index}; move them elsewhere"),
    ):
        lacking = [name for name in names if name not in others]
        if lacking:
            shown = ", ".join(lacking[:_MOST_NAMED]) + (" ..." if len(lacking) > _MOST_NAMED else "")
            raise InputError(f"{len(lacking)} of {len(names)} {what} ({shown})")
    first = int(np.flatnonzero([a != b for a, b in zip(wanted, there, strict=True)])[0])
    raise InputError(f"{index}: lists {wanted[first]} where {there[first]} comes by its name")


TUM = Layout(read=_read_tum)
TUM_DYNAMICS = Layout(read=_read_tum_dynamics)
ETH3D = Layout(read=_read_eth3d)
