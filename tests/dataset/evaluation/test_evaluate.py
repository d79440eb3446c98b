"""Evaluation from datasets, trajectory files and videos; what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.camera_files.match import Matching
from theodolite.dataset.camera_files.record import ClipCameras
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.evaluation import evaluate as ev
from theodolite.dataset.evaluation.score import score_clip
from theodolite.dataset.evaluation.tables import format_table
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats.base import camera_clip
from theodolite.dataset.formats.sana import BenchScene
from theodolite.dataset.formats.trajectories import write_matrices, write_tum
from theodolite.dataset.metrics import trajectory as metrics
from theodolite.dataset.metrics.image import RevisitPair, score_video
from theodolite.dataset.rows import Row

from ...sana_bench import write_sana_bench
from ...typed import wrong
from .runs import csv_rows, run_evaluate


def test_scores_are_those_of_the_metrics(runs: Path) -> None:
    predicted, truth = load_cameras(runs / "ours"), load_cameras(runs / "truth")
    evaluation = ev.evaluate(predicted, truth)
    assert [c.clip_id for c in evaluation.clips] == [f"clip_{i:04d}" for i in range(5)]
    assert evaluation.only_truth == ("clip_0005",)
    c = evaluation.clips[2]
    e, t = predicted[c.clip_id].camera_to_world, truth[c.clip_id].camera_to_world
    assert c.ate_se3_m == metrics.trajectory_error(e, t, alignment="se3").ate_rmse_m
    turned = np.rad2deg(np.sqrt(np.mean(metrics.rotation_error(e, t) ** 2)))
    assert c.rotation_rmse_deg == turned
    assert c.rotation_ape_deg == np.rad2deg(metrics.trajectory_error(e, t, alignment="se3").rotation_rmse_rad)
    assert c.rpe_m == metrics.relative_pose_error(e, t).translation_rmse_m
    assert c.rpe_sim3_m == metrics.relative_pose_error(e, t, scale=c.scale or 0).translation_rmse_m
    assert c.rpe_deg == metrics.relative_pose_error(e, t).rotation_rmse_deg
    assert c.cam_mc_bench == metrics.camera_control_error(e, t, variant="bench").cam_mc
    assert c.focal_mape_percent == pytest.approx(1.0, rel=1e-5)
    assert 0.9 < (c.scale or 0) < 1.1


def test_resized_prediction_is_compared_in_units_of_the_image(runs: Path) -> None:
    predicted, truth = load_cameras(runs / "truth"), load_cameras(runs / "truth")
    c = predicted["clip_0001"]
    half = ClipCameras(
        frame_index=c.frame_index[::2],
        camera_to_world=c.camera_to_world[::2],
        focal_px=(c.focal_px / 2)[::2] if c.focal_px is not None else None,
        width=640,
        height=360,
    )
    score = score_clip("clip_0001", half, truth["clip_0001"])
    assert score.focal_mape_percent == pytest.approx(0, abs=1e-9)
    assert score.ate_none_m == pytest.approx(0, abs=1e-9)
    assert score.num_frames == 17


def test_trajectory_files_and_folders(runs: Path) -> None:
    truth = load_cameras(runs / "truth")
    folder = runs / "files"
    folder.mkdir()
    full = np.tile(np.eye(4), (61, 1, 1))
    for clip_id, c in truth.items():
        full[c.frame_index] = c.camera_to_world  # a pose per source frame, as recordings ship them
        write_matrices(folder / f"{clip_id}.txt", full)
    text, code = run_evaluate(runs / "ours", folder)
    assert code == 1
    assert "clip_0005" in text.splitlines()[-1]
    text, code = run_evaluate(runs / "theirs", folder, style="csv", plots=runs / "plots")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6
    assert "focal_mape_percent" not in rows[0]  # files carry no intrinsics
    assert ET.parse(runs / "plots" / "ate_se3_m.svg").getroot().tag.endswith("svg")
    write_tum(runs / "one.tum", full, np.arange(61) / 30)
    text, code = run_evaluate(runs / "one.tum", folder / "clip_0005.txt", style="markdown")
    assert text.splitlines()[2].startswith("| one | 61 | 1 |")


def test_a_straight_path_has_no_alignment_but_still_scores() -> None:
    poses = np.tile(np.eye(4), (10, 1, 1))
    poses[:, 0, 3] = np.arange(10)
    c = ClipCameras(frame_index=np.arange(10), camera_to_world=poses)
    score = score_clip("s", c, c)
    assert score.ate_se3_m is None
    assert score.rotation_ape_deg is None
    assert score.rotation_rmse_deg == pytest.approx(0, abs=1e-5)
    assert score.ate_none_m == 0
    assert score.rpe_m == 0


FRAMES_16_FPS = 401


def _there_and_back() -> np.ndarray:
    poses = np.tile(np.eye(4), (FRAMES_16_FPS, 1, 1))
    x = np.abs(np.linspace(-3, 3, FRAMES_16_FPS))
    poses[:, :3, 3] = np.stack([x, 0.1 * np.sin(x), 0.2 * x**2], axis=1)
    return poses


def _video(path: Path, *, fades: bool) -> None:
    """A texture that moves with the camera of `_there_and_back`, lossless; contrast is lost on the way if it fades."""
    import av

    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (48, 400, 3)).astype(np.float64)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for i, x in enumerate(_there_and_back()[:, 0, 3]):
            start = round(100 * x)
            image = texture[:, start : start + 64]
            if fades:
                image = 128 + (image - 128) * (1 - 0.5 * i / FRAMES_16_FPS)
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.slow
def test_videos_are_scored_at_returns_and_from_first_to_last(tmp_path: Path) -> None:
    poses = _there_and_back()
    for folder in ("truth", "ours", "theirs", "steady", "fading"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(3)
    for name in ("a", "b", "c"):
        write_matrices(tmp_path / "truth" / f"{name}.txt", poses)
        for run, sigma in (("ours", 0.001), ("theirs", 0.01)):
            noisy = poses @ cam.se3_exp(rng.normal(size=(FRAMES_16_FPS, 6)) * sigma)
            write_matrices(tmp_path / run / f"{name}.txt", noisy)
    for folder, fades in (("steady", False), ("fading", True)):
        _video(tmp_path / folder / "a.mkv", fades=fades)
        shutil.copy(tmp_path / folder / "a.mkv", tmp_path / folder / "b.mkv")
    text, code = run_evaluate(
        tmp_path / "ours",
        tmp_path / "truth",
        baseline=tmp_path / "theirs",
        style="csv",
        videos=tmp_path / "steady",
        baseline_videos=tmp_path / "fading",
        quality="sharpness",
        perceptual="theodolite.dataset.metrics.image:psnr_db",
        plots=tmp_path / "plots",
        out=tmp_path / "tables",
    )
    assert code == 0
    clips, means, paired = (
        csv_rows(tmp_path / "tables" / f"{n}.csv") for n in ("clips", "means", "baseline")
    )
    assert list(csv.DictReader(io.StringIO(text))) == clips  # one table a file, and on stdout
    a, b, c = clips
    assert float(a["revisit_psnr_db"]) == 100 == float(b["revisit_lpips"])  # the same pictures to the bit
    assert float(a["revisit_ssim"]) == pytest.approx(1)
    assert abs(float(a["quality_drop"])) < 20  # the way back shows nearly the same cuts of the texture
    assert c["revisit_psnr_db"] == "-"  # no video of this clip
    assert next(m for m in means if m["mean over clips"] == "revisit_psnr_db")["clips"] == "2"
    difference = {p["minus baseline"]: float(p["difference"]) for p in paired}
    assert difference["revisit_psnr_db"] > 50
    assert difference["quality_drop"] < -1000
    assert difference["ate_se3_m"] < 0
    assert (tmp_path / "plots" / "revisit_psnr_db.svg").is_file()
    assert "revisit" not in run_evaluate(tmp_path / "ours", tmp_path / "truth")[0]
    with pytest.raises(ValueError, match="need --videos"):
        run_evaluate(tmp_path / "ours", tmp_path / "truth", quality="sharpness")
    with pytest.raises(ValueError, match=r"holds no video of a clip that both have, e\.g\. a\.mp4"):
        run_evaluate(tmp_path / "ours", tmp_path / "truth", videos=tmp_path / "plots")
    with pytest.raises(ValueError, match="401 frames, but the camera returns at frame 500"):
        score_video("a", tmp_path / "steady" / "a.mkv", [RevisitPair(frame_a=0, frame_b=500)])


def test_a_split_of_the_benchmark_is_truth_with_its_own_returns(
    tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    import cv2

    clip = replace(camera_clip(make_row(0, frames=961)), name="indoor_001")
    png = cv2.imencode(".png", np.zeros((clip.height, clip.width, 3), np.uint8))[1].tobytes()
    pairs = (RevisitPair(frame_a=3, frame_b=900, quality_score=0.5),)
    scene = BenchScene(clip=clip, image_png=png, prompt="", pairs=pairs)
    write_sana_bench(tmp_path, {"hard_60s": [scene]})
    truth = load_cameras(tmp_path / "benchmark_v2_hard_60s")
    assert truth["indoor_001"].returns == pairs
    assert truth["indoor_001"].width == clip.width
    score = score_clip("indoor_001", truth["indoor_001"], truth["indoor_001"])
    assert score.cam_mc == pytest.approx(0, abs=1e-6)
    assert score.focal_mape_percent == 0


def test_a_lerobot_export_is_read_back(runs: Path, tmp_path: Path) -> None:
    export_dataset(runs / "truth", tmp_path / "robot", format="lerobot")
    text, code = run_evaluate(tmp_path / "robot", runs / "truth", style="json")
    assert code == 0
    means = json.loads(text)["means"]
    assert (means["coverage"]["mean"], means["coverage"]["num_clips"]) == (1.0, 6)
    assert means["ate_se3_m"]["mean"] < 1e-5
    assert means["focal_mape_percent"]["mean"] < 1e-4


@pytest.mark.parametrize("options", [Matching(), Matching(interpolate=True)])
def test_one_common_pose_of_two_paths_is_no_score(options: Matching) -> None:
    """Times in milliseconds meet the true ones at zero alone: an error of nothing, over one frame, was the answer."""
    path = np.tile(np.eye(4), (20, 1, 1))
    path[:, 0, 3] = 0.1 * np.arange(20)
    time_s = np.arange(20) / 16

    def cameras(times: np.ndarray, poses: np.ndarray = path) -> ClipCameras:
        return ClipCameras(
            frame_index=np.arange(len(poses)), camera_to_world=poses, time_s=times, numbering="rows"
        )

    with pytest.raises(ValueError, match=r"clip c: one common frame.*0.0625 s: are both in seconds\?"):
        score_clip("c", cameras(1000 * time_s), cameras(time_s), matching=options)
    late, gap = time_s + 0.03 * (time_s > 0), time_s + 9 * (time_s > 0.5)
    why = r"one common frame.*no others within 0.01 s of each other: --t-max-diff"
    if options.interpolate:
        late, why = late + 4, r"no common frame.*none between two true poses at most 2.5 usual steps apart"
    with pytest.raises(ValueError, match=why):
        score_clip("c", cameras(late), cameras(gap if options.interpolate else time_s), matching=options)
    # Nor by their numbers, or their names.
    ours = ClipCameras(frame_index=np.arange(20), camera_to_world=path, names=tuple(map(str, range(20))))
    for theirs in (
        replace(ours, frame_index=np.arange(19, 39), names=None),
        replace(ours, names=tuple(map(str, range(19, 39)))),
    ):
        with pytest.raises(ValueError, match=r"clip c: one common frame, .* \(matched by (frame|name)\)"):
            score_clip("c", ours, theirs, matching=options)
    # A file of one pose says what it can.
    assert score_clip("c", cameras(time_s[:1], path[:1]), cameras(time_s), matching=options).num_frames == 1


def test_refusals(runs: Path, tmp_path: Path) -> None:
    truth = load_cameras(runs / "truth")
    with pytest.raises(ValueError, match="no clip id in common"):
        ev.evaluate({"x": truth["clip_0000"], "y": truth["clip_0001"]}, truth)
    late = ClipCameras(frame_index=np.array([10**6]), camera_to_world=np.eye(4)[None])
    with pytest.raises(ValueError, match="no common frame"):
        score_clip("c", late, truth["clip_0000"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a dataset"):
        load_cameras(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such file"):
        load_cameras(tmp_path / "absent")
    with pytest.raises(ValueError, match="expected text, markdown or csv"):
        format_table(["a"], [], style=wrong("html"))
