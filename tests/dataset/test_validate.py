"""Hand-broken datasets: `validate` names the right row and rule, and passes the intact one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from theodolite.dataset import store
from theodolite.dataset.rows import Row
from theodolite.dataset.validate import run_validate, validate_dataset

MakeDataset = Callable[[Path, dict[str, list[Row]]], Path]
VICTIM = "clip_0001"


@pytest.fixture
def intact(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: MakeDataset
) -> Path:
    shards = {
        "a": [make_row(0), make_row(1), make_rejected(2)],
        "b": [make_row(3, scale_model="declared", metres_per_unit=1.0, weights=(), weight_licences=())],
    }
    return make_dataset(tmp_path / "out", shards)


def _edit(out: Path, column: str, change: Callable[[Any], Any], *, clip_id: str = VICTIM) -> None:
    """Change one cell of part `a` behind the back of `Row`."""
    path = store.part_path(out, source="demo", shard_id="a")
    table = pq.ParquetFile(path).read()
    i = table["clip_id"].to_pylist().index(clip_id)
    values = table[column].to_pylist()
    values[i] = change(values[i])
    index = table.schema.get_field_index(column)
    table = table.set_column(
        index, table.schema.field(column), pa.array(values, type=table.schema.field(column).type)
    )
    store.write_table(table, str(path), row_group_size=10)


def _at(position: int, value: Any) -> Callable[[list], list]:
    return lambda values: [*values[:position], value, *values[position + 1 :]]


BROKEN: list[tuple[str, Callable[[Any], Any], str]] = [
    ("camera_to_world", _at(24, 1.5), "rigid"),
    ("camera_to_world", _at(27, float("nan")), "finite"),
    ("camera_to_world", lambda v: v[:-12], "list_lengths"),
    (
        "camera_to_world",
        lambda v: [x * (1e7 if i % 12 in (3, 7, 11) else 1) for i, x in enumerate(v)],
        "plausible_position",
    ),
    (
        "camera_to_world",
        lambda v: [x * (1000 if i % 12 in (3, 7, 11) else 1) for i, x in enumerate(v)],
        "path_length",
    ),
    ("focal_px", _at(4, float("inf")), "finite"),
    ("focal_px", lambda v: [x / 1280 for x in v], "focal_for_stored_size"),
    ("focal_px", lambda v: [x / 2 for x in v], "fov_of_focal"),
    ("principal_point_px", lambda v: [x * 3 for x in v], "principal_point_in_image"),
    ("principal_point_px", lambda v: v[:10], "list_lengths"),
    ("frame_index", _at(5, 3), "frame_index_increasing"),
    ("frame_index", _at(0, -1), "frame_index_increasing"),
    ("time_s", _at(5, 0.0), "time_increasing"),
    ("fps", lambda _v: 30.0, "fps"),
    ("num_frames", lambda v: v + 1, "list_lengths"),
    ("height", lambda _v: 0, "stored_size"),
    ("clip_id", lambda _v: "a.b", "clip_id_characters"),
    ("clip_id", lambda _v: "clip_0003", "clip_id_unique"),
    ("source", lambda _v: "other", "partition"),
    ("verdict", lambda _v: "perhaps", "vocabulary"),
    ("pose_source", _at(3, 9), "vocabulary"),
    ("pose_source", _at(3, 0), "accepted_has_cameras"),
    ("data_licence", lambda _v: "unknown", "licence_present"),
    ("weight_licences", lambda _v: [], "licence_present"),
    ("stand_in", lambda _v: True, "no_stand_in"),
    ("media", lambda _v: "", "media_pointer"),
    ("reasons", lambda _v: ["jump"], "verdict_reasons"),
    ("confidence", lambda _v: 1.7, "confidence_range"),
    ("gates", lambda v: [v[0] | {"value": 9.0}], "gates"),
    ("gates", lambda v: [v[0] | {"value": 9.0, "passed": False}], "gates"),
    ("position_sigma_m", _at(2, -0.1), "uncertainty"),
    ("metres_per_unit", lambda _v: None, "scale"),
    ("metres_per_unit", lambda _v: -2.0, "scale"),
    ("scale_model", lambda _v: "step", "scale"),
    ("scale_frame", _at(0, 33), "scale"),
    ("parallax_rad", lambda _v: float("inf"), "finite"),
    ("inlier_share_min", lambda _v: 1.2, "share_range"),
    ("recipe_hash", lambda _v: "recipe2", "one_recipe"),
]


@pytest.mark.parametrize(
    ("column", "change", "rule"), BROKEN, ids=[f"{i:02d}-{c}-{r}" for i, (c, _, r) in enumerate(BROKEN)]
)
def test_each_broken_cell_is_named(
    intact: Path, column: str, change: Callable[[Any], Any], rule: str
) -> None:
    _edit(intact, column, change)
    num_rows, violations = validate_dataset(intact)
    assert num_rows == 4
    assert rule in {v.rule for v in violations}
    guilty = {"clip_id_characters": {"a.b"}, "clip_id_unique": {"clip_0003"}}.get(rule, {VICTIM})
    assert {v.clip_id for v in violations} == guilty
    text, code = run_validate(intact)
    assert code == 1
    assert rule in text
    assert next(iter(guilty)) in text


def test_rejected_row_without_reason(intact: Path) -> None:
    _edit(intact, "reasons", lambda _v: [], clip_id="clip_0002")
    assert {(v.clip_id, v.rule) for v in validate_dataset(intact)[1]} == {("clip_0002", "verdict_reasons")}


def test_intact_dataset_passes(intact: Path) -> None:
    assert validate_dataset(intact) == (4, [])
    text, code = run_validate(intact)
    assert code == 0
    assert "4 rows, every invariant holds" in text


def test_broken_files_are_named(intact: Path) -> None:
    folder = intact / "data/source=demo"
    (folder / ".tmp-part-c.parquet-1-x").write_bytes(b"")
    (folder / "part-c.parquet").write_bytes((folder / "part-b.parquet").read_bytes()[:1000])
    table = pq.ParquetFile(folder / "part-b.parquet").read()
    metadata = {**table.schema.metadata, b"theodolite.schema_version": b"9"}
    store.write_table(
        table.replace_schema_metadata(metadata), str(folder / "part-d.parquet"), row_group_size=1
    )
    store.write_table(table.drop_columns(["focal_px"]), str(folder / "part-e.parquet"), row_group_size=1)
    retyped = table.set_column(0, "schema_version", table["schema_version"].cast(pa.int64()))
    store.write_table(retyped, str(folder / "part-f.parquet"), row_group_size=1)
    pq.write_table(pa.table({"x": [1]}), folder / "part-g.parquet")
    (intact / "dataset.json").write_text(json.dumps({"recipe_hash": "other"}))
    violations = validate_dataset(intact)[1]
    by_part = {Path(v.part).name: v.rule for v in violations if v.rule != "one_recipe"}
    assert by_part == {
        ".tmp-part-c.parquet-1-x": "no_temporaries",
        "part-c.parquet": "part_readable",
        "part-d.parquet": "part_readable",
        "part-e.parquet": "declared_columns",
        "part-f.parquet": "declared_columns",
        "part-g.parquet": "part_readable",
    }
    assert {"part-a.parquet", "part-b.parquet"} <= {
        Path(v.part).name for v in violations if v.rule == "one_recipe"
    }


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no part files"):
        validate_dataset(tmp_path)


def test_float32_storage_stays_within_the_rigid_tolerance(make_row: Callable[..., Row]) -> None:
    from theodolite.dataset.cameras import rigid_error
    from theodolite.dataset.validate import RIGID_TOLERANCE

    error = rigid_error(np.concatenate([make_row(i, frames=200).camera_to_world for i in range(10)]))
    assert error.max() < RIGID_TOLERANCE / 10
