"""Clips whose cuts are known: fast but whole ones, and ones with a cut of every common kind.

Made from recordings (../shared/data) and from rendered rooms. Every clip names its kind and its cuts; recordings and
seeds of the part `development` are never used in the part `held_out`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.dataset.formats.trajectories import read_trajectory

U8 = NDArray[np.uint8]
Shot = list[U8]
Part = Literal["development", "held_out"]

_SIDE_PX = 480
_FPS = 16.0


@dataclass(frozen=True)
class CutClip:
    """Frames, (h, w, 3) uint8 RGB, and the frames at which a new shot begins (of a blend: its middle)."""

    kind: str
    name: str
    frames: Shot
    cuts: tuple[int, ...] = ()


# --- shots -------------------------------------------------------------------------------------


def _picture(path: Path) -> U8:
    image = cv2.imread(str(path))
    assert image is not None, path
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


@cache
def recording(path: Path, most: int | None = None) -> tuple[U8, ...]:
    """All frames of a video (or the first ones) or a folder of images at 480 px."""
    if path.is_dir():
        images = [_picture(p) for p in sorted(path.iterdir())]
    else:
        with av.open(str(path)) as container:
            stream = max(container.streams.video, key=lambda s: s.width)
            decoded = itertools.islice(container.decode(stream), most)
            images = [
                _fit(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), _SIDE_PX) for frame in decoded
            ]
    return tuple(_fit(image, _SIDE_PX) for image in images)


def _fit(image: U8, side: int) -> U8:
    height, width = image.shape[:2]
    by = min(1.0, side / max(height, width))
    return np.asarray(
        cv2.resize(image, (round(width * by), round(height * by)), interpolation=cv2.INTER_AREA), np.uint8
    )


@cache
def rendered(
    seed: int,
    speed: float,
    num_frames: int,
    motion: str = "handheld",
    zoom: str = "none",
    shutter: float = 0.0,
) -> tuple[U8, ...]:
    """A rendered room, 384x216."""
    config = _room(seed, speed, num_frames, motion=motion, zoom=zoom, shutter=shutter)
    return tuple(frame.rgb for frame in render_clip(config))


def _room(seed: int, speed: float, num_frames: int, **other: str | float) -> RenderConfig:
    return RenderConfig.model_validate(
        {"width": 384, "height": 216, "num_frames": num_frames, "seed": seed, "speed": speed}
        | {"zoom_period_s": 3.0, "noise_sigma": 2.0}
        | other
    )


@dataclass(frozen=True)
class Source:
    """A recording's part: frames at about 16 per second, and its poses and depth where there are some."""

    name: str
    frames: tuple[U8, ...]
    poses: NDArray[np.float64] | None = None


@cache
def sources(data: Path | None, part: Part) -> tuple[Source, ...]:
    """The shots of a part; without `data` rendered rooms alone."""
    first_seed = 0 if part == "development" else 100
    found = [
        Source(f"room-{seed}", rendered(seed, 3.0, 60), render_clip(_room(seed, 3.0, 60)).camera_to_world)
        for seed in range(first_seed, first_seed + 3)
    ]
    if data is None:
        return tuple(found)
    half = slice(0, 75) if part == "development" else slice(75, 150)
    quarter = slice(0, 480, 2) if part == "development" else slice(520, 1000, 2)
    named = [
        ("office", data / "rgbd-office-a" / "rgb.mp4", half, data / "rgbd-office-a" / "poses_c2w.txt"),
        (
            "kitchen",
            data / "rgbd-redkitchen" / "rgb.mp4",
            quarter,
            data / "rgbd-redkitchen" / "poses_c2w.txt",
        ),
    ]
    if part == "development":
        named += [
            ("dog", data / "clips" / "dog.mp4", slice(0, None, 2), None),
            ("street", data / "clips" / "generated-street-15fps.mp4", slice(None), None),
        ]
    else:
        named += [
            ("walk", data / "clips" / "generated-walk-16fps.mp4", slice(None), None),
            ("handheld", data / "clips" / "handheld-forward-1080p.mov", slice(None), None),
            ("driving", data / "kitti-straight" / "gray.mp4", slice(None), None),
        ]
    for name, path, taken, poses in named:
        truth = None if poses is None else read_trajectory(poses).camera_to_world[taken]
        found.append(Source(name, recording(path)[taken], truth))
    return tuple(found)


