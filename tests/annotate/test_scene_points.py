"""Points of a clip with known cameras, against the exact depth of a rendered one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.render import RenderConfig, RenderedClip, render_clip, write_clip
from theodolite.annotate.scene_points import scene_points
from theodolite.annotate.tracks import TracksConfig
from theodolite.dataset import cameras as cam
from theodolite.dataset.rows import Row
from theodolite.dataset.store import prepare_output, write_part
from theodolite.recipes.cli import app
from typer.testing import CliRunner

CONFIG = TracksConfig(num_flow_tracks=150, num_descriptors=100)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[RenderedClip, Row, Path]:
    """A second of a walk with a zoom, as a lossless clip and its row."""
    config = RenderConfig(
        width=320, height=180, num_frames=24, speed=1.5, zoom="ramp", zoom_factor=1.2, seed=2
    )
    clip, folder = render_clip(config), tmp_path_factory.mktemp("rendered")
    files = write_clip(clip, folder, media="images", depth_units_per_metre=None)
    focal, centre = cam.split_intrinsics(clip.intrinsics)
    row = Row(
        clip_id="walk",
        source="rendered",
        original_id="walk",
        media_kind="images",
        media=str(files.media_path.relative_to(folder)),
        mode="given_depth",
        data_licence="CC0-1.0",
        data_redistributable=True,
        stand_in=False,
        recipe_hash="recipe",
        package_version="0",
        verdict="accepted",
        height=180,
        width=320,
        fps=16.0,
        frame_index=np.arange(24),
        time_s=clip.time_s,
        camera_to_world=clip.camera_to_world,
        focal_px=focal,
        principal_point_px=centre,
        pose_source=np.full(24, 3),
    )
    return clip, row, folder


def depth_errors(clip: RenderedClip, points_world: np.ndarray, frame: int) -> np.ndarray:
    """Relative error in depth of the points that `frame` shows; those hidden behind something are left out."""
    pixels, z = cam.project(points_world[None], clip.camera_to_world[[frame]], clip.intrinsics[[frame]])
    depth = clip.frame(frame).depth_m
    inside = (z[0] > 0) & (pixels[0] >= 1).all(1) & (pixels[0] < [319, 179]).all(1)
    x, y = pixels[0][inside].astype(int).T
    error = z[0][inside] / depth[y, x] - 1
    return error[error < 0.3]


def test_points_lie_on_the_scene_in_metres(rendered: tuple[RenderedClip, Row, Path]) -> None:
    clip, row, folder = rendered
    points, colours = scene_points(row, folder, config=CONFIG)
    assert points.shape == colours.shape
    assert (points.dtype, colours.dtype) == (np.float32, np.uint8)
    assert len(points) > 50
    for frame in (12, 23):
        errors = depth_errors(clip, points, frame)
        assert len(errors) > 30
        # Half a degree a pixel: half of the tracks may slide by the fifth of a pixel that is 2 to 3 % of depth.
        assert np.median(np.abs(errors)) < 0.03
    # Colours are those of the pictures where the points are seen.
    pixels, _z = cam.project(points[None], clip.camera_to_world[[12]], clip.intrinsics[[12]])
    inside = ((pixels[0] >= 2) & (pixels[0] < [318, 178])).all(1)
    x, y = pixels[0][inside].astype(int).T
    shown = clip.frame(12).rgb[y, x].astype(float)
    assert np.corrcoef(shown.ravel(), colours[inside].astype(float).ravel())[0, 1] > 0.7


def test_wrong_cameras_and_no_parallax_give_no_points(rendered: tuple[RenderedClip, Row, Path]) -> None:
    _clip, row, folder = rendered
    good, _ = scene_points(row, folder, config=CONFIG)
    wrong, _ = scene_points(replace(row, camera_to_world=row.camera_to_world[::-1]), folder, config=CONFIG)
    assert len(wrong) < 0.2 * len(good)
    still = np.tile(row.camera_to_world[:1], (24, 1, 1))
    assert len(scene_points(replace(row, camera_to_world=still), folder, config=CONFIG)[0]) < 0.2 * len(good)


def test_a_row_without_cameras(
    rendered: tuple[RenderedClip, Row, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _clip, row, folder = rendered
    source = row.pose_source.copy()
    source[3] = 0
    with pytest.raises(ValueError, match="clip walk: points need a camera on every frame"):
        scene_points(replace(row, pose_source=source), folder)
    with pytest.raises(ValueError, match=r"clip walk: .*no such folder"):
        scene_points(row, folder / "elsewhere")


def test_rerun_export_shows_points_and_pictures(
    rendered: tuple[RenderedClip, Row, Path], tmp_path: Path
) -> None:
    rerun = shutil.which("rerun", path=str(Path(sys.executable).parent))
    if importlib.util.find_spec("rerun") is None or rerun is None:
        pytest.skip("rerun-sdk is not installed")
    _clip, row, folder = rendered
    data = tmp_path / "data"
    prepare_output(data, recipe_hash=row.recipe_hash)
    write_part(data, [row], shard_id="a", recipe_hash=row.recipe_hash)
    arguments = ["export", data, "--format", "rerun", "--out", tmp_path / "viz", "--media-root", folder]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    shown = subprocess.run(
        [rerun, "rrd", "print", str(tmp_path / "viz" / "walk.rrd")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for entity in ("/world/points", "/world/camera/image", "/world/path"):
        assert entity in shown
