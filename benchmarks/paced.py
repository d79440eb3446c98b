"""Networks that run in full for their cost while simulated ones answer, for benchmarks of whole recipes.

Networks of random numbers cost what the released ones cost, but random depth ends a bundle early. So here the network
runs on the real images, its answer is thrown away, and the simulator of tests/annotate/simulator.py gives one that a
clip of known truth deserves. Its answers are made once a process and kept.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.geometry.choose import metric_anchor, sequence_geometry
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.moge2 import MoGe2Anchor, MoGe2Stream, RawImages
from theodolite.annotate.geometry.pi3x import Pi3XGeometry
from theodolite.annotate.geometry.window_maps import RawWindow
from theodolite.annotate.geometry.windows import KeyframeStream
from theodolite.annotate.pipeline import annotate_clip
from theodolite.annotate.rendered.cameras import RenderConfig
from theodolite.annotate.rendered.render import render_clip
from theodolite.annotate.sources.clip import ClipRef, Mode
from theodolite.dataset.rows import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/annotate"))
from simulator import Errors, SimulatedMoGe2, SimulatedPi3X, rendered_truth

ANSWER_SIZE = (189, 336)
"""Of the simulated maps: half of the network's, at which its answers are kept anyway."""


class Paced:
    """Runs a real network for its cost and gives the answers of a simulated one."""

    def __init__(self, real, simulated) -> None:
        self.real, self.simulated = real, simulated
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
                blank = torch.zeros((len(frame), 3, *self.simulated.size), dtype=torch.uint8)
                found = self.simulated.predict(blank, frame)
                for name, value in vars(found).items():
                    object.__setattr__(found, name, value.to(self.device))
                self.made[key] = found
        self.real.predict(images, frame)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.made[key]


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
def _paced(config_json: str, rendered_json: str) -> Estimators:
    config = AnnotateConfig.model_validate_json(config_json)
    rendered = RenderConfig.model_validate_json(rendered_json)
    step = max(1.0, rendered.fps / 16.0)
    index = np.floor(np.arange(int((rendered.num_frames - 1) / step) + 1) * step + 0.5).astype(int)
    truth = rendered_truth(render_clip(rendered), np.minimum(index, rendered.num_frames - 1))
    errors = Errors(seed=0)
    of, metric = sequence_geometry(config.geometry), metric_anchor(config.geometry)
    assert isinstance(of, Pi3XGeometry)
    assert isinstance(metric, MoGe2Anchor)
    streamed: Any = Streamed  # takes the part of either kind of estimator
    return Estimators(
        sequence=streamed(of, Paced(of.network, SimulatedPi3X(truth, errors, ANSWER_SIZE))),
        anchor=streamed(metric, Paced(metric.network, SimulatedMoGe2(truth, errors, ANSWER_SIZE))),
    )


_building = threading.Lock()


def annotate(
    clip: ClipRef,
    config: AnnotateConfig,
    *,
    mode: Mode,
    recipe_hash: str,
    rendered: RenderConfig,
    log: Path,
) -> Row:
    """`annotate_clip` with paced networks; adds a line with start, end and stages to `log`."""
    began, cpu = time.time(), time.thread_time()
    with _building:
        estimators = _paced(config.model_dump_json(), rendered.model_dump_json())
    row = annotate_clip(clip, config, mode=mode, recipe_hash=recipe_hash, estimators=estimators)
    reserved = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    line = {
        "clip": clip.clip_id, "began": began, "ended": time.time(), "verdict": row.verdict,
        "reasons": row.reasons, "error": row.error, "stages": row.stage_wall_s, "reserved_gib": reserved,
        "thread_cpu": time.thread_time() - cpu,
    }  # fmt: skip
    with log.open("a") as out:
        out.write(json.dumps(line) + "\n")
    return row
