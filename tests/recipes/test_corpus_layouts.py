"""Packaged recipes of the corpus on small trees of the sets that they read, down to rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.sources.archives import unpack
from theodolite.annotate.sources.releases import LAYOUTS
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_inverse
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.sana import write_sana_zip
from theodolite.dataset.metrics.trajectory import trajectory_error
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.rows import Row
from theodolite.dataset.words import POSE_SOURCES
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import RunOptions, run_annotate

from ..annotate.given.layouts import (
    FRAMES,
    HEIGHT,
    LIGHT,
    METRIC_SCALE,
    WIDTH,
    WORLD,
    Shot,
    errors_of,
    listed,
    refused_by_the_images,
    write_omniworld,
    write_omniworld_metadata,
    write_shot,
)
from ..annotate.simulator import Errors, rendered_truth, simulated
from ..typed import known


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Shot:
    return write_shot(tmp_path_factory.mktemp("shot"))


NO_NETWORK = [
    "annotate.geometry={sequence: given, anchor: none}",
    "source.windows=null",
    "output.clips_per_shard=1",
]


def run_recipe(name: str, root: Path, out: Path, *overrides: str) -> list[Row]:
    """Rows of a packaged recipe on a tree, solved lightly."""
    light = [f"annotate.{key}={json.dumps(value)}" for key, value in LIGHT.items()]
    recipe = load_recipe(name, [f"source.root={root}", *light, *overrides])
    summary, code = run_annotate(recipe, out, RunOptions(workers=0), show_progress=False)
    assert code == 0, summary
    return sorted(open_dataset(out).rows(), key=lambda row: row.clip_id)


def write_rendered(folder: Path, shot: Shot, poses: np.ndarray) -> None:
    folder.mkdir(parents=True)
    (folder / "video.mp4").symlink_to(shot.video)
    np.save(folder / "poses.npy", poses)
    np.save(folder / "intrinsics.npy", np.array([shot.focal, shot.focal, WIDTH / 2, HEIGHT / 2]))
    (folder / "meta.json").write_text(json.dumps({"metres_per_unit": METRIC_SCALE}))


@pytest.mark.slow
def test_rendered_clips_through_their_recipe(tmp_path: Path, shot: Shot, thorough: bool) -> None:
    """Exact poses stay as they are; those of the inverse, or in OpenGL axes, are refused by the images."""
    world = WORLD @ shot.camera_to_world
    world[:, :3, 3] /= METRIC_SCALE
    root = tmp_path / "renders"
    write_rendered(root / "scene/good", shot, world)
    if thorough:
        write_rendered(root / "scene/inverse", shot, se3_inverse(world))
        write_rendered(root / "scene/opengl", shot, opencv_to_opengl(world))
    good, *wrong = run_recipe("corpus/dl3dv-gs", root, tmp_path / "out", *NO_NETWORK)
    assert good.verdict == "accepted", good.reason_details
    rotation, position = errors_of(good, shot.camera_to_world[good.frame_index])
    assert rotation < 1e-3  # float32 storage
    assert position < 1e-5
    np.testing.assert_allclose(good.focal_px, shot.focal, rtol=1e-6)
    assert len(wrong) == 2 * thorough
    for row in wrong:
        refused_by_the_images(row)


@pytest.mark.slow
def test_sana_zips_through_their_recipe(tmp_path: Path, shot: Shot) -> None:
    """Unpacked by the layout's own rule, with intrinsics of a capture nine times as large and a scale of their own."""
    world = WORLD @ shot.camera_to_world
    world[:, :3, 3] /= METRIC_SCALE
    large = CameraClip(
        name="00100100001_0008250_0010050_s000000",
        camera_to_world=world,
        focal_px=np.full((FRAMES, 2), 9.0 * shot.focal),
        principal_point_px=np.tile([9.0 * WIDTH / 2, 9.0 * HEIGHT / 2], (FRAMES, 1)),
        height=9 * HEIGHT,
        width=9 * WIDTH,
    )
    root = tmp_path / "sana/data/some"
    write_sana_zip([large], root / "sekai_00000000.zip", videos={large.name: shot.video})
    (root / "sekai_00000000_metric_scale_stats.json").write_text(
        json.dumps({large.name: {"median": METRIC_SCALE}})
    )
    place = known(LAYOUTS["sana-wm"].place)
    done = unpack(root / "sekai_00000000.zip", tmp_path / "sana", place)
    assert (done.written, done.problems) == (2, [])
    (row,) = run_recipe("corpus/sana-wm", tmp_path / "sana", tmp_path / "out", *NO_NETWORK)
    assert row.verdict == "accepted", row.reason_details
    rotation, position = errors_of(row, shot.camera_to_world[row.frame_index])
    assert rotation < 1e-3
    assert position < 1e-5
    np.testing.assert_allclose(row.focal_px, shot.focal, rtol=1e-6)
    assert row.data_licence == "fair-noncommercial-research"


