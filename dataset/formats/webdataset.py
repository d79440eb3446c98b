"""WebDataset tars: `<key>.pose.npy`, `<key>.intrinsics.npy`, `<key>.json`, and with pictures
`<key>.mp4`."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..frames import VideoWriter
from .base import CameraClip, Pictures, mean_rate_hz, write_video


def write_webdataset(
    clips: Sequence[CameraClip],
    folder: str | Path,
    *,
    clips_per_shard: int = 1000,
    pictures: Pictures | None = None,
) -> list[Path]:
    """Write `shard-%06d.tar` files; the members of a sample are adjacent. Returns the shards.

    `pose.npy` is (F, 4, 4) float32 camera to world, OpenCV axes, metres; `intrinsics.npy` (F, 4) float32 fx
    fy cx cy in pixels of the `width` and `height` in the JSON, which also holds `media` and the `frame_index` of every
    camera in it.

    Args:
        pictures: also write `mp4`, with one frame per camera.
    Raises:
        ValueError: no clips, a name with a dot (WebDataset cuts keys at the first dot), or with `pictures` a clip
            without times, from which the video has its rate.
    """
    if not clips:
        raise ValueError(f"{folder}: no clips to write")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    for s in range(0, len(clips), clips_per_shard):
        shard = folder / f"shard-{s // clips_per_shard:06d}.tar"
        with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips[s : s + clips_per_shard]:
                if "." in clip.name:
                    raise ValueError(
                        f"clip {clip.name!r}: WebDataset cuts keys at the first dot; rename the clip"
                    )
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
                _add(tar, f"{clip.name}.json", json.dumps(info).encode())
                _add(tar, f"{clip.name}.pose.npy", _npy(clip.camera_to_world))
                _add(tar, f"{clip.name}.intrinsics.npy", _npy(k))
                if pictures is not None:
                    _add(tar, f"{clip.name}.mp4", _mp4(clip, pictures))
        shards.append(shard)
    return shards


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
