"""The chain's parts with random numbers at the released sizes: to time a machine, before anything is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import refiner as refiners
from .autoencoder import Tiling, VideoAutoencoder
from .config import WorldModelConfig
from .context import Operators
from .network import WorldModel
from .refiner import Refiner, RefinerOptions
from .released import import_diffusers, import_transformers
from .text import RefinerTextEncoder, TextEncoder, byte_tokenizer

_STRIP = 1 << 22
"""Numbers that are drawn; all weights are made of them."""


def random_weights(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Give a module from `meta` random weights at once; a short random strip is repeated, scaled by the inputs.

    On the CPU, drawing 13 G numbers would take minutes; nothing here depends on them but their size.
    """
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    strip = torch.randn(_STRIP, generator=generator, device=device).to(dtype)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith(("latents_std", "embed_scale")) or (value.ndim == 1 and "norm" in name):
            value.data.fill_(1)
        elif value.ndim < 2:
            value.data.zero_()
        else:
            flat = value.data.view(-1)
            whole = flat.numel() // _STRIP * _STRIP
            scaled = strip * max(1, value[0].numel()) ** -0.5
            flat[:whole].view(-1, _STRIP).copy_(scaled.expand(whole // _STRIP, -1))
            flat[whole:].copy_(scaled[: flat.numel() - whole])
    return module.eval().requires_grad_(False)


def full_world_model(
    device: torch.device | str, dtype: torch.dtype, operators: Operators | None = None
) -> WorldModel:
    """The 2.66 B network."""
    with torch.device("meta"):
        model = WorldModel(WorldModelConfig(), operators)
    return random_weights(model, device, dtype)


def full_autoencoder(
    device: torch.device | str, dtype: torch.dtype, *, causal: bool, tiling: Tiling | None = None
) -> VideoAutoencoder:
    """LTX-2's, with the decoder of the streaming release if `causal`."""
    with torch.device("meta"):
        kind = import_diffusers("models.autoencoders.autoencoder_kl_ltx2").AutoencoderKLLTX2Video
        vae = kind(decoder_causal=causal)
    return VideoAutoencoder(random_weights(vae, device, dtype), tiling=tiling, stand_in=True)


def full_text_encoder(device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """Gemma-2-2b's shape, with one token a byte."""
    transformers = import_transformers()
    with torch.device("meta"):
        language = transformers.Gemma2Model(transformers.Gemma2Config())
    return TextEncoder(
        _rebuilt(language, device, dtype),
        byte_tokenizer(),
        instruction="Describe this in detail: ",
        stand_in=True,
    )


def full_refiner(device: torch.device | str, dtype: torch.dtype, *, options: RefinerOptions) -> Refiner:
    """LTX-2's transformer without its half for sound."""
    with torch.device("meta"):
        transformer = refiners._kind()(rope_type="split")
    refiners.drop_parts(transformer, refiners.SOUND)
    return Refiner(random_weights(transformer, device, dtype), options=options, stand_in=True)


GEMMA_3_12B = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 262208,
}
"""Of the refiner's language model, in the words of transformers' `Gemma3TextConfig`."""


def full_refiner_text_encoder(device: torch.device | str, dtype: torch.dtype) -> RefinerTextEncoder:
    """Gemma-3-12B's shape and LTX-2's connectors."""
    transformers = import_transformers()
    config = transformers.Gemma3TextConfig(**GEMMA_3_12B)
    with torch.device("meta"):
        language = transformers.Gemma3TextModel(config)
        connectors = import_diffusers("pipelines.ltx2.connectors").LTX2TextConnectors(rope_type="split")
    return RefinerTextEncoder(
        _rebuilt(language, device, dtype),
        random_weights(connectors, device, dtype),
        byte_tokenizer(),
        stand_in=True,
    )


def _rebuilt(language: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A language model of random weights; its tables of rotations are computed, not drawn."""
    filled = random_weights(language, device, dtype)
    filled.rotary_emb = type(filled.rotary_emb)(filled.config).to(device)
    return filled
