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
from theodolite.dataset.schema import COLUMNS, Column
from theodolite.dataset.validate import validate_dataset
from theodolite.recipes.commands.datasets import validate

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
    ("data_licence", lambda _v: "", "licence_present"),
    ("weight_licences", lambda _v: [], "licence_present"),
    ("stand_in", lambda _v: True, "no_stand_in"),
    ("media", lambda _v: "", "media_pointer"),
    ("reasons", lambda _v: ["jump"], "verdict_reasons"),
    ("confidence", lambda _v: 1.7, "range"),
    ("gates", lambda v: [v[0] | {"value": 9.0}], "gates"),
    ("gates", lambda v: [v[0] | {"value": 9.0, "passed": False}], "gates"),
    ("position_sigma_m", _at(2, -0.1), "uncertainty"),
    ("metres_per_unit", lambda _v: None, "scale"),
    ("metres_per_unit", lambda _v: -2.0, "scale"),
    ("scale_model", lambda _v: "step", "scale"),
    ("scale_frame", _at(0, 33), "scale"),
    ("parallax_rad", lambda _v: float("inf"), "finite"),
    ("inlier_share_min", lambda _v: 1.2, "range"),
    ("recipe_hash", lambda _v: "recipe2", "one_recipe"),
    ("schema_version", lambda _v: 0, "schema_version"),
    ("original_id", lambda _v: "", "identity_present"),
    ("window_start_s", lambda _v: 1.0, "window"),
    ("window_end_s", lambda _v: 0.5, "window"),
    ("weights", lambda _v: [""], "licence_present"),
    ("width", lambda v: v + 1, "fov_of_focal"),
    ("source_fps", lambda v: v * 2, "fps"),
    ("fps", lambda _v: None, "fps"),
    ("radial_k1", lambda _v: 1e3, "range"),
    ("annotate_wall_s", lambda _v: -1.0, "range"),
    ("stage_wall_s", lambda _v: [{"name": "decode", "value": float("nan")}], "named_values"),
    ("captions", lambda _v: [{"name": "scene", "value": ""}], "named_values"),
    ("metrics", lambda _v: 2 * [{"name": "vmaf_motion", "value": 7.5}], "named_values"),
    ("camera_to_world", lambda v: [*v[:12], *v[24:36], *v[24:]], "path_length"),
    ("path_length_m", lambda _v: None, "accepted_has_numbers"),
    ("focal_spread", lambda v: v + 0.01, "restated"),
    ("focal_axis_gap_max", lambda v: 2 * v, "restated"),
    ("reprojection_median_px", lambda v: 1.1 * v, "restated"),
    ("reprojection_rms_px", lambda v: 10 * v, "restated"),
    ("reprojection_px", _at(3, 1e6), "uncertainty"),
    ("rotation_sigma_rad", _at(2, 10.0), "uncertainty"),
    ("scale_p10", lambda v: 0.9 * v, "restated"),
    ("scale_cov", lambda v: 2 * v, "restated"),
    ("scale_value", _at(3, -2.5), "scale"),
    ("scale_value", _at(3, float("inf")), "scale"),
    ("scale_value", _at(3, float("nan")), "scale"),
    ("scale_value", lambda v: [1000 * x for x in v], "scale"),
    ("scale_frame", _at(3, 4), "scale"),
    ("metres_per_unit", lambda _v: 1.0, "scale"),
    ("metres_per_unit", lambda v: 2 * v, "scale"),
    ("metres_per_unit_frame", lambda _v: [1.0] * 33, "scale"),
    ("metres_per_unit_frame", lambda _v: [float("nan")] * 33, "scale"),
    ("num_tracks", lambda _v: -1, "range"),
    ("parallax_rad", lambda _v: 5.0, "range"),
    ("fov_y_min_rad", lambda _v: 3.0, "fov_of_focal"),
    ("gates", lambda _v: [], "gates"),
    ("gates", lambda v: [*v, v[0]], "gates"),
    ("gates", lambda v: [v[0] | {"value": float("nan")}], "gates"),
    ("gates", lambda v: [v[0] | {"upper": float("nan")}], "gates"),
    ("gates", lambda v: [v[0] | {"lower": None, "upper": None}], "gates"),
    ("gates", lambda v: [v[0] | {"lower": 3.0, "upper": 2.0, "passed": False}], "gates"),
    ("error", lambda _v: "Traceback", "verdict_reasons"),
]


@pytest.mark.slow
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
    text, code = validate(intact)
    assert code == 1
    assert rule in text
    assert next(iter(guilty)) in text


