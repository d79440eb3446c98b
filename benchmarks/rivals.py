"""Ours against two rivals on real RGB-D recordings: one script, the same frames, one table.

    python benchmarks/rivals.py --data ../shared/data --work DIR [--methods open3d,colmap,ours]
        [--recordings office-a,office-a-zoom,redkitchen,redkitchen-961,tum-mini]

* `open3d`: frame-to-frame RGB-D odometry (hybrid term) with the true intrinsics, its lost steps repaired (a step that
  fails counts as standing still). ATE aligned by SE(3).
* `colmap`: pycolmap's incremental reconstruction from the colour alone, focal unknown (SIMPLE_PINHOLE, one camera; one
  per image where the lens zooms), sequential matching. ATE aligned by Sim(3), its best case; its largest model.
* `ours`: `theodolite annotate rgbd` with pixels and depth, intrinsics not given. ATE aligned by SE(3), no scale.

Where the true poses are of a camera beside the one of the images (redkitchen: of its depth camera) a second ATE leaves
the constant offset between the two free, for every method alike (`as_truth_camera`).

Every result is kept in `<work>/results.json` as soon as it is there; delete an entry to run it again. Needs
`pip install "theodolite[rivals]"`. The recordings are not part of this repository.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from theodolite.annotate.frames.base import ClipFrames, DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.given import GivenGeometrySource
from theodolite.annotate.given.cameras import read_intrinsics
from theodolite.annotate.rendered.files import write_png
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.cameras.transforms import to_4x4
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.metrics.trajectory import (
    AlignmentKind,
    as_truth_camera,
    focal_mape_percent,
    relative_pose_error,
    trajectory_error,
)
from theodolite.dataset.reading import open_dataset


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording with ground truth.

    Attributes:
        fields: of the index entry; paths relative to the data folder, or absolute.
        decode: of `annotate.decode`.
        known_focal_px: the focal length to compare with where the recording ships none for its colour camera.
        truth_beside: whether the true poses are of another camera than the images', fixed beside it: errors are given
            with the offset between the two left free as well, for all methods alike.
    """

    name: str
    fields: dict[str, Any]
    decode: dict[str, Any] = field(default_factory=dict)
    known_focal_px: float | None = None
    zooms: bool = False
    truth_beside: bool = False


def recordings(data: Path, work: Path) -> dict[str, Recording]:
    office, kitchen, tum = (data / f"rgbd-{name}" for name in ("office-a", "redkitchen", "tum-mini"))
    kitchen_fields = {
        "media_path": str(kitchen / "rgb.mp4"),
        "depth_pattern": str(kitchen / "depth/{frame:06d}.png"),
        "depth_units_per_metre": 1000.0,
        "truth_camera_to_world_path": str(kitchen / "poses_c2w.txt"),
    }
    found = [
        Recording(
            name="office-a",
            fields={
                "media_path": str(office / "rgb.mp4"),
                "depth_pattern": str(office / "depth/{frame:06d}.png"),
                "depth_units_per_metre": 1000.0,
                "truth_camera_to_world_path": str(office / "poses_c2w.txt"),
                "truth_intrinsics_path": str(office / "K.txt"),
            },
        ),
        Recording(
            name="office-a-zoom",
            fields={
                "media_path": str(office / "zoom.mp4"),
                "depth_pattern": str(work / "zoom_depth/{frame:06d}.png"),
                "depth_units_per_metre": 1000.0,
                "truth_camera_to_world_path": str(office / "poses_c2w.txt"),
                "truth_intrinsics_path": str(office / "zoom_intrinsics.csv"),
            },
            zooms=True,
        ),
        # Its colour camera has no published calibration; matches between frames fit 521 px. Its poses are those of the
        # depth camera: KinectFusion tracks depth alone.
        Recording(name="redkitchen", fields=kitchen_fields, known_focal_px=521.0, truth_beside=True),
        Recording(
            name="redkitchen-961",
            fields=kitchen_fields,
            decode={"source_fps": 16.0, "max_frames": 961},
            known_focal_px=521.0,
            truth_beside=True,
        ),
        Recording(
            name="tum-mini",
            fields={
                "media_path": str(tum / "rgb"),
                "source_fps": 30.0,
                "depth_pattern": str(tum / "depth/{frame:06d}.png"),
                "depth_units_per_metre": 5000.0,
                "truth_camera_to_world_path": str(tum / "poses_c2w.txt"),
                "truth_intrinsics_path": str(tum / "K.txt"),
            },
            decode={"fps": "native", "min_frames": 10},
        ),
    ]
    return {r.name: r for r in found}


