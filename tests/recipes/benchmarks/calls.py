"""Calls of `theodolite benchmark` and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...support import Done, run_here

XYZ, DESK, RPY = (f"rgbd_dataset_freiburg{n}" for n in ("1_xyz", "2_desk", "1_rpy_validation"))
TINY = (
    "annotate.geometry.weights=stand_in",
    "annotate.geometry.stand_in_size=tiny",
    "annotate.geometry.device=cpu",
    "annotate.geometry.pi3x.max_pixels=5000",
)


def benchmark(name: str, root: Path, out: Path, *more: object) -> Done:
    return run_here("benchmark", name, "--root", root, "--out", out, *more)


def findings(out: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`benchmark.json`, and its sequences by name."""
    read = json.loads((out / "benchmark.json").read_text())
    return read, {s["sequence"]: s for s in read["sequences"]}


def sets(*items: str) -> list[str]:
    return [part for item in items for part in ("--set", item)]
