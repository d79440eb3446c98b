"""InFlux: lenses in the set's own pixels, frames without a prediction, and what the file of a server must not hold."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theodolite.dataset.benchmarks.influx import (
    find_partitions,
    lenses_of_video,
    read_true_lenses,
    target_of,
    write_submission,
)
from theodolite.dataset.benchmarks.score import lenses_of_row, score_lenses
from theodolite.dataset.benchmarks.truth import Lenses, true_lenses
from theodolite.dataset.metrics.lens import LENS
from theodolite.dataset.rows import Row

SIZE = (2202, 3424)


def row(**given: Any) -> Row:
    """A row of four frames, decoded at 1280 pixels of 3424."""
    fields: dict[str, Any] = {
        "clip_id": "influx-val-a",
        "source": "influx",
        "original_id": "influx/a",
        "media_kind": "video",
        "media": "influx/videos/a.mp4",
        "mode": "estimate",
        "data_licence": "CC-BY-4.0",
        "data_redistributable": False,
        "stand_in": False,
        "recipe_hash": "0" * 16,
        "package_version": "0",
        "verdict": "accepted",
        "width": 1280,
        "height": 823,
        "frame_index": np.array([0, 1, 2, 5], np.int32),
        "time_s": np.array([0.0, 1.0, 2.0, 5.0]),
        "camera_to_world": np.tile(np.eye(4, dtype=np.float32), (4, 1, 1)),
        "focal_px": np.full((4, 2), 1000, np.float32),
        "principal_point_px": np.tile(np.array([640, 411.5], np.float32), (4, 1)),
        "pose_source": np.ones(4, np.int8),
    }
    return Row(**(fields | given))


def test_a_row_s_lens_is_told_in_the_source_s_pixels() -> None:
    made = lenses_of_row(row(radial_k1=-0.1), SIZE)
    assert made.frame.tolist() == [0, 1, 2, 5]
    wanted = [1000 * 3424 / 1280, 1000 * 2202 / 823, 1712 - 0.5, 1101 - 0.5, -0.1, 0, 0, 0]
    assert made.values[0] == pytest.approx(wanted)
    assert lenses_of_row(row(), SIZE).values[0, 4] == 0
    focal = np.full((4, 2), 1000, np.float32)
    focal[2] = np.nan
    assert lenses_of_row(row(focal_px=focal), SIZE).frame.tolist() == [0, 1, 5]
    bare: dict[str, Any] = {"focal_px": np.zeros((0, 2), np.float32)}
    bare["principal_point_px"] = bare["focal_px"]
    bare["camera_to_world"] = np.zeros((0, 4, 4), np.float32)
    bare |= {
        "pose_source": np.zeros(0, np.int8),
        "verdict": "rejected",
        "reasons": ("no_parallax",),
        "reason_details": ("x",),
    }
    assert len(lenses_of_row(row(**bare), SIZE).frame) == 0


def true(count: int = 10) -> Lenses:
    lens = [3000.0, 3000.0, 1711.5, 1100.5, -0.1, 0, 0, 0]
    return Lenses(frame=np.arange(count), values=np.tile(lens, (count, 1)))


def test_frames_without_a_prediction_are_wrong_in_one_figure_and_left_out_of_the_others() -> None:
    t = true()
    predicted = Lenses(
        frame=t.frame[:6], values=t.values[:6] * [1.02, 0.98, 1, 1, 1, 1, 1, 1], height=2202, width=3424
    )
    found = score_lenses(predicted, t)
    assert found.counts == {"num_frames": 6, "num_truth": 10}
    assert found.values["epe_below_300px_percent"] == pytest.approx(60)
    assert found.values["fx_error_percent"] == pytest.approx(2)
    assert found.values["fy_error_percent"] == pytest.approx(2)
    assert found.values["focal_mape_percent"] == pytest.approx(2)
    assert found.values["cx_error_percent"] == 0
    assert found.values["distortion_median_px"] == pytest.approx(0, abs=1e-6)
    assert 5 < found.values["epe_median_px"] < 40
    assert len(found.frames["frame"]) == 6


def test_distortion_alone_is_measured_at_the_true_focal_length() -> None:
    """k1 of -0.1 instead of none moves a point at a distance r from the centre by 0.1 r^3 / f^2."""
    t = replace(true(), values=true().values * [1, 1, 1, 1, 0, 0, 0, 0])
    bent = Lenses(frame=t.frame, values=t.values * [1.5, 1.5, 1, 1, 1, 1, 1, 1], height=2202, width=3424)
    bent.values[:, 4] = -0.1
    found = score_lenses(bent, t)
    x = (np.arange(20) + 0.5) * 3424 / 20 - 0.5 - 1711.5
    y = (np.arange(15) + 0.5) * 2202 / 15 - 0.5 - 1100.5
    r = np.hypot(*np.meshgrid(x, y))
    assert found.values["distortion_median_px"] == pytest.approx(np.median(0.1 * r**3 / 3000**2), rel=1e-6)


def test_points_far_off_are_counted() -> None:
    """A focal length 1.5 times too long moves points beyond 600 px from the centre by more than 300."""
    t = true()
    t.values[:, 4:] = 0
    long = Lenses(frame=t.frame, values=t.values * [1.5, 1.5, 1, 1, 1, 1, 1, 1], height=2202, width=3424)
    x = (np.arange(20) + 0.5) * 3424 / 20 - 0.5 - 1711.5
    y = (np.arange(15) + 0.5) * 2202 / 15 - 0.5 - 1100.5
    share = (np.hypot(*np.meshgrid(x, y)) < 600).mean()
    assert score_lenses(long, t).values["epe_below_300px_percent"] == pytest.approx(100 * share)


def test_numbers_that_a_true_lens_does_not_determine_are_left_out() -> None:
    """No share of a principal point at 0, no distance where no point has a ray; without a word of numpy's."""
    t = true()
    t.values[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_lenses(replace(t, height=2202, width=3424), t).values
        assert "cx_error_percent" not in found
        assert found["fx_error_percent"] == 0
        t.values[:, :2] = 1e-6
        t.values[:, 4:] = [-0.3, 0, 0, 0]
        found = score_lenses(replace(t, height=2202, width=3424), t).values
    assert "epe_median_px" not in found
    assert found["epe_below_300px_percent"] == 0


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(ValueError, match="no frame has a true lens"):
        score_lenses(true(), true(0))
    other = replace(true(), frame=np.arange(10) + 50)
    with pytest.raises(ValueError, match="none of the 10 frames with a true lens has a predicted one"):
        score_lenses(other, true())


# --- files ----------------------------------------------------------------------------------------------


def entry(fx: Any = 3000.0) -> dict[str, Any]:
    lens = dict.fromkeys(LENS, 1.0) | {"fx": fx}
    return {
        "intrinsics_gt": lens,
        "intrinsics_gt_extrapolated": dict.fromkeys(LENS, 7.0),
        "lens_metadata": {},
    }


def written(root: Path, truth: Any, *, frames: int = 4, split: str = "val") -> Path:
    folder = root / "influx"
    folder.mkdir(exist_ok=True)
    videos = {"a_shot1": {"frame_count": frames, "split": split}}
    (folder / "video_frame_count_and_split_v1.json").write_text(json.dumps(videos))
    path = folder / "gt_validation_dict_v1.json"
    path.write_text(truth if isinstance(truth, str) else json.dumps(truth))
    return path


def test_frames_outside_of_what_was_calibrated_have_no_truth(tmp_path: Path) -> None:
    """They hold NaN, as Python writes it; what was extrapolated is not taken."""
    path = written(
        tmp_path, {"a_shot1": {"10": entry(), "2": entry(float("nan")), "0": entry(2.0)}}, frames=11
    )
    assert "NaN" in path.read_text()
    (partition,) = find_partitions(tmp_path)
    frame, values = lenses_of_video(read_true_lenses(partition), partition.videos[0], path=path)
    assert frame.tolist() == [0, 10]
    assert values[:, 0].tolist() == [2.0, 3000.0]


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({}, "has no lenses of video a_shot1"),
        ({"a_shot1": []}, "has no lenses of video a_shot1"),
        ({"a_shot1": {"4": entry()}}, "frame '4', but its list counts 4 frames"),
        ({"a_shot1": {"first": entry()}}, "frame 'first', but"),
        ({"a_shot1": {"0": {}}}, "expected intrinsics_gt with fx"),
        ({"a_shot1": {"9" * 5000: entry()}}, "but its list counts 4 frames"),
        ({"a_shot1": {"1": entry(), "01": entry()}}, "frame '01', but"),
        ({"a_shot1": {"0": entry("long")}}, "holds no numbers"),
        ({"a_shot1": {"0": entry("long" * 1000)}}, "holds no numbers"),
        ({"a_shot1": {"0": entry(10**400)}}, "holds a number beyond all floats"),
        ({"a_shot1": {"0": entry(-3)}}, "must be positive"),
        ("{", "not JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "gt_validation_dict_v1"),
    ],
)
def test_damaged_truth_costs_its_video_and_is_named(tmp_path: Path, truth: Any, words: str) -> None:
    path = written(tmp_path, truth)
    found, problems = true_lenses(find_partitions(tmp_path))
    assert not found
    assert words in problems["influx-val-a_shot1"]
    assert str(path) in problems["influx-val-a_shot1"]
    assert len(problems["influx-val-a_shot1"]) < len(str(path)) + 400


