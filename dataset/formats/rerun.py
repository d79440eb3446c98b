"""rerun recordings (`.rrd`): the camera's path, a frustum per frame, pictures and points. Needs the `[viz]`
extra."""

# An optional package: where it is absent, the checker takes this very file for it.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from .base import CameraClip


def require_rerun() -> None:
    """Make sure that recordings can be written.

    Raises:
        ImportError: rerun is not installed.
    """
    try:
        import rerun  # noqa: F401
    except ImportError as error:
        raise ImportError("rerun recordings need rerun-sdk: pip install 'theodolite[viz]'") from error


def write_rerun(
    clip: CameraClip,
    path: str | Path,
    *,
    images: Mapping[int, NDArray[np.uint8]] | None = None,
    points_world: FloatArray | None = None,
    point_colours: NDArray[np.uint8] | None = None,
) -> Path:
    """Write a recording of one clip; returns the file. Open it with `rerun FILE`.

    Timelines: `frame` (clip frame) and, where known, `time` (seconds). Entities: `world/path`, `world/camera`
    (moving, with its own focal length on every frame), `world/camera/image`, `world/points`, and
    `focal_px/x`, `focal_px/y` as curves.

    Args:
        images: RGB pictures (H, W, 3) by clip frame, of any size with the clip's aspect; stored as JPEG.
        points_world: (P, 3) metres; point_colours: (P, 3) uint8.
    Raises:
        ImportError: rerun is not installed.
    """
    require_rerun()
    import rerun as rr

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recording = rr.RecordingStream("theodolite", recording_id=clip.name)
    recording.save(str(path))
    recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)
    centres = clip.camera_to_world[:, :3, 3]
    recording.log("world/path", rr.LineStrips3D([centres.astype(np.float32)]), static=True)
    if points_world is not None:
        points = np.asarray(points_world, dtype=np.float32)
        recording.log("world/points", rr.Points3D(points, colors=point_colours), static=True)
    intrinsics = clip.intrinsics
    extent = float(np.ptp(centres, axis=0).max()) or 1.0
    for i in range(len(clip)):
        recording.set_time("frame", sequence=i)
        if clip.time_s is not None:
            recording.set_time("time", duration=float(clip.time_s[i]))
        pose = clip.camera_to_world[i]
        recording.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        camera = rr.Pinhole(
            image_from_camera=intrinsics[i],
            width=clip.width,
            height=clip.height,
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=0.1 * extent,
        )
        recording.log("world/camera", camera)
        for axis, name in enumerate("xy"):
            recording.log(f"focal_px/{name}", rr.Scalars(float(clip.focal_px[i, axis])))
        if images is not None and i in images:
            recording.log("world/camera/image", rr.Image(_fit(images[i], clip)).compress(jpeg_quality=80))
    recording.disconnect()
    return path


def _fit(image: NDArray[np.uint8], clip: CameraClip) -> NDArray[np.uint8]:
    """Picture in the size that the intrinsics refer to: rerun draws it on the frustum pixel by pixel."""
    if image.shape[:2] == (clip.height, clip.width):
        return image
    import cv2

    return cv2.resize(image, (clip.width, clip.height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
