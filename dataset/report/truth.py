"""Ground truth beside the clips of a report, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import FloatArray
from ..camera_files.load import frames_of_row
from ..camera_files.match import Matching, match
from ..camera_files.record import ClipCameras
from ..rows import Row


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of a clip, one entry per clip frame; NaN where a frame has none.

    Attributes:
        camera_to_world: (F, 4, 4) metres, any world frame; or None.
        focal_px: (F, 2) for the stored size; or None.
        problem: why truth that should be there is not.
    """

    camera_to_world: FloatArray | None = None
    focal_px: FloatArray | None = None
    problem: str | None = None


def truth_of_row(
    row: Row, cameras: ClipCameras, *, matching: Matching | None = None, path: str | Path = ""
) -> Truth:
    """True cameras on the frames of a row, brought together as `evaluate` does it; with a problem where none are."""
    try:
        found = match(row.clip_id, frames_of_row(row), cameras, matching)
    except ValueError as error:
        where = f" ({path})" if str(path) and str(path) not in str(error) else ""
        return Truth(problem=f"{error}{where}")
    poses = np.full((row.num_frames, 4, 4), np.nan)
    poses[found.predicted] = found.truth_camera_to_world
    focal = None
    if cameras.focal_px is not None and cameras.width and cameras.height and row.width:
        focal = np.full((row.num_frames, 2), np.nan)
        size = np.array([row.width / cameras.width, row.height / cameras.height])
        focal[found.predicted] = cameras.focal_px[found.truth] * size
    return Truth(camera_to_world=poses, focal_px=focal)


class TruthByClip(Mapping[str, Truth]):
    """Ground truth by clip id, read when it is asked for: a report shows a few of many clips.

    Args:
        clip_ids: clips that have truth.
        read: gives that of one; a ValueError or OSError costs this clip's truth alone and becomes its `problem`.
    """

    def __init__(self, clip_ids: Iterable[str], read: Callable[[str], Truth]) -> None:
        self._ids, self._read = dict.fromkeys(clip_ids), read

    def __getitem__(self, clip_id: str) -> Truth:
        if clip_id not in self._ids:
            raise KeyError(clip_id)
        try:
            return self._read(clip_id)
        except (ValueError, OSError) as error:
            return Truth(problem=str(error))

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)
