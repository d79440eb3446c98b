"""Runs into an object store: an S3 server on loopback, faults of the network and of the store, kills at any request."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import theodolite.dataset
from theodolite.annotate.config import AnnotateConfig
from theodolite.annotate.run.cluster import RunAborted
from theodolite.annotate.run.executor import open_output, run_plan
from theodolite.annotate.run.plan import plan_run
from theodolite.annotate.run.tally import Tally, read_outcomes
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.annotate.sources.clip import ClipRef
from theodolite.dataset.commit import clips_with_rows, hold_dataset
from theodolite.dataset.compact import compact
from theodolite.dataset.index import refresh_index
from theodolite.dataset.storage import log
from theodolite.dataset.storage.paths import StoreError, as_path
from theodolite.dataset.store import check_output, list_parts
from theodolite.dataset.validate import validate_dataset

sys.path.insert(0, str(Path(__file__).parents[2]))
from object_store import Faults, ObjectStore, forget_clients, needs_object_store, object_store, root_of

# Workers cannot import test modules: what they run from here travels with the task.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [needs_object_store, pytest.mark.slow]

HASH = "0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture
def store(server: ObjectStore) -> Iterator[ObjectStore]:
    yield server
    server.faults, server.conditional = Faults(), True


def stub(clip: ClipRef, config: AnnotateConfig, *, mode: Any, recipe_hash: str) -> Any:
    job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
    return failure_row(clip, job, "too_short", "7 frames", wall_s=0.0)


def clips(*names: str) -> list[ClipRef]:
    return [
        ClipRef(
            clip_id=name, source="test", original_id=name, media_kind="video", media_path=Path(f"{name}.mp4")
        )
        for name in names
    ]


def run(out: Path, *names: str, clips_per_shard: int = 2, workers: int = 0) -> Tally:
    with open_output(out, recipe_hash=HASH):
        plan = plan_run(lambda: clips(*names), out, clips_per_shard=clips_per_shard)
        job = Job(out=out, config=AnnotateConfig(), mode="given_depth", recipe_hash=HASH, annotate=stub)
        tally = run_plan(plan, job, workers=workers, show_progress=False)
        refresh_index(out)
    return tally


NAMES = tuple(f"c{i:02d}" for i in range(8))


def assert_whole(out: Path, store: ObjectStore, *names: str) -> None:
    """Every clip has one row, and nothing else is left."""
    log._KNOWN.clear()
    assert sorted(clips_with_rows(out)) == sorted(names)
    assert validate_dataset(out) == (len(names), [])
    bucket = out.parts[1]
    data = [name for name in store.names(bucket) if name.startswith("run/data/")]
    assert sorted(data) == sorted(f"run/{part.relative_to(out).as_posix()}" for part in list_parts(out))


def test_faults_of_store_and_network_cost_nothing(store: ObjectStore) -> None:
    out = root_of(store, "faults")
    store.faults = Faults(busy=0.03, broken=0.02, lost=0.03, seed=3)
    assert run(out, *NAMES).done == len(NAMES)
    assert run(out, *NAMES).done == 0
    assert sum(store.faults.counts.values()) > 3
    store.faults = Faults()
    assert_whole(out, store, *NAMES)
    assert {outcome.reasons for outcome in read_outcomes(out)} == {("too_short",)}
    assert theodolite.dataset.open(str(out)).row("c07").clip_id == "c07"
    assert compact(out).num_after == 1
    assert_whole(out, store, *NAMES)


def test_a_store_that_is_away_ends_the_run_and_the_same_command_goes_on(
    store: ObjectStore, monkeypatch
) -> None:
    monkeypatch.setattr("theodolite.dataset.storage.paths.time.sleep", lambda seconds: None)
    monkeypatch.setattr("theodolite.dataset.storage.paths._ATTEMPTS", 2)
    out = root_of(store, "away")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    store.faults = Faults(when=lambda method, path: "broken" if "part-000003" in path else None)
    with pytest.raises((RunAborted, StoreError), match=str(out)):
        run(out, *NAMES)
    store.faults = Faults()
    assert run(out, *NAMES).done == 2
    assert_whole(out, store, *NAMES)


def refused(out: Path) -> str:
    """What is said of a place before any clip is begun."""
    try:
        check_output(out, recipe_hash=HASH)
        with hold_dataset(out):
            pass
    except (ValueError, StoreError) as error:
        return str(error)
    return "nothing"


def test_what_is_wrong_with_the_store_is_said_first(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no such bucket" in refused(as_path("s3://absent/run"))
    out = root_of(store, "readonly")

    def deny(method: str, path: str) -> str | None:
        return "denied" if method == "PUT" else None

    store.faults = Faults(when=deny)
    assert "refuses access" in refused(out)
    store.faults = Faults()
    store.conditional = False
    assert "two runs could not be kept from doubling clips" in refused(out)
    store.conditional = True
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("HOME", "/nowhere")
    forget_clients()
    try:
        assert "no credentials" in refused(out)
    finally:
        forget_clients()


def forked(out: Path, names: tuple[str, ...]) -> int:
    """A command in a fork of this process, which spares its imports; its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(out, *names)
            status = 0
        finally:
            os._exit(status)
    return child


