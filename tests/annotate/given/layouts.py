"""A rendered clip whose cameras are known, written in the layouts in which video sets ship theirs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_depth_png, write_png
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.annotate.sources.releases import release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.dataset.cameras.rotations import quaternion_wxyz_from_rotation, rotation_angle
from theodolite.dataset.cameras.transforms import opencv_to_opengl, se3_exp, se3_inverse
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.rows import Row

HEIGHT, WIDTH, FRAMES, FPS = 144, 240, 48, 24.0
METRIC_SCALE = 2.5
"""Metres of one unit, as OmniWorld's metadata state them for a scene."""
WORLD = se3_exp(np.array([3.0, -1.0, 2.0, 0.4, -0.3, 1.1]))
"""Where the source's world lies in the renderer's: nobody may depend on it."""
LIGHT = {
    "tracks": {"num_flow_tracks": 90, "num_descriptors": 120, "max_loops_per_keyframe": 0},
    "bundle": {"focal_model": "constant", "max_iterations": 8},
}
SCENE = RenderConfig(
    width=WIDTH,
    height=HEIGHT,
    num_frames=FRAMES,
    fps=FPS,
    seed=3,
    speed=1.5,
    depth_width=WIDTH // 2,
    depth_height=HEIGHT // 2,
)


@dataclass(frozen=True)
class Shot:
    """A rendered clip in files: video, images from 000000.png, depth in millimetres, depth as OmniWorld stores it."""

    folder: Path
    rendered: RenderedClip
    camera_to_world: np.ndarray
    focal: float

    @property
    def video(self) -> Path:
        return self.folder / "rgb.mp4"

    @property
    def world_to_camera(self) -> np.ndarray:
        """In a world of the source's own."""
        return se3_inverse(WORLD @ self.camera_to_world)


def unrendered_shot(folder: Path) -> Shot:
    """What its cameras are, without pictures and depth."""
    rendered = render_clip(SCENE)
    return Shot(folder, rendered, rendered.camera_to_world, float(rendered.intrinsics[0, 0, 0]))


def write_shot(folder: Path) -> Shot:
    shot = unrendered_shot(folder)
    for name in ("color", "depth", "depth_mm"):
        (folder / name).mkdir()
    with VideoWriter(folder / "rgb.mp4", width=WIDTH, height=HEIGHT, fps=FPS) as video:
        for i, frame in enumerate(shot.rendered):
            video.write(frame.rgb)
            write_png(folder / f"color/{i:06d}.png", frame.rgb)
            write_depth_png(folder / f"depth_mm/{i:06d}.png", frame.depth_m, units_per_metre=1000.0)
            # The released decoding solved for the stored number; the largest stands for 250 units.
            d = 4 * frame.depth_m.astype(np.float64) / METRIC_SCALE
            write_png(folder / f"depth/{i:06d}.png", np.rint(65535 * d / (1 + 0.999 * d)).astype(np.uint16))
    return shot


def clip_of(shot: Shot, **given) -> ClipRef:
    """The video with its depth in millimetres, and cameras as given."""
    geometry = {
        "depth_pattern": str(shot.folder / "depth_mm/{frame:06d}.png"),
        "depth_units_per_metre": 1000.0,
    }
    return ClipRef(
        clip_id="c1",
        source="test",
        original_id="c1",
        media_kind="video",
        media_path=shot.video,
        data_licence="CC0-1.0",
        given=GivenGeometry(**(geometry | given)),
    )


def annotate(clip: ClipRef, estimators=None, **config) -> Row:
    row = annotate_clip(
        clip,
        AnnotateConfig.model_validate(LIGHT | config),
        mode="given_pose",
        recipe_hash="0" * 16,
        estimators=estimators,
    )
    assert row.error is None, row.error
    return row


