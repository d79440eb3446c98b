"""What a run has to do: the source cut into shards, and which of them are left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...dataset.store import finished_shards
from ..sources.clip import ClipRef
from .tally import read_outcomes


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Clips that one task annotates and one part file holds.

    Attributes:
        shard_id: number of the shard and a hash of its clip ids, so that a part file tells which clips it is for.
    """

    shard_id: str
    clips: tuple[ClipRef, ...]


def make_shards(clips: Iterable[ClipRef], clips_per_shard: int) -> Iterator[Shard]:
    """Consecutive clips, `clips_per_shard` at a time."""
    rest = iter(clips)
    number = 0
    while group := tuple(islice(rest, clips_per_shard)):
        digest = hashlib.sha256("\n".join(c.clip_id for c in group).encode()).hexdigest()[:10]
        yield Shard(shard_id=f"{number:06d}-{digest}", clips=group)
        number += 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run has to do.

    Attributes:
        num_clips: clips of the source (after a limit).
        num_clips_done: those that have a row already.
        shards: makes the shards that are left, in order, anew on every call.
        num_shards: how many those are.
        num_shards_in_all: how many the whole source makes.
        have: ids of the source's clips that have a row; no part of another one may hold them.
    """

    num_clips: int
    num_clips_done: int
    shards: Callable[[], Iterator[Shard]]
    num_shards: int
    num_shards_in_all: int
    have: frozenset[str] = frozenset()


def plan_run(
    clips: Callable[[], Iterable[ClipRef]], out: Path, *, clips_per_shard: int, limit: int | None = None
) -> Plan:
    """Compare the source with the part files in `out`; reads only, `out` may be absent.

    Args:
        clips: makes the clips of the source, always in the same order.
        out: dataset folder.
        clips_per_shard: size of a shard.
        limit: use only so many clips from the start.
    Raises:
        ValueError: the source holds a clip id twice.
    """

    def limited() -> Iterator[ClipRef]:
        for number, clip in enumerate(clips()):
            if limit is not None and number >= limit:
                return
            yield clip

    finished = finished_shards(out)
    planned: set[str] = set()
    ids: set[str] = set()
    done: set[str] = set()
    num_clips = num_done = 0
    for shard in make_shards(limited(), clips_per_shard):
        planned.add(shard.shard_id)
        num_clips += len(shard.clips)
        num_done += len(shard.clips) if shard.shard_id in finished else 0
        for clip in shard.clips:
            if clip.clip_id in ids:
                raise ValueError(f"clip {clip.clip_id}: the source lists it twice")
            ids.add(clip.clip_id)
        if shard.shard_id in finished:
            done.update(clip.clip_id for clip in shard.clips)
    if finished <= planned:
        todo = planned - finished
        return Plan(
            num_clips=num_clips,
            num_clips_done=num_done,
            shards=lambda: (s for s in make_shards(limited(), clips_per_shard) if s.shard_id in todo),
            num_shards=len(todo),
            num_shards_in_all=len(planned),
            have=frozenset(done),
        )
    have = {outcome.clip_id for outcome in read_outcomes(out)}
    left = len(ids - have)
    return Plan(
        num_clips=num_clips,
        num_clips_done=num_clips - left,
        shards=lambda: make_shards((c for c in limited() if c.clip_id not in have), clips_per_shard),
        num_shards=-(-left // clips_per_shard),
        num_shards_in_all=len(planned),
        have=frozenset(have),
    )
