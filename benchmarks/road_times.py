"""What the parts of the road take (`road.py --minutes`), as far as it is known before they run."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

COST = {"stage3": 1.8, "stage4": 2.1, "ode": 2.6, "forced": 5.8}
"""What a step of trainings that run side by side takes, in steps of the second stage alone. Those of the third stage
and of self-forcing are measured before their lengths are chosen; that of `ode` holds its trajectories, which take as
long as half of its steps, and `consistency` beside it, of which a step takes 6.6. Until it is measured self-forcing is
reckoned with by its calls of torch, as the host's time is what counts here: at the small size's depth and frames a step
of stage 2 makes 8,976, one of consistency 53,680 (6.0 times as many; 6.6 times the time), one of self-forcing 47,400
(27,600 to 47,400 by its exit, 87,000 with the student's own step), counted on a CPU, 2026-11-28."""
FOLLOWS = {"lora": "stage4", "consistency": "ode"}
"""Trainings that run beside another."""
PILOT_S = 70.0
"""After so many seconds the third stage, and self-forcing, are asked to stop and go on with as many steps as there is
time for."""
START_S, LAST_S = 17.0, 60.0
"""Of a phase's start and check, and of the last samples."""
STARTS = {"forced": 2}
"""Starts of a phase that is still to be measured so."""
LEAST = 0.25
"""Of the steps that the size asks for: a phase that gets fewer is left out, with those after it."""
LEAST_FORCED = 5
"""Steps of self-forcing, of which every fifth moves the student."""
FORCED_S = 2 * START_S + 60.0
"""Kept for self-forcing while that which it begins with is trained."""
LOGGED = {"self_forcing": 5}
"""Steps over which a row of figures is a mean, where they are not alike: every fifth holds the student's own."""


def step_seconds(metrics: Path) -> float | None:
    """Median of a training's seconds a step; none where it has told none."""
    if not metrics.is_file():
        return None
    with metrics.open(newline="", encoding="utf-8") as file:
        found = [float(row["step_s"]) for row in csv.DictReader(file) if row["step_s"]]
    return statistics.median_low(found) if found else None


def last_step(training: Path) -> int:
    """Step of a training's last checkpoint; 0: it has none."""
    found = sorted((training / "checkpoints").glob("step-????????"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def pilot_seconds(left: float) -> float | None:
    """How long self-forcing is tried, by the seconds that the road has left; none: there is no time for it."""
    spare = left - LAST_S - 2 * START_S
    return START_S + min(PILOT_S - START_S, spare / 2) if spare > 20 else None


def num_steps(training: Path, left: float, tried_s: float) -> int:
    """To how many steps a training comes in so many seconds more, by those that it took in its first ones.

    Args:
        tried_s: how long it took for those that it has taken, its start included: what a step takes at most, where it
            has not told it.
    """
    done = last_step(training)
    step_s = step_seconds(training / "metrics.csv") or tried_s / max(1, done)
    return done + int(max(0.0, left) / step_s)
