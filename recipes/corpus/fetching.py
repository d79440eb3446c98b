"""`theodolite fetch`, and `annotate --fetch`: a source's files, within a budget of disk, each once."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...annotate.fetch.hub import hub_headers, list_hub, matches
from ...annotate.fetch.ledger import MEANINGS, PERMANENT, Entry, FetchError, FetchReason, Ledger
from ...annotate.fetch.transfer import Policy, Room, download
from ...annotate.fetch.web import fetch_video, is_plain
from ...annotate.run.tally import read_outcomes
from ...annotate.sources.archives import Limits, NoRoom, archive_parts, find_archives, ledger_path
from ...annotate.sources.entries import ReleaseSource, media_root
from ...annotate.sources.read import read_clips, release_of
from ...annotate.sources.releases import LAYOUTS
from ...annotate.sources.tree import inside
from ..command import Say
from ..loader import FetchConfig, Recipe, RecipeError
from .unpacking import unpack_archives

_MAX_LISTED = 20
_TABLES = (".csv", ".json", ".jsonl", ".txt", ".md")


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How a run fetches.

    Attributes:
        limit: media files at most, tables not counted; None: all.
        budget_bytes: that the root may hold at any time; None: what the disk has.
        jobs: files of the hub at once.
        pause_s: between two videos of a site, at least; sites lock out who asks too often.
        unpack: unpack each archive once it is here, and delete it.
        retry: try those again, too, that are recorded as gone.
        refresh: list repositories anew.
    """

    limit: int | None = None
    budget_bytes: int | None = None
    jobs: int = 4
    pause_s: float = 5.0
    unpack: bool = False
    retry: bool = False
    refresh: bool = False
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file that a recipe wants.

    Attributes:
        place: below the root.
        size, sha256: as listed; None: not known.
        hub: from the hub, whose token may be sent.
    """

    place: str
    url: str
    size: int | None = None
    sha256: str | None = None
    hub: bool = False


@dataclass(kw_only=True)
class FetchResult:
    """What a run did.

    Attributes:
        here: files that were here before, or were dropped after use.
        fetched, fetched_bytes: now.
        failed: not to be had.
        left: wanted, but there was no room, or the limit was reached.
        no_room: the budget ended the run.
    """

    here: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    failed: list[Entry] = field(default_factory=list)
    left: int = 0
    no_room: bool = False
    unpacked: int = 0
    damaged: list[str] = field(default_factory=list)


class _Budget:
    """Bytes below a root, never more than allowed."""

    def __init__(self, root: Path, most: int | None) -> None:
        self.root, self.most = root, most
        self._lock = threading.Lock()
        self.used = 0
        self.count()

    def count(self) -> None:
        """Look how much there is."""
        with self._lock:
            self.used = 0 if self.most is None else size_below(self.root)

    def take(self, count: int) -> bool:
        """Whether so much more may be written; if so it counts."""
        with self._lock:
            if self.most is not None and self.used + count > self.most:
                return False
            self.used += count
            return True

    def give(self, count: int) -> None:
        """So much less."""
        with self._lock:
            self.used -= count


def size_below(root: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # gone since
    return total


def run_fetch(recipe: Recipe, *, options: FetchOptions, say: Say) -> tuple[str, int]:
    """Fetch what a recipe wants and is not here.

    Returns:
        Summary with every file that cannot be had and why, and 0, or 1 if something is missing.
    Raises:
        ValueError: the recipe says nothing of fetching, the hub cannot be listed, or another run fetches there.
    """
    root = media_root(_release(recipe))
    result = fetch(recipe, options=options, say=say)
    return summary(root, result), 1 if result.failed or result.no_room or result.damaged else 0


def fetch(recipe: Recipe, *, options: FetchOptions, say: Say) -> FetchResult:
    """As `run_fetch`, with what was done as a record."""
    source, config = _release(recipe), recipe.fetch
    if config is None:
        raise RecipeError(f"{recipe.name}: says nothing of where its files come from (section fetch)")
    root = media_root(source)
    root.mkdir(parents=True, exist_ok=True)
    result = FetchResult()
    with _alone(root):
        ledger, budget = Ledger(root), _Budget(root, options.budget_bytes)
        try:
            run = _Run(source, root, ledger, budget, options, say, result)
            run.all_of(_hub_files(config, root, options, say), jobs=options.jobs)
            if config.listed_urls and not result.no_room:
                run.all_of(_listed_files(source), jobs=1)
        finally:
            ledger.close()
    return result


def _release(recipe: Recipe) -> ReleaseSource:
    if not isinstance(recipe.source, ReleaseSource):
        raise RecipeError(f"{recipe.name}: only sources of kind release can be fetched")
    return recipe.source


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    (root / ".fetched").mkdir(exist_ok=True)
    descriptor = os.open(root / ".fetched", os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{root}: another run is fetching here; wait for it, or end it") from None
        yield
    finally:
        os.close(descriptor)


# --- what is wanted -------------------------------------------------------------------------------


def _hub_files(config: FetchConfig, root: Path, options: FetchOptions, say: Say) -> Iterator[Wanted]:
    """Tables first, then the files of each glob in the order of their names."""
    for part in (config, *config.also):
        listing = list_hub(part.hub, part.revision, root / ".fetched", refresh=options.refresh)
        found = {glob: [file for file in listing.files if matches(file.path, glob)] for glob in part.files}
        some = ", ".join(file.path for file in listing.files[:3]) or "nothing"
        for glob in [glob for glob, files in found.items() if not files]:
            text = f"{part.hub}: holds no file that matches {glob!r} (fetch.files); it holds {some}, ..."
            if not any(found.values()):
                raise ValueError(text)
            say(text)
        chosen = [file for files in found.values() for file in files]
        for file in sorted(dict.fromkeys(chosen), key=lambda f: (not f.path.endswith(_TABLES), f.path)):
            yield Wanted(place=file.path, url=listing.url(file), size=file.size, sha256=file.sha256, hub=True)


def _listed_files(source: ReleaseSource) -> Iterator[Wanted]:
    """Each video that the release's table lists, once; a video may hold many clips."""
    listed = LAYOUTS[source.layout].listed
    seen: set[str] = set()
    for entry in listed(release_of(source)) if listed is not None else ():
        if entry.url is not None and entry.place is not None and entry.place not in seen:
            seen.add(entry.place)
            yield Wanted(place=entry.place, url=entry.url)


