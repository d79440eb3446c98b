"""The refiner's training: the same run as every other, around another network and another objective.

Of LTX-2's transformer only a LoRA learns. Clips are pairs (`theodolite pairs`): the true video's latents, what a world
model made of the same image, caption and cameras, and the refiner's text states.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..dataset.encoded import EncodedDataset
from ..dataset.weights import CHAINS, locate
from ..kernels.attention import SDPA_ORDER
from ..model.lora import merge_lora
from ..model.refiner import Refiner, load_refiner, tiny_refiner
from ..model.released import import_peft
from ..model.samplers import Text
from ..model.weight_files import disk_errors
from .cost import peak_flops
from .feed import Samples, hold_out, make_batch
from .guard import Guard
from .held_out import read_together
from .low_rank import compute_low_rank
from .objective import Batch
from .order import seed_of
from .parallel import Ranks
from .refining import RefinerConfig, draw_by_seed, refiner_loss
from .training import Training

if TYPE_CHECKING:
    from .recipe import TrainRecipe

REFINER_PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    "ffn": ("ff.net.0.proj", "ff.net.2"),
}
"""Layers of a block that a LoRA may change, by part; the released code changes `attention`, the paper names
feed-forward layers as well."""


@dataclass(frozen=True)
class StartedRefiner:
    """The refiner, ready to train; `origin` says where its weights came from."""

    refiner: Refiner
    origin: str

    def summary(self) -> str:
        count = sum(p.numel() for p in self.refiner.parameters())
        return f"{self.origin}: refiner of {count / 1e9:.2f} G parameters"


def refiner_folder(weights: str) -> Path:
    """Where the refiner's files lie.

    Raises:
        ValueError: they are not there.
    """
    if weights.startswith("released/"):
        mode = weights.removeprefix("released/")
        if mode not in CHAINS or "refiner" not in CHAINS[mode]:
            known = ", ".join(name for name in CHAINS if "refiner" in CHAINS[name])
            raise ValueError(f"start.weights {weights}: use released/ with one of {known}")
        return locate(CHAINS[mode]["refiner"]) / "transformer"
    path = Path(weights)
    if not path.is_dir():
        raise ValueError(f"start.weights {weights}: no such folder; name the refiner's `transformer`")
    return path


def start_refiner(recipe: TrainRecipe, *, latent_channels: int, text_width: int) -> StartedRefiner:
    """The refiner of a recipe; without `start.weights` a tiny one of random numbers, to try a recipe with.

    Raises:
        ValueError, FileNotFoundError: the weights are missing, damaged or another network's.
        ModuleNotFoundError: diffusers is not installed.
    """
    assert recipe.refiner is not None
    options = recipe.refiner.options(16.0)
    if recipe.start.weights is None:
        refiner = tiny_refiner(latent_channels=latent_channels, text_width=text_width, options=options)
        return StartedRefiner(refiner, "random numbers")
    folder = refiner_folder(recipe.start.weights)
    return StartedRefiner(load_refiner(folder, options=options), str(folder))


class RefinerTraining(Training):
    """A run of an `objective: refiner` recipe; see `Training`."""

    def __init__(self, recipe: TrainRecipe, started: StartedRefiner, data: EncodedDataset, out: Path) -> None:
        assert recipe.refiner is not None
        self.recipe, self.data, self.out = recipe, data, out
        self.settings: RefinerConfig = recipe.refiner
        self.model: Any = started.refiner
        check_pairs(recipe, started.refiner, data)
        self.windows, self.held_out = hold_out(data, recipe.data.held_out, seed=recipe.seed)
        self.loss: Any = self._refiner_loss
        self.guard = Guard(recipe.guard)
        self.step = self.taken = 0
        self.feed_faults: dict[str, str] = {}
        self.trajectories = None
        self.ranks = Ranks()
        self.device = torch.device("cpu")

    def place(self, device: torch.device, ranks: Ranks) -> None:
        """Add the LoRA and bring everything to the device; every rank holds the whole network."""
        assert self.recipe.lora is not None
        self.device, self.ranks = device, ranks
        self.lora_layers = add_refiner_lora(self.model, self.recipe, dtype=self.compute_type(device))
        self.model.to(device)
        if self.recipe.parallel.recompute != "nothing":
            for block in self.model.transformer.transformer_blocks:
                block.forward = _Recomputed(block.forward)
        self.sharded = False
        self.optimiser = self.make_optimiser(self.model, self.recipe.optimiser.lr)
        self.average = None
        self.peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None

    def _refiner_loss(
        self, model: Refiner, batch: Batch, recipe: TrainRecipe, seeds: list[int], share: None
    ) -> Tensor:
        assert batch.start is not None
        sink = model.options.sink_frames
        draws = draw_by_seed(self.settings, batch.latents, seeds, sink=sink)
        return refiner_loss(model, batch.latents, batch.start, batch.text, self.settings, draws)

    def _mfu(self, micro: list[Samples], wall: float) -> float | None:
        return None  # its operations are not counted here

    # --- validation ---------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Loss of held-out pairs at fixed noise levels with fixed noise and blocks; a collective call.

        With `validation.sample_clips`, `sampled_error`: mean squared error of refined latents over that of the world
        model's, sink left out; below 1 the refiner helps.
        """
        levels = self.recipe.validation.levels
        sums = torch.zeros(len(levels) + 1, device=self.device)
        world, mine = self.ranks.world, self.held_out[self.ranks.rank :: self.ranks.world]
        for i in range(math.ceil(len(self.held_out) / world)):
            if not (read := read_together(self, mine[i : i + 1])):
                continue  # a rank with one fewer
            index, batch = mine[i], Samples(read[0], (), ()).to(self.device).batch
            seed = [seed_of(self.recipe.seed + 1, index)]
            assert batch.start is not None
            draws = draw_by_seed(self.settings, batch.latents, seed, sink=self.model.options.sink_frames)
            for j, level in enumerate(levels):
                fixed = type(draws)(torch.full_like(draws.level, level), draws.block, draws.noise)
                sums[j] += refiner_loss(
                    self.model, batch.latents, batch.start, batch.text, self.settings, fixed
                )
            sums[-1] += 1
        if world > 1:
            torch.distributed.all_reduce(sums)
        means = (sums[:-1] / sums[-1]).tolist()
        found = {f"loss_at_{level:g}": value for level, value in zip(levels, means, strict=True)}
        return {"loss": sum(means) / len(means), **found, **self._refined()}

    def held_out_batch(self, index: int) -> Batch:
        return make_batch([self.data.read(index)], self.data.encoding, "none")

    def _refined(self) -> dict[str, float]:
        clips = self.held_out[: self.recipe.validation.sample_clips]
        ratios = []
        for index in clips:
            batch = Samples(read_together(self, [index])[0], (), ()).to(self.device).batch
            assert batch.start is not None
            true, sink = batch.latents.float(), self.model.options.sink_frames
            start = torch.cat([batch.latents[:, :, :sink], batch.start[:, :, sink:]], dim=2)
            refined = self.model.refine(start, Text(batch.text.states, batch.text.mask))
            errors = [(x.float() - true)[:, :, sink:].square().mean() for x in (refined, start)]
            ratios.append(float(errors[0] / errors[1]))
        return {"sampled_error": sum(ratios) / len(ratios)} if ratios else {}

    # --- exports ------------------------------------------------------------------------------

    def export(self) -> list[Path]:
        """Write the LoRA as `theodolite generate --refiner-lora` takes it, and with `refiner.merged` a whole refiner
        as `--refiner` and `start.weights` do.

        Returns:
            files, on the first rank.
        """
        folder = self.out / "weights"
        if self.ranks.rank:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        written = self._export_lora(folder)
        if self.settings.merged:
            whole = start_refiner(
                self.recipe,
                latent_channels=self.data.encoding.latent_channels,
                text_width=self.data.encoding.text_width,
            ).refiner
            merge_lora(whole, written[0])
            target = folder / f"refiner-{self.step:08d}" / "transformer"
            with disk_errors(target):
                whole.transformer.save_pretrained(target)
            written.append(target)
        return written


