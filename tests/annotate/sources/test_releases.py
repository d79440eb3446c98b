"""Trees of public sets as their readers see them: what makes a clip, its window, and the traps of each set.

Cameras of layouts that go through the whole pipeline are in test_shipped_cameras.py, archives in test_archives.py.
"""

from __future__ import annotations

import itertools
import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.frames.timing import choose_frames
from theodolite.annotate.geometry.given import GivenGeometrySource
from theodolite.annotate.given.cameras import read_given_cameras
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.files import write_png
from theodolite.annotate.sources.clip import ClipRef, ClipRejection
from theodolite.annotate.sources.entries import VideosSource
from theodolite.annotate.sources.omniworld import runs
from theodolite.annotate.sources.read import read_clips
from theodolite.annotate.sources.releases import LAYOUTS, release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.annotate.sources.windows import Windows, count_samples, cut_windows
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_exp, se3_inverse
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.colmap import write_colmap
from theodolite.dataset.formats.sana import write_sana_zip
from theodolite.dataset.formats.shipped import read_shipped
from theodolite.dataset.media.write import VideoWriter

HEIGHT, WIDTH = 36, 64
SCENE = "0" * 63 + "a"
TEN, SIXTY = Windows(frames=161), Windows(frames=961)


def poses(count: int) -> np.ndarray:
    """A path that turns about all axes, from a pose that is not the identity."""
    t = np.linspace(0, 1, count)[:, None]
    return se3_exp(
        np.concatenate([2 * t, -t, 3 * t**2, 0.4 * t, -0.8 * t, 0.3 * t], 1) + [1, 2, 3, 0.5, 0.2, -0.4]
    )


def video(path: Path, *, frames: int, fps: float = 30.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=fps) as out:
        for i in range(frames):
            out.write(np.full((HEIGHT, WIDTH, 3), i % 251, np.uint8))
    return path


def listed(layout: str, root: Path, **release) -> dict[str, ClipRef]:
    clips = release_clips(layout, Release(root=root, source="test", **release))
    return {clip.clip_id: clip for clip in clips}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def cameras_of(clip: ClipRef):
    return read_given_cameras(clip, open_clip(clip, DecodeConfig(min_frames=2)))


# --- windows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps", "samples"),
    [
        (1800, 30.0, 960),
        (1800, 30000 / 1001, 961),
        (1801, 30.0, 961),
        (1440, 24.0, 960),
        (1439, 24.0, 959),
        (1441, 24.0, 961),
        (300, 30.0, 160),
    ],
)
def test_counted_samples_are_those_that_are_decoded(
    tmp_path: Path, frames: int, fps: float, samples: int
) -> None:
    assert count_samples(frames / fps, fps) == samples
    clip = ClipRef(
        clip_id="c",
        source="t",
        original_id="c",
        media_kind="video",
        media_path=video(tmp_path / "a.mp4", frames=frames, fps=fps),
    )
    assert len(open_clip(clip, DecodeConfig())) == samples


@pytest.mark.parametrize("fps", [16.0, 24.0, 30000 / 1001, 30.0, 60.0])
@pytest.mark.parametrize("windows", [TEN, Windows(frames=161, stride=80), Windows(frames=81, shortest=40)])
def test_a_window_decodes_to_what_it_says(tmp_path: Path, fps: float, windows: Windows) -> None:
    frames = round(25 * fps)
    path = video(tmp_path / "a.mp4", frames=frames, fps=fps)
    cut = list(cut_windows(windows, duration_s=frames / fps, fps=fps))
    stride, least = windows.stride or windows.frames, windows.shortest or windows.frames
    held = count_samples(frames / fps, fps)
    assert [w.start for w in cut] == list(range(0, held - least + 1, stride))[: len(cut)]
    assert (
        len(cut) >= (held - least - 1) // stride + 1
    )  # the last may lack a frame, for where its own grid begins
    for window in cut:
        clip = ClipRef(
            clip_id="c",
            source="t",
            original_id="c",
            media_kind="video",
            media_path=path,
            start_s=window.start_s,
            end_s=window.end_s,
            max_frames=windows.frames,
        )
        timing = open_clip(clip, DecodeConfig()).timing
        assert len(timing.frame_index) >= least
        assert len(timing.frame_index) in (min(windows.frames, held - window.start), held - window.start - 1)
        assert abs(timing.time_s[0] - window.start / 16) <= 1 / fps


