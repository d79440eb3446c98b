"""What every format carries: cameras of one clip, and the one gate through which rows leave the dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from ..cameras.intrinsics import intrinsics_matrix, resize_intrinsics, split_intrinsics
from ..cameras.rotations import orthonormalise
from ..cameras.transforms import rigid_error, transform
from ..limits import MAX_SIDE_PX
from ..media.write import VideoWriter
from ..names import check_name
from ..rows import Row

Pictures = Callable[["CameraClip"], Iterator[NDArray[np.uint8]]]
"""Gives the RGB frames of a clip, (height, width, 3) uint8, one for each camera."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraClip:
    """Cameras of one clip, independent of any file format.

    Attributes:
        name: a clip id, by the rule of `names`.
        camera_to_world: (F, 4, 4) float64, OpenCV axes, metres (or the unit of the file it was read from).
        focal_px, principal_point_px: (F, 2) for `height` x `width`; pixel centres at +0.5.
        radial_k1, radial_k2: x_px = f n (1 + k1 |n|^2 + k2 |n|^4) + c, or None for a pinhole.
        time_s: (F,) seconds from the clip's first frame.
        media: pointer to the media, and frame_index: (F,) which of its decoded frames each camera belongs to.
        image_names: (F,) names of stills, if the format needs or gave them.
        caption: one text, or None.
        scores: numbers by name, for formats with score sidecars.
        constant_lens: whether it is known that the lens stays: what `focal_px` varies by, a hundredth of a pixel and
            less, is how closely it was solved.
    """

    name: str
    camera_to_world: FloatArray
    focal_px: FloatArray
    principal_point_px: FloatArray
    height: int
    width: int
    radial_k1: float | None = None
    radial_k2: float | None = None
    time_s: FloatArray | None = None
    media: str | None = None
    frame_index: NDArray[np.integer] | None = None
    image_names: tuple[str, ...] | None = None
    caption: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    constant_lens: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        frames = len(self.camera_to_world)
        for name, tail in (("camera_to_world", (4, 4)), ("focal_px", (2,)), ("principal_point_px", (2,))):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != (frames, *tail):
                raise ValueError(
                    f"clip {self.name}: {name} has shape {value.shape}, expected {(frames, *tail)}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"clip {self.name}: {name} is not finite")
            object.__setattr__(self, name, value)
        if not 0 < self.height <= MAX_SIDE_PX or not 0 < self.width <= MAX_SIDE_PX:
            raise ValueError(
                f"clip {self.name}: stored size is {self.width}x{self.height}, expected 1 to {MAX_SIDE_PX} pixels a"
                " side; intrinsics need it"
            )
        for name in ("time_s", "frame_index", "image_names"):
            value = getattr(self, name)
            if value is not None and len(value) != frames:
                raise ValueError(f"clip {self.name}: {len(value)} {name} for {frames} frames")

    def __len__(self) -> int:
        return len(self.camera_to_world)

    @property
    def intrinsics(self) -> FloatArray:
        """(F, 3, 3) in pixels of the stored size."""
        return intrinsics_matrix(self.focal_px, self.principal_point_px)

    def resized(self, *, height: int, width: int) -> CameraClip:
        """The same cameras for images of another size."""
        k = resize_intrinsics(self.intrinsics, from_size=(self.height, self.width), to_size=(height, width))
        focal, centre = split_intrinsics(k)
        values = {
            **self.__dict__,
            "focal_px": focal,
            "principal_point_px": centre,
            "height": height,
            "width": width,
        }
        return CameraClip(**values)


def camera_clip(row: Row) -> CameraClip:
    """Cameras of a row, ready for export.

    Raises:
        ValueError: the row was made with stand-in weights, was rejected, lacks a camera on some frame, or is of a
            fisheye.
    """
    if row.stand_in:
        raise ValueError(f"clip {row.clip_id}: made with stand-in weights; such rows are never exported")
    if row.verdict != "accepted":
        raise ValueError(
            f"clip {row.clip_id}: rejected ({', '.join(row.reasons)}); only accepted clips are exported"
        )
    if (row.pose_source == 0).any():
        raise ValueError(f"clip {row.clip_id}: {int((row.pose_source == 0).sum())} frames have no camera")
    if row.lens_model == "fisheye":
        raise ValueError(
            f"clip {row.clip_id}: seen through a fisheye; formats that carry pictures take it undistorted (--undistort)"
        )
    captions = row.captions or {}
    numbers = {
        name: float(value)
        for name in ("path_length_m", "metres_per_unit", "reprojection_rms_px", "scale_mad_log", "confidence")
        if (value := getattr(row, name)) is not None
    }
    poses = row.camera_to_world.astype(np.float64)
    if float(rigid_error(poses).max()) > 1e-5:
        raise ValueError(f"clip {row.clip_id}: camera_to_world is not rigid; run `theodolite validate`")
    # Storage rounds to float32; formats with quaternions need rotations that are exact in float64.
    poses = transform(orthonormalise(poses[:, :3, :3]), poses[:, :3, 3])
    return CameraClip(
        name=row.clip_id,
        camera_to_world=poses,
        focal_px=row.focal_px.astype(np.float64),
        principal_point_px=row.principal_point_px.astype(np.float64),
        height=row.height,
        width=row.width,
        radial_k1=row.radial_k1,
        radial_k2=row.radial_k2,
        time_s=row.time_s - row.time_s[0],
        media=row.media,
        frame_index=row.frame_index,
        caption=next(iter(captions.values()), None),
        scores=numbers | {k: float(v) for k, v in (row.metrics or {}).items()},
        constant_lens=row.focal_model == "constant",
    )


def mean_rate_hz(clip: CameraClip) -> float:
    """Frames a second on average. Raises ValueError for a clip without times or with a single frame."""
    if clip.time_s is None or len(clip) < 2:
        raise ValueError(f"clip {clip.name}: {len(clip)} frames, times are needed for a frame rate")
    return (len(clip) - 1) / float(clip.time_s[-1] - clip.time_s[0])


def write_video(video: VideoWriter, clip: CameraClip, pictures: Pictures) -> None:
    """Append all frames of a clip to a video.

    Raises:
        ValueError: more or fewer frames than cameras, which then no longer belong to each other.
    """
    count = 0
    for rgb in pictures(clip):
        video.write(rgb)
        count += 1
    if count != len(clip):
        raise ValueError(f"clip {clip.name}: {count} pictures for {len(clip)} cameras")
