"""Every form in which a camera path comes, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theodolite.dataset.camera_files.request import (
    Limits,
    check_fov,
    lens_of_picture,
    path_figures,
    prepare_path,
    read_lens,
)
from theodolite.dataset.camera_files.requested import CameraPath, Reading, read_camera_path
from theodolite.dataset.cameras.intrinsics import intrinsics_matrix
from theodolite.dataset.cameras.paths import action_path, named_path
from theodolite.dataset.cameras.transforms import rigid_error, se3_inverse
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.formats.colmap import write_colmap
from theodolite.dataset.formats.nerfstudio import write_nerfstudio
from theodolite.dataset.formats.sana import BenchScene, write_sana_npy
from theodolite.dataset.formats.trajectories import write_kitti, write_matrices, write_tum

from ...sana_bench import write_sana_bench

FRAMES = 33
LENS = [700.0, 710.0, 640.0, 352.0]


def walk(frames: int = FRAMES) -> np.ndarray:
    """A path that starts anywhere."""
    home = np.eye(4)
    home[:3, 3] = 5, -2, 1
    return home @ named_path("fly-through", frames, size_m=1.5)


def clip(frames: int = FRAMES, **changes: Any) -> CameraClip:
    values = dict(
        name="walk",
        camera_to_world=walk(frames),
        focal_px=np.tile(LENS[:2], (frames, 1)),
        principal_point_px=np.tile(LENS[2:], (frames, 1)),
        height=704,
        width=1280,
    )
    return CameraClip(**{**values, **changes})


def write(form: str, folder: Path) -> tuple[str, Reading]:
    """A file of the walk and how it is read."""
    poses, lens = walk(), intrinsics_matrix(np.tile(LENS[:2], (FRAMES, 1)), np.tile(LENS[2:], (FRAMES, 1)))
    path, reading = folder / "walk", Reading()
    if form == "npy":
        path = path.with_suffix(".npy")
        np.save(path, poses.astype(np.float32))
    elif form == "npy 3x4":
        path = path.with_suffix(".weird")  # told by content
        with path.open("wb") as file:
            np.save(file, poses[:, :3])
    elif form == "npy pair":
        path, _ = write_sana_npy(clip(), folder)
    elif form == "npz":
        path = path.with_suffix(".npz")
        np.savez(path, c2w=poses, intrinsics=np.asarray(lens), fps=np.int64(16))
    elif form == "json":
        path = path.with_suffix(".json")
        path.write_text(json.dumps({"camera_to_world": poses.tolist(), "fps": 16, "intrinsics": LENS}))
    elif form == "json inverse":
        path = path.with_suffix(".json")
        path.write_text(
            json.dumps({"trajectory": {"w2c": np.asarray(se3_inverse(poses)).tolist(), "fps": 16}})
        )
    elif form == "json frames":
        path = path.with_suffix(".json")
        frames = [{"camera_to_world": p.tolist(), "time_s": i / 16} for i, p in enumerate(poses)]
        path.write_text(json.dumps(frames))
    elif form == "tum":
        path = path.with_suffix(".txt")
        write_tum(path, poses, 1.3e9 + np.arange(FRAMES) / 16)
    elif form == "kitti":
        path, reading = path.with_suffix(".txt"), Reading(fps=16)
        write_kitti(path, poses)
    elif form == "matrices":
        path, reading = path.with_suffix(".txt"), Reading(fps=16)
        write_matrices(path, poses)
    elif form == "colmap":
        reading = Reading(fps=16)
        write_colmap(clip(), path)
    elif form == "nerfstudio":
        path = write_nerfstudio(clip(time_s=np.arange(FRAMES) / 16), folder)
    return str(path), reading


FORMS = (
    "npy",
    "npy 3x4",
    "npy pair",
    "npz",
    "json",
    "json inverse",
    "json frames",
    "tum",
    "kitti",
    "matrices",
    "colmap",
    "nerfstudio",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_path(form: str, tmp_path: Path) -> None:
    found = prepare_path(read_camera_path(*write(form, tmp_path)))
    expected = np.linalg.inv(walk()[0]) @ walk()
    assert found.camera_to_world.shape == (FRAMES, 4, 4)
    assert np.abs(found.camera_to_world - expected).max() < 1e-5
    assert np.allclose(found.time_s, np.arange(FRAMES) / 16)
    if form in ("npy pair", "npz", "json", "colmap", "nerfstudio"):
        lens = lens_of_picture(found, height=704, width=1280)
        assert lens is not None
        assert np.allclose(lens[:, [0, 1, 0, 1], [0, 1, 2, 2]], LENS)
    else:
        assert found.intrinsics_px is None


def test_row_of_a_dataset(tmp_path: Path, make_row, make_dataset) -> None:
    row = make_row(0, frames=50)
    folder = make_dataset(tmp_path / "set", {"0": [row, make_row(1)]})
    found = prepare_path(read_camera_path(f"{folder}#{row.clip_id}"))
    assert (found.height, found.width) == (row.height, row.width)
    assert len(found) % 8 == 1
    assert np.asarray(rigid_error(found.camera_to_world)).max() < 1e-9
    with pytest.raises(ValueError, match=r"2 clips \(clip_0000, clip_0001\); name one as .*#clip_0000"):
        read_camera_path(str(folder))
    with pytest.raises(ValueError, match="nobody"):
        read_camera_path(str(folder), Reading(clip_id="nobody"))
    part = next(folder.glob("data/*/*.parquet"))
    assert len(read_camera_path(str(part), Reading(clip_id=row.clip_id))) == 50


def test_lenses_of_rows_that_are_no_pinholes(tmp_path: Path, make_row, make_dataset) -> None:
    rows = [make_row(0), make_row(1, radial_k1=-0.1), make_row(2, radial_k1=-0.1, lens_model="fisheye")]
    folder = make_dataset(tmp_path / "set", {"0": rows})
    found = [read_camera_path(f"{folder}#{row.clip_id}") for row in rows]
    assert [path.intrinsics_px is None for path in found] == [False, False, True]
    assert found[0].notes == ()
    assert "distortion is left out" in found[1].notes[0]
    assert "a fisheye's" in found[2].notes[0]


def test_scene_of_the_benchmark(tmp_path: Path) -> None:
    import cv2

    png = cv2.imencode(".png", np.full((704, 1280, 3), 90, np.uint8))[1].tobytes()
    scene = BenchScene(clip=clip(961, name="city_001"), image_png=png, prompt="a street")
    write_sana_bench(tmp_path, {"simple_60s": [scene]})
    split = tmp_path / "benchmark_v2_smooth_60s"
    assert len(prepare_path(read_camera_path(f"{split}#city_001"))) == 961
    with pytest.raises(ValueError, match="1 scenes \\(city_001\\)"):
        read_camera_path(str(split))


def test_actions_and_names() -> None:
    assert np.array_equal(
        read_camera_path("w-40,wd-20,none-10").camera_to_world, action_path("w-40,wd-20,none-10")
    )
    orbit = read_camera_path("orbit:size=3,turns=-0.5", Reading(seconds=4))
    assert np.allclose(orbit.camera_to_world, named_path("orbit", 65, size_m=3, turns=-0.5))
    for text, named in (
        ("orbit:radius=3", "neither size=METRES"),
        ("orbit:size=", "neither size=METRES"),
        ("loop", "no such file, no named path"),
        ("w-40,x-3", "unknown keys 'x'"),
        ("w-0", "number of frames"),
        ("", "empty"),
        ("nowhere/poses.npy", "no such file"),
        ("w-40," * 2000 + "w-3", "longer|too long|more than"),
    ):
        with pytest.raises(ValueError, match=named):
            prepare_path(read_camera_path(text))


def test_a_recorded_path_is_read_again(tmp_path: Path) -> None:
    """The record beside a generated video holds its path."""
    first = prepare_path(read_camera_path("orbit"))
    record = {"camera": {"camera_to_world": first.camera_to_world.tolist(), "fps": 16, "intrinsics_px": LENS}}
    (tmp_path / "v.json").write_text(json.dumps(record))
    again = prepare_path(read_camera_path(tmp_path / "v.json"))
    assert np.allclose(again.camera_to_world, first.camera_to_world, atol=1e-12)


def hostile(kind: str, folder: Path) -> tuple[str, Reading]:
    """A file that must be refused, by what is wrong with it, and how it is read. Long: a list of faults."""
    poses, path, reading = walk(), folder / "bad.npy", Reading()
    if kind == "nan":
        poses[7, 0, 3] = np.nan
    elif kind == "scaled":
        poses[:, :3, :3] *= 1.02
    elif kind == "jump":
        poses[20:, 0, 3] += 3
    elif kind == "short":
        poses = poses[:8]
    elif kind == "millimetres":
        poses[:, :3, 3] *= 1000
    elif kind == "transposed":
        poses = poses.swapaxes(1, 2)
    elif kind == "complex":
        poses = poses.astype(complex)
    elif kind == "shape":
        poses = poses[0]
    elif kind == "empty array":
        poses = poses[:0]
    np.save(path, poses)
    if kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "binary":
        path.write_bytes(b"\x00\x01\x02" * 50)
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    elif kind == "zip":
        path.write_bytes(b"PK\x03\x04" + b"\0" * 50)
    elif kind == "json":
        path.write_text('{"camera_to_world": [[1, 2], [3')
    elif kind == "extrinsics":
        path.write_text(json.dumps({"extrinsics": walk().tolist()}))
    elif kind == "words":
        path.write_text('{"camera_to_world": ["a", "b"]}')
    elif kind == "no rate":
        path.write_text(json.dumps(walk().tolist()))
    elif kind == "times":
        path.write_text(json.dumps({"c2w": walk().tolist(), "time_s": [0.0] * FRAMES}))
    elif kind == "hole":
        times = np.arange(FRAMES) / 16
        times[20:] += 3
        path.write_text(json.dumps({"c2w": walk().tolist(), "time_s": times.tolist()}))
    elif kind == "two paths":
        path.write_text(json.dumps({"c2w": walk().tolist(), "w2c": walk().tolist(), "fps": 16}))
    elif kind == "fewer inverses":
        path.write_text(json.dumps({"c2w": walk().tolist(), "w2c": walk()[:3].tolist(), "fps": 16}))
    elif kind == "no rate at all":
        path.write_text(json.dumps({"c2w": walk().tolist(), "fps": 0}))
    elif kind == "two rates":
        path.write_text(json.dumps({"c2w": walk().tolist(), "fps": [16, 24]}))
    elif kind == "lens":
        lens = [[-700.0, 710.0, 640.0, 352.0]]
        path.write_text(json.dumps({"c2w": walk().tolist(), "fps": 16, "intrinsics": lens}))
    elif kind == "rate":
        reading = Reading(fps=1e5)
    elif kind == "slow":
        reading = Reading(fps=1e-300)
    elif kind == "folder":
        path = folder / "empty"
        path.mkdir()
    return str(path), reading


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("nan", "pose of frame 7 is not finite"),
        ("scaled", "frame 0 is no rigid"),
        ("jump", "jumps .*frame 19 to 20"),
        ("short", r"8 poses last 0\.44 s; the model needs at least 9 frames"),
        ("millimetres", "in metres"),
        ("transposed", "transposed"),
        ("complex", "holds complex128 values; real numbers are expected"),
        ("shape", r"poses are \(4, 4\)"),
        ("empty array", "empty"),
        ("pickle", "not a readable numpy file"),
        ("truncated", "not a readable numpy file"),
        ("empty", "is empty"),
        ("binary", "binary file that is none of"),
        ("picture", "binary file that is none of"),
        ("zip", "not a readable .npz"),
        ("json", "not JSON"),
        ("extrinsics", "camera_to_world or world_to_camera"),
        ("words", "no array of numbers"),
        ("no rate", "give --fps"),
        ("times", "times must be finite and rise"),
        ("hole", "no pose for 3.06 s between pose 19 and 20"),
        ("two paths", "c2w and w2c are different paths"),
        ("fewer inverses", "c2w and w2c are different paths"),
        ("no rate at all", "says 0.0 poses a second; give --fps"),
        ("two rates", "fps holds 2 numbers; expected one"),
        ("lens", "bad.npy: the intrinsics of pose 0 are not finite, or not positive"),
        ("rate", "needs at least 9 frames"),
        ("slow", "are its times in another unit"),
        ("folder", "folder without cameras"),
    ],
)
def test_hostile_files(kind: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        prepare_path(read_camera_path(*hostile(kind, tmp_path)))
    assert "bad.npy" in str(caught.value) or "empty" in str(caught.value)


@pytest.mark.parametrize(("said", "noted"), [(0, True), (8, True), (16, False)])
def test_a_rate_that_is_asked_for_goes_before_the_one_of_the_file(
    said: float, noted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "walk.json"
    path.write_text(json.dumps({"c2w": walk().tolist(), "fps": said}))
    found = read_camera_path(path, Reading(fps=16))
    assert found.time_s[1] == 1 / 16
    assert any(f"says {said:g} poses a second, 16 were asked for" in note for note in found.notes) == noted


def test_a_rate_that_takes_the_place_of_times_is_noted(tmp_path: Path) -> None:
    times = np.arange(FRAMES) / 10
    path = tmp_path / "walk.json"
    path.write_text(json.dumps({"c2w": walk().tolist(), "time_s": times.tolist()}))
    assert read_camera_path(path).notes == ()
    write_tum(tmp_path / "walk.txt", walk(), times)
    for file in (path, tmp_path / "walk.txt"):
        found = read_camera_path(file, Reading(fps=16))
        assert found.duration_s == 2.0
        assert any("own times are left out, 16 poses a second" in note for note in found.notes)


@pytest.mark.parametrize("k1", [0.0, -0.1])
def test_distortion_that_is_left_out_is_noted(k1: float, tmp_path: Path) -> None:
    write_colmap(clip(radial_k1=k1), tmp_path / "colmap")
    write_nerfstudio(clip(radial_k1=k1), tmp_path / "nerfstudio")
    for folder in ("colmap", "nerfstudio"):
        found = read_camera_path(tmp_path / folder, Reading(fps=16))
        assert any("distortion is left out" in note for note in found.notes) is (k1 != 0)


def test_the_lens_of_a_fisheye_is_left_out(tmp_path: Path) -> None:
    write_colmap(clip(), tmp_path)
    (file,) = tmp_path.rglob("cameras.txt")
    file.write_text("1 OPENCV_FISHEYE 1280 704 700 710 640 352 0.1 0 0 0\n")
    found = read_camera_path(tmp_path, Reading(fps=16))
    assert found.intrinsics_px is None
    assert any("lens model OPENCV_FISHEYE" in note for note in found.notes)


def steady(frames: int, fps: float = 16.0) -> CameraPath:
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 2, 3] = np.arange(frames) / fps
    return CameraPath(camera_to_world=poses, time_s=np.arange(frames) / fps, form="numpy", origin="steady")


@pytest.mark.parametrize(
    ("frames", "fps", "seconds", "multiple", "expected"),
    [
        (961, 16, None, 8, 961),
        (961, 16, None, 24, 961),
        (960, 16, None, 8, 953),
        (1801, 30, None, 8, 961),
        (1801, 30, 10, 8, 161),
        (1801, 30, 10, 24, 169),
        (1801, 30, 10.2, 8, 161),
        (1801, 30, 0.1, 8, 9),
    ],
)
def test_number_of_frames(
    frames: int, fps: float, seconds: float | None, multiple: int, expected: int
) -> None:
    found = prepare_path(steady(frames, fps), seconds=seconds, multiple=multiple)
    assert len(found) == expected
    assert np.allclose(found.camera_to_world[:, 2, 3], np.arange(expected) / 16)


def test_too_long() -> None:
    with pytest.raises(ValueError, match="--seconds 10 at most"):
        prepare_path(steady(161), seconds=60)
    with pytest.raises(ValueError, match=r"60 s are asked for \(961 frames\), the path lasts 59\.94 s"):
        prepare_path(steady(960), seconds=60)
    with pytest.raises(ValueError, match=r"--seconds 511\.5 at"):
        prepare_path(steady(10_001))


def test_what_lies_behind_the_end_does_not_matter() -> None:
    path = steady(161)
    path.time_s[120:] += 5
    path.camera_to_world[130:, 0, 3] += 1e3
    with pytest.raises(ValueError, match="no pose for 5"):
        prepare_path(path)
    assert len(prepare_path(path, seconds=5)) == 81


def test_limits_can_be_raised() -> None:
    fast = steady(161)
    fast.camera_to_world[:, 2, 3] *= 15
    with pytest.raises(ValueError, match="too fast"):
        prepare_path(fast)
    assert len(prepare_path(fast, limits=Limits(max_speed_m_s=20))) == 161


def test_lenses(tmp_path: Path) -> None:
    wide = read_lens("fov=90", height=704, width=1280, num_frames=3)
    assert np.allclose(wide, intrinsics_matrix(np.full((3, 2), 640.0), np.tile([640.0, 352.0], (3, 1))))
    assert check_fov(wide, height=704, width=1280) == pytest.approx((90, 90))
    assert np.allclose(
        read_lens("700,710,640,352", height=704, width=1280, num_frames=1)[0, 0], [700, 0, 640]
    )
    np.save(tmp_path / "k.npy", np.tile(LENS, (5, 1)))
    assert read_lens(str(tmp_path / "k.npy"), height=704, width=1280, num_frames=5).shape == (5, 3, 3)
    for text in ("fov=190", "fov=x", "700,a,3,4", "nothing", str(tmp_path / "k.npy")):
        with pytest.raises(ValueError, match="intrinsics"):
            read_lens(text, height=704, width=1280, num_frames=4)
    for degrees, axis in ((130, "horizontal"), (40, "vertical"), (20, "horizontal")):
        with pytest.raises(ValueError, match=f"the {axis} field of view of frame 0"):
            check_fov(
                read_lens(f"fov={degrees}", height=704, width=1280, num_frames=1), height=704, width=1280
            )


def test_lenses_belong_to_the_image() -> None:
    lens = np.asarray(intrinsics_matrix(np.array([[700.0, 700]]), np.array([[640.0, 352]])))
    path = CameraPath(
        camera_to_world=np.eye(4)[None], time_s=np.zeros(1), form="json", origin="x", intrinsics_px=lens
    )
    with pytest.raises(ValueError, match="must be in pixels of this image"):
        lens_of_picture(path, height=200, width=360)
    sized = CameraPath(**{**vars(path), "height": 704, "width": 1280})
    half = lens_of_picture(sized, height=352, width=640)
    assert half is not None
    assert half[0, 0, 0] == 350
    with pytest.raises(ValueError, match="another shape"):
        lens_of_picture(sized, height=640, width=640)


def test_figures() -> None:
    found = path_figures(prepare_path(steady(161)))
    assert (found.num_frames, found.duration_s) == (161, 10)
    assert found.length_m == pytest.approx(10)
    assert found.max_speed_m_s == pytest.approx(1)
    assert found.turned_deg == pytest.approx(0, abs=1e-5)


def test_an_exported_clip_is_read_again(tmp_path: Path, make_row) -> None:
    row = make_row(2, frames=40)
    write_nerfstudio(camera_clip(row), tmp_path)
    found = read_camera_path(tmp_path / "transforms.json")
    assert np.allclose(found.camera_to_world, row.camera_to_world, atol=1e-6)
    assert found.duration_s == pytest.approx(row.time_s[-1] - row.time_s[0])
