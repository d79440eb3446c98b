"""`theodolite benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from ..command import Outcome, say
from .options import Sets, Workers, help_metrics, one_of


def _explained() -> str:
    from ...dataset.benchmarks.output import explain
    from ...dataset.benchmarks.protocols import SETS

    return explain(SETS)


@dataclass(frozen=True, kw_only=True)
class What:
    """Which set, and what of it."""

    name: Annotated[str, typer.Argument(help="influx, tum, sintel, kitti or eth3d-slam.", metavar="SET")]
    root: Annotated[Path, typer.Option("--root", help="Folder of the set as its archives unpack.")]
    sequences: Annotated[
        str | None,
        typer.Option(
            "--sequences", help="Only these, with commas between; default those that the protocol counts."
        ),
    ] = None
    every: Annotated[
        bool,
        typer.Option(
            "--every",
            help="Also sequences whose truth is not published, for the set's server (InFlux: writes submission.json).",
        ),
    ] = False
    depth: Annotated[
        bool,
        typer.Option("--depth", help="Give the set's own depth to the run (tum, sintel, eth3d-slam)."),
    ] = False
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="Score these cameras (as `theodolite evaluate` reads them) instead of a run.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """What comes of it."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for rows, figures and files for the set's server; default benchmark-SET."
        ),
    ] = None
    style: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text"
    with_rejected: Annotated[
        bool,
        typer.Option("--with-rejected", help="Cameras of rejected sequences go to the set's server, too."),
    ] = False
    method: Annotated[str, typer.Option("--method", help="Name of the method on the set's server.")] = (
        "theodolite"
    )


def benchmark(
    what: What,
    made: Made,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe instead of the packaged one of the set.")
    ] = None,
    overrides: Sets = None,
    workers: Workers = None,
    help_metrics: Annotated[bool, help_metrics("figure", _explained)] = False,
) -> Outcome:
    """Annotate a public set and score it by the set's own protocol; resumes where an earlier run stopped.

    Example: theodolite benchmark tum --root /data/tum --out runs/tum
    """
    from ...dataset.benchmarks.output import TableStyle
    from ...dataset.benchmarks.protocols import SETS, SetName
    from ..benchmarks.run import BenchmarkOptions, run_benchmark

    name: SetName = one_of("benchmark", what.name, SETS)
    style: TableStyle = one_of("--format", made.style, get_args(TableStyle))
    options = BenchmarkOptions(
        root=what.root,
        out=made.out or Path(f"benchmark-{name}"),
        depth=what.depth,
        every=what.every,
        sequences=tuple(s.strip() for s in (what.sequences or "").split(",") if s.strip()),
        with_rejected=made.with_rejected,
        predictions=what.predictions,
        recipe=recipe,
        overrides=tuple(overrides or ()),
        workers=workers,
        method=made.method,
        style=style,
    )
    return run_benchmark(name, options, say=say)
