"""The bundle solver against scipy, against known truth, and its own invariants."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from theodolite.annotate.sfm.at_rest import rest_error_ratio
from theodolite.annotate.sfm.bundle import normal, single, sparse
from theodolite.annotate.sfm.bundle.lens import LENS_DOF
from theodolite.annotate.sfm.bundle.optimum import Optimum
from theodolite.annotate.sfm.bundle.priors import focal_prior
from theodolite.annotate.sfm.bundle.problem import Problem, Solution, State, project
from theodolite.annotate.sfm.bundle.single import resect
from theodolite.annotate.sfm.bundle.solve import Effort, Question, solve_bundle, solve_bundles
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.triangulation import of_frames
from theodolite.dataset.cameras.rotations import so3_exp

CONFIG = BundleConfig(principal_point_sigma=0.0, radial_sigma=0.0, robust_scale=50.0, focal_prior_sigma=10.0)


def scene(
    frames: int = 8,
    points: int = 40,
    *,
    zoom: float = 1.0,
    noise_px: float = 0.0,
    seed: int = 0,
    span: int | None = None,
) -> tuple[Problem, State]:
    """Cameras on an arc that turn and advance, looking at points 2 to 6 units away; returns truth as the state."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, frames)
    rotvec = np.stack([0.1 * np.sin(3 * t), 0.5 * t, 0.05 * t], 1)
    rotation = torch.as_tensor(so3_exp(rotvec))
    translation = torch.as_tensor(np.stack([-0.6 * t, 0.1 * np.cos(4 * t), -0.5 * t], 1))
    rotation = rotation @ rotation[:1].transpose(1, 2)
    translation = translation - (rotation @ translation[:1, :, None])[:, :, 0]
    log_focal = torch.as_tensor(np.log(500.0) + np.log(zoom) * t)
    world = torch.as_tensor(rng.uniform([-2, -1.5, 2], [2, 1.5, 6], (points, 3)))
    first = rng.integers(0, max(1, frames - (span or frames) + 1), points)
    seen = [(p, f) for p in range(points) for f in range(first[p], min(frames, first[p] + (span or frames)))]
    point, frame = (torch.as_tensor(x) for x in np.array(seen).T.copy())
    state = State(rotation, translation, log_focal, torch.zeros(LENS_DOF, dtype=torch.float64), world)
    n = len(point)
    problem = Problem(
        frame=frame,
        point=point,
        uv_px=torch.zeros(n, 2, dtype=torch.float64),
        sigma_px=torch.full((n,), 0.5, dtype=torch.float64),
        log_depth=torch.zeros(n, dtype=torch.float64),
        sigma_log_depth=torch.full((n,), 0.01, dtype=torch.float64),
        num_frames=frames,
        num_points=points,
        centre_px=torch.tensor([320.0, 240.0], dtype=torch.float64),
        focal_scale_px=800.0,
    )
    uv, p = project(problem, state)
    noise = torch.as_tensor(rng.normal(0, noise_px, (n, 2)))
    return replace(problem, uv_px=uv + noise, log_depth=p[:, 2].log()), state


def disturbed(state: State, seed: int = 1) -> State:
    rng = np.random.default_rng(seed)
    frames = len(state.rotation)
    turn = rng.normal(0, 0.02, (frames, 3))
    turn[0] = 0
    move = rng.normal(0, 0.05, (frames, 3))
    move[0] = 0
    return replace(
        state,
        rotation=torch.as_tensor(so3_exp(turn)) @ state.rotation,
        translation=state.translation + torch.as_tensor(move),
        log_focal=state.log_focal + 0.1,
        points=state.points + torch.as_tensor(rng.normal(0, 0.05, tuple(state.points.shape))),
    )


