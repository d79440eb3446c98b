"""An object store on loopback: moto's S3, with faults that are asked for, and one request at a time.

Tests that use it skip where moto or s3fs is missing (the dev extra brings both).
"""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

MISSING = [name for name in ("moto", "flask_cors", "s3fs") if importlib.util.find_spec(name) is None]
needs_object_store = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (dev extra)"
)


@dataclass
class Faults:
    """What goes wrong with requests, each with a probability, or whenever `when` says so.

    Attributes:
        busy: answered with 503 SlowDown, undone.
        broken: the connection is broken off, undone.
        lost: done, and the connection broken off instead of an answer.
        when: may also say `denied`: answered with 403.
    """

    busy: float = 0.0
    broken: float = 0.0
    lost: float = 0.0
    when: Callable[[str, str], str | None] | None = None
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def of(self, method: str, path: str) -> str | None:
        """The fault that a request meets."""
        found = self.when(method, path) if self.when is not None else None
        if found is None:
            dice = self._random.random()
            for name in ("busy", "broken", "lost"):
                if (dice := dice - getattr(self, name)) < 0:
                    found = name
                    break
        if found is not None:
            self.counts[found] = self.counts.get(found, 0) + 1
        return found


class ObjectStore:
    """A running server.

    Attributes:
        url: its address. faults: what goes wrong from now on.
        requests: methods and paths of all requests.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.conditional = True
        self._lock = threading.Lock()
        self._app: Any = None
        self._server: Any = None
        self.url = ""

    def start(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)

        class Quiet(MotoRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, type: str, message: str, *args: Any) -> None:
                pass

        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=Quiet)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.faults.of(method, path)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if fault in ("busy", "broken", "denied") and length:
            environ["wsgi.input"].read(length)
        if fault == "busy":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [
                b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            ]
        if fault == "denied":
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if fault == "broken":
            break_off(environ)
        if not self.conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        # moto looks whether there is an object and then puts one; a store does both as one act.
        with self._lock:
            answer = list(
                self._app(environ, start_response if fault != "lost" else lambda *_: lambda _: None)
            )
        if fault == "lost":
            break_off(environ)
        return answer

    def names(self, bucket: str) -> list[str]:
        """Names of all objects in a bucket."""
        from moto.s3.models import s3_backends

        for account in s3_backends.values():
            found = account["aws"].buckets.get(bucket)
            if found is not None:
                return sorted(found.keys.keys())
        return []

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its address."""
        import urllib.request

        request = urllib.request.Request(f"{self.url}/{name}", method="PUT", headers=_HEADERS)
        urllib.request.urlopen(request, timeout=30).close()
        return f"s3://{name}"


def break_off(environ: dict[str, Any]) -> NoReturn:
    """Close the connection of a request without an answer."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


_HEADERS = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request"}
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server, with the environment by which clients of this process and its children find it."""

    store = ObjectStore()
    store.start()
    before = dict(os.environ)
    os.environ.update(SETTINGS, AWS_ENDPOINT_URL=store.url)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(name, None)
    forget_clients()
    try:
        yield store
    finally:
        os.environ.clear()
        os.environ.update(before)
        forget_clients()
        store.stop()


def forget_clients() -> None:
    """Let the next request read its settings again."""
    from theodolite.dataset.storage import paths

    paths.store_client.cache_clear()
    if not MISSING:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()


def root_of(store: ObjectStore, name: str) -> Path:
    """A dataset's place in a new bucket."""
    from theodolite.dataset.storage.paths import as_path

    return as_path(f"{store.make_bucket(name)}/run")
