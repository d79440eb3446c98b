"""Steps of distillation at full size on one GPU: memory and time by part, beside what the plan counts.

    python benchmarks/distil_speed.py [--parts ode consistency student fake] [--frames 13 22 43]
    python benchmarks/distil_speed.py --smoke

Random weights, random clips of 22 x 40 tokens a latent frame, batch 1, bfloat16 over float32 weights by FSDP2 of one
rank, blocks computed again. `student` and `fake` are the two halves of a self-forcing step, each with the network that
learns (weights, gradients, AdamW) and the other two at rest in bfloat16: both learning networks together take 85 GB
before any clip, so that a whole step needs two GPUs of 80 GB. The exit is the last time, the dearest.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from beside_nvlabs import inputs_of
from model_sizes import FULL, SMOKE, Size, attempt, peak_gib, random_model, time_ms
from theodolite.model.network import WorldModel
from theodolite.model.samplers import Text
from theodolite.train.consistency import (
    ConsistencyConfig,
    Networks,
    consistency_loss,
    draw_consistency,
)
from theodolite.train.cost import ClipShape, distillation_memory, memory_rows
from theodolite.train.objective import Batch
from theodolite.train.ode import draw_snapshots, ode_loss
from theodolite.train.parallel import recompute_blocks, shard_weights
from theodolite.train.recipe import StartConfig, TrainRecipe
from theodolite.train.self_forcing import (
    SelfForcingConfig,
    draw_score,
    fake_score_loss,
    generator_loss,
)
from theodolite.train.student import Conditions, RollOutDraws, StudentConfig, roll_out
from torch import Tensor

PARTS = ("ode", "consistency", "student", "fake")


@dataclass(frozen=True)
class Bench:
    """One clip, and how networks are made for a part."""

    size: Size
    student: StudentConfig

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator(self.size.device).manual_seed(0)

    @property
    def batch(self) -> Batch:
        x = inputs_of(self.size)
        latents = x.latents.float()
        path = latents[:, None].repeat(1, len(self.student.times), 1, 1, 1, 1)
        return Batch(latents, Text(x.text), x.cameras, None, path)

    def network(self, role: str) -> WorldModel:
        """`learns`: float32 with a gradient; `average`: float32; `rests`: bfloat16."""
        model = random_model(replace(self.size, dtype=torch.float32)).train()
        model.requires_grad_(role == "learns")
        if role == "learns":
            recompute_blocks(model, "blocks")
        elif role == "rests":
            model.to(self.size.dtype)
        if self.size.device == "cuda":
            from torch.distributed.fsdp import register_fsdp_forward_method

            shard_weights(model, compute=self.size.dtype)
            register_fsdp_forward_method(model, "forward_chunk")
        return model

    def draws(self) -> RollOutDraws:
        exit_ = len(self.student.times) - 2
        shape = (exit_ + 1, *self.batch.latents.shape)
        return RollOutDraws(exit_, torch.randn(shape, generator=self.generator, device=self.size.device))


def ode(bench: Bench) -> tuple[WorldModel, Callable[[], Tensor]]:
    model, batch = bench.network("learns"), bench.batch
    index = draw_snapshots(bench.student, 1, bench.generator)
    return model, lambda: ode_loss(model, batch, bench.student, index)


def consistency(bench: Bench) -> tuple[WorldModel, Callable[[], Tensor]]:
    networks = Networks(bench.network("learns"), bench.network("average"), bench.network("rests"))
    batch, config = bench.batch, ConsistencyConfig()
    draws = draw_consistency(config, bench.student, batch.latents.shape, bench.generator)
    empty = Text(torch.zeros_like(batch.text.states))
    return networks.student, lambda: consistency_loss(networks, batch, empty, config, bench.student, draws)


def student(bench: Bench) -> tuple[WorldModel, Callable[[], Tensor]]:
    model, fake, real = bench.network("learns"), bench.network("rests"), bench.network("rests")
    batch, config, drawn = bench.batch, SelfForcingConfig(), bench.draws()
    asked = Conditions.of(batch, bench.student.frames)
    judged = draw_score(config, batch.latents.shape, bench.generator)
    negative = Text(torch.zeros_like(batch.text.states))

    def loss() -> Tensor:
        video = roll_out(model, asked, bench.student, drawn, gradient=True)
        return generator_loss(video, asked, negative, (fake, real), config, judged)

    return model, loss


def fake(bench: Bench) -> tuple[WorldModel, Callable[[], Tensor]]:
    model, maker = bench.network("learns"), bench.network("rests")
    batch, config, drawn = bench.batch, SelfForcingConfig(), bench.draws()
    asked = Conditions.of(batch, bench.student.frames)
    judged = draw_score(config, batch.latents.shape, bench.generator)

    def loss() -> Tensor:
        video = roll_out(maker, asked, bench.student, drawn, gradient=False)
        return fake_score_loss(model, video, asked, judged)

    return model, loss


MAKERS = {"ode": ode, "consistency": consistency, "student": student, "fake": fake}


def measure(size: Size, part: str, frames: list[int]) -> None:
    """Steps of one part, clip after clip of more frames, until one does not fit."""
    optimiser = None
    for count in frames:
        bench = Bench(
            replace(size, frames=count), StudentConfig(frames=count, window_chunks=1, sink_chunks=1)
        )
        gc.collect()
        model, loss_of = MAKERS[part](bench)
        optimiser = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=size.device == "cuda"
        )

        def step(
            loss_of: Callable[[], Tensor] = loss_of, optimiser: torch.optim.Optimizer = optimiser
        ) -> None:
            loss_of().backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        try:
            step()
            milliseconds, peak = time_ms(step, 2, 0), peak_gib(step)
            print(
                f"  {part:12s} {count:4d} latent frames {milliseconds:9.0f} ms  peak {peak:6.2f} GiB",
                flush=True,
            )
        except torch.OutOfMemoryError:
            print(f"  {part:12s} {count:4d} latent frames does not fit", flush=True)
            break
        finally:
            del model, loss_of, step, optimiser
            gc.collect()
            if size.device == "cuda":
                torch.cuda.empty_cache()


def plan(size: Size, frames: int) -> None:
    """What a dry run counts for a whole self-forcing step on one and on eight GPUs."""
    clip = ClipShape(frames=frames, height=size.height, width=size.width)
    recipe = TrainRecipe(
        schema_version=1,
        name="speed",
        objective="self_forcing",
        start=StartConfig(weights="x"),
        student=StudentConfig(frames=frames),
        self_forcing=SelfForcingConfig(),
        steps=1,
    )
    for ranks in (1, 2, 8):
        rows = memory_rows(size.config, clip, ranks=ranks, context=1, recompute="blocks", lora=None)
        rows += distillation_memory(recipe, size.config, clip, ranks=ranks)
        print(
            f"  plan of self_forcing, {frames} latent frames, {ranks} GPUs: {sum(s for _, s in rows):.1f} GB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--frames", nargs="+", type=int, default=[13, 22, 43])
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU: does it run?")
    arguments = parser.parse_args()
    size = SMOKE if arguments.smoke else FULL
    frames = [7] if arguments.smoke else arguments.frames
    if size.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        with tempfile.NamedTemporaryFile() as meet:
            store = f"file://{meet.name}.store"
            dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    plan(size, frames[-1])
    for part in arguments.parts:
        attempt(part, lambda part=part: measure(size, part, frames))
    with suppress(Exception):
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
