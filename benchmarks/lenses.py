"""Lenses that are no pinhole in the middle of their picture: what becomes of clips that are seen through them.

    python benchmarks/lenses.py --data ../shared/data --out lenses.jsonl [--only k1-0.3,crop-right] [--scenes room-1]
        [--jobs 4] [--seconds 280] [--work DIR] [--set annotate.bundle.lens_model=near_pinhole]
    python benchmarks/lenses.py --table lenses.jsonl [OTHER.jsonl]

Rendered rooms are seen through the exact lens (five views of 90 degrees where one does not hold it), recordings are
warped as far as their picture reaches; depth goes along, as z-depth. Each clip is given to `theodolite annotate rgbd`
with pixels and depth, its lens unknown. A line of the table: root mean square and largest distance in pixels between
where the true lens and the row's put the same ray, over a grid of the picture and all frames; the first again after
the best turn of the camera (a principal point off by a little is nearly a turn); error of the path as a share of its
length (SE(3), no scale); verdict. Lines that `--out` holds already are not made again; no clip is begun after
`--seconds`. About eight seconds of a core a clip.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_depth_png
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.dataset.media.read import video_frames
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.metrics.lens import image_grid
from theodolite.dataset.metrics.trajectory import path_length, trajectory_error
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.rows import Row
from theodolite.recipes.cli import main as theodolite

F64 = NDArray[np.float64]
FRAMES, FPS = 60, 16.0
WIDTH, HEIGHT = 640, 480
_FINER = 1.25
"""Views that are warped have so many pixels for one."""


# --- lenses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A lens; a point at the angle t from the axis, r = tan t, lies f (r + k1 r^3 + k2 r^5) from (cx, cy), and with a
    fisheye f (t + k1 t^3 + k2 t^5). Pixels, centres at +0.5."""

    focal_px: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    fisheye: bool = False

    def radius(self, angle: F64) -> F64:
        """Distance from the principal point over the focal length, of rays at `angle` from the axis."""
        r = angle if self.fisheye else np.tan(np.minimum(angle, 1.57))
        return r * (1 + self.k1 * r**2 + self.k2 * r**4)

    def rays(self, xy_px: F64) -> F64:
        """(..., 3) unit vectors of pixels."""
        x = (xy_px - [self.cx, self.cy]) / self.focal_px
        wanted = np.linalg.norm(x, axis=-1)
        # The radius grows with the angle as far as the picture reaches.
        angles = np.linspace(0, np.pi if self.fisheye else 1.5, 200_001)
        radii = self.radius(angles)
        falls = np.flatnonzero(np.diff(radii) <= 0)
        end = falls[0] + 1 if len(falls) else len(radii)
        if wanted.max() > radii[end - 1]:
            raise ValueError(f"{self}: the picture reaches beyond what the lens shows")
        angle = np.interp(wanted, radii[:end], angles[:end])
        along = x / np.maximum(wanted, 1e-12)[..., None] * np.sin(angle)[..., None]
        return np.concatenate([along, np.cos(angle)[..., None]], -1)

    def pixels(self, rays: F64) -> F64:
        """(..., 2) pixels of rays (..., 3); NaN where the lens does not see them."""
        across = np.linalg.norm(rays[..., :2], axis=-1)
        angle = np.arctan2(across, rays[..., 2])
        out = self.focal_px * (self.radius(angle) / np.maximum(across, 1e-12))[..., None] * rays[..., :2]
        seen = angle < (np.pi if self.fisheye else 1.5)
        return np.where(seen[..., None], out + [self.cx, self.cy], np.nan)


def lens_of(row: Row) -> list[Lens]:
    """The lens of every frame of a row."""
    terms: dict[str, Any] = {"k1": float(row.radial_k1 or 0.0), "k2": float(row.radial_k2 or 0.0)}
    terms["fisheye"] = row.lens_model == "fisheye"
    lens = np.concatenate([row.focal_px, row.principal_point_px], 1).astype(np.float64)
    return [Lens(focal_px=f, cx=cx, cy=cy, **terms) for f, _, cx, cy in lens]