class _Recomputed:
    """A block whose insides the backward pass computes again."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*arguments, **named)
        return checkpoint(self.forward, *arguments, use_reentrant=False, context_fn=_same_attention, **named)


def _same_attention() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a block runs under, the first time and when it is computed again.

    The refiner chooses torch's attention around its network, backward passes run outside of that, and another attention
    keeps other tensors, which torch refuses.
    """
    return nullcontext(), sdpa_kernel(SDPA_ORDER, set_priority=True)


def add_refiner_lora(refiner: Refiner, recipe: TrainRecipe, *, dtype: torch.dtype) -> list[str]:
    """Freeze the refiner, in `dtype`, and add low-rank float32 weights to the layers that the recipe names.

    Returns:
        names of the layers, within the transformer.
    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    assert recipe.lora is not None
    peft = import_peft()
    endings = tuple(e for part in recipe.lora.parts for e in REFINER_PARTS[part])
    names = [
        name
        for name, module in refiner.transformer.named_modules()
        if name.startswith("transformer_blocks.")
        and name.split(".", 2)[-1] in endings
        and isinstance(module, nn.Linear)
    ]
    refiner.requires_grad_(False).to(dtype)
    settings = peft.LoraConfig(
        r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules=names, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        peft.inject_adapter_in_model(settings, refiner.transformer)
    for name, parameter in refiner.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    compute_low_rank(refiner.transformer)
    return names


def pair_problems(recipe: TrainRecipe, data: EncodedDataset, *, stand_in: bool) -> list[str]:
    """What is wrong with pairs, whatever the refiner.

    Args:
        stand_in: whether the refiner is one.
    """
    e, problems = data.encoding, []
    if e.world_model is None:
        problems.append(
            "they are no pairs of true and made latents: theodolite pairs makes those of encoded clips"
        )
    if (e.stand_in or stand_in) and not recipe.data.allow_stand_in:
        problems.append("stand-in networks made them (data.allow_stand_in: true trains on them all the same)")
    return problems


def check_pairs(recipe: TrainRecipe, refiner: Refiner, data: EncodedDataset) -> None:
    """Clips must be pairs that this refiner can learn from.

    Raises:
        ValueError: with every mismatch found.
    """
    e, c = data.encoding, refiner.transformer.config
    problems = pair_problems(recipe, data, stand_in=refiner.stand_in)
    for what, theirs, mine in (
        ("latents of {} channels", e.latent_channels, c.in_channels),
        ("text states of {} channels", e.text_width, c.caption_channels),
    ):
        if theirs != mine:
            problems.append(f"they have {what.format(theirs)}, the refiner {mine}")
    shortest = (min(w.num_frames for w in data.windows) - 1) // e.temporal_stride + 1
    if shortest <= refiner.options.sink_frames:
        problems.append(f"the shortest has {shortest} latent frames, of which the refiner's sink takes all")
    if problems:
        raise ValueError(
            f"{', '.join(map(str, data.folders))}: these clips do not fit: {'; '.join(problems)}"
        )
