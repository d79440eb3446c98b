"""What a row promises, checked on its raw Arrow values: a broken row must be described, not merely refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .cameras.transforms import rigid_error, to_4x4
from .metrics.trajectory import path_length
from .names import NAME_RULE, is_name, wrong_pointer
from .reasons import find_reason
from .rows import WORD_COLUMNS
from .schema import (
    COLUMNS,
    NAMED_COLUMNS,
    SCHEMA_VERSION,
)
from .store import source_folder
from .words import POSE_SOURCES

RIGID_TOLERANCE = 1e-5
"""Largest |R^T R - I|: float32 storage leaves 3e-7, anything above this was not a rotation."""


_STORAGE_TOLERANCE = 1e-5
"""Relative difference between a number computed before lists were rounded to float32 and after."""
_WINDOW_SLACK_S = 0.01
_BOUNDED = tuple((c.name, c.bounds) for c in COLUMNS if c.bounds is not None and not c.shape)
_UNCERTAINTIES = tuple((c.name, c.bounds[1]) for c in COLUMNS if c.bounds is not None and c.shape)
_NEEDED_WITH_CAMERAS = (
    *("path_length_m", "focal_axis_gap_max", "focal_spread"),
    *("fov_x_min_rad", "fov_x_max_rad", "fov_y_min_rad", "fov_y_max_rad"),
)


_NUMBERS = tuple(column.name for column in COLUMNS if column.type == pa.float64())
_PER_FRAME = tuple(
    (column.name, column.per_frame, column.name in ("focal_px", "principal_point_px", "pose_source"))
    for column in COLUMNS
    if column.per_frame and column.name != "camera_to_world"
)
"""Name, values a frame, and whether they are of cameras."""


class RawRow:
    """Row of a record batch: lists of numbers as numpy arrays, everything else as Python values."""

    def __init__(self, columns: dict[str, _Column], index: int) -> None:
        self._columns, self._index = columns, index

    def __getitem__(self, name: str) -> Any:
        column = self._columns.get(name)
        return None if column is None else column[self._index]  # a nullable one that came after the file


class _Lists:
    """Lists of numbers of a batch, each a view."""

    def __init__(self, column: pa.ListArray) -> None:
        self._offsets = column.offsets.to_pylist()
        self._values = column.values.to_numpy(zero_copy_only=False)
        self._valid = column.is_valid().to_pylist() if column.null_count else None

    def __getitem__(self, index: int) -> Any:
        if self._valid is not None and not self._valid[index]:
            return None
        return self._values[self._offsets[index] : self._offsets[index + 1]]


class _Scalars:
    """Lists of whole numbers with holes: a row without one must not see its values as floats."""

    def __init__(self, column: pa.ListArray) -> None:
        self._column = column

    def __getitem__(self, index: int) -> Any:
        scalar = self._column[index]
        return scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None


_Column = list[Any] | _Lists | _Scalars


def raw_rows(batch: pa.RecordBatch) -> list[RawRow]:
    """The rows of a batch."""
    columns = dict(zip(batch.schema.names, (_column(c) for c in batch.columns), strict=True))
    return [RawRow(columns, index) for index in range(batch.num_rows)]


def _column(column: pa.Array) -> _Column:
    if not pa.types.is_list(column.type) or not pa.types.is_primitive(column.type.value_type):
        return column.to_pylist()
    holes = column.values.null_count and not pa.types.is_floating(column.type.value_type)
    return _Scalars(column) if holes else _Lists(column)


Problem = tuple[str, str]


def check_row(row: RawRow, *, part: Path, version: int | None, recipe_hash: str | None) -> Iterator[Problem]:
    if version is not None and row["schema_version"] != version:
        yield "schema_version", f"row says {row['schema_version']}, its file {version}"
    if not 1 <= row["schema_version"] <= SCHEMA_VERSION:
        yield "schema_version", f"row says {row['schema_version']}, this reader knows 1 to {SCHEMA_VERSION}"
    if version is not None and "data" in part.parts[-4:-1]:
        folder = f"source={row['source']}" if version == 1 else row["source"]
        if source_folder(part) != folder:
            yield (
                "partition",
                f"source is {row['source']!r} but the part lies in {source_folder(part)}, not {folder}",
            )
    yield from _identity(row, recipe_hash)
    yield from _provenance(row)
    lengths = list(_lengths(row))
    yield from lengths
    if lengths:
        return  # what follows indexes by frame
    for check in _FRAME_CHECKS:
        yield from check(row)


def _identity(row: RawRow, recipe_hash: str | None) -> Iterator[Problem]:
    if not is_name(row["clip_id"]):
        yield "clip_id_characters", f"{row['clip_id']!r:.200}; {NAME_RULE}"
    if not is_name(row["source"]):
        yield "source_characters", f"{row['source']!r:.200}; {NAME_RULE}"
    media = row["media"] or ""
    at_source = (
        media == f"{row['source']}:{row['original_id']}"
    )  # as published where media may not be passed on
    # An absolute one is followed by nobody, but harms nobody either: publishing replaces it.
    relative = media and not at_source and "://" not in media and not media.startswith("/")
    if relative and (why := wrong_pointer(media)):
        yield "media_pointer", f"{media!r:.200} {why}"
    for name in ("original_id", "package_version"):
        if not row[name]:
            yield "identity_present", f"{name} is empty"
    if row["recipe_hash"] != recipe_hash:
        yield "one_recipe", f"row says recipe {row['recipe_hash']}, its file {recipe_hash}"
    for column in WORD_COLUMNS:
        if not column.allows(row[column.name]):
            yield (
                "vocabulary",
                f"{column.name} is {row[column.name]!r}, expected one of {', '.join(column.values)}",
            )
    codes = row["pose_source"]
    if len(codes) and not ((codes >= 0) & (codes < len(POSE_SOURCES))).all():
        yield (
            "vocabulary",
            f"pose_source has code {int(codes[(codes < 0) | (codes >= len(POSE_SOURCES))][0])}",
        )


def _provenance(row: RawRow) -> Iterator[Problem]:
    if not row["data_licence"]:
        yield (
            "licence_present",
            f"data_licence is {row['data_licence']!r}; name the licence in the source's recipe",
        )
    weights, licences = row["weights"], row["weight_licences"]
    if len(weights) != len(licences) or not all(weights) or any(not x or x == "unknown" for x in licences):
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
    if len(reasons) != len(details) or not all(reasons) or not all(details):
        yield "verdict_reasons", f"{len(reasons)} reasons but {len(details)} details, or one of them is empty"
    for code in reasons:
        if code and find_reason(code) is None:
            yield "verdict_reasons", f"unknown reason {code!r}; dataset/SCHEMA.md lists them"
    if row["error"] is not None and (not row["error"] or row["verdict"] == "accepted"):
        yield "verdict_reasons", "an error is the traceback of a rejected clip; null if there was none"
    yield from _gates(row)
    for name in NAMED_COLUMNS:
        entries = [(x["name"], x["value"]) for x in row[name] or ()]
        if len({key for key, _value in entries}) < len(entries):
            yield "named_values", f"{name} holds a name twice: {', '.join(str(key) for key, _ in entries)}"
        for key, value in entries:
            number = value if isinstance(value, float) else 0.0
            if not key or value in (None, "") or not np.isfinite(number):
                yield "named_values", f"{name} holds {key!r}: {value!r}; unknown values are left out"
            elif name == "stage_wall_s" and number < 0:
                yield "range", f"stage_wall_s[{key}] is {value}, expected at least 0"


def _gates(row: RawRow) -> Iterator[Problem]:
    gates = row["gates"]
    names = [gate["name"] for gate in gates]
    if row["verdict"] == "accepted" and not gates:
        yield "gates", "accepted although no gate was judged"
    if len(set(names)) != len(names) or not all(names) or not all(gate["unit"] for gate in gates):
        yield "gates", f"gates {', '.join(names)}: each needs a name of its own and a unit"
    for gate in gates:
        value, lower, upper = gate["value"], gate["lower"], gate["upper"]
        given = [x for x in (value, lower, upper) if x is not None]
        if not np.isfinite(given).all() or (lower is None and upper is None):
            yield (
                "gates",
                f"gate {gate['name']}: {value} in [{lower}, {upper}]; needs finite numbers and a bound",
            )
            continue
        if lower is not None and upper is not None and lower > upper:
            yield "gates", f"gate {gate['name']}: lower bound {lower} above upper bound {upper}"
            continue
        passed = value is not None and (lower is None or value >= lower) and (upper is None or value <= upper)
        if passed != gate["passed"]:
            yield (
                "gates",
                f"gate {gate['name']}: {value} in [{lower}, {upper}] is marked passed={gate['passed']}",
            )
        elif not passed and row["verdict"] == "accepted":
            yield "gates", f"accepted although gate {gate['name']} failed with {value} for [{lower}, {upper}]"


def _lengths(row: RawRow) -> Iterator[Problem]:
    frames, cameras = row["num_frames"], len(row["camera_to_world"])
    if cameras % 12 or cameras // 12 not in (0, frames):
        yield (
            "list_lengths",
            f"camera_to_world has {cameras} values for {frames} frames, expected 0 or {12 * frames}",
        )
    have_cameras = cameras > 0
    for name, per_frame, in_camera in _PER_FRAME:
        value = row[name]
        if value is None:
            continue
        expected = per_frame * frames if have_cameras or not in_camera else 0
        if len(value) != expected:
            yield "list_lengths", f"{name} has {len(value)} values for {frames} frames, expected {expected}"
    if len(row["scale_frame"]) != len(row["scale_value"]):
        yield (
            "list_lengths",
            f"{len(row['scale_frame'])} scale_frame but {len(row['scale_value'])} scale_value",
        )
    if row["verdict"] == "accepted" and not have_cameras:
        yield "accepted_has_cameras", "accepted without any camera"


def _times(row: RawRow) -> Iterator[Problem]:
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
    fps, times, index = row["fps"], row["time_s"], row["frame_index"]
    if len(times) < 2 or not np.isfinite(times).all():
        return
    if fps is None and row["verdict"] == "accepted":
        yield "fps", "accepted without a frame rate"
    span_s = max(times[-1] - times[0], 1e-12)
    rate = (len(times) - 1) / span_s
    if fps is not None and len(times) > 2 and not 0.9 < rate / max(fps, 1e-12) < 1.1:
        yield "fps", f"fps says {fps:g}, the times say {rate:.3f}"
    stated, source_rate = row["source_fps"], (index[-1] - index[0]) / span_s
    # The average over the whole window; a source of varying rate may run differently in the frames that were kept.
    if stated is not None and not 2 / 3 < source_rate / max(stated, 1e-12) < 1.5:
        yield "fps", f"source_fps says {stated:g}, frame indices and times say {source_rate:.3f}"
    start, end = row["window_start_s"], row["window_end_s"]
    if start is not None and times[0] < start - _WINDOW_SLACK_S:
        yield "window", f"the window starts at {start:g} s, the first frame is at {times[0]:.3f} s"
    if end is not None and times[-1] > end + _WINDOW_SLACK_S:
        yield "window", f"the window ends at {end:g} s, the last frame is at {times[-1]:.3f} s"


def _cameras(row: RawRow) -> Iterator[Problem]:
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
    with np.errstate(invalid="ignore"):  # infinite entries are named below
        poses = to_4x4(flat.reshape(-1, 3, 4)[posed])
    focal = row["focal_px"].reshape(-1, 2)[posed].astype(np.float64)
    centre = row["principal_point_px"].reshape(-1, 2)[posed].astype(np.float64)
    first = partial(_first_of, np.flatnonzero(posed))
    yield from _poses(row, poses, first, whole=bool(posed.all()))
    yield from _lenses(focal, centre, (height, width), first)
    if np.isfinite(focal).all() and (focal > 0).all() and len(focal) and posed.all():
        yield from _lens_numbers(row, focal, (height, width))
    if row["verdict"] == "accepted":
        missing = [name for name in _NEEDED_WITH_CAMERAS if row[name] is None]
        if missing:
            yield "accepted_has_numbers", f"accepted, but {', '.join(missing)} are null"


def _first_of(frames: np.ndarray, bad: Any) -> str:
    """Where it begins, and how many frames it is."""
    return f"first at frame {frames[np.flatnonzero(bad)[0]]}, {int(bad.sum())} frames"


def _poses(row: RawRow, poses: np.ndarray, first: Callable[[Any], str], *, whole: bool) -> Iterator[Problem]:
    infinite = ~np.isfinite(poses).all(axis=(1, 2))
    if infinite.any():
        yield "finite", f"camera_to_world is not finite, {first(infinite)}"
        return
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
    # Stored positions are rounded: each step is off by up to two units in the last place of float32.
    rounding = 4 * len(poses) * float(np.spacing(np.float32(np.abs(poses[:, :3, 3]).max(initial=0.0))))
    if stated is not None and whole and not abs(stated - measured) <= 1e-4 * measured + rounding:
        yield "path_length", f"path_length_m says {stated:.6g}, the poses say {measured:.6g}"


def _lenses(
    focal: np.ndarray, centre: np.ndarray, size: tuple[int, int], first: Callable[[Any], str]
) -> Iterator[Problem]:
    height, width = size
    for name, values in (("focal_px", focal), ("principal_point_px", centre)):
        if not np.isfinite(values).all():
            yield "finite", f"{name} is not finite, {first(~np.isfinite(values).all(axis=1))}"
    if np.isfinite(focal).all():
        longest = float(max(height, width))
        bad = ((focal < 0.05 * longest) | (focal > 50 * longest)).any(axis=1)
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


def _lens_numbers(row: RawRow, focal: np.ndarray, size: tuple[int, int]) -> Iterator[Problem]:
    """Numbers of a clip that repeat what its focal lengths say."""
    height, width = size
    for axis, (name, size_px) in enumerate((("x", width), ("y", height))):
        fov = 2 * np.arctan(0.5 * size_px / focal[:, axis])
        for end, value in (("min", fov.min()), ("max", fov.max())):
            stated = row[f"fov_{name}_{end}_rad"]
            if stated is not None and not abs(stated - value) <= _STORAGE_TOLERANCE:
                yield (
                    "fov_of_focal",
                    f"fov_{name}_{end}_rad says {stated:.6f}, focal_px and size say {value:.6f}",
                )
    fx, fy = focal.T
    for column, value in (
        ("focal_axis_gap_max", (np.abs(fx - fy) / ((fx + fy) / 2)).max()),
        ("focal_spread", fx.std() / fx.mean()),
    ):
        yield from _restated(row, column, float(value), "focal_px", absolute=_STORAGE_TOLERANCE)


def _restated(
    row: RawRow, column: str, value: float, source: str, *, absolute: float = 0.0
) -> Iterator[Problem]:
    """A per-clip number that repeats what a list says."""
    stated = row[column]
    if stated is not None and not abs(stated - value) <= _STORAGE_TOLERANCE * abs(value) + absolute:
        yield "restated", f"{column} says {stated:.6g}, {source} gives {value:.6g}"


def _numbers(row: RawRow) -> Iterator[Problem]:
    accepted = row["verdict"] == "accepted"
    for name, most in _UNCERTAINTIES:
        values = row[name]
        if values is None or not len(values):
            continue
        if (np.isinf(values) | (values < 0)).any():
            yield "uncertainty", f"{name} must be NaN (unknown) or not negative and finite"
        elif accepted and (values > most).any():
            yield "uncertainty", f"{name} reaches {np.nanmax(values):.3g}, which no accepted clip can have"
    reprojection = row["reprojection_px"]
    if reprojection is not None and len(reprojection) and np.isfinite(reprojection).all():
        yield from _restated(row, "reprojection_median_px", float(np.median(reprojection)), "reprojection_px")
        low, high, stated = float(reprojection.min()), float(reprojection.max()), row["reprojection_rms_px"]
        if stated is not None and not low * 0.9999 <= stated <= high * 1.0001:
            yield "restated", f"reprojection_rms_px says {stated:.6g}, frames have {low:.6g} to {high:.6g}"
        if accepted and (stated is None or row["reprojection_median_px"] is None):
            yield "accepted_has_numbers", "reprojection_px is given, but its average over the clip is null"
    yield from _scale(row)
    for name, (least, most) in _BOUNDED:
        value = row[name]
        if value is not None and math.isfinite(value) and not least <= value <= most:
            yield "range", f"{name} is {value:g}, expected {least:g} to {most:g}"
    for name in _NUMBERS:
        value = row[name]
        if value is not None and not math.isfinite(value):
            yield "finite", f"{name} is {value}; unknown values are null"
    for low, high in (("window_start_s", "window_end_s"), ("fov_x_min_rad", "fov_x_max_rad")):
        a, b = row[low], row[high]
        if a is not None and b is not None and not a < b + (low[0] == "f") * _STORAGE_TOLERANCE:
            yield "range", f"{low} is {a:g}, {high} {b:g}"


def _scale(row: RawRow) -> Iterator[Problem]:
    scale, model, per_frame = row["metres_per_unit"], row["scale_model"], row["metres_per_unit_frame"]
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        yield "scale", f"metres_per_unit is {scale}, expected positive and finite"
        return
    if (scale is None) != (model == "none"):
        yield "scale", f"metres_per_unit is {scale} but scale_model is {model}"
    if row["verdict"] == "accepted" and scale is None:
        yield "scale", "accepted without a metric scale"
    if scale == 1 and model != "declared":
        yield (
            "scale",
            f"metres_per_unit is exactly 1 but scale_model is {model}; only a declared unit is a metre",
        )
    if per_frame is None:
        if model in ("slow_drift", "step"):
            yield "scale", f"scale_model is {model} but metres_per_unit_frame is null"
    elif len(per_frame):
        if not (np.isfinite(per_frame) & (per_frame > 0)).all():
            yield "scale", "metres_per_unit_frame must be positive and finite"
        elif scale is None or not abs(np.median(per_frame) - scale) <= _STORAGE_TOLERANCE * scale:
            yield "scale", f"metres_per_unit is {scale}, the median over frames {np.median(per_frame):.6g}"
    frames, values = row["scale_frame"], row["scale_value"]
    if len(frames) and (
        frames.min() < 0 or frames.max() >= row["num_frames"] or (np.diff(frames) <= 0).any()
    ):
        yield (
            "scale",
            f"scale_frame must increase within a clip of {row['num_frames']} frames; runs from {frames.min()} to "
            f"{frames.max()}",
        )
    if not (np.isfinite(values) & (values > 0)).all():
        yield "scale", "scale_value must be positive and finite; a frame without a scale is left out"
        return
    raw = values.astype(np.float64)
    if not len(raw):
        return
    for column, value in (
        ("scale_p10", np.percentile(raw, 10)),
        ("scale_p90", np.percentile(raw, 90)),
        ("scale_cov", raw.std() / raw.mean()),
    ):
        yield from _restated(row, column, float(value), "scale_value", absolute=1e-6)
    if row["verdict"] == "accepted" and any(
        row[f"scale_{name}"] is None for name in ("p10", "p90", "cov", "mad_log")
    ):
        yield "accepted_has_numbers", "scale_value is given, but scale_p10, _p90, _cov or _mad_log is null"
    if scale is not None and model != "declared":
        # A robust constant lies among the values; a drift may be extrapolated a little.
        slack = 1 + _STORAGE_TOLERANCE if model == "constant" else 1.5
        if not raw.min() / slack <= scale <= raw.max() * slack:
            yield (
                "scale",
                f"metres_per_unit is {scale:.6g}, the raw series has {raw.min():.6g} to {raw.max():.6g}",
            )


_FRAME_CHECKS: tuple[Callable[[RawRow], Iterator[Problem]], ...] = (_times, _cameras, _numbers)