def _at_middle(width: int, height: int, **terms: Any) -> Lens:
    """As long as a picture's long side, in its middle."""
    share = 0.95 if not terms.get("fisheye") else 1.0
    terms = {"focal_px": share * width, "cx": width / 2, "cy": height / 2} | terms
    return Lens(**terms)


def _radial(k1: float, k2: float = 0.0) -> Callable[[int, int], Lens]:
    return lambda width, height: _at_middle(width, height, k1=k1, k2=k2)


def _fisheye(degrees: float) -> Callable[[int, int], Lens]:
    """Equidistant, with an angle of view across the width."""
    return lambda width, height: _at_middle(width, height, fisheye=True, focal_px=width / np.deg2rad(degrees))


def _cropped(right: float, down: float, k1: float = 0.0) -> Callable[[int, int], Lens]:
    """The principal point off the middle by shares of width and height."""
    return lambda width, height: _at_middle(
        width, height, cx=width * (0.5 + right), cy=height * (0.5 + down), k1=k1
    )


VARIANTS: dict[str, Callable[[int, int], Lens]] = {
    "pinhole": _radial(0.0),
    **{f"k1{k1:+.1f}": _radial(k1) for k1 in (-0.3, -0.2, -0.1, 0.1, 0.2)},
    **{f"k1{k1:+.1f},k2{k2:+.2f}": _radial(k1, k2) for k1, k2 in ((-0.3, 0.1), (-0.2, 0.1), (0.1, -0.1))},
    **{f"fisheye-{degrees}": _fisheye(degrees) for degrees in (90, 120, 150, 180)},
    "crop-right": _cropped(-0.1, 0.0),
    "crop-left": _cropped(0.1, 0.0),
    "crop-bottom": _cropped(0.0, -0.1),
    "crop-corner": _cropped(0.1, 0.1),
    "crop-5": _cropped(-0.05, 0.03),
    "crop-right,k1-0.1": _cropped(-0.1, 0.0, -0.1),
}


# --- clips ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Made:
    """A clip as files, with what is true of it: camera_to_world (F, 4, 4) and the lens."""

    folder: Path
    camera_to_world: F64
    lens: Lens


