"""The refiner's objective against the public training code, against how the refiner is asked, and as a run."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from theodolite.kernels.attention import SDPA_ORDER
from theodolite.model.samplers import Text
from theodolite.model.weight_files import AUTOENCODER, STAGE
from theodolite.train.refining import (
    RefinerConfig,
    draw_by_seed,
    num_blocks,
    refiner_levels,
    refiner_loss,
    truncated_loss,
)
from torch.nn.attention import _cur_sdpa_kernel_backends

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from encoded_clips import write_encoded
from support import run_here

OFFICIAL = np.load(Path(__file__).with_name("nvlabs_refiner.npz"))


def official(name: str) -> torch.Tensor:
    return torch.from_numpy(OFFICIAL[name])


def test_loss_is_the_official_one_on_the_same_draws() -> None:
    matrix, start_sigma = official("matrix"), 0.909375

    def network(noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("bcthw,dc->bdthw", noisy, matrix)
        return mixed + sigma.view(-1, 1, 1, 1, 1)

    ours = truncated_loss(
        network,
        official("clean"),
        official("start"),
        official("noise"),
        official("sigmas") / start_sigma,
        start_sigma=start_sigma,
    )
    torch.testing.assert_close(ours, official("loss"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tokens", [300, 2000, 106480])
def test_levels_are_the_official_ones_on_the_same_draws(tokens: int) -> None:
    ours = refiner_levels(
        RefinerConfig(),
        tokens,
        normal=official("normal"),
        even=official("even"),
        chance=official("chance"),
    )
    torch.testing.assert_close(ours, official(f"levels_{tokens}"), rtol=1e-5, atol=1e-6)


def test_draws_are_a_clips_own() -> None:
    config, latents = RefinerConfig(), torch.zeros(3, 8, 11, 2, 3)
    together = draw_by_seed(config, latents, [1, 2, 3], sink=1)
    alone = draw_by_seed(config, latents[1:2], [2], sink=1)
    assert torch.equal(together.noise[1:2], alone.noise)
    assert torch.equal(together.level[1:2], alone.level)
    many = draw_by_seed(config, latents[:1].expand(300, -1, -1, -1, -1), range(300), sink=1)
    assert set(many.block.tolist()) == {0, 1, 2, 3}  # 10 frames: three blocks of three and one of one
    assert num_blocks(RefinerConfig(frames="together"), 11, sink=1) == 1
    assert bool(((many.level > 0) & (many.level <= 1)).all())


@pytest.fixture(scope="module")
def clip() -> tuple[torch.Tensor, Text]:
    torch.manual_seed(0)
    return torch.randn(1, 8, 8, 2, 3), Text(torch.randn(1, 6, 16))


@pytest.mark.slow
@pytest.mark.parametrize("frames", ["together", "blocks"])
def test_the_network_is_asked_as_when_it_refines(frames: str, clip: tuple[torch.Tensor, Text]) -> None:
    """From the last noise level to 0 one call gives the refined block: what `velocity` says must be what it said."""
    pytest.importorskip("diffusers")
    from theodolite.model.refiner import RefinerOptions, tiny_refiner

    latents, text = clip
    block = 3 if frames == "blocks" else None
    options = RefinerOptions(sigmas=(0.9, 0.0), block_frames=block, window_frames=5)
    refiner = tiny_refiner(options=options)
    refined = refiner.refine(latents, text, seed=7)
    noise = torch.Generator().manual_seed(7)
    # What later blocks see are refined frames, so those are the clean ones here.
    for first in range(1, 8, block or 7):
        end = min(8, first + (block or 7))
        part = latents[:, :, first:end]
        drawn = torch.randn(part.shape, generator=noise)
        noisy = 0.1 * part + 0.9 * drawn
        velocity = refiner.velocity(noisy, 0.9, text, before=refined[:, :, :first])
        torch.testing.assert_close(noisy - 0.9 * velocity, refined[:, :, first:end], rtol=1e-4, atol=1e-5)
    if block is None:
        with pytest.raises(ValueError, match="3 clean frames come first; the sink has 1"):
            refiner.velocity(latents[:, :, 3:], 0.9, text, before=latents[:, :, :3])


@pytest.mark.slow
def test_a_lora_learns_the_same_with_and_without_recomputation(clip: tuple[torch.Tensor, Text]) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from theodolite.model.refiner import tiny_refiner
    from theodolite.recipes.training import load_train_recipe
    from theodolite.train.refiner_training import _Recomputed, add_refiner_lora

    latents, text = clip
    recipe = load_train_recipe("refiner_smoke", ["lora.parts=[attention,cross_attention,ffn]"])
    assert recipe.refiner is not None
    found = []
    orders: list[Any] = []  # of torch's attentions, whenever a block runs

    def noting(forward: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            orders.append(_cur_sdpa_kernel_backends(with_priority=True))
            return forward(*arguments, **named)

        return run

    for recompute in (False, True):
        refiner = tiny_refiner(options=recipe.refiner.options(16.0))
        names = add_refiner_lora(refiner, recipe, dtype=torch.float32)
        assert len(names) == 2 * 9
        if recompute:
            for inner in refiner.transformer.transformer_blocks:
                inner.forward = _Recomputed(noting(inner.forward))
        for name, parameter in refiner.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        draws = draw_by_seed(recipe.refiner, latents, [4], sink=1)
        loss = refiner_loss(refiner, latents, latents.flip(3), text, recipe.refiner, draws)
        loss.backward()
        gradients = {n: p.grad for n, p in refiner.named_parameters() if p.grad is not None}
        assert len(gradients) == 2 * len(names)
        found.append((loss.detach(), gradients))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name])
    # What a GPU needs: another attention keeps other tensors, which ends the backward pass.
    passes = 2  # over the clean frames before, and over the noisy ones
    assert len(orders) == 2 * passes * len(refiner.transformer.transformer_blocks)
    assert orders == [SDPA_ORDER] * len(orders)


def test_a_folder_of_others_is_refused_before_networks_are_loaded(tmp_path: Path) -> None:
    from theodolite.recipes.pairs import PairJob, PairOptions, run_pairs

    data = write_encoded(tmp_path / "encoded", 1, stand_in=True)
    no_weights = tmp_path / "model.safetensors"
    no_weights.write_bytes(b"read after the folder was looked at")
    options = PairOptions(allow_stand_in=True)
    job = PairJob(
        data=(data,), out=tmp_path / "out", options=options, weights=str(no_weights), refiner="none"
    )
    job.out.mkdir()
    (job.out / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"out: holds a dataset; choose another --out"):
        run_pairs(job)
    with pytest.raises(
        ValueError, match=r"were encoded otherwise \(text_encoder: .*; world_model: None there"
    ):
        run_pairs(dataclasses.replace(job, out=write_encoded(tmp_path / "others", 1, stand_in=True)))


@pytest.mark.slow
def test_pairs_training_and_what_it_writes(tmp_path: Path) -> None:
    """From encoded clips by the commands to a LoRA and a merged refiner that say the same."""
    pytest.importorskip("diffusers")
    pytest.importorskip("lightning")
    from theodolite.model.lora import merge_lora
    from theodolite.model.refiner import load_refiner, tiny_refiner

    data = write_encoded(tmp_path / "encoded", 3, stand_in=True, text_tokens=10)
    pairs, out = tmp_path / "pairs", tmp_path / "run"
    make = ("pairs", data, "--out", pairs, "--weights", "stand_in", "--refiner", "stand_in")
    fast = ("--set", "steps=2", "--set", "allow_stand_in=true", "--set", "guidance=1")
    assert run_here(*make).returncode == 2  # stand-ins are not taken unasked
    done = run_here(*make, *fast, "--limit", 2)
    assert done.returncode == 0, done.stderr
    assert "2 pairs made, 0 were there" in done.stdout
    assert "1 pairs made, 2 were there" in run_here(*make, *fast).stdout
    other = run_here(*make, *fast, "--set", "seed=1")
    assert "were encoded otherwise (world_model" in other.stderr
    weights = tmp_path / "causal.safetensors"
    save_file({"a": torch.zeros(1)}, weights, metadata={STAGE: "chunk-causal", AUTOENCODER: "another"})
    named = (*make[:5], weights, *make[6:], *fast)
    for more, why in (
        ((), "are chunk-causal weights; world model takes bidirectional ones"),
        (("--set", "chunk=1"), "was trained on latents of another, the clips have those of vae 1234"),
    ):
        assert why in run_here(*named[:3], tmp_path / "causal", *named[4:], *more).stderr
    train = ("train", "refiner_smoke", "--out", out, "--accelerator", "cpu", "--set", "steps=4")
    refused = run_here(*train, "--data", data)
    assert "they are no pairs" in refused.stderr
    assert "they are no pairs" in run_here(*train, "--data", data, "--dry-run").stderr
    plan = run_here(*train, "--data", pairs, "--dry-run")
    assert "LoRA of rank 4 on attention, ffn" in plan.stdout
    done = run_here(*train, "--data", pairs)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert float(rows[-1]["validation_sampled_error"]) > 0
    assert run_here(*train, "--data", pairs, "--set", "steps=6", "--resume").returncode == 0
    lora, merged = out / "weights" / "lora-00000006", out / "weights" / "refiner-00000006"
    mine = tiny_refiner()
    report = merge_lora(mine, lora)
    assert report.layers == 2 * 5
    theirs = load_refiner(merged, dtype=torch.float32)
    for name, tensor in mine.transformer.state_dict().items():
        torch.testing.assert_close(theirs.transformer.state_dict()[name], tensor)
