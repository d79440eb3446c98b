"""`theodolite benchmark` over tiny sets in their own layouts: figures, what is not scored, files for the sets'
servers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from theodolite.annotate.geometry.base import Provenance
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.rendered.render import RenderedClip
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.benchmarks.protocols import PROTOCOLS
from theodolite.dataset.formats.trajectories import read_kitti, read_tum
from theodolite.dataset.metrics.lens import LENS
from theodolite.dataset.reading import open_dataset
from theodolite.recipes.benchmarks.look import Found
from theodolite.recipes.benchmarks.submit import write_trajectories

from ...annotate.simulator import Errors, rendered_truth, simulated
from ...support import Done
from . import trees
from .calls import DESK, RPY, TINY, XYZ, benchmark, findings, sets

CALM = Errors(own_scale=0.02, window_scale=0.0)
TRACKS = "annotate.tracks={num_flow_tracks: 150, num_descriptors: 300}"


# --- with the sets' own depth ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tum_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sequence, one with a picture missing, one whose truth is kept, and what else lies about."""
    root = tmp_path_factory.mktemp("sets") / "tum"
    clip = trees.clip_of()
    trees.write_tum_sequence(root / XYZ, clip)
    shutil.copytree(root / XYZ, root / DESK)
    sorted((root / DESK / "rgb").iterdir())[7].unlink()
    shutil.copytree(root / XYZ, root / RPY)
    (root / RPY / "groundtruth.txt").unlink()
    (root / "__MACOSX" / XYZ).mkdir(parents=True)
    (root / f"{XYZ}.tgz").touch()
    return root


