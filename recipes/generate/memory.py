"""Whether a run fits the GPU, said before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from textwrap import indent

from ...dataset.text_table import text_table
from ...model import memory
from ...model.config import WorldModelConfig
from ...model.generation import GenerationRequest, Generator
from ...model.parts import Precision
from ...model.residence import Residence
from .build import numbers_of
from .options import GenerateOptions
from .plan import Place


def plan_for(request: GenerationRequest, options: GenerateOptions, precision: Precision) -> memory.MemoryPlan:
    """Memory of a request by stage; of what a low precision saves, the world model's weights are counted."""
    height, width = request.image.shape[:2]
    sampling = request.sampling
    shape = memory.VideoShape(
        num_frames=request.num_frames,
        height=height,
        width=width,
        mode=sampling.mode,
        refine=request.refine,
        refiner_block_frames=3 if sampling.mode == "distilled" else None,
        window_chunks=_chunks(sampling.window_chunks, request),
        sink_chunks=_chunks(sampling.sink_chunks, request),
        guidance_batched=sampling.guidance_batched,
    )
    sizes = dict(memory.RELEASED_SIZES)
    numbers = numbers_of(options, precision)
    if precision == "float32":
        sizes = {name: replace(size, bytes_per_value=4.0) for name, size in sizes.items()}
    elif precision != "bf16":
        sizes["world_model"] = memory.converted_size(WorldModelConfig(), precision, scopes=numbers.scopes)
    return memory.plan_memory(shape, options.offload, sizes=sizes, converted_on_device=numbers.on_device)


def _chunks(number: int | None, request: GenerationRequest) -> int:
    """Chunks that are kept; without a bound all of them."""
    return (request.num_frames - 1) // 24 if number is None else number


def memory_text(
    request: GenerationRequest, options: GenerateOptions, precision: Precision, place: Place
) -> str:
    """Table of what each stage takes, and whether it fits here."""
    if options.size == "tiny":
        return "memory   tiny stand-ins take less than 1 GB"
    plan = plan_for(request, options, precision)
    rows = plan.rows()
    names = list(rows[0])
    table = text_table(
        names, [[row[n] for n in names] for row in rows], left=[n in ("stage", "parts") for n in names]
    )
    lines = [f"memory   GB, offload {options.offload}, planned by arithmetic", indent(table, "  ")]
    needed = (plan.peak_bytes + memory.SPARE_BYTES) / 1e9
    words = f"  needs {needed:.1f} GB with {memory.SPARE_BYTES / 1e9:.1f} GB to spare"
    if place.total_bytes is None:
        return "\n".join([*lines, f"{words}; there is no GPU here"])
    free = f"{place.free_bytes_gb:.1f} GB free of {place.total_bytes / 1e9:.1f}"
    if options.gpu_memory_gb is not None:
        free = f"{place.total_bytes / 1e9:.1f} GB, of which {place.free_bytes_gb:.1f} may be used"
    lines.append(f"{words}; {place.name} has {free}")
    try:
        check_memory(request, options, precision, place)
    except ValueError as error:
        lines.append(f"  {error}")
    return "\n".join(lines)


def _check_host(request: GenerationRequest, options: GenerateOptions, precision: Precision) -> None:
    """Released weights stay mapped from their files; random ones need the machine's memory."""
    plan = plan_for(request, options, precision)
    needed = sum(plan.sizes[part].num_bytes for part in {p for stage in plan.stages for p in stage.parts})
    try:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    if needed > 0.9 * have:
        raise ValueError(
            f"stand-ins of full size need {needed / 1e9:.0f} GB of the machine's memory, it has {have / 1e9:.0f}: "
            "add --size tiny or --no-refiner"
        )


def check_memory(
    request: GenerationRequest, options: GenerateOptions, precision: Precision, place: Place
) -> None:
    """Refuse a run that does not fit, with what would.

    Raises:
        ValueError: too little memory.
    """
    if options.size == "tiny":
        return
    if options.stand_in and (place.free_bytes is None or options.offload != "none"):
        _check_host(request, options, precision)
    if place.free_bytes is None:
        return
    memory.check_memory(plan_for(request, options, precision), place.free_bytes)


def use_room(
    generator: Generator,
    request: GenerationRequest,
    options: GenerateOptions,
    precision: Precision,
    place: Place,
) -> None:
    """Let blocks stay on the GPU as far as its free memory goes, with `--offload blocks`."""
    lent = generator.residence
    if not isinstance(lent, Residence) or place.free_bytes is None or options.size == "tiny":
        return
    lent.resident_bytes = memory.room_for_blocks(plan_for(request, options, precision), place.free_bytes)
