"""Traps that other annotation systems fell into, each on the path that production takes.

Simulated networks stand where the networks stand; everything behind them is what recipes run. Wrong conventions of
given cameras are in checks/test_given_poses.py, layouts of public sets and their wrong readings in
given/test_cameras.py, tests/recipes/test_corpus_layouts.py and sources/, damaged files in frames/test_open.py,
cut tars in tests/dataset/formats/test_webdataset.py, kills in tests/recipes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.config import KeyframesConfig
from theodolite.annotate.geometry.moge2 import RawImages
from theodolite.annotate.geometry.window_maps import RawWindow
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip, write_depth_png
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.scale.records import ScaleConfig
from theodolite.annotate.scale.series import fit_scale
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.annotate.verdict.config import GatesConfig
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.trajectory import focal_mape_percent, trajectory_error
from theodolite.dataset.rows import Row

from ..typed import known
from .simulator import Errors, Truth, rendered_truth, simulated

SMALL = {"width": 320, "height": 180, "num_frames": 65, "seed": 3}
FEW_TRACKS = {"num_flow_tracks": 90, "num_descriptors": 300}
CALM = Errors(outlier_frames=0.0, metric_outliers=0.0)


def prepared(folder: Path, **fields) -> tuple[ClipRef, Truth]:
    path = folder / "clip.yaml"
    path.write_text(yaml.safe_dump(SMALL | fields))
    clip = ClipRef(clip_id="clip", source="traps", original_id="clip", media_kind="rendered", media_path=path)
    return clip, rendered_truth(render_clip(RenderConfig.model_validate(SMALL | fields)))


def annotate(clip: ClipRef, estimators, **config) -> Row:
    return annotate_clip(
        clip,
        AnnotateConfig.model_validate({"tracks": FEW_TRACKS} | config),
        mode="estimate",
        recipe_hash="0" * 16,
        estimators=estimators,
    )


# --- metric depth full of holes ------------------------------------------------------------------------


@pytest.mark.slow
def test_infinite_nan_and_sky_pixels_do_not_touch_the_scale(tmp_path: Path, monkeypatch) -> None:
    """One masked pixel made the peers' exponential mean infinite to the end of the clip."""
    clip, truth = prepared(tmp_path, num_frames=41)
    estimators = simulated(truth, replace(CALM, metric_frame=0.02))
    network = vars(estimators.anchor)["network"]
    predict, seen = network.predict, []

    def holed(images: torch.Tensor, frame) -> RawImages:
        raw = predict(images, frame)
        for i in range(len(frame)):
            seen.append(frame[i])
            raw.points[i, :, :20] = torch.inf
            raw.points[i, :, 20:24] = torch.nan
            if len(seen) == 1:
                raw.valid[i] = False  # the first frame has nothing at all
            if len(seen) == 3:
                raw.metric_scale[i] = torch.inf
        return raw

    monkeypatch.setattr(network, "predict", holed)
    row = annotate(clip, estimators, geometry={"min_anchor_frames": 1, "anchor_fps": 2.0})
    assert row.error is None, row.error
    assert row.stand_in  # a fake that passes all checks must be unmistakable
    assert all(w.startswith("simulated:") for w in row.weights)
    assert len(seen) == 5
    error = trajectory_error(row.camera_to_world, truth.camera_to_world, alignment="sim3")
    assert abs(np.log(error.scale)) < 0.06
    assert len(row.scale_value) == 3  # two of five frames said nothing, and that is in the row
    assert np.isfinite(row.scale_value).all()
    assert row.metres_per_unit != 1.0


@pytest.mark.slow
def test_no_usable_metric_frame_is_no_scale_and_never_one(tmp_path: Path, monkeypatch) -> None:
    clip, truth = prepared(tmp_path, num_frames=24)
    estimators = simulated(truth, CALM)
    network = vars(estimators.anchor)["network"]
    predict = network.predict

    def blind(images: torch.Tensor, frame) -> RawImages:
        raw = predict(images, frame)
        return RawImages(
            points=torch.full_like(raw.points, torch.inf),
            valid=torch.zeros_like(raw.valid),
            metric_scale=raw.metric_scale,
        )

    monkeypatch.setattr(network, "predict", blind)
    row = annotate(clip, estimators)
    assert row.verdict == "rejected"
    assert row.reasons[0] == "no_metric_scale"
    assert row.stand_in  # also where the clip was rejected
    assert row.metres_per_unit is None
    assert len(row.camera_to_world) == 0
    assert row.error is None


