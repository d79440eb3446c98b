"""The executor: every clip gets exactly one row, whatever dies, and the same command goes on where it stopped."""

import contextlib
import errno
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from theodolite.annotate import reporting
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run import cluster, executor, progress, worker
from theodolite.annotate.run import plan as plan_module
from theodolite.annotate.run.cluster import RunAborted, default_workers, local_cluster
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.tally import Outcome, Tally, read_outcomes
from theodolite.annotate.run.worker import Job, annotate_shard
from theodolite.dataset.commit import Fenced
from theodolite.dataset.store import list_parts, prepare_output

from ...typed import wrong
from .fake import HASH, clips_named, fake_annotate, ids, job_in, make_shards, numbered, run

# Workers cannot import test modules: what they run from here travels with the task.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow(about_s=6)
def test_every_ending_is_a_row(tmp_path):
    """Workers are killed for real; the innocent clips of the same shard keep their own verdicts."""
    names = ["c0", "c1", "kill", "c3", "raise", "c5", "memory", "c7"]
    with open_output(tmp_path, recipe_hash=HASH):
        plan = plan_run(clips_named(*names), tmp_path, clips_per_shard=4)
        tally = run_plan(plan, job_in(tmp_path, attempts=1), workers=1, show_progress=False)
    outcomes = {o.clip_id: o for o in read_outcomes(tmp_path)}
    assert sorted(outcomes) == sorted(names)
    assert {name: o.reasons for name, o in outcomes.items()} == {
        "c0": ("too_short",),
        "c1": ("too_short",),
        "kill": ("worker_died",),
        "c3": ("too_short",),
        "raise": ("internal_error",),
        "c5": ("too_short",),
        "memory": ("out_of_memory",),
        "c7": ("too_short",),
    }
    assert sorted(o.clip_id for o in tally.failed) == ["kill", "memory", "raise"]
    assert tally.rejected == {"too_short": 5}
    assert "ZeroDivisionError: a mistake of ours" in outcomes["raise"].detail


def test_no_scheduler_there(tmp_path, monkeypatch):
    monkeypatch.setattr("distributed.Client.__init__", _refuse)
    with pytest.raises(RunAborted, match="no dask scheduler answers at tcp://localhost:1"):
        run(numbered(1), tmp_path, workers=None, scheduler="tcp://localhost:1")


def _refuse(*args, **kwargs):
    raise OSError("Timed out trying to connect")


def test_traceback_is_in_the_row(tmp_path):
    run(clips_named("raise"), tmp_path)
    from theodolite.dataset.reading import open_dataset

    row = open_dataset(tmp_path).row("raise")
    assert row.verdict == "rejected"
    assert row.error is not None
    assert "fake_annotate" in row.error
    assert "ZeroDivisionError" in row.error


def test_resume_does_only_what_is_left(tmp_path):
    run(numbered(10), tmp_path)
    whole = {p.name: p.read_bytes() for p in list_parts(tmp_path)}
    assert len(whole) == 4
    part = list_parts(tmp_path)[2]
    kept = part.stat().st_mtime_ns
    list_parts(tmp_path)[1].unlink()
    plan = plan_run(numbered(10), tmp_path, clips_per_shard=3)
    assert (plan.num_clips, plan.num_clips_done, plan.num_shards) == (10, 7, 1)
    assert run(numbered(10), tmp_path).done == 3
    assert ids(tmp_path) == [f"c{i:03d}" for i in range(10)]
    assert {p.name for p in list_parts(tmp_path)} == set(whole)
    assert part.stat().st_mtime_ns == kept
    assert run(numbered(10), tmp_path).done == 0


@pytest.mark.parametrize("first_limit", [1, 4, 7])
def test_a_limit_and_a_grown_source_leave_no_gap_and_no_double(tmp_path, first_limit):
    assert run(numbered(10), tmp_path, limit=first_limit).done == first_limit
    assert run(numbered(10), tmp_path).done == 10 - first_limit
    # New clips sort before, between and behind the old ones.
    grown = clips_named("a", *(f"c{i:03d}" for i in range(10)), "c0035", "z")
    assert run(grown, tmp_path).done == 3
    assert sorted(ids(tmp_path)) == sorted(["a", "c0035", "z", *(f"c{i:03d}" for i in range(10))])
    assert run(grown, tmp_path).done == 0


