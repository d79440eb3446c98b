"""Record what the public NVlabs/Sana code makes of tiny neighbours, as `nvlabs_sana_neighbours.npz`.

    python -m theodolite.tests.model.record_nvlabs_neighbours SANA OUT.npz

SANA: a checkout of NVlabs/Sana (recorded from the authors' fork of 15 June 2026, with diffusers 0.42.1), float32, CPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from theodolite.model import autoencoder, refiner
from torch import nn

from .neighbours import REFINER_SIZES, VAE_STRIDES, decoder_inputs, fill, refiner_inputs


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def official_refiner(sana: Path) -> Any:
    """Their wrapper around a filled tiny transformer; what reads files or a prompt is left out."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    kind = load(sana / "diffusion/refiner/diffusers_ltx2_refiner.py").DiffusersLTX2Refiner
    found = kind.__new__(kind)
    nn.Module.__init__(found)
    found.dtype, found.device = torch.float32, torch.device("cpu")
    found._te_nvfp4_requested = found._te_nvfp4_converted = found._self_qkv_fused = False
    found._te_nvfp4_recipe, found._attention_backend, found._uniform_timestep_cache = None, "", {}
    found.transformer = fill(LTX2VideoTransformer3DModel(**refiner.TINY, **REFINER_SIZES))
    _, states, mask = refiner_inputs()
    found._encode_prompt = lambda prompt: (states, mask.int())
    return found


def main() -> None:
    sana, out = Path(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, np.ndarray] = {}
    theirs = official_refiner(sana)
    latents, _, _ = refiner_inputs()
    for block, window in ((None, 11), (3, 11), (3, 5), (2, 1)):
        made = theirs.refine_latents(
            latents, "", fps=16.0, block_size=block, kv_max_frames=window, progress=False
        )
        found[f"refined_{block}_{window}"] = made.numpy()
    with mock.patch.dict(os.environ, SANA_WM_REFINER_FAST_KV_CAPTURE="last_predict"):
        made = theirs.refine_latents(latents, "", fps=16.0, block_size=3, kv_max_frames=5, progress=False)
    found["refined_3_5_last-step"] = made.numpy()
    module = load(sana / "diffusion/model/ltx2/causal_vae.py")
    vae = module.AutoencoderKLCausalLTX2Video(
        **autoencoder.TINY, **VAE_STRIDES, decoder_causal=True, decoder_upsample_type=("spatiotemporal",) * 3
    )
    fill(vae)
    z = decoder_inputs()
    mean, std = (t.view(1, -1, 1, 1, 1) for t in (vae.latents_mean, vae.latents_std))
    z = z * std / vae.config.scaling_factor + mean
    with torch.no_grad():
        frames = torch.cat(list(vae.decode_per_frame_with_cache(z, causal=True, reset_cache=True)), dim=2)
    found["streamed"] = frames[0, :, :, ::7, ::5].numpy()
    np.savez_compressed(out, **cast(dict[str, Any], found))


if __name__ == "__main__":
    main()
