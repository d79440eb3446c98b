"""What a run has to do: the source cut into shards, and which of their clips are left.

The source is read once, as a stream: a few thousand clips ahead, so that what is wrong with a small source is said
before anything is written and its size is known, and then as work goes on. A source of any size begins at once, and
none is ever held as a list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...dataset.clip_set import ClipSet, digests_of
from ...dataset.index import set_of_clips
from ...dataset.store import shard_digest
from ..sources.clip import ClipRef

_AHEAD = 5000
"""Clips of the source that are read before a run begins."""
_ASKED_AT_ONCE, _MOST_AT_ONCE = 256, 1 << 11
"""Clips of the source, about, for which it is looked up together whether they have rows: few where there is work, which
nobody should wait for, and up to the second as long as all of them have, for that takes a third of the time."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Clips that one task annotates and one part file holds.

    Attributes:
        shard_id: number of the shard and a hash of its clip ids, so that a part file tells which clips it is for.
    """

    shard_id: str
    clips: tuple[ClipRef, ...]


class Plan:
    """What a run has to do; made by `plan_run`.

    Shards are runs of consecutive clips of the source. Where some of a shard's clips have rows, the others join those
    of further such shards.

    Attributes:
        num_clips: clips of the source that have been read so far (after a limit).
        num_clips_done: those of them that have a row from before.
        num_shards: shards to do among them.
        listed: whether the source has been read to its end, so that these are all.
        have: the clips that have rows. No part of another one may hold them.
    """

    def __init__(self, clips: Iterator[ClipRef], have: ClipSet, *, clips_per_shard: int, ahead: int) -> None:
        self.have, self.clips_per_shard = have, clips_per_shard
        self.num_clips = self.num_clips_done = self.num_shards = 0
        self.listed = False
        self._clips, self._seen = clips, ClipSet()
        rest = self._left()
        self._first: deque[Shard] = deque()
        for shard in rest:
            self._first.append(shard)
            if self.num_clips >= ahead:
                break
        self._rest = rest

    def shards(self) -> Iterator[Shard]:
        """The shards that are left, in order; once.

        Raises:
            ValueError: the source cannot be read, or lists a clip twice.
        """
        while self._first:
            yield self._first.popleft()
        yield from self._rest

    def _left(self) -> Iterator[Shard]:
        number, loose = 0, []
        first_loose = 0
        size = self.clips_per_shard
        few = at_once = size * max(1, _ASKED_AT_ONCE // size)
        while clips := tuple(islice(self._clips, at_once)):
            done = self._look_up(clips)
            if all(done):
                number += -(-len(clips) // size)
                at_once = min(2 * at_once, max(few, _MOST_AT_ONCE // size * size))
                continue
            at_once = few
            for start in range(0, len(clips), size):
                group = clips[start : start + size]
                left = [clip for clip, has in zip(group, done[start : start + size], strict=True) if not has]
                if len(left) == size:
                    yield self._shard(number, group)
                elif left:
                    first_loose = first_loose if loose else number
                    loose += left
                    if len(loose) >= size:
                        yield self._shard(first_loose, loose[:size])
                        loose, first_loose = loose[size:], number
                number += 1
        if loose:
            yield self._shard(first_loose, loose)
        self.listed = True

    def _look_up(self, clips: tuple[ClipRef, ...]) -> list[bool]:
        """Which of the next clips have rows."""
        ids = [clip.clip_id for clip in clips]
        digests = digests_of(ids)
        again = self._seen.has_digests(digests)
        if len(set(ids)) < len(ids) or again.any():
            place = next(n for n, i in enumerate(ids) if again[n] or i in ids[:n])
            raise ValueError(
                f"clip {ids[place]}: the source lists it twice, now as {clips[place].media}; an id belongs to one clip:"
                " keep one of the two, or name them apart"
            )
        self._seen.add(digests)
        done = self.have.has_digests(digests).tolist()
        self.num_clips += len(ids)
        self.num_clips_done += sum(done)
        return done

    def _shard(self, number: int, clips: Iterable[ClipRef]) -> Shard:
        clips = tuple(clips)
        self.num_shards += 1
        return Shard(shard_id=f"{number:06d}-{shard_digest(c.clip_id for c in clips)}", clips=clips)


def plan_run(
    clips: Callable[[], Iterable[ClipRef]],
    out: Path,
    *,
    clips_per_shard: int,
    limit: int | None = None,
    whole: bool = False,
) -> Plan:
    """Compare the source with the dataset in `out`; reads only, `out` may be absent.

    Args:
        clips: makes the clips of the source, always in the same order.
        out: dataset folder.
        clips_per_shard: size of a shard.
        limit: use only so many clips from the start.
        whole: read all of the source now, so that the counts are those of all of it; its shards are not kept.
    Raises:
        ValueError: the source cannot be read or, as far as it has been read, holds a clip id twice.
    """
    plan = Plan(
        islice(clips(), limit),
        set_of_clips(out),
        clips_per_shard=clips_per_shard,
        ahead=0 if whole else _AHEAD,
    )
    if whole:
        for _ in plan.shards():
            pass
    return plan
