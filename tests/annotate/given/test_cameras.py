"""Geometry in the layouts in which video sets ship it, from files as the sets write them to rows.

Every layout is written from a rendered clip whose cameras are known, and goes through `annotate_clip` or a recipe. Each
has a reading that is wrong and looks right: those are written as well, and the images have to refuse them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.given import omniworld_depth
from theodolite.annotate.given.cameras import read_given_cameras
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_depth_png, write_png
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.archives import unpack
from theodolite.annotate.sources.clip import ClipRef, ClipRejection, GivenGeometry
from theodolite.annotate.sources.releases import LAYOUTS, release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation, rotation_angle
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_exp, se3_inverse
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.colmap import write_colmap
from theodolite.dataset.formats.sana import write_sana_zip
from theodolite.dataset.formats.shipped import read_shipped
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.trajectory import trajectory_error
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.rows import Row
from theodolite.dataset.schema import POSE_SOURCES
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import RunOptions, run_annotate

from ...support import SHARED
from ...typed import known
from ..simulator import Errors, rendered_truth, simulated

HEIGHT, WIDTH, FRAMES, FPS = 144, 240, 48, 24.0
METRIC_SCALE = 2.5
"""Metres of one unit, as OmniWorld's metadata state them for a scene."""
WORLD = se3_exp(np.array([3.0, -1.0, 2.0, 0.4, -0.3, 1.1]))
"""Where the source's world lies in the renderer's: nobody may depend on it."""
LIGHT = {
    "tracks": {"num_flow_tracks": 90, "num_descriptors": 120, "max_loops_per_keyframe": 0},
    "bundle": {"focal_model": "constant", "max_iterations": 8},
}


@dataclass(frozen=True)
class Shot:
    """A rendered clip in files: video, images from 000000.png, depth in millimetres, depth as OmniWorld stores it."""

    folder: Path
    rendered: object
    camera_to_world: np.ndarray
    focal: float

    @property
    def video(self) -> Path:
        return self.folder / "rgb.mp4"

    @property
    def world_to_camera(self) -> np.ndarray:
        """In a world of the source's own."""
        return se3_inverse(WORLD @ self.camera_to_world)


@pytest.fixture(scope="module")
def shot(tmp_path_factory) -> Shot:
    rendered = render_clip(
        RenderConfig(
            width=WIDTH,
            height=HEIGHT,
            num_frames=FRAMES,
            fps=FPS,
            seed=3,
            speed=1.5,
            depth_width=WIDTH // 2,
            depth_height=HEIGHT // 2,
        )
    )
    folder = tmp_path_factory.mktemp("shot")
    for name in ("color", "depth", "depth_mm"):
        (folder / name).mkdir()
    with VideoWriter(folder / "rgb.mp4", width=WIDTH, height=HEIGHT, fps=FPS) as video:
        for i, frame in enumerate(rendered):
            video.write(frame.rgb)
            write_png(folder / f"color/{i:06d}.png", frame.rgb)
            write_depth_png(folder / f"depth_mm/{i:06d}.png", frame.depth_m, units_per_metre=1000.0)
            # The released decoding solved for the stored number; the largest stands for 250 units.
            d = 4 * frame.depth_m.astype(np.float64) / METRIC_SCALE
            write_png(folder / f"depth/{i:06d}.png", np.rint(65535 * d / (1 + 0.999 * d)).astype(np.uint16))
    return Shot(folder, rendered, rendered.camera_to_world, float(rendered.intrinsics[0, 0, 0]))


def clip_of(shot: Shot, **given) -> ClipRef:
    """The video with its depth in millimetres, and cameras as given."""
    geometry = {
        "depth_pattern": str(shot.folder / "depth_mm/{frame:06d}.png"),
        "depth_units_per_metre": 1000.0,
    }
    return ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="video",
        media_path=shot.video,
        data_licence="CC0-1.0",
        given=GivenGeometry(**(geometry | given)),
    )


def annotate(clip: ClipRef, estimators=None, **config) -> Row:
    row = annotate_clip(
        clip,
        AnnotateConfig.model_validate(LIGHT | config),
        mode="given_pose",
        recipe_hash="0" * 16,
        estimators=estimators,
    )
    assert row.error is None, row.error
    return row


