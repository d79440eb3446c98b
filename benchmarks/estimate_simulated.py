"""`mode: estimate` under simulated network errors, against two ways in which others join windows.

    python benchmarks/estimate_simulated.py run --out lines.jsonl [--seconds 10,60,120] [--seeds 5,4,3] \\
        [--first-seed 100] [--data DATA] [--workers 2]
    python benchmarks/estimate_simulated.py table lines.jsonl
    python benchmarks/estimate_simulated.py windows [--seconds 60] [--seeds 4] [--plans 64:32,64:56]

All methods see the same simulated networks (tests/annotate/simulator.py: gauge and unit per window, drift, 5 % depth
noise, bleeding edges, wrong depth on a moving thing, 10 % wrong frames, metric frames off by 10 %):

* `ours`: the production path, windows of 64 keyframes, graph, robust scale, tracks and bundle.
* `chained`: windows of 64 keyframes, plain similarity of overlapping points from window to window, scales multiplied;
  metres by the mean of all frames' least squares. Cameras of keyframes only.
* `peers-chain`: windows of 16 keyframes, stride 8, joined rigidly without alignment of scale; metres frame by frame by
  an exponential mean (0.99). Cameras of keyframes only.
* `peers-bundle`: the depth of those windows averaged without alignment, times that scale, given to our tracks and
  bundle, which get no cameras to start from.

All are judged at the keyframes. ATE is after the best similarity. Scale error: for every piece of two seconds that
begins at a keyframe and in which the camera gets at least 20 cm away, the log of found over true distance between its
ends; RMS over the pieces. Its two parts: the clip factor (log of the scale of the best similarity) and the wander
(spread over the pieces). Every method owes its clip factor to the metric network, whose frames err alike for two
seconds: with the true structure and *all* frames, the mean of their errors has a standard deviation of 5.7 % at 10 s,
2.6 % at 60 s and 1.8 % at 120 s (first-order autocorrelation 0.97, 10 %).

`windows` compares window lengths without tracks and bundle, at keyframes whose simulated pose is not an outlier, with
the cost of Pi3X at two measured speeds (time per frame grows linearly with the window).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.align import DEPTHS_PER_FRAME
from theodolite.annotate.geometry.base import SequenceGeometryResult
from theodolite.annotate.geometry.config import KeyframesConfig
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.windows import KeyframeStream, choose_keyframes
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.scale.estimate import estimate_scale
from theodolite.annotate.scale.ratio import frame_log_scale
from theodolite.annotate.scale.records import ScaleConfig
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.cameras.alignment import umeyama
from theodolite.dataset.cameras.rotations import orthonormalise
from theodolite.dataset.metrics.trajectory import trajectory_error

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from simulator import (
    Errors,
    SimulatedAnchor,
    SimulatedGeometry,
    SimulatedMoGe2,
    SimulatedPi3X,
    Truth,
    recorded_truth,
    rendered_truth,
    simulated,
)

METHODS = ("ours", "chained", "peers-chain", "peers-bundle")
PEERS = KeyframesConfig(window=16, step=8, max_one_pass=16, spread_window=False)
PAPER = ScaleConfig(method="paper", paper_weight="sequence")


def piece_logs(found: np.ndarray, truth: np.ndarray, time_s: np.ndarray, piece_s: float = 2.0) -> np.ndarray:
    """Log of found over true distance between the ends of each piece; pieces of less than 20 cm are left out.

    Args:
        found, truth: (n, 4, 4) poses at times time_s (n,); a piece begins at each and ends at the last within piece_s.
    """
    first = np.flatnonzero(time_s <= time_s[-1] - piece_s + 1e-6)
    last = np.searchsorted(time_s, time_s[first] + piece_s + 1e-6) - 1
    true, got = (np.linalg.norm(p[last, :3, 3] - p[first, :3, 3], axis=1) for p in (truth, found))
    far = true > 0.2
    return np.log(np.maximum(got[far], 1e-6) / true[far])


def measure(found: np.ndarray, truth: np.ndarray, time_s: np.ndarray) -> dict[str, float]:
    """Errors of cameras (n, 4, 4) in metres, as the head of this file defines them."""
    error = trajectory_error(found, truth, alignment="sim3")
    logs = piece_logs(found, truth, time_s)
    return {
        "ate_m": error.ate_rmse_m,
        "ate_percent": error.ate_percent_of_path,
        "scale_error": float(np.sqrt(np.mean(logs**2))),
        "clip_factor": float(-np.log(error.scale)),
        "wander": float(logs.std()),
    }


def watch(network, config: KeyframesConfig, clip: ClipRef, frames) -> KeyframeStream:
    """All windows of a clip through a network, ready to be joined in some way."""
    stream = KeyframeStream(network, config, clip, frames)
    blank = np.zeros((frames.height, frames.width, 3), np.uint8)
    for number in range(len(frames)):
        stream.add(number, blank)
    return stream


def metric_depths(truth: Truth, errors: Errors, clip: ClipRef, frames, at: np.ndarray, focal_px) -> list:
    stream = SimulatedAnchor(SimulatedMoGe2(truth, errors)).start(clip, frames, at.tolist())
    blank = np.zeros((frames.height, frames.width, 3), np.uint8)
    for number in at:
        stream.add(int(number), blank)
    return stream.finish(focal_px)


def chained(truth: Truth, errors: Errors, clip: ClipRef, frames) -> tuple[np.ndarray, np.ndarray]:
    """Anchors' frames and cameras of `chained`."""
    config = KeyframesConfig(spread_window=False)
    stream = watch(SimulatedPi3X(truth, errors), config, clip, frames)
    kept = [pending.result() for pending in stream._pending]
    total, factor = np.eye(4), 1.0
    poses: dict[int, np.ndarray] = {}
    depth: dict[int, np.ndarray] = {}
    focal = np.full((len(frames), 2), np.nan)
    for i, window in enumerate(kept):
        if i:
            before = kept[i - 1]
            _, ia, ib = np.intersect1d(before.frame, window.frame, return_indices=True)
            points = []
            for w, index in ((window, ib), (before, ia)):
                pose = w.camera_to_world[index]
                world = np.einsum("nij,npj->npi", pose[:, :3, :3], w.points[index]) + pose[:, None, :3, 3]
                points.append(world.reshape(-1, 3))
            good = (before.weight[ia] > 0).ravel() & (window.weight[ib] > 0).ravel()
            fit = umeyama(points[0][good], points[1][good], with_scale=True)
            step = np.eye(4)
            step[:3, :3], step[:3, 3] = fit.scale * fit.rotation, fit.translation
            total, factor = total @ step, factor * fit.scale
        for k, f in enumerate(window.frame):
            if int(f) not in poses:
                moved = total @ window.camera_to_world[k]
                moved[:3, :3] = orthonormalise(moved[:3, :3])
                poses[int(f)] = moved
                depth[int(f)] = window.depth[k].astype(np.float32) * factor
                focal[f] = window.focal_px[k]
    at = np.array(sorted(poses))
    metric = metric_depths(truth, errors, clip, frames, at[2::4], focal)
    ratios = [frame_log_scale(depth[a.frame], a.depth_m, config=PAPER) for a in metric]
    scale = float(np.mean(np.exp(ratios)))
    found = np.stack([poses[int(f)] for f in at])
    found[:, :3, 3] *= scale
    return at, found