def test_windows_are_those_that_decode_to_enough_frames() -> None:
    """Against the rule that chooses frames, on 60 random rates and lengths: none too many, none too few."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        rate = Fraction(int(rng.integers(16_000, 61_000)), 1000)
        frames, fps, stride = int(rng.integers(100, 200)), float(rate), int(rng.integers(7, 14))
        held = count_samples(frames / fps, fps)
        # The last window has just enough frames, unless its own grid begins late.
        windows = Windows(frames=33, stride=stride, shortest=stride + held % stride)
        cut = {w.start: w for w in cut_windows(windows, duration_s=frames / fps, fps=fps)}
        for start in range(0, round(frames / fps * 16), windows.stride):
            window = cut.get(start)
            end_s = None if window is None else window.end_s
            chosen = choose_frames(np.arange(frames), 1 / rate, start_s=start / 16, end_s=end_s)
            if window is None:
                assert len(chosen) < windows.shortest, (rate, frames, windows, start)
            else:
                assert len(chosen) >= windows.shortest, (rate, frames, windows, start)


def test_a_short_window_is_rejected_not_padded(tmp_path: Path) -> None:
    """Nothing is repeated to fill a class: a minute at 30 fps has 960 frames, which a recipe allows or not."""
    path = video(tmp_path / "--Rwt95Vkw0_0000000_0001800.mp4", frames=1800)
    (clip,) = listed("sekai-game", tmp_path, windows=Windows(frames=961, most=1)).values()
    assert clip.media_path == path
    with pytest.raises(
        ClipRejection, match=r"too_short.*960 frames.*at least 961 are wanted \(source.windows\)"
    ):
        open_clip(clip, DecodeConfig())
    (clip,) = listed("sekai-game", tmp_path, windows=Windows(frames=961, shortest=960, most=1)).values()
    assert len(open_clip(clip, DecodeConfig())) == 960


def test_windows_of_media_without_a_table_come_from_the_header(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", frames=750)
    clips = listed("sekai-game", tmp_path, windows=Windows(frames=161, stride=100))
    assert list(clips) == ["a_s000000", "a_s000100", "a_s000200"]
    assert [len(open_clip(clip, DecodeConfig())) for clip in clips.values()] == [161, 161, 161]


def test_a_stretch_too_short_for_any_window_is_a_row_that_says_so(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", frames=90)
    video(tmp_path / "b/c.mp4", frames=700)
    source = VideosSource(kind="videos", name="v", root=tmp_path, windows=TEN)
    clips = {clip.clip_id: clip for clip in read_clips(source)}
    first, *others = clips
    assert first == "a_s000000"
    assert [name[-8:] for name in others] == ["_s000000", "_s000161"]
    with pytest.raises(ClipRejection, match="too_short"):
        open_clip(clips[first], DecodeConfig())
    assert [len(open_clip(clips[name], DecodeConfig())) for name in others] == [161, 161]


def test_a_duration_that_cannot_be_is_unknown(tmp_path: Path) -> None:
    assert [w.start for w in cut_windows(TEN, duration_s=1e20, fps=24.0)] == [0]
    assert [w.start for w in cut_windows(TEN, duration_s=float("inf"))] == [0]


def test_a_record_of_unpacking_that_is_none_is_passed_over(tmp_path: Path, caplog) -> None:
    touch(tmp_path / "videos/group_0001/a.mp4")
    (tmp_path / ".unpacked").mkdir()
    good = {"place": "videos/group_0001/b.mp4", "reason": "archive_damaged", "detail": "d"}
    lines = [
        [],
        3,
        {"place": 3, "reason": "archive_damaged"},
        {"place": "../x.mp4", "reason": "archive_damaged"},
        good,
    ]
    (tmp_path / ".unpacked/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / ".unpacked/b.jsonl").write_text('{"place": ')
    assert list(listed("spatialvid-hq", tmp_path)) == ["a", "b"]
    assert "unpack the archive again" in caplog.text


def test_windows_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="shortest"):
        Windows(frames=161, shortest=162)


# --- SpatialVID ---------------------------------------------------------------------------------------


def test_spatialvid_has_one_window_a_video_without_any_table(tmp_path: Path) -> None:
    video(tmp_path / "videos/group_0001/long.mp4", frames=330)
    video(tmp_path / "videos/group_0001/short.mp4", frames=90)
    clips = listed("spatialvid-hq", tmp_path, windows=Windows(frames=161, most=1))
    assert list(clips) == ["long", "short"]
    assert len(open_clip(clips["long"], DecodeConfig())) == 161
    with pytest.raises(ClipRejection, match="too_short"):
        open_clip(clips["short"], DecodeConfig())


def test_spatialvid_lists_its_table_whose_columns_have_blanks(tmp_path: Path) -> None:
    table = tmp_path / "data/train/SpatialVID_HQ_metadata.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "id,group id,video path,num frames,fps,resolution\na,1,v,450,30.0,1280x720\nb,1,v,90,30.0,1280x720\n"
    )
    found = list(LAYOUTS["spatialvid-hq"].listed(Release(root=tmp_path, source="t")))
    assert [(x.original_id, x.duration_s, x.fps) for x in found] == [("a", 15.0, 30.0), ("b", 3.0, 30.0)]


# --- DL3DV --------------------------------------------------------------------------------------------


def write_colmap_scene(folder: Path, c2w: np.ndarray, *, names=None, size=(HEIGHT, WIDTH)) -> CameraClip:
    clip = CameraClip(
        name="scene",
        camera_to_world=c2w,
        focal_px=np.full((len(c2w), 2), 50.0) * size[1] / WIDTH,
        principal_point_px=np.tile([size[1] / 2, size[0] / 2], (len(c2w), 1)),
        height=size[0],
        width=size[1],
        image_names=tuple(names or (f"frame_{i + 1:05d}.png" for i in range(len(c2w)))),
    )
    write_colmap(clip, folder, binary=True)
    return clip


@pytest.mark.parametrize("nesting", ["", "colmap", f"{SCENE}"])
def test_colmap_cache_and_videos_lie_in_different_batches(tmp_path: Path, nesting: str) -> None:
    c2w = poses(12)
    write_colmap_scene(tmp_path / "1K" / SCENE / nesting, c2w)
    touch(tmp_path / f"3K/{SCENE}/video.mp4")
    touch(tmp_path / f"problem/{SCENE}/images_4/frame_00001.png")
    touch(tmp_path / f"2K/{'0' * 63}b/video.mp4")  # a scene that COLMAP has nothing of
    (clip,) = listed("dl3dv-colmap", tmp_path).values()
    assert clip.media == f"3K/{SCENE}/video.mp4"
    assert clip.given.stills_path == tmp_path / f"problem/{SCENE}/images_4"
    found = read_shipped(clip.given.cameras_path, "colmap")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)  # world-to-camera, turned round
    assert found.numbering == "stills"
    assert found.frame_number.tolist() == list(range(1, 13))


def test_colmap_stills_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Names sort as text in a model: frame_10 comes before frame_9."""
    c2w = poses(4)
    write_colmap_scene(tmp_path, c2w, names=["frame_8.png", "frame_9.png", "frame_10.png", "frame_11.png"])
    found = read_shipped(tmp_path, "colmap")
    assert found.frame_number.tolist() == [8, 9, 10, 11]
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)


