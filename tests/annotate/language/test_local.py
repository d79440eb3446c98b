"""Captions by a model of this process: a tiny Qwen3-VL of transformers' own classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from theodolite.annotate.language import local
from theodolite.annotate.language.base import NoAnswer, Request, _jpeg
from theodolite.annotate.language.local import load_transformers
from theodolite.dataset.reading import open_dataset

from ...support import Done, needs_packages, run_here
from ...train.encoded_clips import row_with_pictures, write_annotated
from .tiny_vlm import write_tiny_vlm

pytestmark = [needs_packages("transformers", "PIL", extra="captions"), pytest.mark.slow]

SCENE = "Brick houses stand along a narrow street under grey clouds with parked bicycles near the canal."


def picture(seed: int, height: int = 96) -> bytes:
    return _jpeg(np.random.default_rng(seed).integers(0, 255, (height, 128, 3), dtype=np.uint8))


def test_a_batch_answers_as_each_alone_and_by_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Talks of different lengths, with one to three pictures of different sizes, and a second turn."""
    model = load_transformers(str(write_tiny_vlm(tmp_path)), device="cpu", batch=4)
    first = Request(pictures=(picture(0), picture(1, 160)), prompt="What is there?", max_tokens=12)
    requests = [
        first,
        Request(pictures=(picture(2),), prompt="And here, in many more words than before?", max_tokens=12),
        first.after("A place.", "Write it again."),
        Request(pictures=tuple(picture(s) for s in (3, 4, 5)), prompt="x", max_tokens=12),
        Request(pictures=(picture(7), picture(1, 160)), prompt="What is there?", max_tokens=12),
    ]
    cut = model.ask(requests)
    assert all(isinstance(answer, NoAnswer) for answer in cut)  # random weights never end
    assert "--max-tokens" in str(cut[0])
    monkeypatch.setattr(local, "_end_tokens", lambda _: set(range(10_000)))
    together = model.ask(requests)
    model.batch = 1
    assert together == model.ask(requests)
    assert together[0] != together[4]  # another picture, another answer
    assert together[0] != together[2]


def caption(dataset: Path, model: Path, *more: object) -> Done:
    place = ("--media-root", dataset.parent, "--pictures", 3, "--jobs", 2)
    return run_here(
        "caption", dataset, "--runner", "transformers", "--model", model, "--device", "cpu", *place, *more
    )


def test_the_command_with_a_model_of_this_process(tmp_path: Path) -> None:
    rows = [row_with_pictures(tmp_path, n, frames=9, captions=None) for n in range(3)]
    dataset = write_annotated(tmp_path, rows)
    says = write_tiny_vlm(tmp_path / "says", f"{SCENE} Camera pans slowly left.")
    done = caption(dataset, says, "--limit", 1)
    assert (done.returncode, done.stdout.count("1 clips done")) == (0, 1), done
    done = caption(dataset, says)
    assert "2 clips done, 1 were there" in done.stdout, done
    found = [dict(row.captions or {}) for row in open_dataset(dataset).rows()]
    assert [list(row.values()) for row in found] == [[SCENE]] * 3  # the sentence on the camera is gone
    # Garbage is no caption: a problem of each clip, in words, and the run goes on.
    shutil.rmtree(dataset / "extra")
    done = caption(dataset, write_tiny_vlm(tmp_path / "garbage"), "--max-tokens", 16)
    assert done.returncode == 1, done
    assert "cut off at its greatest length" in done.stdout
    assert not [row for row in open_dataset(dataset).rows() if row.captions]


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transformers cannot load it"):
        load_transformers(str(tmp_path), device="cpu", batch=1)
    write_tiny_vlm(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="transformers cannot load it"):
        load_transformers(str(tmp_path), device="cpu", batch=1)
