"""LeRobot v3.0 folder: many episodes per file, cameras as features, pictures as a video feature where given.

Source of the layout: LeRobot documentation, "LeRobotDataset v3.0" (meta/info.json, meta/episodes, data
chunks).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..frames import VideoWriter
from .base import CameraClip, Pictures, mean_rate_hz, read_json, write_video

_POSE_NAMES = [f"{kind}{r}{c}" for r in range(3) for kind, c in (("r", 0), ("r", 1), ("r", 2), ("t", 3))]
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK_FILES, _DATA_FILE_MB = 1000, 100
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_VIDEO_FILE_MB = 200
_KEY_FRAME_EVERY = 2
"""As LeRobot's own writer: its loader jumps to single frames."""
POSE_KEY, INTRINSICS_KEY = "observation.camera_pose", "observation.intrinsics"
VIDEO_KEY = "observation.images.video"


def write_lerobot(
    clips: Sequence[CameraClip],
    folder: str | Path,
    *,
    fps: int | None = None,
    pictures: Pictures | None = None,
) -> Path:
    """Write a LeRobot v3.0 dataset of cameras, one episode per clip; returns the folder.

    Features: `observation.camera_pose` float32 (12,) row-major 3x4 camera to world, OpenCV axes, metres;
    `observation.intrinsics` float32 (4,) fx fy cx cy in pixels; `observation.image_size` int64 (2,) height,
    width. The clip's name is its episode's task text when it has no caption.

    Args:
        fps: frames a second, one whole number for all clips; None: that of the longest clip, rounded.
        pictures: also write `observation.images.video`, H.264 with one frame per camera, many clips in one file.
    Raises:
        ValueError: no clips, a clip whose times do not match `fps`, or pictures of several sizes.
    """
    if not clips:
        raise ValueError(f"{folder}: no clips to write")
    folder = Path(folder)
    fps = _whole_rate(clips) if fps is None else fps
    tasks = sorted({c.caption or c.name for c in clips})
    task_index = {t: i for i, t in enumerate(tasks)}
    features = _features()
    if pictures is not None:
        features[VIDEO_KEY] = _video_feature(clips, fps)
    episodes: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    pending_bytes = chunk = file = start = 0
    written: list[tuple[int, int, list[pa.Table]]] = []
    for e, clip in enumerate(clips):
        frames = len(clip)
        if clip.time_s is not None and frames > 1:
            # Frames are the nearest to a regular grid: both ends may be half a step off.
            expected_s, span_s = (frames - 1) / fps, float(clip.time_s[-1] - clip.time_s[0])
            if abs(span_s - expected_s) > 0.02 * expected_s + 1 / fps:
                raise ValueError(
                    f"clip {clip.name}: {frames} frames in {span_s:.3f} s, LeRobot needs one rate of {fps} for all "
                    "clips; export the others by themselves"
                )
        table = _episode_table(clip, e, start, task_index[clip.caption or clip.name], fps)
        if tables and pending_bytes + table.nbytes > _DATA_FILE_MB * 1_000_000:
            written.append((chunk, file, tables))
            tables, pending_bytes = [], 0
            chunk, file = (chunk, file + 1) if file + 1 < _CHUNK_FILES else (chunk + 1, 0)
        tables.append(table)
        pending_bytes += table.nbytes
        episodes.append(
            {
                "episode_index": e,
                "tasks": [clip.caption or clip.name],
                "length": frames,
                "dataset_from_index": start,
                "dataset_to_index": start + frames,
                "data/chunk_index": chunk,
                "data/file_index": file,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "clip_id": clip.name,
            }
        )
        start += frames
    written.append((chunk, file, tables))
    stats = _stats(clips)
    if pictures is not None:
        places, stats[VIDEO_KEY] = _write_videos(clips, folder, fps, pictures)
        for episode, place in zip(episodes, places, strict=True):
            episode.update(place)
    for chunk_index, file_index, group in written:
        target = folder / _DATA_PATH.format(chunk_index=chunk_index, file_index=file_index)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(group), target)
    target = folder / _EPISODES_PATH.format(chunk_index=0, file_index=0)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(episodes), target)
    # LeRobot reads tasks with pandas, the text as index.
    import pandas as pd

    frame = pd.DataFrame({"task_index": list(range(len(tasks)))}, index=pd.Index(tasks, name="task"))
    frame.to_parquet(folder / "meta" / "tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(clips),
        "total_frames": start,
        "total_tasks": len(tasks),
        "chunks_size": _CHUNK_FILES,
        "data_files_size_in_mb": _DATA_FILE_MB,
        "video_files_size_in_mb": _VIDEO_FILE_MB,
        "fps": fps,
        "splits": {"train": f"0:{len(clips)}"},
        "data_path": _DATA_PATH,
        "video_path": None if pictures is None else _VIDEO_PATH,
        "features": features,
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    (folder / "meta" / "stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
    return folder


def _whole_rate(clips: Sequence[CameraClip]) -> int:
    return max(1, round(mean_rate_hz(max(clips, key=len))))


def _video_feature(clips: Sequence[CameraClip], fps: int) -> dict[str, Any]:
    sizes = {(clip.height, clip.width): clip.name for clip in clips}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {w}x{h}" for (h, w), name in sorted(sizes.items())[:5])
        raise ValueError(f"pictures of several sizes ({listed}); a LeRobot video has one: export them apart")
    ((height, width),) = sizes
    info = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "is_depth_map": False,
    }
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": info,
    }