def test_dl3dv_intrinsics_are_for_the_declared_size_and_axes_are_opengl(tmp_path: Path) -> None:
    c2w = poses(5)
    content = {
        "w": 3840,
        "h": 2160,
        "fl_x": 1700.0,
        "fl_y": 1702.0,
        "cx": 1920,
        "cy": 1080,
        "camera_model": "OPENCV",
        "frames": [
            {"file_path": f"images/frame_{i + 1:05d}.png", "transform_matrix": opencv_to_opengl(m).tolist()}
            for i, m in reversed(list(enumerate(c2w)))  # the order in the file means nothing
        ],
        "applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    }
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(content))
    found = read_shipped(path, "dl3dv")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)
    assert found.image_size == (2160, 3840)  # not the 960x540 of the images beside it


def test_dl3dv_windows_of_ten_seconds_need_no_still(tmp_path: Path) -> None:
    touch(tmp_path / f"1K/{SCENE}/transforms.json")
    touch(tmp_path / f"1K/{SCENE}/video.mp4")
    index = tmp_path / "DL3DV-valid.csv"
    index.write_text(
        f"hash,sensibility label,batch,duration\n{SCENE},0,problem,35.5\n{'0' * 63}b,0,1K,\n{'0' * 63}c,0,1K,0.12\n"
    )
    clips = listed("dl3dv", tmp_path, windows=TEN)
    assert list(clips) == [f"{SCENE}_s{start:06d}" for start in (0, 161, 322)]
    assert {clip.media for clip in clips.values()} == {f"1K/{SCENE}/video.mp4"}
    found = list(LAYOUTS["dl3dv"].listed(Release(root=tmp_path, source="t")))
    assert [x.duration_s for x in found] == [35.5, 0.0, 0.12]  # an empty duration holds no window