@pytest.fixture(scope="module")
def tum_run(tum_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    out = tmp_path_factory.mktemp("runs") / "tum"
    return out, benchmark("tum", tum_root, out, "--depth", "--workers", 0, *sets(TRACKS))


@pytest.mark.slow
def test_what_cannot_be_scored_is_a_row_with_its_reason(tum_run: tuple[Path, Done]) -> None:
    out, done = tum_run
    assert done.returncode == 1, done.stderr
    read, by_name = findings(out)
    assert {k: s["status"] for k, s in by_name.items()} == {XYZ: "scored", DESK: "failed", RPY: "no_truth"}
    assert by_name[DESK]["reasons"] == ["unreadable_video"]
    assert "1 of 24 images that" in by_name[DESK]["detail"]
    assert "rgb.txt lists are not in" in by_name[DESK]["detail"]
    ate = read["figures"]["ate_se3_m"]
    assert (ate["num"], ate["of"]) == (1, 2)
    assert "1 of 2" in done.stdout
    assert f"{DESK}: failed: unreadable_video" in done.stdout
    assert read["input"] == "pixels and depth"
    assert read["command"].startswith("theodolite benchmark tum --root ")
    assert read["recipe_hash"]
    rows = pq.read_table(out / "sequences.parquet")
    assert rows["sequence"].to_pylist() == [RPY, XYZ, DESK]
    assert rows["status"].to_pylist() == ["no_truth", "scored", "failed"]


@pytest.mark.slow
def test_figures_are_those_of_evo_on_the_files_for_the_server(
    tum_run: tuple[Path, Done], tum_root: Path
) -> None:
    """The trajectory that is written, beside the truth as it ships, by the program that users of the set call."""
    from evo import main_ape
    from evo.core import sync
    from evo.core.metrics import PoseRelation
    from evo.tools import file_interface

    out, _ = tum_run
    _, by_name = findings(out)
    ours = file_interface.read_tum_trajectory_file(str(out / f"trajectories/{XYZ}.txt"))
    truth = file_interface.read_tum_trajectory_file(str(tum_root / XYZ / "groundtruth.txt"))
    assert ours.num_poses == 24
    truth, ours = sync.associate_trajectories(truth, ours, max_diff=0.02)
    for scale, name in ((False, "ate_se3_m"), (True, "ate_sim3_m")):
        theirs = main_ape.ape(
            truth, ours, pose_relation=PoseRelation.translation_part, align=True, correct_scale=scale
        )
        assert by_name[XYZ]["values"][name] == pytest.approx(theirs.stats["rmse"], rel=1e-4)  # float32 rows
    assert by_name[XYZ]["values"]["ate_se3_m"] < 0.02  # of 0.85 m; the nearest true pose is up to 5 ms away
    frames = pq.read_table(out / "frames.parquet")
    assert frames["sequence"].to_pylist() == [XYZ] * 24
    error = np.array(frames["position_error_se3_m"])
    assert np.sqrt((error**2).mean()) == pytest.approx(by_name[XYZ]["values"]["ate_se3_m"])


@pytest.mark.slow
@pytest.mark.parametrize("with_list", [True, False])
def test_chosen_frames_have_their_own_times(
    tum_run: tuple[Path, Done], tum_root: Path, tmp_path: Path, with_list: bool
) -> None:
    """Every third image, as MonST3R chooses them: the list beside them counts all."""
    row = open_dataset(tum_run[0] / "dataset").row(XYZ)
    times = [trees.START_S + 0.02 * i for i in range(3 * row.num_frames)]
    media = tmp_path / XYZ / "rgb_90"
    media.mkdir(parents=True)
    if with_list:
        lines = [f"{time:.6f} rgb/{time:.6f}.png" for time in times]
        (media.parent / "rgb.txt").write_text("\n".join(lines))
    for time in times[::3]:
        (media / f"{time:.6f}.png").touch()
    clip = ClipRef(clip_id=XYZ, source="t", original_id=XYZ, media_kind="images", media_path=media)
    said = write_trajectories(Found(clips={XYZ: clip}), [row], tmp_path, protocol=PROTOCOLS["tum"])
    assert said["sequences"] == 1
    written = read_tum(tmp_path / f"trajectories/{XYZ}.txt").time_s
    assert written is not None
    assert np.abs(written - times[::3]).max() < 1e-5
    (media / "z.png").touch()
    with pytest.raises(ValueError, match=r"z\.png: neither .*rgb\.txt nor its own name says when"):
        write_trajectories(Found(clips={XYZ: clip}), [row], tmp_path, protocol=PROTOCOLS["tum"])


@pytest.mark.slow
def test_a_run_is_continued_and_its_sequences_may_be_chosen(
    tum_run: tuple[Path, Done], tum_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(tum_run[0], out)
    parts = {p: p.stat().st_mtime_ns for p in out.rglob("dataset/data/**/*.parquet")}
    done = benchmark(
        *("tum", tum_root, out, "--depth", "--workers", 0, "--sequences", XYZ, "--format", "json"),
        *sets(TRACKS),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == {"scored": 1}
    assert {p: p.stat().st_mtime_ns for p in out.rglob("dataset/data/**/*.parquet")} == parts


@pytest.mark.slow
def test_a_rejected_sequence_is_in_the_second_means_alone(tum_root: Path, tmp_path: Path) -> None:
    strict = "annotate.gates.fov_max_deg=40"
    done = benchmark(
        *("tum", tum_root, tmp_path, "--depth", "--workers", 0, "--sequences", XYZ), *sets(TRACKS, strict)
    )
    read, by_name = findings(tmp_path)
    assert done.returncode == 0, done.stderr
    assert by_name[XYZ]["status"] == "rejected"
    assert by_name[XYZ]["reasons"] == ["fov_too_wide"]
    assert by_name[XYZ]["values"]["ate_se3_m"] < 0.02
    assert read["figures"]["ate_se3_m"]["num"] == 0
    assert read["figures_with_rejected"]["ate_se3_m"]["num"] == 1
    assert not list((tmp_path / "trajectories").iterdir())  # and nothing of it goes to a server


@pytest.mark.slow
def test_sintel_and_eth3d_from_their_own_depth(tmp_path: Path) -> None:
    clip = trees.clip_of(4)
    root = tmp_path / "sintel"
    trees.write_sintel_sequence(root, "alley_2", clip)
    trees.write_sintel_sequence(root, "alley_1", trees.clip_of(num_frames=2))  # not counted by the protocol
    (root / "training/final/ambush_4").mkdir()
    shutil.copytree(root / "training/final/alley_2", root / "training/final/cave_2")
    done = benchmark("sintel", root, tmp_path / "s", "--depth", "--workers", 0, *sets(TRACKS))
    read, by_name = findings(tmp_path / "s")
    assert done.returncode == 1, done.stderr
    assert len(by_name) == 14
    assert "alley_1" not in by_name
    assert by_name["temple_3"]["status"] == "missing"
    assert by_name["ambush_4"]["status"] == "failed"
    assert "ambush_4: holds no image" in by_name["ambush_4"]["detail"]
    assert by_name["cave_2"]["status"] == "failed"
    assert "its truth is not below" in by_name["cave_2"]["detail"]
    figure = read["figures"]["ate_sim3_m"]
    assert (figure["num"], figure["of"]) == (1, 14)
    values = by_name["alley_2"]["values"]
    assert values["ate_sim3_m"] < 0.01
    assert values["rpe_deg"] < 0.2
    assert values["focal_mape_percent"] < 3

    root = tmp_path / "eth3d"
    trees.write_eth3d_sequence(root / "training/cables_1", clip)
    done = benchmark("eth3d-slam", root, tmp_path / "e", "--depth", "--workers", 0, *sets(TRACKS))
    assert done.returncode == 0, done.stderr
    read, by_name = findings(tmp_path / "e")
    values = by_name["cables_1"]["values"]
    assert read["figures"]["auc_se3_cm"]["value"] == pytest.approx(8 - 100 * values["ate_se3_m"])
    assert values["ate_se3_m"] < 0.02
    assert values["focal_mape_percent"] < 3
    written = read_tum(tmp_path / "e/trajectories/cables_1.txt")
    assert written.time_s is not None
    assert np.allclose(written.time_s, trees.START_S + clip.time_s, atol=1e-5)


# --- with networks: simulated ones, whose answers are known -----------------------------------------------


def pretend_networks(
    monkeypatch: pytest.MonkeyPatch, clips: Mapping[str, RenderedClip], *, stand_in: bool
) -> None:
    """Simulated networks for clips by their ids; `stand_in`: whether their rows say so."""

    class Of:
        def start(self, clip, frames, config, *, poses_suffice):
            truth = rendered_truth(clips[clip.clip_id], frames.timing.frame_index)
            made = simulated(replace(truth, height=frames.height, width=frames.width), CALM)
            for network in (vars(made.sequence)["network"], vars(made.anchor)["network"]):
                network.provenance = Provenance(("pretended",), ("none",), stand_in=stand_in)
            return made.start(clip, frames, config, poses_suffice=poses_suffice)

    monkeypatch.setattr(Estimators, "of", staticmethod(lambda config: Of()))


@pytest.fixture(scope="module")
def zooming() -> RenderedClip:
    """24 frames at 24 Hz whose lens zooms by a quarter."""
    return trees.clip_of(7, fps=24.0, zoom="ramp", zoom_factor=1.25, num_frames=32)


@pytest.fixture(scope="module")
def influx_root(tmp_path_factory: pytest.TempPathFactory, zooming: RenderedClip) -> Path:
    root = tmp_path_factory.mktemp("influx")
    videos = {
        "tennis_shot9": (
            "val",
            zooming,
            36,
        ),  # the list counts four frames that are outside of what was calibrated
        "gone_shot1": ("val", None, 10),
        "jcity_shot34": ("test", zooming, 33),  # one more than the video holds
        "lost_shot2": ("test", None, 5),
    }
    path = trees.write_influx_partition(root, videos) / "gt_validation_dict_v1.json"
    truth = json.loads(path.read_text())
    truth["gone_shot1"]["4"]["intrinsics_gt"] = dict.fromkeys(LENS, 1.0)
    path.write_text(json.dumps(truth))
    return root


@pytest.fixture(scope="module")
def influx_run(
    influx_root: Path, zooming: RenderedClip, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    out = tmp_path_factory.mktemp("runs") / "influx"
    clips = {"influx-val-tennis_shot9": zooming, "influx-test-jcity_shot34": zooming}
    more = ("--every", "--workers", 0, *sets(*TINY, TRACKS))
    with pytest.MonkeyPatch.context() as patch:
        pretend_networks(patch, clips, stand_in=False)
        return out, benchmark("influx", influx_root, out, *more)


@pytest.mark.slow
def test_influx_scores_the_lens_of_every_frame(influx_run: tuple[Path, Done], zooming: RenderedClip) -> None:
    out, done = influx_run
    read, by_name = findings(out)
    assert done.returncode == 1, done.stderr  # a validation video is not here
    scored, gone = by_name["influx-val-tennis_shot9"], by_name["influx-val-gone_shot1"]
    assert scored["status"] == "scored", scored
    assert scored["counts"] == {"num_frames": 32, "num_truth": 32}
    assert scored["values"]["focal_mape_percent"] < 5  # a second of video; the simulated networks err
    assert scored["values"]["epe_below_300px_percent"] == 100
    assert scored["values"]["cx_error_percent"] < 3
    assert "32 frames were decoded, 36 are listed" in scored["detail"]
    assert gone["status"] == "failed"
    assert "videos/gone_shot1.mp4: no such file" in gone["detail"]
    assert by_name["influx-test-jcity_shot34"]["status"] == "no_truth"
    frames = pq.read_table(out / "frames.parquet").to_pandas()
    assert frames["fx_true"].to_numpy() == pytest.approx(zooming.intrinsics[:, 0, 0])
    ratio = frames["fx_predicted"].iloc[-1] / frames["fx_predicted"].iloc[0]
    assert ratio == pytest.approx(1.25, rel=0.04)
    row = open_dataset(out / "dataset").row("influx-val-tennis_shot9")
    # The set's pixel centres are whole numbers, those of rows are at +0.5.
    assert frames["cx_predicted"].to_numpy() == pytest.approx(row.principal_point_px[:, 0] - 0.5)
    assert (read["figures"]["fx_error_percent"]["num"], read["figures"]["fx_error_percent"]["of"]) == (1, 2)


def check_by_the_documented_rules(path: Path, lists: list[Path], target: str) -> int:
    """Rules of docs/README_evaluation.md of princeton-vl/InFlux, read apart from what writes the file. Returns how many
    frames have a prediction."""
    content = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    about = content.pop("submission_metadata")
    assert about["intrinsics_type"] == "rad-tan"
    assert about["version"] == target
    assert about["method_name"]
    predicted = 0
    for listed in lists:
        for name, entry in json.loads(listed.read_text()).items():
            if entry["split"] == "val":
                continue
            video = content.pop(name)
            assert list(video) == [str(i) for i in range(entry["frame_count"])]
            for lens in video.values():
                assert set(lens) == set(LENS)
                whole = all(isinstance(v, int | float) for v in lens.values())
                assert whole or all(v is None for v in lens.values())
                predicted += whole
    assert not content
    return predicted


def their_validator():  # a module of somebody else, from outside of the repository
    """scripts/upload_submission.py of the checkout of princeton-vl/InFlux that THEODOLITE_INFLUX names, or None.

    What it uploads with is not needed.
    """
    checkout = os.environ.get("THEODOLITE_INFLUX")
    if not checkout:
        return None
    script = Path(checkout) / "scripts/upload_submission.py"
    there: dict[str, Any] = {}
    for name in ("requests", "requests_toolbelt", "requests_toolbelt.multipart.encoder", "tqdm"):
        there[name] = types.ModuleType(name)
    there["requests"].Session = there["requests"].Response = object
    there["requests_toolbelt.multipart.encoder"].MultipartEncoder = object
    there["requests_toolbelt.multipart.encoder"].MultipartEncoderMonitor = object
    there["tqdm"].tqdm = object
    there["requests_toolbelt.multipart"] = types.ModuleType("requests_toolbelt.multipart")
    spec = importlib.util.spec_from_file_location("influx_upload_submission", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in {**there, spec.name: module}.items():
            patch.setitem(sys.modules, name, stub)
        spec.loader.exec_module(module)
    return module


def accepted_by_influx(path: Path, root: Path, target: str, *, method: str = "theodolite") -> bool:
    """Whether the set's own check takes the file; False: it is not on this machine."""
    validator = their_validator()
    if validator is None:
        return False
    lists = [root / "influx/video_frame_count_and_split_v1.json"]
    lists.append(root / "influx_pp_real/video_frame_count_and_split_v2.json")
    validator.check_submission_validity(path, method, target, *lists)
    return True


@pytest.mark.slow
def test_influx_s_submission_holds_every_frame_of_the_test_videos(
    influx_run: tuple[Path, Done], influx_root: Path, zooming: RenderedClip
) -> None:
    out, _ = influx_run
    read, _ = findings(out)
    path = out / "submission.json"
    listed = influx_root / "influx/video_frame_count_and_split_v1.json"
    assert check_by_the_documented_rules(path, [listed], "influx") == 32
    sent = read["submission"]
    assert (sent["videos"], sent["frames"], sent["videos_predicted"], sent["frames_predicted"]) == (
        2,
        38,
        1,
        32,
    )
    lenses = json.loads(path.read_text())["jcity_shot34"]
    focal = np.array([lenses[str(i)]["fx"] for i in range(32)])
    assert np.abs(focal / zooming.intrinsics[:, 0, 0] - 1).mean() < 0.05
    assert lenses["32"]["fx"] is None


@pytest.mark.slow
def test_influx_s_own_validator_accepts_the_submission(
    influx_run: tuple[Path, Done], influx_root: Path
) -> None:
    if not accepted_by_influx(influx_run[0] / "submission.json", influx_root, "influx"):
        pytest.skip("set THEODOLITE_INFLUX to a checkout of princeton-vl/InFlux to have its check run")
    validator: Any = their_validator()
    content = json.loads((influx_run[0] / "submission.json").read_text())
    del content["jcity_shot34"]["3"]
    broken = influx_run[0] / "broken.json"
    broken.write_text(json.dumps(content))
    lists = [influx_root / "influx/video_frame_count_and_split_v1.json"] * 2
    with pytest.raises(ValueError, match="missing frame 3"):  # it does look
        validator.check_submission_validity(broken, "theodolite", "influx", *lists)


@pytest.mark.slow
def test_random_networks_have_no_figures_and_send_nothing(influx_root: Path, tmp_path: Path) -> None:
    """The whole road with random weights: rows, tables and a file that the server would take, without one number."""
    done = benchmark(
        "influx",
        influx_root,
        tmp_path,
        "--every",
        "--with-rejected",
        "--workers",
        0,
        *sets(*TINY, TRACKS, "annotate.decode.max_frames=17"),
    )
    _, by_name = findings(tmp_path)
    assert done.returncode == 1, done.stderr
    row = by_name["influx-val-tennis_shot9"]
    assert row["status"] == "rejected"
    assert "stand_in_weights" in row["reasons"]
    assert row["values"] == {}
    listed = influx_root / "influx/video_frame_count_and_split_v1.json"
    assert check_by_the_documented_rules(tmp_path / "submission.json", [listed], "influx") == 0


@pytest.mark.slow
def test_kitti_s_server_gets_poses_of_camera_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = trees.clip_of(9, fps=10.0, num_frames=24)
    root = tmp_path / "kitti"
    folder = trees.write_kitti_sequence(root, "05", clip.camera_to_world)
    for i, frame in enumerate(clip):
        trees.write_png(folder / f"image_2/{i:06d}.png", frame.rgb)
    pretend_networks(monkeypatch, {"05": clip}, stand_in=False)
    out = tmp_path / "out"
    done = benchmark("kitti", root, out, "--sequences", "05", "--workers", 0, *sets(*TINY, TRACKS))
    assert done.returncode == 0, done.stderr
    read, by_name = findings(out)
    assert by_name["05"]["status"] == "scored"
    assert by_name["05"]["counts"]["num_segments"] == 0  # the path is shorter than 100 m
    assert read["figures"]["t_rel_percent"]["num"] == 0
    assert by_name["05"]["values"]["ate_sim3_m"] < 0.05
    written = read_kitti(out / "trajectories/05.txt").camera_to_world
    assert written.shape == (24, 4, 4)
    start = pq.read_table(out / "frames.parquet")["frame"].to_pylist()
    assert start == list(range(24))
