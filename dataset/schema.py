"""Schema of the Parquet dataset: one row per clip, every column with its type, unit and meaning.

Per-frame values are flat lists (12 floats a frame for poses, 2 for focal lengths), not lists of lists:
Arrow's Parquet reader decodes them almost twice as fast, and `numpy.reshape` restores the shape. Poses are
float32: rotations keep 1e-7 and positions 4 micrometres at 100 m from the clip's first camera, far below what
any video determines, at half the size. Times and per-clip numbers are float64.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pyarrow as pa

from .reasons import reasons_markdown

SCHEMA_VERSION = 2
"""Version of this contract. Readers accept it and those before it, and keep columns that they do not know; a column
that is added within a version is nullable, so that files without it stay readable."""

POSE_SOURCES = ("none", "solved", "infilled", "given")
"""Meaning of the codes 0 to 3 in `pose_source`: no pose; solved from measurements; bridged by motion model or
resection between solved frames; shipped with the source and kept."""
SCALE_MODELS = ("constant", "slow_drift", "step", "declared", "none")
FOCAL_MODELS = ("constant", "smooth", "piecewise", "given", "none")
MODES = ("estimate", "given_depth", "given_pose")
VERDICTS = ("accepted", "rejected")
MEDIA_KINDS = ("video", "images", "rendered")

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
    """One column: its Arrow type, whether it may be null, unit (`1` for ratios, `-` for text) and meaning."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    per_frame: int = 0
    """Entries per frame of a per-frame list, 0 for anything else."""


_F32, _F64, _I32 = pa.float32(), pa.float64(), pa.int32()
_TEXT, _BOOL = pa.string(), pa.bool_()

