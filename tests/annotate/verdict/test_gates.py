"""Each gate fails for its own reason on a solution that breaks just that, and passes on an intact one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.checks.depth import DepthCheck
from theodolite.annotate.checks.given_poses import GivenPoseCheck, GivenPoseErrors
from theodolite.annotate.checks.held_cameras import LensCheck
from theodolite.annotate.row import Findings
from theodolite.annotate.scale.bridge import Bridge
from theodolite.annotate.scale.records import ScaleConfig
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.sfm.depth_noise import DepthNoise
from theodolite.annotate.sfm.records import INFILLED, SOLVED, CameraSolution, in_stored_pixels
from theodolite.annotate.sfm.shared_errors import SharedErrors
from theodolite.annotate.sfm.summary import sweep_minimum
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.tracks.records import FLOW, ImageMeasurements, make_tracks
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.annotate.verdict.gates import (
    REASONS,
    describe_failure,
    judge,
    judge_bridge,
    judge_depth,
    judge_given,
)
from theodolite.annotate.verdict.metres import judge_metres
from theodolite.annotate.verdict.motion import image_motion
from theodolite.recipes.loader import load_recipe

from ...typed import known

FRAMES, HEIGHT, WIDTH = 40, 360, 640


def solution() -> CameraSolution:
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 3] = 0.03 * np.arange(FRAMES)
    factors = np.array([0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0])
    return CameraSolution(
        camera_to_world=poses,
        focal_px=np.full((FRAMES, 2), 520.0),
        principal_point_px=np.tile([320.0, 180.0], (FRAMES, 1)),
        pose_source=np.full(FRAMES, SOLVED, dtype="U8"),
        focal_model="constant",
        position_sigma=np.full(FRAMES, 0.002),
        rotation_sigma_rad=np.full(FRAMES, 0.001),
        log_focal_sigma=np.full(FRAMES, 0.001),
        reprojection_px=np.full(FRAMES, 0.4),
        num_observations=np.full(FRAMES, 250),
        num_inliers=np.full(FRAMES, 200),
        inlier_share=np.full(FRAMES, 0.8),
        depth_log_residual=0.004,
        parallax_rad=0.03,
        num_tracks=900,
        num_loops=0,
        focal_cost={"constant": 1.0},
        scale_sweep=np.stack([factors, 1 + np.log(factors) ** 2], 1),
        radial_k1=0.0,
        median_depth=2.5,
    )


def sharing(path: float) -> SharedErrors:
    return SharedErrors(
        position=np.tile(1e-6 * np.eye(3), (FRAMES, 1, 1)),
        rotation=np.tile(1e-6 * np.eye(3), (FRAMES, 1, 1)),
        log_focal=np.full(FRAMES, 1e-6),
        shutter=0.0,
        path=path,
        causes={},
    )


def measurements(step_px: float = 3.0) -> ImageMeasurements:
    frame = np.tile(np.arange(FRAMES), 30)
    track = np.repeat(np.arange(30), FRAMES)
    xy = np.stack([50 + 3.0 * track + step_px * frame, 100.0 + track], 1)
    flow = make_tracks(frame, track, xy, np.full(len(frame), FLOW, np.uint8), FRAMES, HEIGHT, WIDTH)
    return ImageMeasurements(
        flow=flow,
        keyframes=np.array([0, FRAMES - 1]),
        features=[],
        survival=np.ones(FRAMES),
        median_flow_px=np.full(FRAMES, step_px),
        sharpness=np.full(FRAMES, 100.0),
    )


def scale(raw: np.ndarray | None = None):
    raw = np.full(10, 2.0) if raw is None else raw
    return fit_scale(np.arange(10) * 4, np.log(raw), num_frames=FRAMES, config=ScaleConfig())


def failed(
    cameras: CameraSolution,
    measured: ImageMeasurements | None = None,
    scale_estimate=None,
    config: GatesConfig = GatesConfig(),
) -> list[str]:
    gates = judge(
        cameras,
        scale_estimate or scale(),
        measured or measurements(),
        height=HEIGHT,
        width=WIDTH,
        config=config,
    )
    return [REASONS[g.name] for g in gates if not g.passed]


ERRORS = GivenPoseErrors(
    noise_m=0.003,
    noise_px=1.0,
    worst_px=4.0,
    worst_frame=7.0,
    time_offset_s=0.004,
    time_offset_sigma_s=0.003,
    time_offset_gain=1.2,
    scale_ratio=1.02,
    scale_sigma=0.01,
    path_m=0.005,
    path_sigma_m=0.003,
    size_ratio=1.02,
    size_sigma=0.01,
)
LENS = LensCheck(
    focal_log=0.02,
    focal_sigma=0.01,
    told_px=1.5,
    order_log=0.01,
    aspect_log=0.01,
    centre_share=0.01,
    sigma_px=0.6,
    given_px=1.8,
    free_px=0.4,
    solved_px=0.4,
)


def test_intact_clip_passes_and_every_gate_has_a_reason_and_a_number() -> None:
    """As long as what a clip with every gate needs to have."""
    quiet = DepthNoise(observation=0.01, frame=0.05, slow=0.0, wander=0.01)
    cameras = replace(
        solution(),
        focal_model="given",
        focal_asked_log=0.02,
        depth_noise=quiet,
        focal_common_log=0.01,
        rest_error_ratio=2.5,
        num_linked=np.full(FRAMES, 150),
        shared=sharing(path=0.01),
        kept_share=np.r_[np.nan, np.full(FRAMES - 1, 0.9)],
    )
    seen = {"height": HEIGHT, "width": WIDTH, "config": GatesConfig()}
    gates = judge(cameras, scale(), measurements(), **seen)
    gates += judge_metres(cameras, GatesConfig(), duration_s=2.4)
    # Shifts of 2.3 px, of 734, are 7 mm at 1.5 m and make 20 mm of the 1.17 m.
    zooming = replace(cameras, focal_model="smooth", centre_jitter_px=2.3, median_depth=1.5)
    more = judge(zooming, scale(), measurements(), **seen)
    gates += tuple(gate for gate in more if gate.name in ("path_sigma", "shifted_path"))
    gates += judge_given(
        GivenPoseCheck(0.01, 0.05, 0.05, 1.02, 30),
        GatesConfig(),
        longest_gap_s=0.2,
        errors=ERRORS,
        lens=LENS,
        cameras=cameras,
        long_side_px=640,
    )
    gates += judge_depth(
        DepthCheck(
            num_pairs=20, unexplained=0.01, inconsistency_log=0.01, unit_step_log=0.02, margin_log=0.5
        ),
        GatesConfig(),
    )
    windows = np.zeros(3)
    gates += judge_bridge(
        Bridge(
            frame=np.arange(3),
            log_network=windows,
            sigma_log_window=windows,
            log_metres=windows,
            inlier_share=windows + 1,
            used=windows == 0,
            metres_per_unit=1.0,
            spread_log=0.02,
            network_spread_log=0.02,
            change_log=-0.01,
            change_sigma_log=0.01,
        ),
        GatesConfig(),
    )
    assert all(g.passed for g in gates)
    # Of a fisheye alone there is one more, which it never passes.
    assert {g.name for g in gates} == set(REASONS) - {"fisheye"}
    assert all(g.value is not None for g in gates)


def one_frame(field: str, value: float, frame: int = 17) -> CameraSolution:
    array = getattr(solution(), field).copy()
    array[frame] = value
    return replace(solution(), **{field: array})


def moved(frame: int, by: float) -> CameraSolution:
    poses = solution().camera_to_world.copy()
    poses[frame:, 2, 3] += by
    return replace(solution(), camera_to_world=poses)


def beside(frame: int, by: float) -> CameraSolution:
    poses = solution().camera_to_world.copy()
    poses[frame, 1, 3] += by
    return replace(solution(), camera_to_world=poses)


def sheared() -> CameraSolution:
    poses = solution().camera_to_world.copy()
    poses[5, 0, 1] = 0.01
    return replace(solution(), camera_to_world=poses)


def kept(*shares: float) -> np.ndarray:
    """(F,) of cameras that leave something at the last frames."""
    return np.r_[np.nan, np.full(FRAMES - 1 - len(shares), 0.9), shares]


@pytest.mark.parametrize(
    ("cameras", "reason"),
    [
        (one_frame("focal_px", np.nan), "cameras_not_finite"),
        (one_frame("focal_px", 1800.0), "fov_too_narrow"),  # one frame of forty: the worst one decides
        (one_frame("focal_px", 150.0), "fov_too_wide"),
        (replace(solution(), focal_px=np.tile([520.0, 680.0], (FRAMES, 1))), "focal_axes_differ"),
        (sheared(), "poses_not_rigid"),
        (moved(20, 0.5), "pose_jump"),
        (beside(20, 0.1), "pose_jump"),  # three and a half times a step: no jump, but this frame alone is off
        (
            replace(solution(), pose_source=np.where(np.arange(FRAMES) < 10, INFILLED, SOLVED)),
            "too_many_infilled",
        ),
        (replace(solution(), num_inliers=np.full(FRAMES, 25)), "too_few_inliers"),
        (replace(solution(), parallax_rad=0.001), "no_parallax"),
        (replace(solution(), rest_error_ratio=1.1), "no_parallax"),
        (replace(solution(), kept_share=kept(0.6, 0.6)), "moving_things"),
        (replace(solution(), lens_model="fisheye"), "fisheye_lens"),
        (replace(solution(), depth_log_residual=0.3), "depth_residual_large"),
        (replace(solution(), position_sigma=np.full(FRAMES, 1.0)), "position_uncertain"),
        (replace(solution(), focal_model="smooth", shared=sharing(path=0.03)), "position_uncertain"),
        (replace(solution(), centre_jitter_px=3.0), "picture_shifts"),
        (replace(solution(), focal_model="smooth"), "position_uncertain"),  # nothing known of what they share
        (replace(solution(), focal_common_log=0.04), "focal_uncertain"),
        # Frames that err by a fifth average out over a clip; a unit that drifts by as much does not.
        (
            replace(solution(), depth_noise=DepthNoise(observation=0.01, frame=0.01, slow=0.1, wander=0.1)),
            "depth_scale_wanders",
        ),
        (
            replace(solution(), scale_sweep=solution().scale_sweep * np.array([1.4, 1.0])),
            "depth_and_path_disagree",
        ),
    ],
)
def test_each_defect_fails_its_gate(cameras: CameraSolution, reason: str) -> None:
    assert reason in failed(cameras)


@pytest.mark.parametrize(
    ("factor", "failing"),
    [(1.0, []), (0.1, []), (10.0, []), (1000.0, ["scene_depth", "speed"]), (1e-3, ["scene_depth"])],
)
def test_metres_that_are_millimetres_or_the_other_way_round_are_none(factor: float, failing: list) -> None:
    """Images and depth fit a unit that is off by a thousand as well as the right one."""
    cameras = solution()
    poses = cameras.camera_to_world.copy()
    poses[:, :3, 3] *= factor
    sigma = factor * cameras.position_sigma
    cameras = replace(
        cameras, camera_to_world=poses, position_sigma=sigma, median_depth=factor * cameras.median_depth
    )
    assert failed(cameras) == []
    gates = judge_metres(cameras, GatesConfig(), duration_s=(FRAMES - 1) / 16)
    assert [gate.name for gate in gates if not gate.passed] == failing
    assert {REASONS[name] for name in failing} <= {"metres_implausible"}
    assert known(gates[1].value) == pytest.approx(0.48 * factor)
    unsaid = load_recipe("benchmarks/influx").annotate.gates  # where nobody scores metres
    assert all(gate.passed for gate in judge_metres(cameras, unsaid, duration_s=2.4))


@pytest.mark.parametrize(("depth_m", "passes"), [(20.0, True), (64.0, True), (640.0, False)])
def test_what_is_fast_and_near_is_a_ride_in_fast_motion(depth_m: float, passes: bool) -> None:
    """Millimetres would have it within 7 cm of the camera; 640 of them are a table."""
    cameras = solution()
    poses = cameras.camera_to_world.copy()
    poses[:, :3, 3] *= 163 / 0.48
    cameras = replace(cameras, camera_to_world=poses, median_depth=depth_m)
    gates = judge_metres(cameras, GatesConfig(), duration_s=(FRAMES - 1) / 16)
    assert [gate.name for gate in gates if not gate.passed] == ([] if passes else ["speed"])


def test_a_recipe_may_take_fisheyes() -> None:
    fisheye = replace(solution(), lens_model="fisheye")
    assert failed(fisheye) == ["fisheye_lens"]
    assert failed(fisheye, config=GatesConfig(allow_fisheye=True)) == []


def test_a_lens_is_not_turned_away_for_a_path_that_nobody_scores() -> None:
    shifted = replace(solution(), focal_model="smooth", shared=sharing(path=0.5), centre_jitter_px=3.0)
    assert failed(shifted) == ["position_uncertain", "picture_shifts"]
    assert failed(shifted, config=load_recipe("benchmarks/influx").annotate.gates) == []


@pytest.mark.parametrize(
    "shares", [(0.9, 0.6, 0.9), (np.nan, 0.6, 0.9, 0.9), (np.nan, np.nan, 0.9), (0.76, 0.76)]
)
def test_a_single_frame_that_loses_tracks_is_no_thing_that_cameras_follow(shares) -> None:
    """Frame 141 of rgbd-office-a keeps 0.69; its neighbours 0.88 and 0.81."""
    assert "moving_things" not in failed(replace(solution(), kept_share=kept(*shares)))
    assert "moving_things" in failed(replace(solution(), kept_share=kept(0.7, *shares, 0.7, 0.72, 0.9)))


@pytest.mark.parametrize(
    ("shares", "passes"),
    [
        ((0.3, 0.9, 0.9, 0.9), True),  # a first frame that is blurred, and a last one
        ((0.9, 0.9, 0.9, 0.3), True),
        ((0.3, 0.3, 0.9, 0.9), False),
        ((0.9, np.nan, 0.6, 0.6), False),
        ((0.9, 0.6), False),  # of so few the worst one counts
        ((np.nan, 0.6), False),
        ((0.9, 0.9), True),
        ((np.nan, np.nan), True),
    ],
)
def test_a_frame_at_an_end_counts_as_any_other_and_a_few_frames_by_the_worst(shares, passes) -> None:
    held = failed(replace(solution(), kept_share=np.r_[np.nan, shares]))
    assert ("moving_things" not in held) == passes


def test_shifts_of_wide_pixels_are_judged_as_those_of_square_ones() -> None:
    """Stored at half the width the same picture has half the fx."""
    for jitter_px, asked in ((2.0, []), (2.25, [True])):
        square = replace(solution(), centre_jitter_px=jitter_px, median_depth=1.5)
        wide = in_stored_pixels(square, 2.0)
        assert wide.shifted_path_error() == square.shifted_path_error()
        for cameras, width in ((square, WIDTH), (wide, WIDTH // 2)):
            gates = judge(cameras, scale(), measurements(), height=HEIGHT, width=width, config=GatesConfig())
            assert [gate.passed for gate in gates if gate.name == "shifted_path"] == asked


@pytest.mark.parametrize(
    ("dark", "passes"),
    [(range(2), True), (range(FRAMES - 3, FRAMES), True), (range(6), False), (range(0), False)],
)
def test_a_film_that_comes_out_of_black_is_in_one_piece(dark: range, passes: bool) -> None:
    source, linked = np.full(FRAMES, SOLVED, dtype="U8"), np.full(FRAMES, 150)
    source[dark] = INFILLED
    linked[1:3] = 0
    linked[list(dark)] = 0
    if dark and dark[0] > 0:
        linked[1:3] = 150
    cameras = replace(solution(), pose_source=source, num_linked=linked)
    assert ("tracks_lost" not in failed(cameras)) == passes


def test_a_lens_that_stays_as_it_is_makes_no_path() -> None:
    doubtful = replace(solution(), shared=sharing(path=0.03))
    assert not failed(doubtful)
    # Over 39 steps of 0.03.
    assert doubtful.expected_path_error() == pytest.approx(0.03 / 1.17)
    # A lens and a unit that are wrong by 3 and 4 % make a path too long by 5 %: a line of length L spreads L / 12^0.5.
    off = replace(solution(), shared=sharing(path=0.0), focal_doubt_log=0.03, scale_doubt_log=0.04)
    assert off.expected_path_error() == pytest.approx(0.05 / 12**0.5, rel=0.03)
    assert np.isnan(solution().expected_path_error())


def test_frames_whose_depth_errs_by_a_fifth_still_have_a_unit() -> None:
    assert not failed(
        replace(solution(), depth_noise=DepthNoise(observation=0.01, frame=0.2, slow=0.0, wander=0.01))
    )


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        ({"margin_log": -0.1}, "depth_does_not_fit_images"),
        ({"unexplained": 0.8}, "depth_does_not_fit_images"),
        ({"inconsistency_log": 0.2}, "depth_does_not_fit_images"),
        ({"unit_step_log": 0.5}, "depth_unit_changes"),
    ],
)
def test_each_defect_of_given_depth_fails_its_gate(defect: dict[str, float], reason: str) -> None:
    gates = judge_depth(replace(DepthCheck(num_pairs=20), **defect), GatesConfig())
    assert [REASONS[g.name] for g in gates if not g.passed] == [reason]


def test_defects_of_scale_and_tracks() -> None:
    wild = np.array([0.01, 0.02, 0.01, 90.0, 0.02, 0.01, 0.01, 0.02, 0.01, 0.01])
    assert "scale_inconsistent" in failed(solution(), scale_estimate=scale(wild))
    assert "static_camera" in failed(solution(), measurements(step_px=0.01))
    lost = replace(measurements(), survival=np.where(np.arange(FRAMES) % 3 == 0, 0.0, 1.0))
    assert "tracks_lost" in failed(solution(), lost)
    assert "tracks_lost" in failed(replace(solution(), num_joining=np.full(FRAMES, 5)), lost)
    # Two parts of a clip that only chance holds together, as at a dissolve; and a frame that is merely thin.
    for least, reasons in ((4, ["tracks_lost"]), (11, ["tracks_lost"]), (24, [])):
        linked = np.where(np.arange(FRAMES) == 20, least, 300)
        assert failed(replace(solution(), num_linked=linked)) == reasons
    # Too fast for flow, but descriptors hold every frame.
    assert failed(replace(solution(), num_joining=np.full(FRAMES, 150)), lost) == []


def test_a_lone_frame_is_measured_against_the_steps() -> None:
    assert failed(beside(20, 0.03)) == []  # as far as a step
    still = solution()
    trembling = still.camera_to_world.copy()
    trembling[:, 0, 3] = 0.002 * np.arange(FRAMES) + 0.004 * (np.arange(FRAMES) % 2)
    # Of two metres of depth, half a centimetre to and fro is a tremor.
    assert failed(replace(still, camera_to_world=trembling)) == []
    # A frame that lies beside a slow path by as much as the depth of networks trembles; and one that lies further.
    trembling = solution().camera_to_world.copy()
    trembling[:, 0, 3] = 0.002 * np.arange(FRAMES)
    for off, reason in ((0.05, []), (0.1, ["pose_jump"])):
        lone = trembling.copy()
        lone[17, 1, 3] += off
        found = judge(
            replace(still, camera_to_world=lone), scale(), measurements(), height=HEIGHT, width=WIDTH,
            config=GatesConfig(max_jump=1e3),
        )  # fmt: skip
        assert [REASONS[g.name] for g in found if not g.passed] == reason


def test_declared_scale_has_no_series_to_judge() -> None:
    declared = fit_scale(
        np.zeros(0, np.int64),
        np.zeros(0),
        num_frames=FRAMES,
        config=ScaleConfig(),
        declared_metres_per_unit=1.0,
    )
    gates = judge(solution(), declared, measurements(), height=HEIGHT, width=WIDTH, config=GatesConfig())
    assert "scale_cov" not in {g.name for g in gates}
    assert all(g.passed for g in gates)


@pytest.mark.parametrize(("declared", "source"), [(1.0, "declared_depth"), (None, "metric_anchor")])
def test_what_the_depths_scale_wanders_by_is_error_of_a_metre(declared: float | None, source: str) -> None:
    scale = fit_scale(
        np.arange(FRAMES),
        np.zeros(FRAMES),
        num_frames=FRAMES,
        config=ScaleConfig(),
        declared_metres_per_unit=declared,
    )
    clip = ClipRef(clip_id="c", source="s", original_id="c", media_kind="video", media_path=Path("a.mp4"))
    found = Findings(clip=clip, mode="given_depth", recipe_hash="0" * 64, scale=scale, wall_s={"total": 1.0})
    found.reasons.append(("too_short", "a row without frames"))
    for doubt in (0.0, 0.058):
        found.cameras = replace(solution(), scale_doubt_log=doubt)
        row = found.row()
        assert (row.scale_source, row.is_metric) == (source, True)
        assert row.scale_sigma_log == pytest.approx(np.hypot(scale.total_sigma_log, doubt))


def test_failure_is_described_with_its_numbers() -> None:
    gates = judge(
        one_frame("focal_px", 1800.0),
        scale(),
        measurements(),
        height=HEIGHT,
        width=WIDTH,
        config=GatesConfig(),
    )
    gate = next(g for g in gates if g.name == "fov_min")
    text = describe_failure(gate)
    # 2 atan(180 / 1800) = 11.42 degrees, the vertical field of view of the narrow frame
    assert "11.42 deg" in text
    assert "at least 25 deg" in text


def test_sweep_minimum_interpolates_and_reports_no_data() -> None:
    factors = np.array([0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0])
    sweep = np.stack([factors, (np.log(factors) - np.log(1.05)) ** 2], 1)
    assert sweep_minimum(sweep) == pytest.approx(1.05, abs=1e-6)
    sweep[2, 1] = np.nan
    assert np.isnan(sweep_minimum(sweep))


def test_motion_is_that_of_most_tracks() -> None:
    assert image_motion(measurements(step_px=2.0)) == pytest.approx(
        2.0 * (FRAMES - 1) / np.hypot(HEIGHT, WIDTH)
    )
    still = measurements(step_px=0.0)
    xy = still.flow.xy_px.copy()
    xy[still.flow.track < 10, 0] += 8.0 * still.flow.frame[still.flow.track < 10]
    assert image_motion(replace(still, flow=replace(still.flow, xy_px=xy))) == 0.0


@pytest.mark.parametrize(
    ("asked", "gain", "parallax_rad", "passed"),
    [
        (1 / 1.2, 1.3, 0.08, False),  # 20 % too long, and everything fits better without
        (1 / 0.85, 1.3, 0.08, False),
        (1.04, 1.3, 0.08, True),
        (1 / 1.2, 1.0, 0.08, True),  # nothing fits better: the clip cannot tell
        (1.19, 1.3, 0.022, True),  # a shallow path leaves that much open
        (1.5, 1.0, 0.022, False),
    ],
)
def test_a_given_focal_length_is_doubted_as_far_as_the_clip_can_tell(
    asked: float, gain: float, parallax_rad: float, passed: bool
) -> None:
    cameras = replace(
        solution(),
        focal_model="given",
        focal_asked_log=float(np.log(asked)),
        focal_asked_sigma=0.01,
        focal_asked_gain=gain,
        parallax_rad=parallax_rad,
    )
    assert ("given_intrinsics_disagree" not in failed(cameras)) == passed


def test_a_given_focal_length_is_doubted_strictly_only_where_the_gain_is_known():
    def bound(gain: float) -> float | None:
        cameras = replace(
            solution(),
            focal_model="given",
            focal_asked_log=0.05,
            focal_asked_sigma=0.001,
            focal_asked_gain=gain,
        )
        gates = judge(cameras, scale(), measurements(), height=HEIGHT, width=WIDTH, config=GatesConfig())
        return next(gate.upper for gate in gates if gate.name == "given_focal")

    loose = 1 / (1 - GatesConfig().given_focal_tolerance)
    assert bound(float("nan")) == pytest.approx(loose)
    assert bound(1.0) == pytest.approx(loose)
    assert known(bound(1.5)) < loose
