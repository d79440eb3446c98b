"""A server on loopback that speaks OpenAI's chat completions, well or badly, as a test says."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SCENE = "A narrow street with red brick houses, parked bicycles and a green door under a grey sky."


@dataclass
class Chat:
    """What the server says.

    Attributes:
        answer: to the messages of a request.
        faults: for the next requests, one each; then it behaves.
        always: fault of every request.
        requests: content of all, in order; keys: what they were sent with.
    """

    answer: Callable[[list[dict[str, Any]]], str] = lambda _messages: SCENE
    faults: list[str] = field(default_factory=list)
    always: str = ""
    most_pictures: int = 64
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""


def pictures_of(request: dict[str, Any]) -> list[bytes]:
    """JPEG files of a request."""
    parts = request["messages"][0]["content"]
    return [
        base64.b64decode(p["image_url"]["url"].partition(",")[2]) for p in parts if p["type"] == "image_url"
    ]


class _Handler(BaseHTTPRequestHandler):
    chat: Chat
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        chat = self.chat
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat.requests.append(content)
        chat.keys.append(self.headers.get("Authorization"))
        fault = chat.always or (chat.faults.pop(0) if chat.faults else "")
        if len(pictures_of(content)) > chat.most_pictures:
            self._send(
                400, {"message": f"At most {chat.most_pictures} image(s) may be provided in one request."}
            )
        elif self.path != "/v1/chat/completions":
            self._send(404, {"message": "Not Found"})
        elif fault[:3].isdigit():
            self._send(int(fault[:3]), {"message": fault[3:]}, retry_after=fault.partition(" after ")[2])
        elif fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._answer(content, fault)

    def _answer(self, content: dict[str, Any], fault: str) -> None:
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": self.chat.answer(content["messages"])}
        }
        choice["finish_reason"] = "length" if fault == "cut" else "stop"
        found: Any = {"choices": [choice]}
        odd = {
            "no choices": {"choices": []},
            "other json": [1, 2],
            "empty": {"choices": [{"message": {"content": "  "}, "finish_reason": "stop"}]},
            "null": {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]},
        }
        body = json.dumps(odd.get(fault, found)).encode()
        if fault == "no json":
            body = b"<html>502 from a proxy</html>"
        elif fault == "huge":
            body = b'{"choices": "' + b"x" * (2 << 20) + b'"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "breaks off":
            body = body[: len(body) // 2]
        if fault == "trickles":
            for byte in body:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.02)
        else:
            self.wfile.write(body)
        self.close_connection = bool(fault)

    def _send(self, status: int, error: dict[str, Any], *, retry_after: str = "") -> None:
        body = json.dumps({"error": error}).encode()
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def chatting(chat: Chat) -> Iterator[Chat]:
    """The server under `chat.url`, until the block ends."""
    handler = type("Handler", (_Handler,), {"chat": chat})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
