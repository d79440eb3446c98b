"""The comparison of benchmarks/same_rows.py tells any change of a value, and forgives nothing but what it names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

_PATH = Path(__file__).parents[1] / "benchmarks" / "same_rows.py"


@pytest.fixture(scope="module")
def same_rows() -> Any:
    spec = importlib.util.spec_from_file_location("same_rows", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(**changes: Any) -> pa.Table:
    row = {
        "source": "s",
        "clip_id": "a",
        "verdict": "rejected",
        "reasons": ["pose_jump"],
        "num_frames": 2,
        "annotate_wall_s": 1.0,
        "stage_wall_s": [{"name": "open", "value": 1.0}],
        "package_version": "1",
        "focal_px": [[500.0, float("nan")], [0.0, 2.0]],
        "num_tracks": None,
        "metrics": [{"name": "x", "value": 1.0}, {"name": "y", "value": 2.0}],
        "gates": [{"name": "jump", "value": 3.0, "passed": False}],
    }
    return pa.Table.from_pylist([row | changes, row | {"clip_id": "b"}])


@pytest.mark.parametrize(
    "changes",
    [
        {"annotate_wall_s": 2.0, "stage_wall_s": [], "package_version": "2"},
        {"metrics": [{"name": "y", "value": 2.0}, {"name": "x", "value": 1.0}]},
    ],
    ids=["times and versions", "order of named values"],
)
def test_what_is_apart_is_no_difference(same_rows: Any, changes: dict) -> None:
    text, same = same_rows.compare(rows(), rows(**changes))
    assert same, text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"focal_px": [[500.0, float("nan")], [0.0, 2.0000000000000004]]}, "focal_px[1][1]: 2.0 -> 2.0000"),
        ({"focal_px": [[500.0, 1.0], [0.0, 2.0]]}, "focal_px[0][1]: nan -> 1.0"),
        ({"focal_px": [[500.0, float("nan")], [-0.0, 2.0]]}, "focal_px[1][0]: 0.0 -> -0.0"),
        ({"focal_px": [[500.0, float("nan")]]}, "focal_px: length: 2 -> 1"),
        ({"num_tracks": 0}, "num_tracks: None -> 0"),
        ({"reasons": ["static_camera"]}, "reasons[0]: 'pose_jump' -> 'static_camera'"),
        ({"metrics": [{"name": "x", "value": 1.0}]}, "metrics.y: 2.0 -> None"),
        ({"gates": [{"name": "jump", "value": 3.0, "passed": True}]}, "gates[0].passed: False -> True"),
    ],
)
def test_any_other_change_is_told(same_rows: Any, changes: dict, told: str) -> None:
    text, same = same_rows.compare(rows(), rows(**changes))
    assert not same
    assert told in text.splitlines()[1], text
    assert text.splitlines()[2].endswith("none")


def test_clips_that_come_and_go_are_told(same_rows: Any) -> None:
    text, same = same_rows.compare(rows(), rows().slice(1))
    assert not same
    assert "not there any more" in text
    text, same = same_rows.compare(rows().slice(1), rows())
    assert not same
    assert "not there before" in text
    with pytest.raises(ValueError, match="clip s/b is there twice"):
        same_rows.compare(rows(), rows(clip_id="b"))


def test_what_was_renamed_on_purpose_is_the_same(same_rows: Any) -> None:
    changed = rows(metrics=[{"name": "z", "value": 1.0}, {"name": "y", "value": 2.0}])
    assert not same_rows.compare(rows(), changed)[1]
    text, same = same_rows.compare(rows().slice(0, 1), changed.slice(0, 1), renamed={"x": "z"})
    assert same, text
    assert same_rows.compare(rows(), changed, apart=frozenset({"metrics"}))[1]
    assert not same_rows.compare(rows(), changed, apart=frozenset({"metrics.x"}))[1]
    assert same_rows.compare(rows(), changed, apart=frozenset({"metrics.x", "metrics.z"}))[1]
