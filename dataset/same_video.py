"""Clips of one source video: do they share one lens and one scale, as far as the rows can tell?

A clip is annotated by itself, so that nothing keeps two clips of one video from contradicting each other: a lens that
was changed or a crop that was cut in between, a focal length that one of them has wrong, a unit found differently. This
is a pass over finished rows: it needs all clips of a video, runs no model and opens no media. Rows stay as they are;
what is found is a table of its own, by clip, and `theodolite filter --same-video` keeps what has no reason in it.

Compared are accepted clips, whose cameras are believed one by one:

- lens: focal length over width, in the middle between the clip's shortest and longest. A clip whose focal length itself
  changes by more is a zoom, and takes no part in the comparison.
- scale: metres of a unit that clips of one file have in common (given poses or given depth in a unit of their own), and
  the length of the path over frames that two clips share. Networks begin a unit of their own with every clip: of clips
  that share no frame and no unit nothing is said.

Where more than half of a video's clips agree, those that do not are named; else all of them are.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .arrays import F64, BoolArray
from .reading import ClipDataset
from .store import write_atomically

LENS_DIFFERS, LENS_ZOOMS, SCALE_DIFFERS = (
    "lens_differs_in_video",
    "lens_zooms_in_video",
    "scale_differs_in_video",
)
LENS_TOLERANCE_LOG = 0.06
"""Log ratio of focal lengths that is no difference; three and a half standard errors are always allowed."""
ZOOM_LOG = 0.1
"""Log ratio of a clip's longest to its shortest focal length from which on it zooms; likewise."""
SCALE_TOLERANCE_LOG = 0.15
"""Log ratio of units, or of lengths of one path, that is no difference; likewise."""
_SIGMAS = 3.5
_LENS_FLOOR_LOG = 0.01
_SHARED_FRAMES = 8
_UNITS_OF_FILES = ("bridge", "depth_under_poses")
_CUT = re.compile(r"(?:_\d{7}_\d{7})?(?:_s\d{6})?(?:_w\d{3})?$")
"""What a cut of a video has at the end of its name: first and last frame (Sekai), window (NVIDIA, SolarWM)."""
_CLIP_NUMBER = re.compile(r"^(\d{6,})\.\d+$")
"""MiraData names clips by the video's number and their own behind a dot."""


def video_of(media: str) -> str:
    """The video that a clip's media is, or was cut from, by its name."""
    path = PurePosixPath(media)
    stem = path.name.removesuffix(path.suffix) if path.suffix.lower() in _SUFFIXES else path.name
    numbered = _CLIP_NUMBER.fullmatch(stem)
    if numbered:
        return numbered[1]
    cut = _CUT.sub("", stem)
    return media if cut in (stem, "") else cut


_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}


@dataclass(frozen=True, kw_only=True)
class SameVideo:
    """What was found.

    Attributes:
        table: of every clip in a video with several: `clip_id`, `source`, `video`, `num_clips` (those compared),
            `lens_log` (log of its focal length over the video's), `lens_sigma_log`, `zoom_log`, `scale_log`,
            `scale_sigma_log` (null = cannot be told), `reasons`.
        num_videos, num_pairs: videos with several clips to compare, and pairs of clips within them.
    """

    table: pa.Table
    num_videos: int
    num_pairs: int

    def counts(self) -> dict[str, int]:
        """Clips by reason."""
        words = [word for reasons in self.table["reasons"].to_pylist() for word in reasons]
        return {word: words.count(word) for word in (LENS_DIFFERS, LENS_ZOOMS, SCALE_DIFFERS)}


_COLUMNS = (
    "clip_id",
    "source",
    "media",
    "verdict",
    "fov_x_min_rad",
    "fov_x_max_rad",
    "metres_per_unit",
    "scale_model",
    "mode",
)
_NEWER = ("scale_source", "scale_sigma_log", "given_metres_per_unit")


@dataclass
class _Clip:
    """One accepted clip; logs are natural."""

    row: int
    clip_id: str
    media: str
    lens: float
    zoom: float
    unit: float
    unit_sigma: float
    lens_sigma: float = float("nan")
    first: int = 0
    last: int = -1
    lens_off: float = float("nan")
    lens_off_sigma: float = float("nan")
    scale_off: float = float("nan")
    scale_off_sigma: float = float("nan")


