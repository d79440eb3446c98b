"""Conventions of given poses, misread on purpose, over random rendered clips: are all refused, and is the fault named?

    python benchmarks/convention_faults.py [--clips 100] [--workers 2] [--seconds 400] [--json FILE]

Every clip goes through `annotate_clip` in the mode `given_pose` with its depth, its lens and poses in a file: as they
are, in a unit and world of their own, and in eight misreadings. Tracks and solution do not depend on the poses that are
given, so they are found once a clip and only the check runs for each file.
"""

# Functions of modules are replaced here.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from theodolite.annotate import pipeline
from theodolite.annotate.checks import posed
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.annotate.rendered.files import write_clip
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.cameras.transforms import se3_exp, se3_inverse
from theodolite.dataset.text_table import text_table

F64 = np.ndarray
FRAMES, FPS = 48, 16.0
LIGHT = {"tracks": {"num_flow_tracks": 150, "num_descriptors": 200, "max_loops_per_keyframe": 0}}
WORLD = se3_exp(np.array([3.0, -1.0, 2.0, 0.4, -0.3, 1.1]))
INTACT = ("true", "own-unit")
CODES = {
    "flipped": {"given_poses_flipped"},
    "inverted": {"given_poses_inverted"},
    "opengl": {"given_poses_opengl"},
    "rate": {"given_poses_wrong_rate"},
    "off-by-frames": {"given_poses_shifted"},
    "axes": {"given_poses_axes_swapped"},
    "transposed": {"given_poses_rotation_misread"},
    "unit": {"given_poses_wrong_unit"},
}


def random_clip(seed: int) -> RenderConfig:
    """Small, with structure, and of a kind of its own."""
    rng = np.random.default_rng([seed, 77])
    return RenderConfig(
        width=240,
        height=144,
        num_frames=FRAMES,
        fps=FPS,
        seed=seed,
        speed=float(rng.uniform(0.8, 1.8)),
        horizontal_fov_deg=float(rng.uniform(50, 80)),
        noise_sigma=float(rng.choice([0.0, 2.0])),
        exposure_stops=float(rng.choice([0.0, 0.5])),
    )


def _right(matrix: F64) -> Callable[[F64], F64]:
    turn = np.eye(4)
    turn[:3, :3] = matrix
    return lambda p: p @ turn


def _both(matrix: F64) -> Callable[[F64], F64]:
    turn = np.eye(4)
    turn[:3, :3] = matrix
    return lambda p: turn @ p @ turn.T


def _longer(p: F64, factor: float) -> F64:
    out = p.copy()
    out[:, :3, 3] *= factor
    return out


def _transposed(p: F64) -> F64:
    out = p.copy()
    out[:, :3, :3] = np.swapaxes(p[:, :3, :3], 1, 2)
    return out


def poses_of(config: RenderConfig, fault: str) -> F64:
    """(F, 4, 4) what the file of poses holds, in a world that is not the renderer's."""
    rng = np.random.default_rng([config.seed, 78])
    index = np.arange(FRAMES, dtype=np.float64)
    if fault == "rate":
        # A path that is there before the clip begins and after it ends, as in a longer recording.
        index = index * rng.choice([2.0, 0.5, 30 / 16, 24 / 16])
    if fault == "off-by-frames":
        index = index + rng.choice([-1, 1]) * rng.integers(2, 9)
    truth = WORLD @ camera_path(config, index / FPS)
    flips = [np.diag(s) for s in ([-1.0, -1, 1], [-1.0, 1, -1])]
    mirrors = [np.diag(s) for s in ([-1.0, 1, 1], [1.0, -1, 1], [1.0, 1, -1])]
    swaps = [np.eye(3)[list(o)] for o in ((1, 2, 0), (2, 0, 1))]
    swaps += [np.eye(3)[[0, 2, 1]] * [[1], [-1], [1]], np.eye(3)[[1, 0, 2]] * [[1], [1], [-1]]]
    changes: dict[str, list[Callable[[F64], F64]]] = {
        "own-unit": [lambda p: _longer(p, 0.37)],
        "flipped": [*(_right(m) for m in flips), *(_both(m) for m in mirrors)],
        "inverted": [se3_inverse],
        "opengl": [_right(np.diag([1.0, -1, -1]))],
        "axes": [_right(m) for m in swaps],
        "transposed": [_transposed],
        "unit": [lambda p, f=f: _longer(p, f) for f in (100.0, 1000.0, 0.01, 3.28084, 0.3048)],
    }
    options = changes.get(fault, [lambda p: p])
    return options[int(rng.integers(len(options)))](truth)


