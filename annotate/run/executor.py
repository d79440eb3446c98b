"""Many clips over many workers: shards in, part files out, nothing lost and nothing done twice.

A *clip* is one row. A *shard* is a fixed run of consecutive clips, the unit of work and of commit: a worker annotates
its clips one after the other and writes one part file by rename. A *worker* is a process of dask.distributed, on this
machine or behind a scheduler address. A *task* is what a worker is sent: one shard, or several where they take a
fraction of a second. Only as many tasks are in flight as keep the worker threads busy, so neither the task graph nor
memory grows with the number of clips.

What is done is what part files exist. A run that is killed in any way is continued by the same command: clips that have
a row are left out. The index is kept while parts are written, a few hundred parts at a time by a task of their own.

A worker that dies gives its task back, once per allowed attempt; after that the clips of its shards are tried one by
one with the cluster to themselves, and only a clip that kills its worker alone gets the reason `worker_died`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...dataset.commit import ClipHasRow, Commits, hold_dataset, own_run, take_in_dead_runs
from ...dataset.rows import Row
from ...dataset.store import part_path, prepare_output
from ..reporting import Listener, listening
from ..sources.clip import ClipRef
from .cluster import (
    Patience,
    RunAborted,
    claim_open_files,
    cluster_for,
    num_threads,
    raise_if_interrupted,
)
from .indexing import IndexKeeper
from .plan import Plan, Shard
from .progress import progress
from .tally import Outcome, Tally
from .watchdog import watching
from .worker import (
    TOPIC,
    Job,
    annotate_one,
    annotate_shard,
    annotate_shards,
    failure_row,
    found_outcomes,
    write_shard,
)

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


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
    with progress(plan, tally, show_progress) as (advance, hear):
        if not plan.num_shards:  # as far as is known, which is then to the end
            return tally
        with own_run(job.out) as incoming:
            commits = Commits(job.out, plan.have)
            job = replace(job, incoming=incoming)
            watch = _Streak(job.out, max_failed)
            keeper = IndexKeeper(job.out, incoming.name)
            for shard, outcomes in _done_shards(plan, job, _Where(workers, scheduler, hear, keeper)):
                if keeper.see(_commit(shard, job, commits)):
                    commits.flush()
                tally.add(outcomes)
                advance()
                raise_if_interrupted()
                watch.see(outcomes)
            commits.flush()
    return tally


class _Where(NamedTuple):
    """Where shards are done, and who hears of it."""

    workers: int | None
    scheduler: str | None
    hear: Listener
    keeper: IndexKeeper


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


def _shards(plan: Plan, out: Path) -> Iterator[Shard]:
    """The shards of a plan. A source that ends in an error after work has begun ends the run."""
    try:
        yield from plan.shards()
    except ValueError as error:
        raise RunAborted(f"{out}: {error}; finished parts are kept, the same command goes on") from error


def _done_shards(plan: Plan, job: Job, where: _Where) -> Iterator[tuple[Shard, list[Outcome]]]:
    """Shards as they are done, each with its part in the run's folder."""
    if where.workers == 0 and where.scheduler is None:
        claim_open_files(0)
        with listening(where.hear), watching() as watchdog:
            job = replace(job, watchdog=watchdog)
            for shard in _shards(plan, job.out):
                with abort_on_write_error(job.out):
                    outcomes = annotate_shard(shard, job)
                yield shard, outcomes
        return
    with cluster_for(plan, job.config, where.workers, where.scheduler) as client:
        client.subscribe_topic(TOPIC, lambda event: where.hear(*event[1]))
        where.keeper.client = client
        yield from _run_on(client, plan, job)


def _commit(shard: Shard, job: Job, commits: Commits) -> Path:
    """Put a done shard's part where it counts; returns where that is.

    Raises:
        RunAborted: it is not there, cannot be moved, or holds a clip that has a row.
    """
    part = part_path(job.folder, source=shard.clips[0].source, shard_id=shard.shard_id)
    if not part.is_file():
        raise RunAborted(
            f"{job.out}: a worker says that it wrote {part.name}, and it is not there: all workers must see --out under"
            " this path (a shared file system)"
        )
    with abort_on_write_error(job.out):
        try:
            return commits.take(part, (clip.clip_id for clip in shard.clips))
        except ClipHasRow as error:
            raise RunAborted(f"{error}; the same command goes on without it") from None


