"""From image measurements and depth to a camera for every frame: initialisation, loops, focal model, infill.

The order is coarse to fine. Keyframes first: several focal hypotheses compete on short windows; the best window
seeds a sequential reconstruction in both directions; a bundle over keyframes follows; loop closures are proposed by
view overlap, verified by descriptors, and the bundle runs again. Then every frame between is resected with its own
focal and a bundle over all frames finishes. Everything works in the unit of the given depth.
"""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ..geometry.base import DepthMaps
from ..sources.clip import ClipRejection
from ..tracks.descriptors import descriptor_tracks, match_features
from ..tracks.records import (
    ImageMeasurements,
    Tracks,
    TracksConfig,
    join_tracks,
)
from .bundle.priors import focal_prior
from .bundle.problem import Problem, Solution, State
from .bundle.solve import solve_bundle
from .config import BundleConfig
from .depth_noise import DepthNoise, count_patches, first_noise, measured_noise, sample_depth
from .focal_model import expected_focal
from .incremental import choose_start, keyframe_windows, place_incrementally
from .loops import MIN_LOOP_MATCHES, dense_links, propose_loops, propose_relocations, weak_links
from .observations import (
    build_problem,
    count_depth,
    drop_observations,
    median_depth_by_frame,
    stretched,
    subset_frames,
    thin_observations,
)
from .records import KNOWN_LENS_SIGMA, CameraSolution, KnownLens, StartCameras, in_stored_pixels, with_lens
from .registration import register_all_frames
from .triangulation import back_project, keep_known, parallax, triangulate_known, without_moving

log = logging.getLogger(__name__)
_FOCAL_DOUBT_LOG = 0.05  # a window's focal that is further than this from the given one is looked into
_DEPTH_MATTERS_RAD = 0.0175
"""Angle under which tracks are seen, by the cameras that the bundle starts from, below which every depth counts: with
so little parallax nothing else tells a zoom from a camera that comes closer."""


