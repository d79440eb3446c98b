"""LoRA files of several makers: what is merged equals the product of the matrices, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from theodolite.model import refiner
from theodolite.model.lora import merge_lora, parse_lora
from theodolite.model.parts import Loras, load_generator, stand_in_generator
from theodolite.model.refiner import Refiner

from ..support import needs_packages
from .cases import relative, tiny_model
from .neighbours import REFINER_SIZES, fill

# Slow: importing these packages takes seconds.
pytestmark = [needs_packages("diffusers", "peft", extra="generate"), pytest.mark.slow]

LAYERS = [
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.attn1.to_out.0",
    "transformer_blocks.1.ff.net.2",
]


def tiny() -> Refiner:
    return Refiner(fill(refiner._kind()(**refiner.TINY, **REFINER_SIZES)))


def matrices(module: Any, names: list[str], rank: int = 3) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name in names:
        out, into = module.get_submodule(name).weight.shape[:2]
        found[name] = (
            torch.randn(rank, into, generator=generator),
            torch.randn(out, rank, generator=generator),
        )
    return found


def written(
    path: Path,
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    prefix: str = "",
    ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
    alpha: float | None = None,
) -> Path:
    tensors = {f"{prefix}{n}{end}": t for n, pair in pairs.items() for end, t in zip(ends, pair, strict=True)}
    if alpha is not None:
        tensors |= {f"{prefix}{n}.alpha": torch.tensor(alpha) for n in pairs}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def peft_folder(tmp: Path, pairs: Any) -> tuple[Path, float]:
    tmp.mkdir()
    written(tmp / "adapter_model.safetensors", pairs, prefix="base_model.model.")
    (tmp / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    return tmp, 2.0


def peft_rank_stabilised(tmp: Path, pairs: Any) -> tuple[Path, float]:
    tmp.mkdir()
    written(tmp / "adapter_model.safetensors", pairs, prefix="base_model.model.transformer.")
    (tmp / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": True}))
    return tmp, 6 / 3**0.5


def diffusers_file(tmp: Path, pairs: Any) -> tuple[Path, float]:
    return written(tmp.with_suffix(".safetensors"), pairs, prefix="transformer."), 1.0


def named_adapter(tmp: Path, pairs: Any) -> tuple[Path, float]:
    ends = (".lora_A.default.weight", ".lora_B.default.weight")
    return written(tmp.with_suffix(".safetensors"), pairs, ends=ends), 1.0


def down_and_up(tmp: Path, pairs: Any) -> tuple[Path, float]:
    ends = (".lora_down.weight", ".lora_up.weight")
    path = written(tmp.with_suffix(".safetensors"), pairs, prefix="diffusion_model.", ends=ends, alpha=1.5)
    return path, 0.5


@pytest.mark.parametrize(
    "write", [peft_folder, peft_rank_stabilised, diffusers_file, named_adapter, down_and_up]
)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_files_of_several_makers(tmp_path: Path, write: Callable[..., Any], scale: float) -> None:
    own, before = tiny(), tiny().state_dict()
    names = list(own.state_dict())
    pairs = matrices(own.transformer, LAYERS)
    path, factor = write(tmp_path / "lora", pairs)
    report = merge_lora(own, path, scale=scale)
    assert (report.layers, report.ranks, report.scale, report.skipped) == (3, (3,), scale, 0)
    assert list(own.state_dict()) == names
    for name, value in own.state_dict().items():
        layer = name.removeprefix("transformer.").removesuffix(".weight")
        expected = before[name]
        if layer in pairs and name.endswith("weight"):
            down, up = pairs[layer]
            expected = expected + scale * factor * up @ down
            assert relative(value, before[name]) > 1e-2
        assert relative(value, expected) < 1e-6, name
    assert not any("lora" in type(m).__module__ for m in own.modules())


def test_the_world_model_takes_both_its_names(tmp_path: Path) -> None:
    own, before = tiny_model(), tiny_model().state_dict()
    pairs = matrices(own, ["blocks.0.attn.qkv", "t_embedder.mlp.0"], rank=2)
    theirs = {k.replace("mlp.0", "linear_1") if k.startswith("t_emb") else k: v for k, v in pairs.items()}
    path = written(tmp_path / "a.safetensors", theirs, prefix="model.")
    assert merge_lora(own, path).layers == 2
    for name, (down, up) in pairs.items():
        key = f"{name}.weight"
        assert relative(own.state_dict()[key], before[key] + up @ down) < 1e-6


def test_ranks_may_differ_and_bfloat16_stays(tmp_path: Path) -> None:
    own = tiny().to(torch.bfloat16)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    pairs = matrices(own.transformer, LAYERS[:1], 2) | matrices(own.transformer, LAYERS[1:2], 5)
    report = merge_lora(own, written(tmp_path / "a.safetensors", pairs))
    assert report.ranks == (2, 5)
    for name, (down, up) in pairs.items():
        key = f"transformer.{name}.weight"
        assert own.state_dict()[key].dtype == torch.bfloat16
        assert relative(own.state_dict()[key].float(), before[key].float() + up @ down) < 1e-2


def test_layers_for_sound_are_skipped_and_counted(tmp_path: Path) -> None:
    own = tiny()
    pairs = matrices(own.transformer, LAYERS[:1])
    sound = {"transformer_blocks.0.audio_attn1.to_q": (torch.zeros(3, 16), torch.zeros(16, 3))}
    report = merge_lora(own, written(tmp_path / "a.safetensors", pairs | sound))
    assert (report.layers, report.skipped) == (1, 2)


def test_the_chain_merges_what_it_is_given(tmp_path: Path) -> None:
    plain = stand_in_generator(mode="distilled")
    own = written(tmp_path / "own.safetensors", matrices(plain.world_model, ["blocks.0.attn.qkv"], 2))
    theirs = written(tmp_path / "theirs.safetensors", matrices(plain.refiner.transformer, LAYERS[:1]))
    choice = Loras(world_model=(f"{own}=0.5",), refiner=(str(theirs),))
    made = load_generator("stand_in", mode="distilled", device="cpu", loras=choice)
    for part, name in (("world_model", "blocks.0.attn.qkv"), ("refiner", f"transformer.{LAYERS[0]}")):
        before, after = (getattr(g, part).get_submodule(name).weight for g in (plain, made))
        assert relative(after, before) > 1e-2
    assert made.parts["world_model"]["loras"][0]["scale"] == 0.5
    assert made.parts["refiner"]["loras"][0]["layers"] == 1
    with pytest.raises(ValueError, match="which is not loaded"):
        load_generator("stand_in", mode="distilled", device="cpu", refine=False, loras=choice)


def test_scales_are_read_from_the_command(tmp_path: Path) -> None:
    (tmp_path / "a=1").touch()
    assert parse_lora("x.safetensors") == (Path("x.safetensors"), 1.0)
    assert parse_lora("x.safetensors=-0.5") == (Path("x.safetensors"), -0.5)
    assert parse_lora(str(tmp_path / "a=1")) == (tmp_path / "a=1", 1.0)
    for text in ("x=", "x=much", "x=nan", "=1"):
        with pytest.raises(ValueError, match="give FILE or FILE=SCALE"):
            parse_lora(text)


def test_what_is_no_lora_for_this_network(tmp_path: Path) -> None:
    own = tiny()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    pairs = matrices(own.transformer, LAYERS[:1])
    down, up = pairs[LAYERS[0]]
    file = tmp_path / "a.safetensors"

    def refused(match: str, **tensors: torch.Tensor) -> None:
        save_file({k: v.clone() for k, v in tensors.items()} or {"a": torch.zeros(1)}, file)
        (tmp_path / "adapter_config.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=match):
            merge_lora(own, file)

    name = LAYERS[0]
    refused("no LoRA for this .*: it has no layer for a$")
    refused("it has no layer for blocks.9", **{"blocks.9.x.lora_A.weight": down})
    refused("has no up matrix", **{f"{name}.lora_A.weight": down})
    refused("do not make a product", **{f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": down})
    refused(
        r"layer .*to_q is \(32, 32\), the file has",
        **{f"{name}.lora_A.weight": down[:, :5].contiguous(), f"{name}.lora_B.weight": up},
    )
    refused("NaN", **{f"{name}.lora_A.weight": down * torch.nan, f"{name}.lora_B.weight": up})
    norm = "transformer_blocks.0.attn1.norm_q"
    refused("is a RMSNorm", **{f"{norm}.lora_A.weight": down, f"{norm}.lora_B.weight": up})
    good = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    other = LAYERS[2]  # a file that is wrong in one layer changes none
    refused(
        "ff.net.2 is", **good, **{f"{other}.lora_A.weight": down[:2], f"{other}.lora_B.weight": up[:, :2]}
    )
    file.write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="no intact safetensors"):
        merge_lora(own, file)
    with pytest.raises(FileNotFoundError, match="no such LoRA"):
        merge_lora(own, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        merge_lora(own, tmp_path)
    written(tmp_path / "adapter_model.safetensors", pairs)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora"):
        merge_lora(own, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="no JSON"):
        merge_lora(own, tmp_path)
    with pytest.raises(ValueError, match="finite"):
        merge_lora(own, file, scale=float("nan"))
    for settings, match in (
        (b"\xff{}", "no JSON"),
        (b'{"lora_alpha": "much"}', "alpha of layer .* is no number"),
        (b'{"lora_alpha": 1e999}', "alpha of layer .* is inf"),
        (b'{"alpha_pattern": {"(": 1}}', "alpha of layer .* is no number"),
        (b'{"alpha_pattern": [1]}', "alpha of layer .* is no number"),
    ):
        (tmp_path / "adapter_config.json").write_bytes(settings)
        with pytest.raises(ValueError, match=f"adapter_model.safetensors: .*{match}"):
            merge_lora(own, tmp_path)
    refused("has rank 0", **{f"{name}.lora_A.weight": down[:0], f"{name}.lora_B.weight": up[:, :0]})
    after = own.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
