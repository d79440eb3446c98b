"""From a run's folder to a public dataset: checked, filtered by licence, with a card, uploaded in resumable
steps."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .card import MAX_LISTED, Use, dataset_card
from .inputs import InputError, read_json
from .licences import allows_commercial_use, known_licences, unknown_licences
from .media.read import media_path
from .reading import ClipDataset, open_dataset
from .rows import Row
from .staging import staged
from .storage.paths import as_path
from .store import dataset_files, part_stamps, write_atomically, write_dataset
from .validate import validate_dataset

_LOCAL_PATH = re.compile(r"(?<![\w/.])/(?:[^\s/:]+/)+([^\s/:]*)")
"""Absolute paths in messages, of which only the last part is published."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A staged folder, ready to upload.

    Attributes:
        folder: holds README.md, dataset.json, data/ and, where allowed, media/.
        num_clips: rows in it; left_out: rows that `use` does not allow.
        num_media: media files copied.
        num_folders: accepted clips whose media might be passed on, but are folders of images, which are not copied.
    """

    folder: Path
    num_clips: int
    left_out: int
    num_media: int
    num_folders: int = 0


def stage_publication(
    path: str | Path,
    folder: str | Path,
    *,
    use: Use = "research",
    name: str | None = None,
    repository: str | None = None,
    media_root: str | Path | None = None,
) -> Publication:
    """Write what would be published into an empty `folder`.

    Rows keep all columns except tracebacks, and messages lose the folders of absolute paths. Media that may
    not be passed on stays
    where it is: its row points to the source's own id. Redistributable videos of accepted clips are copied to
        `media/` if `media_root` is given.

    Args:
        use: `commercial` leaves out every row whose data or weights are not licensed for it.
        name: title of the card; None: the repository's name, or the folder's.
        repository: `owner/name` that the card says to load; None: a place to write it in.
        media_root: folder to which relative media paths refer.
    Raises:
        ValueError: the dataset breaks an invariant (stand-in rows, missing licences and all others of
        `validate`), a
            licence is not in the table, nothing is left, or `folder` is not empty.
    """
    path, folder = as_path(path), Path(folder)
    _num_rows, violations = validate_dataset(path)
    if violations:
        shown = "\n  ".join(str(v) for v in violations[:MAX_LISTED])
        more = "" if len(violations) <= MAX_LISTED else f"\n  and {len(violations) - MAX_LISTED} more"
        raise ValueError(f"{path}: not fit to publish, {len(violations)} violations:\n  {shown}{more}")
    clips = open_dataset(path)
    _refuse_unknown_licences(clips)
    _ = clips.columns  # rows then have the columns of all parts
    counts = {"left out": 0, "media": 0, "folders": 0}
    with staged(folder) as staging:

        def public_rows() -> Iterator[Row]:
            for row in clips.rows():
                if use == "commercial" and not allows_commercial_use(row.data_licence, row.weight_licences):
                    counts["left out"] += 1
                    continue
                pointer, copied = _publish_media(row, staging, media_root)
                counts["media"] += copied
                counts["folders"] += media_root is not None and _is_kept_folder(row)
                details = tuple(_LOCAL_PATH.sub(r"\1", text) for text in row.reason_details)
                yield replace(row, error=None, media=pointer, reason_details=details)

        num_clips = write_dataset(staging, public_rows())
        if not num_clips:
            raise ValueError(f"{path}: no clip's data and weights allow {use} use; nothing to publish")
        title = name or (path.stem if repository is None else repository.split("/")[1])
        card = dataset_card(open_dataset(staging), name=title, use=use)
        if repository is not None:
            card = card.replace("OWNER/NAME", repository)
        (staging / "README.md").write_text(card, encoding="utf-8")
    return Publication(
        folder=folder,
        num_clips=num_clips,
        left_out=counts["left out"],
        num_media=counts["media"],
        num_folders=counts["folders"],
    )


def _is_kept_folder(row: Row) -> bool:
    """Whether a clip's media might be passed on, but is a folder of images, which stays where it is."""
    return row.data_redistributable and row.media_kind == "images" and row.verdict == "accepted"


def _refuse_unknown_licences(clips: ClipDataset) -> None:
    unknown: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for row in clips.rows():
        for licence in dict.fromkeys(unknown_licences(row)):
            for kind, names in (("data", (row.data_licence,)), ("weights", row.weight_licences)):
                if licence in names:
                    unknown[kind, licence] += 1
                    example.setdefault((kind, licence), row.clip_id)
    if not unknown:
        return
    listed = ", ".join(
        f"{name!r} of {kind} ({n} clips, e.g. {example[kind, name]})"
        for (kind, name), n in unknown.most_common()
    )
    known = ", ".join(licence.name for licence in known_licences())
    remedies = {
        "data": "name that of data when annotating: --set source.data_licence=NAME, or data_licence in the index",
        "weights": "that of weights is written by what annotated the clips: annotate them anew, or leave them"
        " out (theodolite subset, by clip_id)",
    }
    concerned = {kind for kind, _licence in unknown}
    helps = "; ".join(text for kind, text in remedies.items() if kind in concerned)
    raise ValueError(
        f"{clips.path}: licence_present: licences that are not known: {listed}; the known ones are {known}; {helps}"
    )


