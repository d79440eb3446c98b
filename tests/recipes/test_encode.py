"""`theodolite encode` as users run it: resumed, killed, told what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from theodolite.annotate.run import cluster
from theodolite.dataset.encoded import open_encoded
from theodolite.dataset.reading import open_dataset
from theodolite.recipes.cli import app
from theodolite.recipes.generate import batch
from theodolite.recipes.generate.options import GenerateOptions
from typer.testing import CliRunner

from ..train.encoded_clips import row_with_pictures, write_annotated

runner = CliRunner()
SETS = ["--set", "height=64", "--set", "width=96", "--set", "frames=17"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("annotated")
    rows = [row_with_pictures(root, n, frames=36) for n in range(2)]
    rows.append(row_with_pictures(root, 2, verdict="rejected", reasons=("fov_x",), reason_details=("wide",)))
    return write_annotated(root, rows)


def encode(dataset: Path, out: Path, *more: str):
    arguments = ["encode", str(dataset), "--out", str(out), "--weights", "stand_in", *SETS]
    return runner.invoke(app, [*arguments, "--media-root", str(dataset.parent), "--device", "cpu", *more])


@pytest.mark.slow
def test_encode_resumes_and_says_what_is_left_out(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoded"
    said = encode(dataset, out, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "4 windows of 2 clips" in said.output
    assert not out.exists()
    said = encode(dataset, out, "--limit", "1", "--windows-per-shard", "1")
    assert "1 windows encoded, 0 were there" in said.output
    said = encode(dataset, out, "--windows-per-shard", "2")
    assert said.exit_code == 0, said.output
    assert "3 windows encoded, 1 were there, 0 failed" in said.output
    assert "1 x clip clip_0002: was rejected (fov_x)" in said.output
    data = open_encoded(out)
    assert len(data) == 4
    assert data.encoding.stand_in
    assert json.loads((out / "encode.json").read_text())["failed"] == {}
    for more in ((), ("--dry-run",)):
        said = encode(dataset, out, "--set", "fit=squeeze", *more)
        assert said.exit_code == 2
        assert "fit: 'cover' there, 'squeeze' now" in said.output
    assert "4 are encoded" in encode(dataset, out, "--dry-run").output
    for change, why in (
        ("frames=9", "num_frames 17 there, 9 now"),
        ("cameras=none", "cameras True there, False now"),
        ("caption=other", "caption 'A room.' there, '' now"),
    ):  # windows of the same ids
        said = encode(dataset, out, "--set", change, "--set", "missing_caption=empty", "--dry-run")
        assert said.exit_code == 2
        assert f"(clip_0000_w000000: {why}" in said.output
    rows = list(open_dataset(dataset).rows())  # annotated again
    rows[0] = replace(rows[0], focal_px=rows[0].focal_px * np.float32(1.01))
    again = write_annotated(tmp_path, rows)
    said = encode(again, out, "--media-root", str(dataset.parent))
    assert re.search(r"holds 2 windows .*\(clip_0000_w000000: cameras_digest", said.output)
    said = encode(dataset, out, "--set", "stride=9")
    assert "4 windows encoded, 2 were there" in said.output
    assert "4 further windows lie there" in encode(dataset, out).output


@pytest.mark.slow
def test_lenses_that_bend_are_told_where_cameras_are_encoded(tmp_path: Path) -> None:
    rows = [
        replace(row_with_pictures(tmp_path, n, frames=36), radial_k1=k1) for n, k1 in enumerate((-0.4, 0.001))
    ]
    data, out = write_annotated(tmp_path, rows), tmp_path / "encoded"
    told = r"1 clips were seen through lenses that move the corners by (\d+) to \1 % of the diagonal"
    assert re.search(told, encode(data, out, "--dry-run").output)
    for more in ("cameras=none", "undistort=true"):
        said = encode(data, out, "--dry-run", "--set", more).output
        assert "2 clips" in said
        assert "move the corners" not in said


@pytest.mark.slow
def test_a_broken_video_costs_its_own_clip(dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dataset.parent, root)
    (root / "1.mp4").write_bytes(b"no video")
    said = encode(root / "dataset", tmp_path / "e")
    assert said.exit_code == 1
    assert "2 windows encoded, 0 were there, 2 failed" in said.output
    assert "clip_0001" in json.loads((tmp_path / "e" / "encode.json").read_text())["failed"].popitem()[1]
    shutil.copy(dataset.parent / "1.mp4", root / "1.mp4")
    assert "2 windows encoded, 2 were there, 0 failed" in encode(root / "dataset", tmp_path / "e").output
    for video in root.glob("*.mp4"):  # needed no more
        video.unlink()
    assert "0 windows encoded, 4 were there, 0 failed" in encode(root / "dataset", tmp_path / "e").output


def test_media_that_is_left_is_encoded_wherever_it_is_in_the_dataset(dataset: Path, tmp_path: Path) -> None:
    (row,) = [row for row in open_dataset(dataset).rows() if row.clip_id == "clip_0000"]
    shutil.copy(dataset.parent / row.media, tmp_path)
    gone = [replace(row, clip_id=f"clip_{n:04d}", media=f"gone_{n}.mp4") for n in range(40)]
    elsewhere = replace(row, clip_id="clip", media="https://example.org/clip.mp4")
    root = write_annotated(tmp_path, [elsewhere, *gone, replace(row, clip_id="clip_9999")])
    said = encode(root, tmp_path / "e", "--dry-run")
    assert (said.exit_code, "84 windows of 42 clips" in said.output) == (0, True), said.output
    (tmp_path / row.media).unlink()
    said = encode(root, tmp_path / "e", "--dry-run")
    assert said.exit_code == 2
    assert re.search(
        "of the 42 clips to encode no media is there .clip clip: its media is https", said.output
    )


@pytest.mark.slow
def test_nobody_who_works_ends_the_wait(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that never come, of all commands that have some beside annotation's."""
    from distributed import Client, LocalCluster

    @contextmanager
    def without_workers(*_: object, **__: object) -> Iterator[Client]:
        settings: dict[str, Any] = dict(n_workers=0, processes=False, dashboard_address="127.0.0.1:0")
        with LocalCluster(**settings) as local, Client(local, set_as_default=False) as client:
            yield client

    monkeypatch.setattr(cluster, "FROZEN_AFTER_S", 0.3)
    monkeypatch.setattr(cluster, "_ASK_EVERY_S", 0.1)
    monkeypatch.setattr("theodolite.recipes.encode.local_cluster", without_workers)
    told = r"no worker stayed alive.*: use fewer workers \(--workers\)"
    said = encode(dataset, tmp_path / "e", "--workers", "1")
    assert said.exit_code == 1
    assert re.search(told, said.output)
    job = batch.Job(out=tmp_path, options=GenerateOptions(mode="bidirectional"))
    clip = batch.ClipRequest(id="a", image=Path("a.png"), prompt="a", camera="w")
    with without_workers() as client, pytest.raises(cluster.RunAborted, match=told):
        next(iter(batch._on_cluster(client, [clip], job)))


def test_what_cannot_be_encoded_is_told_before_networks_are_loaded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theodolite.recipes.encode.load_encoders", None)
    said = encode(dataset, tmp_path / "e", "--media-root", str(tmp_path))
    assert said.exit_code == 2
    assert re.search(
        r"of the 2 clips to encode no media is there \(clip clip_0000: .*0.mp4\); --media-root", said.output
    )
    said = encode(dataset, dataset)
    assert "holds a dataset; choose another --out" in said.output
    said = encode(dataset, tmp_path / "e", "--set", "height=32", "--set", "width=320")
    assert re.search(r"2 x clip clip_0000: the image is 160x96: cut to .*squeeze keeps", said.output)


def test_wrong_options_are_named(dataset: Path, tmp_path: Path) -> None:
    said = encode(dataset, tmp_path / "e", "--set", "frames=20")
    assert said.exit_code == 2
    assert "8 k + 1" in said.output
    said = encode(dataset, tmp_path / "e", "--set", "heigth=64")
    assert "heigth: unknown key" in said.output
