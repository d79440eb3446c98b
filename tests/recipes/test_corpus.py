"""Every source of the corpus from what its hub holds to rows: archives, `unpack`, `annotate` with the packaged recipe.

All sources show the same rendered two seconds, each in its own files, archives, axes, unit and world. Simulated
networks stand where the recipes' networks stand. Cameras that a source ships have to come out as they were, to 1e-5.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.given import GivenGeometrySource
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_png
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_exp, se3_inverse
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.trajectory import trajectory_error
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.rows import Row
from theodolite.dataset.words import POSE_SOURCES

from ..annotate.simulator import Errors, rendered_truth, simulated
from ..support import run_here

HEIGHT, WIDTH, FRAMES, FPS = 144, 240, 48, 24.0
CLIP_FRAMES = np.array([i * 3 // 2 + i % 2 for i in range(32)])
"""Frames of the video that a clip of 16 fps has."""
METRES = 2.5
"""Of a unit, for sources that say so."""
WORLD = se3_exp(np.array([3.0, -1.0, 2.0, 0.4, -0.3, 1.1]))
SCENE, UID = "0" * 63 + "a", "b04f88d1f85a"
STILLS = np.array([1, 5, 12, 14, 21, 26, 29, 36, 38, 45])
"""Frames of the video that DL3DV's stills 1, 2, ... were drawn from."""
LIGHT = (
    'annotate.tracks={"num_flow_tracks": 90, "num_descriptors": 120, "max_loops_per_keyframe": 0}',
    'annotate.bundle={"focal_model": "constant", "max_iterations": 8}',
    "annotate.geometry.weights=stand_in",
    "annotate.geometry.stand_in_size=tiny",
    "annotate.geometry.device=cpu",
    "annotate.geometry.anchor_fps=4",
)

WALK = RenderConfig(width=WIDTH, height=HEIGHT, num_frames=FRAMES, fps=FPS, seed=3, speed=2.5)
"""Slower, two seconds do not tell networks' focal length: at 1.5 it is 2.2 % off, 3.7 % unsure, and refused."""


@dataclass(frozen=True)
class Shot:
    """The two seconds: rendered, and as a video."""

    rendered: RenderedClip
    video: Path

    @property
    def focal(self) -> float:
        return float(self.rendered.intrinsics[0, 0, 0])

    def poses(self, metres: float = METRES) -> np.ndarray:
        """(F, 4, 4) camera-to-world in OpenCV axes, in the source's world and unit."""
        poses = WORLD @ self.rendered.camera_to_world
        poses[:, :3, 3] /= metres
        return poses


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Shot:
    rendered = render_clip(WALK)
    path = tmp_path_factory.mktemp("shot") / "shot.mp4"
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=FPS) as video:
        for frame in rendered:
            video.write(frame.rgb)
    return Shot(rendered, path)


