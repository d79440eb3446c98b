"""Cameras recovered from generated videos by our own annotation, to be held against the paths that were asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .loader import load_recipe
from .run import RunOptions, run_annotate

RECIPE = "estimate"


def sides_of_videos(
    predicted: Path | None,
    videos: Path | None,
    *,
    recovered: Path | None = None,
    overrides: Sequence[str] = (),
    workers: int | None = None,
) -> tuple[Path, Path]:
    """What is compared where PRED or TRUTH is left out: recovered cameras, and the records of the videos.

    Args:
        predicted: cameras of the videos that somebody has recovered; None: they are recovered here.
        videos: folder of generated videos with their records.
        recovered: dataset folder for them, continued if it is there; None: `recovered` among the videos.
        overrides: of the recipe `estimate`.
        workers: see `run_annotate`.
    Raises:
        ValueError: no videos, or the recipe's networks have no weights.
    """
    if videos is None:
        raise ValueError("give PRED and TRUTH; one or both can be left out beside --videos DIR alone")
    if not videos.is_dir():
        raise ValueError(f"--videos {videos}: no such folder")
    if not any(videos.glob("*.json")):
        raise ValueError(
            f"--videos {videos}: holds no records of generated videos (<clip_id>.json), which say what path was "
            "asked for: give PRED and TRUTH"
        )
    if predicted is not None:
        if recovered or overrides or workers is not None:
            raise ValueError(
                "--recovered, --set and --workers are of cameras that are recovered: leave PRED out"
            )
        return predicted, videos
    out = videos / "recovered" if recovered is None else recovered
    recipe = load_recipe(RECIPE, [f"source.root={videos.resolve()}", *overrides])
    try:
        text, _ = run_annotate(recipe, out, RunOptions(workers=workers))
    except ValueError as error:
        raise ValueError(
            f"cameras cannot be recovered from the videos: {error}. Or give cameras that you recovered: theodolite "
            f"evaluate PRED --videos {videos}"
        ) from None
    sys.stderr.write(f"cameras of the videos: {text}\n")
    return out, videos
