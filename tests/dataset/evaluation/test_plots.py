"""Figures of an evaluation."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from .runs import run_evaluate


def test_plots_show_paths_and_errors_over_time(runs: Path) -> None:
    run_evaluate(runs / "ours", runs / "truth", plots=runs / "plots")
    drawing = (runs / "plots" / "clips" / "clip_0002.svg").read_text()
    ET.fromstring(drawing)
    for title in (
        "from above",
        "from the side",
        "from behind",
        "Position error",
        "Rotation error",
        "Focal error",
    ):
        assert title in drawing
    assert len(list((runs / "plots" / "clips").iterdir())) == 5
