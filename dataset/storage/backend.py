"""What the protocol of commits needs of the place where a dataset lies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Fenced(RuntimeError):
    """The run that a worker works for is over: another command writes to the dataset now."""


class Backend(Protocol):
    """A dataset's folder, or its place in an object store."""

    def hold(self) -> AbstractContextManager[None]:
        """Make the place and hold it for this process; ends with the process, however that ends.

        Raises:
            ValueError: another run holds it, or it cannot be written to.
        """
        ...

    def begin_run(self) -> Path:
        """A new run's folder, into which its workers write, and which `part_path` takes."""
        ...

    def end_run(self, folder: Path, *, ended: bool) -> None:
        """Close a run's folder, so that none of its workers goes on.

        Args:
            ended: whether all was done. What an interrupted run has not committed is kept for the next one.
        """
        ...

    def run_is_open(self, folder: Path) -> bool:
        """Whether a run's workers may go on."""
        ...

    def dead_parts(self) -> list[Path]:
        """Close all runs of others, and list what they have written and not committed."""
        ...

    def drop_dead(self, left: Sequence[Path]) -> None:
        """Remove what is left of these runs: the parts named, and their folders."""
        ...

    def commit(self, part: Path) -> Path:
        """Make a whole part of a run count; returns where it lies then.

        Killed at any moment, either it has happened or what is left is taken in by the next command.

        Raises:
            OSError: the part is not there, is there twice, or the disk or store does not take it.
        """
        ...

    def replace(self, replacements: Sequence[tuple[Path, Sequence[Path]]]) -> None:
        """Make whole parts of a run count, each instead of others, which hold its rows and are removed.

        At any moment, and wherever it is killed, readers see either a new part or those that it replaces.

        Raises:
            OSError: as `commit`.
        """
        ...

    def remove(self, part: Path) -> None:
        """Make a part count no more."""
        ...

    def flush(self) -> None:
        """What was committed survives the machine, and readers see it."""
        ...
