"""A training step at full size: forward and backward beside NVlabs/Sana, whole steps, LoRA on a card of 24 GB.

    python benchmarks/train_speed.py [--parts official passes step lora] [--sana SANA] [--frames 121]
    torchrun --nproc-per-node 2 benchmarks/train_speed.py --parts step [--context 2] [--frames 16] [--repeats 1]
    python benchmarks/train_speed.py --smoke

Random weights, random clips of 121 latent frames of 22 x 40 tokens (a minute of 720p), batch 1. `official` is forward
and backward in bfloat16 of NVlabs/Sana's network with its own gradient checkpointing and kernels; `passes` the same of
ours with each choice of what is computed again, the same weights and inputs, gradients compared. `step` is the
trainer's own step through FSDP2: float32 weights, AdamW, reading clips included; under torchrun all ranks take part,
`--context` of them sharing a clip. `lora` is `finetune_lora` with the allocator capped at 24 GB: the longest clip that
fits. Every row: median of the steps after the first, whose time is told apart; peak of torch's allocator in them. The
first step's loss is told as well: the same for ranks that share one clip as for one rank, up to bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from beside_nvlabs import (
    PADDED_SCALE,
    Inputs,
    import_official,
    inputs_of,
    load_ours,
    official_network,
    ours_like,
)
from model_sizes import FULL, SMOKE, Size, attempt, random_model, relative, synchronise, time_ms
from theodolite.dataset.encoded import (
    EncodedClip,
    Encoding,
    Window,
    begin,
    open_encoded,
    window_id,
    write_shard,
)
from theodolite.model.config import WorldModelConfig
from theodolite.model.network import WorldModel
from theodolite.train.cost import ClipShape, memory_rows, peak_flops, step_flops
from theodolite.train.parallel import Ranks, Recompute, make_ranks, recompute_blocks
from theodolite.train.recipe import LoraConfig, TrainRecipe
from theodolite.train.start import Started
from theodolite.train.training import StepReport, Training
from torch import Tensor
from torch.utils.checkpoint import checkpoint

RECOMPUTE = ("blocks", "all_but_softmax", "all_but_attention", "blocks_in_parts")
COMPARED = (
    "blocks.0.attn.qkv.weight",
    "blocks.3.attn.q_proj_cam.weight",
    "blocks.1.attn.out_proj_cam.weight",
    "blocks.0.mlp.point_conv.conv.weight",
    "blocks.3.cross_attn.kv_linear.weight",
    "x_embedder.proj.weight",
    "final_layer.linear.weight",
)
"""Weights whose gradients are compared, early and late, of both kinds of blocks."""


def clip_shape(size: Size) -> ClipShape:
    return ClipShape(frames=size.frames, height=size.height, width=size.width)


def told(size: Size, what: str, milliseconds: float, gib: float) -> None:
    """One row; of one card also the share of its peak."""
    flops = step_flops(size.config, clip_shape(size))
    text = f"  {what:44s} {milliseconds:9.0f} ms  peak {gib:6.2f} GiB"
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    if alone and torch.cuda.is_available() and (peak := peak_flops(torch.cuda.get_device_name())):
        floor = 1e3 * flops / peak
        text += f"  MFU {100 * floor / milliseconds:5.1f} %  (floor {floor:.0f} ms)"
    print(text, flush=True)


def measure(size: Size, what: str, step: Callable[[], object], repeats: int = 2) -> float:
    """Take a step, then time `repeats` more; median milliseconds. One that took minutes at first is taken once more
    only."""
    began = time.perf_counter()
    step()
    synchronise()
    first = time.perf_counter() - began
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    milliseconds = time_ms(step, 1 if first > 90 else repeats, 0)
    gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    if not dist.is_initialized() or dist.get_rank() == 0:
        told(size, f"{what} (first {first:.1f} s)", milliseconds, gib)
    return milliseconds


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def target(inputs: Inputs) -> Tensor:
    generator = torch.Generator(device=inputs.latents.device).manual_seed(5)
    return torch.randn(inputs.latents.shape, generator=generator, device=inputs.latents.device)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return {n: g.detach().float().cpu() for n in COMPARED if n in named and (g := named[n].grad) is not None}


def passes(size: Size, found: dict[str, dict[str, Tensor]], kept: list[str]) -> None:
    """Ours, with each choice of what is computed again; what keeping outputs of attention saves."""
    inputs = inputs_of(size)
    wanted = target(inputs)
    times: dict[str, float] = {}
    for what in kept:
        model = ours_like(size, camera_softmax_scale=PADDED_SCALE).train()
        recompute_blocks(model, cast(Recompute, what))

        def step(model: WorldModel = model) -> None:
            model.zero_grad(set_to_none=True)
            out = model(inputs.latents, inputs.times, inputs.text, cameras=inputs.cameras)
            (out.float() - wanted).square().mean().backward()

        def timed(step: Callable[[], None] = step, what: str = what) -> None:
            times[what] = measure(size, f"ours, recompute {what}", step)

        if attempt(f"ours, {what}", timed):
            found["ours"] = gradients(model)
        del model, step, timed
        free()
    for what in times:
        if what != "blocks" and "blocks" in times:
            print(f"  {what} takes {times[what] / times['blocks']:.3f} of what blocks take", flush=True)
    if "official" in times_of:
        for what, ms in times.items():
            print(f"  NVlabs/Sana takes {times_of['official'] / ms:.2f} times ours ({what})", flush=True)
    compare_gradients(found)


times_of: dict[str, float] = {}


def compare_gradients(found: dict[str, dict[str, Tensor]]) -> None:
    for name, gradient in found.get("official", {}).items():
        if name not in found.get("ours", {}):
            continue
        if not bool(gradient.isfinite().all()):  # Triton's interpreter cannot multiply bfloat16
            print(f"    gradient of {name}: that of NVlabs/Sana is not finite", flush=True)
            continue
        print(f"    gradient of {name}: differs by {relative(found['ours'][name], gradient):.2e}", flush=True)


def official(size: Size, found: dict[str, dict[str, Tensor]]) -> None:
    """NVlabs/Sana's network, its blocks checkpointed as its recipes do."""
    inputs = inputs_of(size)
    wanted = target(inputs)
    ours = random_model(size)
    state = {k: v.cpu() for k, v in ours.state_dict().items()}
    del ours
    free()
    model = load_ours(official_network(size, "bidirectional"), state, size).train()
    utils = importlib.import_module("diffusion.model.utils")
    vars(utils)["checkpoint"] = functools.partial(checkpoint, use_reentrant=False)
    module: Any
    for module in model.modules():
        module.grad_checkpointing, module.grad_checkpointing_step = True, 1
        if hasattr(module, "use_autograd_kernel"):
            module.use_autograd_kernel = True
    text = inputs.text[:, None]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        out = model(
            inputs.latents, inputs.times[:, None], text, mask=inputs.mask, data_info={}, **inputs.official
        )
        (out.float() - wanted).square().mean().backward()

    times_of["official"] = measure(size, "NVlabs/Sana", step)
    found["official"] = gradients(model)