@pytest.mark.slow
def test_omniworld_across_splits_through_its_recipe(tmp_path: Path, shot: Shot) -> None:
    """One clip over two splits whose shipped worlds differ: depth is given, cameras are estimated in metres."""
    write_omniworld(tmp_path, shot)
    write_omniworld_metadata(tmp_path)
    overrides = ["annotate.geometry.anchor=none", "source.windows={frames: 32, most: 1}"]
    (row,) = run_recipe("corpus/omniworld", tmp_path, tmp_path / "out", *overrides)
    assert row.verdict == "accepted", row.reason_details
    assert (row.clip_id, row.mode, row.num_frames) == ("b04f88d1f85a_f000000", "given_depth", 32)
    rotation, position = errors_of(row, shot.camera_to_world[row.frame_index])
    assert rotation < 0.7  # the largest, unaligned; estimated on frames of 240x144
    assert position < 0.035 * float(row.path_length_m or 0)
    # What an accepted row promises is the aligned error and the focal length.
    error = trajectory_error(row.camera_to_world, shot.camera_to_world[row.frame_index])
    assert error.ate_percent_of_path < 2.0
    np.testing.assert_allclose(row.focal_px, shot.focal, rtol=0.03)
    assert row.metrics is not None
    assert {"vmaf_motion", "flow_px", "saturation", "num_cuts"} <= set(row.metrics)


@pytest.mark.slow
def test_walks_and_mira_are_estimated_from_their_whole_videos(
    tmp_path: Path, shot: Shot, thorough: bool
) -> None:
    """Stretches of longer videos, cut by decoding: frames are those of the stretch, and nothing given is believed."""
    walking = tmp_path / "walking"
    (walking / "raw_video").mkdir(parents=True)
    (walking / "raw_video/abcdefghijk.mp4").symlink_to(shot.video)
    (walking / "sekai-real-walking-hq.csv").write_text(
        "videoFile,caption\nabcdefghijk_0000015_0000060.mp4,a\n"
    )
    mira = tmp_path / "mira"
    (mira / "raw_video").mkdir(parents=True)
    (mira / "raw_video/abcdefghijk.mp4").symlink_to(shot.video)
    (mira / "miradata_v1_9k.csv").write_text(
        "clip_id,video_id,fps,timestamp\n7.1,abcdefghijk,24.0,\"['0:0:0.5', '0:0:2.0']\"\n"
    )
    for name, layout, root in (("walk", "sekai-walking", walking), ("mira", "miradata", mira)):
        (clip,) = listed(layout, root).values()
        timing = open_clip(clip, DecodeConfig()).timing
        assert timing.frame_index[0] == 12, name  # half a second in
        assert len(timing.frame_index) == 24
        if name == "mira" and not thorough:  # solved as the walk is
            continue
        truth, calm = rendered_truth(shot.rendered), Errors()
        row = annotate_clip(
            clip,
            AnnotateConfig.model_validate(LIGHT),
            mode="estimate",
            recipe_hash="0" * 16,
            estimators=simulated(truth, calm),
        )
        assert row.error is None, row.error
        assert row.frame_index[0] == 12, name  # half a second in
        assert row.num_frames == 24
        assert "given" not in {POSE_SOURCES[code] for code in row.pose_source}
