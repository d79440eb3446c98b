"""Many clips over many workers: shards in, part files out, nothing lost and nothing done twice.

A *clip* is one row. A *shard* is a fixed run of consecutive clips, the unit of work and of commit: a worker annotates
its clips one after the other and writes one part file by rename. A *worker* is a process of dask.distributed, on this
machine or behind a scheduler address. Only as many shards are in flight as there are worker threads, so neither the
task graph nor memory grows with the number of clips.

What is done is what part files exist. A run that is killed in any way is continued by the same command. If the
source has changed since (new files, another limit), clips that have a row are left out and the others are cut into
shards anew.

A worker that dies gives its shard back, once per allowed attempt; after that the shard's clips are tried one by one
with the cluster to themselves, and only a clip that kills its worker alone gets the reason `worker_died`.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from ..dataset.commit import ClipHasRow, Commits, check_run, own_run, take_in_dead_runs
from ..dataset.parquet import read_table
from ..dataset.reasons import ReasonCode, Status, status_of
from ..dataset.rows import Row
from ..dataset.store import finished_shards, list_parts, part_path, prepare_output, write_part
from .clip import ClipRef
from .credentials import run_credentials
from .networks.device import be_worker, claim_worker_number
from .pipeline import Mode, annotate_clip
from .pool import WORKERS_PER_GPU, num_gpus, share_threads, shares
from .reporting import Listener, listen, listening, say
from .sources.read import Shard, make_shards

if TYPE_CHECKING:
    from distributed import Client

    from .config import AnnotateConfig

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 60.0
"""Time between progress lines where stderr is no terminal."""
FIRST_LINE_S = 10.0
"""... and to the first one."""
MAX_SHOWN = 3
"""Clips under way that progress names."""


class AnnotateClip(Protocol):
    """What does the work: `pipeline.annotate_clip`, or a stand-in with its signature in tests."""

    def __call__(self, clip: ClipRef, config: AnnotateConfig, *, mode: Mode, recipe_hash: str) -> Row: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a worker needs to turn shards into part files.

    Attributes:
        out: dataset folder, the same path on every worker.
        config: the recipe's `annotate` section.
        mode: which geometry the source ships.
        recipe_hash: of the resolved recipe.
        annotate: the per-clip function.
        incoming: folder of the run, into which workers write (see `dataset/commit.py`); None: straight into the data.
    """

    out: Path
    config: AnnotateConfig
    mode: Mode
    recipe_hash: str
    annotate: AnnotateClip = annotate_clip
    incoming: Path | None = None

    @property
    def folder(self) -> Path:
        """Where parts are written."""
        return self.incoming or self.out


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one clip ended; `reasons` is empty for an accepted one."""

    clip_id: str
    verdict: str
    reasons: tuple[str, ...]
    detail: str

    @property
    def status(self) -> Status:
        """Accepted, rejected (judged) or failed."""
        return status_of(self.verdict, self.reasons)


@dataclass(kw_only=True)
class Tally:
    """Counts of a run or a dataset.

    Attributes:
        accepted: accepted clips.
        rejected: clips by first reason, failed ones left out.
        failed: the clips that failed.
    """

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            match outcome.status:
                case "accepted":
                    self.accepted += 1
                case "rejected":
                    self.rejected[outcome.reasons[0]] += 1
                case "failed":
                    self.failed.append(outcome)

    def take(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.accepted += other.accepted
        self.rejected.update(other.rejected)
        self.failed += other.failed

    @property
    def done(self) -> int:
        """Clips with a row."""
        return self.accepted + sum(self.rejected.values()) + len(self.failed)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
        rejected = f"{sum(self.rejected.values())} rejected" + (f" ({reasons})" if reasons else "")
        return f"{self.accepted} accepted, {rejected}, {len(self.failed)} failed"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run has to do.

    Attributes:
        num_clips: clips of the source (after a limit).
        num_clips_done: those that have a row already.
        shards: makes the shards that are left, in order, anew on every call.
        num_shards: how many those are.
        num_shards_in_all: how many the whole source makes.
        have: ids of the source's clips that have a row; no part of another one may hold them.
    """

    num_clips: int
    num_clips_done: int
    shards: Callable[[], Iterator[Shard]]
    num_shards: int
    num_shards_in_all: int
    have: frozenset[str] = frozenset()


