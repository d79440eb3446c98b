"""Dense flow of pictures of every shape: OpenCV's own ends the process for strips and for tiny ones."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from theodolite.annotate.frames.cuts import CutDetector
from theodolite.annotate.frames.dense_flow import DenseFlow
from theodolite.annotate.frames.quality import QualityConfig, QualityMeter

SHIFT_PX = 2


def moving(height: int, width: int, count: int) -> list[np.ndarray]:
    """Grey pictures of a texture that moves to the right."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width + SHIFT_PX * count), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    return [np.ascontiguousarray(texture[:, SHIFT_PX * i :][:, :width]) for i in range(count)][::-1]


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize("size", [(30, 160), (20, 320), (10, 320), (160, 20), (14, 50), (3, 9), (1, 1)])
def test_strips_have_a_flow(preset, size: tuple[int, int]) -> None:
    a, b = moving(*size, 2)
    flow = DenseFlow(preset).between(a, b)
    assert flow.shape == (*size, 2)
    assert np.isfinite(flow).all()
    if size in ((30, 160), (20, 320)):
        across, down = np.median(flow[:, 20:-20], axis=(0, 1))
        assert across == pytest.approx(SHIFT_PX, abs=0.3)
        assert abs(down) < 0.3


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_others_have_that_of_opencv(preset) -> None:
    a, b = moving(48, 80, 2)
    opencv: Any = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
    assert np.array_equal(DenseFlow(preset).between(a, b), opencv.calc(a, b, None))


@pytest.mark.parametrize("size", [(72, 384), (48, 480), (12, 300)])
def test_wide_clips_are_looked_at_for_cuts_and_measured(size: tuple[int, int]) -> None:
    """Wider than five to one, the small pictures in which cuts are looked for have fewer than 32 rows."""
    detector, meter = CutDetector(fps=16), QualityMeter(QualityConfig(), 16)
    for i, gray in enumerate(moving(*size, 12)):
        rgb = np.repeat(gray[..., None], 3, 2)
        detector.update(rgb)
        meter.add(i, rgb)
    assert detector.finish() == []
    assert meter.columns()
