"""Rows and small datasets for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.intrinsics import fov_from_focal
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.moving_masks import MASK_HEIGHT, MASK_WIDTH, packed_masks
from theodolite.dataset.rows import Gate, Row, rows_to_table
from theodolite.dataset.store import prepare_output, write_part

from .formats.compared import LEVEL_STEP


def build_row(number: int = 0, *, frames: int = 33, **changes: Any) -> Row:
    """An accepted row with a smooth path, a zooming lens and every column filled: as long as there are columns."""
    rng = np.random.default_rng(number)
    step = np.cumsum(rng.normal(size=(frames, 6)) * [0.05, 0.05, 0.05, 0.01, 0.01, 0.01], axis=0)
    poses = cam.relative_to_first(cam.se3_exp(step))
    focal = 800 * (1 + 0.3 * np.sin(np.linspace(0, 2, frames)))[:, None] * [1.0, 1.01]
    length = float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())
    reprojection = rng.uniform(0.3, 0.6, frames)
    scales = 2.5 * np.exp(rng.normal(size=len(range(0, frames, 4))) * 0.05)
    fx, fy = focal.T
    values: dict[str, Any] = {
        "clip_id": f"clip_{number:04d}",
        "source": "demo",
        "original_id": f"original {number}.mp4",
        "media_kind": "video",
        "media": f"videos/{number}.mp4",
        "mode": "given_depth",
        "data_licence": "CC-BY-4.0",
        "data_redistributable": True,
        "weights": ("pi3x@abc",),
        "weight_licences": ("CC-BY-NC-4.0",),
        "stand_in": False,
        "recipe_hash": "recipe1",
        "package_version": "0.1.0",
        "annotate_wall_s": 1.0 + number,
        "stage_wall_s": {"decode": 0.25, "bundle": 0.75},
        "height": 720,
        "width": 1280,
        "source_fps": 29.97,
        "fps": 16.0,
        "frame_index": np.round(np.arange(frames) * 29.97 / 16),
        "time_s": np.round(np.arange(frames) * 29.97 / 16) / 29.97,
        "camera_to_world": poses,
        "focal_px": focal,
        "principal_point_px": np.tile([641.5, 358.25], (frames, 1)),
        "pose_source": ["solved"] * (frames - 1) + ["infilled"],
        "focal_model": "smooth",
        "position_sigma_m": np.full(frames, 0.01),
        "rotation_sigma_rad": np.full(frames, 0.001),
        "log_focal_sigma": np.full(frames, 0.004),
        "reprojection_px": reprojection,
        "moving_mask": packed_masks(rng.random((frames, MASK_HEIGHT, MASK_WIDTH)) < 0.3),
        "metres_per_unit": float(np.median(scales)),
        "scale_model": "constant",
        "scale_frame": np.arange(0, frames, 4),
        "scale_value": scales,
        "scale_mad_log": 0.05,
        "scale_p10": float(np.percentile(scales, 10)),
        "scale_p90": float(np.percentile(scales, 90)),
        "scale_cov": float(scales.std() / scales.mean()),
        "reprojection_rms_px": float(np.sqrt(np.mean(reprojection**2))),
        "reprojection_median_px": float(np.median(reprojection)),
        "num_tracks": 1234,
        "num_loops": 2,
        "track_survival_min": 0.8,
        "inlier_share_min": 0.9,
        "parallax_rad": 0.1,
        "depth_residual_log_median": 0.02,
        "path_length_m": length,
        "scale_sweep_best": 1.0,
        "fov_x_min_rad": float(fov_from_focal(focal[:, 0].max(), 1280)),
        "fov_x_max_rad": float(fov_from_focal(focal[:, 0].min(), 1280)),
        "fov_y_min_rad": float(fov_from_focal(focal[:, 1].max(), 720)),
        "fov_y_max_rad": float(fov_from_focal(focal[:, 1].min(), 720)),
        "focal_axis_gap_max": float((np.abs(fx - fy) / ((fx + fy) / 2)).max()),
        "focal_spread": float(fx.std() / fx.mean()),
        "metrics": {"vmaf_motion": 7.5},
        "gates": (
            Gate(name="fov_x", value=1.3, lower=0.44, upper=2.09, unit="rad", passed=True),
            Gate(name="scale_cov", value=0.05, upper=2.0, passed=True),
        ),
        "verdict": "accepted",
        "confidence": 0.9,
        "captions": {"scene": "A room."},
    }
    values.update(changes)
    return Row(**values)


def build_rejected(number: int = 0, **changes: Any) -> Row:
    """A row of a clip that failed before decoding."""
    values: dict[str, Any] = {
        "clip_id": f"clip_{number:04d}",
        "source": "demo",
        "original_id": f"original {number}.mp4",
        "media_kind": "video",
        "media": f"videos/{number}.mp4",
        "mode": "given_depth",
        "data_licence": "CC-BY-4.0",
        "data_redistributable": True,
        "stand_in": False,
        "recipe_hash": "recipe1",
        "package_version": "0.1.0",
        "verdict": "rejected",
        "reasons": ("unreadable_video",),
        "reason_details": ("videos/9.mp4: moov atom missing",),
    }
    values.update(changes)
    return Row(**values)


def write_dataset(out: Path, shards: dict[str, list[Row]]) -> Path:
    """Dataset folder with one part per shard."""
    prepare_output(out, recipe_hash="recipe1")
    for shard_id, rows in shards.items():
        write_part(out, rows, shard_id=shard_id, recipe_hash="recipe1")
    return out


def write_version_1(out: Path, shards: dict[str, list[Row]]) -> Path:
    """Dataset folder as version 1 of the schema laid it out: maps, `source=...` folders, its own number."""
    numbers, texts = pa.map_(pa.string(), pa.float64()), pa.map_(pa.string(), pa.string())
    metadata = {"theodolite.schema_version": "1", "theodolite.recipe_hash": "recipe1"}
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset.json").write_text(json.dumps({"schema_version": 1, "recipe_hash": "recipe1"}))
    for shard_id, rows in shards.items():
        table = rows_to_table(rows)
        for name, kind in (("stage_wall_s", numbers), ("metrics", numbers), ("captions", texts)):
            values = [getattr(row, name) for row in rows]
            items = pa.array([None if v is None else sorted(v.items()) for v in values], kind)
            table = table.set_column(table.schema.get_field_index(name), name, items)
        ones = pa.array([1] * len(rows), pa.int32())
        table = table.set_column(0, pa.field("schema_version", pa.int32(), nullable=False), ones)
        folder = out / "data" / f"source={rows[0].source}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"part-{shard_id}.parquet")
    return out


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    return build_row


@pytest.fixture(scope="session")
def make_rejected() -> Callable[..., Row]:
    return build_rejected


@pytest.fixture(scope="session")
def make_dataset() -> Callable[[Path, dict[str, list[Row]]], Path]:
    return write_dataset


@pytest.fixture(scope="session")
def make_version_1() -> Callable[[Path, dict[str, list[Row]]], Path]:
    return write_version_1


@pytest.fixture
def clip(make_row: Callable[..., Row]) -> CameraClip:
    return camera_clip(make_row(3, fps=None))


@pytest.fixture
def out(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    shards = {"a": [make_row(0), make_row(1, frames=20)], "b": [make_rejected(2), make_row(3, captions=None)]}
    return make_dataset(tmp_path / "dataset", shards)


@pytest.fixture
def filmed(tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable) -> Path:
    """Three clips of one size, odd in both directions, whose source frame i is grey of level 6 i; every other frame is
    stored."""
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos" / "source.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=32)
        stream.width, stream.height, stream.pix_fmt = 65, 49, "bgr0"
        for i in range(40):
            image = np.full((49, 65, 3), LEVEL_STEP * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    rows = [
        make_row(
            n,
            frames=frames,
            height=49,
            width=65,
            media="videos/source.mkv",
            frame_index=start + 2 * np.arange(frames),
            time_s=(start + 2 * np.arange(frames)) / 32,
        )
        for n, (start, frames) in enumerate([(0, 8), (5, 17), (21, 9)])
    ]
    return make_dataset(tmp_path / "filmed", {"a": rows})