class RunAborted(RuntimeError):
    """The run cannot go on (disk full, no workers); what is done is kept."""


# --- planning ----------------------------------------------------------------------------------


def plan_run(
    clips: Callable[[], Iterable[ClipRef]], out: Path, *, clips_per_shard: int, limit: int | None = None
) -> Plan:
    """Compare the source with the part files in `out`; reads only, `out` may be absent.

    Args:
        clips: makes the clips of the source, always in the same order.
        out: dataset folder.
        clips_per_shard: size of a shard.
        limit: use only so many clips from the start.
    Raises:
        ValueError: the source holds a clip id twice.
    """

    def limited() -> Iterator[ClipRef]:
        for number, clip in enumerate(clips()):
            if limit is not None and number >= limit:
                return
            yield clip

    finished = finished_shards(out)
    planned: set[str] = set()
    ids: set[str] = set()
    done: set[str] = set()
    num_clips = num_done = 0
    for shard in make_shards(limited(), clips_per_shard):
        planned.add(shard.shard_id)
        num_clips += len(shard.clips)
        num_done += len(shard.clips) if shard.shard_id in finished else 0
        for clip in shard.clips:
            if clip.clip_id in ids:
                raise ValueError(f"clip {clip.clip_id}: the source lists it twice")
            ids.add(clip.clip_id)
        if shard.shard_id in finished:
            done.update(clip.clip_id for clip in shard.clips)
    if finished <= planned:
        todo = planned - finished
        return Plan(
            num_clips=num_clips,
            num_clips_done=num_done,
            shards=lambda: (s for s in make_shards(limited(), clips_per_shard) if s.shard_id in todo),
            num_shards=len(todo),
            num_shards_in_all=len(planned),
            have=frozenset(done),
        )
    have = {outcome.clip_id for outcome in read_outcomes(out)}
    left = len(ids - have)
    return Plan(
        num_clips=num_clips,
        num_clips_done=num_clips - left,
        shards=lambda: make_shards((c for c in limited() if c.clip_id not in have), clips_per_shard),
        num_shards=-(-left // clips_per_shard),
        num_shards_in_all=len(planned),
        have=frozenset(have),
    )


def read_outcomes(out: Path) -> Iterator[Outcome]:
    """How every clip of a dataset ended, in order of the part files."""
    for path in list_parts(out):
        yield from _part_outcomes(path)


def _part_outcomes(path: Path) -> Iterator[Outcome]:
    table = read_table(path, ["clip_id", "verdict", "reasons", "reason_details"])
    for row in table.to_pylist():
        yield Outcome(
            clip_id=row["clip_id"],
            verdict=row["verdict"],
            reasons=tuple(row["reasons"]),
            detail=row["reason_details"][0] if row["reason_details"] else "",
        )


# --- on a worker -------------------------------------------------------------------------------


def annotate_shard(shard: Shard, job: Job) -> list[Outcome]:
    """Annotate the clips of a shard and write its part file; every clip gets a row.

    Raises:
        OSError: the part cannot be written (disk full).
        Fenced: the run is over, and another one has begun; nothing was written.
    """
    path = part_path(job.folder, source=shard.clips[0].source, shard_id=shard.shard_id)
    if path.is_file():  # a worker died after its rename and before its report
        return list(_part_outcomes(path))
    begin_as_worker()
    share_threads(job.config)
    rows = []
    for clip in shard.clips:
        _check_run(job)  # nobody waits for what a run does that is over
        rows.append(annotate_one(clip, job))
    _check_run(job)
    write_part(job.folder, rows, shard_id=shard.shard_id, recipe_hash=job.recipe_hash)
    return [_outcome(row) for row in rows]


def _check_run(job: Job) -> None:
    if job.incoming is not None:
        check_run(job.incoming)


_TOPIC = "theodolite-clips"


def begin_as_worker() -> None:
    """In a dask worker: the networks learn which of this machine's workers they run in, so that each GPU gets as many,
    and where clips stand is told to the scheduler. Elsewhere everything happens in this process."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return
    try:
        worker = distributed.get_worker()
    except ValueError:
        return
    be_worker(claim_worker_number())
    listen(lambda clip_id, text: worker.log_event(_TOPIC, (clip_id, text)))


def annotate_one(clip: ClipRef, job: Job) -> Row:
    """Row of one clip; an exception becomes a row with the reason `internal_error` or `out_of_memory`."""
    _quiet_decoders()
    start = time.perf_counter()
    reason: ReasonCode
    limit_s = job.config.executor.clip_timeout_s
    late = None if job.incoming is None else job.incoming / f"late-{clip.clip_id}"
    if late is not None and late.exists():
        return failure_row(
            clip, job, "timed_out", f"was not done after {limit_s:g} s, and its worker was ended"
        )
    try:
        try:
            with _ended_after(limit_s, late):
                return job.annotate(clip, job.config, mode=job.mode, recipe_hash=job.recipe_hash)
        finally:
            say(clip.clip_id, "")
    except MemoryError as error:
        reason, detail, trace = "out_of_memory", str(error) or "memory ran out", traceback.format_exc()
    # The one place where anything may be caught: a shard must survive its worst clip, and the row keeps the traceback.
    except Exception as error:  # noqa: BLE001
        reason, detail = "internal_error", f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
    return failure_row(clip, job, reason, detail, error=trace, wall_s=time.perf_counter() - start)


@contextmanager
def _ended_after(limit_s: float, late: Path | None) -> Iterator[None]:
    """End this worker process if what is inside takes longer, leaving a note for the one that gets the shard next.

    Nothing else ends a thread that waits in a system call or in a decoder. In the command's own process (no workers)
    there is no limit.
    """
    if late is None or multiprocessing.parent_process() is None:
        yield
        return

    def end() -> None:
        with suppress(OSError):
            late.touch()
        os._exit(1)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def failure_row(
    clip: ClipRef,
    job: Job,
    reason: ReasonCode,
    detail: str,
    *,
    error: str | None = None,
    wall_s: float | None = None,
) -> Row:
    """Row of a clip of which nothing but its identity is known."""
    return Row(
        clip_id=clip.clip_id,
        source=clip.source,
        original_id=clip.original_id,
        media_kind=clip.media_kind,
        media=clip.media,
        media_pattern=clip.media_pattern,
        window_start_s=clip.start_s,
        window_end_s=clip.end_s,
        mode=job.mode,
        data_licence=clip.data_licence,
        data_redistributable=clip.data_redistributable,
        stand_in=False,
        recipe_hash=job.recipe_hash,
        package_version=__version__,
        annotate_wall_s=wall_s,
        verdict="rejected",
        reasons=(reason,),
        reason_details=(f"clip {clip.clip_id}: {detail}",),
        error=error,
        confidence_absent="no_cameras",
    )


def _outcome(row: Row) -> Outcome:
    return Outcome(
        clip_id=row.clip_id,
        verdict=row.verdict,
        reasons=row.reasons,
        detail=row.reason_details[0] if row.reason_details else "",
    )


def _quiet_decoders() -> None:
    """What a damaged video makes FFmpeg say is in the row already; on stderr it would bury the progress."""
    import av.logging

    av.logging.set_level(av.logging.PANIC)


# --- the run -----------------------------------------------------------------------------------


def run_plan(
    plan: Plan,
    job: Job,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    show_progress: bool = True,
    max_failed: int | None = None,
) -> Tally:
    """Do what a plan leaves to do; call `prepare_output` (or `open_output`) first.

    Args:
        plan: from `plan_run`.
        job: what to do with each clip.
        workers: local worker processes; None: one per core, fewer if memory or shards are few. 0: no processes at
            all, everything happens here (to debug).
        scheduler: address of a running dask scheduler, instead of local workers.
        show_progress: bar or lines on stderr.
        max_failed: stop once so many clips one after the other have failed for the same reason; None: never.
    Returns:
        Counts of this run alone.
    Raises:
        RunAborted: a part cannot be written, or the cluster is gone.
        KeyboardInterrupt: Ctrl-C or SIGTERM; workers are ended before it is passed on.
    """
    tally = Tally()
    with _progress(plan, tally, show_progress) as (advance, hear):
        if not plan.num_shards:
            return tally
        with own_run(job.out) as incoming:
            job = replace(job, incoming=incoming)
            commits = Commits(job.out, plan.have)
            watch = _Streak(job.out, max_failed)
            for shard, outcomes in _done_shards(plan, job, workers, scheduler, hear):
                _commit(shard, job, commits)
                tally.add(outcomes)
                advance()
                watch.see(outcomes)
    return tally


class _Streak:
    """Notices that everything fails in the same way: a storage that is away, a driver that has died."""

    def __init__(self, out: Path, most: int | None) -> None:
        self._out, self._most = out, most
        self._way, self._length = "", 0

    def see(self, outcomes: Iterable[Outcome]) -> None:
        """Take in how clips ended.

        Raises:
            RunAborted: one after the other they have failed for the same reason.
        """
        for outcome in outcomes:
            way = outcome.reasons[0] if outcome.status == "failed" else ""
            self._length = self._length + 1 if way == self._way else 1
            self._way = way
            if way and self._most and self._length >= self._most:
                raise RunAborted(
                    f"{self._out}: stopped, because {self._length} clips one after the other failed with {way}"
                    f" (the last: {outcome.detail}). Mend the cause, then the same command with --retry-failed {way}"
                    " tries them again; --max-failed 0 goes on whatever fails"
                )


def _done_shards(
    plan: Plan, job: Job, workers: int | None, scheduler: str | None, hear: Listener
) -> Iterator[tuple[Shard, list[Outcome]]]:
    """Shards as they are done, each with its part in the run's folder."""
    if workers == 0 and scheduler is None:
        with listening(hear):
            for shard in plan.shards():
                with _abort_on_write_error(job.out):
                    outcomes = annotate_shard(shard, job)
                yield shard, outcomes
        return
    with _cluster(plan, job.config, workers, scheduler) as client:
        client.subscribe_topic(_TOPIC, lambda event: hear(*event[1]))
        yield from _run_on(client, plan, job)


def _commit(shard: Shard, job: Job, commits: Commits) -> None:
    """Put a done shard's part where it counts.

    Raises:
        RunAborted: it is not there, cannot be moved, or holds a clip that has a row.
    """
    part = part_path(job.folder, source=shard.clips[0].source, shard_id=shard.shard_id)
    if not part.is_file():
        raise RunAborted(
            f"{job.out}: a worker says that it wrote {part.name}, and it is not there: all workers must see --out under"
            " this path (a shared file system)"
        )
    with _abort_on_write_error(job.out):
        try:
            commits.take(part, (clip.clip_id for clip in shard.clips))
        except ClipHasRow as error:
            raise RunAborted(f"{error}; the same command goes on without it") from None


def _run_on(client: Client, plan: Plan, job: Job) -> Iterator[tuple[Shard, list[Outcome]]]:
    from distributed import KilledWorker, as_completed

    # A scheduler that outlives its clients may still hold tasks of another run, with other folders to write to.
    run = job.folder.name
    num_done = 0
    shards = plan.shards()
    suspects: list[Shard] = []
    shard_of: dict[Any, Shard] = {}
    completed: Any = as_completed(loop=client.loop, raise_errors=False)

    def submit_next() -> None:
        shard = next(shards, None)
        if shard is not None:
            future = client.submit(annotate_shard, shard, job, key=f"{run}-{shard.shard_id}", pure=False)
            shard_of[future.key] = shard
            completed.add(future)

    for _ in range(_num_threads(client)):
        submit_next()
    patience = _Patience(client, job.out)
    while shard_of:
        while not completed.has_ready():
            patience.wait()
        future = next(completed)
        patience.step_s = _FIRST_STEP_S
        shard = shard_of.pop(future.key)
        if future.status == "cancelled":
            raise RunAborted(_GONE.format(out=job.out))
        # This waits where the worker that held the result has died since: the shard is being done again.
        if (error := future.exception()) is None:
            num_done += 1
            yield shard, future.result()
        elif isinstance(error, KilledWorker):
            log.warning(
                "shard %s: its worker died; its clips are tried one by one at the end", shard.shard_id
            )
            suspects.append(shard)
            if not num_done and len(suspects) in (1, _DOUBTS):
                _check_that_clips_fit(client, suspects, job)
        else:
            with _abort_on_write_error(job.out):
                raise error
        future.release()
        # A cluster behind a scheduler may have grown.
        for _ in range(max(1, _num_threads(client) - len(shard_of))):
            submit_next()
    for shard in suspects:
        rows = [_annotate_alone(client, clip, job) for clip in shard.clips]
        with _abort_on_write_error(job.out):
            write_part(job.folder, rows, shard_id=shard.shard_id, recipe_hash=job.recipe_hash)
        yield shard, [_outcome(row) for row in rows]


_GONE = "{out}: the dask scheduler is gone; finished parts are kept, the same command continues the run"


class _Patience:
    """Waits for the next shard in small steps, and sees what could make that wait endless: a scheduler that has gone,
    or nobody who works."""

    def __init__(self, client: Client, out: Path) -> None:
        self._client, self._out = client, out
        self._asked = self._seen = time.monotonic()
        self._said = 0.0
        self.step_s = _FIRST_STEP_S

    def wait(self) -> None:
        """A moment.

        Raises:
            RunAborted: the scheduler is gone.
        """
        time.sleep(self.step_s)
        self.step_s = min(0.05, 1.5 * self.step_s)  # short clips must not wait for this
        now = time.monotonic()
        if now - self._asked < _ASK_EVERY_S:
            return
        self._asked = now
        try:
            threads: Any = self._client.nthreads()
            num_workers = len(threads)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise RunAborted(_GONE.format(out=self._out)) from error
        if self._client.status in ("closed", "closing", "connecting"):
            if now - self._seen > _GONE_AFTER_S:
                raise RunAborted(_GONE.format(out=self._out))
            return
        if num_workers:
            self._seen = now
        elif now - self._seen > FIRST_LINE_S and now - self._said > LINE_INTERVAL_S:
            self._said = now
            log.warning(
                "%s: no worker is connected; start some with: dask worker ADDRESS OF THE SCHEDULER (waiting)",
                self._out,
            )


_FIRST_STEP_S = 0.001
_ASK_EVERY_S = 2.0
_GONE_AFTER_S = 30.0
_DOUBTS = 3
"""Shards that ended their workers before any was done: then it is asked whether any clip fits."""


def _check_that_clips_fit(client: Client, suspects: list[Shard], job: Job) -> None:
    """Where every worker ends before a clip is done, find out whether one could be.

    Raises:
        RunAborted: workers end before they begin, or with a single clip.
    """
    from distributed import KilledWorker

    why = ""
    probe: Any = client.submit(_load_everything, key=f"{job.folder.name}-probe-{len(suspects)}", pure=False)
    try:
        probe.result()
    except KilledWorker:
        why = "workers end before they begin a clip"
    finally:
        probe.release()
    if not why and len(suspects) >= _DOUBTS:
        rows = [_annotate_alone(client, shard.clips[0], job) for shard in suspects]
        if all(row.reasons == ("worker_died",) for row in rows):
            why = f"each of {len(rows)} clips ended its worker, also with nothing else running"
    if why:
        limit = job.config.executor.memory_per_worker_gib
        room = "its share of the machine's memory" if limit is None else f"{limit:g} GiB"
        raise RunAborted(
            f"{job.out}: {why}; a worker may take {room}: raise annotate.executor.memory_per_worker_gib, or use fewer"
            " workers (--workers)"
        )


def _load_everything() -> int:
    """What every clip needs of memory: the modules."""
    import av
    import cv2
    import torch

    return len({av, cv2, torch})


def _annotate_alone(client: Client, clip: ClipRef, job: Job) -> Row:
    from distributed import KilledWorker

    future: Any = client.submit(
        annotate_one, clip, job, key=f"{job.folder.name}-clip-{clip.clip_id}", pure=False
    )
    try:
        return future.result()
    except KilledWorker:
        attempts = job.config.executor.attempts
        return failure_row(
            clip,
            job,
            "worker_died",
            f"ended {attempts} worker(s) with nothing else running (out of memory, or a crash in a decoder)",
        )
    finally:
        future.release()


def _num_threads(client: Client) -> int:
    try:
        threads: Any = client.nthreads()
    except (OSError, RuntimeError, TimeoutError) as error:
        raise RunAborted(
            f"the dask scheduler is gone ({_first_line(error)}); the same command continues"
        ) from error
    return max(1, sum(threads.values()))


@contextmanager
def _abort_on_write_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunAborted(f"{out}: {error.strerror or error}") from error


@contextmanager
def _cluster(
    plan: Plan, config: AnnotateConfig, workers: int | None, scheduler: str | None
) -> Iterator[Client]:
    if scheduler is not None:
        with cluster_behind(scheduler) as client:
            yield client
        return
    from distributed.system import MEMORY_LIMIT

    cores = num_cores()
    # From the whole source, not from what is left: threads change sums in their last bits, and a continued run must
    # give the same rows as one that was not interrupted.
    # Few workers a GPU: each loads the networks once, and its threads keep several shards under way.
    number = (
        workers
        or WORKERS_PER_GPU * num_gpus(config.geometry)
        or default_workers(plan.num_shards_in_all, cores, MEMORY_LIMIT)
    )
    in_flight, _ = shares(config)
    limit = (
        int(config.executor.memory_per_worker_gib * 2**30)
        if config.executor.memory_per_worker_gib
        else MEMORY_LIMIT // number
    )
    with local_cluster(
        min(number, plan.num_shards),
        threads_per_worker=in_flight,
        compute_threads=max(1, cores // (number * in_flight)),
        memory_bytes=limit,
        attempts=config.executor.attempts,
    ) as client:
        yield client


@contextmanager
def cluster_behind(scheduler: str) -> Iterator[Client]:
    """Workers behind a running scheduler.

    Raises:
        RunAborted: nobody answers there.
    """
    import dask.config
    from distributed import Client

    try:
        with dask.config.set({"distributed.comm.timeouts.connect": "10s"}):
            client = Client(scheduler, timeout="10s", set_as_default=False)
    # A name that does not resolve, a port where nobody or something else listens, an address that is none.
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise RunAborted(
            f"no dask scheduler answers at {scheduler} ({type(error).__name__}: {_first_line(error)}): look whether it"
            " runs and is reached from here; its address is what `dask scheduler` prints, tcp://HOST:8786"
        ) from error
    try:
        with signals_as_interrupt():
            yield client
    finally:
        client.close(timeout=2)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no answer").splitlines()[0]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def local_cluster(
    workers: int, *, threads_per_worker: int, compute_threads: int, memory_bytes: int | None, attempts: int
) -> Iterator[Client]:
    """Worker processes on this machine; SIGTERM is taken as Ctrl-C while they work.

    Args:
        workers: processes.
        threads_per_worker: tasks that each has under way.
        compute_threads: of the numerical libraries in each task.
        memory_bytes: at which a worker is ended; None: never.
        attempts: how often a task may end its worker.
    """
    import dask.config
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": attempts - 1,
        # Shards are our own unit of memory: spilling or pausing would only hide a leak, a limit ends it.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        # A fork would inherit locks and decoder threads.
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.worker.daemon": False,  # a daemon may have no solver processes
        "distributed.comm.timeouts.connect": "30s",
    }
    environment = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(compute_threads)
    )
    with dask.config.set({**settings, "distributed.nanny.pre-spawn-environ": environment}):
        security = run_credentials()
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
        client = Client(cluster, set_as_default=False)
        try:
            with signals_as_interrupt():
                yield client
        finally:
            # Workers in the middle of a clip must not be waited for: their shards are simply not done.
            client.close(timeout=2)
            cluster.close(timeout=5)


