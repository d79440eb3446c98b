"""Things that move on their own and carry much of the picture: what becomes of the cameras, by kind of thing.

    python benchmarks/moving_things.py run --part held-out --out held.jsonl [--jobs 12] [--seconds 480] [--masks]
    python benchmarks/moving_things.py table held.jsonl [more.jsonl]

`run` renders clips of seven seconds in which textured things (persons, a crowd, something as large as a bus, a box that
tumbles, a curtain of panels that wave) carry 30 to 80 % of the corners for one to five seconds. They cross the view,
visit it, come close, walk ahead, or stand still in the picture because the camera follows them. A clip is drawn anew
until its corners are so shared; nothing but the picture is asked for that. Every clip goes through `annotate_clip` with
the depth that sees the thing (`given_depth`), and with simulated networks (`estimate`, tests/annotate/simulator.py),
whose depth of the thing is right in every second clip and off by 25 % a frame in the others; its twin, the same path in
the same room without the thing, shows what it costs where nothing moves. With `--masks` the share of the picture that
moves in truth and by the row's mask, over that which moves by either (`mask_iou`), is in each line.

Seeds of `develop` and `held-out` share nothing: 0 to 39 and 2000 to 2039; `seen`, 1000 to 1039, was held out before
sixteen of it were looked at. Lines that are in the file are kept; `--seconds` stops beginning new ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import TimeoutError as TooLate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered import scene as rooms
from theodolite.annotate.rendered.cameras import RenderConfig, camera_path
from theodolite.annotate.rendered.files import RenderedFiles, write_clip
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.rendered.scene import Quads, Scene
from theodolite.annotate.sfm.config import BundleConfig
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.annotate.tracks import flow
from theodolite.dataset.cameras.rotations import so3_exp
from theodolite.dataset.metrics.trajectory import focal_mape_percent, rotation_error, trajectory_error
from theodolite.dataset.moving_masks import unpacked_masks
from theodolite.dataset.rows import Row
from theodolite.dataset.words import Mode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from simulator import Errors, rendered_truth, simulated

PARTS = {"develop": 0, "seen": 1000, "held-out": 2000}
MODES: tuple[Mode, ...] = ("given_depth", "estimate")
THINGS = ("person", "crowd", "bus", "tumbling", "curtain")
WAYS = ("cross", "visit", "approach", "ahead", "follow")
FRAMES, FPS = 113, 16.0
COMING_S = 1.6
"""A thing takes so long to come into the view, and to leave it: what jumps into it is taken for a cut."""
SHARE, SPAN_S = (0.3, 0.8), (1.0, 5.0)
"""Share of the corners that the things carry, and for how long."""


# --- what moves -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Faces that move rigidly about a body's place: by a swing in place and in angle."""

    quads: Quads
    shift_m: NDArray[np.float64]
    turn_rad: NDArray[np.float64]
    rate: float
    phase: float

    def at(self, time_s: float) -> Quads:
        swing = math.sin(self.rate * time_s + self.phase)
        return self.quads.moved(so3_exp(self.turn_rad * swing), self.shift_m * swing)


@dataclass(frozen=True)
class Body:
    """Parts that go together: where they are at each frame, and how they are turned.

    Attributes:
        place: (F, 3) metres. turn: (F, 3, 3).
    """

    parts: tuple[Part, ...]
    place: NDArray[np.float64]
    turn: NDArray[np.float64]


@dataclass(frozen=True)
class Things(Scene):
    """A room with bodies that move."""

    bodies: tuple[Body, ...] = ()

    def quads_at(self, time_s: float) -> Quads:
        i = min(FRAMES - 1, round(time_s * FPS))
        moved = [
            part.at(time_s).moved(body.turn[i], body.place[i]) for body in self.bodies for part in body.parts
        ]
        names = ("origin", "a", "b", "tolerance")
        return Quads(*(np.concatenate([getattr(q, n) for q in (self.fixed, *moved)]) for n in names))


@dataclass(frozen=True, kw_only=True)
class ThingsClip(RenderedClip):
    """A rendered clip in a room of one's own."""

    room: Scene

    @cached_property
    def scene(self) -> Scene:
        return self.room


