"""Which poses of a prediction belong to which of the truth, whatever the layout of either."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theodolite.dataset.camera_files.load import load_cameras
from theodolite.dataset.camera_files.match import Matching
from theodolite.dataset.camera_files.record import ClipCameras
from theodolite.dataset.cameras import transforms as cam
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation, so3_exp
from theodolite.dataset.evaluation import evaluate as ev
from theodolite.dataset.evaluation.score import ClipScore
from theodolite.dataset.export import export_dataset
from theodolite.dataset.formats.base import camera_clip
from theodolite.dataset.formats.colmap import write_colmap
from theodolite.dataset.formats.trajectories import write_kitti, write_matrices, write_tum
from theodolite.dataset.rows import Row

from ...support import SHARED
from ...typed import known
from .runs import csv_rows, run_evaluate

TUM = SHARED / "trajectories" / "tum"


@pytest.mark.slow
@pytest.mark.skipif(not TUM.is_dir(), reason="real trajectories (../shared/data) are not here")
@pytest.mark.parametrize("name", ["fr2_desk_ORB.txt", "fr2_desk_ORB_kf_mono.txt"])
def test_two_tum_files_are_matched_by_time_and_score_like_evo(name: str) -> None:
    sync = pytest.importorskip("evo.core.sync")
    file_interface = pytest.importorskip("evo.tools.file_interface")
    evo_metrics = pytest.importorskip("evo.core.metrics")
    text, code = run_evaluate(TUM / name, TUM / "fr2_desk_groundtruth.txt", style="csv")
    assert code == 0
    ours = next(csv.DictReader(io.StringIO(text)))
    truth = file_interface.read_tum_trajectory_file(str(TUM / "fr2_desk_groundtruth.txt"))
    for column, align, scale in (("ate_none_m", 0, 0), ("ate_se3_m", 1, 0), ("ate_sim3_m", 1, 1)):
        estimate = file_interface.read_tum_trajectory_file(str(TUM / name))
        reference, estimate = sync.associate_trajectories(truth, estimate, max_diff=0.01)
        if align:
            estimate.align(reference, correct_scale=bool(scale))
        ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
        ape.process_data((reference, estimate))
        assert int(ours["num_frames"]) == estimate.num_poses
        assert float(ours[column]) == pytest.approx(
            ape.get_all_statistics()["rmse"], rel=1e-4
        )  # printed digits


def _walk(time_s: np.ndarray) -> np.ndarray:
    """A smooth walk of 1 m/s or so with turns, at any times."""
    t = np.asarray(time_s, dtype=np.float64)
    tangent = np.stack(
        [np.sin(0.7 * t), 0.1 * np.cos(2 * t), 0.8 * t, 0.1 * t, 0.5 * np.sin(t), 0 * t], axis=1
    )
    return cam.transform(so3_exp(tangent[:, 3:]), tangent[:, :3])


START_S = 7.3
"""Where the clip of `walk` begins in its source."""


@pytest.fixture(scope="module")
def walk(
    tmp_path_factory: pytest.TempPathFactory, make_row: Callable[..., Row], make_dataset: Callable
) -> tuple[Path, Row]:
    """A dataset of one clip, a window of a longer video, and its row."""
    base = make_row(0, frames=81)
    times = START_S + base.time_s
    row = make_row(
        0,
        frames=81,
        time_s=times,
        frame_index=base.frame_index + 219,
        camera_to_world=cam.relative_to_first(_walk(times)),
        window_start_s=START_S,
    )
    return make_dataset(tmp_path_factory.mktemp("walk") / "set", {"a": [row]}), row


def _only(predicted: Path, truth: Path, **options: Any) -> ClipScore:
    (score,) = ev.evaluate(load_cameras(predicted), load_cameras(truth), matching=Matching(**options)).clips
    return score


@pytest.mark.parametrize("style", ["tum", "kitti", "colmap", "colmap-text", "nerfstudio"])
def test_a_dataset_agrees_with_its_own_export(walk: tuple[Path, Row], tmp_path: Path, style: str) -> None:
    export_dataset(walk[0], tmp_path / "out", format=style)
    for predicted, truth in ((walk[0], tmp_path / "out"), (tmp_path / "out", walk[0])):
        score = _only(predicted, truth)
        assert score.ate_none_m < 1e-6  # poses are stored as float32
        assert (score.coverage, score.covered_span, score.num_frames) == (1, 1, 81)
    if style == "kitti":
        (tmp_path / "out" / "clip_0000_times.txt").unlink()
        assert _only(walk[0], tmp_path / "out").matched_by == "clip frame"


def test_truth_at_another_rate_is_matched_by_time(walk: tuple[Path, Row], tmp_path: Path) -> None:
    dataset, row = walk
    times = np.arange(0, 20, 1 / 48)  # of the whole source, not of the clip
    write_tum(tmp_path / "clip_0000.tum", _walk(times), times)
    score = _only(dataset, tmp_path)
    nearest = np.abs(row.time_s[:, None] - times).min(1)
    fastest = np.linalg.norm(np.diff(_walk(times)[:, :3, 3], axis=0), axis=1).max() * 48
    assert score.num_frames == (nearest <= 0.01).sum()
    assert 0 < (score.ate_se3_m or 1) < fastest * np.sqrt((nearest**2).mean()) < 0.01
    assert score.coverage == pytest.approx(score.num_frames / len(times))
    assert score.covered_span == pytest.approx((row.time_s[-1] - row.time_s[0]) / times[-1], abs=0.01)
    between = _only(dataset, tmp_path, interpolate=True)
    assert between.num_frames == 81
    assert (between.ate_se3_m or 1) < 1e-4
    assert between.matched_by == "time (interpolated)"
    coarse = np.arange(0, 20, 0.3)
    write_tum(tmp_path / "clip_0000.tum", _walk(coarse), coarse)
    assert _only(dataset, tmp_path, max_difference_s=0.001).num_frames < 20
    write_tum(tmp_path / "clip_0000.tum", _walk(coarse), coarse + 0.027)
    with pytest.raises(ValueError, match=r"none within 1e-05 s of each other: --t-max-diff"):
        _only(dataset, tmp_path, max_difference_s=1e-5)


@pytest.mark.parametrize("first_frame", [0, 219])
def test_time_counts_from_the_first_frame_whatever_its_stamp(
    make_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path, first_frame: int
) -> None:
    """MPEG transport streams start at 1.4 s and more; truth beside a recording starts at 0."""
    index = make_row(0).frame_index + first_frame
    times = index / 29.97
    window = {"window_start_s": first_frame / 29.97} if first_frame else {}
    poses = cam.relative_to_first(_walk(times))
    row = make_row(0, frame_index=index, time_s=times + 1.4, camera_to_world=poses, **window)
    dense = np.arange(0, 12, 1 / 200)
    write_tum(tmp_path / "truth.tum", _walk(dense), dense)
    score = _only(make_dataset(tmp_path / "set", {"a": [row]}), tmp_path / "truth.tum")
    assert (score.num_frames, score.matched_by) == (33, "time")
    assert (score.ate_se3_m or 1) < 0.003  # half a sample of the truth


def test_times_since_1970_need_an_offset_and_the_message_says_which(
    walk: tuple[Path, Row], make_dataset: Callable, tmp_path: Path
) -> None:
    dataset, row = walk
    times = row.time_s[0] + np.arange(0, 5, 1 / 100)
    write_tum(tmp_path / "clip_0000.txt", _walk(times), 1305031098.0 + times)
    with pytest.raises(
        ValueError, match=r"times 7\.300 to .* s, truth 1305031105\.300 to .*--t-offset start"
    ):
        _only(dataset, tmp_path)
    for offset in ("start", 1305031098.0):
        assert (_only(dataset, tmp_path, offset_s=offset).ate_se3_m or 1) < 0.02
    source = _walk(np.arange(371) / 29.97)  # one pose a frame of a source, stamped by its camera
    stamps = 1305031098.0 + np.arange(371) / 29.97 + np.random.default_rng(0).uniform(-0.003, 0.003, 371)
    write_tum(tmp_path / "frames.txt", source, stamps)
    whole = tmp_path / "whole"
    make_dataset(whole, {"a": [replace(row, window_start_s=None, source_fps=29.97)]})
    assert _only(whole, tmp_path / "frames.txt").matched_by.startswith(
        "time of source frames (zeros 130503109"
    )
    assert (_only(whole, tmp_path / "frames.txt").ate_se3_m or 1) < 0.005  # frame 219 is 7 ms behind START_S
    gap = np.arange(371) != 300  # one pose is missing: rows are no frames any more
    write_tum(tmp_path / "frames.txt", source[gap], stamps[gap])
    with pytest.raises(ValueError, match="--t-offset start"):
        _only(whole, tmp_path / "frames.txt")
    write_tum(
        tmp_path / "late.txt", row.camera_to_world, row.time_s + 0.5
    )  # late on the same clock is an error
    assert _only(dataset, tmp_path / "late.txt").matched_by == "time"
    assert (_only(dataset, tmp_path / "late.txt").ate_se3_m or 0) > 0.01
    assert (_only(dataset, tmp_path / "late.txt", offset_s=0.5).ate_se3_m or 1) < 1e-6
    for per_second in (1e9, 1e6):  # as some trackers write a TUM file, from their own start
        write_tum(tmp_path / "clip_0000.txt", row.camera_to_world, (row.time_s * per_second).round())
        found = _only(dataset, tmp_path / "clip_0000.txt")
        assert (found.coverage, found.matched_by) == (1, "time")
        assert (found.ate_se3_m or 0) < 1e-6


def test_whole_milliseconds_are_no_frame_numbers(walk: tuple[Path, Row], tmp_path: Path) -> None:
    dataset, row = walk
    dense = np.arange(0, 20, 1 / 48)
    write_tum(tmp_path / "clip_0000.txt", _walk(dense), (1000 * dense).round())
    for ours, theirs in ((dataset, tmp_path), (tmp_path, dataset)):
        score = _only(ours, theirs)
        assert score.matched_by == "time, whole numbers taken for milliseconds"
        assert score.num_frames > 70
        assert (score.ate_se3_m or 1) < 0.01
    numbers = row.frame_index[::7]  # of keyframes, as some trackers write them for times
    write_tum(tmp_path / "clip_0000.txt", row.camera_to_world[::7], numbers)
    score = _only(dataset, tmp_path)
    assert score.matched_by.startswith("image number")
    assert (score.coverage, score.ate_none_m) == (1, pytest.approx(0, abs=1e-6))


def test_image_numbers_from_1_beside_every_second_frame_are_no_milliseconds(
    make_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    """None of the numbers is one of the clip's frames, and some are within 10 ms of its times."""
    row = make_row(0, frames=81)
    row = replace(row, frame_index=2 * np.arange(81), time_s=np.arange(81) / 12.5)
    dataset = make_dataset(tmp_path / "set", {"a": [row]})
    write_tum(tmp_path / "clip_0000.txt", row.camera_to_world, row.frame_index + 1)
    score = _only(dataset, tmp_path)
    assert score.matched_by == "image number (source frames from 1)"
    assert (score.coverage, score.ate_none_m) == (1, pytest.approx(0, abs=1e-6))


