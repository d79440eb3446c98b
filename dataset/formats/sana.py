"""NVIDIA's SANA-WM layouts: the `.npy` pair of its command line, training zips with camera sidecars, the
benchmark.

Source: NVlabs/Sana, docs/sana_wm.md, docs/sana-wm-bench.md and sana_wm_zip_latent_data.py (field names and
shapes).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cameras.intrinsics import fov_from_focal, split_intrinsics
from ..inputs import (
    Archive,
    InputError,
    finite_int,
    parse_json,
    read_bytes,
    read_json,
    read_npy,
    read_npz,
    read_text,
    reader,
    reading,
)
from ..media.images import decode_image
from ..metrics.image import RevisitPair
from ..names import below
from .base import CameraClip

FOV_RANGE_DEG = (25.0, 120.0)
"""What NVIDIA's inference code accepts, both axes."""
SPLITS = {"simple_60s": "benchmark_v2_smooth_60s", "hard_60s": "benchmark_v2_hard_60s"}


def _check_fov(clip: CameraClip) -> None:
    for axis, (size, label) in enumerate(((clip.width, "horizontal"), (clip.height, "vertical"))):
        fov = np.rad2deg(fov_from_focal(clip.focal_px[:, axis], size))
        bad = (fov < FOV_RANGE_DEG[0]) | (fov > FOV_RANGE_DEG[1])
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"clip {clip.name}: {label} field of view is {fov[i]:.1f} degrees at frame {i}; "
                f"SANA-WM accepts {FOV_RANGE_DEG[0]:g} to {FOV_RANGE_DEG[1]:g}"
            )


def write_sana_npy(clip: CameraClip, folder: str | Path) -> tuple[Path, Path]:
    """`<name>_pose.npy` (F, 4, 4) and `<name>_intrinsics.npy` (F, 3, 3) float32, pixels of the stored size.

    Raises:
        ValueError: a field of view that NVIDIA's code refuses.
    """
    _check_fov(clip)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pose, intrinsics = folder / f"{clip.name}_pose.npy", folder / f"{clip.name}_intrinsics.npy"
    np.save(pose, clip.camera_to_world.astype(np.float32))
    np.save(intrinsics, clip.intrinsics.astype(np.float32))
    return pose, intrinsics


@reader("pair of .npy files")
def read_sana_npy(
    pose: str | Path, intrinsics: str | Path, *, height: int, width: int, name: str = "clip"
) -> CameraClip:
    """Cameras of the `.npy` pair; intrinsics may be (4,), (3, 3), (F, 4) or (F, 3, 3) for a height x width
    image."""
    poses, k = read_npy(pose), read_npy(intrinsics)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"{pose}: shape {poses.shape}, expected (F, 4, 4)")
    focal, centre = focal_and_centre(k, len(poses), str(intrinsics))
    return CameraClip(
        name=name,
        camera_to_world=poses,
        focal_px=focal,
        principal_point_px=centre,
        height=height,
        width=width,
    )


