"""The trackers beside each other: the same clip, what it costs by stage, and how far tracks are from the truth.

    python benchmarks/trackers.py check                                     # kernels against their twins, on the GPU
    python benchmarks/trackers.py cost --frames 161 --size 1280x720         # rendered; both trackers in one run
    python benchmarks/trackers.py cost --video CLIP.mp4 --trackers opencv
    python benchmarks/trackers.py accuracy --clips 4 --frames 60 --size 640x360
    python benchmarks/trackers.py recording --data DATA --name rgbd-office-a  # the whole command, both trackers

`cost` reads the frames into memory first. `opencv` has one thread, as a worker has; `batched` is run three times, the
last is told. Its stages are taken in another run, with the device waited for at the end of each; what kernels take in
all is from torch's profiler. `accuracy` compares every observation of a flow track with where the point of the track's
first observation must appear by rendered depth and cameras; points on what moves, and what is hidden by then, are left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.tracks import flow, measure, opencv
from theodolite.annotate.tracks.batched import moving, op, reference, tracker
from theodolite.annotate.tracks.batched.images import Images
from theodolite.annotate.tracks.batched.prediction import predict
from theodolite.annotate.tracks.batched.state import Log, State
from theodolite.annotate.tracks.batched.tracker import BatchedTracker
from theodolite.annotate.tracks.descriptors import match_features, match_keyframes
from theodolite.annotate.tracks.opencv import OpenCVTracker
from theodolite.annotate.tracks.records import MATCHED_GAPS, ImageMeasurements, TracksConfig
from theodolite.annotate.tracks.tracker import MakeTracker

CONFIG = TracksConfig()


def trackers(names: str, device: torch.device) -> dict[str, MakeTracker]:
    """Those that are asked for."""
    known: dict[str, MakeTracker] = {
        "opencv": OpenCVTracker,
        "batched": partial(BatchedTracker, device=device),
    }
    return {name: known[name] for name in names.split(",")}


# --- frames -------------------------------------------------------------------------------------


def rendered(seed: int, frames: int, size: str, **more: Any) -> RenderedClip:
    width, height = map(int, size.split("x"))
    fields = {"zoom": "in_out", "zoom_factor": 1.3, "zoom_period_s": 20.0, "noise_sigma": 1.5} | more
    fields |= {"width": width, "height": height, "num_frames": frames, "fps": 16.0, "seed": seed}
    return render_clip(RenderConfig.model_validate(fields))


def _frame(config: RenderConfig, number: int) -> tuple[NDArray, NDArray, NDArray]:
    cv2.setNumThreads(1)
    frame = render_clip(config).frame(number)
    return frame.rgb, frame.depth_m, frame.moving


def frames_of(clip: RenderedClip) -> list[tuple[NDArray, NDArray, NDArray]]:
    """Pictures, depths and masks of what moves, made by all cores."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        return list(pool.map(partial(_frame, clip.config), range(len(clip)), chunksize=4))


def pictures(args: argparse.Namespace) -> list[NDArray[np.uint8]]:
    if args.video is None:
        return [rgb for rgb, _, _ in frames_of(rendered(args.seed, args.frames, args.size))]
    video, found = cv2.VideoCapture(str(args.video)), []
    while len(found) < args.frames and (read := video.read())[0]:
        found.append(np.ascontiguousarray(read[1][..., ::-1]))
    return found


def measured(frames: list[NDArray[np.uint8]], make: MakeTracker) -> ImageMeasurements:
    height, width = frames[0].shape[:2]
    return measure.measure_images(frames, height=height, width=width, config=CONFIG, tracker=make)


# --- kernels against their twins ----------------------------------------------------------------


