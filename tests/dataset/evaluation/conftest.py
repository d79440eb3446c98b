"""Runs that the tests of evaluation compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.rows import Row


@pytest.fixture
def runs(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    """Truth, a noisy prediction and a noisier baseline of six clips."""
    rng = np.random.default_rng(0)
    truth = [make_row(i) for i in range(6)]

    def noisy(row: Row, sigma: float) -> Row:
        noise = cam.se3_exp(rng.normal(size=(33, 6)) * sigma)
        number = int(row.clip_id[-4:])
        return make_row(
            number, camera_to_world=row.camera_to_world @ noise, focal_px=row.focal_px * (1 + sigma)
        )

    make_dataset(tmp_path / "truth", {"a": truth})
    make_dataset(tmp_path / "ours", {"a": [noisy(r, 0.01) for r in truth[:5]], "b": [make_rejected(7)]})
    make_dataset(tmp_path / "theirs", {"a": [noisy(r, 0.03) for r in truth]})
    return tmp_path
