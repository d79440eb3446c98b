"""Intervals and paired tests over clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.evaluation.bootstrap import bootstrap_mean, paired_difference

from .runs import run_evaluate


@pytest.mark.slow
def test_bootstrap_interval_covers_and_paired_test_finds_the_better_run(runs: Path) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        m = bootstrap_mean(rng.normal(3, 1, 40), num_resamples=500, seed=i)
        covered += m.low < 3 < m.high
    assert (
        0.88 <= covered / 200 <= 0.99
    )  # nominal 95 %; the percentile bootstrap of 40 values covers a little less
    text, _ = run_evaluate(runs / "ours", runs / "truth", baseline=runs / "theirs")
    line = next(x for x in text.split("minus baseline")[1].splitlines() if x.startswith("ate_se3_m"))
    difference, low, high = (float(v) for v in line.split()[1:4])
    assert difference < 0
    assert low < difference < high < 0
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1
    a = rng.normal(size=30)
    assert paired_difference(list(a - 0.5 + 0.1 * rng.normal(size=30)), list(a)).p_value < 1e-6
