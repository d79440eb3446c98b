"""The `annotate` section of a recipe: one model a stage, each defined beside the code that it steers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..dataset.strict import Strict
from .frames.base import DecodeConfig
from .frames.quality import QualityConfig
from .geometry.config import GeometryConfig
from .scale.records import BridgeConfig, ScaleConfig
from .sfm.config import BundleConfig
from .tracks.records import TracksConfig
from .verdict.config import GatesConfig


class ExecutorConfig(Strict):
    """How clips are spread over workers. Changes nothing in the rows, so it is left out of the recipe's hash."""

    clips_in_flight: Annotated[int, Field(ge=1, le=64)] | None = None
    """Clips (of as many shards) that one local worker has under way at once: while some wait for the GPU or a solver,
    others are decoded and tracked. Null: three more than solvers where a GPU runs networks; else 1."""
    solver_processes: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes beside a worker that solve its bundles; 0: the worker itself does. Null: three quarters of the worker's
    cores where a GPU runs networks; else 0."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """Workers that a clip may kill before it is given up (`worker_died`)."""
    clip_timeout_s: Annotated[float, Field(gt=0)] = 7200.0
    """Longest that a clip may take (`timed_out`): a stalled mount or a decoder that does not return ends its worker."""
    memory_per_worker_gib: Annotated[float, Field(gt=0)] | None = None
    """A local worker that grows beyond this is ended; null: the machine's memory, shared equally."""


class AnnotateConfig(Strict):
    """Everything that turns a clip into a row."""

    decode: DecodeConfig = DecodeConfig()
    geometry: GeometryConfig = GeometryConfig()
    tracks: TracksConfig = TracksConfig()
    scale: ScaleConfig = ScaleConfig()
    bridge: BridgeConfig = BridgeConfig()
    bundle: BundleConfig = BundleConfig()
    gates: GatesConfig = GatesConfig()
    quality: QualityConfig | None = None
    """Measure the pictures for `theodolite filter`, while they are decoded; null: do not."""
    executor: ExecutorConfig = ExecutorConfig()
