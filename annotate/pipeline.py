"""One clip from media to row: the order of the stages, and how every failure becomes a row.

`annotate_clip` is the only way through; the command line, the demo and the tests all take it. A new estimator is added
in `geometry/choose.py`, a new look at the pictures in `frames/watchers.py`; neither is seen here.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..dataset.arrays import U8
from ..dataset.reasons import ReasonCode
from ..dataset.rows import Row
from ..dataset.words import Mode
from .checks.depth import DepthCheck, check_depth
from .checks.given_poses import longest_gap_s
from .checks.pose_readings import find_fault, length_alone_is_wrong, unit_fault
from .checks.posed import Posed, solve_posed
from .frames.base import ClipFrames
from .frames.open import open_clip
from .frames.watchers import FrameWatcher, picture_watchers
from .geometry.base import AnchorFrame, MetricDepth, SequenceGeometryResult
from .geometry.estimators import Estimators, Running
from .geometry.given import SeenByImages
from .given.cameras import GivenCameras, read_given_cameras, read_given_lens
from .networks.checkpoint import STAND_IN
from .place import Place, Shared, tracker_of
from .reporting import counted
from .row import Findings
from .scale.bridge import bridge_to_metres
from .scale.estimate import estimate_scale
from .scale.records import ScaleEstimate
from .sfm.keyframes import SolverInput
from .sfm.records import CameraSolution, KnownLens, StartCameras
from .sfm.solve import solve_cameras
from .sfm.start import verify_keyframes
from .sources.clip import ClipRef, ClipRejection
from .tracks.measure import measure_images
from .tracks.records import ImageMeasurements
from .verdict.agreement import compare
from .verdict.gates import failures, judge, judge_bridge, judge_depth, judge_given
from .verdict.metres import judge_metres
from .verdict.motion import image_motion

if TYPE_CHECKING:
    from .config import AnnotateConfig

log = logging.getLogger(__name__)

_MIN_PLACED = 0.5
"""Share of the keyframes that the network's cameras must place; with fewer the bundle finds its own start, from the
tracks alone."""


def annotate_clip(
    clip: ClipRef,
    config: AnnotateConfig,
    *,
    mode: Mode,
    recipe_hash: str,
    estimators: Estimators | None = None,
    place: Place | None = None,
) -> Row:
    """Annotate one clip; never raises for a bad clip.

    Args:
        clip: what to annotate.
        config: the `annotate` section of the recipe.
        mode: which geometry is given.
        recipe_hash: of the resolved recipe, kept in the row.
        estimators: used instead of those that `config.geometry` names (simulators of networks).
        place: where networks and solvers run; None: as `config.executor` shares this process out.
    Returns:
        The row: accepted, or rejected with reasons. An unexpected exception becomes the reason `internal_error`
        with its traceback in `error`.
    """
    out = Findings(clip=clip, mode=mode, recipe_hash=recipe_hash)
    start = time.perf_counter()
    try:
        estimators = estimators or Estimators.of(config.geometry)
        _Stages(out, config, estimators, place or Shared(config)).run()
    except ClipRejection as rejection:
        out.reasons += _reasons_of(rejection, out.measured, config)
    except _Refused as refused:
        out.reasons += refused.reasons
    except MemoryError:
        raise
    except Exception as error:
        log.exception("clip %s: unexpected error", clip.clip_id)
        out.reasons.append(("internal_error", f"{type(error).__name__}: {error}"))
        out.error = traceback.format_exc()
    out.wall_s["total"] = time.perf_counter() - start
    _refuse_stand_ins(out)
    return out.row()


@dataclass(frozen=True)
class _Stages:
    """The stages of one clip. Each hands on what it finds, and puts it down in `out` for the row.

    A stage that ends the clip raises `ClipRejection`, or `_Refused` where there are several reasons.
    """

    out: Findings
    config: AnnotateConfig
    estimators: Estimators
    place: Place

    def run(self) -> None:
        """All of them, in their order."""
        frames, given = self.open()
        with self.started(frames, given) as running:
            if running.watches:
                measured = self.watch(frames, running)
                found = self.scaled(frames, running, given)
            else:
                # All is given: a clip without scale ends before a frame is decoded.
                found = self.scaled(frames, running, given)
                measured = self.watch(frames, running)
        if not found.geometry.has_depth:
            _refuse(_at_rest(measured, self.config))
        elif found.geometry.depths_per_frame is None:
            found = self.check_depth(found, measured, frames, given)
        else:
            found = self.verified(found, measured, given)
        cameras, posed = self.solved(found, measured, frames, given)
        self.judge(found, measured, frames, given, cameras, posed)

    def open(self) -> tuple[ClipFrames, GivenCameras | None]:
        """Frames, not decoded yet, and the cameras that the source ships; mode `estimate` takes its lens alone."""
        out, clip = self.out, self.out.clip
        with out.stage("open"):
            frames = out.frames = open_clip(clip, self.config.decode)
            if out.mode == "estimate":
                return frames, read_given_lens(clip, frames)
            given = out.given = read_given_cameras(clip, frames)
        if given is None and out.mode == "given_pose":
            raise ClipRejection(
                "given_cameras_missing",
                f"clip {clip.clip_id}: the recipe's mode is given_pose, but the source names neither poses nor"
                " intrinsics",
            )
        return frames, given

    @contextmanager
    def started(self, frames: ClipFrames, given: GivenCameras | None) -> Iterator[Running]:
        """The estimators at work, when it is this clip's turn."""
        out = self.out
        with ExitStack() as held:
            with out.stage("waiting"):
                held.enter_context(self.place.networks())
            with out.stage("geometry"):
                running = self.estimators.start(
                    out.clip,
                    frames,
                    self.config.geometry,
                    poses_suffice=given is not None and given.stand_alone,
                )
            out.provenance = running.provenance
            held.enter_context(running)
            try:
                yield running
            finally:
                out.wall_s["networks_busy"] = running.busy_s

    def watch(self, frames: ClipFrames, running: Running) -> ImageMeasurements:
        """The one pass over the frames: all who look at them do so now. Networks run in a thread of their own: while
        they work on one window, the next is decoded and tracked."""
        out, decode = self.out, self.config.decode
        watchers = picture_watchers(self.config.quality, frames, detect_cuts=decode.detect_cuts)
        with out.stage("tracks"):
            measured = out.measured = measure_images(
                _shown(out.clip, frames, [*watchers, running]),
                height=frames.height,
                width=frames.width,
                config=self.config.tracks,
                keyframes=running.keyframes,
                tracker=tracker_of(self.config),
            )
        out.pictures += [watcher.columns() for watcher in watchers]
        if frames.cuts:
            times = ", ".join(f"{frames.timing.time_s[c]:.2f} s" for c in frames.cuts[:5])
            raise ClipRejection("shot_cut", f"{len(frames.cuts)} cut(s) inside the clip, at {times}")
        return measured

    def scaled(self, frames: ClipFrames, running: Running, given: GivenCameras | None) -> _Scaled:
        """What the estimators say, and what a unit of it is worth."""
        out, lens = self.out, _known_lens(given)
        with out.stage("geometry"):
            geometry = out.geometry = running.sequence.finish()
            anchors = running.metric_depth(geometry, None if lens is None else lens.focal_px)
        with out.stage("scale"):
            scale = out.scale = estimate_scale(
                geometry, anchors, num_frames=len(frames), config=self.config.scale
            )
        if scale.metres_per_unit is not None:
            depth = MetricDepth(geometry.depth, scale.metres_per_unit)
            return _Scaled(geometry, anchors, scale, depth)
        detail = f"{scale.num_frames_used} usable anchor frames of {len(scale.frame)}"
        if self.config.geometry.anchor == "none":
            detail = (
                f"clip {out.clip.clip_id}: nothing says what a unit of the depth is worth: give"
                " depth_units_per_metre in the index (1000 for millimetres), or metric depth by"
                " annotate.geometry.anchor"
            )
        elif self.config.geometry.anchor == "given" and out.clip.given.anchor_depth_pattern is None:
            detail = (
                f"clip {out.clip.clip_id}: the source names no metric depth (annotate.geometry.anchor: given); give"
                " anchor_depth_pattern and anchor_units_per_metre in the index, or take another anchor"
            )
        raise _Refused([(reason, detail) for reason in scale.reasons])

    def check_depth(
        self,
        found: _Scaled,
        measured: ImageMeasurements,
        frames: ClipFrames,
        given: GivenCameras | None,
    ) -> _Scaled:
        """Given depth may belong to something else than the images, or come from a camera beside theirs."""
        out, gates = self.out, self.config.gates
        look = partial(
            check_depth,
            measured,
            tracks_config=self.config.tracks,
            kind=out.clip.given.depth_kind,
            lens=_known_lens(given),
            pixel_aspect=frames.pixel_aspect,
        )
        with out.stage("depth_check"):
            check = look(found.depth)
            asked = out.clip.given.depth_view is None and out.clip.given.depth_kind != "ray_distance"
            if (
                asked
                and check.view is not None
                and check.view.clear
                and not failures(judge_depth(check, gates))
            ):
                laid = found.seen_by_images(check.view.view)
                again = look(laid.depth)
                if again.fits_better_than(check) and not failures(judge_depth(again, gates)):
                    out.metrics["depth_view_found"] = check.view.view
                    found, check = laid, replace(again, laid_by=check.view)
        out.depth_check = check
        out.metrics["depth_view_log"] = check.view_log
        out.gates += judge_depth(check, gates)
        _refuse([(code, f"{text}: {check.explain(gate.name)}") for gate, code, text in failures(out.gates)])
        return found

    def verified(self, found: _Scaled, measured: ImageMeasurements, given: GivenCameras | None) -> _Scaled:
        """A network's cameras to start the bundle from, and its depth without the frames that the others contradict."""
        out, geometry = self.out, found.geometry
        if geometry.camera_to_world is None or geometry.focal_px is None:
            return found
        poses = np.array(geometry.camera_to_world, np.float64)
        poses[:, :3, 3] *= found.depth.metres_per_unit[:, None]
        seen = np.asarray(geometry.focal_px, np.float64)
        expected = seen if given is None or given.focal_px is None else np.asarray(given.focal_px, np.float64)
        lens = _known_lens(given)
        asked = float("nan") if lens is None else float(np.nanmedian(np.log(seen / lens.focal_px)))
        with out.stage("start"):
            verified = self.place.solve(
                verify_keyframes,
                # Tracks alone are asked; features are the most of what a solver process would be sent.
                measured=replace(measured, features=[], nearest={}),
                depth=found.depth,
                start=StartCameras(camera_to_world=poses, focal_px=expected, focal_asked_log=asked),
                config=self.config.bundle,
                depth_sigma_log=geometry.depth_sigma_log,
            )
        known = np.isfinite(poses[:, 0, 0])
        out.metrics["keyframes_placed_share"] = verified.placed_share
        out.metrics["keyframes_wrong_depth_share"] = float(verified.wrong_depth[known].mean())
        return replace(
            found,
            depth=replace(found.depth, usable=~verified.wrong_depth),
            start=verified.cameras if verified.placed_share >= _MIN_PLACED else None,
        )

    def solved(
        self,
        found: _Scaled,
        measured: ImageMeasurements,
        frames: ClipFrames,
        given: GivenCameras | None,
    ) -> tuple[CameraSolution, Posed | None]:
        """Cameras of every frame; those that the source gives are kept, and what speaks for them comes along."""
        out, geometry = self.out, found.geometry
        given = self.bridged(found, frames, given)
        inputs = SolverInput(
            measured=measured,
            depth=found.depth if geometry.has_depth else None,
            depth_sigma_log=geometry.depth_sigma_log,
            tracks_config=self.config.tracks,
            config=self.config.bundle,
            start=found.start,
            lens=_lens_of(given),
            depths_per_frame=geometry.depths_per_frame,
            pixel_aspect=frames.pixel_aspect,
        )
        posed: Posed | None = None
        with out.stage("bundle"):
            if given is not None and given.camera_to_world is not None:
                posed = out.posed = self.place.solve(
                    solve_posed,
                    inputs=inputs,
                    given=given,
                    time_s=frames.timing.time_s,
                    scale_sigma_log=found.scale.total_sigma_log,
                )
                cameras = posed.cameras
            else:
                cameras = self.place.solve(solve_cameras, inputs=inputs)
                cameras = with_view_doubt(cameras, out.depth_check)
        out.cameras = cameras
        return cameras, posed

    def bridged(self, found: _Scaled, frames: ClipFrames, given: GivenCameras | None) -> GivenCameras | None:
        """Given poses of unknown unit with the unit that windows of the network's path agree on, if there are any."""
        network = found.geometry.camera_to_world
        if given is None or given.camera_to_world is None or given.metres_per_unit is not None:
            return given
        if network is None:
            return given
        bridge = self.out.bridge = bridge_to_metres(
            network,
            given.camera_to_world,
            given.position,
            found.scale,
            fps=frames.timing.fps,
            config=self.config.bridge,
        )
        if bridge is None or bridge.metres_per_unit is None:
            return given
        return replace(given, metres_per_unit=bridge.metres_per_unit)

    def judge(
        self,
        found: _Scaled,
        measured: ImageMeasurements,
        frames: ClipFrames,
        given: GivenCameras | None,
        cameras: CameraSolution,
        posed: Posed | None,
    ) -> None:
        """Does the solution pass, and do independent estimates agree with it?"""
        out, time_s = self.out, frames.timing.time_s
        out.agreement = compare(found.geometry, found.scale, found.anchors, cameras, fps=frames.timing.fps)
        out.gates += judge(
            cameras, found.scale, measured, height=frames.height, width=frames.width, config=self.config.gates
        )
        out.gates += judge_metres(cameras, self.config.gates, duration_s=float(time_s[-1] - time_s[0]))
        if posed is not None and given is not None:
            if out.bridge is not None:
                out.gates += judge_bridge(out.bridge, self.config.gates)
            out.gates += judge_given(
                posed.check,
                self.config.gates,
                longest_gap_s=longest_gap_s(given.position, time_s),
                errors=posed.errors,
                lens=posed.lens,
                cameras=cameras,
                long_side_px=max(frames.height, frames.width),
                frame_s=float(np.median(np.diff(time_s))),
            )
        failed = failures(out.gates)
        out.reasons.extend((code, text) for _, code, text in failed)
        if posed is not None and given is not None and any(c == "given_poses_disagree" for _, c, _ in failed):
            out.reasons += self.named(frames, given, posed)

    def named(self, frames: ClipFrames, given: GivenCameras, posed: Posed) -> Reasons:
        """What is wrong with given poses that disagree, where it can be told."""
        assert given.camera_to_world is not None
        fault = find_fault(
            posed.solved,
            given.camera_to_world,
            given.position,
            fps=frames.timing.fps,
            focal_px=float(np.median(posed.cameras.focal_px)),
            depth=posed.cameras.median_depth,
            long_side_px=float(max(frames.height, frames.width)),
            late_s=posed.errors.time_offset_s,
        )
        if fault is not None:
            return [(fault.reading.code, fault.detail)]
        passed = {gate.name: gate.passed for gate in self.out.gates}
        by_paths, errors = posed.check.scale, posed.errors
        if given.metres_per_unit is not None and length_alone_is_wrong(by_paths, passed, errors=errors):
            return [("given_poses_wrong_unit", unit_fault(by_paths, errors.scale_ratio))]
        return []


