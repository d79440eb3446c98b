"""Weights: licence before download, fixed revisions, digests, offline use."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from theodolite.dataset import weights
from theodolite.dataset.licences import find_licence
from theodolite.recipes.loader import PACKAGED, load_recipe

from ..support import run_here
from ..typed import known, wrong

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_notice_comes_before_the_download_and_names_licence_and_size(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"tensor")
    events = []

    def download(**where):
        events.append(where)
        return str(file)

    got = weights.pull("pi3x", revision=COMMIT, show=events.append, download=download)
    text, where = events
    assert "CC-BY-NC-4.0" in text
    assert "5.44 GB" in text
    assert "commercially" in text
    assert where == {"repo_id": "yyfz233/Pi3X", "filename": "model.safetensors", "revision": COMMIT}
    assert got.sha256 == hashlib.sha256(b"tensor").hexdigest()
    assert got.label == f"pi3x@{COMMIT}#{got.sha256[:12]}"


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT[:12]])
def test_a_moving_revision_is_refused_before_any_download(revision):
    with pytest.raises(ValueError, match="40 hex"):
        weights.pull("pi3x", revision=revision, show=pytest.fail, download=pytest.fail)


def test_wrong_digest_is_refused(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model\.pt has SHA-256 .* expected aaaa"):
        weights.resolve("moge-2-vitl", path=file, sha256="a" * 64)


def test_the_digest_in_the_hub_cache_is_checked(tmp_path):
    blob = tmp_path / ("b" * 64)
    blob.write_bytes(b"damaged on disk")
    link = tmp_path / "model.pt"
    link.symlink_to(blob)
    with pytest.raises(ValueError, match="damaged"):
        weights.resolve("moge-2-vitl", path=link)


def test_the_pinned_digest_holds_for_the_pinned_commit_and_for_local_files(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not Pi3X")
    own = hashlib.sha256(b"not Pi3X").hexdigest()
    pinned = weights.WEIGHTS["pi3x"].sha256
    with pytest.raises(ValueError, match=f"expected {pinned}"):
        weights.pull("pi3x", show=wrong(str), download=lambda **_: str(file))
    with pytest.raises(ValueError, match=f"expected {pinned}"):
        weights.resolve("pi3x", path=file)
    # Somebody's own weights are used when their digest is given, and rows do not call them the released ones.
    assert weights.resolve("pi3x", path=file, sha256=own).label == f"pi3x@local-file#{own[:12]}"
    assert (
        weights.pull("pi3x", revision=COMMIT, show=wrong(str), download=lambda **_: str(file)).revision
        == COMMIT
    )


def test_absent_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"theodolite weights pull moge-2-vits-normal --revision {COMMIT}"):
        weights.resolve("moge-2-vits-normal", revision=COMMIT)
    with pytest.raises(ValueError, match=r"theodolite weights pull pi3x$"):
        weights.resolve("pi3x")
    with pytest.raises(ValueError, match="no such file"):
        weights.resolve("pi3x", path=tmp_path / "none")
    with pytest.raises(ValueError, match="moge-2-vitb-normal"):
        weights.resolve("mogee")


def test_listing_has_every_checkpoint_with_licence_and_size():
    rows = weights.listing()
    assert {r["name"] for r in rows} == set(weights.WEIGHTS)
    assert all(r["licence"] and r["size"].endswith("GB") for r in rows)


def test_every_licence_is_one_that_publishing_knows():
    """Weights and packaged recipes name licences by which publishing judges each clip."""
    for weight in weights.WEIGHTS.values():
        assert find_licence(weight.licence) is not None, weight.name
        assert weight.commercial_use == known(find_licence(weight.licence)).commercial
    assert not weights.WEIGHTS["pi3x"].commercial_use
    assert weights.WEIGHTS["moge-2-vitl-normal"].commercial_use
    for path in PACKAGED.glob("*.yaml"):
        licence = getattr(load_recipe(path).source, "data_licence", "unknown")
        assert licence == "unknown" or find_licence(licence) is not None, path


def test_the_command_lists_and_pulls(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    listed = run_here("weights", "list")
    assert listed.returncode == 0
    for weight in weights.WEIGHTS.values():
        line = next(x for x in listed.stdout.splitlines() if x.startswith(weight.name + " "))
        assert weight.licence in line
        assert f"{weight.num_bytes / 1e9:.2f} GB" in line
    # Offline: licence and size are on stderr before the attempt, and one line says what went wrong.
    pulled = run_here("weights", "pull", "pi3x", "--revision", COMMIT)
    assert pulled.returncode == 1
    assert pulled.stdout == ""
    assert pulled.stderr.index("CC-BY-NC-4.0") < pulled.stderr.index("could not be downloaded")
    pinned = run_here("weights", "pull", "pi3x")
    assert pinned.returncode == 1
    assert f"at {weights.WEIGHTS['pi3x'].revision}" in pinned.stderr
    assert run_here("weights", "pull", "pi3x", "--revision", "main").returncode == 2
    assert run_here("weights", "pull", "pi4x").returncode == 2


def test_a_pulled_file_is_found_offline(tmp_path, monkeypatch):
    """The hub's cache layout: what `pull` leaves is what `resolve` finds, without any network."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    cache = tmp_path / "models--Ruicheng--moge-2-vitl"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "blobs" / digest).write_bytes(content)
    link = cache / "snapshots" / COMMIT / "model.pt"
    link.symlink_to(cache / "blobs" / digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = weights.resolve("moge-2-vitl", revision=COMMIT)
    assert found.sha256 == digest
    assert found.path == link
    (cache / "blobs" / digest).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        weights.resolve("moge-2-vitl", revision=COMMIT)


def released(root: Path, name: str) -> Path:
    """A snapshot that holds what an entry needs, with two shards where it has an index."""
    w = weights.WEIGHTS[name]
    top = root / f"models--{w.repository.replace('/', '--')}" / "snapshots" / w.revision
    for file in (w.filename, *w.beside):
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_text(file)
    if w.patterns:
        folder = top / str(w.loaded)
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        for shard in shards.values():
            (folder / shard).write_text(shard)
    return top


@pytest.mark.parametrize("name", [n for n, w in weights.WEIGHTS.items() if w.beside])
def test_weights_of_several_files_are_there_whole_or_not_at_all(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    w = weights.WEIGHTS[name]
    with pytest.raises(ValueError, match=f"weights pull {name}"):
        weights.resolve(name)
    top = released(tmp_path, name)
    found = weights.resolve(name)
    assert found.root == top
    assert found.path == top / (w.loaded or w.filename)
    assert weights.resolve(name) == found
    if w.is_folder:
        assert weights.resolve(name, path=found.path).sha256 == found.sha256
        with pytest.raises(ValueError, match="name the folder"):
            weights.resolve(name, path=top / w.filename)
    needed = [*w.beside, *(f"{w.loaded}/model-0000{i}-of-00002.safetensors" for i in (1, 2) if w.patterns)]
    for file in needed:
        content = (top / file).read_bytes()
        (top / file).unlink()
        with pytest.raises(ValueError, match=f"weights pull {name}"):
            weights.resolve(name)
        (top / file).write_bytes(content + b" changed")
        if w.is_folder:
            assert weights.resolve(name).sha256 != found.sha256
        (top / file).write_bytes(content)


def test_a_folder_is_pulled_with_all_that_belongs_to_it(tmp_path):
    events = []

    def download(**where):
        events.append(where)
        return str(released(tmp_path, "gemma-3-12b"))

    got = weights.pull("gemma-3-12b", show=events.append, download=download)
    assert "Gemma-terms" in events[0]
    assert "SANA-WM_streaming/gemma3_12b/" in events[0]
    assert set(events[1]["allow_patterns"]) >= {"gemma3_12b/config.json", "gemma3_12b/model*.safetensors"}
    assert got.path.name == "gemma3_12b"


def test_a_mode_of_generation_names_all_that_it_needs():
    assert weights.names_of("pi3x") == ("pi3x",)
    assert "ltx-2-vae-causal" in weights.names_of("distilled")
    assert "ltx-2-vae" in weights.names_of("bidirectional")
    for chain in weights.CHAINS.values():
        assert set(chain.values()) <= set(weights.WEIGHTS)
    with pytest.raises(ValueError, match=r"there are .*bidirectional, chunk-causal, distilled"):
        weights.names_of("streaming")


# --- digests ------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the algorithms that were started anew, one entry for each file read."""
    started: list[str] = []
    real = hashlib.sha256

    def sha256(*data: bytes):
        if not data:  # names of notes are hashed at once
            started.append("sha256")
        return real(*data)

    monkeypatch.setattr(weights.hashlib, "sha256", sha256)
    return started


def old_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9))
    return path


