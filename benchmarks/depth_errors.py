"""Depth that errs as depth does: recordings with every kind of error put on their depth, and what becomes of them.

    python benchmarks/depth_errors.py --data ../shared/data [--recordings office-a,redkitchen] [--only gain-5,...]
        [--frames 80] [--jobs 4] [--seconds 300] [--work DIR] [--out lines.jsonl]

The images are the same for every variant, so their tracks are measured once a recording and kept in `--work`; from
there on it is `annotate_clip`, recipe `rgbd`. A variant with `~1` at its end has a hundredth of a pixel of noise on the
tracks, another one with each number: what hangs on a tie comes out otherwise. Lines that `--out` has already are not
run again, and after `--seconds` no more are waited for: the same command goes on.

A line of the table: how far the path is off (SE(3), no scale, in cm and as a share of its length), the worst and the
mean error of the focal length, the verdict, and how far the errors exceed the standard deviations that the row states
(position, rotation, focal length; 1 is right).

`--table FILES` prints the lines of earlier runs, one file a column, and what each variant moves the focal length by
against the clean recording of the same file. That is what noise does; the error against the truth also holds what the
truth is wrong by, and for redkitchen nobody knows its colour camera's focal length better than to a few per cent: under
the recording's poses the colour images fit 514 to 525 px with the poses as they are (521 here), 496 px with a free
transform between colour and depth camera. Its depth is of a camera of its own, 585 px, and not registered: the maps
show 0.9 of the colour's field of view, which draws the focal length to 541 px unless the images tell.
`redkitchen-registered` says so (`depth_view`), `redkitchen-unasked` says that there is nothing to be told.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import TimeoutError as NotYet
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import yaml
from theodolite.annotate import pipeline
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.frames.base import ClipFrames
from theodolite.annotate.geometry.base import KnownGeometry
from theodolite.annotate.geometry.config import RenderedConfig
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.given import GivenGeometrySource
from theodolite.annotate.geometry.rendered import RenderedGeometrySource
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.annotate.tracks.records import ImageMeasurements
from theodolite.dataset.cameras.rotations import rotation_angle
from theodolite.dataset.formats.trajectories import read_trajectory
from theodolite.dataset.metrics.trajectory import path_length, trajectory_error
from theodolite.dataset.rows import Row

Maps = Callable[[int], np.ndarray]
"""Depth of a clip frame, NaN where there is none."""


# --- errors ---------------------------------------------------------------------------------------------


def _rng(seed: int, frame: int) -> np.random.Generator:
    return np.random.default_rng([seed, frame])


def gain(percent: float) -> Callable:
    """One wrong factor a frame, another in every frame: what networks do."""
    return lambda maps, frames, seed: (
        lambda f: maps(f) * np.exp(percent / 100 * _rng(seed, f).standard_normal())
    )


def pixel(percent: float) -> Callable:
    """Noise of every pixel by itself."""

    def noisy(maps: Maps, frames: int, seed: int) -> Maps:
        def read(f: int) -> np.ndarray:
            z = maps(f)
            return z * np.exp(percent / 100 * _rng(seed, f).standard_normal(z.shape))

        return read

    return noisy


def field_of(percent: float) -> Callable:
    """Smooth errors over the image, about a sixth of it wide, another field in every frame."""

    def noisy(maps: Maps, frames: int, seed: int) -> Maps:
        def read(f: int) -> np.ndarray:
            z = maps(f)
            coarse = _rng(seed, f).standard_normal((5, 8))
            smooth = cv2.resize(coarse, (z.shape[1], z.shape[0]), interpolation=cv2.INTER_CUBIC)
            return z * np.exp(percent / 100 * smooth / smooth.std())

        return read

    return noisy


def drift(percent: float) -> Callable:
    """A factor that changes evenly along the clip, from below to above by `percent`."""
    return lambda maps, frames, seed: lambda f: maps(f) * (1 + percent / 100 * (2 * f / (frames - 1) - 1))


def step(percent: float) -> Callable:
    """A factor that is there from the middle of the clip on."""
    return lambda maps, frames, seed: lambda f: maps(f) * (1 + percent / 100 * (f >= frames // 2))


def lag(by: int) -> Callable:
    """Every frame has the depth of the frame `by` before it."""
    return lambda maps, frames, seed: lambda f: maps(min(max(f - by, 0), frames - 1))


def missing(first: float, last: float) -> Callable:
    """No value in a run of frames, given as shares of the clip."""

    def read_of(maps: Maps, frames: int, seed: int) -> Maps:
        return lambda f: np.where(first * frames <= f < last * frames, np.nan, maps(f))

    return read_of


def ranged(low: float, high: float, *, saturates: bool) -> Callable:
    """Depth is measured between two quantiles of the clip only; beyond, it is absent or reads the limit."""

    def read_of(maps: Maps, frames: int, seed: int) -> Maps:
        some = np.concatenate([maps(f)[::8, ::8].ravel() for f in range(0, frames, 10)])
        near, far = np.nanquantile(some[np.isfinite(some)], [low, high])
        near, far = near if low > 0 else 0.0, far if high < 1 else np.inf

        def read(f: int) -> np.ndarray:
            z = maps(f)
            if saturates:
                return np.clip(z, near, far)
            with np.errstate(invalid="ignore"):
                return np.where((z < near) | (z > far), np.nan, z)

        return read

    return read_of


def every(nth: int) -> Callable:
    """Depth on every `nth` frame only: a sensor slower than the camera."""
    return lambda maps, frames, seed: lambda f: np.where(f % nth != 0, np.nan, maps(f))


def all_of(*changes: Callable) -> Callable:
    """One after the other."""

    def changed(maps: Maps, frames: int, seed: int) -> Maps:
        for change in changes:
            maps = change(maps, frames, seed)
        return maps

    return changed


VARIANTS: dict[str, Callable | None] = {
    "clean": None,
    **{f"gain-{p}": gain(p) for p in (2, 5, 10, 20)},
    **{f"pixel-{p}": pixel(p) for p in (2, 5, 10, 20)},
    **{f"field-{p}": field_of(p) for p in (2, 5, 10)},
    "drift-10": drift(10),
    "drift-30": drift(30),
    "step-10": step(10),
    "lag-1": lag(1),
    "lead-1": lag(-1),
    "missing-20": missing(0.4, 0.6),
    "missing-start": missing(0.0, 0.2),
    "missing-50": missing(0.3, 0.8),
    "every-3": every(3),
    "gain-pixel-missing": all_of(gain(10), pixel(10), missing(0.4, 0.6)),
    "gain-drift": all_of(gain(5), drift(10)),
    "far-absent": ranged(0.0, 0.6, saturates=False),
    "far-saturates": ranged(0.0, 0.6, saturates=True),
    "near-absent": ranged(0.3, 1.0, saturates=False),
    "near-saturates": ranged(0.3, 1.0, saturates=True),
}

MISSING = {
    f"missing-{percent}-{where}": missing(at * (1 - percent / 100), at * (1 - percent / 100) + percent / 100)
    for percent in (5, 10, 20, 30)
    for where, at in (("start", 0.0), ("middle", 0.5), ("end", 1.0))
}
"""Runs of frames without depth; not among the variants that run unless they are named."""


class Altered:
    """Sequence geometry whose depth has an error put on it."""

    name = "altered"

    def __init__(self, source: Any, change: Callable | None, seed: int, warp: Callable | None) -> None:
        self.source, self.change, self.seed, self.warp = source, change, seed, warp

    def start(self, clip: ClipRef, frames: ClipFrames) -> KnownGeometry:
        found = self.source.read(clip, frames)

        @lru_cache(400)
        def maps(f: int) -> np.ndarray:
            z = np.asarray(found.depth.read(f))
            return z if self.warp is None else self.warp(z, f)

        read = maps if self.change is None else self.change(maps, len(frames), self.seed)
        return KnownGeometry(replace(found, depth=_Maps(lru_cache(400)(read), len(frames))))


class _Maps:
    def __init__(self, read: Maps, frames: int) -> None:
        self._read, self._frames = read, frames

    def __len__(self) -> int:
        return self._frames

    def read(self, frame: int) -> np.ndarray | None:
        z = self._read(frame)
        return z.astype(np.float32) if np.isfinite(z).any() else None


# --- recordings -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A clip, its truth, and where its depth comes from."""

    clip: ClipRef
    decode: dict[str, Any]
    camera_to_world: np.ndarray  # by source frame
    focal_px: np.ndarray  # by source frame
    rendered: bool = False
    zoom: np.ndarray | None = field(default=None)

    def warp(self, frame_index: np.ndarray) -> Callable | None:
        """The warp that made the colours of a zoom copy, for its depth: nearest neighbour."""
        zoom = self.zoom
        if zoom is None:
            return None

        def warped(z: np.ndarray, f: int) -> np.ndarray:
            height, width = z.shape
            by = zoom[frame_index[f]]
            row = ((np.arange(height) + 0.5 - height / 2) / by + height / 2).astype(int)
            column = ((np.arange(width) + 0.5 - width / 2) / by + width / 2).astype(int)
            return z[row[:, None], column]

        return warped


