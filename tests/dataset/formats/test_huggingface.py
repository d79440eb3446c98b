"""The layout that Hugging Face's `datasets` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import theodolite.dataset
from theodolite.dataset.export import export_dataset


@pytest.mark.slow
def test_huggingface_datasets_reads_the_export(out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert export_dataset(out, tmp_path / "hf", format="huggingface").num_clips == 3
    files = sorted((tmp_path / "hf" / "data").iterdir())
    assert [f.name for f in files] == ["train-00000-of-00001.parquet"]
    loaded = datasets.Dataset.from_parquet(str(files[0]), cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 3
    assert loaded.features["camera_to_world"].feature.dtype == "float32"
    row = theodolite.dataset.open(out).row("clip_0001")
    got = loaded[1]
    assert got["clip_id"] == "clip_0001"
    np.testing.assert_array_equal(
        np.float32(got["camera_to_world"]).reshape(-1, 3, 4), row.camera_to_world[:, :3]
    )
    assert json.loads(got["captions"]) == {"scene": "A room."}
    assert got["gates"][0]["name"] == "fov_x"
