"""Steps that must not be taken: a loss or a gradient that is not finite, or far above what is usual."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset.store import write_atomically
from .recipe import GuardConfig


class Diverged(RuntimeError):
    """So many steps in a row could not be taken that the run ends."""


class Guard:
    """Judges every step by its loss and gradient norm, the same on all ranks.

    Attributes:
        skipped: steps that were not taken so far.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._norms: deque[float] = deque(maxlen=config.window)
        self._row = 0
        self.skipped = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """Why a step must not be taken; None: it may.

        Raises:
            Diverged: it is one too many in a row.
        """
        why = self._why(loss, norm)
        if why is None:
            self._norms.append(norm)
            self._row = 0
            return None
        self.skipped += 1
        self._row += 1
        if self._row >= self._config.patience:
            raise Diverged(
                f"{self._row} steps in a row could not be taken, the last because {why}: lower optimiser.lr, look at "
                "the clips in faults/, or go on from an earlier checkpoint"
            )
        return why

    def _why(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if not math.isfinite(norm):
            return f"its gradient's norm is {norm}"
        if self._config.spike is not None and len(self._norms) >= max(2, self._config.window // 2):
            usual = statistics.median(self._norms)
            if norm > self._config.spike * usual:
                return f"its gradient's norm is {norm:.3g}, usual is {usual:.3g}"
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"norms": list(self._norms), "row": self._row, "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` gave."""
        self._norms.extend(state["norms"])
        self._row, self.skipped = state["row"], state["skipped"]


def record_fault(
    folder: Path, step: int, rank: int, why: str, windows: Sequence[str], **figures: float
) -> Path:
    """Note a step that was not taken, with the windows of this rank that were in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}-rank-{rank}.json"
    shown = {k: v if math.isfinite(v) else str(v) for k, v in figures.items()}
    content = {"step": step, "rank": rank, "why": why, **shown, "windows": list(windows)}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return path