# --- DL3DV-GS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", ["four", "rows", "matrix", "matrices"])
def test_rendered_clips_keep_their_exact_poses(tmp_path: Path, lens: str) -> None:
    folder = tmp_path / f"{SCENE[:8]}/spline_03"
    video(folder / "video.mp4", frames=33, fps=16.0)
    c2w = poses(33)
    k = np.array([[50.0, 0, 32], [0, 51.0, 18], [0, 0, 1]])
    four = np.array([50.0, 51.0, 32, 18])
    stored = {"four": four, "rows": np.tile(four, (33, 1)), "matrix": k, "matrices": np.tile(k, (33, 1, 1))}[
        lens
    ]
    np.save(folder / "poses.npy", c2w)
    np.save(folder / "intrinsics.npy", stored)
    (folder / "meta.json").write_text(json.dumps({"metres_per_unit": 2.5}))
    (clip,) = listed("dl3dv-gs", tmp_path).values()
    assert clip.clip_id == f"{SCENE[:8]}_spline_03"
    assert clip.given.metres_per_unit == 2.5
    given = cameras_of(clip)
    np.testing.assert_allclose(given.camera_to_world, c2w, atol=1e-9)
    np.testing.assert_allclose(given.focal_px, [[50.0, 51.0]] * 33)
    np.testing.assert_array_equal(given.position, np.arange(33))
    np.save(folder / "poses.npy", c2w[:-1])
    np.save(folder / "intrinsics.npy", four)
    with pytest.raises(ClipRejection, match="camera_count_mismatch"):
        cameras_of(clip)


def test_rendered_clips_of_another_scale_or_unit(tmp_path: Path) -> None:
    np.save(tmp_path / "poses.npy", poses(3) @ np.diag([2.0, 2, 2, 1]))
    np.save(tmp_path / "intrinsics.npy", np.array([50.0, 50, 32, 18]))
    with pytest.raises(ValueError, match="no rigid transforms"):
        read_shipped(tmp_path, "rendered")
    np.save(tmp_path / "poses.npy", poses(3))
    np.save(tmp_path / "intrinsics.npy", np.array([0.8, 1.4, 0.5, 0.5]))
    with pytest.raises(ValueError, match="no number of pixels"):
        read_shipped(tmp_path, "rendered")


def test_cameras_of_gaussian_splats_are_camera_to_world(tmp_path: Path) -> None:
    c2w = poses(4)
    entries = [
        {
            "id": i,
            "img_name": f"frame_{i + 1:05d}",
            "width": 960,
            "height": 540,
            "position": m[:3, 3].tolist(),
            "rotation": m[:3, :3].tolist(),
            "fy": 500.0,
            "fx": 490.0,
        }
        for i, m in enumerate(c2w)
    ]
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(entries[::-1]))
    found = read_shipped(path, "gaussian-splats")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)
    np.testing.assert_allclose(found.intrinsics[0], [[490, 0, 480], [0, 500, 270], [0, 0, 1]])
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected a list"):
        read_shipped(path, "gaussian-splats")


# --- OmniWorld ----------------------------------------------------------------------------------------


