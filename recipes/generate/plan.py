"""What a run will do, before the GPU is used: the path, the memory, the time."""

from __future__ import annotations

from dataclasses import dataclass

from ...dataset.cameras.paths import FPS
from ...model.config import chunk_ranges, chunk_starts
from ...model.generation import GenerationRequest
from .inputs import Prepared
from .plot import path_text
from .progress import clock

_FULL_TOKENS = 121 * 22 * 40
"""Of a minute at 704x1280, at which the costs below were measured."""
_FORWARD_S, _ATTENTION_SHARE = 2.97, 0.68
"""One bidirectional pass over that many tokens in bf16 on one H200, and what of it grows with the square of the tokens
(`benchmarks/model_speed.py --profile`)."""
_CAUSAL_FORWARD_S = 2.17
_CHUNK_S = {False: 14.7 / 40, True: 9.0 / 40}
"""A chunk of the student, without and with CUDA graphs (`--stream`)."""
_REFINED_BLOCK_S, _DECODED_CHUNK_S, _DECODED_FRAMES_S = 0.71, 0.110, 123.0
"""A block of three latent frames with a full window, a chunk of the causal decoder, and video frames a second of the
tiled one (`benchmarks/chain.py --parts`)."""
_REFINED_AT_ONCE_S = (0.1455, 0.00295)
"""All latent frames at once: share of their number and of its square, by clips of 20 (4.1 s) and 120 (60 s)."""
MEASURED_ON = "one H200, bf16, 704x1280, random weights"


def denoising_seconds(request: GenerationRequest) -> float:
    """Estimated time of the world model on one H200, from measured passes."""
    sampling = request.sampling
    frames = (request.num_frames - 1) // 8 + 1
    height, width = request.image.shape[:2]
    site = (height // 32) * (width // 32)
    if sampling.mode == "distilled":
        assert sampling.times is not None
        calls = len(sampling.times) / 5
        return frames / 3 * _CHUNK_S[sampling.graphs] * calls * site / 880
    assert sampling.steps is not None
    first, last = sampling.guidance_interval or (0.0, 1.0)
    passes = 1 + (last - first if sampling.guidance not in (None, 1) else 0)

    def forward(active: int, whole: float) -> float:
        share = active * site / _FULL_TOKENS
        return whole * ((1 - _ATTENTION_SHARE) * share + _ATTENTION_SHARE * share**2)

    if sampling.mode == "bidirectional":
        return sampling.steps * passes * forward(frames, _FORWARD_S)
    ranges = chunk_ranges(frames, chunk_starts(frames))
    interval = sampling.chunk_interval or 1 / len(ranges)
    begin = [int(i * interval * sampling.steps) for i in range(len(ranges))]
    total = 0.0
    for step in range(begin[-1] + sampling.steps):
        active = max(i for i, start in enumerate(begin) if step >= start)
        total += passes * forward(ranges[active][1], _CAUSAL_FORWARD_S)
    return total


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run would compute.

    Attributes:
        device: as torch names it. name: of the card, or the processor.
        total_bytes, free_bytes: its memory, and what of it may be used; None on a CPU.
    """

    device: str
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None

    @property
    def free_bytes_gb(self) -> float:
        return (self.free_bytes or 0) / 1e9


def find_place(device: str, most_gb: float | None = None) -> Place:
    """The device that options name.

    Args:
        most_gb: GPU memory that this process may take; torch is held to it from now on.
    Raises:
        ValueError: it is not there, or there is no GPU whose memory could be bounded.
    """
    import platform

    import torch

    from ...annotate.networks.device import choose_device

    chosen = choose_device(device)
    if chosen.type != "cuda":
        if most_gb is not None:
            raise ValueError(f"--gpu-memory {most_gb:g}: --device {device} is no GPU")
        return Place(device=str(chosen), name=platform.processor() or platform.machine() or "CPU")
    free, total = torch.cuda.mem_get_info(chosen)
    if most_gb is not None:
        free = min(free, round(1e9 * most_gb))
        torch.cuda.set_per_process_memory_fraction(min(1.0, 1e9 * most_gb / total), chosen)
    return Place(
        device=str(chosen), name=torch.cuda.get_device_name(chosen), total_bytes=total, free_bytes=free
    )


def describe(prepared: Prepared, place: Place, *, precision: str, memory: str) -> str:
    """Plot, numbers of the path, memory and time, for a terminal."""
    request, figures, options = prepared.request, prepared.figures, prepared.options
    height, width = request.image.shape[:2]
    fov = prepared.fov_deg
    spread = f"{fov[0]:.0f}" if fov[1] - fov[0] < 0.5 else f"{fov[0]:.0f} to {fov[1]:.0f}"
    lines = [
        path_text(prepared.path),
        "",
        f"video    {width}x{height}, {figures.num_frames} frames, {figures.duration_s:.2f} s at {FPS:g} a second",
        f"path     {prepared.path.origin} ({prepared.path.form}): {figures.length_m:.2f} m long, up to "
        f"{figures.max_speed_m_s:.2f} m/s; turns {figures.turned_deg:.0f} deg, up to "
        f"{figures.max_turn_deg_s:.0f} deg/s (the released keys move 0.4 m/s and turn 9.6 deg/s)",
        f"lens     {spread} deg horizontally; {prepared.lens}",
        f"image    {prepared.clip.image}, {prepared.cover.source[1]}x{prepared.cover.source[0]}, "
        f"{100 * prepared.cover.kept:.0f} % kept",
        f"model    {options.mode}, weights {options.weights}, {precision} on {place.name} ({place.device}), "
        f"offload {options.offload}, {'with' if options.refine else 'without'} refiner, seed {options.seed}",
    ]
    departures = request.sampling.departures()
    if departures:
        listed = ", ".join(
            f"{n.replace('_', ' ')} {d['used']} (published {d['published']})" for n, d in departures.items()
        )
        lines.append(f"schedule departs from the published one: {listed}")
    lines += [f"note     {note}" for note in prepared.notes]
    lines += ["", memory, "", time_table(request, stand_in=options.size == "tiny")]
    return "\n".join(lines)


def time_table(request: GenerationRequest, *, stand_in: bool) -> str:
    """What the parts take, as far as it was measured."""
    if stand_in:
        return "time     tiny stand-ins take less than a minute on any machine"
    height, width = request.image.shape[:2]
    share = height * width / (704 * 1280)
    streamed = request.sampling.mode == "distilled"
    chunks = (request.num_frames - 1) / 24
    rows = [("world model", clock(denoising_seconds(request)))]
    if request.refine:
        frames = (request.num_frames - 1) / 8 * share
        linear, square = _REFINED_AT_ONCE_S
        at_once = linear * frames + square * frames**2
        rows.append(("refiner", clock(chunks * _REFINED_BLOCK_S * share if streamed else at_once)))
    decoding = chunks * _DECODED_CHUNK_S if streamed else request.num_frames / _DECODED_FRAMES_S
    rows.append(("autoencoder", clock(decoding * share)))
    rows.append(("text and image", "a second; a first run compiles kernels, some 20 s more"))
    return "\n".join(
        [
            f"time     estimated from parts measured on {MEASURED_ON}",
            *(f"  {name:16}{value}" for name, value in rows),
        ]
    )
