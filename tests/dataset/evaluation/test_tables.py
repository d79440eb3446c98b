"""Tables of an evaluation."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from theodolite.dataset.evaluation.score import METRICS, SCORES, ClipScore

from .runs import csv_rows, run_evaluate


def test_every_column_is_explained(runs: Path) -> None:
    run_evaluate(runs / "ours", runs / "truth", baseline=runs / "theirs", out=runs / "tables")
    explained = " ".join(row["column"] for row in csv_rows(runs / "tables" / "columns.csv"))
    for name in ("clips", "means"):
        for column in csv_rows(runs / "tables" / f"{name}.csv")[0]:
            assert column in explained or column == "which"
    assert all(m.meaning for m in METRICS)
    assert set(SCORES) <= {f.name for f in fields(ClipScore)}
