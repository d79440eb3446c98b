"""Modules of diffusers from released folders: read strictly, mapped, and refused by name when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from theodolite.model import autoencoder, refiner, released
from theodolite.model.autoencoder import VideoAutoencoder, load_autoencoder
from theodolite.model.refiner import Refiner, load_refiner
from theodolite.model.samplers import Text

from ..support import needs_packages
from .cases import relative
from .neighbours import REFINER_SIZES, decoder_inputs, fill, refiner_inputs

pytestmark = needs_packages("diffusers", extra="generate")

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    """The causal autoencoder as its own class writes it."""
    vae = fill(autoencoder._kind()(**autoencoder.TINY))
    vae.save_pretrained(tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    config["_class_name"] = "AutoencoderKLCausalLTX2Video"
    config["decoder_upsample_type"] = config.pop("upsample_type")
    config["gradient_checkpointing"] = False
    (tmp_path / "vae/config.json").write_text(json.dumps(config))
    return tmp_path / "vae"


@pytest.fixture
def refiner_folder(tmp_path: Path) -> Path:
    """The refiner as released: a whole LTX-2 transformer in shards, sound included."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    whole = fill(LTX2VideoTransformer3DModel(**refiner.TINY, **REFINER_SIZES))
    whole.save_pretrained(tmp_path / "refiner/transformer", max_shard_size="100KB")
    return tmp_path / "refiner"


@pytest.mark.slow
def test_the_autoencoder_loads_as_it_was_written(vae_folder: Path) -> None:
    expected = VideoAutoencoder(fill(autoencoder._kind()(**autoencoder.TINY)))
    latents = decoder_inputs(3)
    for folder in (vae_folder, vae_folder.parent):
        loaded = load_autoencoder(folder, dtype=torch.float32)
        assert loaded.is_causal
        assert not loaded.stand_in
        stream, other = loaded.start_stream(), expected.start_stream()
        assert torch.equal(stream.add(latents), other.add(latents))
    assert load_autoencoder(vae_folder).dtype == torch.bfloat16


def test_a_name_of_the_causal_class_is_understood(vae_folder: Path) -> None:
    config = json.loads((vae_folder / "config.json").read_text())
    config["decoder_upsample_type"] = ["spatiotemporal", "spatiotemporal", "spatial"]
    (vae_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit AutoencoderKLLTX2Video: decoder\.up_blocks"):
        load_autoencoder(vae_folder)
    config["decoder_upsample_type"] = None
    (vae_folder / "config.json").write_text(json.dumps(config))
    assert load_autoencoder(vae_folder).temporal_stride == 8


def test_the_refiner_loads_without_sound_from_shards(refiner_folder: Path) -> None:
    assert len(list((refiner_folder / "transformer").glob("*.safetensors"))) > 2
    latents, states, mask = refiner_inputs()
    expected = Refiner(fill(refiner._kind()(**refiner.TINY, **REFINER_SIZES)))
    for folder in (refiner_folder, refiner_folder / "transformer"):
        loaded = load_refiner(folder, dtype=torch.float32)
        assert not [n for n, _ in loaded.named_parameters() if "audio" in n]
        assert torch.equal(
            loaded.refine(latents, Text(states, mask)), expected.refine(latents, Text(states, mask))
        )


def test_weights_stay_mapped(refiner_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored in the wanted type is not copied: its pages belong to the file."""
    loaded = load_refiner(refiner_folder, dtype=torch.float32)
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("needs /proc")
    ranges = []
    for line in mapped.read_text().splitlines():
        if line.endswith(".safetensors"):
            first, last = line.split()[0].split("-")
            ranges.append((int(first, 16), int(last, 16)))
    weight = loaded.transformer.transformer_blocks[0].ff.net[2].weight
    assert any(a <= weight.data_ptr() < b for a, b in ranges)


def damage(folder: Path, what: str) -> str:
    """Damage a released folder; returns what the message must say."""
    weights, config = folder / WEIGHTS, folder / "config.json"
    if what == "no weights":
        weights.unlink()
        return "holds 0 safetensors files"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
        return f"{WEIGHTS} is no intact safetensors file"
    if what == "pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        return f"{WEIGHTS} is no intact safetensors file"
    if what == "no config":
        config.unlink()
        return "holds no config.json"
    if what == "config":
        config.write_text("[1]")
        return "holds no JSON object"
    if what == "config text":
        config.write_text("{")
        return "is no JSON"
    if what == "two files":
        (folder / "other.safetensors").write_bytes(weights.read_bytes())
        return "holds 2 safetensors files and no index"
    tensors: dict[str, Any] = load_file(weights)
    name = "decoder.conv_in.conv.bias"
    if what == "missing":
        del tensors[name]
    elif what == "unknown":
        tensors["decoder.conv_in.conv.extra"] = torch.zeros(2)
    elif what == "shape":
        tensors[name] = torch.zeros(3)
    elif what == "not finite":
        tensors[name][0] = torch.nan
    save_file(tensors, weights)
    return {
        "missing": f"missing {name}",
        "unknown": "unknown decoder.conv_in.conv.extra",
        "shape": f"{name} is (3,), expected",
        "not finite": f"{name} holds NaN or inf",
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        *("no weights", "truncated", "pointer", "no config", "config", "config text", "two files"),
        *("missing", "unknown", "shape", "not finite"),
    ],
)
def test_damaged_folders_are_refused_by_name(vae_folder: Path, what: str) -> None:
    message = damage(vae_folder, what)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_autoencoder(vae_folder)
    assert message in str(error.value)
    assert str(vae_folder) in str(error.value)


def test_damaged_indices_are_refused_by_name(refiner_folder: Path) -> None:
    index = refiner_folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    whole = index.read_text()
    shard = sorted((refiner_folder / "transformer").glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"names '{shard.name}', which does not lie beside it"):
        load_refiner(refiner_folder)
    shard.write_bytes(content)
    for text in ("{", "[]", "{}", json.dumps({"weight_map": {"a": "../../other.safetensors"}})):
        index.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match="index"):
            load_refiner(refiner_folder)
    index.write_text(whole)
    load_refiner(refiner_folder)
    another = json.loads(whole)
    needed = another["weight_map"]["proj_in.weight"]
    another["weight_map"] = {k: v for k, v in another["weight_map"].items() if v != needed}
    index.write_text(json.dumps(another))
    with pytest.raises(ValueError, match="does not fit SanaWMLTX2RefinerTransformer3DModel: missing"):
        load_refiner(refiner_folder)


@pytest.mark.slow
def test_another_networks_weights_are_refused(vae_folder: Path, refiner_folder: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        load_refiner(vae_folder)
    with pytest.raises(ValueError, match="does not fit"):
        load_autoencoder(refiner_folder / "transformer")


def test_missing_packages_say_what_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl_ltx2", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install theodolite\[generate\]"):
        autoencoder.tiny_autoencoder()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"peft.* pip install theodolite\[generate\]"):
        released.import_peft()


def test_files_are_relative_to_nothing(vae_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vae_folder)
    assert relative(*[next(load_autoencoder(f).parameters()).float() for f in (".", vae_folder)]) == 0
