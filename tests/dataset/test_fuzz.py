"""Every reader of files of others, fed with damage: it reads, or ends in its documented error that names the file.

Each format has a small valid sample. Seeded damage flips and cuts bytes, puts numbers where none were and enormous ones
where some were, and (in text, JSON, YAML and the members of archives) drops fields and changes types. No case may raise
anything but the documented error, take seconds, or make memory grow far beyond the file.
"""

from __future__ import annotations

import io
import json
import re
import resource
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import theodolite.dataset
import yaml
from theodolite.annotate.given.cameras import read_intrinsics
from theodolite.annotate.given.depth_files import read_depth_file
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.sources.entries import IndexSource, ReleaseSource
from theodolite.annotate.sources.read import read_clips
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.camera_files.single import read_clip
from theodolite.dataset.formats.base import CameraClip, camera_clip
from theodolite.dataset.formats.colmap import read_colmap, write_colmap
from theodolite.dataset.formats.lerobot import read_lerobot, write_lerobot
from theodolite.dataset.formats.nerfstudio import read_nerfstudio, write_nerfstudio
from theodolite.dataset.formats.sana import (
    BenchScene,
    read_sana_bench,
    read_sana_npy,
    read_sana_zip,
    write_sana_npy,
    write_sana_zip,
)
from theodolite.dataset.formats.shipped import read_shipped
from theodolite.dataset.formats.trajectories import read_kitti, read_matrices, read_table, read_tum, write_tum
from theodolite.dataset.formats.webdataset import read_webdataset, write_webdataset
from theodolite.dataset.loading import latents_from_folder
from theodolite.dataset.media.errors import MediaError
from theodolite.dataset.media.images import read_image
from theodolite.dataset.media.video import open_video
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.rows import Row
from theodolite.dataset.validate import validate_dataset
from theodolite.recipes.loader import RecipeError, load_recipe

from ..recipes.benchmarks.trees import KITTI_CALIB, cam_bytes, dpt_bytes, lens_entry
from ..sana_bench import BENCH_FRAMES, write_sana_bench
from ..typed import known

CASES = 100
"""Damaged copies of every file of every sample, with `--thorough`; else a part of them."""
PART = 4
MOST_SECONDS = 5.0
MOST_MEMORY = 1 << 30


@dataclass
class Sample:
    """A valid sample of a format: the files that are damaged one at a time, how it is read, what may come of it."""

    files: list[Path]
    read: Callable[[], Any]
    errors: tuple[type[Exception], ...] = (ValueError,)
    cases: int = CASES


# --- damage ---------------------------------------------------------------------------------------

Rng = np.random.Generator
_ODD = (
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "../../x",
    [],
    {},
    [[]],
    "{chunk_index:999999999d}",
)


def damaged_bytes(data: bytes, rng: Rng) -> bytes:
    out = bytearray(data)
    if not out:
        return b"\0"
    match int(rng.integers(6)):
        case 0 | 1:
            for at in rng.integers(len(out), size=int(rng.integers(1, 9))):
                out[at] ^= 1 << int(rng.integers(8))
        case 2:
            del out[int(rng.integers(len(out))) :]
        case 3:
            at, length = int(rng.integers(len(out))), int(rng.integers(1, 64))
            del out[at : at + length]
        case 4:
            at, length = int(rng.integers(len(out))), int(rng.integers(1, 9))
            out[at : at + length] = bytes(rng.choice([0x00, 0xFF, 0x7F, 0x80], length).astype(np.uint8))
        case 5:
            at = int(rng.integers(len(out)))
            out[at:at] = rng.integers(0, 256, int(rng.integers(1, 64)), dtype=np.uint8).tobytes()
    return bytes(out)


