"""`theodolite render`: clips along new paths through scenes of splats, in the layout of the source `dl3dv-gs`.

A clip is a folder with `video.mp4`, `poses.npy`, `intrinsics.npy` and `meta.json`, which is written last: without it
the folder is no clip, and the same command makes it again. With depth, `clips.yaml` lists the clips for `annotate
rgbd`, their true cameras included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from .. import __version__
from ..annotate.splats.paths import PathGates, ScenePath, SolidScene, find_path
from ..annotate.splats.render import Renderer
from ..annotate.splats.scene import Splats, TrainedCameras, read_splats, read_trained_cameras
from ..dataset.arrays import F64, U8
from ..dataset.cameras.paths import FPS
from ..dataset.media.write import VideoWriter
from ..dataset.names import as_name
from ..dataset.store import write_atomically
from ..dataset.weights import file_digest

_DEPTH_STEPS = 65_000
_LEAST_ALPHA = 0.95
_BLACK, _MOST_BLACK = 16, 0.3
Fixer = Callable[[U8], U8]
"""(F, H, W, 3) frames as rendered to frames that are kept; an external network (DiFix3D is non-commercial)."""


@dataclass(frozen=True, kw_only=True)
class RenderJob:
    """What is rendered of a scene.

    Attributes:
        scene: PLY file of splats. cameras: `cameras.json` of its training.
        paths: names of camera paths; starts: how many cameras of the training each begins at.
        fov_deg: horizontal; None: of the training.
        metres_per_unit: of the scene; None: unknown, and `annotate corpus/dl3dv-gs` brings it to metres.
        depth: also write depth, in steps of the scene's unit.
        licence: of the scene's data.
    """

    scene: Path
    cameras: Path
    out: Path
    paths: tuple[str, ...]
    starts: int = 1
    num_frames: int = 961
    height: int = 720
    width: int = 1280
    fov_deg: float | None = None
    metres_per_unit: float | None = None
    depth: bool = False
    licence: str = "unknown"
    gates: PathGates = field(default_factory=PathGates)


def run_render(
    job: RenderJob,
    renderer: Renderer,
    device: torch.device,
    *,
    fixer: Fixer | None,
    say: Callable[[str], None],
) -> tuple[str, int]:
    """Render every path of a scene that passes its gates and is not there yet.

    Returns:
        A line for each path, and 0; 1 if none was taken.
    Raises:
        ValueError: files that are no scene, or sizes that cannot be encoded.
    """
    if job.height % 2 or job.width % 2:
        raise ValueError(f"--size {job.width}x{job.height}: both must be even")
    splats, trained = read_splats(job.scene), read_trained_cameras(job.cameras)
    digest = file_digest(job.scene)
    solid = SolidScene(splats, trained, job.gates)
    say(
        f"{job.scene}: {len(splats):,} splats, usual depth {solid.usual_depth:.3g}, {len(trained.focal_px)} cameras"
    )
    on_device = splats.to(device)
    lens = _intrinsics(job, trained)
    lines, taken = [], 0
    for name, number, start in _starts(job, trained):
        folder = job.out / f"{as_name(job.scene.stem)}_{as_name(name)}_{number:04d}"
        if (folder / "meta.json").is_file():
            taken += 1
            lines.append(f"{folder.name}: was there")
            continue
        path = find_path(solid, name, start, num_frames=job.num_frames)
        what = (
            f"{folder.name}: size {path.size:.3g}, clearance {path.clearance:.3g}, covered {path.covered:.2f}"
        )
        if path.problem is not None:
            lines.append(f"{what}: not taken, {path.problem}")
            continue
        black = _write_clip(folder, job, on_device, path, lens, renderer, fixer)
        if black > _MOST_BLACK:
            lines.append(f"{what}: not taken, {100 * black:.0f} % of its pixels are black")
            continue
        _write_meta(folder, job, path, renderer, fixer, digest)
        taken += 1
        lines.append(what)
        say(what)
    if job.depth:
        _write_index(job)
    return "\n".join([*lines, f"{job.out}: {taken} clips"]), 0 if taken else 1


def _starts(job: RenderJob, trained: TrainedCameras) -> Iterator[tuple[str, int, F64]]:
    """Path, number and pose of each start: cameras of the training, spread evenly over them."""
    count = len(trained.camera_to_world)
    numbers = np.unique(np.linspace(0, count - 1, min(job.starts, count)).round().astype(int)).tolist()
    for name in job.paths:
        for number in numbers:
            yield name, number, trained.camera_to_world[number]


def _intrinsics(job: RenderJob, trained: TrainedCameras) -> F64:
    """(4,) fx, fy, cx, cy in pixels of the video; square pixels, principal point in the middle."""
    if job.fov_deg is None:
        focal = float(np.median(trained.focal_px[:, 0] / trained.size_px[:, 0])) * job.width
    else:
        focal = job.width / 2 / float(np.tan(np.radians(job.fov_deg) / 2))
    return np.array([focal, focal, job.width / 2, job.height / 2])


def _write_clip(
    folder: Path,
    job: RenderJob,
    splats: Splats,
    path: ScenePath,
    lens: F64,
    renderer: Renderer,
    fixer: Fixer | None,
) -> float:
    """Video, cameras and depth; returns the share of pixels that are nearly black."""
    folder.mkdir(parents=True, exist_ok=True)
    device = splats.means.device
    matrix = torch.tensor(
        [[lens[0], 0, lens[2]], [0, lens[1], lens[3]], [0, 0, 1]], dtype=torch.float32, device=device
    )
    poses = torch.from_numpy(path.camera_to_world).float().to(device)
    black: list[float] = []
    with VideoWriter(folder / "video.mp4", width=job.width, height=job.height, fps=FPS) as video:
        for frames in _drawn(folder, job, splats, poses, matrix, renderer):
            for rgb in frames if fixer is None else _fixed(fixer, frames):
                black.append(float((rgb.max(axis=-1) < _BLACK).mean()))
                video.write(rgb)
    np.save(folder / "poses.npy", path.camera_to_world)
    np.save(folder / "intrinsics.npy", np.tile(lens, (len(poses), 1)))
    return float(np.mean(black))


def _drawn(
    folder: Path, job: RenderJob, splats: Splats, poses: torch.Tensor, lens: torch.Tensor, renderer: Renderer
) -> Iterator[U8]:
    """Frames as (n, H, W, 3), some at a time, so that a fixer sees neighbours; depth is written on the way."""
    if job.depth:
        (folder / "depth").mkdir(exist_ok=True)
    pending: list[U8] = []
    for i, pose in enumerate(poses):
        picture = renderer.draw(splats, pose, lens, (job.height, job.width))
        pending.append((255 * picture.rgb).round().clamp(0, 255).byte().cpu().numpy())
        if job.depth:
            depth = (picture.depth / _depth_step(job)).round()
            depth = torch.where(
                (picture.alpha > _LEAST_ALPHA) & (depth < 65_535), depth, torch.zeros_like(depth)
            )
            written = cv2.imwrite(str(folder / f"depth/{i:06d}.png"), depth.cpu().numpy().astype(np.uint16))
            if not written:
                raise OSError(f"{folder}: depth cannot be written")
        if len(pending) == 16 or i + 1 == len(poses):
            yield np.stack(pending)
            pending = []


def _fixed(fixer: Fixer, frames: U8) -> U8:
    fixed = fixer(frames)
    if fixed.shape != frames.shape or fixed.dtype != np.uint8:
        raise ValueError(f"the fixer gave {fixed.dtype} {fixed.shape} for uint8 {frames.shape}")
    return fixed


def _depth_step(job: RenderJob) -> float:
    """Of one grey level, in the scene's unit: a thousandth of a metre, or of a unit where metres are unknown."""
    return 0.001 / (job.metres_per_unit or 1.0)


