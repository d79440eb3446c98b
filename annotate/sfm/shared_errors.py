"""What cameras are wrong by where measurements err alike: carried through the bundle's equations, cause by cause.

The bundle's own covariance takes every observation for a measurement of its own. They are none: a track drifts along
its life, neighbours in an image slip together, a depth map is wrong in blotches, some of which stay in the image from
frame to frame. What such errors do to the cameras is found by doing it.

Errors that leave residuals have the size that they have in this clip: residuals are given random signs that all of a
track, of a patch of one frame, of a patch of all frames share, and the equations of the optimum say how the cameras
would answer (a wild bootstrap by clusters; Cameron, Gelbach and Miller 2011, "Robust inference with multiway
clustering").

Errors that cameras which are wrong explain leave no residual. What is known of their size (`KnownErrors`) is a prior,
and what residuals are left of them says how large they are in this clip: smooth errors of depth that stay in the image,
a unit of depth that drifts, a shutter that rolls. Where a path is long, little of the prior is left; where it is short,
all of it. The cameras are not changed by what is found, so both what is found and its uncertainty are errors of theirs.
What is expected of the focal length and the lens is added with the size of its prior.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from ...dataset.arrays import FloatArray
from .bundle.normal import Linear, Normal, linearise
from .bundle.optimum import Optimum
from .bundle.pace import Task
from .bundle.problem import FOCAL_COLUMN, Problem, cauchy, whitened_residuals
from .bundle.solve import soaked_up
from .bundle.sparse import factorised
from .depth_noise import PATCHES, patch_numbers

_DRAWS = 48
"""Random signs of everything; standard deviations from so many are right within 10 %."""
_AT_ONCE = 8
_PLACES = PATCHES[0] * PATCHES[1]
_SHUTTER = 0.3
"""Standard deviation of the time in which an image is read out, top to bottom, over that between frames: of phones 10
to 30 ms of 62. It skews what moves past the camera, and the bundle knows nothing of it."""


@dataclass(frozen=True, kw_only=True)
class KnownErrors:
    """Standard deviations of what residuals hardly show.

    Attributes:
        still_log: of log depth that is wrong smoothly over the image and alike in all frames.
        slow_log: of the unit of depth as it changes slowly along the clip.
    """

    still_log: float
    slow_log: float


OF_SENSORS = KnownErrors(still_log=0.01, slow_log=0.0)
"""Depth of sensors; what its unit does is measured (`DepthNoise`)."""
OF_NETWORKS = KnownErrors(still_log=0.03, slow_log=0.03)
"""Depth of networks, whose errors follow what is seen, and the drift of whose unit is not published."""


@dataclass(frozen=True, kw_only=True)
class SharedErrors:
    """Covariances of cameras with what measurements have wrong in common.

    Attributes:
        position: (F, 3, 3) of the centre in the axes of the first camera, depth units.
        rotation: (F, 3, 3) of the orientation, about the camera's own axes, radians.
        log_focal: (F,) variance.
        shutter: time in which an image is read out over that between frames, as the residuals have it.
        path: root mean square over frames of what centres are wrong by after the best shift and turn of the path, depth
            units: the absolute trajectory error that is to be expected.
        causes: of each cause, the median over frames of its part of the three standard deviations (worst axes).
    """

    position: FloatArray
    rotation: FloatArray
    log_focal: FloatArray
    shutter: float
    path: float
    causes: dict[str, tuple[float, float, float]]


def shared_errors(optimum: Optimum, known: KnownErrors) -> SharedErrors:
    """Covariances at a bundle's optimum.

    Args:
        known: sizes of errors that leave no residual.
    """
    # The derivatives are made once more: the equations are not factorised beside them.
    task, normal = optimum.task, optimum.normal
    linear = _linear(task)
    hidden, drawn = _Hidden(task, known), _Draws(task, linear)
    number = hidden.number
    of_frames, of_lens = drawn.expected(normal)
    expected = of_lens.shape[1]
    own = torch.zeros(task.problem.num_frames, normal.dof, number, dtype=torch.float64)
    forces = torch.cat([own, drawn.of_priors(normal), of_frames], 2)
    on_lens = torch.cat([of_lens.new_zeros(normal.num_lens, number + _DRAWS), of_lens], 1)
    cases = itertools.chain(hidden.columns(), hidden.compared(drawn.residuals()))
    answers, taken = normal.answer(linear, cases, forces, on_lens, own=number)
    hidden.measure(linear.r, taken[:, :-expected])
    steps = {
        "seen": drawn.widened * answers[:, :, number:-expected] / _DRAWS**0.5,
        "expected": answers[:, :, -expected:],
    } | hidden.steps(answers[:, :, :number])
    together = torch.cat(list(steps.values()), 2)
    variances = _variances(task, together)
    return SharedErrors(
        position=variances[0],
        rotation=variances[1],
        log_focal=variances[2],
        shutter=hidden.shutter,
        path=_path_error(task, together),
        causes={name: _usual(_variances(task, step)) for name, step in steps.items()},
    )


def _linear(task: Task) -> Linear:
    return linearise(task.problem, task.state, task.priors.robust_scale, task.priors.free)[0]


def _centres(task: Task, steps: Tensor) -> Tensor:
    """(F, 3, K) steps of the centres, axes of the first camera, by steps (F, D, K) of the cameras."""
    rotation = task.state.rotation
    # The centre -R^T t moves by -R^T v.
    return rotation[0] @ rotation.transpose(1, 2) @ steps[:, 3:6]


def _path_error(task: Task, steps: Tensor) -> float:
    """See `SharedErrors.path`: what the six directions of a rigid motion cannot take out of steps (F, D, K)."""
    rotation, translation = task.state.rotation, task.state.translation
    place = -(rotation[0] @ rotation.transpose(1, 2) @ translation[:, :, None])[:, :, 0]
    place = place - place.mean(0)
    axes = torch.eye(3, dtype=torch.float64)
    turns = torch.cross(axes[:, None].expand(3, len(place), 3), place.expand(3, -1, -1), dim=2)
    rigid = torch.cat([axes[:, None].expand(3, len(place), 3), turns]).reshape(6, -1)
    span = torch.linalg.svd(rigid.T, full_matrices=False)
    rigid = span.U[:, 1e-9 * span.S[0] < span.S]
    moved = _centres(task, steps).reshape(3 * len(place), -1)
    left = moved - rigid @ (rigid.T @ moved)
    return float((left.square().sum() / len(place)).sqrt())


def expected_response(task: Task) -> float:
    """By how much focal lengths change where what is expected of all of them changes by one (median over frames, logs).

    Raises:
        FloatingPointError: nothing makes the equations positive definite.
    """
    normal, linear = factorised(task), _linear(task)
    forces, of_lens = _Draws(task, linear).expected(normal)
    answers, _ = normal.answer(linear, [], forces[:, :, :1], of_lens[:, :1])
    _, sigma, _ = task.priors.absolute(task.problem.num_frames)
    return float((answers[:, FOCAL_COLUMN, 0] / sigma).median())


def _variances(task: Task, steps: Tensor) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of position and rotation (F, 3, 3), of log focal (F,): sums over steps (F, D, K) of the cameras."""
    centre, turn = _centres(task, steps), steps[:, :3]
    return (
        (centre @ centre.transpose(1, 2)).numpy(),
        (turn @ turn.transpose(1, 2)).numpy(),
        steps[:, 6].square().sum(1).numpy(),
    )