def test_shards_tell_their_clips():
    shards = list(make_shards(numbered(7)(), 3))
    assert [len(s.clips) for s in shards] == [3, 3, 1]
    assert [s.shard_id for s in shards] == [s.shard_id for s in make_shards(numbered(7)(), 3)]
    assert {s.shard_id for s in make_shards(numbered(6)(), 3)} == {s.shard_id for s in shards[:2]}
    assert not {s.shard_id for s in shards} & {s.shard_id for s in make_shards(numbered(7)(), 2)}


def test_a_clip_listed_twice(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="clip b: the source lists it twice"):
        plan_run(clips_named("a", "b", "c", "b"), tmp_path, clips_per_shard=2)
    monkeypatch.setattr(plan_module, "_AHEAD", 2)
    monkeypatch.setattr(plan_module, "_ASKED_AT_ONCE", 2)
    with pytest.raises(
        RunAborted, match=r"clip b: the source lists it twice, now as \S+; .*; finished parts are kept"
    ):
        run(clips_named("a", "b", "c", "b"), tmp_path, clips_per_shard=2)
    assert sorted(ids(tmp_path)) == ["a", "b"]


def test_a_source_without_end_begins_at_once(tmp_path, monkeypatch):
    """Nothing waits for a list of all clips, and nothing keeps one."""
    read = 0

    def endless():
        nonlocal read
        for number in itertools.count():
            read = number
            yield from clips_named(f"c{number}")()

    monkeypatch.setattr(plan_module, "_AHEAD", 100)
    plan = plan_run(endless, tmp_path, clips_per_shard=8)
    assert read < 1000
    assert not plan.listed
    assert "of more than" in progress.progress_line(plan, Tally(), 1.0)
    shards = plan.shards()
    assert [next(shards).shard_id[:6] for _ in range(200)] == [f"{i:06d}" for i in range(200)]
    assert read < 3000


def test_what_is_done_is_left_out_and_the_rest_joined(tmp_path):
    run(clips_named("c001", "c004", "c005", "c006"), tmp_path, clips_per_shard=4)
    plan = plan_run(numbered(13), tmp_path, clips_per_shard=4)
    got = [(s.shard_id[:6], [c.clip_id for c in s.clips]) for s in plan.shards()]
    assert got == [
        ("000000", ["c000", "c002", "c003", "c007"]),
        ("000002", ["c008", "c009", "c010", "c011"]),
        ("000003", ["c012"]),
    ]
    assert (plan.num_clips, plan.num_clips_done, plan.num_shards, plan.listed) == (13, 4, 3, True)


def test_a_part_that_was_written_before_its_worker_died_is_not_done_again(tmp_path):
    (shard,) = make_shards(clips_named("a", "b")(), 2)
    first = annotate_shard(shard, job_in(tmp_path))
    (part,) = list_parts(tmp_path)
    before = part.read_bytes()
    assert annotate_shard(shard, job_in(tmp_path)) == first
    assert part.read_bytes() == before


def test_a_full_disk_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space left to write 1.0 MB", "part")

    monkeypatch.setattr(worker, "write_part", full)
    with pytest.raises(RunAborted, match="no space left to write"):
        run(numbered(4), tmp_path)
    monkeypatch.undo()
    assert run(numbered(4), tmp_path).done == 4


def test_one_run_at_a_time(tmp_path):
    with (
        open_output(tmp_path, recipe_hash=HASH),
        pytest.raises(ValueError, match="another run is writing here"),
        open_output(tmp_path, recipe_hash=HASH),
    ):
        pass
    with open_output(tmp_path, recipe_hash=HASH):
        pass


def test_another_recipe_is_refused(tmp_path):
    run(numbered(1), tmp_path)
    with pytest.raises(ValueError, match="another --out"), open_output(tmp_path, recipe_hash="f" * 16):
        pass


