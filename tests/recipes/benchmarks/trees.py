"""Tiny public sets in the layouts in which their archives unpack, with rendered pictures and known cameras."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.annotate.rendered.files import write_depth_png, write_png
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.dataset.cameras.transforms import se3_inverse
from theodolite.dataset.formats.trajectories import write_kitti, write_tum
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.lens import LENS

START_S = 1305031102.175304
"""Of TUM's freiburg1_xyz."""


def clip_of(seed: int = 3, *, fps: float = 30.0, **config: object) -> RenderedClip:
    """A clip that costs little: 24 frames of 320x192, its speed such that the camera moves about 0.3 m."""
    given: dict[str, object] = {"width": 320, "height": 192, "num_frames": 24, "speed": fps / 16}
    return render_clip(RenderConfig.model_validate({**given, "seed": seed, "fps": fps, **config}))


def write_tum_sequence(folder: Path, clip: RenderedClip, *, depth_late_s: float = 0.008) -> Path:
    """A sequence as TUM RGB-D ships it: times as names, depth at times of its own, poses 100 times a second."""
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    lists: dict[str, list[str]] = {"rgb": [], "depth": []}
    for i, frame in enumerate(clip):
        time = START_S + float(clip.time_s[i])
        for kind, at in (("rgb", time), ("depth", time + depth_late_s)):
            lists[kind].append(f"{at:.6f} {kind}/{at:.6f}.png")
        write_png(folder / "rgb" / f"{time:.6f}.png", frame.rgb)
        write_depth_png(
            folder / "depth" / f"{time + depth_late_s:.6f}.png", frame.depth_m, units_per_metre=5000
        )
    for kind, lines in lists.items():
        header = f"# {kind} images\n# file: 'x.bag'\n# timestamp filename\n"
        (folder / f"{kind}.txt").write_text(header + "\n".join(lines) + "\n")
    write_truth(folder / "groundtruth.txt", clip, START_S)
    return folder


def write_truth(path: Path, clip: RenderedClip, start_s: float, *, rate_hz: float = 100.0) -> None:
    """Poses of a clip at a motion capture's own times, from a little before to a little after it."""
    times = np.arange(-0.05, float(clip.time_s[-1]) + 0.05, 1 / rate_hz)
    write_tum(path, camera_path(clip.config, times), start_s + times)


def write_eth3d_sequence(folder: Path, clip: RenderedClip) -> Path:
    """The same with `calibration.txt`, depth at the times of the images, and times since the recorder's start."""
    write_tum_sequence(folder, clip, depth_late_s=0.0)
    k = clip.intrinsics[0]
    (folder / "calibration.txt").write_text(f"{k[0, 0]:.9g} {k[1, 1]:.9g} {k[0, 2]:.9g} {k[1, 2]:.9g}\n")
    return folder


def cam_bytes(intrinsics: np.ndarray, world_to_camera: np.ndarray) -> bytes:
    """A camera of MPI Sintel."""
    numbers = np.concatenate([intrinsics.reshape(-1), world_to_camera[:3].reshape(-1)])
    return struct.pack("<f", 202021.25) + numbers.astype("<f8").tobytes()


def dpt_bytes(depth: np.ndarray) -> bytes:
    """A depth map of MPI Sintel."""
    height, width = depth.shape
    return struct.pack("<f2i", 202021.25, width, height) + depth.astype("<f4").tobytes()


def write_sintel_sequence(root: Path, name: str, clip: RenderedClip, *, render: str = "final") -> None:
    """A training sequence of MPI Sintel with its camera and depth files, frames counted from 1."""
    places = {k: root / "training" / k / name for k in (render, "camdata_left", "depth")}
    for place in places.values():
        place.mkdir(parents=True)
    for i, frame in enumerate(clip):
        write_png(places[render] / f"frame_{i + 1:04d}.png", frame.rgb)
        depth = np.where(np.isfinite(frame.depth_m), frame.depth_m, 1e4)
        (places["depth"] / f"frame_{i + 1:04d}.dpt").write_bytes(dpt_bytes(depth))
        camera = cam_bytes(clip.intrinsics[i], se3_inverse(clip.camera_to_world[i]))
        (places["camdata_left"] / f"frame_{i + 1:04d}.cam").write_bytes(camera)


