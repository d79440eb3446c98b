"""Incremental placement: camera after camera, from the window that tells the focal length best."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.robust import MAD_TO_SIGMA
from ..sources.clip import ClipRejection
from ..tracks.records import (
    ImageMeasurements,
    indices_by_group,
)
from .bundle.priors import FocalPrior, focal_prior
from .bundle.problem import Problem, State, state_at_origin, straight
from .bundle.solve import Effort, Question, solve_bundle, solve_bundles
from .config import BundleConfig
from .depth_noise import DepthNoise
from .gaps import cross_gap, find_gaps
from .moving import shares_by_frame
from .records import KNOWN_LENS_SIGMA, MIN_INLIERS
from .resection import FrameCamera, SeenPoints, absolute_pose, inlier_mask, refine_single
from .triangulation import keep_known, known_points

log = logging.getLogger(__name__)
_LEAST_RAY_EIGENVALUE = 3e-4  # rays at an angle t have 1 - cos t: 1.4 degrees
_HELD_KEYFRAMES = 3
"""Keyframes on either side of one that are asked whether they agree."""
_LESS_HELD = 0.15
"""A window in which so much less of the picture agrees with its cameras than in another one is no place to begin: what
moves there may be what they follow."""
_LOOSER = 4.0
"""... unless it pins the focal length so many times less tightly: where the camera rests, all of the picture agrees."""
MIN_SHARED = 40  # inliers between neighbouring keyframes, below which the link is strengthened
_BARE_FOCAL_STEP = 0.01
Pose = tuple[FloatArray, FloatArray, IntArray]
"""Rotation (3, 3) and translation (3,) world to camera, and the numbers of the points that agree."""
_FOCAL_HYPOTHESES = {
    "near_pinhole": (0.55, 0.8, 1.15, 1.8),
    "radial": (0.55, 0.8, 1.15, 1.8),
    "fisheye": (0.32, 0.42, 0.55, 0.8),
}
"""Times the longer image side: 85 to 31 degrees, and 180 to 70 of a fisheye."""


def place_incrementally(
    problem: Problem,
    config: BundleConfig,
    *,
    start: int,
    log_focal: float | FloatArray,
    focal_step_sigma: float,
    gain_sigma: float | None = None,
    across_gaps: bool = True,
) -> tuple[State, NDArray[np.bool_]]:
    """Camera after camera outwards from frame `start`: PnP, then pose and focal refined against back-projected points.

    Points that were right in other frames place a frame if they can; only otherwise all points do. So
    something that moves on its own cannot take over, even where it owns most of the tracks. A lens that bends is
    taken out of the observations first.

    Args:
        start: frame to begin with.
        log_focal: of that frame, from which the focal is followed; or (F,) of every frame where the lens is known.
        focal_step_sigma: how far the log focal may move from one frame to the next, or from the known one.
        gain_sigma: by how much the depth of whole frames is wrong; then each frame's depth is brought to that of the
            frames before. None: it is taken as it is.
        across_gaps: place what lies beyond runs without depth by itself, and join it (see `gaps`).
    Returns:
        State with points, and which frames were placed. Frames that fail keep their neighbour's camera.
    """
    placement = Placement(
        straight(problem, log_focal),
        config,
        log_focal,
        focal_step_sigma=focal_step_sigma,
        gain_sigma=gain_sigma,
    )
    gaps = find_gaps(placement.num_depths) if across_gaps else []
    if gaps and placement.num_depths[start] < MIN_INLIERS:
        solid = np.flatnonzero(placement.num_depths >= MIN_INLIERS)
        start = int(solid[np.argmin(np.abs(solid - start))]) if len(solid) else start
    placement.add(start)
    for direction in (1, -1):
        last, i = start, start + direction
        while 0 <= i < problem.num_frames:
            gap = next((g for g in gaps if i in g), None)
            if gap is not None:
                last, i = cross_gap(placement, last, gap if direction > 0 else gap[::-1], gaps)
                continue
            if placement.place(i, last):
                last = i
            i += direction
    state, placed = placement.result()
    return replace(state, lens=problem.lens.start().clone()), placed


class Placement:
    """Cameras placed so far, and what they make of the points that they see.

    How often a point lay where the cameras expected it, and how often not, is counted: things that move on their own
    gather misses, however many tracks they carry, so only points that were right place the next frame.

    Attributes:
        rotation, translation, focal: (F, 3, 3), (F, 3) world to camera, (F,) pixels.
        placed: (F,) which frames have a camera of their own.
        gain: (F,) log of measured over true depth.
        total, count: (P, 3), (P,) sum and number of the places of each point.
        hits, misses: (P,) frames in which a point lay where it was expected, and in which not.
        ray_matrix, ray_vector: of points without any depth, sums over the viewing rays of placed frames, to triangulate
            them by where needed.
        triangulated: (P,) points whose place comes from rays.
        num_depths: (F,) observations with depth.
        by_rays: whether a frame is placed by all the points that rays give, or by those only where depth gives few.
    """

    def __init__(
        self,
        problem: Problem,
        config: BundleConfig,
        log_focal: float | FloatArray,
        *,
        focal_step_sigma: float,
        gain_sigma: float | None,
    ) -> None:
        frames, points = problem.num_frames, problem.num_points
        self.problem, self.config = problem, config
        self.focal_step_sigma, self.gain_sigma = focal_step_sigma, gain_sigma
        self.known_lens = np.ndim(log_focal) == 1
        self.log_focal = np.array(np.broadcast_to(log_focal, frames))
        frame = problem.frame.cpu().numpy()
        self.point = problem.point.cpu().numpy()
        self.uv = problem.uv_px.cpu().numpy()
        has_depth = np.isfinite(problem.sigma_log_depth.cpu().numpy())
        self.z = np.where(has_depth, np.exp(problem.log_depth.cpu().numpy()), np.nan)
        self.centre = problem.centre_px.cpu().numpy()
        self.threshold = 4.0 * float(problem.sigma_px.median())
        self.by_frame = indices_by_group(frame, frames)
        self.rotation = np.tile(np.eye(3), (frames, 1, 1))
        self.translation = np.zeros((frames, 3))
        self.focal = np.exp(self.log_focal)
        self.placed = np.zeros(frames, bool)
        self.gain = np.zeros(frames)
        self.total, self.count = np.zeros((points, 3)), np.zeros(points)
        self.hits, self.misses = np.zeros(points), np.zeros(points)
        self.ray_matrix, self.ray_vector = np.zeros((points, 3, 3)), np.zeros((points, 3))
        self.triangulated = np.zeros(points, bool)
        self.by_rays = False
        self.num_depths = np.bincount(frame[has_depth], minlength=frames)

    def fresh(self, log_focal: float) -> Placement:
        """The same problem with nothing placed, from another focal length where the lens is unknown."""
        return Placement(
            self.problem,
            self.config,
            self.log_focal if self.known_lens else log_focal,
            focal_step_sigma=self.focal_step_sigma,
            gain_sigma=self.gain_sigma,
        )

    def known(self) -> NDArray[np.bool_]:
        """(P,) points that have a place and were not seen beside it too often."""
        return (self.count > 0) & (self.misses <= self.hits + 1)

    def places(self) -> FloatArray:
        """(P, 3) of the points, NaN without."""
        return self.total / np.where(self.count > 0, self.count, np.nan)[:, None]

    def back_project_again(self) -> None:
        """Points from the depth and the rays of the frames as they are placed now."""
        self.total[:], self.count[:] = 0, 0
        self.triangulated[:] = False
        self.ray_matrix[:], self.ray_vector[:] = 0, 0
        for i in np.flatnonzero(self.placed):
            self._back_project(int(i))
        for i in np.flatnonzero(self.placed):
            self._add_rays(int(i))

    def put(self, point: IntArray, xyz: FloatArray) -> None:
        """Take points from a bundle at the places (n, 3) that it gave them."""
        bare = self.count[point] == 0
        self.count[point[bare]], self.triangulated[point[bare]] = 1, True
        self.total[point] = xyz * self.count[point][:, None]

    def add(self, i: int) -> None:
        """Take frame `i` with the camera that it has."""
        self.placed[i] = True
        self._back_project(i)
        self._add_rays(i)

    def place(self, i: int, last: int, *, at_least: int = MIN_INLIERS) -> bool:
        """Place frame `i` from the points that are known, beginning with the camera of frame `last`; whether so many
        agree with it."""
        seen = self.by_frame[i]
        if self.by_rays or (self.count[self.point[seen]] > 0).sum() < MIN_SHARED:
            self._triangulate(i)
        point = self.point[seen]
        known = seen[(self.count[point] > 0) & (self.misses[point] <= self.hits[point] + 1)]
        point = self.point[known]
        xyz = self.total[point] / np.maximum(self.count[point], 1)[:, None]
        self.rotation[i], self.translation[i] = self.rotation[last], self.translation[last]
        if not self.known_lens:
            self.focal[i] = self.focal[last]
        trusted = self.hits[point] > self.misses[point]
        # By rays alone a few points that agree prove nothing.
        least = max(at_least if self.by_rays else 0, 0.5 * trusted.sum())
        pose = self._pose_by(i, known, xyz, trusted)
        if pose is not None and len(pose[2]) >= least and self._take(i, known, xyz, pose, at_least):
            return True
        pose = self._pose_by(i, known, xyz, np.ones(len(known), bool))
        if pose is None:
            return False
        rest = np.ones(len(known), bool)
        rest[pose[2]] = False
        if (trusted & rest).sum() > 0.5 * trusted.sum() >= 2:
            # Most of what was right before contradicts the motion of the majority. Is there another one that it agrees
            # with? Something that moves on its own may own the picture by now.
            other = self._pose_by(i, known, xyz, rest)
            if other is not None and trusted[other[2]].sum() > trusted[pose[2]].sum():
                return self._take(i, known, xyz, other, at_least)
        return self._take(i, known, xyz, pose, at_least)

    def _pose_by(self, i: int, known: IntArray, xyz: FloatArray, chosen: NDArray[np.bool_]) -> Pose | None:
        """Rotation, translation and inliers (numbers in `known`) of frame `i` by the chosen ones of its points."""
        pose = absolute_pose(xyz[chosen], self.uv[known][chosen], self.focal[i], self.centre, self.threshold)
        return None if pose is None else (pose[0], pose[1], np.flatnonzero(chosen)[pose[2]])

    def _take(self, i: int, known: IntArray, xyz: FloatArray, pose: Pose, at_least: int) -> bool:
        """Place frame `i` by all of its known points that agree with a pose, unless they are too few."""
        uv, guess = self.uv[known], self.focal[i]
        agree = inlier_mask(xyz, uv, pose, guess, self.centre, 2 * self.threshold)
        camera, inliers = refine_single(
            SeenPoints(xyz=xyz[agree], uv_px=uv[agree], depth=self.z[known[agree]]),
            FrameCamera(rotation=pose[0], translation=pose[1], focal_px=guess),
            self.problem,
            self.config,
            # Without depth a lens that grows longer is not told from points that lie nearer.
            focal_step_sigma=min(self.focal_step_sigma, _BARE_FOCAL_STEP)
            if self.by_rays
            else self.focal_step_sigma,
            gain_sigma=self.gain_sigma,
        )
        if inliers < at_least:
            return False
        self.rotation[i], self.translation[i], self.focal[i] = (
            camera.rotation,
            camera.translation,
            camera.focal_px,
        )
        if self.gain_sigma is not None:
            self.gain[i] = self._judge_gain(i, known[agree], self.gain_sigma)
        self._judge_points(i)
        self.add(i)
        return True

    def _judge_points(self, i: int) -> None:
        seen = self.by_frame[i]
        seen = seen[self.count[self.point[seen]] > 0]
        mean = self.total[self.point[seen]] / self.count[self.point[seen]][:, None]
        pose = self.rotation[i], self.translation[i], seen
        good = inlier_mask(mean, self.uv[seen], pose, self.focal[i], self.centre, 2 * self.threshold)
        np.add.at(self.hits, self.point[seen[good]], 1)
        np.add.at(self.misses, self.point[seen[~good]], 1)

    def _back_project(self, i: int) -> None:
        seen = self.by_frame[i]
        seen = seen[np.isfinite(self.z[seen])]
        point = self.point[seen]
        depth = self.z[seen] * np.exp(-self.gain[i])
        # The first depth of a point takes the place of what rays made of it.
        fresh = point[self.triangulated[point]]
        self.total[fresh], self.count[fresh], self.triangulated[fresh] = 0, 0, False
        local = (self.uv[seen] - self.centre) / self.focal[i] * depth[:, None]
        world = (np.concatenate([local, depth[:, None]], 1) - self.translation[i]) @ self.rotation[i]
        # Points far off their first position are mismatches or moving: the first place stands.
        old = self.count[point] > 0
        mean = self.total[point] / np.maximum(self.count[point], 1)[:, None]
        near = ~old | (np.linalg.norm(world - mean, axis=1) < 0.1 * depth)
        np.add.at(self.total, point[near], world[near])
        np.add.at(self.count, point[near], 1)

    def _without_depth(self, point: IntArray) -> NDArray[np.bool_]:
        return (self.count[point] == 0) | self.triangulated[point]

    def _add_rays(self, i: int) -> None:
        seen = self.by_frame[i]
        seen = seen[self._without_depth(self.point[seen])]
        ray = np.concatenate([(self.uv[seen] - self.centre) / self.focal[i], np.ones((len(seen), 1))], 1)
        ray = (ray / np.linalg.norm(ray, axis=1, keepdims=True)) @ self.rotation[i]
        across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
        self.ray_matrix[self.point[seen]] += across
        self.ray_vector[self.point[seen]] += across @ -(self.rotation[i].T @ self.translation[i])

    def _triangulate(self, i: int) -> None:
        """Points for frame `i` where depth gave too few: from the rays of the frames before."""
        point = self.point[self.by_frame[i]]
        point = point[self._without_depth(point)]
        point = point[np.linalg.eigvalsh(self.ray_matrix[point])[:, 0] > _LEAST_RAY_EIGENVALUE]
        solved = np.linalg.solve(self.ray_matrix[point], self.ray_vector[point][:, :, None])
        self.total[point] = solved[:, :, 0]
        self.count[point], self.triangulated[point] = 1, True

    def _judge_gain(self, i: int, agree: IntArray, gain_sigma: float) -> float:
        """Factor of frame i's depth against the points that agree with its camera."""
        used = agree[np.isfinite(self.z[agree]) & (self.count[self.point[agree]] > 0)]
        if len(used) < 8:
            return 0.0
        mean = self.total[self.point[used]] / self.count[self.point[used]][:, None]
        seen = (mean @ self.rotation[i].T + self.translation[i])[:, 2]
        used, seen = used[seen > 0], seen[seen > 0]
        off = np.log(self.z[used]) - np.log(seen)
        doubt = 1.25 * MAD_TO_SIGMA * np.median(np.abs(off - np.median(off))) / len(used) ** 0.5
        return float(np.median(off)) * gain_sigma**2 / (gain_sigma**2 + doubt**2)

    def result(self) -> tuple[State, NDArray[np.bool_]]:
        """As `place_incrementally`."""
        self.count[self.misses > self.hits + 1] = 0
        translation, total = self.translation, self.total
        if self.gain_sigma is not None:
            # The frame to begin with need not be the one whose depth is right.
            usual = float(np.median(self.gain[self.placed]))
            self.gain[self.placed] -= usual
            translation, total = translation * np.exp(usual), total * np.exp(usual)
        points = total / np.where(self.count > 0, self.count, np.nan)[:, None]
        state = replace(
            state_at_origin(self.problem, torch.as_tensor(np.log(self.focal))),
            rotation=torch.as_tensor(self.rotation),
            translation=torch.as_tensor(translation),
            log_gain=None if self.gain_sigma is None else torch.as_tensor(self.gain),
            points=torch.as_tensor(points),
        )
        return state, self.placed


