"""Every solver, for tests of what all of them promise."""

from __future__ import annotations

import pytest
import torch
from theodolite.annotate.sfm.bundle import solve
from theodolite.annotate.sfm.bundle.batched.descent import BatchedSolver


@pytest.fixture(params=["sparse", "batched-cpu", pytest.param("batched-cuda", marks=pytest.mark.gpu)])
def every_solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who solves bundles, whatever is asked for."""
    if request.param != "sparse":
        solver = BatchedSolver(torch.device(request.param.removeprefix("batched-")))
        monkeypatch.setattr(solve, "solver_of", lambda config: solver)
