"""How a generation asks the world model: its mode, steps, guidance and windows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..dataset.strict import Strict
from .conditioning import TEMPORAL_STRIDE
from .samplers import (
    STUDENT_TIMES,
)

Mode = Literal["bidirectional", "chunk-causal", "distilled"]
Share = Annotated[float, Field(ge=0, le=1)]


class Sampling(Strict):
    """How the world model is asked; the defaults of a mode (`Sampling.published`) are the published schedule."""

    mode: Mode
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Of the bidirectional model and the chunk-causal teacher."""
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Of their noise levels."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Scale of classifier-free guidance; 1: the network is asked once a step."""
    guidance_interval: tuple[Share, Share] | None = None
    """Shares of the steps between which guidance is used."""
    guidance_batched: bool = False
    """Ask for the answers with and without the prompt in one call, which needs more memory."""
    chunk_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Share of the steps after which the teacher's next chunk sets out; null: 1 / number of chunks."""
    times: tuple[float, ...] | None = None
    """Of the distilled student, from 1000 down to 0."""
    window_chunks: Annotated[int, Field(ge=0)] | None = None
    sink_chunks: Annotated[int, Field(ge=0)] | None = None
    """Chunks before the current one, and first chunks, that the student's softmax blocks read."""
    graphs: bool = False
    """Record the student's calls as CUDA graphs."""
    overlap: bool = False
    """Make the student's next chunk while one is decoded and handed out."""

    @classmethod
    def published(cls, mode: Mode, **changes: Any) -> Sampling:
        """The published schedule of a mode, with changes; None changes nothing.

        Raises:
            ValueError: a change that the mode does not know, named.
        """
        known = _PUBLISHED[mode]
        wanted = {k: v for k, v in changes.items() if v is not None}
        for name in wanted:
            if name not in (*known, *_UNNAMED[mode]):
                other = " and ".join(m for m in _PUBLISHED if name in (*_PUBLISHED[m], *_UNNAMED[m]))
                raise ValueError(f"{name.replace('_', ' ')} is an option of {other}, not of {mode}")
        return cls(mode=mode, **{**known, **wanted})

    @model_validator(mode="after")
    def _times_fall(self) -> Sampling:
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(
                f"guidance interval {self.guidance_interval}: the first share is the smaller one"
            )
        t = self.times
        if t is not None and not (
            len(t) > 1 and t[0] <= 1000 and all(b < a for a, b in itertools.pairwise(t)) and t[-1] == 0
        ):
            raise ValueError(f"times {t} must fall strictly from 1000 at most and end in 0")
        return self

    def departures(self) -> dict[str, dict[str, Any]]:
        """Options that are not the published ones, with both values."""
        published, own = Sampling.published(self.mode).model_dump(), self.model_dump()
        return {k: {"published": published[k], "used": v} for k, v in own.items() if v != published[k]}

    @property
    def chunk_frames(self) -> int:
        """Video frames of which every video holds a multiple, and one."""
        return 3 * TEMPORAL_STRIDE if self.mode == "distilled" else TEMPORAL_STRIDE


_SCHEDULE: dict[str, Any] = dict(steps=60, shift=9.8, guidance=5.0, guidance_interval=(0.0, 1.0))
_PUBLISHED: Mapping[Mode, dict[str, Any]] = {
    "bidirectional": _SCHEDULE,
    "chunk-causal": _SCHEDULE,
    "distilled": dict(times=STUDENT_TIMES, window_chunks=1, sink_chunks=1),
}
_UNNAMED: Mapping[Mode, tuple[str, ...]] = {
    "bidirectional": ("guidance_batched",),
    "chunk-causal": ("guidance_batched", "chunk_interval"),
    "distilled": ("graphs", "overlap"),
}
"""Options without a published value."""