def write_scene(root: Path, splits: list[list[int]], *, images: range, fps: float = 24.0) -> Path:
    uid = "b04f88d1f85a"
    scene = root / f"annotations/OmniWorld-Game/{uid}"
    (scene / "depth").mkdir(parents=True)
    colour = root / f"videos/OmniWorld-Game/{uid}/color"
    colour.mkdir(parents=True)
    (scene / "split_info.json").write_text(json.dumps({"split_num": len(splits), "split": splits}))
    (scene / "fps.txt").write_text(f"FPS: {fps} \nProcessing time: 3.1 s\n")
    for i in images:
        write_png(colour / f"{i:06d}.png", np.full((8, 16, 3), i % 251, np.uint8))
        write_png(scene / f"depth/{i:06d}.png", np.full((8, 16), 200 + i, np.uint16))
    return scene


def test_runs_go_across_adjacent_splits_only() -> None:
    assert runs([[0, 1, 2], [3, 4], [6, 7], [8, 9, 11], [20, 21], [22]]) == [(0, 4), (6, 7), (20, 22)]
    assert runs([[0, 1], "x", [], None, [2, 3], [True]]) == [(0, 3)]


def test_omniworld_windows_cross_splits_and_carry_depth_without_poses(tmp_path: Path) -> None:
    splits = [list(range(300)), list(range(300, 560)), list(range(600, 700))]
    scene = write_scene(tmp_path, splits, images=range(0))
    metadata = tmp_path / "metadata/omniworld_game_metadata.csv"
    metadata.parent.mkdir()
    metadata.write_text(
        "UID,Video Path,Annotation Path,Img Num,Split Num,FPS,Resolution,Test Split Index,Metric Scale\n"
        'b04f88d1f85a,v,a,700,3,24.0,1280×720,"0,1",2.5\n',
        encoding="utf-8",
    )
    clips = listed("omniworld-game-windows", tmp_path, windows=Windows(frames=161, stride=160))
    whole = [f"b04f88d1f85a_f000000_s{start:06d}" for start in (0, 160)]
    assert list(clips) == [*whole, "b04f88d1f85a_f000600_s000000"]  # the other run is too short, and says so
    clip = clips["b04f88d1f85a_f000000_s000160"]
    assert (clip.start_s, clip.given.cameras_path) == (10.0, None)
    assert clip.given.depth_pattern == str(scene / "depth/{frame:06d}.png")
    assert (clip.given.metres_per_unit, clip.given.depth_kind) == (2.5, "omniworld")
    (listing,) = LAYOUTS["omniworld-game-windows"].listed(Release(root=tmp_path, source="t"))
    assert (listing.original_id, listing.fps) == ("b04f88d1f85a", 24.0)


def test_omniworld_frames_are_numbered_by_their_names(tmp_path: Path) -> None:
    """With a scene's first archive missing, image 30 is the first in the folder: time and depth are still its own."""
    splits = [list(range(80))]
    write_scene(tmp_path, splits, images=range(30, 80))
    (clip,) = listed("omniworld-game-windows", tmp_path).values()
    frames = open_clip(clip, DecodeConfig(max_side_px=None))
    np.testing.assert_allclose(frames.timing.time_s[0], 30 / 24)
    shown = next(iter(frames))
    assert shown[0, 0, 0] == 30
    depth = GivenGeometrySource().read(clip, frames).depth
    assert depth.path(0).name == "000030.png"
    inside = listed("omniworld-game-windows", tmp_path, windows=Windows(frames=17, stride=16))
    second = open_clip(inside["b04f88d1f85a_f000000_s000032"], DecodeConfig(max_side_px=None))
    assert next(iter(second))[0, 0, 0] == 48  # 2 s
    with pytest.raises(ClipRejection, match="too_short"):  # 0 to 1 s is not there
        open_clip(inside["b04f88d1f85a_f000000_s000000"], DecodeConfig())


def test_an_omniworld_frame_that_is_missing_is_a_gap(tmp_path: Path) -> None:
    write_scene(tmp_path, [list(range(60))], images=range(60))
    for i in range(20, 26):
        (tmp_path / f"videos/OmniWorld-Game/b04f88d1f85a/color/{i:06d}.png").unlink()
    (clip,) = listed("omniworld-game-windows", tmp_path).values()
    with pytest.raises(ClipRejection, match="frame_gap"):
        open_clip(clip, DecodeConfig())


# --- Sekai --------------------------------------------------------------------------------------------


