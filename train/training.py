"""A training without its frame: a step from micro-batches to changed weights, validation, checkpoints, exports.

Nothing random is kept: what a sample is noised with is drawn by a seed of its own, from the recipe's seed and the
sample's number. So the state of a run is its weights, its optimiser, and how many samples it has taken.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..dataset.encoded import EncodedDataset
from ..dataset.store import write_atomically
from ..dataset.weights import file_digest
from ..model.checkpoint import Layout, save_world_model
from ..model.config import UNSHAPED, chunk_starts
from ..model.context import Cameras, Operators
from ..model.frame_parallel import FrameShare
from ..model.network import WorldModel
from ..model.samplers import ChunkSchedule, noise_latents, sample_bidirectional, sample_chunk_causal
from ..model.seals import digests_of
from ..model.weight_files import AUTOENCODER, OPTIONS, STAGE, START
from .check import check_data
from .cost import ClipShape, peak_flops, step_flops
from .feed import BadClip, Feed, Paths, Place, Samples, held_out_faults, hold_out, make_batch, told_apart
from .guard import Guard, record_fault
from .held_out import LeftOut, leave_out, read_together
from .objective import Batch, draw_by_seed, flow_matching_loss
from .order import seed_of
from .parallel import Ranks, clip_gradients, recompute_blocks, reduce_gradients, shard_weights
from .recipe import TrainRecipe
from .start import Started, add_lora, use_null_caption
from .state import (
    Average,
    StatePart,
    load_checkpoint,
    read_progress,
    remove_old,
    save_checkpoint,
    tensors_of,
)

Loss = Callable[[WorldModel, Batch, TrainRecipe, list[int], FrameShare | None], Tensor]
"""(model, batch, recipe, a seed a clip, this rank's frames) -> this rank's part of the mean loss over clips."""


def _flow_matching(
    model: WorldModel, batch: Batch, recipe: TrainRecipe, seeds: list[int], share: FrameShare | None
) -> Tensor:
    draws = draw_by_seed(recipe.flow_matching, batch, seeds)
    return flow_matching_loss(model, batch, recipe.flow_matching, draws, share)


OBJECTIVES: dict[str, Loss] = {"flow_matching": _flow_matching}
"""What `objective:` of a recipe names."""


@dataclass
class Learner:
    """A network, what moves it, and what judges its steps.

    Attributes:
        optimiser: AdamW over its trainable weights; its rate is set at every step.
        name: of its faults; empty: the network that the recipe trains.
    """

    model: WorldModel
    optimiser: torch.optim.Optimizer
    guard: Guard
    lr: float
    average: Average | None = None
    name: str = ""


@dataclass(frozen=True)
class Update:
    """How an optimiser's step went: the same on all ranks."""

    loss: float
    norm: float
    skipped: str | None


@dataclass(frozen=True)
class StepReport:
    """How a step went, the same on all ranks but for the times.

    Attributes:
        step: its number, from 1.
        loss, norm: mean over clips; of the gradient before it was clipped.
        rate: learning rate.
        tokens: video tokens of all ranks.
        wall_s: duration on this rank.
        mfu: share of the peak of all devices; None: not known.
        skipped: why the weights were left as they were.
        more: further figures, by their columns.
    """

    step: int
    loss: float
    norm: float
    rate: float
    tokens: int
    wall_s: float
    mfu: float | None = None
    skipped: str | None = None
    more: dict[str, float] = field(default_factory=dict)


class Training:
    """A run of a recipe on this rank; `place` must be called once, on all ranks, before anything else.

    Args:
        recipe: what to do.
        started: the network with its first weights.
        data: encoded clips.
        out: folder of the run.
    Attributes:
        step, taken: steps done, samples taken by all ranks.
        start_digest: of the file that a LoRA changes.
    """

    start_digest: str | None = None
    _feed: Feed | None = None

    def __init__(self, recipe: TrainRecipe, started: Started, data: EncodedDataset, out: Path) -> None:
        self.recipe, self.data, self.out = recipe, data, out
        self.config = started.model.config
        check_data(recipe, started.model, data)
        use_null_caption(started, data.empty_caption()[0])
        self.model = started.model
        self.windows, self.held_out = hold_out(data, recipe.data.held_out, seed=recipe.seed)
        self.loss: Loss = OBJECTIVES.get(recipe.objective, _flow_matching)
        self.guard = Guard(recipe.guard)
        self.step = self.taken = 0
        self.feed_faults: dict[str, str] = {}
        self.trajectories: Paths | None = None
        weights = recipe.start.weights
        if recipe.lora is not None and weights is not None and Path(weights).is_file():
            self.start_digest = file_digest(Path(weights))  # by its end the file may be another
        self.ranks = Ranks()
        self.device = torch.device("cpu")
        self.sharded = False

    # --- placing ------------------------------------------------------------------------------

    def place(self, device: torch.device, ranks: Ranks) -> None:
        """Bring the network to its device and spread it; a collective call."""
        self.device, self.ranks = device, ranks
        compute = self.compute_type(device)
        model = self.model
        if self.recipe.lora is not None:
            self.lora_layers = add_lora(model, self.recipe.lora, seed=self.recipe.seed, dtype=compute)
        model.to(device)
        recompute_blocks(model, self.recipe.parallel.recompute)
        self.sharded = self._sharded(compute)
        if self.sharded:
            shard_weights(model, compute=compute)
        self.optimiser = self.make_optimiser(model, self.recipe.optimiser.lr)
        self.average = None if self.recipe.ema is None else Average(model, self.recipe.ema)
        self.peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None

    def make_optimiser(self, model: WorldModel, lr: float) -> torch.optim.Optimizer:
        """Of a network's trainable weights, as the recipe says."""
        o = self.recipe.optimiser
        return torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=lr,
            betas=o.betas,
            eps=o.eps,
            weight_decay=o.weight_decay,
            fused=self.device.type == "cuda",
        )

    def learner(self) -> Learner:
        """The network that the recipe trains."""
        return Learner(self.model, self.optimiser, self.guard, self.recipe.optimiser.lr, self.average)

    def compute_type(self, device: torch.device) -> torch.dtype:
        """In which numbers the network computes on a device."""
        chosen = self.recipe.precision
        if chosen == "auto":
            chosen = "bf16" if device.type == "cuda" else "float32"
        return torch.bfloat16 if chosen == "bf16" else torch.float32

    def _sharded(self, compute: torch.dtype) -> bool:
        sharding = self.recipe.parallel.sharding
        if sharding == "auto":
            wanted = self.ranks.world > 1 or self.device.type == "cuda"
            sharding = "fsdp" if wanted and self.recipe.lora is None else "replicate"
        if sharding == "fsdp" and not torch.distributed.is_initialized():
            raise ValueError("parallel.sharding fsdp: no process group was made")
        if sharding == "replicate" and self.recipe.lora is None and compute != torch.float32:
            raise ValueError(
                "parallel.sharding replicate computes in the weights' float32: use precision float32, or sharding fsdp"
            )
        return sharding == "fsdp"

    def feed(self) -> Feed:
        """This rank's micro-batches from here on."""
        d = self.recipe.data
        place = Place(
            rank=self.ranks.data_rank, ranks=self.ranks.data_ranks, batch=d.batch, accumulate=d.accumulate
        )
        feed = Feed(
            self.data,
            self.windows,
            place,
            control=d.cameras,
            seed=self.recipe.seed,
            sources=d.sources,
            workers=d.workers,
            max_faults=d.max_bad_clips if d.on_bad_clip == "skip" else None,
        )
        feed.read_beside(self.trajectories)
        feed.taken, feed.faults, feed.tells = self.taken, self.feed_faults, True
        self._feed = feed
        return feed

    # --- a step -------------------------------------------------------------------------------

    def take_step(self, micro: list[Samples]) -> StepReport:
        """Learn from a step's micro-batches; a collective call.

        Raises:
            Diverged: it is one of too many steps in a row that could not be taken.
            BadClip: a window of any rank ends the run.
        """
        start = time.perf_counter()
        if problems := self.ranks.told(None if self._feed is None else self._feed.problem, self.device):
            raise BadClip("; ".join(problems))
        rate = self._rate(self.recipe.optimiser.lr)
        done, more = self._learn([samples.to(self.device) for samples in micro])
        self.step += 1
        self.taken += sum(len(s.numbers) for s in micro) * self.ranks.data_ranks
        wall = time.perf_counter() - start
        tokens = sum(s.num_tokens for s in micro) * self.ranks.data_ranks
        return StepReport(
            self.step, done.loss, done.norm, rate, tokens, wall, self._mfu(micro, wall), done.skipped, more
        )

    def _learn(self, micro: list[Samples]) -> tuple[Update, dict[str, float]]:
        """A step's updates; the first is the one that is reported, with figures of the others."""

        def loss(samples: Samples) -> Tensor:
            share = self.ranks.share(samples.batch.latents.shape[2])
            return self.loss(self.model, samples.batch, self.recipe, self.seeds(samples), share)

        return self.update(self.learner(), micro, loss), {}

    def seeds(self, samples: Samples, which: int = 0) -> list[int]:
        """A seed for each clip's draws; `which` tells draws of one step apart."""
        return [seed_of(self.recipe.seed + which, number) for number in samples.numbers]

    def update(self, learner: Learner, micro: list[Samples], loss_of: Callable[[Samples], Tensor]) -> Update:
        """One step of one network's optimiser; a collective call.

        Args:
            loss_of: this rank's part of a micro-batch's loss.
        Raises:
            Diverged: it is one of too many steps in a row that could not be taken.
        """
        parts: list[Tensor] = []
        for samples in micro:
            part = loss_of(samples)
            (self.ranks.scaled(part) / len(micro)).backward()
            parts.append(part.detach())
        model = learner.model
        if not self.sharded:
            reduce_gradients(model.parameters(), self.ranks.world)
        norm = clip_gradients(model.parameters(), self.recipe.optimiser.clip_norm)
        loss = float(self.ranks.mean(torch.stack(parts).mean()))
        ids = [name for samples in micro for name in samples.ids]
        skipped = self._judge(learner, loss, norm, ids)
        if skipped is None:
            for group in learner.optimiser.param_groups:
                group["lr"] = self._rate(learner.lr)
            learner.optimiser.step()
            if learner.average is not None:
                learner.average.update(model)
        learner.optimiser.zero_grad(set_to_none=True)
        return Update(loss, norm, skipped)

    def _judge(self, learner: Learner, loss: float, norm: float, ids: list[str]) -> str | None:
        try:
            why = learner.guard.judge(loss, norm)
        except RuntimeError as error:
            self._note_fault(str(error), ids, loss, norm)
            raise
        if why is None:
            return None
        why = f"{learner.name}: {why}" if learner.name else why
        self._note_fault(why, ids, loss, norm)
        return why

    def _note_fault(self, why: str, ids: list[str], loss: float, norm: float) -> None:
        record_fault(self.out / "faults", self.step + 1, self.ranks.rank, why, ids, loss=loss, norm=norm)

    def _rate(self, rate: float) -> float:
        """A learning rate at this step."""
        o, done = self.recipe.optimiser, self.step
        if o.warmup_steps:
            rate *= min(1.0, (done + 1) / o.warmup_steps)
        if o.decay_from is not None and done > o.decay_from * self.recipe.steps:
            rate *= (self.recipe.steps - done) / (self.recipe.steps * (1 - o.decay_from))
        return rate

    def _mfu(self, micro: list[Samples], wall: float) -> float | None:
        if self.peak is None:
            return None
        flops = 0.0
        for samples in micro:
            b, _, t, h, w = samples.batch.latents.shape
            shape = ClipShape(
                frames=t,
                height=h,
                width=w,
                cameras=self.recipe.data.cameras != "none",
                chunk=self.recipe.chunk,
            )
            flops += b * self.step_flops(shape)
        return flops * self.ranks.data_ranks / self.ranks.world / self.peak / wall

    def step_flops(self, clip: ClipShape) -> float:
        """Operations that a step takes for a clip."""
        return step_flops(self.config, clip)

    # --- validation ---------------------------------------------------------------------------

    def check_held_out(self) -> None:
        """Look at the held-out windows before the first step, which may be hours before they are read: those that
        cannot be read end the run, or with `data.on_bad_clip: skip` are left out and counted with the others.

        Raises:
            BadClip: as the recipe says, or none is left.
        """
        skip = self.recipe.data.on_bad_clip == "skip"
        if self.recipe.validation.every:
            leave_out(self, held_out_faults(self.data, self.held_out, self.held_out_batch, skip=skip))

    def share_held_out(self) -> None:
        """Leave out what another rank could not read, or raise `BadClip` where none is left; a collective call after
        `place`."""
        for text in self.ranks.told(json.dumps(self.feed_faults) if self.feed_faults else None, self.device):
            self.feed_faults |= json.loads(text)
        leave_out(self, {})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of held-out clips at fixed noise levels, `loss_at_<level>` and their mean; a collective call. Raises
        `BadClip` where a window of any rank cannot be read and ends the run, or none is left."""
        while True:
            with suppress(LeftOut):
                return self.measure()

    def measure(self) -> dict[str, float]:
        """What `validate` gives: data-parallel ranks take turns through the clips."""
        sums: dict[str, Tensor] = {}
        counted = torch.zeros((), device=self.device)
        rounds = math.ceil(len(self.held_out) / self.ranks.data_ranks)
        for i in range(rounds):
            place = i * self.ranks.data_ranks + self.ranks.data_rank
            # Ranks beyond the end compute with the others, whose weights they hold a part of, and do not count.
            index = self.held_out[min(place, len(self.held_out) - 1)]
            counts = float(place < len(self.held_out))
            batch = Samples(read_together(self, [index])[0], (), ()).to(self.device).batch
            for name, loss in self.held_out_losses(batch, index).items():
                sums[name] = sums.get(name, torch.zeros_like(counted)) + counts * loss.detach()
            counted += counts / self.ranks.context
        whole = torch.stack([*sums.values(), counted])
        if self.ranks.world > 1:
            torch.distributed.all_reduce(whole)
        means = (whole[:-1] / whole[-1]).tolist()
        return {"loss": sum(means) / len(means), **dict(zip(sums, means, strict=True)), **self._sampled()}

    def held_out_batch(self, index: int) -> Batch:
        """One held-out window."""
        return make_batch([self.data.read(index)], self.data.encoding, self.recipe.data.cameras)

    def held_out_losses(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """This rank's part of what is measured of a held-out window, by name, always with the same draws."""
        seed = seed_of(self.recipe.seed + 1, index)
        return {
            f"loss_at_{level:g}": self._loss_at(batch, level, seed) for level in self.recipe.validation.levels
        }

    def _sampled(self) -> dict[str, float]:
        """Held-out clips sampled from their first frame: mean squared error of the frames that follow, over that of
        resting at the first frame; with the clip's own path, and with another clip's (`sampled_error_other_path`):
        a network that follows cameras is better with its own.

        Samples lie in `samples/step-N.safetensors`, normalised latents by window.
        """
        clips = self.held_out[: self.recipe.validation.sample_clips]
        if not clips or self.ranks.context > 1:  # samplers know of no shares of frames
            return {}
        data = self.data
        batches = read_together(self, clips)
        sums, made = torch.zeros(3, dtype=torch.float64), {}
        for number, (index, batch) in enumerate(zip(clips, batches, strict=True)):
            clip = Samples(batch, (), ()).to(self.device).batch
            true = clip.latents.float()
            still = (true[:, :, 1:] - true[:, :, :1]).square().mean()
            sample = self._sample(clip, clip.cameras, index)
            sums[0] += float((sample - true)[:, :, 1:].square().mean() / still)
            made[data.windows[index].id] = sample[0].bfloat16().cpu().contiguous()
            other = Samples(batches[number - 1], (), ()).to(self.device).batch.cameras
            if len(clips) > 1 and other is not None and other.camera_to_world.shape[1] == true.shape[2]:
                sums[1] += float((self._sample(clip, other, index) - true)[:, :, 1:].square().mean() / still)
                sums[2] += 1
        if self.ranks.rank == 0:
            folder = self.out / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"step-{self.step:08d}.safetensors", save_tensors(made))
        found = {"sampled_error": float(sums[0]) / len(clips)}
        if sums[2] > 0:
            found["sampled_error_other_path"] = float(sums[1] / sums[2])
        return found

    def _sample(self, batch: Batch, cameras: Cameras | None, seed: int) -> Tensor:
        v = self.recipe.validation
        chunk = self.recipe.chunk
        generator = torch.Generator(self.device).manual_seed(seed_of(self.recipe.seed + 2, seed))
        frames = batch.latents.shape[2]
        if self.sharded:  # samplers read what cameras give once, outside of a pass
            cast(Any, self.model).unshard()
        start = noise_latents(self.model, batch.latents[:, :, :1], frames, generator)
        steps: dict[str, Any] = dict(steps=v.sample_steps, shift=self.recipe.flow_matching.shift)
        if chunk is None:
            return sample_bidirectional(self.model, start, batch.text, cameras=cameras, **steps).float()
        schedule = ChunkSchedule(**steps, starts=chunk_starts(frames, chunk))
        return sample_chunk_causal(self.model, start, batch.text, cameras=cameras, schedule=schedule).float()

    def _loss_at(self, batch: Batch, level: float, seed: int) -> Tensor:
        config = self.recipe.flow_matching
        draws = draw_by_seed(config, batch, [seed])
        index = torch.full_like(draws.index, int(1000 * level))
        index[:, 0] = 0
        keep = torch.zeros_like(draws.captionless)
        fixed = type(draws)(index, torch.ones_like(draws.conditioned), keep, draws.noise)
        return flow_matching_loss(self.model, batch, config, fixed, self.ranks.share(batch.latents.shape[2]))

    # --- state --------------------------------------------------------------------------------

    def others(self) -> list[Learner]:
        """Networks that learn beside the one that the recipe trains."""
        return []

    def networks(self) -> list[WorldModel]:
        """All that lie spread over ranks where weights do."""
        return [self.model]

    def rest(self) -> None:
        """Give back what passes without a backward one leave gathered: the ends of a network, in the type in which they
        compute. To be called before weights are read by name."""
        if self.sharded:
            for model in self.networks():
                # FSDP2 gives modules this method.
                model.reshard()  # pyright: ignore[reportCallIssue]

    def state_parts(self) -> list[StatePart]:
        """What a checkpoint holds: not the weights beside a LoRA, which come from a file."""
        return [StatePart(self.model, self.optimiser, self.average, frozen=self.recipe.lora is None)]

    def save(self) -> Path:
        """Write a checkpoint and remove older ones; a collective call.

        Raises:
            OSError: it cannot be written; those before it are kept.
        """
        self.rest()
        progress = {
            "step": self.step,
            "taken": self.taken,
            **told_apart(self.data, self.windows, self.recipe.seed),
            "guard": self.guard.state(),
            "guards": {learner.name: learner.guard.state() for learner in self.others()},
            "faults": self.feed_faults,
        }
        folder = self.out / "checkpoints"
        self._remove_old(folder)  # a resumed run may keep fewer
        path = save_checkpoint(folder, self.step, tensors_of(self.state_parts()), progress)
        self._remove_old(folder)
        return path

    def _remove_old(self, folder: Path) -> None:
        if self.ranks.rank == 0:
            c = self.recipe.checkpoint
            remove_old(folder, keep=c.keep, keep_every=c.keep_every)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, of any number of ranks; a collective call.

        Raises:
            ValueError: it is damaged, or of another run or other data.
        """
        self.rest()
        progress = read_progress(path)
        try:
            for key, mine in told_apart(self.data, self.windows, self.recipe.seed).items():
                if (before := progress.get(key, mine)) != mine:  # older checkpoints say less
                    raise ValueError(
                        f"{path}: was written with {key} {before}, now {mine}: clips would differ"
                    )
            load_checkpoint(path, self.state_parts())
            self.step, self.taken = int(progress["step"]), int(progress["taken"])
            self.guard.restore(progress["guard"])
            for learner in self.others():
                learner.guard.restore(progress["guards"][learner.name])
            self.feed_faults = {**progress["faults"], **self.feed_faults}
        except KeyError as error:
            raise ValueError(f"{path / 'progress.json'}: lacks {error}") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path / 'progress.json'}: is damaged ({error})") from error

    def export(self) -> list[Path]:
        """Write the weights as `theodolite generate` takes them: whole ones in the released layout, and their average,
        or a LoRA in peft's; a collective call.

        Returns:
            files, on the first rank.
        """
        self.rest()
        folder = self.out / "weights"
        if self.ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
        if self.recipe.lora is not None:
            return self._export_lora(folder)
        named = {n: p.detach() for n, p in self.model.named_parameters()}
        sets = [("", named, self.recipe.stage)]
        if self.average is not None:
            sets.append(("-average", {**named, **self.average.weights}, self.recipe.stage))
        sets += self.further_exports()
        written = [self._export(folder, *one) for one in sets]
        return [path for path in written if path is not None]

    def further_exports(self) -> list[tuple[str, dict[str, Tensor], str]]:
        """Ending, weights and stage of other networks that a later training begins with."""
        return []

    def _export(self, folder: Path, ending: str, weights: dict[str, Tensor], stage: str) -> Path | None:
        whole = {n: _whole(t) for n, t in weights.items()}
        if self.ranks.rank:
            return None
        with torch.device("meta"):
            model = WorldModel(self.config, Operators())
        buffers = {n: b.cpu() for n, b in self.model.named_buffers()}
        model.load_state_dict({**whole, **buffers}, strict=True, assign=True)
        path = folder / f"step-{self.step:08d}{ending}.safetensors"
        names = tuple((k, k) for k in model.state_dict())
        told = {STAGE: stage, AUTOENCODER: self.data.encoding.autoencoder}
        config, usual = self.config, type(self.config).model_fields
        options = {k: v for k in UNSHAPED if (v := getattr(config, k)) != usual[k].default}
        if options:
            told[OPTIONS] = json.dumps(options)
        save_world_model(model, path, Layout(file="safetensors", names=names, metadata=told))
        return path

    def _export_lora(self, folder: Path) -> list[Path]:
        assert self.recipe.lora is not None
        if self.ranks.rank:
            return []
        target = folder / f"lora-{self.step:08d}"
        target.mkdir(exist_ok=True)
        halves = {
            f"base_model.model.{n.replace('.default', '')}": p.detach().float().cpu().contiguous()
            for n, p in self.model.named_parameters()
            if "lora_" in n
        }
        lora = self.recipe.lora
        config = {
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "target_modules": self.lora_layers,
            "bias": "none",
        }
        write_atomically(target / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode())
        told = {AUTOENCODER: self.data.encoding.autoencoder, **digests_of(halves)}
        if self.start_digest is not None:
            told[START] = self.start_digest
        write_atomically(target / "adapter_model.safetensors", save_tensors(halves, metadata=told))
        return [target / "adapter_model.safetensors"]


def _whole(tensor: Any) -> Tensor:
    """A tensor, or all ranks' parts of it, on the CPU."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu()
