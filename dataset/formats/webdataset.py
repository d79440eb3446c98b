"""WebDataset tars: `<key>.pose.npy`, `<key>.intrinsics.npy`, `<key>.json`, and with pictures
`<key>.mp4`."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from ..frames import VideoWriter
from .base import CameraClip, Pictures, mean_rate_hz, write_video

CLIPS_PER_SHARD, BYTES_PER_SHARD = 1000, 1_000_000_000


class WebDatasetWriter:
    """Writes `shard-%06d.tar` files into a folder, one clip after the other; the members of a sample are adjacent.

    `pose.npy` is (F, 4, 4) float32 camera to world, OpenCV axes, metres; `intrinsics.npy` (F, 4) float32 fx
    fy cx cy in pixels of the `width` and `height` in the JSON, which also holds `media` and the `frame_index` of every
    camera in it.

    Args:
        clips_per_shard, bytes_per_shard: a shard ends before the clip with which it would hold more.
        pictures: also write `mp4`, with one frame per camera.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        clips_per_shard: int = CLIPS_PER_SHARD,
        bytes_per_shard: int = BYTES_PER_SHARD,
        pictures: Pictures | None = None,
    ) -> None:
        self._folder, self._pictures = Path(folder), pictures
        self._most_clips, self._most_bytes = clips_per_shard, bytes_per_shard
        self._tar: tarfile.TarFile | None = None
        self._clips = 0
        self.shards: list[Path] = []

    def add(self, clip: CameraClip) -> None:
        """Append a clip.

        Raises:
            ValueError: a name with a dot (WebDataset cuts keys at the first dot), or with `pictures` a clip without
                times, from which the video has its rate.
        """
        if "." in clip.name:
            raise ValueError(f"clip {clip.name!r}: WebDataset cuts keys at the first dot; rename the clip")
        info = {
            "clip_id": clip.name,
            "height": clip.height,
            "width": clip.width,
            "radial_k1": clip.radial_k1,
            "caption": clip.caption,
            "time_s": None if clip.time_s is None else [float(t) for t in clip.time_s],
            "media": clip.media,
            "frame_index": None if clip.frame_index is None else [int(i) for i in clip.frame_index],
            "scores": clip.scores,
        }
        k = np.concatenate([clip.focal_px, clip.principal_point_px], axis=1)
        members = {
            "json": json.dumps(info).encode(),
            "pose.npy": _npy(clip.camera_to_world),
            "intrinsics.npy": _npy(k),
        }
        if self._pictures is not None:
            members["mp4"] = _mp4(clip, self._pictures)
        size = sum(_size_in_tar(content) for content in members.values())
        if self._clips == self._most_clips or (self._tar and self._tar.offset + size > self._most_bytes):
            self.close()
        if self._tar is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.shards.append(self._folder / f"shard-{len(self.shards):06d}.tar")
            self._tar = tarfile.open(self.shards[-1], "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (see `close`)
            self._clips = 0
        for extension, content in members.items():
            _add(self._tar, f"{clip.name}.{extension}", content)
        self._clips += 1

    def close(self) -> None:
        """End the current shard."""
        if self._tar is not None:
            self._tar.close()
        self._tar, self._clips = None, 0

    abort = close


def write_webdataset(
    clips: Iterable[CameraClip],
    folder: str | Path,
    *,
    clips_per_shard: int = CLIPS_PER_SHARD,
    bytes_per_shard: int = BYTES_PER_SHARD,
    pictures: Pictures | None = None,
) -> list[Path]:
    """Write clips as `WebDatasetWriter` does; returns the shards.

    Raises:
        ValueError: no clips, or one that `WebDatasetWriter.add` refuses.
    """
    writer = WebDatasetWriter(
        folder, clips_per_shard=clips_per_shard, bytes_per_shard=bytes_per_shard, pictures=pictures
    )
    with closing(writer):
        for clip in clips:
            writer.add(clip)
    if not writer.shards:
        raise ValueError(f"{folder}: no clips to write")
    return writer.shards


def _size_in_tar(content: bytes) -> int:
    return tarfile.BLOCKSIZE * (1 + -(-len(content) // tarfile.BLOCKSIZE))


def _mp4(clip: CameraClip, pictures: Pictures) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, width=clip.width, height=clip.height, fps=mean_rate_hz(clip)) as video:
            write_video(video, clip, pictures)
        return path.read_bytes()


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values.astype(np.float32))
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no date: the same clips give the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _require_end(tar: tarfile.TarFile) -> None:
    """A tar ends in two empty blocks; one that was cut between two members ends without, and reads as if it were whole.

    Raises:
        tarfile.ReadError: the end is missing.
    """
    last = tar.getmembers()[-1] if tar.getmembers() else None
    end = 0 if last is None else last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    assert tar.fileobj is not None, "an open tar has its file"
    tar.fileobj.seek(end)
    if tar.fileobj.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
        raise tarfile.ReadError("cut off: no end of the archive after the last member")


def read_webdataset(shard: str | Path) -> Iterator[CameraClip]:
    """Clips of one shard, in order.

    Raises:
        ValueError: a damaged or cut tar, or a sample that lacks a part.
    """
    shard = Path(shard)
    samples: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None:
                    key, extension = Path(member.name).name.split(".", 1)
                    samples.setdefault(key, {})[extension] = stream.read()
            _require_end(tar)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{shard}: not a readable tar ({error})") from None
    for key, parts in samples.items():
        missing = [e for e in ("json", "pose.npy", "intrinsics.npy") if e not in parts]
        if missing:
            raise ValueError(f"{shard}: sample {key} lacks {', '.join(missing)}")
        info = json.loads(parts["json"])
        k = np.load(io.BytesIO(parts["intrinsics.npy"]), allow_pickle=False)
        times = info.get("time_s")
        yield CameraClip(
            name=key,
            camera_to_world=np.load(io.BytesIO(parts["pose.npy"]), allow_pickle=False),
            focal_px=k[:, :2],
            principal_point_px=k[:, 2:],
            height=info["height"],
            width=info["width"],
            radial_k1=info.get("radial_k1"),
            time_s=None if times is None else np.asarray(times),
            media=info.get("media"),
            frame_index=None if info.get("frame_index") is None else np.asarray(info["frame_index"]),
            caption=info.get("caption"),
            scores=info.get("scores") or {},
        )
