"""Does a student really learn from its teacher? Both roads to four steps on a toy, in minutes on one core.

    python benchmarks/distils.py [--scale 1.0] [--roads ode_init consistency_init] [--smoke]

The toy: clips of seven latent frames that leave their first frame in one of two directions at random, so that a step
that averages over both is wrong. A small world model (all its blocks, no text, no cameras) is trained bidirectionally,
then chunk-causally; from there the student is made by `ode_init` and by `consistency_init`, and each goes on with
`self_forcing`. All losses are those of `theodolite train`.

For pictures that no training saw, the teacher is sampled with 48 steps, everything else with the student's four, from
the same noise. `pairs`: mean squared distance from the teacher's sample of the same noise, over the teacher's spread.
`energy`: energy distance, first frame included, from the teacher's samples of other noise, and from true clips of the
same first frames; what sampling alone leaves is not zero but slightly below, since first frames are shared. `between`:
share of samples that follow neither direction. `anew`: distance from true clips, and that share, where samples are
noised anew between two times, as roll-outs of self-forcing are. Of self-forcing there are three moments and, beside the
student, the mean of its weights over the last updates (`ema` of a recipe).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from theodolite.model.config import WorldModelConfig, chunk_starts
from theodolite.model.network import WorldModel
from theodolite.model.samplers import Text, noise_latents, stream_distilled
from theodolite.model.start import initialise
from theodolite.train.consistency import (
    ConsistencyConfig,
    Networks,
    consistency_loss,
    draw_consistency,
)
from theodolite.train.objective import Batch, ChunkTimes, ObjectiveConfig, draw, flow_matching_loss
from theodolite.train.ode import draw_snapshots, ode_loss
from theodolite.train.self_forcing import (
    SelfForcingConfig,
    draw_score,
    fake_score_loss,
    generator_loss,
)
from theodolite.train.student import Conditions, RollOutDraws, StudentConfig, draw_exit, roll_out
from theodolite.train.trajectories import TrajectoryOptions, teacher_trajectory
from torch import Tensor

FRAMES, CHANNELS, HEIGHT, WIDTH = 7, 4, 1, 2
STUDENT = StudentConfig(frames=FRAMES)
CONFIG = WorldModelConfig(
    depth=2, softmax_every=2, width=32, heads=2, latent_channels=CHANNELS, text_width=8, text_tokens=1,
    ffn_ratio=2.0, softmax_bfloat16=False,
)  # fmt: skip
SHIFT = 3.0
"""Of noise levels; the released shifts are for frames of 880 tokens."""


@dataclass(frozen=True)
class Schedule:
    """Steps of each training."""

    bidirectional: int = 1200
    causal: int = 800
    trajectories: int = 1024
    ode: int = 400
    consistency: int = 300
    forcing: int = 2500
    batch: int = 64
    held_out: int = 256

    def scaled(self, by: float) -> Schedule:
        return Schedule(
            **{k: v if k in ("batch", "held_out") else max(1, round(by * v)) for k, v in vars(self).items()}
        )


def clips(count: int, generator: torch.Generator) -> Batch:
    """Clips that go one of two ways; what is not the direction is noise of a tenth."""
    first = 0.5 * torch.randn(count, CHANNELS, 1, HEIGHT, WIDTH, generator=generator)
    way = torch.tensor([1.0, -1.0, 0.5, -0.5]).view(1, CHANNELS, 1, 1, 1)
    sign = torch.randint(2, (count, 1, 1, 1, 1), generator=generator) * 2.0 - 1
    step = torch.arange(FRAMES).view(1, 1, -1, 1, 1) / (FRAMES - 1)
    noise = 0.1 * torch.randn(count, CHANNELS, FRAMES, HEIGHT, WIDTH, generator=generator)
    latents = first + 1.5 * step * sign * way + noise * (step > 0)
    return Batch(latents, empty(count))


def empty(count: int) -> Text:
    return Text(torch.zeros(count, 1, CONFIG.text_width))


def learn(
    model: WorldModel, steps: int, lr: float, loss_of: Callable[[int], Tensor], betas: tuple[float, float]
) -> Callable[[int], float]:
    """A step of a network's optimiser, its rate falling along a line in the last half."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=0.0)

    def step(number: int) -> float:
        loss = loss_of(number)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - number / steps) + 0.02)
        optimiser.step()
        return float(loss.detach())

    return step


