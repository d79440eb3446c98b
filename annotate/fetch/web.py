"""Videos by their addresses on the web, through yt-dlp where they are no plain files.

Why one cannot be had is read from what the site says, which yt-dlp passes on as text.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .ledger import FetchError, FetchReason

_PLAIN = (".mp4", ".mov", ".webm", ".mkv", ".m4v")

_SAID: tuple[tuple[FetchReason, str], ...] = (
    ("rate_limited", r"429|too many requests|rate.?limit|confirm you.?re not a bot"),
    ("geo_blocked", r"(in|from) your (country|location|region)|geo.?restrict|not made this video available"),
    (
        "private",
        r"private video|members.only|join this channel|sign in if you.ve been granted|confirm your age",
    ),
    ("gone", r"removed|unavailable|terminated|does(n.t| not) exist|no longer|not available|deleted|404|410"),
    ("no_access", r"\b40[13]\b|forbidden|login required|cookies"),
    (
        "unreachable",
        r"timed? ?out|connection|unable to download|resolve|network|incomplete|reset by peer|ssl",
    ),
)
"""Read in this order: a video that is unavailable in one's country is not gone."""


def is_plain(url: str) -> bool:
    """Whether an address names a video file itself."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.path.lower().endswith(_PLAIN)


def why(text: str) -> FetchReason:
    """Reason for the ledger in what a site, or yt-dlp, says."""
    lower = text.lower()
    for reason, pattern in _SAID:
        if re.search(pattern, lower):
            return reason
    return "refused"


def fetch_video(
    url: str,
    target: Path,
    *,
    max_height: int = 1080,
    allow: Callable[[int], bool] | None = None,
    settings: dict[str, Any] | None = None,
) -> int:
    """The best video-only stream up to a height, as the site has it (nothing is coded anew); returns its size.

    Args:
        target: its suffix is replaced by that of the stream if that is no `.mp4`.
        allow: is told the bytes so far and says whether to go on.
        settings: further options of yt-dlp.
    Raises:
        FetchError: with the reason for the ledger.
        ImportError: yt-dlp is missing, with what brings it.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise FetchError("refused", f"{url[:80]}: no address on the web")
    try:
        yt_dlp: Any = importlib.import_module("yt_dlp")
    except ImportError:
        raise ImportError(
            "lists of addresses are fetched through yt-dlp, which is not installed: pip install theodolite[fetch]"
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    stopped = False

    def heard(status: dict[str, Any]) -> None:
        nonlocal stopped
        if allow is not None and not allow(int(status.get("downloaded_bytes") or 0)):
            stopped = True
            raise yt_dlp.utils.DownloadCancelled("no room")

    options: dict[str, Any] = {
        "format": f"bestvideo[height<={max_height}][ext=mp4]/bestvideo[height<={max_height}]/best[height<={max_height}]"
        "/best",
        # Beside the place and not at it: what has a name is whole.
        "outtmpl": {"default": str(target.with_name(f".{target.stem}.fetch.%(ext)s"))},
        "noplaylist": True,
        "continuedl": True,
        "retries": 5,
        "socket_timeout": 30,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "progress_hooks": [heard],
        **(settings or {}),
    }
    try:
        with yt_dlp.YoutubeDL(options) as client:
            info = client.extract_info(url, download=True)
            found = Path(client.prepare_filename(info))
    except yt_dlp.utils.DownloadCancelled:
        raise FetchError("no_room", f"{url}: no room") from None
    except yt_dlp.utils.YoutubeDLError as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        raise FetchError("no_room" if stopped else why(text), f"{url}: {text[:300]}") from error
    if not found.is_file() or not found.stat().st_size:
        raise FetchError("refused", f"{url}: yt-dlp left no file")
    place = target if found.suffix == ".mp4" else target.with_suffix(found.suffix)
    found.replace(place)
    return place.stat().st_size
