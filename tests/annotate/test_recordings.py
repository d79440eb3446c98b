"""Real recordings through the pipeline, the lens unknown; they are not part of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.metrics.trajectory import trajectory_error
from theodolite.dataset.rows import Row

from ..support import SHARED

FEW_TRACKS = {"num_flow_tracks": 200, "num_descriptors": 700}
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")


def annotated(
    media: str,
    given: GivenGeometry,
    decode: dict[str, Any],
    fps: float | None = None,
    *,
    tracks: dict[str, Any] = FEW_TRACKS,
) -> Row:
    path = SHARED / media
    clip = ClipRef(
        clip_id=path.parent.name,
        source="recordings",
        original_id=media,
        media_kind="images" if path.is_dir() else "video",
        media_path=path,
        source_fps=fps,
        given=given,
    )
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "given"}, "decode": {"min_frames": 10, **decode}, "tracks": tracks}
    )
    return annotate_clip(clip, config, mode="given_depth", recipe_hash="0" * 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("media", "reasons"),
    [
        ("static-euroc/gray.mp4", ("static_camera", "no_metric_scale")),
        ("kitti-straight/gray.mp4", ("no_metric_scale",)),
    ],
)
def test_without_depth_there_is_no_scale_and_a_camera_at_rest_is_seen(media: str, reasons: tuple) -> None:
    row = annotated(media, GivenGeometry(), {"fps": "native", "max_frames": 32})
    assert row.verdict == "rejected"
    assert row.reasons == reasons
    assert row.metres_per_unit is None
    assert len(row.camera_to_world) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "media", "units", "decode", "fps", "ate_m", "focal_percent"),
    [
        # The same stretch with things lying on the picture: tests/annotate/tracks/test_overlay.py.
        pytest.param(
            *("rgbd-office-a", "rgb.mp4", 1000.0, {"max_frames": 32}, None, 0.03, 3.0),
            marks=pytest.mark.thorough,
        ),
        # Ten frames, eleven centimetres: the focal length is hardly determined.
        ("rgbd-tum-mini", "rgb", 5000.0, {"fps": "native"}, 30.0, 0.01, 20.0),
    ],
)
def test_depth_and_pixels_give_metric_cameras_and_the_focal_length(
    folder: str, media: str, units: float, decode: dict, fps: float | None, ate_m: float, focal_percent: float
) -> None:
    given = GivenGeometry(
        depth_pattern=str(SHARED / folder / "depth/{frame:06d}.png"), depth_units_per_metre=units
    )
    row = annotated(f"{folder}/{media}", given, decode, fps)
    truth = read_trajectory(SHARED / folder / "poses_c2w.txt").camera_to_world[row.frame_index]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    assert error.ate_rmse_m < ate_m
    # What the clip does not tell, its row does not claim.
    assert row.reasons == (("focal_uncertain",) if focal_percent > 3 else ()), row.reason_details
    true_focal = np.loadtxt(SHARED / folder / "K.txt")[0, 0]
    assert 100 * np.abs(row.focal_px[:, 0] / true_focal - 1).mean() < focal_percent
    assert row.focal_px[:, 0].std() < 0.02 * true_focal


@pytest.mark.slow(about_s=35)
@pytest.mark.thorough
def test_a_whole_walk_passes_every_gate_as_recipes_set_them() -> None:
    """Nothing moves in it but the camera: a gate that turns this away turns away what users try first."""
    folder = SHARED / "rgbd-office-a"
    given = GivenGeometry(depth_pattern=str(folder / "depth/{frame:06d}.png"), depth_units_per_metre=1000.0)
    row = annotated("rgbd-office-a/rgb.mp4", given, {}, tracks={})
    assert row.verdict == "accepted", row.reason_details
    truth = read_trajectory(folder / "poses_c2w.txt").camera_to_world[row.frame_index]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    assert error.ate_rmse_m < 0.03


@pytest.mark.slow(about_s=30)
def test_true_poses_of_the_beginning_of_a_drive_are_not_late(tmp_path: Path) -> None:
    """At an even pace the first half of what tracks alone find agrees better with true poses 0.8 s later; the second
    half does not."""
    folder, lens = SHARED / "kitti-straight", tmp_path / "k.txt"
    np.savetxt(lens, np.loadtxt(folder / "calib.txt")[0].reshape(3, 4)[:, :3])
    clip = ClipRef(
        clip_id="drive",
        source="recordings",
        original_id="drive",
        media_kind="video",
        media_path=folder / "gray.mp4",
        end_s=2.7,
        given=GivenGeometry(
            camera_to_world_path=folder / "poses_c2w.txt", intrinsics_path=lens, poses_metric=True
        ),
    )
    config = AnnotateConfig.model_validate({"decode": {"fps": "native"}})
    row = annotate_clip(clip, config, mode="given_pose", recipe_hash="0" * 16)
    assert row.num_frames == 27
    assert row.verdict == "accepted", row.reason_details
    late = row.given_time_offset_s
    assert late is None or abs(late) < 0.1 or row.given_time_offset_sigma_s is None


@pytest.mark.slow
@pytest.mark.thorough
def test_every_third_frame_of_a_walk_is_neither_cut_nor_lost(tmp_path: Path) -> None:
    """A quarter of a metre and twelve degrees from frame to frame: flow loses it on every third, descriptors do not."""
    folder, chosen = SHARED / "rgbd-office-a", range(90, 150, 3)
    (tmp_path / "rgb").mkdir()
    with av.open(str(folder / "rgb.mp4")) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    for i, frame in enumerate(chosen):
        cv2.imwrite(str(tmp_path / "rgb" / f"{i:06d}.png"), frames[frame])
        (tmp_path / f"{i:06d}.png").symlink_to(folder / "depth" / f"{frame:06d}.png")
    given = GivenGeometry(depth_pattern=str(tmp_path / "{frame:06d}.png"), depth_units_per_metre=1000.0)
    clip = ClipRef(
        clip_id="fast",
        source="recordings",
        original_id="fast",
        media_kind="images",
        media_path=tmp_path / "rgb",
        source_fps=16.0,
        given=given,
    )
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "given"}, "decode": {"min_frames": 10}, "tracks": FEW_TRACKS}
    )
    row = annotate_clip(clip, config, mode="given_depth", recipe_hash="0" * 16)
    assert row.verdict == "accepted", row.reason_details
    truth = read_trajectory(folder / "poses_c2w.txt").camera_to_world[list(chosen)]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    assert error.ate_rmse_m < 0.04
