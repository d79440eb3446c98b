"""A rendered clip as the files that sources ship: video or images, depth maps, cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32
from ...dataset.media.write import VideoWriter
from .render import RenderedClip, RenderedFrame


def depth_to_uint16(depth_m: F32, *, units_per_metre: float) -> NDArray[np.uint16]:
    """(h, w) uint16 depth as RGB-D recordings store it, 0 = no value.

    Args:
        depth_m: (h, w) metres; NaN, infinite and non-positive values become 0.
        units_per_metre: stored value of one metre (1000 for millimetres).
    Raises:
        ValueError: a finite depth does not fit into 16 bits.
    """
    usable = np.isfinite(depth_m) & (depth_m > 0)
    stored = np.rint(np.where(usable, depth_m, 0.0) * units_per_metre)
    if stored.max(initial=0) > 65535:
        raise ValueError(
            f"depth of {float(depth_m[usable].max()):.3f} m at {units_per_metre} units per metre does not"
            " fit into 16 bits; use fewer units per metre"
        )
    return stored.astype(np.uint16)


def write_depth_png(path: Path, depth_m: F32, *, units_per_metre: float) -> None:
    """Write (h, w) metres as 16-bit PNG; see `depth_to_uint16`."""
    write_png(path, depth_to_uint16(depth_m, units_per_metre=units_per_metre))


def write_png(path: Path, image: NDArray) -> None:
    """Write (h, w, 3) uint8 RGB or (h, w) uint16 to `path`.

    Raises:
        ValueError: the file cannot be written.
    """
    stored = image[..., ::-1] if image.ndim == 3 else image
    if not cv2.imwrite(str(path), stored, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise ValueError(f"{path}: cannot write the image; does the folder exist?")


@dataclass(frozen=True, kw_only=True)
class RenderedFiles:
    """Where `write_clip` put things.

    Attributes:
        media_path: the mp4, or the folder of PNG frames.
        depth_pattern: path with a `{frame:06d}` field, or None if no depth was asked for.
        camera_to_world_path: (F) rows of 16 numbers, 4x4 row by row, metres.
        intrinsics_path: CSV with columns fx, fy, cx, cy.
    """

    media_path: Path
    depth_pattern: str | None
    camera_to_world_path: Path
    intrinsics_path: Path


def write_clip(
    clip: RenderedClip,
    folder: Path,
    *,
    media: Literal["video", "images"] = "video",
    depth_units_per_metre: float | None = 1000.0,
) -> RenderedFiles:
    """Render `clip` once into `folder`: colour, depth PNGs, poses and intrinsics.

    Args:
        clip: what to write.
        folder: made if missing.
        media: `rgb.mp4`, or `rgb/000000.png` and so on.
        depth_units_per_metre: stored depth value of one metre; None writes no depth.
    """
    config = clip.config
    folder.mkdir(parents=True, exist_ok=True)
    depth_folder, image_folder = folder / "depth", folder / "rgb"
    if depth_units_per_metre is not None:
        depth_folder.mkdir(exist_ok=True)
    media_path = folder / "rgb.mp4" if media == "video" else image_folder

    def write_depth(i: int, frame: RenderedFrame) -> None:
        if depth_units_per_metre is not None:
            write_depth_png(
                depth_folder / f"{i:06d}.png", frame.depth_m, units_per_metre=depth_units_per_metre
            )

    if media == "video":
        with VideoWriter(media_path, width=config.width, height=config.height, fps=config.fps) as video:
            for i, frame in enumerate(clip):
                video.write(frame.rgb)
                write_depth(i, frame)
    else:
        image_folder.mkdir(exist_ok=True)
        for i, frame in enumerate(clip):
            write_png(image_folder / f"{i:06d}.png", frame.rgb)
            write_depth(i, frame)

    poses_path, intrinsics_path_ = folder / "poses_c2w.txt", folder / "intrinsics.csv"
    np.savetxt(poses_path, clip.camera_to_world.reshape(len(clip), 16), fmt="%.12g")
    rows = clip.intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    np.savetxt(intrinsics_path_, rows, fmt="%.9g", delimiter=",", header="fx,fy,cx,cy", comments="")
    return RenderedFiles(
        media_path=media_path,
        depth_pattern=str(depth_folder / "{frame:06d}.png") if depth_units_per_metre is not None else None,
        camera_to_world_path=poses_path,
        intrinsics_path=intrinsics_path_,
    )
