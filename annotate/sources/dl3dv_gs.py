"""DL3DV-GS: clips rendered along new paths from 3D Gaussian splats of DL3DV scenes, with the cameras of the renderer.

There is no public release of such renderings; this is the layout that ours are written in, and that of SolarWM's clips:
a folder a clip with `video.mp4`, `poses.npy` (F, 4, 4) camera-to-world with OpenCV axes, `intrinsics.npy` in pixels of
the video, and `meta.json`. Poses are exact for every frame, in the unit of the scene's COLMAP model unless `meta.json`
says what that is worth (`metres_per_unit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...dataset.inputs import InputError, read_json
from .clip import ClipRef, GivenGeometry
from .tree import Layout, Release, folders_with, positive


def _read(release: Release) -> Iterator[ClipRef]:
    for folder in folders_with(release.root, "poses.npy"):
        meta = _meta(folder / "meta.json")
        name = folder.relative_to(release.root).as_posix()
        yield from release.cut(
            name,
            media_path=folder / "video.mp4",
            original_id=release.relative(folder),
            media_kind="video",
            given=GivenGeometry(
                cameras_path=folder,
                cameras_format="rendered",
                metres_per_unit=positive(str(meta.get("metres_per_unit"))),
            ),
        )


def _meta(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except InputError:
        return {}


LAYOUT = Layout(read=_read)
