"""Sekai: rendered walks and flights with cameras (Sekai-Game), and real walks by their table (Sekai-Real-Walking-HQ).

Names say what a clip is: `<video>_<start>_<end>`, numbers of seven digits. Of real walks they count frames of a 30 fps
decode of the YouTube video, the end excluded, and the id before them may itself hold `_` and begin with `-`. Source:
Lixsp11/sekai-codebase and its issue 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...dataset.names import wrong_pointer
from .clip import ClipRef, GivenGeometry
from .tree import Folder, Layout, Listed, PassedOver, Release, find_table, rows_of, say_absent

WALKING_FPS = 30.0
"""Rate in which the names of real walks count, whatever the video's own."""
WALKING_LICENCE = "research-only"
_WALKING_TABLE = ("train/sekai-real-walking-hq.csv", "sekai-real-walking-hq.csv")
_GAME_TABLES = ("train/sekai-game-*.csv", "sekai-game-*.csv")
RAW = "raw_video"
"""Where whole videos lie, `<id>.mp4` (or another suffix), if the walks were fetched from their addresses."""


def _read_game(release: Release) -> Iterator[ClipRef]:
    """A clip per video, with the cameras of the `.npz` of the same name."""
    for path in release.files((".mp4",)):
        yield from release.cut(
            path.stem,
            media_path=path,
            original_id=release.relative(path),
            media_kind="video",
            given=GivenGeometry(cameras_path=path.with_suffix(".npz"), cameras_format="sekai-game"),
        )


def _read_walking(release: Release) -> Iterator[ClipRef]:
    """The walks that the table lists and that lie here, cut already or inside their whole video.

    The mirror holds the videos of the larger set as well: those that the table does not list are left out.

    Raises:
        ValueError: no table.
    """
    table = find_table(release, *_WALKING_TABLE)
    if table is None:
        raise ValueError(
            f"{release.root}: sekai-real-walking-hq.csv is not there; name it as source.metadata: it says which videos"
            " belong to the set"
        )
    folders = sorted({path.parent for path in release.files((".mp4",)) if path.parent.name != RAW})
    places = [path.relative_to(release.root).as_posix() for path in folders]
    folder = Folder(release.root)
    raw = {path.stem: path for path in sorted((release.root / RAW).glob("*.*"))}
    listed = absent = 0
    odd = PassedOver(table, "names of videos")
    for video_id, start, end, name in _walks(table, odd):
        listed += 1
        cut = next((f"{place}/{name}" for place in places if folder.has(f"{place}/{name}")), None)
        if cut is not None:
            media, offset_s = release.root / cut, None
        elif video_id in raw:
            media, offset_s = raw[video_id], start / WALKING_FPS
        else:
            absent += 1
            continue
        yield from release.cut(
            PurePosixPath(name).stem,
            media_path=media,
            offset_s=offset_s,
            duration_s=(end - start) / WALKING_FPS,
            fps=WALKING_FPS,
            original_id=name,
            media_kind="video",
        )
    odd.say()
    say_absent(release, listed=listed, absent=absent, table=table)


def _walks(table: Path, odd: PassedOver | None = None) -> Iterator[tuple[str, int, int, str]]:
    """YouTube id, first and past-the-last frame, and file name of every walk, each once; `odd` counts other names."""
    seen: set[int] = set()
    for row in rows_of(table, "videoFile"):
        name = row["videoFile"].strip()
        parts = name.removesuffix(".mp4").rsplit("_", 2)  # ids hold "_" themselves
        if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()) or wrong_pointer(name):
            if odd is not None:
                odd.add(repr(name))
            continue
        if hash(name) not in seen:  # the tables hold rows twice
            seen.add(hash(name))
            yield parts[0], int(parts[1]), int(parts[2]), name


def _listed_walking(release: Release) -> Iterator[Listed]:
    table = find_table(release, *_WALKING_TABLE)
    for video_id, start, end, name in _walks(table) if table else ():
        yield Listed(
            original_id=name,
            duration_s=(end - start) / WALKING_FPS,
            fps=WALKING_FPS,
            url=f"https://www.youtube.com/watch?v={video_id}",
            place=f"{RAW}/{video_id}.mp4",
        )


def _listed_game(release: Release) -> Iterator[Listed]:
    seen: set[str] = set()
    tables = [release.metadata] if release.metadata else []
    tables = tables or [path for glob in _GAME_TABLES for path in sorted(release.root.glob(glob))]
    for table in tables:
        for _video_id, start, end, name in _walks(table):
            if name not in seen:
                seen.add(name)
                yield Listed(original_id=name, duration_s=(end - start) / 30.0, fps=30.0)


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    """Below a folder of the archive's own name without its number, whatever the members' prefix."""
    folder = archive.name.split(".")[0].split("_part")[0]
    name = PurePosixPath(member).name
    return PurePosixPath(folder, name) if name else None


GAME = Layout(
    read=_read_game,
    listed=_listed_game,
    archives=("sekai-game-*.zip", "sekai-game-*.zip.part_aa"),
    place=_place,
)
WALKING = Layout(
    read=_read_walking,
    listed=_listed_walking,
    archives=("sekai-real-walking/*.tar", "sekai-real-walking_part*.tar"),
    place=_place,
)