def errors_of(row: Row, camera_to_world: np.ndarray) -> tuple[float, float]:
    """Largest rotation error in degrees and position error in metres, frame 0 at the origin, no alignment."""
    true = se3_inverse(camera_to_world[:1]) @ camera_to_world
    ours = row.camera_to_world.astype(np.float64)
    angle = rotation_angle(np.swapaxes(true[:, :3, :3], 1, 2) @ ours[:, :3, :3])
    return float(np.degrees(angle.max())), float(
        np.linalg.norm(ours[:, :3, 3] - true[:, :3, 3], axis=1).max()
    )


def refused_by_the_images(row: Row) -> None:
    assert row.verdict == "rejected"
    assert "given_poses_disagree" in row.reasons, row.reason_details


# --- OmniWorld ------------------------------------------------------------------------------------


def write_omniworld(folder: Path, shot: Shot, *, convert=lambda w2c: w2c, order=(0, 1, 2, 3)) -> Path:
    """Two splits, 0 to 7 and 8 to 47, each with a world of its own; returns the scene's folder."""
    scene = folder / "b04f88d1f85a"
    (scene / "camera").mkdir(parents=True)
    for name in ("color", "depth"):
        (scene / name).symlink_to(shot.folder / name)
    splits = [list(range(8)), list(range(8, FRAMES))]
    (scene / "split_info.json").write_text(json.dumps({"split_num": 2, "split": splits}))
    (scene / "fps.txt").write_text("FPS: 24.0 \nProcessing time: 3.1 s\n")
    for number, frames in enumerate(splits):
        w2c = shot.world_to_camera[frames] @ se3_inverse(shot.world_to_camera[frames[0]])[None]
        w2c = convert(w2c)
        content = {
            "focals": [shot.focal] * len(frames),
            "cx": WIDTH / 2,
            "cy": HEIGHT / 2,
            "quats": quaternion_wxyz_from_rotation(w2c[:, :3, :3])[:, list(order)].tolist(),
            "trans": (w2c[:, :3, 3] / METRIC_SCALE).tolist(),
        }
        (scene / f"camera/split_{number}.json").write_text(json.dumps(content))
    return scene