def peers_chain(truth: Truth, errors: Errors, clip: ClipRef, frames) -> tuple[np.ndarray, np.ndarray]:
    """Anchors' frames and cameras of `peers-chain`."""
    stream = watch(SimulatedPi3X(truth, errors), PEERS, clip, frames)
    kept = [pending.result() for pending in stream._pending]
    poses: dict[int, np.ndarray] = {}
    focal = np.full((len(frames), 2), np.nan)
    for window in kept:
        focal[window.frame] = window.focal_px
        known = [k for k, f in enumerate(window.frame) if int(f) in poses]
        total = np.eye(4)
        if known:
            # The first common frame carries the window; no scale, no averaging.
            k = known[0]
            total = poses[int(window.frame[k])] @ np.linalg.inv(window.camera_to_world[k])
        for k, f in enumerate(window.frame):
            poses.setdefault(int(f), total @ window.camera_to_world[k])
    at = np.array(sorted(poses))
    depth = averaged(kept)
    metric = {a.frame: a.depth_m for a in metric_depths(truth, errors, clip, frames, at, focal)}
    logs = np.array(
        [
            frame_log_scale(depth[int(f)], metric[int(f)], config=PAPER) if int(f) in metric else np.nan
            for f in at
        ]
    )
    series = fit_scale(at, logs, num_frames=len(frames), config=PAPER)
    found = np.stack([poses[int(f)] for f in at])
    assert series.metres_per_unit is not None
    steps = np.diff(found[:, :3, 3], axis=0) * series.metres_per_unit[at[1:], None]
    found[1:, :3, 3] = found[0, :3, 3] + np.cumsum(steps, axis=0)
    return at, found