class _Writer:
    """Frames of a clip, one after the other, into `rgb.mp4` and `depth/`."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self.folder, self.number = folder, 0
        (folder / "depth").mkdir(parents=True)
        self.video = VideoWriter(folder / "rgb.mp4", width=width, height=height, fps=FPS)

    def write(self, rgb: NDArray, depth_m: NDArray) -> None:
        self.video.write(np.ascontiguousarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8)))
        depth = np.where(np.isfinite(depth_m) & (depth_m > 0.05) & (depth_m < 60), depth_m, np.nan)
        write_depth_png(self.folder / "depth" / f"{self.number:06d}.png", depth, units_per_metre=1000.0)
        self.number += 1


def _pixel_centres(width: int, height: int) -> F64:
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y], -1).astype(np.float64)


# World directions of the axes of the five views, in the camera's frame: ahead, right, left, down, up.
_FACES = [
    Rotation.from_rotvec(np.deg2rad(a)).as_matrix()
    for a in ([0, 0, 0], [0, 90, 0], [0, -90, 0], [-90, 0, 0], [90, 0, 0])
]


def _views(rays: F64, focal_px: float) -> list[tuple[F64, float, int, NDArray[np.bool_], F64]]:
    """Pinhole views that hold rays (H, W, 3): rotation to the camera, focal, size, pixels for which it is, places."""
    n = np.abs(rays[..., :2]).max(-1) / np.maximum(rays[..., 2], 1e-9)
    one = bool((rays[..., 2] > 0).all() and n.max() < 1.6)
    half = float(n.max()) * 1.01 if one else 1.02
    size = int(np.ceil(2 * half * focal_px))
    best = np.zeros(rays.shape[:2], int)
    if not one:
        best = np.argmax(np.stack([rays @ turn[:, 2] for turn in _FACES], -1), -1)
    found = []
    for number, turn in enumerate(_FACES[:1] if one else _FACES):
        chosen = best == number
        if chosen.any():
            seen = rays @ turn
            places = seen[..., :2] / np.maximum(seen[..., 2:], 1e-6) * focal_px + size / 2
            found.append((turn, focal_px, size, chosen, places))
    return found


def _remapped(picture: NDArray, places: F64, how: int) -> NDArray:
    """A picture at places (H, W, 2), pixel centres at +0.5."""
    x, y = (places - 0.5).astype(np.float32).transpose(2, 0, 1)
    return cv2.remap(picture.astype(np.float32), x, y, how, borderMode=cv2.BORDER_REPLICATE)


def render(seed: int, lens_at: Callable[[int, int], Lens], folder: Path) -> Made:
    """A walk through a room, seen through a lens."""
    lens = lens_at(WIDTH, HEIGHT)
    rays = lens.rays(_pixel_centres(WIDTH, HEIGHT))
    # As many pixels a radian as in the middle of the picture, where it is finest; a wide view needs no more.
    views = _views(rays, _FINER * lens.focal_px)
    base = render_clip(
        RenderConfig(width=WIDTH, height=HEIGHT, num_frames=FRAMES, fps=FPS, seed=seed, speed=1.5)
    )
    writer = _Writer(folder, WIDTH, HEIGHT)
    clips = [_turned(base, turn, focal, size) for turn, focal, size, _, _ in views]
    with writer.video:
        for i in range(FRAMES):
            rgb = np.zeros((HEIGHT, WIDTH, 3), np.float32)
            depth = np.full((HEIGHT, WIDTH), np.nan, np.float32)
            for clip, (turn, _, _, chosen, places) in zip(clips, views, strict=True):
                frame = clip.frame(i)
                rgb[chosen] = _remapped(frame.rgb, places, cv2.INTER_CUBIC)[chosen]
                z = _remapped(frame.depth_m, places, cv2.INTER_NEAREST)
                # Depth of the view is along its own axis; the clip's is along the camera's.
                depth[chosen] = (z * rays[..., 2] / np.maximum(rays @ turn[:, 2], 1e-9))[chosen]
            writer.write(rgb, depth)
    return Made(folder=folder, camera_to_world=base.camera_to_world, lens=lens)


def _turned(base: RenderedClip, turn: F64, focal_px: float, size: int) -> RenderedClip:
    """The same walk seen by square pinhole pictures that look along the third column of `turn`."""
    poses = base.camera_to_world.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ turn
    intrinsics = np.array([[focal_px, 0, size / 2], [0, focal_px, size / 2], [0, 0, 1.0]])
    clip = replace(
        base,
        config=base.config.model_copy(update={"width": size, "height": size}),
        camera_to_world=poses,
        intrinsics=np.tile(intrinsics, (len(base), 1, 1)),
    )
    clip.__dict__["scene"] = base.scene  # else it is built again for every view
    return clip


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Frames `first` to `first + FRAMES` of a recording with a known pinhole."""

    folder: str
    first: int


SCENES: dict[str, int | Recording] = {
    "room-101": 101,
    "room-102": 102,
    "room-103": 103,
    "room-104": 104,
    "room-105": 105,
    "office-0": Recording(folder="rgbd-office-a", first=0),
    "office-80": Recording(folder="rgbd-office-a", first=80),
}


def warp(recording: Recording, data: Path, lens_at: Callable[[int, int], Lens], folder: Path) -> Made:
    """A recording as a lens would have shown it: as wide as its picture allows."""
    source = data / recording.folder
    (fx, _, cx), (_, fy, cy) = np.loadtxt(source / "K.txt")[:2]
    wanted = np.arange(recording.first, recording.first + FRAMES)
    frames = list(video_frames(recording.folder, source / "rgb.mp4", wanted))
    height, width = frames[0].shape[:2]
    lens = lens_at(width, height)
    low, high = 0.2, 5.0  # factor on the focal length; the shortest at which the picture is filled
    for _ in range(40):
        middle = (low * high) ** 0.5
        if _fits(replace(lens, focal_px=lens.focal_px * middle), (fx, fy, cx, cy), width, height):
            high = middle
        else:
            low = middle
    lens = replace(lens, focal_px=lens.focal_px * high)
    rays = lens.rays(_pixel_centres(width, height))
    places = rays[..., :2] / rays[..., 2:] * [fx, fy] + [cx, cy]
    poses = np.loadtxt(source / "poses_c2w.txt").reshape(-1, 4, 4)[wanted]
    writer = _Writer(folder, width, height)
    with writer.video:
        for i, rgb in enumerate(frames):
            stored = cv2.imread(
                str(source / "depth" / f"{recording.first + i:06d}.png"), cv2.IMREAD_UNCHANGED
            )
            assert stored is not None
            z = np.where(stored > 0, stored / 1000.0, np.nan)
            share = np.array([z.shape[1] / width, z.shape[0] / height])
            writer.write(
                _remapped(rgb, places, cv2.INTER_CUBIC), _remapped(z, places * share, cv2.INTER_NEAREST)
            )
    return Made(folder=folder, camera_to_world=poses, lens=lens)


