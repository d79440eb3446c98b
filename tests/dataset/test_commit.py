"""One clip, one row, whoever is still alive: only the command that holds the folder commits parts."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import theodolite.dataset
from theodolite.dataset.commit import (
    ClipHasRow,
    Commits,
    Fenced,
    check_run,
    clips_with_rows,
    drop_rows,
    hold_dataset,
    hold_folder,
    own_run,
    take_in_dead_runs,
)
from theodolite.dataset.compact import compact
from theodolite.dataset.index import refresh_index
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.rows import Row
from theodolite.dataset.storage import listing
from theodolite.dataset.store import list_parts, part_path, prepare_output, stamped_folders, write_part
from theodolite.dataset.validate import validate_dataset


@pytest.fixture
def out(tmp_path: Path) -> Path:
    prepare_output(tmp_path / "d", recipe_hash="recipe1")
    return tmp_path / "d"


def left_by_a_dead_run(out: Path, shards: dict[str, list[Row]], *, name: str = "dead") -> Path:
    """Folder of a run that was killed before it committed these parts."""
    folder = out / f".tmp-run-{name}"
    folder.mkdir(exist_ok=True)
    for shard_id, rows in shards.items():
        write_part(folder, rows, shard_id=shard_id, recipe_hash="recipe1")
    return folder


def test_a_part_counts_once_it_is_committed(out: Path, make_row: Callable[..., Row]) -> None:
    with own_run(out) as run:
        commits = Commits(out)
        part = write_part(run, [make_row(0), make_row(1)], shard_id="a", recipe_hash="recipe1")
        assert list_parts(out) == []
        target = commits.take(part, ["clip_0000", "clip_0001"])
        assert target == part_path(out, source="demo", shard_id="a")
        again = write_part(run, [make_row(2), make_row(1)], shard_id="b", recipe_hash="recipe1")
        with pytest.raises(ClipHasRow, match="clip clip_0001 has a row"):
            commits.take(again, ["clip_0002", "clip_0001"])
    assert sorted(clips_with_rows(out)) == ["clip_0000", "clip_0001"]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("shard_id", ["000001-a", "002001-a"])
def test_a_source_may_be_called_data(out: Path, make_row: Callable[..., Row], shard_id: str) -> None:
    with own_run(out) as run:
        part = write_part(run, [make_row(0, source="data")], shard_id=shard_id, recipe_hash="recipe1")
        assert Commits(out).take(part, ["clip_0000"]) == part_path(out, source="data", shard_id=shard_id)
    assert len(list_parts(out)) == 1


def test_the_next_command_takes_in_what_is_whole_and_new(out: Path, make_row: Callable[..., Row]) -> None:
    write_part(out, [make_row(0)], shard_id="a", recipe_hash="recipe1")
    dead = left_by_a_dead_run(out, {"b": [make_row(1)], "c": [make_row(2), make_row(0)], "d": [make_row(3)]})
    cut = part_path(dead, source="demo", shard_id="d")
    cut.write_bytes(cut.read_bytes()[:500])
    (dead / "data" / "demo" / ".tmp-part").write_bytes(b"half")
    foreign = left_by_a_dead_run(out, {}, name="foreign")
    write_part(foreign, [make_row(4, recipe_hash="recipe2")], shard_id="e", recipe_hash="recipe2")
    assert take_in_dead_runs(out, recipe_hash="recipe1") == 1
    assert sorted(clips_with_rows(out)) == ["clip_0000", "clip_0001"]
    assert validate_dataset(out)[1] == []
    assert take_in_dead_runs(out, recipe_hash="recipe1") == 0


def test_two_dead_runs_of_the_same_clip(out: Path, make_row: Callable[..., Row]) -> None:
    left_by_a_dead_run(out, {"a": [make_row(0)], "b": [make_row(1)]}, name="one")
    left_by_a_dead_run(out, {"c": [make_row(1), make_row(2)]}, name="two")
    take_in_dead_runs(out, recipe_hash="recipe1")
    assert sorted(clips_with_rows(out)) == [
        "clip_0000",
        "clip_0001",
    ]  # clip 2 is done again: nothing is doubled


def test_a_worker_of_an_ended_run_is_fenced_off(out: Path, make_row: Callable[..., Row]) -> None:
    dead = left_by_a_dead_run(out, {})
    check_run(dead)
    take_in_dead_runs(out, recipe_hash="recipe1")
    with pytest.raises(Fenced):
        check_run(dead)
    # What it writes nevertheless counts only for the command after the next, and only if the clip has no row.
    write_part(out, [make_row(0)], shard_id="x", recipe_hash="recipe1")
    left_by_a_dead_run(out, {"late": [make_row(0)]})
    assert sorted(clips_with_rows(out)) == ["clip_0000"]
    take_in_dead_runs(out, recipe_hash="recipe1")
    assert sorted(clips_with_rows(out)) == ["clip_0000"]


def test_an_interrupted_run_leaves_its_parts_to_the_next(out: Path, make_row: Callable[..., Row]) -> None:
    def interrupted(*rows: Row) -> None:
        with own_run(out) as run:
            if rows:
                write_part(run, rows, shard_id="a", recipe_hash="recipe1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(make_row(0))
    assert take_in_dead_runs(out, recipe_hash="recipe1") == 1
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(out.glob(".tmp-*"))


def rejected(table: pa.Table) -> list[bool]:
    return [verdict == "rejected" for verdict in table["verdict"].to_pylist()]


def test_rows_are_dropped_and_the_others_kept(out: Path, make_row, make_rejected) -> None:
    write_part(out, [make_row(0), make_rejected(1), make_row(2)], shard_id="000000-a", recipe_hash="recipe1")
    write_part(out, [make_rejected(3)], shard_id="000001-b", recipe_hash="recipe1")
    write_part(out, [make_row(4)], shard_id="000002-c", recipe_hash="recipe1")
    kept = list_parts(out)[2].read_bytes()
    assert drop_rows(out, rejected) == ["clip_0001", "clip_0003"]
    assert sorted(clips_with_rows(out)) == ["clip_0000", "clip_0002", "clip_0004"]
    assert list_parts(out)[1].read_bytes() == kept
    assert len(list_parts(out)) == 2
    assert not any(p.stem.endswith("000000-a") for p in list_parts(out)), (
        "the name says which clips a part holds"
    )
    assert validate_dataset(out)[1] == []


SCRIPT = """
import itertools, os, shutil, signal, sys
from pathlib import Path
import theodolite.dataset
from theodolite.dataset.commit import clips_with_rows, drop_rows, take_in_dead_runs
from theodolite.dataset.compact import compact

