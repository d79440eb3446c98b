"""The production path against two usual ways of joining windows, on one short clip; the full table is a benchmark."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.estimators import metric_frames
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef

from ..simulator import Errors, rendered_truth
from ..unseen import UnseenFrames

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def compared():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("estimate_simulated")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow(about_s=7)
def test_ours_beats_chained_windows_and_the_peers_recipe_twofold(tmp_path, compared, thorough):
    fields = {
        "width": 320,
        "height": 180,
        "num_frames": 97,
        "seed": 40,
        "zoom": "in_out",
        "zoom_factor": 1.5,
    }
    path = tmp_path / "clip.yaml"
    path.write_text(yaml.safe_dump(fields))
    clip = ClipRef(clip_id="c", source="s", original_id="c", media_kind="rendered", media_path=path)
    truth = rendered_truth(render_clip(RenderConfig.model_validate(fields)))
    config = AnnotateConfig.model_validate({"tracks": {"num_flow_tracks": 100, "num_descriptors": 250}})
    rivals = ("chained", "peers-chain") if thorough else ("peers-chain",)
    lines = {
        method: compared.one(method, truth, Errors(seed=0), clip, config) for method in ("ours", *rivals)
    }
    assert lines["ours"]["error"] is None
    for method in rivals:
        assert lines["ours"]["ate_m"] < 0.5 * lines[method]["ate_m"], lines
        assert lines["ours"]["scale_error"] < 0.5 * lines[method]["scale_error"], lines


def test_the_measure_of_scale(compared):
    piece_logs = compared.piece_logs
    poses = np.tile(np.eye(4), (81, 1, 1))
    time = np.arange(81) / 16
    poses[:, 0, 3] = time
    off = poses.copy()
    off[:, 0, 3] *= 1.1
    assert len(piece_logs(off, poses, time)) == 81 - 32
    np.testing.assert_allclose(piece_logs(poses, poses, time), 0, atol=1e-12)
    np.testing.assert_allclose(piece_logs(off, poses, time), np.log(1.1))


@pytest.mark.parametrize(("seconds", "count"), [(60, 60), (10, 20), (1, 17)])
def test_short_clips_get_more_metric_frames_a_second(seconds, count):
    frames = UnseenFrames.of(16 * seconds + 1, 90, 160)
    chosen = metric_frames(frames, AnnotateConfig().geometry)
    assert len(chosen) == pytest.approx(count, abs=1)
    assert chosen[0] >= 0
    assert chosen[-1] < len(frames)
