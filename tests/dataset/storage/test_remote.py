"""The protocol of commits in an object store: one turn at a time, one entry of the log a commit, nothing twice.

fsspec's store in memory keeps the condition on which objects are put; what only servers do is in
tests/annotate/run/test_object_store.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import theodolite.dataset
from theodolite.dataset import store
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
from theodolite.dataset.storage import log, remote
from theodolite.dataset.storage.paths import StoreError, StorePath, as_output, as_path
from theodolite.dataset.store import check_output, foreign_files, list_parts, prepare_output, write_part
from theodolite.dataset.validate import validate_dataset

from ...object_store import Faults, needs_object_store, object_store, root_of
from ...typed import known


@pytest.fixture
def out() -> Iterator[StorePath]:
    place = as_path(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(place, StorePath)
    yield place
    for name in place.objects():
        (place / name).unlink(missing_ok=True)


@pytest.fixture
def held(out: StorePath) -> Iterator[StorePath]:
    with hold_dataset(out):
        prepare_output(out, recipe_hash="recipe1")
        yield out


def written(run: Path, *rows: Row, shard_id: str = "000000-a") -> tuple[Path, list[str]]:
    return write_part(run, rows, shard_id=shard_id, recipe_hash="recipe1"), [row.clip_id for row in rows]


def commit(out: Path, *rows: Row, shard_id: str = "000000-a") -> Path:
    with own_run(out) as run:
        commits = Commits(out)
        part = commits.take(*written(run, *rows, shard_id=shard_id))
        commits.flush()
    return part


def killed(monkeypatch: pytest.MonkeyPatch, out: StorePath) -> None:
    """What is left of this process's turn looks like that of one that was killed."""
    monkeypatch.setattr(log.Turn, "end", lambda self: None)
    monkeypatch.setattr(remote, "_process_began", lambda process: None)


def test_a_part_counts_once_the_log_says_so(held: StorePath, make_row: Callable[..., Row]) -> None:
    with own_run(held) as run:
        commits = Commits(held)
        part, ids = written(run, make_row(0), make_row(1))
        assert list_parts(held) == []
        assert part.is_file()
        assert part.parent == held / "data" / "demo"
        assert foreign_files(held) == [], "without parts, whatever lies there is no stranger"
        commits.take(part, ids)
        commits.flush()
        assert list_parts(held) == [part]
        again = written(run, make_row(2), make_row(1), shard_id="000001-b")
        with pytest.raises(ClipHasRow, match="clip clip_0001 has a row"):
            commits.take(*again)
        assert [v.rule for v in validate_dataset(held)[1]] == [
            "parts_only",
            "no_temporaries",
            "no_temporaries",
        ]
    assert sorted(clips_with_rows(held)) == ["clip_0000", "clip_0001"]


def test_readers_read_it_as_a_folder(out: StorePath, make_row: Callable[..., Row]) -> None:
    with hold_dataset(out):
        prepare_output(out, recipe_hash="recipe1")
        for i in range(3):
            commit(out, make_row(2 * i), make_row(2 * i + 1), shard_id=f"{1000 * i:06d}-x")
        refresh_index(out)
    for _ in range(2):  # with the index, and without
        clips = theodolite.dataset.open(str(out))
        assert clips.to_pandas(["clip_id"]).clip_id.tolist() == [f"clip_{i:04d}" for i in range(6)]
        assert clips.row("clip_0003").clip_id == "clip_0003"
        assert sum(1 for _row in clips.rows()) == 6
        assert len(clips.where("clip_id = 'clip_0004'")) == 1
        assert validate_dataset(out) == (6, [])
        assert "6 clips" in inspect_text(out)
        for piece in (out / "index").objects():
            (out / "index" / piece).unlink()