@pytest.mark.slow
def test_a_file_is_hashed_once_whoever_asks(tmp_path, cache, monkeypatch):
    file = old_file(tmp_path / "model.pt", b"weights")
    reads = count_reads(monkeypatch)
    first = weights.resolve("moge-2-vitl", path=file)
    assert weights.resolve("moge-2-vitl", path=file) == first
    assert len(reads) == 1
    code = f"""
import hashlib
from theodolite.dataset import weights
real = hashlib.sha256
def refuse(*data):
    assert data, "read again"
    return real(*data)
weights.hashlib.sha256 = refuse
print(weights.file_digest(weights.Path({str(file)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == first.sha256, done.stderr
    # Another content of the same size and time is another file.
    old_file(file, b"damaged")
    with pytest.raises(ValueError, match="damaged or another version"):
        weights.resolve("moge-2-vitl", path=file, sha256=first.sha256)


def test_digests_without_a_writable_cache(tmp_path, monkeypatch):
    file = old_file(tmp_path / "model.pt", b"weights")
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(weights.tempfile, "gettempdir", lambda: str(blocked))
    assert weights.file_digest(file) == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(weights.os.path, "expanduser", lambda path: path)  # a user without a home
    assert weights.file_digest(file) == hashlib.sha256(b"weights").hexdigest()
