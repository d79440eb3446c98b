"""Readings of given depth: which way up the maps are, which frames they belong to, what their numbers mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ...dataset.arrays import FloatArray, IntArray
from ..sources.clip import DepthKind

Place = Callable[[FloatArray], FloatArray]
"""Image places -> map places (n, 2), both in shares of width and height."""


@dataclass(frozen=True)
class Reading:
    """One way to take the depth files.

    Attributes:
        words: how the maps fit where this reading wins: "the depth fits the images better ...".
        frame: (n,) clip frame -> (n,) clip frame whose map belongs to it.
        place: image places -> map places.
        value: what is done to the numbers.
    """

    words: str
    frame: Callable[[IntArray], IntArray] | None = None
    place: Place | None = None
    value: str = "z"


def _turned(columns: tuple[int, int], flip: tuple[bool, bool]) -> Place:
    def place(xy: FloatArray) -> FloatArray:
        out = xy[:, list(columns)]
        return np.where(np.array(flip), 1 - out, out)

    return place


def _framed(scale: tuple[float, float], offset: tuple[float, float] = (0.0, 0.0)) -> Place:
    return lambda xy: (xy - 0.5) * np.array(scale) + 0.5 + np.array(offset)


GIVEN = Reading("as they are")
CONSTANT = Reading("as one plane", value="constant")
TURNS = (
    Reading("when flipped vertically", place=_turned((0, 1), (False, True))),
    Reading("when flipped horizontally", place=_turned((0, 1), (True, False))),
    Reading("when turned by 180 degrees", place=_turned((0, 1), (True, True))),
    Reading("when transposed (rows taken for columns)", place=_turned((1, 0), (False, False))),
    Reading("when transposed and turned by 180 degrees", place=_turned((1, 0), (True, True))),
    Reading("when turned by 90 degrees clockwise", place=_turned((1, 0), (False, True))),
    Reading("when turned by 90 degrees counter-clockwise", place=_turned((1, 0), (True, False))),
)
VIEWS = tuple(
    Reading(f"when the maps show {words}", place=_framed(scale, offset))
    for words, scale, offset in (
        ("a field of view 1.25 times as wide", (0.8, 0.8), (0.0, 0.0)),
        ("a field of view 0.8 times as wide", (1.25, 1.25), (0.0, 0.0)),
        ("the image with bars at its sides cut off", (4 / 3, 1.0), (0.0, 0.0)),
        ("the image with bars at top and bottom cut off", (1.0, 4 / 3), (0.0, 0.0)),
        ("a wider image, squeezed", (0.75, 1.0), (0.0, 0.0)),
        ("a higher image, squeezed", (1.0, 0.75), (0.0, 0.0)),
        ("the scene 10 % of the width further left", (1.0, 1.0), (-0.1, 0.0)),
        ("the scene 10 % of the width further right", (1.0, 1.0), (0.1, 0.0)),
        ("the scene 10 % of the height further up", (1.0, 1.0), (0.0, -0.1)),
        ("the scene 10 % of the height further down", (1.0, 1.0), (0.0, 0.1)),
    )
)


def framed_reading(scale: float) -> Reading:
    """The maps read at `scale` times the places, about the middle: they show the inverse of it of the images' view."""
    return Reading(f"at {scale:.3g} times their places", place=_framed((scale, scale)))


VIEW_SCALES = (0.85, 0.9, 0.95, 1.05, 1.1, 1.15)
"""By what places are multiplied to look for the field of view that maps show."""
VIEW_SWEEP = tuple(framed_reading(scale) for scale in VIEW_SCALES)


def value_readings(kind: DepthKind) -> tuple[Reading, ...]:
    inverse = "as depth (not as disparity)" if kind == "disparity" else "as disparity, the inverse of depth"
    longer = (
        "as depth along the axis (not as ray distance)"
        if kind == "ray_distance"
        else "as z-depth divided twice"
    )
    return (
        Reading(inverse, value="inverse"),
        Reading("as distance along the ray", value="ray"),
        Reading(longer, value="axis"),
    )


@cache
def shifted_reading(k: int) -> Reading:
    """The map that lies `k` frames later belongs to the image."""
    late = "later" if k > 0 else "earlier"
    plural = "" if abs(k) == 1 else "s"
    return Reading(f"when taken {abs(k)} clip frame{plural} {late}", frame=lambda i: i + k)


SLOWER_RATES = (2.0, 15 / 8, 5 / 4, 25 / 24)
"""How many times as fast maps of usual rates would have to go by to keep up with the images."""


@cache
def rate_reading(rate: float) -> Reading:
    """The map that belongs to an image lies `rate` times as far from the first one."""
    return Reading(
        f"when taken at {rate:.3g} times their rate",
        frame=lambda i: np.round(np.asarray(i) * rate).astype(np.int64),
    )


@cache
def rate_readings() -> tuple[Reading, ...]:
    """Maps of another rate than the images: of the usual ones, and of every second frame."""

    return tuple(rate_reading(r) for r in (1 / 2, 4 / 5, 8 / 15, 24 / 25, *SLOWER_RATES))


def order_readings(frames: int) -> tuple[Reading, ...]:
    """Other orders of the maps."""
    by_text = np.array(sorted(range(frames), key=str), np.int64)
    back = np.argsort(by_text)
    return (
        Reading("when taken from last to first", frame=lambda i: frames - 1 - np.asarray(i)),
        Reading(
            "when the files are sorted by number (10 after 9), not by text",
            frame=lambda i: back[np.asarray(i)],
        ),
        Reading(
            "when the files are sorted by text (10 before 2), not by number",
            frame=lambda i: by_text[np.asarray(i)],
        ),
    )