# --- scale series --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.4])
def test_outliers_up_to_forty_percent_move_the_scale_by_one_percent(share: float) -> None:
    rng = np.random.default_rng(7)
    logs = []
    for _ in range(20):
        x = np.log(0.4) + 0.01 * rng.standard_normal(60)
        wrong = rng.permutation(60)[: round(60 * share)]
        x[wrong] += rng.uniform(0.2, 0.9, len(wrong))
        found = fit_scale(np.arange(60) * 16, x, num_frames=961)
        logs.append(np.log(known(found.value) / 0.4))
    assert np.sqrt(np.mean(np.square(logs))) < 0.01


def test_a_scale_that_jumps_is_seen_raw() -> None:
    """The paper's gate (2.0) on a smoothed series can hardly fail; ours reads the raw one."""
    x = np.full(60, np.log(0.4))
    x[5::10] += np.log(60.0)
    frame = np.arange(60) * 16
    smooth = fit_scale(frame, x, num_frames=961, config=ScaleConfig(method="paper")).metres_per_unit
    assert smooth is not None
    assert smooth.std() / smooth.mean() < 1.0
    assert fit_scale(frame, x, num_frames=961).cov > GatesConfig().max_scale_cov


# --- windows -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.thorough
def test_window_gauges_units_and_outliers_leave_rigid_metric_poses(tmp_path: Path) -> None:
    """Random similarity per window, noise, one frame in seven wrong: rotations stay rotations, ends meet."""
    clip, truth = prepared(tmp_path, num_frames=97)
    config = KeyframesConfig(window=12, step=6, max_one_pass=12)
    errors = Errors(window_scale=0.2, outlier_frames=0.15, metric_frame=0.03, metric_outliers=0.0, seed=5)
    row = annotate(clip, simulated(truth, errors, config))
    assert row.error is None, row.error
    determinant = np.linalg.det(row.camera_to_world[:, :3, :3].astype(np.float64))
    np.testing.assert_allclose(determinant, 1, atol=1e-5)  # float32 storage
    error = trajectory_error(row.camera_to_world, truth.camera_to_world, alignment="sim3")
    assert error.ate_percent_of_path < 1.5
    assert error.position_error_m.max() < 0.05 * error.path_length_m
    found = known(row.metrics)
    assert found["keyframe_windows_joined"] == found["keyframe_windows"] == 5.0
    assert found["keyframes_wrong_depth_share"] > 0
    assert set(row.reasons) <= {"pose_jump"}


@pytest.mark.slow
def test_windows_in_other_worlds_do_not_average(tmp_path: Path, monkeypatch) -> None:
    """A window that agrees with no other is left out of the gauge, not blended in."""
    clip, truth = prepared(tmp_path, num_frames=49)
    config = KeyframesConfig(window=8, step=4, max_one_pass=8)
    estimators = simulated(truth, replace(CALM, metric_frame=0.02), config)
    network = vars(estimators.sequence)["network"]
    predict = network.predict

    def one_blind(images: torch.Tensor, frame) -> RawWindow:
        raw = predict(images, frame)
        if frame[-1] == 48 and frame[1] - frame[0] < 6:  # the last of those along the clip
            return replace(raw, confidence=0 * raw.confidence)
        return raw

    monkeypatch.setattr(network, "predict", one_blind)
    row = annotate(clip, estimators)
    assert row.error is None, row.error
    found = known(row.metrics)
    assert found["keyframe_windows_joined"] == found["keyframe_windows"] - 1
    error = trajectory_error(row.camera_to_world, truth.camera_to_world, alignment="sim3")
    assert error.ate_percent_of_path < 2.0


