"""Bundles in processes of their own, so that a worker that feeds a GPU is not held up by arithmetic.

A worker with several clips under way decodes and tracks in threads (OpenCV and FFmpeg release the interpreter), but a
bundle holds it; each is sent to one of a few processes that live as long as the worker.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import TypeVar

from .clip import ClipRejection

Result = TypeVar("Result")
_making = threading.Lock()


def _one_thread() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@cache
def _pool(processes: int) -> ProcessPoolExecutor:
    # A fork would inherit the GPU's context and decoder threads.
    return ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
    )


def _run(work: Callable[..., Result], arguments: dict) -> Result | tuple[str, str]:
    try:
        return work(**arguments)
    except ClipRejection as rejection:
        return rejection.reason, rejection.detail  # its constructor cannot be pickled back


def in_solver(processes: int, work: Callable[..., Result], **arguments: object) -> Result:
    """`work(**arguments)`, here if `processes` is 0, else in one of that many processes; waits for it.

    Raises:
        ClipRejection: as `work` does.
        MemoryError: the process was ended from outside, which nearly always means that memory ran out.
    """
    if processes == 0:
        return work(**arguments)
    with _making:
        pool = _pool(processes)
    try:
        found = pool.submit(_run, work, arguments).result()
    except BrokenProcessPool:
        with _making:
            _pool.cache_clear()
        raise MemoryError("a solver process was ended from outside") from None
    if isinstance(found, tuple):
        raise ClipRejection(*found)
    return found
