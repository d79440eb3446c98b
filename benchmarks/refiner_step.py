"""A training step of the refiner's LoRA at full size with random weights: time, memory, tokens.

    python benchmarks/refiner_step.py [--frames 7 22 61] [--rank 384] [--cap-gb 80]     # one GPU
    python benchmarks/refiner_step.py --tiny                                            # the same on a CPU

It runs what `theodolite train refiner` runs (`refiner_loss`, AdamW over the LoRA, blocks computed again in the backward
pass), at 704 x 1280: block by block, where the last block of a clip of so many latent frames learns and sees the window
before it, and all frames at once. Median of the steps after the first; peak of torch's allocator.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import torch
from theodolite.model.refiner import Refiner, tiny_refiner
from theodolite.model.samplers import Text
from theodolite.model.stand_ins import full_refiner
from theodolite.recipes.training import load_train_recipe
from theodolite.train.refiner_training import _Recomputed, add_refiner_lora
from theodolite.train.refining import RefinerConfig, RefinerDraws, num_blocks, refiner_loss


def learner(asked: argparse.Namespace, seen: str) -> tuple[Refiner, RefinerConfig, torch.optim.Optimizer]:
    """The refiner with its LoRA, as `theodolite train refiner` has it."""
    device = torch.device("cpu" if asked.tiny else "cuda")
    dtype = torch.float32 if asked.tiny else torch.bfloat16
    recipe = load_train_recipe("refiner", [f"refiner.frames={seen}", f"lora.rank={asked.rank}"])
    assert recipe.refiner is not None
    options = recipe.refiner.options(16.0)
    refiner = tiny_refiner(options=options) if asked.tiny else full_refiner(device, dtype, options=options)
    add_refiner_lora(refiner, recipe, dtype=dtype)
    refiner.to(device)
    for block in refiner.transformer.transformer_blocks:
        block.forward = _Recomputed(block.forward)
    learning = [p for p in refiner.parameters() if p.requires_grad]
    return refiner, recipe.refiner, torch.optim.AdamW(learning, lr=1e-4, fused=not asked.tiny)


def steps(
    asked: argparse.Namespace,
    frames: int,
    seen: str,
    refiner: Refiner,
    config: RefinerConfig,
    optimiser: torch.optim.Optimizer,
) -> str:
    device = next(refiner.parameters()).device
    learning = [p for p in refiner.parameters() if p.requires_grad]
    channels, height, width = (8, 2, 3) if asked.tiny else (128, 22, 40)
    clean, start, noise = torch.randn(3, 1, channels, frames, height, width, device=device)
    text = Text(
        torch.randn(1, 64 if asked.tiny else 1024, refiner.transformer.config.caption_channels, device=device)
    )
    last = num_blocks(config, frames, sink=1) - 1
    draws = RefinerDraws(torch.tensor([0.6], device=device), torch.tensor([last]), noise)
    times, loss = [], torch.zeros(())
    for _ in range(asked.steps):
        if not asked.tiny:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        loss = refiner_loss(refiner, clean, start, text, config, draws)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        float(loss.detach())
        times.append(time.perf_counter() - begun)
    peak = float("nan") if asked.tiny else torch.cuda.max_memory_allocated() / 2**30
    count = sum(p.numel() for p in learning) / 1e6
    took, last_loss = statistics.median(times[1:]), float(loss.detach())
    return f"| {seen} | {frames} | {count:.0f} | {took:.2f} | {peak:.1f} | {last_loss:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--frames", type=int, nargs="+", default=[7, 22, 61])
    parser.add_argument("--rank", type=int, default=384)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cap-gb", type=float, default=None, help="of torch's allocator")
    asked = parser.parse_args()
    if asked.tiny:
        asked.frames, asked.rank = [7, 10], 4
    elif asked.cap_gb is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, asked.cap_gb * 2**30 / total))
    print("| frames seen | latent frames | LoRA, M | s a step | peak GiB | loss |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for seen in ("blocks", "together"):
        parts = learner(asked, seen)
        for frames in asked.frames:
            try:
                print(steps(asked, frames, seen, *parts), flush=True)
            except torch.OutOfMemoryError:
                parts[2].zero_grad(set_to_none=True)
                print(f"| {seen} | {frames} | | does not fit | | |", flush=True)
            if not asked.tiny:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
        del parts
        gc.collect()
        if not asked.tiny:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