def _usual(variances: tuple[FloatArray, FloatArray, FloatArray]) -> tuple[float, float, float]:
    worst = (torch.linalg.eigvalsh(torch.as_tensor(variance))[:, -1] for variance in variances[:2])
    position, rotation, focal = (
        float(variance.clamp_min(0).sqrt().median()) for variance in (*worst, torch.as_tensor(variances[2]))
    )
    return position, rotation, focal


class _Draws:
    """Draws of errors that leave residuals, and of what is expected."""

    def __init__(self, task: Task, linear: Linear) -> None:
        self.task, self.linear = task, linear
        self.random = torch.Generator().manual_seed(0)
        patch = torch.as_tensor(patch_numbers(task.problem))
        of_pixels = task.problem.point, patch, patch % _PLACES
        self.groups = of_pixels, (task.problem.point, patch, task.problem.frame)
        self.widened = soaked_up(task.problem, task.state.camera_dof) ** 0.5

    def _signs(self, group: Tensor, number: int) -> Tensor:
        size = int(group.max()) + 1, number
        return (2 * torch.randint(0, 2, size, generator=self.random) - 1).double()[group]

    def _sums(self, groups: tuple[Tensor, ...]) -> Tensor:
        """(N, k) sums of the signs by each grouping."""
        total = self._signs(groups[0], _AT_ONCE)
        for group in groups[1:]:
            total += self._signs(group, _AT_ONCE)
        return total

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.random, dtype=torch.float64)

    def of_priors(self, normal: Normal) -> Tensor:
        """(F, D, K) forces of what the priors on changes left, with signs."""
        force = torch.zeros(self.task.problem.num_frames, normal.dof, _DRAWS, dtype=torch.float64)
        for column, (index, coefficient, residual) in normal.prior_terms:
            if index.shape[1] > 1:
                signs = self._signs(torch.arange(len(index)), _DRAWS)
                value = torch.nan_to_num(coefficient)[:, :, None] * (residual[:, None] * signs)[:, None]
                force[:, column].index_add_(0, index.reshape(-1), value.reshape(-1, _DRAWS))
        return force

    def residuals(self) -> Iterator[Tensor]:
        """(N, 3, k) residuals with signs that neighbours share, a few at a time."""
        for _ in range(_DRAWS // _AT_ONCE):
            of_pixels, of_depth = (self._sums(groups) for groups in self.groups)
            yield torch.stack([of_pixels, of_pixels, of_depth], 1).mul_(self.linear.r[:, :, None])

    def expected(self, normal: Normal) -> tuple[Tensor, Tensor]:
        """(F, D, 1 + G), (G, 1 + G) forces of a focal length and a lens that are what was expected but for one
        deviation."""
        problem, priors = self.task.problem, self.task.priors
        free = int(priors.free.sum())
        _, sigma, share = priors.absolute(problem.num_frames)
        force = torch.zeros(problem.num_frames, normal.dof, 1 + free, dtype=torch.float64)
        force[:, FOCAL_COLUMN, 0] = share / sigma
        of_lens = torch.zeros(free, 1 + free, dtype=torch.float64)
        # A lens that was found further off than that was held back the more.
        sigma = priors.lens_sigma[priors.free]
        off = (self.task.state.lens[priors.free] / sigma).abs().clamp_min(1.0)
        of_lens[:, 1:] = torch.diag(off / sigma)
        return force, of_lens


class _Hidden:
    """Errors that cameras explain: what they do, and how large they are in this clip.

    Columns: smooth depth by place in the image, the slow unit of depth (two), and the shutter.
    """

    def __init__(self, task: Task, known: KnownErrors) -> None:
        problem, scale = task.problem, task.priors.robust_scale
        r_uv, r_d, _, _ = whitened_residuals(problem, task.state)
        has = torch.isfinite(problem.sigma_log_depth)
        weight = cauchy(r_d * r_d, scale)[1].sqrt()
        # What an error of one is worth as a residual.
        of_depth = torch.where(has, weight / problem.sigma_log_depth, torch.zeros_like(r_d))
        self.of_depth = _depth_columns(problem, of_depth)
        weight = cauchy((r_uv * r_uv).sum(1), scale)[1].sqrt()
        self.of_shutter = _skew_px(problem) * (weight / problem.sigma_px)[:, None]
        sizes = [known.still_log] * _PLACES + [known.slow_log] * 2 + [_SHUTTER]
        self.sigma = torch.tensor(sizes, dtype=torch.float64)
        self.number = len(sizes)
        self.alike: list[Tensor] = []

    def columns(self) -> Iterator[Tensor]:
        """(N, 3, k) residuals that errors of one make, a few at a time."""
        for first in range(0, self.number, _AT_ONCE):
            of_depth = torch.from_numpy(self.of_depth[:, first : first + _AT_ONCE].toarray())
            residual = torch.zeros(len(of_depth), 3, min(_AT_ONCE, self.number - first), dtype=torch.float64)
            residual[:, 2, : of_depth.shape[1]] = of_depth
            if first + _AT_ONCE >= self.number:
                residual[:, :2, -1] = self.of_shutter
            yield residual

    def compared(self, residuals: Iterator[Tensor]) -> Iterator[Tensor]:
        """The residuals of other errors as they are; how far they look like hidden ones is put down."""
        for residual in residuals:
            self.alike.append(self._like(residual))
            yield residual

    def _products(self) -> Tensor:
        """Of the columns with each other."""
        of_depth = torch.from_numpy((self.of_depth.T @ self.of_depth).toarray())
        return torch.block_diag(of_depth, self.of_shutter.square().sum())

    def _like(self, residual: Tensor) -> Tensor:
        """Products of the columns with residuals (N, 3, K)."""
        of_shutter = (self.of_shutter[:, :, None] * residual[:, :2]).sum((0, 1))
        of_depth = torch.from_numpy(self.of_depth.T @ residual[:, 2].numpy())
        return torch.cat([of_depth, of_shutter[None]])

    def measure(self, residual: Tensor, taken: Tensor) -> None:
        """How large they are, as the residuals have it: mean and second moments about zero.

        Args:
            residual: (N, 3) of the optimum.
            taken: products of all cases in what the unknowns take up.
        """
        own = slice(0, self.number)
        left = self.sigma[:, None] * (self._products() - taken[own, own]) * self.sigma
        value, vector = torch.linalg.eigh(0.5 * (left + left.T))
        by_chance = vector.T @ (self.sigma[:, None] * (torch.cat(self.alike, 1) - taken[own, self.number :]))
        noise = torch.maximum(by_chance.square().mean(1), value.clamp_min(1e-12))
        variance = 1 / (1 + value.clamp_min(0) ** 2 / noise)
        # A residual is what is predicted less what is measured.
        seen = -vector.T @ (self.sigma * self._like(residual[:, :, None])[:, 0])
        mean = vector @ (variance * value.clamp_min(0) / noise * seen)
        self.mean = self.sigma * mean
        moments = mean[:, None] * mean + vector * variance @ vector.T
        self.moments = self.sigma[:, None] * moments * self.sigma

    @property
    def shutter(self) -> float:
        """See `SharedErrors`."""
        return float(self.mean[-1])

    def steps(self, answers: Tensor) -> dict[str, Tensor]:
        """Of each cause, steps of the cameras (F, D, K) whose products add up to its part; parts of different causes
        are taken for independent."""
        found = {}
        for name, columns in (
            ("still", slice(0, _PLACES)),
            ("slow", slice(_PLACES, -1)),
            ("shutter", slice(-1, None)),
        ):
            value, vector = torch.linalg.eigh(self.moments[columns, columns])
            found[name] = answers[:, :, columns] @ (vector * value.clamp_min(0).sqrt())
        return found


def _depth_columns(problem: Problem, size: Tensor) -> csc_array:
    """(N, places + 2) residuals of depth, most of them zero: smooth functions of the place in the image, of which any
    smooth error of depth is a sum, and two slow ones of time.

    Args:
        size: (N,) residual of an error of one.
    """
    across, down = PATCHES
    place = problem.uv_px / (2 * problem.centre_px) * torch.tensor(PATCHES) - 0.5
    x, y = (place[:, k].clamp(0, PATCHES[k] - 1) for k in (0, 1))
    left, top = x.long().clamp_max(across - 2), y.long().clamp_max(down - 2)
    at_x, at_y = x - left, y - top
    # Between the peaks of a hat and its neighbour a sum of them has half the variance, and so across both directions.
    hats = [
        (1.5 * wide * high, (left + i) * down + top + j)
        for i, wide in ((0, 1 - at_x), (1, at_x))
        for j, high in ((0, 1 - at_y), (1, at_y))
    ]
    time = torch.linspace(0, torch.pi, problem.num_frames, dtype=torch.float64)[problem.frame]
    hats += [((k * time).cos(), torch.full_like(left, _PLACES + k - 1)) for k in (1, 2)]
    value = torch.stack([hat * size for hat, _ in hats], 1).numpy().ravel()
    column = torch.stack([index for _, index in hats], 1).int().numpy().ravel()
    start = np.arange(len(size) + 1, dtype=np.int32) * len(hats)
    return csr_array((value, column, start), shape=(len(size), _PLACES + 2)).tocsc()


def _skew_px(problem: Problem) -> Tensor:
    """(N, 2) how far points move while an image is read out in the time between two frames, from its middle row on."""
    same = (problem.point[1:] == problem.point[:-1]).double()
    gap = (problem.frame[1:] - problem.frame[:-1]).clamp_min(1)
    step = (problem.uv_px[1:] - problem.uv_px[:-1]) / gap[:, None] * same[:, None]
    total, number = torch.zeros_like(problem.uv_px), torch.zeros_like(problem.sigma_px)
    total[1:] += step
    total[:-1] += step
    number[1:] += same
    number[:-1] += same
    row = problem.uv_px[:, 1] / (2 * problem.centre_px[1]) - 0.5
    return total / number.clamp_min(1)[:, None] * row[:, None]
