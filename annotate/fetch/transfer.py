"""One file over HTTP, whole and checked, or a reason why not.

Bytes go to `.<name>.part` beside the place and stay there when the connection breaks: the next try, of this run or
another, asks for the rest and for nothing if the file has changed since (`If-Range`). The file gets its name once its
size and, where one is known, its SHA-256 are right, and it is on disk.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .ledger import FetchError

_CHUNK = 1 << 20
_STALL_BYTES = 16 << 10
"""Less than this in `Policy.stall_s` is no progress."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long to wait, and how often to come back.

    Attributes:
        stall_s: a connection that brings next to nothing for so long is given up and taken up anew.
        tries: tries in a row that brought no new byte, after which a file is given up for this run.
        wait_s: before the second try; doubles up to `max_wait_s`, with a random part, unless the server says how long.
    """

    stall_s: float = 30.0
    tries: int = 6
    wait_s: float = 1.0
    max_wait_s: float = 120.0


@dataclass(kw_only=True)
class Room:
    """Bytes that may still be written; None: as many as the disk takes.

    `take` says whether so many more may be, and counts them.
    """

    take: Callable[[int], bool] = field(default=lambda _count: True)


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    policy: Policy | None = None,
    room: Room | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Fetch a file to its place; returns its size.

    Args:
        size, sha256: as listed by whoever is to be trusted; None: not known.
        headers: sent to the host of `url` alone, never to where it redirects.
        sleep: waits between tries.
    Raises:
        FetchError: with the reason for the ledger. What has come so far stays for the next run where that may help.
    """
    policy, room = policy or Policy(), room or Room()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target)
    without_progress, most, wrong_bytes = 0, part.size, False
    while True:
        wait_s: float | None = None
        try:
            total = _attempt(url, part, size, headers or {}, policy, room)
            if (problem := _wrong(part, total, size, sha256)) is not None:
                raise problem
            return part.finish()
        except FetchError as error:
            if error.reason not in ("size_mismatch", "digest_mismatch"):
                raise
            # Whatever is here is not the file, perhaps since it was begun by another version; what comes next may be.
            part.clear()
            if wrong_bytes:
                raise
            wrong_bytes, most = True, 0
            continue
        except _Later as later:
            wait_s, last = later.wait_s, FetchError("rate_limited", f"{url}: {later}")
        except (OSError, http.client.HTTPException, _Broken) as error:
            last = FetchError(
                "unreachable", f"{url}: {error or type(error).__name__}, after {part.size} bytes"
            )
        # Measured against the most that ever came: a server that breaks off at the same byte brings nothing new.
        without_progress = 0 if part.size > most else without_progress + 1
        most = max(most, part.size)
        if without_progress >= policy.tries:
            raise last
        backoff = min(policy.max_wait_s, policy.wait_s * 2 ** max(0, without_progress - 1))
        sleep(min(policy.max_wait_s, wait_s) if wait_s is not None else backoff * random.uniform(0.5, 1.0))


class _Broken(Exception):
    """The answer ended before the file did."""


