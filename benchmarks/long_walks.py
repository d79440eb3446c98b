"""Ten minutes of video: do drift of the scale, memory and cost stay where they should as a clip grows?

    python benchmarks/long_walks.py run --cache DIR --out lines.jsonl [--seconds 15,30,60,120,240] [--seeds 0,1]
        [--modes estimate,given_depth] [--set annotate.tracks.num_flow_tracks=120 ...]
    python benchmarks/long_walks.py table lines.jsonl

Walks with loops through nine rendered rooms (`walked_rooms.py`), 320x180 at 16 frames a second, written once a seed as
video without loss; a shorter clip is the beginning of a longer one (`annotate.decode.max_frames`). They go through
`annotate_clip` by the recipes that users run: `estimate` with simulated networks (tests/annotate/simulator.py: every
window of 64 keyframes has a gauge and a unit of its own, the unit drifts within it by 3 %, one frame in ten is wrong,
rays are off by 2 %, metres of single images by 10 %), and `rgbd` with depth of 160x90 that errs by 1 % a pixel, 1 % in
blotches that change and 0.5 % a frame. Every clip has a process of its own, so that the peak of its memory is its own.

Of a line: ATE after the best rigid motion, in metres as they are (SE(3)), and with the best scale as well (Sim(3)); the
log of found over true scale of the whole path, and that of its last quarter less that of its first; RPE over a second;
mean error of the focal length; processor seconds by stage, the simulated networks' own left out; the largest resident
memory of the process. `table` adds how the geometric means over seeds grow: the exponent of the length, by least
squares of logs. ATE should grow with an exponent of 0.5 at most, cost with 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import psutil
import torch
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.files import write_depth_png
from theodolite.annotate.row import Findings
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.cameras.alignment import umeyama
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.trajectory import (
    focal_mape_percent,
    path_length,
    relative_pose_error,
    trajectory_error,
)
from theodolite.dataset.rows import Row
from theodolite.dataset.text_table import markdown_table
from theodolite.recipes.loader import load_recipe
from walked_rooms import DEPTH_SIZE, FOCAL_PX, FPS, HEIGHT, WIDTH, build_house, load_faces, save_faces, walk

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from simulator import Errors, SimulatedMoGe2, SimulatedPi3X, Truth, simulated, smooth_field

RECIPES = {"estimate": "estimate", "given_depth": "rgbd"}
STAGES = ("tracks", "geometry", "start", "bundle")


# --- the clips ------------------------------------------------------------------------------------------


def render_walk(folder: Path, seed: int, num_frames: int, with_depth: bool) -> None:
    """Video, faces and poses of a walk, and depth that errs; about 30 ms of a core a frame, 40 with depth."""
    (folder / "depth").mkdir(parents=True, exist_ok=True)
    house, poses = build_house(seed), walk(seed, num_frames)
    save_faces(folder / "faces.npz", house)
    with VideoWriter(folder / "rgb.mp4", width=WIDTH, height=HEIGHT, fps=FPS, crf=0) as video:
        for i, pose in enumerate(poses):
            video.write(house.picture(pose))
            if not with_depth:
                continue
            rng = np.random.default_rng([seed, 25, i])
            log = 0.01 * rng.standard_normal(DEPTH_SIZE) + 0.01 * smooth_field(rng, DEPTH_SIZE)
            log += 0.005 * rng.standard_normal()
            depth_m = (house.depth_m(pose, DEPTH_SIZE) * np.exp(log)).astype(np.float32)
            write_depth_png(folder / f"depth/{i:06d}.png", depth_m, units_per_metre=1000.0)
    np.save(folder / "poses.npy", poses)  # last: a folder that has it is complete


def truth_of(folder: Path, num_frames: int) -> Truth:
    """What simulated networks err from."""
    house, poses = load_faces(folder / "faces.npz"), np.load(folder / "poses.npy")[:num_frames]
    return Truth(
        camera_to_world=poses,
        focal_px=np.full(num_frames, FOCAL_PX),
        height=HEIGHT,
        width=WIDTH,
        depth_m=lambda frame, size: house.depth_m(poses[frame], size),
    )


# --- one clip -------------------------------------------------------------------------------------------


class Meter:
    """What each stage costs: processor seconds, and the largest resident memory, in GiB.

    Attributes:
        processor_s, peak_gib: by stage; `rest` is what belongs to none.
        simulated_s: processor seconds of the simulated networks, which nobody else has.
    """

    def __init__(self) -> None:
        self.processor_s: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}
        self.simulated_s: dict[str, float] = {}
        self._stage, self._process = "rest", psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.03):
            gib, stage = self._process.memory_info().rss / 2**30, self._stage
            self.peak_gib[stage] = max(gib, self.peak_gib.get(stage, 0.0))

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """A stage."""
        start, self._stage = time.process_time(), name
        try:
            yield
        finally:
            self.processor_s[name] = self.processor_s.get(name, 0.0) + time.process_time() - start
            self._stage = "rest"

    def apart(self, predict: Callable) -> Callable:
        """A simulated network's function whose cost is put down."""

        def measured(*args: Any, **keywords: Any) -> Any:
            start = time.thread_time()
            try:
                return predict(*args, **keywords)
            finally:
                stage = self._stage
                spent = time.thread_time() - start
                self.simulated_s[stage] = self.simulated_s.get(stage, 0.0) + spent

        return measured

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While a clip is annotated."""
        own = Findings.stage

        @contextmanager
        def stage(findings: Findings, name: str) -> Iterator[None]:
            with self.around(name), own(findings, name):
                yield

        networks = (SimulatedPi3X, SimulatedMoGe2)
        self._thread.start()
        with mock.patch.object(Findings, "stage", stage), self._apart(networks[0]), self._apart(networks[1]):
            start = time.process_time()
            yield
            total = time.process_time() - start
        self._stop.set()
        self._thread.join()
        self.processor_s["rest"] = total - sum(self.processor_s.values())
        for name, spent in self.simulated_s.items():
            self.processor_s[name] -= spent

    def _apart(self, network: type) -> Any:
        return mock.patch.object(network, "predict", self.apart(network.predict))


def one(folder: Path, seed: int, seconds: int, mode: str, changed: Sequence[str] = ()) -> dict[str, Any]:
    """The line of one clip, with what is changed in the recipe."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    frames = FPS * seconds + 1
    recipe = load_recipe(RECIPES[mode], [f"annotate.decode.max_frames={frames}", *changed])
    given, estimators = GivenGeometry(), None
    if mode == "given_depth":
        given = GivenGeometry(
            depth_pattern=str(folder / "depth/{frame:06d}.png"), depth_units_per_metre=1000.0
        )
    else:
        keyframes = recipe.annotate.geometry.keyframes
        estimators = simulated(truth_of(folder, frames), Errors(seed=seed), keyframes)
    clip = ClipRef(
        clip_id=f"walk-{seed}-{seconds}", source="walks", original_id=str(seed), media_kind="video",
        media_path=folder / "rgb.mp4", given=given,
    )  # fmt: skip
    before = psutil.Process().memory_info().rss / 2**30
    meter, wall = Meter(), time.perf_counter()
    with meter.watching():
        row = annotate_clip(
            clip, recipe.annotate, mode=recipe.mode, recipe_hash="0" * 16, estimators=estimators
        )
    truth = np.load(folder / "poses.npy")[:frames]
    return {
        "seed": seed, "seconds": seconds, "mode": mode, "wall_s": time.perf_counter() - wall,
        "processor_s": meter.processor_s, "simulated_s": sum(meter.simulated_s.values()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "before_gib": before,
        "peak_by_stage_gib": meter.peak_gib,
    } | judged(row, truth)  # fmt: skip


def judged(row: Row, truth: np.ndarray) -> dict[str, Any]:
    """Verdict and errors of a row."""
    line: dict[str, Any] = {
        "verdict": row.verdict, "reasons": list(row.reasons), "error": row.error, "details": row.reason_details,
        "path_m": path_length(truth), "metrics": dict(row.metrics or {}),
    }  # fmt: skip
    if not len(row.camera_to_world):
        return line
    found = row.camera_to_world.astype(np.float64)
    rigid, similar = (trajectory_error(found, truth, alignment=a) for a in ("se3", "sim3"))
    second = relative_pose_error(found, truth, delta_frames=FPS)
    part = len(truth) // 4
    return line | {
        "ate_m": rigid.ate_rmse_m,
        "sim3_m": similar.ate_rmse_m,
        "rotation_deg": float(np.degrees(rigid.rotation_rmse_rad)),
        "scale_log": float(-np.log(similar.scale)),
        "drift_log": log_scale(found[-part:], truth[-part:]) - log_scale(found[:part], truth[:part]),
        "rpe_m": second.translation_rmse_m,
        "rpe_deg": second.rotation_rmse_deg,
        "focal_percent": focal_mape_percent(row.focal_px[:, 0], np.full(len(truth), FOCAL_PX)),
    }


def log_scale(found: np.ndarray, truth: np.ndarray) -> float:
    """Log of found over true scale of a piece of path."""
    return float(-np.log(umeyama(found[:, :3, 3], truth[:, :3, 3], with_scale=True).scale))


# --- all of them ----------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """A JSON line for each clip; lines and walks that are there are kept."""
    done = set()
    if args.out.is_file():
        lines = map(json.loads, args.out.read_text().splitlines())
        done = {(x["seed"], x["seconds"], x["mode"]) for x in lines}
    for seed in args.seeds:
        folder = args.cache / f"walk-{seed}"
        longest, poses = max(args.seconds), folder / "poses.npy"
        with_depth = "given_depth" in args.modes
        last = folder / f"depth/{FPS * longest:06d}.png"
        if not poses.is_file() or len(np.load(poses)) <= FPS * longest or (with_depth and not last.is_file()):
            _apart("render", folder, seed, longest, *(["--depth"] if with_depth else []))
    for seconds in args.seconds:
        for seed in args.seeds:
            for mode in args.modes:
                if (seed, seconds, mode) not in done:
                    said = _apart("one", args.cache / f"walk-{seed}", seed, seconds, mode, *args.set)
                    line = said.splitlines()[-1]
                    with args.out.open("a") as out:
                        out.write(line + "\n")
                    print(line, flush=True)


def _apart(*words: object) -> str:
    """What a process of its own prints."""
    command = [sys.executable, __file__, *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(files: Sequence[Path]) -> None:
    """A line a clip, and how the means over seeds grow with the length."""
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    lines.sort(key=lambda x: (x["mode"], x["seconds"], x["seed"]))
    header = ("mode", "s", "seed", "path, m", "verdict", "ATE, cm", "Sim(3), cm", "scale, %", "drift, %",
              "RPE, cm; deg", "focal, %", *(f"{name}, s" for name in STAGES), "rest, s", "peak, GiB")  # fmt: skip
    print(markdown_table(header, [_cells(x) for x in lines]))
    for mode in RECIPES:
        of = [x for x in lines if x["mode"] == mode and "ate_m" in x]
        if len({x["seconds"] for x in of}) > 1:
            told = ", ".join(f"{name} {exponent(of, value):.2f}" for name, value in GROWING.items())
            print(f"\n{mode}, exponents of the length: {told}")


GROWING: dict[str, Callable[[dict[str, Any]], float]] = {
    "ATE": lambda x: x["ate_m"],
    "ATE with the best scale": lambda x: x["sim3_m"],
    "processor time": lambda x: sum(x["processor_s"].values()),
    **{f"{name}": lambda x, name=name: x["processor_s"].get(name, float("nan")) for name in STAGES},
    "memory beyond the start": lambda x: x["peak_gib"] - x["before_gib"],
}
"""What should not grow too fast."""


def exponent(lines: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    """Of the length, by least squares of the logs of the geometric means over seeds."""
    lengths = sorted({x["seconds"] for x in lines})
    means = [np.mean([np.log(value(x)) for x in lines if x["seconds"] == s]) for s in lengths]
    known = np.isfinite(means)
    return (
        float(np.polyfit(np.log(lengths)[known], np.array(means)[known], 1)[0]) if known.sum() > 1 else np.nan
    )


def _cells(x: dict[str, Any]) -> list[str]:
    reasons = [r for r in x["reasons"] if r != "stand_in_weights"]
    cells = [x["mode"], str(x["seconds"]), str(x["seed"]), f"{x['path_m']:.0f}",
             ", ".join(reasons) or "accepted"]  # fmt: skip
    if "ate_m" in x:
        cells += [f"{100 * x['ate_m']:.1f}", f"{100 * x['sim3_m']:.1f}", f"{100 * x['scale_log']:+.1f}",
                  f"{100 * x['drift_log']:+.1f}", f"{100 * x['rpe_m']:.1f}; {x['rpe_deg']:.2f}",
                  f"{x['focal_percent']:.1f}"]  # fmt: skip
    else:
        cells += [""] * 6
    spent = x["processor_s"]
    cells += [f"{spent.get(name, 0.0):.0f}" for name in STAGES]
    rest = sum(spent.values()) - sum(spent.get(name, 0.0) for name in STAGES)
    return [*cells, f"{rest:.0f}", f"{x['peak_gib']:.2f}"]


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = parser.add_subparsers(dest="what", required=True)
    runner = sub.add_parser("run")
    runner.add_argument("--cache", type=Path, required=True, help="folder for the walks: 25 MB a minute")
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--seconds", default=[15, 30, 60, 120, 240], type=_numbers)
    runner.add_argument("--seeds", default=[0, 1], type=_numbers)
    runner.add_argument("--modes", default="estimate,given_depth", type=lambda text: text.split(","))
    runner.add_argument("--set", nargs="*", default=[], help="key.path=value of the recipes")
    shower = sub.add_parser("table")
    shower.add_argument("files", type=Path, nargs="+")
    renderer = sub.add_parser("render", help="a walk; `run` asks for it")
    single = sub.add_parser("one", help="a line; `run` asks for it")
    for part in (renderer, single):
        part.add_argument("folder", type=Path)
        part.add_argument("seed", type=int)
        part.add_argument("seconds", type=int)
    renderer.add_argument("--depth", action="store_true")
    single.add_argument("mode", choices=list(RECIPES))
    single.add_argument("set", nargs="*")
    args = parser.parse_args()
    if args.what == "render":
        render_walk(args.folder, args.seed, FPS * args.seconds + 1, args.depth)
    elif args.what == "one":
        print(json.dumps(one(args.folder, args.seed, args.seconds, args.mode, args.set)))
    elif args.what == "run":
        run(args)
    else:
        table(args.files)


if __name__ == "__main__":
    main()
