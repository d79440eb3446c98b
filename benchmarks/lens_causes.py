"""What makes the lens of a clip come out as it does: the same measurements solved with parts of them held or left out.

    python benchmarks/lens_causes.py --data ../shared/data [--only office-0:pinhole,office-80:pinhole] [--out FILE]

Clips are those of `lenses.py`. Their observations, at the end of `annotate rgbd`, are bundled anew: with all free, with
the true lens held, with depth that counts a tenth, with the true poses held (with and without depth), and with both. A
line: focal length off by, principal point off by (pixels), k1 and k2, distance over the picture between where the true
lens and this one put the same ray (root mean square, in brackets after the best turn of the camera), error of the path
and cost of the observations. About a minute of a core a clip.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lenses import SCENES, VARIANTS, Lens, Made, Recording, annotated, lens_errors, render, warp
from theodolite.annotate import pipeline
from theodolite.annotate.sfm.bundle.normal import Held
from theodolite.annotate.sfm.bundle.priors import focal_prior
from theodolite.annotate.sfm.bundle.problem import Problem, Solution, State
from theodolite.annotate.sfm.bundle.solve import Effort, solve_bundle
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.keyframes import SolverInput
from theodolite.annotate.sfm.records import CameraSolution
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.sfm.triangulation import triangulate
from theodolite.dataset.cameras.transforms import se3_inverse
from theodolite.dataset.metrics.trajectory import path_length, trajectory_error


def observed(made: Made, folder: Path) -> CameraSolution:
    """Cameras of a clip with the observations that they rest on."""
    found: list[CameraSolution] = []

    def solve(*, inputs: SolverInput) -> CameraSolution:
        found.append(solve_cameras(inputs, with_evidence=True))
        return found[-1]

    with mock.patch.object(pipeline, "solve_cameras", solve):
        annotated(made, folder / "rows", [])
    return found[-1]


def causes(made: Made, cameras: CameraSolution) -> Iterator[tuple[str, Solution]]:
    """Every way of solving, by its name. The factors of single frames' depth are left out of all."""
    assert cameras.evidence is not None
    problem, config = cameras.evidence.problem, cameras.evidence.config
    state = replace(cameras.evidence.state, log_gain=None)
    config = config.model_copy(update={"principal_point_sigma": 0.1})
    without = replace(problem, sigma_log_depth=torch.full_like(problem.sigma_log_depth, torch.inf))
    weak = replace(problem, sigma_log_depth=10 * problem.sigma_log_depth)
    posed = _with_poses(state, made)
    points = triangulate(without, posed, torch.ones(problem.num_points, dtype=torch.bool))
    seen = replace(posed, points=torch.where(torch.isfinite(points), points, posed.points))
    lens = made.lens
    yield "all free", _solved(problem, state, config)
    yield "true lens", _solved(problem, state, config, lens=lens)
    yield "depth weak", _solved(weak, state, config)
    yield "true poses", _solved(problem, posed, config, hold="poses")
    yield "true poses, no depth", _solved(without, seen, config, hold="poses")
    yield "true poses and lens", _solved(problem, posed, config, hold="poses", lens=lens)
    yield "true poses and lens, no depth", _solved(without, seen, config, hold="poses", lens=lens)


def _with_poses(state: State, made: Made) -> State:
    """The state with the true path, in its own world: the first cameras are the same."""
    first = np.eye(4)
    first[:3, :3], first[:3, 3] = state.rotation[0].numpy(), state.translation[0].numpy()
    world = se3_inverse(made.camera_to_world) @ made.camera_to_world[0] @ first
    return replace(
        state,
        rotation=torch.as_tensor(world[:, :3, :3].copy()),
        translation=torch.as_tensor(world[:, :3, 3].copy()),
    )


def _solved(
    problem: Problem, state: State, config: BundleConfig, *, hold: Held = "first", lens: Lens | None = None
) -> Solution:
    """With one focal length for all frames, or with a lens held."""
    number = problem.num_frames
    if lens is None:
        prior = focal_prior("constant", number, config)
        log_focal = torch.full((number,), float(state.log_focal.median()), dtype=torch.float64)
        start = replace(state, log_focal=log_focal)
    else:
        log_focal = torch.full((number,), float(np.log(lens.focal_px)), dtype=torch.float64)
        prior, config = focal_prior("given", number, config, given=log_focal), config.with_held_lens()
        offset = torch.tensor([lens.cx, lens.cy], dtype=torch.float64) - problem.centre_px
        terms = torch.tensor([0, lens.k1, lens.k2], dtype=torch.float64)
        start = replace(state, log_focal=log_focal, lens=torch.cat([offset, terms]))
    effort = Effort(max_iterations=60, tolerance=1e-6)
    return solve_bundle(problem, start, prior, config, hold=hold, effort=effort)


def line_of(name: str, solution: Solution, made: Made, problem: Problem) -> dict[str, Any]:
    """What a solution says, beside the truth."""
    state, lens = solution.state, made.lens
    width, height = (2 * problem.centre_px).tolist()
    cx, cy = (problem.centre_px + state.lens[:2]).tolist()
    k1, k2 = state.lens[3:].tolist()
    found = Lens(focal_px=float(state.log_focal.exp().median()), cx=cx, cy=cy, k1=k1, k2=k2)
    poses = np.tile(np.eye(4), (problem.num_frames, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = state.rotation.numpy(), state.translation.numpy()
    error = trajectory_error(se3_inverse(poses), made.camera_to_world, alignment="se3")
    return {
        "name": name,
        "focal_percent": 100 * (found.focal_px / lens.focal_px - 1),
        "offset_px": [cx - lens.cx, cy - lens.cy],
        "terms": [k1, k2],
        "path_percent": 100 * error.ate_rmse_m / float(path_length(made.camera_to_world)),
        "cost": solution.data_cost,
        **lens_errors([found], lens, round(height), round(width)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="office-0:pinhole,office-80:pinhole,office-0:k1-0.3")
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for scene, variant in (clip.split(":") for clip in args.only.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder, what, lens_at = Path(name), SCENES[scene], VARIANTS[variant]
            if isinstance(what, Recording):
                made = warp(what, args.data, lens_at, folder / "clip")
            else:
                made = render(what, lens_at, folder / "clip")
            cameras = observed(made, folder)
            assert cameras.evidence is not None
            for way, solution in causes(made, cameras):
                line = {"scene": scene, "variant": variant} | line_of(
                    way, solution, made, cameras.evidence.problem
                )
                if args.out:
                    with args.out.open("a") as out:
                        out.write(json.dumps(line) + "\n")
                print(
                    f"{scene} {variant}, {way}: focal {line['focal_percent']:+.2f} %, principal point"
                    f" {line['offset_px'][0]:+.1f} {line['offset_px'][1]:+.1f} px, k1 {line['terms'][0]:.3f} k2"
                    f" {line['terms'][1]:.3f}; {line['rms_px']:.2f} ({line['turned_rms_px']:.2f}) px; path"
                    f" {line['path_percent']:.2f} %; cost {line['cost']:.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
