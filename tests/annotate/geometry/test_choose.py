"""Every combination of sequence and anchor runs, and so does every recipe of the package."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.choose import check_estimators
from theodolite.annotate.geometry.config import GeometryConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.recipes.loader import load_recipe, packaged_recipes

from ...typed import known

FRAMES = 8
SEQUENCES = get_args(GeometryConfig.model_fields["sequence"].annotation)
ANCHORS = get_args(GeometryConfig.model_fields["anchor"].annotation)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipRef:
    """A rendered clip that also ships depth: in a unit of its own, and in metres for some frames."""
    folder = tmp_path_factory.mktemp("clip")
    small: dict[str, Any] = {"width": 112, "height": 84, "num_frames": FRAMES}
    (folder / "clip.yaml").write_text(yaml.safe_dump(small))
    rendered = render_clip(RenderConfig(**small))
    for frame in range(FRAMES):
        np.save(folder / f"z{frame}.npy", rendered.depth_m(frame) / 3)
        np.save(folder / f"m{frame}.npy", rendered.depth_m(frame))
    return ClipRef(
        clip_id="clip",
        source="tests",
        original_id="clip",
        media_kind="rendered",
        media_path=folder / "clip.yaml",
        given=GivenGeometry(
            depth_pattern=str(folder / "z{frame}.npy"),
            anchor_depth_pattern=str(folder / "m{frame}.npy"),
            anchor_units_per_metre=1.0,
        ),
    )


def config(sequence: str, anchor: str) -> AnnotateConfig:
    return AnnotateConfig.model_validate(
        {
            "decode": {"min_frames": 8, "detect_cuts": False},
            "tracks": {"num_flow_tracks": 100, "num_descriptors": 100, "max_loops_per_keyframe": 0},
            "bundle": {"focal_model": "constant", "max_iterations": 8},
            "geometry": {
                "sequence": sequence,
                "anchor": anchor,
                "weights": "stand_in",
                "stand_in_size": "tiny",
                "device": "cpu",
                "pi3x": {"max_pixels": 2000},
            },
        }
    )


SOLVED = {("given", "rendered"), ("pi3x", "given"), ("rendered", "moge2")}
"""With metres a combination goes on to the bundle, which is the same for all: these run each of both kinds once."""


def marks_of(sequence: str, anchor: str) -> list[pytest.MarkDecorator]:
    if anchor == "none":
        return [pytest.mark.slow] if sequence == "given" else []
    return [pytest.mark.slow] + ([] if (sequence, anchor) in SOLVED else [pytest.mark.thorough])


@pytest.mark.parametrize(("sequence", "anchor"), itertools.product(SEQUENCES, ANCHORS))
def test_combination_is_allowed(sequence: str, anchor: str):
    check_estimators(config(sequence, anchor).geometry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sequence", "anchor"),
    [pytest.param(s, a, marks=marks_of(s, a)) for s, a in itertools.product(SEQUENCES, ANCHORS)],
)
def test_combination_runs(clip: ClipRef, sequence: str, anchor: str):
    chosen = config(sequence, anchor)
    row = annotate_clip(clip, chosen, mode="given_depth", recipe_hash="0" * 16)
    assert row.error is None, row.error
    # Without an anchor nothing says how long a metre is; with one its frames arrive, whatever comes of them.
    assert ("no_anchor_frames" in row.reasons) == (anchor == "none"), row.reasons
    assert row.stand_in == (sequence == "pi3x" or anchor == "moge2")
    if sequence != "pi3x" and anchor not in ("none", "moge2"):
        assert row.metres_per_unit == pytest.approx(3 if sequence == "given" else 1, rel=0.1)


@pytest.mark.slow
def test_no_network_is_asked_where_the_source_declares_metres(clip: ClipRef):
    """Its answer would be thrown away, and the row would name weights that had no part in it."""
    metric = replace(clip, given=replace(clip.given, metres_per_unit=3.0))
    row = annotate_clip(metric, config("given", "moge2"), mode="given_depth", recipe_hash="0" * 16)
    assert row.error is None, row.error
    assert not row.weights
    assert not row.stand_in
    np.testing.assert_allclose(known(row.metres_per_unit), 1)  # the depth is read in metres


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_packages_recipes_can_run(name: str):
    """With weights that are there: what is left would be settings that cannot work together."""
    recipe = load_recipe(name, ["annotate.geometry.weights=stand_in", "annotate.geometry.device=cpu"])
    check_estimators(recipe.annotate.geometry)
