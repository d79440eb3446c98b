"""One video and the record beside it: written as it grows, playable however it ends."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...dataset.camera_files.single import GENERATION_FORMAT as FORMAT
from ...dataset.cameras.paths import FPS
from ...dataset.media.growing_video import GrowingVideo, VideoWriteError
from ...dataset.store import write_atomically
from ...model.generation import Generator, Pictures, Progress
from ...model.generation_record import GenerationRecord, StreamingReport
from ..loader import now_iso, surroundings
from .inputs import Prepared

STAND_IN_TITLE = "STAND-IN: random weights, shows nothing"


class OutOfRoom(OSError):
    """The disk is full; the message says what is there."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a clip ended.

    Attributes:
        status: `complete`, `interrupted`, or `failed`.
        video, record: files; the video may be absent where no frame was made.
        streaming: of the distilled mode.
        summary: for the user.
    """

    clip_id: str
    status: str
    video: Path
    record: Path
    streaming: StreamingReport | None
    summary: str


def record_path(video: Path) -> Path:
    """Where the record of a video lies."""
    return video.with_suffix(".json")


def generate_video(
    generator: Generator,
    prepared: Prepared,
    video: Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    digests: dict[str, Any] | None = None,
) -> Outcome:
    """Make a video and its record.

    The record is there from the start, and says `running` until the video is whole.

    Args:
        generator: with the parts that the options ask for.
        prepared: the clip.
        video: `.mp4` file, which must not exist.
        progress: hears of steps.
        command: words of the command, for the record.
        digests: files of the parts; goes into the record.
    Raises:
        ValueError: the parts cannot do it.
        OutOfRoom: the disk is full.
        KeyboardInterrupt: after the record says so.
    """
    generator.check(prepared.request)
    run = GenerationRecord()
    content = _first_content(generator, prepared, video, command, digests or {})
    stand_in = generator.stand_in or prepared.stand_in
    start = time.perf_counter()
    writer = _open_writer(prepared, video, stand_in)

    def take(frames: Pictures) -> None:
        writer.write(_stamped(frames) if stand_in else frames)

    try:
        with writer:
            write_atomically(record_path(video), _as_bytes(content, run))
            generator.generate(prepared.request, on_frames=take, progress=progress, record=run)
    except KeyboardInterrupt:
        _end(content, run, video, writer.num_frames, start, "interrupted by the user")
        raise
    except VideoWriteError as error:
        why = f"the disk is full or the file cannot grow: {error.strerror}"
        message = _end(content, run, video, writer.num_frames, start, why)
        raise OutOfRoom(error.errno, message) from error
    except BaseException as error:
        _end(content, run, video, writer.num_frames, start, f"{type(error).__name__}: {error}")
        raise
    return Outcome(
        clip_id=prepared.clip.id,
        status="complete",
        video=video,
        record=record_path(video),
        streaming=run.streaming,
        summary=_end(content, run, video, writer.num_frames, start, None),
    )


def _open_writer(prepared: Prepared, video: Path, stand_in: bool) -> GrowingVideo:
    height, width = prepared.request.image.shape[:2]
    try:
        return GrowingVideo(
            video,
            width=width,
            height=height,
            fps=FPS,
            crf=prepared.options.crf,
            key_frame_every=prepared.request.sampling.chunk_frames,
            metadata=_tags(prepared, stand_in),
        )
    except FileExistsError:
        raise ValueError(f"{video}: another run has begun to write it") from None


def _end(
    content: dict[str, Any],
    run: GenerationRecord,
    video: Path,
    frames: int,
    start: float,
    message: str | None,
) -> str:
    """Write how it ended into the record; returns it in words."""
    content["ended"], content["message"] = now_iso(), message
    content["wall_s"] = round(time.perf_counter() - start, 3)
    if run.status != "complete" and not frames:
        video.unlink(missing_ok=True)
        content["video"] |= {"file": None}
        where = f"no frame of {video.name} was made"
    elif run.status != "complete":
        where = f"{video} holds the first {frames} of {run.num_frames_wanted} frames and plays"
    else:
        data = video.read_bytes()
        content["video"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        where = f"{video}: {frames} frames, {frames / FPS:.1f} s, in {content['wall_s']:.1f} s"
    content["video"]["num_frames"] = frames
    try:
        write_atomically(record_path(video), _as_bytes(content, run))
    except OSError as error:
        if run.status == "complete":
            raise
        where += f" (the record could not be written: {error.strerror})"
    return f"{message}; {where}" if message else where


def _first_content(
    generator: Generator, prepared: Prepared, video: Path, command: Sequence[str], digests: dict[str, Any]
) -> dict[str, Any]:
    clip, request, path = prepared.clip, prepared.request, prepared.path
    height, width = request.image.shape[:2]
    return {
        "format": FORMAT,
        "stand_in": generator.stand_in or prepared.stand_in,
        "message": None,
        "started": now_iso(),
        "ended": None,
        "clip": clip.model_dump(mode="json"),
        "clip_digest": clip.digest(),
        "options": prepared.options.model_dump(mode="json"),
        "options_digest": prepared.options.digest(),
        "image": {
            "sha256": prepared.image_sha256,
            "size": list(prepared.cover.source),
            "resized": list(prepared.cover.resized),
            "cut": [prepared.cover.top, prepared.cover.left, height, width],
        },
        "video": {"file": video.name, "height": height, "width": width, "fps": FPS},
        "camera": {
            "form": path.form,
            "origin": path.origin,
            "fps": FPS,
            "height": height,
            "width": width,
            "intrinsics_from": prepared.lens,
            "intrinsics_weights": prepared.lens_weights,
            "fov_deg": list(prepared.fov_deg),
            "figures": asdict(prepared.figures),
            "intrinsics_px": _four(request.intrinsics_px),
            "camera_to_world": request.camera_to_world.tolist(),
        },
        "notes": list(prepared.notes),
        "files": digests,
        "command": list(command),
        **surroundings(
            ("torch", "diffusers", "transformers", "triton", "numpy", "opencv-python-headless", "av")
        ),
    }


def _four(intrinsics: np.ndarray) -> list[list[float]]:
    k = np.asarray(intrinsics, np.float64)
    return np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], axis=1).tolist()


def _as_bytes(content: dict[str, Any], run: GenerationRecord) -> bytes:
    return (json.dumps({**content, "run": run.as_json()}, indent=1, allow_nan=False) + "\n").encode()


def _tags(prepared: Prepared, stand_in: bool) -> dict[str, str]:
    """Of the MP4: what it is, wherever it goes without its record."""
    made = f"generated by theodolite, {prepared.request.sampling.mode}, seed {prepared.request.seed}"
    return {
        "title": STAND_IN_TITLE if stand_in else prepared.clip.id,
        "comment": f"{STAND_IN_TITLE}; {made}" if stand_in else made,
    }


def _stamped(frames: Pictures) -> Pictures:
    """Frames that say that they come from stand-in weights, in letters an eighth of their height."""
    import cv2

    out = np.ascontiguousarray(frames.copy())
    height, width = out.shape[1:3]
    scale = min(height / 8 / 22, width / 190)
    for frame in out:
        for colour, thick in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.putText(
                frame,
                "STAND-IN",
                (width // 20, height - height // 12),
                cv2.FONT_HERSHEY_SIMPLEX,
                scale,
                colour,
                max(1, round(thick * scale)),
                cv2.LINE_AA,
            )
    return out


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the record of a video says, as far as others need it."""

    status: str
    stand_in: bool
    clip_digest: str
    options_digest: str
    num_frames: int
    num_bytes: int | None


def read_made(video: Path) -> Made | None:
    """The record of a video, or None where there is none that can be read."""
    try:
        content = json.loads(record_path(video).read_text(encoding="utf-8"))
        return Made(
            status=content["run"]["status"],
            stand_in=bool(content["stand_in"]),
            clip_digest=content["clip_digest"],
            options_digest=content["options_digest"],
            num_frames=int(content["video"].get("num_frames", 0)),
            num_bytes=content["video"].get("bytes"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_whole(video: Path) -> bool:
    """Whether a video is there with a record that says complete, and has the size that was recorded."""
    made = read_made(video)
    return (
        made is not None
        and made.status == "complete"
        and video.is_file()
        and video.stat().st_size == made.num_bytes
    )


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
