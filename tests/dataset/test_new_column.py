"""A new column is one entry in `COLUMNS` and one field of `Row`: everything else follows from the entry."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DATASET = Path(__file__).parents[2] / "dataset"
ENTRIES = """
    _number("sharpness", "1", "Share of sharp edges.", (0.0, 1.0)),
    Column("weather", _TEXT, "-", "Weather.", nullable=True, values=("sun", "rain")),
    Column("gravity", _list(_F32), "1", "Down.", nullable=True, shape=("F", 3), bounds=(0.0, 1.5)),
)

COLUMN_BY_NAME ="""
FIELDS = """
    sharpness: float | None = None
    weather: str | None = None
    gravity: NDArray[np.float32] | None = None
    extra: Mapping"""
CODE = """
import sys
from pathlib import Path
import numpy as np
import theodolite.dataset as dataset
from theodolite.dataset import rows, schema, schema_page
from theodolite.dataset.row_checks import check_row, raw_rows
from theodolite.dataset.rows import Row

assert Path(dataset.__file__).is_relative_to(sys.argv[1])
identity = dict(
    clip_id="a", source="s", original_id="a", media_kind="video", media="a.mp4", mode="estimate", data_licence="MIT",
    data_redistributable=True, stand_in=False, recipe_hash="h", package_version="0", verdict="rejected",
    reasons=("too_short",), reason_details=("2 frames",), frame_index=[0, 1], time_s=[0.0, 0.1], height=4, width=4,
)
def complaint(**values):
    try:
        return list(check_row(raw_rows(rows.rows_to_table([Row(**identity, **values)]).to_batches()[0])[0],
                              part=Path("a"), version=None, recipe_hash="h"))
    except ValueError as error:
        return str(error)

down = np.tile([0.0, 1.0, 0.0], (2, 1))
row = rows.rows_from_table(rows.rows_to_table([Row(**identity, sharpness=0.5, weather="sun", gravity=down)]))[0]
assert row.sharpness == 0.5 and row.weather == "sun" and row.gravity.dtype == np.float32
assert (row.gravity == down).all() and not row.extra and not row.gravity.flags.writeable
assert complaint(sharpness=0.5, weather="sun", gravity=down) == [], complaint(sharpness=0.5, gravity=down)
assert ("range", "sharpness is 2, expected 0 to 1") in complaint(sharpness=2.0)
assert any(rule == "finite" for rule, _ in complaint(sharpness=float("nan")))
assert "weather is 'hail'" in complaint(weather="hail")
assert "1 gravity but 2 frames" in complaint(gravity=down[:1])
assert "gravity has shape (2, 2), expected (F, 3)" in complaint(gravity=down[:, :2])
assert ("uncertainty", "gravity must be NaN (unknown) or not negative and finite") in complaint(gravity=-down)
assert "gravity" in schema.SERIES_COLUMNS
page = schema_page.reference_page()
assert "| `sharpness` | double? | 1 | 0 to 1 | Share of sharp edges. |" in page
assert "| `gravity` | list<float> [3F]? | 1 | 0 to 1.5 | Down. |" in page
"""


@pytest.mark.slow
def test_a_column_is_one_entry_and_one_field(tmp_path: Path) -> None:
    package = tmp_path / "theodolite"
    shutil.copytree(DATASET, package / "dataset", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DATASET.parent / "__init__.py", package)
    for name, old, new in (
        ("schema.py", "\n)\n\nCOLUMN_BY_NAME =", ENTRIES),
        ("rows.py", "\n    extra: Mapping", FIELDS),
    ):
        text = (package / "dataset" / name).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (package / "dataset" / name).write_text(text.replace(old, new), encoding="utf-8")
    run = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(
        run, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
