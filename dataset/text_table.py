"""Tables as text: aligned for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .escape import for_markdown


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[bool] | None = None
) -> str:
    """Columns as wide as their widest cell, two spaces apart.

    Args:
        left: which columns are aligned to the left, the others to the right; None: all of them.
    """
    lines = (header, *rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    sides = [True] * len(header) if left is None else left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, cells_are_markdown: bool = False
) -> str:
    """A Markdown table that shows its cells literally, or as the Markdown that they are."""
    escaped = (
        [cell.replace("|", "\\|") if cells_are_markdown else for_markdown(cell) for cell in row]
        for row in rows
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *escaped))
