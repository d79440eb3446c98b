"""Source readers: where clips come from, always the same clips in the same order, cut into shards.

Three kinds. `videos` is a folder of video files with nothing beside them. `index` is a table (YAML, JSON or CSV) that
names for every clip its media and whatever geometry the source ships; its columns are the fields of `IndexEntry`.
`release` is a public video set as it unpacks.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ..dataset.formats.shipped import CamerasFormat
from ..dataset.strict import Strict
from ..dataset.video import holds_video
from .clip import ClipRef, DepthKind, GivenGeometry, MediaKind, printable
from .releases import ReleaseLayout, release_clips

log = logging.getLogger(__name__)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=120)]

_VIDEO = (
    ".mp4 .mov .m4v .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .m2t .wmv .asf .flv .f4v .3gp .3g2 .ogv .vob .mxf .qt"
    " .m2v .divx .dv .insv .lrv"
)
_NO_VIDEO = (
    ".txt .md .csv .tsv .json .jsonl .yaml .yml .xml .html .log .pdf .srt .vtt .ass .part .py .sh .zip .tar .gz .tgz"
    " .7z .npy .npz .pt .pth .pkl .h5 .parquet .ply .obj .exr .wav .mp3 .aac .m4a .flac .ogg .opus .png .jpg .jpeg"
    " .webp .bmp .tif .tiff .gif .heic .heif .avif .dng .thm .db .ini .sha256 .md5"
)
VIDEO_SUFFIXES = tuple(_VIDEO.split())
_NO_VIDEO_SUFFIXES = frozenset(_NO_VIDEO.split())
"""Not even tried when files are counted that hold video under a suffix that is not listed."""
_SUFFIXES_TRIED = 20


class VideosSource(Strict):
    """Every video below a folder is a clip; nothing else is known of it."""

    kind: Literal["videos"]
    name: Name
    """Name of the source: the Parquet partition."""
    root: Path
    """Folder that is searched, sub-folders included."""
    data_licence: str = "unknown"
    data_redistributable: bool = False


class IndexSource(Strict):
    """Clips listed in a file."""

    kind: Literal["index"]
    name: Name
    """Name of the source: the Parquet partition."""
    index: Path
    """`.yaml`/`.json`: `clips`, a list of entries, and optionally `defaults` for all; `.csv`: a row an entry."""
    root: Path | None = None
    """Folder that paths in the index are relative to; null: the folder of the index."""


class ReleaseSource(Strict):
    """A public video set, unpacked, with the geometry that it ships."""

    kind: Literal["release"]
    name: Name
    """Name of the source: the Parquet partition."""
    layout: ReleaseLayout
    """Whose tree it is; what makes a clip is described in annotate/releases.py."""
    root: Path
    """Folder that holds the tree, at any depth."""
    metadata: Path | None = None
    """CSV of the release, for layouts that need one; null: at its own place below the root, if it is there."""
    data_licence: str = "unknown"
    data_redistributable: bool = False


Source = VideosSource | IndexSource | ReleaseSource
SourceConfig = Annotated[Source, Field(discriminator="kind")]


class IndexEntry(Strict):
    """One clip of an index: the fields of `ClipRef` and `GivenGeometry`, paths relative to the source's root.

    What is said of given geometry counts in the modes `given_depth` and `given_pose`; mode `estimate` looks at the
    media alone, and at `intrinsics_path` if there is one.
    """

    clip_id: Name
    media_path: str
    media_kind: MediaKind | None = None
    """Null: `images` if the path is a folder, else `video`."""
    media_pattern: str | None = None
    """Glob of the names that are frames, where a folder of images holds others, too (`*.color.png`)."""
    original_id: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    source_fps: Annotated[float, Field(gt=0)] | None = None
    depth_pattern: str | None = None
    depth_units_per_metre: Annotated[float, Field(gt=0)] | None = None
    depth_invalid_value: float = 0.0
    depth_kind: DepthKind = "z"
    anchor_depth_pattern: str | None = None
    anchor_units_per_metre: Annotated[float, Field(gt=0)] | None = None
    camera_to_world_path: str | None = None
    poses_metric: bool = False
    intrinsics_path: str | None = None
    focal: Literal["held", "prior"] = "held"
    """What mode `estimate` does with `intrinsics_path`: hold it, or expect a focal length near it where otherwise the
    network's is expected, and let the images decide."""
    given_pixels: Literal["shown", "stored"] | None = None
    """Of media that is shown turned or mirrored: the pixels that depth and cameras are for."""
    cameras_path: str | None = None
    cameras_format: CamerasFormat | None = None
    stills_path: str | None = None
    metres_per_unit: Annotated[float, Field(gt=0)] | None = None
    data_licence: str = "unknown"
    data_redistributable: bool = False
    truth_camera_to_world_path: str | None = None
    truth_intrinsics_path: str | None = None
    render_seed: int | None = None

    @model_validator(mode="after")
    def _one_meaning(self) -> IndexEntry:
        if (self.cameras_path is None) != (self.cameras_format is None):
            raise ValueError("cameras_path and cameras_format go together")
        if self.cameras_path is not None and (self.camera_to_world_path or self.intrinsics_path):
            raise ValueError("cameras_path replaces camera_to_world_path and intrinsics_path")
        if self.metres_per_unit is not None and (self.poses_metric or self.depth_units_per_metre is not None):
            raise ValueError(
                "metres_per_unit is for depth and poses in the same unit; it replaces poses_metric and"
                " depth_units_per_metre"
            )
        return self


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
        return _read_videos(source)
    if isinstance(source, ReleaseSource):
        return release_clips(
            source.layout,
            media_root(source),
            source.metadata,
            source=source.name,
            media_root=media_root(source),
            data_licence=source.data_licence,
            data_redistributable=source.data_redistributable,
        )
    return _read_index(source)


