"""The road's table: a row for each network, with what is known of it."""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass, field
from pathlib import Path

CONTROLS = ("both", "plucker", "ucpe", "none")
NAMES = {"both": "UCPE + Plücker", "plucker": "Plücker", "ucpe": "UCPE", "none": "none"}


@dataclass
class Scores:
    """What is known of one network."""

    loss: float | None = None
    found: dict[str, float] = field(default_factory=dict)
    errors: list[tuple[float, float]] = field(default_factory=list)
    """Of each clip, the first frames made equal: degrees, metres."""
    by_chance: list[tuple[float, float]] = field(default_factory=list)
    """The same against another clip's path."""


KEYS = ("rotation_rmse_deg", "rot_err_deg", "trans_err_m", "cam_mc")
"""The first after the rotation that fits best; the others after a similarity of the positions, as the paper has them,
which a path of half a metre determines badly. So the table has errors with nothing but the first frames made equal
before them, with standard errors over clips."""
TITLES = {
    "true-near": "true videos (what the measurement errs)",
    "true-far": "true videos of the other domain",
    "coded-near": "true videos through the autoencoder",
    "rest-near": "a camera that rests",
    "rest-far": "a camera that rests, other domain",
    "stage1": "stage 1: GDN, no cameras",
    "stage2": "stage 2: hybrid, no cameras",
    **{f"stage3-{c}": f"stage 3: cameras {n}" for c, n in NAMES.items()},
    "stage4": "stage 4: chunk-causal",
    "stage4-four-steps": "stage 4 asked in four steps, as a student is",
    "ode": "student: regression onto trajectories",
    "consistency": "student: consistency",
    "forced-ode": "student: regression, then self-forcing",
    "forced-consistency": "student: consistency, then self-forcing",
    "far-before": "stage 3 (both) on the other domain",
    "far-lora": "the same with the LoRA trained there",
}


def mean_and_error(values: list[float]) -> str:
    """Mean over clips and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.3f} +- {error:.3f}"


def means_of(evaluation: dict) -> dict[str, float]:
    """Means over clips of an evaluation's JSON."""
    means = evaluation["means"]
    return {key: means[key]["mean"] for key in KEYS if key in means}


def held_out_loss(metrics: Path) -> float | None:
    """The last loss on clips held out that a training wrote into its `metrics.csv`; none where it wrote none."""
    if not metrics.is_file():
        return None
    with metrics.open(newline="", encoding="utf-8") as file:
        found = [row["validation_loss"] for row in csv.DictReader(file) if row["validation_loss"]]
    return float(found[-1]) if found else None


def table_of(rows: dict[str, Scores]) -> str:
    """The table of the networks that are there, in the order of the road."""
    lines = [
        "| network | held-out loss | first frame fixed: deg | m | the same from another clip's path: deg | m "
        "| rotation RMSE deg | RotErr deg | TransErr m | CamMC | clips |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in [n for n in TITLES if n in rows]:
        scores = rows[name]
        loss = "" if scores.loss is None else f"{scores.loss:.4f}"
        found = " | ".join(f"{scores.found[key]:.3f}" if key in scores.found else "" for key in KEYS)
        fixed, chance = (
            " | ".join(mean_and_error([e[i] for e in errors]) if errors else "" for i in range(2))
            for errors in (scores.errors, scores.by_chance)
        )
        row = (TITLES.get(name, name), loss, fixed, chance, found, str(len(scores.errors)))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
