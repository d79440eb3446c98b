"""Clips of a source, and the shards that they are cut into.

Three kinds of source. `videos` is a folder of video files with nothing beside them. `index` is a table (YAML, JSON or
CSV) that names for every clip its media and whatever geometry the source ships; its columns are the fields of
`entries.IndexEntry`. `release` is a public video set as it unpacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from ..clip import ClipRef
from .entries import ReleaseSource, Source, VideosSource, media_root
from .index import read_index
from .releases import release_clips
from .tree import Release
from .videos import read_videos


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Clips that one task annotates and one part file holds.

    Attributes:
        shard_id: number of the shard and a hash of its clip ids, so that a part file tells which clips it is for.
    """

    shard_id: str
    clips: tuple[ClipRef, ...]


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


def make_shards(clips: Iterable[ClipRef], clips_per_shard: int) -> Iterator[Shard]:
    """Consecutive clips, `clips_per_shard` at a time."""
    rest = iter(clips)
    number = 0
    while group := tuple(islice(rest, clips_per_shard)):
        digest = hashlib.sha256("\n".join(c.clip_id for c in group).encode()).hexdigest()[:10]
        yield Shard(shard_id=f"{number:06d}-{digest}", clips=group)
        number += 1