def tar(path: Path, members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w:gz") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


def arrays(**content: np.ndarray) -> bytes:
    out = io.BytesIO()
    save: Any = np.savez  # its stubs take names of arrays for its switches
    save(out, **content)
    return out.getvalue()


def png(image: np.ndarray, folder: Path) -> bytes:
    path = folder / "image.png"
    write_png(path, image)
    return path.read_bytes()


# --- what the hubs hold ---------------------------------------------------------------------------------


def spatialvid(root: Path, shot: Shot) -> None:
    """Two groups whose members have prefixes of two releases, in any order; a video that is too short."""
    video = shot.video.read_bytes()
    tar(root / "videos/group_0001.tar.gz", {"SpatialVID/videos/group_0001/0a00f99d-11.mp4": video})
    tar(root / "videos/group_0002.tar.gz", {"SpatialVid/HQ/videos/group_0002/1b00f99d-22.mp4": video})
    table = root / "data/train/SpatialVID_HQ_metadata.csv"
    table.parent.mkdir(parents=True)
    table.write_text("id,group id,video path,num frames,fps,resolution\n0a00f99d-11,1,v,48,24.0,240x144\n")


def dl3dv(root: Path, shot: Shot) -> None:
    """Stills and cameras in a zip of one batch, the video in another; world and axes of nerfstudio, a lens in 4K."""
    applied = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    shown = list(shot.rendered)
    frames = [
        {
            "file_path": f"images/frame_{number:05d}.png",
            "transform_matrix": (applied @ opencv_to_opengl(shot.poses()[source])).tolist(),
            "colmap_im_id": 100 - number,
        }
        for number, source in enumerate(STILLS, 1)
    ]
    content = {
        "w": 16 * WIDTH, "h": 16 * HEIGHT, "fl_x": 16 * shot.focal, "fl_y": 16 * shot.focal, "cx": 8 * WIDTH,
        "cy": 8 * HEIGHT, "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "camera_model": "OPENCV",
        "frames": frames[::-1], "applied_transform": applied[:3].tolist(),
    }  # fmt: skip
    (root / "1K").mkdir(parents=True)
    with zipfile.ZipFile(root / f"1K/{SCENE}.zip", "w") as out:
        out.writestr(f"{SCENE}/transforms.json", json.dumps(content))
        for number, source in enumerate(STILLS, 1):
            out.writestr(f"{SCENE}/images_8/frame_{number:05d}.png", png(shown[source].rgb, root))
    (root / f"3K/{SCENE}").mkdir(parents=True)
    (root / f"3K/{SCENE}/video.mp4").symlink_to(shot.video)


def dl3dv_gs(root: Path, shot: Shot) -> None:
    """Folders as the renderer leaves them; the unit is COLMAP's."""
    folder = root / f"{SCENE[:8]}/orbit_00"
    folder.mkdir(parents=True)
    (folder / "video.mp4").symlink_to(shot.video)
    np.save(folder / "poses.npy", shot.poses())
    np.save(folder / "intrinsics.npy", np.array([shot.focal, shot.focal, WIDTH / 2, HEIGHT / 2]))


def omniworld(root: Path, shot: Shot) -> None:
    """Three archives without a prefix; two splits with a world each, and depth as the game engine stores it."""
    shown = list(shot.rendered)
    colour = {f"color/{i:06d}.png": png(frame.rgb, root) for i, frame in enumerate(shown)}
    units = [4 * frame.depth_m.astype(np.float64) / METRES for frame in shown]
    stored = [np.rint(65535 * d / (1 + 0.999 * d)).astype(np.uint16) for d in units]
    depth = {f"depth/{i:06d}.png": png(d, root) for i, d in enumerate(stored)}
    splits = [list(range(8)), list(range(8, FRAMES))]
    others = {
        "split_info.json": json.dumps({"split_num": 2, "split": splits}).encode(),
        "fps.txt": b"FPS: 24.0 \nProcessing time: 3.1 s\n",
    }
    for number, frames in enumerate(splits):
        own = shot.poses()[frames]
        w2c = se3_inverse(se3_inverse(own[:1]) @ own)
        others[f"camera/split_{number}.json"] = json.dumps(
            {
                "focals": [shot.focal] * len(frames),
                "cx": WIDTH / 2,
                "cy": HEIGHT / 2,
                "quats": quaternion_wxyz_from_rotation(w2c[:, :3, :3]).tolist(),
                "trans": w2c[:, :3, 3].tolist(),
            }
        ).encode()
    tar(root / f"videos/OmniWorld-Game/{UID}/{UID}_rgb_0000.tar.gz", colour)
    tar(root / f"annotations/OmniWorld-Game/{UID}/{UID}_depth_0000.tar.gz", depth)
    tar(root / f"annotations/OmniWorld-Game/{UID}/{UID}_others.tar.gz", others)


def sekai_game(root: Path, shot: Shot) -> None:
    """A zip in two parts; a path of unit size in a world in which frame 0 looks along diag(1, -1, -1)."""
    poses = np.diag([1.0, -1, -1, 1]) @ se3_inverse(shot.poses()[:1]) @ shot.poses()
    poses[:, :3, 3] /= np.abs(poses[:, :3, 3]).max()
    lens = np.array([[shot.focal / WIDTH, 0, 0.5], [0, shot.focal / HEIGHT, 0.5], [0, 0, 1]])
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as out:
        name = "sekai-game-walking/00100100001_0008250_0008298"
        out.writestr(f"{name}.mp4", shot.video.read_bytes())
        out.writestr(f"{name}.npz", arrays(extrinsic=poses.astype(np.float32), intrinsic=lens))
    content, half = whole.getvalue(), len(whole.getvalue()) // 2
    (root / "sekai-game-walking.zip.part_aa").write_bytes(content[:half])
    (root / "sekai-game-walking.zip.part_ab").write_bytes(content[half:])


def sekai_walking(root: Path, shot: Shot) -> None:
    """The mirror holds more than the table lists; the table lists a walk that nobody has."""
    video = shot.video.read_bytes()
    names = ["--Rwt95Vkw0_0003750_0003810.mp4", "not_listed00_0000000_0000060.mp4"]
    tar(root / "sekai-real-walking/sekai-real-walking_part001.tar", dict.fromkeys(names, video), "w")
    table = root / "train/sekai-real-walking-hq.csv"
    table.parent.mkdir(parents=True)
    listed = [names[0], names[0], "gone0000000_0000000_0000060.mp4"]
    table.write_text(
        "videoFile,caption\n" + "".join(f"{name},a walk\n" for name in listed), encoding="utf-8-sig"
    )


def miradata(root: Path, shot: Shot) -> None:
    """A whole video, of which the table lists a stretch; its id is no number, and another's video is gone."""
    (root / "raw_video/000000008").mkdir(parents=True)
    (root / "raw_video/000000008/000000008720.mp4").symlink_to(shot.video)
    (root / "miradata_v1_330k.csv").write_text(
        "clip_id,source,video_url,video_id,fps,timestamp,file_path\n"
        "8720.10,youtube/city,https://x/a,aaaaaaaaaaa,24.0,\"['00:00:00.000', '00:00:02.000']\",\n"
        "8721.1,youtube/city,https://x/b,bbbbbbbbbbb,24.0,\"['00:00:00.000', '00:00:02.000']\",\n"
    )


def sana_wm(root: Path, shot: Shot) -> None:
    """Two clips in a zip, one of them without a camera; the lens is that of a capture nine times as large."""
    folder, key = root / "data/some", "00100100001_0008250_0010050_s000000"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "sekai_00000000.zip", "w") as out:
        for name in (key, "unknown"):
            out.writestr(f"{name}.mp4", shot.video.read_bytes())
            out.writestr(
                f"{name}.json", json.dumps({"prompt": "p", "width": 9 * WIDTH, "height": 9 * HEIGHT})
            )
    np.savez(
        folder / "sekai_00000000_camera.npz",
        ids=np.array(["other", key]),
        ranges=np.array([[0, 3], [3, FRAMES]]),
        pose=np.concatenate([np.tile(np.eye(4), (3, 1, 1)), shot.poses()]).astype(np.float32),
        intrinsics=np.tile(
            [9 * shot.focal, 9 * shot.focal, 4.5 * WIDTH, 4.5 * HEIGHT], (FRAMES + 3, 1)
        ).astype(np.float32),
    )
    (folder / "sekai_00000000_metric_scale_stats.json").write_text(json.dumps({key: {"median": METRES}}))


