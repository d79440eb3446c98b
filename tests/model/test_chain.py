"""The chain with its real neighbours at a tiny size: from the folders of both releases, under every offload policy."""

from __future__ import annotations

import faulthandler
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from theodolite.model import autoencoder, refiner
from theodolite.model.generation import Generator
from theodolite.model.network import WorldModel
from theodolite.model.parts import TINY, Numbers, find_parts, load_generator, stand_in_generator
from theodolite.model.residence import Residence
from theodolite.model.sampling import Mode
from theodolite.model.text import byte_tokenizer, tiny_refiner_text_encoder, tiny_text_encoder

from ..support import needs_packages
from .chain_parts import request

pytestmark = needs_packages("diffusers", extra="generate")

EXACT = Numbers(precision="float32")
NAMES = {
    "bidirectional": ("dit/sana_wm.safetensors", "vae", "refiner", "refiner/text_encoder"),
    "distilled": ("sana_dit/model.pt", "ltx2_causal_vae", "refiner_diffusers", "gemma3_12b"),
}


def frames_of(generator: Generator, mode: Mode) -> NDArray[np.uint8]:
    pieces: list[NDArray[np.uint8]] = []
    record = generator.generate(request(mode), on_frames=pieces.append)
    assert record.status == "complete"
    return np.concatenate(pieces)


def released(folder: Path, mode: str) -> Path:
    """Tiny networks in the layout of a release."""
    import transformers
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from safetensors.torch import save_file

    world_model, vae, refining, language = NAMES[mode]
    torch.manual_seed(0)
    weights = WorldModel(TINY).state_dict()
    (folder / world_model).parent.mkdir(parents=True)
    if world_model.endswith(".pt"):
        torch.save(
            {"generator": {f"model.{k}": v for k, v in weights.items()}, "step": 3}, folder / world_model
        )
    else:
        save_file(weights, folder / world_model)
    autoencoder._kind()(**autoencoder.TINY, decoder_causal=mode == "distilled").save_pretrained(folder / vae)
    sizes: dict[str, Any] = dict(in_channels=8, out_channels=8, caption_channels=16)
    LTX2VideoTransformer3DModel(**refiner.TINY, **sizes).save_pretrained(folder / refining / "transformer")
    reader = tiny_refiner_text_encoder()
    mixing = LTX2TextConnectors(**reader.connectors.config)
    mixing.save_pretrained(folder / refining / "connectors")
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    both = transformers.Gemma3Config(
        text_config=reader.model.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    transformers.Gemma3ForConditionalGeneration(both).save_pretrained(folder / language)
    small = tiny_text_encoder().model.config
    transformers.Gemma2ForCausalLM(small).save_pretrained(folder / "gemma-2-2b-it")
    for place in (language, "gemma-2-2b-it"):
        byte_tokenizer().save_pretrained(folder / place)
    text = {"text_encoder": {"chi_prompt": ["Say more: "]}}
    (folder / "config.yaml").write_text(json.dumps(text))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bidirectional", "distilled"])
def test_the_layout_of_a_release_runs_under_every_policy(tmp_path: Path, mode: Any) -> None:
    files = find_parts(released(tmp_path, mode), mode=mode, refine=True)
    made = {}
    for offload in ("none", "idle", "blocks"):
        generator = load_generator(files, mode=mode, device="cpu", numbers=EXACT, offload=offload)
        assert generator.text_encoder.instruction == "Say more: "
        assert not generator.stand_in
        made[offload] = frames_of(generator, mode)
    assert len(made["none"]) == 49
    assert made["none"].std() > 1
    for offload in ("idle", "blocks"):
        assert np.array_equal(made[offload], made["none"]), offload


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", ["bidirectional", pytest.param("chunk-causal", marks=pytest.mark.thorough), "distilled"]
)
def test_stand_ins_run_twice_from_the_device_and_from_home(mode: Any) -> None:
    generator = stand_in_generator(mode=mode)
    first = frames_of(generator, mode)
    assert np.array_equal(first, frames_of(generator, mode))
    residence = Residence("blocks", "cpu", resident_bytes=50_000)
    generator.residence = residence
    assert np.array_equal(first, frames_of(generator, mode))
    residence.release()
    generator.residence = None
    assert np.array_equal(first, frames_of(generator, mode))


@pytest.mark.slow
def test_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    try:
        importlib.import_module("chain").main(
            ["--tiny", "--mode", "distilled", "--offload", "blocks", "--parts", "--no-gemma3"]
        )
    finally:
        faulthandler.cancel_dump_traceback_later()
    shown = capfd.readouterr().out
    assert "x real time" in shown
    assert "StreamingReport" in shown
