"""Work spread over processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

WORTH_PROCESSES = 400
"""Parts of a dataset from which processes are started to read them: each takes a second to begin."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_processes(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, processes: int
) -> Iterator[_Result]:
    """`function` of every item, in order. Only as many are under way, or done and not yet fetched, as keep the
    processes busy, so memory does not grow with their number.

    Args:
        function: importable, as spawned processes need it; 1 process is this one.
    Raises:
        Whatever `function` raises.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    rest = iter(items)
    # Spawned: a fork would inherit the threads and locks of libraries.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way: list[Future[_Result]] = [
            pool.submit(function, item) for item in islice(rest, 3 * processes)
        ]
        try:
            while under_way:
                result = under_way.pop(0).result()
                under_way += [pool.submit(function, item) for item in islice(rest, 1)]
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
