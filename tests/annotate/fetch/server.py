"""A server on loopback that behaves as badly as servers do, and as the hub where it is asked to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Site:
    """Files by path, and how each is served.

    Attributes:
        files: path -> content.
        faults: path -> kinds of fault, one for each of the first requests; then it is served well.
        always: path -> a fault of every request.
        requests: GETs by path; `sent`: bytes of bodies by path; `headers`: of the last request by path.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.always: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.redirects: dict[str, str] = {}
        self.url = ""
        self.repositories: dict[str, dict[str, bytes]] = {}

    def add_repository(self, name: str, files: dict[str, bytes], *, commit: str = "c" * 40) -> None:
        """A dataset repository of the hub."""
        self.repositories[name] = files
        for path, content in files.items():
            self.files[f"/datasets/{name}/resolve/{commit}/{path}"] = content

    def api(self, path: str) -> Any:
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(revision|tree)/([^/]+)(/.*)?", path)
        if match is None or match[1] not in self.repositories:
            return None
        files = self.repositories[match[1]]
        if match[2] == "revision":
            return {
                "id": match[1],
                "sha": "c" * 40,
                "siblings": [],
                "private": False,
                "tags": [],
                "downloads": 0,
            }
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
                "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130},
            }
            for name, content in files.items()
        ]


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.site, unquote(urlsplit(self.path).path)
        site.requests[path] += 1
        site.headers[path] = dict(self.headers.items())
        if path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/api/"):
            found = site.api(path)
            if found is None:
                self._whole(404, b'{"error": "Repository not found"}')
            else:
                self._whole(200, json.dumps(found).encode())
            return
        queue = site.faults.get(path)
        fault = queue.pop(0) if queue else site.always.get(path, "")
        content = site.files.get(path)
        if content is None and not fault.isdecimal():
            self._whole(404, b"")
        elif fault.split()[:1] and fault.split()[0].isdecimal():
            self._error(fault)
        else:
            self._serve(path, content or b"", fault)

    do_HEAD = do_GET

    def _whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, fault: str) -> None:
        status, *after = fault.split()
        self.send_response(int(status))
        if after:
            self.send_header("Retry-After", after[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, path: str, content: bytes, fault: str) -> None:
        tag = '"' + hashlib.sha256(content).hexdigest()[:16] + '"'
        start, status = 0, 200
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and fault != "no ranges" and self.headers.get("If-Range", tag) == tag:
            start, status = int(match[1]), 206
            if start >= len(content):
                self._error("416")
                return
        if fault == "wrong range":
            start += 1
        body = content[start:]
        if fault == "wrong bytes":
            body = bytes(b ^ 1 for b in body)
        stated = len(body) + {"too long": 1000, "too short": -len(body) // 2}.get(fault, 0)
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(stated))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if fault in ("breaks off", "stalls", "trickles"):
            body = body[: max(1, len(body) // 3)]
        elif fault == "silent":
            body = b""
        elif fault == "too short":
            body = body[:stated]
        if fault == "trickles":
            for byte in body:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.05)
        else:
            self.site.sent[path] += len(body)  # before it goes: who reads it may be done at once, and looks
            self.wfile.write(body)
        if fault in ("stalls", "silent"):
            time.sleep(1.5)
        if fault:
            self.close_connection = True


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """The site under `site.url`, until the block ends."""
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
