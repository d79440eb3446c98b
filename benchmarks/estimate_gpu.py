"""What `mode: estimate` costs on a GPU: windows of keyframes by size, then whole clips through the executor.

    python benchmarks/estimate_gpu.py windows
    python benchmarks/estimate_gpu.py clips --media CLIP.mp4 --render SEED,FPS,FRAMES --clips 28 --out DIR
    taskset -c 0-7 python benchmarks/estimate_gpu.py clips ... --clips 999 --seconds 120 --settle 60
    python benchmarks/estimate_gpu.py render --media CLIP.mp4 --render SEED,FPS,FRAMES

Networks are stand-ins of the released size (the compute does not depend on the weights); how `clips` makes the bundle
see geometry that fits its clip is in paced.py. `render` writes the clip (1280x720). Prints a table; figures are those
of the machine it runs on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.config import KeyframesConfig, Pi3XConfig
from theodolite.annotate.geometry.pi3x import pi3x_network
from theodolite.annotate.geometry.window_maps import keep_window
from theodolite.annotate.geometry.windows import choose_keyframes, plan_windows
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.worker import Job
from theodolite.annotate.sfm.processes import CLIPS_STREAMED, WORKERS_PER_GPU, num_gpus, shares
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.arrays import U8
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


def bench_config(args: argparse.Namespace) -> AnnotateConfig:
    """The recipe that `clips` runs."""
    return AnnotateConfig.model_validate(
        {
            "geometry": {
                "sequence": "pi3x", "anchor": "moge2", "weights": "stand_in", "stand_in_size": args.size,
                "keyframes": {"fps": args.keyframe_fps, "window": args.window, "step": args.step or args.window // 2},
                "moge2": {"batch": args.anchor_batch},
            },
            "tracks": {"tracker": args.tracker},
            "bundle": {"device": args.bundle},
            "executor": {"clips_in_flight": args.in_flight, "solver_processes": args.solvers},
        }
    )  # fmt: skip


def workers_of(args: argparse.Namespace, config: AnnotateConfig) -> int:
    """Processes."""
    return args.workers or WORKERS_PER_GPU * num_gpus(config) or 1


def lengths_of(args: argparse.Namespace, config: AnnotateConfig) -> list[int]:
    """Frames of each clip.

    Where the rate is that between two times the first clips are of all lengths up to the whole one: so those after them
    do not go through the stages in step.
    """
    most = args.frames or 961
    wave = workers_of(args, config) * (args.streams or CLIPS_STREAMED) if args.seconds else 0
    return [max(32, most * (n + 1) // wave) if n < wave else most for n in range(args.clips)]


def prepare(args: argparse.Namespace) -> None:
    """What the simulated networks of `clips` will say; it does so itself, but on a machine that is paid for."""
    seed, fps, num_frames = args.render.split(",")
    rendered = paced.bench_clip(int(seed), float(fps), int(num_frames))
    config = bench_config(args)
    lengths = sorted(set(lengths_of(args, config)))
    paced.prepare(config, rendered, lengths, args.answers or args.out / "answers", args.jobs)


def clips(args: argparse.Namespace) -> None:
    """Whole clips through the executor, as a run of many clips does; the rate while all of it is full."""
    args.out.mkdir(parents=True, exist_ok=True)
    log, networks = args.out / "clips.jsonl", args.out / "networks.jsonl"
    for path in (log, networks):
        path.unlink(missing_ok=True)
    config = bench_config(args)
    seed, fps, num_frames = args.render.split(",")
    rendered = paced.bench_clip(int(seed), float(fps), int(num_frames))
    in_flight, solvers = shares(config)
    workers, lengths = workers_of(args, config), lengths_of(args, config)
    answers = args.answers or args.out / "answers"
    paced.prepare(config, rendered, sorted(set(lengths)), answers, args.jobs)
    job = Job(
        out=args.out / "rows",
        config=config,
        mode="estimate",
        recipe_hash="0" * 16,
        annotate=partial(paced.annotate, rendered=rendered, log=log, answers=answers, streams=args.streams),
    )
    refs = [
        ClipRef(
            clip_id=f"c{number:04d}", source="bench", original_id=f"c{number}", media_kind="video",
            media_path=args.media, max_frames=length,
        )
        for number, length in enumerate(lengths)
    ]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    print(
        f"{workers} workers, each {in_flight} clips under way and {solvers} solver processes; cores {cores}",
        flush=True,
    )
    start = time.time()
    with open_output(job.out, recipe_hash=job.recipe_hash), Device(args.out / "device.csv") as device:

        def tell() -> None:
            lines = read_lines(log)
            report_clips(lines, start, args.clips)
            print(f"GPU memory: {device.peak_gib:.1f} GiB in use at most")
            if args.seconds:
                span = start + args.settle, min(time.time(), start + args.seconds)
                report_rate(lines, read_lines(networks), device, span, config, max(lengths))
            else:
                report_waves(lines, workers * (args.streams or CLIPS_STREAMED), max(lengths))
            sys.stdout.flush()

        plan = plan_run(lambda: refs, job.out, clips_per_shard=1)
        with suppress(KeyboardInterrupt), ended_after(args.seconds, tell):
            run_plan(plan, job, workers=workers, show_progress=False)
            if not args.seconds:
                tell()


def read_lines(path: Path) -> list[dict]:
    """Of a log, by the time of their end."""
    if not path.is_file():
        return []
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda x: x["ended"])


def report_clips(lines: list[dict], start: float, wanted: int) -> None:
    """When each clip began and ended, and how long its stages took."""
    if len(lines) < wanted:
        print(f"ended early: {len(lines)} of {wanted} clips")
    for x in lines:
        stages = {name: round(value, 1) for name, value in (x["stages"] or {}).items()}
        print(
            f"  {x['began'] - start:6.1f} to {x['ended'] - start:6.1f} s {x['clip']} ({x['frames']}): {x['verdict']}"
            f" {x['reasons']} {(x['error'] or '')[-300:]} {stages}, processor time of its thread {x['thread_cpu']:.1f}"
        )
    if lines:
        print(f"one worker reserves {max(x['reserved_gib'] for x in lines):.1f} GiB")


def report_rate(
    lines: list[dict],
    networks: list[dict],
    device: Device,
    span: tuple[float, float],
    config: AnnotateConfig,
    frames: int,
) -> None:
    """Clips a second between two times, by those that ended and by what the networks saw; and the GPU's use."""
    begin, end = span
    took = end - begin
    ends = [x for x in lines if begin < x["ended"] <= end]
    rate = took / len(ends) if ends else float("inf")
    print(f"over {took:.0f} s at the end: {len(ends)} clips ended, {rate:.2f} s a clip")
    keyframes = choose_keyframes(frames, 16.0, config.geometry.keyframes.fps)
    due = {
        "Pi3XNetwork": sum(map(len, plan_windows(len(keyframes), config.geometry.keyframes))),
        "MoGe2Network": min(
            len(keyframes), frames // max(1, min(16, frames // config.geometry.min_anchor_frames))
        ),
    }
    for name, of_clip in due.items():
        seen = [x for x in networks if x["network"] == name and begin < x["ended"] <= end]
        count = sum(x["frames"] for x in seen)
        busy = sum(x["ended"] - x["began"] for x in seen)
        print(
            f"  {name}: {count} frames, a clip has {of_clip}: one every {took * of_clip / max(1, count):.2f} s;"
            f" {busy / max(1, count) * 1000:.1f} ms a frame in its thread, other processes on the GPU meanwhile"
        )
    use = device.between(begin, end)
    print(f"  GPU: {use['use']:.0f} % of the time in use, {use['power']:.0f} W, {use['clock']:.0f} MHz")
    count, seconds = min(CORPUS, key=lambda of: abs(of[1] - (frames - 1) / 16))
    print(f"the corpus has {count:,} clips of {seconds:.0f} s: {count * rate / 3600:.0f} GPU-hours")