def write_walking_table(root: Path, *names: str, caption: str = "a walk") -> Path:
    path = root / "train/sekai-real-walking-hq.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f'{name},{name[:-4]}.npz,"{caption}",x,y,z,w,t\n' for name in names)
    path.write_text(
        "videoFile,cameraFile,caption,location,scene,crowdDensity,weather,timeOfDay\n" + rows,
        encoding="utf-8-sig",  # with a byte order mark
    )
    return path


def test_sekai_walks_are_those_of_the_table(tmp_path: Path) -> None:
    first, second = "--Rwt95Vkw0_0003750_0005550.mp4", "a_b_c_d-e_f_0000000_0001800.mp4"
    write_walking_table(
        tmp_path, first, second, first, "broken.mp4", "gone0000000_0000000_0001800.mp4", caption="x" * 200_000
    )
    touch(tmp_path / f"sekai-real-walking/{first}")
    touch(tmp_path / f"sekai-real-walking/{second}")
    touch(tmp_path / "sekai-real-walking/elsewhere00_0000000_0001800.mp4")  # the mirror holds the full set
    clips = listed("sekai-walking", tmp_path)
    assert list(clips) == [first[:-4], second[:-4]]
    each = release_clips("sekai-walking", Release(root=tmp_path, source="test"))
    assert len(list(each)) == 2  # a row that is there twice is one clip
    assert clips[first[:-4]].original_id == first
    assert clips[first[:-4]].start_s is None  # cut already
    addresses = {
        x.original_id: x.url for x in LAYOUTS["sekai-walking"].listed(Release(root=tmp_path, source="t"))
    }
    assert addresses[first] == "https://www.youtube.com/watch?v=--Rwt95Vkw0"
    assert addresses[second] == "https://www.youtube.com/watch?v=a_b_c_d-e_f"


def test_sekai_walks_inside_their_whole_video_count_at_30_fps(tmp_path: Path) -> None:
    """Whatever the video's rate: 60 fps here, numbers count 30 a second and the end is excluded."""
    write_walking_table(tmp_path, "abcdefghijk_0000030_0000090.mp4")
    video(tmp_path / "raw_video/abcdefghijk.mp4", frames=300, fps=60.0)
    (clip,) = listed("sekai-walking", tmp_path).values()
    assert (clip.start_s, clip.end_s) == (1.0, 3.0)
    timing = open_clip(clip, DecodeConfig()).timing
    assert timing.frame_index[0] == 60
    assert len(timing.frame_index) == 32
    assert timing.frame_index[-1] < 180


def test_sekai_walking_without_its_table(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"sekai-real-walking-hq.csv is not there.*source.metadata"):
        listed("sekai-walking", tmp_path)


def test_sekai_game_is_camera_to_world_whatever_its_first_rotation_looks_like(tmp_path: Path) -> None:
    c2w = np.array(poses(3))
    c2w[0] = np.diag([1.0, -1, -1, 1])
    path = tmp_path / "00100100001_0008250_0010050.npz"
    np.savez(
        path, extrinsic=c2w.astype(np.float32), intrinsic=np.array([[0.6, 0, 0.5], [0, 1.07, 0.5], [0, 0, 1]])
    )
    found = read_shipped(path, "sekai-game")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-5)
    assert found.image_size == (1, 1)


def test_spatialvid_poses_are_world_to_camera_with_the_scalar_last(tmp_path: Path) -> None:
    c2w = poses(3)
    w2c = se3_inverse(c2w)
    q = quaternion_wxyz_from_rotation(w2c[:, :3, :3])
    np.save(tmp_path / "poses.npy", np.concatenate([w2c[:, :3, 3], q[:, 1:], q[:, :1]], 1).astype(np.float32))
    np.save(tmp_path / "intrinsics.npy", np.tile([0.6, 1.07, 0.5, 0.5], (3, 1)))
    (tmp_path / "indexes.txt").write_text("# total 3 indexes\n0 0\n1 6\n2 13\n")
    found = read_shipped(tmp_path, "spatialvid")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-5)
    assert found.frame_number.tolist() == [0, 6, 13]  # as the file says, not every sixth


# --- MiraData -----------------------------------------------------------------------------------------

V1 = (
    "clip_id,source,video_url,video_id,width,height,fps,seconds,timestamp,frame_number,framestamp,file_path,"
    "short_caption\n"
)


