"""OmniWorld-Game: rendered colour and depth for every frame of a scene, cameras in splits of up to 401 frames.

Each split has a world of its own, so two ways lead to clips. `omniworld-game`: a clip a split, with its cameras.
`omniworld-game-windows`: longer clips across splits, with the depth alone; shipped poses cannot be chained. Frames
between splits were rejected by the set's authors: windows lie within runs of splits that follow each other frame by
frame. Images are numbered in time, and archives of a scene may be there in part: the number in its name says when an
image was taken and which depth belongs to it. Source: yangzhou24/OmniWorld, data card and scripts/utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...dataset.inputs import InputError, read_json, read_text
from .clip import ClipRef, GivenGeometry
from .tree import (
    Layout,
    Listed,
    PassedOver,
    Release,
    clean,
    find_table,
    folders_with,
    positive,
    rows_of,
    table_by,
)

_METADATA = ("metadata/omniworld_game_metadata.csv", "metadata/OmniWorld-Game_metadata.csv")
_ARCHIVE = re.compile(r"(?P<uid>[0-9a-f]{12})_(?:rgb_\d+|depth_\d+|flow_\d+|others)\.tar\.gz")


@dataclass(frozen=True)
class _Scene:
    folder: Path
    colour: Path
    fps: float | None
    splits: list[Any]
    metres_per_unit: float | None

    def depth(self, **cameras: Any) -> GivenGeometry:
        """Shipped depth; poses and depth become metres by the scene's `Metric Scale`, which older metadata lack."""
        return GivenGeometry(
            depth_pattern=str(self.folder / "depth" / "{frame:06d}.png"),
            depth_kind="omniworld",
            depth_view=1.0,
            metres_per_unit=self.metres_per_unit,
            **cameras,
        )


def _scenes(release: Release) -> Iterator[_Scene]:
    """Scenes in the order of their folders. Colour and annotations may lie together or below `videos/` and
    `annotations/` as in the download."""
    known = table_by(find_table(release, *_METADATA), "UID")
    for folder in folders_with(release.root, "split_info.json"):
        row = known.get(folder.name, {})
        colour = folder / "color"
        if not colour.is_dir():
            parts = ("videos" if part == "annotations" else part for part in folder.parts)
            colour = Path(*parts) / "color"
        try:
            splits = list(read_json(folder / "split_info.json")["split"])
        except (ValueError, KeyError, TypeError):
            splits = []
        yield _Scene(
            folder,
            colour,
            positive(row.get("FPS")) or _fps_of(folder / "fps.txt"),
            splits,
            positive(row.get("Metric Scale")),
        )


def _read_splits(release: Release) -> Iterator[ClipRef]:
    """A clip a split that has cameras."""
    for scene in _scenes(release):
        files = {
            int(m[1]): path
            for path in (scene.folder / "camera").glob("split_*.json")
            if (m := re.fullmatch(r"split_(\d+)\.json", path.name))
        }
        for number, path in sorted(files.items()):
            frames = scene.splits[number] if number < len(scene.splits) else None
            span = _span(frames, scene.fps)
            yield from release.cut(
                f"{clean(scene.folder.name)}_split{number:04d}",
                media_path=scene.colour,
                offset_s=None if span is None else span[0],
                duration_s=None if span is None else span[1],
                fps=scene.fps,
                original_id=release.relative(path),
                media_kind="images",
                source_fps=scene.fps,
                numbered=True,
                given=scene.depth(cameras_path=path, cameras_format="omniworld"),
            )


def _read_windows(release: Release) -> Iterator[ClipRef]:
    """Windows over runs of splits that follow each other without a gap, with the shipped depth."""
    odd = PassedOver(release.root, "scenes")
    for scene in _scenes(release):
        if scene.fps is None:
            odd.add(f"{scene.folder.name}: no table and no fps.txt says its frame rate")
            continue
        found = runs(scene.splits)
        if not found:
            odd.add(f"{scene.folder.name}: split_info.json lists no split of frames that follow each other")
        for first, last in found:
            yield from release.cut(
                f"{clean(scene.folder.name)}_f{first:06d}",
                media_path=scene.colour,
                offset_s=first / scene.fps,
                duration_s=(last + 1 - first) / scene.fps,
                fps=scene.fps,
                original_id=f"{release.relative(scene.folder)}:{first}-{last}",
                media_kind="images",
                source_fps=scene.fps,
                numbered=True,
                given=scene.depth(),
            )
    odd.say()


def runs(splits: list[Any]) -> list[tuple[int, int]]:
    """First and last frame of every run of splits that follow each other frame by frame; damaged splits are in none."""
    found: list[tuple[int, int]] = []
    for frames in splits:
        whole = isinstance(frames, list) and frames and all(type(frame) is int for frame in frames)
        if not whole or frames != list(range(frames[0], frames[0] + len(frames))):
            continue
        if found and frames[0] == found[-1][1] + 1:
            found[-1] = (found[-1][0], frames[-1])
        else:
            found.append((frames[0], frames[-1]))
    return found


def _span(frames: Any, fps: float | None) -> tuple[float, float] | None:
    """Start and duration in seconds of a list of frame numbers. A damaged list has none: reading the cameras says
    why."""
    if fps is None or not isinstance(frames, list) or not frames:
        return None
    if not all(isinstance(frame, int) for frame in (frames[0], frames[-1])):
        return None
    return frames[0] / fps, (frames[-1] + 1 - frames[0]) / fps


def _fps_of(path: Path) -> float | None:
    """Frame rate in `fps.txt`, which goes on after the number."""
    try:
        match = re.search(r"FPS:\s*([0-9.]+)", read_text(path))
    except InputError:
        return None
    return positive(match[1]) if match else None


def _listed(release: Release) -> Iterator[Listed]:
    """Scenes; the table does not say where splits end, so these are no clips yet."""
    path = find_table(release, *_METADATA)
    for row in rows_of(path, "UID", "Img Num", "FPS") if path else ():
        images, fps = positive(row["Img Num"]), positive(row["FPS"])
        yield Listed(original_id=row["UID"], duration_s=images / fps if images and fps else None, fps=fps)


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    """Archives hold no scene's name: it is that of their own folder."""
    match = _ARCHIVE.fullmatch(archive.name)
    return None if match is None else PurePosixPath(archive.parent, PurePosixPath(member))


_ARCHIVES = (
    "videos/OmniWorld-Game/*/*_rgb_*.tar.gz",
    "annotations/OmniWorld-Game/*/*_depth_*.tar.gz",
    "annotations/OmniWorld-Game/*/*_others.tar.gz",
)
SPLITS = Layout(read=_read_splits, listed=_listed, archives=_ARCHIVES, place=_place)
WINDOWS = Layout(read=_read_windows, listed=_listed, listed_is_bound=True, archives=_ARCHIVES, place=_place)