def _fits(lens: Lens, pinhole: tuple[float, float, float, float], width: int, height: int) -> bool:
    fx, fy, cx, cy = pinhole
    x, y = np.arange(width + 1.0), np.arange(height + 1.0)
    border = np.concatenate(
        [
            np.stack([x, 0 * x], 1),
            np.stack([x, 0 * x + height], 1),
            np.stack([0 * y, y], 1),
            np.stack([0 * y + width, y], 1),
        ]
    )
    try:
        rays = lens.rays(border)
    except ValueError:
        return False
    places = rays[:, :2] / np.maximum(rays[:, 2:], 1e-6) * [fx, fy] + [cx, cy]
    return bool((places >= 1).all() and (places <= [width - 1, height - 1]).all())


# --- measurement ------------------------------------------------------------------------------------------


def annotated(made: Made, out: Path, settings: list[str]) -> Row:
    """The row that the command makes of a clip with depth, its lens unknown."""
    index = made.folder / "index.yaml"
    entry = {
        "clip_id": "clip",
        "media_path": "rgb.mp4",
        "depth_pattern": "depth/{frame:06d}.png",
        "depth_units_per_metre": 1000,
    }
    index.write_text(yaml.safe_dump({"defaults": {"data_licence": "MIT"}, "clips": [entry]}))
    command = ["theodolite", "annotate", "rgbd", "--out", str(out), "--workers", "0"]
    for setting in (f"source.index={index}", *settings):
        command += ["--set", setting]
    said = StringIO()
    with mock.patch.object(sys, "argv", command), redirect_stdout(said), redirect_stderr(said):
        try:
            theodolite()
        except SystemExit as end:
            if end.code not in (None, 0, 1):
                raise RuntimeError(said.getvalue()) from end
    return open_dataset(out).row("clip")


def camera_errors(row: Row, lens: Lens) -> dict[str, float]:
    """Distances in pixels between where the true lens and the row's put the same ray."""
    return lens_errors(lens_of(row), lens, row.height, row.width)


