"""`theodolite annotate` and `theodolite demo`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..command import Outcome, say
from .options import Out, RecipeName, Sets, Workers, gigabytes

if TYPE_CHECKING:
    from ..run import RunOptions

_RECIPES = Path(__file__).parents[1]


def packaged_recipes() -> str:
    """Recipes that come with the package, each with the first sentence of its description; read without a parser, so
    that help stays instant."""
    lines = []
    for path in (
        p for folder in (".", "corpus", "benchmarks") for p in sorted(_RECIPES.glob(f"{folder}/*.yaml"))
    ):
        words = re.search(
            r"^description:[ >-]*\n((?: .*\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        text = " ".join(words[1].split()) if words else ""
        name = path.relative_to(_RECIPES).with_suffix("").as_posix()
        lines.append(f"  {name:20} {re.split(r'[.:;] ', text)[0].rstrip('.')}")
    return "Recipes that come with the package:\n\n\b\n" + "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which machines work."""

    workers: Workers = None
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="Address of a running dask scheduler, instead of local workers."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class HowMuch:
    """How much of the source is worked on."""

    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many clips.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """Whether the source's files are fetched on the way."""

    fetching: Annotated[
        bool,
        typer.Option("--fetch", help="Fetch the source, too: fetched, annotated and deleted in turns."),
    ] = False
    budget_gb: Annotated[
        float | None,
        typer.Option("--budget-gb", min=0, help="With --fetch: most that the source's root may ever hold."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What becomes of clips that fail."""

    retry_failed: Annotated[
        str | None,
        typer.Option(
            "--retry-failed",
            help="Try clips again that failed: `all`, or for one reason (unreadable_video ...).",
            metavar="REASON",
        ),
    ] = None
    max_failed: Annotated[
        int,
        typer.Option(
            "--max-failed",
            min=0,
            help="Stop once so many clips one after the other failed for the same reason; 0: never.",
        ),
    ] = 200


def annotate(
    recipe: RecipeName,
    out: Out,
    overrides: Sets = None,
    *,
    where: Where,
    how_much: HowMuch,
    fetching: Fetching,
    failures: Failures,
) -> Outcome:
    """Annotate the clips of a recipe; resumes where an earlier run of the same recipe stopped.

    Example: theodolite annotate rgbd --set source.index=/data/clips.yaml --out runs/rgbd
    """
    from ..loader import load_recipe
    from ..run import check_ready, run_annotate

    loaded = load_recipe(recipe, overrides or ())
    options = _run_options(where, how_much, failures)
    if not fetching.fetching:
        return run_annotate(loaded, out, options)
    if how_much.dry_run:
        raise ValueError("--fetch and --dry-run: `theodolite plan` says what fetching would bring")
    from ..corpus.fetching import FetchOptions, run_annotate_fetching

    check_ready(loaded, out, options)
    return run_annotate_fetching(
        loaded,
        out,
        options=FetchOptions(limit=how_much.limit, budget_bytes=gigabytes(fetching.budget_gb), unpack=True),
        annotate=lambda: run_annotate(loaded, out, options),
        say=say,
    )


def _run_options(where: Where, how_much: HowMuch, failures: Failures) -> RunOptions:
    from ..run import RunOptions

    return RunOptions(
        workers=where.workers,
        scheduler=where.scheduler,
        limit=how_much.limit,
        dry_run=how_much.dry_run,
        retry_failed=failures.retry_failed,
        max_failed=failures.max_failed or None,
    )


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the clip, the dataset and the report.")],
) -> Outcome:
    """Render a clip whose lens zooms, annotate it, and compare with the truth; takes a few minutes.

    Example: theodolite demo --out runs/demo
    """
    from ..demo import run_demo

    return run_demo(out, say=say)