def averaged(kept) -> dict[int, np.ndarray]:
    """Depth of each frame, averaged over its windows as it comes."""
    places: dict[int, list[np.ndarray]] = {}
    for window in kept:
        for k, f in enumerate(window.frame):
            places.setdefault(int(f), []).append(window.depth[k].astype(np.float32))
    with np.errstate(invalid="ignore"):
        return {f: np.mean(maps, axis=0) for f, maps in places.items()}


class _Averaged:
    def __init__(self, depth: dict[int, np.ndarray], num_frames: int) -> None:
        self.depth, self.num_frames = depth, num_frames

    def __len__(self) -> int:
        return self.num_frames

    def read(self, frame: int):
        return self.depth.get(frame)


class PeersStream(KeyframeStream):
    """Windows of 16 at stride 8, averaged; no cameras, no focal lengths."""

    def finish(self) -> SequenceGeometryResult:
        kept = [pending.result() for pending in self._pending]
        focal = np.full((self.num_frames, 2), np.nan)
        for window in kept:
            focal[window.frame] = window.focal_px
        return SequenceGeometryResult(
            depth=_Averaged(averaged(kept), self.num_frames),
            depth_sigma_log=0.05,
            metres_per_unit=None,
            focal_px=focal,
            depths_per_frame=DEPTHS_PER_FRAME,
        )


class PeersGeometry(SimulatedGeometry):
    def start(self, clip, frames) -> KeyframeStream:
        return PeersStream(self.network, self.config, clip, frames)


def one(method: str, truth: Truth, errors: Errors, clip: ClipRef, config: AnnotateConfig) -> dict:
    """Errors of one method on one clip."""
    start = time.perf_counter()
    frames = open_clip(clip, config.decode)
    keyframes = choose_keyframes(len(frames), frames.timing.fps, KeyframesConfig().fps)
    line: dict = {"method": method}
    if method in ("chained", "peers-chain"):
        at, found = (chained if method == "chained" else peers_chain)(truth, errors, clip, frames)
    else:
        if method == "ours":
            estimators = simulated(truth, errors, config.geometry.keyframes)
        else:
            estimators = Estimators(
                sequence=PeersGeometry(SimulatedPi3X(truth, errors), PEERS),
                anchor=SimulatedAnchor(SimulatedMoGe2(truth, errors)),
            )
            config = config.model_copy(
                update={
                    "scale": PAPER,
                    "geometry": config.geometry.model_copy(update={"anchor_fps": 4.0}),
                }
            )
        row = annotate_clip(clip, config, mode="estimate", recipe_hash="0" * 16, estimators=estimators)
        line |= {"verdict": row.verdict, "reasons": row.reasons, "error": row.error}
        line |= {"details": row.reason_details, "confidence": row.confidence}
        if not len(row.camera_to_world):
            return line
        at, found = keyframes, row.camera_to_world[keyframes].astype(np.float64)
    line |= measure(found, truth.camera_to_world[at], at / frames.timing.fps)
    return line | {"took_s": time.perf_counter() - start}


RECORDINGS = {"rgbd-office-a": (150, 360, 540, 495.6), "rgbd-redkitchen": (961, 480, 640, 521.0)}
"""Frames, height, width and focal length in pixels."""


def case(
    kind: str, seconds: int, seed: int, data: Path | None, work: Path
) -> tuple[ClipRef, AnnotateConfig, Truth, Errors]:
    """A clip, rendered with a zoom and a moving thing or a real recording, and the networks' errors on it.

    The zoom of the rendered clips keeps the narrowest view (28 degrees, vertically) clear of the gate at 25.
    """
    if kind in RECORDINGS:
        assert data is not None
        count, height, width, focal = RECORDINGS[kind]
        clip = ClipRef(
            clip_id=f"{kind}-{seed}", source="simulated", original_id=kind, media_kind="video",
            media_path=data / kind / "rgb.mp4", source_fps=16.0,
        )  # fmt: skip
        config = AnnotateConfig.model_validate({"decode": {"max_frames": count}})
        truth = recorded_truth(
            data / kind, frame_index=np.arange(count), focal_px=focal, height=height, width=width
        )
        return clip, config, truth, Errors(seed=seed)
    fields = {
        "width": 480, "height": 270, "num_frames": 16 * seconds + 1, "seed": 40 + seed,
        "zoom": "in_out", "zoom_factor": 1.35, "moving_object": True,
    }  # fmt: skip
    path = work / f"{seconds}-{seed}.yaml"
    path.write_text(yaml.safe_dump(fields))
    clip = ClipRef(
        clip_id=f"r{seconds}-{seed}", source="simulated", original_id="r", media_kind="rendered", media_path=path
    )  # fmt: skip
    return (
        clip,
        AnnotateConfig(),
        rendered_truth(render_clip(RenderConfig.model_validate(fields))),
        Errors(seed=seed),
    )


