"""Calibrate the confidence of `mode: estimate` on clips with truth, and judge it on others.

    python benchmarks/estimate_calibration.py run --out fit.jsonl --part calibrate --data DATA [--workers 2]
    python benchmarks/estimate_calibration.py run --out held.jsonl --part held-out --data DATA
    python benchmarks/estimate_calibration.py fit fit.jsonl --held-out held.jsonl

`run` annotates rendered clips, and pieces of real RGB-D recordings where given, on the production path with simulated
networks (tests/annotate/simulator.py) whose errors are drawn anew for each clip, from small to hopeless.

The two parts share nothing: cases 0 to 167 in 24 rendered scenes and in rgbd-redkitchen are for fitting; cases 1000
to 1087 in 24 other scenes and in rgbd-office-a are held out. `fit` makes the logistic model of
`annotate/verdict/agreement.py` from the first part alone and prints for the second what was promised against what
was usable, and the Brier score.

Usable: rotation within 1 degree, position within 2 % of the path (best similarity), focal within 3 %, scale within
10 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import yaml
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.verdict.agreement import FEATURES, Agreement, features_of
from theodolite.dataset.metrics.trajectory import focal_mape_percent, rotation_error, trajectory_error
from theodolite.dataset.rows import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from simulator import Errors, Truth, recorded_truth, rendered_truth, simulated

BOUNDS = {"rotation_deg": 1.0, "position_percent": 2.0, "focal_percent": 3.0, "scale_percent": 10.0}


PARTS = {"calibrate": range(168), "held-out": range(1000, 1088)}


def case(k: int, data: Path | None, work: Path) -> tuple[str, ClipRef, AnnotateConfig, Truth, Errors]:
    """Scene name, clip, configuration, truth and errors of case k."""
    held = k in PARTS["held-out"]
    rng = np.random.default_rng([20260515, k])
    level = float(np.exp(rng.uniform(np.log(0.3), np.log(5.0))))
    usual = asdict(Errors())
    fixed = {"seed", "sky_share", "outlier_frames", "metric_outliers"}
    values = {
        name: value if name in fixed else value * level * float(np.exp(rng.normal(0, 0.5)))
        for name, value in usual.items()
    }
    values |= {
        "seed": k,
        "outlier_frames": float(min(0.5, 0.2 * level * rng.random())),
        "metric_outliers": float(min(0.5, 0.2 * level * rng.random())),
        "sky_share": float(rng.choice([0.0, 0.0, 0.25])),
    }
    errors = Errors(**values)
    scene = int(rng.integers(0, 24))
    if data is not None and k % 4 == 3:
        return _recorded(k, scene, data, errors, office=held)
    render = {
        "width": 320,
        "height": 180,
        "num_frames": 96,
        "seed": (300 if held else 100) + scene,
        "zoom": str(rng.choice(["none", "none", "ramp", "in_out"])),
        "zoom_factor": 1.5,
        "moving_object": bool(rng.random() < 0.3),
        "speed": float(rng.choice([0.5, 1.0, 1.5])),
        "motion": str(rng.choice(["handheld", "handheld", "handheld", "rotation"])),
    }
    path = work / f"case{k}.yaml"
    path.write_text(yaml.safe_dump(render))
    clip = ClipRef(
        clip_id=f"case{k}", source="calibration", original_id=str(k), media_kind="rendered", media_path=path
    )  # fmt: skip
    truth = rendered_truth(render_clip(RenderConfig.model_validate(render)))
    return f"rendered-{render['seed']}", clip, AnnotateConfig(), truth, errors


def _recorded(k: int, scene: int, data: Path, errors: Errors, *, office: bool):
    folder = data / ("rgbd-office-a" if office else "rgbd-redkitchen")
    first = scene * (2 if office else 36)
    count = 96
    clip = ClipRef(
        clip_id=f"case{k}",
        source="calibration",
        original_id=str(k),
        media_kind="video",
        media_path=folder / "rgb.mp4",
        source_fps=16.0,
        start_s=first / 16.0,
    )
    config = AnnotateConfig.model_validate({"decode": {"max_frames": count, "max_side_px": 480}})
    height, width, focal = (320, 480, 495.6 * 480 / 540) if office else (360, 480, 521.0 * 480 / 640)
    truth = recorded_truth(
        folder, frame_index=np.arange(first, first + count), focal_px=focal, height=height, width=width
    )
    # Neighbouring pieces share frames: they are one scene when cases are split.
    return f"{folder.name}-{first // 200}", clip, config, truth, errors


def work(task: tuple[int, Path | None]) -> dict:
    """Annotate one case: a line of the output."""
    torch.set_num_threads(1)
    k, data = task
    with tempfile.TemporaryDirectory() as folder:
        scene, clip, config, truth, errors = case(k, data, Path(folder))
        row = annotate_clip(
            clip, config, mode="estimate", recipe_hash="0" * 16, estimators=simulated(truth, errors)
        )
    line = {"case": k, "scene": scene, "verdict": row.verdict, "reasons": row.reasons, "error": row.error}
    if len(row.camera_to_world):
        line |= {
            "columns": _columns(row),
            "features": features_of(Agreement.of_row(row)),
            "truth": _truth(row, truth),
        }
    return line


def _columns(row: Row) -> dict[str, float | None]:
    """Everything that a model of the confidence could look at."""
    names = [f.name for f in fields(Row) if f.name.startswith("agreement_")]
    names += ["scale_mad_log", "scale_cov", "inlier_share_min", "reprojection_rms_px", "parallax_rad"]
    names += ["depth_residual_log_median", "scale_sweep_best"]
    return {name: getattr(row, name) for name in names}


def run(args: argparse.Namespace) -> None:
    """Annotate the cases, one JSON line each; lines that are there already are kept."""
    done = set()
    if args.out.is_file():
        done = {json.loads(line)["case"] for line in args.out.read_text().splitlines()}
    wanted = [(k, args.data) for k in PARTS[args.part] if k not in done]
    with get_context("spawn").Pool(args.workers) as pool, args.out.open("a") as out:
        for line in pool.imap_unordered(work, wanted):
            out.write(json.dumps(line) + "\n")
            out.flush()
            print(
                line["case"], line["scene"], line["verdict"], line["reasons"], line.get("truth"), flush=True
            )


def _truth(row, truth: Truth) -> dict[str, float]:
    poses = truth.camera_to_world
    found = {
        "rotation_deg": float(np.degrees(np.sqrt(np.mean(rotation_error(row.camera_to_world, poses) ** 2)))),
        "focal_percent": focal_mape_percent(row.focal_px[:, 0], truth.focal_px),
    }
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()
    if steps > 0.05:
        error = trajectory_error(row.camera_to_world, poses, alignment="sim3")
        found["position_percent"] = error.ate_percent_of_path
        found["scale_percent"] = 100 * abs(float(np.expm1(-np.log(error.scale))))
    else:  # a turning camera has neither path nor scale
        found["position_percent"] = found["scale_percent"] = 0.0
    return found


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes and offset of a logistic model with a ridge of one on standardised features."""
    middle, spread = x.mean(0), x.std(0) + 1e-9
    z = np.c_[(x - middle) / spread, np.ones(len(x))]
    weight = np.zeros(z.shape[1])
    ridge = np.r_[np.ones(x.shape[1]), 1e-6]
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ weight))
        hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(ridge)
        weight -= np.linalg.solve(hessian, z.T @ (p - y) + ridge * weight)
    slope = weight[:-1] / spread
    return slope, float(weight[-1] - (slope * middle).sum())


