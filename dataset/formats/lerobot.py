"""LeRobot v3.0 folder: many episodes per file, cameras as features, pictures as a video feature where given.

Source of the layout: LeRobot documentation, "LeRobotDataset v3.0" (meta/info.json, meta/episodes, data
chunks).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..inputs import InputError, finite_int, read_json, reader
from ..media.write import VideoWriter
from ..names import below, fill_pattern
from ..parquet import read_table
from .base import CameraClip, Pictures, mean_rate_hz, write_video

_POSE_NAMES = [f"{kind}{r}{c}" for r in range(3) for kind, c in (("r", 0), ("r", 1), ("r", 2), ("t", 3))]
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK_FILES, _DATA_FILE_MB = 1000, 100
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_VIDEO_FILE_MB = 200
_KEY_FRAME_EVERY = 2
"""As LeRobot's own writer: its loader jumps to single frames."""
_ROW_GROUP_BYTES, _MOST_PENDING = 16_000_000, 1000
"""Tables are written together when they reach this size or number."""
POSE_KEY, INTRINSICS_KEY = "observation.camera_pose", "observation.intrinsics"
VIDEO_KEY = "observation.images.video"


class LerobotWriter:
    """Writes a LeRobot v3.0 dataset of cameras into a folder, one episode per clip, many clips in a file; memory does
    not grow with the number of clips, but for their task texts.

    Features: `observation.camera_pose` float32 (12,) row-major 3x4 camera to world, OpenCV axes, metres;
    `observation.intrinsics` float32 (4,) fx fy cx cy in pixels; `observation.image_size` int64 (2,) height,
    width. The clip's name is its episode's task text when it has no caption.

    Args:
        fps: frames a second, one whole number for all clips.
        pictures: also write `observation.images.video`, H.264 with one frame per camera.
    """

    def __init__(self, folder: str | Path, *, fps: int, pictures: Pictures | None = None) -> None:
        self._folder, self._fps, self._pictures = Path(folder), fps, pictures
        self._tasks: dict[str, int] = {}
        self._num_clips = self._num_frames = 0
        self._data = _ParquetFiles(self._folder, _DATA_PATH, most_bytes=_DATA_FILE_MB * 1_000_000)
        self._episodes = _ParquetFiles(self._folder, _EPISODES_PATH)
        self._videos: _Videos | None = None
        self._size: tuple[str, int, int] | None = None
        self._stats = {POSE_KEY: _Stats(12), INTRINSICS_KEY: _Stats(4)}

    def add(self, clip: CameraClip) -> None:
        """Append a clip as an episode.

        Raises:
            ValueError: its times do not match `fps`, or its pictures have another size than those before.
        """
        frames = len(clip)
        if clip.time_s is not None and frames > 1:
            # Frames are the nearest to a regular grid: both ends may be half a step off.
            expected_s, span_s = (frames - 1) / self._fps, float(clip.time_s[-1] - clip.time_s[0])
            if abs(span_s - expected_s) > 0.02 * expected_s + 1 / self._fps:
                raise ValueError(
                    f"clip {clip.name}: {frames} frames in {span_s:.3f} s, LeRobot needs one rate of {self._fps} for "
                    "all clips; export the others by themselves"
                )
        task = clip.caption or clip.name
        number = self._tasks.setdefault(task, len(self._tasks))
        table = _episode_table(clip, self._num_clips, self._num_frames, number, self._fps)
        chunk, file = self._data.add(table)
        episode = {
            "episode_index": self._num_clips,
            "tasks": [task],
            "length": frames,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + frames,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "clip_id": clip.name,
        }
        if self._pictures is not None:
            episode |= self._add_video(clip, self._pictures)
        self._episodes.add(pa.Table.from_pylist([episode]))
        for name, values in zip((POSE_KEY, INTRINSICS_KEY), _camera_arrays(clip), strict=True):
            self._stats[name].add(values)
        self._num_clips += 1
        self._num_frames += frames

    def _add_video(self, clip: CameraClip, pictures: Pictures) -> dict[str, Any]:
        if self._size is None or self._videos is None:
            self._size = (clip.name, clip.height, clip.width)
            self._videos = _Videos(self._folder, self._fps)
        require_one_size([self._size, (clip.name, clip.height, clip.width)])
        return self._videos.add(clip, pictures)

    def close(self) -> None:
        """Finish the files and write what describes them.

        Raises:
            ValueError: no clip was added.
        """
        for files in (self._data, self._episodes, self._videos):
            if files is not None:
                files.close()
        if not self._num_clips:
            raise ValueError(f"{self._folder}: no clips to write")
        features = _features()
        stats = {name: running.values() for name, running in self._stats.items()}
        if self._videos is not None and self._size is not None:
            features[VIDEO_KEY] = _video_feature(self._size[1], self._size[2], self._fps)
            stats[VIDEO_KEY] = self._videos.values()
        # LeRobot reads tasks with pandas, the text as index.
        import pandas as pd

        index = pd.Index(list(self._tasks), name="task")
        tasks = pd.DataFrame({"task_index": list(self._tasks.values())}, index=index)
        tasks.to_parquet(self._folder / "meta" / "tasks.parquet")
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": self._num_clips,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": _DATA_FILE_MB,
            "video_files_size_in_mb": _VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{self._num_clips}"},
            "data_path": _DATA_PATH,
            "video_path": None if self._pictures is None else _VIDEO_PATH,
            "features": features,
        }
        for name, content in (("stats", stats), ("info", info)):
            text = json.dumps(content, indent=2) + "\n"
            (self._folder / "meta" / f"{name}.json").write_text(text, encoding="utf-8")

    def abort(self) -> None:
        """Close files without finishing the dataset."""
        for files in (self._data, self._episodes, self._videos):
            if files is not None:
                files.abort()