def write_clips(size: Size, folder: Path, count: int = 3) -> Path:
    """Random windows as `theodolite encode` writes them."""
    config, frames = size.config, 8 * (size.frames - 1) + 1
    encoding = Encoding(
        height=32 * size.height,
        width=32 * size.width,
        fit="cover",
        fps=16.0,
        temporal_stride=8,
        spatial_stride=32,
        latent_channels=config.latent_channels,
        text_width=config.text_width,
        text_tokens=config.text_tokens,
        autoencoder="random",
        text_encoder="random",
        stand_in=True,
    )
    empty = torch.zeros(config.text_tokens, config.text_width)
    begin(folder, encoding, (empty, torch.ones(config.text_tokens, dtype=torch.bool)))
    for number in range(count):
        poses = torch.eye(4).repeat(frames, 1, 1)
        poses[:, :3, 3] = 0.02 * torch.randn(frames, 3).cumsum(0)
        lens = torch.tensor([900.0, 900.0, 16.0 * size.width, 16.0 * size.height]).repeat(frames, 1)
        window = Window(
            id=window_id(f"clip{number}", 0), clip_id=f"clip{number}", first_frame=0, num_frames=frames,
            caption="random", cameras=True, data_licence="CC0-1.0", stand_in=True,
        )  # fmt: skip
        latents = torch.randn(config.latent_channels, size.frames, size.height, size.width)
        text = torch.randn(config.text_tokens, config.text_width)
        write_shard(
            folder, [EncodedClip(window, latents, text, torch.ones(config.text_tokens) > 0, poses, lens)]
        )
    return folder


