"""The keyframes of a clip as one problem: their matches, links and tracks, and the bundle that they make."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.robust import MAD_TO_SIGMA
from ..geometry.base import DepthMaps
from ..sources.clip import ClipRejection
from ..tracks.descriptors import descriptor_tracks, match_keyframes
from ..tracks.records import MATCHED_GAPS, ImageMeasurements, Tracks, TracksConfig, join_tracks
from .bundle.lens import NEAR_PINHOLE, Lens, LensModel
from .bundle.priors import ExpectedFocal, FocalPrior, focal_prior
from .bundle.problem import Problem, Solution, State
from .bundle.solve import Effort, solve_bundle
from .config import BundleConfig
from .depth_noise import DepthNoise, count_patches, first_noise, measured_noise, sample_depth
from .incremental import choose_start, keyframe_windows, place_incrementally
from .loops import MIN_LOOP_MATCHES, dense_links, propose_relocalisations
from .observations import (
    build_problem,
    count_depth,
    drop_observations,
    stretched,
    subset_frames,
    thin_observations,
)
from .records import KNOWN_LENS_SIGMA, KnownLens, StartCameras
from .triangulation import (
    back_project,
    forget,
    keep_shared,
    moving_together,
    triangulate_known,
    without_moving,
)

log = logging.getLogger(__name__)

_FOCAL_DOUBT_LOG = 0.05
"""A window's focal that is further than this from the given one is looked into."""
_LEAST_OBSERVATIONS = 50
"""Track points, and those of them with valid depth, with which a bundle begins."""
_FREE_TERMS: dict[LensModel, dict[str, float]] = {
    "near_pinhole": {},
    "radial": {"principal_point_sigma": 0.1, "radial_sigma": 0.3, "second_radial_sigma": 0.3},
    "fisheye": {"principal_point_sigma": 0.05, "radial_sigma": 0.05, "second_radial_sigma": 0.02},
}
"""Priors of lenses that are not near a pinhole. Fisheyes are equidistant to a few per cent at their border."""
_OFF_CENTRE_SIGMA = 0.1
"""Of a picture that was cropped, in diagonals: by a tenth of its width and height is one standard deviation."""
SETTLED = 3e-4
"""Decrease of the cost in a step, as a fraction, below which keyframes are at their optimum."""
_ROUGH = 3e-3
"""The same where a bundle of more goes on from them: its cameras end within 3 % of a standard deviation of those that
it comes to from the optimum."""
_GOLDEN_RATIO = 0.6180339887498949
"""Fractions of its multiples are spread evenly: any share of them is an even share of the tracks."""


