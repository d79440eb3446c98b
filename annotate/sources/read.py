"""Clips of a source.

Three kinds of source. `videos` is a folder of video files with nothing beside them. `index` is a table (YAML, JSON or
CSV) that names for every clip its media and whatever geometry the source ships; its columns are the fields of
`entries.IndexEntry`. `release` is a public video set as it unpacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from .clip import ClipRef
from .entries import ReleaseSource, Source, VideosSource, media_root
from .index import read_index
from .releases import release_clips
from .tree import Release
from .videos import read_videos


def read_clips(source: Source) -> Iterator[ClipRef]:
    """All clips of a source, in an order that depends on names only.

    Raises:
        ValueError: the folder or index is missing, holds no clip, or an entry is wrong (all wrong entries are named).
    """
    if isinstance(source, VideosSource):
        return read_videos(source)
    if isinstance(source, ReleaseSource):
        clips = release_clips(source.layout, release_of(source))
        return clips if source.only is None else _chosen(clips, source.only, media_root(source))
    return read_index(source)


def release_of(source: ReleaseSource) -> Release:
    """A release as its readers want it."""
    return Release(
        root=media_root(source),
        metadata=source.metadata,
        windows=source.windows,
        source=source.name,
        data_licence=source.data_licence,
        data_redistributable=source.data_redistributable,
    )


def _chosen(clips: Iterator[ClipRef], globs: tuple[str, ...], root: Path) -> Iterator[ClipRef]:
    """Those whose id one of the globs matches.

    Raises:
        ValueError: none does.
    """
    plain = frozenset(globs)  # most are ids, of which there may be hundreds
    patterns = [glob for glob in globs if any(c in glob for c in "*?[")]
    chosen = (c for c in clips if c.clip_id in plain or any(fnmatchcase(c.clip_id, p) for p in patterns))
    first = next(chosen, None)
    if first is None:
        raise ValueError(f"{root}: no clip is called as source.only wants them ({', '.join(globs[:5])})")
    return chain([first], chosen)