def make_training(size: Size, folder: Path, **changes: Any) -> Training:
    content: dict[str, Any] = dict(
        schema_version=1,
        name="speed",
        start=dict(weights="random"),
        data=dict(held_out=0, workers=0, allow_stand_in=True),
        validation=dict(every=0),
        steps=100,
    )
    recipe = TrainRecipe(**{**content, **changes})
    model = random_model(size).train()
    started = Started(model, tuple(model.state_dict()), (), (), "random numbers")
    return Training(recipe, started, open_encoded(write_clips(size, folder)), folder / "run")


def time_steps(size: Size, training: Training, what: str, repeats: int = 2) -> float:
    """Reading, two passes, clipping and the optimiser, step after step; milliseconds."""
    feed = iter(training.feed())
    reports: list[StepReport] = []
    milliseconds = measure(size, what, lambda: reports.append(training.take_step(next(feed))), repeats)
    if training.ranks.rank == 0:
        first = reports[0]
        print(f"    first step: loss {first.loss:.5f}, norm of its gradient {first.norm:.4f}", flush=True)
    return milliseconds


def begin_ranks(size: Size) -> None:
    """The process group of torchrun, or of one rank on a GPU."""
    if dist.is_initialized():
        return
    kind = "nccl" if size.device == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(kind)
    elif size.device == "cuda":
        dist.init_process_group(kind, init_method="tcp://127.0.0.1:29517", rank=0, world_size=1)