def test_progress_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.05)

    def slow(clip, config, **kwargs):
        time.sleep(0.06)
        return fake_annotate(clip, config, **kwargs)

    job = Job(out=tmp_path, config=AnnotateConfig(), mode="estimate", recipe_hash=HASH, annotate=slow)
    with open_output(tmp_path, recipe_hash=HASH):
        plan = plan_run(clips_named("c0", "raise", "c2", "c3"), tmp_path, clips_per_shard=1)
        run_plan(plan, job, workers=0)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) >= 3
    assert lines[-1].startswith("4/4 clips (100 %): 0 accepted, 3 rejected (too_short 3), 1 failed; ")
    assert "clips/h, 0:00:00 left" in lines[-1]


def frame_by_frame(clip, config, **kwargs):
    """Takes three seconds and tells of its frames, as the pipeline does."""
    from theodolite.annotate import reporting

    reporting.MIN_INTERVAL_S = 0.1
    for _ in reporting.counted(clip.clip_id, "tracks", range(30), 30, "frames"):
        time.sleep(0.1)
    return fake_annotate(clip, config, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_progress_within_a_clip(tmp_path, monkeypatch, capsys, recwarn, workers):
    """... of a worker, too; and that a port is taken is no warning: nobody wants its dashboard."""
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.2)
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.2)
    job = Job(
        out=tmp_path, config=AnnotateConfig(), mode="estimate", recipe_hash=HASH, annotate=frame_by_frame
    )
    with socket.socket() as taken, open_output(tmp_path, recipe_hash=HASH):
        with contextlib.suppress(OSError):  # then somebody else has it, which is as good
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        plan = plan_run(clips_named("office"), tmp_path, clips_per_shard=1)
        run_plan(plan, job, workers=workers)
    lines = capsys.readouterr().err.splitlines()
    counts = [int(m[1]) for line in lines if (m := re.search(r"now office: tracks (\d+)/30 frames$", line))]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 3, lines
    assert "now" not in lines[-1]
    assert not [str(w.message) for w in recwarn if "8787" in str(w.message)]


def test_a_listener_that_is_gone_costs_no_clip():
    heard = []

    def gone(clip_id, text):
        heard.append(text)
        raise RuntimeError("closed")

    with reporting.listening(gone):
        reporting.say("c", "tracks")
        reporting.say("c", "bundle")
    assert heard == ["tracks"]


def test_tally_tells_judged_from_failed():
    tally = Tally()
    tally.add(
        [
            Outcome(clip_id="a", verdict="accepted", reasons=(), detail=""),
            Outcome(clip_id="b", verdict="rejected", reasons=("shot_cut",), detail=""),
            Outcome(clip_id="c", verdict="rejected", reasons=("no_parallax", "pose_jump"), detail=""),
            Outcome(clip_id="d", verdict="rejected", reasons=("unreadable_video",), detail=""),
            Outcome(clip_id="e", verdict="rejected", reasons=("some_new_reason",), detail=""),
        ]
    )
    assert str(tally) == "1 accepted, 2 rejected (shot_cut 1, no_parallax 1), 2 failed"


@pytest.mark.parametrize(
    ("num_shards", "cores", "memory_gib", "expected"),
    [(100, 8, 64, 8), (2, 8, 64, 2), (100, 8, 10, 3), (100, 2, 1, 1)],
)
def test_default_workers(num_shards, cores, memory_gib, expected):
    assert default_workers(num_shards, cores, memory_gib * 2**30) == expected


@pytest.mark.slow
def test_nobody_else_reaches_a_local_cluster():
    """Any user of a machine may connect to its loopback ports; without this run's key nothing comes of it."""
    from distributed import Client
    from distributed.security import Security
    from theodolite.annotate.run.credentials import run_credentials

    with local_cluster(1, threads_per_worker=1, compute_threads=1, memory_bytes=None, attempts=1) as client:
        assert client.submit(os.getpid).result(timeout=60) != os.getpid()
        addresses = [client.scheduler_info()["address"], *client.scheduler_info()["workers"]]
        assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
        for address in addresses:
            for security in (None, run_credentials(), Security(require_encryption=False)):
                plain = address if security and security.require_encryption else address.replace("tls", "tcp")
                with pytest.raises((OSError, TimeoutError, ValueError)):
                    Client(plain, timeout="3s", security=security, set_as_default=False).close()


