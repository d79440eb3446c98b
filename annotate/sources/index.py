"""Index files: a table that names for every clip its media and whatever geometry the source ships."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...dataset.inputs import read_csv, read_json, read_yaml
from ...dataset.limits import MAX_NAME_LENGTH
from ...dataset.strict import WHOLE, error_lines
from .clip import ClipRef, GivenGeometry
from .entries import IndexEntry, IndexSource, media_root
from .tree import LinksOut

log = logging.getLogger(__name__)


def read_index(source: IndexSource) -> Iterator[ClipRef]:
    """Clips of an index, in its order.

    Raises:
        ValueError: the file is missing or no index; every wrong entry is named.
    """
    root = media_root(source)
    entries: list[IndexEntry] = []
    errors: list[str] = []
    outside: list[str] = []
    seen: dict[str, int] = {}
    for number, fields in enumerate(_index_fields(source.index), start=1):
        if not isinstance(fields, dict):
            errors.append(
                f"entry {number} (clip ?): must hold keys and values, found {type(fields).__name__}"
            )
            continue
        try:
            entry = IndexEntry.model_validate(fields)
        except ValidationError as error:
            name = str(fields.get("clip_id", "?"))[:MAX_NAME_LENGTH]
            # What is wrong with several keys at once is of the entry, not of the file.
            errors += [
                f"entry {number} (clip {name}): {line.removeprefix(WHOLE)}" for line in error_lines(error)
            ]
            continue
        for key, pointer in _pointers(entry):
            if not pointer.strip() or "\0" in pointer:
                errors.append(f"entry {number} (clip {entry.clip_id}): {key}: is empty or holds a zero byte")
            elif key == "media_path" and not _is_below(root, pointer):
                outside.append(entry.clip_id)
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
    if outside:
        log.warning(
            "%s: media of %d clips (e.g. %s) lie outside of %s: rows cannot point to them, so that reports and"
            " exports go without their pictures; name a folder above all media as source.root",
            *(source.index, len(outside), outside[0], root),
        )
    links = LinksOut(root)
    for media_path, images in dict.fromkeys(
        (_at(root, e.media_path), e.media_kind != "video") for e in entries
    ):
        links.look(media_path, images=images and os.path.isdir(media_path))
    links.tell()
    return (_clip_of(entry, source.name, root) for entry in entries)


def _index_fields(path: Path) -> Iterator[dict[str, Any]]:
    """Raw fields of every entry."""
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "no such file"
        raise ValueError(
            f"{path}: the index of clips cannot be read ({what}); name yours with"
            " --set source.index=FILE (docs/annotating.md shows one)"
        )
    if path.suffix.lower() == ".csv":
        for row in read_csv(path):
            # An empty cell means the same as an absent key: the default.
            yield {key: value for key, value in row.items() if value != ""}
        return
    if path.suffix.lower() == ".json":
        content, twice = read_json(path), []
    else:
        content, twice = read_yaml(path)
    if twice:
        raise ValueError(f"{path} is not a valid index:\n  " + "\n  ".join(twice))
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("clips"), list)
        or set(content) - {"clips", "defaults"}
    ):
        raise ValueError(
            f"{path}: must hold `clips`, a list of entries, and optionally `defaults`; nothing else"
        )
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise ValueError(f"{path}: defaults must hold keys and values, found {type(defaults).__name__}")
    for fields in content["clips"]:
        yield defaults | fields if isinstance(fields, dict) else fields


def _pointers(entry: IndexEntry) -> Iterator[tuple[str, str]]:
    """Keys and values of an entry that name files."""
    for key in _POINTERS:
        pointer = getattr(entry, key)
        if pointer is not None:
            yield key, pointer


_POINTERS = [
    key for key in IndexEntry.model_fields if key.endswith(("_path", "_pattern")) and key != "media_pattern"
]


def _at(root: Path, pointer: str) -> str:
    # As text: a run reads hundreds of thousands of entries to learn that all of them have rows.
    return os.path.normpath(os.path.join(root, pointer))


def _is_below(root: Path, pointer: str) -> bool:
    path = _at(root, pointer)
    return path.startswith(f"{root}{os.sep}") or Path(path).is_relative_to(root)


def _clip_of(entry: IndexEntry, source: str, root: Path) -> ClipRef:
    def at_root(relative: str | None) -> Path | None:
        return None if relative is None else Path(_at(root, relative))

    media_path = _at(root, entry.media_path)
    return ClipRef(
        clip_id=entry.clip_id,
        source=source,
        original_id=entry.original_id or entry.clip_id,
        media_kind=entry.media_kind or ("images" if os.path.isdir(media_path) else "video"),
        media_path=Path(media_path),
        media_root=root,
        media_pattern=entry.media_pattern,
        start_s=entry.start_s,
        end_s=entry.end_s,
        source_fps=entry.source_fps,
        caption=entry.caption,
        given=_given_of(entry, root),
        data_licence=entry.data_licence,
        data_redistributable=entry.data_redistributable,
        truth_camera_to_world_path=at_root(entry.truth_camera_to_world_path),
        truth_intrinsics_path=at_root(entry.truth_intrinsics_path),
        render_seed=entry.render_seed,
    )


_GIVEN = {
    field.name: key
    for field in dataclasses.fields(GivenGeometry)
    if (key := {"pixels": "given_pixels"}.get(field.name, field.name)) in IndexEntry.model_fields
}
"""Keys of an entry that say what is given, by what they are there."""
_NOTHING = GivenGeometry()


def _given_of(entry: IndexEntry, root: Path) -> GivenGeometry:
    if entry.model_fields_set.isdisjoint(_GIVEN.values()):
        return _NOTHING
    said: dict[str, Any] = {}
    for name, key in _GIVEN.items():
        if key in entry.model_fields_set and (value := getattr(entry, key)) is not None:
            pointer = _at(root, value) if key in _POINTERS else value
            said[name] = Path(pointer) if key.endswith("_path") else pointer
    return GivenGeometry(**said)