# --- one after the other --------------------------------------------------------------------------


@dataclass(kw_only=False)
class _Run:
    source: ReleaseSource
    root: Path
    ledger: Ledger
    budget: _Budget
    options: FetchOptions
    say: Say
    result: FetchResult
    _media: int = 0
    _last_at: float = 0.0
    _parts: dict[str, set[str]] = field(default_factory=dict)
    _all_seen: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)

    def all_of(self, wanted: Iterator[Wanted], *, jobs: int) -> None:
        """Fetch in order; archives are unpacked once no download is under way."""
        batch: list[Wanted] = []
        self._all_seen = False
        for each in wanted:
            if ".part_" in each.place:
                self._parts.setdefault(each.place.partition(".part_")[0], set()).add(each.place)
            if self._is_here(each):
                self.result.here += 1
                continue
            if (known := self._known_failure(each)) is not None:
                self.result.failed.append(known)
                continue
            table = each.place.endswith(_TABLES)
            if self.result.no_room or (
                not table and self.options.limit is not None and self._media >= self.options.limit
            ):
                self.result.left += 1
                continue
            self._media += not table
            batch.append(each)
            if len(batch) >= jobs:
                self._batch(batch)
                batch = []
        self._all_seen = True
        self._batch(batch)

    def _batch(self, batch: list[Wanted]) -> None:
        if batch:
            with ThreadPoolExecutor(len(batch)) as pool:
                try:
                    list(pool.map(self._one, batch))
                except KeyboardInterrupt:
                    self._stop.set()  # else the files under way would be waited for, however large they are
                    raise
        if self.options.unpack and LAYOUTS[self.source.layout].place is not None:
            self._unpack()

    def _is_here(self, each: Wanted) -> bool:
        target = inside(self.root, each.place)
        entry = self.ledger.get(each.place)
        if target is None:
            return False
        if ledger_path(self.root, target).is_file() or (entry is not None and entry.state == "dropped"):
            return True
        found = target if target.is_file() else None
        if found is None and not each.hub:  # a site may have it in another container
            found = next((p for p in target.parent.glob(f"{target.stem}.*") if p.suffix != ".part"), None)
        return found is not None and (each.size is None or found.stat().st_size == each.size)

    def _known_failure(self, each: Wanted) -> Entry | None:
        entry = self.ledger.get(each.place)
        if entry is None or entry.state != "failed" or self.options.retry:
            return None
        return entry if entry.reason in PERMANENT else None

    def _one(self, each: Wanted) -> None:
        target = inside(self.root, each.place)
        try:
            if target is None:
                raise FetchError("refused", f"{each.place!r} would lead out of the folder")
            size = self._bring(each, target)
        except FetchError as error:
            entry = Entry(
                place=each.place, url=each.url, state="failed", reason=error.reason, detail=error.detail
            )
            if error.reason == "no_room":
                self.result.no_room = True
                self.result.left += 1
                return
            self.ledger.add(entry)
            self.result.failed.append(entry)
            self.say(f"{each.place}: {error}")
            return
        self.ledger.add(Entry(place=each.place, url=each.url, state="done", size=size))
        self.result.fetched += 1
        self.result.fetched_bytes += size
        self.say(f"{each.place}: {size / 1e6:.1f} MB")

    def _bring(self, each: Wanted, target: Path) -> int:
        if each.hub or is_plain(each.url):
            reserved = 0
            if each.size is not None:  # either all of it has room, or it is not begun
                part = target.with_name(f".{target.name}.part")
                reserved = each.size - (part.stat().st_size if part.is_file() else 0)
                free = shutil.disk_usage(self.root).free
                if reserved > free or not self.budget.take(reserved):
                    raise FetchError("no_room", each.place)
            counted = each.size is None
            room = Room(
                take=lambda count: not self._stop.is_set() and (not counted or self.budget.take(count))
            )
            try:
                return download(
                    each.url,
                    target,
                    size=each.size,
                    sha256=each.sha256,
                    headers=hub_headers() if each.hub else None,
                    policy=self.options.policy,
                    room=room,
                )
            except FetchError:
                self.budget.give(reserved)
                raise
        wait_s = self._last_at + self.options.pause_s - time.monotonic()
        if wait_s > 0 and self._last_at:
            time.sleep(wait_s)
        before = 0

        def allow(so_far: int) -> bool:
            nonlocal before
            more, before = max(0, so_far - before), max(before, so_far)
            return not self._stop.is_set() and self.budget.take(more)

        try:
            return fetch_video(each.url, target, allow=allow)
        finally:
            self._last_at = time.monotonic()

    def _unpack(self) -> None:
        """Unpack what has come; the archive goes, and is not fetched again."""
        limits = Limits(take=self.budget.take if self.budget.most is not None else None)
        archives = [
            path
            for path in find_archives(self.root, LAYOUTS[self.source.layout])
            if not ledger_path(self.root, path).is_file() and self._complete(path)
        ]
        for path in archives:
            try:
                results = list(
                    unpack_archives([path], self.root, self.source, limits, drop=False, say=self.say)
                )
            except NoRoom:
                self.result.no_room = True
                self.budget.count()
                return
            self.result.unpacked += len(results)
            damage = next((result.damage for result in results if result.damage), None)
            if damage is not None:
                self.result.damaged.append(damage)
            # Damaged ones go as well: fetched again, they may be whole.
            for part in archive_parts(path):
                place = part.relative_to(self.root).as_posix()
                entry = self.ledger.get(place)
                size = part.stat().st_size
                part.unlink()
                if damage is None:
                    url = "" if entry is None else entry.url
                    self.ledger.add(Entry(place=place, url=url, state="dropped", size=size))
            self.budget.count()

    def _complete(self, archive: Path) -> bool:
        """Whether all parts of an archive are here, which is known of a split one once all files were looked at."""
        if ".part_" not in archive.name:
            return True
        stem = archive.relative_to(self.root).as_posix().partition(".part_")[0]
        present = {part.relative_to(self.root).as_posix() for part in archive_parts(archive)}
        return self._all_seen and present == self._parts.get(stem)


