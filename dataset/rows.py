"""A clip's row: a checked record in memory, and its way to and from Arrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .cameras.intrinsics import intrinsics_matrix
from .conform import PANDAS_INDEX, conform
from .names import NAME_RULE, check_name, is_name
from .schema import (
    COLUMN_BY_NAME,
    COLUMNS,
    NAMED_COLUMNS,
    SCHEMA_VERSION,
    SERIES_COLUMNS,
    TUPLE_COLUMNS,
    arrow_schema,
)
from .words import POSE_SOURCES

_EMPTY = np.zeros(0)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One judged gate: `passed` means lower <= value <= upper; a missing value (None) has not passed."""

    name: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    unit: str = "1"
    passed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One clip. Field by field as in `schema.COLUMNS`; arrays take their storage precision on construction.

    Only identity, provenance and verdict are required: a clip rejected before decoding has no frames
    (`num_frames` 0), one rejected later may have frames but no cameras (empty camera arrays).

    Attributes (those whose shape differs from the flat lists on disk):
        camera_to_world: (F, 4, 4) float32, or (0, 4, 4). (F, 3, 4) is accepted.
        focal_px, principal_point_px: (F, 2) float32, or (0, 2).
        pose_source: (F,) int8 codes of `schema.POSE_SOURCES`; names are accepted.
        position_sigma_m, rotation_sigma_rad, log_focal_sigma, reprojection_px, metres_per_unit_frame: (F,)
            float32 or None.
        moving_mask: (F, 72) int32 or None, see `moving_masks.unpacked_masks`.
        schema_version: of the file that the row was read from; rows are written in the current one.
        extra: columns of a file that this version does not know, kept as plain values.
    Raises:
        ValueError: naming clip and field, when lengths disagree or a value is outside its vocabulary.
    """

    clip_id: str
    source: str
    original_id: str
    media_kind: str
    media: str
    mode: str
    data_licence: str
    data_redistributable: bool
    stand_in: bool
    recipe_hash: str
    package_version: str
    verdict: str
    schema_version: int = SCHEMA_VERSION
    media_pattern: str | None = None
    window_start_s: float | None = None
    window_end_s: float | None = None
    weights: tuple[str, ...] = ()
    weight_licences: tuple[str, ...] = ()
    annotate_wall_s: float | None = None
    stage_wall_s: Mapping[str, float] | None = None
    height: int = 0
    width: int = 0
    source_fps: float | None = None
    source_num_frames: int | None = None
    fps: float | None = None
    frame_index: NDArray[np.int32] = field(default_factory=lambda: _EMPTY.astype(np.int32))
    time_s: NDArray[np.float64] = field(default_factory=lambda: _EMPTY)
    time_stamps: str | None = None
    time_jitter_s: float | None = None
    camera_to_world: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4, 4), np.float32))
    focal_px: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    principal_point_px: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    radial_k1: float | None = None
    radial_k2: float | None = None
    lens_model: str | None = None
    pose_source: NDArray[np.int8] = field(default_factory=lambda: _EMPTY.astype(np.int8))
    focal_model: str = "none"
    position_sigma_m: NDArray[np.float32] | None = None
    rotation_sigma_rad: NDArray[np.float32] | None = None
    log_focal_sigma: NDArray[np.float32] | None = None
    reprojection_px: NDArray[np.float32] | None = None
    metres_per_unit: float | None = None
    metres_per_unit_frame: NDArray[np.float32] | None = None
    scale_model: str = "none"
    scale_frame: NDArray[np.int32] = field(default_factory=lambda: _EMPTY.astype(np.int32))
    scale_value: NDArray[np.float32] = field(default_factory=lambda: _EMPTY.astype(np.float32))
    scale_mad_log: float | None = None
    scale_p10: float | None = None
    scale_p90: float | None = None
    scale_cov: float | None = None
    scale_source: str | None = None
    scale_sigma_log: float | None = None
    is_metric: bool | None = None
    given_metres_per_unit: float | None = None
    bridge_frame: NDArray[np.int32] | None = None
    bridge_value: NDArray[np.float32] | None = None
    bridge_spread_log: float | None = None
    pose_hz: float | None = None
    given_pose_share: float | None = None
    given_gap_max_s: float | None = None
    given_path_spread: float | None = None
    reprojection_rms_px: float | None = None
    reprojection_median_px: float | None = None
    num_tracks: int | None = None
    num_loops: int | None = None
    tracker: str | None = None
    track_survival_min: float | None = None
    inlier_share_min: float | None = None
    parallax_rad: float | None = None
    moving_share: float | None = None
    moving_mask: NDArray[np.int32] | None = None
    depth_residual_log_median: float | None = None
    depth_misfit_px: float | None = None
    depth_reading_margin_log: float | None = None
    depth_unexplained: float | None = None
    depth_inconsistency_log: float | None = None
    depth_unit_step_log: float | None = None
    path_length_m: float | None = None
    scale_sweep_best: float | None = None
    agreement_rotation_rad: float | None = None
    agreement_direction_rad: float | None = None
    agreement_scale_log: float | None = None
    agreement_metric_log: float | None = None
    agreement_focal_rays_log: float | None = None
    agreement_focal_anchor_log: float | None = None
    given_scale_ratio: float | None = None
    given_scale_sigma: float | None = None
    given_time_offset_s: float | None = None
    given_time_offset_sigma_s: float | None = None
    given_position_rms_m: float | None = None
    given_position_rms_px: float | None = None
    given_focal_ratio: float | None = None
    given_focal_sigma: float | None = None
    fov_x_min_rad: float | None = None
    fov_x_max_rad: float | None = None
    fov_y_min_rad: float | None = None
    fov_y_max_rad: float | None = None
    focal_axis_gap_max: float | None = None
    focal_spread: float | None = None
    metrics: Mapping[str, float] | None = None
    gates: tuple[Gate, ...] = ()
    confidence: float | None = None
    confidence_absent: str | None = None
    reasons: tuple[str, ...] = ()
    reason_details: tuple[str, ...] = ()
    decode_notes: tuple[str, ...] = ()
    error: str | None = None
    captions: Mapping[str, str] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        check_name(self.clip_id)
        if not is_name(self.source):
            raise ValueError(f"clip {self.clip_id}: source {self.source!r:.80} must be {NAME_RULE}")
        for column in WORD_COLUMNS:
            if not column.allows(getattr(self, column.name)):
                raise self._error(
                    f"{column.name} is {getattr(self, column.name)!r}, expected one of {', '.join(column.values)}"
                )
        pose_source = np.asarray(self.pose_source)
        if pose_source.dtype.kind in "UO":
            unknown = sorted(set(map(str, pose_source)) - set(POSE_SOURCES))
            if unknown:
                raise self._error(f"pose_source has {unknown}, expected {', '.join(POSE_SOURCES)}")
            pose_source = np.asarray([POSE_SOURCES.index(str(s)) for s in pose_source])
        put("pose_source", pose_source)
        poses = np.asarray(self.camera_to_world)
        if poses.ndim == 3 and poses.shape[1:] == (3, 4):
            bottom = np.broadcast_to(np.asarray([0, 0, 0, 1], np.float32), (len(poses), 1, 4))
            put("camera_to_world", np.concatenate([poses, bottom], axis=1))
        for name, tail in _ROW_SHAPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            array = np.array(value, dtype=_ROW_TYPES[name])  # a copy: rows are frozen
            if array.shape[1:] != tail or array.ndim != 1 + len(tail):
                raise self._error(
                    f"{name} has shape {np.shape(value)}, expected (F{''.join(f', {n}' for n in tail)})"
                )
            array.flags.writeable = False
            put(name, array)
        for name in TUPLE_COLUMNS:
            if isinstance(getattr(self, name), str):
                raise self._error(f"{name} must be a sequence, found a string")
            put(name, tuple(getattr(self, name) or ()))
        self._check_lengths()

    def _error(self, message: str) -> ValueError:
        return ValueError(f"clip {self.clip_id}: {message}")

    def _check_lengths(self) -> None:
        frames = len(self.frame_index)
        if len(self.time_s) != frames:
            raise self._error(f"{frames} frame_index but {len(self.time_s)} time_s; both are one per frame")
        cameras = len(self.camera_to_world)
        if cameras not in (0, frames):
            raise self._error(f"{cameras} camera_to_world but {frames} frames; give all or none")
        for name in ("focal_px", "principal_point_px", "pose_source"):
            if len(getattr(self, name)) != cameras:
                raise self._error(f"{len(getattr(self, name))} {name} but {cameras} camera_to_world")
        for name, column in _ARRAYS.items():
            value = getattr(self, name)
            if column.per_frame and column.nullable and value is not None and len(value) != frames:
                raise self._error(f"{len(value)} {name} but {frames} frames")
        if len(self.scale_frame) != len(self.scale_value):
            raise self._error(f"{len(self.scale_frame)} scale_frame but {len(self.scale_value)} scale_value")
        if len(self.weights) != len(self.weight_licences):
            raise self._error(f"{len(self.weights)} weights but {len(self.weight_licences)} weight_licences")
        if len(self.reasons) != len(self.reason_details):
            raise self._error(f"{len(self.reasons)} reasons but {len(self.reason_details)} reason_details")
        if self.verdict == "rejected" and not self.reasons:
            raise self._error("rejected without a reason")
        if self.verdict == "accepted" and (self.reasons or not cameras):
            raise self._error("accepted, but has rejection reasons or no cameras")

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return len(self.frame_index)

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """(F, 3, 3) pinhole matrices in pixels of the stored size."""
        return intrinsics_matrix(self.focal_px, self.principal_point_px)


_POSES = "camera_to_world"
WORD_COLUMNS = tuple(column for column in COLUMNS if column.values)
"""Those that hold one of a few words."""
_ARRAYS = {name: COLUMN_BY_NAME[name] for name in SERIES_COLUMNS}
_ROW_SHAPES = {name: (4, 4) if name == _POSES else column.entry_shape for name, column in _ARRAYS.items()}
"""Shape of one entry in `Row`: that of files, but whole matrices for poses."""
_ROW_TYPES = {name: column.type.value_type.to_pandas_dtype() for name, column in _ARRAYS.items()}
_GATE_FIELDS = tuple(f.name for f in fields(Gate))


def _cell(row: Row, name: str) -> Any:
    """Value of a column of lists, maps or structures as pyarrow takes it."""
    value = getattr(row, name)
    if value is None:
        return None
    if name == _POSES:
        return value[:, :3, :].reshape(-1)
    if name == "gates":
        return [{f: getattr(gate, f) for f in _GATE_FIELDS} for gate in value]
    if name in NAMED_COLUMNS:
        return [{"name": key, "value": item} for key, item in sorted(value.items())]
    if isinstance(value, np.ndarray):
        return value.reshape(-1)
    return list(value) if isinstance(value, tuple) else value


ABSENT_CONFIDENCE = {
    "no_networks": "no network took part",
    "no_cameras": "no cameras to compare",
    "nothing_to_compare": "the networks state too little to compare",
}
"""Why a row has no confidence, in words."""


def why_no_confidence(*, networks: bool, cameras: bool) -> str:
    """Key of `ABSENT_CONFIDENCE` for a row without confidence: did networks take part, and were cameras found?"""
    if not networks:
        return "no_networks"
    return "nothing_to_compare" if cameras else "no_cameras"


def _array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Values of a column. Texts with halves of surrogate pairs, as names of files that are no UTF-8 have them in
    messages, and JSON of others, cannot be stored: those are written out as `\\udcff`."""
    try:
        return pa.array(values, type=kind)
    except UnicodeEncodeError:
        return pa.array([_storable(value) for value in values], type=kind)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return value


