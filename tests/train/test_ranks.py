"""A training over several ranks against one rank that takes the same clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from theodolite.train.parallel import Ranks
from theodolite.train.state import checkpoints

from .distillation_runs import placed, write_given
from .encoded_clips import write_encoded
from .rank_worker import JOBS, forcing_recipe, make, recipe, two_steps

pytestmark = pytest.mark.slow(about_s=8)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


class Launched:
    """All ranks of this file, working while the test computes what they should find."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        for name in names:
            if name == "self-forcing":
                write_given(folder / name, trajectories=False)
            else:
                write_encoded(folder / name / "data", 6, frames=57)
        module = "theodolite.tests.train.rank_worker"
        self.process = subprocess.Popen([sys.executable, "-m", module, str(folder), *names])

    def folder_of(self, name: str) -> Path:
        assert self.process.wait(timeout=240) == 0
        return self.folder / name


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, thorough: bool) -> Launched:
    names = ["causal of all", "bidirectional of all"] if thorough else ["causal"]
    return Launched(tmp_path_factory.mktemp("ranks"), [*names, "self-forcing"])


@pytest.mark.parametrize("mode", ["causal", pytest.param("bidirectional", marks=pytest.mark.thorough)])
def test_ranks_learn_what_one_rank_learns(
    mode: str, launched: Launched, tmp_path: Path, thorough: bool
) -> None:
    """FSDP2 (and replicas), clips of 8 latent frames; in chunks, two of four ranks share each clip."""
    name = f"{mode} of all" if thorough else mode
    job, data = JOBS[name], launched.folder / name / "data"
    alone = recipe(mode, accumulate=job.size // job.context)
    if job.context > 1:  # as its ranks, which do not sample
        alone = alone.model_copy(
            update={"validation": alone.validation.model_copy(update={"sample_clips": 0})}
        )
    one = make(alone, data, tmp_path / "one")
    one.place(torch.device("cpu"), Ranks())
    expected = two_steps(one)
    folder = launched.folder_of(name)
    for sharding in job.shardings:
        found = torch.load(folder / f"{sharding}.pt")
        assert found["reports"] == [pytest.approx(r, rel=2e-4) for r in expected["reports"]]
        assert found["validation"] == pytest.approx(expected["validation"], rel=1e-3)
        for tensor, gradient in expected["gradients"].items():
            if float(gradient.norm()) > 1e-7:
                assert relative(found["gradients"][tensor], gradient) < 1e-4, (sharding, tensor)
    # What several ranks saved, one goes on with.
    again = make(alone, data, tmp_path / "one")
    again.place(torch.device("cpu"), Ranks())
    again.restore(checkpoints(folder / "checkpoints")[-1])
    assert (again.step, again.taken) == (2, 2 * job.size // job.context)
    whole = torch.load(folder / "fsdp.pt")["weights"]
    assert all(torch.equal(p, whole[n]) for n, p in again.model.named_parameters())


def test_ranks_that_share_a_clip_force_a_student_as_one_rank_does(launched: Launched, tmp_path: Path) -> None:
    """Every rank makes the whole roll-out, judges its frames, and goes back through all of it; both shardings."""
    name = "self-forcing"
    alone = forcing_recipe(launched.folder / name)
    expected = two_steps(placed(alone, launched.folder / name / "data", tmp_path / "one"))
    folder = launched.folder_of(name)
    assert len(expected["reports"][0]) == 4  # the student's loss and norm beside the fake score's
    for sharding in JOBS[name].shardings:
        found = torch.load(folder / f"{sharding}.pt")
        assert found["reports"][0] == pytest.approx(expected["reports"][0], rel=1e-4), sharding
        assert found["reports"][1] == pytest.approx(expected["reports"][1], rel=2e-3), sharding
        assert found["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=2e-3)
