"""What a training is: one frozen record, from which a run follows but for the place of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..dataset.strict import Finite
from ..model.config import WorldModelConfig
from .consistency import ConsistencyConfig
from .feed import Control
from .objective import ObjectiveConfig
from .ode import OdeConfig
from .refining import RefinerConfig
from .self_forcing import SelfForcingConfig
from .student import StudentConfig

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]

Objective = Literal["flow_matching", "refiner", "ode_init", "consistency_init", "self_forcing"]
Recompute = Literal["nothing", "blocks", "blocks_in_parts", "all_but_softmax", "all_but_attention"]
Precision = Literal["auto", "float32", "bf16"]
"""Of a computation. auto: bf16 on a GPU, else float32."""
DISTILLATION = ("ode_init", "consistency_init", "self_forcing")
"""Objectives that make a few-step student of a chunk-causal network."""

LORA_PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("attn.qkv", "attn.proj"),
    "cross_attention": ("cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
    "camera": ("attn.q_proj_cam", "attn.k_proj_cam", "attn.v_proj_cam", "attn.out_proj_cam", "plucker_proj"),
    "ffn": ("mlp.inverted_conv.conv", "mlp.point_conv.conv"),
}
"""Layers of a block that a LoRA may change, by part."""


class StartConfig(Finite):
    """Which weights a training starts from."""

    weights: str | None = None
    """A file or folder of weights, `released/bidirectional`, `released/chunk-causal` or `released/distilled`; null:
    initial values."""
    grow: bool = False
    """The weights are of an earlier stage: what this stage adds starts at its initial values, what it no longer has is
    left out, both told. False: every tensor must be there."""
    latents: Literal["keep", "anew"] = "keep"
    """`anew`, with `grow`: the two layers that touch latents start at their initial values: another autoencoder."""
    cameras: Literal["keep", "from_main"] = "keep"
    """`from_main`: camera branches start as copies of the main branch, silent; where a stage first sees cameras."""


class DataConfig(Finite):
    """How windows become batches."""

    batch: Positive = 1
    """Windows of a data-parallel rank at once."""
    accumulate: Positive = 1
    """Such batches that make a step."""
    cameras: Control = "both"
    """Camera controls that the network is given."""
    sources: Annotated[dict[str, Share], Field(min_length=1)] | None = None
    """Weights by source, in any unit: how many of the samples each gives (`theodolite mix` says them); 0: none.
    null: all windows alike, whatever their source."""
    held_out: Count = 8
    """Clips that are kept out of training, to validate with."""
    workers: Count = 2
    on_bad_clip: Literal["stop", "skip"] = "stop"
    """A window that cannot be read: end the run, or take another one in its place."""
    max_bad_clips: Count = 100
    """With `skip`: a run with more of them ends all the same."""
    allow_stand_in: bool = False
    """Train on clips that stand-in networks annotated or encoded."""


class OptimiserConfig(Finite):
    """AdamW; defaults are those of the released recipes."""

    lr: Annotated[float, Field(gt=0)] = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 0.5
    """`.inf`: gradients are not clipped."""
    warmup_steps: Count = 0
    decay_from: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the steps from which the rate falls to zero along a line; null: it stays."""


class LoraConfig(Finite):
    """Low-rank changes of a block's layers, by peft; the weights themselves stay."""

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 64.0
    parts: Annotated[
        tuple[Literal["attention", "cross_attention", "camera", "ffn"], ...], Field(min_length=1)
    ] = (
        "attention",
        "camera",
        "ffn",
    )


class ParallelConfig(Finite):
    """How a step is spread over devices and how much it remembers."""

    devices: Literal["auto"] | Positive = "auto"
    """Of each machine."""
    nodes: Positive = 1
    context: Positive = 1
    """Ranks that share a clip, each with a stretch of its frames."""
    sharding: Literal["auto", "fsdp", "replicate"] = "auto"
    """`fsdp`: weights, gradients and optimiser are spread over all ranks (FSDP2); `replicate`: every rank holds all.
    auto: fsdp on GPUs and over several ranks, replicate for LoRA and on one CPU."""
    recompute: Recompute = "all_but_softmax"
    """What the backward pass computes again: whole blocks, or all of them but the outputs of softmax attention (1 GB a
    softmax block at a minute of 720p), or but those and the recurrences' (1.6 GB more a block). `blocks_in_parts` takes
    least memory: the feed-forward network goes part by part, a second time within its block."""


