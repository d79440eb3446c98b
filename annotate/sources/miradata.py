"""MiraData: tables of stretches of videos on the web, in two generations.

v0 (`miradata_v0.csv`) counts frames of the YouTube video at a rate that it states; v1 (`miradata_v1_*.csv`) gives two
times. Stretches are cut here by decoding: the official script copies packets from the key frame before, so its clips
start early and are of another length. Where only such a clip lies here, it is taken from its own start. Source:
mira-space/MiraData, its README and v1 branch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...dataset.names import wrong_pointer
from .clip import ClipRef
from .tree import Folder, Layout, Listed, PassedOver, Release, find_table, positive, rows_of, say_absent

_TABLES = ("miradata_v1_*.csv", "miradata_v0.csv", "*/miradata_v1_*.csv")
_SUFFIXES = (".mp4", ".mkv", ".webm")
_TIME = r"""['"](\d+:\d+:\d+(?:\.\d*)?)['"]"""
_TIMES = re.compile(rf"[\[(]\s*{_TIME}\s*,\s*{_TIME}\s*[\])]")
"""A list of two times as Python prints it."""
_YOUTUBE = "https://www.youtube.com/watch?v="


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """One row of a table.

    Attributes:
        clip_id: as text; as a number 8720.10 would be 8720.1, another clip.
        raw: places of the whole video, without suffix, the first is where it is fetched to.
        cut: places of the stretch cut by others.
    """

    clip_id: str
    url: str
    start_s: float
    end_s: float
    fps: float | None
    raw: tuple[str, ...]
    cut: tuple[str, ...]


def _read(release: Release) -> Iterator[ClipRef]:
    """The stretches that the table lists and whose video lies here.

    Raises:
        ValueError: no table, or one of neither generation.
    """
    table = find_table(release, *_TABLES)
    if table is None:
        raise ValueError(
            f"{release.root}: no miradata_v1_*.csv or miradata_v0.csv; name the table as source.metadata"
        )
    listed = absent = 0
    folder, odd = Folder(release.root), PassedOver(table, "rows")
    for stretch in _stretches(table, odd):
        listed += 1
        raw = _found(folder, (place + suffix for place in stretch.raw for suffix in _SUFFIXES))
        media = raw or _found(folder, stretch.cut)
        if media is None:
            absent += 1
            continue
        yield from release.cut(
            stretch.clip_id,
            media_path=release.root / media,
            offset_s=None if raw is None else stretch.start_s,
            duration_s=stretch.end_s - stretch.start_s,
            fps=stretch.fps,
            original_id=stretch.clip_id,
            media_kind="video",
        )
    odd.say()
    say_absent(release, listed=listed, absent=absent, table=table)


def _found(folder: Folder, places: Iterable[str]) -> str | None:
    return next((place for place in places if not wrong_pointer(place) and folder.has(place)), None)


def _stretches(table: Path, odd: PassedOver | None = None) -> Iterator[_Stretch]:
    """Rows that make sense, in the table's order; `odd` counts the others."""
    if "v0" in table.name:
        read, keys, rows = _v0, ("index", "start_frame"), {"encoding": "iso-8859-1"}
    else:
        read, keys, rows = _v1, ("clip_id", "timestamp"), {}
    for row in rows_of(table, *keys, **rows):
        stretch = read(row)
        if stretch is not None:
            yield stretch
        elif odd is not None:
            odd.add(str({key: row[key] for key in keys}))


def _v0(row: dict[str, str]) -> _Stretch | None:
    start, end, fps = (positive(row.get(name)) for name in ("start_frame", "end_frame", "fps"))
    start = 0.0 if start is None and row.get("start_frame", "").strip() in ("0", "0.0") else start
    video_id = row.get("video_id", "").strip()
    if start is None or end is None or fps is None or end <= start or not video_id:
        return None
    return _Stretch(
        clip_id=row["index"].strip(),
        url=_YOUTUBE + video_id,
        start_s=start / fps,
        end_s=end / fps,
        fps=fps,
        raw=(f"raw_video/{video_id}",),
        cut=(f"clip_video/{row['index'].strip()}.mp4",),
    )


def _v1(row: dict[str, str]) -> _Stretch | None:
    clip_id = row["clip_id"].strip()
    download, _, number = clip_id.partition(".")
    if not (download.isdecimal() and number.isdecimal()):
        return None
    times = _TIMES.fullmatch(row["timestamp"].strip())
    if times is None:
        return None
    start_s, end_s = _seconds(times[1]), _seconds(times[2])
    if not 0 <= start_s < end_s:
        return None
    video_id, name = row.get("video_id", "").strip(), f"{int(download):012d}"
    raw = [f"raw_video/{int(download) // 1000:09d}/{name}", f"raw_video/{name}"]
    return _Stretch(
        clip_id=clip_id,
        url=row.get("video_url", "").strip() or _YOUTUBE + video_id,
        start_s=start_s,
        end_s=end_s,
        fps=positive(row.get("fps")),
        raw=(*raw, *([f"raw_video/{video_id}"] if video_id else [])),
        cut=tuple(
            place
            for place in (
                row.get("file_path", "").strip(),
                f"clip_video/{name}.{number}.mp4",
                f"MiraData/clip_video/{name}.{number}.mp4",
            )
            if place
        ),
    )


def _seconds(text: str) -> float:
    """H:M:S.f"""
    hours, minutes, seconds = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _listed(release: Release) -> Iterator[Listed]:
    table = find_table(release, *_TABLES)
    for stretch in _stretches(table) if table else ():
        yield Listed(
            original_id=stretch.clip_id,
            duration_s=stretch.end_s - stretch.start_s,
            fps=stretch.fps,
            url=stretch.url,
            place=f"{stretch.raw[0]}.mp4",
        )


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    """Mirrors put clips below `MiraData/clip_video`."""
    name = PurePosixPath(member).name
    return PurePosixPath("clip_video", name) if name.endswith((".mp4", ".json")) else None


LAYOUT = Layout(read=_read, listed=_listed, archives=("shards/shard-*.tar",), place=_place)
