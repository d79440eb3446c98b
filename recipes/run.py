"""What the commands do once their options are read: run a recipe, and find the truth that belongs to a dataset."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..annotate.frames.open import open_clip
from ..annotate.frames.video import check_decoder
from ..annotate.geometry.choose import check_estimators
from ..annotate.geometry.given_cameras import read_intrinsics
from ..annotate.run.cluster import RunAborted, signals_as_interrupt
from ..annotate.run.executor import open_output, run_plan
from ..annotate.run.plan import Plan, plan_run
from ..annotate.run.tally import Tally, read_outcomes
from ..annotate.run.worker import Job
from ..annotate.sources.clip import ClipRef, ClipRejection
from ..annotate.sources.entries import media_root
from ..annotate.sources.read import read_clips
from ..dataset.cameras import resize_intrinsics, split_intrinsics
from ..dataset.clip_cameras import Matching, load_cameras, read_clip
from ..dataset.commit import drop_rows
from ..dataset.index import refresh_index
from ..dataset.reading import open_dataset
from ..dataset.reasons import REASONS, find_reason, status_of
from ..dataset.report import Truth, TruthByClip, truth_of_row
from ..dataset.rows import Row
from ..dataset.store import check_output, finished_shards
from .loader import Recipe, load_recipe, now_iso, recipe_hash, write_resolved, write_run_record

log = logging.getLogger(__name__)

MAX_LISTED = 50
"""Failed clips named at the end of a run; `theodolite inspect` shows the rest."""
MAX_ADVICE = 8
"""Reasons explained at the end of a run."""


def run_annotate(
    recipe: Recipe,
    out: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    retry_failed: str | None = None,
    max_failed: int | None = None,
    show_progress: bool = True,
) -> tuple[str, int]:
    """Annotate what the dataset in `out` still lacks.

    Args:
        recipe: from `load_recipe`.
        out: dataset folder; made if absent, continued if it is this recipe's.
        workers, scheduler, show_progress: see `run_plan`.
        limit: only so many clips from the start of the source.
        dry_run: say what would be done; nothing is written.
        retry_failed: try clips again that failed for this reason, or `all`: their rows are dropped first.
        max_failed: end the run once so many clips one after the other have failed for the same reason; None: never.
    Returns:
        Summary of the whole dataset, and 0, or 1 if some clips failed (they are listed).
    Raises:
        ValueError: the source cannot be read, weights are missing, or `out` belongs to something else; nothing has been
            written.
        RunAborted: disk full, cluster gone, everything fails, or the source keeps changing.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    with signals_as_interrupt():
        return _run_annotate(
            recipe,
            out,
            _Options(workers, scheduler, limit, dry_run, retry_failed, max_failed, show_progress),
        )


class _Options(NamedTuple):
    """Arguments of `run_annotate`."""

    workers: int | None
    scheduler: str | None
    limit: int | None
    dry_run: bool
    retry_failed: str | None
    max_failed: int | None
    show_progress: bool


def _run_annotate(recipe: Recipe, out: Path, options: _Options) -> tuple[str, int]:
    def clips() -> Any:
        return read_clips(recipe.source)

    def planned() -> Plan:
        return plan_run(clips, out, clips_per_shard=recipe.output.clips_per_shard, limit=options.limit)

    digest = recipe_hash(recipe)
    retried = None if options.retry_failed is None else _retried(options.retry_failed)
    check_output(out, recipe_hash=digest)
    before = finished_shards(out)
    plan = planned()
    check_decoder(recipe.annotate.decode)
    check_estimators(recipe.annotate.geometry)
    check_same_clips(recipe, out)
    if options.dry_run:
        left = plan.num_clips - plan.num_clips_done
        return (
            f"{recipe.name}: {plan.num_clips} clips, {plan.num_clips_done} done, {left} to do in"
            f" {plan.num_shards} shards of up to {recipe.output.clips_per_shard}; nothing was written to {out}",
            0,
        )
    started, start = now_iso(), time.time()
    with open_output(out, recipe_hash=digest):
        if retried is not None:
            dropped = _drop_failed(out, retried, {clip.clip_id for clip in islice(clips(), options.limit)})
            log.warning("%s: %d failed clips are tried again", out, len(dropped))
        # Planned again under the lock if another run has ended in between; listing a large source takes a minute.
        if retried is not None or finished_shards(out) != before:
            plan = planned()

        def record(ended: str | None, tally: Tally | None) -> None:
            result: dict[str, Any] = {"clips": plan.num_clips, "clips_done_before": plan.num_clips_done}
            if tally is not None:
                result |= {
                    "accepted": tally.accepted,
                    "rejected": dict(tally.rejected),
                    "failed": len(tally.failed),
                    "wall_s": round(time.time() - start, 1),
                }
            write_run_record(out, recipe, started=started, ended=ended, command=sys.argv, result=result)

        if plan.num_shards:
            record(None, None)
            job = Job(out=out.resolve(), config=recipe.annotate, mode=recipe.mode, recipe_hash=digest)
            tally = Tally()
            for _ in range(_PLANS):
                done = run_plan(
                    plan,
                    job,
                    workers=options.workers,
                    scheduler=options.scheduler,
                    show_progress=options.show_progress,
                    max_failed=options.max_failed,
                )
                tally.take(done)
                if done.done == plan.num_clips - plan.num_clips_done:
                    break
                plan = planned()  # the source has changed between plan and work
            else:
                left = plan.num_clips - plan.num_clips_done
                raise RunAborted(
                    f"{out}: {left} clips are still to do: the source changed each time between planning and working."
                    " Run the same command once it stands still"
                )
            record(now_iso(), tally)
        else:
            write_resolved(out, recipe)  # the data may have moved, and reports look for them by it
        refresh_index(out)
        whole = Tally()
        whole.add(read_outcomes(out))
    parts = (f"{out}: {whole.done} clips: {whole}", _failures(whole), _advice(whole))
    return "\n".join(part for part in parts if part), 1 if whole.failed else 0