def keep_results() -> None:
    """Tracks and solution of the clip that was annotated last are taken again."""
    measure, solve = pipeline.measure_images, posed.solve_cameras
    kept: dict[str, Any] = {}

    def measured(*args: Any, **named: Any) -> Any:
        if "tracks" not in kept:
            kept["tracks"] = measure(*args, **named)
        return kept["tracks"]

    def solved(inputs: Any, **named: Any) -> Any:
        if "solved" not in kept:
            kept["solved"] = solve(inputs, **named)
        return kept["solved"]

    pipeline.measure_images, posed.solve_cameras = measured, solved


def judge_clip(seed: int) -> list[dict[str, Any]]:
    """The rows of one clip under all readings."""
    config = random_clip(seed)
    measure, solve, check = pipeline.measure_images, posed.solve_cameras, pipeline.check_depth
    keep_results()
    depth: list[Any] = []

    def checked(*args: Any, **named: Any) -> Any:
        if not depth:
            depth.append(check(*args, **named))
        return depth[0]

    pipeline.check_depth = checked
    found = []
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = write_clip(render_clip(config), folder)
            clip = ClipRef(
                clip_id=f"clip-{seed}",
                source="rendered",
                original_id=str(seed),
                media_kind="video",
                media_path=files.media_path,
                source_fps=FPS,
            )
            for fault in (*INTACT, *CODES):
                np.savetxt(folder / "poses.txt", poses_of(config, fault)[:, :3].reshape(FRAMES, 12))
                given = GivenGeometry(
                    depth_pattern=files.depth_pattern,
                    depth_units_per_metre=1000.0,
                    intrinsics_path=files.intrinsics_path,
                    camera_to_world_path=folder / "poses.txt",
                    poses_metric=fault != "own-unit",
                )
                start = time.perf_counter()
                row = pipeline.annotate_clip(
                    replace(clip, given=given),
                    AnnotateConfig.model_validate(LIGHT),
                    mode="given_pose",
                    recipe_hash="0" * 16,
                )
                named = {r for r in row.reasons if r.startswith("given_poses_")} - {"given_poses_disagree"}
                found.append(
                    {
                        "clip": seed,
                        "fault": fault,
                        "verdict": row.verdict,
                        "named": sorted(named),
                        "reasons": list(row.reasons),
                        "details": list(row.reason_details),
                        "error": row.error,
                        "wall_s": time.perf_counter() - start,
                    }
                )
    finally:
        pipeline.measure_images, posed.solve_cameras, pipeline.check_depth = measure, solve, check
    return found


def judge_in_time(job: tuple[int, float]) -> list[dict[str, Any]]:
    """`judge_clip`, or nothing when the time is over (`time.monotonic`, one clock for a machine's processes)."""
    seed, end = job
    return judge_clip(seed) if time.monotonic() < end else []


def table(found: list[dict[str, Any]]) -> str:
    """What became of each misreading."""
    lines = []
    for fault in (*INTACT, *CODES):
        rows = [r for r in found if r["fault"] == fault]
        wanted = CODES.get(fault, set())
        rejected = sum(r["verdict"] == "rejected" for r in rows)
        right = sum(bool(wanted & set(r["named"])) for r in rows)
        other = Counter(code for r in rows for code in r["named"] if code not in wanted)
        silent = sum(not r["named"] for r in rows)
        words = ", ".join(f"{code} {n}" for code, n in other.most_common())
        lines.append(
            (fault, str(len(rows)), str(rejected), str(right) if wanted else "-", str(silent), words)
        )
    return text_table(("poses", "clips", "rejected", "named", "unnamed", "named otherwise"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first clip")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no clip is begun after these")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    end = time.monotonic() + args.seconds
    seeds = [(seed, end) for seed in range(args.first, args.first + args.clips)]
    with multiprocessing.get_context("spawn").Pool(args.workers, cv2.setNumThreads, (1,)) as pool:
        for number, rows in enumerate(filter(None, pool.imap_unordered(judge_in_time, seeds)), 1):
            found += rows
            wrong = [r for r in rows if (r["verdict"] == "accepted") != (r["fault"] in INTACT) or r["error"]]
            wrong += [
                r for r in rows if r not in wrong and not set(r["named"]) >= CODES.get(r["fault"], set())
            ]
            print(
                f"{number}/{args.clips} clip {rows[0]['clip']} {sum(r['wall_s'] for r in rows):.1f} s", end=""
            )
            print("".join(f"\n   {r['fault']}: {r['verdict']} {r['details']}" for r in wrong), flush=True)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))
    print(table(found))
    if len({r["clip"] for r in found}) < args.clips:
        print(f"time over: {args.clips - len({r['clip'] for r in found})} clips were not begun")
    if any(r["error"] for r in found):
        sys.exit("some clips stopped with an error")


if __name__ == "__main__":
    main()