def media_root(source: Source) -> Path:
    """Folder that the media pointers of this source's rows are relative to."""
    root = source.root or source.index.parent if isinstance(source, IndexSource) else source.root
    return root.resolve()


def make_shards(clips: Iterable[ClipRef], clips_per_shard: int) -> Iterator[Shard]:
    """Consecutive clips, `clips_per_shard` at a time."""
    rest = iter(clips)
    number = 0
    while group := tuple(islice(rest, clips_per_shard)):
        digest = hashlib.sha256("\n".join(c.clip_id for c in group).encode()).hexdigest()[:10]
        yield Shard(shard_id=f"{number:06d}-{digest}", clips=group)
        number += 1


# --- folders -----------------------------------------------------------------------------------


def _read_videos(source: VideosSource) -> Iterator[ClipRef]:
    root = media_root(source)
    if not root.is_dir():
        raise ValueError(
            f"{source.root}: no such folder (source.root; name yours with --set source.root=DIR)"
        )
    paths, others = [], []
    for path in _files_below(root):
        (paths if path.suffix.lower() in VIDEO_SUFFIXES else others).append(path)
    left_out = _left_out(root, others)
    if not paths:
        hint = f"; {left_out}" if left_out else ""
        raise ValueError(
            f"{source.root}: holds no video ({', '.join(VIDEO_SUFFIXES)})"
            f" (source.root; name yours with --set source.root=DIR){hint}"
        )
    names = [(path, path.relative_to(root).as_posix()) for path in sorted(paths)]
    return (
        ClipRef(
            clip_id=clip_id_of(name),
            source=source.name,
            original_id=printable(name),
            media_kind="video",
            media_path=path,
            media_root=root,
            data_licence=source.data_licence,
            data_redistributable=source.data_redistributable,
        )
        for path, name in names
    )


def _files_below(root: Path) -> Iterator[Path]:
    """Files below a folder, linked folders included, each folder once; hidden files (`._clip.mp4`) are left out."""
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        inner.sort()
        if (status.st_dev, status.st_ino) in seen:  # a link back, or a second one
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (
            path for name in files if not name.startswith(".") and (path := Path(folder, name)).is_file()
        )


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


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
    _warn_once(f"{root}: {message}")
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


# --- index files -------------------------------------------------------------------------------


