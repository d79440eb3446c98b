"""What one rank alone finds damaged ends, or is left out by, all ranks alike: none waits for one that is no more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from theodolite.dataset.encoded import open_encoded
from theodolite.train.feed import hold_out

from .encoded_clips import write_encoded
from .rank_faults import WINDOWS
from .rank_worker import recipe


@pytest.mark.slow(about_s=15)
def test_damage_that_one_rank_finds_is_every_rank_s(tmp_path: Path) -> None:
    data = write_encoded(tmp_path / "data", 6, frames=57)
    clips = open_encoded(data)
    lost = clips.windows[hold_out(clips, WINDOWS, seed=recipe("causal").seed)[1][1]].id
    module = "theodolite.tests.train.rank_faults"
    subprocess.run([sys.executable, "-m", module, str(tmp_path)], check=True, timeout=120)
    told = {
        case: [(tmp_path / f"told-{case}-{rank}").read_text() for rank in (0, 1)]
        for case in ("stop", "skip", "flip")
    }
    assert all(first == second for first, second in told.values())
    assert f"a held-out window cannot be read: window {lost}: its shard cannot be read" in told["stop"][0]
    assert re.fullmatch(rf"measured \d\.\d+ without \['{lost}'\]", told["skip"][0])
    assert re.search(r"__1_0\.distcp: tensor \S+: damaged", told["flip"][0])
