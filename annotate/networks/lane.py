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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

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
        while self._serve_next():
            pass  # nothing of what was served is held while the next is waited for

    def _serve_next(self) -> bool:
        """Whether there was one."""
        _, _, future, work = self._waiting.get()
        if future is None:
            return False
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            # The one who waits for it raises it again; the lane goes on.
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)
        return True

    def _end(self) -> None:
        # A thread that is cut off inside a library at the interpreter's end may take the process down with it.
        self._waiting.put((-1.0, -1, None, int))
        self._thread.join()


@cache
def lane(device: str) -> Lane:
    """The lane of this process for `device`."""
    return Lane(f"networks-{device}")


@cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # a copy is short, and more frames wait behind it


@contextmanager
def uploading(device: torch.device, *, wait: bool = False) -> Iterator[None]:
    """What is queued inside runs beside the lane's network; with `wait`, all of it so far is there at the end.

    In the lane's own stream it would wait for the window that the network is busy with, and tracking with it.
    """
    if device.type != "cuda":
        yield
        return
    stream = _upload_stream(device)
    with torch.cuda.stream(stream):
        yield
    if wait:
        stream.synchronize()


def taken_over(images: Tensor) -> Tensor:
    """Images that were made while `uploading`, for use in the lane's stream."""
    if images.is_cuda:
        # Their memory belongs to the other stream, which must not take it back while the network reads it.
        images.record_stream(torch.cuda.current_stream(images.device))
    return images