def flow_matching(model: WorldModel, steps: int, batch: int, *, causal: bool) -> None:
    generator = torch.Generator().manual_seed(1 + causal)
    config = ObjectiveConfig(
        shift=SHIFT,
        image_condition_probability=1.0,
        caption_dropout=0.0,
        chunks=ChunkTimes() if causal else None,
    )

    def loss(number: int) -> Tensor:
        given = clips(batch, generator)
        return flow_matching_loss(model, given, config, draw(config, given, generator))

    step = learn(model, steps, 1e-3 if causal else 2e-3, loss, (0.9, 0.99))
    for number in range(steps):
        step(number)


def by_regression(teacher: WorldModel, schedule: Schedule) -> WorldModel:
    generator = torch.Generator().manual_seed(5)
    given = clips(schedule.trajectories, generator)
    asked = Conditions.of(given, FRAMES)
    options = TrajectoryOptions(student=STUDENT, shift=SHIFT, guidance=1.0)
    noise = torch.randn(given.latents.shape, generator=generator)
    paths = teacher_trajectory(teacher, asked, empty(1), options, noise)
    student = copy.deepcopy(teacher)

    def loss(number: int) -> Tensor:
        rows = torch.randint(len(paths), (schedule.batch,), generator=generator)
        batch = Batch(given.latents[rows], empty(schedule.batch), None, None, paths[rows])
        return ode_loss(student, batch, STUDENT, draw_snapshots(STUDENT, schedule.batch, generator))

    step = learn(student, schedule.ode, 1e-3, loss, (0.9, 0.99))
    for number in range(schedule.ode):
        step(number)
    return student


def by_consistency(teacher: WorldModel, schedule: Schedule) -> WorldModel:
    generator = torch.Generator().manual_seed(6)
    config = ConsistencyConfig(levels=24, shift=SHIFT, guidance=1.0, decay=0.9)
    networks = Networks(
        copy.deepcopy(teacher), copy.deepcopy(teacher).requires_grad_(False), copy.deepcopy(teacher)
    )

    def loss(number: int) -> Tensor:
        given = clips(schedule.batch, generator)
        draws = draw_consistency(config, STUDENT, given.latents.shape, generator)
        return consistency_loss(networks, given, empty(schedule.batch), config, STUDENT, draws)

    step = learn(networks.student, schedule.consistency, 1e-3, loss, (0.9, 0.99))
    for number in range(schedule.consistency):
        step(number)
        with torch.no_grad():
            for mean, new in zip(networks.average.parameters(), networks.student.parameters(), strict=True):
                mean.lerp_(new, 1 - config.decay)
    return networks.student


ROADS = {"ode_init": by_regression, "consistency_init": by_consistency}


