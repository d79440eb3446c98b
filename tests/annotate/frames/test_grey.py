"""Grey levels are those of the frame that is asked for, and made once for all who ask."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
from theodolite.annotate.frames import grey
from theodolite.annotate.frames.integrity import IntegrityMeter
from theodolite.annotate.frames.quality import QualityConfig, QualityMeter
from theodolite.annotate.tracks.flow import gray_of


def test_grey_levels_of_a_frame_are_made_once_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = cv2.cvtColor

    def counted(image: np.ndarray, code: int) -> np.ndarray:
        made.append(code)
        return real(image, code)

    monkeypatch.setattr(cv2, "cvtColor", counted)
    frames = np.random.default_rng(0).integers(0, 256, (3, 90, 160, 3), dtype=np.uint8)
    integrity, quality = IntegrityMeter(), QualityMeter(QualityConfig(), 16.0)
    for number in range(3):
        rgb = frames[number]
        integrity.add(number, rgb)
        quality.add(number, rgb)
        assert np.array_equal(gray_of(rgb, (160, 90)), real(rgb, cv2.COLOR_RGB2GRAY))
    assert made.count(cv2.COLOR_RGB2GRAY) == 3


def test_another_frame_and_another_thread_get_their_own() -> None:
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert grey.grey_of(black).max() == 0
    seen = []
    thread = threading.Thread(target=lambda: seen.append(int(grey.grey_of(white).min())))
    thread.start()
    thread.join()
    assert seen == [255]
    assert grey.grey_of(black).max() == 0
    assert grey.grey_of(white).min() == 255
    # One in the place of a frame that is gone is another one.
    for level in range(20):
        assert int(grey.grey_of(np.full((4, 4, 3), level, np.uint8)).max()) == level