def check_videos(dataset: ClipDataset) -> SameVideo:
    """Compare the clips of each video of a dataset, also of one that a filter was put on."""
    known = set(dataset.columns)
    table = dataset.to_table([*_COLUMNS, *(name for name in _NEWER if name in known)])
    groups: dict[tuple[str, str], list[_Clip]] = {}
    for number, row in enumerate(table.to_pylist()):
        if row["verdict"] == "accepted" and row["fov_x_min_rad"]:
            groups.setdefault((row["source"], video_of(row["media"])), []).append(_clip_of(number, row))
    groups = {key: clips for key, clips in groups.items() if len(clips) > 1}
    members = {clip.clip_id: clip for clips in groups.values() for clip in clips}
    if members:
        _add_series(dataset, members)
    paths = _paths_of_overlapping(dataset, groups) if members else {}
    rows: list[dict[str, Any]] = []
    for (source, video), clips in groups.items():
        reasons = _judge(clips, paths)
        for clip, found in zip(clips, reasons, strict=True):
            rows.append(
                {
                    "clip_id": clip.clip_id,
                    "source": source,
                    "video": video,
                    "num_clips": len(clips),
                    "lens_log": _known(clip.lens_off),
                    "lens_sigma_log": _known(clip.lens_off_sigma),
                    "zoom_log": clip.zoom,
                    "scale_log": _known(clip.scale_off),
                    "scale_sigma_log": _known(clip.scale_off_sigma),
                    "reasons": found,
                }
            )
    pairs = sum(len(clips) * (len(clips) - 1) // 2 for clips in groups.values())
    return SameVideo(
        table=pa.Table.from_pylist(rows, schema=_SCHEMA), num_videos=len(groups), num_pairs=pairs
    )


_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("video", pa.string()),
        ("num_clips", pa.int32()),
        *((name, pa.float64()) for name in ("lens_log", "lens_sigma_log", "zoom_log")),
        *((name, pa.float64()) for name in ("scale_log", "scale_sigma_log")),
        ("reasons", pa.list_(pa.string())),
    ]
)


def write_same_video(found: SameVideo, out: Path) -> None:
    """Write the table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(found.table, sink, compression="zstd")
    write_atomically(out, sink.getvalue())


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _clip_of(number: int, row: dict[str, Any]) -> _Clip:
    # Focal length over width, of the widest and the narrowest view.
    logs = [-float(np.log(2 * np.tan(row[name] / 2))) for name in ("fov_x_min_rad", "fov_x_max_rad")]
    unit, sigma = float("nan"), float("nan")
    if row.get("scale_source") in _UNITS_OF_FILES:
        unit, sigma = row.get("given_metres_per_unit") or float("nan"), row.get("scale_sigma_log")
    elif row["mode"] == "given_depth" and row["scale_model"] == "constant":
        unit, sigma = row["metres_per_unit"] or float("nan"), row.get("scale_sigma_log")
    return _Clip(
        row=number,
        clip_id=row["clip_id"],
        media=row["media"],
        lens=(logs[0] + logs[1]) / 2,
        zoom=abs(logs[0] - logs[1]),
        unit=float(np.log(unit)),
        unit_sigma=0.1 if sigma is None else float(sigma),
    )


def _add_series(dataset: ClipDataset, members: dict[str, _Clip]) -> None:
    """Uncertainty of the focal length, and which source frames each clip has."""
    for batch in dataset.batches(["clip_id", "log_focal_sigma", "frame_index"], batch_size=256):
        ids = batch.column("clip_id").to_pylist()
        for i, clip_id in enumerate(ids):
            clip = members.get(clip_id)
            if clip is None:
                continue
            sigma = batch.column("log_focal_sigma")[i].values
            values = np.zeros(0) if sigma is None else np.asarray(sigma.to_numpy(zero_copy_only=False))
            values = values[np.isfinite(values)]
            stated = float(np.median(values)) if len(values) else 0.0
            clip.lens_sigma = float(np.hypot(stated, _LENS_FLOOR_LOG))
            frames = batch.column("frame_index")[i].values
            if frames is not None and len(frames):
                clip.first, clip.last = frames[0].as_py(), frames[-1].as_py()


def _paths_of_overlapping(
    dataset: ClipDataset, groups: dict[tuple[str, str], list[_Clip]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Source frames and camera centres of clips that share frames of one file with another."""
    wanted: set[str] = set()
    for clips in groups.values():
        ordered = sorted(clips, key=lambda c: (c.media, c.first))
        for a, b in itertools.pairwise(ordered):
            if a.media == b.media and b.first + _SHARED_FRAMES <= a.last:
                wanted |= {a.clip_id, b.clip_id}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if not wanted:
        return found
    for batch in dataset.batches(["clip_id", "frame_index", "camera_to_world"], batch_size=64):
        for i, clip_id in enumerate(batch.column("clip_id").to_pylist()):
            if clip_id in wanted:
                frames = batch.column("frame_index")[i].values.to_numpy()
                poses = batch.column("camera_to_world")[i].values.to_numpy().reshape(-1, 3, 4)
                found[clip_id] = frames, poses[:, :, 3].astype(np.float64)
    return found