# --- what happens to shots -----------------------------------------------------------------------


def zoomed(frames: Shot, factors: NDArray[np.floating], centre: tuple[float, float] = (0.5, 0.5)) -> Shot:
    """Each frame enlarged by its factor about a point (shares of width and height)."""
    out = []
    for image, by in zip(frames, factors, strict=True):
        height, width = image.shape[:2]
        x, y = centre[0] * width, centre[1] * height
        matrix = np.array([[by, 0, x - by * x], [0, by, y - by * y]])
        out.append(
            np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR), np.uint8)
        )
    return out


def lit(frames: Shot, gain: NDArray[np.floating], offset: float = 0.0) -> Shot:
    return [
        np.clip(image * float(g) + offset, 0, 255).astype(np.uint8)
        for image, g in zip(frames, gain, strict=True)
    ]


def smeared(frames: Shot, length_px: NDArray[np.integer], rng: np.random.Generator) -> Shot:
    out = []
    for image, length in zip(frames, length_px, strict=True):
        kernel = np.zeros((int(length), int(length)), np.float32)
        kernel[int(length) // 2] = 1
        turn = cv2.getRotationMatrix2D((int(length) / 2 - 0.5,) * 2, float(rng.uniform(0, 180)), 1.0)
        kernel = cv2.warpAffine(kernel, turn, (int(length), int(length)))
        out.append(np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8))
    return out


def coded(frames: Shot, quality: int) -> Shot:
    out = []
    for image in frames:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        out.append(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8))
    return out