def damaged_value(value: Any, rng: Rng) -> Any:
    """The value with one part dropped, doubled or replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.25:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: damaged_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.integers(len(value)))
        if rng.random() < 0.25:
            return [*value[:at], *value[at + 1 :]] if rng.random() < 0.5 else [*value, value[at]]
        return [*value[:at], damaged_value(value[at], rng), *value[at + 1 :]]
    return _ODD[int(rng.integers(len(_ODD)))]


def damaged_text(text: str, rng: Rng) -> str:
    """The text with a word replaced, or a line dropped or doubled."""
    lines = text.splitlines() or [""]
    at = int(rng.integers(len(lines)))
    match int(rng.integers(4)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case _:
            words = re.split(r"([\s,:]+)", lines[at])
            words[int(rng.integers(len(words)))] = str(_ODD[int(rng.integers(len(_ODD)))])
            lines[at] = "".join(words)
    return "\n".join(lines)


def damaged(path: Path, data: bytes, rng: Rng) -> bytes:
    """Damage of a kind that fits the file; every other case is damage of bytes."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    match path.suffix:
        case ".json":
            return json.dumps(damaged_value(json.loads(data), rng)).encode()
        case ".yaml" if not data.startswith(b"%"):
            return yaml.safe_dump(damaged_value(yaml.safe_load(data), rng)).encode()
        case ".jsonl" | ".txt" | ".tum" | ".csv" | ".yaml":
            return damaged_text(data.decode(), rng).encode()
        case ".zip" | ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            return zipped(damaged_member(members, rng))
        case ".tar":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = {m.name: known(tar.extractfile(m)).read() for m in tar}
            return tarred(damaged_member(members, rng))
        case ".npy":
            return numpy_bytes(damaged_array(np.load(io.BytesIO(data)), rng))
    return damaged_bytes(data, rng)


def damaged_member(members: dict[str, bytes], rng: Rng) -> dict[str, bytes]:
    name = list(members)[int(rng.integers(len(members)))]
    content = members[name]
    if rng.random() < 0.2:
        return {k: v for k, v in members.items() if k != name}
    if rng.random() < 0.2:
        return {("../../" + k if k == name else k): v for k, v in members.items()}
    return members | {name: damaged(Path(name), content, rng)}