@dataclass(frozen=True)
class _Scaled:
    """What the estimators say of a clip, in metres.

    Attributes:
        geometry, anchors, scale: as they came.
        depth: in metres, with the worth of the geometry's unit.
        start: cameras, in metres, that the bundle may begin with.
    """

    geometry: SequenceGeometryResult
    anchors: Sequence[AnchorFrame]
    scale: ScaleEstimate
    depth: MetricDepth
    start: StartCameras | None = None

    def seen_by_images(self, view: float) -> _Scaled:
        """The same with depth maps that show `view` times the images' field of view laid onto the images."""
        maps = SeenByImages(self.geometry.depth, view)
        return replace(
            self, geometry=replace(self.geometry, depth=maps), depth=replace(self.depth, sequence=maps)
        )


# --- reasons ------------------------------------------------------------------------------------

Reasons = list[tuple[ReasonCode, str]]


class _Refused(Exception):
    """A clip ends here, for one or several reasons."""

    def __init__(self, reasons: Reasons) -> None:
        super().__init__(reasons)
        self.reasons = reasons


_FOCAL_BY_VIEW = 0.35
"""By how much a focal length errs over the error of the field of view that depth shows (logs). In rgbd-redkitchen,
where the depth camera sees 0.89 of what the colour camera does: 0.22 (what `depth_view` changes) to 0.34 (all of it).
"""


