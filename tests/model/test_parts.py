"""The chain's parts from a released folder, by name, and as stand-ins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from theodolite.model.parts import Numbers, find_parts, load_generator, released_parts
from theodolite.model.residence import Offload
from theodolite.model.sampling import Mode

from ..support import needs_packages
from ..typed import known
from .chain_parts import request
from .release import write_release

pytestmark = needs_packages("diffusers", "transformers", extra="generate")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["distilled", "bidirectional"])
def test_the_chain_from_a_folder(tmp_path: Path, mode: Mode) -> None:
    folder = write_release(tmp_path / "release", distilled=mode == "distilled")
    chain = load_generator(folder, mode=mode, device="cpu", numbers=Numbers(precision="float32"))
    assert chain.text_encoder.instruction == "Say: "
    assert not chain.stand_in
    assert chain.parts["world_model"]["numbers"]["precision"] == "float32"
    assert known(chain.refiner).options.block_frames == (3 if mode == "distilled" else None)
    frames = np.concatenate(list(chain.stream(request(mode))))
    assert frames.shape == (49, 64, 96, 3)


@pytest.mark.slow
def test_five_lines() -> None:
    """As docs/generating.md shows it."""
    generator = load_generator("stand_in", mode="distilled", device="cpu")
    assert generator.stand_in
    frames = np.concatenate(list(generator.stream(request("distilled"))))
    assert frames.shape == (49, 64, 96, 3)


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["none", "idle", "blocks"])
def test_offload_changes_nothing(offload: Offload) -> None:
    found = []
    policies: list[Offload] = ["none", offload]
    for policy in policies:
        generator = load_generator("stand_in", mode="bidirectional", device="cpu", offload=policy)
        found.append(np.concatenate(list(generator.stream(request("bidirectional", frames=17)))))
    assert np.array_equal(*found)


@pytest.mark.slow
def test_low_precision_is_reported() -> None:
    numbers = Numbers(precision="int8-weights", scopes=("qkv", "ffn"))
    generator = load_generator("stand_in", mode="distilled", device="cpu", numbers=numbers, refine=False)
    report = generator.parts["world_model"]["numbers"]
    assert report["precision"] == "int8-weights"
    assert report["layers"] > 4
    frames = np.concatenate(list(generator.stream(request("distilled", refine=False))))
    assert frames.std() > 0
    assert generator.autoencoder.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="Blackwell"):
        load_generator("stand_in", mode="distilled", device="cpu", numbers=Numbers(precision="nvfp4"))


def test_folders_that_lack_parts(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"lacks parts of the release: world model .*; autoencoder .*; refiner"
    ):
        find_parts(tmp_path, mode="bidirectional", refine=True)
    (tmp_path / "dit").mkdir()
    for name in ("a", "b"):
        (tmp_path / "dit" / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="2 files dit"):
        find_parts(tmp_path, mode="bidirectional", refine=False)


def test_released_parts_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"sana-wm-streaming, ltx-2-vae-causal.*theodolite weights pull distilled"
    ):
        released_parts("distilled", refine=True)
