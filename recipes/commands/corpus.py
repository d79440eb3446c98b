"""`theodolite plan`, `theodolite fetch`, `theodolite unpack` and `theodolite mix`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..command import Outcome, say
from .options import RecipeName, Sets, gigabytes


def plan(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files or names.", metavar="RECIPE...")],
    overrides: Sets = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs of the cluster.")] = 1,
) -> Outcome:
    """Say what annotating sources will take, from their tables alone; nothing is fetched or written.

    Example: theodolite plan corpus/spatialvid-hq corpus/miradata --gpus 8
    """
    from ..corpus.plan import run_plan_command
    from ..loader import load_recipe

    return run_plan_command([load_recipe(name, overrides or ()) for name in recipes], gpus=gpus)


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much is fetched, and what makes room for it."""

    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many media files.")] = None
    budget_gb: Annotated[
        float | None, typer.Option("--budget-gb", min=0, help="Most that the folder may ever hold.")
    ] = None
    annotated: Annotated[
        Path | None,
        typer.Option(
            "--annotated", help="Dataset: media all of whose clips have a row there are deleted first."
        ),
    ] = None
    unpack: Annotated[
        bool, typer.Option("--unpack/--keep-archives", help="Unpack archives as they come, and delete them.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How sites are asked."""

    jobs: Annotated[int, typer.Option("--jobs", min=1, max=32, help="Files of the hub at once.")] = 4
    pause: Annotated[
        float, typer.Option("--pause", min=0, help="Seconds between two videos of a site, at least.")
    ] = 5.0
    retry: Annotated[bool, typer.Option("--retry-gone", help="Ask again for what is recorded as gone.")] = (
        False
    )
    refresh: Annotated[
        bool, typer.Option("--refresh", help="List repositories anew instead of by the kept list.")
    ] = False


def fetch(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", help="Folder that becomes the source's root.")],
    overrides: Sets = None,
    *,
    room: Room,
    asking: Asking,
) -> Outcome:
    """Fetch a source's files: resumed, checked, never twice; what cannot be had is recorded with its reason.

    Example: theodolite fetch corpus/sekai-game --out /data/Sekai-Project --budget-gb 300
    """
    from ..corpus.fetching import FetchOptions, drop_annotated, run_fetch
    from ..loader import load_recipe

    loaded = load_recipe(recipe, [*(overrides or ()), f"source.root={out}"])
    if room.annotated is not None:
        drop_annotated(loaded, room.annotated, say=say)
    options = FetchOptions(
        limit=room.limit,
        budget_bytes=gigabytes(room.budget_gb),
        jobs=asking.jobs,
        pause_s=asking.pause,
        unpack=room.unpack,
        retry=asking.retry,
        refresh=asking.refresh,
    )
    return run_fetch(loaded, options=options, say=say)


def unpack(
    recipe: RecipeName,
    overrides: Sets = None,
    max_member_gib: Annotated[
        float, typer.Option("--max-member-gib", min=0, help="Largest file that an archive may unfold to.")
    ] = 64.0,
    drop: Annotated[
        bool, typer.Option("--drop", help="Delete an archive once all of it is unpacked.")
    ] = False,
) -> Outcome:
    """Unpack a release's archives below its root, each in one pass; those that are done are left alone.

    Example: theodolite unpack corpus/omniworld --set source.root=/data/OmniWorld
    """
    from ..corpus.unpacking import run_unpack
    from ..loader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    return run_unpack(loaded, max_member_gib=max_member_gib, drop=drop, say=say)


def mix(
    recipe: Annotated[
        str, typer.Argument(help="Recipe file of a mixture, or the name of one of the package.")
    ],
    paths: Annotated[list[Path], typer.Argument(help="Datasets, one or several a source.", metavar="DIR...")],
    overrides: Sets = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for kept.parquet (clip by clip), mixture.json and a card."),
    ] = None,
) -> Outcome:
    """Choose the clips of several sources that go into a training, on one metric footing, with a weight a source.

    Example: theodolite mix sana_wm runs/sekai-game runs/sv --out mixtures/first
    """
    from ..mixing.run import load_mix_recipe, run_mix

    return run_mix(load_mix_recipe(recipe, overrides or ()), paths, out)
