"""Given poses of unknown unit to metres: how far the windowed bridge is off, and how sure it says it is.

    python benchmarks/bridge_windows.py [--cases 20]

Camera paths of the renderer seen by simulated networks (tests/annotate/simulator.py: windows in a gauge and unit of
their own, drift, bends, one pose in ten wrong, single-image metres that flicker by 10 % with one frame in ten off by up
to a factor of two); the given poses are the true ones in another world and in a unit of 2.7 m. Beside it the similarity
of all camera centres at once (the paper's), times the clip's scale.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from theodolite.annotate.checks.given_poses import similarity_scale
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.annotate.scale.bridge import Bridge, bridge_to_metres
from theodolite.annotate.scale.records import ScaleEstimate
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import judge_bridge
from theodolite.dataset.cameras.transforms import interpolate_poses, se3_exp
from theodolite.dataset.text_table import text_table
from theodolite.tests.annotate.simulator import Errors, SimulatedMoGe2, SimulatedPi3X, Truth

UNIT, WORLD = 2.7, se3_exp(np.array([1.0, 2, 3, 0.3, 0.2, 0.1]))
KINDS: dict[str, dict[str, Any]] = {
    "10 s": {},
    "10 s, poses at 5 Hz": {"every": 3},
    "10 s, slow": {"speed": 0.3},
    "10 s, straight": {"straight": True},
    "3 s": {"frames": 48},
    "60 s": {"frames": 961},
    "10 s, unit changes by 40 %": {"change": 1.4},
}


def seen(seed: int, path: np.ndarray) -> tuple[np.ndarray, ScaleEstimate]:
    """The network's poses of keyframes (NaN between), and the metres of its unit by anchors."""
    truth = Truth(
        camera_to_world=path,
        focal_px=np.full(len(path), 250.0),
        height=180,
        width=320,
        depth_m=lambda frame, size: np.full(size, 3.0, np.float32),
    )
    errors, keyframes = Errors(seed=seed), np.arange(0, len(path), 4)
    images = torch.zeros(len(keyframes), 3, 14, 28, dtype=torch.uint8)
    raw = SimulatedPi3X(truth, errors, size=(14, 28)).predict(images, keyframes)
    network = np.full((len(path), 4, 4), np.nan)
    network[keyframes] = raw.camera_to_world.numpy()
    unit = float(np.median(raw.points[..., 2].numpy())) / 3
    wanted = np.arange(2, len(path), max(1, min(16, len(path) // 20)))
    anchors = keyframes[np.unique(np.abs(keyframes[None] - wanted[:, None]).argmin(1))]
    logs = SimulatedMoGe2(truth, errors).log_scale[anchors] - np.log(unit)
    return network, fit_scale(anchors, logs, num_frames=len(path))


def case(
    seed: int,
    *,
    frames: int = 161,
    every: int = 1,
    speed: float = 1.0,
    straight: bool = False,
    change: float = 1.0,
) -> tuple[Bridge | None, float]:
    """The bridge, and metres of a unit by one similarity of all centres."""
    path = camera_path(RenderConfig(num_frames=frames, seed=seed, speed=speed), np.arange(frames) / 16)
    if straight:
        path[:, :3, 3] = np.linspace(0, 0.025 * frames, frames)[:, None] * np.array([1, 0.2, 0])
    network, scale = seen(seed, path)
    given, position = WORLD @ path[::every], np.arange(0, frames, every).astype(float)
    given[:, :3, 3] /= UNIT
    half = len(given) // 2
    given[half:, :3, 3] = given[half, :3, 3] + change * (given[half:, :3, 3] - given[half, :3, 3])
    keyframes = np.flatnonzero(np.isfinite(network[:, 0, 0]))
    keyframes = keyframes[keyframes <= position[-1]]
    at = interpolate_poses(position, given, keyframes.astype(float))
    assert scale.value is not None
    plain = similarity_scale(network[keyframes], at) * scale.value
    return bridge_to_metres(network, given, position, scale, fps=16.0), plain


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20)
    args = parser.parse_args()
    lines = []
    for name, kind in KINDS.items():
        found = [case(seed, **kind) for seed in range(args.cases)]
        bridges = [b for b, _ in found if b is not None and b.metres_per_unit is not None]
        units = [b.metres_per_unit for b in bridges if b.metres_per_unit is not None]
        off = np.log(units) - np.log(UNIT)
        plain = np.log([p for _, p in found]) - np.log(UNIT)
        stated = np.hypot([b.sigma_log for b in bridges], 0.07)
        refused = sum(not all(g.passed for g in judge_bridge(b, GatesConfig())) for b in bridges)
        spread = [b.network_spread_log for b in bridges]
        lines.append(
            (
                name,
                f"{len(bridges)}/{len(found)}",
                f"{np.sqrt(np.mean(off**2)):.3f}",
                f"{np.sqrt(np.mean((off / stated) ** 2)):.2f}",
                f"{np.sqrt(np.mean(plain**2)):.3f}",
                f"{np.median(spread):.3f}",
                f"{max(spread):.3f}",
                f"{np.median([b.spread_log for b in bridges]):.3f}",
                str(refused),
            )
        )
        print(lines[-1], flush=True)
    header = ("clips", "with a unit", "rms log error", "over stated", "one similarity", "network spread")
    print(text_table((*header, "at most", "spread", "refused"), lines))


if __name__ == "__main__":
    main()