def test_a_submission_is_null_where_there_is_nothing(tmp_path: Path) -> None:
    written(tmp_path, {}, split="test", frames=3)
    partitions = find_partitions(tmp_path)
    values = np.array(
        [[3000.123456789, 1, 2, 3, -0.1, 0, 0, 0], [np.nan, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8]]
    )
    path = tmp_path / "submission.json"
    counts = write_submission(
        path, partitions, {"influx-test-a_shot1": (np.array([0, 1, 9]), values)}, method="ours_v1"
    )
    assert counts == {"videos": 1, "frames": 3, "videos_predicted": 1, "frames_predicted": 1}
    content = json.loads(path.read_text())
    assert content["submission_metadata"] == {
        "method_name": "ours_v1",
        "intrinsics_type": "rad-tan",
        "version": "influx",
    }
    assert content["a_shot1"]["0"] == {
        "fx": 3000.12346,
        "fy": 1,
        "cx": 2,
        "cy": 3,
        "k1": -0.1,
        "k2": 0,
        "p1": 0,
        "p2": 0,
    }
    assert content["a_shot1"]["1"] == content["a_shot1"]["2"] == dict.fromkeys(LENS)
    for method in ("", "-x", "two words", "x" * 101):
        with pytest.raises(ValueError, match="the InFlux server takes letters"):
            write_submission(path, partitions, {}, method=method)


def test_both_partitions_are_sent_together(tmp_path: Path) -> None:
    written(tmp_path, {}, split="test")
    second = tmp_path / "influx_pp_real"
    second.mkdir()
    videos = {"b_shot1": {"frame_count": 2, "split": "test"}, "a_shot1": {"frame_count": 2, "split": "val"}}
    (second / "video_frame_count_and_split_v2.json").write_text(json.dumps(videos))
    partitions = find_partitions(tmp_path)
    assert target_of(partitions) == "all"
    path = tmp_path / "submission.json"
    assert write_submission(path, partitions, {}, method="m")["videos"] == 2
    assert json.loads(path.read_text())["submission_metadata"]["version"] == "all"
    videos["a_shot1"]["split"] = "test"
    (second / "video_frame_count_and_split_v2.json").write_text(json.dumps(videos))
    with pytest.raises(ValueError, match="a_shot1 is in both partitions"):
        write_submission(path, find_partitions(tmp_path), {}, method="m")
    written(tmp_path, {}, split="val")
    with pytest.raises(ValueError, match="lists no test video"):
        write_submission(path, find_partitions(tmp_path)[:1], {}, method="m")
