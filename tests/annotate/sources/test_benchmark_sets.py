"""TUM RGB-D, ETH3D SLAM, MPI Sintel, KITTI odometry and InFlux-Real as their archives unpack: clips, and what is
damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.geometry.given import GivenGeometrySource
from theodolite.annotate.sources.clip import ClipRef, ClipRejection, GivenGeometry
from theodolite.annotate.sources.entries import IndexEntry, ReleaseSource
from theodolite.annotate.sources.read import read_clips
from theodolite.annotate.sources.tree import rate_of

from ...recipes.benchmarks.trees import dpt_bytes
from ...typed import wrong
from .trees import listed, touch

NATIVE = DecodeConfig(fps="native", min_frames=2)


def picture(path: Path, *, size: tuple[int, int] = (12, 16), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return path


def depth_picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((12, 16), value, np.uint16))


def tum(folder: Path, times: list[float], *, depth: list[float] | None = None) -> Path:
    """A sequence of TUM RGB-D; map i holds 5000 (i + 1): i + 1 metres."""
    for kind, at in (("rgb", times), ("depth", depth or [])):
        for i, time in enumerate(at):
            path = folder / kind / f"{time:.6f}.png"
            picture(path) if kind == "rgb" else depth_picture(path, 5000 * (i + 1))
        lines = (f"{t:.6f} {kind}/{t:.6f}.png\n" for t in at)
        if at:
            (folder / f"{kind}.txt").write_text("# timestamp filename\n" + "".join(lines))
    return folder


TIMES = [1305031102.175304, 1305031102.211214, 1305031102.243211]


def test_two_frames_may_have_one_time_by_rounding() -> None:
    assert rate_of([0.0, 0.0083, 0.0167, 0.025]) == rate_of([0.0, 0.01, 0.01, 0.025]) == pytest.approx(120)
    assert rate_of([0.0, 0.02, 0.01, 0.03]) is None, "they run back"
    assert rate_of([0.5, 0.5]) is rate_of([0.5]) is None


def test_tum_sequences_are_their_folders(tmp_path: Path) -> None:
    root = tmp_path / "freiburg1"
    tum(root / "rgbd_dataset_freiburg1_xyz", TIMES, depth=TIMES)
    touch(root / "rgbd_dataset_freiburg1_xyz/groundtruth.txt")
    touch(root / "rgbd_dataset_freiburg1_xyz/rgb_90/1305031102.175304.png")  # as MonST3R's script leaves it
    tum(root / "rgbd_dataset_freiburg1_rpy", TIMES)
    touch(root / "tools/associate.py")
    clips = listed("tum-rgbd", root)
    assert list(clips) == ["rgbd_dataset_freiburg1_rpy", "rgbd_dataset_freiburg1_xyz"]
    whole, bare = clips["rgbd_dataset_freiburg1_xyz"], clips["rgbd_dataset_freiburg1_rpy"]
    assert whole.problem is bare.problem is None
    assert whole.truth_camera_to_world_path == root / "rgbd_dataset_freiburg1_xyz/groundtruth.txt"
    assert bare.truth_camera_to_world_path is None
    assert bare.given.depth_list_path is None
    frames = open_clip(whole, NATIVE)
    assert frames.image_names == tuple(f"{t:.6f}.png" for t in TIMES)
    assert frames.timing.source_fps == pytest.approx(2 / (TIMES[-1] - TIMES[0]))


def test_sequences_behind_links_out_of_the_root_are_told_of(tmp_path: Path, caplog) -> None:
    root = tmp_path / "tum"
    tum(root / "rgbd_dataset_here", TIMES)
    tum(tmp_path / "elsewhere" / "rgbd_dataset_there", TIMES)
    source = ReleaseSource(kind="release", name="t", layout="tum-rgbd", root=root)
    assert len(list(read_clips(source))) == 1
    assert not caplog.records
    (root / "rgbd_dataset_there").symlink_to(tmp_path / "elsewhere" / "rgbd_dataset_there")
    assert len(list(read_clips(source))) == 2
    assert f"{root}: links lead to 1 media elsewhere (e.g. rgbd_dataset_there/rgb): they are" in caplog.text


def test_tum_depth_is_the_nearest_in_time(tmp_path: Path) -> None:
    """Maps come at times of their own; one is of one image, and of none that is more than 20 ms away."""
    late = 0.014  # so that the second is 18 ms from the third image, too
    depth = [TIMES[0] - 0.005, TIMES[1] + late, TIMES[2] + 0.021]
    folder = tum(tmp_path / "rgbd_dataset_freiburg1_xyz", TIMES, depth=depth)
    (clip,) = listed("tum-rgbd", folder).values()
    frames = open_clip(clip, NATIVE)
    read = GivenGeometrySource().read(clip, frames)
    assert read.metres_per_unit == 1.0
    maps = [read.depth.read(i) for i in range(3)]
    assert [None if m is None else float(m[0, 0]) for m in maps] == [1.0, 2.0, None]
    (folder / "depth.txt").write_text(f"{TIMES[0] + 5:.6f} depth/x.png\n")
    with pytest.raises(ClipRejection, match=r"found by the times in .*depth\.txt.*no times within") as caught:
        GivenGeometrySource().read(clip, frames)
    assert caught.value.reason == "depth_unreadable"
    (folder / "depth.txt").write_text(f"{TIMES[0]:.6f} depth/x.png\n")
    with pytest.raises(ClipRejection, match="2 of the clip's 3 frames have no depth file"):
        GivenGeometrySource().read(clip, frames)
    (folder / "depth.txt").write_text("no time\n")
    with pytest.raises(ClipRejection, match=r"depth\.txt:1: expected `time path`"):
        GivenGeometrySource().read(clip, frames)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda f: (f / f"rgb/{TIMES[1]:.6f}.png").unlink(),
            r"1 of 3 images that .*rgb\.txt lists are not in .*211214",
        ),
        (
            lambda f: picture(f / "rgb/1305031102.2.png"),
            r"1 of 4 images in .*rgb are not listed .*1305031102\.2\.png",
        ),
        (lambda f: shutil.rmtree(f / "rgb"), "no such folder, but rgb.txt lists images in it"),
        (lambda f: (f / "rgb.txt").write_text(""), "lists no file"),
        (lambda f: (f / "rgb.txt").write_text("1 ../../secret.png\n"), "leads upwards"),
        (
            lambda f: (f / "rgb.txt").write_text("1 a/x.png\n2 b/y.png\n"),
            "lists images in several folders, a, b",
        ),
        (lambda f: (f / "rgb.txt").write_bytes(b"\xff\xfe\0\0"), r"rgb\.txt"),
    ],
)
def test_tum_sequences_that_are_not_whole_say_so(tmp_path: Path, damage, words: str) -> None:
    folder = tum(tmp_path / "rgbd_dataset_freiburg1_xyz", TIMES)
    damage(folder)
    (clip,) = listed("tum-rgbd", tmp_path).values()
    assert clip.problem is not None
    assert clip.problem[0] == "unreadable_video"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(clip.problem[1])


def test_hidden_files_of_a_mac_are_no_images(tmp_path: Path) -> None:
    folder = tum(tmp_path / "rgbd_dataset_freiburg1_xyz", TIMES)
    touch(folder / f"rgb/._{TIMES[0]:.6f}.png")
    (clip,) = listed("tum-rgbd", tmp_path).values()
    assert clip.problem is None


def test_sequences_of_one_name_in_two_places_are_refused(tmp_path: Path) -> None:
    tum(tmp_path / "a/cables_1", TIMES)
    tum(tmp_path / "b/cables_1", TIMES)
    with pytest.raises(ValueError, match=r"two sequences are called cables_1, .*a/cables_1 and .*b/cables_1"):
        listed("tum-rgbd", tmp_path)


def test_tum_dynamics_are_the_frames_that_monst3r_s_script_chose(tmp_path: Path) -> None:
    folder = tum(tmp_path / "rgbd_dataset_freiburg3_walking_xyz", TIMES, depth=TIMES)
    for time in TIMES[::2]:
        picture(folder / f"rgb_90/{time:.6f}.png")
    touch(folder / "groundtruth_90.txt")
    touch(tmp_path / "other/groundtruth_90.txt")
    tum(tmp_path / "rgbd_dataset_freiburg3_sitting_xyz", TIMES)
    clips = listed("tum-dynamics", tmp_path)
    assert list(clips) == ["other", "rgbd_dataset_freiburg3_walking_xyz"]
    clip = clips["rgbd_dataset_freiburg3_walking_xyz"]
    assert clip.source_fps == pytest.approx(1 / (TIMES[2] - TIMES[0]))
    depth = GivenGeometrySource().read(clip, open_clip(clip, NATIVE)).depth
    assert [float(np.asarray(depth.read(i))[0, 0]) for i in range(2)] == [1.0, 3.0]
    problem = clips["other"].problem
    assert problem is not None
    assert "rgb_90: holds no images that are named by their times" in problem[1]


@pytest.mark.parametrize("names", [("nan", "1.0", "2.0"), ("1.0", "2.0", "inf"), ("0.0", "1e300"), ("5.0",)])
def test_names_that_say_no_rate_are_told(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        picture(tmp_path / f"a/rgb_90/{name}.png")
    touch(tmp_path / "a/groundtruth_90.txt")
    clip = listed("tum-dynamics", tmp_path)["a"]
    assert clip.source_fps is None
    assert clip.problem is not None


@pytest.mark.parametrize("rate", [0.0, 1e-300, 1e300, float("inf"), float("nan")])
def test_rates_of_no_camera_are_refused_with_the_clip(tmp_path: Path, rate: float) -> None:
    picture(tmp_path / "i/0.png")
    clip = ClipRef(
        clip_id="c",
        source="s",
        original_id="c",
        media_kind="images",
        media_path=tmp_path / "i",
        source_fps=rate,
    )
    with pytest.raises(ClipRejection, match=r"clip c: .*source_fps is .*, expected 0.0001 to 1000") as error:
        open_clip(clip, NATIVE)
    assert error.value.reason == "no_frame_rate"
    with pytest.raises(ValueError, match="source_fps"):
        IndexEntry.model_validate({"id": "c", "video": "a.mp4", "source_fps": rate})
    with pytest.raises(ValueError, match="source_fps"):
        DecodeConfig(source_fps=rate)


def test_listed_depth_needs_images_with_times(tmp_path: Path) -> None:
    """Images that begin at a later number, and a video, which has none."""
    (tmp_path / "depth.txt").write_text("".join(f"{i}.001 d/{i}.png\n" for i in range(10, 14)))
    given = GivenGeometry(depth_list_path=tmp_path / "depth.txt", depth_units_per_metre=5000.0)
    for i in range(10, 14):
        picture(tmp_path / f"i/{i}.png")
        depth_picture(tmp_path / f"d/{i}.png", 5000 * i)
    clip = ClipRef(
        clip_id="c",
        source="s",
        original_id="c",
        media_kind="images",
        media_path=tmp_path / "i",
        source_fps=1.0,
        numbered=True,
        given=given,
    )
    frames = open_clip(clip, NATIVE)
    depth = GivenGeometrySource().read(clip, frames).depth
    assert [float(np.asarray(depth.read(i))[0, 0]) for i in range(4)] == [10, 11, 12, 13]
    unnamed = replace(wrong(frames), image_names=())
    with pytest.raises(ClipRejection, match=r"clip c: depth is found by the times in .*depth\.txt"):
        GivenGeometrySource().read(replace(clip, numbered=False), unnamed)


def test_eth3d_sequences_have_a_calibration(tmp_path: Path) -> None:
    tum(tmp_path / "training/cables_1", [9.5, 9.75, 10.0])
    (tmp_path / "training/cables_1/calibration.txt").write_text("726 726 359 202\n")
    tum(tmp_path / "elsewhere", TIMES)
    (clip,) = listed("eth3d-slam", tmp_path).values()
    assert (clip.clip_id, clip.problem) == (
        "cables_1",
        None,
    )  # 10 comes after 9 by its time, not by its letters
    assert clip.source_fps == pytest.approx(4.0)


def test_sintel_s_two_archives_may_lie_in_one_tree_or_in_two(tmp_path: Path) -> None:
    for images, cameras in (("one", "one"), ("MPI-Sintel-complete", "MPI-Sintel-depth-training-20150305")):
        root = tmp_path / f"{images}-root"
        for i in (1, 2):
            picture(root / images / f"training/final/alley_2/frame_{i:04d}.png")
            picture(root / images / f"training/clean/alley_2/frame_{i:04d}.png")
            touch(root / cameras / f"training/camdata_left/alley_2/frame_{i:04d}.cam")
            path = touch(root / cameras / f"training/depth/alley_2/frame_{i:04d}.dpt")
            path.write_bytes(dpt_bytes(np.full((12, 16), float(i))))
        picture(root / images / "training/final/bamboo_1/frame_0001.png")
        picture(root / images / "test/final/ambush_1/frame_0001.png")
        (root / images / "training/final/empty_1").mkdir()
        clips = listed("sintel-final", root)
        assert list(clips) == ["alley_2", "bamboo_1", "empty_1"]
        clip = clips["alley_2"]
        assert clip.truth_camera_to_world_path == root / cameras / "training/camdata_left/alley_2"
        assert clips["bamboo_1"].truth_camera_to_world_path is None
        problem = clips["empty_1"].problem
        assert problem is not None
        assert "empty_1: holds no image" in problem[1]
        depth = GivenGeometrySource().read(clip, open_clip(clip, NATIVE)).depth
        assert [float(np.asarray(depth.read(i))[0, 0]) for i in range(2)] == [1.0, 2.0]  # frames count from 1
        assert listed("sintel-clean", root)["alley_2"].media_path.parent.name == "clean"
    (tmp_path / "one-root/copy/training/final").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds two folders final"):
        listed("sintel-final", tmp_path / "one-root")


def test_kitti_s_archives_may_lie_in_one_tree_or_in_several(tmp_path: Path) -> None:
    for images, calibration, poses in (
        ("dataset", "dataset", "dataset"),
        ("color/dataset", "calib/dataset", "gt/dataset"),
    ):
        root = tmp_path / images.replace("/", "-")
        for name, camera in (("00", "image_2"), ("01", "image_0"), ("11", "image_2")):
            for i in range(3):
                picture(root / images / f"sequences/{name}/{camera}/{i:06d}.png")
            touch(root / images / f"sequences/{name}/image_3/000000.png")
        times = root / calibration / "sequences/00/times.txt"
        times.parent.mkdir(parents=True, exist_ok=True)
        times.write_text("0.000000e+00\n1.037359e-01\n2.074718e-01\n")
        touch(root / poses / "poses/00.txt")
        touch(root / poses / "poses/05.txt")
        (root / images / "sequences/notes").mkdir()
        (root / images / "sequences/02").mkdir()
        clips = listed("kitti-odometry", root)
        assert list(clips) == ["00", "01", "02", "11"]
        assert clips["00"].media_path == root / images / "sequences/00/image_2"
        assert clips["01"].media_path.name == "image_0"
        assert clips["00"].source_fps == pytest.approx(1 / 0.1037359)
        assert clips["01"].source_fps == 10.0
        assert clips["00"].truth_camera_to_world_path == root / poses / "poses/00.txt"
        assert clips["11"].truth_camera_to_world_path is None
        problem = clips["02"].problem
        assert problem is not None
        assert "sequences/02: holds no images in image_2 or image_0" in problem[1]


@pytest.mark.parametrize(
    "times", ["0\n0.1\n0.2\ninf\n", "nan\n0\n1\n", "0\n1e300\n", "0\n1e-300\n", "1\n0\n"]
)
def test_kitti_s_times_that_say_no_rate_are_told(
    tmp_path: Path, times: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "sequences/00"
    picture(folder / "image_2/000000.png")
    (folder / "times.txt").write_text(times)
    assert listed("kitti-odometry", tmp_path)["00"].source_fps == 10.0
    assert "times.txt: its times say no rate of a camera; 10 frames a second are assumed" in caplog.text


def test_kitti_s_poses_beside_the_images_come_first(tmp_path: Path) -> None:
    for tree in ("a", "b", "."):
        touch(tmp_path / tree / "poses/00.txt")
    for tree in ("b", "c"):
        picture(tmp_path / tree / "sequences/00/image_2/000000.png")
    clip = listed("kitti-odometry", tmp_path)["00"]
    assert clip.truth_camera_to_world_path == tmp_path / "b/poses/00.txt"


def influx(root: Path, videos: dict[str, object], *, name: str = "influx", version: str = "_v1") -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"video_frame_count_and_split{version}.json").write_text(json.dumps(videos))
    return folder


def test_influx_videos_are_those_of_its_lists(tmp_path: Path) -> None:
    first = influx(
        tmp_path,
        {
            "tennis_shot9": {"frame_count": 3, "split": "val"},
            "jcity_shot34": {"frame_count": 9, "split": "test"},
        },
    )
    second = influx(
        tmp_path,
        {"tennis_shot9": {"frame_count": 4, "split": "test"}},
        name="influx_pp_real",
        version="_v2",
    )
    touch(first / "videos/tennis_shot9.mp4")
    touch(first / "videos/unlisted_shot1.mp4")
    touch(second / "frames/tennis_shot9/0000000.tiff")
    clips = listed("influx-real", tmp_path)
    assert list(clips) == [
        "influx-test-jcity_shot34",
        "influx-val-tennis_shot9",
        "influx_pp_real-test-tennis_shot9",
    ]
    assert clips["influx-val-tennis_shot9"].media_path == first / "videos/tennis_shot9.mp4"
    assert clips["influx-val-tennis_shot9"].problem is None
    images = clips["influx_pp_real-test-tennis_shot9"]
    assert (images.media_kind, images.media_path) == ("images", second / "frames/tennis_shot9")
    problem = clips["influx-test-jcity_shot34"].problem
    assert problem is not None
    assert "videos/jcity_shot34.mp4: no such file, but" in problem[1]


def test_influx_s_first_release_lies_in_one_folder(tmp_path: Path) -> None:
    folder = influx(tmp_path, {"dog_shot1": {"frame_count": 3, "split": "val"}}, name="dataset", version="")
    touch(folder / "dog_shot1.mp4")
    (clip,) = listed("influx-real", tmp_path).values()
    assert (clip.clip_id, clip.media_path) == ("influx-val-dog_shot1", folder / "dog_shot1.mp4")


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        ({"a": {"frame_count": 3}}, "expected a split val or test and a frame_count"),
        ({"a": {"frame_count": 3, "split": "train"}}, "expected a split val or test"),
        ({"a": {"frame_count": -3, "split": "val"}}, "expected a split val or test and a frame_count"),
        ({"a": {"frame_count": True, "split": "val"}}, "expected a split val or test and a frame_count"),
        ({"a": {"frame_count": 10**9, "split": "test"}}, "expected a split val or test and a frame_count"),
        ({"a": 3}, "expected a split val or test"),
        ({"../a": {"frame_count": 3, "split": "val"}}, "is no name of a video"),
        ([], "expected an object with keys"),
    ],
)
def test_influx_lists_that_are_none_are_named(tmp_path: Path, videos, words: str) -> None:
    folder = influx(tmp_path, videos)
    with pytest.raises(ValueError, match=words) as caught:
        listed("influx-real", tmp_path)
    assert str(folder / "video_frame_count_and_split_v1.json") in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["rgbd_dataset_freiburg1_xyz.tgz", "README"],
            r"it holds 1 archives, e\.g\. rgbd_dataset_freiburg1_xyz\.tgz",
        ),
        (["data_odometry_color.zip"], r"e\.g\. data_odometry_color\.zip: unpack them first"),
        (["a.tar.gz"], r"e\.g\. a\.tar\.gz: unpack them first"),
        (["color.z01", "color.zip"], r"parts of a split archive, color\.z01 and so on: join them"),
        (["color.zip.001", "color.zip.002"], r"parts of a split archive, color\.zip\.001"),
        (["x.tgz.partaa"], r"parts of a split archive, x\.tgz\.partaa"),
    ],
)
def test_archives_that_are_not_unpacked_are_named(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        touch(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        listed("tum-rgbd", tmp_path)


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    tum(tmp_path / "a/rgbd_dataset_freiburg1_xyz", TIMES)
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)
    assert list(listed("tum-rgbd", tmp_path)) == ["rgbd_dataset_freiburg1_xyz"]
    with pytest.raises(ValueError, match="holds no clip"):
        listed("kitti-odometry", tmp_path)


def test_a_source_takes_only_the_wanted_clips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("freiburg1_xyz", "freiburg1_rpy", "freiburg2_desk"):
        tum(tmp_path / name, TIMES)

    def ids(*only: str) -> list[str]:
        source = ReleaseSource(
            kind="release", name="tum", layout="tum-rgbd", root=tmp_path, only=only or None
        )
        return [clip.clip_id for clip in read_clips(source)]

    assert ids() == ["freiburg1_rpy", "freiburg1_xyz", "freiburg2_desk"]
    assert ids("freiburg2_desk", "*_xyz") == ["freiburg1_xyz", "freiburg2_desk"]
    with pytest.raises(ValueError, match=r"no clip is called as source\.only wants them"):
        ids("freiburg3*")
    assert not caplog.records
    assert ids("freiburg2_desk", "freiburg2_dekt", "*_xyz", "x*") == ["freiburg1_xyz", "freiburg2_desk"]
    assert f"{tmp_path}: no clip is called freiburg2_dekt, x* (source.only)" in caplog.text