def recording(name: str, data: Path, work: Path) -> Recording:
    if name.startswith("rendered"):
        fields = {"width": 480, "height": 270, "num_frames": 97, "seed": 7, "moving_object": True}
        fields |= {"zoom": "in_out", "zoom_factor": 1.35} if name.endswith("zoom") else {}
        path = work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields))
        clip = render_clip(RenderConfig.model_validate(fields))
        return Recording(
            clip=ClipRef(clip_id=name, source="s", original_id=name, media_kind="rendered", media_path=path),
            decode={},
            camera_to_world=clip.camera_to_world,
            focal_px=clip.intrinsics[:, 0, 0],
            rendered=True,
        )
    folder = data / f"rgbd-{name.removesuffix('-zoom').removesuffix('-961').removesuffix(_said(name)[0])}"
    zooms = name.endswith("-zoom")
    poses = read_trajectory(folder / "poses_c2w.txt").camera_to_world
    zoom = None
    if zooms:
        table = np.genfromtxt(folder / "zoom_intrinsics.csv", delimiter=",", names=True)
        zoom, focal = table["zoom"], table["fx"]
    else:
        # The colour camera of redkitchen has no published calibration; matches between frames fit 521 px.
        one = 521.0 if "kitchen" in name else np.loadtxt(folder / "K.txt")[0, 0]
        focal = np.full(len(poses), one)
    clip = ClipRef(
        clip_id=name,
        source="s",
        original_id=name,
        media_kind="images" if "tum" in name else "video",
        media_path=folder / ("zoom.mp4" if zooms else "rgb" if "tum" in name else "rgb.mp4"),
        source_fps=30.0 if "tum" in name else None,
        given=GivenGeometry(
            depth_pattern=str(folder / "depth/{frame:06d}.png"),
            depth_units_per_metre=5000.0 if "tum" in name else 1000.0,
            depth_view=_said(name)[1],
        ),
    )
    decode: dict[str, Any] = {}
    if name.endswith("-961"):
        decode = {"source_fps": 16.0, "max_frames": 961}
    if "tum" in name:
        decode = {"fps": "native", "min_frames": 10}
    return Recording(clip=clip, decode=decode, camera_to_world=poses, focal_px=focal, zoom=zoom)


