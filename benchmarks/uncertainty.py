"""Do the standard deviations that rows state hold what they promise, and what becomes of short and degenerate clips?

    python benchmarks/uncertainty.py run --out develop.jsonl --part develop [--first 0 --count 200] [--jobs 4]
        [--longest FRAMES] [--most CLIPS] [--seconds 300] [--only estimate/10-frames,...] [--evidence DIR]
    python benchmarks/uncertainty.py run --out held.jsonl --part held-out --count 200 --jobs 4
    python benchmarks/uncertainty.py run --out degenerate.jsonl --part degenerate --count 60 --jobs 4
    python benchmarks/uncertainty.py table held.jsonl degenerate.jsonl [--each]

Rendered clips on the path that users take (`annotate_clip`): half of them with depth that errs as sensors' depth does
(`given_depth`: pixel noise that grows with distance, quantised values, smooth errors that stay in the image and others
that change with it, frames with a factor of their own, a unit that is off by 1 %, nothing beyond a range), half with
simulated networks (`estimate`, tests/annotate/simulator.py) whose errors are drawn anew for each clip. Lines that are
in `--out` already are kept; what is not done after `--seconds` is left out.

Parts use scenes and draws of their own: `develop` is for looking and fitting, `held-out` and `degenerate` for judging.
`develop-degenerate` is like `degenerate`.

What is compared: everything in the gauge of the row, in which the first camera is the world. Truth is moved there by
its own first camera, and nothing else is aligned; metres are metres, errors of the scale are errors of the position.
The position error is its part along the axis that the solution names the worst (that axis is not in the row: it comes
from the covariance behind it), likewise for rotations; z is the error over the stated deviation. Frames of a clip err
alike, so a clip counts as one: its coverage is the share of its frames within the 68 % and the 95 % interval that users
get of the deviation (`interval_half_width`), and tables show means over clips with their standard error. `any` is the
same for all three axes, of which the worst is the widest. Scale: log of found over true depth, median over the points
that the bundle used, over `scale_sigma_log` of the row (the length of a path is wrong by more: it hangs on the focal
length, and counts as position).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import yaml
from theodolite.annotate import pipeline
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.config import RenderedConfig
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.rendered import RenderedGeometrySource
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm import registration
from theodolite.annotate.sfm.bundle.problem import project
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.cameras.alignment import umeyama
from theodolite.dataset.cameras.intervals import interval_half_width
from theodolite.dataset.cameras.rotations import so3_log
from theodolite.dataset.words import Mode

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from depth_errors import Altered, Maps
from simulator import Errors, rendered_truth, simulated

SEED = 20261128
PARTS = {"develop": 0, "held-out": 1, "degenerate": 2, "develop-degenerate": 3}
DEGENERATE = ("10-frames", "rotation", "static-zoom", "forward", "wall")
MODES: tuple[Mode, ...] = ("given_depth", "estimate")
BOUNDS = {"rotation_deg": 1.0, "position_percent": 2.0, "focal_percent": 3.0}
LEAST_PATH_M = 0.3
WITHIN = {68: interval_half_width(1.0, 0.6827), 95: interval_half_width(1.0, 0.95)}


# --- clips ----------------------------------------------------------------------------------------------


def case(part: str, k: int) -> tuple[Mode, str, dict[str, Any], int]:
    """Mode, kind, fields of the rendered clip and seed of the draws of case k."""
    rng = np.random.default_rng([SEED, PARTS[part], k])
    mode = MODES[k % 2]
    render = {
        "width": 320,
        "height": 180,
        "num_frames": int(rng.choice([24, 48, 96, 96, 144])),
        "seed": 1000 + 10_000 * PARTS[part] + k,
        "zoom": str(rng.choice(["none", "none", "ramp", "in_out"])),
        "zoom_factor": float(rng.choice([1.3, 1.6])),
        "moving_object": bool(rng.random() < 0.25),
        "speed": float(rng.choice([0.5, 1.0, 1.0, 1.5])),
        "horizontal_fov_deg": float(rng.uniform(48, 75)),
        "noise_sigma": float(rng.choice([0.0, 2.0, 5.0])),
        "shutter": float(rng.choice([0.0, 0.0, 0.4])),
    }
    if rng.random() < 0.3:
        render |= {"width": 480, "height": 270}
    if "degenerate" not in part:
        zoom = "" if render["zoom"] == "none" else " zoom"
        return mode, f"{render['num_frames']} frames{zoom}", render, k
    kind = DEGENERATE[k // 2 % len(DEGENERATE)]
    length = int(rng.choice([24, 48, 96]))
    render |= {
        "10-frames": {"num_frames": 10},
        "rotation": {"motion": "rotation", "num_frames": length},
        "static-zoom": {"motion": "static", "zoom": "ramp", "num_frames": length},
        "forward": {"motion": "forward", "num_frames": length},
        "wall": {"motion": "along_wall", "furniture": False, "num_frames": length},
    }[kind]
    return mode, kind, render, k


def sensor(rng: np.random.Generator, usual_m: float) -> Callable[[Maps], Maps]:
    """A depth sensor with errors drawn by `rng`, for scenes that are about `usual_m` away."""
    unit = np.exp(0.01 * rng.standard_normal())
    pixel, still, moving = rng.uniform(0.003, 0.015), rng.uniform(0, 0.015), rng.uniform(0, 0.015)
    gain = rng.choice([0.0, 0.0, 0.003, 0.01, 0.03])
    reach = rng.choice([np.inf, np.inf, 1.5 * usual_m])
    step = rng.choice([0.001, 0.005])
    seed = int(rng.integers(2**31))

    def noisy(maps: Maps) -> Maps:
        def read(f: int) -> np.ndarray:
            z = maps(f)
            mine, size = np.random.default_rng([seed, f]), (z.shape[1], z.shape[0])

            def smooth(of: np.random.Generator) -> np.ndarray:
                field = cv2.resize(of.standard_normal((5, 8)), size, interpolation=cv2.INTER_CUBIC)
                return field / field.std()

            log = pixel * (z / usual_m) * mine.standard_normal(z.shape)
            log += still * smooth(np.random.default_rng(seed)) + moving * smooth(mine)
            log += gain * mine.standard_normal()
            found = np.round(z * unit * np.exp(log) / step) * step
            with np.errstate(invalid="ignore"):
                return np.where((found > reach) | (found <= 0), np.nan, found).astype(np.float32)

        return read

    return noisy


def errors_of(seed: int, rng: np.random.Generator) -> Errors:
    """Errors of networks from half to twice the usual ones."""
    usual, level = asdict(Errors()), float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
    fixed = {"seed", "sky_share", "outlier_frames", "metric_outliers"}
    drawn = {
        name: value if name in fixed else value * level * float(np.exp(rng.normal(0, 0.3)))
        for name, value in usual.items()
    }
    return Errors(**(drawn | {"seed": seed}))


# --- one line -------------------------------------------------------------------------------------------


def work(task: tuple[str, int, Path | None]) -> dict[str, Any]:
    """Annotate one case and compare it with the truth: a line of the output."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    part, k, evidence = task
    start = time.perf_counter()
    mode, kind, render, seed = case(part, k)
    line: dict[str, Any] = {"part": part, "case": k, "mode": mode, "kind": kind, "render": render}
    clip = render_clip(RenderConfig.model_validate(render))
    rng = np.random.default_rng([SEED, PARTS[part], seed, 1])
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(
        registration, "summarise", keeping(registration.summarise, kept, "solution")
    ), mock.patch.object(pipeline, "judge", keeping(pipeline.judge, kept, "judged")):  # fmt: skip
        path = Path(folder) / "clip.yaml"
        path.write_text(yaml.safe_dump(render))
        ref = ClipRef(
            clip_id=f"{part}-{k}", source="uncertainty", original_id=str(k), media_kind="rendered",
            media_path=path,
        )  # fmt: skip
        config: dict[str, Any] = {"decode": {"detect_cuts": False, "min_frames": 10}}
        if mode == "estimate":
            estimators = simulated(rendered_truth(clip), errors_of(seed, rng))
        else:
            config["geometry"] = {"sequence": "rendered"}
            usual = float(np.nanmedian(clip.depth_m(0)))
            change = sensor(rng, usual)
            source = RenderedGeometrySource(RenderedConfig(declare_metric=True))
            altered = Altered(source, lambda maps, frames, _: lru_cache(400)(change(maps)), seed, None)
            estimators = Estimators(sequence=altered, anchor=None)
        row = annotate_clip(
            ref, AnnotateConfig.model_validate(config), mode=mode, recipe_hash="0" * 16, estimators=estimators
        )
    line |= {"verdict": row.verdict, "reasons": row.reasons, "error": row.error}
    line |= {"gates": {g.name: [g.value, g.lower, g.upper] for g in row.gates}}
    if len(row.camera_to_world):
        cameras = kept["judged"][0][0]
        line |= compare(row, cameras, clip)
        problem, solution = kept["solution"][0][:2]
        line["scale"] = scene_scale(problem, solution, clip)
    line["took_s"] = time.perf_counter() - start
    if evidence is not None and "solution" in kept:
        save_evidence(evidence / f"{part}-{k}.npz", kept["solution"][0], line, clip)
    return line


