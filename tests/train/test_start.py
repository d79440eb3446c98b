"""What grows from one stage's weights to the next's: what is copied, what starts anew, what stays as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from theodolite.dataset.encoded import open_encoded
from theodolite.model.blocks import Pointwise
from theodolite.model.checkpoint import Layout, save_world_model
from theodolite.model.config import WorldModelConfig
from theodolite.model.context import Cameras
from theodolite.model.network import WorldModel
from theodolite.train.cost import ClipShape, lora_parameters, memory_rows, num_parameters
from theodolite.train.low_rank import compute_low_rank
from theodolite.train.recipe import LoraConfig, TrainRecipe
from theodolite.train.start import AUTOENCODER, add_lora, grow, start_model
from theodolite.train.training import check_data
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from encoded_clips import MODEL, write_encoded

LINEAR = MODEL.model_copy(update={"softmax_every": 5, "softmax_bfloat16": False})
HYBRID = MODEL.model_copy(update={"softmax_bfloat16": False})
FRAMES, HEIGHT, WIDTH = 5, 2, 3


def network(config: WorldModelConfig, seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(config)


def recipe(**changes: Any) -> TrainRecipe:
    return TrainRecipe(**{"schema_version": 1, "name": "x", "model": HYBRID, "steps": 1, **changes})


def inputs(channels: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return dict(
        latents=torch.randn(1, channels, FRAMES, HEIGHT, WIDTH, generator=generator),
        times=torch.tensor([400]),
        text=torch.randn(1, 10, 16, generator=generator),
    )


def cameras() -> Cameras:
    generator = torch.Generator().manual_seed(4)
    poses = torch.eye(4).repeat(1, FRAMES, 1, 1)
    poses[:, :, :3, 3] = torch.randn(1, FRAMES, 3, generator=generator)
    lens = torch.tensor([2.5, 2.4, 1.4, 1.1]).repeat(1, FRAMES, 1)
    return Cameras(poses, lens, torch.randn(1, 48, FRAMES, HEIGHT, WIDTH, generator=generator))


@pytest.mark.slow
def test_recurrence_grows_into_the_hybrid() -> None:
    before = network(LINEAR)
    grown = grow(before.state_dict(), HYBRID)
    own = grown.model.state_dict()
    assert grown.fresh == ()
    assert grown.left_out == ("blocks.3.attn.conv_k.weight", "blocks.3.attn.conv_k_cam.weight")
    assert all(torch.equal(own[n], before.state_dict()[n]) for n in grown.copied)
    with pytest.raises(ValueError, match=r"blocks \[3\] attend by softmax there .* later stage"):
        grow(own, LINEAR)


def test_linear_attention_grows_into_recurrence() -> None:
    """What cumulative linear attention does not have starts open: gates pass, convolutions are the identity."""
    gone = (
        "conv_k",
        "beta_proj",
        "gate_proj",
        "A_log",
        "dt_bias",
        "output_gate",
        "_cam",
        "plucker",
        "t_conv",
    )
    before = {n: t for n, t in network(LINEAR).state_dict().items() if not any(word in n for word in gone)}
    grown = grow(before, LINEAR)
    own = grown.model.state_dict()
    assert set(grown.copied) == set(before)
    assert torch.equal(own["blocks.1.attn.qkv.weight"], before["blocks.1.attn.qkv.weight"])
    assert float(own["blocks.1.attn.beta_proj.bias"].min()) == 5
    assert own["blocks.1.attn.conv_k.weight"][:, 0].tolist() == [[0, 0, 0, 1]] * 48
    assert not own["blocks.1.mlp.t_conv.weight"].any()


def test_another_autoencoder_starts_its_two_layers_anew() -> None:
    wide = HYBRID.model_copy(update={"latent_channels": 12})
    before = network(HYBRID)
    grown = grow(before.state_dict(), wide)
    assert set(grown.fresh) == {
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    }
    same = grow(before.state_dict(), HYBRID, latents=True)
    assert set(same.fresh) == {*grown.fresh, "x_embedder.proj.bias"}


def test_cameras_start_silent_as_copies(tmp_path: Path) -> None:
    before = network(HYBRID)
    save_world_model(before, tmp_path / "w.pt")
    started = start_model(recipe(start={"weights": str(tmp_path / "w.pt"), "cameras": "from_main"}))
    with torch.no_grad():
        without = before.eval()(**inputs())
        with_cameras = started.model.eval()(**inputs(), cameras=cameras())
    torch.testing.assert_close(with_cameras, without, rtol=1e-3, atol=1e-3)
    weights = dict(started.model.named_parameters())
    assert torch.equal(weights["blocks.0.attn.q_proj_cam.weight"], weights["blocks.0.attn.qkv.weight"][:48])


def test_weights_say_whose_latents_they_were_trained_on(tmp_path: Path) -> None:
    data = open_encoded(write_encoded(tmp_path / "data", 2, per_shard=2))
    path, model = tmp_path / "w.safetensors", network(HYBRID)
    names = tuple((k, k) for k in model.state_dict())
    save_world_model(
        model, path, Layout(file="safetensors", names=names, metadata={AUTOENCODER: "vae before"})
    )
    kept = recipe(start={"weights": str(path)})
    with pytest.raises(
        ValueError, match="latents of vae 1234, the weights were trained on those of vae befo"
    ):
        check_data(kept, start_model(kept).model, data)
    adapted = recipe(start={"weights": str(path), "grow": True, "latents": "anew"})
    started = start_model(adapted)
    check_data(adapted, started.model, data)
    assert {n.split(".")[0] for n in started.fresh} == {"x_embedder", "final_layer"}
    qkv = [dict(m.named_parameters())["blocks.1.attn.qkv.weight"] for m in (started.model, model)]
    assert torch.equal(*qkv)
    with pytest.raises(ValueError, match=r"start.latents anew: set start.grow to true"):
        recipe(start={"weights": str(path), "latents": "anew"})


def test_weights_of_another_stage_or_size_are_refused(tmp_path: Path) -> None:
    save_world_model(network(LINEAR), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="softmax_every 5, the recipe 4"):
        start_model(recipe(start={"weights": str(tmp_path / "w.pt")}))
    narrow = HYBRID.model_copy(update={"width": 32})
    with pytest.raises(ValueError, match="another width"):
        grow(network(narrow).state_dict(), HYBRID)
    with pytest.raises(ValueError, match="holds 4 blocks, the recipe's model 8"):
        grow(network(HYBRID).state_dict(), HYBRID.model_copy(update={"depth": 8}))
    for changes, why in (
        ({"ffn_ratio": 2.0}, r"ffn_width 144, the recipe 96"),
        ({"conv_taps": 2}, "conv_taps 4, the recipe 2"),
    ):
        save_world_model(network(HYBRID), tmp_path / "w.pt")
        other = recipe(model=HYBRID.model_copy(update=changes), start={"weights": str(tmp_path / "w.pt")})
        with pytest.raises(ValueError, match=why):
            start_model(other)
    with pytest.raises(ValueError, match="name the weights of the stage before"):
        start_model(recipe(start={"weights": "nowhere.safetensors"}))


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [False, True])
def test_low_rank_layers_compute_what_peft_computes_without_tokens_in_float32(pictures: bool) -> None:
    """Answer and gradients in float32; in bfloat16 nothing as long as the tokens is kept in another type."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 10, 1) if pictures else nn.Linear(6, 10)
    holder = nn.ModuleDict({"layer": plain.requires_grad_(False)})
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["layer"], init_lora_weights=False)
    peft.inject_adapter_in_model(settings, holder)
    x = torch.randn(2, 7, 6, requires_grad=True)
    halves = [p for n, p in holder.named_parameters() if "lora_" in n]
    layer: Any = holder["layer"]
    expected = layer(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2) if pictures else layer(x)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *halves])
    if pictures:  # as the network has it, for tokens
        layer.base_layer.__class__ = Pointwise
    compute_low_rank(holder)
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(found.square().sum(), [x, *halves]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    layer.base_layer.bfloat16()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        near = layer(x.detach().bfloat16().requires_grad_(True))
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), expected, rtol=0.05, atol=0.05)
    assert all(t.dtype == torch.bfloat16 for t in kept if 14 in (t.shape[0], t[..., 0].numel()))