def _write_videos(
    clips: Sequence[CameraClip], folder: Path, fps: int, pictures: Pictures
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the pictures of all clips; where each clip's lie, as columns of its episode, and their statistics."""
    places: list[dict[str, Any]] = []
    samples: list[NDArray[np.float64]] = []

    def sampled(clip: CameraClip) -> Iterator[NDArray[np.uint8]]:
        for rgb in pictures(clip):
            pixels = rgb[::8, ::8].reshape(-1, 3) / 255.0
            samples.append(np.stack([pixels.min(0), pixels.max(0), pixels.mean(0), (pixels**2).mean(0)]))
            yield rgb

    path, video, files, frames = folder, None, 0, 0
    with ExitStack() as stack:
        for clip in clips:
            if video is None or path.stat().st_size >= _VIDEO_FILE_MB * 1_000_000:
                stack.close()
                chunk, file = divmod(files, _CHUNK_FILES)
                path = folder / _VIDEO_PATH.format(video_key=VIDEO_KEY, chunk_index=chunk, file_index=file)
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = VideoWriter(
                    path, width=clip.width, height=clip.height, fps=fps, key_frame_every=_KEY_FRAME_EVERY
                )
                video = stack.enter_context(writer)
                files, frames = files + 1, 0
            write_video(video, clip, sampled)
            first, frames = frames, frames + len(clip)
            place = {
                "chunk_index": (files - 1) // _CHUNK_FILES,
                "file_index": (files - 1) % _CHUNK_FILES,
                "from_timestamp": first / fps,
                "to_timestamp": frames / fps,
            }
            places.append({f"videos/{VIDEO_KEY}/{name}": value for name, value in place.items()})
    low, high, mean, square = np.moveaxis(np.stack(samples), 1, 0)
    of_all = {
        "min": low.min(0),
        "max": high.max(0),
        "mean": mean.mean(0),
        "std": np.sqrt(np.maximum(square.mean(0) - mean.mean(0) ** 2, 0)),
    }
    per_channel = {name: values.reshape(3, 1, 1).tolist() for name, values in of_all.items()}
    return places, {**per_channel, "count": [len(samples)]}


def _features() -> dict[str, Any]:
    scalars = {n: "int64" for n in ("frame_index", "episode_index", "index", "task_index")} | {
        "timestamp": "float32"
    }
    features: dict[str, Any] = {
        POSE_KEY: {"dtype": "float32", "shape": [12], "names": _POSE_NAMES},
        INTRINSICS_KEY: {"dtype": "float32", "shape": [4], "names": ["fx", "fy", "cx", "cy"]},
        "observation.image_size": {"dtype": "int64", "shape": [2], "names": ["height", "width"]},
    }
    return features | {n: {"dtype": d, "shape": [1], "names": None} for n, d in scalars.items()}


def _camera_arrays(clip: CameraClip) -> tuple[np.ndarray, np.ndarray]:
    pose = clip.camera_to_world[:, :3].reshape(len(clip), 12).astype(np.float32)
    return pose, np.concatenate([clip.focal_px, clip.principal_point_px], axis=1).astype(np.float32)


def _episode_table(clip: CameraClip, episode: int, start: int, task: int, fps: int) -> pa.Table:
    frames = len(clip)
    pose, intrinsics = _camera_arrays(clip)
    size = np.tile(np.array([clip.height, clip.width], dtype=np.int64), (frames, 1))

    def fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.shape[1])

    return pa.table(
        {
            POSE_KEY: fixed(pose, pa.float32()),
            INTRINSICS_KEY: fixed(intrinsics, pa.float32()),
            "observation.image_size": fixed(size, pa.int64()),
            "timestamp": pa.array(np.arange(frames) / fps, pa.float32()),
            "frame_index": pa.array(np.arange(frames), pa.int64()),
            "episode_index": pa.array(np.full(frames, episode), pa.int64()),
            "index": pa.array(np.arange(start, start + frames), pa.int64()),
            "task_index": pa.array(np.full(frames, task), pa.int64()),
        }
    )


