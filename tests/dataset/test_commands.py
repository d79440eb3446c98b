"""The commands of this folder from the real command line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from theodolite.dataset.rows import Row
from theodolite.recipes.cli import app
from typer.testing import CliRunner


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_evaluate_scores_videos_and_report_shows_one_clip(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    there = np.tile(np.eye(4), (161, 1, 1))
    there[:, 0, 3] = np.abs(np.linspace(-1, 1, 161))
    rows = [make_row(i, frames=161, camera_to_world=there) for i in range(2)]
    data = make_dataset(tmp_path / "data", {"a": rows})
    videos = tmp_path / "videos"
    videos.mkdir()
    with av.open(str(videos / "clip_0000.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "bgr0"
        for i in range(161):
            image = np.full((24, 32, 3), abs(80 - i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    code, out, error = run(
        *("evaluate", data, data, "--videos", videos, "--quality", "sharpness", "--format", "csv"),
        *("--perceptual", "theodolite.dataset.metrics.image:psnr_db"),
    )
    assert code == 0, error
    first, second = csv.DictReader(io.StringIO(out.split("\n\n")[0]))
    assert float(first["revisit_psnr_db"]) == 100 == float(first["revisit_lpips"])
    assert float(first["quality_drop"]) == 0
    assert second["revisit_psnr_db"] == "-"
    code, out, error = run("evaluate", data, data, "--quality", "sharpness")
    assert (code, "need --videos" in error) == (2, True)
    code, out, error = run("report", data, "--clip", "clip_0001", "--html", tmp_path / "one.html")
    assert code == 0, error
    assert "clip_0000" not in (tmp_path / "one.html").read_text()
    code, out, error = run("report", data, "--clip", "nope", "--html", tmp_path / "x.html")
    assert (code, "no clip 'nope'" in error) == (2, True)
