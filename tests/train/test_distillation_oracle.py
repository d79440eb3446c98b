"""Losses of distillation and of flow matching, and their gradients, against what the released code made of a toy
network from the same draws (`record_nvlabs_distillation.py`), and the times that both draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from theodolite.model.config import chunk_ranges, chunk_starts
from theodolite.train.objective import (
    ChunkTimes,
    Draws,
    ObjectiveConfig,
    draw_chunk_levels,
    flow_matching_loss,
)
from theodolite.train.ode import ode_loss
from theodolite.train.self_forcing import (
    ScoreDraws,
    SelfForcingConfig,
    fake_score_loss,
    generator_loss,
    shifted_time,
)
from theodolite.train.student import RollOutDraws, StudentConfig, roll_out
from torch import Tensor

from .distillation_cases import FORCING, LOOSE, SIZES, inputs, levels_and_noise, toys
from .toy_network import Toy

Recorded = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with np.load(Path(__file__).parent / "nvlabs_sana_distillation.npz") as file:
        return dict(file)


def drawn(recorded: Recorded, name: str) -> list[Tensor]:
    return [torch.from_numpy(recorded[k]) for k in sorted(recorded) if k.startswith(f"{name}.drawn.")]


def compare(recorded: Recorded, name: str, loss: Tensor, networks: Mapping[str, Toy]) -> None:
    """The loss and every gradient to 1e-5."""
    assert float(loss.detach()) == pytest.approx(float(recorded[f"{name}.loss"]), rel=1e-5)
    loss.backward()
    wanted = {
        k.removeprefix(f"{name}.grad."): v for k, v in recorded.items() if k.startswith(f"{name}.grad.")
    }
    found = {
        f"{role}.{n}": p.grad
        for role, network in networks.items()
        for n, p in network.named_parameters()
        if p.grad is not None
    }
    assert set(found) == set(wanted)
    assert wanted
    for key, grad in wanted.items():
        torch.testing.assert_close(found[key], torch.from_numpy(grad), rtol=1e-5, atol=1e-6, msg=key)


def roll_out_draws(numbers: list[Tensor], config: StudentConfig) -> tuple[RollOutDraws, ScoreDraws]:
    """From what was drawn in order: the exit, the first noise, each chunk's further noise, time and noise of scores."""
    exit_step, start, *rest = numbers
    exit_, (index, noise) = int(exit_step), rest[-2:]
    again = iter(rest[:-2])
    steps = [start, *(torch.zeros_like(start) for _ in range(exit_))]
    for first, end in chunk_ranges(config.frames, config.starts):
        for step in range(1, exit_ + 1):
            steps[step][:, :, first:end] = next(again)
    assert next(again, None) is None
    judged = ScoreDraws(shifted_time(SelfForcingConfig(), index[:, 0]), noise)
    return RollOutDraws(exit_, torch.stack(steps)), judged


@pytest.mark.parametrize("step", ["generator", "critic"])
@pytest.mark.parametrize("case", list(FORCING))
def test_self_forcing_is_the_released_one(recorded: Recorded, case: str, step: str) -> None:
    frames, _ = FORCING[case]
    windowed = case == "windowed"
    config = StudentConfig(
        frames=frames, window_chunks=1 if windowed else None, sink_chunks=1 if windowed else 0
    )
    x, networks = inputs(frames), toys()
    draws, judged = roll_out_draws(drawn(recorded, f"{case}.{step}"), config)
    student, fake, real = (networks[role] for role in ("student", "fake", "real"))
    video = roll_out(student, x.asked, config, draws, gradient=step == "generator")
    if step == "generator":
        scores = (fake, real)
        loss = generator_loss(video, x.asked, x.negative, scores, SelfForcingConfig(), judged)
    else:
        assert not video.requires_grad
        loss = fake_score_loss(fake, video, x.asked, judged)
    compare(recorded, f"{case}.{step}", loss, networks)


@pytest.mark.parametrize("seed", LOOSE)
def test_regression_is_the_released_one(recorded: Recorded, seed: int) -> None:
    config = StudentConfig(frames=SIZES["ode"])
    x, networks = inputs(config.frames), toys()
    chunks = [
        index.expand(1, end - first)
        for index, (first, end) in zip(
            drawn(recorded, f"ode{seed}"), chunk_ranges(config.frames, config.starts), strict=True
        )
    ]
    index = torch.cat(chunks, dim=1)
    index[:, 0] = len(config.times) - 1
    loss = ode_loss(networks["student"], x.batch, config, index)
    compare(recorded, f"ode{seed}", loss, networks)


@pytest.mark.parametrize("case", ["clip", "chunks"])
def test_flow_matching_is_the_released_one(recorded: Recorded, case: str) -> None:
    x, networks = inputs(SIZES["ode"]), toys()
    index, noise = levels_and_noise(case)
    yes, no = torch.tensor([True]), torch.tensor([False])
    config = ObjectiveConfig(chunks=ChunkTimes() if case == "chunks" else None)
    loss = flow_matching_loss(networks["student"], x.batch, config, Draws(index, yes, no, noise))
    compare(recorded, f"flow.{case}", loss, networks)


@pytest.mark.slow
def test_times_of_a_minute_are_distributed_like_the_released_ones(recorded: Recorded) -> None:
    """Mean and covariance of the levels of 40 chunks, shares of clean chunks and of one level for all, from 20,000
    draws here and there: within five standard errors of their difference."""
    count, chunks = 20_000, len(chunk_starts(121))
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(count, generator=generator)
    anchor = (1000 * torch.sigmoid(z)).long().clamp_max(999)
    index = draw_chunk_levels(ChunkTimes(), anchor, chunks, generator).double()
    mean, covariance = (torch.from_numpy(recorded[f"times.{k}"]).double() for k in ("mean", "covariance"))
    error = (2 * covariance.diagonal() / count).sqrt()
    assert ((index.mean(0) - mean).abs() < 5 * error).all()
    variance = covariance.diagonal()
    # Levels are bounded, so that a covariance errs by no more than a normal one's times a small factor.
    spread = ((variance[:, None] * variance + covariance.square()) * 2 / count).sqrt()
    assert ((index.T.cov() - covariance).abs() < 8 * spread).all()
    for found, wanted in (
        ((index == 0).double().mean(0), torch.from_numpy(recorded["times.clean"])),
        ((index[:, 0] == index[:, -1]).double().mean()[None], torch.tensor([float(recorded["times.same"])])),
    ):
        assert ((found - wanted).abs() < 5 * math.sqrt(2 * 0.25 / count)).all()