def write_omniworld_metadata(folder: Path) -> Path:
    path = folder / "metadata" / "omniworld_game_metadata.csv"
    path.parent.mkdir()
    path.write_text(
        "UID,Video Path,Annotation Path,Img Num,Split Num,FPS,Resolution,Test Split Index,Metric Scale\n"
        f'b04f88d1f85a,v,a,{FRAMES},2,24.0,240×144,"0,1",{METRIC_SCALE}\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.slow
def test_omniworld_scene_through_its_recipe(tmp_path: Path, shot: Shot) -> None:
    write_omniworld(tmp_path, shot)
    write_omniworld_metadata(tmp_path)
    recipe = load_recipe("omniworld", [f"source.root={tmp_path}"])
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


def test_omniworld_depth_table() -> None:
    """250 u / (65535000 - 999 u), the released formula multiplied out; 98 is too near, 65501 is sky."""
    stored = np.array([[0, 98, 99, 13107, 32768], [60000, 65499, 65500, 65501, 65535]], np.uint16)
    depth = omniworld_depth(stored)
    assert np.isnan(depth[0, :2]).all()
    np.testing.assert_allclose(depth[0, 2:], [3.78232e-4, 0.0624844, 0.249758], rtol=3e-6)
    np.testing.assert_allclose(depth[1, :3], [2.680965, 161.32918, 162.93532], rtol=3e-6)
    assert np.isposinf(depth[1, 3:]).all()


# --- Sekai-Game -----------------------------------------------------------------------------------


def write_sekai(path: Path, shot: Shot, *, flip: bool = False, intrinsic: np.ndarray | None = None) -> Path:
    """`extrinsic` is camera-to-world; its world lies so that frame 0 has the rotation diag(1, -1, -1)."""
    gauge = np.diag([1.0, -1, -1, 1])
    poses = gauge @ se3_inverse(shot.camera_to_world[:1]) @ shot.camera_to_world
    poses[:, :3, 3] /= np.abs(poses[:, :3, 3]).max()
    if flip:
        poses = poses @ np.diag([1.0, -1, -1, 1])
    normalised = np.array([[shot.focal / WIDTH, 0, 0.5], [0, shot.focal / HEIGHT, 0.5], [0, 0, 1]])
    np.savez(
        path,
        extrinsic=poses.astype(np.float32),
        intrinsic=(normalised if intrinsic is None else intrinsic).astype(np.float32),
    )
    return path


@pytest.mark.slow
def test_sekai_game_frame_0_is_the_worlds_gauge(tmp_path: Path, shot: Shot) -> None:
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
    assert len(row.bridge_value) == row.metrics["bridge_windows_used"] == 3
    assert row.given_metres_per_unit == pytest.approx(float(np.median(row.bridge_value)), rel=0.05)
    assert 0.07 < row.scale_sigma_log < 0.2
    assert row.is_metric is False  # simulated networks
    assert row.pose_hz == pytest.approx(FPS, rel=0.02)  # one for every frame of the source
    assert row.given_pose_share == 1

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

STEP = 4
"""int(24 / 5): a pose for every fourth frame; most of them are no frames of the 16 fps clip."""


def write_spatialvid(
    folder: Path,
    shot: Shot,
    *,
    frames: np.ndarray | None = None,
    index: np.ndarray | None = None,
    convert=lambda w2c: w2c,
    order=(1, 2, 3, 0),
) -> Path:
    folder.mkdir()
    frames = np.arange(0, FRAMES, STEP) if frames is None else frames
    w2c = convert(shot.world_to_camera[frames])
    rows = np.c_[w2c[:, :3, 3] / 7.0, quaternion_wxyz_from_rotation(w2c[:, :3, :3])[:, list(order)]]
    np.save(folder / "poses.npy", rows.astype(np.float32))
    lens = np.array([shot.focal / WIDTH, shot.focal / HEIGHT, 0.5, 0.5], np.float32)
    np.save(folder / "intrinsics.npy", np.tile(lens, (len(frames), 1)))
    lines = [f"{i} {frame}" for i, frame in enumerate(frames if index is None else index)]
    (folder / "indexes.txt").write_text("\n".join([f"# total {len(frames)} indexes", *lines]) + "\n")
    return folder


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
    assert row.given_gap_max_s < 2 * STEP / FPS
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

APPLIED = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
"""World axes as the nerfstudio of DL3DV's time wrote them."""


def write_dl3dv(folder: Path, shot: Shot, *, convert=None, lost: int = 7, **fields) -> Path:
    """A scene with stills from 1, one of them lost, intrinsics for eight times their size."""
    images = folder / "images_8"
    images.mkdir(parents=True)
    world = WORLD @ shot.camera_to_world
    world[:, :3, 3] /= 3.3
    matrices = APPLIED @ opencv_to_opengl(world) if convert is None else convert(world)
    frames = []
    for i in range(FRAMES):
        name = f"frame_{i + 1:05d}.png"
        if i + 1 != lost:
            (images / name).symlink_to(shot.folder / f"color/{i:06d}.png")
        frames.append(
            {
                "file_path": f"images/{name}",
                "transform_matrix": matrices[i].tolist(),
                "colmap_im_id": FRAMES - i,
            }
        )
    content = {
        "w": 8 * WIDTH, "h": 8 * HEIGHT, "fl_x": 8 * shot.focal, "fl_y": 8 * shot.focal, "cx": 4 * WIDTH,
        "cy": 4 * HEIGHT, "k1": 1e-4, "k2": -2e-4, "p1": 1e-4, "p2": 0.0, "camera_model": "OPENCV",
        "frames": frames[::-1], "applied_transform": APPLIED[:3].tolist(),
    }  # fmt: skip
    path = folder / "transforms.json"
    path.write_text(json.dumps(content | fields))
    return path


def stills(shot: Shot, path: Path, **fields) -> ClipRef:
    """The scene's stills, with depth by their place among those that are there."""
    depth = path.parent / "depth"
    depth.mkdir()
    for i, name in enumerate(sorted((path.parent / "images_8").iterdir())):
        (depth / f"{i:06d}.png").symlink_to(shot.folder / f"depth_mm/{int(name.stem[-5:]) - 1:06d}.png")
    clip = clip_of(
        shot, depth_pattern=str(depth / "{frame:06d}.png"), cameras_path=path, cameras_format="dl3dv"
    )
    return replace(clip, media_kind="images", media_path=path.parent / "images_8", source_fps=FPS, **fields)


@pytest.mark.slow
def test_dl3dv_stills_find_their_cameras(tmp_path: Path, shot: Shot) -> None:
    path = write_dl3dv(tmp_path, shot)
    shipped = read_shipped(path, "dl3dv")
    world = WORLD @ shot.camera_to_world
    world[:, :3, 3] /= 3.3
    np.testing.assert_allclose(shipped.camera_to_world, world, atol=1e-9)  # COLMAP's world again
    np.testing.assert_array_equal(shipped.frame_number, np.arange(1, FRAMES + 1))
    row = annotate(stills(shot, path))
    assert row.verdict == "accepted", row.reason_details
    there = np.delete(np.arange(FRAMES), 6)
    true = shot.camera_to_world[there[row.frame_index]]
    rotation, position = errors_of(row, true)
    assert rotation < 1e-3
    assert position < 0.02 * float(row.path_length_m or 0)  # the unit is found from images and depth
    np.testing.assert_allclose(row.focal_px, shot.focal, rtol=1e-6)
    np.testing.assert_allclose(row.principal_point_px, [[WIDTH / 2, HEIGHT / 2]] * row.num_frames, rtol=1e-6)


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


def test_dl3dv_intrinsics_of_4k_beside_small_stills(tmp_path: Path, shot: Shot) -> None:
    row = annotate(stills(shot, write_dl3dv(tmp_path, shot, w=WIDTH, h=HEIGHT)))
    assert row.reasons == ("intrinsics_of_another_size",)
    assert "for another size?" in row.reason_details[0]


DRAWN = np.array([1, 5, 12, 14, 21, 26, 29, 36, 38, 45])
"""Frames of the video that became stills 1, 2, ...: one in each stretch of five, not at even distances."""


def write_drawn(folder: Path, shot: Shot, drawn: np.ndarray) -> Path:
    """A scene whose stills were drawn from the video."""
    path = write_dl3dv(folder, shot, lost=-1)
    content = json.loads(path.read_text())
    by_name = {frame["file_path"]: frame for frame in content["frames"]}
    images = folder / "images_8"
    for still in images.iterdir():
        still.unlink()
    frames = []
    for number, source in enumerate(drawn, start=1):
        name = f"images/frame_{number:05d}.png"
        frames.append(by_name[f"images/frame_{source + 1:05d}.png"] | {"file_path": name})
        (images / Path(name).name).symlink_to(shot.folder / f"color/{source:06d}.png")
    path.write_text(json.dumps(content | {"frames": frames}))
    return path


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


# --- files that are not what they claim to be -----------------------------------------------------


def _omniworld_file(folder: Path, **changes) -> Path:
    (folder / "camera").mkdir()
    (folder / "split_info.json").write_text(json.dumps(changes.pop("info", {"split": [[4, 5, 7]]})))
    content = {
        "focals": [900.0, 901, 902], "cx": 640, "cy": 360, "quats": [[1, 0, 0, 0]] * 3, "trans": [[0, 0, 0]] * 3
    }  # fmt: skip
    path = folder / "camera/split_0.json"
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))
    return path