def report_waves(lines: list[dict], wave: int, frames: int) -> None:
    """The rate of a run that came to its end.

    Clips that began to stream together also end together, so each is compared with the one a wave before. That leaves
    out the start of the workers and the first wave's way through all stages.
    """
    ended = np.array([x["ended"] for x in lines])
    if len(ended) <= wave:
        print(f"no steady state: more than {wave} clips are needed")
        return
    behind = ended[wave:] - ended[:-wave]
    rate = float(behind.mean()) / wave
    count, seconds = min(CORPUS, key=lambda of: abs(of[1] - (frames - 1) / 16))
    print(
        f"steady: {len(behind)} clips end {behind.min():.0f} to {behind.max():.0f} s, {behind.mean():.0f} s on average,"
        f" after the clip {wave} places before: {rate:.2f} s a clip"
    )
    print(f"the corpus has {count:,} clips of {seconds:.0f} s: {count * rate / 3600:.0f} GPU-hours")


@contextmanager
def ended_after(seconds: float | None, tell: Callable[[], None]) -> Iterator[None]:
    """After so long, tell, then interrupt what is inside, as Ctrl-C does: its end takes a while."""

    def end() -> None:
        tell()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Device:
    """Watches the GPU that this process sees first, about once a second; what nvidia-smi says is kept in a file."""

    QUERY = "utilization.gpu,memory.used,power.draw,clocks.sm"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[tuple[float, ...]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Device:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        command = [
            "nvidia-smi", f"--query-gpu={self.QUERY}", "--format=csv,noheader,nounits", f"--id={gpu}"
        ]  # fmt: skip
        if not shutil.which(command[0]):
            return
        with self._path.open("w") as out:
            while not self._stop.wait(0.9):
                told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
                with suppress(ValueError):
                    self._lines.append((time.time(), *map(float, told.split(","))))
                    out.write(",".join(f"{x:.1f}" for x in self._lines[-1]) + "\n")
                    out.flush()

    @property
    def peak_gib(self) -> float:
        """Memory in use by all processes together."""
        return max((x[2] for x in self._lines), default=0.0) / 1024

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Means over a time: share of it in which a kernel ran (percent), watts, MHz."""
        lines = [x for x in self._lines if begin <= x[0] <= end]
        if not lines:
            return dict.fromkeys(("use", "power", "clock"), float("nan"))
        mean = np.mean(lines, axis=0)
        return {"use": float(mean[1]), "power": float(mean[3]), "clock": float(mean[4])}


def render(args: argparse.Namespace) -> None:
    """Write the clip that `clips` annotates; smaller than the renderer's usual quality, as public clips are."""
    seed, fps, num_frames = args.render.split(",")
    config = paced.bench_clip(int(seed), float(fps), int(num_frames))
    small = config.model_copy(
        update={"width": config.width // args.enlarged, "height": config.height // args.enlarged}
    )
    tasks = ((small, number) for number in range(config.num_frames))
    with (
        multiprocessing.get_context("spawn").Pool(args.jobs) as pool,
        VideoWriter(args.media, width=config.width, height=config.height, fps=config.fps, crf=26) as out,
    ):
        for rgb in pool.imap(_rendered, tasks, chunksize=8):
            large = cv2.resize(rgb, (config.width, config.height), interpolation=cv2.INTER_CUBIC)
            out.write(np.asarray(large, np.uint8))


def _rendered(task: tuple[RenderConfig, int]) -> U8:
    config, number = task
    return _clip_of(config.model_dump_json()).frame(number).rgb


@cache
def _clip_of(config_json: str) -> RenderedClip:
    cv2.setNumThreads(1)
    return render_clip(RenderConfig.model_validate_json(config_json))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["windows", "clips", "render", "prepare"])
    parser.add_argument("--media", type=Path)
    parser.add_argument("--render", default="5,30,1801", help="seed, fps and frames of what the media shows")
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--in-flight", type=int, default=None)
    parser.add_argument("--solvers", type=int, default=None)
    parser.add_argument("--streams", type=int, help="clips that a worker decodes and tracks at a time")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument(
        "--step", type=int, help="keyframes between the starts of windows; default half a window"
    )
    parser.add_argument("--keyframe-fps", type=float, default=4.0)
    parser.add_argument("--anchor-batch", type=int, default=16)
    parser.add_argument("--bundle", default="cpu", choices=["cpu", "auto", "cuda"])
    parser.add_argument("--seconds", type=float, help="end after so long; the rate is that from --settle on")
    parser.add_argument("--settle", type=float, default=30.0)
    parser.add_argument("--answers", type=Path, help="folder that keeps what the simulated networks say")
    parser.add_argument("--enlarged", type=int, default=1, help="render so many times smaller; for a hurry")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tracker", default="opencv", choices=["opencv", "batched", "auto"])
    parser.add_argument("--size", default="released", choices=["released", "tiny"])
    parser.add_argument("--out", type=Path, default=Path("runs/estimate_gpu"))
    args = parser.parse_args()
    {"windows": lambda _: windows(), "clips": clips, "render": render, "prepare": prepare}[args.what](args)


if __name__ == "__main__":
    main()