def whole_step(size: Size, context: int, kept: list[str], shorter: bool, repeats: int) -> None:
    """The trainer's step: FSDP2 on GPUs and under torchrun, plain on a single CPU."""
    begin_ranks(size)
    ranks = make_ranks(context) if dist.is_initialized() else Ranks()
    device = torch.device(size.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    many = f"{ranks.world} ranks, {context} share a clip" if ranks.world > 1 else "one rank"
    fits = False
    for frames in dict.fromkeys((size.frames, *((81, 61, 41, 21) if shorter else ()))):
        if frames > size.frames or fits:
            continue
        for recompute in kept:
            now = replace(size, frames=frames, dtype=torch.float32)

            def run(now: Size = now, recompute: str = recompute) -> None:
                with tempfile.TemporaryDirectory() as folder:
                    parallel = dict(recompute=recompute, context=context)
                    training = make_training(now, Path(folder), parallel=parallel)
                    training.place(device, ranks)
                    what = f"step of all weights, {frames} frames, {recompute}, {many}"
                    ms = time_steps(now, training, what, repeats)
                if ranks.rank == 0:
                    clips = ranks.data_ranks
                    rate = 1e3 * clips * now.frames * now.tokens / ms
                    mfu = "" if training.peak is None else f", MFU {100 * own_mfu(now, training, ms):.1f} %"
                    print(f"    {clips} clips a step, {rate:.0f} tokens/s of all ranks{mfu}", flush=True)

            fits = attempt(f"step {frames} {recompute}", run) or fits
            free()


def own_mfu(size: Size, training: Training, milliseconds: float) -> float:
    """Share of the peak of all devices."""
    flops = step_flops(size.config, clip_shape(size)) * training.ranks.data_ranks
    return 1e3 * flops / training.ranks.world / (training.peak or 1) / milliseconds


def tell_memory(config: WorldModelConfig, clip: ClipShape, recompute: str, lora: LoraConfig) -> None:
    """What `--dry-run` says of a LoRA's memory, beside what torch reserved and what the device has in use."""
    rows = memory_rows(config, clip, ranks=1, context=1, recompute=recompute, lora=lora)
    text = f"    the plan says {sum(gb for _, gb in rows) * 1e9 / 2**30:.2f} GiB"
    if torch.cuda.is_available():
        free_bytes, total = torch.cuda.mem_get_info()
        text += f"; reserved {torch.cuda.max_memory_reserved() / 2**30:.2f} GiB, in use with CUDA itself "
        text += f"{(total - free_bytes) / 2**30:.2f} GiB"
    print(text, flush=True)


def lora_steps(size: Size, cap_gb: float, lengths: list[int], recompute: str, repeats: int) -> None:
    """`finetune_lora` below a cap, ever shorter clips until one fits."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * 1e9 / total))
    for frames in lengths:
        now = replace(size, frames=frames)

        def run(now: Size = now) -> None:
            with tempfile.TemporaryDirectory() as folder:
                lora: dict[str, Any] = dict(rank=64, alpha=64, parts=("attention", "camera", "ffn"))
                training = make_training(now, Path(folder), lora=lora, parallel=dict(recompute=recompute))
                training.place(torch.device(now.device), Ranks())
                time_steps(
                    now,
                    training,
                    f"finetune_lora, {8 * (now.frames - 1) + 1} video frames, {recompute}, {cap_gb:g} GB",
                    repeats,
                )
                tell_memory(now.config, clip_shape(now), recompute, LoraConfig(**lora))

        fits = True
        try:
            run()
        except torch.OutOfMemoryError as error:
            fits = False
            print(f"  {8 * (frames - 1) + 1} video frames do not fit: {str(error)[:110]}", flush=True)
        free()
        if fits:
            break
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("official", "passes", "step", "lora")
    parser.add_argument("--parts", nargs="+", choices=names, default=list(names))
    parser.add_argument("--sana", type=Path, help="checkout of NVlabs/Sana, for `official`")
    parser.add_argument("--frames", type=int, nargs="+", default=[121], help="latent frames")
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=list(RECOMPUTE[:2]))
    parser.add_argument("--context", type=int, default=1, help="ranks that share a clip, for `step`")
    parser.add_argument(
        "--repeats", type=int, default=2, help="steps after the first that count, for `step` and `lora`"
    )
    parser.add_argument("--shorter", action="store_true", help="`step`: shorter clips where one does not fit")
    parser.add_argument("--lengths", type=int, nargs="+", default=[121, 91, 81, 71, 61, 51, 41, 31, 21, 11])
    parser.add_argument("--cap-gb", type=float, default=24.0)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    os.environ.setdefault("DISABLE_XFORMERS", "1")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if os.environ.get("RANK", "0") == "0":
        print(
            torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            torch.__version__,
            flush=True,
        )
    found: dict[str, dict[str, Tensor]] = {}
    for frames in [13] if asked.smoke else asked.frames:
        size = replace(SMOKE if asked.smoke else FULL, frames=frames)
        for part in asked.parts:
            if os.environ.get("RANK", "0") == "0":
                print(f"{part}: {size.frames * size.tokens} tokens", flush=True)
            if part == "passes":
                passes(size, found, asked.recompute)
            elif part == "official" and asked.sana is not None:
                if asked.smoke:
                    os.environ["GDN_DISABLE_COMPILE"] = "1"
                print(f"stood in for: {', '.join(import_official(asked.sana))}", flush=True)
                attempt("official", lambda size=size: official(size, found))
            elif part == "step":
                whole_step(size, asked.context, asked.recompute, asked.shorter, asked.repeats)
            elif part == "lora":
                for recompute in asked.recompute:
                    lengths = [5, 3] if asked.smoke else asked.lengths
                    lora_steps(size, asked.cap_gb, lengths, recompute, asked.repeats)
            free()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
