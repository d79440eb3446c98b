"""Values at which depth is cut off are no measurements, for any who read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from theodolite.annotate import pipeline
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import ClipFrames
from theodolite.annotate.geometry.base import DepthMaps, KnownGeometry, SequenceGeometryResult
from theodolite.annotate.geometry.cut_off import MeasuredDepth, cut_off
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.sfm.depth_noise import map_noise, sample_depth
from theodolite.annotate.sources.clip import ClipRef, ClipRejection
from theodolite.annotate.tracks.records import FLOW, ImageMeasurements, make_tracks

from ..maps import Maps

LOW, HIGH = 1.3, 3.0


def floor(noise: float = 0.003, far: float = 4.0, step: float = 0.0) -> np.ndarray:
    """A floor from 1 m on."""
    z = np.linspace(far, 1, 120)[:, None] * np.ones((1, 160))
    z = z * np.exp(noise * np.random.default_rng(0).standard_normal(z.shape))
    return (np.round(z / step) * step if step else z).astype(np.float32)


def test_a_range_that_ends_is_told_from_a_wall() -> None:
    z = floor()
    assert cut_off(z) == (0.0, np.inf)
    assert cut_off(np.clip(z, LOW, HIGH)) == (pytest.approx(LOW), HIGH)
    # Stored in steps: a wall fills the last ones, none of them alone.
    wall = np.round(np.where(z > 3, 3.0 + 0.01 * np.random.default_rng(0).standard_normal(z.shape), z), 3)
    assert cut_off(wall) == (0.0, np.inf)


def test_a_limit_that_few_pixels_of_a_map_are_at_is_that_of_the_other_maps() -> None:
    """A sensor counts in steps: in maps with little beyond its range the limit is not much more than one of them."""
    steps = {"noise": 0.02, "step": 0.02}
    much, little, all_of_it = floor(**steps), floor(far=3.05, **steps), np.full((120, 160), 9.0, np.float32)
    beyond = [little >= HIGH, all_of_it >= HIGH]
    assert cut_off(np.minimum(little, HIGH)) == (0.0, np.inf)
    maps = MeasuredDepth(Maps([np.minimum(z, np.float32(HIGH)) for z in (much, little, all_of_it)]))
    assert maps.ends
    for frame, there in zip((1, 2), beyond, strict=True):
        assert there.any()
        read = maps.read(frame)
        assert read is not None
        np.testing.assert_array_equal(np.isnan(read), there)
    # Where none of them ends so, nothing is left out.
    whole = MeasuredDepth(Maps([much, little]))
    assert not whole.ends
    np.testing.assert_array_equal(whole.read(0), much)


@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_depth_whose_range_ends_is_read_as_if_it_were_absent_there(noise: float) -> None:
    """Averages over a saturated pixel and others are nothing that was measured, nor is a plane without noise."""
    z = floor(noise)
    absent = np.where((z > LOW) & (z < HIGH), z, np.nan).astype(np.float32)
    saturated = MeasuredDepth(Maps([np.clip(z, np.float32(LOW), np.float32(HIGH))] * 2))
    xy = np.random.default_rng(1).uniform((2, 2), (158, 118), (400, 2))
    frame, track = np.tile([0, 1], 400), np.repeat(np.arange(400), 2)
    tracks = make_tracks(frame, track, np.repeat(xy, 2, 0), np.full(800, FLOW, np.uint8), 2, 120, 160)
    np.testing.assert_array_equal(sample_depth(tracks, saturated), sample_depth(tracks, Maps([absent] * 2)))
    read = saturated.read(0)
    assert read is not None
    assert map_noise(read) == map_noise(absent)


def test_all_who_read_the_depth_of_a_clip_read_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.yaml").write_text(RenderConfig(width=160, height=120, num_frames=9).model_dump_json())
    clip = ClipRef(
        clip_id="c", source="s", original_id="c", media_kind="rendered", media_path=tmp_path / "clip.yaml"
    )
    stored = Maps([np.minimum(floor(), np.float32(HIGH))] * 9)

    class Shipped:
        name = "shipped"

        def start(self, clip: ClipRef, frames: ClipFrames) -> KnownGeometry:
            return KnownGeometry(
                SequenceGeometryResult(depth=stored, depth_sigma_log=0.01, metres_per_unit=1.0)
            )

    told = {}

    def ends(measured: ImageMeasurements, depth: DepthMaps, **keywords: Any) -> NoReturn:
        told.update(keywords, z=depth.read(4))
        raise ClipRejection("no_reconstruction", "")

    monkeypatch.setattr(pipeline, "measure_images", lambda frames, **_: None)
    monkeypatch.setattr(pipeline, "check_depth", ends)
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "rendered"}, "decode": {"detect_cuts": False, "min_frames": 5}}
    )
    row = annotate_clip(
        clip,
        config,
        mode="given_depth",
        recipe_hash="0" * 16,
        estimators=Estimators(sequence=Shipped(), anchor=None),
    )
    assert row.reasons == ("no_reconstruction",), row.reason_details
    np.testing.assert_array_equal(np.isnan(told["z"]), stored.maps[4] == np.float32(HIGH))
    assert told["range_ends"]  # that all maps end just below is no sign of maps normalised one by one