def _window_prior(config: BundleConfig, frames: int, given: FloatArray | None) -> FocalPrior:
    if given is None:
        return focal_prior("constant", frames, config)
    return focal_prior("given", frames, config, given=torch.as_tensor(given, dtype=torch.float64))


def choose_start(
    problem_of,
    windows: list[IntArray],
    long_side: float,
    config: BundleConfig,
    given: FloatArray | None = None,
    noise: DepthNoise | None = None,
    expected: FloatArray | None = None,
) -> tuple[int, float]:
    """Frame and log focal to start from: the window whose best hypothesis pins the focal most tightly.

    Args:
        problem_of: frames -> Problem of that window.
        windows: keyframe numbers of each window.
        given: (K,) log focal of every keyframe where the lens is known: then the only hypothesis.
        noise: of the depth; None: its frames all have one unit.
        expected: (K,) log focal that is expected of every keyframe: one hypothesis more.
    Returns:
        (start keyframe number, log focal there).
    """
    found: list[tuple[_Window, int]] = []
    for window in windows:
        problem = problem_of(window)
        if len(problem.frame) < 60:
            continue
        middle = len(window) // 2
        hypotheses: list[float | FloatArray] = (
            [float(np.log(factor * long_side)) for factor in _FOCAL_HYPOTHESES[problem.lens.model]]
            if given is None
            else [given[window]]
        )
        if expected is not None and given is None:
            hypotheses.append(float(expected[window[middle]]))
        prior = _window_prior(config, len(window), None if given is None else given[window])
        one = _compete(problem, hypotheses, prior, config, noise)
        if one is None:
            continue
        log.debug("focal window %s: %s", window[:1], one)
        # A window that fits badly holds motion of its own, however tightly it seems to pin the focal.
        found.append((one, int(window[middle])))
    if not found:
        raise ClipRejection("no_reconstruction", "no window of the clip gave a consistent set of cameras")
    most = max(one.held for one, _ in found)
    still = [(one, number) for one, number in found if one.held >= most - _LESS_HELD]
    best, number = min(still, key=_score)
    other, elsewhere = min(found, key=_score)
    if best.sigma > _LOOSER * other.sigma:
        best, number = other, elsewhere
    return number, best.log_focal


