"""Options of `theodolite generate` as they are typed, to checked ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .batch import run_batch
from .options import ClipRequest, GenerateOptions, make_options
from .run import run_generate


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is not the same for all videos of a run, as it was typed."""

    image: Path | None
    prompt: str | None
    camera: str | None
    out: Path
    manifest: Path | None = None
    overwrite: bool = False
    plot: Path | None = None
    workers: int | None = None
    scheduler: str | None = None
    limit: int | None = None
    dry_run: bool = False


def run(given: Given, **values: Any) -> tuple[str, int]:
    """One video, or those of a manifest.

    Raises:
        ValueError: options that do not go together, or cannot be.
    """
    options = make_options(**{name: _parsed(name, value) for name, value in values.items()})
    if given.manifest is not None:
        return _many(given, given.manifest, options)
    for name in ("workers", "scheduler", "limit"):
        if getattr(given, name) is not None:
            raise ValueError(f"--{name} goes with --manifest")
    missing = [f"--{name}" for name in ("image", "prompt", "camera") if getattr(given, name) is None]
    if missing:
        raise ValueError(f"give {', '.join(missing)} (or --manifest)")
    assert given.image is not None
    assert given.prompt is not None
    assert given.camera is not None
    try:
        clip = ClipRequest(
            id=_name(given.out), image=given.image, prompt=_text(given.prompt), camera=given.camera
        )
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None
    return run_generate(
        clip, options, given.out, overwrite=given.overwrite, dry_run=given.dry_run, plot=given.plot
    )


def _many(given: Given, manifest: Path, options: GenerateOptions) -> tuple[str, int]:
    for name in ("image", "prompt", "camera", "plot"):
        if getattr(given, name) is not None:
            raise ValueError(f"--{name} is in the manifest's rows; leave it out beside --manifest")
    if given.overwrite:
        raise ValueError(
            "--overwrite is for one video; with --manifest, remove those that are to be made again"
        )
    return run_batch(
        manifest,
        options,
        given.out,
        workers=given.workers,
        scheduler=given.scheduler,
        limit=given.limit,
        dry_run=given.dry_run,
        command=sys.argv,
    )


def _name(out: Path) -> str:
    """An id of a file's name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in out.stem)
    return (f"v{kept}" if kept.startswith("-") else kept)[:100]


def _text(prompt: str) -> str:
    if not prompt.startswith("@"):
        return prompt
    path = Path(prompt[1:])
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompt {prompt}: cannot be read: {error}") from None


_LISTS = {"guidance_interval": float, "times": float, "scopes": str}


def _parsed(name: str, value: Any) -> Any:
    """Lists that are typed with commas."""
    if name not in _LISTS or value is None:
        return value
    try:
        return tuple(_LISTS[name](part.strip()) for part in str(value).split(","))
    except ValueError:
        raise ValueError(f"--{name.replace('_', '-')} {value}: give numbers with commas between") from None
