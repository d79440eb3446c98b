"""Trainings that make the few-step student: further networks, placed, updated, kept and exported beside it.

ode_init          the student alone, onto recorded trajectories
consistency_init  and its average, which it is held against, and the frozen teacher
self_forcing      and the fake score, with an optimiser of its own, and the frozen real score
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..dataset.encoded import EncodedDataset
from ..model.context import Cameras
from ..model.network import WorldModel
from ..model.samplers import Text, noise_latents, stream_distilled
from .consistency import Networks, consistency_loss, draw_consistency
from .cost import ClipShape, distillation_flops
from .feed import Samples
from .guard import Guard
from .objective import Batch
from .ode import draw_snapshots, ode_loss
from .order import seed_of
from .parallel import Ranks, recompute_blocks, shard_weights
from .recipe import DISTILLATION, TrainRecipe
from .self_forcing import ScoreDraws, draw_score, fake_score_loss, generator_loss
from .start import Started, check_latents, load_beside
from .state import StatePart
from .student import Conditions, RollOutDraws, StudentConfig, cut, draw_exit, roll_out
from .training import Learner, Training, Update
from .trajectories import Trajectories

_EXIT, _FAKE, _CHECK = 11, 12, 13
"""Draws of one sample that must differ: the exit of a step's roll-outs, the fake score's step, the measurement."""


def make_training(recipe: TrainRecipe, started: Started, data: EncodedDataset, out: Path) -> Training:
    """The training of a recipe, not placed yet.

    Raises:
        ValueError, FileNotFoundError: data or weights that do not fit.
    """
    kind = Distillation if recipe.objective in DISTILLATION else Training
    return kind(recipe, started, data, out)


class Distillation(Training):
    """A run that makes the few-step student.

    Attributes:
        student: its times and chunks.
        beside: further networks by role: `teacher` and `target` (the student's average) of consistency_init, `real` and
            `fake` of self_forcing.
    """

    def __init__(self, recipe: TrainRecipe, started: Started, data: EncodedDataset, out: Path) -> None:
        super().__init__(recipe, started, data, out)
        assert recipe.student is not None
        self.student: StudentConfig = recipe.student
        self.beside = self._beside(started)
        self.empty = self._negative()
        self._guards = {"fake": Guard(recipe.guard)} if "fake" in self.beside else {}
        if recipe.ode_init is not None:
            found = Trajectories.open(Path(recipe.ode_init.trajectories))
            found.check(self.student, data)
            self.trajectories = _Reader(found, self.student.frames)

    def _beside(self, started: Started) -> dict[str, WorldModel]:
        recipe = self.recipe
        if (consistency := recipe.consistency_init) is not None:
            if consistency.teacher is None:
                teacher = copy.deepcopy(self.model)
            else:
                teacher = self._loaded(consistency.teacher, "teacher")
            return {"teacher": teacher, "target": copy.deepcopy(self.model)}
        if (forcing := recipe.self_forcing) is not None:
            real = self._loaded(forcing.real, "real score")
            if forcing.fake is None:
                fake = copy.deepcopy(real)
            else:
                fake = self._loaded(forcing.fake, "fake score")
            return {"real": real, "fake": fake}
        return {}

    def _loaded(self, weights: str, use: str) -> WorldModel:
        check_latents(weights, use, self.data.encoding.autoencoder)
        return load_beside(weights, use, self.config)

    def _negative(self) -> Text:
        """The caption that guidance leads away from, (1, L, C)."""
        states, mask = self.data.empty_caption()
        forcing = self.recipe.self_forcing
        if forcing is not None and forcing.negative is not None:
            path = Path(forcing.negative)
            try:
                found = load_file(path)
                states, mask = found["states"], found["mask"].bool()
            except Exception as error:  # safetensors' own kind of error has no base but Exception
                raise ValueError(
                    f"self_forcing.negative {path}: cannot be read ({str(error)[:200]})"
                ) from error
            if states.ndim != 2 or states.shape[1] != self.config.text_width or len(mask) != len(states):
                raise ValueError(
                    f"self_forcing.negative {path}: holds states {tuple(states.shape)}, mask {tuple(mask.shape)}; the "
                    f"network reads (tokens, {self.config.text_width})"
                )
        return Text(states[None].float(), mask[None])

    # --- placing ------------------------------------------------------------------------------

    def place(self, device: torch.device, ranks: Ranks) -> None:
        super().place(device, ranks)
        compute = self.compute_type(device)
        learn = {"fake"}
        for role, model in self.beside.items():
            model.requires_grad_(False).to(device)
            model.train()
            if role in learn:
                for name, parameter in self.model.named_parameters():
                    model.get_parameter(name).requires_grad_(parameter.requires_grad)
                recompute_blocks(model, self.recipe.parallel.recompute)
            elif role != "target":  # an average of small steps needs the digits
                model.to(compute)
            if self.sharded:
                shard_weights(model, compute=compute)
        if self.sharded:
            from torch.distributed.fsdp import register_fsdp_forward_method

            for model in (self.model, *self.beside.values()):
                register_fsdp_forward_method(model, "forward_chunk")
        self.fake_optimiser: torch.optim.Optimizer | None = None
        if self.recipe.self_forcing is not None:
            self.fake_optimiser = self.make_optimiser(self.beside["fake"], self.recipe.self_forcing.fake_lr)

    def networks(self) -> list[WorldModel]:
        return [self.model, *self.beside.values()]

    def others(self) -> list[Learner]:
        if self.recipe.self_forcing is None or self.fake_optimiser is None:
            return []
        return [
            Learner(
                self.beside["fake"],
                self.fake_optimiser,
                self._guards["fake"],
                self.recipe.self_forcing.fake_lr,
                name="fake",
            )
        ]

    def state_parts(self) -> list[StatePart]:
        """The frozen networks come from their files."""
        parts = super().state_parts()
        if "target" in self.beside:
            parts.append(StatePart(self.beside["target"], prefix="target."))
        parts += [StatePart(other.model, other.optimiser, prefix=f"{other.name}.") for other in self.others()]
        return parts

    def further_exports(self) -> list[tuple[str, dict[str, Tensor], str]]:
        fake = self.beside.get("fake")
        if fake is None:
            return []
        return [("-fake", {n: p.detach() for n, p in fake.named_parameters()}, "fake-score")]

    # --- a step -------------------------------------------------------------------------------

    def _learn(self, micro: list[Samples]) -> tuple[Update, dict[str, float]]:
        micro = [replace(samples, batch=cut(samples.batch, self.student.frames)) for samples in micro]
        if self.recipe.self_forcing is not None:
            return self._force(micro)
        if self.recipe.consistency_init is not None:
            done = self.update(self.learner(), micro, lambda s: self.consistency(s.batch, self.seeds(s)))
            if done.skipped is None:
                self._follow(self.recipe.consistency_init.decay)
            return done, {}
        return self.update(self.learner(), micro, lambda s: self.regression(s.batch, self.seeds(s))), {}

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Take the student's new weights into its average."""
        self.rest()
        current = dict(self.model.named_parameters())
        for name, mean in self.beside["target"].named_parameters():
            mean.lerp_(current[name].detach().to(mean.dtype), 1 - decay)

    def _force(self, micro: list[Samples]) -> tuple[Update, dict[str, float]]:
        """The fake score's step, and where it is due the student's before it."""
        assert self.recipe.self_forcing is not None
        more: dict[str, float] = {}
        skipped = None
        if self.step % self.recipe.self_forcing.generator_every == 0:
            made = self.update(self.learner(), micro, self._by_scores)
            more = {"generator_loss": made.loss, "generator_norm": made.norm}
            skipped = made.skipped
        (fake,) = self.others()
        done = self.update(fake, micro, self._of_fake)
        return Update(done.loss, done.norm, done.skipped or skipped), more

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def _exit(self, which: int) -> int:
        """The exit of a step's roll-outs, the same on all ranks, which must make the same calls."""
        seed = seed_of(self.recipe.seed + which, self.step)
        return draw_exit(self.student, torch.Generator().manual_seed(seed))

    def _by_scores(self, samples: Samples) -> Tensor:
        asked, draws, judged_with = self._video_draws(samples, self.seeds(samples), self._exit(_EXIT))
        video = roll_out(self.model, asked, self.student, draws, gradient=True)
        return self._scored(video, asked, judged_with)

    def _of_fake(self, samples: Samples) -> Tensor:
        seeds = self.seeds(samples, _FAKE)
        asked, draws, judged_with = self._video_draws(samples, seeds, self._exit(_EXIT + _FAKE))
        video = roll_out(self.model, asked, self.student, draws, gradient=False)
        share = self.ranks.share(self.student.frames)
        return fake_score_loss(self.beside["fake"], video, asked, judged_with, share)

    def _scored(self, video: Tensor, asked: Conditions, draws: ScoreDraws) -> Tensor:
        assert self.recipe.self_forcing is not None
        scores = self.beside["fake"], self.beside["real"]
        share = self.ranks.share(self.student.frames)
        negative = self._empty(len(video))
        return generator_loss(video, asked, negative, scores, self.recipe.self_forcing, draws, share)

    def _video_draws(
        self, samples: Samples, seeds: list[int], exit_: int
    ) -> tuple[Conditions, RollOutDraws, ScoreDraws]:
        """What clips are asked for with, and all that is random, each clip's by its own seed."""
        forcing = self.recipe.self_forcing
        assert forcing is not None
        asked = Conditions.of(samples.batch, self.student.frames)
        shape = samples.batch.latents.shape
        noise, scores = [], []
        for seed in seeds:
            generator = self._generator(seed)
            one = torch.Size((1, *shape[1:]))
            noise.append(torch.randn((exit_ + 1, *one), generator=generator, device=self.device))
            scores.append(draw_score(forcing, one, generator))
        together = ScoreDraws(torch.cat([s.time for s in scores]), torch.cat([s.noise for s in scores]))
        return asked, RollOutDraws(exit_, torch.cat(noise, dim=1)), together

    def _empty(self, clips: int) -> Text:
        states = self.empty.states.to(self.device).expand(clips, -1, -1)
        mask = None if self.empty.mask is None else self.empty.mask.to(self.device).expand(clips, -1)
        return Text(states, mask)

    def consistency(self, batch: Batch, seeds: list[int]) -> Tensor:
        """The loss of `consistency_init`."""
        config = self.recipe.consistency_init
        assert config is not None
        one = torch.Size((1, *batch.latents.shape[1:]))
        drawn = [draw_consistency(config, self.student, one, self._generator(seed)) for seed in seeds]
        draws = type(drawn[0])(torch.cat([d.level for d in drawn]), torch.cat([d.noise for d in drawn]))
        networks = Networks(self.model, self.beside["target"], self.beside["teacher"])
        return consistency_loss(networks, batch, self._empty(len(seeds)), config, self.student, draws)

    def regression(self, batch: Batch, seeds: list[int]) -> Tensor:
        """The loss of `ode_init`, this rank's part."""
        drawn = [draw_snapshots(self.student, 1, self._generator(seed)) for seed in seeds]
        share = self.ranks.share(self.student.frames)
        return ode_loss(self.model, batch, self.student, torch.cat(drawn), share)

    def step_flops(self, clip: ClipShape) -> float:
        return distillation_flops(self.recipe, self.config, replace(clip, frames=self.student.frames))

    # --- validation ---------------------------------------------------------------------------

    def held_out_batch(self, index: int) -> Batch:
        batch = super().held_out_batch(index)
        if self.trajectories is not None:
            path = self.trajectories(self.data.windows[index].id)
            batch = replace(batch, trajectory=path[None])
        return cut(batch, self.student.frames)

    def held_out_losses(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The objective's own loss, always with the same draws; of self_forcing, the scores' disagreement."""
        seeds = [seed_of(self.recipe.seed + _CHECK, index)]
        if self.recipe.consistency_init is not None:
            return {"loss_consistency": self.consistency(batch, seeds)}
        if self.recipe.self_forcing is None:
            return {"loss_regression": self.regression(batch, seeds)}
        last = len(self.student.times) - 2
        asked, draws, judged_with = self._video_draws(Samples(batch, (), ()), seeds, last)
        video = roll_out(self.model, asked, self.student, draws, gradient=False)
        return {"loss_scores": self._scored(video, asked, judged_with)}

    def _sample(self, batch: Batch, cameras: Cameras | None, seed: int) -> Tensor:
        """As the student generates: Euler steps through its times."""
        generator = self._generator(seed_of(self.recipe.seed + 2, seed))
        if self.sharded:
            cast(Any, self.model).unshard()
        start = noise_latents(self.model, batch.latents[:, :, :1], self.student.frames, generator)
        schedule = self.student.schedule()
        parts = stream_distilled(self.model, start, batch.text, cameras=cameras, schedule=schedule)
        return torch.cat(list(parts), dim=2).float()


class _Reader:
    """Reads a window's trajectory; goes to the workers that read clips."""

    def __init__(self, found: Trajectories, frames: int) -> None:
        self._found, self._frames = found, frames

    def __call__(self, window: str) -> Tensor:
        return self._found.read(window, self._frames)
