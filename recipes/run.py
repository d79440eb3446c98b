"""Run a recipe: annotate what its dataset still lacks, and say what came of it."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..annotate.frames.video import check_decoder
from ..annotate.geometry.choose import check_estimators
from ..annotate.networks.device import choose_device
from ..annotate.run.cluster import signals_as_interrupt
from ..annotate.run.executor import open_output, run_plan
from ..annotate.run.plan import Plan, plan_run
from ..annotate.run.tally import Tally
from ..annotate.run.worker import Job
from ..annotate.sources.clip import ClipRef
from ..annotate.sources.entries import ReleaseSource, Source, media_root
from ..annotate.sources.read import read_clips
from ..dataset.clip_set import ClipSet
from ..dataset.commit import drop_rows
from ..dataset.index import refreshed_tally, rows_by_folder, set_of_clips
from ..dataset.outputs import refuse_other_outputs
from ..dataset.processes import num_cores
from ..dataset.reasons import REASONS, find_reason, status_of
from ..dataset.storage.paths import StorePath
from ..dataset.store import check_output, has_parts
from .loader import Recipe, load_recipe, now_iso, recipe_hash, write_resolved, write_run_record
from .nothing_left import clips_done, remember, source_mark

log = logging.getLogger(__name__)

MAX_ADVICE = 8
"""Reasons explained at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How much of a source is annotated, and by whom.

    Attributes:
        workers, scheduler: see `run_plan`.
        limit: only so many clips from the start of the source.
        dry_run: say what would be done; nothing is written.
        retry_failed: try clips again that failed for this reason, or `all`: their rows are dropped first.
        max_failed: end the run once so many clips one after the other have failed for the same reason; None: never.
    """

    workers: int | None = None
    scheduler: str | None = None
    limit: int | None = None
    dry_run: bool = False
    retry_failed: str | None = None
    max_failed: int | None = None


def run_annotate(
    recipe: Recipe, out: Path, options: RunOptions | None = None, *, show_progress: bool = True
) -> tuple[str, int]:
    """Annotate what the dataset in `out` still lacks.

    Args:
        recipe: from `load_recipe`.
        out: dataset folder; made if absent, continued if it is this recipe's.
        options: default all of the source, by local workers.
        show_progress: see `run_plan`.
    Returns:
        Summary of the whole dataset, and 0, or 1 if some clips failed (they are listed).
    Raises:
        ValueError: the source cannot be read, weights are missing, or `out` belongs to something else; nothing has been
            written.
        RunAborted: disk full, cluster gone, everything fails, or the source ends in an error.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    with signals_as_interrupt():
        return _Run(recipe, out, options or RunOptions(), show_progress).run()


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    out: Path
    options: RunOptions
    show_progress: bool

    def run(self) -> tuple[str, int]:
        recipe, out = self.recipe, self.out
        digest = recipe_hash(recipe)
        reason = self.options.retry_failed
        retried = None if reason is None else _retried(reason)
        check_place(out, recipe_hash=digest)
        mark = None if retried or self.options.limit is not None else source_mark(recipe.source)
        done = clips_done(out, mark)
        # What is wrong with the source is said before anything is written.
        source = None if done is not None else self.begun()
        check_machine(recipe)
        check_same_clips(recipe, out)
        if self.options.dry_run:
            if source is None:
                return self.told(done or 0, done or 0, 0, 0), 0
            plan = self.plan(source, whole=True)
            again = 0 if retried is None else len(self.failed(retried))
            return self.told(plan.num_clips, plan.num_clips_done, plan.num_shards, again), 0
        with open_output(out, recipe_hash=digest):
            if retried is not None:
                dropped = _drop(out, self.failed(retried))
                log.warning("%s: %d failed clips are tried again", out, len(dropped))
            whole = self.rest(source, mark, digest)
        parts = (f"{out}: {whole.done} clips: {whole}", _failures(whole), _advice(whole))
        return "\n".join(part for part in parts if part), 1 if whole.num_failed else 0

    def rest(self, source: Iterable[ClipRef] | None, mark: str | None, digest: str) -> Tally:
        """Annotate what is left, in a folder that is held; how all of its clips ended.

        Args:
            source: None: all of it was known to be done.
            mark: `source_mark` of before the source was read.
        """
        out, plan = self.out, None
        if source is not None or clips_done(out, mark) is None:  # parts of a dead run may have come in
            plan = self.plan(self.begun() if source is None else source)
        if plan is not None and plan.num_shards:
            self.work(plan, digest)
        else:
            write_resolved(out, self.recipe)  # the data may have moved, and reports look for them by it
        whole = refreshed_tally(out, processes=num_cores())
        if plan is not None and plan.listed and whole.done >= plan.num_clips:
            remember(out, mark, plan.num_clips)
        return whole

    def clips(self) -> Iterable[ClipRef]:
        return read_clips(self.recipe.source)

    def begun(self) -> Iterable[ClipRef]:
        """The source's clips, the first one read."""
        source = iter(self.clips())
        return chain(list(islice(source, 1)), source)

    def plan(self, source: Iterable[ClipRef], *, whole: bool = False) -> Plan:
        size, limit = self.recipe.output.clips_per_shard, self.options.limit
        return plan_run(lambda: source, self.out, clips_per_shard=size, limit=limit, whole=whole)

    def failed(self, failed: Callable[[pa.Table], list[bool]]) -> set[str]:
        """Ids of clips that failed, by their rows, and that the source still has."""
        those: set[str] = set()
        for table in rows_by_folder(self.out, ["clip_id", "verdict", "reasons"]):
            those.update(table.filter(pa.array(failed(table), pa.bool_()))["clip_id"].to_pylist())
        clips = islice(self.clips(), self.options.limit) if those else ()
        return {clip.clip_id for clip in clips if clip.clip_id in those}

    def told(self, num_clips: int, num_done: int, num_shards: int, again: int) -> str:
        """What a dry run says; `again` of the clips that are done are tried again."""
        failed = f" ({again} failed ones of them are tried again)" if self.options.retry_failed else ""
        return (
            f"{self.recipe.name}: {num_clips} clips, {num_done} done{failed}, {num_clips - num_done} to do in"
            f" {num_shards} shards of up to {self.recipe.output.clips_per_shard};"
            f" nothing was written to {self.out}"
        )

    def work(self, plan: Plan, digest: str) -> None:
        """Annotate what a plan leaves to do, and record it."""
        record = _RunRecord(self.out, self.recipe)
        record.write(plan)
        job = Job(
            out=self.out.resolve(),
            config=self.recipe.annotate,
            mode=self.recipe.mode,
            recipe_hash=digest,
        )
        tally = run_plan(
            plan,
            job,
            workers=self.options.workers,
            scheduler=self.options.scheduler,
            show_progress=self.show_progress,
            max_failed=self.options.max_failed,
        )
        record.write(plan, tally)