def with_view_doubt(cameras: CameraSolution, check: DepthCheck | None) -> CameraSolution:
    """A focal length that was found with depth of another field of view than the images' is less sure than it seems:
    in what the row states, and in what is judged."""
    if check is None or cameras.focal_model == "given":
        return cameras
    doubt_log = check.view_doubt_log
    if doubt_log == 0:
        return cameras
    by_view = _FOCAL_BY_VIEW * doubt_log
    return replace(
        cameras,
        focal_doubt_log=float(np.hypot(cameras.focal_doubt_log, by_view)),
        focal_common_log=float(np.hypot(cameras.focal_common_log, by_view)),  # NaN, not asked, stays so
    )


def _refuse(reasons: Reasons) -> None:
    if reasons:
        raise _Refused(reasons)


def _reasons_of(
    rejection: ClipRejection, measured: ImageMeasurements | None, config: AnnotateConfig
) -> Reasons:
    if rejection.reason != "depth_missing" or measured is None:
        return [(rejection.reason, rejection.detail)]
    # Without depth there is no unit of length; say also when there was nothing to see anyway.
    return [*_at_rest(measured, config), ("no_metric_scale", rejection.detail)]


def _at_rest(measured: ImageMeasurements, config: AnnotateConfig) -> Reasons:
    """Whether the camera stands still, which is then a reason: without depth nothing can be solved."""
    motion = image_motion(measured)
    if motion >= config.gates.static_motion:
        return []
    return [("static_camera", f"tracks move {100 * motion:.2g} % of the image diagonal over the clip")]


