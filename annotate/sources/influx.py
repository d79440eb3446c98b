"""InFlux-Real: videos whose lens zooms and focuses, by the list of videos and frames of each partition.

`influx/` and `influx_pp_real/` each hold `videos/<name>.mp4`, `video_frame_count_and_split_v1.json` (`_v2` of the
second) and, for the videos of its validation split, `gt_validation_dict_v1.json`. Where videos were made images
(`frames/<name>/0000000.tiff`) and deleted, those are read. The first release had one partition whose files lie in one
folder, without a version in their names. A clip is called `<partition>-<val|test>-<name>`. Source:
docs/README_download_real.md of princeton-vl/InFlux.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...dataset.benchmarks.influx import Partition, find_partitions
from .clip import ClipRef
from .tree import Layout, Release

FRAMES_FPS = 24.0
"""Of images made of a video, which carry no time; the rate enters no intrinsics."""


def _read(release: Release) -> Iterator[ClipRef]:
    """A clip per listed video, those that are not here as well: their rows say so.

    Raises:
        ValueError: a list that cannot be read.
    """
    for partition in find_partitions(release.root):
        for video in partition.videos:
            media, images = _media(partition, video.name)
            problem = None
            if not media.exists():
                problem = ("unreadable_video", f"{media}: no such file, but {partition.index} lists it")
            yield from release.cut(
                partition.clip_id(video),
                media_path=media,
                original_id=f"{partition.name}/{video.name}",
                media_kind="images" if images else "video",
                source_fps=FRAMES_FPS if images else None,
                problem=problem,
                truth_intrinsics_path=None,
            )


def _media(partition: Partition, name: str) -> tuple[Path, bool]:
    """Where a video lies, or should, and whether that is a folder of images."""
    for path in (partition.folder / "videos" / f"{name}.mp4", partition.folder / f"{name}.mp4"):
        if path.is_file():
            return path, False
    for frames in (partition.folder / "frames" / name, partition.folder.parent / "frames" / name):
        if frames.is_dir():
            return frames, True
    return partition.folder / "videos" / f"{name}.mp4", False


LAYOUT = Layout(read=_read)