def smooth_path(config: RenderConfig) -> NDArray[np.float64]:
    """(F, 4) place and heading of the camera without its tremor, metres and radians."""
    poses = camera_path(config, np.arange(FRAMES) / FPS)
    heading = np.unwrap(np.arctan2(poses[:, 1, 2], poses[:, 0, 2]))
    raw = np.concatenate([poses[:, :3, 3], heading[:, None]], 1)
    return np.asarray(
        cv2.GaussianBlur(raw, (1, 0), sigmaX=0.1, sigmaY=4.0, borderType=cv2.BORDER_REPLICATE), np.float64
    )


def way(
    kind: str, rng: np.random.Generator, camera: NDArray, seen: tuple[float, float], away_m: float
) -> NDArray:
    """(F, 2) place on the floor of a body that is in view about from `seen[0]` to `seen[1]` seconds."""
    t = np.arange(FRAMES) / FPS
    first, last = seen
    x = np.clip((t - first) / (last - first), 0, 1)
    side = rng.choice([-1.0, 1.0])
    # Far out to the side (radians from the line of sight) before and after.
    coming, going = (np.clip(1 + since / COMING_S, 0, 1) for since in (t - first, last - t))
    inside = coming * coming * (3 - 2 * coming) * going * going * (3 - 2 * going)
    middle = rng.uniform(-0.15, 0.15)
    distance = np.full(FRAMES, away_m)
    if kind == "cross":
        angle = side * (x - 0.5) * 1.5 + side * np.where(t < first, -1, 1) * (1 - inside)
    elif kind == "approach":
        angle = middle + side * (1 - inside) * 1.3
        distance = away_m * (1.35 - 0.6 * np.sin(np.pi * x) ** 2)
    elif kind == "follow":
        angle = middle + side * (1 - inside) * 1.3
    else:
        sway = 0.22 * np.sin(2 * np.pi * t / rng.uniform(1.5, 3.0) + rng.uniform(0, 6.28))
        angle = middle + sway + side * (1 - inside) * 1.3
        distance = away_m * (1 + 0.2 * np.sin(2 * np.pi * t / rng.uniform(1.2, 2.5) + rng.uniform(0, 6.28)))
    heading = camera[:, 3] - angle
    if kind == "ahead":
        # On a straight line at an even pace, as the camera's own way lets it.
        heading = heading - (
            camera[:, 3] - np.interp(t, [first, last], np.interp([first, last], t, camera[:, 3]))
        )
    return camera[:, :2] + distance[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)