Task = tuple[str, int, int, str, Path | None, str]
"""Kind of clip, seconds, seed, method, folder of the recordings, keyframes of `ours` as JSON."""


def tasks(
    seconds: list[int], seeds: list[int], first: int, methods: list[str], data: Path | None, keyframes: str
) -> list[Task]:
    """What `run` does, longest first."""
    found: list[Task] = []
    for length, count in zip(seconds, seeds, strict=True):
        found += [("rendered", length, first + k, m, data, keyframes) for k in range(count) for m in methods]
    if data is not None:
        found += [(kind, round(RECORDINGS[kind][0] / 16), first + 100 + k, m, data, keyframes)
                  for kind in RECORDINGS for k in range(3) for m in methods]  # fmt: skip
    quick = {"chained", "peers-chain"}
    return sorted(found, key=lambda t: -t[1] * (0.1 if t[3] in quick else 1))


def work(task: Task) -> dict:
    """One line of the output."""
    torch.set_num_threads(1)
    kind, seconds, seed, method, data, keyframes = task
    with tempfile.TemporaryDirectory() as folder:
        clip, config, truth, errors = case(kind, seconds, seed, data, Path(folder))
        geometry = config.geometry.model_copy(update={"keyframes": KeyframesConfig(**json.loads(keyframes))})
        config = config.model_copy(update={"geometry": geometry})
        line = one(method, truth, errors, clip, config)
    return {"what": f"{kind} {seconds} s", "seed": seed} | line


def run(args: argparse.Namespace) -> None:
    """One JSON line per clip and method; lines that are there are kept."""
    seconds = [int(s) for s in args.seconds.split(",") if s]
    seeds = [int(s) for s in args.seeds.split(",")]
    seeds = seeds * len(seconds) if len(seeds) == 1 else seeds
    done = set()
    if args.out.is_file():
        done = {
            (x["what"], x["seed"], x["method"]) for x in map(json.loads, args.out.read_text().splitlines())
        }
    wanted = tasks(seconds, seeds, args.first_seed, args.methods.split(","), args.data, args.keyframes)
    wanted = [t for t in wanted if (f"{t[0]} {t[1]} s", t[2], t[3]) not in done]
    with get_context("spawn").Pool(args.workers) as pool, args.out.open("a") as out:
        for line in pool.imap_unordered(work, wanted):
            out.write(json.dumps(line) + "\n")
            out.flush()
            print(line, flush=True)


