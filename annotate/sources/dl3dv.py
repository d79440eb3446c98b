"""DL3DV: scenes with their videos, with stills that were drawn from them, and with COLMAP's models of the stills.

The three come from different repositories, which put a scene into different batches (one of them called `problem`):
scenes are matched by their hash of 64 digits. Stills are 250 to 400 a scene, spread evenly over the whole video: four
or five a second. Source: DL3DV-10K/Dataset, scripts/download.py and cache/DL3DV-valid.csv.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from ...dataset.formats.colmap import has_colmap_model
from .clip import ClipRef, GivenGeometry
from .tree import Layout, Listed, Release, find_table, folders_with, positive, rows_of, table_by, walk

IMAGES = ("images_4", "images_2", "images", "images_8")
"""Folders of stills, the wanted size first: 960x540, then larger, then smaller."""
_INDEX = ("cache/DL3DV-valid.csv", "DL3DV-valid.csv")
_HASH = re.compile(r"[0-9a-f]{64}")


def _read_videos(release: Release, cameras: Literal["transforms", "colmap"]) -> Iterator[ClipRef]:
    """The video of a scene, or its windows, with the cameras of the stills that were drawn from it."""
    root = release.root
    durations = table_by(find_table(release, *_INDEX), "hash") if release.windows is not None else {}
    videos = {_scene_of(folder, root): folder / "video.mp4" for folder in folders_with(root, "video.mp4")}
    stills = _scenes_with_stills(root) if cameras == "colmap" else {}
    # Some scenes have no COLMAP model at all.
    models = (
        folders_with(root, "transforms.json")
        if cameras == "transforms"
        else (folder for folder in _scene_folders(root) if has_colmap_model(folder))
    )
    for folder in models:
        scene = _scene_of(folder, root)
        if cameras == "transforms":
            given = GivenGeometry(
                cameras_path=folder / "transforms.json",
                cameras_format="dl3dv",
                stills_path=stills_folder(folder),
            )
        else:
            given = GivenGeometry(
                cameras_path=folder,
                cameras_format="colmap",
                stills_path=stills.get(scene, folder / "images"),
            )
        yield from release.cut(
            scene,
            media_path=videos.get(scene, folder / "video.mp4"),
            duration_s=positive(durations.get(scene, {}).get("duration")),
            original_id=release.relative(folder),
            media_kind="video",
            given=given,
        )


def _read_stills(release: Release) -> Iterator[ClipRef]:
    """The stills of a scene and nothing between them, with the cameras of `transforms.json`.

    How many there are a second depends on the video's duration, which the set's index has. Without it a clip has no
    time.
    """
    durations = table_by(find_table(release, *_INDEX), "hash")
    for folder in folders_with(release.root, "transforms.json"):
        scene, images = _scene_of(folder, release.root), stills_folder(folder)
        numbers = [int(m[1]) for p in images.glob("*.*") if (m := re.search(r"(\d+)$", p.stem))]
        duration_s = positive(durations.get(scene, {}).get("duration"))
        fps = max(numbers) / duration_s if duration_s and numbers else None
        yield from release.cut(
            scene,
            media_path=images,
            duration_s=duration_s,
            fps=fps,
            source_fps=fps,
            original_id=release.relative(folder),
            media_kind="images",
            given=GivenGeometry(cameras_path=folder / "transforms.json", cameras_format="dl3dv"),
        )


def _scene_of(folder: Path, root: Path) -> str:
    """A scene's hash among the folders above its files; else the folder's name."""
    inside = folder.relative_to(root).parts
    return next((part for part in inside if _HASH.fullmatch(part)), folder.name)


def stills_folder(folder: Path) -> Path:
    """Where a scene's stills lie, in the size nearest to the wanted one."""
    return next((folder / name for name in IMAGES if (folder / name).is_dir()), folder / "images")


def _scene_folders(root: Path) -> Iterator[Path]:
    """Folders named by a hash, and those of the same name just inside; not looked into, they hold the images."""
    for folder, inner, _ in walk(root):
        for name in [name for name in inner if _HASH.fullmatch(name)]:
            path = Path(folder, name)
            yield path
            if (path / name).is_dir():
                yield path / name
            inner.remove(name)


def _scenes_with_stills(root: Path) -> dict[str, Path]:
    found = {}
    for folder in _scene_folders(root):
        if (images := stills_folder(folder)).is_dir():
            found[folder.name] = images
    return found


def _listed(release: Release) -> Iterator[Listed]:
    path = find_table(release, *_INDEX)
    for row in rows_of(path, "hash", "duration") if path else ():
        yield Listed(original_id=row["hash"], duration_s=positive(row["duration"]) or 0.0)


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    """Below batch and hash, once, however deep the archive nests them."""
    scene = archive.name.removesuffix(".zip")
    parts = PurePosixPath(member).parts
    while parts and parts[0] in (scene, archive.parent.name):
        parts = parts[1:]
    return PurePosixPath(archive.parent.name, scene, *parts) if parts else None


_ARCHIVES = tuple(f"{batch}/*.zip" for batch in ("[0-9]*K", "problem"))
VIDEO = Layout(
    read=partial(_read_videos, cameras="transforms"), listed=_listed, archives=_ARCHIVES, place=_place
)
COLMAP = Layout(
    read=partial(_read_videos, cameras="colmap"), listed=_listed, archives=_ARCHIVES, place=_place
)
STILLS = Layout(read=_read_stills, listed=_listed, archives=_ARCHIVES, place=_place)
