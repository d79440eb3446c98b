"""`theodolite encode`, `theodolite trajectories` and `theodolite train`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from ..allocator import use_expandable_segments
from ..command import Outcome
from .options import Dataset, Sets, one_of


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What encodes, and what comes out."""

    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="released (theodolite weights pull), a folder laid out as a release, or stand_in.",
        ),
    ] = "released"
    media_root: Annotated[
        Path | None,
        typer.Option("--media-root", help="Folder of the rows' media; default: by the recipe beside them."),
    ] = None
    only: Annotated[
        Path | None,
        typer.Option("--only", help="Only clips that this file keeps: of `theodolite filter` or `mix`."),
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One of: height, width, fit (cover, squeeze), frames (961), stride, shortest, cameras (required, "
            "none), undistort, caption, missing_caption (error, empty), fps, allow_rejected, allow_stand_in; may be "
            "given often.",
            metavar="KEY=VALUE",
        ),
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[str, typer.Option("--precision", help="auto (bf16 on a GPU), float32 or bf16.")] = (
        "auto"
    )
    per_shard: Annotated[
        int, typer.Option("--windows-per-shard", min=1, max=1000, help="Windows that one file holds.")
    ] = 8


def encode(
    path: Dataset,
    out: Annotated[Path, typer.Option("--out", help="Folder of encoded windows; continued if it is one.")],
    encoding: Encoding,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes; default one a GPU. 0: this process."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many windows.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> Outcome:
    """Encode a dataset's clips for training: latents, text states, cameras; resumes where it stopped.

    Example: theodolite encode runs/rgbd --out encoded/rgbd
    """
    from ...train.encode import EncodeOptions
    from ...train.recipe import Precision
    from ..encode import EncodeJob, on_absolute_paths, run_encode
    from ..loader import options_from_items

    job = EncodeJob(
        dataset=path,
        out=out,
        options=options_from_items(EncodeOptions, encoding.overrides or ()),
        weights=encoding.weights,
        only=encoding.only,
        device=encoding.device,
        precision=one_of("--precision", encoding.precision, get_args(Precision)),
        windows_per_shard=encoding.per_shard,
    )
    return run_encode(
        on_absolute_paths(job, media_root=encoding.media_root),
        workers=workers,
        limit=limit,
        dry_run=dry_run,
        command=sys.argv,
    )


def pairs(
    data: Annotated[
        list[Path], typer.Argument(help="Folders that `theodolite encode` wrote.", metavar="ENCODED...")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of pairs; continued if it is one.")],
    weights: Annotated[
        str,
        typer.Option("--weights", help="The world model: a file, released/MODE, or stand_in."),
    ],
    refiner: Annotated[
        str,
        typer.Option(
            "--refiner", help="Folder with text_encoder and connectors of the refiner, released, or stand_in."
        ),
    ] = "released",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One of: chunk (of a chunk-causal model), steps (60), shift (9.8), guidance (5), cameras (both, ucpe, "
            "plucker, none), seed, allow_stand_in; may be given often.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many windows.")] = None,
) -> Outcome:
    """Let the world model make encoded clips anew: pairs to train the refiner on; resumes where it stopped.

    Example: theodolite pairs encoded/mine --weights released/distilled --out pairs/mine
    """
    from ..loader import options_from_items
    from ..pairs import PairJob, PairOptions, run_pairs

    job = PairJob(
        data=tuple(data),
        out=out,
        options=options_from_items(PairOptions, overrides or ()),
        weights=weights,
        refiner=refiner,
        device=device,
    )
    return run_pairs(job, limit=limit, say=lambda text: typer.echo(text, err=True))


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Whose trajectories are recorded, and where."""

    weights: Annotated[
        str,
        typer.Option("--weights", help="File, folder or released/chunk-causal (theodolite weights pull)."),
    ] = "released/chunk-causal"
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One of: student.frames (needed), student.times, student.chunk, steps (48), shift, guidance (5), "
            "cameras (both), seed; may be given often.",
            metavar="KEY=VALUE",
        ),
    ] = None
    part: Annotated[str, typer.Option("--part", help="k/n: only every n-th window, from the k-th on.")] = (
        "1/1"
    )
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Windows that go through the teacher together.")
    ] = 1
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[str, typer.Option("--precision", help="auto (bf16 on a GPU), float32 or bf16.")] = (
        "auto"
    )


def trajectories(
    data: Annotated[list[Path], typer.Argument(help="Folders that `theodolite encode` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of trajectories; continued if it is one.")],
    teacher: Teacher,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many windows.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> Outcome:
    """Record how the chunk-causal teacher goes from noise to video, for the recipe ode_init; resumes where it stopped.

    Example: theodolite trajectories encoded/mine --out paths/mine --set student.frames=43
    """
    from ...train.recipe import Precision
    from ...train.trajectories import TrajectoryOptions
    from ..loader import options_from_items
    from ..trajectories import TrajectoryJob, run_trajectories

    job = TrajectoryJob(
        data=data,
        out=out,
        weights=teacher.weights,
        options=options_from_items(TrajectoryOptions, teacher.overrides or ()),
        part=teacher.part,
        batch=teacher.batch,
        device=teacher.device,
        precision=one_of("--precision", teacher.precision, get_args(Precision)),
    )
    return run_trajectories(job, limit=limit, dry_run=dry_run, say=lambda text: typer.echo(text, err=True))


def packaged_recipes() -> str:
    """Names of the recipes of trainings, for the help."""
    folder = Path(__file__).parents[1] / "train"
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    return f"Recipes that come with the package: {names}."


def train(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file, or the name of one that comes with the package.")
    ],
    data: Annotated[
        list[Path],
        typer.Option("--data", help="Folder that `theodolite encode` wrote; may be given often."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: checkpoints, figures, weights.")],
    overrides: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; begin where there is none.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it takes: clips, tokens, memory, time; take no GPU."),
    ] = False,
    accelerator: Annotated[str, typer.Option("--accelerator", help="auto, cpu or gpu.")] = "auto",
) -> Outcome:
    """Train the world model on encoded clips, whole or by LoRA, on any number of GPUs.

    Example: theodolite train finetune_lora --data encoded/mine --out runs/mine --resume
    """
    use_expandable_segments()
    from ..training import load_train_recipe, run_train

    return run_train(
        load_train_recipe(recipe, overrides or ()),
        data,
        out,
        resume=resume,
        dry_run=dry_run,
        accelerator=one_of("--accelerator", accelerator, ("auto", "cpu", "gpu")),
        say=lambda text: typer.echo(text, err=True),
        command=sys.argv,
    )
