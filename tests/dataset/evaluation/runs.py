"""What the tests of evaluation share."""

from __future__ import annotations

import csv
from pathlib import Path

from theodolite.recipes.command import call
from theodolite.recipes.commands.evaluate import evaluate


def run_evaluate(predicted: Path, truth: Path, **options: object) -> tuple[str, int]:
    return call(evaluate, predicted=predicted, truth=truth, **options)


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
