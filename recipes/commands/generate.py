"""`theodolite generate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..allocator import use_expandable_segments
from ..command import Outcome
from ..generate.options import ClipRequest, GenerateOptions


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be made, and where it goes."""

    out: Annotated[Path, typer.Option("--out", help="MP4 to write, or with --manifest the folder.")]
    image: Annotated[Path | None, typer.Option("--image", help="First frame.")] = None
    prompt: Annotated[str | None, typer.Option("--prompt", help="What the video shows; @FILE reads it.")] = (
        None
    )
    camera: Annotated[
        str | None,
        typer.Option(
            "--camera",
            help="Path of the camera: .npy, .npz, JSON, a dataset's clip (DIR#ID), COLMAP, TUM, KITTI, EuRoC or "
            "transforms.json; actions such as w-40,wd-20; or orbit, spiral, dolly, crane, fly-through, whip-pan, "
            "figure-eight, walk (orbit:size=3,turns=0.5).",
        ),
    ] = None
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="Many videos: .jsonl, .json or .parquet with id, image, prompt, camera; or a split of SANA-WM-Bench.",
        ),
    ] = None

    def clip(self) -> ClipRequest:
        """The one video.

        Raises:
            ValueError: something is missing, a prompt's file cannot be read, or --out names no file.
        """
        if self.image is None or self.prompt is None or self.camera is None:
            missing = [f"--{name}" for name in ("image", "prompt", "camera") if getattr(self, name) is None]
            raise ValueError(f"give {', '.join(missing)} (or --manifest)")
        if not self.out.stem.strip("."):
            raise ValueError(f"--out {self.out}: names no file; give an .mp4, or with --manifest a folder")
        return ClipRequest(
            id=_name(self.out), image=self.image, prompt=_text(self.prompt), camera=self.camera
        )


@dataclass(frozen=True, kw_only=True)
class OneVideo:
    """What is only of a single video."""

    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a video that is there.")] = False
    plot: Annotated[Path | None, typer.Option("--plot", help="SVG of the camera path to write.")] = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is only of a manifest."""

    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=0, help="With --manifest: processes; default one a GPU, 0: this process."
        ),
    ] = None
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="With --manifest: address of a running dask scheduler.")
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="With --manifest: only so many.")] = None


def generate(
    asked: Asked,
    options: GenerateOptions,
    one: OneVideo,
    batch: Batch,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show path, memory and time; load and write nothing.")
    ] = False,
) -> Outcome:
    """Make a video from one image, a prompt and a camera path; it can be watched while it grows.

    Without weights: theodolite generate --image street.jpg --prompt rain --camera orbit --out try.mp4 --mode distilled
    --weights stand_in --size tiny

    Example: theodolite generate --image street.jpg --prompt "a street in the rain" --camera w-80,wd-40 --out street.mp4
    """
    use_expandable_segments()
    if asked.manifest is not None:
        return _many(asked, asked.manifest, options, one=one, batch=batch, dry_run=dry_run)
    for name in ("workers", "scheduler", "limit"):
        if getattr(batch, name) is not None:
            raise ValueError(f"--{name} goes with --manifest")
    clip = asked.clip()
    from ..generate.run import run_generate

    return run_generate(clip, options, asked.out, overwrite=one.overwrite, dry_run=dry_run, plot=one.plot)


def _many(
    asked: Asked, manifest: Path, options: GenerateOptions, *, one: OneVideo, batch: Batch, dry_run: bool
) -> Outcome:
    given = {"image": asked.image, "prompt": asked.prompt, "camera": asked.camera, "plot": one.plot}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name} is in the manifest's rows; leave it out beside --manifest")
    if one.overwrite:
        raise ValueError(
            "--overwrite is for one video; with --manifest, remove those that are to be made again"
        )
    from ..generate.batch import run_batch

    return run_batch(
        manifest,
        options,
        asked.out,
        workers=batch.workers,
        scheduler=batch.scheduler,
        limit=batch.limit,
        dry_run=dry_run,
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
