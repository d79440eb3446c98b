"""Training processes under SIGKILL: whatever the moment, ranks and workers, the order is that of an untouched run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from theodolite.dataset.loading import Share, epoch_order
from theodolite.dataset.rows import Row

EPOCHS, NUM_CLIPS, NUM_FRAMES, LOADER_SEED = 2, 24, 9, 5  # as in the script
SCRIPT = Path(__file__).with_name("killed_training.py")
SETUPS = [
    *((1, 0, 1), (2, 0, 1), (4, 0, 1), (4, 0, 2), (1, 2, 1)),
    pytest.param(2, 2, 1, marks=pytest.mark.thorough),
]


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    make_row: Callable[..., Row],
    make_rejected: Callable[..., Row],
    make_dataset: Callable[[Path, dict[str, list[Row]]], Path],
    thorough: bool,
) -> dict[str, Any]:
    """What the processes of every set-up logged; one script runs them all, so that torch is imported once."""
    pytest.importorskip("psutil")
    folder = tmp_path_factory.mktemp("killed")
    rows = [make_row(i, frames=12) for i in range(NUM_CLIPS)]
    shards = {"a": rows[:15], "b": [*rows[15:], make_rejected(50), make_row(60, frames=4)]}
    out = make_dataset(folder / "dataset", shards)
    seed = random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), str(folder), str(seed), "all" if thorough else "some"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    return {"seed": seed, **json.loads(done.stdout)}


@pytest.mark.slow(about_s=4)
@pytest.mark.parametrize(("ranks", "workers", "context_parallel"), SETUPS)
def test_order_survives_kills(
    outcomes: dict[str, Any], ranks: int, workers: int, context_parallel: int
) -> None:
    outcome = outcomes[f"{ranks} ranks, {workers} workers, {context_parallel} share a clip"]
    note = f"seed {outcomes['seed']}, killed after steps {outcome['kills']}"
    assert outcome["orphans"] == 0, note
    assert outcome["killed"] > 0, note
    assert bool(outcome["helpers"]) == bool(workers), note
    groups = ranks // context_parallel
    steps_per_epoch = NUM_CLIPS // groups
    effective: list[list[str]] = []
    for rank, log in enumerate(outcome["logs"]):
        by_step: dict[int, str] = {}
        share = list(range(NUM_FRAMES))[
            Share(rank=rank % context_parallel, size=context_parallel).slice(NUM_FRAMES)
        ]
        for step, clip_id, frames in log:
            # A step that was lost with its process and taken again brings the same clip again.
            assert by_step.setdefault(step, clip_id) == clip_id, note
            assert frames == share, note
        assert sorted(by_step) == list(range(EPOCHS * steps_per_epoch)), note
        effective.append([by_step[step] for step in sorted(by_step)])
    assert sum(map(len, outcome["logs"])) >= ranks * EPOCHS * steps_per_epoch
    for epoch in range(EPOCHS):
        order = epoch_order(NUM_CLIPS, seed=LOADER_SEED, epoch=epoch)
        taken: Counter[str] = Counter()
        for rank, clips in enumerate(effective):
            mine = clips[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch]
            group = rank // context_parallel
            assert mine == [f"clip_{i:04d}" for i in order[group::groups]], (note, epoch, rank)
            taken.update(mine)
        assert taken == {f"clip_{i:04d}": context_parallel for i in range(NUM_CLIPS)}, note
