"""Index files: a table that names for every clip its media and whatever geometry the source ships."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...dataset.strict import error_lines
from ..clip import ClipRef, GivenGeometry
from .entries import IndexEntry, IndexSource, media_root


def read_index(source: IndexSource) -> Iterator[ClipRef]:
    """Clips of an index, in its order.

    Raises:
        ValueError: the file is missing or no index; every wrong entry is named.
    """
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
            cameras_key=entry.cameras_key,
            stills_path=at_root(entry.stills_path),
            metres_per_unit=entry.metres_per_unit,
        ),
        data_licence=entry.data_licence,
        data_redistributable=entry.data_redistributable,
        truth_camera_to_world_path=at_root(entry.truth_camera_to_world_path),
        truth_intrinsics_path=at_root(entry.truth_intrinsics_path),
        render_seed=entry.render_seed,
    )