def _stats(clips: Sequence[CameraClip]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, values in zip(
        (POSE_KEY, INTRINSICS_KEY), zip(*map(_camera_arrays, clips), strict=True), strict=True
    ):
        x = np.concatenate(values).astype(np.float64)
        result[name] = {
            "min": x.min(0).tolist(),
            "max": x.max(0).tolist(),
            "mean": x.mean(0).tolist(),
            "std": x.std(0).tolist(),
            "count": [len(x)],
        }
    return result


def read_lerobot(folder: str | Path) -> list[CameraClip]:
    """Clips of a LeRobot v3.0 dataset that has our camera features.

    Raises:
        ValueError: another version, missing features, or episodes that do not add up.
    """
    folder = Path(folder)
    info = read_json(folder / "meta" / "info.json")
    if info.get("codebase_version") != "v3.0":
        raise ValueError(f"{folder}: LeRobot version {info.get('codebase_version')}, expected v3.0")
    missing = [k for k in (POSE_KEY, INTRINSICS_KEY, "observation.image_size") if k not in info["features"]]
    if missing:
        raise ValueError(
            f"{folder}: no feature {', '.join(missing)}; this dataset carries no cameras of ours"
        )
    episodes = pa.concat_tables(
        [pq.read_table(p) for p in sorted((folder / "meta" / "episodes").rglob("*.parquet"))]
    )
    cache: dict[Path, pa.Table] = {}
    clips: list[CameraClip] = []
    for episode in episodes.to_pylist():
        path = folder / info["data_path"].format(
            chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
        )
        if path not in cache:
            cache = {path: pq.read_table(path)}
        table = cache[path]
        first = table["index"][0].as_py()
        part = table.slice(episode["dataset_from_index"] - first, episode["length"])
        if part.num_rows != episode["length"] or set(part["episode_index"].to_pylist()) != {
            episode["episode_index"]
        }:
            raise ValueError(
                f"{path}: episode {episode['episode_index']} does not hold {episode['length']} frames"
            )

        def column(name: str, width: int, part: pa.Table = part) -> np.ndarray:
            return np.asarray(part[name].to_pylist(), dtype=np.float64).reshape(-1, width)

        pose = np.tile(np.eye(4), (part.num_rows, 1, 1))
        pose[:, :3] = column(POSE_KEY, 12).reshape(-1, 3, 4)
        k, size = column(INTRINSICS_KEY, 4), column("observation.image_size", 2)
        name = episode.get("clip_id") or f"episode_{episode['episode_index']:06d}"
        task = episode["tasks"][0]
        clips.append(
            CameraClip(
                name=name,
                camera_to_world=pose,
                focal_px=k[:, :2],
                principal_point_px=k[:, 2:],
                height=int(size[0, 0]),
                width=int(size[0, 1]),
                time_s=np.asarray(part["frame_index"].to_pylist()) / info["fps"],
                caption=None if task == name else task,
            )
        )
    return clips
