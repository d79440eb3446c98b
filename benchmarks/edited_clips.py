"""Clips as they come from other hands: edited, converted and badly filmed, through the command, against the truth.

    python benchmarks/edited_clips.py run --out lines.jsonl [--seeds 501,502] [--only blur,ramp] [--jobs 4]
        [--seconds 400]
    python benchmarks/edited_clips.py table lines.jsonl

Walks through rendered rooms with depth, 3 s each. `INTACT` says what is done to pictures and depth alike: those clips
are to be accepted, with a path right to 2 % of its length and a focal length right to 3 %. `BROKEN` is done to the
pictures alone: no such clip may be accepted with a wrong path. `table` counts both errors. Lines that `--out` has
already are not run again, and after `--seconds` no more are waited for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import TimeoutError as NotYet
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import yaml
from scipy.spatial.transform import Rotation
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_depth_png
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.trajectory import path_length, trajectory_error
from theodolite.dataset.reading import open_dataset

WIDTH, HEIGHT, FRAMES, FPS = 384, 216, 72, 24.0
WRONG_PATH, WRONG_FOCAL = 0.02, 0.03


@dataclass(frozen=True)
class Film:
    """Frames with what is true of them: (F, h, w, 3) uint8, (F, h, w) metres, (F, 4, 4), (F,) pixels."""

    rgb: np.ndarray
    depth_m: np.ndarray
    camera_to_world: np.ndarray
    focal_px: np.ndarray
    fps: float = FPS

    def some(self, index: np.ndarray) -> Film:
        return replace(
            self,
            rgb=self.rgb[index],
            depth_m=self.depth_m[index],
            camera_to_world=self.camera_to_world[index],
            focal_px=self.focal_px[index],
        )


def _filmed(clip: RenderedClip) -> Film:
    frames = list(clip)
    return Film(
        np.stack([f.rgb for f in frames]),
        np.stack([f.depth_m for f in frames]),
        clip.camera_to_world,
        clip.intrinsics[:, 0, 0],
        clip.config.fps,
    )


def _clip(seed: int, **fields: Any) -> RenderedClip:
    usual = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES, "fps": FPS, "speed": 1.6, "seed": seed}
    return render_clip(RenderConfig.model_validate(usual | {"horizontal_fov_deg": 66.0} | fields))


def walk(seed: int, **fields: Any) -> Film:
    return _filmed(_clip(seed, **fields))


# --- filmed badly ------------------------------------------------------------------------------------------


def yawing(seed: int) -> Film:
    """A drone that turns by 40 degrees a second as it flies."""
    clip = _clip(seed)
    path = clip.camera_to_world.copy()
    turn = Rotation.from_rotvec(np.radians(40) * clip.time_s[:, None] * np.array([0.0, 0.0, 1.0])).as_matrix()
    path[:, :3, :3] = turn @ path[:, :3, :3]
    return _filmed(replace(clip, camera_to_world=path))


def night(seed: int) -> Film:
    film = walk(seed)
    noise = np.random.default_rng(seed).normal(0, 9, film.rgb.shape)
    return replace(film, rgb=np.clip(0.35 * film.rgb + noise, 0, 255).astype(np.uint8))


def rolling_shutter(seed: int) -> Film:
    """Rows are read one after the other over 60 % of a frame's time, in eight bands; depth is of the middle."""
    film = walk(seed, fps=8 * FPS, num_frames=8 * FRAMES, speed=1.0)
    band = np.arange(HEIGHT) * 8 // HEIGHT
    rows = np.arange(HEIGHT)
    rgb = np.stack([film.rgb[8 * k + np.round(0.6 * band).astype(int), rows] for k in range(FRAMES)])
    return replace(film.some(8 * np.arange(FRAMES) + 2), rgb=rgb, fps=FPS)


