"""`theodolite caption` and `theodolite score`: further columns for a finished dataset, clip by clip, resumed by
themselves.

What is done is what the table's parts hold; a part is written as soon as a few clips are done, and the same command
goes on with those that are in none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..annotate.frames.dover import Network, chunks, score_chunk
from ..annotate.language.base import LanguageModel, ModelGone, clip_pictures
from ..annotate.language.tasks import Task, prompts_digest
from ..annotate.run.cluster import RunAborted, raise_if_interrupted, signals_as_interrupt
from ..dataset.commit import hold_dataset
from ..dataset.extra import FOLDER, ExtraTable, Kind, begin_table, open_table
from ..dataset.media.read import read_frames
from ..dataset.reading import ClipDataset, open_dataset
from ..dataset.rows import Row
from ..dataset.store import DATA_FILES
from .command import Say

_MOST_LISTED = 8


class Describer(Protocol):
    """Makes further columns of clips."""

    @property
    def kind(self) -> Kind:
        """What its values are."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        ...

    @property
    def group(self) -> int:
        """Clips that are done together, and that one part holds."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the values depend on."""
        ...

    def prepare(self, row: Row) -> Any:
        """What of a clip's media is looked at; runs ahead, in threads. Raises ValueError: the clip's problem."""
        ...

    def columns(self, prepared: Sequence[Any]) -> list[dict[str, Any] | str]:
        """Values of each clip, or its problem."""
        ...


@dataclass(frozen=True)
class ByLanguageModel:
    """Columns that a vision-language model's answers give.

    Attributes:
        pictures, longest_px: see `clip_pictures`.
        media_root: to which the rows' media refer.
    """

    kind: Kind
    task: Task
    model: LanguageModel
    media_root: Path
    pictures: int = 8
    longest_px: int = 768

    @property
    def names(self) -> tuple[str, ...]:
        """Of the task."""
        return self.task.names

    @property
    def group(self) -> int:
        """As many as the model answers at once, twice."""
        return 2 * self.model.at_once

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model, prompts, pictures."""
        return {
            "model": self.model.name,
            "prompts": prompts_digest(self.task),
            "pictures": self.pictures,
            "longest_px": self.longest_px,
        }

    def prepare(self, row: Row) -> tuple[bytes, ...]:
        """The clip's pictures."""
        return clip_pictures(row, str(self.media_root), count=self.pictures, longest_px=self.longest_px)

    def columns(self, prepared: Sequence[Any]) -> list[dict[str, Any] | str]:
        """What the task makes of the answers."""
        return self.task.columns(self.model, prepared)


@dataclass(frozen=True)
class ByDover:
    """The column `dover`."""

    network: Network
    weights: str
    media_root: Path
    device: Any
    kind: Kind = "scores"
    names: tuple[str, ...] = ("dover",)
    group: int = 8

    @property
    def settings(self) -> Mapping[str, Any]:
        """Which weights."""
        return {"metric": "dover", "weights": self.weights}

    def prepare(self, row: Row) -> float:
        """The score itself, chunk by chunk: frames of many clips would fill the memory."""
        if not row.num_frames or not row.fps:
            raise ValueError(f"clip {row.clip_id}: has no frames")
        scores = []
        for chunk in chunks(row.num_frames, row.fps):
            frames = read_frames(row, self.media_root, positions=list(chunk))
            scores.append(score_chunk(frames, self.network, self.device))
        return float(np.mean(scores))

    def columns(self, prepared: Sequence[Any]) -> list[dict[str, Any] | str]:
        """As prepared."""
        return [{"dover": score} for score in prepared]


@dataclass(frozen=True, kw_only=True)
class DescribeOptions:
    """What of a dataset is done.

    Attributes:
        name: of the table.
        rejected: also clips whose cameras were rejected, where they have frames.
        retry: clips that had a problem once more.
        limit: only so many clips.
        threads: that read media ahead.
    """

    name: str
    rejected: bool = False
    retry: bool = False
    limit: int | None = None
    threads: int = 2
    dry_run: bool = False