def test_omniworld_rows_belong_to_the_listed_frames(tmp_path: Path) -> None:
    shipped = read_shipped(_omniworld_file(tmp_path, trans=[[0, 0, 0], [1, 0, 0], [0, 0, 2]]), "omniworld")
    np.testing.assert_array_equal(shipped.frame_number, [4, 5, 7])
    np.testing.assert_allclose(shipped.intrinsics[:, 0, 0], [900, 901, 902])
    np.testing.assert_allclose(shipped.camera_to_world[:, :3, 3], [[0, 0, 0], [-1, 0, 0], [0, 0, -2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quats": [[1, 0, 0, 0]] * 2}, "different lengths: 2 quats, 3 trans, 3 focals, 3 frames"),
        ({"quats": [[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0]]}, "not of length 1, the first is entry 1"),
        ({"trans": [[0, 0, 0], [0, 0, float("nan")], [0, 0, 0]]}, "not finite, the first at [1, 2]"),
        ({"focals": [900, -1, 900]}, "focal lengths must be positive, found -1"),
        ({"focals": "many"}, "focals: expected numbers"),
        ({"cx": None}, "'cx' is missing"),
        ({"info": {"split": []}}, "0 splits, but split_0.json is asked for"),
        ({"info": {"split": [[4, 4, 5]]}}, "must increase, but entry 0 is 4 and the next 4"),
        ({"info": [1]}, "expected an object"),
    ],
)
def test_damaged_omniworld_files(tmp_path: Path, changes: dict, message: str) -> None:
    path = _omniworld_file(tmp_path, **changes)
    with pytest.raises(ValueError, match="split") as caught:
        read_shipped(path, "omniworld")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: np.swapaxes(m, 1, 2), "no rigid transforms"),
        (lambda m: m * np.diag([1.0, 1, -1, 1]), "no rigid transforms"),
        (lambda m: m * 1.1, "no rigid transforms"),
        (lambda m: np.where(m == m[3, 0, 0], np.inf, m), "not finite"),
        (lambda m: m[:, :3], "shape (48, 3, 4), expected (N, 4, 4)"),
    ],
)
def test_matrices_that_are_no_poses(tmp_path: Path, shot: Shot, change, message: str) -> None:
    path = tmp_path / "clip.npz"
    arrays = dict(np.load(write_sekai(path, shot)))
    np.savez(path, extrinsic=change(arrays["extrinsic"].astype(np.float64)), intrinsic=arrays["intrinsic"])
    with pytest.raises(ValueError, match=r"clip\.npz") as caught:
        read_shipped(path, "sekai-game")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0\n2 4\n", "ordinals must count"),
        ("0 0\n1 0\n", "must increase"),
        ("0 0\n1 four\n", "indexes.txt:2: expected `ordinal frame`"),
        ("0 0\n1 4\n", "12 poses, 12 intrinsics, 2 indexes"),
        ("", "indexes.txt: frames has shape (0,)"),
    ],
)
def test_damaged_spatialvid_indexes(tmp_path: Path, shot: Shot, text: str, message: str) -> None:
    folder = write_spatialvid(tmp_path / "a", shot)
    (folder / "indexes.txt").write_text(text)
    with pytest.raises(ValueError, match="a") as caught:
        read_shipped(folder, "spatialvid")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k2": 0.4}, "undistort the images"),
        ({"camera_model": "OPENCV_FISHEYE"}, "not supported"),
        ({"applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]}, "a reflection"),
        ({"applied_transform": [1]}, "applied_transform must hold 3x4 numbers"),
        ({"frames": [{"file_path": "images/a.png"}]}, "has no transform_matrix"),
        ({"frames": [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}]}, "has no number"),
        ({"frames": [{"file_path": "1.png", "transform_matrix": (2 * np.eye(4)).tolist()}]}, "a scale of 2"),
    ],
)
def test_damaged_transforms(tmp_path: Path, shot: Shot, fields: dict, message: str) -> None:
    path = write_dl3dv(tmp_path, shot, **fields)
    with pytest.raises(ValueError, match=r"transforms\.json") as caught:
        read_shipped(path, "dl3dv")
    assert message in str(caught.value)


