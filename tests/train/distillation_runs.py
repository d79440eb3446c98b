"""Small runs that make the student, and what they begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from theodolite.dataset.encoded import open_encoded
from theodolite.model.checkpoint import load_world_model
from theodolite.model.samplers import Text
from theodolite.train.distillation import make_training
from theodolite.train.feed import make_batch
from theodolite.train.parallel import Ranks
from theodolite.train.recipe import TrainRecipe
from theodolite.train.start import start_model
from theodolite.train.student import Conditions, StudentConfig, cut
from theodolite.train.training import Training
from theodolite.train.trajectories import (
    TrajectoryOptions,
    TrajectoryRecord,
    begin,
    noise_of,
    teacher_trajectory,
    write_trajectory,
)

from .encoded_clips import MODEL, write_encoded

SMALL = MODEL.model_copy(update={"depth": 2, "softmax_every": 2, "softmax_bfloat16": False})
FRAMES = 7
STUDENT: dict[str, Any] = dict(frames=FRAMES, window_chunks=1, sink_chunks=1)


@dataclass(frozen=True)
class Given:
    """Clips, weights of the two kinds of network, trajectories."""

    data: Path
    bidirectional: Path
    causal: Path
    trajectories: Path


def content(**changes: Any) -> dict[str, Any]:
    return (
        dict(
            schema_version=1,
            name="x",
            data=dict(held_out=1, workers=0),
            optimiser=dict(lr=1e-3),
            steps=4,
            parallel=dict(recompute="nothing"),
        )
        | changes
    )


def write_paths(folder: Path, given: Path, causal: Path) -> Path:
    data = open_encoded(given)
    options = TrajectoryOptions(student=StudentConfig(frames=FRAMES), steps=4, guidance=2.0)
    begin(folder, TrajectoryRecord(teacher="small", autoencoder=data.encoding.autoencoder, options=options))
    model, _ = load_world_model(causal, dtype=torch.float32)
    states, mask = data.empty_caption()
    for i, window in enumerate(data.windows):
        batch = cut(make_batch([data.read(i)], data.encoding, "both"), FRAMES)
        noise = noise_of(window.id, batch.latents.shape, options)
        empty = Text(states[None].float(), mask[None])
        path = teacher_trajectory(model, Conditions.of(batch, FRAMES), empty, options, noise)
        write_trajectory(folder, window, path[0])
    return folder


def given_in(root: Path) -> Given:
    """Where `write_given` puts it."""
    weights = "weights/step-00000000.safetensors"
    return Given(root / "data", root / "bidirectional" / weights, root / "causal" / weights, root / "paths")


def write_given(root: Path, *, clips: int = 3, trajectories: bool = True) -> Given:
    """All of it, of random clips and first weights."""
    given = given_in(root)
    data = write_encoded(given.data, clips, frames=57)
    for name, chunks in (("bidirectional", None), ("causal", dict(size=3))):
        recipe = TrainRecipe(**content(model=SMALL, flow_matching=dict(chunks=chunks)))
        (weights,) = placed(recipe, data, root / name).export()
        assert weights in (given.bidirectional, given.causal)
    if trajectories:
        write_paths(given.trajectories, data, given.causal)
    return given


def recipe(given: Given, objective: str, **changes: Any) -> TrainRecipe:
    sections: dict[str, Any] = dict(
        ode_init=dict(trajectories=str(given.trajectories)),
        consistency_init=dict(levels=4),
        self_forcing=dict(real=str(given.bidirectional), generator_every=2),
    )
    return TrainRecipe(
        **content(
            objective=objective,
            start=dict(weights=str(given.causal)),
            student=STUDENT,
            **{objective: sections[objective]},
        )
        | changes
    )


def placed(recipe: TrainRecipe, data: Path, out: Path) -> Training:
    found = make_training(recipe, start_model(recipe), open_encoded(data), out)
    found.place(torch.device("cpu"), Ranks())
    return found