def _said(name: str) -> tuple[str, float | None]:
    """Ending of a recording's name, and the field of view of its depth that it says."""
    # Focal length of the colour camera over that of the depth camera.
    views = {"-registered": 521.0 / 585.0, "-unasked": 1.0}
    return next(((end, view) for end, view in views.items() if name.endswith(end)), ("", None))


# --- one line -------------------------------------------------------------------------------------------


def annotate(name: str, variant: str, args: argparse.Namespace) -> tuple[Row, Recording]:
    """The row of one variant; tracks come from `args.work` where they are there."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    made = recording(name, args.data, args.work)
    decode = made.decode | {"detect_cuts": False}
    if args.frames:
        decode["max_frames"] = args.frames
    variant, _, shake = variant.partition("~")
    config = AnnotateConfig.model_validate(
        {"geometry": {"sequence": "rendered" if made.rendered else "given"}, "decode": decode}
    )
    cache = _tracks_file(name, args)
    measure = pipeline.measure_images

    def measured(frames: Any, **keywords: Any) -> Any:
        if not cache.is_file():
            partial = cache.with_suffix(f".{time.time_ns()}")
            partial.write_bytes(pickle.dumps(measure(frames, **keywords)))
            partial.rename(cache)
        found = pickle.loads(cache.read_bytes())
        return _shaken(found, int(shake)) if shake else found

    source = (
        RenderedGeometrySource(RenderedConfig(declare_metric=True))
        if made.rendered
        else GivenGeometrySource()
    )
    # The frames of the clip by number in the source are known only when it is open.
    frames = pipeline.open_clip(made.clip, config.decode)
    seed = zlib.crc32(variant.encode())
    altered = Altered(source, (VARIANTS | MISSING)[variant], seed, made.warp(frames.timing.frame_index))
    with mock.patch.object(pipeline, "measure_images", measured):
        row = annotate_clip(
            made.clip,
            config,
            mode="given_depth",
            recipe_hash="0" * 16,
            estimators=Estimators(sequence=altered, anchor=None),
        )
    return row, made


def _shaken(measured: ImageMeasurements, seed: int) -> ImageMeasurements:
    """The same with a hundredth of a pixel of noise on every point."""
    rng = np.random.default_rng(seed)

    def moved(xy_px: np.ndarray) -> np.ndarray:
        return xy_px + rng.normal(0, 0.01, xy_px.shape)

    flow = replace(measured.flow, xy_px=moved(measured.flow.xy_px))
    features = [replace(f, xy_px=moved(f.xy_px).astype(f.xy_px.dtype)) for f in measured.features]
    return replace(measured, flow=flow, features=features)


def _tracks_file(name: str, args: argparse.Namespace) -> Path:
    """Where the tracks of a recording are kept; what is said of its depth does not change them."""
    return args.work / f"tracks-{name.removesuffix(_said(name)[0])}-{args.frames or 'all'}.pickle"


def line_of(name: str, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Errors of one variant against the truth."""
    row, made = annotate(name, variant, args)
    line: dict[str, Any] = {"recording": name, "variant": variant, "verdict": row.verdict}
    line |= {"reasons": row.reasons, "details": row.reason_details, "error": row.error}
    line |= {"wall_s": (row.stage_wall_s or {}).get("bundle")}
    line |= {"gates": {g.name: g.value for g in row.gates}}
    if not len(row.camera_to_world):
        return line
    found = np.asarray(row.camera_to_world, np.float64)
    truth = made.camera_to_world[row.frame_index]
    error = trajectory_error(found, truth, alignment="se3")
    focal = np.log(row.focal_px[:, 0].astype(np.float64) / made.focal_px[row.frame_index])
    relative = np.linalg.inv(found[:1]) @ found
    expected = np.linalg.inv(truth[:1]) @ truth
    turn = np.asarray(rotation_angle(expected[:, :3, :3].swapaxes(1, 2) @ relative[:, :3, :3]))
    assert row.position_sigma_m is not None

    def ratio(actual: np.ndarray, sigma: Any) -> float:
        rms = float(np.sqrt(np.mean(np.square(np.asarray(sigma, np.float64)))))
        return float(np.sqrt(np.mean(np.square(actual)))) / max(rms, 1e-12)

    return line | {
        "ate_m": error.ate_rmse_m,
        "path_m": float(path_length(truth)),
        "focal_mean": float(np.mean(focal)),
        "focal_abs": float(np.mean(np.abs(focal))),
        "focal_worst": float(np.abs(focal).max()),
        "model": row.focal_model,
        "depth_residual": row.depth_residual_log_median,
        "sigma_m": float(np.median(row.position_sigma_m)),
        "sigma_focal": float("nan" if row.log_focal_sigma is None else np.median(row.log_focal_sigma)),
        "position_ratio": ratio(error.position_error_m, row.position_sigma_m),
        "rotation_ratio": ratio(turn, row.rotation_sigma_rad),
        "focal_ratio": ratio(focal, row.log_focal_sigma),
        "metrics": row.metrics,
    }