def _judge(clips: Sequence[_Clip], paths: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[list[str]]:
    """Reasons against each clip of a video; what was found is put down in the clips."""
    reasons: list[list[str]] = [[] for _ in clips]
    steady = []
    for i, clip in enumerate(clips):
        if clip.zoom > max(ZOOM_LOG, _SIGMAS * clip.lens_sigma):
            reasons[i].append(LENS_ZOOMS)
        else:
            steady.append(i)
    lens = np.array([clips[i].lens for i in steady])
    sigma = np.array([clips[i].lens_sigma for i in steady])
    off, off_sigma, differs = consensus(lens, sigma, LENS_TOLERANCE_LOG)
    for k, i in enumerate(steady):
        clips[i].lens_off, clips[i].lens_off_sigma = off[k], off_sigma[k]
        if differs[k]:
            reasons[i].append(LENS_DIFFERS)
    for media in {clip.media for clip in clips}:
        of_file = [i for i, c in enumerate(clips) if c.media == media]
        for i in _scale_differs([clips[i] for i in of_file], paths):
            reasons[of_file[i]].append(SCALE_DIFFERS)
    return reasons


def _scale_differs(clips: Sequence[_Clip], paths: dict[str, tuple[np.ndarray, np.ndarray]]) -> set[int]:
    """Clips of one file whose scale is another than that of the others."""
    bad: set[int] = set()
    with_unit = [i for i, c in enumerate(clips) if np.isfinite(c.unit)]
    if len(with_unit) > 1:
        units = np.array([clips[i].unit for i in with_unit])
        sigma = np.array([clips[i].unit_sigma for i in with_unit])
        off, off_sigma, differs = consensus(units, sigma, SCALE_TOLERANCE_LOG)
        for k, i in enumerate(with_unit):
            clips[i].scale_off, clips[i].scale_off_sigma = off[k], off_sigma[k]
            if differs[k]:
                bad.add(i)
    with_path = sorted((i for i, c in enumerate(clips) if c.clip_id in paths), key=lambda i: clips[i].first)
    for a, b in itertools.pairwise(with_path):
        ratio = _length_ratio_log(paths[clips[a].clip_id], paths[clips[b].clip_id])
        if not np.isfinite(ratio):
            continue
        sigma_log = float(np.hypot(clips[a].unit_sigma, clips[b].unit_sigma))
        for i, value in ((a, ratio), (b, -ratio)):
            if not np.isfinite(clips[i].scale_off):
                clips[i].scale_off, clips[i].scale_off_sigma = value, sigma_log
        if abs(ratio) > max(SCALE_TOLERANCE_LOG, _SIGMAS * sigma_log):
            bad |= {a, b}
    return bad


def _length_ratio_log(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Log of the length of the path by clip `a` over that by `b`, over the frames that both have; NaN if few."""
    _, ia, ib = np.intersect1d(a[0], b[0], return_indices=True)
    if len(ia) < _SHARED_FRAMES:
        return float("nan")
    lengths = [np.linalg.norm(p - p.mean(0), axis=1).sum() for p in (a[1][ia], b[1][ib])]
    return float("nan") if min(lengths) <= 0 else float(np.log(lengths[0] / lengths[1]))


def consensus(value: F64, sigma: F64, tolerance: float) -> tuple[F64, F64, BoolArray]:
    """What most values agree on, and who does not.

    The largest set of values that all lie near one of them is the majority, if it is more than half of all; its
    weighted mean is what the others are compared with. Without a majority every value differs.

    Args:
        value: (n,). sigma: (n,) standard errors. tolerance: difference that is none, at least.
    Returns:
        (n,) distance of each from the agreed value (from the median without one), its standard error, and whether it
        differs; a single value never does.
    """
    if len(value) < 2:
        return np.zeros(len(value)), np.asarray(sigma, np.float64), np.zeros(len(value), bool)
    apart = np.abs(value[:, None] - value[None])
    near = apart <= np.maximum(tolerance, _SIGMAS * np.hypot(sigma[:, None], sigma[None]))
    members = near[int(near.sum(1).argmax())]
    if 2 * members.sum() <= len(value):
        middle = float(np.median(value))
        return value - middle, np.asarray(sigma, np.float64), np.ones(len(value), bool)
    weight = 1 / np.maximum(sigma[members], 1e-3) ** 2
    middle = float((weight * value[members]).sum() / weight.sum())
    own = np.hypot(sigma, 1 / np.sqrt(weight.sum()))
    return value - middle, own, ~members