def rows_to_table(rows: Iterable[Row]) -> pa.Table:
    """Arrow table of rows, in order, with the declared schema; unknown columns in `extra` are appended.

    Rows that were read from files of an older version are written in the current one.

    Raises:
        ValueError: rows with different unknown columns.
    """
    rows = list(rows)
    schema = arrow_schema()
    columns: list[pa.Array] = []
    for column in COLUMNS:
        name, cell = column.name, _cell if pa.types.is_nested(column.type) else getattr
        values = [SCHEMA_VERSION if name == "schema_version" else cell(row, name) for row in rows]
        columns.append(_array(values, schema.field(name).type))
    extra_names = sorted({name for row in rows for name in row.extra})
    for name in extra_names:
        missing = [row.clip_id for row in rows if name not in row.extra]
        if missing:
            raise ValueError(f"column {name!r} is given for some rows only (missing for clip {missing[0]})")
        columns.append(_array([row.extra[name] for row in rows], None))
        schema = schema.append(pa.field(name, columns[-1].type))
    return pa.Table.from_arrays(columns, schema=schema)


def rows_from_table(table: pa.Table | pa.RecordBatch) -> list[Row]:
    """Rows of an Arrow table with at least the declared columns; others are kept in `extra`.

    Types may be those of an older version, or those of a tool that copied the columns (see `conform`).

    Raises:
        ValueError: a declared column is missing or has no such values, or a row breaks the rules of `Row`.
    """
    table = conform(table)
    arrays = (_one_array(column) for column in table.columns)
    return rows_from_arrays(dict(zip(table.schema.names, arrays, strict=True)), num_rows=table.num_rows)