def _parts(kind: str, rng: np.random.Generator) -> list[tuple[Any, Any, str, Any, Any, float]]:
    """Boxes of one body: centre, size, material, swing in metres and in radians, rate."""
    if kind == "bus":
        return [((0, 0, 1.35), (2.3, 0.7, 1.5), "print", (0, 0, 0), (0, 0, 0), 1.0)]
    if kind == "tumbling":
        return [((0, 0, 0), (0.8, 0.8, 0.8), "print", (0, 0, 0.1), (0.5, 0.6, 0.9), rng.uniform(1, 2))]
    if kind == "curtain":
        return [
            (
                (0.24 * k - 0.96, 0, 1.4), (0.23, 0.06, 1.6), ("print", "carton", "fabric")[k % 3],
                (0, rng.uniform(0.05, 0.2), 0.05), (0.1, 0.1, rng.uniform(0.2, 0.6)), rng.uniform(1.5, 4),
            )
            for k in range(9)
        ]  # fmt: skip
    arms = [
        ((s * 0.34, 0, 1.15), (0.14, 0.16, 0.6), "fabric", (0, 0.1, 0), (0.6, 0, 0), rng.uniform(3, 6))
        for s in (-1, 1)
    ]
    return [
        ((0, 0, 0.45), (0.34, 0.26, 0.9), "fabric", (0, 0, 0), (0, 0, 0.1), 3.0),
        ((0, 0, 1.2), (0.44, 0.3, 0.6), "print", (0, 0, 0.02), (0, 0, 0.15), 4.0),
        ((0, 0, 1.62), (0.2, 0.22, 0.24), "carton", (0, 0, 0.02), (0, 0.1, 0.4), 2.0),
        *arms,
    ]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A clip and what it was drawn as."""

    thing: str
    way: str
    seen_s: tuple[float, float]
    clip: RenderedClip
    still: RenderedClip
    share: float
    span_s: float


def _bodies(
    kind: str,
    how: str,
    rng: np.random.Generator,
    config: RenderConfig,
    seen: tuple[float, float],
    size: float,
) -> tuple[list[Body], list[Any]]:
    """Bodies `size` times as large as life, and the textures of their faces."""
    camera, found, textures = smooth_path(config), [], []
    for k in range(int(rng.integers(3, 6)) if kind == "crowd" else 1):
        away = rng.uniform(1.0, 1.7) if kind != "crowd" else rng.uniform(0.9, 1.8)
        place = way(how, rng, camera, seen, away)
        if kind == "crowd":
            weave = np.sin(np.arange(FRAMES)[:, None] / FPS * rng.uniform(1, 3, 2))
            place = place + rng.normal(0, 0.35, 2) + 0.12 * weave
        parts = []
        for centre, wide, material, shift, turn, rate in _parts(kind, rng):
            faces: list[Any] = []
            tolerance: list[float] = []
            before = len(textures)
            rooms._add_box(rng, faces, tolerance, textures, np.zeros(3), np.array(wide), material, 0.006)
            assert len(textures) - before == len(faces)
            # The eye is at 1.5 m: a body grows about its height there, so that it stays in view.
            at = np.array(centre) - (0, 0, 0 if kind == "tumbling" else 1.3)
            quads = rooms._quads([(size * (o + at), size * a, size * b) for o, a, b in faces], tolerance)
            parts.append(
                Part(quads, size * np.array(shift, float), np.array(turn, float), rate, rng.uniform(0, 6.28))
            )
        height = np.full(FRAMES, 1.4) + (0.03 * np.abs(np.sin(3.5 * np.arange(FRAMES) / FPS + k)))
        facing = camera[:, 3] + rng.uniform(-0.4, 0.4) + math.pi / 2
        facing = facing + (
            0.25 * np.sin(np.arange(FRAMES) / FPS * rng.uniform(0.5, 2)) if how != "follow" else 0
        )
        turn = np.stack([so3_exp(np.array([0.0, 0.0, a])) for a in facing])
        found.append(Body(tuple(parts), np.concatenate([place, height[:, None]], 1), turn))
    return found, textures


def _corner_share(clip: RenderedClip, frames: Sequence[int]) -> NDArray[np.float64]:
    """Share of the corners of each frame, as the tracker picks them, that lie on what moves."""
    wide, high = clip.config.width, clip.config.height
    spacing = int(0.4 * math.sqrt(wide * high / 350))
    shares = []
    for i in frames:
        frame = clip.frame(int(i))
        gray = flow.normalised_gray(flow.gray_of(frame.rgb, (wide, high)))
        xy = flow._new_corners(gray, np.zeros((0, 2)), 350, spacing).astype(int)
        shares.append(frame.moving[xy[:, 1], xy[:, 0]].mean())
    return np.array(shares)


def draw(seed: int) -> Case:
    """The clip of a seed: kinds by turns, everything else by chance, drawn until the corners are shared as asked."""
    thing, how = THINGS[seed % len(THINGS)], WAYS[(seed // len(THINGS)) % len(WAYS)]
    for again in range(30):
        rng = np.random.default_rng([20261128, seed, again])
        length = float(rng.uniform(0.8, 3.2))
        begin = float(rng.uniform(1.2, (FRAMES - 1) / FPS - length - 1.2))
        config = RenderConfig(
            width=480, height=270, num_frames=FRAMES, fps=FPS, seed=int(5000 + 100 * seed + again),
            speed=float(rng.choice([0.7, 1.0, 1.4])), zoom="ramp" if rng.random() < 0.25 else "none",
            zoom_factor=1.3, noise_sigma=1.0,
        )  # fmt: skip
        wanted = float(rng.uniform(*SHARE))
        found = _fitting(config, thing, how, (begin, begin + length), wanted, int(rng.integers(1 << 31)))
        if found is not None:
            return found
    raise RuntimeError(f"seed {seed}: no clip in thirty whose corners are shared as asked")


def _fitting(
    config: RenderConfig, thing: str, how: str, seen: tuple[float, float], wanted: float, seed: int
) -> Case | None:
    """The case with a body as large as `wanted` asks, or None if none is."""
    still = render_clip(config)
    base = still.scene
    inner = [round(FPS * (seen[0] + x * (seen[1] - seen[0]))) for x in (0.3, 0.5, 0.7)]
    low, high, clip = 0.25, 2.0, still
    for _ in range(5):
        size = math.sqrt(low * high)
        bodies, textures = _bodies(thing, how, np.random.default_rng(seed), config, seen, size)
        room = Things(
            base.fixed, None, [*base.textures, *textures], base.first_moving_quad, base.walk_phase, 0.0, 1.0,
            tuple(bodies),
        )  # fmt: skip
        clip = ThingsClip(
            config=config.model_copy(update={"moving_object": True}), time_s=still.time_s,
            camera_to_world=still.camera_to_world, intrinsics=still.intrinsics, room=room,
        )  # fmt: skip
        share = float(np.median(_corner_share(clip, inner)))
        low, high = (size, high) if share < wanted else (low, size)
    every = _corner_share(clip, range(0, FRAMES, 4))
    carried = every[every >= SHARE[0]]
    span = 4 / FPS * len(carried)
    if (
        not SPAN_S[0] <= span <= SPAN_S[1]
        or not SHARE[0] <= carried.mean() <= SHARE[1]
        or every.max() > SHARE[1] + 0.05
    ):
        return None
    return Case(
        thing=thing, way=how, seen_s=seen, clip=clip, still=still, share=float(carried.mean()), span_s=span
    )


# --- annotating -----------------------------------------------------------------------------------


def annotated(clip: RenderedClip, files: RenderedFiles, mode: Mode, seed: int, *, masks: bool = False) -> Row:
    """The row of a clip that lies in `files`."""
    given = GivenGeometry(depth_pattern=files.depth_pattern, depth_units_per_metre=1000.0)
    ref = ClipRef(
        clip_id=f"things-{seed}", source="things", original_id=str(seed), media_kind="video",
        media_path=files.media_path, given=given if mode == "given_depth" else GivenGeometry(),
    )  # fmt: skip
    estimators = None
    if mode == "estimate":
        truth = rendered_truth(clip)
        estimators = simulated(truth if seed % 2 else replace(truth, moving=None), Errors(seed=seed))
    config = AnnotateConfig(bundle=BundleConfig(moving_masks=masks))
    return annotate_clip(ref, config, mode=mode, recipe_hash="0" * 16, estimators=estimators)


def judged(row: Row, clip: RenderedClip) -> dict[str, Any]:
    """Verdict, gates that failed, and errors against the truth."""
    line: dict[str, Any] = {
        "verdict": row.verdict, "reasons": list(row.reasons), "error": row.error, "details": row.reason_details,
        "gates": [gate.name for gate in row.gates if not gate.passed],
        "kept_share": next((gate.value for gate in row.gates if gate.name == "held"), None),
        "stages": dict(row.stage_wall_s or {}),
    }  # fmt: skip
    if not len(row.camera_to_world):
        return line
    truth = clip.camera_to_world
    error = trajectory_error(row.camera_to_world, truth, alignment="sim3")
    turn = rotation_error(row.camera_to_world, truth)
    return (
        line
        | {
            "path_percent": error.ate_percent_of_path,
            "rotation_deg": float(np.degrees(np.sqrt(np.mean(turn**2)))),
            "focal_percent": focal_mape_percent(row.focal_px[:, 0], clip.intrinsics[:, 0, 0]),
            "scale_percent": 100 * abs(float(np.expm1(-np.log(error.scale)))),
            "metrics": {k: v for k, v in dict(row.metrics or {}).items() if isinstance(v, float)},
        }
        | ({} if row.moving_mask is None else mask_overlap(unpacked_masks(row.moving_mask), clip))
    )


def mask_overlap(found: NDArray[np.bool_], clip: RenderedClip) -> dict[str, float]:
    """Intersection over union with the truth over all frames, and the share that is marked where nothing moves."""
    size = (found.shape[2], found.shape[1])
    true = np.stack(
        [cv2.resize(f.moving.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5 for f in clip]
    )
    still = found[~true.any((1, 2))]
    either = (found | true).sum()
    return {
        "mask_iou": float((found & true).sum() / either) if either else float("nan"),
        "mask_false": float(still.mean()) if still.size else float("nan"),
    }


def work(task: tuple[int, tuple[Mode, ...], bool, bool]) -> list[dict[str, Any]]:
    """Lines of one seed: each mode, with the thing and without."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    seed, modes, twins, masks = task
    case, lines = draw(seed), []
    what = {"seed": seed, "thing": case.thing, "way": case.way, "share": case.share, "span_s": case.span_s}
    for name, clip in (("moving", case.clip), ("still", case.still))[: 1 + twins]:
        with tempfile.TemporaryDirectory() as folder:
            files = write_clip(clip, Path(folder))
            for mode in modes:
                start = time.process_time()
                line = judged(annotated(clip, files, mode, seed, masks=masks), clip)
                lines.append(what | {"clip": name, "mode": mode, "cpu_s": time.process_time() - start} | line)
    return lines


