"""Which implementation of an operator runs."""

from __future__ import annotations

import importlib.metadata
import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "reference"]

_HAS_TRITON = find_spec("triton") is not None


def op_name(name: str) -> str:
    """The name under which torch registers an operator of ours.

    It starts with the package's: from a checkout's own folder, libraries that look for the package `kernels` (as
    transformers does) find this one and import it a second time. Under one name the second registration would take the
    place of the first, and torch crashes in calls of what it replaced.
    """
    return f"{__name__.split('.')[0]}::{name}"


def resolve_backend(backend: Backend, x: Tensor) -> bool:
    """True for Triton. "auto" takes it for CUDA tensors of a dtype that it has, where Triton is installed.

    Raises:
        ValueError: an unknown backend, or Triton where it cannot run.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend {backend!r}: use one of {', '.join(get_args(Backend))}")
    if backend == "reference":
        return False
    supported = x.dtype in (torch.float32, torch.bfloat16)
    if backend == "triton":
        if not supported:
            raise ValueError(f"the Triton kernels take float32 and bfloat16, not {x.dtype}")
        if not _HAS_TRITON:
            raise ValueError("backend 'triton': Triton is not installed; pip install theodolite[kernels]")
        if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"backend 'triton' needs CUDA tensors, not {x.device}; use auto or reference")
        return True
    return x.is_cuda and supported and _HAS_TRITON


@cache  # asked for at every call of an operator, and the answer is read from files
def installed_version(package: str) -> str | None:
    """Of an optional package; None: it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
