"""What a worker does: the clips of a shard one after the other, a row for each whatever happens, and a part file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...dataset.commit import check_run
from ...dataset.reasons import ReasonCode
from ...dataset.rows import Row
from ...dataset.storage.paths import StorePath
from ...dataset.store import encode_part, part_path, shard_digest, write_part
from ...dataset.words import Mode
from ..networks.device import be_worker, claim_worker_number
from ..reporting import listen, say
from ..sfm.processes import share_threads
from ..sources.clip import ClipRef, identity
from .plan import Shard
from .tally import Outcome, outcome_of, part_outcomes
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ..config import AnnotateConfig


class AnnotateClip(Protocol):
    """What does the work: `pipeline.annotate_clip`, or a stand-in with its signature in tests."""

    def __call__(self, clip: ClipRef, config: AnnotateConfig, *, mode: Mode, recipe_hash: str) -> Row: ...


def whole_pipeline(clip: ClipRef, config: AnnotateConfig, *, mode: Mode, recipe_hash: str) -> Row:
    """`pipeline.annotate_clip`, imported where clips are annotated: torch costs a command and a worker two seconds."""
    from ..pipeline import annotate_clip

    return annotate_clip(clip, config, mode=mode, recipe_hash=recipe_hash)


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
        watchdog: of this process, where clips are annotated in that of the command.
    """

    out: Path
    config: AnnotateConfig
    mode: Mode
    recipe_hash: str
    annotate: AnnotateClip = whole_pipeline
    incoming: Path | None = None
    watchdog: Watchdog | None = None

    @property
    def folder(self) -> Path:
        """Where parts are written."""
        return self.incoming or self.out


def annotate_shard(shard: Shard, job: Job) -> list[Outcome]:
    """Annotate the clips of a shard and write its part file; every clip gets a row.

    Raises:
        OSError: the part cannot be written (disk full).
        Fenced: the run is over, and another one has begun; nothing was written.
    """
    if (found := found_outcomes(shard, job)) is not None:
        return found
    begin_as_worker()
    share_threads(job.config)
    rows = []
    for clip in shard.clips:
        _check_run(job)  # nobody waits for what a run does that is over
        rows.append(annotate_one(clip, job, before=(shard, rows)))
    _check_run(job)
    return write_shard(shard, rows, job)


def write_shard(shard: Shard, rows: Sequence[Row], job: Job) -> list[Outcome]:
    """Write the part of a shard; says how its clips ended. In an object store, a part that another attempt at the shard
    has written stays, and it is that one's clips that are told of.

    Raises:
        OSError: the part cannot be written.
    """
    try:
        write_part(job.folder, rows, shard_id=shard.shard_id, recipe_hash=job.recipe_hash)
    except FileExistsError:
        return found_outcomes(shard, job) or []
    return [outcome_of(row) for row in rows]


def annotate_shards(shards: Sequence[Shard], job: Job) -> list[list[Outcome]]:
    """As `annotate_shard`, of several one after the other."""
    return [annotate_shard(shard, job) for shard in shards]


def found_outcomes(shard: Shard, job: Job) -> list[Outcome] | None:
    """How the clips of a shard ended whose part is there, because a worker died after its rename and before its
    report; None if it is not."""
    path = part_path(job.folder, source=shard.clips[0].source, shard_id=shard.shard_id)
    return list(part_outcomes(path)) if path.is_file() else None


def _check_run(job: Job) -> None:
    if job.incoming is not None:
        check_run(job.incoming)


def _dask_worker() -> Any:
    """The dask worker whose task this is; None elsewhere."""
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_worker()
    except ValueError:
        return None


TOPIC = "theodolite-clips"


def begin_as_worker() -> None:
    """In a dask worker: the networks learn which of this machine's workers they run in, so that each GPU gets as many,
    and where clips stand is told to the scheduler. Elsewhere everything happens in this process."""
    if (worker := _dask_worker()) is None:
        return
    be_worker(claim_worker_number())
    said: set[str] = set()

    def tell(clip_id: str, text: str) -> None:
        if text:
            said.add(clip_id)
        elif clip_id not in said:  # nobody heard that it began
            return
        else:
            said.discard(clip_id)
        worker.log_event(TOPIC, (clip_id, text))

    listen(tell)


def annotate_one(clip: ClipRef, job: Job, *, before: tuple[Shard, list[Row]] | None = None) -> Row:
    """Row of one clip; an exception becomes a row with the reason `internal_error` or `out_of_memory`.

    Args:
        before: the clip's shard and the rows of it that are done, which are kept where a clip can only be ended with
            this process.
    """
    _quiet_decoders()
    start = time.perf_counter()
    reason: ReasonCode = "internal_error"
    detail, trace = "ended without a row", None
    limit_s = job.config.executor.clip_timeout_s
    late = None if job.incoming is None else job.incoming / f"late-{clip.clip_id}"
    if late is not None and late.exists():
        return failure_row(
            clip, job, "timed_out", f"was not done after {limit_s:g} s, and its worker was ended"
        )
    try:
        try:
            with (
                _watched(clip, job, before),
                _ended_after(limit_s, late, lambda: _give_up(clip, job, before)),
            ):
                return job.annotate(clip, job.config, mode=job.mode, recipe_hash=job.recipe_hash)
        finally:
            say(clip.clip_id, "")
    except ClipLate:
        reason, detail = "timed_out", f"was not done after {limit_s:g} s"
    except MemoryError as error:
        reason, detail, trace = "out_of_memory", str(error) or "memory ran out", traceback.format_exc()
    # The one place where anything may be caught: a shard must survive its worst clip, and the row keeps the traceback.
    except Exception as error:  # noqa: BLE001
        reason, detail = "internal_error", f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
    return failure_row(clip, job, reason, detail, error=trace, wall_s=time.perf_counter() - start)