def started(out: Path, names: tuple[str, ...], workers: int) -> int:
    """A command in a process made anew, as a user starts it; its number. A fork would hold locks of threads that it has
    not, and one that starts workers has waited for ever for them."""
    code = "import sys, cloudpickle; cloudpickle.load(sys.stdin.buffer)()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert child.stdin is not None
    cloudpickle.dump(partial(run, out, *names, workers=workers), child.stdin)
    child.stdin.close()
    return child.pid


def killed_at(
    request: int, store: ObjectStore, out: Path, names: tuple[str, ...], *, done: bool, workers: int = 0
) -> bool:
    """Run a command in a process of its own, which the given request of its kills; whether that came to pass.

    Args:
        done: the store does what was asked before the command dies.
        workers: processes that it starts, whose requests count as well.
    """
    child = started(out, names, workers) if workers else forked(out, names)
    seen = 0

    def kill(method: str, path: str) -> str | None:
        nonlocal seen
        seen += 1
        if seen == request:
            os.kill(child, signal.SIGKILL)
            return "lost" if done else "broken"
        return "broken" if seen > request else None  # what it had sent before it died comes to nothing

    store.faults = Faults(when=kill)
    _pid, status = os.waitpid(child, 0)
    store.faults = Faults()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the command failed"
    return os.WIFSIGNALED(status)


def test_killed_at_random_requests_nothing_is_lost_or_doubled(store: ObjectStore, thorough: bool) -> None:
    """The same command again and again, each killed at some request, with a source that grows, shrinks and is
    reordered meanwhile."""
    dice = random.Random(5)
    num_killed = 0
    for number in range(12 if thorough else 1):
        out = root_of(store, f"killed-{number}")
        sources = [NAMES, ("a", *NAMES, "z"), NAMES[::-1], NAMES[3:], NAMES]
        all_names: set[str] = set()
        for names in sources[: 5 if thorough else 3]:
            all_names.update(names)
            num_killed += killed_at(dice.randint(5, 75), store, out, names, done=dice.random() < 0.5)
            log._KNOWN.clear()
            ids = list(clips_with_rows(out))
            assert len(ids) == len(set(ids))
        run(out, *NAMES)
        ids = sorted(clips_with_rows(out))
        assert set(NAMES) <= set(ids) <= all_names
        assert_whole(out, store, *ids)
    assert num_killed >= (24 if thorough else 1)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(2))
def test_killed_with_workers_nothing_is_lost_or_doubled(store: ObjectStore, seed: int) -> None:
    """Workers of their own processes write parts; the command is killed at some request of any of them."""
    dice = random.Random(seed)
    out = root_of(store, f"workers-{seed}")
    names = tuple(f"c{i:03d}" for i in range(40))
    num_killed = 0
    for _ in range(3):
        request = dice.randint(30, 200)
        num_killed += killed_at(request, store, out, names, done=dice.random() < 0.5, workers=2)
        log._KNOWN.clear()
    assert num_killed
    run(out, *names)
    assert_whole(out, store, *names)