# --- what comes out -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What a recipe makes of its fixture: rows as (clip, verdict, first reason), archives, and the cameras' source."""

    rows: tuple[tuple[str, str, str | None], ...]
    archives: int
    cameras: str
    mode: str


SOURCES: dict[str, tuple[Callable[[Path, Shot], None], Expected]] = {
    "spatialvid-hq": (
        spatialvid,
        Expected(
            (("0a00f99d-11", "accepted", None), ("1b00f99d-22", "accepted", None)), 2, "network", "estimate"
        ),
    ),
    "dl3dv": (dl3dv, Expected(((SCENE, "accepted", None),), 1, "given", "given_pose")),
    "dl3dv-gs": (
        dl3dv_gs,
        Expected(((f"{SCENE[:8]}_orbit_00", "accepted", None),), 0, "given", "given_pose"),
    ),
    "omniworld": (omniworld, Expected(((f"{UID}_f000000", "accepted", None),), 3, "network", "given_depth")),
    "sekai-game": (
        sekai_game,
        Expected((("00100100001_0008250_0008298", "accepted", None),), 1, "given", "given_pose"),
    ),
    "sekai-walking": (
        sekai_walking,
        Expected((("--Rwt95Vkw0_0003750_0003810", "accepted", None),), 1, "network", "estimate"),
    ),
    "miradata": (miradata, Expected((("8720_10", "accepted", None),), 0, "network", "estimate")),
    "sana-wm": (
        sana_wm,
        Expected(
            (
                ("00100100001_0008250_0010050_s000000", "accepted", None),
                ("unknown", "rejected", "cameras_unreadable"),
            ),
            1,
            "given",
            "given_pose",
        ),
    ),
}


