"""A training over several ranks against one rank that takes the same clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from theodolite.train.parallel import Ranks
from theodolite.train.state import checkpoints
from theodolite.train.training import Training

from .distillation_runs import placed, write_given
from .encoded_clips import write_encoded
from .rank_worker import JOBS, make, recipe, steps, student_recipe, two_steps

pytestmark = pytest.mark.slow(about_s=8)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


STUDENTS = {
    "self-forcing": "self_forcing",
    "consistency of all": "consistency_init",
    "regression of all": "ode_init",
}
"""Objectives of the jobs that make the student."""


class Launched:
    """All ranks of this file, working while the test computes what they should find.

    Attributes:
        begun: by job, one rank's run of the student after the step from whose checkpoint the ranks go on, and its
            figures.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.begun: dict[str, tuple[Training, list[tuple[float, ...]]]] = {}
        for name in names:
            if objective := STUDENTS.get(name):
                write_given(folder / name, trajectories=objective == "ode_init")
                clips = JOBS[name].size // JOBS[name].context
                alone = student_recipe(objective, folder / name, accumulate=clips)
                one = placed(alone, folder / name / "data", folder / name / "begun")
                self.begun[name] = one, steps(one, 1)
                one.save()
            else:
                write_encoded(folder / name / "data", 6, frames=57)
        module = "theodolite.tests.train.rank_worker"
        self.process = subprocess.Popen([sys.executable, "-m", module, str(folder), *names])

    def folder_of(self, name: str) -> Path:
        assert self.process.wait(timeout=240) == 0
        return self.folder / name


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, thorough: bool) -> Launched:
    names = ["causal of all", "bidirectional of all", *STUDENTS] if thorough else ["causal", "self-forcing"]
    return Launched(tmp_path_factory.mktemp("ranks"), names)


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
    assert steps(again, 3)[0] == pytest.approx(steps(one, 3)[0], rel=2e-3)
    # What one rank could not write, all of them are told of.
    for rank in range(job.size):
        assert "Not a directory" in (folder / f"told-{rank}").read_text()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough) if " of all" in n else n for n in STUDENTS]
)
def test_ranks_make_a_student_as_one_rank_does(name: str, launched: Launched, tmp_path: Path) -> None:
    """Self-forcing: every rank makes the whole roll-out, judges its frames, and goes back through all of it.

    One rank's first step is gone on from by two with FSDP2, and what they leave by one: all networks, both optimisers.
    """
    one, first = launched.begun[name]
    expected = two_steps(one)
    reports = [*first, *expected["reports"]]
    folder = launched.folder_of(name)
    assert len(reports[0]) == (4 if name == "self-forcing" else 2)  # two networks' loss and norm
    for sharding in JOBS[name].shardings:
        found = torch.load(folder / f"{sharding}.pt")
        if sharding == "fsdp":
            assert found["reports"] == [pytest.approx(reports[1], rel=1e-4)]
        else:
            assert found["reports"][0] == pytest.approx(reports[0], rel=1e-4), sharding
            assert found["reports"][1] == pytest.approx(reports[1], rel=2e-3), sharding
        assert found["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=2e-3)
    again = placed(one.recipe, folder / "data", tmp_path / "again")
    again.restore(checkpoints(folder / "checkpoints")[-1])
    assert steps(again, 3)[0] == pytest.approx(steps(one, 3)[0], rel=2e-3)
