"""Pictures cut to the model's shape, and what their cameras become."""

from __future__ import annotations

import numpy as np
import pytest
from theodolite.dataset.cameras.intrinsics import project
from theodolite.dataset.media.picture import cover

TARGET = (704, 1280)


@pytest.mark.parametrize(
    ("source", "resized", "corner"),
    [
        ((704, 1280), (704, 1280), (0, 0)),
        ((720, 1280), (720, 1280), (8, 0)),
        ((1080, 1920), (720, 1280), (8, 0)),
        ((960, 1280), (960, 1280), (128, 0)),
        ((400, 800), (704, 1408), (0, 64)),
    ],
)
def test_sizes(source: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]) -> None:
    found = cover(source, TARGET)
    assert (found.resized, (found.top, found.left)) == (resized, corner)
    assert found.apply(np.zeros((*source, 3), np.uint8)).shape == (*TARGET, 3)


def test_a_point_stays_on_its_pixel() -> None:
    """What the lens sees at a mark of the picture, the cut picture's lens sees at the same mark."""
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[300:306, 1500:1506] = 255
    k = np.array([[1500.0, 0, 960], [0, 1500, 540], [0, 0, 1]])
    mark = np.array([[(1503 - 960) / 1500, (303 - 540) / 1500, 1.0]])
    found = cover((1080, 1920), TARGET)
    pixel, _ = project(mark, np.eye(4), found.apply_to_intrinsics(k))
    rows, columns = np.nonzero(found.apply(image)[..., 0] > 127)
    assert pixel[0, 0] == pytest.approx(columns.mean() + 0.5, abs=0.3)
    assert pixel[0, 1] == pytest.approx(rows.mean() + 0.5, abs=0.3)


@pytest.mark.parametrize(
    ("source", "named"),
    [((1280, 720), "31 % of it would be left"), ((32, 640), "shorter side"), ((300, 2000), "left")],
)
def test_refused(source: tuple[int, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        cover(source, TARGET)