def solve_cameras(
    measured: ImageMeasurements,
    depth: DepthMaps,
    *,
    depth_sigma_log: float,
    tracks_config: TracksConfig,
    config: BundleConfig,
    pixel_aspect: float = 1.0,
    start: StartCameras | None = None,
    lens: KnownLens | None = None,
    depths_per_frame: float | None = None,
    with_evidence: bool = False,
) -> CameraSolution:
    """Cameras of every frame from image measurements and depth; the lens is unknown unless `lens` says it.

    Args:
        measured: tracks and descriptors.
        depth: z-depth per frame, any unit.
        depth_sigma_log: relative depth error that the source declares.
        pixel_aspect: width over height of a stored pixel; ties fy to fx.
        start: approximate cameras to begin with, instead of trying focal lengths and going from frame to frame.
        lens: intrinsics to hold, which come back unchanged, with the focal model `given`; or to expect.
        depths_per_frame: independent depth errors in a frame, where depth errs alike over parts of the image; None if
            every pixel errs on its own.
        with_evidence: keep the observations in the solution.
    Raises:
        ClipRejection: `no_depth_on_tracks`, `no_reconstruction`, `intrinsics_aspect_varies`.
    """
    if lens is not None and lens.held:
        # What the source says of its lens goes before what the container says of its pixels.
        pixel_aspect = lens.pixel_aspect if abs(lens.pixel_aspect - 1) > 1e-4 else 1.0
        config = config.model_copy(update={"principal_point_sigma": 0.0, "aspect_sigma": 0.0})
    if pixel_aspect != 1.0:
        # Solve in square pixels as high as the stored ones, then give back stored pixels.
        square = solve_cameras(
            stretched(measured, pixel_aspect),
            depth,
            depth_sigma_log=depth_sigma_log,
            tracks_config=tracks_config,
            config=config,
            start=None if start is None else start.stretched(pixel_aspect),
            lens=None if lens is None else lens.stretched(pixel_aspect),
            depths_per_frame=depths_per_frame,
            with_evidence=with_evidence,
        )
        return with_lens(in_stored_pixels(square, pixel_aspect), lens)
    flow = measured.flow
    height, width, frames = flow.height, flow.width, flow.num_frames
    keyframes = measured.keyframes
    expected = expected_focal(start, lens, frames)
    lens = lens if lens is not None and lens.held else None
    diagonal = float(np.hypot(height, width))
    matches = {
        (a, a + gap): match_features(
            measured.features[a], measured.features[a + gap], tracks_config, diagonal_px=diagonal
        )
        for gap in (1, 2, 4)
        for a in range(len(keyframes) - gap)
    }

    links: Tracks | None = None
    # From here on the principal point of a known lens is the image centre, and the focal that of the rows.
    off_centre = None if lens is None else lens.principal_point_px - np.array([width / 2, height / 2])
    given = None if lens is None else np.log(lens.focal_px[:, 1])
    given_keys = None if given is None else given[keyframes]

    def all_tracks() -> tuple[Tracks, FloatArray]:
        described = descriptor_tracks(
            measured.features, matches, num_frames=frames, height=height, width=width
        )
        joined = join_tracks(flow, described)
        if links is not None:
            joined = join_tracks(joined, links)
        found_z = sample_depth(joined, depth)
        if off_centre is not None:
            joined = replace(joined, xy_px=joined.xy_px - off_centre[joined.frame])
        return thin_observations(joined, found_z, keyframes, config)

    tracks, z = all_tracks()
    with_depth = float(np.isfinite(z).mean()) if len(z) else 0.0
    if np.isfinite(z).sum() < 50:
        raise ClipRejection(
            "no_depth_on_tracks", f"{np.isfinite(z).sum()} of {len(z)} track points have valid depth"
        )

    # What errs alike in a frame of a network is counted (`depths_per_frame`); of given depth it is measured.
    noise = first_noise(tracks, z, depth_sigma_log) if depths_per_frame is None else None
    log.debug("depth: %s", noise)
    if noise is not None:
        depth_sigma_log = noise.observation

    def problem_of(numbers: IntArray) -> Problem:
        sub, sub_z = subset_frames(tracks, z, keyframes[numbers])
        return build_problem(sub, sub_z, config, depth_sigma_log=depth_sigma_log)

    def window_problem(numbers: IntArray) -> Problem:
        # A third of the tracks is plenty to tell focal hypotheses apart.
        sub, sub_z = subset_frames(tracks, z, keyframes[numbers])
        sub, sub_z = drop_observations(sub, sub_z, (sub.track * 0.6180339887498949) % 1.0 < 0.4)
        return build_problem(sub, sub_z, config, depth_sigma_log=depth_sigma_log)

    coarse = config.model_copy(update={"robust_scale": 2 * config.robust_scale})
    key_problem = problem_of(np.arange(len(keyframes)))
    windows = keyframe_windows(measured)
    if start is None:
        first_frame, log_focal = choose_start(
            window_problem,
            windows,
            max(height, width),
            coarse,
            given_keys,
            noise,
            None if expected is None else expected.log_focal[keyframes].numpy(),
        )

    def place() -> tuple[State, NDArray[np.bool_]]:
        if start is None:
            return place_incrementally(
                key_problem,
                coarse,
                start=first_frame,
                log_focal=log_focal if given_keys is None else given_keys,
                focal_step_sigma=0.05 if given_keys is None else KNOWN_LENS_SIGMA,
                gain_sigma=None if noise is None else noise.gain_sigma,
            )
        state, placed = start.state(key_problem, keyframes)
        if given_keys is not None:
            state = replace(state, log_focal=torch.as_tensor(given_keys))
        return state, placed

    state, placed = place()
    weak = weak_links(key_problem, state, placed)
    if len(weak):
        # Blur or a bare wall breaks the chain of neighbours. Two ways across: the same place seen before or after,
        # and the alignment of whole images.
        pairs = [pair for pair in propose_relocations(placed, weak) if pair not in matches]
        found = {
            (a, b): match_features(
                measured.features[a], measured.features[b], tracks_config, diagonal_px=diagonal
            )
            for a, b in pairs
        }
        found = {pair: match for pair, match in found.items() if len(match) >= MIN_LOOP_MATCHES}
        links = dense_links(measured, depth, weak, np.exp(state.log_focal.cpu().numpy()))
        log.debug(
            "%d weak links: %d of %d far matches, %d dense points",
            len(weak),
            len(found),
            len(pairs),
            0 if links is None else links.num_tracks,
        )
        if found or links is not None:
            matches |= found
            tracks, z = all_tracks()
            key_problem = problem_of(np.arange(len(keyframes)))
            state, placed = place()
    log.debug(
        "sequential: %d of %d keyframes placed, %.0f%% depth", placed.sum(), len(placed), 100 * with_depth
    )
    if start is not None and depths_per_frame is not None:
        seen = torch.isfinite(state.points).all(1)[key_problem.point]
        if parallax(key_problem, state, seen) < _DEPTH_MATTERS_RAD:
            depths_per_frame = None
    gap = torch.as_tensor(np.diff(keyframes), dtype=torch.float64)

    def key_bundle(
        state: State, placed: NDArray[np.bool_], iterations: int, *, free_lens: bool = given_keys is None
    ) -> tuple[State, Problem, Solution]:
        points = torch.where(torch.isfinite(state.points), state.points, back_project(key_problem, state))
        # Tracks without depth still tie frames together.
        points = torch.where(
            torch.isfinite(points),
            points,
            triangulate_known(key_problem, state, placed, ~torch.isfinite(points).all(1)),
        )
        state = replace(state, points=points)
        state = without_moving(key_problem, state, placed)
        used, used_state = keep_known(key_problem, state, placed)
        used = count_patches(count_depth(used, depths_per_frame), noise)
        gain = None if noise is None else noise.gain_prior(used.num_frames)
        if gain is None:
            used_state = replace(used_state, log_gain=None)
        if free_lens or given_keys is None:
            prior = focal_prior("smooth", used.num_frames, coarse, frame_gap=gap)
            if expected is not None:
                prior = replace(prior, expected=expected.at(keyframes))
        else:
            prior = focal_prior("given", used.num_frames, coarse, given=torch.as_tensor(given_keys))
        solution = solve_bundle(
            used,
            used_state,
            prior,
            coarse,
            max_iterations=iterations,
            tolerance=3e-4,
            band_frames=256,
            gain=gain,
        )
        new = solution.state
        return replace(new, points=back_project(key_problem, new)), used, solution

    def asked_focal() -> tuple[float, float, float]:
        """Log of the focal length that is asked for over the given one, its spread, and the cost per observation."""
        nothing = float("nan"), float("nan"), float("nan")
        if given_keys is None or start is not None:
            return nothing
        try:
            window = [numbers for numbers in windows if numbers[len(numbers) // 2] == first_frame]
            at, asked = choose_start(window_problem, window, max(height, width), coarse, noise=noise)
        except ClipRejection:
            return nothing  # nothing confirms the lens
        if abs(asked - given_keys[at]) <= _FOCAL_DOUBT_LOG:
            return float(asked - given_keys[at]), float("nan"), float("nan")
        # One window is not enough to doubt the source: ask the whole clip, as if nothing were known.
        free, where = place_incrementally(
            key_problem,
            coarse,
            start=at,
            log_focal=asked,
            focal_step_sigma=0.05,
            gain_sigma=None if noise is None else noise.gain_sigma,
        )
        free, _, bundle = key_bundle(free, where, 20, free_lens=True)
        off = (free.log_focal.cpu().numpy() - given_keys)[where]
        middle = float(np.median(off))
        spread = 1.4826 * float(np.median(np.abs(off - middle)))
        return middle, spread, bundle.data_cost / len(bundle.weight)

    focal_asked_log, focal_asked_sigma, asked_cost = asked_focal()

    def judged(problem: Problem, solution: Solution) -> tuple[DepthNoise | None, float]:
        if noise is None:
            return None, _measured_depth_sigma(solution, depth_sigma_log)
        found = measured_noise(problem, solution, noise)
        log.debug("depth: %s", found)
        return found, found.observation

    state, solved_problem, first = key_bundle(state, placed, 20)
    focal_asked_gain = first.data_cost / len(first.weight) / asked_cost
    noise, depth_sigma_log = judged(solved_problem, first)
    key_problem = problem_of(np.arange(len(keyframes)))
    loops = 0
    if tracks_config.max_loops_per_keyframe:
        median_depth = median_depth_by_frame(key_problem)
        for pair in propose_loops(
            state, placed, median_depth, (width, height), set(matches), tracks_config.max_loops_per_keyframe
        ):
            found = match_features(
                measured.features[pair[0]], measured.features[pair[1]], tracks_config, diagonal_px=diagonal
            )
            if len(found) >= MIN_LOOP_MATCHES:
                matches[pair] = found
                loops += 1
        if loops:
            tracks, z = all_tracks()
            key_problem = problem_of(np.arange(len(keyframes)))
            state = replace(state, points=back_project(key_problem, state))
            state, solved_problem, first = key_bundle(state, placed, 15)
            if noise is not None:
                noise, depth_sigma_log = judged(solved_problem, first)
    log.debug("loops: %d", loops)
    solved = with_lens(
        register_all_frames(
            tracks,
            z,
            keyframes,
            state,
            placed,
            depth_sigma_log,
            config,
            loops,
            given,
            expected,
            depths_per_frame,
            noise,
        ),
        lens,
    )
    return replace(
        solved,
        focal_asked_log=focal_asked_log,
        focal_asked_sigma=focal_asked_sigma,
        focal_asked_gain=focal_asked_gain,
        evidence=solved.evidence if with_evidence else None,
    )


def _measured_depth_sigma(solution: Solution, declared: float) -> float:
    """Relative depth error that the residuals show: never above the declared one, never below 0.4 %.

    A declared error is a bound for the worst sensor of a kind. Depth that fits the images better than that deserves
    its weight: it is what separates a longer lens from a nearer camera.
    """
    residual = solution.residual_log_depth
    residual = residual[(residual != 0) & (solution.weight > 0.3)].abs()
    if len(residual) < 100:
        return declared
    return float(np.clip(1.4826 * float(residual.median()), min(0.004, declared), declared))