def rows_from_arrays(arrays: Mapping[str, pa.Array], *, num_rows: int) -> list[Row]:
    """Rows of columns by name, each of `num_rows` values; otherwise as `rows_from_table`."""
    missing = [c.name for c in COLUMNS if c.name not in arrays and not c.nullable]
    if missing:
        raise ValueError(f"table lacks the columns {', '.join(missing)}; read all columns to build rows")
    if not num_rows:
        return []
    columns: dict[str, list[Any]] = {}
    unknown: dict[str, list[Any]] = {}
    for name, array in arrays.items():
        if name.startswith(PANDAS_INDEX):
            continue
        if name not in COLUMN_BY_NAME:
            unknown[name] = array.to_pylist()
        elif array.null_count and not COLUMN_BY_NAME[name].nullable:
            raise ValueError(
                f"column {name} holds nulls, which it must not; theodolite validate names the rows"
            )
        elif name != "num_frames":
            columns[name] = _values(name, array)
    newest = max(columns["schema_version"])
    if newest > SCHEMA_VERSION:
        raise ValueError(
            f"rows of schema version {newest}, this reader knows {SCHEMA_VERSION}; update theodolite"
        )
    return [
        Row(
            **{name: values[i] for name, values in columns.items()},
            extra={name: values[i] for name, values in unknown.items()},
        )
        for i in range(num_rows)
    ]