def _damaged(value: Any, column: Column) -> dict[str, Any]:
    """Values that no row may have, whatever the column is about."""
    damage: dict[str, Any] = {} if column.nullable else {"null": None}
    if column.type == pa.float64():
        damage |= {"NaN": float("nan"), "infinite": float("inf")}
    if column.per_frame and value:
        damage |= {"too short": value[:-1], "too long": [*value, value[-1]], "empty": []}
        if pa.types.is_floating(column.type.value_type):
            damage["infinite"] = [*value[:-1], float("inf")]
        if column.name in ("frame_index", "time_s"):
            damage["swapped"] = [value[1], value[0], *value[2:]]
    return damage


@pytest.mark.slow
@pytest.mark.parametrize("clip_id", [VICTIM, "clip_0002"], ids=["accepted", "rejected"])
def test_no_damaged_cell_passes_or_stops_the_check(intact: Path, clip_id: str) -> None:
    path = store.part_path(intact, source="demo", shard_id="a")
    table = pq.ParquetFile(path).read()
    row = table["clip_id"].to_pylist().index(clip_id)
    num_damaged, passed = 0, []
    for i, column in enumerate(COLUMNS):
        values = table[column.name].to_pylist()
        for what, value in _damaged(values[row], column).items():
            cells = pa.array([*values[:row], value, *values[row + 1 :]], type=column.type)
            broken = table.set_column(i, pa.field(column.name, column.type), cells)
            store.write_table(
                broken.replace_schema_metadata(table.schema.metadata), str(path), row_group_size=10
            )
            _num_rows, violations = validate_dataset(intact)
            num_damaged += 1
            if not violations:
                passed.append(f"{column.name}: {what}")
            elif not {v.clip_id for v in violations} & {clip_id, "None"}:
                passed.append(f"{column.name}: {what}: blamed on {violations[0]}")
    assert num_damaged > 80
    assert passed == []


def test_a_file_written_before_a_nullable_column_existed_is_valid(intact: Path) -> None:
    path = store.part_path(intact, source="demo", shard_id="a")
    table = pq.ParquetFile(path).read()
    store.write_table(table.drop_columns(["parallax_rad", "metrics"]), str(path), row_group_size=10)
    assert validate_dataset(intact) == (4, [])


def test_rejected_row_without_reason(intact: Path) -> None:
    _edit(intact, "reasons", lambda _v: [], clip_id="clip_0002")
    assert {(v.clip_id, v.rule) for v in validate_dataset(intact)[1]} == {("clip_0002", "verdict_reasons")}


def test_unknown_licence_is_a_note(intact: Path) -> None:
    """It is what the default recipe writes; the first run of a newcomer is no broken promise."""
    _edit(intact, "data_licence", lambda _v: "unknown", clip_id="clip_0002")
    text, code = validate(intact)
    assert code == 0
    assert "every invariant holds" in text
    assert "note: the licence of 1 clips' media is unknown" in text
    assert "source.data_licence=" in text


def test_reason_that_nobody_knows(intact: Path) -> None:
    _edit(intact, "reasons", lambda _v: ["to_short"], clip_id="clip_0002")
    (violation,) = validate_dataset(intact)[1]
    assert (violation.clip_id, violation.rule) == ("clip_0002", "verdict_reasons")
    assert "unknown reason 'to_short'" in violation.message


def test_intact_dataset_passes(intact: Path) -> None:
    assert validate_dataset(intact) == (4, [])
    text, code = validate(intact)
    assert code == 0
    assert "4 rows, every invariant holds" in text


def test_broken_files_are_named(intact: Path) -> None:
    folder = intact / "data/demo"
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


def test_a_flipped_bit_is_found(intact: Path) -> None:
    """Poses one bit off still look like poses; the pages' checksums tell."""
    path = store.part_path(intact, source="demo", shard_id="a")
    whole = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(0)
    columns = {chunk.column(i).path_in_schema: chunk.column(i) for i in range(chunk.num_columns)}
    for name in ("camera_to_world.list.element", "time_s.list.element", "original_id"):
        column = columns[name]
        middle = column.data_page_offset + column.total_compressed_size * 3 // 4
        damaged = bytearray(whole)
        damaged[middle] ^= 1
        path.write_bytes(damaged)
        violations = validate_dataset(intact)[1]
        assert [v.rule for v in violations] == ["part_readable"], name
        assert "part-a.parquet" in violations[0].part
    path.write_bytes(whole)
    assert validate_dataset(intact) == (4, [])


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no part files"):
        validate_dataset(tmp_path)


def test_float32_storage_stays_within_the_rigid_tolerance(make_row: Callable[..., Row]) -> None:
    from theodolite.dataset.cameras.transforms import rigid_error
    from theodolite.dataset.row_checks import RIGID_TOLERANCE

    error = rigid_error(np.concatenate([make_row(i, frames=200).camera_to_world for i in range(10)]))
    assert error.max() < RIGID_TOLERANCE / 10
