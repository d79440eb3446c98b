"""Damaged copies of RGB-D recordings through the pipeline: which faults of given depth are told, in which words.

    python benchmarks/depth_faults.py --data ../shared/data [--before] [--only flip,late] [--recordings office]

Each fault is written as files and read back, so the readers are in it. `--before` runs each copy once more with the
gates of given depth open: what the bundle makes of it, its error against the true path (ATE after a rigid alignment)
and its focal length; that is the slow part. Without it only tracks are measured, and the check is run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.metrics.trajectory import trajectory_error
from theodolite.dataset.rows import Row

F32 = NDArray[np.float32]
Fault = Callable[["Recording"], F32]
OPEN = {
    "min_depth_margin_log": -1e3,
    "max_depth_unexplained": 1e3,
    "max_depth_inconsistency_log": 1e3,
    "max_depth_unit_step_log": 1e3,
}
"""Gates of given depth that pass everything."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording in memory: (F, h, w) depth in metres, NaN where none, of every source frame."""

    name: str
    media: Path
    depth: F32
    camera_to_world: NDArray[np.float64]
    focal_px: float
    focal_of_depth_px: float
    frames: int
    fps: float | None

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(7)


def recordings(
    data: Path, frames: int, temporary: Path, wanted: Callable[[str], bool]
) -> Iterator[Recording]:
    """The recordings of the table whose names are wanted, the first `frames` source frames of each."""
    for name, media, units, focal, fps in (
        ("office-a", "rgbd-office-a/rgb.mp4", 1000.0, 495.6, None),
        ("redkitchen", "rgbd-redkitchen/rgb.mp4", 1000.0, 521.0, None),
        ("tum-mini", "rgbd-tum-mini/rgb", 5000.0, 517.3, 30.0),
    ):
        if not wanted(name):
            continue
        folder = (data / media).parent
        files = sorted((folder / "depth").glob("*.png"))
        maps = [np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in files]
        depth = np.stack([np.where(z > 0, z / np.float32(units), np.float32(np.nan)) for z in maps])
        poses = read_trajectory(folder / "poses_c2w.txt").camera_to_world
        width = 540 if name == "office-a" else 640
        yield Recording(
            name=name,
            media=data / media,
            depth=depth,
            camera_to_world=poses,
            focal_px=focal,
            focal_of_depth_px=focal * depth.shape[2] / width,
            frames=frames,
            fps=fps,
        )
    for seed in (0, 3):
        if not wanted(f"rendered-{seed}"):
            continue
        clip = render_clip(
            RenderConfig(width=480, height=270, num_frames=81, seed=seed, moving_object=seed == 3)
        )
        written = write_clip(clip, temporary / f"rendered-{seed}", depth_units_per_metre=None)
        yield Recording(
            name=f"rendered-{seed}",
            media=written.media_path,
            depth=np.stack([frame.depth_m for frame in clip]),
            camera_to_world=clip.camera_to_world,
            focal_px=float(clip.intrinsics[0, 0, 0]),
            focal_of_depth_px=float(clip.intrinsics[0, 0, 0]),
            frames=frames,
            fps=None,
        )


def shown_again(maps: F32, like: F32) -> F32:
    """Maps at the size of others."""
    height, width = like.shape[1:]
    out = np.empty_like(like)
    for z, to in zip(maps, out, strict=True):
        to[:] = cv2.resize(np.ascontiguousarray(z), (width, height), interpolation=cv2.INTER_NEAREST)
    return out


def late(by: int) -> Fault:
    return lambda r: r.depth[np.clip(np.arange(len(r.depth)) - by, 0, len(r.depth) - 1)]


def rate(factor: float) -> Fault:
    return lambda r: r.depth[np.minimum((np.arange(len(r.depth)) * factor).astype(int), len(r.depth) - 1)]


def ray(r: Recording) -> F32:
    height, width = r.depth.shape[1:]
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = (x - width / 2) / r.focal_of_depth_px, (y - height / 2) / r.focal_of_depth_px
    return np.sqrt(1 + x**2 + y**2).astype(np.float32)


def cropped(scale_x: float, scale_y: float, offset_x: float = 0.0) -> Fault:
    def fault(r: Recording) -> F32:
        height, width = r.depth.shape[1:]
        x = ((np.arange(width) + 0.5) / width - 0.5) * scale_x + 0.5 + offset_x
        y = ((np.arange(height) + 0.5) / height - 0.5) * scale_y + 0.5
        inside = ((y >= 0) & (y < 1))[:, None] & ((x >= 0) & (x < 1))[None]
        rows, columns = (np.clip(v * n, 0, n - 1).astype(int) for v, n in ((y, height), (x, width)))
        return np.where(inside, r.depth[:, rows][:, :, columns], np.nan).astype(np.float32)

    return fault


def normalised(r: Recording) -> F32:
    low, high = (np.nanpercentile(r.depth, q, axis=(1, 2), keepdims=True) for q in (1, 99))
    return np.clip((r.depth - low) / (high - low), 0.005, 1).astype(np.float32)


def noise(pixel: float, frame: float) -> Fault:
    def fault(r: Recording) -> F32:
        rng = r.rng
        per_frame = np.exp(frame * rng.standard_normal((len(r.depth), 1, 1)))
        return (r.depth * per_frame * np.exp(pixel * rng.standard_normal(r.depth.shape, np.float32))).astype(
            np.float32
        )

    return fault


