"""A folder of plain videos: every file is a clip."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ...dataset.media import suffixes
from ...dataset.media.container import holds_video
from .clip import ClipRef, printable
from .entries import VideosSource, media_root
from .tree import LinksOut, Release, walk, warn_once

log = logging.getLogger(__name__)

_NO_VIDEO = (
    ".txt .md .csv .tsv .json .jsonl .yaml .yml .xml .html .log .pdf .srt .vtt .ass .part .py .sh .zip .tar .gz .tgz"
    " .7z .npy .npz .pt .pth .pkl .h5 .parquet .ply .obj .wav .mp3 .aac .m4a .flac .ogg .opus .thm"
    " .db .ini .sha256 .md5"
)
_NO_VIDEO_SUFFIXES = frozenset((*_NO_VIDEO.split(), *suffixes.IMAGES, *suffixes.UNREAD_IMAGES))
"""Not even tried when files are counted that hold video under a suffix that is not listed."""
_SUFFIXES_TRIED = 20


def read_videos(source: VideosSource) -> Iterator[ClipRef]:
    """Clips of a folder, in the order of their paths.

    Raises:
        ValueError: no such folder, or no video in it.
    """
    root = media_root(source)
    if not root.is_dir():
        raise ValueError(
            f"{source.root}: no such folder (source.root; name yours with --set source.root=DIR)"
        )
    paths, others = [], []
    for path in _files_below(root):
        if path.suffix.lower() in suffixes.VIDEOS:
            paths.append(path)
        elif path.is_file():
            others.append(path)
    links = LinksOut(root)
    for path in paths:
        links.look(path)
    links.tell("videos")
    left_out = _left_out(root, others)
    if not paths:
        hint = f"; {left_out}" if left_out else ""
        raise ValueError(
            f"{source.root}: holds no video ({', '.join(suffixes.VIDEOS)})"
            f" (source.root; name yours with --set source.root=DIR){hint}"
        )
    names = [(path, path.relative_to(root).as_posix()) for path in sorted(paths)]
    release = Release(
        root=root,
        windows=source.windows,
        source=source.name,
        data_licence=source.data_licence,
        data_redistributable=source.data_redistributable,
    )
    return (
        clip
        for path, name in names
        for clip in release.cut(
            clip_id_of(name), media_path=path, original_id=printable(name), media_kind="video"
        )
    )


def _files_below(root: Path) -> Iterator[Path]:
    """What is no folder below a folder, linked folders included, each folder once; hidden files (`._clip.mp4`) are left
    out. A link that leads nowhere is among them: a video that is not there is a clip that fails, and not none."""
    for folder, inner, files in walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _left_out(root: Path, others: list[Path]) -> str:
    """Says, and returns, which files hold video although their suffix is not listed; one a suffix is tried."""
    by_suffix: dict[str, list[Path]] = {}
    for path in sorted(others):
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    tried = [suffix for suffix in by_suffix if suffix not in _NO_VIDEO_SUFFIXES][:_SUFFIXES_TRIED]
    held = [
        f"{len(by_suffix[suffix])} {suffix or 'without suffix'} (e.g. {printable(by_suffix[suffix][0].name)})"
        for suffix in tried
        if holds_video(by_suffix[suffix][0])
    ]
    if not held:
        return ""
    message = (
        f"files with video are left out for their suffix: {', '.join(held)}; rename or list them in an index"
    )
    warn_once(f"{root}: {message}")
    return message


def clip_id_of(relative_path: str) -> str:
    """Clip id for a file: its stem where that is letters, digits, `_` and `-`; else cleaned, with a hash of the path.

    Unequal paths of one source get unequal ids: only a file at the top with a clean name goes without a hash, and
    then its suffix is part of the id unless it is `.mp4`.
    """
    path = Path(relative_path)
    if path.suffix == ".mp4" and re.fullmatch(r"[A-Za-z0-9_-]{1,100}", path.stem) and len(path.parts) == 1:
        return path.stem
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "_", relative_path.removesuffix(path.suffix))[:90]
    return f"{cleaned}-{hashlib.sha256(relative_path.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"