def test_single_clips_are_read_by_ranges(held: StorePath, make_row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_ROW_GROUP_FRAMES", 2000)
    part = commit(held, *(make_row(i, frames=400) for i in range(60)))
    refresh_index(held)
    read: list[int] = []
    cat = type(held.client).cat_file

    def counted(self, path, start=None, end=None, **options):
        found = cat(self, path, start=start, end=end, **options)
        if str(path).endswith(part.name):
            read.append(len(found))
        return found

    monkeypatch.setattr(type(held.client), "cat_file", counted)
    clips = theodolite.dataset.open(held)
    clips.row("clip_0030")
    assert 0 < sum(read) < part.stat().st_size / 3


def test_the_next_command_takes_in_what_is_whole_and_new(
    out: StorePath, make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch, hold_dataset(out):
        killed(patch, out)
        prepare_output(out, recipe_hash="recipe1")
        commit(out, make_row(0))
        with contextlib.suppress(KeyboardInterrupt), own_run(out) as run:
            written(run, make_row(1), shard_id="000001-b")
            written(run, make_row(2), make_row(0), shard_id="000002-c")
            cut = written(run, make_row(3), shard_id="000003-d")[0]
            cut.write_bytes(cut.read_bytes()[:500])
            write_part(run, [make_row(4, recipe_hash="recipe2")], shard_id="e", recipe_hash="recipe2")
            raise KeyboardInterrupt
    monkeypatch.setattr(remote, "_process_began", lambda process: None)
    with hold_dataset(out):
        with pytest.raises(Fenced):
            check_run(run)
        assert take_in_dead_runs(out, recipe_hash="recipe1") == 1
        assert sorted(clips_with_rows(out)) == ["clip_0000", "clip_0001"]
        assert take_in_dead_runs(out, recipe_hash="recipe1") == 0
    assert validate_dataset(out) == (2, [])
    assert sorted(out.objects()) == [
        "README.md",
        *(part.relative_to(out).as_posix() for part in list_parts(out)),
        "dataset.json",
        *(f"log/{number:08d}.json" for number in range(1, 6)),
    ]


def test_a_command_that_was_taken_for_dead_adds_nothing(out: StorePath, make_row, monkeypatch) -> None:
    """It is stopped for a while, another one takes over, and then it wakes."""
    with hold_dataset(out):
        prepare_output(out, recipe_hash="recipe1")
        sleeper = log.Turn.of(out)
        with own_run(out) as run:
            part, _ids = written(run, make_row(0))
            with monkeypatch.context() as patch:
                patch.setattr(remote, "_process_began", lambda process: None)
                with hold_dataset(out):
                    assert take_in_dead_runs(out, recipe_hash="recipe1") == 1
                    commit(out, make_row(1), shard_id="000001-b")
            log._TURNS[str(out)] = sleeper
            late, ids = written(run, make_row(1), shard_id="000001-late")
            commits = Commits(out)
            with pytest.raises(StoreError, match="another command writes here now"):
                commits.take(late, ids)
            with pytest.raises(Fenced):
                check_run(run)
    assert sorted(clips_with_rows(out)) == ["clip_0000", "clip_0001"]
    assert part in list_parts(out)
    assert foreign_files(out) == [late], "in no entry of the log: the next command removes it"


def test_a_living_command_keeps_others_out(held: StorePath) -> None:
    with pytest.raises(ValueError, match="another run is writing here"), hold_dataset(held):
        pass


@pytest.mark.parametrize("lives", [True, False])
def test_a_command_elsewhere_is_believed_while_it_gives_signs(out, monkeypatch, caplog, lives: bool) -> None:
    monkeypatch.setattr(remote, "_DEAD_AFTER_S", 0.2)
    with pytest.MonkeyPatch.context() as patch, hold_dataset(out):
        patch.setattr(log.Turn, "end", lambda self: None)
        patch.setattr(remote, "_machine", lambda: "elsewhere")
        remote._say_alive(out, log.Turn.of(out).name, 0)
        sign = next(out.glob(".tmp-alive-*"))
        content = sign.read_bytes()
    sign.write_bytes(content)  # as if it had been killed
    beats = iter(range(1, 9))

    def pause(seconds: float) -> None:
        if lives:
            sign.write_bytes(json.dumps(json.loads(content) | {"beat": next(beats)}).encode())

    monkeypatch.setattr(remote.time, "sleep", pause)
    if lives:
        with pytest.raises(ValueError, match="another run is writing here"), hold_dataset(out):
            pass
    else:
        with hold_dataset(out):
            pass
    assert "waiting up to" in caplog.text


def test_many_who_begin_at_once(out: StorePath, make_row) -> None:
    """Both have read the log before either begins."""
    state = log.LogState()
    one, other = log.Turn(out, state), log.Turn(out, state)
    one.begin({})
    with pytest.raises(log.LostTurn):
        other.begin({})
    one.forget()


def test_a_lost_answer_is_no_second_commit(held: StorePath, make_row, monkeypatch) -> None:
    """The store did it, and the client hears of an error."""
    monkeypatch.setattr("theodolite.dataset.storage.paths.time.sleep", lambda seconds: None)
    put = type(held.client).pipe_file
    failed: set[str] = set()

    def lossy(self, path, value, **options):
        put(self, path, value, **options)
        if path not in failed:
            failed.add(path)
            raise TimeoutError("read timed out")

    monkeypatch.setattr(type(held.client), "pipe_file", lossy)
    commit(held, make_row(0))
    assert len(failed) > 2
    monkeypatch.undo()
    assert list(clips_with_rows(held)) == ["clip_0000"]
    assert known(log.read_log(held, anew=True)).number == 2


def test_another_attempt_at_a_shard_changes_nothing(held: StorePath, make_row: Callable[..., Row]) -> None:
    with own_run(held) as run:
        part, ids = written(run, make_row(0))
        first = part.read_bytes()
        Commits(held).take(part, ids)
        written(run, make_row(0))  # the same bytes: the answer to the first attempt was lost
        with pytest.raises(FileExistsError):
            written(run, make_row(0, annotate_wall_s=7.0))
        assert part.read_bytes() == first


def test_the_log_is_summed_up_and_read_from_anywhere(out: StorePath, make_row, monkeypatch) -> None:
    monkeypatch.setattr(log, "_SUMMED_EVERY", 3)
    with hold_dataset(out):
        prepare_output(out, recipe_hash="recipe1")
        slow = known(log.read_log(out, anew=True))  # a reader that comes back now and then
        for i in range(10):
            commit(out, make_row(i), shard_id=f"{i:06d}-x")
            if i == 4:
                slow = known(log.read_log(out, anew=True))
    entries = [name for name in out.objects() if name.startswith("log/")]
    assert len(entries) < 8
    assert "log/00000001.json" in entries, "who knew the log before it must find this number taken"
    parts = list_parts(out)
    assert len(parts) == 10
    log._KNOWN.clear()
    assert list_parts(out) == parts
    log._KNOWN[str(out)] = slow
    assert list_parts(out) == parts


def test_a_sum_that_cannot_be_put_loses_no_commit(held: StorePath, make_row, monkeypatch) -> None:
    def full(self) -> None:
        raise StoreError(28, "quota exceeded")

    monkeypatch.setattr(log, "_SUMMED_EVERY", 1)
    with monkeypatch.context() as patch:
        patch.setattr(log.Turn, "_sum_up", full)
        commit(held, make_row(0))
    assert list(clips_with_rows(held)) == ["clip_0000"]
    commit(held, make_row(1), shard_id="000001-b")
    assert known(log.read_log(held, anew=True)).summed == 3


def rejected(table: pa.Table) -> list[bool]:
    return [verdict == "rejected" for verdict in table["verdict"].to_pylist()]


def test_rows_are_dropped_and_the_others_kept(held: StorePath, make_row, make_rejected) -> None:
    commit(held, make_row(0), make_rejected(1), make_row(2))
    commit(held, make_rejected(3), shard_id="000001-b")
    kept = commit(held, make_row(4), shard_id="000002-c")
    assert drop_rows(held, rejected) == ["clip_0001", "clip_0003"]
    assert sorted(clips_with_rows(held)) == ["clip_0000", "clip_0002", "clip_0004"]
    assert kept in list_parts(held)
    assert foreign_files(held) == []


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("act", ["drop", "compact"])
def test_killed_anywhere_no_row_is_lost_or_doubled(make_row, make_rejected, act: str) -> None:
    """Every request that changes something is the last one of a command, once."""
    whole = as_path(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(whole, StorePath)
    with hold_dataset(whole):
        prepare_output(whole, recipe_hash="recipe1")
        for i in range(3):
            commit(whole, make_row(2 * i), make_rejected(2 * i + 1), shard_id=f"{i:06d}-x")
        refresh_index(whole)
    objects = {name: (whole / name).read_bytes() for name in whole.objects()}
    for moment in range(200):
        out = as_path(f"memory://{uuid.uuid4().hex}/run")
        for name, content in objects.items():
            (out / name).write_bytes(content)
        with pytest.MonkeyPatch.context() as patch:
            done = _die_at(moment, out, patch, act)
        seen = sorted(clips_with_rows(out))
        assert len(set(seen)) == len(seen), moment
        assert set(seen) >= {f"clip_{i:04d}" for i in range(0, 6, 1 if act == "compact" else 2)}, moment
        assert inspect_text(out).splitlines()[-1].startswith(f"{len(seen)} clips: ")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote, "_process_began", lambda process: None)
            again = compact(out)
        ids = sorted(clips_with_rows(out))
        want = [f"clip_{i:04d}" for i in range(6)]
        if act == "compact":
            assert ids == want, moment
            assert again.num_clips == 6
        else:
            assert len(set(ids)) == len(ids), moment
            assert set(ids) >= set(want[::2]), moment
        assert validate_dataset(out)[1] == [], moment
        if done:
            assert moment > 8
            return
    raise AssertionError("it never came to its end")


def _die_at(moment: int, out: Path, patch: pytest.MonkeyPatch, act: str) -> bool:
    """Do it with a client that changes so many things and then nothing any more; whether it came to its end."""
    assert isinstance(out, StorePath)
    changes = 0
    kind = type(out.client)

    def counted(change):
        def wrapped(self, *arguments, **options):
            nonlocal changes
            if changes >= moment:
                raise Killed
            changes += 1
            return change(self, *arguments, **options)

        return wrapped

    for name in ("pipe_file", "rm_file"):
        patch.setattr(kind, name, counted(getattr(kind, name)))
    patch.setattr(remote, "_live", lambda *_: None)
    try:
        if act == "compact":
            compact(out)
        else:
            with hold_dataset(out):
                drop_rows(out, rejected)
    except Killed:
        log._TURNS.pop(str(out), None)
        return False
    return True


@needs_object_store
@pytest.mark.slow(about_s=6)
def test_compact_cut_off_from_a_server_at_any_request_shows_the_whole(make_row, thorough: bool) -> None:
    """From one of its requests on, another one each time, everything that would change something is refused."""
    with object_store() as server:
        whole = root_of(server, "whole")
        with hold_dataset(whole):
            prepare_output(whole, recipe_hash="recipe1")
            for i in range(3):
                commit(whole, make_row(i), shard_id=f"{1000 * i:06d}-x")
            refresh_index(whole)
        assert isinstance(whole, StorePath)
        objects = {name: (whole / name).read_bytes() for name in whole.objects()}
        want = [f"clip_{i:04d}" for i in range(3)]
        moments = 0
        for moment in range(0, 200, 1 if thorough else 9):
            out = root_of(server, f"cut-{moment}")
            for name, content in objects.items():
                (out / name).write_bytes(content)
            changes = itertools.count()
            server.faults = Faults(
                when=lambda method, path, changes=changes, moment=moment: (
                    "denied" if method in ("PUT", "DELETE", "POST") and next(changes) >= moment else None
                )
            )
            ended = True
            try:
                compact(out)
            except (OSError, ValueError):
                ended = False
            server.faults = Faults()
            log._TURNS.pop(str(out), None)
            log._KNOWN.pop(str(out), None)
            assert sorted(clips_with_rows(out)) == want, moment
            assert inspect_text(out).splitlines()[-1].startswith("3 clips: "), moment
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(remote, "_process_began", lambda process: None)
                assert compact(out).num_clips == 3
            assert sorted(clips_with_rows(out)) == want
            assert validate_dataset(out) == (3, []), moment
            moments += not ended
            if ended and next(changes) <= moment:
                break
        assert moments > (12 if thorough else 1)


def test_a_copy_without_a_log_is_read_and_gone_on_with(out: StorePath, make_row) -> None:
    with hold_dataset(out):
        prepare_output(out, recipe_hash="recipe1")
        commit(out, make_row(0))
    for name in (out / "log").objects():
        (out / "log" / name).unlink()
    log._KNOWN.clear()
    assert list(clips_with_rows(out)) == ["clip_0000"]
    with hold_dataset(out):
        assert take_in_dead_runs(out, recipe_hash="recipe1") == 0
        commit(out, make_row(1), shard_id="000001-b")
    assert sorted(clips_with_rows(out)) == ["clip_0000", "clip_0001"]


def test_a_store_without_conditions_is_refused(out: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    put = type(out.client).pipe_file
    monkeypatch.setattr(
        type(out.client), "pipe_file", lambda self, path, value, mode=None: put(self, path, value)
    )
    with pytest.raises(ValueError, match="two runs could not be kept from doubling clips"), hold_dataset(out):
        pass


def test_what_is_not_written_to_a_store(
    out: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="copy it to an object store afterwards"), hold_folder(out):
        pass
    with pytest.raises(ValueError, match="theodolite publish"):
        as_output("hf://datasets/owner/name")
    with pytest.raises(ValueError, match="no such kind of storage"):
        as_path("ftp://host/folder")
    with pytest.raises(ValueError, match="names no bucket"):
        as_path("s3://")
    assert as_path("hf://datasets/owner/name") == Path("owner/name")
    assert list(tmp_path.iterdir()) == []


def test_another_recipe_is_refused(held: StorePath) -> None:
    with pytest.raises(ValueError, match="was written with recipe hash recipe1"):
        check_output(held, recipe_hash="recipe2")
