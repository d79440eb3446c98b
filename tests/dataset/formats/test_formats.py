"""Round trips of every format, opened by the other side's own reader where it installs here."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
from av.container import InputContainer
from theodolite.dataset import export as export_module
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.intrinsics import project
from theodolite.dataset.export import FORMATS, PER_CLIP, export_dataset, write_subset
from theodolite.dataset.formats import huggingface as huggingface_format
from theodolite.dataset.formats import lerobot as lerobot_format
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.formats.colmap import ColmapPoints, read_colmap, write_colmap
from theodolite.dataset.formats.lerobot import read_lerobot, write_lerobot
from theodolite.dataset.formats.nerfstudio import read_nerfstudio, write_nerfstudio
from theodolite.dataset.formats.rerun import write_rerun
from theodolite.dataset.formats.sana import (
    BenchScene,
    read_sana_bench,
    read_sana_npy,
    read_sana_zip,
    write_sana_npy,
    write_sana_zip,
)
from theodolite.dataset.formats.trajectories import read_kitti, read_tum
from theodolite.dataset.formats.webdataset import read_webdataset, write_webdataset
from theodolite.dataset.metrics.image import RevisitPair
from theodolite.dataset.rows import Row
from theodolite.dataset.validate import validate_dataset

from ...sana_bench import write_sana_bench
from ...support import SHARED


@pytest.fixture
def clip(make_row: Callable[..., Row]) -> CameraClip:
    return camera_clip(make_row(3, fps=None))


@pytest.fixture
def out(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    shards = {"a": [make_row(0), make_row(1, frames=20)], "b": [make_rejected(2), make_row(3, captions=None)]}
    return make_dataset(tmp_path / "dataset", shards)


def assert_same_cameras(a: CameraClip, b: CameraClip, *, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(a.camera_to_world, b.camera_to_world, atol=atol)
    np.testing.assert_allclose(a.focal_px, b.focal_px, rtol=1e-6)
    np.testing.assert_allclose(a.principal_point_px, b.principal_point_px, rtol=1e-6)
    assert (a.height, a.width) == (b.height, b.width)


def _observations(clip: CameraClip) -> ColmapPoints:
    """Points in front of every camera with their exact projections."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-1, 1, 40), rng.uniform(-0.6, 0.6, 40), rng.uniform(3, 6, 40)], axis=1)
    points = points + clip.camera_to_world[:, :3, 3].mean(0)
    pixels, z = project(points[None], clip.camera_to_world, clip.intrinsics)
    n = (pixels - clip.principal_point_px[:, None]) / clip.focal_px[:, None]
    pixels = n * (1 + (clip.radial_k1 or 0) * (n**2).sum(-1, keepdims=True)) * clip.focal_px[:, None]
    pixels = pixels + clip.principal_point_px[:, None]
    frame, point = np.nonzero(z > 0.1)
    return ColmapPoints(points_world=points, frame=frame, point=point, xy_px=pixels[frame, point])


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("k1", [None, -0.05])
def test_colmap_opens_in_pycolmap_and_reprojects(
    tmp_path: Path, clip: CameraClip, binary: bool, k1: float | None
) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    clip = replace(clip, radial_k1=k1)
    points = _observations(clip)
    folder = write_colmap(clip, tmp_path, binary=binary, points=points)
    model = pycolmap.Reconstruction(str(folder))
    assert (model.num_images(), model.num_cameras(), model.num_points3D()) == (len(clip), len(clip), 40)
    checked = 0
    for i in range(len(clip)):
        image = model.images[i + 1]
        np.testing.assert_allclose(
            image.cam_from_world().matrix(), cam.world_to_camera(clip.camera_to_world)[i, :3], atol=1e-9
        )
        assert np.asarray(image.cam_from_world().rotation.quat)[3] >= 0  # pycolmap is scalar-last
        for observation in image.points2D:
            xyz = model.points3D[observation.point3D_id].xyz
            projected = model.cameras[i + 1].img_from_cam(image.cam_from_world() * xyz)
            assert np.abs(np.asarray(projected) - observation.xy).max() < 0.1
            checked += 1
    assert checked == len(points.frame)
    back = read_colmap(tmp_path)
    assert_same_cameras(back, clip, atol=1e-12)
    assert back.radial_k1 == k1


def test_our_reader_opens_what_pycolmap_writes(tmp_path: Path, clip: CameraClip) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(write_colmap(clip, tmp_path / "ours", points=_observations(clip))))
    for kind in ("text", "binary"):
        (tmp_path / kind).mkdir()
        getattr(model, f"write_{kind}")(str(tmp_path / kind))
        assert_same_cameras(read_colmap(tmp_path / kind), clip, atol=1e-12)


