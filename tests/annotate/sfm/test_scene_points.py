"""Points of a clip with known cameras, against the exact depth of a rendered one."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.sfm.scene_points import scene_points
from theodolite.annotate.tracks.records import TracksConfig
from theodolite.dataset.cameras.intrinsics import project, split_intrinsics
from theodolite.dataset.formats.nerfstudio import read_nerfstudio
from theodolite.dataset.media.write import VideoWriter
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
    focal, centre = split_intrinsics(clip.intrinsics)
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
        frame_index=np.arange(24, dtype=np.int32),
        time_s=clip.time_s,
        camera_to_world=clip.camera_to_world.astype(np.float32),
        focal_px=focal,
        principal_point_px=centre,
        pose_source=np.full(24, 3),
    )
    return clip, row, folder


def depth_errors(clip: RenderedClip, points_world: np.ndarray, frame: int) -> np.ndarray:
    """Relative error in depth of the points that `frame` shows; those hidden behind something are left out."""
    pixels, z = project(points_world[None], clip.camera_to_world[[frame]], clip.intrinsics[[frame]])
    depth = clip.frame(frame).depth_m
    inside = (z[0] > 0) & (pixels[0] >= 1).all(1) & (pixels[0] < [319, 179]).all(1)
    x, y = pixels[0][inside].astype(int).T
    error = z[0][inside] / depth[y, x] - 1
    return error[error < 0.3]


@pytest.mark.slow
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
    pixels, _z = project(points[None], clip.camera_to_world[[12]], clip.intrinsics[[12]])
    inside = ((pixels[0] >= 2) & (pixels[0] < [318, 178])).all(1)
    x, y = pixels[0][inside].astype(int).T
    shown = clip.frame(12).rgb[y, x].astype(float)
    assert np.corrcoef(shown.ravel(), colours[inside].astype(float).ravel())[0, 1] > 0.7


@pytest.mark.slow
def test_wrong_cameras_and_no_parallax_give_no_points(rendered: tuple[RenderedClip, Row, Path]) -> None:
    _clip, row, folder = rendered
    good, _ = scene_points(row, folder, config=CONFIG)
    wrong, _ = scene_points(replace(row, camera_to_world=row.camera_to_world[::-1]), folder, config=CONFIG)
    assert len(wrong) < 0.2 * len(good)
    still = np.tile(row.camera_to_world[:1], (24, 1, 1))
    assert len(scene_points(replace(row, camera_to_world=still), folder, config=CONFIG)[0]) < 0.2 * len(good)


@pytest.mark.slow
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


K1 = -0.12


@pytest.fixture(scope="module")
def scenes(rendered: tuple[RenderedClip, Row, Path]) -> Path:
    """Dataset of the walk, as a folder of images, and of the same through a lens that bends, as a video whose cameras
    do not zoom."""
    clip, row, folder = rendered
    lens = replace(row, clip_id="lens", media_kind="video", media="lens.mp4", radial_k1=K1)
    with VideoWriter(folder / lens.media, width=320, height=180, fps=16, crf=4) as video:
        for i in range(24):
            video.write(bent(clip.frame(i).rgb, clip.intrinsics[i]))
    prepare_output(folder / "data", recipe_hash=row.recipe_hash)
    write_part(folder / "data", [lens, row], shard_id="a", recipe_hash=row.recipe_hash)
    return folder / "data"


def bent(rgb: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """A picture as a lens with `K1` shows it: x_px = f n (1 + k1 |n|^2) + c."""
    focal, centre = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    x, y = np.meshgrid(np.arange(320) + 0.5, np.arange(180) + 0.5)
    shown = (np.stack([x, y], -1) - centre) / focal
    n = shown
    for _ in range(20):
        n = shown / (1 + K1 * (n**2).sum(-1, keepdims=True))
    source = (n * focal + centre - 0.5).astype(np.float32)
    return cv2.remap(rgb, source[..., 0], source[..., 1], cv2.INTER_CUBIC).astype(np.uint8)


def export(scenes: Path, out: Path, style: str, *more: str) -> str:
    arguments = ["export", str(scenes), "--format", style, "--out", str(out), *more]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_colmap_export_is_a_scene_to_train_from(
    rendered: tuple[RenderedClip, Row, Path], scenes: Path, tmp_path: Path
) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    clip, row, folder = rendered
    text = export(scenes, tmp_path / "out", "colmap", "--media-root", str(folder))
    assert text.startswith("2 clips as colmap")
    assert "not undistorted" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    for name in ("walk", "lens"):
        scene = tmp_path / "out" / name
        model = pycolmap.Reconstruction(str(scene / "sparse" / "0"))
        assert sorted(p.name for p in (scene / "images").iterdir()) == sorted(
            image.name for image in model.images.values()
        )
        assert model.num_images() == 24
        assert model.num_points3D() > 50
        errors = []
        for image in model.images.values():
            camera = model.cameras[image.camera_id]
            assert camera.model.name == ("OPENCV" if name == "lens" else "PINHOLE")
            picture = cv2.imread(str(scene / "images" / image.name))
            assert picture is not None
            assert picture.shape == (camera.height, camera.width, 3)
            for seen in image.points2D:
                point = model.points3D[seen.point3D_id]
                projected = np.asarray(camera.img_from_cam(image.cam_from_world() * point.xyz))
                errors.append(np.linalg.norm(projected - seen.xy))
                assert ((seen.xy > 0) & (seen.xy < [320, 180])).all()
        assert len(errors) > 500
        assert np.percentile(errors, [50, 99])[0] < 0.3
        assert np.percentile(errors, 99) < 1.5
        stated = [point.error for point in model.points3D.values()]
        assert np.mean(stated) == pytest.approx(np.mean(errors), rel=0.5)
        points = np.array([point.xyz for point in model.points3D.values()])
        for frame in (12, 23):
            assert np.median(np.abs(depth_errors(clip, points, frame))) < 0.03
    stills = folder / row.media
    for copied in (tmp_path / "out" / "walk" / "images").iterdir():  # the files themselves, under their names
        assert copied.read_bytes() == (stills / copied.name).read_bytes()
    # A second export adds its clips to the folder, in place of those of the same name.
    (tmp_path / "out" / "lens" / "stale").touch()
    export(scenes, tmp_path / "out", "colmap", "--clip", "lens")
    assert sorted(p.name for p in (tmp_path / "out" / "lens").iterdir()) == ["sparse"]
    assert (tmp_path / "out" / "walk" / "images").is_dir()


@pytest.mark.slow
def test_undistorted_scenes_have_points_that_a_pinhole_sees(
    rendered: tuple[RenderedClip, Row, Path], scenes: Path, tmp_path: Path
) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    clip, _row, folder = rendered
    asked = ("--media-root", str(folder), "--clip", "lens", "--undistort")
    assert "pictures are undistorted" in export(scenes, tmp_path / "out", "colmap", *asked)
    scene = tmp_path / "out" / "lens"
    model = pycolmap.Reconstruction(str(scene / "sparse" / "0"))
    assert model.num_points3D() > 50
    errors, shifts = [], []
    for i, image in enumerate(sorted(model.images.values(), key=lambda image: image.name)):
        camera = model.cameras[image.camera_id]
        assert camera.model.name == "PINHOLE"
        assert (camera.width, camera.height) == (320, 180)
        for seen in image.points2D:
            point = model.points3D[seen.point3D_id]
            projected = np.asarray(camera.img_from_cam(image.cam_from_world() * point.xyz))
            errors.append(np.linalg.norm(projected - seen.xy))
        shown = cv2.imread(str(scene / "images" / image.name), cv2.IMREAD_GRAYSCALE)
        assert shown is not None
        straight = cv2.cvtColor(clip.frame(i).rgb, cv2.COLOR_RGB2GRAY)
        window = cv2.createHanningWindow((100, 80), cv2.CV_64F)
        for x, y in ((5, 5), (215, 5), (110, 50), (5, 95), (215, 95)):
            part = np.s_[y : y + 80, x : x + 100]
            shift, _ = cv2.phaseCorrelate(straight[part].astype(float), shown[part].astype(float), window)
            shifts.append(np.linalg.norm(shift))
    # The lens moves the corners by 8 px.
    assert np.median(shifts) < 0.1
    assert np.percentile(shifts, 95) < 0.3
    assert np.median(errors) < 0.3
    assert np.percentile(errors, 99) < 1.5


@pytest.mark.slow
def test_nerfstudio_export_is_a_scene_to_train_from(
    rendered: tuple[RenderedClip, Row, Path], scenes: Path, tmp_path: Path
) -> None:
    clip, _row, folder = rendered
    export(scenes, tmp_path / "out", "nerfstudio", "--media-root", str(folder))
    for name in ("walk", "lens"):
        scene = tmp_path / "out" / name
        content = json.loads((scene / "transforms.json").read_text())
        assert content["k1"] == (K1 if name == "lens" else 0)
        assert len(content["frames"]) == 24
        ply = (scene / content["ply_file_path"]).read_bytes()
        header, body = ply.split(b"end_header\n", 1)
        count = int(re.findall(rb"element vertex (\d+)", header)[0])
        vertices = np.frombuffer(body, "<f4,<f4,<f4,u1,u1,u1")
        assert len(vertices) == count > 50
        points = np.stack([vertices[f"f{i}"] for i in range(3)], 1).astype(np.float64)
        colours = np.stack([vertices[f"f{i}"] for i in range(3, 6)], 1)
        for i in (8, 16):
            frame = content["frames"][i]
            picture = cv2.imread(str(scene / frame["file_path"]))
            assert picture is not None
            assert picture.shape == (frame["h"], frame["w"], 3)
            matrix = np.array(frame["transform_matrix"])
            local = (points - matrix[:3, 3]) @ matrix[:3, :3]  # OpenGL: y up, looking along -z
            n = local[:, :2] * [1, -1] / -local[:, 2:]
            n *= 1 + content["k1"] * (n**2).sum(1, keepdims=True)
            pixels = n * [frame["fl_x"], frame["fl_y"]] + [frame["cx"], frame["cy"]]
            inside = (local[:, 2] < 0) & (pixels > 2).all(1) & (pixels < [318, 178]).all(1)
            assert inside.sum() > 20
            x, y = pixels[inside].astype(int).T
            shown = picture[y, x, ::-1].astype(float)
            assert np.corrcoef(shown.ravel(), colours[inside].astype(float).ravel())[0, 1] > 0.6
        assert np.median(np.abs(depth_errors(clip, points, 12))) < 0.03
        np.testing.assert_allclose(
            read_nerfstudio(scene / "transforms.json").focal_px[:, 0], clip.intrinsics[:, 0, 0], rtol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("style", ["colmap", "nerfstudio"])
def test_cameras_alone_are_said_to_be_that(scenes: Path, tmp_path: Path, style: str) -> None:
    assert "cameras only: give --media-root" in export(scenes, tmp_path / "out", style)
    assert not list(tmp_path.rglob("images"))
    assert not list(tmp_path.rglob("*.ply"))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["colmap", "nerfstudio", "webdataset", "lerobot"])
def test_a_clip_whose_media_is_missing_leaves_nothing(
    rendered: tuple[RenderedClip, Row, Path], scenes: Path, tmp_path: Path, style: str
) -> None:
    _clip, _row, folder = rendered
    (tmp_path / "media").mkdir()
    shutil.copy(folder / "lens.mp4", tmp_path / "media")
    arguments = [
        "export",
        scenes,
        "--format",
        style,
        "--out",
        tmp_path / "out",
        "--media-root",
        tmp_path / "media",
    ]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 2
    assert "clip walk" in done.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["media"]


@pytest.mark.slow
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