@pytest.mark.usefixtures("every_solver")
@pytest.mark.slow
@pytest.mark.parametrize("zoom", [1.0, 1.6])
@pytest.mark.parametrize("band", [4, 8, 64])
def test_exact_measurements_give_the_truth_back(zoom: float, band: int) -> None:
    problem, truth = scene(frames=14, zoom=zoom, points=60)
    prior = focal_prior("smooth", 14, CONFIG)
    found = solve_bundle(
        problem,
        disturbed(truth),
        prior,
        CONFIG,
        effort=Effort(max_iterations=60, tolerance=1e-14, band_frames=band),
    ).state
    # Exact data and priors that the truth nearly satisfies: what remains is the smoothness of the zoom.
    assert torch.allclose(found.log_focal, truth.log_focal, atol=2e-5)
    assert torch.allclose(found.translation, truth.translation, atol=5e-5)
    assert torch.allclose(found.rotation, truth.rotation, atol=2e-5)


@pytest.mark.usefixtures("every_solver")
@pytest.mark.slow
def test_same_optimum_as_scipy() -> None:
    """scipy minimises the same robust cost over all unknowns at once, points included, by finite differences."""
    config = CONFIG.model_copy(update={"robust_scale": 4.0})
    problem, truth = scene(frames=4, points=10, noise_px=0.7)
    start = disturbed(truth)
    prior = focal_prior("smooth", 4, config)
    ours = solve_bundle(problem, start, prior, config, effort=Effort(max_iterations=80, tolerance=1e-14))
    centre = np.log(640 / (2 * 0.57735))

    def unpack(x: np.ndarray) -> State:
        cameras = np.concatenate([np.zeros(6), x[: 4 * 7 - 6]])
        pose = cameras[: 4 * 6].reshape(4, 6)
        delta = torch.as_tensor(so3_exp(pose[:, :3]))
        return State(
            delta @ start.rotation,
            (delta @ start.translation[:, :, None])[:, :, 0] + torch.as_tensor(pose[:, 3:]),
            torch.as_tensor(cameras[24:28]),
            start.lens,
            torch.as_tensor(x[22:].reshape(-1, 3)),
        )

    def residuals(x: np.ndarray) -> np.ndarray:
        s = unpack(x)
        uv, p = project(problem, s)
        ruv = ((uv - problem.uv_px) / problem.sigma_px[:, None]).numpy()
        rd = ((p[:, 2].log() - problem.log_depth) / problem.sigma_log_depth).numpy()

        def robust(r: np.ndarray) -> np.ndarray:
            """Residual vectors (n, d) shortened so that half their squared length is the Cauchy cost."""
            squared = (r**2).sum(1, keepdims=True) + 1e-300
            return r * np.sqrt(config.robust_scale**2 * np.log1p(squared / config.robust_scale**2) / squared)

        f = s.log_focal.numpy()
        bend = (f[2:] - 2 * f[1:-1] + f[:-2]) / config.focal_smoothness
        absolute = (f - centre) / config.focal_prior_sigma / 2.0
        whole = (robust(ruv), robust(rd[:, None]), robust(bend[:, None]), absolute)
        return np.concatenate([part.reshape(-1) for part in whole])

    x0 = np.concatenate([np.zeros(18), start.log_focal.numpy(), start.points.numpy().reshape(-1)])
    theirs = least_squares(residuals, x0, xtol=1e-12, ftol=1e-12, gtol=1e-10, max_nfev=60)
    assert ours.cost == pytest.approx(theirs.cost, rel=1e-5)
    assert np.allclose(unpack(theirs.x).log_focal.numpy(), ours.state.log_focal.numpy(), atol=2e-4)
    assert np.allclose(unpack(theirs.x).translation.numpy(), ours.state.translation.numpy(), atol=2e-4)


