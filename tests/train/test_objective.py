"""The training objective: noise levels, their statistics, what leaves the loss, and its gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from theodolite.model.conditioning import condition_cameras
from theodolite.model.config import WorldModelConfig, chunk_starts
from theodolite.model.context import Operators
from theodolite.model.network import WorldModel
from theodolite.model.samplers import Text
from theodolite.model.start import initialise
from theodolite.train.objective import (
    Batch,
    ChunkTimes,
    Draws,
    ObjectiveConfig,
    draw,
    draw_by_seed,
    draw_chunk_levels,
    flow_matching_loss,
    noise_levels,
    rising_levels,
    training_loss,
)

SIGMAS = 4.5
"""Deviations that a count may have; about one in 100,000 seeds passes them."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FRAMES = 7


def tiny_model() -> WorldModel:
    """Every part speaks, also what starts silent."""
    config = WorldModelConfig(depth=4, width=48, heads=2, latent_channels=8, text_width=16, text_tokens=10)
    model = WorldModel(config, Operators(kernels="reference"))
    initialise(model, generator())
    with torch.no_grad():
        for tensor in model.parameters():
            if not tensor.any():
                tensor.normal_(std=max(1, tensor[0].numel()) ** -0.5, generator=generator(1))
    return model.eval()


def tiny_batch() -> Batch:
    poses = torch.eye(4).repeat(2, 8 * FRAMES - 7, 1, 1)
    poses[..., :3, 3] = 0.02 * torch.randn(2, poses.shape[1], 3, generator=generator(3)).cumsum(dim=1)
    lens = torch.tensor([80.0, 80.0, 48.0, 32.0]).expand(2, poses.shape[1], 4)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return Batch(
        latents=torch.randn(2, 8, FRAMES, 2, 3, generator=generator(4)),
        text=Text(torch.randn(2, 6, 16, generator=generator(5)), mask),
        cameras=condition_cameras(poses, lens, height=64, width=96),
    )


def empty_batch(batch: int, frames: int) -> Batch:
    """For draws alone."""
    return Batch(latents=torch.zeros(batch, 1, frames, 1, 1), text=Text(torch.zeros(batch, 1, 1)))


def expect_share(found: torch.Tensor, share: float) -> None:
    """A mean of n yes and no, against its share."""
    n = found.numel()
    assert abs(float(found.double().mean()) - share) <= SIGMAS * math.sqrt(share * (1 - share) / n) + 1e-12


def test_levels_are_the_released_ones():
    sigma, times = noise_levels(9.95)
    assert sigma[0] == 0
    assert times[0] == 0
    for i in (1, 10, 500, 999):
        plain = i / 1000
        exact = 9.95 * plain / (1 + 8.95 * plain)
        assert float(sigma[i]) == pytest.approx(exact, rel=1e-6)
        assert int(times[i]) == math.trunc(1000 * exact)
    # A clip at the middle of the table is nine tenths noise.
    assert (int(times[1]), int(times[500]), int(times[999])) == (9, 908, 999)
    assert (sigma.diff() > 0).all()
    plain, whole = noise_levels(1.0)
    assert torch.allclose(plain, torch.arange(1000) / 1000)
    assert (whole - torch.arange(1000)).abs().max() <= 1


def test_indices_are_logit_normal():
    drawn = draw(ObjectiveConfig(image_condition_probability=0), empty_batch(200_000, 3), generator())
    index = drawn.index
    assert (index == index[:, :1]).all()  # one a clip
    normal = torch.distributions.Normal(0.0, 1.0)
    for at in (50, 200, 500, 800, 950):
        expect_share(index[:, 0] < at, float(normal.cdf(torch.tensor(at / 1000).logit())))
    moved = draw(
        ObjectiveConfig(image_condition_probability=0, logit_mean=1.0, logit_std=0.5),
        empty_batch(200_000, 1),
        generator(),
    )
    expect_share(moved.index < 731, float(normal.cdf((torch.tensor(0.731).logit() - 1) / 0.5)))
    far = draw(
        ObjectiveConfig(image_condition_probability=0, logit_mean=60.0), empty_batch(50, 1), generator()
    )
    assert (far.index == 999).all()