COLUMNS: tuple[Column, ...] = (
    # Identity and provenance
    Column("schema_version", _I32, "1", "Version of this schema."),
    Column("clip_id", _TEXT, "-", "Stable, unique in the dataset; letters, digits, `_` and `-` only."),
    Column("source", _TEXT, "-", "Data source, also the folder below `data/`."),
    Column("original_id", _TEXT, "-", "The source's own identifier, unchanged."),
    Column("media_kind", _TEXT, "-", "`video`, `images` (folder) or `rendered`."),
    Column(
        "media",
        _TEXT,
        "-",
        "Pointer to the media: path below the source's root (never absolute, never upwards), URL, or"
        " `source:original_id`.",
    ),
    Column(
        "media_pattern",
        _TEXT,
        "-",
        "Glob of the names that are frames where a folder holds other images, too; null = all its images.",
        True,
    ),
    Column(
        "window_start_s",
        _F64,
        "s",
        "Start of the window, counted from the first frame of the media; null = from there.",
        True,
    ),
    Column("window_end_s", _F64, "s", "End of the window, counted alike; null = to the media's end.", True),
    Column("mode", _TEXT, "-", "`estimate`, `given_depth` or `given_pose`."),
    Column("data_licence", _TEXT, "-", "Licence of the media; `unknown` blocks publishing."),
    Column("data_redistributable", _BOOL, "-", "Whether the media itself may be passed on."),
    Column("weights", _TEXTS, "-", "Network weights that took part, `name@revision`; empty for none."),
    Column("weight_licences", _TEXTS, "-", "Their licences, in the same order."),
    Column(
        "stand_in", _BOOL, "-", "True if any weight was random or a stand-in: such rows are never exported."
    ),
    Column("recipe_hash", _TEXT, "-", "Hash of the resolved recipe that made the row."),
    Column("package_version", _TEXT, "-", "Version of theodolite that made the row."),
    Column("annotate_wall_s", _F64, "s", "Time the clip took; differs from run to run.", True),
    Column("stage_wall_s", _named(_F64), "s", "The same by stage.", True),
    # Frames
    Column("num_frames", _I32, "1", "Frames F of the clip; 0 if it was rejected before decoding."),
    Column(
        "height", _I32, "px", "Height of the stored frames, to which all pixel values refer; 0 if unknown."
    ),
    Column("width", _I32, "px", "Width of the stored frames; 0 if unknown."),
    Column("source_fps", _F64, "Hz", "Average frame rate of the source.", True),
    Column("fps", _F64, "Hz", "Frame rate of the clip.", True),
    Column(
        "frame_index",
        _list(_I32),
        "1",
        "0-based index of each frame among the decoded source frames.",
        False,
        1,
    ),
    Column("time_s", _list(_F64), "s", "Presentation time of each frame in the source.", False, 1),
    # Cameras
    Column(
        "camera_to_world",
        _list(_F32),
        "m",
        "Row-major 3x4 [R | t] a frame (12 values): camera to world, OpenCV axes (x right, y down, z forward), metres; "
        "empty if the clip has no cameras.",
        False,
        12,
    ),
    Column("focal_px", _list(_F32), "px", "fx, fy a frame, for `height` x `width`.", False, 2),
    Column("principal_point_px", _list(_F32), "px", "cx, cy a frame; pixel centres at +0.5.", False, 2),
    Column(
        "radial_k1",
        _F64,
        "1",
        "Radial distortion: x_px = f n (1 + k1 |n|^2) + c with n = (X/Z, Y/Z); null = none modelled (pinhole).",
        True,
    ),
    Column(
        "pose_source", _list(pa.int8()), "-", "0 none, 1 solved, 2 infilled, 3 given; one a frame.", False, 1
    ),
    Column("focal_model", _TEXT, "-", "`constant`, `smooth`, `piecewise`, `given` or `none`."),
    Column(
        "position_sigma_m",
        _list(_F32),
        "m",
        "Standard deviation of the camera centre along its worst axis, from the first frame on; errors that frames"
        " share are included.",
        True,
        1,
    ),
    Column(
        "rotation_sigma_rad",
        _list(_F32),
        "rad",
        "Standard deviation of the orientation about its worst axis, likewise.",
        True,
        1,
    ),
    Column(
        "log_focal_sigma",
        _list(_F32),
        "1",
        "Standard deviation of log focal (about the relative error), likewise.",
        True,
        1,
    ),
    Column(
        "reprojection_px",
        _list(_F32),
        "px",
        "Robust root mean square reprojection error a frame, under the camera of the row: of the observations that "
        "agree with a solved one, of all with a given or bridged one.",
        True,
        1,
    ),
    # Scale
    Column(
        "metres_per_unit",
        _F64,
        "m",
        "Scale used (clip median if it varies); 1 only if declared metric; null = none.",
        True,
    ),
    Column(
        "metres_per_unit_frame",
        _list(_F32),
        "m",
        "Scale a frame where the model is slow_drift or step; null where one number holds for all.",
        True,
        1,
    ),
    Column("scale_model", _TEXT, "-", "`constant`, `slow_drift`, `step`, `declared` or `none`."),
    Column(
        "scale_frame",
        _list(_I32),
        "1",
        "Clip frames whose scale was measured; one that gave none is left out.",
    ),
    Column("scale_value", _list(_F32), "m", "Raw metres per unit of each `scale_frame` on its own."),
    Column(
        "scale_mad_log", _F64, "1", "1.4826 x median absolute deviation of log scale about its model.", True
    ),
    Column("scale_p10", _F64, "m", "10th percentile of the raw series.", True),
    Column("scale_p90", _F64, "m", "90th percentile of the raw series.", True),
    Column(
        "scale_cov", _F64, "1", "Standard deviation over mean of the raw series (the paper's gate).", True
    ),
    # Quality
    Column(
        "reprojection_rms_px", _F64, "px", "Robust root mean square reprojection error of the clip.", True
    ),
    Column("reprojection_median_px", _F64, "px", "Median over frames of `reprojection_px`.", True),
    Column("num_tracks", _I32, "1", "Image tracks used.", True),
    Column("num_loops", _I32, "1", "Loop closures used.", True),
    Column(
        "track_survival_min",
        _F64,
        "1",
        "Least share of tracks that survive from one frame to the next.",
        True,
    ),
    Column(
        "inlier_share_min",
        _F64,
        "1",
        "Least share of a frame's observations that agree with its camera.",
        True,
    ),
    Column(
        "parallax_rad", _F64, "rad", "Median over tracks of the largest angle between viewing rays.", True
    ),
    Column(
        "depth_residual_log_median",
        _F64,
        "1",
        "Median absolute log difference of solved and given depth.",
        True,
    ),
    Column(
        "depth_misfit_px",
        _F64,
        "px",
        "Median distance between tracked points and where given depth, by itself, puts them in a later frame; null = "
        "no given depth, or too few points.",
        True,
    ),
    Column(
        "depth_reading_margin_log",
        _F64,
        "1",
        "Lead in fit of given depth as it is over every other reading (turned, other frames, disparity ...), at its "
        "least; below 0 another reading fits better.",
        True,
    ),
    Column(
        "depth_unexplained",
        _F64,
        "1",
        "Share of the parallax that given depth leaves unexplained, beyond its noise; null = too little parallax.",
        True,
    ),
    Column(
        "depth_inconsistency_log",
        _F64,
        "1",
        "Median log difference of given depth and what an earlier frame's depth predicts, after a factor a pair.",
        True,
    ),
    Column(
        "depth_unit_step_log",
        _F64,
        "1",
        "Median absolute log of that factor: steps of the depth's unit.",
        True,
    ),
    Column("path_length_m", _F64, "m", "Length of the camera's path.", True),
    Column(
        "scale_sweep_best",
        _F64,
        "1",
        "Factor on depth at which depth and poses agree best; 1 when scale is right.",
        True,
    ),
    Column(
        "agreement_rotation_rad",
        _F64,
        "rad",
        "Median angle between the sequence network's orientations and the bundle's; null = no such network.",
        True,
    ),
    Column(
        "agreement_direction_rad",
        _F64,
        "rad",
        "Median angle between their directions of travel over a second.",
        True,
    ),
    Column(
        "agreement_scale_log",
        _F64,
        "1",
        "Median log ratio of the network's travel, in metres, to the bundle's.",
        True,
    ),
    Column(
        "agreement_metric_log",
        _F64,
        "1",
        "Log ratio of the scale by the metric anchor to the sequence network's own metric factor.",
        True,
    ),
    Column(
        "agreement_focal_rays_log",
        _F64,
        "1",
        "Median log ratio of the focal length of the sequence network's rays to the bundle's.",
        True,
    ),
    Column(
        "agreement_focal_anchor_log",
        _F64,
        "1",
        "Median log ratio of the metric anchor's own focal length to the bundle's.",
        True,
    ),
    Column(
        "given_scale_ratio",
        _F64,
        "1",
        "Length by depth over that of the given path, both in metres (about 1 where the unit of the poses was unknown "
        "and fitted); null = no given poses, or nothing to tell it by (no depth): the scale is the source's word.",
        True,
    ),
    Column("given_scale_sigma", _F64, "1", "Standard error of the logarithm of `given_scale_ratio`.", True),
    Column(
        "given_time_offset_s",
        _F64,
        "s",
        "By how much the given poses come late against the images; negative = early; null = too few poses to tell.",
        True,
    ),
    Column(
        "given_time_offset_sigma_s",
        _F64,
        "s",
        "Its standard error; null = motion too even to tell, or the offset is beyond the search.",
        True,
    ),
    Column(
        "given_position_rms_m",
        _F64,
        "m",
        "Root mean square distance of a given camera from where its neighbours and the measured motion put it.",
        True,
    ),
    Column(
        "given_position_rms_px",
        _F64,
        "px",
        "By how much that error, of position and orientation, moves the picture.",
        True,
    ),
    Column(
        "given_focal_ratio",
        _F64,
        "1",
        "Focal length that the images ask for under the given poses over the given one; null = not both given, or too"
        " few frames to tell.",
        True,
    ),
    Column("given_focal_sigma", _F64, "1", "Standard error of the logarithm of `given_focal_ratio`.", True),
    Column("fov_x_min_rad", _F64, "rad", "Least horizontal field of view.", True),
    Column("fov_x_max_rad", _F64, "rad", "Largest horizontal field of view.", True),
    Column("fov_y_min_rad", _F64, "rad", "Least vertical field of view.", True),
    Column("fov_y_max_rad", _F64, "rad", "Largest vertical field of view.", True),
    Column("focal_axis_gap_max", _F64, "1", "Largest |fx - fy| / mean(fx, fy) of a frame.", True),
    Column("focal_spread", _F64, "1", "Standard deviation over mean of fx along the clip.", True),
    Column("metrics", _named(_F64), "-", "Further numbers of the run, by name with unit suffix.", True),
    Column("gates", _list(GATE_TYPE), "-", "Every gate that was judged: value, bounds, unit, passed."),
    # Verdict
    Column("verdict", _TEXT, "-", "`accepted` or `rejected`."),
    Column(
        "confidence",
        _F64,
        "1",
        "Probability-like score in [0, 1] that the cameras are usable, from how far independent estimates of networks "
        "agree; null where nothing of the kind is calibrated (`confidence_absent` says why): judge by gates and "
        "sigmas.",
        True,
    ),
    Column(
        "confidence_absent",
        _TEXT,
        "-",
        "Why `confidence` is null: `no_networks` (given geometry is not guessed), `no_cameras` (none were found) or "
        "`nothing_to_compare` (a network that states no focal length); null where there is one, and in older files.",
        True,
    ),
    Column(
        "reasons", _TEXTS, "-", "Stable codes of the rejection, see the table of reasons; empty if accepted."
    ),
    Column(
        "decode_notes",
        _TEXTS,
        "-",
        "What decoding had to decide about the media: rotation, several streams, time stamps not in order.",
        True,
    ),
    Column("reason_details", _TEXTS, "-", "One sentence a reason, with the numbers found."),
    Column("error", _TEXT, "-", "Traceback of an unexpected exception.", True),
    Column("captions", _named(_TEXT), "-", "Captions by kind.", True),
)

