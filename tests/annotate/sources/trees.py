"""Trees of public sets, as their downloads leave them, and what reads them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from theodolite.annotate.frames.base import DecodeConfig
from theodolite.annotate.frames.open import open_clip
from theodolite.annotate.given.cameras import GivenCameras, read_given_cameras
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.sources.entries import ReleaseLayout
from theodolite.annotate.sources.releases import release_clips
from theodolite.annotate.sources.tree import Release
from theodolite.annotate.sources.windows import Windows
from theodolite.dataset.cameras.transforms import se3_exp
from theodolite.dataset.media.write import VideoWriter

from ...typed import known

HEIGHT, WIDTH = 36, 64


SCENE = "0" * 63 + "a"


TEN, SIXTY = Windows(frames=161), Windows(frames=961)


def poses(count: int) -> np.ndarray:
    """A path that turns about all axes, from a pose that is not the identity."""
    t = np.linspace(0, 1, count)[:, None]
    return se3_exp(
        np.concatenate([2 * t, -t, 3 * t**2, 0.4 * t, -0.8 * t, 0.3 * t], 1) + [1, 2, 3, 0.5, 0.2, -0.4]
    )


def video(path: Path, *, frames: int, fps: float = 30.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(frames, fps))
    return path


@lru_cache(maxsize=32)
def _encoded(frames: int, fps: float) -> bytes:
    """Made once for all tests that ask for the like."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=fps) as out:
            for i in range(frames):
                out.write(np.full((HEIGHT, WIDTH, 3), i % 251, np.uint8))
        return path.read_bytes()


def listed(layout: ReleaseLayout, root: Path, **release: Any) -> dict[str, ClipRef]:
    clips = release_clips(layout, Release(root=root, source="test", **release))
    return {clip.clip_id: clip for clip in clips}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def cameras_of(clip: ClipRef) -> GivenCameras:
    return known(read_given_cameras(clip, open_clip(clip, DecodeConfig(min_frames=2))))


V1 = (
    "clip_id,source,video_url,video_id,width,height,fps,seconds,timestamp,frame_number,framestamp,file_path,"
    "short_caption\n"
)


def mira(clip_id: str, span: tuple[str, str], *, file_path: str = "", video_id: str = "AAAAAAAAAAA") -> str:
    times = f"\"['{span[0]}', '{span[1]}']\""
    return f'{clip_id},youtube/city,https://x/{video_id},{video_id},64,36,30.0,4.0,{times},120,"[0, 1]",{file_path},c'