# --- zoom ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.thorough
def test_a_zoom_is_followed_frame_by_frame(tmp_path: Path) -> None:
    """Peers solved the frames between keyframes with the first focal: their pose error grew with the zoom."""
    clip, truth = prepared(tmp_path, seed=5, zoom="ramp", zoom_factor=1.8)
    row = annotate(clip, simulated(truth, CALM))
    assert row.error is None, row.error
    focal = row.focal_px[:, 0].astype(np.float64)
    assert focal_mape_percent(focal, truth.focal_px) < 2.5
    smooth = np.convolve(focal, np.ones(9) / 9, mode="valid")
    assert (np.diff(smooth) > -0.003 * smooth[1:]).all()
    assert np.ptp(np.log(focal)) > 0.85 * np.log(1.8)
    error = trajectory_error(row.camera_to_world, truth.camera_to_world, alignment="sim3")
    wide, long = error.position_error_m[:20], error.position_error_m[-20:]
    assert np.median(long) < 3 * max(np.median(wide), 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "num_frames"),
    [
        ({"seed": 3}, 24),  # a path of half a metre, under which parallax is above its bound
        pytest.param({"seed": 3}, 17, marks=pytest.mark.thorough),
        pytest.param({"seed": 3}, 33, marks=pytest.mark.thorough),
        pytest.param(
            {"seed": 14, "zoom_factor": 1.1, "horizontal_fov_deg": 70}, 24, marks=pytest.mark.thorough
        ),
        pytest.param({"seed": 22}, 24, marks=pytest.mark.thorough),
        pytest.param({"seed": 45, "width": 640, "height": 360}, 24, marks=pytest.mark.thorough),
        pytest.param({"seed": 38, "motion": "rotation", "speed": 0.2}, 24, marks=pytest.mark.thorough),
        pytest.param({"seed": 39, "noise_sigma": 6.0}, 24, marks=pytest.mark.thorough),
    ],
)
def test_a_zooming_camera_at_rest_is_no_travelling_one(tmp_path: Path, fields: dict, num_frames: int) -> None:
    resting = {"motion": "static", "zoom": "ramp", "zoom_factor": 1.5} | fields
    clip, truth = prepared(tmp_path, num_frames=num_frames, **resting)
    row = annotate(clip, simulated(truth, CALM))
    assert row.error is None, row.error
    assert row.verdict == "rejected"
    assert "no_parallax" in row.reasons
    (gate,) = [gate for gate in row.gates if gate.name == "rest_error"]
    assert known(gate.value) < 1.12
    assert not gate.passed


