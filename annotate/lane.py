"""One thread for each device, in which all of a worker's networks run.

Clips that are under way together must not go through the GPU side by side: they would all come out late, at the same
time, and leave the solvers idle before and the GPU idle after. So of the windows that wait, those of the clip that
began first go first.
"""

from __future__ import annotations

import atexit
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")
_turns = itertools.count()


def next_turn() -> int:
    """A clip's place in the order: clips that ask earlier go first."""
    return next(_turns)


class Lane:
    """Runs what is submitted in one thread, lowest turn first; equal turns in the order of submission."""

    def __init__(self, name: str) -> None:
        self._waiting: queue.PriorityQueue[tuple[float, int, Future[Any] | None, Callable[[], Any]]] = (
            queue.PriorityQueue()
        )
        self._number = itertools.count()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def submit(self, turn: int, work: Callable[[], Result]) -> Future[Result]:
        """A future of `work()`, which may be cancelled as long as it waits."""
        future: Future[Result] = Future()
        self._waiting.put((turn, next(self._number), future, work))
        return future

    def _serve(self) -> None:
        while True:
            _, _, future, work = self._waiting.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            # The one who waits for it raises it again; the lane goes on.
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)

    def _end(self) -> None:
        # A thread that is cut off inside a library at the interpreter's end may take the process down with it.
        self._waiting.put((-1.0, -1, None, int))
        self._thread.join()


@cache
def lane(device: str) -> Lane:
    """The lane of this process for `device`."""
    return Lane(f"networks-{device}")