class _Later(Exception):
    """The server asks to wait."""

    def __init__(self, text: str, wait_s: float | None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class _Part:
    """The bytes that are here of a file that is not."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self.notes = target.with_name(f".{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str | None:
        """ETag or date of the file that the bytes are of."""
        try:
            return json.loads(self.notes.read_text())["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, validator: str | None) -> None:
        self.clear()
        self.notes.write_text(json.dumps({"validator": validator}))

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def finish(self) -> int:
        size = self.size
        with self.path.open("ab") as stream:
            os.fsync(stream.fileno())
        self.path.replace(self.target)
        self.notes.unlink(missing_ok=True)
        return size


def _attempt(
    url: str, part: _Part, size: int | None, headers: Mapping[str, str], policy: Policy, room: Room
) -> int | None:
    """Go on with a file; returns its whole size as the server states it."""
    have = part.size
    if size is not None and have >= size:
        return size
    wanted = {"Accept-Encoding": "identity", "User-Agent": "theodolite"}
    if have and part.validator is not None:
        wanted |= {"Range": f"bytes={have}-", "If-Range": part.validator}
    request = urllib.request.Request(url, headers=wanted)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    try:
        answer = _OPENER.open(request, timeout=policy.stall_s)
    except urllib.error.HTTPError as error:
        with closing(error):
            _refused(url, error, part)
        return None
    with closing(answer):
        total = _total(answer, have)
        if answer.status == 206:
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != have:
                part.clear()
                raise _Broken("the server sent another range than what was asked for")
        else:
            part.begin(answer.headers.get("ETag") or answer.headers.get("Last-Modified"))
            total = _total(answer, 0)
        _copy(answer, part, size, policy, room)
    if total is not None and part.size < total:
        raise _Broken(f"the connection ended after {part.size} of {total} bytes")
    return total


def _refused(url: str, error: urllib.error.HTTPError, part: _Part) -> None:
    """Pass on what an error of HTTP means."""
    if error.code in (404, 410):
        raise FetchError("gone", f"{url}: {error.code}")
    if error.code in (401, 403):
        raise FetchError("no_access", f"{url}: {error.code}")
    if error.code == 451:
        raise FetchError("geo_blocked", f"{url}: 451")
    if error.code == 416:  # more is here than the server has: not the same file
        part.clear()
        raise _Broken("what is here does not fit the file of the server")
    if error.code in (429, 503):
        after = error.headers.get("Retry-After", "")
        raise _Later(f"{error.code}", float(after) if after.isdecimal() else None)
    if error.code >= 500:
        raise _Broken(f"status {error.code}")
    raise FetchError("refused", f"{url}: status {error.code}")


def _total(answer: Any, have: int) -> int | None:
    """Size of the whole file as an answer states it."""
    stated = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
    if stated is not None:
        return int(stated[1])
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if length.isdecimal() else None


def _copy(answer: Any, part: _Part, size: int | None, policy: Policy, room: Room) -> None:
    since, came = time.monotonic(), 0
    with part.path.open("ab") as out:
        written = out.tell()
        while chunk := answer.read1(_CHUNK):
            if size is not None and written + len(chunk) > size:
                raise FetchError(
                    "size_mismatch", f"{part.target.name}: more than the {size} bytes that are listed"
                )
            if not room.take(len(chunk)):
                raise FetchError("no_room", f"{part.target.name}: no room for more than {written} bytes")
            try:
                out.write(chunk)
                out.flush()
            except OSError as error:  # of this disk, not of the connection: another try is no help
                reason = "no_room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "refused"
                raise FetchError(reason, f"{part.path}: {error.strerror or error}") from None
            written, came = written + len(chunk), came + len(chunk)
            if came >= _STALL_BYTES:
                since, came = time.monotonic(), 0
            elif time.monotonic() - since > policy.stall_s:
                raise _Broken(f"{came} bytes in {policy.stall_s:g} s")


def _wrong(part: _Part, total: int | None, size: int | None, sha256: str | None) -> FetchError | None:
    """What is wrong with the bytes that are here, now that all should be."""
    name, have = part.target.name, part.size
    if size is not None and have != size:
        return FetchError("size_mismatch", f"{name}: {have} bytes, {size} are listed")
    if size is None and total is not None and have != total:
        return FetchError("size_mismatch", f"{name}: {have} bytes, the server states {total}")
    if sha256 is None:
        return None
    digest = hashlib.sha256()
    with part.path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    return (
        None
        if found == sha256.lower()
        else FetchError("digest_mismatch", f"{name}: {found}, listed {sha256}")
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects of HTTP alone; a range and its condition go along, a token does not."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise FetchError("refused", f"{req.full_url}: redirects to {newurl[:80]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)