def _run_on(client: Client, plan: Plan, job: Job) -> Iterator[tuple[Shard, list[Outcome]]]:
    from distributed import KilledWorker, as_completed

    # A scheduler that outlives its clients may still hold tasks of another run, with other folders to write to.
    run = job.folder.name
    num_done = 0
    shards = _shards(plan, job.out)
    suspects: list[Shard] = []
    shards_of: dict[Any, tuple[Shard, ...]] = {}
    completed: Any = as_completed(loop=client.loop, raise_errors=False)
    room = _Room(client)

    def submit_next() -> None:
        while len(shards_of) < room.num_tasks() and (some := tuple(islice(shards, room.shards_a_task()))):
            key = f"{run}-{some[0].shard_id}"
            future = client.submit(annotate_shards, some, job, key=key, pure=False)
            shards_of[future.key] = some
            completed.add(future)

    submit_next()
    patience = Patience(client, job.out)
    while shards_of:
        future = patience.next_of(completed, submit_next)
        done = shards_of.pop(future.key)
        # This waits where the worker that held the result has died since: the task is being done again.
        if (error := future.exception()) is None:
            num_done += 1
            room.see(len(done))
            yield from zip(done, future.result(), strict=True)
        elif isinstance(error, KilledWorker):
            log.warning(
                "shard %s: its worker died; its clips are tried one by one at the end",
                ", ".join(shard.shard_id for shard in done),
            )
            suspects += done
            if not num_done and len(suspects) in (1, _DOUBTS):
                _check_that_clips_fit(client, suspects, job)
        else:
            with abort_on_write_error(job.out):
                raise error
        future.release()
        submit_next()
    for shard in suspects:
        if (outcomes := found_outcomes(shard, job)) is None:
            rows = [_annotate_alone(client, clip, job) for clip in shard.clips]
            with abort_on_write_error(job.out):
                outcomes = write_shard(shard, rows, job)
        yield shard, outcomes


_DOUBTS = 3
"""Shards that ended their workers before any was done: then it is asked whether any clip fits."""


class _Room:
    """How much is under way: a task for each thread of the cluster, which may grow. Where shards take a fraction of a
    second, a task has several, for it costs ten milliseconds by itself; and there is one more for each thread, so that
    none waits while the last one is put where it counts."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._threads, self._asked = 1, -math.inf
        self._num_done, self._start = -1, 0.0

    def see(self, num_shards: int) -> None:
        """Hear that a task is done."""
        if self._num_done < 0:  # the first one had to wait for workers
            self._num_done, self._start = 0, time.monotonic()
        else:
            self._num_done += num_shards

    def num_tasks(self) -> int:
        now = time.monotonic()
        if now - self._asked > _ASK_ROOM_EVERY_S:
            self._threads, self._asked = num_threads(self._client), now
        return self._threads * (2 if self._shard_s() < 1 else 1)

    def shards_a_task(self) -> int:
        return max(1, min(_MOST_SHARDS, int(_TASK_S / self._shard_s())))

    def _shard_s(self) -> float:
        """About how long a shard takes; infinite as long as that is not known."""
        if self._num_done <= _SOME:
            return math.inf
        return (time.monotonic() - self._start) * self._threads / self._num_done


_ASK_ROOM_EVERY_S = 1.0
_SOME = 20
"""Shards of a run from which it is told how long they take."""
_TASK_S = 1.0
_MOST_SHARDS = 16


def _check_that_clips_fit(client: Client, suspects: list[Shard], job: Job) -> None:
    """Where every worker ends before a clip is done, find out whether one could be.

    Raises:
        RunAborted: workers end before they begin, or with a single clip.
    """
    from distributed import KilledWorker

    why = ""
    probe: Any = client.submit(_load_everything, key=f"{job.folder.name}-probe-{len(suspects)}", pure=False)
    try:
        _result_of(probe, client, job)
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


def _result_of(future: Any, client: Client, job: Job) -> Any:
    """The result of a task, waited for as shards are: not for ever where nobody is left who could work on it."""
    patience = Patience(client, job.out)
    while not future.done():
        patience.wait()
    return future.result()


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
        return _result_of(future, client, job)
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


@contextmanager
def abort_on_write_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunAborted(f"{out}: {error.strerror or error}") from error


@contextmanager
def open_output(out: Path, *, recipe_hash: str) -> Iterator[None]:
    """Prepare a dataset folder and hold it for this process; ends with the process, however that ends.

    Raises:
        ValueError: another run holds the folder, or it belongs to another recipe.
    """
    with hold_dataset(out):
        prepare_output(out, recipe_hash=recipe_hash)
        taken = take_in_dead_runs(out, recipe_hash=recipe_hash)
        if taken:
            log.warning("%s: %d clips that an ended run had done are taken in", out, taken)
        yield
