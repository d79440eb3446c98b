"""Behind a dask scheduler of somebody else: used, waited for, gone, and what a killed command leaves there."""

import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from theodolite.annotate.run import cluster
from theodolite.annotate.run.cluster import Patience, RunAborted
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run

from ...typed import wrong
from .fake import HASH, ids, job_in, numbered, run


def test_a_running_scheduler_is_used(tmp_path):
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=wrong(None), silence_logs=50
        ) as started,
        open_output(tmp_path, recipe_hash=HASH),
    ):
        address = wrong(started).scheduler_address
        plan = plan_run(numbered(10), tmp_path, clips_per_shard=3)
        tally = run_plan(plan, job_in(tmp_path), scheduler=address, show_progress=False)
    assert tally.done == 10
    assert sorted(ids(tmp_path)) == [f"c{i:03d}" for i in range(10)]


def scheduler_process():
    """A real scheduler on loopback, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [*command, "--no-dashboard"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 90  # on a busy machine it imports for longer than a command waits for an answer
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return process, f"tcp://127.0.0.1:{port}"
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no scheduler at port {port}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "no address at all", "tcp://no.such.host.invalid:8786"]
)
def test_a_wrong_address_is_said_soon(tmp_path, monkeypatch, address):
    assert cluster._ANSWERS_WITHIN == "10s"
    monkeypatch.setattr(cluster, "_ANSWERS_WITHIN", "1s")
    start = time.monotonic()
    with pytest.raises(RunAborted, match=r"no dask scheduler answers at .*tcp://HOST:8786"):
        run(numbered(1), tmp_path, workers=None, scheduler=address)
    assert time.monotonic() - start < 20


def test_a_scheduler_with_keys_is_not_asked_without(tmp_path):
    """Dask would try for ten seconds, and say that some argument is of the wrong type."""
    with pytest.raises(RunAborted, match=r"no keys for tls://127.*DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT"):
        run(numbered(1), tmp_path, workers=None, scheduler="tls://127.0.0.1:8786")


@pytest.mark.slow
def test_a_scheduler_without_workers_then_killed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "FIRST_LINE_S", 0.5)
    monkeypatch.setattr(cluster, "_GONE_AFTER_S", 5.0)
    process, address = scheduler_process()
    waiting = "no worker is connected; start some with"

    def kill_once_it_waits() -> None:
        deadline = time.monotonic() + 60
        while waiting not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()

    try:
        threading.Thread(target=kill_once_it_waits).start()
        with pytest.raises(RunAborted, match=r"the dask scheduler is gone.*same command continues"):
            run(numbered(4), tmp_path, workers=None, scheduler=address)
        assert waiting in caplog.text
    finally:
        process.kill()
        process.wait()
    assert run(numbered(4), tmp_path).done == 4


COMMAND = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import cloudpickle
from theodolite.annotate.sources.clip import ClipRef
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run import executor
from theodolite.annotate.run.plan import plan_run

out, scheduler, which, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]

def slow(clip, config, *, mode, recipe_hash):
    import time
    from pathlib import Path
    from theodolite.annotate.run.worker import Job, failure_row
    (out.parent / "started").mkdir(exist_ok=True)
    (out.parent / "started" / f"{which}-{clip.clip_id}").touch()
    while which == "first" and not (out.parent / "go").exists():
        time.sleep(0.05)
    job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
    return failure_row(clip, job, "too_short", "7 frames")

def clips():
    for name in names:
        yield ClipRef(clip_id=name, source="s", original_id=name, media_kind="video", media_path=Path(name))

cloudpickle.register_pickle_by_value(sys.modules["__main__"])
with executor.open_output(out, recipe_hash="0123456789abcdef"):
    plan = plan_run(clips, out, clips_per_shard=2)
    own = {"config": AnnotateConfig(), "mode": "given_depth", "recipe_hash": "0123456789abcdef"}
    from theodolite.annotate.run.worker import Job
    job = Job(out=out, annotate=slow, **own)
    print(executor.run_plan(plan, job, scheduler=scheduler, show_progress=False))
"""


@pytest.mark.slow(about_s=10)
def test_a_killed_command_behind_a_real_scheduler_doubles_nothing(tmp_path):
    """Its worker lives on. The next command has one more clip in front, which cuts all shards anew."""
    process, address = scheduler_process()
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2"]
    workers = subprocess.Popen([*command, "--no-nanny", "--no-dashboard"], stderr=subprocess.DEVNULL)
    out, started = tmp_path / "out", tmp_path / "started"
    names = [f"c{i:02d}" for i in range(8)]
    try:
        first = subprocess.Popen([sys.executable, "-c", COMMAND, str(out), address, "first", *names])
        deadline = time.monotonic() + 300
        while not all((started / f"first-{name}").exists() for name in ("c00", "c02")):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
        first.wait()
        with open_output(out, recipe_hash=HASH):
            # Fenced off by now; its two threads are in the first clip of a shard of two.
            (tmp_path / "go").touch()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(out), address, "second", "a", *names],
            timeout=300,
            check=False,
        )
        assert done.returncode == 0
        time.sleep(1)  # whoever is left of the first command has gone on by then
        with open_output(out, recipe_hash=HASH):
            pass
    finally:
        for running in (workers, process):
            running.terminate()
            running.wait(30)
    assert sorted(ids(out)) == sorted(["a", *names])
    assert not list(out.glob(".tmp-*"))
    # They begin no further clip; unfenced each would have gone on with its shard.
    assert sorted(path.name for path in started.glob("first-*")) == ["first-c00", "first-c02"]


def test_workers_that_never_stay_end_the_wait(monkeypatch, tmp_path):
    """Workers of this machine that end while they start take no task, so that none is ever called killed by it; behind
    a scheduler somebody may start others."""
    clock = itertools.count(0.0, 30.0)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cluster.time, "sleep", lambda s: None)
    local = SimpleNamespace(nthreads=dict, status="running", cluster=object())
    patience = Patience(wrong(local), tmp_path)
    for _ in range(10):
        patience.wait()
    with pytest.raises(RunAborted, match=r"no worker stayed alive for 300 s.*memory_per_worker_gib"):
        patience.wait()
    patience = Patience(wrong(SimpleNamespace(nthreads=dict, status="running", cluster=None)), tmp_path)
    for _ in range(100):
        patience.wait()
