"""That a run has nothing to do, told without reading what its source lists: for an index of clips that did not change.

Behind a run that left nothing to do, `index/planned.json` says of which index and of which parts that is true. It is
believed for these alone: an index of clips is told from others by its name, size, inode and times, parts by their
stamps. Whatever else it is, the source is read, and the note is written anew.
"""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

from .. import __version__
from ..annotate.sources.entries import IndexSource, Source
from ..dataset.inputs import InputError, read_json
from ..dataset.pieces import digest_of
from ..dataset.storage.listing import may_change_unseen
from ..dataset.storage.paths import StorePath
from ..dataset.store import INDEX_FOLDER, has_parts, stamped_folders, write_atomically

_NOTE = "planned.json"


def source_mark(source: Source) -> str | None:
    """What tells a source from others and from itself after a change; None where nothing but reading it does."""
    if not isinstance(source, IndexSource):
        return None
    try:
        state = source.index.stat()
    except OSError:
        return None
    # Within a tick of the clock it might change again and keep its time.
    if not stat.S_ISREG(state.st_mode) or may_change_unseen(state.st_ctime_ns):
        return None
    times = (state.st_mtime_ns, state.st_ctime_ns)
    said = (__version__, source.model_dump_json(), state.st_dev, state.st_ino, state.st_size, *times)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def clips_done(out: Path, mark: str | None) -> int | None:
    """Clips of a source, all of which are known to have rows in `out`; None: nothing is known of it.

    Args:
        mark: `source_mark` of the source as it is now.
    """
    path = out / INDEX_FOLDER / _NOTE
    if mark is None or isinstance(out, StorePath):
        return None
    try:
        note = read_json(path) if path.is_file() else None
    except (InputError, OSError):
        return None
    if not isinstance(note, dict) or note.get("source") != mark or note.get("parts") != _parts(out):
        return None
    clips = note.get("clips")
    return clips if isinstance(clips, int) else None


def remember(out: Path, mark: str | None, num_clips: int) -> None:
    """Note that all clips of a source have rows; its mark is of before it was read, its parts are indexed."""
    if mark is None or isinstance(out, StorePath):
        return
    note = {"source": mark, "parts": _parts(out), "clips": num_clips}
    write_atomically(out / INDEX_FOLDER / _NOTE, (json.dumps(note) + "\n").encode())


def _parts(out: Path) -> str:
    folders = stamped_folders(out) if has_parts(out) else []
    return digest_of([stamp for _folder, stamps in folders for stamp in stamps])