@dataclass(frozen=True, kw_only=True)
class SolverInput:
    """What is known of a clip before its cameras are solved for.

    Attributes:
        measured: tracks and descriptors.
        depth: z-depth per frame, any unit; None where there is none, which only given poses make up for.
        depth_sigma_log: relative depth error that the source declares.
        tracks_config, config: of matching and of the bundle.
        start: approximate cameras to begin with, instead of trying focal lengths and going from frame to frame.
        lens: intrinsics to hold, which come back unchanged, with the focal model `given`; or to expect.
        depths_per_frame: independent depth errors in a frame, where depth errs alike over parts of the image; None if
            every pixel errs on its own.
        pixel_aspect: width over height of a stored pixel, as the container says; ties fy to fx.
    """

    measured: ImageMeasurements
    depth: DepthMaps | None
    depth_sigma_log: float
    tracks_config: TracksConfig
    config: BundleConfig
    start: StartCameras | None = None
    lens: KnownLens | None = None
    depths_per_frame: float | None = None
    pixel_aspect: float = 1.0

    @property
    def held_lens(self) -> KnownLens | None:
        """The lens if it is held."""
        return self.lens if self.lens is not None and self.lens.held else None

    def in_square_pixels(self) -> tuple[SolverInput, float]:
        """The same in square pixels as high as the stored ones, and the aspect of those.

        Raises:
            ClipRejection: `intrinsics_aspect_varies`.
        """
        aspect, config = self.pixel_aspect, self.config
        if self.held_lens is not None:
            # What the source says of its lens goes before what the container says of its pixels.
            aspect = self.held_lens.pixel_aspect
            aspect = aspect if abs(aspect - 1) > 1e-4 else 1.0
            config = config.model_copy(update={"principal_point_sigma": 0.0, "aspect_sigma": 0.0})
        if aspect == 1.0:
            return replace(self, config=config, pixel_aspect=1.0), aspect
        square = replace(
            self,
            measured=stretched(self.measured, aspect),
            config=config,
            start=None if self.start is None else self.start.stretched(aspect),
            lens=None if self.lens is None else self.lens.stretched(aspect),
            pixel_aspect=1.0,
        )
        return square, aspect

    def expected_focal(self) -> ExpectedFocal | None:
        """What is expected of the focal length: the source's word, wrong in all frames alike, or a network's rays."""
        frames = self.measured.flow.num_frames
        if self.lens is not None and not self.lens.held:
            return ExpectedFocal(torch.as_tensor(np.log(self.lens.focal_px[:, 1])), 1 / frames)
        if self.start is not None:
            return ExpectedFocal(torch.as_tensor(np.log(self.start.at(np.arange(frames))[1])))
        return None


@dataclass(frozen=True, kw_only=True)
class AskedFocal:
    """What images and depth, or a network, say of a held lens by themselves; NaN where nothing was asked or nobody
    answered.

    Attributes:
        log: log of the focal length that is asked for over the given one.
        sigma: its spread along the clip; NaN where a part of the clip confirmed the given one.
        cost: of the keyframes with that focal length, per observation; NaN likewise.
    """

    log: float = float("nan")
    sigma: float = float("nan")
    cost: float = float("nan")


