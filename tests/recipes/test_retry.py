"""A storage that was away, a source that moves under the run, folders that are none: the run says so and goes on."""

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import theodolite.dataset
import yaml
from theodolite.annotate.run.cluster import RunAborted, raise_if_interrupted, signals_as_interrupt
from theodolite.annotate.run.worker import Job, failure_row
from theodolite.dataset.storage.listing import CLOCK_TICK_NS
from theodolite.dataset.store import list_parts
from theodolite.dataset.validate import changed_media, validate_dataset
from theodolite.recipes import run as run_module
from theodolite.recipes.commands.datasets import validate
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import RunOptions, run_annotate


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    clips = [{"clip_id": f"c{i}", "media_path": f"{i}.mp4", "data_licence": "CC0-1.0"} for i in range(6)]
    (tmp_path / "clips.yaml").write_text(yaml.safe_dump({"clips": clips}))
    content = {
        "schema_version": 1,
        "name": "test",
        "mode": "given_depth",
        "source": {"kind": "index", "name": "test", "index": "clips.yaml"},
        "output": {"clips_per_shard": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def fake(monkeypatch):
    """Clips are judged, but fail while the storage is away."""
    away: set[str] = set()

    def annotate(clip, config, *, mode, recipe_hash):
        job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
        failed = clip.clip_id in away
        return failure_row(clip, job, "unreadable_video" if failed else "too_short", "why")

    def job(**values):
        return Job(**values, annotate=annotate)

    monkeypatch.setattr(run_module, "Job", job)
    return away


def go(recipe: Path, out: Path, **options):
    return run_annotate(load_recipe(recipe), out, RunOptions(workers=0, **options), show_progress=False)


def reasons(out: Path) -> dict[str, str]:
    table = theodolite.dataset.open(out).to_table(["clip_id", "reasons"]).to_pylist()
    assert len({row["clip_id"] for row in table}) == len(table)
    return {row["clip_id"]: row["reasons"][0] for row in table}


@pytest.mark.slow
def test_failed_clips_are_tried_again(tmp_path, recipe, fake):
    out = tmp_path / "out"
    fake |= {"c1", "c2", "c3"}
    _text, code = go(recipe, out)
    assert code == 1
    fake -= {"c1", "c2"}
    assert go(recipe, out)[1] == 1, "a failed clip has a row, and is not tried again unasked"
    told, code = go(recipe, out, retry_failed="unreadable_video", dry_run=True)
    assert "6 clips, 6 done (3 failed ones of them are tried again), 0 to do in 0 shards" in told
    assert "0 done (0 failed" in go(recipe, tmp_path / "new", retry_failed="all", dry_run=True)[0]
    assert code == 0
    assert not (tmp_path / "new").exists()
    _text, code = go(recipe, out, retry_failed="unreadable_video")
    assert code == 1
    assert [c for c, r in sorted(reasons(out).items()) if r == "unreadable_video"] == ["c3"]
    fake.clear()
    assert go(recipe, out, retry_failed="all")[1] == 0
    assert reasons(out) == {f"c{i}": "too_short" for i in range(6)}
    assert validate_dataset(out)[1] == []
    assert theodolite.dataset.open(out).index is not None
    for wrong, words in (("too_short", "is a judgement"), ("nonsense", "is no reason")):
        with pytest.raises(ValueError, match=words):
            go(recipe, out, retry_failed=wrong)


def test_a_run_stops_where_everything_fails(tmp_path, recipe, fake):
    out = tmp_path / "out"
    fake |= {f"c{i}" for i in range(2, 6)}
    with pytest.raises(
        RunAborted, match=r"3 clips one after the other failed with unreadable_video.*--retry-failed"
    ):
        go(recipe, out, max_failed=3)
    assert len(reasons(out)) == 6
    fake.clear()
    assert go(recipe, out, retry_failed="all", max_failed=3)[1] == 0
    fake |= {"c0", "c2", "c4"}  # never two in a row
    assert go(recipe, tmp_path / "other", max_failed=2)[1] == 1


def test_a_source_that_changes_between_runs(tmp_path, recipe, fake, monkeypatch):
    """It is read once a run: what was read is done, and nothing else is promised."""
    whole = run_module.read_clips
    read = []

    def moving(source):
        clips = list(whole(source))
        read.append(clips[:4] if not read else clips[1:])
        return iter(read[-1])

    monkeypatch.setattr(run_module, "read_clips", moving)
    for done in (4, 6, 6):
        (tmp_path / "clips.yaml").touch()  # what is read is another one each time, as after a change
        assert go(recipe, tmp_path / "out")[1] == 0
        assert sorted(reasons(tmp_path / "out")) == [f"c{i}" for i in range(done)]
    assert len(read) == 3


@pytest.mark.slow
def test_damaged_indexes_are_made_anew(tmp_path, recipe, fake, caplog):
    out = tmp_path / "out"
    go(recipe, out)
    for content in (b"", b"PAR1", np.random.default_rng(0).bytes(5000)):
        next((out / "index").glob("*.parquet")).write_bytes(content)
        assert len(theodolite.dataset.open(out)) == 6
        assert "made anew" in caplog.text
        caplog.clear()
        assert theodolite.dataset.open(out).index is not None
        assert not caplog.text
        next((out / "index").glob("*.parquet")).write_bytes(content)
        assert go(recipe, out)[1] == 0


def test_places_that_are_none(tmp_path, recipe, fake):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"--out must be a folder|name another folder"):
            go(recipe, out)
    go(recipe, tmp_path / "out")
    part = next((tmp_path / "out" / "data").rglob("part-*"))
    part.unlink()
    part.mkdir()
    with pytest.raises(ValueError, match="is a folder where a part should be"):
        go(recipe, tmp_path / "out")
    part.rmdir()
    for content in ('{"runs": [{"star', "[]", '{"runs": [5]}'):
        (tmp_path / "out" / "run.json").write_text(content)
        part.unlink(missing_ok=True)
        assert go(recipe, tmp_path / "out")[1] == 0
        assert (tmp_path / "out" / "run.damaged.json").read_text() == content


def test_the_end_signal_is_heard_from_the_first_moment(tmp_path, recipe, fake, monkeypatch):
    def starting(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)

    monkeypatch.setattr(run_module, "run_plan", starting)
    with pytest.raises(KeyboardInterrupt):
        go(recipe, tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_cut_marker_is_made_anew(tmp_path, recipe, fake):
    """The parts say which recipe made them."""
    out = tmp_path / "out"
    go(recipe, out)
    marker = (out / "dataset.json").read_text()
    (out / "dataset.json").write_text(marker[:10])
    assert [v.rule for v in validate_dataset(out)[1]] == ["marker_readable"]
    other = yaml.safe_load(recipe.read_text()) | {"mode": "estimate"}
    recipe.with_name("other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match=r"dataset\.json is no JSON object, and part-.* was written with"):
        go(recipe.with_name("other.yaml"), out, dry_run=True)
    assert go(recipe, out)[1] == 0
    assert (out / "dataset.json").read_text() == marker


def test_media_that_changed_since_are_said(tmp_path, recipe, fake):
    out = tmp_path / "out"
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"old")
    go(recipe, out)
    assert changed_media(out, tmp_path) == []
    (tmp_path / "1.mp4").write_bytes(b"new")
    (tmp_path / "5.mp4").write_bytes(b"came later")
    assert changed_media(out, tmp_path) == ["c1", "c5"]
    assert "media of 2 clips changed" in validate(out)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_caught_on_its_way_still_ends_the_run(tmp_path, recipe, monkeypatch, number):
    """Libraries catch everything while they look for optional packages: an interrupt there was lost, and the run went
    on to its end."""

    def annotate(clip, config, *, mode, recipe_hash):
        if clip.clip_id == "c1":
            with contextlib.suppress(BaseException):
                signal.raise_signal(number)
        job = Job(out=Path(), config=config, mode=mode, recipe_hash=recipe_hash)
        return failure_row(clip, job, "too_short", "why")

    monkeypatch.setattr(run_module, "Job", lambda **values: Job(**values, annotate=annotate))
    with pytest.raises(KeyboardInterrupt):
        go(recipe, tmp_path / "out")
    assert sorted(reasons(tmp_path / "out")) == ["c0", "c1"], "what was done is kept"
    monkeypatch.undo()
    assert len(go_on(recipe, tmp_path / "out")) == 6, "it is not remembered by the next run"


def go_on(recipe: Path, out: Path) -> dict[str, str]:
    go(recipe, out)
    return reasons(out)


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_interrupt():
            signal.raise_signal(signal.SIGINT)
            raise_if_interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_part_that_was_cut_is_named_and_made_anew_without_it(tmp_path, recipe, fake):
    out = tmp_path / "out"
    go(recipe, out)
    cut = list_parts(out)[1]
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(
        ValueError, match=rf"{cut.name}: .*where it is gone, the run's command makes its clips anew"
    ):
        go(recipe, out)
    cut.unlink()
    go(recipe, out)
    assert reasons(out) == {f"c{i}": "too_short" for i in range(6)}


@pytest.fixture
def finished(tmp_path, recipe, fake, monkeypatch):
    """The folder of a run that left nothing to do, and how often its source was read since."""
    time.sleep(3 * CLOCK_TICK_NS / 1e9)  # an index of this moment might change again and bear the same time
    go(recipe, tmp_path / "out")
    reads = []
    whole = run_module.read_clips
    monkeypatch.setattr(run_module, "read_clips", lambda source: reads.append(source) or whole(source))
    return tmp_path / "out", reads


def test_a_run_with_nothing_to_do_reads_no_source_that_is_as_it_was(recipe, finished):
    out, reads = finished
    assert "6 clips: 0 accepted, 6 rejected" in go(recipe, out)[0]
    assert "6 clips, 6 done, 0 to do in 0 shards" in go(recipe, out, dry_run=True)[0]
    assert reads == []
    assert "2 clips, 2 done" in go(recipe, out, dry_run=True, limit=2)[0]
    assert "(0 failed ones" in go(recipe, out, dry_run=True, retry_failed="all")[0]
    assert len(reads) == 2


def rename_clip(index: Path, out: Path) -> None:
    """Of the same length, and as old as before."""
    before = index.stat()
    index.write_text(index.read_text().replace("c3", "c7"))
    os.utime(index, ns=(before.st_atime_ns, before.st_mtime_ns))


def lose_part(index: Path, out: Path) -> None:
    list_parts(out)[1].unlink()


def swap_index(index: Path, out: Path) -> None:
    """Another file of the same times takes its place."""
    other = index.with_name("other.yaml")
    shutil.copy2(index, other)
    rename_clip(other, out)
    other.replace(index)


def spoil_note(index: Path, out: Path) -> None:
    (out / "index" / "planned.json").write_text('{"source": 3')


def note_of_others(index: Path, out: Path) -> None:
    path = out / "index" / "planned.json"
    path.write_text(path.read_text().replace('"parts": "', '"parts": "0'))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rename_clip, ["c0", "c1", "c2", "c3", "c4", "c5", "c7"]),
        (swap_index, ["c0", "c1", "c2", "c3", "c4", "c5", "c7"]),
        (lose_part, ["c0", "c1", "c2", "c3", "c4", "c5"]),
        (spoil_note, ["c0", "c1", "c2", "c3", "c4", "c5"]),
        (note_of_others, ["c0", "c1", "c2", "c3", "c4", "c5"]),
    ],
)
def test_nothing_is_taken_for_done_behind_any_change(tmp_path, recipe, finished, change, expected):
    out, reads = finished
    time.sleep(3 * CLOCK_TICK_NS / 1e9)
    change(tmp_path / "clips.yaml", out)
    time.sleep(3 * CLOCK_TICK_NS / 1e9)
    go(recipe, out)
    assert sorted(reasons(out)) == expected
    assert len(reads) == 1
    go(recipe, out)
    assert len(reads) == 1, "and it is noted anew"
