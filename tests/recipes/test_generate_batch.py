"""Many videos: manifests, resume after any end, several workers, and what a bad clip costs."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from theodolite.dataset.cameras.paths import named_path
from theodolite.dataset.formats.base import CameraClip
from theodolite.dataset.formats.sana import BenchScene
from theodolite.dataset.media.read import count_video_frames
from theodolite.recipes.generate import batch
from theodolite.recipes.generate.batch import read_manifest, run_batch
from theodolite.recipes.generate.options import GenerateOptions
from theodolite.recipes.generate.single import is_whole, read_made

from ..sana_bench import write_sana_bench
from ..support import ForkedCommand
from .test_generate import TRY, generate, needs_networks, write_image

OPTIONS = dict(weights="stand_in", size="tiny", mode="distilled", device="cpu", refine=False)


def options(**changes) -> GenerateOptions:
    return GenerateOptions.checked(**{**OPTIONS, **changes})


def rows(count: int = 3) -> list[dict[str, object]]:
    return [
        {"id": f"clip_{i}", "image": "street.png", "prompt": f"street {i}", "camera": "w-24", "seed": i}
        for i in range(count)
    ]


def write_manifest(folder: Path, content: list[dict[str, object]], name: str = "list.jsonl") -> Path:
    write_image(folder / "street.png")
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


# --- manifests ------------------------------------------------------------------------------------


def test_every_form_of_a_manifest(tmp_path: Path) -> None:
    lines = read_manifest(write_manifest(tmp_path, rows()))
    (tmp_path / "list.json").write_text(json.dumps(rows()))
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "list.parquet")
    assert lines == read_manifest(tmp_path / "list.json") == read_manifest(tmp_path / "list.parquet")
    assert lines[1].image == tmp_path / "street.png"
    assert (lines[1].seed, lines[1].camera) == (1, "w-24")


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    np.save(tmp_path / "path.npy", named_path("walk", 25))
    row: dict[str, object] = {
        "id": "a",
        "image_path": "street.png",
        "caption": "x",
        "camera_path": "path.npy",
    }
    (clip,) = read_manifest(write_manifest(tmp_path, [row]))
    assert clip.camera == str(tmp_path / "path.npy")
    assert clip.prompt == "x"


def test_a_split_of_the_benchmark(tmp_path: Path) -> None:
    frames = 961
    scene = BenchScene(
        clip=CameraClip(
            name="city_001",
            camera_to_world=named_path("orbit", frames),
            focal_px=np.full((frames, 2), 1000.0),
            principal_point_px=np.tile([640.0, 352.0], (frames, 1)),
            height=704,
            width=1280,
        ),
        image_png=write_image(tmp_path / "i.png", 704, 1280).read_bytes(),
        prompt="a street",
    )
    write_sana_bench(tmp_path / "bench", {"hard_60s": [scene]})
    (clip,) = read_manifest(tmp_path / "bench" / "benchmark_v2_hard_60s")
    assert clip.id == "city_001"
    assert Path(clip.camera).is_file()
    text, code = run_batch(
        tmp_path / "bench" / "benchmark_v2_hard_60s", options(), tmp_path / "out", dry_run=True
    )
    assert code == 0
    assert "city_001: 961 frames" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": "a/b"}, "row 2: id"),
        ({"id": "../x"}, "row 2: id"),
        ({"id": "clip_0"}, "clip_0: given twice"),
        ({"id": "generate"}, "id generate: its record would lie on the run's log"),
        ({"camera": None}, "row 2: camera: Field required"),
        ({"seed": -1}, "row 2: seed"),
        ({"speed": 3}, "row 2: speed: Extra inputs"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, change: dict[str, object], named: str) -> None:
    content = rows()
    content[1] = {**content[1], **change}
    with pytest.raises(ValueError, match=named):
        read_manifest(write_manifest(tmp_path, content))


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n{"id"')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "list.jsonl").write_text("[1, 2]")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, named in (
        ("bad.jsonl", r"bad.jsonl:2: not JSON"),
        ("empty.jsonl", "holds no clips"),
        ("list.jsonl", "row 1: is no object"),
        ("bad.parquet", "not a readable Parquet file"),
        ("binary", "not a text file"),
        ("nowhere", "no such manifest"),
        (".", "no split of SANA-WM-Bench"),
    ):
        with pytest.raises(ValueError, match=named):
            read_manifest(tmp_path / name)


# --- runs -----------------------------------------------------------------------------------------


@needs_networks
@pytest.mark.slow
def test_resume_makes_what_is_missing_and_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, out = rows(4), tmp_path / "out"
    content[2]["camera"] = "w-24,x-3"
    manifest = write_manifest(tmp_path, content)
    text, code = run_batch(manifest, options(), out, limit=2)
    assert (code, sorted(p.name for p in out.glob("*.mp4"))) == (0, ["clip_0.mp4", "clip_1.mp4"])
    before = {p: p.stat().st_mtime_ns for p in out.glob("*.mp4")}
    text, code = run_batch(manifest, options(), out)
    assert code == 1
    assert "3 videos (1 new), 1 failed" in text
    assert "clip_2: action segment 'x-3': unknown keys 'x'" in text
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    made = read_made(out / "clip_2.mp4")
    assert made is not None
    assert made.status == "failed"
    assert all(is_whole(out / f"clip_{i}.mp4") for i in (0, 1, 3))
    assert json.loads((out / "clip_1.json").read_text())["run"]["seeds"]["world_model"] == 1
    # A video that somebody cut short is made again.
    whole = (out / "clip_0.mp4").read_bytes()
    (out / "clip_0.mp4").write_bytes(whole[:-10])
    run_batch(manifest, options(), out)
    assert (out / "clip_0.mp4").read_bytes() == whole
    assert len(json.loads((out / "generate.json").read_text())["runs"]) == 3
    capsys.readouterr()


@needs_networks
@pytest.mark.slow
def test_other_options_or_requests_are_refused(tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path, rows(1)), tmp_path / "out"
    run_batch(manifest, options(), out)
    with pytest.raises(ValueError, match="made with other options"):
        run_batch(manifest, options(times=(1000.0, 500.0, 0.0)), out)
    changed = rows(1)
    changed[0]["prompt"] = "a desert"
    with pytest.raises(ValueError, match="made with other a request"):
        run_batch(write_manifest(tmp_path, changed), options(), out)
    assert run_batch(write_manifest(tmp_path, rows(1)), options(offload="idle"), out)[1] == 0


@needs_networks
@pytest.mark.slow
def test_killed_and_continued(tmp_path: Path) -> None:
    content, out = rows(3), tmp_path / "out"
    content[1] |= {"camera": "walk", "seconds": 15}
    manifest = write_manifest(tmp_path, content)
    words = ["generate", "--manifest", manifest, "--out", out, *TRY, "--no-refiner"]
    process = ForkedCommand(*words, folder=tmp_path)
    deadline, growing = time.monotonic() + 200, out / "clip_1.mp4"
    while time.monotonic() < deadline and not (growing.is_file() and growing.stat().st_size > 20_000):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read_text()
    process.end(signal.SIGKILL)
    first = (out / "clip_0.mp4").stat().st_mtime_ns
    assert is_whole(out / "clip_0.mp4")
    assert not is_whole(growing)
    assert count_video_frames("v", growing)[0] > 0  # even so it plays
    text, code = run_batch(manifest, options(), out)
    assert "3 videos (2 new), 0 failed" in text, code
    assert count_video_frames("v", growing)[0] == 241
    assert (out / "clip_0.mp4").stat().st_mtime_ns == first


@needs_networks
@pytest.mark.slow(about_s=12)
def test_several_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool) -> None:
    """Workers give the same videos as one process."""
    monkeypatch.setattr(batch, "num_cores", lambda: 1)  # one thread a process, as in all tests
    content = rows(3)
    content[2]["camera"] = "loop"
    manifest = write_manifest(tmp_path, content)
    text, code = run_batch(manifest, options(), tmp_path / "many", workers=2 if thorough else 1)
    assert code == 1
    assert "2 videos (2 new), 1 failed" in text
    assert "clip_2: camera 'loop'" in text
    run_batch(manifest, options(), tmp_path / "one", limit=2)
    for i in range(2):
        assert (tmp_path / "many" / f"clip_{i}.mp4").read_bytes() == (
            tmp_path / "one" / f"clip_{i}.mp4"
        ).read_bytes()


@needs_networks
@pytest.mark.slow
def test_weights_that_cannot_be_loaded_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, not clip by clip."""
    asked = []

    def fail(*arguments: object) -> None:
        asked.append(arguments)
        raise ValueError("model.pt cannot be read")

    batch._generator.cache_clear()
    monkeypatch.setattr(batch, "build_generator", fail)
    with pytest.raises(batch.RunAborted, match=r"the parts cannot be loaded: model\.pt cannot be read"):
        run_batch(write_manifest(tmp_path, rows(3)), options(), tmp_path / "out")
    assert len(asked) == 1
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_folder_is_held(tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path, rows(1)), tmp_path / "out"
    with batch.hold_folder(out), pytest.raises(ValueError, match="another run is writing here"):
        run_batch(manifest, options(), out)


def test_options_that_do_not_go_with_a_manifest(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, rows(1))
    for more, named in (
        (["--prompt", "x"], "--prompt is in the manifest's rows"),
        (["--overwrite"], "--overwrite is for one video"),
    ):
        done = generate("--manifest", manifest, "--out", tmp_path / "out", *TRY, *more)
        assert done.exit_code == 2
        assert named in done.output
    (tmp_path / "file").write_text("")
    done = generate("--manifest", manifest, "--out", tmp_path / "file", *TRY)
    assert done.exit_code == 2
    assert "must be a folder" in done.output
