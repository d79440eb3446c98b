"""A training over several ranks against one rank that takes the same clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from theodolite.train.parallel import Ranks
from theodolite.train.state import checkpoints

sys.path.insert(0, str(Path(__file__).parent))
from encoded_clips import write_encoded
from rank_worker import make, recipe, two_steps


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "context", "mode"),
    [(4, 2, "causal"), pytest.param(2, 1, "bidirectional", marks=pytest.mark.thorough)],
)
def test_ranks_learn_what_one_rank_learns(
    size: int, context: int, mode: str, tmp_path: Path, thorough: bool
) -> None:
    """FSDP2 and replicas, clips of 8 latent frames; with `context` two ranks share each clip."""
    shardings = ("fsdp", "replicate") if thorough else ("fsdp",)
    data = write_encoded(tmp_path / "data", 6, frames=57)
    script = str(Path(__file__).with_name("rank_worker.py"))
    arguments = [str(size), str(tmp_path), str(data), str(context), mode, *shardings]
    ranks = subprocess.Popen([sys.executable, script, *arguments])
    alone = recipe(mode, accumulate=size // context)
    if context > 1:  # as its ranks, which do not sample
        alone = alone.model_copy(
            update={"validation": alone.validation.model_copy(update={"sample_clips": 0})}
        )
    one = make(alone, data, tmp_path / "one")
    one.place(torch.device("cpu"), Ranks())
    expected = two_steps(one)
    assert ranks.wait(timeout=240) == 0
    for sharding in shardings:
        found = torch.load(tmp_path / f"{sharding}.pt")
        assert found["reports"] == [pytest.approx(r, rel=2e-4) for r in expected["reports"]]
        assert found["validation"] == pytest.approx(expected["validation"], rel=1e-3)
        for name, gradient in expected["gradients"].items():
            if float(gradient.norm()) > 1e-7:
                assert relative(found["gradients"][name], gradient) < 1e-4, (sharding, name)
    # What several ranks saved, one goes on with.
    again = make(alone, data, tmp_path / "one")
    again.place(torch.device("cpu"), Ranks())
    again.restore(checkpoints(tmp_path / "checkpoints")[-1])
    assert (again.step, again.taken) == (2, 2 * size // context)
    whole = torch.load(tmp_path / "fsdp.pt")["weights"]
    assert all(torch.equal(p, whole[n]) for n, p in again.model.named_parameters())