@pytest.mark.parametrize(
    ("said", "threads"),
    [
        (["1", "", ""], 1),
        (["", "2", "9"], 2),
        (["64", "", ""], 3),
        (["2,1", "", ""], 2),
        (["0", "²", "many"], 3),
    ],
)
def test_workers_have_no_more_threads_than_the_user_says(monkeypatch, said, threads):
    monkeypatch.setattr(cluster, "_SAID", said)
    assert cluster._allowed_threads(3) == threads


@pytest.mark.parametrize("change", ["grown", "shrunk", "reordered", "same"])
def test_workers_that_outlive_their_command_double_nothing(tmp_path, change):
    """Behind a scheduler they do: their command is killed, the next one begins with another source, and they go on."""
    old = [f"c{i:02d}" for i in range(6)]
    new = {"grown": ["a", *old, "z"], "shrunk": old[1:5], "reordered": old[::-1], "same": old}[change]
    started, go_on = threading.Event(), threading.Event()

    def slow(clip, config, **kwargs):
        if clip.clip_id == "c02":
            started.set()
            assert go_on.wait(60)
        return fake_annotate(clip, config, **kwargs)

    folder = tmp_path / ".tmp-run-killed"
    prepare_output(tmp_path, recipe_hash=HASH)
    folder.mkdir()
    first, second, *_ = make_shards(clips_named(*old)(), 2)
    job = replace(job_in(tmp_path), annotate=slow, incoming=folder)
    annotate_shard(first, job)  # done, and its command was killed before it heard of it
    fenced = []

    def outlive():
        try:
            annotate_shard(second, job)
        except Fenced as error:
            fenced.append(error)

    worker = threading.Thread(target=outlive)
    worker.start()
    assert started.wait(60)
    run(clips_named(*new), tmp_path, clips_per_shard=2)
    go_on.set()
    worker.join(60)
    assert len(fenced) == 1
    assert sorted(ids(tmp_path)) == sorted({*new, "c00", "c01"})  # what was done before counts
    run(clips_named(*new), tmp_path, clips_per_shard=2)
    assert sorted(ids(tmp_path)) == sorted({*new, "c00", "c01"})
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.gpu
def test_workers_reach_the_gpu():
    """What workers are forked from has not touched it: a process that has cannot be forked."""

    def one() -> float:
        import torch

        return float(torch.ones(1, device="cuda"))

    with local_cluster(2, threads_per_worker=1, compute_threads=1, memory_bytes=None, attempts=1) as client:
        values: Any = client.run(one)
        assert list(values.values()) == [1.0, 1.0]


def test_workers_that_see_another_path_are_told(tmp_path, monkeypatch):
    def elsewhere(shard, job):
        return []

    monkeypatch.setattr(executor, "annotate_shard", elsewhere)
    with pytest.raises(RunAborted, match="must see --out under this path"):
        run(numbered(2), tmp_path)


def stuck(beats: Path, clip, config, **kwargs):
    """Never returns from the second clip; a line of `beats` a moment says how long its process has been at it."""
    if clip.clip_id == "c1":
        begun = time.monotonic()

        def beat() -> None:
            while True:
                with beats.open("a") as note:
                    note.write(f"{time.monotonic() - begun:.2f}\n")
                time.sleep(0.05)

        threading.Thread(target=beat, daemon=True).start()
        time.sleep(600)
    return fake_annotate(clip, config, **kwargs)


@pytest.mark.slow(about_s=6)
def test_a_clip_that_never_returns_gets_its_reason_and_the_run_goes_on(tmp_path):
    beats, out = tmp_path / "beats", tmp_path / "out"
    with open_output(out, recipe_hash=HASH):
        plan = plan_run(clips_named("c0", "c1", "c2"), out, clips_per_shard=3)
        job = replace(job_in(out, clip_timeout_s=3.0), annotate=partial(stuck, beats))
        run_plan(plan, job, workers=1, show_progress=False)
    found = {o.clip_id: o.reasons for o in read_outcomes(out)}
    assert found == {"c0": ("too_short",), "c1": ("timed_out",), "c2": ("too_short",)}
    assert not list(out.glob(".tmp-*"))
    # What the clip took, whatever a busy machine takes to start workers; it was begun once.
    took_s = [float(line) for line in beats.read_text().splitlines()[:-1]]
    assert took_s == sorted(took_s)
    assert 1.0 < took_s[-1] < 20  # of 3 s; its last second may go unwritten where others have the cores