class KeyframeProblem:
    """Matches, links and tracks of the keyframes, and their bundle problem, made anew as matches are added.

    From here on the principal point of a held lens is the image centre, and the focal length that of the rows.

    Attributes:
        given: what is known of the clip, in square pixels; depth: its depth.
        expected: what is expected of its focal length.
        coarse: settings of the bundle before cameras are settled.
        log_focal: (F,) of a held lens; None where the lens is free.
        lens: how the lens bends, and with which terms to begin.
        matches: of keyframe pairs (lower number first): (m, 2) numbers of features.
        tracks, z: observations of all frames, and the depth of each (NaN where none).
        problem: those of the keyframes alone.
        noise: how the given depth errs, as measured; None where that is not asked (networks).
        depth_sigma_log, depths_per_frame: error of a depth, and independent ones per frame; None: all of them are.
    """

    def __init__(self, given: SolverInput) -> None:
        flow = given.measured.flow
        if given.depth is None:
            raise ValueError("without depth, cameras can be solved from given poses only")
        self.given, self.depth = given, given.depth
        self.expected = given.expected_focal()
        self.coarse = given.config.model_copy(update={"robust_scale": 2 * given.config.robust_scale})
        self._configs = given.config, self.coarse
        self.depths_per_frame = given.depths_per_frame
        self.depth_sigma_log = given.depth_sigma_log
        self.keyframes = given.measured.keyframes
        lens = given.held_lens
        self.log_focal = None if lens is None else np.log(lens.focal_px[:, 1])
        self._off_centre = (
            None if lens is None else lens.principal_point_px - np.array([flow.width / 2, flow.height / 2])
        )
        self.lens = NEAR_PINHOLE
        self._links: Tracks | None = None
        number = len(self.keyframes)
        self.matches = self._match((a, a + gap) for gap in MATCHED_GAPS for a in range(number - gap))
        self._observe()
        if len(self.z) < _LEAST_OBSERVATIONS:  # whatever their depth
            raise ClipRejection(
                "no_reconstruction",
                f"hardly anything in the pictures can be tracked: {len(self.z)} track points",
            )
        if np.isfinite(self.z).sum() < _LEAST_OBSERVATIONS:
            raise ClipRejection(
                "no_depth_on_tracks",
                f"{np.isfinite(self.z).sum()} of {len(self.z)} track points have valid depth",
            )
        # What errs alike in a frame of a network is counted (`depths_per_frame`); of given depth it is measured.
        self.noise: DepthNoise | None = None
        if self.depths_per_frame is None:
            self.noise = first_noise(self.tracks, self.z, given.depth_sigma_log)
            self.depth_sigma_log = self.noise.observation
        log.debug("depth: %s", self.noise)
        self.rebuild_problem()
        self._windows = keyframe_windows(given.measured)
        self._seed: tuple[int, float] | None = None

    @property
    def size_px(self) -> tuple[float, float]:
        """Width and height."""
        return self.given.measured.flow.width, self.given.measured.flow.height

    def stored_px(self, problem: Problem) -> FloatArray:
        """(N, 2) where the observations of `whole_problem` lie in the picture, whose principal point need not be its
        middle."""
        uv_px = problem.uv_px.numpy()
        return uv_px if self._off_centre is None else uv_px + self._off_centre[problem.frame.numpy()]

    @property
    def key_log_focal(self) -> FloatArray | None:
        """(K,) log focal of the keyframes with a held lens."""
        return None if self.log_focal is None else self.log_focal[self.keyframes]

    @property
    def gain_sigma(self) -> float | None:
        """By how much the depth of whole frames errs; None: frames have one unit."""
        return None if self.noise is None else self.noise.gain_sigma

    @property
    def rough(self) -> float:
        """Tolerance of a bundle of the keyframes that another one goes on from; where the error of depth is measured by
        what such a bundle leaves, it goes to its optimum."""
        return _ROUGH if self.noise is None and self.log_focal is None else SETTLED

    def _match(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], IntArray]:
        return match_keyframes(self.given.measured, pairs, self.given.tracks_config)

    def _observe(self) -> None:
        measured = self.given.measured
        flow = measured.flow
        described = descriptor_tracks(
            measured.features, self.matches, num_frames=flow.num_frames, height=flow.height, width=flow.width
        )
        tracks = join_tracks(flow, described)
        if self._links is not None:
            tracks = join_tracks(tracks, self._links)
        z = sample_depth(tracks, self.depth)
        if self._off_centre is not None:
            tracks = replace(tracks, xy_px=tracks.xy_px - self._off_centre[tracks.frame])
        self.tracks, self.z = thin_observations(tracks, z, self.keyframes, self.given.config)

    def rebuild_problem(self) -> None:
        """The problem from the tracks that there are, with the error of depth that is known now."""
        tracks, z = subset_frames(self.tracks, self.z, self.keyframes)
        self.problem = self._problem_of(tracks, z)

    def _problem_of(self, tracks: Tracks, z: FloatArray) -> Problem:
        return build_problem(
            tracks, z, self.given.config, depth_sigma_log=self.depth_sigma_log, lens=self.lens
        )

    def whole_problem(self) -> Problem:
        """Of all frames."""
        return self._problem_of(self.tracks, self.z)

    def take_lens(self, lens: Lens) -> None:
        """From here on the lens bends like that one, about as much; its terms are free."""
        self.lens = lens
        free = dict(_FREE_TERMS[lens.model])
        if lens.off_centre:
            free["principal_point_sigma"] = _OFF_CENTRE_SIGMA
        if self._configs[0].principal_point_sigma == 0:  # the recipe holds it
            free.pop("principal_point_sigma", None)
        config, coarse = (c.model_copy(update=free) for c in self._configs)
        self.given, self.coarse = replace(self.given, config=config), coarse
        self.rebuild_problem()

    def _window_problem(self, numbers: IntArray) -> Problem:
        # A third of the tracks is plenty to tell focal hypotheses apart.
        tracks, z = subset_frames(self.tracks, self.z, self.keyframes[numbers])
        tracks, z = drop_observations(tracks, z, (tracks.track * _GOLDEN_RATIO) % 1.0 < 0.4)
        return self._problem_of(tracks, z)

    def add_matches(self, pairs: Iterable[tuple[int, int]]) -> int:
        """Match pairs of keyframes that are not neighbours; returns how many hold, which are kept."""
        found = {pair: m for pair, m in self._match(pairs).items() if len(m) >= MIN_LOOP_MATCHES}
        self.matches |= found
        return len(found)

    def rebuild(self) -> None:
        """Tracks and problem from the matches and links that there are now."""
        self._observe()
        self.rebuild_problem()

    def cross_weak_links(self, weak: IntArray, state: State, placed: NDArray[np.bool_]) -> bool:
        """Ways across where blur or a bare wall breaks the chain of neighbours; returns whether there are any.

        The same place seen before or after, and the alignment of whole images.
        """
        pairs = [pair for pair in propose_relocalisations(placed, weak) if pair not in self.matches]
        count = self.add_matches(pairs)
        focal = np.exp(state.log_focal.cpu().numpy())
        self._links = dense_links(self.given.measured, self.depth, weak, focal)
        dense = 0 if self._links is None else self._links.num_tracks
        log.debug("%d weak links: %d of %d far matches, %d dense points", len(weak), count, len(pairs), dense)
        if not count and self._links is None:
            return False
        self.rebuild()
        return True

    def choose_seed(self) -> None:
        """Find the keyframe and the focal length to begin with.

        Raises:
            ClipRejection: `no_reconstruction`.
        """
        expected = None if self.expected is None else self.expected.log_focal[self.keyframes].numpy()
        self._seed = choose_start(
            self._window_problem,
            self._windows,
            max(self.size_px),
            self.coarse,
            self.key_log_focal,
            self.noise,
            expected,
        )

    def place(self) -> tuple[State, NDArray[np.bool_]]:
        """First cameras of the keyframes, from the start that is given or else from the seed; and which have one."""
        known = self.key_log_focal
        if self.given.start is None:
            assert self._seed is not None, "choose_seed comes before"
            number, log_focal = self._seed
            return self._place_from(number, log_focal if known is None else known)
        state, placed = self.given.start.state(self.problem, self.keyframes)
        if known is not None:
            state = replace(state, log_focal=torch.as_tensor(known))
        return state, placed

    def _place_from(self, number: int, log_focal: float | FloatArray) -> tuple[State, NDArray[np.bool_]]:
        return place_incrementally(
            self.problem,
            self.coarse,
            start=number,
            log_focal=log_focal,
            focal_step_sigma=0.05 if np.ndim(log_focal) == 0 else KNOWN_LENS_SIGMA,
            gain_sigma=self.gain_sigma,
        )

    def bundle(
        self,
        state: State,
        placed: NDArray[np.bool_],
        iterations: int,
        *,
        free_lens: bool = False,
        tolerance: float = SETTLED,
    ) -> tuple[State, Problem, Solution]:
        """Bundle of the keyframes that have a camera.

        Args:
            state, placed: where to begin.
            iterations, tolerance: it ends after so many, or where one lowers the cost by less than this fraction.
            free_lens: the focal length is free though the lens is held.
        Returns:
            The new state of all keyframes, the problem that was solved, and its solution.
        """
        points = torch.where(torch.isfinite(state.points), state.points, back_project(self.problem, state))
        # Tracks without depth still tie frames together.
        points = torch.where(
            torch.isfinite(points),
            points,
            triangulate_known(self.problem, state, placed, ~torch.isfinite(points).all(1)),
        )
        state = replace(state, points=points)
        moving = self.moving(self.problem, state, placed)
        state = forget(without_moving(self.problem, state, placed), moving)
        used, used_state = keep_shared(self.problem, state, placed)
        used = count_patches(count_depth(used, self.depths_per_frame), self.noise)
        gain = None if self.noise is None else self.noise.gain_prior(used.num_frames)
        if gain is None:
            used_state = replace(used_state, log_gain=None)
        solution = solve_bundle(
            used,
            used_state,
            self._focal_prior(used.num_frames, free=free_lens or self.log_focal is None),
            self.coarse,
            effort=Effort(max_iterations=iterations, tolerance=tolerance, band_frames=256),
            gain=gain,
        )
        new = solution.state
        return replace(new, points=back_project(self.problem, new)), used, solution

    def moving(self, problem: Problem, state: State, placed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(P,) tracks that move, where cameras to begin with were given that tell it."""
        if self.given.start is None:
            return np.zeros(problem.num_points, bool)
        return moving_together(problem, state, placed)

    def _focal_prior(self, num_frames: int, *, free: bool) -> FocalPrior:
        if not free:
            return focal_prior("given", num_frames, self.coarse, given=torch.as_tensor(self.key_log_focal))
        gap = torch.as_tensor(np.diff(self.keyframes), dtype=torch.float64)
        prior = focal_prior("smooth", num_frames, self.coarse, frame_gap=gap)
        return prior if self.expected is None else replace(prior, expected=self.expected.at(self.keyframes))

    def ask_focal(self) -> AskedFocal:
        """Which focal length is asked for where the lens is held, as if nothing were known of it: by the network that
        the cameras to begin with are from, or by images and depth."""
        if self.given.start is not None:
            return AskedFocal(log=self.given.start.focal_asked_log)
        known = self.key_log_focal
        if known is None or self._seed is None:
            return AskedFocal()
        try:
            window = [numbers for numbers in self._windows if numbers[len(numbers) // 2] == self._seed[0]]
            number, asked = choose_start(
                self._window_problem, window, max(self.size_px), self.coarse, noise=self.noise
            )
        except ClipRejection:
            return AskedFocal()  # nothing confirms the lens
        if abs(asked - known[number]) <= _FOCAL_DOUBT_LOG:
            return AskedFocal(log=float(asked - known[number]))
        # One window is not enough to doubt the source: ask the whole clip.
        state, placed = self._place_from(number, asked)
        try:
            state, _, solution = self.bundle(state, placed, 20, free_lens=True)
        except (ClipRejection, FloatingPointError):
            return AskedFocal()
        off = (state.log_focal.cpu().numpy() - known)[placed]
        middle = float(np.median(off))
        spread = MAD_TO_SIGMA * float(np.median(np.abs(off - middle)))
        return AskedFocal(log=middle, sigma=spread, cost=solution.data_cost / len(solution.weight))

    def judge_depth(self, problem: Problem, solution: Solution) -> None:
        """How much the depth errs, by what a bundle left of it."""
        if self.noise is None:
            self.depth_sigma_log = _measured_depth_sigma(solution, self.depth_sigma_log)
            return
        self.noise = measured_noise(problem, solution, self.noise)
        self.depth_sigma_log = self.noise.observation
        log.debug("depth: %s", self.noise)


def _measured_depth_sigma(solution: Solution, declared: float) -> float:
    """Relative depth error that the residuals show: never above the declared one, never below 0.4 %.

    A declared error is a bound for the worst sensor of a kind. Depth that fits the images better than that deserves
    its weight: it is what separates a longer lens from a nearer camera.
    """
    residual = solution.residual_log_depth
    residual = residual[(residual != 0) & (solution.weight > 0.3)].abs()
    if len(residual) < 100:
        return declared
    return float(np.clip(MAD_TO_SIGMA * float(residual.median()), min(0.004, declared), declared))
