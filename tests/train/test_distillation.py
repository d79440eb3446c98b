"""Trainings that make the few-step student: what is continued is continued exactly, what does not fit is told."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from theodolite.dataset.encoded import open_encoded
from theodolite.model import blocks
from theodolite.model.checkpoint import load_world_model
from theodolite.model.config import chunk_ranges
from theodolite.model.network import WorldModel
from theodolite.model.samplers import Text
from theodolite.recipes import trajectories
from theodolite.recipes.trajectories import TrajectoryJob, run_trajectories
from theodolite.train.consistency import ConsistencyConfig, draw_consistency, level_times
from theodolite.train.distillation import Distillation
from theodolite.train.feed import make_batch
from theodolite.train.ode import draw_snapshots
from theodolite.train.parallel import recompute_blocks
from theodolite.train.recipe import TrainRecipe
from theodolite.train.self_forcing import SelfForcingConfig, draw_score, generator_loss
from theodolite.train.start import start_model
from theodolite.train.state import checkpoints
from theodolite.train.student import (
    Conditions,
    RollOutDraws,
    StudentConfig,
    draw_exit,
    roll_out,
)
from theodolite.train.training import Training
from theodolite.train.trajectories import (
    Trajectories,
    TrajectoryOptions,
    begin,
    levels_between,
    recorded,
    write_trajectory,
)

from .distillation_runs import FRAMES, SMALL, STUDENT, Given, content, placed, recipe, write_given
from .encoded_clips import write_encoded


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return write_given(tmp_path_factory.mktemp("distillation"))


def run(training: Training, steps: int) -> list[tuple[float, float, dict[str, float]]]:
    reports = []
    for micro in training.feed():
        report = training.take_step(micro)
        reports.append((report.loss, report.norm, report.more))
        if training.step == steps:
            return reports
    raise AssertionError


OBJECTIVES = ("ode_init", "consistency_init", "self_forcing")


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_is_the_run_that_was_not_stopped(given: Given, objective: str, tmp_path: Path) -> None:
    """All networks, both optimisers, averages, guards, draws: bit for bit; the student begins as stage 4 ended."""
    r = recipe(given, objective, ema=0.5, validation=dict(sample_clips=1))
    whole = placed(r, given.data, tmp_path / "whole")
    first, _ = load_world_model(given.causal)
    own = whole.model.state_dict()
    assert all(torch.equal(own[n], t) for n, t in first.state_dict().items())  # grows by copying all
    reports = run(whole, 3)
    assert all(math.isfinite(loss) and norm > 0 for loss, norm, _ in reports)
    part = placed(r, given.data, tmp_path / "parts")
    assert run(part, 1) == reports[:1]
    part.save()
    rest = placed(r, given.data, tmp_path / "parts")
    rest.restore(checkpoints(tmp_path / "parts" / "checkpoints")[-1])
    assert run(rest, 3) == reports[1:]
    for mine, theirs in zip(whole.state_parts(), rest.state_parts(), strict=True):
        a, b = mine.tensors(), theirs.tensors()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[n], b[n]) for n in a)
    assert whole.guard.state() == rest.guard.state()
    assert [o.guard.state() for o in whole.others()] == [o.guard.state() for o in rest.others()]
    measured = whole.validate()
    assert math.isfinite(measured["loss"])
    assert math.isfinite(measured["sampled_error"])
    exported = rest.export()
    student, _ = load_world_model(exported[0])
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), rest.model.parameters(), strict=True))
    if objective == "self_forcing":
        moved = [set(more) for _, _, more in reports]
        assert moved == [{"generator_loss", "generator_norm"}, set(), {"generator_loss", "generator_norm"}]
        assert exported[-1].name.endswith("-fake.safetensors")
        check_what_follows(given, exported, tmp_path)


def check_what_follows(given: Given, exported: list[Path], tmp_path: Path) -> None:
    """A longer roll-out takes both networks over; what is no student's or teacher's is refused by its stage."""
    longer = dict(real=str(given.bidirectional), fake=str(exported[-1]))
    found = placed(
        recipe(given, "self_forcing", start=dict(weights=str(exported[0])), self_forcing=longer),
        given.data,
        tmp_path / "longer",
    )
    assert isinstance(found, Distillation)
    fake, _ = load_world_model(exported[-1])
    for name, tensor in fake.state_dict().items():
        assert torch.equal(found.beside["fake"].state_dict()[name], tensor)
    for use, changes in (
        ("real score takes bidirectional", dict(self_forcing=dict(real=str(given.causal)))),
        ("self_forcing takes chunk-causal or distilled", dict(start=dict(weights=str(given.bidirectional)))),
        (
            "fake score takes bidirectional or fake-score",
            dict(self_forcing=dict(real=str(given.bidirectional), fake=str(exported[0]))),
        ),
    ):
        with pytest.raises(ValueError, match=use):
            placed(recipe(given, "self_forcing", **changes), given.data, tmp_path / "no")
    with pytest.raises(ValueError, match="are distilled weights; flow_matching takes"):
        start_model(TrainRecipe(**content(start=dict(weights=str(exported[0])))))


@pytest.fixture(scope="module")
def student(given: Given) -> WorldModel:
    return load_world_model(given.causal, dtype=torch.float32)[0]


def asked_of(given: Given) -> Conditions:
    data = open_encoded(given.data)
    return Conditions.of(make_batch([data.read(0)], data.encoding, "both"), FRAMES)


def draws(config: StudentConfig, exit_: int) -> RollOutDraws:
    shape = (exit_ + 1, 1, SMALL.latent_channels, config.frames, 2, 3)
    return RollOutDraws(exit_, torch.randn(shape, generator=torch.Generator().manual_seed(exit_)))


@pytest.mark.slow
@pytest.mark.parametrize("exit_", [1, 3])
def test_cached_roll_out_is_a_full_pass(given: Given, student: WorldModel, exit_: int) -> None:
    """Chunk by chunk through caches, against one pass over the clip up to each chunk: 1e-5 relative in float32 (1e-7 to
    2e-7 are seen). The released network rounds queries, keys and values of softmax layers to bfloat16, which makes a
    last digit of float32 a last digit of bfloat16 now and then: there 1e-4 (up to 1e-5 is seen)."""
    for rounding, allowed in ((False, 1e-5), (True, 1e-4)):
        model = WorldModel(student.config.model_copy(update={"softmax_bfloat16": rounding}))
        model.load_state_dict(student.state_dict())
        config, asked = StudentConfig(frames=FRAMES), asked_of(given)
        drawn = draws(config, exit_)
        video = roll_out(model, asked, config, drawn, gradient=False)
        expected = full_passes(model, asked, config, drawn)
        for frame in range(1, FRAMES):
            found, true = video[:, :, frame], expected[:, :, frame]
            assert float((found - true).norm()) < allowed * float(true.norm()), frame


def full_passes(
    model: WorldModel, asked: Conditions, config: StudentConfig, drawn: RollOutDraws
) -> torch.Tensor:
    """The roll-out without caches: every call is a pass over the clip up to its chunk."""
    clean = estimate = asked.image
    assert asked.cameras is not None
    for number, (first, end) in enumerate(chunk_ranges(FRAMES, config.starts)):
        x = drawn.noise[0, :, :, first:end]
        for step, time in enumerate(config.times[: drawn.exit + 1]):
            if step:
                x = torch.lerp(estimate, drawn.noise[step, :, :, first:end], time / 1000)
            before = clean if first else clean[:, :, :0]
            whole = torch.cat([before, x], dim=2)
            times = torch.zeros(1, end)
            times[:, first:] = time
            if first == 0:
                whole[:, :, :1], times[:, 0] = asked.image, 0
            with torch.no_grad():
                velocity = model(
                    whole,
                    times,
                    asked.text.states,
                    text_mask=asked.text.mask,
                    cameras=asked.cameras.of_frames(slice(end)),
                    chunk_starts=config.starts[: number + 1],
                )
            estimate = (whole - (times / 1000)[:, None, :, None, None] * velocity)[:, :, first:end]
        clean = torch.cat([clean if first else clean[:, :, :0], estimate], dim=2)
    return clean


@pytest.mark.slow
def test_gradients_do_not_hang_on_what_is_computed_again(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are computed again in the backward pass read the caches as they were, not as the stream left them;
    nor does it matter in how many parts the feed-forward network goes."""
    monkeypatch.setattr(blocks, "_HIDDEN_TOKENS", 4)
    monkeypatch.setattr(blocks, "TRAINED_HIDDEN_TOKENS", 4)
    config = StudentConfig(**STUDENT)
    asked, found = asked_of(given), []
    for what in ("nothing", "blocks", "blocks_in_parts"):
        model, _ = load_world_model(given.causal, dtype=torch.float32)
        recompute_blocks(model, what)
        roll_out(model, asked, config, draws(config, 1), gradient=True).square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for again in found[1:]:
        assert found[0].keys() == again.keys()
        for name, grad in found[0].items():
            torch.testing.assert_close(again[name], grad, rtol=1e-5, atol=1e-8, msg=name)


