"""SpatialVID-HQ: clips of 3 to 15 s, with cameras of every few frames in a folder of the same group and name.

What stands before `videos/group_0001` has changed between releases (`SpatialVID/`, `SpatialVid/HQ/`) and differs
between the archives of videos and annotations: only group and name count. Source: NJU-3DV/SpatialVID and its data card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .clip import ClipRef, GivenGeometry
from .tree import Layout, Listed, Release, find_table, positive, rows_of, table_by, walk

_METADATA = ("data/train/SpatialVID_HQ_metadata.csv", "SpatialVID_HQ_metadata.csv")
_GROUP = re.compile(r"group_\d+")


def _read(release: Release) -> Iterator[ClipRef]:
    """A clip a video, or its windows."""
    annotations = _annotation_groups(release.root)
    table = find_table(release, *_METADATA)
    known = table_by(table, "id") if release.windows is not None and release.windows.most != 1 else {}
    for path in release.files((".mp4",)):
        group, name = path.parent.name, path.stem
        beside = Path(*("annotations" if part == "videos" else part for part in path.with_suffix("").parts))
        folders = (folder / name for folder in annotations.get(group, ()))
        cameras = next((folder for folder in folders if folder.is_dir()), beside)
        row = known.get(name, {})
        yield from release.cut(
            name,
            media_path=path,
            duration_s=_duration_s(row),
            fps=positive(row.get("fps")),
            original_id=release.relative(path),
            media_kind="video",
            given=GivenGeometry(cameras_path=cameras, cameras_format="spatialvid"),
        )


def _annotation_groups(root: Path) -> dict[str, list[Path]]:
    """Folders of annotations by group; a group's own folder is not looked into, it holds 5,000."""
    found: dict[str, list[Path]] = {}
    for folder, inner, _ in walk(root):
        for name in [name for name in inner if _GROUP.fullmatch(name)]:
            if Path(folder).name != "videos":
                found.setdefault(name, []).append(Path(folder, name))
            inner.remove(name)
    return found


def _duration_s(row: dict[str, str]) -> float | None:
    frames, fps = positive(row.get("num frames")), positive(row.get("fps"))
    return None if frames is None or fps is None else frames / fps


def _listed(release: Release) -> Iterator[Listed]:
    path = find_table(release, *_METADATA)
    for row in rows_of(path, "id", "num frames", "fps") if path else ():
        yield Listed(original_id=row["id"], duration_s=_duration_s(row), fps=positive(row["fps"]))


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    """By kind and group, which the archive's own place says; the prefix inside is dropped."""
    parts = PurePosixPath(member).parts
    level = next((i for i in reversed(range(len(parts))) if _GROUP.fullmatch(parts[i])), None)
    if level is None or level + 1 == len(parts):
        return None
    return PurePosixPath(archive.parent.name, *parts[level:])


LAYOUT = Layout(
    read=_read,
    listed=_listed,
    archives=("videos/group_*.tar.gz", "annotations/group_*.tar.gz"),
    place=_place,
)
