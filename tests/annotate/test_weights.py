"""Weights: licence before download, fixed revisions, digests, offline use."""

from __future__ import annotations

import hashlib

import pytest
from theodolite.annotate import weights

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
    assert "CC BY-NC 4.0" in text
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


def test_absent_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"theodolite weights pull moge-2-vits-normal --revision {COMMIT}"):
        weights.resolve("moge-2-vits-normal", revision=COMMIT)
    with pytest.raises(ValueError, match="no file"):
        weights.resolve("pi3x", path=tmp_path / "none")
    with pytest.raises(ValueError, match="moge-2-vitb-normal"):
        weights.resolve("mogee")


def test_listing_has_every_checkpoint_with_licence_and_size():
    rows = weights.listing()
    assert {r["name"] for r in rows} == set(weights.WEIGHTS)
    assert all(r["licence"] and r["size"].endswith("GB") for r in rows)
