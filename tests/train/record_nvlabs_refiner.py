"""How tests/train/nvlabs_refiner.npz was made: the public refiner training code on fixed draws, with a network of ours.

    python tests/train/record_nvlabs_refiner.py CHECKOUT    # of HaoyiZhu/NVlabs-Sana at 24dd596

Its loss is called with a network of one fixed matrix and the noise level, and with its random numbers recorded as they
are drawn; its level sampler likewise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    # brought by whoever wants it
    # Lies in the checkout that is named.
    from diffusion.refiner.ltx_core.flow_matching import (  # pyright: ignore[reportMissingImports]
        ShiftedLogitNormalTimestepSampler,
        compute_refiner_flow_matching_loss,
    )

    torch.manual_seed(0)
    found: dict[str, Any] = {}
    clean, start = torch.randn(2, 3, 6, 4, 3, 5)
    matrix = torch.randn(6, 6) / 3
    sigmas = torch.tensor([0.1, 0.62, 0.909375])

    def forward_denoise(video_state, sigma, **_):
        x = video_state.latent
        velocity = x @ matrix.T + sigma.view(-1, 1, 1)
        return x - sigma.view(-1, 1, 1) * velocity

    noise = torch.randn_like(start)
    with mock.patch("torch.randn_like", return_value=noise):
        out = compute_refiner_flow_matching_loss(
            student=SimpleNamespace(forward_denoise=forward_denoise),
            clean_target_latent=clean, refiner_start_latent=start, v_context=None, sigmas=sigmas,
            start_sigma=0.909375, fps=16.0,
        )  # fmt: skip
    found |= dict(clean=clean, start=start, noise=noise, matrix=matrix, sigmas=sigmas, loss=out.loss)
    normal, even, chance = torch.randn(256), torch.rand(256), torch.rand(256)
    sampler = ShiftedLogitNormalTimestepSampler()
    for tokens in (300, 2000, 106480):
        with (
            mock.patch("torch.randn", return_value=normal),
            mock.patch("torch.rand", side_effect=[even, chance]),
        ):
            found[f"levels_{tokens}"] = sampler.sample(256, tokens, torch.device("cpu"))
    found |= dict(normal=normal, even=even, chance=chance)
    path = Path(__file__).with_name("nvlabs_refiner.npz")
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in found.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