def lens_errors(found: list[Lens], lens: Lens, height: int, width: int) -> dict[str, float]:
    """The same of lenses, one a frame, over pictures of a size."""
    grid = image_grid(height, width, rows=13, columns=17) + 0.5
    rays = lens.rays(grid)
    diagonal = float(np.hypot(width, height))

    def errors(lenses: list[Lens], seen: F64) -> F64:
        apart = np.stack([one.pixels(seen) - grid for one in lenses])
        # A ray that the row's lens does not see is off by the whole picture.
        return np.nan_to_num(np.clip(apart, -diagonal, diagonal), nan=diagonal)

    apart = np.linalg.norm(errors(found, rays), axis=-1)
    middle = [found[len(found) // 2]]
    best = least_squares(
        lambda w: errors(middle, rays @ Rotation.from_rotvec(w).as_matrix()).ravel(), np.zeros(3)
    )
    return {
        "rms_px": float(np.sqrt((apart**2).mean())),
        "max_px": float(apart.max()),
        "turned_rms_px": float(np.sqrt(2 * (best.fun**2).mean())),
    }


def line_of(scene: str, variant: str, data: Path, work: Path, settings: list[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"scene": scene, "variant": variant, "settings": settings}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        what = SCENES[scene]
        lens_at = VARIANTS[variant]
        if isinstance(what, Recording):
            made = warp(what, data, lens_at, Path(folder) / "clip")
        else:
            made = render(what, lens_at, Path(folder) / "clip")
        start = time.process_time()
        row = annotated(made, Path(folder) / "rows", settings)
        line["cpu_s"] = time.process_time() - start
    line |= {
        "verdict": row.verdict,
        "reasons": row.reasons,
        "details": row.reason_details,
        "error": row.error,
    }
    line |= {"lens": vars(made.lens), "gates": {g.name: g.value for g in row.gates}, "metrics": row.metrics}
    if not len(row.camera_to_world):
        return line
    truth = made.camera_to_world[row.frame_index]
    error = trajectory_error(np.asarray(row.camera_to_world, np.float64), truth, alignment="se3")
    line |= camera_errors(row, made.lens)
    return line | {
        "path_percent": 100 * error.ate_rmse_m / float(path_length(truth)),
        "found": vars(lens_of(row)[len(row.focal_px) // 2]),
        "model": row.focal_model,
        "log_focal_sigma": None if row.log_focal_sigma is None else float(np.median(row.log_focal_sigma)),
        "reprojection_px": row.reprojection_median_px,
        "parallax_rad": row.parallax_rad,
    }


def _work(task: tuple[str, str, Path, Path, list[str], float]) -> dict[str, Any] | None:
    scene, variant, data, work, settings, until = task
    if time.monotonic() > until:
        return None
    cv2.setNumThreads(1)
    try:
        return line_of(scene, variant, data, work, settings)
    except Exception as error:  # noqa: BLE001 - one clip that cannot be made must not end the others
        return {"scene": scene, "variant": variant, "verdict": "failed", "reasons": [repr(error)[:300]]}


# --- tables -----------------------------------------------------------------------------------------------


def cell(line: dict[str, Any]) -> str:
    verdict = "accepted" if line["verdict"] == "accepted" else ", ".join(line["reasons"])
    if "rms_px" not in line:
        return f"none; {verdict}"
    return (
        f"{line['rms_px']:.2f}, {line['max_px']:.1f} ({line['turned_rms_px']:.2f}) px;"
        f" {line['path_percent']:.2f} %; {verdict}"
    )


def table(files: list[Path]) -> Iterator[str]:
    """A row a clip, a column a file."""
    columns = [
        {(x["scene"], x["variant"]): x for x in map(json.loads, path.read_text().splitlines())}
        for path in files
    ]
    yield f"| clip | lens | {' | '.join(path.stem for path in files)} |"
    yield "| --- | --- |" + " --- |" * len(files)
    keys = dict.fromkeys(k for column in columns for k in column)
    for key in sorted(keys, key=lambda k: (list(SCENES).index(k[0]), list(VARIANTS).index(k[1]))):
        yield f"| {key[0]} | {key[1]} | {' | '.join(cell(c[key]) if key in c else '' for c in columns)} |"
    for path, column in zip(files, columns, strict=True):
        taken = [x for x in column.values() if x["verdict"] == "accepted"]
        good = sum(x["rms_px"] < 1 for x in taken)
        yield f"{path.stem}: {len(taken)} of {len(column)} accepted, {good} of them below 1 px (root mean square)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument("--only", default="", help="variants, divided by spaces")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no clip is begun")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, as the command takes it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    parser.add_argument("--table", type=Path, nargs="+", help="print these files instead of running")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(args.table)))
        return
    until = time.monotonic() + args.seconds
    args.work.mkdir(parents=True, exist_ok=True)
    there = set()
    if args.out and args.out.is_file():
        there = {(x["scene"], x["variant"]) for x in map(json.loads, args.out.read_text().splitlines())}
    tasks = [
        (scene, variant, args.data, args.work, args.set, until)
        for variant in args.only.split() or VARIANTS
        for scene in args.scenes.split(",")
        if (scene, variant) not in there
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with get_context("spawn").Pool(args.jobs) as pool:
        for line in pool.imap_unordered(_work, tasks) if args.jobs > 1 else map(_work, tasks):
            if line is None:
                continue
            if args.out:
                with args.out.open("a") as out:
                    out.write(json.dumps(line) + "\n")
            print(
                f"{line['scene']} {line['variant']}: {cell(line)} [{line.get('cpu_s', 0):.0f} s]", flush=True
            )


if __name__ == "__main__":
    main()
