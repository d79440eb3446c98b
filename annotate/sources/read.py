"""Clips of a source.

Three kinds of source. `videos` is a folder of video files with nothing beside them. `index` is a table (YAML, JSON or
CSV) that names for every clip its media and whatever geometry the source ships; its columns are the fields of
`entries.IndexEntry`. `release` is a public video set as it unpacks.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        return release_clips(source.layout, release_of(source))
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