class _RunRecord:
    """`run.json` of a run, written when it begins and when it ends."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self._out, self._recipe = out, recipe
        self._started, self._start = now_iso(), time.monotonic()

    def write(self, plan: Plan, tally: Tally | None = None) -> None:
        result: dict[str, Any] = {"clips": plan.num_clips, "clips_done_before": plan.num_clips_done}
        if not plan.listed:
            result["listed_so_far"] = True
        if tally is not None:
            result |= {
                "accepted": tally.accepted,
                "rejected": dict(tally.rejected),
                "failed": tally.num_failed,
                "wall_s": round(time.monotonic() - self._start, 1),
            }
        ended = None if tally is None else now_iso()
        write_run_record(
            self._out, self._recipe, started=self._started, ended=ended, command=sys.argv, result=result
        )


def _drop(out: Path, those: set[str]) -> list[str]:
    """Drop the rows of some clips; returns their ids."""

    def goes(table: pa.Table) -> list[bool]:
        return [clip_id in those for clip_id in table["clip_id"].to_pylist()]

    return drop_rows(out, goes) if those else []


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


def check_ready(recipe: Recipe, out: Path, options: RunOptions) -> None:
    """Make sure, while nothing of the source is here yet, that all else is: a terabyte may be fetched next.

    Raises:
        ValueError: `out` belongs to something else, weights or packages are missing, or `options.retry_failed`
            is no failure.
    """
    if options.retry_failed is not None:
        _retried(options.retry_failed)
    check_place(out, recipe_hash=recipe_hash(recipe))
    check_machine(recipe)


def check_place(out: Path, *, recipe_hash: str) -> None:
    """Make sure that a run of this recipe may write there; writes nothing.

    Raises:
        ValueError: as `check_output`, or another command wrote there.
    """
    check_output(out, recipe_hash=recipe_hash)
    if not isinstance(out, StorePath):
        refuse_other_outputs(out, "dataset.json")


def check_machine(recipe: Recipe) -> None:
    """Make sure that what a recipe needs besides its source is on this machine: decoder, weights, device.

    Raises:
        ValueError: it is not; says what to do.
    """
    check_decoder(recipe.annotate.decode)
    check_estimators(recipe.annotate.geometry)
    if recipe.annotate.tracks.tracker == "batched":
        choose_device(recipe.annotate.geometry.device)  # it is there
    if recipe.annotate.bundle.device != "cpu":
        choose_device(recipe.annotate.bundle.device, "annotate.bundle.device")


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
    before, source = _of_all_clips(load_recipe(path).source), _of_all_clips(recipe.source)
    if before == source or not has_parts(out):
        return
    have = set_of_clips(out)
    advice = "one dataset holds clips of one source: choose another --out"
    old_place, new_place = media_root(before), media_root(source)
    now = _some_with_rows(source, have)
    if not now:
        raise ValueError(f"{out}: holds clips of {old_place}, none of which is in {new_place}; {advice}")
    try:
        old = [clip for clip in _some_with_rows(before, have).values() if clip.clip_id in now]
    except ValueError:
        return  # the old place is no more: the data have moved
    for clip in old:
        a, b = clip.media_path, now[clip.clip_id].media_path
        if a.is_file() and b.is_file() and a.stat().st_size != b.stat().st_size:
            raise ValueError(
                f"{out}: clip {clip.clip_id} was made from {a}, which is another file than {b}; {advice}"
            )


def _of_all_clips(source: Source) -> Source:
    """The source whatever of it was wanted: a second run may ask for others."""
    return source.model_copy(update={"only": None}) if isinstance(source, ReleaseSource) else source


def _some_with_rows(source: Source, have: ClipSet) -> dict[str, ClipRef]:
    """The first clips of a source that have rows, by id; as many as need be looked at to tell one source from
    another."""
    with_rows = (clip for clip in read_clips(source) if clip.clip_id in have)
    return {clip.clip_id: clip for clip in islice(with_rows, _COMPARED)}


_COMPARED = 1000


def _failures(tally: Tally) -> str:
    lines = [f"  {o.clip_id}: {', '.join(o.reasons)}: {o.detail}" for o in tally.failed]
    if tally.num_failed > len(lines):
        lines.append(f"  and {tally.num_failed - len(lines)} more: theodolite inspect")
    return "\n".join(lines)


def _advice(tally: Tally) -> str:
    """What to try about each reason of this dataset, the most frequent first."""
    reasons = Counter(tally.rejected)
    reasons.update(tally.failed_for)
    entries = [(reason, find_reason(reason)) for reason, _ in reasons.most_common(MAX_ADVICE)]
    return "\n".join(f"  {reason}: {entry.meaning} {entry.remedy}" for reason, entry in entries if entry)