def _write_meta(
    folder: Path, job: RenderJob, path: ScenePath, renderer: Renderer, fixer: Fixer | None, digest: str
) -> None:
    meta: dict[str, Any] = {
        "scene": job.scene.name,
        "scene_digest": digest,
        "path": path.name,
        "path_size": path.size,
        "clearance": path.clearance,
        "covered": path.covered,
        "gates": job.gates.model_dump(mode="json"),
        "renderer": renderer.name,
        "fixer": None
        if fixer is None
        else f"{fixer.__module__}:{getattr(fixer, '__name__', type(fixer).__name__)}",
        "licence": job.licence,
        "theodolite": __version__,
    }
    if job.metres_per_unit is not None:
        meta["metres_per_unit"] = job.metres_per_unit
    write_atomically(folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())


def _write_index(job: RenderJob) -> None:
    """`clips.yaml` of all clips with depth, for mode given_depth; unknown metres count as units."""
    clips: Sequence[dict[str, Any]] = [
        {
            "clip_id": folder.name,
            "media_path": f"{folder.name}/video.mp4",
            "depth_pattern": f"{folder.name}/depth/{{frame:06d}}.png",
            "depth_units_per_metre": 1000,
            "truth_camera_to_world_path": f"{folder.name}/poses.npy",
            "truth_intrinsics_path": f"{folder.name}/intrinsics.npy",
            "data_licence": job.licence,
        }
        for folder in sorted(job.out.iterdir())
        if (folder / "meta.json").is_file() and (folder / "depth").is_dir()
    ]
    if clips:
        write_atomically(job.out / "clips.yaml", yaml.safe_dump({"clips": clips}, sort_keys=False).encode())
