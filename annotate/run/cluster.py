"""Worker processes, on this machine or behind a scheduler, and the patience to wait for them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...dataset.processes import num_cores
from ..sfm.processes import THREAD_VARIABLES, WORKERS_PER_GPU, num_gpus, shares
from .credentials import run_credentials
from .plan import Plan
from .progress import FIRST_LINE_S, LINE_INTERVAL_S
from .steady_clock import use_steady_clock

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from distributed import Client

    from ..config import AnnotateConfig

log = logging.getLogger(__name__)


class RunAborted(RuntimeError):
    """The run cannot go on (disk full, no workers); what is done is kept."""


GONE = "{out}: the dask scheduler is gone; finished parts are kept, the same command continues the run"
_MORE_ROOM = "raise annotate.executor.memory_per_worker_gib, or use fewer workers (--workers)"


class Patience:
    """Waits for the next task in small steps, and sees what could make that wait endless: a scheduler that has gone,
    or nobody who works.

    Args:
        out: what the run writes, for messages.
        more_room: what gives workers that end before they begin more memory.
    Attributes:
        num_threads: tasks that workers can have under way, as was last heard; at least one.
    """

    def __init__(self, client: Client, out: Path, *, more_room: str = _MORE_ROOM) -> None:
        self._client, self._out, self._more_room = client, out, more_room
        self.num_threads = 1
        self._seen = time.monotonic()
        self._asked = self._seen - _ASK_EVERY_S
        self._said = 0.0
        self.step_s = FIRST_STEP_S

    def next_of(self, completed: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """The next of `as_completed` that is done, however it ended.

        Args:
            meanwhile: called again and again until then, to send tasks to workers that have come.
        Raises:
            RunAborted, KeyboardInterrupt: as `wait`, and where the scheduler has gone with the task.
        """
        while not completed.has_ready():
            self.wait()
            meanwhile()
        future = next(completed)
        self.step_s = FIRST_STEP_S
        if future.status == "cancelled":
            raise RunAborted(GONE.format(out=self._out))
        return future

    def wait(self) -> None:
        """A moment.

        Raises:
            RunAborted: the scheduler is gone, or the workers of this machine end before they begin anything.
            KeyboardInterrupt: the run was asked to end.
        """
        time.sleep(self.step_s)
        raise_if_interrupted()
        self.step_s = min(0.05, 1.5 * self.step_s)  # short clips must not wait for this
        now = time.monotonic()
        if now - self._asked < _ASK_EVERY_S:
            return
        self._asked = now
        try:
            threads: Any = self._client.nthreads()
            num_workers = len(threads)
            self.num_threads = max(1, sum(threads.values()))
        except (OSError, RuntimeError, TimeoutError) as error:
            raise RunAborted(GONE.format(out=self._out)) from error
        if self._client.status in ("closed", "closing", "connecting"):
            if now - self._seen > _GONE_AFTER_S:
                raise RunAborted(GONE.format(out=self._out))
            return
        if num_workers:
            self._seen = now
        elif self._client.cluster is not None:
            # Nobody starts another one; those that end are started anew, and end again.
            if now - self._seen > FROZEN_AFTER_S:
                raise RunAborted(
                    f"{self._out}: no worker stayed alive for {FROZEN_AFTER_S:.0f} s, they end before they begin"
                    f" anything (out of memory?): {self._more_room}"
                )
        elif now - self._seen > FIRST_LINE_S and now - self._said > LINE_INTERVAL_S:
            self._said = now
            log.warning(
                "%s: no worker is connected; start some with: dask worker ADDRESS OF THE SCHEDULER (waiting)",
                self._out,
            )


FIRST_STEP_S = 0.001
_ASK_EVERY_S = 2.0
_GONE_AFTER_S = 30.0


def num_threads(client: Client) -> int:
    try:
        threads: Any = client.nthreads()
    except (OSError, RuntimeError, TimeoutError) as error:
        raise RunAborted(
            f"the dask scheduler is gone ({first_line(error)}); the same command continues"
        ) from error
    return max(1, sum(threads.values()))


@contextmanager
def cluster_for(
    plan: Plan, config: AnnotateConfig, workers: int | None, scheduler: str | None
) -> Iterator[Client]:
    if scheduler is not None:
        with cluster_behind(scheduler) as client:
            yield client
        return
    from distributed.system import MEMORY_LIMIT

    cores = num_cores()
    num_shards = -(-plan.num_clips // plan.clips_per_shard) if plan.listed else cores
    # From the whole source, not from what is left: threads change sums in their last bits, and a continued run must
    # give the same rows as one that was not interrupted.
    # Few workers a GPU: each loads the networks once, and its threads keep several shards under way.
    number = workers or WORKERS_PER_GPU * num_gpus(config) or default_workers(num_shards, cores, MEMORY_LIMIT)
    in_flight, _ = shares(config)
    limit = (
        int(config.executor.memory_per_worker_gib * 2**30)
        if config.executor.memory_per_worker_gib
        else MEMORY_LIMIT // number
    )
    with local_cluster(
        min(number, plan.num_shards) if plan.listed else number,
        threads_per_worker=in_flight,
        compute_threads=max(1, cores // (number * in_flight)),
        memory_bytes=limit,
        attempts=config.executor.attempts,
    ) as client:
        yield client


_ANSWERS_WITHIN = "10s"
"""Time that a scheduler may take to answer."""
_TLS_SETTINGS = [
    f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
]


@contextmanager
def cluster_behind(scheduler: str) -> Iterator[Client]:
    """Workers behind a running scheduler.

    Raises:
        RunAborted: nobody answers there, or it wants keys that dask was not told of.
    """
    import dask.config
    from distributed import Client

    tls = scheduler.startswith("tls://")
    if tls and not dask.config.get("distributed.comm.tls.client.cert", None):
        raise RunAborted(
            f"no keys for {scheduler}: it talks to nobody without; dask reads where they are from the environment"
            f" ({', '.join(_TLS_SETTINGS)}) or from its configuration (distributed.comm.tls)"
        )
    use_steady_clock()
    try:
        with dask.config.set({"distributed.comm.timeouts.connect": _ANSWERS_WITHIN}):
            client = Client(scheduler, timeout=_ANSWERS_WITHIN, set_as_default=False)
    # A name that does not resolve, a port where nobody or something else listens, an address that is none.
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise RunAborted(
            f"no dask scheduler answers at {scheduler} ({type(error).__name__}: {first_line(error)}): look whether it"
            f" runs and is reached from here; its address is what `dask scheduler` prints, {'tls' if tls else 'tcp'}"
            "://HOST:8786"
        ) from error
    try:
        with signals_as_interrupt():
            yield client
    finally:
        client.close(timeout=2)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no answer").splitlines()[0]


FROZEN_AFTER_S = 300.0
"""Time without a sign of life after which a local worker is ended, by a clock that nobody sets (`steady_clock`)."""
_OPEN_FILES = (64, 16)
"""Files that a run needs to open: by itself, and for each worker."""


def claim_open_files(workers: int) -> None:
    """See to it that a run with so many local workers may open as many files as it needs.

    Raises:
        RunAborted: it may not.
    """
    needed = _OPEN_FILES[0] + workers * _OPEN_FILES[1]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and hard < needed:
        raise RunAborted(
            f"a run with {workers} workers needs {needed} open files, and this process may have {hard}: raise the limit"
            f" (ulimit -n {needed}; where that is refused its administrator can), or use fewer workers (--workers)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


_START = "forkserver" if sys.platform == "linux" else "spawn"
"""How workers start. A fork of the command would inherit locks and decoder threads; elsewhere than on Linux, libraries
of the system do not survive one at all."""


def _start_fork_server() -> None:
    """Start the process that workers are forked from. It imports once what each of them would import anew, whenever one
    has died, too: three seconds of processor time and a few hundred megabytes.

    It keeps the environment that it is started with (threads of the numerical libraries) for the life of this process.
    Ctrl-C in a terminal reaches it and the workers as well, and must not: the command ends them.
    """
    if _START != "forkserver":
        return
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(["theodolite.annotate.run.preloaded"])
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        forkserver.ensure_running()
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _check_room(memory_bytes: int) -> None:
    """Make sure that a worker may hold what it is forked with: else each would be ended and started for ever.

    Raises:
        RunAborted: it may not.
    """
    if _START != "forkserver":
        return
    context = multiprocessing.get_context(_START)
    reads, writes = context.Pipe(duplex=False)
    process = context.Process(target=_tell_memory, args=(writes,), daemon=True)
    try:
        with reads, writes:
            process.start()
            writes.close()
            taken = reads.recv()
    except (EOFError, OSError) as error:
        raise RunAborted(
            f"the workers of this machine could not be started ({_why_ended(process, error)}); the same command tries"
            " it again, with fewer workers (--workers) if it must"
        ) from error
    process.join()
    if taken > _ENDED_ABOVE * memory_bytes:
        raise RunAborted(
            f"a worker takes {taken / 2**30:.2f} GiB before it begins a clip, and may take"
            f" {memory_bytes / 2**30:.2g} GiB: raise annotate.executor.memory_per_worker_gib, or use fewer workers"
            " (--workers)"
        )


def _why_ended(process: BaseProcess, error: Exception) -> str:
    """Why the first process of its kind told nothing."""
    if process.pid is None or not isinstance(error, EOFError):
        return first_line(error)
    process.join(_ENDS_WITHIN_S)
    code = process.exitcode
    if code is None:
        return "the first one closed its pipe"
    how = f"signal {-code}: out of memory?" if code < 0 else f"exit code {code}"
    return f"the first one ended before it began a clip, {how}"


_ENDS_WITHIN_S = 5.0


def _tell_memory(to: Connection) -> None:
    import psutil

    to.send(psutil.Process().memory_info().rss)


_ENDED_ABOVE = 0.95
"""Share of the memory that a worker may take at which it is ended."""


def _settings(attempts: int) -> dict[str, object]:
    """What a local cluster does otherwise than dask's own."""
    return {
        "distributed.scheduler.allowed-failures": attempts - 1,
        # Shards are our own unit of memory: spilling or pausing would only hide a leak, a limit ends it.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": _ENDED_ABOVE,
        "distributed.worker.multiprocessing-method": _START,
        "distributed.worker.daemon": False,  # a daemon may have no solver processes
        "distributed.comm.timeouts.connect": "30s",
        # After 15 s dask gives up a worker that is being started anew, ends it once it is there, and starts no other.
        # Modules that come from a disk far away, or a busy machine, take longer.
        "distributed.deploy.lost-worker-timeout": "3600s",
        # A worker that is stopped, or waits for a disk that is away, is not heard of and gives its shard back.
        "distributed.scheduler.worker-ttl": f"{FROZEN_AFTER_S:.0f}s",
        # The scheduler lies in this process, and what it remembers of itself would grow for hours: a thousand messages
        # to each worker, with the clips in them, are tens of megabytes.
        "distributed.admin.log-length": 100,
        "distributed.admin.low-level-log-length": 10,
        "distributed.admin.system-monitor.log-length": 100,
        "distributed.worker.profile.enabled": False,
    }