KITTI_CALIB = """P0: 718.856 0 607.1928 0 0 718.856 185.2157 0 0 0 1 0
P1: 718.856 0 607.1928 -386.1448 0 718.856 185.2157 0 0 0 1 0
P2: 718.856 0 607.1928 45.38225 0 718.856 185.2157 -0.1130887 0 0 1 0.003779761
P3: 718.856 0 607.1928 -337.2877 0 718.856 185.2157 2.369057 0 0 1 0.004915215
Tr: 0.000428 -0.999967 -0.008084 -0.011985 -0.007211 0.008081 -0.999941 -0.054040 0.999974 0.000486 -0.007207 -0.292197
"""
"""Of sequence 00, rounded."""


def write_kitti_sequence(
    root: Path,
    name: str,
    camera_to_world: np.ndarray,
    *,
    camera: str = "image_2",
    picture: np.ndarray | None = None,
) -> Path:
    """A sequence of KITTI odometry as the archives unpack into `dataset/`; its pictures are all alike."""
    folder = root / "dataset/sequences" / name
    (folder / camera).mkdir(parents=True)
    shown = np.zeros((8, 26, 3), np.uint8) if picture is None else picture
    for i in range(len(camera_to_world)):
        write_png(folder / camera / f"{i:06d}.png", shown)
    (folder / "calib.txt").write_text(KITTI_CALIB)
    (folder / "times.txt").write_text("".join(f"{i * 0.1037:.6e}\n" for i in range(len(camera_to_world))))
    (root / "dataset/poses").mkdir(exist_ok=True)
    write_kitti(root / f"dataset/poses/{name}.txt", camera_to_world)
    return folder


def write_influx_partition(
    root: Path,
    videos: dict[str, tuple[str, RenderedClip | None, int]],
    *,
    name: str = "influx",
    version: str = "_v1",
) -> Path:
    """A partition of InFlux-Real: by name split, clip (None: the video is not here) and number of frames."""
    folder = root / name
    (folder / "videos").mkdir(parents=True)
    listed, truth = {}, {}
    for video, (split, clip, frames) in videos.items():
        listed[video] = {"frame_count": frames, "split": split}
        if clip is not None:
            config = clip.config
            path = folder / "videos" / f"{video}.mp4"
            with VideoWriter(path, width=config.width, height=config.height, fps=24.0) as out:
                for frame in clip:
                    out.write(frame.rgb)
        if split == "val":
            truth[video] = {str(i): lens_entry(clip, i) for i in range(frames)}
    (folder / f"video_frame_count_and_split{version}.json").write_text(json.dumps(listed))
    (folder / f"gt_validation_dict{version}.json").write_text(json.dumps(truth))
    return folder


def lens_entry(clip: RenderedClip | None, i: int) -> dict[str, dict[str, float]]:
    """What the file of true lenses holds of a frame; NaN where there is no clip, as outside of what was calibrated."""
    lens: dict[str, float] = dict.fromkeys(LENS, float("nan"))
    if clip is not None and i < len(clip):
        k = clip.intrinsics[i]
        # The renderer counts pixel centres at +0.5, the set from 0.
        lens = {"fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2] - 0.5, "cy": k[1, 2] - 0.5}
        lens |= dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0)
    extrapolated = lens if np.isfinite(lens["fx"]) else {k: 1.0 for k in lens}
    return {
        "intrinsics_gt": lens,
        "intrinsics_gt_extrapolated": extrapolated,
        "lens_metadata": {"focal_length_mm": 24.0, "focus_distance_m": 2.5},
    }