def default_workers(num_shards: int, cores: int, memory_bytes: int) -> int:
    """One worker a core, at least 3 GiB of memory for each, no more than shards."""
    return max(1, min(cores, memory_bytes // (3 * 2**30), num_shards))


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """SIGTERM (batch systems send it before the end) is taken as Ctrl-C; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def open_output(out: Path, *, recipe_hash: str) -> Iterator[None]:
    """Prepare a dataset folder and hold it for this process; ends with the process, however that ends.

    Raises:
        ValueError: another run holds the folder, or it belongs to another recipe.
    """
    with hold_folder(out):
        prepare_output(out, recipe_hash=recipe_hash)
        taken = take_in_dead_runs(out, recipe_hash=recipe_hash)
        if taken:
            log.warning("%s: %d clips that an ended run had done are taken in", out, taken)
        yield


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Make a folder and hold it for this process; ends with the process, however that ends.

    Raises:
        ValueError: another run holds the folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"{out}: cannot be made or opened ({error.strerror}); choose another --out"
        ) from None
    try:
        try:
            # On the folder itself: no lock file that somebody has to clean up.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another run is writing here; wait for it, or end it") from None
        except OSError as error:
            log.warning("%s: cannot be locked (%s); do not start two runs on it", out, error.strerror)
        yield
    finally:
        os.close(descriptor)


# --- progress ----------------------------------------------------------------------------------


def progress_line(plan: Plan, tally: Tally, elapsed_s: float) -> str:
    """One line: done, rejected by reason, failed, clips/h, time left."""
    to_do = plan.num_clips - plan.num_clips_done
    share = 100 * tally.done / to_do if to_do else 100
    line = f"{tally.done}/{to_do} clips ({share:.0f} %): {tally}"
    if tally.done and elapsed_s > 0:
        per_hour = 3600 * tally.done / elapsed_s
        left_s = round((to_do - tally.done) / per_hour * 3600)
        line += f"; {per_hour:.0f} clips/h, {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
    return line


class _Standing:
    """Where the clips stand that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, str] = {}

    def hear(self, clip_id: str, text: str) -> None:
        with self._lock:
            self._of.pop(clip_id, None)
            if text:
                self._of[clip_id] = text  # the last that was heard of comes last

    def __str__(self) -> str:
        with self._lock:
            shown = list(self._of.items())[-MAX_SHOWN:]
            more = len(self._of) - len(shown)
        parts = [f"{clip_id}: {text}" for clip_id, text in shown]
        return ", ".join(parts + ([f"{more} more"] if more else []))


@contextmanager
def _progress(plan: Plan, tally: Tally, show: bool) -> Iterator[tuple[Callable[[], None], Listener]]:
    """What shows that clips are done, and what hears where the others stand."""
    start = time.monotonic()
    if not show:
        yield lambda: None, lambda _clip_id, _text: None
        return
    standing = _Standing()

    def line() -> str:
        now = str(standing)
        return progress_line(plan, tally, time.monotonic() - start) + (f"; now {now}" if now else "")

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        with Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task(progress_line(plan, tally, 0.0), total=plan.num_clips - plan.num_clips_done)

            def update() -> None:
                bar.update(task, completed=tally.done, description=line())

            def hear(clip_id: str, text: str) -> None:
                standing.hear(clip_id, text)
                update()

            yield update, hear
        return
    stop = threading.Event()

    def lines() -> None:
        wait_s = min(FIRST_LINE_S, LINE_INTERVAL_S)
        while not stop.wait(wait_s):
            sys.stderr.write(line() + "\n")
            sys.stderr.flush()
            wait_s = LINE_INTERVAL_S

    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield lambda: None, standing.hear
    finally:
        stop.set()
        thread.join()
        sys.stderr.write(progress_line(plan, tally, time.monotonic() - start) + "\n")
        sys.stderr.flush()
