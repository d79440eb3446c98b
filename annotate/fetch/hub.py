"""Which files of a hub repository are wanted, with the sizes and digests that the hub states for them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ...dataset.hub import hub_error
from ...dataset.store import write_atomically


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository at one commit."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Files of a repository at the commit to which its revision pointed when it was listed."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]

    def url(self, file: HubFile) -> str:
        """Where a file is."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self.repository, file.path, repo_type="dataset", revision=self.commit, endpoint=_endpoint()
        )


def list_hub(repository: str, revision: str, cache: Path, *, refresh: bool = False) -> Listing:
    """Files of a dataset repository.

    Listing 100,000 files takes the hub minutes, so the list is kept in `cache`; it is of one commit, and so are the
    files that are fetched by it, whatever is pushed meanwhile.

    Args:
        refresh: list anew.
    Raises:
        ValueError: the hub was not reached, knows no such repository, or gives no access to it.
    """
    place = cache / f"{re.sub(r'[^A-Za-z0-9._-]', '_', f'{repository}@{revision}')}.json"
    if place.is_file() and not refresh:
        kept = json.loads(place.read_text(encoding="utf-8"))
        return Listing(
            repository=repository,
            commit=kept["commit"],
            files=tuple(HubFile(**file) for file in kept["files"]),
        )
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=_endpoint())
    try:
        commit = str(api.dataset_info(repository, revision=revision).sha)
        files = tuple(
            HubFile(path=file.path, size=file.size, sha256=None if file.lfs is None else file.lfs.sha256)
            for file in api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
            if isinstance(file, RepoFile)
        )
    except Exception as error:
        if (reason := hub_error(error)) is None:
            raise
        raise ValueError(
            f"{repository}: cannot be listed: {reason}; gated sets need access from their owner and a token (hf auth"
            " login)"
        ) from error
    content = {"commit": commit, "files": [asdict(file) for file in files]}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(content).encode())
    return Listing(repository=repository, commit=commit, files=files)


def hub_headers() -> dict[str, str]:
    """What the hub's own client sends: the user's token, if there is one."""
    from huggingface_hub.utils import build_hf_headers

    return {name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"}


def matches(path: str, pattern: str) -> bool:
    """Whether a glob covers a path; `*` stays within one name, as in a shell."""
    parts = (re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for part in [pattern])
    return re.fullmatch("".join(parts), path) is not None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
