"""What a vision-language model is asked, and how it answers: the same for servers and for models of this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from ...dataset.arrays import U8
from ...dataset.media.read import iterate_frames
from ...dataset.rows import Row


class ModelGone(RuntimeError):
    """The model cannot be asked any more: whatever is asked next would fail as well."""


class NoAnswer(ValueError):
    """This one request has no answer, and asking again would change nothing."""


@dataclass(frozen=True)
class Turn:
    """What was answered before, and what is said about it."""

    answer: str
    reply: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question about pictures.

    Attributes:
        pictures: JPEG files, in order of time.
        prompt: the question; it comes after the pictures.
        turns: of the talk so far.
        max_tokens: longest answer.
    """

    pictures: tuple[bytes, ...]
    prompt: str
    turns: tuple[Turn, ...] = ()
    max_tokens: int = 512

    def after(self, answer: str, reply: str) -> Request:
        """The same talk, gone on."""
        return replace(self, turns=(*self.turns, Turn(answer, reply)))


class LanguageModel(Protocol):
    """Answers questions about pictures."""

    @property
    def name(self) -> str:
        """As it is recorded with what it says."""
        ...

    @property
    def at_once(self) -> int:
        """Requests that are best asked together."""
        ...

    def ask(self, requests: Sequence[Request]) -> list[str | NoAnswer]:
        """An answer for each request, or why there is none.

        Raises:
            ModelGone: no further request would be answered; says what to do.
        """
        ...


def clip_pictures(row: Row, root: str, *, count: int, longest_px: int) -> tuple[bytes, ...]:
    """Frames of a clip, evenly spread from the first to the last, as JPEG.

    Args:
        count: of pictures; fewer where the clip has fewer frames.
        longest_px: longer side of a picture; smaller ones stay as they are.
    Raises:
        ValueError: no frames, or media that cannot be read.
    """
    if not row.num_frames:
        raise ValueError(f"clip {row.clip_id}: has no frames")
    positions = np.unique(np.linspace(0, row.num_frames - 1, min(count, row.num_frames)).round().astype(int))
    scale = min(1.0, longest_px / max(row.height, row.width))
    size = max(1, round(row.height * scale)), max(1, round(row.width * scale))
    return tuple(
        _jpeg(rgb) for rgb in iterate_frames(row, root, positions=[int(p) for p in positions], size=size)
    )


def _jpeg(rgb: U8) -> bytes:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [int(cv2.IMWRITE_JPEG_QUALITY), 90]
    )
    assert done, "eight-bit pictures are always written"
    return data.tobytes()
