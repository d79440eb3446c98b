"""Cameras of one clip, of whatever origin, and of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from ..metrics.image import RevisitPair

Numbering = Literal["frames", "rows", "images"]


@dataclass(frozen=True, kw_only=True)
class ClipCameras:
    """Cameras of one clip from whatever file.

    Attributes:
        frame_index: (F,) number of each pose.
        counted: the numbers are those of a file that may count from 1.
        numbering: what it counts: decoded source `frames` from 0; the `rows` of a file that says no more; or `images`
            by the number in their name, which may start anywhere.
        camera_to_world: (F, 4, 4); NaN where the frame has no camera.
        focal_px: (F, 2) for `width` x `height`, or None.
        width, height: stored size, 0 if unknown.
        time_s: (F,) seconds, of a dataset from the source's first frame; or None.
        names: (F,) names of the images, or None.
        frame_time_s: (N,) times of the source's frames, where the layout ships them beside poses at other times.
        source_step: source frames to one frame of the clip, where that is known.
        whole_source: the clip reaches from the first to the last frame of its source, as far as is known.
        source_frames: how many frames that source shows, where it is known.
        returns: pairs of poses at which the camera sees the same again, where a benchmark names them.
        rejection: reasons for which a dataset's clip was rejected; empty: accepted, or no dataset.
        notes: what reading had to decide.
    """

    frame_index: NDArray[np.int64]
    camera_to_world: FloatArray
    numbering: Numbering = "frames"
    counted: bool = False
    focal_px: FloatArray | None = None
    width: int = 0
    height: int = 0
    time_s: FloatArray | None = None
    names: tuple[str, ...] | None = None
    frame_time_s: FloatArray | None = None
    source_step: float | None = None
    whole_source: bool = False
    source_frames: int | None = None
    returns: tuple[RevisitPair, ...] | None = None
    rejection: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def posed(self) -> NDArray[np.bool_]:
        """(F,) frames that have a camera."""
        return np.asarray(np.isfinite(self.camera_to_world).all(axis=(1, 2)))


@dataclass(frozen=True)
class CameraSet(Mapping[str, ClipCameras]):
    """Cameras by clip id, with the clips that have none.

    Attributes:
        clips: those that could be read.
        unreadable: what is wrong with the file, by clip id.
        without_cameras: reasons of rows without any camera, by clip id.
        where: path that was read.
    """

    clips: Mapping[str, ClipCameras]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    without_cameras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: str = ""

    def __getitem__(self, clip_id: str) -> ClipCameras:
        return self.clips[clip_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.clips)

    def __len__(self) -> int:
        return len(self.clips)
