"""What the machinery costs by itself: many clips whose annotation is a stub, faults among them, workers killed.

    python benchmarks/scale.py --clips 20000 200000 --workers 4
    python benchmarks/scale.py --clips 213000 --workers 8 --stub-ms 10 --kill-every-s 20 --slow 0.001
    python benchmarks/scale.py --clips 2000 20000 --alone

For each number of clips, a run from an empty folder, and on what it wrote: the same command with nothing to do, the
same after the last parts were lost, `--dry-run`, `inspect`, `validate`, the index from nothing, `compact`, and some of
that once more on what it leaves. Memory is that of the process that holds client and
scheduler, read every second while it runs; the table shows it after a tenth of the clips, at the half and at the end.

Lines that begin with `theodolite` are commands as users run them, each a process of its own that begins with nothing
loaded; `annotate` reads an index (CSV) of the same clips, and has nothing to do. What takes less than seconds is done
three times: the middle one counts, and the note says the least and the most.

Of the clips, `--failing` fail (one half raises, the other has no readable video), `--slow` take one to three seconds.
Every `--kill-every-s` seconds, more or less, a worker process gets SIGKILL. After the run every clip must have exactly
one row, with the verdict that it was made for.

Where a call may take only so long: `--keep FOLDER --only run --stop-after-s 560`, which stops as Ctrl-C does, and then
`--keep FOLDER --only after`, which first does what was left. Each line of the table is there as soon as it is known.

With `--alone` one process does it all and writes the rows itself, without a stub and without flushing to disk, and the
table shows its processor time, which a machine that others use changes little.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import cloudpickle
import psutil
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run.cluster import signals_as_interrupt
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.tally import Tally
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.sources.read import read_clips
from theodolite.dataset.commit import take_in_dead_runs
from theodolite.dataset.compact import compact
from theodolite.dataset.index import refresh_index, refreshed_tally, rows_by_folder
from theodolite.dataset.processes import num_cores
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.store import INDEX_FOLDER, has_parts, list_parts, write_part
from theodolite.dataset.validate import validate_dataset
from theodolite.recipes.loader import load_recipe, recipe_hash

RECIPE = "rgbd"
LINE_EVERY_S = 20.0


def kind_of(number: int, *, slow: float, failing: float) -> str:
    """What becomes of a clip: `raises`, `unreadable`, `slow` or `plain`."""
    share = number * 2654435761 % 2**32 / 2**32  # as if by chance, and the same in every process
    if share < failing:
        return "raises" if number % 2 else "unreadable"
    return "slow" if share >= 1 - slow else "plain"


def slow_s(number: int) -> float:
    return 1.0 + number % 21 / 10


def stub(clip, config, *, mode, recipe_hash, stub_s: float, slow: float, failing: float):
    """Some milliseconds, and a row."""
    import time

    number = int(clip.clip_id[1:])
    kind = kind_of(number, slow=slow, failing=failing)
    time.sleep(slow_s(number) if kind == "slow" else stub_s)
    if kind == "raises":
        raise ZeroDivisionError("a fault of the benchmark")
    job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
    return failure_row(
        clip, job, "unreadable_video" if kind == "unreadable" else "too_short", "by the benchmark"
    )


def source(count: int) -> Callable[[], Iterator[ClipRef]]:
    def clips() -> Iterator[ClipRef]:
        for number in range(count):
            yield ClipRef(
                clip_id=f"c{number:09d}",
                source=RECIPE,
                original_id=f"{number}",
                media_kind="video",
                media_path=Path(f"{number}.mp4"),
                data_licence="CC0-1.0",
            )

    return clips


class Killer:
    """Ends worker processes of this process at random, as the system does where memory runs out.

    Args:
        every_s: about how often; 0: never.
        works: whether the run has begun: a worker that ends while the cluster starts ends the run.
    """

    def __init__(self, every_s: float, works: Callable[[], bool]) -> None:
        self.num_killed = 0
        self._every_s, self._works = every_s, works
        self._random = random.Random(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def _kill(self) -> None:
        while not self._stop.wait(self._every_s * self._random.uniform(0.5, 1.5)):
            if self._works() and (workers := worker_processes()):
                with suppress(psutil.NoSuchProcess):
                    self._random.choice(workers).kill()
                    self.num_killed += 1

    def __enter__(self) -> Killer:
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._every_s:
            self._thread.join()


def worker_processes() -> list[psutil.Process]:
    """Processes that annotate: forked from the server that this process has started for them."""
    own = psutil.Process().pid
    return [process for process in psutil.Process().children(recursive=True) if process.ppid() != own]


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
                workers = memory_of(process.children(recursive=True))
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


def memory_of(processes: list[psutil.Process]) -> float:
    """Together, in MB."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss / 1e6
    return total


