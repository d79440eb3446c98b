"""Folders that our commands write, told apart by what marks each: one never goes into another."""

from __future__ import annotations

from pathlib import Path

MARKS = {
    "dataset.json": "a dataset",
    "encoded.json": "encoded clips",
    "trajectories.json": "trajectories",
    "checkpoints": "checkpoints of a training",
    "generate.json": "generated videos",
}
"""What marks a folder, and what it holds then."""


def refuse_other_outputs(out: Path, mark: str) -> None:
    """Make sure that a folder is not one that another command writes; it may be absent.

    Args:
        mark: what marks the folder of the command that asks, of `MARKS`.
    Raises:
        ValueError: it is.
    """
    for other, what in MARKS.items():
        if other != mark and (out / other).exists():
            raise ValueError(f"{out}: holds {what}; choose another --out")
