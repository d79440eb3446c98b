"""Vision-language models behind a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, or a hosted
one.

A server may be slow, busy or wrong: what passes is waited out, what is about one clip is that clip's problem, and what
would be about every clip ends the run with what to do.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ...dataset.inputs import InputError, parse_json
from .base import ModelGone, NoAnswer, Request

_LARGEST_ANSWER = 1 << 20
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_TOO_MANY_PICTURES = re.compile(r"at most (\d+) image", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        answer_s: longest time to a whole answer, however slowly it comes.
        tries: tries of one request, after which the server counts as gone.
        wait_s: before the second try; doubles up to `max_wait_s`, with a random part, unless the server says how long.
    """

    answer_s: float = 300.0
    tries: int = 8
    wait_s: float = 1.0
    max_wait_s: float = 120.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key that is sent along must not end up elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """A model behind `<url>/chat/completions`.

    Attributes:
        url: such as `http://localhost:8000/v1`.
        model: as the server calls it.
        key: sent as a bearer token; None: none.
        jobs: requests at once.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    jobs: int = 8
    patience: Patience = Patience()
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(
                f"--server {parts.scheme}://{parts.hostname}: give http(s)://HOST[:PORT]/v1, without user or password"
            )

    @property
    def name(self) -> str:
        """The model's; where it runs changes nothing."""
        return self.model

    @property
    def at_once(self) -> int:
        """As many as are under way together."""
        return self.jobs

    def ask(self, requests: Sequence[Request]) -> list[str | NoAnswer]:
        """Answers, all requests under way at once up to `jobs`."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(self._ask, requests))

    def _ask(self, request: Request) -> str | NoAnswer:
        body = json.dumps(self._content(request)).encode()
        last = "nothing"
        for attempt in range(self.patience.tries):
            wait_s = None
            try:
                return self._answer(body)
            except NoAnswer as problem:
                return problem
            except _Later as later:
                last, wait_s = str(later), later.wait_s
            except (OSError, http.client.HTTPException) as error:
                last = f"{type(error).__name__}: {error}"
            if attempt + 1 < self.patience.tries:
                self.sleep(self._pause(attempt, wait_s))
        raise ModelGone(
            f"{self.url}: no answer after {self.patience.tries} tries (last: {last[:300]}); look at the server, then"
            " run the same command again: what is done is kept"
        )

    def _pause(self, attempt: int, asked_s: float | None) -> float:
        if asked_s is not None:
            return min(self.patience.max_wait_s, asked_s)
        return min(self.patience.max_wait_s, self.patience.wait_s * 2**attempt) * random.uniform(0.5, 1.0)

    def _content(self, request: Request) -> dict[str, Any]:
        pictures = [
            {
                "type": "image_url",
                "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(data).decode()},
            }
            for data in request.pictures
        ]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*pictures, {"type": "text", "text": request.prompt}]}
        ]
        for turn in request.turns:
            messages.append({"role": "assistant", "content": turn.answer})
            messages.append({"role": "user", "content": turn.reply})
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "seed": 0,
        }

    def _answer(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", body, headers, method="POST"
        )
        deadline = time.monotonic() + self.patience.answer_s
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=self.patience.answer_s) as response:
                content = _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                said = _read(error, deadline, strict=False).decode(errors="replace")
                raise self._refused(error.code, said, error.headers.get("Retry-After")) from None
        return _text(content)

    def _refused(self, status: int, said: str, retry_after: str | None) -> Exception:
        said = " ".join(said.split())[:300]
        if status in _PASSING:
            seconds = float(retry_after) if retry_after and retry_after.strip().isdecimal() else None
            return _Later(f"HTTP {status} {said}", seconds)
        if (most := _TOO_MANY_PICTURES.search(said)) is not None:
            return ModelGone(
                f"{self.url}: the server takes at most {most[1]} pictures a request: --pictures {most[1]}, or start it"
                " for more (vLLM: --limit-mm-per-prompt)"
            )
        if status in (400, 413, 422):
            return NoAnswer(f"the server refused it: HTTP {status} {said}")
        hints = {
            401: "the key is missing or wrong (OPENAI_API_KEY)",
            403: "the key may not use this model",
            404: f"no model {self.model!r} there, or the address lacks /v1",
        }
        hint = hints.get(status, "look at the address (--server) and the model (--model)")
        return ModelGone(f"{self.url}: HTTP {status}: {hint} ({said})")


class _Later(Exception):
    """The server is busy, or answered what makes no sense."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def _read(response: Any, deadline: float, *, strict: bool = True) -> bytes:
    """A whole answer, however slowly it comes, up to a moment and a size."""
    content = bytearray()
    while chunk := response.read1(1 << 16):
        content += chunk
        if len(content) > _LARGEST_ANSWER:
            raise _Later(f"an answer of more than {_LARGEST_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise _Later("the answer took too long")
    stated = response.headers.get("Content-Length")
    if strict and stated and stated.isdecimal() and len(content) < int(stated):
        raise _Later(f"the answer broke off after {len(content)} of {stated} bytes")
    return bytes(content)


def _text(content: bytes) -> str:
    """The words of a chat completion."""
    try:
        found = parse_json(content, "the answer")
        choice = found["choices"][0]
        text = choice["message"]["content"]
        if isinstance(text, list):
            text = "".join(part.get("text") or "" for part in text)
    except (InputError, KeyError, IndexError, TypeError, AttributeError) as error:
        shown = content[:120].decode(errors="replace")
        raise _Later(f"no chat completion ({type(error).__name__}: {error}): {shown!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise NoAnswer(f"the answer is empty ({choice.get('finish_reason')})")
    if choice.get("finish_reason") == "length":
        raise NoAnswer("the answer was cut off at its greatest length (--max-tokens)")
    return text