def run_describe(path: Path, describer: Describer, options: DescribeOptions, *, say: Say) -> tuple[str, int]:
    """Do every clip of a dataset that is not done yet.

    Returns:
        Summary, and 0, or 1 if clips have problems.
    Raises:
        ValueError: no dataset folder, or a table made otherwise.
        RunAborted: the model cannot be asked any more; what is done is kept.
    """
    if not (path / "data").is_dir():
        raise ValueError(
            f"{path}: no folder of a dataset with parts ({DATA_FILES}); further columns lie beside them"
        )
    clips = open_dataset(path)
    wanted = _wanted(clips, rejected=options.rejected)
    if not wanted:
        raise ValueError(f"{path}: no clip with accepted cameras (--rejected takes the others as well)")
    if options.dry_run:
        done = _done_so_far(path / FOLDER / options.name, options)
        left = [i for i in wanted if i not in done][: options.limit]
        return (
            f"{path}: {len(wanted)} clips, {len(wanted) - len(left)} done or left out, {len(left)} to do",
            0,
        )
    table = begin_table(path, options.name, describer.kind, describer.settings)
    with hold_dataset(table.folder), signals_as_interrupt():
        done = table.done(problems=not options.retry)
        left = [i for i in wanted if i not in done][: options.limit]
        problems = _do_all(clips, left, describer, table, options, say)
        table.join_parts()
    lines = [
        f"{table.folder}: {len(left) - len(problems)} clips done, {len(wanted) - len(left)} were there or left out,"
        f" {len(problems)} with problems"
    ]
    lines += [f"  {clip_id}: {why}" for clip_id, why in problems[:_MOST_LISTED]]
    if len(problems) > _MOST_LISTED:
        lines.append(f"  and {len(problems) - _MOST_LISTED} more; --retry tries them again")
    return "\n".join(lines), 1 if problems else 0


def _done_so_far(folder: Path, options: DescribeOptions) -> set[str]:
    """Clips that a table has, if it is there."""
    if not (folder / "table.json").is_file():
        return set()
    return open_table(folder).done(problems=not options.retry)


def _wanted(clips: ClipDataset, *, rejected: bool) -> list[str]:
    table = clips.to_table(["clip_id", "verdict", "num_frames"])
    return [
        i
        for i, verdict, frames in zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
        if frames and (rejected or verdict == "accepted")
    ]


def _do_all(
    clips: ClipDataset,
    left: Sequence[str],
    describer: Describer,
    table: ExtraTable,
    options: DescribeOptions,
    say: Say,
) -> list[tuple[str, str]]:
    """Problems by clip; everything done is in the table."""
    problems: list[tuple[str, str]] = []
    count = 0
    for group in _prepared(clips, left, describer, options.threads):
        rows = _rows_of_group(group, describer)
        table.write(rows)
        problems += [(row["clip_id"], row["problem"]) for row in rows if row["problem"] is not None]
        count += len(rows)
        say(f"{count}/{len(left)} clips, {len(problems)} with problems")
        raise_if_interrupted()
    if problems:
        kinds = Counter(why.partition(": ")[0][:60] for _, why in problems)
        say("problems: " + "; ".join(f"{n} x {kind}" for kind, n in kinds.most_common(5)))
    return problems


def _rows_of_group(group: Sequence[tuple[str, Any]], describer: Describer) -> list[dict[str, Any]]:
    """What becomes of a group: a row each, with values or a problem."""
    good = [(clip_id, what) for clip_id, what in group if not isinstance(what, Exception)]
    try:
        found = (
            dict(zip((i for i, _ in good), describer.columns([w for _, w in good]), strict=True))
            if good
            else {}
        )
    except ModelGone as error:
        raise RunAborted(str(error)) from error
    rows = []
    for clip_id, what in group:
        values = str(what) if isinstance(what, Exception) else found[clip_id]
        problem = values[:1000] if isinstance(values, str) else None
        named = dict.fromkeys(describer.names) if isinstance(values, str) else values
        rows.append({"clip_id": clip_id, **{n: named.get(n) for n in describer.names}, "problem": problem})
    return rows


def _prepared(
    clips: ClipDataset, left: Sequence[str], describer: Describer, threads: int
) -> Iterator[list[tuple[str, Any]]]:
    """Groups of clips with what is looked at of each, or the error of its media; the next group is read ahead."""

    def prepare(row: Row) -> Any:
        try:
            return describer.prepare(row)
        except (ValueError, OSError) as error:
            return error

    groups = [left[i : i + describer.group] for i in range(0, len(left), describer.group)]
    pool = ThreadPoolExecutor(threads)
    try:
        coming: list[tuple[Sequence[str], list[Future[Any]]]] = []
        for group in [*groups, None]:
            if group is not None:
                coming.append((group, [pool.submit(prepare, clips.row(i)) for i in group]))
            if coming and (len(coming) > 1 or group is None):
                ids, futures = coming.pop(0)
                yield [(i, f.result()) for i, f in zip(ids, futures, strict=True)]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
