"""What belongs to a dataset by the recipe beside it: where its media lie, and the ground truth of its clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..annotate.frames.open import open_clip
from ..annotate.given.cameras import read_intrinsics
from ..annotate.sources.clip import ClipRef, ClipRejection
from ..annotate.sources.read import read_clips
from ..dataset.camera_files.load import load_cameras
from ..dataset.camera_files.match import Matching
from ..dataset.camera_files.single import read_clip
from ..dataset.cameras.intrinsics import resize_intrinsics, split_intrinsics
from ..dataset.reading import open_dataset
from ..dataset.report.truth import Truth, TruthByClip, truth_of_row
from ..dataset.rows import Row
from .loader import DecodingBeside, media_root_of_dataset, recipe_beside


@dataclass(frozen=True, kw_only=True)
class ReportSources:
    """What a report shows beside the rows: media, ground truth, and what was not found."""

    media_root: Path
    truth: Mapping[str, Truth] | None
    notes: tuple[str, ...] = ()


def report_sources(
    out: Path, *, truth: bool = True, truth_from: Path | None = None, matching: Matching | None = None
) -> ReportSources:
    """Media and ground truth of a dataset. What the recipe beside it no longer gives is a note, no error.

    Args:
        truth: False: none.
        truth_from: take it from here, by clip id, instead of from the recipe's source.
        matching: how true poses find their frames.
    Raises:
        ValueError: `truth_from` cannot be read.
    """
    notes: list[str] = []
    try:
        root = media_root_of_dataset(out)
    except ValueError as error:
        root = Path()
        notes.append(f"no pictures: the recipe beside the dataset cannot be read ({error})")
    found: Mapping[str, Truth] | None = None
    if truth_from is not None:
        cameras, dataset = load_cameras(truth_from), open_dataset(out)
        problems = dict(cameras.unreadable)
        only = next(iter(cameras)) if len(cameras) == 1 and len(dataset) == 1 else None  # whatever its name

        def read(clip_id: str) -> Truth:
            if clip_id in problems:
                return Truth(problem=problems[clip_id])
            true = cameras[clip_id if only is None else only]
            return truth_of_row(dataset.row(clip_id), true, matching=matching, path=truth_from)

        ids = (
            dataset.to_table(["clip_id"])["clip_id"].to_pylist()
            if only is not None
            else [*cameras, *problems]
        )
        found = TruthByClip(ids, read)
    elif truth:
        try:
            found = truth_of_dataset(out, matching=matching)
        except ValueError as error:
            notes.append(f"no ground truth: {error}")
    return ReportSources(media_root=root, truth=found, notes=tuple(notes))


def truth_of_dataset(out: Path, *, matching: Matching | None = None) -> TruthByClip:
    """Ground truth by clip id for the rows of a dataset, found through the recipe beside it and read when asked for.

    Clips whose source names no truth files are left out; so is everything if the folder has no
    `recipe.resolved.yaml` (a dataset that was downloaded). A truth file that cannot be read, or does not fit, costs its
    own clip's truth: it is there with a `problem`.

    Args:
        matching: how true poses find their frames, where they have times; line i of a file without is source frame i.
    Raises:
        ValueError: the recipe, or the source that it names, cannot be read.
    """
    recipe = recipe_beside(out, DecodingBeside)
    if recipe is None:
        return TruthByClip((), lambda clip_id: Truth())
    refs = {
        clip.clip_id: clip
        for clip in read_clips(recipe.source)
        if clip.truth_camera_to_world_path or clip.truth_intrinsics_path
    }
    dataset = open_dataset(out)
    known = set(dataset.to_table(["clip_id"])["clip_id"].to_pylist())
    options = replace(matching or Matching(), rows="source")

    def read(clip_id: str) -> Truth:
        return _truth(refs[clip_id], recipe, dataset.row(clip_id), options)

    return TruthByClip((clip_id for clip_id in refs if clip_id in known), read)


def _truth(clip: ClipRef, recipe: DecodingBeside, row: Row, matching: Matching) -> Truth:
    truth, problems = Truth(), []
    if clip.truth_camera_to_world_path is not None:
        path = clip.truth_camera_to_world_path
        try:
            truth = truth_of_row(row, read_clip(path), matching=matching, path=path)
        except ValueError as error:
            problems.append(str(error))
        problems += [truth.problem] if truth.problem else []
    focal_px = truth.focal_px
    if clip.truth_intrinsics_path is not None and row.num_frames:
        try:
            focal_px = _true_focal(clip, clip.truth_intrinsics_path, recipe, row.frame_index)
        except ValueError as error:  # the poses are shown without
            problems.append(str(error))
    return replace(truth, focal_px=focal_px, problem="; ".join(problems) or None)


def _true_focal(clip: ClipRef, path: Path, recipe: DecodingBeside, frame_index: np.ndarray) -> np.ndarray:
    """(F, 2) for the stored size."""
    intrinsics = read_intrinsics(path)
    if intrinsics.ndim == 2:
        intrinsics = np.broadcast_to(intrinsics, (len(frame_index), 3, 3))
    elif frame_index.max() >= len(intrinsics):
        raise ValueError(
            f"clip {clip.clip_id}: {path} holds {len(intrinsics)} entries, but the clip uses source frame "
            f"{frame_index.max()}"
        )
    else:
        intrinsics = intrinsics[frame_index]
    try:
        frames = open_clip(clip, recipe.annotate.decode)
    except ClipRejection as rejection:
        raise ValueError(f"the truth of clip {clip.clip_id} needs its media: {rejection.detail}") from None
    resized = resize_intrinsics(
        intrinsics,
        from_size=(frames.source_height, frames.source_width),
        to_size=(frames.height, frames.width),
    )
    return split_intrinsics(resized)[0]
