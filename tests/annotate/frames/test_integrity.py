"""What a clip's pictures and its clock say of themselves."""

from __future__ import annotations

import numpy as np
import pytest
from theodolite.annotate.frames.base import ClipTiming
from theodolite.annotate.frames.integrity import IntegrityMeter, time_columns

WALL = np.kron(
    np.random.default_rng(0).integers(30, 255, (30, 60), dtype=np.uint8), np.ones((6, 6), np.uint8)
)
"""Squares, so that moving them shows at any size."""


def shown(frames: list[np.ndarray]) -> dict[str, float]:
    meter = IntegrityMeter()
    for number, grey in enumerate(frames):
        meter.add(number, np.repeat(grey[..., None], 3, 2))
    return dict(meter.columns()["metrics"])


def walk(count: int = 20) -> list[np.ndarray]:
    return [WALL[:, 5 * i : 5 * i + 200].copy() for i in range(count)]


def test_a_walk_has_nothing_against_it() -> None:
    found = shown(walk())
    assert found["duplicate_frames_share"] == found["letterbox_share"] == found["black_frames_share"] == 0
    assert found["luma_low"] < 60
    assert found["luma_high"] > 220


def test_copies_are_counted_though_they_were_encoded_anew() -> None:
    rng = np.random.default_rng(1)
    frames = walk()
    for i in (4, 9, 14, 19):
        frames[i] = np.clip(frames[i - 1] + rng.integers(-1, 2, frames[i].shape), 0, 255).astype(np.uint8)
    assert shown(frames)["duplicate_frames_share"] == pytest.approx(4 / 19)
    assert shown([frames[0]] * 5)["duplicate_frames_share"] == 1  # a picture that is frozen


def test_bars_and_black_frames() -> None:
    frames = walk()
    for frame in frames:
        frame[:18], frame[-18:] = 16, 16
    assert shown(frames)["letterbox_share"] == pytest.approx(0.2, abs=0.02)
    frames = walk()
    for i in range(5):
        frames[i][:] = 16
    found = shown(frames)
    assert found["black_frames_share"] == 0.25
    assert found["letterbox_share"] == 0
    assert shown([np.full_like(frames[0], 16)] * 3)["letterbox_share"] == 0  # nothing to be seen between bars


def test_studio_range_that_was_not_expanded_shows() -> None:
    found = shown([(16 + frame * (219 / 255)).astype(np.uint8) for frame in walk()])
    assert found["luma_high"] <= 235


def timing(time_s: np.ndarray) -> ClipTiming:
    return ClipTiming(frame_index=2 * np.arange(len(time_s)), time_s=time_s, source_fps=32.0, fps=16.0)


def test_a_constant_rate_measures_nothing() -> None:
    even = 3.0 + np.arange(50) / 16
    assert time_columns(timing(even), assumed=False) == {"time_stamps": "constant", "time_jitter_s": None}
    rounded = np.round(even, 3)  # Matroska
    assert time_columns(timing(rounded), assumed=False)["time_stamps"] == "constant"
    assert time_columns(timing(even), assumed=True)["time_stamps"] == "assumed"


def test_a_clock_that_varies_is_measured() -> None:
    even = np.arange(50) / 16
    shaken = even + 0.004 * np.random.default_rng(2).standard_normal(50)
    found = time_columns(timing(shaken), assumed=False)
    assert found["time_stamps"] == "varying"
    assert found["time_jitter_s"] == pytest.approx(0.004, rel=0.2)
    gap = even + 0.2 * (np.arange(50) > 30)
    assert time_columns(timing(gap), assumed=False)["time_jitter_s"] > 0.02