def _work(task: tuple[str, str, argparse.Namespace]) -> dict[str, Any]:
    return line_of(*task)


# --- tables ---------------------------------------------------------------------------------------------


def cell(line: dict[str, Any], clean: dict[str, Any] | None = None) -> str:
    """One line as a cell of a table.

    Args:
        clean: line of the same recording without errors, to compare its focal length with.
    """
    verdict = "accepted" if line["verdict"] == "accepted" else ", ".join(line["reasons"])
    if "ate_m" not in line:
        return f"none; {verdict}"
    moved = ""
    if clean is not None and "ate_m" in clean:
        moved = f", {100 * (line['focal_mean'] - clean['focal_mean']):+.1f} from clean"
    return (
        f"{100 * line['ate_m']:.1f} cm, {100 * line['ate_m'] / line['path_m']:.2f} %; focal"
        f" {100 * line['focal_abs']:.1f}, worst {100 * line['focal_worst']:.1f} %{moved} ({line['model']}); {verdict};"
        f" {line['position_ratio']:.1f} {line['rotation_ratio']:.1f} {line['focal_ratio']:.1f}"
    )


def table(files: list[Path]) -> None:
    """One row a variant, one column a file."""
    columns = [
        {(x["recording"], x["variant"]): x for x in map(json.loads, path.read_text().splitlines())}
        for path in files
    ]
    print(f"| recording | depth | {' | '.join(path.stem for path in files)} |")
    print("| --- | --- |" + " --- |" * len(files))
    for key in dict.fromkeys(k for column in columns for k in column):
        cells = [cell(c[key], c.get((key[0], "clean"))) if key in c else "" for c in columns]
        print(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recordings", default="office-a,redkitchen")
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--frames", type=int, default=0, help="of each clip at most; 0: all")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=float(3600 * 24), help="then no more lines are waited for"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/depth_errors"))
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    parser.add_argument("--table", type=Path, nargs="+", help="print these files instead of running")
    args = parser.parse_args()
    if args.table:
        table(args.table)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    recordings, variants = args.recordings.split(","), args.only.split(",")
    tasks = [(r, v, args) for v in variants for r in recordings]
    if args.out and args.out.is_file():
        done = {(x["recording"], x["variant"]) for x in map(json.loads, args.out.read_text().splitlines())}
        tasks = [t for t in tasks if t[:2] not in done]
    end = time.monotonic() + args.seconds
    without = {
        _tracks_file(r, args): (r, v, args) for r, v, _ in tasks if not _tracks_file(r, args).is_file()
    }
    first = list(without.values())
    with get_context("spawn").Pool(args.jobs) as pool:
        # A line of each recording first: the others take its tracks.
        _run(pool, first, args, end)
        _run(pool, [t for t in tasks if t not in first], args, end)


def _run(
    pool: Any, tasks: list[tuple[str, str, argparse.Namespace]], args: argparse.Namespace, end: float
) -> None:
    """Work on some lines and write each when it is there; what is not there at `end` is left out."""
    lines = pool.imap_unordered(_work, tasks)
    for _ in tasks:
        try:
            line = lines.next(timeout=max(0.0, end - time.monotonic()))
        except NotYet:
            print("time is over; the same command goes on", flush=True)
            pool.terminate()
            raise SystemExit(0) from None
        if args.out:
            with args.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
        print(
            f"{line['recording']} {line['variant']}: {cell(line)} [{line['wall_s'] or 0:.0f} s]", flush=True
        )


if __name__ == "__main__":
    main()