def run(args: argparse.Namespace) -> None:
    """Append a JSON line for each clip and mode to the file."""
    end = time.monotonic() + args.seconds
    done = set()
    if args.out.is_file():
        done = {json.loads(line)["seed"] for line in args.out.read_text().splitlines()}
    first = PARTS[args.part]
    modes: tuple[Mode, ...] = tuple(m for m in MODES if m in args.modes.split(","))
    wanted = [
        (s, modes, not args.no_twins, args.masks) for s in range(first, first + args.clips) if s not in done
    ]

    def until_late() -> Iterator[tuple[int, tuple[Mode, ...], bool, bool]]:
        for task in wanted:
            if time.monotonic() < end:
                yield task

    with get_context("spawn").Pool(args.jobs) as pool, args.out.open("a") as out:
        found = pool.imap_unordered(work, until_late())
        try:
            for _ in wanted:
                lines = found.next(timeout=max(1.0, end - time.monotonic()))
                out.writelines(json.dumps(line) + "\n" for line in lines)
                out.flush()
        except (StopIteration, TooLate):
            pool.terminate()
    print_table([args.out])


# --- table ----------------------------------------------------------------------------------------


def print_table(files: Sequence[Path]) -> None:
    """Per mode: how many were accepted, how wrong they were, and what turned the others away."""
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    print(
        "| clips | mode | n | kept | below 1 % | 1 to 2 % | above 2 % | worst, % | median, % | turned away |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for clip in ("moving", "still"):
        for mode in MODES:
            of = [x for x in lines if x["clip"] == clip and x["mode"] == mode]
            if not of:
                continue
            kept = np.array([x["path_percent"] for x in of if _kept(x)])
            turned: dict[str, int] = {}
            for x in of:
                if not _kept(x):
                    name = ", ".join(sorted(set(_reasons(x))))
                    turned[name] = turned.get(name, 0) + 1
            counts = [(kept < 1).sum(), ((kept >= 1) & (kept <= 2)).sum(), (kept > 2).sum()]
            worst, middle = (f"{kept.max():.2f}", f"{np.median(kept):.2f}") if len(kept) else ("", "")
            told = "; ".join(f"{n} {name}" for name, n in sorted(turned.items(), key=lambda x: -x[1]))
            cells = [clip, mode, len(of), len(kept), *counts, worst, middle, told]
            print(f"| {' | '.join(map(str, cells))} |")


def _reasons(line: dict[str, Any]) -> list[str]:
    """Why a row is turned away; that networks were simulated is not asked."""
    return [r for r in line["reasons"] if r != "stand_in_weights"]


def _kept(line: dict[str, Any]) -> bool:
    return not _reasons(line) and "path_percent" in line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = parser.add_subparsers(dest="what", required=True)
    runner = sub.add_parser("run")
    runner.add_argument("--part", choices=list(PARTS), required=True)
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--jobs", type=int, default=1)
    runner.add_argument("--seconds", type=float, default=480.0)
    runner.add_argument("--clips", type=int, default=40)
    runner.add_argument("--modes", default=",".join(MODES))
    runner.add_argument("--no-twins", action="store_true", help="only the clips in which something moves")
    runner.add_argument("--masks", action="store_true", help="also where each picture moves")
    shower = sub.add_parser("table")
    shower.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    run(args) if args.what == "run" else print_table(args.files)


if __name__ == "__main__":
    main()