def check(args: argparse.Namespace) -> None:
    """Kernels and the whole tracker on the GPU against the same in plain torch; ends with 1 if they differ."""
    device = torch.device(args.device)
    clip = rendered(3, 6, "640x360", speed=2.0)
    gray = [flow.normalised_gray(flow.gray_of(rgb, (640, 360))) for rgb, _, _ in clip_frames(clip)]
    stack = torch.from_numpy(np.stack(gray))
    places = (torch.device("cpu"), device)
    here, there = (Images((640, 360), 40, where) for where in places)
    here.put(0, stack)
    there.put(0, stack.to(device))
    off = int((here.data.int() - there.data.cpu().int()).abs().max())
    told = {"pyramids, grey levels": str(off)}
    rng = torch.Generator().manual_seed(0)
    xy = torch.rand(2000, 2, generator=rng) * torch.tensor([660.0, 380.0]) - 10
    guess = xy + torch.randn(2000, 2, generator=rng) * 3
    bad = False
    for levels, radius in (((3, 0), 9), ((0, 0), 9), ((5, 5), 4), ((2, 2), 4)):
        pair = torch.arange(2000, dtype=torch.int32) % 5, torch.arange(2000, dtype=torch.int32) % 5 + 1
        a = reference.follow(here, pair, xy, guess, levels=levels, radius=radius)
        b = op.follow(
            there, (pair[0].to(device), pair[1].to(device)), xy.to(device), guess.to(device),
            levels=levels, radius=radius,
        )  # fmt: skip
        same = a.ok == b.ok.cpu()
        apart = (a.xy - b.xy.cpu()).norm(dim=1)[a.ok & b.ok.cpu()]
        told[f"follow {levels} {radius}: same verdict, within 0.02 px, median"] = (
            f"{same.float().mean():.4f} {(apart < 0.02).float().mean():.4f} {apart.median():.1e}"
        )
        bad |= bool(same.float().mean() < 0.995 or (apart < 0.02).float().mean() < 0.96)
    logs = []
    for where, each in zip(places, (here, there), strict=True):
        state, log = State.empty(300, where), Log.empty(6, 300, where)
        state.xy = (xy[:300].clamp(min=20) % 320).to(where).contiguous()
        state.reference_xy, state.track = state.xy.clone(), torch.arange(300, dtype=torch.int32).to(where)
        field = predict(each, 0, 6)
        for frame in range(1, 6):
            moving.move(state, each, field, log, frame, frame=frame, config=CONFIG)
        logs.append((Log.unpacked(log.packed().cpu()), field.motion.cpu(), state.reference_frame.cpu()))
    (one, field_one, taken_one), (other, field_other, taken_other) = logs
    told["predicted motion, px: median, 99 %"] = (
        f"{(field_one - field_other)[1:].abs().median():.1e} {(field_one - field_other)[1:].abs().quantile(0.99):.1e}"
    )
    both = (one.found * other.found)[1:] > 0
    apart = (one.after - other.after)[1:].norm(dim=-1)[both]
    told["move: same verdict, within 0.02 px, same reference"] = (
        f"{(one.found == other.found)[1:].float().mean():.4f} {(apart < 0.02).float().mean():.4f}"
        f" {(taken_one == taken_other).float().mean():.4f}"
    )
    bad |= bool((one.found == other.found)[1:].float().mean() < 0.98 or (apart < 0.02).float().mean() < 0.97)
    bad |= off != 0
    for name, value in told.items():
        print(f"{name}: {value}")
    print("NOT THE SAME" if bad else "kernels and twins agree", flush=True)
    if bad:
        sys.exit(1)


def clip_frames(clip: RenderedClip) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    return (_frame(clip.config, i) for i in range(len(clip)))


# --- cost ---------------------------------------------------------------------------------------