def labelled(frames: Shot) -> Shot:
    """A logo and a line of text that stay where they are."""
    out = []
    for image in frames:
        image, (height, width) = image.copy(), image.shape[:2]
        cv2.putText(image, "CHANNEL 5", (width - 130, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
        cv2.rectangle(image, (0, height - 36), (width, height), (20, 30, 90), -1)
        cv2.putText(
            image,
            "Breaking news from all rooms",
            (10, height - 12),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6,
            (250,) * 3,
            1,
        )
        out.append(image)
    return out


def small(frames: Shot, side: int) -> Shot:
    return [_fit(image, side) for image in frames]


def whole_clips(data: Path | None, part: Part) -> Iterator[CutClip]:
    """Clips without a cut, most of them fast; of each recording every third kind."""
    for number, source in enumerate(sources(data, part)):
        rng = np.random.default_rng([number, 5])
        made = [(kind, make) for kind, make in _whole_kinds(source, rng).items()]
        for kind, make in made[number % 3 :: 3]:
            frames = make()
            if len(frames) >= 10:
                yield CutClip(kind, source.name, frames)
    first_seed = 10 if part == "development" else 110
    for seed in range(first_seed, first_seed + 2):
        yield CutClip("rendered fast", f"room-{seed}x6", list(rendered(seed, 6.0, 32, shutter=0.5)))
        yield CutClip("rendered fast", f"room-{seed}x9", list(rendered(seed, 9.0, 32)))
        yield CutClip("rendered fast", f"turning-{seed}", list(rendered(seed, 9.0, 32, "rotation")))
        yield CutClip("rendered zoom", f"zoom-{seed}", list(rendered(seed, 4.0, 32, "handheld", "in_out")))
        yield CutClip("rendered zoom", f"step-{seed}", list(rendered(seed, 4.0, 32, "handheld", "step")))


def _whole_kinds(source: Source, rng: np.random.Generator) -> dict[str, Callable[[], Shot]]:
    every = list(source.frames)[:150]
    shot = every[:36]
    n = len(shot)
    time = np.arange(n)
    height, width = shot[0].shape[:2]
    crop = (slice(0, int(0.55 * height)), slice(int(0.4 * width), width))
    corner = (slice(int(0.6 * height), height), slice(0, int(0.4 * width)))

    def wave(count: int, period: float) -> NDArray[np.floating]:
        return 1.4 - 0.4 * np.cos(2 * np.pi * np.arange(count) / period)

    def nth(step: int) -> Shot:
        return every[::step][:36]

    def flashes() -> Shot:
        gain = np.ones(n)
        gain[rng.integers(3, n - 3, 3)] = 3.0
        return lit(shot, gain, 30.0)

    def dim() -> Shot:
        return [np.clip(x * 0.12 + rng.normal(4, 2.5, x.shape), 0, 255).astype(np.uint8) for x in shot]

    return {
        "as it is": lambda: every[:48],
        "every 2": lambda: nth(2),
        "every 3": lambda: nth(3),
        "every 4": lambda: nth(4),
        "zoom": lambda: zoomed(shot, wave(n, 40)),
        "fast zoom": lambda: zoomed(shot, wave(n, 12)),
        "stepping zoom": lambda: zoomed(shot, 1 + 0.2 * (time // 8 % 5)),
        "zoom step": lambda: zoomed(shot, np.where(time < n // 2, 1.0, 2.0)),
        "every 2, zoom": lambda: zoomed(nth(2), wave(len(nth(2)), 25)),
        "every 3, zoom": lambda: zoomed(nth(3), wave(len(nth(3)), 25)),
        "crop off centre": lambda: [x[crop] for x in every[:44]],
        "corner": lambda: [x[corner] for x in every[:44]],
        "every 2, crop": lambda: [x[crop] for x in nth(2)],
        "every 3, crop": lambda: [x[crop] for x in nth(3)],
        "blurred": lambda: smeared(shot, np.where(rng.random(n) < 0.3, rng.integers(9, 29, n), 1), rng),
        "every 2, blurred": lambda: smeared(nth(2), rng.integers(1, 17, len(nth(2))), rng),
        "flicker": lambda: lit(shot, rng.uniform(0.5, 1.5, n)),
        "flash": flashes,
        "frames lost in black": lambda: lit(
            shot, np.where((time == n // 2) | (time == n // 2 + 1), 0.0, 1.0)
        ),
        "frames lost": lambda: [shot[i] for i in np.delete(time, slice(n // 3, n // 3 + 3))],
        "every 2, coded hard": lambda: coded(nth(2), 12),
        "tiny": lambda: small(every[:44], 160),
        "every 2, tiny": lambda: small(nth(2), 160),
        "dark": dim,
        "backwards, turned": lambda: [np.rot90(x).copy() for x in nth(2)[::-1]],
        "with a logo": lambda: labelled(nth(2)),
    }


# --- cuts ----------------------------------------------------------------------------------------


def joined(a: Shot, b: Shot, *, blend: int = 0, black: int = 0) -> tuple[Shot, int]:
    """Two shots in one: hard, through `blend` mixed frames, or through black in `black` frames each way."""
    b = [
        np.asarray(cv2.resize(x, (a[0].shape[1], a[0].shape[0]), interpolation=cv2.INTER_AREA), np.uint8)
        for x in b
    ]
    if blend:
        weight = (np.arange(blend) + 1) / (blend + 1)
        mixed = [
            cv2.addWeighted(x, 1 - float(w), y, float(w), 0)
            for x, y, w in zip(a[-blend:], b[:blend], weight, strict=True)
        ]
        return a[:-blend] + [np.asarray(m, np.uint8) for m in mixed] + b[blend:], len(a) - blend // 2
    if black:
        down = 1 - (np.arange(black) + 1) / black
        a = a[:-black] + lit(a[-black:], down)
        b = lit(b[:black], down[::-1]) + b[black:]
    return a + b, len(a)


def _apart(source: Source, rng: np.random.Generator, *, length: int) -> tuple[Shot, Shot] | None:
    """Two visits of one recording, the view turned by more than 30 degrees or 0.7 m off; None if there are none."""
    frames, n = list(source.frames), len(source.frames)
    assert source.poses is not None
    for _ in range(2000):
        i, j = int(rng.integers(length, n + 1)), int(rng.integers(0, n - length + 1))
        a, b = source.poses[i - 1], source.poses[j]
        turn = np.degrees(np.arccos(np.clip((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2, -1, 1)))
        if (j >= i or j + length <= i - length) and (turn > 30 or np.linalg.norm(a[:3, 3] - b[:3, 3]) > 0.7):
            return frames[i - length : i], frames[j : j + length]
    return None


def cut_clips(data: Path | None, part: Part) -> Iterator[CutClip]:
    """Clips with one cut each; of each pair of recordings every third kind, and visits of one place."""
    all_of = sources(data, part)
    for number, source in enumerate(all_of):
        rng = np.random.default_rng([number, 77])
        other = all_of[(number + 1) % len(all_of)]
        for kind, make in list(_cut_kinds(source, other, rng).items())[number % 3 :: 3]:
            frames, at = make()
            yield CutClip(kind, f"{source.name} to {other.name}", frames, (at,))
        for visit in range(0 if source.poses is None else 3 if source.name.startswith("room") else 7):
            visits = _apart(source, rng, length=16)
            if visits is None:
                break
            first, second = visits
            step = 1 + visit % 2
            frames, at = joined(first[::step], second[::step], blend=8 if visit == 6 else 0)
            kind = "two visits, dissolve" if visit == 6 else f"two visits, every {step}"
            yield CutClip(kind, source.name, frames, (at,))


def dissolve_clips(data: Path | None, part: Part) -> Iterator[CutClip]:
    """Two shots that go on moving, up to three times as fast, while one becomes the other in 4 to 32 frames."""
    all_of = sources(data, part)
    for number, source in enumerate(all_of):
        other = all_of[(number + 1) % len(all_of)]
        for blend, step in itertools.product((4, 8, 16, 32), (1, 2, 3)):
            if (number + step + blend // 4) % 2:
                continue  # half of them
            first = list(source.frames[::step])[: 18 + blend]
            second = list(other.frames[::step])[-18 - blend :]
            if min(len(first), len(second)) >= blend + 6:
                frames, at = joined(first, second, blend=blend)
                yield CutClip(
                    f"dissolve {blend}, every {step}", f"{source.name} to {other.name}", frames, (at,)
                )


def _cut_kinds(
    source: Source, other: Source, rng: np.random.Generator
) -> dict[str, Callable[[], tuple[Shot, int]]]:
    a, b = list(source.frames[:18]), list(other.frames[-18:])
    frames, at = joined(a, b)

    def dim() -> Shot:
        return [np.clip(x * 0.12 + rng.normal(4, 2.5, x.shape), 0, 255).astype(np.uint8) for x in frames]

    blur = np.where(np.abs(np.arange(len(frames)) - at + 0.5) < 4, 13, 1)
    gain = np.where(np.arange(len(frames)) == at, 3.0, 1.0)
    return {
        "hard": lambda: (frames, at),
        "hard, every 3": lambda: joined(list(source.frames[::3])[:14], list(other.frames[::3])[-14:]),
        "tiny": lambda: (small(frames, 160), at),
        "tinier": lambda: (small(frames, 96), at),
        "grey": lambda: (
            [
                np.repeat(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None], 3, 2).astype(np.uint8)
                for x in frames
            ],
            at,
        ),
        "coded hard": lambda: (coded(frames, 12), at),
        "blurred": lambda: (smeared(frames, blur, rng), at),
        "dark": lambda: (dim(), at),
        "with a flash": lambda: (lit(frames, gain, 20.0), at),
        "with a logo": lambda: (labelled(frames), at),
        "first frame": lambda: joined(a[:1], b),
        "third frame": lambda: joined(a[:3], b),
        "last frame": lambda: joined(a, b[:1]),
        "last but two": lambda: joined(a, b[:3]),
        "zooming": lambda: joined(
            zoomed(a, np.linspace(1, 1.8, len(a))), zoomed(b, np.linspace(1.8, 1, len(b)))
        ),
        "dissolve 6": lambda: joined(a, b, blend=6),
        "dissolve 12": lambda: joined(a, b, blend=12),
        "through black 4": lambda: joined(a, b, black=4),
        "through black 10": lambda: joined(a, b, black=10),
    }
