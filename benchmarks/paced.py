"""Networks that run in full for their cost while simulated ones answer, for benchmarks of whole recipes.

Networks of random numbers cost what the released ones cost, but random depth ends a bundle early. So here the network
runs on the real images, its answer is thrown away, and the simulator of tests/annotate/simulator.py gives one that a
clip of known truth deserves. Its answers are made once a process and kept, or once for all of them (`prepare`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry import moge2 as moge2_module
from theodolite.annotate.geometry import pi3x as pi3x_module
from theodolite.annotate.geometry.choose import metric_anchor, sequence_geometry
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.moge2 import MoGe2Anchor, MoGe2Stream, RawImages
from theodolite.annotate.geometry.pi3x import Pi3XGeometry
from theodolite.annotate.geometry.window_maps import RawWindow
from theodolite.annotate.geometry.windows import KeyframeStream, choose_keyframes, plan_windows
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sfm import processes
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.rows import Row
from theodolite.dataset.words import Mode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from simulator import Errors, SimulatedMoGe2, SimulatedPi3X, rendered_truth

ANSWER_SIZE = (189, 336)
"""Of the simulated maps: half of the network's, at which its answers are kept anyway."""


class Paced:
    """Runs a real network for its cost and gives the answers of a simulated one.

    Args:
        answers: folder that keeps answers for all processes; None: each process makes its own.
        done: file that gets a line when the network has run.
    """

    def __init__(self, real, simulated, answers: Path | None = None, done: Path | None = None) -> None:
        self.real, self.simulated, self.answers, self.done = real, simulated, answers, done
        self.name, self.device = "paced", real.device
        self.provenance = replace(real.provenance, stand_in=True)
        self.made: dict[tuple[int, ...], RawWindow | RawImages] = {}
        self.lock = threading.Lock()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.real.input_size(height, width)

    def predict(self, images: torch.Tensor, frame):
        key = tuple(map(int, frame))
        with self.lock:
            if key not in self.made:
                found = answer(self.simulated, frame, self.answers)
                for name, value in vars(found).items():
                    object.__setattr__(found, name, value.to(self.device))
                self.made[key] = found
        start = time.time()
        self.real.predict(images, frame)
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        if self.done is not None:
            line = {
                "network": type(self.real).__name__,
                "frames": len(frame),
                "began": start,
                "ended": time.time(),
            }
            with self.done.open("a") as out:
                out.write(json.dumps(line) + "\n")
        found = self.made[key]
        return as_large(found, images) if isinstance(found, RawWindow) else found


def as_large(found: RawWindow, images: torch.Tensor) -> RawWindow:
    """Answers with as many pixels as the network's own: what reads them takes as long."""
    size = images.shape[-2:]
    points = F.interpolate(found.points.permute(0, 3, 1, 2).float(), size)
    return RawWindow(
        camera_to_world=found.camera_to_world,
        points=points.permute(0, 2, 3, 1).contiguous(),
        confidence=F.interpolate(found.confidence[:, None].float(), size)[:, 0],
    )


def answer(simulated, frame, folder: Path | None):
    """What a simulated network says of clip frames `frame`, from `folder` if it is there."""
    pi3x = isinstance(simulated, SimulatedPi3X)
    path = None if folder is None else answer_path(folder, "pi3x" if pi3x else "moge2", list(map(int, frame)))
    if path is not None and path.is_file():
        return (RawWindow if pi3x else RawImages)(**torch.load(path))
    blank = torch.zeros((len(frame), 3, *simulated.size), dtype=torch.uint8)
    found = simulated.predict(blank, frame)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_native_id()}")
        torch.save(vars(found), partial)
        partial.rename(path)
    return found


def answer_path(folder: Path, name: str, frames: list[int]) -> Path:
    """Of the answer of a simulated network, in a folder for one rendered clip."""
    return folder / f"{name}-{hashlib.sha256(repr(frames).encode()).hexdigest()[:24]}.pt"


def prepare(
    config: AnnotateConfig, rendered: RenderConfig, lengths: Sequence[int], folder: Path, jobs: int
) -> None:
    """Answers about windows for clips of so many frames (at 16 a second) into `folder`, by several processes."""
    tasks = []
    for length in lengths:
        keyframes = choose_keyframes(length, 16.0, config.geometry.keyframes.fps)
        windows = (keyframes[w].tolist() for w in plan_windows(len(keyframes), config.geometry.keyframes))
        tasks += [(rendered.model_dump_json(), w, folder) for w in windows]
    tasks = [task for task in tasks if not answer_path(folder, "pi3x", task[1]).is_file()]
    if tasks:
        with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
            pool.starmap(_prepared, tasks, chunksize=1)


