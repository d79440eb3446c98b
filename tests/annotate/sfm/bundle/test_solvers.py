"""The batched solver against the sparse one: the same steps, optimum and uncertainty, alone and beside other clips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from theodolite.annotate.networks import device as devices
from theodolite.annotate.sfm.bundle import solve
from theodolite.annotate.sfm.bundle.batched.cyclic import CyclicFactor
from theodolite.annotate.sfm.bundle.batched.descent import BatchedSolver
from theodolite.annotate.sfm.bundle.batched.groups import Groups
from theodolite.annotate.sfm.bundle.batched.normal import BatchedNormal
from theodolite.annotate.sfm.bundle.lens import NEAR_PINHOLE, Lens
from theodolite.annotate.sfm.bundle.priors import ExpectedFocal, focal_prior
from theodolite.annotate.sfm.bundle.problem import Problem, Solution, State, project
from theodolite.annotate.sfm.bundle.solve import Effort, Question, solve_bundle, solve_bundles, solver_of
from theodolite.annotate.sfm.bundle.sparse import SparseSolver
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.depth_noise import DepthNoise
from theodolite.dataset.cameras.rotations import so3_log

from .test_bundle import disturbed, scene

CONFIG = BundleConfig(aspect_sigma=0.01)  # every number of the lens is free


def question(
    frames: int = 40,
    *,
    band: int = 6,
    seed: int = 0,
    outliers: float = 0.1,
    lens: Lens = NEAR_PINHOLE,
    **changes,
) -> Question:
    """A noisy zoom with outliers and missing depth; tracks longer than the band are cut."""
    problem, truth = scene(frames=frames, points=90, noise_px=0.4, span=14, zoom=1.3, seed=seed)
    bent, seen = replace(problem, lens=lens), replace(truth, lens=lens.start())
    moved = project(bent, seen)[0] - project(problem, truth)[0]
    problem = replace(bent, uv_px=problem.uv_px + moved)
    rng = np.random.default_rng(seed)
    n = len(problem.frame)
    wrong = torch.as_tensor(rng.random(n) < outliers)
    none = torch.as_tensor(rng.random(n) < 0.3)
    problem = replace(
        problem,
        uv_px=problem.uv_px + wrong[:, None] * torch.as_tensor(rng.normal(0, 20, (n, 2))),
        log_depth=problem.log_depth + torch.as_tensor(rng.normal(0, 0.01, n)),
        sigma_log_depth=torch.where(none, torch.inf, problem.sigma_log_depth),
    )
    whole = {
        "problem": problem,
        "state": disturbed(truth, seed),
        "prior": focal_prior("smooth", frames, CONFIG),
        "config": CONFIG,
        "effort": Effort(max_iterations=12, tolerance=1e-9, band_frames=band),
        "want_covariance": True,
    }
    return Question(**(whole | changes))


def given_focal(frames: int) -> torch.Tensor:
    return torch.linspace(6.2, 6.5, frames, dtype=torch.float64)


TWO_TERMS = CONFIG.model_copy(update={"radial_sigma": 0.3, "second_radial_sigma": 0.3})
BENT = torch.tensor([12.0, -9.0, 0.0, -0.05, 0.02], dtype=torch.float64)
CASES = {
    "smooth": {},
    "whole band": {"band": 64},
    "constant": {"prior": focal_prior("constant", 40, CONFIG)},
    "piecewise": {"prior": focal_prior("piecewise", 40, CONFIG, breaks=torch.tensor([13]))},
    "given focal": {"prior": focal_prior("given", 40, CONFIG, given=given_focal(40))},
    "expected focal": {
        "prior": replace(focal_prior("smooth", 40, CONFIG), expected=ExpectedFocal(given_focal(40)))
    },
    "held lens": {"config": BundleConfig(principal_point_sigma=0.0, radial_sigma=0.0)},
    "two radial terms": {"lens": Lens("radial", BENT), "config": TWO_TERMS},
    "fisheye": {"lens": Lens("fisheye", BENT), "config": TWO_TERMS},
    "held poses": {"hold": "poses"},
    "held centres": {"hold": "centres"},
    "gains": {"gain": DepthNoise(observation=0.01, frame=0.05, slow=0.1).gain_prior(40)},
}


def by(monkeypatch, solver: solve.Solver, asked: Question) -> Solution:
    monkeypatch.setattr(solve, "solver_of", lambda config: solver)
    found = solve_bundles([asked])[0]
    assert isinstance(found, Solution)
    return found


def off_in_sigmas(found: State, solution: Solution) -> float:
    """Largest difference of a number of a camera from the solution's, in its standard deviations."""
    state = solution.state
    assert solution.covariance is not None
    turn = found.rotation @ state.rotation.transpose(1, 2)
    move = found.translation - (turn @ state.translation[:, :, None])[:, :, 0]
    parts = [torch.as_tensor(so3_log(turn)), move, (found.log_focal - state.log_focal)[:, None]]
    if found.log_gain is not None and state.log_gain is not None:
        parts.append((found.log_gain - state.log_gain)[:, None])
    sigma = torch.diagonal(solution.covariance, dim1=1, dim2=2).sqrt()
    # The first frame's pose is held, and so is every pose or focal length that is given: their sigma is next to none.
    return float((torch.cat(parts, 1).abs() / sigma.clamp_min(1e-6)).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_steps_optimum_and_uncertainty(case: str, monkeypatch) -> None:
    asked = question(**CASES[case])
    sparse = by(monkeypatch, SparseSolver(), asked)
    batched = by(monkeypatch, BatchedSolver(torch.device("cpu")), asked)
    assert batched.iterations == sparse.iterations
    # Steps are solved for to a tenth (conjugate gradients), and rounding may stop them an iteration sooner.
    assert batched.cost == pytest.approx(sparse.cost, rel=1e-7)
    assert batched.data_cost == pytest.approx(sparse.data_cost, rel=1e-7)
    assert off_in_sigmas(batched.state, sparse) < 1e-2
    assert batched.covariance is not None
    assert sparse.covariance is not None
    scale = sparse.covariance.abs().amax((1, 2), keepdim=True)
    assert float(((batched.covariance - sparse.covariance).abs() / scale).max()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", ["smooth", "given focal", "gains"])
def test_float32_derivatives_reach_the_same_cameras(case: str, monkeypatch) -> None:
    # With outliers, whose loss is flat, neither would come near the optimum in so few steps.
    effort = Effort(max_iterations=30, tolerance=1e-8, band_frames=6)
    asked = question(**CASES[case], outliers=0.0, effort=effort)
    sparse = by(monkeypatch, SparseSolver(), asked)
    found = by(monkeypatch, BatchedSolver(torch.device("cpu"), torch.float32), asked)
    assert found.cost == pytest.approx(sparse.cost, rel=1e-6)
    assert off_in_sigmas(found.state, sparse) < 0.1


@pytest.mark.slow
def test_clips_beside_each_other_take_their_own_steps(monkeypatch) -> None:
    monkeypatch.setattr(solve, "solver_of", lambda config: BatchedSolver(torch.device("cpu")))
    short, long = question(20, seed=1), question(40, seed=2)
    early = replace(question(30, seed=3), effort=Effort(max_iterations=3, tolerance=1e-9, band_frames=6))
    gains = question(40, seed=4, gain=DepthNoise(observation=0.01, frame=0.05, slow=0.1).gain_prior(40))
    nothing = replace(short, problem=replace(short.problem, uv_px=short.problem.uv_px * torch.nan))
    lost = replace(long, state=replace(long.state, log_focal=long.state.log_focal * torch.nan))
    asked = [short, nothing, long, gains, early, lost]
    together = solve_bundles(asked)
    assert isinstance(together[1], FloatingPointError)
    assert isinstance(together[5], FloatingPointError)
    for k in (0, 2, 3, 4):
        found, alone = together[k], solve_bundles([asked[k]])[0]
        assert isinstance(found, Solution)
        assert isinstance(alone, Solution)
        assert found.iterations == alone.iterations
        assert found.cost == pytest.approx(alone.cost, rel=1e-9)
        assert off_in_sigmas(found.state, alone) < 1e-4


@pytest.mark.gpu
def test_a_gpu_takes_the_same_steps_twice(monkeypatch) -> None:
    asked = question()
    sparse = by(monkeypatch, SparseSolver(), asked)
    first, again = (by(monkeypatch, BatchedSolver(torch.device("cuda")), asked) for _ in range(2))
    assert first.cost == pytest.approx(sparse.cost, rel=1e-7)
    assert off_in_sigmas(first.state, sparse) < 1e-2
    assert torch.equal(first.state.rotation, again.state.rotation)
    assert torch.equal(first.state.points, again.state.points)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("blocks", range(1, 8))
def test_cyclic_reduction_solves_as_a_dense_factor(blocks: int, device: str) -> None:
    generator = torch.Generator().manual_seed(blocks)
    size = 3
    matrices = []
    for _ in range(3):
        half = torch.randn(blocks * size, blocks * size, dtype=torch.float64, generator=generator)
        block = torch.arange(blocks * size) // size
        near = (block[:, None] - block).abs() <= 1
        symmetric = torch.where(near, half + half.T, 0.0)
        matrices.append(symmetric + 20 * torch.eye(blocks * size, dtype=torch.float64))
    matrices[1], matrices[2] = -matrices[1], torch.nan * matrices[2]
    dense = torch.stack(matrices).to(device)
    parts = dense.reshape(3, blocks, size, blocks, size)
    diagonal = torch.stack([parts[:, k, :, k] for k in range(blocks)], 1)
    upper = [parts[:, k, :, k + 1] for k in range(blocks - 1)]
    none = dense.new_zeros(3, 0, size, size)
    factor = CyclicFactor(diagonal, torch.stack(upper, 1) if upper else none)
    assert factor.failed.tolist() == [False, True, True]
    rhs = torch.randn(3, blocks, size, 2, dtype=torch.float64, generator=generator).to(device)
    wanted = torch.linalg.solve(dense[0], rhs[0].reshape(-1, 2))
    assert torch.allclose(factor.solve(rhs)[0].reshape(-1, 2), wanted, atol=1e-10)


def test_sums_by_group_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 7, 100)
    group[group == 3] = 4  # one has no row
    a, b = rng.normal(size=(100, 3, 4)), rng.normal(size=(100, 3, 2))
    groups = Groups(torch.as_tensor(group), 7, chunk=8)
    plain, products = np.zeros((7, 3, 4)), np.zeros((7, 4, 2))
    np.add.at(plain, group, a)
    np.add.at(products, group, np.einsum("nrj,nrk->njk", a, b))
    assert np.allclose(groups.sum(torch.as_tensor(a)).numpy(), plain)
    assert np.allclose(groups.products(torch.as_tensor(a), torch.as_tensor(b)).numpy(), products)


def test_bundles_are_solved_where_the_recipe_says(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(solver_of(BundleConfig()), SparseSolver)
    assert isinstance(solver_of(BundleConfig(device="auto")), SparseSolver)
    with pytest.raises(ValueError, match=r"'cuda' \(annotate\.bundle\.device\)"):
        solver_of(BundleConfig(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(devices, "_worker_number", 6)
    assert isinstance(solver_of(BundleConfig()), SparseSolver)
    for device in ("auto", "cuda"):
        solver = solver_of(BundleConfig(device=device, derivatives="float32"))
        assert isinstance(solver, BatchedSolver)
        assert (str(solver.device), solver.derivatives) == ("cuda:2", torch.float32)


def test_who_waits_for_a_gpu_in_a_solver_process_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(solve, "choose_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(solve, "waits_asleep", lambda: asked.append(True))
    solver_of(BundleConfig())
    assert not asked
    assert isinstance(solver_of(BundleConfig(device="auto")), BatchedSolver)
    assert asked


@pytest.mark.usefixtures("every_solver")
def test_a_system_that_nothing_makes_definite_is_told() -> None:
    problem, truth = scene(frames=4, points=12)
    bad: Problem = replace(problem, sigma_px=torch.full_like(problem.sigma_px, 1e-200))
    with pytest.raises(FloatingPointError):
        solve_bundle(bad, truth, focal_prior("smooth", 4, CONFIG), CONFIG)


def test_a_covariance_that_one_order_of_blocks_cannot_factorise_is_tried_with_more_damping(
    monkeypatch,
) -> None:
    problem, truth = scene(frames=6, points=30)
    prior = focal_prior("smooth", 6, CONFIG)
    task = Question(problem=problem, state=truth, prior=prior, config=CONFIG).task()
    once = BatchedNormal.covariance
    asked = []

    def fails_first(self: BatchedNormal) -> torch.Tensor:
        asked.append(float(self.damp_p.max()))
        if len(asked) == 1:
            raise FloatingPointError("the damped camera system is not positive definite")
        return once(self)

    monkeypatch.setattr(BatchedNormal, "covariance", fails_first)
    found = BatchedSolver(torch.device("cpu")).covariance(task)
    assert len(asked) == 2
    assert asked[1] > asked[0]
    # The first frame is held.
    assert torch.allclose(found[1:], SparseSolver().covariance(task)[1:], rtol=1e-4)
