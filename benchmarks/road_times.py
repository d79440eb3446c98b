"""What the parts of the road take (`road.py --minutes`), as far as it is known before they run."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

COST = {"stage3": 1.8, "stage4": 2.1, "ode": 2.6, "forced": 4.5}
"""What a step of trainings that run side by side takes, in steps of the second stage alone. That of the third stage is
measured before its length is chosen; that of `ode` holds its trajectories, which take as long as half of its steps, and
`consistency` beside it, of which a step takes 6.6."""
FOLLOWS = {"lora": "stage4", "consistency": "ode"}
"""Trainings that run beside another."""
PILOT_S = 70.0
"""After so many seconds the third stage is asked to stop and goes on with as many steps as there is time for."""
START_S, LAST_S = 17.0, 60.0
"""Of a phase's start and check, and of the last samples."""
LEAST = 0.25
"""Of the steps that the size asks for: a phase that gets fewer is left out, with those after it."""


def step_seconds(metrics: Path) -> float | None:
    """Median of a training's seconds a step; none where it has told none."""
    if not metrics.is_file():
        return None
    with metrics.open(newline="", encoding="utf-8") as file:
        found = [float(row["step_s"]) for row in csv.DictReader(file) if row["step_s"]]
    return statistics.median_low(found) if found else None