def stabilised(seed: int) -> Film:
    """Cropped to 85 %, each frame shifted and turned a little, as stabilisers do."""
    film, rng = walk(seed), np.random.default_rng(seed)
    sway = np.stack(
        [np.convolve(rng.standard_normal(FRAMES + 8), np.ones(9) / 3, "valid") for _ in range(3)], 1
    )
    rgb, depth = [], []
    for picture, z, (dx, dy, turn) in zip(film.rgb, film.depth_m, sway, strict=True):
        move = cv2.getRotationMatrix2D((WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5), 0.3 * turn, 1 / 0.85)
        move[:, 2] += 0.012 * WIDTH * np.array([dx, dy])
        rgb.append(cv2.warpAffine(picture, move, (WIDTH, HEIGHT), flags=cv2.INTER_AREA))
        depth.append(cv2.warpAffine(z, move, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST))
    return replace(film, rgb=np.stack(rgb), depth_m=np.stack(depth), focal_px=film.focal_px / 0.85)


# --- edited -------------------------------------------------------------------------------------------------


def _titled(film: Film) -> Film:
    rgb = film.rgb.copy()
    for i, picture in enumerate(rgb):
        words = ("what was that", "I did not see it", "over there, look")[i // 26 % 3]
        for colour, thick in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.putText(picture, words, (70, HEIGHT - 22), cv2.FONT_HERSHEY_SIMPLEX, 0.9, colour, thick)
    return replace(film, rgb=rgb)


def _picture_in_picture(film: Film, seed: int) -> Film:
    rgb, other = film.rgb.copy(), walk(seed + 7000).rgb
    for picture, small in zip(rgb, other, strict=True):
        picture[8 : 8 + HEIGHT // 3, -8 - WIDTH // 3 : -8] = cv2.resize(
            small, (WIDTH // 3, HEIGHT // 3), interpolation=cv2.INTER_AREA
        )
    return replace(film, rgb=rgb)


def _faded(film: Film) -> Film:
    gain = np.clip(np.arange(FRAMES) / 20, 0.0, 1)[:, None, None, None]
    return replace(film, rgb=(film.rgb * gain).astype(np.uint8))


def _flashed(film: Film) -> Film:
    rgb = film.rgb.copy()
    for i in (20, 21, 45):
        rgb[i] = np.clip(rgb[i].astype(int) + 140, 0, 255)
    return replace(film, rgb=rgb)


def _interlaced(seed: int) -> Film:
    film = walk(seed, fps=2 * FPS, num_frames=2 * FRAMES)
    first = film.some(2 * np.arange(FRAMES))
    rgb = first.rgb.copy()
    rgb[:, 1::2] = film.rgb[1::2, 1::2]
    return replace(first, rgb=rgb, fps=FPS)


PULLDOWN = np.arange(FRAMES * 5 // 4) * 4 // 5
"""24 frames a second shown as 30: every fourth twice."""


def _ramp() -> np.ndarray:
    """Frames of a walk, half as fast in the first half as usual, twice as fast in the second."""
    return np.r_[np.arange(0, 48, 1), np.arange(48, 2 * FRAMES, 4)]


def _freezes(seed: int) -> np.ndarray:
    """Frames that were lost show the one before."""
    lost = np.random.default_rng(seed).random(FRAMES) < 0.15
    return np.maximum.accumulate(np.where(lost, 0, np.arange(FRAMES)))


INTACT: dict[str, Callable[[int], Film]] = {
    "plain": walk,
    "fast": lambda seed: walk(seed, speed=3.5),
    "blur": lambda seed: walk(seed, shutter=0.8),
    "yaw": yawing,
    "night": night,
    "rolling-shutter": rolling_shutter,
    "stabilised": stabilised,
    "subtitles": lambda seed: _titled(walk(seed)),
    "picture-in-picture": lambda seed: _picture_in_picture(walk(seed), seed),
    "fade-in": lambda seed: _faded(walk(seed)),
    "flashes": lambda seed: _flashed(walk(seed)),
    "interlaced": _interlaced,
    "pulldown": lambda seed: replace(walk(seed).some(PULLDOWN), fps=30.0),
    "lost-frames": lambda seed: walk(seed).some(_freezes(seed)),
    "ramp": lambda seed: walk(seed, num_frames=2 * FRAMES, fps=2 * FPS).some(_ramp()),
    "reversed": lambda seed: walk(seed).some(np.arange(FRAMES)[::-1]),
    "boomerang": lambda seed: walk(seed).some(np.r_[0:FRAMES:2, FRAMES - 1 : 0 : -2]),
}


def _pictures_of(film: Film, index: np.ndarray) -> Film:
    return replace(film, rgb=film.rgb[index])


def _cutaway(seed: int) -> Film:
    film = walk(seed)
    rgb = film.rgb.copy()
    rgb[30:44] = walk(seed + 8000, num_frames=14).rgb
    return replace(film, rgb=rgb)


def _ends_elsewhere(seed: int, frames: int, blend: int = 1) -> Film:
    """The last frames are of another room, pictures and depth, after a dissolve of `blend` frames."""
    film, other = walk(seed), walk(seed + 9000, num_frames=frames + blend - 1)
    rgb, depth_m, first = film.rgb.copy(), film.depth_m.copy(), FRAMES - len(other.rgb)
    for k, (picture, z) in enumerate(zip(other.rgb, other.depth_m, strict=True)):
        share = min(1.0, (k + 1) / blend)
        rgb[first + k] = np.round((1 - share) * rgb[first + k] + share * picture)
        depth_m[first + k] = z if share > 0.5 else depth_m[first + k]
    return replace(film, rgb=rgb, depth_m=depth_m)


BROKEN: dict[str, Callable[[int], Film]] = {
    "cut 2 before the end": lambda seed: _ends_elsewhere(seed, 2),
    "cut 4 before the end": lambda seed: _ends_elsewhere(seed, 4),
    "cut 8 before the end": lambda seed: _ends_elsewhere(seed, 8),
    "dissolve to the end": lambda seed: _ends_elsewhere(seed, 1, blend=6),
    "dissolve before the end": lambda seed: _ends_elsewhere(seed, 4, blend=8),
    "cut 3 after the start": lambda seed: _ends_elsewhere(seed, 3).some(np.arange(FRAMES)[::-1]),
    "reversed pictures": lambda seed: _pictures_of(walk(seed), np.arange(FRAMES)[::-1]),
    "mirrored pictures": lambda seed: (lambda f: replace(f, rgb=f.rgb[:, :, ::-1]))(walk(seed)),
    "pulldown pictures": lambda seed: _pictures_of(walk(seed), PULLDOWN[:FRAMES]),
    "ramped pictures": lambda seed: _pictures_of(
        walk(seed), np.round(FRAMES * (np.arange(FRAMES) / FRAMES) ** 1.5).astype(int)
    ),
    "late pictures": lambda seed: _pictures_of(walk(seed), np.maximum(np.arange(FRAMES) - 4, 0)),
    "cutaway": _cutaway,
}
EDITS = INTACT | BROKEN


# --- one line ------------------------------------------------------------------------------------------------


def _written(film: Film, folder: Path) -> Path:
    """The film as files, and an index of it."""
    (folder / "depth").mkdir(parents=True)
    with VideoWriter(folder / "rgb.mp4", width=WIDTH, height=HEIGHT, fps=film.fps) as video:
        for i, (rgb, depth) in enumerate(zip(film.rgb, film.depth_m, strict=True)):
            video.write(np.ascontiguousarray(rgb))
            write_depth_png(folder / f"depth/{i:06d}.png", depth, units_per_metre=1000.0)
    clip = {"clip_id": "film", "media_path": str(folder / "rgb.mp4"), "depth_units_per_metre": 1000.0}
    clip["depth_pattern"] = str(folder / "depth/{frame:06d}.png")
    index = folder / "clips.yaml"
    index.write_text(yaml.safe_dump({"clips": [clip]}))
    return index


def line_of(task: tuple[str, int]) -> dict[str, Any]:
    """One edit of one walk, annotated by the command."""
    edit, seed = task
    line: dict[str, Any] = {"edit": edit, "seed": seed}
    with TemporaryDirectory() as work:
        folder = Path(work)
        film = EDITS[edit](seed)
        index = _written(film, folder / "clip")
        command = [sys.executable, "-m", "theodolite", "annotate", "rgbd", "--set", f"source.index={index}"]
        done = subprocess.run(
            [*command, "--out", str(folder / "run"), "--workers", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            return line | {"verdict": "failed", "error": done.stderr[-500:]}
        (row,) = open_dataset(folder / "run").rows()
    line |= {"verdict": row.verdict, "reasons": list(row.reasons), "details": list(row.reason_details)}
    line |= {"gates": {gate.name: gate.value for gate in row.gates}, "error": row.error}
    line["metrics"] = dict(row.metrics or {})
    if not len(row.camera_to_world):
        return line
    truth = film.camera_to_world[row.frame_index]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    focal = np.abs(row.focal_px[:, 0].astype(np.float64) / film.focal_px[row.frame_index] - 1)
    return line | {
        # Frames at an end whose cameras are not their own.
        "bridged_at_ends": [int((row.pose_source[part] == 2).sum()) for part in (slice(8), slice(-8, None))],
        "path_m": float(path_length(truth)),
        "path_error": error.ate_rmse_m / float(path_length(truth)),
        "focal_error": float(focal.mean()),
    }


# --- tables --------------------------------------------------------------------------------------------------


def wrong(line: dict[str, Any]) -> bool:
    """Cameras that are off by more than anything accepted may be."""
    return line.get("path_error", 0.0) > WRONG_PATH or line.get("focal_error", 0.0) > WRONG_FOCAL


def table(lines: list[dict[str, Any]]) -> None:
    print(
        "| edit | clips | accepted | of them wrong | path error of accepted, worst | focal error, worst | reasons |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for edit in EDITS:
        some = [line for line in lines if line["edit"] == edit]
        taken = [line for line in some if line["verdict"] == "accepted"]
        reasons = sorted({r for line in some for r in line.get("reasons", [line.get("error")])})
        worst = [max((x[key] for x in taken), default=float("nan")) for key in ("path_error", "focal_error")]
        if some:
            print(
                f"| {edit} | {len(some)} | {len(taken)} | {sum(map(wrong, taken))} | {100 * worst[0]:.2f} % |"
                f" {100 * worst[1]:.2f} % | {', '.join(map(str, reasons))} |"
            )
    intact = [line for line in lines if line["edit"] in INTACT]
    refused = sum(line["verdict"] != "accepted" for line in intact)
    wrongly = sum(line["verdict"] == "accepted" and wrong(line) for line in lines)
    print(
        f"\n{refused} of {len(intact)} intact clips refused; {wrongly} of all {len(lines)} accepted with wrong cameras"
    )


def run(args: argparse.Namespace) -> None:
    tasks = [(edit, int(seed)) for seed in args.seeds.split(",") for edit in args.only.split(",")]
    if args.out.is_file():
        done = {(x["edit"], x["seed"]) for x in map(json.loads, args.out.read_text().splitlines())}
        tasks = [task for task in tasks if task not in done]
    end = time.monotonic() + args.seconds
    with get_context("spawn").Pool(args.jobs) as pool:
        lines = pool.imap_unordered(line_of, tasks)
        for _ in tasks:
            try:
                line = lines.next(timeout=max(0.0, end - time.monotonic()))
            except NotYet:
                print("time is over; the same command goes on", flush=True)
                break
            with args.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
            errors = [f"{100 * line[key]:.2f} %" for key in ("path_error", "focal_error") if key in line]
            print(line["edit"], line["seed"], line["verdict"], line.get("reasons"), *errors, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    running.add_argument("--seeds", default="501,502")
    running.add_argument("--only", default=",".join(EDITS))
    running.add_argument("--jobs", type=int, default=1)
    running.add_argument("--seconds", type=float, default=86400.0)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "run":
        run(args)
    else:
        table([json.loads(text) for file in args.files for text in file.read_text().splitlines()])


if __name__ == "__main__":
    main()