def table(args: argparse.Namespace) -> None:
    """Median and RMS over the clips of a kind that have cameras, and how often ours is better than each rival."""
    lines = [json.loads(line) for path in args.files for line in path.read_text().splitlines()]
    names = ("ate_m", "scale_error", "clip_factor", "wander")
    print(
        "| clips | method | with cameras | ATE, cm | scale error, % | of that: clip factor | wander | accepted |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rms: dict[tuple[str, str], dict[str, float]] = {}
    for what in dict.fromkeys(
        line["what"] for line in sorted(lines, key=lambda x: (len(x["what"]), x["what"]))
    ):
        for method in METHODS:
            of = [x for x in lines if x["what"] == what and x["method"] == method]
            good = [x for x in of if "ate_m" in x]
            if not of:
                continue
            cells = []
            for name in names:
                values = np.abs([x[name] for x in good])
                if not good:
                    cells.append("")
                    continue
                rms.setdefault((what, method), {})[name] = float(np.sqrt(np.mean(values**2)))
                cells.append(f"{100 * np.median(values):.1f} / {100 * rms[what, method][name]:.1f}")
            accepted = f"{sum(x.get('verdict') == 'accepted' for x in of)}" if "verdict" in of[0] else ""
            print(f"| {what} | {method} | {len(good)} of {len(of)} | {' | '.join(cells)} | {accepted} |")
    print("\nCells: median / RMS over clips. RMS of a rival over RMS of ours:")
    for (what, method), values in rms.items():
        if method != "ours" and (what, "ours") in rms:
            ratios = ", ".join(f"{n} {values[n] / rms[what, 'ours'][n]:.1f}" for n in names)
            print(f"  {what}, {method}: {ratios}")


ONE_PASS = 1000


class Plan(NamedTuple):
    """Keyframes a second, those of a window and from one window's start to the next, and whether one is spread."""

    fps: float
    window: int
    step: int
    spread: bool

    @staticmethod
    def of(text: str, fps: float) -> Plan:
        """From `window:step`, with `-` before it for no spread window; or `all`."""
        if text == "all":
            return Plan(fps, ONE_PASS, ONE_PASS // 2, False)
        window, step = map(int, text.removeprefix("-").split(":"))
        return Plan(fps, window, step, not text.startswith("-"))

    def config(self) -> KeyframesConfig:
        """Of the recipe."""
        return KeyframesConfig(fps=self.fps, window=self.window, step=self.step, spread_window=self.spread,
                               max_one_pass=self.window)  # fmt: skip


PLANS = ",".join(f"{sign}{n}:{n // 2}" for n in (32, 64, 96, 128) for sign in ("-", "")) + ",all"


def windows(args: argparse.Namespace) -> None:
    """Accuracy and cost of lengths of windows, of their overlap and of the rate of keyframes."""
    torch.set_num_threads(1)
    (n1, f1), (n2, f2) = ((int(a), float(b)) for a, b in (x.split(":") for x in args.speed.split(",")))
    slope = (1 / f2 - 1 / f1) / (n2 - n1)
    plans = [
        Plan.of(x, fps) for fps in map(float, args.keyframe_fps.split(",")) for x in args.plans.split(",")
    ]
    found: dict[Plan, list[dict[str, float]]] = {plan: [] for plan in plans}
    cost: dict[Plan, float] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        folder = tempfile.TemporaryDirectory()
        clip, config, truth, errors = case("rendered", args.seconds, seed, None, Path(folder.name))
        depth, moving = lru_cache(4000)(truth.depth_m), truth.moving and lru_cache(4000)(truth.moving)
        truth = replace(truth, depth_m=depth, moving=moving)
        frames = open_clip(clip, config.decode)
        for plan in plans:
            network = SimulatedPi3X(truth, errors)
            stream = watch(network, plan.config(), clip, frames)
            cost[plan] = sum(len(w) * (1 / f1 + slope * (len(w) - n1)) for w in stream.windows)
            result = stream.finish()
            assert result.camera_to_world is not None
            metric = metric_depths(truth, errors, clip, frames, stream.keyframes[2::4], result.focal_px)
            scale = estimate_scale(result, metric, num_frames=len(frames))
            assert scale.metres_per_unit is not None
            at = stream.keyframes[~network.wrong[stream.keyframes]]
            poses = result.camera_to_world[at].astype(np.float64)
            poses[:, :3, 3] *= scale.metres_per_unit[at, None]
            found[plan].append(measure(poses, truth.camera_to_world[at], at / frames.timing.fps))
        folder.cleanup()
    print(f"{args.seconds} s, {args.seeds} clips, RMS; Pi3X at {args.speed} frames/s by window")
    print("| keyframes/s | window, step | spread window | ATE, cm | scale wander, % | Pi3X, s a clip |")
    print("| --- | --- | --- | --- | --- | --- |")
    for plan, of in found.items():
        ate, wander = (100 * np.sqrt(np.mean([x[n] ** 2 for x in of])) for n in ("ate_m", "wander"))
        name = "all at once" if plan.window == ONE_PASS else f"{plan.window}, {plan.step}"
        spread = "yes" if plan.spread else "no"
        print(f"| {plan.fps:g} | {name} | {spread} | {ate:.1f} | {wander:.1f} | {cost[plan]:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers(dest="what", required=True)
    runner = sub.add_parser("run")
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--seconds", default="10,60,120")
    runner.add_argument("--seeds", default="5,4,3", help="clips of each length")
    runner.add_argument("--first-seed", type=int, default=0)
    runner.add_argument("--data", type=Path)
    runner.add_argument("--methods", default=",".join(METHODS))
    runner.add_argument("--workers", type=int, default=1)
    runner.add_argument("--keyframes", default="{}", help="annotate.geometry.keyframes of `ours`, as JSON")
    shower = sub.add_parser("table")
    shower.add_argument("files", type=Path, nargs="+")
    study = sub.add_parser("windows")
    study.add_argument("--seconds", type=int, default=60)
    study.add_argument("--seeds", type=int, default=4)
    study.add_argument("--first-seed", type=int, default=0)
    study.add_argument(
        "--plans", default=PLANS, help="window:step of each, - before it: without the spread window"
    )
    study.add_argument("--keyframe-fps", default="4", help="keyframes a second, several with commas")
    study.add_argument("--speed", default="64:42.9,128:26.1", help="window:frames/s, measured twice")
    args = parser.parse_args()
    {"run": run, "table": table, "windows": windows}[args.what](args)


if __name__ == "__main__":
    main()
