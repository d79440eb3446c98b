"""`theodolite benchmark` over cameras of others, and calls that it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from theodolite.dataset.cameras.transforms import se3_exp
from theodolite.dataset.formats.trajectories import read_tum, write_tum
from theodolite.dataset.metrics.lens import LENS
from theodolite.dataset.reading import open_dataset

from ...support import run_here
from . import trees
from .calls import DESK, TINY, XYZ, benchmark, findings, sets


def small_tum(root: Path, name: str = XYZ) -> Path:
    """A sequence of black pictures with a truth, too short for a clip."""
    clip = trees.clip_of(num_frames=12)
    folder = root / name
    (folder / "rgb").mkdir(parents=True)
    times = trees.START_S + clip.time_s
    for time in times:
        trees.write_png(folder / f"rgb/{time:.6f}.png", np.zeros((12, 16, 3), np.uint8))
    (folder / "rgb.txt").write_text("".join(f"{t:.6f} rgb/{t:.6f}.png\n" for t in times))
    trees.write_truth(folder / "groundtruth.txt", clip, trees.START_S)
    return root


# --- cameras of others ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kitti_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Two of the eleven sequences, 330 m each."""
    truth = se3_exp(np.stack([[0, 0, 1.1 * i, 0, 0.002 * i, 0] for i in range(300)]).astype(float))
    root = tmp_path_factory.mktemp("kitti")
    for name in ("00", "03"):
        trees.write_kitti_sequence(root, name, truth)
    return root, truth


