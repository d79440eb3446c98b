"""kill -9 before every single thing that a run does to its folder: the same command afterwards ends in the same rows.

A process that has imported everything forks one run per moment. The fork dies at the n-th change that it is about to
make (a file opened for writing, a flush, a rename, a removal, a new folder); a file that is being flushed is cut to
half first, as a machine that loses power leaves it. Then the command is run again, undisturbed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = r"""
import gc, json, os, signal, sys
from pathlib import Path

import theodolite.annotate.pipeline  # imported late by a run, and dear in every fork
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.store import list_parts
from theodolite.dataset.validate import validate_dataset
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import RunOptions, run_annotate

recipe, base = Path(sys.argv[1]), Path(sys.argv[2])


def annotate(out):
    run_annotate(load_recipe(recipe), out, RunOptions(workers=0), show_progress=False)


def forked(work):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(moment, out):
    # Run, and die when about to make change number `moment` in `out`.
    changes = 0

    def change(describe, descriptor=None):
        nonlocal changes
        changes += 1
        if changes == moment:
            if descriptor is not None:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            with open(base / "moments.txt", "a") as log:
                log.write(f"{moment} {describe}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(out)):
                change(f"open {Path(path).name[:12]}")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(arguments[0]).startswith(str(out)):
            change(f"{event} {Path(arguments[0]).name[:12]}")

    flush = os.fsync

    def fsync(descriptor):
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            change("fsync", descriptor)
        flush(descriptor)

    def work():
        os.fsync = fsync
        sys.addaudithook(hook)
        annotate(out)

    return forked(work)


def manifest(out):
    rows = open_dataset(out).to_table().drop_columns(["annotate_wall_s", "stage_wall_s"]).to_pylist()
    return {
        "rows": sorted(rows, key=lambda row: row["clip_id"]),
        "parts": [path.name for path in list_parts(out)],
        "files": sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()),
        "problems": [str(p) for p in validate_dataset(out)[1]],
        "indexed": open_dataset(out).index is not None,
    }


annotate(base / "first")  # what a process remembers is remembered by its forks
gc.collect()
gc.freeze()  # else each fork copies what it shares with this process, by looking for garbage in it
assert forked(lambda: annotate(base / "whole")) == 0
wanted = manifest(base / "whole")
moment, failures = 0, []
while True:
    moment += 1
    if sys.argv[3] == "most" and moment % 3 == 0:
        continue
    out = base / f"killed{moment}"
    code = dying_at(moment, out)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    if forked(lambda: annotate(out)) != 0:
        failures.append([moment, "the second run failed"])
    elif (found := manifest(out)) != wanted:
        failures.append([moment, [key for key in wanted if found[key] != wanted[key]]])
print(json.dumps({"moments": moment - 1, "failures": failures, "problems": wanted["problems"]}))
"""


@pytest.mark.slow(about_s=9)
def test_killed_before_every_change_to_the_folder(tmp_path: Path, thorough: bool):
    """Two of three changes in a row, and with `--thorough` all of them."""
    clips = [{"clip_id": f"c{i}", "media_path": f"{i}.mp4", "data_licence": "CC0-1.0"} for i in range(4)]
    (tmp_path / "clips.yaml").write_text(yaml.safe_dump({"clips": clips}))
    recipe = {
        "schema_version": 1,
        "name": "test",
        "mode": "given_depth",
        "source": {"kind": "index", "name": "test", "index": "clips.yaml"},
        "output": {"clips_per_shard": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(tmp_path / "recipe.yaml"),
            str(tmp_path),
            "all" if thorough else "most",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    moments = (tmp_path / "moments.txt").read_text()
    assert result["failures"] == [], moments
    assert result["problems"] == []
    # Every kind of change was met: marker, record, parts, index, each opened, flushed and renamed.
    for name in ("dataset.json", "run.json", "recipe.resolv", "part-", "test.parque", "test.arrow"):
        assert f".tmp-{name}"[:12] in moments, moments
    for kind in ("fsync", "os.rename", "os.mkdir"):
        assert moments.count(kind) >= 3, moments
    assert result["moments"] > 20  # 31 with two parts
