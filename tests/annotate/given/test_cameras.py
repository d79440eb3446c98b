"""Cameras in the layouts in which video sets ship them, from files as the sets write them to rows.

They go through `annotate_clip` or a recipe. Each layout has a reading that is wrong and looks right: those are written
as well, and the images have to refuse them. What is damaged in a file: tests/dataset/formats/test_shipped.py; whole
recipes of the corpus: tests/recipes/test_corpus_layouts.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.given.cameras import read_given_cameras
from theodolite.annotate.rendered.files import write_png
from theodolite.annotate.sources.clip import ClipRef, ClipRejection, GivenGeometry
from theodolite.annotate.sources.releases import release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_inverse
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.colmap import write_colmap
from theodolite.dataset.formats.shipped import read_shipped
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.words import POSE_SOURCES
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import RunOptions, run_annotate

from ...support import SHARED
from ...typed import known
from ..simulator import Errors, rendered_truth, simulated
from .layouts import (
    APPLIED,
    DRAWN,
    FPS,
    FRAMES,
    HEIGHT,
    LIGHT,
    METRIC_SCALE,
    STEP,
    WIDTH,
    WORLD,
    Shot,
    annotate,
    clip_of,
    errors_of,
    listed,
    refused_by_the_images,
    stills,
    write_dl3dv,
    write_drawn,
    write_omniworld,
    write_omniworld_metadata,
    write_sekai,
    write_spatialvid,
)

# --- OmniWorld ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_omniworld_scene_through_its_recipe(tmp_path: Path, shot: Shot) -> None:
    write_omniworld(tmp_path, shot)
    write_omniworld_metadata(tmp_path)
    light = [f"annotate.{key}={json.dumps(value)}" for key, value in LIGHT.items()]
    recipe = load_recipe("omniworld", [f"source.root={tmp_path}", *light])
    summary, code = run_annotate(recipe, tmp_path / "out", RunOptions(workers=0), show_progress=False)
    assert code == 0, summary
    first, second = sorted(open_dataset(tmp_path / "out").rows(), key=lambda row: row.clip_id)
    assert (first.clip_id, first.reasons) == ("b04f88d1f85a_split0000", ("too_short",))
    assert second.clip_id == "b04f88d1f85a_split0001"
    assert second.verdict == "accepted", second.reason_details
    assert second.frame_index[0] == 8
    assert (second.frame_index < FRAMES).all()
    rotation, position = errors_of(second, shot.camera_to_world[second.frame_index])
    assert rotation < 1e-3  # float32 storage
    assert position < 1e-5
    np.testing.assert_allclose(second.focal_px, shot.focal, rtol=1e-6)
    assert second.data_licence == "CC-BY-NC-SA-4.0"
    assert second.media == "b04f88d1f85a/color"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "writing"),
    [
        pytest.param(
            "world-to-camera read as camera-to-world", {"convert": se3_inverse}, marks=pytest.mark.thorough
        ),
        pytest.param("scalar last", {"order": (1, 2, 3, 0)}, marks=pytest.mark.thorough),
    ],
)
def test_omniworld_read_wrongly(tmp_path: Path, shot: Shot, wrong: str, writing: dict) -> None:
    write_omniworld(tmp_path, shot, **writing)
    metadata = write_omniworld_metadata(tmp_path)
    clip = list(release_clips("omniworld-game", Release(root=tmp_path, metadata=metadata, source="test")))[1]
    refused_by_the_images(annotate(clip))


@pytest.mark.slow
def test_omniworld_depth_is_no_millimetres(tmp_path: Path, shot: Shot) -> None:
    write_omniworld(tmp_path, shot)
    metadata = write_omniworld_metadata(tmp_path)
    clip = list(release_clips("omniworld-game", Release(root=tmp_path, metadata=metadata, source="test")))[1]
    wrong = replace(
        clip, given=replace(clip.given, depth_kind="z", depth_units_per_metre=1000.0, poses_metric=True)
    )
    row = annotate(wrong)
    assert row.verdict == "rejected"
    assert "depth_does_not_fit_images" in row.reasons, row.reason_details  # told before any bundle


@pytest.mark.slow
@pytest.mark.thorough
def test_omniworld_poses_of_the_neighbouring_split(tmp_path: Path, shot: Shot) -> None:
    """Two splits share no world, so one split's cameras on the other's frames must not pass."""
    scene = write_omniworld(tmp_path, shot)
    info = {"split_num": 2, "split": [list(range(8)), list(range(FRAMES - 8))]}
    (scene / "split_info.json").write_text(json.dumps(info))
    clip = list(release_clips("omniworld-game", Release(root=tmp_path, metadata=None, source="test")))[1]
    refused_by_the_images(annotate(replace(clip, given=replace(clip.given, metres_per_unit=METRIC_SCALE))))


@pytest.mark.slow
def test_omniworld_without_metric_scale_has_no_metres(tmp_path: Path, shot: Shot) -> None:
    write_omniworld(tmp_path, shot)
    clip = list(release_clips("omniworld-game", Release(root=tmp_path, metadata=None, source="test")))[1]
    row = annotate(clip)
    assert row.verdict == "rejected"
    assert row.metres_per_unit is None
    assert row.reasons[0] == "no_metric_scale", row.reason_details


# --- Sekai-Game -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_sekai_game_frame_0_is_the_worlds_gauge(tmp_path: Path, shot: Shot, thorough: bool) -> None:
    """Kept beside simulated networks, as the recipe does: they bring metres and check the poses."""
    path = write_sekai(tmp_path / "clip.npz", shot)
    np.testing.assert_allclose(np.load(path)["extrinsic"][0, :3, :3], np.diag([1, -1, -1]), atol=1e-6)
    clip = clip_of(
        shot, depth_pattern=None, depth_units_per_metre=None, cameras_path=path, cameras_format="sekai-game"
    )
    index = open_clip(clip, DecodeConfig()).timing.frame_index
    truth = rendered_truth(shot.rendered, index)
    calm = Errors(outlier_frames=0.0, metric_outliers=0.0, metric_frame=0.02)
    two_seconds = {"geometry": {"anchor_fps": 4.0}}
    row = annotate(clip, simulated(truth, calm), **two_seconds)
    assert row.verdict == "accepted", row.reason_details
    assert row.stand_in
    assert {POSE_SOURCES[code] for code in row.pose_source} == {"given"}
    np.testing.assert_allclose(row.focal_px, shot.focal, rtol=1e-6)
    np.testing.assert_array_equal(row.frame_index, index)
    # Up to the metres, which the networks guess: the source's own path, exactly.
    true = se3_inverse(shot.camera_to_world[index[:1]]) @ shot.camera_to_world[index]
    factor = np.linalg.norm(row.camera_to_world[-1, :3, 3]) / np.linalg.norm(true[-1, :3, 3])
    assert factor == pytest.approx(1, abs=0.1)
    scaled = true.copy()
    scaled[:, :3, 3] *= factor
    rotation, position = errors_of(row, scaled)
    assert rotation < 0.01  # float32 in the file and in the row
    assert position < 1e-5
    # The agreement is that of the networks with the poses that are kept.
    assert row.agreement_rotation_rad is not None
    assert row.agreement_rotation_rad < np.radians(1)
    # Where the metres come from, and how far they can be trusted.
    assert row.scale_source == "bridge"
    assert row.bridge_value is not None
    assert len(row.bridge_value) == known(row.metrics)["bridge_windows_used"] == 3
    assert row.given_metres_per_unit == pytest.approx(float(np.median(row.bridge_value)), rel=0.05)
    assert 0.07 < known(row.scale_sigma_log) < 0.2
    assert row.is_metric is False  # simulated networks
    assert row.pose_hz == pytest.approx(FPS, rel=0.02)  # one for every frame of the source
    assert row.given_pose_share == 1

    if not thorough:
        return
    flipped = replace(clip.given, cameras_path=write_sekai(tmp_path / "flip.npz", shot, flip=True))
    refused_by_the_images(annotate(replace(clip, given=flipped), simulated(truth, calm), **two_seconds))


@pytest.mark.slow
@pytest.mark.thorough
def test_sekai_recipe_joins_networks_and_shipped_cameras(tmp_path: Path, shot: Shot) -> None:
    """The recipe itself, with tiny random networks. Beside true cameras their smooth depth may pass every gate; the row
    is rejected all the same, and says why."""
    (tmp_path / "sekai-game-walking").mkdir()
    video = tmp_path / "sekai-game-walking/00100100001_0000000_0000048.mp4"
    video.symlink_to(shot.video)
    write_sekai(video.with_suffix(".npz"), shot)
    (tmp_path / "sekai-game-walking/without.mp4").symlink_to(shot.video)
    tiny = ("weights=stand_in", "stand_in_size=tiny", "device=cpu", "pi3x.max_pixels=5000", "anchor_fps=4")
    overrides = [f"annotate.geometry.{setting}" for setting in tiny]
    recipe = load_recipe("sekai-game", [f"source.root={tmp_path}", *overrides])
    run_annotate(recipe, tmp_path / "out", RunOptions(workers=0), show_progress=False)
    with_cameras, without = sorted(open_dataset(tmp_path / "out").rows(), key=lambda row: row.clip_id)
    assert with_cameras.error is None, with_cameras.error
    assert with_cameras.stand_in
    assert with_cameras.mode == "given_pose"
    assert with_cameras.verdict == "rejected"
    assert with_cameras.reasons[-1] == "stand_in_weights"
    assert "stand-in:pi3x-tiny, stand-in:moge-2-tiny" in with_cameras.reason_details[-1]
    assert with_cameras.data_licence == "research-only"
    assert without.reasons == ("cameras_unreadable",)
    assert "without.npz" in without.reason_details[0]
    assert without.num_frames == 32  # what was decoded stays in the row


@pytest.mark.slow
def test_sekai_files_that_are_none(tmp_path: Path, shot: Shot) -> None:
    pixels = np.array([[shot.focal, 0, WIDTH / 2], [0, shot.focal, HEIGHT / 2], [0, 0, 1]])
    for path, message in (
        (write_sekai(tmp_path / "pixels.npz", shot, intrinsic=pixels), "fractions of width and height"),
        (tmp_path / "none.npz", "No such file"),
    ):
        row = annotate(clip_of(shot, cameras_path=path, cameras_format="sekai-game"))
        assert row.reasons == ("cameras_unreadable",)
        assert message in row.reason_details[0]
        assert f"clip c1: {path}" in row.reason_details[0]
    poses = np.load(tmp_path / "pixels.npz")["extrinsic"]
    np.savez(tmp_path / "short.npz", extrinsic=poses[:-1], intrinsic=pixels / [[WIDTH], [HEIGHT], [1]])
    row = annotate(clip_of(shot, cameras_path=tmp_path / "short.npz", cameras_format="sekai-game"))
    assert row.reasons == ("camera_count_mismatch",)
    assert "47 cameras" in row.reason_details[0]


# --- SpatialVID -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_spatialvid_poses_lie_where_the_index_says(tmp_path: Path, shot: Shot) -> None:
    folder = write_spatialvid(tmp_path / "a", shot)
    row = annotate(clip_of(shot, cameras_path=folder, cameras_format="spatialvid"))
    assert row.verdict == "accepted", row.reason_details
    on_grid = np.isin(row.frame_index, np.arange(0, FRAMES, STEP))
    assert 0 < on_grid.sum() < len(on_grid) / 2
    sources = np.array([POSE_SOURCES[code] for code in row.pose_source])
    assert set(sources[on_grid]) == {"given"}
    assert set(sources[~on_grid]) == {"solved"}
    # Sparse poses are not passed off as dense ones.
    assert row.pose_hz == pytest.approx(FPS / STEP, rel=0.02)
    assert row.given_pose_share == on_grid.mean()
    assert known(row.given_gap_max_s) < 2 * STEP / FPS
    assert (row.scale_source, row.is_metric) == ("depth_under_poses", True)
    # Every frame is right, not only those with a pose; straight lines between the poses would be 0.56 degrees off.
    rotation, position = errors_of(row, shot.camera_to_world[row.frame_index])
    assert rotation < 0.2
    assert position < 0.01 * float(row.path_length_m or 0)  # the unit is found from images and depth
    np.testing.assert_allclose(row.focal_px, shot.focal, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "writing"),
    [
        pytest.param(
            "world-to-camera read as camera-to-world", {"convert": se3_inverse}, marks=pytest.mark.thorough
        ),
        pytest.param("scalar first", {"order": (0, 1, 2, 3)}, marks=pytest.mark.thorough),
        ("pose i on frame i", {"index": np.arange(12)}),
        pytest.param("another step", {"index": np.arange(12) * 3}, marks=pytest.mark.thorough),
    ],
)
def test_spatialvid_read_wrongly(tmp_path: Path, shot: Shot, wrong: str, writing: dict) -> None:
    folder = write_spatialvid(tmp_path / "a", shot, **writing)
    refused_by_the_images(annotate(clip_of(shot, cameras_path=folder, cameras_format="spatialvid")))


@pytest.mark.slow
def test_spatialvid_gaps_and_missing_indexes(tmp_path: Path, shot: Shot) -> None:
    half = write_spatialvid(tmp_path / "half", shot, frames=np.arange(0, 21, STEP))
    row = annotate(clip_of(shot, cameras_path=half, cameras_format="spatialvid"))
    assert row.reasons == ("given_poses_sparse",)
    assert "gate given_gap: 1.125 s; required at most 1 s" in row.reason_details[0]
    beyond = write_spatialvid(tmp_path / "beyond", shot, index=np.r_[0:44:STEP, 48])
    row = annotate(clip_of(shot, cameras_path=beyond, cameras_format="spatialvid"))
    assert row.reasons == ("camera_count_mismatch",)
    assert "frame 48" in row.reason_details[0]
    (half / "indexes.txt").unlink()
    row = annotate(clip_of(shot, cameras_path=half, cameras_format="spatialvid"))
    assert row.reasons == ("cameras_unreadable",)
    assert "which frames the 6 poses belong to" in row.reason_details[0]


# --- DL3DV ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dl3dv_stills_find_their_cameras(tmp_path: Path, shot: Shot, thorough: bool) -> None:
    path = write_dl3dv(tmp_path, shot)
    shipped = read_shipped(path, "dl3dv")
    world = WORLD @ shot.camera_to_world
    world[:, :3, 3] /= 3.3
    np.testing.assert_allclose(shipped.camera_to_world, world, atol=1e-9)  # COLMAP's world again
    np.testing.assert_array_equal(shipped.frame_number, np.arange(1, FRAMES + 1))
    clip = stills(shot, path)
    frames, there = open_clip(clip, DecodeConfig()), np.delete(np.arange(FRAMES), 6)
    found = known(read_given_cameras(clip, frames))
    on = np.interp(found.position, np.arange(len(frames)), frames.timing.frame_index)
    shown = np.arange(frames.timing.frame_index[-1] + 1)
    np.testing.assert_allclose(on, shown, atol=1e-9)
    np.testing.assert_allclose(known(found.camera_to_world), world[there[shown]], atol=1e-9)
    np.testing.assert_allclose(known(found.focal_px), shot.focal, rtol=1e-6)
    np.testing.assert_allclose(
        known(found.principal_point_px), [[WIDTH / 2, HEIGHT / 2]] * len(frames), rtol=1e-6
    )
    if not thorough:
        return
    row = annotate(clip)
    assert row.verdict == "accepted", row.reason_details
    true = shot.camera_to_world[there[row.frame_index]]
    rotation, position = errors_of(row, true)
    assert rotation < 1e-3
    assert position < 0.02 * float(row.path_length_m or 0)  # the unit is found from images and depth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "convert"),
    [
        pytest.param(
            "OpenGL axes read as OpenCV axes", lambda world: APPLIED @ world, marks=pytest.mark.thorough
        ),
        pytest.param(
            "applied_transform on the camera's side",
            lambda world: opencv_to_opengl(world) @ APPLIED,
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_dl3dv_read_wrongly(tmp_path: Path, shot: Shot, wrong: str, convert) -> None:
    refused_by_the_images(annotate(stills(shot, write_dl3dv(tmp_path, shot, convert=convert))))


@pytest.mark.slow
def test_dl3dv_intrinsics_of_4k_beside_small_stills(tmp_path: Path, shot: Shot) -> None:
    row = annotate(stills(shot, write_dl3dv(tmp_path, shot, w=WIDTH, h=HEIGHT)))
    assert row.reasons == ("intrinsics_of_another_size",)
    assert "for another size?" in row.reason_details[0]


@pytest.mark.slow
def test_dl3dv_stills_are_found_in_their_video(tmp_path: Path, shot: Shot) -> None:
    path = write_drawn(tmp_path, shot, DRAWN)
    clip = clip_of(shot, cameras_path=path, cameras_format="dl3dv", stills_path=path.parent / "images_8")
    frames = open_clip(clip, DecodeConfig())
    found = read_given_cameras(clip, frames)
    assert found is not None
    np.testing.assert_array_equal(
        np.interp(found.position, np.arange(len(frames)), frames.timing.frame_index), DRAWN
    )
    row = annotate(clip)
    assert row.verdict == "accepted", row.reason_details
    rotation, position = errors_of(row, shot.camera_to_world[row.frame_index])
    assert rotation < 0.2
    assert position < 0.015 * float(row.path_length_m or 0)  # the unit is found from images and depth
    sources = np.array([POSE_SOURCES[code] for code in row.pose_source])
    np.testing.assert_array_equal(sources == "given", np.isin(row.frame_index, DRAWN))
    # A window takes the stills that it shows; those just outside of it are not squeezed in.
    window = replace(clip, start_s=10 / FPS, end_s=40 / FPS)
    shown = open_clip(window, DecodeConfig())
    inside = read_given_cameras(window, shown)
    assert inside is not None
    source = np.interp(inside.position, np.arange(len(shown)), shown.timing.frame_index)
    np.testing.assert_array_equal(source, [12, 14, 21, 26, 29, 36, 38])


def test_rows_for_a_window_are_counted_against_the_whole_source(tmp_path: Path, shot: Shot) -> None:
    """A window near the beginning of a long video ends the search for its frames; rows say nothing of their frames but
    by their number."""
    path = tmp_path / "video.mp4"
    with VideoWriter(path, width=64, height=48, fps=16.0) as video:
        for i in range(400):
            video.write(np.full((48, 64, 3), i % 200, np.uint8))
    poses = tmp_path / "poses.txt"
    clip = replace(
        clip_of(shot, camera_to_world_path=poses), media_path=path, media_kind="video", start_s=1.0, end_s=2.0
    )
    for count in (400, 399, 120):
        np.savetxt(poses, np.tile(np.eye(4).ravel(), (count, 1)))
        frames = open_clip(clip, DecodeConfig())
        assert frames.num_source_frames == 400
        if count == 400:
            given = read_given_cameras(clip, frames)
            assert given is not None
            assert given.camera_to_world is not None
            assert len(given.camera_to_world) == len(frames)
            continue
        with pytest.raises(ClipRejection, match=f"{count} poses in .* has 400 frames"):
            read_given_cameras(clip, frames)
    truth = replace(clip, given=GivenGeometry(), truth_camera_to_world_path=poses)
    assert open_clip(truth, DecodeConfig()).num_source_frames == 400


@pytest.mark.slow
def test_dl3dv_stills_of_another_video_and_of_none(tmp_path: Path, shot: Shot) -> None:
    path = write_drawn(tmp_path, shot, DRAWN)
    clip = clip_of(shot, cameras_path=path, cameras_format="dl3dv")
    row = annotate(clip)
    assert row.reasons == ("cameras_not_on_frames",)
    assert "stills_path names no folder" in row.reason_details[0]
    other = tmp_path / "other"
    other.mkdir()
    for name in sorted(p.name for p in (path.parent / "images_8").iterdir()):
        picture = np.random.default_rng(5).integers(0, 255, (6, 10, 3), np.uint8)
        write_png(other / name, np.kron(picture, np.ones((24, 24, 1), np.uint8)))
    row = annotate(replace(clip, given=replace(clip.given, stills_path=other)))
    assert row.reasons == ("cameras_not_on_frames",)
    assert "none of the 10 cameras" in row.reason_details[0]


@pytest.mark.skipif(not (SHARED / "fox-transforms").is_dir(), reason="the real recordings are not here")
def test_a_real_transforms_json() -> None:
    folder = SHARED / "fox-transforms"
    clip = ClipRef(
        clip_id="fox",
        source="test",
        original_id="fox",
        media_kind="images",
        media_path=folder / "images_4",
        source_fps=4.0,
        given=GivenGeometry(cameras_path=folder / "transforms.json", cameras_format="dl3dv"),
    )
    found = read_given_cameras(clip, open_clip(clip, DecodeConfig(fps="native")))
    assert found is not None
    np.testing.assert_array_equal(found.position, np.arange(50))  # 67 cameras, 50 images
    np.testing.assert_allclose(known(found.focal_px)[0], [1375.52 / 4, 1374.49 / 4])


@pytest.mark.slow
def test_colmap_stills_find_their_frames_and_cameras(tmp_path: Path, shot: Shot, thorough: bool) -> None:
    """A model of stills that were drawn from a video in another batch: kept where they are, followed between."""
    scene = "0" * 63 + "a"
    world = WORLD @ shot.camera_to_world[DRAWN]
    world[:, :3, 3] /= 3.3
    model = CameraClip(
        name="scene",
        camera_to_world=world,
        focal_px=np.full((len(DRAWN), 2), 4.0 * shot.focal),
        principal_point_px=np.tile([2.0 * WIDTH, 2.0 * HEIGHT], (len(DRAWN), 1)),
        height=4 * HEIGHT,
        width=4 * WIDTH,
        image_names=tuple(f"frame_{i + 1:05d}.png" for i in range(len(DRAWN))),
    )
    root = tmp_path / "dl3dv"
    write_colmap(model, root / "1K" / scene / "colmap", binary=True)
    images = root / "2K" / scene / "images_8"
    images.mkdir(parents=True)
    for number, source in enumerate(DRAWN, start=1):
        (images / f"frame_{number:05d}.png").symlink_to(shot.folder / f"color/{source:06d}.png")
    (root / "3K" / scene).mkdir(parents=True)
    (root / "3K" / scene / "video.mp4").symlink_to(shot.video)
    (clip,) = listed("dl3dv-colmap", root).values()
    frames = open_clip(clip, DecodeConfig())
    found = known(read_given_cameras(clip, frames))
    on = np.interp(found.position, np.arange(len(frames)), frames.timing.frame_index)
    np.testing.assert_allclose(on, DRAWN, atol=1e-9)
    np.testing.assert_allclose(known(found.camera_to_world), world, atol=1e-6)
    np.testing.assert_allclose(known(found.focal_px), shot.focal, rtol=1e-6)
    if not thorough:
        return
    depth = clip_of(shot).given
    row = annotate(
        replace(
            clip,
            given=replace(
                clip.given,
                depth_pattern=depth.depth_pattern,
                depth_units_per_metre=depth.depth_units_per_metre,
            ),
        )
    )
    assert row.verdict == "accepted", row.reason_details
    rotation, position = errors_of(row, shot.camera_to_world[row.frame_index])
    assert rotation < 0.2
    assert position < 0.015 * float(row.path_length_m or 0)
    np.testing.assert_allclose(row.focal_px, shot.focal, rtol=1e-6)


def test_images_without_usable_numbers(tmp_path: Path, shot: Shot) -> None:
    path = write_dl3dv(tmp_path, shot)
    clip = stills(shot, path)
    (path.parent / "images_8" / "cover.png").symlink_to(shot.folder / "color/000000.png")
    with pytest.raises(ClipRejection, match=r"mixed_images.*'cover.png' \(1\)"):
        open_clip(clip, DecodeConfig())
    clip = replace(clip, media_pattern="*.png")  # all of them, says the source
    with pytest.raises(ClipRejection, match=r"cameras_not_on_frames.*'cover.png'"):
        read_given_cameras(clip, open_clip(clip, DecodeConfig()))