class Stages:
    """Seconds of named functions, which are put in place of the originals."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.calls = device, dict[str, float](), dict[str, int]()
        self._inside = 0

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **keywords: Any) -> Any:
            self._wait()
            start, before = time.perf_counter(), sum(self.seconds.values())
            try:
                return work(*args, **keywords)
            finally:
                self._wait()
                inner = sum(self.seconds.values()) - before
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - inner
                self.calls[name] = self.calls.get(name, 0) + 1

        return timed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def watching(self, *places: tuple[Any, str]) -> Iterator[None]:
        with ExitStack() as held:
            for module, name in places:
                held.enter_context(mock.patch.object(module, name, self.around(name, getattr(module, name))))
            yield

    def __str__(self) -> str:
        return ", ".join(f"{n} {1e3 * s:.0f} ({self.calls[n]})" for n, s in self.seconds.items())


WATCHED = {
    "opencv": [
        (measure, "gray_of"), (measure, "normalised_gray"), (measure.OverlayFinder, "add"),
        (measure.OverlayFinder, "find"), (flow.FlowTracker, "add"), (flow, "_lucas_kanade"), (flow, "_new_corners"),
        (opencv, "sift"),
    ],
    "batched": [
        (measure, "gray_of"), (measure, "normalised_gray"), (measure.OverlayFinder, "add"),
        (measure.OverlayFinder, "find"), (BatchedTracker, "_uploaded"), (Images, "put"), (tracker, "_sharpness"),
        (tracker, "find_corners"), (tracker, "predict"), (tracker, "move"), (tracker, "refill"),
        (tracker, "root_sift"), (BatchedTracker, "_home"), (BatchedTracker, "_tell"), (tracker.Keyframes, "add"),
    ],
}  # fmt: skip


def cost(args: argparse.Namespace) -> None:
    """Seconds of a clip by tracker and stage."""
    device = torch.device(args.device)
    frames = pictures(args)
    print(f"{len(frames)} frames of {frames[0].shape[1]}x{frames[0].shape[0]}, {device}", flush=True)
    found = {}
    for name, make in trackers(args.trackers, device).items():
        for _ in range(2 if name == "batched" and device.type == "cuda" else 0):
            measured(frames, make)  # compiles, and finds its memory
        wall, processor, own = time.perf_counter(), time.process_time(), time.thread_time()
        found[name] = measured(frames, make)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        own = time.thread_time() - own
        print(
            f"{name}: {wall:.2f} s, processor {processor:.2f} s (own thread {own:.2f}), {summary(found[name])}",
            flush=True,
        )
        stages = Stages(device if name == "batched" else torch.device("cpu"))
        with stages.watching(*WATCHED[name]):
            measured(frames, make)
        print(f"  ms (calls) by stage: {stages}", flush=True)
        if name == "batched" and device.type == "cuda":
            kernels(frames, make)
            together(frames, make, args.threads)
    for name, each in found.items():
        matching(name, each)


def summary(found: ImageMeasurements) -> str:
    tracks = found.flow
    return (
        f"{tracks.num_tracks} tracks of {len(tracks.frame) / max(1, tracks.num_tracks):.1f} frames, survival"
        f" {np.median(found.survival[1:]):.3f} (least {found.survival[1:].min():.2f}), {len(found.keyframes)}"
        f" keyframes, {np.mean([len(f.xy_px) for f in found.features]):.0f} features each"
    )


def kernels(frames: list[NDArray[np.uint8]], make: MakeTracker) -> None:
    """What the device does in all, and what takes longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        measured(frames, make)
        torch.cuda.synchronize()
    rows = [r for r in profiled.key_averages() if str(r.device_type).endswith("CUDA")]
    rows.sort(key=lambda r: -r.self_device_time_total)
    total = sum(r.self_device_time_total for r in rows)
    print(f"  device busy {total / 1e3:.1f} ms in {sum(r.count for r in rows)} kernels and copies")
    for r in rows[:14]:
        print(f"    {r.self_device_time_total / 1e3:7.2f} ms {r.count:6d} {r.key[:90]}")
    print(f"  memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB", flush=True)