base, act = Path(sys.argv[1]), sys.argv[2]
os.fsync = lambda descriptor: None  # processes die here, no machines

def before_changes(out, act):
    def hook(event, arguments):
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree") or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            if str(arguments[0]).startswith(str(out)):
                act()

    sys.addaudithook(hook)

def die_at(moment):
    def act():
        nonlocal moment
        moment -= 1
        if not moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return act

def read_all(out):
    reads = False

    def act():
        nonlocal reads
        if not reads:
            reads = True
            opened = theodolite.dataset.open(out).to_table(["clip_id"])["clip_id"].to_pylist()
            for ids in (list(clips_with_rows(out)), opened):
                assert len(ids) == len(set(ids)) and final <= set(ids), ids
            reads = False

    return act

def work(out):
    take_in_dead_runs(out, recipe_hash="recipe1")
    if act == "drop":
        drop_rows(out, lambda table: [v == "rejected" for v in table["verdict"].to_pylist()])
    else:
        compact(out)

final = {"clip_0000", "clip_0003"} | ({"clip_0001", "clip_0002"} if act == "compact" else set())
for moment in itertools.count(0):
    out = base / str(moment)
    shutil.copytree(base / "begun", out)
    child = os.fork()
    if not child:
        code = 1
        try:
            before_changes(out, die_at(moment) if moment else read_all(out))
            work(out)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0 and moment:
        break
    assert code == (-signal.SIGKILL if moment else 0), code
