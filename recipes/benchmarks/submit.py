"""What a set's server takes: InFlux one file of lenses, the others a trajectory a sequence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...annotate.sources.clip import ClipRef
from ...dataset.arrays import F64
from ...dataset.benchmarks.influx import write_submission
from ...dataset.benchmarks.protocols import Protocol
from ...dataset.benchmarks.score import lenses_of_row
from ...dataset.benchmarks.truth import as_camera_0, size_of_images
from ...dataset.camera_files.load import cameras_of_row
from ...dataset.formats.time_lists import read_time_list
from ...dataset.formats.trajectories import write_kitti, write_tum
from ...dataset.inputs import InputError
from ...dataset.media.container import video_size
from ...dataset.media.images import images_in
from ...dataset.rows import Row
from .look import Found

SUBMISSION, TRAJECTORIES = "submission.json", "trajectories"


def source_size(clip: ClipRef) -> tuple[int, int]:
    """(height, width) of the pictures of a sequence.

    Raises:
        ValueError: its media cannot be read.
    """
    return size_of_images(clip.media_path) if clip.media_kind == "images" else video_size(clip.media_path)


def submit_lenses(found: Found, rows: Iterable[Row], out: Path, *, method: str) -> dict[str, str | int]:
    """Write InFlux's submission; see `write_submission`. Videos without a usable row are `null`."""
    lenses = {}
    for row in rows:
        made = lenses_of_row(row, source_size(found.clips[row.clip_id]))
        lenses[row.clip_id] = made.frame, made.values
    path = out / SUBMISSION
    return {"file": str(path), **write_submission(path, found.partitions, lenses, method=method)}


def write_trajectories(
    found: Found, rows: Iterable[Row], out: Path, *, protocol: Protocol
) -> dict[str, str | int]:
    """Write a trajectory a sequence in the set's own format, frames without a camera left out where it has times."""
    folder, written = out / TRAJECTORIES, 0
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        cameras = cameras_of_row(row)
        if cameras is None:
            continue
        posed = cameras.posed
        path = folder / f"{row.clip_id}.txt"
        if protocol.trajectories == "kitti":
            if not posed.all() or not np.array_equal(row.frame_index, np.arange(row.num_frames)):
                continue  # a line a frame is all that the format knows
            media = found.clips[row.clip_id].media_path
            write_kitti(path, as_camera_0(cameras.camera_to_world, media))
        else:
            times = _image_times(found.clips[row.clip_id].media_path)
            write_tum(path, cameras.camera_to_world[posed], times[row.frame_index[posed]])
        written += 1
    return {"folder": str(folder), "sequences": written}


def _image_times(media: Path) -> F64:
    """(N,) seconds of the images of a sequence, by the list beside their folder, of which they may be a part; of those
    that it does not name by their own names."""
    images, index = images_in(media), media.parent / "rgb.txt"
    known: dict[str, float] = {}
    if index.is_file():
        listed = read_time_list(index)
        known = dict(zip((Path(name).name for name in listed.names), listed.time_s.tolist(), strict=True))

    def time_of(path: Path) -> float:
        try:
            return known[path.name] if path.name in known else float(path.stem)
        except ValueError:
            raise InputError(f"{path}: neither {index} nor its own name says when it was taken") from None

    return np.array([time_of(path) for path in images])
