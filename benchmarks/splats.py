"""Splats on a GPU: gsplat against the plain renderer, frames a second, and a minute's cameras found again.

A room of Gaussians is made, a path of a minute is rendered through it with depth, in the layout of the source dl3dv-gs,
and `annotate rgbd` gets video and depth without cameras: what it finds is compared with the path. Where Open3D is not
installed the path is not tested by rays; it is known to be clear of this room.

    python benchmarks/splats.py --out runs/splats [--frames 961] [--size 1280x720] [--clip-size 640x360]
        [--renderer plain --device cpu]
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import torch
from theodolite.annotate.splats.paths import ScenePath, smoothed
from theodolite.annotate.splats.render import GsplatRenderer, PlainRenderer, Renderer
from theodolite.annotate.splats.scene import Splats, read_splats
from theodolite.dataset.cameras.paths import named_path
from theodolite.recipes.rendering import RenderJob, _write_clip, _write_index, _write_meta


def room_module():
    """The tests' room."""
    path = Path(__file__).parents[1] / "tests/annotate/splats/room.py"
    spec = importlib.util.spec_from_file_location("room", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def path_through(frames: int) -> np.ndarray:
    """(F, 4, 4) a lying eight of 3 m in the free half of the room, looking along it; turns and translates."""
    start = np.eye(4)
    start[:3, 3] = [-1.5, 0.2, -1.0]
    return start @ smoothed(named_path("figure-eight", frames, size_m=1.5), frames / 200)


def seconds_a_frame(renderer: Renderer, splats: Splats, poses, lens, size, count: int) -> float:
    """Mean over some frames of the path, after two that warm up."""
    device = splats.means.device
    chosen = np.linspace(0, len(poses) - 1, count + 2).astype(int)
    begun = 0.0
    for i, number in enumerate(chosen):
        if i == 2:
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
        renderer.draw(splats, poses[number], lens, size)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count


def viewer_loop(splats: Splats, poses, lens, size, count: int) -> float:
    """Seconds a frame of what gsplat's own viewer does for each: RGB, one camera, clamp, to the host as bytes."""
    from gsplat import rasterization

    begun = 0.0
    for i in range(count + 2):
        if i == 2:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        with torch.inference_mode():
            colours, _, _ = rasterization(
                splats.means,
                splats.quaternions_wxyz,
                splats.scales,
                splats.opacities,
                splats.harmonics,
                torch.linalg.inv(poses[i % len(poses)])[None],
                lens[None],
                size[1],
                size[0],
                sh_degree=splats.degree,
            )
            (255 * colours[0].clamp(0, 1)).byte().cpu().numpy()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count


def annotate(out: Path, poses: np.ndarray) -> None:
    """Cameras found from video and depth, against the path."""
    from theodolite.dataset.metrics.trajectory import focal_mape_percent, trajectory_error
    from theodolite.dataset.reading import open_dataset
    from theodolite.recipes.loader import load_recipe
    from theodolite.recipes.run import RunOptions, run_annotate

    recipe = load_recipe("rgbd", [f"source.index={out / 'clips.yaml'}", f"source.root={out}"])
    begun = time.perf_counter()
    _, code = run_annotate(recipe, out / "annotated", RunOptions(workers=0), show_progress=False)
    print(f"annotated in {time.perf_counter() - begun:.0f} s, exit code {code}", flush=True)
    row = next(open_dataset(out / "annotated").rows())
    print(f"verdict {row.verdict} {row.reasons} {row.reason_details}", flush=True)
    if len(row.camera_to_world):
        error = trajectory_error(row.camera_to_world, poses)
        lens = np.load(out / "room/intrinsics.npy")
        print(
            f"ATE {100 * error.ate_rmse_m:.2f} cm = {error.ate_percent_of_path:.3f} % of the path, focal"
            f" {focal_mape_percent(row.focal_px, lens[:, :2]):.2f} %",
            flush=True,
        )


def main() -> None:
    """Everything, printed as it is known: long, one measurement after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=961)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--clip-size", help="of the clip that is written and annotated, if another")
    parser.add_argument("--spacing-m", type=float, default=0.03)
    parser.add_argument("--renderer", default="gsplat")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-annotation", action="store_true")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    size, device = (height, width), torch.device(given.device)
    scene = room_module().write_room(given.out / "scene", given.spacing_m)
    splats = read_splats(scene).to(device)
    path = path_through(given.frames)
    poses = torch.from_numpy(path).float().to(device)
    lens = torch.tensor(
        [[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]], dtype=torch.float32, device=device
    )
    length = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1).sum()
    print(
        f"{len(splats):,} splats, {given.frames} frames of {width}x{height}, path of {length:.2f} m",
        flush=True,
    )
    renderer: Renderer = PlainRenderer()
    if given.renderer == "gsplat":
        begun = time.perf_counter()
        renderer = GsplatRenderer()
        fast = renderer.draw(splats, poses[0], lens, size)
        print(f"gsplat is there after {time.perf_counter() - begun:.0f} s", flush=True)
        for number in (0, given.frames // 3):
            fast, plain = (r.draw(splats, poses[number], lens, size) for r in (renderer, PlainRenderer()))
            both = (fast.alpha > 0.95) & (plain.alpha > 0.95)
            print(
                f"frame {number}: gsplat - plain: colour mean {float((fast.rgb - plain.rgb).abs().mean()):.2e}, largest"
                f" {float((fast.rgb - plain.rgb).abs().max()):.2e}; depth mean"
                f" {float((fast.depth - plain.depth)[both].abs().mean()):.2e}",
                flush=True,
            )
        print(
            f"gsplat's viewer loop: {1 / viewer_loop(splats, poses, lens, size, 200):.1f} frames/s",
            flush=True,
        )
    count = 200 if given.renderer == "gsplat" else 2
    each = seconds_a_frame(renderer, splats, poses, lens, size, count)
    print(f"{renderer.name}, colour and depth: {1 / each:.1f} frames/s", flush=True)
    if given.clip_size:
        width, height = map(int, given.clip_size.split("x"))
    job = RenderJob(
        scene=scene,
        cameras=scene.parent / "cameras.json",
        out=given.out / "clips",
        paths=("figure-eight",),
        num_frames=given.frames,
        height=height,
        width=width,
        metres_per_unit=1.0,
        depth=True,
        licence="CC0-1.0",
    )
    found = ScenePath("figure-eight", path, 1.5, float("nan"), float("nan"), None)
    folder = job.out / "room"
    begun = time.perf_counter()
    matrix = np.array([width / 2, width / 2, width / 2, height / 2])
    black = _write_clip(folder, job, splats, found, matrix, renderer, None)
    took = time.perf_counter() - begun
    print(
        f"clip of {width}x{height} with video and depth written: {given.frames / took:.1f} frames/s,"
        f" {100 * black:.1f} % black",
        flush=True,
    )
    _write_meta(folder, job, found, renderer, None, "made")
    _write_index(job)
    if not given.no_annotation:
        annotate(job.out, path)


if __name__ == "__main__":
    main()