def summary(root: Path, result: FetchResult) -> str:
    """What a run did, in words."""
    lines = [
        f"{root}: {result.fetched} files fetched ({result.fetched_bytes / 1e9:.3f} GB), {result.here} were here,"
        f" {len(result.failed)} cannot be had, {result.left} left"
    ]
    if result.no_room:
        lines.append(
            "  no room for more (--budget-gb, or the disk): annotate what is here, then drop it with --annotated RUN"
        )
    lines += [f"  {damage}; it is fetched again by the next run" for damage in result.damaged]
    reasons: Counter[FetchReason] = Counter(e.reason for e in result.failed if e.reason is not None)
    lines += [f"  {reason} {count}: {MEANINGS[reason]}" for reason, count in reasons.most_common()]
    lines += [f"    {entry.place}: {entry.detail}" for entry in result.failed[:_MAX_LISTED]]
    if len(result.failed) > _MAX_LISTED:
        lines.append(f"    and {len(result.failed) - _MAX_LISTED} more: {root / '.fetched' / 'ledger.jsonl'}")
    return "\n".join(lines)


# --- after use ------------------------------------------------------------------------------------


def drop_annotated(recipe: Recipe, run: Path, *, say: Say) -> int:
    """Delete media all of whose clips have a row in a run; returns the bytes that this frees.

    Only files below the source's root go. What came by its own address is recorded, so that it is not fetched again;
    archives are recorded when they are unpacked.
    """
    source = _release(recipe)
    root = media_root(source)
    have = {outcome.clip_id for outcome in read_outcomes(run)}
    clips_of: Counter[Path] = Counter()
    done_of: Counter[Path] = Counter()
    beside: dict[Path, Path] = {}
    for clip in read_clips(source):
        clips_of[clip.media_path] += 1
        done_of[clip.media_path] += clip.clip_id in have
        if clip.given.depth_pattern is not None:
            beside[clip.media_path] = Path(clip.given.depth_pattern).parent
    freed = 0
    ledger = Ledger(root)
    try:
        for media, count in clips_of.items():
            if done_of[media] < count:
                continue
            for path in (media, beside.get(media)):
                if path is None or not path.is_relative_to(root) or path == root or path.is_symlink():
                    continue
                size = size_below(path) if path.is_dir() else path.stat().st_size if path.is_file() else 0
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.is_file():
                    place = _place_of(ledger, path.relative_to(root))
                    ledger.add(Entry(place=place, url="", state="dropped", size=size))
                    path.unlink()
                freed += size
    finally:
        ledger.close()
    say(f"{root}: {freed / 1e9:.3f} GB of annotated media deleted")
    return freed


