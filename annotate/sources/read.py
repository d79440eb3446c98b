"""Clips of a source.

Three kinds of source. `videos` is a folder of video files with nothing beside them. `index` is a table (YAML, JSON or
CSV) that names for every clip its media and whatever geometry the source ships; its columns are the fields of
`entries.IndexEntry`. `release` is a public video set as it unpacks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from .clip import ClipRef
from .entries import ReleaseSource, Source, VideosSource, media_root
from .index import read_index
from .releases import release_clips
from .tree import LinksOut, Release
from .videos import read_videos

log = logging.getLogger(__name__)


def read_clips(source: Source) -> Iterator[ClipRef]:
    """All clips of a source, in an order that depends on names only.

    Raises:
        ValueError: the folder or index is missing, holds no clip, or an entry is wrong (all wrong entries are named).
    """
    if isinstance(source, VideosSource):
        return read_videos(source)
    if isinstance(source, ReleaseSource):
        clips = _with_links_told(release_clips(source.layout, release_of(source)), media_root(source))
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


def _with_links_told(clips: Iterator[ClipRef], root: Path) -> Iterator[ClipRef]:
    """The same clips; at the end, those whose media lie behind links out of the root are told of."""
    links = LinksOut(root)
    for clip in clips:
        links.look(clip.media_path, images=clip.media_kind == "images")
        yield clip
    links.tell()


def _chosen(clips: Iterator[ClipRef], globs: tuple[str, ...], root: Path) -> Iterator[ClipRef]:
    """Those whose id one of the globs matches; at the end, globs that none does are told of.

    Raises:
        ValueError: none does.
    """
    chosen = _matching(clips, globs, root)
    first = next(chosen, None)
    if first is None:
        raise ValueError(f"{root}: no clip is called as source.only wants them ({', '.join(globs[:5])})")
    return chain([first], chosen)


def _matching(clips: Iterator[ClipRef], globs: tuple[str, ...], root: Path) -> Iterator[ClipRef]:
    missing = dict.fromkeys(globs)  # most are ids, of which there may be hundreds
    plain = frozenset(globs)
    patterns = [glob for glob in globs if any(c in glob for c in "*?[")]
    found = False
    for clip in clips:
        hits = [p for p in patterns if fnmatchcase(clip.clip_id, p)]
        hits += [clip.clip_id] if clip.clip_id in plain else []
        if hits:
            found = True
            for hit in hits:
                missing.pop(hit, None)
            yield clip
    if found and missing:
        log.warning("%s: no clip is called %s (source.only)", root, ", ".join(list(missing)[:5]))