def damaged_array(array: np.ndarray, rng: Rng) -> np.ndarray:
    match int(rng.integers(6)):
        case 0:
            return array.astype("U8")
        case 1:
            return array[: len(array) // 2] if array.ndim else array
        case 2:
            return array.reshape(-1)
        case 3:
            return np.full(array.shape, [np.nan, np.inf, -1, 0, 1e300][int(rng.integers(5))])
        case 4:
            return np.zeros((0, *array.shape[1:]))
        case _:
            return array.T.astype(bool)


def numpy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


# --- samples --------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def trajectories(folder: Path, clip: CameraClip, _rows: list[Row]) -> Iterator[Sample]:
    poses = clip.camera_to_world
    assert clip.time_s is not None
    tum = folder / "a.tum"
    write_tum(tum, poses, clip.time_s)
    kitti = _write(folder / "k.txt", "\n".join(" ".join(map(str, p[:3].ravel())) for p in poses))
    rows = _write(folder / "m.txt", "\n".join(" ".join(map(str, p.ravel())) for p in poses))
    lines = [f"{10**18 + i},{i},0,0,1,0,0,0" for i in range(9)]
    table = _write(
        folder / "e" / "state_groundtruth_estimate0" / "data.csv", "\n".join(["#t,x,y,z,qw,qx,qy,qz", *lines])
    )
    mounting = _write(
        folder / "e" / "cam0" / "sensor.yaml",
        "%YAML:1.0\nT_BS:\n  cols: 4\n  rows: 4\n  data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]\n",
    )
    readers: dict[Path, Callable[..., object]] = {
        tum: read_tum,
        kitti: read_kitti,
        rows: read_matrices,
        table: read_table,
    }
    for path, read in readers.items():
        yield Sample([path], lambda path=path, read=read: (read(path), read(path, lenient=True)))
    yield Sample([tum, kitti, rows], lambda: [read_clip(p) for p in (tum, kitti, rows)])
    yield Sample([table, mounting], lambda: read_clip(folder / "e"))
    scan = folder / "scan"
    files = [_write(scan / f"{i}.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n") for i in range(3)]
    yield Sample(files[:1], lambda: load_cameras(scan))
    lens = _write(folder / "lens.csv", "fx, fy, cx, cy\n500, 500, 320, 240\n510, 510, 320, 240\n")
    yield Sample([lens], lambda: read_intrinsics(lens))


def models(folder: Path, clip: CameraClip, _rows: list[Row]) -> Iterator[Sample]:
    for binary in (False, True):
        target = write_colmap(clip, folder / f"colmap{binary}", binary=binary)
        files = [target / f"{name}.{'bin' if binary else 'txt'}" for name in ("cameras", "images")]
        yield Sample(files, lambda target=target: (read_colmap(target), read_clip(target)))
    transforms = write_nerfstudio(clip, folder / "nerf")
    yield Sample([transforms], lambda: (read_nerfstudio(transforms), read_shipped(transforms, "dl3dv")))
    count = 6
    split = {
        "quats": [[1, 0, 0, 0]] * count,
        "trans": [[0, 0, 0]] * count,
        "focals": [500] * count,
        "cx": 320,
        "cy": 240,
    }
    info = _write(folder / "scene" / "split_info.json", json.dumps({"split": [list(range(count))]}))
    cameras = _write(folder / "scene" / "camera" / "split_0.json", json.dumps(split))
    _write(folder / "scene" / "fps.txt", "FPS: 24\n")
    (folder / "scene" / "color").mkdir()
    yield Sample([info, cameras], lambda: read_shipped(cameras, "omniworld"))
    table = _write(
        folder / "metadata" / "omniworld_game_metadata.csv", "UID,FPS,Metric Scale\nscene,24,1.5\n"
    )
    source = ReleaseSource(kind="release", name="o", layout="omniworld-game", root=folder)
    yield Sample([table, info, folder / "scene" / "fps.txt"], lambda: list(read_clips(source)))
    sekai = folder / "sekai.npz"
    np.savez(
        sekai, extrinsic=clip.camera_to_world, intrinsic=np.array([[1, 0, 0.5], [0, 1.8, 0.5], [0, 0, 1.0]])
    )
    yield Sample([sekai], lambda: read_shipped(sekai, "sekai-game"))
    spatial = folder / "spatial"
    spatial.mkdir()
    np.save(spatial / "poses.npy", np.tile([0, 0, 0, 0, 0, 0, 1.0], (count, 1)))
    np.save(spatial / "intrinsics.npy", np.tile([1, 1.8, 0.5, 0.5], (count, 1)))
    _write(spatial / "indexes.txt", "\n".join(f"{i} {6 * i}" for i in range(count)))
    yield Sample(sorted(spatial.iterdir()), lambda: read_shipped(spatial, "spatialvid"))


def archives(folder: Path, clip: CameraClip, rows: list[Row]) -> Iterator[Sample]:
    (shard,) = write_webdataset([clip], folder / "web")
    yield Sample([shard], lambda: list(read_webdataset(shard)))
    written = write_sana_zip([clip], folder / "sana.zip")
    yield Sample(written[:3], lambda: read_sana_zip(written[0]))
    pose, lens = write_sana_npy(clip, folder / "npy")
    yield Sample([pose, lens], lambda: read_sana_npy(pose, lens, height=clip.height, width=clip.width))
    tiny = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    still = CameraClip(
        name="walk_001",
        camera_to_world=np.tile(np.eye(4), (BENCH_FRAMES, 1, 1)),
        focal_px=np.full((BENCH_FRAMES, 2), 8.0),
        principal_point_px=np.full((BENCH_FRAMES, 2), 4.0),
        height=8,
        width=8,
    )
    bench = write_sana_bench(
        folder / "bench", {"simple_60s": [BenchScene(clip=still, image_png=tiny, prompt="x")]}
    )
    export = bench / "benchmark_v2_smooth_60s"
    files = [
        *(export / "scene_trajectories_v2.json", export / "sanawm_export_v2" / "run_manifest.jsonl"),
        *(export / "sanawm_export_v2" / "walk_001.npz", bench / "images" / "walk_001.png"),
    ]
    yield Sample(files, lambda: read_sana_bench(bench, split="simple_60s"))
    robot = folder / "robot"
    write_lerobot([clip], robot, fps=16)
    files = [robot / "meta" / "info.json", *sorted(robot.rglob("*.parquet"))]
    yield Sample(files, lambda: read_lerobot(robot))
    latents = folder / f"{rows[0].clip_id}.npz"
    np.savez(latents, z=np.zeros((4, 5, 6, 7), np.float32))
    yield Sample([latents], lambda: latents_from_folder(folder)(rows[0]))


def pictures(folder: Path, _clip: CameraClip, _rows: list[Row]) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    rgb = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (64, 48))
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff"):
        path = folder / f"a{suffix}"
        path.write_bytes(cv2.imencode(suffix, rgb)[1].tobytes())
        yield Sample([path], lambda path=path: read_image("c", path), (MediaError,))
    depth = rng.uniform(500, 5000, (48, 64)).astype(np.uint16)
    (folder / "d.png").write_bytes(cv2.imencode(".png", depth)[1].tobytes())
    np.save(folder / "d.npy", depth)
    np.savez_compressed(folder / "d.npz", depth=depth)
    for suffix in (".png", ".npy", ".npz"):
        path = folder / f"d{suffix}"
        yield Sample([path], lambda path=path: read_depth_file(path, clip_id="c"), (ClipRejection,))