def keeping(function: Callable, kept: dict[str, Any], name: str) -> Callable:
    """The function, which also leaves its last positional arguments and its result in `kept`."""

    def kept_too(*args: Any, **keywords: Any) -> Any:
        result = function(*args, **keywords)
        kept[name] = args, result
        return result

    return kept_too


def compare(row: Any, cameras: Any, clip: Any) -> dict[str, Any]:
    """Errors of a row against the truth of its clip, per frame, in the gauge of the first camera."""
    found = np.asarray(row.camera_to_world, np.float64)
    truth = np.linalg.inv(clip.camera_to_world[:1]) @ clip.camera_to_world
    position = found[:, :3, 3] - truth[:, :3, 3]
    # Of the camera in its own axes: that is what the covariance of the left perturbation is about.
    rotation = np.stack([so3_log(f[:3, :3].T @ t[:3, :3]) for f, t in zip(found, truth, strict=True)])
    focal = np.log(row.focal_px[:, 0].astype(np.float64) / clip.intrinsics[:, 0, 0])
    axes = None
    if hasattr(cameras, "stated_covariances"):
        # The row's deviation holds the doubt of the depth's unit, which the covariances add themselves.
        of_anchor = max(row.scale_sigma_log**2 - cameras.scale_doubt_log**2, 0.0) ** 0.5
        axes = [np.linalg.eigh(of)[1][:, :, -1] for of in cameras.stated_covariances(of_anchor)[:2]]
    path = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    found_line: dict[str, Any] = {
        "path_m": float(path),
        "position": position.round(6).tolist(),
        "rotation": rotation.round(7).tolist(),
        "log_focal": focal.round(6).tolist(),
        "position_sigma": np.round(row.position_sigma_m, 6).tolist(),
        "rotation_sigma": np.round(row.rotation_sigma_rad, 7).tolist(),
        "focal_sigma": np.round(row.log_focal_sigma, 6).tolist(),
        "position_axis": None if axes is None else axes[0].round(4).tolist(),
        "rotation_axis": None if axes is None else axes[1].round(4).tolist(),
        "scale_sigma": row.scale_sigma_log,
        "confidence": row.confidence,
        "focal_model": row.focal_model,
        "parallax_deg": float(np.degrees(cameras.parallax_rad)),
        "median_depth_m": cameras.median_depth,
        "terms": {
            name: getattr(cameras, name)
            for name in ("focal_doubt_log", "scale_doubt_log", "focal_common_log")
        },
        "noise": None if cameras.depth_noise is None else asdict(cameras.depth_noise),
    }
    if path >= LEAST_PATH_M:
        best = umeyama(found[:, :3, 3], truth[:, :3, 3], with_scale=True, allow_collinear=True)
        found_line["path_scale"] = -float(np.log(best.scale))
        found_line["position_percent"] = 100 * float(np.sqrt(np.mean(best.residual**2))) / path
    return found_line