def write_lerobot(
    clips: Sequence[CameraClip],
    folder: str | Path,
    *,
    fps: int | None = None,
    pictures: Pictures | None = None,
) -> Path:
    """Write clips as `LerobotWriter` does; returns the folder.

    Args:
        fps: None: that of the longest clip, rounded.
    Raises:
        ValueError: no clips, or one that `LerobotWriter.add` refuses.
    """
    if not clips:
        raise ValueError(f"{folder}: no clips to write")
    if pictures is not None:
        require_one_size((clip.name, clip.height, clip.width) for clip in clips)
    writer = LerobotWriter(
        folder, fps=whole_rate(max(clips, key=len)) if fps is None else fps, pictures=pictures
    )
    try:
        for clip in clips:
            writer.add(clip)
    except BaseException:
        writer.abort()
        raise
    writer.close()
    return Path(folder)


def require_one_size(clips: Iterable[tuple[str, int, int]]) -> None:
    """Refuse clips, given by name, height and width, that do not fit into one video feature.

    Raises:
        ValueError: naming a clip of each size.
    """
    sizes: dict[tuple[int, int], str] = {}
    for name, height, width in clips:
        sizes.setdefault((height, width), name)
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {w}x{h}" for (h, w), name in sorted(sizes.items())[:5])
        raise ValueError(f"pictures of several sizes ({listed}); a LeRobot video has one: export them apart")


def whole_rate(clip: CameraClip) -> int:
    """Frames a second of a clip as LeRobot takes them."""
    return max(1, round(mean_rate_hz(clip)))


class _ParquetFiles:
    """Numbered Parquet files of tables that come one after the other."""

    def __init__(self, folder: Path, pattern: str, *, most_bytes: int | None = None) -> None:
        self._folder, self._pattern, self._most_bytes = folder, pattern, most_bytes
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._file, self._bytes = 0, 0

    def add(self, table: pa.Table) -> tuple[int, int]:
        """Append a table; number of its chunk and of its file in that."""
        if self._most_bytes is not None and self._bytes and self._bytes + table.nbytes > self._most_bytes:
            self.close()
            self._file, self._bytes = self._file + 1, 0
        place = divmod(self._file, _CHUNK_FILES)
        if self._writer is None:
            path = self._folder / self._pattern.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema)
        self._pending.append(table)
        self._bytes += table.nbytes
        if sum(t.nbytes for t in self._pending) > _ROW_GROUP_BYTES or len(self._pending) >= _MOST_PENDING:
            self._flush()
        return place

    def _flush(self) -> None:
        if self._writer is not None and self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending = []

    def close(self) -> None:
        self._flush()
        self.abort()

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._pending = None, []