def by_self_forcing(
    start: WorldModel, real: WorldModel, schedule: Schedule
) -> Iterator[tuple[int, WorldModel, WorldModel]]:
    """Updates of the student so far, the student, and its average, at every third of the way."""
    generator = torch.Generator().manual_seed(7)
    config = SelfForcingConfig(shift=SHIFT, guidance=0.0, generator_every=3)
    student, fake, average = copy.deepcopy(start), copy.deepcopy(real), copy.deepcopy(start)

    def video(gradient: bool) -> tuple[Tensor, Conditions]:
        asked = Conditions.of(clips(schedule.batch, generator), FRAMES)
        exit_ = draw_exit(STUDENT, generator)
        shape = (exit_ + 1, schedule.batch, CHANNELS, FRAMES, HEIGHT, WIDTH)
        draws = RollOutDraws(exit_, torch.randn(shape, generator=generator))
        return roll_out(student, asked, STUDENT, draws, gradient=gradient), asked

    def judged(number: int) -> Tensor:
        made, asked = video(gradient=True)
        draws = draw_score(config, made.shape, generator)
        return generator_loss(made, asked, empty(len(made)), (fake, real), config, draws)

    def followed(number: int) -> Tensor:
        made, asked = video(gradient=False)
        return fake_score_loss(fake, made, asked, draw_score(config, made.shape, generator))

    betas, updates = (0.0, 0.99), 0
    of_student = learn(student, schedule.forcing, 1e-4, judged, betas)
    of_fake = learn(
        fake, schedule.forcing, 1e-3, followed, betas
    )  # well before the student, which follows it
    for number in range(schedule.forcing):
        if number % config.generator_every == 0 and 6 * number >= schedule.forcing:
            of_student(number)
            updates += 1
            with torch.no_grad():
                for mean, new in zip(average.parameters(), student.parameters(), strict=True):
                    mean.lerp_(new, 0.1)
        of_fake(number)
        if (number + 1) % max(1, schedule.forcing // 3) == 0:
            yield updates, student, average


@torch.no_grad()
def few_steps(model: WorldModel, image: Tensor, seed: int) -> Tensor:
    """As `theodolite generate --mode distilled` samples, with the times of training."""
    start = noise_latents(model, image, FRAMES, torch.Generator().manual_seed(seed))
    parts = stream_distilled(model, start, empty(len(image)), schedule=STUDENT.schedule())
    return torch.cat(list(parts), dim=2)


@torch.no_grad()
def noised_anew(model: WorldModel, image: Tensor, seed: int) -> Tensor:
    """The roll-out that self-forcing trains: between two times the estimate is noised with fresh noise."""
    shape = (len(STUDENT.times) - 1, len(image), CHANNELS, FRAMES, HEIGHT, WIDTH)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    asked = Conditions(image, empty(len(image)))
    return roll_out(model, asked, STUDENT, RollOutDraws(shape[0] - 1, noise), gradient=False)


@torch.no_grad()
def many_steps(model: WorldModel, image: Tensor, seed: int) -> Tensor:
    start = noise_latents(model, image, FRAMES, torch.Generator().manual_seed(seed))
    options = TrajectoryOptions(student=STUDENT, shift=SHIFT, guidance=1.0)
    asked = Conditions(image, empty(len(image)))
    return teacher_trajectory(model, asked, empty(1), options, start)[:, -1]


def energy(a: Tensor, b: Tensor) -> float:
    """Energy distance of two sets of clips."""
    x, y = a.flatten(1), b.flatten(1)

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))


def between(made: Tensor) -> float:
    """Share of clips whose last frame went less than half way along the axis of the two directions."""
    way = torch.tensor([1.0, -1.0, 0.5, -0.5]).view(1, CHANNELS, 1, 1)
    moved = ((made[:, :, -1] - made[:, :, 0]) * way).mean(dim=(1, 2, 3)) / (1.5 * way.square().mean())
    return float((moved.abs() < 0.5).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps")
    parser.add_argument("--roads", nargs="+", choices=list(ROADS), default=list(ROADS))
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    schedule = Schedule().scaled(0.005 if asked.smoke else asked.scale)
    assert chunk_starts(FRAMES, STUDENT.chunk) == (0, 4)
    true = clips(schedule.held_out, torch.Generator().manual_seed(99)).latents
    image = true[:, :, :1]
    began = time.process_time()
    real = WorldModel(CONFIG)
    initialise(real, torch.Generator().manual_seed(0))
    flow_matching(real, schedule.bidirectional, schedule.batch, causal=False)
    teacher = copy.deepcopy(real)
    flow_matching(teacher, schedule.causal, schedule.batch, causal=True)
    wanted, again = many_steps(teacher, image, 1), many_steps(teacher, image, 2)
    spread = float((wanted - again).square().mean()) / 2
    print(
        f"{schedule}\n{'four steps of':44s} {'pairs':>7s} {'energy':>8s} {'of true':>8s} {'between':>8s} "
        f"{'anew':>8s} {'between':>8s} {'s':>6s}",
        flush=True,
    )

    def row(name: str, made: Tensor, anew: Tensor | None = None) -> None:
        pairs = "      -" if made is wanted else f"{float((made - wanted).square().mean()) / spread:7.3f}"
        distances = f"{energy(made, again):8.4f} {energy(made, true):8.4f} {100 * between(made):6.1f} %"
        further = "" if anew is None else f" {energy(anew, true):8.4f} {100 * between(anew):6.1f} %"
        print(f"{name:44s} {pairs} {distances}{further} {time.process_time() - began:6.0f}", flush=True)

    def of_student(name: str, model: WorldModel) -> None:
        row(name, few_steps(model, image, 1), noised_anew(model, image, 1))

    row("(teacher, 48 steps)", wanted)
    of_student("the teacher itself", teacher)
    for name in asked.roads:
        student = ROADS[name](teacher, schedule)
        of_student(name, student)
        for updates, forced, average in by_self_forcing(student, real, schedule):
            of_student(f"{name} + self_forcing, {updates} updates", forced)
            of_student("  its average", average)


if __name__ == "__main__":
    main()