def _one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _values(name: str, array: pa.Array) -> list[Any]:
    """Values of one column as `Row` takes them; lists of numbers are views of the column's memory."""
    if name in _ARRAYS:
        assert isinstance(array, pa.ListArray)
        tail = _ARRAYS[name].entry_shape
        size = math.prod(tail)
        if array.values.null_count and not pa.types.is_floating(array.type.value_type):
            raise ValueError(f"{name} holds nulls within its lists, which it must not")
        flat = array.values.to_numpy(
            zero_copy_only=False
        )  # a null among floats becomes NaN, as it was before pandas
        ends = array.offsets.to_numpy().tolist()
        valid = array.is_valid().to_pylist() if array.null_count else [True] * len(array)
        result: list[Any] = []
        for i, known in enumerate(valid):
            count = ends[i + 1] - ends[i]
            if count % size:
                raise ValueError(f"{name} has {count} values, not {size} per frame")
            result.append(flat[ends[i] : ends[i + 1]].reshape(-1, *tail) if known else None)
        return result
    values = array.to_pylist()
    if name == "gates":
        return [tuple(Gate(**gate) for gate in gates) for gates in values]
    if name in NAMED_COLUMNS:
        return [None if value is None else {x["name"]: x["value"] for x in value} for value in values]
    return [tuple(value) if isinstance(value, list) else value for value in values]