@pytest.mark.usefixtures("every_solver")
@pytest.mark.parametrize("band", [7, 12])
def test_loop_closures_outside_the_band_are_honoured(band: int) -> None:
    """Points seen only by the first and the last frames: the narrow band must reach the wide band's optimum.

    24 frames are four blocks of 7, of which the first and the last do not touch, or two of 12, which do.
    """
    problem, truth = scene(frames=24, points=90, noise_px=0.3, span=6)
    device_points = 20
    ends = [(90 + k, f) for k in range(device_points) for f in (0, 1, 22, 23)]
    extra_point, extra_frame = (torch.as_tensor(x) for x in np.array(ends).T.copy())
    rng = np.random.default_rng(5)
    world = torch.cat(
        [truth.points, torch.as_tensor(rng.uniform([-1, -1, 3], [1.5, 1, 5], (device_points, 3)))]
    )
    n = len(extra_point)
    truth = replace(truth, points=world)
    joined = replace(
        problem,
        frame=torch.cat([problem.frame, extra_frame]),
        point=torch.cat([problem.point, extra_point]),
        uv_px=torch.cat([problem.uv_px, torch.zeros(n, 2, dtype=torch.float64)]),
        sigma_px=torch.cat([problem.sigma_px, torch.full((n,), 0.5, dtype=torch.float64)]),
        log_depth=torch.cat([problem.log_depth, torch.zeros(n, dtype=torch.float64)]),
        sigma_log_depth=torch.cat(
            [problem.sigma_log_depth, torch.full((n,), torch.inf, dtype=torch.float64)]
        ),
        num_points=90 + device_points,
    )
    uv, _ = project(joined, truth)
    joined = replace(joined, uv_px=torch.cat([problem.uv_px, uv[-n:]]))
    prior = focal_prior("smooth", 24, CONFIG)
    start = disturbed(truth)
    wide = solve_bundle(
        joined, start, prior, CONFIG, effort=Effort(max_iterations=80, tolerance=1e-13, band_frames=64)
    )
    narrow = solve_bundle(
        joined, start, prior, CONFIG, effort=Effort(max_iterations=80, tolerance=1e-13, band_frames=band)
    )
    assert narrow.cost == pytest.approx(wide.cost, rel=1e-6)
    assert torch.allclose(narrow.state.translation, wide.state.translation, atol=1e-4)


@pytest.mark.usefixtures("every_solver")
def test_outliers_do_not_move_the_cameras() -> None:
    config = CONFIG.model_copy(update={"robust_scale": 1.0})
    problem, truth = scene(frames=10, points=80, noise_px=0.2)
    rng = np.random.default_rng(3)
    wrong = torch.as_tensor(rng.random(len(problem.frame)) < 0.3)
    off = torch.as_tensor(rng.normal(0, 60, (len(problem.frame), 2)))
    problem = replace(problem, uv_px=torch.where(wrong[:, None], problem.uv_px + off, problem.uv_px))
    prior = focal_prior("constant", 10, config)
    found = solve_bundle(
        problem, disturbed(truth), prior, config, effort=Effort(max_iterations=60, tolerance=1e-09)
    )
    assert float((found.state.translation - truth.translation).norm(dim=1).max()) < 0.01
    assert float(found.weight[wrong].median()) < 0.05
    assert float(found.weight[~wrong].median()) > 0.7


@pytest.mark.usefixtures("every_solver")
def test_constant_model_is_constant_and_piecewise_breaks_where_told() -> None:
    problem, truth = scene(frames=12, points=60)
    constant = solve_bundle(
        problem,
        disturbed(truth),
        focal_prior("constant", 12, CONFIG),
        CONFIG,
        effort=Effort(max_iterations=40),
    )
    assert float(constant.state.log_focal.std()) < 1e-4
    step = replace(truth, log_focal=truth.log_focal + torch.where(torch.arange(12) < 5, 0.0, 0.3))
    uv, _ = project(problem, step)
    problem = replace(problem, uv_px=uv)
    prior = focal_prior("piecewise", 12, CONFIG, breaks=torch.tensor([5]))
    found = solve_bundle(
        problem, disturbed(step), prior, CONFIG, effort=Effort(max_iterations=60, tolerance=1e-12)
    ).state.log_focal
    assert torch.allclose(found, step.log_focal, atol=1e-3)