def errors_of(row: Row, camera_to_world: np.ndarray) -> tuple[float, float]:
    """Largest rotation error in degrees and position error in metres, frame 0 at the origin, no alignment."""
    true = se3_inverse(camera_to_world[:1]) @ camera_to_world
    ours = row.camera_to_world.astype(np.float64)
    angle = rotation_angle(np.swapaxes(true[:, :3, :3], 1, 2) @ ours[:, :3, :3])
    return float(np.degrees(angle.max())), float(
        np.linalg.norm(ours[:, :3, 3] - true[:, :3, 3], axis=1).max()
    )


def refused_by_the_images(row: Row) -> None:
    assert row.verdict == "rejected"
    assert "given_poses_disagree" in row.reasons, row.reason_details


def write_omniworld(folder: Path, shot: Shot, *, convert=lambda w2c: w2c, order=(0, 1, 2, 3)) -> Path:
    """Two splits, 0 to 7 and 8 to 47, each with a world of its own; returns the scene's folder."""
    scene = folder / "b04f88d1f85a"
    (scene / "camera").mkdir(parents=True)
    for name in ("color", "depth"):
        (scene / name).symlink_to(shot.folder / name)
    splits = [list(range(8)), list(range(8, FRAMES))]
    (scene / "split_info.json").write_text(json.dumps({"split_num": 2, "split": splits}))
    (scene / "fps.txt").write_text("FPS: 24.0 \nProcessing time: 3.1 s\n")
    for number, frames in enumerate(splits):
        w2c = shot.world_to_camera[frames] @ se3_inverse(shot.world_to_camera[frames[0]])[None]
        w2c = convert(w2c)
        content = {
            "focals": [shot.focal] * len(frames),
            "cx": WIDTH / 2,
            "cy": HEIGHT / 2,
            "quats": quaternion_wxyz_from_rotation(w2c[:, :3, :3])[:, list(order)].tolist(),
            "trans": (w2c[:, :3, 3] / METRIC_SCALE).tolist(),
        }
        (scene / f"camera/split_{number}.json").write_text(json.dumps(content))
    return scene


def write_omniworld_metadata(folder: Path) -> Path:
    path = folder / "metadata" / "omniworld_game_metadata.csv"
    path.parent.mkdir()
    path.write_text(
        "UID,Video Path,Annotation Path,Img Num,Split Num,FPS,Resolution,Test Split Index,Metric Scale\n"
        f'b04f88d1f85a,v,a,{FRAMES},2,24.0,240×144,"0,1",{METRIC_SCALE}\n',
        encoding="utf-8",
    )
    return path


def write_sekai(path: Path, shot: Shot, *, flip: bool = False, intrinsic: np.ndarray | None = None) -> Path:
    """`extrinsic` is camera-to-world; its world lies so that frame 0 has the rotation diag(1, -1, -1)."""
    gauge = np.diag([1.0, -1, -1, 1])
    poses = gauge @ se3_inverse(shot.camera_to_world[:1]) @ shot.camera_to_world
    poses[:, :3, 3] /= np.abs(poses[:, :3, 3]).max()
    if flip:
        poses = poses @ np.diag([1.0, -1, -1, 1])
    normalised = np.array([[shot.focal / WIDTH, 0, 0.5], [0, shot.focal / HEIGHT, 0.5], [0, 0, 1]])
    np.savez(
        path,
        extrinsic=poses.astype(np.float32),
        intrinsic=(normalised if intrinsic is None else intrinsic).astype(np.float32),
    )
    return path


STEP = 4
"""int(24 / 5): a pose for every fourth frame; most of them are no frames of the 16 fps clip."""


def write_spatialvid(
    folder: Path,
    shot: Shot,
    *,
    frames: np.ndarray | None = None,
    index: np.ndarray | None = None,
    convert=lambda w2c: w2c,
    order=(1, 2, 3, 0),
) -> Path:
    folder.mkdir()
    frames = np.arange(0, FRAMES, STEP) if frames is None else frames
    w2c = convert(shot.world_to_camera[frames])
    rows = np.c_[w2c[:, :3, 3] / 7.0, quaternion_wxyz_from_rotation(w2c[:, :3, :3])[:, list(order)]]
    np.save(folder / "poses.npy", rows.astype(np.float32))
    lens = np.array([shot.focal / WIDTH, shot.focal / HEIGHT, 0.5, 0.5], np.float32)
    np.save(folder / "intrinsics.npy", np.tile(lens, (len(frames), 1)))
    lines = [f"{i} {frame}" for i, frame in enumerate(frames if index is None else index)]
    (folder / "indexes.txt").write_text("\n".join([f"# total {len(frames)} indexes", *lines]) + "\n")
    return folder


