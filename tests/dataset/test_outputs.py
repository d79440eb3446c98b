"""One command does not write into another's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from theodolite.dataset.camera_files.load import GENERATION_LOG
from theodolite.dataset.encoded import MARKER, begin
from theodolite.dataset.outputs import MARKS, refuse_other_outputs
from theodolite.recipes.generate.batch import _check_folder
from theodolite.recipes.generate.options import GenerateOptions
from theodolite.recipes.loader import load_recipe
from theodolite.recipes.run import run_annotate
from theodolite.train.student import StudentConfig
from theodolite.train.trajectories import TrajectoryOptions, TrajectoryRecord
from theodolite.train.trajectories import begin as begin_trajectories

from ..train.encoded_clips import encoding


def writers() -> dict[str, Callable[[Path], object]]:
    """What begins to write into a folder, by its mark; a training is tried where trainings are."""
    import torch

    options = TrajectoryOptions(student=StudentConfig(frames=5))
    record = TrajectoryRecord(teacher="x", autoencoder="y", options=options)
    empty = torch.zeros(10, 16), torch.arange(10) < 1
    return {
        "dataset.json": lambda out: run_annotate(load_recipe("demo"), out),
        MARKER: lambda out: begin(out, encoding(), empty),
        "trajectories.json": lambda out: begin_trajectories(out, record),
        GENERATION_LOG: lambda out: _check_folder(out, [], GenerateOptions(mode="bidirectional")),
        "checkpoints": lambda out: refuse_other_outputs(out, "checkpoints"),
    }


def test_no_command_writes_into_the_folder_of_another(tmp_path: Path) -> None:
    all_ = writers()
    assert all_.keys() == MARKS.keys()
    for mark, what in MARKS.items():
        folder = tmp_path / mark
        folder.mkdir()
        (folder / mark).touch()
        for mine, begins in all_.items():
            if mine != mark:
                with pytest.raises(ValueError, match=f"holds {what}; choose another --out"):
                    begins(folder)
        assert [path.name for path in folder.iterdir()] == [mark]
        refuse_other_outputs(folder, mark)
