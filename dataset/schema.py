"""Schema of the Parquet dataset: one row per clip, every column with its type, unit and meaning.

Per-frame values are flat lists (12 floats a frame for poses, 2 for focal lengths), not lists of lists:
Arrow's Parquet reader decodes them almost twice as fast, and `numpy.reshape` restores the shape. Poses are
float32: rotations keep 1e-7 and positions 4 micrometres at 100 m from the clip's first camera, far below what
any video determines, at half the size. Times and per-clip numbers are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import pyarrow as pa

from .moving_masks import MASK_WORDS
from .words import (
    FOCAL_MODELS,
    LENS_MODELS,
    MEDIA_KINDS,
    MODES,
    SCALE_MODELS,
    SCALE_SOURCES,
    TIME_STAMPS,
    VERDICTS,
)

SCHEMA_VERSION = 2
"""Version of this contract. Readers accept it and those before it, and keep columns that they do not know; a column
that is added within a version is nullable, so that files without it stay readable."""

TIME_COLUMNS = ("annotate_wall_s", "stage_wall_s")
"""Columns that measure the run itself: the only ones that differ between two runs of one recipe."""


def _list(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False))


def _named(value: pa.DataType) -> pa.DataType:
    """Values by name. Not a map: `datasets` has no such type, and pandas and DuckDB each show one in their own way."""
    return _list(
        pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", value, nullable=False)])
    )


_TEXTS = _list(pa.string())
GATE_TYPE = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("lower", pa.float64()),
        pa.field("upper", pa.float64()),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("passed", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Column:
    """All that is known of one column: rows, their checks, files and the reference page follow from its entry.

    Attributes:
        type: Arrow type in files.
        unit: `1` for ratios, `-` for text.
        shape: of a list of numbers: `F` (one entry a frame) or `S` (a series of its own length), then the shape of one
            entry, which files hold flat; () for anything else.
        bounds: least and greatest value, beyond which a unit was mixed up or a writer broken. Of a list: what an
            accepted clip may have; NaN in it is unknown.
        values: the words that a text may be; () for any.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    shape: tuple[str | int, ...] = ()
    bounds: tuple[float, float] | None = None
    values: tuple[str, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether a text is one of `values`, if there are some, or null where it may be."""
        return not self.values or value in self.values or (value is None and self.nullable)

    @cached_property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape of one entry of a list of numbers."""
        return tuple(n for n in self.shape if isinstance(n, int))

    @property
    def per_frame(self) -> int:
        """Numbers per frame of a per-frame list, 0 for anything else."""
        return math.prod(self.entry_shape) if self.shape[:1] == ("F",) else 0


_F32, _F64, _I32 = pa.float32(), pa.float64(), pa.int32()
_TEXT, _BOOL = pa.string(), pa.bool_()


def _number(name: str, unit: str, meaning: str, bounds: tuple[float, float] | None = None) -> Column:
    """A number of a clip, null where it is unknown."""
    return Column(name, _F64, unit, meaning, nullable=True, bounds=bounds)


def _series(name: str, unit: str, meaning: str, bounds: tuple[float, float] | None = None) -> Column:
    """A number a frame, null where it is unknown."""
    return Column(name, _list(_F32), unit, meaning, nullable=True, shape=("F",), bounds=bounds)


def _text(name: str, meaning: str, values: tuple[str, ...] = ()) -> Column:
    """A text of a clip, null where there is none."""
    return Column(name, _TEXT, "-", meaning, nullable=True, values=values)


COLUMNS: tuple[Column, ...] = (
    # Identity and provenance
    Column("schema_version", _I32, "1", "Version of this schema."),
    Column("clip_id", _TEXT, "-", "Stable, unique in the dataset; letters, digits, `_` and `-` only."),
    Column("source", _TEXT, "-", "Data source, also the folder below `data/`."),
    Column("original_id", _TEXT, "-", "The source's own identifier, unchanged."),
    Column("media_kind", _TEXT, "-", "`video`, `images` (folder) or `rendered`.", values=MEDIA_KINDS),
    Column(
        "media",
        _TEXT,
        "-",
        "Pointer to the media: path below the source's root (never absolute, never upwards), URL, or"
        " `source:original_id`.",
    ),
    _text(
        "media_pattern",
        "Glob of the names that are frames where a folder holds other images, too; null = all its images.",
    ),
    _number(
        "window_start_s", "s", "Start of the window after the first frame; null = there.", (0.0, math.inf)
    ),
    _number(
        "window_end_s", "s", "End of the window, counted alike; null = to the media's end.", (0.0, math.inf)
    ),
    Column("mode", _TEXT, "-", "`estimate`, `given_depth` or `given_pose`.", values=MODES),
    Column("data_licence", _TEXT, "-", "Licence of the media; `unknown` blocks publishing."),
    Column("data_redistributable", _BOOL, "-", "Whether the media itself may be passed on."),
    Column("weights", _TEXTS, "-", "Network weights that took part, `name@revision`; empty for none."),
    Column("weight_licences", _TEXTS, "-", "Their licences, in the same order."),
    Column(
        "stand_in", _BOOL, "-", "True if any weight was random or a stand-in: such rows are never exported."
    ),
    Column("recipe_hash", _TEXT, "-", "Hash of the resolved recipe that made the row."),
    Column("package_version", _TEXT, "-", "Version of theodolite that made the row."),
    _number("annotate_wall_s", "s", "Time the clip took; differs from run to run.", (0.0, math.inf)),
    Column("stage_wall_s", _named(_F64), "s", "The same by stage.", nullable=True),
    # Frames
    Column("num_frames", _I32, "1", "Frames F of the clip; 0 if it was rejected before decoding."),
    Column(
        "height",
        _I32,
        "px",
        "Height of the stored frames, to which all pixel values refer; 0 if unknown.",
        bounds=(0.0, 1e5),
    ),
    Column("width", _I32, "px", "Width of the stored frames; 0 if unknown.", bounds=(0.0, 1e5)),
    _number("source_fps", "Hz", "Average frame rate of the source.", (0.01, 1e5)),
    Column(
        "source_num_frames", _I32, "1", "Frames that the whole source has; null = not counted.", nullable=True
    ),
    _number("fps", "Hz", "Frame rate of the clip.", (0.01, 1e5)),
    Column(
        "frame_index",
        _list(_I32),
        "1",
        "0-based index of each frame among the decoded source frames.",
        shape=("F",),
    ),
    Column("time_s", _list(_F64), "s", "Presentation time of each frame in the source.", shape=("F",)),
    _text(
        "time_stamps",
        "`constant`: at one rate to within rounding, so that nothing can be measured of the clock; `varying`;"
        " `assumed`: none of their own. Null in older files.",
        TIME_STAMPS,
    ),
    _number("time_jitter_s", "s", "RMS deviation of varying time stamps from one rate.", (0.0, 1e5)),
    # Cameras
    Column(
        "camera_to_world",
        _list(_F32),
        "m",
        "Row-major 3x4 [R | t] a frame (12 values): camera to world, OpenCV axes (x right, y down, z forward), metres; "
        "empty if the clip has no cameras.",
        shape=("F", 3, 4),
    ),
    Column("focal_px", _list(_F32), "px", "fx, fy a frame, for `height` x `width`.", shape=("F", 2)),
    Column("principal_point_px", _list(_F32), "px", "cx, cy a frame; pixel centres at +0.5.", shape=("F", 2)),
    _number(
        "radial_k1",
        "1",
        "Radial distortion: x_px = f n (1 + k1 |n|^2 + k2 |n|^4) + c with n = (X/Z, Y/Z); null = pinhole.",
        (-2.0, 2.0),
    ),
    _number("radial_k2", "1", "Its second term; null = none modelled.", (-2.0, 2.0)),
    _text(
        "lens_model",
        "`radial`: as `radial_k1` says; `fisheye`: x_px = f t (1 + k1 t^2 + k2 t^4) n / |n| + c with the angle"
        " t = atan |n| from the axis. Null in older files and without cameras: `radial`.",
        LENS_MODELS,
    ),
    Column(
        "pose_source",
        _list(pa.int8()),
        "-",
        "0 none, 1 solved, 2 infilled, 3 given; one a frame.",
        shape=("F",),
    ),
    Column(
        "focal_model",
        _TEXT,
        "-",
        "`constant`, `smooth`, `piecewise`, `given` or `none`.",
        values=FOCAL_MODELS,
    ),
    _series(
        "position_sigma_m",
        "m",
        "Standard deviation of the camera centre along its worst axis, from the first frame on, in true"
        " metres: errors that measurements share are included, and that of the scale unless poses were given. Errors"
        " have heavy tails (68 % within 0.86, 95 % within 1.99): `cameras.intervals.interval_half_width`.",
        (0.0, 1e4),
    ),
    _series(
        "rotation_sigma_rad",
        "rad",
        "Standard deviation of the orientation about its worst axis, likewise.",
        (0.0, math.pi),
    ),
    _series(
        "log_focal_sigma",
        "1",
        "Standard deviation of log focal (about the relative error), likewise.",
        (0.0, 10.0),
    ),
    _series(
        "reprojection_px",
        "px",
        "Robust root mean square reprojection error a frame, under the camera of the row: of the observations that "
        "agree with a solved one, of all with a given or bridged one.",
        (0.0, 1e4),
    ),
    # Scale
    _number(
        "metres_per_unit",
        "m",
        "Scale used (clip median if it varies); 1 only if declared metric; null = none.",
        (1e-12, 1e12),
    ),
    _series(
        "metres_per_unit_frame",
        "m",
        "Scale a frame where the model is slow_drift or step; null where one number holds for all.",
    ),
    Column(
        "scale_model",
        _TEXT,
        "-",
        "`constant`, `slow_drift`, `step`, `declared` or `none`.",
        values=SCALE_MODELS,
    ),
    Column(
        "scale_frame",
        _list(_I32),
        "1",
        "Clip frames whose scale was measured; one that gave none is left out.",
        shape=("S",),
    ),
    Column(
        "scale_value", _list(_F32), "m", "Raw metres per unit of each `scale_frame` on its own.", shape=("S",)
    ),
    _number(
        "scale_mad_log", "1", "1.4826 x median absolute deviation of log scale about its model.", (0.0, 100.0)
    ),
    _number("scale_p10", "m", "10th percentile of the raw series.", (1e-12, 1e12)),
    _number("scale_p90", "m", "90th percentile of the raw series.", (1e-12, 1e12)),
    _number(
        "scale_cov", "1", "Standard deviation over mean of the raw series (the paper's gate).", (0.0, 100.0)
    ),
    _text(
        "scale_source",
        "What says how long a metre of the path is: `declared_poses` and `declared_depth` the source's word;"
        " `metric_anchor` metric depth of single frames; `bridge` windows that lay given poses of unknown unit onto a"
        " network's and that onto metric depth; `depth_under_poses` the clip's depth, seen from given poses; `none`.",
        SCALE_SOURCES,
    ),
    _number(
        "scale_sigma_log",
        "1",
        "Standard deviation of the log of a metre's length, with what all depth has wrong in common and what the scale"
        " of measured depth wanders by along the clip; null = the word of given poses, or no scale.",
        (0.0, 100.0),
    ),
    Column(
        "is_metric",
        _BOOL,
        "-",
        "Whether `camera_to_world` can be taken for metres: there are cameras and a `scale_source`, no network was a"
        " stand-in, and no reason speaks against scale or given poses. Null in older files.",
        nullable=True,
    ),
    _number(
        "given_metres_per_unit",
        "m",
        "Metres of a unit of the given poses: declared, or found as `scale_source` says; null = no given poses.",
        (1e-12, 1e12),
    ),
    Column(
        "bridge_frame",
        _list(_I32),
        "1",
        "Middle frame of each window of the bridge that says something; null = no bridge.",
        nullable=True,
        shape=("S",),
    ),
    Column(
        "bridge_value",
        _list(_F32),
        "m",
        "Metres of a unit of the given poses by each of these windows on its own.",
        nullable=True,
        shape=("S",),
    ),
    _number(
        "bridge_spread_log",
        "1",
        "Robust standard deviation of the logs of `bridge_value`; null = no bridge, or too few windows.",
        (0.0, 100.0),
    ),
    # Given poses
    _number(
        "pose_hz",
        "Hz",
        "Given poses a second of the clip, on average; below `fps` they are sparse, and frames without one follow the"
        " motion measured in the images (`pose_source` 1 or 2); null = no given poses.",
        (1e-6, 1e5),
    ),
    _number(
        "given_pose_share",
        "1",
        "Share of the frames whose pose is a given one, unchanged; the others were bent through their given"
        " neighbours.",
        (0.0, 1.0),
    ),
    _number(
        "given_gap_max_s",
        "s",
        "Longest time in the clip without a given pose, its beginning and end included.",
        (0.0, math.inf),
    ),
    _number(
        "given_path_spread",
        "1",
        "Second over first spread of the given camera centres: below 0.02 the path is a line, about which centres tell"
        " no rotation; orientations then fix it, and the scale is seen all the same.",
        (0.0, 1.0),
    ),
    # Quality
    _number(
        "reprojection_rms_px", "px", "Robust root mean square reprojection error of the clip.", (0.0, 1e5)
    ),
    _number("reprojection_median_px", "px", "Median over frames of `reprojection_px`.", (0.0, 1e5)),
    Column("num_tracks", _I32, "1", "Image tracks used.", nullable=True, bounds=(0.0, 1e8)),
    Column("num_loops", _I32, "1", "Loop closures used.", nullable=True, bounds=(0.0, 1e8)),
    Column(
        "tracker", _TEXT, "-", "Who followed points: `opencv`, or `batched-` and the device.", nullable=True
    ),
    _number(
        "track_survival_min",
        "1",
        "Least share of tracks that survive from one frame to the next.",
        (0.0, 1.0),
    ),
    _number(
        "inlier_share_min",
        "1",
        "Least share of a frame's observations that agree with its camera.",
        (0.0, 1.0),
    ),
    _number(
        "parallax_rad", "rad", "Median over tracks of the largest angle between viewing rays.", (0.0, math.pi)
    ),
    _number("moving_share", "1", "Share of the tracked picture that moves; null: not asked.", (0.0, 1.0)),
    Column(
        "moving_mask",
        _list(_I32),
        "-",
        "Where each picture moves on its own: 36 rows of 64 cells, see `dataset.moving_masks`; null: not asked.",
        nullable=True,
        shape=("F", MASK_WORDS),
    ),
    _number(
        "depth_residual_log_median",
        "1",
        "Median absolute log difference of solved and given depth.",
        (0.0, 100.0),
    ),
    _number(
        "depth_misfit_px",
        "px",
        "Median distance between tracked points and where given depth, by itself, puts them in a later frame; null = "
        "no given depth, or too few points.",
        (0.0, 1e5),
    ),
    _number(
        "depth_reading_margin_log",
        "1",
        "Lead in fit of given depth as it is over every other reading (turned, other frames, disparity ...), at its "
        "least; below 0 another reading fits better.",
        (-100.0, 100.0),
    ),
    _number(
        "depth_unexplained",
        "1",
        "Share of the parallax that given depth leaves unexplained, beyond its noise; null = too little parallax.",
        (0.0, 100.0),
    ),
    _number(
        "depth_inconsistency_log",
        "1",
        "Median log difference of given depth and what an earlier frame's depth predicts, after a factor a pair.",
        (0.0, 100.0),
    ),
    _number(
        "depth_unit_step_log",
        "1",
        "Median absolute log of that factor: steps of the depth's unit.",
        (0.0, 100.0),
    ),
    _number("path_length_m", "m", "Length of the camera's path.", (0.0, 1e7)),
    _number(
        "scale_sweep_best",
        "1",
        "Factor on depth at which depth and poses agree best; 1 when scale is right.",
        (1e-6, 1e6),
    ),
    _number(
        "agreement_rotation_rad",
        "rad",
        "Median angle between the sequence network's orientations and the bundle's; null = no such network.",
        (0.0, math.pi),
    ),
    _number(
        "agreement_direction_rad",
        "rad",
        "Median angle between their directions of travel over a second.",
        (0.0, math.pi),
    ),
    _number(
        "agreement_scale_log",
        "1",
        "Median log ratio of the network's travel, in metres, to the bundle's.",
        (-100.0, 100.0),
    ),
    _number(
        "agreement_metric_log",
        "1",
        "Log ratio of the scale by the metric anchor to the sequence network's own metric factor.",
        (-100.0, 100.0),
    ),
    _number(
        "agreement_focal_rays_log",
        "1",
        "Median log ratio of the focal length of the network's rays to that of the bundle before it leant on them.",
        (-100.0, 100.0),
    ),
    _number(
        "agreement_focal_anchor_log",
        "1",
        "Median log ratio of the metric anchor's own focal length to the bundle's, likewise.",
        (-100.0, 100.0),
    ),
    _number(
        "given_scale_ratio",
        "1",
        "Length by depth over that of the given path, both in metres (about 1 where the unit of the poses was unknown "
        "and fitted); null = no given poses, or nothing to tell it by (no depth): the scale is the source's word.",
    ),
    _number("given_scale_sigma", "1", "Standard error of the logarithm of `given_scale_ratio`."),
    _number(
        "given_time_offset_s",
        "s",
        "By how much the given poses come late against the images; negative = early; null = too few poses to tell.",
    ),
    _number(
        "given_time_offset_sigma_s",
        "s",
        "Its standard error; null = motion too even to tell, or the offset is beyond the search.",
    ),
    _number(
        "given_position_rms_m",
        "m",
        "Root mean square distance of a given camera from where its neighbours and the measured motion put it.",
    ),
    _number(
        "given_position_rms_px",
        "px",
        "By how much that error, of position and orientation, moves the picture.",
    ),
    _number(
        "given_focal_ratio",
        "1",
        "Focal length that the images ask for under the given poses over the given one; null = not both given, or too"
        " few frames to tell.",
    ),
    _number("given_focal_sigma", "1", "Standard error of the logarithm of `given_focal_ratio`."),
    _number("fov_x_min_rad", "rad", "Least horizontal field of view.", (1e-3, math.pi)),
    _number("fov_x_max_rad", "rad", "Largest horizontal field of view.", (1e-3, math.pi)),
    _number("fov_y_min_rad", "rad", "Least vertical field of view.", (1e-3, math.pi)),
    _number("fov_y_max_rad", "rad", "Largest vertical field of view.", (1e-3, math.pi)),
    _number("focal_axis_gap_max", "1", "Largest |fx - fy| / mean(fx, fy) of a frame.", (0.0, 2.0)),
    _number("focal_spread", "1", "Standard deviation over mean of fx along the clip.", (0.0, 1e3)),
    Column(
        "metrics", _named(_F64), "-", "Further numbers of the run, by name with unit suffix.", nullable=True
    ),
    Column("gates", _list(GATE_TYPE), "-", "Every gate that was judged: value, bounds, unit, passed."),
    # Verdict
    Column("verdict", _TEXT, "-", "`accepted` or `rejected`.", values=VERDICTS),
    _number(
        "confidence",
        "1",
        "Probability-like score in [0, 1] that the cameras are usable, from how far independent estimates of networks "
        "agree; null where nothing of the kind is calibrated (`confidence_absent` says why): judge by gates and "
        "sigmas.",
        (0.0, 1.0),
    ),
    _text(
        "confidence_absent",
        "Why `confidence` is null: `no_networks` (given geometry is not guessed), `no_cameras` (none were found) or "
        "`nothing_to_compare` (a network that states no focal length); null where there is one, and in older files.",
    ),
    Column(
        "reasons", _TEXTS, "-", "Stable codes of the rejection, see the table of reasons; empty if accepted."
    ),
    Column(
        "decode_notes",
        _TEXTS,
        "-",
        "What decoding had to decide about the media: rotation, several streams, time stamps not in order.",
        nullable=True,
    ),
    Column("reason_details", _TEXTS, "-", "One sentence a reason, with the numbers found."),
    Column("error", _TEXT, "-", "Traceback of an unexpected exception.", nullable=True),
    Column("captions", _named(_TEXT), "-", "Captions by kind.", nullable=True),
)

COLUMN_BY_NAME = {column.name: column for column in COLUMNS}
SERIES_COLUMNS = tuple(column.name for column in COLUMNS if column.shape)
"""Lists of numbers: arrays in `Row`, and nearly all bytes of a file."""
NAMED_COLUMNS = tuple(column.name for column in COLUMNS if column.type in (_named(_F64), _named(_TEXT)))
"""Columns of values by name: mappings in `Row`, lists of `{name, value}` in files."""
TUPLE_COLUMNS = tuple(
    c.name for c in COLUMNS if pa.types.is_list(c.type) and c.name not in {*SERIES_COLUMNS, *NAMED_COLUMNS}
)
"""Lists of texts and records: tuples in `Row`."""


def declared_type(column: Column, *, version: int = SCHEMA_VERSION) -> pa.DataType:
    """Type of a column in files of a schema version. In version 1 values by name were maps."""
    if version == 1 and column.name in NAMED_COLUMNS:
        return pa.map_(_TEXT, column.type.value_type.field("value").type)
    return column.type


@cache
def arrow_schema(*, recipe_hash: str | None = None) -> pa.Schema:
    """The declared Arrow schema; field metadata holds unit and meaning, file metadata the version and recipe
    hash."""
    fields = [
        pa.field(c.name, c.type, nullable=c.nullable, metadata={"unit": c.unit, "meaning": c.meaning})
        for c in COLUMNS
    ]
    metadata = {"theodolite.schema_version": str(SCHEMA_VERSION)}
    if recipe_hash is not None:
        metadata["theodolite.recipe_hash"] = recipe_hash
    return pa.schema(fields, metadata=metadata)


def check_version(metadata: dict[bytes, bytes] | None, *, where: str) -> int:
    """Schema version of a file from its metadata.

    Raises:
        ValueError: not a dataset file of ours, or a newer version than this reader knows.
    """
    raw = (metadata or {}).get(b"theodolite.schema_version")
    if raw is None or not raw.isdigit():
        raise ValueError(f"{where}: not a theodolite dataset file (no schema version in its metadata)")
    version = int(raw)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{where}: schema version {version}, this reader knows {SCHEMA_VERSION}; update theodolite"
        )
    return version
