"""`theodolite unpack`: the archives of a release, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ...annotate.sources.archives import Limits, Unpacked, archive_parts, find_archives, ledger_path, unpack
from ...annotate.sources.entries import ReleaseSource, media_root
from ...annotate.sources.releases import LAYOUTS
from ..loader import Recipe, RecipeError

_MAX_LISTED = 20


def run_unpack(
    recipe: Recipe, *, max_member_gib: float, drop: bool, say: Callable[[str], None]
) -> tuple[str, int]:
    """Unpack what is not unpacked yet.

    Args:
        drop: delete an archive (all parts of it) once it is done without damage.
        say: hears a line an archive.
    Returns:
        Summary with every member that was not written, and 0, or 1 if there was one or a damaged archive.
    Raises:
        ValueError: no release, no such folder, or no archive in it.
    """
    source = recipe.source
    if not isinstance(source, ReleaseSource) or LAYOUTS[source.layout].place is None:
        raise RecipeError(f"{recipe.name}: its source has no archives to unpack (source.layout)")
    root = media_root(source)
    archives = find_archives(root, LAYOUTS[source.layout])
    done = len(list((root / ".unpacked").glob("*.jsonl"))) if root.is_dir() else 0
    if not archives and not done:
        globs = ", ".join(LAYOUTS[source.layout].archives)
        raise ValueError(f"{root}: holds no archive of this release ({globs}) (source.root)")
    limits = Limits(max_member_bytes=int(max_member_gib * 2**30))
    results = list(unpack_archives(archives, root, source, limits, drop=drop, say=say))
    problems = [member for result in results for member in result.problems]
    damaged = [result.damage for result in results if result.damage]
    lines = [
        f"{root}: {len(archives)} archives, {len(results)} unpacked now: {sum(r.written for r in results)} files,"
        f" {sum(r.bytes for r in results) / 1e9:.2f} GB"
    ]
    lines += [f"  {damage}; fetch it again" for damage in damaged]
    lines += [f"  {member.reason}: {member.detail}" for member in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f"  and {len(problems) - _MAX_LISTED} more: {root / '.unpacked'}")
    return "\n".join(lines), 1 if problems or damaged else 0


def unpack_archives(
    archives: list[Path],
    root: Path,
    source: ReleaseSource,
    limits: Limits,
    *,
    drop: bool,
    say: Callable[[str], None],
) -> Iterator[Unpacked]:
    """Unpack those of the archives that are not done, in order."""
    place = LAYOUTS[source.layout].place
    assert place is not None, "asked before"
    for archive in archives:
        if not ledger_path(root, archive).is_file():
            result = unpack(archive, root, place, limits)
            say(f"{result.archive}: {result.written} files" + (f"; {result.damage}" if result.damage else ""))
            yield result
            if result.damage:
                continue
        if drop:
            for part in archive_parts(archive):
                part.unlink(missing_ok=True)