@pytest.mark.slow
def test_a_slow_walk_is_no_camera_at_rest(tmp_path: Path) -> None:
    """Eleven centimetres within 20 frames, seen under a third of a degree: the images know of them."""
    clip, truth = prepared(tmp_path, num_frames=20, seed=101, speed=0.15)
    row = annotate(clip, simulated(truth, CALM))
    assert row.verdict == "accepted", row.reason_details
    (gate,) = [gate for gate in row.gates if gate.name == "rest_error"]
    assert known(gate.value) > 1.4
    error = trajectory_error(row.camera_to_world, truth.camera_to_world, alignment="sim3")
    assert error.ate_percent_of_path < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        # Nine centimetres, of which the zoom made 39 before a scene that is three metres away.
        ({"seed": 102, "num_frames": 20, "speed": 0.15, "zoom_factor": 1.5}, False),
        pytest.param(
            {"seed": 402, "num_frames": 36, "speed": 0.3, "zoom_factor": 1.3, "horizontal_fov_deg": 75},
            False,
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            {
                "seed": 409,
                "num_frames": 64,
                "zoom": "in_out",
                "zoom_period_s": 4,
                "zoom_factor": 1.4,
                "horizontal_fov_deg": 75,
            },
            True,
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_walk_that_zooms_is_accepted_if_it_is_longer_than_what_the_zoom_can_make_of_it(
    tmp_path: Path, fields: dict, accepted: bool
) -> None:
    clip, truth = prepared(
        tmp_path, **{"zoom": "ramp", "horizontal_fov_deg": 75 if accepted else 70, **fields}
    )
    row = annotate(clip, simulated(truth, CALM))
    assert row.error is None, row.error
    error = trajectory_error(row.camera_to_world, truth.camera_to_world, alignment="sim3").ate_percent_of_path
    if accepted:
        assert row.verdict == "accepted", row.reason_details
        assert error < 1
    else:
        assert "position_uncertain" in row.reasons


@pytest.mark.slow(about_s=6)
def test_a_zoom_that_was_taken_for_a_constant_lens_says_so(tmp_path: Path) -> None:
    """Right focal lengths on average, 10 % off at either end: what the lens would rather do is what it is sure of."""
    clip, truth = prepared(tmp_path, num_frames=33, zoom="ramp", zoom_factor=1.3, horizontal_fov_deg=70)
    row = annotate(clip, simulated(truth, CALM), bundle={"focal_model": "constant"})
    assert row.error is None, row.error
    assert row.focal_model == "constant"
    assert "focal_uncertain" in row.reasons
    off = np.abs(np.log(row.focal_px[:, 0] / truth.focal_px[row.frame_index]))
    assert off.max() > 0.06
    assert np.median(known(row.log_focal_sigma)) > 0.03


# --- two places in one clip ----------------------------------------------------------------------------


def dissolving(folder: Path, *, blend: int, speed: float, seed: int) -> ClipRef:
    """Two rendered rooms with their depth; one walk becomes the other within `blend` frames."""
    alone = 28
    size: dict[str, Any] = {"width": 320, "height": 192}
    rooms = []
    for room in (seed, seed + 500):
        config = RenderConfig(**size, num_frames=alone + blend, seed=room, speed=speed, noise_sigma=1.0)
        rooms.append(list(render_clip(config)))
    (folder / "depth").mkdir()
    with VideoWriter(folder / "rgb.mp4", **size, fps=16.0) as video:
        for i in range(alone + blend + alone):
            share = float(np.clip((i - alone + 1) / (blend + 1), 0, 1))
            first, second = rooms[0][min(i, alone + blend - 1)], rooms[1][max(i - alone, 0)]
            mixed = (1 - share) * first.rgb.astype(np.float64) + share * second.rgb
            video.write(np.round(mixed).astype(np.uint8))
            shown = first if share < 0.5 else second
            write_depth_png(folder / f"depth/{i:06d}.png", shown.depth_m, units_per_metre=1000.0)
    depth = GivenGeometry(depth_pattern=str(folder / "depth/{frame:06d}.png"), depth_units_per_metre=1000.0)
    media = folder / "rgb.mp4"
    return ClipRef(
        clip_id="two", source="traps", original_id="two", media_kind="video", media_path=media, given=depth
    )


@pytest.mark.slow(about_s=20)
@pytest.mark.thorough
@pytest.mark.parametrize(("seed", "speed"), [(208, 2.0), (212, 3.0)])
def test_two_places_that_chance_matches_join_are_no_clip(tmp_path: Path, seed: int, speed: float) -> None:
    """Dissolves of two seconds between fast walks, which are not found as cuts: each room had its cameras, 11 and 4
    points joined the two, and all other gates passed. The gate by itself: verdict/test_gates.py."""
    row = annotate_clip(
        dissolving(tmp_path, blend=32, speed=speed, seed=seed),
        AnnotateConfig.model_validate(
            {"tracks": {"num_flow_tracks": 150, "num_descriptors": 400}, "decode": {"detect_cuts": False}}
        ),
        mode="given_depth",
        recipe_hash="0" * 16,
    )
    assert row.error is None, row.error
    assert row.verdict == "rejected"
    assert "tracks_lost" in row.reasons, row.reason_details
    assert any("gate joined" in detail for detail in row.reason_details)


# --- clips ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_seven_frames_and_a_broken_file_have_their_reasons(tmp_path: Path) -> None:
    _, truth = prepared(tmp_path)
    files = write_clip(
        render_clip(RenderConfig(width=160, height=96, num_frames=7)),
        tmp_path / "seven",
        depth_units_per_metre=None,
    )
    seven = ClipRef(
        clip_id="seven", source="traps", original_id="7", media_kind="video", media_path=files.media_path
    )
    row = annotate(seven, simulated(truth, CALM))
    assert row.reasons == ("too_short",)
    assert "7 frames" in row.reason_details[0]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(files.media_path.read_bytes()[:400])
    row = annotate(replace(seven, clip_id="broken", media_path=broken), simulated(truth, CALM))
    assert row.reasons[0] in ("unreadable_video", "truncated_video")
    assert row.error is None


def test_1441_frames_are_one_clip_and_not_none(tmp_path: Path) -> None:
    """A minute of 24 fps with one frame too many: others cut windows of exactly 60 s out of it and got none, or two."""
    path = tmp_path / "minute.mp4"
    wall = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    with VideoWriter(path, width=64, height=48, fps=24) as video:
        for i in range(1441):
            video.write(wall[:, i * 16 // 1441 :][:, :64])
    clip = ClipRef(clip_id="minute", source="traps", original_id="m", media_kind="video", media_path=path)
    whole = open_clip(clip, DecodeConfig())
    assert (len(whole), whole.timing.frame_index[-1]) == (961, 1440)
    minute = open_clip(replace(clip, end_s=60.0), DecodeConfig())
    assert (len(minute), minute.timing.frame_index[-1]) == (960, 1439)
    row = annotate_clip(
        replace(clip, start_s=60.0), AnnotateConfig(), mode="given_depth", recipe_hash="0" * 16
    )
    assert row.reasons == ("too_short",)
    assert "1 frames in the window 60 s to the end of 1441 source frames" in row.reason_details[0]