"""


@pytest.mark.slow(about_s=5)
@pytest.mark.parametrize("act", ["drop", "compact"])
def test_killed_anywhere_no_row_is_lost_or_doubled(
    tmp_path: Path, make_row, make_rejected, act: str, thorough: bool
) -> None:
    """One process has imported everything; a fork of it dies at each change that the work makes. Who reads then, or
    between any two changes, sees each clip once."""
    begun = tmp_path / "begun"
    prepare_output(begun, recipe_hash="recipe1")
    write_part(begun, [make_row(0), make_rejected(1)], shard_id="000000-a", recipe_hash="recipe1")
    write_part(begun, [make_rejected(2), make_row(3)], shard_id="001000-b", recipe_hash="recipe1")
    left_by_a_dead_run(begun, {"000002-c": [make_row(4)], "000003-d": [make_row(0)]})
    kept = {"clip_0000", "clip_0003"} | ({"clip_0001", "clip_0002"} if act == "compact" else set())
    final = kept | {"clip_0004"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), act], timeout=120, check=True)
    moments = len(list(tmp_path.iterdir())) - 3  # beside what was begun, read and not killed
    assert moments > 8
    for moment in range(0, moments + 2, 1 if thorough else 3):
        out = tmp_path / str(moment)
        ids = sorted(clips_with_rows(out))
        assert len(set(ids)) == len(ids), moment
        assert kept <= set(ids), f"{moment}: who reads sees the whole, also before the next command"
        assert inspect_text(out).splitlines()[-1].startswith(f"{len(ids)} clips: ")
        num_rows, violations = validate_dataset(out)
        assert num_rows == len(ids)
        assert {violation.rule for violation in violations} <= {"no_temporaries"}, moment
        with hold_dataset(out):
            take_in_dead_runs(out, recipe_hash="recipe1")
            ids = sorted(clips_with_rows(out))
            assert len(set(ids)) == len(ids), moment
            assert final <= set(ids), moment
            if act == "drop":
                drop_rows(out, rejected)
        if act == "compact":
            assert compact(out).num_clips == 5
            assert [part.parent.name for part in list_parts(out)] == ["demo"]
            assert theodolite.dataset.open(out).index is not None
        assert sorted(clips_with_rows(out)) == sorted(final), moment
        assert validate_dataset(out)[1] == [], moment


@pytest.mark.parametrize("moment", range(3))
def test_a_listing_during_which_parts_are_gathered_is_of_one_moment(
    out: Path, make_row, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Folders are listed one after the other, and `compact` may come to its end between two of them."""
    for number in (0, 1, 1000, 2000):
        write_part(out, [make_row(number)], shard_id=f"{number:06d}-x", recipe_hash="recipe1")
    scan, scans = listing._scan, itertools.count()

    def scan_meanwhile(folder: Path, name: str, stamped: bool):
        if next(scans) == moment:
            compact(out)
        return scan(folder, name, stamped)

    monkeypatch.setattr(listing, "_scan", scan_meanwhile)
    assert [name for name, _stamps in stamped_folders(out)] == ["demo"]
    assert next(scans) > moment
    assert sorted(clips_with_rows(out)) == [f"clip_{number:04d}" for number in (0, 1, 1000, 2000)]