def focal_and_centre(k: np.ndarray, frames: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(F, 2) focal lengths and principal points of intrinsics of shape (4,), (F, 4), (3, 3) or (F, 3, 3).

    Raises:
        ValueError: another shape.
    """
    k = np.asarray(k, dtype=np.float64)
    if k.shape in ((4,), (frames, 4)):
        k = np.broadcast_to(k, (frames, 4))
        return k[:, :2].copy(), k[:, 2:].copy()
    if k.shape in ((3, 3), (frames, 3, 3)):
        return split_intrinsics(np.broadcast_to(k, (frames, 3, 3)))
    raise ValueError(f"{where}: shape {k.shape}, expected (4,), (3, 3), ({frames}, 4) or ({frames}, 3, 3)")


def write_sana_zip(
    clips: Sequence[CameraClip],
    zip_path: str | Path,
    *,
    videos: Mapping[str, Path] | None = None,
) -> list[Path]:
    """One training shard: `<stem>.zip` with `<key>.json` (and `<key>.mp4` where given), `<stem>_camera.npz`
    and sidecars.

    Our translations are metres already, so `<stem>_metric_scale_stats.json` says 1.0 for every key (their
    loader would assume the same silently). Every score of the clips becomes a sidecar `<stem>_<score>.json`.

    Returns:
        Files written.
    Raises:
        ValueError: no clips, or keys that are not unique.
    """
    zip_path = Path(zip_path)
    keys = [c.name for c in clips]
    if not clips or len(set(keys)) != len(keys):
        raise ValueError(f"{zip_path}: needs at least one clip and unique names, found {keys[:5]}")
    zip_path.parent.mkdir(parents=True, exist_ok=True)
    stem = zip_path.with_suffix("")
    with zipfile.ZipFile(zip_path, "w", compression=zipfile.ZIP_STORED) as archive:
        for clip in clips:
            info = {"prompt": clip.caption or "", "width": clip.width, "height": clip.height}
            archive.writestr(_entry(f"{clip.name}.json"), json.dumps(info))
            if videos is not None and clip.name in videos:
                archive.writestr(_entry(f"{clip.name}.mp4"), videos[clip.name].read_bytes())
    counts = np.array([len(c) for c in clips], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    camera = Path(f"{stem}_camera.npz")
    np.savez(
        camera,
        ids=np.array(keys),
        ranges=np.stack([starts, counts], axis=1),
        pose=np.concatenate([c.camera_to_world for c in clips]).astype(np.float32),
        intrinsics=np.concatenate(
            [np.concatenate([c.focal_px, c.principal_point_px], 1) for c in clips]
        ).astype(np.float32),
    )
    written = [zip_path, camera]
    sidecars: dict[str, dict[str, Any]] = {"metric_scale_stats": {k: {"median": 1.0} for k in keys}}
    for score in sorted({s for c in clips for s in c.scores}):
        sidecars[score] = {c.name: {score: c.scores[score]} for c in clips if score in c.scores}
    for suffix, content in sidecars.items():
        target = Path(f"{stem}_{suffix}.json")
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        written.append(target)
    return written


def _entry(name: str) -> zipfile.ZipInfo:
    """Entry with a fixed date, so that the same clips give the same bytes."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


@reader("training shard of SANA-WM")
def read_sana_zip(zip_path: str | Path) -> list[CameraClip]:
    """Clips of a training shard. Translations are multiplied by the shard's metric scale, as NVIDIA's loader
    does.

    Raises:
        ValueError: files missing, or a clip without a camera (their loader would put the identity there
            silently).
    """
    zip_path = Path(zip_path)
    stem = zip_path.with_suffix("")
    camera_path = Path(f"{stem}_camera.npz")
    if not zip_path.is_file() or not camera_path.is_file():
        raise ValueError(f"{zip_path}: needs the zip and {camera_path.name} beside it")
    scale_path = Path(f"{stem}_metric_scale_stats.json")
    scales = read_json(scale_path) if scale_path.is_file() else {}
    with Archive(zip_path) as archive:
        infos = {
            n[:-5]: parse_json(archive.read(n), f"{zip_path}: {n[:200]}")
            for n in sorted(archive.names)
            if n.endswith(".json")
        }
    ranges, pose, intrinsics = _cameras_of_shard(camera_path)
    clips: list[CameraClip] = []
    for key, info in infos.items():
        if key not in ranges:
            raise ValueError(f"{zip_path}: clip {key} has no camera in {camera_path.name}")
        start, count = ranges[key]
        with reading(scale_path, "file of metric scales", key):
            scale = float(scales.get(key, {}).get("median", 1.0))
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"{scale_path}: clip {key} has scale {scale}")
        poses = pose[start : start + count].copy()
        poses[:, :3, 3] *= scale
        clips.append(
            CameraClip(
                name=key,
                camera_to_world=poses,
                focal_px=intrinsics[start : start + count, :2],
                principal_point_px=intrinsics[start : start + count, 2:],
                height=finite_int(info["height"], f"{key}: height"),
                width=finite_int(info["width"], f"{key}: width"),
                caption=str(info.get("prompt") or "") or None,
            )
        )
    return clips


