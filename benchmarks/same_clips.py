"""Some sixty small clips of every kind, and the recipes that annotate them: the ground on which `same_rows.py` stands.

Rendered rooms, windows of recordings, given poses that are right and wrong, networks of random numbers and networks
that err in a known way, and a clip for every way in which one is turned away. All are made anew in each run, from
seeds, with names that do not depend on the place.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.files import write_clip, write_depth_png
from theodolite.annotate.rendered.render import RenderedClip, render_clip
from theodolite.annotate.sources.clip import ClipRef, GivenGeometry
from theodolite.dataset.media.write import VideoWriter
from theodolite.dataset.rows import Row
from theodolite.recipes.cli import main as theodolite

ROOT = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())
DATA = ROOT.parent / "shared" / "data"
"""Recordings; clips of recordings are left out where it is not there."""

Entry = dict[str, Any]

SMALL: Entry = {"width": 256, "height": 160, "num_frames": 21, "seed": 3, "speed": 2.0}
FEWER: Entry = {
    "tracks": {"num_flow_tracks": 80, "num_descriptors": 150},
    "bundle": {"max_observations": 50, "max_descriptor_observations": 100, "max_iterations": 12},
}
"""Fewer tracks and steps than usual: it is the same code."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Clips that one recipe annotates.

    Attributes:
        recipe: its name. settings: what `--set` takes, beside `FEWER`. entries: of its index.
    """

    name: str
    recipe: str
    entries: tuple[Entry, ...]
    settings: tuple[str, ...] = ()


def annotate_run(run: Run, work: Path) -> Path:
    """Give the command `theodolite annotate`, in this process; the folder of the dataset."""
    index = work / f"{run.name}.yaml"
    content = {"defaults": {"data_licence": "MIT"}, "clips": list(run.entries)}
    index.write_text(yaml.safe_dump(content, sort_keys=False))
    settings = [f"source={{kind: index, name: {run.name}, index: {index}}}"]
    settings += [f"annotate.{a}.{b}={value}" for a, section in FEWER.items() for b, value in section.items()]
    settings += run.settings
    out = work / "datasets" / run.name
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = ["theodolite", "annotate", run.recipe, "--out", str(out), "--workers", "0", *arguments]
    with mock.patch.object(sys, "argv", command), redirect_stdout(StringIO()) as text:
        try:
            theodolite()
        except SystemExit as end:
            if end.code not in (None, 0, 1):  # 1: some clips failed, as they should
                raise RuntimeError(f"{' '.join(command)} ended with {end.code}: {text.getvalue()}") from end
    return out


# --- material -----------------------------------------------------------------------------------


def _render(folder: Path, **fields: Any) -> RenderedClip:
    """A room as a recording: `rgb.mp4`, `depth/` in millimetres, `poses_c2w.txt`, `intrinsics.csv`."""
    clip = render_clip(RenderConfig.model_validate(SMALL | fields))
    write_clip(clip, folder)
    return clip


def _changed_depth(folder: Path, to: Path, change: Callable[[NDArray, int], NDArray]) -> None:
    """A copy of a rendered recording whose stored depth is `change(stored, frame)`."""
    (to / "depth").mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            (to / file.name).symlink_to(file)
    for frame, path in enumerate(sorted((folder / "depth").iterdir())):
        stored = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        cv2.imwrite(
            str(to / "depth" / path.name), np.ascontiguousarray(change(stored, frame)).astype(np.uint16)
        )


def _spliced(folder: Path, clips: Sequence[RenderedClip]) -> None:
    """Halves of two rooms one after the other, with their depth: a cut."""
    (folder / "depth").mkdir(parents=True)
    config, number = clips[0].config, 0
    with VideoWriter(folder / "rgb.mp4", width=config.width, height=config.height, fps=config.fps) as video:
        for clip in clips:
            for i in range(len(clip) // 2):
                frame = clip.frame(i)
                video.write(frame.rgb)
                write_depth_png(folder / "depth" / f"{number:06d}.png", frame.depth_m, units_per_metre=1000.0)
                number += 1


def _poses(folder: Path, name: str, change: Callable[[NDArray], NDArray]) -> str:
    """A file of changed poses beside the true ones; its name below the root."""
    poses = np.loadtxt(folder / "poses_c2w.txt").reshape(-1, 4, 4)
    np.savetxt(folder / name, change(poses).reshape(-1, 16), fmt="%.12g")
    return f"{folder.name}/{name}"


def _with_depth(clip_id: str, folder: str, **fields: Any) -> Entry:
    return {
        "clip_id": clip_id,
        "media_path": f"{folder}/rgb.mp4",
        "depth_pattern": f"{folder}/depth/{{frame:06d}}.png",
        "depth_units_per_metre": 1000,
        **fields,
    }


# --- runs ---------------------------------------------------------------------------------------


def runs(work: Path, data: Path = DATA) -> Iterator[Run]:
    """Every run through a recipe, after its material has been made in `work`."""
    clip = _render(work / "walk", zoom="ramp", zoom_factor=1.4, moving_object=True)
    _render(work / "plain", seed=5)
    yield _given_depth(work)
    yield _turned_away(work, clip)
    yield _posed(work)
    yield _anchored(work, clip)
    yield _rendered(work)
    if data.is_dir():
        (work / "data").symlink_to(data)
        yield _recordings()
        yield _without_depth()
    yield from _stand_ins(work)


def _given_depth(work: Path) -> Run:
    _render(work / "still", motion="static", noise_sigma=2.0)
    _render(work / "turning", motion="rotation")
    _changed_depth(work / "plain", work / "noisy", _noise)
    _changed_depth(work / "plain", work / "holes", lambda z, i: z * (not 9 <= i < 11))
    _changed_depth(work / "plain", work / "gap", lambda z, i: z * (not 8 <= i < 12))
    entries = (
        _with_depth("walk-zoom", "walk"),
        _with_depth("plain", "plain"),
        _with_depth("plain-noisy-depth", "noisy"),
        _with_depth("plain-holes-in-depth", "holes"),
        _with_depth("plain-gap-in-depth", "gap"),
        _with_depth("plain-window", "plain", start_s=0.1, end_s=1.2),
        _with_depth("plain-lens-held", "plain", intrinsics_path="plain/intrinsics.csv"),
        _with_depth("walk-lens-expected", "walk", intrinsics_path="plain/intrinsics.csv", focal="prior"),
        _with_depth("still", "still"),
        _with_depth("turning", "turning"),
    )
    quality = "annotate.quality={flow_width_px: 256}"
    return Run(name="depth", recipe="rgbd", settings=(quality,), entries=entries)


def _noise(stored: NDArray, frame: int) -> NDArray:
    rng = np.random.default_rng([7, frame])
    return stored * np.exp(0.03 * rng.standard_normal() + 0.05 * rng.standard_normal(stored.shape))


def _turned_away(work: Path, clip: RenderedClip) -> Run:
    """What is wrong with a clip with given depth, one fault each."""
    _spliced(work / "cut", (clip, render_clip(RenderConfig.model_validate(SMALL | {"seed": 11}))))
    _changed_depth(work / "plain", work / "upside-down", lambda z, i: z[::-1])
    _changed_depth(work / "plain", work / "units", lambda z, i: z * (1 + 0.3 * (i % 3)))
    _changed_depth(work / "plain", work / "empty", lambda z, i: 0 * z)
    _changed_depth(work / "plain", work / "fewer", lambda z, i: z)
    os.remove(max((work / "fewer" / "depth").iterdir()))
    shutil.copy(work / "plain" / "rgb.mp4", work / "cut-short.mp4")
    os.truncate(work / "cut-short.mp4", (work / "cut-short.mp4").stat().st_size // 2)
    (work / "no.mp4").write_bytes(b"no video" * 100)
    plain, no_unit = _with_depth("", "plain"), {"depth_units_per_metre": None}
    media_alone = {"depth_pattern": None, **no_unit}
    entries = (
        _with_depth("cut", "cut"),
        _with_depth("depth-upside-down", "upside-down"),
        _with_depth("depth-of-many-units", "units"),
        _with_depth("depth-empty", "empty"),
        _with_depth("depth-fewer-files", "fewer"),
        plain | {"clip_id": "depth-without-unit"} | no_unit,
        plain | {"clip_id": "depth-of-rays-without-lens", "depth_kind": "ray_distance"},
        plain | {"clip_id": "no-depth"} | media_alone,
        plain | {"clip_id": "no-depth-at-rest", "media_path": "still/rgb.mp4"} | media_alone,
        plain | {"clip_id": "too-short", "start_s": 1.0},
        plain | {"clip_id": "media-cut-short", "media_path": "cut-short.mp4"},
        plain | {"clip_id": "media-unreadable", "media_path": "no.mp4"},
        plain | {"clip_id": "media-missing", "media_path": "nothing.mp4"},
    )
    return Run(name="away", recipe="rgbd", entries=entries)


def _posed(work: Path) -> Run:
    plain = work / "plain"

    def late(poses: NDArray) -> NDArray:
        return poses[np.clip(np.arange(len(poses)) - 3, 0, None)]

    def longer(poses: NDArray) -> NDArray:
        return np.concatenate([poses[:, :3] * [1, 1, 1, 1.3], poses[:, 3:]], axis=1)

    lens = np.loadtxt(plain / "intrinsics.csv", delimiter=",", skiprows=1)
    wrong = lens * [1.25, 1.25, 1, 1]
    np.savetxt(
        plain / "wrong.csv", wrong, fmt="%.9g", delimiter=",", header="fx,fy,cx,cy", comments=""
    )  # of another lens
    true, metric = "plain/poses_c2w.txt", {"poses_metric": True}
    given = {"intrinsics_path": "plain/intrinsics.csv"}

    def entry(clip_id: str, poses: str | None, **fields: Any) -> Entry:
        return _with_depth(clip_id, "plain", camera_to_world_path=poses, **fields)

    no_depth = {"depth_pattern": None, "depth_units_per_metre": None}
    entries = (
        entry("poses-true", true, **metric, **given),
        entry("poses-without-lens", true, **metric),
        entry("poses-of-another-unit", _poses(plain, "unit.txt", longer), **given),
        entry("poses-alone", true, **metric, **given, **no_depth),
        entry("poses-longer", "plain/unit.txt", **metric, **given),
        entry("poses-inverse", _poses(plain, "inverse.txt", np.linalg.inv), **metric, **given),
        entry("poses-late", _poses(plain, "late.txt", late), **metric, **given),
        entry("poses-of-another-lens", true, intrinsics_path="plain/wrong.csv", **metric),
        entry("poses-too-many", "plain/twice.txt", **metric),
        entry("lens-alone", None, **given),
        entry("neither-poses-nor-lens", None),
    )
    _poses(plain, "twice.txt", lambda p: np.concatenate([p, p]))
    return Run(name="posed", recipe="posed", entries=entries)


def _anchored(work: Path, clip: RenderedClip) -> Run:
    """Depth in a unit that nobody declares, and metric depth of single frames with errors of its own."""
    (work / "walk" / "metric").mkdir()
    for i in range(0, len(clip), 4):
        rng = np.random.default_rng([5, i])
        depth = clip.depth_m(i, size=(96, 160)) * np.float32(np.exp(0.05 * rng.standard_normal()))
        write_depth_png(work / "walk" / "metric" / f"{i:06d}.png", depth, units_per_metre=1000.0)
    anchored = _with_depth("anchored", "walk", depth_units_per_metre=None) | {
        "anchor_depth_pattern": "walk/metric/{frame:06d}.png",
        "anchor_units_per_metre": 1000,
    }
    entries = (
        anchored,
        anchored | {"clip_id": "anchor-without-unit", "anchor_units_per_metre": None},
        anchored
        | {"clip_id": "anchor-missing", "anchor_depth_pattern": None, "anchor_units_per_metre": None},
    )
    return Run(name="anchored", recipe="demo", entries=entries)


def _rendered(work: Path) -> Run:
    """Sequence and anchor of the renderer itself."""
    (work / "room.yaml").write_text(yaml.safe_dump(SMALL | {"zoom": "ramp", "zoom_factor": 1.3}))
    entries = tuple(
        {"clip_id": f"room-{seed}", "media_path": "room.yaml", "media_kind": "rendered", "render_seed": seed}
        for seed in (3, 8)
    )
    settings = ("annotate.geometry.sequence=rendered", "annotate.geometry.anchor=rendered")
    return Run(name="rendered", recipe="rgbd", settings=settings, entries=entries)


def _recordings() -> Run:
    entries = (
        _with_depth("office", "data/rgbd-office-a", end_s=1.2),
        _with_depth("office-zoom", "data/rgbd-office-a", media_path="data/rgbd-office-a/zoom.mp4", end_s=1.2),
        _with_depth("kitchen", "data/rgbd-redkitchen", start_s=3.0, end_s=4.1, depth_view=0.9),
        _with_depth(
            "desk",
            "data/rgbd-tum-mini",
            media_path="data/rgbd-tum-mini/rgb",
            source_fps=16,
            depth_units_per_metre=5000,
        ),
    )
    return Run(name="recordings", recipe="rgbd", settings=("annotate.decode.min_frames=10",), entries=entries)


def _without_depth() -> Run:
    """Recordings of colour alone under a recipe that wants depth."""
    names = {
        "at-rest": "static-euroc/gray.mp4",
        "slow-source": "kitti-straight/gray.mp4",
        "cut-recording": "clips/nasa-cut.mp4",
        "turned-media": "edge-videos/nasa_13013_rotated.mp4",
    }
    entries = tuple({"clip_id": name, "media_path": f"data/{path}"} for name, path in names.items())
    return Run(name="bare", recipe="rgbd", settings=("annotate.decode.max_frames=60",), entries=entries)


def _stand_ins(work: Path) -> Iterator[Run]:
    """Networks of random numbers through the recipe of plain videos, and beside other kinds of metric depth."""
    tiny = (
        "annotate.geometry.weights=stand_in",
        "annotate.geometry.stand_in_size=tiny",
        "annotate.geometry.device=cpu",
        "annotate.geometry.pi3x.max_pixels=5000",
    )
    media = {
        "guessed-walk": {"media_path": "walk/rgb.mp4"},
        "guessed-lens-held": {"media_path": "plain/rgb.mp4", "intrinsics_path": "plain/intrinsics.csv"},
        "guessed-cut": {"media_path": "cut/rgb.mp4"},
        "guessed-too-short": {"media_path": "plain/rgb.mp4", "start_s": 1.0},
        "guessed-unreadable": {"media_path": "no.mp4"},
    }
    entries = tuple({"clip_id": name, **fields} for name, fields in media.items())
    yield Run(name="guessed", recipe="estimate", settings=tiny, entries=entries)
    mixed = _with_depth("guessed-beside-given", "walk", depth_units_per_metre=None) | {
        "anchor_depth_pattern": "walk/metric/{frame:06d}.png",
        "anchor_units_per_metre": 1000,
    }
    settings = (*tiny, "annotate.geometry.anchor=given")
    yield Run(name="mixed", recipe="estimate", settings=settings, entries=(mixed,))
    settings = (*tiny, "annotate.geometry.anchor=none")
    yield Run(name="no-metres", recipe="estimate", settings=settings, entries=(entries[0],))


# --- simulated networks -------------------------------------------------------------------------


def simulated_rows(work: Path) -> Iterator[Row]:
    """Networks that err in a known way in place of those of a recipe; everything behind them is what recipes run."""
    sys.path.insert(0, str(ROOT / "tests" / "annotate"))
    simulator = import_module("simulator")
    calm = simulator.Errors(outlier_frames=0.0, metric_outliers=0.0)
    windows = simulator.KeyframesConfig(window=8, step=4, max_one_pass=8)
    cases: dict[str, tuple[Entry, Any, Entry]] = {
        "simulated-walk": ({"num_frames": 49}, simulator.Errors(seed=1), {}),  # several windows, joined
        "simulated-zoom": ({"zoom": "ramp", "zoom_factor": 1.5, "seed": 5}, calm, {}),
        "simulated-at-rest": ({"motion": "static"}, calm, {}),
        "simulated-few-metres": ({}, calm, {"scale": {"min_frames": 40}}),
        "simulated-lens-held": ({"seed": 5}, calm, {}),
    }
    for name, (fields, errors, config) in cases.items():
        path = work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(SMALL | fields))
        truth = simulator.rendered_truth(render_clip(RenderConfig.model_validate(SMALL | fields)))
        lens = work / "plain" / "intrinsics.csv" if name.endswith("lens-held") else None
        clip = ClipRef(
            clip_id=name,
            source="simulated",
            original_id=name,
            media_kind="rendered",
            media_path=path,
            media_root=work,
            given=GivenGeometry(intrinsics_path=lens),
        )
        yield annotate_clip(
            clip,
            AnnotateConfig.model_validate(FEWER | config),
            mode="estimate",
            recipe_hash="0" * 16,
            estimators=simulator.simulated(truth, errors, windows),
        )