class _Videos:
    """Numbered video files, each of many clips, and the statistics of their pixels."""

    def __init__(self, folder: Path, fps: int) -> None:
        self._folder, self._fps = folder, fps
        self._path: Path | None = None
        self._open = ExitStack()
        self._writer: VideoWriter | None = None
        self._files = self._frames = 0
        self._pixels = _Stats(3)
        self._num_pictures = 0

    def add(self, clip: CameraClip, pictures: Pictures) -> dict[str, Any]:
        """Append the pictures of a clip; where they lie, as columns of its episode."""
        full = self._path is not None and self._path.stat().st_size >= _VIDEO_FILE_MB * 1_000_000
        if self._writer is None or full:
            self.close()
            chunk, file = divmod(self._files, _CHUNK_FILES)
            name = _VIDEO_PATH.format(video_key=VIDEO_KEY, chunk_index=chunk, file_index=file)
            self._path = self._folder / name
            self._path.parent.mkdir(parents=True, exist_ok=True)
            writer = VideoWriter(
                self._path,
                width=clip.width,
                height=clip.height,
                fps=self._fps,
                key_frame_every=_KEY_FRAME_EVERY,
            )
            self._writer = self._open.enter_context(writer)
            self._files, self._frames = self._files + 1, 0
        write_video(self._writer, clip, lambda clip: self._sampled(pictures(clip)))
        first, self._frames = self._frames, self._frames + len(clip)
        place = {
            "chunk_index": (self._files - 1) // _CHUNK_FILES,
            "file_index": (self._files - 1) % _CHUNK_FILES,
            "from_timestamp": first / self._fps,
            "to_timestamp": self._frames / self._fps,
        }
        return {f"videos/{VIDEO_KEY}/{name}": value for name, value in place.items()}

    def _sampled(self, pictures: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        for rgb in pictures:
            self._pixels.add(rgb[::8, ::8].reshape(-1, 3) / 255.0)
            self._num_pictures += 1
            yield rgb

    def values(self) -> dict[str, Any]:
        """Statistics a channel, as LeRobot shapes them; counted in pictures."""
        of_all = {name: values for name, values in self._pixels.values().items() if name != "count"}
        per_channel = {name: np.reshape(values, (3, 1, 1)).tolist() for name, values in of_all.items()}
        return {**per_channel, "count": [self._num_pictures]}

    def close(self) -> None:
        """Finish the current file."""
        self._open.close()
        self._writer = None

    abort = close


class _Stats:
    """Least, greatest, mean and standard deviation of vectors that come in blocks.

    Source: Chan, Golub and LeVeque (1983), pairwise updating of the sum of squares.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)
        self._mean, self._squares = np.zeros(size), np.zeros(size)

    def add(self, values: np.ndarray) -> None:
        """Take in (n, size) values, n at least 1."""
        x = values.astype(np.float64)
        count, mean = len(x), x.mean(0)
        apart, total = mean - self._mean, self._count + count
        self._squares += ((x - mean) ** 2).sum(0) + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total
        self._low, self._high = np.minimum(self._low, x.min(0)), np.maximum(self._high, x.max(0))

    def values(self) -> dict[str, Any]:
        """As LeRobot names them."""
        return {
            "min": self._low.tolist(),
            "max": self._high.tolist(),
            "mean": self._mean.tolist(),
            "std": np.sqrt(self._squares / max(self._count, 1)).tolist(),
            "count": [self._count],
        }


def _video_feature(height: int, width: int, fps: int) -> dict[str, Any]:
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


def is_lerobot(folder: str | Path) -> bool:
    """Whether `read_lerobot` finds a dataset in a folder."""
    return (Path(folder) / "meta" / "info.json").is_file()


@reader("LeRobot dataset")
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
        [read_table(p) for p in sorted((folder / "meta" / "episodes").rglob("*.parquet"))]
    )
    cache: dict[Path, pa.Table] = {}
    clips: list[CameraClip] = []
    for episode in episodes.to_pylist():
        place = {
            name: finite_int(episode[f"data/{name}"], f"{folder}: data/{name}")
            for name in ("chunk_index", "file_index")
        }
        path = below(folder, fill_pattern(info["data_path"], **place))
        if path not in cache:
            cache = {path: read_table(path)}
        table = cache[path]
        first = table["index"][0].as_py()
        part = table.slice(episode["dataset_from_index"] - first, episode["length"])
        if part.num_rows != episode["length"] or set(part["episode_index"].to_pylist()) != {
            episode["episode_index"]
        }:
            raise InputError(
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
