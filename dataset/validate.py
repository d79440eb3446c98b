"""Proof of every promise a dataset makes; each broken one is named with part, clip, rule and numbers.

Rows are read as raw Arrow values, not as `Row`, because a broken row must be described, not merely refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .cameras import rigid_error, to_4x4
from .metrics import path_length
from .schema import (
    COLUMNS,
    FOCAL_MODELS,
    MEDIA_KINDS,
    MODES,
    POSE_SOURCES,
    SCALE_MODELS,
    VERDICTS,
)
from .store import data_folder, list_parts, part_metadata

RIGID_TOLERANCE = 1e-5
"""Largest |R^T R - I|: float32 storage leaves 3e-7, anything above this was not a rotation."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One broken promise: file relative to the dataset, clip (None for a whole file), rule, and what was
    found."""

    part: str
    clip_id: str | None
    rule: str
    message: str

    def __str__(self) -> str:
        place = f"{self.part}: clip {self.clip_id}" if self.clip_id else self.part
        return f"{place}: {self.rule}: {self.message}"


def validate_dataset(path: str | Path) -> tuple[int, list[Violation]]:
    """Rows read and all violations of a dataset folder, in file order.

    Raises:
        ValueError: not a folder, or no part files.
    """
    out = Path(path)
    parts = list_parts(out)
    if not parts:
        raise ValueError(f"{out}: no part files below data/source=*/; is this the --out folder of a run?")
    found: list[Violation] = list(_check_folder(out))
    seen: dict[str, str] = {}
    first_hash: tuple[str, str] | None = None
    marker = out / "dataset.json"
    if marker.is_file():
        first_hash = ("dataset.json", str(json.loads(marker.read_text(encoding="utf-8")).get("recipe_hash")))
    num_rows = 0
    for part in parts:
        name = str(part.relative_to(out))
        try:
            _version, recipe_hash = part_metadata(part)
            table = pq.ParquetFile(part).read()
        except (ValueError, OSError, pa.ArrowException) as error:
            found.append(Violation(part=name, clip_id=None, rule="part_readable", message=str(error)))
            continue
        if first_hash is None:
            first_hash = (name, recipe_hash)
        if recipe_hash != first_hash[1]:
            message = f"written by recipe {recipe_hash}, but {first_hash[0]} says {first_hash[1]}"
            found.append(Violation(part=name, clip_id=None, rule="one_recipe", message=message))
        columns = list(_check_columns(name, table.schema))
        found.extend(columns)
        if columns:
            continue
        num_rows += table.num_rows
        for batch in table.to_batches(max_chunksize=256):
            for i in range(batch.num_rows):
                row = _RawRow(batch, i)
                clip_id = str(row["clip_id"])
                for rule, message in _check_row(row, part=part, recipe_hash=recipe_hash):
                    found.append(Violation(part=name, clip_id=clip_id, rule=rule, message=message))
                if clip_id in seen:
                    message = f"also in {seen[clip_id]}"
                    found.append(
                        Violation(part=name, clip_id=clip_id, rule="clip_id_unique", message=message)
                    )
                seen.setdefault(clip_id, name)
    return num_rows, found


def run_validate(path: str | Path) -> tuple[str, int]:
    """Text for the terminal and exit code: 0 if every promise holds, 1 if not."""
    num_rows, violations = validate_dataset(path)
    lines = [str(v) for v in violations]
    if violations:
        rules = sorted({v.rule for v in violations})
        lines.append(f"{path}: {num_rows} rows read, {len(violations)} violations of {', '.join(rules)}")
    else:
        lines.append(f"{path}: {num_rows} rows, every invariant holds")
    return "\n".join(lines), 1 if violations else 0


def _check_folder(out: Path) -> Iterator[Violation]:
    for stale in sorted([*data_folder(out).rglob(".tmp-*"), *out.glob(".tmp-*")]):
        yield Violation(
            part=str(stale.relative_to(out)),
            clip_id=None,
            rule="no_temporaries",
            message="left by a killed run; the same command again removes it",
        )


def _check_columns(name: str, schema: pa.Schema) -> Iterator[Violation]:
    for column in COLUMNS:
        if column.name not in schema.names:
            message = f"column {column.name} is missing"
        elif schema.field(column.name).type != column.type:
            message = (
                f"column {column.name} has type {schema.field(column.name).type}, expected {column.type}"
            )
        else:
            continue
        yield Violation(part=name, clip_id=None, rule="declared_columns", message=message)


class _RawRow:
    """Row of a record batch: lists as numpy arrays, everything else as Python values."""

    def __init__(self, batch: pa.RecordBatch, index: int) -> None:
        self._batch, self._index = batch, index

    def __getitem__(self, name: str) -> Any:
        scalar = self._batch.column(name)[self._index]
        if (
            isinstance(scalar, pa.ListScalar)
            and scalar.is_valid
            and pa.types.is_primitive(scalar.type.value_type)
        ):
            return scalar.values.to_numpy(zero_copy_only=False)
        return scalar.as_py()


_Problem = tuple[str, str]


def _check_row(row: _RawRow, *, part: Path, recipe_hash: str) -> Iterator[_Problem]:
    yield from _identity(row, part, recipe_hash)
    yield from _provenance(row)
    lengths = list(_lengths(row))
    yield from lengths
    if lengths:
        return  # what follows indexes by frame
    for check in _FRAME_CHECKS:
        yield from check(row)


def _identity(row: _RawRow, part: Path, recipe_hash: str) -> Iterator[_Problem]:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", row["clip_id"] or ""):
        yield "clip_id_characters", f"{row['clip_id']!r}; letters, digits, `_` and `-` only"
    if part.parent.name != f"source={row['source']}":
        yield "partition", f"source is {row['source']!r} but the part lies in {part.parent.name}"
    if row["recipe_hash"] != recipe_hash:
        yield "one_recipe", f"row says recipe {row['recipe_hash']}, its file {recipe_hash}"
    for name, vocabulary in (
        ("media_kind", MEDIA_KINDS),
        ("mode", MODES),
        ("scale_model", SCALE_MODELS),
        ("focal_model", FOCAL_MODELS),
        ("verdict", VERDICTS),
    ):
        if row[name] not in vocabulary:
            yield "vocabulary", f"{name} is {row[name]!r}, expected one of {', '.join(vocabulary)}"
    codes = row["pose_source"]
    if len(codes) and not ((codes >= 0) & (codes < len(POSE_SOURCES))).all():
        yield (
            "vocabulary",
            f"pose_source has code {int(codes[(codes < 0) | (codes >= len(POSE_SOURCES))][0])}",
        )


def _provenance(row: _RawRow) -> Iterator[_Problem]:
    if not row["data_licence"] or row["data_licence"] == "unknown":
        yield (
            "licence_present",
            f"data_licence is {row['data_licence']!r}; name the licence in the source's recipe",
        )
    weights, licences = row["weights"], row["weight_licences"]
    if len(weights) != len(licences) or any(not x or x == "unknown" for x in licences):
        yield "licence_present", f"weights {weights} have licences {licences}"
    if row["stand_in"]:
        yield "no_stand_in", "made with random or stand-in weights; run again with real ones"
    if not row["media"]:
        yield "media_pointer", "media is empty"
    reasons, details = row["reasons"], row["reason_details"]
    if row["verdict"] == "rejected" and not reasons:
        yield "verdict_reasons", "rejected without a reason"
    if row["verdict"] == "accepted" and reasons:
        yield "verdict_reasons", f"accepted with reasons {', '.join(reasons)}"
    if len(reasons) != len(details):
        yield "verdict_reasons", f"{len(reasons)} reasons but {len(details)} details"
    confidence = row["confidence"]
    if confidence is not None and not 0 <= confidence <= 1:
        yield "confidence_range", f"confidence is {confidence}, expected 0 to 1"
    for gate in row["gates"]:
        value, lower, upper = gate["value"], gate["lower"], gate["upper"]
        passed = value is not None and (lower is None or value >= lower) and (upper is None or value <= upper)
        if passed != gate["passed"]:
            yield (
                "gates",
                f"gate {gate['name']}: {value} in [{lower}, {upper}] is marked passed={gate['passed']}",
            )
        elif not passed and row["verdict"] == "accepted":
            yield "gates", f"accepted although gate {gate['name']} failed with {value} for [{lower}, {upper}]"


def _lengths(row: _RawRow) -> Iterator[_Problem]:
    frames, cameras = row["num_frames"], len(row["camera_to_world"])
    if cameras % 12 or cameras // 12 not in (0, frames):
        yield (
            "list_lengths",
            f"camera_to_world has {cameras} values for {frames} frames, expected 0 or {12 * frames}",
        )
    have_cameras = cameras > 0
    for column in COLUMNS:
        if not column.per_frame or column.name == "camera_to_world":
            continue
        value = row[column.name]
        if value is None:
            continue
        in_camera = column.name in ("focal_px", "principal_point_px", "pose_source")
        expected = column.per_frame * frames if have_cameras or not in_camera else 0
        if len(value) != expected:
            yield (
                "list_lengths",
                f"{column.name} has {len(value)} values for {frames} frames, expected {expected}",
            )
    if len(row["scale_frame"]) != len(row["scale_value"]):
        yield (
            "list_lengths",
            f"{len(row['scale_frame'])} scale_frame but {len(row['scale_value'])} scale_value",
        )
    if row["verdict"] == "accepted" and not have_cameras:
        yield "accepted_has_cameras", "accepted without any camera"


def _times(row: _RawRow) -> Iterator[_Problem]:
    for name, rule in (("frame_index", "frame_index_increasing"), ("time_s", "time_increasing")):
        values = row[name]
        if not len(values):
            continue
        if (
            not np.isfinite(values).all()
            or (np.diff(values) <= 0).any()
            or (name == "frame_index" and values[0] < 0)
        ):
            step = np.flatnonzero(~(np.diff(values) > 0))
            where = f"at frame {int(step[0]) + 1}" if step.size else "in its first value"
            yield rule, f"{name} must be finite, not negative and increase strictly; fails {where}"
    fps, times = row["fps"], row["time_s"]
    if fps is not None and len(times) > 2 and np.isfinite(times).all():
        measured = (len(times) - 1) / max(times[-1] - times[0], 1e-12)
        if not 0.9 < measured / fps < 1.1:
            yield "fps", f"fps says {fps:g}, the times say {measured:.3f}"


def _cameras(row: _RawRow) -> Iterator[_Problem]:
    flat = row["camera_to_world"]
    if not len(flat):
        return
    height, width = row["height"], row["width"]
    if height <= 0 or width <= 0:
        yield "stored_size", f"cameras are given but the stored size is {width}x{height}"
        return
    sources = row["pose_source"]
    posed = sources != 0
    if row["verdict"] == "accepted" and not posed.all():
        yield "accepted_has_cameras", f"accepted, but {int((~posed).sum())} frames have pose_source none"
    poses = to_4x4(flat.reshape(-1, 3, 4)[posed])
    focal = row["focal_px"].reshape(-1, 2)[posed].astype(np.float64)
    centre = row["principal_point_px"].reshape(-1, 2)[posed].astype(np.float64)
    frames = np.flatnonzero(posed)

    def first(bad: np.ndarray) -> str:
        return f"first at frame {frames[np.flatnonzero(bad)[0]]}, {int(bad.sum())} frames"

    infinite = ~np.isfinite(poses).all(axis=(1, 2))
    if infinite.any():
        yield "finite", f"camera_to_world is not finite, {first(infinite)}"
    else:
        error = rigid_error(poses) if len(poses) else np.zeros(0)
        bad = error > RIGID_TOLERANCE
        if bad.any():
            yield (
                "rigid",
                f"camera_to_world is no rotation: off by {error.max():.2g} (allowed {RIGID_TOLERANCE:g}), {first(bad)}",
            )
        far = np.abs(poses[:, :3, 3]).max(axis=1) > 1e5
        if far.any():
            yield "plausible_position", f"camera over 100 km from the origin; metres expected, {first(far)}"
        stated = row["path_length_m"]
        measured = path_length(poses) if len(poses) else 0.0
        if stated is not None and posed.all() and abs(stated - measured) > 0.01 * measured + 1e-3:
            yield "path_length", f"path_length_m says {stated:.4f}, the poses say {measured:.4f}"
    for name, values in (("focal_px", focal), ("principal_point_px", centre)):
        if not np.isfinite(values).all():
            yield "finite", f"{name} is not finite, {first(~np.isfinite(values).all(axis=1))}"
    if np.isfinite(focal).all():
        size = float(max(height, width))
        bad = ((focal < 0.05 * size) | (focal > 50 * size)).any(axis=1)
        if bad.any():
            value = focal[bad][0, 0]
            yield (
                "focal_for_stored_size",
                f"focal_px {value:.4g} for {width}x{height} px; pixels of the stored size expected, {first(bad)}",
            )
    if np.isfinite(centre).all():
        bad = ((centre <= 0) | (centre >= [width, height])).any(axis=1)
        if bad.any():
            yield (
                "principal_point_in_image",
                f"{centre[bad][0].tolist()} for {width}x{height} px, {first(bad)}",
            )
    if np.isfinite(focal).all() and len(focal) and posed.all():
        for axis, (name, size_px) in enumerate((("x", width), ("y", height))):
            fov = 2 * np.arctan(0.5 * size_px / focal[:, axis])
            for end, value in (("min", fov.min()), ("max", fov.max())):
                stated = row[f"fov_{name}_{end}_rad"]
                if stated is not None and abs(stated - value) > 1e-3:
                    yield (
                        "fov_of_focal",
                        f"fov_{name}_{end}_rad says {stated:.4f}, focal_px and size say {value:.4f}",
                    )


def _numbers(row: _RawRow) -> Iterator[_Problem]:
    for name in ("position_sigma_m", "rotation_sigma_rad", "log_focal_sigma", "reprojection_px"):
        values = row[name]
        if values is not None and len(values) and (np.isinf(values) | (values < 0)).any():
            yield "uncertainty", f"{name} must be NaN (unknown) or not negative and finite"
    scale, model = row["metres_per_unit"], row["scale_model"]
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        yield "scale", f"metres_per_unit is {scale}, expected positive and finite"
    if (scale is None) != (model == "none"):
        yield "scale", f"metres_per_unit is {scale} but scale_model is {model}"
    if row["verdict"] == "accepted" and scale is None:
        yield "scale", "accepted without a metric scale"
    varying = model in ("slow_drift", "step")
    per_frame = row["metres_per_unit_frame"]
    if varying and per_frame is None:
        yield "scale", f"scale_model is {model} but metres_per_unit_frame is null"
    if len(row["scale_frame"]):
        frames = row["scale_frame"]
        if frames.min() < 0 or frames.max() >= row["num_frames"]:
            yield (
                "scale",
                f"scale_frame runs from {frames.min()} to {frames.max()} in a clip of {row['num_frames']} frames",
            )
    for column in COLUMNS:
        if column.type == pa.float64() and column.name != "confidence":
            value = row[column.name]
            if value is not None and not np.isfinite(value):
                yield "finite", f"{column.name} is {value}; unknown values are null"
    for name in ("track_survival_min", "inlier_share_min"):
        value = row[name]
        if value is not None and not 0 <= value <= 1:
            yield "share_range", f"{name} is {value}, expected 0 to 1"


_FRAME_CHECKS: tuple[Callable[[_RawRow], Iterator[_Problem]], ...] = (_times, _cameras, _numbers)
