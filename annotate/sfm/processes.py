"""Bundles in processes of their own, so that a worker that feeds a GPU is not held up by arithmetic.

A worker with several clips under way decodes and tracks in threads (OpenCV and FFmpeg release the interpreter), but a
bundle holds it; each is sent to one of a few processes that live as long as the worker.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from ..networks.device import be_worker, choose_device, waits_asleep, worker_number

if TYPE_CHECKING:
    from ..config import AnnotateConfig

Result = TypeVar("Result")
_making = threading.Lock()


def num_gpus(config: AnnotateConfig) -> int:
    """GPUs that this machine's workers would share for the networks of a recipe, or for the tracker that it asks for; 0
    without either or without GPUs."""
    geometry = config.geometry
    networks = geometry.sequence == "pi3x" or geometry.anchor == "moge2"
    if not networks and config.tracks.tracker != "batched":
        return 0
    import torch

    device = choose_device(geometry.device)
    if device.type != "cuda":
        return 0
    return torch.cuda.device_count() if geometry.device == "auto" else 1


WORKERS_PER_GPU = 2
"""Processes that share a GPU: one interpreter cannot track frames as fast as the GPU sees them. Each holds the networks
once more (about 12 GB in all)."""


CLIPS_STREAMED = 5
"""Clips of a worker that are decoded, tracked and seen by the networks at a time. Tracking takes a thread about six
times as long as the networks take, and two workers share the GPU; with more, all clips would creep through it together,
then queue for solvers."""
_streams = threading.BoundedSemaphore(CLIPS_STREAMED)


def shares(config: AnnotateConfig) -> tuple[int, int]:
    """Clips that a worker has under way, and its solver processes (see `ExecutorConfig`)."""
    gpus = num_gpus(config)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    clips, solvers = config.executor.clips_in_flight, config.executor.solver_processes
    if solvers is None:
        # A bundle takes about the processor time of decoding and tracking.
        solvers = max(1, cores // (2 * WORKERS_PER_GPU * gpus)) if gpus else 0
    if clips is None:
        # A clip in a solver is under way as well.
        clips = solvers + CLIPS_STREAMED if gpus else 1
    return clips, solvers


@contextmanager
def streamed(config: AnnotateConfig) -> Iterator[None]:
    """Holds one of the worker's `CLIPS_STREAMED` places; waits for it where clips share a worker."""
    if shares(config)[0] == 1:
        yield
        return
    with _streams:
        yield


def share_threads(config: AnnotateConfig) -> None:
    """Keep this process's libraries from starting a thread a core in every clip that is under way, and its threads from
    holding a core while they wait for a GPU."""
    if shares(config)[0] > 1:
        import cv2
        import torch

        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        if num_gpus(config):
            waits_asleep()


class _OneThread:
    """How many bundles run here, and the number of torch's threads before the first began.

    The number is one for the whole process: of two bundles that overlap, only the last to end may give it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.before = 1


_solving = _OneThread()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for arithmetic, as in a solver process.

    A bundle is many small operations. On two idle cores a second thread saves a twentieth to a tenth of its time. Where
    another process computes as well, the two wait for each other at every one of them: 15 to 30 times as long.
    """
    import torch

    with _solving.lock:
        if _solving.running == 0:
            _solving.before = torch.get_num_threads()
            torch.set_num_threads(1)
        _solving.running += 1
    try:
        yield
    finally:
        with _solving.lock:
            _solving.running -= 1
            if _solving.running == 0:
                torch.set_num_threads(_solving.before)


def _begin(parent: int, worker: int) -> None:
    """Start of a solver: the worker's GPU, one thread for arithmetic, and an end when the worker is gone, however it
    went."""
    import cv2
    import torch

    be_worker(worker)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""By which numerical libraries are told how many threads to take."""


@cache
def _pool(processes: int) -> ProcessPoolExecutor:
    # A fork would inherit the GPU's context and decoder threads.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), worker_number()),
    )
    # Libraries read these when they are imported, which in the new processes is before `_begin`. A dozen solvers with
    # a thread a core each bring a machine to a stand.
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        # A process is started for each task that finds none idle: now all of them, while the variables stand.
        for started in [pool.submit(time.sleep, 0.1) for _ in range(processes)]:
            started.result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return pool


def in_solver(processes: int, work: Callable[..., Result], **arguments: object) -> Result:
    """`work(**arguments)`, here if `processes` is 0, else in one of that many processes; waits for it.

    Raises:
        ClipRejection: as `work` does.
        MemoryError: the process was ended from outside, which nearly always means that memory ran out.
    """
    if processes == 0:
        with _one_thread():
            return work(**arguments)
    with _making:
        pool = _pool(processes)
    try:
        return pool.submit(work, **arguments).result()
    except BrokenProcessPool:
        with _making:
            _pool.cache_clear()
        raise MemoryError("a solver process was ended from outside") from None