@pytest.mark.parametrize(("recompute", "measured_gib"), [("all_but_softmax", 38.8), ("blocks", 35.2)])
def test_memory_is_told_as_it_was_measured(recompute: str, measured_gib: float) -> None:
    """Peaks of forward and backward of a minute on an H100 (docs/results.md), weights bfloat16 without an optimiser; at
    the peak, in the last block, hardly any gradient of a weight is there yet."""
    clip = ClipShape(frames=121, height=22, width=40)
    rows = memory_rows(WorldModelConfig(), clip, ranks=1, context=1, recompute=recompute, lora=None)
    told = 2e-9 * num_parameters(WorldModelConfig())
    told += sum(size for what, size in rows if "weights" not in what)
    assert told == pytest.approx(measured_gib * 2**30 / 1e9, rel=0.03)


@pytest.mark.parametrize(
    ("recompute", "frames", "counted_gb"),
    [
        ("blocks", 41, 10.76),
        ("blocks", 31, 8.14),
        ("blocks_in_parts", 41, 8.33),
        ("blocks_in_parts", 91, 18.47),
    ],
)
def test_memory_of_a_lora_is_told_as_it_was_counted(recompute: str, frames: int, counted_gb: float) -> None:
    """The most that a step at full size holds beside its weights, by benchmarks/training_memory.py: every tensor is
    followed by its storage."""
    clip, lora = ClipShape(frames=frames, height=22, width=40), LoraConfig()
    rows = memory_rows(WorldModelConfig(), clip, ranks=1, context=1, recompute=recompute, lora=lora)
    assert sum(size for what, size in rows if "weights" not in what) == pytest.approx(counted_gb, rel=0.03)


