"""`theodolite weights list` and `theodolite weights pull`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..command import Outcome, say


def list_weights() -> Outcome:
    """Every checkpoint that a recipe can name, with size, licence, revision and where it lies here.

    Example: theodolite weights list
    """
    from ...dataset.text_table import text_table
    from ...dataset.weights import listing

    rows = listing()
    return text_table(list(rows[0]), [list(row.values()) for row in rows]), 0


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="See `theodolite weights list`; or a mode of generation (bidirectional, chunk-causal, distilled): "
            "all that it needs.",
            metavar="NAME",
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Full commit hash, if not the pinned one; branches move."),
    ] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="Expected digest of the file.")] = None,
) -> Outcome:
    """Download weights into the hub's cache; size and licence are shown first, the digest is checked.

    Example: theodolite weights pull moge-2-vitl-normal
    """
    from ...dataset.weights import names_of, pull

    names = names_of(name)
    if len(names) > 1 and (revision or sha256):
        raise ValueError(
            f"{name} is several weights: give --revision and --sha256 with one of {', '.join(names)}"
        )
    lines = []
    for each in names:
        found = pull(each, revision=revision, sha256=sha256, show=say)
        lines += [found.label, str(found.path), f"SHA-256 {found.sha256}"]
    return "\n".join(lines), 0
