"""Traps of published sets that no other quick test of this folder holds: each fails if its conversion is taken out.

What is asked: cameras as the set writes them come out as they were, camera-to-world in OpenCV axes, to 1e-5.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.frames.timing import choose_frames
from theodolite.annotate.given.cameras import read_given_cameras
from theodolite.annotate.sources.clip import ClipRef, ClipRejection
from theodolite.annotate.sources.entries import ReleaseLayout
from theodolite.annotate.sources.releases import release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_exp, se3_inverse
from theodolite.dataset.formats.shipped import read_shipped
from theodolite.dataset.media.write import VideoWriter

from ...typed import known

HEIGHT, WIDTH = 36, 64
UID = "b04f88d1f85a"


def poses(count: int) -> np.ndarray:
    """A path that turns about all axes, from a pose that is not the identity."""
    t = np.linspace(0, 1, count)[:, None]
    return se3_exp(
        np.concatenate([2 * t, -t, 3 * t**2, 0.4 * t, -0.8 * t, 0.3 * t], 1) + [1, 2, 3, 0.5, 0.2, -0.4]
    )


def video(path: Path, frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=30.0) as out:
        for i in range(frames):
            out.write(np.full((HEIGHT, WIDTH, 3), 3 * i % 251, np.uint8))
    return path


def clips_of(layout: ReleaseLayout, root: Path) -> dict[str, ClipRef]:
    return {clip.clip_id: clip for clip in release_clips(layout, Release(root=root, source="test"))}


# --- SpatialVID -----------------------------------------------------------------------------------


def test_spatialvid_intrinsics_are_shares_of_width_and_height(tmp_path: Path) -> None:
    c2w, step = poses(7), 5
    group = "group_0001"
    video(tmp_path / f"videos/{group}/a.mp4", frames=6 * step + 1)
    folder = tmp_path / f"annotations/{group}/a"
    folder.mkdir(parents=True)
    w2c = se3_inverse(c2w)
    q = quaternion_wxyz_from_rotation(w2c[:, :3, :3])
    np.save(folder / "poses.npy", np.c_[w2c[:, :3, 3], q[:, 1:], q[:, :1]].astype(np.float32))
    np.save(folder / "intrinsics.npy", np.tile([0.6, 1.07, 0.5, 0.5], (7, 1)))
    (folder / "indexes.txt").write_text("".join(f"{i} {step * i}\n" for i in range(7)))
    (clip,) = clips_of("spatialvid-hq", tmp_path).values()
    frames = open_clip(clip, DecodeConfig())
    given = read_given_cameras(clip, frames)
    assert given is not None
    np.testing.assert_allclose(known(given.focal_px), np.tile([0.6 * WIDTH, 1.07 * HEIGHT], (len(frames), 1)))
    np.testing.assert_allclose(known(given.camera_to_world), c2w[: len(given.position)], atol=1e-5)
    # Where they lie among the clip's frames, which are every other or so of the source's.
    source = np.interp(given.position, np.arange(len(frames)), frames.timing.frame_index)
    np.testing.assert_allclose(source, step * np.arange(len(given.position)), atol=1e-9)
    assert given.metres_per_unit is None


# --- DL3DV ----------------------------------------------------------------------------------------


def test_dl3dv_world_is_colmaps_again(tmp_path: Path) -> None:
    """nerfstudio changed the world's axes and says so; ColmapCache's points lie in the world before."""
    c2w = poses(4)
    applied = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1.0]])
    entries = [
        {
            "file_path": f"images/frame_{i + 1:05d}.png",
            "transform_matrix": (applied @ opencv_to_opengl(m)).tolist(),
        }
        for i, m in enumerate(c2w)
    ]
    lens = {"w": 3840, "h": 2160, "fl_x": 1700.0, "fl_y": 1702.0, "cx": 1920, "cy": 1080}
    path = tmp_path / "transforms.json"
    path.write_text(
        json.dumps(
            {**lens, "camera_model": "OPENCV", "frames": entries, "applied_transform": applied[:3].tolist()}
        )
    )
    np.testing.assert_allclose(read_shipped(path, "dl3dv").camera_to_world, c2w, atol=1e-9)


# --- OmniWorld ------------------------------------------------------------------------------------


def write_split(root: Path, c2w: np.ndarray, frames: list[int]) -> Path:
    scene = root / f"annotations/OmniWorld-Game/{UID}"
    (scene / "camera").mkdir(parents=True)
    splits = [list(range(frames[0])), frames]
    (scene / "split_info.json").write_text(json.dumps({"split_num": 2, "split": splits}))
    (scene / "fps.txt").write_text("FPS: 24.0 \nProcessing time: 3.1 s\n")
    w2c = se3_inverse(c2w)
    content = {
        "focals": [900.0] * len(frames),
        "cx": 640,
        "cy": 360,
        "quats": quaternion_wxyz_from_rotation(w2c[:, :3, :3]).tolist(),
        "trans": w2c[:, :3, 3].tolist(),
    }
    path = scene / "camera/split_1.json"
    path.write_text(json.dumps(content))
    return path


def test_omniworld_cameras_are_world_to_camera_with_the_scalar_first_and_belong_to_listed_frames(
    tmp_path: Path,
) -> None:
    c2w = poses(5)
    found = read_shipped(write_split(tmp_path, c2w, [81, 82, 83, 84, 85]), "omniworld")
    np.testing.assert_allclose(found.camera_to_world, c2w, atol=1e-9)
    assert found.frame_number.tolist() == [81, 82, 83, 84, 85]  # row j is no frame j
    assert found.intrinsics[0, 0, 0] == found.intrinsics[0, 1, 1] == 900


@pytest.mark.parametrize(("column", "metres"), [(",Metric Scale", 2.5), ("", None)])
def test_omniworld_splits_are_metres_by_the_scenes_scale_alone(
    tmp_path: Path, column: str, metres: float | None
) -> None:
    """Older metadata lack the column: then nothing is known, not one metre a unit."""
    write_split(tmp_path, poses(5), [81, 82, 83, 84, 85])
    table = tmp_path / "metadata/omniworld_game_metadata.csv"
    table.parent.mkdir()
    value = ",2.5" if column else ""
    head = f"UID,Video Path,Annotation Path,Img Num,Split Num,FPS,Resolution,Test Split Index{column}\n"
    table.write_text(f'{head}{UID},v,a,86,2,24.0,1280×720,"0,1"{value}\n', encoding="utf-8")
    (clip,) = clips_of("omniworld-game", tmp_path).values()
    assert clip.given.metres_per_unit == metres
    assert clip.start_s == 81 / 24
    assert clip.numbered


def test_omniworlds_rate_stands_before_other_words(tmp_path: Path) -> None:
    write_split(tmp_path, poses(5), [81, 82, 83, 84, 85])  # no table: fps.txt alone
    (clip,) = clips_of("omniworld-game", tmp_path).values()
    assert clip.source_fps == 24.0


# --- Sekai ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cameras", [40, 39])
def test_sekai_game_has_a_camera_for_every_frame_and_its_lens_in_shares(tmp_path: Path, cameras: int) -> None:
    c2w = poses(cameras)
    path = video(tmp_path / "00100100001_0008250_0008290.mp4", frames=40)
    lens = np.array([[0.6, 0, 0.5], [0, 1.07, 0.5], [0, 0, 1]])
    np.savez(path.with_suffix(".npz"), extrinsic=c2w.astype(np.float32), intrinsic=lens)
    (clip,) = clips_of("sekai-game", tmp_path).values()
    frames = open_clip(clip, DecodeConfig())
    if cameras != 40:
        with pytest.raises(ClipRejection, match=r"camera_count_mismatch: .*39 cameras.*40 frames"):
            read_given_cameras(clip, frames)
        return
    given = read_given_cameras(clip, frames)
    assert given is not None
    assert given.focal_px is not None
    np.testing.assert_allclose(given.focal_px[0], [0.6 * WIDTH, 1.07 * HEIGHT])
    assert given.metres_per_unit is None  # normalised per clip: no metres
    inside = c2w[frames.timing.frame_index[0] : frames.timing.frame_index[-1] + 1]
    np.testing.assert_allclose(known(given.camera_to_world), inside, atol=1e-5)


# --- the grid of 16 fps ---------------------------------------------------------------------------


def test_a_sample_between_two_frames_takes_the_later_one() -> None:
    """At 24 fps every other sample lies halfway: numpy would round to even numbers, ffmpeg's select rounds up."""
    chosen = choose_frames(np.arange(60), Fraction(1, 24))
    assert chosen[:8].tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