APPLIED = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
"""World axes as the nerfstudio of DL3DV's time wrote them."""


def write_dl3dv(folder: Path, shot: Shot, *, convert=None, lost: int = 7, **fields) -> Path:
    """A scene with stills from 1, one of them lost, intrinsics for eight times their size."""
    images = folder / "images_8"
    images.mkdir(parents=True)
    world = WORLD @ shot.camera_to_world
    world[:, :3, 3] /= 3.3
    matrices = APPLIED @ opencv_to_opengl(world) if convert is None else convert(world)
    frames = []
    for i in range(FRAMES):
        name = f"frame_{i + 1:05d}.png"
        if i + 1 != lost:
            (images / name).symlink_to(shot.folder / f"color/{i:06d}.png")
        frames.append(
            {
                "file_path": f"images/{name}",
                "transform_matrix": matrices[i].tolist(),
                "colmap_im_id": FRAMES - i,
            }
        )
    content = {
        "w": 8 * WIDTH, "h": 8 * HEIGHT, "fl_x": 8 * shot.focal, "fl_y": 8 * shot.focal, "cx": 4 * WIDTH,
        "cy": 4 * HEIGHT, "k1": 1e-4, "k2": -2e-4, "p1": 1e-4, "p2": 0.0, "camera_model": "OPENCV",
        "frames": frames[::-1], "applied_transform": APPLIED[:3].tolist(),
    }  # fmt: skip
    path = folder / "transforms.json"
    path.write_text(json.dumps(content | fields))
    return path


def stills(shot: Shot, path: Path, **fields) -> ClipRef:
    """The scene's stills, with depth by their place among those that are there."""
    depth = path.parent / "depth"
    depth.mkdir()
    for i, name in enumerate(sorted((path.parent / "images_8").iterdir())):
        (depth / f"{i:06d}.png").symlink_to(shot.folder / f"depth_mm/{int(name.stem[-5:]) - 1:06d}.png")
    clip = clip_of(
        shot, depth_pattern=str(depth / "{frame:06d}.png"), cameras_path=path, cameras_format="dl3dv"
    )
    return replace(clip, media_kind="images", media_path=path.parent / "images_8", source_fps=FPS, **fields)


DRAWN = np.array([1, 5, 12, 14, 21, 26, 29, 36, 38, 45])
"""Frames of the video that became stills 1, 2, ...: one in each stretch of five, not at even distances."""


def write_drawn(folder: Path, shot: Shot, drawn: np.ndarray) -> Path:
    """A scene whose stills were drawn from the video."""
    path = write_dl3dv(folder, shot, lost=-1)
    content = json.loads(path.read_text())
    by_name = {frame["file_path"]: frame for frame in content["frames"]}
    images = folder / "images_8"
    for still in images.iterdir():
        still.unlink()
    frames = []
    for number, source in enumerate(drawn, start=1):
        name = f"images/frame_{number:05d}.png"
        frames.append(by_name[f"images/frame_{source + 1:05d}.png"] | {"file_path": name})
        (images / Path(name).name).symlink_to(shot.folder / f"color/{source:06d}.png")
    path.write_text(json.dumps(content | {"frames": frames}))
    return path


def listed(layout, root: Path, metadata: Path | None = None) -> dict[str, ClipRef]:
    release = Release(root=root, metadata=metadata, source="test", data_licence="research-only")
    clips = release_clips(layout, release)
    return {clip.clip_id: clip for clip in clips}