def videos(folder: Path, _clip: CameraClip, _rows: list[Row]) -> Iterator[Sample]:
    path = folder / "v.mp4"
    with VideoWriter(path, width=32, height=16, fps=16) as video:
        for i in range(20):
            video.write(np.full((16, 32, 3), 12 * i, np.uint8))

    def read() -> None:
        found = open_video("c", path)
        count = min(len(found.timeline.ticks), 30)
        for _ in found.read(np.arange(0, count, 3)):
            pass

    yield Sample([path], read, (MediaError,), cases=3 * CASES)


def configuration(folder: Path, _clip: CameraClip, _rows: list[Row]) -> Iterator[Sample]:
    entries = [
        {"clip_id": f"c{i}", "media_path": f"{i}.mp4", "depth_pattern": "d/{frame:06d}.png", "source_fps": 16}
        for i in range(3)
    ]
    content = {"defaults": {"data_licence": "MIT"}, "clips": entries}
    paths = [
        _write(folder / "i.yaml", yaml.safe_dump(content)),
        _write(folder / "i.json", json.dumps(content)),
        _write(folder / "i.csv", "clip_id,media_path\na,a.mp4\nb,b.mp4\n"),
    ]
    for path in paths:
        source = IndexSource(kind="index", name="s", index=path)
        yield Sample([path], lambda source=source: list(read_clips(source)), cases=3 * CASES)
    recipe = {
        "schema_version": 1,
        "name": "r",
        "mode": "given_depth",
        "source": {"kind": "index", "name": "s", "index": "i.yaml"},
        "annotate": {"decode": {"fps": 16, "min_frames": 16}},
    }
    path = _write(folder / "recipe.yaml", yaml.safe_dump(recipe))
    yield Sample([path], lambda: load_recipe(path), (RecipeError,), cases=3 * CASES)


def parts(folder: Path, _clip: CameraClip, rows: list[Row]) -> Iterator[Sample]:
    from theodolite.dataset.index import refresh_index
    from theodolite.dataset.store import list_parts, prepare_output, write_part

    out = folder / "out"
    prepare_output(out, recipe_hash="recipe1")
    write_part(out, rows, shard_id="a", recipe_hash="recipe1")
    (part,) = list_parts(out)

    def read() -> None:
        clips = theodolite.dataset.open(out)
        list(clips.rows())
        clips.where("num_frames > 3").to_table()
        clips.row(rows[1].clip_id)

    yield Sample([part], read, (ValueError, KeyError), cases=2 * CASES)
    yield Sample([part, out / "dataset.json"], lambda: validate_dataset(out), cases=CASES)
    indexed = folder / "indexed"
    prepare_output(indexed, recipe_hash="recipe1")
    write_part(indexed, rows, shard_id="a", recipe_hash="recipe1")
    refresh_index(indexed)

    def read_indexed() -> None:
        clips = theodolite.dataset.open(indexed)
        clips.counts("verdict")
        for row in rows:
            assert clips.row(row.clip_id).clip_id == row.clip_id

    yield Sample(
        [indexed / "index" / "demo.parquet", indexed / "index" / "demo.arrow"],
        read_indexed,
        (),
        cases=2 * CASES,
    )