def overrides(out: Path, args: argparse.Namespace) -> list[str]:
    """What of the recipe is the benchmark's own."""
    return [f"source.index={index_of(out)}", f"output.clips_per_shard={args.clips_per_part}"]


def index_of(out: Path) -> Path:
    """The index of a dataset's clips."""
    return out.with_suffix(".csv")


def write_source(out: Path, count: int) -> None:
    """Write it: the clips of `source`."""
    lines = (f"{clip.clip_id},{clip.media_path},{clip.data_licence}\n" for clip in source(count)())
    index_of(out).write_text("clip_id,media_path,data_licence\n" + "".join(lines))


def hash_of(out: Path, args: argparse.Namespace) -> str:
    return recipe_hash(load_recipe(RECIPE, overrides(out, args)))


def command(*words: str | Path) -> str:
    """Standard output of a command, which may end with the exit code that says that clips have failed."""
    start = [sys.executable, "-m", "theodolite", *map(str, words)]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def annotate(out: Path, count: int, args: argparse.Namespace) -> Tally:
    """As `theodolite annotate` does, around the stub."""
    recipe = hash_of(out, args)
    with open_output(out, recipe_hash=recipe):
        plan = plan_run(source(count), out, clips_per_shard=args.clips_per_part)
        work = partial(stub, stub_s=args.stub_ms / 1e3, slow=args.slow, failing=args.failing)
        job = Job(out=out, config=AnnotateConfig(), mode="given_depth", recipe_hash=recipe, annotate=work)
        run_plan(plan, job, workers=args.workers, show_progress=False)
        tally = refreshed_tally(out, processes=Clock(args.alone).processes)
    assert tally.done == count, f"{tally.done} rows of {count} clips"
    return tally