def _place_of(ledger: Ledger, path: Path) -> str:
    """Place under which a file was recorded; a site may have given it another suffix."""
    place = path.as_posix()
    return place if ledger.get(place) is not None else path.with_suffix(".mp4").as_posix()


def run_annotate_fetching(
    recipe: Recipe,
    out: Path,
    *,
    options: FetchOptions,
    annotate: Callable[[], tuple[str, int]],
    say: Say,
) -> tuple[str, int]:
    """Fetch, unpack, annotate and delete in turns until all of a source went through, within the budget.

    Args:
        annotate: annotates what is here into `out`; what it returns last is returned.
    Raises:
        ValueError: the budget holds not even one unit of the source.
    """
    while True:
        result = fetch(recipe, options=options, say=say)
        too_small = (
            f"the budget of {(options.budget_bytes or 0) / 1e9:g} GB holds nothing that can be annotated and"
            " deleted: an archive and what is in it must fit at once (--budget-gb)"
        )
        try:
            text, code = annotate()
        except ValueError as error:
            if result.no_room:
                raise ValueError(f"{error}; {too_small}") from None
            raise
        if not result.no_room:
            parts = [text, summary(media_root(_release(recipe)), result)]
            return "\n".join(parts), code or (1 if result.failed or result.damaged else 0)
        if not drop_annotated(recipe, out, say=say):
            raise ValueError(too_small)
