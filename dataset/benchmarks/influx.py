"""InFlux-Real: its lists of videos, its true lenses, and the file that its server takes.

Source: docs/README_download_real.md, docs/README_evaluation.md and scripts/upload_submission.py of princeton-vl/InFlux
(benchmark of arXiv 2510.23589 and 2607.05389).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arrays import F64, I64
from ..inputs import InputError, finite_int, read_json
from ..metrics.lens import LENS
from ..names import as_name
from ..store import write_atomically

Split = Literal["val", "test"]
PARTITIONS = {"influx": "_v1", "influx_pp_real": "_v2"}
"""Name of each partition, also of the target of a submission, and the version in its files' names."""
METHOD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
MAX_FRAMES = 10**6
"""Of a video: eleven hours. Its longest have a few thousand."""
MAX_SUBMISSION_BYTES = 200 * 2**20
_FRAME = re.compile(r"0|[1-9][0-9]{0,6}")
"""Number of a frame as their tools write it: a second way to write it would be a second lens."""
_MAX_SHOWN = 200
_DIGITS = 9
"""Significant digits of a number of a submission: 0.00001 px, and 66 MB for all 558,653 frames."""


@dataclass(frozen=True, kw_only=True)
class ListedVideo:
    """A video as the list of its partition has it."""

    name: str
    split: Split
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One of the two halves of the set.

    Attributes:
        name: `influx` or `influx_pp_real`.
        folder: where its files lie.
        index: its list of videos and frames.
        videos: all that it lists, in order of their names.
    """

    name: str
    folder: Path
    index: Path
    videos: tuple[ListedVideo, ...]

    def clip_id(self, video: ListedVideo) -> str:
        """What the video is called in a dataset."""
        return as_name(f"{self.name}-{video.split}-{video.name}")

    @property
    def truth(self) -> Path:
        """File with the true lenses of its validation split."""
        return self.index.with_name(
            self.index.name.replace("video_frame_count_and_split", "gt_validation_dict")
        )


def find_partitions(root: Path) -> tuple[Partition, ...]:
    """Partitions whose list lies at or below `root`.

    Raises:
        InputError: a list that cannot be read.
    """
    found = []
    for name, version in PARTITIONS.items():
        files = f"video_frame_count_and_split{version}.json", "video_frame_count_and_split.json"
        folders = (root / name, root, root / "dataset", root / "influx_real_data" / name)
        places = [folder / files[0] for folder in folders]
        if name == "influx":
            places += [folder / files[1] for folder in folders]  # its first release
        index = next((place for place in places if place.is_file()), None)
        if index is not None:
            videos = tuple(_videos(index))
            found.append(Partition(name=name, folder=index.parent, index=index, videos=videos))
    return tuple(found)


def _videos(index: Path) -> Iterator[ListedVideo]:
    for name, entry in sorted(read_json(index).items()):
        split = entry.get("split") if isinstance(entry, dict) else None
        try:
            if split not in ("val", "test") or not isinstance(entry, dict):
                raise ValueError(split)
            count = finite_int(entry.get("frame_count"), "frame_count", most=MAX_FRAMES)
        except ValueError:
            raise InputError(
                f"{index}: video {name[:80]!r}: expected a split val or test and a frame_count, found {str(entry)[:80]}"
            ) from None
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise InputError(f"{index}: {name[:80]!r} is no name of a video")
        yield ListedVideo(name=name, split=split, num_frames=count)


def read_true_lenses(partition: Partition) -> Mapping[str, Mapping[str, Any]]:
    """What the partition's file of true lenses holds by video; see `lenses_of_video`.

    Raises:
        InputError: missing, or no such file.
    """
    return read_json(partition.truth)


def lenses_of_video(content: Mapping[str, Any], video: ListedVideo, *, path: Path) -> tuple[I64, F64]:
    """Frames (F,) that have a true lens, and those lenses (F, 8).

    Frames whose focal length or focus distance lie outside of what was calibrated hold NaN (`intrinsics_gt`) and are
    left out; their extrapolated lenses are not used.

    Raises:
        InputError: the video is missing, a frame that its list does not have, or an entry that is no lens.
    """
    frames = content.get(video.name)
    if not isinstance(frames, dict):
        raise InputError(f"{path}: has no lenses of video {video.name}")
    index: list[int] = []
    lenses: list[list[float]] = []
    for key, entry in frames.items():
        lens = entry.get("intrinsics_gt") if isinstance(entry, dict) else None
        if _FRAME.fullmatch(key) is None or int(key) >= video.num_frames:
            raise InputError(
                f"{path}: video {video.name}: frame {key[:40]!r}, but its list counts {video.num_frames} frames"
            )
        if not isinstance(lens, dict):
            raise InputError(
                f"{path}: video {video.name}, frame {key}: expected intrinsics_gt with {', '.join(LENS)}"
            )
        values = [lens.get(name) for name in LENS]
        shown = str(values)[:_MAX_SHOWN]
        if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in values):
            raise InputError(
                f"{path}: video {video.name}, frame {key}: intrinsics_gt holds no numbers: {shown}"
            )
        try:
            numbers = [math.nan if v is None else float(v) for v in values]
        except OverflowError:  # whole numbers of JSON have no end
            raise InputError(
                f"{path}: video {video.name}, frame {key}: intrinsics_gt holds a number beyond all floats: {shown}"
            ) from None
        if all(math.isfinite(v) for v in numbers):
            if numbers[0] <= 0 or numbers[1] <= 0:
                raise InputError(
                    f"{path}: video {video.name}, frame {key}: focal lengths must be positive: {shown}"
                )
            index.append(int(key))
            lenses.append(numbers)
    order = np.argsort(np.array(index, np.int64), kind="stable")
    return np.array(index, np.int64)[order], np.array(lenses, np.float64).reshape(-1, len(LENS))[order]


# --- what the server takes ------------------------------------------------------------------------


def target_of(partitions: tuple[Partition, ...]) -> str:
    """Target of a submission for these partitions: one of their names, or `all`."""
    return partitions[0].name if len(partitions) == 1 else "all"


def check_submission(partitions: tuple[Partition, ...], *, method: str) -> tuple[Partition, ...]:
    """Partitions that have test videos, if the server would take a submission for them.

    Raises:
        ValueError: a method name that it refuses, no test video, or the same one in both partitions.
    """
    if METHOD.fullmatch(method) is None:
        raise ValueError(
            f"method {method!r}: the InFlux server takes letters, digits, _ and -, at most 100, not - in front"
        )
    with_test = tuple(p for p in partitions if any(v.split == "test" for v in p.videos))
    if not with_test:
        raise ValueError(f"{', '.join(str(p.index) for p in partitions)}: lists no test video")
    seen = {"submission_metadata"}
    for partition in with_test:
        for video in (v for v in partition.videos if v.split == "test"):
            if video.name in seen:
                raise ValueError(
                    f"{partition.index}: video {video.name} is in both partitions, or no video's name"
                )
            seen.add(video.name)
    return with_test


def write_submission(
    path: Path,
    partitions: tuple[Partition, ...],
    lenses: Mapping[str, tuple[I64, F64]],
    *,
    method: str,
) -> dict[str, int]:
    """Write predictions for the test videos of `partitions` as the server takes them: every video and frame of the
    lists, `null` where there is none.

    Args:
        lenses: by clip id, frames (F,) and their lenses (F, 8).
        method: name of the method on the server.
    Returns:
        Counts: `videos`, `frames`, and of both those with a prediction (`videos_predicted`, `frames_predicted`).
    Raises:
        ValueError: as `check_submission`, or a file beyond the 200 MiB that are taken.
    """
    partitions = check_submission(partitions, method=method)
    nothing = dict.fromkeys(LENS)
    content: dict[str, Any] = {
        "submission_metadata": {
            "method_name": method,
            "intrinsics_type": "rad-tan",
            "version": target_of(partitions),
        }
    }
    counts: dict[str, int] = {"videos": 0, "frames": 0, "videos_predicted": 0, "frames_predicted": 0}
    for partition in partitions:
        for video in (v for v in partition.videos if v.split == "test"):
            frames: dict[str, Any] = {str(i): nothing for i in range(video.num_frames)}
            index, values = lenses.get(partition.clip_id(video), (np.zeros(0, np.int64), np.zeros((0, 8))))
            predicted = 0
            for i, lens in zip(index.tolist(), values.tolist(), strict=True):
                if i < video.num_frames and all(math.isfinite(v) for v in lens):
                    frames[str(i)] = {
                        name: float(f"{v:.{_DIGITS}g}") for name, v in zip(LENS, lens, strict=True)
                    }
                    predicted += 1
            content[video.name] = frames
            counts["videos"] += 1
            counts["frames"] += video.num_frames
            counts["videos_predicted"] += predicted > 0
            counts["frames_predicted"] += predicted
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > MAX_SUBMISSION_BYTES:
        raise ValueError(f"{path}: {len(data) / 2**20:.0f} MiB, the InFlux server takes at most 200 MiB")
    write_atomically(path, data)
    return counts