def patches(size: float) -> Fault:
    def fault(r: Recording) -> F32:
        rng, (height, width) = r.rng, r.depth.shape[1:]

        def field() -> NDArray[np.float64]:
            rough = rng.standard_normal((5, 8))
            smooth = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
            return (smooth - smooth.mean()) / smooth.std()

        return np.stack([z * np.exp(size * field()) for z in r.depth]).astype(np.float32)

    return fault


def missing(r: Recording) -> F32:
    out = r.depth.copy()
    out[2 * r.frames // 5 : 3 * r.frames // 5] = np.nan
    return out


def bytes_of(change: Callable[[NDArray[np.uint16]], NDArray]) -> Fault:
    def fault(r: Recording) -> F32:
        stored = change(np.nan_to_num(r.depth * 1000).astype(np.uint16)).astype(np.float32) / 1000
        return np.where(stored > 0, stored, np.nan).astype(np.float32)

    return fault


HONEST: dict[str, Fault] = {
    "clean": lambda r: r.depth,
    "noise 5 % pixel": noise(0.05, 0.0),
    "noise 20 % pixel": noise(0.2, 0.0),
    "noise 10 % frame": noise(0.0, 0.1),
    "noise 5 % patches": patches(0.05),
    "fifth without depth": missing,
}
FAULTS: dict[str, Fault] = {
    "flip vertical": lambda r: r.depth[:, ::-1],
    "flip horizontal": lambda r: r.depth[:, :, ::-1],
    "turn 180": lambda r: r.depth[:, ::-1, ::-1],
    "transposed": lambda r: shown_again(r.depth.transpose(0, 2, 1), r.depth),
    "turn 90": lambda r: shown_again(np.rot90(r.depth, 1, (1, 2)), r.depth),
    "late 1": late(1),
    "early 1": late(-1),
    "late 2": late(2),
    "late 5": late(5),
    "early 10": late(-10),
    "late 40": late(40),
    "half rate": rate(0.5),
    "24 for 30 fps": rate(0.8),
    "last to first": lambda r: r.depth[::-1],
    "img10 before img2": lambda r: r.depth[[int(i) for i in sorted(map(str, range(len(r.depth))))]],
    "ray distance": lambda r: r.depth * ray(r),
    "disparity": lambda r: 1 / r.depth,
    "affine disparity": lambda r: 0.5 / r.depth + 0.05,
    "relative per frame": normalised,
    "one depth": lambda r: np.where(np.isfinite(r.depth), np.float32(2), np.float32(np.nan)),
    "crop 0.8": cropped(0.8, 0.8),
    "bars at the sides": cropped(0.75, 1.0),
    "10 % off": cropped(1.0, 1.0, 0.1),
    "low byte": bytes_of(lambda z: z & 0xFF),
    "bytes swapped": bytes_of(lambda z: z.byteswap()),
}


def annotated(r: Recording, depth: F32, folder: Path, gates: dict[str, Any]) -> Row:
    """The row of a recording with `depth`, which is written to files and read again."""
    folder.mkdir()
    for i, z in enumerate(depth):
        np.save(folder / f"{i:06d}.npy", z.astype(np.float32))
    clip = ClipRef(
        clip_id=r.name,
        source="faults",
        original_id=r.name,
        media_kind="images" if r.media.is_dir() else "video",
        media_path=r.media,
        source_fps=r.fps,
        given=GivenGeometry(depth_pattern=str(folder / "{frame:06d}.npy"), depth_units_per_metre=1.0),
    )
    decode = {"min_frames": 8, "max_frames": r.frames, **({"fps": "native"} if r.media.is_dir() else {})}
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "given"}, "decode": decode, "gates": gates}
    )
    row = annotate_clip(clip, config, mode="given_depth", recipe_hash="0" * 16)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return row


def described(r: Recording, row: Row) -> str:
    if not len(row.camera_to_world):
        return f"{row.verdict}: {row.reasons[0]}: {row.reason_details[0]}" if row.reasons else row.verdict
    truth = r.camera_to_world[row.frame_index]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    focal = 100 * np.abs(np.asarray(row.focal_px)[:, 0] / r.focal_px - 1).max()
    return (
        f"{row.verdict}{' ' + '+'.join(row.reasons) if row.reasons else ''}, ATE {100 * error.ate_rmse_m:.1f} cm,"
        f" focal {focal:.1f} % off"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--frames", type=int, default=100, help="frames of each recording")
    parser.add_argument("--before", action="store_true", help="also with the gates of given depth open")
    parser.add_argument(
        "--recordings", default="", help="only those whose name holds one of these, by commas"
    )
    parser.add_argument("--only", default="", help="only faults whose name holds one of these, by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def wanted(name: str, among: str) -> bool:
        return not among or any(part in name for part in among.split(","))

    with tempfile.TemporaryDirectory() as temporary:
        chosen = recordings(
            arguments.data, arguments.frames, Path(temporary), lambda name: wanted(name, arguments.recordings)
        )
        for r in chosen:
            for name, fault in {**HONEST, **FAULTS}.items():
                if not wanted(name, arguments.only):
                    continue
                depth = fault(r)
                folder = Path(temporary) / "depth"
                row = annotated(r, depth, folder, {})
                print(f"{r.name} | {name} | {described(r, row)}", flush=True)
                if arguments.before:
                    row = annotated(r, depth, folder, OPEN)
                    print(f"{r.name} | {name} | before: {described(r, row)}", flush=True)


if __name__ == "__main__":
    main()