_SAID = [os.environ.get(name, "") for name in THREAD_VARIABLES]
"""What the user said, before this process says more to its workers."""


def _allowed_threads(most: int) -> int:
    """`most` threads, or fewer where the user said so in any of the variables (torch goes by the largest of them; of
    OpenMP's list of levels the first counts): on cores that others use too, threads that wait for each other cost eight
    times as much."""
    outer = [said.partition(",")[0].strip() for said in _SAID]
    return min([most, *(int(said) for said in outer if said.isdecimal() and int(said))])


@contextmanager
def local_cluster(
    workers: int, *, threads_per_worker: int, compute_threads: int, memory_bytes: int | None, attempts: int
) -> Iterator[Client]:
    """Worker processes on this machine; SIGTERM is taken as Ctrl-C while they work.

    Args:
        workers: processes.
        threads_per_worker: tasks that each has under way.
        compute_threads: of the numerical libraries in each task; fewer where OMP_NUM_THREADS or its like says so.
        memory_bytes: at which a worker is ended; None: never.
        attempts: how often a task may end its worker.
    """
    claim_open_files(workers)
    threads = str(_allowed_threads(compute_threads))
    environment: dict[str, str] = dict.fromkeys(THREAD_VARIABLES, threads)
    os.environ.update(environment)
    _start_fork_server()  # while this process imports dask
    import dask.config
    from distributed import Client, LocalCluster

    use_steady_clock()
    if memory_bytes:
        _check_room(memory_bytes)
    with dask.config.set({**_settings(attempts), "distributed.nanny.pre-spawn-environ": environment}):
        security = run_credentials()
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=threads_per_worker,
                processes=True,
                memory_limit=memory_bytes or 0,  # 0 is no limit
                protocol="tls" if security else "tcp",
                security=security,
                dashboard_address="127.0.0.1:0",  # any port that is free: nobody looks, and a fixed one may be taken
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError) as error:
            raise RunAborted(
                f"the workers of this machine could not be started ({first_line(error)}): one was ended meanwhile (out"
                " of memory?), or they took too long; the same command tries it again, with fewer workers (--workers)"
                " if it must"
            ) from error
        client = Client(cluster, set_as_default=False)
        try:
            with signals_as_interrupt():
                yield client
        finally:
            # Workers in the middle of a clip must not be waited for: their shards are simply not done.
            # Nor may a machine that is busy make an error of that which hides how the run ended.
            with suppress(TimeoutError):
                client.close(timeout=2)
            with suppress(TimeoutError):
                cluster.close(timeout=5)


def default_workers(num_shards: int, cores: int, memory_bytes: int) -> int:
    """One worker a core, at least 3 GiB of memory for each, no more than shards."""
    return max(1, min(cores, memory_bytes // (3 * 2**30), num_shards))


_asked_to_end = threading.Event()


def _interrupt(signum: int, frame: Any) -> None:
    _asked_to_end.set()
    raise KeyboardInterrupt


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """SIGTERM (batch systems send it before the end) is taken as Ctrl-C, and Ctrl-C is remembered; main thread only.

    Where signals are ignored (a job in the background of a script), they stay so.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is _interrupt
    ):
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked_to_end.clear()


def raise_if_interrupted() -> None:
    """A `KeyboardInterrupt` that came while somebody caught everything (libraries do while they import optional
    packages, and Python itself while it clears objects away) is lost; loops over much work ask here.

    Raises:
        KeyboardInterrupt: a signal has come inside `signals_as_interrupt`.
    """
    if _asked_to_end.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
