"""Given depth of another rate than the images, and depth that is late by no more than devices are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from theodolite.annotate.checks.depth_scene import Fits, Scene
from theodolite.annotate.checks.readings import Reading
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.tracks.measure import measure_images

from .test_depth import TRACKS, Recording, reasons


@pytest.mark.slow
def test_maps_of_another_rate_are_told_where_no_place_in_time_is_better(monkeypatch) -> None:
    """They fall behind further and further, so that maps a little earlier or later fit worse on the whole."""
    config = RenderConfig(width=192, height=108, num_frames=32, seed=641, speed=1.6, horizontal_fov_deg=66.0)
    frames = list(render_clip(config))
    measured = measure_images((f.rgb for f in frames), height=108, width=192, config=TRACKS)
    recording = Recording(measured, np.stack([f.depth_m for f in frames]), float("nan"))
    tried, fits = [], Scene.fits

    def noted(scene: Scene, readings: Sequence[Reading], *, shared: bool = False) -> Fits:
        tried.append(readings)
        return fits(scene, readings, shared=shared)

    monkeypatch.setattr(Scene, "fits", noted)
    assert not reasons(recording.check(recording.depth))
    check = recording.check(recording.depth[np.arange(32) // 2])
    assert check.better_reading == "when taken at 2 times their rate"
    assert reasons(check) == ["depth_does_not_fit_images"]
    # In two seconds 24 for 25 is one frame at most, by which any device may be late: redkitchen was refused for it.
    asked = {reading.words for readings in tried for reading in readings}
    assert "when taken at 0.8 times their rate" in asked
    assert "when taken at 0.96 times their rate" not in asked


@pytest.mark.slow
def test_maps_that_repeat_themselves_are_asked_whether_they_fall_behind() -> None:
    """In three seconds of a slow walk the maps of half the rate belong to pictures that pairs of the whole clip do not
    reach: another rate was worse by no certain amount, and a path 3 % wrong was accepted."""
    config = RenderConfig(width=320, height=180, num_frames=48, seed=24, speed=0.6, noise_sigma=1.0)
    frames = list(render_clip(config))
    measured = measure_images((f.rgb for f in frames), height=180, width=320, config=TRACKS)
    recording = Recording(measured, np.stack([f.depth_m for f in frames]), float("nan"))
    number = np.arange(48)
    check = recording.check(recording.depth[number // 2])
    assert check.better_reading == "when taken at 2 times their rate"
    assert check.margin_log < -0.2
    assert reasons(recording.check(recording.depth[4 * number // 5])) == ["depth_does_not_fit_images"]
    # A sensor of half the rate whose maps are used until the next is there keeps up; and so does one that is late once.
    late_once = np.where(number > 24, number - 1, number)
    for kept in (number - number % 2, late_once):
        assert not reasons(recording.check(recording.depth[kept]))