def test_without_workers_a_clip_has_a_limit_too(tmp_path):
    def endless(clip, config, **kwargs):
        while clip.clip_id == "c1":
            with contextlib.suppress(Exception):  # as a decoder's loop that goes on whatever happens
                time.sleep(0.01)
        return fake_annotate(clip, config, **kwargs)

    before = signal.getsignal(signal.SIGALRM)
    with open_output(tmp_path, recipe_hash=HASH):
        plan = plan_run(clips_named("c0", "c1", "c2"), tmp_path, clips_per_shard=3)
        job = replace(job_in(tmp_path, clip_timeout_s=0.2), annotate=endless)
        run_plan(plan, job, workers=0, show_progress=False)
    assert [o.reasons for o in read_outcomes(tmp_path)] == [("too_short",), ("timed_out",), ("too_short",)]
    assert signal.getsignal(signal.SIGALRM) == before


def test_without_workers_a_clip_that_cannot_be_interrupted_ends_the_command(tmp_path, monkeypatch, capfd):
    """... in bounded time, with rows for it and those before it, which the next command takes in."""

    def in_c(clip, config, **kwargs):
        if clip.clip_id == "c1":
            while not ended.is_set():
                with contextlib.suppress(BaseException):  # as a decoder that does not come back
                    time.sleep(0.01)
        return fake_annotate(clip, config, **kwargs)

    ended = threading.Event()
    monkeypatch.setattr(worker, "_GRACE_S", 0.2)
    monkeypatch.setattr(worker, "end_process", ended.set)
    shard, *_ = make_shards(clips_named("c0", "c1", "c2")(), 3)
    prepare_output(tmp_path, recipe_hash=HASH)
    folder = tmp_path / ".tmp-run-stuck"
    folder.mkdir()
    job = replace(job_in(tmp_path, clip_timeout_s=1.0), annotate=in_c, incoming=folder)
    annotate_shard(shard, job)
    assert "clip c1 was not done after 1 s and could not be interrupted" in capfd.readouterr().err
    for part in list_parts(folder):  # what had not been written when the process ended
        if shard.shard_id in part.name:
            part.unlink()
    monkeypatch.undo()
    assert run(clips_named("c0", "c1", "c2"), tmp_path).done == 1
    assert {o.clip_id: o.reasons for o in read_outcomes(tmp_path)} == {
        "c0": ("too_short",),
        "c1": ("timed_out",),
        "c2": ("too_short",),
    }


def test_too_few_open_files_are_said_or_claimed(tmp_path, monkeypatch):
    limits = [32, 32]
    monkeypatch.setattr(cluster.resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(cluster.resource, "setrlimit", lambda kind, new: limits.__setitem__(slice(None), new))
    with pytest.raises(RunAborted, match=r"with 0 workers needs 64 open files.*may have 32.*ulimit -n 64"):
        run(numbered(1), tmp_path)
    limits[1] = 4096
    cluster.claim_open_files(4)
    assert limits == [128, 4096]
    assert run(numbered(1), tmp_path).done == 1


def freezes(note: Path, clip, config, **kwargs):
    """The first worker that gets the clip stops as if by SIGSTOP."""
    if clip.clip_id == "c1" and not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return fake_annotate(clip, config, **kwargs)


@pytest.mark.slow(about_s=12)
def test_a_frozen_worker_gives_its_shard_back(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "FROZEN_AFTER_S", 5.0)  # more than a worker of a busy machine is silent
    note, out = tmp_path / "note", tmp_path / "out"
    with open_output(out, recipe_hash=HASH):
        plan = plan_run(clips_named("c0", "c1", "c2"), out, clips_per_shard=1)
        run_plan(plan, replace(job_in(out), annotate=partial(freezes, note)), workers=1, show_progress=False)
    assert note.exists()
    assert {o.clip_id: o.reasons for o in read_outcomes(out)} == dict.fromkeys(
        ["c0", "c1", "c2"], ("too_short",)
    )


@pytest.mark.slow(about_s=6)
def test_a_worker_that_dies_among_short_shards_costs_one_clip(tmp_path, monkeypatch):
    """A task has several shards then: those that were done count, the others are done. Its worker is started anew
    however long that takes, for dask's own patience is set to none here."""
    import dask.config

    monkeypatch.setattr(executor, "_TASK_S", 1000.0)
    names = [f"c{i:03d}" for i in range(60)]
    names[50] = "kill"
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}),
        open_output(tmp_path, recipe_hash=HASH),
    ):
        plan = plan_run(clips_named(*names), tmp_path, clips_per_shard=1)
        tally = run_plan(plan, job_in(tmp_path, attempts=1), workers=1, show_progress=False)
    assert tally.done == 60
    assert sorted(ids(tmp_path)) == sorted(names)
    assert [o.clip_id for o in tally.failed] == ["kill"]


