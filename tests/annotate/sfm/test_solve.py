"""Tracks and depth to cameras, on rendered clips with exact truth: zoom, fixed lens, missing depth, other units."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from theodolite.annotate.checks.posed import solve_from_poses
from theodolite.annotate.given.cameras import GivenCameras
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import RenderedClip, RenderedFrame, render_clip
from theodolite.annotate.sfm.bundle.lens import LENS_DOF
from theodolite.annotate.sfm.bundle.problem import Problem, State
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sfm.keyframes import KeyframeProblem, SolverInput
from theodolite.annotate.sfm.observations import thin_observations
from theodolite.annotate.sfm.records import CameraSolution, KnownLens
from theodolite.annotate.sfm.solve import solve_cameras
from theodolite.annotate.sfm.summary import sweep_minimum
from theodolite.annotate.sfm.triangulation import parallax
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.tracks.measure import measure_images
from theodolite.annotate.tracks.records import TracksConfig, make_tracks
from theodolite.dataset.metrics.trajectory import (
    focal_mape_percent,
    path_length,
    rotation_error,
    trajectory_error,
)

from ...typed import wrong
from ..maps import Maps
from ..verdict.test_gates import solution

TRACKS = TracksConfig(num_flow_tracks=200, num_descriptors=500)
SOME = TracksConfig(num_flow_tracks=120, num_descriptors=400)
FEW = TracksConfig(num_flow_tracks=120, num_descriptors=250)


def inputs(measured, depth, **other) -> SolverInput:
    return SolverInput(
        measured=measured,
        depth=depth,
        **({"depth_sigma_log": 0.01, "tracks_config": TRACKS, "config": BundleConfig()} | other),
    )


@lru_cache(maxsize=2)
def rendered(config: RenderConfig) -> tuple[RenderedClip, list[RenderedFrame]]:
    """Several tests look at the same clip. Frozen records have a hash, which the type checker does not see."""
    clip = render_clip(config)
    return clip, list(clip)


WALK = RenderConfig(width=448, height=252, num_frames=24, seed=5, speed=1.5)


def solve(
    config: RenderConfig, *, change=None, bundle: BundleConfig | None = None, tracks: TracksConfig = SOME
) -> tuple[CameraSolution, RenderedClip]:
    clip, frames = rendered(wrong(config))
    maps: list[np.ndarray | None] = [f.depth_m for f in frames]
    if change is not None:
        maps = change(maps)
    measured = measure_images(
        (f.rgb for f in frames), height=config.height, width=config.width, config=tracks
    )
    return solve_cameras(
        inputs(measured, Maps(maps), tracks_config=tracks, config=bundle or BundleConfig())
    ), clip


@pytest.fixture(scope="module")
def zooming() -> tuple[CameraSolution, RenderedClip]:
    return solve(
        RenderConfig(
            width=448,
            height=252,
            num_frames=40,
            seed=3,
            speed=1.5,
            zoom="ramp",
            zoom_factor=1.7,
            moving_object=True,
        ),
        bundle=BundleConfig(moving_masks=True),
    )


@pytest.mark.slow(about_s=7)
def test_zoom_is_recovered_frame_by_frame_in_metres(zooming) -> None:
    solution, clip = zooming
    truth, focal = clip.camera_to_world, clip.intrinsics[:, 0, 0]
    length = path_length(truth)
    error = trajectory_error(solution.camera_to_world, truth, alignment="se3")
    assert error.ate_rmse_m < 0.01 * length
    # By orientations alone: positions on a short, nearly straight path do not fix the world's rotation.
    turn = rotation_error(solution.camera_to_world, truth)
    assert np.degrees(np.sqrt(np.mean(turn**2))) < 0.2
    assert focal_mape_percent(solution.focal_px[:, 0], focal) < 1.0
    assert solution.focal_model == "smooth"
    # It rises where the truth rises: the largest slope lies in the ramp.
    assert np.corrcoef(np.diff(np.log(solution.focal_px[:, 0])), np.diff(np.log(focal)))[0, 1] > 0.9


@pytest.mark.slow
def test_numbers_that_gates_read_are_sane(zooming) -> None:
    solution, _ = zooming
    assert (solution.pose_source == "solved").all()
    assert abs(sweep_minimum(solution.scale_sweep) - 1) < 0.05
    assert 0.1 < np.median(solution.reprojection_px) < 1.5
    assert solution.num_inliers.min() > 50
    assert solution.num_joining is not None
    assert solution.num_joining[0] == 0
    assert solution.num_joining[1:].min() > 50
    assert solution.num_linked is not None
    assert (solution.num_linked >= solution.num_joining).all()
    assert (solution.position_sigma[1:] > 0).all()
    assert np.isfinite(solution.log_focal_sigma).all()
    position, rotation, log_focal = solution.stated_sigmas()
    assert (position >= 0.999 * solution.position_sigma).all()
    assert (rotation >= 0.999 * solution.rotation_sigma_rad).all()
    assert (log_focal >= 0.999 * solution.log_focal_sigma).all()
    # A metre that may be wrong by a tenth is wrong on the whole way from the first camera.
    gone = np.linalg.norm(solution.camera_to_world[:, :3, 3], axis=1)
    in_metres = solution.stated_sigmas(0.1)[0]
    assert (in_metres >= 0.1 * gone).all()
    assert (in_metres <= np.hypot(position, 0.1 * gone) + 1e-9).all()
    assert solution.depth_log_residual < 0.01


@pytest.mark.slow
def test_what_moves_is_marked_in_every_picture(zooming) -> None:
    solution, clip = zooming
    found = solution.moving_masks
    assert found is not None
    size = (found.shape[2], found.shape[1])
    true = np.stack(
        [cv2.resize(f.moving.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5 for f in clip]
    )
    assert true.any((1, 2)).sum() > 5
    # 0.84; half a cell too much or too little all around would leave about 0.85 of a thing of this size.
    assert (found & true).sum() / (found | true).sum() > 0.75
    assert found[~true.any((1, 2))].mean() < 0.01


@pytest.mark.slow
def test_constant_lens_is_found_constant() -> None:
    """A quarter of the depth is missing and one frame has none; a fixed lens must come out as one number."""
    rng = np.random.default_rng(0)

    def holes(maps: list[np.ndarray | None]) -> list[np.ndarray | None]:
        out: list[np.ndarray | None] = []
        for z in maps:
            assert z is not None
            block = np.kron(rng.random((7, 8)) < 0.25, np.ones((36, 56), bool))[: z.shape[0], : z.shape[1]]
            out.append(np.where(block, np.nan, z))
        out[11] = None
        return out

    solution, clip = solve(WALK, change=holes)
    assert solution.focal_model == "constant"
    assert solution.focal_px[:, 0].std() / solution.focal_px[:, 0].mean() < 1e-3
    assert focal_mape_percent(solution.focal_px[:, 0], clip.intrinsics[:, 0, 0]) < 1.5
    length = path_length(clip.camera_to_world)
    assert (
        trajectory_error(solution.camera_to_world, clip.camera_to_world, alignment="se3").ate_rmse_m
        < 0.015 * length
    )


@pytest.mark.slow
@pytest.mark.thorough
def test_a_stretch_without_points_is_bridged() -> None:
    """Six frames blurred until no corner is left: their poses come from aligning whole images with depth."""
    config = RenderConfig(width=448, height=252, num_frames=36, seed=5, speed=1.5)
    clip = render_clip(config)
    frames = list(clip)
    images = [f.rgb for f in frames]
    for i in range(15, 21):
        images[i] = np.asarray(cv2.GaussianBlur(images[i], (0, 0), 14.0), np.uint8)
    measured = measure_images(iter(images), height=252, width=448, config=TRACKS)
    flow = measured.flow
    assert np.bincount(flow.frame, minlength=36)[15:21].min() < 12  # nothing to place a frame by
    solution = solve_cameras(inputs(measured, Maps([f.depth_m for f in frames])))
    assert (solution.pose_source == "solved").all()
    # The alignment holds the clip together there, and counts as what does.
    assert solution.num_joining is not None
    assert solution.num_linked is not None
    assert (solution.num_linked[16:21] > solution.num_joining[16:21] + 60).all()
    truth = clip.camera_to_world
    error = trajectory_error(solution.camera_to_world, truth, alignment="se3")
    assert error.ate_rmse_m < 0.02 * path_length(truth)
    # Uncertain where it should be, and not surer than it may be.
    assert solution.position_sigma[15:21].min() > 2 * np.median(solution.position_sigma[[13, 14, 21, 22]])


@pytest.mark.slow
def test_wide_pixels_tie_fy_to_fx() -> None:
    """Every second column left out: pixels twice as wide as high, fx half of fy, the same path."""
    clip, frames = rendered(wrong(WALK))
    frames = frames[:14]
    measured = measure_images((f.rgb[:, ::2] for f in frames), height=252, width=224, config=FEW)
    maps = Maps([f.depth_m for f in frames])
    solution = solve_cameras(inputs(measured, maps, tracks_config=FEW, pixel_aspect=2.0))
    assert np.allclose(solution.focal_px[:, 1], 2 * solution.focal_px[:, 0], rtol=1e-3)
    assert focal_mape_percent(solution.focal_px[:, 0], clip.intrinsics[:14, 0, 0] / 2) < 2.0
    assert solution.principal_point_px[0, 0] == pytest.approx(112, abs=4)


@pytest.mark.slow
@pytest.mark.thorough
def test_depth_in_other_units_scales_the_path_only() -> None:
    solution, _ = solve(WALK)
    doubled, _ = solve(WALK, change=lambda maps: [2.0 * z for z in maps])
    ratio = path_length(doubled.camera_to_world) / path_length(solution.camera_to_world)
    assert ratio == pytest.approx(2.0, rel=0.01)
    assert np.allclose(doubled.focal_px, solution.focal_px, rtol=0.01)


@pytest.mark.slow
def test_no_depth_anywhere_is_a_rejection() -> None:
    with pytest.raises(ClipRejection, match="no_depth_on_tracks"):
        solve(WALK, change=lambda maps: [np.full_like(z, np.nan) for z in maps])


@pytest.mark.parametrize("depth_m", [2.0, np.nan])
def test_pictures_that_hold_nothing_to_track_are_not_blamed_on_their_depth(depth_m: float) -> None:
    grey = np.full((90, 160, 3), 128, np.uint8)
    measured = measure_images([grey] * 4, height=90, width=160, config=FEW)
    given = inputs(measured, Maps([np.full((90, 160), depth_m, np.float32)] * 4))
    with pytest.raises(ClipRejection, match=r"no_reconstruction.*can be tracked: 0 track points"):
        solve_cameras(given)
    lens = KnownLens(focal_px=np.full((4, 2), 120.0), principal_point_px=np.tile([80.0, 45.0], (4, 1)))
    path = np.tile(np.eye(4), (4, 1, 1))
    path[:, 0, 3] = np.arange(4)
    poses = GivenCameras(
        camera_to_world=path,
        position=np.arange(4.0),
        metres_per_unit=1.0,
        focal_px=lens.focal_px,
        principal_point_px=lens.principal_point_px,
    )
    with pytest.raises(ClipRejection, match=r"no_reconstruction.*nothing in the pictures can be tracked"):
        solve_from_poses(replace(given, depth=None, lens=lens), poses)


def test_thinning_keeps_whole_tracks_spread_and_keyframes_full() -> None:
    frames, per_frame = 20, 300
    frame = np.tile(np.arange(frames), per_frame)
    track = np.repeat(np.arange(per_frame), frames)
    xy = np.stack([track % 30 * 20.0, track // 30 * 30.0], 1)
    tracks = make_tracks(frame, track, xy, np.zeros(len(frame), np.uint8), frames, 300, 600)
    keyframes = np.array([0, 10, 19])
    config = BundleConfig(max_observations=100)
    thin, z = thin_observations(tracks, np.arange(len(tracks.frame), dtype=float), keyframes, config)
    count = np.bincount(thin.frame, minlength=frames)
    assert (count[keyframes] == per_frame).all()
    between = np.delete(count, keyframes)
    assert (between == between[0]).all()
    assert abs(int(between[0]) - 100) <= 2
    kept = thin.frame == 5
    assert len(np.unique(thin.xy_px[kept] // 100, axis=0)) == 18
    # Depth stays with its observation: it was the running number.
    original = {(f, t): i for i, (f, t) in enumerate(zip(tracks.frame, tracks.track, strict=True))}
    names = np.unique(tracks.track)[np.isin(np.arange(per_frame), np.unique(track))]
    assert all(
        original[(f, names[t])] == int(v)
        for f, t, v in zip(thin.frame[:200], thin.track[:200], z[:200], strict=True)
    )


@pytest.mark.slow
def test_a_known_lens_is_held_through_a_zoom_and_off_centre() -> None:
    """Given intrinsics come back bit for bit, and with the images cut off-centre only they put the path right."""
    config = RenderConfig(
        width=320, height=180, num_frames=14, seed=3, speed=1.5, zoom="ramp", zoom_factor=1.5
    )
    clip = render_clip(config)
    frames = list(clip)
    cut = 48  # columns missing on the left: the principal point moves by as much
    measured = measure_images((f.rgb[:, cut:] for f in frames), height=180, width=320 - cut, config=FEW)
    focal = np.stack([clip.intrinsics[:, 0, 0], clip.intrinsics[:, 1, 1]], 1)
    centre = np.tile([160.0 - cut, 90.0], (14, 1))
    lens = KnownLens(focal_px=focal, principal_point_px=centre)
    maps, masks = Maps([f.depth_m[:, cut:] for f in frames]), BundleConfig(moving_masks=True)
    solution = solve_cameras(inputs(measured, maps, lens=lens, config=masks, tracks_config=FEW))
    assert solution.focal_model == "given"
    assert solution.moving_masks is not None
    assert solution.moving_masks.mean() < 0.01
    assert np.array_equal(solution.focal_px, focal)
    assert np.array_equal(solution.principal_point_px, centre)
    truth = clip.camera_to_world
    error = trajectory_error(solution.camera_to_world, truth, alignment="se3")
    assert error.ate_rmse_m < 0.005 * path_length(truth)
    turn = rotation_error(solution.camera_to_world, truth)
    assert np.degrees(np.sqrt(np.mean(turn**2))) < 0.1


@pytest.mark.slow
def test_an_expected_lens_decides_only_what_the_images_leave_open() -> None:
    """With points and depth of a whole path the images win over a focal length that is said 6 % too long; on a path
    without parallax, with depth that says little, the word of the source wins over both."""
    clip = render_clip(RenderConfig(width=320, height=180, num_frames=14, seed=3, speed=1.5))
    truth = clip.intrinsics[0, 0, 0]
    frames = list(clip)
    measured = measure_images((f.rgb for f in frames), height=180, width=320, config=FEW)
    wrong = KnownLens(
        focal_px=np.full((14, 2), 1.06 * truth), principal_point_px=np.zeros((14, 2)), held=False
    )
    maps = Maps([f.depth_m for f in frames])
    solution = solve_cameras(inputs(measured, maps, lens=wrong, tracks_config=FEW))
    assert solution.focal_model == "constant"
    assert abs(np.log(solution.focal_px[0, 0] / truth)) < 0.005
    # The same images, told that the depth is good to a third only.
    loose = BundleConfig(depth_sigma_log=3.0, reprojection_sigma_px=20.0)
    asked = [
        solve_cameras(inputs(measured, maps, lens=lens, config=loose, tracks_config=FEW))
        for lens in (None, wrong)
    ]
    off = [np.log(s.focal_px[0, 0] / wrong.focal_px[0, 0]) for s in asked]
    assert abs(off[1]) < abs(off[0]) - 0.01


@pytest.mark.slow
@pytest.mark.thorough
def test_a_zoom_of_three_per_cent_is_found_and_none_is_invented() -> None:
    """What decides is what the freedom of the focal is worth, not how far it goes."""
    config = RenderConfig(
        width=448, height=252, num_frames=33, seed=722, speed=0.8, zoom="in_out", zoom_factor=1.03
    )
    solution, clip = solve(config, tracks=TRACKS)
    truth = clip.intrinsics[:, 0, 0]
    assert np.log(truth).std() < 0.012
    assert solution.focal_model == "smooth"
    off = np.log(solution.focal_px[:, 0] / truth)
    assert off.std() < 0.002  # the zoom; its level hangs on two seconds of path
    assert np.abs(off).max() < 0.04
    # Blotches of 10 %, another field in every frame, ask for a zoom that is none.
    rng = np.random.default_rng(5)

    def blotched(maps: list[np.ndarray | None]) -> list[np.ndarray | None]:
        out: list[np.ndarray | None] = []
        for z in maps:
            assert z is not None
            size = z.shape[1], z.shape[0]
            rough = cv2.resize(rng.standard_normal((5, 8)), size, interpolation=cv2.INTER_CUBIC)
            out.append(z * np.exp(0.1 * rough / rough.std()))
        return out

    held, clip = solve(config.model_copy(update={"zoom": "none"}), change=blotched, tracks=TRACKS)
    assert held.focal_model == "constant"
    assert np.abs(np.log(held.focal_px[:, 0] / clip.intrinsics[:, 0, 0])).max() < 0.06


def test_a_known_lens_whose_pixels_change_shape_is_refused() -> None:
    focal = np.tile([300.0, 300.0], (20, 1))
    focal[10:, 1] = 320
    lens = KnownLens(focal_px=focal, principal_point_px=np.zeros((20, 2)))
    with pytest.raises(ClipRejection, match="intrinsics_aspect_varies"):
        _ = lens.pixel_aspect


def test_parallax_is_the_largest_angle_of_a_track_also_out_and_back() -> None:
    """The camera swings out to 0.6 m before a wall 2 m away, and back to where it began."""
    shift = 0.6 * np.sin(np.linspace(0, np.pi, 21))
    frame, point = torch.arange(21).repeat(3), torch.arange(3).repeat_interleave(21)
    # The last track is seen in the first five frames only.
    seen = (point < 2) | (frame < 5)
    translation = torch.zeros(21, 3, dtype=torch.float64)
    translation[:, 0] = torch.as_tensor(-shift)
    points = torch.tensor([[0.0, 0, 2], [0.3, 0, 2], [0, 0, 2]], dtype=torch.float64)
    count = int(seen.sum())
    problem = Problem(
        frame=frame[seen],
        point=point[seen],
        uv_px=torch.zeros(count, 2, dtype=torch.float64),
        sigma_px=torch.ones(count, dtype=torch.float64),
        log_depth=torch.zeros(count, dtype=torch.float64),
        sigma_log_depth=torch.full((count,), torch.inf, dtype=torch.float64),
        num_frames=21,
        num_points=3,
        centre_px=torch.zeros(2, dtype=torch.float64),
        focal_scale_px=1.0,
    )
    state = State(
        rotation=torch.eye(3, dtype=torch.float64).repeat(21, 1, 1),
        translation=translation,
        log_focal=torch.zeros(21, dtype=torch.float64),
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=points,
    )
    # Tracks see 16.7, 17.1 and 9.6 degrees.
    found = parallax(problem, state, torch.ones(count, dtype=torch.bool))
    assert found == pytest.approx(np.arctan(0.3), abs=1e-9)
    assert parallax(problem, state, torch.zeros(count, dtype=torch.bool)) == 0.0


def test_without_depth_poses_must_be_given():
    with pytest.raises(ValueError, match="from given poses only"):
        solve_cameras(inputs(SimpleNamespace(flow=None), None))


@pytest.mark.parametrize("held", [True, False])
def test_only_a_held_lens_comes_back_as_it_was_given(held, monkeypatch):
    """Where pixels are not square, a lens that is merely expected must not replace the one that was found."""
    given = KnownLens(
        focal_px=np.full((4, 2), (300.0, 330.0)), principal_point_px=np.full((4, 2), (99.0, 51.0)), held=held
    )
    seen = []

    def solved(square):
        seen.append(square)
        return replace(
            solution(), focal_px=np.full((4, 2), 440.0), principal_point_px=np.full((4, 2), (110.0, 50.0))
        )

    monkeypatch.setattr("theodolite.annotate.sfm.solve._solve", solved)
    monkeypatch.setattr("theodolite.annotate.sfm.keyframes.stretched", lambda measured, aspect: measured)
    found = solve_cameras(inputs(None, Maps([]), pixel_aspect=1.1, lens=given))
    (square,) = seen
    assert np.allclose(square.lens.focal_px, 330.0)
    if held:
        assert np.array_equal(found.focal_px, given.focal_px)
        assert np.array_equal(found.principal_point_px, given.principal_point_px)
    else:
        assert np.allclose(found.focal_px, (400.0, 440.0))
        assert np.allclose(found.principal_point_px, (100.0, 50.0))


@pytest.mark.slow
def test_a_bundle_that_does_not_begin_is_a_reason(monkeypatch) -> None:
    def no_bundle(*_, **__):
        raise FloatingPointError("bundle: the cost is not finite at the start")

    monkeypatch.setattr(KeyframeProblem, "choose_seed", no_bundle)
    _, frames = rendered(wrong(WALK))
    measured = measure_images((f.rgb for f in frames[:8]), height=252, width=448, config=FEW)
    with pytest.raises(ClipRejection, match="not finite at the start") as rejection:
        solve_cameras(inputs(measured, Maps([f.depth_m for f in frames[:8]]), tracks_config=FEW))
    assert rejection.value.reason == "no_reconstruction"


@pytest.mark.parametrize("failure", [FloatingPointError("no cost"), ClipRejection("no_reconstruction", "")])
def test_a_known_lens_is_not_doubted_where_nothing_else_can_be_bundled(failure, monkeypatch) -> None:
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("theodolite.annotate.sfm.keyframes.choose_start", lambda *_, **__: (1, 0.2))
    keys = SimpleNamespace(
        given=SimpleNamespace(start=None),
        key_log_focal=np.zeros(3),
        size_px=(640, 360),
        coarse=BundleConfig(),
        noise=None,
        bundle=fail,
        _seed=(1, 0.0),
        _windows=[np.arange(3)],
        _window_problem=fail,
        _place_from=lambda *_: (None, None),
    )
    assert np.isnan(KeyframeProblem.ask_focal(wrong(keys)).log)
