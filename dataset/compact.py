"""Small parts gathered into larger ones: thousands of files of a few kilobytes are what slows every reader down, and
what object stores and file systems of clusters charge for.

The new part is written as a run's, and put in place of the old ones (`Commits.replace`): whoever reads meanwhile, or
after the command was killed at any moment, sees each clip once, in the old parts or in the new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from .commit import Commits, hold_dataset, new_part, own_run, shard_number, take_in_dead_runs
from .index import refreshed_tally
from .limits import FREE_BYTES, MIB
from .parquet import read_schema, read_table
from .processes import WORTH_PROCESSES, map_processes
from .storage.paths import as_path
from .store import (
    data_folder,
    part_folders,
    part_stamps,
    read_marker,
    refuse_above_datasets,
    require_here,
    source_folder,
    write_part_table,
)

PART_BYTES = 64 * MIB
"""Size of a gathered part."""


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """Numbers of parts before and after, and of clips."""

    num_before: int
    num_after: int
    num_clips: int


def compact(out: str | Path, *, part_bytes: int = PART_BYTES, processes: int = 1) -> Compacted:
    """Gather the small parts of a dataset; rows stay what they are, and so does their order within a source.

    Args:
        part_bytes: size that a gathered part comes near to. Parts above half of it are left as they are.
        processes: that share the work, if it is more than a few hundred parts.
    Raises:
        ValueError: no dataset of a run, another command writes to it, or a part cannot be read.
        OSError: the disk is full.
    """
    out = as_path(out)
    require_here(out)
    refuse_above_datasets(out)
    if not (out / "dataset.json").is_file():
        raise ValueError(f"{out}: no dataset.json; is this the --out folder of a run?")
    recipe_hash = str(read_marker(out).get("recipe_hash"))
    with hold_dataset(out):
        take_in_dead_runs(out, recipe_hash=recipe_hash)
        parts = [part for _folder, found in part_folders(out) for part in found]
        num_after = 0
        with own_run(out) as incoming:
            for _source, of_source in groupby(parts, source_folder):
                groups = list(_groups(out, list(of_source), part_bytes))
                small = [some for some in zip(_numbers(groups), groups, strict=True) if len(some[1]) > 1]
                num_after += len(groups) - len(small)
                used = processes if len(parts) >= WORTH_PROCESSES else 1
                for gathered in map_processes(partial(_gather, incoming), small, processes=used):
                    num_after += len(gathered)
                    Commits(out).replace([(new, group) for new, group in gathered if group != [new]])
        _remove_empty_folders(out)
        num_clips = refreshed_tally(out, processes=processes).done
    return Compacted(num_before=len(parts), num_after=num_after, num_clips=num_clips)


def _groups(out: Path, parts: Sequence[Path], part_bytes: int) -> Iterator[list[Path]]:
    """Parts that become one, in order; those that stay alone among them."""
    group: list[Path] = []
    size = 0
    for part, (_name, num_bytes, _changed) in zip(parts, part_stamps(out, parts), strict=True):
        if 2 * num_bytes > part_bytes:
            yield from ([group, [part]] if group else [[part]])
            group, size = [], 0
            continue
        if group and size + num_bytes > part_bytes:
            yield group
            group, size = [], 0
        group.append(part)
        size += num_bytes
    if group:
        yield group


def _numbers(groups: Sequence[Sequence[Path]]) -> Iterator[int]:
    """Number for the part that a group becomes: small, for few parts to a folder cost, but behind those of the parts
    before it, which may stay as they are."""
    last = -1
    for group in groups:
        found = re.match(r"\d+", shard_number(group[0]))
        own = int(found[0]) if found else last + 1
        last = own if len(group) == 1 else min(last + 1, own)
        yield last


_Gathered = tuple[Path, list[Path]]
"""A new part, and the parts that it is made of, or a part that stays as it is, and itself."""


def _gather(incoming: Path, numbered: tuple[int, Sequence[Path]]) -> list[_Gathered]:
    """Write the rows of several parts as one into a run's folder; as several, where they repeat each other so much that
    one would become more in memory than is taken of a file unasked.

    Raises:
        ValueError: they do not have the same columns, as parts of one run do.
    """
    number, parts = numbered
    schema = read_schema(parts[0])
    for part in parts[1:]:
        if not read_schema(part).equals(schema, check_metadata=True):
            raise ValueError(
                f"{part}: has other columns than {parts[0].name}: parts of different versions are not gathered"
            )
    done: list[_Gathered] = []
    tables: list[pa.Table] = []
    used: list[Path] = []

    def write(name: str) -> None:
        table = pa.concat_tables(tables)
        new = new_part(incoming, used[0], name, table["clip_id"].to_pylist())
        # One that stays alone among others of the group gets a new name, too, which keeps it in its place.
        if len(used) > 1 or new.name != used[0].name:
            write_part_table(new, table)
            done.append((new, used[:]))
        else:
            done.append((used[0], used[:]))
        tables.clear()
        used.clear()

    size = 0
    for part in parts:
        table = read_table(part)
        if used and size + table.nbytes > FREE_BYTES:
            write(f"{number:06d}-{len(done):03d}")
            size = 0
        size += table.nbytes
        tables.append(table)
        used.append(part)
    write(f"{number:06d}-{len(done):03d}" if done else f"{number:06d}")
    return done


def _remove_empty_folders(out: Path) -> None:
    """Folders of thousands that hold no part any more."""
    for folder in data_folder(out).glob("*/[0-9]*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
