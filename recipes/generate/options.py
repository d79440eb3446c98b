"""What can be asked of `theodolite generate`: options of a run, and what makes one clip."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ...dataset.strict import Strict
from ...kernels.attention import AttentionBackend, AttentionPrecision
from ...kernels.frame_gdn.op import Backend
from ...model.generation import Mode, Sampling
from ...model.precision import Scope

Size = Literal["full", "tiny"]
PICTURE: dict[Size, tuple[int, int]] = {"full": (704, 1280), "tiny": (128, 224)}
"""(height, width) of the videos."""
Precision = Literal["auto", "float32", "bf16", "fp8", "nvfp4", "int8-weights", "fp8-weights"]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GenerateOptions(Strict):
    """Options of a run, the same for all of its clips."""

    mode: Mode = "bidirectional"
    weights: str = "released"
    """`released`: the hub's cache; `stand_in`: random numbers; else a folder laid out as the release, or the world
    model's file."""
    autoencoder: Path | None = None
    text_encoder: Path | None = None
    refiner_folder: Path | None = None
    """Other places of the parts; null: as `weights` says."""
    lora: tuple[str, ...] = ()
    refiner_lora: tuple[str, ...] = ()
    """LoRA files that are merged into the world model and the refiner: `FILE` or `FILE=SCALE`."""
    size: Size = "full"
    """Of stand-ins; released weights come in one size."""
    precision: Precision = "auto"
    """Of the world model; auto: bfloat16 on a GPU, float32 on a CPU."""
    scopes: tuple[Scope, ...] | None = None
    """Which layers of the world model take a low precision; null: query, key and value."""
    attention_precision: AttentionPrecision = "input"
    """Of the world model's softmax attention: `input` (that of the activations) or `fp8`."""
    kernels: Backend = "auto"
    attention: AttentionBackend = "auto"
    """Implementations of the world model's operators."""
    offload: Literal["none", "idle", "blocks"] = "none"
    device: str = "auto"
    refine: bool = True
    steps: int | None = None
    shift: float | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_batched: bool = False
    chunk_interval: float | None = None
    times: tuple[float, ...] | None = None
    window_chunks: int | None = None
    sink_chunks: int | None = None
    graphs: bool = False
    negative_prompt: str = ""
    seconds: Positive | None = None
    """Null: as long as the path; named paths last 10 s."""
    fps: Positive | None = None
    """Poses a second of the camera file; null: what the file says."""
    metres_per_unit: Positive = 1.0
    max_speed_m_s: Positive = 10.0
    max_turn_deg_s: Positive = 240.0
    intrinsics: str | None = None
    """`fov=DEGREES`, `fx,fy,cx,cy`, a .npy file, `estimate` or `estimate=pi3x`; null: those of the camera file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    refiner_seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    crf: Annotated[int, Field(ge=0, le=51)] = 16
    """Quality of the MP4, lower is better."""

    def sampling(self) -> Sampling:
        """How the world model is asked.

        Raises:
            ValueError: an option of another mode, or out of its range.
        """
        names = (
            *("steps", "shift", "guidance", "guidance_interval", "chunk_interval"),
            *("times", "window_chunks", "sink_chunks"),
        )
        return _plainly(
            lambda: Sampling.published(
                self.mode,
                **{n: getattr(self, n) for n in names},
                guidance_batched=self.guidance_batched or None,
                graphs=self.graphs or None,
            )
        )

    @property
    def picture(self) -> tuple[int, int]:
        """(height, width) of the videos."""
        return PICTURE[self.size]

    @property
    def stand_in(self) -> bool:
        return self.weights == "stand_in"

    def digest(self) -> str:
        """Of everything that changes the videos."""
        content = self.model_dump(mode="json", exclude={"device", "offload"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def make_options(**values: Any) -> GenerateOptions:
    """Checked options.

    Raises:
        ValueError: naming option and value.
    """
    options = _plainly(lambda: GenerateOptions(**values))
    if options.size == "tiny" and not options.stand_in:
        raise ValueError("--size tiny is of stand-ins: add --weights stand_in, or leave --size out")
    options.sampling()
    return options


def _plainly(make: Any) -> Any:
    """What `make` gives, with errors as a user reads them."""
    try:
        return make()
    except ValidationError as error:
        found = []
        for e in error.errors():
            name = "--" + ".".join(str(part) for part in e["loc"]).replace("_", "-") if e["loc"] else ""
            given = "" if not e["loc"] else f" (got {e['input']!r})"
            found.append(f"{name} {e['msg'].removeprefix('Value error, ')}{given}".strip())
        raise ValueError("; ".join(found)) from None


class ClipRequest(Strict):
    """What one clip is made of; values that are set here take the place of the run's."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$")]
    image: Path
    prompt: str
    camera: str
    intrinsics: str | None = None
    seconds: Positive | None = None
    fps: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    def digest(self) -> str:
        """Of the request as it was written."""
        content = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def options(self, run: GenerateOptions) -> GenerateOptions:
        """The run's options with this clip's values."""
        own = {n: getattr(self, n) for n in ("intrinsics", "seconds", "fps", "seed")}
        return run.model_copy(update={n: v for n, v in own.items() if v is not None})