def test_what_is_assumed_of_frames_is_said(
    walk: tuple[Path, Row], make_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    write_matrices(tmp_path / "clip_0000.txt", _walk(np.arange(700) / 29.97))
    said = "source frame (700 rows assumed to begin with the source's first; of how many is not known)"
    assert _only(walk[0], tmp_path).matched_by == said
    row = make_row(0)  # 33 of 61 source frames
    source = cam.se3_exp(np.random.default_rng(0).normal(size=(61, 6)))
    source[row.frame_index] = row.camera_to_world
    dataset = make_dataset(tmp_path / "set", {"a": [row]})
    lines = [" ".join(map(repr, map(float, p[:3].ravel()))) for p in source]
    path = tmp_path / "clip_0000.txt"
    path.write_text("\n".join(f"{i + 1} {line}" for i, line in enumerate(lines)))
    assert "--first-frame 1 if the file counts from 1" in _only(dataset, path).matched_by
    score = _only(dataset, path, first_frame=1)
    assert (score.matched_by, score.ate_none_m) == ("frame (from 1)", pytest.approx(0, abs=1e-6))


def test_rows_without_times_must_be_as_many_as_the_frames(
    make_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    row = make_row(0)  # 33 of 61 source frames
    dataset = make_dataset(tmp_path / "set", {"a": [row]})
    source = cam.se3_exp(np.random.default_rng(0).normal(size=(61, 6)))
    source[row.frame_index] = row.camera_to_world
    path = tmp_path / "clip_0000.txt"
    write_matrices(path, source)
    assert _only(dataset, path).matched_by == "source frame"
    assert _only(dataset, path).ate_none_m == pytest.approx(0, abs=1e-6)
    write_matrices(path, row.camera_to_world)
    assert _only(dataset, path).matched_by == "clip frame"
    assert _only(dataset, path).ate_none_m == pytest.approx(0, abs=1e-6)
    for count in (32, 34, 60, 98, 183):
        write_matrices(path, np.resize(source, (count, 4, 4)))
        with pytest.raises(ValueError, match=f"{count} rows without times, but the clip has 33 frames"):
            _only(dataset, path)
    write_matrices(path, np.concatenate([source, source]))
    assert _only(dataset, path, rows="source").ate_none_m == pytest.approx(0, abs=1e-6)
    write_kitti(tmp_path / "a.txt", source)
    write_kitti(tmp_path / "b.txt", source[:-1])
    with pytest.raises(ValueError, match="61 predicted poses and 60 true ones"):
        _only(tmp_path / "a.txt", tmp_path / "b.txt")


def test_rows_of_a_window_must_be_as_many_as_the_frames_of_its_source(
    make_row: Callable[..., Row], make_dataset: Callable, tmp_path: Path
) -> None:
    source = cam.se3_exp(np.random.default_rng(0).normal(size=(700, 6)))
    row = make_row(0)
    row = replace(row, window_end_s=2.1, source_num_frames=700)
    row = replace(row, camera_to_world=source[row.frame_index])
    dataset = make_dataset(tmp_path / "set", {"a": [row]})
    path = tmp_path / "clip_0000.txt"
    write_matrices(path, source)
    assert _only(dataset, path).matched_by == "source frame"
    write_matrices(path, source[200:])  # its end alone
    with pytest.raises(ValueError, match="500 rows without times, but the source of the clip has 700 frames"):
        _only(dataset, path)
    write_matrices(path, source[:500])
    assert _only(dataset, path, rows="source").ate_none_m == pytest.approx(0, abs=1e-6)


def test_coverage_is_of_the_truth(tmp_path: Path) -> None:
    times = np.arange(90) / 16
    poses = _walk(times)
    write_tum(tmp_path / "truth.tum", poses, times)
    for name, kept in (("lost", slice(30)), ("sparse", slice(None, None, 3)), ("whole", slice(None))):
        write_tum(tmp_path / f"{name}.tum", poses[kept], times[kept])
    lost, sparse, whole = (
        _only(tmp_path / f"{n}.tum", tmp_path / "truth.tum") for n in ("lost", "sparse", "whole")
    )
    assert (lost.coverage, sparse.coverage, whole.coverage) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 1)
    assert lost.covered_span == pytest.approx(1 / 3, abs=0.02)
    assert (sparse.covered_span, whole.covered_span) == (1, 1)
    assert lost.path_length_m < 0.5 * whole.path_length_m


def test_unposed_unsorted_and_repeated_rows_are_handled_and_named(tmp_path: Path) -> None:
    times = np.arange(40) / 16
    poses = _walk(times)
    write_tum(tmp_path / "truth.tum", poses, times)
    header, *lines = (tmp_path / "truth.tum").read_text().splitlines()
    lines[3] = lines[3].split()[0] + " nan nan nan nan nan nan nan"
    lines[7] = lines[7].split()[0] + " 0 0 0 0 0 0 0"
    words = lines[9].split()
    lines[9] = ", ".join(words[:4] + [str(3 * float(w)) for w in words[4:]])  # no unit quaternion, commas
    lines += [lines[20], "# a comment", ""]
    (tmp_path / "messy.tum").write_text("\n".join([header, *reversed(lines)]))
    cameras, truth = load_cameras(tmp_path / "messy.tum"), load_cameras(tmp_path / "truth.tum")
    evaluation = ev.evaluate(cameras, truth)
    (score,) = evaluation.clips
    assert (score.num_frames, score.ate_none_m) == (38, pytest.approx(0, abs=1e-12))
    notes = " ".join(evaluation.notes)
    for words in ("2 of 40 rows hold no pose", "not in order of time", "1 rows repeat", "normalised"):
        assert words in notes
    every = ev.evaluate(truth, cameras).clips[0]  # a truth without a pose is no truth
    assert (every.coverage, every.num_truth) == (1, 38)


def test_numbered_rows_find_their_frames(tmp_path: Path) -> None:
    poses = _walk(np.arange(60) / 16)
    write_kitti(tmp_path / "truth.txt", poses)
    lines = (tmp_path / "truth.txt").read_text().splitlines()
    (tmp_path / "numbered.txt").write_text("\n".join(f"{i} {lines[i]}" for i in range(5, 60, 2)))
    score = _only(tmp_path / "numbered.txt", tmp_path / "truth.txt")
    assert (score.num_frames, score.ate_none_m) == (28, pytest.approx(0, abs=1e-12))
    (tmp_path / "scannet").mkdir()
    for i in range(0, 60, 3):
        matrix = poses[i] if i != 9 else np.full((4, 4), -np.inf)
        (tmp_path / "scannet" / f"{i}.txt").write_text(
            "\n".join(" ".join(map(repr, map(float, r))) for r in matrix)
        )
    score = _only(tmp_path / "scannet", tmp_path / "truth.txt")
    assert (score.num_frames, score.ate_none_m) == (19, pytest.approx(0, abs=1e-12))
    (tmp_path / "one.txt").write_text("\n".join(f"{i + 1} {line}" for i, line in enumerate(lines)))
    dense = {"x": ClipCameras(frame_index=np.arange(60), camera_to_world=poses)}
    for first in (None, 1):
        options = Matching(first_frame=first)
        (score,) = ev.evaluate(load_cameras(tmp_path / "one.txt"), dense, matching=options).clips
        assert (score.num_frames, score.matched_by) == (60, "frame (from 1)")
        assert score.ate_none_m == pytest.approx(0, abs=1e-12)
    (tmp_path / "numbered.txt").write_text("\n".join(f"0.5 {line}" for line in lines))
    with pytest.raises(ValueError, match="first should be a frame number"):
        load_cameras(tmp_path / "numbered.txt")


EUROC_HEADER = (
    "#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z [], "
    "v_RS_R_x [m s^-1], b_w_RS_S_x [rad s^-1]"
)


def test_euroc_sequences_give_the_camera_and_its_frames(tmp_path: Path, walk: tuple[Path, Row]) -> None:
    """The layout of the ASL data: body poses at 200 Hz in nanoseconds, the camera mounted 7 cm off."""
    dataset, _row = walk
    mounting = cam.se3_exp([-0.07, 0.02, 0.01, 0.1, -0.2, 1.5])
    stamps = 1403715273262142976 + np.arange(0, 20 * 10**9, 5 * 10**6)
    body = _walk((stamps - stamps[0]) / 1e9) @ cam.se3_inverse(mounting)
    q = quaternion_wxyz_from_rotation(body[:, :3, :3])
    table = [
        ",".join([str(s), *(f"{v:.9f}" for v in (*p, *w)), "0.1", "0.2"])
        for s, p, w in zip(stamps, body[:, :3, 3], q, strict=True)
    ]
    mav = tmp_path / "clip_0000" / "mav0"
    truth = mav / "state_groundtruth_estimate0"
    truth.mkdir(parents=True)
    (truth / "data.csv").write_text("\n".join([EUROC_HEADER, *table]))
    note = ev.evaluate(load_cameras(dataset), load_cameras(tmp_path), matching=Matching(offset_s="start"))
    assert "poses of the body" in note.notes[0]
    (mav / "cam0").mkdir()
    data = ", ".join(map(repr, map(float, mounting.ravel())))
    (mav / "cam0" / "sensor.yaml").write_text(f"%YAML:1.0\nT_BS:\n  cols: 4\n  rows: 4\n  data: [{data}]\n")
    frames = [f"{stamps[0] + round(i / 29.97 * 1e9)},{i}.png" for i in range(600)]
    (mav / "cam0" / "data.csv").write_text("#timestamp [ns],filename\n" + "\n".join(frames))
    for path in (tmp_path, tmp_path / "clip_0000", truth / "data.csv"):
        score = _only(dataset, path)  # frame numbers and the camera's own stamps: no offset to be told
        assert score.num_frames == 81
        assert (score.ate_se3_m or 1) < 0.01
    # TUM VI names its truth otherwise; a sensor that is not where the body is has a mounting of its own.
    sensor = truth.rename(mav / "mocap0")
    (sensor / "sensor.yaml").write_text(f"%YAML:1.0\nT_BS:\n  cols: 4\n  rows: 4\n  data: [{data}]\n")
    assert (_only(dataset, tmp_path).ate_se3_m or 0) > 0.01  # moved by the mounting's inverse, and back
    (sensor / "sensor.yaml").unlink()
    for path in (tmp_path, tmp_path / "clip_0000", sensor / "data.csv"):
        assert (_only(dataset, path).ate_se3_m or 1) < 0.01


def test_images_are_matched_by_name_number_or_the_time_they_are_named_by(
    walk: tuple[Path, Row], tmp_path: Path
) -> None:
    dataset, row = walk
    clip = camera_clip(row)

    def model(name: str, names: list[str], part: slice = slice(None)) -> Path:
        every = range(81)[part]
        changed = {f: getattr(clip, f)[part] for f in ("camera_to_world", "focal_px", "principal_point_px")}
        named = replace(
            clip, **changed, time_s=None, frame_index=None, image_names=tuple(names[i] for i in every)
        )
        write_colmap(named, tmp_path / name, binary=True)
        return tmp_path / name

    source = model("source", [f"{i:06d}.jpg" for i in row.frame_index])
    ffmpeg = model("ffmpeg", [f"img{i + 1:04d}.jpg" for i in range(81)], slice(0, 81, 2))
    for path, how in ((source, "source frames from 0"), (ffmpeg, "clip frames from 1")):
        score = _only(path, dataset)
        assert score.matched_by == f"image number ({how})"
        assert score.ate_none_m < 1e-6
    assert _only(source, model("other", [f"x/{i:06d}.png" for i in row.frame_index])).matched_by == "name"
    stamped = model("stamped", [f"{1305031102 + t:.6f}.png" for t in row.time_s])
    write_tum(tmp_path / "epoch.txt", row.camera_to_world, row.time_s + 1305031102)
    assert _only(stamped, tmp_path / "epoch.txt").matched_by == "time"
    assert _only(stamped, tmp_path / "epoch.txt").ate_none_m < 1e-6


def test_one_bad_file_costs_one_clip_and_means_say_what_is_missing(
    runs: Path, make_rejected: Callable[..., Row], make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    truth = load_cameras(runs / "truth")
    folder = runs / "files"
    folder.mkdir()
    for clip_id, c in truth.items():
        write_tum(folder / f"{clip_id}.tum", c.camera_to_world, known(c.time_s))
    (folder / "clip_0001.tum").write_text("1 2 3\n")
    (folder / "clip_0002.txt").write_text((folder / "clip_0002.tum").read_text())
    (folder / "README.txt").write_text("poses\n")
    still = np.tile(np.eye(4), (33, 1, 1))
    reject = {"verdict": "rejected", "reasons": ("pose_jump",), "reason_details": ("jumps",)}
    rows = [make_row(0), make_row(1), make_row(2), make_row(3, camera_to_world=still), make_row(4, **reject)]
    blank = {"reasons": ("no_reconstruction",), "reason_details": ("a wall",)}
    write_tum(folder / "clip_0006.tum", still, np.arange(33))
    make_dataset(runs / "mixed", {"a": [*rows, make_rejected(5, **blank), make_rejected(6)]})
    text, code = run_evaluate(runs / "mixed", folder, style="json", out=runs / "tables")
    assert code == 1
    found = json.loads(text)
    assert found["rejected"] == {"clip_0004": ["pose_jump"], "clip_0005": ["no_reconstruction"]}
    assert "clip_0001.tum: 3 entries" in found["failed"]["clip_0001"]
    assert "clip_0002.tum and clip_0002.txt are both of clip clip_0002" in found["failed"]["clip_0002"]
    assert found["failed"]["clip_0006"] == "unreadable_video"  # damage is no judgement
    assert set(found["failed"]) == {"clip_0001", "clip_0002", "clip_0006"}
    assert found["means"]["ate_none_m"]["missing"] == ["clip_0001", "clip_0002", "clip_0006"]
    assert found["means"]["ate_se3_m"]["missing"] == ["clip_0001", "clip_0002", "clip_0003", "clip_0006"]
    assert found["means"]["ate_se3_m"]["num_clips"] == 1
    assert found["means_of_rejected"]["ate_none_m"]["num_clips"] == 1
    assert found["num_clips_expected"] == 5
    statuses = {c["clip_id"]: c["status"] for c in csv_rows(runs / "tables" / "clips.csv")}
    assert list(statuses.values()) == [
        "scored",
        "failed",
        "failed",
        "scored",
        "rejected",
        "rejected",
        "failed",
    ]
    means = csv_rows(runs / "tables" / "means.csv")
    ate = next(m for m in means if m["mean over clips"] == "ate_se3_m")
    assert (ate["clips"], ate["of"], ate["missing"]) == ("1", "5", "clip_0001 clip_0002 clip_0003 clip_0006")
    assert [m["which"] for m in means if m["mean over clips"] == "ate_none_m"] == ["accepted", "rejected"]
    itself = json.loads(run_evaluate(runs / "mixed", runs / "mixed", style="json")[0])
    assert itself["means"]["ate_none_m"]["num_clips"] == 4
    assert itself["means_of_rejected"]["ate_none_m"]["num_clips"] == 1
    (part,) = (runs / "mixed").rglob("part-*.parquet")
    assert load_cameras(part).keys() == load_cameras(runs / "mixed").keys()
    as_truth = json.loads(run_evaluate(runs / "truth", runs / "mixed", style="json")[0])
    assert as_truth["no_truth"] == ["clip_0004", "clip_0005"]  # rejected cameras are no truth
    assert as_truth["failed"] == {}
    text, _ = run_evaluate(runs / "mixed", folder)
    assert "means stand on 2 of 5 clips" in text
    assert f"note: not read: {folder / 'README.txt'}: 1 entries" in text
    assert json.loads((runs / "tables" / "evaluation.json").read_text()) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c/transforms.json", b'{"frames": [1, 2], "w": 4, "h": 4}', "every frame must be an object"),
        ("c/transforms.json", b'{"frames": {}}', "holds no frames"),
        ("c/transforms.json", b'{"frames": [{"file_path": "1.png"}], "w": null, "h": 4}', "w is None"),
        ("c/transforms.json", b"[]", "expected an object"),
        ("c/cameras.txt", b"1 PINHOLE 4 4 x 1 1 1\n", "x"),
        ("c/cameras.bin", bytes(5), "ends at byte 5"),
        ("c/pose/000.txt", b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 2\n", "pose 0 ends in"),
        ("c/mav0/state_groundtruth_estimate0/data.csv", b"#timestamp,x\n1,2\n", "a table of 2 columns"),
        ("c/groundtruth.txt", b"\xff\xfe", "not a text file"),
        ("c.csv", b"time,x,y,z\n0,1,2,3\n", "c.csv"),
        ("c.tum", b"0 0 0 0 0 0 0 1\n1 0 0", "c.tum:2: 3 entries"),
    ],
)
def test_damaged_files_of_any_layout_cost_one_clip_and_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write_tum(tmp_path / "good.tum", _walk(np.arange(5)), np.arange(5))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    if "cameras" in name:
        (tmp_path / name.replace("cameras", "images")).write_bytes(bytes(8) if "bin" in name else b"")
    found = load_cameras(tmp_path)
    assert set(found) == {"good"}
    assert message in found.unreadable["c"]
    assert str(tmp_path / "c") in found.unreadable["c"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
def test_real_layouts_agree_with_each_other(tmp_path: Path) -> None:
    for name in ("rgbd-office-a", "static-euroc", "kitti-straight"):
        score = _only(SHARED / name / "poses.tum", SHARED / name / "poses_c2w.txt")
        assert (score.coverage, score.ate_none_m) == (1, pytest.approx(0, abs=1e-5))
    kitti = SHARED / "trajectories" / "kitti"
    orb = _only(kitti / "KITTI_00_ORB.txt", kitti / "KITTI_00_gt.txt")
    file_interface, evo_metrics = (
        pytest.importorskip(f"evo.{m}") for m in ("tools.file_interface", "core.metrics")
    )
    paths = [file_interface.read_kitti_poses_file(str(kitti / f"KITTI_00_{n}.txt")) for n in ("ORB", "gt")]
    rpe = evo_metrics.RPE(evo_metrics.PoseRelation.translation_part, 1, evo_metrics.Unit.frames)
    rpe.process_data((paths[1], paths[0]))
    assert orb.rpe_m == pytest.approx(rpe.get_statistic(evo_metrics.StatisticsType.rmse), rel=1e-6)
    paths[0].align(paths[1])
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((paths[1], paths[0]))
    assert orb.ate_se3_m == pytest.approx(ape.get_statistic(evo_metrics.StatisticsType.rmse), rel=1e-6)
    fox = SHARED / "fox-transforms"
    bent = json.loads((fox / "transforms.json").read_text()) | {"camera_model": "OPENCV_FISHEYE", "k4": 0.1}
    (tmp_path / "transforms.json").write_text(json.dumps(bent))  # poses are asked for, whatever the lens
    assert _only(tmp_path, fox / "transforms.json").ate_none_m == 0
    score = _only(fox, fox / "transforms.json")
    assert (score.num_frames, score.matched_by, score.focal_mape_percent) == (67, "name", 0)


@pytest.mark.skipif(not TUM.is_dir(), reason="real trajectories (../shared/data) are not here")
def test_offsets_and_distances_of_times_are_those_of_evo(tmp_path: Path) -> None:
    sync = pytest.importorskip("evo.core.sync")
    file_interface = pytest.importorskip("evo.tools.file_interface")
    evo_metrics = pytest.importorskip("evo.core.metrics")
    truth_path, path = TUM / "freiburg1_xyz-groundtruth.txt", tmp_path / "late.txt"
    lines = (TUM / "freiburg1_xyz-rgbdslam_drift.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line[0] != "#"]
    path.write_text("\n".join(" ".join([f"{float(r[0]) + 0.75:.6f}", *r[1:]]) for r in rows))
    score = _only(path, truth_path, offset_s=-0.75, max_difference_s=0.004)
    truth, estimate = (file_interface.read_tum_trajectory_file(str(p)) for p in (truth_path, path))
    truth, estimate = sync.associate_trajectories(truth, estimate, max_diff=0.004, offset_2=-0.75)
    assert score.num_frames == estimate.num_poses < len(rows)
    rmse = evo_metrics.StatisticsType.rmse
    for relation, ours in (
        (evo_metrics.PoseRelation.translation_part, score.rpe_m),
        (evo_metrics.PoseRelation.rotation_angle_deg, score.rpe_deg),
    ):
        rpe = evo_metrics.RPE(relation, 1, evo_metrics.Unit.frames)
        rpe.process_data((truth, estimate))
        assert ours == pytest.approx(rpe.get_statistic(rmse), rel=1e-6)
    estimate.align(truth)
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((truth, estimate))
    assert score.ate_se3_m == pytest.approx(ape.get_statistic(rmse), rel=1e-6)