@pytest.mark.usefixtures("every_solver")
def test_a_hopeless_model_is_given_up_and_a_hopeful_one_is_not() -> None:
    problem, truth = scene(frames=12, points=60, noise_px=0.3)
    zooming = replace(truth, log_focal=truth.log_focal + torch.linspace(0, 0.5, 12, dtype=torch.float64))
    uv, _ = project(problem, zooming)
    zoomed = replace(problem, uv_px=uv)
    prior = focal_prior("constant", 12, CONFIG)
    whole = solve_bundle(zoomed, disturbed(truth), prior, CONFIG, effort=Effort(max_iterations=60))
    early = solve_bundle(
        zoomed, disturbed(truth), prior, CONFIG, effort=Effort(max_iterations=60, hopeless_above=1.0)
    )
    assert not early.converged
    assert early.iterations < whole.iterations
    assert early.data_cost > 1.0
    # What can be reached is reached, to the same place.
    best = solve_bundle(problem, disturbed(truth), prior, CONFIG, effort=Effort(max_iterations=60))
    bounded = solve_bundle(
        problem,
        disturbed(truth),
        prior,
        CONFIG,
        effort=Effort(max_iterations=60, hopeless_above=1.1 * best.data_cost),
    )
    assert bounded.converged
    assert bounded.cost == best.cost


@pytest.mark.slow
def test_covariance_is_that_of_many_noisy_runs() -> None:
    """Standard deviations from the normal equations against the scatter of 60 solutions with fresh noise."""
    config = CONFIG.model_copy(update={"focal_smoothness": 0.05})
    prior = focal_prior("smooth", 6, config)
    found, claimed = [], None
    for seed in range(60):
        problem, truth = scene(frames=6, points=50, seed=0)
        rng = np.random.default_rng(100 + seed)
        problem = replace(
            problem,
            uv_px=problem.uv_px + torch.as_tensor(rng.normal(0, 0.5, tuple(problem.uv_px.shape))),
            log_depth=problem.log_depth + torch.as_tensor(rng.normal(0, 0.01, len(problem.frame))),
        )
        solution = solve_bundle(
            problem,
            truth,
            prior,
            config,
            effort=Effort(max_iterations=10, tolerance=1e-09),
            want_covariance=seed == 0,
        )
        state = solution.state
        centre = -state.rotation[5].T @ state.translation[5]
        found.append(torch.cat([centre, state.log_focal[5:6]]))
        if solution.covariance is not None:
            # R' = E R, t' = E t + v: the centre moves by -R^T v.
            moved = state.rotation[5].T @ solution.covariance[5][3:6, 3:6] @ state.rotation[5]
            claimed = torch.cat([moved.diagonal(), solution.covariance[5][6, 6:]]).sqrt()
    assert claimed is not None
    ratio = torch.stack(found).std(0) / claimed
    # 60 runs know a standard deviation to 9 %; the claimed one also scales with one run's residuals.
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 1.4


def some_frames_free() -> tuple[Problem, State, State, torch.Tensor]:
    """A scene, its truth, a start with true points in which all but the outer frames are disturbed, and which those
    are."""
    problem, truth = scene(frames=9, points=60, zoom=1.5)
    free = torch.tensor([f not in (0, 8) for f in range(9)])
    start = disturbed(truth)
    start = replace(start, points=truth.points)
    for name in ("rotation", "translation", "log_focal"):
        value = torch.where(
            free.reshape(-1, *[1] * (getattr(truth, name).dim() - 1)),
            getattr(start, name),
            getattr(truth, name),
        )
        start = replace(start, **{name: value})
    return problem, truth, start, free


