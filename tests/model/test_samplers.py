"""Schedules and loops against what the released samplers gave for the same stand-in of a network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from theodolite.model.context import Cameras, Operators
from theodolite.model.samplers import (
    ChunkSchedule,
    Guidance,
    StudentSchedule,
    Text,
    flow_sigmas,
    noise_latents,
    sample_bidirectional,
    sample_chunk_causal,
    stream_distilled,
    streaming_ranges,
)

from .cases import TINY, relative, tiny_inputs, tiny_model

RECORDED = np.load(Path(__file__).with_name("nvlabs_sana_samplers.npz"))
"""From NVlabs/Sana (June 2026) with diffusers 0.42.1: sigmas, and final latents of the three loops."""


def velocity(latents: torch.Tensor, times: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Stands for the network: depends on latents of all frames, each frame's whole time and the prompt."""
    whole = times.long().float()[:, None, :, None, None]
    seen = latents.cumsum(2) / torch.arange(1, latents.shape[2] + 1)[:, None, None]
    return (
        torch.tanh(0.7 * latents + 0.3 * seen)
        + 0.001 * whole
        + prompt.mean(dim=(1, 2))[:, None, None, None, None]
    )


class _StandIn:
    """Takes the calls that samplers make and keeps what they were told."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, latents, times, text, *, text_mask=None, cameras=None, chunk_starts=None):
        self.calls.append(dict(times=times.clone(), starts=chunk_starts, frames=latents.shape[2]))
        return velocity(latents, times, text)

    def start_stream(self, **options):
        self.options = options
        return None

    def forward_chunk(self, latents, times, text, cache, *, text_mask=None, cameras=None, save=False):
        self.calls.append(dict(times=times.clone(), save=save, frames=latents.shape[2]))
        return velocity(latents, times, text)


def stand_in() -> Any:
    """In the place of a network."""
    return _StandIn()


def start(frames: int = 13) -> tuple[torch.Tensor, Text, Guidance]:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 3, frames, 2, 2, generator=generator)
    prompt, empty = torch.randn(2, 1, 5, 4, generator=generator)
    return latents, Text(prompt), Guidance(Text(empty), scale=5.0)


@pytest.mark.parametrize(("steps", "shift"), [(60, 9.8), (60, 8.0), (10, 9.95), (1, 3.0)])
def test_sigmas(steps: int, shift: float) -> None:
    found = flow_sigmas(steps, shift)
    assert found.dtype == np.float32
    assert np.array_equal(found, RECORDED[f"sigmas_{steps}_{shift}"])


def test_last_level_of_the_released_schedule() -> None:
    assert flow_sigmas(60, 9.8)[-2] == pytest.approx(0.0877, abs=5e-5)
    assert flow_sigmas(60, 8.0)[-2] == pytest.approx(0.0602, abs=5e-5)


def test_bidirectional_loop() -> None:
    latents, text, guidance = start()
    model, seen = stand_in(), []
    out = sample_bidirectional(
        model, latents, text, guidance=guidance, steps=10, progress=lambda i, n: seen.append((i, n))
    )
    assert relative(out, torch.from_numpy(RECORDED["bidirectional"])) < 1e-6
    assert torch.equal(out[:, :, 0], latents[:, :, 0])
    assert seen == [(i + 1, 10) for i in range(10)]
    assert len(model.calls) == 20
    assert all(call["times"][0, 0] == 0 for call in model.calls)


def test_chunk_causal_loop() -> None:
    latents, text, guidance = start()
    model = stand_in()
    out = sample_chunk_causal(model, latents, text, guidance=guidance, schedule=ChunkSchedule(steps=8))
    assert relative(out, torch.from_numpy(RECORDED["chunk_causal"])) < 1e-6
    # Four chunks set out at steps 0, 2, 4, 6; finished ones stay at time 0.
    frames = [call["frames"] for call in model.calls[::2]]
    assert frames == [4, 4, 7, 7, 10, 10, 13, 13, 13, 13, 13, 13, 13, 13]
    assert model.calls[-1]["starts"] == (0, 4, 7, 10)
    assert model.calls[-1]["times"][0, :10].tolist() == [0.0] * 10


def test_chunk_causal_loop_at_half_an_interval() -> None:
    latents, text, guidance = start()
    out = sample_chunk_causal(
        stand_in(), latents, text, guidance=guidance, schedule=ChunkSchedule(steps=8, interval=0.5)
    )
    assert relative(out, torch.from_numpy(RECORDED["chunk_causal_half"])) < 1e-6


def test_student_loop() -> None:
    latents, text, _ = start()
    before = latents.clone()
    model = stand_in()
    chunks = list(stream_distilled(model, latents, text))
    assert relative(torch.cat(chunks, dim=2), torch.from_numpy(RECORDED["student"])) < 1e-6
    assert [c.shape[2] for c in chunks] == [4, 3, 3, 3]
    assert torch.equal(latents, before)
    assert [call["save"] for call in model.calls] == [False] * 4 + [True] + ([False] * 4 + [True]) * 3
    assert [int(call["times"][0, -1]) for call in model.calls[:5]] == [1000, 960, 889, 727, 0]
    assert model.options == dict(window_chunks=1, sink_chunks=1)


def test_chunks_come_while_later_ones_are_still_noise() -> None:
    latents, text, _ = start()
    model = stand_in()
    next(stream_distilled(model, latents, text))
    assert len(model.calls) == 5


@pytest.mark.parametrize(("frames", "first"), [(121, 4), (13, 4), (12, 3), (14, 5), (3, 3)])
def test_the_first_chunk_takes_the_remainder(frames: int, first: int) -> None:
    ranges = streaming_ranges(frames)
    assert ranges[0] == (0, first)
    assert all(b - a == 3 for a, b in ranges[1:])
    assert ranges[-1][1] == frames
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_guidance_in_an_interval_of_the_steps_only() -> None:
    latents, text, guidance = start()
    model = stand_in()
    part = Guidance(guidance.empty, 5.0, first=0.2, last=0.5)
    sample_bidirectional(model, latents, text, guidance=part, steps=10)
    assert len(model.calls) == 10 + 3
    without = sample_bidirectional(stand_in(), latents, text, steps=10)
    one = sample_bidirectional(stand_in(), latents, text, guidance=Guidance(guidance.empty, 1.0), steps=10)
    assert torch.equal(without, one)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, t: sample_bidirectional(stand_in(), x, t, steps=0), "at least one step"),
        (lambda x, t: sample_bidirectional(stand_in(), x, t, shift=0), "positive shift"),
        (lambda x, t: sample_chunk_causal(stand_in(), x, t, schedule=ChunkSchedule(interval=0)), "interval"),
        (
            lambda x, t: sample_chunk_causal(stand_in(), x, t, schedule=ChunkSchedule(starts=(0, 13))),
            "chunk starts",
        ),
        (
            lambda x, t: list(
                stream_distilled(stand_in(), x, t, schedule=StudentSchedule(times=(1000, 500)))
            ),
            "end in 0",
        ),
        (
            lambda x, t: list(
                stream_distilled(stand_in(), x, t, schedule=StudentSchedule(times=(500, 900, 0)))
            ),
            "fall strictly",
        ),
        (lambda x, t: list(stream_distilled(stand_in(), x[:, :, :2], t)), "no chunk of 3"),
        (lambda x, t: Guidance(t, first=0.6, last=0.5), "first <= last"),
        (lambda x, t: noise_latents(tiny_model(), x, 13, None), "image's latent"),
    ],
)
def test_bad_settings_are_refused(call, named: str) -> None:
    latents, text, _ = start()
    with pytest.raises(ValueError, match=named):
        call(latents, text)


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "sink", "cameras"), [(1, 1, True), (2, 0, True), (2, 1, False)])
def test_replayed_graphs_give_the_same_clip(window: int, sink: int, cameras: bool) -> None:
    model = tiny_model(operators=Operators()).cuda()
    inputs = tiny_inputs(25, batch=1)
    given = inputs["cameras"]
    seen = None
    if cameras:
        seen = Cameras(*(t.cuda() for t in (given.camera_to_world, given.intrinsics, given.plucker)))
    image = torch.randn(1, TINY.latent_channels, 1, 2, 3).cuda()
    latents = noise_latents(model, image, 25, torch.Generator("cuda").manual_seed(0))
    text = Text(inputs["text"].cuda(), inputs["text_mask"].cuda())

    schedule = StudentSchedule(window_chunks=window, sink_chunks=sink)

    def run(graphs: bool) -> torch.Tensor:
        chunks = stream_distilled(model, latents, text, cameras=seen, schedule=schedule, graphs=graphs)
        return torch.cat([c.clone() for c in chunks], dim=2)

    eager = run(False)
    assert relative(run(True), eager) < 1e-5
    with pytest.raises(ValueError, match="CUDA graphs"):
        next(
            stream_distilled(model, latents, text, schedule=StudentSchedule(window_chunks=None), graphs=True)
        )


def test_graphs_are_refused_without_a_gpu() -> None:
    latents, text, _ = start()
    with pytest.raises(ValueError, match="CUDA graphs"):
        next(stream_distilled(stand_in(), latents, text, graphs=True))


@pytest.mark.slow
def test_the_network_through_all_three_loops() -> None:
    """Seeds give the same clip again, another one with another seed, and the image stays."""
    model, inputs = tiny_model(), tiny_inputs(10, batch=1)
    image = torch.randn(1, TINY.latent_channels, 1, 2, 3)
    text = Text(inputs["text"])

    def run(seed: int):
        latents = noise_latents(model, image, 10, torch.Generator().manual_seed(seed))
        cameras = inputs["cameras"]
        return [
            sample_bidirectional(model, latents, text, cameras=cameras, steps=2),
            sample_chunk_causal(model, latents, text, cameras=cameras, schedule=ChunkSchedule(steps=3)),
            torch.cat(list(stream_distilled(model, latents, text, cameras=cameras)), dim=2),
        ]

    first, again, other = run(0), run(0), run(1)
    for a, b, c in zip(first, again, other, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
        assert relative(c, a) > 0.1
        assert torch.equal(a[:, :, :1], image)


@pytest.mark.parametrize("cameras", [False, True])
@pytest.mark.parametrize("shorter", [False, True])
def test_guidance_in_one_batch_is_guidance_one_after_the_other(cameras: bool, shorter: bool) -> None:
    """Also where the empty prompt has fewer tokens, or a mask of its own."""
    model = tiny_model()
    inputs = tiny_inputs(batch=1)
    empty = Text(0.5 * inputs["text"][:, : 4 if shorter else None])
    results = []
    for batched in (False, True):
        guidance = Guidance(empty, scale=3.0, last=0.7, batched=batched)
        found = sample_bidirectional(
            model,
            inputs["latents"],
            Text(inputs["text"], inputs["text_mask"] if cameras else None),
            guidance=guidance,
            cameras=inputs["cameras"] if cameras else None,
            steps=3,
        )
        results.append(found)
    # Sums in another order; softmax attention rounds its inputs to bfloat16, which can move them by a step.
    assert relative(results[1], results[0]) < 2e-4


def test_guidance_in_one_batch_asks_once_a_step() -> None:
    latents, text, guidance = start()
    model = stand_in()
    batched = Guidance(guidance.empty, scale=5.0, batched=True)
    found = sample_bidirectional(model, latents, text, guidance=batched, steps=4)
    assert len(model.calls) == 4
    other = sample_bidirectional(stand_in(), latents, text, guidance=guidance, steps=4)
    assert relative(found, other) < 1e-6


def test_geometry_is_computed_once_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    inputs = tiny_inputs(batch=1)
    calls = []
    true = model._geometry
    monkeypatch.setattr(model, "_geometry", lambda *args: calls.append(1) or true(*args))
    sample_bidirectional(
        model,
        inputs["latents"],
        Text(inputs["text"]),
        guidance=Guidance(Text(inputs["text"])),
        cameras=inputs["cameras"],
        steps=3,
    )
    assert len(calls) == 1