def _prepared(rendered_json: str, frames: list[int], folder: Path) -> None:
    torch.set_num_threads(1)
    answer(_simulated(rendered_json)[0], np.array(frames), folder)


@cache
def _simulated(rendered_json: str) -> tuple[SimulatedPi3X, SimulatedMoGe2]:
    rendered = RenderConfig.model_validate_json(rendered_json)
    step = max(1.0, rendered.fps / 16.0)
    index = np.floor(np.arange(int((rendered.num_frames - 1) / step) + 1) * step + 0.5).astype(int)
    truth = rendered_truth(render_clip(rendered), np.minimum(index, rendered.num_frames - 1))
    errors = Errors(seed=0)
    return SimulatedPi3X(truth, errors, ANSWER_SIZE), SimulatedMoGe2(truth, errors, ANSWER_SIZE)


@contextmanager
def quick_stand_ins() -> Iterator[None]:
    """Stand-in networks whose random numbers repeat: to draw 1.3 billion of them takes a process half a minute."""
    few = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).repeat(2)
    half = len(few) // 2

    def fill(network: torch.nn.Module, seed: int) -> None:
        for number, (name, x) in enumerate(network.state_dict().items()):
            if name.endswith(("image_mean", "image_std")):
                continue
            # Each begins at another place: layers that are all alike would let what they have in common grow.
            rest = few[7919 * number % half :][:half]
            noise = rest.repeat(-(-x.numel() // half))[: x.numel()].view(x.shape)
            if name.endswith("gamma"):
                x.copy_(0.2 + 0.05 * noise)
            elif x.ndim == 1:
                x.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise)
            else:
                x.copy_(noise / max(1, x[0].numel()) ** 0.5)

    with ExitStack() as patched:
        for module in (pi3x_module, moge2_module):
            patched.enter_context(patch.object(module, "fill_stand_in", fill))
        for layer in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d):
            patched.enter_context(patch.object(layer, "reset_parameters", lambda self: None))
        yield


class Streamed:
    """Estimators around paced networks."""

    name = "paced"

    def __init__(self, of, network) -> None:
        self.network, self.config = network, of.config

    def start(self, clip, frames, *rest):
        stream = KeyframeStream if not rest else MoGe2Stream
        return stream(self.network, self.config, clip, frames, *rest)


def bench_clip(seed: int, fps: float, num_frames: int) -> RenderConfig:
    """The clip that a benchmark's media file shows: 1280x720, handheld, a slow zoom of 1.3x."""
    return RenderConfig(
        width=1280, height=720, num_frames=num_frames, fps=fps, seed=seed, zoom="in_out", zoom_factor=1.3,
        zoom_period_s=20.0, noise_sigma=1.5,
    )  # fmt: skip


@cache
def _paced(config_json: str, rendered_json: str, answers: Path | None, done: Path) -> Estimators:
    config = AnnotateConfig.model_validate_json(config_json)
    pi3x, moge2 = _simulated(rendered_json)
    with quick_stand_ins():
        of, metric = sequence_geometry(config.geometry), metric_anchor(config.geometry)
    assert isinstance(of, Pi3XGeometry)
    assert isinstance(metric, MoGe2Anchor)
    streamed: Any = Streamed  # takes the part of either kind of estimator
    return Estimators(
        sequence=streamed(of, Paced(of.network, pi3x, answers, done)),
        anchor=streamed(metric, Paced(metric.network, moge2, answers, done)),
    )


_building = threading.Lock()


@cache
def _stream(clips: int) -> None:
    processes._streams = threading.BoundedSemaphore(clips)


def annotate(
    clip: ClipRef,
    config: AnnotateConfig,
    *,
    mode: Mode,
    recipe_hash: str,
    rendered: RenderConfig,
    log: Path,
    answers: Path | None = None,
    streams: int | None = None,
) -> Row:
    """`annotate_clip` with paced networks; adds a line with start, end and stages to `log`.

    Args:
        answers: see `Paced`.
        streams: clips that a worker decodes and tracks at a time; None: as it is in production.
    """
    began, cpu = time.time(), time.thread_time()
    with _building:
        if streams is not None:
            _stream(streams)
        done = log.with_name("networks.jsonl")
        estimators = _paced(config.model_dump_json(), rendered.model_dump_json(), answers, done)
    row = annotate_clip(clip, config, mode=mode, recipe_hash=recipe_hash, estimators=estimators)
    reserved = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    line = {
        "clip": clip.clip_id, "began": began, "ended": time.time(), "verdict": row.verdict,
        "reasons": row.reasons, "error": row.error, "stages": row.stage_wall_s, "reserved_gib": reserved,
        "thread_cpu": time.thread_time() - cpu, "frames": clip.max_frames,
    }  # fmt: skip
    with log.open("a") as out:
        out.write(json.dumps(line) + "\n")
    return row