def test_resect_places_single_frames_with_their_own_focal() -> None:
    problem, truth, start, free = some_frames_free()
    found, inliers = resect(
        problem,
        start,
        CONFIG,
        free_frames=free,
        focal_guess=start.log_focal.clone(),
        focal_sigma=10.0,
        effort=Effort(max_iterations=30, tolerance=0.0),
    )
    assert torch.allclose(found.log_focal, truth.log_focal, atol=1e-4)
    assert torch.allclose(found.translation, truth.translation, atol=1e-4)
    assert int(inliers.min()) == 60


def test_resect_asks_the_observations_of_free_frames_and_stops_where_nothing_improves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, _, start, free = some_frames_free()
    noise = torch.randn(problem.uv_px.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = replace(problem, uv_px=problem.uv_px + noise)
    seen: list[int] = []
    step = single._Resection.step

    def counted(self: single._Resection) -> float:
        seen.append(len(self.problem.frame))
        return step(self)

    monkeypatch.setattr(single._Resection, "step", counted)
    found = {}
    for name, of, tolerance in (("all", problem, 0.0), ("short", of_frames(problem, free), 1e-6)):
        seen.clear()
        found[name], _ = resect(
            of,
            start,
            CONFIG,
            free_frames=free,
            focal_guess=start.log_focal.clone(),
            focal_sigma=10.0,
            effort=Effort(max_iterations=30, tolerance=tolerance),
        )
    assert set(seen) == {7 * 60}
    assert 2 < len(seen) < 12
    for name in ("rotation", "translation", "log_focal"):
        assert torch.allclose(getattr(found["short"], name), getattr(found["all"], name), atol=1e-5)


def test_equations_at_an_optimum_give_the_covariance_of_its_solution() -> None:
    problem, truth = scene(frames=40, points=80, noise_px=0.5, span=20)
    question = Question(
        problem=problem,
        state=truth,
        prior=focal_prior("smooth", 40, CONFIG),
        config=CONFIG.model_copy(update={"covariance_band_frames": 12, "band_frames": 8}),
        want_covariance=True,
    )
    solution = solve_bundles([question])[0]
    assert isinstance(solution, Solution)
    assert solution.covariance is not None
    optimum = Optimum.of(question, solution)
    assert optimum.task.band_frames == 12
    assert torch.equal(optimum.covariance(), solution.covariance)


@pytest.mark.usefixtures("every_solver")
def test_bad_problems_are_named() -> None:
    problem, truth = scene(frames=3, points=5)
    prior = focal_prior("smooth", 3, CONFIG)
    swapped = replace(problem, frame=problem.frame.flip(0), point=problem.point.flip(0))
    with pytest.raises(ValueError, match="sorted by point"):
        solve_bundle(swapped, truth, prior, CONFIG)
    empty = replace(problem, frame=problem.frame[:0], point=problem.point[:0])
    with pytest.raises(ValueError, match="no observations"):
        solve_bundle(empty, truth, prior, CONFIG)
    nan = replace(problem, uv_px=problem.uv_px * torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        solve_bundle(nan, truth, prior, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "zoom", "told"),
    [(0.0, 1.5, False), (0.0, 1.0, False), (0.1, 1.5, True), (0.1, 1.0, True), (0.1, None, True)],
    ids=["at rest, zooming", "at rest", "moving, zooming", "moving", "dolly zoom"],
)
def test_a_path_is_told_by_the_images_or_not_at_all(path: float, zoom: float | None, told: bool) -> None:
    """Depth that grows by 8 % along the clip makes a path of a zoom at rest; the images know of none."""
    _, state = scene(12, 120, zoom=zoom or 1.0)
    t = torch.linspace(0, 1, 12, dtype=torch.float64)
    along = torch.tensor([-0.8, 0.2, -0.5], dtype=torch.float64)
    log_focal = state.log_focal
    if zoom is None:  # what is four units away keeps its size while the camera draws back from it
        along, log_focal = (
            torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
            np.log(500.0) + (1 + path * t / 4).log(),
        )
    state = replace(state, translation=path * t[:, None] * along, log_focal=log_focal)
    problem, _ = scene(12, 120)
    uv, p = project(problem, state)
    noise = torch.as_tensor(np.random.default_rng(3).normal(0, 0.4, uv.shape))
    drift = 0.08 * t[problem.frame]
    problem = replace(problem, uv_px=uv + noise, log_depth=p[:, 2].log() + drift)
    prior = focal_prior("smooth", 12, CONFIG)
    solved = solve_bundle(problem, state, prior, CONFIG).state
    gone = float((solved.translation[-1] - solved.translation[0]).norm())
    ratio = rest_error_ratio(problem, solved, prior, CONFIG)
    if told:
        assert ratio > 1.3
    else:
        assert gone > 0.02 or zoom == 1.0
        assert ratio < 1.1


def test_a_point_that_the_camera_went_by_leaves_the_question_of_rest_answered() -> None:
    problem, state = scene(12, 60)
    prior = focal_prior("smooth", 12, CONFIG)
    noisy = replace(
        problem, uv_px=problem.uv_px + 0.3 * torch.randn(problem.uv_px.shape, generator=torch.manual_seed(1))
    )
    before = rest_error_ratio(noisy, state, prior, CONFIG)
    centre = -(state.rotation.transpose(1, 2) @ state.translation[:, :, None])[:, :, 0]
    points = state.points.clone()
    points[0] = centre.median(0).values
    points[1] = points[0] + 1e-9
    at_the_camera = rest_error_ratio(noisy, replace(state, points=points), prior, CONFIG)
    assert before > 2
    assert at_the_camera == pytest.approx(before, rel=0.1)


def test_a_path_that_cannot_be_compared_with_rest_is_not_confirmed() -> None:
    problem, state = scene(4, 12)
    bad = replace(problem, sigma_px=torch.full_like(problem.sigma_px, 1e-200))
    assert rest_error_ratio(bad, state, focal_prior("smooth", 4, CONFIG), CONFIG) == 1.0


def test_a_held_lens_has_no_free_term_whatever_the_recipe_frees() -> None:
    terms = [
        name
        for name in BundleConfig.model_fields
        if name.startswith(("principal", "aspect")) or "radial" in name
    ]
    config = BundleConfig.model_validate(dict.fromkeys(terms, 0.1))
    problem, state = scene(4)

    def free(config: BundleConfig) -> list[bool]:
        prior = focal_prior("constant", 4, config)
        return Question(problem=problem, state=state, prior=prior, config=config).task().priors.free.tolist()

    assert free(config) == [True] * LENS_DOF
    assert free(config.with_held_lens()) == [False] * LENS_DOF


def test_equations_of_one_step_at_a_time_are_held(monkeypatch) -> None:
    """They are the most of what a bundle of a long clip holds: two at once are twice the memory."""
    problem, truth = scene()
    made: list[weakref.ref] = []
    alive: list[int] = []

    class Counted(normal.Normal):
        def __init__(self, *args, **keywords) -> None:
            super().__init__(*args, **keywords)
            made.append(weakref.ref(self))

        def damp(self, damping: float) -> None:
            alive.append(sum(x() is not None for x in made))
            super().damp(damping)

    def linearised(*args):
        alive.append(sum(x() is not None for x in made))
        found, weight = normal.linearise(*args)
        made.append(weakref.ref(found))
        return found, weight

    monkeypatch.setattr(sparse, "Normal", Counted)
    monkeypatch.setattr(sparse, "linearise", linearised)
    prior = focal_prior("smooth", 8, CONFIG)
    solve_bundle(problem, disturbed(truth), prior, CONFIG, want_covariance=True)
    # Before each linearisation nothing, while its equations are solved they alone.
    assert len(made) > 6
    assert alive[0::2] == [0] * (len(alive) // 2)
    assert set(alive[1::2]) == {1}
