"""What can be asked of `theodolite generate`: options of a run, and what makes one clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticKnownError
from typer.models import OptionInfo

from ...dataset.strict import Strict
from ..command import option_name

if TYPE_CHECKING:
    from ...kernels.attention import AttentionBackend, AttentionPrecision
    from ...kernels.backend import Backend
    from ...model import parts
    from ...model.precision import Scope
    from ...model.residence import Offload
    from ...model.sampling import Mode, Sampling

    Precision = Literal["auto"] | parts.Precision
else:

    def choice_of(module: str, name: str, *others: str) -> Any:
        """The type that a module's choices make, and others; the module is only imported to check one: help stays
        instant."""

        def check(value: str) -> str:
            words = *others, *get_args(getattr(import_module(module, __package__), name))
            known = [repr(word) for word in words]
            if repr(value) not in known:
                expected = " or ".join([", ".join(known[:-1]), known[-1]])
                raise PydanticKnownError("literal_error", {"expected": expected})
            return value

        return Annotated[str, AfterValidator(check)]

    AttentionBackend = choice_of("...kernels.attention", "AttentionBackend")
    AttentionPrecision = choice_of("...kernels.attention", "AttentionPrecision")
    Backend = choice_of("...kernels.backend", "Backend")
    Mode = choice_of("...model.sampling", "Mode")
    Offload = choice_of("...model.residence", "Offload")
    Precision = choice_of("...model.parts", "Precision", "auto")
    Scope = choice_of("...model.precision", "Scope")

Size = Literal["full", "tiny"]
PICTURE: dict[Size, tuple[int, int]] = {"full": (704, 1280), "tiny": (128, 224)}
"""(height, width) of the videos."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


_SAME_VIDEO = {"device", "offload", "gpu_memory_gb", "overlap", "warm_up"}
"""Options that change when and where a video is made, not what it is."""


