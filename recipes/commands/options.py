"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ...dataset.storage.paths import as_output, as_path

if TYPE_CHECKING:
    from ...dataset.camera_files.match import Matching

Word = TypeVar("Word", bound=str)

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Dataset folder, or s3://BUCKET/FOLDER; continued if it holds parts of the same recipe.",
        parser=as_output,
        metavar="DIR",
    ),
]
Stored = Annotated[
    Path,
    typer.Argument(
        help="Folder that `theodolite annotate` wrote, or s3://BUCKET/FOLDER.", parser=as_path, metavar="DIR"
    ),
]
Dataset = Annotated[
    Path,
    typer.Argument(
        help="Folder that `theodolite annotate` wrote, s3://BUCKET/FOLDER, or owner/name on the hub.",
        parser=as_path,
        metavar="DIR",
    ),
]
RecipeName = Annotated[
    str, typer.Argument(help="Recipe file, or the name of one that comes with the package.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override one key: key.path=value (YAML); may be given often.", metavar="KEY=VALUE"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Local worker processes; default one a core (with 3 GiB of memory each), or two a GPU where networks run "
        "on one. 0: work in this process.",
    ),
]
MediaRoot = Annotated[
    Path | None, typer.Option("--media-root", help="Folder that media paths are relative to.")
]


@dataclass(frozen=True, kw_only=True)
class Times:
    """Which poses belong together, by their times."""

    max_difference: Annotated[
        float, typer.Option("--t-max-diff", min=0, help="Largest distance of times that belong together, s.")
    ] = 0.01
    offset: Annotated[
        str,
        typer.Option(
            "--t-offset", help="Seconds added to the clips' times; `start`: both begin at the same moment."
        ),
    ] = "0"

    def matching(self) -> Matching:
        """Checked.

        Raises:
            ValueError: an offset that is no number of seconds.
        """
        from ...dataset.camera_files.match import Matching, parse_offset

        return Matching(max_difference_s=self.max_difference, offset_s=parse_offset(self.offset))


def one_of(option: str, value: str, words: Sequence[Word]) -> Word:
    """The value of an option, which takes some words.

    Raises:
        ValueError: it is none of them; names all.
    """
    for word in words:
        if word == value:
            return word
    *others, last = words
    raise ValueError(f"{option} {value}: use {', '.join(others)} or {last}")


def help_metrics(what: str, explained: Callable[[], str]) -> Any:
    """The option that explains every figure or column and ends the command."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(explained())
            raise typer.Exit

    return typer.Option(
        "--help-metrics", callback=show, is_eager=True, help=f"Explain every {what} and exit."
    )


def gigabytes(value: float | None) -> int | None:
    """Bytes of a size that was typed in GB."""
    return None if value is None else int(value * 1e9)
