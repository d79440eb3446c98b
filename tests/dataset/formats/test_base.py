"""Which rows may be exported at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import theodolite.dataset
from theodolite.dataset.formats.base import camera_clip
from theodolite.dataset.rows import Row


def test_the_gate_for_rows(
    make_row: Callable[..., Row], make_rejected: Callable[..., Row], out: Path
) -> None:
    for row, message in [
        (make_row(0, stand_in=True), "stand-in"),
        (make_row(0, lens_model="fisheye"), "seen through a fisheye"),
        (make_rejected(0), "rejected"),
        (make_row(0, pose_source=["none"] + ["solved"] * 32), "1 frames have no camera"),
        (make_row(0, camera_to_world=np.tile(2 * np.eye(4), (33, 1, 1))), "not rigid"),
    ]:
        with pytest.raises(ValueError, match=message):
            camera_clip(row)
    assert len(theodolite.dataset.open(out).where(pc.field("stand_in"))) == 0
