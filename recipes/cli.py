"""The `theodolite` command: verbs, long flags, results on stdout, everything else on stderr.

Exit codes: 0 done, 1 some clips failed or a check did not hold, 2 wrong recipe or usage, 130 interrupted.
Everything heavy is imported inside the commands, so that help and completion are instant.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .command import add_command
from .commands import (
    annotate,
    benchmark,
    corpus,
    datasets,
    describe,
    evaluate,
    generate,
    splats,
    train,
    weights,
)

app = typer.Typer(
    name="theodolite",
    help="Metric per-frame cameras, focal length included, for video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


add_command(app, annotate.annotate, epilog=annotate.packaged_recipes())
add_command(app, datasets.validate)
add_command(app, datasets.compact)
add_command(app, datasets.inspect)
add_command(app, datasets.report)
add_command(app, evaluate.evaluate)
add_command(app, benchmark.benchmark)
add_command(app, datasets.export)
add_command(app, datasets.subset)
add_command(app, datasets.filter_, name="filter")
add_command(app, datasets.integrity)
add_command(app, datasets.publish)
add_command(app, describe.caption)
add_command(app, describe.score)
add_command(app, generate.generate)
add_command(app, corpus.plan)
add_command(app, corpus.fetch)
add_command(app, corpus.unpack)
add_command(app, corpus.mix)
add_command(app, splats.render)
add_command(app, train.encode)
add_command(app, train.pairs)
add_command(app, train.trajectories)
add_command(app, train.train, epilog=train.packaged_recipes())
add_command(app, annotate.demo)

weights_app = typer.Typer(
    name="weights",
    help="Released network weights: what there is, under which licence, and how it gets here.",
    epilog="Example: theodolite weights list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(weights_app)
add_command(weights_app, weights.list_weights, name="list")
add_command(weights_app, weights.pull)


def main() -> None:
    """Entry point of the `theodolite` command."""
    app()