def write_zoom_depth(data: Path, work: Path) -> None:
    """Depth of the zoom copy: the warp that made its colours, nearest neighbour; values do not change."""
    folder = work / "zoom_depth"
    table = np.genfromtxt(data / "rgbd-office-a/zoom_intrinsics.csv", delimiter=",", names=True)
    if folder.is_dir() and len(list(folder.iterdir())) == len(table):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for frame, zoom in enumerate(table["zoom"]):
        depth = cv2.imread(str(data / f"rgbd-office-a/depth/{frame:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert depth is not None, frame
        height, width = depth.shape
        row = ((np.arange(height) + 0.5 - height / 2) / zoom + height / 2).astype(int)
        column = ((np.arange(width) + 0.5 - width / 2) / zoom + width / 2).astype(int)
        write_png(folder / f"{frame:06d}.png", depth[row[:, None], column])


def clip_of(recording: Recording) -> ClipRef:
    fields = recording.fields
    media_path = Path(fields["media_path"])
    return ClipRef(
        clip_id=recording.name,
        source="rgbd",
        original_id=recording.name,
        media_kind="images" if media_path.is_dir() else "video",
        media_path=media_path,
        source_fps=fields.get("source_fps"),
        given=GivenGeometry(
            depth_pattern=fields["depth_pattern"], depth_units_per_metre=fields["depth_units_per_metre"]
        ),
    )


def true_intrinsics(recording: Recording, frames: ClipFrames) -> np.ndarray:
    """(F, 3, 3) for the clip's frames."""
    path = recording.fields.get("truth_intrinsics_path")
    if path is None:
        focal = recording.known_focal_px
        intrinsics = np.array(
            [[focal, 0, frames.width / 2], [0, focal, frames.height / 2], [0, 0, 1.0]], float
        )
    else:
        intrinsics = read_intrinsics(Path(path))
    if intrinsics.ndim == 2:
        return np.broadcast_to(intrinsics, (len(frames), 3, 3))
    return intrinsics[frames.timing.frame_index]


# --- methods: (poses (n, 4, 4), clip frames (n,), focal (n, 2) or None, alignment) --------------------


def run_open3d(recording: Recording, frames: ClipFrames, work: Path) -> tuple[Any, ...]:
    import open3d as o3d

    depth = GivenGeometrySource().read(clip_of(recording), frames).depth
    intrinsics = true_intrinsics(recording, frames)
    option = o3d.pipelines.odometry.OdometryOption()
    option.depth_diff_max = (
        0.3  # the default 0.03 m refuses most of a step of 8 cm; of 0.03, 0.1, 0.3 the best
    )
    poses, previous = [np.eye(4)], None
    for i, rgb in enumerate(frames):
        z = depth.read(i)
        assert z is not None
        z = cv2.resize(
            np.nan_to_num(z, posinf=0.0), (frames.width, frames.height), interpolation=cv2.INTER_NEAREST
        )
        image = o3d.geometry.RGBDImage.create_from_color_and_depth(
            o3d.geometry.Image(np.ascontiguousarray(rgb)),
            o3d.geometry.Image(np.ascontiguousarray(z, np.float32)),
            depth_scale=1.0,
            depth_trunc=10.0,
        )
        if previous is not None:
            K = intrinsics[i]
            camera = o3d.camera.PinholeCameraIntrinsic(
                frames.width, frames.height, K[0, 0], K[1, 1], K[0, 2] - 0.5, K[1, 2] - 0.5
            )
            found, motion, _ = o3d.pipelines.odometry.compute_rgbd_odometry(
                image,
                previous,
                camera,
                np.eye(4),
                o3d.pipelines.odometry.RGBDOdometryJacobianFromHybridTerm(),
                option,
            )
            # Helped where it loses itself: a failed or absurd step counts as standing still.
            lost = not found or np.linalg.norm(motion[:3, 3]) > 1.0
            poses.append(poses[-1] if lost else poses[-1] @ motion)
        previous = image
    return np.stack(poses), np.arange(len(frames)), None, "se3"


def run_colmap(recording: Recording, frames: ClipFrames, work: Path) -> tuple[Any, ...]:
    import pycolmap

    folder = work / f"colmap-{recording.name}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for i, rgb in enumerate(frames):
        cv2.imwrite(str(folder / f"images/{i:06d}.jpg"), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97])
    database = folder / "database.db"
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_PINHOLE"
    mode = pycolmap.CameraMode.PER_IMAGE if recording.zooms else pycolmap.CameraMode.SINGLE
    pycolmap.extract_features(database, folder / "images", camera_mode=mode, reader_options=reader)
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap, pairing.quadratic_overlap, pairing.loop_detection = 10, True, False
    pycolmap.match_sequential(database, pairing_options=pairing)
    models = pycolmap.incremental_mapping(database, folder / "images", folder / "sparse")
    if not models:
        raise RuntimeError("no model")
    model = max(models.values(), key=lambda m: m.num_reg_images())
    found = []
    for image in model.images.values():
        if image.has_pose:
            pose = image.cam_from_world
            pose = pose() if callable(pose) else pose
            focal = model.cameras[image.camera_id].params[0]
            found.append((int(image.name[:6]), pose.inverse().matrix(), focal))
    found.sort(key=lambda item: item[0])
    focal = np.array([[f, f] for _, _, f in found])
    return to_4x4(np.stack([p for _, p, _ in found])), np.array([i for i, _, _ in found]), focal, "sim3"


def run_ours(recording: Recording, frames: ClipFrames, work: Path) -> tuple[Any, ...]:
    out = work / f"ours-{recording.name}"
    shutil.rmtree(out, ignore_errors=True)
    index = work / f"{recording.name}.yaml"
    index.write_text(yaml.safe_dump({"clips": [{"clip_id": recording.name, **recording.fields}]}))
    command = [sys.executable, "-c", "from theodolite.recipes.cli import main; main()"]
    command += ["annotate", "rgbd", "--out", str(out)]
    command += ["--workers", "1", "--set", f"source.index={index}"]
    for key, value in recording.decode.items():
        command += ["--set", f"annotate.decode.{key}={value}"]
    subprocess.run(command, check=False, stdout=sys.stderr)
    row = open_dataset(out).row(recording.name)
    if len(row.camera_to_world) == 0:
        raise RuntimeError(f"rejected: {', '.join(row.reasons)}: {'; '.join(row.reason_details)}")
    if not np.array_equal(row.frame_index, frames.timing.frame_index):
        raise RuntimeError("ours saw other frames than the rivals")
    poses = np.asarray(row.camera_to_world, np.float64)
    return poses, np.arange(len(frames)), np.asarray(row.focal_px, np.float64), "se3"


METHODS = {"open3d": run_open3d, "colmap": run_colmap, "ours": run_ours}


def measure(recording: Recording, method: str, work: Path) -> dict[str, Any]:
    """One cell of the table; a method that fails gives its reason."""
    frames = open_clip(clip_of(recording), DecodeConfig(**recording.decode))
    truth = read_trajectory(Path(recording.fields["truth_camera_to_world_path"])).camera_to_world
    truth = truth[frames.timing.frame_index]
    start = time.perf_counter()
    try:
        poses, solved, focal, alignment = METHODS[method](recording, frames, work)
        if len(solved) < 3:
            raise RuntimeError(f"only {len(solved)} of {len(frames)} frames")
        error = trajectory_error(poses, truth[solved], alignment=alignment)
        (work / "poses").mkdir(exist_ok=True)
        np.savez(
            work / f"poses/{recording.name}-{method}.npz", poses=poses, solved=solved, truth=truth[solved]
        )
    except (RuntimeError, ValueError) as failure:
        return {"failed": str(failure), "frames": len(frames), "seconds": time.perf_counter() - start}
    relative = relative_pose_error(poses, truth[solved], scale=error.scale)
    result: dict[str, Any] = {
        "alignment": alignment,
        "frames": len(frames),
        "solved": len(solved),
        "path_m": error.path_length_m,
        "ate_m": error.ate_rmse_m,
        "rpe_mm": 1000 * relative.translation_rmse_m,
        "rpe_deg": relative.rotation_rmse_deg,
        "seconds": time.perf_counter() - start,
    }
    if recording.truth_beside:
        result |= beside(poses, truth[solved], alignment)
    if focal is not None:
        K = true_intrinsics(recording, frames)[solved]
        known = np.stack([K[:, 0, 0], K[:, 1, 1]], -1)
        result["focal_mape_percent"] = focal_mape_percent(focal, known)
        result["focal_spread_percent"] = float(100 * np.std(focal[:, 0]) / np.mean(focal[:, 0]))
    return result


def beside(poses: np.ndarray, truth: np.ndarray, alignment: Literal["se3", "sim3"]) -> dict[str, float]:
    """ATE with a constant offset between the camera of the images and the true one left free, and how long it is."""
    moved, offset = as_truth_camera(poses, truth, alignment=alignment)
    return {
        "ate_beside_m": trajectory_error(moved, truth, alignment="se3").ate_rmse_m,
        "offset_m": float(np.linalg.norm(offset[:3, 3])),
    }


def table(results: dict[str, dict[str, Any]], names: list[str]) -> Iterator[str]:
    yield (
        "| recording | method | frames | path m | ATE cm | offset free: ATE, offset cm | aligned | RPE mm | RPE deg |"
        " focal % | spread % | s |"
    )
    yield "| --- " * 12 + "|"
    for name in names:
        for method in METHODS:
            r = results.get(f"{name}/{method}")
            if r is None:
                continue
            if "failed" in r:
                yield f"| {name} | {method} | 0/{r['frames']} | | failed: {r['failed'][:60]} | | | | | | | |"
                continue
            focal = f"{r['focal_mape_percent']:.2f}" if "focal_mape_percent" in r else "given"
            free = f"{100 * r['ate_beside_m']:.2f}, {100 * r['offset_m']:.1f}" if "ate_beside_m" in r else ""
            spread = f"{r['focal_spread_percent']:.2f}" if "focal_spread_percent" in r else ""
            yield (
                f"| {name} | {method} | {r['solved']}/{r['frames']} | {r['path_m']:.2f} | {100 * r['ate_m']:.2f} |"
                f" {free} | {r['alignment']} | {r['rpe_mm']:.1f} | {r['rpe_deg']:.3f} | {focal} | {spread} |"
                f" {r['seconds']:.0f} |"
            )


def common_frames(work: Path, names: list[str]) -> Iterator[str]:
    """ATE of ours and of pycolmap on the frames that pycolmap registered, each aligned on just these."""
    yield "| recording | frames | pycolmap ATE cm (sim3) | ours ATE cm (se3) |"
    yield "| --- | --- | --- | --- |"
    for name in names:
        paths = [work / f"poses/{name}-{method}.npz" for method in ("colmap", "ours")]
        if not all(path.is_file() for path in paths):
            continue
        rival, ours = (np.load(path) for path in paths)
        both, i, j = np.intersect1d(rival["solved"], ours["solved"], return_indices=True)
        if len(both) < 3:
            continue
        compared: list[tuple[Any, np.ndarray, AlignmentKind]] = [(rival, i, "sim3"), (ours, j, "se3")]
        errors = [
            trajectory_error(found["poses"][at], found["truth"][at], alignment=alignment).ate_rmse_m
            for found, at, alignment in compared
        ]
        yield f"| {name} | {len(both)} | {100 * errors[0]:.2f} | {100 * errors[1]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True, help="scratch folder outside the repository")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--recordings", default="")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data}: the recordings are not here; nothing to compare")
    data, work = options.data.resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    known = recordings(data, work)
    names = options.recordings.split(",") if options.recordings else list(known)
    if any(known[name].zooms for name in names):
        write_zoom_depth(data, work)
    cache = work / "results.json"

    def cached() -> dict[str, dict[str, Any]]:
        return json.loads(cache.read_text()) if cache.is_file() else {}

    for name in names:
        for method in options.methods.split(","):
            key = f"{name}/{method}"
            if key in cached():
                continue
            print(f"{key} ...", file=sys.stderr, flush=True)
            result = measure(known[name], method, work)
            # Read again: another process may fill other cells.
            cache.write_text(json.dumps({**cached(), key: result}, indent=1))
    print("\n".join(table(cached(), names)))
    print()
    print("\n".join(common_frames(work, names)))


if __name__ == "__main__":
    main()
