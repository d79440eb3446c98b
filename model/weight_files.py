"""Files of weights as they lie on disk: opened without running what they hold, and named for what they are where they
are no weights."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

STAGE, AUTOENCODER, OPTIONS = "theodolite.stage", "theodolite.autoencoder", "theodolite.options"
"""Keys of a safetensors file's metadata under which an export says what its weights can do, whose latents they were
trained on, and with which options that no shape tells, as JSON."""
START = "theodolite.start"
"""Of a LoRA: SHA-256 of the file of weights that it changes."""


@contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped.

    Raises:
        ValueError: it is damaged or something else; also while its tensors are read inside.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        why = _looks_like(path) or first_line(error)
        raise ValueError(f"{path} is no intact safetensors file: {why}") from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What a disk that is full or cannot be written does to writers of weights, which wrap it in errors of their own.

    Raises:
        OSError: it did; names the file.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # safetensors' own kind has no base but Exception, torch's is a RuntimeError
        found = re.search(r"os error (\d+)", str(error))
        full = any(words in str(error) for words in ("file write failed", "unexpected pos"))
        if not (found or full):
            raise
        number = int(found[1]) if found else errno.ENOSPC
        raise OSError(number, f"weights cannot be written ({os.strerror(number)})", str(path)) from error


def told_by(path: Path) -> dict[str, str]:
    """What an export of ours says of itself; empty for other files, and for a folder.

    Raises:
        ValueError: a safetensors file that is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with opened_safetensors(path) as file:
        return {k: v for k, v in (file.metadata() or {}).items() if k.startswith("theodolite.")}


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers and plain containers; mapped, unless it is of the old kind.

    Raises:
        ValueError: it is damaged, something else, or holds other objects, whose code would run.
    """
    other = _looks_like(path)
    if other is not None:
        raise ValueError(f"{path} cannot be read as a torch checkpoint: {other}")
    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"  # before torch 1.6 files were no archives
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint: it is damaged, or holds objects beside tensors, which are "
            "not read since reading them runs code: save the state dict alone"
        ) from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a torch checkpoint: {first_line(error)}") from error


def _looks_like(path: Path) -> str | None:
    """What a file is that no tensors can be in; None: it may be weights."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer in place of the file; `git lfs pull` brings it"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; the download went wrong"
    return None


def first_line(error: BaseException) -> str:
    """Of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