class GenerateOptions(Strict):
    """Options of a run, the same for all of its clips, in the order of `theodolite generate --help`."""

    mode: Annotated[
        Mode,
        typer.Option("--mode", help="bidirectional, chunk-causal or distilled (chunk by chunk, four steps)."),
    ] = "bidirectional"
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="released (theodolite weights pull MODE), stand_in, or a folder or file of your own.",
        ),
    ] = "released"
    """`released`: the hub's cache; `stand_in`: random numbers; else a folder laid out as the release, or the world
    model's file."""
    size: Annotated[Size, typer.Option("--size", help="full, or tiny (stand-ins only).")] = "full"
    """Of stand-ins; released weights come in one size."""
    resolution: Annotated[
        str | None,
        Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$"),
        typer.Option(
            "--resolution",
            help="WIDTHxHEIGHT of the videos, multiples of 32, for weights trained on another size; default 1280x704 "
            "(tiny: 224x128).",
        ),
    ] = None
    autoencoder: Annotated[Path | None, typer.Option("--autoencoder", help="Folder of the autoencoder.")] = (
        None
    )
    text_encoder: Annotated[
        Path | None, typer.Option("--text-encoder", help="Folder of the text encoder.")
    ] = None
    refiner_folder: Annotated[
        Path | None,
        typer.Option(
            "--refiner", help="Folder with transformer, connectors and text_encoder of the refiner."
        ),
    ] = None
    """Other places of the parts; null: as `weights` says."""
    lora: Annotated[
        tuple[str, ...],
        typer.Option(
            "--lora",
            help="LoRA file of the world model, or FILE=SCALE; may be repeated.",
            metavar="FILE[=SCALE]",
        ),
    ] = ()
    refiner_lora: Annotated[
        tuple[str, ...],
        typer.Option("--refiner-lora", help="The same of the refiner.", metavar="FILE[=SCALE]"),
    ] = ()
    refine: Annotated[bool, typer.Option("--refine/--no-refiner", help="Run the refiner.")] = True
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            help="Of the world model: auto (bf16 on a GPU, float32 on a CPU), float32, bf16, fp8, nvfp4, int8-weights, "
            "fp8-weights.",
        ),
    ] = "auto"
    scopes: Annotated[
        tuple[Scope, ...] | None,
        typer.Option(
            "--scopes", help="Layers in that precision: of qkv, attention, camera, cross, ffn (commas)."
        ),
    ] = None
    """Null: query, key and value."""
    attention_precision: Annotated[
        AttentionPrecision,
        typer.Option("--attention-precision", help="Of softmax attention: input or fp8."),
    ] = "input"
    """Of the world model; `input`: that of the activations."""
    kernels: Annotated[
        Backend, typer.Option("--kernels", help="Operators of the world model: auto, triton or reference.")
    ] = "auto"
    attention: Annotated[
        AttentionBackend,
        typer.Option("--attention", help="Its softmax attention: auto, flash4, cudnn, flash or reference."),
    ] = "auto"
    offload: Annotated[
        Offload,
        typer.Option("--offload", help="Parts leave the GPU when idle: none, idle, blocks (block by block)."),
    ] = "none"
    gpu_memory_gb: Annotated[
        Positive | None, typer.Option("--gpu-memory", help="Use at most this much GPU memory, GB.")
    ] = None
    """Null: what is free."""
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")] = "auto"
    seconds: Annotated[
        Positive | None,
        typer.Option("--seconds", help="Length; default the whole path, of named paths 10 s."),
    ] = None
    fps: Annotated[
        Positive | None,
        typer.Option("--fps", help="Poses a second of the camera file, if it does not say."),
    ] = None
    metres_per_unit: Annotated[
        Positive, typer.Option("--metres-per-unit", help="Of the camera file (COLMAP, nerfstudio).")
    ] = 1.0
    max_speed_m_s: Annotated[Positive, typer.Option("--max-speed", help="Faster paths are refused, m/s.")] = (
        10.0
    )
    max_turn_deg_s: Annotated[
        Positive, typer.Option("--max-turn", help="Faster turns are refused, deg/s.")
    ] = 240.0
    intrinsics: Annotated[
        str | None,
        typer.Option(
            "--intrinsics",
            help="Lens of the image: fov=DEGREES, fx,fy,cx,cy, a .npy file, estimate (MoGe-2) or estimate=pi3x; "
            "default that of the camera file.",
        ),
    ] = None
    seed: Annotated[Seed, typer.Option("--seed", help="Of the noise.")] = 42
    refiner_seed: Annotated[Seed, typer.Option("--refiner-seed", help="Of the refiner's noise.")] = 42
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps; published 60.")] = None
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="How strongly the prompt is followed; published 5, 1: off."),
    ] = None
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--guidance-interval", help="Shares of the steps with guidance, e.g. 0,0.5; published 0,1."
        ),
    ] = None
    guidance_batched: Annotated[
        bool, typer.Option("--guidance-batched", help="Both passes of guidance in one call.")
    ] = False
    negative_prompt: Annotated[
        str, typer.Option("--negative-prompt", help="What guidance leads away from.")
    ] = ""
    shift: Annotated[float | None, typer.Option("--shift", help="Of the noise levels; published 9.8.")] = None
    chunk_interval: Annotated[
        float | None,
        typer.Option("--chunk-interval", help="chunk-causal: share of the steps between two chunks' starts."),
    ] = None
    times: Annotated[
        tuple[float, ...] | None,
        typer.Option("--times", help="distilled: its times; published 1000,960,889,727,0."),
    ] = None
    window_chunks: Annotated[
        int | None,
        typer.Option("--window-chunks", help="distilled: chunks that are looked back on; published 1."),
    ] = None
    sink_chunks: Annotated[
        int | None,
        typer.Option("--sink-chunks", help="distilled: first chunks that stay in view; published 1."),
    ] = None
    graphs: Annotated[bool, typer.Option("--graphs", help="distilled: CUDA graphs.")] = False
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="distilled: make the next chunk while one is decoded and written."),
    ] = False
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up", help="distilled: compile everything on a short clip before the clock starts."
        ),
    ] = False
    crf: Annotated[
        int, Field(ge=0, le=51), typer.Option("--crf", help="Quality of the MP4, lower is better.")
    ] = 16

    @classmethod
    def checked(cls, **values: Any) -> GenerateOptions:
        """Options that go together.

        Raises:
            ValueError: naming option and value.
        """
        options = plainly(lambda: cls(**values))
        if options.size == "tiny" and not options.stand_in:
            raise ValueError("--size tiny is of stand-ins: add --weights stand_in, or leave --size out")
        if any(side % 32 for side in options.picture):
            raise ValueError(f"--resolution {options.resolution}: both sides must be multiples of 32")
        if options.scopes is not None and options.precision in ("auto", "float32", "bf16"):
            raise ValueError(f"--scopes goes with a low --precision, not with {options.precision}")
        if options.warm_up and options.mode != "distilled":
            raise ValueError(f"--warm-up is an option of distilled, not of {options.mode}")
        sampling = options.sampling()
        if options.negative_prompt and sampling.guidance in (None, 1):
            why = f"{options.mode} has none" if sampling.guidance is None else "--guidance 1 is none"
            raise ValueError(f"--negative-prompt is what guidance leads away from, and {why}")
        return options

    def sampling(self) -> Sampling:
        """How the world model is asked.

        Raises:
            ValueError: an option of another mode, or out of its range.
        """
        from ...model.sampling import Sampling

        names = (
            *("steps", "shift", "guidance", "guidance_interval", "chunk_interval"),
            *("times", "window_chunks", "sink_chunks"),
        )
        return plainly(
            lambda: Sampling.published(
                self.mode,
                **{n: getattr(self, n) for n in names},
                guidance_batched=self.guidance_batched or None,
                graphs=self.graphs or None,
                overlap=self.overlap or None,
            )
        )

    @property
    def picture(self) -> tuple[int, int]:
        """(height, width) of the videos."""
        if self.resolution is None:
            return PICTURE[self.size]
        width, height = map(int, self.resolution.split("x"))
        return height, width

    @property
    def stand_in(self) -> bool:
        return self.weights == "stand_in"

    def digest(self) -> str:
        """Of everything that changes the videos."""
        # Left out where it is not given: videos that were made before there was such a choice stay what they are.
        left_out = _SAME_VIDEO | ({"resolution"} if self.resolution is None else set())
        content = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def plainly(make: Callable[[], Any]) -> Any:
    """What `make` gives, with errors as a user reads them."""
    try:
        return make()
    except ValidationError as error:
        found = []
        for e in error.errors():
            name = _typed_name(e["loc"])
            given = "" if not e["loc"] else f" (got {e['input']!r})"
            found.append(f"{name} {e['msg'].removeprefix('Value error, ')}{given}".strip())
        raise ValueError("; ".join(found)) from None


def _typed_name(where: tuple[int | str, ...]) -> str:
    """The option that an error is about, as it is typed."""
    if not where:
        return ""
    first = str(where[0])
    field = GenerateOptions.model_fields.get(first)
    own = None if field is None else next((m for m in field.metadata if isinstance(m, OptionInfo)), None)
    name = f"--{first.replace('_', '-')}" if own is None else option_name(own, first)
    return ".".join([name, *(str(part) for part in where[1:])])


class ClipRequest(Strict):
    """What one clip is made of; values that are set here take the place of the run's."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$")]
    image: Path
    prompt: str
    camera: str
    intrinsics: str | None = None
    seconds: Positive | None = None
    fps: Positive | None = None
    seed: Seed | None = None

    def digest(self) -> str:
        """Of the request as it was written."""
        content = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def options(self, run: GenerateOptions) -> GenerateOptions:
        """The run's options with this clip's values."""
        own = {n: getattr(self, n) for n in ("intrinsics", "seconds", "fps", "seed")}
        return run.model_copy(update={n: v for n, v in own.items() if v is not None})