def test_short_shards_share_a_task(monkeypatch):
    clock = itertools.count(0.0, 0.01)
    monkeypatch.setattr(executor.time, "monotonic", lambda: next(clock))
    room = executor._Room(wrong(SimpleNamespace(nthreads=lambda: {"a": 1, "b": 1})))
    assert (room.num_tasks(), room.shards_a_task()) == (2, 1)
    for _ in range(100):  # ten milliseconds each
        room.see(1)
    assert (room.num_tasks(), room.shards_a_task()) == (4, executor._MOST_SHARDS)
    for _ in range(4000):
        next(clock)  # one takes half a second, then
    assert (room.num_tasks(), room.shards_a_task()) == (4, 1)
    for _ in range(30_000):
        next(clock)
    assert (room.num_tasks(), room.shards_a_task()) == (2, 1)


@pytest.mark.slow(about_s=6)
def test_a_limit_that_no_clip_fits_is_said(tmp_path):
    """Every worker was ended, clip after clip, without a word."""

    def run_with(*, annotate, **executor):
        with open_output(tmp_path, recipe_hash=HASH):
            plan = plan_run(numbered(40), tmp_path, clips_per_shard=2)
            job = replace(job_in(tmp_path, **executor), annotate=annotate)
            run_plan(plan, job, workers=1, show_progress=False)

    with pytest.raises(
        RunAborted, match=r"may take 0\.2 GiB: raise annotate\.executor\.memory_per_worker_gib"
    ):
        run_with(memory_per_worker_gib=0.2, annotate=fake_annotate)
    with pytest.raises(RunAborted, match=r"each of 3 clips ended its worker.*may take 0\.5 GiB: raise"):
        run_with(memory_per_worker_gib=0.5, attempts=1, annotate=takes_much)
    assert not list_parts(tmp_path)


def takes_much(clip, config, **kwargs):
    taken = bytearray(2**29)
    taken[::4096] = b"x" * (2**29 // 4096)
    time.sleep(60)
    return fake_annotate(clip, config, **kwargs)


@pytest.mark.slow
def test_a_first_worker_that_ends_before_it_begins_is_said(monkeypatch):
    """Out of memory, or a library that crashes as it is imported: its pipe just ends."""
    monkeypatch.setattr(
        cluster, "_tell_memory", os.abort
    )  # which takes no argument: an error, and exit code 1
    with pytest.raises(
        RunAborted, match=r"the first one ended before it began a clip, exit code 1\); the same"
    ):
        cluster._check_room(1 << 30)


def test_workers_that_cannot_be_started_are_said(tmp_path, monkeypatch):
    """One that is killed while the cluster starts ends dask's start with an error that says nothing of that."""
    import distributed

    def fails(**_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(cluster, "_check_room", lambda memory_bytes: None)
    monkeypatch.setattr(distributed, "LocalCluster", fails)
    with pytest.raises(RunAborted, match=r"could not be started \(Nanny failed to start\.\).*same command"):
        run(numbered(3), tmp_path, workers=1)