def _refuse_stand_ins(out: Findings) -> None:
    """Networks of random numbers prove nothing, however well the images agree with their smooth depth."""
    labels = [name for name in out.provenance.weights if name.startswith(STAND_IN)]
    if labels:
        out.reasons.append(("stand_in_weights", f"random numbers in place of {', '.join(labels)}"))


# --- what the stages hand on --------------------------------------------------------------------


def _shown(clip: ClipRef, frames: ClipFrames, watchers: Sequence[FrameWatcher]) -> Iterator[U8]:
    """The frames, each after all who watch have looked at it."""
    for number, rgb in enumerate(counted(clip.clip_id, "tracks", frames, len(frames), "frames")):
        for watcher in watchers:
            watcher.add(number, rgb)
        yield rgb


def _lens_of(given: GivenCameras | None) -> KnownLens | None:
    """What the source says of its lens, to hold or to expect."""
    if given is None or given.focal_px is None or given.principal_point_px is None:
        return None
    return KnownLens(
        focal_px=np.asarray(given.focal_px, np.float64),
        principal_point_px=np.asarray(given.principal_point_px, np.float64),
        held=not given.lens_is_prior,
    )


def _known_lens(given: GivenCameras | None) -> KnownLens | None:
    """The lens of a source that asks for it to be held."""
    lens = _lens_of(given)
    return lens if lens is not None and lens.held else None