def load(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    """(n, features), (n,) usable or not, scene of each case with cameras; number of all cases."""
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    used = [line for line in lines if line.get("features")]
    x = np.array([line["features"] for line in used])
    y = np.array([all(line["truth"][n] <= bound for n, bound in BOUNDS.items()) for line in used], float)
    return x, y, [line["scene"] for line in used], len(lines)


def reliability(p: np.ndarray, y: np.ndarray, mean: float) -> None:
    """Brier score against always saying `mean`, and what was promised against what was usable."""
    print(f"  Brier {np.mean((p - y) ** 2):.3f} (always {mean:.2f}: {np.mean((mean - y) ** 2):.3f})")
    for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0001)):
        inside = (p >= low) & (p < high)
        if inside.any():
            print(f"  promised {p[inside].mean():.2f}, usable {y[inside].mean():.2f} of {int(inside.sum())}")


def fit(args: argparse.Namespace) -> None:
    """Fit to the first part, judge on the second."""
    x, y, scenes, total = load(args.files)
    print(
        f"fitted to: {total} cases, {len(y)} with cameras, {int(y.sum())} usable, {len(set(scenes))} scenes"
    )
    slope, offset = logistic(x, y)
    if args.held_out:
        held, truth, others, total = load(args.held_out)
        assert not set(scenes) & set(others)
        print(
            f"held out: {total} cases, {len(truth)} with cameras, {int(truth.sum())} usable, {len(set(others))} scenes"
        )
        print("fitted model, on its own cases:")
        reliability(1 / (1 + np.exp(-(x @ slope + offset))), y, float(y.mean()))
        print("fitted model, on the held-out cases:")
        reliability(1 / (1 + np.exp(-(held @ slope + offset))), truth, float(y.mean()))
    print("_WEIGHTS = {" + ", ".join(f'"{n}": {v:.3f}' for n, v in zip(FEATURES, slope, strict=True)) + "}")
    print(f"_OFFSET = {offset:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers(dest="what", required=True)
    runner = sub.add_parser("run")
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--part", choices=list(PARTS), required=True)
    runner.add_argument("--data", type=Path)
    runner.add_argument("--workers", type=int, default=1)
    fitter = sub.add_parser("fit")
    fitter.add_argument("files", type=Path, nargs="+")
    fitter.add_argument("--held-out", type=Path, nargs="+")
    args = parser.parse_args()
    run(args) if args.what == "run" else fit(args)


if __name__ == "__main__":
    main()