@contextmanager
def _ended_after(limit_s: float, late: Path | None, give_up: Callable[[], None]) -> Iterator[None]:
    """End this worker process if what is inside takes longer, leaving a note for the one that gets the shard next.

    Nothing else ends a thread that waits in a system call or in a decoder. In the command's own process (no workers)
    what is inside is interrupted instead, as soon as Python has the word again; where it has not for half a minute
    more, `give_up` is called, which ends the command. Time in which the process was stopped does not count.

    Raises:
        ClipLate: in the command's own process, it has taken longer.
    """
    if late is None:
        yield
        return
    if multiprocessing.parent_process() is None and _dask_worker() is None:
        with _interrupted_after(limit_s), _timer(limit_s + _GRACE_S, give_up):
            yield
        return

    def end() -> None:
        with suppress(OSError):
            late.touch()
        os._exit(1)

    with _timer(limit_s, end):
        yield


_GRACE_S = 30.0


@contextmanager
def _timer(after_s: float, act: Callable[[], None]) -> Iterator[None]:
    """Act, in a thread of its own, unless what is inside ends before."""
    over = threading.Event()

    def wait() -> None:
        left, last = after_s, time.monotonic()
        while left > 0:
            if over.wait(min(left, _TICK_S)):
                return
            now = time.monotonic()
            gone = now - last
            left -= gone if gone < 2 * _TICK_S else _TICK_S  # more goes by where this process is stopped
            last = now
        act()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield
    finally:
        over.set()
        waiting.join()  # what it does, it has done


_TICK_S = 1.0


def _give_up(clip: ClipRef, job: Job, before: tuple[Shard, list[Row]] | None) -> None:
    """End the command because of a clip that nothing else ends. It gets its row, as those of its shard before it do:
    as a part in the run's folder, which the next command takes in."""
    rows, shard_id, said = _left_behind(clip, job, before)
    with suppress(OSError):
        write_part(job.folder, rows, shard_id=shard_id, recipe_hash=job.recipe_hash)
    sys.stderr.write(said)
    sys.stderr.flush()
    end_process()


def _left_behind(
    clip: ClipRef, job: Job, before: tuple[Shard, list[Row]] | None
) -> tuple[list[Row], str, str]:
    """Rows of the part that is left where a clip ends the command, its shard id, and what is said."""
    detail = f"was not done after {job.config.executor.clip_timeout_s:g} s and could not be interrupted"
    shard, rows = before or (None, [])
    rows = [*rows, failure_row(clip, job, "timed_out", detail)]
    number = "late" if shard is None else shard.shard_id.split("-")[0]
    shard_id = f"{number}-{shard_digest(row.clip_id for row in rows)}"
    said = (
        f"error: {job.out}: clip {clip.clip_id} {detail} (a decoder that does not end, a disk that does not answer), so"
        " this command ends. The clip is recorded as timed_out, and the same command goes on with the others; with"
        " workers (--workers 1 or more) such a clip ends its worker alone\n"
    )
    return rows, shard_id, said


@contextmanager
def _watched(clip: ClipRef, job: Job, before: tuple[Shard, list[Row]] | None) -> Iterator[None]:
    """Where everything happens in the command's own process, have it ended from outside if nothing within can: what
    holds Python's lock keeps every thread from doing so."""
    if job.watchdog is None:
        yield
        return
    rows, shard_id, said = _left_behind(clip, job, before)
    part: Path | None = part_path(job.folder, source=clip.source, shard_id=shard_id)
    content = encode_part(rows, shard_id=shard_id, recipe_hash=job.recipe_hash)
    if isinstance(job.folder, StorePath):  # which the watchdog does not speak to
        part, content = None, memoryview(b"")
        said = (
            f"error: {job.out}: clip {clip.clip_id} holds Python's lock and could not be interrupted, so this command"
            " ends. The clip is not recorded: with workers (--workers 1 or more) it ends its worker alone\n"
        )
    after_s = job.config.executor.clip_timeout_s + 2 * _GRACE_S
    with job.watchdog.expecting(after_s, part=part, content=content, say=said):
        yield


def end_process() -> None:
    """Without waiting for any thread."""
    os._exit(1)


class ClipLate(BaseException):
    """A clip takes longer than one may; nothing on its way up catches it."""


@contextmanager
def _interrupted_after(limit_s: float) -> Iterator[None]:
    """Raise `ClipLate` in what is inside after so long; the main thread alone can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_kill"):
        yield
        return

    def late(signum: int, frame: object) -> None:
        if not over:
            raise ClipLate

    over = False
    me = threading.get_ident()
    before = signal.signal(signal.SIGALRM, late)
    try:
        with _timer(limit_s, lambda: None if over else signal.pthread_kill(me, signal.SIGALRM)):
            yield
    finally:
        over = True
        signal.signal(signal.SIGALRM, before)


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
        **identity(clip, mode=job.mode, recipe_hash=job.recipe_hash),
        stand_in=False,
        annotate_wall_s=wall_s,
        verdict="rejected",
        reasons=(reason,),
        reason_details=(f"clip {clip.clip_id}: {detail}",),
        error=error,
        confidence_absent="no_cameras",
    )


def _quiet_decoders() -> None:
    """What a damaged video makes FFmpeg say is in the row already; on stderr it would bury the progress."""
    import av.logging

    av.logging.set_level(av.logging.PANIC)
