"""KITTI odometry: `sequences/00` to `21`, with poses of the first eleven.

`sequences/00/image_2/000000.png` is the left colour camera (data_odometry_color.zip), `image_0` the left grey one
(data_odometry_gray.zip), taken where there is no colour; `calib.txt` and `times.txt` beside them come from
data_odometry_calib.zip, `poses/00.txt` (of camera 0) from data_odometry_poses.zip. All archives unpack into `dataset/`,
in one tree or each in a folder of its own. Ten frames a second. Source: readme.txt of the odometry development kit.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ...dataset.inputs import InputError, read_text
from ...dataset.media.images import images_in
from .clip import ClipRef
from .tree import Layout, Release, folders_named, rate_of

log = logging.getLogger(__name__)

FPS = 10.0
CAMERAS = ("image_2", "image_0")
_SEQUENCE = re.compile(r"\d\d")


def _read(release: Release) -> Iterator[ClipRef]:
    trees = list(folders_named(release.root, "sequences"))
    poses = [tree.parent / "poses" for tree in trees]  # those beside the images before others
    poses += [release.root / "poses", *folders_named(release.root, "poses")]
    names = sorted({p.name for tree in trees for p in tree.iterdir() if _SEQUENCE.fullmatch(p.name)})
    for name in names:
        places = [tree / name for tree in trees if (tree / name).is_dir()]
        media = next((p / c for c in CAMERAS for p in places if (p / c).is_dir() and images_in(p / c)), None)
        problem = None
        if media is None:
            wanted = places[0] if places else trees[0] / name
            media = wanted / CAMERAS[0]
            problem = (
                "unreadable_video",
                f"{wanted}: holds no images in image_2 or image_0; was all of it unpacked?",
            )
        yield from release.cut(
            name,
            media_path=media,
            original_id=name,
            media_kind="images",
            source_fps=_rate(places),
            numbered=True,
            problem=problem,
            truth_camera_to_world_path=next((p for f in poses if (p := f / f"{name}.txt").is_file()), None),
        )


def _rate(places: list[Path]) -> float:
    """Frames a second by `times.txt`, or the nominal ten."""
    for path in (place / "times.txt" for place in places):
        if path.is_file():
            try:
                times = [float(line) for line in read_text(path).split()]
            except (InputError, ValueError) as error:
                log.warning("%s: no times of frames (%s); %g a second are assumed", path, error, FPS)
                continue
            if (rate := rate_of(times)) is not None:
                return rate
            log.warning("%s: its times say no rate of a camera; %g frames a second are assumed", path, FPS)
    return FPS


LAYOUT = Layout(read=_read)