def test_a_listing_waits_for_a_command_that_replaces_parts_again_and_again(
    out: Path, make_row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `compact` does for minutes; and one that never ends is said."""
    write_part(out, [make_row(0)], shard_id="000000-x", recipe_hash="recipe1")
    scan, scans, disturbed = listing._scan, itertools.count(1), 50

    def scan_meanwhile(folder: Path, name: str, stamped: bool):
        if next(scans) <= disturbed:
            (out / "replacing.json").write_text('{"done": false, "replaced": {}}')
            (out / "replacing.json").unlink()
        return scan(folder, name, stamped)

    monkeypatch.setattr(listing, "_scan", scan_meanwhile)
    monkeypatch.setattr(listing.time, "sleep", lambda seconds: None)
    assert len(list_parts(out)) == 1
    assert next(scans) == disturbed + 2
    disturbed = 10**9
    monkeypatch.setattr(listing, "_PATIENCE_S", 0.05)
    with pytest.raises(OSError, match=r"faster than they could be listed; try again when the command"):
        list_parts(out)


def test_what_was_opened_before_parts_were_gathered_is_not_mixed_with_what_is_there_now(
    out: Path, make_row
) -> None:
    """The piece of the index for the first folder then holds all clips, and would be read beside older pieces."""
    for number in (0, 1000):
        write_part(out, [make_row(number)], shard_id=f"{number:06d}-x", recipe_hash="recipe1")
    refresh_index(out)
    opened, looked_at = theodolite.dataset.open(out), theodolite.dataset.open(out)
    assert len(looked_at.to_table(["clip_id"])) == 2
    write_part(out, [make_row(2)], shard_id="000002-x", recipe_hash="recipe1")
    refresh_index(out)
    ids = ["clip_0000", "clip_1000"]
    assert opened.to_table(["clip_id"])["clip_id"].to_pylist() == ids, (
        "from the parts that it was opened with"
    )
    compact(out)
    for clips in (opened, looked_at):
        assert len(clips) == clips.tally().done == 2
        for read in (
            lambda clips=clips: clips.to_table(["clip_id"]),
            lambda clips=clips: clips.head(["clip_id"], 5),
            lambda clips=clips: list(clips.batches(["clip_id"])),
            lambda clips=clips: list(clips.narrow_batches(["clip_id"])),
            lambda clips=clips: clips.row("clip_1000"),
        ):
            with pytest.raises(ValueError, match="open it again"):
                read()
    assert len(theodolite.dataset.open(out).to_table(["clip_id"])) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"replaced": {}}',
        b'{"done": true, "replaced": {"data/demo/part-000000-x.parquet": ["../../elsewhere.parquet"]}}',
        b'{"done": true, "replaced": {"data/demo/part-000000-x.parquet": ["data/../part-1.parquet"]}}',
        b'{"done": true, "replaced": {"data/demo/part-000000-x.parquet": ["data/demo/part-000000-x.parquet"]}}',
    ],
)
def test_a_note_that_no_command_wrote_removes_nothing(out: Path, make_row, content: bytes) -> None:
    write_part(out, [make_row(0)], shard_id="000000-x", recipe_hash="recipe1")
    elsewhere = out / "part-1.parquet"
    elsewhere.write_bytes(b"")
    (out / "replacing.json").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"replacing\.json: (not JSON|says which parts a command was replacing|says that data/demo/part)",
    ):
        list_parts(out)
    with pytest.raises(ValueError, match=r"replacing\.json"):
        compact(out)
    assert elsewhere.is_file()
    (out / "replacing.json").unlink()
    assert len(list_parts(out)) == 1


def test_small_parts_are_gathered_and_large_ones_left(out: Path, make_row) -> None:
    for number in range(6):
        frames = 3000 if number == 3 else 5
        row = make_row(number, frames=frames, source="demo" if number < 5 else "other")
        write_part(out, [row], shard_id=f"{number * 1000:06d}-x", recipe_hash="recipe1")
    large = list_parts(out)[3]
    before = {row.clip_id: row.camera_to_world.tobytes() for row in theodolite.dataset.open(out).rows()}
    done = compact(out, part_bytes=large.stat().st_size)
    assert (done.num_before, done.num_after, done.num_clips) == (6, 4, 6)
    clips = theodolite.dataset.open(out)
    assert {row.clip_id: row.camera_to_world.tobytes() for row in clips.rows()} == before
    assert {clips.row(i).clip_id for i in before} == set(before)
    assert large.is_file()
    again = compact(out, part_bytes=large.stat().st_size)
    assert (again.num_before, again.num_after) == (4, 4)
    with hold_folder(out), pytest.raises(ValueError, match="another run is writing here"):
        compact(out)
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        compact(out / "data")


def test_a_part_that_cannot_be_written_is_named(out: Path, make_row: Callable[..., Row]) -> None:
    """A write itself does not know its file; nothing is left of it."""
    write_part(out, [make_row(0)], shard_id="a", recipe_hash="recipe1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*part-b\.parquet"):
            write_part(out, [make_row(1)], shard_id="b", recipe_hash="recipe1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [part.name for part in (out / "data" / "demo").iterdir()] == ["part-a.parquet"]
    assert validate_dataset(out)[1] == []


def test_a_place_that_takes_nothing_is_said(out: Path, make_row, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that became read-only: the folder itself opens, and can be locked."""
    write_part(out, [make_row(0)], shard_id="000000-a", recipe_hash="recipe1")
    write_part(out, [make_row(1)], shard_id="000001-a", recipe_hash="recipe1")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **k: refuse() if ".tmp-run" in self.name else None)
    with pytest.raises(
        ValueError, match=r"cannot be written to \(Read-only file system\); free it, or name another folder"
    ):
        compact(out)


def test_a_folder_that_is_emptied_at_this_moment_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [tmp_path / f"data/a/{name}/part-0.parquet" for name in ("000000", "000001")]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.touch()
    scanned = listing._scan

    def gone(folder: Path, name: str, stamped: bool) -> tuple[list[listing.Stamp], list[str]]:
        if folder.name == "000000":  # compacted, between one look and the next
            raise FileNotFoundError(folder)
        return scanned(folder, name, stamped)

    monkeypatch.setattr(listing, "_scan", gone)
    assert listing.any_part(tmp_path)