def test_image_conditioning_and_dropped_captions():
    drawn = draw(ObjectiveConfig(), empty_batch(100_000, 3), generator(3))
    expect_share(drawn.conditioned, 0.9)
    expect_share(drawn.captionless, 0.1)
    assert (drawn.index[drawn.conditioned, 0] == 0).all()
    assert (drawn.index[:, 1] == drawn.index[:, 2]).all()
    free = ~drawn.conditioned
    assert (drawn.index[free, 0] == drawn.index[free, 1]).all()
    both = drawn.conditioned & drawn.captionless
    expect_share(both, 0.09)  # independent of each other
    assert abs(float(drawn.noise.mean())) < 0.01
    assert float(drawn.noise.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_draws_by_seed_are_those_of_each_clip_alone():
    """Drawn for the batch in one go, but for the numbers themselves."""
    seeds = [5, 77, 1234567890123]
    batch = Batch(latents=torch.zeros(3, 4, 22, 2, 3), text=Text(torch.zeros(3, 1, 1)))
    for config in (ObjectiveConfig(), ObjectiveConfig(chunks=ChunkTimes())):
        together = draw_by_seed(config, batch, seeds)
        for i, seed in enumerate(seeds):
            one = Batch(batch.latents[:1], batch.text)
            alone = draw(config, one, torch.Generator().manual_seed(seed))
            for name, drawn in vars(alone).items():
                assert torch.equal(drawn[0], getattr(together, name)[i]), name


def test_rising_levels_are_all_equally_likely():
    """Against a list of all sequences, for every anchor."""
    levels, chunks, each = 5, 4, 40_000
    for place, anchor in itertools.product(range(chunks), range(levels)):
        wanted = [
            s
            for s in itertools.product(range(levels), repeat=chunks)
            if list(s) == sorted(s) and s[place] == anchor
        ]
        found = rising_levels(
            torch.full((each,), anchor),
            torch.full((each,), place),
            chunks,
            generator(7 * place + anchor),
            num_levels=levels,
        )
        code = (found * (levels ** torch.arange(chunks))).sum(dim=1)
        counts = {int(c): int(n) for c, n in zip(*code.unique(return_counts=True), strict=True)}
        assert set(counts) == {sum(v * levels**i for i, v in enumerate(s)) for s in wanted}
        share = 1 / len(wanted)
        for n in counts.values():
            assert abs(n - each * share) <= SIGMAS * math.sqrt(each * share * (1 - share)) + 1e-9


def test_rising_levels_at_real_size():
    """40 chunks, 1000 levels: order, anchor and the mean that equal likelihood gives."""
    b, chunks = 4000, 40
    anchor = torch.randint(1000, (b,), generator=generator(1))
    place = torch.randint(chunks, (b,), generator=generator(2))
    found = rising_levels(anchor, place, chunks, generator(3))
    assert found.shape == (b, chunks)
    assert (found.diff(dim=1) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= 999
    assert (found.gather(1, place[:, None])[:, 0] == anchor).all()
    # m ordered values of 0..N-1 with repeats have mean (N - 1)(j + 1)/(m + 1) at place j, and a spread of a few of it.
    last = rising_levels(torch.full((b,), 999), torch.full((b,), chunks - 1), chunks, generator(4)).double()
    wanted = 999 * (torch.arange(chunks - 1) + 1) / chunks
    error = (last[:, :-1].mean(dim=0) - wanted).abs() / (last[:, :-1].std(dim=0) / math.sqrt(b))
    assert error.max() < SIGMAS


@pytest.mark.slow
def test_mixture_of_chunk_times():
    b, chunks = 20_000, 5
    anchor = torch.full((b,), 600)
    found = draw_chunk_levels(ChunkTimes(), anchor, chunks, generator(5))
    assert (found.diff(dim=1) >= 0).all()  # every kind rises
    same = (found == 600).all(dim=1)
    expect_share(same, 0.1)  # by chance: 1 in 10^10 of the others
    assert (found == 600).any(dim=1).all()  # the anchor stays
    # The anchor is the last chunk in (0.4 + 0.1 + 0.4 / 5) of all.
    expect_share((found[:, -1] == 600) & ~same, 0.1 + 0.4 + 0.4 / 5 + 0.4 * 4 / 5 * _last_is_anchor(chunks))
    only = {"same": 0, "through_random": 0, "through_last": 0, "clean_prefix": 1}
    clean = (draw_chunk_levels(ChunkTimes(**only), anchor, chunks, generator(6)) == 0).sum(dim=1)
    assert clean.max() <= chunks - 1
    for n in range(1, chunks):  # prefixes of all lengths alike, but for levels that are 0 by themselves
        share = float((clean == n).double().mean())
        assert share == pytest.approx(1 / (chunks - 1), abs=0.03)
    assert (draw_chunk_levels(ChunkTimes(**only), anchor[:9], 1, generator(6)) == 600).all()


@pytest.mark.slow
def test_chunk_levels_are_distributed_like_the_released_code():
    """Quantiles of the levels of 7 chunks of 22 frames, from 20,000 draws of NVlabs/Sana's sampler (logit-normal
    anchors, mixture 0.1/0.4/0.4/0.1); both samples err by a few levels."""
    recorded = {
        0.1: (0, 13, 47, 92, 142, 196, 259),
        0.5: (68, 163, 254, 344, 433, 530, 640),
        0.9: (469, 579, 656, 728, 803, 880, 960),
    }
    config = ObjectiveConfig(chunks=ChunkTimes(), image_condition_probability=0)
    index = draw(config, empty_batch(20_000, 22), generator(2)).index[:, list(chunk_starts(22))].double()
    for quantile, levels in recorded.items():
        assert (index.quantile(quantile, dim=0) - torch.tensor(levels)).abs().max() < 14


def _last_is_anchor(chunks: int) -> float:
    """Chance that levels from an anchor of 600, at a random earlier chunk, stay at 600 to the end (of 400 levels)."""
    return sum(1 / math.comb(400 + m - 1, m) for m in range(1, chunks)) / (chunks - 1)


def test_levels_of_frames_follow_their_chunks():
    config = ObjectiveConfig(chunks=ChunkTimes(), image_condition_probability=0.5)
    index = draw(config, empty_batch(500, 12), generator(8))
    starts = chunk_starts(12)
    assert starts == (0, 4, 7)
    for first, end in itertools.pairwise((*starts, 12)):
        part = index.index[:, max(first, 1) : end]
        assert (part == part[:, :1]).all()
    assert (index.index[index.conditioned, 0] == 0).all()
    free = ~index.conditioned
    assert (index.index[free, 0] == index.index[free, 1]).all()


@pytest.mark.parametrize("chunked", [False, True])
def test_loss_is_the_formula(chunked):
    """Written out frame by frame, on fixed draws."""
    config = ObjectiveConfig(chunks=ChunkTimes() if chunked else None)
    batch, model = tiny_batch(), tiny_model()
    b, c, t, h, w = batch.latents.shape
    valid = torch.ones(b, t, dtype=torch.bool)
    valid[1, -2:] = False
    index = torch.randint(1, 1000, (b, t), generator=generator(1))
    index[0, 0] = 0
    draws = Draws(
        index=index,
        conditioned=torch.tensor([True, False]),
        captionless=torch.tensor([False, True]),
        noise=torch.randn(b, c, t, h, w, generator=generator(2)),
    )
    batch = Batch(latents=batch.latents, text=batch.text, cameras=batch.cameras, valid=valid)
    loss = flow_matching_loss(model, batch, config, draws)
    noisy, told = torch.empty_like(batch.latents), torch.empty(b, t)
    for i, j in itertools.product(range(b), range(t)):
        s = 9.95 * int(index[i, j]) / 1000
        s /= 1 + 8.95 * int(index[i, j]) / 1000
        noisy[i, :, j] = (1 - s) * batch.latents[i, :, j] + s * draws.noise[i, :, j]
        told[i, j] = math.trunc(1000 * s)
    text = batch.text.states.clone()
    text[1] = model.y_embedder.y_embedding[: text.shape[1]]
    velocity = model(
        noisy,
        told,
        text,
        text_mask=batch.text.mask,
        cameras=batch.cameras,
        chunk_starts=chunk_starts(t) if chunked else None,
    )
    wrong = (velocity - (draws.noise - batch.latents)) ** 2
    wanted = (wrong[0, :, 1:].mean() + wrong[1, :, :-2].mean()) / 2
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


def test_given_frames_are_clean_and_carry_no_gradient():
    """The conditioned frame enters as it is, whatever its noise."""
    batch, model = tiny_batch(), tiny_model()
    config = ObjectiveConfig(image_condition_probability=1.0)
    draws = draw(config, batch, generator(4))
    loss = flow_matching_loss(model, batch, config, draws)
    noise = draws.noise.clone()
    noise[:, :, 0] += 100.0
    other = Draws(draws.index, draws.conditioned, draws.captionless, noise)
    assert torch.equal(loss, flow_matching_loss(model, batch, config, other))
    noise[:, :, 1] += 100.0
    assert not torch.equal(loss, flow_matching_loss(model, batch, config, other))


@pytest.mark.slow
def test_seeds_reproduce_and_loss_falls():
    batch, model = tiny_batch(), tiny_model().train()
    config = ObjectiveConfig()
    first, again, other = (
        float(training_loss(model, batch, config, generator(s)).detach()) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        loss = training_loss(model, batch, config, generator(1))  # one draw, learned by heart
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_half_precision_weights_see_the_same_objective():
    batch, model = tiny_batch(), tiny_model()
    draws = draw(ObjectiveConfig(), batch, generator(4))
    exact = flow_matching_loss(model, batch, ObjectiveConfig(), draws)
    rough = flow_matching_loss(model.bfloat16(), batch, ObjectiveConfig(), draws)
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_bad_input_is_named():
    with pytest.raises(ValidationError, match="must sum to 1"):
        ChunkTimes(same=0.5)
    with pytest.raises(ValidationError, match="image_condition_probability"):
        ObjectiveConfig(image_condition_probability=1.1)
    with pytest.raises(ValidationError, match="shift"):
        ObjectiveConfig(shift=0)
    with pytest.raises(ValueError, match="nothing to learn"):
        draw(ObjectiveConfig(), empty_batch(2, 1))
    batch, model = tiny_batch(), tiny_model()
    none = Batch(batch.latents, batch.text, batch.cameras, torch.zeros(2, FRAMES, dtype=torch.bool))
    with pytest.raises(ValueError, match="clip 0 of the batch has no frame"):
        training_loss(model, none, ObjectiveConfig(), generator())
    long = Text(torch.zeros(2, 11, 16))
    with pytest.raises(ValueError, match="captions of 11 tokens; the network holds 10"):
        training_loss(model, Batch(batch.latents, long, batch.cameras), ObjectiveConfig(), generator())
