"""How tracks, bundle and memory grow with clip length, on rgbd-redkitchen through the stages that a clip passes.

    python benchmarks/bundle_scaling.py --data ../shared/data --frames 240 480 961

Each length runs in a process of its own, so that the peak of resident memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theodolite.annotate.sfm.keyframes import SolverInput


def kitchen_inputs(data: Path, frames: int) -> tuple[SolverInput, float]:
    """What the solver is given of the first frames of rgbd-redkitchen, and how many seconds its tracks took."""
    from theodolite.annotate.frames.base import DecodeConfig
    from theodolite.annotate.frames.open import open_clip
    from theodolite.annotate.geometry.given import GivenGeometrySource
    from theodolite.annotate.sfm.config import BundleConfig
    from theodolite.annotate.sfm.keyframes import SolverInput
    from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
    from theodolite.annotate.tracks.measure import measure_images
    from theodolite.annotate.tracks.records import TracksConfig

    folder = data / "rgbd-redkitchen"
    clip = ClipRef(
        clip_id="redkitchen",
        source="bench",
        original_id="redkitchen",
        media_kind="video",
        media_path=folder / "rgb.mp4",
        given=GivenGeometry(
            depth_pattern=str(folder / "depth/{frame:06d}.png"), depth_units_per_metre=1000.0
        ),
    )
    decoded = open_clip(clip, DecodeConfig(fps="native", source_fps=16.0, max_frames=frames))
    geometry = GivenGeometrySource().read(clip, decoded)
    start = time.perf_counter()
    measured = measure_images(decoded, height=decoded.height, width=decoded.width, config=TracksConfig())
    seconds = time.perf_counter() - start
    inputs = SolverInput(
        measured=measured,
        depth=geometry.depth,
        depth_sigma_log=geometry.depth_sigma_log,
        tracks_config=TracksConfig(),
        config=BundleConfig(),
    )
    return inputs, seconds


def one(data: Path, frames: int, threads: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    from theodolite.annotate.sfm.solve import solve_cameras

    inputs, tracked_s = kitchen_inputs(data, frames)
    start, processor = time.perf_counter(), time.process_time()
    cameras = solve_cameras(inputs)
    bundled_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {len(cameras.camera_to_world)} | {len(inputs.measured.keyframes)} | {cameras.num_tracks} | "
        f"{tracked_s:.1f} | {bundled_s:.1f} | {time.process_time() - processor:.1f} | "
        f"{1e3 * bundled_s / frames:.0f} | {peak:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--frames", type=int, nargs="+", default=[240, 480, 961])
    parser.add_argument("--threads", type=int, default=1, help="a run's bundles take one")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.data, options.one, options.threads)
        return
    print("| frames | keyframes | tracks | tracks s | bundle s | bundle cpu s | bundle ms/frame | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for frames in options.frames:
        command = [sys.executable, __file__, "--data", str(options.data), "--threads", str(options.threads)]
        subprocess.run([*command, "--one", str(frames)], check=True)


if __name__ == "__main__":
    main()