def whole_run(out: Path, count: int, args: argparse.Namespace) -> str:
    """A run from an empty folder, or the rest of one."""
    kinds = [kind_of(n, slow=args.slow, failing=args.failing) for n in range(count)]
    stub_s = sum(slow_s(n) if kind == "slow" else args.stub_ms / 1e3 for n, kind in enumerate(kinds))
    before = num_done(out, args)
    start = time.monotonic()
    stopped = threading.Timer(max(args.deadline - start, 0.1), lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped.daemon = True
    stopped.start()
    killer = Killer(args.kill_every_s, partial(has_parts, out))
    try:
        with signals_as_interrupt(), killer:
            tally = annotate(out, count, args)
    except KeyboardInterrupt:
        took = time.monotonic() - start
        args.cut = True
        done = num_done(out, args)
        rate = f"{(done - before) / took:.0f} a second; {killer.num_killed} workers killed"
        return f"STOPPED with {done} of {count} clips, {rate}"
    finally:
        stopped.cancel()
    took = time.monotonic() - start
    text = f"{tally.num_failed} failed; {killer.num_killed} workers killed"
    if before:
        return f"the rest, from {before} clips on; {text}"
    overhead = 1e3 * (took * args.workers - stub_s) / count
    return f"{overhead:.2f} ms of a worker a clip beside the stub; {count / took:.0f} clips a second; {text}"


def num_done(out: Path, args: argparse.Namespace) -> int:
    """About how many clips have rows."""
    return len(list_parts(out)) * args.clips_per_part


def check_rows(out: Path, count: int, args: argparse.Namespace) -> str:
    """Make sure that every clip has one row, with the verdict that it was made for or `worker_died`; says how many."""
    rows = [0] * count
    wrong: list[str] = []
    found: Counter[str] = Counter()
    wanted = {"raises": "internal_error", "unreadable": "unreadable_video"}
    for table in rows_by_folder(out, ["clip_id", "reasons"]):
        for clip_id, (reason,) in zip(*(column.to_pylist() for column in table.columns), strict=True):
            number = int(clip_id[1:])
            rows[number] += 1
            found[reason] += 1
            kind = kind_of(number, slow=args.slow, failing=args.failing)
            due = {"worker_died", wanted.get(kind, "too_short")} | ({"too_short"} if args.alone else set())
            if reason not in due:
                wrong.append(f"{clip_id}: {reason}")
    assert rows == [1] * count, (
        f"{rows.count(0)} clips without a row, {count - rows.count(0) - rows.count(1)} with several"
    )
    assert not wrong, wrong[:3]
    return ", ".join(f"{reason} {number}" for reason, number in sorted(found.items()))


def write_alone(out: Path, count: int, args: argparse.Namespace) -> str:
    """The rows of a run, by this process alone."""
    recipe = hash_of(out, args)
    with open_output(out, recipe_hash=recipe):
        plan = plan_run(source(count), out, clips_per_shard=args.clips_per_part)
        job = Job(out=out, config=AnnotateConfig(), mode="given_depth", recipe_hash=recipe)
        for shard in plan.shards():
            rows = [failure_row(clip, job, "too_short", "by the benchmark") for clip in shard.clips]
            write_part(out, rows, shard_id=shard.shard_id, recipe_hash=recipe)
    return f"{plan.num_shards} parts"


class Clock:
    """What `timed` reads, and how many processes share the work."""

    def __init__(self, alone: bool) -> None:
        self.now = processor_time if alone else time.monotonic
        self.processes = 1 if alone else num_cores()


def processor_time() -> float:
    """Seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(
    clock: Clock,
    name: str,
    work: Callable[[], str],
    num_done: Callable[[], int] | None = None,
    *,
    times: int = 1,
) -> None:
    """A row of the table, as soon as it is known: the middle one of several times."""
    took: list[float] = []
    note = ""
    with Memory(num_done) as memory:
        for _ in range(times):
            start = clock.now()
            note = work()
            took.append(clock.now() - start)
    if times > 1:
        note += f"; {min(took):.3f} to {max(took):.3f}"
    print(
        f"| {name} | {sorted(took)[times // 2]:.{2 if times == 1 else 3}f} | {memory} | {note} |", flush=True
    )


def lose_parts(out: Path, count: int) -> str:
    parts = list_parts(out)[-count:]
    for part in parts:
        part.unlink()
    return f"{len(parts)} parts"


def validated(out: Path, processes: int) -> str:
    num_rows, violations = validate_dataset(out, processes=processes)
    assert not violations, violations[:3]
    return f"{num_rows} rows"


def measure_run(out: Path, count: int, args: argparse.Namespace) -> None:
    """A run from an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    write_source(out, count)
    clock = Clock(args.alone)
    timed(
        clock,
        "rows" if args.alone else "run",
        partial(write_alone if args.alone else whole_run, out, count, args),
        lambda: num_done(out, args),
    )
    if args.alone:
        timed(clock, "index from nothing", lambda: str(refresh_index(out)))
    if not args.cut:
        timed(clock, "every clip has one row", partial(check_rows, out, count, args))


def measure_looks(out: Path, count: int, args: argparse.Namespace, name: str = "") -> None:
    """What looks at a dataset and changes nothing, within this process."""
    quick = partial(timed, Clock(args.alone), times=3)

    def planned() -> str:
        plan = plan_run(source(count), out, clips_per_shard=args.clips_per_part, whole=True)
        return f"{plan.num_clips_done} done, {plan.num_shards} shards left"

    quick(
        f"same command, {name or 'nothing to do'}", lambda: f"{annotate(out, count, args).num_failed} failed"
    )
    quick(f"dry run{name and ', '}{name}", planned)
    quick(f"inspect{name and ', '}{name}", lambda: f"{len(inspect_text(out))} characters")


def measure_commands(out: Path, count: int, args: argparse.Namespace) -> None:
    """The same as users do it."""
    quick = partial(timed, Clock(args.alone), times=3)
    set_to = [word for override in overrides(out, args) for word in ("--set", override)]

    def nothing_to_do() -> str:
        told = command("annotate", RECIPE, *set_to, "--out", out)
        assert f"{count} clips:" in told, told
        return told.split("(")[0].split(": ", 1)[1]

    def dry_run() -> str:
        return command("annotate", RECIPE, *set_to, "--out", out, "--dry-run").split(";")[0]

    def read_index() -> str:
        return f"{sum(1 for _ in read_clips(load_recipe(RECIPE, overrides(out, args)).source))} clips"

    quick("the index of clips alone", read_index)
    quick("theodolite annotate, nothing to do", nothing_to_do)
    quick("theodolite annotate --dry-run", dry_run)
    quick("theodolite inspect", lambda: f"{len(command('inspect', out))} characters")
    quick("theodolite --version", lambda: command("--version").strip())


def measure_after(out: Path, count: int, args: argparse.Namespace) -> None:
    """What else is done with what a run has left."""
    clock = Clock(args.alone)

    def gathered() -> str:
        done = compact(out, processes=clock.processes)
        assert done.num_clips == count
        return f"{done.num_before} parts became {done.num_after}"

    def from_nothing() -> str:
        shutil.rmtree(out / INDEX_FOLDER)
        refresh_index(out, processes=clock.processes)
        return f"{sum(p.stat().st_size for p in (out / INDEX_FOLDER).iterdir()) / 1e6:.0f} MB"

    timed(clock, "the source alone", lambda: str(sum(1 for _ in source(count)())), times=3)
    measure_looks(out, count, args)
    measure_commands(out, count, args)
    timed(clock, "validate", lambda: validated(out, clock.processes))
    lose_parts(out, 20)
    timed(clock, "same command, 20 parts lost", lambda: f"{annotate(out, count, args).num_failed} failed")
    timed(clock, "index from nothing", from_nothing)
    timed(clock, "compact", gathered)
    timed(clock, "every clip has one row", partial(check_rows, out, count, args))
    measure_looks(out, count, args, "compacted")
    timed(
        clock, "theodolite inspect, compacted", lambda: f"{len(command('inspect', out))} characters", times=3
    )
    timed(clock, "validate, compacted", lambda: validated(out, clock.processes))
    timed(clock, "index from nothing, compacted", from_nothing)
    assert take_in_dead_runs(out, recipe_hash=hash_of(out, args)) == 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clips-per-part", type=int, default=8)
    parser.add_argument("--stub-ms", type=float, default=5.0, help="What a clip takes.")
    parser.add_argument("--failing", type=float, default=0.01, help="Share of clips that fail.")
    parser.add_argument("--slow", type=float, default=0.0, help="Share of clips that take 1 to 3 s.")
    parser.add_argument(
        "--kill-every-s", type=float, default=0.0, help="Time between kills of a worker; 0: none."
    )
    parser.add_argument("--alone", action="store_true", help="No run, one process, processor time.")
    parser.add_argument("--keep", type=Path, help="Folder for the datasets; default a temporary one.")
    parser.add_argument("--only", choices=["run", "after"], help="One half, for a time limit; needs --keep.")
    parser.add_argument("--stop-after-s", type=float, default=math.inf, help="Stop the run then, cleanly.")
    args = parser.parse_args()
    if args.only and not args.keep:
        parser.error("--only needs --keep FOLDER, where the other half finds the datasets")
    args.deadline = min(time.monotonic() + args.stop_after_s, threading.TIMEOUT_MAX)
    args.cut = False
    return args


def main() -> None:
    args = parse()
    if args.alone:
        args.workers = 0
        os.fsync = lambda descriptor: None
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a program
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{num_cores()} cores, {args.workers} workers, {args.clips_per_part} clips a part", flush=True)
        print(f"stub {args.stub_ms:g} ms, {args.failing:g} fail, {args.slow:g} take 1 to 3 s", flush=True)
        for count in args.clips:
            print(f"\n{count} clips\n\n| what | s | memory, MB | |\n| --- | --- | --- | --- |", flush=True)
            out = folder / f"clips-{count}"
            if args.only != "after":
                measure_run(out, count, args)
            elif num_done(out, args) < count:
                timed(Clock(args.alone), "the rest of the run", partial(whole_run, out, count, args))
            if args.cut:
                break
            if args.only != "run":
                measure_after(out, count, args)


if __name__ == "__main__":
    main()