def rows_of(name: str, root: Path, out: Path, shot: Shot, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The fixture through `unpack` and `annotate`, with simulated networks."""
    truth = rendered_truth(shot.rendered, CLIP_FRAMES)
    networks = simulated(truth, Errors(outlier_frames=0.0, metric_outliers=0.0, metric_frame=0.02))

    def chosen(config: Any) -> Estimators:
        sequence = networks.sequence if config.sequence == "pi3x" else GivenGeometrySource(config.given)
        return Estimators(sequence=sequence, anchor=networks.anchor if config.anchor == "moge2" else None)

    monkeypatch.setattr(Estimators, "of", staticmethod(chosen))
    build, expected = SOURCES[name]
    root.mkdir(exist_ok=True)
    build(root, shot)
    (root / "image.png").unlink(missing_ok=True)
    place = ["--set", f"source.root={root}"]
    if expected.archives:
        done = run_here("unpack", f"corpus/{name}", *place)
        assert done.returncode == 0, done.stderr
        assert f"{expected.archives} archive" in done.stdout + done.stderr
    light = [
        part for setting in (*LIGHT, "source.windows={frames: 32, most: 1}") for part in ("--set", setting)
    ]
    done = run_here("annotate", f"corpus/{name}", *place, *light, "--out", out, "--workers", 0)
    assert done.returncode in (0, 1), done.stderr
    return sorted(open_dataset(out).rows(), key=lambda row: row.clip_id)


def assert_given(row: Row, shot: Shot) -> None:
    """Frames whose cameras are the source's have them to 1e-5 of the path, in metres of one factor."""
    kept = np.array([POSE_SOURCES[code] == "given" for code in row.pose_source])
    assert kept.sum() >= len(STILLS) - 3
    true, ours = shot.poses(1.0)[row.frame_index[kept]], row.camera_to_world[kept].astype(np.float64)
    true, ours = se3_inverse(true[:1]) @ true, se3_inverse(ours[:1]) @ ours
    np.testing.assert_allclose(ours[:, :3, :3], true[:, :3, :3], atol=1e-5)
    far = np.linalg.norm(true[:, :3, 3], axis=1).argmax()
    factor = np.linalg.norm(ours[far, :3, 3]) / np.linalg.norm(true[far, :3, 3])
    np.testing.assert_allclose(ours[:, :3, 3], factor * true[:, :3, 3], atol=1e-5)
    assert abs(np.log(factor)) < (1e-5 if row.scale_source == "declared" else 0.12), row.scale_source


CHEAP = {"sekai-game", "dl3dv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in CHEAP else [pytest.mark.thorough]) for n in SOURCES]
)
def test_a_source_from_its_hub_to_rows(
    name: str, tmp_path: Path, shot: Shot, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = SOURCES[name][1]
    rows = rows_of(name, tmp_path / "hub", tmp_path / "out", shot, monkeypatch)
    found = tuple((row.clip_id, row.verdict, row.reasons[0] if row.reasons else None) for row in rows)
    assert found == expected.rows, [row.reason_details for row in rows]
    for row in rows:
        assert row.error is None, row.error
        assert (row.mode, row.source) == (expected.mode, name)
        if row.verdict == "rejected":
            continue
        np.testing.assert_array_equal(row.frame_index, CLIP_FRAMES)
        assert {"vmaf_motion", "flow_px", "saturation"} <= set(row.metrics or ())
        if expected.cameras == "given":
            assert_given(row, shot)
            np.testing.assert_allclose(row.focal_px, shot.focal, rtol=1e-5)
        else:
            assert "given" not in {POSE_SOURCES[code] for code in row.pose_source}
            error = trajectory_error(row.camera_to_world, shot.rendered.camera_to_world[row.frame_index])
            assert error.ate_percent_of_path < 2