def test_cameras_that_somebody_else_made_are_scored_alike(
    kitti_root: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    root, truth = kitti_root
    longer = truth.copy()
    longer[:, :3, 3] *= 1.02
    (tmp_path / "made").mkdir()
    trees.write_kitti(tmp_path / "made/00.txt", longer)
    (tmp_path / "made/03.txt").write_text("damaged\n")
    done = benchmark("kitti", root, tmp_path / "out", "--predictions", tmp_path / "made")
    assert done.returncode == 1, done.stderr
    read, by_name = findings(tmp_path / "out")
    assert 1.8 < by_name["00"]["values"]["t_rel_percent"] < 2.01
    assert by_name["00"]["values"]["t_rel_sim3_percent"] < 1e-6
    assert by_name["03"]["status"] == "failed"
    assert "03.txt" in by_name["03"]["detail"]
    assert by_name["01"]["status"] == "missing"
    assert (read["figures"]["t_rel_percent"]["num"], read["figures"]["t_rel_percent"]["of"]) == (1, 11)
    assert read["input"] == f"predictions in {tmp_path / 'made'}"
    assert "1 of 11" in done.stdout


def test_sequences_that_are_not_whole_name_the_files(
    kitti_root: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    root = tmp_path / "kitti"
    shutil.copytree(kitti_root[0], root)
    (root / "dataset/sequences/00/image_2/000299.png").unlink()
    calibration = root / "dataset/sequences/03/calib.txt"
    calibration.write_text("P0: 1 2 3\n")
    trees.write_kitti_sequence(root, "04", kitti_root[1][:5])
    (root / "dataset/poses/04.txt").write_text("1 0 0 0\n")
    trees.write_kitti_sequence(root, "06", kitti_root[1][:150])
    done = benchmark("kitti", root, tmp_path / "out", "--predictions", root / "dataset/poses")
    assert done.returncode == 1
    _, by_name = findings(tmp_path / "out")
    for name, words in (
        ("00", "sequences/00/image_2 holds 299 images, but"),
        ("03", f"{calibration}: has no line `P2:`"),
        ("04", "poses/04.txt"),
    ):
        assert by_name[name]["status"] == "failed"
        assert words in by_name[name]["detail"], by_name[name]
        assert words in done.stdout
    assert by_name["06"]["status"] == "scored"
    trees.write_kitti_sequence(root, "11", kitti_root[1][:3])
    (root / "dataset/poses/11.txt").unlink()
    done = benchmark("kitti", root, tmp_path / "out", "--predictions", root / "dataset/poses", "--every")
    read, by_name = findings(tmp_path / "out")
    assert by_name["11"]["status"] == "no_truth"
    assert read["figures"]["t_rel_percent"]["of"] == 11  # what is kept by the server is in no mean


# --- what is refused at once ----------------------------------------------------------------------------


@pytest.mark.slow
def test_wrong_calls_say_what_to_do(kitti_root: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    tum_root = small_tum(tmp_path / "tum")
    clip = trees.clip_of(num_frames=2)
    influx_root = trees.write_influx_partition(
        tmp_path / "i", {"a_shot1": ("val", clip, 2), "b_shot1": ("test", None, 2)}
    ).parent
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/MPI-Sintel-complete.zip").touch()
    for words, arguments in (
        ("benchmark bonn: use influx, tum, sintel, kitti or eth3d-slam", ("bonn", "--root", tmp_path)),
        ("--root .*nowhere: no such folder", ("tum", "--root", tmp_path / "nowhere")),
        ("e.g. MPI-Sintel-complete.zip: unpack them first", ("sintel", "--root", tmp_path / "packed")),
        ("holds no clip in the layout kitti-odometry", ("kitti", "--root", tum_root)),
        ("--depth: KITTI odometry ships no depth", ("kitti", "--root", kitti_root[0], "--depth")),
        ("--sequences x: not in", ("kitti", "--root", kitti_root[0], "--sequences", "x")),
        (
            "no sequence of KITTI odometry that can be run; 07",
            ("kitti", "--root", kitti_root[0], "--sequences", "07"),
        ),
        ("InFlux is about lenses", ("influx", "--root", tmp_path, "--predictions", tmp_path)),
        (
            "method 'two words': the InFlux server takes letters",
            ("influx", "--root", influx_root, "--every", "--method", "two words", *sets(*TINY)),
        ),
        ("--format yaml: use text, markdown or json", ("tum", "--root", tum_root, "--format", "yaml")),
        ("needs the kind release with the layout tum-rgbd", ("tum", "--root", tum_root, "--recipe", "rgbd")),
        (
            "theodolite weights pull",
            ("tum", "--root", tum_root, "--set", f"annotate.geometry.pi3x.revision={40 * 'a'}"),
        ),
    ):
        done = run_here("benchmark", *arguments, "--out", tmp_path / "out")
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(done.stderr)
    assert not (tmp_path / "out/benchmark.json").exists()


def test_every_figure_is_explained() -> None:
    done = run_here("benchmark", "--help-metrics")
    assert done.returncode == 0
    for word in ("epe_below_300px_percent", "t_rel_percent", "auc_sim3_cm", "no_truth"):
        assert word in done.stdout


def test_predictions_may_be_a_folder_of_tum_files(tmp_path: Path) -> None:
    tum_root = small_tum(tmp_path / "tum")
    truth = read_tum(tum_root / XYZ / "groundtruth.txt")
    assert truth.time_s is not None
    (tmp_path / "made").mkdir()
    write_tum(tmp_path / f"made/{XYZ}.txt", truth.camera_to_world[::3], truth.time_s[::3] + 0.002)
    done = benchmark("tum", tum_root, tmp_path / "out", "--predictions", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    _, by_name = findings(tmp_path / "out")
    assert by_name[XYZ]["values"]["ate_se3_m"] < 1e-9


def test_a_second_run_may_ask_for_other_sequences(tmp_path: Path) -> None:
    """In the same folder, where rows of the first ones lie; these are rejected before anything is decoded."""
    root, out = small_tum(tmp_path / "tum"), tmp_path / "out"
    small_tum(root, DESK)
    for name in (XYZ, DESK):
        done = benchmark("tum", root, out, "--depth", "--workers", 0, "--sequences", name)
        assert done.returncode == 0, done.stderr
        _, by_name = findings(out)
        assert {k: (s["status"], s["reasons"]) for k, s in by_name.items()} == {
            name: ("rejected", ["too_short"])
        }
    assert len(open_dataset(out / "dataset")) == 2


def test_names_that_become_one_are_refused(tmp_path: Path) -> None:
    root = small_tum(tmp_path / "tum", "my desk")
    small_tum(root, "my_desk")
    done = benchmark("tum", root, tmp_path / "out", "--depth")
    assert done.returncode == 2
    assert "my desk and my_desk are both called my_desk here" in done.stderr


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    root = small_tum(tmp_path / "tum")
    (root / XYZ).rename(root / name)
    (root / name / "rgb.txt").write_text("no list\n")
    small_tum(root)
    done = benchmark("tum", root, tmp_path / "out", "--predictions", root / XYZ / "groundtruth.txt")
    assert "caf" in done.stdout
    _, by_name = findings(tmp_path / "out")
    assert sorted(s["status"] for s in by_name.values()) == ["failed", "scored"]
    assert pq.read_table(tmp_path / "out/sequences.parquet").num_rows == 2


@pytest.mark.slow
def test_a_video_outside_of_what_was_calibrated_has_no_truth(tmp_path: Path) -> None:
    """All its true lenses are NaN, as of some videos: it is in no mean, and no fault of anybody."""
    clip = trees.clip_of(num_frames=3)
    videos = {
        "blank_shot1": ("val", None, 10),
        "gone_shot1": ("val", None, 5),
        "short_shot1": ("val", clip, 3),
    }
    root = trees.write_influx_partition(tmp_path, videos).parent
    path = root / "influx/gt_validation_dict_v1.json"
    truth = json.loads(path.read_text())
    truth["gone_shot1"]["0"]["intrinsics_gt"] = dict.fromkeys(LENS, 1.0)
    path.write_text(json.dumps(truth))
    done = benchmark("influx", root, tmp_path / "out", "--workers", 0, *sets(*TINY))
    assert done.returncode == 1, done.stderr
    read, by_name = findings(tmp_path / "out")
    assert {k: s["status"] for k, s in by_name.items()} == {
        "influx-val-blank_shot1": "no_truth",
        "influx-val-gone_shot1": "failed",
        "influx-val-short_shot1": "rejected",
    }
    wrong = read["figures"]["epe_below_300px_percent"]
    assert (wrong["value"], wrong["num"], wrong["of"], wrong["num_absent"]) == (0, 2, 2, 2)