def test_colmap_errors(tmp_path: Path, clip: CameraClip) -> None:
    with pytest.raises(ValueError, match=r"no cameras\.bin"):
        read_colmap(tmp_path)
    model = write_colmap(clip, tmp_path, binary=True)
    (model / "images.bin").write_bytes((model / "images.bin").read_bytes()[:200])
    with pytest.raises(ValueError, match="ends at byte 200"):
        read_colmap(tmp_path)
    model = write_colmap(clip, tmp_path / "t")
    text = (model / "cameras.txt").read_text()
    (model / "cameras.txt").write_text(text.replace("2 PINHOLE", "2 FISHEYE"))
    with pytest.raises(ValueError, match=r"cameras\.txt:3"):
        read_colmap(tmp_path / "t")


def test_nerfstudio_round_trip_and_flip(tmp_path: Path, clip: CameraClip) -> None:
    path = write_nerfstudio(replace(clip, radial_k1=0.02), tmp_path)
    raw = json.loads(path.read_text())
    np.testing.assert_allclose(
        np.array(raw["frames"][4]["transform_matrix"])[:3, 1:3], -clip.camera_to_world[4, :3, 1:3]
    )
    back = read_nerfstudio(path)
    assert_same_cameras(back, clip, atol=1e-12)
    assert back.radial_k1 == 0.02
    small = read_nerfstudio(path, image_size=(180, 320))
    np.testing.assert_allclose(small.focal_px, clip.focal_px / 4)
    raw["applied_transform"] = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    path.write_text(json.dumps(raw))
    undone = read_nerfstudio(path, undo_applied_transform=True)
    swap = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(swap @ undone.camera_to_world, clip.camera_to_world, atol=1e-12)
    assert read_nerfstudio(path).image_names == tuple(f"frame_{i + 1:05d}.png" for i in range(33))
    raw["frames"][0]["transform_matrix"] = (2 * np.eye(4)).tolist()
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="carries a scale of 2"):
        read_nerfstudio(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_nerfstudio(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
def test_real_transforms_json() -> None:
    path = SHARED / "fox-transforms" / "transforms.json"
    with pytest.raises(ValueError, match="distortion beyond k1"):
        read_nerfstudio(path)
    clip = read_nerfstudio(path, on_distortion="drop", image_size=(480, 270))
    assert len(clip) == 67  # as listed; 50 of the images lie beside it
    np.testing.assert_allclose(clip.focal_px[0], [1375.52 / 4, 1374.49 / 4])
    assert cam.rigid_error(clip.camera_to_world).max() < 1e-12
    # All cameras look at the one object: their optical axes nearly meet (GL axes read as CV would look away
    # from it).
    centres, axes = clip.camera_to_world[:, :3, 3], clip.camera_to_world[:, :3, 2]
    projector = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    meeting = np.linalg.solve(projector.sum(0), np.einsum("fij,fj->i", projector, centres))
    assert (np.einsum("fi,fi->f", meeting - centres, axes) > 0).mean() > 0.9


def test_sana_npy_pair(tmp_path: Path, clip: CameraClip) -> None:
    pose, intrinsics = write_sana_npy(clip, tmp_path)
    assert_same_cameras(read_sana_npy(pose, intrinsics, height=720, width=1280), clip)
    np.save(intrinsics, np.array([800.0, 810, 640, 360]))
    one = read_sana_npy(pose, intrinsics, height=720, width=1280)
    np.testing.assert_array_equal(one.focal_px, np.tile([800.0, 810], (33, 1)))
    np.save(intrinsics, np.zeros((5, 3, 3)))
    with pytest.raises(ValueError, match="expected"):
        read_sana_npy(pose, intrinsics, height=720, width=1280)
    wide = clip.focal_px.copy()
    wide[7] = 200
    with pytest.raises(ValueError, match=r"horizontal field of view is .* at frame 7"):
        write_sana_npy(replace(clip, focal_px=wide), tmp_path)


def test_sana_zip_shard(tmp_path: Path, clip: CameraClip, make_row: Callable[..., Row]) -> None:
    other = camera_clip(make_row(5, frames=7, captions=None))
    (tmp_path / "v.mp4").write_bytes(b"not really a video")
    written = write_sana_zip([clip, other], tmp_path / "s" / "x.zip", videos={clip.name: tmp_path / "v.mp4"})
    assert {p.name for p in written} >= {
        "x.zip",
        "x_camera.npz",
        "x_metric_scale_stats.json",
        "x_vmaf_motion.json",
    }
    with zipfile.ZipFile(tmp_path / "s" / "x.zip") as archive:
        assert sorted(archive.namelist()) == ["clip_0003.json", "clip_0003.mp4", "clip_0005.json"]
        assert json.loads(archive.read("clip_0003.json")) == {
            "prompt": "A room.",
            "width": 1280,
            "height": 720,
        }
    with np.load(tmp_path / "s" / "x_camera.npz") as camera:
        assert camera["ids"].tolist() == ["clip_0003", "clip_0005"]
        assert camera["ranges"].tolist() == [[0, 33], [33, 7]]
        assert camera["pose"].dtype == np.float32
        assert camera["pose"].shape == (40, 4, 4)
        assert camera["intrinsics"].shape == (40, 4)
    back = read_sana_zip(tmp_path / "s" / "x.zip")
    for a, b in zip(back, (clip, other), strict=True):
        assert_same_cameras(a, b)
    assert [b.caption for b in back] == ["A room.", None]
    scale = tmp_path / "s" / "x_metric_scale_stats.json"
    scale.write_text(json.dumps({"clip_0003": {"median": 2.0}}))
    np.testing.assert_allclose(
        read_sana_zip(tmp_path / "s" / "x.zip")[0].camera_to_world[:, :3, 3],
        2 * clip.camera_to_world[:, :3, 3],
        atol=1e-5,
    )
    first = (tmp_path / "s" / "x.zip").read_bytes()
    write_sana_zip([clip, other], tmp_path / "s" / "x.zip", videos={clip.name: tmp_path / "v.mp4"})
    assert (tmp_path / "s" / "x.zip").read_bytes() == first


def _scene(row: Row, name: str) -> BenchScene:
    import cv2

    png = cv2.imencode(".png", np.zeros((720, 1280, 3), np.uint8))[1].tobytes()
    pairs = (RevisitPair(frame_a=0, frame_b=900, quality_score=0.5),)
    return BenchScene(
        clip=replace(camera_clip(row), name=name), image_png=png, prompt=f"prompt of {name}", pairs=pairs
    )


def test_sana_bench_layout(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    names = [f"{c}_{i:03d}" for c in ("game_style", "indoor") for i in (1, 2)]
    scenes = {
        split: [_scene(make_row(i + 10 * s, frames=961), n) for i, n in enumerate(names)]
        for s, split in enumerate(("simple_60s", "hard_60s"))
    }
    root = write_sana_bench(tmp_path / "bench", scenes)
    assert (root / "scene_set/kept_scenes.txt").read_text().split() == names
    with np.load(root / "benchmark_v2_hard_60s/sanawm_export_v2/indoor_002.npz") as data:
        assert data["c2w"].shape == (961, 4, 4)
        assert data["intrinsics"].shape == (961, 3, 3)
        assert (int(data["fps"]), int(data["num_frames"])) == (16, 961)
    manifest = (root / "benchmark_v2_smooth_60s/sanawm_export_v2/run_manifest.jsonl").read_text().splitlines()
    assert json.loads(manifest[0]) == {
        "id": "game_style_001",
        "prompt": "prompt of game_style_001",
        "image_path": "images/game_style_001.png",
        "camera_path": "benchmark_v2_smooth_60s/sanawm_export_v2/game_style_001.npz",
    }
    for split, members in scenes.items():
        for a, b in zip(read_sana_bench(root, split=split), members, strict=True):
            assert_same_cameras(a.clip, b.clip)
            assert (a.prompt, a.pairs) == (b.prompt, b.pairs)
    trajectories = json.loads((root / "benchmark_v2_hard_60s/scene_trajectories_v2.json").read_text())
    pair = trajectories["scenes"][0]["evaluation_pairs"][0]
    assert set(pair) == {"frame_a", "frame_b", "distance_m", "angle_diff_deg", "quality_score"}
    with pytest.raises(ValueError, match="33 frames, expected 961"):
        write_sana_bench(tmp_path / "x", {"hard_60s": [_scene(make_row(0), "indoor_001")]})
    with pytest.raises(ValueError, match="other scene ids"):
        write_sana_bench(
            tmp_path / "x", {"simple_60s": scenes["simple_60s"], "hard_60s": scenes["hard_60s"][:1]}
        )


def test_webdataset_round_trip(tmp_path: Path, clip: CameraClip, make_row: Callable[..., Row]) -> None:
    clips = [clip, *(camera_clip(make_row(i, frames=5)) for i in range(10, 14))]
    shards = write_webdataset(clips, tmp_path, clips_per_shard=2)
    assert [s.name for s in shards] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    back = [c for s in shards for c in read_webdataset(s)]
    for a, b in zip(back, clips, strict=True):
        assert a.name == b.name
        assert_same_cameras(a, b)
        np.testing.assert_allclose(a.time_s, b.time_s)
    with tarfile.open(shards[0]) as tar:
        assert [m.name.split(".")[0] for m in tar] == [clip.name] * 3 + ["clip_0010"] * 3
    wds = pytest.importorskip("webdataset")
    samples = list(wds.WebDataset([str(s) for s in shards], shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [c.name for c in clips]
    np.testing.assert_allclose(samples[0]["pose.npy"], clip.camera_to_world, atol=1e-6)
    shards[0].write_bytes(shards[0].read_bytes()[:700])
    with pytest.raises(ValueError, match=r"lacks|not a readable tar"):
        list(read_webdataset(shards[0]))


def test_a_tar_cut_anywhere_is_no_shorter_dataset(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    """Cut between two members a tar reads without complaint, and the clips behind the cut are simply not there."""
    (shard,) = write_webdataset([camera_clip(make_row(i, frames=5)) for i in range(3)], tmp_path)
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        end = max(m.offset_data + m.size for m in tar)
    assert len(list(read_webdataset(shard))) == 3
    for length in range(0, end + 512, 256):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(shard))):
            list(read_webdataset(shard))


def test_lerobot_round_trip(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    rows = [make_row(i, frames=10 + i, time_s=np.arange(10 + i) / 16) for i in range(3)]
    clips = [camera_clip(r) for r in rows]
    folder = write_lerobot(clips, tmp_path)
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["fps"]) == ("v3.0", 33, 16)
    assert (folder / "data/chunk-000/file-000.parquet").is_file()
    assert (folder / "meta/episodes/chunk-000/file-000.parquet").is_file()
    for a, b in zip(read_lerobot(folder), clips, strict=True):
        assert (a.name, a.caption) == (b.name, b.caption)
        assert_same_cameras(a, b)
        np.testing.assert_allclose(a.time_s, b.time_s, atol=1e-9)
    other = replace(clips[0], time_s=np.arange(10) / 30)
    with pytest.raises(ValueError, match=r"10 frames in 0\.300 s, LeRobot needs one rate of 16"):
        write_lerobot([*clips, other], tmp_path / "x")
    write_lerobot([other], tmp_path / "native")
    assert json.loads((tmp_path / "native/meta/info.json").read_text())["fps"] == 30
    # Four frames nearest to a 16 fps grid in a 29.97 fps video: half a step at each end is no other rate.
    write_lerobot([clips[2], camera_clip(make_row(5, frames=4))], tmp_path / "short")


def test_lerobot_itself_reads_the_export(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    lerobot = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset",
        reason="lerobot is not installed (it needs torchvision)",
        exc_type=ImportError,
    )
    clips = [camera_clip(make_row(i, frames=10 + i)) for i in range(3)]
    theirs = lerobot.LeRobotDataset("theodolite/test", root=write_lerobot(clips, tmp_path / "out"))
    assert (theirs.num_episodes, theirs.num_frames, theirs.fps) == (3, 33, 16)
    sample = theirs[10 + 4]
    assert (int(sample["episode_index"]), int(sample["frame_index"])) == (1, 4)
    np.testing.assert_array_equal(
        np.asarray(sample["observation.camera_pose"]).reshape(3, 4),
        clips[1].camera_to_world[4, :3].astype(np.float32),
    )
    np.testing.assert_array_equal(
        np.asarray(sample["observation.intrinsics"])[:2], clips[1].focal_px[4].astype(np.float32)
    )


@pytest.mark.slow
def test_huggingface_datasets_reads_the_export(out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert export_dataset(out, tmp_path / "hf", format="huggingface").num_clips == 3
    files = sorted((tmp_path / "hf" / "data").iterdir())
    assert [f.name for f in files] == ["train-00000-of-00001.parquet"]
    loaded = datasets.Dataset.from_parquet(str(files[0]), cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 3
    assert loaded.features["camera_to_world"].feature.dtype == "float32"
    row = theodolite.dataset.open(out).row("clip_0001")
    got = loaded[1]
    assert got["clip_id"] == "clip_0001"
    np.testing.assert_array_equal(
        np.float32(got["camera_to_world"]).reshape(-1, 3, 4), row.camera_to_world[:, :3]
    )
    assert json.loads(got["captions"]) == {"scene": "A room."}
    assert got["gates"][0]["name"] == "fov_x"


def _installed(name: str) -> bool:
    return name != "rerun" or importlib.util.find_spec("rerun") is not None


def test_rerun_recording_verifies_and_holds_every_frame(tmp_path: Path, clip: CameraClip) -> None:
    rerun = shutil.which("rerun", path=str(Path(sys.executable).parent))
    if not _installed("rerun") or rerun is None:
        pytest.skip("rerun-sdk is not installed")
    picture = np.full((90, 160, 3), 120, np.uint8)
    path = write_rerun(
        clip, tmp_path / "x.rrd", images={0: picture, 16: picture}, points_world=np.zeros((4, 3))
    )
    subprocess.run([rerun, "rrd", "verify", str(path)], check=True, capture_output=True)
    text = subprocess.run(
        [rerun, "rrd", "print", str(path)], check=True, capture_output=True, text=True
    ).stdout
    for entity in ("/world/path", "/world/points", "/world/camera", "/world/camera/image", "/focal_px/x"):
        assert entity in text
    rows = {m[1]: int(m[0]) for m in re.findall(r"with (\d+) rows.*? - (/\S+)", text)}
    assert rows.get("/focal_px/y", len(clip)) == len(clip)


@pytest.mark.skipif(_installed("rerun"), reason="rerun-sdk is installed")
def test_rerun_says_what_to_install(tmp_path: Path, clip: CameraClip) -> None:
    with pytest.raises(ImportError, match=r"theodolite\[viz\]"):
        write_rerun(clip, tmp_path / "x.rrd")


@pytest.mark.slow
@pytest.mark.parametrize("name", [f for f in FORMATS if _installed(f)])
def test_every_format_exports_accepted_clips_and_refuses_stand_ins(
    out: Path, tmp_path: Path, name: str, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    target = tmp_path / "target"
    assert export_dataset(out, target, format=name).num_clips == 3
    assert any(p.is_file() for p in target.rglob("*"))
    assert not any("clip_0002" in p.name for p in target.rglob("*"))
    fake = make_dataset(tmp_path / "fake", {"a": [make_row(0, stand_in=True)]})
    with pytest.raises(ValueError, match="stand-in"):
        export_dataset(fake, tmp_path / "never", format=name)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", [f for f in FORMATS if _installed(f)])
def test_a_failed_export_leaves_nothing_and_a_good_one_no_traces(
    out: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "exports" / "target"
    target.parent.mkdir()

    def full(row: Row) -> CameraClip:
        if row.clip_id == "clip_0003":
            raise OSError(28, "No space left on device")
        return camera_clip(row)

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "camera_clip", full)
        patch.setattr(
            huggingface_format.pq,
            "write_table",
            lambda *_a, **_k: full(theodolite.dataset.open(out).row("clip_0003")),
        )
        with pytest.raises(OSError, match="No space left"):
            export_dataset(out, target / "deeper" / "still", format=name)
        assert list(target.parent.iterdir()) == []
        target.mkdir()
        with pytest.raises(OSError, match="No space left"):
            export_dataset(out, target, format=name)
        assert list(target.iterdir()) == []
    monkeypatch.chdir(target)
    assert (
        export_dataset(out, ".", format=name).num_clips == 3
    )  # the folder stays the same one: somebody may stand in it
    assert list(Path().iterdir())
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert not [p for p in target.rglob("*") if p.name.startswith(".")]
    if name in PER_CLIP:
        before = sorted(target.iterdir())
        assert export_dataset(out, target, format=name, clip_ids=["clip_0001"]).num_clips == 1
        assert sorted(target.iterdir()) == before
    else:
        with pytest.raises(ValueError, match="is not empty; write into a new folder"):
            export_dataset(out, target, format=name)


def test_rerun_is_given_pictures_and_points(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording itself needs rerun; what goes into it does not."""
    given: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(
        export_module, "write_rerun", lambda clip, path, **options: given.update({clip.name: options})
    )

    def points(row: Row, pictures: Iterator[np.ndarray]) -> ColmapPoints:
        first = next(pictures)  # the rest is taken by the export
        assert first.shape == (row.height, row.width, 3)
        none = np.zeros(0, np.int64)
        return ColmapPoints(points_world=np.ones((2, 3)), frame=none, point=none, xy_px=np.zeros((0, 2)))

    assert (
        export_dataset(
            filmed, tmp_path / "a", format="rerun", media_root=filmed.parent, points=points
        ).num_clips
        == 3
    )
    for row in theodolite.dataset.open(filmed).rows():
        images = given[row.clip_id]["images"]
        assert list(images) == list(range(row.num_frames))
        levels = [float(image.mean()) for image in images.values()]
        np.testing.assert_allclose(levels, LEVEL_STEP * row.frame_index, atol=2)
        assert given[row.clip_id]["points_world"].shape == (2, 3)
    export_dataset(filmed, tmp_path / "b", format="rerun")
    assert all(options["images"] is None and options["points_world"] is None for options in given.values())


@pytest.mark.slow
def test_a_killed_export_leaves_a_hidden_folder_that_the_next_one_removes(out: Path, tmp_path: Path) -> None:
    script = """
import os, signal, sys
import theodolite.dataset.export as export
whole = export.camera_clip
def killed(row):
    if row.clip_id == "clip_0003":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(row)
export.camera_clip = killed
export.export_dataset(sys.argv[1], sys.argv[2], format="lerobot")
"""
    target = tmp_path / "exports" / "target"
    done = subprocess.run([sys.executable, "-c", script, str(out), str(target)], cwd=tmp_path, check=False)
    assert done.returncode < 0
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".tmp-target-")
    assert not list(left.rglob("info.json"))
    assert export_dataset(out, target, format="lerobot").num_clips == 3
    assert list(target.parent.iterdir()) == [target]


def test_clip_ids_that_are_long(tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable) -> None:
    name = 120 * "x"
    data = make_dataset(tmp_path / "d", {"a": [make_row(0, clip_id=name)]})
    for style in FORMATS:
        if _installed(style):
            assert export_dataset(data, tmp_path / style, format=style).num_clips == 1
    (clip,) = read_webdataset(tmp_path / "webdataset" / "shard-000000.tar")
    assert clip.name == name
    wds = pytest.importorskip("webdataset")
    (sample,) = wds.WebDataset(
        str(tmp_path / "webdataset" / "shard-{000000..000000}.tar"), shardshuffle=False
    )
    assert sample["__key__"] == name


def test_webdataset_shards_are_flat_and_of_a_stated_size(
    tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    clips = [camera_clip(make_row(i, frames=200)) for i in range(7)]
    shards = write_webdataset(clips, tmp_path / "s", bytes_per_shard=60_000)
    assert [p.name for p in sorted((tmp_path / "s").iterdir())] == [s.name for s in shards]
    assert len(shards) > 2
    sizes = [s.stat().st_size for s in shards]
    assert max(sizes) <= 60_000 + 10_240  # a tar ends on a whole record of 10,240 bytes
    assert min(sizes[:-1]) > 30_000
    assert [c.name for s in shards for c in read_webdataset(s)] == [c.name for c in clips]
    alone = write_webdataset(clips[:2], tmp_path / "t", bytes_per_shard=1)  # one clip is never cut
    assert [[c.name for c in read_webdataset(s)] for s in alone] == [["clip_0000"], ["clip_0001"]]


def test_lerobot_is_written_as_a_stream(
    tmp_path: Path, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files end at their size, what was written is not kept, statistics are those of all frames at once."""
    monkeypatch.setattr(lerobot_format, "_DATA_FILE_MB", 0.05)
    monkeypatch.setattr(lerobot_format, "_ROW_GROUP_BYTES", 10_000)
    clips = [camera_clip(make_row(i, frames=40, time_s=np.arange(40) / 16)) for i in range(40)]
    writer = lerobot_format.LerobotWriter(tmp_path, fps=16)
    held = []
    for clip in clips:
        writer.add(clip)
        held.append(sum(t.nbytes for t in writer._data._pending))
    writer.close()
    assert max(held) <= 10_000
    files = sorted((tmp_path / "data" / "chunk-000").iterdir())
    assert [f.name for f in files] == [f"file-{i:03d}.parquet" for i in range(len(files))]
    assert len(files) > 3
    for a, b in zip(read_lerobot(tmp_path), clips, strict=True):
        assert a.name == b.name
        assert_same_cameras(a, b)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())[lerobot_format.POSE_KEY]
    poses = np.concatenate([c.camera_to_world[:, :3].reshape(-1, 12).astype(np.float32) for c in clips])
    for name, expected in (
        ("min", poses.min(0)),
        ("max", poses.max(0)),
        ("mean", poses.mean(0)),
        ("std", poses.std(0)),
    ):
        np.testing.assert_allclose(stats[name], expected, atol=1e-5, err_msg=name)
    assert stats["count"] == [1600]
    tasks = pq.read_table(tmp_path / "meta" / "tasks.parquet").to_pylist()
    assert tasks == [{"task_index": 0, "task": "A room."}]


def test_frames_of_the_same_lens_share_a_colmap_camera(tmp_path: Path, clip: CameraClip) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    # A lens that does not zoom is stored in float32, and solved to a millionth.
    focal = clip.focal_px[:1] * (1 + 1e-6 * np.linspace(0, 1, 33)[:, None])
    still = replace(clip, focal_px=focal, radial_k1=-0.1)
    for binary in (False, True):
        folder = write_colmap(still, tmp_path / str(binary), binary=binary, points=_observations(still))
        model = pycolmap.Reconstruction(str(folder))
        assert (model.num_cameras(), model.num_images()) == (1, 33)
        assert max(point.error for point in model.points3D.values()) < 0.01
        assert_same_cameras(read_colmap(tmp_path / str(binary)), still, atol=1e-12)
    slow = replace(still, focal_px=clip.focal_px[:1] * (1 + 1e-4 * np.linspace(0, 1, 33)[:, None]))
    assert pycolmap.Reconstruction(str(write_colmap(slow, tmp_path / "slow"))).num_cameras() == 33
    named = replace(still, image_names=tuple(f"a {i:02d} ü.png" for i in range(33)))
    with pytest.raises(ValueError, match="has a blank in its name"):
        write_colmap(named, tmp_path / "blank")
    model = pycolmap.Reconstruction(str(write_colmap(named, tmp_path / "binary", binary=True)))
    assert model.images[8].name == "a 07 ü.png"


def test_where_chooses_clips_of_an_export_and_of_a_subset(
    out: Path, tmp_path: Path, make_rejected: Callable[..., Row]
) -> None:
    assert (
        export_dataset(
            out, tmp_path / "t", format="tum", where="num_frames < 30 or clip_id = 'clip_0003'"
        ).num_clips
        == 2
    )
    assert sorted(p.stem for p in (tmp_path / "t").iterdir()) == ["clip_0001", "clip_0003"]
    assert write_subset(out, tmp_path / "sub", where="verdict = 'rejected' or num_frames >= 30") == (3, 4)
    assert validate_dataset(tmp_path / "sub") == (3, [])
    clips = theodolite.dataset.open(tmp_path / "sub")
    assert clips.index is not None
    assert clips.row("clip_0002").reasons == make_rejected(2).reasons
    np.testing.assert_array_equal(
        clips.row("clip_0003").camera_to_world, theodolite.dataset.open(out).row("clip_0003").camera_to_world
    )
    with pytest.raises(ValueError, match="holds for none of 4 clips"):
        write_subset(out, tmp_path / "none", where="num_frames > 1e6")
    with pytest.raises(ValueError, match="is not empty"):
        write_subset(out, tmp_path / "sub", where="num_frames > 0")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("verdict = 'accepted' and num_frames > 20", [0, 3]),
        ('VERDICT == "accepted"', "no column VERDICT"),
        ("not verdict = 'accepted'", [2]),
        ("verdict != 'accepted' OR clip_id IN ('clip_0000', 'clip_0009')", [0, 2]),
        ("clip_id not in ('clip_0000')", [1, 2, 3]),
        ("reprojection_rms_px is null", [2]),
        ("reprojection_rms_px IS NOT NULL and not (num_frames = 33)", [1]),
        ("confidence >= 0.9 and confidence <= .95e0 and num_tracks = 1234", [0, 1, 3]),
        ("data_redistributable and stand_in = false", [0, 1, 2, 3]),
        ("num_frames = 'many'", "condition"),
        ("num_frames", "expected a comparison"),
        ("num_frames > ", "expected a number"),
        ("num_frames > 3 4", "expected `and`"),
        ("(num_frames > 3", r"expected `\)`"),
        ("num_frames > 3; drop", "cannot read ';"),
        ("", "expected a column"),
    ],
)
def test_conditions(out: Path, text: str, ids: list[int] | str) -> None:
    clips = theodolite.dataset.open(out)
    if isinstance(ids, str):
        with pytest.raises(ValueError, match=ids):
            clips.where(text)
    else:
        found = clips.where(text).to_table(["clip_id"])["clip_id"].to_pylist()
        assert found == [f"clip_{i:04d}" for i in ids]


def test_export_choices(out: Path, tmp_path: Path) -> None:
    assert export_dataset(out, tmp_path / "a", format="tum", clip_ids=["clip_0001"]).num_clips == 1
    back = read_tum(tmp_path / "a" / "clip_0001.tum")
    row = theodolite.dataset.open(out).row("clip_0001")
    np.testing.assert_allclose(back.camera_to_world, row.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(back.time_s, row.time_s - row.time_s[0])
    export_dataset(out, tmp_path / "k", format="kitti", clip_ids=["clip_0001"])
    kitti = read_kitti(tmp_path / "k" / "clip_0001.txt", times_path=tmp_path / "k" / "clip_0001_times.txt")
    np.testing.assert_allclose(kitti.camera_to_world, row.camera_to_world, atol=1e-6)
    with pytest.raises(ValueError, match="no accepted clip clip_0002"):
        export_dataset(out, tmp_path / "b", format="tum", clip_ids=["clip_0001", "clip_0002"])
    with pytest.raises(ValueError, match="no accepted clips"):
        export_dataset(out, tmp_path / "b", format="tum", source="nowhere")
    with pytest.raises(ValueError, match="expected one of colmap"):
        export_dataset(out, tmp_path / "b", format="bvh")


def test_the_gate_for_rows(
    make_row: Callable[..., Row], make_rejected: Callable[..., Row], out: Path
) -> None:
    for row, message in [
        (make_row(0, stand_in=True), "stand-in"),
        (make_rejected(0), "rejected"),
        (make_row(0, pose_source=["none"] + ["solved"] * 32), "1 frames have no camera"),
        (make_row(0, camera_to_world=np.tile(2 * np.eye(4), (33, 1, 1))), "not rigid"),
    ]:
        with pytest.raises(ValueError, match=message):
            camera_clip(row)
    assert len(theodolite.dataset.open(out).where(pc.field("stand_in"))) == 0


LEVEL_STEP = 6


@pytest.fixture
def filmed(tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable) -> Path:
    """Three clips of one size, odd in both directions, whose source frame i is grey of level 6 i; every other frame is
    stored."""
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos" / "source.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=32)
        stream.width, stream.height, stream.pix_fmt = 65, 49, "bgr0"
        for i in range(40):
            image = np.full((49, 65, 3), LEVEL_STEP * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    rows = [
        make_row(
            n,
            frames=frames,
            height=49,
            width=65,
            media="videos/source.mkv",
            frame_index=start + 2 * np.arange(frames),
            time_s=(start + 2 * np.arange(frames)) / 32,
        )
        for n, (start, frames) in enumerate([(0, 8), (5, 17), (21, 9)])
    ]
    return make_dataset(tmp_path / "filmed", {"a": rows})


def _levels(container: InputContainer) -> list[float]:
    frames = container.decode(container.streams.video[0])
    return [float(frame.to_ndarray(format="rgb24").mean()) for frame in frames]


def test_webdataset_carries_one_picture_per_camera(filmed: Path, tmp_path: Path) -> None:
    assert export_dataset(filmed, tmp_path / "cameras", format="webdataset").num_clips == 3
    assert (
        export_dataset(filmed, tmp_path / "wds", format="webdataset", media_root=filmed.parent).num_clips == 3
    )
    (shard,) = (tmp_path / "wds").rglob("*.tar")
    clips = {clip.name: clip for clip in read_webdataset(shard)}
    rows = {row.clip_id: row for row in theodolite.dataset.open(filmed).rows()}
    with tarfile.open(shard) as tar:
        for name, row in rows.items():
            content = tar.extractfile(f"{name}.mp4")
            assert content is not None
            with av.open(content, "r") as video:
                stream = video.streams.video[0]
                assert (stream.height, stream.width, float(stream.average_rate or 0)) == (48, 64, 16)
                np.testing.assert_allclose(_levels(video), LEVEL_STEP * row.frame_index, atol=2)
            clip = clips[name]
            assert clip.media == "videos/source.mkv"
            np.testing.assert_array_equal(clip.frame_index, row.frame_index)
            assert (clip.height, clip.width) == (48, 64)
            np.testing.assert_allclose(clip.focal_px, row.focal_px * [64 / 65, 48 / 49], rtol=1e-6)
    with tarfile.open(next((tmp_path / "cameras").rglob("*.tar"))) as tar:
        assert not [m.name for m in tar if m.name.endswith(".mp4")]


@pytest.mark.slow
def test_lerobot_finds_the_picture_of_every_camera(filmed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lerobot"
    assert export_dataset(filmed, folder, format="lerobot", media_root=filmed.parent).num_clips == 3
    info = json.loads((folder / "meta/info.json").read_text())
    key = "observation.images.video"
    assert (info["features"][key]["dtype"], info["features"][key]["shape"]) == ("video", [48, 64, 3])
    stats = json.loads((folder / "meta/stats.json").read_text())[key]
    rows = {row.clip_id: row for row in theodolite.dataset.open(filmed).rows()}
    levels = np.concatenate([LEVEL_STEP * row.frame_index for row in rows.values()]) / 255
    np.testing.assert_allclose(np.ravel(stats["mean"]), [levels.mean()] * 3, atol=0.01)
    np.testing.assert_allclose(np.ravel(stats["std"]), [levels.std()] * 3, atol=0.01)
    for episode in pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist():
        row = rows[episode["clip_id"]]
        place = {n: episode[f"videos/{key}/{n}"] for n in ("chunk_index", "file_index")}
        first_s = episode[f"videos/{key}/from_timestamp"]
        assert episode[f"videos/{key}/to_timestamp"] - first_s == pytest.approx(row.num_frames / 16)
        with av.open(str(folder / info["video_path"].format(video_key=key, **place)), "r") as video:
            stream = video.streams.video[0]
            assert stream.time_base is not None
            for i in (
                row.num_frames - 1,
                0,
                4,
            ):  # as its loader does: jump to the key frame before, decode to the time
                wanted_s = first_s + i / info["fps"]
                video.seek(round(wanted_s / stream.time_base), stream=stream)
                frame = next(f for f in video.decode(stream) if abs((f.time or 0.0) - wanted_s) < 1e-4)
                level = float(frame.to_ndarray(format="rgb24").mean())
                assert level == pytest.approx(LEVEL_STEP * row.frame_index[i], abs=2)
    back = read_lerobot(folder)
    assert [(c.name, len(c), c.height) for c in back] == [(n, r.num_frames, 48) for n, r in rows.items()]


def test_lerobot_begins_another_video_file_when_one_is_full(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot_format, "_VIDEO_FILE_MB", 0)
    export_dataset(filmed, tmp_path / "lerobot", format="lerobot", media_root=filmed.parent)
    files = sorted(p.name for p in (tmp_path / "lerobot").rglob("*.mp4"))
    assert files == ["file-000.mp4", "file-001.mp4", "file-002.mp4"]
    episodes = pq.read_table(tmp_path / "lerobot/meta/episodes/chunk-000/file-000.parquet")
    key = "videos/observation.images.video"
    assert episodes[f"{key}/file_index"].to_pylist() == [0, 1, 2]
    assert episodes[f"{key}/from_timestamp"].to_pylist() == [0, 0, 0]


def test_videos_that_cannot_be_exported(
    filmed: Path, tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    kept = make_dataset(tmp_path / "kept", {"a": [make_row(0), make_row(1, data_redistributable=False)]})
    for name in ("webdataset", "lerobot"):
        with pytest.raises(ValueError, match=r"media of 1 clips may not be passed on, e\.g\. clip_0001"):
            export_dataset(kept, tmp_path / name, format=name, media_root=filmed.parent)
        assert not (tmp_path / name).exists()
        assert export_dataset(kept, tmp_path / name, format=name).num_clips == 2
    with pytest.raises(ValueError, match=r"clip clip_0000: .*0\.mp4: no such file"):
        export_dataset(
            kept, tmp_path / "x", format="webdataset", clip_ids=["clip_0000"], media_root=filmed.parent
        )
    clips = [camera_clip(row) for row in theodolite.dataset.open(filmed).rows()]
    image = np.zeros((48, 64, 3), np.uint8)
    even = [clip.resized(height=48, width=64) for clip in clips]
    with pytest.raises(ValueError, match="clip clip_0000: 3 pictures for 8 cameras"):
        write_webdataset(even, tmp_path / "few", pictures=lambda _clip: iter([image] * 3))
    with pytest.raises(ValueError, match=r"several sizes \(clip_0000 64x48, clip_0001 65x49\)"):
        write_lerobot([even[0], clips[1]], tmp_path / "sizes", pictures=lambda _clip: iter([image]))
