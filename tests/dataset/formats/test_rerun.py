"""Recordings for rerun, and what they are given."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import theodolite.dataset
from theodolite.dataset import export as export_module
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.colmap import ColmapPoints
from theodolite.dataset.formats.rerun import write_rerun
from theodolite.dataset.rows import Row

from .compared import LEVEL_STEP, installed


def test_rerun_recording_verifies_and_holds_every_frame(tmp_path: Path, clip: CameraClip) -> None:
    rerun = shutil.which("rerun", path=str(Path(sys.executable).parent))
    if not installed("rerun") or rerun is None:
        pytest.skip("rerun-sdk is not installed")
    picture = np.full((90, 160, 3), 120, np.uint8)
    path = write_rerun(
        clip, tmp_path / "x.rrd", images={0: picture, 16: picture}, points_world=np.zeros((4, 3))
    )
    subprocess.run([rerun, "rrd", "verify", str(path)], check=True, capture_output=True)
    text = subprocess.run(
        [rerun, "rrd", "print", str(path)], check=True, capture_output=True, text=True
    ).stdout
    for entity in ("/world/path", "/world/points", "/world/camera", "/world/camera/image", "/focal_px/x"):
        assert entity in text
    rows = {m[1]: int(m[0]) for m in re.findall(r"with (\d+) rows.*? - (/\S+)", text)}
    assert rows.get("/focal_px/y", len(clip)) == len(clip)


@pytest.mark.skipif(installed("rerun"), reason="rerun-sdk is installed")
def test_rerun_says_what_to_install(tmp_path: Path, clip: CameraClip) -> None:
    with pytest.raises(ImportError, match=r"theodolite\[viz\]"):
        write_rerun(clip, tmp_path / "x.rrd")


def test_rerun_is_given_pictures_and_points(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording itself needs rerun; what goes into it does not."""
    given: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(export_module, "require_rerun", lambda: None)
    monkeypatch.setattr(
        export_module, "write_rerun", lambda clip, path, **options: given.update({clip.name: options})
    )

    def points(row: Row, pictures: Iterator[np.ndarray]) -> ColmapPoints:
        first = next(pictures)  # the rest is taken by the export
        assert first.shape == (row.height, row.width, 3)
        none = np.zeros(0, np.int64)
        return ColmapPoints(points_world=np.ones((2, 3)), frame=none, point=none, xy_px=np.zeros((0, 2)))

    written = export_dataset(
        filmed,
        tmp_path / "a",
        format="rerun",
        media_root=filmed.parent,
        pictures=export_module.PictureOptions(points=points),
    )
    assert written.num_clips == 3
    for row in theodolite.dataset.open(filmed).rows():
        images = given[row.clip_id]["images"]
        assert list(images) == list(range(row.num_frames))
        levels = [float(image.mean()) for image in images.values()]
        np.testing.assert_allclose(levels, LEVEL_STEP * row.frame_index, atol=2)
        assert given[row.clip_id]["points_world"].shape == (2, 3)
    export_dataset(filmed, tmp_path / "b", format="rerun")
    assert all(options["images"] is None and options["points_world"] is None for options in given.values())
