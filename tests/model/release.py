"""A folder laid out as a release, of tiny parts."""

from __future__ import annotations

from pathlib import Path

import torch
from theodolite.model.checkpoint import save_world_model
from theodolite.model.network import WorldModel
from theodolite.model.parts import TINY


def write_release(folder: Path, *, distilled: bool = False, refiner: bool = True) -> Path:
    """Files of all parts under the names of the release."""
    import transformers
    from theodolite.model.autoencoder import tiny_autoencoder
    from theodolite.model.text import byte_tokenizer, tiny_text_encoder

    torch.manual_seed(0)
    (folder / "dit").mkdir(parents=True)
    save_world_model(WorldModel(TINY), folder / "dit" / "model.pt")
    name = "ltx2_causal_vae" if distilled else "vae"
    tiny_autoencoder(causal=distilled).vae.save_pretrained(folder / name)
    own = tiny_text_encoder()
    outer = transformers.Gemma2ForCausalLM(own.model.config)
    outer.model.load_state_dict(own.model.state_dict())
    outer.save_pretrained(folder / "text_encoder")
    byte_tokenizer().save_pretrained(folder / "text_encoder")
    (folder / "config.yaml").write_text("text_encoder:\n  chi_prompt: ['Say: ']\n")
    if refiner:
        _write_refiner(folder / "refiner")
    return folder


def _write_refiner(folder: Path) -> None:
    import transformers
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from theodolite.model import refiner
    from theodolite.model.text import byte_tokenizer, tiny_refiner_text_encoder

    sizes = dict(in_channels=8, out_channels=8, caption_channels=16)
    refiner._kind()(**refiner.TINY, **sizes).save_pretrained(folder / "transformer")
    own = tiny_refiner_text_encoder()
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    config = transformers.Gemma3Config(
        text_config=own.model.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    whole = transformers.Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(own.model.state_dict())
    whole.save_pretrained(folder / "text_encoder")
    byte_tokenizer().save_pretrained(folder / "text_encoder")
    mixing = LTX2TextConnectors(**own.connectors.config)
    mixing.load_state_dict(own.connectors.state_dict(), strict=False)
    mixing.save_pretrained(folder / "connectors")