def scene_scale(problem: Any, solution: Any, clip: Any) -> float:
    """Log of found over true depth of the points that the bundle used: by how much a metre is too short."""
    frame, uv, depth = (
        problem.frame.numpy(),
        problem.uv_px.numpy(),
        project(problem, solution.state)[1][:, 2].numpy(),
    )
    logs = []
    for f in range(0, len(clip), max(1, len(clip) // 12)):
        true = clip.depth_m(f)
        seen = np.flatnonzero((frame == f) & (solution.weight.numpy() > 0.3))
        column, row = np.clip(uv[seen].astype(int), 0, np.array(true.shape[::-1]) - 1).T
        logs.append(np.log(depth[seen] / true[row, column]))
    return float(np.nanmedian(np.concatenate(logs)))


def save_evidence(path: Path, summarised: tuple[Any, ...], line: dict[str, Any], clip: Any) -> None:
    """What the bundle saw and found, small enough to be kept of every clip."""
    problem, solution = summarised[:2]
    state = solution.state
    np.savez_compressed(
        path,
        frame=problem.frame.numpy().astype(np.uint16),
        point=problem.point.numpy().astype(np.uint16),
        uv_px=problem.uv_px.numpy().astype(np.float32),
        sigma_px=problem.sigma_px.numpy().astype(np.float32),
        log_depth=problem.log_depth.numpy().astype(np.float32),
        sigma_log_depth=problem.sigma_log_depth.numpy().astype(np.float32),
        size=np.array([problem.num_frames, problem.num_points]),
        centre_px=problem.centre_px.numpy(),
        rotation=state.rotation.numpy(),
        translation=state.translation.numpy(),
        log_focal=state.log_focal.numpy(),
        lens=state.lens.numpy(),
        points=state.points.numpy().astype(np.float32),
        log_gain=np.zeros(0) if state.log_gain is None else state.log_gain.numpy(),
        covariance=solution.covariance.numpy(),
        truth=clip.camera_to_world,
        true_focal_px=clip.intrinsics[:, 0, 0],
        line=np.array(json.dumps(line)),
    )


def run(args: argparse.Namespace) -> None:
    """Annotate the cases, one JSON line each, until the time is over; lines that are there are kept."""
    done = set()
    if args.out.is_file():
        done = {(x["part"], x["case"]) for x in map(json.loads, args.out.read_text().splitlines())}
    if args.evidence is not None:
        args.evidence.mkdir(parents=True, exist_ok=True)
    wanted = [k for k in range(args.first, args.first + args.count) if (args.part, k) not in done]
    if args.only:
        names = args.only.split(",")
        wanted = [k for k in wanted if "{}/{}".format(*case(args.part, k)[:2]) in names]
    if args.longest:
        wanted = [k for k in wanted if case(args.part, k)[2]["num_frames"] <= args.longest]
    wanted = wanted[: args.most] if args.most else wanted
    end = time.monotonic() + args.seconds
    with get_context("spawn").Pool(args.jobs) as pool, args.out.open("a") as out:
        lines = pool.imap_unordered(work, [(args.part, k, args.evidence) for k in wanted])
        for number in range(len(wanted)):
            try:
                line = lines.next(timeout=max(0.1, end - time.monotonic()))
            except TimeoutError:
                print(f"{number} of {len(wanted)} cases in {args.seconds} s; the others are left out")
                break
            out.write(json.dumps(line) + "\n")
            out.flush()
            print(line["case"], line["mode"], line["kind"], line["verdict"], line["reasons"],
                  f"{line['took_s']:.0f} s", flush=True)  # fmt: skip
        pool.terminate()


# --- tables ---------------------------------------------------------------------------------------------


def z_scores(line: dict[str, Any]) -> dict[str, np.ndarray]:
    """Errors over stated deviations: of each frame but the first, and of the clip's scale."""
    found: dict[str, np.ndarray] = {}
    for name in ("position", "rotation"):
        error, sigma = np.array(line[name])[1:], np.array(line[f"{name}_sigma"])[1:]
        sigma = np.maximum(sigma, 1e-9)
        found[f"{name}, any"] = (error / sigma[:, None]).ravel()
        if line[f"{name}_axis"] is not None:
            along = (error * np.array(line[f"{name}_axis"])[1:]).sum(1)
            found[name] = along / sigma
    if max(line["focal_sigma"]) > 0:
        found["focal"] = np.array(line["log_focal"]) / np.maximum(line["focal_sigma"], 1e-9)
    if "scale" in line and line["scale_sigma"]:
        found["scale"] = np.array([line["scale"] / line["scale_sigma"]])
    return found


def coverage(lines: list[dict[str, Any]], name: str) -> str:
    """Cell: coverage at 68 and 95 % with standard errors over clips, median |z| over a Gaussian's, RMS z."""
    scores = [z for z in (z_scores(line).get(name) for line in lines) if z is not None and len(z)]
    if not scores:
        return ""
    cells = []
    for bound in WITHIN.values():
        shares = np.array([np.mean(np.abs(z) < bound) for z in scores])
        cells.append(f"{100 * shares.mean():.0f} ({100 * shares.std() / len(shares) ** 0.5:.0f})")
    middle = np.median([np.median(np.abs(z)) for z in scores]) / 0.6745
    rms = float(np.sqrt(np.mean([np.mean(z**2) for z in scores])))
    return f"{' '.join(cells)}; {middle:.2f} {rms:.1f}"


def table(args: argparse.Namespace) -> None:
    """Coverage by mode, verdict, kind and length; then verdicts of degenerate clips."""
    lines = [json.loads(line) for path in args.files for line in path.read_text().splitlines()]
    ordinary = [x for x in lines if "degenerate" not in x["part"]]
    names = ("position", "position, any", "rotation", "rotation, any", "focal", "scale")
    if ordinary:
        print("Coverage at 68 and 95 % in % (standard error); median |z| over a Gaussian's, RMS z")
        print(f"| clips | number | {' | '.join(names)} |")
        print("| --- " * (2 + len(names)) + "|")
        for what, of in _totals(ordinary).items():
            print(f"| {what} | {len(of)} | {' | '.join(coverage(of, name) for name in names)} |")
        for mode in MODES:
            have = [x for x in ordinary if x["mode"] == mode]
            groups = {"accepted": [x for x in have if x["verdict"] == "accepted"]}
            groups |= {"rejected": [x for x in have if x["verdict"] != "accepted"]}
            for kind in sorted({x["kind"] for x in groups["accepted"]}, key=lambda s: (len(s.split()[0]), s)):
                groups[f"accepted, {kind}"] = [x for x in groups["accepted"] if x["kind"] == kind]
            for what, of in groups.items():
                solved = [x for x in of if "position" in x]
                cells = [coverage(solved, name) for name in names]
                print(f"| {mode}, {what} | {len(solved)} of {len(of)} | {' | '.join(cells)} |")
    degenerate = [x for x in lines if "degenerate" in x["part"]]
    if degenerate:
        print("\n| clips | number | accepted and right | rejected and wrong | rejected though right |"
              " accepted though wrong | largest focal error over sigma, accepted (all) | focal error of"
              " accepted, % |")  # fmt: skip
        print("| --- " * 8 + "|")
        for mode in MODES:
            for kind in DEGENERATE:
                print(_degenerate(f"{mode}, {kind}", [
                    x for x in degenerate if x["mode"] == mode and x["kind"] == kind
                ]))  # fmt: skip
        print(_degenerate("all", degenerate))
    if args.each:
        for x in sorted(lines, key=lambda x: (x["mode"], x["kind"], x["case"])):
            print(_each(x))


def _totals(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Those that got cameras: all, by mode, and those that were accepted."""
    solved = [x for x in lines if "position" in x]
    groups = {"all": solved} | {mode: [x for x in solved if x["mode"] == mode] for mode in MODES}
    return groups | {"accepted": [x for x in solved if x["verdict"] == "accepted"]}


def usable(line: dict[str, Any]) -> bool:
    """Whether cameras are within the bounds that `confidence` promises, scale aside."""
    if "position" not in line:
        return False
    angle = np.degrees(np.sqrt(np.mean(np.square(line["rotation"]).sum(1))))
    focal = 100 * float(np.mean(np.abs(line["log_focal"])))
    if line["kind"] in ("rotation", "static-zoom"):
        return False  # it has no path, whatever is found
    return (
        angle < BOUNDS["rotation_deg"]
        and focal < BOUNDS["focal_percent"]
        and line.get("position_percent", 0.0) < BOUNDS["position_percent"]
    )


def _worst_focal(line: dict[str, Any]) -> float:
    return float(np.abs(z_scores(line).get("focal", np.zeros(1))).max())


def _degenerate(what: str, lines: list[dict[str, Any]]) -> str:
    count = {(a, u): 0 for a in (True, False) for u in (True, False)}
    for line in lines:
        count[line["verdict"] == "accepted", usable(line)] += 1
    solved = [x for x in lines if "position" in x]
    accepted = [x for x in solved if x["verdict"] == "accepted"]
    worst = [max(map(_worst_focal, of), default=float("nan")) for of in (accepted, solved)]
    over = sum(_worst_focal(x) > 3 for x in accepted), sum(_worst_focal(x) > 3 for x in solved)
    focal = max((100 * float(np.abs(x["log_focal"]).max()) for x in accepted), default=float("nan"))
    return (
        f"| {what} | {len(lines)} | {count[True, True]} | {count[False, False]} | {count[False, True]} |"
        f" {count[True, False]} | {worst[0]:.1f}, {over[0]} above 3 ({worst[1]:.1f}, {over[1]}) | {focal:.1f} |"
    )


def _each(x: dict[str, Any]) -> str:
    head = f"{x['part']} {x['case']} {x['mode']}, {x['kind']}: {x['verdict']} {', '.join(x['reasons'])}"
    if "position" not in x:
        return head
    rms = {name: float(np.sqrt(np.mean(z**2))) for name, z in z_scores(x).items()}
    focal = 100 * float(np.mean(x["log_focal"]))
    return (
        f"{head}; RMS z {' '.join(f'{n} {v:.1f};' for n, v in rms.items())} focal {focal:+.1f} %"
        f" (sigma {100 * float(np.median(x['focal_sigma'])):.1f}, {x['focal_model']}),"
        f" scale {100 * x.get('scale', float('nan')):+.1f} %, path by"
        f" {100 * x.get('path_scale', float('nan')):+.1f} %, {x['path_m']:.2f} m,"
        f" {x.get('position_percent', float('nan')):.2f} % of it, parallax {x['parallax_deg']:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    sub = parser.add_subparsers(dest="what", required=True)
    runner = sub.add_parser("run")
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--part", choices=list(PARTS), required=True)
    runner.add_argument("--first", type=int, default=0)
    runner.add_argument("--count", type=int, default=200)
    runner.add_argument("--longest", type=int, default=0, help="skip clips of more frames")
    runner.add_argument("--most", type=int, default=0, help="do no more clips than this now")
    runner.add_argument("--only", default="", help="mode/kind, several with commas")
    runner.add_argument("--jobs", type=int, default=1)
    runner.add_argument("--seconds", type=float, default=1e9)
    runner.add_argument("--evidence", type=Path, help="folder for what each bundle saw and found")
    shower = sub.add_parser("table")
    shower.add_argument("files", type=Path, nargs="+")
    shower.add_argument("--each", action="store_true", help="a line for every clip as well")
    args = parser.parse_args()
    {"run": run, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
