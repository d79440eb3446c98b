"""What the machinery costs by itself: many clips; their annotation is a stub that takes 5 ms, one in a hundred fails.

    python benchmarks/scale.py --clips 20000 200000 --workers 4
    python benchmarks/scale.py --clips 2000 20000 --alone

For each number of clips, a run from an empty folder, and on what it wrote: the same command with nothing to do, the
same after the last parts were lost, `--dry-run`, `inspect`, `validate`, the index from nothing, `compact`, and some of
that once more on what it leaves. Memory is that of the process that holds client and
scheduler, read every second while it runs; the table shows it after a tenth of the clips, at the half and at the end.

With `--alone` one process does it all and writes the rows itself, without a stub and without flushing to disk, and the
table shows its processor time, which a machine that others use changes little.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import psutil
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.tally import Tally, read_tally
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.commit import take_in_dead_runs
from theodolite.dataset.compact import compact
from theodolite.dataset.index import refresh_index
from theodolite.dataset.processes import num_cores
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.store import INDEX_FOLDER, list_parts, write_part
from theodolite.dataset.validate import validate_dataset

HASH = "0123456789abcdef"
STUB_S = 0.005
LINE_EVERY_S = 20.0


def stub(clip, config, *, mode, recipe_hash):
    """Five milliseconds, and a row: of two hundred clips one raises, one has no readable video."""
    import time

    time.sleep(STUB_S)
    number = int(clip.clip_id[1:])
    if number % 200 == 50:
        raise ZeroDivisionError("a fault of the benchmark")
    job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
    return failure_row(
        clip, job, "unreadable_video" if number % 200 == 199 else "too_short", "by the benchmark"
    )


def source(count: int) -> Callable[[], Iterator[ClipRef]]:
    def clips() -> Iterator[ClipRef]:
        for number in range(count):
            yield ClipRef(
                clip_id=f"c{number:09d}",
                source="bench",
                original_id=f"{number}",
                media_kind="video",
                media_path=Path(f"{number}.mp4"),
                data_licence="CC0-1.0",
            )

    return clips


class Memory:
    """Resident memory of this process, in MB, second by second.

    Args:
        num_done: how many clips are done, for a line every 20 s; None: no lines.
    """

    def __init__(self, num_done: Callable[[], int] | None = None) -> None:
        self.values: list[float] = []
        self._num_done = num_done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        process = psutil.Process()
        start, told, before = time.monotonic(), time.monotonic(), 0
        while not self._stop.wait(1.0):
            self.values.append(process.memory_info().rss / 1e6)
            now = time.monotonic()
            if self._num_done is not None and now - told >= LINE_EVERY_S:
                count = self._num_done()
                rate = (count - before) / (now - told)
                workers = sum(child.memory_info().rss for child in process.children(recursive=True)) / 1e6
                text = f"{count} clips, {rate:.0f} a second, {self.values[-1]:.0f} MB here, {workers:.0f} MB workers"
                print(f"  after {now - start:.0f} s: {text}", file=sys.stderr, flush=True)
                told, before = now, count

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __str__(self) -> str:
        if not self.values:
            return "-"
        at = [
            self.values[min(int(share * len(self.values)), len(self.values) - 1)] for share in (0.1, 0.5, 1.0)
        ]
        return ", ".join(f"{value:.0f}" for value in at)


def annotate(out: Path, count: int, args: argparse.Namespace) -> Tally:
    """As `theodolite annotate` does, around the stub."""
    with open_output(out, recipe_hash=HASH):
        plan = plan_run(source(count), out, clips_per_shard=args.clips_per_part)
        job = Job(out=out, config=AnnotateConfig(), mode="given_depth", recipe_hash=HASH, annotate=stub)
        run_plan(plan, job, workers=args.workers, show_progress=False)
        refresh_index(out, processes=Clock(args.alone).processes)
        tally = read_tally(out)
    assert tally.done == count, f"{tally.done} rows of {count} clips"
    return tally


def write_alone(out: Path, count: int, args: argparse.Namespace) -> str:
    """The rows of a run, by this process alone."""
    with open_output(out, recipe_hash=HASH):
        plan = plan_run(source(count), out, clips_per_shard=args.clips_per_part)
        job = Job(out=out, config=AnnotateConfig(), mode="given_depth", recipe_hash=HASH)
        for shard in plan.shards():
            rows = [failure_row(clip, job, "too_short", "by the benchmark") for clip in shard.clips]
            write_part(out, rows, shard_id=shard.shard_id, recipe_hash=HASH)
    return f"{plan.num_shards} parts"


class Clock:
    """What `timed` reads, and how many processes share the work."""

    def __init__(self, alone: bool) -> None:
        self.now = time.process_time if alone else time.monotonic
        self.processes = 1 if alone else num_cores()


def timed(
    clock: Clock, name: str, work: Callable[[], str], num_done: Callable[[], int] | None = None
) -> None:
    """A row of the table, as soon as it is known."""
    start = clock.now()
    with Memory(num_done) as memory:
        note = work()
    print(f"| {name} | {clock.now() - start:.2f} | {memory} | {note} |", flush=True)


def lose_parts(out: Path, count: int) -> str:
    parts = list_parts(out)[-count:]
    for part in parts:
        part.unlink()
    return f"{len(parts)} parts"


def validated(out: Path, processes: int) -> str:
    num_rows, violations = validate_dataset(out, processes=processes)
    assert not violations, violations[:3]
    return f"{num_rows} rows"


def measure(count: int, folder: Path, args: argparse.Namespace) -> None:
    out = folder / f"clips-{count}"
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock(args.alone)

    def whole_run() -> str:
        start = time.monotonic()
        tally = annotate(out, count, args)
        ideal = count * STUB_S / args.workers
        overhead = 1e3 * (time.monotonic() - start - ideal) * args.workers / count
        return f"{overhead:.2f} ms of a worker a clip beside the stub; {tally.num_failed} failed"

    def as_text() -> str:
        return f"{len(inspect_text(out))} characters"

    def gathered() -> str:
        done = compact(out, processes=clock.processes)
        assert done.num_clips == count
        return f"{done.num_before} parts became {done.num_after}"

    def planned() -> str:
        return str(
            plan_run(source(count), out, clips_per_shard=args.clips_per_part, whole=True).num_clips_done
        )

    def from_nothing() -> str:
        shutil.rmtree(out / INDEX_FOLDER)
        refresh_index(out, processes=clock.processes)
        return f"{sum(p.stat().st_size for p in (out / INDEX_FOLDER).iterdir()) / 1e6:.0f} MB"

    timed(
        clock,
        "rows" if args.alone else "run",
        (lambda: write_alone(out, count, args)) if args.alone else whole_run,
        lambda: len(list_parts(out)) * args.clips_per_part,
    )
    if args.alone:
        timed(clock, "index from nothing", lambda: str(refresh_index(out)))
    timed(clock, "the source alone", lambda: str(sum(1 for _ in source(count)())))
    timed(clock, "same command, nothing to do", lambda: str(annotate(out, count, args).num_failed))
    lose_parts(out, 20)
    timed(clock, "same command, 20 parts lost", lambda: str(annotate(out, count, args).num_failed))
    timed(clock, "dry run", planned)
    timed(clock, "inspect", as_text)
    timed(clock, "validate", lambda: validated(out, clock.processes))
    timed(clock, "index from nothing", from_nothing)
    timed(clock, "compact", gathered)
    timed(clock, "inspect, compacted", as_text)
    timed(clock, "validate, compacted", lambda: validated(out, clock.processes))
    timed(clock, "same command, compacted", lambda: str(annotate(out, count, args).num_failed))
    timed(clock, "dry run, compacted", planned)
    timed(clock, "index from nothing, compacted", from_nothing)
    assert take_in_dead_runs(out, recipe_hash=HASH) == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clips-per-part", type=int, default=8)
    parser.add_argument("--alone", action="store_true", help="No run, one process, processor time.")
    parser.add_argument("--out", type=Path, help="Folder for the datasets; default a temporary one.")
    args = parser.parse_args()
    if args.alone:
        args.workers = 0
        os.fsync = lambda descriptor: None
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a program
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{num_cores()} cores, {args.workers} workers, {args.clips_per_part} clips a part", flush=True)
        for count in args.clips:
            print(f"\n{count} clips\n\n| what | s | memory, MB | |\n| --- | --- | --- | --- |", flush=True)
            measure(count, folder, args)


if __name__ == "__main__":
    main()
