"""What a generation says of itself: its stages, how a stream kept up, and how it can be made again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..dataset.cameras.paths import FPS


@dataclass(kw_only=True)
class Stage:
    """Time that a stage took, waiting for the device included, and the most memory on the GPU during it."""

    wall_s: float = 0.0
    calls: int = 0
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StreamingReport:
    """How a video that is made chunk by chunk kept up with being watched.

    Playing starts when the first chunk is there; a chunk is in time if it is there before its first frame is due.

    Attributes:
        time_to_first_chunk_s: from the request (parts loaded) to the first frames.
        real_time_factor: seconds of video over the seconds from the request to the last frame; above 1 is faster than
            watching.
        sustained_factor: the same without the first chunk.
        deadlines_met: share of the later chunks that were in time; None with a single chunk.
        chunks: number of chunks.
        latest_s: how late the latest chunk was; 0 if none was.
        warm_up_s: what compiling on a short clip took before the request (`Generator.warm_up`); None: there was none,
            and the first chunk pays for it.
    """

    time_to_first_chunk_s: float
    real_time_factor: float
    sustained_factor: float | None
    deadlines_met: float | None
    chunks: int
    latest_s: float
    warm_up_s: float | None = None


def streaming_report(
    ready_s: list[float], frames: list[int], *, fps: float = FPS, warm_up_s: float | None = None
) -> StreamingReport:
    """Report of chunks that were ready at `ready_s` seconds after the request and hold so many frames each."""
    due = ready_s[0] + np.concatenate([[0], np.cumsum(frames)[:-1]]) / fps
    late = np.asarray(ready_s) - due
    later = ready_s[-1] - ready_s[0]
    return StreamingReport(
        time_to_first_chunk_s=ready_s[0],
        real_time_factor=sum(frames) / fps / ready_s[-1],
        sustained_factor=sum(frames[1:]) / fps / later if len(frames) > 1 and later > 0 else None,
        deadlines_met=float((late[1:] <= 1e-9).mean()) if len(frames) > 1 else None,
        chunks=len(frames),
        latest_s=float(max(late.max(), 0.0)),
        warm_up_s=warm_up_s,
    )


@dataclass(kw_only=True)
class GenerationRecord:
    """What a run did, filled as it goes.

    Attributes:
        status: `complete`, or how far it came.
        num_frames, num_frames_wanted: handed out, and asked for.
        sampling, departures: options of the world model, and where they leave the published schedule.
        seeds: by part.
        refined: whether the refiner ran.
        stand_in: some part's weights are random numbers.
        parts: what each part is: class, parameters, weights, precision.
        operators: implementations that ran.
        stages: times and memory by stage.
        streaming: of the distilled mode.
    """

    status: Literal["not started", "running", "complete", "interrupted", "failed"] = "not started"
    num_frames: int = 0
    num_frames_wanted: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    departures: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    refined: bool = False
    stand_in: bool = False
    parts: dict[str, Any] = field(default_factory=dict)
    operators: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    streaming: StreamingReport | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