_PLANS = 3
"""How often a run plans anew because its source has changed since."""


def _drop_failed(out: Path, failed: Callable[[pa.Table], list[bool]], ids: set[str]) -> list[str]:
    """Drop the rows of failed clips that the source still has; returns their ids."""

    def goes(table: pa.Table) -> list[bool]:
        return [
            of_kind and clip_id in ids
            for of_kind, clip_id in zip(failed(table), table["clip_id"].to_pylist(), strict=True)
        ]

    return drop_rows(out, goes)


def _retried(reason: str) -> Callable[[pa.Table], list[bool]]:
    """Which rows of a part failed for a reason, or for any (`all`).

    Raises:
        ValueError: an unknown reason, or one that is a judgement.
    """
    if reason != "all":
        found = find_reason(reason)
        failures = [code for code, entry in REASONS.items() if entry.kind == "failed"]
        if found is None or found.kind != "failed":
            what = "is no reason" if found is None else "is a judgement, which trying again does not change"
            raise ValueError(f"--retry-failed {reason}: {what}; failures are {', '.join(failures)}, or all")

    def rows(table: pa.Table) -> list[bool]:
        verdicts, reasons = table["verdict"].to_pylist(), table["reasons"].to_pylist()
        return [
            status_of(verdict, codes) == "failed" and reason in ("all", *codes)
            for verdict, codes in zip(verdicts, reasons, strict=True)
        ]

    return rows


def check_same_clips(recipe: Recipe, out: Path) -> None:
    """Make sure that a run that goes on with a source in another place goes on with the same clips.

    Data may move between two runs. But two folders of videos may hold files of the same names, and the clips of one
    would count as done for the other.

    Raises:
        ValueError: none of the clips that `out` holds is in the source, or a clip's media is another file than before.
    """
    path = out / "recipe.resolved.yaml"
    if not path.is_file():
        return
    before = load_recipe(path).source
    have = {outcome.clip_id for outcome in read_outcomes(out)}
    if before == recipe.source or not have:
        return
    now = {clip.clip_id: clip for clip in read_clips(recipe.source)}
    advice = "one dataset holds clips of one source: choose another --out"
    old_place, new_place = media_root(before), media_root(recipe.source)
    if not have & now.keys():
        raise ValueError(
            f"{out}: holds {len(have)} clips of {old_place}, none of which is in {new_place}; {advice}"
        )
    try:
        old = {clip.clip_id: clip for clip in read_clips(before)}
    except ValueError:
        return  # the old place is no more: the data have moved
    for clip_id in sorted(have & now.keys() & old.keys()):
        a, b = old[clip_id].media_path, now[clip_id].media_path
        if a.is_file() and b.is_file() and a.stat().st_size != b.stat().st_size:
            raise ValueError(
                f"{out}: clip {clip_id} was made from {a}, which is another file than {b}; {advice}"
            )


def _failures(tally: Tally) -> str:
    lines = [f"  {o.clip_id}: {', '.join(o.reasons)}: {o.detail}" for o in tally.failed[:MAX_LISTED]]
    if len(tally.failed) > MAX_LISTED:
        lines.append(f"  and {len(tally.failed) - MAX_LISTED} more: theodolite inspect")
    return "\n".join(lines)


def _advice(tally: Tally) -> str:
    """What to try about each reason of this dataset, the most frequent first."""
    reasons = Counter(tally.rejected)
    reasons.update(o.reasons[0] for o in tally.failed)
    entries = [(reason, find_reason(reason)) for reason, _ in reasons.most_common(MAX_ADVICE)]
    return "\n".join(f"  {reason}: {entry.meaning} {entry.remedy}" for reason, entry in entries if entry)


def media_root_of_dataset(out: Path) -> Path:
    """Folder that the media of a dataset's rows are relative to, by the recipe beside it; the current one without."""
    path = out / "recipe.resolved.yaml"
    return media_root(load_recipe(path).source) if path.is_file() else Path()


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
    path = out / "recipe.resolved.yaml"
    if not path.is_file():
        return TruthByClip((), lambda clip_id: Truth())
    recipe = load_recipe(path)
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


def _truth(clip: ClipRef, recipe: Recipe, row: Row, matching: Matching) -> Truth:
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


def _true_focal(clip: ClipRef, path: Path, recipe: Recipe, frame_index: np.ndarray) -> np.ndarray:
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
