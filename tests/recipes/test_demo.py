"""The demo's clip is an honest source, and its marking finds errors of known size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.config import RenderedConfig
from theodolite.annotate.geometry.given import GivenAnchor, GivenGeometrySource
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.scale.estimate import estimate_scale
from theodolite.annotate.sources.entries import IndexSource
from theodolite.annotate.sources.read import read_clips
from theodolite.dataset.cameras.transforms import se3_exp
from theodolite.dataset.rows import Row
from theodolite.recipes.demo import run_demo
from theodolite.recipes.demo_clips import (
    DemoConfig,
    DemoFiles,
    compare_with_truth,
    errors_table,
    write_demo_clip,
)

SMALL = DemoConfig(
    render=RenderConfig(
        width=192,
        height=108,
        num_frames=33,
        horizontal_fov_deg=82.0,
        zoom="in_out",
        zoom_period_s=4.0,
        moving_object=True,
        depth_width=96,
        depth_height=54,
    ),
    anchor=RenderedConfig(anchor_seed=1),
    anchor_size=(27, 48),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> DemoFiles:
    return write_demo_clip(tmp_path_factory.mktemp("demo") / "clip", SMALL)


def perfect_row(files: DemoFiles) -> Row:
    truth = render_clip(SMALL.render)
    index = np.arange(len(truth))
    return Row(
        clip_id="demo",
        source="demo",
        original_id="demo",
        media_kind="video",
        media="rgb.mp4",
        mode="given_depth",
        data_licence="Apache-2.0",
        data_redistributable=True,
        stand_in=False,
        recipe_hash="0" * 16,
        package_version="0",
        verdict="accepted",
        height=108,
        width=192,
        frame_index=index.astype(np.int32),
        time_s=truth.time_s,
        camera_to_world=truth.camera_to_world.astype(np.float32),
        focal_px=np.stack([truth.intrinsics[:, 0, 0], truth.intrinsics[:, 1, 1]], -1).astype(np.float32),
        principal_point_px=np.tile([96.0, 54.0], (len(index), 1)),
        pose_source=np.zeros(len(index), np.int8),
        metres_per_unit=files.metres_per_unit,
    )


def test_the_default_clip_is_the_promised_one() -> None:
    render = DemoConfig().render
    assert (render.width, render.height) == (1280, 720)
    assert (render.num_frames - 1) / render.fps == 10.0
    assert render.zoom_factor == 2.0
    assert render.moving_object
    focal_px = render_clip(render).intrinsics[:, 1, 1]
    assert (
        np.degrees(2 * np.arctan(360 / focal_px.max())) > 26
    )  # the narrowest view passes the 25 degree gate
    assert focal_px.max() / focal_px.min() == pytest.approx(2.0, rel=1e-3)


@pytest.mark.slow
def test_the_clip_on_disk_hides_unit_lens_and_poses(files: DemoFiles) -> None:
    (clip,) = read_clips(IndexSource(kind="index", name="demo", index=files.index))
    assert clip.given.depth_units_per_metre is None
    assert clip.given.intrinsics_path is None
    assert clip.given.camera_to_world_path is None
    frames = open_clip(clip, DecodeConfig())
    assert len(frames) == 33
    sequence = GivenGeometrySource().read(clip, frames)
    assert sequence.metres_per_unit is None
    anchors = GivenAnchor().read(clip, frames, range(33))
    assert len(anchors) == 33
    found = estimate_scale(sequence, anchors, num_frames=33)
    assert found.model == "constant"
    assert found.value is not None
    # 33 frames with 5 % each: standard error 0.9 %, and three of those are allowed.
    assert found.value == pytest.approx(files.metres_per_unit, rel=0.027)
    assert found.mad_log > 0.02  # there was something to estimate


@pytest.mark.slow
def test_written_once_and_never_over_something_else(files: DemoFiles, tmp_path) -> None:
    folder = files.index.parent
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert write_demo_clip(folder, SMALL) == files
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    with pytest.raises(ValueError, match="not this demo's clip"):
        write_demo_clip(folder, DemoConfig())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not this demo's clip"):
        write_demo_clip(tmp_path, SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_an_interrupted_rendering_is_begun_again(tmp_path) -> None:
    partial = tmp_path / ".clip.partial"
    partial.mkdir()
    (partial / "rgb.mp4").write_bytes(b"cut off")
    files = write_demo_clip(tmp_path / "clip", SMALL)
    assert not partial.exists()
    assert json.loads((files.index.parent / "demo.json").read_text())["anchor_size"] == [27, 48]


@pytest.mark.slow
def test_marking_of_perfect_and_of_known_errors(files: DemoFiles) -> None:
    row = perfect_row(files)
    perfect = compare_with_truth(row, files)
    assert perfect.rotation_rmse_deg < 0.05  # rows hold float32
    assert perfect.position_rmse_percent < 1e-3
    assert perfect.focal_mape_percent < 1e-3
    assert perfect.scale_error_percent == pytest.approx(0, abs=1e-9)
    assert errors_table(perfect)[1]

    # Another world frame changes nothing; another scale does.
    motion = se3_exp(np.array([3.0, -2.0, 1.0, 0.4, 0.2, -0.7]))
    moved = compare_with_truth(replace(row, camera_to_world=motion @ row.camera_to_world), files)
    assert moved.position_rmse_percent < 1e-2
    scaled = np.array(row.camera_to_world)
    scaled[:, :3, 3] *= 1.05
    worse = compare_with_truth(replace(row, camera_to_world=scaled), files)
    assert worse.position_rmse_m > 0.01
    zoomed = compare_with_truth(replace(row, focal_px=row.focal_px * 1.03), files)
    assert zoomed.focal_mape_percent == pytest.approx(3.0, abs=1e-3)
    off = compare_with_truth(replace(row, metres_per_unit=files.metres_per_unit * 0.98), files)
    assert off.scale_error_percent == pytest.approx(-2.0)
    for errors in (worse, zoomed, off):
        table, good = errors_table(errors)
        assert "NOT MET" in table
        assert not good


@pytest.mark.slow
def test_no_cameras_is_said(files: DemoFiles) -> None:
    empty = replace(
        perfect_row(files),
        verdict="rejected",
        reasons=("no_metric_scale",),
        reason_details=("nothing",),
        **{
            name: np.zeros((0, *shape))
            for name, shape in (
                ("camera_to_world", (4, 4)),
                ("focal_px", (2,)),
                ("principal_point_px", (2,)),
                ("pose_source", ()),
            )
        },
    )
    with pytest.raises(ValueError, match="no_metric_scale"):
        compare_with_truth(empty, files)


@pytest.mark.slow
def test_the_command_runs_end_to_end_and_again(tmp_path) -> None:
    """Small and short: the path and the files are tested, accuracy is the full demo's matter."""
    said: list[str] = []
    out: Path = tmp_path / "demo"
    config = SMALL.model_copy(
        update={"render": SMALL.render.model_copy(update={"num_frames": 25, "zoom": "none"})}
    )
    text, code = run_demo(out, config=config, say=said.append, show_progress=False)
    assert "against ground truth" in text
    assert code in (0, 1)
    assert (out / "report.html").is_file()
    assert list((out / "dataset").rglob("*.parquet"))
    assert len(said) == 2
    again, _ = run_demo(out, config=config, show_progress=False)
    assert again.splitlines()[1:7] == text.splitlines()[1:7]
