"""What `mode: estimate` costs on a GPU: windows of anchors by size, then whole clips by stage.

    python tests/benchmarks/estimate_gpu.py windows
    python tests/benchmarks/estimate_gpu.py clips --media CLIP.mp4 --render SEED,FPS --clips 8 --in-flight 6 --solvers 8

Networks are stand-ins of the released size (the compute does not depend on the weights). Random depth would end the
bundle early, so for `clips` the networks run in full and their answers are replaced by simulated ones
(tests/annotate/simulator.py) over a rendered clip: 1280x720, 60 s. The simulated answers are made before the clock
starts. Prints a table; figures are those of the machine it runs on.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from theodolite.annotate.anchors import AnchorsConfig, AnchorStream, RawWindow, keep_window, plan_windows
from theodolite.annotate.clip import ClipRef
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.choose import GeometryConfig, metric_anchor, sequence_geometry
from theodolite.annotate.geometry.moge2 import MoGe2Stream, RawImages
from theodolite.annotate.pipeline import Estimators, annotate_clip
from theodolite.annotate.pool import share_threads
from theodolite.annotate.render import RenderConfig, render_clip

sys.path.insert(0, str(Path(__file__).parents[1] / "annotate"))
from simulator import Errors, SimulatedMoGe2, SimulatedPi3X, rendered_truth

CORPUS = ((164_060, 10.0), (48_915, 60.0))
"""Clips and seconds of each: SpatialVID-HQ and DL3DV, then the minute-long sources (arXiv 2605.15178)."""


def windows() -> None:
    """Seconds and memory of one window, and of a 60 s clip at 4 anchors a second, by window size."""
    network = sequence_geometry(GeometryConfig(sequence="pi3x", anchor="moge2", weights="stand_in")).network  # type: ignore[union-attr]
    device = network.device
    h, w = network.input_size(720, 1280)
    cost = {}
    for size in (32, 64, 96, 128, 241):
        images = torch.randint(0, 256, (size, 3, h, w), dtype=torch.uint8, device=device)
        frame = np.arange(size)
        for repeat in range(2):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            start = time.perf_counter()
            raw = network.predict(images, frame)
            torch.cuda.synchronize()
            ran = time.perf_counter() - start
            if repeat:
                keep_window(raw, frame, AnchorsConfig(), height=720, width=1280)
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
            config = AnchorsConfig(window=size, step=step, max_one_pass=size, spread_window=spread)
            plan = plan_windows(241, config)
            took = sum(cost[size] for _ in plan)
            print(f"60 s clip, windows of {size}, spread {spread}: {len(plan)} windows, {took:.1f} s")
    print(f"60 s clip in one pass: {cost[241]:.1f} s")


class Paced:
    """Runs a real network for its cost and gives the answers of a simulated one, made once per window."""

    def __init__(self, real, simulated) -> None:
        self.real, self.simulated = real, simulated
        self.name, self.device = "paced", real.device
        self.weights, self.weight_licences, self.stand_in = real.weights, real.weight_licences, True
        self.made: dict[tuple[int, ...], RawWindow | RawImages] = {}
        self.lock = threading.Lock()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.real.input_size(height, width)

    def predict(self, images: torch.Tensor, frame):
        key = tuple(map(int, frame))
        if key not in self.made:
            with self.lock:
                blank = torch.zeros((len(frame), 3, *self.simulated.size), dtype=torch.uint8)
                found = self.simulated.predict(blank, frame)
                for name, value in vars(found).items():
                    object.__setattr__(found, name, value.to(self.device))
                self.made[key] = found
        self.real.predict(images, frame)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.made[key]


class Streamed:
    """Estimators around paced networks."""

    name = "paced"

    def __init__(self, of, network) -> None:
        self.of, self.network, self.config = of, network, of.config

    def start(self, clip, frames, *rest):
        stream = AnchorStream if not rest else MoGe2Stream
        return stream(self.network, self.config, clip, frames, *rest)

    def wanted(self, frames):
        return self.of.wanted(frames)


def clips(args: argparse.Namespace) -> None:
    """Whole clips: first alone, stage by stage, then several under way at once."""
    from concurrent.futures import ThreadPoolExecutor

    seed, fps = args.render.split(",")
    rendered = render_clip(
        RenderConfig(
            width=1280, height=720, num_frames=1801, fps=float(fps), seed=int(seed), zoom="in_out",
            zoom_factor=1.3, zoom_period_s=20.0, noise_sigma=1.5,
        )
    )  # fmt: skip
    config = AnnotateConfig.model_validate(
        {
            "geometry": {
                "sequence": "pi3x", "anchor": "moge2", "weights": "stand_in", "stand_in_size": args.size,
                "anchors": {"window": args.window, "step": args.window // 2, "max_one_pass": 96},
            },
            "decode": {"max_frames": args.frames, "threads": args.decode_threads},
            "bundle": {"device": args.bundle_device},
            "executor": {"clips_in_flight": args.in_flight, "solver_processes": args.solvers},
        }
    )  # fmt: skip
    of, metric = sequence_geometry(config.geometry), metric_anchor(config.geometry)
    num_frames = args.frames or 961
    index = np.minimum(np.floor(np.arange(num_frames) * float(fps) / 16 + 0.5).astype(int), 1800)
    truth = rendered_truth(rendered, index)
    errors = Errors(seed=0)
    size = (189, 336)  # half of the network's: its answers are kept at this size anyway
    estimators = Estimators(
        sequence=Streamed(of, Paced(of.network, SimulatedPi3X(truth, errors, size))),  # type: ignore[union-attr]
        anchor=Streamed(metric, Paced(metric.network, SimulatedMoGe2(truth, errors, size))),  # type: ignore[union-attr]
    )

    def ref(number: int) -> ClipRef:
        return ClipRef(
            clip_id=f"c{number}",
            source="bench",
            original_id=f"c{number}",
            media_kind="video",
            media_path=args.media,
        )

    began = time.perf_counter()

    def annotate(clip, config, *, mode, recipe_hash):
        row = annotate_clip(clip, config, mode=mode, recipe_hash=recipe_hash, estimators=estimators)
        stages = {name: round(value, 1) for name, value in (row.stage_wall_s or {}).items()}
        reasons = f"{row.reasons} {row.error or ''}"
        print(
            f"  at {time.perf_counter() - began:.0f} s {clip.clip_id}: {row.verdict} {reasons} {stages}",
            flush=True,
        )
        return row

    alone = config.model_copy(
        update={"executor": config.executor.model_copy(update={"clips_in_flight": 1, "solver_processes": 0})}
    )
    print("alone (the first also makes the simulated answers and compiles kernels):")
    torch.set_num_threads(args.threads_alone)
    for number in range(args.alone):
        annotate(ref(number), alone, mode="estimate", recipe_hash="0" * 16)
    share_threads(config)
    if not args.clips:
        return
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Threads that take one clip after the other, as those of a worker do.
    start = time.perf_counter()
    with ThreadPoolExecutor(args.in_flight) as threads:
        rows = list(
            threads.map(
                lambda i: annotate(ref(100 + i), config, mode="estimate", recipe_hash="0" * 16),
                range(args.clips),
            )
        )
    took = time.perf_counter() - start
    assert len(rows) == args.clips
    peak = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    print(
        f"{args.clips} clips, {args.in_flight} under way, {args.solvers} solvers: {took:.1f} s,"
        f" {took / args.clips:.1f} s a clip, {peak:.1f} GiB reserved"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["windows", "clips"])
    parser.add_argument("--media", type=Path)
    parser.add_argument("--render", default="5,30")
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--alone", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=6)
    parser.add_argument("--solvers", type=int, default=8)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--size", default="released", choices=["released", "tiny"])
    parser.add_argument("--bundle-device", default="cpu")
    parser.add_argument("--decode-threads", type=int, default=2)
    parser.add_argument("--threads-alone", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/estimate_gpu"))
    args = parser.parse_args()
    if args.what == "windows":
        windows()
    else:
        clips(args)


if __name__ == "__main__":
    main()