def _read_index(source: IndexSource) -> Iterator[ClipRef]:
    root = media_root(source)
    entries: list[IndexEntry] = []
    errors: list[str] = []
    seen: dict[str, int] = {}
    for number, fields in enumerate(_index_fields(source.index), start=1):
        try:
            entry = IndexEntry.model_validate(fields)
        except ValidationError as error:
            name = fields.get("clip_id", "?") if isinstance(fields, dict) else "?"
            errors += [f"entry {number} (clip {name}): {line}" for line in error_lines(error)]
            continue
        if entry.clip_id in seen:
            errors.append(
                f"entry {number} (clip {entry.clip_id}): the same clip_id as entry {seen[entry.clip_id]}"
            )
        seen[entry.clip_id] = number
        entries.append(entry)
    if errors:
        raise ValueError(f"{source.index} is not a valid index:\n  " + "\n  ".join(errors))
    if not entries:
        raise ValueError(f"{source.index}: lists no clip")
    return (_clip_of(entry, source.name, root) for entry in entries)


def _index_fields(path: Path) -> Iterator[dict[str, Any]]:
    """Raw fields of every entry."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"{path}: the index of clips cannot be read ({error.strerror}); name yours with"
            ' --set source.index=FILE (README, "Build a dataset", shows one)'
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the index of clips is no UTF-8 text (source.index)") from None
    if path.suffix.lower() == ".csv":
        for row in csv.DictReader(text.splitlines()):
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}: a row has another number of columns than the header: {list(row.values())}"
                )
            # An empty cell means the same as an absent key: the default.
            yield {key: value for key, value in row.items() if value != ""}
        return
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("clips"), list)
        or set(content) - {"clips", "defaults"}
    ):
        raise ValueError(
            f"{path}: must hold `clips`, a list of entries, and optionally `defaults`; nothing else"
        )
    defaults = content.get("defaults") or {}
    for fields in content["clips"]:
        yield defaults | fields if isinstance(fields, dict) else fields


def _clip_of(entry: IndexEntry, source: str, root: Path) -> ClipRef:
    def at_root(relative: str | None) -> Path | None:
        return None if relative is None else root / relative

    def pattern(relative: str | None) -> str | None:
        return None if relative is None else str(root / relative)

    media_path = root / entry.media_path
    return ClipRef(
        clip_id=entry.clip_id,
        source=source,
        original_id=entry.original_id or entry.clip_id,
        media_kind=entry.media_kind or ("images" if media_path.is_dir() else "video"),
        media_path=media_path,
        media_root=root,
        media_pattern=entry.media_pattern,
        start_s=entry.start_s,
        end_s=entry.end_s,
        source_fps=entry.source_fps,
        given=GivenGeometry(
            depth_pattern=pattern(entry.depth_pattern),
            depth_units_per_metre=entry.depth_units_per_metre,
            depth_invalid_value=entry.depth_invalid_value,
            depth_kind=entry.depth_kind,
            anchor_depth_pattern=pattern(entry.anchor_depth_pattern),
            anchor_units_per_metre=entry.anchor_units_per_metre,
            camera_to_world_path=at_root(entry.camera_to_world_path),
            poses_metric=entry.poses_metric,
            intrinsics_path=at_root(entry.intrinsics_path),
            focal=entry.focal,
            pixels=entry.given_pixels,
            cameras_path=at_root(entry.cameras_path),
            cameras_format=entry.cameras_format,
            stills_path=at_root(entry.stills_path),
            metres_per_unit=entry.metres_per_unit,
        ),
        data_licence=entry.data_licence,
        data_redistributable=entry.data_redistributable,
        truth_camera_to_world_path=at_root(entry.truth_camera_to_world_path),
        truth_intrinsics_path=at_root(entry.truth_intrinsics_path),
        render_seed=entry.render_seed,
    )


# --- wording -----------------------------------------------------------------------------------


def error_lines(error: ValidationError) -> list[str]:
    """One line a mistake: full key path, what is wrong, the value found."""
    lines = []
    for item in error.errors():
        # The tag of a discriminated union is no key of the file.
        loc = [str(p) for p in item["loc"]]
        if len(loc) > 1 and loc[0] == "source" and loc[1] in ("videos", "index", "release"):
            del loc[1]
        path = ".".join(loc) or "(the file)"
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key (got {_shown(item['input'])})")
        elif item["type"] == "missing":
            lines.append(f"{path}: is required")
        else:
            message = re.sub(r"^(Input|Value error,|String|Assertion failed,) ?", "", item["msg"])
            lines.append(f"{path}: {message} (got {_shown(item['input'])})")
    return lines


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