def _publish_media(row: Row, folder: Path, media_root: str | Path | None) -> tuple[str, int]:
    """Pointer for the public row, and the number of files copied."""
    if re.fullmatch(
        r"https?://[^\s@]+", row.media
    ):  # others (file:, with a password) say things of this machine
        return row.media, 0
    if (
        media_root is not None
        and row.data_redistributable
        and row.media_kind == "video"
        and row.verdict == "accepted"
    ):
        source = media_path(row, media_root)
        if not source.is_file():
            raise ValueError(
                f"clip {row.clip_id}: {source}: no such file; media_root must be where media paths start"
            )
        if not re.fullmatch(r"(\.[A-Za-z0-9]{1,10})?", source.suffix):
            raise ValueError(f"clip {row.clip_id}: {source}: no suffix of a video")
        target = folder / "media" / f"source={row.source}" / f"{row.clip_id}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return str(target.relative_to(folder)), 1
    return f"{row.source}:{row.original_id}", 0  # a local path means nothing to others, and may name people


def check_repository(repo_id: str) -> None:
    """Make sure that a name may be one of a repository on the hub.

    Raises:
        ValueError: it is not `owner/name`.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id, re.ASCII):
        raise ValueError(f"repo id {repo_id!r}: expected owner/name, of letters, digits, `-`, `_` and `.`")


def publish(
    path: str | Path,
    repo_id: str,
    staging: str | Path,
    *,
    use: Use = "research",
    media_root: str | Path | None = None,
    private: bool = True,
    api: Any = None,
) -> tuple[Publication, str]:
    """Stage and upload to the Hugging Face hub; returns what was staged and the repository's address.

    The upload is the hub client's own resumable one, and one that failed is continued by the same call: what was staged
    for it from the same parts is taken as it is. It needs a logged-in client (`hf auth login`).

    Args:
        repo_id: `owner/name`.
        staging: empty folder for the staged files, or the one of a call that did not end.
        private: create the repository as private; make it public on the hub once looked through.
        api: a `huggingface_hub.HfApi`; the default one if None.
    Raises:
        ValueError: as `stage_publication`, or a repo id of another form.
    """
    check_repository(repo_id)
    wanted = _request(path, repo_id, use, media_root)
    publication = _staged_before(Path(staging), wanted)
    if publication is None:
        publication = stage_publication(path, staging, use=use, repository=repo_id, media_root=media_root)
        _remember(publication, wanted)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    url = str(api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True))
    # Clients before 2.0 keep their resumable upload under a name of its own; later ones made it the normal
    # one.
    upload = getattr(api, "upload_large_folder", None) or api.upload_folder
    upload(repo_id=repo_id, repo_type="dataset", folder_path=str(publication.folder))
    return publication, url


_COUNTS = ("num_clips", "left_out", "num_media", "num_folders")
_RECORD = Path(".cache", "huggingface", "theodolite.json")
"""Where a staged folder says what it was staged for: hub clients upload nothing from there."""


def _request(path: str | Path, repo_id: str, use: Use, media_root: str | Path | None) -> dict[str, str]:
    """What a folder is staged for: the same request gives the same files."""
    parts = hashlib.sha256()
    path = as_path(path)
    files = dataset_files(path)
    for part, stamp in zip(files, part_stamps(path if path.is_dir() else path.parent, files), strict=True):
        parts.update(repr((part.name, *stamp[1:])).encode())
    root = "" if media_root is None else str(Path(media_root).resolve())
    return {
        "dataset": str(path.resolve()),
        "repository": repo_id,
        "use": use,
        "media_root": root,
        "parts": parts.hexdigest(),
    }


def _remember(publication: Publication, wanted: dict[str, str]) -> None:
    record = publication.folder / _RECORD
    record.parent.mkdir(parents=True, exist_ok=True)
    counts = {name: getattr(publication, name) for name in _COUNTS}
    write_atomically(record, json.dumps({"request": wanted, **counts}).encode())


def _staged_before(folder: Path, wanted: dict[str, str]) -> Publication | None:
    """What an earlier call staged whole for the same request."""
    record = folder / _RECORD
    if not record.is_file():
        return None
    try:
        known = read_json(record)
        if known.pop("request") != wanted:
            return None
        return Publication(folder=folder, **{name: int(known[name]) for name in _COUNTS})
    except (InputError, KeyError, TypeError, ValueError):
        return None