def together(frames: list[NDArray[np.uint8]], make: MakeTracker, threads: int) -> None:
    """Several clips at once in threads, as a worker streams them."""
    start, processor = time.perf_counter(), time.process_time()
    running = [threading.Thread(target=measured, args=(frames, make)) for _ in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    print(
        f"  {threads} clips in threads: {wall / threads:.3f} s a clip, processor {processor / threads:.2f} s a clip",
        flush=True,
    )


def matching(name: str, found: ImageMeasurements) -> None:
    """What matching neighbouring keyframes takes, which the bundle does."""
    number = len(found.keyframes)
    pairs = [(a, a + gap) for gap in MATCHED_GAPS for a in range(number - gap)]
    start = time.process_time()
    matches = [len(match) for match in match_keyframes(found, pairs, CONFIG).values()]
    took = time.process_time() - start
    print(
        f"{name}: {len(pairs)} pairs matched in {took:.2f} s of processor time, {np.mean(matches):.0f} matches each"
    )


# --- accuracy -----------------------------------------------------------------------------------


def accuracy(args: argparse.Namespace) -> None:
    """Errors against rendered truth, all clips together."""
    device = torch.device(args.device)
    made = trackers(args.trackers, device)
    errors: dict[str, list[NDArray]] = {name: [] for name in made}
    pairs: dict[str, list[NDArray]] = {name: [] for name in made}
    tracks: dict[str, list[tuple[int, int]]] = {name: [] for name in made}
    for seed in range(args.seed, args.seed + args.clips):
        clip = rendered(
            seed, args.frames, args.size, moving_object=seed % 2 == 1, shutter=0.5 * (seed % 3 == 2)
        )
        truth = frames_of(clip)
        for name, make in made.items():
            found = measured([rgb for rgb, _, _ in truth], make)
            errors[name].append(track_errors(found, clip, truth))
            pairs[name].append(match_errors(found, clip, truth))
            tracks[name].append((found.flow.num_tracks, len(found.flow.frame)))
            print(f"seed {seed} {name}: {summary(found)}", flush=True)
    print(
        "| tracker | tracks | frames each | error px: median, 90 %, 99 % | over 2 px | matches | px: median, 90 % |"
        " over 3 px |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in made:
        e, m = np.concatenate(errors[name]), np.concatenate(pairs[name])
        count, observations = np.sum(tracks[name], 0)
        median, most, nearly = np.percentile(e, [50, 90, 99])
        match_median, match_most = np.percentile(m, [50, 90])
        print(
            f"| {name} | {count} | {observations / count:.1f} | {median:.3f}, {most:.3f}, {nearly:.2f} |"
            f" {100 * (e > 2).mean():.2f} % | {len(m)} | {match_median:.3f}, {match_most:.3f} |"
            f" {100 * (m > 3).mean():.2f} % |"
        )


def seen_from(
    clip: RenderedClip, truth: list, first: NDArray, xy: NDArray, frame: NDArray
) -> tuple[NDArray, NDArray]:
    """Where points (n, 2) of frames `first` appear in frames `frame`, and whether they are still to be seen there."""
    height, width = truth[0][0].shape[:2]
    z, moves = np.full(len(xy), np.nan), np.zeros(len(xy), bool)
    for f in np.unique(first):
        at = first == f
        x, y = (np.clip(xy[at, i].astype(int), 0, n - 1) for i, n in ((0, width), (1, height)))
        z[at] = flat_depth(truth[f][1], xy[at])
        moves[at] = truth[f][2][y, x]
    K, pose = clip.intrinsics, clip.camera_to_world
    ray = np.einsum("nij,nj->ni", np.linalg.inv(K[first]), np.c_[xy, np.ones(len(xy))]) * z[:, None]
    world = np.einsum("nij,nj->ni", pose[first][:, :3, :3], ray) + pose[first][:, :3, 3]
    local = np.einsum("nji,nj->ni", pose[frame][:, :3, :3], world - pose[frame][:, :3, 3])
    image = np.einsum("nij,nj->ni", K[frame], local)
    place = image[:, :2] / image[:, 2:]
    seen = np.zeros(len(xy), bool)
    for f in np.unique(frame):
        at = np.nonzero((frame == f) & np.isfinite(place).all(1))[0]
        depth = flat_depth(truth[f][1], place[at])
        seen[at] = np.abs(depth / local[at, 2] - 1) < 0.02
    return place, seen & ~moves & np.isfinite(z)


def flat_depth(depth: NDArray, xy: NDArray) -> NDArray:
    """Depth between pixel centres, NaN at its edges."""
    height, width = depth.shape
    x, y = xy[:, 0] - 0.5, xy[:, 1] - 0.5
    left, up = np.clip(np.floor(x), 0, width - 2).astype(int), np.clip(np.floor(y), 0, height - 2).astype(int)
    inverse = 1 / np.stack([depth[up + i, left + j] for i in (0, 1) for j in (0, 1)])
    fx, fy = x - left, y - up
    weight = np.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    found = 1 / (weight * inverse).sum(0)
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return np.where(inside & (inverse.max(0) / inverse.min(0) < 1.02), found, np.nan)


def track_errors(found: ImageMeasurements, clip: RenderedClip, truth: list) -> NDArray:
    tracks = found.flow
    start = np.r_[0, np.nonzero(np.diff(tracks.track))[0] + 1]
    first = np.repeat(start, np.diff(np.r_[start, len(tracks.track)]))
    place, seen = seen_from(clip, truth, tracks.frame[first], tracks.xy_px[first], tracks.frame)
    later = seen & (tracks.frame > tracks.frame[first])
    return np.linalg.norm(place - tracks.xy_px, axis=1)[later]


def match_errors(found: ImageMeasurements, clip: RenderedClip, truth: list) -> NDArray:
    diagonal, out = float(np.hypot(found.flow.height, found.flow.width)), [np.zeros(0)]
    for a, b in zip(found.features, found.features[1:], strict=False):
        match = match_features(a, b, CONFIG, diagonal_px=diagonal)
        xy, other = a.xy_px[match[:, 0]], b.xy_px[match[:, 1]]
        frames = np.full(len(match), a.frame), np.full(len(match), b.frame)
        place, seen = seen_from(clip, truth, frames[0], xy, frames[1])
        out.append(np.linalg.norm(place - other, axis=1)[seen])
    return np.concatenate(out)


# --- a recording through the command ------------------------------------------------------------


def recording(args: argparse.Namespace) -> None:
    """ATE and focal error of a recording, annotated by the command with each tracker at the same time."""
    from theodolite.annotate.given.cameras import read_intrinsics
    from theodolite.dataset.formats.trajectories import read_trajectory
    from theodolite.dataset.metrics.trajectory import relative_pose_error, trajectory_error
    from theodolite.dataset.reading import open_dataset

    folder = args.data / args.name
    with tempfile.TemporaryDirectory() as work:
        index = Path(work) / "index.yaml"
        entry = {
            "clip_id": "clip", "media_path": str(folder / args.media),
            "depth_pattern": str(args.depth or folder / "depth/{frame:06d}.png"), "depth_units_per_metre": 1000.0,
        }  # fmt: skip
        index.write_text(yaml.safe_dump({"clips": [entry]}))
        running = {}
        for name in args.trackers.split(","):
            command = [
                sys.executable, "-c", "from theodolite.recipes.cli import main; main()", "annotate", "rgbd", "--out",
                f"{work}/{name}", "--workers", "0", "--set", f"source.index={index}",
                "--set", f"annotate.tracks.tracker={name}", "--set", f"annotate.geometry.device={args.device}",
            ]  # fmt: skip
            command += [part for setting in args.set for part in ("--set", setting)]
            running[name] = subprocess.Popen(command, stdout=sys.stderr)
            if args.one_by_one:
                running[name].wait()
        for name, process in running.items():
            process.wait()
            row = open_dataset(Path(work) / name).row("clip")
            stages = {k: round(v, 2) for k, v in (row.stage_wall_s or {}).items()}
            if not len(row.camera_to_world):
                print(f"{name}: {row.verdict} {row.reasons} {row.reason_details} {row.error or ''} {stages}")
                continue
            truth = read_trajectory(folder / "poses_c2w.txt").camera_to_world[row.frame_index]
            poses = np.asarray(row.camera_to_world, np.float64)
            error = trajectory_error(poses, truth, alignment="se3")
            relative = relative_pose_error(poses, truth)
            told = {
                "tracker": row.tracker, "frames": row.num_frames, "verdict": row.verdict, "ate_m": error.ate_rmse_m,
                "rpe": {k: round(float(v), 5) for k, v in vars(relative).items() if np.ndim(v) == 0},
                "num_tracks": row.num_tracks, "reprojection_rms_px": row.reprojection_rms_px,
                "survival_min": row.track_survival_min, "stages": stages,
            }  # fmt: skip
            if args.intrinsics:
                K = read_intrinsics(folder / args.intrinsics)
                true_focal = np.broadcast_to(K, (row.num_frames, 3, 3)) if K.ndim == 2 else K[row.frame_index]
                told["focal_error_percent"] = float(
                    100 * np.mean(np.abs(row.focal_px[:, 1] / true_focal[:, 1, 1] - 1))
                )
            print(f"{name}: {json.dumps(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["check", "cost", "accuracy", "recording"])
    parser.add_argument("--trackers", default="opencv,batched")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--frames", type=int, default=161)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--name", default="rgbd-office-a")
    parser.add_argument("--media", default="rgb.mp4")
    parser.add_argument("--depth", help="pattern of the depth, where it is elsewhere")
    parser.add_argument("--intrinsics", default="K.txt")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, KEY=VALUE")
    parser.add_argument("--one-by-one", action="store_true", help="one tracker after the other")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    {"check": check, "cost": cost, "accuracy": accuracy, "recording": recording}[args.what](args)


if __name__ == "__main__":
    main()