@dataclass(frozen=True)
class _Window:
    """What a window says of the focal length.

    Attributes:
        cost: per observation. sigma, log_focal: of the focal length in its middle.
        held: share of the picture that agrees with its cameras on both sides of a frame, usually.
    """

    cost: float
    sigma: float
    log_focal: float
    held: float


def _score(found: tuple[_Window, int]) -> float:
    """Least where the focal length is pinned tightly, and the window fits."""
    return found[0].sigma * found[0].cost ** 2


def _compete(
    problem: Problem,
    hypotheses: list[float | FloatArray],
    prior: FocalPrior,
    config: BundleConfig,
    noise: DepthNoise | None,
) -> _Window | None:
    """The hypothesis of log focal that fits a window best; None if none places most of the window."""
    middle = problem.num_frames // 2
    gain = None if noise is None else noise.gain_prior(problem.num_frames)
    questions, starts = [], []
    for log_focal in hypotheses:
        state, placed = place_incrementally(
            problem,
            config,
            start=middle,
            log_focal=log_focal,
            focal_step_sigma=0.02 if np.ndim(log_focal) == 0 else KNOWN_LENS_SIGMA,
            gain_sigma=None if noise is None else noise.gain_sigma,
            across_gaps=False,
        )
        if placed.sum() < max(3, 0.6 * problem.num_frames):
            continue
        used, used_state = keep_known(problem, state, placed)
        if len(used.frame) < 60:
            continue
        effort = Effort(max_iterations=8, tolerance=0.001)
        starts.append((state, placed))
        questions.append(
            Question(problem=used, state=used_state, prior=prior, config=config, effort=effort, gain=gain)
        )
    candidates = [
        (solution.cost / len(question.problem.frame), question.problem, solution.state, start)
        for question, solution, start in zip(questions, solve_bundles(questions), starts, strict=True)
        if not isinstance(solution, FloatingPointError)
    ]
    if not candidates:
        return None
    cost, used, state, (first, placed) = min(candidates, key=lambda c: c[0])
    try:
        solution = solve_bundle(
            used,
            state,
            prior,
            config,
            effort=Effort(max_iterations=6, tolerance=0.0001),
            want_covariance=True,
            gain=gain,
        )
    except FloatingPointError:
        return None
    assert solution.covariance is not None
    sigma = float(solution.covariance[middle, 6, 6].clamp_min(0).sqrt())
    known = known_points(problem, first, placed)
    held = shares_by_frame(problem, first, solution.state, known, reach=_HELD_KEYFRAMES).held
    usual = float(np.nanmedian(held)) if np.isfinite(held).any() else 0.0
    return _Window(cost, sigma, float(solution.state.log_focal[middle]), usual)


def keyframe_windows(measured: ImageMeasurements, length: int = 12, count: int = 4) -> list[IntArray]:
    """Runs of neighbouring keyframes, spread over the clip, to try focal hypotheses on."""
    total = len(measured.keyframes)
    length = min(length, total)
    starts = np.unique(np.linspace(0, total - length, count).round().astype(int))
    return [np.arange(s, s + length) for s in starts]
