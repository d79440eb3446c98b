"""The fetch command against a hub on loopback: each file once, within the budget, and gone ones by their reason."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import types
from pathlib import Path

import pytest
from theodolite.annotate.fetch.ledger import Ledger
from theodolite.annotate.fetch.transfer import Policy
from theodolite.dataset.media.write import VideoWriter
from theodolite.recipes.corpus.fetching import (
    FetchOptions,
    drop_annotated,
    fetch,
    run_annotate_fetching,
    run_fetch,
    size_below,
)
from theodolite.recipes.loader import RecipeError, load_recipe
from theodolite.recipes.run import RunOptions, run_annotate

from ..annotate.fetch.server import Site, serving
from ..support import run_here

REPOSITORY = "SpatialVID/SpatialVID-HQ"
QUICK = Policy(stall_s=0.5, tries=2, wait_s=0.01)
noise = random.Random(0)


def group(*names: str, size: int = 3000, prefix: str = "SpatialVID/videos/group_0001") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(f"{prefix}/{name}.mp4")
            info.size = size
            archive.addfile(info, io.BytesIO(noise.randbytes(size)))
    return out.getvalue()


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Site()) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        served.add_repository(
            REPOSITORY,
            {
                "README.md": b"card",
                "data/train/SpatialVID_HQ_metadata.csv": b"id,num frames,fps\na,450,30.0\n",
                "videos/group_0001.tar.gz": group("a", "b"),
                "videos/group_0002.tar.gz": group("c", prefix="videos/group_0002"),
                "annotations/group_0001.tar.gz": b"not wanted",
            },
        )
        yield served


def recipe(root: Path, name: str = "corpus/spatialvid-hq", *overrides: str):
    return load_recipe(name, [f"source.root={root}", *overrides])


def options(**values) -> FetchOptions:
    return FetchOptions(**({"policy": QUICK, "jobs": 1, "pause_s": 0.0} | values))


def heard(lines: list[str] | None = None):
    return (lines if lines is not None else []).append


def test_wanted_files_come_once(site: Site, tmp_path: Path) -> None:
    text, code = run_fetch(recipe(tmp_path), options=options(jobs=2), say=heard())
    assert code == 0, text
    assert text.startswith(f"{tmp_path}: 3 files fetched")
    for path in ("data/train/SpatialVID_HQ_metadata.csv", "videos/group_0001.tar.gz"):
        assert (tmp_path / path).read_bytes() == site.repositories[REPOSITORY][path]
    assert not (tmp_path / "annotations").exists()
    before = site.requests.total()
    text, code = run_fetch(recipe(tmp_path), options=options(), say=heard())
    assert (code, site.requests.total()) == (0, before)  # not even the list is asked for again
    assert "0 files fetched (0.000 GB), 3 were here" in text


def test_unpacked_archives_are_not_fetched_again(site: Site, tmp_path: Path) -> None:
    result = fetch(recipe(tmp_path), options=options(unpack=True), say=heard())
    assert (result.fetched, result.unpacked, result.damaged) == (3, 2, [])
    assert sorted(p.name for p in tmp_path.rglob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]
    assert not list(tmp_path.rglob("*.tar.gz"))
    before = site.requests.total()
    result = fetch(recipe(tmp_path), options=options(unpack=True), say=heard())
    assert (result.fetched, result.here, site.requests.total()) == (0, 3, before)


def test_a_limit_counts_media_and_not_tables(site: Site, tmp_path: Path) -> None:
    result = fetch(recipe(tmp_path), options=options(limit=1), say=heard())
    assert (result.fetched, result.left) == (2, 1)


def test_what_fails_is_recorded_and_only_what_may_come_back_is_tried_again(
    site: Site, tmp_path: Path
) -> None:
    place = f"/datasets/{REPOSITORY}/resolve/{'c' * 40}/videos/"
    site.always = {place + "group_0001.tar.gz": "403", place + "group_0002.tar.gz": "500"}
    text, code = run_fetch(recipe(tmp_path), options=options(), say=heard())
    assert code == 1
    assert "no_access 1: Access was refused" in text
    assert "unreachable 1:" in text
    entries = {entry.place: entry for entry in Ledger(tmp_path)}
    assert entries["videos/group_0001.tar.gz"].reason == "no_access"
    site.always.clear()
    asked = site.requests[place + "group_0001.tar.gz"]
    result = fetch(recipe(tmp_path), options=options(), say=heard())
    assert (result.fetched, [e.reason for e in result.failed]) == (1, ["no_access"])
    assert site.requests[place + "group_0001.tar.gz"] == asked
    result = fetch(recipe(tmp_path), options=options(retry=True), say=heard())
    assert (result.fetched, result.failed) == (1, [])


def test_a_repository_that_cannot_be_listed(tmp_path: Path, site: Site) -> None:
    site.repositories.clear()
    with pytest.raises(ValueError, match=r"SpatialVID/SpatialVID-HQ: cannot be listed.*need access"):
        fetch(recipe(tmp_path), options=options(), say=heard())
    with pytest.raises(RecipeError, match="section fetch"):
        fetch(recipe(tmp_path, "corpus/dl3dv-gs"), options=options(), say=heard())


def test_a_pattern_that_matches_nothing_is_a_mistake(site: Site, tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "corpus/spatialvid-hq", "fetch.files=['videos/group_*.zip']")
    with pytest.raises(
        ValueError, match=r"holds no file that matches 'videos/group_\*.zip'.*it holds README.md"
    ):
        fetch(loaded, options=options(), say=heard())
    lines: list[str] = []
    loaded = recipe(tmp_path, "corpus/spatialvid-hq", "fetch.files=['videos/*.zip', 'videos/*.tar.gz']")
    assert fetch(loaded, options=options(), say=heard(lines)).fetched == 2
    assert "holds no file that matches 'videos/*.zip'" in lines[0]


def test_a_damaged_archive_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.repositories[REPOSITORY]["videos/group_0001.tar.gz"] = cut = group("a", "b")[:2000]
    site.add_repository(REPOSITORY, site.repositories[REPOSITORY] | {"videos/group_0001.tar.gz": cut})
    text, code = run_fetch(recipe(tmp_path), options=options(unpack=True), say=heard())
    assert code == 1
    assert "damaged or incomplete" in text
    site.add_repository(
        REPOSITORY, site.repositories[REPOSITORY] | {"videos/group_0001.tar.gz": group("a", "b")}
    )
    text, code = run_fetch(recipe(tmp_path), options=options(unpack=True, refresh=True), say=heard())
    assert code == 0, text
    assert sorted(p.name for p in tmp_path.rglob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]


def test_parts_of_a_split_zip_are_unpacked_once_all_are_here(site: Site, tmp_path: Path) -> None:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("sekai-game-walking/00100100001_0008250_0010050.mp4", noise.randbytes(9000))
    content = out.getvalue()
    parts = {
        f"sekai-game-walking.zip.part_a{c}": content[i * 3200 : (i + 1) * 3200] for i, c in enumerate("abc")
    }
    site.add_repository("Lixsp11/Sekai-Project", parts)
    root = tmp_path / "sekai"
    place = f"/datasets/Lixsp11/Sekai-Project/resolve/{'c' * 40}/sekai-game-walking.zip.part_ac"
    site.always[place] = "500"
    result = fetch(recipe(root, "corpus/sekai-game"), options=options(unpack=True), say=heard())
    assert (result.fetched, result.unpacked) == (2, 0)
    site.always.clear()
    result = fetch(recipe(root, "corpus/sekai-game"), options=options(unpack=True), say=heard())
    assert (result.fetched, result.unpacked, result.damaged) == (1, 1, [])
    assert [p.name for p in root.rglob("*.mp4")] == ["00100100001_0008250_0010050.mp4"]
    assert not list(root.glob("*.part_*"))
    assert fetch(recipe(root, "corpus/sekai-game"), options=options(unpack=True), say=heard()).here == 3


# --- budget -------------------------------------------------------------------------------------------


def test_the_disk_never_holds_more_than_the_budget(site: Site, tmp_path: Path, monkeypatch) -> None:
    """Watched at every byte that is asked for; what has no room is left and not recorded as failed."""
    budget = 8_000
    import theodolite.recipes.corpus.fetching as module

    peak = 0
    take = module._Budget.take

    def watched(self, count: int) -> bool:
        nonlocal peak
        allowed = take(self, count)
        peak = max(peak, size_below(tmp_path))
        return allowed

    monkeypatch.setattr(module._Budget, "take", watched)
    result = fetch(recipe(tmp_path), options=options(budget_bytes=budget), say=heard())
    assert result.no_room
    assert result.fetched == 2
    assert result.left == 1
    assert max(peak, size_below(tmp_path)) <= budget
    assert all(entry.state == "done" for entry in Ledger(tmp_path))


def video_bytes(folder: Path, *, frames: int) -> bytes:
    path = folder / "v.mp4"
    with VideoWriter(path, width=64, height=48, fps=16.0) as out:
        import numpy as np

        for i in range(frames):
            out.write(np.full((48, 64, 3), (7 * i) % 256, np.uint8))
    return path.read_bytes()


@pytest.mark.slow
def test_fetched_annotated_and_deleted_in_turns(site: Site, tmp_path: Path) -> None:
    """Four groups that do not fit at once go through a budget for about one, and leave a row for each clip."""
    clip = video_bytes(tmp_path, frames=24)

    def archive(number: int) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            info = tarfile.TarInfo(f"videos/group_{number:04d}/clip{number}.mp4")
            content = clip + noise.randbytes(100_000)  # after the last box, players do not look
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        return out.getvalue()

    site.add_repository(REPOSITORY, {f"videos/group_{n:04d}.tar.gz": archive(n) for n in range(4)})
    root, out = tmp_path / "root", tmp_path / "run"
    loaded = load_recipe(
        "corpus/spatialvid-hq",
        [f"source.root={root}", "source.windows=null", "annotate.geometry={sequence: given, anchor: none}"],
    )

    def annotate() -> tuple[str, int]:
        return run_annotate(loaded, out, RunOptions(workers=0), show_progress=False)

    text, code = run_annotate_fetching(
        loaded, out, options=options(budget_bytes=330_000, unpack=True), annotate=annotate, say=heard()
    )
    assert code == 0, text
    assert f"{out}: 4 clips" in text
    assert size_below(root) <= 330_000
    before = site.requests.total()
    fetch(loaded, options=options(budget_bytes=330_000, unpack=True), say=heard())
    assert site.requests.total() == before


def test_nothing_is_fetched_for_what_cannot_run(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, the decoder, the dataset to go on with: 3.5 terabytes would come first."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    started = ["annotate", "corpus/spatialvid-hq", "--set", f"source.root={tmp_path / 'root'}"]
    said = run_here(*started, "--out", tmp_path / "run", "--fetch")
    assert said.returncode == 2
    assert "theodolite weights pull pi3x" in said.stderr
    assert "theodolite weights pull moge-2-vitl-normal" in said.stderr
    (tmp_path / "other").touch()
    stand_in = ["--set", "annotate.geometry.weights=stand_in", "--fetch"]
    said = run_here(*started, *stand_in, "--out", tmp_path / "other")
    assert (said.returncode, "--out must be a folder" in said.stderr) == (2, True), said
    (tmp_path / "encoded").mkdir()
    (tmp_path / "encoded/encoded.json").touch()
    said = run_here(*started, *stand_in, "--out", tmp_path / "encoded")
    assert (said.returncode, "holds encoded clips; choose another" in said.stderr) == (2, True), said
    said = run_here(*started, *stand_in, "--out", tmp_path / "run", "--retry-failed", "focal_uncertain")
    assert (said.returncode, "is a judgement" in said.stderr) == (2, True), said
    assert not site.requests.total()
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("here", [True, False])
def test_a_budget_for_nothing_ends_with_what_to_do(site: Site, tmp_path: Path, here: bool) -> None:
    if here:
        waiting = tmp_path / "videos/group_0000/x.mp4"
        waiting.parent.mkdir(parents=True)
        waiting.touch()

    def annotate() -> tuple[str, int]:
        if not here:
            raise ValueError("holds no clip")
        return "", 0

    with pytest.raises(ValueError, match=r"holds nothing that can be annotated and deleted.*--budget-gb"):
        run_annotate_fetching(
            recipe(tmp_path),
            tmp_path / "run",
            options=options(budget_bytes=2_500, unpack=True),
            annotate=annotate,
            say=heard(),
        )


def test_only_annotated_media_below_the_root_are_deleted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    loaded = recipe(root, "corpus/spatialvid-hq", "source.windows=null")
    for name in ("done", "waiting"):
        (root / "videos/group_0001").mkdir(parents=True, exist_ok=True)
        (root / f"videos/group_0001/{name}.mp4").write_bytes(b"x" * 10)
    outside = tmp_path / "kept.mp4"
    outside.write_bytes(b"y")
    (root / "videos/group_0001/linked.mp4").symlink_to(outside)
    from theodolite.annotate.run.worker import Job, failure_row
    from theodolite.annotate.sources.read import read_clips
    from theodolite.dataset.store import prepare_output, write_part

    out = tmp_path / "run"
    job = Job(out=out, config=loaded.annotate, mode="estimate", recipe_hash="0" * 16)
    prepare_output(out, recipe_hash="0" * 16)
    rows = [
        failure_row(c, job, "too_short", "x") for c in read_clips(loaded.source) if c.clip_id != "waiting"
    ]
    write_part(out, rows, shard_id="000000-x", recipe_hash="0" * 16)
    assert drop_annotated(loaded, out, say=heard()) == 10
    assert sorted(p.name for p in (root / "videos/group_0001").iterdir()) == ["linked.mp4", "waiting.mp4"]
    assert outside.read_bytes() == b"y"


# --- addresses ----------------------------------------------------------------------------------------


def test_lists_of_addresses(site: Site, tmp_path: Path, monkeypatch) -> None:
    """Plain files come by HTTP, the others through yt-dlp; a video of several clips once, a gone one by its reason."""
    table = tmp_path / "miradata_v1_330k.csv"
    rows = [
        ("1.0", f"{site.url}/a.mp4", "aaaaaaaaaaa"),
        ("1.1", f"{site.url}/a.mp4", "aaaaaaaaaaa"),
        ("2.0", "https://www.youtube.com/watch?v=--gone00000", "--gone00000"),
        ("3.0", "https://www.youtube.com/watch?v=fine0000000", "fine0000000"),
        ("4.0", "file:///etc/passwd", "x"),
    ]
    table.write_text(
        "clip_id,video_url,video_id,fps,timestamp\n"
        + "".join(f"{i},{u},{v},30,\"['0:0:0.0', '0:1:2.0']\"\n" for i, u, v in rows)
    )
    site.add_repository("TencentARC/MiraData", {"miradata_v1_330k.csv": table.read_bytes()})
    site.files["/a.mp4"] = b"video"

    class Error(Exception):
        pass

    class Client:
        def __init__(self, settings: dict) -> None:
            self.template = settings["outtmpl"]["default"]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def extract_info(self, url: str, download: bool) -> dict:
            asked.append(url)
            if "gone" in url:
                raise Error(
                    "ERROR: [youtube] x: Video unavailable. This video has been removed by the uploader"
                )
            Path(self.template.replace("%(ext)s", "webm")).write_bytes(b"webm")
            return {}

        def prepare_filename(self, info: dict) -> str:
            return self.template.replace("%(ext)s", "webm")

    asked: list[str] = []
    utils = types.SimpleNamespace(YoutubeDLError=Error, DownloadCancelled=type("C", (Error,), {}))
    monkeypatch.setitem(sys.modules, "yt_dlp", types.SimpleNamespace(YoutubeDL=Client, utils=utils))
    loaded = recipe(tmp_path, "corpus/miradata", f"source.metadata={table}")
    result = fetch(loaded, options=options(), say=heard())
    assert {e.place.rsplit("/")[-1]: e.reason for e in result.failed} == {
        "000000000002.mp4": "gone",
        "000000000004.mp4": "refused",
    }
    assert site.requests["/a.mp4"] == 1
    assert (tmp_path / "raw_video/000000000/000000000003.webm").read_bytes() == b"webm"
    before = len(asked)
    result = fetch(loaded, options=options(), say=heard())
    assert len(asked) == before  # what is here, and what is gone, is not asked for again
    from theodolite.annotate.sources.read import read_clips

    found = [clip.original_id for clip in read_clips(loaded.source)]
    assert found == ["1.0", "1.1", "3.0"]


def test_without_yt_dlp_the_message_says_what_to_install(site: Site, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    site.add_repository(
        "TencentARC/MiraData",
        {"miradata_v1_330k.csv": b"clip_id,timestamp,video_url\n1.0,\"['0:0:0','0:1:1']\",https://x/y\n"},
    )
    with pytest.raises(ImportError, match=r"pip install theodolite\[fetch\]"):
        fetch(recipe(tmp_path, "corpus/miradata"), options=options(), say=heard())


# --- killed -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interrupted_it_does_not_wait_for_what_is_under_way(site: Site, tmp_path: Path) -> None:
    place = "videos/group_0000.tar.gz"
    site.add_repository(
        REPOSITORY, {place: noise.randbytes(90_000), "data/train/SpatialVID_HQ_metadata.csv": b"id\n"}
    )
    site.always[f"/datasets/{REPOSITORY}/resolve/{'c' * 40}/{place}"] = "trickles"  # for 25 minutes
    code = (
        "from theodolite.recipes.cli import main; import sys;"
        f"sys.argv = ['theodolite', 'fetch', 'corpus/spatialvid-hq', '--out', {str(tmp_path)!r}]; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_ENDPOINT": site.url}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.rglob(".group_0000.tar.gz.part")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert not (tmp_path / place).exists()


@pytest.mark.slow
def test_killed_anywhere_it_goes_on(site: Site, tmp_path: Path) -> None:
    files = {f"videos/group_{n:04d}.tar.gz": noise.randbytes(400_000) for n in range(12)}
    site.add_repository(REPOSITORY, files)
    code = (
        "from theodolite.recipes.cli import main; import sys;"
        f"sys.argv = ['theodolite', 'fetch', 'corpus/spatialvid-hq', '--out', {str(tmp_path)!r}, '--jobs', '2']; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_ENDPOINT": site.url}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        seen = len(list(tmp_path.rglob("*.tar.gz")))
        while (
            process.poll() is None
            and len(list(tmp_path.rglob("*.tar.gz"))) < seen + 2 < 12
            and time.monotonic() < until
        ):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in tmp_path.rglob("*.tar.gz"):
            assert path.read_bytes() == files[path.relative_to(tmp_path).as_posix()]
    text, status = run_fetch(recipe(tmp_path), options=options(), say=heard())
    assert status == 0, text
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.tar.gz")) == sorted(files)
    for name, content in files.items():
        assert (tmp_path / name).read_bytes() == content
        # At most what was in flight was asked for again: three kills, two files each.
        assert site.sent[f"/datasets/{REPOSITORY}/resolve/{'c' * 40}/{name}"] <= 4 * len(content)
    assert sum(site.sent.values()) <= (12 + 6) * 400_000 + 10_000
    assert json.loads((tmp_path / ".fetched/ledger.jsonl").read_text().splitlines()[-1])["state"] == "done"
