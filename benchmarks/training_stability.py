"""Which scaling of the keys lets a network train? Loss and gradient norm, step after step, for several seeds.

    python benchmarks/training_stability.py [--steps 40] [--seeds 3] [--device cuda --frames 41 --tokens 12 20]

The paper's ablation (arXiv 2605.15178) at small size: with (D S)^-1/2 training is stable, with D^-1/2 it saw NaN at
step 16, without a scale at step 1. Here a network of four blocks, from the same initial values, learns smooth random
latents by `train.objective` with each scaling; nothing else differs, gradients are clipped to 0.5 as in the recipes. A
run ends with the first loss or gradient that is not finite. Prints, for every run, the step at which that was and the
gradient norms (before clipping) along the way.
"""

from __future__ import annotations

import argparse
import math
from unittest import mock

import torch
import torch.nn.functional as F
from kernels_stability import SCALINGS, scale_of
from theodolite.model.config import WorldModelConfig
from theodolite.model.network import WorldModel
from theodolite.model.samplers import Text
from theodolite.model.start import initialise
from theodolite.train.objective import Batch, ObjectiveConfig, training_loss
from torch import Tensor


def smooth_latents(asked: argparse.Namespace, generator: torch.Generator) -> Tensor:
    """(2, 8, T, H, W) of spread one that vary slowly over frames and places."""
    t, (h, w) = asked.frames, asked.tokens
    coarse = torch.randn(2, 8, max(2, t // 4), max(2, h // 2), max(2, w // 2), generator=generator)
    fine = F.interpolate(coarse, (t, h, w), mode="trilinear")
    return (fine / fine.std()).to(asked.device)


def run(scaling: str, seed: int, asked: argparse.Namespace) -> tuple[int | None, list[float], float]:
    """Step of the first number that is not finite (None: none), gradient norms, last finite loss."""
    config = WorldModelConfig(
        depth=4, width=128, heads=4, latent_channels=8, text_width=16, text_tokens=4, softmax_every=5
    )
    model = WorldModel(config)
    initialise(model, torch.Generator().manual_seed(seed))
    model.to(asked.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=asked.lr, betas=(0.9, 0.999), weight_decay=0.0)
    generator = torch.Generator().manual_seed(1000 + seed)
    draws = torch.Generator(asked.device).manual_seed(2000 + seed)
    text = Text(torch.zeros(2, 4, 16, device=asked.device))
    norms, last = [], float("nan")
    with mock.patch(
        "theodolite.model.attention.key_scale", lambda size, tokens: scale_of(scaling, size, tokens)
    ):
        for step in range(1, asked.steps + 1):
            loss = training_loss(
                model, Batch(smooth_latents(asked, generator), text), ObjectiveConfig(shift=3.0), draws
            )
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            if not (math.isfinite(norm) and math.isfinite(float(loss.detach()))):
                return step, norms, last
            norms.append(norm)
            last = float(loss.detach())
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    return None, norms, last


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--tokens", type=int, nargs=2, default=[6, 10], metavar=("H", "W"))
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    print("| scaling | seed | not finite at step | last loss | norm at 1 | median norm | largest norm |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for scaling in SCALINGS:
        for seed in range(asked.seeds):
            end, norms, last = run(scaling, seed, asked)
            found = torch.tensor(norms or [math.nan])
            print(
                f"| {scaling} | {seed} | {end or 'never'} | {last:.3f} | {float(found[0]):.3g} | "
                f"{float(found.median()):.3g} | {float(found.max()):.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
