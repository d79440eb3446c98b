"""Self-forcing over two ranks that share a clip, against one rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .distillation_rank_worker import SHARDINGS, recipe_of, two_steps
from .distillation_runs import placed, write_given


@pytest.mark.slow
def test_ranks_that_share_a_clip_learn_what_one_rank_learns(tmp_path: Path) -> None:
    """Every rank makes the whole roll-out, judges its frames, and goes back through all of it; both shardings."""
    write_given(tmp_path)
    module = "theodolite.tests.train.distillation_rank_worker"
    ranks = [
        subprocess.Popen([sys.executable, "-m", module, str(rank), "2", str(tmp_path)]) for rank in range(2)
    ]
    expected = two_steps(placed(recipe_of(tmp_path), tmp_path / "data", tmp_path / "one"))
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    assert len(expected[0]) == 4  # the student's loss and norm beside the fake score's
    for sharding in SHARDINGS:
        found = torch.load(tmp_path / f"{sharding}.pt")
        assert found[0] == pytest.approx(expected[0], rel=1e-4), sharding
        assert found[1:] == [pytest.approx(e, rel=2e-3) for e in expected[1:]], sharding