@reader("file of cameras")
def _cameras_of_shard(path: Path) -> tuple[dict[str, tuple[int, int]], np.ndarray, np.ndarray]:
    """Place (first, count) of each clip by key, poses (N, 4, 4) and intrinsics (N, 4) of all."""
    read = read_npz(path, ("ids", "ranges", "pose", "intrinsics"))
    pose, intrinsics = read["pose"].astype(np.float64), read["intrinsics"].astype(np.float64)
    if pose.shape[1:] != (4, 4) or intrinsics.shape != (len(pose), 4):
        raise InputError(
            f"{path}: pose {pose.shape} and intrinsics {intrinsics.shape}, expected (N, 4, 4) and (N, 4)"
        )
    ranges: dict[str, tuple[int, int]] = {}
    for key, (start, count) in zip(read["ids"].tolist(), read["ranges"].tolist(), strict=True):
        if not 0 <= start <= start + count <= len(pose):
            raise InputError(
                f"{path}: clip {str(key)[:200]!r} has rows {start} to {start + count} of {len(pose)}"
            )
        ranges[str(key)] = int(start), int(count)
    return ranges, pose, intrinsics


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchScene:
    """One scene of the benchmark: cameras (961 frames at 16 fps), first image, prompt, revisit pairs."""

    clip: CameraClip
    image_png: bytes
    prompt: str
    pairs: tuple[RevisitPair, ...] = field(default_factory=tuple)


@reader("split of SANA-WM-Bench")
def read_sana_bench(root: str | Path, *, split: str) -> list[BenchScene]:
    """Scenes of one split, sorted by id.

    Raises:
        ValueError: unknown split, missing files, or a scene of another length.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected {', '.join(SPLITS)}")
    export = root / SPLITS[split] / "sanawm_export_v2"
    manifest = export / "run_manifest.jsonl"
    entries = [
        parse_json(line, f"{manifest}:{number}")
        for number, line in enumerate(read_text(manifest).splitlines(), start=1)
        if line.strip()
    ]
    meta = read_json(root / SPLITS[split] / "scene_trajectories_v2.json")
    pairs = {s["scene_id"]: s.get("evaluation_pairs", []) for s in meta["scenes"]}
    scenes: list[BenchScene] = []
    for entry in sorted(entries, key=lambda e: e["id"]):
        with reading(manifest, "scene", str(entry["id"])):
            camera, image = below(root, entry["camera_path"]), below(root, entry["image_path"])
            if not camera.is_file() or not image.is_file():
                raise InputError(f"{manifest}: scene {entry['id']} names a file that does not exist")
            png = read_bytes(image)
            height, width = decode_image(png, image).shape[:2]
            data = read_npz(camera, ("intrinsics", "c2w", "fps"))
            focal, centre = focal_and_centre(data["intrinsics"], len(data["c2w"]), str(camera))
            clip = CameraClip(
                name=entry["id"],
                camera_to_world=data["c2w"],
                focal_px=focal,
                principal_point_px=centre,
                height=height,
                width=width,
                time_s=np.arange(len(data["c2w"])) / float(data["fps"]),
            )
        scenes.append(
            BenchScene(
                clip=clip,
                image_png=png,
                prompt=entry["prompt"],
                pairs=tuple(
                    RevisitPair(
                        frame_a=int(p["frame_a"]),
                        frame_b=int(p["frame_b"]),
                        quality_score=float(p.get("quality_score", 999.0)),
                    )
                    for p in pairs.get(entry["id"], [])
                ),
            )
        )
    return scenes