def test_images_without_usable_numbers(tmp_path: Path, shot: Shot) -> None:
    path = write_dl3dv(tmp_path, shot)
    clip = stills(shot, path)
    (path.parent / "images_8" / "cover.png").symlink_to(shot.folder / "color/000000.png")
    with pytest.raises(ClipRejection, match=r"mixed_images.*'cover.png' \(1\)"):
        open_clip(clip, DecodeConfig())
    clip = replace(clip, media_pattern="*.png")  # all of them, says the source
    with pytest.raises(ClipRejection, match=r"cameras_not_on_frames.*'cover.png'"):
        read_given_cameras(clip, open_clip(clip, DecodeConfig()))


# --- trees ----------------------------------------------------------------------------------------


def listed(layout, root: Path, metadata: Path | None = None) -> dict[str, ClipRef]:
    release = Release(root=root, metadata=metadata, source="test", data_licence="research-only")
    clips = release_clips(layout, release)
    return {clip.clip_id: clip for clip in clips}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_trees_as_they_unpack(tmp_path: Path) -> None:
    sekai = tmp_path / "sekai"
    video = touch(sekai / "sekai-game-walking/00100100001_0008250_0010050.mp4")
    (clip,) = listed("sekai-game", sekai).values()
    assert clip.clip_id == "00100100001_0008250_0010050"
    assert clip.given.cameras_path == video.with_suffix(".npz")
    assert clip.media == "sekai-game-walking/00100100001_0008250_0010050.mp4"

    spatial = tmp_path / "spatial"
    # The prefix before group and name differs between the two archives.
    touch(spatial / "SpatialVid/HQ/videos/group_0001/0a00f99d-11.mp4")
    touch(spatial / "SpatialVid/HQ/videos/group_0001/no-annotation.mp4")
    found = touch(spatial / "SpatialVID/annotations/group_0001/0a00f99d-11/poses.npy")
    clips = listed("spatialvid-hq", spatial)
    assert clips["0a00f99d-11"].given.cameras_path == found.parent
    missing = clips["no-annotation"].given.cameras_path  # its row will say that nothing lies there
    assert missing == spatial / "SpatialVid/HQ/annotations/group_0001/no-annotation"

    dl3dv = tmp_path / "dl3dv"
    scene = "0" * 63 + "a"
    touch(dl3dv / f"1K/{scene}/{scene}/transforms.json")  # some archives nest one folder deeper
    for number in (1, 2, 300):
        touch(dl3dv / f"1K/{scene}/{scene}/images_4/frame_{number:05d}.png")
    (clip,) = listed("dl3dv-stills", dl3dv).values()
    assert clip.clip_id == scene
    assert clip.source_fps is None
    index = dl3dv / "valid.csv"
    index.write_text(f"hash,sensibility label,batch,duration\n{scene},0,1K,60.0\n")
    assert listed("dl3dv-stills", dl3dv, index)[scene].source_fps == 5.0
    touch(dl3dv / f"3K/{scene}/video.mp4")  # the video lies in another batch than the stills
    (clip,) = listed("dl3dv", dl3dv).values()
    assert clip.media == f"3K/{scene}/video.mp4"
    assert clip.given.stills_path == dl3dv / f"1K/{scene}/{scene}/images_4"

    world = tmp_path / "world"
    uid = "b04f88d1f85a"
    touch(world / f"videos/OmniWorld-Game/{uid}/color/000000.png")
    notes = world / f"annotations/OmniWorld-Game/{uid}"
    touch(notes / "camera/split_1.json")
    (notes / "split_info.json").write_text(json.dumps({"split": [[0, 1], [2, 3, 4, 5]]}))
    (notes / "fps.txt").write_text("FPS: 24.0 \nProcessing time: 9\n")
    (clip,) = listed("omniworld-game", world).values()
    assert clip.clip_id == f"{uid}_split0001"
    assert clip.media == f"videos/OmniWorld-Game/{uid}/color"
    assert (clip.start_s, clip.end_s, clip.source_fps) == (2 / 24, 6 / 24, 24.0)
    assert clip.given.metres_per_unit is None

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clip in the layout dl3dv"):
        listed("dl3dv", tmp_path / "empty")
    with pytest.raises(ValueError, match="expected a CSV with the column 'UID'"):
        listed("omniworld-game", world, index)


# --- whole recipes of the corpus ------------------------------------------------------------------

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
    write_rendered(root / "scene/inverse", shot, se3_inverse(world))
    if thorough:
        write_rendered(root / "scene/opengl", shot, opencv_to_opengl(world))
    good, *wrong = run_recipe("corpus/dl3dv-gs", root, tmp_path / "out", *NO_NETWORK)
    assert good.verdict == "accepted", good.reason_details
    rotation, position = errors_of(good, shot.camera_to_world[good.frame_index])
    assert rotation < 1e-3  # float32 storage
    assert position < 1e-5
    np.testing.assert_allclose(good.focal_px, shot.focal, rtol=1e-6)
    assert len(wrong) == 1 + thorough
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
def test_colmap_stills_find_their_frames_and_cameras(tmp_path: Path, shot: Shot) -> None:
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