class GuardConfig(Finite):
    """When a step is not taken."""

    spike: Annotated[float, Field(gt=1)] | None = 20.0
    """A gradient norm of so many times the median of the last ones; null: only what is not finite."""
    window: Positive = 50
    """Steps whose median counts; none is skipped as a spike before half of them are done."""
    patience: Positive = 5
    """So many skipped steps in a row end the run."""


class CheckpointConfig(Finite):
    every: Positive = 500
    """Steps."""
    keep: Positive = 2
    """The last ones; older ones are removed."""
    keep_every: Positive | None = None
    """Those of every so many steps stay."""


class ValidationConfig(Finite):
    every: Count = 500
    """Steps; 0: never."""
    levels: Annotated[tuple[float, ...], Field(min_length=1)] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Noise levels (before the shift) at which the loss of held-out clips is measured, always with the same noise."""
    sample_clips: Count = 0
    """Held-out clips that are sampled from their first frame."""
    sample_steps: Positive = 20
    """Of the sampler, without guidance."""


class LogConfig(Finite):
    every: Positive = 10
    """Steps between lines and rows."""
    loggers: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ("csv",)
    project: str = "theodolite"
    """Of Weights & Biases."""


class TrainRecipe(Finite):
    """A training, whole."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    description: str = ""
    objective: Objective = "flow_matching"
    flow_matching: ObjectiveConfig = ObjectiveConfig()
    student: StudentConfig | None = None
    """Of the three objectives that make the few-step student, which each read a section of their own beside it."""
    ode_init: OdeConfig | None = None
    consistency_init: ConsistencyConfig | None = None
    self_forcing: SelfForcingConfig | None = None
    refiner: RefinerConfig | None = None
    """Of objective `refiner`, which trains a LoRA of the refiner on pairs; `start.weights` are the refiner's then."""
    model: WorldModelConfig | None = None
    """Sizes; null: those of the weights that it starts from."""
    start: StartConfig = StartConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    lora: LoraConfig | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average of the weights, which is exported beside them."""
    steps: Positive
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 3407
    precision: Precision = "auto"
    """Of the computation; weights and optimiser are float32 (not so frozen ones beside a LoRA). auto: bf16 on a GPU."""
    parallel: ParallelConfig = ParallelConfig()
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _goes_together(self) -> TrainRecipe:
        problems = self._refiner_problems()
        of_refiner = self.objective == "refiner"
        if self.start.weights is None and self.model is None and not of_refiner:
            problems.append("model: give sizes, or start.weights to take them from")
        if self.start.weights is None and (self.start.grow or self.start.cameras != "keep"):
            problems.append(
                "start.grow and start.cameras need start.weights: initial values grow from nothing"
            )
        if self.start.latents == "anew" and not self.start.grow:
            problems.append("start.latents anew: set start.grow to true, which takes over the other layers")
        if self.start.grow and self.model is None:
            problems.append("start.grow: give model, the sizes to grow to")
        if self.lora is not None and self.start.weights is None and not of_refiner:
            problems.append("lora: changes weights that are given; name start.weights")
        if self.lora is not None and self.ema is not None:
            problems.append("ema: is of all weights; leave it out beside lora")
        if self.lora is not None and self.parallel.sharding == "fsdp":
            problems.append(
                "parallel.sharding fsdp: a LoRA's few weights are not spread; use replicate or auto"
            )
        if self.data.cameras == "none" and self.start.cameras == "from_main":
            problems.append("start.cameras from_main, but data.cameras is none: nothing would read them")
        if self.lora is not None and self.data.cameras == "none" and "camera" in self.lora.parts:
            problems.append("lora.parts has camera, but data.cameras is none")
        if self.data.sources is not None and not any(self.data.sources.values()):
            problems.append("data.sources: all weights are 0: nothing would be trained on")
        if self.data.held_out == 0 and self.validation.every:
            problems.append("data.held_out is 0: set validation.every to 0, or hold clips out")
        if self.validation.sample_clips > self.data.held_out:
            problems.append("validation.sample_clips is more than data.held_out")
        if self.validation.sample_clips and self.parallel.context > 1:
            problems.append(
                "validation.sample_clips: clips whose frames are spread over ranks are not sampled"
            )
        if any(not 0 < level < 1 for level in self.validation.levels):
            problems.append("validation.levels lie between 0 and 1")
        if self.precision == "bf16" and self.parallel.sharding == "replicate" and self.lora is None:
            problems.append(
                "precision bf16, but parallel.sharding replicate computes in the weights' float32: use fsdp"
            )
        problems += self._distillation_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _distillation_problems(self) -> list[str]:
        """Keys of other objectives, and what the student's cannot do."""
        problems = []
        sections = {name: getattr(self, name) for name in DISTILLATION}
        for name, section in sections.items():
            if section is not None and name != self.objective:
                problems.append(
                    f"{name}: is read by objective {name} alone, the objective is {self.objective}"
                )
            if section is None and name == self.objective:
                problems.append(f"{name}: is missing; objective {name} reads it")
        if self.objective not in DISTILLATION:
            if self.student is not None:
                problems.append(f"student: is read by {', '.join(DISTILLATION)} alone")
            return problems
        if self.student is None:
            problems.append(f"student: is missing; objective {self.objective} reads it")
        if self.start.weights is None:
            problems.append(
                f"start.weights: {self.objective} makes a student of trained weights; name those of stage4"
            )
        if self.flow_matching != ObjectiveConfig():
            problems.append(f"flow_matching: is not read by objective {self.objective}")
        if self.lora is not None:
            problems.append(f"lora: objective {self.objective} trains all weights")
        if self.objective == "consistency_init" and self.parallel.context > 1:
            problems.append(
                "parallel.context: consistency_init goes through a clip chunk by chunk, which is not spread over "
                "ranks; use 1"
            )
        return problems

    @property
    def chunk(self) -> int | None:
        """Latent frames of a chunk of the network that is trained; None: it is bidirectional."""
        if self.student is not None:
            return self.student.chunk
        return None if self.flow_matching.chunks is None else self.flow_matching.chunks.size

    @property
    def stage(self) -> str:
        """What the trained weights can do, as exports say it: bidirectional, chunk-causal or distilled."""
        if self.objective in DISTILLATION:
            return "distilled"
        return "bidirectional" if self.flow_matching.chunks is None else "chunk-causal"

    def _refiner_problems(self) -> list[str]:
        """Keys that the refiner's training does not know, and those that only it knows."""
        if self.objective != "refiner":
            return ["refiner: is read by objective refiner alone"] if self.refiner is not None else []
        default = type(self).model_fields["flow_matching"].default
        found = []
        if self.refiner is None:
            found.append("refiner: is missing; objective refiner reads it")
        if self.lora is None:
            found.append("lora: objective refiner trains a LoRA; give its rank, alpha and parts")
        if self.model is not None or self.start.grow or self.start.cameras != "keep":
            found.append("model, start.grow and start.cameras are of the world model, not of the refiner")
        if self.flow_matching != default:
            found.append("flow_matching: is not read by objective refiner")
        if self.data.cameras != "none":
            found.append("data.cameras: the refiner reads none; set it to none")
        if self.parallel.context > 1:
            found.append("parallel.context: ranks do not share the refiner's clips; use 1")
        if self.ema is not None:
            found.append("ema: is of all weights; leave it out beside lora")
        return found


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` of every difference between two recipes' contents."""
    found = []
    for key in sorted({*before, *now}):
        old, new, path = before.get(key), now.get(key), f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            found += changed_keys(old, new, f"{path}.")
        elif old != new:
            found.append(f"{path}: {old!r} -> {new!r}")
    return found


FREE_TO_CHANGE = (
    "description",
    "steps",
    "parallel.",
    "guard.",
    "checkpoint.",
    "validation.",
    "log.",
    "data.workers",
    "data.on_bad_clip",
    "data.max_bad_clips",
    "data.accumulate",
    "data.batch",
)
"""Keys that a resumed run may have otherwise than the run it continues, which is said: what is learned does not hang on
them, but for the number of clips of a step, and of steps where `optimiser.decay_from` goes by it."""


PATHS = (
    ("start", "weights"),
    ("ode_init", "trajectories"),
    ("consistency_init", "teacher"),
    ("self_forcing", "real"),
    ("self_forcing", "fake"),
    ("self_forcing", "negative"),
)
"""Keys that name files or folders."""


def resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Take relative files of a recipe's content from a folder; those that are absolute by now stay."""
    for section, key in PATHS:
        record = content.get(section)
        if not isinstance(record, dict):
            continue
        value = record.get(key)
        if isinstance(value, str) and not value.startswith("released/"):
            content[section] = {**record, key: str(folder / Path(value).expanduser())}