def benchmark_sets(folder: Path, clip: CameraClip, _rows: list[Row]) -> Iterator[Sample]:
    """Truth of public sets; their lists of images are read with the clips. Long: a list of sets."""
    from theodolite.dataset.benchmarks.influx import find_partitions, lenses_of_video, read_true_lenses
    from theodolite.dataset.benchmarks.truth import Sequence, true_cameras

    frames = clip.camera_to_world.shape[0]
    picture = cv2.imencode(".png", np.zeros((12, 16, 3), np.uint8))[1].tobytes()

    def images(place: Path, name: str, start: int = 0) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        for i in range(frames):
            (place / name.format(i + start)).write_bytes(picture)
        return place

    media = images(folder / "tum/cables_1/rgb", "{}.000000.png")
    listed = "".join(f"{i}.000000 rgb/{i}.000000.png\n" for i in range(frames))
    index = _write(media.parent / "rgb.txt", listed)
    calibration = _write(media.parent / "calibration.txt", "726 727 359 202\n")
    poses = media.parent / "groundtruth.txt"
    write_tum(poses, clip.camera_to_world, np.arange(frames) * 1.0)
    eth3d = Sequence(name="cables_1", media=media, poses=poses)
    yield Sample([poses, calibration, index], lambda: true_cameras("eth3d-slam", eth3d), cases=2 * CASES)
    source = ReleaseSource(kind="release", name="s", layout="tum-rgbd", root=folder / "tum")

    def whole() -> None:
        for found in read_clips(source):
            if found.problem is not None:
                raise ValueError(found.problem[1])

    yield Sample([index], whole, cases=2 * CASES)

    media = images(folder / "sintel/final/alley_2", "frame_{:04d}.png", 1)
    cameras = folder / "sintel/camdata_left/alley_2"
    cameras.mkdir(parents=True)
    for i, pose in enumerate(clip.camera_to_world):
        content = cam_bytes(np.diag([500.0, 500, 1]), np.linalg.inv(pose))
        (cameras / f"frame_{i + 1:04d}.cam").write_bytes(content)
    sintel = Sequence(name="alley_2", media=media, poses=cameras)
    yield Sample([cameras / "frame_0001.cam"], lambda: true_cameras("sintel", sintel), cases=2 * CASES)
    depth = folder / "d.dpt"
    depth.write_bytes(dpt_bytes(np.ones((12, 16))))
    yield Sample([depth], lambda: read_depth_file(depth, clip_id="c"), (ClipRejection,))

    media = images(folder / "kitti/sequences/00/image_2", "{:06d}.png")
    calibration = _write(media.parent / "calib.txt", KITTI_CALIB)
    text = "\n".join(" ".join(map(str, p[:3].ravel())) for p in clip.camera_to_world)
    kitti = Sequence(name="00", media=media, poses=_write(folder / "kitti/poses/00.txt", text))
    yield Sample(
        [calibration, folder / "kitti/poses/00.txt"], lambda: true_cameras("kitti", kitti), cases=2 * CASES
    )

    videos = {f"v_shot{i}": {"frame_count": 3, "split": "val"} for i in range(2)}
    root = folder / "influx-root"
    lists = _write(root / "influx/video_frame_count_and_split_v1.json", json.dumps(videos))
    truth = {name: {str(i): lens_entry(None, i) for i in range(3)} for name in videos}
    lenses = _write(root / "influx/gt_validation_dict_v1.json", json.dumps(truth))

    def read_lenses() -> None:
        for partition in find_partitions(root):
            content = read_true_lenses(partition)
            for video in partition.videos:
                lenses_of_video(content, video, path=partition.truth)

    yield Sample([lists, lenses], read_lenses, cases=3 * CASES)


# --- the test -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "samples",
    [trajectories, models, archives, pictures, videos, configuration, parts, benchmark_sets],
    ids=lambda s: s.__name__,
)
def test_damage_ends_in_the_documented_error(
    samples, tmp_path: Path, make_row, capfd, caplog, thorough: bool
) -> None:
    rows = [make_row(0, frames=5), make_row(1, frames=7, captions=None)]
    clip = camera_clip(rows[0])
    findings: list[str] = []
    num_cases = num_refused = 0
    rng = np.random.default_rng(zlib.crc32(samples.__name__.encode()))
    for sample in samples(tmp_path, clip, rows):
        sample.read()  # the sample itself is valid
        for path in sample.files:
            data = path.read_bytes()
            for _ in range(sample.cases if thorough else sample.cases // PART):
                path.write_bytes(content := damaged(path, data, rng))
                num_cases += 1
                before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
                try:
                    sample.read()
                except sample.errors as error:
                    num_refused += 1
                    # The file, or for a format of several files the folder that holds them.
                    if not any(part in str(error) for part in (path.name, str(tmp_path), rows[1].clip_id)):
                        findings.append(f"{path.name}: {type(error).__name__} names no file: {error}")
                except Exception as error:  # noqa: BLE001  (whatever it is: it is what this test looks for)
                    findings.append(
                        f"{path.name}: {type(error).__name__}: {str(error)[:150]} for {content[:60]!r}"
                    )
                seconds = time.process_time() - start
                grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
                if seconds > MOST_SECONDS or grown > MOST_MEMORY:
                    findings.append(f"{path.name}: {seconds:.1f} s, {grown >> 20} MiB more")
            path.write_bytes(data)
    capfd.readouterr()  # what decoders say of damage
    caplog.clear()
    kinds = {finding.split(" for ")[0] for finding in findings}
    assert not kinds, f"{len(findings)} of {num_cases}:\n" + "\n".join(sorted(kinds)[:40])
    assert num_refused > num_cases / 20, "damage that nobody notices tests nothing"
