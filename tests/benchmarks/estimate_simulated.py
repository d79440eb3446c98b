"""`mode: estimate` under simulated network errors, against two ways in which others join windows.

    python tests/benchmarks/estimate_simulated.py run --out lines.jsonl [--seconds 10,60,120] [--seeds 3] [--data DATA]
    python tests/benchmarks/estimate_simulated.py table lines.jsonl

All methods see the same simulated networks (tests/annotate/simulator.py: gauge and unit per window, drift, 5 % depth
noise, bleeding edges, wrong depth on a moving thing, 10 % wrong frames, metric frames off by 10 %):

* `ours`: the production path, windows of 64 anchors, graph, robust scale, tracks and bundle.
* `chained`: windows of 64 anchors, plain similarity of overlapping points from window to window, scales multiplied;
  metres by the mean of all frames' least squares. Cameras of anchors only.
* `peers-chain`: windows of 16 anchors, stride 8, joined rigidly without alignment of scale; metres frame by frame by
  an exponential mean (0.99). Cameras of anchors only.
* `peers-bundle`: the depth of those windows averaged without alignment, times that scale, given to our tracks and
  bundle, which get no cameras to start from.

ATE is after the best similarity. Scale error is the RMS over pieces of two seconds of log(travelled / true), metres.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from theodolite.annotate.anchors import AnchorsConfig, AnchorStream
from theodolite.annotate.clip import ClipRef
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.decode import open_clip
from theodolite.annotate.geometry.base import SequenceGeometryResult
from theodolite.annotate.pipeline import Estimators, annotate_clip
from theodolite.annotate.render import RenderConfig, render_clip
from theodolite.annotate.scale import ScaleConfig, fit_scale, frame_log_scale
from theodolite.dataset.cameras import orthonormalise, umeyama
from theodolite.dataset.metrics import trajectory_error

sys.path.insert(0, str(Path(__file__).parents[1] / "annotate"))
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
PEERS = AnchorsConfig(window=16, step=8, max_one_pass=16, spread_window=False)
PAPER = ScaleConfig(method="paper", paper_weight="sequence")


def scale_error(found: np.ndarray, truth: np.ndarray, time_s: np.ndarray, piece_s: float = 2.0) -> float:
    """RMS over pieces of the log of travelled over true distance; pieces with less than 5 cm of travel are left out."""
    logs = []
    for start in np.arange(time_s[0], time_s[-1] - piece_s + 1e-6, piece_s):
        inside = np.flatnonzero((time_s >= start - 1e-6) & (time_s <= start + piece_s + 1e-6))
        a, b = inside[0], inside[-1]
        true = np.linalg.norm(truth[b, :3, 3] - truth[a, :3, 3])
        got = np.linalg.norm(found[b, :3, 3] - found[a, :3, 3])
        if true > 0.05:
            logs.append(np.log(max(got, 1e-6) / true))
    return float(np.sqrt(np.mean(np.square(logs)))) if logs else float("nan")


def watch(network, config: AnchorsConfig, clip: ClipRef, frames) -> AnchorStream:
    """All windows of a clip through a network, ready to be joined in some way."""
    stream = AnchorStream(network, config, clip, frames)
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
    config = AnchorsConfig(spread_window=False)
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


class PeersStream(AnchorStream):
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
            stand_in=True,
        )


class PeersGeometry(SimulatedGeometry):
    def start(self, clip, frames) -> AnchorStream:
        return PeersStream(self.network, self.config, clip, frames)


def one(method: str, truth: Truth, errors: Errors, clip: ClipRef, config: AnnotateConfig) -> dict:
    """Errors of one method on one clip."""
    start = time.perf_counter()
    frames = open_clip(clip, config.decode)
    line: dict = {"method": method}
    if method in ("chained", "peers-chain"):
        at, found = (chained if method == "chained" else peers_chain)(truth, errors, clip, frames)
    else:
        if method == "ours":
            estimators = simulated(truth, errors)
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
        line["confidence"] = row.confidence
        if not len(row.camera_to_world):
            return line
        at, found = np.arange(len(frames)), row.camera_to_world.astype(np.float64)
    true = truth.camera_to_world[at]
    error = trajectory_error(found, true, alignment="sim3")
    line |= {
        "ate_m": error.ate_rmse_m,
        "ate_percent": error.ate_percent_of_path,
        "scale_error": scale_error(found, true, at / 16.0),
        "took_s": time.perf_counter() - start,
    }
    return line


def cases(
    seconds: list[int], seeds: int, data: Path | None, work: Path
) -> Iterator[tuple[str, ClipRef, AnnotateConfig, Truth, Errors]]:
    """Clips: rendered with a zoom and a moving thing, and real recordings where given."""
    for length in seconds:
        for seed in range(seeds):
            fields = {
                "width": 480, "height": 270, "num_frames": 16 * length + 1, "seed": 40 + seed,
                "zoom": "in_out", "zoom_factor": 1.5, "moving_object": True,
            }  # fmt: skip
            path = work / f"{length}-{seed}.yaml"
            path.write_text(yaml.safe_dump(fields))
            clip = ClipRef(
                clip_id=f"r{length}-{seed}",
                source="simulated",
                original_id="r",
                media_kind="rendered",
                media_path=path,
            )
            truth = rendered_truth(render_clip(RenderConfig.model_validate(fields)))
            yield f"rendered {length} s", clip, AnnotateConfig(), truth, Errors(seed=seed)
    if data is None:
        return
    for name, count, height, width, focal in (
        ("rgbd-office-a", 150, 360, 540, 495.6),
        ("rgbd-redkitchen", 961, 480, 640, 521.0),
    ):
        if name == "rgbd-redkitchen" and 60 not in seconds:
            continue
        for seed in range(seeds):
            clip = ClipRef(
                clip_id=f"{name}-{seed}", source="simulated", original_id=name, media_kind="video",
                media_path=data / name / "rgb.mp4", source_fps=16.0,
            )  # fmt: skip
            config = AnnotateConfig.model_validate({"decode": {"max_frames": count}})
            truth = recorded_truth(
                data / name, frame_index=np.arange(count), focal_px=focal, height=height, width=width
            )
            yield f"{name} {round(count / 16)} s", clip, config, truth, Errors(seed=100 + seed)


def run(args: argparse.Namespace) -> None:
    """One JSON line per clip and method; lines that are there are kept."""
    torch.set_num_threads(args.threads)
    done = set()
    if args.out.is_file():
        done = {(x["clip"], x["method"]) for x in map(json.loads, args.out.read_text().splitlines())}
    with tempfile.TemporaryDirectory() as work, args.out.open("a") as out:
        number = 0
        for what, clip, config, truth, errors in cases(
            [int(s) for s in args.seconds.split(",") if s], args.seeds, args.data, Path(work)
        ):
            for method in args.methods.split(","):
                number += 1
                if (clip.clip_id, method) in done or number % args.of != args.part:
                    continue
                line = {"what": what, "clip": clip.clip_id} | one(method, truth, errors, clip, config)
                out.write(json.dumps(line) + "\n")
                out.flush()
                print(line, flush=True)


def table(args: argparse.Namespace) -> None:
    """Medians over the clips of a kind."""
    lines = [json.loads(line) for path in args.files for line in path.read_text().splitlines()]
    print("| clip | method | clips | ATE, cm | ATE, % of path | scale error, % | accepted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for what in dict.fromkeys(line["what"] for line in lines):
        for method in METHODS:
            of = [x for x in lines if x["what"] == what and x["method"] == method]
            good = [x for x in of if "ate_m" in x]
            if not of:
                continue
            middle = (
                {k: np.median([x[k] for x in good]) for k in ("ate_m", "ate_percent", "scale_error")}
                if good
                else {}
            )
            accepted = f"{sum(x.get('verdict') == 'accepted' for x in of)}" if "verdict" in of[0] else ""
            shown = (
                f"{100 * middle['ate_m']:.1f} | {middle['ate_percent']:.2f} | {100 * middle['scale_error']:.1f}"
                if good
                else "no cameras | |"
            )
            print(f"| {what} | {method} | {len(good)} of {len(of)} | {shown} | {accepted} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers(dest="what", required=True)
    runner = sub.add_parser("run")
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--seconds", default="10,60,120")
    runner.add_argument("--seeds", type=int, default=3)
    runner.add_argument("--data", type=Path)
    runner.add_argument("--methods", default=",".join(METHODS))
    runner.add_argument("--part", type=int, default=0)
    runner.add_argument("--of", type=int, default=1)
    runner.add_argument("--threads", type=int, default=1)
    shower = sub.add_parser("table")
    shower.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    run(args) if args.what == "run" else table(args)


if __name__ == "__main__":
    main()