COLUMN_BY_NAME = {column.name: column for column in COLUMNS}
PER_FRAME_COLUMNS = tuple(column.name for column in COLUMNS if column.per_frame)
NAMED_COLUMNS = tuple(column.name for column in COLUMNS if column.type in (_named(_F64), _named(_TEXT)))
"""Columns of values by name: mappings in `Row`, lists of `{name, value}` in files."""


def declared_type(column: Column, *, version: int = SCHEMA_VERSION) -> pa.DataType:
    """Type of a column in files of a schema version. In version 1 values by name were maps."""
    if version == 1 and column.name in NAMED_COLUMNS:
        return pa.map_(_TEXT, column.type.value_type.field("value").type)
    return column.type


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


def schema_markdown() -> str:
    """Reference of all columns as a Markdown table."""
    lines = [
        f"Schema version {SCHEMA_VERSION}. One row per clip; F = `num_frames`. A type that ends in `?` may be null.",
        "",
        "| column | type | unit | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for c in COLUMNS:
        meaning = c.meaning.replace("|", "\\|")
        kind = str(c.type).replace("element: ", "").replace(" not null", "")
        if c.per_frame:
            kind += f" [{c.per_frame}F]" if c.per_frame > 1 else " [F]"
        lines.append(f"| `{c.name}` | {kind}{'?' if c.nullable else ''} | {c.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


def reference_page() -> str:
    """Text of `SCHEMA.md`, which lies beside this module."""
    return (
        "# Columns of the dataset\n\n"
        "Generated from `dataset/schema.py`; write it anew with "
        "`python -m theodolite.dataset.schema > dataset/SCHEMA.md`.\n\n"
        "A dataset lies in one folder: `data/<source>/part-<shard>.parquet` (from the thousandth shard on "
        "`data/<source>/<thousands>/part-<shard>.parquet`), `dataset.json` (schema "
        "version and recipe hash), `README.md` (tells `datasets` which files are data) and, derived from the parts, "
        "`index/<source>.parquet` and `.arrow` (per-clip columns for "
        "queries, and for one clip by id; two files for each thousand parts). Units and meanings are also in the "
        "field metadata of every file; its file metadata holds `theodolite.schema_version` and "
        "`theodolite.recipe_hash`. Per-frame values are flat lists: "
        "`numpy.asarray(row.camera_to_world).reshape(-1, 3, 4)`; values by name are lists of `{name, value}`: "
        "`{x['name']: x['value'] for x in metrics}`. Readers keep columns they do not know and refuse "
        "a newer version.\n\n"
        "`datasets.load_dataset(DIR)`, `pandas.read_parquet(DIR + '/data')`, `pyarrow.parquet.read_table`, polars and "
        "DuckDB read it as it is. What they write, a filtered copy say, opens again with `theodolite.dataset.open(FILE "
        "or DIR)`, validates and exports, whatever the order and the width of its columns, as long as it kept those "
        "that may not be null.\n\n"
        "## Versions\n\n"
        "| version | change |\n| --- | --- |\n"
        "| 2 | `stage_wall_s`, `metrics` and `captions` are lists of `{name, value}`, maps before (`datasets` knows no "
        "maps). Parts lie in `data/<source>/`, in `data/source=<source>/` before, where readers took `source` for a "
        "key and a column at once. Pages carry checksums. |\n"
        "| 1 | Read as before, also mixed with parts of version 2; a run in such a folder is not continued. "
        "`theodolite subset OLD --where 'num_frames >= 0' --out NEW` writes it anew. |\n\n"
        "## Columns\n\n" + schema_markdown() + "\n# Reasons\n\n"
        "Codes in `reasons`, from `dataset/reasons.py`. *Judged*: the clip could be read, and what was measured on it "
        "says that no trustworthy cameras come of it; commands call it rejected. *Failed*: its files, what the index "
        "says of them, or the software has to be mended first. `verdict` is `rejected` for both.\n\n"
        + reasons_markdown()
    )


if __name__ == "__main__":
    sys.stdout.write(reference_page())