class GaussianScore:
    """What a perfect score says of videos whose second frame is normal, N(mean, spread^2)."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        self.mean, self.spread = mean, spread

    def __call__(self, noisy: torch.Tensor, times: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        sigma = (times / 1000)[:, None, :, None, None].clamp_min(1e-3)
        variance = (1 - sigma) ** 2 * self.spread**2 + sigma**2
        gain = (1 - sigma) * self.spread**2 / variance
        clean = self.mean + gain * (noisy - (1 - sigma) * self.mean)
        return (noisy - clean) / sigma


@pytest.mark.slow
def test_distribution_matching_leads_to_the_real_distribution() -> None:
    """With perfect scores, mean and spread of what a student makes become those of the real one; a student that only
    averaged would keep no spread."""
    generator = torch.Generator().manual_seed(0)
    mean, spread = torch.tensor(0.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    real = GaussianScore(torch.tensor(1.0), torch.tensor(0.3))
    config = SelfForcingConfig(shift=3.0)
    asked = Conditions(torch.zeros(64, 1, 1, 1, 1), Text(torch.zeros(64, 1, 1)))
    optimiser = torch.optim.Adam([mean, spread], lr=0.03, betas=(0.0, 0.99))
    for _ in range(200):
        made = mean + spread * torch.randn(64, 1, 1, 1, 1, generator=generator)
        video = torch.cat([asked.image, made], dim=2)
        scores: Any = (GaussianScore(mean.detach(), spread.detach()), real)
        drawn = draw_score(config, video.shape, generator)
        optimiser.zero_grad()
        generator_loss(video, asked, asked.text, scores, config, drawn).backward()
        optimiser.step()
    assert float(mean) == pytest.approx(1.0, abs=0.1)
    assert float(spread) == pytest.approx(0.3, abs=0.1)


@pytest.mark.slow
def test_a_score_that_is_not_finite_stops_the_step(given: Given, tmp_path: Path) -> None:
    training = placed(recipe(given, "self_forcing", guard=dict(patience=9)), given.data, tmp_path)
    assert isinstance(training, Distillation)
    with torch.no_grad():
        training.beside["real"].final_layer.linear.bias.fill_(math.nan)
    before = [p.clone() for p in training.model.parameters()]
    (micro,) = (m for m, _ in zip(training.feed(), range(1), strict=False))
    report = training.take_step(micro)
    assert report.skipped == "its loss is nan"
    assert math.isfinite(report.loss)  # the fake score learned
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


@pytest.mark.slow
def test_bfloat16_through_fsdp_keeps_exact_weights(given: Given, tmp_path: Path) -> None:
    """Networks that are asked without a backward pass rest in float32 again when their weights are read: by the
    average that follows the student, and by a checkpoint after a validation."""
    exact = run(placed(recipe(given, "consistency_init"), given.data, tmp_path / "exact"), 1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        r = recipe(given, "consistency_init", precision="bf16", parallel=dict(sharding="fsdp"))
        training = placed(r, given.data, tmp_path / "sharded")
        rough = run(training, 1)
        assert rough[0][:2] == pytest.approx(exact[0][:2], rel=0.02)
        training.validate()
        again = placed(r, given.data, tmp_path / "sharded")
        again.restore(training.save())
        for mine, theirs in zip(training.state_parts(), again.state_parts(), strict=True):
            a: dict[str, Any] = mine.tensors()
            b: dict[str, Any] = theirs.tensors()
            assert all(t.dtype == torch.float32 for t in a.values())
            assert all(
                torch.equal(a[n].full_tensor(), b[n].full_tensor())
                for n in a
                if "step" not in n and hasattr(a[n], "full_tensor")
            )
    finally:
        torch.distributed.destroy_process_group()


def test_draws_have_their_shares() -> None:
    """Exits, times of scores, levels and snapshots, within sampling error."""
    student, generator = StudentConfig(frames=10), torch.Generator().manual_seed(1)
    exits = torch.tensor([draw_exit(student, generator) for _ in range(2000)])
    assert (exits.bincount(minlength=4) / 2000 - 0.25).abs().max() < 0.05
    config = SelfForcingConfig()
    times = torch.cat([draw_score(config, torch.Size((500, 1, 1, 1, 1)), generator).time for _ in range(20)])
    assert float(times.min()) == 20
    assert float(times.max()) == 980
    for u in (0.1, 0.5):  # uniform before the shift
        share = float((times <= 1000 * 10 * u / (1 + 9 * u)).double().mean())
        assert share == pytest.approx(u, abs=0.02)
    shape = torch.Size((4000, 1, 10, 1, 1))
    levels = draw_consistency(ConsistencyConfig(levels=4), student, shape, generator).level
    assert levels.shape == (4000, 3)
    assert (levels.flatten().bincount(minlength=4) / 12000 - 0.25).abs().max() < 0.02
    index = draw_snapshots(student, 4000, generator)
    assert (index[:, 0] == 4).all()
    assert (index[:, 1:4] == index[:, 1:2]).all()
    assert (index[:, [1, 4, 7]].flatten().bincount(minlength=5) / 12000 - 0.2).abs().max() < 0.02


def test_levels_pass_through_the_students_times() -> None:
    options = TrajectoryOptions(student=StudentConfig(frames=7), steps=16)
    levels = levels_between(options)
    assert [part[0] for part in levels] == [1.0, 0.967, 0.908, 0.764]
    assert [part[-1] for part in levels] == [0.967, 0.908, 0.764, 0.0]
    assert all(len(part) == 5 for part in levels)
    assert all(a > b for part in levels for a, b in itertools.pairwise(part))
    times = level_times(ConsistencyConfig())
    assert (times[0], times[-1], len(times)) == (1000, 0, 49)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"student": None}, "student: is missing"),
        ({"self_forcing": None}, "self_forcing: is missing"),
        ({"ode_init": {"trajectories": "x"}}, "ode_init: is read by objective ode_init alone"),
        ({"flow_matching": {"shift": 3.0}}, "flow_matching: is not read"),
        ({"lora": {}}, "trains all weights"),
        ({"start": {}, "model": SMALL}, "name those of stage4"),
        ({"student": {"frames": 7, "times": [900, 0]}}, "fall strictly from 1000 to 0"),
        ({"student": {"frames": 7, "sink_chunks": 1}}, "leave it 0"),
        ({"student": {"frames": 3}}, "hold no chunk"),
        ({"self_forcing": {"lowest": 980.0, "highest": 20.0}}, "is not below"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], why: str) -> None:
    given = Given(Path("a"), Path("b"), Path("c"), Path("d"))
    with pytest.raises(ValueError, match=why):
        recipe(given, "self_forcing", **changes)
    with pytest.raises(ValueError, match="student: is read by"):
        TrainRecipe(**content(model=SMALL, student=STUDENT))
    with pytest.raises(ValueError, match="not spread over ranks"):
        recipe(given, "consistency_init", parallel=dict(context=2))


@pytest.mark.slow
def test_what_does_not_fit_is_told(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = recipe(given, "ode_init", student=dict(frames=9))
    with pytest.raises(ValueError, match=r"shortest has 8 latent frames, student.frames is 9"):
        placed(r, given.data, tmp_path)
    r = recipe(given, "ode_init", student=dict(frames=8, times=[1000, 500, 0]))
    with pytest.raises(ValueError, match=r"times .*; 7 latent frames, the recipe's student 8"):
        placed(r, given.data, tmp_path)
    more = write_encoded(tmp_path / "more", 4, frames=57)
    with pytest.raises(ValueError, match="1 of 4 clips have none"):
        placed(recipe(given, "ode_init"), more, tmp_path)
    larger = write_encoded(tmp_path / "larger", 3, frames=57, height=128)
    with pytest.raises(ValueError, match=r"latents of \(8, 2, 3\) a frame, the clips' \(8, 4, 3\)"):
        placed(recipe(given, "ode_init"), larger, tmp_path)
    with pytest.raises(ValueError, match="holds no trajectories"):
        Trajectories.open(tmp_path)
    found = Trajectories.open(given.trajectories)
    assert len(recorded(given.trajectories)) == 3
    options = found.record.options.model_copy(update={"seed": 1})
    other = found.record.model_copy(update={"options": options})
    with pytest.raises(ValueError, match=r"were made otherwise \(seed: 0 there, 1 now\)"):
        begin(given.trajectories, other)
    monkeypatch.setattr(trajectories, "load_world_model", None)  # which comes after a look at the folder
    for folder, job_options, words in (
        (given.data, found.record.options, "holds encoded clips"),
        (given.trajectories, options, r"made otherwise \(.*seed: 0 there, 1 now"),
    ):
        job = TrajectoryJob(data=[given.data], out=folder, weights=str(given.causal), options=job_options)
        with pytest.raises(ValueError, match=words):
            run_trajectories(job)
    broken = tmp_path / "broken"
    begin(broken, found.record)
    (broken / "shards" / "a.safetensors").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"window a: its trajectory .* cannot be read"):
        Trajectories.open(broken).read("a", FRAMES)
    clips = open_encoded(given.data)
    told_otherwise = clips.windows[0].model_copy(update={"caption": "a garden"})
    clips = replace(clips, windows=(told_otherwise, *clips.windows[1:]))
    with pytest.raises(ValueError, match=r"holds 1 windows .*caption 'room 0' there, 'a garden' now"):
        found.check(StudentConfig(**STUDENT), clips)
    with pytest.raises(ValueError, match="is not finite"):
        write_trajectory(broken, clips.windows[0], torch.full((5, 8, 7, 2, 3), math.nan))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_clips_and_weights_that_do_not_fit_are_told(given: Given, objective: str, tmp_path: Path) -> None:
    """Stand-ins, another autoencoder's latents, too short clips, more ranks than chunks, weights of another stage."""
    for changes, why in (
        (dict(stand_in=True), "stand-in networks annotated or encoded them"),
        (
            dict(autoencoder="another vae"),
            "latents of another vae, the weights were trained on those of vae 1234",
        ),
        (dict(text_width=24), "text states of 24 channels, the network 16"),
        (dict(frames=33), "the shortest has 5 latent frames, student.frames is 7"),
    ):
        data = write_encoded(tmp_path / why[:9], 2, **{"frames": 57, **changes})
        with pytest.raises(ValueError, match=why):
            placed(recipe(given, objective), data, tmp_path / "no")
    other = {"ode_init": "chunk-causal", "consistency_init": "chunk-causal", "self_forcing": "chunk-causal"}
    with pytest.raises(ValueError, match=f"are bidirectional weights; {objective} takes {other[objective]}"):
        placed(
            recipe(given, objective, start=dict(weights=str(given.bidirectional))),
            given.data,
            tmp_path / "no",
        )
    if objective == "self_forcing":
        elsewhere = write_encoded(tmp_path / "elsewhere", 2, frames=57, autoencoder="vae 5678")
        start = dict(weights=str(given.causal), grow=True, latents="anew")
        anew = recipe(given, objective, start=start, model=SMALL)
        with pytest.raises(ValueError, match="on latents of vae 1234, the clips have those of vae 5678"):
            placed(anew, elsewhere, tmp_path / "no")
