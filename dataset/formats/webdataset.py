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

from ..inputs import InputError, PlainTarInfo, finite_int, parse_json, parse_npy, reader, reading
from ..media.write import VideoWriter
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
            "radial_k2": clip.radial_k2,
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


@reader("tar")
def read_webdataset(shard: str | Path) -> Iterator[CameraClip]:
    """Clips of one shard, in order.

    Raises:
        ValueError: a damaged or cut tar, or a sample that lacks a part.
    """
    shard = Path(shard)
    samples: dict[str, dict[str, bytes]] = {}
    if shard.exists() and not shard.is_file():
        raise InputError(f"{shard}: is no file")  # a pipe would be waited for
    # Not packed: an archive in gzip may unfold into anything before its first member is seen.
    with tarfile.open(shard, "r:", tarinfo=PlainTarInfo) as tar:
        for member in tar:
            if not member.isreg() or member.issparse():
                continue
            key, _, extension = Path(member.name).name.partition(".")
            if extension not in _READ:  # pictures are not needed for cameras
                samples.setdefault(key, {})
                continue
            stream = tar.extractfile(member)
            assert stream is not None, "a regular member has content"
            samples.setdefault(key, {})[extension] = stream.read()
        _require_end(tar)
    for key, parts in samples.items():
        with reading(shard, "sample", key):
            clip = _clip_of(shard, key, parts)
        yield clip


_READ = ("json", "pose.npy", "intrinsics.npy")


def _clip_of(shard: Path, key: str, parts: dict[str, bytes]) -> CameraClip:
    missing = [extension for extension in _READ if extension not in parts]
    if missing:
        raise InputError(f"{shard}: sample {key[:200]!r} lacks {', '.join(missing)}")
    info = parse_json(parts["json"], f"{shard}: {key}.json")
    k = parse_npy(parts["intrinsics.npy"], shard, f"{key}.intrinsics.npy")
    times, frames = info.get("time_s"), info.get("frame_index")
    return CameraClip(
        name=key,
        camera_to_world=parse_npy(parts["pose.npy"], shard, f"{key}.pose.npy"),
        focal_px=k[:, :2],
        principal_point_px=k[:, 2:],
        height=finite_int(info["height"], "height"),
        width=finite_int(info["width"], "width"),
        radial_k1=None if info.get("radial_k1") is None else float(info["radial_k1"]),
        radial_k2=None if info.get("radial_k2") is None else float(info["radial_k2"]),
        time_s=None if times is None else np.asarray(times, dtype=np.float64),
        media=info.get("media"),
        frame_index=None if frames is None else np.asarray(frames, dtype=np.int64),
        caption=info.get("caption"),
        scores={str(name): float(score) for name, score in (info.get("scores") or {}).items()},
    )
