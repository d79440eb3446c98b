"""Every combination of sequence and anchor runs, or is refused before any clip."""

from __future__ import annotations

import itertools
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

FRAMES = 10
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


@pytest.mark.parametrize(
    ("sequence", "anchor"),
    [
        # True depth with metres goes on to the bundle.
        pytest.param(s, a, marks=[pytest.mark.slow] if a != "none" or s == "given" else [])
        for s, a in itertools.product(SEQUENCES, ANCHORS)
    ],
)
def test_combination_runs_or_is_refused(clip: ClipRef, sequence: str, anchor: str):
    chosen = config(sequence, anchor)
    if anchor == "moge2" and sequence != "pi3x":
        with pytest.raises(
            ValueError, match=f"moge2 with annotate.geometry.sequence {sequence}.*use anchor given"
        ):
            check_estimators(chosen.geometry)
        return
    check_estimators(chosen.geometry)
    row = annotate_clip(clip, chosen, mode="given_depth", recipe_hash="0" * 16)
    assert row.error is None, row.error
    # Without an anchor nothing says how long a metre is; with one its frames arrive, whatever comes of them.
    assert ("no_anchor_frames" in row.reasons) == (anchor == "none"), row.reasons
    if sequence != "pi3x" and anchor != "none":
        assert row.metres_per_unit == pytest.approx(3 if sequence == "given" else 1, rel=0.1)