@pytest.mark.slow
def test_a_lora_is_counted_as_it_is_made() -> None:
    pytest.importorskip("peft")
    config = HYBRID
    lora = LoraConfig(rank=4, alpha=4, parts=("attention", "camera", "ffn"))
    model = WorldModel(config)
    add_lora(model, lora, seed=0, dtype=torch.float32)
    assert lora_parameters(config, lora) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    clip = ClipShape(frames=5, height=2, width=3)
    rows = memory_rows(config, clip, ranks=1, context=1, recompute="blocks", lora=lora)
    assert 1e9 * dict(rows)["LoRA: weights, gradients and AdamW, float32"] == pytest.approx(
        16 * lora_parameters(config, lora)
    )


@pytest.mark.slow
def test_a_lora_starts_as_nothing_and_learns_in_its_layers_alone() -> None:
    model = network(HYBRID).eval()
    with torch.no_grad():
        before = model(**inputs(), cameras=cameras())
    names = add_lora(
        model, LoraConfig(rank=2, alpha=2, parts=("attention", "camera", "ffn")), seed=0, dtype=torch.float32
    )
    assert len(names) == 4 * 9
    velocity = model(**inputs(), cameras=cameras())
    torch.testing.assert_close(velocity, before, rtol=1e-5, atol=1e-6)
    velocity.square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained)
    assert len(trained) == 2 * len(names)
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved <= {n for n in trained if "lora_B" in n}
    assert {f"blocks.3.{layer}.lora_B.default.weight" for layer in ("attn.qkv", "plucker_proj")} <= moved
    assert all(f"blocks.{i}.mlp.inverted_conv.conv.lora_B.default.weight" in moved for i in range(4))
