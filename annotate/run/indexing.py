"""The index of a run's dataset, kept while parts are written: by tasks beside the shards, a folder of parts each."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...dataset.index import refresh_piece
from ...dataset.store import folder_name

if TYPE_CHECKING:
    from distributed import Client

_NEW_PARTS = 500
"""New parts in a folder for which its piece is made anew: what a killed run leaves to the next one."""


class IndexKeeper:
    """Has a folder's piece of the index made anew once enough new parts lie there.

    What goes wrong is of no consequence here: an index that is not up to date is brought there at the end of the run.

    Args:
        out: dataset folder.
        run: names the run, for a scheduler that outlives it.
    """

    def __init__(self, out: Path, run: str) -> None:
        self._out, self._run = out, run
        self._new: Counter[str] = Counter()
        self._under_way: dict[str, Any] = {}
        self._number = 0
        self.client: Client | None = None

    def see(self, part: Path) -> bool:
        """Hear of a new part; whether its folder's piece is being made anew now."""
        folder = folder_name(part)
        self._new[folder] += 1
        if self._new[folder] < _NEW_PARTS or not self._is_free(folder):
            return False
        self._new[folder] = 0
        if self.client is None:
            with suppress(OSError, ValueError):  # a full disk, a damaged part: the end of the run says so
                refresh_piece(self._out, folder)
            return True
        self._number += 1
        key = f"{self._run}-index-{self._number}"
        self._under_way[folder] = self.client.submit(refresh_piece, self._out, folder, key=key, pure=False)
        return True

    def _is_free(self, folder: str) -> bool:
        """Whether nobody works on a folder's piece; forgets the tasks that are over."""
        for name in [name for name, future in self._under_way.items() if future.done()]:
            self._under_way.pop(name).release()
        return folder not in self._under_way
