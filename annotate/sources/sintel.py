"""MPI Sintel: the training sequences, rendered as `final` or `clean`, with their depth and cameras.

`training/final/alley_1/frame_0001.png` comes from MPI-Sintel-complete.zip (or -training_images.zip),
`training/camdata_left/alley_1/frame_0001.cam` and `training/depth/alley_1/frame_0001.dpt` from
MPI-Sintel-depth-training-20150305.zip; the two may lie in one tree or beside each other. 24 frames a second. Sequences
for testing (`test/`) have neither cameras nor depth and are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...dataset.media.images import images_in
from .clip import ClipRef, GivenGeometry
from .tree import Layout, Release, only_folder

FPS = 24.0


def _read(release: Release, render: Literal["final", "clean"]) -> Iterator[ClipRef]:
    images = only_folder(release.root, render, beside="test")
    if images is None:
        return
    cameras = only_folder(release.root, "camdata_left", beside="test")
    depth = only_folder(release.root, "depth", beside="test")
    for name in sorted(os.listdir(images)):
        folder = images / name
        if name.startswith(".") or not folder.is_dir():
            continue
        if not images_in(folder):
            problem = ("unreadable_video", f"{folder}: holds no image; was all of it unpacked?")
        else:
            problem = None
        truth = None if cameras is None else _there(cameras / name)
        maps = None if depth is None else _there(depth / name)
        yield from release.cut(
            name,
            media_path=folder,
            original_id=f"{render}/{name}",
            media_kind="images",
            source_fps=FPS,
            numbered=True,
            problem=problem,
            given=GivenGeometry(
                depth_pattern=None if maps is None else str(maps / "frame_{frame:04d}.dpt"),
                depth_units_per_metre=1.0,
                depth_view=1.0,
            ),
            truth_camera_to_world_path=truth,
        )


def _there(path: Path) -> Path | None:
    return path if path.is_dir() else None


FINAL = Layout(read=lambda release: _read(release, "final"))
CLEAN = Layout(read=lambda release: _read(release, "clean"))