def write_v1(root: Path, *rows: str) -> Path:
    path = root / "miradata_v1_9k.csv"
    path.write_text(V1 + "".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def mira(clip_id: str, span: tuple[str, str], *, file_path: str = "", video_id: str = "AAAAAAAAAAA") -> str:
    times = f"\"['{span[0]}', '{span[1]}']\""
    return f'{clip_id},youtube/city,https://x/{video_id},{video_id},64,36,30.0,4.0,{times},120,"[0, 1]",{file_path},c'


def test_mira_ids_are_text(tmp_path: Path) -> None:
    """8720.1 and 8720.10 are two clips; as numbers they are one."""
    rows = [mira(f"8720.{n}", (f"00:00:{s:02d}.000", f"00:00:{s + 4:02d}.500")) for n, s in ((1, 1), (10, 2))]
    write_v1(tmp_path, *rows)
    touch(tmp_path / "raw_video/000000008/000000008720.mp4")
    clips = listed("miradata", tmp_path)
    assert [(k, c.original_id, c.start_s, c.end_s) for k, c in clips.items()] == [
        ("8720_1", "8720.1", 1.0, 5.5),
        ("8720_10", "8720.10", 2.0, 6.5),
    ]


def test_mira_is_cut_by_decoding_from_the_whole_video(tmp_path: Path) -> None:
    """The official cut copies packets and starts at the key frame before; from the whole video the start is exact."""
    write_v1(
        tmp_path, mira("8165.3", ("00:00:02.000", "00:00:04.500"), file_path="000000008/000000008165.3.mp4")
    )
    video(tmp_path / "raw_video/000000008/000000008165.mp4", frames=180)
    video(tmp_path / "000000008/000000008165.3.mp4", frames=90)
    (clip,) = listed("miradata", tmp_path).values()
    timing = open_clip(clip, DecodeConfig()).timing
    assert timing.frame_index[0] == 60
    assert timing.frame_index[-1] < 135
    (tmp_path / "raw_video/000000008/000000008165.mp4").unlink()
    (clip,) = listed("miradata", tmp_path).values()  # nothing but the cut one: from its own start
    assert (clip.media, clip.start_s) == ("000000008/000000008165.3.mp4", None)


def test_mira_leaves_out_what_is_not_here_and_what_makes_no_sense(tmp_path: Path, caplog) -> None:
    write_v1(
        tmp_path,
        mira("1.0", ("00:00:00.000", "00:01:02.000"), video_id="here0000000"),
        mira("2.0", ("00:00:00.000", "00:01:02.000"), video_id="gone0000000"),
        mira("nan", ("00:00:00.000", "00:01:02.000")),
        mira("3.0", ("00:01:00.000", "00:00:02.000")),
        mira("4.0", ("__import__('os').abort()", "00:00:02.000")),
        mira("5.0", ("00:00:00.000", "00:01:00.000"), file_path="../outside.mp4", video_id="gone0000001"),
    )
    touch(tmp_path / "raw_video/here0000000.mp4")
    touch(tmp_path.parent / "outside.mp4")
    assert list(listed("miradata", tmp_path, windows=Windows(frames=961, stride=480, shortest=481))) == [
        "1_0_s000000",
        "1_0_s000480",
    ]
    assert "lists 3 clips, of 2 no media lie below" in caplog.text


def test_mira_of_the_first_generation(tmp_path: Path) -> None:
    table = tmp_path / "miradata_v0.csv"
    header = "index,video_id,start_frame,end_frame,fps,short_caption,start_timestep,end_timestep,,\n"
    row = "000000000001_-a_bcdefghi-000002,-a_bcdefghi,2997,5994,29.97,caf\xe9,0:01:40,0:03:20,,\n"
    table.write_bytes((header + row).encode("iso-8859-1"))
    touch(tmp_path / "raw_video/-a_bcdefghi.webm")
    (clip,) = listed("miradata", tmp_path).values()
    np.testing.assert_allclose([clip.start_s, clip.end_s], [100.0, 200.0])
    assert clip.clip_id == "000000000001_-a_bcdefghi-000002"


# --- NVIDIA's zips --------------------------------------------------------------------------------------


def write_sana(
    root: Path, key: str = "00100100001_0008250_0010050_s000000", *, frames: int = 33
) -> CameraClip:
    clip = CameraClip(
        name=key,
        camera_to_world=poses(frames),
        focal_px=np.tile([1500.0, 1500.0], (frames, 1)),
        principal_point_px=np.tile([960.0, 540.0], (frames, 1)),
        height=1080,
        width=1920,
    )
    other = CameraClip(**{**clip.__dict__, "name": "other", "camera_to_world": poses(frames)[::-1]})
    write_sana_zip([other, clip], root / "sekai_00000000.zip")
    folder = root / "sekai_00000000"
    folder.mkdir(exist_ok=True)
    (folder / f"{key}.json").write_text(json.dumps({"prompt": "p", "width": 1920, "height": 1080}))
    video(folder / f"{key}.mp4", frames=frames, fps=16.0)  # smaller than the capture
    (root / "sekai_00000000_metric_scale_stats.json").write_text(json.dumps({key: {"median": 3.5}}))
    return clip


def test_sana_zips_have_the_cameras_of_their_key_in_pixels_of_the_capture(tmp_path: Path) -> None:
    truth = write_sana(tmp_path)
    (clip,) = listed("sana-wm", tmp_path).values()
    assert clip.given.metres_per_unit == 3.5
    given = cameras_of(clip)
    np.testing.assert_allclose(given.camera_to_world, truth.camera_to_world, atol=1e-5)
    np.testing.assert_allclose(given.focal_px, 1500.0 * WIDTH / 1920, rtol=1e-6)


@pytest.mark.parametrize("scale", [{}, {"median": float("nan")}, {"median": 0.0}, {"median": None}])
def test_a_sana_clip_without_a_scale_has_no_metres(tmp_path: Path, scale: dict) -> None:
    truth = write_sana(tmp_path)
    (tmp_path / "sekai_00000000_metric_scale_stats.json").write_text(json.dumps({truth.name: scale}))
    (clip,) = listed("sana-wm", tmp_path).values()
    assert clip.given.metres_per_unit is None


def test_a_sana_clip_without_a_camera_is_no_identity(tmp_path: Path) -> None:
    write_sana(tmp_path)
    video(tmp_path / "sekai_00000000/unknown.mp4", frames=33, fps=16.0)
    clip = listed("sana-wm", tmp_path)["unknown"]
    with pytest.raises(ClipRejection, match=r"cameras_unreadable.*holds no camera of clip 'unknown'"):
        cameras_of(clip)


# --- all ----------------------------------------------------------------------------------------------


def test_a_clip_that_could_not_be_unpacked_is_a_row_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / ".unpacked").mkdir()
    entry = {
        "place": "videos/group_0001/x.mp4",
        "reason": "archive_damaged",
        "detail": "ends after 3 of 9 bytes",
    }
    (tmp_path / ".unpacked/a.jsonl").write_text(
        json.dumps({"archive": "a"}) + "\n" + json.dumps(entry) + "\n"
    )
    (clip,) = listed("spatialvid-hq", tmp_path).values()
    row = annotate_clip(clip, AnnotateConfig(), mode="estimate", recipe_hash="0" * 16)
    assert row.reasons == ("archive_damaged",)
    assert "3 of 9 bytes" in row.reason_details[0]


@pytest.mark.slow
def test_a_long_list_starts_at_once_and_is_never_held(tmp_path: Path) -> None:
    """Three thousand rows: the first clip comes before the table has been read, and reading keeps none."""
    import tracemalloc

    table = tmp_path / "miradata_v1_330k.csv"
    with table.open("w") as out:
        out.write(V1)
        for i in range(3_000):
            out.write(mira(f"{i}.0", ("00:00:00.000", "00:01:02.000"), video_id="here0000000") + "\n")
    touch(tmp_path / "raw_video/here0000000.mp4")
    start = time.monotonic()
    clips = release_clips("miradata", Release(root=tmp_path, source="t"))
    next(clips)
    assert time.monotonic() - start < 0.5
    tracemalloc.start()
    count = sum(1 for _ in itertools.islice(clips, 2_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2_000
    assert peak < 3_000_000, f"{peak} bytes"  # all of them take 4 MB
