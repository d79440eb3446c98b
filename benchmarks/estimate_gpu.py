"""What `mode: estimate` costs on a GPU: windows of keyframes by size, then whole clips through the executor.

    python benchmarks/estimate_gpu.py windows
    python benchmarks/estimate_gpu.py clips --media CLIP.mp4 --render SEED,FPS,FRAMES --clips 28 --out DIR
    python benchmarks/estimate_gpu.py render --media CLIP.mp4 --render SEED,FPS,FRAMES

Networks are stand-ins of the released size (the compute does not depend on the weights); how `clips` makes the bundle
see geometry that fits its clip is in paced.py. `render` writes the clip (1280x720). Prints a table; figures are those
of the machine it runs on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.config import KeyframesConfig, Pi3XConfig
from theodolite.annotate.geometry.pi3x import pi3x_network
from theodolite.annotate.geometry.window_maps import keep_window
from theodolite.annotate.geometry.windows import plan_windows
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.worker import Job
from theodolite.annotate.sfm.processes import CLIPS_STREAMED, WORKERS_PER_GPU, num_gpus, shares
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.media.write import VideoWriter

sys.path.insert(0, str(Path(__file__).parent))
import paced

CORPUS = ((164_060, 10.0), (48_915, 60.0))
"""Clips and seconds of each: SpatialVID-HQ and DL3DV, then the minute-long sources (arXiv 2605.15178)."""


def windows() -> None:
    """Seconds and memory of one window, and of a 60 s clip at 4 keyframes a second, by window size."""
    network = pi3x_network(Pi3XConfig(), weights="stand_in", size="released", device="auto")
    device = network.device
    h, w = network.input_size(720, 1280)
    cost = {}
    for size in (32, 64, 96, 128, 241):
        images = torch.randint(0, 256, (size, 3, h, w), dtype=torch.uint8, device=device)
        frame = np.arange(size)
        ran = whole = 0.0
        for repeat in range(2):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            start = time.perf_counter()
            raw = network.predict(images, frame)
            torch.cuda.synchronize()
            ran = time.perf_counter() - start
            if repeat:
                keep_window(raw, frame, KeyframesConfig(), height=720, width=1280)
                torch.cuda.synchronize()
                whole = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() / 2**30
        cost[size] = whole
        print(
            f"window {size:4d}: network {ran:6.2f} s ({size / ran:5.1f} frames/s), masks and reduction"
            f" {whole - ran:5.2f} s, peak {peak:5.1f} GiB",
            flush=True,
        )
    for size, step in ((32, 16), (64, 32), (96, 48), (128, 64)):
        for spread in (True, False):
            config = KeyframesConfig(window=size, step=step, max_one_pass=size, spread_window=spread)
            plan = plan_windows(241, config)
            took = sum(cost[size] for _ in plan)
            print(f"60 s clip, windows of {size}, spread {spread}: {len(plan)} windows, {took:.1f} s")
    print(f"60 s clip in one pass: {cost[241]:.1f} s")


def clips(args: argparse.Namespace) -> None:
    """Whole clips through the executor, as a run of many clips does; the rate while all of it is full."""
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "clips.jsonl"
    log.unlink(missing_ok=True)
    config = AnnotateConfig.model_validate(
        {
            "geometry": {
                "sequence": "pi3x", "anchor": "moge2", "weights": "stand_in", "stand_in_size": args.size,
                "keyframes": {"window": args.window, "step": args.window // 2},
            },
            "decode": {"max_frames": args.frames},
            "tracks": {"tracker": args.tracker},
            "executor": {"clips_in_flight": args.in_flight, "solver_processes": args.solvers},
        }
    )  # fmt: skip
    seed, fps, num_frames = args.render.split(",")
    job = Job(
        out=args.out / "rows",
        config=config,
        mode="estimate",
        recipe_hash="0" * 16,
        annotate=partial(
            paced.annotate, rendered=paced.bench_clip(int(seed), float(fps), int(num_frames)), log=log
        ),
    )
    refs = [
        ClipRef(
            clip_id=f"c{number:03d}", source="bench", original_id=f"c{number}", media_kind="video",
            media_path=args.media,
        )
        for number in range(args.clips)
    ]  # fmt: skip
    in_flight, solvers = shares(config)
    workers = args.workers or WORKERS_PER_GPU * num_gpus(config) or 1
    print(
        f"{workers} workers, each {in_flight} clips under way and {solvers} solver processes; {os.cpu_count()} cores",
        flush=True,
    )
    memory = DeviceMemory()
    with open_output(job.out, recipe_hash=job.recipe_hash):
        plan = plan_run(lambda: refs, job.out, clips_per_shard=1)
        start = time.time()
        with memory, suppress(KeyboardInterrupt):
            run_plan(plan, job, workers=workers, show_progress=False)
        took = time.time() - start
    lines = sorted(map(json.loads, log.read_text().splitlines()), key=lambda x: x["ended"])
    if len(lines) < args.clips:
        print(f"interrupted: {len(lines)} of {args.clips} clips")
    for x in lines:
        stages = {name: round(value, 1) for name, value in (x["stages"] or {}).items()}
        print(
            f"  {x['began'] - start:6.1f} to {x['ended'] - start:6.1f} s {x['clip']}: {x['verdict']}"
            f" {x['reasons']} {x['error'] or ''} {stages}, processor time of its thread {x['thread_cpu']:.1f}"
        )
    print(f"{len(lines)} clips in {took:.0f} s: {took / len(lines):.1f} s a clip, start and end included")
    reserved = max(x["reserved_gib"] for x in lines)
    print(f"GPU memory: {memory.peak_gib:.1f} GiB in use at most; one worker reserves {reserved:.1f} GiB")
    # Clips that began to stream together also end together, so each is compared with the one a wave before. That
    # leaves out the start of the workers and the first wave's way through all stages.
    wave = workers * CLIPS_STREAMED
    ended = np.array([x["ended"] for x in lines])
    if len(ended) <= wave:
        print(f"no steady state: more than {wave} clips are needed")
        return
    behind = ended[wave:] - ended[:-wave]
    rate = float(behind.mean()) / wave
    count, seconds = min(CORPUS, key=lambda of: abs(of[1] - ((args.frames or 961) - 1) / 16))
    print(
        f"steady: {len(behind)} clips end {behind.min():.0f} to {behind.max():.0f} s, {behind.mean():.0f} s on average,"
        f" after the clip {wave} places before: {rate:.1f} s a clip"
    )
    print(f"the corpus has {count:,} clips of {seconds:.0f} s: {count * rate / 3600:.0f} GPU-hours")


class DeviceMemory:
    """Watches what all processes together hold of the first GPU."""

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DeviceMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        while shutil.which(command[0]) and not self._stop.wait(1.0):
            used = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
            if used and used[0].isdigit():
                self.peak_gib = max(self.peak_gib, int(used[0]) / 1024)


def render(args: argparse.Namespace) -> None:
    """Write the clip that `clips` annotates; smaller than the renderer's usual quality, as public clips are."""
    seed, fps, num_frames = args.render.split(",")
    config = paced.bench_clip(int(seed), float(fps), int(num_frames))
    with VideoWriter(args.media, width=config.width, height=config.height, fps=config.fps, crf=26) as out:
        for frame in render_clip(config):
            out.write(frame.rgb)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["windows", "clips", "render"])
    parser.add_argument("--media", type=Path)
    parser.add_argument("--render", default="5,30,1801", help="seed, fps and frames of what the media shows")
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--in-flight", type=int, default=None)
    parser.add_argument("--solvers", type=int, default=None)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--tracker", default="opencv", choices=["opencv", "batched", "auto"])
    parser.add_argument("--size", default="released", choices=["released", "tiny"])
    parser.add_argument("--out", type=Path, default=Path("runs/estimate_gpu"))
    args = parser.parse_args()
    {"windows": lambda _: windows(), "clips": clips, "render": render}[args.what](args)


if __name__ == "__main__":
    main()
